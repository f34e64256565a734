/**
 * Safe opening of files in folders that other users may write (symlink and FIFO attacks).
 *
 * Every file of a `dir:` vault, of an `azurite:` folder that is ours and of a state folder is
 * opened here. Its name may have been exchanged for a link, a FIFO or a device by any user who may
 * write the folder. So an open follows no link (O_NOFOLLOW), waits for no other end of a FIFO
 * (O_NONBLOCK, which regular files ignore), and the opened file must be a regular one. What replaces a file
 * is written aside under a random name, created exclusively, readable by its owner only.
 *
 * Invariant: no read, write or change of mode reaches a file that is not a regular file under its
 * own name.
 */
import { randomBytes } from "node:crypto";
import { type BigIntStats, constants } from "node:fs";
import { type FileHandle, lstat, mkdir, open, rename, rm, stat } from "node:fs/promises";
import path from "node:path";
import { systemCode, TidemarkError } from "../../errors.ts";
import { shellWord } from "../../shell-word.ts";

/** Mode of the files that Tidemark makes: for their owner only. */
export const ownFileMode = 0o600;
/** Mode of the folders that Tidemark makes. */
export const ownFolderMode = 0o700;

/** Windows has neither flag, and no FIFO in a folder. */
const plainFlags: number =
  ((constants.O_NOFOLLOW as number | undefined) ?? 0) | ((constants.O_NONBLOCK as number | undefined) ?? 0);

/**
 * Opens a regular file under its own name. `mode` holds the permissions of a file that this call
 * creates.
 *
 * @throws TidemarkError DAMAGED: the name is a link, a FIFO, a socket or a device. Errors of the file
 * system pass through untranslated; a folder is EISDIR.
 */
export async function openPlain(file: string, flags: number, mode: number = ownFileMode): Promise<FileHandle> {
  const handle = await refusingLinks(file, (plain) => open(file, flags | plain, mode));
  try {
    checkPlain(file, await handle.stat({ bigint: true }));
    return handle;
  } catch (error) {
    await handle.close();
    throw error;
  }
}

/** Runs an open(2) with `plainFlags`; errors that only a link or a special file causes are DAMAGED. */
export async function refusingLinks<T>(file: string, opening: (flags: number) => Promise<T>): Promise<T> {
  try {
    return await opening(plainFlags);
  } catch (error) {
    // ELOOP (EMLINK on FreeBSD): a link. ENXIO: a socket, or a FIFO that is not being read.
    const code = systemCode(error);
    if (code === "ELOOP" || code === "EMLINK") throw notPlain(file, "a link", error);
    if (code === "ENXIO") throw notPlain(file, "a socket, a FIFO or a device", error);
    throw error;
  }
}

/**
 * Refuses what is not a regular file.
 *
 * @throws TidemarkError DAMAGED, or a system error EISDIR for a folder.
 */
export function checkPlain(file: string, stats: BigIntStats): void {
  if (stats.isFile()) return;
  if (stats.isDirectory()) throw Object.assign(new Error(`EISDIR: ${file} is a folder`), { code: "EISDIR" });
  if (stats.isSymbolicLink()) throw notPlain(file, "a link");
  throw notPlain(file, "a socket, a FIFO or a device");
}

/** The error for a name that must be a regular file, or a folder, and is something else. */
export function notPlain(file: string, kind: string, cause?: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", `${file} is ${kind}, which Tidemark never makes there`, {
    remedy: `find out who made it (\`ls -l ${shellWord(file)}\`), remove it, and let no other user write to its folder`,
    detail: { path: file },
    cause,
  });
}

/**
 * Reads a small regular file that only this user can have written.
 *
 * @throws TidemarkError DAMAGED: as `openPlain`, and for a file that is longer, or that another user
 * has or may write.
 */
export function readOwn(file: string, bytesMax: number): Promise<Buffer> {
  return readIf(file, bytesMax, isOurs);
}

