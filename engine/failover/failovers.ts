/**
 * Failovers of a vault's disks: the driver of the state machine in `run-table.ts`.
 *
 *     operation ─► transition ─► swap the run ─► effect of the state ─► swap the run ─► effect … until a settled state
 *
 * Each operation is a job of its run, and each effect a task of the job. Run and job are one document,
 * so no crash parts them. A process that dies leaves the job in progress and the run in a running
 * state; `resume` goes on from there.
 *
 * Invariant: the state in the vault is never ahead of what has been done.
 */
import os from "node:os";
import { watchedStore } from "../disk/source/head-watch.ts";
import { hasCode, TidemarkError } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import { groupDisksMax } from "../store/format/documents.ts";
import { runObjectName } from "../store/format/names.ts";
import type {
  RunDirection,
  RunDocument,
  RunError,
  RunJob,
  RunKind,
  RunMember,
  RunOperation,
  RunTask,
} from "../store/format/run.ts";
import { noteText, runJobsMax } from "../store/format/run.ts";
import { readClaim, refuseClaimed, refuseOtherRun } from "../store/points/failover-claim.ts";
import { Store } from "../store/store.ts";
import { Effects, type FailoverOptions } from "./effects.ts";
import { choosePoints, disksOfGroup } from "./point-choice.ts";
import { isReprotected, isServable } from "./run-facts.ts";
import { createRun, HeldRun, listRuns, readRun } from "./run-store.ts";
import { describeRun, type JobSummary, jobsOf, type RunDone, type RunSummary } from "./run-summary.ts";
import { beginningOf, effectOf, hasEnded, transition } from "./run-table.ts";
import { refuseServed, ServedRun, type ServeOptions, type ServingVault } from "./served-run.ts";
import { OwnedTarget, parseServing, parseTarget } from "./target.ts";

/** An ended run is remembered for so long. */
const rememberedMs: number = 90 * 24 * 60 * 60 * 1000;

/** How a run is begun. */
export interface StartFailoverOptions extends FailoverOptions {
  readonly kind: RunKind;
  /** Names of the disks, or of a group whose disks these are. */
  readonly disks?: readonly string[] | undefined;
  readonly group?: string | undefined;
  /**
   * `instant:unix:PATH`, `instant:tcp:HOST:PORT` (each with `,image=PATH`), `file:PATH`, `vhd:PATH`,
   * `dir:FOLDER`, `device:PATH` or `blob:PREFIX`.
   */
  readonly to: string;
  /**
   * `latest`, `latest-processed`, `latest-app`, `latest-crash`, `common`, a sequence number, an id or
   * an ISO time. Default: `latest`. A planned failover takes the last point.
   */
  readonly point?: string | undefined;
  /** Command that is run against each target; 0 means that it is good. */
  readonly check?: string | undefined;
  /** Command that stops what writes the source. */
  readonly shutdown?: string | undefined;
  /** Where the disks are written today. A planned failover needs it. */
  readonly source?: RunDocument["source"] | undefined;
  /** After this time a test is overdue. */
  readonly ttlMs?: number | undefined;
  readonly note?: string | undefined;
}

/** How an operation on a run works. */
export interface OperateOptions extends FailoverOptions {
  readonly run: string;
  readonly note?: string | undefined;
}

/** What failovers need of the vault that they belong to. */
interface FailoverVault extends ServingVault {
  /** Runs an operation that the vault's closing waits for. */
  track<Result>(start: () => Promise<Result>): Promise<Result>;
}

/** Runs of a vault. `Vault.failovers` gives it. */
export class Failovers {
  readonly #context: VaultContext;
  readonly #vault: FailoverVault;

  /** @internal */
  constructor(context: VaultContext, vault: FailoverVault) {
    this.#context = context;
    this.#vault = vault;
  }

