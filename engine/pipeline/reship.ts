/**
 * Re-shipping of condemned chunks: a cycle replaces references that a garbage collection condemned
 * while the cycle ran.
 *
 * A cycle may take hours, and a collection that waits for it must go on. So the writer acknowledges
 * the collection in the middle of the cycle, and from then on refers to nothing condemned. Its
 * earlier references to condemned chunks are found in the cycle's own entries when everything is
 * filled. The writer ships those ranges again and puts the new entries on top,
 * where they hide the old ones in every point.
 */
import { granuleBytes } from "../limits.ts";
import { zeroSegment } from "../store/format/leaf.ts";
import type { PointMap } from "../store/map/point-map.ts";
import type { RunWriter } from "../store/map/run-writer.ts";
import type { Store } from "../store/store.ts";
import type { Extent } from "../volume.ts";
import type { PointContent, RunParts, RunStatistics } from "./packer.ts";

/** An entry's extent in bytes, and what it refers to. */
interface Reference extends Extent {
  readonly segment: string;
  readonly isForbidden: boolean;
}

/**
 * `filled`: the entries of the cycle, whose references afterwards are those that the point will
 * show. Errors: as `PointContent.refill`, and those of reading the entries.
 */
export async function reship(
  content: PointContent,
  parts: RunParts,
  store: Store,
  filled: PointMap,
  again: RunWriter,
): Promise<RunStatistics> {
  const { catalog, references } = parts;
  references.clear();
  for await (const { segment, isForbidden } of referencesOf(parts, store, filled))
    if (!isForbidden) references.add(catalog.idOf(segment));
  const refilling = { ...parts, run: again, onProgress: () => undefined, betweenBatches: undefined };
  return await content.refill(refilling, forbiddenOf(parts, store, filled));
}

async function* forbiddenOf(parts: RunParts, store: Store, filled: PointMap): AsyncGenerator<Extent> {
  for await (const reference of referencesOf(parts, store, filled)) if (reference.isForbidden) yield reference;
}

async function* referencesOf({ catalog, signal }: RunParts, store: Store, filled: PointMap): AsyncGenerator<Reference> {
  for await (const leaf of filled.entriesOf(0, signal)) {
    const forbidden = new Map<string, (offset: number, storedWord: number) => boolean>();
    for (const name of leaf.names) forbidden.set(name, await catalog.forbiddenIn(store, name, signal));
    for (let entry = 0; entry < leaf.count; entry += 1) {
      const name = leaf.segments[entry] ?? zeroSegment;
      const segment = name === zeroSegment ? undefined : leaf.names[name];
      if (segment === undefined) continue;
      yield {
        offset: (leaf.starts[entry] ?? 0) * granuleBytes,
        length: (leaf.lengths[entry] ?? 0) * granuleBytes,
        segment,
        isForbidden: forbidden.get(segment)?.(leaf.offsets[entry] ?? 0, leaf.storedWords[entry] ?? 0) === true,
      };
    }
  }
}