/**
 * Reads a small regular file.
 *
 * @throws TidemarkError DAMAGED: as `openPlain`, and for a file that is longer.
 */
export function readPlain(file: string, bytesMax: number): Promise<Buffer> {
  return readIf(file, bytesMax, () => true);
}

async function readIf(file: string, bytesMax: number, isAllowed: (stats: BigIntStats) => boolean): Promise<Buffer> {
  const handle = await openPlain(file, constants.O_RDONLY);
  try {
    const stats = await handle.stat({ bigint: true });
    const isLong = stats.size > bytesMax;
    if (isLong || !isAllowed(stats)) {
      const fact = isLong
        ? `is longer than ${String(bytesMax)} bytes`
        : "belongs to another user or can be written by one";
      throw new TidemarkError("DAMAGED", `${file} ${fact}`, {
        remedy: `remove it: rm ${file}`,
        detail: { path: file },
      });
    }
    return await handle.readFile();
  } finally {
    await handle.close();
  }
}

/**
 * Replaces a file as a whole: a reader sees the old content or the new. With `durable` the content
 * is on the disk before the name changes; the name itself is the caller's to make durable.
 *
 * Errors of the file system pass through untranslated.
 */
export async function replacePlain(
  file: string,
  content: string | Uint8Array,
  { durable = false, mode = ownFileMode }: { readonly durable?: boolean; readonly mode?: number } = {},
): Promise<void> {
  const aside = `${file}.${randomBytes(8).toString("hex")}.new`;
  const handle = await open(aside, "wx", mode);
  try {
    try {
      await handle.writeFile(content);
      if (durable) await handle.datasync();
    } finally {
      await handle.close();
    }
    await rename(aside, file);
  } catch (error) {
    await rm(aside, { force: true });
    throw error;
  }
}

/**
 * Makes the folders `parts` below `root`, one inside the other, each for its owner only. `root` is
 * the user's choice and may be reached through links; below it every folder must be a real one.
 * Returns the path of the innermost.
 *
 * @throws TidemarkError DAMAGED: a link or a file stands in the place of a folder. Errors of the file
 * system pass through untranslated.
 */
export async function makeFolders(root: string, ...parts: readonly string[]): Promise<string> {
  await makeFolder(root);
  let folder = root;
  for (const part of parts) {
    folder = path.join(folder, part);
    try {
      await mkdir(folder, { mode: ownFolderMode });
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error;
      const found = await lstat(folder);
      if (!found.isDirectory()) throw notPlain(folder, found.isSymbolicLink() ? "a link" : "no folder", error);
    }
  }
  return folder;
}

/**
 * Makes a folder, and the folders above it, where they are absent. Unlike Node's recursive `mkdir`
 * it ends on a file system that lists a folder and lets nothing be made in it, as a mount whose
 * folder was removed and /proc do.
 *
 * Errors of the file system pass through untranslated.
 */
export async function makeFolder(folder: string): Promise<void> {
  const above = path.dirname(folder);
  try {
    await makeOne(folder);
  } catch (error) {
    if (systemCode(error) !== "ENOENT" || above === folder) throw error;
    await makeFolder(above);
    await makeOne(folder);
  }
}

async function makeOne(folder: string): Promise<void> {
  try {
    await mkdir(folder, { mode: ownFolderMode });
  } catch (error) {
    // A folder that exists may be named as EROFS, EACCES or EISDIR too.
    const found = await stat(folder).catch(() => undefined);
    if (found?.isDirectory() !== true) throw error;
  }
}

/** True when the file belongs to this user and its mode lets no other user write it. */
export function isOurs(stats: BigIntStats): boolean {
  const self = process.geteuid?.();
  // Where there are no user ids, the file system's access lists decide.
  if (self === undefined) return true;
  return stats.uid === BigInt(self) && (stats.mode & 0o022n) === 0n;
}
