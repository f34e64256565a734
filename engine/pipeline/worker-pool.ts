/**
 * Worker pool: worker threads (Piscina) and the slabs that they share. All open vaults of a process
 * use the same ones, so ten vaults take no more memory and no more threads than one. A task names
 * the digest of its vault, and the digest's key lies in the task's slab.
 *
 * The threads end a moment after the last vault was closed; a vault that is opened meanwhile finds
 * them running.
 *
 * Invariant: closing a vault's pool waits for its tasks in flight, because a task that is cut off
 * could still write to a slab that has another owner.
 */
import assert from "node:assert/strict";
import { availableParallelism } from "node:os";
import type { Piscina } from "piscina";
import { TidemarkError } from "../errors.ts";
import { fromHex, sameBytes } from "../store/format/checksum.ts";
import type { DigestName, VaultDocument } from "../store/format/documents.ts";
import { workerTiming } from "../timing.ts";
import { fetchGeometry, type SlabGeometry, SlabPool, SlabShare, scanGeometry } from "./slabs.ts";
import { compiledKernels } from "./wasm-kernels.ts";
import type {
  CompressTask,
  DecodeTask,
  ScanResult,
  ScanTask,
  SealTask,
  WorkerSetup,
  WorkerTask,
} from "./worker-tasks.ts";

/** What the threads have to know of a vault. */
interface VaultParameters {
  readonly blockBytes: number;
  readonly digest: DigestName;
  readonly digestKey: Uint8Array;
}

interface ThreadsOptions {
  readonly workers: number;
  /** Of the slabs for scanning, and of those for fetching. */
  readonly geometry: SlabGeometry;
  readonly fetchGeometry: SlabGeometry;
}

/** One thread a core: hashing and compression keep each of them busy. */
export const workersDefault: number = Math.min(availableParallelism(), 8);

/** Threads and slabs. */
class Threads {
  /** By number of threads, those that vaults share. */
  static readonly #shared = new Map<number, Threads>();
  /** What scans lease. */
  readonly slabs: SlabPool;
  /** What fetches lease. */
  readonly fetches: SlabPool;
  /** Piscina is loaded by the first pool only: loading it takes longer than to list points does. */
  readonly pool: Promise<Piscina<WorkerTask, ScanResult | undefined>>;
  #users = 0;
  #ending: NodeJS.Timeout | undefined;

  constructor({ workers, geometry, fetchGeometry: fetches }: ThreadsOptions) {
    this.slabs = new SlabPool(geometry);
    this.fetches = new SlabPool(fetches);
    const setup: WorkerSetup = { slabs: this.slabs.shared, fetches: this.fetches.shared, code: compiledKernels() };
    this.pool = import("piscina").then(
      ({ Piscina }) =>
        new Piscina({
          filename: import.meta.resolve("#worker"),
          name: "run",
          // Piscina tries `require` before `import`. Node aborts a process that ends while a thread
          // requires an ES module; with this flag such a `require` fails at once.
          execArgv: ["--no-experimental-require-module"],
          minThreads: workers,
          maxThreads: workers,
          // A slab has at most one task at a time, and so has a lane: leases and lanes bound the queue.
          maxQueue: Infinity,
          workerData: setup,
        }),
    );
    // A failure reaches the callers of `run` and `end`.
    this.pool.catch(() => undefined);
  }

  /** The threads that vaults with as many of them share; each caller leaves them once. */
  static join(workers: number): Threads {
    let threads = Threads.#shared.get(workers);
    if (threads === undefined) {
      threads = new Threads({ workers, geometry: scanGeometry, fetchGeometry });
      Threads.#shared.set(workers, threads);
    }
    clearTimeout(threads.#ending);
    threads.#users += 1;
    return threads;
  }

  /** Vaults that use them now. */
  get users(): number {
    return this.#users;
  }

  leave(): void {
    this.#users -= 1;
    if (this.#users > 0) return;
    this.#ending = setTimeout(() => {
      for (const [workers, threads] of Threads.#shared) if (threads === this) Threads.#shared.delete(workers);
      this.end().catch(() => undefined);
    }, workerTiming.lingerMs).unref();
  }

  async end(): Promise<void> {
    await (await this.pool).close();
  }
}

/** The worker pool as one vault uses it. */
export class WorkerPool implements AsyncDisposable {
  readonly slabs: SlabShare;
  /**
   * A scan that needs to fetch never waits for a slab that a scan holds. A fetch never waits for
   * another fetch.
   */
  readonly fetches: SlabShare;
  readonly blockBytes: number;
  readonly #threads: Threads;
  readonly #digest: DigestName;
  readonly #digestKey: Uint8Array;
  readonly #release: () => Promise<void> | void;
  readonly #inFlight = new Set<Promise<unknown>>();
  #closed: Promise<void> | undefined;

