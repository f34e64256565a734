/**
 * Replica of one disk in the agent: it is brought to each point as soon as the point is committed,
 * for as long as the disk is protected. What was torn when the agent ended is finished first.
 *
 * A failure is a finding of the disk, and is tried again. While a failover has the replica, the agent
 * waits; it goes on when the failover is cancelled.
 */
import { type Finding, hasCode, type ReplicaDone, type ReplicaOptions } from "../../engine/index.ts";
import { errorReport } from "../errors.ts";
import { formatDuration } from "../quantities.ts";
import type { Clock, DiskEvent, ReplicaFacts } from "./ports.ts";

export interface ReplicaKeepingParts {
  readonly disk: string;
  readonly run: (options: ReplicaOptions) => Promise<ReplicaDone>;
  readonly clock: Clock;
  readonly onEvent: (event: DiskEvent) => void;
}

const retryFirstMs = 1_000;
const retryMsMax = 60_000;

export class ReplicaKeeping {
  readonly #parts: ReplicaKeepingParts;
  #to: string | undefined;
  #ending = new AbortController();
  #running: Promise<void> = Promise.resolve();
  #wake: () => void = () => undefined;
  #held: { readonly sequence: number; readonly time: string } | undefined;
  /** The newest point of the disk, as far as this agent has seen. */
  #newest = 0;
  /** Since when the replica holds an older point, on the agent's clock. */
  #behindSinceMs: number | undefined;
  #failure: unknown;
  #isTaken = false;

  /** Throws nothing: what fails is told, and is a finding. */
  constructor(to: string | undefined, parts: ReplicaKeepingParts) {
    this.#parts = parts;
    this.#begin(to);
  }

  /** Keeps another target from now on; undefined: none. The former target stays as it is. */
  set(to: string | undefined): void {
    if (to === this.#to) return;
    this.#ending.abort();
    this.#begin(to, this.#running);
  }

  /** A point of the disk is committed. */
  committed(sequence: number): void {
    this.#newest = sequence;
    if (this.#held !== undefined && this.#held.sequence < sequence) this.#behindSinceMs ??= this.#parts.clock.now();
    this.#wake();
  }

  /** Null: the disk has no replica here. */
  facts(): ReplicaFacts | null {
    if (this.#to === undefined) return null;
    const { sequence = null, time = null } = this.#held ?? {};
    return { target: this.#to, state: this.#state(), sequence, time };
  }

  /** `thresholdMs`: a replica that is behind for longer is a finding; undefined: never. */
  findings(thresholdMs: number | undefined): readonly Finding[] {
    if (this.#to === undefined) return [];
    const findings: Finding[] = [];
    if (this.#failure !== undefined) {
      const { message, remedy } = errorReport(this.#failure);
      findings.push({
        level: "Warning",
        code: "REPLICA_FAILED",
        cause: `the replica ${this.#to} gets no points: ${message}`,
        remedy,
      });
    }
    const behindMs = this.#behindSinceMs === undefined ? 0 : this.#parts.clock.now() - this.#behindSinceMs;
    if (thresholdMs !== undefined && behindMs > thresholdMs && !this.#isTaken) {
      findings.push({
        level: "Warning",
        code: "REPLICA_BEHIND",
        cause: `the replica ${this.#to} has been behind the newest point for ${formatDuration(behindMs)}`,
        remedy: "look whether target and store keep up, or take points less often",
      });
    }
    return findings;
  }

  /** Ends the application under way, and waits for that. Idempotent. */
  async stop(): Promise<void> {
    this.#ending.abort();
    await this.#running;
  }

  #state(): ReplicaFacts["state"] {
    if (this.#isTaken) return "failed-over";
    if (this.#failure !== undefined) return "failed";
    if (this.#held === undefined) return "starting";
    return this.#held.sequence < this.#newest ? "behind" : "current";
  }

  #begin(to: string | undefined, former: Promise<void> = Promise.resolve()): void {
    this.#to = to;
    this.#held = undefined;
    this.#behindSinceMs = undefined;
    this.#failure = undefined;
    this.#isTaken = false;
    this.#ending = new AbortController();
    const { signal } = this.#ending;
    this.#running = former.then(async () => {
      if (to !== undefined) await this.#follow(to, signal);
    });
  }

  async #follow(to: string, signal: AbortSignal): Promise<void> {
    const { disk, run, clock, onEvent } = this.#parts;
    let failures = 0;
    while (!signal.aborted) {
      try {
        await run({
          disk,
          to,
          signal,
          onHolds: ({ sequence, time }) => {
            failures = 0;
            this.#failure = undefined;
            this.#isTaken = false;
            this.#held = { sequence, time };
            if (sequence >= this.#newest) this.#behindSinceMs = undefined;
          },
          onIdle: (wake) => {
            this.#wake = wake;
          },
          onNotice: ({ code, message }) => {
            if (code === "REPLICA_TAKEN") this.#isTaken = true;
            onEvent({ kind: "notice", disk, code, message });
          },
        });
      } catch (error) {
        if (signal.aborted) return;
        this.#isTaken = false;
        const retryInMs = Math.min(retryFirstMs * 2 ** failures, retryMsMax);
        // A disk that is new has no point yet.
        if (hasCode(error, "DISK_NOT_FOUND")) {
          await this.#firstPoint(retryInMs, signal);
          continue;
        }
        failures += 1;
        this.#failure = error;
        const { code, message, remedy } = errorReport(error);
        const what = `no point is applied to the replica ${to}, tried again in ${retryInMs / 1_000} s`;
        onEvent({ kind: "failure", disk, code, message: `${message}: ${what}; ${remedy}` });
        await clock.sleep(retryInMs, signal);
      }
    }
  }

  async #firstPoint(waitMs: number, signal: AbortSignal): Promise<void> {
    const woken = new AbortController();
    this.#wake = () => woken.abort();
    await this.#parts.clock.sleep(waitMs, AbortSignal.any([signal, woken.signal]));
  }
}
