/** What users see of a plan's run: its machines and steps, what may be done, and what it has reached. */
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type {
  Plan,
  PlanJob,
  PlanPhase,
  PlanRunDocument,
  PlanRunMachine,
  PlanStepState,
} from "../../store/format/plan-run.ts";
import type { JobState, RunDirection, RunDocument, RunKind, RunOperation, RunState } from "../../store/format/run.ts";
import type { Consistency } from "../../volume.ts";
import { isWorker } from "../held-document.ts";
import { isMoved } from "../run-facts.ts";
import { whereabouts } from "../run-members.ts";
import { findRun } from "../run-store.ts";
import { adviceOf, type JobSummary, type RunTaskSummary } from "../run-summary.ts";
import { allowedOperations, beginningOf, effectOf, hasEnded, refusedOperations } from "../run-table.ts";
import { leftoversOf } from "../run-target.ts";
import { uriOfDisk } from "../served-run.ts";
import { targetName } from "../target.ts";
import { spreadOf } from "./plan-points.ts";
import type { PlanPlace } from "./plan-store.ts";
import { stateOfPlan, waitingIn } from "./plan-table.ts";

/** A run of a recovery plan: a failover or test of several machines. */
export interface PlanRunSummary {
  /** Name of the run: 8 hexadecimal digits. */
  readonly run: string;
  /** Name of the plan. */
  readonly plan: string;
  readonly kind: RunKind;
  readonly state: RunState;
  readonly direction: RunDirection;
  readonly health: "Normal" | "Warning" | "Critical";
  /** The choice of points, in the words of the command. */
  readonly point: string;
  readonly target: string;
  readonly host: string;
  readonly created: string;
  /** When a test that is not cleaned up is overdue; null: never. */
  readonly due: string | null;
  readonly machines: readonly PlanRunMachineSummary[];
  /** How far the oldest and the newest point of all disks are apart. */
  readonly spreadMs: number;
  /** Age of the oldest point when the run began. */
  readonly rpoMs: number;
  /** From the beginning of the run to the end of its last step; null: it has not come that far. */
  readonly rtoMs: number | null;
  /** What the plan demands; null: nothing. */
  readonly objectives: { readonly rpoMs: number | null; readonly rtoMs: number | null };
  /** Whether the objectives were met; null: not known yet, or there are none. */
  readonly met: boolean | null;
  /** The step that waits for a person; null: none. */
  readonly waiting: { readonly step: number; readonly text: string } | null;
  readonly allowedOperations: readonly RunOperation[];
  readonly refusedOperations: readonly { readonly operation: RunOperation; readonly reason: string }[];
  /** What the machines' runs have made and not handed over, as far as this host can see. */
  readonly leftovers: readonly string[];
  /** What of all machines may be deleted now, and what must not be yet, and why. */
  readonly mayBeDeleted: readonly string[];
  readonly stillNeeded: readonly string[];
  /** Of a test: whether all steps and its cleanup succeeded; null while that is open. */
  readonly successful: boolean | null;
  readonly notes: readonly { readonly time: string; readonly text: string }[];
  readonly jobs: readonly PlanJobSummary[];
}

/** A machine of a plan's run. */
export interface PlanRunMachineSummary {
  readonly machine: string;
  /** Number of its group in the plan. */
  readonly group: number;
  /** Name of its own failover run. */
  readonly run: string;
  /** State of that run; null: it is not begun. */
  readonly state: RunState | null;
  readonly disks: readonly PlanRunDisk[];
  readonly rpoMs: number;
  /** From the beginning of the run until the machine's targets were complete; null: they are not. */
  readonly rtoMs: number | null;
  readonly met: boolean | null;
}

/** A disk of a machine. */
export interface PlanRunDisk {
  readonly disk: string;
  readonly sequence: number;
  /** Id of the point. */
  readonly point: string;
  readonly time: string;
  readonly consistency: Consistency;
  /** Null: the machine's run is not begun. */
  readonly target: string | null;
  /** NBD URI of an instant target while a command of the run is in the foreground; null: it has none. */
  readonly nbd: string | null;
}

/** An operation on a plan's run. */
export interface PlanJobSummary {
  /** Name of the job: that of the run and a number. */
  readonly job: string;
  readonly operation: RunOperation;
  readonly state: JobState;
  readonly startTime: string;
  readonly endTime: string | null;
  readonly steps: readonly PlanStepSummary[];
}

