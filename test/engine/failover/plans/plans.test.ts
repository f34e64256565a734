/** Runs of a recovery plan on model disks: order, points, waits, failures, verbs, and a second host. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import os from "node:os";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { Group } from "../../../../engine/replication/protection/groups.ts";
import type { Plan } from "../../../../engine/store/format/plan-run.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../../sink/memory.ts";
import { closeModelVaults, type ModelDisk, openModelVault, sampleDisk, scribble } from "../../../model-disk.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";
import { logged, shopPlan } from "./plan-rig.ts";

const memory = new MemoryStore();
const environment = { PATH: "/usr/bin:/bin" };
const names = ["data", "log", "web", "app"] as const;
let vault: Vault;
let folder: string;
let start: MemorySnapshot;
const contents = new Map<string, Buffer[]>();

beforeAll(async () => {
  vault = await openModelVault(new MemorySink({ store: memory }));
  const disks = new Map<string, ModelDisk>(names.map((name, index) => [name, sampleDisk(80_000, index + 1)]));
  for (const seed of [1, 2]) {
    for (const [name, disk] of disks) {
      await vault.replicate({ disk: name, volume: disk });
      contents.set(name, [...(contents.get(name) ?? []), Buffer.from(disk.bytes)]);
      scribble(disk, seed);
    }
  }
  start = memory.snapshot();
});

beforeEach(() => {
  memory.restore(start);
  folder = createFolder("plans");
});

afterEach(async () => {
  vi.restoreAllMocks();
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
});

const log = (): string[] => readFileSync(join(folder, "log"), "utf8").trimEnd().split("\n");
const images = (): string[] => readdirSync(folder).filter((name) => name.endsWith(".img"));
const holds = (disk: string, point: number): boolean =>
  readFileSync(join(folder, `${disk}.img`)).equals(contents.get(disk)?.[point - 1] ?? Buffer.alloc(0));
const begin = async (
  kind: "test" | "unplanned",
  plan: Plan = shopPlan(folder),
  point = "latest",
): ReturnType<Vault["plans"]["start"]> => await vault.plans.start({ plan, kind, point, environment });
const pins = async (): Promise<string[]> =>
  (await namesIn(new MemorySink({ store: memory }), "disks/")).filter((name) => name.includes("/pins/"));

describe("a test of a plan", () => {
  test("takes the groups in order, keeps what commands say, and leaves nothing after its cleanup", async () => {
    const told =
      'echo "$TIDEMARK_PLAN $TIDEMARK_TEST $TIDEMARK_MACHINES $TIDEMARK_DISKS $TIDEMARK_DISK_2 $(wc -c < "$TIDEMARK_IMAGE_2")"';
    const plan = shopPlan(folder);
    const [db, web] = plan.groups;
    const groups = [{ ...db, after: [logged("", { command: told })] }, web] as Plan["groups"];
    const done = await vault.plans.start({ plan: { ...plan, groups }, kind: "test", environment, note: "drill" });
    expect(done).toMatchObject({
      plan: "shop",
      state: "TestFailoverCompleted",
      allowedOperations: ["TestFailoverCleanup"],
      met: true,
      waiting: null,
      machines: [
        { machine: "db", group: 1, state: "TestFailoverCompleted", disks: [{ disk: "data" }, { disk: "log" }] },
        { machine: "web", group: 2 },
        { machine: "app", group: 2 },
      ],
      notes: [{ text: "drill" }],
    });
    expect(done.jobs[0]?.steps.map(({ what, stage, state }) => [what.slice(0, 15), stage, state])).toEqual([
      ['echo "before db', 1, "Succeeded"],
      ["db", 2, "Succeeded"],
      ['echo "$TIDEMARK', 3, "Succeeded"],
      ["web", 4, "Succeeded"],
      ["app", 4, "Succeeded"],
      ['echo "after web', 5, "Succeeded"],
    ]);
    expect(done.jobs[0]?.steps[2]).toMatchObject({ output: "shop 1 db 2 log 80000\n", exitCode: 0, tries: 1 });
    expect(done.leftovers).toHaveLength(8);
    for (const disk of names) expect(holds(disk, 2), disk).toBe(true);
    expect(await pins()).toEqual([]);
    const over = await vault.plans.cleanup({ run: done.run, environment, note: "all well" });
    expect(over).toMatchObject({ state: "None", successful: true, leftovers: [], health: "Normal" });
    expect(over.jobs[1]?.steps.map(({ what }) => what.slice(0, 4))).toEqual(["web", "app", "db", "echo"]);
    expect(readdirSync(folder)).toEqual(["log"]);
    expect(log()).toEqual(["before db", "after web", "cleanup"]);
    await expectCode(vault.plans.cleanup({ run: done.run }), "INVALID_ARGUMENT");
    expect((await vault.plans.list({ plan: "shop" })).map(({ run }) => run)).toEqual([done.run]);
    expect(await vault.plans.list({ plan: "other" })).toEqual([]);
  });

  test("waits for a person, and goes on at the step that the person names", async () => {
    const plan = shopPlan(folder);
    const groups = [plan.groups[0], { ...plan.groups[1], after: [{ kind: "manual", text: "DNS points here?" }] }];
    const waiting = await begin("test", { ...plan, groups: groups as Plan["groups"] });
    expect(waiting).toMatchObject({
      state: "TestFailoverInitiated",
      waiting: { step: 6, text: "DNS points here?" },
      health: "Warning",
      allowedOperations: ["TestFailoverCleanup", "Resume"],
    });
    const { run } = waiting;
    await expectCode(vault.plans.resume({ run }), "INVALID_ARGUMENT");
    await expectCode(vault.plans.resume({ run, step: 2 }), "INVALID_ARGUMENT");
    await expectCode(vault.plans.resume({ run, step: 7 }), "INVALID_ARGUMENT");
    const done = await vault.plans.resume({ run, step: 6, note: "it does" });
    expect(done).toMatchObject({ state: "TestFailoverCompleted", waiting: null, notes: [{ text: "it does" }] });
    expect(done.jobs[0]?.steps[5]).toMatchObject({ kind: "manual", state: "Confirmed" });
    expect(await vault.plans.cleanup({ run, environment })).toMatchObject({ successful: true });
  });

  test("whose command fails is tried again, resumed, or done by hand", async () => {
    const plan = shopPlan(folder);
    const failing = logged("", { command: "echo try >> log; test -e good", retries: 2 });
    const late = logged("", { command: "sleep 60", timeoutMs: 50, onFailure: "continue" });
    const groups = [{ machines: ["db"], before: [late, failing], after: [] }, plan.groups[1]] as Plan["groups"];
    await expectCode(begin("test", { ...plan, groups }), "HOOK_FAILED");
    const [failed] = await vault.plans.list();
    const run = failed?.run ?? "";
    expect(log()).toEqual(["try", "try", "try"]);
    expect(failed).toMatchObject({ state: "TestFailoverFailed", health: "Critical", rtoMs: null });
    expect(failed?.jobs[0]?.steps[0]).toMatchObject({
      state: "Failed",
      error: { code: "HOOK_FAILED", message: expect.stringMatching(/did not end within 0.05 s/) as string },
    });
    expect(failed?.jobs[0]?.steps[1]).toMatchObject({ state: "Failed", tries: 3, exitCode: 1 });
    expect(images()).toEqual([]);
    await expectCode(vault.plans.resume({ run, environment }), "HOOK_FAILED");
    writeFileSync(join(folder, "good"), "");
    expect(await vault.plans.resume({ run, environment })).toMatchObject({ state: "TestFailoverCompleted" });
    // A command that failed and was passed over keeps the test from being a success.
    expect(await vault.plans.cleanup({ run, environment })).toMatchObject({ state: "None", successful: false });
    await expectCode(
      begin("test", {
        ...plan,
        groups: [{ machines: ["db"], before: [logged("", { command: "false" })], after: [] }, ...plan.groups.slice(1)],
      }),
      "HOOK_FAILED",
    );
    const [second] = await vault.plans.list();
    expect(await vault.plans.resume({ run: second?.run ?? "", step: 1, environment })).toMatchObject({
      state: "TestFailoverCompleted",
    });
  });

  test("stops where a machine fails, when the others of its group are done, and goes on or is cleaned up", async () => {
    const run = async (): Promise<string> => {
      const [found] = await vault.plans.list();
      return found?.run ?? "";
    };
    // The target of one machine is taken by another program after the run has begun.
    const plan = shopPlan(folder);
    const taken = {
      ...plan,
      groups: [{ ...plan.groups[0], after: [logged("", { command: "echo mine > web.img" })] }, plan.groups[1]],
    } as Plan;
    await expectCode(begin("test", taken), "TARGET_EXISTS");
    const [failed] = await vault.plans.list();
    expect(failed).toMatchObject({
      state: "TestFailoverFailed",
      machines: [{}, { state: null }, { state: "TestFailoverCompleted" }],
    });
    expect(await pins()).not.toEqual([]);
    const cleaned = await vault.plans.cleanup({ run: await run(), environment });
    expect(cleaned).toMatchObject({ state: "None", successful: false, leftovers: [] });
    expect(await pins()).toEqual([]);
    expect(images()).toEqual(["web.img"]);
    writeFileSync(join(folder, "web.img"), "");
  });
});

describe("a run that cannot begin", () => {
  test("names every fault before anything has changed", async () => {
    const plan = shopPlan(folder);
    writeFileSync(join(folder, "app.img"), "mine");
    // Of the second machine more is looked at, and the fault of the first one is found meanwhile.
    const machines = [
      { name: "db", disks: ["absent"], source: null },
      { name: "app", disks: ["app", "data"], source: null },
    ];
    const preview = await vault.plans.preview({ plan: { ...plan, machines }, kind: "test" });
    expect(preview.faults.map(({ path, error }) => [path.join("."), error.code])).toEqual([
      ["machines.0.disks.0", "DISK_NOT_FOUND"],
      ["target", "TARGET_EXISTS"],
    ]);
    await expectCode(vault.plans.start({ plan: { ...plan, machines }, kind: "test" }), "DISK_NOT_FOUND");
    expect(await vault.plans.list()).toEqual([]);
    expect(await vault.failovers.list()).toEqual([]);
    for (const to of ["file:x.img", "nonsense"])
      await expectCode(vault.plans.start({ plan, kind: "test", to }), "INVALID_ARGUMENT");
    await expectCode(vault.plans.start({ plan, kind: "test", to: "instant:unix:x.sock" }), "TARGET_FAILED");
    for (const point of ["2", "0".repeat(32)])
      await expectCode(vault.plans.start({ plan, kind: "test", point }), "INVALID_ARGUMENT");
    await expectCode(vault.plans.start({ plan, kind: "test", to: "replica" }), "INVALID_ARGUMENT");
    await expectCode(vault.plans.start({ plan, kind: "test", to: `dir:${folder}/none` }), "TARGET_FAILED");
    await expectCode(vault.plans.start({ plan: { ...plan, target: null }, kind: "test" }), "INVALID_ARGUMENT");
  });

  test("refuses disks that another run has, and disks without a point", async () => {
    const other = await vault.failovers.start({ kind: "unplanned", disks: ["web"], to: `file:${join(folder, "o")}` });
    await expectCode(begin("unplanned"), "WRITER_ACTIVE");
    await vault.failovers.cancel({ run: other.run });
    const preview = await vault.plans.preview({ plan: shopPlan(folder), kind: "unplanned" });
    expect(preview).toMatchObject({
      faults: [],
      machines: [{ machine: "db" }, { machine: "web" }, { machine: "app" }],
    });
    expect(preview.machines[1]?.disks).toEqual([
      {
        disk: "web",
        sequence: 2,
        time: expect.any(String) as string,
        consistency: "crash",
        target: `file:${join(folder, "web.img")}`,
      },
    ]);
  });
});

describe("the points of a plan", () => {
  test("are the newest that every machine has, where they are to be common", async () => {
    const common = await commonSequences("data", "log");
    // Newer than the newest moment at which every machine has a point.
    for (const disk of ["web", "app"]) await vault.replicate({ disk, volume: sampleDisk(80_000, 9) });
    const plan = shopPlan(folder);
    const sequencesOf = ({
      machines,
    }: {
      readonly machines: readonly { readonly disks: readonly { readonly sequence: number }[] }[];
    }): number[][] => machines.map(({ disks }) => disks.map(({ sequence }) => sequence));
    const preview = await vault.plans.preview({ plan, kind: "test", point: "common" });
    expect(preview.faults).toEqual([]);
    expect(sequencesOf(preview)).toEqual([common, [2], [2]]);
    expect(preview.spreadMs).toBeGreaterThan(0);
    const done = await begin("test", plan, "common");
    expect(sequencesOf(done)).toEqual([common, [2], [2]]);
    expect(await vault.failovers.show(done.machines[0]?.run ?? "")).toMatchObject({ group: "database" });
    await vault.plans.cleanup({ run: done.run, environment });
    // A failover goes to the points that its plan has chosen, and chooses none again.
    const moved = await begin("unplanned", plan, "common");
    expect(sequencesOf(moved)).toEqual([common, [2], [2]]);
    await vault.plans.cancel({ run: moved.run, environment });
    // Every choice takes the common point of disks that have one.
    const latest = await vault.plans.preview({ plan, kind: "test", point: "latest-processed" });
    expect(sequencesOf(latest)).toEqual([common, [3], [3]]);
    const machines = [{ name: "db", disks: ["data", "web"], source: null }, ...plan.machines.slice(2)];
    const apart = await vault.plans.preview({ plan: { ...plan, machines }, kind: "test", point: "common" });
    expect(apart.faults).toMatchObject([{ path: ["machines", 0, "disks"], error: { code: "POINT_NOT_FOUND" } }]);
  });
});

/** Takes a point of two disks at one barrier, and gives its sequence numbers. */
async function commonSequences(...disks: readonly string[]): Promise<number[]> {
  const group = new Group("database");
  const policy = { crashConsistentFrequencyMs: 3_600_000 };
  const protections = [];
  for (const disk of disks) {
    const image = join(folder, `${disk}.live`);
    writeFileSync(image, contents.get(disk)?.[1] ?? "");
    protections.push(await vault.protect({ disk, image, stateFolder: join(folder, "state"), policy, group }));
  }
  await Promise.all(protections.map(async (protection) => await protection.point()));
  for (const protection of protections) await protection.stop({ drain: false });
  const newest = async (disk: string): Promise<number> =>
    (await vault.points(disk)).findLast((point) => point.group !== null)?.sequence ?? 0;
  return await Promise.all(disks.map(newest));
}

