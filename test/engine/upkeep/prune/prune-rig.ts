/**
 * What the tests of prunes, removals, holds and pins share: disks that are heads and pages only, in a vault
 * that is a document only.
 */
import type { Notice } from "../../../../engine/notice.ts";
import type { VaultContext } from "../../../../engine/pipeline/vault-context.ts";
import type { Sink } from "../../../../engine/sink.ts";
import type { GroupRecord, PointRecord } from "../../../../engine/store/format/documents.ts";
import { encodeVault } from "../../../../engine/store/format/documents.ts";
import { vaultName } from "../../../../engine/store/format/names.ts";
import { readHead } from "../../../../engine/store/points/head.ts";
import { readPoints } from "../../../../engine/store/points/history.ts";
import { type HoldOptions, holdPoint, type PointHold } from "../../../../engine/store/points/reader-holds.ts";
import { WriterLease } from "../../../../engine/store/points/writer-lease.ts";
import { Store } from "../../../../engine/store/store.ts";
import { type PruneOptions, type PruneSummary, prune } from "../../../../engine/upkeep/prune/prune.ts";
import { type RemoveDiskSummary, removeDisk } from "../../../../engine/upkeep/prune/remove-disk.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { recordOf, recordsVault } from "../../../point-records.ts";
import { vaultSample } from "../../store/format/samples.ts";

const document = { ...vaultSample, vault: recordsVault };

/** A store in memory with a clock that stands still, and a vault in it. */
export class PruneRig {
  readonly memory: MemoryStore = new MemoryStore();
  nowMs = 1_000_000;
  readonly notices: Notice[] = [];
  readonly store: Store;

  private constructor() {
    this.store = new Store(this.connect());
  }

  static async open(): Promise<PruneRig> {
    const rig = new PruneRig();
    await rig.connect().createContainer();
    await rig.store.putOnce(vaultName, encodeVault(document));
    return rig;
  }

  readonly onNotice = (notice: Notice): void => {
    this.notices.push(notice);
  };

  /** Codes of the notices so far. */
  get codes(): string[] {
    return this.notices.map(({ code }) => code);
  }

  connect(): MemorySink {
    return new MemorySink({ store: this.memory, clock: () => this.nowMs });
  }

  /** `nowMs` is long after all points, so their ages count from the newest. */
  async prune(options: PruneOptions, sink: Sink = this.connect()): Promise<PruneSummary> {
    return await prune(contextOf(sink), { nowMs: 2_000_000_000_000, onNotice: this.onNotice, ...options });
  }

  async remove(disk = "d", sink: Sink = this.connect()): Promise<RemoveDiskSummary> {
    return await removeDisk(contextOf(sink), { disk, onNotice: this.onNotice });
  }

  async hold(sequence: number, options: Partial<HoldOptions> & { readonly sink?: Sink } = {}): Promise<PointHold> {
    const { sink = this.connect(), disk = "d" } = options;
    const store = new Store(sink);
    const point = recordOf(sequence, null, disk);
    return await holdPoint({
      store,
      vault: recordsVault,
      disk,
      point,
      purpose: "test",
      onNotice: this.onNotice,
      ...options,
    });
  }

  /** Points that are listed, oldest first. */
  async points(disk = "d"): Promise<PointRecord[]> {
    const newestFirst: PointRecord[] = [];
    const { head } = await readHead(this.store, recordsVault, disk);
    for await (const point of readPoints(this.store, head)) newestFirst.push(point);
    return newestFirst.reverse();
  }

  async sequences(disk = "d"): Promise<number[]> {
    return (await this.points(disk)).map(({ sequence }) => sequence);
  }

  async takeSeat(disk = "d", sink: Sink = this.connect()): Promise<WriterLease> {
    return await WriterLease.take({ store: new Store(sink), vault: recordsVault, disk, onNotice: this.onNotice });
  }

  /** Commits points, each with its cut one cycle after the one before it. */
  async commit(count: number, disk = "d", group: (sequence: number) => GroupRecord | null = () => null): Promise<void> {
    await using writerLease = await this.takeSeat(disk);
    for (let committed = 0; committed < count; committed += 1) {
      await writerLease.mark();
      const sequence = (writerLease.newest?.sequence ?? 0) + 1;
      await writerLease.commit(
        recordOf(sequence, group(sequence), disk),
        committed === count - 1,
        async () => await Promise.resolve(),
      );
    }
  }
}

function contextOf(sink: Sink): VaultContext {
  const unused = (): never => {
    throw new Error("a prune needs no threads and no catalog");
  };
  return {
    sink,
    document,
    stateFolder: undefined,
    workers: 1,
    lanes: 2,
    indexBytesMax: 1024 * 1024,
    workerPool: unused,
    sharedCatalog: unused,
    dropCatalog: unused,
    renewals: new Set(),
    epochs: new Map(),
  };
}
