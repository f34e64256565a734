/**
 * How a protection begins and ends: what its tracking tells, which process has the writer lease, how much room there
 * is, and images of every kind.
 */
import { copyFileSync, readFileSync, rmSync, truncateSync, writeFileSync } from "node:fs";
import files from "node:fs/promises";
import { syncBuiltinESMExports } from "node:module";
import { afterEach, describe, expect, onTestFinished, test, vi } from "vitest";
import { subscribeDiagnostics } from "../../../../engine/diagnostics.ts";
import { LiveFile } from "../../../../engine/disk/source/live-file.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import type { ProcessIdentity } from "../../../../engine/store/points/process-identity.ts";
import { FaultySink, Gate } from "../../../../sink/faults.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { committedPoints, contentOf, ModelDisk, openModelVault } from "../../../model-disk.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { type Machine, machineForEachTest, type ProtectedImage } from "./protection-rig.ts";

const pretended = vi.hoisted((): { identity: Partial<ProcessIdentity>; failure?: Error | undefined } => ({
  identity: {},
}));
vi.mock(import("../../../../engine/store/points/process-identity.ts"), async (importOriginal) => {
  const original = await importOriginal();
  return {
    ...original,
    identifyProcess: async () => {
      if (pretended.failure !== undefined) throw pretended.failure;
      return { ...(await original.identifyProcess()), ...pretended.identity };
    },
  };
});

const regionBytes: number = 4 * 1024 * 1024;
const sizeBytes: number = 3 * regionBytes;

let machine: Machine;
let disk: ProtectedImage;
machineForEachTest((fresh) => {
  machine = fresh;
  disk = machine.disk(sizeBytes);
});
afterEach(() => {
  pretended.identity = {};
  pretended.failure = undefined;
});

/** Two points: the first compares, the second is of a cut. */
async function beginWith(length: number): Promise<void> {
  await disk.start();
  await disk.write(0, contentOf(length, 1));
  await disk.point();
}

describe("tracking", () => {
  test("of a disk that was left in good order has only what is marked looked at, and the first point is of a cut", async () => {
    await beginWith(500_000);
    await disk.write(regionBytes, contentOf(2 * granuleBytes, 2));
    await machine.restart();
    await disk.start();
    expect((await disk.point()).consistency).toBe("crash");
    expect(await disk.scannedBytes()).toBeLessThanOrEqual(4 * granuleBytes);
    expect(disk.notices).toEqual([]);
    await disk.checkAll();
  });

  test("of a process that died has the regions that it wrote to compared, and nothing counts as changed that is not", async () => {
    await beginWith(500_000);
    await disk.write(regionBytes, contentOf(2 * granuleBytes, 2));
    await machine.crash();
    await disk.start();
    const point = await disk.point();
    expect(point.consistency).toBe("crash");
    expect(point.changedBytes).toBe(2 * granuleBytes);
    expect(await disk.scannedBytes()).toBeLessThanOrEqual(2 * regionBytes);
    expect(disk.notices).toEqual([]);
    await disk.checkAll();
  });

  const ways: Record<string, () => void> = {
    "that is lost": () => {
      rmSync(disk.trackingPath);
    },
    "that is torn": () => {
      truncateSync(disk.trackingPath, 5000);
    },
    "that is garbage": () => {
      writeFileSync(disk.trackingPath, contentOf(20_000, 9));
    },
    "of another disk": () => {
      copyFileSync(other.trackingPath, disk.trackingPath);
    },
    "that is older than the image": () => {
      writeFileSync(disk.image, disk.content.fill(7, 0, 100));
    },
  };
  let other: ProtectedImage;
  for (const [way, spoil] of Object.entries(ways)) {
    test(`${way} has the disk compared, which makes a crash-consistent point when no client writes meanwhile`, async () => {
      other = machine.disk(sizeBytes);
      await other.start();
      await other.point();
      await beginWith(500_000);
      await disk.write(regionBytes, contentOf(2 * granuleBytes, 2));
      await machine.restart();
      spoil();
      const compared = disk.nextPoint();
      await disk.start({ policy: { crashConsistentFrequencyMs: 1000 } });
      const { consistency, changedBytes } = await compared;
      expect(consistency).toBe("crash");
      expect(changedBytes).toBeLessThanOrEqual(2 * 16_384);
      await disk.checkNewest();
      expect(disk.notices).toEqual(["STATE_LOST"]);
    });
  }

  test("that is lost has a fuzzy point made when a client writes meanwhile, and then one of a cut at once", async () => {
    await beginWith(500_000);
    await machine.restart();
    rmSync(disk.trackingPath);
    const gate = new Gate();
    machine.connect(
      new FaultySink(machine.plain, [
        // The comparison waits for what the newest point holds.
        { on: "getObject", prefix: "disks/d0/map/", when: 1, fault: { kind: "slow", gate } },
      ]),
    );
    const compared = disk.nextPoint();
    await disk.start();
    const asked = disk.protection.point();
    const reading = disk.next((event) => event.kind === "state" && event.state === "resyncing");
    await reading;
    await disk.write(2 * regionBytes, contentOf(granuleBytes, 3));
    gate.open();
    expect((await compared).consistency).toBe("fuzzy");
    expect((await asked).consistency).toBe("crash");
    expect(disk.findings).toEqual([]);
    await disk.checkNewest();
  });
});

