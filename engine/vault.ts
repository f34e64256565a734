/**
 * Front door of the engine: a vault in a store, and every operation on its disks.
 *
 * An operation runs to its end or to its signal; closing the vault waits for all of them. Protections,
 * mounts and handles end with the vault.
 */

import { watchedStore } from "./disk/source/head-watch.ts";
import { Failovers } from "./failover/failovers.ts";
import { Instant, type InstantOptions } from "./failover/instant.ts";
import { Plans } from "./failover/plans/plans.ts";
import { type RenameDiskOptions, type RenameDiskSummary, renameDisk } from "./failover/rename.ts";
import { Replicas } from "./failover/replicas.ts";
import { SharedCatalog } from "./pipeline/shared-catalog.ts";
import type { VaultContext } from "./pipeline/vault-context.ts";
import { WorkerPool } from "./pipeline/worker-pool.ts";
import { discardImage } from "./recovery/mount/image-files.ts";
import { Mount, type MountOptions } from "./recovery/mount/mount.ts";
import { type OpenPointOptions, PointHandle } from "./recovery/mount/point-handle.ts";
import { type MaterializeOptions, type MaterializeSummary, materialize } from "./recovery/restore/materialize.ts";
import { type CopySummary, copyPoints } from "./replication/copy-points.ts";
import type { CopyOptions } from "./replication/disk-copy.ts";
import { Protection } from "./replication/protection/protection.ts";
import type { ProtectOptions } from "./replication/protection/protection-status.ts";
import { type ReplicateOptions, type ReplicateSummary, replicate } from "./replication/replicate.ts";
import type { Sink } from "./sink.ts";
import { GroupMembers } from "./store/points/group-members.ts";
import { IdentityGuard } from "./store/points/identity-guard.ts";
import { checkLabel, type LabelOptions, labelNewPoint, putLabel } from "./store/points/labels.ts";
import { type PinOptions, type PinSummary, putPin, removePins } from "./store/points/pins.ts";
import { type DiffOptions, PointDiff } from "./store/points/point-diff.ts";
import {
  type DiskSummary,
  type ListedPoint,
  type ListingOptions,
  listDisks,
  listPoints,
  type PointDetail,
  type PointSummary,
  type PointsOptions,
  placePoint,
  readPointDetail,
} from "./store/points/points.ts";
import type { Store } from "./store/store.ts";
import { lastCollectedMs } from "./upkeep/collection/collected.ts";
import { type CollectOptions, type CollectSummary, collect } from "./upkeep/collection/collection.ts";
import { segmentBytes } from "./upkeep/collection/segment-bytes.ts";
import { type VaultStats, vaultStats } from "./upkeep/collection/vault-stats.ts";
import { Keyring } from "./upkeep/keys/keyring.ts";
import { type PruneOptions, type PruneSummary, prune } from "./upkeep/prune/prune.ts";
import { type RemoveDiskOptions, type RemoveDiskSummary, removeDisk } from "./upkeep/prune/remove-disk.ts";
import { Agents } from "./upkeep/registration/agents.ts";
import { type RepairOptions, type RepairSummary, repair } from "./upkeep/repair/repair.ts";
import { identityDamage, withDamage } from "./upkeep/scrub/damage.ts";
import { Scrubber, type ScrubOptions, type ScrubSummary } from "./upkeep/scrub/scrub.ts";
import { scrubProtected } from "./upkeep/scrub/scrub-protected.ts";
import { type VerifyOptions, type VerifySummary, verify } from "./upkeep/scrub/verify.ts";
import { createVault, openOrCreateVault, openVault, openVaultForRepair } from "./vault-opening.ts";
import {
  closedVault,
  parametersOf,
  resolveOptions,
  type VaultOptions,
  type VaultParameters,
  type VaultSummary,
  vaultSummary,
} from "./vault-options.ts";

/** The part of the context that is known before the vault is made. */
type VaultParts = Omit<VaultContext, "workerPool" | "sharedCatalog" | "dropCatalog" | "renewals" | "epochs">;

