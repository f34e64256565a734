/**
 * Points of a disk that goes on being written, and what becomes of them when the store is away,
 * forgets, or does not answer a commit.
 */

import { setImmediate } from "node:timers/promises";
import { describe, expect, test } from "vitest";
import { FaultySink, Gate } from "../../../../sink/faults.ts";
import { byDepth } from "../../../depth.ts";
import { committedPoints, contentOf, pointBytes } from "../../../model-disk.ts";
import { type Machine, machineForEachTest, type ProtectedImage } from "./protection-rig.ts";
import { Writer } from "./protection-writer.ts";

const granuleBytes = 4096;
const sizeBytes: number = 6 * 1024 * 1024;

let machine: Machine;
let disk: ProtectedImage;
machineForEachTest((fresh) => {
  machine = fresh;
  disk = machine.disk(sizeBytes);
});

describe("a disk that goes on being written", () => {
  test("has points each of which is a prefix of the acknowledged writes", async () => {
    // So little memory that old content is spilled, too.
    const protection = await disk.start({ preservedBytesMax: 4 * granuleBytes });
    await disk.point();
    const clock = { tick: 0 };
    const writers = [0, 1, 2].map((number) => new Writer(disk.device, number * 128, 128, number, clock));
    const running = writers.map((writer) => writer.run());
    try {
      for (let point = 0; point < byDepth(6, 25); point += 1) await protection.point();
    } finally {
      for (const writer of writers) writer.end();
      await Promise.all(running);
    }
    let held = 0;
    for (const point of await committedPoints(machine.plain, disk.name)) {
      expect(point.consistency).toBe("crash");
      const bytes = await pointBytes(machine.plain, disk.name, point);
      const counts = writers.map((writer) => writer.countIn(bytes));
      const included = Math.max(...writers.map((writer, index) => writer.calledAt(counts[index] ?? 0)));
      const missing = Math.min(...writers.map((writer, index) => writer.acknowledgedAt((counts[index] ?? 0) + 1)));
      expect(
        missing,
        "no write is missing that was acknowledged before another was begun that is held",
      ).toBeGreaterThan(included);
      held = Math.max(held, ...counts);
    }
    expect(held).toBeGreaterThan(byDepth(24, 100));
    expect(disk.failures).toEqual([]);
  });

  test("has a point of its cut however much is overwritten before that is captured", async () => {
    await disk.start();
    await disk.write(0, contentOf(300_000, 1));
    await disk.point();
    await disk.write(0, contentOf(300_000, 2));
    await machine.restart();
    // A new session reads the newest manifest between the cut and the first read of the disk.
    const gate = new Gate();
    machine.connect(
      new FaultySink(machine.plain, [
        { on: "getObject", prefix: "disks/d0/points/", when: 1, fault: { kind: "slow", gate } },
      ]),
    );
    await disk.start();
    const asked = disk.protection.point();
    await gate.reached;
    const atTheCut = Buffer.from(disk.content);
    await disk.write(0, contentOf(400_000, 3));
    await disk.zero(100_000, 50_000);
    expect(disk.status.preservedBytes).toBeGreaterThan(200_000);
    gate.open();
    const { sequence, consistency } = await asked;
    const point = (await committedPoints(machine.plain, disk.name)).find((each) => each.sequence === sequence);
    expect(consistency).toBe("crash");
    expect(point !== undefined && (await pointBytes(machine.plain, disk.name, point)).equals(atTheCut)).toBe(true);
    await disk.point();
    expect(disk.status.preservedBytes).toBe(0);
  });

  test("has no new point while nothing changes, unless one is asked for", async () => {
    await disk.start({ policy: { crashConsistentFrequencyMs: 20 } });
    await disk.write(0, contentOf(5000, 1));
    const first = await disk.point();
    const quiet = disk.status.pointsCommitted;
    // The lag goes back at each tick all the same: all that was written is in the newest point.
    for (let ticks = 0, lagMs = 0; ticks < 3; ) {
      await setImmediate();
      const { committedMs } = disk.status.lag;
      if ((committedMs ?? 0) < lagMs) ticks += 1;
      lagMs = committedMs ?? 0;
    }
    expect(disk.status.pointsCommitted).toBe(quiet);
    expect((await disk.point()).sequence).toBe(first.sequence + 1);
  });
});

