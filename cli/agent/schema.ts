/**
 * Schema of the agent's configuration file: its fields, their types, bounds and defaults.
 * config-file.ts judges what one field says about another.
 *
 * Every entry (a vault, a policy, a disk) is checked by itself, so that a fault in one hides no
 * fault in another. A schema turns what the user wrote into what the agent reads: durations into
 * milliseconds, rates into bytes a second.
 */
import { type RetentionPolicy, TidemarkError } from "../../engine/index.ts";
import { parseDuration, parseRate } from "../quantities.ts";
import {
  type EntryFault,
  type Field,
  fault,
  flag,
  isWritten,
  list,
  oneOf,
  optional,
  type Path,
  report,
  section,
  text,
  withDefault,
  written,
} from "./fields.ts";
import { parseReplicaPolicy, type ReplicaPolicy, replicaRemedy } from "./replica-policy.ts";
import { parseRetention } from "./retention.ts";

export interface VaultEntry {
  readonly address: string;
  readonly stateFolder?: string | undefined;
  readonly proxy?: { readonly url: string; readonly bypass: readonly string[] } | undefined;
  /** Limits by the time of day; outside of them `limit` holds. */
  readonly bandwidth: readonly BandwidthWindow[];
  /** IANA name of the zone that `bandwidth` is written in; undefined is the machine's. */
  readonly timeZone?: string | undefined;
  /** Bytes a second; undefined is as fast as it goes. */
  readonly limit?: number | undefined;
  /** Undefined: never. */
  readonly scrub?: ScrubEntry | undefined;
  /** How often space is given back, in milliseconds; undefined for `off`. */
  readonly collect?: number | undefined;
}

/** How much of a vault is read back and proved, and how fast. */
export interface ScrubEntry {
  /** Of what is stored, from 0 (never) to 1 (all of it every day). */
  readonly sharePerDay: number;
  /** Bytes a second; undefined is as fast as it goes. */
  readonly rate: number | undefined;
}

/**
 * `from` and `to` in minutes since midnight; a window whose end is not after its beginning ends on
 * the next day.
 */
export interface BandwidthWindow {
  readonly from: number;
  readonly to: number;
  /** 0 is Sunday. Never empty. */
  readonly days: readonly number[];
  readonly limit: number | undefined;
}

/** Named as in Azure Site Recovery; times in milliseconds, undefined for `off`. */
export interface PolicyEntry {
  readonly crashConsistentFrequency: number;
  readonly appConsistentFrequency: number | undefined;
  readonly recoveryPointRetention: RetentionPolicy;
  readonly recoveryPointThreshold: number | undefined;
  readonly multiVmConsistency: boolean;
  readonly startTime: StartTime;
  readonly freezeTimeout: number;
  readonly barrierTimeout: number;
  /** Where the disks have replicas that follow them; undefined: nowhere. */
  readonly replica?: ReplicaPolicy | undefined;
}

/**
 * When a disk's first replication begins: at once, at an instant, or at the next such time of the
 * day.
 */
export type StartTime =
  | { readonly kind: "immediately" }
  | { readonly kind: "instant"; readonly timeMs: number }
  | { readonly kind: "daily"; readonly minutes: number };

export interface DiskEntry {
  readonly name: string;
  readonly image: string;
  readonly vault: string;
  readonly policy: string;
  readonly listen: string;
  readonly tls?: TlsFiles | undefined;
  /** Shell commands that bring the disk's application to rest and wake it. */
  readonly hooks?: { readonly pre: string; readonly post: string } | undefined;
  readonly group?: string | undefined;
  readonly readOnly: boolean;
}

export interface TlsFiles {
  readonly key: string;
  readonly cert: string;
  readonly ca: string;
}

/** A page for browsers. */
export interface DashboardEntry {
  readonly listen: string;
  /** File that holds the secret which the page asks for. */
  readonly token?: string | undefined;
  /** With `ca`, clients show a certificate that it has signed. */
  readonly tls?: { readonly key: string; readonly cert: string; readonly ca?: string | undefined } | undefined;
}

