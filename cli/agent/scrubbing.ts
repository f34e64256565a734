/**
 * Scrubbing of one vault by the agent: every hour the agent claims the accrued part of the vault's
 * daily quota, reads that much back, and heals damage from the disks that it protects. Damage that
 * cannot be healed is a finding of its disk until a later pass finds it whole. An agent that can only
 * write proves what it can, and says once what it does not read.
 *
 * The quota belongs to the vault: the engine shares it among all agents that scrub the vault.
 */
import {
  Bandwidth,
  type Damage,
  type Finding,
  type Notice,
  type ScrubOptions,
  type ScrubSummary,
  TidemarkError,
} from "../../engine/index.ts";
import { shellWord } from "../../engine/internal.ts";
import { errorReport } from "../errors.ts";
import { formatNumberOf } from "../quantities.ts";
import { PeriodicTask } from "./periodic-task.ts";
import type { Clock, DiskEvent } from "./ports.ts";
import type { ScrubEntry } from "./schema.ts";

export interface ScrubbingParts {
  readonly scrub: (options: ScrubOptions) => Promise<ScrubSummary>;
  readonly clock: Clock;
  /** Events of disks that another agent protects are reported with the first disk of this one. */
  readonly onEvent: (event: DiskEvent) => void;
}

const everyMs = 3_600_000;
const firstAfterMs = 300_000;
/** Points of a finding that are named. */
const namedMax = 5;

export class Scrubbing {
  readonly #parts: ScrubbingParts;
  readonly #bandwidth = new Bandwidth();
  readonly #task: PeriodicTask;
  #entry: ScrubEntry | undefined;
  #damaged: readonly Damage[] = [];
  #lastAtMs: number | undefined;
  #isUnreadTold = false;

  constructor(entry: ScrubEntry | undefined, parts: ScrubbingParts) {
    this.#parts = parts;
    this.#setEntry(entry);
    const work = async (signal: AbortSignal): Promise<void> => await this.#pass(signal);
    this.#task = new PeriodicTask({ clock: parts.clock, firstAfterMs, everyMs, work });
  }

  /** From now on, at another pace. */
  set(entry: ScrubEntry | undefined): void {
    this.#setEntry(entry);
    this.#task.hurry();
  }

  #setEntry(entry: ScrubEntry | undefined): void {
    this.#entry = entry;
    this.#bandwidth.setLimit(entry?.rate ?? Infinity);
  }

  /** Time since the last pass that ended, or null before the first. */
  get ageMs(): number | null {
    return this.#lastAtMs === undefined ? null : this.#parts.clock.now() - this.#lastAtMs;
  }

  #tellUnread(): void {
    if (this.#isUnreadTold) return;
    this.#isUnreadTold = true;
    const message =
      "this machine has no key that reads back what the vault's disks hold: scrubs prove lists, maps and frame tables, and no payload; " +
      "run `tidemark verify --key FILE` elsewhere, or start the agent with TIDEMARK_KEY_FILE";
    this.#parts.onEvent({ kind: "notice", disk: "", code: "PAYLOADS_NOT_READ", message });
  }

  /** Sequence numbers of the disk's points that are known to be damaged. */
  damagedPoints(disk: string): ReadonlySet<number> {
    return new Set(this.#damaged.flatMap((damage) => (damage.disk === disk ? (damage.sequence ?? []) : [])));
  }

  /** The known damage of a disk. */
  findings(disk: string): readonly Finding[] {
    const damages = this.#damaged.filter((damage) => damage.disk === disk);
    const [first] = damages;
    if (first === undefined) return [];
    const points = [...new Set(damages.flatMap(({ sequence }) => sequence ?? []))].sort((a, b) => a - b);
    const named = points.slice(0, namedMax).join(", ");
    const more = points.length > namedMax ? ` and ${points.length - namedMax} more` : "";
    const what =
      points.length === 0 ? "what the vault holds" : `${points.length === 1 ? "point" : "points"} ${named}${more}`;
    return [
      {
        level: "Critical",
        code: "POINT_DAMAGED",
        cause: `${what} of ${disk} cannot be read back in full: ${first.message}`,
        remedy: `run \`tidemark verify --disk ${shellWord(disk)} --heal --source IMAGE\` with a copy of the disk that still has the content`,
      },
    ];
  }

  /** Waits for the pass that is under way, which ends at once. Idempotent. */
  async stop(): Promise<void> {
    await this.#task.stop();
  }

  /**
   * Throws nothing. The cycles of the disks report an unreachable store, and the next pass tries
   * again.
   */
  async #pass(signal: AbortSignal): Promise<void> {
    const { scrub, onEvent } = this.#parts;
    const sharePerDay = this.#entry?.sharePerDay ?? 0;
    if (sharePerDay === 0) return;
    try {
      const onDamage = ({ disk, code, message, healed }: Damage): void => {
        if (!healed) onEvent({ kind: "failure", disk, code, message: `damage found: ${message}` });
      };
      // Every pass repeats its other notices.
      const onNotice = ({ code, message }: Notice): void => {
        if (code === "VAULT_AT_RISK" || code === "SEGMENT_DAMAGED")
          onEvent({ kind: "notice", disk: "", code, message });
      };
      const options = { sharePerDay, bandwidth: this.#bandwidth, onDamage, onNotice, signal };
      const { damaged, healed, readsPayloads } = await scrub(options);
      if (!readsPayloads) this.#tellUnread();
      this.#damaged = damaged;
      this.#lastAtMs = this.#parts.clock.now();
      for (const disk of new Set(healed.map((damage) => damage.disk))) {
        const count = healed.filter((damage) => damage.disk === disk).length;
        onEvent({
          kind: "notice",
          disk,
          code: "DAMAGE_HEALED",
          message: `${formatNumberOf(count, "damage")} of the vault healed`,
        });
      }
    } catch (error) {
      if (signal.aborted) return;
      const { code, message } = errorReport(error);
      if (error instanceof TidemarkError && code === "STORE_UNREACHABLE") return;
      onEvent({ kind: "failure", disk: "", code, message: `the vault could not be scrubbed: ${message}` });
    }
  }
}
