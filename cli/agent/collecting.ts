/**
 * Garbage collection of one vault by the agent: the agent collects when the last collection is
 * older than the configured interval.
 *
 * The vault stores the time of the last collection, so agents that share a vault share the work. If
 * two begin at once, one yields.
 *
 * What segments take at the store is measured when the agent starts and once an hour.
 */
import { type CollectOptions, type CollectSummary, hasCode, type Notice, TidemarkError } from "../../engine/index.ts";
import { errorReport } from "../errors.ts";
import { formatBytes } from "../quantities.ts";
import { PeriodicTask } from "./periodic-task.ts";
import type { Clock, DiskEvent } from "./ports.ts";

export interface CollectingParts {
  readonly collect: (options: CollectOptions) => Promise<CollectSummary>;
  readonly lastCollectedMs: (signal: AbortSignal) => Promise<number | undefined>;
  /** What segments take at the store. */
  readonly segmentBytes: (signal: AbortSignal) => Promise<number>;
  readonly clock: Clock;
  /** Milliseconds since 1970. */
  readonly wallMs: () => number;
  /** Events have an empty `disk`: they concern the whole vault. */
  readonly onEvent: (event: DiskEvent) => void;
}

const lookEveryMs = 3_600_000;
/** Later than the first cycles after a start, which have enough to do. */
const firstAfterMs = 600_000;

export class Collecting {
  readonly #parts: CollectingParts;
  readonly #task: PeriodicTask;
  readonly #measuring: PeriodicTask;
  #everyMs: number | undefined;
  #storedBytes: number | null = null;
  #lastMs: number | undefined;

  /** `everyMs` undefined: never. */
  constructor(everyMs: number | undefined, parts: CollectingParts) {
    this.#parts = parts;
    this.#everyMs = everyMs;
    const work = async (signal: AbortSignal): Promise<void> => await this.#collect(signal);
    this.#task = new PeriodicTask({ clock: parts.clock, firstAfterMs, everyMs: lookEveryMs, work });
    const measure = async (signal: AbortSignal): Promise<void> => await this.#measure(signal);
    this.#measuring = new PeriodicTask({ clock: parts.clock, firstAfterMs: 0, everyMs: lookEveryMs, work: measure });
  }

  /**
   * Bytes that segments take at the store: as last measured, and what points stored since. Null:
   * not measured yet.
   */
  get storedBytes(): number | null {
    return this.#storedBytes;
  }

  /** A point of the vault has been committed, for which so many bytes were written to segments. */
  noteStored(bytes: number): void {
    if (this.#storedBytes !== null) this.#storedBytes += bytes;
  }

  /** Time since the last collection by any process; null when none is known. */
  get ageMs(): number | null {
    return this.#lastMs === undefined ? null : Math.max(this.#parts.wallMs() - this.#lastMs, 0);
  }

  /** From now on, as often as this. */
  set(everyMs: number | undefined): void {
    if (everyMs === this.#everyMs) return;
    this.#everyMs = everyMs;
    this.#task.hurry();
  }

  /** Waits for the collection that is under way, which ends at once. Idempotent. */
  async stop(): Promise<void> {
    await Promise.all([this.#task.stop(), this.#measuring.stop()]);
  }

  /** Throws nothing: the value before it stays when the store does not answer. */
  async #measure(signal: AbortSignal): Promise<void> {
    try {
      this.#storedBytes = await this.#parts.segmentBytes(signal);
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
    }
  }

  /** Throws nothing: the next collection continues an incomplete one. */
  async #collect(signal: AbortSignal): Promise<void> {
    const { collect, onEvent } = this.#parts;
    try {
      if (!(await this.#isDue(signal))) return;
      const onNotice = ({ code, message }: Notice): void => onEvent({ kind: "notice", disk: "", code, message });
      const { storedBytesBefore, storedBytesAfter, waitingFor } = await collect({ onNotice, signal });
      this.#storedBytes = storedBytesAfter;
      if (waitingFor.length === 0) this.#lastMs = this.#parts.wallMs();
      if (waitingFor.length > 0) {
        const message = `the vault could not be collected: ${waitingFor.join(", ")} did not acknowledge in time; the next collection tries again`;
        onEvent({ kind: "notice", disk: "", code: "WRITER_ACTIVE", message });
      } else if (storedBytesBefore > storedBytesAfter) {
        const given = `${formatBytes(storedBytesBefore - storedBytesAfter)} of the vault freed`;
        onEvent({ kind: "collect", disk: "", message: `${given}: ${formatBytes(storedBytesAfter)} stored` });
      }
    } catch (error) {
      // Another process collects, or the store is unreachable, which the cycles of the disks
      // report.
      if (signal.aborted || hasCode(error, "COLLECTION_ACTIVE", "STORE_UNREACHABLE")) return;
      const { code, message } = errorReport(error);
      onEvent({ kind: "failure", disk: "", code, message: `the vault could not be collected: ${message}` });
    }
  }

  async #isDue(signal: AbortSignal): Promise<boolean> {
    const lastMs = await this.#parts.lastCollectedMs(signal);
    this.#lastMs = lastMs;
    if (this.#everyMs === undefined) return false;
    // A time in the future was written by a wrong clock.
    return lastMs === undefined || Math.abs(this.#parts.wallMs() - lastMs) >= this.#everyMs;
  }
}
