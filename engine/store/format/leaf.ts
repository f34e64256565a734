/**
 * Map objects of a point, as bytes: leaves hold entries (extent → chunk or ZERO) sorted by granule,
 * a root lists the leaves of a longer run. Both are immutable, and their checksum stands in each
 * reference to them. Entries are stored column by column, so that they are read as typed arrays and
 * a search touches only the starts.
 *
 *     leaf: header 64 │ starts u32 × n │ lengths u32 × n │ offsets u32 × n │ stored words u32 × n │ segments u16 × n │
 *           chunk offsets u8 × n │ chunk lengths u8 × n │ digests 16 × n │ segment names
 *     root: header 64 │ first u32 × n │ last u32 × n │ entries u32 × n │ bytes u32 × n │ ordinals u32 × n │
 *           epochs f64 × n │ checksums 16 × n
 *
 * An entry maps granules [start, start + length). It is ZERO, or a window into a chunk:
 * `chunkOffset` granules into a chunk of `chunkLength` granules, whose payload of `stored` bytes
 * lies at `offset` in a segment. Cost: 36 bytes an entry.
 */

import assert from "node:assert/strict";
import os from "node:os";
import { digestBytes, granuleBytes, segmentBytes } from "../../limits.ts";
import { checksum, checksumBytes, sameBytes } from "./checksum.ts";
import { damaged, unsupportedFormat } from "./fields.ts";
import { storedLength, storedLz4Flag } from "./frame.ts";
import { epochMax, isSegmentName, payloadSealBytes } from "./names.ts";
import { refuseUnopened } from "./unopened.ts";

assert(
  os.endianness() === "LE",
  "Tidemark's formats are little-endian and are read as typed arrays; big-endian machines are not supported",
);

export const leafEntriesMax = 32_768;
/** Two thousand million entries. */
export const rootLeavesMax = 65_536;
const headerBytes = 64;
const mapVersion = 1;
const leafMagic = 0x464c4d54; // "TMLF"
const rootMagic = 0x54524d54; // "TMRT"

/** The segment number of a ZERO entry. */
export const zeroSegment = 0xffff;

/**
 * No leaf is larger: the entries plus a name of at most 300 bytes for each of its segments, of
 * which there are as many as entries at worst.
 */
export const leafBytesMax: number = headerBytes + leafEntriesMax * (36 + 300);

/** The columns of a leaf. Arrays may be longer than `count`. */
export interface EntryColumns {
  count: number;
  readonly starts: Uint32Array;
  /** In granules; 1 to 256 for data, any for ZERO. */
  readonly lengths: Uint32Array;
  readonly offsets: Uint32Array;
  /** Length of the payload with `storedLz4Flag`. */
  readonly storedWords: Uint32Array;
  /** Index into `names`, or `zeroSegment`. */
  readonly segments: Uint16Array;
  readonly chunkOffsets: Uint8Array;
  /** Granules of the chunk minus one. */
  readonly chunkLengths: Uint8Array;
  readonly digests: Uint8Array;
  /** Names of the segments that `segments` counts. */
  readonly names: string[];
}

const columnNames = [
  "starts",
  "lengths",
  "offsets",
  "storedWords",
  "segments",
  "chunkOffsets",
  "chunkLengths",
  "digests",
] as const;

export function newColumns(capacity: number): EntryColumns {
  return {
    count: 0,
    starts: new Uint32Array(capacity),
    lengths: new Uint32Array(capacity),
    offsets: new Uint32Array(capacity),
    storedWords: new Uint32Array(capacity),
    segments: new Uint16Array(capacity),
    chunkOffsets: new Uint8Array(capacity),
    chunkLengths: new Uint8Array(capacity),
    digests: new Uint8Array(capacity * digestBytes),
    names: [],
  };
}

/** The same entries with room for `factor` times as many. */
export function grownColumns(columns: EntryColumns, factor: number): EntryColumns {
  const grown = newColumns(columns.starts.length * factor);
  for (const name of columnNames) grown[name].set(columns[name]);
  grown.names.push(...columns.names);
  grown.count = columns.count;
  return grown;
}

export interface EncodedTable {
  readonly bytes: Uint8Array;
  /** Stands in the table's header and in each reference to the table. */
  readonly checksum: Uint8Array;
}

export function encodeLeaf(columns: EntryColumns, vaultId: Uint8Array): EncodedTable {
  const { count } = columns;
  const names = Buffer.from(columns.names.join("\n"), "latin1");
  return encodeTable(leafMagic, count, vaultId, names.length, [
    columns.starts.subarray(0, count),
    columns.lengths.subarray(0, count),
    columns.offsets.subarray(0, count),
    columns.storedWords.subarray(0, count),
    columns.segments.subarray(0, count),
    columns.chunkOffsets.subarray(0, count),
    columns.chunkLengths.subarray(0, count),
    columns.digests.subarray(0, count * digestBytes),
    names,
  ]);
}

