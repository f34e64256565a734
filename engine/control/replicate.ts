/**
 * A cycle from cut to commit for a volume that is scanned.
 *
 *     take seat ─ read parent ─ capture ─ flush frames ─ write map ─ write manifest ─ prove ─ swap head = committed ─ leave seat
 *
 * Order is everything: data before manifest before head. Whatever ends a cycle early leaves bytes that nobody refers to, and the
 * next cycle's dedup index finds them again.
 */
import { randomBytes } from "node:crypto";
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import { fromHex } from "../format/checksum.ts";
import type { ManifestDocument, PointRecord, VaultDocument } from "../format/documents.ts";
import { decodeManifest, decodeVault, documentBytesMax, encodeManifest } from "../format/documents.ts";
import { damaged } from "../format/fields.ts";
import { disksPrefix, encodeDiskName, manifestName, vaultName } from "../format/names.ts";
import { volumeBytesMax } from "../limits.ts";
import { mergeStack } from "../map/merge.ts";
import { PointMap } from "../map/point-map.ts";
import { MapObjects, RunWriter } from "../map/run-writer.ts";
import type { Baseline } from "../pipeline/baseline.ts";
import { emptyBaseline, FingerprintBaseline, MapBaseline } from "../pipeline/baseline.ts";
import type { CaptureStatistics } from "../pipeline/capture.ts";
import { capture } from "../pipeline/capture.ts";
import { Catalog, regressed } from "../pipeline/catalog.ts";
import type { Crew } from "../pipeline/crew.ts";
import { Lanes } from "../pipeline/lanes.ts";
import type { FingerprintSeed } from "../pipeline/wasm-kernels.ts";
import type { Sink } from "../sink.ts";
import { FileVolume } from "../source/file-volume.ts";
import type { FingerprintReader } from "../source/fingerprints.ts";
import { Store } from "../store.ts";
import { tidemarkVersion } from "../version.ts";
import { LocalState } from "./local-state.ts";
import { paced } from "./progress.ts";
import { Seat } from "./seat.ts";
import type { Notice, ReplicateOptions, ReplicateSummary } from "./summaries.ts";

/** What a vault lends to its operations. */
export interface VaultContext {
  readonly sink: Sink;
  readonly document: VaultDocument;
  readonly stateFolder: string | undefined;
  readonly workers: number;
  readonly lanes: number;
  readonly indexBytesMax: number;
  /** The vault's threads and slabs, started by the first call. */
  readonly crew: () => Crew;
}

/** How often a cycle is started by itself: again when the store went back in time, or when what it relied on turned out to be damaged. */
const cyclesMax = 4;
const objectsProvedAtOnce = 8;

/**
 * Replicates `volume` into a new point. Errors: WRITER_ACTIVE, SEAT_LOST, SOURCE_SHRUNK, SOURCE_UNREADABLE, STORE_UNREACHABLE,
 * STORE_REGRESSED, NO_SPACE, INTERRUPTED and others of the store.
 */
export async function replicate(context: VaultContext, options: ReplicateOptions): Promise<ReplicateSummary> {
  encodeDiskName(options.disk); // refuses a bad name before anything is touched
  const disk = options.disk.normalize("NFC");
  const startedAt = performance.now();
  const trust: Trust = { prints: true, parent: true };
  for (let attempt = 1; ; attempt += 1) {
    const cycle = new Cycle(context, { ...options, disk }, { ...trust });
    try {
      const summary = await cycle.run();
      return { ...summary, elapsedMs: Math.round(performance.now() - startedAt) };
    } catch (error) {
      if (attempt >= cyclesMax) throw error;
      if (cycle.printsBroken) {
        trust.prints = false;
        options.onNotice?.({
          code: "STATE_LOST",
          message: "local fingerprints are damaged: the cycle starts again and compares with the vault",
        });
      } else if (trust.parent && isMapDamage(error, disk)) {
        trust.parent = false;
        options.onNotice?.({
          code: "PARENT_DAMAGED",
          message: `${error.message}; the cycle starts again and makes a point that does not build on it`,
        });
      } else if (hasCode(error, "STORE_REGRESSED") && error.detail["object"] !== vaultName) {
        options.onNotice?.({ code: "STORE_REGRESSED", message: `${error.message}; the cycle starts again` });
      } else {
        throw error;
      }
    }
  }
}

/** What a cycle may build on. */
interface Trust {
  prints: boolean;
  /** The newest point's map. Without it the new point lists everything anew; what the vault holds is still found by dedup. */
  parent: boolean;
}

