/**
 * Steps of a plan's run: pure functions from a job to what is done next, and to the state of the run.
 *
 *     start, failback    each group in order:  before, one by one  →  machines together  →  after, one by one
 *     cleanup, cancel    the groups backwards:  machines together;  then the plan's cleanup, one by one
 *     all other verbs    each group in order:  machines together
 *
 * The states are those of a single run, and so is what each of them allows: see `run-table.ts`.
 *
 * Invariant: a step begins only when every step of the stages before it is over.
 */
import type { Plan, PlanAction, PlanJob, PlanRunDocument, PlanStep } from "../../store/format/plan-run.ts";
import type { RunKind, RunOperation, RunState } from "../../store/format/run.ts";
import { beginningOf } from "../run-table.ts";

type StatesOfOperation = readonly [running: RunState, done: RunState, failed: RunState];

/** The states of the run while an operation is under way, and after it. */
const states: Readonly<Record<Exclude<RunOperation, "Resume">, StatesOfOperation>> = {
  TestFailover: ["TestFailoverInitiated", "TestFailoverCompleted", "TestFailoverFailed"],
  PlannedFailover: ["PlannedFailoverInitiated", "PlannedFailoverCompleted", "PlannedFailoverFailed"],
  UnplannedFailover: ["UnplannedFailoverInitiated", "UnplannedFailoverCompleted", "UnplannedFailoverFailed"],
  Failback: ["ResynchronizationInitiated", "PlannedFailoverCompleted", "ResynchronizationFailed"],
  TestFailoverCleanup: ["TestFailoverCleanupInitiated", "None", "TestFailoverCleanupInitiated"],
  ChangePit: ["ChangeRecoveryPointInitiated", "ChangeRecoveryPointCompleted", "ChangeRecoveryPointFailed"],
  Commit: ["CommitFailoverInProgressOnPrimary", "CommitFailoverCompleted", "CommitFailoverFailedOnPrimary"],
  CancelFailover: ["CancelFailoverInProgressOnRecovery", "Protected", "CancelFailoverFailedOnRecovery"],
  ReverseReplicate: ["ReprotectInitiated", "Protected", "ReprotectFailed"],
  CompleteMigration: ["DisablingProtection", "MarkedForDeletion", "DisablingFailed"],
};

/** The state of a plan's run. */
export function stateOfPlan({ kind, jobs }: Pick<PlanRunDocument, "kind" | "jobs">): RunState {
  const job = jobs.at(-1);
  if (job === undefined || job.operation === "Resume") return beginningOf(kind).state;
  const [running, done, failed] = states[job.operation];
  if (job.state === "Succeeded") return done;
  return job.state === "Failed" ? failed : running;
}

/** The steps of an operation, none of them begun. */
export function stepsOf(plan: Plan, kind: RunKind, operation: RunOperation): PlanStep[] {
  const steps: PlanStep[] = [];
  let stage = 0;
  const add = (group: number, phase: PlanStep["phase"], what: Pick<PlanStep, "action" | "machine">): void => {
    const empty = { state: "NotStarted", tries: 0, startMs: null, endMs: null } as const;
    steps.push({ stage, group, phase, ...what, ...empty, output: null, exitCode: null, error: null });
  };
  const addActions = (group: number, phase: PlanStep["phase"], actions: readonly PlanAction[]): void => {
    for (const action of actions) {
      stage += 1;
      add(group, phase, { action, machine: null });
    }
  };
  const isEnd = operation === "TestFailoverCleanup" || operation === "CancelFailover";
  const isStart = operation === beginningOf(kind).operation;
  const groups = plan.groups.map((group, index) => ({ ...group, number: index + 1 }));
  for (const { number, machines, before, after } of isEnd ? groups.toReversed() : groups) {
    if (isStart) addActions(number, "before", before);
    stage += 1;
    for (const machine of machines) add(number, "machines", { action: null, machine });
    if (isStart) addActions(number, "after", after);
  }
  if (isEnd) addActions(0, "cleanup", plan.cleanup);
  return steps;
}

/** What follows in a job: steps by their index, a wait for a person, or its end. */
type Next =
  | { readonly kind: "steps"; readonly steps: readonly number[] }
  | { readonly kind: "waits"; readonly step: number }
  | { readonly kind: "failed"; readonly step: number }
  | { readonly kind: "done" };

export function nextOf({ steps }: Pick<PlanJob, "steps">): Next {
  const stage = steps.find((step) => !isOver(step))?.stage;
  if (stage === undefined) return { kind: "done" };
  const open = [...steps.entries()].filter(([, step]) => step.stage === stage && !isOver(step));
  const ready = open.filter(([, { state }]) => state === "NotStarted").map(([index]) => index);
  if (ready.length > 0) return { kind: "steps", steps: ready };
  const [step = 0] = open.find(([, { state }]) => state === "Failed") ?? open[0] ?? [];
  return { kind: steps[step]?.state === "Waiting" ? "waits" : "failed", step };
}

/** Whether nothing of the step is left to do. */
export function isOver({ state, action }: PlanStep): boolean {
  if (state === "Succeeded" || state === "Confirmed") return true;
  return state === "Failed" && action?.kind === "run" && action.onFailure === "continue";
}

/** The job with everything that failed or was interrupted to be done again. */
export function retried(job: PlanJob): PlanJob {
  const again = (step: PlanStep): PlanStep =>
    isOver(step) || step.state === "Waiting" || step.state === "NotStarted" ? step : { ...step, state: "NotStarted" };
  return { ...job, state: "InProgress", endMs: null, steps: job.steps.map(again) };
}

/** The step that waits for a person, if one does: its number, from 1, and what the person does. */
export function waitingIn(job: PlanJob | undefined): { readonly step: number; readonly text: string } | null {
  const index = job?.steps.findIndex(({ state }) => state === "Waiting") ?? -1;
  const action = job?.steps[index]?.action;
  return action?.kind === "manual" ? { step: index + 1, text: action.text } : null;
}