describe("a failover of a plan", () => {
  test("goes to other points, is committed, protected at its new place, and goes back", async () => {
    const done = await begin("unplanned", shopPlan(folder), "latest-processed");
    const { run } = done;
    expect(done.state).toBe("UnplannedFailoverCompleted");
    const older = new Date(Date.parse(done.machines[1]?.disks[0]?.time ?? "") - 1).toISOString();
    const changed = await vault.plans.changePoint({ run, point: older });
    expect(changed).toMatchObject({ state: "ChangeRecoveryPointCompleted", point: older });
    expect(holds("web", 1)).toBe(true);
    await expectCode(vault.plans.reprotect({ run }), "INVALID_ARGUMENT");
    expect(await vault.plans.commit({ run })).toMatchObject({ state: "CommitFailoverCompleted", leftovers: [] });
    await expectCode(vault.plans.cancel({ run }), "INVALID_ARGUMENT");
    await expectCode(vault.plans.reprotect({ run, listen: "unix:/x.sock" }), "INVALID_ARGUMENT");
    expect(await vault.plans.reprotect({ run })).toMatchObject({
      state: "Protected",
      health: "Normal",
      allowedOperations: ["Failback"],
      machines: [{ state: "Protected" }, { state: "Protected" }, { state: "Protected" }],
    });
    await expectCode(vault.plans.failback({ run, to: ["one"] }), "INVALID_ARGUMENT");
    const to = names.map((name) => join(folder, `${name}.old`));
    for (const path of to) writeFileSync(path, Buffer.alloc(80_000));
    const back = await vault.plans.failback({ run, to, environment });
    expect(back).toMatchObject({ kind: "failback", state: "PlannedFailoverCompleted", direction: "RecoveryToPrimary" });
    for (const name of names)
      expect(readFileSync(join(folder, `${name}.old`)).equals(readFileSync(join(folder, `${name}.img`))), name).toBe(
        true,
      );
    expect(await vault.plans.completeMigration({ run: back.run })).toMatchObject({ state: "MarkedForDeletion" });
  });

  test("of which one machine is committed by itself is not cancelled as a whole", async () => {
    const { run, machines } = await begin("unplanned");
    const [db, web] = machines;
    await vault.failovers.commit({ run: web?.run ?? "" });
    await expectCode(vault.plans.cancel({ run }), "INVALID_ARGUMENT");
    expect(images()).toHaveLength(4);
    expect(await vault.plans.show(run)).toMatchObject({
      machines: [{ state: "UnplannedFailoverCompleted" }, { state: "CommitFailoverCompleted" }, {}],
    });
    await vault.plans.commit({ run });
    expect(await vault.failovers.show(db?.run ?? "")).toMatchObject({ state: "CommitFailoverCompleted" });
  });

  test("is cancelled as a whole, also where a person is waited for, and the disks are free", async () => {
    const plan = shopPlan(folder);
    const groups = [
      { ...plan.groups[0], after: [{ kind: "manual", text: "go on?" }] },
      plan.groups[1],
    ] as Plan["groups"];
    const { run } = await begin("unplanned", { ...plan, groups });
    expect(images()).toEqual(["data.img", "log.img"]);
    expect(await vault.plans.cancel({ run, environment })).toMatchObject({ state: "Protected", leftovers: [] });
    expect(images()).toEqual([]);
    expect(await pins()).toEqual([]);
    expect(log()).toEqual(["before db", "cleanup"]);
    for (const disk of names) await vault.replicate({ disk, volume: sampleDisk(80_000, 3) });
  });

  test("stops at once when its job is cancelled, and goes on", async () => {
    const plan = shopPlan(folder);
    const slow = logged("", { command: "echo begun > begun; test -e go || sleep 60" });
    const begun = begin("unplanned", {
      ...plan,
      groups: [{ machines: ["db"], before: [slow], after: [] }, plan.groups[1]] as Plan["groups"],
    });
    const ended = expectCode(begun, "INTERRUPTED");
    await vi.waitFor(() => expect(existsSync(join(folder, "begun"))).toBe(true), { timeout: 20_000 });
    const [found] = await vault.plans.list();
    const run = found?.run ?? "";
    await expectCode(vault.plans.commit({ run }), "WRITER_ACTIVE");
    expect(await vault.plans.cancelJob({ run })).toMatchObject({ jobs: [{ state: "Cancelled" }] });
    await ended;
    await expectCode(vault.plans.cancelJob({ run }), "INVALID_ARGUMENT");
    writeFileSync(join(folder, "go"), "");
    expect(await vault.plans.resume({ run, environment })).toMatchObject({ state: "UnplannedFailoverCompleted" });
  }, 60_000);

  test("with local targets is worked on on its host only", async () => {
    const { run } = await begin("unplanned");
    vi.spyOn(os, "hostname").mockReturnValue("elsewhere");
    await expectCode(vault.plans.commit({ run }), "INVALID_ARGUMENT");
  });
});
