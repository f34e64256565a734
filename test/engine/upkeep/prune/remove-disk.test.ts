/**
 * Removal of a disk: all of its points go or none, whatever call ends it; a pin or a reader refuses
 * it; what comes afterwards under the same name begins anew.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { hasCode } from "../../../../engine/errors.ts";
import type { Notice } from "../../../../engine/notice.ts";
import type { GroupRecord } from "../../../../engine/store/format/documents.ts";
import { readHead } from "../../../../engine/store/points/head.ts";
import { listLabels, putLabel } from "../../../../engine/store/points/labels.ts";
import { listPins, putPin } from "../../../../engine/store/points/pins.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import { noteProved } from "../../../../engine/store/points/proved.ts";
import { Store } from "../../../../engine/store/store.ts";
import { CrashError, FaultySink } from "../../../../sink/faults.ts";
import type { MemorySnapshot } from "../../../../sink/memory.ts";
import { callsOf, sampleOf } from "../../../depth.ts";
import { closeModelVaults, watched } from "../../../model-disk.ts";
import { recordOf, recordsOf, recordsVault, writeHistory } from "../../../point-records.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { ChurnedVault } from "../collection/churned-vault.ts";
import { PruneRig } from "./prune-rig.ts";

beforeEach(() => {
  liveSessions().clear();
});
afterEach(async () => {
  vi.restoreAllMocks();
  await closeModelVaults();
});

describe("a removed disk", () => {
  const folder = mkdtempSync(path.join(tmpdir(), "removal-"));
  afterEach(() => {
    rmSync(folder, { recursive: true, force: true });
  });

  /** `web` has two points, `db` shares a part of them. */
  async function twoDisks(): Promise<ChurnedVault> {
    const churned = new ChurnedVault();
    churned.stateFolder = folder;
    await churned.replicate("web");
    churned.change("web", 3, 9);
    await churned.replicate("web");
    churned.disk("db").bytes.set(churned.disk("web").bytes.subarray(0, 48 * 1024));
    await churned.replicate("db");
    return churned;
  }

  test("is in no listing; a collection frees what no other disk shares, and a repair does not list it again", async () => {
    const churned = await twoDisks();
    const vault = await churned.vault();
    await vault.label({ disk: "web", point: "1", text: "before the upgrade" });
    await vault.verify({ disk: "web" });
    const foreseen = await vault.removeDisk({ disk: "web", dryRun: true });
    expect(foreseen).toMatchObject({ dryRun: true, removedPoints: 2 });
    expect(await vault.disks()).toHaveLength(2);
    const summary = await vault.removeDisk({ disk: "web" });
    expect(summary).toMatchObject({ removedPoints: 2, removedStoredBytes: foreseen.removedStoredBytes });
    expect((await vault.disks()).map(({ disk }) => disk)).toEqual(["db"]);
    expect((await vault.summary()).disks).toBe(1);
    expect((await vault.stats()).disks.map(({ disk }) => disk)).toEqual(["db"]);
    await expectCode(vault.points("web"), "DISK_NOT_FOUND");
    await expectCode(vault.verify({ disk: "web" }), "DISK_NOT_FOUND");
    await expectCode(vault.prune({ disk: "web", policy: { kind: "everything" } }), "DISK_NOT_FOUND");
    await expectCode(vault.mount({ disk: "web", point: "latest" }), "DISK_NOT_FOUND");
    await expectCode(vault.removeDisk({ disk: "web" }), "DISK_NOT_FOUND");
    expect(await vault.repair()).toMatchObject({ repaired: [], lost: [], points: 1 });
    const collected = await vault.collect();
    const freedBytes = collected.storedBytesBefore - collected.storedBytesAfter;
    expect(freedBytes / (foreseen.freedBytes ?? 0)).toBeCloseTo(1, 1); // frames keep their tables
    expect(await namesIn(churned.plain, "disks/web/")).toEqual(["disks/web/head", "disks/web/condemned"]);
    expect(await vault.repair()).toMatchObject({ repaired: [], lost: [], points: 1 });
    expect(await churned.check()).toBe(1);
    expect(await vault.verify()).toMatchObject({ checkedPoints: 1, damaged: [] });
  });

  test("leaves its name to a disk that begins with a first replication and never uses an epoch again", async () => {
    const churned = await twoDisks();
    const vault = await churned.vault();
    await vault.label({ disk: "web", point: "1", text: "before the upgrade" });
    await vault.verify({ disk: "web" });
    const before = await churned.points("web");
    await vault.removeDisk({ disk: "web" });
    churned.change("web", 20, 2);
    const seen: string[] = [];
    const volume = churned.disk("web");
    const again = await vault.replicate({ disk: "web", volume, onNotice: ({ code }) => seen.push(code) });
    expect(again).toMatchObject({ sequence: 1, scannedBytes: volume.bytes.length });
    expect(seen).toEqual([]);
    const [point] = await churned.points("web");
    expect(point?.epoch).toBeGreaterThan(Math.max(...before.map(({ epoch }) => epoch)));
    expect(await vault.points("web")).toMatchObject([{ sequence: 1, label: null, pinned: false, proved: null }]);
    expect((await vault.point("web", "1")).parent).toBeNull();
    await vault.collect();
    expect(await vault.verify({ disk: "web", source: volume })).toMatchObject({ checkedPoints: 1, damaged: [] });
  });
});

