/**
 * Capture: one cycle's way from the volume to durable frames. One loop owns its state:
 *
 *     plan ─ lease slab ─ parent's content ─► [ read ─ scan ─ look up ─ compress ] ─► pack, in order ─ release slab
 *
 * The steps in brackets run for all slabs at once; everything else happens in the loop, in the
 * order of the volume. So map entries come out sorted, the same input gives the same frames, and
 * only leased slabs wait in a queue.
 *
 * Memory: slabs (see `scanGeometry`), lanes × 4 MiB, one leaf.
 */
import assert from "node:assert/strict";
import { setImmediate as nextTurn, setTimeout as sleep } from "node:timers/promises";
import type { FingerprintWriter } from "../disk/source/fingerprints.ts";
import { namedVolume } from "../disk/source/named-volume.ts";
import { throwIfAborted } from "../errors.ts";
import { digestBytes, fingerprintBytes, granuleBytes } from "../limits.ts";
import { storedLength, storedLz4Flag } from "../store/format/frame.ts";
import type { Extent, Volume } from "../volume.ts";
import { type Baseline, changedBaseline } from "./baseline.ts";
import type { Pace, PaceDecision } from "./pace.ts";
import { Packer, type PointContent, type RunParts, type RunStatistics } from "./packer.ts";
import type { Slab } from "./slabs.ts";
import type { FingerprintSeed } from "./wasm-kernels.ts";
import type { WorkerPool } from "./worker-pool.ts";
import type { PlannedRead, ScanResult, SlabSpan } from "./worker-tasks.ts";

/**
 * While fewer than one chunk in so many is known, the scan compresses: that saves a task a slab, and
 * a chunk is compressed while it lies in the core's cache.
 */
const knownShare = 16;

/** What is captured. */
export interface CaptureSource {
  readonly volume: Volume;
  readonly volumeBytes: number;
  readonly baseline: Baseline;
  /** Seed of the fingerprints that the baseline tells and `prints` receives. */
  readonly seed: FingerprintSeed;
  /** Receives the fingerprints of what was read; it may give up, which `capture` does not mind. */
  readonly prints: Pick<FingerprintWriter, "put" | "drain">;
  /**
   * `whole`: what the volume does not name as allocated is zeros. `named`: what it does not name is
   * as the parent has it, and is not looked at.
   */
  readonly scope: "whole" | "named";
  /** Of a disk that clients use meanwhile. Absent: as fast as slabs can be had. */
  readonly pace?: Pace | undefined;
}

export interface CaptureOptions extends CaptureSource, RunParts {
  readonly blockBytes: number;
  readonly workerPool: WorkerPool;
}

/** What a slab holds: spans in ascending order, and how they are read. */
interface Plan {
  readonly spans: PlannedSpan[];
  readonly reads: (PlannedRead & { length: number })[];
  expectedCount: number;
}

/** A block of the volume, or the part of one that is looked at. */
interface PlannedSpan extends SlabSpan {
  /** Its first granule in the volume. */
  readonly first: number;
}

interface Work {
  readonly slab: Slab;
  readonly plan: Plan;
  readonly scanned: Promise<ScanResult>;
}

/**
 * Ships what differs from the baseline. When it returns, everything has been packed; the last
 * frames may still be on their way (`Lanes.flush`).
 */
export async function capture(options: CaptureOptions): Promise<RunStatistics> {
  return await new Capture(options).run();
}

/** Packing as much takes up to 1 ms. */
const heldBytesMax: number = 256 * 1024;
const atOnce: PaceDecision = { waitMs: 0, batchBytes: Infinity };
const nothingKept: CaptureSource["prints"] = { put: () => undefined, drain: () => Promise.resolve() };

/** A volume as the content of a point. */
export function captured(
  source: CaptureSource,
  target: Pick<CaptureOptions, "blockBytes" | "workerPool">,
): PointContent {
  const { volume, volumeBytes } = source;
  return {
    volumeBytes,
    fill: async (parts) => await capture({ ...source, ...target, ...parts }),
    refill: async (parts, extents) =>
      await capture({
        ...source,
        ...target,
        ...parts,
        volume: namedVolume(volume, extents, volumeBytes),
        baseline: changedBaseline,
        scope: "named",
        prints: nothingKept,
        pace: undefined,
      }),
  };
}

class Capture {
  readonly #options: CaptureOptions;
  readonly #packer: Packer;
  readonly #planner: Planner;
  /** Packed since clients of the disk were last answered. */
  #heldBytes = 0;
  /** Of the volume: read, or being read. */
  #begunBytes = 0;
  /** Chunks of the last slabs, and those of them that the vault held. Halved with each slab. */
  #lately = { chunks: 0, known: 0 };

