/** Plans whose targets are instant: machines run at once, are served, and go on after the process. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeEach, expect, onTestFinished, test } from "vitest";
import { NbdVolume } from "../../../../engine/disk/nbd/nbd-volume.ts";
import type { ServedRun } from "../../../../engine/failover/served-run.ts";
import type { Plan } from "../../../../engine/store/format/plan-run.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { closeModelVaults, type ModelDisk, openModelVault, sampleDisk } from "../../../model-disk.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";
import { logged, shopPlan } from "./plan-rig.ts";

const names = ["data", "log", "web", "app"];
const environment = { PATH: "/usr/bin:/bin" };
let vault: Vault;
let disks: Map<string, ModelDisk>;
let folder: string;
let served: ServedRun[];

beforeEach(async () => {
  folder = createFolder("plan-instant");
  vault = await openModelVault(new MemorySink());
  disks = new Map(names.map((name, index) => [name, sampleDisk(100_000, index + 1)]));
  for (const [disk, volume] of disks) await vault.replicate({ disk, volume });
  served = [];
  onTestFinished(async () => {
    await unserve();
    await removeFolder(folder);
  });
});

afterAll(async () => {
  await closeModelVaults();
});

/** As a command does it, in the foreground. */
const serve = async (run: string, cacheBytes: number): Promise<void> => {
  expect(cacheBytes).toBe(128 * 2 ** 20);
  served.push(await vault.failovers.serve({ run, cacheBytes }));
};

/** The command has been ended. */
async function unserve(): Promise<void> {
  for (const run of served.splice(0)) await run.stop({ drain: false });
}

async function contentAt(uri: string): Promise<Buffer> {
  const volume = await NbdVolume.open(uri);
  try {
    const bytes = Buffer.alloc(await volume.sizeBytes());
    await volume.read(0, bytes);
    return bytes;
  } finally {
    await volume.close();
  }
}

async function expectServed(run: string): Promise<void> {
  const { machines } = await vault.plans.show(run);
  for (const { disk, nbd } of machines.flatMap((machine) => machine.disks))
    expect((await contentAt(nbd ?? "")).equals(disks.get(disk)?.bytes ?? Buffer.alloc(0)), disk).toBe(true);
}

const instant = (more: Partial<Plan> = {}): Plan => shopPlan(folder, { target: `instant:unix:${folder}`, ...more });

test("machines are served before the commands of their group, until the run is cleaned up", async () => {
  const groups: Plan["groups"] = [
    {
      machines: ["db"],
      before: [],
      after: [
        logged("$TIDEMARK_NBD_1 $TIDEMARK_NBD_2", { command: 'test -S db.sock && echo "$TIDEMARK_NBD_2" >>log' }),
      ],
    },
    { machines: ["web", "app"], before: [], after: [] },
  ];
  const { run, state } = await vault.plans.start({ plan: instant({ groups }), kind: "test", environment, serve });
  expect([state, served.length]).toEqual(["TestFailoverCompleted", 3]);
  expect(readFileSync(join(folder, "log"), "utf8")).toBe(`nbd+unix:///log?socket=${folder}/db.sock\n`);
  await expectServed(run);
  await expect(vault.plans.cleanup({ run, environment })).rejects.toMatchObject({ code: "WRITER_ACTIVE" });
  await unserve();

  // Another process serves them again, and only what none serves.
  await vault.plans.resume({ run, serve });
  await expectServed(run);
  await vault.plans.resume({ run, serve });
  expect(served).toHaveLength(3);
  await unserve();
  expect(await vault.plans.cleanup({ run, environment })).toMatchObject({ state: "None", leftovers: [] });
  expect(readdirSync(folder)).toEqual(["log"]);
});

test("a run that waits for a person is served meanwhile, and goes on with all of its machines", async () => {
  const plan = instant({
    groups: [
      { machines: ["db"], before: [], after: [{ kind: "manual", text: "go on?" }] },
      { machines: ["web", "app"], before: [], after: [] },
    ],
  });
  const { run, waiting } = await vault.plans.start({
    plan,
    kind: "unplanned",
    point: "latest-processed",
    environment,
    serve,
  });
  expect([waiting?.step, served.length]).toEqual([2, 1]);
  await unserve();
  expect(await vault.plans.resume({ run, serve })).toMatchObject({ waiting: { step: 2 } });
  expect(served).toHaveLength(1);
  await unserve();
  const done = await vault.plans.resume({ run, step: 2, environment, serve });
  expect([done.state, served.length]).toEqual(["UnplannedFailoverCompleted", 3]);
  await expectServed(run);
  // A commit leaves them served; afterwards they are protected where they are, and go back.
  await vault.plans.commit({ run });
  await unserve();
  expect(await vault.plans.reprotect({ run })).toMatchObject({ state: "Protected" });
  const to = names.map((name) => join(folder, `${name}.old`));
  for (const [index, path] of to.entries()) writeFileSync(path, Buffer.alloc(100_000, index));
  const back = await vault.plans.failback({ run, to, environment });
  expect(await vault.plans.resume({ run: back.run, step: 2, environment })).toMatchObject({
    state: "PlannedFailoverCompleted",
  });
  for (const [index, name] of names.entries())
    expect(readFileSync(to[index] ?? "").equals(disks.get(name)?.bytes ?? Buffer.alloc(0)), name).toBe(true);
});

test("other points are served anew, and a folder that is missing is refused before anything", async () => {
  disks.get("web")?.bytes.fill(9, 0, 5_000);
  await vault.replicate({ disk: "web", volume: disks.get("web") as ModelDisk });
  const nowhere = instant({ target: `instant:unix:${join(folder, "none")}` });
  await expect(vault.plans.start({ plan: nowhere, kind: "test", serve })).rejects.toMatchObject({
    code: "TARGET_FAILED",
  });
  expect(existsSync(join(folder, "none"))).toBe(false);
  for (const target of ["instant:tcp:127.0.0.1:1", `instant:unix:${folder},image=/x`])
    await expect(vault.plans.start({ plan: instant({ target }), kind: "test", serve })).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
  const options = { plan: instant(), kind: "unplanned", point: "latest-processed", environment } as const;
  const { run } = await vault.plans.start({ ...options, serve });
  await unserve();
  const point = String((await vault.points("app"))[0]?.time);
  await vault.plans.changePoint({ run, point, environment, serve });
  expect(served).toHaveLength(3);
  disks.get("web")?.bytes.set(sampleDisk(100_000, 3).bytes);
  await expectServed(run);
  await unserve();
  expect(await vault.plans.cancel({ run, environment })).toMatchObject({ state: "Protected", leftovers: [] });
});
