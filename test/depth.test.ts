/** The depth of the tests: a quick run samples, a deep run takes more. */
import { afterEach, expect, test, vi } from "vitest";

afterEach(() => {
  vi.unstubAllEnvs();
  vi.resetModules();
});

async function depthAt(name: string): Promise<typeof import("./depth.ts")> {
  vi.resetModules();
  vi.stubEnv("TIDEMARK_TEST_DEPTH", name);
  return await import("./depth.ts");
}

test("a quick sample has the first, the last and one call from each part between, the same each time", async () => {
  const { callsOf, sampleOf } = await depthAt("quick");
  for (let last = 1; last <= 300; last += 1) {
    const calls = callsOf(1, last);
    expect(calls).toEqual(callsOf(1, last));
    expect(calls).toHaveLength(Math.min(last, 3));
    expect([calls[0], calls.at(-1)]).toEqual([1, last]);
    expect([...calls].sort((a, b) => a - b)).toEqual(calls);
  }
  expect(callsOf(1, 0)).toEqual([]);
  expect(sampleOf(["a", "b", "c", "d"], 2)).toEqual(["a", "d"]);
});

test("a deep run takes a larger sample, the same on one day and another on the next", async () => {
  const onDay = async (day: string): Promise<readonly number[]> => {
    vi.stubEnv("TIDEMARK_TEST_DAY", day);
    return (await depthAt("deep")).callsOf(1, 100);
  };
  const calls = await onDay("20000");
  expect(calls).toEqual(await onDay("20000"));
  expect(calls).toHaveLength(12);
  expect([calls[0], calls.at(-1)]).toEqual([1, 100]);
  const met = new Set(calls);
  for (let day = 20_001; day < 20_100; day += 1) for (const call of await onDay(String(day))) met.add(call);
  expect(met.size).toBe(100);
});

test("a deep run takes every round and every run", async () => {
  const { byDepth, runsOf } = await depthAt("deep");
  expect(byDepth(2, 20)).toBe(20);
  expect(runsOf(60)).toBe(60);
});

test("a quick run has fewer repetitions and runs, and never none", async () => {
  const { byDepth, runsOf } = await depthAt("quick");
  expect(byDepth(2, 20)).toBe(2);
  expect([runsOf(60), runsOf(1)]).toEqual([6, 1]);
});

test("a quick run takes the items of a sweep in turn, a deep run all of them at each step", async () => {
  const items = ["a", "b", "c"];
  const quick = await depthAt("quick");
  expect([0, 1, 2, 3].map((step) => quick.inTurn(items, step))).toEqual([["a"], ["b"], ["c"], ["a"]]);
  expect((await depthAt("deep")).inTurn(items, 1)).toEqual(items);
});

test("a quick run has no deep test, a deep run has", async () => {
  await depthAt("quick");
  const { deepTest } = await import("./deep-test.ts");
  // A test that was registered while another one runs would end this one with an error.
  deepTest.each([1])("is never registered: %i", () => {
    expect.fail();
  });
  expect(deepTest).not.toBe(test);
  await depthAt("deep");
  expect((await import("./deep-test.ts")).deepTest).toBe(test);
});

test("a depth of another name is refused", async () => {
  await expect(depthAt("shallow")).rejects.toThrow("TIDEMARK_TEST_DEPTH is shallow");
});
