/** Jobs in the document of a plan's run, and the errors of what is not possible: functions of it alone. */
import os from "node:os";
import { TidemarkError } from "../../errors.ts";
import { type PlanJob, type PlanRunDocument, planJobsMax } from "../../store/format/plan-run.ts";
import type { RunOperation } from "../../store/format/run.ts";
import { commandsOfOperations } from "../run-checks.ts";
import { stateOfPlan, stepsOf } from "./plan-table.ts";

const notesMax = 256;

/** Changes the newest job, which is the one under way. */
export function changeJob(document: PlanRunDocument, change: (job: PlanJob) => PlanJob): PlanRunDocument {
  const { jobs } = document;
  return { ...document, jobs: jobs.map((job, index) => (index === jobs.length - 1 ? change(job) : job)) };
}

/** Begins a job. What a dead process left of the one before ends here. */
export function withJob(document: PlanRunDocument, operation: RunOperation): PlanRunDocument {
  const { jobs } = document.jobs.at(-1)?.endMs === null ? endPlanJob(document, "Suspended") : document;
  const steps = stepsOf(document.plan, document.kind, operation);
  const job = { operation, state: "InProgress", startMs: Date.now(), endMs: null, steps } as const;
  return { ...document, jobs: [...jobs, job].slice(-planJobsMax) };
}

/** Ends the newest job, with the steps that are left of it. */
export function endPlanJob(
  document: PlanRunDocument,
  state: PlanRunDocument["jobs"][number]["state"],
): PlanRunDocument {
  return changeJob(document, (job) => ({
    ...job,
    state,
    endMs: Date.now(),
    steps: job.steps.map((step) => (step.state === "InProgress" ? { ...step, state: "Suspended" } : step)),
  }));
}

export function withNote(document: PlanRunDocument, text: string | undefined): PlanRunDocument {
  if (text === undefined) return document;
  return { ...document, notes: [...document.notes, { timeMs: Date.now(), text }].slice(-notesMax) };
}

export function refused(document: PlanRunDocument, operation: RunOperation, reason: string): TidemarkError {
  const { run } = document;
  const fact = `${operation} of run ${run} is not allowed in ${stateOfPlan(document)}: ${reason}`;
  return new TidemarkError("INVALID_ARGUMENT", fact, {
    remedy: `\`tidemark failover show ${run}\` says what is allowed`,
    detail: { run, operation },
  });
}

export function waits(
  { run }: PlanRunDocument,
  { step, text }: { readonly step: number; readonly text: string },
): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `step ${step} of run ${run} waits for a person: ${text}`, {
    remedy: `when it is done, type \`${commandsOfOperations.Resume} ${run} --step ${step}\``,
    detail: { run, step },
  });
}

/** Errors: INVALID_ARGUMENT when a person cannot have done the step. */
export function refuseStep({ run, jobs }: PlanRunDocument, number: number): void {
  const step = jobs.at(-1)?.steps[number - 1];
  if (step?.state === "Waiting" || (step?.state === "Failed" && step.action !== null)) return;
  const fact =
    step === undefined
      ? `run ${run} has no step ${number}`
      : `step ${number} of run ${run} is ${step.state}, and not to be done by hand`;
  throw new TidemarkError("INVALID_ARGUMENT", fact, {
    remedy: `\`tidemark failover show ${run}\` shows the steps`,
    detail: { run, step: number },
  });
}

/** Local targets and commands belong to the host of the run. Errors: INVALID_ARGUMENT. */
export function refuseElsewhere({ run, host, target }: PlanRunDocument): void {
  if (host === os.hostname().slice(0, 100) || target.startsWith("blob:")) return;
  throw new TidemarkError("INVALID_ARGUMENT", `the targets of run ${run} are on the host ${host}`, {
    remedy: `run the command on ${host}`,
    detail: { run, host },
  });
}
