/**
 * Dirty bitmap: which granules of a disk changed. It has one bit for each granule, in blocks that
 * take memory from their first mark on, a count of marks for each region of 4 MiB, and one bit for
 * each region with a count above zero.
 *
 *     granule bits    1 bit / 4 KiB      1 TiB of disk: 4 KiB for each 128 MiB that was ever marked, 32 MiB at most
 *     region counts   2 bytes / 4 MiB                   512 KiB
 *     region bits     1 bit / 4 MiB                      32 KiB
 *
 * A walk over the marks visits only regions that hold one and skips the rest 32 at a time: for a
 * quiet disk of 1 TiB it reads 32 KiB. It is no snapshot: a walk that yields sees marks made
 * meanwhile in the part that it has not reached.
 */
import assert from "node:assert/strict";
import { granuleBytes, volumeBytesMax } from "../../limits.ts";
import type { Extent } from "../../volume.ts";

/** The unit in which marks are summed up here and made durable in the tracking file. */
export const regionBytes: number = 4 * 1024 * 1024;

/** Granules of a region; every region but the disk's last is whole. */
export const regionGranules: number = regionBytes / granuleBytes;

/** Bytes that the marks of one region take, here and in files. */
export const regionBitmapBytes: number = regionGranules / 8;

const wordBits = 32;
const regionWords = regionGranules / wordBits;
/** A block holds whole regions: the marks of 128 MiB of the disk. */
const blockWords = 32 * regionWords;
assert(Number.isInteger(regionWords), "a region holds whole words");
assert(regionGranules < 2 ** 16, "the marks of a region fit in its count");

/**
 * The marks of one disk. Every range given must lie inside the disk: marking outside of it is a
 * fault of the caller and asserts.
 */
export class DirtyBitmap {
  #sizeBytes = 0;
  #granules = 0;
  #count = 0;
  readonly #blocks: (Int32Array | undefined)[] = [];
  #regionCounts = new Uint16Array(0);
  #regionBits = new Int32Array(0);

  constructor(sizeBytes: number) {
    this.grow(sizeBytes);
  }

  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** Granules of the disk, the last perhaps partial. */
  get granules(): number {
    return this.#granules;
  }

  /** Granules that are marked. */
  get count(): number {
    return this.#count;
  }

