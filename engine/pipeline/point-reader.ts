/**
 * Point reader: resolves a point's map window by window, fetches payloads in long ranges, has the
 * worker pool decompress and prove them, and hands plain bytes to a consumer.
 *
 * A window is fetched in as few ranges as its history allows (see `fetch-plan.ts`): a freshly
 * replicated disk is read in ranges of megabytes.
 *
 * Invariant: a piece is proved by its own digest.
 *
 * Memory: the slabs of the worker pool.
 */
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import { granuleBytes } from "../limits.ts";
import { shellWord } from "../shell-word.ts";
import { damaged } from "../store/format/fields.ts";
import { storedLength } from "../store/format/frame.ts";
import type { GranuleRange, Pieces, PointMap } from "../store/map/point-map.ts";
import { pieceIsZero, windowGranules } from "../store/map/point-map.ts";
import type { Store } from "../store/store.ts";
import { type Fetch, fillChunkTable, type MappedChunk, orderByPlace, pieceChunk, planFetches } from "./fetch-plan.ts";
import type { Slab, SlabShare } from "./slabs.ts";
import type { FingerprintSeed } from "./wasm-kernels.ts";
import type { WorkerPool } from "./worker-pool.ts";

/**
 * Proved plain bytes: pieces `order[from…end)`, the bytes of which lie in the slab's `out`. Holds
 * until the consumer's promise settles.
 */
export interface ProvedBatch {
  readonly pieces: Pieces;
  readonly order: Uint32Array;
  readonly from: number;
  readonly end: number;
  /** For each of the pieces: its chunk in the slab's table. */
  readonly chunkOf: Uint32Array;
  readonly slab: Slab;
  readonly segment: string;
  /** Why the range could not be read at all, when that is so: every chunk is then in state 2. */
  readonly failure: TidemarkError | undefined;
}

/** Granule of `out` at which the bytes of piece number `at` of a batch begin. */
export function pieceOutGranule(batch: ProvedBatch, at: number): number {
  const piece = batch.order[at] ?? 0;
  const chunk = batch.chunkOf[at - batch.from] ?? 0;
  return (batch.slab.chunks.start[chunk] ?? 0) + (batch.pieces.chunkOffsets[piece] ?? 0);
}

/** True when the piece's chunk was proved. */
export function pieceIsProved(batch: ProvedBatch, at: number): boolean {
  return batch.slab.chunks.state[batch.chunkOf[at - batch.from] ?? 0] === 1;
}

export interface PointConsumer {
  /**
   * Told of each window before its data: what the point shows in these ranges. Returns the pieces of
   * which the data is wanted; undefined: all.
   */
  window?(pieces: Pieces, ranges: readonly GranuleRange[]): readonly number[] | undefined;
  /** Data. Batches overlap in time and come in no promised order within a window. */
  data(batch: ProvedBatch): Promise<void>;
  /**
   * Granules [from, end) read as zeros. Absent: long stretches of which no run speaks are jumped
   * over.
   */
  zeros?(from: number, end: number): Promise<void>;
  /** Everything below `granule` has been consumed. Called in ascending order. */
  done(granule: number): Promise<void>;
  /** Asked before a chunk is fetched: true leaves it out. */
  skip?(chunk: MappedChunk): boolean;
}

export interface PointReaderOptions {
  readonly store: Store;
  readonly workerPool: WorkerPool;
  readonly signal?: AbortSignal | undefined;
  /** Keep fingerprints of what was proved, under this seed, in the slab's `newPrints`. */
  readonly seed?: FingerprintSeed | undefined;
  /**
   * The pool of a vault to which the chunks are copied. Its slabs are then leased; it digests the
   * chunks for that vault, to `expected`, if that has other digests, and opens compressed payloads in `data`.
   */
  readonly target?: WorkerPool | undefined;
  /**
   * Asked before each range is fetched, with its length: holds the reading up, or ends it with an
   * error. Ranges are then fetched one at a time.
   */
  readonly pace?: ((bytes: number) => Promise<void>) | undefined;
}

/** How some pieces of a window are fetched. */
export interface ReadPlan {
  readonly pieces: Pieces;
  readonly order: Uint32Array;
  /** The one with the lowest piece, `lowest`, first. */
  readonly fetches: readonly PlannedFetch[];
}

export interface PlannedFetch extends Fetch {
  readonly lowest: number;
}

export class PointReader {
  readonly #options: PointReaderOptions;
  #bytesRead = 0;
  #chunksProved = 0;

  constructor(options: PointReaderOptions) {
    this.#options = options;
  }

