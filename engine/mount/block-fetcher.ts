/**
 * Brings blocks of a point from the store into the cache: for readers who wait for them, and ahead of those who read on.
 *
 *     request ─► queue ─► job: neighbours together ─► map ─► ranges of segments ─► crew: proved ─► cache, and copied to who waits
 *     ahead ───────────►
 *
 * A block is fetched once however many wait for it, and what they wait for is copied to them before anything else can happen to the
 * block. As many jobs run as there are slabs, but one slab stays free of what nobody has asked for yet. Blocks that wait in the queue hold no memory.
 *
 * Damage costs those who read the damaged granules an error, and nobody else anything: when a job for many blocks meets a map
 * that it cannot read, each block that somebody waits for is tried by itself. What is damaged or could not be fetched is not kept,
 * so the next reader tries again.
 */
import assert from "node:assert/strict";
import { hasCode, TidemarkError } from "../errors.ts";
import { granuleBytes } from "../limits.ts";
import { type Pieces, pieceIsZero } from "../map/point-map.ts";
import type { Crew } from "../pipeline/crew.ts";
import { chunkDamaged, PointReader, type ProvedBatch, pieceIsProved, pieceOutGranule } from "../recovery/point-reader.ts";
import type { Store } from "../store.ts";
import type { Extent } from "../volume.ts";
import type { BlockCache } from "./block-cache.ts";
import type { MountedMap } from "./mounted-map.ts";

/** How much of a slab a range that is fetched ahead may be expected to fill. */
const slabFill = 0.95;

export interface BlockFetcherOptions {
  readonly store: Store;
  readonly crew: Crew;
  readonly map: MountedMap;
  readonly cache: BlockCache;
  /** For messages: the disk, and the point's sequence number. */
  readonly disk: string;
  readonly point: string;
  readonly signal: AbortSignal;
  /** Told of bytes of the point that cannot be read back, each time that they are met. */
  readonly onDamage: (extent: Extent, error: TidemarkError) => void;
  /** A job that was begun by `ahead` is done: there is room for another. */
  readonly onAheadDone: () => void;
}

/** A read that waits for blocks: settles when all of it has come, or, when all has come or failed, fails. */
export class PendingRead {
  readonly done: Promise<void>;
  #left = 1;
  #failure: TidemarkError | undefined;
  #settle: (failure: TidemarkError | undefined) => void = () => undefined;

  constructor() {
    this.done = new Promise((resolve, reject) => {
      this.#settle = (failure) => {
        if (failure === undefined) resolve();
        else reject(failure);
      };
    });
  }

  /** One more to wait for. */
  expect(): void {
    this.#left += 1;
  }

  /** One has come, or is not going to. The reader itself calls this once too, when it has asked for everything. */
  arrived(failure?: TidemarkError): void {
    this.#failure ??= failure;
    this.#left -= 1;
    if (this.#left === 0) this.#settle(this.#failure);
  }
}

interface Waiter {
  readonly read: PendingRead;
  /** Where in the block its bytes begin. */
  readonly from: number;
  readonly into: Uint8Array;
}

/** A block that is wanted. `alone`: queued, and not to be fetched together with others. */
interface Wanted {
  state: "queued" | "alone" | "running";
  readonly waiters: Waiter[];
}

interface Job {
  /** Blocks [from, end). */
  readonly from: number;
  readonly end: number;
  /** Of each block: its buffer, if it needs one; pieces to come; what of it is damaged. */
  readonly buffers: (Buffer | undefined)[];
  readonly piecesLeft: Uint32Array;
  readonly damage: (Damage[] | undefined)[];
  /** 1 where the block has been handed on. */
  readonly isDelivered: Uint8Array;
}

/** Bytes [from, end) of a block, and what is wrong with them. */
interface Damage {
  readonly from: number;
  readonly end: number;
  readonly error: TidemarkError;
}

export class BlockFetcher {
  readonly #options: BlockFetcherOptions;
  readonly #reader: PointReader;
  readonly #blockBytes: number;
  readonly #blockGranules: number;
  readonly #jobBlocksMax: number;
  readonly #jobsMax: number;
  readonly #wanted = new Map<number, Wanted>();
  /** Blocks in the state `queued` or `alone`, in the order in which they were asked for. */
  readonly #queue = new Set<number>();
  readonly #jobs = new Set<Promise<void>>();
  #aheadJobs = 0;
  /** Plain bytes that have come of what was fetched. */
  #plainBytes = 0;

