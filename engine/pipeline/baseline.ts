/**
 * Baseline of a scan: what the parent point holds, so that the scan can tell what changed.
 *
 * There are three: empty for a first point, local fingerprints if they belong to the parent, else
 * the vault's own map. All fill the same columns of a slab, so the scan does not know the
 * difference.
 */

import type { FingerprintReader } from "../disk/source/fingerprints.ts";
import { pageGranules } from "../disk/source/fingerprints.ts";
import { fingerprintBytes, granuleBytes } from "../limits.ts";
import type { Pieces, PointMap } from "../store/map/point-map.ts";
import { pieceDigest, pieceIsZero, windowGranules } from "../store/map/point-map.ts";
import type { Store } from "../store/store.ts";
import { PointReader, pieceIsProved, pieceOutGranule } from "./point-reader.ts";
import type { Slab } from "./slabs.ts";
import type { FingerprintSeed } from "./wasm-kernels.ts";
import type { WorkerPool } from "./worker-pool.ts";

export interface Baseline {
  /** What it tells of a block it tells of the whole block only: its chunks. */
  readonly blockwise: boolean;
  /**
   * First block at or after `block` in which the parent may hold anything but zeros, or Infinity.
   * Asked in ascending order.
   */
  nextHeld(block: number): Promise<number>;
  /**
   * Tells what the parent holds in `granules` granules from the volume's granule `first` on, for
   * the slab's granules from `slabGranule` on. `oldPrints` is zero there already. `expectedCount`
   * entries of the slab's `expected` are taken; returns how many are then. Asked in ascending
   * order.
   */
  expect(first: number, granules: number, slab: Slab, slabGranule: number, expectedCount: number): Promise<number>;
}

/** The baseline of a first point: zeros. */
export const emptyBaseline: Baseline = {
  blockwise: false,
  nextHeld: () => Promise.resolve(Infinity),
  expect: (_first, _granules, _slab, _slabGranule, expectedCount) => Promise.resolve(expectedCount),
};

/**
 * The baseline of granules that are known to have been written: every one that is looked at counts
 * as changed.
 */
export const changedBaseline: Baseline = {
  blockwise: false,
  nextHeld: () => Promise.resolve(Infinity),
  expect: (_first, granules, slab, slabGranule, expectedCount) => {
    // No content has this fingerprint.
    slab.oldPrints.fill(0xff, slabGranule * fingerprintBytes, (slabGranule + granules) * fingerprintBytes);
    return Promise.resolve(expectedCount);
  },
};

/** `inner`, asked only for what the volume names. */
export function namedOnly(inner: Baseline): Baseline {
  return {
    blockwise: inner.blockwise,
    nextHeld: () => Promise.resolve(Infinity),
    expect: async (...question) => await inner.expect(...question),
  };
}

/** The baseline that local fingerprints give. */
export class FingerprintBaseline implements Baseline {
  readonly blockwise = false;
  readonly #reader: FingerprintReader;
  readonly #blockGranules: number;
  readonly #pages: readonly number[];
  #broken = false;

  constructor(reader: FingerprintReader, blockBytes: number) {
    this.#reader = reader;
    this.#blockGranules = blockBytes / granuleBytes;
    this.#pages = [...reader.nonzeroPages()];
  }

  /**
   * True once the file turned out not to be what it was; the call that found it out threw, and the
   * cycle cannot go on with this baseline.
   */
  get broken(): boolean {
    return this.#broken;
  }

