/**
 * Collections: what they give back, what they leave alone, and that nothing that can be read before
 * cannot be read afterwards.
 */

import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import { frameHeaderBytes } from "../../../../engine/store/format/frame.ts";
import { segmentName } from "../../../../engine/store/format/names.ts";
import { quarantine } from "../../../../engine/store/segments/quarantine.ts";
import type { CollectSummary } from "../../../../engine/upkeep/collection/collection.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { FaultySink, Gate } from "../../../../sink/faults.ts";
import type { MemorySnapshot } from "../../../../sink/memory.ts";
import { callsOf, runsOf } from "../../../depth.ts";
import { closeModelVaults, type ModelDisk, modelStore, watched } from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { tamperObject } from "../scrub/tamper.ts";
import { ChurnedVault } from "./churned-vault.ts";

let churned: ChurnedVault;
beforeEach(() => {
  churned = new ChurnedVault();
});
afterEach(async () => {
  await closeModelVaults();
});

/** Ten points of a disk, each with some of its granules new. */
async function tenPoints(name = "a"): Promise<void> {
  for (let point = 0; point < 10; point += 1) {
    if (point > 0) churned.change(name, (point * 7) % 30, 6);
    await churned.replicate(name);
  }
}

describe("a collection", () => {
  test("of a vault in which all is needed changes nothing and asks no writer", async () => {
    await tenPoints();
    const before = await churned.names();
    const summary = await churned.collect();
    expect(summary).toMatchObject({ condemnedChunks: 0, deletedSegments: 0, deletedObjects: 0, waitingFor: [] });
    expect(summary.storedBytesAfter).toBe(summary.storedBytesBefore);
    expect(await churned.names()).toEqual([...before, "reclaim/collected", "reclaim/collector"].sort());
    expect(await churned.check()).toBe(10);
  });

  test("gives back what only dropped points needed, and the points that are kept stay what they were", async () => {
    await tenPoints();
    await churned.drop("a", [1, 2, 3, 5, 6, 8, 9]);
    const summary = await churned.collect();
    expect(summary.condemnedChunks).toBeGreaterThan(0);
    expect(summary.deletedObjects).toBeGreaterThanOrEqual(7);
    expect(summary.storedBytesAfter).toBeLessThan(summary.storedBytesBefore);
    expect(await (await churned.vault()).segmentBytes()).toBe(summary.storedBytesAfter);
    expect(await churned.check()).toBe(3);
    const again = await churned.collect();
    expect(again).toMatchObject({
      condemnedChunks: 0,
      deletedSegments: 0,
      deletedObjects: 0,
      storedBytesBefore: summary.storedBytesAfter,
    });
    expect(await churned.check()).toBe(3);
  });

  test("reads no tables of segments that have nothing more to give", async () => {
    await churned.replicate("a");
    churned.change("a", 0, 8);
    churned.disk("a").bytes.fill(9, 36 * 4096); // a page once it is compressed, and another one for its frame's table
    await churned.replicate("a");
    churned.change("a", 0, 8);
    await churned.replicate("a");
    await churned.drop("a", [2]);
    const tablesRead = async (): Promise<number> => {
      const sink = new FaultySink(churned.connect(), []);
      await churned.collect({ sink });
      return sink.calls.filter((call) => call.startsWith("readPages")).length;
    };
    expect(await tablesRead()).toBeGreaterThan(0);
    expect(await tablesRead()).toBe(0);
    expect(await churned.check()).toBe(2);
  });

  test("that is only tried says what it would give back and changes nothing", async () => {
    await tenPoints();
    await churned.drop("a", [2, 3, 4, 5]);
    const before = await churned.names();
    const tried = await churned.collect({ dryRun: true });
    expect(await churned.names()).toEqual(before);
    const done = await churned.collect();
    const { condemnedChunks, deletedObjects, deletedSegments, storedBytesAfter, liveBytes } = done;
    expect(tried).toMatchObject({ condemnedChunks, deletedObjects, deletedSegments, storedBytesAfter, liveBytes });
    expect(condemnedChunks).toBeGreaterThan(0);
  });

  test("gives back about what a dry run of the prune before it had said", async () => {
    await tenPoints();
    const vault = await churned.vault();
    const policy = parsePolicy("keep:last=2");
    const { freedBytes } = await vault.prune({ policy, dryRun: true });
    expect(await churned.points("a")).toHaveLength(10);
    expect(await vault.prune({ policy })).toMatchObject({ removedPoints: 8, freedBytes: null });
    const { storedBytesBefore, storedBytesAfter } = await churned.collect();
    // Frames have headers and tables besides, and a few pages here and there are not worth a
    // request.
    expect(freedBytes).toBeGreaterThan((storedBytesBefore - storedBytesAfter) * 0.9);
    expect(freedBytes).toBeLessThan((storedBytesBefore - storedBytesAfter) * 1.1);
    expect(await churned.check()).toBe(2);
  });

  test("leaves nothing of content that is there again to be referred to: it is stored anew", async () => {
    churned.change("a", 0, 20, 5);
    await churned.replicate("a");
    churned.change("a", 0, 20, 6);
    await churned.replicate("a");
    await churned.drop("a", [1]);
    await churned.collect();
    churned.change("b", 0, 20, 5);
    churned.change("a", 0, 20, 5);
    await churned.replicate("a");
    await churned.replicate("b");
    expect(await churned.check()).toBe(3);
  });

  test("keeps chunks that another disk's points share", async () => {
    churned.change("a", 0, 20, 5);
    churned.change("b", 8, 20, 5);
    await churned.replicate("a");
    await churned.replicate("b");
    churned.change("a", 0, 20, 6);
    await churned.replicate("a");
    await churned.drop("a", [1]);
    await churned.collect();
    expect(await churned.check()).toBe(2);
  });

  test("gives back what newer writes hide in every point that is kept", async () => {
    await churned.replicate("a");
    const all = await churned.collect({ dryRun: true });
    for (let point = 0; point < 4; point += 1) {
      churned.change("a", 0, 40);
      await churned.replicate("a");
    }
    await churned.drop("a", [1, 2, 3, 4]);
    const summary = await churned.collect();
    expect(await churned.check()).toBe(1);
    expect(summary.deletedSegments).toBe(4);
    expect(summary.liveBytes).toBeLessThan(all.liveBytes * 1.3);
    expect(summary.storedBytesAfter).toBeLessThan(all.storedBytesBefore * 1.3);
  });

  test("ends before it deletes when anything of a committed point cannot be read", async () => {
    await tenPoints();
    await churned.drop("a", [2, 3, 4, 5]);
    const [manifest] = (await churned.names("disks/a/points/")).slice(-1);
    tamperObject(churned.store, manifest ?? "", "flipped", churned.store);
    const before = await churned.names();
    const refusal = await expectCode(churned.collect(), "DAMAGED");
    expect(refusal.message).toMatch(/^point 10 of disk "a" cannot be read/);
    expect(refusal.detail).toMatchObject({ disk: "a", sequence: 10, object: manifest });
    expect(refusal.remedy).toContain("`tidemark prune --disk a ");
    expect(await churned.names()).toEqual([...before, "reclaim/collector"].sort());
  });

  test("ends before it deletes when a disk has segments and no head", async () => {
    await tenPoints();
    await churned.plain.deleteObject("disks/a/head");
    const before = await churned.names("segments/");
    await expectCode(churned.collect(), "DAMAGED");
    expect(await churned.names("segments/")).toEqual(before);
  });

  test("yields to another one", async () => {
    await tenPoints();
    await churned.drop("a", [2, 3, 4, 5]);
    const gate = new Gate();
    const slow = new FaultySink(churned.connect(), [
      { on: "list", prefix: "segments/", when: 1, fault: { kind: "slow", gate } },
    ]);
    const first = churned.collect({ sink: slow });
    await gate.reached;
    await expectCode(churned.collect(), "COLLECTION_ACTIVE");
    gate.open();
    expect((await first).condemnedChunks).toBeGreaterThan(0);
    expect(await churned.check()).toBe(6);
  });
});

