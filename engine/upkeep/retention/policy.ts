/**
 * Retention policy: its form, and the text that users write it as.
 *
 *     none                                      keeps everything; so does a policy without a rule
 *     days:N                                    the bands of Azure Site Recovery for N days, 0 to 15; 0 keeps the newest point only
 *     bands:2h=all,1d=1h,7d=2h                  up to an age of 2 h every point, up to 1 day one an hour, up to 7 days one per 2 h
 *     keep:last=7,hourly=24,…,within=36h        what any of the rules keeps: the newest 7, one of each of the newest 24 hours that have
 *          [,tz=Europe/Berlin]                  points, …, all up to an age of 36 h; periods as clocks in the time zone show them
 *
 * Durations are a number and `s`, `m`, `h`, `d` or `w`. A policy whose words contradict each other
 * is refused, with all faults at once.
 */
import { TidemarkError } from "../../errors.ts";

/** Periods of a calendar, finest first. A week begins on Monday. */
export type Period = "hourly" | "daily" | "weekly" | "monthly" | "yearly";

const periods: readonly Period[] = ["hourly", "daily", "weekly", "monthly", "yearly"];

/** What holds for points of at most this age that no earlier band covers. */
export interface RetentionBand {
  readonly ageMsMax: number;
  /** One point is kept in each span of this length; null keeps every point. */
  readonly everyMs: number | null;
}

/** Spacing by age. Ages rise from band to band, and spacings never fall. */
export interface BandsPolicy {
  readonly kind: "bands";
  readonly bands: readonly RetentionBand[];
}

/** Counts of points and periods to keep; a point that any rule keeps stays. */
export interface KeepPolicy {
  readonly kind: "keep";
  /** The number of newest points to keep; null: no such rule. */
  readonly last: number | null;
  /** For each period, the number of newest periods that have points; one point of each is kept. */
  readonly periods: readonly { readonly period: Period; readonly count: number }[];
  /** Every point up to this age. */
  readonly withinMs: number | null;
  /** IANA name of the zone whose clocks tell where a period begins. */
  readonly timeZone: string;
}

/** A retention policy that `parsePolicy` has checked. A policy without a rule keeps everything. */
export type RetentionPolicy =
  | { readonly kind: "everything" }
  /** Whole days, 0 to 15. */
  | { readonly kind: "days"; readonly days: number }
  | BandsPolicy
  | KeepPolicy;

const secondMs = 1_000;
const minuteMs: number = 60 * secondMs;
const hourMs: number = 60 * minuteMs;
const dayMs: number = 24 * hourMs;
const unitsMs: Readonly<Record<string, number>> = { s: secondMs, m: minuteMs, h: hourMs, d: dayMs, w: 7 * dayMs };

/** Azure Site Recovery goes no further; a band table does. */
const daysMax = 15;
/** Each band is one pass over all points. */
const bandsMax = 64;

const remedies = {
  form: "write `days:7`, `bands:2h=all,1d=1h,7d=2h`, `keep:last=7,hourly=24,daily=30`, or `none` to keep everything",
  days: "give whole days from 0 to 15; for longer, write a band table such as `bands:2h=all,7d=2h,30d=4h`",
  bands: "write rows as AGE=EVERY with rising ages, such as `bands:2h=all,1d=1h,7d=2h`",
  keep: "the rules are last, hourly, daily, weekly, monthly, yearly (a count), within (a duration such as 36h) and tz (such as Europe/Berlin)",
} as const;

interface PolicyFault {
  readonly fact: string;
  readonly remedy: string;
}

/**
 * Reads a policy from its text, such as `days:7`, `bands:2h=all,1d=1h`, `keep:last=7,daily=30` or
 * `none`.
 *
 * @throws `INVALID_ARGUMENT`, naming every fault of the text.
 * @example
 * ```ts
 * const policy = parsePolicy("keep:last=7,hourly=24,daily=30,tz=Europe/Berlin");
 * ```
 */
export function parsePolicy(text: string): RetentionPolicy {
  const faults: PolicyFault[] = [];
  const policy = readPolicy(text.trim(), (fact, remedy) => faults.push({ fact, remedy }));
  if (faults.length === 0) return policy;
  const facts = faults.map(({ fact }) => fact).join("; ");
  throw new TidemarkError("INVALID_ARGUMENT", `the retention policy ${JSON.stringify(text)} cannot be used: ${facts}`, {
    remedy: [...new Set(faults.map(({ remedy }) => remedy))].join("; "),
    detail: { policy: text },
  });
}

