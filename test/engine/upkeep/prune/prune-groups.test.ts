/**
 * Points of a group live and die on all of its disks, however the disks are pruned, and
 * whatever keeps one of them.
 */

import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { hasCode } from "../../../../engine/errors.ts";
import type { Sink } from "../../../../engine/sink.ts";
import type { GroupRecord } from "../../../../engine/store/format/documents.ts";
import { condemnedName } from "../../../../engine/store/format/names.ts";
import { GroupMembers } from "../../../../engine/store/points/group-members.ts";
import { putPin } from "../../../../engine/store/points/pins.ts";
import { listPoints } from "../../../../engine/store/points/points.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import { Store } from "../../../../engine/store/store.ts";
import type { PointDecision } from "../../../../engine/upkeep/prune/prune.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { CrashError, FaultySink, Gate, type PlannedFault } from "../../../../sink/faults.ts";
import { callsOf, runsOf } from "../../../depth.ts";
import { recordOf, recordsOf, recordsVault, writeHistory } from "../../../point-records.ts";
import { namesIn } from "../../../sink/expectations.ts";
import { tamperObject } from "../scrub/tamper.ts";
import { PruneRig } from "./prune-rig.ts";

const policy = parsePolicy("keep:last=3");
const kept = 4;
let rig: PruneRig;
beforeEach(async () => {
  liveSessions().clear();
  rig = await PruneRig.open();
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
});

function groupOf(...disks: readonly string[]): (sequence: number) => GroupRecord {
  return (sequence) => ({ id: sequence.toString(16).padStart(32, "0"), name: "shop", disks });
}

const shop = groupOf("d", "e");

async function writeShop(): Promise<void> {
  for (const disk of ["d", "e"]) await writeHistory(rig.store, recordsOf(1, 21, shop, disk), disk);
}

const hold = async (sequence: number, disk: string, sink: Sink = rig.connect()): Promise<AsyncDisposable> =>
  await rig.hold(sequence, { disk, point: recordOf(sequence, shop(sequence), disk), sink });

async function pin(sequence: number, disk: string): Promise<void> {
  const { store, onNotice } = rig;
  const point = recordOf(sequence, shop(sequence), disk);
  await putPin({ store, vault: recordsVault, disk, point, name: null, untilMs: null, nowMs: 1, onNotice });
}

/**
 * Lets everything that is under way go on for a while; a call to a store in memory takes two turns.
 */
async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

/** A sink of which each call waits for so many turns. */
function paused(inner: Sink, turnsOf: () => number): Sink {
  return new Proxy(inner, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== "function") return value;
      if (property === "list") return value.bind(target) as unknown;
      return async (...given: unknown[]): Promise<unknown> => {
        await turns(turnsOf());
        return await (Reflect.apply(value, target, given) as Promise<unknown>);
      };
    },
  });
}

