/**
 * Proves what makes a frame readable without any map, its header and its table, and puts them right where that can be done exactly:
 *
 *   - A table is rebuilt from what is left of it, from the maps of points that show its chunks, and from the payloads themselves, whose digests can be computed
 *     anew. The header's checksum tells whether the result is the table that was written.
 *   - A header follows from the table, and the table is found behind the payloads: it is where the lengths that it tells lead to it. Every payload has to have
 *     the digest that it tells, and the place that it came from be one that a map knows, unless what is left of the header vouches for the table.
 *
 * Where both are damaged, or something of a table is known to nobody, nothing is written. Points do not need headers and tables; deduplication and collections
 * do.
 */
import { readPoints } from "../control/history.ts";
import { diskNames } from "../control/points.ts";
import { readHead } from "../control/seat.ts";
import type { VaultContext } from "../control/session.ts";
import { readManifest } from "../control/session.ts";
import type { Damage } from "../control/summaries.ts";
import { hasCode, throwIfAborted } from "../errors.ts";
import { checksum, fromHex, sameBytes } from "../format/checksum.ts";
import type { FrameHeader, FramePlace } from "../format/frame.ts";
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
} from "../format/frame.ts";
import { zeroSegment } from "../format/leaf.ts";
import { decodeDiskName, parseSegmentName } from "../format/names.ts";
import { digestBytes, frameBytesMax, granuleBytes } from "../limits.ts";
import { PointMap } from "../map/point-map.ts";
import { createDigest, Lz4 } from "../pipeline/kernels.ts";
import type { PageSet } from "../reclaim/page-set.ts";
import { pageAlignmentBytes } from "../sink.ts";
import { plainOf } from "./heal.ts";
import type { PatchOptions } from "./page-patch.ts";
import { patchPages } from "./page-patch.ts";

/** A header or table that cannot be read. */
interface DamagedFrame {
  /** Of the frame in its segment. */
  readonly offset: number;
  readonly message: string;
  /** Undefined when it has been put right; else why not. */
  readonly outcome: string | undefined;
}

export interface FrameProverOptions extends PatchOptions {
  readonly context: VaultContext;
  /** Put right what can be; else it is only told of. */
  readonly heal: boolean;
  /** Asked before each read, with its length. */
  readonly pace?: ((bytes: number) => Promise<void>) | undefined;
}

/** What the maps of points tell of a chunk. */
interface KnownChunk {
  readonly storedWord: number;
  readonly digest: Uint8Array;
  readonly granules: number;
  /** First granules at which it is shown. */
  readonly places: Set<number>;
}

export class FrameProver {
  readonly #options: FrameProverOptions;
  readonly #vaultId: Uint8Array;
  readonly #lz4 = new Lz4();

  constructor(options: FrameProverOptions) {
    this.#options = options;
    this.#vaultId = fromHex(options.context.document.vault);
  }

