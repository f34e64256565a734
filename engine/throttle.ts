/**
 * How fast a vault may be written to: a limit by the time of day, which can be changed while it holds somebody up.
 *
 *     lanes, commits ──take(bytes)──► queue, first come first served ──► bytes accrue at the limit ──► sent
 *
 * The head of the queue collects bytes as they accrue and goes when it has all of its own, so a request may be larger than what the limit gives
 * in a second, and a large one is not overtaken for ever by small ones. Idle time saves up a quarter of a second and no more: in any span of t
 * seconds at most limit × (t + ¼) bytes and one request are let go.
 *
 * Rates are measured on the steady clock. The table is read on the wall clock of its time zone, minute by minute, so days of 23 or 25 hours
 * and clocks that are set need no thought: what counts is what a clock on the wall shows.
 */
import { interrupted, TidemarkError, throwIfAborted } from "./errors.ts";
import type { Sink } from "./sink.ts";

export type Weekday = "Mon" | "Tue" | "Wed" | "Thu" | "Fri" | "Sat" | "Sun";

/** Every day of a week, in order. */
export const weekdays: readonly Weekday[] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/** A time of day with a limit of its own. */
export interface BandwidthWindow {
  /** `HH:MM`, from then on. */
  readonly from: string;
  /** `HH:MM`, until before then; `24:00` is the end of the day. Earlier than `from`, or equal to it: on the next day. */
  readonly to: string;
  /** The days on which it begins. Absent: every day. */
  readonly days?: readonly Weekday[] | undefined;
  /** `undefined`: no limit. */
  readonly bytesPerSecond: number | undefined;
}

export interface BandwidthTable {
  /** IANA name, such as `Europe/Berlin`. Default: `UTC`. */
  readonly timeZone?: string | undefined;
  /** The first that fits counts. */
  readonly windows?: readonly BandwidthWindow[] | undefined;
  /** When none fits. `undefined`: no limit. */
  readonly bytesPerSecond?: number | undefined;
}

export interface BandwidthClocks {
  /** ms from anywhere; never goes back. */
  readonly steadyMs: () => number;
  /** ms since 1970. */
  readonly wallMs: () => number;
}

/** A lower limit would hold a lease-bound commit up for minutes. Who wants nothing sent pauses the disk. */
export const bandwidthLimitMin = 1024;

/** What idle time saves up, in seconds of the limit. */
const savedSecondsMax = 0.25;
/** A timer that fires early would only be set again; one that fires late costs nothing, because what accrued meanwhile counts. */
const timerMsMin = 5;
const minuteMs = 60_000;

interface Waiter {
  readonly bytes: number;
  missingBytes: number;
  readonly go: () => void;
}

/** A limit that several may share. */
export class Bandwidth {
  readonly #clocks: BandwidthClocks;
  #table: CheckedTable;
  #override: number | undefined;
  readonly #queue: Waiter[] = [];
  #timer: NodeJS.Timeout | undefined;
  /** What may be sent at once. */
  #savedBytes = 0;
  #accruedAtMs: number;
  /** The limit since then; `Infinity`: none. */
  #rate: number;
  /** What the table says until the minute ends. */
  #minute: { readonly index: number; readonly limit: number } | undefined;

  /** Errors: INVALID_ARGUMENT, naming everything that is wrong with the table. */
  constructor(table: BandwidthTable = {}, clocks: BandwidthClocks = { steadyMs: () => performance.now(), wallMs: Date.now }) {
    this.#clocks = clocks;
    this.#table = checkTable(table);
    this.#accruedAtMs = clocks.steadyMs();
    this.#rate = this.#limit();
  }

  /** The limit that holds now, in bytes a second; undefined: none. */
  get bytesPerSecond(): number | undefined {
    const limit = this.#limit();
    return limit === Infinity ? undefined : limit;
  }

  /** How many calls of `take` wait. */
  get waiting(): number {
    return this.#queue.length;
  }

  /** A limit in place of the table's from now on (`Infinity`: none), or the table's again (`undefined`). Whoever waits goes on by it at once. */
  setLimit(bytesPerSecond: number | undefined): void {
    const fault = bytesPerSecond === undefined ? undefined : faultOfLimit(bytesPerSecond);
    if (fault !== undefined) throw invalid([fault]);
    this.#accrue();
    this.#override = bytesPerSecond;
    this.#serve();
  }

