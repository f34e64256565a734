/** Holds and prunes at once: a point that is held is never dropped. */

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { hasCode, TidemarkError } from "../../../../engine/errors.ts";
import type { Sink } from "../../../../engine/sink.ts";
import { encodeHead } from "../../../../engine/store/format/documents.ts";
import { encodeCondemned } from "../../../../engine/store/format/keeping.ts";
import { condemnedName, headName } from "../../../../engine/store/format/names.ts";
import { readHead } from "../../../../engine/store/points/head.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import { holdAllToRead } from "../../../../engine/store/points/reader-holds.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { CrashError, FaultySink, Gate, type PlannedFault } from "../../../../sink/faults.ts";
import { callsOf } from "../../../depth.ts";
import { redirected } from "../../../model-disk.ts";
import { recordOf, recordsOf, recordsVault, writeHistory } from "../../../point-records.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { PruneRig } from "../../upkeep/prune/prune-rig.ts";

const policy = parsePolicy("keep:last=3");
const [held, kept] = [4, 19];
let rig: PruneRig;
beforeEach(async () => {
  liveSessions().clear();
  rig = await PruneRig.open();
  await writeHistory(rig.store, recordsOf(1, 21));
});
afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
});

const holds = async (): Promise<string[]> => await namesIn(rig.connect(), "disks/d/holds/");

/**
 * Lets everything that is under way go on for a while; a call to a store in memory takes two turns.
 */
async function turns(count = 200): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await new Promise((resolve) => setImmediate(resolve));
}

describe("a held point", () => {
  test("outlives every prune, and goes with the first one after it has been given up", async () => {
    const hold = await rig.hold(held);
    expect(await holds()).toHaveLength(1);
    expect(await rig.prune({ policy })).toMatchObject({ removedPoints: 16, heldPoints: 1, keptPoints: 4 });
    expect(await rig.sequences()).toEqual([held, 18, 19, 20]);
    await rig.prune({ policy });
    expect(await rig.sequences()).toEqual([held, 18, 19, 20]);
    expect(hold.signal.aborted).toBe(false);
    await hold.release();
    await hold.release();
    expect(await holds()).toEqual([]);
    await rig.prune({ policy });
    expect(await rig.sequences()).toEqual([18, 19, 20]);
  });

  test("may be held by several, and outlives all but the last", async () => {
    const [first, second] = [await rig.hold(held), await rig.hold(held)];
    await first.release();
    await rig.prune({ policy });
    expect(await rig.sequences()).toContain(held);
    await second.release();
    await rig.prune({ policy });
    expect(await rig.sequences()).not.toContain(held);
  });

  test("is pruned when its reader has died and its lease is over, by the store's clock", async () => {
    await rig.hold(held);
    rig.nowMs += 59_000;
    await rig.prune({ policy });
    expect(await rig.sequences()).toContain(held);
    rig.nowMs += 2_000;
    await rig.prune({ policy });
    expect(await rig.sequences()).not.toContain(held);
    expect(await holds()).toEqual([]);
  });

  test("is held no longer for people, either, when its reader has died and anything is pruned", async () => {
    await rig.hold(kept);
    await using living = await rig.hold(18);
    expect(await rig.prune({ policy, dryRun: true })).toMatchObject({ removedPoints: 17 });
    expect(await holds()).toHaveLength(2);
    rig.nowMs += 61_000;
    await using other = await rig.hold(20);
    await rig.prune({ policy });
    expect((await holds()).map((name) => Number(name.slice(14, 22)))).toEqual([20]);
    expect([living.signal.aborted, other.signal.aborted]).toEqual([false, false]);
  });

  test("that is gone cannot be held", async () => {
    await rig.prune({ policy });
    const error = await expectCode(rig.hold(held), "POINT_NOT_FOUND");
    expect(error.message).toContain("pruned");
    await expectCode(rig.hold(kept, { disk: "nobody" }), "DISK_NOT_FOUND");
    expect(await holds()).toEqual([]);
  });

  test("is not held either when another one that is to be held with it is gone", async () => {
    await rig.prune({ policy });
    const place = { store: rig.store, vault: recordsVault, disk: "d", purpose: "test", onNotice: rig.onNotice };
    await expectCode(holdAllToRead(place, [recordOf(kept), recordOf(held)]), "POINT_NOT_FOUND");
    expect(await holds()).toEqual([]);
    const hold = await holdAllToRead(place, [recordOf(kept), recordOf(18)]);
    expect(await holds()).toHaveLength(2);
    await hold.release();
    expect(await holds()).toEqual([]);
  });

  test("of a store that cannot be written is not held, and that is said once", async () => {
    const error = new TidemarkError("ACCESS_REFUSED", "read only");
    const sink = new FaultySink(rig.connect(), [
      { on: "putObject", when: { probability: 1 }, fault: { kind: "refused", error } },
    ]);
    const hold = await rig.hold(held, { sink });
    expect(rig.codes).toEqual(["HOLD_REFUSED"]);
    expect(hold.signal.aborted).toBe(false);
    await hold.release();
  });

  test("is not another one that bears its number, as in a store that went back in time", async () => {
    await expectCode(rig.hold(held, { point: { ...recordOf(held), id: "f".repeat(32) } }), "POINT_NOT_FOUND");
  });
});