test("a disk that was removed while its protection was stopped begins anew, whatever its tracking says", async () => {
  await beginWith(500_000);
  const before = await disk.point();
  await machine.restart();
  const vault = await machine.vault();
  expect(await vault.removeDisk({ disk: disk.name })).toMatchObject({ removedPoints: before.sequence });
  await disk.start();
  await disk.write(regionBytes, contentOf(2 * granuleBytes, 2));
  await disk.point();
  await disk.checkNewest();
  expect(await vault.point(disk.name, "1")).toMatchObject({ parent: null });
  await disk.checkAll();
  await expectCode(vault.removeDisk({ disk: disk.name }), "WRITER_ACTIVE");
});

describe("the writer lease", () => {
  test("of another writer is waited for, and the disk is compared when that one has left a point", async () => {
    await beginWith(100_000);
    await machine.restart();
    const gate = new Gate();
    const line = new FaultySink(machine.plain, [
      { on: "putObject", prefix: "disks/d0/points/", when: 1, fault: { kind: "slow", gate } },
    ]);
    const theirs = await openModelVault(line);
    const replicating = theirs.replicate({ disk: disk.name, volume: new ModelDisk(contentOf(sizeBytes, 8)) });
    await gate.reached;
    const refused = disk.nextFailure("WRITER_ACTIVE");
    await disk.start();
    const asked = disk.protection.point();
    await refused;
    expect(disk.status.state).toBe("waiting");
    expect(disk.status.findings.map(({ code, level }) => [code, level])).toEqual([["WRITER_ACTIVE", "Critical"]]);
    await disk.write(50_000, contentOf(1000, 4));
    gate.open();
    await replicating;
    await disk.point();
    await asked;
    expect(disk.notices).toEqual(["STATE_LOST"]);
    expect(disk.findings).toEqual([]);
  });

  test("that is taken while the disk is protected is told at once, and taken back when it is free", async () => {
    await beginWith(100_000);
    // Another machine, at a time at which our lease has run out.
    pretended.identity = { machine: "another" };
    const theirs = await openModelVault(new MemorySink({ store: machine.store, clock: () => Date.now() + 61_000 }));
    await theirs.replicate({ disk: disk.name, volume: new ModelDisk(contentOf(sizeBytes, 8)) });
    pretended.identity = {};
    await disk.write(50_000, contentOf(1000, 4));
    await disk.point();
    expect(disk.failures).toEqual(["SEAT_LOST"]);
    expect(disk.notices).toContain("STATE_LOST");
    expect(disk.findings).toEqual([]);
  });
});

test("a session begins also when the process can open no file at that moment", async () => {
  await beginWith(10_000);
  disk.protection.pause();
  await disk.next((event) => event.kind === "state" && event.state === "paused");
  const full = Object.assign(new Error("EMFILE: too many open files"), { code: "EMFILE" });
  const reading = vi.spyOn(files, "readFile").mockRejectedValue(full);
  syncBuiltinESMExports();
  onTestFinished(() => {
    reading.mockRestore();
    syncBuiltinESMExports();
  });
  disk.protection.resume();
  await disk.write(0, contentOf(10_000, 2));
  await disk.point();
  expect(disk.failures).toEqual([]);
});

test("a failure of the machine costs a cycle and not the protection", async () => {
  await beginWith(10_000);
  disk.protection.pause();
  await disk.next((event) => event.kind === "state" && event.state === "paused");
  pretended.failure = Object.assign(new Error("EMFILE: too many open files"), { code: "EMFILE", syscall: "open" });
  const failed = disk.nextFailure("INTERNAL");
  await disk.write(0, contentOf(10_000, 2));
  disk.protection.resume();
  const asked = disk.protection.point();
  await failed;
  pretended.failure = undefined;
  await asked;
  expect(disk.protection.status()).toMatchObject({ state: "protecting" });
  await disk.checkNewest();
});

