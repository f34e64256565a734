/**
 * Change detection of a disk that others write: fingerprints of a sample of its blocks, compared
 * from scan to scan.
 *
 * Nothing tells this process which writes happen, so it reads. To keep the cost bounded it reads the
 * same random share of the disk's blocks each time (cluster sampling by `rankOf`). The share is
 * found once: it doubles until one scan takes its time budget, or is the whole disk. A disk that
 * says that it was not written since the last scan is not read.
 *
 * Not seen: a granule that was written with the same content, or that changed and changed back
 * between two scans. A cycle would not ship these either. Writes in the page cache of a mounted file
 * system are seen when the kernel has written them to the device, after about 30 s.
 *
 * Memory: 64 bytes for each block of 64 KiB that is read, at most 64 MiB, and 8 MiB for reading.
 */
import assert from "node:assert/strict";
import { constants } from "node:fs";
import { type FileHandle, open, stat } from "node:fs/promises";
import { type Extent, FileVolume, throwIfAborted } from "../../engine/index.ts";
import {
  fingerprintBytes,
  granuleBytes,
  type MeasuredKernels,
  openKernels,
  sysfsFolder,
} from "../../engine/internal.ts";
import { ContentMeter } from "./content-meter.ts";
import { readWriteCounts, type WriteCounts } from "./diskstats.ts";
import type { ContentSample } from "./profile-lines.ts";
import { blockBytes, blockGranules, type ChangeSketch, isWithin, sketchOf } from "./sketch.ts";

/** Time that one scan may take. With a sample every 30 s that is a tenth of the time. */
export const scanMsMax = 3_000;
const blocksMax: number = 2 ** 20;
const shareFirst: number = 1 / 1_024;
const batchBlocks = 64;

/** What a scan found. */
export interface Scan {
  readonly changed: ChangeSketch;
  readonly content: ContentSample;
  /** As in `Baseline`, now. */
  readonly dataBytes: number;
  readonly readBytes: number;
  readonly ms: number;
}

/** What a disk held when a scanner opened it. */
export interface Baseline {
  readonly sizeBytes: number;
  /** Of the disk's blocks, the share that each scan reads. */
  readonly share: number;
  /** Bytes of granules that are not zero: an estimate from that share. */
  readonly dataBytes: number;
  readonly content: ContentSample;
}

interface Parts {
  readonly volume: FileVolume;
  /** A device is read past the cache, because a file system's writes to it do not go through that cache. */
  readonly direct: FileHandle | undefined;
  /** Where the kernel counts writes to the device. */
  readonly counters: string | undefined;
  readonly kernels: MeasuredKernels;
}

export class DiskScanner implements AsyncDisposable {
  readonly #parts: Parts;
  readonly #kernels: MeasuredKernels;
  readonly #printWords: Uint32Array;
  #content: ContentMeter;
  /** The blocks that are read, ascending; all of the share among the first `#blocksSeen` of the disk. */
  #blocks: number[] = [];
  #blocksSeen = 0;
  /** First word of the fingerprint of each granule of `#blocks`; 0 for a granule of zeros. */
  #prints: Uint32Array = new Uint32Array(0);
  /** Those of them that are not zero. */
  #dataGranules = 0;
  #mark: string | undefined;
  #baseline: Baseline | undefined;

  private constructor(parts: Parts) {
    const { kernels } = parts;
    this.#parts = parts;
    this.#kernels = kernels;
    this.#printWords = new Uint32Array(kernels.prints.buffer, kernels.prints.byteOffset, kernels.prints.length / 4);
    this.#content = new ContentMeter(kernels);
  }

  /**
   * Opens an image file or block device and reads what it holds.
   *
   * @throws SOURCE_NOT_FOUND, SOURCE_UNREADABLE, ACCESS_REFUSED; INTERRUPTED.
   */
  static async open(path: string, signal: AbortSignal, budgetMs: number = scanMsMax): Promise<DiskScanner> {
    const volume = await FileVolume.open(path);
    let direct: FileHandle | undefined;
    try {
      const stats = await stat(path, { bigint: true });
      const isDevice = stats.isBlockDevice();
      direct = isDevice ? await open(path, constants.O_RDONLY | constants.O_DIRECT) : undefined;
      const counters = isDevice ? `${sysfsFolder(stats.rdev)}/stat` : undefined;
      const kernels = openKernels(batchBlocks * blockBytes);
      const scanner = new DiskScanner({ volume, direct, counters, kernels });
      await scanner.#begin(budgetMs, signal);
      return scanner;
    } catch (error) {
      await direct?.close();
      await volume.close();
      throw error;
    }
  }

