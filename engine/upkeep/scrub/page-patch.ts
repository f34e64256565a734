/**
 * Rewriting of bytes in a segment where they lie, without changing the bytes beside them.
 *
 * What lies in the same pages is read twice, compared, and written back under the ETag that it was
 * read at. A segment that was cut short gets its length back first; one that is gone is made anew
 * if committed points need a chunk of it.
 *
 * A segment that its writer may still append to is left alone: the writer would take a foreign
 * ETag for a store that went back in time. A restored segment gets the first sequence number of
 * the epoch after its own, so no write of its epoch that is still under way can arrive in it.
 */

import { hasCode, isDiskUnreadable, isUnreadable } from "../../errors.ts";
import { segmentBytes } from "../../limits.ts";
import type { Notice } from "../../notice.ts";
import type { PagesStat } from "../../sink.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { sameBytes } from "../../store/format/checksum.ts";
import type { HeadDocument } from "../../store/format/documents.ts";
import { decodeDiskName, firstSequenceNumber, parseSegmentName, segmentEpochPrefix } from "../../store/format/names.ts";
import type { VaultPlace } from "../../store/place.ts";
import { readHead } from "../../store/points/head.ts";
import { WriterLease } from "../../store/points/writer-lease.ts";
import { unknownOutcomesMax } from "../../store/store.ts";

export interface PatchOptions extends VaultPlace {
  readonly onNotice: (notice: Notice) => void;
  /** Called with a disk whose writer may still append to a segment that needs healing. */
  readonly onOpen?: ((disk: string) => void) | undefined;
}

/** How a segment is to be patched. */
export interface Patch {
  readonly segment: string;
  readonly offset: number;
  /** At most a frame. */
  readonly bytes: Uint8Array;
  /** Make the segment anew if it is gone. */
  readonly makes: boolean;
}

/** The condition of a segment's object. */
interface SegmentCondition {
  /** Undefined: it is gone. */
  readonly pages: PagesStat | undefined;
  /** What is wrong with it as a whole; undefined: nothing. */
  readonly fault: string | undefined;
}

const openNow = "its writer may still append to the segment; it can be healed after the writer's session";

/**
 * Writes a patch until `isDone` says that its bytes are there. Returns why that cannot be done, or
 * undefined. Errors: those of the store.
 */
export async function patchPages(
  options: PatchOptions,
  patch: Patch,
  isDone: () => Promise<boolean>,
): Promise<string | undefined> {
  const { pages, fault } = await stateOf(options, patch.segment);
  if (pages === undefined && fault === undefined && !patch.makes) return "the segment is gone";
  if ((await ownership(options, patch.segment)) === "open") return openNow;
  const refusal = fault === undefined && pages !== undefined ? undefined : await restoreSegment(options, patch.segment);
  if (refusal !== undefined) return refusal;
  let failure = "";
  for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
    try {
      const unsound = await write(options, patch);
      if (unsound !== undefined) return unsound;
    } catch (error) {
      // Pages were written or cleared meanwhile, or the outcome of our write is unknown: what is
      // stored now is read again.
      if (!hasCode(error, "CONDITION_FAILED", "OUTCOME_UNKNOWN")) throw error;
      failure = `: ${error.message}`;
    }
    if (await isDone()) return undefined;
  }
  return `it was written, but does not read back${failure}`;
}

/**
 * Restores the length and header of a segment that was cut short or whose object is damaged, so
 * that what is left of it can be read. Returns what was wrong, and why it still is; undefined when
 * nothing was. Errors: those of the store.
 */
export async function mendSegment(
  options: PatchOptions,
  segment: string,
): Promise<{ readonly fault: string; readonly refusal: string | undefined } | undefined> {
  const { fault } = await stateOf(options, segment);
  if (fault === undefined) return undefined;
  const refusal = (await ownership(options, segment)) === "open" ? openNow : await restoreSegment(options, segment);
  return { fault, refusal };
}

