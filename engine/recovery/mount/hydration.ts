/**
 * Background hydration: copies a mounted point into the image on top of it, until nothing is read
 * below any more. It goes through the disk in its order, in windows:
 *
 *     look up holes ─► zeros
 *     data ─► fetched ahead in long ranges ─► proved ─► kept in the image, block by block (`fetched`)
 *          └► what has not been kept (the image was busy, the fetch failed) ─► read, and kept
 *
 * Every block that is fetched is kept, also those that a client's read fetched, so that no block is
 * fetched twice.
 *
 * Clients go first: what they wait for is fetched before what is fetched ahead, and while they are
 * at work the hydration does one short step at a time and rests between them. A read that waits
 * brings its neighbours along, unless the rate is limited. So a client that reads at random has the
 * copy made in its own order, at the rate of the store.
 *
 * Invariant: a granule is copied only while it is read below (see `OverlaidDisk.adopt`), so nothing
 * that a client wrote is overwritten.
 *
 * Memory: what the point's cache holds. Blocks are written to the image from where they were proved,
 * so an image that is slower than the store slows the fetching down.
 */
import { setTimeout as sleep } from "node:timers/promises";
import type { DeviceExtent } from "../../device.ts";
import { interrupted, isUnreadableOrGone, TidemarkError, throwIfAborted } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import type { Bandwidth } from "../../throttle.ts";
import { hydrationTiming } from "../../timing.ts";
import type { BlockKeeper } from "./block-keeper.ts";
import type { OverlaidDisk } from "./overlaid-disk.ts";
import type { PatientPoint } from "./patient-point.ts";

/**
 * What is looked up at a time: so much of the disk, and so many extents. Behind a window without data
 * the next one is `windowGrowth` times as long.
 */
const windowBytesMin: number = 1024 * 1024 * 1024;
const windowBytesMax: number = 64 * windowBytesMin;
const windowGrowth = 8;
const windowExtentsMax = 4096;
/** What is fetched at a time while clients are at work, or the rate is limited. */
const shortStepBytes: number = 4 * 1024 * 1024;
/** What is read at a time of what has been left. */
const readBytes: number = 1024 * 1024;
/** What is copied between two saves of the record. */
const saveBytes: number = 64 * 1024 * 1024;
/** What is written at a time: a client's write to the same range waits for it. */
const writeBytes: number = 1024 * 1024;

export interface HydrationOptions {
  readonly disk: OverlaidDisk;
  readonly below: PatientPoint;
  /** The size of the vault's blocks. */
  readonly blockBytes: number;
  /** Limits what is copied in the background; undefined: no limit. */
  readonly bandwidth: Bandwidth | undefined;
  /** Called when the image takes nothing any more, until it has taken all again. */
  readonly onFailure: (error: TidemarkError) => void;
  /** Called once, when everything is in the image, durably. */
  readonly onComplete: () => Promise<void>;
}

export class Hydration implements BlockKeeper {
  readonly #options: HydrationOptions;
  readonly #stopping = new AbortController();
  /** Writes under way. They never reject. */
  readonly #writes = new Set<Promise<boolean>>();
  #saved: Promise<void> = Promise.resolve();
  #isSaving = false;
  #savedAtBytes: number;
  #seenRequests = 0;
  #state: "running" | "complete" | "stopped" = "running";
  #trouble: TidemarkError | undefined;
  /** Why the image did not take a copy. */
  #imageFailure: TidemarkError | undefined;
  #run: Promise<void> | undefined;

  constructor(options: HydrationOptions) {
    this.#options = options;
    this.#savedAtBytes = options.disk.presentBytes;
    if (options.disk.firstBelow(0) === undefined) this.#state = "complete";
  }

  get state(): "running" | "complete" | "stopped" {
    return this.#state;
  }

  /** What kept something from being copied the last time; undefined since everything goes well. */
  get trouble(): TidemarkError | undefined {
    return this.#trouble;
  }

