/** The plan of loads whose answers follow from arithmetic. */
import { expect, test } from "vitest";
import type { DiskLoad, Load } from "../../../cli/capacity/load.ts";
import { type PlanQuestion, planCapacity } from "../../../cli/capacity/plan.ts";
import { ageAt, Shipping, shareWithin } from "../../../cli/capacity/shipping.ts";
import { parsePolicy } from "../../../engine/index.ts";

const mib = 1024 * 1024;
const gib = 1024 * mib;
const slotMs = 30_000;
const minuteMs = 60_000;
const never: AbortSignal = new AbortController().signal;

/** A disk that changes other granules in each slot: nothing is written twice. */
function growing(bytes: readonly number[], more: Partial<DiskLoad> = {}): DiskLoad {
  return {
    disk: "d",
    source: "scan",
    sizeBytes: 100 * gib,
    first: { dataBytes: 40 * gib, storedBytes: 20 * gib },
    storedShare: 1,
    changedBytes: (from, end) => bytes.slice(from, end).reduce((sum, each) => sum + each, 0),
    writtenBytes: undefined,
    writes: undefined,
    coreBytesPerSecond: undefined,
    share: 1,
    readTimeShare: 0,
    ...more,
  };
}

/** A disk that writes the same granules over and over. */
function hot(bytes: number): DiskLoad {
  return growing([], { changedBytes: (from, end) => (end > from ? bytes : 0) });
}

function loadOf(slots: number, ...disks: readonly DiskLoad[]): Load {
  return { slotMs, slots, fromMs: 0, toMs: slots * slotMs, gapSlots: 0, disks };
}

const steady: Load = loadOf(240, growing(Array.from({ length: 240 }, () => 30 * mib)));
const question: PlanQuestion = { rposMs: [10 * minuteMs], bandwidths: [], retentions: [], growth: 0 };

test("a steady load needs its own rate, whatever the objective", async () => {
  const { objectives } = await planCapacity(steady, { ...question, rposMs: [minuteMs, 10 * minuteMs] }, never);
  expect(objectives).toEqual([
    { rpoMs: minuteMs, cycleMs: slotMs, needed: { always: mib, most: mib, often: mib } },
    { rpoMs: 10 * minuteMs, cycleMs: 5 * minuteMs, needed: { always: mib, most: mib, often: mib } },
  ]);
});

test("what is written over and over needs less with a longer objective", async () => {
  const load = loadOf(240, hot(30 * mib));
  const { objectives } = await planCapacity(load, { ...question, rposMs: [minuteMs, 10 * minuteMs] }, never);
  expect(objectives.map(({ needed }) => needed.always)).toEqual([mib, Math.ceil(mib / 10)]);
});

test("a burst asks for its rate always, and for little 95 % of the time", async () => {
  const bytes = Array.from({ length: 240 }, (_, slot) => (slot >= 100 && slot < 110 ? 300 * mib : 3 * mib));
  const { objectives } = await planCapacity(loadOf(240, growing(bytes)), question, never);
  const needed = objectives[0]?.needed;
  expect(needed?.always).toBe(10 * mib);
  // The ten bad slots are 4 % of the time, and their backlog has to be gone soon after.
  expect(needed?.most).toBeLessThan(6 * mib);
  expect(needed?.often).toBeLessThan(needed?.most ?? 0);
  expect(needed?.often).toBeGreaterThan(0.1 * mib);
});

test("the line that is told to be needed reaches the objective, and a little less does not", () => {
  const bytes = Array.from({ length: 480 }, (_, slot) => (slot % 97 < 7 ? 90 * mib : 5 * mib));
  const shipping = new Shipping(loadOf(480, growing(bytes)), 0);
  const rpoMs = 10 * minuteMs;
  for (const share of [1, 0.95, 0.9]) {
    const needed = shipping.neededBytesPerSecond(rpoMs, 10, share);
    expect(shareWithin(shipping.ages(needed, 10), rpoMs)).toBeGreaterThanOrEqual(share - 1e-9);
    expect(shareWithin(shipping.ages(needed * 0.98, 10), rpoMs)).toBeLessThan(share);
  }
});

test("ages rise by the time between commits and fall to the age of the cut", () => {
  // Each cycle ships for 15 s of a slot of 30 s.
  const ages = new Shipping(steady, 0).ages(2 * mib, 1);
  expect(ages.fromMs.slice(0, 3)).toEqual([0, 15_000, 15_000]);
  expect(ages.toMs.slice(0, 3)).toEqual([45_000, 45_000, 45_000]);
  expect(ageAt(ages, 1)).toBe(45_000);
  expect(shareWithin(ages, 30_000)).toBeCloseTo(0.5, 2);
});

test("a line below the load falls behind and the plan says so; growth makes any line narrower", async () => {
  const bandwidths = [0.5 * mib, 1.1 * mib, 4 * mib];
  const { lines } = await planCapacity(steady, { ...question, bandwidths }, never);
  expect(lines.map(({ fallsBehind }) => fallsBehind)).toEqual([true, false, false]);
  expect(lines[0]?.rpoMs.always).toBeGreaterThan(60 * minuteMs);
  expect(lines[2]?.met).toEqual([{ rpoMs: 10 * minuteMs, share: 1 }]);
  const grown = await planCapacity(steady, { ...question, bandwidths, growth: 0.3 }, never);
  expect(grown.lines.map(({ fallsBehind }) => fallsBehind)).toEqual([true, true, false]);
});

