/**
 * What of a segment can be given back. A frame of which something is needed keeps its header and its table, so that its chunks can be found again without
 * any map; the last frame keeps them in any case, because a segment that ends earlier than a writer remembers looks like one of which the store has
 * forgotten a part. Pages are cleared where they lie: page objects are sparse, so nothing has to be moved, and every place stays what it was.
 */
import type { TidemarkError } from "../../errors.ts";
import type { CallOptions } from "../../sink.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { damaged } from "../../store/format/fields.ts";
import { frameHeaderBytes, storedLength } from "../../store/format/frame.ts";
import type { PageRun } from "../../store/format/reclaim.ts";
import type { WalkedFrame } from "../../store/segments/frame-walk.ts";
import { walkFrames } from "../../store/segments/frame-walk.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import type { Store } from "../../store/store.ts";

/** Giving back less is not worth a request. */
const runPagesMin = 4;
/** Tables are read when at least so much of a segment may be given back. */
const worthwhileShare = 0.05;

export interface SegmentPlan {
  /** Pages that frames take and that have not been given back. */
  readonly storedPages: number;
  /** Nothing in it is needed: it can be deleted as a whole. */
  readonly isDead: boolean;
  /** Pages to give back. */
  readonly condemned: readonly PageRun[];
  /** Chunks that lie in them, wholly or in part. */
  readonly condemnedChunks: number;
}

/** What a segment is judged by: pages with chunks that are needed, and pages that have been given back. */
export interface SegmentPages {
  readonly live: PageSet;
  readonly dead: PageSet;
}

/**
 * Whether enough may be given back to read the frames' tables. `stored`: pages that were written and have not been given back; `kept`: how many of them had
 * to stay the last time. Errors: DAMAGED when what is needed has been given back or was never written.
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
 * Reads the frames' tables. Errors: DAMAGED when a frame cannot be read, or when what is needed has been given back or is not there; and those of the
 * store.
 */
export async function planSegment(
  store: Store,
  vaultId: Uint8Array,
  segment: { readonly name: string; readonly sizeBytes: number },
  { live, dead }: SegmentPages,
  options: CallOptions,
): Promise<SegmentPlan> {
  const frames: WalkedFrame[] = [];
  for await (const frame of walkFrames(store, vaultId, { ...segment, dead }, options)) frames.push(frame);
  const kept = new PageSet();
  const deadFrames = new PageSet();
  let livePages = 0;
  let storedPages = 0;
  for (const frame of frames) {
    const { from, end } = pagesOf(frame);
    let needed = 0;
    for (let page = from; page < end; page += 1) {
      if (dead.has(page)) continue;
      storedPages += 1;
      if (live.has(page)) needed += 1;
    }
    if (needed > 0 || frame === frames.at(-1)) keepHeaderAndTable(kept, frame);
    else deadFrames.add(from, end);
    livePages += needed;
  }
  if (livePages !== live.count()) throw unreadable(segment.name);
  const isDead = livePages === 0;
  const condemned = new PageSet();
  for (const frame of frames) {
    const { from, end } = pagesOf(frame);
    for (let page = from; page < end; page += 1) {
      if (!dead.has(page) && (isDead || !(live.has(page) || kept.has(page)))) condemned.add(page, page + 1);
    }
  }
  // Of a frame that goes, header and table go together, however little each is by now: whoever walks the segment would stumble over either alone.
  const runs = condemned.runs().filter(({ from, end }) => isDead || end - from >= runPagesMin || deadFrames.touchesPages(from, end));
  return { storedPages, isDead, condemned: runs, condemnedChunks: chunksIn(frames, PageSet.ofRuns(runs)) };
}

function unreadable(segment: string): TidemarkError {
  return damaged(segment, "committed points need pages of it that have been given back or were never written");
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
