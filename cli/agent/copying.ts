/**
 * Vault-to-vault replication by the agent: the points of its disks are copied to a second vault by
 * schedule, and the second vault is pruned by a retention of its own.
 *
 *     vault opened and held ─► copy of all disks ─► prune of those that got points ─► pause ─► …
 *
 * The lag of a disk's copy is the time whose changes may be missing in the second vault: from the last
 * look that found nothing newer, or else from the newest copied point.
 *
 * Invariant: nothing that fails in the second vault ends more than the copy. It is told, is a finding of the
 * disk, and is tried again.
 */
import { type CopiedDisk, type Finding, type Notice, TidemarkError } from "../../engine/index.ts";
import { errorReport } from "../errors.ts";
import { formatDuration } from "../quantities.ts";
import type { CopyConfig } from "./copy-checks.ts";
import type { Clock, CopyFacts, DiskEvent, VaultPort } from "./ports.ts";
import type { Share } from "./shared.ts";

export interface CopyingParts {
  /** See `EngineAdapter.openVault`. */
  readonly holdVault: (name: string, signal: AbortSignal, like?: VaultPort) => Promise<Share<VaultPort>>;
  readonly clock: Clock;
  /** Milliseconds since 1970. */
  readonly wallMs: () => number;
  readonly onEvent: (event: DiskEvent) => void;
}

/** Later than the first cycles after a start. */
const firstAfterMs = 30_000;
const retryFirstMs = 60_000;
/** Critical is above this multiple of the threshold, as the lag of the disk itself. */
const criticalFactor = 2;

/** What is known of the copy of one disk. */
interface DiskCopy {
  held: { readonly sequence: number; readonly time: string } | undefined;
  /** The moment up to which the second vault has everything, on the agent's clock. */
  completeAtMs: number | undefined;
  failure: { readonly error: unknown } | undefined;
}

export class Copying {
  readonly config: CopyConfig;
  readonly #parts: CopyingParts;
  readonly #disks: ReadonlyMap<string, DiskCopy>;
  readonly #startedAtMs: number;
  readonly #ending = new AbortController();
  readonly #running: Promise<void>;
  #shares: Share<VaultPort>[] = [];
  #isCopying = false;