describe("a hold that is held for long", () => {
  /** Renewals come when the test says so. */
  const tick = async (): Promise<void> => {
    vi.advanceTimersByTime(15_000);
    rig.nowMs += 15_000;
    await turns();
  };
  beforeEach(() => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
  });

  test("is renewed in time", async () => {
    const hold = await rig.hold(held);
    for (let quarter = 0; quarter < 20; quarter += 1) await tick();
    await rig.prune({ policy });
    expect(await rig.sequences()).toContain(held);
    await hold.release();
  });

  test("is taken anew when the store has forgotten it, while the point is there", async () => {
    const hold = await rig.hold(held);
    const [name = ""] = await holds();
    const objects = rig.memory.objects;
    objects?.delete(name);
    await tick();
    expect(await holds()).toHaveLength(1);
    expect(await holds()).not.toContain(name);
    expect(hold.signal.aborted).toBe(false);
    await rig.prune({ policy });
    expect(await rig.sequences()).toContain(held);
    await hold.release();
    expect(await holds()).toEqual([]);
  });

  test("tells its reader when the point was pruned while the machine slept", async () => {
    const hold = await rig.hold(held);
    rig.nowMs += 600_000;
    await rig.prune({ policy });
    await tick();
    expect(hold.signal.aborted).toBe(true);
    expect(hasCode(hold.signal.reason, "POINT_NOT_FOUND")).toBe(true);
    await hold.release();
    expect(await holds()).toEqual([]);
  });

  test("is not lost while the store cannot be reached", async () => {
    const line: { current: Sink } = { current: rig.connect() };
    const error = new TidemarkError("STORE_UNREACHABLE", "no answer");
    const cut = new FaultySink(rig.connect(), [
      { on: "renewLease", when: { probability: 1 }, fault: { kind: "refused", error } },
    ]);
    const hold = await rig.hold(held, { sink: redirected(line) });
    line.current = cut;
    await tick();
    await tick();
    cut.assertAllFired();
    expect(hold.signal.aborted).toBe(false);
    line.current = rig.connect();
    await tick();
    await tick();
    await rig.prune({ policy });
    expect(await rig.sequences()).toContain(held);
    await hold.release();
  });
});

