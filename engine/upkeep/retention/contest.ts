/**
 * Contest of points for one place: which of two points a retention rule keeps.
 *
 * Better consistency wins. Of equals the earlier point wins: it has held the place since it came,
 * so a new point in a running period drops none. Otherwise each new point would drop its
 * predecessor, and what is left of a running hour would never be older than the newest point,
 * which stays anyway.
 */

export interface Contestant {
  readonly sequence: number;
  readonly timeMs: number;
  /** The higher, the better. */
  readonly rank: number;
  /**
   * Its time is a date that is not later than now. A point without one holds no place and takes
   * none.
   */
  readonly isDated: boolean;
}

/** What a policy says of one contestant. */
export interface Judgement {
  readonly keep: boolean;
  /**
   * Why, in words: every rule that keeps it, or every rule that does not. Composed only when it is
   * called.
   */
  readonly explain: () => readonly string[];
}

/** Whether `one` takes the place that `other` holds. */
export function beats(one: Contestant, other: Contestant): boolean {
  if (one.rank !== other.rank) return one.rank > other.rank;
  if (one.timeMs !== other.timeMs) return one.timeMs < other.timeMs;
  return one.sequence < other.sequence;
}

/** The winners among the contestants that have a cell, by cell. */
export function winners(
  contestants: readonly Contestant[],
  cellOf: (contestant: Contestant) => number | undefined,
): Map<number, Contestant> {
  const best = new Map<number, Contestant>();
  for (const contestant of contestants) {
    const cell = cellOf(contestant);
    if (cell === undefined) continue;
    const holder = best.get(cell);
    if (holder === undefined || beats(contestant, holder)) best.set(cell, contestant);
  }
  return best;
}