  constructor(options: CaptureOptions) {
    this.#options = options;
    this.#packer = new Packer(options);
    this.#planner = new Planner(options);
  }

  async run(): Promise<RunStatistics> {
    const { workerPool, pace, signal } = this.#options;
    const { slabs } = workerPool;
    const queue: Work[] = [];
    try {
      for (let planned = true; planned || queue.length > 0; ) {
        throwIfAborted(signal);
        while (planned) {
          const { waitMs, batchBytes } = pace?.next(this.#begunBytes, queue.length) ?? atOnce;
          if (waitMs > 0 && queue.length > 0) break;
          if (waitMs > 0) {
            await sleep(waitMs);
            throwIfAborted(signal);
            continue;
          }
          // Holding none, wait for a lease; holding some, work on instead, so that operations that
          // share the slabs never wait for each other.
          const slab = queue.length === 0 ? await slabs.acquire(signal) : slabs.tryAcquire();
          if (slab === undefined) break;
          const work = await this.#start(slab, batchBytes);
          planned = work !== undefined;
          if (work !== undefined) queue.push(work);
        }
        const [work] = queue;
        if (work === undefined) continue;
        await this.#pack(work, await work.scanned);
        queue.shift();
        slabs.release(work.slab);
        await this.#options.betweenBatches?.();
      }
    } finally {
      // A slab goes back only when no thread can write to it any more.
      for (const { slab, scanned } of queue) {
        await Promise.allSettled([scanned]);
        slabs.release(slab);
      }
      await this.#planner.close();
    }
    return this.#packer.statistics;
  }

  /**
   * Plans blocks into a leased slab and sets them going. Undefined, and the slab given back, when
   * there are no more.
   */
  async #start(slab: Slab, batchBytes: number): Promise<Work | undefined> {
    const { slabs } = this.#options.workerPool;
    let plan: Plan | undefined;
    try {
      plan = await this.#planner.next(slab, batchBytes);
    } finally {
      if (plan === undefined) slabs.release(slab);
    }
    if (plan === undefined) return undefined;
    for (const read of plan.reads) this.#begunBytes += read.length;
    const scanned = this.#scan(slab, plan);
    scanned.catch(() => undefined); // awaited by the loop, or settled when it ends
    return { slab, plan, scanned };
  }

  async #scan(slab: Slab, plan: Plan): Promise<ScanResult> {
    const { volume, workerPool, seed } = this.#options;
    markPresent(slab, plan);
    const { expectedCount, reads } = plan;
    const spans = plan.spans.map(({ at, granules }) => ({ at, granules }));
    const compresses = this.#lately.known * knownShare < this.#lately.chunks;
    const task = { slab: slab.number, spans, expectedCount, seed, scope: this.#options.scope, compresses };
    const { descriptor } = volume;
    let result: ScanResult | undefined;
    if (descriptor !== undefined) {
      const isFinal = volume.amend === undefined;
      const scan = workerPool.scan({ ...task, compresses: compresses && isFinal, source: { descriptor, reads } });
      result = await (volume.reading?.(scan) ?? scan);
    }
    // Where a worker's read failed, the volume's own says why, or gets through.
    if (result?.isRead !== true) await readAll(volume, reads, slab);
    else if (!(await amendAll(volume, reads, slab))) return await this.#compress(slab, result);
    return await this.#compress(slab, await workerPool.scan(task));
  }

  /** Compresses those of a slab's chunks that the vault does not hold and the scan has left plain. */
  async #compress(slab: Slab, result: ScanResult): Promise<ScanResult> {
    let wanted = 0;
    for (let chunk = 0; chunk < result.chunkCount; chunk += 1) {
      if (slab.chunks.state[chunk] !== 1 || this.#packer.find(slab.chunks.digestWords, chunk)) continue;
      slab.chunks.state[chunk] = 2;
      wanted += 1;
    }
    if (wanted > 0) await this.#options.workerPool.compress({ slab: slab.number, chunkCount: result.chunkCount });
    return result;
  }

  /** Ends the event loop's turn now and then; `plainBytes` are packed next. */
  async #letClientsBeAnswered(plainBytes: number): Promise<void> {
    this.#heldBytes += plainBytes;
    if (this.#heldBytes < heldBytesMax) return;
    this.#heldBytes = 0;
    await nextTurn();
  }

