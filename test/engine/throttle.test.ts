/** Limits on virtual time: nothing here waits for a real clock. */
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { Sink } from "../../engine/sink.ts";
import { Bandwidth, type BandwidthTable, limited, type Weekday } from "../../engine/throttle.ts";
import { FaultySink } from "../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../sink/memory.ts";

const kib = 1024;
const mib = 1024 * kib;
const hourMs = 3_600_000;

beforeEach(() => {
  // Not setImmediate, with which a sink in memory gives others a turn.
  vi.useFakeTimers({
    now: Date.UTC(2026, 0, 15, 12, 0, 0),
    toFake: ["setTimeout", "clearTimeout", "Date", "performance"],
  });
});
afterEach(() => {
  vi.useRealTimers();
});

/** Takes and notes when it was given, in ms from now. */
function taken(
  bandwidth: Bandwidth,
  bytes: number,
  signal?: AbortSignal,
): { readonly atMs: number | undefined; readonly done: Promise<void> } {
  const startedMs = performance.now();
  const note: { atMs: number | undefined; done: Promise<void> } = { atMs: undefined, done: Promise.resolve() };
  note.done = bandwidth.take(bytes, signal).then(() => {
    note.atMs = performance.now() - startedMs;
  });
  note.done.catch(() => undefined);
  return note;
}

/** Uses up what a limit lets go at once. */
async function drained(bytesPerSecond: number): Promise<Bandwidth> {
  const bandwidth = new Bandwidth({ bytesPerSecond });
  const first = taken(bandwidth, 1);
  await vi.advanceTimersByTimeAsync(1000);
  await first.done;
  await bandwidth.take(bytesPerSecond / 4);
  return bandwidth;
}

describe("a limit", () => {
  test("lets through what it allows, to a hundredth, whatever the sizes", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.integer({ min: 100 * kib, max: 500 * mib }),
        fc.array(fc.integer({ min: 1, max: 4 * mib }), { minLength: 1, maxLength: 20 }),
        async (limit, sizes) => {
          const bandwidth = new Bandwidth({ bytesPerSecond: limit });
          let sentBytes = 0;
          const stop = new AbortController();
          const lane = async (): Promise<void> => {
            for (let index = 0; ; index++) {
              const bytes = sizes[index % sizes.length] ?? 1;
              await bandwidth.take(bytes, stop.signal);
              sentBytes += bytes;
            }
          };
          // Enough bytes for the size of a request not to matter, and few enough requests to be
          // quick.
          const seconds = Math.min(60, Math.max(2, (400 * Math.max(...sizes)) / limit));
          const lanes = Array.from({ length: 4 }, () => lane().catch(() => undefined));
          const wholeTurns = Math.min(
            seconds,
            (3000 * (sizes.reduce((sum, size) => sum + size, 0) / sizes.length)) / limit,
          );
          await vi.advanceTimersByTimeAsync(wholeTurns * 1000);
          stop.abort();
          await Promise.all(lanes);
          expect(sentBytes).toBeLessThanOrEqual(limit * wholeTurns * 1.001 + 1);
          expect(sentBytes).toBeGreaterThanOrEqual(limit * wholeTurns * 0.99 - 4 * mib - limit * 0.01);
        },
      ),
      { numRuns: 30 },
    );
  });

  test("saves up a quarter of a second while nothing is sent, not more", async () => {
    const bandwidth = new Bandwidth({ bytesPerSecond: 1000 * kib });
    await vi.advanceTimersByTimeAsync(hourMs);
    const burst = taken(bandwidth, 250 * kib);
    const next = taken(bandwidth, 100 * kib);
    await vi.advanceTimersByTimeAsync(200);
    expect(burst.atMs).toBe(0);
    expect(next.atMs).toBe(100);
  });

  test("lets a request through that is larger than what it gives in a minute, in its time", async () => {
    const bandwidth = await drained(16 * kib);
    const large = taken(bandwidth, 4 * mib);
    await vi.advanceTimersByTimeAsync(255_900);
    expect(large.atMs).toBeUndefined();
    await vi.advanceTimersByTimeAsync(200);
    expect(large.atMs).toBe(256_000);
  });

  test("serves callers in the order of their calls", async () => {
    const bandwidth = await drained(100 * kib);
    const order: string[] = [];
    const takes = [["large", 200 * kib] as const, ["small", 1] as const, ["smaller", 1] as const].map(
      async ([name, bytes]) => {
        await bandwidth.take(bytes);
        order.push(name);
      },
    );
    await vi.advanceTimersByTimeAsync(1900);
    expect(order).toEqual([]);
    await vi.advanceTimersByTimeAsync(200);
    await Promise.all(takes);
    expect(order).toEqual(["large", "small", "smaller"]);
  });

  test("of none holds no caller up", async () => {
    const bandwidth = new Bandwidth();
    for (let index = 0; index < 100; index++) await bandwidth.take(4 * mib);
    expect(vi.getTimerCount()).toBe(0);
    expect(bandwidth.bytesPerSecond).toBeUndefined();
  });

  test("leaves no timer behind when no caller waits", async () => {
    const bandwidth = await drained(100 * kib);
    const last = taken(bandwidth, 100 * kib);
    await vi.advanceTimersByTimeAsync(1000);
    expect(last.atMs).toBe(1000);
    expect(vi.getTimerCount()).toBe(0);
  });
});