  /** Marks every granule that [offset, offset + length) touches. Allocates at the first mark of a block only. */
  mark(offset: number, length: number): void {
    const end = offset + length;
    assert(offset >= 0 && length >= 0 && end <= this.#sizeBytes, "the range lies outside of the disk");
    if (length === 0) return;
    const first = Math.floor(offset / granuleBytes);
    const last = Math.floor((end - 1) / granuleBytes);
    if (first === last) {
      this.#markWord(first >>> 5, 1 << (first & 31));
      return;
    }
    const firstWord = first >>> 5;
    const lastWord = last >>> 5;
    const headMask = -1 << (first & 31);
    const tailMask = -1 >>> (31 - (last & 31));
    if (firstWord === lastWord) {
      this.#markWord(firstWord, headMask & tailMask);
      return;
    }
    this.#markWord(firstWord, headMask);
    for (let word = firstWord + 1; word < lastWord; word += 1) this.#markWord(word, -1);
    this.#markWord(lastWord, tailMask);
  }

  isMarked(granule: number): boolean {
    return granule >= 0 && granule < this.#granules && (this.#word(granule >>> 5) & (1 << (granule & 31))) !== 0;
  }

  /**
   * True when one of `granules` granules from `firstGranule` on is marked; what lies behind the
   * disk's end is not.
   */
  anyMarked(firstGranule: number, granules: number): boolean {
    return this.#next(firstGranule, Math.min(firstGranule + granules, this.#granules)) !== undefined;
  }

  /** Takes the marks off `granules` granules from `firstGranule` on. */
  clear(firstGranule: number, granules: number): void {
    const end = Math.min(firstGranule + granules, this.#granules);
    let granule = firstGranule;
    while (granule < end) {
      const word = granule >>> 5;
      if (at(this.#regionCounts, Math.floor(word / regionWords)) === 0) {
        granule = (Math.floor(granule / regionGranules) + 1) * regionGranules;
        continue;
      }
      const wordEnd = (word + 1) * wordBits;
      const mask = end < wordEnd ? (-1 << (granule & 31)) & (-1 >>> (wordEnd - end)) : -1 << (granule & 31);
      this.#clearWord(word, mask);
      granule = wordEnd;
    }
  }

  /** Takes all marks off, in time proportional to the regions that hold one. */
  clearAll(): void {
    for (let region = this.#nextRegion(0); region !== undefined; region = this.#nextRegion(region + 1)) {
      this.#wordsOf(region)?.fill(0);
      this.#regionCounts[region] = 0;
    }
    this.#regionBits.fill(0);
    this.#count = 0;
  }

  /**
   * Marks what `other` marks, in time proportional to the regions that `other` holds marks in.
   * `other` is of a disk no larger than this.
   */
  or(other: DirtyBitmap): void {
    assert(other.#granules <= this.#granules, "the marks of a larger disk do not fit");
    for (let region = other.#nextRegion(0); region !== undefined; region = other.#nextRegion(region + 1)) {
      const end = (region + 1) * regionWords;
      for (let word = region * regionWords; word < end; word += 1) {
        const bits = other.#word(word);
        if (bits !== 0) this.#markWord(word, bits);
      }
    }
  }

  /**
   * What is marked, from `fromGranule` on: sorted, disjoint, never adjacent, bounded by granules
   * and by the disk's end. Marks may change between two steps; each extent is true when it is
   * given.
   */
  *extents(fromGranule = 0): Generator<Extent, void, undefined> {
    let first = this.#next(fromGranule, this.#granules);
    while (first !== undefined) {
      const end = this.#runEnd(first);
      const offset = first * granuleBytes;
      yield { offset, length: Math.min(end * granuleBytes, this.#sizeBytes) - offset };
      first = this.#next(end, this.#granules);
    }
  }

  /**
   * Copies the marks of one region into `into`, 128 bytes: granule i of the region is bit i % 8 of
   * byte i / 8.
   */
  readRegion(region: number, into: Uint8Array): void {
    const words = this.#wordsOf(region);
    if (words === undefined) into.fill(0);
    else into.set(new Uint8Array(words.buffer, words.byteOffset, regionBitmapBytes));
  }

  /**
   * Marks what `bits`, in the form of `readRegion`, marks; bits behind the disk's end are ignored.
   */
  markRegion(region: number, bits: Uint8Array): void {
    for (let index = 0; index < regionWords; index += 1) {
      const byte = index * 4;
      const value =
        at(bits, byte) | (at(bits, byte + 1) << 8) | (at(bits, byte + 2) << 16) | (at(bits, byte + 3) << 24);
      const word = region * regionWords + index;
      const room = this.#granules - word * wordBits;
      if (value !== 0 && room > 0) this.#markWord(word, room < wordBits ? value & (-1 >>> (wordBits - room)) : value);
    }
  }

  /** Indexes of the regions that hold a mark, ascending. */
  *regions(): Generator<number, void, undefined> {
    for (let region = this.#nextRegion(0); region !== undefined; region = this.#nextRegion(region + 1)) yield region;
  }

  /** Makes room for a disk that has grown. What is new is not marked. Returns the bitmap itself. */
  grow(sizeBytes: number): this {
    assert(
      Number.isSafeInteger(sizeBytes) && sizeBytes >= this.#sizeBytes && sizeBytes <= volumeBytesMax,
      `${sizeBytes} is no size of a disk`,
    );
    this.#sizeBytes = sizeBytes;
    this.#granules = Math.ceil(sizeBytes / granuleBytes);
    const regions = Math.ceil(sizeBytes / regionBytes);
    const counts = new Uint16Array(regions);
    counts.set(this.#regionCounts);
    this.#regionCounts = counts;
    const bits = new Int32Array(Math.ceil(regions / wordBits));
    bits.set(this.#regionBits);
    this.#regionBits = bits;
    this.#blocks.length = Math.ceil((regions * regionWords) / blockWords);
    return this;
  }

  /** 32 granules. */
  #word(word: number): number {
    return this.#blocks[Math.floor(word / blockWords)]?.[word % blockWords] ?? 0;
  }

  /** The words of a region; undefined: its block was never marked. */
  #wordsOf(region: number): Int32Array | undefined {
    const from = region * regionWords;
    return this.#blocks[Math.floor(from / blockWords)]?.subarray(from % blockWords, (from % blockWords) + regionWords);
  }

  #markWord(word: number, mask: number): void {
    const block = (this.#blocks[Math.floor(word / blockWords)] ??= new Int32Array(blockWords));
    const before = at(block, word % blockWords);
    const added = mask & ~before;
    if (added === 0) return;
    block[word % blockWords] = before | added;
    const marks = bitsOf(added);
    const region = Math.floor(word / regionWords);
    const marksBefore = at(this.#regionCounts, region);
    if (marksBefore === 0) this.#regionBits[region >>> 5] = at(this.#regionBits, region >>> 5) | (1 << (region & 31));
    this.#regionCounts[region] = marksBefore + marks;
    this.#count += marks;
  }

  #clearWord(word: number, mask: number): void {
    const block = this.#blocks[Math.floor(word / blockWords)];
    const before = block?.[word % blockWords] ?? 0;
    const removed = before & mask;
    if (block === undefined || removed === 0) return;
    block[word % blockWords] = before & ~removed;
    const marks = bitsOf(removed);
    const region = Math.floor(word / regionWords);
    const marksLeft = at(this.#regionCounts, region) - marks;
    if (marksLeft === 0) this.#regionBits[region >>> 5] = at(this.#regionBits, region >>> 5) & ~(1 << (region & 31));
    this.#regionCounts[region] = marksLeft;
    this.#count -= marks;
  }

  /** The first marked granule of [from, end), or undefined. */
  #next(from: number, end: number): number | undefined {
    let granule = from;
    while (granule < end) {
      const region = Math.floor(granule / regionGranules);
      if (at(this.#regionCounts, region) === 0) {
        const marked = this.#nextRegion(region + 1, Math.ceil(end / regionGranules));
        if (marked === undefined) return undefined;
        granule = marked * regionGranules;
        continue;
      }
      const bits = this.#word(granule >>> 5) & (-1 << (granule & 31));
      if (bits !== 0) {
        const found = (granule >>> 5) * wordBits + lowestBit(bits);
        return found < end ? found : undefined;
      }
      granule = ((granule >>> 5) + 1) * wordBits;
    }
    return undefined;
  }

  /** The first granule behind `first`, which is marked, that is not marked, or the disk's end. */
  #runEnd(first: number): number {
    let granule = first;
    while (granule < this.#granules) {
      const bits = ~this.#word(granule >>> 5) & (-1 << (granule & 31));
      if (bits !== 0) return (granule >>> 5) * wordBits + lowestBit(bits);
      granule = ((granule >>> 5) + 1) * wordBits;
    }
    return this.#granules;
  }

  /**
   * The first region from `from` on that holds a mark, or undefined; the search may end at `end`.
   */
  #nextRegion(from: number, end: number = this.#regionCounts.length): number | undefined {
    const wordEnd = Math.ceil(end / wordBits);
    let mask = -1 << (from & 31);
    for (let word = from >>> 5; word < wordEnd; word += 1) {
      const bits = at(this.#regionBits, word) & mask;
      if (bits !== 0) return word * wordBits + lowestBit(bits);
      mask = -1;
    }
    return undefined;
  }
}

/** An element that exists: indexes come from granules that were checked. */
function at(array: Int32Array | Uint16Array | Uint8Array, index: number): number {
  return array[index] ?? 0;
}

function lowestBit(bits: number): number {
  return 31 - Math.clz32(bits & -bits);
}

function bitsOf(word: number): number {
  let bits = word - ((word >>> 1) & 0x55555555);
  bits = (bits & 0x33333333) + ((bits >>> 2) & 0x33333333);
  bits = (bits + (bits >>> 4)) & 0x0f0f0f0f;
  return Math.imul(bits, 0x01010101) >>> 24;
}
