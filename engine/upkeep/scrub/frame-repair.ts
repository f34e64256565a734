/**
 * Proves what makes a frame readable without any map, its header and its table, and puts them right:
 *
 *   - A table is rebuilt from what is left of it, from the maps of points that show its chunks, and from the payloads themselves, whose digests can be computed
 *     anew. The header's checksum tells whether the result is the table that was written.
 *   - A header follows from the table, and the table is found behind the payloads: it is where the lengths that it tells lead to it. Every payload has to have
 *     the digest that it tells, and the place that it came from be one that a map knows, unless what is left of the header vouches for the table.
 *   - Where neither leads to what was written, as in a stretch that was cut off or zeroed, frames are laid out anew around the chunks that points need. What
 *     else was there is told of as gaps; what is left of it may be written over.
 *
 * Points do not need headers and tables; deduplication and collections do, and a collection ends at the first frame that it cannot read.
 */

import { hasCode, isUnreadable, throwIfAborted } from "../../errors.ts";
import { digestBytes, frameBytesMax, granuleBytes, segmentBytes } from "../../limits.ts";
import { createDigest, type DigestKernel, Lz4 } from "../../pipeline/kernels.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { checksum, checksumBytes, fromHex, sameBytes } from "../../store/format/checksum.ts";
import type { FrameHeader, FramePlace } from "../../store/format/frame.ts";
import {
  decodeFrameHeader,
  decodeFrameTable,
  encodeFrameHeader,
  frameChunksMax,
  frameHeaderBytes,
  payloadAlignment,
  storedLength,
  storedLz4Flag,
  tableEntryBytes,
} from "../../store/format/frame.ts";
import { decodeDiskName, parseSegmentName } from "../../store/format/names.ts";
import { deadName } from "../../store/format/reclaim.ts";
import { readDead } from "../../store/segments/dead-pages.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import { quarantine } from "../../store/segments/quarantine.ts";
import type { Damage } from "./damage.ts";
import type { FrameLayout, KnownChunk, LaidChunk } from "./frame-layout.ts";
import { layFrame } from "./frame-layout.ts";
import { plainOf } from "./heal.ts";
import type { KnownStretch } from "./known-chunks.ts";
import { knownChunks } from "./known-chunks.ts";
import type { PatchOptions } from "./page-patch.ts";
import { mendSegment, patchPages } from "./page-patch.ts";

export interface FrameProverOptions extends PatchOptions {
  readonly context: VaultContext;
  /** Asked before each read, with its length. */
  readonly pace?: ((bytes: number) => Promise<void>) | undefined;
}

/** Something of a segment that cannot be read. */
interface Fault {
  readonly message: string;
  /** Undefined when it has been put right; else why not. */
  readonly outcome: string | undefined;
}

/** Pages of a segment that have been given back, and those with the ones that may be. */
interface GivenBack {
  readonly dead: PageSet;
  readonly given: PageSet;
}

/** A way through a segment. */
interface Walk {
  readonly segment: string;
  readonly segmentId: Uint8Array;
  readonly writtenBytes: number;
  readonly faults: Fault[];
  back: GivenBack;
  known: (KnownStretch & { readonly from: number }) | undefined;
}

/** What came of laying out frames anew. */
type Rebuilt =
  | { readonly kind: "laid"; readonly frameBytes: number }
  /** Points need nothing of what is left of the segment. */
  | { readonly kind: "end" }
  | { readonly kind: "refused"; readonly reason: string };

export class FrameProver {
  readonly #options: FrameProverOptions;
  readonly #vaultId: Uint8Array;
  readonly #lz4 = new Lz4();
  #kernel: DigestKernel | undefined;

  constructor(options: FrameProverOptions) {
    this.#options = options;
    this.#vaultId = fromHex(options.context.document.vault);
  }

