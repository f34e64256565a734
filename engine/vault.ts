/**
 * The vault: the front door of the engine. It holds a store's identity and offers everything that
 * can be done with its disks.
 */
import { randomBytes } from "node:crypto";
import path from "node:path";
import { documentCopy } from "./disk/source/local-state.ts";
import { hasCode, TidemarkError } from "./errors.ts";
import { blockBytesDefault, blockBytesMax, blockBytesMin, granuleBytes } from "./limits.ts";
import type { Notice } from "./notice.ts";
import type { Catalog } from "./pipeline/catalog.ts";
import { loadCatalog } from "./pipeline/catalog.ts";
import { fetchGeometry, scanGeometry } from "./pipeline/slabs.ts";
import type { VaultContext } from "./pipeline/vault-context.ts";
import { WorkerPool, workersDefault } from "./pipeline/worker-pool.ts";
import { Mount, type MountOptions } from "./recovery/mount/mount.ts";
import { type OpenPointOptions, PointHandle } from "./recovery/mount/point-handle.ts";
import { type MaterializeOptions, type MaterializeSummary, materialize } from "./recovery/restore/materialize.ts";
import { Protection } from "./replication/protection/protection.ts";
import type { ProtectOptions } from "./replication/protection/protection-status.ts";
import { type ReplicateOptions, type ReplicateSummary, replicate } from "./replication/replicate.ts";
import type { Sink } from "./sink.ts";
import { fromHex, openChecksum, toHex } from "./store/format/checksum.ts";
import type { DigestName, VaultDocument } from "./store/format/documents.ts";
import { digestNames, formatVersion } from "./store/format/documents.ts";
import { vaultCopyName } from "./store/format/names.ts";
import { GroupMembers } from "./store/points/group-members.ts";
import { readHead } from "./store/points/head.ts";
import type { IdentityFault } from "./store/points/identity.ts";
import { createIdentity, identityFaults, mendIdentity, readIdentity } from "./store/points/identity.ts";
import { checkLabel, type LabelOptions, putLabel, readLabel } from "./store/points/labels.ts";
import { readManifest } from "./store/points/manifest.ts";
import { listPins, type PinOptions, type PinSummary, putPin, removePins } from "./store/points/pins.ts";
import { type DiffOptions, PointDiff } from "./store/points/point-diff.ts";
import {
  type DiskSummary,
  diskNames,
  diskSummary,
  type ListedPoint,
  listPoints,
  type PointDetail,
  type PointSummary,
  type PointsOptions,
  pointDetail,
  pointSummary,
  selectPoint,
} from "./store/points/points.ts";
import { readProved } from "./store/points/proved.ts";
import type { PointPlace } from "./store/points/prune-fence.ts";
import { Store } from "./store/store.ts";
import type { CollectOptions, CollectSummary } from "./upkeep/collection/collection.ts";
import { collect, lastCollectedMs } from "./upkeep/collection/collection.ts";
import { type StatsOptions, type VaultStats, vaultStats } from "./upkeep/collection/vault-stats.ts";
import type { PruneOptions, PruneSummary } from "./upkeep/prune/prune.ts";
import { prune } from "./upkeep/prune/prune.ts";
import { findIdentity } from "./upkeep/repair/lost-identity.ts";
import type { RepairOptions, RepairSummary } from "./upkeep/repair/repair.ts";
import { repair } from "./upkeep/repair/repair.ts";
import type { ScrubOptions, ScrubSummary } from "./upkeep/scrub/scrub.ts";
import { Scrubber, scrubProtected } from "./upkeep/scrub/scrub.ts";
import { type VerifyOptions, type VerifySummary, verify } from "./upkeep/scrub/verify.ts";
import { tidemarkVersion } from "./version.ts";

