/**
 * The pace of a drain, on virtual time: it ends before the next cut is due, whatever the speed of the
 * store, waits only while clients are served, and never longer than until it asks again.
 */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { type PaceMeasures, paceOf, servedBatchBytes } from "../../../engine/pipeline/pace.ts";
import { paceTiming } from "../../../engine/timing.ts";
import { runsOf } from "../../depth.ts";

const megabyte = 1024 * 1024;

/** Of a cycle of 5 s: half of what is to be read in 2.5 s has been, exactly on time. */
const serving: PaceMeasures = {
  totalBytes: 300 * megabyte,
  begunBytes: 150 * megabyte,
  elapsedMs: 1_250,
  intervalMs: 5_000,
  underWay: 0,
  isHurried: false,
  isServing: true,
  keptShare: 0,
};

describe("the next batch", () => {
  const { askAgainMsMax } = paceTiming;
  test.each<[string, Partial<PaceMeasures>, number, number]>([
    ["begins when it is due", {}, 0, servedBatchBytes],
    ["waits while the capture is ahead of its plan", { elapsedMs: 1_230 }, 20, servedBatchBytes],
    ["asks again meanwhile", { elapsedMs: 100 }, askAgainMsMax, servedBatchBytes],
    ["waits for the one under way that is on time", { underWay: 1 }, askAgainMsMax, servedBatchBytes],
    ["begins beside others when they are late", { elapsedMs: 1_276, underWay: 3 }, 0, servedBatchBytes],
    ["waits for as many as make up for it", { elapsedMs: 1_276, underWay: 4 }, askAgainMsMax, servedBatchBytes],
    ["begins, as large as a slab, where no client is at work", { elapsedMs: 0, isServing: false }, 0, Infinity],
    ["begins when the cycle is hurried", { elapsedMs: 0, underWay: 7, isHurried: true }, 0, servedBatchBytes],
    ["begins when old content needs room", { elapsedMs: 0, underWay: 7, keptShare: 0.6 }, 0, servedBatchBytes],
    ["begins when the next cut is due", { elapsedMs: 0, underWay: 7, intervalMs: 0 }, 0, servedBatchBytes],
    ["begins where nothing is to be read", { totalBytes: 0, begunBytes: 0 }, 0, servedBatchBytes],
    ["begins when all has been read", { begunBytes: serving.totalBytes, underWay: 1 }, 0, servedBatchBytes],
    [
      "waits a little in a small cut",
      { totalBytes: 4 * megabyte, begunBytes: megabyte, elapsedMs: 30 },
      1.25,
      servedBatchBytes,
    ],
  ])("%s", (_, changed, waitMs, batchBytes) => {
    expect(paceOf({ ...serving, ...changed })).toEqual({ waitMs, batchBytes });
  });
});

/** Drains a cut on virtual time; `batchMs` is what one batch takes, however many are under way. */
function drain(
  totalBytes: number,
  intervalMs: number,
  batchMs: number,
): { readonly tookMs: number; readonly most: number } {
  let [elapsedMs, begunBytes, most] = [0, 0, 0];
  const underWay: number[] = [];
  while (begunBytes < totalBytes || underWay.length > 0) {
    const { waitMs, batchBytes } = paceOf({
      ...serving,
      totalBytes,
      begunBytes,
      elapsedMs,
      intervalMs,
      underWay: underWay.length,
    });
    if (waitMs === 0 && begunBytes < totalBytes && underWay.length < 8) {
      begunBytes += Math.min(batchBytes, totalBytes - begunBytes);
      underWay.push(elapsedMs + batchMs);
      most = Math.max(most, underWay.length);
    } else elapsedMs = underWay.shift() ?? elapsedMs + waitMs;
  }
  return { tookMs: elapsedMs, most };
}

describe("a drain on virtual time", () => {
  test("ends in its window, a few batches later at most, and takes most of it, if the store is fast enough", () => {
    fc.assert(
      fc.property(
        fc.integer({ min: 1, max: 2_000 * megabyte }),
        fc.integer({ min: 1_000, max: 60_000 }),
        fc.double({ min: 0.01, max: 1, noNaN: true }),
        (totalBytes, intervalMs, load) => {
          const { windowShare, windowMsMax, bytesPerSecondMin } = paceTiming;
          const windowMs = Math.min(intervalMs * windowShare, windowMsMax, (totalBytes / bytesPerSecondMin) * 1_000);
          const batches = Math.ceil(totalBytes / servedBatchBytes);
          // Eight batches at once would take `load` of the window.
          const batchMs = (windowMs * 8 * load) / batches;
          const { tookMs } = drain(totalBytes, intervalMs, batchMs);
          expect(tookMs).toBeLessThanOrEqual(windowMs + 10 * batchMs + 1);
          expect(tookMs).toBeGreaterThanOrEqual((windowMs * (batches - 1)) / batches - 1);
        },
      ),
      { numRuns: runsOf(200) },
    );
  });

  test("has one batch under way where one at a time keeps up, and all slabs where nothing keeps up", () => {
    expect(drain(300 * megabyte, 5_000, 5).most).toBe(1);
    expect(drain(2_000 * megabyte, 5_000, 500)).toEqual({ tookMs: 125_500, most: 8 });
  });
});