/** The text of a policy in its normal form: `parsePolicy` of it gives the same policy. */
export function describePolicy(policy: RetentionPolicy): string {
  switch (policy.kind) {
    case "everything":
      return "none";
    case "days":
      return `days:${policy.days}`;
    case "bands": {
      const rows = policy.bands.map(
        ({ ageMsMax, everyMs }) => `${describeSpan(ageMsMax)}=${everyMs === null ? "all" : describeSpan(everyMs)}`,
      );
      return rows.length === 0 ? "none" : `bands:${rows.join(",")}`;
    }
    case "keep": {
      const { last, withinMs, timeZone } = policy;
      const rules = [
        ...(last === null ? [] : [`last=${last}`]),
        ...policy.periods.map(({ period, count }) => `${period}=${count}`),
        ...(withinMs === null ? [] : [`within=${describeSpan(withinMs)}`]),
      ];
      if (rules.length === 0) return "none";
      return `keep:${[...rules, ...(timeZone === "UTC" ? [] : [`tz=${timeZone}`])].join(",")}`;
    }
  }
}

/** `2h`, `1d`, `90m`: in the largest unit, up to days, that leaves no fraction. */
export function describeSpan(spanMs: number): string {
  const unit = ["d", "h", "m"].find((name) => spanMs % (unitsMs[name] ?? Number.NaN) === 0) ?? "s";
  return `${spanMs / (unitsMs[unit] ?? Number.NaN)}${unit}`;
}

/**
 * The table that `days:N` stands for: everything for 2 hours; then, for 1 day, one point an hour;
 * for 2 to 7 days one per 2 hours; for 8 to 15 days one per 2 hours up to 7 days and one per 4
 * hours from there. Source: Azure Site Recovery, common questions (Azure to Azure), retention. 0
 * days have no band: every point but the newest is too old.
 */
export function bandsOfDays(days: number): readonly RetentionBand[] {
  const everything = { ageMsMax: 2 * hourMs, everyMs: null };
  if (days === 0) return [];
  if (days === 1) return [everything, { ageMsMax: dayMs, everyMs: hourMs }];
  const twoHourly = { ageMsMax: Math.min(days, 7) * dayMs, everyMs: 2 * hourMs };
  return days <= 7 ? [everything, twoHourly] : [everything, twoHourly, { ageMsMax: days * dayMs, everyMs: 4 * hourMs }];
}

// ---- The text ----

/** Notes what is wrong and what to write instead. */
type Refuse = (fact: string, remedy: string) => void;

/** What it gives counts only when nothing was refused. */
function readPolicy(text: string, refuse: Refuse): RetentionPolicy {
  if (text === "none") return { kind: "everything" };
  const [, kind, body = ""] = /^(\w+):(.*)$/s.exec(text) ?? [];
  const items = body.split(",").map((item) => item.trim());
  const rows = items.length === 1 && items[0] === "" ? [] : items;
  switch (kind) {
    case "days":
      return readDays(body.trim(), refuse);
    case "bands":
      return rows.length === 0 ? { kind: "everything" } : readBands(rows, refuse);
    case "keep":
      return rows.length === 0 ? { kind: "everything" } : readKeep(rows, refuse);
    default:
      refuse(
        kind === undefined
          ? "it does not begin with `days:`, `bands:` or `keep:`"
          : `there is no kind ${JSON.stringify(kind)}`,
        remedies.form,
      );
      return { kind: "everything" };
  }
}

function readDays(body: string, refuse: Refuse): RetentionPolicy {
  const days = /^\d{1,9}$/.test(body) ? Number(body) : undefined;
  if (days === undefined) refuse(`${JSON.stringify(body)} is no number of days`, remedies.days);
  else if (days > daysMax) refuse(`${days} days are more than ${daysMax}`, remedies.days);
  return { kind: "days", days: days ?? 0 };
}

