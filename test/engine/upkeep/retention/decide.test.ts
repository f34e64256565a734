/** Decisions about points, case by case: what stays, what goes, and what is said about it. */
import { describe, expect, test } from "vitest";
import { decide } from "../../../../engine/upkeep/retention/decide.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { day, hour, keptOf, minute, noon, pointAt, pointsAt, reasonsOf } from "./timelines.ts";

const times = (...texts: readonly string[]): number[] => texts.map((text) => Date.parse(text));

describe("whatever the policy", () => {
  const policies = ["none", "days:0", "days:1", "bands:1h=1h", "keep:last=1", "keep:hourly=1", "keep:within=1s"];

  test.each(policies)("%s leaves the newest point, and nothing grows older while nothing new comes", (policy) => {
    const points = pointsAt([0, 10 * minute, 20 * minute, 30 * minute].map((ms) => noon + ms));
    const left = keptOf(points, policy, noon + 30 * minute);
    expect(left).toContain(4);
    for (const laterMs of [hour, 10 * day, 10_000 * day]) expect(keptOf(points, policy, noon + laterMs)).toEqual(left);
  });

  test.each(policies)(
    "%s leaves points that are dated later than now, and nothing grows older until now has caught up with them",
    (policy) => {
      const points = pointsAt([noon, noon + minute, noon + 300 * day, noon + 300 * day + 1]);
      const left = keptOf(points, policy, noon + 2 * minute);
      expect(left).toEqual(expect.arrayContaining([2]));
      for (const laterMs of [hour, 10 * day, 299 * day]) expect(keptOf(points, policy, noon + laterMs)).toEqual(left);
      expect(keptOf(points, policy, noon + 2 * minute)).toEqual(expect.arrayContaining([3, 4]));
      expect(reasonsOf(points, policy, noon + 2 * minute, 3)).toContain("dated later than now");
      expect(reasonsOf(points, policy, noon + 2 * minute, 4)).toContain("newest");
      expect(reasonsOf(points, policy, noon + 2 * minute, 2)).toContain("newest that is not dated later than now");
    },
  );

  test.each(policies)("%s throws at no time, however odd", (policy) => {
    const odd = [Number.NaN, Infinity, -Infinity, 8.64e15, -8.64e15, 1e300, -1e300, -1, 0.5];
    for (const nowMs of [noon, ...odd]) {
      const points = pointsAt([...odd, noon, ...odd]);
      const left = keptOf(points, policy, nowMs);
      expect(left).toContain(points.length);
      expect(left).toEqual(expect.arrayContaining([1, 2, 3, 6, 7]));
      expect(reasonsOf(points, policy, nowMs, 1)).toContain("has no time");
      expect(keptOf(points.slice(0, 3), policy, nowMs)).toEqual([1, 2, 3]);
    }
    expect(decide([], parsePolicy(policy), noon)).toEqual([]);
  });

  test.each(policies)("%s leaves pinned points, which change nothing for the others", (policy) => {
    const plain = pointsAt([0, 1, 2, 3, 4, 5, 6, 7].map((index) => noon + index * 25 * minute));
    const left = keptOf(plain, policy, noon + day);
    const pinned = plain.map((point) => ({ ...point, pinned: point.sequence === 2 || point.sequence === 3 }));
    expect(keptOf(pinned, policy, noon + day)).toEqual([...new Set([...left, 2, 3])].sort((one, other) => one - other));
    expect(reasonsOf(pinned, policy, noon + day, 2)[0]).toBe("pinned");
  });

  test("a clock that was far ahead for a while costs no point of the true past", () => {
    const past = [5, 4, 3, 2, 1].map((hours) => noon - hours * hour);
    const points = pointsAt([...past, noon + 400 * day, noon + 400 * day + 1, noon + 400 * day + 2]);
    expect(keptOf(points, "bands:1d=1h", noon)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(keptOf(points, "keep:hourly=5", noon)).toEqual([1, 2, 3, 4, 5, 6, 7, 8]);
    expect(keptOf(points, "keep:last=4", noon)).toEqual([5, 6, 7, 8]);
  });

  test.each(policies)("%s judges points made after a clock was ahead by their writer's clock", (policy) => {
    const times = Array.from({ length: 80 }, (_, index) => noon - (80 - index) * 30 * minute);
    const right = pointsAt(times);
    const jumped = right.map((point, index) => {
      if (index < 40) return point;
      const timeMs = noon + 400 * day + index;
      return index === 40 ? { ...point, timeMs } : { ...point, timeMs, clockMs: point.timeMs };
    });
    const others = right.filter(({ sequence }) => sequence !== 41);
    const left = keptOf(jumped, policy, noon).filter((sequence) => sequence !== 41);
    expect(left).toEqual(keptOf(others, policy, noon).filter((sequence) => sequence !== 41));
    // Once the clock has caught up, their times hold.
    const later = jumped.map(({ clockMs, ...point }) => (clockMs === undefined ? point : { ...point }));
    expect(keptOf(jumped, policy, noon + 500 * day)).toEqual(keptOf(later, policy, noon + 500 * day));
  });

  test.each(policies)("%s drops no point early because a clock was set far back for a while", (policy) => {
    const times = Array.from({ length: 20 }, (_, index) => noon - hour + index);
    const points = pointsAt(times).map((point, index) => (index < 5 ? point : { ...point, clockMs: index }));
    expect(keptOf(points, policy, noon)).toEqual(keptOf(pointsAt(times), policy, noon));
    // Before the clock is set right, too.
    expect(keptOf(points, policy, 1_000).slice(0, 5)).toEqual([1, 2, 3, 4, 5]);
  });
});

describe("bands", () => {
  test("leave the first point of each cell", () => {
    const points = pointsAt([-119, -90, -61, -60, -59, -1, 0].map((minutes) => noon + minutes * minute));
    expect(keptOf(points, "bands:1d=1h", noon)).toEqual([1, 4, 7]);
    expect(reasonsOf(points, "bands:1d=1h", noon, 2)).toEqual([
      "superseded by 1: one per 1h from 2026-01-15 10:00 UTC",
    ]);
    expect(reasonsOf(points, "bands:1d=1h", noon, 4)).toEqual(["one per 1h from 2026-01-15 11:00 UTC"]);
    expect(reasonsOf(points, "bands:1d=1h", noon, 7)).toEqual(["newest", "one per 1h from 2026-01-15 12:00 UTC"]);
  });

  test("leave what is exactly as old as they go, and nothing older", () => {
    const points = pointsAt([noon - 2 * hour - 1, noon - 2 * hour, noon]);
    expect(keptOf(points, "bands:2h=all", noon)).toEqual([2, 3]);
    expect(reasonsOf(points, "bands:2h=all", noon, 1)).toEqual(["older than 2h"]);
    expect(reasonsOf(points, "bands:2h=all", noon, 2)).toEqual(["within 2h"]);
  });

  test("leave the most consistent point of a cell, once it has come of age", () => {
    const points = [
      pointAt(1, noon, { consistency: "fuzzy" }),
      pointAt(2, noon + 10 * minute),
      pointAt(3, noon + 20 * minute),
      pointAt(4, noon + 30 * minute, { consistency: "app" }),
      pointAt(5, noon + 40 * minute, { consistency: "app" }),
    ];
    const later = (ms: number) => [...points, pointAt(6, noon + ms)];
    expect(keptOf(later(2 * hour + 25 * minute), "days:1", noon + day)).toEqual([2, 4, 5, 6]);
    expect(keptOf(later(2 * hour + 35 * minute), "days:1", noon + day)).toEqual([4, 5, 6]);
    expect(keptOf(later(2 * hour + 45 * minute), "days:1", noon + day)).toEqual([4, 6]);
  });

  test("leave application-consistent points no longer than others", () => {
    const points = [0, 1, 2, 3].map((index) => pointAt(index + 1, noon + index * 10 * minute, { consistency: "app" }));
    expect(keptOf([...points, pointAt(9, noon + 5 * hour)], "days:1", noon + 5 * hour)).toEqual([1, 9]);
    expect(keptOf([...points, pointAt(9, noon + 30 * hour)], "days:1", noon + 30 * hour)).toEqual([9]);
  });

  test("whose grids do not fit into each other leave what they would have left step by step", () => {
    // Of the hours 0, 2, 4 … every third is looked at again: 0, 4 (there is no 3), 6, 10 …
    const points = pointsAt(Array.from({ length: 97 }, (_, index) => Date.UTC(2026, 0, 15) + index * hour));
    const hoursOf = (left: readonly number[]) => left.map((sequence) => sequence - 1);
    expect(hoursOf(keptOf(points, "bands:6h=all,2d=2h,9d=3h", noon + 9 * day)).slice(0, 8)).toEqual([
      0, 4, 6, 10, 12, 16, 18, 22,
    ]);
  });
});

describe("counts", () => {
  test("of the last points are what they say", () => {
    const points = pointsAt([1, 2, 3, 4, 5].map((index) => noon + index));
    expect(keptOf(points, "keep:last=2", noon)).toEqual([1, 2, 3, 4, 5]);
    expect(keptOf(points, "keep:last=2", noon + 5)).toEqual([4, 5]);
    expect(reasonsOf(points, "keep:last=2", noon + 5, 3)).toEqual(["not among the last 2"]);
    expect(reasonsOf(points, "keep:last=2", noon + 5, 4)).toEqual(["among the last 2"]);
  });

  test("of periods pass over periods without points", () => {
    const points = pointsAt(
      times("2026-01-01T10:00Z", "2026-01-01T11:00Z", "2026-01-05T00:00Z", "2026-01-09T23:00Z", "2026-01-09T23:30Z"),
    );
    expect(keptOf(points, "keep:daily=3", noon)).toEqual([1, 3, 4, 5]);
    expect(keptOf(points, "keep:daily=2", noon)).toEqual([3, 4, 5]);
    expect(reasonsOf(points, "keep:daily=2", noon, 1)).toEqual(["older than the 2 of daily"]);
    expect(reasonsOf(points, "keep:daily=3", noon, 2)).toEqual(["superseded by 1: daily 2026-01-01"]);
    expect(reasonsOf(points, "keep:daily=2,hourly=9,weekly=1,within=1h", noon, 4)).toEqual([
      "hourly 2026-01-09 23:00 UTC",
      "daily 2026-01-09",
      "within 1h",
    ]);
  });

  test("keep the point of a running period when newer ones come", () => {
    const points = pointsAt([0, 5, 10, 15].map((minutes) => noon + minutes * minute));
    for (const length of [2, 3, 4])
      expect(keptOf(points.slice(0, length), "keep:hourly=1", noon + day)).toEqual([1, length]);
  });

  test("know weeks that begin on Monday, months and years", () => {
    const points = pointsAt(
      times("2025-12-28T12:00Z", "2025-12-29T12:00Z", "2026-01-01T12:00Z", "2026-01-04T12:00Z", "2026-01-05T12:00Z"),
    );
    expect(keptOf(points, "keep:weekly=9", noon)).toEqual([1, 2, 5]);
    expect(keptOf(points, "keep:monthly=9", noon)).toEqual([1, 3, 5]);
    expect(keptOf(points, "keep:yearly=9", noon)).toEqual([1, 3, 5]);
    const reasons = (rule: string) => reasonsOf(points, `keep:${rule}=9`, noon, 5).slice(1);
    expect(reasonsOf(points, "keep:weekly=9", noon, 2)).toEqual(["weekly 2026-W01"]);
    expect(reasonsOf(points, "keep:weekly=9", noon, 1)).toEqual(["weekly 2025-W52"]);
    expect(reasons("weekly")).toEqual(["weekly 2026-W02"]);
    expect(reasonsOf(points, "keep:monthly=9", noon, 1)).toEqual(["monthly 2025-12"]);
    expect(reasonsOf(points, "keep:yearly=9", noon, 3)).toEqual(["yearly 2026"]);
  });
});

describe("a time zone", () => {
  const berlin = "tz=Europe/Berlin";

  test("says where a day begins", () => {
    const points = pointsAt(times("2026-01-14T22:30Z", "2026-01-14T23:30Z", "2026-01-15T01:00Z"));
    expect(keptOf(points, "keep:daily=9", noon)).toEqual([1, 3]);
    expect(keptOf(points, `keep:daily=9,${berlin}`, noon)).toEqual([1, 2, 3]);
    expect(reasonsOf(points, `keep:daily=9,${berlin}`, noon, 2)).toEqual(["daily 2026-01-15"]);
  });

  test("that puts its clocks back has an hour twice and one day", () => {
    // 02:30 and 02:45 summer time, 02:30 and 02:45 winter time, 03:00.
    const points = pointsAt(
      times("2026-10-25T00:30Z", "2026-10-25T00:45Z", "2026-10-25T01:30Z", "2026-10-25T01:45Z", "2026-10-25T02:00Z"),
    );
    const nowMs = points.at(-1)?.timeMs ?? 0;
    expect(keptOf(points, `keep:hourly=9,${berlin}`, nowMs)).toEqual([1, 3, 5]);
    expect(reasonsOf(points, `keep:hourly=9,${berlin}`, nowMs, 1)).toEqual(["hourly 2026-10-25 02:00 +02:00"]);
    expect(reasonsOf(points, `keep:hourly=9,${berlin}`, nowMs, 3)).toEqual(["hourly 2026-10-25 02:00 +01:00"]);
    expect(keptOf(points, `keep:daily=9,${berlin}`, nowMs)).toEqual([1, 5]);
  });

  test("that puts its clocks forward has no hour in between and one day", () => {
    // 01:30 winter time, 03:00 and 03:30 summer time.
    const points = pointsAt(
      times("2026-03-29T00:30Z", "2026-03-29T01:00Z", "2026-03-29T01:30Z", "2026-03-29T21:59Z", "2026-03-29T22:00Z"),
    );
    expect(keptOf(points, `keep:hourly=9,${berlin}`, noon + 99 * day)).toEqual([1, 2, 4, 5]);
    expect(keptOf(points, `keep:daily=9,${berlin}`, noon + 99 * day)).toEqual([1, 5]);
  });

  test("may repeat half an hour", () => {
    // Lord Howe Island: 01:10, 01:40 at +11:00, then 01:40 again, at +10:30, then 02:00.
    const points = pointsAt(
      times("2026-04-04T14:10Z", "2026-04-04T14:40Z", "2026-04-04T15:10Z", "2026-04-04T15:30Z", "2026-04-04T15:40Z"),
    );
    expect(keptOf(points, "keep:hourly=9,tz=Australia/Lord_Howe", noon + 99 * day)).toEqual([1, 3, 4, 5]);
  });

  test("changes nothing about bands and ages", () => {
    const points = pointsAt(times("2026-03-28T12:00Z", "2026-03-29T12:00Z"));
    expect(keptOf(points, `keep:within=1d,${berlin}`, noon + 99 * day)).toEqual([1, 2]);
    expect(keptOf(points, `keep:within=23h,${berlin}`, noon + 99 * day)).toEqual([2]);
  });
});

describe("points of a group", () => {
  const group = (sequence: number, timeMs: number, id = `g${sequence}`) => pointAt(sequence, timeMs, { group: id });

  test("are better than any of the disk's own", () => {
    const points = [
      pointAt(1, noon, { consistency: "app" }),
      group(2, noon + minute),
      group(3, noon + 2 * minute),
      pointAt(4, noon + 2 * hour),
    ];
    expect(keptOf(points, "bands:1d=1h", noon + day)).toEqual([2, 4]);
    expect(reasonsOf(points, "bands:1d=1h", noon + day, 1)).toEqual([
      "superseded by 2: one per 1h from 2026-01-15 12:00 UTC",
    ]);
  });

  test("grow older by the disk's own points, as when the group is no more", () => {
    const points = [group(1, noon - day), group(2, noon), pointAt(3, noon + 20 * day)];
    expect(keptOf(points, "days:1", noon + 20 * day)).toEqual([3]);
    expect(keptOf(points, "keep:last=2", noon + 20 * day)).toEqual([2, 3]);
  });

  test("are equally good unless all members were told alike how good they are", () => {
    const points = [
      pointAt(1, noon, { group: "a", consistency: "crash" }),
      pointAt(2, noon + minute, { group: "b", consistency: "app" }),
      pointAt(3, noon + hour, { group: "c" }),
    ];
    expect(keptOf(points, "bands:1d=1h", noon + day)).toEqual([1, 3]);
    const told = points.map((point) => ({ ...point, groupConsistency: point.consistency }));
    expect(keptOf(told, "bands:1d=1h", noon + day)).toEqual([2, 3]);
  });
});
