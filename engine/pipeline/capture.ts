/**
 * One cycle's way from the volume to durable frames. One loop owns its state:
 *
 *     plan ─ lease slab ─ parent's content ─► [ read ─ scan ─ look up ─ compress ] ─► pack, in order ─ release slab
 *
 * The bracket runs for as many slabs at once as there are slabs; everything else happens in the loop, in the order of the volume.
 * So map entries come out sorted, frames are the same for the same input, and nothing waits in any queue but leased slabs.
 *
 * Memory: slabs (see `scanGeometry`), lanes × 4 MiB, one leaf.
 */
import assert from "node:assert/strict";
import { throwIfAborted } from "../errors.ts";
import { storedLength, storedLz4Flag } from "../format/frame.ts";
import { fingerprintBytes, granuleBytes } from "../limits.ts";
import type { RunWriter } from "../map/run-writer.ts";
import type { FingerprintWriter } from "../source/fingerprints.ts";
import type { Extent, Volume } from "../volume.ts";
import type { Baseline } from "./baseline.ts";
import type { Catalog } from "./catalog.ts";
import type { Crew } from "./crew.ts";
import type { ChunkPlace } from "./dedup-index.ts";
import type { Lanes } from "./lanes.ts";
import type { Slab } from "./slabs.ts";
import type { FingerprintSeed } from "./wasm-kernels.ts";
import type { PlannedRead, ScanResult } from "./worker.ts";

export interface CaptureOptions {
  readonly volume: Volume;
  readonly volumeBytes: number;
  readonly baseline: Baseline;
  readonly blockBytes: number;
  readonly crew: Crew;
  /** Seed of the fingerprints that the baseline tells and `prints` receives. */
  readonly seed: FingerprintSeed;
  readonly catalog: Catalog;
  readonly lanes: Lanes;
  readonly run: RunWriter;
  /** Receives the fingerprints of what was read; it may give up, which `capture` does not mind. */
  readonly prints: Pick<FingerprintWriter, "put" | "drain">;
  /** Receives the segments that the map entries refer to. */
  readonly references: Set<number>;
  /**
   * `whole`: what the volume does not name as allocated is zeros. `named`: what it does not name is as the parent has it, and is
   * not looked at.
   */
  readonly scope: "whole" | "named";
  readonly onProgress: (doneBytes: number) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface CaptureStatistics {
  scannedBytes: number;
  changedBytes: number;
  zeroBytes: number;
  dedupedBytes: number;
  newBytes: number;
}

/** A slab's blocks in ascending order, and how they are read. */
interface Plan {
  readonly blocks: number[];
  /** Granules of each block. */
  readonly blockGranules: number[];
  readonly reads: (PlannedRead & { length: number })[];
  expectedCount: number;
}

interface Work {
  readonly slab: Slab;
  readonly plan: Plan;
  readonly scanned: Promise<ScanResult>;
}

/**
 * Ships what differs from the baseline. When it returns, everything has been packed; the last frames may still be on their way
 * (`Lanes.flush`).
 */
export async function capture(options: CaptureOptions): Promise<CaptureStatistics> {
  return await new Capture(options).run();
}

class Capture {
  readonly #options: CaptureOptions;
  readonly #blockGranules: number;
  readonly #statistics: CaptureStatistics = { scannedBytes: 0, changedBytes: 0, zeroBytes: 0, dedupedBytes: 0, newBytes: 0 };
  readonly #place: ChunkPlace = { segment: 0, offset: 0, storedWord: 0 };
  readonly #planner: Planner;

  constructor(options: CaptureOptions) {
    this.#options = options;
    this.#blockGranules = options.blockBytes / granuleBytes;
    this.#planner = new Planner(options);
  }

  async run(): Promise<CaptureStatistics> {
    const { crew, signal } = this.#options;
    const { slabs } = crew;
    const queue: Work[] = [];
    try {
      for (let planned = true; planned || queue.length > 0; ) {
        throwIfAborted(signal);
        while (planned) {
          // Holding none, wait for a lease; holding some, work on instead, so that operations that share the slabs never wait for
          // each other.
          const slab = queue.length === 0 ? await slabs.acquire(signal) : slabs.tryAcquire();
          if (slab === undefined) break;
          const work = await this.#start(slab);
          planned = work !== undefined;
          if (work !== undefined) queue.push(work);
        }
        const [work] = queue;
        if (work === undefined) continue;
        await this.#pack(work, await work.scanned);
        queue.shift();
        slabs.release(work.slab);
      }
    } finally {
      // A slab goes back only when no thread can write to it any more.
      for (const { slab, scanned } of queue) {
        await Promise.allSettled([scanned]);
        slabs.release(slab);
      }
      await this.#planner.close();
    }
    return this.#statistics;
  }

