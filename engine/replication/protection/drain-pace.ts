/**
 * Pace at which a cut of a live disk is drained: the measures that `paceOf` decides by, taken before
 * each batch. Clients are at work while the disk's count of requests grows.
 */
import type { Cut } from "../../disk/tracking/cut.ts";
import type { ProtectedDisk } from "../../disk/tracking/protected-disk.ts";
import { type Pace, type PaceDecision, paceOf } from "../../pipeline/pace.ts";
import { paceTiming } from "../../timing.ts";
import type { ProtectionPolicy } from "./protection-status.ts";

/**
 * The time that a drain may be spread over, in ms: until the next cut is due, but a point has to be
 * committed before the one before it is older than the policy's threshold.
 */
export function drainTimeMs(dueInMs: number, { recoveryPointThresholdMs = Infinity }: ProtectionPolicy): number {
  return Math.max(0, Math.min(dueInMs, recoveryPointThresholdMs - dueInMs));
}

export interface DrainPaceOptions {
  readonly cut: Pick<Cut, "dirtyBytes">;
  /** On the clock of `now`. */
  readonly cutAtMs: number;
  /** See `drainTimeMs`. */
  readonly intervalMs: number;
  readonly disk: Pick<ProtectedDisk, "requests" | "preservedShare">;
  readonly isHurried: () => boolean;
  /** ms on a clock that never goes back. */
  readonly now: () => number;
}

export class DrainPace implements Pace {
  readonly #options: DrainPaceOptions;
  #requests: number;
  #servedAtMs: number;

  constructor(options: DrainPaceOptions) {
    this.#options = options;
    this.#requests = options.disk.requests;
    this.#servedAtMs = options.now();
  }

  next(begunBytes: number, underWay: number): PaceDecision {
    const { cut, cutAtMs, intervalMs, disk, isHurried, now } = this.#options;
    const nowMs = now();
    const { requests } = disk;
    if (requests !== this.#requests) this.#servedAtMs = nowMs;
    this.#requests = requests;
    return paceOf({
      totalBytes: cut.dirtyBytes,
      begunBytes,
      elapsedMs: nowMs - cutAtMs,
      intervalMs,
      underWay,
      isHurried: isHurried(),
      isServing: nowMs - this.#servedAtMs < paceTiming.servingMs,
      keptShare: disk.preservedShare,
    });
  }
}
