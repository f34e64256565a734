/**
 * The agent's collecting of one vault: when nobody has collected it for as long as the configuration says, it does. Agents that share a vault share the work:
 * the vault remembers when it was last collected, and of two that begin at once one yields.
 */
import { type CollectOptions, type CollectSummary, hasCode } from "../../engine/index.ts";
import { errorReport } from "../errors.ts";
import { formatBytes } from "../quantities.ts";
import { PeriodicTask } from "./periodic-task.ts";
import type { Clock, DiskEvent } from "./ports.ts";

export interface CollectingParts {
  readonly collect: (options: CollectOptions) => Promise<CollectSummary>;
  readonly lastCollectedMs: (signal: AbortSignal) => Promise<number | undefined>;
  readonly clock: Clock;
  /** Milliseconds since 1970. */
  readonly wallMs: () => number;
  /** Told with `disk` empty: it concerns all of the vault. */
  readonly onEvent: (event: DiskEvent) => void;
}

const lookEveryMs = 3_600_000;
/** Later than the first cycles after a start, which have enough to do. */
const firstAfterMs = 600_000;

export class Collecting {
  readonly #parts: CollectingParts;
  readonly #task: PeriodicTask;
  #everyMs: number | undefined;

  /** `everyMs` undefined: never. */
  constructor(everyMs: number | undefined, parts: CollectingParts) {
    this.#parts = parts;
    this.#everyMs = everyMs;
    const work = async (signal: AbortSignal): Promise<void> => await this.#collect(signal);
    this.#task = new PeriodicTask({ clock: parts.clock, firstAfterMs, everyMs: lookEveryMs, work });
  }

  /** From now on, as often as this. */
  set(everyMs: number | undefined): void {
    if (everyMs === this.#everyMs) return;
    this.#everyMs = everyMs;
    this.#task.hurry();
  }

  /** Waits for the collection that is under way, which ends at once. Idempotent. */
  async stop(): Promise<void> {
    await this.#task.stop();
  }

  /** Throws nothing: what a collection has not come to, the next one does. */
  async #collect(signal: AbortSignal): Promise<void> {
    const { collect, onEvent } = this.#parts;
    try {
      if (!(await this.#isDue(signal))) return;
      const { storedBytesBefore, storedBytesAfter, waitingFor } = await collect({ signal });
      if (waitingFor.length > 0) {
        const message = `the vault could not be collected: ${waitingFor.join(", ")} had not acknowledged in time; it is tried again`;
        onEvent({ kind: "notice", disk: "", code: "WRITER_ACTIVE", message });
      } else if (storedBytesBefore > storedBytesAfter) {
        const given = `${formatBytes(storedBytesBefore - storedBytesAfter)} of the vault given back`;
        onEvent({ kind: "collect", disk: "", message: `${given}: ${formatBytes(storedBytesAfter)} stored` });
      }
    } catch (error) {
      // Another one collects, or the store does not answer, which the disks' own cycles find out.
      if (signal.aborted || hasCode(error, "COLLECTION_ACTIVE", "STORE_UNREACHABLE")) return;
      const { code, message } = errorReport(error);
      onEvent({ kind: "failure", disk: "", code, message: `the vault could not be collected: ${message}` });
    }
  }

  async #isDue(signal: AbortSignal): Promise<boolean> {
    if (this.#everyMs === undefined) return false;
    const lastMs = await this.#parts.lastCollectedMs(signal);
    // A time that lies ahead is that of a clock that was wrong.
    return lastMs === undefined || Math.abs(this.#parts.wallMs() - lastMs) >= this.#everyMs;
  }
}
