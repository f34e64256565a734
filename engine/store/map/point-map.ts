/**
 * Map of a point: a stack of sorted runs, the newest on top. The topmost run that maps a granule
 * says what it holds; a granule that no run maps is zero.
 *
 * Runs stay in the store and are read leaf by leaf on demand, so opening a point costs its manifest
 * and nothing else. A range is resolved by painting: each run from the oldest to the newest marks
 * the granules that it maps, then equal neighbours are collected. That costs one pass over typed
 * arrays per run and needs no case analysis of how extents overlap.
 *
 * Memory: the decoded leaves of `leafCacheBytesMax`, and 256 KiB to paint a window.
 */
import assert from "node:assert/strict";
import { digestBytes, granuleBytes } from "../../limits.ts";
import { fromHex } from "../format/checksum.ts";
import type { ManifestDocument, RunReference } from "../format/documents.ts";
import { damaged } from "../format/fields.ts";
import type { EntryColumns, LeafReference } from "../format/leaf.ts";
import { decodeLeaf, decodeRoot, zeroSegment } from "../format/leaf.ts";
import { mapName } from "../format/names.ts";
import { getReferred, type Store } from "../store.ts";

/** Granules that are resolved at a time: 256 MiB of disk. */
export const windowGranules = 65_536;

/**
 * Decoded leaves that are cached, in bytes of their objects. Sixty runs, the deepest stack, have
 * about 57 MB of leaves around any place.
 */
const leafCacheBytesMax = 96 * 1024 * 1024;

/**
 * Resolved pieces of a window in ascending order; granules between them are zero because they were
 * never written.
 */
export interface Pieces {
  readonly count: number;
  readonly starts: Uint32Array;
  readonly lengths: Uint32Array;
  /** The leaf and the entry in it that each piece is cut from. */
  readonly leaves: readonly EntryColumns[];
  readonly entries: Uint32Array;
  /** First granule of the chunk that the piece shows. */
  readonly chunkOffsets: Uint32Array;
}

/** True when the piece is ZERO. */
export function pieceIsZero(pieces: Pieces, index: number): boolean {
  return pieces.leaves[index]?.segments[pieces.entries[index] ?? 0] === zeroSegment;
}

/**
 * Decoded leaves by the name of their object, most recently used last. Maps of one vault may share
 * one.
 */
export class LeafCache {
  readonly #leaves = new Map<string, { readonly leaf: EntryColumns; readonly bytes: number }>();
  #bytes = 0;

  find(name: string): EntryColumns | undefined {
    const cached = this.#leaves.get(name);
    if (cached === undefined) return undefined;
    this.#leaves.delete(name);
    this.#leaves.set(name, cached);
    return cached.leaf;
  }