describe("a writer", () => {
  /** Stops the replication of a disk right before its call of `method` on `prefix`. */
  async function asleep(
    name: string,
    method: "putObject" | "writePages",
    prefix: string,
  ): Promise<{ gate: Gate; done: Promise<number> }> {
    const gate = new Gate();
    churned.through(
      new FaultySink(churned.connect(), [{ on: method, prefix, when: 1, fault: { kind: "slow", gate } }]),
    );
    const done = churned.replicate(name);
    done.catch(() => undefined);
    await gate.reached;
    return { gate, done };
  }

  beforeEach(async () => {
    churned.change("a", 0, 20, 5);
    await churned.replicate("a");
    churned.change("a", 0, 20, 6);
    await churned.replicate("a");
    churned.disk("b");
    await churned.replicate("b");
    await churned.drop("a", [1]);
    // What only the dropped point held is there again, and the writer that finds it knows nothing
    // of a collection.
    churned.change("b", 0, 20, 5);
  });

  test("that lives and is in the middle of a cycle is waited for, and nothing is given back before it has acknowledged", async () => {
    const { gate, done } = await asleep("b", "putObject", "disks/b/points/");
    const summary = await churned.collect({ waitMsMax: 0 });
    expect(summary.waitingFor).toEqual(["b"]);
    expect(summary.storedBytesAfter).toBe(summary.storedBytesBefore);
    gate.open();
    await done;
    expect(await churned.check()).toBe(3);
    expect((await churned.collect()).waitingFor).toEqual([]);
    expect(await churned.check()).toBe(3);
  });

  test("that commits while a collection waits for it keeps what it refers to", async () => {
    const { gate, done } = await asleep("b", "putObject", "disks/b/points/");
    const collecting = churned.collect({ waitMsMax: 60_000 });
    gate.open();
    await done;
    const summary = await collecting;
    expect(summary.waitingFor).toEqual([]);
    expect(await churned.check()).toBe(3);
    churned.change("b", 20, 10);
    await churned.replicate("b");
    expect(await churned.check()).toBe(4);
  });

  test("that slept for two days is locked out, and commits nothing that is not there any more", async () => {
    const { gate, done } = await asleep("b", "putObject", "disks/b/points/");
    // Its lease has ended, and it is on another machine.
    churned.nowMs += 2 * 24 * 3_600_000;
    const summary = await churned.collect({ waitMsMax: 0 });
    expect(summary.waitingFor).toEqual([]);
    gate.open();
    await expectCode(done, "SEAT_LOST");
    expect(await churned.check()).toBe(2);
    churned.through();
    await churned.replicate("b");
    expect(await churned.check()).toBe(3);
  });

  test("that begins while a collection waits refers to nothing that is condemned", async () => {
    const { gate, done } = await asleep("b", "putObject", "disks/b/points/");
    const collecting = churned.collect({ waitMsMax: 60_000 });
    churned.through();
    churned.change("c", 0, 20, 5);
    await churned.replicate("c");
    gate.open();
    await done;
    await collecting;
    expect(await churned.check()).toBe(4);
  });
});

