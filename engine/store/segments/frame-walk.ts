/**
 * Frame walk: reads the tables of a segment's frames in order. One read brings a frame's table and
 * the header behind it, so a segment of n frames costs n + 1 small reads. Frames that a collection
 * has freed are skipped.
 */
import { throwIfAborted } from "../../errors.ts";
import type { CallOptions } from "../../sink.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { checksum } from "../format/checksum.ts";
import type { FrameHeader, FrameTable } from "../format/frame.ts";
import { decodeFrameHeader, decodeFrameTable, frameHeaderBytes } from "../format/frame.ts";
import type { Store } from "../store.ts";
import type { PageSet } from "./page-set.ts";

export interface WalkedFrame {
  /** Offset of the frame in the segment, in bytes. */
  readonly offset: number;
  readonly header: FrameHeader;
  readonly table: FrameTable;
}

export interface WalkedSegment {
  readonly name: string;
  readonly sizeBytes: number;
  /** Pages that have been freed or are condemned. */
  readonly dead: PageSet | undefined;
}

/**
 * Frames in their order. Errors: DAMAGED, FORMAT_UNSUPPORTED, OBJECT_NOT_FOUND and those of the
 * store.
 */
export async function* walkFrames(
  store: Store,
  vaultId: Uint8Array,
  segment: WalkedSegment,
  options: CallOptions,
): AsyncGenerator<WalkedFrame, void> {
  const { name, sizeBytes } = segment;
  const place = { vaultId, segmentId: checksum(Buffer.from(name)), tablesKey: store.keys?.tables(name) };
  let offset = 0;
  let headerBytes: Uint8Array | undefined;
  while (offset + pageAlignmentBytes <= sizeBytes) {
    throwIfAborted(options.signal);
    // A header's page is dead only together with its whole frame, so a run of dead pages that holds
    // a header ends at the next living frame.
    const page = offset / pageAlignmentBytes;
    if (segment.dead?.has(page) === true) {
      offset = segment.dead.endOfRun(page) * pageAlignmentBytes;
      headerBytes = undefined;
      continue;
    }
    if (headerBytes === undefined) {
      headerBytes = new Uint8Array(frameHeaderBytes);
      await store.readPages(name, offset, headerBytes, options);
    }
    if (headerBytes.every((byte) => byte === 0)) return;
    const header = decodeFrameHeader(headerBytes, name, { ...place, offset });
    const hasNext = offset + header.frameBytes + pageAlignmentBytes <= sizeBytes;
    const tail = new Uint8Array(header.frameBytes - header.tableOffset + (hasNext ? frameHeaderBytes : 0));
    await store.readPages(name, offset + header.tableOffset, tail, options);
    yield { offset, header, table: decodeFrameTable(tail.subarray(0, header.tableBytes), name, header) };
    offset += header.frameBytes;
    headerBytes = tail.subarray(tail.length - frameHeaderBytes);
  }
}
