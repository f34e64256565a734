/**
 * Scrubbing: what is proved when, what is found, named and healed, and that it can stop anywhere.
 */

import { setImmediate } from "node:timers/promises";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { Notice } from "../../../../engine/notice.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import type { ScrubOptions, ScrubSummary } from "../../../../engine/upkeep/scrub/scrub.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { callsOf, runsOf } from "../../../depth.ts";
import {
  checkNewest,
  closeModelVaults,
  contentOf,
  Expected,
  ModelDisk,
  openModelVault,
  redirected,
  replicateNoted,
} from "../../../model-disk.ts";
import {
  changedSegments,
  contentOfSegments,
  damagings,
  expectRestored,
  invert,
  segmentsOf,
  sprinkle,
} from "./damaged-vault.ts";
import { storedName, tamperObject } from "./tamper.ts";

const sizeBytes = 200_000;
let first: string;

let store: MemoryStore;
let line: { current: MemorySink | FaultySink };
let vault: Vault;
let disk: ModelDisk;
let expected: Expected;
let whole: Map<string, Buffer>;
/**
 * Disk d with three points of which it still holds everything: it only ever got content where zeros
 * were.
 */
beforeEach(async () => {
  store = new MemoryStore();
  line = { current: new MemorySink({ store }) };
  vault = await openModelVault(redirected(line));
  disk = new ModelDisk(Buffer.alloc(sizeBytes));
  expected = new Expected("d");
  for (const part of [0, 1, 2]) {
    contentOf(60_000, part + 1).copy(disk.bytes, part * 65_536);
    await replicateNoted(vault, line.current, expected, disk);
  }
  whole = contentOfSegments(store);
  first = storedName(store, "segments/d/00000001-0-00000000");
});
afterEach(async () => {
  await closeModelVaults();
});

const scrub = async (options: ScrubOptions = {}): Promise<ScrubSummary> => await vault.scrub(options);
const sources = (): Map<string, ModelDisk> => new Map([["d", disk]]);
const provedTimes = async (): Promise<(number | null)[]> =>
  (await vault.points("d")).map(({ proved }) => (proved === null ? null : Date.parse(proved)));

describe("points", () => {
  test("carry when they were last proved, and nothing before", async () => {
    expect(await provedTimes()).toEqual([null, null, null]);
    const before = Date.now();
    expect(await scrub()).toMatchObject({ provedPoints: 3, damaged: [], healed: [], roundEnded: true });
    for (const time of await provedTimes()) expect(time).toBeGreaterThanOrEqual(before);
    expect((await vault.point("d", "latest")).proved).not.toBeNull();
  });

  test("that were proved by hand count as well", async () => {
    await vault.verify({ disk: "d", point: "2" });
    const [oldest, middle, newest] = await provedTimes();
    expect([oldest, newest]).toEqual([null, null]);
    expect(middle).not.toBeNull();
  });

  test("that are damaged are not proved", async () => {
    invert(store, "segments/d/00000002-0-00000000", 200);
    const { damaged } = await scrub();
    expect(damaged.map(({ sequence }) => sequence)).toEqual([2, 3]);
    expect((await provedTimes()).map((time) => time === null)).toEqual([false, true, true]);
  });

  test("of another vault's or a damaged list count as never proved", async () => {
    await scrub();
    tamperObject(store, "disks/d/proved", "flipped", store);
    expect(await provedTimes()).toEqual([null, null, null]);
    expect(await scrub()).toMatchObject({ provedPoints: 3 });
    expect((await provedTimes()).includes(null)).toBe(false);
  });
});

/** Times are kept in milliseconds: what happens within one is not told apart. */
async function nextMillisecond(): Promise<void> {
  for (const nowMs = Date.now(); Date.now() === nowMs; ) await setImmediate();
}

