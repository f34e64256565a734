/**
 * Retention: which points of a disk stay, as a pure function of the points, the policy and the
 * time, with a reason for each decision. It reads nothing and removes nothing.
 *
 * What holds under every policy, whatever the clock did:
 *
 * - The newest point stays. A point that is dated later than now, or whose time is not a date,
 *   stays too: its age is not known.
 * - Ages are counted from the newest point that is not dated later than now, and that point stays.
 *   So nothing grows older while no new point arrives.
 * - A clock that was ahead leaves points from the future, and the times of later points follow them by
 *   the smallest step. A point whose time is later than now counts as taken when its writer's clock
 *   says, and later than the points before it. So only the points that were made while the clock was
 *   ahead wait until the clock has caught up with them.
 * - A policy without a rule keeps everything. A pinned point stays, and a pin changes nothing for
 *   other points.
 * - A decision does not depend on earlier ones. While times rise and the clock is not set back,
 *   what is left after a decision is what the same decision would leave of all points that there
 *   ever were. So it makes no difference how often a disk is pruned, and a second prune removes
 *   nothing more. `judgeByBands` and `judgeByPeriods` say why, and what pins can change about it.
 *
 * Points of a complete group stay or go on all of its disks. One disk's points do not tell what
 * the others keep, so `prune/group-retention.ts` decides where all members are known. Here a
 * group's point is the best of its bands and periods, so that members with the same groups choose
 * the same points.
 */
import type { Consistency } from "../../volume.ts";
import { judgeByBands } from "./bands.ts";
import { calendarMsMax } from "./calendar.ts";
import type { Contestant, Judgement } from "./contest.ts";
import { judgeByPeriods } from "./periods.ts";
import { bandsOfDays, type RetentionPolicy } from "./policy.ts";

/** A point as retention sees it. */
export interface RetentionPoint {
  readonly sequence: number;
  /** Of the cut, ms since 1970. */
  readonly timeMs: number;
  /** The writer's clock at the cut, where the time had to be moved past that of the point before. */
  readonly clockMs?: number | undefined;
  readonly consistency: Consistency;
  /** The id of the point's group, only when every member has its point of it; else null. */
  readonly group: string | null;
  /**
   * How consistent the group's point is, told alike on all of its disks. Absent: all points of
   * groups count as equally good, because a disk's own consistency does not tell (an application
   * rests on one disk and has nothing on another).
   */
  readonly groupConsistency?: Consistency | undefined;
  readonly pinned: boolean;
}

/** What retention decides about one point. */
export interface Decision {
  readonly sequence: number;
  readonly keep: boolean;
  /**
   * The rules that decided, in a few words each: every rule that keeps the point, or every rule
   * that does not. Never empty.
   */
  readonly reasons: readonly string[];
}

/**
 * Decides for each of a disk's points whether it stays. `points`: all points of the disk, oldest
 * first. `policy`: from `parsePolicy`. `nowMs`: ms since 1970. Returns one decision for each point,
 * in their order. Throws nothing.
 *
 * @example
 * ```ts
 * const decisions = decide(points, parsePolicy("bands:2h=all,1d=1h"), Date.now());
 * const dropped = decisions.filter(({ keep }) => !keep).map(({ sequence }) => sequence);
 * ```
 */
export function decide(points: readonly RetentionPoint[], policy: RetentionPolicy, nowMs: number): readonly Decision[] {
  const judgements = judge(points, policy, nowMs);
  return points.map(({ sequence }, index) => {
    const { keep, explain } = judgements[index] ?? forgotten;
    return { sequence, keep, reasons: explain() };
  });
}

/** The points that stay: `decide` without its reasons, for many points. */
export function kept<Point extends RetentionPoint>(
  points: readonly Point[],
  policy: RetentionPolicy,
  nowMs: number,
): Point[] {
  const judgements = judge(points, policy, nowMs);
  return points.filter((_, index) => judgements[index]?.keep !== false);
}