/** Damage of a manifest, root or leaf of this disk: of what a point builds on, not of data. */
function isMapDamage(error: unknown, disk: string): error is TidemarkError {
  const { object } = error instanceof TidemarkError ? error.detail : {};
  return hasCode(error, "DAMAGED") && typeof object === "string" && object.startsWith(`${disksPrefix}${encodeDiskName(disk)}/`);
}

class Cycle {
  readonly #context: VaultContext;
  readonly #options: ReplicateOptions;
  readonly #trust: Trust;
  readonly #store: Store;
  readonly #state: LocalState;
  readonly #vaultId: Uint8Array;
  readonly #notify: (notice: Notice) => void;
  #prints: FingerprintBaseline | undefined;
  #seat: Seat | undefined;
  /** What must be given back, in this order. */
  readonly #closing: (() => Promise<void>)[] = [];

  constructor(context: VaultContext, options: ReplicateOptions, trust: Trust) {
    this.#context = context;
    this.#options = options;
    this.#trust = trust;
    this.#store = new Store(context.sink);
    this.#vaultId = fromHex(context.document.vault);
    this.#notify = options.onNotice ?? (() => undefined);
    this.#state = new LocalState({
      folder: context.stateFolder,
      vault: context.document.vault,
      disk: options.disk,
      onNotice: this.#notify,
    });
  }

  /** True when the cycle failed because its local fingerprints cannot be believed. */
  get printsBroken(): boolean {
    return this.#prints?.broken === true;
  }

  async run(): Promise<ReplicateSummary> {
    const [outcome] = await Promise.allSettled([this.#run()]);
    const failure = outcome.status === "rejected" ? await this.#diagnose(outcome.reason) : undefined;
    const failures: unknown[] = [];
    for (const close of this.#closing.toReversed()) await close().catch((error: unknown) => failures.push(error));
    // What ended the cycle says more than what then went wrong while it was put away.
    if (outcome.status === "rejected") throw failure;
    if (failures.length > 0) throw failures[0];
    return outcome.value;
  }

  /**
   * What a missing object, or one that stands where only we write, says of the store. The names of this cycle hold its epoch: if one is taken,
   * another cycle had the same epoch, and the store has forgotten that one's head. If one is missing and the head is not the one that we
   * swapped in, the store has forgotten both; if it is, the object is really gone. A container that was there and is not was forgotten.
   */
  async #diagnose(reason: unknown): Promise<unknown> {
    if (!hasCode(reason, "OBJECT_EXISTS", "OBJECT_NOT_FOUND", "VAULT_NOT_FOUND")) return reason;
    try {
      if (reason.code === "OBJECT_NOT_FOUND" && (await this.#seat?.isForgotten()) !== true) {
        return damaged(String(reason.detail["object"]), "the store does not hold it any more", reason);
      }
    } catch (error) {
      if (error instanceof TidemarkError) return reason;
      throw error;
    }
    return new TidemarkError("STORE_REGRESSED", `the store went back in time: ${reason.message}`, {
      remedy: "run the command again; the next cycle ships what the store forgot",
      detail: reason.detail,
      cause: reason,
    });
  }

  async #run(): Promise<ReplicateSummary> {
    const { document } = this.#context;
    const { disk, volume } = this.#options;
    const crew = this.#context.crew(); // its threads start while the store answers
    throwIfAborted(this.#options.signal);
    await this.#proveVault(); // before a head is made that no vault would know
    const seat = await Seat.take({
      store: this.#store,
      vault: document.vault,
      disk,
      onNotice: this.#notify,
      signal: this.#options.signal,
    });
    this.#seat = seat;
    this.#closing.push(async () => {
      await seat.release();
    });
    const signal = this.#options.signal === undefined ? seat.signal : AbortSignal.any([seat.signal, this.#options.signal]);
    throwIfAborted(signal);
    const parent = seat.head.points.at(-1);
    await volume.beginScan?.();
    const timeMs = Math.max(Date.now(), (parent?.timeMs ?? 0) + 1);
    const volumeBytes = await volume.sizeBytes();
    checkSize(volume.description, disk, volumeBytes, parent);
    const manifest = this.#trust.parent ? await this.#readParent(parent, signal) : undefined;
    const catalog = await this.#loadCatalog(signal);
    const reader =
      manifest === undefined || parent === undefined || !this.#trust.prints ? undefined : await this.#state.openPrints(parent.id);
    if (reader !== undefined) this.#closing.push(async () => await reader.close());
    const seed = reader?.seed ?? randomSeed();
    const baseline = await this.#openBaseline(manifest, reader, seed, signal);
    const lanes = new Lanes({
      store: this.#store,
      catalog,
      vaultId: this.#vaultId,
      disk,
      epoch: seat.epoch,
      lanes: this.#context.lanes,
      assertSeat: async () => await seat.assertHeld(),
      signal,
    });
    this.#closing.push(async () => await lanes.settle());
    const objects = new MapObjects({ store: this.#store, vaultId: this.#vaultId, disk, epoch: seat.epoch, signal });
    const run = new RunWriter(objects);
    this.#closing.push(async () => await run.settle());
    const prints = await this.#state.createPrints(seed);
    this.#closing.push(async () => await prints.discard());
    const progress = paced(this.#options.onProgress);
    const statistics = await capture({
      volume,
      volumeBytes,
      baseline,
      blockBytes: document.blockBytes,
      crew,
      seed,
      catalog,
      lanes,
      run,
      prints,
      signal,
      onProgress: (doneBytes) => {
        progress({ phase: "scan", doneBytes, totalBytes: volumeBytes, transferredBytes: lanes.storedBytes });
      },
    });
    await lanes.flush();
    const delta = await run.finish();
    const older = manifest?.runs ?? [];
    const runs = await mergeStack(objects, delta === undefined ? older : [delta, ...older], volumeBytes);
    const consistency = (await volume.endScan?.()) ?? "fuzzy";
    if (consistency === "fuzzy" && volume.endScan !== undefined) {
      this.#notify({
        code: "SOURCE_CHANGED",
        message: `${volume.description} changed, or may have, while it was read: the point is fuzzy`,
      });
    }
    const next: ManifestDocument = {
      vault: document.vault,
      disk,
      sequence: (parent?.sequence ?? 0) + 1,
      epoch: seat.epoch,
      parent: parent?.id ?? null,
      timeMs,
      consistency,
      volumeBytes,
      statistics: { ...statistics, storedBytes: lanes.storedBytes },
      runs,
      writtenBy: `tidemark ${tidemarkVersion}`,
    };
    const point = await this.#commit(seat, catalog, objects, next, async (id) => {
      await prints.finish({ point: id, volumeBytes });
    });
    await this.#state.keepOnly(point.id);
    if (volume instanceof FileVolume) await this.#state.rememberSource(volume.identity());
    await this.#state.saveCache(async (folder) => await catalog.save(folder, this.#vaultId));
    progress({ phase: "commit", doneBytes: volumeBytes, totalBytes: volumeBytes, transferredBytes: lanes.storedBytes }, "last");
    return this.#summary(point, statistics, lanes.storedBytes);
  }

  async #loadCatalog(signal: AbortSignal): Promise<Catalog> {
    return await Catalog.load({
      store: this.#store,
      vaultId: this.#vaultId,
      indexBytesMax: this.#context.indexBytesMax,
      folder: this.#state.vaultFolder,
      signal,
      onDamage: (error) => {
        this.#notify({ code: "SEGMENT_DAMAGED", message: `${error.message}; its chunks are not referred to any more` });
      },
    });
  }

  async #readParent(parent: PointRecord | undefined, signal: AbortSignal): Promise<ManifestDocument | undefined> {
    if (parent === undefined) return undefined;
    return await readManifest(this.#store, this.#context.document.vault, this.#options.disk, parent, signal);
  }

  async #openBaseline(
    manifest: ManifestDocument | undefined,
    reader: FingerprintReader | undefined,
    seed: FingerprintSeed,
    signal: AbortSignal,
  ): Promise<Baseline> {
    const { document } = this.#context;
    if (manifest === undefined) return emptyBaseline;
    if (reader !== undefined) {
      this.#prints = new FingerprintBaseline(reader, document.blockBytes);
      return this.#prints;
    }
    const crew = this.#context.crew();
    const map = new PointMap(this.#store, this.#vaultId, this.#options.disk, manifest);
    return await Promise.resolve(new MapBaseline({ map, store: this.#store, crew, seed, blockBytes: document.blockBytes, signal }));
  }

  /**
   * Manifest, mark, proof, head. The head is marked when all is written and before it is proved: a store that goes back behind the mark
   * refuses the commit, and one that goes back less far still holds what was proved.
   */
  async #commit(
    seat: Seat,
    catalog: Catalog,
    objects: MapObjects,
    manifest: ManifestDocument,
    beforeHead: (id: string) => Promise<void>,
  ): Promise<PointRecord> {
    const { bytes, id } = encodeManifest(manifest);
    const name = manifestName(manifest.disk, manifest.sequence, manifest.epoch);
    await seat.assertHeld();
    const manifestEtag = await this.#store.putOnce(name, bytes, { signal: objects.signal });
    const written = new Map([...objects.put, [name, manifestEtag]]);
    await beforeHead(id);
    const prove = async (): Promise<void> => {
      await catalog.proveReferenced(this.#store, objects.signal);
      await this.#proveObjects(written, objects.signal);
      await this.#proveVault();
    };
    await seat.mark();
    await prove();
    throwIfAborted(objects.signal);
    const { sequence, epoch, timeMs, consistency, volumeBytes, statistics } = manifest;
    const { changedBytes, newBytes, storedBytes } = statistics;
    const point: PointRecord = { sequence, epoch, id, timeMs, consistency, volumeBytes, changedBytes, newBytes, storedBytes };
    await seat.commit([...seat.head.points, point], true, prove);
    catalog.committed();
    return point;
  }

  /**
   * Makes sure that the store still holds this very vault: one that forgot it may have been given another, in which nobody could
   * read what we write. Errors: STORE_REGRESSED.
   */
  async #proveVault(): Promise<void> {
    const { vault } = this.#context.document;
    let there: string | undefined;
    try {
      const { bytes } = await this.#store.get(vaultName, documentBytesMax, { signal: this.#options.signal });
      there = decodeVault(bytes, vaultName).vault;
    } catch (error) {
      if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
    }
    if (there === vault) return;
    throw new TidemarkError("STORE_REGRESSED", `${this.#store.description} has forgotten the vault ${vault}`, {
      remedy: "run the command again: the first replication creates a vault where there is none",
      detail: { object: vaultName },
    });
  }

  /** Asks the store for every map object and manifest of this cycle. Errors: STORE_REGRESSED. */
  async #proveObjects(written: ReadonlyMap<string, string>, signal: AbortSignal | undefined): Promise<void> {
    const next = written.entries();
    const provers = Array.from({ length: objectsProvedAtOnce }, async () => {
      for (const [name, etag] of next) {
        try {
          const there = await this.#store.stat(name, { signal });
          if (there.etag !== etag) throw regressed(name, 1, 0);
        } catch (error) {
          if (hasCode(error, "OBJECT_NOT_FOUND")) throw regressed(name, 1, 0);
          throw error;
        }
      }
    });
    await Promise.all(provers);
  }

  #summary(point: PointRecord, statistics: CaptureStatistics, storedBytes: number): ReplicateSummary {
    return {
      disk: this.#options.disk,
      point: point.id,
      sequence: point.sequence,
      consistency: point.consistency,
      volumeBytes: point.volumeBytes,
      ...statistics,
      storedBytes,
      metadataBytes: this.#store.putBytes,
      requests: this.#store.requests,
      elapsedMs: 0,
    };
  }
}

