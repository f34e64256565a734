/**
 * Frame: up to 4 MiB written with one page write. It describes itself, so its chunks can be found
 * without any map.
 *
 *     0        128                            tableOffset            frameBytes (multiple of 512)
 *     │ header │ payload │ pad │ payload │ pad … │ chunk table │ zeros … │
 *
 * Payloads and table begin at multiples of 8: bytes move between threads' shared memory two to
 * three times as fast that way. The table stands behind the payloads, so a chunk's place in its
 * segment is final the moment it is packed. The header holds checksums of itself and of the table;
 * every payload is proved by its chunk's digest. All numbers are little-endian.
 *
 * In an encrypted vault (version 2), payloads and table are sealed one by one, and the lengths in the
 * table are those of sealed payloads. The header stays plain; it is a part of what is bound to the
 * table.
 */
import assert from "node:assert/strict";
import { copyBytes, copyDigest } from "../../copy-bytes.ts";
import { digestBytes, frameBytesMax, segmentBytes } from "../../limits.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { checksum, checksumBytes, sameBytes } from "./checksum.ts";
import { damaged, unsupportedFormat } from "./fields.ts";
import { nonceBytes, type Seal, seal, sealBytes, unseal } from "./sealed.ts";

export const frameHeaderBytes = 128;
const plainVersion = 1;
const sealedVersion = 2;
const frameMagic = 0x52464d54; // "TMFR"

/** Payloads begin at multiples of this, with zeros between. */
export const payloadAlignment = 8;

/** Most chunks in a frame; it bounds what a reader allocates. */
export const frameChunksMax = 16_384;

/** Digest, stored word, first granule, granule count. */
export const tableEntryBytes: number = digestBytes + 4 + 4 + 2;

/**
 * Set in a stored word when the payload is compressed (see `Lz4`), clear when it is the plain
 * bytes.
 */
export const storedLz4Flag = 0x8000_0000;

export function storedLength(storedWord: number): number {
  return storedWord & 0x7fff_ffff;
}

/** The place of a frame. A frame that is read at any other place is refused. */
export interface FramePlace {
  readonly vaultId: Uint8Array;
  /** Checksum of the segment's name. */
  readonly segmentId: Uint8Array;
  readonly offset: number;
  /** The key of the segment's tables, in an encrypted vault only. */
  readonly tablesKey?: Uint8Array | undefined;
}

/** Bytes of the header that say what is where: bound to a sealed table. */
const describingBytes = 64;

function tableSeal({ tablesKey }: Pick<FramePlace, "tablesKey">, header: Uint8Array): Seal | undefined {
  return tablesKey === undefined ? undefined : { key: tablesKey, associated: header.slice(0, describingBytes) };
}

/** The room of a new builder. A cycle that stores little, as most do, needs no more. */
const firstRoomBytes = 128 * 1024;

/** Builders that wait for the next frame of any disk of this process: 32 MiB, plain or for sealed payloads. */
const idleMax = 8;

/** While more frames are filled and sent in this process, each is smaller: a hundred disks may be cut at once. */
const largeFramesMax = 16;
const crowdedFrameBytes: number = 512 * 1024;

/**
 * Fills one frame at a time in its own buffer, which is used again for the next frame of any disk.
 * The buffer doubles as chunks come, up to `frameBytesMax`.
 */
export class FrameBuilder {
  static readonly #idle: FrameBuilder[] = [];
  static #inUse = 0;
  #buffer: Buffer;
  readonly #digests: Uint8Array = new Uint8Array(frameChunksMax * digestBytes);
  readonly #stored: Uint32Array = new Uint32Array(frameChunksMax);
  readonly #granule: Uint32Array = new Uint32Array(frameChunksMax);
  readonly #granules: Uint16Array = new Uint16Array(frameChunksMax);
  #end = frameHeaderBytes;
  #count = 0;
  readonly #sealBytes: number;

  /** `isSealed`: a worker thread seals payloads where they lie. */
  constructor(isSealed = false) {
    this.#sealBytes = isSealed ? sealBytes : 0;
    this.#buffer = this.#room(firstRoomBytes);
  }

  /** An empty builder. `isSealed` as for a new one. */
  static take(isSealed: boolean): FrameBuilder {
    FrameBuilder.#inUse += 1;
    const at = FrameBuilder.#idle.findLastIndex((idle) => idle.#sealBytes > 0 === isSealed);
    return FrameBuilder.#idle.splice(at, at < 0 ? 0 : 1)[0] ?? new FrameBuilder(isSealed);
  }

