/** Meters on a clock that tests move, against sums over plain lists. */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { Meter, Stopwatch } from "../../../../engine/replication/protection/meters.ts";

describe("a meter", () => {
  test("tells the average of the last minute", () => {
    let nowMs = 12_345_000;
    const meter = new Meter(() => nowMs);
    for (let second = 0; second < 600; second++) {
      meter.add(1000);
      nowMs += 1000;
    }
    expect(meter.perSecond).toBe(1000);
    expect(meter.total).toBe(600_000);
    nowMs += 30_000;
    expect(meter.perSecond).toBeCloseTo(500, -2);
    nowMs += 30_000;
    expect(meter.perSecond).toBe(0);
  });

  test("tells the average of its life while that is shorter than a minute", () => {
    let nowMs = 999;
    const meter = new Meter(() => nowMs);
    meter.add(5000);
    expect(meter.perSecond).toBe(5000);
    nowMs += 10_000;
    expect(meter.perSecond).toBe(500);
  });

  test("forgets everything after a long silence", () => {
    let nowMs = 0;
    const meter = new Meter(() => nowMs);
    meter.add(5000);
    nowMs = 1e9;
    expect(meter.perSecond).toBe(0);
    meter.add(590);
    expect(meter.perSecond).toBeCloseTo(10);
  });

  test("agrees with a list of everything that was added", () => {
    const steps = fc.array(
      fc.record({ afterMs: fc.integer({ min: 0, max: 40_000 }), amount: fc.integer({ min: 0, max: 1e9 }) }),
    );
    fc.assert(
      fc.property(fc.integer({ min: 0, max: 1e6 }), steps, (startMs, additions) => {
        let nowMs = startMs;
        const meter = new Meter(() => nowMs);
        const list: { ms: number; amount: number }[] = [];
        for (const { afterMs, amount } of additions) {
          nowMs += afterMs;
          meter.add(amount);
          list.push({ ms: nowMs, amount });
          const windowStartMs = (Math.floor(nowMs / 1000) - 59) * 1000;
          const sum = list.filter(({ ms }) => ms >= windowStartMs).reduce((total, item) => total + item.amount, 0);
          const seconds = Math.min(nowMs - windowStartMs, Math.max(1000, nowMs - startMs)) / 1000;
          expect(meter.perSecond).toBeCloseTo(sum / seconds, 3);
        }
      }),
    );
  });
});

test("a stopwatch runs from when a condition began to hold until it ends", () => {
  let nowMs = 100;
  const spell = new Stopwatch(() => nowMs);
  expect(spell.elapsedMs).toBeNull();
  spell.set(true);
  nowMs = 300;
  spell.set(true);
  expect(spell.elapsedMs).toBe(200);
  spell.set(false);
  expect(spell.elapsedMs).toBeNull();
  spell.set(true);
  expect(spell.elapsedMs).toBe(0);
});
