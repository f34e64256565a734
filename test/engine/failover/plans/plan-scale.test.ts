/** A plan of many machines on a vault in a folder: the work, its memory and its open files are bounded. */
import { readdirSync } from "node:fs";
import { afterAll, expect, test } from "vitest";
import type { Plan } from "../../../../engine/store/format/plan-run.ts";
import { openSink } from "../../../../sink/open.ts";
import { byDepth } from "../../../depth.ts";
import { closeModelVaults, contentOf, ModelDisk, openModelVault } from "../../../model-disk.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";

/** As many as a plan may have, of two disks each. */
const machines = byDepth(2, 100);
const descriptorsMax = 200;
const heapGrowthMax = 200 * 1024 * 1024;

afterAll(async () => {
  await closeModelVaults();
});

test(
  `${machines} machines of two disks are tested, cleaned up, and moved`,
  async () => {
    const folder = createFolder("plan-scale");
    const targets = createFolder("plan-scale-targets");
    await using sink = await openSink(`dir:${folder}`);
    const vault = await openModelVault(sink);
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
    let descriptors = 0;
    const count = (): number => readdirSync("/proc/self/fd").length;
    const before = { descriptors: count(), heap: process.memoryUsage().heapUsed };
    const watch = setInterval(() => {
      descriptors = Math.max(descriptors, count());
    }, 20);
    const done = await vault.plans.start({ plan, kind: "test" });
    expect(done.machines.every(({ state }) => state === "TestFailoverCompleted")).toBe(true);
    expect(readdirSync(targets).filter((name) => name.endsWith(".img"))).toHaveLength(2 * machines);
    expect(await vault.plans.cleanup({ run: done.run })).toMatchObject({ state: "None", successful: true });
    expect(readdirSync(targets)).toEqual([]);
    const { run } = await vault.plans.start({ plan, kind: "unplanned", point: "latest-processed" });
    await vault.plans.commit({ run });
    expect(await vault.plans.reprotect({ run })).toMatchObject({ state: "Protected", leftovers: [] });
    expect((await vault.plans.list())[0]?.machines).toHaveLength(machines);
    clearInterval(watch);
    expect(count()).toBeLessThanOrEqual(before.descriptors + 2);
    expect(descriptors).toBeGreaterThan(0);
    expect(descriptors - before.descriptors).toBeLessThan(descriptorsMax);
    expect(process.memoryUsage().heapUsed - before.heap).toBeLessThan(heapGrowthMax);
    await removeFolder(targets);
    await removeFolder(folder);
  },
  byDepth(60_000, 1_800_000),
);
