/**
 * Runs with instant targets, on a model disk: served as the point at once, by one process at a time,
 * tracked from the first write on, and gone without a trace when they are given up.
 */
import { existsSync, mkdirSync, readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, onTestFinished, test, vi } from "vitest";
import { parseListen } from "../../../engine/disk/nbd/address.ts";
import { command } from "../../../engine/disk/nbd/protocol.ts";
import type { ServedRun } from "../../../engine/failover/served-run.ts";
import { granuleBytes } from "../../../engine/limits.ts";
import type { Notice } from "../../../engine/notice.ts";
import { runObjectName } from "../../../engine/store/format/names.ts";
import { servedRunTiming } from "../../../engine/timing.ts";
import type { Vault } from "../../../engine/vault.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { closeModelVaults, type ModelDisk, openModelVault, sampleDisk, scribble } from "../../model-disk.ts";
import { expectCode, namesIn } from "../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";
import { RawClient } from "../disk/nbd/server-rig.ts";

const sizeBytes = 600_000;
/** NBD serves whole sectors. */
const servedBytes: number = sizeBytes - (sizeBytes % 512);

let folder: string;
let vault: Vault;
let disk: ModelDisk;
const contents: Buffer[] = [];
let start: MemorySnapshot;
const memory = new MemoryStore();
const sink = new MemorySink({ store: memory });

beforeAll(async () => {
  vault = await openModelVault(sink, { stateFolder: createFolder("instant-runs-state") });
  disk = sampleDisk(sizeBytes, 1);
  for (const seed of [1, 2, 3]) {
    await vault.replicate({ disk: "web", volume: disk });
    contents.push(Buffer.from(disk.bytes));
    scribble(disk, seed);
  }
  await vault.replicate({ disk: "db", volume: sampleDisk(100_000, 9) });
  start = memory.snapshot();
});

beforeEach(() => {
  memory.restore(start);
  folder = createFolder("instant-runs");
});

afterEach(async () => {
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
});

const path = (name: string): string => join(folder, name);
const socket = (): string => path("nbd.sock");
const target = (): string => `instant:unix:${socket()},image=${path("t.img")}`;
const environment = { PATH: process.env["PATH"] ?? "" };
const content = (point: number): Buffer => Buffer.from(contents[point - 1] ?? Buffer.alloc(0));

async function unplanned(point = "latest"): Promise<string> {
  return (await vault.failovers.start({ kind: "unplanned", disks: ["web"], to: target(), point })).run;
}

async function serve(run: string): Promise<ServedRun> {
  const served = await vault.failovers.serve({ run });
  onTestFinished(async () => {
    await served.stop({ drain: false });
  });
  return served;
}

async function client(name = "web"): Promise<RawClient> {
  return await RawClient.transmitting({ kind: "unix", path: socket() }, { name });
}

/** The content of a disk that is served, over NBD. */
async function readServed(peer: RawClient, length = servedBytes): Promise<Buffer> {
  const { error } = await peer.call({ type: command.read, cookie: 1n, offset: 0, length });
  expect(error).toBe(0);
  return Buffer.from(await peer.take(length));
}

/** Writes and flushes over NBD, and changes `model` in the same way. */
async function write(peer: RawClient, model: Buffer, offset: number, payload: Buffer): Promise<void> {
  payload.copy(model, offset);
  for (const request of [
    { type: command.write, cookie: 2n, offset, payload },
    { type: command.flush, cookie: 3n, offset: 0, length: 0 },
  ])
    expect((await peer.call(request)).error).toBe(0);
}

const isSame = (found: Buffer, model: Buffer): boolean => found.equals(model.subarray(0, found.byteLength));

async function newest(name: string): Promise<Buffer> {
  const [point] = (await vault.points(name)).slice(-1);
  if (point === undefined) throw new Error("there is no point");
  const { sequence, point: id } = point;
  const to = path(`${id}.img`);
  await vault.materialize({ disk: name, point: String(sequence), to });
  return readFileSync(to);
}

test("a served run that the store has forgotten says so once, and what is to be done", async () => {
  vi.spyOn(servedRunTiming, "lookMs", "get").mockReturnValue(10);
  onTestFinished(() => void vi.restoreAllMocks());
  const run = await unplanned();
  const notices: Notice[] = [];
  await using served = await vault.failovers.serve({ run, onNotice: (notice) => notices.push(notice) });
  expect(served.disks).toHaveLength(1);
  await sink.deleteObject(runObjectName(run));
  await vi.waitFor(() => expect(notices).toHaveLength(1), 10_000);
  await delay(50);
  expect(notices).toEqual([
    { code: "RUN_FORGOTTEN", message: expect.stringContaining(`replicate ${path("t.img")} --disk web`) as unknown },
  ]);
});

