/**
 * What users see of a run: its state, what may be done and why the rest may not, what is left of it,
 * and what may be deleted now.
 */
import type { VaultContext } from "../pipeline/vault-context.ts";
import { shellWord } from "../shell-word.ts";
import type {
  EndingAction,
  JobState,
  RunDirection,
  RunDocument,
  RunKind,
  RunOperation,
  RunState,
} from "../store/format/run.ts";
import { Store } from "../store/store.ts";
import type { Consistency } from "../volume.ts";
import { isMoved, isServable } from "./run-facts.ts";
import { endingDueMs } from "./run-jobs.ts";
import { whereabouts } from "./run-members.ts";
import { isWorkedOn } from "./run-store.ts";
import { allowedOperations, effectOf, hasEnded, refusedOperations } from "./run-table.ts";
import { leftoversOf } from "./run-target.ts";
import { uriOfDisk } from "./served-run.ts";
import { targetName } from "./target.ts";

/** A failover or a test, and what may be done with it. */
export interface RunSummary {
  /** Name of the run: 8 hexadecimal digits. */
  readonly run: string;
  readonly kind: RunKind;
  readonly state: RunState;
  readonly direction: RunDirection;
  /** Where the disks are written. `Recovery` is the place that the first failover took them to. */
  readonly activeLocation: "Primary" | "Recovery";
  /** The run of a recovery plan of which this is one machine; null: of none. */
  readonly plan: string | null;
  readonly group: string | null;
  readonly disks: readonly RunDisk[];
  /** The point that was asked for, in the words of the command. */
  readonly point: string;
  readonly target: string;
  readonly allowedOperations: readonly RunOperation[];
  readonly refusedOperations: readonly { readonly operation: RunOperation; readonly reason: string }[];
  /** What the run has made and not handed over, as far as this host can see. */
  readonly leftovers: readonly string[];
  /** What may be deleted now. */
  readonly mayBeDeleted: readonly string[];
  /** What must not be deleted yet, and why. */
  readonly stillNeeded: readonly string[];
  /** The run that has taken the disks on from where this one took them; null: none. */
  readonly successor: string | null;
  /** What serves the disks of the run where `nbd` says; null: nothing has to. */
  readonly servedBy: "agent" | "command" | null;
  /** The host of local targets. */
  readonly host: string;
  readonly created: string;
  /** When a test that is not cleaned up is overdue; null: never. */
  readonly due: string | null;
  readonly overdue: boolean;
  /** What becomes of a failover that is neither committed nor cancelled in time; null: nothing. */
  readonly ending: { readonly action: EndingAction; readonly afterMs: number; readonly due: string | null } | null;
  readonly health: "Normal" | "Warning" | "Critical";
  /** Of a test: whether its check and its cleanup succeeded; null while that is open. */
  readonly successful: boolean | null;
  readonly notes: readonly { readonly time: string; readonly text: string }[];
  readonly jobs: readonly RunJobSummary[];
}

/** A disk of a run. */
export interface RunDisk {
  readonly disk: string;
  readonly sequence: number;
  /** Id of the point. */
  readonly point: string;
  readonly time: string;
  readonly consistency: Consistency;
  readonly target: string;
  /** True when the target holds the point, whole and durable; of an instant target, when it can be served. */
  readonly complete: boolean;
  /** NBD URI at which the disk is served while a command of the run is in the foreground; null: nowhere. */
  readonly nbd: string | null;
}

/**
 * An operation on a run. `Suspended`: it was interrupted, `Cancelled`: an operator stopped it. Both can
 * be resumed.
 */
export interface RunJobSummary {
  /** Name of the job: that of the run and a number. */
  readonly job: string;
  readonly operation: RunOperation;
  readonly state: JobState;
  readonly startTime: string;
  readonly endTime: string | null;
  readonly tasks: readonly RunTaskSummary[];
}

