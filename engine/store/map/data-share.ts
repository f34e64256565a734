/**
 * Progress through a point's map in bytes of data rather than in positions: holes and zeros take no
 * time, so they count nothing.
 *
 * Of a disk of up to 16 GiB everything that is shown is counted. Of a larger one, a leaf with enough
 * entries to fill its span with whole blocks counts as full and is not read for this; of any other
 * leaf the entries are counted. So a full disk costs no request, and the empty stretch before a
 * partition table at the end of a disk is seen. Leaves that are read here are in the map's cache
 * when the point is read.
 *
 * Precision: windows of 256 MiB, in which the point reader works too. Where runs of a larger disk
 * overlap, hidden entries count, up to the size of the window. What cannot be read counts as full.
 */
import { isUnreadable } from "../../errors.ts";
import { blockBytesDefault, granuleBytes } from "../../limits.ts";
import { type LeafReference, zeroSegment } from "../format/leaf.ts";
import { type PointMap, pieceIsZero, windowGranules } from "./point-map.ts";

const exactGranulesMax: number = 64 * windowGranules;
const blockGranules: number = blockBytesDefault / granuleBytes;

export class DataShare {
  /** Granules of data before each window, and in all. */
  readonly #below: Float64Array;
  readonly #granules: number;

  private constructor(inWindow: Float64Array, granules: number) {
    this.#granules = granules;
    this.#below = new Float64Array(inWindow.length + 1);
    for (const [window, data] of inWindow.entries())
      this.#below[window + 1] = (this.#below[window] ?? 0) + Math.min(data, windowGranules);
  }

  /** `runs`: how many runs the map has. Errors: those of the store. */
  static async of(map: PointMap, runs: number, signal?: AbortSignal): Promise<DataShare> {
    const inWindow = new Float64Array(Math.ceil(map.granules / windowGranules));
    const add = (first: number, length: number): void => {
      const end = Math.min(first + length, map.granules);
      for (let at = first; at < end; ) {
        const window = Math.floor(at / windowGranules);
        const stop = Math.min((window + 1) * windowGranules, end);
        inWindow[window] = (inWindow[window] ?? 0) + stop - at;
        at = stop;
      }
    };
    try {
      if (map.granules <= exactGranulesMax) await addShown(map, add, signal);
      else for (let run = 0; run < runs; run += 1) await addLeaves(map, run, add, signal);
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      add(0, map.granules);
    }
    return new DataShare(inWindow, map.granules);
  }

  get totalBytes(): number {
    return (this.#below.at(-1) ?? 0) * granuleBytes;
  }

  /** Bytes of data before `granule`, to the precision of a window. */
  bytesBelow(granule: number): number {
    if (granule >= this.#granules) return this.totalBytes;
    return (this.#below[Math.floor(granule / windowGranules)] ?? 0) * granuleBytes;
  }
}

type Add = (first: number, length: number) => void;

async function addShown(map: PointMap, add: Add, signal: AbortSignal | undefined): Promise<void> {
  for (let from = await map.nextMapped(0, signal); from < map.granules; from = await map.nextMapped(from, signal)) {
    const end = Math.min(from + windowGranules, map.granules);
    const pieces = await map.window(from, end, signal);
    for (let piece = 0; piece < pieces.count; piece += 1)
      if (!pieceIsZero(pieces, piece)) add(pieces.starts[piece] ?? 0, pieces.lengths[piece] ?? 0);
    from = end;
  }
}

async function addLeaves(map: PointMap, run: number, add: Add, signal: AbortSignal | undefined): Promise<void> {
  const leaves = await map.leavesOf(run, signal);
  const full = new Set(leaves.length === 1 ? [] : leaves.filter(isFull));
  for (const { first, last } of full) add(first, last + 1 - first);
  for await (const leaf of map.entriesOf(run, signal, (reference) => !full.has(reference))) {
    for (let entry = 0; entry < leaf.count; entry += 1)
      if (leaf.segments[entry] !== zeroSegment) add(leaf.starts[entry] ?? 0, leaf.lengths[entry] ?? 0);
  }
}

function isFull({ first, last, entries }: LeafReference): boolean {
  return entries * blockGranules >= last + 1 - first;
}
