/**
 * Space that segments take at the store, as a collection counts it: pages that have been written and
 * not freed.
 *
 * Cost: two requests a segment of 1 GiB.
 */
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode, isUnreadable } from "../../errors.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { parseSegmentName, segmentsPrefix } from "../../store/format/names.ts";
import { deadName, type PageRun } from "../../store/format/reclaim.ts";
import { readDead } from "../../store/segments/dead-pages.ts";
import type { Store } from "../../store/store.ts";

const atOnce = 8;

/** Errors: INTERRUPTED, those of the store. */
export async function segmentBytes(store: Store, vault: string, signal?: AbortSignal): Promise<number> {
  let bytes = 0;
  await forEachAtOnce(
    store.list(segmentsPrefix, { signal }),
    atOnce,
    async ({ name }) => {
      if (parseSegmentName(name) === undefined) return;
      try {
        const { writtenBytes } = await store.statPages(name, { signal });
        const freed = await freedPages(store, vault, name, signal);
        bytes += storedPages(writtenBytes, freed) * pageAlignmentBytes;
      } catch (error) {
        // A collection has deleted it since it was listed, or a scrub is to restore it.
        if (!hasCode(error, "OBJECT_NOT_FOUND", "DAMAGED")) throw error;
      }
    },
    signal,
  );
  return bytes;
}

/**
 * Pages of a segment that are written and not freed. Freed pages at its end may lie behind
 * `writtenBytes`, where they have stopped counting.
 */
export function storedPages(writtenBytes: number, freed: readonly PageRun[]): number {
  const end = writtenBytes / pageAlignmentBytes;
  return freed.reduce((left, run) => left - (Math.min(run.end, end) - Math.min(run.from, end)), end);
}

/** A record that cannot be read says nothing. */
async function freedPages(
  store: Store,
  vault: string,
  segment: string,
  signal: AbortSignal | undefined,
): Promise<readonly PageRun[]> {
  try {
    const record = await readDead(store, vault, deadName(segment), { signal });
    return record?.document.dead ?? [];
  } catch (error) {
    if (isUnreadable(error)) return [];
    throw error;
  }
}