describe("a budget", () => {
  test("is kept to, and the next pass goes on where it ended", async () => {
    const passes: ScrubSummary[] = [];
    do passes.push(await scrub({ budgetBytes: 20_000 }));
    while (passes.at(-1)?.roundEnded === false);
    expect(passes.length).toBeGreaterThan(3);
    expect(passes.reduce((sum, { provedPoints }) => sum + provedPoints, 0)).toBe(3);
    const stored = segmentsOf(store).reduce((sum, { writtenBytes }) => sum + writtenBytes, 0);
    // What points share is read once, and each pass at most one range above its budget.
    expect(passes.reduce((sum, { readBytes }) => sum + readBytes, 0)).toBeLessThan(stored * 1.6);
    expect((await provedTimes()).includes(null)).toBe(false);
  });

  test("goes to disks that can be healed here first, and then to the one that was proved longest ago", async () => {
    for (const name of ["e", "f"])
      await vault.replicate({ disk: name, volume: new ModelDisk(contentOf(30_000, 77), name) });
    for (const name of ["e", "d"]) {
      await vault.verify({ disk: name });
      await nextMillisecond();
    }
    const orderOf = async (options: ScrubOptions): Promise<string[]> => {
      const watching = new FaultySink(new MemorySink({ store }), []);
      line.current = watching;
      await scrub(options);
      return [...new Set(watching.calls.flatMap((call) => /^getObject disks\/(.)\/points\//.exec(call)?.[1] ?? []))];
    };
    expect(await orderOf({})).toEqual(["f", "e", "d"]);
    expect((await orderOf({ sources: sources() }))[0]).toBe("d");
  });

  test("that ends in the middle of a point leaves nothing unhealed that was found until then", async () => {
    invert(store, first, 200, 100);
    const { roundEnded, healed } = await scrub({ budgetBytes: 1_000, sources: sources() });
    expect(roundEnded).toBe(false);
    expect(healed.length).toBeGreaterThan(0);
    await expectRestored(vault, store, whole);
  });

  test("is not needed to heal what was found before, once it can be healed", async () => {
    invert(store, first, 200, 100);
    invert(store, "segments/d/00000003-0-00000000", 300);
    expect((await scrub()).damaged).toHaveLength(4);
    expect(await scrub({ budgetBytes: 0, sources: sources() })).toMatchObject({ damaged: [], roundEnded: false });
    await expectRestored(vault, store, whole);
  });
});

test("what was proved before a store did not answer is noted by the next pass", async () => {
  const error = new TidemarkError("STORE_UNREACHABLE", "no answer");
  const faulty = new FaultySink(line.current, [
    { on: "list", prefix: "segments/", when: 1, fault: { kind: "refused", error } },
  ]);
  line.current = faulty;
  await expect(scrub()).rejects.toBe(error);
  faulty.assertAllFired();
  expect(await scrub()).toMatchObject({ provedPoints: 0, roundEnded: true });
  expect((await provedTimes()).includes(null)).toBe(false);
});

test("a disk whose head is gone is told of, and the others are proved", async () => {
  await vault.replicate({ disk: "e", volume: new ModelDisk(contentOf(30_000, 77), "e") });
  store.objects?.delete("disks/d/head");
  const { damaged, provedPoints } = await scrub();
  expect(provedPoints).toBe(1);
  expect(damaged).toMatchObject([
    { disk: "d", sequence: null, object: "disks/d/head", code: "OBJECT_NOT_FOUND", healed: false },
  ]);
});

describe("many points", () => {
  test("cost one look at the oldest and one at what each of the others changed", async () => {
    for (let point = 4; point <= 40; point += 1) {
      contentOf(4096, 100 + point).copy(disk.bytes, (point % 12) * 4096);
      await replicateNoted(vault, line.current, expected, disk);
    }
    const watching = new FaultySink(new MemorySink({ store }), []);
    line.current = watching;
    const { provedPoints, readBytes } = await scrub();
    expect(provedPoints).toBe(40);
    const reads = new Map<string, number>();
    for (const call of watching.calls) reads.set(call, (reads.get(call) ?? 0) + 1);
    const objects = [...reads].filter(([call]) => /^getObject disks\/d\/(?:map|points)\//.test(call));
    expect(objects.filter(([call]) => call.includes("/points/"))).toHaveLength(40);
    // A root is read to know what is new, and again to look at it.
    expect(Math.max(...objects.map(([, count]) => count))).toBeLessThanOrEqual(2);
    expect(readBytes).toBeLessThan(segmentsOf(store).reduce((sum, { writtenBytes }) => sum + writtenBytes, 0) * 1.3);
    expect(watching.calls.filter((call) => call.startsWith("acquireLease"))).toEqual([]);
  });

  test("are named when they show what is damaged, and not when something younger hides it", async () => {
    contentOf(60_000, 99).copy(disk.bytes, 0);
    await vault.replicate({ disk: "d", volume: disk });
    disk.bytes.copy(disk.bytes, 100_000, 0, 100);
    await vault.replicate({ disk: "d", volume: disk });
    invert(store, first, 300);
    const { damaged } = await scrub();
    expect(damaged.map(({ sequence, extent }) => [sequence, extent])).toEqual(
      [1, 2, 3].map((sequence) => [sequence, { offset: 0, length: 16_384 }]),
    );
    expect((await provedTimes()).map((time) => time === null)).toEqual([true, true, true, false, false]);
  });

  test("that another scrubber has proved since the pass began are not read again, nor what they share with others", async () => {
    expect((await scrub({ budgetBytes: 0 })).roundEnded).toBe(false);
    await nextMillisecond();
    const other = await openModelVault(redirected(line));
    await other.verify({ disk: "d", point: "1" });
    await other.verify({ disk: "d", point: "3" });
    await other.close();
    const { readBytes, provedPoints } = await scrub();
    expect(provedPoints).toBe(1);
    const second = whole.get(storedName(store, "segments/d/00000002-0-00000000"))?.length ?? 0;
    const frames = segmentsOf(store).length * 4096;
    expect(readBytes).toBeLessThan(second + frames);
    expect((await provedTimes()).includes(null)).toBe(false);
  });
});

describe("damage", () => {
  test("is healed from the disk itself, and every byte is what it was", async () => {
    invert(store, first, 300, 20_000);
    const { damaged, healed } = await scrub({ sources: sources() });
    expect(damaged).toEqual([]);
    expect(healed.length).toBeGreaterThan(0);
    await expected.check(line.current);
    expect((await provedTimes()).includes(null)).toBe(false);
  });

  test("that cannot be healed stays reported until it can", async () => {
    invert(store, first, 300);
    const told: (number | null)[] = [];
    const onDamage = ({ sequence }: { readonly sequence: number | null }): void => {
      told.push(sequence);
    };
    expect((await scrub({ onDamage })).damaged).toHaveLength(3);
    expect((await scrub({ onDamage })).damaged).toHaveLength(3);
    expect(told.sort()).toEqual([1, 2, 3]);
    expect((await scrub({ sources: sources(), onDamage })).damaged).toEqual([]);
    await expected.check(line.current);
  });

  test("of a point that has been pruned since is forgotten", async () => {
    invert(store, "segments/d/00000003-0-00000000", 300);
    expect((await scrub()).damaged).toHaveLength(1);
    contentOf(60_000, 99).copy(disk.bytes, 2 * 65_536);
    await vault.replicate({ disk: "d", volume: disk });
    await vault.prune({ disk: "d", policy: parsePolicy("keep:last=1") });
    expect((await scrub()).damaged).toEqual([]);
  });

  test.each([
    ["header", 33],
    ["version", 4],
    ["table", "table"],
  ] as const)(
    "of a frame's %s is no point's: it is told of, nothing is written, and points and collections go on",
    async (_what, at) => {
      const frame = whole.get(first) ?? Buffer.alloc(0);
      invert(store, first, at === "table" ? frame.readUInt32LE(12) + 2 : at);
      const before = contentOfSegments(store);
      const notices: Notice[] = [];
      const onNotice = (notice: Notice): void => void notices.push(notice);
      expect(await scrub({ onNotice })).toMatchObject({ provedPoints: 3, damaged: [], healed: [] });
      expect(notices).toMatchObject([{ code: "SEGMENT_DAMAGED", message: expect.stringContaining(first) as string }]);
      expect(changedSegments(store, before)).toEqual([]);
      expect(await vault.collect({ onNotice })).toMatchObject({ waitingFor: [] });
      await expected.check(line.current);
      await vault.replicate({ disk: "e", volume: disk });
      await checkNewest(line.current, "e", disk.bytes);
    },
  );

  test("of a frame in a segment that no point needs any more is gone with the segment", async () => {
    invert(store, first, 33);
    disk.bytes.fill(7);
    await vault.replicate({ disk: "d", volume: disk });
    await vault.prune({ disk: "d", policy: parsePolicy("keep:last=1") });
    await vault.collect();
    expect(segmentsOf(store).map(({ name }) => name)).not.toContain(first);
    const notices: Notice[] = [];
    await scrub({ onNotice: (notice) => notices.push(notice) });
    expect(notices).toEqual([]);
    await checkNewest(line.current, "d", disk.bytes);
  });
});

test("a pass that is interrupted at any call harms nothing, and the next one ends the round", async () => {
  invert(store, first, 300, 20_000);
  const damagedStore = store.snapshot();
  const counted = new FaultySink(line.current, []);
  line.current = counted;
  await scrub({ sources: sources() });
  const calls = counted.calls.length;
  let nowMs = Date.now();
  for (const call of callsOf(1, calls)) {
    store.restore(damagedStore);
    nowMs += 3_600_000; // whoever died holds no lease any more
    line.current = new FaultySink(new MemorySink({ store, clock: () => nowMs }), [
      { on: "any", when: call, fault: { kind: "crash", effect: call % 2 === 0 ? "before" : "after" } },
    ]);
    await scrub({ sources: sources() }).catch((error: unknown) => {
      if (!(error instanceof CrashError)) throw error;
    });
    nowMs += 3_600_000;
    line.current = new MemorySink({ store, clock: () => nowMs });
    expect(
      (await vault.verify({ disk: "d", source: disk, heal: true })).damaged.filter(({ healed }) => !healed),
    ).toEqual([]);
    await expected.check(line.current);
  }
});

test("random damage to segments is put right, and named until it is", async () => {
  const sound = store.snapshot();
  await fc.assert(
    fc.asyncProperty(damagings(4), async (damages) => {
      store.restore(sound);
      await sprinkle(line.current, damages);
      const scrubbed = await openModelVault(redirected(line));
      // The disk has all that points need.
      expect((await scrubbed.scrub({ sources: sources() })).damaged).toEqual([]);
      await expected.check(line.current);
      expect(await scrubbed.scrub()).toMatchObject({ damaged: [], healed: [] });
      // What is left of frames keeps neither a collection nor a writer from its work.
      await scrubbed.collect();
      await scrubbed.replicate({ disk: "e", volume: disk });
      await scrubbed.close();
      await expected.check(line.current);
      await checkNewest(line.current, "e", disk.bytes);
    }),
    { numRuns: runsOf(12) },
  );
});
