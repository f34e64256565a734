/**
 * Retention against a plain statement of its rules, and what holds of all decisions: histories,
 * policies and clocks are made up.
 */

import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { decide, kept, type RetentionPoint } from "../../../../engine/upkeep/retention/decide.ts";
import { describePolicy, parsePolicy, type RetentionPolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { runsOf } from "../../../depth.ts";
import { modelKept } from "./model.ts";
import { day, hour, minute, pointAt } from "./timelines.ts";

const spans = fc.constantFrom(
  20 * minute,
  30 * minute,
  45 * minute,
  hour,
  90 * minute,
  2 * hour,
  3 * hour,
  5 * hour,
  7 * hour,
  day,
);

const rows = fc.array(fc.record({ everyMs: spans, times: fc.integer({ min: 1, max: 4 }), more: fc.nat({ max: 8 }) }), {
  minLength: 1,
  maxLength: 4,
});

/** A table with these spacings in which every band has room for its own, and more by half hours. */
function tableOf(spacingsMs: readonly number[], more: readonly number[], isFirstAll: boolean): RetentionPolicy {
  let ageMsMax = 0;
  const table = spacingsMs.map((everyMs, index) => {
    ageMsMax += everyMs + (more[index] ?? 0) * 30 * minute;
    return { ageMsMax, everyMs: index === 0 && isFirstAll ? null : everyMs };
  });
  return { kind: "bands", bands: table };
}

/** Spacings that rise, most of them not in whole multiples. */
const bands = fc.tuple(rows, fc.boolean()).map(([made, isFirstAll]) => {
  const spacingsMs = made.map(({ everyMs }) => everyMs).sort((one, other) => one - other);
  const more = made.map((row) => row.more);
  return tableOf(spacingsMs, more, isFirstAll);
});

/** Spacings that are whole multiples of the ones before them. */
const fittingBands = fc.tuple(rows, fc.boolean()).map(([made, isFirstAll]) => {
  let everyMs = made[0]?.everyMs ?? hour;
  const spacingsMs = made.map(({ times }) => (everyMs *= times));
  const more = made.map((row) => row.more);
  return tableOf(spacingsMs, more, isFirstAll);
});

const days = fc.nat({ max: 15 }).map((count): RetentionPolicy => ({ kind: "days", days: count }));

const count = fc.option(fc.integer({ min: 1, max: 5 }), { nil: null, freq: 1 });
const keep = fc
  .record({
    last: count,
    counts: fc.record({ hourly: count, daily: count, weekly: count, monthly: count, yearly: count }),
    withinMs: fc.option(spans, { nil: null }),
    timeZone: fc.constantFrom("UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns"),
  })
  .map(({ last, counts, withinMs, timeZone }): RetentionPolicy => {
    const chosen = (["hourly", "daily", "weekly", "monthly", "yearly"] as const).flatMap((period) => {
      const counted = counts[period];
      return counted === null ? [] : [{ period, count: counted }];
    });
    return { kind: "keep", last, periods: chosen, withinMs, timeZone };
  });

const policies = fc.oneof(bands, fittingBands, days, keep);

/**
 * Before clocks change in Berlin, on Lord Howe Island and in Newfoundland, before a year ends, and
 * on any day.
 */
const origins = fc.constantFrom(
  "2026-10-24T18:00Z",
  "2026-04-04T06:00Z",
  "2026-03-28T20:00Z",
  "2026-11-01T00:00Z",
  "2026-12-30T12:00Z",
  "2026-06-17T12:10Z",
);

const gaps = fc.oneof(
  { weight: 4, arbitrary: fc.integer({ min: 1, max: 40 * minute }) },
  { weight: 4, arbitrary: fc.constantFrom(5 * minute, 15 * minute, 30 * minute, hour) },
  { weight: 2, arbitrary: fc.integer({ min: hour, max: 9 * hour }) },
  { weight: 1, arbitrary: fc.integer({ min: day, max: 20 * day }) },
);

const consistencies = fc.constantFrom<RetentionPoint["consistency"]>("crash", "crash", "app", "fuzzy");

interface Step {
  readonly gapMs: number;
  readonly consistency: RetentionPoint["consistency"];
  readonly groupConsistency: RetentionPoint["consistency"] | undefined;
  readonly isOfGroup: boolean;
  readonly pinned: boolean;
}

const steps = (pins: boolean, groups: boolean): fc.Arbitrary<Step[]> =>
  fc.array(
    fc.record({
      gapMs: gaps,
      consistency: consistencies,
      groupConsistency: fc.option(consistencies, { nil: undefined }),
      isOfGroup: groups ? fc.boolean() : fc.constant(false),
      pinned: pins ? fc.integer({ min: 0, max: 5 }).map((value) => value === 0) : fc.constant(false),
    }),
    { minLength: 1, maxLength: 40 },
  );

function historyOf(origin: string, made: readonly Step[]): RetentionPoint[] {
  let timeMs = Date.parse(origin);
  return made.map(({ gapMs, consistency, groupConsistency, isOfGroup, pinned }, index) => {
    timeMs += gapMs;
    return pointAt(index + 1, timeMs, { consistency, groupConsistency, group: isOfGroup ? `g${index}` : null, pinned });
  });
}

const history = (pins: boolean, groups: boolean): fc.Arbitrary<RetentionPoint[]> =>
  fc.tuple(origins, steps(pins, groups)).map(([origin, made]) => historyOf(origin, made));

/**
 * From the newest point: often later, sometimes so much earlier that part of the history lies in
 * the future.
 */
const sinceNewest = fc.oneof(fc.constant(0), fc.integer({ min: -2 * day, max: 5 * hour }));

/** After which points one prunes, and how far the clock is from them. */
const prunings = fc.array(fc.record({ isDue: fc.boolean(), since: fc.integer({ min: -6 * hour, max: day }) }), {
  minLength: 40,
  maxLength: 40,
});

const sequencesOf = (points: readonly RetentionPoint[]): number[] => points.map(({ sequence }) => sequence);

describe("a decision", () => {
  test("is what the plain statement of the rules says", () => {
    fc.assert(
      fc.property(history(true, true), policies, sinceNewest, (points, policy, since) => {
        const nowMs = (points.at(-1)?.timeMs ?? 0) + since;
        const decisions = decide(points, policy, nowMs);
        expect(decisions.filter(({ keep: stays }) => stays).map(({ sequence }) => sequence)).toEqual(
          modelKept(points, policy, nowMs),
        );
        expect(decisions.every(({ reasons }) => reasons.length > 0 && reasons.every((reason) => reason !== ""))).toBe(
          true,
        );
        expect(sequencesOf(kept(points, policy, nowMs))).toEqual(modelKept(points, policy, nowMs));
      }),
      { numRuns: runsOf(600) },
    );
  });

  test("is what the plain statement says, also after a clock was ahead", () => {
    fc.assert(
      fc.property(
        history(true, true),
        policies,
        sinceNewest,
        fc.nat(),
        fc.nat({ max: 400 }),
        (made, policy, since, at, days) => {
          const jumpAt = made.length === 0 ? 0 : at % made.length;
          let beforeMs = Number.NEGATIVE_INFINITY;
          const points = made.map((point, index): RetentionPoint => {
            const clockMs = point.timeMs + (index === jumpAt ? days * day : 0);
            const timeMs = Math.max(clockMs, beforeMs + 1);
            beforeMs = timeMs;
            return { ...point, timeMs, ...(timeMs > clockMs ? { clockMs } : {}) };
          });
          const nowMs = (made.at(-1)?.timeMs ?? 0) + since;
          expect(sequencesOf(kept(points, policy, nowMs))).toEqual(modelKept(points, policy, nowMs));
        },
      ),
      { numRuns: runsOf(300) },
    );
  });

  test.each([
    ["when nothing is pinned", history(false, true), policies],
    [
      "when some points are pinned and the spacings fit into each other",
      history(true, true),
      fc.oneof(fittingBands, days, keep),
    ],
  ])("does not depend on how often it was taken before, %s", (_when, histories, among) => {
    fc.assert(
      fc.property(histories, among, prunings, (points, policy, prunes) => {
        let left: RetentionPoint[] = [];
        let nowMs = Number.NEGATIVE_INFINITY;
        for (const [index, point] of points.entries()) {
          const { isDue, since } = prunes[index] ?? { isDue: false, since: 0 };
          // The clock may be behind the points for a while, but is not set back itself.
          nowMs = Math.max(nowMs, point.timeMs + since);
          left.push(point);
          if (isDue || index === points.length - 1) left = kept(left, policy, nowMs);
        }
        expect(sequencesOf(left)).toEqual(sequencesOf(kept(points, policy, nowMs)));
      }),
      { numRuns: runsOf(1_000) },
    );
  });

  test.each([
    ["when nothing is pinned", history(false, true), policies],
    [
      "when some points are pinned and the spacings fit into each other",
      history(true, true),
      fc.oneof(fittingBands, days, keep),
    ],
  ])("taken again removes nothing more, %s", (_when, histories, among) => {
    fc.assert(
      fc.property(histories, among, sinceNewest, (points, policy, since) => {
        const nowMs = (points.at(-1)?.timeMs ?? 0) + since;
        const left = kept(points, policy, nowMs);
        expect(sequencesOf(kept(left, policy, nowMs))).toEqual(sequencesOf(left));
      }),
      { numRuns: runsOf(400) },
    );
  });

  test("names as the one that superseded a point one that is not worse, in the same history", () => {
    fc.assert(
      fc.property(history(false, false), fc.oneof(bands, days), (points, policy) => {
        for (const { sequence, keep: stays, reasons } of decide(points, policy, points.at(-1)?.timeMs ?? 0)) {
          const named = reasons.flatMap((reason) => /^superseded by (\d+)/.exec(reason)?.slice(1) ?? []).map(Number);
          expect(stays && named.length > 0).toBe(false);
          expect(named).not.toContain(sequence);
          for (const other of named) expect(sequencesOf(points)).toContain(other);
        }
      }),
    );
  });
});

describe("pins", () => {
  test("keep what is pinned and change nothing else", () => {
    fc.assert(
      fc.property(history(true, true), policies, sinceNewest, (points, policy, since) => {
        const nowMs = (points.at(-1)?.timeMs ?? 0) + since;
        const unpinned = points.map((point) => ({ ...point, pinned: false }));
        const without = new Set(sequencesOf(kept(unpinned, policy, nowMs)));
        const expected = points.filter(({ sequence, pinned }) => pinned || without.has(sequence));
        expect(sequencesOf(kept(points, policy, nowMs))).toEqual(sequencesOf(expected));
      }),
    );
  });
});

describe("a policy that was made up", () => {
  test("is what the text says that describes it", () => {
    fc.assert(
      fc.property(policies, (policy) => {
        const text = describePolicy(policy);
        expect(describePolicy(parsePolicy(text))).toBe(text);
        if (text !== "none") expect(parsePolicy(text)).toEqual(policy);
      }),
    );
  });
});
