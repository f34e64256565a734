/**
 * A prune is interrupted, or its store goes back in time, at each of its calls: what is listed can
 * be read, and the next prune goes on.
 */

import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { hasCode } from "../../../../engine/errors.ts";
import type { GroupRecord } from "../../../../engine/store/format/documents.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { CrashError, type Fault, FaultySink } from "../../../../sink/faults.ts";
import type { MemorySnapshot } from "../../../../sink/memory.ts";
import { callsOf } from "../../../depth.ts";
import { watched } from "../../../model-disk.ts";
import { idOf, recordsOf, writeHistory } from "../../../point-records.ts";
import { namesIn } from "../../../sink/expectations.ts";
import { PruneRig } from "./prune-rig.ts";

const policy = parsePolicy("bands:20m=all,1d=10m");
let rig: PruneRig;
let start: MemorySnapshot;
let before: readonly number[];
let after: readonly number[];
/** Half of what the policy does not keep is held, and stays as long as it is. */
const heldPoint = 100;
beforeEach(async () => {
  liveSessions().clear();
  rig = await PruneRig.open();
  await writeHistory(rig.store, recordsOf(1, 800));
  start = rig.memory.snapshot();
  before = await rig.sequences();
  await rig.prune({ policy });
  after = await rig.sequences();
  expect(after).not.toContain(heldPoint);
  expect(after.length).toBeLessThan(before.length);
  rig.memory.restore(start);
});
afterEach(() => {
  vi.restoreAllMocks();
});

/** Time passes in leaps, so that no process is waited for. */
function hurry(): void {
  let nowMs = 0;
  vi.spyOn(performance, "now").mockImplementation(() => (nowMs += 6_000));
}

/** How many calls a prune makes of this disk. */
async function callsOfPrune(): Promise<number> {
  const sink = new FaultySink(rig.connect(), []);
  await rig.prune({ policy }, sink);
  rig.memory.restore(start);
  return sink.calls.length;
}

describe("a prune that dies at any call", () => {
  test("has dropped all or nothing; its lease is free at once; a reader can have what is left; the next prune drops the rest", async () => {
    hurry();
    const calls = await callsOfPrune();
    const seen = { all: 0, nothing: 0 };
    for (const call of callsOf(1, calls, 5)) {
      for (const effect of ["before", "after"] as const) {
        rig.memory.restore(start);
        liveSessions().clear();
        const sink = new FaultySink(rig.connect(), [{ on: "any", when: call, fault: { kind: "crash", effect } }]);
        await expect(rig.prune({ policy }, sink), `call ${String(call)}, ${effect}`).rejects.toThrow(CrashError);
        sink.assertAllFired();
        liveSessions().clear();
        const left = await rig.sequences();
        const isDone = left.length === after.length;
        expect(left).toEqual(isDone ? after : before);
        seen[isDone ? "all" : "nothing"] += 1;
        const holding = rig.hold(heldPoint);
        if (isDone) await expect(holding).rejects.toMatchObject({ code: "POINT_NOT_FOUND" });
        const hold = isDone ? undefined : await holding;
        await rig.prune({ policy });
        expect(await rig.sequences()).toEqual(isDone ? after : [...after, heldPoint].sort((a, b) => a - b));
        await hold?.release();
        await rig.prune({ policy });
        expect(await rig.sequences()).toEqual(after);
        await rig.commit(1);
        expect((await rig.sequences()).at(-1)).toBe(800);
      }
    }
    console.log(`a prune died at each of ${String(calls)} calls: ${JSON.stringify(seen)}`);
    expect(Math.min(seen.all, seen.nothing)).toBeGreaterThan(0);
  });

  test.each<readonly [string, Fault]>([
    ["the answer is lost", { kind: "unacknowledged" }],
    ["the write comes late", { kind: "late" }],
  ])("goes on where %s, and nothing that comes later harms", async (_what, fault) => {
    const calls = new FaultySink(rig.connect(), []);
    await rig.prune({ policy }, calls);
    const writes = calls.calls.filter((call) => call.startsWith("putObject")).length;
    for (let write = 1; write <= writes; write += 1) {
      rig.memory.restore(start);
      liveSessions().clear();
      const sink = new FaultySink(rig.connect(), [{ on: "putObject", when: write, fault }]);
      const outcome = await rig.prune({ policy }, sink).then(
        () => "done",
        (error: unknown) => (hasCode(error, "STORE_REGRESSED", "WRITER_ACTIVE") ? error.code : error),
      );
      sink.assertAllFired();
      expect(
        outcome,
        `write ${String(write)}: ${String(sink.calls.filter((call) => call.startsWith("putObject"))[write - 1])}`,
      ).toBe("done");
      await sink.releaseLate();
      expect(await rig.sequences()).toEqual(after);
      await rig.commit(1);
      expect(await rig.sequences()).toEqual([...after, 800]);
    }
  });
});

