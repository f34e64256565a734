/**
 * File-system calls of the directory sink: whole reads and writes, hole punching, flushes of
 * folders, and the translation of errors.
 */
import { type FileHandle, statfs } from "node:fs/promises";
import { constants } from "node:os";
import { getSystemErrorName } from "node:util";
import { type ErrorContext, systemCode, TidemarkError, throwIfAborted } from "../engine/index.ts";
import { type Libc, libc, punchHole, syncFolder, unsupportedErrnos } from "../engine/internal.ts";

/**
 * Largest hole of one system call. It bounds how long the call blocks the file and delays an abort.
 */
const holeBytesMax: number = 1024 * 1024 * 1024;

/** Where holes are not supported, zeros are written in pieces of this size. */
const zeroPieceBytes: number = 1024 * 1024;

/** True for the error of a path that does not exist, or that has a file where it needs a folder. */
export function isAbsence(error: unknown): boolean {
  const code = systemCode(error);
  return code === "ENOENT" || code === "ENOTDIR";
}

/** The result of `work`, or `substitute` when its path does not exist. */
export async function absentAs<T, S>(substitute: S, work: Promise<T>): Promise<T | S> {
  try {
    return await work;
  } catch (error) {
    if (isAbsence(error)) return substitute;
    throw error;
  }
}

/**
 * `error` as the store's answer about `subject`. A system error without a code of its own becomes
 * `fallback`.
 */
export function translated(
  error: unknown,
  subject: string,
  fallback: "STORE_REFUSED" | "OUTCOME_UNKNOWN",
  dir: string,
): unknown {
  const code = systemCode(error);
  if (error instanceof TidemarkError || code === undefined) return error;
  const context = { detail: { object: subject, systemCode: code }, cause: error };
  switch (code) {
    case "ENOSPC":
    case "EDQUOT":
      return new TidemarkError("NO_SPACE", `the file system of ${dir} is full (${subject})`, {
        ...context,
        remedy: "free some space, then run the command again",
      });
    case "EACCES":
    case "EPERM":
    case "EROFS":
      return new TidemarkError(
        "ACCESS_REFUSED",
        `the file system refuses access to ${subject === dir ? dir : `${subject} in ${dir}`} (${code})`,
        {
          ...context,
          remedy: `allow this user to read and write the vault's folder: \`ls -ld ${dir}\` shows its owner`,
        },
      );
    case "EMFILE":
    case "ENFILE":
      return tooManyOpen(subject, context);
    default:
      if (fallback === "OUTCOME_UNKNOWN") return outcomeUnknown(subject, error);
      return new TidemarkError("STORE_REFUSED", `the file system answered ${code} for ${subject}`, {
        ...context,
        remedy: "check the disk of the vault's folder: `dmesg` shows its errors",
      });
  }
}

function tooManyOpen(subject: string, context: ErrorContext): TidemarkError {
  return new TidemarkError("STORE_REFUSED", `too many files are open to reach ${subject}`, {
    ...context,
    remedy: "raise the limit of open files: `ulimit -n 4096`",
  });
}

/**
 * `error` of making or looking at the store's own folder `dir`. Anything but a system error is
 * returned as it is.
 */
export function folderError(error: unknown, dir: string): unknown {
  const code = systemCode(error);
  if (error instanceof TidemarkError || code === undefined) return error;
  const context = { detail: { path: dir, systemCode: code }, cause: error };
  switch (code) {
    case "ENOTDIR":
    case "EEXIST":
      return new TidemarkError("INVALID_ARGUMENT", `${dir} is not a folder`, {
        ...context,
        remedy: "name a folder for the vault's data",
      });
    case "EACCES":
    case "EPERM":
    case "EROFS": {
      const fact = code === "EROFS" ? "its file system is read-only" : "this user may not write there";
      return new TidemarkError("ACCESS_REFUSED", `${dir} cannot be used: ${fact}`, {
        ...context,
        remedy: `name a folder that this user may write; ls -ld ${dir} shows the owner`,
      });
    }
    case "ENOSPC":
    case "EDQUOT":
      return new TidemarkError("NO_SPACE", `no space is left for ${dir}`, {
        ...context,
        remedy: "free some space, then run the command again",
      });
    case "EMFILE":
    case "ENFILE":
      return tooManyOpen(dir, context);
    case "ENOENT":
    case "ESTALE":
      return new TidemarkError("INVALID_ARGUMENT", `no folder can be made at ${dir}`, {
        ...context,
        remedy: `name a folder on a local disk; if ${dir} lies on a mount, mount it again`,
      });
    default:
      return new TidemarkError("STORE_REFUSED", `the file system answered ${code} for ${dir}`, {
        ...context,
        remedy: "check the disk of the folder: `dmesg` shows its errors",
      });
  }
}

/**
 * A file system with less free space than this counts as full. A replication that fills the disk
 * ends with NO_SPACE and leaves this much for the small objects with which points are dropped and
 * space is freed: heads, leases and lists.
 */
const reserveBytes: number = 8 * 1024 * 1024;

/** A small file system keeps half of its size, if that is less. */
const reserveShare = 2;

/** Free space of a vault's file system that no page write takes. */
export class SpaceReserve {
  readonly #dir: string;
  readonly #savedBytes: () => Promise<number>;
  /** Bytes of the page writes under way, which the file system may not count yet. */
  #writingBytes = 0;

