/**
 * Unsettled changes: what changed between the points of the last minute. A store may go back in
 * time and forget points that it acknowledged. What those points held then counts as changed again,
 * although the disk's own bitmap has been cleared of it.
 *
 *     entries   P1 ──changes──► P2 ──changes──► P3 = base ──current bitmap──► now
 *
 * The newest entry holds the bitmap of its cut until that has been turned into runs, a slice at a
 * time; then the bitmap is free for the next cut.
 *
 * Memory: 8 bytes a run, `unsettledBytesMax` in all. Beyond that the oldest sets are merged into
 * one set of whole regions, at most 1 MiB for each TiB of disk. So a point may be given more than
 * changed since it, never less.
 */
import { setImmediate } from "node:timers/promises";
import { granuleBytes } from "../../limits.ts";
import type { DirtyBitmap } from "./dirty-bitmap.ts";
import { regionGranules } from "./dirty-bitmap.ts";

const unsettledBytesMax = 64 * 1024 * 1024;
/**
 * A point a second for the settling time. When more have come together it is time to settle, and
 * the oldest are forgotten.
 */
const unsettledPointsMax = 64;
/** Runs made between two turns of the event loop: less than a millisecond of work. */
const runsPerTurn = 4096;

interface Entry {
  /** The point that the changes follow. */
  readonly base: string;
  changes: Runs | DirtyBitmap;
  /** When the point that followed was committed. */
  readonly endedMs: number;
}

/** The unsettled points of one disk, oldest first. */
export class Unsettled {
  readonly #settleMs: number;
  readonly #bytesMax: number;
  #entries: Entry[] = [];
  #compacting: Promise<void> = Promise.resolve();

  constructor(settleMs: number, bytesMax: number = unsettledBytesMax) {
    this.#settleMs = settleMs;
    this.#bytesMax = bytesMax;
  }

  /** Resolves when every bitmap that was given has been given back. */
  get compacted(): Promise<void> {
    return this.#compacting;
  }

  /** Bytes of the sets that have been turned into runs. */
  get bytes(): number {
    return distinct(this.#entries).reduce((sum, runs) => sum + runs.bytes, 0);
  }

  /** Ids of the points it can go back to, oldest first. */
  get bases(): readonly string[] {
    return this.#entries.map(({ base }) => base);
  }

  /** Notes a point since which nothing has changed that is not marked elsewhere. */
  note(base: string, nowMs: number): void {
    this.#entries.push({ base, changes: noRuns, endedMs: nowMs });
  }

  /**
   * Notes what changed between `base` and the point that follows it. `free` gets the bitmap back,
   * without marks.
   */
  push(base: string, changes: DirtyBitmap, nowMs: number, free: (bitmap: DirtyBitmap) => void): void {
    const entry: Entry = { base, changes, endedMs: nowMs };
    this.#entries.push(entry);
    this.#compacting = this.#compact(entry, changes, free);
  }

  /** True when there are more points than are kept. */
  get isFull(): boolean {
    return this.#entries.length > unsettledPointsMax;
  }

  /**
   * Forgets the points that the store cannot lose any more, and returns those that are left:
   * `bases`.
   */
  settle(nowMs: number): readonly string[] {
    this.#entries = this.#entries.filter(({ endedMs }) => nowMs - endedMs <= this.#settleMs).slice(-unsettledPointsMax);
    return this.bases;
  }

  /**
   * Marks in `into` all that changed since `point`, which is the newest from now on. False: `point`
   * is none of these, and nothing is done.
   */
  goBack(point: string, into: DirtyBitmap): boolean {
    const index = this.#entries.findIndex(({ base }) => base === point);
    if (index < 0) return false;
    // The newest may be a bitmap still that is being turned into runs; it is given back all the
    // same.
    for (const { changes } of this.#entries.splice(index)) {
      if (changes instanceof Runs) changes.addTo(into);
      else into.or(changes);
    }
    return true;
  }

  /**
   * True when one of `granules` granules from `firstGranule` on changed since the oldest of the
   * points.
   */
  anyMarked(firstGranule: number, granules: number): boolean {
    return this.#entries.some(({ changes }) => changes.anyMarked(firstGranule, granules));
  }

  async #compact(entry: Entry, bitmap: DirtyBitmap, free: (bitmap: DirtyBitmap) => void): Promise<void> {
    const runs = new Runs();
    let made = 0;
    for (const { offset, length } of bitmap.extents()) {
      runs.append(offset / granuleBytes, Math.ceil((offset + length) / granuleBytes) - 1);
      made += 1;
      if (made % runsPerTurn === 0) await setImmediate();
    }
    entry.changes = runs.trimmed();
    bitmap.clearAll();
    free(bitmap);
    this.#bound();
  }

