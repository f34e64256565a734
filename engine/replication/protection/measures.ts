/**
 * Replication metrics of one disk: lags, rates and counts of failures, on a monotonic clock.
 */
import type { TidemarkError } from "../../errors.ts";
import { hasCode } from "../../errors.ts";
import { vaultName } from "../../store/format/names.ts";
import type { Finding, HealthMeasures } from "./health.ts";
import { Meter, type SteadyClock, Stopwatch } from "./meters.ts";
import type { ProtectionState } from "./protection-state.ts";
import type { ProtectionStatus } from "./protection-status.ts";

/** The stages that a cut passes. */
export type Stage = "captured" | "shipped" | "committed";

/** What the caller adds at the moment of asking. */
export interface Moment {
  readonly disk: string;
  readonly state: ProtectionState;
  readonly backlogBytes: number;
  readonly spillFolder: string;
  readonly trackingFull: boolean;
}

export class Measures {
  readonly #now: SteadyClock;
  readonly #startedMs: number;
  readonly #churn: Meter;
  readonly #upload: Meter;
  readonly #storeAway: Stopwatch;
  readonly #churnAbove: Stopwatch;
  readonly #paused: Stopwatch;
  readonly #cutAtMs: Record<Stage, number | undefined> = {
    captured: undefined,
    shipped: undefined,
    committed: undefined,
  };
  #writtenBytes = 0;
  #storeSays: ReturnType<typeof saidBy> = { message: "" };
  #cutTimeouts = 0;
  #cutsAbandoned = 0;
  #hook: { failuresInARow: number; reason: string } | null = null;
  #trackingLost: string | null = null;
  #writerLease: HealthMeasures["writerLease"] = null;
  #failure: HealthMeasures["failure"] = null;
  #spillFull = false;
  #regressed: { readonly message: string; readonly atMs: number } | undefined;
  /** The newest failure since the newest point. */
  #last: TidemarkError | undefined;

  constructor(now: SteadyClock = () => performance.now()) {
    this.#now = now;
    this.#startedMs = now();
    this.#churn = new Meter(now);
    this.#upload = new Meter(now);
    this.#storeAway = new Stopwatch(now);
    this.#churnAbove = new Stopwatch(now);
    this.#paused = new Stopwatch(now);
  }

  /** The cut made at `cutAtMs`, on the same clock, has reached `stage`. */
  reached(stage: Stage, cutAtMs: number): void {
    this.#cutAtMs[stage] = cutAtMs;
  }

  uploaded(bytes: number): void {
    this.#upload.add(bytes);
  }

  /** Every write before the cut of `cutAtMs` is in a committed point. */
  succeeded(cutAtMs: number): void {
    this.reached("committed", cutAtMs);
    this.#last = undefined;
    this.#storeAway.set(false);
    this.#cutTimeouts = 0;
    this.#cutsAbandoned = 0;
    this.#trackingLost = null;
    this.#writerLease = null;
    this.#spillFull = false;
  }

  failed(error: TidemarkError): void {
    this.#last = error;
    const ofStore = isOfStore(error);
    this.#storeAway.set(ofStore);
    if (ofStore) this.#storeSays = saidBy(error);
    this.#writerLease = hasCode(error, "WRITER_ACTIVE", "SEAT_LOST")
      ? { code: error.code as "WRITER_ACTIVE" | "SEAT_LOST", message: error.message }
      : null;
    if (error.code === "CUT_TIMED_OUT") this.#cutTimeouts += 1;
    if (error.code === "CUT_ABANDONED") {
      this.#cutsAbandoned += 1;
      this.#spillFull = hasCode(error.cause, "NO_SPACE");
    }
  }

  /** A finding for the newest failure, if no other finding covers it. */
  get unexplained(): Finding | undefined {
    if (this.#last === undefined || this.#storeAway.elapsedMs !== null || this.#writerLease !== null) return undefined;
    const { code, message, remedy } = this.#last;
    return {
      level: "Warning",
      code,
      cause: `no point can be made: ${message}`,
      remedy: remedy ?? "mend what the message names",
    };
  }

  /** The protection has ended with `error`. */
  gaveUp(error: TidemarkError): void {
    this.#failure = { message: error.message, remedy: error.remedy };
  }

  /** A freeze was tried; `reason` says why it failed, undefined if it did not. */
  froze(reason: string | undefined): void {
    this.#hook = reason === undefined ? null : { failuresInARow: (this.#hook?.failuresInARow ?? 0) + 1, reason };
  }

  lostTracking(reason: string): void {
    this.#trackingLost = reason;
  }

  /** The store has lost points; `message` says which. */
  regressed(message: string): void {
    this.#regressed = { message, atMs: this.#now() };
  }

  pause(isPaused: boolean): void {
    this.#paused.set(isPaused);
  }

  /** `writtenBytes`: bytes of all writes to the disk so far. Called every few seconds. */
  sample(writtenBytes: number): void {
    this.#churn.add(writtenBytes - this.#writtenBytes);
    this.#writtenBytes = writtenBytes;
    this.#churnAbove.set(this.#churn.perSecond > this.#upload.perSecond);
  }

  get rates(): Pick<ProtectionStatus, "churnBytesPerSecond" | "uploadBytesPerSecond"> {
    return {
      churnBytesPerSecond: Math.round(this.#churn.perSecond),
      uploadBytesPerSecond: Math.round(this.#upload.perSecond),
    };
  }

  get lag(): ProtectionStatus["lag"] {
    const nowMs = this.#now();
    const age = (atMs: number | undefined): number | null => (atMs === undefined ? null : Math.round(nowMs - atMs));
    const { captured, shipped, committed } = this.#cutAtMs;
    return { capturedMs: age(captured), shippedMs: age(shipped), committedMs: age(committed) };
  }

  at({ disk, state, backlogBytes, spillFolder, trackingFull }: Moment): HealthMeasures {
    const awayMs = this.#storeAway.elapsedMs;
    return {
      disk,
      state,
      runningMs: this.#now() - this.#startedMs,
      committedLagMs: this.lag.committedMs,
      storeUnreachable: awayMs === null ? null : { forMs: awayMs, ...this.#storeSays },
      cutTimeoutsInARow: this.#cutTimeouts,
      cutsAbandonedInARow: this.#cutsAbandoned,
      hook: this.#hook,
      trackingLost: this.#trackingLost,
      regressed:
        this.#regressed === undefined
          ? null
          : { message: this.#regressed.message, forMs: this.#now() - this.#regressed.atMs },
      writerLease: this.#writerLease,
      full: { tracking: trackingFull ? spillFolder : null, spill: this.#spillFull ? spillFolder : null },
      backlogBytes,
      ...this.rates,
      churnAboveUploadMs: this.#churnAbove.elapsedMs,
      pausedMs: this.#paused.elapsedMs,
      failure: this.#failure,
    };
  }
}

/** What the error says, and its remedy if the store has answered. */
function saidBy(error: TidemarkError): { readonly message: string; readonly remedy?: string | undefined } {
  const { message, remedy } = error;
  return hasCode(error, "STORE_UNREACHABLE", "OUTCOME_UNKNOWN") ? { message } : { message, remedy };
}

/**
 * Whether the store caused the error. A store that has forgotten the vault counts as unreachable,
 * because nothing can be shipped to it.
 */
function isOfStore(error: TidemarkError): boolean {
  if (hasCode(error, "STORE_REGRESSED")) return error.detail["object"] === vaultName;
  return hasCode(
    error,
    "STORE_UNREACHABLE",
    "STORE_REFUSED",
    "ACCESS_REFUSED",
    "OUTCOME_UNKNOWN",
    "VAULT_NOT_FOUND",
    "NO_SPACE",
  );
}
