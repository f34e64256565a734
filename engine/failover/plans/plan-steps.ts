/**
 * Work of a plan's run: commands, and verbs on the failover runs of its machines.
 *
 * Each machine's run has its name before it is made, so after a crash the run is found, and what is
 * done of it is not done again. The chosen points are pinned under the names of these runs until
 * each has its targets.
 *
 * Invariant: what the document says of a step is never ahead of what has been done.
 */
import { setTimeout as delay } from "node:timers/promises";
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode, TidemarkError, throwIfAborted } from "../../errors.ts";
import { runCommand } from "../../replication/protection/hook-command.ts";
import type { PlanAction, PlanJob, PlanRunDocument, PlanRunMachine, PlanStep } from "../../store/format/plan-run.ts";
import type { RunDocument, RunOperation } from "../../store/format/run.ts";
import type { FailoverOptions, MachineOfPlan } from "../failover-options.ts";
import type { Failovers } from "../failovers.ts";
import { refused } from "../run-checks.ts";
import { isMoved, isReprotected, isServable } from "../run-facts.ts";
import { errorOf } from "../run-jobs.ts";
import { pinPoint, unpinPoints } from "../run-points.ts";
import { findRun } from "../run-store.ts";
import { beginningOf, hasEnded, transition } from "../run-table.ts";
import { servedImageOf, uriOfDisk } from "../served-run.ts";
import { materializeName } from "../target.ts";
import { changeJob } from "./plan-jobs.ts";

import type { HeldPlanRun, PlanPlace } from "./plan-store.ts";
import { targetOfMachine } from "./plan-target.ts";

/** Machines of a group that are worked on at the same time. */
const machinesAtOnce = 4;
const pinsAtOnce = 8;
/** What the instant targets of a plan hold of their points in memory, all together. */
const servedCacheBytes: number = 512 * 1024 * 1024;

type CommandAction = Extract<PlanAction, { readonly kind: "run" }>;

/** What the steps of one plan's run need. */
export interface PlanStepsParts {
  readonly place: PlanPlace & { readonly signal: AbortSignal };
  readonly failovers: Failovers;
  readonly held: HeldPlanRun;
  readonly options: FailoverOptions;
}

export class PlanSteps {
  readonly #parts: PlanStepsParts;
  readonly #options: FailoverOptions;
  #failure: TidemarkError | undefined;
  #bytesWritten = 0;
  #bytesRead = 0;

  constructor(parts: PlanStepsParts) {
    this.#parts = parts;
    this.#options = { ...parts.options, signal: parts.place.signal };
  }

  /** What ended the first step that failed; undefined: none did. */
  get failure(): TidemarkError | undefined {
    return this.#failure;
  }