test("a run whose address is in use names itself in the error", async () => {
  const run = await unplanned();
  writeFileSync(socket(), "");
  const serving = vault.failovers.serve({ run });
  await expect(serving).rejects.toMatchObject({
    message: expect.stringContaining(`run ${run}: cannot listen on`) as unknown,
    remedy: expect.stringContaining(`tidemark jobs resume ${run}`) as unknown,
  });
});

describe("a test to an instant target", () => {
  test("is served while its check runs, then until it is stopped, keeps what was flushed, and leaves nothing", async () => {
    const program =
      "require('net').connect(process.argv[1]).once('data', (data) => { console.log(String(data).slice(0, 8)); process.exit(); })";
    const check = `echo "$TIDEMARK_NBD \${TIDEMARK_IMAGE-none}"; node -e "${program}" ${socket()}`;
    const done = await vault.failovers.start({
      kind: "test",
      disks: ["web"],
      to: target(),
      point: "2",
      check,
      environment,
    });
    const uri = `nbd+unix:///web?socket=${socket()}`;
    expect(done).toMatchObject({
      state: "TestFailoverCompleted",
      allowedOperations: ["TestFailoverCleanup", "Resume"],
      disks: [{ disk: "web", sequence: 2, complete: true, nbd: uri, target: `instant:${path("t.img")}` }],
      bytesWritten: 0,
    });
    expect(done.jobs[0]?.tasks[1]).toMatchObject({ state: "Succeeded", output: `${uri} none\nNBDMAGIC\n` });
    const { run } = done;
    const model = content(2);
    const served = await serve(run);
    expect(served.disks).toEqual([{ disk: "web", image: path("t.img"), uri, listen: `unix:${socket()}` }]);
    const peer = await client();
    expect(isSame(await readServed(peer), model)).toBe(true);
    await write(peer, model, 9000, Buffer.alloc(5000, 7));
    // The run is free, but what would take the image away is refused, and changes nothing.
    await expectCode(vault.failovers.cleanup({ run }), "WRITER_ACTIVE");
    await expectCode(vault.failovers.serve({ run }), "WRITER_ACTIVE");
    expect(await vault.failovers.show(run)).toMatchObject({ state: "TestFailoverCompleted" });
    await served.stop({ drain: false });
    expect(await vault.failovers.resume({ run })).toMatchObject({ run, state: "TestFailoverCompleted", bytesRead: 0 });
    const again = await serve(run);
    expect(isSame(await readServed(await client()), model)).toBe(true);
    await again.stop({ drain: false });
    expect(await vault.failovers.cleanup({ run })).toMatchObject({ state: "None", leftovers: [], successful: true });
    expect(readdirSync(folder)).toEqual([]);
    expect(await namesIn(sink, "disks/web/pins/")).toEqual([]);
    await expectCode(vault.failovers.serve({ run }), "INVALID_ARGUMENT");
    await expectCode(vault.failovers.resume({ run }), "INVALID_ARGUMENT");
  });

  test("writes over nothing, neither an image nor what would belong to it", async () => {
    mkdirSync(path("t.img.tidemark"));
    await expectCode(unplanned(), "TARGET_EXISTS");
    expect(await vault.failovers.list()).toEqual([]);
    expect(readdirSync(folder)).toEqual(["t.img.tidemark"]);
  });
});

