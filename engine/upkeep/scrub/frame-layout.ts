/**
 * Where the frames of a stretch of a segment may stand whose own headers and tables are lost. Chunks that points need stay where they are, so what is laid out
 * anew are the places between them: a header in front, a table behind, and gaps for what nobody knows any more.
 *
 *     │ header │ gap │ chunk │ chunk │ gap │ chunk │ table │    │ header │ …
 *
 * It always fits, because it did once: a gap stands for one chunk at least that is needed no more, or it is where a frame ended and the next began.
 */

import { digestBytes, frameBytesMax, segmentBytes } from "../../limits.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import {
  frameChunksMax,
  frameHeaderBytes,
  payloadAlignment,
  storedLength,
  storedLz4Flag,
  tableEntryBytes,
} from "../../store/format/frame.ts";
import type { PageSet } from "../../store/segments/page-set.ts";

/** What the maps of points tell of a chunk. */
export interface KnownChunk {
  /** Of its payload in the segment. */
  readonly offset: number;
  readonly storedWord: number;
  readonly digest: Uint8Array;
  readonly granules: number;
  /** First granules at which it is shown, some of them. */
  readonly places: ReadonlySet<number>;
}

/** A chunk, and whether its payload is what it must be. One that is not keeps its place, but is not told of. */
export interface LaidChunk extends KnownChunk {
  readonly isProved: boolean;
}

export interface Stretch {
  /** Where the frame has to begin. */
  readonly offset: number;
  /** Where a living frame stands behind it; undefined: nowhere. */
  readonly end: number | undefined;
  /** Needed chunks from `offset` on, in rising order. */
  readonly chunks: readonly LaidChunk[];
  /** Pages that have been given back, or may be: nothing is to be written there that is to stay. */
  readonly given: PageSet;
}

export interface FrameLayout {
  readonly frameBytes: number;
  /** In the frame. */
  readonly tableOffset: number;
  readonly table: Uint8Array;
  readonly chunkCount: number;
}

/** The first granule of a gap: that of no chunk. */
const noGranule = 0xffff_ffff;

/** The longest frame that can stand there; behind the last needed chunk the shortest. Undefined: none can. */
export function layFrame(stretch: Stretch): FrameLayout | undefined {
  const { offset, end, chunks, given } = stretch;
  const limit = Math.min(offset + frameBytesMax, segmentBytes, end ?? Infinity);
  const entries: Entry[] = [];
  let at = offset + frameHeaderBytes;
  let best: { readonly cut: Cut; readonly count: number } | undefined;
  const laidBest = (): FrameLayout | undefined => (best === undefined ? undefined : laid(offset, best.cut, entries.slice(0, best.count)));
  const behind = placeBehind(given, offset);
  // Nothing that is needed lies there, and when it is given back the header goes, too.
  if (behind > offset) return laid(offset, { end: Math.min(behind, limit), tableOffset: offset + frameHeaderBytes }, []);
  for (const chunk of chunks) {
    const cut = lastCut(stretch, at, Math.min(chunk.offset - frameHeaderBytes, limit), chunk.offset, entries.length);
    if (cut !== undefined) best = { cut, count: entries.length };
    if (chunk.offset < at || chunk.offset + storedLength(chunk.storedWord) > limit || entries.length + 2 > frameChunksMax)
      return laidBest();
    if (chunk.offset > at) entries.push(gapOf(chunk.offset - at));
    entries.push(chunk.isProved ? chunk : gapOf(storedLength(chunk.storedWord)));
    at = aligned(chunk.offset + storedLength(chunk.storedWord), payloadAlignment);
  }
  const cut = end === undefined ? firstCut(stretch, at, limit, entries.length) : lastCut(stretch, at, limit, Infinity, entries.length);
  return cut === undefined ? laidBest() : laid(offset, cut, entries);
}

type Entry = Omit<KnownChunk, "offset">;

interface Cut {
  /** The end of the frame. */
  readonly end: number;
  readonly tableOffset: number;
}

/** The last place not behind `max` at which a frame may end whose payloads end at `at`, so that the next one begins well before `next`. */
function lastCut(stretch: Stretch, at: number, max: number, next: number, count: number): Cut | undefined {
  for (let end = max - (max % pageAlignmentBytes); end >= at + count * tableEntryBytes && end > stretch.offset; end -= pageAlignmentBytes) {
    if (placeBehind(stretch.given, end) + frameHeaderBytes > next) continue;
    const tableOffset = tablePlace(stretch, at, end, count);
    if (tableOffset !== undefined) return { end, tableOffset };
  }
  return undefined;
}

/** The first place up to `max` at which a frame may end. */
function firstCut(stretch: Stretch, at: number, max: number, count: number): Cut | undefined {
  for (let end = aligned(at + count * tableEntryBytes, pageAlignmentBytes); end <= max; end += pageAlignmentBytes) {
    const tableOffset = tablePlace(stretch, at, end, count);
    if (tableOffset !== undefined) return { end, tableOffset };
  }
  return undefined;
}

/**
 * Where everybody comes together who comes to `end`: some pass over a run of pages that begins there, those who do not know yet that it has been given back go
 * through it.
 */
function placeBehind(given: PageSet, end: number): number {
  return given.endOfRun(end / pageAlignmentBytes) * pageAlignmentBytes;
}

/** Right behind the payloads, as a writer has it, if the frame ends there; else as far back as it can stand. */
function tablePlace({ given }: Stretch, at: number, end: number, count: number): number | undefined {
  const length = count * tableEntryBytes;
  if (aligned(at + length, pageAlignmentBytes) === end && !given.touches(at, length)) return at;
  for (let tableOffset = end - length - ((end - length) % payloadAlignment); tableOffset >= at; tableOffset -= pageAlignmentBytes) {
    if (!given.touches(tableOffset, length)) return tableOffset;
  }
  return undefined;
}

function laid(offset: number, { end, tableOffset }: Cut, entries: readonly Entry[]): FrameLayout {
  const count = entries.length;
  const table = Buffer.alloc(count * tableEntryBytes);
  for (const [index, { digest, storedWord, granules, places }] of entries.entries()) {
    const [granule = noGranule] = places;
    table.set(digest, index * digestBytes);
    table.writeUInt32LE(storedWord, count * digestBytes + index * 4);
    table.writeUInt32LE(granule, count * (digestBytes + 4) + index * 4);
    table.writeUInt16LE(granules, count * (digestBytes + 8) + index * 2);
  }
  return { frameBytes: end - offset, tableOffset: tableOffset - offset, table, chunkCount: count };
}

/** Bytes of which nobody knows what they are, told of as a payload that gives nothing. */
function gapOf(length: number): Entry {
  return { storedWord: storedLz4Flag + length, digest: new Uint8Array(digestBytes), granules: 0, places: new Set() };
}

function aligned(value: number, alignment: number): number {
  return Math.ceil(value / alignment) * alignment;
}