describe("a store that goes back in time", () => {
  test("at any call of a prune lists nothing that cannot be read, and hinders no later prune", async () => {
    hurry();
    const calls = await callsOfPrune();
    const outcomes = new Map<string, number>();
    for (const at of callsOf(2, calls, 5)) {
      for (const back of [1, 2, 4, 8, 100]) {
        rig.memory.restore(start);
        liveSessions().clear();
        const taken: MemorySnapshot[] = [];
        let call = 0;
        const sink = watched(rig.connect(), () => {
          call += 1;
          if (call < at) taken.push(rig.memory.snapshot());
          if (call !== at) return;
          rig.memory.restore(taken.at(-back) ?? start);
        });
        const outcome = await rig.prune({ policy }, sink).then(
          () => "done",
          (error: unknown) =>
            hasCode(error, "STORE_REGRESSED", "SEAT_LOST", "CONDITION_FAILED", "OBJECT_EXISTS") ? error.code : error,
        );
        expect(outcome, `call ${String(at)}, ${String(back)} calls back`).toBeTypeOf("string");
        outcomes.set(String(outcome), (outcomes.get(String(outcome)) ?? 0) + 1);
        liveSessions().clear();
        const left = await rig.sequences();
        expect([before, after]).toContainEqual(left);
        await rig.prune({ policy });
        expect(await rig.sequences()).toEqual(after);
      }
    }
    const begunAgain = rig.codes.filter((code) => code === "STORE_REGRESSED").length;
    console.log(`outcomes: ${JSON.stringify([...outcomes])}, begun again ${String(begunAgain)} times`);
    expect(outcomes.get("done")).toBeGreaterThan(0);
    expect(begunAgain).toBeGreaterThan(0);
  });

  test("behind the condemning of points lets no reader hold what then goes", async () => {
    // The list is forgotten after a reader could have read it, and before the head is swapped.
    const sink = new FaultySink(rig.connect(), []);
    await rig.prune({ policy }, sink);
    const condemning = sink.calls.findIndex((call) => call.startsWith("putObject disks/d/condemned")) + 1;
    const listing = sink.calls.findIndex((call) => call.startsWith("list disks/d/pins")) + 1;
    expect(condemning).toBeGreaterThan(0);
    expect(listing).toBeGreaterThan(0);
    rig.memory.restore(start);
    liveSessions().clear();
    const late: { forgotten?: MemorySnapshot; hold?: Promise<AsyncDisposable> } = {};
    const going = watched(rig.connect(), (method, name) => {
      if (method === "putObject" && name === "disks/d/condemned") late.forgotten ??= rig.memory.snapshot();
      if (
        late.forgotten === undefined ||
        late.hold !== undefined ||
        method !== "putObject" ||
        !name.startsWith("disks/d/history/")
      )
        return;
      rig.memory.restore(late.forgotten);
      late.hold = rig.hold(heldPoint);
    });
    // The first try finds that its list is gone; the second one finds the reader.
    expect(await rig.prune({ policy }, going)).toMatchObject({
      heldPoints: 1,
      removedPoints: before.length - after.length - 1,
    });
    expect(rig.codes).toEqual(["STORE_REGRESSED"]);
    expect(await rig.sequences()).toContain(heldPoint);
    await (await late.hold)?.[Symbol.asyncDispose]();
  });
});

test("a group that dies in the middle of its disks is finished by the next prune, and no disk keeps what the others lost", async () => {
  const group = (sequence: number): GroupRecord => ({ id: idOf("group", sequence), name: "shop", disks: ["d", "e"] });
  rig = await PruneRig.open();
  for (const disk of ["d", "e"]) await writeHistory(rig.store, recordsOf(1, 100, group, disk), disk);
  const from = rig.memory.snapshot();
  const groups = parsePolicy("bands:2m=all,1d=1m");
  const whole = new FaultySink(rig.connect(), []);
  await rig.prune({ policy: groups }, whole);
  const wanted = await rig.sequences("d");
  expect(await rig.sequences("e")).toEqual(wanted);
  for (const call of callsOf(1, whole.calls.length)) {
    rig.memory.restore(from);
    liveSessions().clear();
    const sink = new FaultySink(rig.connect(), [{ on: "any", when: call, fault: { kind: "crash", effect: "before" } }]);
    await expect(rig.prune({ policy: groups }, sink)).rejects.toThrow(CrashError);
    liveSessions().clear();
    await rig.prune({ policy: groups });
    expect(await rig.sequences("d")).toEqual(wanted);
    expect(await rig.sequences("e")).toEqual(wanted);
  }
  expect(await namesIn(rig.connect(), "disks/d/holds/")).toEqual([]);
});