/** A step of such an operation: a machine, a command, or work of a person. */
export interface PlanStepSummary {
  /** From 1. */
  readonly step: number;
  /** Steps of one stage are done at the same time. */
  readonly stage: number;
  /** Number of the group; 0: none. */
  readonly group: number;
  readonly phase: PlanPhase;
  readonly kind: "machine" | "run" | "manual";
  /** The machine, the command, or what a person does. */
  readonly what: string;
  readonly state: PlanStepState;
  readonly tries: number;
  readonly startTime: string | null;
  readonly endTime: string | null;
  readonly output: string | null;
  readonly exitCode: number | null;
  readonly error: { readonly code: string; readonly message: string; readonly remedy: string | null } | null;
}

/** A plan's run after an operation. */
export interface PlanRunDone extends PlanRunSummary {
  /** Bytes written to the targets. */
  readonly bytesWritten: number;
  /** Bytes read from the store. */
  readonly bytesRead: number;
  readonly elapsedMs: number;
}

/** Errors: those of the store. */
export async function describePlanRun(
  context: VaultContext,
  place: PlanPlace,
  document: PlanRunDocument,
): Promise<PlanRunSummary> {
  const { run, kind, direction, plan, selector, target, host, createdMs, ttlMs, jobs } = document;
  const isBusy = await isWorker(document.worker);
  const state = stateOfPlan(document);
  const found = await Promise.all(document.machines.map(async (each) => (await findRun(place, each.run))?.document));
  const leftovers: string[] = [];
  for (const each of found)
    if (each !== undefined && !hasEnded(each.state) && !isMoved(each))
      leftovers.push(...(await leftoversOf(context, each)));
  const isEnded = hasEnded(state);
  const hasMoved = found.some((each) => each !== undefined && isMoved(each));
  const begun = found.filter((each) => each !== undefined);
  const places = await Promise.all(begun.map(async (each) => await whereabouts(place, each)));
  const advice = begun.map((each, index) => adviceOf(each, places[index] ?? { isThere: false, successor: null }));
  const job = jobs.at(-1);
  const dueMs = ttlMs === null || isEnded || kind !== "test" ? null : createdMs + ttlMs;
  const isStuck = !isBusy && !isEnded && (effectOf(state) !== undefined || job?.state === "Failed");
  const isCritical = (isStuck && waitingIn(job) === null) || (dueMs !== null && Date.now() > dueMs);
  const machines = document.machines.map((machine, index) => machineOf(document, machine, found[index]));
  const start = startOf(document);
  const rpoMs = Math.max(0, ...machines.map((machine) => machine.rpoMs));
  const rtoMs = start?.state === "Succeeded" && start.endMs !== null ? start.endMs - start.startMs : null;
  return {
    run,
    plan: plan.name,
    kind,
    state,
    direction,
    health: isCritical ? "Critical" : isEnded || hasMoved ? "Normal" : "Warning",
    point: selector,
    target,
    host,
    created: iso(createdMs),
    due: dueMs === null ? null : iso(dueMs),
    machines,
    spreadMs: spreadOf(document.machines.flatMap(({ points }) => points)),
    rpoMs,
    rtoMs,
    objectives: plan.objectives,
    met: isMet(plan, rpoMs, rtoMs),
    waiting: waitingIn(job),
    ...operationsOf(
      document,
      isBusy,
      places.some(({ isThere }) => isThere),
    ),
    leftovers,
    mayBeDeleted: distinct(advice.flatMap(({ mayBeDeleted }) => mayBeDeleted)),
    stillNeeded: distinct(advice.flatMap(({ stillNeeded }) => stillNeeded)),
    successful: kind !== "test" || !isEnded ? null : isGood(start) && leftovers.length === 0,
    notes: document.notes.map(({ timeMs, text }) => ({ time: iso(timeMs), text })),
    jobs: jobs.map((each, index) => describeJob(each, `${run}-${index + 1}`, isBusy)),
  };
}

