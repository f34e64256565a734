/**
 * File layout of a directory sink: names, the lock on names, temporary files, version times, lease
 * files.
 *
 *     ROOT/vault.json, ROOT/disks/…/head     objects, under their own names
 *     ROOT/segments/…/1-0-0@pages            page objects (see `PageFile`)
 *     ROOT/disks/…/head@lease                the lease on the object beside it
 *     ROOT/@tidemark/lock                    the lock that every change of names takes; this folder marks ROOT as a vault
 *     ROOT/@tidemark/clock                   the modification time given last
 *     ROOT/@tidemark/temp-…                  files that are being written; a crash may leave some, which are removed after a day
 *
 * `@` is not allowed in names, so none of these files can be mistaken for an object.
 *
 * Other users. Folders are made with mode 0700 and files with 0600. ROOT may be reached through
 * links, because the user names it. Below it nothing is: before a name is used, the folder above it
 * must be its own real path, and a file is opened as `plain-file.ts` in the engine says. What is
 * found in the place of an object and is no regular file is DAMAGED.
 *
 * ETags. An object's ETag is its file's modification time and size. The kernel's clock ticks every
 * few milliseconds, so the writer sets the time itself: each version gets a microsecond of its own,
 * greater than every earlier one in the vault and not less than the wall clock. `@tidemark/clock`
 * stores the last one, so a clock that is set back repeats none. A repetition needs a power failure
 * that takes the newest entry of that file, a clock set back to exactly that microsecond, and an
 * object of the same size. Copying the folder with its times (`cp -a`) keeps every ETag.
 */
import { randomUUID } from "node:crypto";
import { type BigIntStats, constants } from "node:fs";
import { lstat, mkdir, open, readdir, realpath, unlink } from "node:fs/promises";
import { dirname, join, relative } from "node:path";
import { type CallOptions, systemCode, TidemarkError } from "../engine/index.ts";
import {
  checkPlain,
  makeFolder,
  notPlain,
  openPlain,
  ownFileMode,
  ownFolderMode,
  readPlain,
  syncFolder,
} from "../engine/internal.ts";
import { FileLock, type LockOptions, Turnstile } from "./file-lock.ts";
import { absentAs, folderError, outcomeUnknown, syncFolderIfAllowed } from "./file-system.ts";
import { type Lease, parseLease } from "./lease.ts";
import { nameBlocked, objectNotFound, vaultNotFound, wrongKind } from "./rules.ts";

const ownFolder = "@tidemark";
export const pagesSuffix = "@pages";
export const leaseSuffix = "@lease";

/** An empty file system has this folder, and its mount point may become a vault. */
const harmlessInEmptyFolder: readonly string[] = ["lost+found"];

/**
 * A holder keeps the lock for a few file calls. A holder that keeps it this long has been stopped.
 */
const lockWaitMsMax = 30_000;

/** A temporary file is written in seconds. At this age its writer is dead. */
const tempAgeMsMax: number = 24 * 60 * 60 * 1000;

/** Digits in the file of the modification time given last. */
const clockDigits = 16;

/** More than a lease has. */
const leaseBytesMax = 4096;

/** A stored object: its kind and the facts of its file. */
export interface Found {
  readonly kind: "object" | "pages";
  readonly stats: BigIntStats;
}

/** The files of one vault. Errors of the file system pass through untranslated. */
export class DirectoryTree {
  readonly root: string;
  readonly #description: string;
  readonly #clock: () => number;
  readonly #turnstile = new Turnstile();
  /** Folders that exist and whose names are durable. */
  readonly #folders = new Set<string>();
  #sweeping: Promise<void> | undefined;
  #realRoot: string | undefined;

  /** `clock` gives milliseconds since 1970. */
  constructor(root: string, description: string, clock: () => number) {
    this.root = root;
    this.#description = description;
    this.#clock = clock;
  }

  /**
   * Creates the folder and marks it as a vault. False when it is one already. Throws
   * INVALID_ARGUMENT when it holds other files.
   */
  async createContainer(): Promise<boolean> {
    try {
      return await this.#createContainer();
    } catch (error) {
      throw folderError(error, this.root);
    }
  }

