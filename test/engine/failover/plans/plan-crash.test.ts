/**
 * Runs of a plan that die at calls of the store: after `resume` the outcome is that of a run that nothing
 * interrupted, and after a cancel or a cleanup everything is as before.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, test } from "vitest";
import type { Vault } from "../../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../../sink/faults.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { byDepth, callsOf } from "../../../depth.ts";
import { closeModelVaults } from "../../../model-disk.ts";
import { removeFolder } from "../../../temporary-folder.ts";
import { combinations, endOf } from "../crash-rig.ts";
import { PlanSite, planDisks } from "./plan-site.ts";

const sweepMsMax: number = byDepth(120_000, 1_200_000);
const environment = { PATH: "/usr/bin:/bin" };

let site: PlanSite;
let vault: Vault;

beforeAll(async () => {
  site = await PlanSite.open();
  ({ vault } = site);
});

afterEach(async () => {
  await site.end();
});

afterAll(async () => {
  await closeModelVaults();
});

const start = async (kind: "test" | "unplanned"): Promise<string> =>
  (await vault.plans.start({ plan: site.plan(), kind, point: "latest-processed", environment })).run;

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
    work: async (run) => await vault.plans.changePoint({ run, point: site.older }),
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

async function setUp(verb: Verb): Promise<string> {
  site.begin();
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
    await site.checkUndone();
    return;
  }
  for (const disk of planDisks) {
    const expected = site.contents.get(disk)?.[verb.holds - 1] ?? Buffer.alloc(0);
    expect(readFileSync(join(site.folder, `${disk}.img`)).equals(expected), disk).toBe(true);
  }
  expect(await site.namesLeft()).toEqual([]);
}

describe.each(byDepth(verbs.slice(0, 1), verbs))("$name of a plan that dies", (verb) => {
  test(
    "at any call of the store goes on, or is given up",
    async () => {
      const counting = new FaultySink(new MemorySink({ store: site.memory }), []);
      const first = await setUp(verb);
      site.line.current = counting;
      await verb.work(first);
      site.reconnect();
      await checkOutcome(verb);
      let died = 0;
      for (const call of callsOf(1, counting.calls.length, 3, 8)) {
        for (const [effect, way] of combinations) {
          await removeFolder(site.folder);
          const run = await setUp(verb);
          site.line.current = new FaultySink(new MemorySink({ store: site.memory }), [
            { on: "any", when: call, fault: { kind: "crash", effect } },
          ]);
          const end = await endOf(verb.work(run));
          site.reconnect();
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
            await site.checkUndone();
          }
        }
      }
      expect(died).toBeGreaterThan(0);
    },
    sweepMsMax,
  );
});
