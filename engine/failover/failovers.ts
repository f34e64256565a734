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
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import { runObjectName } from "../store/format/names.ts";
import type { RunDirection, RunDocument, RunKind, RunMember, RunOperation } from "../store/format/run.ts";
import { readClaim, refuseOtherRun } from "../store/points/failover-claim.ts";
import { Store } from "../store/store.ts";
import { runRequestTiming } from "../timing.ts";
import { type DisableOptions, type DisableSummary, disableDisk, enableDisk } from "./disable.ts";
import { Effects, type FailoverOptions } from "./effects.ts";
import { type ChosenPoint, choosePoints, disksOfGroup } from "./point-choice.ts";
import { checkNote, checkSource, checkStart, noJob, refused, refuseElsewhere } from "./run-checks.ts";
import { endingDueMs, endJob, endTask, withJob, withTask } from "./run-jobs.ts";
import { requestStop, StopRequests } from "./run-request.ts";
import { createRun, HeldRun, isWorkedOn, listRuns, readRun } from "./run-store.ts";
import { describeRun, type JobSummary, jobsOf, type RunDone, type RunSummary } from "./run-summary.ts";
import { beginningOf, effectOf, hasEnded, transition } from "./run-table.ts";
import { ownedTargetOf, parseImages, parseTarget } from "./target.ts";

/** An ended run is remembered for so long. */
const rememberedMs: number = 90 * 24 * 60 * 60 * 1000;

/** How a run is begun. */
export interface StartFailoverOptions extends FailoverOptions {
  readonly kind: Exclude<RunKind, "failback">;
  /** Names of the disks, or of a group whose disks these are. */
  readonly disks?: readonly string[] | undefined;
  readonly group?: string | undefined;
  /** `file:PATH`, `vhd:PATH`, `dir:FOLDER`, `device:PATH` or `blob:PREFIX`. */
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
  /** What becomes of a failover that is neither committed nor cancelled in time. Default: nothing. */
  readonly ending?: RunDocument["ending"] | undefined;
}

/** How disks go back. */
export interface FailbackOptions
  extends FailoverOptions,
    Pick<StartFailoverOptions, "source" | "shutdown" | "note" | "ending"> {
  /** The run that took the disks to where they are. */
  readonly run: string;
  /** An image or block device for each disk, in the order of the run. It is written over. */
  readonly to: readonly string[];
}

/** How an operation on a run works. */
export interface OperateOptions extends FailoverOptions {
  readonly run: string;
  readonly note?: string | undefined;
}

/** Runs of a vault. `Vault.failovers` gives it. */
export class Failovers {
  readonly #context: VaultContext;
  readonly #track: <Result>(start: () => Promise<Result>) => Promise<Result>;

  /** @internal */
  constructor(context: VaultContext, track: <Result>(start: () => Promise<Result>) => Promise<Result>) {
    this.#context = context;
    this.#track = track;
  }

