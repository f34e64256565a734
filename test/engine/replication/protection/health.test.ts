/** The rules of health, at their limits: one ms, or one failure, more or less. */
import fc from "fast-check";
import { expect, test } from "vitest";
import {
  assessHealth,
  type HealthMeasures,
  type HealthPolicy,
  healthOf,
} from "../../../../engine/replication/protection/health.ts";
import type { ProtectionState } from "../../../../engine/replication/protection/protection-state.ts";

const minuteMs = 60_000;
const mib = 1024 ** 2;
const policy: HealthPolicy = { crashConsistentFrequencyMs: 40_000, recoveryPointThresholdMs: 15 * minuteMs };

const well: HealthMeasures = {
  disk: "d",
  state: "protecting",
  runningMs: 100 * 60 * minuteMs,
  committedLagMs: 4000,
  storeUnreachable: null,
  cutTimeoutsInARow: 0,
  cutsAbandonedInARow: 0,
  hook: null,
  trackingLost: null,
  regressed: null,
  writerLease: null,
  full: { tracking: null, spill: null },
  backlogBytes: 10 * mib,
  uploadBytesPerSecond: 2 * mib,
  churnBytesPerSecond: 2 * mib,
  churnAboveUploadMs: null,
  pausedMs: null,
  failure: null,
};

const found = (changes: Partial<HealthMeasures>, under: HealthPolicy = policy): string[] =>
  assessHealth({ ...well, ...changes }, under).map(({ level, code }) => `${level} ${code}`);

/** A point is late enough for rates to count, and for nothing else. */
const late = { committedLagMs: 2 * minuteMs };

test("a disk that is well has no findings and is Normal", () => {
  expect(assessHealth(well, policy)).toEqual([]);
  expect(healthOf([])).toBe("Normal");
});

