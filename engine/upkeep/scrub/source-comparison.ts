/**
 * Comparison of a point with the disk that it was taken of.
 *
 * Chunks are compared byte by byte as they are proved, in the order of the store; neighbours on the
 * disk are read with one read. What the point has as zeros is compared in ascending order, and
 * there only what the disk calls allocated is read. The disk is asked for its extents once, in step
 * with the zeros.
 *
 * Cost: one read a MiB of neighbours, one question an extent of the disk. Memory: a buffer of 1 MiB
 * for each batch under way, and two for zeros.
 */
import { granuleBytes } from "../../limits.ts";
import { type ProvedBatch, pieceIsProved, pieceOutGranule } from "../../pipeline/point-reader.ts";
import type { Extent, Volume } from "../../volume.ts";

/** Most bytes that are read at once. */
const readBytes = 1024 * 1024;

export class SourceComparison implements AsyncDisposable {
  readonly #source: Volume;
  readonly #limit: number;
  readonly #differs: (extent: Extent) => void;
  readonly #extents: AsyncIterator<Extent>;
  #extent: Extent | undefined;
  /** Buffers that no batch uses. */
  readonly #spare: Buffer[] = [];
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
    const compared = this.#spare.pop() ?? Buffer.allocUnsafe(readBytes);
    try {
      for (let at = batch.from; at < batch.end; ) at = await this.#compareNeighbours(batch, at, compared);
    } finally {
      this.#spare.push(compared);
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
      const length = Math.min(readBytes, extent.offset + extent.length - at, limit - at);
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
    this.#zeros ??= Buffer.alloc(readBytes);
    const buffer = this.#spare.pop() ?? Buffer.allocUnsafe(readBytes);
    try {
      await this.#source.read(offset, buffer.subarray(0, length));
      if (buffer.compare(this.#zeros, 0, length, 0, length) !== 0) this.#differs({ offset, length });
    } finally {
      this.#spare.push(buffer);
    }
  }

  /**
   * Compares piece `order[from]` and those after it that follow it on the disk. Returns the first
   * that is not compared.
   */
  async #compareNeighbours(batch: ProvedBatch, from: number, buffer: Buffer): Promise<number> {
    const offset = pieceOffset(batch, from);
    let end = from;
    let length = 0;
    while (end < batch.end && pieceIsProved(batch, end) && pieceOffset(batch, end) === offset + length) {
      const bytes = pieceBytes(batch, end);
      if (length + bytes > readBytes) break;
      length += bytes;
      end += 1;
    }
    length = Math.min(length, this.#limit - offset);
    if (length <= 0) return Math.max(end, from + 1);
    await this.#source.read(offset, buffer.subarray(0, length));
    for (let at = from; at < end; at += 1) {
      const start = pieceOffset(batch, at) - offset;
      const stop = Math.min(start + pieceBytes(batch, at), length);
      if (stop <= start) break;
      const out = pieceOutGranule(batch, at) * granuleBytes;
      if (buffer.compare(batch.slab.out, out, out + stop - start, start, stop) !== 0)
        this.#differs({ offset: offset + start, length: stop - start });
    }
    return end;
  }
}

/** Where on the disk piece `order[at]` begins. */
function pieceOffset({ pieces, order }: ProvedBatch, at: number): number {
  return (pieces.starts[order[at] ?? 0] ?? 0) * granuleBytes;
}

function pieceBytes({ pieces, order }: ProvedBatch, at: number): number {
  return (pieces.lengths[order[at] ?? 0] ?? 0) * granuleBytes;
}

async function* whole(sizeBytes: number): AsyncGenerator<Extent, void> {
  if (sizeBytes > 0) yield await Promise.resolve({ offset: 0, length: sizeBytes });
}
