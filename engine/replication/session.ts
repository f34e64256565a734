/**
 * Commit protocol: a writer's session with one disk of a vault, from taking the writer lease to
 * releasing it. A session holds what cycles share (writer lease, catalog, lanes, the numbering of
 * map objects, the newest manifest) and ships each cycle:
 *
 *     fill run ─ flush frames ─ write map ─ write manifest ─ mark head ─ prove ─ swap head = committed
 *
 * Invariant: data is durable before the manifest that refers to it, and the manifest before the
 * head. A cycle that ends early leaves bytes that nothing refers to. Its session is then over,
 * because nothing may be written after a failed frame. The next session has a higher epoch, and its
 * dedup index finds those bytes again.
 */
import { watchedStore } from "../disk/source/head-watch.ts";
import { hasCode, isGone, TidemarkError, throwIfAborted } from "../errors.ts";
import { timeMsMax } from "../limits.ts";
import type { Notice } from "../notice.ts";
import type { Catalog } from "../pipeline/catalog.ts";
import { Lanes } from "../pipeline/lanes.ts";
import type { PointContent, RunParts, RunStatistics } from "../pipeline/packer.ts";
import { reship } from "../pipeline/reship.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import { fromHex } from "../store/format/checksum.ts";
import type {
  ApplicationRecord,
  GroupRecord,
  HeadDocument,
  ManifestDocument,
  PointRecord,
} from "../store/format/documents.ts";
import { encodeManifest } from "../store/format/documents.ts";
import { gone } from "../store/format/fields.ts";
import { manifestName } from "../store/format/names.ts";
import { mergeStack } from "../store/map/merge.ts";
import { PointMap } from "../store/map/point-map.ts";
import { MapObjects, RunWriter } from "../store/map/run-writer.ts";
import { refuseClaimed } from "../store/points/failover-claim.ts";
import { readPoints } from "../store/points/history.ts";
import { proveObjects, proveVault, readManifest } from "../store/points/manifest.ts";
import { WriterLease } from "../store/points/writer-lease.ts";
import { Store, storeRegressed } from "../store/store.ts";
import { collectionTiming } from "../timing.ts";
import { tidemarkVersion } from "../version.ts";
import type { Consistency } from "../volume.ts";

export interface SessionOptions {
  readonly disk: string;
  /** Absolute path of the image or device that is read, or another name of the source. */
  readonly source: string;
  readonly loadCatalog: (store: Store, signal: AbortSignal) => Promise<Catalog>;
  readonly onNotice: (notice: Notice) => void;
  readonly signal?: AbortSignal | undefined;
}

/** What a cycle ships. */
export interface Shipment {
  readonly content: PointContent;
  /** Time of the cut. */
  readonly timeMs: number;
  /** What the new point builds on; undefined, it lists everything anew. */
  readonly parent: ManifestDocument | undefined;
  /** Asked once everything has been read. */
  readonly consistency: () => Promise<Consistency>;
  readonly application?: ApplicationRecord | null;
  readonly group?: GroupRecord | null;
  /**
   * Told the new point before the head is swapped: from then on the point may exist.
   * `isReread`: some of the volume was read twice.
   */
  readonly beforeHead: (point: Pick<PointRecord, "sequence" | "id">, isReread: boolean) => Promise<void>;
  /** Releases the writer lease with the commit. */
  readonly leave: boolean;
  readonly onProgress?: ((doneBytes: number, storedBytes: number) => void) | undefined;
  /** Everything has been read from the disk; everything is durable in the store. */
  readonly onCaptured?: (() => void) | undefined;
  readonly onShipped?: (() => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface Shipped {
  readonly point: PointRecord;
  readonly statistics: RunStatistics;
  readonly storedBytes: number;
  readonly metadataBytes: number;
  readonly requests: number;
}

export class Session implements AsyncDisposable {
  readonly store: Store;
  readonly catalog: Catalog;
  readonly #context: VaultContext;
  readonly #options: SessionOptions;
  readonly #writerLease: WriterLease;
  readonly #lanes: Lanes;
  readonly #objects: MapObjects;
  readonly #signal: AbortSignal;
  #manifest: ManifestDocument | undefined;
  #adoptedAtMs = 0;
  /** No shipment has failed or is under way: no write is in doubt. */
  #isSound = true;
  #closed: Promise<void> | undefined;

  private constructor(
    context: VaultContext,
    options: SessionOptions,
    store: Store,
    writerLease: WriterLease,
    catalog: Catalog,
    signal: AbortSignal,
  ) {
    this.#context = context;
    this.#options = options;
    this.store = store;
    this.#writerLease = writerLease;
    this.catalog = catalog;
    this.#signal = signal;
    const { disk } = options;
    const vaultId = fromHex(context.document.vault);
    this.#lanes = new Lanes({
      store,
      catalog,
      vaultId,
      disk,
      epoch: writerLease.epoch,
      lanes: context.lanes,
      sealFrame: async (task) => await context.workerPool().seal(task),
      assertLease: async () => await writerLease.assertHeld(),
      signal,
    });
    this.#objects = new MapObjects({ store, vaultId, disk, epoch: writerLease.epoch, signal });
  }

