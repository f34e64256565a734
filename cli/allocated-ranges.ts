/**
 * Prefix sums over the extents of a volume that hold data: how many bytes have to be read below a
 * position.
 *
 * Cost: 16 bytes an extent, one binary search a question. A volume with more extents than the limit
 * counts as one extent from there on, so that memory is bounded: 2 MiB.
 */
import type { Volume } from "../engine/index.ts";

const extentsMax = 131_072;

export class AllocatedRanges {
  /** Where each extent begins, and the bytes of all extents before it. */
  readonly #offsets: number[] = [];
  readonly #sums: number[] = [];
  #endOffset = 0;
  #totalBytes = 0;

  /** Asks `volume` for its extents; a volume that tells none counts as one extent. */
  static async of(volume: Pick<Volume, "sizeBytes" | "allocated">): Promise<AllocatedRanges> {
    const sizeBytes = await volume.sizeBytes();
    const ranges = new AllocatedRanges();
    if (volume.allocated === undefined) {
      ranges.#add(0, sizeBytes);
      return ranges;
    }
    for await (const { offset, length } of volume.allocated(sizeBytes)) {
      const isLast = ranges.#offsets.length + 1 === extentsMax;
      ranges.#add(offset, isLast ? sizeBytes - offset : length);
      if (isLast) break;
    }
    return ranges;
  }

  get totalBytes(): number {
    return this.#totalBytes;
  }

  /** Bytes of extents in `[0, position)`. */
  bytesBelow(position: number): number {
    let low = 0;
    let high = this.#offsets.length;
    while (low < high) {
      const middle = Math.floor((low + high) / 2);
      if ((this.#offsets[middle] ?? 0) < position) low = middle + 1;
      else high = middle;
    }
    if (low === 0) return 0;
    const end = this.#offsets.length === low ? this.#endOffset : Infinity;
    const before = this.#sums[low - 1] ?? 0;
    const extentBytes = (this.#sums[low] ?? this.#totalBytes) - before;
    return before + Math.min(Math.min(position, end) - (this.#offsets[low - 1] ?? 0), extentBytes);
  }

  #add(offset: number, length: number): void {
    this.#offsets.push(offset);
    this.#sums.push(this.#totalBytes);
    this.#totalBytes += length;
    this.#endOffset = offset + length;
  }
}
