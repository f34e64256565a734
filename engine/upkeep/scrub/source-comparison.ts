/**
 * Comparison of a point with the disk that it was taken of.
 *
 * Chunks are compared byte by byte as they are proved, in the order of the store. What the point
 * has as zeros is compared in ascending order, and there only what the disk calls allocated is
 * read. The disk is asked for its extents once, in step with the zeros.
 *
 * Cost: one read a chunk, one question an extent of the disk. Memory: two buffers of 1 MiB.
 */
import { granuleBytes } from "../../limits.ts";
import { type ProvedBatch, pieceIsProved, pieceOutGranule } from "../../pipeline/point-reader.ts";
import type { Extent, Volume } from "../../volume.ts";

const zerosBytes = 1024 * 1024;

export class SourceComparison implements AsyncDisposable {
  readonly #source: Volume;
  readonly #limit: number;
  readonly #differs: (extent: Extent) => void;
  readonly #extents: AsyncIterator<Extent>;
  #extent: Extent | undefined;
  #buffer: Buffer | undefined;
  #zeros: Buffer | undefined;

  /** Bytes that only one of the two has are not compared. `differs` is told each difference. */
  constructor(source: Volume, sourceBytes: number, pointBytes: number, differs: (extent: Extent) => void) {
    this.#source = source;
    this.#limit = Math.min(sourceBytes, pointBytes);
    this.#differs = differs;
    this.#extents = (source.allocated?.(sourceBytes) ?? whole(sourceBytes))[Symbol.asyncIterator]();
  }

  /** Compares the proved pieces of a batch. */
  async chunks(batch: ProvedBatch): Promise<void> {
    for (let at = batch.from; at < batch.end; at += 1) {
      if (!pieceIsProved(batch, at)) continue;
      const piece = batch.order[at] ?? 0;
      const offset = (batch.pieces.starts[piece] ?? 0) * granuleBytes;
      const length = Math.min((batch.pieces.lengths[piece] ?? 0) * granuleBytes, this.#limit - offset);
      if (length <= 0) continue;
      const actual = Buffer.alloc(length);
      await this.#source.read(offset, actual);
      const out = pieceOutGranule(batch, at) * granuleBytes;
      if (actual.compare(batch.slab.out, out, out + length) !== 0) this.#differs({ offset, length });
    }
  }

  /** Compares granules [from, end), which are zeros in the point. Called in ascending order. */
  async zeros(from: number, end: number): Promise<void> {
    const limit = Math.min(end * granuleBytes, this.#limit);
    let at = from * granuleBytes;
    while (at < limit) {
      const extent = await this.#extentAt(at);
      if (extent === undefined || extent.offset >= limit) return;
      at = Math.max(at, extent.offset);
      const length = Math.min(zerosBytes, extent.offset + extent.length - at, limit - at);
      await this.#compareZeros(at, length);
      at += length;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#extents.return?.();
  }

  /** The first extent that ends behind `offset`. */
  async #extentAt(offset: number): Promise<Extent | undefined> {
    while (this.#extent === undefined || this.#extent.offset + this.#extent.length <= offset) {
      const next = await this.#extents.next();
      if (next.done === true) return undefined;
      this.#extent = next.value;
    }
    return this.#extent;
  }

  async #compareZeros(offset: number, length: number): Promise<void> {
    this.#buffer ??= Buffer.alloc(zerosBytes);
    this.#zeros ??= Buffer.alloc(zerosBytes);
    await this.#source.read(offset, this.#buffer.subarray(0, length));
    if (this.#buffer.compare(this.#zeros, 0, length, 0, length) !== 0) this.#differs({ offset, length });
  }
}

async function* whole(sizeBytes: number): AsyncGenerator<Extent, void> {
  if (sizeBytes > 0) yield await Promise.resolve({ offset: 0, length: sizeBytes });
}