/** A step of a job. */
export interface RunTaskSummary {
  /** State of the run that it worked in; of a plan, the machine or what was done. */
  readonly name: string;
  readonly state: JobState;
  readonly startTime: string;
  readonly endTime: string | null;
  readonly output: string | null;
  readonly exitCode: number | null;
  readonly error: { readonly code: string; readonly message: string; readonly remedy: string | null } | null;
  /** How far the work on the present disk has come, as noted every few seconds; null: not known. */
  readonly progress: { readonly doneBytes: number; readonly totalBytes: number } | null;
}

/** A run after an operation, and what the operation read and wrote. */
export interface RunDone extends RunSummary {
  /** Bytes written to the targets. */
  readonly bytesWritten: number;
  /** Bytes read from the store. */
  readonly bytesRead: number;
  readonly elapsedMs: number;
}

/** A job of a list over all runs. */
export interface JobSummary extends RunJobSummary {
  readonly run: string;
  /** The disks of the run. */
  readonly disks: readonly string[];
}

export async function describeRun(context: VaultContext, document: RunDocument): Promise<RunSummary> {
  const { run, kind, direction, state, group, selector, target, members, host, createdMs, ttlMs, ending } = document;
  const isBusy = await isWorkedOn(document);
  const ended = hasEnded(state);
  const moved = isMoved(document);
  const where = await whereabouts({ store: new Store(context.sink), vault: context.document.vault }, document);
  const servable = isServable(document);
  const dueMs = ttlMs === null || ended || kind !== "test" ? null : createdMs + ttlMs;
  const overdue = dueMs !== null && Date.now() > dueMs;
  const lastState = document.jobs.at(-1)?.state;
  const isStuck = !isBusy && !ended && (effectOf(state) !== undefined || lastState === "Failed");
  return {
    run,
    kind,
    state,
    direction,
    activeLocation: moved === (direction === "PrimaryToRecovery") ? "Recovery" : "Primary",
    plan: document.plan ?? null,
    group,
    disks: members.map(({ disk, point, target: place, held }) => ({
      disk,
      sequence: point.sequence,
      point: point.id,
      time: iso(point.timeMs),
      consistency: point.consistency,
      target: targetName(place),
      complete: held?.point === point.id,
      nbd: servable ? uriOfDisk(document, disk) : null,
    })),
    point: selector,
    target,
    ...operationsOf(document, isBusy, where),
    leftovers: ended || moved ? [] : await leftoversOf(context, document),
    ...adviceOf(document, where),
    successor: where.successor,
    servedBy: !servable ? null : document.serving?.byAgent === true ? "agent" : "command",
    host,
    created: iso(createdMs),
    due: dueMs === null ? null : iso(dueMs),
    overdue,
    ending: ending && { ...ending, due: isoOrNull(endingDueMs(document)) },
    health: overdue || isStuck ? "Critical" : ended || moved ? "Normal" : "Warning",
    successful: kind !== "test" || !ended ? null : !checkFailed(document),
    notes: document.notes.map(({ timeMs, text }) => ({ time: iso(timeMs), text })),
    jobs: document.jobs.map((job, index) => ({
      job: `${run}-${index + 1}`,
      operation: job.operation,
      state: job.state === "InProgress" && !isBusy ? "Suspended" : job.state,
      startTime: iso(job.startMs),
      endTime: isoOrNull(job.endMs),
      tasks: job.tasks.map((task) => ({
        name: task.name,
        state: task.state === "InProgress" && !isBusy ? "Suspended" : task.state,
        startTime: iso(task.startMs),
        endTime: isoOrNull(task.endMs),
        output: task.output,
        exitCode: task.exitCode,
        error: task.error,
        progress: task.progress ?? null,
      })),
    })),
  };
}