  get #slabs(): SlabShare {
    const { workerPool, target } = this.#options;
    return (target ?? workerPool).fetches;
  }

  get bytesRead(): number {
    return this.#bytesRead;
  }

  get chunksProved(): number {
    return this.#chunksProved;
  }

  /**
   * Reads the whole point from granule `from` on. Damage is the consumer's to judge; errors of the
   * consumer or the store end the reading.
   */
  async read(map: PointMap, from: number, consumer: PointConsumer): Promise<void> {
    await this.#read(map, this.#windowsFrom(map, from, consumer.zeros === undefined), consumer);
  }

  /** Reads some ranges only, ascending and disjoint. Otherwise as `read`. */
  async readRanges(map: PointMap, ranges: AsyncIterable<GranuleRange>, consumer: PointConsumer): Promise<void> {
    await this.#read(map, windowsOver(ranges), consumer);
    await consumer.done(map.granules);
  }

  async *#windowsFrom(map: PointMap, from: number, skipsZeros: boolean): AsyncGenerator<Window, void> {
    for (let at = from; at < map.granules; ) {
      if (skipsZeros) at = Math.min(await map.nextMapped(at, this.#options.signal), map.granules);
      const end = Math.min(at + windowGranules - (at % windowGranules), map.granules);
      yield { from: at, end, ranges: [{ from: at, end }] };
      at = end;
    }
  }

  async #read(map: PointMap, windows: AsyncGenerator<Window, void>, consumer: PointConsumer): Promise<void> {
    const { signal, pace } = this.#options;
    const fetchesMax = pace === undefined ? this.#slabs.slabCount : 1;
    const queue: Promise<void>[] = [];
    const push = (work: Promise<void>): void => {
      work.catch(() => undefined); // awaited in order below, or settled in `finally`
      queue.push(work);
    };
    try {
      for await (const { from, end, ranges } of windows) {
        throwIfAborted(signal);
        const pieces = await map.window(from, end, signal, ranges);
        this.#checkBlocks(pieces);
        const wanted = consumer.window?.(pieces, ranges) ?? unskipped(pieces, consumer);
        if (consumer.zeros !== undefined) await zerosBetween(pieces, ranges, consumer.zeros.bind(consumer));
        const order = orderByPlace(pieces, wanted);
        for (const fetch of planFetches(pieces, order, this.#slabs.shared.geometry)) {
          while (queue.length >= fetchesMax) await queue.shift();
          await pace?.(fetch.bytes); // before a slab is leased that others need
          push(this.#fetch(pieces, order, fetch, consumer));
        }
        // A sparse disk has thousands of windows in which there is nothing to fetch.
        while (queue.length > fetchesMax) await queue.shift();
        const before = [...queue];
        push(Promise.all(before).then(async () => await consumer.done(end)));
      }
      while (queue.length > 0) await queue.shift();
    } finally {
      await Promise.allSettled(queue);
    }
  }

  /** Fetches and proves some pieces of a window only. */
  async readPieces(pieces: Pieces, wanted: readonly number[], data: PointConsumer["data"]): Promise<void> {
    const plan = this.plan(pieces, wanted);
    for (const fetch of plan.fetches) await this.readPlanned(plan, fetch, data);
  }

  /**
   * Plans how some pieces of a window are fetched, for a caller that decides when each range is
   * fetched.
   */
  plan(pieces: Pieces, wanted: readonly number[]): ReadPlan {
    this.#checkBlocks(pieces);
    const order = orderByPlace(pieces, wanted);
    const lowest = (fetch: Fetch): number =>
      order.subarray(fetch.from, fetch.end).reduce((low, piece) => Math.min(low, piece), Infinity);
    const fetches = planFetches(pieces, order, this.#slabs.shared.geometry)
      .map((fetch) => ({ ...fetch, lowest: lowest(fetch) }))
      .sort((a, b) => a.lowest - b.lowest);
    return { pieces, order, fetches };
  }

  /** Fetches and proves one range of a plan. */
  async readPlanned({ pieces, order }: ReadPlan, fetch: PlannedFetch, data: PointConsumer["data"]): Promise<void> {
    await this.#fetch(pieces, order, fetch, { data });
  }

  /** A chunk never crosses a block, and readers that go block by block rely on it. Errors: DAMAGED. */
  #checkBlocks(pieces: Pieces): void {
    const blockGranules = this.#options.workerPool.blockBytes / granuleBytes;
    for (let index = 0; index < pieces.count; index += 1) {
      if (pieceIsZero(pieces, index)) continue;
      const start = pieces.starts[index] ?? 0;
      if ((start % blockGranules) + (pieces.lengths[index] ?? 0) > blockGranules)
        throw damaged("the map of the point", `its entry at granule ${String(start)} reaches across blocks`);
    }
  }

  async #fetch(pieces: Pieces, order: Uint32Array, fetch: Fetch, consumer: Pick<PointConsumer, "data">): Promise<void> {
    const { store, workerPool, target, signal } = this.#options;
    const seal = store.keys?.payloads(fetch.segment);
    const fetches = this.#slabs;
    const slab = await fetches.acquire(signal);
    try {
      const chunkOf = new Uint32Array(fetch.end - fetch.from);
      const chunkCount = fillChunkTable(pieces, order, fetch, slab, chunkOf);
      const sealed = seal && { seal, offset: fetch.offset };
      const proof = { slab: slab.number, chunkCount, seed: this.#options.seed, sealed };
      const decode = async (): Promise<void> =>
        target === undefined ? await workerPool.decode(proof) : await target.decodeFrom(workerPool, proof);
      let failure = await this.#readRange(fetch, slab, chunkCount);
      await decode();
      if (failure === undefined && !areProved(slab, chunkCount)) {
        // What was damaged on its way is whole when it is read again; what is damaged at rest is not.
        failure = await this.#readRange(fetch, slab, chunkCount);
        await decode();
      }
      this.#chunksProved += chunkCount;
      await consumer.data({
        pieces,
        order,
        from: fetch.from,
        end: fetch.end,
        chunkOf,
        slab,
        segment: fetch.segment,
        failure,
      });
    } finally {
      fetches.release(slab);
    }
  }

  /**
   * Reads the range; if the object is damaged or gone, what can be read of it chunk by chunk. What
   * cannot is left as zeros, which no digest matches.
   */
  async #readRange(fetch: Fetch, slab: Slab, chunkCount: number): Promise<TidemarkError | undefined> {
    const { store, signal } = this.#options;
    try {
      await store.readPages(fetch.segment, fetch.offset, slab.data.subarray(0, fetch.bytes), { signal });
      this.#bytesRead += fetch.bytes;
      return undefined;
    } catch (error) {
      if (!hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND")) throw error;
      slab.data.fill(0, 0, fetch.bytes);
      if (error.code === "OBJECT_NOT_FOUND") return error;
      for (let chunk = 0; chunk < chunkCount; chunk += 1) {
        const at = slab.chunks.offsets[chunk] ?? 0;
        const bytes = slab.data.subarray(at, at + storedLength(slab.chunks.storedWords[chunk] ?? 0));
        try {
          await store.readPages(fetch.segment, fetch.offset + at, bytes, { signal });
          this.#bytesRead += bytes.length;
        } catch (chunkError) {
          if (!hasCode(chunkError, "DAMAGED", "OBJECT_NOT_FOUND")) throw chunkError;
          bytes.fill(0);
        }
      }
      return error;
    }
  }
}

/** Whether every chunk has the bytes of its digest. */
function areProved(slab: Slab, chunkCount: number): boolean {
  return slab.chunks.state.subarray(0, chunkCount).every((state) => state === 1);
}

/** A window of a map, and the ranges in it that are read. */
interface Window extends GranuleRange {
  readonly ranges: readonly GranuleRange[];
}

/** Cuts ranges at the borders of windows, and puts those of one window together. */
async function* windowsOver(ranges: AsyncIterable<GranuleRange>): AsyncGenerator<Window, void> {
  let parts: GranuleRange[] = [];
  const window = (): Window => ({ from: parts[0]?.from ?? 0, end: parts.at(-1)?.end ?? 0, ranges: parts });
  for await (const range of ranges) {
    for (let at = range.from; at < range.end; ) {
      const border = at + windowGranules - (at % windowGranules);
      if (parts.length > 0 && border - (parts[0]?.from ?? 0) > windowGranules) {
        yield window();
        parts = [];
      }
      const end = Math.min(border, range.end);
      parts.push({ from: at, end });
      at = end;
    }
  }
  if (parts.length > 0) yield window();
}

/** Reports the granules of `ranges` that are ZERO or were never written. */
async function zerosBetween(
  pieces: Pieces,
  ranges: readonly GranuleRange[],
  zeros: NonNullable<PointConsumer["zeros"]>,
): Promise<void> {
  let index = 0;
  for (const { from, end } of ranges) {
    let zeroFrom = from;
    // A piece lies in one range.
    for (; index < pieces.count && (pieces.starts[index] ?? 0) < end; index += 1) {
      if (pieceIsZero(pieces, index)) continue;
      const start = pieces.starts[index] ?? 0;
      if (start > zeroFrom) await zeros(zeroFrom, start);
      zeroFrom = start + (pieces.lengths[index] ?? 0);
    }
    if (end > zeroFrom) await zeros(zeroFrom, end);
  }
}

/** Indexes of the pieces that the consumer does not want left out; undefined for all. */
function unskipped(pieces: Pieces, consumer: PointConsumer): number[] | undefined {
  if (consumer.skip === undefined) return undefined;
  const wanted: number[] = [];
  for (let index = 0; index < pieces.count; index += 1) {
    if (!pieceIsZero(pieces, index) && !consumer.skip(pieceChunk(pieces, index))) wanted.push(index);
  }
  return wanted;
}

/** The error for a chunk that is not what the map says. */
export function chunkDamaged(
  disk: string,
  point: string,
  offset: number,
  length: number,
  segment: string,
  cause?: unknown,
): TidemarkError {
  return new TidemarkError(
    "DAMAGED",
    `point ${point} of disk ${JSON.stringify(disk)} is damaged at bytes ${String(offset)} to ${String(offset + length)} (in ${segment})`,
    {
      remedy: `heal it with \`tidemark verify --disk ${shellWord(disk)} --source IMAGE --heal\`, or take another point`,
      detail: { disk, point, offset, length, object: segment },
      cause,
    },
  );
}
