/**
 * Continuous replication of a live disk: the loop that takes its recovery points, for weeks.
 *
 * `protection-state.ts` decides, this file carries out: one loop performs the machine's step and
 * gives it the outcome. The calls of clients are inputs that arrive meanwhile. This file holds what
 * the machine does not: the session with the vault, the cut that is being shipped, the schedule,
 * the measures and the timer.
 *
 * Invariant: whatever fails, writes to the disk go on and are marked.
 */
import assert from "node:assert/strict";
import { now } from "../../clocks.ts";
import type { BlockDevice } from "../../device.ts";
import { fileError } from "../../disk/source/positional-file.ts";
import type { ProtectedDisk } from "../../disk/tracking/protected-disk.ts";
import { TidemarkError, throwIfAborted } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { countPoints, type PointRecord } from "../../store/format/documents.ts";
import { encodeDiskName } from "../../store/format/names.ts";
import type { PointSummary } from "../../store/points/points.ts";
import { protectionTiming } from "../../timing.ts";
import { Session } from "../session.ts";
import { drainTimeMs } from "./drain-pace.ts";
import type { MadeCut } from "./groups.ts";
import { assessHealth, type Finding, healthOf } from "./health.ts";
import { makeCut } from "./make-cut.ts";
import { Measures } from "./measures.ts";
import { requestPoint } from "./point-request.ts";
import type { ProtectedImage, ProtectedSource, RestingImage } from "./protected-image.ts";
import { isCovered, openProtectedImage, restOf } from "./protected-image.ts";
import {
  type Effect,
  ended,
  type Found,
  type Input,
  initialState,
  isHurried,
  type MachineState,
  type ProtectionEvent,
  type Step,
  transition,
} from "./protection-state.ts";
import type { ProtectionPolicy, ProtectionStatus, ProtectOptions, StopOptions } from "./protection-status.ts";
import { schedulePlanOf } from "./protection-status.ts";
import { Schedule } from "./schedule.ts";
import { SelfPrune } from "./self-prune.ts";
import { shipCut } from "./ship-cut.ts";

const { cycleMsDefault: frequencyMsDefault, freezeMsDefault: freezeTimeoutMsDefault } = protectionTiming;

type CycleStep = Extract<Step, { kind: "cut" | "ship" }>;

/**
 * A live disk under protection: serves the disk as a `BlockDevice`, tracks every write and takes
 * recovery points in the background. Made by `vault.protect`; end it with `stop` or `await using`.
 *
 * @example
 * ```ts
 * const protection = await vault.protect({
 *   disk: "data",
 *   image: "/srv/data.img",
 *   stateFolder: "/var/lib/tidemark",
 *   policy: { crashConsistentFrequencyMs: 5_000 },
 * });
 * await protection.device.write(0, new Uint8Array(4096));
 * const point = await protection.point();
 * await protection.stop({ drain: true });
 * ```
 */
export class Protection implements AsyncDisposable {
  /** The disk's name in the vault. */
  readonly disk: string;
  readonly #context: VaultContext;
  readonly #options: ProtectOptions;
  readonly #source: ProtectedSource;
  readonly #protected: ProtectedDisk;
  readonly #measures = new Measures();
  readonly #pruning: SelfPrune;
  readonly #schedule: Schedule;
  #policy: ProtectionPolicy;
  #state: MachineState;
  #session: Session | undefined;
  /** Points that the last session left in the vault. */
  #points: number | null = null;
  /** An application-consistent point that was missed before the start has been looked for. */
  #isCaughtUp = false;
  /** The cut that the next step ships. */
  #made: MadeCut | undefined;
  readonly #stopping = new AbortController();
  #cycle = new AbortController();
  #wake: () => void = () => undefined;
  readonly #loop: Promise<void>;
  #stopped: Promise<TidemarkError | undefined> | undefined;

  private constructor(context: VaultContext, options: ProtectOptions, image: ProtectedImage) {
    const { disk, hook, group, policy = {} } = options;
    this.#context = context;
    this.#options = options;
    this.disk = disk;
    this.#source = image.source;
    this.#protected = image.disk;
    this.#policy = policy;
    this.#pruning = new SelfPrune(context.document.vault, options);
    this.#state = initialState(disk, { hasHook: hook !== undefined, known: image.known, whyUnknown: image.whyUnknown });
    const participant = {
      request: () => this.#take({ kind: "cycleRequested" }),
      join: () => this.#take({ kind: "barrierOpened" }),
    };
    this.#schedule = new Schedule(schedulePlanOf(options), group?.add(disk, participant, now()) ?? now());
    this.#loop = this.#run();
    this.#loop.catch(() => undefined); // awaited by `stop`
  }

