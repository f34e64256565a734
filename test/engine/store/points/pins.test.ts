/**
 * Pins: a point that a user has pinned stays until the pin ends, and what cannot be read counts as
 * a pin.
 */
import { beforeEach, describe, expect, test } from "vitest";
import type { PinDocument } from "../../../../engine/store/format/keeping.ts";
import { type PinRequest, putPin, removePins } from "../../../../engine/store/points/pins.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import { Store } from "../../../../engine/store/store.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { FaultySink, Gate } from "../../../../sink/faults.ts";
import { recordOf, recordsOf, recordsVault, timeOf, writeHistory } from "../../../point-records.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { PruneRig } from "../../upkeep/prune/prune-rig.ts";
import { tamperObject } from "../../upkeep/scrub/tamper.ts";

const policy = parsePolicy("keep:last=3");
let rig: PruneRig;
beforeEach(async () => {
  liveSessions().clear();
  rig = await PruneRig.open();
  await writeHistory(rig.store, recordsOf(1, 21));
});

const pins = async (): Promise<string[]> => await namesIn(rig.connect(), "disks/d/pins/");

async function pin(sequence: number, more: Partial<PinRequest> = {}, store: Store = rig.store): Promise<PinDocument> {
  const { onNotice } = rig;
  const place = { store, vault: recordsVault, disk: "d", point: recordOf(sequence), onNotice };
  return await putPin({ ...place, name: null, untilMs: null, nowMs: 1000, ...more });
}

async function unpin(sequence: number, name?: string): Promise<number> {
  const { store, onNotice } = rig;
  return await removePins({ store, vault: recordsVault, disk: "d", point: recordOf(sequence), name, onNotice });
}

describe("a pinned point", () => {
  test("stays until its last pin is removed, and changes nothing for the others", async () => {
    await pin(5, { name: "audit" });
    await pin(5, { name: "Büro" });
    expect(await rig.prune({ policy })).toMatchObject({ removedPoints: 16, keptPoints: 4, heldPoints: 0 });
    expect(await rig.sequences()).toEqual([5, 18, 19, 20]);
    expect(await unpin(5, "audit")).toBe(1);
    expect(await unpin(5, "nobody's")).toBe(0);
    await rig.prune({ policy });
    expect(await rig.sequences()).toEqual([5, 18, 19, 20]);
    expect(await unpin(5)).toBe(1);
    await rig.prune({ policy });
    expect(await rig.sequences()).toEqual([18, 19, 20]);
    expect(await pins()).toEqual([]);
  });

  test("is pinned anew under the same name, and under no other", async () => {
    await pin(5, { name: "audit" });
    await pin(5, { name: "audit", untilMs: timeOf(100) });
    await pin(5);
    await pin(6, { name: "audit" });
    expect(await pins()).toHaveLength(3);
    expect(await unpin(5)).toBe(2);
    expect(await pins()).toHaveLength(1);
  });

  test("goes when its time is over by our clock and by the newest point's, and the pin goes too", async () => {
    await pin(5, { untilMs: timeOf(30) });
    // A clock that was set forward.
    await rig.prune({ policy, nowMs: timeOf(1_000_000) });
    expect(await rig.sequences()).toContain(5);
    await rig.commit(15);
    // A clock that stands still.
    await rig.prune({ policy, nowMs: timeOf(29) });
    expect(await rig.sequences()).toContain(5);
    await rig.prune({ policy, nowMs: timeOf(40) });
    expect(await rig.sequences()).toEqual([33, 34, 35]);
    expect(await pins()).toEqual([]);
  });

  test("cannot be one that is gone, and nothing is left of the attempt", async () => {
    await rig.prune({ policy });
    await expectCode(pin(5), "POINT_NOT_FOUND");
    await expectCode(pin(19, { point: { ...recordOf(19), id: "e".repeat(32) } }), "POINT_NOT_FOUND");
    expect(await pins()).toEqual([]);
  });

  test("stays while the pin cannot be read, and that is said", async () => {
    await pin(5);
    const [name = ""] = await pins();
    tamperObject(rig.memory, name, "flipped", rig.memory);
    await rig.prune({ policy });
    expect(rig.codes).toContain("PIN_DAMAGED");
    expect(await rig.sequences()).toEqual([5, 18, 19, 20]);
    expect(await unpin(5)).toBe(1);
    expect(await pins()).toEqual([]);
  });

  test("stays whenever the pin comes before the prune has condemned it, else it is refused", async () => {
    const start = rig.memory.snapshot();
    const whole = new FaultySink(rig.connect(), []);
    await rig.prune({ policy }, whole);
    const outcomes = new Set<string>();
    for (let call = 1; call <= whole.calls.length; call += 1) {
      rig.memory.restore(start);
      liveSessions().clear();
      const gate = new Gate();
      const pruning = rig.prune(
        { policy },
        new FaultySink(rig.connect(), [{ on: "any", when: call, fault: { kind: "slow", gate } }]),
      );
      await gate.reached;
      const pinning = pin(5).then(
        () => "pinned",
        () => "refused",
      );
      for (let turn = 0; turn < 30; turn += 1) await new Promise((resolve) => setImmediate(resolve));
      gate.open();
      await pruning;
      const outcome = await pinning;
      outcomes.add(outcome);
      expect((await rig.sequences()).includes(5), `call ${String(call)}: ${outcome}`).toBe(outcome === "pinned");
      expect(await pins()).toHaveLength(outcome === "pinned" ? 1 : 0);
    }
    expect(outcomes).toEqual(new Set(["pinned", "refused"]));
  });
});

describe("a pin", () => {
  test("is refused with a name that a terminal would obey, or an end that is over", async () => {
    for (const wrong of [
      { name: "" },
      { name: "a\nb" },
      { name: "x".repeat(201) },
      { untilMs: 999 },
      { untilMs: Number.NaN },
    ]) {
      await expectCode(pin(5, wrong), "INVALID_ARGUMENT");
    }
    expect(await pins()).toEqual([]);
  });

  test("of a point that was committed after the prune had looked is left alone", async () => {
    const gate = new Gate();
    const sink = new FaultySink(rig.connect(), [
      { on: "list", prefix: "disks/d/pins/", when: 1, fault: { kind: "slow", gate } },
    ]);
    const pruning = rig.prune({ policy }, sink);
    await gate.reached;
    await rig.commit(1);
    await pin(21);
    gate.open();
    await pruning;
    expect(await pins()).toHaveLength(1);
    expect(await rig.sequences()).toContain(21);
  });
});