describe("a writer in the middle of a long cycle", () => {
  const slabBytes = 4 * 1024 * 1024;
  let clockMs = 0;
  /** Where the cycle waits: at the second slab, and at the third. */
  let second: Gate;
  let third: Gate;
  let disk: ModelDisk;

  beforeEach(async () => {
    churned.stateFolder = await mkdtemp(path.join(tmpdir(), "tidemark-overtaken-"));
    // Nothing of the first point is left, so its segment is deleted.
    churned.change("a", 0, 40, 5);
    await churned.replicate("a");
    churned.change("a", 0, 40, 6);
    await churned.replicate("a");
    await churned.drop("a", [1]);
    disk = churned.disk("b", 3 * slabBytes);
    // What only the dropped point held is there again.
    churned.change("b", 0, 20, 5);
    churned.change("b", 40, 20, 5);
    [second, third] = [new Gate(), new Gate()];
    disk.beforeRead = async (offset) => {
      if (offset >= slabBytes) await (offset < 2 * slabBytes ? second : third).pass(undefined);
    };
    clockMs = 0;
    const now = performance.now.bind(performance);
    vi.spyOn(performance, "now").mockImplementation(() => now() + clockMs);
  });
  afterEach(async () => {
    vi.restoreAllMocks();
    await closeModelVaults();
    await rm(churned.stateFolder ?? "", { recursive: true });
  });

  /**
   * A cycle that refers to what a collection then condemns, as far as its third slab; and what the
   * collection came to meanwhile.
   */
  async function overtaken(): Promise<{ readonly cycle: Promise<number>; readonly summary: CollectSummary }> {
    const packed = new Gate();
    packed.open();
    const cycle = churned.replicate("b", () => void packed.pass(undefined));
    cycle.catch(() => undefined);
    await packed.reached;
    const waiting = new Gate();
    waiting.open();
    const asksAgain = {
      on: "getObject",
      prefix: "disks/b/head",
      when: 2,
      fault: { kind: "slow", gate: waiting },
    } as const;
    const collecting = churned.collect({ sink: new FaultySink(churned.connect(), [asksAgain]) });
    collecting.catch(() => undefined);
    await waiting.reached;
    clockMs += 5_000;
    second.open();
    return { cycle, summary: await collecting };
  }

  test("lets a collection go on, and ships again what it had referred to", async () => {
    const { cycle, summary } = await overtaken();
    expect(summary.waitingFor).toEqual([]);
    expect(summary.deletedSegments).toBe(1);
    expect(await churned.points("b")).toEqual([]);
    third.open();
    await cycle;
    // By the writer's first session: nothing had to be begun anew.
    expect(await churned.points("b")).toMatchObject([{ epoch: 1 }]);
    expect(await churned.check()).toBe(2);
    // Now it is the point's, and no point needs what the point hides.
    await churned.collect();
    churned.change("b", 100, 5);
    await churned.replicate("b");
    expect(await churned.check()).toBe(3);
  });

  test("ships again what it has stored itself when that is found to be damaged, and its point can be read", async () => {
    churned.change("b", 0, 20);
    churned.change("b", 40, 20);
    const packed = new Gate();
    packed.open();
    const cycle = churned.replicate("b", () => void packed.pass(undefined));
    cycle.catch(() => undefined);
    await packed.reached;
    const first = { segment: segmentName("b", 1, 0, 0), offset: frameHeaderBytes };
    await quarantine(await modelStore(churned.plain), (await churned.vault()).id, [first], {});
    clockMs += 5_000;
    second.open();
    third.open();
    await cycle;
    expect(await churned.check()).toBe(2);
  });

  test("knows for the next one what the disk held when it was read for the second time", async () => {
    const { cycle } = await overtaken();
    churned.change("b", 0, 20, 7);
    churned.change("b", 40, 20, 7);
    third.open();
    await cycle;
    expect(await churned.check()).toBe(2);
    churned.change("b", 0, 20, 5);
    churned.change("b", 40, 20, 5);
    await churned.replicate("b");
    expect(await churned.check()).toBe(3);
  });
});

