/** A replica as the target of a failover: only the last difference moves, and a cancel gives it back. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { PositionalFile } from "../../../engine/disk/source/positional-file.ts";
import type { ReplicaSummary } from "../../../engine/failover/replica-summary.ts";
import type { RunDone } from "../../../engine/failover/run-summary.ts";
import { liveSessions } from "../../../engine/store/points/process-identity.ts";
import { runRequestTiming } from "../../../engine/timing.ts";
import type { Vault } from "../../../engine/vault.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { closeModelVaults, type ModelDisk, openModelVault, sampleDisk, scribble } from "../../model-disk.ts";
import { expectCode, namesIn } from "../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";

const diskBytes = 600_000;
/** More than a difference, and much less than the disk. */
const differenceBytesMax = 150_000;

let folder: string;
let vault: Vault;
let disk: ModelDisk;
let contents: readonly Buffer[];
let begun: MemorySnapshot;
const memory = new MemoryStore();
const plainSink = (): MemorySink => new MemorySink({ store: memory, attachablePages: true });

beforeAll(async () => {
  vault = await openModelVault(plainSink());
  begun = memory.snapshot();
});

/** Two points of a disk, a replica of the first, and an image that is the disk. */
beforeEach(async () => {
  memory.restore(begun);
  liveSessions().clear();
  folder = createFolder("replica-failover");
  disk = sampleDisk(diskBytes, 1);
  const made = [Buffer.from(disk.bytes)];
  await vault.replicate({ disk: "web", volume: disk });
  await vault.replicas.run({ disk: "web", to: `file:${path("copy.img")}`, once: true });
  scribble(disk, 1);
  await vault.replicate({ disk: "web", volume: disk });
  made.push(Buffer.from(disk.bytes));
  contents = made;
  scribble(disk, 2);
  writeFileSync(path("web.img"), disk.bytes);
});

afterEach(async () => {
  vi.restoreAllMocks();
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
});

const path = (name: string): string => join(folder, name);
const holds = (name: string, bytes: Buffer | undefined): void => {
  expect(readFileSync(path(name)).equals(bytes ?? Buffer.alloc(0)), `${name} holds what it must`).toBe(true);
};
const unplanned = async (to = "replica", point = "latest"): Promise<RunDone> =>
  await vault.failovers.start({ kind: "unplanned", disks: ["web"], to, point });
async function shown(): Promise<ReplicaSummary | undefined> {
  return (await vault.replicas.list())[0];
}

