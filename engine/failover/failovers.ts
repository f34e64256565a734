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
import { runObjectName } from "../store/format/names.ts";
import type { RunDocument, RunMember, RunOperation } from "../store/format/run.ts";
import type { VaultPlace } from "../store/place.ts";
import { isSamePlace, readClaim, refuseClaimed, refuseOtherRun } from "../store/points/failover-claim.ts";
import { Store } from "../store/store.ts";
import { type DisableOptions, type DisableSummary, disableDisk, enableDisk } from "./disable.ts";
import { Effects } from "./effects.ts";
import type {
  FailbackOptions,
  FailoverOptions,
  MachineOfPlan,
  OperateOptions,
  StartFailoverOptions,
} from "./failover-options.ts";
import { choosePoints, disksOfGroup } from "./point-choice.ts";
import {
  checkNote,
  checkSource,
  checkStart,
  commandsOfOperations,
  noJob,
  notServed,
  refused,
  refuseElsewhere,
  refusePresent,
  refuseVhds,
  stopped,
} from "./run-checks.ts";
import { isReprotected, isServable, servedBy } from "./run-facts.ts";
import { endingDueMs, endJob, endTask, noting, withJob, withTask } from "./run-jobs.ts";
import { type DiskAtPoint, directionOf, membersOf, refuseOtherFailback } from "./run-members.ts";
import { StopRequests, stopJob } from "./run-request.ts";
import { createRun, findRun, HeldRun, isWorkedOn, listRuns, readRun } from "./run-store.ts";
import { describeRun, type JobSummary, jobsOf, type RunDone, type RunSummary } from "./run-summary.ts";
import { beginningOf, effectOf, hasEnded, transition } from "./run-table.ts";
import { refuseTakenTarget, targetsOf } from "./run-target.ts";
import { refuseServed, ServedRun, type ServeOptions, type ServingVault } from "./served-run.ts";
import { parseImages, parseServing } from "./target.ts";

/** An ended run is remembered for so long. */
const rememberedMs: number = 90 * 24 * 60 * 60 * 1000;

/** Runs of a vault. `Vault.failovers` gives it. */
export class Failovers {
  readonly #context: VaultContext;
  readonly #vault: ServingVault;
  readonly #track: <Result>(start: () => Promise<Result>) => Promise<Result>;