  /** Plans blocks into a leased slab and sets them going. Undefined, and the slab given back, when there are no more. */
  async #start(slab: Slab): Promise<Work | undefined> {
    const { slabs } = this.#options.crew;
    let plan: Plan | undefined;
    try {
      plan = await this.#planner.next(slab);
    } finally {
      if (plan === undefined) slabs.release(slab);
    }
    if (plan === undefined) return undefined;
    const scanned = this.#scan(slab, plan);
    scanned.catch(() => undefined); // awaited by the loop, or settled when it ends
    return { slab, plan, scanned };
  }

  async #scan(slab: Slab, plan: Plan): Promise<ScanResult> {
    const { volume, crew, seed } = this.#options;
    markPresent(slab, plan);
    const { blockGranules, expectedCount, reads } = plan;
    const task = { slab: slab.number, blockGranules, expectedCount, seed, scope: this.#options.scope };
    const { descriptor } = volume;
    let result: ScanResult | undefined;
    if (descriptor !== undefined) result = await crew.scan({ ...task, source: { descriptor, reads } });
    if (result?.isRead !== true) {
      // Where a worker's read failed, the volume's own says why, or gets through.
      await readAll(volume, reads, slab);
      result = await crew.scan(task);
    }
    let wanted = 0;
    for (let chunk = 0; chunk < result.chunkCount; chunk += 1) {
      if (slab.chunks.state[chunk] !== 1 || this.#find(slab, chunk)) continue;
      slab.chunks.state[chunk] = 2;
      wanted += 1;
    }
    if (wanted > 0) await crew.compress({ slab: slab.number, chunkCount: result.chunkCount });
    return result;
  }

  /** Looks a chunk up. True: it may be referred to, at `#place`. */
  #find(slab: Slab, chunk: number): boolean {
    const { catalog, lanes } = this.#options;
    const place = this.#place;
    if (!catalog.index.find(slab.chunks.digestWords, chunk * 4, place)) return false;
    return catalog.isDurable(place.segment, place.offset) || lanes.owns(place.segment);
  }

  /** Turns a slab's chunks into map entries, packing those that the vault does not hold. */
  async #pack(work: Work, result: ScanResult): Promise<void> {
    const { run, catalog, lanes, prints, references, blockBytes } = this.#options;
    const { slab, plan } = work;
    const { chunks } = slab;
    const statistics = this.#statistics;
    for (let chunk = 0; chunk < result.chunkCount; chunk += 1) {
      const from = chunks.start[chunk] ?? 0;
      const granules = chunks.granules[chunk] ?? 0;
      const slot = Math.floor(from / this.#blockGranules);
      const start = ((plan.blocks[slot] ?? 0) - slot) * this.#blockGranules + from;
      if (chunks.state[chunk] === 0) {
        await run.appendZero(start, granules);
        continue;
      }
      const plainBytes = granules * granuleBytes;
      // Looked up again: the same chunk may have been packed since its slab was scanned.
      if (this.#find(slab, chunk)) {
        const { segment, offset, storedWord } = this.#place;
        references.add(segment);
        statistics.dedupedBytes += plainBytes;
        await run.append(start, granules, catalog.nameOf(segment), offset, storedWord, 0, granules, chunks.digests, chunk * 16);
        continue;
      }
      // In state 1 it was known when it was scanned and has been forgotten since: it goes out plain.
      const storedWord = chunks.state[chunk] === 2 ? (chunks.storedWords[chunk] ?? plainBytes) : plainBytes;
      const at = from * granuleBytes;
      const payload = (storedWord >= storedLz4Flag ? slab.out : slab.data).subarray(at, at + storedLength(storedWord));
      const segment = await lanes.pack(payload, storedWord, chunks.digests, chunk * 16, start, granules);
      const offset = lanes.placedAt;
      references.add(segment);
      catalog.index.set(chunks.digestWords, chunk * 4, segment, offset, storedWord);
      statistics.newBytes += plainBytes;
      await run.append(start, granules, catalog.nameOf(segment), offset, storedWord, 0, granules, chunks.digests, chunk * 16);
    }
    for (const [slot, block] of plan.blocks.entries()) {
      const at = slot * this.#blockGranules;
      prints.put(
        block * this.#blockGranules,
        slab.newPrints.subarray(at * fingerprintBytes, (at + (plan.blockGranules[slot] ?? 0)) * fingerprintBytes),
      );
    }
    await prints.drain();
    statistics.changedBytes += result.changedGranules * granuleBytes;
    statistics.zeroBytes += result.zeroedGranules * granuleBytes;
    for (const read of plan.reads) statistics.scannedBytes += read.length;
    this.#options.onProgress(Math.min(this.#options.volumeBytes, ((plan.blocks.at(-1) ?? 0) + 1) * blockBytes));
  }
}

