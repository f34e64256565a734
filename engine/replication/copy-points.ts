/**
 * Vault-to-vault replication: copies recovery points, with their times, to another vault.
 *
 *     point of the source vault ─ mounted: fetched, proved ─► volume ─► cycle of the target vault
 *                                                               ▲        (split, digested, deduplicated there)
 *     pin of the point that was copied last ─► difference ──────┘
 *
 * A copied point is a point like any other of the target vault: split into that vault's blocks, under
 * its digests. Times tell points apart, because they rise from point to point of a disk: points later
 * than the newest one of the target are copied, oldest first, so a copy that was interrupted goes on
 * when it is repeated.
 *
 * The point that was copied last stays pinned in the source vault. The pin's name says which point of
 * the target it became. While that one is the newest there, the next copy reads only what differs.
 * Without the pin the next point is compared whole.
 *
 * Invariant: a copied point holds only bytes that were proved by the digests of the source vault.
 *
 * Memory: the cache of one mount, and what a cycle needs, for each disk that is copied at once.
 */
import { forEachAtOnce } from "../concurrency.ts";
import type { BlockDevice } from "../device.ts";
import { watchedStore } from "../disk/source/head-watch.ts";
import { LocalState } from "../disk/source/local-state.ts";
import { hasCode, isUnreadableOrGone, TidemarkError, throwIfAborted } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import { cacheBlocksMin } from "../recovery/mount/block-cache.ts";
import { Mount } from "../recovery/mount/mount.ts";
import { fromHex } from "../store/format/checksum.ts";
import type { HeadDocument, ManifestDocument, PointRecord } from "../store/format/documents.ts";
import { readDisk } from "../store/points/head.ts";
import { readPoints } from "../store/points/history.ts";
import { labelNewPoint, listLabels } from "../store/points/labels.ts";
import { readManifest } from "../store/points/manifest.ts";
import { deletePin, listPins, putPin } from "../store/points/pins.ts";
import { PointDiff } from "../store/points/point-diff.ts";
import { diskNames, selectPoint } from "../store/points/points.ts";
import type { Store } from "../store/store.ts";
import { GroupRetention } from "../upkeep/prune/group-retention.ts";
import { planPrune } from "../upkeep/prune/prune-plan.ts";
import type { RetentionPolicy } from "../upkeep/retention/policy.ts";
import type { ChangeSource, Extent, Volume } from "../volume.ts";
import { replicate } from "./replicate.ts";

/** Which points are copied: all, the newest of each disk, or those that a policy would keep. */
export type CopiedPoints = "all" | "latest" | RetentionPolicy;

/** How points are copied to another vault. */
export interface CopyOptions extends OperationOptions {
  /** Names of disks. Default: every disk that has points. */
  readonly disks?: readonly string[] | undefined;
  /** Default: `all`. */
  readonly points?: CopiedPoints | undefined;
  /** Told each point that has been copied. */
  readonly onPoint?: ((copied: CopiedPoint) => void) | undefined;
  /** Told of each disk what has become of it. */
  readonly onEnded?: ((disk: string, ended: CopiedDisk | TidemarkError) => void) | undefined;
}

/** A point, and what it is in the other vault. */
export interface CopiedPoint {
  readonly disk: string;
  /** Time of the cut, in both vaults; ISO 8601 in UTC. */
  readonly time: string;
  /** Sequence number in the source vault. */
  readonly sequence: number;
  /** Sequence number and id in the target vault. */
  readonly copiedSequence: number;
  readonly copiedPoint: string;
  /** Bytes that were read of the source vault's segments. */
  readonly fetchedBytes: number;
  /** Plain bytes of chunks that were new in the target vault, and what they are stored as. */
  readonly newBytes: number;
  readonly storedBytes: number;
}

/** What a copy did. */
export interface CopySummary {
  readonly disks: readonly CopiedDisk[];
  readonly points: number;
  readonly fetchedBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
  readonly elapsedMs: number;
}

/** A disk after a copy. */
export interface CopiedDisk {
  readonly disk: string;
  /** Points that this copy has added. */
  readonly points: number;
  /** Time of the newest point in the source vault, and of the newest one in the target; null: none. */
  readonly newest: string;
  readonly copied: string | null;
  /** How much older the newest copied point is, in ms; null: none is copied. */
  readonly lagMs: number | null;
  /**
   * Points that are missing in the target and older than its newest point. Points are only ever added
   * at the end.
   */
  readonly tooOld: number;
  /** Points that could not be read back, and were passed over. */
  readonly damaged: number;
}

const disksAtOnce = 2;
/** Read far ahead: see `read-ahead.ts`. */
const cacheBytes: number = 128 * 1024 * 1024;
const extentsAtOnce = 4096;