/**
 * An open vault. Close it with `close` or an `await using` block. The sink stays open and belongs to
 * the caller. Operations may run at the same time.
 *
 * @example
 * ```ts
 * await using sink = await openSink("dir:/srv/vault");
 * await using vault = await Vault.openOrCreate(sink, { stateFolder: "/var/lib/tidemark" });
 * await using volume = await FileVolume.open("web.img");
 * const { sequence } = await vault.replicate({ disk: "web", volume });
 * await vault.materialize({ disk: "web", point: String(sequence), to: "back.img" });
 * ```
 */
export class Vault implements AsyncDisposable {
  /** Failovers and tests of the vault's disks. */
  readonly failovers: Failovers;
  /** Failovers and tests of several machines, in the order of a recovery plan. */
  readonly plans: Plans;
  /** Images that are kept at the newest point of a disk. */
  readonly replicas: Replicas;
  /** Keys of an encrypted vault: recipients, rotation, enrollment of writers. */
  readonly keys: Keyring;
  /** Registration of source machines. */
  readonly agents: Agents;
  readonly #context: VaultContext;
  readonly #running = new Set<Promise<unknown>>();
  readonly #protections = new Set<Protection>();
  readonly #mounts = new Set<Mount | PointHandle | Instant>();
  #workerPool: WorkerPool | undefined;
  readonly #catalog = new SharedCatalog();
  #scrubber: Scrubber | undefined;
  readonly #identity: IdentityGuard;
  #closed = false;

