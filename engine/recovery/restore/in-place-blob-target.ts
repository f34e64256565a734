/**
 * Restore target: an existing page blob that holds a fixed VHD, brought to a point by writing only
 * what differs.
 *
 * Every range is read, compared granule by granule, and written from the first granule that differs
 * to the last one. The size of a page blob is fixed, so the volume must have the size that the VHD
 * has. The footer stays. Until the end the image is neither its old self nor the point.
 *
 * Every run draws a sequence number above the blob's and fences its writes with it, so a second run
 * stops the first one. A write whose outcome is unknown is sent again, with the same bytes for a
 * range that nothing else writes. At the end the number is raised once more: no late write can change
 * the blob from then on.
 *
 * Memory: two buffers of 4 MiB for each call under way.
 */
import { randomInt } from "node:crypto";
import { hasCode, TidemarkError } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import { pageAlignmentBytes, pageWriteBytesMax, type Sink } from "../../sink.ts";
import type { RestoreTarget } from "./target.ts";
import { readFixedVhdFooter, vhdDiskBytes } from "./vhd.ts";

/** A range is read and compared in pieces of this size. */
const pieceBytes: number = pageWriteBytesMax;
/** How often a write of unknown outcome is sent in all. */
const attemptsMax = 5;
/** By how much the sequence number rises at most. */
const raiseMax: number = 2 ** 20;

/** A page blob that a target is made of, or is to be. */
export interface BlobOptions {
  readonly name: string;
  readonly volumeBytes: number;
  readonly sink: Sink;
  readonly signal?: AbortSignal | undefined;
}

export class InPlaceBlobTarget implements RestoreTarget {
  readonly description: string;
  readonly resumeAt = 0;
  readonly #options: BlobOptions;
  readonly #fence: { readonly sequenceNumber: number };
  #bytesWritten = 0;

  private constructor(options: BlobOptions, sequenceNumber: number) {
    this.description = `blob:${options.name} in ${options.sink.description}`;
    this.#options = options;
    this.#fence = { sequenceNumber };
  }

  /** Errors: TARGET_FAILED when it is absent, no fixed VHD, or one of another size. */
  static async open(options: BlobOptions): Promise<InPlaceBlobTarget> {
    const { name, volumeBytes, sink, signal } = options;
    try {
      const before = await sink.statPages(name, { signal });
      const footer = await readFixedVhdFooter(
        before.sizeBytes,
        async (offset, into) => await sink.readPages(name, offset, into, { signal }),
      );
      if (footer === undefined) throw wrongForm(name, "is no fixed VHD");
      if (footer.diskBytes !== vhdDiskBytes(volumeBytes))
        throw wrongForm(name, `holds a disk of ${footer.diskBytes} bytes, the point one of ${volumeBytes}`);
      const drawn = before.sequenceNumber + randomInt(1, raiseMax);
      const { sequenceNumber } = await sink.raiseSequenceNumber(name, drawn, { signal });
      if (sequenceNumber !== drawn) throw overtaken(name);
      return new InPlaceBlobTarget(options, drawn);
    } catch (error) {
      if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
      throw wrongForm(name, "does not exist, so nothing can be changed in place", error);
    }
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    for (let from = 0; from < bytes.byteLength; from += pieceBytes) {
      const part = bytes.subarray(from, from + pieceBytes);
      // Pages are whole: behind the end of the volume they hold zeros.
      const wanted = new Uint8Array(Math.ceil(part.byteLength / pageAlignmentBytes) * pageAlignmentBytes);
      wanted.set(part);
      await this.#update(offset + from, wanted);
    }
  }

  async zero(offset: number, length: number): Promise<void> {
    const end = Math.ceil((offset + length) / pageAlignmentBytes) * pageAlignmentBytes;
    for (let at = offset; at < end; at += pieceBytes)
      await this.#update(at, new Uint8Array(Math.min(pieceBytes, end - at)));
  }

  /** Nothing to note: a later run compares again. */
  checkpoint(): Promise<void> {
    return Promise.resolve();
  }

  async finish(): Promise<void> {
    const { name, volumeBytes, sink, signal } = this.#options;
    const paddingFrom = Math.ceil(volumeBytes / pageAlignmentBytes) * pageAlignmentBytes;
    await this.zero(paddingFrom, vhdDiskBytes(volumeBytes) - paddingFrom);
    const last = this.#fence.sequenceNumber + 1;
    const { sequenceNumber } = await sink.raiseSequenceNumber(name, last, { signal });
    if (sequenceNumber !== last) throw overtaken(name);
  }

  /** The blob stays, as far as it has come. */
  abandon(): Promise<void> {
    return Promise.resolve();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.abandon();
  }

  /** Makes the pages from `offset` equal to `wanted`, at most one piece. */
  async #update(offset: number, wanted: Uint8Array): Promise<void> {
    const { name, sink, signal } = this.#options;
    const present = new Uint8Array(wanted.byteLength);
    await sink.readPages(name, offset, present, { signal });
    const differing = differingRange(present, wanted);
    if (differing === undefined) return;
    const bytes = wanted.subarray(differing.from, differing.end);
    for (let attempt = 1; ; attempt += 1) {
      try {
        await sink.writePages(name, offset + differing.from, bytes, this.#fence, { signal });
        this.#bytesWritten += bytes.byteLength;
        return;
      } catch (error) {
        if (hasCode(error, "CONDITION_FAILED", "OBJECT_NOT_FOUND")) throw overtaken(name, error);
        if (!hasCode(error, "OUTCOME_UNKNOWN") || attempt === attemptsMax) throw error;
      }
    }
  }
}

/** From the first granule that differs to the end of the last one; undefined: all are equal. */
function differingRange(
  present: Uint8Array,
  wanted: Uint8Array,
): { readonly from: number; readonly end: number } | undefined {
  let from: number | undefined;
  let end = 0;
  for (let at = 0; at < wanted.byteLength; at += granuleBytes) {
    const granuleEnd = Math.min(at + granuleBytes, wanted.byteLength);
    if (Buffer.compare(present.subarray(at, granuleEnd), wanted.subarray(at, granuleEnd)) === 0) continue;
    from ??= at;
    end = granuleEnd;
  }
  return from === undefined ? undefined : { from, end };
}

function wrongForm(name: string, fact: string, cause?: unknown): TidemarkError {
  return new TidemarkError("TARGET_FAILED", `the target blob:${name} ${fact}`, {
    remedy: "replace it with `--force`, or name another blob",
    detail: { name },
    cause,
  });
}

function overtaken(name: string, cause?: unknown): TidemarkError {
  return new TidemarkError("TARGET_FAILED", `the target blob:${name} was written, replaced or deleted meanwhile`, {
    remedy: "let only one run write this blob, then run the command again",
    detail: { name },
    cause,
  });
}