  /**
   * Begins a run and works on it until it waits for an operation.
   *
   * @throws `INVALID_ARGUMENT`, `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `TARGET_EXISTS` before anything
   * has changed; `WRITER_ACTIVE` when another run has a disk; `HOOK_FAILED` when a check fails, and
   * what the work on the targets ends with. The run then says what can be done.
   */
  async start(options: StartFailoverOptions): Promise<RunDone> {
    return await this.#track(async () => {
      const { kind, signal } = options;
      const place = { store: this.#store, vault: this.#vault, signal };
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
      for (const disk of disks) if (kind !== "test") await refuseOtherRun({ ...place, disk }, "");
      const direction = await directionOf(place, disks);
      const members = membersOf(chosen, targets);
      return await this.#begin({ ...options, selector, group, direction, members });
    });
  }

  /**
   * Takes the disks of a reprotected failover back to images or devices that are there, by
   * differences: synchronizes while the disks go on, then takes the last point and applies. Works
   * until the run waits for an operation.
   *
   * @throws as `start`; `INVALID_ARGUMENT` when the disks of `run` are not where it took them.
   */
  async failback(options: FailbackOptions): Promise<RunDone> {
    return await this.#track(async () => {
      const { signal, source = null } = options;
      const place = { store: this.#store, vault: this.#vault, signal };
      const { document: former } = await readRun(place, options.run);
      const disks = former.members.map(({ disk }) => disk);
      for (const disk of disks) {
        const claim = await refuseOtherRun({ ...place, disk }, "");
        if (former.direction === "PrimaryToRecovery" && claim?.place?.run === former.run) continue;
        throw refused(former, "Failback", `it has not taken disk ${JSON.stringify(disk)} to where it is`);
      }
      await refuseOtherFailback(place, disks);
      checkSource(source, disks);
      const targets = await parseImages(options.to, disks);
      const members = membersOf(await choosePoints(place, disks, "latest", false), targets).map(
        (member, index): RunMember => {
          const origin = former.members[index]?.origin ?? null;
          const isKnown = origin !== null && origin.path === member.target.path;
          return { ...member, held: isKnown ? { point: origin.point, signature: origin.signature } : null };
        },
      );
      const { group } = former;
      const common = { kind: "failback", direction: "RecoveryToPrimary", selector: "latest" } as const;
      return await this.#begin({ ...options, ...common, group: group ?? undefined, to: options.to.join(" "), members });
    });
  }

  /** Puts a new run into the vault and works on it. */
  async #begin(
    options: Omit<StartFailoverOptions, "disks" | "kind"> &
      Pick<RunDocument, "kind" | "selector" | "direction" | "members">,
  ): Promise<RunDone> {
    const { kind, members, direction, selector, group, signal, source = null } = options;
    if (options.note !== undefined) checkNote(options.note);
    await this.#forgetOld(signal);
    for (const member of members) await ownedTargetOf(this.#context, { run: "", kind }, member).refuseTaken();
    const createdMs = Date.now();
    const created = await createRun({ store: this.#store, vault: this.#vault, signal }, (run) => ({
      vault: this.#vault,
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
      check: options.check ?? null,
      shutdown: options.shutdown ?? null,
      source,
      discardPoints: false,
      ending: options.ending ?? null,
      createdMs,
      ttlMs: options.ttlMs ?? null,
      notes: options.note === undefined ? [] : [{ timeMs: createdMs, text: options.note }],
      members,
      jobs: [],
    }));
    return await this.#work(created.run, options, (document) =>
      withJob(document, beginningOf(kind).operation, document.state),
    );
  }

  /** Takes the targets of a failover to another point, by differences where that is possible. */
  async changePoint(options: OperateOptions & { readonly point: string }): Promise<RunDone> {
    const { point: selector } = options;
    return await this.#operate("ChangePit", options, async (document) => {
      const place = { store: this.#store, vault: this.#vault, signal: options.signal };
      const disks = document.members.map(({ disk }) => disk);
      const chosen = await choosePoints(place, disks, selector, document.group !== null);
      const members = document.members.map((member, index): RunMember => {
        const { sequence, id, timeMs, consistency, volumeBytes } = chosen[index]?.point ?? member.point;
        return { ...member, point: { sequence, id, timeMs, consistency, volumeBytes } };
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
   * by differences. From then on they are replicated from there, and from nowhere else.
   */
  async reprotect(options: OperateOptions): Promise<RunDone> {
    return await this.#operate("ReverseReplicate", options);
  }

  /**
   * Commits the failover if it is not committed, and disables the protection of its disks: nothing goes
   * on, and nothing goes back. The points stay.
   */
  async completeMigration(options: OperateOptions): Promise<RunDone> {
    return await this.#operate("CompleteMigration", options);
  }

  /** Removes what a test made, and ends it when nothing of it is left. */
  async cleanup(options: OperateOptions): Promise<RunDone> {
    return await this.#operate("TestFailoverCleanup", options);
  }

  /** Goes on with a run that was interrupted, or that failed. */
  async resume(options: OperateOptions): Promise<RunDone> {
    return await this.#operate("Resume", options);
  }

  /**
   * Stops the job that is under way, wherever its process is, or ends that of a dead process. The run
   * stays in the state whose work was stopped: it can be resumed, cancelled or cleaned up.
   *
   * @throws `INVALID_ARGUMENT` when no job is under way; `WRITER_ACTIVE` when its process does not
   * answer.
   */
  async cancelJob(options: { readonly run: string; readonly signal?: AbortSignal | undefined }): Promise<RunSummary> {
    return await this.#track(async () => {
      const { run, signal } = options;
      const place = { store: this.#store, vault: this.#vault, signal };
      const deadline = performance.now() + runRequestTiming.waitMsMax;
      for (let isAsked = false; ; isAsked = true) {
        const { document } = await readRun(place, run);
        if (document.jobs.at(-1)?.endMs !== null) {
          if (!isAsked) throw noJob(document);
          return await describeRun(this.#context, { ...document, worker: null });
        }
        try {
          await using held = await HeldRun.take(place, run);
          if (held.document.jobs.at(-1)?.endMs === null) await held.swap(endJob(held.document, "Cancelled"));
        } catch (error) {
          if (!hasCode(error, "WRITER_ACTIVE") || performance.now() > deadline) throw error;
          await requestStop(place, document);
          await delay(runRequestTiming.pollMs / 4, undefined, { signal }).catch(() => undefined);
          throwIfAborted(signal);
        }
      }
    });
  }

  /**
   * Commits or cancels the failovers whose time is over. What fails is a notice. Gives the runs that it
   * ended.
   */
  async carryOutDue(options: FailoverOptions): Promise<readonly string[]> {
    const place = { store: this.#store, vault: this.#vault, signal: options.signal };
    const ended: string[] = [];
    for (const document of await listRuns(place)) {
      const { run, ending } = document;
      const dueMs = endingDueMs(document);
      if (ending === null || dueMs === null || dueMs > Date.now() || (await isWorkedOn(document))) continue;
      const note = `${ending.action} after ${Math.round(ending.afterMs / 60_000)} min, as the run was told to`;
      try {
        if (ending.action === "commit") await this.commit({ ...options, run, note });
        else await this.cancel({ ...options, run, note });
        ended.push(run);
      } catch (error) {
        if (!(error instanceof TidemarkError) || error.code === "INTERRUPTED") throw error;
        const message = `the ${ending.action} of run ${run}, which is due, failed: ${error.message}`;
        options.onNotice?.({ code: "RUN_NOT_ENDED", message });
      }
    }
    return ended;
  }

  /**
   * Ends the protection of a disk, and says what is left where.
   *
   * @throws `DISK_NOT_FOUND`, `WRITER_ACTIVE` when a process or an open failover has the disk; when the
   * disk is purged, as `Vault.removeDisk` and `Vault.collect`.
   */
  async disable(options: DisableOptions): Promise<DisableSummary> {
    return await this.#track(async () => await disableDisk(this.#context, options));
  }

  /** Lets a disk be protected again that was disabled. Throws INVALID_ARGUMENT when it was not. */
  async enable(options: { readonly disk: string; readonly signal?: AbortSignal | undefined }): Promise<void> {
    await this.#track(async () => await enableDisk(this.#context, options.disk, options.signal));
  }

  /** All runs, newest first. Throws DAMAGED, FORMAT_UNSUPPORTED, and the errors of the store. */
  async list(signal?: AbortSignal): Promise<RunSummary[]> {
    return await this.#track(async () => {
      const runs = await listRuns({ store: this.#store, vault: this.#vault, signal });
      return await Promise.all(runs.map(async (document) => await describeRun(this.#context, document)));
    });
  }

  /** One run. Throws INVALID_ARGUMENT when there is none. */
  async show(run: string, signal?: AbortSignal): Promise<RunSummary> {
    return await this.#track(async () => {
      const { document } = await readRun({ store: this.#store, vault: this.#vault, signal }, run);
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
    return await this.#track(
      async () =>
        await this.#work(options.run, options, async (document) => {
          const outcome = transition(document.state, operation);
          if ("reason" in outcome) throw refused(document, operation, outcome.reason);
          refuseElsewhere(document);
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
    const place = { store: this.#store, vault: this.#vault, signal: options.signal };
    await using held = await HeldRun.take(place, run);
    await held.swap(await begin(held.document));
    await using requests = new StopRequests(place, held.document);
    const signal = options.signal === undefined ? requests.signal : AbortSignal.any([options.signal, requests.signal]);
    const effects = new Effects(this.#context, held, { ...options, signal });
    for (let step = effectOf(held.document.state); step !== undefined; step = effectOf(held.document.state)) {
      await held.swap(withTask(held.document));
      try {
        await requests.check();
        await effects.carryOut(step.effect);
      } catch (error) {
        // A crash test ends in an error that is none of ours: nothing is noted then, as after a kill.
        if (!(error instanceof TidemarkError) || hasCode(error, "SEAT_LOST")) throw error;
        const isInterrupted = hasCode(error, "INTERRUPTED");
        const stopped = requests.signal.aborted ? "Cancelled" : "Suspended";
        const state = isInterrupted ? stopped : "Failed";
        const ended = endTask(held.document, state, effects.takeCommands(), error);
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
    for (const document of await listRuns({ store, vault: this.#vault, signal })) {
      const lastMs = document.jobs.at(-1)?.endMs ?? document.createdMs;
      if (!hasEnded(document.state) || Date.now() - lastMs <= rememberedMs) continue;
      // A disk that is where a run took it goes back by what the run knows.
      if (!(await this.#isPlaceOf(document, signal))) await store.delete(runObjectName(document.run), { signal });
    }
  }

  async #isPlaceOf({ run, members }: RunDocument, signal: AbortSignal | undefined): Promise<boolean> {
    for (const { disk } of members) {
      const claim = await readClaim({ store: this.#store, vault: this.#vault, disk, signal });
      if (claim?.place?.run === run || claim?.former?.run === run) return true;
    }
    return false;
  }

  get #store(): Store {
    return new Store(this.#context.sink);
  }

  get #vault(): string {
    return this.#context.document.vault;
  }
}

const notesMax = 256;

interface VaultPlace {
  readonly store: Store;
  readonly vault: string;
  readonly signal: AbortSignal | undefined;
}

/** A second failback of a disk would prepare in vain: only one of them can stop the disk. */
async function refuseOtherFailback(place: VaultPlace, disks: readonly string[]): Promise<void> {
  for (const { run, kind, state, members } of await listRuns(place)) {
    const isOpen = kind === "failback" && !hasEnded(state) && members.some(({ disk }) => disks.includes(disk));
    if (!isOpen) continue;
    throw new TidemarkError("WRITER_ACTIVE", `run ${run} is taking disks of the run back already`, {
      remedy: `\`tidemark failover show ${run}\` says what can be done; \`tidemark failover cancel ${run}\` ends it`,
      detail: { run },
    });
  }
}

/** Disks of which a run has taken one to another place go the other way now. */
async function directionOf(place: VaultPlace, disks: readonly string[]): Promise<RunDirection> {
  for (const disk of disks) {
    const settled = (await readClaim({ ...place, disk }))?.place;
    if (settled == null) continue;
    const { document } = await readRun(place, settled.run);
    return document.direction === "PrimaryToRecovery" ? "RecoveryToPrimary" : "PrimaryToRecovery";
  }
  return "PrimaryToRecovery";
}

function membersOf(chosen: readonly ChosenPoint[], targets: readonly RunMember["target"][]): RunMember[] {
  return chosen.flatMap(({ disk, point }, index): RunMember[] => {
    const target = targets[index];
    const { sequence, id, timeMs, consistency, volumeBytes } = point;
    if (target === undefined) return [];
    return [{ disk, point: { sequence, id, timeMs, consistency, volumeBytes }, target, held: null, origin: null }];
  });
}