  private constructor(parts: VaultParts) {
    this.#context = {
      ...parts,
      workerPool: () => (this.#workerPool ??= WorkerPool.forVault(parts.document, parts.workers)),
      sharedCatalog: async (store, onNotice) => {
        await this.#identity.keep(store, onNotice, undefined);
        return await this.#catalog.open(this.#context, store, onNotice);
      },
      dropCatalog: (catalog) => this.#catalog.drop(catalog),
      renewals: new Set(),
      epochs: new Map(),
    };
    this.#identity = new IdentityGuard(parts.document);
    this.failovers = new Failovers(this.#context, this, async (start) => await this.#track(start));
    this.plans = new Plans(this.#context, this.failovers, async (start) => await this.#track(start));
    this.replicas = new Replicas(this.#context, async (start) => await this.#track(start));
    this.keys = new Keyring(this.#context, async (start) => await this.#track(start));
    this.agents = new Agents(this.#context, async (start) => await this.#track(start));
  }

  /**
   * Creates a vault in the sink's container, and the container if it is missing.
   *
   * @throws `VAULT_EXISTS`, `INVALID_ARGUMENT`; `DAMAGED` where a vault has lost its `vault.json`; and
   * the errors of the store.
   */
  static async create(sink: Sink, options: VaultOptions & VaultParameters = {}): Promise<Vault> {
    return new Vault({ ...resolveOptions(options), ...(await createVault(sink, options)) });
  }

  /**
   * Opens the vault in the sink's container. If the store cannot be reached, it is opened from the
   * copy of its document in the state folder: points then wait for the store.
   *
   * @throws `VAULT_NOT_FOUND`, `STORE_UNREACHABLE`, `FORMAT_UNSUPPORTED`, `DAMAGED`; `ACCESS_REFUSED` if
   * the vault is encrypted and `keys` do not open it.
   */
  static async open(sink: Sink, options: VaultOptions = {}): Promise<Vault> {
    return new Vault({ ...resolveOptions(options), ...(await openVault(sink, options)) });
  }

  /**
   * As `open`, also for a vault whose `vault.json` is lost and has a sound copy. Nothing is written
   * before `repair`.
   *
   * @throws as `open`; `DAMAGED` if there is no such copy.
   */
  static async openForRepair(sink: Sink, options: VaultOptions = {}): Promise<Vault> {
    return new Vault({ ...resolveOptions(options), ...(await openVaultForRepair(sink, options)) });
  }

  /** Opens the vault, or creates it if the state folder knows of none there. Throws as `open` and `create`. */
  static async openOrCreate(sink: Sink, options: VaultOptions & VaultParameters = {}): Promise<Vault> {
    return new Vault({ ...resolveOptions(options), ...(await openOrCreateVault(sink, options)) });
  }

  /** 32 hexadecimal digits that name this vault. */
  get id(): string {
    return this.#context.document.vault;
  }

  /**
   * Parameters for a vault to which this one is copied: a copy then reads only what that vault
   * lacks.
   */
  get parameters(): VaultParameters {
    return parametersOf(this.#context.document);
  }

  /** Identity and parameters of the vault. Throws the errors of the store. */
  async summary(options: ListingOptions = {}): Promise<VaultSummary> {
    return await vaultSummary(this.#context, this.#store(options), options.signal);
  }

  /**
   * Counts what the points take, in bytes: see `SpaceCounts`. Reads every map, and no data.
   *
   * @throws `DAMAGED` or `FORMAT_UNSUPPORTED` if a head, manifest or map cannot be read; `INTERRUPTED`.
   */
  async stats(options: ListingOptions = {}): Promise<VaultStats> {
    return await this.#track(async () => await vaultStats(this.#store(options), this.id, options));
  }

  /** All disks with at least one point, sorted by name. Throws `DAMAGED` and the errors of the store. */
  async disks(options: ListingOptions = {}): Promise<DiskSummary[]> {
    const store = this.#store(options);
    return await listDisks(store, new GroupMembers({ store, vault: this.id, signal: options.signal }));
  }

  /**
   * The disk's committed points, oldest first.
   *
   * @throws `DISK_NOT_FOUND`, `INVALID_ARGUMENT`; `DAMAGED`, unless `onNotice` is given: then a page of
   * points that cannot be read is a notice.
   */
  async points(disk: string, options: PointsOptions = {}): Promise<ListedPoint[]> {
    const store = this.#store(options);
    const members = new GroupMembers({ store, vault: this.id, signal: options.signal });
    return await listPoints(store, members, disk.normalize("NFC"), options);
  }

  /**
   * One point in full. `selector`: sequence number, id, `latest`, or an ISO time (the newest point
   * not younger).
   *
   * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `DAMAGED`.
   */
  async point(disk: string, selector: string, options: ListingOptions = {}): Promise<PointDetail> {
    return await readPointDetail(this.#store(options), this.id, disk, selector, options.signal);
  }

  /**
   * The extents in which a point differs from another one of its disk, as an async iterable: see
   * `PointDiff`. No data is read.
   *
   * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `INVALID_ARGUMENT`, `DAMAGED`.
   */
  async diff(options: DiffOptions): Promise<PointDiff> {
    return await this.#track(async () => await PointDiff.open(this.#store(options), this.id, options));
  }

  /**
   * Keeps a point from being pruned, until `untilMs` (ms since 1970) or for good. A pin of the same
   * name is replaced.
   *
   * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `INVALID_ARGUMENT`.
   */
  async pin(
    options: PinOptions & { readonly untilMs?: number | undefined },
  ): Promise<PointSummary & { readonly pin: PinSummary }> {
    const { place, summary } = await placePoint(this.#store(options), this.id, options);
    const { name, untilMs } = await putPin({
      ...place,
      name: options.name ?? null,
      untilMs: options.untilMs ?? null,
      nowMs: Date.now(),
    });
    return { ...summary, pin: { name, until: untilMs === null ? null : new Date(untilMs).toISOString() } };
  }

  /**
   * Removes the pins of a point: all of them, or those with a name.
   *
   * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`.
   */
  async unpin(options: PinOptions): Promise<PointSummary & { readonly removedPins: number }> {
    const { place, summary } = await placePoint(this.#store(options), this.id, options);
    return { ...summary, removedPins: await removePins({ ...place, name: options.name }) };
  }

  /**
   * Puts a label on a point; an empty text removes it. A label does not keep a point from being
   * pruned.
   *
   * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `INVALID_ARGUMENT`.
   */
  async label(options: LabelOptions): Promise<PointSummary & { readonly label: string | null }> {
    const { place, summary } = await placePoint(this.#store(options), this.id, options);
    await putLabel({ ...place, text: options.text, nowMs: Date.now() });
    return { ...summary, label: options.text === "" ? null : options.text };
  }

  /**
   * Prunes: drops the points that a retention policy does not keep. Space is freed by `collect`.
   *
   * @throws `DISK_NOT_FOUND`, `WRITER_ACTIVE`, `INVALID_ARGUMENT`, `DAMAGED`, `INTERRUPTED`.
   */
  async prune(options: PruneOptions): Promise<PruneSummary> {
    return await this.#track(async () => await prune(this.#context, options));
  }

  /**
   * Removes a disk with all its points, pins and labels. Space is freed by `collect`.
   *
   * @throws `DISK_NOT_FOUND`; `POINT_HELD` when a pin or a reader keeps a point, here or on a member
   * of its group; `WRITER_ACTIVE`, `DAMAGED`, `INTERRUPTED`.
   */
  async removeDisk(options: RemoveDiskOptions): Promise<RemoveDiskSummary> {
    return await this.#track(async () => await removeDisk(this.#context, options));
  }

  /**
   * Renames a disk. Its points keep their times, labels and pins; their ids and numbers are new.
   *
   * @throws as `removeDisk`, and `INVALID_ARGUMENT` when another disk has the name or the disk was
   * failed over. The former disk stays until all of its points have the new name.
   */
  async renameDisk(options: RenameDiskOptions): Promise<RenameDiskSummary> {
    return await this.#track(async () => await renameDisk(this.#context, options));
  }

  /**
   * Takes a recovery point of a volume: one scan cycle, or one over a list of changes.
   *
   * @throws `WRITER_ACTIVE`, `SEAT_LOST`, `SOURCE_UNREADABLE`, `SOURCE_SHRUNK`, `STORE_UNREACHABLE`,
   * `STORE_REGRESSED`, `DAMAGED`, `INTERRUPTED`. What was shipped before is used by the next call.
   */
  async replicate(options: ReplicateOptions): Promise<ReplicateSummary> {
    checkLabel(options.label ?? "");
    return await this.#track(async () => {
      const summary = await replicate(this.#context, options);
      await labelNewPoint(this.#store(), this.id, summary, options);
      await this.#identity.keep(this.#store(), options.onNotice ?? (() => undefined), options.signal);
      return summary;
    });
  }

  /** Copies points to another vault. Throws `INVALID_ARGUMENT` when both are one vault, and as `replicate`. */
  async copyTo(to: Vault, options: CopyOptions = {}): Promise<CopySummary> {
    const copy = async (): Promise<CopySummary> => await copyPoints(this.#context, to.#context, options);
    return await this.#track(async () => await to.#track(copy));
  }

  /**
   * Protects a disk image or block device while it is written: see `Protection`. It ends with
   * `stop`, at the latest when the vault is closed.
   *
   * @throws `WRITER_ACTIVE`, `SOURCE_NOT_FOUND`, `SOURCE_UNREADABLE`, `ACCESS_REFUSED`, `UNSUPPORTED`.
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

  /**
   * Restores a point as an image: a file, a block device, or a page blob.
   *
   * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `TARGET_EXISTS`, `TARGET_IS_SOURCE`, `TARGET_TOO_SMALL`,
   * `TARGET_FAILED`, `NO_SPACE`, `DAMAGED`, `INTERRUPTED`. The next call resumes an interrupted one.
   */
  async materialize(options: MaterializeOptions): Promise<MaterializeSummary> {
    return await this.#track(async () => await materialize(this.#context, options));
  }

  /**
   * Mounts a point: a block device that can be read at once, until the mount or the vault is closed.
   *
   * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `INVALID_ARGUMENT`, `DAMAGED`.
   */
  async mount(options: MountOptions): Promise<Mount> {
    return await this.#keepOpen(async () => await Mount.open(this.#context, options));
  }

  /**
   * Opens a point to be read as bytes or streams, until the vault is closed: see `PointHandle`.
   *
   * @throws `DISK_NOT_FOUND`; `POINT_NOT_FOUND`, also while it is being pruned; `INVALID_ARGUMENT`;
   * `DAMAGED`.
   */
  async openPoint(options: OpenPointOptions): Promise<PointHandle> {
    return await this.#keepOpen(async () => await PointHandle.open(this.#context, options));
  }

  /**
   * Opens an instant target: a disk that begins as a point and becomes a local image while it runs.
   * See `Instant`. One that exists is opened without the store.
   *
   * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `INVALID_ARGUMENT` (the image is of another point),
   * `TARGET_EXISTS`, `WRITER_ACTIVE`, `ACCESS_REFUSED`, `NO_SPACE`, `TARGET_FAILED`, `DAMAGED`.
   */
  async instant(options: InstantOptions): Promise<Instant> {
    const keep = (protection: Protection): unknown => this.#protections.add(protection);
    return await this.#keepOpen(async () => await Instant.open(this.#context, options, keep));
  }

  /**
   * Deletes the image of an instant target that is not open, and ends the pin of its point. Idempotent.
   *
   * @throws `WRITER_ACTIVE`, `INVALID_ARGUMENT` (the image is of another disk), the store's errors.
   */
  async discardInstant(options: Pick<InstantOptions, "disk" | "image" | "onNotice" | "signal">): Promise<void> {
    await this.#track(async () => await discardImage(this.#context, options));
  }

  /** Opens a mount or handle that is closed with the vault at the latest. */
  async #keepOpen<Opened extends Mount | PointHandle | Instant>(open: () => Promise<Opened>): Promise<Opened> {
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
   * Runs a garbage collection: frees what no committed point needs, while writers and readers go on.
   *
   * @throws `COLLECTION_ACTIVE`; `DAMAGED`, and `STORE_REGRESSED` where a list of points is older than
   * this machine has seen it, and then nothing has been deleted; `INTERRUPTED`.
   */
  async collect(options: CollectOptions = {}): Promise<CollectSummary> {
    const store = this.#store(options, options.dryRun === true ? "told" : "refused");
    return await this.#track(async () => await collect(store, this.id, options));
  }

  /** When any process last ran a garbage collection, in ms since 1970; undefined if that is not known. */
  async lastCollectedMs(signal?: AbortSignal): Promise<number | undefined> {
    return await this.#track(async () => await lastCollectedMs(this.#store(), this.id, { signal }));
  }

  /** Bytes that segments take at the store. Throws the errors of the store. */
  async segmentBytes(signal?: AbortSignal): Promise<number> {
    return await this.#track(async () => await segmentBytes(this.#store(), this.id, signal));
  }

  /**
   * Proves points: fetches every chunk and compares it with its digest. Damage is in the summary.
   *
   * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, `SOURCE_UNREADABLE`, `INTERRUPTED`.
   */
  async verify(options: VerifyOptions = {}): Promise<VerifySummary> {
    return await this.#track(async () => {
      const { heal = false, onNotice = () => undefined, signal } = options;
      const found = (await this.#identity.check(this.#store(), heal, onNotice, signal)).map(identityDamage);
      const summary = await verify(this.#context, options);
      return { ...summary, damaged: [...found, ...summary.damaged] };
    });
  }

  /**
   * Rebuilds the lost metadata of a vault. What cannot be rebuilt is in the summary.
   *
   * @throws `WRITER_ACTIVE` and `SEAT_LOST`, after everything else has been repaired;
   * `COLLECTION_ACTIVE`, `STORE_REGRESSED`, `INTERRUPTED`.
   */
  async repair(options: RepairOptions = {}): Promise<RepairSummary> {
    return await this.#track(async () => await repair(this.#context, options));
  }

  /**
   * Scrubs: proves the points that were proved longest ago, within a quota, and heals what can be
   * healed. One pass at a time. Damage is in the summary.
   *
   * @throws `INTERRUPTED` and the errors of the store.
   */
  async scrub(options: ScrubOptions = {}): Promise<ScrubSummary> {
    const scrubber = (this.#scrubber ??= new Scrubber(this.#context));
    return await this.#track(async () => {
      const { onNotice = () => undefined, onDamage, signal } = options;
      const found = (await this.#identity.check(this.#store(), true, onNotice, signal)).map(identityDamage);
      for (const damage of found) onDamage?.(damage);
      return withDamage(await scrubProtected(scrubber, this.#context, this.#protections, options), found);
    });
  }

  /** Ends protections, mounts, operations and worker threads. The sink stays open. Idempotent. */
  async close(): Promise<void> {
    this.#closed = true;
    for (const protection of this.#protections) await protection.stop({ drain: false });
    const unmounted = await Promise.allSettled([...this.#mounts].map(async (mount) => await mount.close()));
    await Promise.allSettled(this.#running);
    await this.#workerPool?.close();
    for (const outcome of unmounted) if (outcome.status === "rejected") throw outcome.reason;
  }

  /** A client for one operation: it counts that operation's requests, and watches heads: see `head-watch.ts`. */
  #store({ onNotice }: Pick<ListingOptions, "onNotice"> = {}, older?: "told" | "refused"): Store {
    return watchedStore(this.#context, onNotice, older);
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
