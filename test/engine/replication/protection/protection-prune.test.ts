/**
 * A protected disk prunes itself after its points, and goes on taking them when
 * that fails.
 */
import { describe, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { FaultySink, type PlannedFault } from "../../../../sink/faults.ts";
import { committedPoints } from "../../../model-disk.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { Machine, machineForEachTest, type ProtectedImage } from "./protection-rig.ts";

let machine: Machine;
machineForEachTest((begun) => {
  machine = begun;
});

const retention = parsePolicy("keep:last=3");

async function takePoints(disk: ProtectedImage, count: number): Promise<void> {
  for (let taken = 0; taken < count; taken += 1) {
    await disk.write(4096 * taken, Buffer.alloc(4096, disk.events.length + 1));
    await disk.point();
  }
}

const sequences = async (disk: ProtectedImage): Promise<number[]> =>
  (await committedPoints(machine.plain, disk.name)).map(({ sequence }) => sequence);

describe("a protected disk with a retention", () => {
  test("drops what is too old after its next point, in its own session, and every point that is left can be read", async () => {
    const disk = machine.disk(200_000);
    const protection = await disk.start();
    await takePoints(disk, 8);
    const before = await sequences(disk);
    const pruned = disk.next(({ kind }) => kind === "prune");
    protection.setPolicy({ crashConsistentFrequencyMs: 86_400_000, retention });
    await takePoints(disk, 1);
    const left = before.length + 1;
    expect(await pruned).toMatchObject({ kind: "prune", removedPoints: left - 3, keptPoints: 3 });
    expect(await sequences(disk)).toEqual([left - 2, left - 1, left]);
    expect(await disk.checkAll()).toBe(3);
    await takePoints(disk, 2);
    await disk.stop();
    expect(disk.failures).toEqual([]);
    // Not at every point: a page would be written anew each time.
    expect(disk.events.filter(({ kind }) => kind === "prune")).toHaveLength(1);
    expect(await sequences(disk)).toHaveLength(5);
  });

  test("refuses a prune from outside while it has the writer lease, and lets points be pinned", async () => {
    const disk = machine.disk(100_000);
    const protection = await disk.start();
    await takePoints(disk, 5);
    const vault = await machine.vault();
    const refused = await expectCode(vault.prune({ disk: disk.name, policy: retention }), "WRITER_ACTIVE");
    expect(refused.remedy).toContain("recoveryPointRetention");
    await vault.pin({ disk: disk.name, point: "2", name: "audit" });
    expect((await vault.points(disk.name)).filter(({ pinned }) => pinned).map(({ sequence }) => sequence)).toEqual([2]);
    const pruned = disk.next(({ kind }) => kind === "prune");
    protection.setPolicy({ crashConsistentFrequencyMs: 86_400_000, retention });
    await takePoints(disk, 1);
    await pruned;
    const newest = (await sequences(disk)).at(-1) ?? 0;
    expect(await sequences(disk)).toEqual([2, newest - 2, newest - 1, newest]);
    expect((await vault.point(disk.name, "2")).pins).toEqual([{ name: "audit", until: null }]);
  });

  test.each<readonly [string, PlannedFault]>([
    ["asking what keeps points", { on: "list", prefix: "disks/d0/pins/", when: 1, fault: refused() }],
    ["condemning them", { on: "putObject", prefix: "disks/d0/condemned", when: 1, fault: refused() }],
    ["emptying that list", { on: "putObject", prefix: "disks/d0/condemned", when: 2, fault: refused() }],
    [
      "an answer that is lost",
      { on: "putObject", prefix: "disks/d0/condemned", when: 1, fault: { kind: "unacknowledged" } },
    ],
  ])("goes on taking points when a prune fails at %s", async (_where, fault) => {
    const disk = machine.disk(100_000);
    const protection = await disk.start();
    await takePoints(disk, 5);
    const sink = new FaultySink(machine.plain, [fault]);
    machine.connect(sink);
    protection.setPolicy({ crashConsistentFrequencyMs: 86_400_000, retention });
    await takePoints(disk, 3);
    sink.assertAllFired();
    machine.connect();
    await takePoints(disk, 1);
    expect(disk.failures).toEqual([]);
    expect(disk.status.state).toBe("protecting");
    await disk.checkAll();
    await disk.stop();
    expect((await sequences(disk)).length).toBeGreaterThan(2);
  });

  test("keeps everything without one", async () => {
    const disk = machine.disk(50_000);
    await disk.start({ policy: { retention: parsePolicy("none") } });
    await takePoints(disk, 4);
    expect((await sequences(disk))[0]).toBe(1);
    expect(await namesIn(machine.plain, "disks/d0/condemned")).toEqual([]);
  });
});

function refused(): PlannedFault["fault"] {
  return { kind: "refused", error: new TidemarkError("STORE_UNREACHABLE", "nobody answers") };
}