function machineOf(
  { plan, ...document }: PlanRunDocument,
  { name, run, points }: PlanRunMachine,
  found: RunDocument | undefined,
): PlanRunMachineSummary {
  const { disks = [] } = plan.machines.find((machine) => machine.name === name) ?? {};
  const start = startOf({ plan, ...document });
  const step = start?.steps.find(({ machine }) => machine === name);
  const startMs = start?.startMs ?? document.createdMs;
  const rpoMs = Math.max(0, ...points.map(({ timeMs }) => startMs - timeMs));
  const rtoMs = step?.state === "Succeeded" && step.endMs !== null ? step.endMs - startMs : null;
  return {
    machine: name,
    group: plan.groups.findIndex(({ machines }) => machines.includes(name)) + 1,
    run,
    state: found?.state ?? null,
    disks: points.map(({ sequence, id, timeMs, consistency }, at) => {
      const member = found?.members[at];
      const target = member === undefined ? null : targetName(member.target);
      const disk = disks[at] ?? "";
      const nbd = found === undefined ? null : uriOfDisk(found, disk);
      return { disk, sequence, point: id, time: iso(timeMs), consistency, target, nbd };
    }),
    rpoMs,
    rtoMs,
    met: isMet(plan, rpoMs, rtoMs),
  };
}

function describeJob(each: PlanJob, job: string, isBusy: boolean): PlanJobSummary {
  return {
    job,
    operation: each.operation,
    state: each.state === "InProgress" && !isBusy ? "Suspended" : each.state,
    startTime: iso(each.startMs),
    endTime: isoOrNull(each.endMs),
    steps: each.steps.map(({ action, machine, startMs, endMs, ...step }, index) => ({
      step: index + 1,
      stage: step.stage,
      group: step.group,
      phase: step.phase,
      kind: action?.kind ?? "machine",
      what: action === null ? (machine ?? "") : action.kind === "run" ? action.command : action.text,
      state: step.state === "InProgress" && !isBusy ? "Suspended" : step.state,
      tries: step.tries,
      startTime: isoOrNull(startMs),
      endTime: isoOrNull(endMs),
      output: step.output,
      exitCode: step.exitCode,
      error: step.error,
    })),
  };
}

function operationsOf(
  document: PlanRunDocument,
  isBusy: boolean,
  isThere: boolean,
): Pick<PlanRunSummary, "allowedOperations" | "refusedOperations"> {
  const state = stateOfPlan(document);
  const goesBack = state === "Protected" && document.direction === "PrimaryToRecovery" && isThere;
  const allowed = [...allowedOperations(state), ...(goesBack ? (["Failback"] as const) : [])];
  if (!isBusy) {
    const refused = refusedOperations(state).filter(({ operation }) => !allowed.includes(operation));
    return { allowedOperations: allowed, refusedOperations: refused };
  }
  const reason = "a process works on the run";
  return { allowedOperations: [], refusedOperations: allowed.map((operation) => ({ operation, reason })) };
}

/** The jobs of a run, as those of single runs are listed. Steps that are not begun are left out. */
export function planJobsOf({ run, machines, jobs }: PlanRunSummary): JobSummary[] {
  const disks = machines.flatMap((machine) => machine.disks.map(({ disk }) => disk));
  const taskStates: Readonly<Partial<Record<PlanStepState, JobState>>> = {
    NotStarted: "Suspended",
    Waiting: "Suspended",
    Confirmed: "Succeeded",
  };
  return jobs.map(({ steps, ...job }) => ({
    ...job,
    run,
    disks,
    tasks: steps.flatMap(({ what, state, startTime, endTime, output, exitCode, error }): RunTaskSummary[] => {
      if (startTime === null) return [];
      const taskState = taskStates[state] ?? (state as JobState);
      return [{ name: what, state: taskState, startTime, endTime, output, exitCode, error, progress: null }];
    }),
  }));
}

/** The job that began the run. */
function startOf({ kind, jobs }: PlanRunDocument): PlanJob | undefined {
  return jobs.find(({ operation }) => operation === beginningOf(kind).operation);
}

function isGood(job: PlanJob | undefined): boolean {
  return job?.state === "Succeeded" && job.steps.every(({ state }) => state === "Succeeded" || state === "Confirmed");
}

function isMet({ objectives }: Plan, rpoMs: number, rtoMs: number | null): boolean | null {
  if (objectives.rpoMs === null && objectives.rtoMs === null) return null;
  if (objectives.rpoMs !== null && rpoMs > objectives.rpoMs) return false;
  if (objectives.rtoMs === null) return true;
  return rtoMs === null ? null : rtoMs <= objectives.rtoMs;
}

function distinct(texts: readonly string[]): string[] {
  return [...new Set(texts)];
}

function iso(timeMs: number): string {
  return new Date(timeMs).toISOString();
}

function isoOrNull(timeMs: number | null): string | null {
  return timeMs === null ? null : iso(timeMs);
}
