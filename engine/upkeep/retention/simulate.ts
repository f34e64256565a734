/**
 * Simulation of a retention policy: points at regular times, pruned as they come, and what is left
 * at the end.
 *
 * A decision does not depend on earlier ones, so the result is the same however often it prunes.
 * It prunes whenever the points have doubled, which costs a few looks at each point: 30 days of a
 * point every 5 s are 518,400 points.
 */
import { setImmediate } from "node:timers/promises";
import { TidemarkError, throwIfAborted } from "../../errors.ts";
import { kept, type RetentionPoint } from "./decide.ts";
import { describeSpan, type RetentionPolicy } from "./policy.ts";

/** What `simulateRetention` simulates. */
export interface SimulationOptions {
  readonly policy: RetentionPolicy;
  /** How long points are made. */
  readonly spanMs: number;
  /** Time from one point to the next. */
  readonly everyMs: number;
  /** When it ends, ms since 1970. It decides where hours and days begin. */
  readonly endMs: number;
  readonly signal?: AbortSignal | undefined;
}

/** What a policy leaves. */
export interface SimulatedTimeline {
  readonly pointsMade: number;
  /** Ages of the points that are left, in ms, the newest first. The first is 0. */
  readonly agesMs: readonly number[];
}

/** A policy may keep all of them, at some 300 bytes each while it is applied. */
const pointsMadeMax = 2_000_000;
/** Pruning fewer than this gains nothing. */
const pruneAt = 4_096;

/**
 * Simulates a policy on crash-consistent points, made every `everyMs` for `spanMs`.
 *
 * @throws `INVALID_ARGUMENT` when that makes no point or more than 2,000,000; `INTERRUPTED`.
 */
export async function simulateRetention({
  policy,
  spanMs,
  everyMs,
  endMs,
  signal,
}: SimulationOptions): Promise<SimulatedTimeline> {
  const pointsMade = Math.floor(spanMs / everyMs);
  if (!(pointsMade >= 1 && pointsMade <= pointsMadeMax)) {
    const fact = `a point every ${describeSpan(everyMs)} for ${describeSpan(spanMs)} makes ${pointsMade} points`;
    throw new TidemarkError("INVALID_ARGUMENT", `${fact}, and 1 to ${pointsMadeMax} can be simulated`, {
      remedy:
        pointsMade < 1 ? "let points come more often, or for longer" : "let points come less often, or for fewer days",
    });
  }
  let points: RetentionPoint[] = [];
  let pruneNext = pruneAt;
  for (let sequence = 1; sequence <= pointsMade; sequence += 1) {
    const timeMs = endMs - (pointsMade - sequence) * everyMs;
    points.push({ sequence, timeMs, consistency: "crash", group: null, pinned: false });
    if (points.length < pruneNext && sequence < pointsMade) continue;
    points = kept(points, policy, timeMs);
    pruneNext = Math.max(2 * points.length, points.length + pruneAt);
    await setImmediate();
    throwIfAborted(signal);
  }
  return { pointsMade, agesMs: points.map(({ timeMs }) => endMs - timeMs).reverse() };
}
