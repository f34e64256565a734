/**
 * Transfer: a point of another vault as the content of a point of this one, chunk by chunk.
 *
 *     map of the source ─► fetch ─► worker: open, decompress, prove, digest for the target ─► pack as it is stored
 *            │                                                                                    │
 *            └── pieces of a window, in the order of the disk ◄── where each chunk lies here ◄────┘
 *                                    │
 *                                    ▼ map entries
 *
 * A chunk keeps its borders and its compressed payload. So nothing is searched for changes or zeros,
 * split or compressed. That needs a target whose blocks are as large as those of the source, or
 * larger: no chunk, and no piece of one, may cross a block.
 *
 * Where both vaults have the same digests, the dedup index of the target says which chunks it holds,
 * and only the others are fetched. Where each has a digest key of its own, every chunk is fetched
 * and digested once more, for the target.
 *
 * What differs from the target's newest point is either known, or is found by comparing digests
 * with the map of that point.
 *
 * Invariant: nothing is packed that was not proved by the digests of the source.
 *
 * Memory: the slabs of the target's share of the worker pool, so a target that has fallen silent
 * holds up no other reader of the source; and 40 bytes a piece of the windows under way.
 */
import { copyDigest } from "../copy-bytes.ts";
import { isUnreadableOrGone, TidemarkError } from "../errors.ts";
import { digestBytes, granuleBytes } from "../limits.ts";
import { storedLength, storedLz4Flag } from "../store/format/frame.ts";
import { type EntryColumns, newColumns, zeroSegment } from "../store/format/leaf.ts";
import { sealBytes } from "../store/format/sealed.ts";
import { differing, windowWithin } from "../store/map/map-diff.ts";
import {
  emptyPieces,
  type GranuleRange,
  type Pieces,
  type PointMap,
  pieceDigest,
  pieceIsZero,
  windowGranules,
} from "../store/map/point-map.ts";
import type { Store } from "../store/store.ts";
import type { Extent } from "../volume.ts";
import type { ChunkPlace } from "./dedup-index.ts";
import { pieceChunk } from "./fetch-plan.ts";
import { Packer, type PointContent, type RunParts, type RunStatistics } from "./packer.ts";
import { type PointConsumer, PointReader, type ProvedBatch, pieceIsProved } from "./point-reader.ts";
import type { WorkerPool } from "./worker-pool.ts";

export interface TransferOptions {
  /** The source vault's. */
  readonly store: Store;
  readonly workerPool: WorkerPool;
  readonly map: PointMap;
  /** The pool of the target vault. */
  readonly target: WorkerPool;
  /** Map of the target's newest point; undefined, the new point lists everything. */
  readonly parent: PointMap | undefined;
  /** What differs from the target's newest point; undefined, that is found by comparing. */
  readonly changes: AsyncIterable<GranuleRange> | undefined;
  /** The error for a chunk that cannot be read back. */
  readonly chunkDamaged: (extent: Extent, segment: string, cause: unknown) => TidemarkError;
}

/** A window of the source's map, and where its chunks lie in the target. */
interface Window {
  readonly ranges: readonly GranuleRange[];
  /** The pieces as the target shows them, each with an entry of its own in `chunks`. */
  readonly pieces: Pieces;
  readonly chunks: EntryColumns;
  /** Numbers of the chunks' segments in the catalog. */
  readonly segments: Uint32Array;
}

/** A point of another vault as the content of a point. */
export interface SourceContent extends PointContent {
  /** Why the point cannot be read back. */
  readonly damage: TidemarkError | undefined;
  /** Bytes that were read of the source vault's segments. */
  readonly fetchedBytes: number;
  /** Ends what is open. */
  close?(): Promise<void>;
}

export class Transfer implements SourceContent {
  readonly #options: TransferOptions;
  #damage: TidemarkError | undefined;
  /** What ended the reading of the parent's map, which lies in the target. */
  #parentFailure: unknown;
  #fetchedBytes = 0;

  constructor(options: TransferOptions) {
    this.#options = options;
  }

  get volumeBytes(): number {
    return this.#options.map.volumeBytes;
  }

  get damage(): TidemarkError | undefined {
    return this.#damage;
  }

  get fetchedBytes(): number {
    return this.#fetchedBytes;
  }

  readonly fill: PointContent["fill"] = async (parts) => {
    const { changes } = this.#options;
    if (changes !== undefined) return await this.#ship(parts, changes, "known");
    return await this.#ship(parts, this.#mapped(parts.signal), "compared");
  };

  readonly refill: PointContent["refill"] = async (parts, extents) =>
    await this.#ship(parts, granulesOf(extents), "known");

