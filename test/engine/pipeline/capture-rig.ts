/**
 * All that a capture works with, on a store in memory: real threads, real lanes, a real map. A rig
 * takes cycles of volumes and reads the resulting maps back by itself, without the engine's reader,
 * so that the two cannot be wrong in the same way.
 */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { FingerprintReader, FingerprintWriter } from "../../../engine/disk/source/fingerprints.ts";
import { granuleBytes } from "../../../engine/limits.ts";
import type { Baseline } from "../../../engine/pipeline/baseline.ts";
import {
  changedBaseline,
  emptyBaseline,
  FingerprintBaseline,
  MapBaseline,
  namedOnly,
} from "../../../engine/pipeline/baseline.ts";
import { capture } from "../../../engine/pipeline/capture.ts";
import { Catalog } from "../../../engine/pipeline/catalog.ts";
import type { DigestKernel } from "../../../engine/pipeline/kernels.ts";
import { createDigest } from "../../../engine/pipeline/kernels.ts";
import { Lanes } from "../../../engine/pipeline/lanes.ts";
import { Lz4 } from "../../../engine/pipeline/lz4.ts";
import type { Pace } from "../../../engine/pipeline/pace.ts";
import type { RunStatistics } from "../../../engine/pipeline/packer.ts";
import { WorkerPool } from "../../../engine/pipeline/worker-pool.ts";
import type { DigestName, RunReference } from "../../../engine/store/format/documents.ts";
import { storedLength, storedLz4Flag } from "../../../engine/store/format/frame.ts";
import { PointMap, pieceDigest, pieceIsZero, windowGranules } from "../../../engine/store/map/point-map.ts";
import { MapObjects, RunWriter } from "../../../engine/store/map/run-writer.ts";
import type { Store } from "../../../engine/store/store.ts";
import type { Volume } from "../../../engine/volume.ts";
import type { FaultySink, PlannedFault } from "../../../sink/faults.ts";
import { openMemory, randomBytes, vaultId } from "../../engine-model.ts";

const digestKey = randomBytes(32, 99);
const seed = [0x1234_5678, 0x9abc_def0] as const;

/** What a cycle leaves for the next one. */
export interface Point {
  readonly runs: readonly RunReference[];
  readonly volumeBytes: number;
  readonly printsPath: string;
}

export interface CycleOptions {
  readonly disk?: string;
  readonly parent?: Point | undefined;
  /** What is known of the parent: its fingerprints, or only its map. */
  readonly knowing?: "prints" | "map" | "changed";
  /** See `CaptureOptions`. */
  readonly scope?: "whole" | "named";
  readonly pace?: Pace;
  readonly signal?: AbortSignal;
}

export interface Cycle {
  readonly point: Point;
  readonly statistics: RunStatistics;
  readonly storedBytes: number;
  /** The entries that the cycle added to the map. */
  readonly delta: RunReference | undefined;
}

export class CaptureRig implements AsyncDisposable {
  readonly blockBytes: number;
  readonly workerPool: WorkerPool;
  readonly #readingCrew: WorkerPool;
  readonly #prove: DigestKernel;
  readonly #folder: string;
  sink: FaultySink;
  store: Store;
  #epoch = 0;

  private constructor(
    blockBytes: number,
    digest: DigestName,
    prove: DigestKernel,
    folder: string,
    memory: { sink: FaultySink; store: Store },
  ) {
    this.blockBytes = blockBytes;
    // Three slabs of four blocks: small disks then take many of them, again and again.
    const geometry = { slabCount: 3, slabBytes: blockBytes * 4 };
    const options = { geometry, fetchGeometry: geometry, blockBytes, digest, digestKey };
    this.workerPool = WorkerPool.open({ ...options, workers: 2 });
    this.#readingCrew = WorkerPool.open({ ...options, workers: 1 });
    this.#prove = prove;
    this.#folder = folder;
    this.sink = memory.sink;
    this.store = memory.store;
  }

  static async open(blockBytes: number, digest: DigestName): Promise<CaptureRig> {
    const prove = await createDigest(digest, digestKey);
    const folder = await mkdtemp(path.join(tmpdir(), "capture-"));
    return new CaptureRig(blockBytes, digest, prove, folder, await openMemory());
  }

  /** Goes on with an empty store. */
  async empty(faults: readonly PlannedFault[] = []): Promise<void> {
    ({ sink: this.sink, store: this.store } = await openMemory(faults));
  }