describe("a disk whose first replication failed", () => {
  test("is in no listing, and a removal lets a collection free what was shipped", async () => {
    const churned = new ChurnedVault();
    const vault = await churned.vault();
    const volume = churned.disk("web", 2 * 1024 * 1024);
    volume.endScan = () => Promise.reject(new Error("the source fails here"));
    await expect(vault.replicate({ disk: "web", volume })).rejects.toThrow("the source fails here");
    expect(await vault.disks()).toEqual([]);
    expect((await vault.stats()).disks).toEqual([]);
    await expectCode(vault.points("web"), "DISK_NOT_FOUND");
    expect(await vault.removeDisk({ disk: "web" })).toMatchObject({ removedPoints: 0 });
    await expectCode(vault.removeDisk({ disk: "web" }), "DISK_NOT_FOUND");
    expect(await vault.collect()).toMatchObject({ storedBytesAfter: 0, waitingFor: [] });
    expect(await namesIn(churned.plain, "segments/")).toEqual([]);
  });
});

test("a disk whose first writer was killed is named by a collection that keeps what was shipped", async () => {
  const churned = new ChurnedVault();
  const vault = await churned.vault();
  churned.disk("new web");
  churned.through(
    new FaultySink(churned.connect(), [{ on: "writePages", when: 1, fault: { kind: "crash", effect: "after" } }]),
  );
  await expect(churned.replicate("new web")).rejects.toThrow(CrashError);
  churned.through();
  churned.nowMs += 61_000; // the dead writer's lease
  const seen: Notice[] = [];
  const onNotice = (notice: Notice): void => void seen.push(notice);
  expect(await vault.collect({ onNotice })).toMatchObject({ condemnedChunks: 0 });
  expect(seen).toEqual([
    {
      code: "DISK_UNFINISHED",
      message:
        'disk "new web" has no point, and what its writer has stored is kept. If no first replication is under way, run ' +
        "`tidemark replicate SOURCE --disk 'new web'` again, or `tidemark disks remove --disk 'new web'` and then `tidemark collect`",
    },
  ]);
  await vault.removeDisk({ disk: "new web" });
  expect(await vault.collect({ onNotice })).toMatchObject({ storedBytesAfter: 0 });
  expect(seen).toHaveLength(1);
});

const shop = (sequence: number): GroupRecord => ({
  id: sequence.toString(16).padStart(32, "0"),
  name: "shop",
  disks: ["d", "e"],
});