/**
 * Errors: DAMAGED (also when the checksum is not `expected`, and when an entry is one that no writer
 * makes), FORMAT_UNSUPPORTED.
 */
export function decodeLeaf(bytes: Uint8Array, object: string, vaultId: Uint8Array, expected: Uint8Array): EntryColumns {
  const { count, namesBytes, columns } = openTable(leafMagic, bytes, object, vaultId, expected, leafEntriesMax);
  if (bytes.byteLength !== headerBytes + count * 36 + namesBytes)
    throw damaged(object, "its length contradicts its header");
  const leaf: EntryColumns = {
    count,
    starts: new Uint32Array(columns.take(count * 4)),
    lengths: new Uint32Array(columns.take(count * 4)),
    offsets: new Uint32Array(columns.take(count * 4)),
    storedWords: new Uint32Array(columns.take(count * 4)),
    segments: new Uint16Array(columns.take(count * 2)),
    chunkOffsets: new Uint8Array(columns.take(count)),
    chunkLengths: new Uint8Array(columns.take(count)),
    digests: new Uint8Array(columns.take(count * digestBytes)),
    names: namesBytes === 0 ? [] : Buffer.from(columns.take(namesBytes)).toString("latin1").split("\n"),
  };
  checkLeaf(leaf, object);
  return leaf;
}

function checkLeaf(leaf: EntryColumns, object: string): void {
  if (leaf.names.length > leaf.count || !leaf.names.every(isSegmentName))
    throw damaged(object, "it names something that is no segment");
  const overheads = leaf.names.map(payloadSealBytes);
  let end = 0;
  for (let index = 0; index < leaf.count; index += 1) {
    const start = leaf.starts[index] ?? 0;
    const length = leaf.lengths[index] ?? 0;
    const segment = leaf.segments[index] ?? 0;
    if (start < end || length === 0 || start + length > 2 ** 32)
      throw damaged(object, `entry ${String(index)} is out of order`);
    end = start + length;
    if (segment === zeroSegment) continue;
    const inChunk = (leaf.chunkOffsets[index] ?? 0) + length <= (leaf.chunkLengths[index] ?? 0) + 1;
    if (segment >= leaf.names.length || !inChunk)
      throw damaged(object, `entry ${String(index)} points outside its chunk or segments`);
    checkPlace(leaf, index, object, overheads[segment] ?? 0);
  }
}

/** What no chunk can be is refused here, so that no reader allocates or fetches by it. */
function checkPlace(leaf: EntryColumns, index: number, object: string, sealBytes: number): void {
  const storedWord = leaf.storedWords[index] ?? 0;
  const stored = storedLength(storedWord);
  const length = stored - sealBytes;
  const plainBytes = ((leaf.chunkLengths[index] ?? 0) + 1) * granuleBytes;
  const isSane = storedWord < storedLz4Flag ? length === plainBytes : length > 0 && length < plainBytes;
  if (!isSane || (leaf.offsets[index] ?? 0) + stored > segmentBytes)
    throw damaged(object, `entry ${String(index)} has a payload of ${String(stored)} bytes that no chunk has`);
}

export interface LeafReference {
  readonly first: number;
  /** Last granule that the leaf maps, inclusive. */
  readonly last: number;
  readonly entries: number;
  readonly bytes: number;
  readonly epoch: number;
  readonly ordinal: number;
  readonly checksum: Uint8Array;
}