/** Where findings are sent: to exactly one of `webhook` and `command`. */
export interface NotifyEntry {
  readonly webhook?: string | undefined;
  readonly command?: string | undefined;
  /** The lowest level that is sent. */
  readonly on: "warning" | "critical";
}

export const logLevels = ["debug", "info", "warn", "error"] as const;
export type LogLevel = (typeof logLevels)[number];

export interface LoggingEntry {
  readonly level: LogLevel;
  /** `auto`: one line for people on a terminal, else JSON. */
  readonly format: "auto" | "json" | "pretty";
  readonly file?: string | undefined;
}

/** A checked entry and what is wrong with it. */
export interface Checked<Entry> {
  /**
   * Undefined when nothing can be made of it. What `faults` concern are stand-ins: only the other
   * fields may be judged further.
   */
  readonly entry: Entry | undefined;
  readonly faults: readonly EntryFault[];
}

const second = 1_000;
const minute = 60 * second;
const hour = 60 * minute;
const day = 24 * hour;

const crashFrequency = { min: second, max: day, example: "5s" };
const appFrequency = { min: minute, max: 30 * day, example: "1h" };
const threshold = { min: second, max: 30 * day, example: "15m" };
const freeze = { min: second, max: 10 * minute, example: "60s" };
const collecting = { min: hour, max: 90 * day, example: "1d" };
const barrier = { min: 10, max: 10 * second, example: "300ms" };

const vaultSchema: Field<VaultEntry> = section({
  address: text,
  stateFolder: optional(text),
  proxy: optional(section({ url: text, bypass: withDefault(list(text), []) })),
  bandwidth: withDefault(
    list(
      section({
        from: written(parseTimeOfDay, "is no time of day", "write it as 08:00"),
        to: written(parseTimeOfDay, "is no time of day", "write it as 18:00"),
        days: withDefault(days, "daily"),
        limit: rate(),
      }),
    ),
    [],
  ),
  timeZone: optional(
    written((name) => (isTimeZone(name) ? name : fault), "is no time zone", "use an IANA name such as Europe/Berlin"),
  ),
  limit: optional(rate()),
  scrub: withDefault(
    section({
      sharePerDay: withDefault(
        written(parseShare, "is no share of a vault", "write a percentage from 0% to 100%, as in 10%"),
        "10%",
      ),
      rate: withDefault(rate(), "10MB/s"),
    }),
    {},
  ),
  collect: withDefault(durationOrOff(collecting), "1d"),
});

const policySchema: Field<PolicyEntry> = section({
  crashConsistentFrequency: withDefault(duration(crashFrequency), "5s"),
  appConsistentFrequency: withDefault(durationOrOff(appFrequency), "off"),
  recoveryPointRetention: withDefault(retention, "1d"),
  recoveryPointThreshold: withDefault(durationOrOff(threshold), "15m"), // see `checkPolicy`
  multiVmConsistency: withDefault(written(parseSwitch, "is neither on nor off", "write on or off"), "off"),
  startTime: withDefault(
    written(parseStartTime, "is no time", "write immediately, 18:30, or an ISO time with its zone"),
    "immediately",
  ),
  freezeTimeout: withDefault(duration(freeze), "60s"),
  barrierTimeout: withDefault(duration(barrier), "300ms"),
  replica: optional(written(parseReplicaPolicy, "is no place of replicas", replicaRemedy)),
});

const nameRemedy = "use 1 to 80 bytes without control characters";

const diskSchema: Field<DiskEntry> = section({
  name: written(parseName, "is no name of a disk", nameRemedy),
  image: text,
  vault: text,
  policy: text,
  listen: text,
  tls: optional(section({ key: text, cert: text, ca: text })),
  hooks: optional(section({ pre: text, post: text })),
  group: optional(written(parseName, "is no name of a group", nameRemedy)),
  readOnly: withDefault(flag, false),
});

const controlSchema: Field<{ readonly socket?: string | undefined }> = section({ socket: optional(text) });

const loggingSchema: Field<LoggingEntry> = section({
  level: withDefault(oneOf(logLevels), "info"),
  format: withDefault(oneOf(["auto", "json", "pretty"]), "auto"),
  file: optional(text),
});