  /** Another table from now on; an override stays. Errors: INVALID_ARGUMENT, and the old one stays. */
  setTable(table: BandwidthTable): void {
    const checked = checkTable(table);
    this.#accrue();
    this.#table = checked;
    this.#minute = undefined;
    this.#serve();
  }

  /** Waits until `bytes` may be sent. Errors: INTERRUPTED; what had accrued for it goes to the next. */
  async take(bytes: number, signal?: AbortSignal): Promise<void> {
    throwIfAborted(signal);
    this.#accrue();
    if (this.#queue.length === 0 && bytes <= this.#savedBytes) {
      this.#savedBytes -= bytes;
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const leave = (): void => {
        this.#accrue();
        this.#queue.splice(this.#queue.indexOf(waiter), 1);
        this.#savedBytes += waiter.bytes - waiter.missingBytes;
        if (signal !== undefined) reject(interrupted(signal));
        this.#serve();
      };
      const go = (): void => {
        signal?.removeEventListener("abort", leave);
        resolve();
      };
      const waiter: Waiter = { bytes, missingBytes: bytes, go };
      this.#queue.push(waiter);
      signal?.addEventListener("abort", leave, { once: true });
      this.#serve();
    });
  }

  /** Counts what has accrued since the last call at the rate that held meanwhile, and looks up the rate that holds from now on. */
  #accrue(): void {
    const nowMs = this.#clocks.steadyMs();
    // Without a limit there is no end to what may be sent, and nothing to add to it.
    if (this.#rate !== Infinity) this.#savedBytes += (this.#rate * (nowMs - this.#accruedAtMs)) / 1000;
    this.#accruedAtMs = nowMs;
    this.#rate = this.#limit();
    if (this.#rate === Infinity) this.#savedBytes = Infinity;
    else if (this.#queue.length === 0) this.#savedBytes = Math.min(this.#savedBytes, this.#rate * savedSecondsMax);
  }

  /** Gives what has been saved to those who wait, in turn, and comes back when the next has all of its own. */
  #serve(): void {
    this.#accrue();
    clearTimeout(this.#timer);
    this.#timer = undefined;
    for (let head = this.#queue[0]; head !== undefined; head = this.#queue[0]) {
      const paid = Math.min(head.missingBytes, this.#savedBytes);
      head.missingBytes -= paid;
      this.#savedBytes -= paid;
      if (head.missingBytes > 0) break;
      this.#queue.shift();
      head.go();
    }
    const [head] = this.#queue;
    if (head === undefined) return;
    const dueMs = Math.ceil((head.missingBytes / this.#rate) * 1000);
    const untilNextMinuteMs = minuteMs - (((this.#clocks.wallMs() % minuteMs) + minuteMs) % minuteMs);
    const inMs = Math.min(Math.max(dueMs, timerMsMin), untilNextMinuteMs);
    this.#timer = setTimeout(() => this.#serve(), inMs);
  }

  #limit(): number {
    if (this.#override !== undefined) return this.#override;
    const wallMs = this.#clocks.wallMs();
    const index = Math.floor(wallMs / minuteMs);
    if (this.#minute?.index !== index) this.#minute = { index, limit: limitAt(this.#table, wallMs) };
    return this.#minute.limit;
  }
}

/**
 * A sink whose writes of pages and objects wait for their bytes before they are sent. With `reads`, what is read waits, too: an object
 * for what it turned out to hold, afterwards. Everything else of the port goes through as it
 * is, also what is added to it one day; for that reason it is a proxy and no list of members.
 */
export function limited(sink: Sink, bandwidth: Bandwidth, options: { readonly reads?: boolean } = {}): Sink {
  const writes: Pick<Sink, "putObject" | "writePages"> = {
    async putObject(name, bytes, condition, call) {
      await bandwidth.take(bytes.length, call?.signal);
      return await sink.putObject(name, bytes, condition, call);
    },
    async writePages(name, offset, bytes, fence, call) {
      await bandwidth.take(bytes.length, call?.signal);
      return await sink.writePages(name, offset, bytes, fence, call);
    },
  };
  const reads: Pick<Sink, "getObject" | "readPages"> = {
    async getObject(name, sizeBytesMax, call) {
      const object = await sink.getObject(name, sizeBytesMax, call);
      await bandwidth.take(object.bytes.length, call?.signal);
      return object;
    },
    async readPages(name, offset, into, call) {
      await bandwidth.take(into.length, call?.signal);
      await sink.readPages(name, offset, into, call);
    },
  };
  const ours = new Map<PropertyKey, unknown>(Object.entries(options.reads === true ? { ...writes, ...reads } : writes));
  return new Proxy(sink, {
    get(target, key) {
      if (ours.has(key)) return ours.get(key);
      const value: unknown = Reflect.get(target, key, target);
      // An adapter's methods reach private fields, which the proxy has not.
      return typeof value === "function" ? (...given: readonly unknown[]): unknown => Reflect.apply(value, target, given) : value;
    },
  });
}

// ---- The table ----

interface CheckedWindow {
  readonly fromMinute: number;
  readonly toMinute: number;
  /** Indexes into `weekdays`. */
  readonly days: readonly number[];
  readonly limit: number;
}

interface CheckedTable {
  readonly clock: Intl.DateTimeFormat;
  readonly windows: readonly CheckedWindow[];
  readonly limit: number;
}

const minutesPerDay = 24 * 60;

function checkTable({ timeZone = "UTC", windows = [], bytesPerSecond }: BandwidthTable): CheckedTable {
  const faults: string[] = [];
  const limitOf = (value: number | undefined): number => {
    const fault = value === undefined ? undefined : faultOfLimit(value);
    if (fault !== undefined) faults.push(fault);
    return value ?? Infinity;
  };
  const minuteOf = (text: string): number => {
    const [, hours, minutes] = /^(\d\d):([0-5]\d)$/.exec(text) ?? [];
    const minute = Number(hours) * 60 + Number(minutes);
    if (minute <= minutesPerDay) return minute;
    faults.push(`${JSON.stringify(text)} is no time of day between 00:00 and 24:00`);
    return 0;
  };
  const checked = windows.map(({ from, to, days = weekdays, bytesPerSecond: limit }) => {
    const unknown = days.filter((day) => !weekdays.includes(day));
    if (unknown.length > 0) faults.push(`${unknown.join(", ")} is none of ${weekdays.join(", ")}`);
    return { fromMinute: minuteOf(from), toMinute: minuteOf(to), days: days.map((day) => weekdays.indexOf(day)), limit: limitOf(limit) };
  });
  const limit = limitOf(bytesPerSecond);
  const clock = clockOf(timeZone);
  if (clock === undefined) faults.push(`${JSON.stringify(timeZone)} is no time zone that this machine knows`);
  if (clock === undefined || faults.length > 0) throw invalid(faults);
  return { clock, windows: checked, limit };
}

function faultOfLimit(bytesPerSecond: number): string | undefined {
  if (bytesPerSecond >= bandwidthLimitMin) return undefined;
  return `a limit of ${bytesPerSecond} bytes a second is below ${bandwidthLimitMin}`;
}

function invalid(faults: readonly string[]): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `the bandwidth table cannot be used: ${faults.join("; ")}`, {
    remedy:
      'give times as "HH:MM", days as Mon to Sun, an IANA time zone, and limits of at least 1 KiB a second; pause a disk that is to send nothing',
  });
}

function clockOf(timeZone: string): Intl.DateTimeFormat | undefined {
  try {
    return new Intl.DateTimeFormat("en-US", { timeZone, weekday: "short", hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

/** What the table says at an instant: by weekday and minute, as a clock on the wall of its time zone shows them. */
function limitAt({ clock, windows, limit }: CheckedTable, wallMs: number): number {
  const shown = new Map(clock.formatToParts(wallMs).map(({ type, value }) => [type, value]));
  const day = weekdays.findIndex((weekday) => weekday === shown.get("weekday"));
  const minute = Number(shown.get("hour")) * 60 + Number(shown.get("minute"));
  return windows.find((window) => covers(window, day, minute))?.limit ?? limit;
}

function covers({ fromMinute, toMinute, days }: CheckedWindow, day: number, minute: number): boolean {
  if (fromMinute < toMinute) return days.includes(day) && minute >= fromMinute && minute < toMinute;
  // Over midnight: its second half belongs to the day before.
  return (days.includes(day) && minute >= fromMinute) || (days.includes((day + 6) % 7) && minute < toMinute);
}