describe("room for old content", () => {
  test("that is used up costs a cut and a fuzzy point, and no write", async () => {
    const small = { preservedBytesMax: 8 * granuleBytes, spillBytesMax: 8 * granuleBytes };
    await disk.start(small);
    await disk.write(0, contentOf(400_000, 1));
    await disk.point();
    await disk.write(0, contentOf(400_000, 2));
    await machine.restart();
    const gates = [new Gate(), new Gate()] as const;
    const faults = gates.map((gate, index) => ({
      on: "getObject" as const,
      prefix: "disks/d0/points/",
      when: index + 1,
      fault: { kind: "slow" as const, gate },
    }));
    machine.connect(new FaultySink(machine.plain, faults));
    const abandoned = disk.nextFailure("CUT_ABANDONED");
    await disk.start(small);
    const asked = disk.protection.point();
    await gates[0].reached;
    await disk.write(0, contentOf(400_000, 3));
    gates[0].open();
    await abandoned;
    expect(disk.findings).toEqual(["CUT_ABANDONED"]);
    // The next pass keeps nothing.
    const fuzzy = disk.nextPoint();
    await gates[1].reached;
    await disk.write(0, contentOf(400_000, 4));
    expect(disk.status.preservedBytes).toBe(0);
    gates[1].open();
    expect((await fuzzy).consistency).toBe("fuzzy");
    const point = await asked;
    expect(point.consistency).toBe("crash");
    await disk.checkNewest(point.point);
    expect(disk.findings).toEqual([]);
    await disk.checkAll();
  });
});

describe("the end", () => {
  test("with a last point leaves nothing to be looked at by the next start", async () => {
    await beginWith(100_000);
    await disk.write(50_000, contentOf(1000, 4));
    expect(await disk.protection.stop({ drain: true })).toBe(undefined);
    await disk.checkNewest();
    await machine.restart();
    await disk.start();
    expect(disk.status.backlogBytes).toBe(0);
    await disk.point();
    expect(await disk.scannedBytes()).toBe(0);
  });

  test("gives the disk back: the next start takes it over from no writer", async () => {
    const seen: string[] = [];
    const end = subscribeDiagnostics(({ name }) => seen.push(name));
    await beginWith(100_000);
    await machine.restart();
    await disk.start();
    await disk.point();
    end();
    expect(seen).toContain("commit.resolved");
    expect(seen).not.toContain("lease.taken-over");
  });

  test("with a last point, while the store is away, waits until it is told not to and loses nothing", async () => {
    await beginWith(100_000);
    await disk.write(50_000, contentOf(1000, 4));
    machine.cutOff();
    const failed = disk.nextFailure("STORE_UNREACHABLE");
    const patience = new AbortController();
    const stopped = disk.protection.stop({ drain: true, signal: patience.signal });
    const again = disk.protection.stop({ drain: false });
    await failed;
    patience.abort();
    for (const missed of await Promise.all([stopped, again])) expect(missed).toMatchObject({ code: "INTERRUPTED" });
    expect(disk.status.state).toBe("stopped");
    await expectCode(disk.protection.point(), "INTERRUPTED");
    machine.connect();
    await disk.start();
    await disk.point();
    expect(await disk.scannedBytes()).toBeLessThanOrEqual(3 * granuleBytes);
    expect(disk.notices).toEqual([]);
    await disk.checkAll();
  });

  test("of the vault ends its protections, and callers that wait for a point are told", async () => {
    await beginWith(100_000);
    machine.cutOff();
    const failed = disk.nextFailure("STORE_UNREACHABLE");
    const asked = disk.protection.point();
    asked.catch(() => undefined); // looked at below
    await failed;
    await (await machine.vault()).close();
    await expectCode(asked, "INTERRUPTED");
    expect(disk.status.state).toBe("stopped");
  });

  test("of the vault while a protection is being started ends that one, too", async () => {
    const vault = await machine.vault();
    const starting = vault.protect({ disk: disk.name, image: disk.image, stateFolder: machine.stateFolder });
    starting.catch(() => undefined); // looked at below
    await vault.close();
    await expectCode(starting, "INVALID_ARGUMENT");
    await using image = await LiveFile.open(disk.image); // nobody holds it any more
    expect(image.sizeBytes).toBe(sizeBytes);
  });

  test("of the waiting for a point leaves the protection as it was", async () => {
    await beginWith(100_000);
    machine.cutOff();
    const patience = new AbortController();
    const failed = disk.nextFailure("STORE_UNREACHABLE");
    const asked = disk.protection.point({ signal: patience.signal });
    asked.catch(() => undefined); // looked at below
    await failed;
    patience.abort();
    await expectCode(asked, "INTERRUPTED");
    machine.connect();
    await disk.point();
  });
});

describe("points", () => {
  test("are those that the vault lists, also after a restart", async () => {
    await beginWith(100_000);
    await machine.restart();
    await disk.start();
    await disk.point();
    const listed = await committedPoints(machine.plain, disk.name);
    expect(disk.status).toMatchObject({ points: listed.length, pointsCommitted: 1 });
  });
});

