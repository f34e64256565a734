/**
 * When the next point of a disk is due. It reads no clock and sets no timer: it is told the time
 * and tells how long to wait.
 *
 *     start time ──► first point ──┬────────┬────────┬────────┬──►   a grid of one frequency, anchored at the first point's due time
 *                    (+ jitter)    tick     tick     tick     tick
 *     application-consistent:  the first tick at or after each of its own times
 *
 * A tick that passes while a point is being made is not queued: the point that overran is followed
 * by one at once, and then by the grid. Due times are kept on the steady clock, which nobody can
 * set; the wall clock is read for the start time, until it has come, and once more to lay
 * application-consistent points on round times (every hour: on the hour, UTC). So a wall clock that
 * jumps neither skips a point nor makes a burst of them.
 */
import assert from "node:assert/strict";
import { checksum } from "../../store/format/checksum.ts";

/**
 * Both clocks, read together, in ms. `wallMs` counts from 1970; `steadyMs` from anywhere, and never
 * goes back.
 */
export interface Instant {
  readonly wallMs: number;
  readonly steadyMs: number;
}

export interface SchedulePlan {
  readonly crashConsistentFrequencyMs: number;
  /** Absent: none on schedule. */
  readonly appConsistentFrequencyMs?: number | undefined;
  /** Not before this wall time. Counts until the first point is due. */
  readonly startTimeMs?: number | undefined;
  /**
   * The disk's name: ticks of different disks fall on different moments, and the same disk's always
   * on the same.
   */
  readonly disk: string;
  /**
   * The part of a period over which disks spread, from 0 to 1. Default: 0.2, but never more than 30
   * seconds.
   */
  readonly jitterFraction?: number | undefined;
}

export interface Due {
  /** In how many ms; 0 is now. */
  readonly inMs: number;
  /** What the point should be that is due then. */
  readonly consistency: "crash" | "app";
  /**
   * False: ask again then, no point is due yet. The wall clock might be set until the start time.
   */
  readonly isPoint: boolean;
}

const jitterFractionDefault = 0.2;
const jitterMsMax = 30_000;
/** The wall clock may be set while the start time is waited for: it is read at least this often. */
const startCheckMs = 60_000;

export class Schedule {
  #plan: SchedulePlan;
  /** The grid's first tick. Undefined until the start time has come. */
  #originMs: number | undefined;
  /** When the newest point was begun. */
  #startedMs: number | undefined;
  /** The next time for an application-consistent point. */
  #appDueMs: number | undefined;
  readonly #lastAppMs: number | undefined;

  /**
   * `lastAppMs`: wall time of the disk's newest application-consistent point, if the vault has one:
   * what was missed meanwhile is due at once.
   */
  constructor(plan: SchedulePlan, now: Instant, lastAppMs?: number) {
    checkPlan(plan);
    this.#plan = plan;
    this.#lastAppMs = lastAppMs;
    this.#layGrid(now);
  }

  /**
   * When the next point is due. Asked again after each point, each change of plan, and after
   * `inMs`.
   */
  next(now: Instant): Due {
    this.#layGrid(now);
    if (this.#originMs === undefined) {
      const inMs = Math.min(Math.max((this.#plan.startTimeMs ?? 0) - now.wallMs, 0), startCheckMs);
      return { inMs, consistency: "crash", isPoint: false };
    }
    const dueMs = Math.max(tickAfter(this.#plan, this.#originMs, this.#startedMs), now.steadyMs);
    const consistency = this.#appDueMs !== undefined && this.#appDueMs <= dueMs ? "app" : "crash";
    return { inMs: dueMs - now.steadyMs, consistency, isPoint: true };
  }

  /**
   * A point was begun, on schedule or on demand; `app` also when the application could not be
   * brought to rest.
   */
  started(consistency: Due["consistency"], now: Instant): void {
    this.#layGrid(now);
    this.#startedMs = now.steadyMs;
    if (consistency === "app") this.#appDueMs = laterRoundMs(this.#plan, this.#appDueMs, now);
  }

  /**
   * Another plan from now on: the next point is due by the new frequencies, counted from the last
   * one.
   */
  replan(plan: SchedulePlan, now: Instant): void {
    checkPlan(plan);
    const isSameApp = plan.appConsistentFrequencyMs === this.#plan.appConsistentFrequencyMs;
    this.#plan = plan;
    if (this.#originMs === undefined) this.#layGrid(now);
    else if (!isSameApp) this.#appDueMs = nextRoundMs(plan, now);
  }

  /** Once, when the start time has come. */
  #layGrid(now: Instant): void {
    if (this.#originMs !== undefined || (this.#plan.startTimeMs ?? 0) > now.wallMs) return;
    this.#originMs = now.steadyMs + jitterMs(this.#plan);
    this.#appDueMs = nextRoundMs(this.#plan, now);
    const everyMs = this.#plan.appConsistentFrequencyMs;
    if (everyMs === undefined || this.#appDueMs === undefined || this.#lastAppMs === undefined) return;
    // The round time before now has been missed. A point from the future was made by a clock that
    // has been set since: it tells nothing.
    if (this.#lastAppMs <= now.wallMs - everyMs) this.#appDueMs -= everyMs;
  }
}

/** The first tick after `startedMs`, or the origin when nothing has been started. */
function tickAfter(
  { crashConsistentFrequencyMs }: SchedulePlan,
  originMs: number,
  startedMs: number | undefined,
): number {
  if (startedMs === undefined || startedMs < originMs) return originMs;
  return originMs + (Math.floor((startedMs - originMs) / crashConsistentFrequencyMs) + 1) * crashConsistentFrequencyMs;
}

/** The next round time, as the wall clock has it now, on the steady clock. */
function nextRoundMs({ appConsistentFrequencyMs: everyMs }: SchedulePlan, now: Instant): number | undefined {
  return everyMs === undefined ? undefined : now.steadyMs + everyMs - (((now.wallMs % everyMs) + everyMs) % everyMs);
}

/** The first application-consistent time that is still to come, on the grid that was laid. */
function laterRoundMs(plan: SchedulePlan, appDueMs: number | undefined, now: Instant): number | undefined {
  const everyMs = plan.appConsistentFrequencyMs;
  if (everyMs === undefined || appDueMs === undefined) return nextRoundMs(plan, now);
  return appDueMs > now.steadyMs
    ? appDueMs
    : appDueMs + (Math.floor((now.steadyMs - appDueMs) / everyMs) + 1) * everyMs;
}

function jitterMs({ disk, crashConsistentFrequencyMs, jitterFraction = jitterFractionDefault }: SchedulePlan): number {
  const digest = checksum(Buffer.from(disk));
  const part = new DataView(digest.buffer, digest.byteOffset).getUint32(0) / 2 ** 32;
  return Math.floor(part * Math.min(jitterFraction * crashConsistentFrequencyMs, jitterMsMax));
}

function checkPlan({
  crashConsistentFrequencyMs,
  appConsistentFrequencyMs,
  jitterFraction = jitterFractionDefault,
}: SchedulePlan): void {
  assert(crashConsistentFrequencyMs > 0, "a frequency is a positive number of milliseconds");
  assert(
    appConsistentFrequencyMs === undefined || appConsistentFrequencyMs > 0,
    "a frequency is a positive number of milliseconds",
  );
  assert(jitterFraction >= 0 && jitterFraction <= 1, "jitter is a part of a period");
}
