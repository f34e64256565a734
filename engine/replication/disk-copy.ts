/**
 * Copy of one disk's points to another vault, in one session with the disk there.
 *
 *     point of the source, held ─► chunks as they are stored ─► session of the target ─► point with the same time
 *              ▲                   (`transfer.ts`)
 *     pin of the point that was copied last ─► difference of both maps
 *
 * A copied point is a point like any other of the target vault. Its chunks are those of the source,
 * under the target's digests. Only where the target has smaller blocks, the point is split anew
 * (`mounted-content.ts`). Times tell points apart, because they rise from point to point of a disk:
 * points later than the newest one of the target are copied, oldest first, so a copy that was
 * interrupted goes on when it is repeated.
 *
 * The label of a point is written before the copied point is committed, so that a copy that dies has
 * no point without its label: the next one does not look at points that are there.
 *
 * The point that was copied last stays pinned in the source vault. The pin's name says which point of
 * the target it became, and stands there before that point is committed. While that one is the newest
 * there, the next copy reads only what differs. Without the pin the next point is compared whole.
 *
 * Invariant: a copied point holds only bytes that were proved by the digests of the source vault.
 *
 * Memory: what a transfer needs, and a cache of map leaves, for each disk that is copied at once.
 */
import { LocalState } from "../disk/source/local-state.ts";
import { hasCode, isUnreadableOrGone, TidemarkError } from "../errors.ts";
import { chunkDamaged } from "../pipeline/point-reader.ts";
import { type SourceContent, Transfer } from "../pipeline/transfer.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import { type OperationOptions, paced } from "../progress.ts";
import { fromHex } from "../store/format/checksum.ts";
import type { HeadDocument, ManifestDocument, PointRecord } from "../store/format/documents.ts";
import { mapDifferences } from "../store/map/map-diff.ts";
import { type GranuleRange, LeafCache, PointMap } from "../store/map/point-map.ts";
import { readDisk } from "../store/points/head.ts";
import { readPoints } from "../store/points/history.ts";
import { labelNewPoint, listLabels } from "../store/points/labels.ts";
import { readManifest } from "../store/points/manifest.ts";
import { addPin, deletePin, listPins, type StoredPin } from "../store/points/pins.ts";
import { selectPoint } from "../store/points/points.ts";
import { isUndecided } from "../store/points/prune-fence.ts";
import { holdToRead, type PointHold } from "../store/points/reader-holds.ts";
import type { Store } from "../store/store.ts";
import { GroupRetention } from "../upkeep/prune/group-retention.ts";
import { planPrune } from "../upkeep/prune/prune-plan.ts";
import type { RetentionPolicy } from "../upkeep/retention/policy.ts";
import { MountedContent } from "./mounted-content.ts";
import { checkSize, restartOf } from "./replicate.ts";
import { Session, type Shipped } from "./session.ts";

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
  /** Points that are missing in the target and older than its newest point. */
  readonly tooOld: number;
  /** Points that could not be read back, and were passed over. */
  readonly damaged: number;
}

/** A disk of a vault in a copy. */
export interface Side {
  readonly context: VaultContext;
  readonly store: Store;
  readonly vault: string;
  readonly disk: string;
}

/** A point of the source that is being copied. */
interface SourcePoint {
  readonly record: PointRecord;
  readonly manifest: ManifestDocument;
  readonly label: string | undefined;
  /** Undefined while a disk is renamed: a point that is pruned meanwhile needs no new name. */
  readonly hold: PointHold | undefined;
}

/** The head of a disk that has points; undefined when it has none. */
export async function findDisk(
  { store, vault, disk }: Omit<Side, "context">,
  signal: AbortSignal | undefined,
): Promise<HeadDocument | undefined> {
  try {
    return await readDisk(store, vault, disk, signal);
  } catch (error) {
    if (hasCode(error, "DISK_NOT_FOUND")) return undefined;
    throw error;
  }
}

export class DiskCopy {
  readonly #source: Side;
  readonly #target: Side;
  /** Disks that are copied together: a group of them stays one. */
  readonly #disks: ReadonlySet<string>;
  readonly #options: CopyOptions;
  readonly #notify: NonNullable<OperationOptions["onNotice"]>;
  readonly #leaves = new LeafCache();
  #session: Session | undefined;
  /** Pins of earlier copies to this target. */
  #pins: StoredPin[] = [];
  /** The point that was copied last, and its id in the target. */
  #last: { readonly id: string; readonly manifest: ManifestDocument } | undefined;
  #points = 0;
  #damaged = 0;