describe("a pause", () => {
  test("takes no points until it ends, and what was asked for meanwhile is then answered", async () => {
    await beginWith(100_000);
    const paused = disk.next((event) => event.kind === "state" && event.state === "paused");
    disk.protection.pause();
    await paused;
    const asked = disk.protection.point();
    await disk.write(50_000, contentOf(1000, 4));
    expect(disk.findings).toEqual(["PAUSED"]);
    const { pointsCommitted } = disk.status;
    disk.protection.resume();
    await asked;
    expect(disk.status.pointsCommitted).toBe(pointsCommitted + 1);
    await disk.checkNewest();
    expect(disk.findings).toEqual([]);
  });
});

describe("an image", () => {
  test("is protected once: a second protection of it is refused with WRITER_ACTIVE, and the first goes on", async () => {
    await beginWith(100_000);
    const vault = await machine.vault();
    const second = vault.protect({ disk: "second", image: disk.image, stateFolder: machine.stateFolder });
    await expectCode(second, "WRITER_ACTIVE");
    await disk.write(0, contentOf(100, 5));
    await disk.point();
  });

  test("that is not there is refused with SOURCE_NOT_FOUND, and nothing is left in the vault", async () => {
    rmSync(disk.image);
    await expectCode(disk.start(), "SOURCE_NOT_FOUND");
    expect(await namesIn(machine.plain, "disks/")).toEqual([]);
  });

  test("whose name vanishes goes on being protected, for it is still open", async () => {
    await beginWith(100_000);
    rmSync(disk.image);
    await disk.write(50_000, contentOf(1000, 4));
    await disk.point();
    writeFileSync(disk.image, "");
  });

  test("that grows has what is new in the next point", async () => {
    await beginWith(100_000);
    const grownBytes = sizeBytes + 70_000;
    truncateSync(disk.image, grownBytes);
    disk.content = Buffer.concat([disk.content, Buffer.alloc(70_000)]);
    await disk.protection.grow();
    await disk.write(sizeBytes + 100, contentOf(5000, 6));
    const point = await disk.point();
    expect([point.volumeBytes, disk.status.sizeBytes]).toEqual([grownBytes, grownBytes]);
    expect(await disk.scannedBytes()).toBeLessThan(2 * 70_000);
    await disk.checkAll();
  });

  test("that grew while it was not protected is protected in its new size", async () => {
    await beginWith(100_000);
    await machine.restart();
    truncateSync(disk.image, sizeBytes + 70_000);
    disk.content = Buffer.concat([disk.content, Buffer.alloc(70_000)]);
    await disk.start();
    expect((await disk.point()).volumeBytes).toBe(sizeBytes + 70_000);
  });

  test("that has become smaller makes no point, and says so", async () => {
    await beginWith(100_000);
    await machine.restart();
    truncateSync(disk.image, regionBytes);
    const failed = disk.nextFailure("SOURCE_SHRUNK");
    await disk.start({ policy: { crashConsistentFrequencyMs: 1000 } });
    await failed;
    expect(disk.status.state).toBe("waiting");
    expect(disk.findings).toContain("SOURCE_SHRUNK");
  });

  for (const bytes of [0, 1, 511, 4096, 512 * 9 + 100, regionBytes + 512 * 3 + 100]) {
    test(`of ${String(bytes)} bytes is protected`, async () => {
      const odd = machine.disk(bytes);
      await odd.start();
      await odd.point();
      if (bytes > 0) await odd.write(bytes - 1, contentOf(1, 7));
      if (bytes > 600) await odd.write(bytes - 600, contentOf(550, 8));
      expect((await odd.point()).volumeBytes).toBe(bytes);
      await machine.crash();
      await odd.start();
      await odd.point();
      await machine.restart();
      await odd.start();
      await odd.point();
      expect(await odd.checkAll()).toBeGreaterThanOrEqual(4);
    });
  }

  test("whose newest point has a damaged map gets a point that does not build on it", async () => {
    await beginWith(300_000);
    const [newest] = (await committedPoints(machine.plain, disk.name)).slice(-1);
    const leaves = await namesIn(machine.plain, "disks/d0/map/");
    for (const name of leaves) {
      const { bytes, etag } = await machine.plain.getObject(name, 10_000_000);
      bytes[bytes.length - 5] = (bytes[bytes.length - 5] ?? 0) ^ 1;
      await machine.plain.putObject(name, bytes, { ifMatch: etag });
    }
    await machine.crash(); // so that the map is looked at
    await disk.start();
    await disk.point();
    expect(disk.notices).toEqual(["PARENT_DAMAGED"]);
    expect((await committedPoints(machine.plain, disk.name)).length).toBeGreaterThan(newest?.sequence ?? 0);
    expect(readFileSync(disk.image).equals(disk.content)).toBe(true);
  });
});