/** All of the reads settle before the slab is looked at or given back: one that is under way still writes to it. */
async function readAll(volume: Volume, reads: readonly PlannedRead[], slab: Slab): Promise<void> {
  const outcomes = await Promise.allSettled(
    reads.map(async ({ offset, length, at }) => {
      await volume.read(offset, slab.data.subarray(at, at + length));
    }),
  );
  for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
}

/**
 * Notes which granules are read, and zeros what a read leaves of its first and last granule: the volume's end, extents that no
 * granule bounds.
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

/** Chooses the blocks to look at: those in which the volume may hold something, and those in which the parent did. */
class Planner {
  readonly #options: CaptureOptions;
  readonly #blockBytes: number;
  readonly #extents: AsyncIterator<Extent>;
  #extent: Extent | undefined;
  #started = false;
  #block = 0;
  #held = -1;

  constructor(options: CaptureOptions) {
    this.#options = options;
    this.#blockBytes = options.blockBytes;
    this.#extents = (options.volume.allocated?.(options.volumeBytes) ?? wholeVolume(options.volumeBytes))[Symbol.asyncIterator]();
  }

  async close(): Promise<void> {
    await this.#extents.return?.();
  }

  /** Plans the next blocks into `slab`, as many as it holds, and fills its columns of the parent's content. */
  async next(slab: Slab): Promise<Plan | undefined> {
    const { volumeBytes, baseline, crew } = this.#options;
    const slots = crew.slabs.shared.geometry.slabBytes / this.#blockBytes;
    const plan: Plan = { blocks: [], blockGranules: [], reads: [], expectedCount: 0 };
    slab.oldPrints.fill(0);
    while (plan.blocks.length < slots) {
      const block = await this.#nextBlock();
      const offset = block * this.#blockBytes;
      if (offset >= volumeBytes) break;
      const slot = plan.blocks.length;
      const granules = Math.ceil(Math.min(this.#blockBytes, volumeBytes - offset) / granuleBytes);
      plan.blocks.push(block);
      plan.blockGranules.push(granules);
      await this.#planReads(plan, offset, slot);
      const perBlock = this.#blockBytes / granuleBytes;
      plan.expectedCount = await baseline.expect(block * perBlock, granules, slab, slot * perBlock, plan.expectedCount);
      this.#block = block + 1;
    }
    return plan.blocks.length === 0 ? undefined : plan;
  }

  /** The next block in which the volume or the parent may hold anything; Infinity after the last. */
  async #nextBlock(): Promise<number> {
    if (!this.#started) await this.#nextExtent(0);
    this.#started = true;
    if (this.#held < this.#block) this.#held = await this.#options.baseline.nextHeld(this.#block);
    const filled = this.#extent === undefined ? Infinity : Math.max(this.#block, Math.floor(this.#extent.offset / this.#blockBytes));
    return Math.min(this.#held, filled);
  }

  async #nextExtent(atLeast: number): Promise<void> {
    do {
      const next = await this.#extents.next();
      this.#extent = next.done === true ? undefined : next.value;
      assert(this.#extent === undefined || this.#extent.offset >= atLeast, "a volume's extents are sorted and disjoint");
    } while (this.#extent?.length === 0);
  }

  /** Adds the reads of one block; neighbours in volume and slab become one. */
  async #planReads(plan: Plan, offset: number, slot: number): Promise<void> {
    const end = Math.min(offset + this.#blockBytes, this.#options.volumeBytes);
    while (this.#extent !== undefined && this.#extent.offset < end) {
      const extentEnd = this.#extent.offset + this.#extent.length;
      const from = Math.max(this.#extent.offset, offset);
      const to = Math.min(extentEnd, end);
      const at = slot * this.#blockBytes + from - offset;
      const last = plan.reads.at(-1);
      if (last !== undefined && last.offset + last.length === from && last.at + last.length === at) last.length += to - from;
      else if (to > from) plan.reads.push({ offset: from, length: to - from, at });
      if (extentEnd > end) break;
      await this.#nextExtent(extentEnd);
    }
  }
}

async function* wholeVolume(volumeBytes: number): AsyncGenerator<Extent> {
  if (volumeBytes > 0) yield await Promise.resolve({ offset: 0, length: volumeBytes });
}
