/**
 * Pace of a capture: how fast it may take cores and memory bandwidth from the clients of the disk that
 * it reads. A cycle of a live disk has until the next cut is due, so it follows a plan:
 *
 *     begun ÷ total ≤ elapsed ÷ window          window: `windowShare` of the time that the cycle has,
 *                                               less for a small cut, which costs clients little anyway
 *
 * A batch that is ahead of the plan waits. A capture that falls behind has more batches under way at
 * once, up to all slabs: a plan that cannot be kept is full speed by itself. While clients are at
 * work, batches are small, so that threads often leave their cores.
 *
 * The plan is not followed, and nothing waits, when no client is at work, when the cycle is
 * hurried (see `isHurried` in `protection-state.ts`), and when the old content that clients leave takes
 * half of its room.
 *
 * Invariant: the decision is a pure function of what is measured. It delays bytes, never drops them,
 * and a capture that may not begin a batch asks again within `paceTiming.askAgainMsMax`.
 */
import { paceTiming } from "../timing.ts";

/** What the decision rests on. */
export interface PaceMeasures {
  /** Bytes that the capture has to read, and those that it has begun to. */
  readonly totalBytes: number;
  readonly begunBytes: number;
  /** Time since the cut, and the time that the cycle has, in ms. */
  readonly elapsedMs: number;
  readonly intervalMs: number;
  /** Batches under way. */
  readonly underWay: number;
  readonly isHurried: boolean;
  /** Clients have asked the disk for something of late. */
  readonly isServing: boolean;
  /** Part of the room for old content that is taken, 0 to 1. */
  readonly keptShare: number;
}

/** When the next batch may begin, and how large it may be. */
export interface PaceDecision {
  /** 0: at once. */
  readonly waitMs: number;
  /** At most this many bytes of the volume. */
  readonly batchBytes: number;
}

/** What asks `capture` before each batch. */
export interface Pace {
  next(begunBytes: number, underWay: number): PaceDecision;
}

/** While clients are at work. A thread takes a core for some ms to work on as much. */
export const servedBatchBytes: number = 1024 * 1024;

/** Beyond this share of the room for old content, an abandoned cut is the greater evil. */
const keptShareMax = 0.5;

export function paceOf(measures: PaceMeasures): PaceDecision {
  const { totalBytes, begunBytes, elapsedMs, intervalMs, underWay, isHurried, isServing, keptShare } = measures;
  if (!isServing) return { waitMs: 0, batchBytes: Infinity };
  const atOnce = { waitMs: 0, batchBytes: servedBatchBytes };
  const { windowShare, windowMsMax, bytesPerSecondMin } = paceTiming;
  const windowMs = Math.min(intervalMs * windowShare, windowMsMax, (totalBytes / bytesPerSecondMin) * 1_000);
  if (isHurried || keptShare > keptShareMax || windowMs <= 0 || begunBytes >= totalBytes) return atOnce;
  const behindMs = elapsedMs - (windowMs * begunBytes) / totalBytes;
  if (behindMs < 0) return { ...atOnce, waitMs: Math.min(-behindMs, paceTiming.askAgainMsMax) };
  const behindBatches = (behindMs * totalBytes) / windowMs / servedBatchBytes;
  return underWay <= behindBatches ? atOnce : { ...atOnce, waitMs: paceTiming.askAgainMsMax };
}