  /**
   * Opens the image and begins to take points. The disk can be served as soon as this resolves.
   *
   * @throws TidemarkError INVALID_ARGUMENT for a bad disk name, SOURCE_NOT_FOUND,
   * SOURCE_UNREADABLE, WRITER_ACTIVE when another process has the image open for writing,
   * ACCESS_REFUSED, UNSUPPORTED, NO_SPACE, DEVICE_FAILED.
   * @internal
   */
  static async start(context: VaultContext, given: ProtectOptions, opened?: ProtectedImage): Promise<Protection> {
    encodeDiskName(given.disk); // refuses a bad name before anything is touched
    const options = { ...given, disk: given.disk.normalize("NFC") };
    return new Protection(context, options, opened ?? (await openProtectedImage(context, options)));
  }

  /** The disk. All reads and writes must go through it; a front end such as NBD serves it. */
  get device(): BlockDevice {
    return this.#protected;
  }

  /** What is measured now. Never throws, and makes no request to the store. */
  status(): ProtectionStatus {
    this.#measures.sample(this.#protected.writtenBytes);
    const backlogBytes = this.#protected.dirtyBytes;
    const findings = this.#findings(backlogBytes);
    return {
      disk: this.disk,
      group: this.#options.group?.name ?? null,
      state: this.#state.shown,
      health: healthOf(findings),
      findings,
      sizeBytes: this.#protected.sizeBytes,
      lag: this.#measures.lag,
      ...this.#measures.rates,
      backlogBytes,
      points: this.#session === undefined ? this.#points : countPoints(this.#session.head),
      pointsCommitted: this.#state.pointsCommitted,
      latest: this.#state.latest,
      barrier: this.#protected.barrier,
      preservedBytes: this.#protected.preservedBytes,
      lastPrune: this.#pruning.last,
    };
  }

