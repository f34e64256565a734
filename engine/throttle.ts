/**
 * Bandwidth limit: a token bucket with a first-in-first-out queue, whose rate follows the time of
 * day.
 *
 *     lanes, commits ──take(bytes)──► queue, first come first served ──► bytes accrue at the limit ──► sent
 *
 * The first request in the queue collects bytes as they accrue and leaves when it has all of its
 * own. So a request may be larger than what the limit gives in a second, and small requests cannot
 * overtake a large one for ever. Idle time saves up a quarter of a second.
 *
 * Invariant: in any span of t seconds at most limit × (t + ¼) bytes and one request are let
 * through.
 *
 * Rates are measured on the steady clock. The table is read on the wall clock of its time zone,
 * minute by minute, so days of 23 or 25 hours and clocks that are set need no special case.
 */
import { interrupted, TidemarkError, throwIfAborted } from "./errors.ts";
import type { Sink, StoredObject } from "./sink.ts";
import { SinkDecorator } from "./sink-decorator.ts";

export type Weekday = "Mon" | "Tue" | "Wed" | "Thu" | "Fri" | "Sat" | "Sun";

/** Every day of a week, in order. */
export const weekdays: readonly Weekday[] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

/** A span of the day with a limit of its own. */
export interface BandwidthWindow {
  /** `HH:MM`: the span begins then. */
  readonly from: string;
  /**
   * `HH:MM`: the span ends before then; `24:00` is the end of the day. A time not later than `from`
   * is one of the next day.
   */
  readonly to: string;
  /** The days on which the span begins. Absent: every day. */
  readonly days?: readonly Weekday[] | undefined;
  /** At least `bandwidthLimitMin`; `undefined`: no limit. */
  readonly bytesPerSecond: number | undefined;
}

/** A limit by the time of day. */
export interface BandwidthTable {
  /** IANA name, such as `Europe/Berlin`. Default: `UTC`. */
  readonly timeZone?: string | undefined;
  /** The first window that covers an instant gives its limit. */
  readonly windows?: readonly BandwidthWindow[] | undefined;
  /** The limit where no window fits, at least `bandwidthLimitMin`; `undefined`: no limit. */
  readonly bytesPerSecond?: number | undefined;
}

export interface BandwidthClocks {
  /** ms since an arbitrary instant; never goes back. */
  readonly steadyMs: () => number;
  /** ms since 1970. */
  readonly wallMs: () => number;
}

/** Lowest limit, in bytes a second. To send nothing, pause the disk. */
export const bandwidthLimitMin = 1024;

/** Longest idle time that is saved up, in seconds. */
const savedSecondsMax = 0.25;
/**
 * A timer that fires early would only be set again; one that fires late costs nothing, because what
 * accrued meanwhile counts.
 */
const timerMsMin = 5;
const minuteMs = 60_000;

interface Waiter {
  readonly bytes: number;
  missingBytes: number;
  readonly go: () => void;
}

/**
 * A limit that several sinks and disks may share.
 *
 * @example
 * ```ts
 * const bandwidth = new Bandwidth({ windows: [{ from: "08:00", to: "18:00", bytesPerSecond: 5_000_000 }] });
 * const vault = await Vault.open(limited(sink, bandwidth));
 * ```
 */
export class Bandwidth {
  readonly #clocks: BandwidthClocks;
  #table: CheckedTable;
  #override: number | undefined;
  readonly #queue: Waiter[] = [];
  #timer: NodeJS.Timeout | undefined;
  /** Bytes that may be sent at once. */
  #savedBytes = 0;
  #accruedAtMs: number;
  /** The limit since `#accruedAtMs`; `Infinity`: none. */
  #rate: number;
  /** The table's limit until the minute ends. */
  #minute: { readonly index: number; readonly limit: number } | undefined;

