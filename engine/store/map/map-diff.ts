/**
 * Difference of two maps of one disk: the granules that show different chunks.
 *
 * Maps are stacks of immutable leaves, and later points take most leaves over from earlier ones.
 * The relative order of leaves that overlap is the same in every map that has them: a merge takes
 * the topmost runs and copies whatever a newer run of them overlaps. So a granule that no entry of
 * an unshared leaf covers shows the same entry in both maps. The diff therefore
 *
 *     1. skips runs and leaves that both maps have, by name and checksum, without reading them;
 *     2. notes for each part of 4 MiB of the disk the first and the last granule that the others cover;
 *     3. resolves these stretches in both maps and compares them granule by granule.
 *
 * Two granules are equal when both are zero, or when both show the same place of chunks with equal
 * digests.
 *
 * Invariant: no granule whose bytes differ is left out. A granule whose bytes are equal is reported
 * only when it is stored in two different chunks: when a neighbour in its block changed with it, or
 * when zeros are stored as a chunk on one side.
 *
 * Cost: the unshared leaves, and the leaves of both maps around what they cover, once. Memory: one
 * leaf cache, and 4 bytes for each part of the disk: 1 MiB for 1 TiB.
 */
import { digestBytes, granuleBytes } from "../../limits.ts";
import type { ManifestDocument, RunReference } from "../format/documents.ts";
import type { LeafReference } from "../format/leaf.ts";
import type { Store } from "../store.ts";
import {
  type GranuleRange,
  LeafCache,
  mapObjectKey,
  type Pieces,
  PointMap,
  pieceIsZero,
  windowGranules,
} from "./point-map.ts";

/** The unit in which stretches are noted: 4 MiB of disk. */
const partGranules = 1024;

/**
 * A leaf that spans no more than this is noted as a whole, unread: its entries leave little out.
 */
const denseLeafGranules: number = 16 * windowGranules;

export interface MapDiffOptions {
  readonly store: Store;
  readonly vaultId: Uint8Array;
  readonly disk: string;
  readonly from: Pick<ManifestDocument, "volumeBytes" | "runs">;
  readonly to: Pick<ManifestDocument, "volumeBytes" | "runs">;
  /** Of this disk's leaves. Default: a new one. */
  readonly cache?: LeafCache | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Granules of `to` that differ from those of `from`, ascending, disjoint and not adjacent. Behind
 * the end of `from` it counts as zeros; behind the end of `to` nothing is reported.
 *
 * @throws TidemarkError DAMAGED or FORMAT_UNSUPPORTED when a map cannot be read, OBJECT_NOT_FOUND
 * when a part of it is gone, and the errors of the store.
 */
export async function* mapDifferences(options: MapDiffOptions): AsyncGenerator<GranuleRange, void, undefined> {
  const { store, vaultId, disk, cache = new LeafCache(), signal } = options;
  const from = new PointMap(store, vaultId, disk, options.from, cache);
  const to = new PointMap(store, vaultId, disk, options.to, cache);
  const stretches = new Stretches(to.granules);
  // Behind its end `from` counts as zeros, also where both maps have entries.
  if (options.from.volumeBytes < options.to.volumeBytes)
    stretches.add(Math.floor(options.from.volumeBytes / granuleBytes), to.granules);
  await addUnshared(stretches, { map: from, runs: options.from.runs }, { map: to, runs: options.to.runs }, signal);
  let pending: GranuleRange | undefined;
  for (const stretch of stretches.ascending()) {
    const before = await windowWithin(from, stretch, signal);
    const after = await to.window(stretch.from, stretch.end, signal);
    for (const range of differing(before, after, stretch)) {
      if (pending !== undefined && pending.end < range.from) yield pending;
      pending = { from: pending?.end === range.from ? pending.from : range.from, end: range.end };
    }
  }
  if (pending !== undefined) yield pending;
}

/** What a map shows of granules of which some may lie behind its end. */
export async function windowWithin(
  map: PointMap,
  { from, end }: GranuleRange,
  signal: AbortSignal | undefined,
): Promise<Pieces> {
  return await map.window(from, Math.max(from, Math.min(end, map.granules)), signal);
}

/** A map and the runs that it is made of. */
interface Side {
  readonly map: PointMap;
  readonly runs: readonly RunReference[];
}

/** Notes what the leaves cover that only one of the maps has. */
async function addUnshared(stretches: Stretches, a: Side, b: Side, signal: AbortSignal | undefined): Promise<void> {
  const [leavesOfA, leavesOfB] = [await unsharedLeaves(a, b, signal), await unsharedLeaves(b, a, signal)];
  for (const [side, own, others] of [
    [a, leavesOfA, leavesOfB],
    [b, leavesOfB, leavesOfA],
  ] as const) {
    for (const [run, leaves] of own.runs) {
      const isWanted = (leaf: LeafReference): boolean => !others.keys.has(mapObjectKey(leaf));
      const isDense = ({ first, last }: LeafReference): boolean => last - first < denseLeafGranules;
      for (const leaf of leaves) if (isWanted(leaf) && isDense(leaf)) stretches.add(leaf.first, leaf.last + 1);
      for await (const leaf of side.map.entriesOf(
        run,
        signal,
        (reference) => isWanted(reference) && !isDense(reference),
      )) {
        for (let entry = 0; entry < leaf.count; entry += 1) {
          const start = leaf.starts[entry] ?? 0;
          stretches.add(start, start + (leaf.lengths[entry] ?? 0));
        }
      }
    }
  }
}

/** The leaves of the runs that the other map has not got, by index of the run, and their keys. */
async function unsharedLeaves(
  { map, runs }: Side,
  other: Side,
  signal: AbortSignal | undefined,
): Promise<{ readonly runs: ReadonlyMap<number, readonly LeafReference[]>; readonly keys: ReadonlySet<string> }> {
  const known = new Set(other.runs.map(mapObjectKey));
  const unshared = new Map<number, readonly LeafReference[]>();
  const keys = new Set<string>();
  for (const [index, run] of runs.entries()) {
    if (known.has(mapObjectKey(run))) continue;
    const leaves = await map.leavesOf(index, signal);
    unshared.set(index, leaves);
    for (const leaf of leaves) keys.add(mapObjectKey(leaf));
  }
  return { runs: unshared, keys };
}

/**
 * For each part of the disk the stretch between the first and the last granule that was noted in
 * it.
 */
class Stretches {
  readonly #granules: number;
  /** First and end by part, counted from where the part begins. An end of 0: nothing was noted. */
  readonly #firsts: Uint16Array;
  readonly #ends: Uint16Array;