test("without lines to look at, the plan looks at those that are needed, and at half of the least", async () => {
  const bytes = Array.from({ length: 240 }, (_, slot) => (slot >= 100 && slot < 110 ? 300 * mib : 3 * mib));
  const { lines, objectives, limits } = await planCapacity(loadOf(240, growing(bytes)), question, never);
  const { always = 0, most = 0, often = 0 } = objectives[0]?.needed ?? {};
  expect(lines.map(({ bytesPerSecond }) => bytesPerSecond)).toEqual([Math.ceil(often / 2), often, most, always]);
  expect(lines.at(-1)?.met).toEqual([{ rpoMs: 10 * minuteMs, share: 1 }]);
  expect(limits.map(({ limit }) => limit)).not.toContain("line");
});

test("the first replication takes what the changes leave of the line, in batches of three days", async () => {
  const disks = [1, 2, 3].map((number) =>
    growing(
      Array.from({ length: 240 }, () => 30 * mib),
      { disk: `d${number}`, first: { dataBytes: 500 * gib, storedBytes: 500 * gib } },
    ),
  );
  const { lines } = await planCapacity(loadOf(240, ...disks), { ...question, bandwidths: [3 * mib, 5 * mib] }, never);
  expect(lines[0]?.first).toBeNull();
  // 500 GiB at (5 - 1) MiB/s are 35.6 h, two disks at (5 - 2) are 94.8 h; the last has 2 MiB/s left.
  const first = lines[1]?.first;
  expect(first?.batches.map((batch) => batch.disks)).toEqual([["d1"], ["d2"], ["d3"]]);
  expect(first?.batches.map(({ ms }) => Math.round(ms / 3_600_000))).toEqual([36, 47, 71]);
  expect(first?.inGoal).toBe(false);
});

test("limits are told with what is needed of each, and the one that binds first comes first", async () => {
  const writes = Array.from({ length: 240 }, (_, slot) => (slot === 7 ? 30 * 76_000 : 0));
  const load = loadOf(
    240,
    growing(
      Array.from({ length: 240 }, () => 30 * 100 * mib),
      { writes },
    ),
  );
  const { limits } = await planCapacity(load, { ...question, bandwidths: [50 * mib] }, never);
  expect(limits.slice(0, 4).map(({ limit, headroom }) => [limit, Number(headroom?.toFixed(2))])).toEqual([
    ["line", 0.5],
    ["nbd-writes", 1],
    ["page-blob-bytes", 3],
    ["core", 3.15],
  ]);
});

test("stored is the disk once and what changed between the points that are kept", async () => {
  const retentions = ["keep:last=3", "days:0"].map(parsePolicy);
  const prices = { currency: "EUR", storedGiBMonth: 0.5, writes10k: 1, reads10k: 0.5 };
  const { storage } = await planCapacity(steady, { ...question, retentions, prices }, never);
  // Cycles of 5 minutes change 300 MiB.
  expect(storage.map(({ storedBytes, points }) => [points, Math.round(storedBytes / mib)])).toEqual([
    [3, 20 * 1024 + 600],
    [1, 20 * 1024],
  ]);
  const [three] = storage;
  expect(three?.cost?.stored).toBeCloseTo((20 + 600 / 1024) / 2, 2);
  // 8,640 points of ten requests each way, and frames of 4 MiB.
  expect(three?.writeRequests).toBe(Math.round(8_640 * 10 + (20 * 1024 + 30 * 86_400) / 4));
  expect(three?.cost?.requests).toBeCloseTo(((three?.writeRequests ?? 0) + 43_200) / 10_000, 5);
});

test("a cycle in which a disk did not change makes no point and no request", async () => {
  const retentions = [parsePolicy("days:1")];
  const idle = await planCapacity(loadOf(240, growing([])), { ...question, retentions }, never);
  expect(idle.storage[0]).toMatchObject({ points: 1, readRequests: 0, writeRequests: (20 * gib) / (4 * mib) });
  // Every second cycle of ten slots, on one of two disks.
  const bytes = Array.from({ length: 240 }, (_, slot) => (Math.floor(slot / 10) % 2) * mib);
  const half = await planCapacity(loadOf(240, growing(bytes), growing([])), { ...question, retentions }, never);
  expect(half.storage[0]?.readRequests).toBe((8_640 * 10) / 2);
});

test("changes between points farther apart than the profile is long follow its trend, up to the whole disk", async () => {
  const retentions = [parsePolicy("keep:last=1,daily=30")];
  const { storage } = await planCapacity(steady, { ...question, retentions }, never);
  // 30 days of 84 GiB each, all but the newest point's.
  expect(storage[0]?.storedBytes ?? 0).toBeGreaterThan(29 * 80 * gib);
  const { storage: small } = await planCapacity(loadOf(240, hot(30 * mib)), { ...question, retentions }, never);
  expect(small[0]?.storedBytes ?? 0).toBeLessThan(20 * gib + 31 * 31 * mib);
});

test("windows tell what changed in a span of time, and disks add up", async () => {
  const load = loadOf(240, hot(10 * mib), growing(Array.from({ length: 240 }, (_, slot) => (slot % 2) * 2 * mib)));
  const { windows } = await planCapacity(load, question, never);
  expect(
    windows.map(({ spanMs, windows: count, meanBytes, maxBytes }) => [spanMs, count, meanBytes, maxBytes]),
  ).toEqual([
    [30_000, 240, 11 * mib, 12 * mib],
    [60_000, 120, 12 * mib, 12 * mib],
    [300_000, 24, 20 * mib, 20 * mib],
    [900_000, 8, 40 * mib, 40 * mib],
    [3_600_000, 2, 130 * mib, 130 * mib],
  ]);
});
