/** Labels: what they say, when they go, and that they keep nothing. */
import { beforeEach, describe, expect, test } from "vitest";
import { listLabels, putLabel } from "../../../../engine/store/points/labels.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import { Store } from "../../../../engine/store/store.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { FaultySink } from "../../../../sink/faults.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { closeModelVaults, openModelVault, sampleDisk } from "../../../model-disk.ts";
import { recordOf, recordsOf, recordsVault, writeHistory } from "../../../point-records.ts";
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

const objects = async (): Promise<string[]> => await namesIn(rig.connect(), "disks/d/labels/");

async function label(sequence: number, text: string, store: Store = rig.store): Promise<void> {
  await putLabel({ store, vault: recordsVault, disk: "d", point: recordOf(sequence), text, nowMs: 1000 });
}

async function labels(): Promise<Readonly<Record<string, string>>> {
  const byId = await listLabels(rig.store, recordsVault, "d", rig.onNotice, undefined);
  const bySequence = recordsOf(1, 40).map(({ sequence, id }) => [String(sequence), byId.get(id)] as const);
  return Object.fromEntries(bySequence.filter((pair): pair is [string, string] => pair[1] !== undefined));
}

describe("a label", () => {
  test("is replaced by the next one, and removed by an empty one", async () => {
    await label(5, "before the upgrade");
    await label(6, "Büro");
    await label(5, "after the upgrade");
    expect(await labels()).toEqual({ "5": "after the upgrade", "6": "Büro" });
    await label(5, "");
    await label(7, "");
    expect(await labels()).toEqual({ "6": "Büro" });
    expect(await objects()).toHaveLength(1);
  });

  test("keeps no point, and goes with it", async () => {
    for (const sequence of [3, 17, 18, 20]) await label(sequence, `point ${String(sequence)}`);
    expect(await rig.prune({ policy })).toMatchObject({ removedPoints: 17, keptPoints: 3 });
    expect(await labels()).toEqual({ "18": "point 18", "20": "point 20" });
    expect(await objects()).toHaveLength(2);
  });

  test("that an interrupted prune left behind goes with the next one, and one of a point to come stays", async () => {
    await label(3, "gone");
    await label(30, "not listed yet");
    await rig.prune({ policy });
    await label(3, "put late");
    await label(19, "stays");
    await rig.commit(1);
    await rig.prune({ policy });
    expect(await labels()).toEqual({ "19": "stays", "30": "not listed yet" });
  });

  test("is put once, also when the answer is lost", async () => {
    for (const kind of ["unacknowledged", "late"] as const) {
      const sink = new FaultySink(rig.connect(), [{ on: "putObject", when: 1, fault: { kind } }]);
      await label(5, kind, new Store(sink));
      sink.assertAllFired();
      await sink.releaseLate();
      expect(await labels()).toEqual({ "5": kind });
    }
  });

  test("that cannot be read is told of, and hides no other", async () => {
    await label(5, "damaged");
    await label(6, "sound");
    tamperObject(rig.memory, (await objects())[0] ?? "", "flipped", rig.memory);
    expect(await labels()).toEqual({ "6": "sound" });
    expect(rig.codes).toEqual(["LABEL_DAMAGED"]);
    await label(5, "anew");
    expect(await labels()).toEqual({ "5": "anew", "6": "sound" });
  });

  test("is one line of at most 200 characters", async () => {
    await label(5, "x".repeat(200));
    for (const text of ["x".repeat(201), "two\nlines", "\u0007"]) await expectCode(label(5, text), "INVALID_ARGUMENT");
  });
});

test("points are labelled when they are made and afterwards, and lists show it", async () => {
  const vault = await openModelVault(new MemorySink());
  const volume = sampleDisk(100_000, 1);
  await vault.replicate({ disk: "d", volume, label: "first" });
  await vault.replicate({ disk: "d", volume });
  expect((await vault.points("d")).map((point) => point.label)).toEqual(["first", null]);
  expect(await vault.label({ disk: "d", point: "2", text: "second" })).toMatchObject({ sequence: 2, label: "second" });
  expect((await vault.points("d")).map((point) => point.label)).toEqual(["first", "second"]);
  expect((await vault.point("d", "1")).label).toBe("first");
  expect(await vault.label({ disk: "d", point: "1", text: "" })).toMatchObject({ label: null });
  expect((await vault.point("d", "1")).label).toBeNull();
  await expectCode(vault.replicate({ disk: "d", volume, label: "two\nlines" }), "INVALID_ARGUMENT");
  await expectCode(vault.label({ disk: "d", point: "9", text: "nothing" }), "POINT_NOT_FOUND");
  expect(await vault.points("d")).toHaveLength(2);
  await closeModelVaults();
});
