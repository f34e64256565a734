/**
 * Rate meter and stopwatch: bytes per second over a sliding minute, and how long a condition has
 * held. Both have a fixed size and read a clock that is given to them.
 */

/** A monotonic clock: ms from an arbitrary instant. */
export type SteadyClock = () => number;

const bucketMs = 1000;
const buckets = 60;

/**
 * A sum and its rate over the last minute, which slides by the second.
 *
 * @example
 * ```ts
 * const uploaded = new Meter();
 * uploaded.add(bytes.length);
 * console.log(uploaded.total, uploaded.perSecond);
 * ```
 */
export class Meter {
  readonly #now: SteadyClock;
  readonly #startedMs: number;
  /** Sums of the last seconds, by second modulo their number. */
  readonly #ring = new Float64Array(buckets);
  /** The second that is being filled. The other slots hold the 59 seconds before it. */
  #second: number;
  #total = 0;

  constructor(now: SteadyClock = () => performance.now()) {
    this.#now = now;
    this.#startedMs = now();
    this.#second = Math.floor(this.#startedMs / bucketMs);
  }

  /** Adds `amount` to the present second. */
  add(amount: number): void {
    this.#slide();
    this.#total += amount;
    this.#ring[slotOf(this.#second)] = (this.#ring[slotOf(this.#second)] ?? 0) + amount;
  }

  /** The sum of all that was added. */
  get total(): number {
    return this.#total;
  }

  /**
   * The average per second over the last minute, or over the meter's life if that is shorter, but
   * over at least one second.
   */
  get perSecond(): number {
    const nowMs = this.#slide();
    const windowMs = nowMs - (this.#second - buckets + 1) * bucketMs;
    const livedMs = Math.max(bucketMs, nowMs - this.#startedMs);
    return this.#ring.reduce((sum, amount) => sum + amount, 0) / (Math.min(windowMs, livedMs) / 1000);
  }

  /** Empties the slots of the seconds that have passed since the last call. */
  #slide(): number {
    const nowMs = this.#now();
    const second = Math.floor(nowMs / bucketMs);
    const passed = Math.min(second - this.#second, buckets);
    for (let step = 1; step <= passed; step++) this.#ring[slotOf(this.#second + step)] = 0;
    // After more than a minute the whole ring is empty, so every slot may be reused.
    this.#second = Math.max(this.#second, second);
    return nowMs;
  }
}

function slotOf(second: number): number {
  return ((second % buckets) + buckets) % buckets;
}

/** Measures for how long a condition has held without a break. */
export class Stopwatch {
  readonly #now: SteadyClock;
  #sinceMs: number | undefined;

  constructor(now: SteadyClock = () => performance.now()) {
    this.#now = now;
  }

  /** Says whether the condition holds from now on. */
  set(holds: boolean): void {
    if (!holds) this.#sinceMs = undefined;
    else this.#sinceMs ??= this.#now();
  }

  /** In ms; null while the condition does not hold. */
  get elapsedMs(): number | null {
    return this.#sinceMs === undefined ? null : this.#now() - this.#sinceMs;
  }
}
