/**
 * Restore target: the redo log of an image that stays as it is.
 *
 * The image is compared, and only what differs is staged. If the log holds a point already, it gets
 * the differences between that point and this one: then the image says nothing any more, and
 * everything is staged as it comes.
 *
 * Memory: a buffer of 1 MiB for each call under way.
 */
import { constants } from "node:fs";
import { allocatedExtents } from "../../disk/source/holes.ts";
import { fileError, PositionalFile } from "../../disk/source/positional-file.ts";
import { differingRuns, refuseTooSmall } from "./in-place-target.ts";
import { type RedoLog, recordBytesMax, type StagedPoint } from "./redo-log.ts";
import type { RestoreTarget } from "./target.ts";

const zeros: Uint8Array = new Uint8Array(recordBytesMax);

export class StagedTarget implements RestoreTarget {
  readonly description: string;
  readonly resumeAt = 0;
  readonly #log: RedoLog;
  readonly #staged: StagedPoint;
  readonly #image: PositionalFile;
  readonly #isCompared: boolean;
  readonly #before: number;

  private constructor(path: string, log: RedoLog, staged: StagedPoint, image: PositionalFile, isCompared: boolean) {
    this.description = path;
    this.#log = log;
    this.#staged = staged;
    this.#image = image;
    this.#isCompared = isCompared;
    this.#before = log.bytesWritten;
  }

  /**
   * Stages `staged` for the image at `path`. `isCompared`: nothing is known of its content, so
   * every range is given and compared. Errors: TARGET_FAILED, TARGET_TOO_SMALL, ACCESS_REFUSED.
   */
  static async open(path: string, log: RedoLog, staged: StagedPoint, isCompared: boolean): Promise<StagedTarget> {
    let image: PositionalFile | undefined;
    try {
      image = await PositionalFile.open(path, constants.O_RDONLY);
      if ((await image.stat()).isBlockDevice()) await refuseTooSmall(image, path, staged.volumeBytes);
      return new StagedTarget(path, log, staged, image, isCompared);
    } catch (error) {
      await image?.close();
      throw failed(path, error);
    }
  }

  get bytesWritten(): number {
    return this.#log.bytesWritten - this.#before;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    if (this.#isCompared) await this.#compare(offset, bytes);
    else await this.#log.write(offset, bytes);
  }

  async zero(offset: number, length: number): Promise<void> {
    if (!this.#isCompared) {
      await this.#log.zero(offset, length);
      return;
    }
    const end = offset + length;
    for (const extent of allocatedExtents(this.#image.fd, end, offset) ?? [{ offset, length }]) {
      const extentEnd = Math.min(end, extent.offset + extent.length);
      for (let at = Math.max(offset, extent.offset); at < extentEnd; at += recordBytesMax)
        await this.#compare(at, zeros.subarray(0, Math.min(recordBytesMax, extentEnd - at)));
    }
  }

  /** Notes nothing, because the log's markers say what is whole. */
  async checkpoint(): Promise<void> {
    await this.#log.syncSome();
  }

  async finish(): Promise<void> {
    await this.abandon();
    await this.#log.mark(this.#staged);
  }

  async abandon(): Promise<void> {
    await this.#image.close();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.abandon();
  }

  /** Stages the granules of `wanted` that the image does not have. Behind its end it has zeros. */
  async #compare(offset: number, wanted: Uint8Array): Promise<void> {
    for (let from = 0; from < wanted.byteLength; from += recordBytesMax) {
      const piece = wanted.subarray(from, from + recordBytesMax);
      const present = new Uint8Array(piece.byteLength);
      try {
        await this.#image.read(offset + from, present);
      } catch (error) {
        throw failed(this.description, error);
      }
      for (const [start, end] of differingRuns(offset + from, present, piece)) {
        if (wanted.buffer === zeros.buffer) await this.#log.zero(offset + from + start, end - start);
        else await this.#log.write(offset + from + start, piece.subarray(start, end));
      }
    }
  }
}

function failed(path: string, cause: unknown): Error {
  return fileError(cause, {
    code: "TARGET_FAILED",
    what: `cannot read the target ${path}`,
    remedy: "check the disk that holds it",
    detail: { target: path },
  });
}