  async cycle(volume: Volume, options: CycleOptions = {}): Promise<Cycle> {
    const { disk = "disk", parent, knowing = "prints", scope = "whole", pace, signal } = options;
    this.#epoch += 1;
    const { store, blockBytes, workerPool } = this;
    const epoch = this.#epoch;
    const volumeBytes = await volume.sizeBytes();
    const catalog = await Catalog.load({ store, vaultId, indexBytesMax: 2 ** 20, onDamage: rethrow });
    const lanes = new Lanes({
      store,
      catalog,
      vaultId,
      disk,
      epoch,
      lanes: 3,
      sealFrame: async (task) => await workerPool.seal(task),
      assertLease: () => Promise.resolve(),
      signal,
    });
    const run = new RunWriter(new MapObjects({ store, vaultId, disk, epoch, signal }));
    const prints = await FingerprintWriter.create(this.#folder, { vaultId: "vault", disk, seed });
    const opened = await this.#open(disk, parent, knowing);
    const baseline = scope === "named" ? namedOnly(opened.baseline) : opened.baseline;
    try {
      const statistics = await capture({
        ...{ volume, volumeBytes, baseline, blockBytes, workerPool, seed, catalog, lanes, run, prints, signal },
        ...{ references: new Set<number>(), scope, pace },
        onProgress: () => undefined,
      });
      await lanes.flush();
      const delta = await run.finish();
      const printsPath = await prints.finish({ point: `point-${String(epoch)}`, volumeBytes });
      const runs = [...(delta === undefined ? [] : [delta]), ...(parent?.runs ?? [])];
      return { point: { runs, volumeBytes, printsPath }, statistics, storedBytes: lanes.storedBytes, delta };
    } finally {
      await lanes.close();
      await run.settle();
      await prints.discard();
      await opened.close();
    }
  }

  /** The bytes that a point's map leads to, each chunk proved. */
  async read(point: Point, disk = "disk"): Promise<Buffer> {
    const map = new PointMap(this.store, vaultId, disk, point);
    const bytes = Buffer.alloc(map.granules * granuleBytes);
    const lz4 = new Lz4();
    for (let from = 0; from < map.granules; from += windowGranules) {
      const pieces = await map.window(from, Math.min(from + windowGranules, map.granules));
      for (let index = 0; index < pieces.count; index += 1) {
        const leaf = pieces.leaves[index];
        const entry = pieces.entries[index] ?? 0;
        if (leaf === undefined || pieceIsZero(pieces, index)) continue;
        const storedWord = leaf.storedWords[entry] ?? 0;
        const payload = new Uint8Array(storedLength(storedWord));
        await this.store.readPages(leaf.names[leaf.segments[entry] ?? 0] ?? "", leaf.offsets[entry] ?? 0, payload);
        const plain = new Uint8Array(((leaf.chunkLengths[entry] ?? 0) + 1) * granuleBytes);
        if (storedWord >= storedLz4Flag) lz4.decompress(payload, plain.length, plain, 0);
        else plain.set(payload);
        const digests = new Uint8Array(32);
        this.#prove(plain, digests, 0);
        pieceDigest(pieces, index, digests, 16);
        if (Buffer.compare(digests.subarray(0, 16), digests.subarray(16)) !== 0)
          throw new Error(`piece ${String(index)} is not what its digest says`);
        const shown = (pieces.chunkOffsets[index] ?? 0) * granuleBytes;
        bytes.set(
          plain.subarray(shown, shown + (pieces.lengths[index] ?? 0) * granuleBytes),
          (pieces.starts[index] ?? 0) * granuleBytes,
        );
      }
    }
    if (bytes.subarray(point.volumeBytes).some((byte) => byte !== 0))
      throw new Error("something lies behind the volume's end");
    return bytes.subarray(0, point.volumeBytes);
  }

  async #open(
    disk: string,
    parent: Point | undefined,
    knowing: "prints" | "map" | "changed",
  ): Promise<{ readonly baseline: Baseline; readonly close: () => Promise<void> }> {
    const close = async (): Promise<void> => await Promise.resolve();
    if (knowing === "changed") return { baseline: changedBaseline, close };
    if (parent === undefined) return { baseline: emptyBaseline, close };
    const { store, blockBytes } = this;
    if (knowing === "map") {
      const map = new PointMap(store, vaultId, disk, parent);
      return { baseline: new MapBaseline({ map, store, workerPool: this.#readingCrew, seed, blockBytes }), close };
    }
    const point = path.basename(parent.printsPath).replace(/^fingerprints-/, "");
    const opened = await FingerprintReader.open(parent.printsPath, { vaultId: "vault", disk, point });
    if ("reason" in opened) throw new Error(opened.reason);
    return {
      baseline: new FingerprintBaseline(opened.reader, blockBytes),
      close: async () => await opened.reader.close(),
    };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.workerPool.close();
    await this.#readingCrew.close();
    await rm(this.#folder, { recursive: true });
  }
}

function rethrow(error: Error): void {
  throw error;
}
