/**
 * Random access to a recovery point: a block device over the vault, for disks of every size. A
 * read fetches the blocks that it touches, and read-ahead fetches what a sequential reader is
 * about to ask for. Every chunk is proved before a byte of it is delivered.
 *
 *     read ─► cache: present? copied at once
 *               └─ absent ─► BlockFetcher ─► map ─► store ─► proved ─► cache ─► copied
 *     ReadAhead notes every read ─► ranges ─► BlockFetcher
 *
 * A read waits as long as the sink tries to reach the store, then fails; the next read tries
 * again. Damage fails the reads of the damaged granules only, and is reported once.
 *
 * Memory: the cache's capacity, and the map's leaves (see `MountedMap`).
 */
import type { DeviceExtent } from "../../device.ts";
import { TidemarkError } from "../../errors.ts";
import type { WorkerPool } from "../../pipeline/worker-pool.ts";
import type { PointMap } from "../../store/map/point-map.ts";
import type { Store } from "../../store/store.ts";
import type { Extent } from "../../volume.ts";
import { BlockCache } from "./block-cache.ts";
import { BlockFetcher } from "./block-fetcher.ts";
import type { BlockKeeper } from "./block-keeper.ts";
import { MountedMap } from "./mounted-map.ts";
import { PendingRead } from "./pending-read.ts";
import { ReadAhead, type Stream } from "./read-ahead.ts";
import { ReadOnlyDevice } from "./read-only-device.ts";

/** The smallest range that is fetched ahead. */
const windowBytesMin: number = 256 * 1024;
/** Damaged extents that are remembered, so that each is reported once. */
const toldMax = 10_000;

export interface MountedPointOptions {
  readonly store: Store;
  readonly workerPool: WorkerPool;
  readonly map: PointMap;
  /** Runs that the map has. */
  readonly runs: number;
  readonly blockBytes: number;
  /** At least `cacheBlocksMin` blocks. */
  readonly cacheBytes: number;
  /** For messages. */
  readonly disk: string;
  readonly sequence: number;
  /** Called once with each extent that cannot be read back. */
  readonly onDamage: (extent: Extent, error: TidemarkError) => void;
  /** Keeps what is fetched; undefined: only the cache does. */
  readonly keeper?: BlockKeeper | undefined;
}

/** What has been read so far. */
export interface ReadCounts {
  /** Bytes delivered to readers. */
  readonly bytesRead: number;
  /** Bytes read from the store. */
  readonly bytesFetched: number;
  /** Blocks that readers found in memory, and blocks that they had to wait for. */
  readonly cacheHits: number;
  readonly cacheMisses: number;
}

export class MountedPoint extends ReadOnlyDevice {
  readonly description: string;
  readonly sizeBytes: number;
  readonly #blockBytes: number;
  readonly #map: MountedMap;
  readonly #cache: BlockCache;
  readonly #fetcher: BlockFetcher;
  readonly #readAhead: ReadAhead;
  readonly #ending = new AbortController();
  readonly #onDamage: MountedPointOptions["onDamage"];
  readonly #told = new Set<number>();
  /** Calls of `ahead` that wait. */
  readonly #waitForRoom: (() => void)[] = [];
  #bytesRead = 0;
  #cacheHits = 0;
  #cacheMisses = 0;

