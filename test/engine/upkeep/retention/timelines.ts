/** Points for tests of retention, written as times and seen as times. */
import { expect } from "vitest";
import { decide, type RetentionPoint } from "../../../../engine/upkeep/retention/decide.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";

export const minute = 60_000;
export const hour: number = 60 * minute;
export const day: number = 24 * hour;

/** A Thursday. */
export const noon: number = Date.UTC(2026, 0, 15, 12);

export function pointAt(sequence: number, timeMs: number, more: Partial<RetentionPoint> = {}): RetentionPoint {
  return { sequence, timeMs, consistency: "crash", group: null, pinned: false, ...more };
}

/** Points at `times`, which begin with sequence 1. */
export function pointsAt(times: readonly number[]): RetentionPoint[] {
  return times.map((timeMs, index) => pointAt(index + 1, timeMs));
}

/** Sequences of the points that stay, and a look at what every decision owes. */
export function keptOf(points: readonly RetentionPoint[], policy: string, nowMs: number): number[] {
  const decisions = decide(points, parsePolicy(policy), nowMs);
  expect(decisions.map(({ sequence }) => sequence)).toEqual(points.map(({ sequence }) => sequence));
  for (const { reasons } of decisions) expect(reasons.length).toBeGreaterThan(0);
  return decisions.filter(({ keep }) => keep).map(({ sequence }) => sequence);
}

/** Why the point with `sequence` stays or goes. */
export function reasonsOf(
  points: readonly RetentionPoint[],
  policy: string,
  nowMs: number,
  sequence: number,
): readonly string[] {
  return decide(points, parsePolicy(policy), nowMs).find((decision) => decision.sequence === sequence)?.reasons ?? [];
}
