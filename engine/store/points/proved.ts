/**
 * Scrub log of a disk: when each point was last read back and proved.
 *
 * The times stand in `disks/<disk>/proved`, as ranges of neighbouring points that were proved at
 * one time. A scrubber adds to them with a compare-and-swap; of two that write at once the later
 * one reads again and adds to what the first has written.
 *
 * The document only decides in which order points are proved. If it cannot be read, all points
 * count as never proved, and it is written anew. A sequence number is given again only after a
 * store went back in time: a time that is older than the point is another point's.
 */
import type { Owner, PointRecord } from "../format/documents.ts";
import { provedName } from "../format/names.ts";
import type { ProvedDocument, ProvedRange } from "../format/proof.ts";
import { decodeProved, encodeProved, provedRangesMax } from "../format/proof.ts";
import { changeShared, type FoundDocument, readShared, type SharedDocument } from "../shared-document.ts";
import type { Store } from "../store.ts";

export class ProvedTimes {
  readonly #ranges: readonly ProvedRange[];

  constructor(ranges: readonly ProvedRange[]) {
    this.#ranges = ranges;
  }

  /** When the point was last proved, ms since 1970; null when that is not known. */
  of({ sequence, timeMs }: Pick<PointRecord, "sequence" | "timeMs">): number | null {
    let [from, end] = [0, this.#ranges.length];
    while (from < end) {
      const middle = Math.floor((from + end) / 2);
      if ((this.#ranges[middle]?.last ?? 0) < sequence) from = middle + 1;
      else end = middle;
    }
    const range = this.#ranges[from];
    return range !== undefined && range.first <= sequence && range.provedMs >= timeMs ? range.provedMs : null;
  }
}

/** Reads the times of a disk's points. Errors: those of the store. */
export async function readProved(
  store: Store,
  vault: string,
  disk: string,
  signal?: AbortSignal,
): Promise<ProvedTimes> {
  const { document } = await readShared(store, provedOf({ vault, disk }), { signal });
  return new ProvedTimes(document?.ranges ?? []);
}

/**
 * Notes that the points of the given sequence numbers have just been proved. `points`: all points
 * of the disk, ascending; times of other points are dropped. Errors: those of the store.
 */
export async function noteProved(
  store: Store,
  place: Owner,
  points: readonly Pick<PointRecord, "sequence" | "timeMs">[],
  sequences: ReadonlySet<number>,
  nowMs: number,
  signal?: AbortSignal,
): Promise<void> {
  const change = ({ document }: FoundDocument<ProvedDocument>): ProvedDocument => {
    const before = new ProvedTimes(document?.ranges ?? []);
    const times = points.map((point) => ({
      sequence: point.sequence,
      // A point may be dated in the future.
      provedMs: sequences.has(point.sequence) ? Math.max(nowMs, point.timeMs) : before.of(point),
    }));
    return { ...place, ranges: rangesOf(times) };
  };
  await changeShared(store, provedOf(place), change, { signal });
}

function provedOf(place: Owner): SharedDocument<ProvedDocument> {
  const name = provedName(place.disk);
  return { name, decode: (bytes) => decodeProved(bytes, name, place), encode: encodeProved };
}

/**
 * Neighbours that were proved at one time become one range. Of too many ranges the oldest are
 * dropped: their points count as never proved.
 */
function rangesOf(times: readonly { readonly sequence: number; readonly provedMs: number | null }[]): ProvedRange[] {
  const ranges: { first: number; last: number; provedMs: number }[] = [];
  let isOpen = false;
  for (const { sequence, provedMs } of times) {
    const range = ranges.at(-1);
    if (provedMs === null) isOpen = false;
    else if (isOpen && range?.provedMs === provedMs) range.last = sequence;
    else {
      ranges.push({ first: sequence, last: sequence, provedMs });
      isOpen = true;
    }
  }
  if (ranges.length <= provedRangesMax) return ranges;
  const kept = new Set([...ranges].sort((a, b) => b.provedMs - a.provedMs).slice(0, provedRangesMax));
  return ranges.filter((range) => kept.has(range));
}
