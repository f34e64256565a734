/**
 * Image file or block device as a volume: read-only, holes told by the file system.
 *
 * Whether the source was still between `beginScan` and `endScan` is judged from outside, without
 * the help of its writers:
 *
 * - A file was still if its size, modification time, change time and inode are the same before and
 *   after, and its path still names it. A second write within one tick of the file system's clock
 *   leaves the times unchanged. So a file that changed a moment ago is watched until the clock
 *   ticks.
 * - A block device was still if it was not mounted or claimed at either end and the kernel's
 *   counters of writes and discards did not move. The device is flushed at both ends, which brings
 *   buffered writes into the counters.
 *
 * A mounted file system writes to its device below the device's page cache. What that cache held
 * would be read again, however old it is, so it is dropped before a device is read (Linux).
 *
 * Not seen: a process that stores through a shared mapping into pages that were dirty before the
 * scan began moves no time stamp until the kernel writes them back. A write to a whole disk does
 * not show in the counters of its partition. For such writers, replicate a snapshot. Every other
 * doubt gives `fuzzy`.
 */
import { type BigIntStats, constants } from "node:fs";
import { readFile, realpath, stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { systemCode, TidemarkError, unlessAbsent } from "../../errors.ts";
import type { Consistency, Extent, Volume } from "../../volume.ts";
import { type FileIdentity, identityFrom } from "./file-identity.ts";
import { allocatedExtents } from "./holes.ts";
import { dropCache, libc, seekEnd } from "./libc.ts";
import { fileError, PositionalFile } from "./positional-file.ts";
import { refuseUnfinished } from "./unfinished-image.ts";

/** Longer than any tick of a kernel's clock (10 ms at 100 Hz). */
const tickMs = 50;
/** Longer than the tick of file systems that count in one or two seconds. */
const coarseTickMs = 2100;
/**
 * A change older than this lies behind every tick, even when the clock of a file server is some
 * seconds off.
 */
const settledAfterMs = 10_000;
/** How often a file may change while we wait for it to rest. */
const watchesMax = 4;

/** What must not change while a source is scanned. Two equal marks: it was still. */
type StillnessMark = string;

/**
 * An image file or block device as a volume. Whether it was still while it was read is judged from
 * outside: by the times of a file, by the kernel's counters of a device. In doubt a point is `fuzzy`.
 */
export class FileVolume implements Volume, AsyncDisposable {
  readonly description: string;
  readonly #file: PositionalFile;
  readonly #kind: "file" | "device";
  readonly #identity: FileIdentity;
  /** Where the disk ends, if that is before the file does. */
  #diskBytes = Number.POSITIVE_INFINITY;
  #before: StillnessMark | undefined;

  private constructor(file: PositionalFile, kind: "file" | "device", identity: FileIdentity) {
    this.description = file.path;
    this.#file = file;
    this.#kind = kind;
    this.#identity = identity;
  }

  /**
   * Opens an image file or block device for reading. Errors: INVALID_ARGUMENT (an instant target's
   * image that is not hydrated), SOURCE_NOT_FOUND, ACCESS_REFUSED,
   * SOURCE_UNREADABLE (a folder, a pipe, …).
   */
  static async open(path: string): Promise<FileVolume> {
    try {
      // Looked at first, because opening a pipe would wait for its writer; and again when it is
      // open, because it may have been exchanged.
      kindOf(path, await stat(path, { bigint: true }));
      const file = await PositionalFile.open(
        path,
        constants.O_RDONLY | ((constants.O_NONBLOCK as number | undefined) ?? 0),
      );
      try {
        const stats = await file.stat();
        const identity = identityFrom(await realpath(path), stats);
        await refuseUnfinished(identity.path);
        const volume = new FileVolume(file, kindOf(path, stats), identity);
        await volume.sizeBytes();
        volume.#dropStale();
        return volume;
      } catch (error) {
        await file.close();
        throw error;
      }
    } catch (error) {
      const errno = systemCode(error);
      if (
        errno === "ENOENT" ||
        errno === "ENOTDIR" ||
        errno === "ENXIO" ||
        errno === "ENODEV" ||
        errno === "ENOMEDIUM" ||
        errno === "ELOOP"
      ) {
        const fact =
          errno === "ELOOP"
            ? "is a symbolic link that leads back to itself"
            : errno === "ENOENT" || errno === "ENOTDIR"
              ? "does not exist"
              : "names a device that is not there";
        throw new TidemarkError("SOURCE_NOT_FOUND", `the source ${path} ${fact}`, {
          remedy: "check the path",
          detail: { path },
          cause: error,
        });
      }
      throw unreadable(path, error);
    }
  }

  async sizeBytes(): Promise<number> {
    if (this.#kind === "device") return deviceBytes(this.#file);
    return Math.min(Number((await this.#stat()).size), this.#diskBytes);
  }

  /** What lies behind `diskBytes`, such as the footer of a fixed VHD, is no part of the disk. */
  endAt(diskBytes: number): void {
    this.#diskBytes = diskBytes;
  }

  async reading<Result>(work: Promise<Result>): Promise<Result> {
    return await work;
  }

  get descriptor(): number {
    return this.#file.fd;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    let count: number;
    try {
      count = await this.#file.read(offset, into);
    } catch (error) {
      throw unreadable(this.description, error, offset, into.byteLength);
    }
    if (count === into.byteLength) return;
    throw new TidemarkError(
      "SOURCE_SHRUNK",
      `the source ${this.description} ended at byte ${String(offset + count)} while it was read`,
      {
        remedy:
          "wait until the program that shortened it has finished, then replicate again; replicate a disk that stays smaller under a new disk name",
        detail: { path: this.description, offset: offset + count, wantedBytes: into.byteLength - count },
      },
    );
  }

  allocated(sizeBytes: number): AsyncIterable<Extent> {
    const extents = this.#kind === "file" ? allocatedExtents(this.#file.fd, sizeBytes) : undefined;
    return asynchronous(extents ?? wholeVolume(sizeBytes));
  }

  /** Waits, for a fraction of a second as a rule, until a change to the file would show. */
  async beginScan(): Promise<void> {
    this.#dropStale();
    this.#before = this.#kind === "device" ? await deviceMark(this.#file) : await this.#restingFileMark();
  }

  async endScan(): Promise<Consistency> {
    const before = this.#before;
    this.#before = undefined;
    if (before === undefined) return "fuzzy";
    const after = this.#kind === "device" ? await deviceMark(this.#file) : fileMark(await this.#stat());
    if (after !== before) return "fuzzy";
    return (await this.#stillNamed()) ? "crash" : "fuzzy";
  }

  /** What this source is, to compare with a target. */
  identity(): FileIdentity {
    return this.#identity;
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  /** Empties a device's page cache of what may be older than the device. */
  #dropStale(): void {
    if (this.#kind === "device") libc()?.advise?.(this.#file.fd, dropCache);
  }

  async #stat(): Promise<BigIntStats> {
    try {
      return await this.#file.stat();
    } catch (error) {
      throw unreadable(this.description, error);
    }
  }

  async #restingFileMark(): Promise<StillnessMark | undefined> {
    let stats = await this.#stat();
    for (let watch = 0; watch < watchesMax; watch += 1) {
      const waitMs = restMs(stats, Date.now());
      if (waitMs === 0) return fileMark(stats);
      await delay(waitMs);
      const later = await this.#stat();
      // Nothing moved for longer than a tick: a write from now on carries a later time.
      if (fileMark(later) === fileMark(stats)) return fileMark(later);
      stats = later;
    }
    return undefined;
  }

  /**
   * Whether the path still leads to what we have open: a file that was replaced by a rename was not
   * read at one instant of the disk.
   */
  async #stillNamed(): Promise<boolean> {
    try {
      const now = identityFrom(this.#identity.path, await stat(this.description, { bigint: true }));
      return now.dev === this.#identity.dev && now.ino === this.#identity.ino && now.rdev === this.#identity.rdev;
    } catch (error) {
      if (systemCode(error) === "ENOENT") return false;
      throw unreadable(this.description, error);
    }
  }
}

/**
 * How long a file with these times has to be watched before a later write is sure to change them: 0
 * when its last change lies far back. The clock that stamps it may be a server's, so a time in the
 * future counts as recent, and whole seconds as the mark of a coarse clock.
 */
export function restMs(stats: Pick<BigIntStats, "ctimeNs">, nowMs: number): number {
  const ageMs = nowMs - Number(stats.ctimeNs / 1_000_000n);
  if (ageMs >= settledAfterMs) return 0;
  return stats.ctimeNs % 1_000_000_000n === 0n ? coarseTickMs : tickMs;
}

function fileMark(stats: BigIntStats): StillnessMark {
  return [stats.dev, stats.ino, stats.size, stats.mtimeNs, stats.ctimeNs].join(" ");
}

/**
 * Size, writes and discards of a device that no other program uses; undefined if it is in use or
 * the kernel does not count.
 */
async function deviceMark(file: PositionalFile): Promise<StillnessMark | undefined> {
  if (process.platform !== "linux") return undefined;
  try {
    // On a block device O_EXCL asks for a claim, and fails with EBUSY when a mount, a volume group
    // or another claimant has it.
    const claim = await PositionalFile.open(file.path, constants.O_RDONLY | constants.O_EXCL);
    await claim.close();
    await file.sync();
    const folder = await realpath(sysfsFolder((await file.stat()).rdev));
    const [counters, underWay, counting] = await Promise.all([
      readFile(`${folder}/stat`, "utf8"),
      readFile(`${folder}/inflight`, "utf8"),
      readFirst(`${folder}/queue/iostats`, `${folder}/../queue/iostats`),
    ]);
    const writesUnderWay = underWay.trim().split(/\s+/)[1];
    if (counting.trim() !== "1" || writesUnderWay !== "0") return undefined;
    // Sectors written and sectors discarded (Documentation/block/stat.rst); requests are not
    // compared, because our own flush counts as one.
    const fields = counters.trim().split(/\s+/);
    return `${String(await deviceBytes(file))} ${fields[6] ?? "-"} ${fields[13] ?? "-"}`;
  } catch (error) {
    if (systemCode(error) !== undefined) return undefined;
    throw error;
  }
}

async function readFirst(path: string, otherwise: string): Promise<string> {
  return (await unlessAbsent(readFile(path, "utf8"))) ?? (await readFile(otherwise, "utf8"));
}

/** Serial number, or what else tells a block device from others that get its name; of a partition, its disk's. */
export async function deviceSerial(rdev: bigint): Promise<string | undefined> {
  for (const name of ["wwid", "device/wwid", "serial", "device/serial", "dm/uuid", "loop/backing_file"])
    for (const folder of [".", ".."]) {
      const found = await readFile(`${sysfsFolder(rdev)}/${folder}/${name}`, "utf8").catch(() => "");
      if (found.trim() !== "") return found.trim();
    }
  return undefined;
}

/**
 * Where Linux tells about the block device of this number: 12 bits of major, 20 of minor number,
 * spread as in `gnu_dev_major`.
 */
export function sysfsFolder(rdev: bigint): string {
  const major = ((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n);
  const minor = (rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n);
  return `/sys/dev/block/${String(major)}:${String(minor)}`;
}

/**
 * Size of an open block device, which `fstat` gives as 0. Errors: SOURCE_UNREADABLE if the system
 * does not tell it.
 */
export async function deviceBytes(file: PositionalFile): Promise<number> {
  const calls = libc();
  const sought = calls?.lseek(file.fd, 0, seekEnd);
  if (sought !== undefined && "value" in sought && sought.value > 0) return sought.value;
  try {
    // Counted in sectors of 512 bytes; the device's own sector size does not matter.
    return Number(await readFile(`${sysfsFolder((await file.stat()).rdev)}/size`, "utf8")) * 512;
  } catch (error) {
    throw fileError(error, {
      code: "SOURCE_UNREADABLE",
      what: `cannot tell the size of the block device ${file.path}`,
      remedy: "copy it to an image file, or attach it to a Linux machine",
      detail: { path: file.path },
    });
  }
}

function kindOf(path: string, stats: BigIntStats): "file" | "device" {
  if (stats.isFile()) return "file";
  if (stats.isBlockDevice()) return "device";
  const kind = stats.isDirectory() ? "a folder" : "neither a file nor a block device";
  throw new TidemarkError("SOURCE_UNREADABLE", `the source ${path} is ${kind}`, {
    remedy: "name a disk image file or a block device",
    detail: { path },
  });
}

function unreadable(path: string, cause: unknown, offset?: number, lengthBytes?: number): TidemarkError {
  const where = offset === undefined ? "" : ` at byte ${String(offset)}`;
  return fileError(cause, {
    code: "SOURCE_UNREADABLE",
    what: `cannot read the source ${path}${where}`,
    remedy: "check the device and its cables, or copy what is readable with ddrescue and replicate the copy",
    detail: { path, offset, lengthBytes },
  });
}

function* wholeVolume(sizeBytes: number): Generator<Extent, void, undefined> {
  if (sizeBytes > 0) yield { offset: 0, length: sizeBytes };
}

/**
 * The same extents as an asynchronous sequence: the port is asynchronous for volumes that have to
 * ask over a network.
 */
function asynchronous(extents: Iterator<Extent, void, undefined>): AsyncIterable<Extent> {
  return {
    [Symbol.asyncIterator]: () => ({
      next: () => Promise.resolve(extents.next()),
      return: () => Promise.resolve(extents.return?.() ?? { done: true, value: undefined }),
    }),
  };
}