describe("a failover to an instant target", () => {
  test("is committed while it is served, and makes points of its writes alone from the reprotection on", async () => {
    const run = await unplanned();
    const model = content(3);
    const served = await serve(run);
    const peer = await client();
    await write(peer, model, 4096, Buffer.alloc(4096, 1));
    expect(await vault.failovers.commit({ run })).toMatchObject({ state: "CommitFailoverCompleted" });
    await expectCode(vault.replicate({ disk: "web", volume: disk }), "WRITER_ACTIVE");
    await write(peer, model, 40_960, Buffer.alloc(4096, 2));
    await expectCode(vault.failovers.reprotect({ run }), "WRITER_ACTIVE");
    await served.stop({ drain: true });
    const over = await vault.failovers.reprotect({ run });
    expect(over).toMatchObject({ state: "Protected", activeLocation: "Recovery", bytesRead: 2 * granuleBytes });
    expect((await vault.points("web")).map(({ changedBytes }) => changedBytes).slice(3)).toEqual([2 * granuleBytes]);
    expect(isSame(await newest("web"), model)).toBe(true);
    // Served again, it takes points by itself.
    const protecting = await serve(run);
    expect(protecting.status()).toMatchObject([{ disk: "web", protection: { disk: "web" }, instant: { disk: "web" } }]);
    await write(await client(), model, 81_920, Buffer.alloc(4096, 3));
    expect(await protecting.stop({ drain: true })).toBeUndefined();
    expect(isSame(await newest("web"), model)).toBe(true);
    expect((await vault.points("web")).slice(4).map(({ changedBytes }) => changedBytes)).toContain(granuleBytes);
    // Another run has the disk by now: it is not served from here any more.
    await vault.failovers.start({ kind: "unplanned", disks: ["web"], to: `file:${path("other.img")}` });
    await expectCode(vault.failovers.serve({ run }), "WRITER_ACTIVE");
  });

  test("begins anew at another point, and at the same one when it has been written", async () => {
    const run = await unplanned("3");
    for (const [point, state] of [
      ["1", "ChangeRecoveryPointCompleted"],
      ["1", "ChangeRecoveryPointCompleted"],
    ] as const) {
      const changed = await vault.failovers.changePoint({ run, point });
      expect(changed).toMatchObject({ state, disks: [{ sequence: 1, complete: true }] });
      const served = await serve(run);
      const peer = await client();
      expect(isSame(await readServed(peer), content(1))).toBe(true);
      await write(peer, Buffer.alloc(sizeBytes), 0, Buffer.alloc(4096, 9));
      await expectCode(vault.failovers.changePoint({ run, point: "2" }), "WRITER_ACTIVE");
      await served.stop({ drain: false });
    }
    await vault.failovers.cancel({ run });
    expect(readdirSync(folder)).toEqual([]);
    expect(await namesIn(sink, "disks/web/pins/")).toEqual([]);
    await vault.replicate({ disk: "web", volume: disk });
  });

  test("whose image is gone is not begun anew, which would drop what was written to it", async () => {
    const run = await unplanned();
    renameSync(path("t.img"), path("lost.img"));
    await expectCode(vault.failovers.serve({ run }), "DAMAGED");
    renameSync(path("t.img.tidemark"), path("lost.img.tidemark"));
    await expectCode(vault.failovers.serve({ run }), "TARGET_FAILED");
    expect(existsSync(path("t.img"))).toBe(false);
    renameSync(path("lost.img"), path("t.img"));
    renameSync(path("lost.img.tidemark"), path("t.img.tidemark"));
    await (await serve(run)).stop({ drain: false });
  });
});

test("disks of one run are served by one listener, with an export and an image each", async () => {
  const both = { kind: "test", disks: ["web", "db"] } as const;
  const named = (image: string): string => `instant:unix:${socket()},image=${image}`;
  await expectCode(vault.failovers.start({ ...both, to: named(path("x.img")) }), "INVALID_ARGUMENT");
  const { run, disks } = await vault.failovers.start({ ...both, to: named(folder) });
  expect(disks.map(({ nbd }) => nbd)).toEqual(["web", "db"].map((name) => `nbd+unix:///${name}?socket=${socket()}`));
  const served = await serve(run);
  expect(isSame(await readServed(await client("web")), content(3))).toBe(true);
  expect(isSame(await readServed(await client("db"), 99_840), Buffer.from(sampleDisk(100_000, 9).bytes))).toBe(true);
  await served.stop({ drain: false });
  expect(readdirSync(folder).sort()).toEqual(
    ["db.instant.img", "web.instant.img"].flatMap((name) => [name, `${name}.tidemark`, `${name}.tidemark-run`]),
  );
  await vault.failovers.cleanup({ run });
  expect(readdirSync(folder)).toEqual([]);
});

test("an address is unix:PATH or tcp:HOST:PORT with a port that stays", async () => {
  for (const to of [
    "instant:unix:",
    "instant:tcp:127.0.0.1",
    "instant:tcp:127.0.0.1:0",
    "instant:",
    "instant:x,image=y",
  ])
    await expectCode(vault.failovers.start({ kind: "test", disks: ["web"], to }), "INVALID_ARGUMENT");
  const nowhere = { kind: "test", disks: ["web"], to: `instant:unix:${path("none/nbd.sock")}` } as const;
  await expectCode(vault.failovers.start(nowhere), "TARGET_FAILED");
  expect(await vault.failovers.list()).toEqual([]);
  expect(parseListen("unix:a", "/b")).toEqual({ kind: "unix", path: "/b/a" });
});

test("a whole image is protected by the process that serves it, from the reprotection on", async () => {
  const started = { kind: "unplanned", disks: ["web"], to: `file:${path("t.img")}` } as const;
  const { run } = await vault.failovers.start(started);
  await vault.failovers.commit({ run });
  await expectCode(vault.failovers.reprotect({ run, listen: "unix" }), "INVALID_ARGUMENT");
  const over = await vault.failovers.reprotect({ run, listen: `unix:${socket()}` });
  expect(over).toMatchObject({ state: "Protected", bytesRead: 0, allowedOperations: ["Failback", "Resume"] });
  expect(await vault.points("web")).toHaveLength(3);
  const served = await serve(run);
  const model = content(3);
  await write(await client(), model, 8192, Buffer.alloc(4096, 5));
  expect(await served.stop({ drain: true })).toBeUndefined();
  expect(isSame(await newest("web"), model)).toBe(true);
  expect((await vault.points("web")).length).toBeGreaterThan(3);
});
