/**
 * Simulation of recovery plans on virtual time: commands that fail, hang and take an hour, machines whose
 * targets are taken, a store and a process that die at any call, and operators who let days pass. The run
 * ends, leaves nothing, and its times and health are those of the clock.
 */
import { randomInt } from "node:crypto";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test, vi } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { PlanRunSummary } from "../../../../engine/failover/plans/plan-summary.ts";
import type { Plan } from "../../../../engine/store/format/plan-run.ts";
import { CrashError, FaultySink } from "../../../../sink/faults.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { byDepth } from "../../../depth.ts";
import { numbersFrom } from "../../../engine-model.ts";
import { closeModelVaults } from "../../../model-disk.ts";
import { pass, useVirtualTime, wait } from "../../../virtual-time.ts";
import { endOf } from "../crash-rig.ts";
import { logged } from "./plan-rig.ts";
import { PlanSite } from "./plan-site.ts";

const minuteMs = 60_000;
const hourMs = 60 * minuteMs;
const dayMs = 24 * hourMs;
const timeoutMs: number = 10 * minuteMs;
const pauseMs: number = 5 * minuteMs;
const ttlMs: number = 14 * dayMs;

let random: () => number = numbersFrom(1);
const chance = (percent: number): boolean => random() % 100 < percent;

vi.mock(import("node:timers/promises"), async (importOriginal) => {
  const { wait: virtual } = await import("../../../virtual-time.ts"); // the mock is made before imports are there
  return { ...(await importOriginal()), setTimeout: virtual };
});

/** Commands of the plan on virtual time: most take minutes, some never end. */
vi.mock(import("../../../../engine/replication/protection/hook-command.ts"), async (importOriginal) => ({
  ...(await importOriginal()),
  runCommand: async ({ phase, command }, _, signal) => {
    const elapsedMs = chance(20) ? 2 * timeoutMs : random() % timeoutMs;
    await wait(elapsedMs);
    const isGood = !command.includes("risky") || chance(80);
    const exitCode = signal.aborted ? null : isGood ? 0 : 1;
    return { phase, command, exitCode, signal: signal.aborted ? "SIGTERM" : null, elapsedMs, output: "virtual" };
  },
}));

useVirtualTime();

let site: PlanSite;

beforeAll(async () => {
  site = await PlanSite.open();
});

afterEach(async () => {
  await site.end();
});

afterAll(async () => {
  await closeModelVaults();
});

function randomPlan(): Plan {
  const risky = logged("risky", {
    timeoutMs,
    pauseMs,
    retries: random() % 3,
    onFailure: chance(30) ? "continue" : "stop",
  });
  return site.plan({
    groups: [
      { machines: ["m-data"], before: [risky], after: chance(50) ? [{ kind: "manual", text: "go on?" }] : [] },
      { machines: ["m-web", "m-app"], before: [], after: [risky] },
    ],
    cleanup: [logged("cleanup", { timeoutMs: dayMs })],
  });
}

/** Works, with a crash at some call now and then. Errors of the run itself are what the operator sees. */
async function attempt(work: () => Promise<unknown>): Promise<void> {
  if (chance(40)) {
    site.line.current = new FaultySink(new MemorySink({ store: site.memory }), [
      { on: "any", when: 1 + (random() % 150), fault: { kind: "crash", effect: chance(50) ? "before" : "after" } },
    ]);
  }
  const end = await endOf(work());
  site.reconnect();
  if (end !== undefined && !(end instanceof CrashError) && !(end instanceof TidemarkError))
    throw new Error("this is no error of ours", { cause: end });
}

/** Fails unless steps have the state that their commands left, times that the clock allows, and an overdue drill is critical. */
function checkSteps(found: PlanRunSummary): void {
  const nowMs = Date.now();
  for (const { startTime, endTime, steps } of found.jobs) {
    const endMs = endTime === null ? nowMs : Date.parse(endTime);
    expect(Date.parse(startTime)).toBeLessThanOrEqual(endMs);
    expect(endMs).toBeLessThanOrEqual(nowMs);
    for (const step of steps) {
      if (step.kind === "run" && step.state === "Succeeded") expect(step.exitCode).toBe(0);
      if (step.startTime === null || step.endTime === null) continue;
      expect(Date.parse(step.startTime)).toBeLessThanOrEqual(Date.parse(step.endTime));
      expect(Date.parse(step.endTime)).toBeLessThanOrEqual(endMs);
    }
  }
  if (found.due !== null && nowMs > Date.parse(found.due)) expect(found.health).toBe("Critical");
}

/** One run with an operator that acts at random; fails unless it ends and leaves nothing. */
async function simulate(kind: "test" | "unplanned"): Promise<void> {
  const { plans, failovers } = site.vault;
  const plan = randomPlan();
  const mine = join(site.folder, "web.img");
  const isMine = (): boolean => existsSync(mine) && readFileSync(mine, "utf8") === "mine";
  for (let turn = 1; turn <= 60; turn += 1) {
    pass(chance(30) ? random() % (20 * dayMs) : random() % hourMs);
    const [found] = await plans.list();
    if (found === undefined) {
      await attempt(async () => await plans.start({ plan, kind, point: "latest-processed", ttlMs }));
      continue;
    }
    checkSteps(found);
    const { run, state, waiting } = found;
    if (state === "None" || state === "Protected") break;
    expect(found.allowedOperations, state).not.toEqual([]);
    // Another program takes a target that is not made yet, and gives it back.
    if (chance(20) && !existsSync(mine)) writeFileSync(mine, "mine");
    else if (isMine()) rmSync(mine);
    const step = waiting?.step ?? (found.jobs.at(-1)?.steps.findIndex((each) => each.state === "Failed") ?? -1) + 1;
    // An operator gives up at last.
    if (turn > 20 || chance(10))
      await attempt(async () => await plans[kind === "test" ? "cleanup" : "cancel"]({ run }));
    else if (chance(20)) await attempt(async () => await plans.changePoint({ run, point: "latest" }));
    else await attempt(async () => await plans.resume({ run, step: step > 0 && chance(60) ? step : undefined }));
  }
  const [over] = await plans.list();
  expect(["None", "Protected"]).toContain(over?.state);
  if (isMine()) rmSync(mine);
  await site.checkUndone();
  for (const { state } of await failovers.list()) expect(["None", "Protected"]).toContain(state);
}

test(
  "a run of a plan ends and leaves nothing, under random faults, commands and operators",
  async () => {
    const first = byDepth(1, randomInt(2 ** 31));
    for (let seed = first; seed < first + byDepth(8, 100); seed += 1) {
      random = numbersFrom(seed);
      site.begin();
      try {
        await simulate(seed % 2 === 0 ? "test" : "unplanned");
      } catch (error) {
        throw new Error(`seed ${seed}`, { cause: error });
      }
      await site.end();
    }
  },
  byDepth(120_000, 1_200_000),
);