  /** `savedBytes`: what the store writes anew when it saves, and needs twice while it does. */
  constructor(dir: string, savedBytes: () => Promise<number> = async () => await Promise.resolve(0)) {
    this.#dir = dir;
    this.#savedBytes = savedBytes;
  }

  /**
   * Runs a page write of `bytes`. A file system that does not tell its size is not checked. Errors:
   * NO_SPACE when the write would take from the reserve, and those of `write`.
   */
  async keptBy<Result>(bytes: number, write: () => Promise<Result>): Promise<Result> {
    const [{ bavail, blocks, bsize }, savedBytes] = await Promise.all([statfs(this.#dir), this.#savedBytes()]);
    const freeBytes = bavail * bsize;
    const reserved = Math.min(reserveBytes + savedBytes, (blocks * bsize) / reserveShare);
    const writingBytes = this.#writingBytes + bytes;
    if (blocks > 0 && freeBytes < reserved + writingBytes) {
      const why = `, ${mebibytes(writingBytes)} are to be written, and ${mebibytes(reserved)} stay reserved`;
      throw fileSystemFull(this.#dir, freeBytes, why);
    }
    this.#writingBytes = writingBytes;
    try {
      return await write();
    } finally {
      this.#writingBytes -= bytes;
    }
  }
}

/** NO_SPACE if the file system of `dir` has less than `reserveBytes` left, which explains a failed write. */
export async function explainedBySpace(dir: string): Promise<TidemarkError | undefined> {
  const { bavail, bsize } = await statfs(dir);
  const freeBytes = bavail * bsize;
  return freeBytes < reserveBytes ? fileSystemFull(dir, freeBytes) : undefined;
}

function fileSystemFull(dir: string, freeBytes: number, why = ""): TidemarkError {
  return new TidemarkError("NO_SPACE", `the file system of ${dir} is full: ${mebibytes(freeBytes)} are free${why}`, {
    remedy: "drop points with `tidemark prune` and free their space with `tidemark collect`, or free some space",
    detail: { path: dir, freeBytes },
  });
}

function mebibytes(bytes: number): string {
  return `${(bytes / 1_048_576).toFixed(1)} MiB`;
}

export function outcomeUnknown(subject: string, cause: unknown): TidemarkError {
  return new TidemarkError(
    "OUTCOME_UNKNOWN",
    `${subject} was written; the file system did not confirm that it is durable`,
    {
      remedy: "check the disk of the vault's folder: `dmesg` shows its errors",
      detail: { object: subject },
      cause,
    },
  );
}

/** For a file that another program changed in place while it was read. */
export function changedByOthers(name: string): TidemarkError {
  return new TidemarkError("DAMAGED", `another program changes ${name} in place`, {
    remedy: "keep other programs away from the vault's folder",
    detail: { object: name },
  });
}

/** Like `syncFolder`; false when this user may not open the folder. */
export async function syncFolderIfAllowed(path: string): Promise<boolean> {
  try {
    await syncFolder(path);
    return true;
  } catch (error) {
    const code = systemCode(error);
    if (code === "EACCES" || code === "EPERM") return false;
    throw error;
  }
}

/** Writes all of `bytes` at `at`. */
export async function writeFully(handle: FileHandle, bytes: Uint8Array, at: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await handle.write(bytes, done, bytes.length - done, at + done);
    done += bytesWritten;
  }
}

export interface ClearOptions {
  readonly signal?: AbortSignal | undefined;
  /** The system's calls. Default: those of this machine. */
  readonly libc?: Pick<Libc, "fallocate"> | undefined;
}

/**
 * Makes [at, at + length) read as zeros and frees its space; where holes are not supported, it
 * writes zeros. Any alignment: the kernel writes zeros into partial blocks. Throws INTERRUPTED,
 * when a part may be clear, and errors of the file system untranslated.
 */
export async function clearFully(
  handle: FileHandle,
  at: number,
  length: number,
  options: ClearOptions = {},
): Promise<void> {
  const { fallocate } = options.libc ?? libc() ?? {};
  const end = at + length;
  let next = at;
  while (fallocate !== undefined && next < end) {
    throwIfAborted(options.signal);
    const part = Math.min(end - next, holeBytesMax);
    const result = await fallocate(handle.fd, punchHole, next, part);
    if (!("errno" in result)) next += part;
    else if (unsupportedErrnos.includes(result.errno)) break;
    else if (result.errno !== constants.errno.EINTR) throw systemError(result.errno, "fallocate");
  }
  const zeros = new Uint8Array(Math.min(zeroPieceBytes, end - next));
  while (next < end) {
    throwIfAborted(options.signal);
    const part = Math.min(end - next, zeros.length);
    await writeFully(handle, zeros.subarray(0, part), next);
    next += part;
  }
}

/** The error that Node throws for the same errno. */
function systemError(errno: number, call: string): Error {
  const code = getSystemErrorName(-errno);
  return Object.assign(new Error(`${code}: ${call}`), { code });
}

/** Reads from `at` until `into` is full or the file ends. Returns the number of bytes read. */
export async function readFully(handle: FileHandle, into: Uint8Array, at: number): Promise<number> {
  let done = 0;
  while (done < into.length) {
    const { bytesRead } = await handle.read(into, done, into.length - done, at + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}