/** A vault in a copy. */
interface Side {
  readonly context: VaultContext;
  readonly store: Store;
  readonly vault: string;
}

/**
 * Copies points of `from` to `to`. Disks are independent: one that fails leaves the others, and the
 * first failure is thrown when all have ended.
 *
 * @throws INVALID_ARGUMENT, DISK_NOT_FOUND, before anything is copied; DAMAGED when a point cannot be
 * read back; WRITER_ACTIVE when the disk is replicated to the target by another process; those of
 * `replicate` and of both stores.
 */
export async function copyPoints(from: VaultContext, to: VaultContext, options: CopyOptions): Promise<CopySummary> {
  const startedAt = performance.now();
  const [source, target] = [from, to].map(
    (context): Side => ({
      context,
      store: watchedStore(context, options.onNotice),
      vault: context.document.vault,
    }),
  ) as [Side, Side];
  if (source.vault === target.vault) {
    throw new TidemarkError("INVALID_ARGUMENT", `both vaults are ${source.vault}: a vault and its copies are one`, {
      remedy: "name two vaults; make the second with `tidemark vault init`",
    });
  }
  const disks = await disksOf(source, options);
  const copied: CopiedPoint[] = [];
  const done: CopiedDisk[] = [];
  const failures: unknown[] = [];
  await forEachAtOnce(disks, disksAtOnce, async (disk) => {
    const copy = new DiskCopy(source, target, disk, new Set(disks), {
      ...options,
      onPoint: (point) => {
        copied.push(point);
        options.onPoint?.(point);
      },
    });
    try {
      const ended = await copy.run();
      done.push(ended);
      options.onEnded?.(disk, ended);
    } catch (error) {
      if (!(error instanceof TidemarkError) || error.code === "INTERRUPTED") throw error;
      failures.push(error);
      options.onEnded?.(disk, error);
    }
  });
  const [first] = copied;
  if (first !== undefined) await saveCatalog(target, first.disk, options);
  if (failures.length > 0) throw failures[0];
  const sum = (key: "fetchedBytes" | "newBytes" | "storedBytes"): number =>
    copied.reduce((total, point) => total + point[key], 0);
  return {
    disks: done.toSorted((a, b) => (a.disk < b.disk ? -1 : 1)),
    points: copied.length,
    fetchedBytes: sum("fetchedBytes"),
    newBytes: sum("newBytes"),
    storedBytes: sum("storedBytes"),
    elapsedMs: Math.round(performance.now() - startedAt),
  };
}

/** The next copy, in another process, reads only what is new of the target's index. */
async function saveCatalog(
  { context, store, vault }: Side,
  disk: string,
  { onNotice = () => undefined }: CopyOptions,
): Promise<void> {
  const catalog = await context.sharedCatalog(store, onNotice);
  const state = new LocalState({ folder: context.stateFolder, vault, disk, onNotice });
  await state.saveCache(async (folder) => await catalog.save(folder, fromHex(vault)));
}

/** Errors: DISK_NOT_FOUND. */
async function disksOf({ store, vault }: Side, { disks, signal }: CopyOptions): Promise<readonly string[]> {
  if (disks !== undefined) {
    const named = [...new Set(disks.map((disk) => disk.normalize("NFC")))];
    for (const disk of named) await readDisk(store, vault, disk, signal);
    return named;
  }
  const names: string[] = [];
  for (const disk of await diskNames(store, signal))
    if ((await findDisk({ store, vault }, disk, signal)) !== undefined) names.push(disk);
  return names;
}

/** The head of a disk that has points. */
async function findDisk(
  { store, vault }: Pick<Side, "store" | "vault">,
  disk: string,
  signal: AbortSignal | undefined,
): Promise<HeadDocument | undefined> {
  try {
    return await readDisk(store, vault, disk, signal);
  } catch (error) {
    if (hasCode(error, "DISK_NOT_FOUND")) return undefined;
    throw error;
  }
}

/** The copy of one disk. */
class DiskCopy {
  readonly #source: Side;
  readonly #target: Side;
  readonly #disk: string;
  /** Disks that are copied together: a group of them stays one. */
  readonly #disks: ReadonlySet<string>;
  readonly #options: CopyOptions;
  readonly #notify: NonNullable<OperationOptions["onNotice"]>;
  #points = 0;
  #damaged = 0;

  constructor(source: Side, target: Side, disk: string, disks: ReadonlySet<string>, options: CopyOptions) {
    this.#source = source;
    this.#target = target;
    this.#disk = disk;
    this.#disks = disks;
    this.#options = options;
    this.#notify = options.onNotice ?? (() => undefined);
  }