function readBands(rows: readonly string[], refuse: Refuse): BandsPolicy {
  const bands: RetentionBand[] = [];
  if (rows.length > bandsMax)
    refuse(`it has ${rows.length} bands, and at most ${bandsMax} are looked at`, remedies.bands);
  for (const row of rows) {
    const [age = "", every = "", ...more] = row.split("=").map((word) => word.trim());
    const ageMsMax = spanMs(age);
    const everyMs = every === "all" ? null : spanMs(every);
    if (more.length > 0 || every === "") refuse(`${JSON.stringify(row)} is no AGE=EVERY`, remedies.bands);
    else {
      if (ageMsMax === undefined) refuse(`${JSON.stringify(age)} in ${JSON.stringify(row)} is no age`, remedies.bands);
      if (everyMs === undefined)
        refuse(`${JSON.stringify(every)} in ${JSON.stringify(row)} is neither \`all\` nor a duration`, remedies.bands);
    }
    // A row that cannot be read says nothing about its neighbours.
    if (ageMsMax !== undefined && everyMs !== undefined) bands.push({ ageMsMax, everyMs });
  }
  for (const [index, band] of bands.entries()) checkBand(band, bands[index - 1], refuse);
  return { kind: "bands", bands };
}

/** The conditions under which a decision does not depend on earlier ones; see `judgeByBands`. */
function checkBand({ ageMsMax, everyMs }: RetentionBand, before: RetentionBand | undefined, refuse: Refuse): void {
  const fromMs = before?.ageMsMax ?? 0;
  const age = describeSpan(ageMsMax);
  const every = everyMs === null ? "all" : describeSpan(everyMs);
  if (ageMsMax <= fromMs) {
    refuse(`the age ${age} does not come after ${describeSpan(fromMs)}`, remedies.bands);
    return;
  }
  const finerMs = before?.everyMs ?? 0;
  if ((everyMs ?? 0) < finerMs) {
    refuse(
      `${age}=${every} would keep what ${describeSpan(finerMs)} before it has dropped`,
      "let points thin out with age, never the other way",
    );
  }
  if (everyMs !== null && everyMs > ageMsMax - fromMs) {
    refuse(
      `${age}=${every} has room for ${describeSpan(ageMsMax - fromMs)} only, so its one point would come and go`,
      `make each band at least as wide as its spacing, such as \`${describeSpan(fromMs + everyMs)}=${every}\``,
    );
  }
}

function readKeep(rows: readonly string[], refuse: Refuse): RetentionPolicy {
  const said = new Map<string, string>();
  for (const row of rows) {
    const at = row.indexOf("=");
    const rule = (at === -1 ? row : row.slice(0, at)).trim();
    if (!["last", ...periods, "within", "tz"].includes(rule))
      refuse(`there is no rule ${JSON.stringify(rule)}`, remedies.keep);
    else if (said.has(rule)) refuse(`${rule} is said twice`, "say each rule once");
    said.set(rule, at === -1 ? "" : row.slice(at + 1).trim());
  }
  const count = (rule: string): number | null => {
    const text = said.get(rule);
    if (text === undefined) return null;
    if (!/^\d{1,9}$/.test(text)) refuse(`${rule}=${text} is no whole number`, remedies.keep);
    else if (Number(text) === 0) refuse(`${rule}=0 keeps nothing`, "leave a rule out that is to keep nothing");
    return Number(text);
  };
  const within = said.get("within");
  const withinMs = within === undefined ? null : spanMs(within);
  if (withinMs === undefined) refuse(`within=${within ?? ""} is no duration`, remedies.keep);
  const timeZone = said.get("tz") ?? "UTC";
  if (!isTimeZone(timeZone))
    refuse(`${JSON.stringify(timeZone)} is no time zone that this machine knows`, remedies.keep);
  const rules = [...said.keys()].filter((rule) => rule !== "tz");
  if (rules.length === 0) return { kind: "everything" };
  return {
    kind: "keep",
    last: count("last"),
    periods: periods.flatMap((period) => {
      const counted = count(period);
      return counted === null ? [] : [{ period, count: counted }];
    }),
    withinMs: withinMs ?? null,
    timeZone,
  };
}

/**
 * Milliseconds of `90m` or `1.5h`, rounded; undefined when it is no duration, or rounds to nothing.
 */
function spanMs(text: string): number | undefined {
  const [, number, unit = ""] = /^(\d+(?:\.\d+)?)\s*([smhdw])$/.exec(text) ?? [];
  const span = Math.round(Number(number) * (unitsMs[unit] ?? Number.NaN));
  return Number.isSafeInteger(span) && span > 0 ? span : undefined;
}

function isTimeZone(name: string): boolean {
  try {
    return new Intl.DateTimeFormat("en-US", { timeZone: name }).resolvedOptions().timeZone !== "";
  } catch (error) {
    if (error instanceof RangeError) return false;
    throw error;
  }
}
