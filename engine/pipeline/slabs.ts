/**
 * Slabs: the pipeline's shared memory, and its back-pressure. A slab carries a batch through
 * reading, hashing and packing, or through fetching and proving. Threads get its number, never its
 * bytes.
 *
 * A reader leases a slab before it reads. The number of slabs is fixed, so waiting for a lease is
 * the back-pressure of the pipeline, and the size of the pool is its memory.
 *
 *     slab:  data │ out │ old fingerprints │ new fingerprints │ chunk table │ expectations
 *
 * `data` holds what was read (volume blocks, or stored payloads); `out` holds what a worker made of
 * it (compressed payloads, or plain bytes).
 */

import assert from "node:assert/strict";
import { throwIfAborted } from "../errors.ts";
import { digestBytes, fingerprintBytes, granuleBytes } from "../limits.ts";
import type { WasmMemory } from "./wasm-kernels.ts";
import { secretBytes, treeBytes } from "./wasm-kernels.ts";

export interface SlabGeometry {
  readonly slabCount: number;
  /** Bytes of `data`: a multiple of the block size of every vault. */
  readonly slabBytes: number;
  /** Bytes of `out`. Default: as many as of `data`. */
  readonly outBytes?: number;
}

/** What is shared with every worker thread. */
export interface SharedSlabs {
  readonly geometry: SlabGeometry;
  readonly memory: WasmMemory;
}

/** The views of one slab. Every thread makes its own over the same memory. */
export interface SlabViews {
  /**
   * 1 for each granule of `data` that was read; where 0 stands, the volume has a hole and `data`
   * has not been cleared.
   */
  readonly present: Uint8Array;
  readonly kernel: KernelRoom;
  readonly data: Buffer;
  readonly out: Buffer;
  /**
   * 16 bytes a granule: of the parent point, and of what was read. All zero means that the granule
   * is zero.
   */
  readonly oldPrints: Uint8Array;
  readonly newPrints: Uint8Array;
  readonly oldPrintWords: Uint32Array;
  readonly newPrintWords: Uint32Array;
  /** The batch's chunks, at most one a granule: see `ChunkTable`. */
  readonly chunks: ChunkTable;
  /**
   * Scan: what a lost local state makes us prove by digest, the parent's chunks. Decode for a copy:
   * the same chunks' digests in the other vault.
   */
  readonly expected: ChunkTable;
}

/** Addresses in the shared memory, and views, of what the WASM kernels work with. */
export interface KernelRoom {
  readonly data: number;
  readonly out: number;
  readonly newPrints: number;
  /** An expanded fingerprint seed, and the vault's digest key. */
  readonly secret: number;
  readonly secretView: Uint8Array;
  readonly key: number;
  readonly keyView: Uint8Array;
  /** The digest key of another vault, to which chunks are copied. */
  readonly otherKey: number;
  readonly otherKeyView: Uint8Array;
  /** One digest. */
  readonly digest: number;
  readonly digestView: Uint8Array;
  /** Scratch. */
  readonly tree: number;
}

/** A table of chunks, column by column. `start` counts granules from the slab's beginning. */
export interface ChunkTable {
  readonly start: Uint32Array;
  readonly granules: Uint32Array;
  /** Scan: 0 zero, 1 data, 2 data to be compressed. Decode: 1 proved, 2 damaged. */
  readonly state: Uint32Array;
  /** Length of the payload with `storedLz4Flag`, and where it lies (decode only). */
  readonly storedWords: Uint32Array;
  readonly offsets: Uint32Array;
  readonly digests: Uint8Array;
  readonly digestWords: Uint32Array;
}

const tableWords = 5;
const tableEntryBytes: number = tableWords * 4 + digestBytes;

function outBytesOf(geometry: SlabGeometry): number {
  return geometry.outBytes ?? geometry.slabBytes;
}

function granulesPerSlab(geometry: SlabGeometry): number {
  return Math.max(geometry.slabBytes, outBytesOf(geometry)) / granuleBytes;
}

