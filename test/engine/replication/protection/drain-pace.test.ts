/** What hurries a cycle, and when the clients of its disk count as being at work. */
import { describe, expect, test } from "vitest";
import { servedBatchBytes } from "../../../../engine/pipeline/pace.ts";
import { DrainPace, drainTimeMs } from "../../../../engine/replication/protection/drain-pace.ts";
import {
  initialState,
  isHurried,
  type MachineState,
  type PointRequest,
  type Step,
} from "../../../../engine/replication/protection/protection-state.ts";
import { paceTiming } from "../../../../engine/timing.ts";

const request: PointRequest = { applicationConsistent: false, resolve: () => undefined, reject: () => undefined };
const ship: Step = {
  kind: "ship",
  known: "changed",
  isExact: true,
  isParentSound: true,
  wantsApp: false,
  requests: [],
};
const scheduled: MachineState = {
  ...initialState("d", { hasHook: false, known: "changed", whyUnknown: undefined }),
  step: ship,
};

describe("a cycle", () => {
  test.each<[string, boolean, Partial<MachineState>]>([
    ["of the schedule has time", false, {}],
    ["with an application-consistent point has time once it is cut", false, { step: { ...ship, wantsApp: true } }],
    ["that answers a request is hurried", true, { step: { ...ship, requests: [request] } }],
    ["before a point that was requested meanwhile is hurried", true, { waiting: [request] }],
    ["before another that was asked for is hurried", true, { isCycleRequested: true }],
    ["before the end of the protection is hurried", true, { isDraining: true }],
    ["after one that failed is hurried", true, { failuresInRow: 1 }],
    ["that replicates the disk for the first time is hurried", true, { step: { ...ship, known: "scan" } }],
    ["that compares what a crash has widened is hurried", true, { step: { ...ship, known: "compare" } }],
    ["after an abandoned cut is hurried", true, { step: { ...ship, isExact: false } }],
  ])("%s", (_, hurried, changed) => {
    expect(isHurried({ ...scheduled, ...changed })).toBe(hurried);
  });
});

test.each<[string, number, number | undefined, number]>([
  ["until the next cut is due", 5_000, undefined, 5_000],
  ["no longer where old points are tolerated", 5_000, 60_000, 5_000],
  ["before the point before it is too old", 5_000, 6_000, 1_000],
  ["over no time where every point is too old", 5_000, 4_000, 0],
])("a drain is spread %s", (_, dueInMs, recoveryPointThresholdMs, spreadMs) => {
  expect(drainTimeMs(dueInMs, { recoveryPointThresholdMs })).toBe(spreadMs);
});

test("clients are waited for while they ask for something, and no longer", () => {
  const disk = { requests: 7, preservedShare: 0 };
  let [nowMs, hurried] = [1_000, false];
  const pace = new DrainPace({
    cut: { dirtyBytes: 300 * servedBatchBytes },
    cutAtMs: 1_000,
    intervalMs: 5_000,
    disk,
    isHurried: () => hurried,
    now: () => nowMs,
  });
  const begun = 100 * servedBatchBytes;
  const waiting = { waitMs: paceTiming.askAgainMsMax, batchBytes: servedBatchBytes };
  expect(pace.next(begun, 0)).toEqual(waiting);
  nowMs += paceTiming.servingMs;
  expect(pace.next(begun, 0)).toEqual({ waitMs: 0, batchBytes: Infinity });
  disk.requests += 1;
  expect(pace.next(begun, 0)).toEqual(waiting);
  hurried = true;
  expect(pace.next(begun, 0)).toEqual({ waitMs: 0, batchBytes: servedBatchBytes });
});