/** What is allowed, and why the rest is not. A reprotected failover goes back by a run of its own. */
function operationsOf(
  document: RunDocument,
  isBusy: boolean,
  { isThere, successor }: Whereabouts,
): Pick<RunSummary, "allowedOperations" | "refusedOperations"> {
  const { state, direction } = document;
  const goesBack = state === "Protected" && direction === "PrimaryToRecovery" && isThere;
  const allowed = [...allowedOperations(state), ...(goesBack ? (["Failback"] as const) : [])];
  // Where no work is left, Resume serves the disks again.
  if (isServable(document)) allowed.push("Resume");
  if (!isBusy) {
    const refused = refusedOperations(state).filter(({ operation }) => !allowed.includes(operation));
    const hasGone = ({ operation }: { readonly operation: RunOperation }): boolean =>
      operation === "Failback" && successor !== null;
    return {
      allowedOperations: allowed,
      refusedOperations: refused.map((each) =>
        hasGone(each) ? { ...each, reason: `run ${successor} has the disks now` } : each,
      ),
    };
  }
  const reason = "a process works on the run";
  return { allowedOperations: [], refusedOperations: allowed.map((operation) => ({ operation, reason })) };
}

/** The jobs of a run, with its name. */
export function jobsOf({ run, jobs, disks }: RunSummary): JobSummary[] {
  return jobs.map((job) => ({ ...job, run, disks: disks.map(({ disk }) => disk) }));
}

function checkFailed({ jobs }: RunDocument): boolean {
  const checks = jobs.flatMap(({ tasks }) => tasks.filter(({ name }) => name === "TestFailoverCompleting"));
  return checks.at(-1)?.state !== "Succeeded";
}

type Whereabouts = Awaited<ReturnType<typeof whereabouts>>;

/** What may be deleted now, and what may not. */
export function adviceOf(
  document: RunDocument,
  { isThere, successor }: Whereabouts,
): Pick<RunSummary, "mayBeDeleted" | "stillNeeded"> {
  const { kind, state, members } = document;
  const run = document.plan ?? document.run;
  const disks = members.map(({ disk }) => JSON.stringify(disk)).join(", ");
  const targets = members.map(({ target }) => targetName(target)).join(", ");
  const devices = members
    .filter(({ target, held }) => target.kind === "device" && target.replica === undefined && held !== null)
    .map(({ target }) => targetName(target));
  const sources = `the source of ${disks}`;
  if (isMoved(document) && !isThere) {
    const other = `run ${successor} has the disks now: \`tidemark failover show ${successor}\` says what may be deleted`;
    return { mayBeDeleted: [], stillNeeded: [successor === null ? `${targets}: the disks may live there` : other] };
  }
  if (isMoved(document)) {
    const origins = members.flatMap(({ origin }) => (origin === null ? [] : [origin.path]));
    const former = `the former source of ${disks}${origins.length === 0 ? "" : `: ${origins.join(", ")}`}`;
    const present = `${targets}: the disks live there now`;
    if (state !== "MarkedForDeletion")
      return {
        mayBeDeleted: [former],
        stillNeeded: [present, "the vault's points: the disks are compared with them"],
      };
    const purges = members.map(
      ({ disk }) =>
        `the points of ${JSON.stringify(disk)}: \`tidemark disks disable --disk ${shellWord(disk)} --purge\``,
    );
    return { mayBeDeleted: [former, ...purges], stillNeeded: [present] };
  }
  if (hasEnded(state)) {
    return {
      mayBeDeleted: kind === "failback" ? [] : devices.map((device) => `the content of ${device}, which the run wrote`),
      stillNeeded: [`${sources}, which is replicated`],
    };
  }
  if (kind === "test")
    return {
      mayBeDeleted: [],
      stillNeeded: [`${sources}, which is replicated`, `${targets}, until \`tidemark failover cleanup ${run}\``],
    };
  return {
    mayBeDeleted: [],
    stillNeeded: [
      `${sources}, to which a cancel goes back`,
      targets,
      "the vault's points, from which another can be chosen",
    ],
  };
}

function iso(timeMs: number): string {
  return new Date(timeMs).toISOString();
}

function isoOrNull(timeMs: number | null): string | null {
  return timeMs === null ? null : iso(timeMs);
}
