/**
 * Times as a terminal shows them and as a user writes them.
 *
 * A time is shown in the local zone with its offset, or in UTC; either form can be pasted back as a
 * selector. A time that is written without a zone has two readings, so it is refused with both: a
 * script must not select another point because the machine's zone changed.
 *
 * Grammar of a time: an ISO 8601 date and time with `Z` or an offset, or `AGE ago`, where AGE is
 * one or more of a number and a unit: `90s ago`, `2 hours ago`, `1 day 6 hours ago`.
 */
import { TidemarkError } from "../engine/index.ts";

/** For `--help`: what a time is. */
export const timeForms = "ISO 8601 with a zone (2026-05-01T12:00:00Z) or an age (`2 hours ago`)";

const isoPattern = /^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2}(?::\d{2}(?:\.\d+)?)?)(Z|[+-]\d{2}:?\d{2})?)?$/i;
const agePattern = /^((?:\d{1,9}(?:\.\d{1,9})?\s{0,9}[a-z]{1,12}\s{0,9})+)\sago$/i;

const unitsMs: readonly (readonly [names: readonly string[], lengthMs: number])[] = [
  [["s", "sec", "secs", "second", "seconds"], 1_000],
  [["m", "min", "mins", "minute", "minutes"], 60_000],
  [["h", "hour", "hours"], 3_600_000],
  [["d", "day", "days"], 86_400_000],
  [["w", "week", "weeks"], 604_800_000],
];

/**
 * Milliseconds since 1970 of a time, or undefined when `text` is written as none.
 *
 * @throws INVALID_ARGUMENT for a time without a zone, an age in an unknown unit, and a date that no
 * calendar has.
 */
export function parseTime(text: string, nowMs: number): number | undefined {
  const written = text.trim();
  const age = agePattern.exec(written)?.[1];
  if (age !== undefined) return nowMs - ageMs(age, text);
  const match = isoPattern.exec(written);
  if (match === null) return undefined;
  const [, date = "", clock = "00:00", zone] = match;
  if (zone === undefined) throw withoutZone(text, date, clock);
  const timeMs = Date.parse(`${date}T${clock}${zone.toUpperCase()}`);
  if (Number.isNaN(timeMs)) throw noTime(text);
  return timeMs;
}

/**
 * As `parseTime`, for an option that takes a time and nothing else. `option` names it in errors.
 */
export function requireTime(option: string, text: string, nowMs: number): number {
  const timeMs = parseTime(text, nowMs);
  if (timeMs !== undefined) return timeMs;
  throw new TidemarkError("INVALID_ARGUMENT", `${option} ${JSON.stringify(text)} is not a time`, {
    remedy: `write ${option} 2026-05-01T12:00:00Z, or ${option} "2 hours ago"`,
  });
}

/**
 * A point selector as the engine takes it: a sequence number, an id and `latest` as they are, a
 * time as ISO 8601 in UTC.
 *
 * @throws INVALID_ARGUMENT for anything else.
 */
export function pointSelector(text: string, nowMs: number = Date.now()): string {
  const written = text.trim();
  if (written === "latest" || /^\d{1,15}$/.test(written) || /^[0-9a-f]{32}$/i.test(written)) return written;
  const timeMs = parseTime(written, nowMs);
  if (timeMs !== undefined) return new Date(timeMs).toISOString();
  throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(text)} does not name a point`, {
    remedy:
      'write a sequence number, an id, `latest`, 2026-05-01T12:00:00Z or "2 hours ago"; `tidemark points list --disk NAME` lists points',
  });
}

/**
 * `2026-05-01T14:00:00.123+02:00`: a time in the zone of this machine. Takes ISO 8601, or
 * milliseconds since 1970.
 */
export function formatLocal(time: string | number): string {
  const date = new Date(time);
  const offsetMinutes = -date.getTimezoneOffset();
  const shifted = new Date(date.getTime() + offsetMinutes * 60_000).toISOString().slice(0, -1);
  const size = Math.abs(offsetMinutes);
  return `${shifted}${offsetMinutes < 0 ? "-" : "+"}${twoDigits(Math.floor(size / 60))}:${twoDigits(size % 60)}`;
}

function ageMs(text: string, whole: string): number {
  let totalMs = 0;
  for (const [, count, unit = ""] of text.matchAll(/(\d{1,9}(?:\.\d{1,9})?)\s{0,9}([a-z]{1,12})/gi)) {
    const lengthMs = unitsMs.find(([names]) => names.includes(unit.toLowerCase()))?.[1];
    if (lengthMs === undefined) {
      throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(whole)} has the unknown unit ${unit}`, {
        remedy: "write seconds, minutes, hours, days or weeks, such as `2 hours ago`",
      });
    }
    totalMs += Number(count) * lengthMs;
  }
  return totalMs;
}

function withoutZone(text: string, date: string, clock: string): TidemarkError {
  const full = clock.length === "00:00".length ? `${date}T${clock}:00` : `${date}T${clock}`;
  const [localMs, utcMs] = [Date.parse(full), Date.parse(`${full}Z`)];
  if (Number.isNaN(localMs) || Number.isNaN(utcMs)) return noTime(text);
  const [local, utc] = [formatLocal(localMs).replace(".000", ""), `${full}Z`];
  return new TidemarkError(
    "INVALID_ARGUMENT",
    `the time ${text} has no zone: it is ${local} as local time, and ${utc} as UTC`,
    {
      remedy: `write ${local} or ${utc}`,
      detail: { local, utc },
    },
  );
}

function noTime(text: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(text)} is a time that no calendar has`, {
    remedy: "write a time such as 2026-05-01T12:00:00Z",
  });
}

function twoDigits(value: number): string {
  return String(value).padStart(2, "0");
}
