/**
 * Retention by bands of age: the older a point, the wider the spacing at which points are kept.
 *
 * Each band has a grid of its spacing, fixed to the epoch (cell = floor(time / spacing)). A point
 * stays while it is the best of its cell. Only the edges of the bands move, with the age:
 *
 *      age   0          2h                       1d
 *            |  all     |  one a cell of 1 h     |  none
 *     points iiiiiiiiiiiii·i·····i·····i·····i··         (time runs to the left)
 *                       ^ a point that crosses this edge enters its cell's contest
 *
 * A contest takes all points that have crossed the band's younger edge, also those behind its
 * older edge and those that are too old. A loser is out of all later contests. So a point that has
 * lost once has lost for good, and the decision does not depend on when and how often decisions
 * were taken before.
 *
 * Invariant: what is left after a decision at a time t is what one decision at t would leave of
 * all points that there ever were, whatever was dropped between. For that, a cell must have
 * gathered all its points before one of them crosses the older edge: no spacing is larger than its
 * band is wide.
 *
 * Exception: a pinned loser stays, and wins its cell when the point that beat it has grown too
 * old. Where each spacing is a whole multiple of the one before, this changes nothing for other
 * points, because both are in the same cells ever after. Elsewhere it may enter another cell and
 * beat the point that it finds there.
 *
 * At the oldest edge a cell goes as a whole: its winner by age, the others by the contest that
 * they lost when they were younger. So the oldest point that is kept is up to one spacing younger
 * than the table goes.
 */
import { type Contestant, type Judgement, winners } from "./contest.ts";
import { describeSpan, type RetentionBand } from "./policy.ts";

/**
 * In the contestants' order. `ageZeroMs`: the time whose points have the age 0. At least one band.
 */
export function judgeByBands(
  contestants: readonly Contestant[],
  bands: readonly RetentionBand[],
  ageZeroMs: number,
): Judgement[] {
  const defeats = new Map<Contestant, Defeat>();
  let youngerEdgeMs = Number.POSITIVE_INFINITY;
  for (const { ageMsMax, everyMs } of bands) {
    if (everyMs !== null) contest(contestants, everyMs, youngerEdgeMs, defeats);
    youngerEdgeMs = ageZeroMs - ageMsMax;
  }
  return contestants.map((contestant): Judgement => {
    const defeat = defeats.get(contestant);
    const band = bands.find(({ ageMsMax }) => contestant.timeMs >= ageZeroMs - ageMsMax);
    const keep = contestant.isDated && band !== undefined && defeat === undefined;
    return { keep, explain: () => explain(contestant, band, defeat, bands) };
  });
}

/** How a contestant lost its place. */
interface Defeat {
  readonly winner: Contestant;
  readonly everyMs: number;
}

/**
 * One band's contest among the points that have crossed its younger edge and have not lost before.
 * Adds the losers to `defeats`.
 */
function contest(
  contestants: readonly Contestant[],
  everyMs: number,
  youngerEdgeMs: number,
  defeats: Map<Contestant, Defeat>,
): void {
  const cellOf = (contestant: Contestant): number | undefined => {
    const { timeMs, isDated } = contestant;
    return isDated && timeMs < youngerEdgeMs && !defeats.has(contestant) ? Math.floor(timeMs / everyMs) : undefined;
  };
  const best = winners(contestants, cellOf);
  for (const contestant of contestants) {
    const cell = cellOf(contestant);
    const winner = cell === undefined ? undefined : best.get(cell);
    if (winner !== undefined && winner !== contestant) defeats.set(contestant, { winner, everyMs });
  }
}

function explain(
  { timeMs, isDated }: Contestant,
  band: RetentionBand | undefined,
  defeat: Defeat | undefined,
  bands: readonly RetentionBand[],
): readonly string[] {
  if (!isDated) return [];
  const oneIn = (everyMs: number): string =>
    `one per ${describeSpan(everyMs)} from ${minuteOf(Math.floor(timeMs / everyMs) * everyMs)}`;
  const beaten = defeat === undefined ? [] : [`superseded by ${defeat.winner.sequence}: ${oneIn(defeat.everyMs)}`];
  if (band === undefined) return [`older than ${describeSpan(bands.at(-1)?.ageMsMax ?? 0)}`, ...beaten];
  if (defeat !== undefined) return beaten;
  return [band.everyMs === null ? `within ${describeSpan(band.ageMsMax)}` : oneIn(band.everyMs)];
}

/** `2026-01-15 14:00 UTC`, with seconds where there are any. */
function minuteOf(timeMs: number): string {
  // The cell of a point at the very end of what a date can be may begin before it.
  const date = new Date(Math.max(timeMs, -8.64e15));
  return `${date
    .toISOString()
    .slice(0, date.getUTCSeconds() === 0 ? 16 : 19)
    .replace("T", " ")} UTC`;
}