/** How this process works with a vault. None of it is stored. */
export interface VaultOptions {
  /**
   * Folder for local caches; absent, nothing is kept and every cycle compares the disk with the
   * vault.
   */
  readonly stateFolder?: string | undefined;
  /** Worker threads, 1 to 64. Default: one a core, at most 8. */
  readonly workers?: number | undefined;
  /** Page writes in flight plus the frame being filled, 2 to 32. Default: 5. */
  readonly lanes?: number | undefined;
  /**
   * Ceiling of the dedup index in bytes, from 1 MiB. Default: 256 MiB, which holds the chunks of
   * about 450 GiB at 64 KiB.
   */
  readonly indexBytesMax?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What is fixed when a vault is created. */
export interface VaultParameters {
  /** A power of two from 16 KiB to 1 MiB. Default: 64 KiB. */
  readonly blockBytes?: number | undefined;
  /** Default: `blake3`. */
  readonly digest?: DigestName | undefined;
}

/** What a vault knows before it lends anything. */
type VaultParts = Omit<VaultContext, "workerPool" | "sharedCatalog" | "dropCatalog" | "renewals">;

/** The catalog that protected disks share, while it is being loaded and afterwards. */
interface SharedCatalog {
  readonly loading: Promise<Catalog>;
  loaded: Catalog | undefined;
}

const mebibyte = 1024 * 1024;

export class Vault implements AsyncDisposable {
  readonly #context: VaultContext;
  readonly #running = new Set<Promise<unknown>>();
  readonly #protections = new Set<Protection>();
  readonly #mounts = new Set<Mount | PointHandle>();
  #workerPool: WorkerPool | undefined;
  #catalog: SharedCatalog | undefined;
  #scrubber: Scrubber | undefined;
  /** A session of this process has seen that what the vault is stands in the store twice. */
  #isIdentitySafe = false;
  #closed = false;

  private constructor(parts: VaultParts) {
    this.#context = {
      ...parts,
      workerPool: () => this.#openWorkerPool(),
      sharedCatalog: async (store, onNotice) => await this.#openCatalog(store, onNotice),
      dropCatalog: (catalog) => {
        if (this.#catalog?.loaded === catalog) this.#catalog = undefined;
      },
      renewals: new Set(),
    };
  }

  /**
   * Creates a vault in the sink's container, creating that too. Errors: VAULT_EXISTS,
   * INVALID_ARGUMENT; DAMAGED where a vault has lost its `vault.json`.
   */
  static async create(sink: Sink, options: VaultOptions & VaultParameters = {}): Promise<Vault> {
    const document = newDocument(options);
    const resolved = resolveOptions(options);
    await openChecksum();
    await sink.createContainer({ signal: options.signal });
    const bytes = await createIdentity(new Store(sink), document, options.signal);
    await documentCopy(options.stateFolder, sink.description).keep(bytes);
    return new Vault({ sink, document, ...resolved });
  }

  /**
   * Opens the vault in the sink's container. While the store cannot be reached, a vault that was
   * opened here before is opened from the copy of its document in the state folder: its disks can
   * then be served and tracked, and wait for the store. Errors: VAULT_NOT_FOUND, STORE_UNREACHABLE,
   * FORMAT_UNSUPPORTED, DAMAGED.
   */
  static async open(sink: Sink, options: VaultOptions = {}): Promise<Vault> {
    const resolved = resolveOptions(options);
    await openChecksum();
    const copy = documentCopy(options.stateFolder, sink.description);
    try {
      const { bytes, document } = await readIdentity(new Store(sink), options.signal);
      await copy.keep(bytes);
      return new Vault({ sink, document, ...resolved });
    } catch (error) {
      const kept = hasCode(error, "STORE_UNREACHABLE") ? await copy.read() : undefined;
      if (kept !== undefined) return new Vault({ sink, document: kept, ...resolved });
      throw error;
    }
  }

  /**
   * Opens the vault as `open` does, also when its `vault.json` is lost: to be repaired. Then what
   * the vault is comes from a copy that stored chunks have proved, and nothing is written before
   * `repair`. Errors: as `open`; DAMAGED when there is no such copy.
   */
  static async openForRepair(sink: Sink, options: VaultOptions = {}): Promise<Vault> {
    try {
      return await Vault.open(sink, options);
    } catch (error) {
      if (!hasCode(error, "DAMAGED")) throw error;
    }
    const kept = await documentCopy(options.stateFolder, sink.description).read();
    return new Vault({
      sink,
      document: await findIdentity(new Store(sink), kept, options.signal),
      ...resolveOptions(options),
    });
  }

  /** Opens the vault, or creates it when there is none. */
  static async openOrCreate(sink: Sink, options: VaultOptions & VaultParameters = {}): Promise<Vault> {
    try {
      return await Vault.open(sink, options);
    } catch (error) {
      if (!hasCode(error, "VAULT_NOT_FOUND")) throw error;
    }
    try {
      return await Vault.create(sink, options);
    } catch (error) {
      if (!hasCode(error, "VAULT_EXISTS")) throw error;
      return await Vault.open(sink, options);
    }
  }

