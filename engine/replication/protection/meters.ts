/**
 * Meters: how much a second lately, how long cuts have held writes lately, and since when something
 * has been so. All of fixed size, and on a clock that is given to them.
 */
import assert from "node:assert/strict";

/** A clock that cannot be set: ms from anywhere. */
export type SteadyClock = () => number;

const bucketMs = 1000;
const buckets = 60;

/** A sum and its rate over the last minute, which slides by the second. */
export class Meter {
  readonly #now: SteadyClock;
  readonly #startedMs: number;
  /** Sums of the last seconds, by second modulo their number. */
  readonly #ring = new Float64Array(buckets);
  /** The second that is being filled. Everything else in the ring belongs to the 59 before it. */
  #second: number;
  #total = 0;

  constructor(now: SteadyClock = () => performance.now()) {
    this.#now = now;
    this.#startedMs = now();
    this.#second = Math.floor(this.#startedMs / bucketMs);
  }

  add(amount: number): void {
    this.#slide();
    this.#total += amount;
    this.#ring[slotOf(this.#second)] = (this.#ring[slotOf(this.#second)] ?? 0) + amount;
  }

  /** Everything that was ever added. */
  get total(): number {
    return this.#total;
  }

  /**
   * The average of the last minute, or of the meter's life while that is shorter; never of less
   * than a second.
   */
  get perSecond(): number {
    const nowMs = this.#slide();
    const windowMs = nowMs - (this.#second - buckets + 1) * bucketMs;
    const livedMs = Math.max(bucketMs, nowMs - this.#startedMs);
    return this.#ring.reduce((sum, amount) => sum + amount, 0) / (Math.min(windowMs, livedMs) / 1000);
  }

  /** Empties the seconds that have gone by since the last call. */
  #slide(): number {
    const nowMs = this.#now();
    const second = Math.floor(nowMs / bucketMs);
    const passed = Math.min(second - this.#second, buckets);
    for (let step = 1; step <= passed; step++) this.#ring[slotOf(this.#second + step)] = 0;
    // When the whole ring was emptied, which second had which slot does not matter any more.
    this.#second = Math.max(this.#second, second);
    return nowMs;
  }
}

function slotOf(second: number): number {
  return ((second % buckets) + buckets) % buckets;
}

/** The last durations, in ms, and what can be said of them. */
export class Durations {
  readonly #kept: Float64Array;
  #count = 0;
  #sumMs = 0;

  /** Default: the last 100. */
  constructor(countMax = 100) {
    assert(countMax > 0, "durations are kept");
    this.#kept = new Float64Array(countMax);
  }

  record(elapsedMs: number): void {
    this.#kept[this.#count % this.#kept.length] = elapsedMs;
    this.#count++;
    this.#sumMs += elapsedMs;
  }

  /** How many were ever recorded, and their sum. */
  get count(): number {
    return this.#count;
  }

  get sumMs(): number {
    return this.#sumMs;
  }

  /** The newest; 0 before the first. */
  get lastMs(): number {
    return this.#kept[(this.#count + this.#kept.length - 1) % this.#kept.length] ?? 0;
  }

  /** The longest of those that are kept; 0 before the first. */
  get maxMs(): number {
    return this.#sorted().at(-1) ?? 0;
  }

  /**
   * What a part of those that are kept did not exceed: `quantileMs(0.99)`, by the nearest rank. 0
   * before the first.
   */
  quantileMs(part: number): number {
    assert(part >= 0 && part <= 1, "a quantile is a part of one");
    const sorted = this.#sorted();
    return sorted[Math.max(0, Math.ceil(part * sorted.length) - 1)] ?? 0;
  }

  /** How many of those that are kept are no longer than each bound: a cumulative histogram. */
  histogram(boundsMs: readonly number[]): readonly number[] {
    const sorted = this.#sorted();
    return boundsMs.map((boundMs) => sorted.filter((elapsedMs) => elapsedMs <= boundMs).length);
  }

  #sorted(): Float64Array {
    return this.#kept.slice(0, Math.min(this.#count, this.#kept.length)).sort();
  }
}

/** For how long something has been so without a break. */
export class Stopwatch {
  readonly #now: SteadyClock;
  #sinceMs: number | undefined;

  constructor(now: SteadyClock = () => performance.now()) {
    this.#now = now;
  }

  /** It is so, or is not, from now on. */
  set(holds: boolean): void {
    if (!holds) this.#sinceMs = undefined;
    else this.#sinceMs ??= this.#now();
  }

  /** In ms; null while it is not so. */
  get elapsedMs(): number | null {
    return this.#sinceMs === undefined ? null : this.#now() - this.#sinceMs;
  }
}
