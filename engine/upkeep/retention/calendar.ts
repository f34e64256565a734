/**
 * Calendar periods: hours, days, weeks, months and years as the clocks of a time zone show them.
 *
 * A period is a number: the same for two instants of one period, larger for a later one. A day is
 * one period whether it has 23, 24 or 25 hours. When clocks go back, the hour that is shown twice
 * is two periods: an hour is named by the time that the clock shows and by its offset from UTC.
 */
import type { Period } from "./policy.ts";

const hourMs = 3_600_000;
const dayMs: number = 24 * hourMs;

/** Times whose local date can be computed in any zone: what `Date` holds, less two days. */
export const calendarMsMax: number = 8.64e15 - 2 * dayMs;

/** For one run over many points: it remembers the offsets that it has looked up. */
export class Calendar {
  /** Undefined: UTC, which needs no looking up. */
  readonly #zone: Intl.DateTimeFormat | undefined;
  /** Offset in ms of whole UTC days; null where it changes within the day. */
  readonly #days = new Map<number, number | null>();

  /** Errors: RangeError for a zone that this machine does not know; a parsed policy names none. */
  constructor(timeZone: string) {
    this.#zone =
      timeZone === "UTC" ? undefined : new Intl.DateTimeFormat("en-US", { timeZone, timeZoneName: "longOffset" });
  }

  /** The period in which `timeMs` lies, at most `calendarMsMax` from 1970. */
  periodOf(period: Period, timeMs: number): number {
    const offsetMs = this.#offsetMs(timeMs);
    const local = new Date(timeMs + offsetMs);
    switch (period) {
      case "hourly":
        // As an instant, so that it is another one for another offset.
        return Math.floor((timeMs + offsetMs) / hourMs) * hourMs - offsetMs;
      case "daily":
        return Math.floor((timeMs + offsetMs) / dayMs);
      case "weekly":
        return weekOf(local);
      case "monthly":
        return local.getUTCFullYear() * 12 + local.getUTCMonth();
      case "yearly":
        return local.getUTCFullYear();
    }
  }

  /**
   * The period's name, for people: `2026-10-25 02:00 +01:00`, `2026-10-25`, `2026-W43`, `2026-10`,
   * `2026`.
   */
  nameOf(period: Period, timeMs: number): string {
    const offsetMs = this.#offsetMs(timeMs);
    const local = new Date(timeMs + offsetMs);
    const date = local.toISOString();
    const [day = date] = date.split("T");
    switch (period) {
      case "hourly":
        return `${day} ${date.slice(day.length + 1, day.length + 3)}:00 ${this.#zone === undefined ? "UTC" : describeOffset(offsetMs)}`;
      case "daily":
        return day;
      case "weekly":
        return describeWeek(local);
      case "monthly":
        return day.slice(0, -3);
      case "yearly":
        return day.slice(0, -6);
    }
  }

  #offsetMs(timeMs: number): number {
    if (this.#zone === undefined) return 0;
    const day = Math.floor(timeMs / dayMs);
    let known = this.#days.get(day);
    if (known === undefined) {
      const startMs = offsetAt(this.#zone, day * dayMs);
      known = startMs === offsetAt(this.#zone, (day + 1) * dayMs) ? startMs : null;
      this.#days.set(day, known);
    }
    return known ?? offsetAt(this.#zone, timeMs);
  }
}

/** Of what the zone shows at an instant, `GMT+05:30`, in old times `GMT+00:53:28`. */
function offsetAt(zone: Intl.DateTimeFormat, timeMs: number): number {
  const text = zone.formatToParts(timeMs).find(({ type }) => type === "timeZoneName")?.value ?? "";
  const [, sign, hours = 0, minutes = 0, seconds = 0] = /^GMT(?:([+-])(\d\d):(\d\d)(?::(\d\d))?)?$/.exec(text) ?? [];
  return (sign === "-" ? -1 : 1) * (Number(hours) * 3_600 + Number(minutes) * 60 + Number(seconds)) * 1_000;
}

/** Weeks begin on Monday, and 1970-01-01 was a Thursday. */
function weekOf(local: Date): number {
  return Math.floor((Math.floor(local.getTime() / dayMs) + 3) / 7);
}

/** ISO 8601: a week belongs to the year in which its Thursday lies. */
function describeWeek(local: Date): string {
  const thursday = new Date(weekOf(local) * 7 * dayMs);
  const year = thursday.getUTCFullYear();
  const week = Math.floor((thursday.getTime() - new Date(0).setUTCFullYear(year)) / (7 * dayMs)) + 1;
  return `${year}-W${padded(week)}`;
}

function describeOffset(offsetMs: number): string {
  const minutes = Math.floor(Math.abs(offsetMs) / 60_000);
  return `${offsetMs < 0 ? "-" : "+"}${padded(Math.floor(minutes / 60))}:${padded(minutes % 60)}`;
}

function padded(value: number): string {
  return String(value).padStart(2, "0");
}
