/**
 * A disk under protection: the loop that takes its points, for weeks.
 *
 *     due or asked ─► session (seat, catalog) ─► what does the vault's newest point know of us? ─► cut ─► ship ─► committed
 *                         ▲                                                                                  │
 *                         └────────────── back off, counting everything as changed again ◄── failed ─────────┘
 *
 * What the newest point knows decides how the next one is made:
 *   - `changed`: it is our base, so what is marked since is all that differs;
 *   - `compare`: it is our base, but a crash has widened the marks to regions: they are compared with the vault's map;
 *   - `scan`: it is not ours, or we know nothing: the whole disk is compared with the map. Old points stay as they are.
 *
 * A scan takes long and keeps no old content, so its point is fuzzy if anything was written meanwhile; what was is marked, and the
 * point after it is crash-consistent. The same way out serves a cut that had to be abandoned because there was no room for old
 * content: one fuzzy pass brings the backlog down, then cuts are exact again.
 *
 * Whatever fails, writes to the disk go on and are marked.
 */
import assert from "node:assert/strict";
import type { BlockDevice } from "../../device.ts";
import type { LiveFile } from "../../disk/source/live-file.ts";
import { noPrints } from "../../disk/source/local-state.ts";
import { type Cut, cutVolume } from "../../disk/tracking/cut.ts";
import type { ProtectedDisk } from "../../disk/tracking/protected-disk.ts";
import { TidemarkError, throwIfAborted } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import { changedBaseline, emptyBaseline, namedOnly } from "../../pipeline/baseline.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { ApplicationRecord, PointRecord } from "../../store/format/documents.ts";
import { encodeDiskName } from "../../store/format/names.ts";
import { type PointSummary, pointSummary } from "../../store/points/points.ts";
import { protectionTiming } from "../../timing.ts";
import { checkSize, isMapDamage, mapBaseline, randomSeed } from "../replicate.ts";
import { Session, type Shipment, type Shipped } from "../session.ts";
import { cutTogether, frozenCuts, type MadeCut } from "./groups.ts";
import { assessHealth, type Finding, healthOf } from "./health.ts";
import { Measures } from "./measures.ts";
import { ended, PointRequests } from "./point-requests.ts";
import { openProtectedImage, type ProtectedImage } from "./protected-image.ts";
import type { ProtectionState } from "./protection-state.ts";
import type { ProtectionEvent, ProtectionPolicy, ProtectionStatus, ProtectOptions } from "./protection-status.ts";
import type { Instant, SchedulePlan } from "./schedule.ts";
import { Schedule } from "./schedule.ts";
import { SelfPrune } from "./self-prune.ts";

const notMadeHere = "the vault's newest point is not one that was made here";
const { restMsMax, backOffMsMin, backOffMsMax } = protectionTiming;
const { cycleMsDefault: frequencyMsDefault, freezeMsDefault: freezeTimeoutMsDefault } = protectionTiming;

export class Protection implements AsyncDisposable {
  readonly disk: string;
  readonly #context: VaultContext;
  readonly #options: ProtectOptions;
  readonly #live: LiveFile;
  readonly #protected: ProtectedDisk;
  readonly #measures = new Measures();
  readonly #stopping = new AbortController();
  readonly #requests = new PointRequests();
  readonly #pruning: SelfPrune;
  #policy: ProtectionPolicy;
  readonly #schedule: Schedule;
  #state: ProtectionState = "starting";
  #plan: ProtectedImage["known"];
  /** False once the newest point's map turned out to be damaged, until there is a newer point. */
  #isParentSound = true;
  #exact = true;
  /** Why it is not known what has changed since the vault's newest point, when it is not. */
  #whyUnknown: string;
  /** The last point that was tried, until it is known what has become of it. */
  #tried: { readonly id: string; readonly cutAtMs: number } | undefined;
  /** An application-consistent point was due by schedule, and none has come about. */
  #isAppOwed = false;
  #paused = false;
  #draining = false;
  #session: Session | undefined;
  #cycle = new AbortController();
  #failuresInRow = 0;
  #failedAtMs = 0;
  #failure: TidemarkError | undefined;
  #latest: PointSummary | null = null;
  #pointsCommitted = 0;
  #wake: (() => void) | undefined;
  #isWoken = false;
  readonly #loop: Promise<void>;
  #stopped: Promise<void> | undefined;