describe("a collection that ends at any of its calls", () => {
  test.each(["before", "after"] as const)(
    "%s the call's effect loses nothing, and the next one ends it",
    { timeout: 120_000 },
    async (effect) => {
      for (let point = 0; point < 5; point += 1) {
        churned.change("a", (point * 7) % 30, 12);
        await churned.replicate("a");
      }
      await churned.drop("a", [1, 2, 4]);
      const begun = churned.store.snapshot();
      const whole = new FaultySink(churned.connect(), []);
      const { storedBytesAfter } = await churned.collect({ sink: whole });
      const left = await churned.names("segments/");
      expect(await churned.check()).toBe(2);
      for (const call of callsOf(1, whole.calls.length)) {
        churned.store.restore(begun);
        const dying = new FaultySink(churned.connect(), [{ on: "any", when: call, fault: { kind: "crash", effect } }]);
        await churned.collect({ sink: dying }).catch(() => undefined);
        dying.assertAllFired();
        expect(await churned.check(), `died at call ${call}, ${String(whole.calls[call - 1])}`).toBe(2);
        churned.nowMs += 61_000; // the dead collector's lease
        const summary = await churned.collect();
        expect(summary.storedBytesAfter, `died at call ${call}`).toBe(storedBytesAfter);
        expect(await churned.names("segments/")).toEqual(left);
        expect(await churned.check()).toBe(2);
      }
    },
  );
});

