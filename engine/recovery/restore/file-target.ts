/**
 * Restore target: an image file that is created, or replaced as a whole. It grows as
 * `<target>.tidemark-partial`, sparse from the start, and is renamed to the target's name once it
 * is complete and durable.
 *
 * A journal, `<target>.tidemark-partial.json`, says which point the partial is of and below which
 * byte it is complete and durable. The order is: data → fdatasync → journal (written aside,
 * renamed). A killed run is resumed from there; bytes beyond may be stale, so they are cut off and
 * extended again as a hole. A partial of anything else is emptied, after its journal is durably
 * removed.
 *
 * The partial is locked with flock while it is open; the lock ends with the process. On file
 * systems without flock two processes on one target are not kept apart.
 *
 * Invariant: no incomplete image ever has the target's name.
 */
import { constants } from "node:fs";
import { lstat, readFile, rename, rm, stat } from "node:fs/promises";
import { dirname } from "node:path";
import { fileError, PositionalFile } from "../../disk/source/positional-file.ts";
import { systemCode, TidemarkError } from "../../errors.ts";
import type { ImageFormat, ImagePlan, RestoreTarget } from "./target.ts";
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

interface Journal {
  readonly vault: string;
  readonly point: string;
  readonly format: ImageFormat;
  readonly volumeBytes: number;
  readonly doneBytes: number;
}

export class FileTarget implements RestoreTarget {
  readonly description: string;
  readonly resumeAt: number;
  readonly #plan: ImagePlan;
  readonly #replaces: boolean;
  readonly #file: PositionalFile;
  readonly #journalPath: string;
  #bytesWritten = 0;
  #notedBytes: number;
  #notedAtMs: number;
  #noting = false;
  #ended: Promise<void> | undefined;

  private constructor(plan: ImagePlan, replaces: boolean, file: PositionalFile, resumeAt: number) {
    this.description = plan.path;
    this.resumeAt = resumeAt;
    this.#plan = plan;
    this.#replaces = replaces;
    this.#file = file;
    this.#journalPath = journalPathOf(plan.path);
    this.#notedBytes = resumeAt;
    this.#notedAtMs = plan.clock();
  }

  /**
   * Starts or resumes the partial. `mode` holds the permissions of the file that will be replaced.
   */
  static async open(
    plan: ImagePlan,
    existing: { readonly replaces: boolean; readonly mode?: number },
  ): Promise<FileTarget> {
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
      if (existing.mode !== undefined) await file.chmod(existing.mode);
      return new FileTarget(plan, existing.replaces, file, resumeAt);
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
      await this.#file.write(offset, bytes);
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
      await writeWhole(this.#journalPath, Buffer.from(JSON.stringify(journal)));
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
      await this.#file.sync();
      if (!this.#replaces && (await exists(path))) throw targetExists(path, false);
      await rename(this.#file.path, path);
      await syncFolder(dirname(path));
      // A run that was killed may have left the journal's next version.
      for (const name of [this.#journalPath, asideOf(this.#journalPath)]) await rm(name, { force: true });
      await this.#file.close();
    } catch (error) {
      throw failed(path, error);
    }
  }

  async #abandon(): Promise<void> {
    try {
      // Removed while it is still locked, so that no other process has begun to use it.
      if (this.#notedBytes === 0) await rm(this.#file.path, { force: true });
      await this.#file.close();
    } catch (error) {
      throw failed(this.description, error);
    }
  }
}

/** Name of the file that grows beside the target. */
export function partialPathOf(path: string): string {
  return `${path}.tidemark-partial`;
}

export function journalPathOf(path: string): string {
  return `${partialPathOf(path)}.json`;
}

/** Where the journal's next version is written before it gets its name. */
export function asideOf(journalPath: string): string {
  return `${journalPath}.new`;
}

async function openLocked(path: string): Promise<PositionalFile> {
  const noFollow = (constants.O_NOFOLLOW as number | undefined) ?? 0;
  for (let attempt = 0; attempt < lockAttemptsMax; attempt += 1) {
    const file = await PositionalFile.open(path, constants.O_RDWR | constants.O_CREAT | noFollow);
    try {
      lockTarget(file, path.slice(0, -partialPathOf("").length));
      // The process that held the lock before may have renamed or removed the file since we opened
      // it.
      const opened = await file.stat();
      const named = await inodeAt(path);
      if (named === opened.ino && opened.nlink === 1n) return file;
      if (named === opened.ino) await rm(path, { force: true });
    } catch (error) {
      await file.close();
      throw error;
    }
    await file.close();
  }
  throw new TidemarkError("TARGET_FAILED", `${path} is replaced by other processes again and again`, {
    remedy: "stop the other processes that write this target",
  });
}

async function inodeAt(path: string): Promise<bigint | undefined> {
  try {
    return (await stat(path, { bigint: true })).ino;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw error;
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await lstat(path);
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw error;
  }
}

/** The journal; undefined when it is absent or cannot be read: then everything is written anew. */
async function readJournal(path: string): Promise<Partial<Journal> | undefined> {
  let text: string;
  try {
    text = await readFile(path, "utf8");
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
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
function resumePoint(journal: Partial<Journal> | undefined, plan: ImagePlan, partialBytes: number): number {
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

function imageBytes(plan: ImagePlan): number {
  return plan.format === "vhd" ? vhdDiskBytes(plan.volumeBytes) + vhdFooterBytes : plan.volumeBytes;
}

/**
 * Replaces a small file as a whole. After a power failure either version may be found, and both are
 * right.
 */
async function writeWhole(path: string, bytes: Uint8Array): Promise<void> {
  const aside = asideOf(path);
  const file = await PositionalFile.open(aside, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC);
  try {
    await file.write(0, bytes);
    await file.datasync();
  } finally {
    await file.close();
  }
  await rename(aside, path);
}

async function syncFolder(path: string): Promise<void> {
  // Windows cannot open folders; its file system orders renames by itself.
  if (process.platform === "win32") return;
  const folder = await PositionalFile.open(path, constants.O_RDONLY);
  try {
    await folder.sync();
  } finally {
    await folder.close();
  }
}

function failed(path: string, cause: unknown): TidemarkError {
  return fileError(cause, {
    code: "TARGET_FAILED",
    what: `cannot write the target ${path}`,
    remedy: "check the disk that holds it, then run the command again: it resumes",
    detail: { target: path },
  });
}