const keyBytes = 32;
const kernelRoomBytes: number = secretBytes + 2 * keyBytes + digestBytes + treeBytes;
const wasmPageBytes = 65_536;

function slabStride(geometry: SlabGeometry): number {
  const perGranule = fingerprintBytes * 2 + tableEntryBytes * 2 + 1;
  const bytes = geometry.slabBytes + outBytesOf(geometry) + granulesPerSlab(geometry) * perGranule + kernelRoomBytes;
  return Math.ceil(bytes / granuleBytes) * granuleBytes;
}

/**
 * Slabs for scanning: 8 of 4 MiB, and as much for compressed payloads, make 64 MiB. A task is then
 * long enough to hide its dispatch.
 */
export const scanGeometry: SlabGeometry = { slabCount: 8, slabBytes: 4 * 1024 * 1024 };

/**
 * Slabs for fetching: 4 ranges of up to 6 MiB, and twice as much for what they decompress to, make
 * 72 MiB. Memory that is never touched costs nothing. Azurite reads a range of up to 4 MiB twice,
 * to checksum it, so longer ones come twice as fast.
 */
export const fetchGeometry: SlabGeometry = {
  slabCount: 4,
  slabBytes: 6 * 1024 * 1024,
  outBytes: 12 * 1024 * 1024,
};

export function allocateSlabs(geometry: SlabGeometry): SharedSlabs {
  assert(geometry.slabBytes % granuleBytes === 0, "a slab holds whole granules");
  const pages = Math.ceil((slabStride(geometry) * geometry.slabCount) / wasmPageBytes);
  return { geometry, memory: new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true }) };
}

export function viewSlabs(shared: SharedSlabs): SlabViews[] {
  const { geometry } = shared;
  const memory = shared.memory.buffer;
  const count = granulesPerSlab(geometry);
  return Array.from({ length: geometry.slabCount }, (_, index) => {
    let at = index * slabStride(geometry);
    const take = (length: number): number => {
      const from = at;
      at += length;
      return from;
    };
    const table = (): ChunkTable => {
      const columns = Array.from({ length: tableWords }, () => new Uint32Array(memory, take(count * 4), count));
      const [start, granules, state, storedWords, offsets] = columns;
      assert(
        start !== undefined &&
          granules !== undefined &&
          state !== undefined &&
          storedWords !== undefined &&
          offsets !== undefined,
      );
      const digestsAt = take(count * digestBytes);
      const digests = new Uint8Array(memory, digestsAt, count * digestBytes);
      return {
        start,
        granules,
        state,
        storedWords,
        offsets,
        digests,
        digestWords: new Uint32Array(memory, digestsAt, count * 4),
      };
    };
    const dataAt = take(geometry.slabBytes);
    const outAt = take(outBytesOf(geometry));
    const oldAt = take(count * fingerprintBytes);
    const newAt = take(count * fingerprintBytes);
    const secretAt = take(secretBytes);
    const keyAt = take(keyBytes);
    const otherKeyAt = take(keyBytes);
    const digestAt = take(digestBytes);
    const treeAt = take(treeBytes);
    return {
      kernel: {
        data: dataAt,
        out: outAt,
        newPrints: newAt,
        secret: secretAt,
        secretView: new Uint8Array(memory, secretAt, secretBytes),
        key: keyAt,
        keyView: new Uint8Array(memory, keyAt, keyBytes),
        otherKey: otherKeyAt,
        otherKeyView: new Uint8Array(memory, otherKeyAt, keyBytes),
        digest: digestAt,
        digestView: new Uint8Array(memory, digestAt, digestBytes),
        tree: treeAt,
      },
      data: Buffer.from(memory, dataAt, geometry.slabBytes),
      out: Buffer.from(memory, outAt, outBytesOf(geometry)),
      oldPrints: new Uint8Array(memory, oldAt, count * fingerprintBytes),
      newPrints: new Uint8Array(memory, newAt, count * fingerprintBytes),
      oldPrintWords: new Uint32Array(memory, oldAt, count * 4),
      newPrintWords: new Uint32Array(memory, newAt, count * 4),
      chunks: table(),
      expected: table(),
      present: new Uint8Array(memory, take(count), count),
    };
  });
}