describe("a change while a caller waits", () => {
  test("counts from now on: faster", async () => {
    const bandwidth = await drained(100 * kib);
    const waiting = taken(bandwidth, 1000 * kib);
    await vi.advanceTimersByTimeAsync(5000);
    bandwidth.setLimit(1000 * kib);
    await vi.advanceTimersByTimeAsync(600);
    expect(waiting.atMs).toBe(5500);
  });

  test("counts from now on: slower", async () => {
    const bandwidth = await drained(100 * kib);
    const waiting = taken(bandwidth, 200 * kib);
    await vi.advanceTimersByTimeAsync(1000);
    bandwidth.setLimit(10 * kib);
    await vi.advanceTimersByTimeAsync(9000);
    expect(waiting.atMs).toBeUndefined();
    await vi.advanceTimersByTimeAsync(1000);
    expect(waiting.atMs).toBe(11_000);
  });

  test("to no limit lets everybody go, and back to the table holds the next", async () => {
    const bandwidth = await drained(100 * kib);
    const waiting = [taken(bandwidth, 100 * mib), taken(bandwidth, 100 * mib)];
    bandwidth.setLimit(Infinity);
    await Promise.all(waiting.map(({ done }) => done));
    expect(bandwidth.bytesPerSecond).toBeUndefined();
    bandwidth.setLimit(undefined);
    expect(bandwidth.bytesPerSecond).toBe(100 * kib);
    const next = taken(bandwidth, 125 * kib);
    await vi.advanceTimersByTimeAsync(1100);
    expect(next.atMs).toBe(1000);
  });

  test("of the table wakes waiting callers", async () => {
    const bandwidth = await drained(1 * kib);
    const waiting = taken(bandwidth, 100 * mib);
    bandwidth.setTable({});
    await waiting.done;
    expect(waiting.atMs).toBe(0);
  });

  test("that is refused changes nothing", async () => {
    const bandwidth = new Bandwidth({ bytesPerSecond: 100 * kib });
    expect(() => bandwidth.setLimit(0)).toThrow("below 1024");
    expect(() => bandwidth.setLimit(Number.NaN)).toThrow("below 1024");
    expect(() => bandwidth.setTable({ timeZone: "Mars/Olympus" })).toThrow("no time zone");
    expect(bandwidth.bytesPerSecond).toBe(100 * kib);
  });
});

describe("a caller that gives up", () => {
  test("leaves the queue at once, and what it had collected to the next", async () => {
    const bandwidth = await drained(100 * kib);
    const stop = new AbortController();
    const first = taken(bandwidth, 100 * kib, stop.signal);
    const second = taken(bandwidth, 100 * kib);
    await vi.advanceTimersByTimeAsync(900);
    stop.abort();
    await expect(first.done).rejects.toMatchObject({ code: "INTERRUPTED" });
    expect(bandwidth.waiting).toBe(1);
    await vi.advanceTimersByTimeAsync(200);
    expect(second.atMs).toBe(1000);
  });

  test("before waiting takes nothing", async () => {
    const bandwidth = new Bandwidth({ bytesPerSecond: 100 * kib });
    await expect(bandwidth.take(1, AbortSignal.abort())).rejects.toMatchObject({ code: "INTERRUPTED" });
    expect(bandwidth.waiting).toBe(0);
  });
});

