/**
 * The rules of retention once more, said as plainly as they can be: for each point by itself, in
 * squares of the number of points, with nothing of the engine but its types. Periods are told apart
 * by what a clock of the zone shows, letter by letter.
 */
import type { RetentionPoint } from "../../../../engine/upkeep/retention/decide.ts";
import type { KeepPolicy, Period, RetentionBand, RetentionPolicy } from "../../../../engine/upkeep/retention/policy.ts";

const hour = 3_600_000;
const day = 24 * hour;

/** Sequences of the points that stay. Times are whole numbers of this millennium. */
export function modelKept(points: readonly RetentionPoint[], policy: RetentionPolicy, nowMs: number): number[] {
  const asTaken = setRight(points, nowMs);
  const left = keptAlone(asTaken, policy, nowMs);
  return asTaken.filter((point) => point.pinned || left.includes(point)).map(({ sequence }) => sequence);
}

/** A time from the future is what its writer's clock said, but later than all before it that are past. */
function setRight(points: readonly RetentionPoint[], nowMs: number): RetentionPoint[] {
  const right: RetentionPoint[] = [];
  for (const point of points) {
    const past = right.map(({ timeMs }) => timeMs).filter((timeMs) => timeMs <= nowMs);
    const isWrong = point.timeMs > nowMs && point.clockMs !== undefined;
    right.push(
      isWrong ? { ...point, timeMs: Math.max(point.clockMs ?? 0, ...past.map((timeMs) => timeMs + 1)) } : point,
    );
  }
  return right;
}

const qualities = ["fuzzy", "crash", "app"];

/** Any point of a group is better than any of the disk alone. */
const qualityOf = ({ group, groupConsistency, consistency }: RetentionPoint): number =>
  group === null ? qualities.indexOf(consistency) : 10 + qualities.indexOf(groupConsistency ?? "crash");

function keptAlone(points: readonly RetentionPoint[], policy: RetentionPolicy, nowMs: number): RetentionPoint[] {
  const past = points.filter(({ timeMs }) => timeMs <= nowMs);
  const [newest, newestOfPast] = [points.at(-1), past.at(-1)];
  const todayMs = newestOfPast?.timeMs ?? nowMs;
  const isBetter = (one: RetentionPoint, other: RetentionPoint): boolean =>
    qualityOf(one) > qualityOf(other) || (qualityOf(one) === qualityOf(other) && one.sequence < other.sequence);
  const isKept = (point: RetentionPoint): boolean => {
    if (point === newest || point === newestOfPast || !past.includes(point)) return true;
    switch (policy.kind) {
      case "everything":
        return true;
      case "days":
        return keptByBands(point, past, tables(policy.days), todayMs, isBetter);
      case "bands":
        return keptByBands(point, past, policy.bands, todayMs, isBetter);
      case "keep":
        if (policy.last === null && policy.periods.length === 0 && policy.withinMs === null) return true;
        return keptByRules(point, points, past, policy, todayMs, isBetter);
    }
  };
  return points.filter(isKept);
}

type IsBetter = (one: RetentionPoint, other: RetentionPoint) => boolean;

/** The original's tables, row by row. */
function tables(days: number): readonly RetentionBand[] {
  const row = (ageHours: number, everyHours: number | null): RetentionBand => ({
    ageMsMax: ageHours * hour,
    everyMs: everyHours === null ? null : everyHours * hour,
  });
  if (days === 0) return [];
  if (days === 1) return [row(2, null), row(24, 1)];
  if (days <= 7) return [row(2, null), row(days * 24, 2)];
  return [row(2, null), row(7 * 24, 2), row(days * 24, 4)];
}

/** Young enough for the table, and beaten in none of the bands that it has come to. */
function keptByBands(
  point: RetentionPoint,
  past: readonly RetentionPoint[],
  bands: readonly RetentionBand[],
  todayMs: number,
  isBetter: IsBetter,
): boolean {
  const ageOf = ({ timeMs }: RetentionPoint): number => todayMs - timeMs;
  const hasCome = (one: RetentionPoint, index: number): boolean =>
    index === 0 || ageOf(one) > (bands[index - 1]?.ageMsMax ?? Infinity);
  const survives = (one: RetentionPoint, count: number): boolean =>
    bands.slice(0, count).every((_, index) => winsBand(one, index));
  const winsBand = (one: RetentionPoint, index: number): boolean => {
    const everyMs = bands[index]?.everyMs ?? null;
    if (everyMs === null || !hasCome(one, index)) return true;
    return !past.some(
      (other) =>
        Math.floor(other.timeMs / everyMs) === Math.floor(one.timeMs / everyMs) &&
        hasCome(other, index) &&
        isBetter(other, one) &&
        survives(other, index),
    );
  };
  return bands.some(({ ageMsMax }) => ageOf(point) <= ageMsMax) && survives(point, bands.length);
}

/** Kept by one of the rules, each walked from the newest point to the oldest. */
function keptByRules(
  point: RetentionPoint,
  all: readonly RetentionPoint[],
  past: readonly RetentionPoint[],
  { last, periods, withinMs, timeZone }: KeepPolicy,
  todayMs: number,
  isBetter: IsBetter,
): boolean {
  if (last !== null && all.slice(-last).includes(point)) return true;
  if (withinMs !== null && todayMs - point.timeMs <= withinMs) return true;
  return periods.some(({ period, count }) => {
    const seen: string[] = [];
    for (const one of past.toReversed()) {
      const shown = shownBy(timeZone, period, one.timeMs);
      if (!seen.includes(shown)) seen.push(shown);
    }
    const own = shownBy(timeZone, period, point.timeMs);
    const isRival = (other: RetentionPoint): boolean =>
      isBetter(other, point) && shownBy(timeZone, period, other.timeMs) === own;
    return seen.slice(0, count).includes(own) && !past.some(isRival);
  });
}

const clocks = new Map<string, Intl.DateTimeFormat>();
const shownAlready = new Map<string, string>();

/** What names the period on a clock and a calendar of the zone. */
function shownBy(timeZone: string, period: Period, timeMs: number): string {
  const key = `${timeZone} ${period} ${timeMs}`;
  const known = shownAlready.get(key) ?? readClock(timeZone, period, timeMs);
  shownAlready.set(key, known);
  return known;
}

function readClock(timeZone: string, period: Period, timeMs: number): string {
  const clock =
    clocks.get(timeZone) ??
    new Intl.DateTimeFormat("en-GB", {
      timeZone,
      ...{
        year: "numeric",
        month: "2-digit",
        day: "2-digit",
        weekday: "short",
        hour: "2-digit",
        hourCycle: "h23",
        timeZoneName: "longOffset",
      },
    });
  clocks.set(timeZone, clock);
  const shown = new Map(clock.formatToParts(timeMs).map(({ type, value }) => [type, value]));
  const words = (...types: readonly Intl.DateTimeFormatPartTypes[]): string =>
    types.map((type) => shown.get(type) ?? "").join(" ");
  switch (period) {
    case "hourly":
      return words("year", "month", "day", "hour", "timeZoneName");
    case "daily":
      return words("year", "month", "day");
    case "weekly": {
      // The Monday on or before the date.
      const dateMs = Date.UTC(Number(shown.get("year")), Number(shown.get("month")) - 1, Number(shown.get("day")));
      const sinceMonday = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"].indexOf(words("weekday"));
      return new Date(dateMs - sinceMonday * day).toISOString();
    }
    case "monthly":
      return words("year", "month");
    case "yearly":
      return words("year");
  }
}
