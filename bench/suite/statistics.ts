/**
 * Statistics of repeated measurements: bootstrap confidence interval of a median, and the exact
 * permutation test for two samples.
 *
 * Both make no assumption about the distribution: times are skewed, and there are few of them. The
 * bootstrap is seeded, so that a report does not change when it is made again.
 */
import { randomWords } from "../image.ts";
import { median } from "../steps.ts";

/** A median with the bounds of its confidence interval of 95 %. With one sample the bounds are equal. */
export interface Estimate {
  readonly median: number;
  readonly low: number;
  readonly high: number;
}

const resamples = 1_000;
const confidence = 0.95;

export function estimateOf(samples: readonly number[]): Estimate {
  return { median: median(samples), ...intervalOf(resampled(samples)) };
}

/** Half of the interval's width as a share of the median; 0 for a median of 0 in an interval of 0. */
export function uncertaintyOf({ median: middle, low, high }: Estimate): number {
  const half = (high - low) / 2;
  return half === 0 ? 0 : half / Math.abs(middle);
}

/** What became of a figure since the baseline. */
export interface Change {
  /** Median now ÷ median then, with its confidence interval. */
  readonly ratio: Estimate;
  /** How probable a difference as large is by chance (permutation test, two-sided). */
  readonly p: number;
}

export function changeOf(then: readonly number[], now: readonly number[]): Change {
  const [before, after] = [resampled(then), resampled(now)];
  const ratios = after.map((value, index) => value / (before[index] ?? NaN));
  return { ratio: { median: median(now) / median(then), ...intervalOf(ratios) }, p: permutationP(then, now) };
}

/** Whether a difference is told from noise: four samples of each is the least that can be. */
export const significantP = 0.05;

function resampled(samples: readonly number[]): number[] {
  if (samples.length <= 1) return Array.from({ length: resamples }, () => samples[0] ?? NaN);
  const next = randomWords(samples.length);
  return Array.from({ length: resamples }, () => median(samples.map(() => samples[next() % samples.length] ?? NaN)));
}

function intervalOf(values: readonly number[]): Pick<Estimate, "low" | "high"> {
  const sorted = values.toSorted((a, b) => a - b);
  const cut = Math.floor((sorted.length * (1 - confidence)) / 2);
  return { low: sorted[cut] ?? NaN, high: sorted[sorted.length - 1 - cut] ?? NaN };
}

/** More splits than this are not all tried: samples of equal size up to 9 are exact. */
const splitsMax = 50_000;

/**
 * The share of all ways to split both samples together that give a difference of the rank sums at
 * least as large. Ranks, so that one outlier does not decide.
 */
function permutationP(left: readonly number[], right: readonly number[]): number {
  const all = [...left, ...right];
  const sorted = all.toSorted((a, b) => a - b);
  // Equal values share the mean of their ranks.
  const ranks = all.map((value) => (sorted.indexOf(value) + sorted.lastIndexOf(value)) / 2);
  const expected = (left.length * (all.length - 1)) / 2;
  const distance = (chosen: readonly number[]): number =>
    Math.abs(chosen.reduce((sum, index) => sum + (ranks[index] ?? NaN), 0) - expected);
  const observed = distance(left.map((_, index) => index));
  let [splits, asFar] = [0, 0];
  for (const chosen of splitsOf(all.length, left.length)) {
    splits += 1;
    if (distance(chosen) >= observed - 1e-9) asFar += 1;
  }
  return splits === 0 ? 1 : asFar / splits;
}

/** All ways to choose `size` of `count`, or random ones where there are too many. */
function* splitsOf(count: number, size: number): Generator<readonly number[]> {
  const ways = Array.from({ length: size }, (_, index) => (count - index) / (index + 1)).reduce((a, b) => a * b, 1);
  if (ways > splitsMax) {
    const next = randomWords(count);
    for (let split = 0; split < splitsMax; split += 1) {
      const keys = Array.from({ length: count }, (_, index) => [next(), index] as const);
      yield keys
        .toSorted(([a], [b]) => a - b)
        .slice(0, size)
        .map(([, index]) => index);
    }
    return;
  }
  const chosen = Array.from({ length: size }, (_, index) => index);
  for (;;) {
    yield chosen;
    let at = size - 1;
    while (at >= 0 && chosen[at] === count - size + at) at -= 1;
    if (at < 0) return;
    chosen[at] = (chosen[at] ?? 0) + 1;
    for (let next = at + 1; next < size; next += 1) chosen[next] = (chosen[next - 1] ?? 0) + 1;
  }
}