  /**
   * Begins a run and works on it until it waits for an operation.
   *
   * @throws `INVALID_ARGUMENT`, `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `TARGET_EXISTS` before anything
   * has changed; `WRITER_ACTIVE` when another run has a disk; `HOOK_FAILED` when a check fails, and
   * what the work on the targets ends with. The run then says what can be done.
   */
  async start(options: StartFailoverOptions): Promise<RunDone> {
    return await this.#vault.track(async () => {
      const { kind, source = null, signal } = options;
      const place = { store: watchedStore(this.#context, options.onNotice), vault: this.#vaultId, signal };
      const group = options.group?.normalize("NFC");
      const named = options.disks?.map((disk) => disk.normalize("NFC")) ?? [];
      const disks = group === undefined ? [...new Set(named)] : await disksOfGroup(place, group);
      checkStart(options, disks);
      const selector = options.point ?? "latest";
      const targets = await parseTarget(options.to, disks, this.#context.sink);
      const chosen =
        kind === "planned"
          ? await choosePoints(place, disks, "latest", false)
          : await choosePoints(place, disks, selector, group !== undefined);
      let direction: RunDirection = "PrimaryToRecovery";
      for (const disk of disks) {
        const claim =
          kind === "test" ? await readClaim({ ...place, disk }) : await refuseOtherRun({ ...place, disk }, "");
        if (claim?.place != null) direction = "RecoveryToPrimary";
      }
      await this.#forgetOld(signal);
      const members = chosen.flatMap(({ disk, point }, index): RunMember[] => {
        const target = targets.members[index];
        const { sequence, id, timeMs, consistency, volumeBytes } = point;
        if (target === undefined) return [];
        return [{ disk, point: { sequence, id, timeMs, consistency, volumeBytes }, target, held: null }];
      });
      for (const { target } of members) await new OwnedTarget(target, "", this.#context.sink).refuseTaken();
      const createdMs = Date.now();
      const created = await createRun(place, (run) => ({
        vault: this.#vaultId,
        run,
        epoch: 0,
        worker: null,
        kind,
        direction,
        state: beginningOf(kind).state,
        host: os.hostname().slice(0, 100),
        group: group ?? null,
        selector,
        target: options.to,
        serving: targets.serving,
        check: options.check ?? null,
        shutdown: options.shutdown ?? null,
        source,
        discardPoints: false,
        createdMs,
        ttlMs: options.ttlMs ?? null,
        notes: options.note === undefined ? [] : [{ timeMs: createdMs, text: options.note }],
        members,
        jobs: [],
      }));
      return await this.#work(created.run, options, (document) =>
        withJob(document, beginningOf(kind).operation, document.state),
      );
    });
  }

  /** Takes the targets of a failover to another point, by differences where that is possible. */
  async changePoint(options: OperateOptions & { readonly point: string }): Promise<RunDone> {
    const { point: selector } = options;
    return await this.#operate("ChangePit", options, async (document) => {
      const place = {
        store: watchedStore(this.#context, options.onNotice),
        vault: this.#vaultId,
        signal: options.signal,
      };
      const disks = document.members.map(({ disk }) => disk);
      const chosen = await choosePoints(place, disks, selector, document.group !== null);
      const members = document.members.map((member, index): RunMember => {
        const { sequence, id, timeMs, consistency, volumeBytes } = chosen[index]?.point ?? member.point;
        const point = { sequence, id, timeMs, consistency, volumeBytes };
        // An instant target begins anew, also as the point that it has: nothing is copied for that.
        return { ...member, point, held: member.target.kind === "instant" ? null : member.held };
      });
      return { ...document, selector, members };
    });
  }

  /** Ends the choice of the point: the targets are the user's. `discardPoints` drops all but the newest point. */
  async commit(options: OperateOptions & { readonly discardPoints?: boolean | undefined }): Promise<RunDone> {
    const discardPoints = options.discardPoints === true;
    return await this.#operate("Commit", options, (document) => Promise.resolve({ ...document, discardPoints }));
  }

