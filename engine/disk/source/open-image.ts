/**
 * Opening an image for one writer: an image file is locked with flock(2), a device is claimed with
 * O_EXCL.
 *
 * The kind of the object is checked before it is opened, because opening a pipe would wait and a
 * device is opened with a claim, and again afterwards, because another process may have exchanged
 * it.
 */
import { type BigIntStats, constants } from "node:fs";
import { realpath, stat, statfs } from "node:fs/promises";
import { getSystemErrorName } from "node:util";
import { systemCode, TidemarkError } from "../../errors.ts";
import { type FileIdentity, identityFrom } from "./file-identity.ts";
import { deviceSerial } from "./file-volume.ts";
import { type Libc, lockExclusiveAtOnce, readRandomly } from "./libc.ts";
import { fileError, PositionalFile } from "./positional-file.ts";

/** Types that statfs(2) gives file systems which live in memory: tmpfs, ramfs. */
const memoryFileSystems: readonly number[] = [0x01021994, 0x858458f6];

/**
 * An open image. Its files belong to the caller, which closes `scattered` (if it is another) and
 * then `file`.
 */
export interface OpenImage {
  readonly file: PositionalFile;
  /**
   * The same file without read-ahead, for reads here and there; `file` itself where that is not
   * possible.
   */
  readonly scattered: PositionalFile;
  readonly kind: "file" | "device";
  readonly identity: FileIdentity;
  readonly readOnly: boolean;
  /** The file lies on a file system in memory. */
  readonly inMemory: boolean;
}

/**
 * Opens an image file or block device that exists. Errors: SOURCE_NOT_FOUND, SOURCE_UNREADABLE (a
 * folder, a pipe, …), ACCESS_REFUSED, WRITER_ACTIVE (another process, or another part of this one,
 * has it open for writing or, a device, mounted), UNSUPPORTED (no file locks on this platform).
 */
export async function openImage(path: string, readOnly: boolean, calls: Libc | undefined): Promise<OpenImage> {
  try {
    const kind = kindOf(path, await stat(path, { bigint: true }));
    const claim = kind === "device" && !readOnly ? constants.O_EXCL : 0;
    const nonBlocking = (constants.O_NONBLOCK as number | undefined) ?? 0;
    const file = await PositionalFile.open(
      path,
      (readOnly ? constants.O_RDONLY : constants.O_RDWR) | claim | nonBlocking,
    );
    try {
      const stats = await file.stat();
      if (kindOf(path, stats) !== kind) throw exchanged(path);
      if (!readOnly && kind === "file") lock(file, calls);
      const inMemory = kind === "file" && memoryFileSystems.includes((await statfs(path)).type);
      const serial = kind === "device" ? await deviceSerial(stats.rdev) : undefined;
      const identity = { ...identityFrom(await realpath(path), stats), serial };
      return { file, scattered: await openScattered(file, calls), kind, identity, readOnly, inMemory };
    } catch (error) {
      await file.close();
      throw error;
    }
  } catch (error) {
    throw openFailure(path, error);
  }
}

/**
 * Opens an open file again by its descriptor, not by its name; if that is not possible, returns it
 * unchanged.
 */
async function openScattered(file: PositionalFile, calls: Libc | undefined): Promise<PositionalFile> {
  if (calls?.advise === undefined) return file;
  let again: PositionalFile;
  try {
    again = await PositionalFile.open(`/proc/self/fd/${file.fd}`, constants.O_RDONLY);
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return file; // no /proc, or no right to read the file by its mode
  }
  if ("value" in calls.advise(again.fd, readRandomly)) return again;
  await again.close();
  return file;
}

function lock(file: PositionalFile, calls: Libc | undefined): void {
  if (calls === undefined) {
    throw new TidemarkError(
      "UNSUPPORTED",
      `${file.path} cannot be locked on this platform, so it cannot be protected while it is written`,
      {
        remedy: "run the agent on Linux or macOS on a 64-bit processor",
        detail: { path: file.path },
      },
    );
  }
  const result = calls.flock(file.fd, lockExclusiveAtOnce);
  if (!("errno" in result)) return;
  if (result.errno === calls.errno.wouldBlock) throw writerActive(file.path, "is open for writing elsewhere");
  const name = getSystemErrorName(-result.errno);
  throw new TidemarkError("UNSUPPORTED", `${file.path} cannot be locked: its file system answers ${name}`, {
    remedy: "keep the image on a file system that supports flock",
    detail: { path: file.path, errno: name },
  });
}

function writerActive(path: string, fact: string): TidemarkError {
  return new TidemarkError("WRITER_ACTIVE", `${path} ${fact}`, {
    remedy: "stop the other agent or program that has it open, or unmount it, then start again",
    detail: { path },
  });
}

function exchanged(path: string): TidemarkError {
  return new TidemarkError("SOURCE_UNREADABLE", `${path} was exchanged while it was opened`, {
    remedy: "try again",
    detail: { path },
  });
}

function kindOf(path: string, stats: BigIntStats): "file" | "device" {
  if (stats.isFile()) return "file";
  if (stats.isBlockDevice()) return "device";
  const kind = stats.isDirectory() ? "a folder" : "neither a file nor a block device";
  throw new TidemarkError("SOURCE_UNREADABLE", `${path} is ${kind}`, {
    remedy: "name a disk image file or a block device",
    detail: { path },
  });
}

function openFailure(path: string, error: unknown): TidemarkError {
  const errno = systemCode(error);
  if (errno === "EBUSY" || errno === "ETXTBSY") return writerActive(path, "is mounted or claimed by another program");
  if (errno === "ENOENT" || errno === "ENOTDIR" || errno === "ENXIO" || errno === "ENODEV" || errno === "ENOMEDIUM") {
    const fact = errno === "ENOENT" || errno === "ENOTDIR" ? "does not exist" : "names a device that is not there";
    return new TidemarkError("SOURCE_NOT_FOUND", `${path} ${fact}`, {
      remedy: "check the path",
      detail: { path, errno },
      cause: error,
    });
  }
  return fileError(error, {
    code: "SOURCE_UNREADABLE",
    what: `cannot open ${path}`,
    remedy: "check the device that holds it",
    detail: { path },
  });
}
