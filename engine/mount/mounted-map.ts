/**
 * The map of a mounted point: the pieces of a range for whoever reads it, and what is a hole for whoever asks.
 *
 * A device tells its extents at once, but a map is read from the store. So the outline of the map, runs of data and the holes between them, is kept for parts
 * of the disk that somebody was interested in. Where it is not known yet, a little data is claimed, which is always true enough, and the
 * outline is fetched meanwhile, a stretch ahead of who asks: who goes through a disk meets a wrong guess once.
 *
 * Memory: the leaves that `PointMap` keeps, and 4 MiB of outlines.
 */
import type { DeviceExtent } from "../device.ts";
import { granuleBytes } from "../limits.ts";
import { type Pieces, type PointMap, pieceIsZero } from "../map/point-map.ts";

/** Granules whose outline is fetched and kept together: 64 MiB of disk. */
const partGranules = 16_384;
const partBytes: number = partGranules * granuleBytes;
/** Words of outlines that are kept, and what a part costs besides its own. */
const outlineWordsMax: number = 1024 * 1024;
const partWords = 16;
/** Parts that are fetched ahead of who asks: 1 GiB of disk. */
const partsAhead = 16;
/** What is claimed to be data where nothing is known. */
const unknownBytes: number = 1024 * 1024;
/** Roots that are fetched at a time. */
const rootsInFlightMax = 8;

export class MountedMap {
  readonly volumeBytes: number;
  readonly granules: number;
  readonly #map: PointMap;
  readonly #signal: AbortSignal;
  /** Resolves when the last one who was let in is done with the map: two at a time would fetch the same leaves twice. */
  #turn: Promise<unknown>;
  /** By part: granules at which data begins and ends, alternating. The oldest first. */
  readonly #outlines = new Map<number, Uint32Array>();
  #outlineWords = 0;
  #isLooking = false;

  /** `runs`: how many the map has. Their roots are fetched side by side at once: the first read needs all of them. */
  constructor(map: PointMap, runs: number, signal: AbortSignal) {
    this.#map = map;
    this.#signal = signal;
    this.volumeBytes = map.volumeBytes;
    this.granules = map.granules;
    // What cannot be fetched is asked for again by whoever needs it, and told to him.
    this.#turn = Promise.allSettled(Array.from({ length: Math.min(runs, rootsInFlightMax) }, (_, first) => this.#readRoots(first, runs)));
    this.#lookAhead(0);
  }

  /** What granules [from, end) hold, at most `windowGranules` of them. Errors: DAMAGED, OBJECT_NOT_FOUND, FORMAT_UNSUPPORTED, those of the store. */
  pieces(from: number, end: number): Promise<Pieces> {
    const work = this.#turn.then(() => this.#map.window(from, end, this.#signal));
    this.#turn = work.catch(() => undefined);
    return work;
  }

  /** As `BlockDevice.extents`. It may end early where nothing is known yet, and then fetches what is missing. */
  extents(offset: number, length: number, countMax: number): DeviceExtent[] {
    const end = offset + length;
    const found: DeviceExtent[] = [];
    for (let at = offset; at < end; ) {
      const part = Math.floor(at / partBytes);
      const outline = this.#outlines.get(part);
      if (outline === undefined) {
        this.#lookAhead(part);
        if (found.length === 0) found.push({ offset, length: Math.min(unknownBytes, length), kind: "data" });
        return found;
      }
      const partEnd = Math.min(end, (part + 1) * partBytes);
      if (!append(found, outline, at, partEnd, countMax)) return found;
      at = partEnd;
    }
    // Only who asks for more than he could read at once goes through the disk by its extents.
    if (length >= partBytes) this.#lookAhead(Math.floor(end / partBytes));
    return found;
  }

  /** Fetches the outlines of [offset, offset + length): when it resolves, `extents` tells them exactly, if they are not too many to keep. */
  async lookUp(offset: number, length: number): Promise<void> {
    for (let part = Math.floor(offset / partBytes); part * partBytes < offset + length; part += 1) {
      if (!this.#outlines.has(part)) await this.#readOutline(part);
    }
  }

  /** Waits for what is under way, which the signal ends. */
  async close(): Promise<void> {
    await this.#turn;
  }

  #lookAhead(part: number): void {
    const offset = part * partBytes;
    const length = Math.min(partsAhead * partBytes, this.volumeBytes - offset);
    if (this.#isLooking || length <= 0) return;
    this.#isLooking = true;
    const done = (): void => {
      this.#isLooking = false;
    };
    // A map that cannot be read is told to those who read the disk there.
    this.lookUp(offset, length).then(done, done);
  }

  async #readRoots(first: number, runs: number): Promise<void> {
    for (let run = first; run < runs; run += rootsInFlightMax) await this.#map.leavesOf(run, this.#signal);
  }

  async #readOutline(part: number): Promise<void> {
    const from = part * partGranules;
    const pieces = await this.pieces(from, Math.min(from + partGranules, this.granules));
    if (this.#outlines.has(part)) return;
    const outline = outlineOf(pieces);
    this.#outlines.set(part, outline);
    this.#outlineWords += outline.length + partWords;
    for (const [oldest, words] of this.#outlines) {
      if (this.#outlineWords <= outlineWordsMax) break;
      this.#outlines.delete(oldest);
      this.#outlineWords -= words.length + partWords;
    }
  }
}

/** Where the data of `pieces` begins and ends. */
function outlineOf(pieces: Pieces): Uint32Array {
  const words: number[] = [];
  for (let index = 0; index < pieces.count; index += 1) {
    if (pieceIsZero(pieces, index)) continue;
    const start = pieces.starts[index] ?? 0;
    if (words.at(-1) === start) words.pop();
    else words.push(start);
    words.push(start + (pieces.lengths[index] ?? 0));
  }
  return Uint32Array.from(words);
}

/** Appends what `outline` says of [from, end) to `found`. False when that is too much. */
function append(found: DeviceExtent[], outline: Uint32Array, from: number, end: number, countMax: number): boolean {
  const add = (kind: DeviceExtent["kind"], offset: number, stop: number): boolean => {
    if (stop <= offset) return true;
    const last = found.at(-1);
    if (last?.kind === kind) found[found.length - 1] = { ...last, length: stop - last.offset };
    else if (found.length < countMax) found.push({ offset, length: stop - offset, kind });
    else return false;
    return true;
  };
  let at = from;
  for (let index = firstEndAfter(outline, from); index < outline.length; index += 2) {
    const start = Math.min(end, Math.max(at, (outline[index] ?? 0) * granuleBytes));
    const stop = Math.min(end, (outline[index + 1] ?? 0) * granuleBytes);
    if (!add("hole", at, start) || !add("data", start, stop)) return false;
    at = Math.max(at, stop);
    if (at === end) return true;
  }
  return add("hole", at, end);
}

/** Index of the first run of data that ends behind `offset`. */
function firstEndAfter(outline: Uint32Array, offset: number): number {
  let low = 0;
  let high = outline.length / 2;
  while (low < high) {
    const middle = Math.floor((low + high) / 2);
    if ((outline[middle * 2 + 1] ?? 0) * granuleBytes <= offset) low = middle + 1;
    else high = middle;
  }
  return low * 2;
}
