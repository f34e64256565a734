/**
 * Incremental replication of a volume that is scanned: one cycle from cut to commit, in a session
 * of its own.
 *
 *     take writer lease ─ read parent ─ capture what differs … swap head = committed ─ release lease
 *
 * The parent's content is known from local fingerprints, or from the vault's map if there are no
 * fingerprints of that point.
 */
import { randomBytes } from "node:crypto";
import { FileVolume } from "../disk/source/file-volume.ts";
import type { FingerprintReader } from "../disk/source/fingerprints.ts";
import { LocalState, noPrints } from "../disk/source/local-state.ts";
import { namedVolume } from "../disk/source/named-volume.ts";
import { hasCode, TidemarkError } from "../errors.ts";
import { volumeBytesMax } from "../limits.ts";
import type { Notice } from "../notice.ts";
import type { Baseline } from "../pipeline/baseline.ts";
import { changedBaseline, emptyBaseline, FingerprintBaseline, MapBaseline } from "../pipeline/baseline.ts";
import { type CaptureSource, captured } from "../pipeline/capture.ts";
import { loadCatalog } from "../pipeline/catalog.ts";
import type { PointContent } from "../pipeline/packer.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { FingerprintSeed } from "../pipeline/wasm-kernels.ts";
import { type OperationOptions, paced } from "../progress.ts";
import { fromHex } from "../store/format/checksum.ts";
import type { ManifestDocument, PointRecord } from "../store/format/documents.ts";
import { disksPrefix, encodeDiskName, headName, vaultName } from "../store/format/names.ts";
import { PointMap } from "../store/map/point-map.ts";
import type { Store } from "../store/store.ts";
import type { ChangeSource, Consistency, Volume } from "../volume.ts";
import type { Shipped } from "./session.ts";
import { Session } from "./session.ts";

/**
 * How often a cycle is tried. It is repeated when the store has regressed, or when its baseline
 * turned out to be damaged.
 */
const cyclesMax = 4;

/**
 * Replicates `volume` into a new point. Repeats the cycle up to `cyclesMax` times. Errors:
 * WRITER_ACTIVE, SEAT_LOST, SOURCE_SHRUNK, SOURCE_UNREADABLE, STORE_UNREACHABLE, STORE_REGRESSED,
 * NO_SPACE, INTERRUPTED and others of the store.
 */
export async function replicate(
  context: VaultContext,
  options: ReplicateOptions,
  catalog: CatalogUse = "own",
): Promise<ReplicateSummary> {
  encodeDiskName(options.disk); // refuses a bad name before anything is touched
  const disk = options.disk.normalize("NFC");
  const startedAt = performance.now();
  const trust: Trust = { prints: true, parent: true };
  for (let attempt = 1; ; attempt += 1) {
    const cycle = new Cycle(context, { ...options, disk }, { ...trust }, catalog);
    try {
      const summary = await cycle.run();
      return { ...summary, elapsedMs: Math.round(performance.now() - startedAt) };
    } catch (error) {
      const notice = cycle.printsBroken && attempt < cyclesMax ? printsBroken : restartOf(error, disk, trust, attempt);
      if (notice === printsBroken) trust.prints = false;
      options.onNotice?.(notice);
    }
  }
}

const printsBroken: Notice = {
  code: "STATE_LOST",
  message: "local fingerprints are damaged: the cycle starts again and compares with the vault",
};

/**
 * What a cycle that ended with `error` starts again for, once `trust` is what it may still build
 * on. Throws `error` when it does not.
 */
export function restartOf(error: unknown, disk: string, trust: Pick<Trust, "parent">, attempt: number): Notice {
  if (attempt >= cyclesMax) throw error;
  if (trust.parent && isMapDamage(error, disk)) {
    trust.parent = false;
    return {
      code: "PARENT_DAMAGED",
      message: `${error.message}; the cycle starts again and makes a point that does not build on it`,
    };
  }
  if (!hasCode(error, "STORE_REGRESSED") || error.detail["object"] === vaultName) throw error;
  return { code: "STORE_REGRESSED", message: `${error.message}; the cycle starts again` };
}

/**
 * The dedup index of a cycle: `own`, loaded and saved for this cycle, or `shared` with the other
 * cycles of this process.
 */
export type CatalogUse = "own" | "shared";

/** What a cycle may build on. */
export interface Trust {
  prints: boolean;
  /**
   * The newest point's map. Without it the new point lists everything anew; chunks that the vault
   * holds are still found by dedup.
   */
  parent: boolean;
}

/** Whether a manifest, root or leaf of this disk is damaged, as opposed to data. */
export function isMapDamage(error: unknown, disk: string): error is TidemarkError {
  const { object } = error instanceof TidemarkError ? error.detail : {};
  return (
    hasCode(error, "DAMAGED") &&
    typeof object === "string" &&
    object !== headName(disk) &&
    object.startsWith(`${disksPrefix}${encodeDiskName(disk)}/`)
  );
}

