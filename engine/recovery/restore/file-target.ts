/**
 * Restore target: an image file that is created, or replaced as a whole. It grows as
 * `<target>.tidemark-partial`, sparse from the start, and is renamed to the target's name once it
 * is complete and durable.
 *
 * A journal, `<target>.tidemark-partial.json`, says which point the partial is of and below which
 * byte it is complete and durable. The order is: data → fdatasync → journal (replaced as a whole).
 * A killed run is resumed from there; bytes beyond may be stale, so they are cut off and
 * extended again as a hole. A partial of anything else is emptied, after its journal is durably
 * removed.
 *
 * Other users may be able to write the folder. So partial and journal are for their owner only, and
 * are taken up only when they are regular files of this user that no other user can write. Anything
 * else of their names is removed, and the image is begun anew. The finished image gets its
 * permissions before its name: those of the file that it replaces, or of the source, or 0600.
 *
 * The partial is locked with flock while it is open; the lock ends with the process. On file
 * systems without flock two processes on one target are not kept apart.
 *
 * Invariant: no incomplete image ever has the target's name.
 */
import { constants } from "node:fs";
import { lstat, readdir, rename, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { DirectWrites } from "../../disk/source/direct-writes.ts";
import { isOurs, readOwn, replacePlain } from "../../disk/source/plain-file.ts";
import { fileError, PositionalFile } from "../../disk/source/positional-file.ts";
import { syncFolder } from "../../disk/source/sync-folder.ts";
import { hasCode, systemCode, TidemarkError, unlessAbsent } from "../../errors.ts";
import type { RestoreTarget, TargetImage } from "./target.ts";
import { lockTarget, targetExists } from "./target.ts";
import { planFooter, vhdDiskBytes, vhdFooterBytes } from "./vhd.ts";

/**
 * A checkpoint costs an fdatasync; a killed run loses at most the work of this time. Early ones
 * also put the disk to work early.
 */
const checkpointEveryMs = 500;
/**
 * How often a partial may be renamed or removed by another process between our opening and locking
 * it.
 */
const lockAttemptsMax = 10;

/** More than a journal has. */
const journalBytesMax = 4096;

interface Journal {
  readonly vault: string;
  readonly point: string;
  readonly format: TargetImage["format"];
  readonly volumeBytes: number;
  readonly doneBytes: number;
}

export class FileTarget implements RestoreTarget {
  readonly description: string;
  readonly resumeAt: number;
  readonly #plan: TargetImage;
  readonly #replaces: boolean;
  readonly #mode: number;
  readonly #file: PositionalFile;
  readonly #writes: DirectWrites;
  readonly #journalPath: string;
  #bytesWritten = 0;
  #notedBytes: number;
  #notedAtMs: number;
  #noting = false;
  #ended: Promise<void> | undefined;

  private constructor(
    plan: TargetImage,
    image: ImageFile,
    file: PositionalFile,
    writes: DirectWrites,
    resumeAt: number,
  ) {
    this.description = plan.path;
    this.resumeAt = resumeAt;
    this.#plan = plan;
    this.#replaces = image.replaces;
    this.#mode = image.mode;
    this.#file = file;
    this.#writes = writes;
    this.#journalPath = journalPathOf(plan.path);
    this.#notedBytes = resumeAt;
    this.#notedAtMs = plan.clock();
  }

  /** Starts or resumes the partial. */
  static async open(plan: TargetImage, image: ImageFile): Promise<FileTarget> {
    const path = partialPathOf(plan.path);
    let file: PositionalFile | undefined;
    let resumeAt: number | undefined;
    try {
      file = await openLocked(path);
      resumeAt = resumePoint(await readJournal(journalPathOf(plan.path)), plan, Number((await file.stat()).size));
      if (resumeAt === 0) {
        await rm(journalPathOf(plan.path), { force: true });
        await syncFolder(dirname(path));
      }
      // Cuts off what no checkpoint covers; the space up to the end then reads as zeros without
      // being written.
      await file.truncate(resumeAt);
      await file.truncate(imageBytes(plan));
      return new FileTarget(plan, image, file, await DirectWrites.to(file), resumeAt);
    } catch (error) {
      // A partial from which nothing can be resumed is removed.
      if (resumeAt === 0) await rm(path, { force: true });
      await file?.close();
      throw failed(plan.path, error);
    }
  }

  get bytesWritten(): number {
    return this.#bytesWritten;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    try {
      await this.#writes.write(offset, bytes);
    } catch (error) {
      throw failed(this.description, error);
    }
    this.#bytesWritten += bytes.byteLength;
  }

  /** Nothing to do: the file is a hole wherever nothing was written. */
  zero(): Promise<void> {
    return Promise.resolve();
  }

  async checkpoint(doneBytes: number): Promise<void> {
    const nowMs = this.#plan.clock();
    if (this.#noting || doneBytes <= this.#notedBytes || nowMs - this.#notedAtMs < checkpointEveryMs) return;
    this.#noting = true;
    try {
      await this.#file.datasync();
      const { vaultId: vault, point, format, volumeBytes } = this.#plan;
      const journal: Journal = { vault, point, format, volumeBytes, doneBytes };
      await replacePlain(this.#journalPath, JSON.stringify(journal), { durable: true });
      this.#notedBytes = doneBytes;
      this.#notedAtMs = this.#plan.clock();
    } catch (error) {
      throw failed(this.description, error);
    } finally {
      this.#noting = false;
    }
  }

  finish(): Promise<void> {
    if (this.#ended !== undefined)
      return Promise.reject(new TidemarkError("INTERNAL", `${this.description} is finished or abandoned already`));
    const finishing = this.#finish();
    // A failed finish leaves the partial to `abandon`.
    this.#ended = finishing.catch(() => {
      this.#ended = undefined;
    });
    return finishing;
  }

  async abandon(): Promise<void> {
    await this.#ended;
    this.#ended ??= this.#abandon();
    await this.#ended;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.abandon();
  }

  async #finish(): Promise<void> {
    const { path, format } = this.#plan;
    try {
      if (format === "vhd") await this.write(vhdDiskBytes(this.#plan.volumeBytes), planFooter(this.#plan));
      await this.#writes.close();
      await giveMode(this.#file, this.#mode);
      await this.#file.sync();
      if ((await inodeAt(this.#file.path)) !== (await this.#file.stat()).ino) throw exchanged(this.#file.path);
      if (!this.#replaces && (await inodeAt(path)) !== undefined) throw targetExists(path, false);
      await rename(this.#file.path, path);
      await syncFolder(dirname(path));
      for (const name of await journalsOf(path)) await rm(name, { force: true });
      await this.#file.close();
    } catch (error) {
      throw failed(path, error);
    }
  }

  async #abandon(): Promise<void> {
    try {
      await this.#writes.close();
      // Removed while it is still locked, so that no other process has begun to use it.
      if (this.#notedBytes === 0) await rm(this.#file.path, { force: true });
      await this.#file.close();
    } catch (error) {
      throw failed(this.description, error);
    }
  }
}

/** The file that gets the target's name. */
export interface ImageFile {
  /** Whether a file of that name may be replaced. */
  readonly replaces: boolean;
  /** Its permissions. */
  readonly mode: number;
}

/** Name of the file that grows beside the target. */
export function partialPathOf(path: string): string {
  return `${path}.tidemark-partial`;
}

export function journalPathOf(path: string): string {
  return `${partialPathOf(path)}.json`;
}

/**
 * The journal of the target at `path`, and the next versions of it that runs which were killed have
 * left beside it. Errors of the file system pass through untranslated.
 */
export async function journalsOf(path: string): Promise<string[]> {
  const journal = journalPathOf(path);
  const names = (await unlessAbsent(readdir(dirname(path)))) ?? [];
  const asides = names
    .map((name) => join(dirname(path), name))
    .filter((name) => name.startsWith(`${journal}.`) && name.endsWith(".new"));
  return [...asides, journal];
}

async function openLocked(path: string): Promise<PositionalFile> {
  for (let attempt = 0; attempt < lockAttemptsMax; attempt += 1) {
    const found = await openExisting(path);
    const file = found ?? (await createPartial(path));
    if (file === undefined) continue;
    try {
      lockTarget(file, path.slice(0, -partialPathOf("").length));
      // The process that held the lock before may have renamed or removed the file since we opened
      // it.
      const opened = await file.stat();
      const named = await inodeAt(path);
      if (named === opened.ino && opened.nlink === 1n && (found === undefined || isOurs(opened))) return file;
      if (named === opened.ino) await rm(path, { force: true });
    } catch (error) {
      await file.close();
      throw error;
    }
    await file.close();
  }
  throw exchanged(path);
}

/** Undefined: there is no partial, or what had its name was none of ours and has been removed. */
async function openExisting(path: string): Promise<PositionalFile | undefined> {
  try {
    return await unlessAbsent(PositionalFile.openPlain(path, constants.O_RDWR));
  } catch (error) {
    // EACCES: the file of another user. Where this user may not remove it either, the removal says so.
    if (!hasCode(error, "DAMAGED") && systemCode(error) !== "EACCES") throw error;
    await rm(path, { force: true });
    return undefined;
  }
}

/** Undefined: another process was faster. */
async function createPartial(path: string): Promise<PositionalFile | undefined> {
  try {
    return await PositionalFile.openPlain(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL);
  } catch (error) {
    if (systemCode(error) === "EEXIST") return undefined;
    throw error;
  }
}

/** Gives the image its permissions, where the file system has any. */
async function giveMode(file: PositionalFile, mode: number): Promise<void> {
  if ((Number((await file.stat()).mode) & 0o777) === mode) return;
  try {
    await file.chmod(mode);
  } catch (error) {
    // FAT and some network file systems: the mount decides.
    if (!["EPERM", "ENOTSUP", "EOPNOTSUPP", "ENOSYS"].includes(systemCode(error) ?? "")) throw error;
  }
}

function exchanged(path: string): TidemarkError {
  return new TidemarkError("TARGET_FAILED", `${path} is replaced by other processes again and again`, {
    remedy: "stop the other processes that write this target, or name one in a folder of your own",
    detail: { path },
  });
}

async function inodeAt(path: string): Promise<bigint | undefined> {
  return (await unlessAbsent(lstat(path, { bigint: true })))?.ino;
}

/**
 * The journal; undefined when it is absent, cannot be parsed or may come from another user: then
 * everything is written anew.
 */
async function readJournal(path: string): Promise<Partial<Journal> | undefined> {
  let text: string;
  try {
    text = (await readOwn(path, journalBytesMax)).toString("utf8");
  } catch (error) {
    if (hasCode(error, "DAMAGED") || systemCode(error) === "ENOENT" || systemCode(error) === "EACCES") return undefined;
    throw error;
  }
  try {
    const value: unknown = JSON.parse(text);
    return typeof value === "object" && value !== null ? value : undefined;
  } catch (error) {
    if (error instanceof SyntaxError) return undefined;
    throw error;
  }
}

/** Where this plan can go on in the partial that was found; 0: from the start. */
function resumePoint(journal: Partial<Journal> | undefined, plan: TargetImage, partialBytes: number): number {
  if (journal?.vault !== plan.vaultId || journal.point !== plan.point) return 0;
  if (journal.format !== plan.format || journal.volumeBytes !== plan.volumeBytes) return 0;
  const done: unknown = journal.doneBytes;
  const fits =
    typeof done === "number" &&
    Number.isSafeInteger(done) &&
    done >= 0 &&
    done <= Math.min(plan.volumeBytes, partialBytes);
  return fits ? done : 0;
}

function imageBytes(plan: TargetImage): number {
  return plan.format === "vhd" ? vhdDiskBytes(plan.volumeBytes) + vhdFooterBytes : plan.volumeBytes;
}

function failed(path: string, cause: unknown): TidemarkError {
  return fileError(cause, {
    code: "TARGET_FAILED",
    what: `cannot write the target ${path}`,
    remedy: "check the disk that holds it, then run the command again: it resumes",
    detail: { target: path },
  });
}
