/**
 * Verbs that end something: the cancel of a job that another process works on, commits and rollbacks
 * that are due, completed migrations and disabled disks.
 */
import { existsSync, mkdirSync, readdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { FileVolume } from "../../../engine/disk/source/file-volume.ts";
import { TidemarkError } from "../../../engine/errors.ts";
import type { RunSummary } from "../../../engine/failover/run-summary.ts";
import type { Notice } from "../../../engine/notice.ts";
import { liveSessions } from "../../../engine/store/points/process-identity.ts";
import { WriterLease } from "../../../engine/store/points/writer-lease.ts";
import type { Vault } from "../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { callsOf } from "../../depth.ts";
import {
  closeModelVaults,
  type ModelDisk,
  modelStore,
  openModelVault,
  redirected,
  sampleDisk,
} from "../../model-disk.ts";
import { expectCode, namesIn } from "../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";
import { endOf } from "./crash-rig.ts";

const environment = { PATH: "/usr/bin:/bin" };
const memory = new MemoryStore();
const line: { current: MemorySink | FaultySink } = { current: new MemorySink({ store: memory }) };
let folder: string;
let vault: Vault;
let disk: ModelDisk;
let start: MemorySnapshot;

beforeAll(async () => {
  vault = await openModelVault(redirected(line));
  disk = sampleDisk(300_000, 1);
  await vault.replicate({ disk: "web", volume: disk });
  start = memory.snapshot();
});

beforeEach(() => {
  memory.restore(start);
  line.current = new MemorySink({ store: memory });
  liveSessions().clear();
  folder = createFolder("run-verbs");
});

afterEach(async () => {
  vi.useRealTimers();
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
});

const path = (name: string): string => join(folder, name);
const unplanned = async (ending?: { action: "commit" | "rollback"; afterMs: number }): Promise<string> =>
  (await vault.failovers.start({ kind: "unplanned", disks: ["web"], to: `file:${path("t.img")}`, ending })).run;

async function newest(): Promise<RunSummary> {
  const [found] = await vault.failovers.list();
  if (found === undefined) throw new Error("there is no run");
  return found;
}

describe("the cancel of a job", () => {
  test("stops the process that works on it, and the run goes on or is given up", async () => {
    const check = `touch ${path("checking")}; exec sleep 60`;
    const to = `file:${path("t.img")}`;
    const working = vault.failovers.start({ kind: "test", disks: ["web"], to, check, environment });
    const ended = expectCode(working, "INTERRUPTED");
    while (!existsSync(path("checking"))) await delay(20);
    const { run } = await newest();
    await expectCode(vault.failovers.cleanup({ run }), "WRITER_ACTIVE");
    const cancelled = await vault.failovers.cancelJob({ run });
    await ended;
    expect(cancelled).toMatchObject({ state: "TestFailoverCompleting", jobs: [{ state: "Cancelled" }] });
    expect(cancelled.allowedOperations).toEqual(["TestFailoverCleanup", "Resume"]);
    expect(await namesIn(new MemorySink({ store: memory }), "failover/requests/")).toEqual([]);
    await expectCode(vault.failovers.cancelJob({ run }), "INVALID_ARGUMENT");
    await vault.failovers.cleanup({ run });
    expect(readdirSync(folder)).toEqual(["checking"]);
  });

  test("ends the job of a dead process", async () => {
    const sink = new FaultySink(new MemorySink({ store: memory }), [
      { on: "any", when: 30, fault: { kind: "crash", effect: "before" } },
    ]);
    line.current = sink;
    expect(await endOf(unplanned())).toBeInstanceOf(CrashError);
    sink.assertAllFired();
    liveSessions().clear();
    line.current = new MemorySink({ store: memory });
    const { run } = await newest();
    const cancelled = await vault.failovers.cancelJob({ run });
    expect(cancelled.jobs[0]).toMatchObject({ state: "Cancelled" });
    expect(cancelled.jobs[0]?.tasks.map(({ endTime }) => endTime)).not.toContain(null);
    expect(await vault.failovers.resume({ run })).toMatchObject({ state: "UnplannedFailoverCompleted" });
  });
});

describe("a failover that is neither committed nor cancelled", () => {
  test.each([
    ["commit", "CommitFailoverCompleted", ["t.img"]],
    ["rollback", "Protected", []],
  ] as const)("is ended by a %s when that is due, not before", async (action, state, left) => {
    const run = await unplanned({ action, afterMs: 3_600_000 });
    expect((await newest()).ending).toMatchObject({ action, due: expect.any(String) as string });
    expect(await vault.failovers.carryOutDue({})).toEqual([]);
    vi.useFakeTimers({ now: Date.now() + 3_600_001, toFake: ["Date"] });
    expect(await vault.failovers.carryOutDue({})).toEqual([run]);
    const ended = await newest();
    expect(ended).toMatchObject({ state, ending: { due: null } });
    expect(ended.notes.at(-1)?.text).toMatch(/after 60 min/);
    expect(readdirSync(folder)).toEqual(left);
    expect(await vault.failovers.carryOutDue({})).toEqual([]);
  });

  test("stays, with a notice, when its end fails", async () => {
    const run = await unplanned({ action: "rollback", afterMs: 1 });
    await removeFolder(path("t.img"));
    mkdirSync(path("t.img"));
    await delay(5);
    const notices: Notice[] = [];
    expect(await vault.failovers.carryOutDue({ onNotice: (notice) => notices.push(notice) })).toEqual([]);
    expect(notices.map(({ code }) => code)).toEqual(["RUN_NOT_ENDED"]);
    expect(await vault.failovers.show(run)).toMatchObject({ health: "Critical" });
  });

  test("stays when it gets more time while another one is ended", async () => {
    await vault.replicate({ disk: "db", volume: disk });
    const ending = { action: "rollback", afterMs: 3_600_000 } as const;
    const runs = new Map<string, string>();
    for (const name of ["web", "db"]) {
      const to = `file:${path(`${name}.img`)}`;
      runs.set((await vault.failovers.start({ kind: "unplanned", disks: [name], to, ending })).run, name);
    }
    vi.useFakeTimers({ now: Date.now() + 3_600_001, toFake: ["Date"] });
    const chosen: string[] = [];
    const release = async (first: string): Promise<void> => {
      for (const run of runs.keys())
        if (run !== first && chosen.push(run) === 1) await vault.failovers.changePoint({ run, point: "latest" });
    };
    const ended = await vault.failovers.carryOutDue({ server: { release } });
    expect(ended).toHaveLength(1);
    expect(await vault.failovers.show(chosen[0] ?? "")).toMatchObject({ state: "ChangeRecoveryPointCompleted" });
  });

  test("is refused a time that is none", async () => {
    await expectCode(unplanned({ action: "commit", afterMs: 0 }), "INVALID_ARGUMENT");
    expect(await vault.failovers.list()).toEqual([]);
  });
});

describe("a completed migration", () => {
  test("commits, and no writer makes points of the disk until it is enabled", async () => {
    const run = await unplanned();
    const done = await vault.failovers.completeMigration({ run });
    expect(done).toMatchObject({ state: "MarkedForDeletion", activeLocation: "Recovery", allowedOperations: [] });
    expect(readdirSync(folder)).toEqual(["t.img"]);
    await expectCode(vault.replicate({ disk: "web", volume: disk }), "WRITER_ACTIVE");
    await expectCode(unplanned(), "WRITER_ACTIVE");
    writeFileSync(path("web.img"), disk.bytes);
    const image = { disk: "web", image: path("web.img"), stateFolder: folder };
    await expectCode(vault.protect(image), "WRITER_ACTIVE");
    // A store that is away cannot say that: the disk is served, as any disk is.
    const error = new TidemarkError("STORE_UNREACHABLE", "the line to the store is cut");
    line.current = new FaultySink(new MemorySink({ store: memory }), [
      { on: "any", when: { probability: 1 }, fault: { kind: "refused", error } },
    ]);
    await (await vault.protect(image)).stop({ drain: false });
    line.current = new MemorySink({ store: memory });
    const left = await vault.failovers.disable({ disk: "web" });
    expect(left).toMatchObject({ reason: "MigrationComplete", purged: false });
    expect(left.leftBehind.targets.join()).toContain(`file:${path("t.img")} on `);
    await vault.failovers.enable({ disk: "web" });
    await expectCode(vault.failovers.enable({ disk: "web" }), "INVALID_ARGUMENT");
    await vault.replicate({ disk: "web", volume: disk });
  });

  test("of a run whose disk another one has is refused", async () => {
    const run = await unplanned();
    await vault.failovers.commit({ run });
    await removeFolder(path("t.img"));
    await expectCode(vault.failovers.reprotect({ run }), "SOURCE_NOT_FOUND");
    const to = `file:${path("second.img")}`;
    const second = await vault.failovers.start({ kind: "unplanned", disks: ["web"], to });
    await vault.failovers.commit({ run: second.run });
    await vault.failovers.reprotect({ run: second.run });
    await expectCode(vault.failovers.completeMigration({ run }), "WRITER_ACTIVE");
    const there = await FileVolume.open(path("second.img"));
    await vault.replicate({ disk: "web", volume: there });
    await there.close();
  });

  test("of a committed failover goes the same way", async () => {
    const run = await unplanned();
    await vault.failovers.commit({ run });
    expect(await vault.failovers.completeMigration({ run })).toMatchObject({ state: "MarkedForDeletion" });
  });
});

describe("a disabled disk", () => {
  test("keeps its points, is protected nowhere, and what is left is told apart", async () => {
    const done = await vault.failovers.disable({ disk: "web" });
    expect(done).toMatchObject({ disk: "web", reason: "NotSpecified", purged: false, freedBytes: null });
    expect(done.leftBehind.source.length).toBeGreaterThan(0);
    expect(done.leftBehind.vault).toHaveLength(1);
    expect(done.leftBehind.targets).toEqual([]);
    await expectCode(vault.replicate({ disk: "web", volume: disk }), "WRITER_ACTIVE");
    expect(await vault.points("web")).toHaveLength(1);
    // It has not moved: it is served where it is, and no points are made of it.
    writeFileSync(path("web.img"), disk.bytes);
    const protection = await vault.protect({ disk: "web", image: path("web.img"), stateFolder: folder });
    await vi.waitFor(() => expect(protection.status().findings).toMatchObject([{ code: "WRITER_ACTIVE" }]), 10_000);
    await protection.stop({ drain: false });
    expect(await vault.points("web")).toHaveLength(1);
    await expectCode(vault.failovers.disable({ disk: "none" }), "DISK_NOT_FOUND");
  });

  test("that is purged is gone with its space, and its name is free", async () => {
    const done = await vault.failovers.disable({ disk: "web", points: "purge" });
    expect(done).toMatchObject({ purged: true, removedPoints: 1, leftBehind: { vault: [] } });
    expect(done.freedBytes).toBeGreaterThan(10_000);
    expect(await vault.disks()).toEqual([]);
    await vault.replicate({ disk: "web", volume: disk });
  });

  test("whose purge dies at any call of the store is gone with its space after the next one", async () => {
    const counting = new FaultySink(new MemorySink({ store: memory }), []);
    line.current = counting;
    const { freedBytes } = await vault.failovers.disable({ disk: "web", points: "purge" });
    for (const call of callsOf(1, counting.calls.length, 6)) {
      memory.restore(start);
      const fault = { kind: "crash", effect: "after" } as const;
      line.current = new FaultySink(new MemorySink({ store: memory }), [{ on: "any", when: call, fault }]);
      expect(await endOf(vault.failovers.disable({ disk: "web", points: "purge" }))).toBeInstanceOf(CrashError);
      liveSessions().clear();
      line.current = new MemorySink({ store: memory });
      // A collection that died has its lease for a while.
      const early = await endOf(vault.failovers.disable({ disk: "web", points: "purge" }));
      if (early !== undefined) expect(early).toMatchObject({ code: "COLLECTION_ACTIVE" });
      line.current = new MemorySink({ store: memory, clock: () => Date.now() + 61_000 });
      const again = await vault.failovers.disable({ disk: "web", points: "purge" });
      expect(again, `call ${call}`).toMatchObject({ purged: true, leftBehind: { vault: [] } });
      expect(again.freedBytes).toBeLessThanOrEqual(freedBytes ?? 0);
      expect(await namesIn(new MemorySink({ store: memory }), "segments/")).toEqual([]);
      await vault.replicate({ disk: "web", volume: disk });
    }
  });

  test("that is purged by force while a writer has it keeps its points until the writer has ended", async () => {
    writeFileSync(path("web.img"), disk.bytes);
    const policy = { crashConsistentFrequencyMs: 3_600_000 };
    const protection = await vault.protect({ disk: "web", image: path("web.img"), stateFolder: folder, policy });
    await protection.point();
    const kept = (await vault.points("web")).length;
    await expectCode(vault.failovers.disable({ disk: "web", points: "purge" }), "WRITER_ACTIVE");
    const purging = vault.failovers.disable({ disk: "web", points: "purge", force: true });
    const error = await expectCode(purging, "WRITER_ACTIVE");
    expect(error.remedy).toContain("tidemark disks disable --disk web --purge");
    expect(await vault.points("web")).toHaveLength(kept);
    await protection.stop({ drain: false });
    // No writer gets the disk any more, so none makes a point between the end of that one and the purge.
    await expectCode(vault.replicate({ disk: "web", volume: disk }), "WRITER_ACTIVE");
    const done = await vault.failovers.disable({ disk: "web", points: "purge", force: true });
    expect(done).toMatchObject({ purged: true, removedPoints: kept, leftBehind: { vault: [], targets: [] } });
    expect(done.leftBehind.source.join()).toContain("anew");
    expect(await vault.disks()).toEqual([]);
    await vault.replicate({ disk: "web", volume: disk });
  });

  test("that is refused because a writer is active is what it was before, also after a committed failover", async () => {
    const run = await unplanned();
    await vault.failovers.commit({ run });
    const store = await modelStore(new MemorySink({ store: memory }));
    const lease = await WriterLease.take({ store, vault: vault.id, disk: "web", onNotice: () => undefined });
    await expectCode(vault.failovers.disable({ disk: "web" }), "WRITER_ACTIVE");
    await lease.release();
    expect(await vault.failovers.reprotect({ run })).toMatchObject({ state: "Protected", activeLocation: "Recovery" });
  });

  test("is refused while a failover is open, and forced names its targets", async () => {
    const run = await unplanned();
    await expectCode(vault.failovers.disable({ disk: "web" }), "WRITER_ACTIVE");
    const done = await vault.failovers.disable({ disk: "web", force: true });
    expect(done.leftBehind.targets).toHaveLength(2);
    await expectCode(vault.replicate({ disk: "web", volume: disk }), "WRITER_ACTIVE");
    await vault.failovers.cancel({ run });
    await expectCode(vault.replicate({ disk: "web", volume: disk }), "WRITER_ACTIVE");
    await vault.failovers.enable({ disk: "web" });
    await vault.replicate({ disk: "web", volume: disk });
  });

  test.each([
    ["open", "cancel"],
    ["cancelled", "enable"],
  ])(
    "that is enabled again is nowhere but where it was, after a forced end of a failover that is %s",
    async (_, first) => {
      const { run } = await vault.failovers.start({
        kind: "unplanned",
        disks: ["web"],
        to: `file:${path("there.img")}`,
      });
      await vault.failovers.commit({ run });
      await vault.failovers.reprotect({ run });
      const next = await unplanned();
      await vault.failovers.disable({ disk: "web", force: true });
      const cancel = async (): Promise<unknown> => await vault.failovers.cancel({ run: next });
      if (first === "enable") await cancel();
      await vault.failovers.enable({ disk: "web" });
      await expectCode(vault.replicate({ disk: "web", volume: disk }), "WRITER_ACTIVE");
      if (first === "cancel") await cancel();
      await expectCode(vault.replicate({ disk: "web", volume: disk }), "WRITER_ACTIVE");
      const there = await FileVolume.open(path("there.img"));
      await vault.replicate({ disk: "web", volume: there });
      await there.close();
    },
  );
});
