/**
 * Garbage collection of one segment: which of its pages can be freed.
 *
 * Pages are cleared where they lie: page objects are sparse, so nothing has to be moved and every
 * chunk keeps its place. A frame of which a chunk is needed keeps its header and its table, so that
 * its chunks can be found again without any map. The last frame keeps them in any case: a segment
 * that ends earlier than a writer remembers looks like a store that went back in time.
 *
 * A frame whose header or table is damaged hides the frames behind it. What lies there cannot be
 * told apart, so it is kept until no point needs anything of the segment; then the segment is
 * deleted as a whole.
 *
 * Invariant: no page with a chunk that a committed point needs is freed. Cost: a read for each
 * frame. Memory: the segment's tables and a bit for each of its pages.
 */
import type { TidemarkError } from "../../errors.ts";
import type { CallOptions } from "../../sink.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { damaged } from "../../store/format/fields.ts";
import { frameHeaderBytes, storedLength } from "../../store/format/frame.ts";
import type { PageRun } from "../../store/format/reclaim.ts";
import type { WalkedFrame } from "../../store/segments/frame-walk.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import { readableFrames } from "../../store/segments/readable-frames.ts";
import type { Store } from "../../store/store.ts";

/** Freeing fewer pages in a row is not worth a request. */
const runPagesMin = 4;
/** Tables are read when at least this share of a segment may be freed. */
const worthwhileShare = 0.05;

export interface SegmentPlan {
  /** Pages that frames take and that have not been freed. */
  readonly storedPages: number;
  /** No point needs anything of the segment: it can be deleted as a whole. */
  readonly isDead: boolean;
  /** Pages to free. */
  readonly condemned: readonly PageRun[];
  /** Chunks that lie in them, wholly or in part, as far as frames can be read. */
  readonly condemnedChunks: number;
  /** Why frames cannot be read to the end of the segment; undefined: they can. */
  readonly fault: TidemarkError | undefined;
}

/**
 * What a segment is judged by: pages with chunks that are needed, and pages that have been freed.
 */
export interface SegmentPages {
  readonly live: PageSet;
  readonly dead: PageSet;
}

/**
 * Whether enough may be freed to read the frames' tables. `stored`: pages that were written and
 * have not been freed; `kept`: how many of them had to stay the last time.
 *
 * @throws `DAMAGED` when a page that is needed has been freed or was never written.
 */
export function isWorthPlanning(
  segment: string,
  { stored, kept }: { readonly stored: number; readonly kept: number },
  { live, dead }: SegmentPages,
): boolean {
  const needed = live.count();
  if (needed === 0 || stored - needed - kept >= stored * worthwhileShare) return true;
  const written = stored + dead.count();
  if (live.runs().some(({ from, end }) => end > written || dead.touchesPages(from, end))) throw unreadable(segment);
  return false;
}

/**
 * Reads the frames' tables and decides. `writtenBytes`: how far the segment has been written.
 *
 * @throws `DAMAGED` when a page that is needed has been freed or was never written;
 * `OBJECT_NOT_FOUND`, and the errors of the store.
 */
export async function planSegment(
  store: Store,
  vaultId: Uint8Array,
  segment: { readonly name: string; readonly sizeBytes: number; readonly writtenBytes: number },
  { live, dead }: SegmentPages,
  options: CallOptions,
): Promise<SegmentPlan> {
  const { frames, endBytes, fault } = await readableFrames(store, vaultId, { ...segment, dead }, options);
  const hidden = {
    from: endBytes / pageAlignmentBytes,
    end: Math.max(endBytes, segment.writtenBytes) / pageAlignmentBytes,
  };
  const kept = new PageSet();
  const deadFrames = new PageSet();
  let livePages = 0;
  let storedPages = 0;
  const count = ({ from, end }: PageRun): number => {
    let needed = 0;
    for (let page = from; page < end; page += 1) {
      if (dead.has(page)) continue;
      storedPages += 1;
      if (live.has(page)) needed += 1;
    }
    livePages += needed;
    return needed;
  };
  for (const frame of frames) {
    const run = pagesOf(frame);
    if (count(run) > 0 || frame === frames.at(-1)) keepHeaderAndTable(kept, frame);
    else deadFrames.add(run.from, run.end);
  }
  count(hidden);
  kept.add(hidden.from, hidden.end);
  if (livePages !== live.count()) throw unreadable(segment.name);
  const isDead = livePages === 0;
  const condemned = new PageSet();
  for (const { from, end } of [...frames.map(pagesOf), hidden]) {
    for (let page = from; page < end; page += 1) {
      if (!dead.has(page) && (isDead || !(live.has(page) || kept.has(page)))) condemned.add(page, page + 1);
    }
  }
  // The header and the table of a frame that is freed go together: a reader of frames would stumble
  // over either alone.
  const runs = condemned
    .runs()
    .filter(({ from, end }) => isDead || end - from >= runPagesMin || deadFrames.touchesPages(from, end));
  return { storedPages, isDead, condemned: runs, condemnedChunks: chunksIn(frames, PageSet.ofRuns(runs)), fault };
}

function unreadable(segment: string): TidemarkError {
  return damaged(segment, "committed points need pages of it that have been freed or were never written");
}

function pagesOf({ offset, header }: WalkedFrame): PageRun {
  const from = offset / pageAlignmentBytes;
  return { from, end: from + header.frameBytes / pageAlignmentBytes };
}

function keepHeaderAndTable(kept: PageSet, { offset, header }: WalkedFrame): void {
  kept.addBytes(offset, frameHeaderBytes);
  kept.addBytes(offset + header.tableOffset, header.tableBytes);
}

function chunksIn(frames: readonly WalkedFrame[], pages: PageSet): number {
  let count = 0;
  for (const { offset, table } of frames) {
    for (let chunk = 0; chunk < table.count; chunk += 1) {
      if (pages.touches(offset + (table.offsets[chunk] ?? 0), storedLength(table.storedWords[chunk] ?? 0))) count += 1;
    }
  }
  return count;
}