  async run(): Promise<CopiedDisk> {
    const { store, vault } = this.#source;
    const { signal } = this.#options;
    const head = await readDisk(store, vault, this.#disk, signal);
    const there = await this.#timesThere();
    const newestMs = Math.max(...there, Number.NEGATIVE_INFINITY);
    const labels = await listLabels(store, vault, this.#disk, this.#notify, signal);
    let tooOld = 0;
    for (const { id, timeMs } of await this.#chosen(head)) {
      if (timeMs > newestMs) await this.#copy(id, labels.get(id));
      else if (!there.has(timeMs)) tooOld += 1;
    }
    const lastMs = head.points.at(-1)?.timeMs ?? 0;
    const after = await this.#newestThere();
    return {
      disk: this.#disk,
      points: this.#points,
      newest: new Date(lastMs).toISOString(),
      copied: after === undefined ? null : new Date(after.timeMs).toISOString(),
      lagMs: after === undefined ? null : Math.max(0, lastMs - after.timeMs),
      damaged: this.#damaged,
      tooOld,
    };
  }

  /** Points to copy, oldest first. */
  async #chosen(head: HeadDocument): Promise<readonly Pick<PointRecord, "id" | "timeMs">[]> {
    const { store, vault } = this.#source;
    const { points = "all", signal } = this.#options;
    if (points === "latest") return head.points.slice(-1);
    if (points === "all") {
      const all: PointRecord[] = [];
      for await (const point of readPoints(store, head, { signal })) all.push(point);
      return all.reverse();
    }
    const planning = { store, vault, policy: points, nowMs: Date.now(), onNotice: this.#notify, signal };
    const plan = await planPrune({ ...planning, groupRetention: new GroupRetention(planning) }, head);
    return plan.points.filter((_, index) => plan.decisions[index]?.keep !== false);
  }

  async #timesThere(): Promise<ReadonlySet<number>> {
    const times = new Set<number>();
    const head = await this.#headThere();
    if (head === undefined) return times;
    for await (const { timeMs } of readPoints(this.#target.store, head, { signal: this.#options.signal }))
      times.add(timeMs);
    return times;
  }

  async #newestThere(): Promise<PointRecord | undefined> {
    return (await this.#headThere())?.points.at(-1);
  }

  async #headThere(): Promise<HeadDocument | undefined> {
    return await findDisk(this.#target, this.#disk, this.#options.signal);
  }

  /** Copies a point. One that was pruned meanwhile is passed over, and so is one that cannot be read. */
  async #copy(id: string, label: string | undefined): Promise<void> {
    const point = await this.#find(id);
    if (point === undefined) return;
    const reading = new PointReading(this.#source, this.#disk, point, this.#options);
    try {
      await this.#copyFrom(reading, point, label);
    } catch (error) {
      if (reading.damage === undefined) throw error;
      this.#damaged += 1;
      const what = `point ${point.sequence} of disk ${JSON.stringify(this.#disk)} is not copied`;
      this.#notify({ code: "POINT_DAMAGED", message: `${what}: ${reading.damage.message}` });
    } finally {
      await reading.close();
    }
  }

  async #copyFrom(reading: PointReading, point: PointRecord, label: string | undefined): Promise<void> {
    const { signal, onProgress, onPoint } = this.#options;
    const disk = this.#disk;
    const before = await this.#newestThere();
    const { volume, application } = await reading.open();
    const summary = await replicate(
      this.#target.context,
      {
        disk,
        volume,
        changes: before && (await this.#changesSince(before, point)),
        onProgress,
        onNotice: this.#notify,
        signal,
      },
      { cut: { timeMs: point.timeMs, application, group: this.#groupOf(point) } },
    );
    const { store, vault } = this.#target;
    await labelNewPoint(store, vault, summary, { label, onNotice: this.#notify, signal });
    await this.#remember(point, summary.point);
    this.#points += 1;
    onPoint?.({
      disk,
      time: new Date(point.timeMs).toISOString(),
      sequence: point.sequence,
      copiedSequence: summary.sequence,
      copiedPoint: summary.point,
      fetchedBytes: reading.fetchedBytes,
      newBytes: summary.newBytes,
      storedBytes: summary.storedBytes,
    });
  }

  async #find(id: string): Promise<PointRecord | undefined> {
    const { store, vault } = this.#source;
    const { signal } = this.#options;
    try {
      return await selectPoint(store, await readDisk(store, vault, this.#disk, signal), id, signal);
    } catch (error) {
      if (hasCode(error, "POINT_NOT_FOUND")) return undefined;
      throw error;
    }
  }

  /** A group stays one where all its disks are copied. */
  #groupOf({ group }: PointRecord): PointRecord["group"] {
    return group?.disks.every((disk) => this.#disks.has(disk)) === true ? group : null;
  }

  /** What differs from the point that became `before` in the target; undefined: that is not known. */
  async #changesSince(before: PointRecord, point: PointRecord): Promise<ChangeSource | undefined> {
    const { store, vault } = this.#source;
    const { signal } = this.#options;
    const disk = this.#disk;
    for (const { document } of await listPins(store, vault, disk, this.#notify, signal)) {
      if (document?.name !== this.#pinName(before.id)) continue;
      try {
        const diff = await PointDiff.open(store, vault, {
          disk,
          from: document.point,
          to: point.id,
          onNotice: this.#notify,
          signal,
        });
        return { since: before.id, begin: () => diff, committed: () => undefined, abandoned: () => undefined };
      } catch (error) {
        if (!hasCode(error, "POINT_NOT_FOUND")) throw error;
      }
    }
    return undefined;
  }

  /** Pins the point that was copied last instead of the one before. A vault that takes no pin is told of. */
  async #remember(point: PointRecord, copiedId: string): Promise<void> {
    const { store, vault } = this.#source;
    const { signal } = this.#options;
    const place = { store, vault, disk: this.#disk, onNotice: this.#notify, signal };
    const name = this.#pinName(copiedId);
    try {
      await putPin({ ...place, point, name, untilMs: null, nowMs: Date.now() });
      for (const pin of await listPins(store, vault, this.#disk, this.#notify, signal)) {
        const { name: pinned } = pin.document ?? {};
        if (pinned?.startsWith(this.#pinName("")) === true && pinned !== name) await deletePin(store, pin, signal);
      }
    } catch (error) {
      if (!(error instanceof TidemarkError) || error.code === "INTERRUPTED") throw error;
      const what = `point ${point.sequence} of disk ${JSON.stringify(this.#disk)} could not be pinned`;
      this.#notify({
        code: "PIN_REFUSED",
        message: `${what}, so the next copy compares the disk whole: ${error.message}`,
      });
    }
  }

  #pinName(copiedId: string): string {
    return `copied to vault ${this.#target.vault} as ${copiedId}`;
  }
}

/** A mounted point as the volume of a cycle. */
class PointReading {
  readonly #source: Side;
  readonly #disk: string;
  readonly #point: PointRecord;
  readonly #options: CopyOptions;
  #mount: Mount | undefined;
  #damage: TidemarkError | undefined;

  constructor(source: Side, disk: string, point: PointRecord, options: CopyOptions) {
    this.#source = source;
    this.#disk = disk;
    this.#point = point;
    this.#options = options;
  }

  /** Why the point cannot be read back. */
  get damage(): TidemarkError | undefined {
    return this.#damage;
  }

  get fetchedBytes(): number {
    return this.#mount?.summary().bytesFetched ?? 0;
  }

  async open(): Promise<{ readonly volume: Volume; readonly application: ManifestDocument["application"] }> {
    const { context, store, vault } = this.#source;
    const { onNotice, signal } = this.#options;
    const [disk, point] = [this.#disk, this.#point];
    return await this.#noting(async () => {
      const manifest = await readManifest(store, vault, disk, point, signal);
      const memory = Math.max(cacheBytes, cacheBlocksMin * context.document.blockBytes);
      const mount = await Mount.open(context, { disk, point: point.id, cacheBytes: memory, onNotice, signal }, "copy");
      this.#mount = mount;
      const { device } = mount;
      const volume: Volume = {
        description: device.description,
        sizeBytes: () => Promise.resolve(device.sizeBytes),
        read: async (offset, into) => {
          if (!device.tryRead(offset, into)) await this.#noting(async () => await device.read(offset, into));
        },
        allocated: (sizeBytes) => this.#allocated(device, sizeBytes),
        endScan: () => Promise.resolve(manifest.consistency),
      };
      return { volume, application: manifest.application };
    });
  }

  async close(): Promise<void> {
    await this.#mount?.close();
  }

  async *#allocated(device: BlockDevice, sizeBytes: number): AsyncGenerator<Extent> {
    for (let at = 0; at < sizeBytes; ) {
      const from = at;
      const extents = await this.#noting(
        async () => (await device.lookUp?.(from, sizeBytes - from, extentsAtOnce)) ?? [],
      );
      for (const { kind, offset, length } of extents) if (kind === "data") yield { offset, length };
      throwIfAborted(this.#options.signal);
      const last = extents.at(-1);
      if (last === undefined) return;
      at = last.offset + last.length;
    }
  }

  /** Damage of this point is told apart from that of the target, which a cycle can do without. */
  async #noting<Result>(work: () => Promise<Result>): Promise<Result> {
    try {
      return await work();
    } catch (error) {
      if (!isUnreadableOrGone(error)) throw error;
      this.#damage = error;
      throw new TidemarkError("SOURCE_UNREADABLE", error.message, { cause: error });
    }
  }
}
