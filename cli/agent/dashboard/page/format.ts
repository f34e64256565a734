/** Values as the page shows them, in the units of the command line. */
import { formatBytes, formatDuration } from "../../../quantities.ts";

export { formatBytes, formatCount, formatNumberOf } from "../../../quantities.ts";

/** `12 MiB/s`. */
export function rate(bytesPerSecond: number): string {
  return `${formatBytes(Math.round(bytesPerSecond))}/s`;
}

/** `4.1 s`; a dash for what is not known. */
export function age(ageMs: number | null): string {
  return ageMs === null ? "–" : formatDuration(ageMs);
}

const clock = new Intl.DateTimeFormat(undefined, {
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});
const dayAndClock = new Intl.DateTimeFormat(undefined, {
  year: "numeric",
  month: "2-digit",
  day: "2-digit",
  hour: "2-digit",
  minute: "2-digit",
  second: "2-digit",
  hourCycle: "h23",
});

/** A time in the browser's zone: the time of the day, with the date when it is another day than today. */
export function time(iso: string): string {
  const date = new Date(iso);
  return (date.toDateString() === new Date().toDateString() ? clock : dayAndClock).format(date);
}