  /**
   * Takes the writer lease. Errors: WRITER_ACTIVE, STORE_REGRESSED when the vault is gone, and
   * those of the store.
   */
  static async open(context: VaultContext, options: SessionOptions): Promise<Session> {
    const { disk, onNotice } = options;
    const store = watchedStore(context, onNotice);
    context.workerPool(); // its threads start while the store answers
    throwIfAborted(options.signal);
    await proveVault(store, context.document.vault, options.signal); // before a head is made that no vault would know
    const writerLease = await WriterLease.take({
      store,
      vault: context.document.vault,
      disk,
      // An epoch whose writer made no point may have left segments in a store that forgot the epoch.
      epochAbove: context.epochs.get(disk),
      onNotice,
      signal: options.signal,
    });
    context.epochs.set(disk, writerLease.epoch);
    try {
      const signal =
        options.signal === undefined ? writerLease.signal : AbortSignal.any([writerLease.signal, options.signal]);
      throwIfAborted(signal);
      await refuseClaimed({ store, vault: context.document.vault, disk, signal }, options.source);
      let catalog = await options.loadCatalog(store, signal);
      if (catalog.knowsWriterSince(disk, writerLease.epoch)) {
        dropCatalog(context, catalog);
        catalog = await options.loadCatalog(store, signal);
      }
      return new Session(context, options, store, writerLease, catalog, signal);
    } catch (error) {
      await writerLease.release();
      throw error;
    }
  }

  /** The newest committed point. */
  get newest(): PointRecord | undefined {
    return this.#writerLease.newest;
  }

  /** Aborts when the writer lease is lost, and when the caller's signal aborts. */
  get signal(): AbortSignal {
    return this.#signal;
  }

  /** The disk's head as it was last read or swapped. */
  get head(): HeadDocument {
    return this.#writerLease.head;
  }

  /**
   * The newest point's manifest. Errors: DAMAGED (also when it is gone), FORMAT_UNSUPPORTED;
   * STORE_REGRESSED when the store forgot it.
   */
  async manifest(): Promise<ManifestDocument | undefined> {
    const { newest } = this;
    if (newest === undefined || this.#manifest?.sequence === newest.sequence) return this.#manifest;
    try {
      this.#manifest = await readManifest(
        this.store,
        this.#context.document.vault,
        this.#options.disk,
        newest,
        this.#signal,
      );
      return this.#manifest;
    } catch (error) {
      throw await this.diagnose(error);
    }
  }