  /** @internal */
  constructor(
    context: VaultContext,
    vault: Omit<ServingVault, "stateFolder">,
    track: <Result>(start: () => Promise<Result>) => Promise<Result>,
  ) {
    this.#context = context;
    this.#vault = {
      stateFolder: context.stateFolder,
      instant: async (options) => await vault.instant(options),
      protect: async (options) => await vault.protect(options),
    };
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
    return await this.startMachine(options);
  }

  /** @internal As `start`, with what the run of a plan has decided. */
  async startMachine(options: StartFailoverOptions, machine?: MachineOfPlan): Promise<RunDone> {
    return await this.#track(async () => {
      const { kind } = options;
      const place = this.#watched(options);
      const group = options.group?.normalize("NFC");
      const named = options.disks?.map((disk) => disk.normalize("NFC")) ?? [];
      const disks = group === undefined ? [...new Set(named)] : await disksOfGroup(place, group);
      checkStart(options, disks);
      const selector = options.point ?? "latest";
      const targets = await targetsOf(this.#context, place, options.to, disks);
      const chosen =
        machine?.chosen ??
        (kind === "planned"
          ? await choosePoints(place, disks, "latest", false)
          : await choosePoints(place, disks, selector, group !== undefined));
      for (const disk of disks) if (kind !== "test") await refuseOtherRun({ ...place, disk }, "");
      const direction = await directionOf(place, disks);
      const members = membersOf(chosen, targets.members);
      const run = { ...options, selector, group, direction, members, serving: targets.serving };
      return await this.#begin(run, machine);
    });
  }

  /**
   * Takes the disks of a reprotected failover back to images or devices, by differences. Works
   * until the run waits for an operation.
   *
   * @throws as `start`; `INVALID_ARGUMENT` when the disks of `run` are not where it took them.
   */
  async failback(options: FailbackOptions): Promise<RunDone> {
    return await this.failbackMachine(options);
  }

  /** @internal As `failback`, for a machine of a plan's run. */
  async failbackMachine(options: FailbackOptions, machine?: MachineOfPlan): Promise<RunDone> {
    return await this.#track(async () => {
      const { signal, source = null } = options;
      const place = this.#place(signal);
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
      await refusePresent(former, targets);
      const members: RunMember[] = [];
      for (const member of membersOf(await choosePoints(place, disks, "latest", false), targets)) {
        const origin = former.members[members.length]?.origin ?? null;
        const isKnown = origin !== null && (await isSamePlace(origin.path, member.target.path));
        members.push({ ...member, held: isKnown ? { point: origin.point, signature: origin.signature } : null });
      }
      const { group } = former;
      const common = { kind: "failback", direction: "RecoveryToPrimary", selector: "latest", serving: null } as const;
      const to = options.to.join(" ");
      return await this.#begin({ ...options, ...common, group: group ?? undefined, to, members }, machine);
    });
  }

  /** Puts a new run into the vault and works on it. */
  async #begin(
    options: Omit<StartFailoverOptions, "disks" | "kind"> &
      Pick<RunDocument, "kind" | "selector" | "direction" | "members" | "serving">,
    machine: MachineOfPlan | undefined,
  ): Promise<RunDone> {
    const { kind, members, direction, selector, group, signal, source = null } = options;
    if (options.note !== undefined) checkNote(options.note);
    const place = this.#place(signal);
    place.store.keys?.assertReads();
    // The run of a plan has done that for all its machines.
    if (machine === undefined) await this.forgetOld(signal);
    for (const member of members) await refuseTakenTarget(this.#context, place, kind, member);
    const createdMs = Date.now();
    const created = await createRun(place, machine?.run, (run) => ({
      vault: place.vault,
      run,
      epoch: 0,
      worker: null,
      kind,
      direction,
      state: beginningOf(kind).state,
      host: os.hostname().slice(0, 100),
      ...(machine === undefined ? {} : { plan: machine.plan }),
      group: (machine === undefined ? group : machine.group) ?? null,
      selector,
      target: options.to,
      serving: servedBy(options.serving, options.server !== undefined),
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
    return await this.changeMachine(options);
  }

  /** @internal As `changePoint`, to the points that the run of a plan has chosen. */
  async changeMachine(
    options: OperateOptions & { readonly point: string },
    points?: readonly DiskAtPoint[],
  ): Promise<RunDone> {
    const { point: selector } = options;
    return await this.#operate("ChangePit", options, async (document) => {
      const place = this.#watched(options);
      const disks = document.members.map(({ disk }) => disk);
      const chosen = points ?? (await choosePoints(place, disks, selector, document.group !== null));
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
   * Protects the disks of a committed failover at their new place: one point each, by differences.
   * With `listen` (`unix:PATH` or `tcp:HOST:PORT`), `serve` serves the disks there and takes their
   * points.
   */
  async reprotect(options: OperateOptions & { readonly listen?: string | undefined }): Promise<RunDone> {
    const { listen } = options;
    const asked = listen === undefined ? undefined : { listen: await parseServing(listen), protects: true };
    return await this.#operate("ReverseReplicate", options, (document) => {
      refuseVhds(document);
      return Promise.resolve({ ...document, serving: asked ?? document.serving });
    });
  }

  /**
   * Commits the failover if it is not committed, and disables the protection of its disks. The
   * points stay.
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
    const startedAt = performance.now();
    return await this.#track(async () => {
      const place = this.#place(options.signal);
      const { document } = await readRun(place, options.run);
      if (!isServable(document)) return await this.#operate("Resume", options);
      await this.#serveBy(document, options);
      const summary = await describeRun(this.#context, document);
      return { ...summary, bytesWritten: 0, bytesRead: 0, elapsedMs: Math.round(performance.now() - startedAt) };
    });
  }

  /**
   * Serves the disks of a run over NBD: instant targets, and disks that `reprotect` was given an
   * address for, which are protected meanwhile.
   *
   * @throws `INVALID_ARGUMENT` when the run serves nothing in its state; `WRITER_ACTIVE` when another
   * process serves it or works on it, or the disks have been failed over again; `TARGET_FAILED` when
   * an image is gone; `ACCESS_REFUSED` and `INVALID_ARGUMENT` for the address.
   */
  async serve(options: ServeOptions & { readonly run: string }): Promise<ServedRun> {
    const { run, signal } = options;
    return await this.#track(async () => {
      const place = this.#place(signal);
      // No operation removes or remakes the images until they are locked.
      await using held = await HeldRun.take(place, run);
      const { document } = held;
      refuseElsewhere(document);
      if (!isServable(document)) throw notServed(document);
      const protects = isReprotected(document);
      if (protects)
        for (const { disk, target } of document.members) await refuseClaimed({ ...place, disk }, target.path);
      await refuseServed(document, `tidemark jobs resume ${run}`);
      const isThere = async (): Promise<boolean> => (await findRun({ ...place, signal: undefined }, run)) !== undefined;
      return await ServedRun.open(this.#vault, document, protects, { ...options, isThere }).catch((error: unknown) => {
        throw error instanceof TidemarkError ? stopped(run, error) : error;
      });
    });
  }

  /**
   * Stops the job that is under way, wherever its process is. The run can be resumed, cancelled or
   * cleaned up.
   *
   * @throws `INVALID_ARGUMENT` when no job is under way; `WRITER_ACTIVE` when its process does not
   * answer.
   */
  async cancelJob(options: { readonly run: string; readonly signal?: AbortSignal | undefined }): Promise<RunSummary> {
    return await this.#track(async () => {
      const { run, signal } = options;
      const place = this.#place(signal);
      const isOpen = ({ jobs }: RunDocument): boolean => jobs.at(-1)?.endMs === null;
      const read = async (): Promise<RunDocument> => (await readRun(place, run)).document;
      const wasOpen = await stopJob(
        place,
        async () => await read().then((document) => (isOpen(document) ? document : undefined)),
        async () => {
          await using held = await HeldRun.take(place, run);
          if (isOpen(held.document)) await held.swap(endJob(held.document, "Cancelled"));
        },
      );
      const document = await read();
      if (!wasOpen) throw noJob(document);
      return await describeRun(this.#context, { ...document, worker: null });
    });
  }

  /**
   * Commits or cancels the failovers whose time is over. What fails is a notice. Gives the runs that it
   * ended.
   */
  async carryOutDue(options: FailoverOptions): Promise<readonly string[]> {
    const place = this.#place(options.signal);
    const ended: string[] = [];
    const isDue = (document: RunDocument): boolean => (endingDueMs(document) ?? Infinity) <= Date.now();
    for (const { run } of (await listRuns(place)).filter(isDue)) {
      // The ends of other runs may have taken long.
      const { document } = (await findRun(place, run)) ?? {};
      if (document?.ending == null || !isDue(document) || (await isWorkedOn(document))) continue;
      const { ending } = document;
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
      const runs = await listRuns(this.#place(signal));
      return await Promise.all(runs.map(async (document) => await describeRun(this.#context, document)));
    });
  }

  /** One run. Throws INVALID_ARGUMENT when there is none. */
  async show(run: string, signal?: AbortSignal): Promise<RunSummary> {
    return await this.#track(async () => {
      const { document } = await readRun(this.#place(signal), run);
      return await describeRun(this.#context, document);
    });
  }

  /** All jobs of all runs, newest first. */
  async jobs(signal?: AbortSignal): Promise<JobSummary[]> {
    return (await this.list(signal)).flatMap(jobsOf).sort((a, b) => (a.startTime < b.startTime ? 1 : -1));
  }

  /** Notes in a run that is only to be served whether an agent does it from now on. */
  async #serveBy({ run, serving }: RunDocument, { server, signal }: FailoverOptions): Promise<void> {
    const next = servedBy(serving, server !== undefined);
    if (next === serving) return;
    const place = this.#place(signal);
    await using held = await HeldRun.take(place, run);
    await refuseServed(held.document, `tidemark jobs resume ${run}`);
    await held.swap({ ...held.document, serving: next });
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
          if (operation !== "Commit") {
            await options.server?.release(document.run);
            await refuseServed(document, `${commandsOfOperations[operation]} ${document.run}`);
          }
          const given = await change(document);
          const isAgent = operation === "Commit" ? given.serving?.byAgent === true : options.server !== undefined;
          const changed = { ...given, serving: servedBy(given.serving, isAgent) };
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
    const place = this.#place(options.signal);
    await using held = await HeldRun.take(place, run);
    const swap = async (next: RunDocument): Promise<void> => {
      await held.swap(next).catch((error: unknown) => {
        throw hasCode(error, "STORE_UNREACHABLE") ? stopped(run, error) : error;
      });
    };
    // What is over and what begins go into one swap: each takes the store some syncs.
    let next = await begin(held.document);
    await using requests = new StopRequests(place, held.document);
    const signal = options.signal === undefined ? requests.signal : AbortSignal.any([options.signal, requests.signal]);
    const onProgress = noting(held, options.onProgress);
    await using effects = new Effects(this.#context, held, { ...options, onProgress, signal }, this.#vault);
    for (let step = effectOf(next.state); step !== undefined; step = effectOf(next.state)) {
      await swap(withTask(next));
      try {
        await requests.check();
        await effects.carryOut(step.effect);
      } catch (error) {
        // A crash test ends in an error that is none of ours: nothing is noted then, as after a kill.
        if (!(error instanceof TidemarkError)) throw error;
        const isInterrupted = hasCode(error, "INTERRUPTED");
        const state = !isInterrupted ? "Failed" : requests.signal.aborted ? "Cancelled" : "Suspended";
        const ended = endTask(held.document, state, effects.takeCommands(), error);
        await swap(endJob({ ...ended, state: isInterrupted ? ended.state : step.failed }, state));
        throw stopped(run, error);
      }
      next = { ...endTask(held.document, "Succeeded", effects.takeCommands(), null), state: step.done };
    }
    await effects[Symbol.asyncDispose](); // before another process may take the run
    await swap({ ...endJob(next, "Succeeded"), worker: null });
    const { bytesWritten, bytesRead } = effects;
    const summary = await describeRun(this.#context, held.document);
    return { ...summary, bytesWritten, bytesRead, elapsedMs: Math.round(performance.now() - startedAt) };
  }

  /** @internal Deletes the records of runs that ended long ago. */
  async forgetOld(signal: AbortSignal | undefined): Promise<void> {
    const place = this.#place(signal);
    const { store } = place;
    for (const document of await listRuns(place)) {
      const lastMs = document.jobs.at(-1)?.endMs ?? document.createdMs;
      if (!hasEnded(document.state) || store.nowMs - lastMs <= rememberedMs) continue;
      // A disk that is where a run took it goes back by what the run knows.
      if (!(await this.#isPlaceOf(document, signal))) await store.delete(runObjectName(document.run), { signal });
    }
  }

  async #isPlaceOf({ run, members }: RunDocument, signal: AbortSignal | undefined): Promise<boolean> {
    for (const { disk } of members) {
      const claim = await readClaim({ ...this.#place(signal), disk });
      if (claim?.place?.run === run || claim?.former?.run === run) return true;
    }
    return false;
  }

  /** As `#place`, with a store that tells when it has gone back. */
  #watched({ onNotice, signal }: FailoverOptions): Required<VaultPlace> {
    return { ...this.#place(signal), store: watchedStore(this.#context, onNotice) };
  }

  #place(signal: AbortSignal | undefined): Required<VaultPlace> {
    return { store: new Store(this.#context.sink), vault: this.#context.document.vault, signal };
  }
}

const notesMax = 256;