describe("a removal is refused", () => {
  let rig: PruneRig;
  beforeEach(async () => {
    rig = await PruneRig.open();
    for (const disk of ["d", "e"]) await writeHistory(rig.store, recordsOf(1, 21, shop, disk), disk);
  });

  const pin = async (sequence: number, disk: string): Promise<void> => {
    const point = recordOf(sequence, shop(sequence), disk);
    await putPin({
      store: rig.store,
      vault: recordsVault,
      disk,
      point,
      name: null,
      untilMs: null,
      nowMs: 1,
      onNotice: rig.onNotice,
    });
  };
  const hold = async (sequence: number, disk: string): Promise<AsyncDisposable> =>
    await rig.hold(sequence, { disk, point: recordOf(sequence, shop(sequence), disk) });

  test.each(["d", "e"])("while a pin on disk %s keeps a point, with the command that removes the pin", async (disk) => {
    await pin(20, disk);
    await expect(rig.remove()).rejects.toMatchObject({
      code: "POINT_HELD",
      detail: { disk, sequence: 20 },
      remedy: `run \`tidemark points unpin --disk ${disk} --point 20\``,
    });
    expect(await rig.sequences()).toHaveLength(20);
    const kept = await hold(3, "d"); // the list of condemned points is empty again
    for (const { object } of await listPins(rig.store, recordsVault, disk, rig.onNotice, undefined))
      await rig.store.delete(object);
    await expectCode(rig.remove(), "POINT_HELD");
    await kept[Symbol.asyncDispose]();
    expect(await rig.remove()).toMatchObject({ removedPoints: 20 });
  });

  test.each(["d", "e"])(
    "while a process reads a point on disk %s, and no longer when that process has died",
    async (disk) => {
      await hold(20, disk);
      await expect(rig.remove()).rejects.toMatchObject({ code: "POINT_HELD", detail: { disk, sequence: 20 } });
      expect(await rig.sequences()).toHaveLength(20);
      rig.nowMs += 120_000;
      expect(await rig.remove()).toMatchObject({ removedPoints: 20 });
      expect(await rig.sequences("e")).toHaveLength(20);
      expect(await namesIn(rig.connect(), "disks/d/holds/")).toEqual([]);
    },
  );

  test("while a process writes the disk", async () => {
    const writerLease = await rig.takeSeat();
    await expectCode(rig.remove(), "WRITER_ACTIVE");
    expect(await rig.sequences()).toHaveLength(20);
    await writerLease.release();
  });

  test("or a reader that comes meanwhile is: never both, never neither", async () => {
    const start = rig.memory.snapshot();
    const sink = new FaultySink(rig.connect(), []);
    await rig.remove("d", sink);
    const seen = { refused: 0, removed: 0 };
    for (const call of sampleOf([...sink.calls.keys()], 8)) {
      rig.memory.restore(start);
      liveSessions().clear();
      let reading: Promise<unknown> | undefined;
      let calls = -1;
      const read = async (): Promise<unknown> => await hold(7, "d").catch((error: unknown) => error);
      const meeting = watched(rig.connect(), () => {
        calls += 1;
        if (calls === call) reading ??= read();
      });
      // The first reader is there before the removal looks for readers. The last one comes when all is removed.
      if (call === 0) {
        reading = read();
        await reading;
      }
      const removal = await rig.remove("d", meeting).catch((error: unknown) => error);
      const held = await reading;
      const isRefused = hasCode(removal, "POINT_HELD");
      expect(hasCode(held, "POINT_NOT_FOUND"), `a reader comes at call ${String(call)}`).toBe(!isRefused);
      expect(await rig.sequences()).toHaveLength(isRefused ? 20 : 0);
      seen[isRefused ? "refused" : "removed"] += 1;
      if (isRefused) await (held as AsyncDisposable)[Symbol.asyncDispose]();
    }
    expect(Math.min(seen.refused, seen.removed)).toBeGreaterThan(0);
  });
});