describe("a point of a group that is kept on one disk", () => {
  /**
   * A keeper of one disk's point. It looks, when it has it, whether the other disk has its own.
   */
  async function keepOne(keeping: () => Promise<unknown>): Promise<boolean | undefined> {
    try {
      await keeping();
    } catch (error) {
      expect(hasCode(error, "POINT_NOT_FOUND"), String(error)).toBe(true);
      return undefined;
    }
    return (await rig.sequences("d")).includes(kept);
  }

  test.each(["a reader", "a pin"])(
    "stays on the other from when %s has it, wherever that disk's pruner is, and wherever the keeper is when it goes on",
    async (who) => {
      await writeShop();
      const start = rig.memory.snapshot();
      const keep = async (sink: Sink = rig.connect()): Promise<unknown> => {
        if (who === "a reader") return await hold(kept, "e", sink);
        const { onNotice } = rig;
        const place = {
          store: new Store(sink),
          vault: recordsVault,
          disk: "e",
          point: recordOf(kept, shop(kept), "e"),
          onNotice,
        };
        return await putPin({ ...place, name: null, untilMs: null, nowMs: 1 });
      };
      const [alone, whole] = [new FaultySink(rig.connect(), []), new FaultySink(rig.connect(), [])];
      await keep(alone);
      rig.memory.restore(start);
      await rig.prune({ policy, disk: "d" }, whole);
      const slowAt = (call: number, gate: Gate): PlannedFault => ({
        on: "any",
        when: call,
        fault: { kind: "slow", gate },
      });
      const outcomes = { both: 0, one: 0 };
      for (const call of callsOf(1, whole.calls.length, 5)) {
        for (const stop of callsOf(1, alone.calls.length + 2)) {
          liveSessions().clear();
          rig.memory.restore(start);
          const [pruner, keeper] = [new Gate(), new Gate()];
          const pruning = rig.prune({ policy, disk: "d" }, new FaultySink(rig.connect(), [slowAt(call, pruner)]));
          await pruner.reached;
          const keeping = keepOne(async () => await keep(new FaultySink(rig.connect(), [slowAt(stop, keeper)])));
          await turns(30);
          pruner.open();
          await pruning;
          keeper.open();
          const isComplete = await keeping;
          const where = `the pruner at call ${String(call)}, the keeper at call ${String(stop)}`;
          expect((await rig.sequences("d")).includes(kept), where).toBe(isComplete);
          expect(await rig.sequences("e"), where).toContain(kept);
          outcomes[isComplete === true ? "both" : "one"] += 1;
        }
      }
      console.log(
        `${who} came at each of ${String(whole.calls.length)} calls of the other disk's prune: ${JSON.stringify(outcomes)}`,
      );
      expect(Math.min(outcomes.both, outcomes.one)).toBeGreaterThan(0);
    },
    60_000,
  );

  test("stays on all, however the calls of two pruners and two keepers fall", async () => {
    await writeShop();
    const start = rig.memory.snapshot();
    const outcomes = { both: 0, one: 0, none: 0 };
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.nat({ max: 30 }), { minLength: 8, maxLength: 40 }),
        fc.tuple(fc.option(fc.nat(500)), fc.option(fc.nat(500))),
        async (pauses, starts) => {
          liveSessions().clear();
          rig.memory.restore(start);
          let call = 0;
          const readers: AsyncDisposable[] = [];
          /**
           * Each call of a pruner waits for some turns before it takes effect; a keeper is quick.
           */
          const sink = (): Sink => paused(rig.connect(), () => pauses[call++ % pauses.length] ?? 0);
          const keep = async (disk: string, after: number | null): Promise<string> => {
            await (after === null ? Promise.all(prunings) : turns(after));
            const other = disk === "d" ? "e" : "d";
            try {
              readers.push(await hold(kept, disk));
            } catch (error) {
              expect(hasCode(error, "POINT_NOT_FOUND"), String(error)).toBe(true);
              return "none";
            }
            return (await rig.sequences(other)).includes(kept) ? "both" : disk;
          };
          const prunings = ["d", "e"].map(async (disk) => await rig.prune({ policy, disk }, sink()));
          const found = await Promise.all([keep("d", starts[0]), keep("e", starts[1])]);
          await Promise.all(prunings);
          const left = new Map([
            ["d", (await rig.sequences("d")).includes(kept)],
            ["e", (await rig.sequences("e")).includes(kept)],
          ]);
          for (const outcome of found) {
            if (outcome === "both") expect([...left.values()]).toEqual([true, true]);
            else if (outcome !== "none") expect(left.get(outcome)).toBe(true);
            outcomes[outcome === "both" || outcome === "none" ? outcome : "one"] += 1;
          }
          for (const reader of readers) await reader[Symbol.asyncDispose]();
        },
      ),
      // Keepers that come first, and keepers that come when the pruners have ended.
      {
        numRuns: runsOf(60),
        examples: [
          [Array<number>(8).fill(30), [0, 0]],
          [Array<number>(8).fill(0), [null, null]],
        ],
      },
    );
    console.log(`two pruners and two keepers: ${JSON.stringify(outcomes)}`);
    expect(Math.min(outcomes.both, outcomes.none)).toBeGreaterThan(0);
  }, 30_000);

  test("stays on a disk that was planned before its group was complete", async () => {
    await writeHistory(rig.store, recordsOf(1, 21, shop, "d"), "d");
    await writeHistory(rig.store, recordsOf(1, 15, shop, "e"), "e");
    const gate = new Gate();
    const sink = new FaultySink(rig.connect(), [
      { on: "putObject", prefix: condemnedName("d"), when: 1, fault: { kind: "slow", gate } },
    ]);
    const pruning = rig.prune({ policy, disk: "d" }, sink);
    await gate.reached;
    await rig.commit(1, "e", shop);
    await pin(15, "e");
    gate.open();
    await pruning;
    // 12 to 14 are the last of the other disk, as it was then.
    expect(await rig.sequences("d")).toEqual([12, 13, 14, 15, 18, 19, 20]);
  });

  test("can be read when the other disk's pruner has died: its lease is taken, and its list is void", async () => {
    await writeShop();
    const died = new FaultySink(rig.connect(), [
      { on: "list", prefix: "disks/d/holds/", when: 1, fault: { kind: "crash", effect: "before" } },
    ]);
    await expect(rig.prune({ policy, disk: "d" }, died)).rejects.toThrow(CrashError);
    liveSessions().clear();
    let nowMs = 0;
    vi.spyOn(performance, "now").mockImplementation(() => (nowMs += 6_000));
    await using reader = await hold(kept, "e");
    await rig.prune({ policy, disk: "d" });
    expect(await rig.sequences("d")).toEqual([kept, 18, 19, 20]);
    expect(reader).toBeDefined();
  });

  test("is refused while the other disk's pruner takes its time, with the disk's name", async () => {
    await writeShop();
    const gate = new Gate();
    const sink = new FaultySink(rig.connect(), [
      { on: "list", prefix: "disks/d/holds/", when: 1, fault: { kind: "slow", gate } },
    ]);
    const pruning = rig.prune({ policy, disk: "d" }, sink);
    await gate.reached;
    let nowMs = 0;
    vi.spyOn(performance, "now").mockImplementation(() => (nowMs += 6_000));
    await expect(hold(kept, "e")).rejects.toMatchObject({
      code: "POINT_NOT_FOUND",
      message: expect.stringContaining('pruned on disk "d"') as string,
    });
    await using newer = await hold(20, "e");
    expect(newer).toBeDefined();
    gate.open();
    await pruning;
    expect(await namesIn(rig.connect(), "disks/e/holds/")).toHaveLength(1);
  });

  test("is not given up by a reader that must take its hold anew while the other disk's pruner takes its time", async () => {
    await writeShop();
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
    await using reader = await rig.hold(kept, { disk: "e", point: recordOf(kept, shop(kept), "e") });
    const [name = ""] = await namesIn(rig.connect(), "disks/e/holds/");
    rig.memory.objects?.delete(name);
    const gate = new Gate();
    const sink = new FaultySink(rig.connect(), [
      { on: "list", prefix: "disks/d/pins/", when: 2, fault: { kind: "slow", gate } },
    ]);
    const pruning = rig.prune({ policy, disk: "d" }, sink);
    await gate.reached;
    let nowMs = 0;
    vi.spyOn(performance, "now").mockImplementation(() => (nowMs += 6_000));
    const holds = async (): Promise<number> => (await namesIn(rig.connect(), "disks/e/holds/")).length;
    vi.advanceTimersByTime(15_000);
    await vi.waitUntil(async () => (await holds()) === 1, { interval: 1 });
    await vi.waitUntil(async () => (await holds()) === 0, { interval: 1 });
    await turns(30);
    expect(reader.signal.aborted).toBe(false);
    gate.open();
    await pruning;
    vi.advanceTimersByTime(15_000);
    await vi.waitUntil(async () => (await holds()) === 1, { interval: 1 });
    expect(reader.signal.aborted).toBe(false);
  });

  test.each(["head", "flipped list"])(
    "does not depend on another disk whose %s cannot be read, unless that keeps it from being told",
    async (what) => {
      await writeShop();
      await rig.prune({ policy: parsePolicy("keep:last=19"), disk: "d" });
      tamperObject(rig.memory, what === "head" ? "disks/d/head" : condemnedName("d"), "flipped", rig.memory);
      if (what === "head") await (await hold(kept, "e"))[Symbol.asyncDispose]();
      else await expect(hold(kept, "e")).rejects.toMatchObject({ code: "DAMAGED" });
      expect(await namesIn(rig.connect(), "disks/e/holds/")).toEqual([]);
    },
  );

  test("is named in the decisions of the other, with what keeps it", async () => {
    await writeShop();
    await pin(5, "e");
    await using reader = await hold(7, "e");
    expect(reader).toBeDefined();
    const decisions: PointDecision[] = [];
    const summary = await rig.prune({ policy, dryRun: true, onDecision: (decision) => decisions.push(decision) });
    const reasons = decisions
      .filter(({ sequence, keep }) => keep && sequence < 18)
      .map(({ disk, sequence, reasons: why }) => [disk, sequence, ...why]);
    expect(reasons).toEqual([
      ["d", 5, "pinned on disk e"],
      ["d", 7, "being read on disk e, unless its reader has died"],
      ["e", 5, "pinned"],
      ["e", 7, "being read, unless its reader has died"],
    ]);
    expect(summary).toMatchObject({ removedPoints: 30, keptPoints: 10, heldPoints: 2 });
    const { removedPoints, keptPoints, heldPoints } = await rig.prune({ policy });
    expect({ removedPoints, keptPoints, heldPoints }).toEqual({ removedPoints: 30, keptPoints: 10, heldPoints: 2 });
  });
});

