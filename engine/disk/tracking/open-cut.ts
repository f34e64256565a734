/**
 * Open cut: copy-before-write snapshot of a disk that goes on being written while it is captured.
 * Every read of an exact cut returns what the disk held at the cut. For each granule that the cut
 * wants:
 *
 *     untouched ──first write admitted──► being kept ──copy is complete──► kept
 *         └──────────────── read ───────────────┴──────────── read ─────────┴──► captured
 *
 * Why that is exact. All steps except reading and writing the disk run in one thread, and a step is
 * never interrupted.
 *
 * 1. At the cut no write is under way: the barrier has waited for all of them. So every write that
 *    the cut could confuse is admitted after the cut, and admission asks the cut first.
 * 2. A write that is admitted while its granule is *untouched* makes it *being kept*, reads its
 *    content from the disk, and is issued only when that copy is complete. Writes that arrive in
 *    between wait for the same copy. So until a granule is *kept*, no write to it has been issued
 *    since the cut, the disk holds its content of the cut, and the copy is exact.
 * 3. A read first reads the disk, and then, in one step, looks at the states. *Untouched* or *being
 *    kept*: no write had been issued when the disk was read, by 2, so the bytes are exact. *Kept*:
 *    the bytes may be torn or new, and the copy replaces them.
 * 4. The same step makes the granules *captured*. Writes that are admitted from then on are issued
 *    at once, because the bytes are already out. A copy that becomes complete later is dropped.
 * 5. If there is no room for a copy, or the copy fails, the cut is abandoned before the write is
 *    issued. Reads that have not returned throw; reads that have returned were exact. So the write
 *    does not wait, and no read ever returns what it wrote.
 *
 * Granules that the cut does not want are never kept.
 */
import assert from "node:assert/strict";
import type { BlockDevice } from "../../device.ts";
import { TidemarkError } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import type { Extent } from "../../volume.ts";
import type { CopyBeforeWriteArea } from "./copy-before-write.ts";
import type { Cut } from "./cut.ts";
import type { DirtyBitmap } from "./dirty-bitmap.ts";

/** What is kept with one read and at most a few writes: 256 KiB. */
const keptGranulesMax = 64;
/**
 * Copies under way at once for one disk; each holds a buffer of `keptGranulesMax` granules, so 2
 * MiB.
 */
const copiesMax = 8;
/**
 * Writes that touch more granules than this leave the short way, so that one request does not hold
 * up the event loop.
 */
const shortWayGranulesMax = 32;

export interface OpenCutOptions {
  readonly backing: BlockDevice;
  /** What to capture. It belongs to the cut until `onEnd`. */
  readonly frozen: DirtyBitmap;
  /** Without marks, of the same size; the cut's until `onEnd`. */
  readonly captured: DirtyBitmap;
  /** Undefined: an inexact cut, which keeps nothing. */
  readonly preserved: CopyBeforeWriteArea | undefined;
  readonly timeMs: number;
  readonly sizeBytes: number;
  readonly barrierMs: number;
  /**
   * Called once, in the step that ends the cut. `point` is the id that it was committed as, if it
   * was.
   */
  readonly onEnd: (cut: OpenCut, point: string | undefined) => void;
}

export class OpenCut implements Cut {
  readonly timeMs: number;
  readonly sizeBytes: number;
  readonly barrierMs: number;
  readonly dirtyBytes: number;
  readonly frozen: DirtyBitmap;
  readonly preserved: CopyBeforeWriteArea | undefined;
  readonly #backing: BlockDevice;
  readonly #captured: DirtyBitmap;
  readonly #onEnd: OpenCutOptions["onEnd"];
  readonly #abort = new AbortController();
  /** Granules being kept → when they are, or the cut has ended. Never rejects. */
  readonly #pending = new Map<number, Promise<void>>();
  readonly #copies = new Copies();
  #state: "open" | "committed" | "abandoned" = "open";

  constructor(options: OpenCutOptions) {
    this.timeMs = options.timeMs;
    this.sizeBytes = options.sizeBytes;
    this.barrierMs = options.barrierMs;
    this.frozen = options.frozen;
    this.dirtyBytes = markedBytes(options.frozen);
    this.preserved = options.preserved;
    this.#backing = options.backing;
    this.#captured = options.captured;
    this.#onEnd = options.onEnd;
  }