test.for<readonly [rule: string, changes: Partial<HealthMeasures>, expected: readonly string[]]>([
  ["a lag at the threshold is well", { committedLagMs: 15 * minuteMs, backlogBytes: 0 }, []],
  [
    "a lag above the threshold is a warning",
    { committedLagMs: 15 * minuteMs + 1, backlogBytes: 0 },
    ["Warning LAG_ABOVE_THRESHOLD"],
  ],
  [
    "a lag of twice the threshold is still a warning",
    { committedLagMs: 30 * minuteMs },
    ["Warning LAG_ABOVE_THRESHOLD"],
  ],
  [
    "a lag above twice the threshold is critical",
    { committedLagMs: 30 * minuteMs + 1 },
    ["Critical LAG_ABOVE_THRESHOLD"],
  ],
  [
    "no point for an hour is critical",
    { committedLagMs: 60 * minuteMs + 1 },
    ["Critical NO_RECENT_POINT", "Critical LAG_ABOVE_THRESHOLD"],
  ],
  ["no point ever is no lag at first", { committedLagMs: null, runningMs: 10 * minuteMs }, []],
  [
    "no point ever counts from the start",
    { committedLagMs: null, runningMs: 61 * minuteMs },
    ["Critical NO_RECENT_POINT", "Critical LAG_ABOVE_THRESHOLD"],
  ],
  ["three cycles without a point are well", { committedLagMs: 120_000 }, []],
  ["more than three cycles without a point are a warning", { committedLagMs: 120_001 }, ["Warning POINT_OVERDUE"]],
  ["no point of an unchanged disk is well", { committedLagMs: 10 * minuteMs, backlogBytes: 0 }, []],
  ["a comparison that takes long owes no point each cycle", { state: "resyncing", committedLagMs: 10 * minuteMs }, []],
  [
    "a first point whose replication took long owes no point each cycle",
    { state: "initial", committedLagMs: 10 * minuteMs },
    [],
  ],
  ["an initial replication that goes forward has no lag", { state: "initial", committedLagMs: null }, []],
  [
    "a start that is still to come has no lag",
    { state: "starting", committedLagMs: null, uploadBytesPerSecond: 0 },
    [],
  ],
  [
    "a store that does not answer is a warning",
    { storeUnreachable: { forMs: 15 * minuteMs, message: "m" } },
    ["Warning STORE_UNREACHABLE"],
  ],
  [
    "a store that is away for long is critical",
    { storeUnreachable: { forMs: 15 * minuteMs + 1, message: "m" } },
    ["Critical STORE_UNREACHABLE"],
  ],
  ["two cuts that timed out are well", { cutTimeoutsInARow: 2 }, []],
  ["three cuts that timed out are a warning", { cutTimeoutsInARow: 3 }, ["Warning CUT_TIMED_OUT"]],
  ["ten cuts that timed out are critical", { cutTimeoutsInARow: 10 }, ["Critical CUT_TIMED_OUT"]],
  ["an abandoned cut is a warning", { cutsAbandonedInARow: 1 }, ["Warning CUT_ABANDONED"]],
  ["three abandoned cuts are critical", { cutsAbandonedInARow: 3 }, ["Critical CUT_ABANDONED"]],
  ["a hook that failed is a warning", { hook: { failuresInARow: 1, reason: "r" } }, ["Warning HOOK_FAILED"]],
  [
    "a hook that fails again and again is critical",
    { hook: { failuresInARow: 3, reason: "r" } },
    ["Critical HOOK_FAILED"],
  ],
  ["a hook that works again is well", { hook: { failuresInARow: 0, reason: "r" } }, []],
  [
    "a store that lost points is a warning",
    { regressed: { forMs: 3_600_000, message: "point 9" } },
    ["Warning STORE_REGRESSED"],
  ],
  ["a store that lost points is told for an hour", { regressed: { forMs: 3_600_001, message: "point 9" } }, []],
  ["lost tracking is a warning", { state: "resyncing", trackingLost: "torn" }, ["Warning TRACKING_LOST"]],
  ["a lost writer lease is critical", { writerLease: { code: "SEAT_LOST", message: "m" } }, ["Critical SEAT_LOST"]],
  ["another writer is critical", { writerLease: { code: "WRITER_ACTIVE", message: "m" } }, ["Critical WRITER_ACTIVE"]],
  ["no space to track is critical", { full: { tracking: "/a", spill: null } }, ["Critical NO_SPACE"]],
  ["no space to keep old content is a warning", { full: { tracking: null, spill: "/b" } }, ["Warning NO_SPACE"]],
  ["a full disk that holds both is one finding", { full: { tracking: "/a", spill: "/a" } }, ["Critical NO_SPACE"]],
  ["a backlog of half an hour is well", { ...late, backlogBytes: 3600 * mib }, []],
  ["a backlog of more than half an hour is a warning", { ...late, backlogBytes: 3601 * mib }, ["Warning BACKLOG_SLOW"]],
  [
    "a backlog of more than three quarters is critical",
    { ...late, backlogBytes: 5401 * mib },
    ["Critical BACKLOG_SLOW"],
  ],
  [
    "a backlog of which nothing is uploaded is critical",
    { ...late, uploadBytesPerSecond: 0 },
    ["Critical BACKLOG_SLOW"],
  ],
  ["a backlog that has just arisen is well", { committedLagMs: 100_000, uploadBytesPerSecond: 0 }, []],
  ["no backlog needs no upload", { ...late, backlogBytes: 0, uploadBytesPerSecond: 0 }, []],
  ["churn above the upload rate for a while is well", { ...late, churnAboveUploadMs: 5 * minuteMs - 1 }, []],
  [
    "churn above the upload rate for long is a warning",
    { ...late, churnAboveUploadMs: 5 * minuteMs },
    ["Warning CHURN_ABOVE_UPLOAD"],
  ],
  ["churn that points keep up with is well", { churnAboveUploadMs: 50 * minuteMs }, []],
  [
    "a pause is a warning and mutes what follows from it",
    {
      state: "paused",
      pausedMs: 1,
      committedLagMs: 50 * minuteMs,
      uploadBytesPerSecond: 0,
      churnAboveUploadMs: 50 * minuteMs,
    },
    ["Warning PAUSED"],
  ],
  [
    "a forgotten pause is critical",
    { state: "paused", pausedMs: 1, committedLagMs: 61 * minuteMs },
    ["Critical NO_RECENT_POINT", "Warning PAUSED"],
  ],
  [
    "failed protection is critical",
    { state: "failed", committedLagMs: 61 * minuteMs, failure: { message: "m", remedy: "r" } },
    ["Critical PROTECTION_FAILED"],
  ],
])("%s", ([, changes, expected]) => {
  expect(found(changes)).toEqual(expected);
});

