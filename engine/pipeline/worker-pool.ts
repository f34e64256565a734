/**
 * Worker pool: worker threads (Piscina) and the slabs that they share. A vault opens one with its
 * first operation and closes it when it is closed. Closing waits for the tasks in flight, because a
 * task that is cut off could still write to a slab that has another owner.
 */
import { availableParallelism } from "node:os";
import type { Piscina } from "piscina";
import { TidemarkError } from "../errors.ts";
import { fromHex } from "../store/format/checksum.ts";
import type { DigestName, VaultDocument } from "../store/format/documents.ts";
import { fetchGeometry, type SlabGeometry, SlabPool, scanGeometry } from "./slabs.ts";
import { compiledKernels } from "./wasm-kernels.ts";
import type { CompressTask, DecodeTask, ScanResult, ScanTask, WorkerSetup, WorkerTask } from "./worker.ts";

export interface WorkerPoolOptions {
  /** Of the slabs for scanning, and of those for fetching. */
  readonly geometry: SlabGeometry;
  readonly fetchGeometry: SlabGeometry;
  readonly digest: DigestName;
  readonly digestKey: Uint8Array;
  readonly workers: number;
}

/** One thread a core: hashing and compression keep each of them busy. */
export const workersDefault: number = Math.min(availableParallelism(), 8);

export class WorkerPool implements AsyncDisposable {
  /** What scans lease. */
  readonly slabs: SlabPool;
  /**
   * What fetches lease: pools of their own, so that a scan that needs to fetch never waits for a
   * slab that a scan holds.
   */
  readonly fetches: SlabPool;
  /** Loaded by the first pool only: loading it takes longer than to list points does. */
  readonly #pool: Promise<Piscina<WorkerTask, ScanResult | undefined>>;
  #closed: Promise<void> | undefined;

  private constructor(options: WorkerPoolOptions) {
    this.slabs = new SlabPool(options.geometry);
    this.fetches = new SlabPool(options.fetchGeometry);
    const setup: WorkerSetup = {
      slabs: this.slabs.shared,
      fetches: this.fetches.shared,
      digest: options.digest,
      digestKey: options.digestKey,
      code: compiledKernels(),
    };
    this.#pool = startThreads(setup, options);
    // A failure reaches the callers of `#run` and `close`.
    this.#pool.catch(() => undefined);
  }

  /** Starts the threads; they load their WASM while the caller goes on. */
  static open(options: WorkerPoolOptions): WorkerPool {
    return new WorkerPool(options);
  }

  /** The pool of a vault: its slabs and kernels follow from the vault's parameters. */
  static forVault({ blockBytes, digest, digestKey }: VaultDocument, workers: number): WorkerPool {
    return WorkerPool.open({
      geometry: scanGeometry(blockBytes),
      fetchGeometry: fetchGeometry(blockBytes),
      digest,
      digestKey: fromHex(digestKey),
      workers,
    });
  }

  async scan(task: Omit<ScanTask, "kind">): Promise<ScanResult> {
    const result = await this.#run({ kind: "scan", ...task });
    if (result === undefined) throw new TidemarkError("INTERNAL", "a scan gave no result");
    return result;
  }

  async compress(task: Omit<CompressTask, "kind">): Promise<void> {
    await this.#run({ kind: "compress", ...task });
  }

  async decode(task: Omit<DecodeTask, "kind">): Promise<void> {
    await this.#run({ kind: "decode", ...task });
  }

  async #run(task: WorkerTask): Promise<ScanResult | undefined> {
    try {
      const pool = await this.#pool;
      return await pool.run(task);
    } catch (error) {
      throw new TidemarkError("INTERNAL", `a worker thread failed while it ran ${task.kind}`, {
        remedy: "this is a fault in Tidemark: report it with --debug output; nothing was committed",
        cause: error,
      });
    }
  }

  /** Waits for the tasks in flight, then ends the threads. Idempotent. */
  async close(): Promise<void> {
    this.#closed ??= this.#pool.then(async (pool) => await pool.close());
    await this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

async function startThreads(
  setup: WorkerSetup,
  { workers, geometry, fetchGeometry: fetches }: WorkerPoolOptions,
): Promise<Piscina<WorkerTask, ScanResult | undefined>> {
  const { Piscina } = await import("piscina");
  return new Piscina({
    filename: import.meta.resolve("#worker"),
    minThreads: workers,
    maxThreads: workers,
    // A slab has at most one task at a time, so the leases bound the queue; anything above is a
    // programmer's error.
    maxQueue: geometry.slabCount + fetches.slabCount,
    workerData: setup,
  });
}