class Cycle {
  readonly #context: VaultContext;
  readonly #options: ReplicateOptions;
  readonly #trust: Trust;
  readonly #catalog: CatalogUse;
  readonly #state: LocalState;
  readonly #notify: (notice: Notice) => void;
  #session: Session | undefined;
  #prints: FingerprintBaseline | undefined;
  /** Closers of what is open, called in reverse order. */
  readonly #closing: (() => Promise<void>)[] = [];

  constructor(context: VaultContext, options: ReplicateOptions, trust: Trust, catalog: CatalogUse) {
    this.#context = context;
    this.#catalog = catalog;
    this.#options = options;
    this.#trust = trust;
    this.#notify = options.onNotice ?? (() => undefined);
    this.#state = new LocalState({
      folder: context.stateFolder,
      vault: context.document.vault,
      disk: options.disk,
      onNotice: this.#notify,
    });
  }

  /** True if the cycle failed because its local fingerprints are damaged. */
  get printsBroken(): boolean {
    return this.#prints?.broken === true;
  }

  async run(): Promise<ReplicateSummary> {
    const [outcome] = await Promise.allSettled([this.#run()]);
    const failure = outcome.status === "rejected" ? await this.#diagnose(outcome.reason) : undefined;
    const failures: unknown[] = [];
    for (const close of this.#closing.toReversed()) await close().catch((error: unknown) => failures.push(error));
    // The error that ended the cycle goes before errors of closing.
    if (outcome.status === "rejected") this.#options.changes?.abandoned();
    if (outcome.status === "rejected") throw failure;
    if (failures.length > 0) throw failures[0];
    return outcome.value;
  }

  async #diagnose(reason: unknown): Promise<unknown> {
    return this.#session === undefined ? reason : await this.#session.diagnose(reason);
  }

  async #run(): Promise<ReplicateSummary> {
    const { disk, volume } = this.#options;
    const session = await Session.open(this.#context, {
      disk,
      source: volume instanceof FileVolume ? volume.identity().path : volume.description,
      loadCatalog: async (store, signal) =>
        this.#catalog === "own"
          ? await loadCatalog(this.#context, store, { folder: this.#state.vaultFolder, onNotice: this.#notify, signal })
          : await this.#context.sharedCatalog(store, this.#notify),
      onNotice: this.#notify,
      signal: this.#options.signal,
    });
    this.#session = session;
    this.#closing.push(async () => await session.close());
    const named = this.#beginChanges(session);
    await volume.beginScan?.();
    const timeMs = Date.now();
    const volumeBytes = await volume.sizeBytes();
    checkSize(volume.description, disk, volumeBytes, session.newest);
    const parent = this.#trust.parent ? await session.manifest() : undefined;
    const reader =
      parent === undefined || session.newest === undefined || named !== undefined || !this.#trust.prints
        ? undefined
        : await this.#state.openPrints(session.newest.id);
    if (reader !== undefined) this.#closing.push(async () => await reader.close());
    const seed = reader?.seed ?? randomSeed();
    // A cycle that reads a part of the volume cannot make fingerprints of the whole.
    const prints = named === undefined ? await this.#state.createPrints(seed) : noPrints;
    this.#closing.push(async () => await prints.discard());
    const progress = paced(this.#options.onProgress);
    const shipped = await session.ship({
      content: capturedInto(this.#context, {
        volume: named ?? volume,
        volumeBytes,
        baseline: named === undefined ? this.#openBaseline(session, parent, reader, seed) : changedBaseline,
        scope: named === undefined ? "whole" : "named",
        seed,
        prints,
      }),
      timeMs,
      parent,
      consistency: async () => await this.#judge(),
      beforeHead: async ({ id }, isReread) => {
        // What was read twice may have changed in between, and the point shows the later content.
        if (!isReread) await prints.finish({ point: id, volumeBytes });
      },
      leave: true,
      onProgress: (doneBytes, storedBytes) => {
        progress({ phase: "scan", doneBytes, totalBytes: volumeBytes, transferredBytes: storedBytes });
      },
    });
    this.#options.changes?.committed(shipped.point.id);
    await this.#state.keepOnly(shipped.point.id);
    if (volume instanceof FileVolume) await this.#state.rememberSource(volume.identity());
    if (this.#catalog === "own")
      await this.#state.saveCache(
        async (folder) => await session.catalog.save(folder, fromHex(this.#context.document.vault)),
      );
    progress(
      { phase: "commit", doneBytes: volumeBytes, totalBytes: volumeBytes, transferredBytes: shipped.storedBytes },
      "last",
    );
    return replicateSummary(disk, shipped, session.store);
  }

  /**
   * The volume as a list of changes names it, if there is a list that begins at the newest point.
   */
  #beginChanges(session: Session): Volume | undefined {
    const { changes, volume, disk } = this.#options;
    if (changes === undefined) return undefined;
    const extents = changes.begin();
    if (session.newest !== undefined && session.newest.id === changes.since && this.#trust.parent) {
      return namedVolume(volume, extents, session.newest.volumeBytes);
    }
    if (changes.since !== undefined) {
      const message = `the list of changes begins at point ${changes.since}, which is not the newest of disk ${JSON.stringify(disk)}`;
      this.#notify({ code: "STATE_LOST", message: `${message}: the disk is compared whole` });
    }
    return undefined;
  }

  #openBaseline(
    session: Session,
    parent: ManifestDocument | undefined,
    reader: FingerprintReader | undefined,
    seed: FingerprintSeed,
  ): Baseline {
    const { blockBytes } = this.#context.document;
    if (parent === undefined) return emptyBaseline;
    if (reader === undefined) return mapBaseline(this.#context, session, parent, seed);
    this.#prints = new FingerprintBaseline(reader, blockBytes);
    return this.#prints;
  }

  async #judge(): Promise<Consistency> {
    const { volume } = this.#options;
    const consistency = (await volume.endScan?.()) ?? "fuzzy";
    if (consistency === "fuzzy" && volume.endScan !== undefined) {
      this.#notify({
        code: "SOURCE_CHANGED",
        message: `${volume.description} changed, or may have, while it was read: the point is fuzzy`,
      });
    }
    return consistency;
  }
}

