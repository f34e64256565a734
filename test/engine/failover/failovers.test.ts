/**
 * Tests, failovers and their ends, on a model disk: what the targets hold, what is left, and who may
 * write when.
 */
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmdirSync,
  unlinkSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { FileVolume } from "../../../engine/disk/source/file-volume.ts";
import { TidemarkError } from "../../../engine/errors.ts";
import type { SourceSite } from "../../../engine/failover/source.ts";
import type { Notice } from "../../../engine/notice.ts";
import { Group } from "../../../engine/replication/protection/groups.ts";
import { runObjectName } from "../../../engine/store/format/names.ts";
import { WriterLease } from "../../../engine/store/points/writer-lease.ts";
import type { Vault } from "../../../engine/vault.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { closeModelVaults, contentOf, type ModelDisk, openModelVault, sampleDisk, scribble } from "../../model-disk.ts";
import { expectCode } from "../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";

let folder: string;
let vault: Vault;
let disk: ModelDisk;
let contents: readonly Buffer[];
let notices: Notice[];
let start: MemorySnapshot;
const memory = new MemoryStore();
const onNotice = (notice: Notice): void => {
  notices.push(notice);
};

/** One vault for all tests: its threads take longer to start than a test to run. */
beforeAll(async () => {
  vault = await openModelVault(new MemorySink({ store: memory }));
  contents = await replicateThrice();
  start = memory.snapshot();
});

async function replicateThrice(): Promise<Buffer[]> {
  const made: Buffer[] = [];
  disk = sampleDisk(600_000, 1);
  for (const seed of [1, 2, 3]) {
    await vault.replicate({ disk: "web", volume: disk });
    made.push(Buffer.from(disk.bytes));
    scribble(disk, seed);
  }
  return made;
}

beforeEach(() => {
  memory.restore(start);
  folder = createFolder("failovers");
  notices = [];
});

afterEach(async () => {
  vi.restoreAllMocks();
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
});

const path = (name: string): string => join(folder, name);
const unplanned = async (to: string, point = "latest"): ReturnType<Vault["failovers"]["start"]> =>
  await vault.failovers.start({ kind: "unplanned", disks: ["web"], to, point, onNotice });

