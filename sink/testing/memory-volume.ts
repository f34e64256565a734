/**
 * In-memory volume: a small disk for tests, read by `Vault.replicate`.
 *
 * Memory: the disk's size. A scan sees runs of 4 KiB zeros as holes, as it does in a sparse file.
 */
import assert from "node:assert/strict";
import type { Consistency, Extent, Volume } from "../../engine/index.ts";

const granuleBytes = 4096;

/**
 * A disk whose content is an array of bytes.
 *
 * @example
 * ```ts
 * const volume = new MemoryVolume(new Uint8Array(1024 * 1024));
 * volume.bytes.set([1, 2, 3], 4096);
 * await vault.replicate({ disk: "test", volume });
 * ```
 */
export class MemoryVolume implements Volume {
  readonly description: string;
  /** The content. Write to it between replications; `replicate` reads it without a copy. */
  readonly bytes: Uint8Array;
  /** What points of this disk are reported as. Default: `crash`. */
  consistency: Consistency = "crash";

  /** `bytes` stays the caller's: the volume keeps a reference. */
  constructor(bytes: Uint8Array, description = "a disk in memory") {
    this.bytes = bytes;
    this.description = description;
  }

  sizeBytes(): Promise<number> {
    return Promise.resolve(this.bytes.length);
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    assert(offset + into.length <= this.bytes.length, "a read lies inside the volume");
    into.set(this.bytes.subarray(offset, offset + into.length));
    return Promise.resolve();
  }

  /** Yields every granule with a byte that is not zero. */
  async *allocated(sizeBytes: number): AsyncGenerator<Extent, void> {
    for (let offset = 0; offset < sizeBytes; offset += granuleBytes) {
      const length = Math.min(granuleBytes, sizeBytes - offset);
      if (this.bytes.subarray(offset, offset + length).some((byte) => byte !== 0))
        yield await Promise.resolve({ offset, length });
    }
  }

  endScan(): Promise<Consistency> {
    return Promise.resolve(this.consistency);
  }
}
