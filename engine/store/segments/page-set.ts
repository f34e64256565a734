/**
 * Page set: a bitmap of a segment's pages of 512 bytes, one bit a page up to the last one in the
 * set. Memory: 256 KiB for a whole segment.
 */

import { pageAlignmentBytes } from "../../sink.ts";
import type { PageRun } from "../format/reclaim.ts";

const bitsMin = 4096;

export class PageSet {
  /** Bit p % 8 of byte p / 8 is page p. */
  #bits: Uint8Array = new Uint8Array(0);

  static ofRuns(runs: readonly PageRun[]): PageSet {
    const set = new PageSet();
    for (const { from, end } of runs) set.add(from, end);
    return set;
  }

  /** Bytes of memory. */
  get bytes(): number {
    return this.#bits.length;
  }

  /** Adds pages [from, end). */
  add(from: number, end: number): void {
    this.#fit(end);
    const bits = this.#bits;
    let page = from;
    for (; page < end && page % 8 !== 0; page += 1) bits[page >> 3] = (bits[page >> 3] ?? 0) | (1 << (page & 7));
    const wholeEnd = end - (end % 8);
    if (page < wholeEnd) {
      bits.fill(0xff, page >> 3, wholeEnd >> 3);
      page = wholeEnd;
    }
    for (; page < end; page += 1) bits[page >> 3] = (bits[page >> 3] ?? 0) | (1 << (page & 7));
  }

  /** Adds every page that the bytes [offset, offset + length) touch. */
  addBytes(offset: number, length: number): void {
    this.add(firstPage(offset), endPage(offset + length));
  }

  has(page: number): boolean {
    return ((this.#bits[page >> 3] ?? 0) & (1 << (page & 7))) !== 0;
  }

  /** Whether any page that the bytes [offset, offset + length) touch is in the set. */
  touches(offset: number, length: number): boolean {
    return this.touchesPages(firstPage(offset), endPage(offset + length));
  }

  /** Whether any of the pages [from, end) is in the set. */
  touchesPages(from: number, end: number): boolean {
    return this.#endOfGap(from, end) < end;
  }

  /** The end of the run that `page` lies in, or `page` itself when it is not in the set. */
  endOfRun(page: number): number {
    let end = page;
    while (this.has(end)) end += end % 8 === 0 && this.#bits[end >> 3] === 0xff ? 8 : 1;
    return end;
  }

  /** Pages in the set. */
  count(): number {
    let count = 0;
    for (const byte of this.#bits) count += ones[byte] ?? 0;
    return count;
  }

  /** The pages of the set, as ascending runs. */
  runs(): PageRun[] {
    const end = this.#bits.length * 8;
    const runs: PageRun[] = [];
    for (let page = 0; page < end; ) {
      const from = this.#endOfGap(page, end);
      if (from >= end) break;
      page = this.endOfRun(from);
      runs.push({ from, end: page });
    }
    return runs;
  }

  #endOfGap(page: number, end: number): number {
    let at = page;
    while (at < end && !this.has(at)) at += at % 8 === 0 && (this.#bits[at >> 3] ?? 0) === 0 ? 8 : 1;
    return Math.min(at, end);
  }

  #fit(end: number): void {
    const needed = Math.ceil(end / 8);
    if (needed <= this.#bits.length) return;
    const grown = new Uint8Array(Math.max(needed, Math.ceil(this.#bits.length * 1.5), bitsMin / 8));
    grown.set(this.#bits);
    this.#bits = grown;
  }
}

const ones: Uint8Array = Uint8Array.from({ length: 256 }, (_, byte) => byte.toString(2).replaceAll("0", "").length);

function firstPage(offset: number): number {
  return Math.floor(offset / pageAlignmentBytes);
}

function endPage(end: number): number {
  return Math.ceil(end / pageAlignmentBytes);
}