const metricsSchema: Field<{ readonly listen: string }> = section({ listen: text });

const dashboardSchema: Field<DashboardEntry> = section({
  listen: text,
  token: optional(text),
  tls: optional(section({ key: text, cert: text, ca: optional(text) })),
});

const notifySchema: Field<readonly NotifyEntry[]> = list(
  section({
    webhook: optional(text),
    command: optional(text),
    on: withDefault(oneOf(["warning", "critical"]), "critical"),
  }),
);

export const checkVault = (value: unknown): Checked<VaultEntry> => check(vaultSchema, value);
/** A threshold that is not written leaves room for two points that are missed. */
export function checkPolicy(value: unknown): Checked<PolicyEntry> {
  const { entry, faults } = check(policySchema, value);
  const isWrittenOut = typeof value === "object" && value !== null && "recoveryPointThreshold" in value;
  if (entry?.recoveryPointThreshold === undefined || isWrittenOut) return { entry, faults };
  const recoveryPointThreshold = Math.max(entry.recoveryPointThreshold, 3 * entry.crashConsistentFrequency);
  return { entry: { ...entry, recoveryPointThreshold }, faults };
}
export const checkDisk = (value: unknown): Checked<DiskEntry> => check(diskSchema, value);
export const checkControl = (value: unknown): Checked<{ readonly socket?: string | undefined }> =>
  check(controlSchema, value);
export const checkLogging = (value: unknown): Checked<LoggingEntry> => check(loggingSchema, value);
export const checkMetrics = (value: unknown): Checked<{ readonly listen: string }> => check(metricsSchema, value);
export const checkDashboard = (value: unknown): Checked<DashboardEntry> => check(dashboardSchema, value);
export const checkNotify = (value: unknown): Checked<readonly NotifyEntry[]> => check(notifySchema, value);

/** Bytes a second of `20MiB/s`; `off` is no limit. Gives `fault` for anything else. */
export function parseLimit(text: string): number | undefined | typeof fault {
  return text === "off" ? undefined : (parseRate(text) ?? fault);
}

/** Stand-ins for fields that are required and faulty. */
const standIns: Readonly<Record<string, unknown>> = {
  address: "memory:",
  name: "?",
  image: "?",
  vault: "?",
  policy: "?",
  listen: "unix:?",
};

export function check<Entry>(schema: Field<Entry>, value: unknown): Checked<Entry> {
  const faults: EntryFault[] = [];
  const entry = schema(value ?? {}, [], faults);
  return { entry: entry === fault ? salvaged(schema, value, faults) : entry, faults };
}

/**
 * The entry with stand-ins for its faulty fields, so that a fault in one field hides none in
 * another.
 */
function salvaged<Entry>(schema: Field<Entry>, value: unknown, faults: readonly EntryFault[]): Entry | undefined {
  if (typeof value !== "object" || Array.isArray(value)) return undefined;
  const sound: Record<string, unknown> = { ...value };
  for (const { path, key } of faults) {
    const field = String(path[0] ?? key);
    if (field in standIns) sound[field] = standIns[field];
    else Reflect.deleteProperty(sound, field);
  }
  const entry = schema(sound, [], []);
  return entry === fault ? undefined : entry;
}

export interface DurationLimits {
  readonly min: number;
  readonly max: number;
  readonly example: string;
}

export function duration(limits: DurationLimits): Field<number> {
  return written((text) => durationWithin(text, limits), "is no duration that it may have", durationRemedy(limits, ""));
}

function durationOrOff(limits: DurationLimits): Field<number | undefined> {
  return written(
    (text) => (text === "off" || text === "false" ? undefined : durationWithin(text, limits)),
    "is no duration that it may have",
    durationRemedy(limits, "off or "),
  );
}

export function retention(value: unknown, path: Path, faults: EntryFault[]): RetentionPolicy | typeof fault {
  if (!isWritten(value)) return report(faults, path, value, "is no policy", "correct it");
  try {
    return parseRetention(String(value));
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    const remedy = `write a time, as in 1d, or off; as a policy, ${error.remedy ?? ""}`;
    return report(faults, path, value, `is no policy: ${error.message}`, remedy);
  }
}