describe("a failover to a replica", () => {
  test("that is planned moves the last difference only, and ends as the disk", async () => {
    const source = { kind: "image", path: path("web.img") } as const;
    const done = await vault.failovers.start({ kind: "planned", disks: ["web"], to: "replica", source });
    expect(done).toMatchObject({
      state: "PlannedFailoverCompleted",
      target: "replica",
      disks: [{ sequence: 3, complete: true, target: `file:${path("copy.img")}` }],
      leftovers: [],
    });
    expect(done.bytesWritten).toBeLessThan(differenceBytesMax);
    expect(done.bytesRead).toBeLessThan(differenceBytesMax);
    holds("copy.img", disk.bytes);
    expect(await shown()).toMatchObject({ state: "failed-over", run: done.run });
    await vault.failovers.commit({ run: done.run });
    expect(await shown()).toBeUndefined();
    expect(await namesIn(plainSink(), "disks/web/pins/")).toEqual([]);
    // It is the disk now, under its name, and goes back by differences.
    const written = readFileSync(path("copy.img"));
    written.fill(0xab, 40_000, 50_000);
    writeFileSync(path("copy.img"), written);
    expect(await vault.failovers.reprotect({ run: done.run })).toMatchObject({ activeLocation: "Recovery" });
    await expectCode(vault.replicas.run({ disk: "web", to: `file:${path("copy.img")}`, once: true }), "TARGET_EXISTS");
    const back = await vault.failovers.failback({ run: done.run, to: [path("web.img")] });
    expect(back).toMatchObject({ state: "PlannedFailoverCompleted" });
    expect(back.bytesRead).toBeLessThan(differenceBytesMax);
    holds("web.img", written);
  });

  test("is refused to a test, to a disk without a replica, and where there are several", async () => {
    const check = { kind: "test", disks: ["web"], to: "replica" } as const;
    await expectCode(vault.failovers.start(check), "INVALID_ARGUMENT");
    await vault.replicate({ disk: "db", volume: sampleDisk(100_000, 9) });
    const other = vault.failovers.start({ kind: "unplanned", disks: ["web", "db"], to: "replica" });
    await expectCode(other, "INVALID_ARGUMENT");
    await vault.replicas.run({ disk: "web", to: "blob:replicas/web.vhd", once: true });
    await expectCode(unplanned(), "INVALID_ARGUMENT");
    const blob = (await vault.replicas.list()).find(({ target }) => target.startsWith("blob:"))?.replica ?? "";
    expect(await unplanned(`replica:${blob}`)).toMatchObject({ disks: [{ target: "blob:replicas/web.vhd" }] });
    expect(await vault.failovers.list()).toHaveLength(1);
  });

  test("changes its point by differences, and gives the replica back when it is cancelled", async () => {
    const done = await unplanned();
    holds("copy.img", contents[1]);
    const changed = await vault.failovers.changePoint({ run: done.run, point: "1" });
    expect(changed.bytesWritten).toBeLessThan(differenceBytesMax);
    holds("copy.img", contents[0]);
    // Nothing else writes the target meanwhile, or takes it away.
    const { replica = "" } = (await shown()) ?? {};
    await expectCode(vault.replicas.run({ disk: "web", to: `file:${path("copy.img")}`, once: true }), "WRITER_ACTIVE");
    await expectCode(vault.replicas.remove({ replica, keepTarget: true }), "WRITER_ACTIVE");
    await expectCode(vault.replicas.verify({ replica }), "WRITER_ACTIVE");
    await expectCode(unplanned(), "WRITER_ACTIVE");
    const over = await vault.failovers.cancel({ run: done.run });
    expect(over).toMatchObject({ state: "Protected", leftovers: [], mayBeDeleted: [] });
    expect(await shown()).toMatchObject({ state: "behind", sequence: 1, run: null });
    const applied = await vault.replicas.run({ disk: "web", to: `file:${path("copy.img")}`, once: true });
    expect(applied.bytesWritten).toBeLessThan(differenceBytesMax);
    holds("copy.img", contents[1]);
  });

  test("takes it from the process that follows it, which goes on after a cancel and ends after a commit", async () => {
    vi.spyOn(runRequestTiming, "pollMs", "get").mockReturnValue(50);
    const notices: string[] = [];
    const following = expectCode(
      vault.replicas.run({
        disk: "web",
        to: `file:${path("copy.img")}`,
        pollMs: 20,
        onNotice: ({ code }) => notices.push(code),
      }),
      "TARGET_IS_SOURCE",
    );
    await vi.waitFor(async () => expect(await shown()).toMatchObject({ state: "current", isRunning: true }), 10_000);
    const first = await unplanned("replica", "1");
    holds("copy.img", contents[0]);
    expect(notices).toContain("REPLICA_TAKEN");
    await vault.failovers.cancel({ run: first.run });
    await vi.waitFor(async () => expect(await shown()).toMatchObject({ state: "current", isRunning: true }), 10_000);
    const second = await unplanned();
    await vault.failovers.commit({ run: second.run });
    await following;
    holds("copy.img", contents[1]);
  });

  test("keeps no point from being discarded when it is committed", async () => {
    const { run } = await unplanned("replica", "1");
    await vault.failovers.commit({ run, discardPoints: true });
    holds("copy.img", contents[0]);
    expect(await vault.points("web")).toMatchObject([{ sequence: 2 }]);
  });

  test("finishes an application that was torn before the target is used", async () => {
    const torn = new AbortController();
    vi.spyOn(PositionalFile.prototype, "write").mockImplementationOnce(() => {
      torn.abort();
      return Promise.reject(new Error("the process is gone"));
    });
    const once = vault.replicas.run({ disk: "web", to: `file:${path("copy.img")}`, once: true, signal: torn.signal });
    await expect(once).rejects.toThrow();
    expect(await shown()).toMatchObject({ state: "torn" });
    expect(await unplanned()).toMatchObject({ disks: [{ complete: true }] });
    holds("copy.img", contents[1]);
  });

  test("is no other target of a run, also where its content has gone", async () => {
    await expectCode(unplanned(`file:${path("copy.img")}`), "TARGET_EXISTS");
    const source = { kind: "image", path: path("web.img") } as const;
    const moved = await vault.failovers.start({
      kind: "planned",
      disks: ["web"],
      to: `file:${path("moved.img")}`,
      source,
    });
    await vault.failovers.commit({ run: moved.run });
    await vault.failovers.reprotect({ run: moved.run });
    await expectCode(vault.failovers.failback({ run: moved.run, to: [path("copy.img")] }), "TARGET_EXISTS");
  });
});