  start(): void {
    if (this.#state === "running") this.#run ??= this.#work();
  }

  /** Resolves when it is complete or has been stopped. */
  async ended(): Promise<void> {
    await this.#run;
  }

  /** Copies nothing any more, and waits for what is being written. Idempotent. */
  async stop(): Promise<void> {
    this.#stopping.abort();
    if (this.#state === "running") this.#state = "stopped";
    await this.#run;
    await this.#written();
    await this.#saved;
  }

  get wantsNeighbours(): boolean {
    return this.#options.bandwidth?.bytesPerSecond === undefined && !this.#stopping.signal.aborted;
  }

  isNeeded(offset: number, length: number): boolean {
    return this.#options.disk.firstBelow(offset, offset + length) !== undefined;
  }

  async keep(offset: number, bytes: Uint8Array): Promise<boolean> {
    const write = this.#keep(offset, bytes);
    this.#writes.add(write);
    const isKept = await write;
    this.#writes.delete(write);
    return isKept;
  }

  async #keep(offset: number, bytes: Uint8Array): Promise<boolean> {
    try {
      let isKept = true;
      for (let at = 0; at < bytes.byteLength; at += writeBytes) {
        if (this.#stopping.signal.aborted) return false;
        if (!(await this.#options.disk.adopt(offset + at, bytes.subarray(at, at + writeBytes)))) isKept = false;
      }
      return isKept;
    } catch (error) {
      const isKnown = this.#trouble !== undefined;
      this.#note(error);
      this.#imageFailure = this.#trouble;
      if (!isKnown && this.#trouble !== undefined) this.#options.onFailure(this.#trouble);
      return false;
    }
  }

  async #work(): Promise<void> {
    const { backOffMsMin, backOffMsMax } = hydrationTiming;
    for (let backOffMs = backOffMsMin; this.#state === "running"; backOffMs = Math.min(2 * backOffMs, backOffMsMax)) {
      try {
        if (await this.#pass()) return;
      } catch (error) {
        if (this.#stopping.signal.aborted) return;
        this.#note(error);
      }
      await this.#sleep(backOffMs).catch(() => undefined); // woken by `stop`
    }
  }

  /** Goes through the disk once. True when everything is in the image. */
  async #pass(): Promise<boolean> {
    const { disk, below, onComplete } = this.#options;
    let trouble: TidemarkError | undefined;
    let windowBytes = windowBytesMin;
    for (let from = disk.firstBelow(0); from !== undefined; ) {
      const lookedAt = Math.min(disk.sizeBytes - from, windowBytes);
      const extents = await this.#unlessStopped(below.lookUp(from, lookedAt, windowExtentsMax));
      const isEmpty = extents.every(({ kind }) => kind === "hole");
      windowBytes = isEmpty ? Math.min(windowBytesMax, windowGrowth * windowBytes) : windowBytesMin;
      let at = from;
      for (const extent of extents) {
        if (extent.kind === "hole") await disk.adoptZeros(extent.offset, extent.length);
        else await this.#fetch(extent);
        at = extent.offset + extent.length;
      }
      await this.#unlessStopped(below.settled());
      trouble = (await this.#readLeft(from, at)) ?? trouble;
      from = disk.firstBelow(at);
    }
    this.#trouble = trouble;
    await this.#saved;
    await disk.save();
    if (disk.firstBelow(0) !== undefined) return false;
    this.#state = "complete";
    await onComplete();
    return true;
  }

  /** Fetches a run of data, so that it is kept. */
  async #fetch({ offset, length }: DeviceExtent): Promise<void> {
    const { below, blockBytes, bandwidth } = this.#options;
    const end = offset + length;
    for (let at = offset - (offset % blockBytes); at < end; ) {
      throwIfAborted(this.#stopping.signal);
      this.#throwIfImageFailed();
      const startedMs = performance.now();
      const reached = await this.#unlessStopped(below.ahead(at, Math.min(end, at + this.#stepBytes())));
      await bandwidth?.take(this.#bytesBelow(at, reached), this.#stopping.signal);
      if (this.#areClientsAtWork()) {
        await this.#unlessStopped(below.settled());
        const { restTimes, restMsMax } = hydrationTiming;
        await this.#sleep(Math.min(restMsMax, restTimes * (performance.now() - startedMs)));
      }
      at = reached;
      this.#saveSoon();
    }
  }

  /**
   * Reads and keeps what is still below in bytes [from, end). What is damaged stays below; returns
   * the last damage that was met.
   */
  async #readLeft(from: number, end: number, lengthMax: number = readBytes): Promise<TidemarkError | undefined> {
    const { disk, below, bandwidth } = this.#options;
    let damage: TidemarkError | undefined;
    for (let run = disk.nextBelow(from, end); run !== undefined; ) {
      const { offset } = run;
      const bytes = Buffer.alloc(Math.min(lengthMax, run.length));
      const stop = offset + bytes.byteLength;
      this.#throwIfImageFailed();
      try {
        await this.#unlessStopped(below.read(offset, bytes));
        await bandwidth?.take(bytes.byteLength, this.#stopping.signal);
        await disk.adopt(offset, bytes);
      } catch (error) {
        if (!isUnreadableOrGone(error)) throw error;
        damage = error;
        // All but the damaged granules are kept.
        if (bytes.byteLength > granuleBytes) await this.#readLeft(offset, stop, halfOf(bytes.byteLength));
      }
      this.#saveSoon();
      run = disk.nextBelow(stop, end);
    }
    return damage;
  }

  /** What is fetched at a time: whole blocks, and about what the limit gives in a quarter of a second. */
  #stepBytes(): number {
    const { blockBytes, bandwidth } = this.#options;
    const limit = bandwidth?.bytesPerSecond;
    if (limit === undefined) return this.#areClientsAtWork() ? shortStepBytes : windowBytesMin;
    return blockBytes * Math.max(1, Math.floor(Math.min(shortStepBytes, limit / 4) / blockBytes));
  }

  /** Whether clients have asked for anything since this was called last. */
  #areClientsAtWork(): boolean {
    const { requests } = this.#options.disk;
    const areAtWork = requests !== this.#seenRequests;
    this.#seenRequests = requests;
    return areAtWork;
  }

  #bytesBelow(from: number, end: number): number {
    const { disk } = this.#options;
    let bytes = 0;
    for (let run = disk.nextBelow(from, end); run !== undefined; run = disk.nextBelow(run.offset + run.length, end))
      bytes += run.length;
    return bytes;
  }

  /** Begins to save what has been copied, so that a crash loses a portion at most. */
  #saveSoon(): void {
    const { disk } = this.#options;
    if (this.#isSaving || disk.presentBytes - this.#savedAtBytes < saveBytes) return;
    this.#isSaving = true;
    this.#savedAtBytes = disk.presentBytes;
    this.#saved = disk
      .save()
      .catch((error: unknown) => this.#note(error))
      .finally(() => {
        this.#isSaving = false;
      });
  }

  async #written(): Promise<void> {
    while (this.#writes.size > 0) await Promise.all(this.#writes);
  }

  #note(error: unknown): void {
    if (!(error instanceof TidemarkError)) throw error;
    this.#trouble = error;
  }

  /** An image that is full, or broken, takes nothing: more is fetched for it after a while only. */
  #throwIfImageFailed(): void {
    const failure = this.#imageFailure;
    this.#imageFailure = undefined;
    if (failure !== undefined) throw failure;
  }

  async #sleep(ms: number): Promise<void> {
    await this.#unlessStopped(sleep(ms, undefined, { signal: this.#stopping.signal }));
  }

  /** As `work`, but fails with INTERRUPTED when the hydration is stopped. */
  async #unlessStopped<Result>(work: Promise<Result>): Promise<Result> {
    const { signal } = this.#stopping;
    let leave = (): void => undefined;
    const stopped = new Promise<never>((_, reject) => {
      leave = () => reject(interrupted(signal));
      signal.addEventListener("abort", leave, { once: true });
    });
    work.catch(() => undefined);
    try {
      throwIfAborted(signal);
      return await Promise.race([work, stopped]);
    } finally {
      signal.removeEventListener("abort", leave);
    }
  }
}

function halfOf(bytes: number): number {
  return Math.max(granuleBytes, Math.floor(bytes / 2 / granuleBytes) * granuleBytes);
}
