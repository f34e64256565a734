/** When points are due, on clocks that tests move. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import type { Instant } from "../../../../engine/clocks.ts";
import { Schedule, type SchedulePlan } from "../../../../engine/replication/protection/schedule.ts";

const second = 1000;
const minute = 60 * second;
const hour = 60 * minute;
const noon = Date.UTC(2026, 0, 15, 12, 0, 0);
const steadily: SchedulePlan = { crashConsistentFrequencyMs: 5 * second, disk: "d", jitterFraction: 0 };

const at = (sinceMs: number, wallMs = noon + sinceMs): Instant => ({ steadyMs: 777 + sinceMs, wallMs });

/** Runs a schedule for a while; every point takes `tookMs`. Gives what was begun when. */
function run(
  plan: SchedulePlan,
  forMs: number,
  tookMs: (index: number) => number = () => 0,
  startMs = 0,
): { ms: number; consistency: string }[] {
  const schedule = new Schedule(plan, at(startMs));
  const begun: { ms: number; consistency: string }[] = [];
  let nowMs = startMs;
  for (;;) {
    const due = schedule.next(at(nowMs));
    nowMs += due.inMs;
    if (nowMs >= startMs + forMs) return begun;
    if (!due.isPoint) continue;
    schedule.started(due.consistency, at(nowMs));
    begun.push({ ms: nowMs - startMs, consistency: due.consistency });
    nowMs += tookMs(begun.length - 1);
  }
}

const times = (begun: readonly { ms: number }[]): number[] => begun.map(({ ms }) => ms / second);

describe("a schedule", () => {
  test("has its first point at once and then one each period", () => {
    expect(times(run(steadily, 20 * second))).toEqual([0, 5, 10, 15]);
  });

  test("keeps its grid when points take their time", () => {
    expect(times(run(steadily, 20 * second, () => 3 * second))).toEqual([0, 5, 10, 15]);
  });

  test("follows a point that overran by one at once, not by all that were missed, and returns to its grid", () => {
    expect(times(run(steadily, 40 * second, (index) => (index === 0 ? 22 * second : 0)))).toEqual([0, 22, 25, 30, 35]);
  });

  test("does not wait when every point overruns", () => {
    expect(times(run(steadily, 30 * second, () => 7 * second))).toEqual([0, 7, 14, 21, 28]);
  });

  test("counts a point on demand for the period in which it was made", () => {
    const schedule = new Schedule(steadily, at(0));
    schedule.started("crash", at(0));
    schedule.started("crash", at(6 * second));
    expect(schedule.next(at(6 * second)).inMs).toBe(4 * second);
  });

  test("neither skips nor repeats anything when the wall clock is set", () => {
    const schedule = new Schedule({ ...steadily, appConsistentFrequencyMs: hour }, at(1));
    schedule.started("crash", at(1));
    for (const wallMs of [0, noon - 3 * hour, noon + 3 * hour, noon + 1000 * hour]) {
      expect(schedule.next(at(second, wallMs))).toEqual({ inMs: 4 * second + 1, consistency: "crash", isPoint: true });
    }
  });
});

describe("the start time", () => {
  test("holds the first point back", () => {
    const begun = run({ ...steadily, startTimeMs: noon + 10 * minute }, 10 * minute + 11 * second);
    expect(times(begun)).toEqual([600, 605, 610]);
  });

  test("is read on the wall clock, also when that is set meanwhile", () => {
    const schedule = new Schedule({ ...steadily, startTimeMs: noon + hour }, at(0));
    expect(schedule.next(at(0))).toMatchObject({ inMs: minute, isPoint: false });
    expect(schedule.next(at(minute, noon + hour))).toMatchObject({ inMs: 0, isPoint: true });
  });

  test("that has passed holds nothing back", () => {
    expect(times(run({ ...steadily, startTimeMs: noon - hour }, 6 * second))).toEqual([0, 5]);
  });
});