  /** Turns a slab's chunks into map entries, packing those that the vault does not hold. */
  async #pack(work: Work, result: ScanResult): Promise<void> {
    const { run, lanes, prints } = this.#options;
    const { slab, plan } = work;
    const { chunks } = slab;
    const packer = this.#packer;
    const { place, statistics } = packer;
    const lately = { chunks: this.#lately.chunks / 2, known: this.#lately.known / 2 };
    this.#lately = lately;
    let index = 0;
    for (let chunk = 0; chunk < result.chunkCount; chunk += 1) {
      const from = chunks.start[chunk] ?? 0;
      const granules = chunks.granules[chunk] ?? 0;
      let span = spanAt(plan, index);
      while (from >= span.at + span.granules) span = spanAt(plan, ++index);
      const start = span.first + from - span.at;
      if (chunks.state[chunk] === 0) {
        run.appendZero(start, granules);
        continue;
      }
      const plainBytes = granules * granuleBytes;
      if (this.#options.pace !== undefined) await this.#letClientsBeAnswered(plainBytes);
      lately.chunks += 1;
      // Looked up again: the same chunk may have been packed since its slab was scanned.
      if (packer.refer(chunks, chunk, granules)) lately.known += 1;
      else {
        // In state 1 it was known when it was scanned and has been forgotten since: it goes out
        // plain.
        const packed = chunks.state[chunk] === 2 ? (chunks.storedWords[chunk] ?? plainBytes) : plainBytes;
        const at = from * granuleBytes;
        const payload = (packed >= storedLz4Flag ? slab.out : slab.data).subarray(at, at + storedLength(packed));
        if (!lanes.hasRoom(payload.byteLength)) await lanes.nextFrame();
        packer.pack(payload, packed, chunks, chunk, start, granules);
      }
      const { segment, offset, storedWord } = place;
      const name = packer.nameOf(segment);
      run.append(start, granules, name, offset, storedWord, 0, granules, chunks.digests, chunk * digestBytes);
    }
    for (const { first, at, granules } of plan.spans) {
      prints.put(first, slab.newPrints.subarray(at * fingerprintBytes, (at + granules) * fingerprintBytes));
    }
    await run.drain();
    await prints.drain();
    statistics.changedBytes += result.changedGranules * granuleBytes;
    statistics.zeroBytes += result.zeroedGranules * granuleBytes;
    for (const read of plan.reads) statistics.scannedBytes += read.length;
    const last = plan.spans.at(-1);
    if (last !== undefined)
      this.#options.onProgress(Math.min(this.#options.volumeBytes, (last.first + last.granules) * granuleBytes));
  }
}

function spanAt({ spans }: Plan, index: number): PlannedSpan {
  const span = spans[index];
  assert(span !== undefined, "every chunk lies in a span");
  return span;
}

/**
 * All of the reads settle before the slab is looked at or given back: one that is under way still
 * writes to it.
 */
async function readAll(volume: Volume, reads: readonly PlannedRead[], slab: Slab): Promise<void> {
  const outcomes = await Promise.allSettled(
    reads.map(async ({ offset, length, at }) => {
      await volume.read(offset, slab.data.subarray(at, at + length));
    }),
  );
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
}

/** Puts right what worker threads have read. True when that changed anything. */
async function amendAll(volume: Volume, reads: readonly PlannedRead[], slab: Slab): Promise<boolean> {
  if (volume.amend === undefined) return false;
  let isAmended = false;
  for (const { offset, length, at } of reads) {
    const amended = volume.amend(offset, slab.data.subarray(at, at + length));
    if (typeof amended === "boolean" ? amended : await amended) isAmended = true;
  }
  return isAmended;
}

/**
 * Notes which granules are read, and zeros what a read leaves of its first and last granule: the
 * volume's end, extents that no granule bounds.
 */
function markPresent(slab: Slab, plan: Plan): void {
  slab.present.fill(0);
  for (const { at, length } of plan.reads) {
    const first = Math.floor(at / granuleBytes);
    const end = Math.ceil((at + length) / granuleBytes);
    // A granule that an earlier read shares has been cleared around already.
    if (slab.present[first] === 0) slab.data.fill(0, first * granuleBytes, at);
    slab.data.fill(0, at + length, end * granuleBytes);
    slab.present.fill(1, first, end);
  }
}

/** A span that has no place in a slab yet, and what of it is read. */
interface NextSpan {
  readonly first: number;
  readonly granules: number;
  readonly ranges: readonly Extent[];
}

/**
 * Chooses what to look at: the blocks in which the volume may hold something, and those in which
 * the parent did; or, where only what the volume names is looked at, of each block the part between
 * the first and the last granule named, so that many fit in a slab.
 */
class Planner {
  readonly #options: CaptureOptions;
  readonly #blockBytes: number;
  readonly #isDense: boolean;
  readonly #extents: AsyncIterator<Extent>;
  #extent: Extent | undefined;
  #next: NextSpan | undefined;
  #started = false;
  #block = 0;
  #held = -1;

