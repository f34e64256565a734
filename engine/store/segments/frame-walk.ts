/**
 * Goes through a segment from frame to frame. One read brings a frame's table and the header behind it, so a segment of n frames costs n + 1
 * small reads. Frames that a collection has given back are passed over.
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
  /** In the segment. */
  readonly offset: number;
  readonly header: FrameHeader;
  readonly table: FrameTable;
}

export interface WalkedSegment {
  readonly name: string;
  readonly sizeBytes: number;
  /** Pages that have been given back, or may be. */
  readonly dead: PageSet | undefined;
}

/** Frames in their order. Errors: DAMAGED, FORMAT_UNSUPPORTED, OBJECT_NOT_FOUND and those of the store. */
export async function* walkFrames(
  store: Store,
  vaultId: Uint8Array,
  segment: WalkedSegment,
  options: CallOptions,
): AsyncGenerator<WalkedFrame, void> {
  const { name, sizeBytes } = segment;
  const segmentId = checksum(Buffer.from(name));
  let offset = 0;
  let headerBytes: Uint8Array | undefined;
  while (offset + pageAlignmentBytes <= sizeBytes) {
    throwIfAborted(options.signal);
    // The page of a header is dead only with its whole frame, and a run of dead pages that takes in a header ends where a living frame begins.
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
    const header = decodeFrameHeader(headerBytes, name, { vaultId, segmentId, offset });
    const hasNext = offset + header.frameBytes + pageAlignmentBytes <= sizeBytes;
    const tail = new Uint8Array(header.frameBytes - header.tableOffset + (hasNext ? frameHeaderBytes : 0));
    await store.readPages(name, offset + header.tableOffset, tail, options);
    yield { offset, header, table: decodeFrameTable(tail.subarray(0, header.tableBytes), name, header) };
    offset += header.frameBytes;
    headerBytes = tail.subarray(tail.length - frameHeaderBytes);
  }
}
