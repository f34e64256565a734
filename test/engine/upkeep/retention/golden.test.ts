/** What the original's tables leave of points that come every five minutes, pruned after each. */
import { describe, expect, test } from "vitest";
import { kept, type RetentionPoint } from "../../../../engine/upkeep/retention/decide.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { day, hour, minute, noon, pointAt } from "./timelines.ts";

const endMs = noon + 10 * minute;

/** Times from `from` to `to`, both among them. */
function times(from: string, to: string, everyMs: number): string[] {
  const found: string[] = [];
  for (let ms = Date.parse(`${from}Z`); ms <= Date.parse(`${to}Z`); ms += everyMs) found.push(textOf(ms));
  return found;
}

const textOf = (ms: number): string => new Date(ms).toISOString().slice(0, 16);

function prunedAsTheyCome(policy: string, days: number): string[] {
  const parsed = parsePolicy(policy);
  let points: RetentionPoint[] = [];
  let sequence = 0;
  for (let ms = endMs - days * day; ms <= endMs; ms += 5 * minute) {
    sequence += 1;
    points = kept([...points, pointAt(sequence, ms)], parsed, ms);
  }
  return points.map(({ timeMs }) => textOf(timeMs));
}

/** Everything for two hours, in each table. */
const recent = times("2026-01-15T10:10", "2026-01-15T12:10", 5 * minute);

describe("the original's table", () => {
  test("of no days leaves the newest point", () => {
    expect(prunedAsTheyCome("days:0", 1)).toEqual(["2026-01-15T12:10"]);
  });

  test("of 1 day leaves one point an hour", () => {
    const hourly = times("2026-01-14T13:00", "2026-01-15T10:00", hour);
    expect(hourly).toHaveLength(22);
    expect(prunedAsTheyCome("days:1", 3)).toEqual([...hourly, ...recent]);
  });

  test("of 3 days leaves one point per 2 hours", () => {
    const twoHourly = times("2026-01-12T14:00", "2026-01-15T10:00", 2 * hour);
    expect(twoHourly).toHaveLength(35);
    expect(prunedAsTheyCome("days:3", 6)).toEqual([...twoHourly, ...recent]);
  });

  test("of 7 days leaves one point per 2 hours", () => {
    const twoHourly = times("2026-01-08T14:00", "2026-01-15T10:00", 2 * hour);
    expect(twoHourly).toHaveLength(83);
    expect(prunedAsTheyCome("days:7", 9)).toEqual([...twoHourly, ...recent]);
  });

  test("of 15 days leaves one point per 2 hours for 7 days, then one per 4 hours", () => {
    const fourHourly = times("2025-12-31T16:00", "2026-01-08T12:00", 4 * hour);
    const twoHourly = times("2026-01-08T14:00", "2026-01-15T10:00", 2 * hour);
    expect(fourHourly).toHaveLength(48);
    expect(prunedAsTheyCome("days:15", 18)).toEqual([...fourHourly, ...twoHourly, ...recent]);
  });

  test("of 2 and of 8 days are those of the longer spans, cut off", () => {
    expect(prunedAsTheyCome("days:2", 4)).toEqual([
      ...times("2026-01-13T14:00", "2026-01-15T10:00", 2 * hour),
      ...recent,
    ]);
    expect(prunedAsTheyCome("days:8", 10)).toEqual([
      ...times("2026-01-07T16:00", "2026-01-08T12:00", 4 * hour),
      ...times("2026-01-08T14:00", "2026-01-15T10:00", 2 * hour),
      ...recent,
    ]);
  });
});