  get baseline(): Baseline {
    assert(this.#baseline !== undefined, "a scanner that is open has read the disk");
    return this.#baseline;
  }

  /** Writes to the disk since it was attached, where the kernel counts them. */
  async writes(): Promise<WriteCounts | undefined> {
    const { counters } = this.#parts;
    return counters === undefined ? undefined : await readWriteCounts(counters);
  }

  /** Reads the share again, and tells what has changed since the last time. */
  async scan(signal: AbortSignal): Promise<Scan> {
    const begun = performance.now();
    const { share } = this.baseline;
    const mark = await this.#quietMark();
    const changed: (readonly [block: number, mask: number])[] = [];
    let readBytes = 0;
    this.#content.begin();
    if (mark !== this.#mark || mark === undefined) {
      readBytes = await this.#pass(share, signal, (block, mask) => changed.push([block, mask]));
      this.#mark = mark;
    }
    const ms = performance.now() - begun;
    const [content, dataBytes] = [this.#content.taken, this.#dataBytes(share)];
    return { changed: sketchOf(share, changed), content, dataBytes, readBytes, ms };
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#parts.direct?.close();
    await this.#parts.volume.close();
  }

  /** Doubles the share until one scan of it takes the budget. */
  async #begin(budgetMs: number, signal: AbortSignal): Promise<void> {
    const sizeBytes = await this.#parts.volume.sizeBytes();
    const shareMax = Math.min(1, blocksMax / Math.max(1, Math.ceil(sizeBytes / blockBytes)));
    for (let share = Math.min(shareFirst, shareMax); ; share = Math.min(2 * share, shareMax)) {
      [this.#blocks, this.#blocksSeen, this.#prints] = [[], 0, new Uint32Array(0)];
      this.#dataGranules = 0;
      this.#mark = await this.#quietMark();
      // What a smaller share held is not known content for the larger one, which holds it too.
      this.#content = new ContentMeter(this.#kernels);
      const begun = performance.now();
      await this.#pass(share, signal);
      const content = this.#content.taken;
      const scanMs = performance.now() - begun - content.kernelMs;
      if (share < shareMax && 2 * scanMs <= budgetMs) continue;
      this.#baseline = { sizeBytes, share, dataBytes: this.#dataBytes(share), content };
      return;
    }
  }

  /** Looks at each block once and calls `onChange` with those that differ. Returns the bytes that were read. */
  async #pass(share: number, signal: AbortSignal, onChange?: (block: number, mask: number) => void): Promise<number> {
    const sizeBytes = await this.#parts.volume.sizeBytes();
    this.#choose(share, Math.ceil(sizeBytes / blockBytes));
    const data = new DataExtents(this.#parts.volume.allocated(sizeBytes));
    let readBytes = 0;
    for (let index = 0; index < this.#blocks.length; ) {
      throwIfAborted(signal);
      const first = this.#blocks[index] ?? 0;
      if (first * blockBytes >= sizeBytes) break;
      let count = 1;
      while (count < batchBlocks && this.#blocks[index + count] === first + count) count += 1;
      const from = first * blockBytes;
      const end = Math.min(from + count * blockBytes, sizeBytes);
      if (await data.meets(from, end)) {
        await this.#read(from, end);
        readBytes += end - from;
      } else this.#kernels.prints.fill(0);
      for (let at = 0; at < count; at += 1) {
        const mask = this.#compare(index + at, at * blockGranules);
        if (mask === 0) continue;
        this.#content.look(at * blockGranules, mask);
        onChange?.(first + at, mask);
      }
      index += count;
    }
    return readBytes;
  }

  /** Takes the share of the blocks by which the disk has grown. */
  #choose(share: number, blocks: number): void {
    for (let block = this.#blocksSeen; block < blocks; block += 1)
      if (isWithin(block, share) && this.#blocks.length < blocksMax) this.#blocks.push(block);
    this.#blocksSeen = Math.max(this.#blocksSeen, blocks);
    const words = this.#blocks.length * blockGranules;
    if (words === this.#prints.length) return;
    const wider = new Uint32Array(words);
    wider.set(this.#prints);
    this.#prints = wider;
  }

  /** Fills the kernels' data with [from, end) of the disk, and fingerprints it. */
  async #read(from: number, end: number): Promise<void> {
    const { volume, direct } = this.#parts;
    const { data, prints } = this.#kernels;
    const length = end - from;
    const granules = Math.ceil(length / granuleBytes);
    if (direct === undefined) await volume.read(from, data.subarray(0, length));
    // What a device does not read in full, read without the cache, is left to the plain way and its errors.
    else if ((await direct.read(data, 0, length, from)).bytesRead < length)
      await volume.read(from, data.subarray(0, length));
    data.fill(0, length, granules * granuleBytes);
    this.#kernels.fingerprint(0, granules);
    prints.fill(0, granules * fingerprintBytes);
  }

  /** The granules of a block that differ from the last time, and notes what they are now. */
  #compare(index: number, at: number): number {
    let mask = 0;
    for (let granule = 0; granule < blockGranules; granule += 1) {
      const print = this.#printWords[(at + granule) * (fingerprintBytes / 4)] ?? 0;
      const place = index * blockGranules + granule;
      const before = this.#prints[place];
      if (before === print) continue;
      this.#dataGranules += before === 0 ? 1 : print === 0 ? -1 : 0;
      this.#prints[place] = print;
      mask |= 1 << granule;
    }
    return mask;
  }

  #dataBytes(share: number): number {
    return Math.round((this.#dataGranules / share) * granuleBytes);
  }

  /** Equal marks: the disk was not written in between. Undefined: the system does not tell. */
  async #quietMark(): Promise<string | undefined> {
    const { counters, volume } = this.#parts;
    if (counters !== undefined) return (await readWriteCounts(counters))?.writtenBytes.toString();
    const { size, mtimeNs, ctimeNs } = await stat(volume.description, { bigint: true });
    return `${size} ${mtimeNs} ${ctimeNs}`;
  }
}

/** Sorted extents, asked about ranges in ascending order. */
class DataExtents {
  readonly #extents: AsyncIterator<Extent>;
  #next: Extent | undefined;
  #ended = false;

  constructor(extents: AsyncIterable<Extent>) {
    this.#extents = extents[Symbol.asyncIterator]();
  }

  /** Whether an extent reaches into [from, end). */
  async meets(from: number, end: number): Promise<boolean> {
    while (!this.#ended && (this.#next === undefined || this.#next.offset + this.#next.length <= from)) {
      const { done, value } = (await this.#extents.next()) as IteratorResult<Extent, undefined>;
      this.#ended = done === true;
      this.#next = value;
    }
    return this.#next !== undefined && this.#next.offset < end;
  }
}
