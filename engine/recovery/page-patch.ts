/**
 * Puts bytes back to where they belong in a segment, without changing anything beside them. What lies in the same pages is written back as it was read, twice,
 * under the ETag that it was read at. A segment that its writer may still append to is left alone, because a writer takes a foreign ETag for a store that went
 * back in time.
 */
import { readHead, Seat } from "../control/seat.ts";
import type { Notice } from "../control/summaries.ts";
import { hasCode } from "../errors.ts";
import { sameBytes } from "../format/checksum.ts";
import { decodeDiskName, parseSegmentName, segmentEpochPrefix } from "../format/names.ts";
import type { PagesStat } from "../sink.ts";
import { pageAlignmentBytes } from "../sink.ts";
import type { Store } from "../store.ts";
import { unknownOutcomesMax } from "../store.ts";

export interface PatchOptions {
  readonly store: Store;
  readonly vault: string;
  readonly onNotice: (notice: Notice) => void;
  /** Told of a disk whose writer has something open that needs to be healed. */
  readonly onOpen?: ((disk: string) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Writes `bytes` at `offset` of a segment until `isDone` says that they are there. Returns why that cannot be done, or undefined. At most a frame.
 * Errors: those of the store.
 */
export async function patchPages(
  options: PatchOptions,
  segment: string,
  offset: number,
  bytes: Uint8Array,
  isDone: () => Promise<boolean>,
): Promise<string | undefined> {
  if (await isOpen(options, segment))
    return "its writer may still append to the segment; it can be healed once the writer has left its seat";
  let failure = "";
  for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
    try {
      const refusal = await patch(options, segment, offset, bytes);
      if (refusal !== undefined) return refusal;
    } catch (error) {
      // Somebody else has written or cleared pages meanwhile, or nobody knows whether we have: what is there now is read again.
      if (!hasCode(error, "CONDITION_FAILED", "OUTCOME_UNKNOWN")) throw error;
      failure = `: ${error.message}`;
    }
    if (await isDone()) return undefined;
  }
  return `it was written, but does not read back${failure}`;
}

async function patch({ store, signal }: PatchOptions, segment: string, offset: number, bytes: Uint8Array): Promise<string | undefined> {
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
    if (hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED")) return error.message;
    throw error;
  }
  pages.set(bytes, offset - from);
  again.set(bytes, offset - from);
  if (!sameBytes(pages, again)) return "what lies beside it does not read the same twice";
  await store.writePages(segment, from, pages, { sequenceNumber: there.sequenceNumber, etag: there.etag }, { signal });
  return undefined;
}

/** Whether a writer may still append to the segment. One that does not live is locked out by taking its seat. */
async function isOpen({ store, vault, onNotice, onOpen, signal }: PatchOptions, segment: string): Promise<boolean> {
  const parsed = parseSegmentName(segment);
  const disk = parsed === undefined ? undefined : decodeDiskName(parsed.encodedDisk);
  if (parsed === undefined || disk === undefined) return false;
  try {
    const { head } = await readHead(store, vault, disk, signal);
    if (parsed.epoch < head.epoch || head.writer === null) return false;
    for await (const { name } of store.list(segmentEpochPrefix(disk, parsed.epoch), { signal })) {
      const other = parseSegmentName(name);
      if (other?.lane === parsed.lane && other.ordinal > parsed.ordinal) return false;
    }
    const seat = await Seat.take({ store, vault, disk, onNotice, signal });
    await seat.release();
    return false;
  } catch (error) {
    if (hasCode(error, "WRITER_ACTIVE")) {
      onOpen?.(disk);
      return true;
    }
    // Without a head nobody can hold the seat, or come to it.
    if (hasCode(error, "DISK_NOT_FOUND", "DAMAGED", "FORMAT_UNSUPPORTED")) return false;
    throw error;
  }
}
