/**
 * A vault in memory whose disks change, whose points come and go, and which is collected meanwhile;
 * and what every point of it must hold.
 */
import assert from "node:assert/strict";
import type { OperationOptions } from "../../../../engine/progress.ts";
import type { Sink } from "../../../../engine/sink.ts";
import type { PointRecord } from "../../../../engine/store/format/documents.ts";
import { WriterLease } from "../../../../engine/store/points/writer-lease.ts";
import { type CollectOptions, type CollectSummary, collect } from "../../../../engine/upkeep/collection/collection.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import {
  committedPoints,
  contentOf,
  ModelDisk,
  modelStore,
  openModelVault,
  pointBytes,
  redirected,
} from "../../../model-disk.ts";

const granuleBytes = 4096;

export class ChurnedVault {
  readonly store: MemoryStore = new MemoryStore();
  nowMs = 1_000_000;
  /** A client that nothing ever happens to. */
  readonly plain: MemorySink = this.connect();
  /** What clients believe of how long the store may still forget what it has acknowledged. */
  settlingMs = 0;
  /** Where the vault keeps fingerprints, if anywhere. To be set before the vault is used. */
  stateFolder: string | undefined;
  readonly disks: Map<string, ModelDisk> = new Map();
  readonly #line: { current: Sink } = { current: this.plain };
  /** Point id → content. */
  readonly #contents = new Map<string, Buffer>();
  #opened: Promise<Vault> | undefined;
  #changes = 0;

  connect(): MemorySink {
    return new MemorySink({ store: this.store, clock: () => this.nowMs, settlingMs: this.settlingMs });
  }

  /** Every call of the vault goes through `sink` from now on. */
  through(sink: Sink = this.plain): void {
    this.#line.current = sink;
  }

  async vault(): Promise<Vault> {
    this.#opened ??= openModelVault(redirected(this.#line), { stateFolder: this.stateFolder });
    return await this.#opened;
  }

  disk(name: string, sizeBytes: number = 40 * granuleBytes): ModelDisk {
    let disk = this.disks.get(name);
    if (disk === undefined) {
      disk = new ModelDisk(contentOf(sizeBytes, 1), name);
      this.disks.set(name, disk);
    }
    return disk;
  }

  /**
   * Writes to some granules: content that has never been there, or, `seed` given, that may have
   * been.
   */
  change(name: string, from: number, granules: number, seed?: number): void {
    this.#changes += 1;
    contentOf(granules * granuleBytes, seed ?? 1000 + this.#changes).copy(this.disk(name).bytes, from * granuleBytes);
  }

  /** The point holds what the disk holds when the cycle ends. */
  async replicate(name: string, onProgress?: OperationOptions["onProgress"]): Promise<number> {
    const volume = this.disk(name);
    const { point, sequence } = await (await this.vault()).replicate({ disk: name, volume, onProgress });
    this.#contents.set(point, Buffer.from(volume.bytes));
    return sequence;
  }

  /** Drops points as a prune does. */
  async drop(name: string, sequences: readonly number[]): Promise<void> {
    const vault = (await this.vault()).id;
    await using writerLease = await WriterLease.take({
      store: await modelStore(this.plain),
      vault,
      disk: name,
      onNotice: () => undefined,
    });
    await writerLease.drop(sequences, { leave: true, prove: () => Promise.resolve() });
  }

  async points(name: string): Promise<readonly PointRecord[]> {
    return await committedPoints(this.plain, name);
  }

  async collect(options: CollectOptions & { readonly sink?: Sink } = {}): Promise<CollectSummary> {
    return await collect(await modelStore(options.sink ?? this.plain), (await this.vault()).id, options);
  }

  /**
   * Fails unless every committed point of every disk is, bit for bit, what it was made of. Returns
   * how many there are.
   */
  async check(): Promise<number> {
    let count = 0;
    for (const name of this.disks.keys()) {
      for (const point of await this.points(name)) {
        const content = this.#contents.get(point.id);
        assert(content !== undefined, `point ${String(point.sequence)} of ${name} is one of those that were made`);
        assert(
          (await pointBytes(this.plain, name, point)).equals(content),
          `point ${String(point.sequence)} of ${name} is what it was made of`,
        );
        count += 1;
      }
    }
    return count;
  }

  /** Notes what a point holds that another writer has made. */
  note(id: string, content: Buffer): void {
    this.#contents.set(id, content);
  }

  /** Names of all objects below `prefix`. */
  async names(prefix = ""): Promise<string[]> {
    const names: string[] = [];
    for await (const { name } of this.plain.list(prefix)) names.push(name);
    return names.sort();
  }
}