  constructor(options: CaptureOptions) {
    this.#options = options;
    this.#blockBytes = options.blockBytes;
    this.#isDense = options.scope === "named" && !options.baseline.blockwise;
    this.#extents = (options.volume.allocated?.(options.volumeBytes) ?? wholeVolume(options.volumeBytes))[
      Symbol.asyncIterator
    ]();
  }

  async close(): Promise<void> {
    await this.#extents.return?.();
  }

  /**
   * Plans the next spans into `slab`, as many as it holds and `batchBytes` allow, but at least one,
   * and fills its columns of the parent's content.
   */
  async next(slab: Slab, batchBytes: number): Promise<Plan | undefined> {
    const { baseline, workerPool } = this.#options;
    const capacity = Math.min(workerPool.slabs.shared.geometry.slabBytes, batchBytes) / granuleBytes;
    const plan: Plan = { spans: [], reads: [], expectedCount: 0 };
    slab.oldPrints.fill(0);
    for (let at = 0; ; ) {
      this.#next ??= await this.#nextSpan();
      if (this.#next === undefined || (at > 0 && at + this.#next.granules > capacity)) break;
      const { first, granules, ranges } = this.#next;
      this.#next = undefined;
      plan.spans.push({ first, at, granules });
      for (const { offset, length } of ranges)
        planRead(plan, { offset, length, at: at * granuleBytes + offset - first * granuleBytes });
      plan.expectedCount = await baseline.expect(first, granules, slab, at, plan.expectedCount);
      at += granules;
    }
    return plan.spans.length === 0 ? undefined : plan;
  }

  async #nextSpan(): Promise<NextSpan | undefined> {
    const { volumeBytes } = this.#options;
    const block = await this.#nextBlock();
    const offset = block * this.#blockBytes;
    if (offset >= volumeBytes) return undefined;
    this.#block = block + 1;
    const end = Math.min(offset + this.#blockBytes, volumeBytes);
    const ranges = await this.#rangesIn(offset, end);
    const named = this.#isDense
      ? { from: ranges[0]?.offset ?? offset, to: endOf(ranges.at(-1)) ?? end }
      : { from: offset, to: end };
    const first = Math.floor(named.from / granuleBytes);
    return { first, granules: Math.ceil(named.to / granuleBytes) - first, ranges };
  }

  /**
   * The next block in which the volume or the parent may hold anything; Infinity after the last.
   */
  async #nextBlock(): Promise<number> {
    if (!this.#started) await this.#nextExtent(0);
    this.#started = true;
    if (this.#held < this.#block) this.#held = await this.#options.baseline.nextHeld(this.#block);
    const filled =
      this.#extent === undefined ? Infinity : Math.max(this.#block, Math.floor(this.#extent.offset / this.#blockBytes));
    return Math.min(this.#held, filled);
  }

  async #nextExtent(atLeast: number): Promise<void> {
    do {
      const next = await this.#extents.next();
      this.#extent = next.done === true ? undefined : next.value;
      assert(
        this.#extent === undefined || this.#extent.offset >= atLeast,
        "a volume's extents are sorted and disjoint",
      );
    } while (this.#extent?.length === 0);
  }

  /** What of [offset, end) the volume may hold, in ascending order. */
  async #rangesIn(offset: number, end: number): Promise<readonly Extent[]> {
    const ranges: Extent[] = [];
    while (this.#extent !== undefined && this.#extent.offset < end) {
      const extentEnd = this.#extent.offset + this.#extent.length;
      const from = Math.max(this.#extent.offset, offset);
      const to = Math.min(extentEnd, end);
      if (to > from) ranges.push({ offset: from, length: to - from });
      if (extentEnd > end) break;
      await this.#nextExtent(extentEnd);
    }
    return ranges;
  }
}

function endOf(range: Extent | undefined): number | undefined {
  return range === undefined ? undefined : range.offset + range.length;
}

/** Adds a read; neighbours in volume and slab become one. */
function planRead({ reads }: Plan, read: PlannedRead): void {
  const last = reads.at(-1);
  if (last !== undefined && last.offset + last.length === read.offset && last.at + last.length === read.at)
    last.length += read.length;
  else reads.push({ ...read });
}

async function* wholeVolume(volumeBytes: number): AsyncGenerator<Extent> {
  if (volumeBytes > 0) yield await Promise.resolve({ offset: 0, length: volumeBytes });
}
