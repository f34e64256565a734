/**
 * What the kinds of policies have in common: points as contestants for a place, who of two wins it, and what a rule says of each.
 *
 * Better consistency wins. Among equals the earlier point does: it has held the place since it came, so a newer point of a period that is still
 * running takes nothing away. Were it the later one, each new point would drop the one before it that somebody may be looking at, and what is left
 * of a running hour would never be older than the newest point, which is kept anyway.
 */

export interface Contestant {
  readonly sequence: number;
  readonly timeMs: number;
  /** The higher, the better. */
  readonly rank: number;
  /** Its time can be believed: it is neither nonsense nor later than now. Others hold no place and take none. */
  readonly isDated: boolean;
}

/** What a policy says of one contestant. */
export interface Judgement {
  readonly keep: boolean;
  /** Why, in words: every rule that keeps it, or every one that might have and does not. Put together only when somebody asks. */
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
