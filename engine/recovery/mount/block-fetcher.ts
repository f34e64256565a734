/**
 * Block fetcher of a mounted point: brings blocks from the store into the cache, for waiting reads
 * and ahead of sequential ones.
 *
 *     request ─► queue ─► job: neighbours together ─► map ─► ranges of segments, awaited ones first ─► workers: proved ─┐
 *     ahead ───────────►                                          cache, and copied to waiting reads, block by block ◄─┘
 *
 * A block is fetched once however many reads wait for it, and its bytes are copied to them before
 * anything else can happen to the block. A block holds memory from the first byte that arrives.
 * With a keeper, blocks of one chunk go from the worker's slab to the keeper in runs as long as
 * they lie there, without a copy. The slab is held until they are kept, which bounds what waits.
 *
 * A writer puts neighbouring data of a disk into several segments in turn, a frame of 4 MiB at a
 * time. So a job that is fetched ahead is long: then neighbours in a segment make ranges as long as
 * a slab, which cost a store less than short ones.
 *
 * Damage fails the reads of damaged granules only. When a job for many blocks meets a map that it
 * cannot read, each awaited block is tried by itself. What is damaged or could not be fetched is
 * not kept, so the next read tries again.
 */
import assert from "node:assert/strict";
import { isUnreadableOrGone, TidemarkError } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import {
  chunkDamaged,
  type PlannedFetch,
  PointReader,
  type ProvedBatch,
  pieceIsProved,
  pieceOutGranule,
  type ReadPlan,
} from "../../pipeline/point-reader.ts";
import type { WorkerPool } from "../../pipeline/worker-pool.ts";
import { type Pieces, pieceIsZero } from "../../store/map/point-map.ts";
import type { Store } from "../../store/store.ts";
import type { Extent } from "../../volume.ts";
import type { BlockCache } from "./block-cache.ts";
import type { BlockKeeper } from "./block-keeper.ts";
import { type BlockDamage, type FetchJob, newJob, type WantedBlock } from "./fetch-job.ts";
import type { MountedMap } from "./mounted-map.ts";
import type { PendingRead } from "./pending-read.ts";
import { type QueuedRange, RangeQueue } from "./range-queue.ts";

/**
 * Most bytes of a job that is fetched ahead: about two frames of each of a writer's lanes, at a
 * compression of one half.
 */
const aheadJobBytesMax: number = 64 * 1024 * 1024;
/** The share of that which is only fetched where it makes ranges longer. */
const aheadMoreShare: number = 3 / 8;

/**
 * With a keeper a waiting read brings what is absent of the aligned range of this size around it, and
 * of one as long as a job may be while many reads wait.
 */
const keptWindowBytes: number = 1024 * 1024;

export interface BlockFetcherOptions {
  readonly store: Store;
  readonly workerPool: WorkerPool;
  readonly map: MountedMap;
  readonly cache: BlockCache;
  /** For messages: the disk, and the point's sequence number. */
  readonly disk: string;
  readonly point: string;
  readonly signal: AbortSignal;
  /** Called with bytes of the point that cannot be read back, each time that they are met. */
  readonly onDamage: (extent: Extent, error: TidemarkError) => void;
  /** Called when a part of what `ahead` began has arrived: there may be room for more. */
  readonly onAheadRoom: () => void;
  /** Undefined: what is fetched is kept in the cache only. */
  readonly keeper: BlockKeeper | undefined;
}

export class BlockFetcher {
  readonly #options: BlockFetcherOptions;
  readonly #reader: PointReader;
  readonly #blockBytes: number;
  readonly #blockGranules: number;
  /** Jobs for waiting reads, and the blocks of each. */
  readonly #jobsMax: number;
  readonly #jobBlocksMax: number;
  /**
   * Blocks of a job that is begun by `ahead`, those that it may take along, and blocks of all such
   * jobs.
   */
  readonly #aheadCoreMax: number;
  readonly #aheadMoreMax: number;
  readonly #aheadBlocksMax: number;
  readonly #ranges: RangeQueue;
  readonly #wanted = new Map<number, WantedBlock>();
  /** Blocks in the state `queued` or `alone`, in the order in which they were asked for. */
  readonly #queue = new Set<number>();
  readonly #jobs = new Set<Promise<void>>();
  #waitedJobs = 0;
  #aheadBlocks = 0;