  async #ship(
    parts: RunParts,
    ranges: AsyncIterable<GranuleRange>,
    changes: "known" | "compared",
  ): Promise<RunStatistics> {
    const { store, workerPool, target, map } = this.#options;
    const reader = new PointReader({ store, workerPool, target, signal: parts.signal });
    const shipping = new Shipping(this.#options, parts, changes);
    try {
      await reader.readRanges(map, ranges, shipping);
      return shipping.statistics;
    } catch (error) {
      if (error === shipping.failure || error === this.#parentFailure || !isUnreadableOrGone(error)) throw error;
      // Damage of this point is told apart from that of the target, which a cycle can do without.
      this.#damage = error;
      throw new TidemarkError("SOURCE_UNREADABLE", error.message, { cause: error });
    } finally {
      this.#fetchedBytes += reader.bytesRead;
    }
  }

  /** The parts of the disk that either map speaks of. */
  async *#mapped(signal: AbortSignal | undefined): AsyncGenerator<GranuleRange> {
    const { map, parent } = this.#options;
    for (let at = 0; at < map.granules; ) {
      const next = Math.min(await map.nextMapped(at, signal), await this.#nextOfParent(parent, at, signal));
      if (next >= map.granules) return;
      at = Math.min(next + windowGranules - (next % windowGranules), map.granules);
      yield { from: next, end: at };
    }
  }

  async #nextOfParent(parent: PointMap | undefined, at: number, signal: AbortSignal | undefined): Promise<number> {
    try {
      return (await parent?.nextMapped(at, signal)) ?? Infinity;
    } catch (error) {
      this.#parentFailure = error;
      throw error;
    }
  }
}

/** One reading of the source: packs chunks as they come, and writes entries window by window. */
class Shipping implements PointConsumer {
  readonly #options: TransferOptions;
  readonly #parts: RunParts;
  readonly #changes: "known" | "compared";
  readonly #packer: Packer;
  /** Looks chunks up while the other packs: each has a place of its own. */
  readonly #finder: Packer;
  readonly #hasSameDigests: boolean;
  /** Windows under way by what the source shows, in the order of the disk. */
  readonly #windows = new Map<Pieces, Window>();
  /** Batches come at once, and lanes pack one chunk at a time. */
  #packing: Promise<void> = Promise.resolve();
  #failure: unknown;

  constructor(options: TransferOptions, parts: RunParts, changes: "known" | "compared") {
    this.#options = options;
    this.#parts = parts;
    this.#changes = changes;
    this.#packer = new Packer(parts);
    this.#finder = new Packer(parts, this.#packer.statistics);
    this.#hasSameDigests = options.target.hasDigestsOf(options.workerPool);
  }

  get statistics(): RunStatistics {
    return this.#packer.statistics;
  }

  /** What failed in the target. */
  get failure(): unknown {
    return this.#failure;
  }

  window(source: Pieces, ranges: readonly GranuleRange[]): readonly number[] | undefined {
    const { count, starts, lengths, chunkOffsets } = source;
    const chunks = newColumns(count);
    for (let piece = 0; piece < count; piece += 1)
      chunks.segments[piece] = pieceIsZero(source, piece) ? zeroSegment : 0;
    const leaves = Array.from({ length: count }, () => chunks);
    const entries = Uint32Array.from({ length: count }, (_, piece) => piece);
    const pieces = { count, starts, lengths, leaves, entries, chunkOffsets };
    const window = { ranges, pieces, chunks, segments: new Uint32Array(count) };
    this.#windows.set(source, window);
    return this.#hasSameDigests ? this.#unknown(source, window) : undefined;
  }

  /** Refers to the chunks that the target holds. Returns the pieces that show others. */
  #unknown(source: Pieces, window: Window): number[] {
    const { digests } = window.chunks;
    const table = { digests, digestWords: new Uint32Array(digests.buffer) };
    const unknown: number[] = [];
    for (let piece = 0; piece < source.count; piece += 1) {
      if (pieceIsZero(source, piece)) continue;
      pieceDigest(source, piece, digests, piece * digestBytes);
      const { granules } = pieceChunk(source, piece);
      if (this.#finder.refer(table, piece, granules)) this.#note(window, piece, granules, this.#finder.place);
      else unknown.push(piece);
    }
    return unknown;
  }