describe("a test", () => {
  test("makes its target, keeps what the check printed, and is over when nothing is left of it", async () => {
    const environment = { PATH: "/usr/bin:/bin" };
    const done = await vault.failovers.start({
      kind: "test",
      disks: ["web"],
      to: `file:${path("t.img")}`,
      point: "2",
      check: 'test "$TIDEMARK_TEST" = 1 && echo "$TIDEMARK_DISK $(wc -c < "$TIDEMARK_IMAGE")"',
      ttlMs: 1_000,
      note: "quarterly drill",
      environment,
    });
    expect(readFileSync(path("t.img")).equals(contents[1] ?? Buffer.alloc(0))).toBe(true);
    expect(done).toMatchObject({
      kind: "test",
      state: "TestFailoverCompleted",
      allowedOperations: ["TestFailoverCleanup"],
      health: "Warning",
      successful: null,
      disks: [{ disk: "web", sequence: 2, complete: true }],
      leftovers: [`file:${path("t.img")}`, `file:${path("t.img.tidemark-run")}`],
      notes: [{ text: "quarterly drill" }],
      bytesWritten: expect.any(Number) as number,
    });
    expect(done.jobs[0]?.tasks[1]).toMatchObject({
      name: "TestFailoverCompleting",
      state: "Succeeded",
      exitCode: 0,
      output: "web 600000\n",
    });
    // Replication has never stopped.
    await vault.replicate({ disk: "web", volume: disk });
    const over = await vault.failovers.cleanup({ run: done.run, note: "all well" });
    expect(over).toMatchObject({
      state: "None",
      leftovers: [],
      successful: true,
      health: "Normal",
      allowedOperations: [],
    });
    expect(over.notes.map(({ text }) => text)).toEqual(["quarterly drill", "all well"]);
    expect(readdirSync(folder)).toEqual([]);
    await expectCode(vault.failovers.cleanup({ run: done.run }), "INVALID_ARGUMENT");
  });

  test("whose check fails says so, is overdue after its time, and can be checked again", async () => {
    const flag = path("good");
    const begun = vault.failovers.start({
      kind: "test",
      disks: ["web"],
      to: `file:${path("t.img")}`,
      check: `test -e ${flag} || { echo not yet; exit 3; }`,
      ttlMs: 1,
      environment: { PATH: "/usr/bin:/bin" },
    });
    await expectCode(begun, "HOOK_FAILED");
    const [run] = await vault.failovers.list();
    expect(run).toMatchObject({
      state: "TestFailoverCompletionFailed",
      allowedOperations: ["TestFailoverCleanup", "Resume"],
      overdue: true,
      health: "Critical",
    });
    expect(run?.jobs[0]?.tasks[1]).toMatchObject({ state: "Failed", exitCode: 3, output: "not yet\n" });
    writeFileSync(flag, "");
    const name = run?.run ?? "";
    const environment = { PATH: "/usr/bin:/bin" };
    expect(await vault.failovers.resume({ run: name, environment })).toMatchObject({ state: "TestFailoverCompleted" });
    await vault.failovers.cleanup({ run: name });
    expect(readdirSync(folder)).toEqual(["good"]);
  });

  test("writes over nothing that it has not made, and removes nothing", async () => {
    writeFileSync(path("mine.img"), "precious");
    const start = vault.failovers.start({ kind: "test", disks: ["web"], to: `file:${path("mine.img")}` });
    await expectCode(start, "TARGET_EXISTS");
    expect(await vault.failovers.list()).toEqual([]);
    const done = await vault.failovers.start({ kind: "test", disks: ["web"], to: `file:${path("t.img")}` });
    const second = vault.failovers.start({ kind: "test", disks: ["web"], to: `file:${path("t.img")}` });
    await expectCode(second, "TARGET_EXISTS");
    await vault.failovers.cleanup({ run: done.run });
    expect(readFileSync(path("mine.img"), "utf8")).toBe("precious");
  });

  test("to a file whose name ends as one makes a VHD", async () => {
    for (const name of ["t.vhd", "T.VHD"]) {
      const { disks } = await vault.failovers.start({ kind: "test", disks: ["web"], to: `file:${path(name)}` });
      expect(disks[0]?.target).toBe(`vhd:${path(name)}`);
      expect(readFileSync(path(name)).toString("latin1", 1024 * 1024, 1024 * 1024 + 8)).toBe("conectix");
    }
  });

  test("that the store has forgotten is named by its mark, with the command that removes what it made", async () => {
    const { run } = await vault.failovers.start({ kind: "test", disks: ["web"], to: `file:${path("t.img")}` });
    const again = async (): Promise<unknown> =>
      await vault.failovers
        .start({ kind: "test", disks: ["web"], to: `file:${path("t.img")}` })
        .catch((error: unknown) => error);
    expect(await again()).toMatchObject({ code: "TARGET_EXISTS", message: expect.stringContaining(run) as unknown });
    await new MemorySink({ store: memory }).deleteObject(runObjectName(run));
    expect(await again()).toMatchObject({
      code: "TARGET_EXISTS",
      message: expect.stringContaining(`run ${run}, which this vault does not hold`) as unknown,
      remedy: expect.stringContaining(`\`rm -r ${path("t.img")} ${path("t.img.tidemark-run")}\``) as unknown,
    });
  });

  test("whose target was away during its cleanup has its mark explained afterwards", async () => {
    mkdirSync(path("usb"));
    const to = `file:${path("usb/t.img")}`;
    const { run } = await vault.failovers.start({ kind: "test", disks: ["web"], to });
    renameSync(path("usb"), path("away"));
    mkdirSync(path("usb"));
    await vault.failovers.cleanup({ run });
    rmdirSync(path("usb"));
    renameSync(path("away"), path("usb"));
    await expect(vault.failovers.start({ kind: "test", disks: ["web"], to })).rejects.toMatchObject({
      message: expect.stringContaining(`run ${run}, which has ended`) as unknown,
      remedy: expect.stringContaining("rm -r") as unknown,
    });
  });

  test("whose target cannot be looked at hides no other run, and is not over before that is seen", async () => {
    mkdirSync(path("usb"));
    const { run } = await vault.failovers.start({ kind: "test", disks: ["web"], to: `file:${path("usb/t.img")}` });
    renameSync(path("usb"), path("away"));
    writeFileSync(path("usb"), "");
    const [shown] = await vault.failovers.list();
    expect(shown?.leftovers).toEqual([expect.stringMatching(/^file:.*t\.img: cannot look at .*ENOTDIR/)]);
    await expectCode(vault.failovers.cleanup({ run }), "TARGET_FAILED");
    unlinkSync(path("usb"));
    renameSync(path("away"), path("usb"));
    expect(await vault.failovers.cleanup({ run })).toMatchObject({ state: "None" });
    expect(readdirSync(path("usb"))).toEqual([]);
  });

  test("whose target cannot be removed stays red until it can", async () => {
    const done = await vault.failovers.start({ kind: "test", disks: ["web"], to: `file:${path("t.img")}` });
    // Another program puts something in place of the image that cannot be deleted as a file.
    unlinkSync(path("t.img"));
    mkdirSync(path("t.img"));
    await expectCode(vault.failovers.cleanup({ run: done.run }), "TARGET_FAILED");
    expect(await vault.failovers.show(done.run)).toMatchObject({
      state: "TestFailoverCleanupInitiated",
      health: "Critical",
      successful: null,
      leftovers: [`file:${path("t.img")}`, `file:${path("t.img.tidemark-run")}`],
    });
    rmdirSync(path("t.img"));
    expect(await vault.failovers.cleanup({ run: done.run })).toMatchObject({ state: "None", successful: true });
  });
});