  constructor(options: BlockFetcherOptions) {
    const { store, crew, cache, signal } = options;
    const { geometry } = crew.fetches.shared;
    this.#options = options;
    this.#reader = new PointReader({ store, crew, signal });
    this.#blockBytes = cache.blockBytes;
    this.#blockGranules = cache.blockBytes / granuleBytes;
    this.#jobsMax = crew.fetches.slabCount;
    // What a slab decompresses to. All jobs together leave half of the cache to what is kept.
    const jobBytesMax = Math.min(geometry.outBytes ?? geometry.slabBytes, cache.capacityBytes / (2 * this.#jobsMax));
    this.#jobBlocksMax = Math.max(1, Math.floor(jobBytesMax / cache.blockBytes));
  }

  /** Bytes read from the store. */
  get bytesFetched(): number {
    return this.#reader.bytesRead;
  }

  /** The longest range that is fetched together. */
  get jobBytesMax(): number {
    return this.#jobBlocksMax * this.#blockBytes;
  }

  /** Has bytes of a block that is not cached copied into `into`, from its byte `from` on. It is fetched from the next `start` on. */
  request(block: number, from: number, into: Uint8Array, read: PendingRead): void {
    let wanted = this.#wanted.get(block);
    if (wanted === undefined) {
      wanted = { state: "queued", waiters: [] };
      this.#wanted.set(block, wanted);
      this.#queue.add(block);
    }
    read.expect();
    wanted.waiters.push({ read, from, into });
  }

  /** Begins as many jobs for what has been asked for as there may be. */
  start(): void {
    for (const block of this.#queue) {
      if (this.#jobs.size >= this.#jobsMax) return;
      let end = block + 1;
      if (this.#wanted.get(block)?.state === "queued") {
        while (end - block < this.#jobBlocksMax && this.#wanted.get(end)?.state === "queued") end += 1;
      }
      this.#launch(block, end, false);
    }
  }

  /**
   * Begins a job for blocks of [from, end) that nobody has asked for yet, if there may be one. Returns the block up to which everything is
   * cached or on its way now.
   */
  ahead(from: number, end: number): number {
    const { cache } = this.#options;
    let first = from;
    while (first < end && (cache.has(first) || this.#wanted.has(first))) first += 1;
    const isBusy = this.#queue.size > 0 || this.#aheadJobs >= this.#jobsMax - 1 || this.#jobs.size >= this.#jobsMax;
    if (first === end || isBusy) return first;
    const blocksMax = this.#aheadBlocksMax();
    let last = first;
    while (last < end && last - first < blocksMax && !cache.has(last) && !this.#wanted.has(last)) {
      this.#wanted.set(last, { state: "running", waiters: [] });
      last += 1;
    }
    this.#launch(first, last, true);
    return last;
  }

  /**
   * Blocks that, going by what has been fetched so far, lie in one range that a slab has room for: a job for a little more would end with a second
   * range, as slow as the first and nearly empty.
   */
  #aheadBlocksMax(): number {
    const { slabBytes } = this.#options.crew.fetches.shared.geometry;
    const plainPerStored = this.#plainBytes === 0 ? 1 : this.#plainBytes / this.bytesFetched;
    const blocks = Math.floor((slabBytes * slabFill * plainPerStored) / this.#blockBytes);
    return Math.max(1, Math.min(blocks, this.#jobBlocksMax));
  }

  /** Waits for what is under way, which the signal ends. Nothing may be asked for any more. */
  async close(): Promise<void> {
    while (this.#jobs.size > 0) await Promise.all(this.#jobs);
  }

  #launch(from: number, end: number, isAhead: boolean): void {
    for (let block = from; block < end; block += 1) {
      this.#queue.delete(block);
      const wanted = this.#wanted.get(block);
      if (wanted !== undefined) wanted.state = "running";
    }
    const count = end - from;
    const job: Job = {
      from,
      end,
      buffers: Array.from({ length: count }, () => undefined),
      piecesLeft: new Uint32Array(count),
      damage: Array.from({ length: count }, () => undefined),
      isDelivered: new Uint8Array(count),
    };
    if (isAhead) this.#aheadJobs += 1;
    const work = this.#run(job).finally(() => {
      this.#jobs.delete(work);
      if (isAhead) this.#aheadJobs -= 1;
      this.start();
      if (isAhead) this.#options.onAheadDone();
    });
    this.#jobs.add(work);
  }

  /** Never rejects for what the store or the point is like: those who wait are told. */
  async #run(job: Job): Promise<void> {
    const { map } = this.#options;
    try {
      const pieces = await map.pieces(job.from * this.#blockGranules, Math.min(job.end * this.#blockGranules, map.granules));
      const data = this.#prepare(job, pieces);
      for (let slot = 0; slot < job.end - job.from; slot += 1) if (job.piecesLeft[slot] === 0) this.#deliver(job, slot);
      await this.#reader.readPieces(pieces, data, (batch) => {
        this.#take(job, batch);
        return Promise.resolve();
      });
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      this.#fail(job, error);
    }
  }

  /** Gets buffers for the blocks that hold data, with zeros wherever no piece is going to come. Returns the pieces that hold data. */
  #prepare(job: Job, pieces: Pieces): readonly number[] {
    const data: number[] = [];
    const granules = new Uint32Array(job.end - job.from);
    for (let piece = 0; piece < pieces.count; piece += 1) {
      if (pieceIsZero(pieces, piece)) continue;
      data.push(piece);
      const slot = this.#slotOf(job, pieces, piece);
      job.piecesLeft[slot] = (job.piecesLeft[slot] ?? 0) + 1;
      granules[slot] = (granules[slot] ?? 0) + (pieces.lengths[piece] ?? 0);
    }
    for (let slot = 0; slot < granules.length; slot += 1) {
      if (granules[slot] === 0) continue;
      const buffer = this.#options.cache.lend();
      if (granules[slot] !== this.#blockGranules) buffer.fill(0);
      job.buffers[slot] = buffer;
    }
    return data;
  }

  /** The block that holds `piece`, counted from the job's first: a chunk never crosses a block. */
  #slotOf(job: Job, pieces: Pieces, piece: number): number {
    return Math.floor((pieces.starts[piece] ?? 0) / this.#blockGranules) - job.from;
  }

  /** Copies proved bytes to their blocks. */
  #take(job: Job, batch: ProvedBatch): void {
    const { pieces, slab } = batch;
    for (let at = batch.from; at < batch.end; at += 1) {
      const piece = batch.order[at] ?? 0;
      const slot = this.#slotOf(job, pieces, piece);
      const from = ((pieces.starts[piece] ?? 0) - (job.from + slot) * this.#blockGranules) * granuleBytes;
      const length = (pieces.lengths[piece] ?? 0) * granuleBytes;
      if (pieceIsProved(batch, at)) {
        const out = pieceOutGranule(batch, at) * granuleBytes;
        this.#plainBytes += length;
        const buffer = job.buffers[slot];
        assert(buffer !== undefined, "a block of which pieces come has a buffer");
        slab.out.copy(buffer, from, out, out + length);
      } else {
        (job.damage[slot] ??= []).push({ from, end: from + length, error: this.#damaged(job.from + slot, from, length, batch) });
      }
      job.piecesLeft[slot] = (job.piecesLeft[slot] ?? 0) - 1;
      if (job.piecesLeft[slot] === 0) this.#deliver(job, slot);
    }
  }

  #damaged(block: number, from: number, length: number, { segment, failure }: Pick<ProvedBatch, "segment" | "failure">): TidemarkError {
    const { disk, point, map, onDamage } = this.#options;
    const offset = block * this.#blockBytes + from;
    const extent = { offset, length: Math.min(length, map.volumeBytes - offset) };
    const error = chunkDamaged(disk, point, extent.offset, extent.length, segment, failure);
    onDamage(extent, error);
    return error;
  }

  /** Hands a block that is all there to those who wait for it, and keeps it. */
  #deliver(job: Job, slot: number): void {
    const { cache } = this.#options;
    const block = job.from + slot;
    const bytes = job.buffers[slot];
    const damage = job.damage[slot] ?? [];
    const waiters = this.#wanted.get(block)?.waiters ?? [];
    this.#wanted.delete(block);
    job.isDelivered[slot] = 1;
    for (const { read, from, into } of waiters) {
      const met = damage.find((part) => part.from < from + into.byteLength && from < part.end);
      if (bytes === undefined) into.fill(0);
      else if (met === undefined) bytes.copy(into, 0, from, from + into.byteLength);
      read.arrived(met?.error);
    }
    if (damage.length === 0) cache.keep(block, bytes);
    else if (bytes !== undefined) cache.giveBack(bytes);
  }

  /** Gives up what of `job` has not been delivered. */
  #fail(job: Job, error: TidemarkError): void {
    const isDamage = hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND", "FORMAT_UNSUPPORTED");
    for (let block = job.from; block < job.end; block += 1) {
      const wanted = this.#wanted.get(block);
      const slot = block - job.from;
      // Once it is, somebody else may want it again already.
      if (job.isDelivered[slot] === 1 || wanted === undefined) continue;
      const buffer = job.buffers[slot];
      if (buffer !== undefined) this.#options.cache.giveBack(buffer);
      if (isDamage && job.end - job.from > 1 && wanted.waiters.length > 0) {
        wanted.state = "alone";
        this.#queue.add(block);
        continue;
      }
      this.#wanted.delete(block);
      const object = error.detail["object"];
      const segment = typeof object === "string" ? object : "the store";
      const told = isDamage && wanted.waiters.length > 0 ? this.#damaged(block, 0, this.#blockBytes, { segment, failure: error }) : error;
      for (const { read } of wanted.waiters) read.arrived(told);
    }
  }
}
