/**
 * Map of a mounted point: the pieces of a range for readers, and its holes for clients that ask
 * for block status.
 *
 * A map is read from the store, and clients ask for holes often. So outlines of the map (runs of
 * data and the holes between them) are kept for parts of the disk that were asked for, and
 * answered at once. For other parts `lookUp` waits for the map, and `extents`, which cannot wait,
 * starts the fetch and answers what is known.
 *
 * Memory: the leaves that `PointMap` keeps, and 4 MiB of outlines.
 */
import { setImmediate as nextTurn } from "node:timers/promises";
import type { DeviceExtent } from "../../device.ts";
import { throwIfAborted } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import { type Pieces, type PointMap, pieceIsZero } from "../../store/map/point-map.ts";

/** Granules whose outline is fetched and kept together: 64 MiB of disk. */
const partGranules = 16_384;
const partBytes: number = partGranules * granuleBytes;
/** Parts that are read in one turn of the event loop, which takes a few ms. */
const partsPerTurn = 16;
/** Words of outlines that are kept, and what a part costs besides its own. */
const outlineWordsMax: number = 1024 * 1024;
const partWords = 16;
/** Roots that are fetched at a time. */
const rootsInFlightMax = 8;

export class MountedMap {
  readonly volumeBytes: number;
  readonly granules: number;
  readonly #map: PointMap;
  readonly #signal: AbortSignal;
  /**
   * Resolves when the last caller is done with the map: two at a time would fetch the same leaves
   * twice.
   */
  #turn: Promise<unknown>;
  /** By part: granules at which data begins and ends, alternating. The oldest first. */
  readonly #outlines = new Map<number, Uint32Array>();
  #outlineWords = 0;
  /** By part: outlines on their way. */
  readonly #looking = new Map<number, Promise<Uint32Array>>();

  /**
   * `runs`: how many the map has. Their roots are fetched side by side at once: the first read
   * needs all of them.
   */
  constructor(map: PointMap, runs: number, signal: AbortSignal) {
    this.#map = map;
    this.#signal = signal;
    this.volumeBytes = map.volumeBytes;
    this.granules = map.granules;
    // A root that cannot be fetched is fetched again by the read that needs it, which then fails.
    this.#turn = Promise.allSettled(
      Array.from({ length: Math.min(runs, rootsInFlightMax) }, (_, first) => this.#readRoots(first, runs)),
    );
  }

  /**
   * What granules [from, end) hold, at most `windowGranules` of them. Errors: DAMAGED,
   * OBJECT_NOT_FOUND, FORMAT_UNSUPPORTED, those of the store.
   */
  async pieces(from: number, end: number): Promise<Pieces> {
    return await this.#inTurn(async () => await this.#map.window(from, end, this.#signal));
  }

  /** As `BlockDevice.extents`: what is not known is fetched for the next call. */
  extents(offset: number, length: number, countMax: number): DeviceExtent[] {
    const found: DeviceExtent[] = [];
    for (const { part, from, end } of partsOf(offset, length)) {
      const outline = this.#outlines.get(part);
      if (outline === undefined) {
        // One at a time is enough for a client that goes through the disk. Reads report a map that
        // cannot be read.
        if (this.#looking.size === 0) this.#lookFor(part).catch(() => undefined);
        return found;
      }
      if (!append(found, outline, from, end, countMax)) return found;
    }
    return found;
  }

  /** As `BlockDevice.lookUp`. */
  async lookUp(offset: number, length: number, countMax: number): Promise<DeviceExtent[]> {
    const found: DeviceExtent[] = [];
    const rangeEnd = offset + length;
    for (let at = offset; at < rangeEnd; ) {
      const part = Math.floor(at / partBytes);
      let end = Math.min(rangeEnd, (part + 1) * partBytes);
      let outline = this.#outlines.get(part);
      if (outline === undefined) {
        // A long stretch of which no run of the map speaks costs one question.
        const mapped = (await this.#inTurn(async () => await this.#nextMapped(at))) * granuleBytes;
        if (mapped > at) {
          end = Math.min(rangeEnd, mapped);
          outline = noData;
          for (let empty = Math.ceil(at / partBytes); (empty + 1) * partBytes <= end; empty += 1)
            this.#remember(empty, noData);
        } else outline = await this.#lookFor(part);
      }
      if (!append(found, outline, at, end, countMax)) return found;
      at = end;
    }
    return found;
  }

  /** Waits for what is under way, which the signal ends. */
  async close(): Promise<void> {
    await this.#turn;
  }

  /** The first granule from that of byte `offset` on that a run speaks of; past the end: none. */
  async #nextMapped(offset: number): Promise<number> {
    return await this.#map.nextMapped(Math.floor(offset / granuleBytes), this.#signal);
  }

  async #inTurn<Result>(ask: () => Promise<Result>): Promise<Result> {
    const work = this.#turn.then(async () => {
      // What the map has in memory would be answered even after the end.
      throwIfAborted(this.#signal);
      return await ask();
    });
    this.#turn = work.catch(() => undefined);
    return await work;
  }

  #lookFor(part: number): Promise<Uint32Array> {
    let looking = this.#looking.get(part);
    if (looking === undefined) {
      looking = this.#readOutline(part).finally(() => this.#looking.delete(part));
      this.#looking.set(part, looking);
    }
    return looking;
  }

  async #readRoots(first: number, runs: number): Promise<void> {
    for (let run = first; run < runs; run += rootsInFlightMax) await this.#map.leavesOf(run, this.#signal);
  }

  async #readOutline(part: number): Promise<Uint32Array> {
    // A long range of a map in memory yields to the event loop now and then.
    if (part % partsPerTurn === 0) await nextTurn();
    const from = part * partGranules;
    const outline = outlineOf(await this.pieces(from, Math.min(from + partGranules, this.granules)));
    this.#remember(part, outline);
    return outline;
  }

  #remember(part: number, outline: Uint32Array): void {
    if (this.#outlines.has(part)) return;
    this.#outlines.set(part, outline);
    this.#outlineWords += outline.length + partWords;
    for (const [oldest, words] of this.#outlines) {
      if (this.#outlineWords <= outlineWordsMax) break;
      this.#outlines.delete(oldest);
      this.#outlineWords -= words.length + partWords;
    }
  }
}

/** The outline of a part without data. */
const noData: Uint32Array = new Uint32Array();

/** The parts that a range touches, and where in them it lies. */
function* partsOf(
  offset: number,
  length: number,
): Generator<{ readonly part: number; readonly from: number; readonly end: number }> {
  const rangeEnd = offset + length;
  for (let from = offset; from < rangeEnd; ) {
    const part = Math.floor(from / partBytes);
    const end = Math.min(rangeEnd, (part + 1) * partBytes);
    yield { part, from, end };
    from = end;
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
