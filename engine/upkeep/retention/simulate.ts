/**
 * A policy tried out: points at regular times, pruned as they come, and what is left in the end.
 *
 * Since a decision does not depend on earlier ones, it is the same whether one prunes after each point or now and then. So it is done whenever
 * the points have doubled, which costs a few looks at each point in all: 30 days of a point every 5 s are 518,400 points.
 */
import { setImmediate } from "node:timers/promises";
import { TidemarkError, throwIfAborted } from "../../errors.ts";
import { kept, type RetentionPoint } from "./decide.ts";
import { describeSpan, type RetentionPolicy } from "./policy.ts";

export interface SimulationOptions {
  readonly policy: RetentionPolicy;
  /** How long points have been made when it ends. */
  readonly spanMs: number;
  /** From one point to the next. */
  readonly everyMs: number;
  /** When it ends, ms since 1970: what a clock shows then tells where hours and days begin. */
  readonly endMs: number;
  readonly signal?: AbortSignal | undefined;
}

export interface SimulatedTimeline {
  readonly pointsMade: number;
  /** Ages of the points that are left, in ms, the newest first. The first is 0. */
  readonly agesMs: readonly number[];
}

/** A policy may keep all of them, at some 300 bytes each while it is applied. */
const pointsMadeMax = 2_000_000;
/** Pruning fewer than this gains nothing. */
const pruneAt = 4_096;

/** What is left of crash-consistent points after `spanMs`. Errors: INVALID_ARGUMENT, INTERRUPTED. */
export async function simulateRetention({ policy, spanMs, everyMs, endMs, signal }: SimulationOptions): Promise<SimulatedTimeline> {
  const pointsMade = Math.floor(spanMs / everyMs);
  if (!(pointsMade >= 1 && pointsMade <= pointsMadeMax)) {
    const fact = `a point every ${describeSpan(everyMs)} for ${describeSpan(spanMs)} makes ${pointsMade} points`;
    throw new TidemarkError("INVALID_ARGUMENT", `${fact}, and 1 to ${pointsMadeMax} can be simulated`, {
      remedy: pointsMade < 1 ? "let points come more often, or for longer" : "let points come less often, or for fewer days",
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