describe("a table", () => {
  const limitsAt = (table: BandwidthTable, ...times: readonly string[]): (number | undefined)[] => {
    const bandwidth = new Bandwidth(table);
    return times.map((time) => {
      vi.setSystemTime(new Date(time));
      return bandwidth.bytesPerSecond;
    });
  };
  const workdays: readonly Weekday[] = ["Mon", "Tue", "Wed", "Thu", "Fri"];

  test("knows the time of day and the weekday of its time zone", () => {
    const table = {
      timeZone: "Europe/Berlin",
      bytesPerSecond: 9000,
      windows: [{ from: "09:00", to: "18:00", days: workdays, bytesPerSecond: 2000 }],
    };
    // Friday, in winter one hour ahead of UTC; Saturday.
    const times = [
      "2026-01-16T07:59:59Z",
      "2026-01-16T08:00:00Z",
      "2026-01-16T16:59:59Z",
      "2026-01-16T17:00:00Z",
      "2026-01-17T10:00:00Z",
    ];
    expect(limitsAt(table, ...times)).toEqual([9000, 2000, 2000, 9000, 9000]);
  });

  test("has windows over midnight, which belong to the day on which they begin", () => {
    const table: BandwidthTable = { windows: [{ from: "22:00", to: "06:00", days: ["Fri"], bytesPerSecond: 5000 }] };
    const times = [
      "2026-01-16T05:00:00Z",
      "2026-01-16T21:59:00Z",
      "2026-01-16T22:00:00Z",
      "2026-01-17T05:59:00Z",
      "2026-01-17T06:00:00Z",
      "2026-01-17T23:00:00Z",
    ];
    expect(limitsAt(table, ...times)).toEqual([undefined, undefined, 5000, 5000, undefined, undefined]);
  });

  test("has windows of a whole day, written either way", () => {
    const dayOf = (from: string, to: string): BandwidthTable => ({
      windows: [{ from, to, days: ["Sun"], bytesPerSecond: 5000 }],
    });
    for (const table of [dayOf("00:00", "24:00"), dayOf("00:00", "00:00")]) {
      expect(
        limitsAt(table, "2026-01-17T23:59:00Z", "2026-01-18T00:00:00Z", "2026-01-18T23:59:00Z", "2026-01-19T00:00:00Z"),
      ).toEqual([undefined, 5000, 5000, undefined]);
    }
  });

  test("goes by the clock on the wall when that is put forward and back", () => {
    const table = { timeZone: "Europe/Berlin", windows: [{ from: "02:30", to: "03:30", bytesPerSecond: 5000 }] };
    // 29 March 2026: 01:59 is followed by 03:00. 25 October: 02:30 comes twice.
    expect(limitsAt(table, "2026-03-29T00:59:00Z", "2026-03-29T01:00:00Z", "2026-03-29T01:30:00Z")).toEqual([
      undefined,
      5000,
      undefined,
    ]);
    expect(
      limitsAt(table, "2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:30:00Z", "2026-10-25T02:30:00Z"),
    ).toEqual([5000, undefined, 5000, undefined]);
  });

  test("takes the first window that fits, which may lift the limit", () => {
    const table = {
      bytesPerSecond: 2000,
      windows: [
        { from: "12:00", to: "13:00", bytesPerSecond: undefined },
        { from: "08:00", to: "18:00", bytesPerSecond: 3000 },
      ],
    };
    expect(limitsAt(table, "2026-01-15T12:30:00Z", "2026-01-15T13:00:00Z", "2026-01-15T18:00:00Z")).toEqual([
      undefined,
      3000,
      2000,
    ]);
  });

  test("lets waiting callers go when the next window begins", async () => {
    vi.setSystemTime(new Date("2026-01-15T17:59:30Z"));
    const bandwidth = new Bandwidth({ windows: [{ from: "09:00", to: "18:00", bytesPerSecond: 1 * kib }] });
    const waiting = taken(bandwidth, 100 * mib);
    await vi.advanceTimersByTimeAsync(31_000);
    expect(waiting.atMs).toBe(30_000);
  });

  test("does not count the time before a faster window at the faster rate", async () => {
    vi.setSystemTime(new Date("2026-01-15T17:59:30Z"));
    const bandwidth = new Bandwidth({
      bytesPerSecond: 1 * mib,
      windows: [{ from: "09:00", to: "18:00", bytesPerSecond: 1 * kib }],
    });
    const waiting = taken(bandwidth, 1 * mib + 30 * kib);
    await vi.advanceTimersByTimeAsync(40_000);
    expect(waiting.atMs).toBe(31_000);
  });

  test("is refused with all of its faults at once", () => {
    const table: BandwidthTable = {
      timeZone: "Nowhere",
      bytesPerSecond: 5,
      windows: [{ from: "25:00", to: "9:00", days: ["Montag" as Weekday], bytesPerSecond: 2000 }],
    };
    let message = "";
    try {
      new Bandwidth(table);
    } catch (error) {
      message = String(error);
    }
    for (const fault of ["Nowhere", "5 bytes", "25:00", "9:00", "Montag"]) expect(message).toContain(fault);
  });
});

