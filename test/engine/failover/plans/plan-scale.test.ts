/** A plan of many machines on a vault in a folder: the work, its memory and its open files are bounded. */
import { readdirSync } from "node:fs";
import { afterAll, expect, test } from "vitest";
import type { ServedRun } from "../../../../engine/failover/served-run.ts";
import type { Plan } from "../../../../engine/store/format/plan-run.ts";
import { openSink } from "../../../../sink/open.ts";
import { collectGarbage } from "../../../collect-garbage.ts";
import { byDepth } from "../../../depth.ts";
import { closeModelVaults, contentOf, ModelDisk, openModelVault } from "../../../model-disk.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";

/** Of two disks each: more than are worked on at once. */
const machines = byDepth(2, 20);
const descriptorsMax = 200;
const descriptorsOfDisk = 6;
const heapGrowthMax = 200 * 1024 * 1024;

afterAll(async () => {
  await closeModelVaults();
});

/** What `work` takes: open files at most, and the heap that it holds at its end, above those before. */
async function measured(work: () => Promise<void>): Promise<{ readonly descriptors: number; readonly heap: number }> {
  const count = (): number => readdirSync("/proc/self/fd").length;
  collectGarbage();
  const before = { descriptors: count(), heap: process.memoryUsage().heapUsed };
  let descriptors = 0;
  const watch = setInterval(() => {
    descriptors = Math.max(descriptors, count());
  }, 20);
  await work();
  clearInterval(watch);
  collectGarbage();
  expect(count()).toBeLessThanOrEqual(before.descriptors + 2);
  expect(descriptors).toBeGreaterThan(0);
  return { descriptors: descriptors - before.descriptors, heap: process.memoryUsage().heapUsed - before.heap };
}

test(
  `${machines} machines of two disks are tested, cleaned up, and moved`,
  async () => {
    const folder = createFolder("plan-scale");
    const targets = createFolder("plan-scale-targets");
    await using sink = await openSink(`dir:${folder}`);
    const instants = createFolder("plan-scale-instants");
    const stateFolder = createFolder("plan-scale-state");
    const vault = await openModelVault(sink, { stateFolder });
    const names = Array.from({ length: machines }, (_, index) => `m${index + 1}`);
    for (const [index, name] of names.entries()) {
      for (const part of ["a", "b"])
        await vault.replicate({ disk: `${name}-${part}`, volume: new ModelDisk(contentOf(32_768, index + 1)) });
    }
    const half = Math.ceil(machines / 2);
    const plan: Plan = {
      name: "large",
      machines: names.map((name) => ({ name, disks: [`${name}-a`, `${name}-b`], source: null })),
      groups: [
        { machines: names.slice(0, half), before: [], after: [] },
        { machines: names.slice(half), before: [], after: [] },
      ],
      cleanup: [],
      target: `dir:${targets}`,
      testTarget: null,
      objectives: { rpoMs: null, rtoMs: null },
      folder: targets,
      text: "",
    };
    const taken = await measured(async () => {
      const done = await vault.plans.start({ plan, kind: "test" });
      expect(done.machines.every(({ state }) => state === "TestFailoverCompleted")).toBe(true);
      expect(readdirSync(targets).filter((name) => name.endsWith(".img"))).toHaveLength(2 * machines);
      expect(await vault.plans.cleanup({ run: done.run })).toMatchObject({ state: "None", successful: true });
      expect(readdirSync(targets)).toEqual([]);
      const { run } = await vault.plans.start({ plan, kind: "unplanned", point: "latest-processed" });
      await vault.plans.commit({ run });
      expect(await vault.plans.reprotect({ run })).toMatchObject({ state: "Protected", leftovers: [] });
      expect((await vault.plans.list())[0]?.machines).toHaveLength(machines);
    });
    expect(taken.descriptors).toBeLessThan(descriptorsMax);
    expect(taken.heap).toBeLessThan(heapGrowthMax);
    const open = await measured(async () => {
      const served: ServedRun[] = [];
      const serve = async (run: string, cacheBytes: number): Promise<void> =>
        void served.push(await vault.failovers.serve({ run, cacheBytes }));
      const instant = { ...plan, target: `instant:unix:${instants}` };
      const { run } = await vault.plans.start({ plan: instant, kind: "test", point: "latest-processed", serve });
      expect(served.flatMap(({ disks }) => disks)).toHaveLength(2 * machines);
      await Promise.all(served.map(async (each) => await each.hydrated()));
      for (const each of served) await each.stop({ drain: false });
      expect(await vault.plans.cleanup({ run })).toMatchObject({ state: "None", successful: true });
      expect(readdirSync(instants)).toEqual([]);
    });
    // Each instant target has its image, its record of it and its tracking file open.
    expect(open.descriptors).toBeLessThan(descriptorsMax + 2 * machines * descriptorsOfDisk);
    expect(open.heap).toBeLessThan(heapGrowthMax);
    await removeFolder(instants);
    await removeFolder(targets);
    await removeFolder(folder);
    await removeFolder(stateFolder);
  },
  byDepth(60_000, 600_000),
);