  /**
   * Takes a point now and resolves when it is committed; failed cycles are repeated. If the
   * application could not be brought to rest, the point is crash-consistent and its record says
   * why.
   *
   * @throws TidemarkError INVALID_ARGUMENT if `applicationConsistent` is asked of a disk without a
   * hook; INTERRUPTED when `signal` aborts or the protection ends; the error that ended the
   * protection in state `failed`.
   */
  async point(
    options: { readonly applicationConsistent?: boolean; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<PointSummary> {
    const { applicationConsistent = false, signal } = options;
    if (applicationConsistent && this.#options.hook === undefined) {
      throw new TidemarkError(
        "INVALID_ARGUMENT",
        `disk ${JSON.stringify(this.disk)} has no hooks that bring its application to rest`,
        {
          remedy: "give it `hooks` in the configuration, or `--pre` and `--post`",
        },
      );
    }
    throwIfAborted(this.#stopping.signal);
    throwIfAborted(signal);
    if (this.#state.failure !== undefined) throw this.#state.failure;
    const answer = requestPoint(applicationConsistent, signal, (input) => this.#take(input));
    if (!this.#state.isDraining) this.#options.group?.request();
    return await answer;
  }

  /** Takes no points until `resume`. Writes go on and are tracked; requests wait. */
  pause(): void {
    this.#measures.pause(true);
    this.#take({ kind: "paused" });
  }

  /** Ends a pause. A cycle begins at once. */
  resume(): void {
    this.#measures.pause(false);
    this.#take({ kind: "resumed" });
  }

  /** Replaces the policy from now on, except `barrierMsMax`, which stays as it was at the start. */
  setPolicy(policy: ProtectionPolicy): void {
    this.#policy = policy;
    this.#schedule.replan(schedulePlanOf({ ...this.#options, policy }), now());
    this.#take({ kind: "cycleRequested" });
  }

  /**
   * Extends the disk to the present size of its image.
   *
   * @throws TidemarkError when the image cannot be examined or the tracking file cannot be
   * extended.
   */
  async grow(): Promise<void> {
    await this.#source.refreshSize();
    await this.#protected.grow();
  }

  /**
   * Ends the protection; the front end must have stopped serving the device. With `drain`, takes a
   * last point first, until `signal` aborts. Idempotent.
   *
   * @returns why the last point could not be taken; undefined if it was taken, not wanted or not
   * needed. The changes stay marked.
   * @throws TidemarkError when the marks cannot be saved; the next start then compares more.
   */
  async stop(options: StopOptions): Promise<TidemarkError | undefined> {
    this.#stopped ??= this.#stop(options);
    return await this.#stopped;
  }

  /** @internal Which point the image is, as `stop` has left it; undefined: it has not ended, or that is not known. */
  get rest(): RestingImage | undefined {
    return restOf(this.#state, this.#protected, this.#source);
  }

  /** `stop` without a last point. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop({ drain: false });
  }

  async #stop({ drain, signal }: StopOptions): Promise<TidemarkError | undefined> {
    const missed =
      drain && !this.#state.isPaused && !isCovered(this.#state, this.#protected)
        ? await this.#lastPoint(signal)
        : undefined;
    this.#options.group?.remove(this.disk);
    this.#stopping.abort(ended());
    this.#take({ kind: "stopping" });
    await this.#loop;
    try {
      await this.#protected.closeClean();
    } finally {
      this.#take({ kind: "stopped" });
    }
    return missed;
  }

  /** Takes the last point. Gives why it could not be taken. */
  async #lastPoint(signal: AbortSignal | undefined): Promise<TidemarkError | undefined> {
    if (this.#state.failure !== undefined) return this.#state.failure;
    this.#take({ kind: "draining" });
    try {
      await this.point({ signal });
      return undefined;
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      this.#emit({ kind: "failure", disk: this.disk, error, message: `no last point: ${error.message}` });
      return error;
    }
  }

  async #run(): Promise<void> {
    try {
      for (let { step } = this.#state; step.kind !== "end"; { step } = this.#state)
        this.#take(await this.#outcome(step));
    } catch (error) {
      this.#take({ kind: "failed", error, isFatal: true });
    } finally {
      await this.#leave();
    }
  }

  #take(input: Input): void {
    const at = now();
    const { state, effects } = transition(this.#state, input, { steadyMs: at.steadyMs, due: this.#schedule.next(at) });
    this.#state = state;
    for (const effect of effects) this.#carryOut(effect);
  }

  #carryOut(effect: Effect): void {
    switch (effect.kind) {
      case "wake":
        this.#wake();
        return;
      case "abort":
        this.#cycle.abort(ended());
        return;
      case "began":
        this.#schedule.started(effect.consistency, now());
        return;
      case "answer":
        effect.request.resolve(effect.point);
        return;
      case "refuse":
        effect.request.reject(effect.error);
        return;
      case "tell":
        this.#emit(effect.event);
        return;
      case "succeeded":
        this.#measures.succeeded(effect.cutAtMs);
        return;
      case "failed":
        this.#measures.failed(effect.error);
        return;
      case "gaveUp":
        this.#measures.gaveUp(effect.error);
        return;
      case "trackingLost":
        this.#measures.lostTracking(effect.reason);
        return;
    }
  }

  /** Carries out a step and gives the input that ends it. After a failure the session is closed. */
  async #outcome(step: Step): Promise<Input> {
    try {
      return await this.#perform(step);
    } catch (error) {
      await this.#leave();
      // A system call failed, as when no more files can be opened: that passes.
      const isPassing = error instanceof Error && "syscall" in error;
      const remedy = "look at the limits of this process: `ulimit -a`";
      const failure = { code: "INTERNAL", what: "no point can be made", remedy } as const;
      return { kind: "failed", error: isPassing ? fileError(error, failure) : error, isFatal: false };
    }
  }

  async #perform(step: Step): Promise<Input> {
    switch (step.kind) {
      case "wait":
        await this.#wait(step.waitMs);
        return { kind: "waited" };
      case "rest":
        if ((await this.#session?.rest()) === false) await this.#leave();
        return { kind: "done" };
      case "leave":
        await this.#leave();
        return { kind: "done" };
      case "open":
        this.#cycle = new AbortController();
        return { kind: "opened", found: await this.#open() };
      case "cut": {
        const made = await makeCut({
          disk: this.disk,
          protectedDisk: this.#protected,
          hook: this.#options.hook,
          group: this.#state.isDraining ? undefined : this.#options.group,
          freezeTimeoutMs: this.#policy.freezeTimeoutMs ?? freezeTimeoutMsDefault,
          step,
          signal: this.#cycle.signal,
        });
        const { cut, group, application } = made;
        this.#made = made;
        if (application !== null)
          this.#measures.froze(
            application.outcome === "failed" ? (application.reason ?? "the hook failed") : undefined,
          );
        const isEmpty = cut.dirtyBytes === 0 && this.#state.latest?.volumeBytes === cut.sizeBytes;
        return { kind: "cut", isEmpty, isGroup: group !== null };
      }
      case "skip": {
        const { cut, cutAtMs } = this.#takeMade();
        cut.abandon();
        for (const stage of ["captured", "shipped"] as const) this.#measures.reached(stage, cutAtMs);
        await this.#session?.acknowledge();
        return { kind: "skipped", cutAtMs };
      }
      case "ship":
        return { kind: "committed", point: await this.#ship(step, this.#takeMade()) };
      case "prune":
        await this.#prune();
        return { kind: "done" };
      case "end":
        return { kind: "done" };
    }
  }

  async #wait(waitMs: number): Promise<void> {
    await new Promise<void>((resolve) => {
      const timer = Number.isFinite(waitMs) ? setTimeout(resolve, waitMs) : undefined;
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  /** Opens a session if there is none, and says what it finds. */
  async #open(): Promise<Found | undefined> {
    if (this.#session?.signal.aborted === false) return undefined;
    await this.#leave();
    let older: string | undefined;
    const onNotice = ({ code, message }: Notice): void => {
      if (code === "STORE_REGRESSED") older = message;
      else this.#emit({ kind: "notice", disk: this.disk, code, message });
    };
    this.#session = await Session.open(this.#context, {
      disk: this.disk,
      source: this.#source.identity().path,
      loadCatalog: async (store) => await this.#context.sharedCatalog(store, onNotice),
      onNotice,
      signal: this.#stopping.signal,
    });
    await this.#catchUp(this.#session);
    const { newest } = this.#session;
    const relation = newest === undefined ? "unknown" : this.#protected.rebase(newest.id);
    return { newest, relation, isBased: this.#protected.base !== undefined, older };
  }

  /** In the first session: an application-consistent point missed before the start is due now. */
  async #catchUp(session: Session): Promise<void> {
    if (this.#isCaughtUp) return;
    const roundMs = this.#schedule.lastRoundMs(now());
    if (roundMs !== undefined && this.#options.hook !== undefined && session.newest !== undefined)
      this.#schedule.catchUp(await session.newestAppMs(roundMs), now());
    this.#isCaughtUp = true;
  }

  async #leave(): Promise<void> {
    const session = this.#session;
    if (session !== undefined) this.#points = countPoints(session.head);
    this.#session = undefined;
    await this.#pruning.abandon();
    await session?.close();
  }

  #takeMade(): MadeCut {
    const made = this.#made;
    assert(made !== undefined, "a cut was made");
    this.#made = undefined;
    return made;
  }

  /** Makes a point of a cut. */
  async #ship({ known, isParentSound }: CycleStep, made: MadeCut): Promise<PointRecord> {
    assert(this.#session !== undefined, "a point is shipped in a session");
    return await shipCut({
      context: this.#context,
      session: this.#session,
      disk: this.disk,
      source: this.#source,
      protectedDisk: this.#protected,
      measures: this.#measures,
      known,
      isParentSound,
      made,
      intervalMs: drainTimeMs(this.#schedule.next(now()).inMs, this.#policy),
      isHurried: () => isHurried(this.#state),
      onCommitting: (id) => this.#take({ kind: "committing", id, cutAtMs: made.cutAtMs }),
      signal: this.#cycle.signal,
    });
  }

  async #prune(): Promise<void> {
    const { retention, crashConsistentFrequencyMs = frequencyMsDefault } = this.#policy;
    if (this.#session === undefined) return;
    const isWhole = await this.#pruning.afterPoint(this.#session, retention, crashConsistentFrequencyMs);
    if (this.#context.renewals.delete(this.disk) || !isWhole) await this.#leave();
  }

  #findings(backlogBytes: number): readonly Finding[] {
    const findings = assessHealth(
      this.#measures.at({
        disk: this.disk,
        state: this.#state.shown,
        backlogBytes,
        spillFolder: this.#options.stateFolder,
        trackingFull: this.#protected.trackingLost !== undefined,
      }),
      {
        crashConsistentFrequencyMs: this.#policy.crashConsistentFrequencyMs ?? frequencyMsDefault,
        recoveryPointThresholdMs: this.#policy.recoveryPointThresholdMs,
      },
    );
    const more = [
      this.#state.shown === "waiting" ? this.#measures.unexplained : undefined,
      this.#state.isPaused ? undefined : this.#options.group?.finding,
      this.#pruning.finding,
    ];
    return [...findings, ...more.filter((finding) => finding !== undefined)];
  }

  #emit(event: ProtectionEvent): void {
    if (event.kind === "notice" && event.code === "STORE_REGRESSED") this.#measures.regressed(event.message);
    this.#options.onEvent?.(event);
  }
}
