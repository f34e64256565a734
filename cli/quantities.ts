/**
 * Sizes, rates and durations: formatted for people and parsed from flags. Sizes are in binary
 * units.
 */

const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"] as const;

/** `0 B`, `64 KiB`, `8.6 MiB`, `192 MiB`: one decimal where it says something. */
export function formatBytes(bytes: number): string {
  let value = bytes;
  let unit = 0;
  while (value >= 1023.5 && unit < units.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${Number.isInteger(value) || value >= 99.95 ? value.toFixed(0) : value.toFixed(1)} ${units[unit] ?? ""}`;
}

/** Always in MiB/s, so that rates can be compared at a glance. */
export function formatRate(bytes: number, elapsedMs: number): string {
  const rate = bytes / 1024 ** 2 / (Math.max(elapsedMs, 1) / 1000);
  return `${rate.toFixed(rate < 9.95 ? 1 : 0)} MiB/s`;
}

/** `0.3 s`, `12.4 s`, `3 min 05 s`, `2 h 07 min`. */
export function formatDuration(elapsedMs: number): string {
  if (elapsedMs < 59_950) return `${(elapsedMs / 1000).toFixed(1)} s`;
  const seconds = Math.round(elapsedMs / 1000);
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${padded(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${padded(minutes % 60)} min`;
}

/** `3,412` */
export function formatCount(count: number): string {
  return String(Math.round(count)).replace(/\B(?=(?:\d{3})+$)/g, ","); // `toLocaleString` takes 9 ms the first time
}

/** `1 point`, `3 points` */
export function formatNumberOf(count: number, noun: string): string {
  return `${formatCount(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** `1.9 : 1`; `-` when nothing was stored. */
export function formatRatio(plainBytes: number, storedBytes: number): string {
  return storedBytes === 0 ? "-" : `${(plainBytes / storedBytes).toFixed(plainBytes / storedBytes < 99.5 ? 1 : 0)} : 1`;
}

/** Bytes of `64KiB`, `64K`, `1 MiB` or `65536`; undefined when it is no whole number of bytes. */
export function parseBytes(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?$/i.exec(text.trim());
  if (match === null) return undefined;
  const power = match[2] === undefined ? 0 : "KMGT".indexOf(match[2].toUpperCase()) + 1;
  const bytes = Number(match[1]) * 1024 ** power;
  return Number.isSafeInteger(bytes) ? bytes : undefined;
}

/** Bytes a second of `20MiB/s` or `20M`; undefined when it is no rate of at least 1 KiB/s. */
export function parseRate(text: string): number | undefined {
  const bytes = parseBytes(text.replace(/\/\s*s$/, ""));
  return bytes === undefined || bytes < 1024 ? undefined : bytes;
}

const millisecondsOf: Readonly<Record<string, number>> = {
  ms: 1,
  s: 1_000,
  m: 60_000,
  min: 60_000,
  h: 3_600_000,
  d: 86_400_000,
  w: 604_800_000,
};

/**
 * Milliseconds of `300ms`, `5s`, `15m`, `1h`, `1.5 d`, `2w`; undefined when it is no whole number
 * of them.
 */
export function parseDuration(text: string): number | undefined {
  const match = /^(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|d|w)$/.exec(text.trim());
  const elapsedMs = Number(match?.[1]) * (millisecondsOf[match?.[2] ?? ""] ?? Number.NaN);
  return Number.isSafeInteger(elapsedMs) ? elapsedMs : undefined;
}

function padded(value: number): string {
  return String(value).padStart(2, "0");
}
