/**
 * Runs of a plan that die at calls of the store, and a simulation of operators, commands and crashes at
 * random: after `resume` the outcome is that of a run that nothing interrupted, and after a cancel or a
 * cleanup everything is as before.
 */
import { existsSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { Plan } from "../../../../engine/store/format/plan-run.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../../sink/memory.ts";
import { byDepth, callsOf, runsOf, sampleOf } from "../../../depth.ts";
import { numbersFrom } from "../../../engine-model.ts";
import { closeModelVaults, openModelVault, redirected, sampleDisk, scribble } from "../../../model-disk.ts";
import { namesIn } from "../../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";
import { combinations, endOf } from "../crash-rig.ts";
import { logged } from "./plan-rig.ts";

const sweepMsMax: number = byDepth(120_000, 1_200_000);
const environment = { PATH: "/usr/bin:/bin" };
const disks = ["data", "web", "app"] as const;

const memory = new MemoryStore();
const line: { current: MemorySink | FaultySink } = { current: new MemorySink({ store: memory }) };
const contents = new Map<string, Buffer[]>();
let vault: Vault;
let replicated: MemorySnapshot;
let folder: string;
let older: string;

beforeAll(async () => {
  vault = await openModelVault(redirected(line));
  const volumes = disks.map((name, index) => ({ name, volume: sampleDisk(60_000, index + 1) }));
  for (const seed of [1, 2]) {
    for (const { name, volume } of volumes) {
      await vault.replicate({ disk: name, volume });
      contents.set(name, [...(contents.get(name) ?? []), Buffer.from(volume.bytes)]);
      scribble(volume, seed);
    }
  }
  // Every disk has its first point then, and none its second one.
  older = String((await vault.points("app"))[0]?.time);
  replicated = memory.snapshot();
});

afterEach(async () => {
  reconnect();
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
});

function plan(more: Partial<Plan> = {}): Plan {
  return {
    name: "small",
    machines: disks.map((disk) => ({ name: `m-${disk}`, disks: [disk], source: null })),
    groups: [
      { machines: ["m-data"], before: [], after: [logged("after")] },
      { machines: ["m-web", "m-app"], before: [], after: [] },
    ],
    cleanup: [logged("cleanup")],
    target: `dir:${folder}`,
    testTarget: null,
    objectives: { rpoMs: null, rtoMs: null },
    folder,
    text: "",
    ...more,
  };
}

const start = async (kind: "test" | "unplanned", given: Plan = plan()): Promise<string> =>
  (await vault.plans.start({ plan: given, kind, point: "latest-processed", environment })).run;
interface Verb {
  readonly name: string;
  /** Brings the run to where the verb begins; "" when there is none yet. */
  readonly before: () => Promise<string>;
  readonly work: (run: string) => Promise<unknown>;
  readonly state: string;
  /** The point that the images hold at the end; undefined: there are none. */
  readonly holds: number | undefined;
  /** What gives the run up; undefined: it cannot be given up any more. */
  readonly giveUp: "cleanup" | "cancel" | undefined;
}

const verbs: readonly Verb[] = [
  {
    name: "a test",
    before: async () => await Promise.resolve(""),
    work: async () => await start("test"),
    state: "TestFailoverCompleted",
    holds: 2,
    giveUp: "cleanup",
  },
  {
    name: "a cleanup",
    before: async () => await start("test"),
    work: async (run) => await vault.plans.cleanup({ run, environment }),
    state: "None",
    holds: undefined,
    giveUp: "cleanup",
  },
  {
    name: "an unplanned failover",
    before: async () => await Promise.resolve(""),
    work: async () => await start("unplanned"),
    state: "UnplannedFailoverCompleted",
    holds: 2,
    giveUp: "cancel",
  },
  {
    name: "a change of the points",
    before: async () => await start("unplanned"),
    work: async (run) => await vault.plans.changePoint({ run, point: older }),
    state: "ChangeRecoveryPointCompleted",
    holds: 1,
    giveUp: "cancel",
  },
  {
    name: "a cancel",
    before: async () => await start("unplanned"),
    work: async (run) => await vault.plans.cancel({ run, environment }),
    state: "Protected",
    holds: undefined,
    giveUp: "cancel",
  },
  {
    name: "a commit",
    before: async () => await start("unplanned"),
    work: async (run) => await vault.plans.commit({ run }),
    state: "CommitFailoverCompleted",
    holds: 2,
    giveUp: undefined,
  },
  {
    name: "a reprotection",
    before: async () => {
      const run = await start("unplanned");
      await vault.plans.commit({ run });
      return run;
    },
    work: async (run) => await vault.plans.reprotect({ run }),
    state: "Protected",
    holds: 2,
    giveUp: undefined,
  },
];

/** The process has died: its sessions are gone, and its calls end. */
function reconnect(): void {
  liveSessions().clear();
  line.current = new MemorySink({ store: memory });
}

async function setUp(verb: Verb): Promise<string> {
  memory.restore(replicated);
  reconnect();
  folder = createFolder("plan-crash");
  const run = await verb.before();
  jobsBefore = (await vault.plans.list())[0]?.jobs.length ?? 0;
  return run;
}

let jobsBefore = 0;

async function checkOutcome(verb: Verb): Promise<void> {
  const [after] = await vault.plans.list();
  expect(after?.state).toBe(verb.state);
  expect(after?.jobs.at(-1)?.state).toBe("Succeeded");
  if (verb.holds === undefined) {
    await checkUndone();
    return;
  }
  for (const disk of disks) {
    const expected = contents.get(disk)?.[verb.holds - 1] ?? Buffer.alloc(0);
    expect(readFileSync(join(folder, `${disk}.img`)).equals(expected), disk).toBe(true);
  }
  expect(await namesLeft()).toEqual([]);
}

/** Pins, which nothing needs any more. */
async function namesLeft(pattern: RegExp = /\/pins\//): Promise<string[]> {
  return (await namesIn(new MemorySink({ store: memory }), "disks/")).filter((name) => pattern.test(name));
}

async function checkUndone(): Promise<void> {
  expect(readdirSync(folder).filter((name) => name.includes(".img"))).toEqual([]);
  expect(await namesLeft(/pins|failover/)).toEqual([]);
}

describe.each(byDepth(verbs.slice(0, 1), verbs))("$name of a plan that dies", (verb) => {
  test(
    "at any call of the store goes on, or is given up",
    async () => {
      const counting = new FaultySink(new MemorySink({ store: memory }), []);
      const first = await setUp(verb);
      line.current = counting;
      await verb.work(first);
      reconnect();
      await checkOutcome(verb);
      let died = 0;
      for (const call of callsOf(1, counting.calls.length, 3)) {
        for (const [effect, way] of sampleOf(combinations, 2)) {
          await removeFolder(folder);
          const run = await setUp(verb);
          line.current = new FaultySink(new MemorySink({ store: memory }), [
            { on: "any", when: call, fault: { kind: "crash", effect } },
          ]);
          const end = await endOf(verb.work(run));
          reconnect();
          // Machines of a group go on at the same time, so the number of calls is not always the same.
          if (end !== undefined) {
            expect(end, `call ${call}, ${effect}`).toBeInstanceOf(CrashError);
            died += 1;
          }
          const [found] = await vault.plans.list();
          if (way === "resume") {
            const isBegun =
              found !== undefined && (run === "" ? found.jobs.length > 0 : found.jobs.length > jobsBefore);
            if (found === undefined || (!isBegun && run !== "")) await verb.work(run);
            else if (found.state !== verb.state) await vault.plans.resume({ run: found.run, environment });
            await checkOutcome(verb);
          } else if (verb.giveUp !== undefined && found !== undefined) {
            const isEnded = found.state === "None" || found.state === "Protected";
            if (!isEnded) await vault.plans[verb.giveUp]({ run: found.run, environment });
            await checkUndone();
          }
        }
      }
      expect(died).toBeGreaterThan(0);
    },
    sweepMsMax,
  );
});

describe("a run of a plan", () => {
  /** One run with an operator that acts at random; fails unless it ends and leaves nothing. */
  async function simulate(seed: number): Promise<void> {
    const random = numbersFrom(seed);
    const chance = (percent: number): boolean => random() % 100 < percent;
    memory.restore(replicated);
    reconnect();
    folder = createFolder("plan-simulation");
    const kind = chance(50) ? "test" : "unplanned";
    const failing = logged("", {
      command: "test -e good",
      retries: random() % 2,
      onFailure: chance(30) ? "continue" : "stop",
    });
    const groups: Plan["groups"] = [
      {
        machines: ["m-data"],
        before: chance(50) ? [failing] : [],
        after: chance(50) ? [{ kind: "manual", text: "go on?" }] : [],
      },
      { machines: ["m-web", "m-app"], before: [], after: chance(50) ? [failing] : [] },
    ];
    const given = plan({ groups });
    /** Works, with a crash at some call now and then. Errors of the run itself are what the operator sees. */
    const attempt = async (work: () => Promise<unknown>): Promise<void> => {
      if (chance(40)) {
        line.current = new FaultySink(new MemorySink({ store: memory }), [
          { on: "any", when: 1 + (random() % 150), fault: { kind: "crash", effect: chance(50) ? "before" : "after" } },
        ]);
      }
      const end = await endOf(work());
      reconnect();
      if (end !== undefined && !(end instanceof CrashError) && !(end instanceof TidemarkError))
        throw new Error("this is no error of ours", { cause: end });
    };
    const mine = join(folder, "web.img");
    for (let turn = 1; turn <= 60; turn += 1) {
      const [found] = await vault.plans.list();
      if (found === undefined) {
        await attempt(async () => await start(kind, given));
        continue;
      }
      const { run, state, waiting } = found;
      if (state === "None" || state === "Protected") break;
      expect(found.allowedOperations, state).not.toEqual([]);
      // Another program takes a target that is not made yet, and gives it back.
      if (chance(20) && !existsSync(mine)) writeFileSync(mine, "mine");
      else if (existsSync(mine) && readFileSync(mine, "utf8") === "mine") rmSync(mine);
      if (chance(50)) writeFileSync(join(folder, "good"), "");
      const step = waiting?.step ?? (found.jobs.at(-1)?.steps.findIndex((each) => each.state === "Failed") ?? -1) + 1;
      const giveUp = kind === "test" ? "cleanup" : "cancel";
      // An operator gives up at last.
      if (turn > 20 || chance(20)) await attempt(async () => await vault.plans[giveUp]({ run, environment }));
      else if (chance(20)) await attempt(async () => await vault.plans.changePoint({ run, point: "latest" }));
      else
        await attempt(
          async () => await vault.plans.resume({ run, environment, step: step > 0 && chance(60) ? step : undefined }),
        );
    }
    const [over] = await vault.plans.list();
    expect(["None", "Protected"]).toContain(over?.state);
    if (existsSync(mine) && readFileSync(mine, "utf8") === "mine") rmSync(mine);
    await checkUndone();
    for (const { state } of await vault.failovers.list()) expect(["None", "Protected"]).toContain(state);
  }

  test(
    "ends and leaves nothing, under random faults and operations",
    async () => {
      const seeds = Array.from({ length: runsOf(100) }, (_, index) => index + 1);
      for (const seed of sampleOf(seeds, 3)) {
        try {
          await simulate(seed);
        } catch (error) {
          throw new Error(`seed ${seed}`, { cause: error });
        }
        await removeFolder(folder);
      }
    },
    sweepMsMax,
  );
});