test("without a threshold there is no lag to be above it", () => {
  expect(found({ committedLagMs: 59 * minuteMs, backlogBytes: 0 }, { crashConsistentFrequencyMs: 5000 })).toEqual([]);
});

test("a short cycle may be missed more often, and one of an hour is overdue after three", () => {
  expect(found({ committedLagMs: 15_000 }, { crashConsistentFrequencyMs: 1000 })).toEqual([]);
  expect(found({ committedLagMs: 15_001 }, { crashConsistentFrequencyMs: 1000 })).toEqual(["Warning POINT_OVERDUE"]);
  expect(found({ committedLagMs: 59 * minuteMs }, { crashConsistentFrequencyMs: 60 * minuteMs })).toEqual([]);
});

test("a frequency of an hour has a backlog by intent", () => {
  expect(
    found({ committedLagMs: 50 * minuteMs, uploadBytesPerSecond: 0 }, { crashConsistentFrequencyMs: 60 * minuteMs }),
  ).toEqual([]);
});

test("a finding tells the cause with its figures, and what to do", () => {
  const [finding] = assessHealth(
    { ...well, ...late, backlogBytes: 5401 * mib, uploadBytesPerSecond: 1.5 * mib },
    policy,
  );
  expect(finding?.cause).toBe("5401 MiB wait to be uploaded, and at the present rate that takes 60 min");
  expect(finding?.remedy).toMatch(/bandwidth/);
});

test("a vault that refuses a point is told with the remedy of its refusal", () => {
  const storeUnreachable = { forMs: minuteMs, message: "the key is too old", remedy: "enroll this machine again" };
  const [finding] = assessHealth({ ...well, storeUnreachable }, policy);
  expect(finding?.cause).toBe("the vault has not taken a point for 60 s: the key is too old");
  expect(finding?.remedy).toMatch(/^enroll this machine again; /);
});

test("the worst comes first, each code once, with a cause and a remedy, and makes the level", () => {
  const spell = fc.option(fc.integer({ min: 0, max: 1e8 }), { nil: null });
  const states: readonly ProtectionState[] = [
    "starting",
    "initial",
    "resyncing",
    "protecting",
    "waiting",
    "paused",
    "stopped",
    "failed",
  ];
  const measures: fc.Arbitrary<HealthMeasures> = fc.record({
    disk: fc.string(),
    state: fc.constantFrom(...states),
    runningMs: fc.nat(),
    committedLagMs: spell,
    storeUnreachable: fc.option(fc.record({ forMs: fc.nat(), message: fc.string() }), { nil: null }),
    cutTimeoutsInARow: fc.nat(20),
    cutsAbandonedInARow: fc.nat(5),
    hook: fc.option(fc.record({ failuresInARow: fc.nat(5), reason: fc.string() }), { nil: null }),
    trackingLost: fc.option(fc.string(), { nil: null }),
    regressed: fc.option(fc.record({ forMs: fc.nat(), message: fc.string() }), { nil: null }),
    writerLease: fc.option(
      fc.record({ code: fc.constantFrom("WRITER_ACTIVE" as const, "SEAT_LOST" as const), message: fc.string() }),
      {
        nil: null,
      },
    ),
    full: fc.record({ tracking: fc.option(fc.string(), { nil: null }), spill: fc.option(fc.string(), { nil: null }) }),
    backlogBytes: fc.nat(),
    uploadBytesPerSecond: fc.nat(),
    churnBytesPerSecond: fc.nat(),
    churnAboveUploadMs: spell,
    pausedMs: spell,
    failure: fc.option(
      fc.record({ message: fc.string(), remedy: fc.option(fc.string({ minLength: 1 }), { nil: undefined }) }),
      {
        nil: null,
      },
    ),
  });
  fc.assert(
    fc.property(measures, (measured) => {
      const findings = assessHealth(measured, policy);
      const levels = findings.map(({ level }) => level);
      expect(levels).toEqual([...levels].sort());
      expect(new Set(findings.map(({ code }) => code)).size).toBe(findings.length);
      expect(findings.every(({ remedy }) => remedy !== "")).toBe(true);
      expect(healthOf(findings)).toBe(levels[0] ?? "Normal");
    }),
  );
});