/** The higher, the better. Every point of a group is better than every point of the disk alone. */
const ranks: Readonly<Record<Consistency, number>> = { fuzzy: 1, crash: 2, app: 3 };
const groupRank = 3;

/** For a point that no rule speaks of. There is none; if there were, it would stay. */
const forgotten: Judgement = { keep: true, explain: () => ["no rule speaks of it"] };

function judge(points: readonly RetentionPoint[], policy: RetentionPolicy, nowMs: number): readonly Judgement[] {
  const times = timesTaken(points, nowMs);
  // Where there is no time to count from, every point counts as later.
  const newestAt = times.findLastIndex((timeMs) => isTime(timeMs) && (!isTime(nowMs) || timeMs <= nowMs));
  const ageZeroMs = times[newestAt] ?? Number.NEGATIVE_INFINITY;
  const contestants = points.map((point, index): Contestant => {
    const timeMs = times[index] ?? point.timeMs;
    return { sequence: point.sequence, timeMs, rank: rankOf(point), isDated: isTime(timeMs) && timeMs <= ageZeroMs };
  });
  const judgements = judgeByRules(contestants, policy, ageZeroMs);
  return points.map(({ pinned }, index) => {
    const timeMs = times[index] ?? Number.NaN;
    const judgement = judgements[index] ?? forgotten;
    const anyway: string[] = [];
    if (pinned) anyway.push("pinned");
    if (index === points.length - 1) anyway.push("newest");
    else if (index === newestAt) anyway.push("newest that is not dated later than now");
    if (!isTime(timeMs)) anyway.push("has no time");
    else if (timeMs > ageZeroMs) anyway.push(`dated later than ${timeMs > nowMs ? "now" : "the newest"}`);
    return anyway.length === 0 ? judgement : keptAnyway(anyway, judgement);
  });
}

/** When the points were taken, as far as a time that is later than now can be put right. */
function timesTaken(points: readonly RetentionPoint[], nowMs: number): readonly number[] {
  let beforeMs = Number.NEGATIVE_INFINITY;
  return points.map(({ timeMs, clockMs }) => {
    const isLater = isTime(nowMs) && timeMs > nowMs;
    const takenMs = isLater && clockMs !== undefined ? Math.max(clockMs, beforeMs + 1) : timeMs;
    if (isTime(takenMs) && takenMs <= nowMs) beforeMs = takenMs;
    return takenMs;
  });
}

function rankOf({ group, groupConsistency, consistency }: RetentionPoint): number {
  return group === null ? ranks[consistency] : groupRank + ranks[groupConsistency ?? "crash"];
}

function judgeByRules(
  contestants: readonly Contestant[],
  policy: RetentionPolicy,
  ageZeroMs: number,
): readonly Judgement[] {
  switch (policy.kind) {
    case "everything":
      return everything(contestants);
    case "days":
      return policy.days === 0
        ? contestants.map(() => newestOnly)
        : judgeByBands(contestants, bandsOfDays(policy.days), ageZeroMs);
    case "bands":
      return policy.bands.length === 0 ? everything(contestants) : judgeByBands(contestants, policy.bands, ageZeroMs);
    case "keep": {
      const { last, periods, withinMs } = policy;
      const isEmpty = last === null && periods.length === 0 && withinMs === null;
      return isEmpty ? everything(contestants) : judgeByPeriods(contestants, policy, ageZeroMs);
    }
  }
}

const newestOnly: Judgement = { keep: false, explain: () => ["not the newest"] };

function everything(contestants: readonly Contestant[]): readonly Judgement[] {
  const judgement: Judgement = { keep: true, explain: () => ["the policy keeps everything"] };
  return contestants.map(() => judgement);
}

/**
 * For a point that stays for these reasons, and for those of the policy if it would keep it, too.
 */
function keptAnyway(reasons: readonly string[], { keep, explain }: Judgement): Judgement {
  return { keep: true, explain: () => (keep ? [...reasons, ...explain()] : reasons) };
}

/** Whether a date can be computed of it, in any time zone. */
function isTime(timeMs: number): boolean {
  return Math.abs(timeMs) <= calendarMsMax;
}
