/**
 * Region marks of a tracking file, in memory: which regions of 4 MiB are marked, which of those
 * marks are durable, and which regions are hot (LRU).
 *
 *     want ─► page to write ─► compose ─► written and synced by the file ─► synced: durable
 *     cold ─► (the file syncs a header without the old bases) ─► clear ─► page to write ─► compose
 *
 * Invariant: a mark counts as durable only while every generation of its page that a crash could
 * bring back has it. So `compose` ends the durability of cleared marks before the page is written,
 * and `synced` begins it after the page has been synced.
 *
 * Memory: 2 bits and 8 bytes a region, 2 MiB for a disk of 1 TiB.
 */
import { regionBytes } from "./dirty-bitmap.ts";
import { bitsSet, byteAt, clearBit, hasBit, setBit } from "./region-bits.ts";
import { pageBitmapBytes, pageRegions, pagesOf, regionsOf } from "./tracking-format.ts";

/** Regions found cold at `tick`. A region that is touched later is not cleared. */
export interface ColdRegions {
  readonly regions: Uint32Array;
  readonly tick: number;
}

export class RegionMarks {
  /** Marks that the pages must bear, and those of them that are durable; page by page. */
  #wanted: Uint8Array;
  #durable: Uint8Array;
  /** When each region was last touched, as a count of touches. */
  #touched: Float64Array;
  #tick = 0;
  readonly #pagesToWrite = new Set<number>();

  constructor(sizeBytes: number) {
    this.#wanted = new Uint8Array(pagesOf(sizeBytes) * pageBitmapBytes);
    this.#durable = new Uint8Array(this.#wanted.length);
    this.#touched = new Float64Array(regionsOf(sizeBytes));
  }

  get pages(): number {
    return this.#wanted.length / pageBitmapBytes;
  }

  get hasPages(): boolean {
    return this.#pagesToWrite.size > 0;
  }

  /** Takes the marks that were recovered from the file, all durable; undefined: none. */
  adopt(bits: Uint8Array | undefined): void {
    if (bits === undefined) {
      this.#wanted.fill(0);
      this.#durable.fill(0);
    } else {
      this.#wanted.set(bits);
      this.#durable.set(bits);
    }
  }

  /** Counts the regions `first` to `last` as touched now; true when all are durably marked. */
  touch(first: number, last: number): boolean {
    this.#tick += 1;
    let durable = true;
    for (let region = first; region <= last; region += 1) {
      this.#touched[region] = this.#tick;
      if (!hasBit(this.#durable, region)) durable = false;
    }
    return durable;
  }

  /**
   * Marks a region; its page is then to be written. False when the mark is durable or is being
   * written. A region that is wanted now is not cleared by an earlier `cold`.
   */
  want(region: number): boolean {
    this.#tick += 1;
    this.#touched[region] = this.#tick;
    const page = Math.floor(region / pageRegions);
    if (hasBit(this.#wanted, region)) return this.#pagesToWrite.has(page) && !hasBit(this.#durable, region);
    setBit(this.#wanted, region);
    this.#pagesToWrite.add(page);
    return true;
  }

  /** Makes room for a disk that has grown and marks every new region. */
  grow(fromBytes: number, toBytes: number): void {
    const firstNew = Math.floor(fromBytes / regionBytes);
    this.#wanted = lengthened(this.#wanted, pagesOf(toBytes) * pageBitmapBytes);
    this.#durable = lengthened(this.#durable, this.#wanted.length);
    const touched = new Float64Array(regionsOf(toBytes));
    touched.set(this.#touched);
    this.#touched = touched;
    for (let region = firstNew; region < touched.length; region += 1) this.want(region);
  }

  /**
   * Marked regions that are durable, not needed, and not among the `hotMax` that were touched last.
   */
  cold(hotMax: number, isNeeded: (region: number) => boolean): ColdRegions {
    const marked = bitsSet(this.#wanted);
    if (marked.length <= hotMax) return { regions: new Uint32Array(), tick: this.#tick };
    const touches = Float64Array.from(marked, (region) => this.#touched[region] ?? 0).sort();
    // Regions of one touch are equally hot. To stay within the bound, all regions that were touched
    // together with the first cold one are cold.
    const coldest = touches[touches.length - hotMax - 1] ?? 0;
    const regions = Uint32Array.from(
      marked.filter(
        (region) => (this.#touched[region] ?? 0) <= coldest && hasBit(this.#durable, region) && !isNeeded(region),
      ),
    );
    return { regions, tick: this.#tick };
  }

  /** Clears regions that were found cold and have not been touched since. */
  clear({ regions, tick }: ColdRegions): void {
    for (const region of regions) {
      if ((this.#touched[region] ?? 0) > tick) continue;
      clearBit(this.#wanted, region);
      this.#pagesToWrite.add(Math.floor(region / pageRegions));
    }
  }

  /** The pages to write, which then count as being written. */
  takePages(): readonly number[] {
    const pages = [...this.#pagesToWrite];
    this.#pagesToWrite.clear();
    return pages;
  }

  /**
   * The bits of a page as they are to be written. Marks that the page no longer has stop being
   * durable here, before the write begins.
   */
  compose(page: number): Uint8Array {
    const start = page * pageBitmapBytes;
    const bits = this.#wanted.slice(start, start + pageBitmapBytes);
    for (let index = 0; index < bits.length; index += 1)
      this.#durable[start + index] = byteAt(this.#durable, start + index) & byteAt(bits, index);
    return bits;
  }

  /** A page with these bits has been written and synced. */
  synced(page: number, bits: Uint8Array): void {
    const start = page * pageBitmapBytes;
    for (let index = 0; index < bits.length; index += 1)
      this.#durable[start + index] = byteAt(this.#durable, start + index) | byteAt(bits, index);
  }
}

function lengthened(bytes: Uint8Array, length: number): Uint8Array {
  const longer = new Uint8Array(length);
  longer.set(bytes);
  return longer;
}