  private constructor(context: VaultContext, options: ProtectOptions, image: ProtectedImage) {
    this.#context = context;
    this.#options = options;
    this.disk = options.disk;
    this.#live = image.live;
    this.#protected = image.disk;
    this.#plan = image.known;
    this.#whyUnknown = image.whyUnknown ?? notMadeHere;
    this.#policy = options.policy ?? {};
    this.#pruning = new SelfPrune(context.document.vault, options);
    const bell = {
      call: () => {
        this.#call();
      },
      invite: () => {
        if (this.#wake !== undefined && this.#failuresInRow === 0 && !this.#paused) this.#call();
      },
    };
    this.#schedule = new Schedule(this.#schedulePlan(), options.group?.add(options.disk, bell, now()) ?? now());
    this.#loop = this.#run();
    this.#loop.catch(() => undefined); // awaited by `stop`
  }

  /**
   * Opens the image, finds out what its tracking file still knows, and begins to take points. The disk can be served as soon as this resolves.
   * Errors: SOURCE_NOT_FOUND, WRITER_ACTIVE when somebody else has the image open for writing, ACCESS_REFUSED, INVALID_ARGUMENT.
   */
  static async start(context: VaultContext, given: ProtectOptions): Promise<Protection> {
    encodeDiskName(given.disk); // refuses a bad name before anything is touched
    const options = { ...given, disk: given.disk.normalize("NFC") };
    return new Protection(context, options, await openProtectedImage(context, options));
  }

  /** What a front end serves. */
  get device(): BlockDevice {
    return this.#protected;
  }

  status(): ProtectionStatus {
    this.#measures.sample(this.#protected.writtenBytes);
    const backlogBytes = this.#protected.dirtyBytes;
    const findings = this.#findings(backlogBytes);
    return {
      disk: this.disk,
      group: this.#options.group?.name ?? null,
      state: this.#state,
      health: healthOf(findings),
      findings,
      sizeBytes: this.#protected.sizeBytes,
      lag: this.#measures.lag,
      ...this.#measures.rates,
      backlogBytes,
      pointsCommitted: this.#pointsCommitted,
      latest: this.#latest,
      barrier: this.#protected.barrier,
      preservedBytes: this.#protected.preservedBytes,
      lastPrune: this.#pruning.last,
    };
  }

  /**
   * Takes a point now and resolves when it is committed, however long the store takes. Where the application could not be brought to
   * rest, the point is crash-consistent and says why. Errors: INVALID_ARGUMENT without a hook, INTERRUPTED.
   */
  async point(
    options: { readonly applicationConsistent?: boolean; readonly signal?: AbortSignal | undefined } = {},
  ): Promise<PointSummary> {
    const { applicationConsistent = false, signal } = options;
    if (applicationConsistent && this.#options.hook === undefined) {
      throw new TidemarkError("INVALID_ARGUMENT", `disk ${JSON.stringify(this.disk)} has no hooks that bring its application to rest`, {
        remedy: "give it `hooks` in the configuration, or `--pre` and `--post`",
      });
    }
    throwIfAborted(this.#stopping.signal);
    if (this.#failure !== undefined) throw this.#failure;
    const answer = this.#requests.add(applicationConsistent, signal);
    if (this.#options.group === undefined || this.#draining) this.#call();
    else this.#options.group.call();
    return await answer;
  }

  /** Takes no points until `resume`; writes go on and are tracked. */
  pause(): void {
    this.#paused = true;
    this.#measures.pause(true);
    this.#cycle.abort(ended());
    this.#call();
  }

  resume(): void {
    this.#paused = false;
    this.#measures.pause(false);
    this.#call();
  }

  setPolicy(policy: ProtectionPolicy): void {
    this.#policy = policy;
    this.#schedule.replan(this.#schedulePlan(), now());
    this.#call();
  }

  /** Takes up what the image has grown by. */
  async grow(): Promise<void> {
    await this.#live.refreshSize();
    await this.#protected.grow();
  }

  /**
   * Ends the protection. `drain`: with a last point, for which it waits until `signal`; else what has changed stays marked. Either way the exact
   * marks are saved. The front end must have stopped serving the device. Idempotent.
   */
  async stop(options: { readonly drain: boolean; readonly signal?: AbortSignal | undefined }): Promise<void> {
    this.#stopped ??= this.#stop(options.drain, options.signal);
    await this.#stopped;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.stop({ drain: false });
  }

  async #stop(drain: boolean, signal: AbortSignal | undefined): Promise<void> {
    if (drain && !this.#paused && this.#state !== "failed" && !this.#isCovered()) {
      this.#draining = true;
      await this.point({ signal }).catch((error: unknown) => {
        if (!(error instanceof TidemarkError)) throw error;
        this.#emit({ kind: "failure", disk: this.disk, error, message: `no last point: ${error.message}` });
      });
    }
    this.#options.group?.remove(this.disk);
    this.#stopping.abort(ended());
    this.#cycle.abort(ended());
    this.#call();
    await this.#loop;
    this.#requests.refuse(ended());
    try {
      await this.#protected.closeClean();
    } finally {
      this.#become("stopped", "protection has ended");
    }
  }

  /** Whether the newest point holds all that was ever written. */
  #isCovered(): boolean {
    const isKnown = this.#plan === "changed" && this.#exact && this.#tried === undefined;
    return isKnown && this.#protected.dirtyBytes === 0 && this.#latest?.volumeBytes === this.#protected.sizeBytes;
  }

  async #run(): Promise<void> {
    try {
      for (;;) {
        await this.#untilDue();
        if (this.#stopping.signal.aborted) break;
        if (this.#paused) {
          await this.#leave();
          this.#become("paused", "paused: writes are tracked, no points are taken");
          continue;
        }
        this.#cycle = new AbortController();
        try {
          await this.#takePoint();
          this.#failuresInRow = 0;
          if (!this.#draining) await this.#prune();
        } catch (error) {
          await this.#failed(error);
        }
      }
    } catch (error) {
      // A fault of ours: the disk goes on being served and tracked, but nobody takes points any more.
      const failure =
        error instanceof TidemarkError ? error : new TidemarkError("INTERNAL", `protection ended: ${String(error)}`, { cause: error });
      this.#failure = failure;
      this.#measures.gaveUp(failure);
      this.#become("failed", failure.message);
      this.#emit({ kind: "failure", disk: this.disk, error: failure, message: failure.message });
      this.#requests.refuse(failure);
    } finally {
      await this.#leave();
    }
  }

  /** Waits until a point is due or somebody calls. */
  async #untilDue(): Promise<void> {
    for (;;) {
      const due = this.#schedule.next(now());
      const isRetry = this.#failuresInRow > 0;
      const inMs = this.#paused ? Infinity : isRetry ? this.#retryInMs() : due.inMs;
      if (this.#isWoken || (inMs <= 0 && (isRetry || due.isPoint))) break;
      const isCalled = await new Promise<boolean>((resolve) => {
        // Not at all while paused; else at least once in a while, for clocks that are set and collections that wait for us.
        const timer = Number.isFinite(inMs) ? setTimeout(resolve, Math.min(Math.max(inMs, 1), restMsMax), false) : undefined;
        this.#wake = () => {
          clearTimeout(timer);
          resolve(true);
        };
      });
      if (inMs > restMsMax && !isCalled && (await this.#session?.rest()) === false) await this.#leave();
      this.#wake = undefined;
    }
    this.#isWoken = false;
  }

  /** What failed is tried again after a while, however long it is to the next tick: somebody may wait for it. */
  #retryInMs(): number {
    const backOffMs = Math.min(backOffMsMax, backOffMsMin * 2 ** (this.#failuresInRow - 1));
    return this.#failedAtMs + backOffMs - performance.now();
  }

  #call(): void {
    this.#isWoken = true;
    this.#wake?.();
  }

  async #takePoint(): Promise<void> {
    const session = await this.#enter();
    if (this.#plan === "scan") {
      await this.#scan(session);
      return;
    }
    // A fuzzy point is no answer.
    const requests = this.#exact ? this.#requests.take() : [];
    const due = this.#schedule.next(now());
    this.#isAppOwed ||= this.#options.hook !== undefined && due.inMs <= 0 && due.consistency === "app";
    const wantsApp = this.#exact && (this.#isAppOwed || requests.some((request) => request.applicationConsistent));
    this.#schedule.started(wantsApp ? "app" : "crash", now());
    try {
      const made = await this.#cut(wantsApp, requests.length > 0);
      const point = await this.#shipCut(session, made, requests.length > 0 || wantsApp || made.group !== null);
      if (wantsApp) this.#isAppOwed = false;
      if (point !== undefined) for (const request of requests) request.resolve(point);
    } catch (error) {
      this.#requests.putBack(requests); // they are answered by the next point that comes about
      throw error;
    }
  }

  async #prune(): Promise<void> {
    const { retention, crashConsistentFrequencyMs = frequencyMsDefault } = this.#policy;
    if (this.#session === undefined) return;
    const isWhole = await this.#pruning.afterPoint(this.#session, retention, crashConsistentFrequencyMs);
    if (this.#context.renewals.delete(this.disk) || !isWhole) await this.#leave();
  }

  async #cut(wantsApp: boolean, isAsked: boolean): Promise<MadeCut> {
    const { group, hook } = this.#options;
    const freezeTimeoutMs = this.#policy.freezeTimeoutMs ?? freezeTimeoutMsDefault;
    const member = { disk: this.disk, protectedDisk: this.#protected, hook, freezeTimeoutMs };
    if (!this.#exact) {
      const cut = await this.#protected.cut({ exact: false });
      return { cut, cutAtMs: performance.now(), group: null, application: null };
    }
    if (group !== undefined && !this.#draining) {
      const made = await group.join(member, { wantsApp, isAsked }, this.#cycle.signal);
      if (made !== undefined) return made;
      throwIfAborted(this.#cycle.signal);
    }
    const { cuts, cutAtMs, applications } = wantsApp
      ? await frozenCuts([member], this.#cycle.signal)
      : { ...(await cutTogether([member])), applications: [] };
    const [cut] = cuts;
    assert(cut !== undefined, "one disk makes one cut");
    return { cut, cutAtMs, group: null, application: applications[0] ?? null };
  }

  /** Makes a point of what was cut. Undefined: nothing has changed since the newest, and nobody wants another. */
  async #shipCut(session: Session, made: MadeCut, isWanted: boolean): Promise<PointSummary | undefined> {
    const { cut, cutAtMs, group, application } = made;
    this.#noteHook(application);
    try {
      if (!isWanted && cut.dirtyBytes === 0 && session.newest?.volumeBytes === cut.sizeBytes) {
        cut.abandon();
        for (const stage of ["captured", "shipped", "committed"] as const) this.#measures.reached(stage, cutAtMs);
        await session.acknowledge();
        this.#measures.succeeded();
        this.#become("protecting", "every write is in the newest point");
        return undefined;
      }
      const parent = await session.manifest();
      const seed = randomSeed();
      const inner = parent === undefined ? emptyBaseline : mapBaseline(this.#context, session, parent, seed);
      const point = await this.#ship(session, cut, cutAtMs, {
        volume: cutVolume(cut, this.#live.volume("scattered")),
        parent,
        baseline: this.#plan === "compare" ? namedOnly(inner) : changedBaseline,
        scope: "named",
        seed,
        consistency: () => Promise.resolve(!this.#isStill(cut) ? "fuzzy" : application?.outcome === "frozen" ? "app" : "crash"),
        application,
        group,
      });
      if (!this.#exact) this.#call(); // what was written meanwhile makes the next exact point
      this.#plan = "changed";
      this.#exact = true;
      this.#become("protecting", "every cycle gives a crash-consistent point");
      return point;
    } catch (error) {
      cut.abandon();
      throw error;
    }
  }

  /** Compares the whole disk with the vault. */
  async #scan(session: Session): Promise<void> {
    const parent = this.#isParentSound ? await session.manifest() : undefined;
    if (session.newest === undefined) this.#become("initial", "the first point is being made");
    else this.#become("resyncing", "the disk is compared with the vault");
    this.#schedule.started("crash", now());
    const cut = await this.#protected.cut({ exact: false });
    try {
      checkSize(this.#live.description, this.disk, cut.sizeBytes, session.newest);
      const seed = randomSeed();
      await this.#ship(session, cut, performance.now(), {
        volume: this.#live.volume("whole"),
        parent,
        baseline: parent === undefined ? emptyBaseline : mapBaseline(this.#context, session, parent, seed),
        scope: "whole",
        seed,
        consistency: () => Promise.resolve(this.#isStill(cut) ? "crash" : "fuzzy"),
      });
    } catch (error) {
      cut.abandon();
      throw error;
    }
    this.#whyUnknown = notMadeHere;
    this.#plan = "changed";
    this.#exact = true;
    this.#call(); // what was written meanwhile makes the first exact point
  }

  /** Whether what was captured is the disk at the cut: the cut was exact, or nobody has written since. */
  #isStill(cut: Cut): boolean {
    return cut.exact || !this.#protected.isWrittenSinceCut;
  }

  async #ship(
    session: Session,
    cut: Cut,
    cutAtMs: number,
    shipment: Omit<Shipment, "volumeBytes" | "timeMs" | "prints" | "leave" | "beforeHead">,
  ): Promise<PointSummary> {
    let uploaded = 0;
    const noteUpload = (storedBytes: number): void => {
      this.#measures.uploaded(storedBytes - uploaded);
      uploaded = storedBytes;
    };
    const shipped: Shipped = await session.ship({
      ...shipment,
      volumeBytes: cut.sizeBytes,
      timeMs: cut.timeMs,
      prints: noPrints,
      leave: false,
      beforeHead: async (id) => {
        this.#tried = { id, cutAtMs };
        await this.#protected.expectPoint(id);
      },
      onProgress: (_doneBytes, storedBytes) => {
        noteUpload(storedBytes);
      },
      onCaptured: () => {
        this.#measures.reached("captured", cutAtMs);
      },
      onShipped: () => {
        this.#measures.reached("shipped", cutAtMs);
      },
      signal: AbortSignal.any([cut.signal, this.#cycle.signal]),
    });
    noteUpload(shipped.storedBytes + shipped.metadataBytes);
    cut.committed(shipped.point.id);
    return this.#committed(shipped.point, cutAtMs);
  }

  #committed(point: PointRecord, cutAtMs: number): PointSummary {
    this.#tried = undefined;
    this.#measures.reached("committed", cutAtMs);
    this.#pointsCommitted += 1;
    const summary = pointSummary(this.disk, point);
    this.#latest = summary;
    this.#isParentSound = true;
    this.#measures.succeeded();
    const message = `point ${String(summary.sequence)}, ${summary.consistency}, ${String(summary.changedBytes)} bytes changed`;
    this.#emit({ kind: "point", disk: this.disk, point: summary, message });
    return summary;
  }

  /** The session, opened if there is none; with a new one the plan is made anew. */
  async #enter(): Promise<Session> {
    if (this.#session !== undefined && !this.#session.signal.aborted) return this.#session;
    await this.#leave();
    const session = await Session.open(this.#context, {
      disk: this.disk,
      loadCatalog: async (store) =>
        await this.#context.sharedCatalog(store, ({ code, message }) => {
          this.#notice(code, message);
        }),
      onNotice: ({ code, message }) => {
        this.#notice(code, message);
      },
      signal: this.#stopping.signal,
    });
    this.#session = session;
    this.#relate(session);
    return session;
  }

  /** What does the vault's newest point know of us? */
  #relate({ newest }: Session): void {
    const { base } = this.#protected;
    const relation = newest === undefined ? "unknown" : this.#protected.rebase(newest.id);
    if (newest !== undefined && newest.id === this.#tried?.id) {
      // Its commit got through, although nobody heard of it. What it was made of is marked still, which does no harm.
      if (this.#plan === "scan") this.#plan = "changed";
      this.#committed(newest, this.#tried.cutAtMs);
    }
    this.#tried = undefined;
    this.#latest = newest === undefined ? null : pointSummary(this.disk, newest);
    if (relation === "earlier") {
      // Of points before a restart only regions are known, so what is marked is compared.
      if (this.#plan === "changed") this.#plan = "compare";
      this.#notice("STORE_REGRESSED", "the store has forgotten points: what had changed since its newest is shipped again");
    } else if (relation === "unknown") {
      this.#plan = "scan";
      if (newest !== undefined) {
        this.#measures.lostTracking(this.#whyUnknown);
        this.#notice("STATE_LOST", `${this.#whyUnknown}: the disk is compared with the vault`);
      } else if (base !== undefined) {
        this.#notice("STORE_REGRESSED", "the store has forgotten every point of the disk: all of it is shipped again");
      }
    }
  }

  async #leave(): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    await this.#pruning.abandon();
    await session?.close();
  }

  async #failed(error: unknown): Promise<void> {
    await this.#leave();
    if (this.#stopping.signal.aborted) return;
    if (!(error instanceof TidemarkError)) throw error;
    if (error.code === "INTERRUPTED") return;
    this.#measures.failed(error);
    this.#emit({ kind: "failure", disk: this.disk, error, message: error.message });
    const { code, message } = error;
    if (code === "CUT_ABANDONED") this.#exact = false;
    const isDamage = this.#isParentSound && isMapDamage(error, this.disk);
    if (isDamage) {
      this.#plan = "scan";
      this.#isParentSound = false;
      this.#notice("PARENT_DAMAGED", `${message}; the next point does not build on it`);
    }
    this.#failuresInRow += 1;
    this.#failedAtMs = performance.now();
    // What will be done differently is done at once.
    if (isDamage || (this.#failuresInRow === 1 && (code === "STORE_REGRESSED" || code === "CUT_ABANDONED"))) this.#call();
    else if (code !== "CUT_ABANDONED" && code !== "CUT_TIMED_OUT")
      this.#become("waiting", "tried again by itself; writes are tracked meanwhile");
  }

  #noteHook(application: ApplicationRecord | null): void {
    if (application === null) return;
    this.#measures.froze(application.outcome === "failed" ? (application.reason ?? "the hook failed") : undefined);
  }

  #schedulePlan(): SchedulePlan {
    const { crashConsistentFrequencyMs = frequencyMsDefault, appConsistentFrequencyMs, startTimeMs } = this.#policy;
    // Members of a group meet: their ticks fall on the same moment.
    return { crashConsistentFrequencyMs, appConsistentFrequencyMs, startTimeMs, disk: this.#options.group?.name ?? this.disk };
  }

  #findings(backlogBytes: number): readonly Finding[] {
    const { trackingLost } = this.#protected;
    const findings = assessHealth(
      this.#measures.at({
        disk: this.disk,
        state: this.#state,
        backlogBytes,
        spillFolder: this.#options.stateFolder,
        trackingFull: trackingLost !== undefined,
      }),
      {
        crashConsistentFrequencyMs: this.#policy.crashConsistentFrequencyMs ?? frequencyMsDefault,
        recoveryPointThresholdMs: this.#policy.recoveryPointThresholdMs,
      },
    );
    const { group } = this.#options;
    const more = [
      this.#state === "waiting" ? this.#measures.unexplained : undefined,
      this.#paused ? undefined : group?.finding,
      this.#pruning.finding,
    ];
    return [...findings, ...more.filter((finding) => finding !== undefined)];
  }

  #become(state: ProtectionState, message: string): void {
    if (this.#state === state) return;
    this.#state = state;
    this.#emit({ kind: "state", disk: this.disk, state, message });
  }

  #notice(code: Notice["code"], message: string): void {
    this.#emit({ kind: "notice", disk: this.disk, code, message });
  }

  #emit(event: ProtectionEvent): void {
    this.#options.onEvent?.(event);
  }
}

function now(): Instant {
  return { wallMs: Date.now(), steadyMs: performance.now() };
}