  /** Gives it back. `isFree`: no request reads its frame any more, so another one may be filled in its place. */
  release(isFree: boolean): void {
    FrameBuilder.#inUse -= 1;
    this.#end = frameHeaderBytes;
    this.#count = 0;
    if (isFree && FrameBuilder.#idle.length < idleMax) FrameBuilder.#idle.push(this);
  }

  /** Where the frame lies, for a worker thread; of a builder for sealed payloads only. */
  get shared(): SharedArrayBuffer {
    const { buffer } = this.#buffer;
    assert(buffer instanceof SharedArrayBuffer, "payloads are sealed");
    return buffer;
  }

  /** Lengths of the payloads in the frame, in their order. */
  get storedWords(): Uint32Array {
    return this.#stored.slice(0, this.#count);
  }

  fits(payloadBytes: number): boolean {
    const payloadEnd = aligned(this.#end + payloadBytes + this.#sealBytes, payloadAlignment);
    const tableEnd = payloadEnd + (this.#count + 1) * tableEntryBytes + this.#sealBytes;
    const most = FrameBuilder.#inUse > largeFramesMax && this.#count > 0 ? crowdedFrameBytes : frameBytesMax;
    return this.#count < frameChunksMax && aligned(tableEnd, pageAlignmentBytes) <= most;
  }

  /**
   * Packs one chunk and returns the offset of its payload in the frame. The caller has asked
   * `fits`. The stored word tells the length with the seal. `digests[digestAt…+16)` is the chunk's
   * digest, `granule` the first granule of the volume that it came from.
   */
  append(
    payload: Uint8Array,
    storedWord: number,
    digests: Uint8Array,
    digestAt: number,
    granule: number,
    granules: number,
  ): number {
    const at = this.#end;
    const index = this.#count;
    const end = at + payload.byteLength + this.#sealBytes;
    this.#end = aligned(end, payloadAlignment);
    this.#reserve(this.#end);
    copyBytes(payload, this.#buffer, this.#sealBytes === 0 ? at : at + nonceBytes);
    copyDigest(digests, digestAt, this.#digests, index * digestBytes);
    this.#stored[index] = storedWord;
    this.#granule[index] = granule;
    this.#granules[index] = granules;
    this.#buffer.fill(0, end, this.#end);
    this.#count = index + 1;
    return at;
  }

  /** Completes the frame and returns its bytes, a view that holds until `release`. */
  seal(place: FramePlace): Uint8Array {
    const count = this.#count;
    const tableOffset = this.#end;
    const tableEnd = tableOffset + count * tableEntryBytes + this.#sealBytes;
    const frameBytes = aligned(tableEnd, pageAlignmentBytes);
    this.#reserve(frameBytes);
    const buffer = this.#buffer;
    let at = tableOffset;
    for (const column of [
      this.#digests.subarray(0, count * digestBytes),
      bytesOf(this.#stored.subarray(0, count)),
      bytesOf(this.#granule.subarray(0, count)),
      bytesOf(this.#granules.subarray(0, count)),
    ]) {
      buffer.set(column, at);
      at += column.byteLength;
    }
    buffer.fill(0, tableEnd, frameBytes);
    const { header, table } = encodeFrameHeader({
      ...place,
      frameBytes,
      tableOffset,
      chunkCount: count,
      table: buffer.subarray(tableOffset, at),
    });
    buffer.set(header, 0);
    buffer.set(table, tableOffset);
    return buffer.subarray(0, frameBytes);
  }

  /** Makes room for the first `bytes` of a frame. */
  #reserve(bytes: number): void {
    const before = this.#buffer;
    if (bytes <= before.byteLength) return;
    this.#buffer = this.#room(Math.min(frameBytesMax, Math.max(2 * before.byteLength, bytes)));
    this.#buffer.set(before);
  }

  #room(bytes: number): Buffer {
    return this.#sealBytes === 0 ? Buffer.alloc(bytes) : Buffer.from(new SharedArrayBuffer(bytes));
  }
}

/** The header of a frame whose table has these bytes, and the table as it is stored. */
function encodeFrameHeader(
  frame: FramePlace & Pick<FrameHeader, "frameBytes" | "tableOffset" | "chunkCount"> & { readonly table: Uint8Array },
): { readonly header: Uint8Array; readonly table: Uint8Array } {
  const header = Buffer.alloc(frameHeaderBytes);
  header.writeUInt32LE(frameMagic, 0);
  header.writeUInt16LE(frame.tablesKey === undefined ? plainVersion : sealedVersion, 4);
  header.writeUInt16LE(frameHeaderBytes, 6);
  header.writeUInt32LE(frame.frameBytes, 8);
  header.writeUInt32LE(frame.tableOffset, 12);
  header.writeUInt32LE(frame.chunkCount, 16);
  header.writeBigUInt64LE(BigInt(frame.offset), 24);
  header.set(frame.vaultId, 32);
  header.set(frame.segmentId, 48);
  const by = tableSeal(frame, header);
  const table = by === undefined ? frame.table : seal(by, frame.table);
  header.set(checksum(table), 64);
  header.set(checksum(header.subarray(0, frameHeaderBytes - checksumBytes)), frameHeaderBytes - checksumBytes);
  return { header, table };
}

export interface FrameHeader {
  readonly frameBytes: number;
  readonly tableOffset: number;
  readonly tableBytes: number;
  readonly chunkCount: number;
  readonly tableChecksum: Uint8Array;
  /** In an encrypted vault: what opens the table. */
  readonly tableSeal?: Seal | undefined;
}

export interface FrameTable {
  readonly count: number;
  /** 16 bytes a chunk. */
  readonly digests: Uint8Array;
  readonly storedWords: Uint32Array;
  /** Offset of each payload in the frame. */
  readonly offsets: Uint32Array;
  /**
   * First granule of the volume that each chunk came from, and its granules: for rebuilding a vault
   * from its segments.
   */
  readonly granule: Uint32Array;
  readonly granules: Uint16Array;
}

/** Reads the first `frameHeaderBytes` of a frame. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeFrameHeader(bytes: Uint8Array, object: string, place: FramePlace): FrameHeader {
  const where = `${object} at byte ${String(place.offset)}`;
  const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.length < frameHeaderBytes || view.readUInt32LE(0) !== frameMagic)
    throw damaged(where, "no frame begins here");
  const version = view.readUInt16LE(4);
  const expected = place.tablesKey === undefined ? plainVersion : sealedVersion;
  if (version !== expected) throw unsupportedFormat(where, version, expected);
  if (
    !sameBytes(
      checksum(view.subarray(0, frameHeaderBytes - checksumBytes)),
      view.subarray(frameHeaderBytes - checksumBytes, frameHeaderBytes),
    )
  ) {
    throw damaged(where, "the checksum of the frame's header does not match");
  }
  if (!sameBytes(view.subarray(32, 48), place.vaultId)) throw damaged(where, "the frame belongs to another vault");
  if (!sameBytes(view.subarray(48, 64), place.segmentId) || view.readBigUInt64LE(24) !== BigInt(place.offset)) {
    throw damaged(where, "the frame was written for another place");
  }
  const frameBytes = view.readUInt32LE(8);
  const tableOffset = view.readUInt32LE(12);
  const chunkCount = view.readUInt32LE(16);
  const by = tableSeal(place, view);
  const tableBytes = chunkCount * tableEntryBytes + (by === undefined ? 0 : sealBytes);
  const sane =
    frameBytes <= frameBytesMax &&
    frameBytes % pageAlignmentBytes === 0 &&
    place.offset + frameBytes <= segmentBytes &&
    chunkCount <= frameChunksMax &&
    tableOffset >= frameHeaderBytes &&
    tableOffset + tableBytes <= frameBytes;
  if (!sane) throw damaged(where, "the frame's header contradicts itself");
  const tableChecksum = new Uint8Array(view.subarray(64, 80));
  return {
    frameBytes,
    tableOffset,
    tableBytes,
    chunkCount,
    tableChecksum,
    ...(by === undefined ? {} : { tableSeal: by }),
  };
}

/** The vault id in a frame header; undefined when the checksum of the header does not match. */
export function frameVault(header: Uint8Array): Uint8Array | undefined {
  const end = frameHeaderBytes - checksumBytes;
  const isHeader =
    header.length === frameHeaderBytes &&
    new DataView(header.buffer, header.byteOffset).getUint32(0, true) === frameMagic;
  return isHeader && sameBytes(checksum(header.subarray(0, end)), header.subarray(end))
    ? header.subarray(32, 48)
    : undefined;
}

/** Reads a frame's table of `header.tableBytes`. Errors: DAMAGED. */
export function decodeFrameTable(bytes: Uint8Array, object: string, header: FrameHeader): FrameTable {
  if (bytes.byteLength !== header.tableBytes || !sameBytes(checksum(bytes), header.tableChecksum)) {
    throw damaged(object, "the checksum of a frame's table does not match");
  }
  const plain = header.tableSeal === undefined ? bytes : unseal(header.tableSeal, bytes);
  if (plain === undefined) throw damaged(object, "a frame's table was not sealed with the vault's key for this place");
  const count = header.chunkCount;
  // Not `slice`: on a Buffer it gives a view into memory that the caller owns.
  const copy = new Uint8Array(plain);
  let at = 0;
  const column = (width: number): ArrayBuffer => {
    const part = copy.buffer.slice(at, at + count * width);
    at += count * width;
    return part;
  };
  const digests = new Uint8Array(column(digestBytes));
  const storedWords = new Uint32Array(column(4));
  const granule = new Uint32Array(column(4));
  const granules = new Uint16Array(column(2));
  const offsets = new Uint32Array(count);
  let offset = frameHeaderBytes;
  for (let index = 0; index < count; index += 1) {
    offsets[index] = offset;
    offset += aligned(storedLength(storedWords[index] ?? 0), payloadAlignment);
  }
  if (offset > header.tableOffset) throw damaged(object, "a frame's payloads overlap its table");
  return { count, digests, storedWords, offsets, granule, granules };
}

function aligned(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}

function bytesOf(array: Uint32Array | Uint16Array): Uint8Array {
  return new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
}
