/**
 * Restore target: an existing image or block device that is brought to a point by writing only
 * what differs.
 *
 * Every range is read, compared granule by granule, and runs of differing granules are written. What
 * is known to differ is written as it is, because reading it may take a slow disk as long. Zeros are
 * compared only where the file system says that data is allocated. Until the end the image is neither
 * its old self nor the point; an interrupted run is simply run again.
 *
 * A file gets the volume's size. A fixed VHD keeps its UUID and is a VHD at every moment: when its
 * size changes, the new footer is written before the old one is removed. A device keeps what lies
 * behind the volume.
 *
 * Memory: a buffer of 1 MiB for each call under way.
 */
import { constants } from "node:fs";
import { deviceBytes } from "../../disk/source/file-volume.ts";
import { allocatedExtents } from "../../disk/source/holes.ts";
import { fileError, PositionalFile } from "../../disk/source/positional-file.ts";
import { systemCode, TidemarkError } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import type { RestoreTarget, TargetImage } from "./target.ts";
import { lockTarget } from "./target.ts";
import { fixedVhdFooter, readFixedVhdFooter, vhdDiskBytes, vhdFooterBytes } from "./vhd.ts";

/** A range is read and compared in pieces of this size; each call under way holds one. */
const pieceBytes: number = 1024 * 1024;

/** After so many bytes the disk is put to work. */
const syncedEveryBytes: number = 64 * 1024 * 1024;

const zeros: Uint8Array = new Uint8Array(pieceBytes);

export class InPlaceTarget implements RestoreTarget {
  readonly description: string;
  readonly resumeAt = 0;
  readonly #file: PositionalFile;
  readonly #volumeBytes: number;
  /** End of the image's disk: behind the volume a VHD is padded with zeros up to here. */
  readonly #diskBytes: number;
  readonly #isDevice: boolean;
  /** Buffers that no call holds at the moment; as many exist as calls have overlapped. */
  readonly #spare: Uint8Array[] = [];
  #bytesWritten = 0;
  #syncedAtBytes = 0;

  readonly #isCompared: boolean;

  private constructor(
    file: PositionalFile,
    { volumeBytes, isKnownToDiffer = false }: TargetImage,
    diskBytes: number,
    isDevice: boolean,
  ) {
    this.description = file.path;
    this.#isCompared = !isKnownToDiffer;
    this.#file = file;
    this.#volumeBytes = volumeBytes;
    this.#diskBytes = diskBytes;
    this.#isDevice = isDevice;
  }

  /**
   * Opens an existing file or device and gives it the size it needs. Errors: TARGET_TOO_SMALL (a
   * device), TARGET_FAILED (in use, or no VHD).
   */
  static async open(plan: TargetImage): Promise<InPlaceTarget> {
    const { path, format, volumeBytes } = plan;
    const file = await openForWriting(path);
    try {
      const stats = await file.stat();
      if (stats.isBlockDevice()) {
        await refuseTooSmall(file, path, volumeBytes);
        await plan.beforeChange?.();
        return new InPlaceTarget(file, plan, volumeBytes, true);
      }
      lockTarget(file, path);
      const sizeBytes = Number(stats.size);
      const footer = await readFixedVhdFooter(sizeBytes, async (offset, into) => await file.read(offset, into));
      if (format === "raw" && footer !== undefined)
        throw wrongForm(
          path,
          "is a fixed VHD, whose footer would be lost",
          "say `--format vhd`, or replace the file with `--force`",
        );
      if (format === "vhd" && footer === undefined)
        throw wrongForm(path, "is no fixed VHD", "say `--format raw`, or replace the file with `--force`");
      await plan.beforeChange?.();
      if (footer === undefined) {
        await file.truncate(volumeBytes);
        return new InPlaceTarget(file, plan, volumeBytes, false);
      }
      // A VHD of another program need not be padded to a MiB.
      const diskBytes = footer.diskBytes === volumeBytes ? volumeBytes : vhdDiskBytes(volumeBytes);
      const target = new InPlaceTarget(file, plan, diskBytes, false);
      if (diskBytes !== footer.diskBytes) await target.#resizeVhd(sizeBytes, fixedVhdFooter({ ...footer, diskBytes }));
      return target;
    } catch (error) {
      await file.close();
      throw failed(plan.path, error);
    }
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    if (!this.#isCompared) {
      await this.#write(offset, bytes);
      return;
    }
    for (let from = 0; from < bytes.byteLength; from += pieceBytes) {
      await this.#update(offset + from, bytes.subarray(from, from + pieceBytes));
    }
  }

  async zero(offset: number, length: number): Promise<void> {
    const end = offset + length;
    const extents = this.#isDevice ? undefined : allocatedExtents(this.#file.fd, end, offset);
    for (const extent of extents ?? [{ offset, length }]) {
      const extentEnd = extent.offset + extent.length;
      for (let at = extent.offset; at < extentEnd; at += pieceBytes) {
        await this.#update(at, zeros.subarray(0, Math.min(pieceBytes, extentEnd - at)));
      }
    }
  }