  /** Brings back the state before a failover: the targets go, and the disks are replicated again. */
  async cancel(options: OperateOptions): Promise<RunDone> {
    return await this.#operate("CancelFailover", options);
  }

  /**
   * Protects the disks of a committed failover at their new place, under their names: one point each,
   * by differences. From then on they are replicated from there, and from nowhere else. With `listen`
   * (`unix:PATH` or `tcp:HOST:PORT`) no point is taken here: `serve` then serves the disks there and
   * takes their points.
   */
  async reprotect(options: OperateOptions & { readonly listen?: string | undefined }): Promise<RunDone> {
    const { listen } = options;
    const asked = listen === undefined ? undefined : { listen: parseServing(listen), protects: true };
    return await this.#operate("ReverseReplicate", options, (document) =>
      Promise.resolve({ ...document, serving: asked ?? document.serving }),
    );
  }

  /** Removes what a test made, and ends it when nothing of it is left. */
  async cleanup(options: OperateOptions): Promise<RunDone> {
    return await this.#operate("TestFailoverCleanup", options);
  }

  /**
   * Goes on with a run that was interrupted, or that failed. Where no work is left and the run's disks
   * can be served, it changes nothing.
   */
  async resume(options: OperateOptions): Promise<RunDone> {
    const startedAt = performance.now();
    const { document } = await readRun(
      { store: this.#store, vault: this.#vaultId, signal: options.signal },
      options.run,
    );
    if (!isServable(document)) return await this.#operate("Resume", options);
    const summary = await describeRun(this.#context, document);
    return { ...summary, bytesWritten: 0, bytesRead: 0, elapsedMs: Math.round(performance.now() - startedAt) };
  }

  /**
   * Serves the disks of a run over NBD, at the address that the run names: instant targets, and disks
   * that `reprotect` was given an address for. Disks that are replicated from their targets are
   * protected meanwhile. Other operations on the run are possible, except those that change the
   * targets.
   *
   * @throws `INVALID_ARGUMENT` when the run serves nothing in its state; `WRITER_ACTIVE` when another
   * process serves it or works on it, or the disks have been failed over again; `TARGET_FAILED` when
   * an image is gone; `ACCESS_REFUSED` and `INVALID_ARGUMENT` for the address.
   */
  async serve(options: ServeOptions & { readonly run: string }): Promise<ServedRun> {
    const { run, signal } = options;
    return await this.#vault.track(async () => {
      const place = { store: this.#store, vault: this.#vaultId, signal };
      // No operation removes or remakes the images until they are locked.
      await using held = await HeldRun.take(place, run);
      const { document } = held;
      refuseElsewhere(document);
      if (!isServable(document)) throw notServed(document);
      const protects = isReprotected(document);
      if (protects)
        for (const { disk, target } of document.members) await refuseClaimed({ ...place, disk }, target.path);
      await refuseServed(document, `tidemark jobs resume ${run}`);
      return await ServedRun.open(this.#vault, document, protects, options);
    });
  }

  /** All runs, newest first. Throws DAMAGED, FORMAT_UNSUPPORTED, and the errors of the store. */
  async list(signal?: AbortSignal): Promise<RunSummary[]> {
    return await this.#vault.track(async () => {
      const runs = await listRuns({ store: this.#store, vault: this.#vaultId, signal });
      return await Promise.all(runs.map(async (document) => await describeRun(this.#context, document)));
    });
  }

  /** One run. Throws INVALID_ARGUMENT when there is none. */
  async show(run: string, signal?: AbortSignal): Promise<RunSummary> {
    return await this.#vault.track(async () => {
      const { document } = await readRun({ store: this.#store, vault: this.#vaultId, signal }, run);
      return await describeRun(this.#context, document);
    });
  }

  /** All jobs of all runs, newest first. */
  async jobs(signal?: AbortSignal): Promise<JobSummary[]> {
    return (await this.list(signal)).flatMap(jobsOf).sort((a, b) => (a.startTime < b.startTime ? 1 : -1));
  }

  async #operate(
    operation: RunOperation,
    options: OperateOptions,
    change: (document: RunDocument) => Promise<RunDocument> = (document) => Promise.resolve(document),
  ): Promise<RunDone> {
    const { note } = options;
    if (note !== undefined) checkNote(note);
    return await this.#vault.track(
      async () =>
        await this.#work(options.run, options, async (document) => {
          const outcome = transition(document.state, operation);
          if ("reason" in outcome) throw refused(document, operation, outcome.reason);
          refuseElsewhere(document);
          if (operation !== "Commit")
            await refuseServed(document, `${commandsOfOperations[operation]} ${document.run}`);
          const changed = await change(document);
          const notes = note === undefined ? changed.notes : [...changed.notes, { timeMs: Date.now(), text: note }];
          return withJob({ ...changed, notes: notes.slice(-notesMax) }, operation, outcome.next);
        }),
    );
  }

  /** Takes the run, lets `begin` decide its state and job, and works until a settled state. */
  async #work(
    run: string,
    options: FailoverOptions,
    begin: (document: RunDocument) => RunDocument | Promise<RunDocument>,
  ): Promise<RunDone> {
    const startedAt = performance.now();
    const place = { store: this.#store, vault: this.#vaultId, signal: options.signal };
    await using held = await HeldRun.take(place, run);
    await held.swap(await begin(held.document));
    const effects = new Effects(this.#context, held, options, this.#vault);
    for (let step = effectOf(held.document.state); step !== undefined; step = effectOf(held.document.state)) {
      await held.swap(withTask(held.document));
      try {
        await effects.carryOut(step.effect);
      } catch (error) {
        // A crash test ends in an error that is none of ours: nothing is noted then, as after a kill.
        if (!(error instanceof TidemarkError) || hasCode(error, "SEAT_LOST")) throw error;
        const isInterrupted = hasCode(error, "INTERRUPTED");
        const state = isInterrupted ? "Suspended" : "Failed";
        const ended = endTask(held.document, state, effects.takeCommands(), errorOf(error));
        await held.swap(endJob({ ...ended, state: isInterrupted ? ended.state : step.failed }, state));
        throw error;
      }
      await held.swap({ ...endTask(held.document, "Succeeded", effects.takeCommands(), null), state: step.done });
    }
    await held.swap(endJob(held.document, "Succeeded"));
    const { bytesWritten, bytesRead } = effects;
    const summary = await describeRun(this.#context, { ...held.document, worker: null });
    return { ...summary, bytesWritten, bytesRead, elapsedMs: Math.round(performance.now() - startedAt) };
  }

  /** Deletes the records of runs that ended long ago. */
  async #forgetOld(signal: AbortSignal | undefined): Promise<void> {
    const store = this.#store;
    for (const document of await listRuns({ store, vault: this.#vaultId, signal })) {
      const lastMs = document.jobs.at(-1)?.endMs ?? document.createdMs;
      const hasOthers = document.members.some(({ target }) => target.kind === "instant") && isReprotected(document);
      if (hasEnded(document.state) && !hasOthers && store.nowMs - lastMs > rememberedMs)
        await store.delete(runObjectName(document.run), { signal });
    }
  }

  get #store(): Store {
    return new Store(this.#context.sink);
  }

  get #vaultId(): string {
    return this.#context.document.vault;
  }
}

const notesMax = 256;

/** What a user types for an operation on a run, without the run. */
const commandsOfOperations: Readonly<Record<RunOperation, string>> = {
  TestFailover: "tidemark failover test",
  PlannedFailover: "tidemark failover planned",
  UnplannedFailover: "tidemark failover unplanned",
  TestFailoverCleanup: "tidemark failover cleanup",
  ChangePit: "tidemark failover change-point --point POINT",
  Commit: "tidemark failover commit",
  CancelFailover: "tidemark failover cancel",
  ReverseReplicate: "tidemark reprotect",
  Resume: "tidemark jobs resume",
};

function withJob(document: RunDocument, operation: RunOperation, state: RunDocument["state"]): RunDocument {
  const startMs = Date.now();
  // A job that a dead process left behind ends here: the new one does its work.
  const former = document.jobs.map(
    (job): RunJob => (job.endMs === null ? { ...job, state: "Suspended", endMs: startMs } : job),
  );
  const job: RunJob = { operation, state: "InProgress", startMs, endMs: null, tasks: [] };
  return { ...document, state, jobs: [...former, job].slice(-runJobsMax) };
}

function withTask(document: RunDocument): RunDocument {
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

function endTask(
  document: RunDocument,
  state: RunTask["state"],
  commands: { readonly output: string; readonly exitCode: number | null } | undefined,
  error: RunError | null,
): RunDocument {
  const { output = null, exitCode = null } = commands ?? {};
  return changeJob(document, (job) => ({
    ...job,
    tasks: job.tasks.map((task, index) =>
      index === job.tasks.length - 1 ? { ...task, state, endMs: Date.now(), output, exitCode, error } : task,
    ),
  }));
}

function endJob(document: RunDocument, state: RunJob["state"]): RunDocument {
  return changeJob(document, (job) => ({ ...job, state, endMs: Date.now() }));
}

/** Changes the newest job, which is the one under way. */
function changeJob(document: RunDocument, change: (job: RunJob) => RunJob): RunDocument {
  const { jobs } = document;
  return { ...document, jobs: jobs.map((job, index) => (index === jobs.length - 1 ? change(job) : job)) };
}

function errorOf({ code, message, remedy }: TidemarkError): RunError {
  const short = (text: string): string => text.replaceAll("\0", "").slice(0, 8192);
  return { code, message: short(message), remedy: remedy === undefined ? null : short(remedy) };
}

function checkStart(options: StartFailoverOptions, disks: readonly string[]): void {
  const wrong = (message: string, remedy: string): TidemarkError =>
    new TidemarkError("INVALID_ARGUMENT", message, { remedy });
  if (disks.length === 0 || disks.length > groupDisksMax)
    throw wrong(`a run has 1 to ${groupDisksMax} disks, not ${disks.length}`, "name disks or a group");
  if (options.kind === "planned" && (options.source ?? null) === null)
    throw wrong("a planned failover needs the source of the disk", "name its agent or its image");
  if (options.source?.kind === "image" && disks.length > 1)
    throw wrong("one image is the source of one disk", "let an agent protect the disks of a group");
  if (options.ttlMs !== undefined && !(Number.isSafeInteger(options.ttlMs) && options.ttlMs > 0))
    throw wrong("the time to live is no time", "give a duration such as 14d");
  if (options.note !== undefined) checkNote(options.note);
}

function checkNote(note: string): void {
  if (noteText.test(note)) return;
  throw new TidemarkError("INVALID_ARGUMENT", "a note is one line of 1 to 1000 characters", {
    remedy: "shorten it, and leave control characters out",
  });
}

function refused({ run, state }: RunDocument, operation: RunOperation, reason: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `${operation} of run ${run} is not allowed in ${state}: ${reason}`, {
    remedy: `\`tidemark failover show ${run}\` says what is allowed`,
    detail: { run, state, operation },
  });
}

function notServed({ run, state }: RunDocument): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `run ${run} serves no disk in ${state}`, {
    remedy: `\`tidemark failover show ${run}\` says what is allowed`,
    detail: { run, state },
  });
}

/** Local targets are seen on their host only: elsewhere they would look as if they were gone. */
function refuseElsewhere({ run, host, members }: RunDocument): void {
  const isHere = host === os.hostname().slice(0, 100);
  if (isHere || members.every(({ target }) => target.kind === "blob")) return;
  throw new TidemarkError("INVALID_ARGUMENT", `the targets of run ${run} are on the host ${host}`, {
    remedy: `run the command on ${host}`,
    detail: { run, host },
  });
}
