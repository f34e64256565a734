/**
 * Recent past of the agent, for the dashboard: ring buffers of each disk's lag, churn and upload, and
 * of what happened to the disks.
 *
 * Invariant: memory is bounded. A disk has at most `samplesMax` samples of three numbers; a disk that
 * the configuration no longer has, has none.
 */
import { withoutSecrets } from "../../errors.ts";
import type { DiskEvent } from "../ports.ts";
import type { AgentStatus } from "../supervisor.ts";

/** Time from one sample to the next. */
export const sampleEveryMs = 10_000;
const samplesMax = 360;
const entriesMax = 500;

/** Lag of the newest committed point in ms (null: none yet), and bytes a second written and sent. */
export type Sample = readonly [lagMs: number | null, churn: number, upload: number];

/** The samples of a disk, oldest first. */
export interface Series {
  readonly disk: string;
  readonly everyMs: number;
  readonly samples: readonly Sample[];
}

/** Something that happened; `disk` is empty when it concerns a vault. */
export interface LogEntry {
  /** Rises by one from entry to entry, from 1. */
  readonly id: number;
  /** ISO 8601 in UTC. */
  readonly time: string;
  readonly kind: DiskEvent["kind"];
  readonly disk: string;
  readonly message: string;
  readonly code: string | null;
}

export class History {
  #samples = new Map<string, Sample[]>();
  readonly #entries: LogEntry[] = [];
  #lastId = 0;

  sample({ disks }: Pick<AgentStatus, "disks">): void {
    const samples = new Map<string, Sample[]>();
    for (const { disk, lag, churnBytesPerSecond, uploadBytesPerSecond } of disks) {
      const sample: Sample = [lag.committedMs, Math.round(churnBytesPerSecond), Math.round(uploadBytesPerSecond)];
      samples.set(disk, [...(this.#samples.get(disk) ?? []).slice(1 - samplesMax), sample]);
    }
    this.#samples = samples;
  }

  /** Points come every few seconds, and the status shows them: they and their prunes are no entries. */
  note({ kind, disk, message, code }: DiskEvent): LogEntry | undefined {
    if (kind === "point" || kind === "prune") return undefined;
    this.#lastId += 1;
    const time = new Date().toISOString();
    const entry = { id: this.#lastId, time, kind, disk, message: withoutSecrets(message), code: code ?? null };
    this.#entries.push(entry);
    if (this.#entries.length > entriesMax) this.#entries.shift();
    return entry;
  }

  series(disk: string): Series {
    return { disk, everyMs: sampleEveryMs, samples: this.#samples.get(disk) ?? [] };
  }

  /** Oldest first. */
  get entries(): readonly LogEntry[] {
    return this.#entries;
  }
}
