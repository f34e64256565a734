/**
 * Jobs and tasks in the document of a run: pure functions, but for the notes of progress. A job is one
 * operation on the run, a task the work of one state.
 */
import type { TidemarkError } from "../errors.ts";
import type { OperationOptions, Progress } from "../progress.ts";
import type { RunDocument, RunError, RunJob, RunOperation, RunTask } from "../store/format/run.ts";
import { runJobsMax } from "../store/format/run.ts";
import type { HeldRun } from "./run-store.ts";
import { isPending } from "./run-table.ts";

/** How often the run in the vault says how far its work has come. */
const progressEveryMs = 5_000;

/** Begins a job. One that a dead process left behind ends here: the new one does its work. */
export function withJob(document: RunDocument, operation: RunOperation, state: RunDocument["state"]): RunDocument {
  const startMs = Date.now();
  const former = document.jobs.map(
    (job): RunJob => (job.endMs === null ? { ...job, state: "Suspended", endMs: startMs } : job),
  );
  const job: RunJob = { operation, state: "InProgress", startMs, endMs: null, tasks: [] };
  return { ...document, state, jobs: [...former, job].slice(-runJobsMax) };
}

/** Begins a task of the newest job: the work of the state that the run is in. */
export function withTask(document: RunDocument): RunDocument {
  const task: RunTask = {
    name: document.state,
    state: "InProgress",
    startMs: Date.now(),
    endMs: null,
    output: null,
    exitCode: null,
    error: null,
  };
  return changeJob(document, (job) => ({ ...job, tasks: [...job.tasks, task] }));
}

/** Passes reports on, and notes in the run every few seconds how far the task under way has come. */
export function noting(held: HeldRun, onProgress: OperationOptions["onProgress"]): (progress: Progress) => void {
  let notedAt = performance.now();
  return (progress) => {
    onProgress?.(progress);
    if (performance.now() - notedAt < progressEveryMs) return;
    notedAt = performance.now();
    const { doneBytes, totalBytes } = progress;
    const noted = (task: RunTask): RunTask =>
      task.endMs === null ? { ...task, progress: { doneBytes, totalBytes } } : task;
    const noteIn = (document: RunDocument): RunDocument =>
      changeJob(document, (job) => ({ ...job, tasks: job.tasks.map(noted) }));
    // A store that fails here fails at the next state, too.
    held.swap(noteIn).catch(() => undefined);
  };
}

/** Ends the newest task. */
export function endTask(
  document: RunDocument,
  state: RunTask["state"],
  commands: { readonly output: string; readonly exitCode: number | null } | undefined,
  failure: TidemarkError | null,
): RunDocument {
  const error = failure === null ? null : errorOf(failure);
  const { output = null, exitCode = null } = commands ?? {};
  return changeJob(document, (job) => ({
    ...job,
    tasks: job.tasks.map((task, index) =>
      index === job.tasks.length - 1 ? { ...task, state, endMs: Date.now(), output, exitCode, error } : task,
    ),
  }));
}

/** Ends the newest job, with a task that is left of it. */
export function endJob(document: RunDocument, state: RunJob["state"]): RunDocument {
  const endMs = Date.now();
  const tasksOf = ({ tasks }: RunJob): RunTask[] =>
    tasks.map((task) => (task.endMs === null ? { ...task, state, endMs } : task));
  return changeJob(document, (job) => ({ ...job, state, endMs, tasks: tasksOf(job) }));
}

/** When a failover that waits is committed or rolled back; null: an operator decides. */
export function endingDueMs({ state, ending, jobs }: RunDocument): number | null {
  const endMs = jobs.at(-1)?.endMs ?? null;
  return ending === null || endMs === null || !isPending(state) ? null : endMs + ending.afterMs;
}

/** Changes the newest job, which is the one under way. */
function changeJob(document: RunDocument, change: (job: RunJob) => RunJob): RunDocument {
  const { jobs } = document;
  return { ...document, jobs: jobs.map((job, index) => (index === jobs.length - 1 ? change(job) : job)) };
}

export function errorOf({ code, message, remedy }: TidemarkError): RunError {
  const short = (text: string): string => text.replaceAll("\0", "").slice(0, 8192);
  const isTold = remedy !== undefined && code !== "INTERRUPTED"; // it would begin a second run
  return { code, message: short(message), remedy: isTold ? short(remedy) : null };
}