  constructor(options: BlockFetcherOptions) {
    const { store, workerPool, cache, signal } = options;
    const { geometry } = workerPool.fetches.shared;
    this.#options = options;
    this.#reader = new PointReader({ store, workerPool, signal });
    this.#blockBytes = cache.blockBytes;
    this.#blockGranules = cache.blockBytes / granuleBytes;
    this.#jobsMax = workerPool.fetches.slabCount;
    this.#ranges = new RangeQueue(workerPool.fetches.slabCount);
    // Everything under way together leaves a sixth of the cache to blocks that are kept.
    const waitedBytesMax = Math.min(geometry.outBytes ?? geometry.slabBytes, cache.capacityBytes / (3 * this.#jobsMax));
    this.#jobBlocksMax = Math.max(1, Math.floor(waitedBytesMax / cache.blockBytes));
    this.#aheadBlocksMax = Math.floor(cache.capacityBytes / 2 / cache.blockBytes);
    const aheadJobMax = Math.min(Math.floor(aheadJobBytesMax / cache.blockBytes), Math.floor(this.#aheadBlocksMax / 2));
    this.#aheadMoreMax = Math.floor(aheadJobMax * aheadMoreShare);
    this.#aheadCoreMax = aheadJobMax - this.#aheadMoreMax;
  }

  /** Bytes read from the store. */
  get bytesFetched(): number {
    return this.#reader.bytesRead;
  }

  /** The longest range for which `ahead` begins a job, and what may be on its way by it in all. */
  get aheadBytesMax(): { readonly job: number; readonly all: number } {
    return { job: this.#aheadCoreMax * this.#blockBytes, all: this.#aheadBlocksMax * this.#blockBytes };
  }

  /**
   * Requests bytes of a block that is not cached: `into` gets them, from byte `from` of the block
   * on. `start` begins the fetch.
   */
  request(block: number, from: number, into: Uint8Array, read: PendingRead): void {
    let wanted = this.#wanted.get(block);
    if (wanted === undefined) {
      wanted = { state: "queued", waiters: [], bytes: undefined, ranges: [] };
      this.#wanted.set(block, wanted);
      this.#queue.add(block);
    }
    if (wanted.bytes !== undefined) {
      wanted.bytes.copy(into, 0, from, from + into.byteLength);
      return;
    }
    read.expect();
    wanted.waiters.push({ read, from, into });
    for (const range of wanted.ranges) this.#ranges.raise(range);
  }

  /** Begins as many jobs for requested blocks as the limits allow. */
  start(): void {
    for (const block of this.#queue) {
      if (this.#waitedJobs >= this.#jobsMax) return;
      let end = block + 1;
      if (this.#wanted.get(block)?.state === "queued") {
        while (end - block < this.#jobBlocksMax && this.#wanted.get(end)?.state === "queued") end += 1;
      }
      const job = this.#withNeighbours(block, end);
      for (let at = block; at < end; at += 1) {
        this.#queue.delete(at);
        this.#claim(job, at);
      }
      this.#waitedJobs += 1;
      this.#launch(job, () => {
        this.#waitedJobs -= 1;
      });
    }
  }

  /**
   * A job for blocks [from, end) that reads wait for. With a keeper everything is needed some time, so
   * it takes along what is absent of the windows around them: a request costs a store as much as
   * hundreds of KiB do. When more reads wait than jobs may run, they wait for the store's rate rather
   * than for one request, and wider windows get them and their successors there sooner.
   */
  #withNeighbours(from: number, end: number): FetchJob {
    const isAlone = this.#wanted.get(from)?.state === "alone";
    if (this.#options.keeper?.wantsNeighbours !== true || isAlone) return newJob(from, end, end);
    const isCrowded = this.#queue.size > this.#jobsMax;
    const keptBlocks = Math.max(1, Math.min(this.#jobBlocksMax, Math.floor(keptWindowBytes / this.#blockBytes)));
    const windowBlocks = isCrowded ? this.#jobBlocksMax : keptBlocks;
    const first = from - (from % windowBlocks);
    const disk = Math.ceil(this.#options.map.volumeBytes / this.#blockBytes);
    const last = Math.min(disk, Math.ceil(end / windowBlocks) * windowBlocks);
    const job = newJob(first, last, last);
    for (let block = first; block < last; block += 1) if (!this.#isTaken(block)) this.#claim(job, block);
    return job;
  }

  /**
   * Begins a job for blocks of [from, end) that no read has requested yet, if the limits allow.
   * Returns the block up to which everything is cached or under way now.
   */
  ahead(from: number, end: number): number {
    let first = from;
    while (first < end && this.#isTaken(first)) first += 1;
    const coreEnd = Math.min(end, first + this.#aheadCoreMax);
    const more = Math.min(this.#aheadMoreMax, coreEnd - first);
    const jobEnd = Math.min(coreEnd + more, Math.ceil(this.#options.map.volumeBytes / this.#blockBytes));
    const blocks = jobEnd - first;
    if (first === end || this.#aheadBlocks + blocks > this.#aheadBlocksMax) return first;
    const job = newJob(first, coreEnd, jobEnd);
    for (let block = first; block < coreEnd; block += 1) if (!this.#isTaken(block)) this.#claim(job, block);
    this.#reserve(job, blocks);
    this.#launch(job, () => this.#reserve(job, 0));
    return coreEnd;
  }

  /** Waits for the jobs that are under way now. */
  async settled(): Promise<void> {
    await Promise.all(this.#jobs);
  }

  /** Waits for jobs under way, which the signal ends. Nothing may be requested any more. */
  async close(): Promise<void> {
    while (this.#jobs.size > 0) await this.settled();
  }

  /** True when a block is cached, or on its way, or kept elsewhere. */
  #isTaken(block: number): boolean {
    const { cache, keeper } = this.#options;
    return (
      cache.has(block) ||
      this.#wanted.has(block) ||
      keeper?.isNeeded(block * this.#blockBytes, this.#lengthOf(block)) === false
    );
  }

  /** Bytes of a block: the disk's last may be shorter. */
  #lengthOf(block: number): number {
    return Math.min(this.#blockBytes, this.#options.map.volumeBytes - block * this.#blockBytes);
  }

  /** Makes a block one that `job` fetches. */
  #claim(job: FetchJob, block: number): void {
    const wanted = this.#wanted.get(block) ?? { state: "running", waiters: [], bytes: undefined, ranges: [] };
    wanted.state = "running";
    this.#wanted.set(block, wanted);
    job.isOwed[block - job.from] = 1;
  }

  #reserve(job: FetchJob, blocks: number): void {
    this.#aheadBlocks += blocks - job.reservedBlocks;
    job.reservedBlocks = blocks;
  }

  #launch(job: FetchJob, onDone: () => void): void {
    const work = this.#run(job).finally(() => {
      this.#jobs.delete(work);
      onDone();
      this.start();
      this.#options.onAheadRoom();
    });
    this.#jobs.add(work);
  }

  /** Never rejects for errors of the store or damage: the waiting reads fail with them. */
  async #run(job: FetchJob): Promise<void> {
    const { map } = this.#options;
    try {
      const pieces = await map.pieces(
        job.from * this.#blockGranules,
        Math.min(job.end * this.#blockGranules, map.granules),
      );
      const plan = this.#plan(job, pieces);
      for (let slot = 0; slot < job.coreEnd - job.from; slot += 1) {
        if (job.isOwed[slot] === 1 && job.piecesLeft[slot] === 0) await this.#deliver(job, slot);
      }
      await Promise.all(plan.fetches.map(async (fetch) => await this.#fetch(job, plan, fetch)));
      if (job.failure !== undefined) this.#fail(job, job.failure);
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      this.#fail(job, error);
    }
  }

  /**
   * Plans how the blocks of a job are fetched, and claims the blocks that its ranges bring along.
   */
  #plan(job: FetchJob, pieces: Pieces): ReadPlan {
    for (let piece = 0; piece < pieces.count; piece += 1) {
      if (pieceIsZero(pieces, piece)) continue;
      const slot = this.#slotOf(job, pieces, piece);
      job.piecesLeft[slot] = (job.piecesLeft[slot] ?? 0) + 1;
      job.granules[slot] = (job.granules[slot] ?? 0) + (pieces.lengths[piece] ?? 0);
    }
    const wanted: number[] = [];
    let coreCount = pieces.count;
    for (let piece = 0; piece < pieces.count; piece += 1) {
      const slot = this.#slotOf(job, pieces, piece);
      const isCore = job.from + slot < job.coreEnd;
      if (!isCore) coreCount = Math.min(coreCount, piece);
      // What comes along is a whole block, or the rest of it would have to be fetched too.
      const isFetched = isCore ? job.isOwed[slot] === 1 : job.piecesLeft[slot] === 1 && !this.#isTaken(job.from + slot);
      if (isFetched && !pieceIsZero(pieces, piece)) wanted.push(piece);
    }
    const plan = this.#reader.plan(pieces, wanted);
    const fetches = plan.fetches.filter(({ lowest }) => lowest < coreCount);
    for (const { from, end } of fetches) {
      for (const piece of plan.order.subarray(from, end))
        if (piece >= coreCount) this.#claim(job, job.from + this.#slotOf(job, pieces, piece));
    }
    if (job.reservedBlocks > 0)
      this.#reserve(
        job,
        job.isOwed.reduce((sum, owed) => sum + owed, 0),
      );
    return { ...plan, fetches };
  }

  /** Fetches one range of a job when its turn comes, unless another has failed before. */
  async #fetch(job: FetchJob, plan: ReadPlan, fetch: PlannedFetch): Promise<void> {
    const range: QueuedRange = { isAwaited: false };
    for (let at = fetch.from; at < fetch.end; at += 1) {
      const wanted = this.#wanted.get(job.from + this.#slotOf(job, plan.pieces, plan.order[at] ?? 0));
      assert(wanted !== undefined, "a block of which pieces come is wanted");
      if (wanted.waiters.length > 0) range.isAwaited = true;
      if (wanted.ranges.at(-1) !== range) wanted.ranges.push(range);
    }
    await this.#ranges.run(range, async () => {
      if (job.failure !== undefined) return;
      try {
        await this.#reader.readPlanned(plan, fetch, async (batch) => await this.#take(job, batch));
      } catch (error) {
        if (!(error instanceof TidemarkError)) throw error;
        job.failure = error;
      }
    });
    this.#options.onAheadRoom();
  }

  /** The block that holds `piece`, counted from the job's first: a chunk never crosses a block. */
  #slotOf(job: FetchJob, pieces: Pieces, piece: number): number {
    return Math.floor((pieces.starts[piece] ?? 0) / this.#blockGranules) - job.from;
  }

  /** Hands proved bytes to the keeper, or copies them to their blocks. */
  async #take(job: FetchJob, batch: ProvedBatch): Promise<void> {
    const { pieces, slab } = batch;
    const handed: Promise<void>[] = [];
    for (let at = batch.from; at < batch.end; ) {
      const run = this.#wholeBlocks(job, batch, at);
      if (run > at) {
        handed.push(this.#hand(job, batch, at, run));
        at = run;
        continue;
      }
      const piece = batch.order[at] ?? 0;
      const slot = this.#slotOf(job, pieces, piece);
      const from = ((pieces.starts[piece] ?? 0) - (job.from + slot) * this.#blockGranules) * granuleBytes;
      const length = (pieces.lengths[piece] ?? 0) * granuleBytes;
      if (pieceIsProved(batch, at)) {
        const out = pieceOutGranule(batch, at) * granuleBytes;
        slab.out.copy(this.#bufferOf(job, slot), from, out, out + length);
      } else {
        (job.damage[slot] ??= []).push({
          from,
          end: from + length,
          error: this.#damaged(job.from + slot, from, length, batch),
        });
      }
      job.piecesLeft[slot] = (job.piecesLeft[slot] ?? 0) - 1;
      if (job.piecesLeft[slot] === 0) handed.push(this.#deliver(job, slot));
      at += 1;
    }
    await Promise.all(handed);
  }

  /**
   * End of the pieces from number `at` of a batch on that are one block each and lie side by side,
   * on the disk and in the slab; `at` itself when they need a buffer.
   */
  #wholeBlocks(job: FetchJob, batch: ProvedBatch, at: number): number {
    if (this.#options.keeper === undefined) return at;
    const { pieces, order } = batch;
    let end = at;
    for (; end < batch.end && pieceIsProved(batch, end); end += 1) {
      const piece = order[end] ?? 0;
      const slot = this.#slotOf(job, pieces, piece);
      const granules = pieces.lengths[piece] ?? 0;
      const isWhole = granules === this.#blockGranules && job.piecesLeft[slot] === 1 && job.buffers[slot] === undefined;
      const ahead = (end - at) * this.#blockGranules;
      const isNext =
        (pieces.starts[piece] ?? 0) === (pieces.starts[order[at] ?? 0] ?? 0) + ahead &&
        pieceOutGranule(batch, end) === pieceOutGranule(batch, at) + ahead;
      if (!isWhole || !isNext) break;
    }
    return end;
  }

  /** Delivers a run of whole blocks from the slab. */
  async #hand(job: FetchJob, batch: ProvedBatch, at: number, end: number): Promise<void> {
    const first = this.#slotOf(job, batch.pieces, batch.order[at] ?? 0);
    const out = pieceOutGranule(batch, at) * granuleBytes;
    const run = batch.slab.out.subarray(out, out + (end - at) * this.#blockBytes);
    const block = (index: number): Buffer => run.subarray(index * this.#blockBytes, (index + 1) * this.#blockBytes);
    for (let index = 0; index < end - at; index += 1) this.#serve(job.from + first + index, block(index), []);
    const length = Math.min(run.byteLength, this.#options.map.volumeBytes - (job.from + first) * this.#blockBytes);
    const isKept = await this.#options.keeper?.keep((job.from + first) * this.#blockBytes, run.subarray(0, length));
    for (let index = 0; index < end - at; index += 1) {
      this.#settle(job, first + index);
      if (isKept === true) continue;
      const buffer = this.#options.cache.lend();
      block(index).copy(buffer);
      this.#options.cache.keep(job.from + first + index, buffer, "expected");
    }
  }

  /** The buffer of a block, with zeros wherever no piece is going to come. */
  #bufferOf(job: FetchJob, slot: number): Buffer {
    let buffer = job.buffers[slot];
    if (buffer === undefined) {
      buffer = this.#options.cache.lend();
      if (job.granules[slot] !== this.#blockGranules) buffer.fill(0);
      job.buffers[slot] = buffer;
    }
    return buffer;
  }

  #damaged(
    block: number,
    from: number,
    length: number,
    { segment, failure }: Pick<ProvedBatch, "segment" | "failure">,
  ): TidemarkError {
    const { disk, point, map, onDamage } = this.#options;
    const offset = block * this.#blockBytes + from;
    const extent = { offset, length: Math.min(length, map.volumeBytes - offset) };
    const error = chunkDamaged(disk, point, extent.offset, extent.length, segment, failure);
    onDamage(extent, error);
    return error;
  }

  /** Copies a complete block to the reads that wait for it, and keeps it. */
  async #deliver(job: FetchJob, slot: number): Promise<void> {
    const { cache, keeper } = this.#options;
    const block = job.from + slot;
    const bytes = job.buffers[slot];
    const damage = job.damage[slot] ?? [];
    job.piecesLeft[slot] = 0;
    const isServed = this.#serve(block, bytes, damage);
    let isKept = false;
    if (keeper !== undefined && bytes !== undefined && damage.length === 0)
      isKept = await keeper.keep(block * this.#blockBytes, bytes.subarray(0, this.#lengthOf(block)));
    this.#settle(job, slot);
    if (damage.length === 0 && !isKept) cache.keep(block, bytes, isServed ? "served" : "expected");
    else if (bytes !== undefined) cache.giveBack(bytes);
  }

  /**
   * Copies a block to the reads that wait for it, and to those that come before `#settle` unless it is
   * damaged. False when none has waited.
   */
  #serve(block: number, bytes: Buffer | undefined, damage: readonly BlockDamage[]): boolean {
    const wanted = this.#wanted.get(block);
    const waiters = wanted?.waiters ?? [];
    if (wanted !== undefined && damage.length === 0) wanted.bytes = bytes;
    for (const { read, from, into } of waiters) {
      const met = damage.find((part) => part.from < from + into.byteLength && from < part.end);
      if (bytes === undefined) into.fill(0);
      else if (met === undefined) bytes.copy(into, 0, from, from + into.byteLength);
      read.arrived(met?.error);
    }
    return waiters.length > 0;
  }

  /** Ends what a job owes of a block. */
  #settle(job: FetchJob, slot: number): void {
    this.#wanted.delete(job.from + slot);
    job.isOwed[slot] = 0;
    if (job.reservedBlocks > 0) this.#reserve(job, job.reservedBlocks - 1);
  }

  /** Fails the blocks of `job` that have not been delivered. */
  #fail(job: FetchJob, error: TidemarkError): void {
    const isDamage = isUnreadableOrGone(error);
    for (let block = job.from; block < job.end; block += 1) {
      const wanted = this.#wanted.get(block);
      const slot = block - job.from;
      // A delivered block may be wanted again by another read already.
      if (job.isOwed[slot] !== 1 || wanted === undefined) continue;
      const buffer = job.buffers[slot];
      if (buffer !== undefined) this.#options.cache.giveBack(buffer);
      if (isDamage && job.end - job.from > 1 && wanted.waiters.length > 0) {
        wanted.state = "alone";
        wanted.ranges = [];
        this.#queue.add(block);
        continue;
      }
      this.#wanted.delete(block);
      const object = error.detail["object"];
      const segment = typeof object === "string" ? object : "the store";
      const told =
        isDamage && wanted.waiters.length > 0
          ? this.#damaged(block, 0, this.#blockBytes, { segment, failure: error })
          : error;
      for (const { read } of wanted.waiters) read.arrived(told);
    }
  }
}