  constructor(options: MountedPointOptions) {
    super();
    const { store, workerPool, map, blockBytes, cacheBytes, disk, sequence } = options;
    const { signal } = this.#ending;
    this.description = `point ${sequence} of disk ${JSON.stringify(disk)}`;
    this.sizeBytes = map.volumeBytes;
    this.#blockBytes = blockBytes;
    this.#onDamage = options.onDamage;
    this.#map = new MountedMap(map, options.runs, signal);
    this.#cache = new BlockCache(blockBytes, cacheBytes);
    this.#fetcher = new BlockFetcher({
      store,
      workerPool,
      map: this.#map,
      cache: this.#cache,
      disk,
      point: String(sequence),
      signal,
      onDamage: (extent, error) => this.#tell(extent, error),
      onAheadRoom: () => {
        for (const stream of this.#readAhead.active()) this.#fetchAhead(stream);
        for (const go of this.#waitForRoom.splice(0)) go();
      },
      keeper: options.keeper,
    });
    const { job, all } = this.#fetcher.aheadBytesMax;
    this.#readAhead = new ReadAhead({
      sizeBytes: this.sizeBytes,
      windowBytesMin: Math.max(blockBytes, Math.min(windowBytesMin, job)),
      windowBytesMax: job,
      aheadBytesMax: all,
    });
  }

  /** What has been read so far. */
  get counts(): ReadCounts {
    return {
      bytesRead: this.#bytesRead,
      bytesFetched: this.#fetcher.bytesFetched,
      cacheHits: this.#cacheHits,
      cacheMisses: this.#cacheMisses,
    };
  }

  /** Memory that blocks take, those on their way included. */
  get cachedBytes(): number {
    return this.#cache.heldBytes;
  }

  tryRead(offset: number, into: Uint8Array): boolean {
    const length = into.byteLength;
    if (this.#ending.signal.aborted) return false;
    let blocks = 0;
    for (let done = 0; done < length; ) {
      const at = offset + done;
      const from = at % this.#blockBytes;
      const bytes = this.#cache.find((at - from) / this.#blockBytes);
      if (bytes === undefined) return false;
      const count = Math.min(this.#blockBytes - from, length - done);
      bytes.copy(into, done, from, from + count);
      done += count;
      blocks += 1;
    }
    this.#cacheHits += blocks;
    this.#noteRead(offset, length);
    return true;
  }

  /** Errors: DAMAGED, those of the store, INTERRUPTED once it is being closed. */
  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#throwIfClosed();
    const length = into.byteLength;
    const read = new PendingRead();
    for (let done = 0; done < length; ) {
      const at = offset + done;
      const from = at % this.#blockBytes;
      const block = (at - from) / this.#blockBytes;
      const count = Math.min(this.#blockBytes - from, length - done);
      const bytes = this.#cache.find(block);
      if (bytes === undefined) {
        this.#cacheMisses += 1;
        this.#fetcher.request(block, from, into.subarray(done, done + count), read);
      } else {
        this.#cacheHits += 1;
        bytes.copy(into, done, from, from + count);
      }
      done += count;
    }
    this.#fetcher.start();
    this.#noteRead(offset, length);
    read.arrived();
    await read.done;
  }

  /**
   * Begins to fetch a part of [offset, end), as long as may be fetched ahead at a time, when there is
   * room for it. Returns the byte up to which everything is on its way, or was not needed. `offset`
   * is a block's first byte. Errors: DEVICE_FAILED once it is being closed.
   */
  async ahead(offset: number, end: number): Promise<number> {
    for (;;) {
      this.#throwIfClosed();
      const reached = this.#fetcher.ahead(offset / this.#blockBytes, Math.ceil(end / this.#blockBytes));
      if (reached * this.#blockBytes > offset) return Math.min(end, reached * this.#blockBytes);
      await new Promise<void>((go) => this.#waitForRoom.push(go));
    }
  }

  /** Waits for what is being fetched now. */
  async settled(): Promise<void> {
    await this.#fetcher.settled();
  }

  /** Holes and zeros are holes. */
  extents(offset: number, length: number, countMax: number): DeviceExtent[] {
    this.#throwIfClosed();
    return countMax < 1 ? [] : this.#map.extents(offset, length, countMax);
  }

  async lookUp(offset: number, length: number, countMax: number): Promise<DeviceExtent[]> {
    this.#throwIfClosed();
    return countMax < 1 ? [] : await this.#map.lookUp(offset, length, countMax);
  }

  /** Ends reads under way with INTERRUPTED, and waits for them. Idempotent. */
  async close(): Promise<void> {
    this.#ending.abort();
    for (const go of this.#waitForRoom.splice(0)) go();
    await this.#fetcher.close();
    await this.#map.close();
  }

  #noteRead(offset: number, length: number): void {
    this.#bytesRead += length;
    const stream = this.#readAhead.note(offset, length);
    if (stream !== undefined) this.#fetchAhead(stream);
  }

  #fetchAhead(stream: Stream): void {
    for (;;) {
      const range = this.#ending.signal.aborted ? undefined : this.#readAhead.next(stream);
      if (range === undefined) return;
      const from = Math.floor(range.from / this.#blockBytes);
      const reached = this.#fetcher.ahead(from, Math.ceil(range.end / this.#blockBytes)) * this.#blockBytes;
      if (reached <= range.from) return;
      stream.aheadTo = reached;
    }
  }

  #tell(extent: Extent, error: TidemarkError): void {
    if (this.#told.has(extent.offset) || this.#told.size >= toldMax) return;
    this.#told.add(extent.offset);
    this.#onDamage(extent, error);
  }

  #throwIfClosed(): void {
    if (!this.#ending.signal.aborted) return;
    throw new TidemarkError("DEVICE_FAILED", `${this.description} is not mounted any more`, {
      remedy: "mount the point again with `tidemark mount`",
    });
  }
}