  /** Merges the oldest sets until all of them fit. */
  #bound(): void {
    while (this.bytes > this.#bytesMax) {
      const [oldest, next] = distinct(this.#entries);
      if (oldest === undefined || (next === undefined && oldest.coarse)) return;
      const merged = coarse(next === undefined ? [oldest] : [oldest, next]);
      for (const entry of this.#entries) if (entry.changes === oldest || entry.changes === next) entry.changes = merged;
    }
  }
}

/**
 * Sorted, disjoint runs of granules, as two columns: first and last granule, which both fit in 32
 * bits on the largest disk.
 */
class Runs {
  readonly coarse: boolean;
  #first: Uint32Array;
  #last: Uint32Array;
  #count = 0;

  constructor(coarse = false, capacity = 64) {
    this.coarse = coarse;
    this.#first = new Uint32Array(capacity);
    this.#last = new Uint32Array(capacity);
  }

  get bytes(): number {
    return this.#first.byteLength + this.#last.byteLength;
  }

  /** Adds a run behind the last one, or to it when they touch. */
  append(first: number, last: number): void {
    const before = this.#last[this.#count - 1];
    if (before !== undefined && first <= before + 1) {
      this.#last[this.#count - 1] = Math.max(before, last);
      return;
    }
    if (this.#count === this.#first.length) this.#resize(this.#count * 2);
    this.#first[this.#count] = first;
    this.#last[this.#count] = last;
    this.#count += 1;
  }

  trimmed(): this {
    this.#resize(this.#count);
    return this;
  }

  addTo(bitmap: DirtyBitmap): void {
    for (let run = 0; run < this.#count; run += 1) {
      const offset = (this.#first[run] ?? 0) * granuleBytes;
      bitmap.mark(offset, Math.min(((this.#last[run] ?? 0) + 1) * granuleBytes, bitmap.sizeBytes) - offset);
    }
  }

  anyMarked(firstGranule: number, granules: number): boolean {
    let low = 0;
    for (let high = this.#count; low < high; ) {
      const middle = Math.floor((low + high) / 2);
      if ((this.#last[middle] ?? 0) < firstGranule) low = middle + 1;
      else high = middle;
    }
    return low < this.#count && (this.#first[low] ?? 0) < firstGranule + granules;
  }

  /** Adds the numbers of the regions it touches. */
  regionsInto(regions: Set<number>): void {
    for (let run = 0; run < this.#count; run += 1) {
      const last = Math.floor((this.#last[run] ?? 0) / regionGranules);
      for (let region = Math.floor((this.#first[run] ?? 0) / regionGranules); region <= last; region += 1)
        regions.add(region);
    }
  }

  #resize(capacity: number): void {
    const [first, last] = [new Uint32Array(capacity), new Uint32Array(capacity)];
    first.set(this.#first.subarray(0, this.#count));
    last.set(this.#last.subarray(0, this.#count));
    this.#first = first;
    this.#last = last;
  }
}

const noRuns = new Runs(true, 0);

/** The sets that are in runs, oldest first; merged ones serve several entries and count once. */
function distinct(entries: readonly Entry[]): Runs[] {
  return [
    ...new Set(entries.flatMap(({ changes }) => (changes instanceof Runs && changes !== noRuns ? [changes] : []))),
  ];
}

/** The regions that any of `sets` touches, whole. */
function coarse(sets: readonly Runs[]): Runs {
  const regions = new Set<number>();
  for (const runs of sets) runs.regionsInto(regions);
  const merged = new Runs(true);
  for (const region of [...regions].sort((a, b) => a - b))
    merged.append(region * regionGranules, (region + 1) * regionGranules - 1);
  return merged.trimmed();
}