  /** What is, or was, wrong with a segment beside the chunks in it, said of the disk that wrote it. Errors: those of the store. */
  async damages(segment: string): Promise<readonly Damage[]> {
    const disk = decodeDiskName(parseSegmentName(segment)?.encodedDisk ?? "") ?? "";
    return (await this.#prove(segment)).map(({ message, outcome }): Damage => {
      const fate = outcome === undefined ? "" : `; it could not be put right: ${outcome}`;
      const healed = outcome === undefined;
      return { disk, sequence: null, point: null, extent: null, object: segment, code: "DAMAGED", message: message + fate, healed };
    });
  }

  /** Goes through a segment. One that is gone has no frames. */
  async #prove(segment: string): Promise<readonly Fault[]> {
    const { store, signal } = this.#options;
    const faults: Fault[] = [];
    try {
      const mended = await mendSegment(this.#options, segment);
      if (mended !== undefined) faults.push({ message: mended.fault, outcome: mended.refusal });
      const { writtenBytes } = await store.statPages(segment, { signal });
      const back = await this.#givenBack(segment);
      const walk: Walk = { segment, segmentId: checksum(Buffer.from(segment)), writtenBytes, faults, back, known: undefined };
      for (let offset: number | undefined = 0; offset !== undefined && offset < writtenBytes; ) {
        throwIfAborted(signal);
        offset = behindRun(walk.back.dead, offset) ?? (await this.#proveFrame(walk, offset));
      }
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) return faults;
      if (!isUnreadable(error)) throw error;
      if (faults.length === 0 || error.code === "FORMAT_UNSUPPORTED")
        faults.push({ message: error.message, outcome: "what cannot be read is left alone" });
    }
    return faults;
  }

  async #givenBack(segment: string): Promise<GivenBack> {
    const { store, vault, signal } = this.#options;
    const recorded = await readDead(store, vault, deadName(segment), { signal });
    const { dead = [], condemned = [] } = recorded?.document ?? {};
    return { dead: PageSet.ofRuns(dead), given: PageSet.ofRuns([...dead, ...condemned]) };
  }

  /** Returns where the next frame begins, or undefined when there is none, or nobody knows. */
  async #proveFrame(walk: Walk, offset: number): Promise<number | undefined> {
    const { segment, segmentId, faults } = walk;
    const place = { vaultId: this.#vaultId, segmentId, offset };
    const bytes = await this.#read(segment, offset, frameHeaderBytes);
    const header = headerOf(bytes, segment, place);
    if (!(header instanceof Error)) {
      const table = await this.#read(segment, offset + header.tableOffset, header.tableBytes);
      const fault = tableFault(table, segment, header);
      if (fault === undefined) return offset + header.frameBytes;
      const refusal = await this.#restoreTable(walk, place, header, table);
      const rebuilt = refusal === undefined ? undefined : await this.#rebuild(walk, offset, offset + header.frameBytes);
      const outcome = rebuilt?.kind === "refused" ? rebuilt.reason : undefined;
      faults.push(faultAt(fault, walk, offset, outcome));
      return offset + (rebuilt?.kind === "laid" ? rebuilt.frameBytes : header.frameBytes);
    }
    // It may have been given back meanwhile.
    walk.back = await this.#givenBack(segment);
    const behind = behindRun(walk.back.dead, offset);
    if (behind !== undefined) return behind;
    const next = await this.#nextFrame(walk, place);
    const end = next ?? (walk.writtenBytes - offset <= frameBytesMax ? walk.writtenBytes : undefined);
    const isRestored = end !== undefined && (await this.#restoreHeader(walk, place, end - offset));
    if (isRestored) {
      faults.push(faultAt(header.message, walk, offset, undefined));
      return end;
    }
    const rebuilt = await this.#rebuild(walk, offset, next);
    switch (rebuilt.kind) {
      case "laid":
        faults.push(faultAt(header.message, walk, offset, undefined));
        return offset + rebuilt.frameBytes;
      case "refused":
        faults.push(faultAt(header.message, walk, offset, rebuilt.reason));
        return next;
      case "end":
        if (bytes.every((byte) => byte === 0)) return undefined;
        faults.push(faultAt(header.message, walk, offset, await this.#patch(segment, offset, new Uint8Array(frameHeaderBytes))));
        return undefined;
    }
  }

  async #read(segment: string, offset: number, length: number): Promise<Buffer> {
    await this.#options.pace?.(length);
    const bytes = Buffer.alloc(length);
    await this.#options.store.readPages(segment, offset, bytes, { signal: this.#options.signal });
    return bytes;
  }

  /** Where the next header is that says itself that it belongs there. */
  async #nextFrame({ segment, writtenBytes, back }: Walk, place: FramePlace): Promise<number | undefined> {
    const end = Math.min(place.offset + frameBytesMax + frameHeaderBytes, writtenBytes);
    const bytes = await this.#read(segment, place.offset, end - place.offset);
    for (let offset = place.offset + pageAlignmentBytes; offset < end; offset += pageAlignmentBytes) {
      // Of a frame in use some pages may have been given back: a run of them that ends where a header stands is a frame of its own.
      if (back.dead.has(offset / pageAlignmentBytes)) continue;
      const at = offset - place.offset;
      if (!(headerOf(bytes.subarray(at, at + frameHeaderBytes), segment, { ...place, offset }) instanceof Error)) return offset;
    }
    return undefined;
  }

  /** Lays out a frame at `offset` around the chunks that points need, up to `end`, where a living frame begins, or as far as it goes. */
  async #rebuild(walk: Walk, offset: number, end: number | undefined): Promise<Rebuilt> {
    const { segment, back } = walk;
    const { chunks, isComplete } = await this.#known(walk, offset);
    if (!isComplete) return { kind: "refused", reason: "a map of points cannot be read, and so nobody knows what the frame held" };
    if (end === undefined && chunks.length === 0) return { kind: "end" };
    const limit = Math.min(offset + frameBytesMax, segmentBytes, end ?? Infinity);
    const bytes = await this.#read(segment, offset, limit - offset);
    const laid: LaidChunk[] = [];
    for (const chunk of chunks) {
      const at = chunk.offset - offset;
      const isProved = await this.#isProved(bytes.subarray(at, at + storedLength(chunk.storedWord)), chunk);
      laid.push({ ...chunk, isProved });
      if (chunk.offset >= limit) break; // the frame has to end well before it
    }
    const layout = layFrame({ offset, end, chunks: laid, given: back.given });
    if (layout === undefined) return { kind: "refused", reason: "between what points need there is no room for a header and a table" };
    const refusal = await this.#write(walk, offset, layout);
    return refusal === undefined ? { kind: "laid", frameBytes: layout.frameBytes } : { kind: "refused", reason: refusal };
  }

  /** The table first: a header vouches for it. */
  async #write({ segment, segmentId }: Walk, offset: number, layout: FrameLayout): Promise<string | undefined> {
    const { tableOffset, table } = layout;
    const refusal = table.length === 0 ? undefined : await this.#patch(segment, offset + tableOffset, table);
    return refusal ?? (await this.#patch(segment, offset, encodeFrameHeader({ vaultId: this.#vaultId, segmentId, offset, ...layout })));
  }

  /** What maps tell of the chunks from `offset` on, those of a frame's length at least. */
  async #known(walk: Walk, offset: number): Promise<KnownStretch> {
    const { segment, known } = walk;
    const reachesFar = known !== undefined && known.from <= offset && Math.min(offset + frameBytesMax, segmentBytes) <= known.end;
    const { store, vault, signal } = this.#options;
    const stretch = reachesFar ? known : { ...(await knownChunks({ store, vault, segment, signal }, offset)), from: offset };
    walk.known = stretch;
    return { ...stretch, chunks: stretch.chunks.filter((chunk) => chunk.offset >= offset) };
  }

  /** Chunks of a frame, by their offsets. */
  async #knownIn(walk: Walk, from: number, end: number): Promise<ReadonlyMap<number, KnownChunk>> {
    const { chunks } = await this.#known(walk, from);
    return new Map(chunks.filter(({ offset }) => offset < end).map((chunk) => [chunk.offset, chunk]));
  }

  async #isProved(payload: Buffer, chunk: Pick<KnownChunk, "storedWord" | "granules" | "digest">): Promise<boolean> {
    const plain = payload.length === storedLength(chunk.storedWord) ? plainOf(payload, chunk, this.#lz4) : undefined;
    if (plain === undefined) return false;
    const found = new Uint8Array(digestBytes);
    (await this.#digest())(plain, found, 0);
    return sameBytes(found, chunk.digest);
  }

  /** Whether the header that was written could be told, and stands there again. */
  async #restoreHeader(walk: Walk, place: FramePlace, frameBytes: number): Promise<boolean> {
    const { segment } = walk;
    const frame = await this.#read(segment, place.offset, frameBytes);
    const known = await this.#knownIn(walk, place.offset, place.offset + frameBytes);
    const proved: CandidateTable[] = [];
    for (const table of candidateTables(frame)) if (await this.#areProved(frame, table, place.offset, known)) proved.push(table);
    const [table, another] = proved;
    if (table === undefined || another !== undefined) return false;
    const tableBytes = frame.subarray(table.tableOffset, table.tableOffset + table.count * tableEntryBytes);
    const header = encodeFrameHeader({ ...place, frameBytes, tableOffset: table.tableOffset, chunkCount: table.count, table: tableBytes });
    return (await this.#patch(segment, place.offset, header)) === undefined;
  }

  /** Whether the table is the one that belongs to the frame's payloads. */
  async #areProved(
    frame: Buffer,
    { tableOffset, count }: CandidateTable,
    frameOffset: number,
    known: ReadonlyMap<number, KnownChunk>,
  ): Promise<boolean> {
    const table = frame.subarray(tableOffset, tableOffset + count * tableEntryBytes);
    const isVouchedFor = sameBytes(checksum(table), frame.subarray(64, 80));
    let at = frameHeaderBytes;
    for (let index = 0; index < count; index += 1) {
      const storedWord = frame.readUInt32LE(tableOffset + count * digestBytes + index * 4);
      const granules = frame.readUInt16LE(tableOffset + count * (digestBytes + 8) + index * 2);
      const length = storedLength(storedWord);
      const granule = frame.readUInt32LE(tableOffset + count * (digestBytes + 4) + index * 4);
      if (!isVouchedFor && known.get(frameOffset + at)?.places.has(granule) !== true) return false;
      const digest = frame.subarray(tableOffset + index * digestBytes, tableOffset + (index + 1) * digestBytes);
      if (granules > 256 || !(await this.#isProved(frame.subarray(at, at + length), { storedWord, granules, digest }))) return false;
      at += aligned(length);
    }
    return true;
  }

  /**
   * Undefined: done. Chunks of it that no point needs may have been lost, too: they come into quarantine before anybody can find them in the table.
   */
  async #restoreTable(walk: Walk, place: FramePlace, header: FrameHeader, damagedTable: Buffer): Promise<string | undefined> {
    const { segment } = walk;
    const { chunkCount: count, tableOffset } = header;
    const frame = await this.#read(segment, place.offset, tableOffset);
    const known = await this.#knownIn(walk, place.offset, place.offset + header.frameBytes);
    const digest = await this.#digest();
    const table = Buffer.from(damagedTable);
    const lost: { readonly segment: string; readonly offset: number }[] = [];
    let at = frameHeaderBytes;
    for (let index = 0; index < count; index += 1) {
      const wordAt = count * digestBytes + index * 4;
      const granuleAt = count * (digestBytes + 4) + index * 4;
      const granulesAt = count * (digestBytes + 8) + index * 2;
      const chunk = known.get(place.offset + at);
      const storedWord = chunk?.storedWord ?? table.readUInt32LE(wordAt);
      const length = storedLength(storedWord);
      if (length === 0 || at + length > tableOffset) return "the lengths of its payloads are known to nobody";
      const payload = frame.subarray(at, at + length);
      const granules = chunk?.granules ?? granulesOf(payload, storedWord);
      table.writeUInt32LE(storedWord, wordAt);
      table.writeUInt16LE(granules, granulesAt);
      const [firstPlace] = chunk?.places ?? [];
      if (firstPlace !== undefined && chunk?.places.has(table.readUInt32LE(granuleAt)) === false)
        table.writeUInt32LE(firstPlace, granuleAt);
      if (chunk !== undefined) {
        table.set(chunk.digest, index * digestBytes);
        if (!(await this.#isProved(payload, chunk))) lost.push({ segment, offset: chunk.offset });
      } else {
        const plain = granules > 256 ? undefined : plainOf(payload, { storedWord, granules }, this.#lz4);
        if (plain !== undefined) digest(plain, table, index * digestBytes);
      }
      at += aligned(length);
    }
    if (!sameBytes(checksum(table), header.tableChecksum)) return "something of it is known to nobody any more";
    const { store, vault, signal } = this.#options;
    if (lost.length > 0) await quarantine(store, vault, lost, { signal });
    return await this.#patch(segment, place.offset + tableOffset, table);
  }

  async #patch(segment: string, offset: number, bytes: Uint8Array): Promise<string | undefined> {
    const isDone = async (): Promise<boolean> => sameBytes(await this.#read(segment, offset, bytes.length), bytes);
    return await patchPages(this.#options, { segment, offset, bytes, makes: false }, isDone);
  }

  async #digest(): Promise<DigestKernel> {
    const { digest, digestKey } = this.#options.context.document;
    this.#kernel ??= await createDigest(digest, fromHex(digestKey));
    return this.#kernel;
  }
}

/** Where the frames go on behind a run of pages that have been given back; undefined: no such run begins or goes on here. */
function behindRun(dead: PageSet, offset: number): number | undefined {
  const page = offset / pageAlignmentBytes;
  return dead.has(page) ? dead.endOfRun(page) * pageAlignmentBytes : undefined;
}

/** The header, or what is wrong with it. One whose version is another because its bytes are is damaged. Errors: FORMAT_UNSUPPORTED. */
function headerOf(bytes: Buffer, segment: string, place: FramePlace): FrameHeader | Error {
  try {
    return decodeFrameHeader(bytes, segment, place);
  } catch (error) {
    if (!isUnreadable(error)) throw error;
    const [said, summed] = [bytes.subarray(0, frameHeaderBytes - checksumBytes), bytes.subarray(frameHeaderBytes - checksumBytes)];
    if (error.code === "FORMAT_UNSUPPORTED" && sameBytes(checksum(said), summed)) throw error;
    return error;
  }
}

function tableFault(table: Buffer, segment: string, header: FrameHeader): string | undefined {
  try {
    decodeFrameTable(table, segment, header);
    return undefined;
  } catch (error) {
    if (!hasCode(error, "DAMAGED")) throw error;
    return error.message;
  }
}

function faultAt(message: string, { segment }: Walk, offset: number, outcome: string | undefined): Fault {
  return { message: `${message} (frame at byte ${String(offset)} of ${segment}; no point needs it to be read)`, outcome };
}

interface CandidateTable {
  readonly tableOffset: number;
  readonly count: number;
}

/**
 * Where in a frame its table may stand. A table of n chunks ends in the frame's last page, and the lengths that it tells add up to its own place. Payload bytes
 * that are taken for lengths lead far out of the frame at once, so that nearly all of the million places are dismissed by their first number.
 */
function candidateTables(frame: Buffer): readonly CandidateTable[] {
  const found: CandidateTable[] = [];
  for (let count = 1; count <= frameChunksMax; count += 1) {
    const last = frame.length - count * tableEntryBytes;
    if (last < frameHeaderBytes) break;
    for (
      let tableOffset = last - (last % payloadAlignment);
      tableOffset > last - pageAlignmentBytes && tableOffset >= frameHeaderBytes;
      tableOffset -= 8
    ) {
      const isLast = frame.subarray(tableOffset + count * tableEntryBytes).every((byte) => byte === 0);
      if (isLast && payloadsEnd(frame, tableOffset, count) === tableOffset) found.push({ tableOffset, count });
    }
  }
  return found;
}

function payloadsEnd(frame: Buffer, tableOffset: number, count: number): number {
  let end = frameHeaderBytes;
  for (let index = 0; index < count && end <= tableOffset; index += 1) {
    const length = storedLength(frame.readUInt32LE(tableOffset + count * digestBytes + index * 4));
    end = length === 0 ? Infinity : end + aligned(length);
  }
  return end;
}

/** As the payload tells it: LZ4 payloads begin with their plain length. */
function granulesOf(payload: Buffer, storedWord: number): number {
  const plainBytes = storedWord < storedLz4Flag ? payload.length : payload.length < 4 ? 0 : payload.readUInt32LE(0);
  return Math.min(Math.floor(plainBytes / granuleBytes), 0xffff);
}

function aligned(length: number): number {
  return Math.ceil(length / payloadAlignment) * payloadAlignment;
}