describe("application-consistent points", () => {
  const plan: SchedulePlan = { ...steadily, crashConsistentFrequencyMs: 7 * minute, appConsistentFrequencyMs: hour };

  test("are the first ticks at or after round times", () => {
    const begun = run(plan, 3 * hour, () => 0, 10 * minute);
    const ofWall = begun.filter(({ consistency }) => consistency === "app").map(({ ms }) => ms / minute + 10);
    // From 12:10 on every 7 minutes: 13:06, 14:02, 15:05.
    expect(ofWall).toEqual([66, 122, 185]);
    expect(begun).toHaveLength(Math.ceil(180 / 7));
  });

  test("that were missed while the agent was stopped are due with the first tick, once, and the next at its round time", () => {
    for (const last of [undefined, noon - 1, noon - 2 * hour]) {
      const schedule = new Schedule(plan, at(10 * minute));
      expect(schedule.lastRoundMs(at(10 * minute))).toBe(noon);
      schedule.catchUp(last, at(10 * minute));
      expect(schedule.next(at(10 * minute))).toMatchObject({ inMs: 0, consistency: "app" });
      schedule.started("app", at(10 * minute));
      expect(schedule.next(at(10 * minute)).consistency).toBe("crash");
      schedule.started("crash", at(59 * minute));
      expect(schedule.next(at(60 * minute))).toMatchObject({ consistency: "app" });
    }
  });

  test("are not due at once when the last was made since the round time, or has a time in the future", () => {
    for (const last of [noon, noon + 50 * hour]) {
      const schedule = new Schedule(plan, at(10 * minute));
      schedule.catchUp(last, at(10 * minute));
      expect(schedule.next(at(10 * minute)).consistency).toBe("crash");
    }
  });

  test("are not caught up before the start time, nor where none are made on schedule", () => {
    for (const other of [{ ...plan, startTimeMs: noon + hour }, steadily]) {
      const schedule = new Schedule(other, at(10 * minute));
      expect(schedule.lastRoundMs(at(10 * minute))).toBeUndefined();
      schedule.catchUp(undefined, at(10 * minute));
      expect(schedule.next(at(90 * minute)).consistency).toBe("crash");
    }
  });

  test("can be switched on, and the grid of the others stays", () => {
    const schedule = new Schedule(steadily, at(0));
    schedule.started("crash", at(0));
    schedule.replan({ ...steadily, appConsistentFrequencyMs: 2 * second }, at(second));
    expect(schedule.next(at(second))).toEqual({ inMs: 4 * second, consistency: "app", isPoint: true });
    schedule.replan(steadily, at(2 * second));
    expect(schedule.next(at(2 * second)).consistency).toBe("crash");
  });
});

describe("jitter", () => {
  const jittered = (disk: string, jitterFraction?: number, crashConsistentFrequencyMs = 100 * second): number =>
    new Schedule({ disk, crashConsistentFrequencyMs, jitterFraction }, at(0)).next(at(0)).inMs;

  test("is the same for the same disk and stays within its part of the period", () => {
    fc.assert(
      fc.property(fc.string(), fc.double({ min: 0, max: 1, noNaN: true }), (disk, fraction) => {
        const inMs = jittered(disk, fraction, 20 * second);
        expect(inMs).toBe(jittered(disk, fraction, 20 * second));
        expect(inMs).toBeLessThanOrEqual(fraction * 20 * second);
      }),
    );
  });

  test("spreads disks, at most over half a minute", () => {
    const spread = Array.from({ length: 100 }, (_, index) => jittered(`disk-${index}`, undefined, hour));
    expect(Math.max(...spread)).toBeLessThanOrEqual(30 * second);
    expect(Math.max(...spread)).toBeGreaterThan(25 * second);
    expect(Math.min(...spread)).toBeLessThan(5 * second);
    expect(new Set(spread).size).toBeGreaterThan(95);
  });
});

test("points never come closer than they take, nor are they further apart than a period or the one that overran", () => {
  const plans = fc.record({
    crashConsistentFrequencyMs: fc.integer({ min: 1, max: 10_000 }),
    appConsistentFrequencyMs: fc.option(fc.integer({ min: 1, max: 50_000 }), { nil: undefined }),
    disk: fc.string(),
  });
  fc.assert(
    fc.property(plans, fc.array(fc.integer({ min: 1, max: 30_000 }), { minLength: 1 }), (plan, took) => {
      const durationOf = (index: number): number => took[index % took.length] ?? 0;
      const begun = run(plan, 20 * plan.crashConsistentFrequencyMs, durationOf);
      for (const [index, { ms }] of begun.slice(1).entries()) {
        const gapMs = ms - (begun[index]?.ms ?? 0);
        expect(gapMs).toBeGreaterThanOrEqual(durationOf(index));
        expect(gapMs).toBeLessThanOrEqual(Math.max(plan.crashConsistentFrequencyMs, durationOf(index)));
      }
    }),
  );
});