  /** Notes where the chunk of a piece lies. */
  #note({ chunks, segments, pieces }: Window, piece: number, granules: number, place: ChunkPlace): void {
    const { segment, offset, storedWord } = place;
    segments[piece] = segment;
    chunks.offsets[piece] = offset;
    chunks.storedWords[piece] = storedWord;
    chunks.chunkLengths[piece] = granules - 1;
    this.statistics.scannedBytes += (pieces.lengths[piece] ?? 0) * granuleBytes;
  }

  async data(batch: ProvedBatch): Promise<void> {
    const packed = this.#packing.then(async () => await this.#pack(batch));
    this.#packing = packed.catch(() => undefined); // the reader is told
    await packed;
  }

  async done(granule: number): Promise<void> {
    for (const [source, window] of this.#windows) {
      if ((window.ranges.at(-1)?.end ?? 0) > granule) break;
      await this.#append(window);
      this.#windows.delete(source);
    }
    this.#parts.onProgress(Math.min(this.#options.map.volumeBytes, granule * granuleBytes));
  }

  /** Stores what the target does not hold of a batch, and notes where its chunks lie. */
  async #pack(batch: ProvedBatch): Promise<void> {
    const { pieces: source, order, from, end, chunkOf, slab, segment } = batch;
    const window = this.#windows.get(source);
    if (window === undefined) throw new TidemarkError("INTERNAL", "a batch belongs to a window");
    const { pieces } = window;
    const { chunks } = slab;
    const digests = this.#hasSameDigests ? chunks : slab.expected;
    const packer = this.#packer;
    const { lanes } = this.#parts;
    const sealed = this.#options.store.keys?.payloads(segment) === undefined ? 0 : sealBytes;
    let last = -1;
    for (let at = from; at < end; at += 1) {
      const piece = order[at] ?? 0;
      const chunk = chunkOf[at - from] ?? 0;
      const granules = chunks.granules[chunk] ?? 0;
      const [start, length] = [pieces.starts[piece] ?? 0, pieces.lengths[piece] ?? 0];
      const chunkOffset = pieces.chunkOffsets[piece] ?? 0;
      if (!pieceIsProved(batch, at)) {
        const extent = { offset: start * granuleBytes, length: length * granuleBytes };
        throw this.#options.chunkDamaged(extent, segment, batch.failure);
      }
      if (chunk !== last && !packer.refer(digests, chunk, granules)) {
        const packed = (chunks.storedWords[chunk] ?? 0) - sealed;
        const place =
          packed >= storedLz4Flag ? (chunks.offsets[chunk] ?? 0) : (chunks.start[chunk] ?? 0) * granuleBytes;
        const region = packed >= storedLz4Flag ? slab.data : slab.out;
        const payload = region.subarray(place, place + storedLength(packed));
        if (!lanes.hasRoom(payload.byteLength)) await this.#own(lanes.nextFrame());
        packer.pack(payload, packed, digests, chunk, start - chunkOffset, granules);
      }
      last = chunk;
      copyDigest(digests.digests, chunk * digestBytes, window.chunks.digests, piece * digestBytes);
      this.#note(window, piece, granules, packer.place);
    }
    await this.#own(this.#parts.betweenBatches?.() ?? Promise.resolve());
  }

  /** Writes the entries of a window of which every chunk is packed. */
  async #append(window: Window): Promise<void> {
    let piece = 0;
    for (const range of window.ranges) {
      if (this.#changes === "known") {
        piece = this.#appendRange(window, range, piece);
        continue;
      }
      const { parent } = this.#options;
      const before =
        parent === undefined ? emptyPieces : await this.#own(windowWithin(parent, range, this.#parts.signal));
      for (const changed of joined(differing(before, window.pieces, range)))
        piece = this.#appendRange(window, changed, piece);
    }
    await this.#own(this.#parts.run.drain());
  }

  /**
   * Writes the entries of a range. No piece before `first` reaches into it. Returns the first piece
   * that may reach behind it.
   */
  #appendRange({ pieces, chunks, segments }: Window, { from, end }: GranuleRange, first: number): number {
    const { run } = this.#parts;
    const { statistics } = this;
    let at = from;
    const zerosUntil = (stop: number): void => {
      if (stop <= at) return;
      run.appendZero(at, stop - at);
      statistics.zeroBytes += (stop - at) * granuleBytes;
    };
    let piece = first;
    for (; piece < pieces.count; piece += 1) {
      const start = pieces.starts[piece] ?? 0;
      const stop = start + (pieces.lengths[piece] ?? 0);
      if (start >= end) break;
      const shownFrom = Math.max(start, at);
      const shownEnd = Math.min(stop, end);
      if (shownEnd > shownFrom && !pieceIsZero(pieces, piece)) {
        zerosUntil(shownFrom);
        run.append(
          shownFrom,
          shownEnd - shownFrom,
          this.#packer.nameOf(segments[piece] ?? 0),
          chunks.offsets[piece] ?? 0,
          chunks.storedWords[piece] ?? 0,
          (pieces.chunkOffsets[piece] ?? 0) + shownFrom - start,
          (chunks.chunkLengths[piece] ?? 0) + 1,
          chunks.digests,
          piece * digestBytes,
        );
        at = shownEnd;
      }
      if (stop > end) break;
    }
    zerosUntil(end);
    statistics.changedBytes += (end - from) * granuleBytes;
    return piece;
  }

  async #own<Result>(work: Promise<Result>): Promise<Result> {
    try {
      return await work;
    } catch (error) {
      this.#failure ??= error;
      throw error;
    }
  }
}

/** Puts ranges together that touch. */
function* joined(ranges: Iterable<GranuleRange>): Generator<GranuleRange, void> {
  let last: GranuleRange | undefined;
  for (const range of ranges) {
    if (last !== undefined && last.end !== range.from) yield last;
    last = last?.end === range.from ? { from: last.from, end: range.end } : range;
  }
  if (last !== undefined) yield last;
}

async function* granulesOf(extents: AsyncIterable<Extent>): AsyncGenerator<GranuleRange> {
  for await (const { offset, length } of extents)
    yield { from: Math.floor(offset / granuleBytes), end: Math.ceil((offset + length) / granuleBytes) };
}