  async #createContainer(): Promise<boolean> {
    await makeFolder(this.root);
    const entries = (await readdir(this.root)).filter((entry) => !harmlessInEmptyFolder.includes(entry));
    if (entries.length > 0 && !(await this.hasContainer())) {
      throw new TidemarkError("INVALID_ARGUMENT", `${this.root} holds files that are not a vault's`, {
        remedy: "name an empty or a new folder for the vault",
      });
    }
    try {
      await mkdir(join(this.root, ownFolder), ownFolderMode);
    } catch (error) {
      if (systemCode(error) === "EEXIST") return false;
      throw error;
    }
    this.#folders.clear();
    for (let folder = this.root; ; folder = dirname(folder)) {
      // mkdir may have created every folder up to the root. A folder that this user may not open
      // existed before.
      if (!(await syncFolderIfAllowed(folder)) || folder === dirname(folder)) return true;
    }
  }

  /** True when the folder exists and is marked as a vault. Throws DAMAGED when the mark is a link. */
  async hasContainer(): Promise<boolean> {
    const mark = join(this.root, ownFolder);
    const found = await absentAs(undefined, lstat(mark));
    if (found?.isSymbolicLink() === true) throw notPlain(mark, "a link");
    return found?.isDirectory() === true;
  }

  /**
   * Throws DAMAGED when the folder of `path` is reached through a link below the root, and ENOENT or
   * ENOTDIR when there is no such folder.
   */
  async checkFolderOf(path: string): Promise<void> {
    const folder = dirname(path);
    const real = await realpath(folder);
    const below = relative(this.root, folder);
    if (this.#realRoot !== undefined && real === join(this.#realRoot, below)) return;
    // The first call, or the user has moved the link that leads to the root.
    this.#realRoot = await realpath(this.root);
    if (real !== join(this.#realRoot, below)) throw notPlain(folder, "reached through a link");
  }

  /** Throws VAULT_NOT_FOUND when `hasContainer` is false. */
  async checkContainer(): Promise<void> {
    if (!(await this.hasContainer())) throw vaultNotFound(this.#description);
  }

  /**
   * The error for a name that could not be opened: the container is absent, the object is absent,
   * or the object is of the other kind.
   */
  async absent(name: string, wanted: "object" | "page object"): Promise<TidemarkError> {
    if (!(await this.hasContainer())) return vaultNotFound(this.#description);
    const other = await absentAs(undefined, lstat(this.path(name) + (wanted === "object" ? pagesSuffix : "")));
    return other?.isFile() === true ? wrongKind(name, wanted) : objectNotFound(name);
  }

  /** The file of an object. Page objects and leases add a suffix. */
  path(name: string): string {
    return join(this.root, name);
  }

  /**
   * The object of either kind under `name`, or undefined. Throws INVALID_ARGUMENT when the name is
   * a folder.
   */
  async find(name: string): Promise<Found | undefined> {
    const path = this.path(name);
    const isThere = await absentAs(
      false,
      this.checkFolderOf(path).then(() => true),
    );
    if (!isThere) return undefined;
    const stats = await absentAs(undefined, lstat(path, { bigint: true }));
    if (stats?.isDirectory() === true) throw nameBlocked(name);
    if (stats !== undefined) {
      checkPlain(path, stats);
      return { kind: "object", stats };
    }
    const pages = await absentAs(undefined, lstat(path + pagesSuffix, { bigint: true }));
    if (pages === undefined) return undefined;
    checkPlain(path + pagesSuffix, pages);
    return { kind: "pages", stats: pages };
  }

  /**
   * Creates the folders above an object, durably. Throws INVALID_ARGUMENT when one of them is an
   * object.
   */
  async makeFolderOf(name: string): Promise<void> {
    await this.#makeFolder(dirname(this.path(name)), name);
  }

  async #makeFolder(folder: string, name: string): Promise<void> {
    if (folder === this.root || this.#folders.has(folder)) return;
    await this.#makeFolder(dirname(folder), name);
    if ((await absentAs(undefined, lstat(folder + pagesSuffix))) !== undefined) throw nameBlocked(name);
    try {
      await mkdir(folder, ownFolderMode);
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error;
      const found = await lstat(folder);
      if (found.isSymbolicLink()) throw notPlain(folder, "a link", error);
      if (!found.isDirectory()) throw nameBlocked(name, error);
    }
    // A folder that existed is flushed too: the process that created it may have died before its
    // flush.
    await syncFolder(dirname(folder));
    this.#folders.add(folder);
  }

  /**
   * Makes the last change of a name durable. Throws OUTCOME_UNKNOWN when the folder cannot be
   * flushed.
   */
  async publish(name: string): Promise<void> {
    try {
      await syncFolder(dirname(this.path(name)));
    } catch (error) {
      throw outcomeUnknown(name, error);
    }
  }

  /** Runs `task` under the vault's lock: one change of names at a time, across processes. */
  locked<T>(options: CallOptions | undefined, task: () => Promise<T>): Promise<T> {
    return this.#turnstile.pass(async () => {
      const path = join(this.root, ownFolder, "lock");
      await this.checkFolderOf(path);
      const lock = await FileLock.acquire(path, "exclusive", lockOptions(options));
      try {
        return await task();
      } finally {
        await lock.release();
      }
    });
  }

  /**
   * Runs `task` with the path of a temporary file, which is removed afterwards if `task` has not
   * renamed it.
   */
  async withTemp<T>(task: (temp: string) => Promise<T>): Promise<T> {
    this.#sweeping ??= this.#sweep();
    await this.#sweeping;
    const temp = join(this.root, ownFolder, `temp-${randomUUID()}`);
    await this.checkFolderOf(temp);
    try {
      return await task(temp);
    } finally {
      await absentAs(undefined, unlink(temp));
    }
  }

  /** Removes temporary files of writers that died. */
  async #sweep(): Promise<void> {
    const folder = join(this.root, ownFolder);
    if (!(await this.hasContainer())) return;
    const temps = (await absentAs([], readdir(folder))).filter((entry) => entry.startsWith("temp-"));
    for (const temp of temps) {
      const found = await absentAs(undefined, lstat(join(folder, temp)));
      if (found !== undefined && Date.now() - found.mtimeMs > tempAgeMsMax)
        await absentAs(undefined, unlink(join(folder, temp)));
    }
  }

  /**
   * Writes `bytes` durably to `temp` with a modification time that no other version has. Returns
   * the ETag, which follows from that time.
   */
  async writeTemp(temp: string, bytes: Uint8Array, options: CallOptions | undefined): Promise<string> {
    const handle = await open(temp, "wx", ownFileMode);
    try {
      await handle.writeFile(bytes);
      const timeUs = await this.locked(options, () => this.#nextTimeUs());
      // Plus half a microsecond: rounded or truncated, the time stays in this microsecond.
      const seconds = (timeUs + 0.5) / 1e6;
      await handle.utimes(seconds, seconds);
      await handle.sync();
      const found = await handle.stat({ bigint: true });
      if (Number(found.mtimeNs / 1000n) !== timeUs) {
        throw new TidemarkError(
          "UNSUPPORTED",
          `the file system of ${this.root} does not keep times to the microsecond`,
          {
            remedy: "use a folder on ext4, XFS, Btrfs, ZFS or APFS",
          },
        );
      }
      return etagOf(found);
    } finally {
      await handle.close();
    }
  }

  /** The next modification time, in microseconds since 1970. Needs no flush: see ETags above. */
  async #nextTimeUs(): Promise<number> {
    const path = join(this.root, ownFolder, "clock");
    const handle = await openPlain(path, constants.O_RDWR | constants.O_CREAT);
    try {
      if ((await handle.stat()).nlink > 1) throw notPlain(path, "a hard link to another file");
      // A power failure may leave the file empty or torn; then the wall clock decides alone.
      const text = Buffer.alloc(clockDigits);
      const { bytesRead } = await handle.read(text, 0, clockDigits, 0);
      const last = Number.parseInt(text.toString("latin1", 0, bytesRead), 10);
      const timeUs = Math.max(Math.floor(this.#clock() * 1000), Number.isSafeInteger(last) ? last + 1 : 0);
      await handle.write(timeUs.toString().padStart(clockDigits, "0"), 0, "latin1");
      return timeUs;
    } finally {
      await handle.close();
    }
  }

  /** The lease on an object, or undefined. Throws DAMAGED when it cannot be parsed. */
  async readLease(name: string): Promise<Lease | undefined> {
    const bytes = await absentAs(undefined, readPlain(this.path(name) + leaseSuffix, leaseBytesMax));
    return bytes === undefined ? undefined : parseLease(name, bytes.toString("utf8"));
  }
}

export function lockOptions(options: CallOptions | undefined): LockOptions {
  return { signal: options?.signal, waitMsMax: lockWaitMsMax };
}

/** The ETag of an object's file. */
export function etagOf(found: BigIntStats): string {
  return `${found.mtimeNs.toString(16)}-${found.size.toString(16)}`;
}
