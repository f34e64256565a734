/**
 * Synthetic volume: its content is computed when it is read, is always the same, and does not
 * compress. So a store can be filled with many gigabytes without a source of that size. Each
 * granule is seeded random data stamped with its number, so no two are alike.
 */
import type { Extent, Volume } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { randomWords } from "../image.ts";

const patternBytes: number = 1024 * 1024;

export class MadeVolume implements Volume {
  readonly description = "a disk that is made when it is read";
  readonly #sizeBytes: number;
  readonly #extents: readonly Extent[];
  readonly #pattern: Buffer;

  /**
   * What is outside `extents`, which are whole granules, is zero. `sizeBytes` is a multiple of 4
   * KiB.
   */
  constructor(sizeBytes: number, extents: readonly Extent[], seed: number) {
    this.#sizeBytes = sizeBytes;
    this.#extents = extents;
    const next = randomWords(seed);
    this.#pattern = Buffer.alloc(patternBytes);
    for (let at = 0; at < patternBytes; at += 4) this.#pattern.writeUInt32LE(next(), at);
  }

  async sizeBytes(): Promise<number> {
    return await Promise.resolve(this.#sizeBytes);
  }

  async *allocated(): AsyncGenerator<Extent, void> {
    yield* await Promise.resolve(this.#extents);
  }

  /** What is asked for begins with a granule, as everything that a scan reads does. */
  async read(offset: number, into: Uint8Array): Promise<void> {
    await Promise.resolve();
    const view = new DataView(into.buffer, into.byteOffset, into.byteLength);
    into.fill(0);
    for (const extent of this.#extents) {
      const end = Math.min(extent.offset + extent.length, offset + into.byteLength);
      for (let at = Math.max(extent.offset, offset); at < end; at += granuleBytes) {
        const from = at % patternBytes;
        into.set(this.#pattern.subarray(from, from + Math.min(granuleBytes, end - at)), at - offset);
        view.setUint32(at - offset, at / granuleBytes, true);
      }
    }
  }

  /** It never changes. */
  async endScan(): Promise<"crash"> {
    return await Promise.resolve("crash");
  }
}