/** Reads the manifest that the head names. Errors: DAMAGED (also when it is gone), FORMAT_UNSUPPORTED. */
export async function readManifest(
  store: Store,
  vault: string,
  disk: string,
  point: PointRecord,
  signal: AbortSignal | undefined,
): Promise<ManifestDocument> {
  const name = manifestName(disk, point.sequence, point.epoch);
  const { bytes } = await store.get(name, documentBytesMax, { signal });
  return decodeManifest(bytes, name, { vault, disk, id: point.id });
}

function checkSize(source: string, disk: string, volumeBytes: number, parent: PointRecord | undefined): void {
  if (volumeBytes > volumeBytesMax) {
    throw new TidemarkError(
      "UNSUPPORTED",
      `${source} has ${String(volumeBytes)} bytes; a disk may have ${String(volumeBytesMax)} (16 TiB)`,
      {
        remedy: "replicate it in parts, each under a name of its own",
      },
    );
  }
  if (parent !== undefined && volumeBytes < parent.volumeBytes) {
    throw new TidemarkError(
      "SOURCE_SHRUNK",
      `${source} has ${String(volumeBytes)} bytes, where the newest point of disk ${JSON.stringify(disk)} has ${String(parent.volumeBytes)}`,
      { remedy: "check that this is the right source; a disk that was made smaller on purpose is replicated under a new name" },
    );
  }
}

function randomSeed(): FingerprintSeed {
  const bytes = randomBytes(8);
  return [bytes.readUInt32LE(0), bytes.readUInt32LE(4)];
}