/** A volume as the content of a point of this vault. */
export function capturedInto(context: VaultContext, source: CaptureSource): PointContent {
  return captured(source, { blockBytes: context.document.blockBytes, workerPool: context.workerPool() });
}

/** A baseline that compares with the parent's map in the vault. */
export function mapBaseline(
  context: VaultContext,
  session: Session,
  parent: ManifestDocument,
  seed: FingerprintSeed,
): Baseline {
  const { document } = context;
  const { store, signal } = session;
  const map = new PointMap(store, fromHex(document.vault), parent.disk, parent);
  return new MapBaseline({
    map,
    store,
    workerPool: context.workerPool(),
    seed,
    blockBytes: document.blockBytes,
    signal,
  });
}

function replicateSummary(disk: string, shipped: Shipped, store: Store): ReplicateSummary {
  const { point, statistics, storedBytes } = shipped;
  return {
    disk,
    point: point.id,
    sequence: point.sequence,
    consistency: point.consistency,
    volumeBytes: point.volumeBytes,
    ...statistics,
    storedBytes,
    metadataBytes: store.putBytes,
    requests: store.requests,
    elapsedMs: 0,
  };
}

/**
 * Errors: UNSUPPORTED when the volume is too large, SOURCE_SHRUNK when the newest point is larger.
 */
export function checkSize(source: string, disk: string, volumeBytes: number, newest: PointRecord | undefined): void {
  if (volumeBytes > volumeBytesMax) {
    throw new TidemarkError(
      "UNSUPPORTED",
      `${source} has ${String(volumeBytes)} bytes; a disk may have ${String(volumeBytesMax)} (16 TiB)`,
      {
        remedy: "replicate it in parts, each under a name of its own",
      },
    );
  }
  if (newest !== undefined && volumeBytes < newest.volumeBytes) {
    throw new TidemarkError(
      "SOURCE_SHRUNK",
      `${source} has ${String(volumeBytes)} bytes, where the newest point of disk ${JSON.stringify(disk)} has ${String(newest.volumeBytes)}`,
      {
        remedy:
          "check that this is the right source; a disk that was made smaller on purpose is replicated under a new name",
      },
    );
  }
}

export function randomSeed(): FingerprintSeed {
  const bytes = randomBytes(8);
  return [bytes.readUInt32LE(0), bytes.readUInt32LE(4)];
}

/** Options of `vault.replicate`. */
export interface ReplicateOptions extends OperationOptions {
  /** The disk's name in the vault; a new name makes a new disk. */
  readonly disk: string;
  /** The source. The caller keeps it open until the call settles, and closes it. */
  readonly volume: Volume;
  /**
   * The changes since a point, if they are known: only these are read. Absent: the whole volume is
   * read.
   */
  readonly changes?: ChangeSource | undefined;
  /** A label for the new point. */
  readonly label?: string | undefined;
}

/** The new point, and what its replication read and wrote. */
export interface ReplicateSummary {
  readonly disk: string;
  /** The new point's id: 32 hexadecimal digits that name its exact content. */
  readonly point: string;
  readonly sequence: number;
  readonly consistency: Consistency;
  readonly volumeBytes: number;
  /** Bytes read from the source. */
  readonly scannedBytes: number;
  /** Bytes of the granules that differ from the parent point. */
  readonly changedBytes: number;
  /** Bytes of the granules that became zero. */
  readonly zeroBytes: number;
  /** Plain bytes of chunks that the vault already held. */
  readonly dedupedBytes: number;
  /** Plain bytes of chunks that were new. */
  readonly newBytes: number;
  /** Bytes written to segments: compressed payloads, tables and padding. */
  readonly storedBytes: number;
  /** Bytes written as map, manifest and head. */
  readonly metadataBytes: number;
  /** Calls made to the store. */
  readonly requests: number;
  /** Duration of all tries, in ms. */
  readonly elapsedMs: number;
}