/** A leased slab: its number and its views. It has one owner, which releases it once. */
export interface Slab extends SlabViews {
  readonly number: number;
}

/** Lends slabs. Waiters are served in order. */
export class SlabPool {
  readonly shared: SharedSlabs;
  readonly #slabs: readonly Slab[];
  readonly #free: Slab[];
  readonly #leased = new Set<Slab>();
  readonly #waiters: ((slab: Slab) => void)[] = [];

  constructor(geometry: SlabGeometry) {
    this.shared = allocateSlabs(geometry);
    this.#slabs = viewSlabs(this.shared).map((views, number) => ({ ...views, number }));
    this.#free = this.#slabs.toReversed();
  }

  get slabCount(): number {
    return this.#slabs.length;
  }

  get leasedCount(): number {
    return this.#leased.size;
  }

  /**
   * A slab if one is free. A caller that already holds slabs asks this way: two such callers that
   * wait would wait for each other.
   */
  tryAcquire(): Slab | undefined {
    const slab = this.#free.pop();
    if (slab !== undefined) this.#leased.add(slab);
    return slab;
  }

  async acquire(signal?: AbortSignal): Promise<Slab> {
    throwIfAborted(signal);
    const slab = this.#free.pop() ?? (await new Promise<Slab>((resolve) => this.#waiters.push(resolve)));
    this.#leased.add(slab);
    return slab;
  }

  /**
   * Lays the digest key of the vault whose content a slab holds into it, where the threads find it,
   * and the key of the vault to which the content is copied.
   */
  placeKeys(slab: number, digestKey: Uint8Array, otherKey?: Uint8Array): void {
    const { keyView, otherKeyView } = this.#slabs[slab]?.kernel ?? {};
    keyView?.set(digestKey);
    if (otherKey !== undefined) otherKeyView?.set(otherKey);
  }

  release(slab: Slab): void {
    assert(this.#leased.delete(slab), "a slab is released once, by its owner");
    const waiter = this.#waiters.shift();
    if (waiter === undefined) this.#free.push(slab);
    else waiter(slab);
  }
}

/**
 * What one vault leases of a pool that several vaults share. A vault whose store has fallen silent
 * keeps what it has leased, so it leaves a slab to each other vault: their cycles go on.
 */
export class SlabShare {
  readonly #pool: SlabPool;
  readonly #vaults: () => number;
  readonly #waiters: (() => void)[] = [];
  #leased = 0;

  /** `vaults`: how many use the pool now. */
  constructor(pool: SlabPool, vaults: () => number) {
    this.#pool = pool;
    this.#vaults = vaults;
  }

  get shared(): SharedSlabs {
    return this.#pool.shared;
  }

  get slabCount(): number {
    return this.#pool.slabCount;
  }

  /** Slabs that this vault has. */
  get leasedCount(): number {
    return this.#leased;
  }

  /** As `SlabPool.tryAcquire`. */
  tryAcquire(): Slab | undefined {
    const slab = this.#mayLease ? this.#pool.tryAcquire() : undefined;
    if (slab !== undefined) this.#leased += 1;
    return slab;
  }

  /** As `SlabPool.acquire`. */
  async acquire(signal?: AbortSignal): Promise<Slab> {
    while (!this.#mayLease) await new Promise<void>((resolve) => this.#waiters.push(resolve));
    this.#leased += 1;
    try {
      return await this.#pool.acquire(signal);
    } catch (error) {
      this.#returned();
      throw error;
    }
  }

  release(slab: Slab): void {
    this.#pool.release(slab);
    this.#returned();
  }

  get #mayLease(): boolean {
    return this.#leased < Math.max(1, this.slabCount + 1 - this.#vaults());
  }

  #returned(): void {
    this.#leased -= 1;
    this.#waiters.shift()?.();
  }
}