  constructor(source: Side, target: Side, disks: ReadonlySet<string>, options: CopyOptions) {
    this.#source = source;
    this.#target = target;
    this.#disks = disks;
    this.#options = options;
    this.#notify = options.onNotice ?? (() => undefined);
  }

  /** Within one vault: the points get a new name, and the disk of the former one goes. */
  get #isRename(): boolean {
    return this.#source.vault === this.#target.vault;
  }

  /** Copies the points that are missing. Errors: those of `copyPoints`. */
  async run(): Promise<CopiedDisk> {
    const { store, vault, disk } = this.#source;
    const { signal } = this.#options;
    const head = await readDisk(store, vault, disk, signal);
    const there = await this.#timesThere();
    const newestMs = Math.max(...there, Number.NEGATIVE_INFINITY);
    const chosen = await this.#chosen(head);
    const missing = chosen.filter(({ timeMs }) => timeMs > newestMs);
    try {
      if (missing.length > 0) await this.#copyAll(missing);
    } finally {
      await this.#leave();
    }
    const lastMs = head.points.at(-1)?.timeMs ?? 0;
    const after = (await this.#headThere())?.points.at(-1);
    return {
      disk,
      points: this.#points,
      newest: new Date(lastMs).toISOString(),
      copied: after === undefined ? null : new Date(after.timeMs).toISOString(),
      lagMs: after === undefined ? null : Math.max(0, lastMs - after.timeMs),
      damaged: this.#damaged,
      tooOld: chosen.filter(({ timeMs }) => timeMs <= newestMs && !there.has(timeMs)).length,
    };
  }

  /** The points that the options name, oldest first. */
  async #chosen(head: HeadDocument): Promise<readonly PointRecord[]> {
    const { store, vault } = this.#source;
    const { points = "all", signal } = this.#options;
    if (points === "latest") return head.points.slice(-1);
    const all: PointRecord[] = [];
    const onDamage = points === "all" ? undefined : (): void => undefined; // the plan says so
    for await (const point of readPoints(store, head, { onDamage, signal })) all.push(point);
    all.reverse();
    if (points === "all") return all;
    const planning = { store, vault, policy: points, nowMs: Date.now(), onNotice: this.#notify, signal };
    const plan = await planPrune({ ...planning, groupRetention: new GroupRetention(planning) }, head);
    const dropped = new Set(plan.toDrop.map(({ id }) => id));
    return all.filter(({ id }) => !dropped.has(id));
  }

  async #timesThere(): Promise<ReadonlySet<number>> {
    const times = new Set<number>();
    const head = await this.#headThere();
    if (head === undefined) return times;
    for await (const { timeMs } of readPoints(this.#target.store, head, { signal: this.#options.signal }))
      times.add(timeMs);
    return times;
  }

  async #headThere(): Promise<HeadDocument | undefined> {
    return await findDisk(this.#target, this.#options.signal);
  }

  async #copyAll(points: readonly PointRecord[]): Promise<void> {
    const { store, vault, disk } = this.#source;
    const { signal } = this.#options;
    const labels = await listLabels(store, vault, disk, this.#notify, signal);
    const pins = await listPins(store, vault, disk, this.#notify, signal);
    this.#pins = pins.filter(({ document }) => document?.name?.startsWith(this.#pinName("")) === true);
    for (const record of points) {
      const point = await this.#open(record, labels.get(record.id));
      if (point === undefined) continue;
      try {
        await this.#copy(point, record === points.at(-1));
      } finally {
        await point.hold?.release();
      }
    }
  }

  /** Holds a point and reads its manifest. Undefined: it has been pruned meanwhile, or cannot be read. */
  async #open(record: PointRecord, label: string | undefined): Promise<SourcePoint | undefined> {
    const { store, vault, disk } = this.#source;
    const { signal } = this.#options;
    let hold: PointHold | undefined;
    try {
      if (!this.#isRename)
        hold = await holdToRead({ store, vault, disk, point: record, purpose: "copy", onNotice: this.#notify, signal });
      return { record, label, manifest: await readManifest(store, vault, disk, record, signal), hold };
    } catch (error) {
      await hold?.release();
      if (isDropped(error)) return undefined;
      if (!isUnreadableOrGone(error)) throw error;
      await this.#passOver(record, error);
      return undefined;
    }
  }

  /** Copies a point that is held. One that was pruned all the same is passed over, and so is one that cannot be read. */
  async #copy(point: SourcePoint, isLast: boolean): Promise<void> {
    const { onPoint } = this.#options;
    const { record, manifest } = point;
    const fetched = { bytes: 0 };
    const shipped = await this.#shipped(point, fetched, isLast);
    if (shipped === undefined) return;
    const { id, sequence } = shipped.point;
    this.#last = { id, manifest };
    await this.#unpin(id);
    await this.#state.keepOnly(id);
    this.#points += 1;
    onPoint?.({
      disk: this.#source.disk,
      time: new Date(record.timeMs).toISOString(),
      sequence: record.sequence,
      copiedSequence: sequence,
      copiedPoint: id,
      fetchedBytes: fetched.bytes,
      newBytes: shipped.statistics.newBytes,
      storedBytes: shipped.storedBytes,
    });
  }

  get #state(): LocalState {
    const { context, vault, disk } = this.#target;
    return new LocalState({ folder: context.stateFolder, vault, disk, onNotice: this.#notify });
  }

  /** Makes the point in the target, in a few tries. Undefined: it is passed over. */
  async #shipped(
    { record, manifest, label, hold }: SourcePoint,
    fetched: { bytes: number },
    isLast: boolean,
  ): Promise<Shipped | undefined> {
    const trust = { parent: true, changes: true };
    const { disk } = this.#target;
    const { timeMs, volumeBytes: totalBytes } = record;
    const { application, consistency } = manifest;
    const progress = paced(this.#options.onProgress);
    for (let attempt = 1; ; attempt += 1) {
      let content: SourceContent | undefined;
      const reading = { changesFailed: false };
      try {
        const session = await this.#openSession();
        // Another process has copied it since the target's points were listed.
        if ((session.newest?.timeMs ?? -Infinity) >= timeMs) return undefined;
        checkSize(`point ${String(record.sequence)} of the source vault`, disk, totalBytes, session.newest);
        const parent = trust.parent ? await session.manifest() : undefined;
        const signal = AbortSignal.any([session.signal, ...(hold === undefined ? [] : [hold.signal])]);
        const changes =
          trust.changes && parent !== undefined ? await this.#changes(session, manifest, signal) : undefined;
        const noted = changes && onFailure(changes, () => (reading.changesFailed = true));
        content = await this.#content(record, manifest, session, parent, noted);
        const shipped = await session.ship({
          content,
          timeMs,
          parent,
          consistency: () => Promise.resolve(consistency),
          application,
          group: this.#groupOf(record),
          beforeHead: async ({ sequence, id }) => {
            await this.#pin(record, id);
            const { store, vault } = this.#target;
            const told = { label, onNotice: this.#notify, signal };
            await labelNewPoint(store, vault, { disk, sequence, point: id }, told);
          },
          leave: isLast,
          onProgress: (doneBytes, transferredBytes) =>
            progress({ phase: "scan", doneBytes, totalBytes, transferredBytes }),
          signal,
        });
        const { storedBytes } = shipped;
        progress({ phase: "commit", doneBytes: totalBytes, totalBytes, transferredBytes: storedBytes }, "last");
        return shipped;
      } catch (error) {
        await this.#leave();
        if (isDropped(error)) return undefined;
        if (content?.damage === undefined) this.#notify(restartOf(error, disk, trust, attempt));
        else if (reading.changesFailed) trust.changes = false;
        else {
          await this.#passOver(record, content.damage);
          return undefined;
        }
      } finally {
        await content?.close?.();
        fetched.bytes += content?.fetchedBytes ?? 0;
      }
    }
  }

  async #openSession(): Promise<Session> {
    if (this.#session?.signal.aborted === true) await this.#leave();
    const { context, disk } = this.#target;
    this.#session ??= await Session.open(context, {
      disk,
      source: `disk ${JSON.stringify(this.#source.disk)} of vault ${this.#source.vault}`,
      loadCatalog: async (store) => await context.sharedCatalog(store, this.#notify),
      onNotice: this.#notify,
      signal: this.#options.signal,
    });
    return this.#session;
  }

  /** Ends the session, if there is one. */
  async #leave(): Promise<void> {
    const session = this.#session;
    this.#session = undefined;
    await session?.close();
  }

  async #content(
    record: PointRecord,
    manifest: ManifestDocument,
    session: Session,
    parent: ManifestDocument | undefined,
    changes: AsyncIterable<GranuleRange> | undefined,
  ): Promise<SourceContent> {
    const { context: from, store, vault, disk } = this.#source;
    const { context: to, vault: targetVault, disk: diskThere } = this.#target;
    if (to.document.blockBytes < from.document.blockBytes) {
      const { onNotice, signal } = this.#options;
      return await MountedContent.open({
        from,
        to,
        session,
        parent,
        changes,
        disk,
        point: record.id,
        onNotice,
        signal,
      });
    }
    return new Transfer({
      store,
      workerPool: from.workerPool(),
      map: new PointMap(store, fromHex(vault), disk, manifest, this.#leaves),
      target: to.workerPool(),
      parent: parent && new PointMap(session.store, fromHex(targetVault), diskThere, parent),
      changes,
      chunkDamaged: ({ offset, length }, segment, cause) =>
        chunkDamaged(disk, record.id, offset, length, segment, cause),
    });
  }

  /** What differs from the point that became the target's newest one; undefined: that is not known. */
  async #changes(
    { newest }: Session,
    to: ManifestDocument,
    signal: AbortSignal,
  ): Promise<AsyncIterable<GranuleRange> | undefined> {
    const { store, vault, disk } = this.#source;
    if (newest === undefined) return undefined;
    const from = this.#last?.id === newest.id ? this.#last.manifest : await this.#pinned(newest.id, signal);
    const place = { store, vaultId: fromHex(vault), disk, cache: this.#leaves, signal };
    return from && mapDifferences({ ...place, from, to });
  }

  /** The manifest of the point that became the point `copied` in the target, if it is pinned for that. */
  async #pinned(copied: string, signal: AbortSignal): Promise<ManifestDocument | undefined> {
    const { store, vault, disk } = this.#source;
    const pin = this.#pins.find(({ document }) => document?.name === this.#pinName(copied))?.document;
    if (pin === undefined) return undefined;
    try {
      const record = await selectPoint(store, await readDisk(store, vault, disk, signal), pin.point, signal);
      return await readManifest(store, vault, disk, record, signal);
    } catch (error) {
      if (!isDropped(error) && !isUnreadableOrGone(error)) throw error;
      return undefined;
    }
  }

  #pinName(copiedId: string): string {
    return `copied to vault ${this.#target.vault} as ${copiedId}`;
  }

  /** Pins the point that is about to become `id`. A vault that takes no pin is told of. */
  async #pin(point: PointRecord, id: string): Promise<void> {
    const { store, vault, disk } = this.#source;
    if (this.#isRename) return;
    const place = { store, vault, disk, onNotice: this.#notify, signal: this.#options.signal };
    await this.#tellRefusal(point.sequence, async () => {
      this.#pins.push(await addPin({ ...place, point, name: this.#pinName(id), untilMs: null, nowMs: Date.now() }));
    });
  }

  /** Removes the pins for this target but the one for the point `id`. */
  async #unpin(id: string): Promise<void> {
    const former = this.#pins.filter(({ document }) => document?.name !== this.#pinName(id));
    for (const pin of former) {
      await this.#tellRefusal(pin.sequence, async () => {
        await deletePin(this.#source.store, pin, this.#options.signal);
        this.#pins.splice(this.#pins.indexOf(pin), 1);
      });
    }
  }

  async #tellRefusal(sequence: number, work: () => Promise<void>): Promise<void> {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof TidemarkError) || error.code === "INTERRUPTED") throw error;
      const what = `the pin of point ${sequence} of disk ${JSON.stringify(this.#source.disk)} cannot be changed`;
      this.#notify({
        code: "PIN_REFUSED",
        message: `${what}, so the next copy may compare the disk whole: ${error.message}`,
      });
    }
  }

  /** Tells of a point that cannot be read, unless it has been pruned meanwhile. */
  async #passOver({ id, sequence }: PointRecord, damage: TidemarkError): Promise<void> {
    const { store, vault, disk } = this.#source;
    const { signal } = this.#options;
    try {
      await selectPoint(store, await readDisk(store, vault, disk, signal), id, signal);
    } catch (error) {
      if (isDropped(error)) return;
      throw error;
    }
    this.#damaged += 1;
    const what = `point ${sequence} of disk ${JSON.stringify(this.#source.disk)} is not copied`;
    this.#notify({ code: "POINT_DAMAGED", message: `${what}: ${damage.message}` });
  }

  /** A group stays one where all its disks are copied. */
  #groupOf({ group }: PointRecord): PointRecord["group"] {
    return group?.disks.every((disk) => this.#disks.has(disk)) === true ? group : null;
  }
}

/** Whether a point of the source was pruned; a prune of unknown outcome is another matter. */
function isDropped(error: unknown): boolean {
  return hasCode(error, "POINT_NOT_FOUND") && !isUndecided(error);
}

/** `tell` is called when the ranges cannot be read to their end. */
async function* onFailure(ranges: AsyncIterable<GranuleRange>, tell: () => void): AsyncGenerator<GranuleRange> {
  try {
    yield* ranges;
  } catch (error) {
    tell();
    throw error;
  }
}