  add(name: string, leaf: EntryColumns, bytes: number): void {
    if (!this.#leaves.has(name)) this.#bytes += bytes; // else another window has read it meanwhile
    this.#leaves.set(name, { leaf, bytes });
    for (const [oldest, entry] of this.#leaves) {
      if (this.#bytes <= leafCacheBytesMax || oldest === name) break;
      this.#leaves.delete(oldest);
      this.#bytes -= entry.bytes;
    }
  }
}

interface Run {
  readonly reference: RunReference;
  leaves: LeafReference[] | undefined;
}

export class PointMap {
  readonly volumeBytes: number;
  readonly granules: number;
  readonly #store: Store;
  readonly #vaultId: Uint8Array;
  readonly #disk: string;
  readonly #runs: readonly Run[];
  readonly #cache: LeafCache;
  readonly #owners: Int32Array = new Int32Array(windowGranules);

  constructor(
    store: Store,
    vaultId: Uint8Array,
    disk: string,
    source: Pick<ManifestDocument, "volumeBytes" | "runs">,
    cache: LeafCache = new LeafCache(),
  ) {
    this.#store = store;
    this.#cache = cache;
    this.#vaultId = vaultId;
    this.#disk = disk;
    this.volumeBytes = source.volumeBytes;
    this.granules = Math.ceil(source.volumeBytes / granuleBytes);
    this.#runs = source.runs.map((reference) => ({ reference, leaves: undefined }));
  }

  /**
   * Leaves of run `index` in order, from its root or its reference. Errors: DAMAGED (also when a
   * root or leaf is gone), FORMAT_UNSUPPORTED.
   */
  async leavesOf(index: number, signal?: AbortSignal): Promise<readonly LeafReference[]> {
    const run = this.#runs[index];
    assert(run !== undefined, "the map has this run");
    run.leaves ??= await this.#readLeaves(run.reference, signal);
    return run.leaves;
  }

  /**
   * The leaves of run `index`, or those that `isWanted` accepts, with all their entries, hidden
   * ones included. Errors: as `leavesOf`.
   */
  async *entriesOf(
    index: number,
    signal?: AbortSignal,
    isWanted?: (leaf: LeafReference) => boolean,
  ): AsyncGenerator<EntryColumns> {
    for (const reference of await this.leavesOf(index, signal)) {
      if (isWanted === undefined || isWanted(reference)) yield await this.#leaf(reference, signal);
    }
  }

  /**
   * Resolves granules [from, end), at most `windowGranules` of them. The result stays valid.
   * Errors: as `leavesOf`.
   */
  async window(from: number, end: number, signal?: AbortSignal): Promise<Pieces> {
    assert(end - from <= windowGranules, "a window is bounded");
    const owners = this.#owners;
    // All leaves are read first; painting then does not wait, so the shared array has one user.
    const layers: EntryColumns[] = [];
    for (let run = this.#runs.length - 1; run >= 0; run -= 1) {
      const leaves = await this.leavesOf(run, signal);
      for (let index = firstLeafAtOrAfter(leaves, from); index < leaves.length; index += 1) {
        const reference = leaves[index];
        if (reference === undefined || reference.first >= end) break;
        layers.push(await this.#leaf(reference, signal));
      }
    }
    if (layers.length === 0) return emptyPieces;
    owners.fill(-1, 0, end - from);
    const painted: { readonly leaf: EntryColumns; readonly entry: number }[] = [];
    for (const leaf of layers) {
      for (let entry = firstEntryEndingAfter(leaf, from); entry < leaf.count; entry += 1) {
        const start = leaf.starts[entry] ?? 0;
        if (start >= end) break;
        owners.fill(
          painted.length,
          Math.max(start, from) - from,
          Math.min(start + (leaf.lengths[entry] ?? 0), end) - from,
        );
        painted.push({ leaf, entry });
      }
    }
    return collect(owners, from, end, painted);
  }

  /** First granule at or after `from` that any run maps, or Infinity. Errors: as `leavesOf`. */
  async nextMapped(from: number, signal?: AbortSignal): Promise<number> {
    let next = Infinity;
    for (let run = 0; run < this.#runs.length; run += 1) {
      const leaves = await this.leavesOf(run, signal);
      const reference = leaves[firstLeafAtOrAfter(leaves, from)];
      if (reference === undefined || reference.first >= next) continue;
      if (reference.first >= from) {
        next = reference.first;
        continue;
      }
      const leaf = await this.#leaf(reference, signal);
      const entry = firstEntryEndingAfter(leaf, from);
      if (entry < leaf.count) next = Math.min(next, Math.max(from, leaf.starts[entry] ?? 0));
    }
    return next;
  }

  async #readLeaves(reference: RunReference, signal: AbortSignal | undefined): Promise<LeafReference[]> {
    const expected = fromHex(reference.checksum);
    if (reference.kind === "root") {
      const name = mapName(this.#disk, reference.epoch, reference.ordinal);
      const bytes = await getReferred(this.#store, name, reference.bytes, { signal });
      return decodeRoot(bytes, name, this.#vaultId, expected);
    }
    const { epoch, ordinal, bytes, entries } = reference;
    // A run of one leaf has no root that says which granules it spans.
    const whole: LeafReference = { first: 0, last: 0xffff_ffff, entries, bytes, epoch, ordinal, checksum: expected };
    const leaf = await this.#leaf(whole, signal);
    const last = leaf.count - 1;
    return [{ ...whole, first: leaf.starts[0] ?? 0, last: (leaf.starts[last] ?? 0) + (leaf.lengths[last] ?? 0) - 1 }];
  }

  async #leaf(reference: LeafReference, signal: AbortSignal | undefined): Promise<EntryColumns> {
    const name = mapName(this.#disk, reference.epoch, reference.ordinal);
    const cached = this.#cache.find(name);
    if (cached !== undefined) return cached;
    const bytes = await getReferred(this.#store, name, reference.bytes, { signal });
    const leaf = decodeLeaf(bytes, name, this.#vaultId, reference.checksum);
    if (leaf.count !== reference.entries)
      throw damaged(name, `it has ${String(leaf.count)} entries where ${String(reference.entries)} are expected`);
    this.#cache.add(name, leaf, bytes.byteLength);
    return leaf;
  }
}

const emptyPieces: Pieces = {
  count: 0,
  starts: new Uint32Array(0),
  lengths: new Uint32Array(0),
  leaves: [],
  entries: new Uint32Array(0),
  chunkOffsets: new Uint32Array(0),
};

function collect(
  owners: Int32Array,
  from: number,
  end: number,
  painted: readonly { readonly leaf: EntryColumns; readonly entry: number }[],
): Pieces {
  let count = 0;
  const span = end - from;
  for (let at = 0; at < span; at += 1) if (owners[at] !== -1 && (at === 0 || owners[at] !== owners[at - 1])) count += 1;
  const starts = new Uint32Array(count);
  const lengths = new Uint32Array(count);
  const entries = new Uint32Array(count);
  const chunkOffsets = new Uint32Array(count);
  const leaves: EntryColumns[] = [];
  for (let at = 0; at < span; ) {
    const owner = owners[at] ?? -1;
    let stop = at + 1;
    while (stop < span && owners[stop] === owner) stop += 1;
    const source = painted[owner];
    if (source !== undefined) {
      const index = leaves.push(source.leaf) - 1;
      starts[index] = from + at;
      lengths[index] = stop - at;
      entries[index] = source.entry;
      chunkOffsets[index] =
        (source.leaf.chunkOffsets[source.entry] ?? 0) + (from + at - (source.leaf.starts[source.entry] ?? 0));
    }
    at = stop;
  }
  return { count, starts, lengths, leaves, entries, chunkOffsets };
}

/** Index of the first leaf whose last granule is at or after `granule`. */
function firstLeafAtOrAfter(leaves: readonly LeafReference[], granule: number): number {
  let low = 0;
  let high = leaves.length;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((leaves[middle]?.last ?? 0) < granule) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Index of the first entry that ends after `granule`. */
function firstEntryEndingAfter(leaf: EntryColumns, granule: number): number {
  let low = 0;
  let high = leaf.count;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((leaf.starts[middle] ?? 0) + (leaf.lengths[middle] ?? 0) <= granule) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Copies the digest of a piece's chunk to `into[at…]`. */
export function pieceDigest(pieces: Pieces, index: number, into: Uint8Array, at: number): void {
  const entry = pieces.entries[index] ?? 0;
  const digests = pieces.leaves[index]?.digests;
  assert(digests !== undefined, "the piece exists");
  into.set(digests.subarray(entry * digestBytes, (entry + 1) * digestBytes), at);
}
