/**
 * Scheduling: when the next point of a disk is due. Pure: the caller gives the time and gets how
 * long to wait.
 *
 *     start time ──► first point ──┬────────┬────────┬────────┬──►   a grid of one frequency, anchored at the first point's due time
 *                    (+ jitter)    tick     tick     tick     tick
 *     application-consistent:  the first tick at or after each round time (every hour: on the hour, UTC)
 *
 * A tick that passes while a point is being made is not queued: a point that overran its period is
 * followed by one point at once, and then by the grid. An application-consistent point that was
 * missed while the agent was stopped is due with the first tick (`catchUp`).
 *
 * Due times stand on the steady clock, which cannot be set. The wall clock is read for the start
 * time, until it has come, once to place the round times, and once to catch up.
 *
 * Invariant: a wall clock that jumps neither skips a point nor makes a burst of them.
 */
import assert from "node:assert/strict";
import type { Instant } from "../../clocks.ts";
import { checksum } from "../../store/format/checksum.ts";

export interface SchedulePlan {
  readonly crashConsistentFrequencyMs: number;
  /** Absent: application-consistent points are made on demand only. */
  readonly appConsistentFrequencyMs?: number | undefined;
  /** The first point is due at this wall time or later. */
  readonly startTimeMs?: number | undefined;
  /**
   * The disk's name. It decides the jitter: the ticks of different disks differ, and those of one
   * disk stay the same over restarts.
   */
  readonly disk: string;
  /**
   * The part of a period over which the ticks of disks spread, from 0 to 1; at most 30 seconds.
   * Default: 0.2.
   */
  readonly jitterFraction?: number | undefined;
}

export interface Due {
  /** Ms from now; 0 is now. */
  readonly inMs: number;
  /** The consistency that the due point is to have. */
  readonly consistency: "crash" | "app";
  /**
   * False: no point is due then; the caller asks again. The wall clock may be set before the start
   * time comes.
   */
  readonly isPoint: boolean;
}

const jitterFractionDefault = 0.2;
const jitterMsMax = 30_000;
/** Before the start time, the wall clock is read at least this often, because it may be set. */
const startCheckMs = 60_000;

export class Schedule {
  #plan: SchedulePlan;
  /** The grid's first tick. Undefined until the start time has come. */
  #originMs: number | undefined;
  /** When the newest point was begun. */
  #startedMs: number | undefined;
  /** The next time for an application-consistent point. */
  #appDueMs: number | undefined;

  constructor(plan: SchedulePlan, now: Instant) {
    checkPlan(plan);
    this.#plan = plan;
    this.#layGrid(now);
  }

  /**
   * When the next point is due. The caller asks again after each point, after each change of plan
   * and when `inMs` has passed.
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
   * A point was begun, on schedule or on demand. `app`: its hook ran, whether or not the
   * application came to rest.
   */
  started(consistency: Due["consistency"], now: Instant): void {
    this.#layGrid(now);
    this.#startedMs = now.steadyMs;
    if (consistency === "app") this.#appDueMs = laterRoundMs(this.#plan, this.#appDueMs, now);
  }

  /**
   * Replaces the plan. The next point is due by the new frequencies, counted from the newest point.
   */
  replan(plan: SchedulePlan, now: Instant): void {
    checkPlan(plan);
    const isSameApp = plan.appConsistentFrequencyMs === this.#plan.appConsistentFrequencyMs;
    this.#plan = plan;
    if (this.#originMs === undefined) this.#layGrid(now);
    else if (!isSameApp) this.#appDueMs = nextRoundMs(plan, now);
  }

  /**
   * The newest round time of application-consistent points, in ms since 1970. Undefined before the
   * start time, and when the plan has no such points.
   */
  lastRoundMs({ wallMs }: Instant): number | undefined {
    const everyMs = this.#plan.appConsistentFrequencyMs;
    return everyMs === undefined || this.#appDueMs === undefined ? undefined : wallMs - phaseMs(everyMs, wallMs);
  }

  /**
   * Makes up for a round time that passed while no schedule ran: if `lastAppMs` is before the
   * newest round time, an application-consistent point is due with the next tick. `lastAppMs`: wall
   * time of the disk's newest application-consistent point; undefined if it has none since that
   * round time.
   */
  catchUp(lastAppMs: number | undefined, now: Instant): void {
    const roundMs = this.lastRoundMs(now);
    if (roundMs === undefined || (lastAppMs !== undefined && lastAppMs >= roundMs)) return;
    const { appConsistentFrequencyMs: everyMs = 0 } = this.#plan;
    if (this.#appDueMs !== undefined && this.#appDueMs > now.steadyMs) this.#appDueMs -= everyMs;
  }

  /** Places the grid, once, when the start time has come. */
  #layGrid(now: Instant): void {
    if (this.#originMs !== undefined || (this.#plan.startTimeMs ?? 0) > now.wallMs) return;
    this.#originMs = now.steadyMs + jitterMs(this.#plan);
    this.#appDueMs = nextRoundMs(this.#plan, now);
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

/** The next round time on the steady clock, by what the wall clock shows now. */
function nextRoundMs({ appConsistentFrequencyMs: everyMs }: SchedulePlan, now: Instant): number | undefined {
  return everyMs === undefined ? undefined : now.steadyMs + everyMs - phaseMs(everyMs, now.wallMs);
}

/** How long ago the newest round time was. */
function phaseMs(everyMs: number, wallMs: number): number {
  return ((wallMs % everyMs) + everyMs) % everyMs;
}

/** The first round time after `now`, on the steady clock and on the grid of round times. */
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
  assert(jitterFraction >= 0 && jitterFraction <= 1, "jitter is a fraction of a period");
}