describe("a store that is away", () => {
  test("holds up points and not writes, and one point catches up", async () => {
    await disk.start();
    const before = await disk.point();
    machine.cutOff();
    const failed = disk.nextFailure("STORE_UNREACHABLE");
    const asked = disk.protection.point();
    await failed;
    const lagMs = disk.status.lag.committedMs ?? 0;
    for (let at = 0; at < 10; at += 1) await disk.write(at * 50_000, contentOf(9000, at));
    expect(disk.status.state).toBe("waiting");
    expect(disk.findings).toEqual(["STORE_UNREACHABLE"]);
    expect(disk.status.health).toBe("Warning");
    expect(disk.status.backlogBytes).toBeGreaterThanOrEqual(90_000);
    expect(disk.status.lag.committedMs).toBeGreaterThanOrEqual(lagMs);
    machine.connect();
    const after = await disk.point();
    expect((await asked).sequence).toBe(after.sequence);
    expect(after.sequence).toBe(before.sequence + 1);
    expect([disk.status.state, disk.status.health, disk.status.backlogBytes]).toEqual(["protecting", "Normal", 0]);
    expect(disk.notices).toEqual([]);
    expect(await disk.scannedBytes()).toBeLessThan(300_000);
  });

  test("in the middle of a cycle leaves no thread, no timer and no slab behind", async () => {
    const before = resources();
    await disk.start();
    await disk.point();
    for (let round = 1; round <= 8; round += 1) {
      await disk.write(0, contentOf(400_000, round));
      const failed = disk.nextFailure("STORE_UNREACHABLE");
      const cut = machine.cutOffAt("after", (method) => method === "writePages");
      const asked = disk.protection.point();
      await Promise.all([cut, failed]);
      expect(disk.status.preservedBytes).toBe(0);
      machine.connect();
      await disk.point();
      await asked;
    }
    await machine.restart();
    await setImmediate();
    expect(newResources(before)).toEqual([]);
  });

  test("at the start is waited for, while the disk is served", async () => {
    await disk.start();
    await disk.point();
    await machine.restart();
    machine.cutOff();
    const failed = disk.nextFailure("STORE_UNREACHABLE");
    await disk.start();
    const asked = disk.protection.point();
    await failed;
    await disk.write(8192, contentOf(5000, 1));
    expect(disk.status.state).toBe("waiting");
    machine.connect();
    await disk.point();
    await asked;
    expect(disk.notices).toEqual([]);
  });
});

describe("a store that goes back in time", () => {
  test("by one point is shipped again what has changed since the one before, and nothing is compared", async () => {
    await disk.start();
    await disk.write(0, contentOf(30_000, 1));
    await disk.point();
    const earlier = machine.store.snapshot();
    await disk.write(100_000, contentOf(30_000, 2));
    await disk.point();
    await disk.write(200_000, contentOf(30_000, 3));
    await disk.point();
    machine.store.restore(earlier);
    await disk.write(300_000, contentOf(30_000, 4));
    await disk.point();
    expect(disk.notices).toEqual(["STORE_REGRESSED"]);
    expect(await disk.scannedBytes()).toBeLessThan(3 * 50_000);
    await disk.checkAll();
  });

  test("is noticed by a point that has nothing to ship, too, and the forgotten points are not listed again", async () => {
    await disk.start();
    await disk.point();
    const earlier = machine.store.snapshot();
    await disk.write(0, contentOf(30_000, 1));
    const forgotten = await disk.point();
    machine.store.restore(earlier);
    expect((await disk.point()).sequence).toBe(forgotten.sequence);
    expect(disk.notices).toEqual(["STORE_REGRESSED"]);
    await disk.checkAll();
  });

  test("again and again has only points that can be read", async () => {
    await disk.start();
    await disk.point();
    const taken = [machine.store.snapshot()];
    for (let round = 0; round < byDepth(3, 12); round += 1) {
      await disk.write(round * 70_000, contentOf(40_000, round));
      await disk.point();
      taken.push(machine.store.snapshot());
      const moment = taken.at(-1 - (round % 4));
      if (moment !== undefined) machine.store.restore(moment);
      await disk.checkAll();
    }
    await disk.point();
    await disk.checkAll();
  });

  test("further than is known has the disk compared, and the points before stay readable", async () => {
    await disk.start();
    await disk.write(0, contentOf(30_000, 1));
    await disk.point();
    const earlier = machine.store.snapshot();
    await machine.restart();
    disk.putTracking(Buffer.alloc(0));
    await disk.start();
    await disk.write(100_000, contentOf(30_000, 2));
    await disk.point();
    machine.store.restore(earlier);
    await disk.point();
    expect(disk.notices).toContain("STATE_LOST");
    expect(await disk.checkAll()).toBeGreaterThanOrEqual(4);
  });

  test("before the first point of the disk is told, and gets all of it again", async () => {
    await machine.vault();
    const empty = machine.store.snapshot();
    await disk.start();
    await disk.write(0, contentOf(30_000, 1));
    await disk.point();
    machine.store.restore(empty);
    await disk.point();
    expect(disk.notices).toEqual(["STORE_REGRESSED"]);
    expect(await disk.checkAll()).toBeGreaterThan(0);
  });

  test("before the vault itself says so, and the disk goes on being served", async () => {
    const nothing = machine.store.snapshot();
    await disk.start();
    await disk.point();
    const there = machine.store.snapshot();
    machine.store.restore(nothing);
    const waiting = disk.next((event) => event.kind === "state" && event.state === "waiting");
    const asked = disk.protection.point();
    await waiting;
    expect(disk.findings).toEqual(["STORE_UNREACHABLE"]);
    expect(disk.status.findings[0]?.cause).toContain("has forgotten the vault");
    await disk.write(0, contentOf(30_000, 1));
    machine.store.restore(there);
    await disk.point();
    await asked;
    expect(disk.status.health).toBe("Normal");
  });

  test("costs the other disks of the vault a cycle and no point", async () => {
    const other = machine.disk(sizeBytes);
    await disk.start();
    await other.start();
    await disk.point();
    await other.point();
    const earlier = machine.store.snapshot();
    // What the other's point refers to lies in a segment of this one, which is forgotten and whose
    // name is then given again.
    await disk.stop();
    machine.store.restore(earlier);
    await disk.start();
    await disk.write(0, contentOf(100_000, 1));
    await disk.point();
    await disk.stop();
    machine.store.restore(earlier);
    await disk.start();
    await disk.write(0, contentOf(120_000, 2));
    await disk.point();
    await other.write(0, contentOf(100_000, 1));
    await other.point();
    await disk.checkAll();
    await other.checkAll();
  });
});