describe("a limited sink", () => {
  const fence = { sequenceNumber: 1 };
  async function open(options?: { reads: boolean }): Promise<{ inner: FaultySink; sink: Sink; bandwidth: Bandwidth }> {
    const inner = new FaultySink(new MemorySink({ store: new MemoryStore() }), []);
    const bandwidth = await drained(100 * kib);
    await inner.createContainer();
    await inner.createPages("p", 1 * mib, 1);
    return { inner, sink: limited(inner, bandwidth, options), bandwidth };
  }

  test("sends pages and objects when their bytes have accrued", async () => {
    const { inner, sink } = await open();
    const writing = Promise.all([
      sink.writePages("p", 0, new Uint8Array(100 * kib), fence),
      sink.putObject("o", new Uint8Array(50 * kib), { ifAbsent: true }),
    ]);
    await vi.advanceTimersByTimeAsync(900);
    expect(inner.calls.slice(2)).toEqual([]);
    await vi.advanceTimersByTimeAsync(200);
    expect(inner.calls.slice(2)).toEqual(["writePages p"]);
    await vi.advanceTimersByTimeAsync(500);
    await writing;
    expect(inner.calls.slice(2)).toEqual(["writePages p", "putObject o"]);
  });

  test("passes on a refusal and does not send what was given up", async () => {
    const { inner, sink } = await open();
    const refused = sink.writePages("p", 0, new Uint8Array(1 * kib), { sequenceNumber: 7 });
    const isRefused = expect(refused).rejects.toMatchObject({ code: "CONDITION_FAILED" });
    await vi.advanceTimersByTimeAsync(20);
    await isRefused;
    const stop = new AbortController();
    const given = sink.putObject("o", new Uint8Array(100 * kib), { ifAbsent: true }, { signal: stop.signal });
    stop.abort();
    await expect(given).rejects.toMatchObject({ code: "INTERRUPTED" });
    expect(inner.calls).not.toContain("putObject o");
  });

  test("reads without waiting, unless it is told to", async () => {
    const free = await open();
    await free.sink.readPages("p", 0, new Uint8Array(1 * mib));
    const held = await open({ reads: true });
    const reading = held.sink.readPages("p", 0, new Uint8Array(100 * kib));
    await vi.advanceTimersByTimeAsync(900);
    expect(held.inner.calls.slice(2)).toEqual([]);
    await vi.advanceTimersByTimeAsync(200);
    await reading;
    await held.inner.putObject("o", new Uint8Array(100 * kib), { ifAbsent: true });
    const getting = held.sink.getObject("o", 1 * mib);
    await vi.waitFor(() => expect(held.bandwidth.waiting).toBe(1));
    await vi.advanceTimersByTimeAsync(1100);
    expect((await getting).bytes).toHaveLength(100 * kib);
  });

  test("is the sink in everything else", async () => {
    const inner = new FaultySink(new MemorySink({ store: new MemoryStore() }), []);
    const sink = limited(inner, new Bandwidth());
    await sink.createContainer();
    await sink.createPages("p", 1 * mib, 1);
    expect(sink.description).toBe(inner.description);
    expect(sink.capabilities).toEqual(inner.capabilities);
    expect(inner.calls).toEqual(["createContainer", "createPages p"]);
    await inner.putObject("o", new Uint8Array(1), { ifAbsent: true });
    const listed: string[] = [];
    for await (const { name } of sink.list("")) listed.push(name);
    expect(listed.sort()).toEqual(["o", "p"]);
    expect(await sink.statPages("p")).toMatchObject({ sizeBytes: 1 * mib });
    await sink.clearPages("p", 0, 1 * mib);
    expect(inner.calls.at(-1)).toBe("clearPages p");
    await sink[Symbol.asyncDispose]();
  });
});