  /** Nothing at or behind `granules` is noted. */
  constructor(granules: number) {
    this.#granules = granules;
    this.#firsts = new Uint16Array(Math.ceil(granules / partGranules)).fill(partGranules);
    this.#ends = new Uint16Array(this.#firsts.length);
  }

  add(from: number, end: number): void {
    const stop = Math.min(end, this.#granules);
    for (let at = from; at < stop; ) {
      const part = Math.floor(at / partGranules);
      const partFrom = part * partGranules;
      const until = Math.min(partFrom + partGranules, stop);
      this.#firsts[part] = Math.min(this.#firsts[part] ?? 0, at - partFrom);
      this.#ends[part] = Math.max(this.#ends[part] ?? 0, until - partFrom);
      at = until;
    }
  }

  /** Stretches that touch are joined as long as a window holds them. */
  *ascending(): Generator<GranuleRange, void, undefined> {
    let joined: GranuleRange | undefined;
    for (let part = 0; part < this.#ends.length; part += 1) {
      if (this.#ends[part] === 0) continue;
      const from = part * partGranules + (this.#firsts[part] ?? 0);
      const end = part * partGranules + (this.#ends[part] ?? 0);
      if (joined?.end === from && end - joined.from <= windowGranules) {
        joined = { from: joined.from, end };
        continue;
      }
      if (joined !== undefined) yield joined;
      joined = { from, end };
    }
    if (joined !== undefined) yield joined;
  }
}

/**
 * Ranges of the stretch in which the pieces show different bytes, as far as digests tell.
 * Neighbours are not joined.
 */
export function* differing(
  a: Pieces,
  b: Pieces,
  { from, end }: GranuleRange,
): Generator<GranuleRange, void, undefined> {
  let [pieceOfA, pieceOfB] = [0, 0];
  for (let at = from; at < end; ) {
    while (pieceOfA < a.count && endOf(a, pieceOfA) <= at) pieceOfA += 1;
    while (pieceOfB < b.count && endOf(b, pieceOfB) <= at) pieceOfB += 1;
    const stop = Math.min(nextBoundary(a, pieceOfA, at), nextBoundary(b, pieceOfB, at), end);
    if (!showSame(a, pieceOfA, b, pieceOfB, at)) yield { from: at, end: stop };
    at = stop;
  }
}

function endOf(pieces: Pieces, piece: number): number {
  return (pieces.starts[piece] ?? 0) + (pieces.lengths[piece] ?? 0);
}

/** Where `piece`, the first that ends behind `at`, begins or ends. */
function nextBoundary(pieces: Pieces, piece: number, at: number): number {
  if (piece >= pieces.count) return Infinity;
  const start = pieces.starts[piece] ?? 0;
  return start > at ? start : endOf(pieces, piece);
}

/** Whether granule `at` is zero in both, or the same granule of equal chunks. */
function showSame(a: Pieces, pieceOfA: number, b: Pieces, pieceOfB: number, at: number): boolean {
  const [isDataA, isDataB] = [showsData(a, pieceOfA, at), showsData(b, pieceOfB, at)];
  if (!isDataA || !isDataB) return isDataA === isDataB;
  const placeOfA = (a.chunkOffsets[pieceOfA] ?? 0) + at - (a.starts[pieceOfA] ?? 0);
  const placeOfB = (b.chunkOffsets[pieceOfB] ?? 0) + at - (b.starts[pieceOfB] ?? 0);
  return placeOfA === placeOfB && sameDigest(a, pieceOfA, b, pieceOfB);
}

function showsData(pieces: Pieces, piece: number, at: number): boolean {
  return piece < pieces.count && (pieces.starts[piece] ?? 0) <= at && !pieceIsZero(pieces, piece);
}

function sameDigest(a: Pieces, pieceOfA: number, b: Pieces, pieceOfB: number): boolean {
  const [leafOfA, leafOfB] = [a.leaves[pieceOfA], b.leaves[pieceOfB]];
  const [entryOfA, entryOfB] = [a.entries[pieceOfA] ?? 0, b.entries[pieceOfB] ?? 0];
  if (leafOfA === leafOfB && entryOfA === entryOfB) return true;
  for (let at = 0; at < digestBytes; at += 1) {
    if (leafOfA?.digests[entryOfA * digestBytes + at] !== leafOfB?.digests[entryOfB * digestBytes + at]) return false;
  }
  return true;
}