  /** Puts the disk to work now and then. It notes nothing, because a later run writes or compares again. */
  async checkpoint(): Promise<void> {
    if (this.#bytesWritten - this.#syncedAtBytes < syncedEveryBytes) return;
    this.#syncedAtBytes = this.#bytesWritten;
    try {
      await this.#file.datasync();
    } catch (error) {
      throw failed(this.description, error);
    }
  }

  async finish(): Promise<void> {
    await this.zero(this.#volumeBytes, this.#diskBytes - this.#volumeBytes);
    try {
      await this.#file.sync();
      await this.#file.close();
    } catch (error) {
      throw failed(this.description, error);
    }
  }

  async abandon(): Promise<void> {
    await this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.abandon();
  }

  /**
   * Makes the range of at most one piece equal to `wanted`, writing the runs of granules that
   * differ.
   */
  async #update(offset: number, wanted: Uint8Array): Promise<void> {
    const buffer = this.#spare.pop() ?? new Uint8Array(pieceBytes);
    const present = buffer.subarray(0, wanted.byteLength);
    try {
      const count = await this.#file.read(offset, present);
      if (count < present.byteLength) {
        throw new TidemarkError(
          "TARGET_FAILED",
          `the target ${this.description} ended at byte ${String(offset + count)} while it was written`,
          {
            remedy: "keep other programs from changing it, then run the command again",
          },
        );
      }
      for (const [from, end] of differingRuns(offset, present, wanted))
        await this.#write(offset + from, wanted.subarray(from, end));
    } catch (error) {
      throw failed(this.description, error);
    } finally {
      this.#spare.push(buffer);
    }
  }

  async #write(offset: number, bytes: Uint8Array): Promise<void> {
    try {
      await this.#file.write(offset, bytes);
    } catch (error) {
      throw failed(this.description, error);
    }
    this.#bytesWritten += bytes.byteLength;
  }

  /**
   * New footer first, then the old one goes: cut off when the disk shrinks, overwritten with zeros
   * when it grows.
   */
  async #resizeVhd(oldBytes: number, footer: Uint8Array): Promise<void> {
    await this.#file.write(this.#diskBytes, footer);
    await this.#file.truncate(this.#diskBytes + vhdFooterBytes);
    const oldDiskBytes = oldBytes - vhdFooterBytes;
    if (oldDiskBytes < this.#diskBytes) await this.#update(oldDiskBytes, zeros.subarray(0, vhdFooterBytes));
  }
}

/**
 * The runs of granules in which `wanted` differs from what is `present` at `offset`. Granules are
 * those of the volume, so that a run begins and ends where change tracking would see it.
 */
export function* differingRuns(
  offset: number,
  present: Uint8Array,
  wanted: Uint8Array,
): Generator<readonly [from: number, end: number], void> {
  const length = wanted.byteLength;
  for (let at = 0; at < length; ) {
    const start = at;
    while (at < length && differs(present, wanted, at, granuleEnd(offset, at, length)))
      at = granuleEnd(offset, at, length);
    if (at > start) yield [start, at];
    else at = granuleEnd(offset, at, length);
  }
}

/** End, relative to `offset`, of the granule that holds byte `offset + at`. */
function granuleEnd(offset: number, at: number, length: number): number {
  return Math.min(length, at + granuleBytes - ((offset + at) % granuleBytes));
}

function differs(present: Uint8Array, wanted: Uint8Array, start: number, end: number): boolean {
  return Buffer.compare(present.subarray(start, end), wanted.subarray(start, end)) !== 0;
}

async function openForWriting(path: string): Promise<PositionalFile> {
  try {
    // On a block device of Linux O_EXCL claims it for as long as it is open: EBUSY when it is
    // mounted or part of something. Of a file that exists it asks nothing.
    return await PositionalFile.open(path, constants.O_RDWR | constants.O_EXCL);
  } catch (error) {
    if (systemCode(error) === "EBUSY") {
      throw new TidemarkError("TARGET_FAILED", `the block device ${path} is mounted or in use`, {
        remedy: "unmount it and release it from LVM, RAID or swap, then run the command again",
        detail: { target: path },
        cause: error,
      });
    }
    throw failed(path, error);
  }
}

/** Errors: TARGET_TOO_SMALL. */
export async function refuseTooSmall(file: PositionalFile, path: string, volumeBytes: number): Promise<void> {
  const targetBytes = await deviceBytes(file);
  if (targetBytes >= volumeBytes) return;
  throw new TidemarkError(
    "TARGET_TOO_SMALL",
    `the target ${path} has ${targetBytes} bytes, the volume ${volumeBytes}`,
    {
      remedy: "name a larger device",
      detail: { target: path, targetBytes, volumeBytes },
    },
  );
}

function wrongForm(path: string, fact: string, remedy: string): TidemarkError {
  return new TidemarkError("TARGET_FAILED", `the target ${path} ${fact}`, { remedy, detail: { target: path } });
}

function failed(path: string, cause: unknown): TidemarkError {
  return fileError(cause, {
    code: "TARGET_FAILED",
    what: `cannot write the target ${path}`,
    remedy: "check the disk that holds it, then run the command again",
    detail: { target: path },
  });
}