  async nextHeld(block: number): Promise<number> {
    let granule = block * this.#blockGranules;
    for (
      let index = firstAtOrAfter(this.#pages, Math.floor(granule / pageGranules));
      index < this.#pages.length;
      index += 1
    ) {
      const page = this.#pages[index] ?? 0;
      granule = Math.max(granule, page * pageGranules);
      const bytes = await this.#page(page);
      const from = (granule - page * pageGranules) * fingerprintBytes;
      // Almost always the very first byte answers.
      for (let at = from; at < bytes.length; at += 1) {
        if (bytes[at] !== 0)
          return Math.floor((page * pageGranules + Math.floor(at / fingerprintBytes)) / this.#blockGranules);
      }
    }
    return Infinity;
  }

  async expect(
    first: number,
    granules: number,
    slab: Slab,
    slabGranule: number,
    expectedCount: number,
  ): Promise<number> {
    if (first >= this.#reader.granules) return expectedCount;
    // A page holds whole blocks, so a block never lies in two.
    const page = Math.floor(first / pageGranules);
    const bytes = await this.#page(page);
    const at = (first - page * pageGranules) * fingerprintBytes;
    slab.oldPrints.set(bytes.subarray(at, at + granules * fingerprintBytes), slabGranule * fingerprintBytes);
    return expectedCount;
  }

  async #page(index: number): Promise<Uint8Array> {
    try {
      return await this.#reader.page(index);
    } catch (error) {
      this.#broken = true;
      throw error;
    }
  }
}

function firstAtOrAfter(sorted: readonly number[], value: number): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((sorted[middle] ?? 0) < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * The baseline that the parent's map gives when local fingerprints are missing. A chunk that shows
 * whole is proved by its digest, which costs no download; of a chunk of which only a part shows,
 * the digest says nothing, so it is fetched and fingerprinted.
 */
export class MapBaseline implements Baseline {
  readonly blockwise = true;
  readonly #map: PointMap;
  readonly #reader: PointReader;
  readonly #blockGranules: number;
  readonly #signal: AbortSignal | undefined;
  #from = -1;
  #pieces: Pieces | undefined;
  #at = 0;
  /** Fingerprints of the partial pieces of the window; empty until there are some. */
  #prints: Uint8Array = new Uint8Array(0);

  /** `seed` is the scan's. */
  constructor(options: {
    readonly map: PointMap;
    readonly store: Store;
    readonly workerPool: WorkerPool;
    readonly seed: FingerprintSeed;
    readonly blockBytes: number;
    readonly signal?: AbortSignal | undefined;
  }) {
    this.#map = options.map;
    this.#blockGranules = options.blockBytes / granuleBytes;
    this.#signal = options.signal;
    this.#reader = new PointReader({
      store: options.store,
      workerPool: options.workerPool,
      signal: options.signal,
      seed: options.seed,
    });
  }

  async nextHeld(block: number): Promise<number> {
    return Math.floor((await this.#map.nextMapped(block * this.#blockGranules, this.#signal)) / this.#blockGranules);
  }

  async expect(
    first: number,
    granules: number,
    slab: Slab,
    slabGranule: number,
    expectedCount: number,
  ): Promise<number> {
    const from = first - (first % windowGranules);
    if (from !== this.#from) await this.#enterWindow(from);
    const pieces = this.#pieces;
    const end = first + granules;
    let count = expectedCount;
    while (pieces !== undefined && this.#at < pieces.count) {
      const index = this.#at;
      const start = pieces.starts[index] ?? 0;
      const pieceEnd = start + (pieces.lengths[index] ?? 0);
      if (start >= end) break;
      if (pieceEnd > first && !pieceIsZero(pieces, index)) {
        if (showsWhole(pieces, index)) {
          slab.expected.start[count] = slabGranule + start - first;
          slab.expected.granules[count] = pieceEnd - start;
          pieceDigest(pieces, index, slab.expected.digests, count * 16);
          count += 1;
        } else {
          const bytes = this.#prints.subarray((start - from) * fingerprintBytes, (pieceEnd - from) * fingerprintBytes);
          slab.oldPrints.set(bytes, (slabGranule + start - first) * fingerprintBytes);
        }
      }
      if (pieceEnd > end) break;
      this.#at += 1;
    }
    return count;
  }

  async #enterWindow(from: number): Promise<void> {
    const pieces = await this.#map.window(from, Math.min(from + windowGranules, this.#map.granules), this.#signal);
    this.#from = from;
    this.#pieces = pieces;
    this.#at = 0;
    const partial: number[] = [];
    for (let index = 0; index < pieces.count; index += 1) {
      if (!pieceIsZero(pieces, index) && !showsWhole(pieces, index)) partial.push(index);
    }
    if (partial.length === 0) return;
    if (this.#prints.length === 0) this.#prints = new Uint8Array(windowGranules * fingerprintBytes);
    // What cannot be proved counts as changed and is shipped again: no content has this
    // fingerprint.
    this.#prints.fill(0xff);
    await this.#reader.readPieces(pieces, partial, (batch) => {
      for (let at = batch.from; at < batch.end; at += 1) {
        if (!pieceIsProved(batch, at)) continue;
        const piece = batch.order[at] ?? 0;
        const out = pieceOutGranule(batch, at);
        const prints = batch.slab.newPrints.subarray(
          out * fingerprintBytes,
          (out + (pieces.lengths[piece] ?? 0)) * fingerprintBytes,
        );
        this.#prints.set(prints, ((pieces.starts[piece] ?? 0) - from) * fingerprintBytes);
      }
      return Promise.resolve();
    });
  }
}

function showsWhole(pieces: Pieces, index: number): boolean {
  const chunkGranules = (pieces.leaves[index]?.chunkLengths[pieces.entries[index] ?? 0] ?? 0) + 1;
  return pieces.chunkOffsets[index] === 0 && pieces.lengths[index] === chunkGranules;
}