  /** 32 hexadecimal digits that name this vault. */
  get id(): string {
    return this.#context.document.vault;
  }

  async summary(): Promise<VaultSummary> {
    const { document, sink } = this.#context;
    return {
      vault: document.vault,
      description: sink.description,
      formatVersion,
      blockBytes: document.blockBytes,
      granuleBytes,
      digest: document.digest,
      codec: document.codec,
      encryption: document.encryption,
      created: new Date(document.createdMs).toISOString(),
      disks: (await diskNames(new Store(sink))).length,
    };
  }

  /**
   * Counts what the vault's points take: as full images, deduplicated, compressed, and their
   * metadata, in bytes, for each disk and in all. Reads every map, and no data. `SpaceCounts`
   * defines each number.
   *
   * @throws TidemarkError DAMAGED or FORMAT_UNSUPPORTED when a head, manifest or map cannot be
   * read; INTERRUPTED.
   * @example const { uniqueBytes, storedBytes } = await vault.stats();
   * console.log(`compressed ${(uniqueBytes / storedBytes).toFixed(1)} : 1`);
   */
  async stats(options: StatsOptions = {}): Promise<VaultStats> {
    return await this.#track(async () => await vaultStats(new Store(this.#context.sink), this.id, options));
  }

  /** All disks, sorted by name. */
  async disks(): Promise<DiskSummary[]> {
    const store = new Store(this.#context.sink);
    const members = new GroupMembers({ store, vault: this.id });
    const disks: DiskSummary[] = [];
    for (const disk of await diskNames(store)) disks.push(await diskSummary(members, disk));
    return disks;
  }

  /**
   * The disk's committed points, oldest first. Errors: DISK_NOT_FOUND, INVALID_ARGUMENT, DAMAGED
   * (see `PointsOptions.onNotice`).
   */
  async points(disk: string, options: PointsOptions = {}): Promise<ListedPoint[]> {
    const store = new Store(this.#context.sink);
    const members = new GroupMembers({ store, vault: this.id, signal: options.signal });
    return await listPoints(store, members, disk.normalize("NFC"), options);
  }

  /**
   * One point in full. `selector`: sequence number, id, `latest`, or an ISO time (the newest point
   * not younger). Errors: DISK_NOT_FOUND, POINT_NOT_FOUND, DAMAGED.
   */
  async point(disk: string, selector: string): Promise<PointDetail> {
    const store = new Store(this.#context.sink);
    const members = new GroupMembers({ store, vault: this.id });
    const head = await members.head(disk.normalize("NFC"));
    const record = await selectPoint(store, head, selector);
    const manifest = await readManifest(store, this.id, head.disk, record, undefined);
    const pins = await listPins(store, this.id, head.disk, () => undefined, undefined);
    const times = await readProved(store, this.id, head.disk);
    return await pointDetail(
      members,
      head.disk,
      record,
      manifest,
      pins,
      times.of(record),
      await readLabel(store, this.id, head.disk, record),
    );
  }

  /**
   * The extents in which a point differs from another one of its disk, as an async iterable: see
   * `PointDiff`. No data is read.
   *
   * @throws TidemarkError DISK_NOT_FOUND, POINT_NOT_FOUND, INVALID_ARGUMENT, DAMAGED and the errors
   * of the store.
   */
  async diff(options: DiffOptions): Promise<PointDiff> {
    return await this.#track(async () => await PointDiff.open(new Store(this.#context.sink), this.id, options));
  }

  /**
   * Keeps a point from being pruned, until a time or for good. It needs no seat. A pin of the same
   * name that the point has is replaced. Errors: DISK_NOT_FOUND, POINT_NOT_FOUND, INVALID_ARGUMENT.
   */
  async pin(
    options: PinOptions & { readonly untilMs?: number | undefined },
  ): Promise<PointSummary & { readonly pin: PinSummary }> {
    const { place, summary } = await this.#place(options);
    const { name, untilMs } = await putPin({
      ...place,
      name: options.name ?? null,
      untilMs: options.untilMs ?? null,
      nowMs: Date.now(),
    });
    return { ...summary, pin: { name, until: untilMs === null ? null : new Date(untilMs).toISOString() } };
  }

  /**
   * Removes a point's pins: all of them, or those of a name. Errors: DISK_NOT_FOUND,
   * POINT_NOT_FOUND.
   */
  async unpin(options: PinOptions): Promise<PointSummary & { readonly removedPins: number }> {
    const { place, summary } = await this.#place(options);
    return { ...summary, removedPins: await removePins({ ...place, name: options.name }) };
  }

  async #place({ disk, point: selector, onNotice = () => undefined, signal }: PinOptions): Promise<{
    readonly place: PointPlace;
    readonly summary: PointSummary;
  }> {
    const store = new Store(this.#context.sink);
    const { head } = await readHead(store, this.id, disk.normalize("NFC"), signal);
    const point = await selectPoint(store, head, selector, signal);
    return {
      place: { store, vault: this.id, disk: head.disk, point, onNotice, signal },
      summary: pointSummary(head.disk, point),
    };
  }

  /**
   * Puts a label on a point, in place of the one that it has; an empty text removes it. A label
   * does not keep a point from being pruned, and goes with it. It needs no writer lease.
   *
   * @throws TidemarkError DISK_NOT_FOUND, POINT_NOT_FOUND, INVALID_ARGUMENT and the errors of the
   * store.
   * @example await vault.label({ disk: "web", point: "latest", text: "before the upgrade" });
   */
  async label(options: LabelOptions): Promise<PointSummary & { readonly label: string | null }> {
    const { place, summary } = await this.#place(options);
    await putLabel({ ...place, text: options.text, nowMs: Date.now() });
    return { ...summary, label: options.text === "" ? null : options.text };
  }

  /** Drops the points that a policy does not keep. Errors: see `prune`. */
  async prune(options: PruneOptions): Promise<PruneSummary> {
    return await this.#track(async () => await prune(this.#context, options));
  }

  /** Takes a recovery point of a volume. Errors: see `replicate`. */
  async replicate(options: ReplicateOptions): Promise<ReplicateSummary> {
    checkLabel(options.label ?? "");
    return await this.#track(async () => {
      const summary = await replicate(this.#context, options);
      await this.#labelNew(summary, options);
      await this.#keepIdentity(options.onNotice ?? (() => undefined), options.signal);
      return summary;
    });
  }

  /**
   * Protects a disk image or block device while it is written: see `Protection`. It ends with
   * `stop`, at the latest when the vault is closed. Errors: see `Protection.start`.
   */
  async protect(options: ProtectOptions): Promise<Protection> {
    return await this.#track(async () => {
      const protection = await Protection.start(this.#context, options);
      if (this.#closed) {
        await protection.stop({ drain: false });
        throw closedVault();
      }
      for (const other of this.#protections) if (other.status().state === "stopped") this.#protections.delete(other);
      this.#protections.add(protection);
      return protection;
    });
  }

  /** Writes a point out as an image. Errors: see `materialize`. */
  async materialize(options: MaterializeOptions): Promise<MaterializeSummary> {
    return await this.#track(async () => await materialize(this.#context, options));
  }

  /**
   * Makes a point a disk that can be read at once, until the mount or the vault is closed. Errors:
   * see `Mount.open`.
   */
  async mount(options: MountOptions): Promise<Mount> {
    return await this.#keepOpen(async () => await Mount.open(this.#context, options));
  }

  /**
   * Opens a point to be read as bytes or streams: see `PointHandle`. It is closed with the vault at
   * the latest.
   *
   * @throws TidemarkError DISK_NOT_FOUND; POINT_NOT_FOUND, also when it is being pruned;
   * INVALID_ARGUMENT; DAMAGED; and the errors of the store.
   * @example await using point = await vault.openPoint({ disk: "web", point: "latest" }); for await
   * (const piece of point.stream({ offset: 0, length: 1024 ** 2 })) process.stdout.write(piece);
   */
  async openPoint(options: OpenPointOptions): Promise<PointHandle> {
    return await this.#keepOpen(async () => await PointHandle.open(this.#context, options));
  }

  /** Opens what is to be closed with the vault at the latest. */
  async #keepOpen<Opened extends Mount | PointHandle>(open: () => Promise<Opened>): Promise<Opened> {
    return await this.#track(async () => {
      const opened = await open();
      if (this.#closed) {
        await opened.close();
        throw closedVault();
      }
      for (const other of this.#mounts) if (other.isClosed) this.#mounts.delete(other);
      this.#mounts.add(opened);
      return opened;
    });
  }