  /** @throws INVALID_ARGUMENT, with a message that names every fault of the table. */
  constructor(
    table: BandwidthTable = {},
    clocks: BandwidthClocks = { steadyMs: () => performance.now(), wallMs: Date.now },
  ) {
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

  /**
   * Overrides the table (`Infinity`: no limit), or ends the override (`undefined`).
   *
   * @throws INVALID_ARGUMENT for a limit below `bandwidthLimitMin`.
   */
  setLimit(bytesPerSecond: number | undefined): void {
    const fault = bytesPerSecond === undefined ? undefined : faultOfLimit(bytesPerSecond);
    if (fault !== undefined) throw invalid([fault]);
    this.#accrue();
    this.#override = bytesPerSecond;
    this.#serve();
  }

  /**
   * Replaces the table; an override stays.
   *
   * @throws INVALID_ARGUMENT as the constructor; the old table then stays.
   */
  setTable(table: BandwidthTable): void {
    const checked = checkTable(table);
    this.#accrue();
    this.#table = checked;
    this.#minute = undefined;
    this.#serve();
  }

  /**
   * Waits until `bytes` bytes may be sent.
   *
   * @throws INTERRUPTED when `signal` aborts; the bytes that had accrued for this call go to the
   * next one.
   */
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

  /**
   * Counts what has accrued since the last call at the rate that held meanwhile, and looks up the
   * rate that holds from now on.
   */
  #accrue(): void {
    const nowMs = this.#clocks.steadyMs();
    // Without a limit an unlimited number of bytes is saved already.
    if (this.#rate !== Infinity) this.#savedBytes += (this.#rate * (nowMs - this.#accruedAtMs)) / 1000;
    this.#accruedAtMs = nowMs;
    this.#rate = this.#limit();
    if (this.#rate === Infinity) this.#savedBytes = Infinity;
    else if (this.#queue.length === 0) this.#savedBytes = Math.min(this.#savedBytes, this.#rate * savedSecondsMax);
  }

  /**
   * Gives the saved bytes to the waiting calls, in turn, and sets a timer for when the next one has
   * all of its own.
   */
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
 * A sink whose writes, and with `reads` reads too, wait for their bytes. Closing it closes `sink`.
 *
 * @throws INTERRUPTED from a call whose signal aborts while it waits; otherwise as `sink`.
 */
export function limited(sink: Sink, bandwidth: Bandwidth, options: { readonly reads?: boolean } = {}): Sink {
  return new LimitedSink(sink, bandwidth, options.reads === true);
}

class LimitedSink extends SinkDecorator {
  readonly #bandwidth: Bandwidth;
  readonly #limitsReads: boolean;

  constructor(inner: Sink, bandwidth: Bandwidth, limitsReads: boolean) {
    super(inner);
    this.#bandwidth = bandwidth;
    this.#limitsReads = limitsReads;
  }

  override async putObject(...call: Parameters<Sink["putObject"]>): ReturnType<Sink["putObject"]> {
    const [, bytes, , options] = call;
    await this.#bandwidth.take(bytes.length, options?.signal);
    return await super.putObject(...call);
  }

  override async writePages(...call: Parameters<Sink["writePages"]>): ReturnType<Sink["writePages"]> {
    const [, , bytes, , options] = call;
    await this.#bandwidth.take(bytes.length, options?.signal);
    return await super.writePages(...call);
  }

  override async getObject(...call: Parameters<Sink["getObject"]>): Promise<StoredObject> {
    const object = await super.getObject(...call);
    if (this.#limitsReads) await this.#bandwidth.take(object.bytes.length, call[2]?.signal);
    return object;
  }

  override async readPages(...call: Parameters<Sink["readPages"]>): Promise<void> {
    const [, , into, options] = call;
    if (this.#limitsReads) await this.#bandwidth.take(into.length, options?.signal);
    await super.readPages(...call);
  }
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
    return {
      fromMinute: minuteOf(from),
      toMinute: minuteOf(to),
      days: days.map((day) => weekdays.indexOf(day)),
      limit: limitOf(limit),
    };
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
    return new Intl.DateTimeFormat("en-US", {
      timeZone,
      weekday: "short",
      hour: "2-digit",
      minute: "2-digit",
      hourCycle: "h23",
    });
  } catch (error) {
    if (error instanceof RangeError) return undefined;
    throw error;
  }
}

/**
 * The table's limit at an instant, by weekday and minute as a wall clock of its time zone shows
 * them.
 */
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