  get moved(): { readonly bytesWritten: number; readonly bytesRead: number } {
    return { bytesWritten: this.#bytesWritten, bytesRead: this.#bytesRead };
  }

  /** Keeps the points that machines are going to get, also while the run waits for a person. */
  async pinPoints(): Promise<void> {
    const { plan, machines } = this.#document;
    const needed = machines.flatMap(({ name, run, points }) => {
      const disks = plan.machines.find((machine) => machine.name === name)?.disks ?? [];
      const isOpen = this.#job.steps.some(({ machine, state }) => machine === name && state === "NotStarted");
      return isOpen ? points.map(({ id }, index) => ({ run, id, disk: disks[index] ?? "" })) : [];
    });
    await forEachAtOnce(needed, pinsAtOnce, async ({ run, id, disk }) => {
      await pinPoint(this.#pinsOf(disk), run, id);
    });
  }

  /**
   * Does steps of one stage; a failure is noted in the document. Errors: INTERRUPTED, SEAT_LOST, those
   * of the store at the plan's run itself.
   */
  async carryOut(indexes: readonly number[]): Promise<void> {
    await forEachAtOnce(indexes, machinesAtOnce, async (index) => {
      const step = this.#job.steps[index];
      if (step?.action?.kind === "manual") await this.#swapStep(index, { state: "Waiting", startMs: Date.now() });
      else if (step !== undefined) await this.#carryOut(index, step);
    });
  }

  /** Serves the machines that have their targets and that no process serves. Gives how many can be served. */
  async serveMachines(): Promise<number> {
    const served = this.#document.machines.map(async ({ run }) => await this.#serve(run));
    return (await Promise.all(served)).filter(Boolean).length;
  }

  /** Gives whether the disks of a machine can be served. Errors: as `Failovers.serve`. */
  async #serve(run: string): Promise<boolean> {
    const { serve } = this.#options;
    const document = (await findRun(this.#parts.place, run))?.document;
    if (serve === undefined || document === undefined || !isServable(document)) return false;
    const disks = this.#document.machines.reduce((sum, { points }) => sum + points.length, 0);
    if ((await servedImageOf(document)) !== undefined) return true;
    // Notes that an agent serves the run from now on, or a command.
    await this.#parts.failovers.resume({ ...this.#options, run });
    await serve(run, Math.floor(servedCacheBytes / disks));
    return true;
  }

  /** Swaps the document for what `change` makes of it, one swap after the other. */
  async update(change: (document: PlanRunDocument) => PlanRunDocument): Promise<void> {
    await this.#parts.held.swap(change);
  }

  async #carryOut(index: number, step: PlanStep): Promise<void> {
    const { signal } = this.#parts.place;
    throwIfAborted(signal);
    const begun = { startMs: step.startMs ?? Date.now(), endMs: null, output: null, exitCode: null, error: null };
    await this.#swapStep(index, { state: "InProgress", tries: step.tries + 1, ...begun });
    const machine = this.#document.machines.find(({ name }) => name === step.machine);
    try {
      if (step.action?.kind === "run") await this.#run(index, step, step.action);
      else if (machine !== undefined) {
        await this.#operate(machine, step.tries > 0);
        if (this.#isStart) await this.#serve(machine.run);
      }
      await this.#swapStep(index, { state: "Succeeded", endMs: Date.now() });
    } catch (error) {
      // A crash test ends in an error that is none of ours: nothing is noted then, as after a kill.
      if (!(error instanceof TidemarkError) || hasCode(error, "SEAT_LOST")) throw error;
      const state = signal.aborted ? "Suspended" : "Failed";
      await this.#swapStep(index, { state, endMs: Date.now(), error: errorOf(error) });
      throwIfAborted(signal);
      this.#failure ??= failed(this.#document.run, index, step, error);
    }
  }

  /** Runs a command until it succeeds, as often as the action allows. Errors: HOOK_FAILED, INTERRUPTED. */
  async #run(index: number, step: PlanStep, action: CommandAction): Promise<void> {
    const { signal } = this.#parts.place;
    const { command, timeoutMs, retries, pauseMs } = action;
    const env = { ...this.#options.environment, ...(await this.#variablesOf(step)) };
    for (let tries = step.tries + 1; ; tries += 1) {
      const limit = AbortSignal.timeout(timeoutMs);
      const settings = { phase: "pre", command, cwd: this.#document.plan.folder, env } as const;
      const { exitCode, output } = await runCommand(settings, undefined, AbortSignal.any([signal, limit]));
      await this.#swapStep(index, { tries, exitCode, output });
      if (exitCode === 0) return;
      throwIfAborted(signal);
      if (tries <= step.tries + retries) {
        await delay(pauseMs, undefined, { signal }).catch(() => undefined);
        throwIfAborted(signal);
        continue;
      }
      const ending = exitCode === null ? "was ended by a signal" : `ended with exit code ${exitCode}`;
      const fact = limit.aborted ? `did not end within ${timeoutMs / 1000} s` : ending;
      throw new TidemarkError("HOOK_FAILED", `the command ${JSON.stringify(command)} ${fact}`, {
        remedy: `see its output with \`tidemark failover show ${this.#document.run}\``,
      });
    }
  }

  /** What a command gets in its environment: the run, and the disks of its group by their numbers. */
  async #variablesOf({ group, phase }: PlanStep): Promise<Readonly<Record<string, string>>> {
    const { run, kind, plan, direction, machines } = this.#document;
    const names = plan.groups[group - 1]?.machines ?? plan.machines.map(({ name }) => name);
    const variables: Record<string, string> = {
      TIDEMARK_PLAN: plan.name,
      TIDEMARK_RUN: run,
      TIDEMARK_OPERATION: this.#job.operation,
      TIDEMARK_PHASE: phase,
      TIDEMARK_DIRECTION: direction,
      TIDEMARK_TEST: kind === "test" ? "1" : "0",
      TIDEMARK_MACHINES: names.join(" "),
    };
    let disks = 0;
    for (const name of names) {
      const machine = machines.find((each) => each.name === name);
      const found = machine === undefined ? undefined : await findRun(this.#parts.place, machine.run);
      for (const [at, disk] of (plan.machines.find((each) => each.name === name)?.disks ?? []).entries()) {
        disks += 1;
        const member = found?.document.members[at];
        const point = member?.point ?? machine?.points[at];
        variables[`TIDEMARK_MACHINE_${disks}`] = name;
        variables[`TIDEMARK_DISK_${disks}`] = disk;
        if (point !== undefined) variables[`TIDEMARK_POINT_${disks}`] = point.id;
        if (member !== undefined) variables[`TIDEMARK_IMAGE_${disks}`] = materializeName(member.target);
        const uri = found === undefined ? null : uriOfDisk(found.document, disk);
        if (uri !== null) variables[`TIDEMARK_NBD_${disks}`] = uri;
      }
    }
    return { ...variables, TIDEMARK_DISKS: String(disks) };
  }

  /** Carries the job's operation out on a machine, or what is left of it. `isAgain`: it was tried before. */
  async #operate(machine: PlanRunMachine, isAgain: boolean): Promise<void> {
    const { operation } = this.#job;
    const { run } = machine;
    const found = (await findRun(this.#parts.place, run))?.document;
    if (this.#isStart) {
      if (found === undefined) await this.#start(machine);
      else if ("next" in transition(found.state, "Resume")) await this.#do("Resume", run);
      await this.#noteMachine(machine);
    } else if (isEnd(operation)) {
      if (found !== undefined && !hasEnded(found.state)) await this.#do(operation, run);
      await this.#unpin(machine);
    } else if (operation === "ChangePit") {
      const isThere = found?.members.every(({ point }, at) => point.id === machine.points[at]?.id);
      const isComplete = found?.state === "ChangeRecoveryPointCompleted";
      const isDone = isAgain && isThere === true && isComplete;
      if (!isDone) await this.#changePoint(machine);
      await this.#noteMachine(machine);
    } else if (found !== undefined && !isDoneOn(operation, found)) {
      await this.#do("next" in transition(found.state, operation) ? operation : "Resume", run);
    }
  }

  async #start(machine: PlanRunMachine): Promise<void> {
    const { failovers } = this.#parts;
    const { run, kind, plan, selector, target, ttlMs } = this.#document;
    const { name, back } = machine;
    const { disks = [], source = null } = plan.machines.find((each) => each.name === name) ?? {};
    const chosen = machine.points.map((point, at) => ({ disk: disks[at] ?? "", point }));
    const ofPlan: MachineOfPlan = { plan: run, run: machine.run, group: machine.group, chosen };
    const options = { ...this.#options, source };
    this.#count(
      kind === "failback" && back !== null
        ? await failovers.failbackMachine({ ...options, run: back.run, to: back.images }, ofPlan)
        : await failovers.startMachine(
            {
              ...options,
              kind: kind === "failback" ? "unplanned" : kind,
              disks,
              to: targetOfMachine(target, name),
              point: selector,
              ttlMs: ttlMs ?? undefined,
            },
            ofPlan,
          ),
    );
  }

  async #changePoint({ run, name, points }: PlanRunMachine): Promise<void> {
    const { plan, selector } = this.#document;
    const disks = plan.machines.find((each) => each.name === name)?.disks ?? [];
    const chosen = points.map((point, at) => ({ disk: disks[at] ?? "", point }));
    const { failovers } = this.#parts;
    this.#count(await failovers.changeMachine({ ...this.#options, run, point: selector }, chosen));
  }

  async #do(operation: RunOperation, run: string): Promise<void> {
    const { failovers } = this.#parts;
    const { discardPoints } = this.#document;
    const options = { ...this.#options, run };
    if (operation === "Commit") this.#count(await failovers.commit({ ...options, discardPoints }));
    else if (operation === "CancelFailover") this.#count(await failovers.cancel(options));
    else if (operation === "TestFailoverCleanup") this.#count(await failovers.cleanup(options));
    else if (operation === "ReverseReplicate") this.#count(await failovers.reprotect(options));
    else if (operation === "CompleteMigration") this.#count(await failovers.completeMigration(options));
    else this.#count(await failovers.resume(options));
  }

  #count({ bytesWritten, bytesRead }: { readonly bytesWritten: number; readonly bytesRead: number }): void {
    this.#bytesWritten += bytesWritten;
    this.#bytesRead += bytesRead;
  }

  /** Notes the points that a machine has got: its run may have chosen newer ones. */
  async #noteMachine(machine: PlanRunMachine): Promise<void> {
    const found = await findRun(this.#parts.place, machine.run);
    const points = found === undefined ? machine.points : found.document.members.map(({ point }) => point);
    await this.update((document) => ({
      ...document,
      machines: document.machines.map((each) => (each.run === machine.run ? { ...each, points } : each)),
    }));
    await this.#unpin(machine);
  }

  async #unpin({ name, run }: PlanRunMachine): Promise<void> {
    const { disks = [] } = this.#document.plan.machines.find((machine) => machine.name === name) ?? {};
    for (const disk of disks) await unpinPoints(this.#pinsOf(disk), run);
  }

  #pinsOf(disk: string): Parameters<typeof unpinPoints>[0] {
    return { ...this.#parts.place, disk, onNotice: this.#options.onNotice ?? ((): void => undefined) };
  }

  async #swapStep(index: number, changed: Partial<PlanStep>): Promise<void> {
    await this.update((document) =>
      changeJob(document, (job) => ({
        ...job,
        steps: job.steps.map((step, at) => (at === index ? { ...step, ...changed } : step)),
      })),
    );
  }

  /** Whether the job under way is the one that begins the run. */
  get #isStart(): boolean {
    return this.#job.operation === beginningOf(this.#document.kind).operation;
  }