  /**
   * Gives back what no committed point needs, while writers and readers go on. Errors: see
   * `collect`.
   */
  async collect(options: CollectOptions = {}): Promise<CollectSummary> {
    return await this.#track(async () => await collect(new Store(this.#context.sink), this.id, options));
  }

  /**
   * When the vault was last collected by anybody, in ms since 1970; undefined when that is not
   * known.
   */
  async lastCollectedMs(signal?: AbortSignal): Promise<number | undefined> {
    return await this.#track(async () => await lastCollectedMs(new Store(this.#context.sink), this.id, { signal }));
  }

  /** Proves points. Errors: see `verify`; damage is in the summary. */
  async verify(options: VerifyOptions = {}): Promise<VerifySummary> {
    return await this.#track(async () => {
      await this.#lookAfterIdentity(false, options.onNotice ?? (() => undefined), options.signal);
      return await verify(this.#context, options);
    });
  }

  /**
   * Rebuilds what lists points and what maps are made of, where it is lost. Errors: see `repair`;
   * what cannot be saved is in the summary.
   */
  async repair(options: RepairOptions = {}): Promise<RepairSummary> {
    return await this.#track(async () => await repair(this.#context, options));
  }

  /**
   * Proves a part of the vault's points, those that were proved longest ago, and heals what can be
   * healed; the next pass goes on where this one ends. One pass at a time. Errors: see `Scrubber`;
   * damage is in the summary.
   */
  async scrub(options: ScrubOptions = {}): Promise<ScrubSummary> {
    this.#scrubber ??= new Scrubber(this.#context);
    const scrubber = this.#scrubber;
    return await this.#track(async () => {
      await this.#lookAfterIdentity(true, options.onNotice ?? (() => undefined), options.signal);
      return await scrubProtected(scrubber, this.#context, this.#protections, options);
    });
  }

  /**
   * Waits for what is running and ends the threads. The sink stays open: it is the caller's.
   * Idempotent.
   */
  async close(): Promise<void> {
    this.#closed = true;
    for (const protection of this.#protections) await protection.stop({ drain: false });
    const unmounted = await Promise.allSettled([...this.#mounts].map(async (mount) => await mount.close()));
    await Promise.allSettled(this.#running);
    await this.#workerPool?.close();
    for (const outcome of unmounted) if (outcome.status === "rejected") throw outcome.reason;
  }

  /** The point is committed, so a label that cannot be written is a notice. */
  async #labelNew(
    { disk, sequence, point: id }: ReplicateSummary,
    { label: text, onNotice, signal }: ReplicateOptions,
  ): Promise<void> {
    if (text === undefined || text === "") return;
    try {
      const store = new Store(this.#context.sink);
      await putLabel({ store, vault: this.id, disk, point: { sequence, id }, text, nowMs: Date.now(), signal });
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      const message = `the label of point ${String(sequence)} could not be written: ${error.message}`;
      onNotice?.({ code: "LABEL_NOT_SAVED", message });
    }
  }

  /**
   * A point is committed, whatever comes of this: it is told, and tried again by the next session.
   */
  async #keepIdentity(onNotice: (notice: Notice) => void, signal: AbortSignal | undefined): Promise<void> {
    if (this.#isIdentitySafe || signal?.aborted === true) return;
    try {
      this.#isIdentitySafe = await this.#lookAfterIdentity(true, onNotice, signal);
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      onNotice({
        code: "VAULT_AT_RISK",
        message: `it could not be seen to that what the vault is stands in the store twice: ${error.message}`,
      });
    }
  }

  /**
   * Tells what is wrong with `vault.json` and its copy; with `mend` puts the copy back. Returns
   * whether both are right now.
   */
  async #lookAfterIdentity(
    mend: boolean,
    onNotice: (notice: Notice) => void,
    signal: AbortSignal | undefined,
  ): Promise<boolean> {
    const { document, sink } = this.#context;
    const store = new Store(sink);
    const faults = await identityFaults(store, document, signal);
    for (const fault of faults) {
      // A store that has forgotten the vault, or was given another, is not to be given a copy of
      // it.
      const isMended = mend && faults.length === 1 && fault.name === vaultCopyName && !fault.isForeign;
      const fate = isMended ? await this.#mend(fault, signal) : "`tidemark vault repair` puts it back";
      onNotice({ code: "VAULT_AT_RISK", message: fault.isForeign ? fault.message : `${fault.message}: ${fate}` });
    }
    return faults.length === 0;
  }

  /** What has come of it. */
  async #mend(fault: IdentityFault, signal: AbortSignal | undefined): Promise<string> {
    try {
      await mendIdentity(new Store(this.#context.sink), this.#context.document, fault, signal);
      return "it has been put there again";
    } catch (error) {
      if (!hasCode(error, "ACCESS_REFUSED")) throw error; // who may only read may prove, too
      return "somebody who may write has to put it there again";
    }
  }

  #openWorkerPool(): WorkerPool {
    const { document, workers } = this.#context;
    this.#workerPool ??= WorkerPool.open({
      geometry: scanGeometry(document.blockBytes),
      fetchGeometry: fetchGeometry(document.blockBytes),
      digest: document.digest,
      digestKey: fromHex(document.digestKey),
      workers,
    });
    return this.#workerPool;
  }

  async #openCatalog(store: Store, onNotice: (notice: Notice) => void): Promise<Catalog> {
    await this.#keepIdentity(onNotice, undefined);
    const { document, stateFolder: folder } = this.#context;
    const shared = (this.#catalog ??= {
      loading: loadCatalog(this.#context, store, {
        folder: folder === undefined ? undefined : path.join(folder, document.vault),
        onNotice,
      }),
      loaded: undefined,
    });
    try {
      shared.loaded = await shared.loading;
      return shared.loaded;
    } catch (error) {
      if (this.#catalog === shared) this.#catalog = undefined;
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #track<Result>(start: () => Promise<Result>): Promise<Result> {
    if (this.#closed) throw closedVault();
    const work = start();
    this.#running.add(work);
    try {
      return await work;
    } finally {
      this.#running.delete(work);
    }
  }
}

function closedVault(): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", "the vault has been closed", { remedy: "open it again" });
}