  private constructor(
    threads: Threads,
    { blockBytes, digest, digestKey }: VaultParameters,
    release: () => Promise<void> | void,
  ) {
    const blocks = threads.slabs.shared.geometry.slabBytes / blockBytes;
    assert(Number.isInteger(blocks), "a slab holds whole blocks");
    this.slabs = new SlabShare(threads.slabs, () => threads.users);
    this.fetches = new SlabShare(threads.fetches, () => threads.users);
    this.blockBytes = blockBytes;
    this.#threads = threads;
    this.#digest = digest;
    this.#digestKey = digestKey;
    this.#release = release;
  }

  /** A pool with threads and slabs of its own. They load their WASM while the caller goes on. */
  static open(options: ThreadsOptions & VaultParameters): WorkerPool {
    const threads = new Threads(options);
    return new WorkerPool(threads, options, async () => await threads.end());
  }

  /** The pool of a vault, whose threads other vaults share. */
  static forVault({ blockBytes, digest, digestKey }: VaultDocument, workers: number): WorkerPool {
    const threads = Threads.join(workers);
    return new WorkerPool(threads, { blockBytes, digest, digestKey: fromHex(digestKey) }, () => threads.leave());
  }

  async scan(task: Omit<ScanTask, "kind" | "digest">): Promise<ScanResult> {
    this.#threads.slabs.placeKeys(task.slab, this.#digestKey);
    const result = await this.#run({ kind: "scan", digest: this.#digest, ...task });
    if (result === undefined) throw new TidemarkError("INTERNAL", "a scan gave no result");
    return result;
  }

  async compress(task: Omit<CompressTask, "kind">): Promise<void> {
    await this.#run({ kind: "compress", ...task });
  }

  async decode(task: Omit<DecodeTask, "kind" | "digest" | "other">): Promise<void> {
    this.#threads.fetches.placeKeys(task.slab, this.#digestKey);
    await this.#run({ kind: "decode", digest: this.#digest, ...task });
  }

  /**
   * Decodes chunks of the vault of `source` that are copied to this one, in a slab of this pool, and
   * digests them for this one where that has other digests.
   */
  async decodeFrom(source: WorkerPool, task: Omit<DecodeTask, "kind" | "digest" | "other">): Promise<void> {
    this.#threads.fetches.placeKeys(task.slab, source.#digestKey, this.#digestKey);
    const other = this.hasDigestsOf(source) ? undefined : this.#digest;
    await this.#run({ kind: "decode", digest: source.#digest, other, ...task });
  }

  /** Whether a chunk has the same digest in both vaults. */
  hasDigestsOf(other: WorkerPool): boolean {
    return this.#digest === other.#digest && sameBytes(this.#digestKey, other.#digestKey);
  }

  async seal(task: Omit<SealTask, "kind">): Promise<void> {
    await this.#run({ kind: "seal", ...task });
  }

  async #run(task: WorkerTask): Promise<ScanResult | undefined> {
    assert(this.#closed === undefined, "a pool is not used after it was closed");
    const running = this.#threads.pool.then(async (pool) => await pool.run(task));
    this.#inFlight.add(running);
    try {
      return await running;
    } catch (error) {
      throw new TidemarkError("INTERNAL", `a worker thread failed while it ran ${task.kind}`, {
        remedy: "this is a fault in Tidemark: report it with --debug output; nothing was committed",
        cause: error,
      });
    } finally {
      this.#inFlight.delete(running);
    }
  }

  /** Waits for the tasks in flight, then leaves the threads. Idempotent. */
  async close(): Promise<void> {
    this.#closed ??= this.#finish();
    await this.#closed;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #finish(): Promise<void> {
    await Promise.allSettled(this.#inFlight);
    await this.#release();
  }
}