async function stateOf({ store, signal }: PatchOptions, segment: string): Promise<SegmentCondition> {
  try {
    const pages = await store.statPages(segment, { signal });
    const isShort = pages.sizeBytes < segmentBytes;
    return {
      pages,
      fault: isShort ? `${segment} was cut short: it ends at byte ${String(pages.sizeBytes)}` : undefined,
    };
  } catch (error) {
    if (hasCode(error, "OBJECT_NOT_FOUND")) return { pages: undefined, fault: undefined };
    if (hasCode(error, "DAMAGED")) return { pages: undefined, fault: error.message };
    throw error;
  }
}

/** Returns why that cannot be done. */
async function restoreSegment(options: PatchOptions, segment: string): Promise<string | undefined> {
  const { store, signal } = options;
  const parsed = parseSegmentName(segment);
  const head = await headOf(options, segment);
  // A segment of an epoch that is still to come, as a store that went back in time lets it appear,
  // will be another writer's.
  if (parsed === undefined || head === undefined || parsed.epoch > head.epoch)
    return "a writer may still make a segment of its name";
  try {
    await store.restorePages(segment, segmentBytes, firstSequenceNumber(parsed.epoch + 1), { signal });
    return undefined;
  } catch (error) {
    if (isUnreadable(error)) return error.message;
    throw error;
  }
}

async function write({ store, signal }: PatchOptions, { segment, offset, bytes }: Patch): Promise<string | undefined> {
  const from = offset - (offset % pageAlignmentBytes);
  const end = Math.ceil((offset + bytes.length) / pageAlignmentBytes) * pageAlignmentBytes;
  const [pages, again] = [new Uint8Array(end - from), new Uint8Array(end - from)];
  let there: PagesStat;
  try {
    there = await store.statPages(segment, { signal });
    if (there.sizeBytes < end) return `the segment ends at byte ${String(there.sizeBytes)}`;
    await store.readPages(segment, from, pages, { signal });
    await store.readPages(segment, from, again, { signal });
  } catch (error) {
    if (hasCode(error, "OBJECT_NOT_FOUND")) return "the segment is gone";
    if (isUnreadable(error)) return error.message;
    throw error;
  }
  pages.set(bytes, offset - from);
  again.set(bytes, offset - from);
  if (!sameBytes(pages, again)) return "what lies beside it does not read the same twice";
  await store.writePages(segment, from, pages, { sequenceNumber: there.sequenceNumber, etag: there.etag }, { signal });
  return undefined;
}

/**
 * Whether a writer may still append to the segment. A dead writer is locked out by taking its
 * lease.
 */
async function ownership(options: PatchOptions, segment: string): Promise<"open" | "closed"> {
  const { store, vault, onNotice, onOpen, signal } = options;
  const parsed = parseSegmentName(segment);
  const head = await headOf(options, segment);
  // Without a head there is no writer lease.
  if (parsed === undefined || head === undefined || parsed.epoch < head.epoch || head.writer === null) return "closed";
  const { disk } = head;
  for await (const { name } of store.list(segmentEpochPrefix(disk, parsed.epoch), { signal })) {
    const other = parseSegmentName(name);
    if (other?.lane === parsed.lane && other.ordinal > parsed.ordinal) return "closed";
  }
  try {
    const writerLease = await WriterLease.take({ store, vault, disk, onNotice, signal });
    await writerLease.release();
    return "closed";
  } catch (error) {
    if (isDiskUnreadable(error)) return "closed";
    if (!hasCode(error, "WRITER_ACTIVE")) throw error;
    onOpen?.(disk);
    return "open";
  }
}

/**
 * The head of the disk whose writer made the segment; undefined when it is not there or cannot be
 * read.
 */
async function headOf({ store, vault, signal }: PatchOptions, segment: string): Promise<HeadDocument | undefined> {
  const disk = decodeDiskName(parseSegmentName(segment)?.encodedDisk ?? "");
  if (disk === undefined) return undefined;
  try {
    return (await readHead(store, vault, disk, signal)).head;
  } catch (error) {
    if (isDiskUnreadable(error)) return undefined;
    throw error;
  }
}
