/**
 * Log-structured merge of map runs: keeps the stack of runs short without rewriting the map at each
 * commit.
 *
 * A run's tier is the power of `fanIn` that its entries reach above `tierEntries`. When `fanIn`
 * runs lie in one tier, they and all above them are merged into one, which belongs to the next
 * tier. So an entry is rewritten about once per tier: 36 bytes × log16(map / 512 entries), at most
 * four times on a 1 TiB disk, and the stack holds at most 15 runs a tier. Leaves that no newer run
 * overlaps are taken over as they are, unless they are small.
 */
import type { RunReference } from "../format/documents.ts";
import type { LeafReference } from "../format/leaf.ts";
import { leafEntriesMax, zeroSegment } from "../format/leaf.ts";
import type { Pieces } from "./point-map.ts";
import { PointMap, windowGranules } from "./point-map.ts";
import type { MapObjects } from "./run-writer.ts";
import { RunWriter } from "./run-writer.ts";

export const fanIn = 16;
const tierEntries = 512;
/**
 * Smaller leaves are copied rather than taken over, or a run would fall apart into ever smaller
 * ones.
 */
const adoptEntriesMin: number = leafEntriesMax / 2;

/**
 * How many runs from the top of the stack are due to be merged; 0 for none. `runs` newest first.
 * The lowest tier that is full is merged with everything above it. A run counts to the highest tier
 * above it, so that small runs do not gather below large ones.
 */
export function runsToMerge(runs: readonly Pick<RunReference, "entries">[]): number {
  let tier = 0;
  let runsInTier = 0;
  for (const [index, { entries }] of runs.entries()) {
    const own = tierOf(entries);
    if (own > tier) {
      if (runsInTier >= fanIn) return index;
      tier = own;
      runsInTier = 0;
    }
    runsInTier += 1;
  }
  return runsInTier >= fanIn ? runs.length : 0;
}

function tierOf(entries: number): number {
  let tier = 0;
  while (entries >= tierEntries * fanIn ** (tier + 1)) tier += 1;
  return tier;
}

/**
 * Merges the topmost runs as far as the policy asks. Returns the stack to commit. With the oldest
 * run among them, ZERO entries have nothing left to hide and are dropped.
 */
export async function mergeStack(
  objects: MapObjects,
  runs: readonly RunReference[],
  volumeBytes: number,
): Promise<RunReference[]> {
  const count = runsToMerge(runs);
  if (count === 0) return [...runs];
  const merged = await mergeRuns(objects, runs.slice(0, count), volumeBytes, count === runs.length);
  return merged === undefined ? runs.slice(count) : [merged, ...runs.slice(count)];
}

async function mergeRuns(
  objects: MapObjects,
  runs: readonly RunReference[],
  volumeBytes: number,
  dropZeros: boolean,
): Promise<RunReference | undefined> {
  const { signal } = objects;
  const map = new PointMap(objects.store, objects.vaultId, objects.disk, { volumeBytes, runs });
  const writer = new RunWriter(objects);
  const oldest = runs.length - 1;
  try {
    for (let at = await map.nextMapped(0, signal); at !== Infinity; ) {
      const untouched = await untouchedLeaf(map, oldest, at, signal);
      if (untouched !== undefined) {
        writer.adopt(untouched);
        at = await map.nextMapped(untouched.last + 1, signal);
        continue;
      }
      // Stop where the next leaf of the oldest run begins, so that this leaf can be examined by
      // itself.
      const boundary = await nextLeafStart(map, oldest, at, signal);
      const end = Math.min(at + windowGranules, boundary, 2 ** 32);
      copyPieces(writer, await map.window(at, end, signal), dropZeros);
      await writer.drain();
      at = await map.nextMapped(end, signal);
    }
    return await writer.finish();
  } finally {
    await writer.settle();
  }
}

/** The oldest run's leaf that begins at `at`, if no newer run maps anything in its span. */
async function untouchedLeaf(
  map: PointMap,
  oldest: number,
  at: number,
  signal: AbortSignal | undefined,
): Promise<LeafReference | undefined> {
  const leaf = (await map.leavesOf(oldest, signal)).find((candidate) => candidate.first >= at);
  if (leaf?.first !== at || leaf.entries < adoptEntriesMin) return undefined;
  for (let run = 0; run < oldest; run += 1) {
    const leaves = await map.leavesOf(run, signal);
    if (leaves.some((other) => other.first <= leaf.last && other.last >= leaf.first)) return undefined;
  }
  return leaf;
}

async function nextLeafStart(
  map: PointMap,
  oldest: number,
  at: number,
  signal: AbortSignal | undefined,
): Promise<number> {
  return (await map.leavesOf(oldest, signal)).find((leaf) => leaf.first > at)?.first ?? Infinity;
}

function copyPieces(writer: RunWriter, pieces: Pieces, dropZeros: boolean): void {
  for (let index = 0; index < pieces.count; index += 1) {
    const leaf = pieces.leaves[index];
    const entry = pieces.entries[index] ?? 0;
    const start = pieces.starts[index] ?? 0;
    const length = pieces.lengths[index] ?? 0;
    if (leaf === undefined) continue;
    const segment = leaf.segments[entry] ?? zeroSegment;
    if (segment === zeroSegment) {
      if (!dropZeros) writer.appendZero(start, length);
      continue;
    }
    writer.append(
      start,
      length,
      leaf.names[segment] ?? "",
      leaf.offsets[entry] ?? 0,
      leaf.storedWords[entry] ?? 0,
      pieces.chunkOffsets[index] ?? 0,
      (leaf.chunkLengths[entry] ?? 0) + 1,
      leaf.digests,
      entry * 16,
    );
  }
}
