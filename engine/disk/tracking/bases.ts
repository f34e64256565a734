/**
 * Base points of a protected disk: the point that its marks are relative to, the points whose
 * commit was tried without an answer (expected), and the points that the store may still forget
 * (unsettled).
 *
 *     expect ─► commit is tried ─► follow: committed, the new base ─► unsettled ─► settled: forgotten here
 *                              └─► no answer: the base stays, the point stays expected
 *
 * Invariant: while no cut is open, the disk's bitmap and what `Unsettled` keeps hold every change
 * since each of these points. So after a store went back to one of them, `goTo` finds what to ship.
 */
import { protectionTiming } from "../../timing.ts";
import type { DirtyBitmap } from "./dirty-bitmap.ts";
import type { ProtectedDiskOptions } from "./protected-disk-options.ts";
import { Unsettled } from "./unsettled.ts";

/** Points since the last committed one whose commit was tried and got no answer. */
const expectedPointsMax = 16;

export interface BasesOptions extends Pick<ProtectedDiskOptions, "base" | "earlierBases" | "unsettled" | "settleMs"> {
  /** A clock that cannot be set, in ms. */
  readonly now: () => number;
  /**
   * Has the tracking file forget the points before the first of `bases`. Not called again before it
   * settles.
   */
  readonly settle: (bases: readonly string[]) => Promise<void>;
}

export class Bases {
  readonly #options: BasesOptions;
  readonly #unsettled: Unsettled;
  #newest: string | undefined;
  readonly #expected = new Set<string>();
  #settling: Promise<void> | undefined;
  #settledAtMs = -Infinity;
  #isClosed = false;

  constructor(options: BasesOptions) {
    this.#options = options;
    this.#unsettled = new Unsettled(options.settleMs);
    this.#newest = options.base;
    const { unsettled, earlierBases = [], now } = options;
    for (const [index, earlier] of (unsettled?.bases ?? []).entries()) {
      if (unsettled === undefined || index < unsettled.bases.length - 1) this.#unsettled.note(earlier, now());
      else this.#unsettled.push(earlier, unsettled.changes, now(), () => undefined);
    }
    for (const earlier of earlierBases) {
      this.#unsettled.note(earlier, now());
      this.#expected.add(earlier);
    }
  }

  /** The newest point that is known to be committed. */
  get newest(): string | undefined {
    return this.#newest;
  }

  /** Resolves when every bitmap that was given has been given back. */
  get compacted(): Promise<void> {
    return this.#unsettled.compacted;
  }

  /** The commit of `point` is about to be tried. */
  expect(point: string): void {
    this.#expected.add(point);
    const [oldest] = this.#expected;
    if (oldest !== undefined && this.#expected.size > expectedPointsMax) this.#expected.delete(oldest);
  }

  /**
   * `point` is committed; `changes` are those between the base and it. `free` gets the bitmap back,
   * without marks.
   */
  follow(point: string, changes: DirtyBitmap, free: (bitmap: DirtyBitmap) => void): void {
    if (this.#newest === undefined) {
      changes.clearAll();
      free(changes);
    } else {
      this.#unsettled.push(this.#newest, changes, this.#options.now(), free);
    }
    this.#take(point);
  }

  /** As `ProtectedDisk.rebase`; marks in `current` what an older point needs. */
  goTo(point: string | undefined, current: DirtyBitmap): "current" | "earlier" | "unknown" {
    if (point === this.#newest) return "current";
    if (point === undefined) return "unknown";
    const isExpected = this.#expected.has(point);
    const isEarlier = this.#unsettled.goBack(point, current);
    if (!isExpected && !isEarlier) return "unknown";
    // The cut of an expected point was abandoned, so all that changed since the base before it is
    // still marked.
    if (!isEarlier && this.#newest !== undefined) this.#unsettled.note(this.#newest, this.#options.now());
    this.#take(point);
    return isExpected ? "current" : "earlier";
  }

  /**
   * True when one of `granules` granules from `firstGranule` on changed since the oldest unsettled
   * point.
   */
  anyMarked(firstGranule: number, granules: number): boolean {
    return this.#unsettled.anyMarked(firstGranule, granules);
  }

  /** Begins no further settlement and waits for the one under way. */
  async settled(): Promise<void> {
    this.#isClosed = true;
    await this.#settling;
  }

  #take(point: string): void {
    this.#newest = point;
    this.#expected.clear();
    const { now, settle } = this.#options;
    const nowMs = now();
    const isDue = nowMs - this.#settledAtMs >= protectionTiming.settleEveryMs || this.#unsettled.isFull;
    if (!isDue || this.#settling !== undefined || this.#isClosed) return;
    this.#settledAtMs = nowMs;
    this.#settling = settle([...this.#unsettled.settle(nowMs), point]).finally(() => {
      this.#settling = undefined;
    });
  }
}