describe("an unplanned failover", () => {
  test("keeps new writers off the disk, and a cancel brings everything back", async () => {
    const done = await unplanned(`vhd:${path("web.vhd")}`);
    expect(done).toMatchObject({
      state: "UnplannedFailoverCompleted",
      allowedOperations: ["ChangePit", "Commit", "CancelFailover", "CompleteMigration"],
      disks: [{ sequence: 3, complete: true }],
    });
    expect(
      readFileSync(path("web.vhd"))
        .subarray(0, 600_000)
        .equals(contents[2] ?? Buffer.alloc(0)),
    ).toBe(true);
    await expectCode(vault.replicate({ disk: "web", volume: disk }), "WRITER_ACTIVE");
    await expectCode(unplanned(`file:${path("two.img")}`), "WRITER_ACTIVE");
    // A disk that has moved is not served at its former place: what is written there would be lost.
    writeFileSync(path("old.img"), disk.bytes);
    const old = { disk: "web", image: path("old.img"), stateFolder: path("state") };
    await expectCode(vault.protect(old), "WRITER_ACTIVE");
    unlinkSync(path("old.img"));
    const over = await vault.failovers.cancel({ run: done.run });
    expect(over).toMatchObject({ state: "Protected", leftovers: [], health: "Normal" });
    expect(readdirSync(folder)).toEqual([]);
    expect(await vault.replicate({ disk: "web", volume: disk })).toMatchObject({ sequence: 4 });
  });

  test("changes its point by differences, and compares a target that was written", async () => {
    const image = path("web.img");
    const done = await unplanned(`file:${image}`);
    const changed = await vault.failovers.changePoint({ run: done.run, point: "2" });
    expect(changed).toMatchObject({ state: "ChangeRecoveryPointCompleted", point: "2", disks: [{ sequence: 2 }] });
    expect(readFileSync(image).equals(contents[1] ?? Buffer.alloc(0))).toBe(true);
    expect(changed.bytesRead).toBeLessThan(done.bytesRead / 2);
    expect(changed.bytesWritten).toBeLessThan(60_000);
    // A guest writes where the points do not differ.
    const written = readFileSync(image);
    written.fill(0xee, 300_000, 310_000);
    writeFileSync(image, written);
    const again = await vault.failovers.changePoint({ run: done.run, point: "1" });
    expect(again).toMatchObject({ disks: [{ sequence: 1, complete: true }] });
    expect(readFileSync(image).equals(contents[0] ?? Buffer.alloc(0))).toBe(true);
  });

  test("whose target is gone is not committed, and can be made anew", async () => {
    const { run } = await unplanned(`file:${path("t.img")}`);
    for (const name of ["t.img", "t.img.tidemark-run"]) unlinkSync(path(name));
    await expectCode(vault.failovers.commit({ run }), "TARGET_FAILED");
    await vault.failovers.changePoint({ run, point: "latest" });
    expect(await vault.failovers.commit({ run })).toMatchObject({ state: "CommitFailoverCompleted" });
    expect(readFileSync(path("t.img")).equals(contents[2] ?? Buffer.alloc(0))).toBe(true);
  });

  test("that is committed hands the target over, and leaves no way back", async () => {
    const done = await unplanned(`file:${path("web.img")}`, "1");
    const committed = await vault.failovers.commit({ run: done.run, discardPoints: true });
    expect(committed).toMatchObject({
      state: "CommitFailoverCompleted",
      leftovers: [],
      allowedOperations: ["ReverseReplicate", "CompleteMigration"],
    });
    expect(committed.mayBeDeleted).toHaveLength(1);
    expect(readdirSync(folder)).toEqual(["web.img"]);
    expect(await vault.points("web")).toMatchObject([{ sequence: 3 }]);
    await expectCode(vault.failovers.cancel({ run: done.run }), "INVALID_ARGUMENT");
    await expectCode(vault.failovers.changePoint({ run: done.run, point: "2" }), "INVALID_ARGUMENT");
    await expectCode(vault.failovers.cleanup({ run: done.run }), "INVALID_ARGUMENT");
    expect(existsSync(path("web.img"))).toBe(true);
  });

  test("whose work fails names itself in the error, and has noted how far the work came", async () => {
    let laterMs = 0;
    const onProgress = (): void => {
      laterMs += 60_000;
      const now = performance.now() + laterMs;
      vi.spyOn(performance, "now").mockReturnValueOnce(now).mockReturnValueOnce(now);
    };
    const to = `file:${path("web.img")}`;
    const failing = vault.failovers.start({ kind: "test", disks: ["web"], to, check: "exit 3", onProgress });
    const error = await failing.catch((reason: unknown) => reason);
    const [run] = await vault.failovers.list();
    expect(error).toMatchObject({ code: "HOOK_FAILED", detail: { run: run?.run } });
    expect((error as TidemarkError).remedy).toContain(`\`tidemark jobs resume ${run?.run}\``);
    const [made] = run?.jobs[0]?.tasks ?? [];
    expect(made?.progress?.totalBytes).toBeGreaterThan(500_000);
    expect(made?.progress?.doneBytes).toBe(made?.progress?.totalBytes);
  });

  test("whose disk another process takes meanwhile names itself in the error, and goes on", async () => {
    const { run } = await unplanned(`file:${path("t.img")}`);
    vi.spyOn(WriterLease, "take").mockRejectedValueOnce(new TidemarkError("SEAT_LOST", "another writer has taken it"));
    const error = await expectCode(vault.failovers.commit({ run }), "SEAT_LOST");
    expect(error).toMatchObject({ message: expect.stringContaining(`run ${run}: `) as string, detail: { run } });
    expect(await vault.failovers.show(run)).toMatchObject({ state: "CommitFailoverFailedOnPrimary" });
    expect(await vault.failovers.resume({ run })).toMatchObject({ state: "CommitFailoverCompleted" });
  });

  test("whose store goes away names itself in the error", async () => {
    const { run } = await unplanned(`file:${path("t.img")}`);
    const put: MemorySink["putObject"] = Reflect.get(MemorySink.prototype, "putObject");
    let swaps = 0;
    vi.spyOn(MemorySink.prototype, "putObject").mockImplementation(async function (this: MemorySink, ...call) {
      if (call[0].startsWith("failover/runs/")) swaps += 1;
      if (swaps > 1) throw new TidemarkError("STORE_UNREACHABLE", "the store is away");
      return await put.apply(this, call);
    });
    await expect(vault.failovers.cancel({ run })).rejects.toMatchObject({
      code: "STORE_UNREACHABLE",
      message: `run ${run}: the store is away`,
      remedy: expect.stringContaining(`tidemark jobs resume ${run}`) as unknown,
    });
  });

  test("goes on where its source does not answer, and says so", async () => {
    const source = { kind: "agent", path: "/nowhere" } as const;
    const gone = new MemorySink();
    const openAgent = (): SourceSite => ({
      point: async () => {
        await gone.getObject("absent", 1);
      },
      stop: async () => await Promise.resolve([]),
      start: async () => await Promise.resolve(),
    });
    const done = await vault.failovers.start({
      kind: "unplanned",
      disks: ["web"],
      to: `dir:${folder}`,
      source,
      openAgent,
      shutdown: "exit 7",
      onNotice,
    });
    expect(notices.map(({ code }) => code)).toEqual(["SOURCE_UNREACHED", "SOURCE_UNREACHED"]);
    expect(done).toMatchObject({ state: "UnplannedFailoverCompleted", disks: [{ sequence: 3 }] });
    expect(done.jobs[0]?.tasks[0]).toMatchObject({ state: "Succeeded", exitCode: 7 });
    expect(readdirSync(folder).sort()).toEqual(["web.img", "web.img.tidemark-run"]);
  });

  test("of which two operators are at work lets one of them on", async () => {
    const done = await unplanned(`file:${path("web.img")}`);
    const outcomes = await Promise.allSettled([
      vault.failovers.cancel({ run: done.run }),
      vault.failovers.commit({ run: done.run }),
      vault.failovers.commit({ run: done.run }),
    ]);
    expect(outcomes.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected", "rejected"]);
    // The other one meets the lease of the first, or the state that the first has left.
    const failure = outcomes.find((outcome) => outcome.status === "rejected");
    expect(failure?.reason).toMatchObject({
      code: expect.stringMatching(/WRITER_ACTIVE|SEAT_LOST|INVALID_ARGUMENT/) as string,
    });
  });
});

describe("a planned failover", () => {
  const planned = { kind: "planned", disks: ["web"], source: { kind: "agent", path: "/run/a.sock" } } as const;

  test("takes what was written last along, and asks for the source", async () => {
    writeFileSync(path("source.img"), disk.bytes);
    mkdirSync(path("there"));
    const options = { kind: "planned", disks: ["web"], to: `dir:${path("there")}` } as const;
    await expectCode(vault.failovers.start(options), "INVALID_ARGUMENT");
    const source = { kind: "image", path: path("source.img") } as const;
    const done = await vault.failovers.start({ ...options, source });
    expect(done).toMatchObject({ state: "PlannedFailoverCompleted", disks: [{ sequence: 4, complete: true }] });
    expect(readFileSync(path("there/web.img")).equals(disk.bytes)).toBe(true);
    await expectCode(vault.replicate({ disk: "web", volume: disk }), "WRITER_ACTIVE");
  });

  test("is not done when its vault lacks the agent's last point, and the disk goes on there", async () => {
    const calls: string[] = [];
    const signature = "4096 modified 1 changed 1";
    const openAgent = (): SourceSite => ({
      point: async () => await Promise.resolve(),
      stop: async () => await Promise.resolve([{ disk: "web", path: "/web.img", point: "0".repeat(32), signature }]),
      start: async ({ disks }) => {
        calls.push(`start ${disks.join(" ")}`);
        await Promise.resolve();
      },
    });
    const start = vault.failovers.start({ ...planned, to: `file:${path("t.img")}`, openAgent });
    expect((await expectCode(start, "SOURCE_UNREADABLE")).message).toContain("another vault");
    expect(calls).toEqual(["start web"]);
    await vault.replicate({ disk: "web", volume: disk });
  });

  test("is not done when the agent cannot bring the disk to rest, and is cancelled without a loss", async () => {
    const calls: string[] = [];
    const gone = new MemorySink();
    const openAgent = (socket: string): SourceSite => ({
      point: async () => await Promise.resolve(),
      stop: async ({ disks }) => {
        calls.push(`stop ${disks.join(" ")} ${socket}`);
        await gone.getObject("absent", 1);
        return [];
      },
      start: async ({ disks }) => {
        calls.push(`start ${disks.join(" ")}`);
        await gone.getObject("absent", 1);
      },
    });
    const start = vault.failovers.start({ ...planned, to: `file:${path("t.img")}`, openAgent });
    await expectCode(start, "VAULT_NOT_FOUND");
    const [run] = await vault.failovers.list();
    expect(run).toMatchObject({ state: "PlannedFailoverFailed", allowedOperations: ["CancelFailover", "Resume"] });
    const cancelling = vault.failovers.cancel({ run: run?.run ?? "", openAgent, onNotice });
    expect(await cancelling).toMatchObject({ state: "Protected" });
    // The agent does not come back either: the disk is free all the same.
    expect(notices.map(({ code }) => code)).toEqual(["SOURCE_UNREACHED"]);
    expect(calls).toEqual(["stop web /run/a.sock", "start web"]);
    expect(readdirSync(folder)).toEqual([]);
    await vault.replicate({ disk: "web", volume: disk });
  });
});

describe("a disk that has moved", () => {
  test("is replicated from its new place, by differences, and from nowhere else; then it can go back", async () => {
    const [old, moved, back] = [path("old.img"), path("moved.img"), path("back.img")];
    writeFileSync(old, disk.bytes);
    const move = { kind: "planned", disks: ["web"], to: `file:${moved}` } as const;
    const run = await vault.failovers.start({ ...move, source: { kind: "image", path: old } });
    await expectCode(vault.failovers.reprotect({ run: run.run }), "INVALID_ARGUMENT");
    await vault.failovers.commit({ run: run.run });
    const written = readFileSync(moved);
    written.fill(0xab, 40_000, 50_000);
    writeFileSync(moved, written);
    const over = await vault.failovers.reprotect({ run: run.run });
    expect(over).toMatchObject({ state: "Protected", direction: "PrimaryToRecovery", activeLocation: "Recovery" });
    const newest = (await vault.points("web")).at(-1);
    expect(newest?.sequence).toBe(5);
    expect(newest?.newBytes).toBeLessThan(40_000);
    // The old image is refused, the new one goes on.
    const [from, at] = [await FileVolume.open(old), await FileVolume.open(moved)];
    await expectCode(vault.replicate({ disk: "web", volume: from }), "WRITER_ACTIVE");
    expect(await vault.replicate({ disk: "web", volume: at })).toMatchObject({ sequence: 6 });
    // A failover back that is cancelled leaves the disk where it is.
    const home = {
      kind: "planned",
      disks: ["web"],
      to: `file:${back}`,
      source: { kind: "image", path: moved },
    } as const;
    const first = await vault.failovers.start(home);
    expect(first).toMatchObject({ direction: "RecoveryToPrimary", activeLocation: "Recovery" });
    await expectCode(vault.replicate({ disk: "web", volume: at }), "WRITER_ACTIVE");
    expect(await vault.failovers.cancel({ run: first.run })).toMatchObject({ state: "Protected" });
    expect(await vault.replicate({ disk: "web", volume: at })).toMatchObject({ sequence: 8 });
    await expectCode(vault.replicate({ disk: "web", volume: from }), "WRITER_ACTIVE");
    // And one that is not cancelled takes it.
    const second = await vault.failovers.start(home);
    await vault.failovers.commit({ run: second.run });
    expect(await vault.failovers.reprotect({ run: second.run })).toMatchObject({ activeLocation: "Primary" });
    expect(readFileSync(back).equals(written)).toBe(true);
    await expectCode(vault.replicate({ disk: "web", volume: at }), "WRITER_ACTIVE");
    for (const volume of [from, at]) await volume.close();
  });

  test("in a form that is not replicated says so", async () => {
    const run = await unplanned(`vhd:${path("web.vhd")}`);
    await vault.failovers.commit({ run: run.run });
    await expectCode(vault.failovers.reprotect({ run: run.run }), "UNSUPPORTED");
    // That changes nothing, and the failover can be ended, also when the target has been moved.
    expect(await vault.failovers.show(run.run)).toMatchObject({ state: "CommitFailoverCompleted" });
    renameSync(path("web.vhd"), path("mine.vhd"));
    expect(await vault.failovers.completeMigration({ run: run.run })).toMatchObject({ state: "MarkedForDeletion" });
  });
});

describe("a group", () => {
  /**
   * Two disks with common points, and more points of the first disk alone. The clock stands still, so
   * the parts of a common point bear different times: each is dated after the one before it.
   */
  async function grouped(): Promise<Vault> {
    vi.spyOn(Date, "now").mockReturnValue(Date.now());
    const rig = await openModelVault(new MemorySink({ attachablePages: true }));
    for (const seed of [8, 9]) await rig.replicate({ disk: "d", volume: sampleDisk(60_000, seed) });
    const group = new Group("shop");
    const policy = { crashConsistentFrequencyMs: 3_600_000 };
    const protections = [];
    for (const name of ["d", "e"]) {
      writeFileSync(path(`${name}.img`), contentOf(60_000, name === "d" ? 3 : 4));
      const image = { disk: name, image: path(`${name}.img`), stateFolder: path("state") };
      protections.push(await rig.protect({ ...image, policy, group }));
    }
    for (const seed of [1, 2]) {
      for (const { device } of protections) await device.write(seed * 8192, contentOf(4096, seed));
      await Promise.all(protections.map(async (protection) => await protection.point()));
    }
    for (const protection of protections) await protection.stop({ drain: false });
    await rig.replicate({ disk: "d", volume: sampleDisk(60_000, 9) });
    return rig;
  }

  test("fails over to one point, to blobs, and one blob that exists stops all of it", async () => {
    const rig = await grouped();
    const options = { kind: "unplanned", group: "shop", to: "blob:site-b/" } as const;
    const common = (await rig.points("e")).filter(({ group }) => group !== null);
    const newest = common.at(-1)?.sequence;
    /** The points of both disks that were cut at the barrier of a point. */
    const membersOf = async (point: (typeof common)[number] | undefined): Promise<readonly unknown[]> =>
      await Promise.all(
        ["d", "e"].map(
          async (name) => (await rig.points(name)).find(({ group }) => group?.id === point?.group?.id)?.sequence,
        ),
      );
    const done = await rig.failovers.start(options);
    expect(done).toMatchObject({ state: "UnplannedFailoverCompleted", group: "shop" });
    expect(done.disks.map(({ disk: name, target }) => [name, target])).toEqual([
      ["d", "blob:site-b/d.vhd"],
      ["e", "blob:site-b/e.vhd"],
    ]);
    expect(done.disks[1]).toMatchObject({ sequence: newest, complete: true });
    expect(done.disks.map(({ sequence }) => sequence)).toEqual(await membersOf(common.at(-1)));
    expect(done.leftovers).toHaveLength(4);
    const before = common.at(-2)?.time ?? "";
    const changed = await rig.failovers.changePoint({ run: done.run, point: before });
    expect(changed.disks.map(({ sequence }) => sequence)).toEqual(await membersOf(common.at(-2)));
    expect(changed.disks.map(({ complete }) => complete)).toEqual([true, true]);
    expect(await rig.failovers.cancel({ run: done.run })).toMatchObject({ state: "Protected", leftovers: [] });
    await rig.materialize({ disk: "e", point: "latest", to: "blob:site-b/e.vhd" });
    await expectCode(rig.failovers.start(options), "TARGET_EXISTS");
    expect(await rig.failovers.list()).toHaveLength(1);
  });
});

test("the targets of several disks need a folder, and an unknown target is refused by name", async () => {
  await vault.replicate({ disk: "db", volume: sampleDisk(100_000, 9) });
  const both = { kind: "test", disks: ["web", "db"] } as const;
  await expectCode(vault.failovers.start({ ...both, to: `file:${path("x.img")}` }), "INVALID_ARGUMENT");
  await expectCode(vault.failovers.start({ ...both, to: "blob:x" }), "UNSUPPORTED");
  await expectCode(vault.failovers.start({ ...both, to: "somewhere" }), "INVALID_ARGUMENT");
  await expectCode(vault.failovers.start({ ...both, to: `dir:${folder}`, point: "common" }), "POINT_NOT_FOUND");
  await expectCode(vault.failovers.start({ ...both, to: `dir:${path("none")}` }), "TARGET_FAILED");
  const done = await vault.failovers.start({ ...both, to: `dir:${folder}` });
  expect(done.disks.map(({ disk: name }) => name)).toEqual(["web", "db"]);
  expect(readdirSync(folder).sort()).toEqual(["db.img", "db.img.tidemark-run", "web.img", "web.img.tidemark-run"]);
  await vault.failovers.cleanup({ run: done.run });
  expect(readdirSync(folder)).toEqual([]);
});
