/** Statistics of a suite: intervals that hold the truth, and differences that are told from noise. */
import { describe, expect, test } from "vitest";
import { randomWords } from "../../bench/image.ts";
import { changeOf, estimateOf, significantP, uncertaintyOf } from "../../bench/suite/statistics.ts";

/** Samples from 90 to 110 around 100, uniformly. */
function samplesOf(seed: number, count: number, factor = 1): number[] {
  const next = randomWords(seed);
  for (let warmUp = 0; warmUp < 20; warmUp += 1) next();
  return Array.from({ length: count }, () => (90 + (20 * next()) / 2 ** 32) * factor);
}

describe("the interval of a median", () => {
  test("holds the true median about as often as it says", () => {
    const seeds = Array.from({ length: 100 }, (_, index) => index + 1);
    const held = seeds.filter((seed) => {
      const { low, high } = estimateOf(samplesOf(seed, 15));
      return low <= 100 && 100 <= high;
    });
    expect(held.length).toBeGreaterThanOrEqual(85);
    expect(held.length).toBeLessThan(100);
  });

  test("narrows with the number of samples, is a point for one, and is the same for the same samples", () => {
    const [few, many] = [estimateOf(samplesOf(3, 5)), estimateOf(samplesOf(3, 200))];
    expect(uncertaintyOf(many)).toBeLessThan(uncertaintyOf(few) / 2);
    expect(estimateOf([7])).toEqual({ median: 7, low: 7, high: 7 });
    expect(estimateOf(samplesOf(3, 5))).toEqual(few);
    expect(uncertaintyOf(estimateOf([0, 0, 0]))).toBe(0);
  });
});

describe("a difference", () => {
  test("of equal samples is certain only as often as chance allows", () => {
    const seeds = Array.from({ length: 40 }, (_, index) => index + 1);
    const told = seeds.filter((seed) => changeOf(samplesOf(seed, 5), samplesOf(seed + 1_000, 5)).p < significantP);
    expect(told.length).toBeLessThanOrEqual(6);
  });

  test("of a third is seen with five samples of each, with the right ratio", () => {
    const { p, ratio } = changeOf(samplesOf(1, 5), samplesOf(2, 5, 1.33));
    expect(p).toBeLessThan(0.01);
    expect(ratio.low).toBeGreaterThan(1.1);
    expect(ratio.high).toBeLessThan(1.6);
  });

  test("has the probability that counting gives: all of three below all of three is 2 of 20", () => {
    expect(changeOf([1, 2, 3], [4, 5, 6]).p).toBeCloseTo(2 / 20);
    expect(changeOf([1, 2, 3, 4], [5, 6, 7, 8]).p).toBeCloseTo(2 / 70);
    expect(changeOf([5, 5, 5], [5, 5, 5]).p).toBe(1);
    // Too many to try all of them.
    expect(changeOf(samplesOf(1, 20), samplesOf(2, 20, 2)).p).toBe(0);
  });
});