  /**
   * Time of the newest application-consistent point not older than `sinceMs`, both in ms since
   * 1970. Reads no further back; points on damaged pages are not counted. Errors: as `manifest`.
   */
  async newestAppMs(sinceMs: number): Promise<number | undefined> {
    try {
      const options = { onDamage: () => undefined, signal: this.#signal };
      for await (const { timeMs, consistency } of readPoints(this.store, this.head, options)) {
        if (timeMs < sinceMs) return undefined;
        if (consistency === "app") return timeMs;
      }
      return undefined;
    } catch (error) {
      throw await this.diagnose(error);
    }
  }

  /**
   * Between cycles: lets a collection that waits for this writer go on, though nothing is to be
   * committed. Errors: as `ship`, after which the session is over.
   */
  async acknowledge(): Promise<void> {
    try {
      if (await this.#adoptCollection(this.#signal)) await this.#writerLease.publish();
    } catch (error) {
      throw await this.diagnose(error);
    }
  }

  /**
   * As `acknowledge`, between points that are far apart. False: the session is over; opening the
   * next one reports the reason.
   */
  async rest(): Promise<boolean> {
    try {
      await this.acknowledge();
      return true;
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      return false;
    }
  }

  /**
   * From here on the writer refers to nothing condemned. Returns whether the head must still say
   * so.
   */
  async #adoptCollection(signal: AbortSignal): Promise<boolean> {
    const collection = await this.catalog.adopt(this.store, signal);
    this.#adoptedAtMs = performance.now();
    if (collection === this.#writerLease.head.collection) return false;
    this.#writerLease.acknowledge(collection);
    return true;
  }

  /**
   * As `acknowledge`, during a cycle that takes long. Condemned chunks that the cycle has referred
   * to must then be shipped again before it commits.
   */
  async #acknowledgeNowAndThen(signal: AbortSignal): Promise<void> {
    if (performance.now() - this.#adoptedAtMs < collectionTiming.writerPollMs) return;
    if (await this.#adoptCollection(signal)) await this.#writerLease.publish();
  }

  /**
   * Between cycles: lends the writer lease to a prune. Errors: those of `prune`, after which the
   * session is over.
   */
  async prune<Result>(prune: (writerLease: WriterLease) => Promise<Result>): Promise<Result> {
    try {
      return await prune(this.#writerLease);
    } catch (error) {
      throw await this.diagnose(error);
    }
  }

  /**
   * Makes a point. After an error the session is over. Errors: SEAT_LOST, STORE_REGRESSED,
   * INTERRUPTED, those of the volume and the store.
   */
  async ship(shipment: Shipment): Promise<Shipped> {
    const { store } = this;
    const signal = shipment.signal === undefined ? this.#signal : AbortSignal.any([this.#signal, shipment.signal]);
    const before = { requests: store.requests, putBytes: store.putBytes, storedBytes: this.#lanes.storedBytes };
    const references = new Set<number>();
    const run = new RunWriter(this.#objects);
    const again = new RunWriter(this.#objects);
    const storedBytes = (): number => this.#lanes.storedBytes - before.storedBytes;
    this.#isSound = false;
    try {
      await this.#adoptCollection(signal);
      const { collection } = this.#writerLease.head;
      const { content } = shipment;
      const { volumeBytes } = content;
      const parts: RunParts = {
        catalog: this.catalog,
        lanes: this.#lanes,
        run,
        references,
        onProgress: (doneBytes) => shipment.onProgress?.(doneBytes, storedBytes()),
        betweenBatches: async () => await this.#acknowledgeNowAndThen(signal),
        signal,
      };
      const statistics = await content.fill(parts);
      const isReread =
        collection !== this.#writerLease.head.collection && (await this.#reship(content, parts, again, statistics));
      shipment.onCaptured?.();
      await this.#lanes.flush();
      const deltas = [await again.finish(), await run.finish()].filter((delta) => delta !== undefined);
      shipment.onShipped?.();
      const older = shipment.parent?.runs ?? [];
      const runs = await mergeStack(this.#objects, [...deltas, ...older], volumeBytes);
      const { newest } = this;
      const manifest: ManifestDocument = {
        vault: this.#context.document.vault,
        disk: this.#options.disk,
        sequence: (newest?.sequence ?? 0) + 1,
        epoch: this.#writerLease.epoch,
        parent: newest?.id ?? null,
        timeMs: Math.min(Math.max(shipment.timeMs, (newest?.timeMs ?? 0) + 1), timeMsMax),
        consistency: await shipment.consistency(),
        application: shipment.application ?? null,
        group: shipment.group ?? null,
        volumeBytes,
        statistics: { ...statistics, storedBytes: storedBytes() },
        runs,
        writtenBy: `tidemark ${tidemarkVersion}`,
      };
      const point = await this.#commit(manifest, { references, isReread }, shipment, signal);
      this.#manifest = manifest;
      this.#isSound = true;
      return {
        point,
        statistics,
        storedBytes: storedBytes(),
        metadataBytes: store.putBytes - before.putBytes,
        requests: store.requests - before.requests,
      };
    } catch (error) {
      await this.#lanes.settle();
      await run.settle();
      await again.settle();
      throw await this.diagnose(error);
    }
  }

  /**
   * Ships again, on top of the run, its chunks that are condemned by now. Returns whether there were
   * any.
   */
  async #reship(content: PointContent, parts: RunParts, again: RunWriter, statistics: RunStatistics): Promise<boolean> {
    const delta = await parts.run.finish();
    if (delta === undefined) return false;
    const { store, vaultId, disk } = this.#objects;
    const filled = new PointMap(store, vaultId, disk, { volumeBytes: content.volumeBytes, runs: [delta] });
    const { scannedBytes, newBytes } = await reship(content, parts, store, filled, again);
    // These chunks were counted as known. Chunks that were new and became damaged meanwhile stay
    // counted once.
    const known = Math.min(newBytes, statistics.dedupedBytes);
    statistics.newBytes += known;
    statistics.dedupedBytes -= known;
    return scannedBytes > 0;
  }

  /**
   * Manifest, mark, proof, head swap. The head is marked after everything is written and before it
   * is proved: a store that regresses behind the mark refuses the commit, and a store that
   * regresses less far still holds what was proved.
   */
  async #commit(
    manifest: ManifestDocument,
    { references, isReread }: { readonly references: ReadonlySet<number>; readonly isReread: boolean },
    shipment: Shipment,
    signal: AbortSignal,
  ): Promise<PointRecord> {
    const writerLease = this.#writerLease;
    const { bytes, id } = encodeManifest(manifest);
    const name = manifestName(manifest.disk, manifest.sequence, manifest.epoch);
    await writerLease.assertHeld();
    const manifestEtag = await this.store.putOnce(name, bytes, { signal });
    const written = new Map([...this.#objects.put, [name, manifestEtag]]);
    await shipment.beforeHead({ sequence: manifest.sequence, id }, isReread);
    const prove = async (): Promise<void> => {
      await this.catalog.prove(this.store, references, signal);
      await proveObjects(this.store, written, signal);
      await proveVault(this.store, this.#context.document.vault, signal);
    };
    for (const [page, etag] of await writerLease.mark(signal)) written.set(page, etag);
    await prove();
    throwIfAborted(signal);
    const { sequence, epoch, timeMs, consistency, group, volumeBytes, statistics } = manifest;
    const { changedBytes, newBytes, storedBytes } = statistics;
    const lagMs = Math.max(0, Date.now() - Math.min(timeMs, shipment.timeMs));
    const point: PointRecord = {
      sequence,
      epoch,
      id,
      timeMs,
      ...(shipment.timeMs < timeMs ? { clockMs: Math.max(0, shipment.timeMs) } : {}),
      lagMs,
      consistency,
      group,
      volumeBytes,
      changedBytes,
      newBytes,
      storedBytes,
    };
    await writerLease.commit(point, shipment.leave, prove);
    this.#objects.committed();
    await this.store.onHead(writerLease.head);
    return point;
  }

  /**
   * Tells a store regression from other causes of a missing or unexpected object. Object names hold
   * the session's epoch. If a name is taken, another session had the same epoch, and the store has
   * forgotten its head. If an object is missing and the head is not the one that this session
   * swapped in, the store has forgotten both; if it is that head, only the object is gone. A
   * missing container was forgotten.
   */
  async diagnose(reason: unknown): Promise<unknown> {
    if (hasCode(reason, "STORE_REGRESSED")) dropCatalog(this.#context, this.catalog);
    if (!isGone(reason) && !hasCode(reason, "OBJECT_EXISTS", "VAULT_NOT_FOUND")) return reason;
    try {
      if (isGone(reason) && !(await this.#writerLease.isForgotten())) {
        return reason.code === "DAMAGED" ? reason : gone(String(reason.detail["object"]), reason);
      }
    } catch (error) {
      if (error instanceof TidemarkError) return reason;
      throw error;
    }
    dropCatalog(this.#context, this.catalog);
    const message = `the store went back in time: ${reason.message}`;
    return storeRegressed(String(reason.detail["object"] ?? this.store.description), message, {
      detail: reason.detail,
      cause: reason,
    });
  }

  /** Waits for writes in flight and gives the disk back. Idempotent. */
  async close(): Promise<void> {
    this.#closed ??= this.#close();
    await this.#closed;
  }

  async #close(): Promise<void> {
    await this.#lanes.close();
    await (this.#isSound ? this.#writerLease.leave() : this.#writerLease.release());
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

/**
 * The store has regressed, perhaps behind what the catalog lists: every session drops the catalog.
 */
function dropCatalog(context: VaultContext, catalog: Catalog): void {
  catalog.distrust();
  context.dropCatalog(catalog);
}