function durationWithin(text: string, { min, max }: DurationLimits): number | typeof fault {
  const elapsedMs = text === "0" ? 0 : parseDuration(text);
  return elapsedMs === undefined || elapsedMs < min || elapsedMs > max ? fault : elapsedMs;
}

function durationRemedy({ min, max, example }: DurationLimits, alternative: string): string {
  return `write ${alternative}a number and a unit, as in ${example}, from ${shortDuration(min)} to ${shortDuration(max)}`;
}

function shortDuration(elapsedMs: number): string {
  const units = [
    ["d", day],
    ["h", hour],
    ["m", minute],
    ["s", second],
  ] as const;
  const unit = units.find(([, ms]) => elapsedMs >= ms && elapsedMs % ms === 0);
  if (elapsedMs === 0) return "0";
  return unit === undefined ? `${elapsedMs}ms` : `${elapsedMs / unit[1]}${unit[0]}`;
}

function rate(): Field<number | undefined> {
  return written(parseLimit, "is no rate", "write a size a second, as in 20MiB/s, at least 1KiB/s, or off");
}

/** From 0 to 1; a number without a sign is a percentage, too. */
function parseShare(text: string): number | typeof fault {
  if (text === "off" || text === "false") return 0;
  const percent = /^(\d+(?:\.\d+)?)\s*%?$/.exec(text)?.[1];
  const share = Number(percent) / 100;
  return share >= 0 && share <= 1 ? share : fault;
}

function parseSwitch(text: string): boolean | typeof fault {
  if (["on", "true", "Enable", "Enabled"].includes(text)) return true;
  return ["off", "false", "Disable", "Disabled"].includes(text) ? false : fault;
}

function parseName(text: string): string | typeof fault {
  const name = text.normalize("NFC");
  const bytes = Buffer.byteLength(name);
  return bytes === 0 || bytes > 80 || /\p{Cc}/u.test(name) ? fault : name;
}

function parseTimeOfDay(text: string): number | typeof fault {
  const match = /^([01]?\d|2[0-3]):([0-5]\d)$|^24:00$/.exec(text);
  if (match === null) return fault;
  return text === "24:00" ? 24 * 60 : Number(match[1]) * 60 + Number(match[2]);
}

function parseStartTime(text: string): StartTime | typeof fault {
  if (text === "immediately") return { kind: "immediately" };
  const minutes = parseTimeOfDay(text);
  if (minutes !== fault) return { kind: "daily", minutes: minutes % (24 * 60) };
  // Without a zone it would mean another instant on another machine.
  const timeMs = /^\d{4}-\d\d-\d\dT\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:\d\d)$/.test(text)
    ? Date.parse(text)
    : Number.NaN;
  return Number.isNaN(timeMs) ? fault : { kind: "instant", timeMs };
}

const dayNames: readonly string[] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

function days(value: unknown, path: Path, faults: EntryFault[]): readonly number[] | typeof fault {
  const words = typeof value === "string" ? value.split(",") : value;
  const isList = Array.isArray(words) && words.every((word) => typeof word === "string");
  const parsed = isList ? parseDays(words) : [];
  if (parsed.length > 0) return parsed;
  return report(faults, path, value, "is no list of days", "write daily, mon-fri, or [sat, sun]");
}

/** Days of `daily`, `mon-fri`, `sat,sun` or a list of such; empty when one of them is none. */
function parseDays(words: readonly string[]): readonly number[] {
  const found = new Set<number>();
  for (const word of words.map((other) => other.trim().toLowerCase())) {
    const [first = -1, last = first] =
      word === "daily" ? [0, 6] : word.split("-").map((name) => dayNames.indexOf(name));
    if (first < 0 || last < 0) return [];
    for (let at = first; ; at = (at + 1) % 7) {
      found.add(at);
      if (at === last) break;
    }
  }
  return [...found].sort((a, b) => a - b);
}

function isTimeZone(name: string): boolean {
  try {
    return new Intl.DateTimeFormat("en", { timeZone: name }).resolvedOptions().timeZone !== "";
  } catch (error) {
    if (error instanceof RangeError) return false;
    throw error;
  }
}
