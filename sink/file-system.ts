/**
 * The file system as a store needs it: reads and writes that are whole, flushes of folders, and, in one place, what its errors mean.
 */
import { type FileHandle, open } from "node:fs/promises";
import { systemCode, TidemarkError } from "../engine/index.ts";

/** True for the error of a path that names nothing: it ends early, or passes through something that is no folder. */
export function isAbsence(error: unknown): boolean {
  const code = systemCode(error);
  return code === "ENOENT" || code === "ENOTDIR";
}

/** What `work` gives, or `substitute` when the path that it opens names nothing. */
export async function absentAs<T, S>(substitute: S, work: Promise<T>): Promise<T | S> {
  try {
    return await work;
  } catch (error) {
    if (isAbsence(error)) return substitute;
    throw error;
  }
}

/** `error` as the store's answer about `subject`. What has no meaning of its own becomes `fallback`. */
export function translated(error: unknown, subject: string, fallback: "STORE_REFUSED" | "OUTCOME_UNKNOWN"): unknown {
  const code = systemCode(error);
  if (error instanceof TidemarkError || code === undefined) return error;
  const context = { detail: { object: subject, systemCode: code }, cause: error };
  switch (code) {
    case "ENOSPC":
    case "EDQUOT":
      return new TidemarkError("NO_SPACE", `the vault's folder has no space left (${subject})`, {
        ...context,
        remedy: "free some space, then run the command again",
      });
    case "EACCES":
    case "EPERM":
    case "EROFS":
      return new TidemarkError("ACCESS_REFUSED", `the file system refuses access to ${subject} (${code})`, {
        ...context,
        remedy: "give this user the right to read and write the vault's folder",
      });
    case "EMFILE":
    case "ENFILE":
      return new TidemarkError("STORE_REFUSED", `too many files are open to reach ${subject}`, {
        ...context,
        remedy: "raise the limit of open files (ulimit -n)",
      });
    default:
      if (fallback === "OUTCOME_UNKNOWN") return outcomeUnknown(subject, error);
      return new TidemarkError("STORE_REFUSED", `the file system answered ${code} for ${subject}`, {
        ...context,
        remedy: "check the disk that holds the vault's folder",
      });
  }
}

export function outcomeUnknown(subject: string, cause: unknown): TidemarkError {
  return new TidemarkError("OUTCOME_UNKNOWN", `${subject} was written, but the file system did not confirm that it is durable`, {
    remedy: "check the disk that holds the vault's folder",
    detail: { object: subject },
    cause,
  });
}

/** For a file that was changed in place while it was read, which no adapter does. */
export function changedByOthers(name: string): TidemarkError {
  return new TidemarkError("DAMAGED", `${name} was being changed in place by another program`, {
    remedy: "keep other programs away from the vault's folder",
    detail: { object: name },
  });
}

/** Makes the names in a folder durable. */
export async function syncFolder(path: string): Promise<void> {
  const handle = await open(path, "r");
  try {
    await handle.sync();
  } catch (error) {
    // Some network file systems know no flush of a folder: they keep names as they are told.
    if (systemCode(error) !== "EINVAL") throw error;
  } finally {
    await handle.close();
  }
}

/** Like `syncFolder`; false where we may not open the folder. */
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

/** Reads from `at` until `into` is full or the file ends; gives the number of bytes read. */
export async function readFully(handle: FileHandle, into: Uint8Array, at: number): Promise<number> {
  let done = 0;
  while (done < into.length) {
    const { bytesRead } = await handle.read(into, done, into.length - done, at + done);
    if (bytesRead === 0) break;
    done += bytesRead;
  }
  return done;
}