test("a list of points shows what other disks' pins and readers keep, and no pin that has expired", async () => {
  await writeShop();
  await pin(5, "e");
  await using reader = await hold(7, "e");
  expect(reader).toBeDefined();
  const { store, onNotice } = rig;
  const untilMs = recordOf(12).timeMs;
  await putPin({
    store,
    vault: recordsVault,
    disk: "d",
    point: recordOf(9, shop(9)),
    name: null,
    untilMs,
    nowMs: 1,
    onNotice,
  });
  vi.spyOn(Date, "now").mockReturnValue(untilMs + 1);
  for (const disk of ["d", "e"]) {
    const listed = await listPoints(store, new GroupMembers({ store, vault: recordsVault }), disk, {});
    const kept = listed.flatMap(({ sequence, pinned, held }) => (pinned || held ? [[sequence, pinned, held]] : []));
    expect(kept).toEqual([
      [5, true, false],
      [7, false, true],
    ]);
  }
});

describe("the points of a group", () => {
  test("grow older by their disks' own points when the group is no more", async () => {
    for (const disk of ["d", "e"])
      await writeHistory(
        rig.store,
        [...recordsOf(1, 100, shop, disk), ...recordsOf(2_000, 2_010, undefined, disk)],
        disk,
      );
    await rig.prune({ policy: parsePolicy("bands:1h=all") });
    for (const disk of ["d", "e"])
      expect(await rig.sequences(disk)).toEqual(recordsOf(2_000, 2_010).map(({ sequence }) => sequence));
  });

  test("stay or go together when a disk joins the group, or leaves it", async () => {
    const trio = groupOf("d", "e", "f");
    for (const disk of ["d", "e"])
      await writeHistory(rig.store, [...recordsOf(1, 40, shop, disk), ...recordsOf(40, 400, trio, disk)], disk);
    await writeHistory(rig.store, recordsOf(40, 400, trio, "f"), "f");
    for (const disk of ["d", "e", "f"]) await rig.prune({ policy: parsePolicy("bands:10m=all,1d=10m"), disk });
    const [d, e, f] = [await rig.sequences("d"), await rig.sequences("e"), await rig.sequences("f")];
    expect(d).toEqual(e);
    expect(d.filter((sequence) => sequence >= 40)).toEqual(f);
    expect(f.length).toBeLessThan(130);
  });

  test("stay or go together, whatever the disks' own points are, and in whatever order the disks are pruned", async () => {
    const names = ["a", "b", "c"];
    const cut = fc.record({ disks: fc.subarray(names, { minLength: 1 }), gap: fc.integer({ min: 1, max: 90 }) });
    const texts = ["keep:last=2", "bands:5m=all,1h=5m", "bands:2m=1m,20m=5m", "days:0", "keep:hourly=2,last=1"];
    await fc.assert(
      fc.asyncProperty(
        fc.array(cut, { minLength: 1, maxLength: 40 }),
        fc.constantFrom(...texts),
        fc.array(fc.constantFrom(...names), { minLength: 3, maxLength: 8 }),
        async (cuts, text, order) => {
          liveSessions().clear();
          rig = await PruneRig.open();
          let sequence = 0;
          const points = cuts.map(({ disks, gap }) => ({ disks, sequence: (sequence += gap) }));
          const there = names.filter((name) => points.some(({ disks }) => disks.includes(name)));
          for (const disk of there) {
            const own = points.filter(({ disks }) => disks.includes(disk));
            const records = own.map(({ disks, sequence: at }) =>
              recordOf(at, disks.length > 1 ? groupOf(...disks)(at) : null, disk),
            );
            await writeHistory(rig.store, records, disk);
          }
          const asked = order.filter((disk) => there.includes(disk));
          for (const disk of [...asked, ...there]) await rig.prune({ policy: parsePolicy(text), disk });
          const left = new Map<string, readonly number[]>();
          for (const disk of there) left.set(disk, await rig.sequences(disk));
          for (const { disks, sequence: at } of points) {
            expect(
              new Set(disks.map((disk) => left.get(disk)?.includes(at))).size,
              `point ${String(at)} of ${disks.join()}`,
            ).toBe(1);
          }
        },
      ),
      { numRuns: runsOf(60) },
    );
  }, 30_000);
});
