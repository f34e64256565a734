/**
 * Re-shipping of condemned chunks: a cycle replaces references that a garbage collection condemned
 * while the cycle ran.
 *
 * A cycle may take hours, and a collection that waits for it must go on. So the writer acknowledges
 * the collection in the middle of the cycle, and from then on refers to nothing condemned. Its
 * earlier references to condemned chunks are found in the cycle's own entries when everything is
 * captured. The writer reads those ranges from the volume again and puts the new entries on top,
 * where they hide the old ones in every point.
 */

import { namedVolume } from "../disk/source/named-volume.ts";
import { granuleBytes } from "../limits.ts";
import { zeroSegment } from "../store/format/leaf.ts";
import type { PointMap } from "../store/map/point-map.ts";
import type { RunWriter } from "../store/map/run-writer.ts";
import type { Store } from "../store/store.ts";
import type { Extent } from "../volume.ts";
import { changedBaseline } from "./baseline.ts";
import type { CaptureOptions, CaptureStatistics } from "./capture.ts";
import { capture } from "./capture.ts";

const nothingKept: CaptureOptions["prints"] = { put: () => undefined, drain: () => Promise.resolve() };

/** An entry's extent in bytes, and what it refers to. */
interface Reference extends Extent {
  readonly segment: string;
  readonly isForbidden: boolean;
}

/**
 * `captured`: the entries of the cycle, made with `options`, whose references afterwards are those
 * that the point will show. Errors: as `capture`, and those of reading the entries.
 */
export async function captureForbidden(
  options: CaptureOptions,
  store: Store,
  captured: PointMap,
  again: RunWriter,
): Promise<CaptureStatistics> {
  const { catalog, references, volumeBytes, signal } = options;
  references.clear();
  for await (const { segment, isForbidden } of referencesOf(options, store, captured))
    if (!isForbidden) references.add(catalog.idOf(segment));
  return await capture({
    ...options,
    volume: namedVolume(options.volume, forbiddenOf(options, store, captured), volumeBytes),
    baseline: changedBaseline,
    scope: "named",
    run: again,
    prints: nothingKept,
    onProgress: () => undefined,
    betweenSlabs: undefined,
    pace: undefined,
    signal,
  });
}

async function* forbiddenOf(options: CaptureOptions, store: Store, captured: PointMap): AsyncGenerator<Extent> {
  for await (const reference of referencesOf(options, store, captured)) if (reference.isForbidden) yield reference;
}

async function* referencesOf(
  { catalog, signal }: CaptureOptions,
  store: Store,
  captured: PointMap,
): AsyncGenerator<Reference> {
  for await (const leaf of captured.entriesOf(0, signal)) {
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