export function encodeRoot(leaves: readonly LeafReference[], vaultId: Uint8Array): EncodedTable {
  const checksums = new Uint8Array(leaves.length * checksumBytes);
  for (const [index, leaf] of leaves.entries()) checksums.set(leaf.checksum, index * checksumBytes);
  return encodeTable(rootMagic, leaves.length, vaultId, 0, [
    Uint32Array.from(leaves, (leaf) => leaf.first),
    Uint32Array.from(leaves, (leaf) => leaf.last),
    Uint32Array.from(leaves, (leaf) => leaf.entries),
    Uint32Array.from(leaves, (leaf) => leaf.bytes),
    Uint32Array.from(leaves, (leaf) => leaf.ordinal),
    Float64Array.from(leaves, (leaf) => leaf.epoch),
    checksums,
  ]);
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeRoot(
  bytes: Uint8Array,
  object: string,
  vaultId: Uint8Array,
  expected: Uint8Array,
): LeafReference[] {
  const { count, columns } = openTable(rootMagic, bytes, object, vaultId, expected, rootLeavesMax);
  if (bytes.byteLength !== headerBytes + count * 44) throw damaged(object, "its length contradicts its header");
  const first = new Uint32Array(columns.take(count * 4));
  const last = new Uint32Array(columns.take(count * 4));
  const entries = new Uint32Array(columns.take(count * 4));
  const sizes = new Uint32Array(columns.take(count * 4));
  const ordinals = new Uint32Array(columns.take(count * 4));
  const epochs = new Float64Array(columns.take(count * 8));
  const checksums = new Uint8Array(columns.take(count * checksumBytes));
  const leaves: LeafReference[] = [];
  const named = new Set<string>();
  for (let index = 0; index < count; index += 1) {
    const leaf: LeafReference = {
      first: first[index] ?? 0,
      last: last[index] ?? 0,
      entries: entries[index] ?? 0,
      bytes: sizes[index] ?? 0,
      epoch: epochs[index] ?? 0,
      ordinal: ordinals[index] ?? 0,
      checksum: checksums.slice(index * checksumBytes, (index + 1) * checksumBytes),
    };
    const before = leaves[index - 1];
    const ordered = leaf.last >= leaf.first && (before === undefined || before.last < leaf.first);
    const isBounded =
      leaf.entries > 0 && leaf.entries <= leafEntriesMax && leaf.bytes <= leafBytesMax && isEpoch(leaf.epoch);
    if (!ordered || !isBounded) throw damaged(object, `leaf ${String(index)} is out of order or out of bounds`);
    const name = `${String(leaf.epoch)}-${String(leaf.ordinal)}`;
    if (named.has(name)) throw damaged(object, `it names leaf ${name} twice`);
    named.add(name);
    leaves.push(leaf);
  }
  return leaves;
}

function isEpoch(epoch: number): boolean {
  return Number.isSafeInteger(epoch) && epoch >= 0 && epoch <= epochMax;
}

type Column = Uint32Array | Uint16Array | Uint8Array | Float64Array;

/**
 * Header: magic u32, version u16, header bytes u16, count u32, names bytes u32, vault 16, zeros 16,
 * checksum 16 over everything else.
 */
function encodeTable(
  magic: number,
  count: number,
  vaultId: Uint8Array,
  namesBytes: number,
  columns: readonly Column[],
): EncodedTable {
  const bytes = Buffer.alloc(headerBytes + columns.reduce((sum, column) => sum + column.byteLength, 0));
  bytes.writeUInt32LE(magic, 0);
  bytes.writeUInt16LE(mapVersion, 4);
  bytes.writeUInt16LE(headerBytes, 6);
  bytes.writeUInt32LE(count, 8);
  bytes.writeUInt32LE(namesBytes, 12);
  bytes.set(vaultId, 16);
  let at = headerBytes;
  for (const column of columns) {
    bytes.set(new Uint8Array(column.buffer, column.byteOffset, column.byteLength), at);
    at += column.byteLength;
  }
  const sum = checksum(bytes.subarray(0, headerBytes - checksumBytes), bytes.subarray(headerBytes));
  bytes.set(sum, headerBytes - checksumBytes);
  return { bytes, checksum: sum };
}

interface OpenTable {
  readonly count: number;
  readonly namesBytes: number;
  readonly columns: { take(length: number): ArrayBuffer };
}

function openTable(
  magic: number,
  bytes: Uint8Array,
  object: string,
  vaultId: Uint8Array,
  expected: Uint8Array,
  countMax: number,
): OpenTable {
  refuseUnopened(bytes, object);
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.length < headerBytes || view.readUInt32LE(0) !== magic)
    throw damaged(object, "it does not begin with the signature of its kind");
  const version = view.readUInt16LE(4);
  if (version !== mapVersion) throw unsupportedFormat(object, version, mapVersion);
  const sum = checksum(view.subarray(0, headerBytes - checksumBytes), view.subarray(headerBytes));
  if (!sameBytes(sum, view.subarray(headerBytes - checksumBytes, headerBytes)))
    throw damaged(object, "its checksum does not match its content");
  if (!sameBytes(view.subarray(16, 32), vaultId)) throw damaged(object, "it belongs to another vault");
  if (!sameBytes(sum, expected)) throw damaged(object, "it is a whole object, but not the one that is referred to");
  const count = view.readUInt32LE(8);
  const namesBytes = view.readUInt32LE(12);
  if (count === 0 || count > countMax) throw damaged(object, `it claims ${String(count)} entries`);
  let at = headerBytes;
  return {
    count,
    namesBytes,
    columns: {
      take(length) {
        const part = new Uint8Array(bytes.subarray(at, at + length)).buffer;
        at += length;
        return part;
      },
    },
  };
}