  /** Begins at once, and throws nothing. */
  constructor(config: CopyConfig, disks: readonly string[], parts: CopyingParts) {
    this.config = config;
    this.#parts = parts;
    this.#startedAtMs = parts.clock.now();
    this.#disks = new Map(
      disks.map((disk) => [disk, { held: undefined, completeAtMs: undefined, failure: undefined }]),
    );
    this.#running = this.#run();
  }

  /** Undefined: the disk is not copied here. */
  factsOf(disk: string): CopyFacts | undefined {
    const copy = this.#disks.get(disk);
    if (copy === undefined) return undefined;
    const { held, completeAtMs, failure } = copy;
    const idle = completeAtMs === undefined ? "starting" : "waiting";
    return {
      vault: this.config.to,
      state: failure === undefined ? (this.#isCopying ? "copying" : idle) : "failed",
      sequence: held?.sequence ?? null,
      time: held?.time ?? null,
      lagMs: completeAtMs === undefined ? null : Math.round(this.#parts.clock.now() - completeAtMs),
    };
  }

  findingsOf(disk: string): readonly Finding[] {
    const copy = this.#disks.get(disk);
    if (copy === undefined) return [];
    const { to, every, recoveryPointThreshold = 3 * every } = this.config;
    const findings: Finding[] = [];
    if (copy.failure !== undefined) {
      const { message, remedy } = errorReport(copy.failure.error);
      const cause = `the points of ${disk} are not copied to the vault ${to}: ${message}`;
      findings.push({ level: "Warning", code: "COPY_FAILED", cause, remedy });
    }
    // A first copy takes as long as the disk is large.
    const isFirst = copy.completeAtMs === undefined && copy.failure === undefined && this.#isCopying;
    const lagMs = this.#parts.clock.now() - (copy.completeAtMs ?? this.#startedAtMs);
    if (lagMs > recoveryPointThreshold && !isFirst) {
      findings.push({
        level: lagMs > criticalFactor * recoveryPointThreshold ? "Critical" : "Warning",
        code: "COPY_BEHIND",
        cause: `the vault ${to} lacks what has changed on ${disk} for ${formatDuration(lagMs)}`,
        remedy: "look whether both vaults keep up and `limit` lets them, or raise `every` of the copy",
      });
    }
    return findings;
  }

  /** Ends the copy under way, which goes on where it was when it begins again. Idempotent. */
  async stop(): Promise<void> {
    this.#ending.abort();
    await this.#running;
  }

  async #run(): Promise<void> {
    const { signal } = this.#ending;
    const { clock } = this.#parts;
    const { every } = this.config;
    const isOver = (): boolean => signal.aborted;
    await clock.sleep(Math.min(firstAfterMs, every), signal);
    for (let failures = 0; !isOver(); ) {
      this.#isCopying = true;
      const isDone = await this.#copy(signal);
      this.#isCopying = false;
      failures = isDone ? 0 : failures + 1;
      await clock.sleep(isDone ? every : Math.min(retryFirstMs * 2 ** (failures - 1), every), signal);
    }
    await Promise.all(this.#shares.map(async (share) => await share.release()));
  }

  /** One copy of all disks. Gives whether all of it could be done. Throws nothing. */
  async #copy(signal: AbortSignal): Promise<boolean> {
    const { clock, onEvent } = this.#parts;
    const { to: name, points } = this.config;
    const beganAtMs = clock.now();
    const grown = new Set<string>();
    try {
      const [from, to] = await this.#open(signal);
      await from.copyTo(to, {
        disks: [...this.#disks.keys()],
        points,
        onPoint: ({ disk, sequence, copiedSequence, time }) => {
          grown.add(disk);
          const copy = this.#disks.get(disk);
          if (copy !== undefined) copy.held = { sequence: copiedSequence, time };
          const message = `point ${sequence} copied to the vault ${name} as point ${copiedSequence}`;
          onEvent({ kind: "copy", disk, message });
        },
        onEnded: (disk, ended) => {
          if (ended instanceof TidemarkError) this.#fail(disk, ended);
          else this.#note(disk, ended, beganAtMs);
        },
        // What a copy meets in either vault concerns all of its disks.
        onNotice: ({ code, message }: Notice) => onEvent({ kind: "notice", disk: "", code, message }),
        signal,
      });
    } catch (error) {
      if (signal.aborted) return false;
      // Errors of one disk have been told of; any other one is that of all.
      const isTold = [...this.#disks.values()].some(({ failure }) => failure?.error === error);
      if (!isTold) for (const disk of this.#disks.keys()) this.#fail(disk, error);
    }
    await this.#prune(grown, signal);
    return [...this.#disks.values()].every(({ failure }) => failure === undefined);
  }

  /** Both vaults stay open, so that the second one is scrubbed and collected, too. */
  async #open(signal: AbortSignal): Promise<readonly [VaultPort, VaultPort]> {
    const { from, to } = this.config;
    for (const name of [from, to].slice(this.#shares.length))
      this.#shares.push(await this.#parts.holdVault(name, signal, this.#shares[0]?.resource));
    const [first, second] = this.#shares;
    if (first === undefined || second === undefined) throw new TidemarkError("INTERNAL", "a vault is not open");
    return [first.resource, second.resource];
  }

  async #prune(disks: ReadonlySet<string>, signal: AbortSignal): Promise<void> {
    const { to, recoveryPointRetention: policy } = this.config;
    if (policy.kind === "everything") return;
    for (const disk of disks) {
      try {
        const removed = await this.#shares[1]?.resource.prune(disk, policy, signal);
        if ((removed ?? 0) > 0)
          this.#parts.onEvent({
            kind: "prune",
            disk,
            message: `${removed} points of ${disk} pruned in the vault ${to}`,
          });
      } catch (error) {
        if (signal.aborted) return;
        this.#fail(disk, error);
      }
    }
  }

  #note(disk: string, { copied, lagMs }: CopiedDisk, beganAtMs: number): void {
    const copy = this.#disks.get(disk);
    if (copy === undefined) return;
    copy.failure = undefined;
    if (copied === null || lagMs === null) return;
    // A damaged point may be missing: then only what is copied counts.
    const { clock, wallMs } = this.#parts;
    copy.completeAtMs = lagMs === 0 ? beganAtMs : clock.now() - Math.max(0, wallMs() - Date.parse(copied));
  }

  #fail(disk: string, error: unknown): void {
    const copy = this.#disks.get(disk);
    if (copy === undefined) return;
    copy.failure = { error };
    const { code, message, remedy } = errorReport(error);
    const what = `its points are not copied to the vault ${this.config.to}, and that is tried again`;
    this.#parts.onEvent({ kind: "failure", disk, code, message: `${message}: ${what}; ${remedy}` });
  }
}
