/**
 * Fetch plan: in which ranges of segments the payloads of pieces of a map are fetched.
 *
 * Pieces are ordered by the place of their chunks, and neighbours come with one range. Long ranges
 * cost a store less than short ones.
 *
 * Invariant: two pieces share a chunk only if the map says the same of both chunks: place, stored
 * word, length and digest.
 */
import assert from "node:assert/strict";
import { digestBytes, granuleBytes } from "../limits.ts";
import { storedLength } from "../store/format/frame.ts";
import { type Pieces, pieceDigest, pieceIsZero } from "../store/map/point-map.ts";
import type { Slab, SlabGeometry } from "./slabs.ts";

/** Bytes between two payloads that are rather read and dropped than cost a request of their own. */
const gapBytesMax = 64 * 1024;

/** A chunk as an entry of a map describes it. All of it tells chunks apart. */
export interface MappedChunk {
  readonly segment: string;
  /** Of the payload in its segment. */
  readonly offset: number;
  readonly storedWord: number;
  readonly granules: number;
  /** A view into the map's leaf. */
  readonly digest: Uint8Array;
}

/** The chunk that a piece of data shows. */
export function pieceChunk(pieces: Pieces, index: number): MappedChunk {
  const leaf = pieces.leaves[index];
  const entry = pieces.entries[index] ?? 0;
  assert(leaf !== undefined, "the piece exists");
  return {
    segment: segmentOf(pieces, index),
    offset: offsetOf(pieces, index),
    storedWord: storedWordOf(pieces, index),
    granules: chunkGranulesOf(pieces, index),
    digest: leaf.digests.subarray(entry * digestBytes, (entry + 1) * digestBytes),
  };
}

/** A range of a segment, and the pieces `order[from…end)` that lie in it. */
export interface Fetch {
  readonly segment: string;
  readonly offset: number;
  readonly bytes: number;
  readonly from: number;
  readonly end: number;
}

function segmentOf(pieces: Pieces, index: number): string {
  const leaf = pieces.leaves[index];
  const name = leaf?.names[leaf.segments[pieces.entries[index] ?? 0] ?? 0];
  assert(name !== undefined, "the leaf was checked when it was decoded");
  return name;
}

function offsetOf(pieces: Pieces, index: number): number {
  return pieces.leaves[index]?.offsets[pieces.entries[index] ?? 0] ?? 0;
}

function storedWordOf(pieces: Pieces, index: number): number {
  return pieces.leaves[index]?.storedWords[pieces.entries[index] ?? 0] ?? 0;
}

function chunkGranulesOf(pieces: Pieces, index: number): number {
  return (pieces.leaves[index]?.chunkLengths[pieces.entries[index] ?? 0] ?? 0) + 1;
}

/** True when both pieces show the same chunk. Both lie in one segment. */
function sameChunk(pieces: Pieces, a: number | undefined, b: number): boolean {
  if (a === undefined || offsetOf(pieces, a) !== offsetOf(pieces, b)) return false;
  if (storedWordOf(pieces, a) !== storedWordOf(pieces, b)) return false;
  if (chunkGranulesOf(pieces, a) !== chunkGranulesOf(pieces, b)) return false;
  const [digestsOfA, digestsOfB] = [pieces.leaves[a]?.digests, pieces.leaves[b]?.digests];
  const [atA, atB] = [(pieces.entries[a] ?? 0) * digestBytes, (pieces.entries[b] ?? 0) * digestBytes];
  for (let at = 0; at < digestBytes; at += 1) if (digestsOfA?.[atA + at] !== digestsOfB?.[atB + at]) return false;
  return true;
}

/**
 * Indexes of the pieces that hold data (of `wanted` only, when given), ordered by segment and
 * offset.
 */
export function orderByPlace(pieces: Pieces, wanted: readonly number[] | undefined): Uint32Array {
  const indexes = wanted ?? Array.from({ length: pieces.count }, (_, index) => index);
  const ranks = new Map<string, number>();
  const rankOf = new Uint32Array(pieces.count);
  const data = indexes.filter((index) => !pieceIsZero(pieces, index));
  for (const index of data) {
    const name = segmentOf(pieces, index);
    const rank = ranks.get(name) ?? ranks.size;
    ranks.set(name, rank);
    rankOf[index] = rank;
  }
  return Uint32Array.from(data).sort(
    (a, b) => (rankOf[a] ?? 0) - (rankOf[b] ?? 0) || offsetOf(pieces, a) - offsetOf(pieces, b) || a - b,
  );
}

/** Cuts the order into ranges that fit into a slab, stored and plain. */
export function planFetches(pieces: Pieces, order: Uint32Array, geometry: SlabGeometry): Fetch[] {
  const fetches: Fetch[] = [];
  const outBytes = geometry.outBytes ?? geometry.slabBytes;
  for (let from = 0; from < order.length; ) {
    const first = order[from] ?? 0;
    const segment = segmentOf(pieces, first);
    const offset = offsetOf(pieces, first);
    let bytesEnd = offset;
    let plainBytes = 0;
    let last: number | undefined;
    let end = from;
    for (; end < order.length; end += 1) {
      const index = order[end] ?? 0;
      const at = offsetOf(pieces, index);
      if (segmentOf(pieces, index) !== segment) break;
      if (sameChunk(pieces, last, index)) continue; // one more window of it
      const storedEnd = at + storedLength(storedWordOf(pieces, index));
      const plain = plainBytes + chunkGranulesOf(pieces, index) * granuleBytes;
      if (end > from && (at - bytesEnd > gapBytesMax || storedEnd - offset > geometry.slabBytes || plain > outBytes))
        break;
      bytesEnd = Math.max(bytesEnd, storedEnd);
      plainBytes = plain;
      last = index;
    }
    fetches.push({ segment, offset, bytes: bytesEnd - offset, from, end });
    from = end;
  }
  return fetches;
}

/**
 * Describes the chunks of a range in the slab's table, and tells the chunk of each piece in `chunkOf`.
 * Gives the number of chunks.
 */
export function fillChunkTable(
  pieces: Pieces,
  order: Uint32Array,
  fetch: Fetch,
  slab: Slab,
  chunkOf: Uint32Array,
): number {
  let count = 0;
  let outGranule = 0;
  let last: number | undefined;
  for (let at = fetch.from; at < fetch.end; at += 1) {
    const index = order[at] ?? 0;
    if (!sameChunk(pieces, last, index)) {
      const granules = chunkGranulesOf(pieces, index);
      slab.chunks.start[count] = outGranule;
      slab.chunks.granules[count] = granules;
      slab.chunks.offsets[count] = offsetOf(pieces, index) - fetch.offset;
      slab.chunks.storedWords[count] = storedWordOf(pieces, index);
      pieceDigest(pieces, index, slab.chunks.digests, count * 16);
      outGranule += granules;
      last = index;
      count += 1;
    }
    chunkOf[at - fetch.from] = count - 1;
  }
  return count;
}