  get exact(): boolean {
    return this.preserved !== undefined;
  }

  get signal(): AbortSignal {
    return this.#abort.signal;
  }

  *extents(): Generator<Extent, void, undefined> {
    for (const extent of this.frozen.extents()) {
      this.#throwIfEnded();
      yield extent;
    }
    // The bitmap is cleared when the cut ends, so that it seems to end here as well.
    this.#throwIfEnded();
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#throwIfEnded();
    if (!this.#backing.tryRead(offset, into)) await this.#backing.read(offset, into);
    const amending = this.amend(offset, into);
    if (typeof amending !== "boolean") await amending;
  }

  amend(offset: number, into: Uint8Array): boolean | Promise<boolean> {
    const first = offset / granuleBytes;
    const granules = Math.ceil(into.byteLength / granuleBytes);
    const end = offset + into.byteLength;
    assert(
      Number.isInteger(first) && (end % granuleBytes === 0 || end === this.sizeBytes),
      "a cut is read in whole granules",
    );
    assert(end <= this.sizeBytes, "a cut is read within its size");
    if (this.preserved !== undefined && this.#captured.anyMarked(first, granules))
      this.#giveUp("what was captured is to be read again, and its old content is not kept any more", undefined);
    this.#throwIfEnded();
    if (this.preserved === undefined) return false;
    this.#captured.mark(offset, into.byteLength);
    const taken = this.preserved.take(first, into);
    return typeof taken === "boolean" ? taken : this.#readBack(taken);
  }

  committed(point: string): void {
    assert(this.#state === "open", "only an open cut can be committed");
    assert(
      !this.exact || this.#captured.count === this.frozen.count,
      "a cut is committed when all of it has been captured",
    );
    this.#state = "committed";
    this.#onEnd(this, point);
  }

  abandon(): void {
    if (this.#state !== "open") return;
    this.#state = "abandoned";
    this.#onEnd(this, undefined);
  }

  /**
   * Asked before a write is issued: keeps at once what the write would overwrite of an exact cut.
   * False: that would take time or room, so `preserve` has to be awaited; what has been kept by
   * then is kept.
   */
  tryPreserve(offset: number, length: number): boolean {
    const first = Math.floor(offset / granuleBytes);
    const end = Math.ceil((offset + length) / granuleBytes);
    const { preserved, frozen } = this;
    if (this.#state !== "open" || preserved === undefined || !frozen.anyMarked(first, end - first)) return true;
    if (end - first > shortWayGranulesMax) return false;
    for (let granule = first; granule < end; ) {
      if (this.#wants(granule) && this.#pending.has(granule)) return false;
      let count = 0;
      while (granule + count < end && this.#isToKeep(granule + count, preserved)) count += 1;
      try {
        if (count > 0 && !preserved.tryKeep(granule, count, (run, into) => this.#tryReadOld(run, into))) return false;
      } catch (error) {
        this.#giveUp("what a write was about to overwrite cannot be read", error);
        return true;
      }
      granule += Math.max(count, 1);
    }
    return true;
  }

  /**
   * The same, however long it takes. It never rejects: a cut that cannot keep what it has to is
   * given up.
   */
  async preserve(offset: number, length: number): Promise<void> {
    const first = Math.floor(offset / granuleBytes);
    const end = Math.ceil((offset + length) / granuleBytes);
    const { preserved, frozen } = this;
    if (this.#state !== "open" || preserved === undefined || !frozen.anyMarked(first, end - first)) return;
    const waits = new Set<Promise<void>>();
    const wanted: number[] = [];
    for (let granule = first; granule < end; granule += 1) {
      if (!this.#wants(granule) || preserved.has(granule)) continue;
      const pending = this.#pending.get(granule);
      if (pending === undefined) wanted.push(granule);
      else waits.add(pending);
    }
    if (wanted.length > 0) {
      if (!preserved.reserve(wanted.length)) {
        this.#giveUp(
          `there is no room for more old content than the ${preserved.bytes} bytes that are kept`,
          undefined,
        );
        return;
      }
      const keeping = this.#keepAll(wanted, preserved);
      for (const granule of wanted) this.#pending.set(granule, keeping);
      waits.add(keeping);
    }
    await Promise.all(waits);
  }

  async #readBack(taken: Promise<true>): Promise<true> {
    try {
      await taken;
    } catch (error) {
      // The only copy is lost. Had the cut ended meanwhile, that would have been the reason.
      this.#giveUp("old content that was kept for it cannot be read back", error);
    }
    this.#throwIfEnded();
    return true;
  }

  #wants(granule: number): boolean {
    return this.frozen.isMarked(granule) && !this.#captured.isMarked(granule);
  }

  #isToKeep(granule: number, preserved: CopyBeforeWriteArea): boolean {
    return this.#wants(granule) && !preserved.has(granule) && !this.#pending.has(granule);
  }

  #tryReadOld(granule: number, into: Uint8Array): boolean {
    const offset = granule * granuleBytes;
    return this.#backing.tryRead(offset, into.subarray(0, Math.min(into.byteLength, this.sizeBytes - offset)));
  }

  /** Keeps `wanted`, ascending, for which room is reserved, in runs of neighbours. */
  async #keepAll(wanted: readonly number[], preserved: CopyBeforeWriteArea): Promise<void> {
    const buffer = await this.#copies.acquire();
    let done = 0;
    try {
      while (done < wanted.length && this.#isOpen()) {
        const first = wanted[done] ?? 0;
        let count = 1;
        while (count < keptGranulesMax && wanted[done + count] === first + count) count += 1;
        const offset = first * granuleBytes;
        await this.#backing.read(offset, buffer.subarray(0, Math.min(count * granuleBytes, this.sizeBytes - offset)));
        if (!this.#isOpen()) break;
        done += count;
        await preserved.keep(first, buffer.subarray(0, count * granuleBytes));
        if (!this.#isOpen()) break;
        for (let granule = first; granule < first + count; granule += 1)
          if (!this.#wants(granule)) preserved.drop(granule);
      }
    } catch (error) {
      // Once the last granule is captured, the cut is being committed.
      if (wanted.some((granule) => this.#wants(granule)))
        this.#giveUp("what a write was about to overwrite cannot be kept", error);
    } finally {
      preserved.unreserve(wanted.length - done);
      for (const granule of wanted) this.#pending.delete(granule);
      this.#copies.release(buffer);
    }
  }

  /** A question of its own, because the state changes during every await. */
  #isOpen(): boolean {
    return this.#state === "open";
  }

  #giveUp(fact: string, cause: unknown): void {
    if (this.#state !== "open") return;
    const reason = new TidemarkError(
      "CUT_ABANDONED",
      `the cut of ${this.#backing.description} was abandoned: ${fact}`,
      {
        remedy: "nothing is lost, the next point holds the changes; give old content more room if this happens again",
        detail: { preservedBytes: this.preserved?.bytes, dirtyBytes: this.dirtyBytes },
        cause,
      },
    );
    this.abandon();
    this.#abort.abort(reason);
  }

  #throwIfEnded(): void {
    if (this.#state === "open") return;
    const reason: unknown = this.signal.reason;
    if (reason instanceof TidemarkError) throw reason;
    throw new TidemarkError("CUT_ABANDONED", `the cut of ${this.#backing.description} has ended`, {
      remedy: "take another point",
    });
  }
}

/** Bytes of the granules that are marked; the disk's last may be partial. */
export function markedBytes(bitmap: DirtyBitmap): number {
  const { granules, sizeBytes, count } = bitmap;
  return count * granuleBytes - (bitmap.isMarked(granules - 1) ? granules * granuleBytes - sizeBytes : 0);
}

/**
 * Buffers that old content passes through; a writer that finds all of them in use waits.
 */
class Copies {
  readonly #free: Uint8Array[] = [];
  readonly #waiting: ((buffer: Uint8Array) => void)[] = [];
  #made = 0;

  async acquire(): Promise<Uint8Array> {
    const free = this.#free.pop();
    if (free !== undefined) return free;
    if (this.#made < copiesMax) {
      this.#made += 1;
      return new Uint8Array(keptGranulesMax * granuleBytes);
    }
    return await new Promise<Uint8Array>((resolve) => this.#waiting.push(resolve));
  }

  release(buffer: Uint8Array): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free.push(buffer);
    else next(buffer);
  }
}