describe("a store that goes back in time under a collection", () => {
  test("at any of its calls has points that can be read, and what was given back is never referred to again", {
    timeout: 120_000,
  }, async () => {
    for (let point = 0; point < 5; point += 1) {
      churned.change("a", 0, 20, point);
      churned.change("a", 20 + point, 3, 50 + point);
      await churned.replicate("a");
    }
    await churned.drop("a", [1, 2, 4]);
    churned.settlingMs = 200;
    const begun = churned.store.snapshot();
    const whole = new FaultySink(churned.connect(), []);
    await churned.collect({ sink: whole });
    // Before the second look nothing of it matters.
    const secondLook = whole.calls.lastIndexOf("list disks/");
    expect(whole.calls.findIndex((call) => call.startsWith("clearPages"))).toBeGreaterThan(secondLook);
    for (const call of callsOf(secondLook, whole.calls.length)) {
      churned.store.restore(begun);
      const earlier: { readonly atMs: number; readonly snapshot: MemorySnapshot }[] = [
        { atMs: -Infinity, snapshot: begun },
      ];
      const goesBack = watched(churned.connect(), () => {
        const nowMs = performance.now();
        if (earlier.push({ atMs: nowMs, snapshot: churned.store.snapshot() }) !== call + 1) return;
        // As far as it may: the store does not forget what is older than the settling time.
        const oldest = earlier.findLast(({ atMs }) => atMs <= nowMs - churned.settlingMs);
        churned.store.restore(oldest?.snapshot ?? begun);
      });
      await churned.collect({ sink: goesBack }).catch((error: unknown) => {
        expect(error).toBeInstanceOf(TidemarkError);
      });
      const about = `went back at call ${call}, ${String(whole.calls[call - 1])}`;
      expect(await churned.check(), about).toBe(2);
      churned.nowMs += 61_000;
      // What only dropped points had is there again.
      churned.change("a", 0, 20, 0);
      churned.change("b", 0, 20, 3);
      await churned.replicate("a");
      await churned.replicate("b");
      expect(await churned.check(), about).toBe(4);
      await churned.collect();
      expect(await churned.check(), about).toBe(4);
    }
  });
});

describe("a vault over which everything passes", () => {
  test("never loses what a committed point needs", { timeout: 120_000 }, async () => {
    const step = fc.oneof(
      {
        weight: 4,
        arbitrary: fc.record({
          kind: fc.constant("write" as const),
          disk: fc.nat(2),
          from: fc.nat(30),
          count: fc.integer({ min: 1, max: 9 }),
          seed: fc.option(fc.nat(5)),
        }),
      },
      { weight: 4, arbitrary: fc.record({ kind: fc.constant("replicate" as const), disk: fc.nat(2) }) },
      {
        weight: 2,
        arbitrary: fc.record({
          kind: fc.constant("drop" as const),
          disk: fc.nat(2),
          which: fc.array(fc.nat(20), { minLength: 1, maxLength: 8 }),
        }),
      },
      {
        weight: 2,
        arbitrary: fc.record({
          kind: fc.constant("collect" as const),
          diesAt: fc.option(fc.integer({ min: 1, max: 80 })),
        }),
      },
      { weight: 1, arbitrary: fc.record({ kind: fc.constant("back" as const) }) },
    );
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 10, maxLength: 40 }), async (steps) => {
        churned = new ChurnedVault();
        await churned.vault();
        let earlier = churned.store.snapshot();
        for (const name of ["d0", "d1", "d2"]) churned.disk(name);
        for (const each of steps) {
          churned.nowMs += 1000;
          const name = `d${"disk" in each ? each.disk : 0}`;
          if (each.kind === "write") churned.change(name, each.from, each.count, each.seed ?? undefined);
          else if (each.kind === "replicate") await churned.replicate(name);
          else if (each.kind === "drop") {
            const sequences = (await churned.points(name)).map(({ sequence }) => sequence).slice(0, -1);
            const dropped = sequences.filter((_, index) => each.which.includes(index));
            if (dropped.length > 0) await churned.drop(name, dropped);
          } else if (each.kind === "collect") {
            const dying = { on: "any", when: each.diesAt ?? 1, fault: { kind: "crash", effect: "after" } } as const;
            const sink = new FaultySink(churned.connect(), each.diesAt === null ? [] : [dying]);
            const collecting = churned.collect({ sink });
            if (each.diesAt === null) await collecting;
            else await collecting.catch(() => undefined);
            churned.nowMs += 61_000;
          } else {
            // An Azurite that was killed: everything is as it was a few steps ago.
            churned.store.restore(earlier);
            earlier = churned.store.snapshot();
          }
          await churned.check();
        }
        await churned.collect();
        await churned.check();
        await closeModelVaults();
      }),
      { numRuns: runsOf(15) },
    );
  });
});
