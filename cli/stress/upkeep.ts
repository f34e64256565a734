/**
 * Work beside the load: what users and timers do to a vault while agents write to it. Each piece of
 * work opens the vault anew, as a command would, and goes through the fault proxy.
 *
 *     keeping:  replicate a disk by scanning ─► prune its points ─► collect ─► scrub       over and over
 *     reading:  materialize a point, or mount one and read it ─► judge it                 over and over
 *
 * The disk that is scanned is the image of a protected disk under another name. Its chunks are
 * shared with the protected disks, so a collection that frees too much is found.
 *
 * Invariant: an error that a fault of the store or of the agent explains ends one piece of work and
 * is counted. Any other error is a failure of the run, and a point that is not what it must be is
 * damage.
 */
import { readFile, rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import {
  type ErrorCode,
  FileVolume,
  hasCode,
  type ListedPoint,
  parsePolicy,
  TidemarkError,
  Vault,
} from "../../engine/index.ts";
import { imageIn } from "./agent-process.ts";
import type { UpkeepCount } from "./report.ts";
import type { StampLog } from "./stamps.ts";
import type { StressStore } from "./store.ts";

export const scannedDisk = "scanned";
const pauseMs = 500;
const keptScans = 2;

/** What a store that is dead, slow, full or has gone back, and other processes of the run, lead to. */
const explained: readonly ErrorCode[] = [
  "STORE_UNREACHABLE",
  "OUTCOME_UNKNOWN",
  "STORE_REGRESSED",
  "VAULT_NOT_FOUND",
  "DISK_NOT_FOUND",
  "POINT_NOT_FOUND",
  "WRITER_ACTIVE",
  "SEAT_LOST",
  "COLLECTION_ACTIVE",
  "NO_SPACE",
];

export interface UpkeepParts {
  readonly store: StressStore;
  readonly folder: string;
  readonly disks: readonly string[];
  readonly logs: ReadonlyMap<string, StampLog>;
  readonly random: () => number;
  readonly onDamage: (what: string) => void;
  readonly onFailure: (what: string) => void;
  /**
   * Whether the store has forgotten what it acknowledged and a disk has had no point since: until
   * then, points may be listed of which objects are gone.
   */
  readonly hasForgotten: () => boolean;
  /** Aborts when the load is over. */
  readonly signal: AbortSignal;
}

export class Upkeep {
  readonly #parts: UpkeepParts;
  readonly #counts = new Map<string, { done: number; refused: number }>();

  constructor(parts: UpkeepParts) {
    this.#parts = parts;
  }

  /** Works until the signal. Throws nothing. */
  async run(): Promise<void> {
    const { signal } = this.#parts;
    const over = async (works: readonly (() => Promise<void>)[]): Promise<void> => {
      while (!signal.aborted) {
        for (const work of works) await work();
        await delay(pauseMs, undefined, { signal }).catch(() => undefined);
      }
    };
    await Promise.all([
      over([
        async () => await this.#work("replicate", async (vault) => await this.#replicate(vault)),
        async () => await this.#work("prune", async (vault) => await this.#prune(vault)),
        async () => await this.#work("collect", async (vault) => await vault.collect({ signal })),
        async () =>
          await this.#work("scrub", async (vault) => await vault.scrub({ budgetBytes: 64 * 1024 ** 2, signal })),
      ]),
      over([
        async () => await this.#work("materialize", async (vault) => await this.#materialize(vault)),
        async () => await this.#work("mount", async (vault) => await this.#mount(vault)),
      ]),
    ]);
  }

  counts(): readonly UpkeepCount[] {
    return [...this.#counts].map(([operation, count]) => ({ operation, ...count }));
  }

  async #work(operation: string, work: (vault: Vault) => Promise<unknown>): Promise<void> {
    const { store, folder, signal, onFailure, hasForgotten } = this.#parts;
    if (this.#isOver()) return;
    const hadForgotten = hasForgotten();
    const count = this.#counts.get(operation) ?? { done: 0, refused: 0 };
    this.#counts.set(operation, count);
    try {
      await using sink = await store.sink("proxied", signal);
      await using vault = await Vault.open(sink, {
        keys: store.keys,
        stateFolder: join(folder, "upkeep"),
        workers: 1,
        signal,
      });
      await work(vault);
      count.done += 1;
    } catch (error) {
      if (this.#isOver()) return;
      count.refused += 1;
      if (hasCode(error, ...explained)) return;
      if (hasCode(error, "DAMAGED") && (hadForgotten || hasForgotten())) return;
      const fact = error instanceof TidemarkError ? `${error.code}: ${error.message}` : String(error);
      onFailure(`${operation} ended with ${fact}`);
    }
  }

  #isOver(): boolean {
    return this.#parts.signal.aborted;
  }

  async #replicate(vault: Vault): Promise<void> {
    const { folder, disks, signal } = this.#parts;
    const volume = await FileVolume.open(imageIn(folder, disks[0] ?? ""));
    try {
      await vault.replicate({ disk: scannedDisk, volume, signal });
    } finally {
      await volume.close();
    }
  }

  async #prune(vault: Vault): Promise<void> {
    const { signal } = this.#parts;
    await vault.prune({ disk: scannedDisk, policy: parsePolicy(`keep:last=${keptScans}`), signal });
  }

  async #materialize(vault: Vault): Promise<void> {
    const { folder, signal } = this.#parts;
    const point = await this.#anyPoint(vault);
    if (point === undefined) return;
    const to = join(folder, "back.img");
    try {
      await vault.materialize({ disk: point.disk, point: point.point, to, mode: "replace", signal });
      this.#judge(point, await readFile(to));
    } finally {
      await rm(to, { force: true });
    }
  }

  async #mount(vault: Vault): Promise<void> {
    const point = await this.#anyPoint(vault);
    if (point === undefined) return;
    await using mount = await vault.mount({ disk: point.disk, point: point.point, signal: this.#parts.signal });
    const bytes = Buffer.alloc(mount.device.sizeBytes);
    await mount.device.read(0, bytes);
    this.#judge(point, bytes);
  }

  /** A point of a protected disk; the newer ones are chosen more often. */
  async #anyPoint(vault: Vault): Promise<ListedPoint | undefined> {
    const { disks, random, signal } = this.#parts;
    const disk = disks[Math.floor(random() * disks.length)] ?? "";
    const points = await vault.points(disk, { signal });
    return points.at(-1 - Math.floor(random() ** 2 * points.length));
  }

  #judge({ disk, sequence, consistency, time }: ListedPoint, bytes: Buffer): void {
    if (consistency === "fuzzy") return;
    const faults = this.#parts.logs.get(disk)?.judgePoint(bytes, Date.parse(time)).faults ?? [];
    for (const fault of faults) this.#parts.onDamage(`point ${sequence} of ${disk}, read under load: ${fault}`);
  }
}