  get #document(): PlanRunDocument {
    return this.#parts.held.document;
  }

  get #job(): PlanJob {
    return this.#document.jobs.at(-1) ?? { operation: "Resume", state: "Failed", startMs: 0, endMs: 0, steps: [] };
  }
}

/** Why a machine's run does not allow an operation; undefined: it does, or nothing is left to do. */
export function refusalOf(operation: RunOperation, found: RunDocument | undefined): TidemarkError | undefined {
  if (found === undefined || isDoneOn(operation, found)) return undefined;
  const outcome = transition(found.state, operation);
  if ("next" in outcome || (!isEnd(operation) && "next" in transition(found.state, "Resume"))) return undefined;
  return refused(found, operation, outcome.reason);
}

function isEnd(operation: RunOperation): boolean {
  return operation === "CancelFailover" || operation === "TestFailoverCleanup";
}

/** Whether nothing of an operation is left to do on a machine's run. */
function isDoneOn(operation: RunOperation, found: RunDocument): boolean {
  if (operation === "Commit") return isMoved(found);
  if (operation === "ReverseReplicate") return isReprotected(found);
  if (operation === "CompleteMigration") return found.state === "MarkedForDeletion";
  return isEnd(operation) && hasEnded(found.state) && !isMoved(found);
}

function failed(run: string, index: number, { machine }: PlanStep, cause: TidemarkError): TidemarkError {
  const what = machine === null ? "" : `, machine ${machine}`;
  const byHand = machine === null ? `, or with \`--step ${index + 1}\` when it is done by hand` : "";
  return new TidemarkError(cause.code, `step ${index + 1} of run ${run}${what}: ${cause.message}`, {
    remedy: `mend it, then go on with \`tidemark jobs resume ${run}\`${byHand}; \`tidemark failover show ${run}\` says what else can be done`,
    detail: cause.detail,
    cause,
  });
}