describe("a removal of 800 points", () => {
  let rig: PruneRig;
  let start: MemorySnapshot;
  beforeEach(async () => {
    rig = await PruneRig.open();
    const points = recordsOf(1, 800);
    await writeHistory(rig.store, points);
    const { store } = rig;
    const label = { store, vault: recordsVault, disk: "d", point: recordOf(5), text: "five", nowMs: 1 };
    await putLabel(label);
    await putPin({ ...label, name: null, untilMs: 2, onNotice: rig.onNotice }); // has expired since
    await noteProved(store, { vault: recordsVault, disk: "d" }, points, new Set([5]), Date.now());
    start = rig.memory.snapshot();
  });

  /** Time passes in leaps, so that no process is waited for. */
  function hurry(): void {
    let nowMs = 0;
    vi.spyOn(performance, "now").mockImplementation(() => (nowMs += 6_000));
  }

  /** Either all of the disk is there, or none; the next removal leaves nothing, and the name is free. */
  async function checkEnd(what: string): Promise<"disk" | "no disk"> {
    liveSessions().clear();
    const left = await rig.sequences();
    expect([0, 799], what).toContain(left.length);
    if (left.length > 0) {
      expect((await listLabels(rig.store, recordsVault, "d", rig.onNotice, undefined)).size, what).toBe(1);
      await (await rig.hold(100)).release();
    }
    await rig.remove().catch((error: unknown) => {
      if (left.length > 0 || !hasCode(error, "DISK_NOT_FOUND")) throw error;
    });
    expect(await rig.sequences(), what).toEqual([]);
    expect(await namesIn(rig.connect(), "disks/d/")).toEqual(
      expect.not.arrayContaining([expect.stringMatching(/pins|labels|proved|holds/)]),
    );
    const { head } = await readHead(rig.store, recordsVault, "d");
    expect(head).toMatchObject({ pages: [], writer: null });
    await rig.commit(1);
    expect(await rig.sequences(), what).toEqual([1]);
    return left.length > 0 ? "disk" : "no disk";
  }

  test("that dies at any call leaves the disk or no disk", async () => {
    hurry();
    const sink = new FaultySink(rig.connect(), []);
    expect(await rig.remove("d", sink)).toMatchObject({ removedPoints: 799 });
    const seen = { disk: 0, "no disk": 0 };
    for (const call of callsOf(1, sink.calls.length, 8)) {
      for (const effect of ["before", "after"] as const) {
        rig.memory.restore(start);
        liveSessions().clear();
        const dying = new FaultySink(rig.connect(), [{ on: "any", when: call, fault: { kind: "crash", effect } }]);
        await expect(rig.remove("d", dying)).rejects.toThrow(CrashError);
        dying.assertAllFired();
        seen[await checkEnd(`call ${String(call)}, ${effect}`)] += 1;
      }
    }
    expect(Math.min(seen.disk, seen["no disk"])).toBeGreaterThan(0);
  });

  test("whose answers are lost or whose writes come late ends well", async () => {
    const sink = new FaultySink(rig.connect(), []);
    await rig.remove("d", sink);
    const writes = sink.calls.filter((call) => call.startsWith("putObject")).length;
    for (const kind of ["unacknowledged", "late"] as const) {
      for (let write = 1; write <= writes; write += 1) {
        rig.memory.restore(start);
        liveSessions().clear();
        const faulty = new FaultySink(rig.connect(), [{ on: "putObject", when: write, fault: { kind } }]);
        await rig.remove("d", faulty);
        faulty.assertAllFired();
        await faulty.releaseLate();
        expect(await checkEnd(`write ${String(write)} ${kind}`)).toBe("no disk");
      }
    }
  });

  test("whose store goes back in time at any call leaves the disk or no disk", async () => {
    hurry();
    const sink = new FaultySink(rig.connect(), []);
    await rig.remove("d", sink);
    const seen = { disk: 0, "no disk": 0 };
    for (const at of callsOf(2, sink.calls.length)) {
      for (const back of [1, 3, 100]) {
        rig.memory.restore(start);
        liveSessions().clear();
        const taken: MemorySnapshot[] = [];
        let call = 0;
        const regressing = watched(rig.connect(), () => {
          call += 1;
          if (call < at) taken.push(rig.memory.snapshot());
          if (call === at) rig.memory.restore(taken.at(-back) ?? start);
        });
        await rig.remove("d", regressing).catch((error: unknown) => {
          if (!hasCode(error, "STORE_REGRESSED", "SEAT_LOST", "CONDITION_FAILED")) throw error;
        });
        liveSessions().clear();
        const left = await rig.sequences();
        expect([0, 799]).toContain(left.length);
        seen[left.length > 0 ? "disk" : "no disk"] += 1;
        await rig.remove().catch((error: unknown) => {
          if (!hasCode(error, "DISK_NOT_FOUND")) throw error;
        });
        expect(await rig.sequences()).toEqual([]);
      }
    }
    expect(seen["no disk"]).toBeGreaterThan(0);
  });
});

test("a disk of another name is not touched, and one that never was is not made", async () => {
  const rig = await PruneRig.open();
  await writeHistory(rig.store, recordsOf(1, 21), "d");
  await expectCode(rig.remove("e"), "DISK_NOT_FOUND");
  expect(await namesIn(rig.connect(), "disks/e/")).toEqual([]);
  expect(new Store(rig.connect()).requests).toBe(0);
  expect(await rig.sequences()).toHaveLength(20);
});