function newDocument(parameters: VaultParameters): VaultDocument {
  const blockBytes = parameters.blockBytes ?? blockBytesDefault;
  const digest = parameters.digest ?? "blake3";
  const faults: string[] = [];
  if (!Number.isInteger(Math.log2(blockBytes)) || blockBytes < blockBytesMin || blockBytes > blockBytesMax) {
    faults.push(
      `a block of ${String(blockBytes)} bytes is not a power of two from ${String(blockBytesMin)} to ${String(blockBytesMax)}`,
    );
  }
  if (!digestNames.includes(digest))
    faults.push(`the digest ${JSON.stringify(digest)} is not one of ${digestNames.join(", ")}`);
  refuse(faults);
  return {
    vault: toHex(randomBytes(16)),
    createdMs: Date.now(),
    blockBytes,
    digest,
    digestKey: toHex(randomBytes(32)),
    codec: "lz4",
    encryption: "none",
    writtenBy: `tidemark ${tidemarkVersion}`,
  };
}

function resolveOptions(options: VaultOptions): Omit<VaultParts, "sink" | "document"> {
  const workers = options.workers ?? workersDefault;
  const lanes = options.lanes ?? 5;
  const indexBytesMax = options.indexBytesMax ?? 256 * mebibyte;
  const faults: string[] = [];
  if (!Number.isInteger(workers) || workers < 1 || workers > 64)
    faults.push(`${String(workers)} workers are not 1 to 64`);
  if (!Number.isInteger(lanes) || lanes < 2 || lanes > 32) faults.push(`${String(lanes)} lanes are not 2 to 32`);
  if (!Number.isSafeInteger(indexBytesMax) || indexBytesMax < mebibyte)
    faults.push(`a dedup index of ${String(indexBytesMax)} bytes is below 1 MiB`);
  refuse(faults);
  return { stateFolder: options.stateFolder, workers, lanes, indexBytesMax };
}

function refuse(faults: readonly string[]): void {
  if (faults.length > 0)
    throw new TidemarkError("INVALID_ARGUMENT", faults.join("; "), { remedy: "change what is named" });
}

export interface VaultSummary {
  readonly vault: string;
  readonly description: string;
  readonly formatVersion: number;
  readonly blockBytes: number;
  readonly granuleBytes: number;
  readonly digest: DigestName;
  readonly codec: "lz4";
  readonly encryption: "none";
  readonly created: string;
  readonly disks: number;
}
