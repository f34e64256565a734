/**
 * Depth of the tests: the one place that decides how many repetitions, runs and crash points a test has.
 *
 * The environment variable `TIDEMARK_TEST_DEPTH` is `quick`, the default, or `deep`. A quick run kills
 * less often; a deep run has the tests of deep-test.ts, too. Both sample their sweeps, a quick run a
 * few calls and always the same ones, a deep run more of them and others each day, so that the days
 * together take every call. `TIDEMARK_TEST_DAY` repeats the sample of a day.
 *
 * Invariant: a sample always contains the first and the last call, and the same number of calls
 * gives the same sample, on one day in a deep run, so that a failure can be run again.
 */
import process from "node:process";

/** How many calls of a sweep a quick run takes unless a test says otherwise. */
const quickCalls = 3;
/** How many a deep run takes unless a test says otherwise. */
const deepCalls = 12;
/** A quick run has one run of a property test for each so many of a deep run. */
const runsPerQuickRun = 10;

const isDeep: boolean = depthNamed(process.env["TIDEMARK_TEST_DEPTH"] ?? "quick") === "deep";

function depthNamed(name: string): "quick" | "deep" {
  if (name === "quick" || name === "deep") return name;
  throw new Error(`TIDEMARK_TEST_DEPTH is ${name}. Set it to quick or deep.`);
}

/** The day whose sample a deep run takes, in days since 1970. A quick run has the same sample every day: 0. */
export const day: number = byDepth(0, Number(process.env["TIDEMARK_TEST_DAY"] ?? Math.floor(Date.now() / 86_400_000)));

/** Gives `quick` or `deep`, by the depth of this run. */
export function byDepth<Value>(quick: Value, deep: Value): Value {
  return isDeep ? deep : quick;
}

/** The `numRuns` of a property test that has `deep` of them in a deep run. */
export function runsOf(deep: number): number {
  return byDepth(Math.ceil(deep / runsPerQuickRun), deep);
}

/**
 * The calls of a sweep from `first` to `last`, in ascending order: `quickCount` of them in a quick
 * run, `deepCount` in a deep one.
 */
export function callsOf(
  first: number,
  last: number,
  quickCount: number = quickCalls,
  deepCount: number = deepCalls,
): readonly number[] {
  const calls = Array.from({ length: Math.max(0, last - first + 1) }, (_, index) => first + index);
  return sampleOf(calls, quickCount, deepCount);
}

/**
 * As many of `items` as the depth gives, or all: the first, the last and one from each of `count - 2`
 * parts of equal size between them, in their order.
 */
export function sampleOf<Item>(
  items: readonly Item[],
  quickCount: number = quickCalls,
  deepCount: number = deepCalls,
): readonly Item[] {
  const count = byDepth(quickCount, deepCount);
  if (items.length <= count) return items;
  const parts = count - 2;
  const between = items.length - 2;
  const taken = new Set([0, items.length - 1]);
  for (let part = 0; part < parts; part += 1) {
    const from = Math.floor((part * between) / parts);
    const end = Math.floor(((part + 1) * between) / parts);
    taken.add(1 + from + Math.floor(drawn(items.length, part) * (end - from)));
  }
  return items.filter((_, index) => taken.has(index));
}

/**
 * All of `items` in a deep run. In a quick one the one whose turn it is at step `index` of a sweep,
 * so that the sweep meets all of them.
 */
export function inTurn<Item>(items: readonly Item[], index: number): readonly Item[] {
  return isDeep ? items : items.filter((_, at) => at === index % items.length);
}

/** A number in [0, 1) that depends on its arguments and the day alone. */
function drawn(count: number, part: number): number {
  const mixed = Math.imul((day * 1_009 + count) * 31 + part + 1, 0x9e37_79b1);
  return (Math.imul(mixed ^ (mixed >>> 15), 0x85eb_ca6b) >>> 0) / 2 ** 32;
}