  /** What is wrong with the frames of a segment, said of the disk that wrote it. Errors: those of the store. */
  async damages(segment: string, dead: PageSet | undefined): Promise<readonly Damage[]> {
    const disk = decodeDiskName(parseSegmentName(segment)?.encodedDisk ?? "") ?? "";
    return (await this.#prove(segment, dead)).map(({ offset, message, outcome }): Damage => {
      const fate = outcome === undefined ? "" : `; it could not be put right: ${outcome}`;
      const said = `${message} (frame at byte ${String(offset)} of ${segment}; no point needs it to be read)${fate}`;
      const healed = outcome === undefined;
      return { disk, sequence: null, point: null, extent: null, object: segment, code: "DAMAGED", message: said, healed };
    });
  }

  /** Goes through a segment. `dead`: pages that have been given back. A segment that is gone has no frames. Errors: those of the store. */
  async #prove(segment: string, dead: PageSet | undefined): Promise<readonly DamagedFrame[]> {
    const { store, signal } = this.#options;
    const found: DamagedFrame[] = [];
    try {
      const { writtenBytes } = await store.statPages(segment, { signal });
      const segmentId = checksum(Buffer.from(segment));
      for (let offset = 0; offset < writtenBytes; ) {
        throwIfAborted(signal);
        const page = offset / pageAlignmentBytes;
        if (dead?.has(page) === true) {
          offset = dead.endOfRun(page) * pageAlignmentBytes;
          continue;
        }
        const place = { vaultId: this.#vaultId, segmentId, offset };
        const bytes = await this.#proveFrame(segment, place, writtenBytes, dead, found);
        if (bytes === undefined) break;
        offset += bytes;
      }
    } catch (error) {
      // What a damaged object hides is told by the points that need it.
      if (!hasCode(error, "OBJECT_NOT_FOUND", "DAMAGED", "FORMAT_UNSUPPORTED")) throw error;
    }
    return found;
  }

  /** Returns the length of the frame at `place`, or undefined when it is not known where the next one begins. */
  async #proveFrame(
    segment: string,
    place: FramePlace,
    writtenBytes: number,
    dead: PageSet | undefined,
    found: DamagedFrame[],
  ): Promise<number | undefined> {
    let header: FrameHeader;
    try {
      header = decodeFrameHeader(await this.#read(segment, place.offset, frameHeaderBytes), segment, place);
    } catch (error) {
      if (!hasCode(error, "DAMAGED")) throw error;
      const next = await this.#nextFrame(segment, place, writtenBytes, dead);
      const outcome =
        next === undefined ? "the frame behind it cannot be found" : await this.#restoreHeader(segment, place, next - place.offset);
      found.push({ offset: place.offset, message: error.message, outcome });
      return next === undefined ? undefined : next - place.offset;
    }
    const table = await this.#read(segment, place.offset + header.tableOffset, header.tableBytes);
    try {
      decodeFrameTable(table, segment, header);
    } catch (error) {
      if (!hasCode(error, "DAMAGED")) throw error;
      found.push({ offset: place.offset, message: error.message, outcome: await this.#restoreTable(segment, place, header, table) });
    }
    return header.frameBytes;
  }

  async #read(segment: string, offset: number, length: number): Promise<Buffer> {
    await this.#options.pace?.(length);
    const bytes = Buffer.alloc(length);
    await this.#options.store.readPages(segment, offset, bytes, { signal: this.#options.signal });
    return bytes;
  }

  /** Where the next header is that says itself that it belongs there; or the end of what was written. */
  async #nextFrame(segment: string, place: FramePlace, writtenBytes: number, dead: PageSet | undefined): Promise<number | undefined> {
    const end = Math.min(place.offset + frameBytesMax, writtenBytes);
    const bytes = await this.#read(segment, place.offset, end - place.offset);
    for (let offset = place.offset + pageAlignmentBytes; offset < end; offset += pageAlignmentBytes) {
      // Of a frame in use some pages may have been given back: a run of them that ends where a header stands is a frame of its own.
      const at = offset - place.offset;
      if (dead?.has(offset / pageAlignmentBytes) === true) continue;
      try {
        decodeFrameHeader(bytes.subarray(at, at + frameHeaderBytes), segment, { ...place, offset });
        return offset;
      } catch (error) {
        if (!hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED")) throw error;
      }
    }
    return end === writtenBytes ? end : undefined;
  }

  /** Undefined: done. */
  async #restoreHeader(segment: string, place: FramePlace, frameBytes: number): Promise<string | undefined> {
    if (!this.#options.heal) return "nobody was asked to";
    const frame = await this.#read(segment, place.offset, frameBytes);
    const known = await this.#knownChunks(segment, place.offset, place.offset + frameBytes);
    const proved: CandidateTable[] = [];
    for (const table of candidateTables(frame)) if (await this.#areProved(frame, table, place.offset, known)) proved.push(table);
    const [table, another] = proved;
    if (table === undefined) return "the frame's table, from which it could be rebuilt, cannot be found or does not fit the payloads";
    if (another !== undefined) return "more than one table fits the payloads";
    const tableBytes = frame.subarray(table.tableOffset, table.tableOffset + table.count * tableEntryBytes);
    const header = encodeFrameHeader({ ...place, frameBytes, tableOffset: table.tableOffset, chunkCount: table.count, table: tableBytes });
    return await this.#patch(segment, place.offset, header);
  }

  /** Whether the table is the one that belongs to the frame's payloads. */
  async #areProved(
    frame: Buffer,
    { tableOffset, count }: CandidateTable,
    frameOffset: number,
    known: ReadonlyMap<number, KnownChunk>,
  ): Promise<boolean> {
    const digest = await this.#digest();
    const table = frame.subarray(tableOffset, tableOffset + count * tableEntryBytes);
    const isVouchedFor = sameBytes(checksum(table), frame.subarray(64, 80));
    const found = new Uint8Array(digestBytes);
    let at = frameHeaderBytes;
    for (let index = 0; index < count; index += 1) {
      const storedWord = frame.readUInt32LE(tableOffset + count * digestBytes + index * 4);
      const granules = frame.readUInt16LE(tableOffset + count * (digestBytes + 8) + index * 2);
      const length = storedLength(storedWord);
      const granule = frame.readUInt32LE(tableOffset + count * (digestBytes + 4) + index * 4);
      if (!isVouchedFor && known.get(frameOffset + at)?.places.has(granule) !== true) return false;
      const plain = granules > 256 ? undefined : plainOf(frame.subarray(at, at + length), { storedWord, granules }, this.#lz4);
      if (plain === undefined) return false;
      digest(plain, found, 0);
      if (!sameBytes(found, frame.subarray(tableOffset + index * digestBytes, tableOffset + (index + 1) * digestBytes))) return false;
      at += aligned(length);
    }
    return true;
  }

  /** Undefined: done. */
  async #restoreTable(segment: string, place: FramePlace, header: FrameHeader, damagedTable: Buffer): Promise<string | undefined> {
    if (!this.#options.heal) return "nobody was asked to";
    const { chunkCount: count, tableOffset } = header;
    const frame = await this.#read(segment, place.offset, tableOffset);
    const known = await this.#knownChunks(segment, place.offset, place.offset + header.frameBytes);
    const digest = await this.#digest();
    const table = Buffer.from(damagedTable);
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
      } else {
        const plain = granules > 256 ? undefined : plainOf(payload, { storedWord, granules }, this.#lz4);
        if (plain !== undefined) digest(plain, table, index * digestBytes);
      }
      at += aligned(length);
    }
    if (!sameBytes(checksum(table), header.tableChecksum)) return "something of it is known to nobody any more";
    return await this.#patch(segment, place.offset + tableOffset, table);
  }

  /** Chunks in a range of a segment, by their offsets, as all points of all disks know them. What cannot be read tells nothing. */
  async #knownChunks(segment: string, from: number, end: number): Promise<ReadonlyMap<number, KnownChunk>> {
    const { store, context, signal } = this.#options;
    const { vault } = context.document;
    const known = new Map<number, KnownChunk>();
    for (const disk of await diskNames(store, signal)) {
      const looked = new Set<string>();
      try {
        const { head } = await readHead(store, vault, disk, signal);
        for await (const point of readPoints(store, head, { onDamage: () => undefined, signal })) {
          throwIfAborted(signal);
          const manifest = await readManifest(store, vault, disk, point, signal);
          const map = new PointMap(store, this.#vaultId, disk, manifest);
          for (const [index, run] of manifest.runs.entries()) {
            if (looked.has(run.checksum)) continue;
            looked.add(run.checksum);
            for await (const leaf of map.entriesOf(index, signal)) {
              const number = leaf.names.indexOf(segment);
              for (let entry = 0; entry < leaf.count; entry += 1) {
                const offset = leaf.offsets[entry] ?? 0;
                if (number === -1 || leaf.segments[entry] === zeroSegment || leaf.segments[entry] !== number) continue;
                if (offset < from || offset >= end) continue;
                const places = known.get(offset)?.places ?? new Set<number>();
                places.add((leaf.starts[entry] ?? 0) - (leaf.chunkOffsets[entry] ?? 0));
                const digest = leaf.digests.slice(entry * digestBytes, (entry + 1) * digestBytes);
                known.set(offset, {
                  storedWord: leaf.storedWords[entry] ?? 0,
                  digest,
                  granules: (leaf.chunkLengths[entry] ?? 0) + 1,
                  places,
                });
              }
            }
          }
        }
      } catch (error) {
        if (!hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED", "OBJECT_NOT_FOUND", "DISK_NOT_FOUND")) throw error;
      }
    }
    return known;
  }

  async #patch(segment: string, offset: number, bytes: Uint8Array): Promise<string | undefined> {
    const isDone = async (): Promise<boolean> => sameBytes(await this.#read(segment, offset, bytes.length), bytes);
    return await patchPages(this.#options, segment, offset, bytes, isDone);
  }

  async #digest(): Promise<Awaited<ReturnType<typeof createDigest>>> {
    const { digest, digestKey } = this.#options.context.document;
    return await createDigest(digest, fromHex(digestKey));
  }
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