describe("a reader and a pruner", () => {
  const slowAt = (call: number, gate: Gate): PlannedFault => ({ on: "any", when: call, fault: { kind: "slow", gate } });
  const callsOfHold = async (): Promise<number> => {
    const sink = new FaultySink(rig.connect(), []);
    const hold = await rig.hold(kept, { sink });
    const { length } = sink.calls;
    await hold.release();
    return length;
  };

  /**
   * A point that is held is listed, and one that is not held is not. Returns whether it is held.
   */
  async function settled(holding: Promise<AsyncDisposable>): Promise<boolean> {
    const [outcome] = await Promise.allSettled([holding]);
    const listed = await rig.sequences();
    expect(listed.slice(-3)).toEqual([18, 19, 20]);
    if (outcome.status === "fulfilled") {
      expect(listed).toEqual([held, 18, 19, 20]);
      await outcome.value[Symbol.asyncDispose]();
    } else {
      expect(hasCode(outcome.reason, "POINT_NOT_FOUND"), String(outcome.reason)).toBe(true);
      expect(listed).toEqual([18, 19, 20]);
    }
    expect(await holds()).toEqual([]);
    return outcome.status === "fulfilled";
  }

  test("agree, wherever the reader is when a whole prune comes between", async () => {
    const start = rig.memory.snapshot();
    const calls = await callsOfHold();
    const winners: boolean[] = [];
    for (let call = 1; call <= calls; call += 1) {
      rig.memory.restore(start);
      const gate = new Gate();
      const sink = new FaultySink(rig.connect(), [slowAt(call, gate)]);
      const holding = rig.hold(held, { sink });
      await gate.reached;
      await rig.prune({ policy });
      gate.open();
      winners.push(await settled(holding));
      sink.assertAllFired();
    }
    expect(new Set(winners)).toEqual(new Set([true, false]));
  });

  test("agree, wherever the pruner is when a reader comes, and wherever that is when the pruner goes on", async () => {
    const start = rig.memory.snapshot();
    const callsHold = await callsOfHold();
    rig.memory.restore(start);
    const whole = new FaultySink(rig.connect(), []);
    await rig.prune({ policy }, whole);
    const outcomes = { held: 0, gone: 0 };
    for (const call of callsOf(1, whole.calls.length, 6)) {
      for (const stop of callsOf(1, callsHold + 1, 4)) {
        liveSessions().clear();
        rig.memory.restore(start);
        const [pruner, reader] = [new Gate(), new Gate()];
        const pruning = rig.prune({ policy }, new FaultySink(rig.connect(), [slowAt(call, pruner)]));
        await pruner.reached;
        const holding = rig.hold(held, { sink: new FaultySink(rig.connect(), [slowAt(stop, reader)]) });
        holding.catch(() => undefined); // judged below
        await turns(30);
        pruner.open();
        await pruning;
        reader.open();
        outcomes[(await settled(holding)) ? "held" : "gone"] += 1;
      }
    }
    console.log(`a reader came at each of ${String(whole.calls.length)} calls of a prune: ${JSON.stringify(outcomes)}`);
    expect(outcomes.held).toBeGreaterThan(0);
    expect(outcomes.gone).toBeGreaterThan(0);
  });

  test("that died with points condemned does not keep readers from them: its writer lease is taken over, and its list is void", async () => {
    const sink = new FaultySink(rig.connect(), [
      { on: "list", prefix: "disks/d/holds/", when: 1, fault: { kind: "crash", effect: "before" } },
    ]);
    await expect(rig.prune({ policy }, sink)).rejects.toThrow(CrashError);
    liveSessions().clear();
    let nowMs = 0;
    vi.spyOn(performance, "now").mockImplementation(() => (nowMs += 6_000));
    const { epoch } = (await readHead(rig.store, recordsVault, "d")).head;
    const hold = await rig.hold(held);
    expect((await readHead(rig.store, recordsVault, "d")).head.epoch).toBe(epoch + 1);
    expect(await rig.sequences()).toHaveLength(20);
    await rig.prune({ policy });
    expect(await rig.sequences()).toEqual([held, 18, 19, 20]);
    await hold.release();
  });

  test("that lives on another machine, with the point condemned, is not disturbed: the reader is told to come again", async () => {
    const { head } = await readHead(rig.store, recordsVault, "d");
    const writer = { session: "0".repeat(32), machine: "another", pid: 1, startTicks: 1, host: "far" };
    rig.memory.objects?.delete(headName("d"));
    await rig.store.putOnce(headName("d"), encodeHead({ ...head, epoch: 9, writer }));
    await rig.connect().acquireLease(headName("d"), "00000000-0000-4000-8000-000000000001", 60);
    const ranges = [{ first: 1, last: 17 }];
    await rig.store.putOnce(condemnedName("d"), encodeCondemned({ vault: recordsVault, disk: "d", epoch: 9, ranges }));
    let nowMs = 0;
    vi.spyOn(performance, "now").mockImplementation(() => (nowMs += 6_000));
    const error = await expectCode(rig.hold(held), "POINT_NOT_FOUND");
    expect(error.message).toContain("is being pruned");
    const hold = await rig.hold(kept);
    await hold.release();
    expect(await holds()).toEqual([]);
  });

  test("with an outdated list has condemned nothing", async () => {
    const ranges = [{ first: 1, last: 17 }];
    await rig.store.putOnce(condemnedName("d"), encodeCondemned({ vault: recordsVault, disk: "d", epoch: 0, ranges }));
    const hold = await rig.hold(held);
    await hold.release();
  });
});
