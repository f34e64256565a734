/**
 * Retention by counts (grandfather-father-son): the newest points, one point in each of the newest
 * hours, days, weeks, months and years that have points, and all points up to an age. A point is
 * kept when any rule keeps it.
 *
 * Each rule keeps the best point of a period from the moment it comes until so many newer periods
 * have points; within its period a point gives way to a better one only (see `beats`).
 *
 * Invariant: what is left after a decision is what one decision would leave of all points that
 * there ever were.
 */
import { Calendar } from "./calendar.ts";
import { type Contestant, type Judgement, winners } from "./contest.ts";
import { describeSpan, type KeepPolicy, type Period } from "./policy.ts";

/** One rule, with all contestants before it. */
interface Rule {
  readonly keeps: (contestant: Contestant, index: number) => boolean;
  /** Why it keeps the contestant, or why it does not. */
  readonly explain: (contestant: Contestant, index: number) => string;
}

/**
 * In the contestants' order, oldest first. `ageZeroMs`: the time whose points have the age 0. At
 * least one rule.
 */
export function judgeByPeriods(contestants: readonly Contestant[], policy: KeepPolicy, ageZeroMs: number): Judgement[] {
  const { last, withinMs } = policy;
  const calendar = new Calendar(policy.timeZone);
  const rules: readonly Rule[] = [
    ...(last === null ? [] : [newest(contestants, last)]),
    ...policy.periods.map(({ period, count }) => onePerPeriod(contestants, calendar, period, count)),
    ...(withinMs === null ? [] : [upToAge(withinMs, ageZeroMs)]),
  ];
  return contestants.map((contestant, index): Judgement => {
    const keep = rules.some((rule) => rule.keeps(contestant, index));
    const deciding = (): readonly Rule[] => rules.filter((rule) => rule.keeps(contestant, index) === keep);
    return { keep, explain: () => deciding().map((rule) => rule.explain(contestant, index)) };
  });
}

/** Points from the future count: they are the newest, whatever their time is worth. */
function newest(contestants: readonly Contestant[], count: number): Rule {
  const keeps = (_: Contestant, index: number): boolean => index >= contestants.length - count;
  return { keeps, explain: (contestant, index) => `${keeps(contestant, index) ? "" : "not "}among the last ${count}` };
}

/**
 * Points from the future do not count: else a clock that had been a year ahead for a day would use
 * up all hours of the true past.
 */
function onePerPeriod(contestants: readonly Contestant[], calendar: Calendar, period: Period, count: number): Rule {
  const periodOf = ({ timeMs, isDated }: Contestant): number | undefined =>
    isDated ? calendar.periodOf(period, timeMs) : undefined;
  const best = winners(contestants, periodOf);
  const counted = new Map([...best].sort(([one], [other]) => other - one).slice(0, count));
  const kept = new Set(counted.values());
  return {
    keeps: (contestant) => kept.has(contestant),
    explain: (contestant) => {
      const own = periodOf(contestant);
      if (own === undefined) return `${period}: its time does not count`;
      const winner = counted.get(own);
      if (winner === undefined) return `older than the ${count} of ${period}`;
      const name = `${period} ${calendar.nameOf(period, contestant.timeMs)}`;
      return winner === contestant ? name : `superseded by ${winner.sequence}: ${name}`;
    },
  };
}

function upToAge(ageMsMax: number, ageZeroMs: number): Rule {
  const keeps = ({ timeMs, isDated }: Contestant): boolean => isDated && timeMs >= ageZeroMs - ageMsMax;
  return { keeps, explain: (contestant) => `${keeps(contestant) ? "within" : "older than"} ${describeSpan(ageMsMax)}` };
}