describe("a commit without an answer", () => {
  for (const effect of ["after", "before"] as const) {
    test(`that was ${effect === "after" ? "done" : "never done"} loses no change and has nothing compared`, async () => {
      await disk.start();
      await disk.write(0, contentOf(30_000, 1));
      const before = await disk.point();
      await disk.write(100_000, contentOf(30_000, 2));
      let swaps = 0;
      const failed = disk.nextFailure("STORE_UNREACHABLE");
      const cut = machine.cutOffAt(effect, (method, name) => {
        if (method === "putObject" && name.endsWith("/head")) swaps += 1;
        return swaps === 2; // the first marks the head, the second commits
      });
      const asked = disk.protection.point();
      await Promise.all([cut, failed]);
      await disk.write(200_000, contentOf(30_000, 3));
      machine.connect();
      const after = await disk.point();
      await asked;
      expect(after.sequence).toBe(before.sequence + (effect === "after" ? 2 : 1));
      expect(await disk.scannedBytes()).toBeLessThan(2 * 50_000);
      expect(disk.notices).toEqual([]);
      expect(disk.status.pointsCommitted).toBe(after.sequence);
      await disk.checkAll();
    });

    test(`that was ${effect === "after" ? "done" : "never done"} when the process died has a region compared, not the disk`, async () => {
      await disk.start();
      await disk.write(0, contentOf(30_000, 1));
      await disk.point();
      await disk.write(100_000, contentOf(30_000, 2));
      let swaps = 0;
      const cut = machine.cutOffAt(effect, (method, name) => {
        if (method === "putObject" && name.endsWith("/head")) swaps += 1;
        return swaps === 2;
      });
      const asked = disk.protection.point();
      asked.catch(() => undefined); // nobody lives to hear it
      await cut;
      await disk.write(200_000, contentOf(30_000, 3));
      await machine.crash();
      await disk.start();
      await disk.point();
      expect(disk.notices).toEqual([]);
      expect(await disk.scannedBytes()).toBeLessThanOrEqual(4 * 1024 * 1024);
      await disk.checkAll();
    });
  }
});

/** What keeps the process alive: threads, timers, sockets, files that are being worked on. */
function resources(): string[] {
  return process.getActiveResourcesInfo().filter((name) => name !== "Immediate");
}

/** What does so now and did not `before`. */
function newResources(before: readonly string[]): string[] {
  const old = [...before];
  return resources().filter((name) => {
    const at = old.indexOf(name);
    if (at >= 0) old.splice(at, 1);
    return at < 0;
  });
}
