/**
 * Sink in a folder of a local or shared file system.
 *
 * A put writes a temporary file, flushes it, and renames it to the object's name under the vault's
 * lock, where the condition is checked; then the folder is flushed. Readers take no lock: they see
 * the old file or the new one. directory-tree.ts says which files stand where and how an ETag is
 * made; page-file.ts does page objects.
 *
 * Leases expire by the wall clock. Hosts that share the folder need clocks that agree to within a
 * few seconds, and a file system whose flock reaches across hosts (NFS 4 and SMB, as Linux mounts
 * them).
 *
 * A page write leaves a reserve of free space, so that a full vault can be pruned and collected.
 *
 * Cost: a put is two flushes, a page write one. At most `pageFilesOpenMax` page files stay open.
 */
import assert from "node:assert/strict";
import { constants } from "node:fs";
import { type FileHandle, lstat, readdir, rename, stat, unlink, writeFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import type {
  CallOptions,
  ListedObject,
  ObjectStat,
  PageFence,
  PagesStat,
  PutCondition,
  Raised,
  Sink,
  StoredObject,
  Written,
} from "../engine/index.ts";
import { hasCode, systemCode, TidemarkError, throwIfAborted } from "../engine/index.ts";
import { notPlain, openPlain, ownFileMode } from "../engine/internal.ts";
import { DirectoryTree, etagOf, type Found, leaseSuffix, lockOptions, pagesSuffix } from "./directory-tree.ts";
import type { LockOptions } from "./file-lock.ts";
import { absentAs, changedByOthers, isAbsence, readFully, SpaceReserve, translated } from "./file-system.ts";
import { acquireLease, changeLease, type Lease, passDelete, passWrite, releaseLease, renewLease } from "./lease.ts";
import { PageFile, pageFileDataAt } from "./page-file.ts";
import { PageFilePool } from "./page-file-pool.ts";
import {
  checkLeaseId,
  checkLeaseSeconds,
  checkName,
  checkObjectBytes,
  checkPagesSize,
  checkPageWrite,
  checkPrefix,
  checkReadOffset,
  checkSequenceNumber,
  checkWholePages,
  conditionFailed,
  isNamePart,
  objectExists,
  tooLarge,
  vaultNotFound,
  wrongKind,
} from "./rules.ts";

/**
 * Page files kept open: the segment of every writing lane, and the segments that a restore reads in
 * turn.
 */
const pageFilesOpenMax = 32;

/** How often a page object that is being restored may be deleted and made by other processes. */
const restoreAttemptsMax = 100;

/** Options of `DirectorySink.open`. */
export interface DirectorySinkOptions {
  /**
   * @internal Milliseconds since 1970: leases expire and versions are dated by it. Default: the system's
   * clock.
   */
  readonly clock?: (() => number) | undefined;
}

/**
 * A vault in a folder: the adapter behind `dir:`.
 *
 * @example
 * ```ts
 * await using sink = await DirectorySink.open("/srv/vault");
 * await sink.createContainer();
 * ```
 */
export class DirectorySink implements Sink {
  readonly description: string;
  readonly capabilities: Sink["capabilities"] = { attachablePages: false, settlingMs: 0 };
  /** The file system dates files by the clock of this machine. */
  readonly clockAheadMs = 0;
  readonly #clock: () => number;
  readonly #tree: DirectoryTree;
  readonly #pageFiles: PageFilePool;
  readonly #reserve: SpaceReserve;
  #disposed = false;

  private constructor(root: string, options: DirectorySinkOptions) {
    this.#clock = options.clock ?? Date.now;
    this.description = `dir:${resolve(root)}`;
    this.#tree = new DirectoryTree(resolve(root), this.description, this.#clock);
    this.#reserve = new SpaceReserve(this.#tree.root);
    this.#pageFiles = new PageFilePool(pageFilesOpenMax, async (name) => {
      const path = this.#tree.path(name) + pagesSuffix;
      await this.#tree.checkFolderOf(path);
      return await PageFile.open(name, path);
    });
  }

  /**
   * Opens the vault in the folder `root`, which may be absent until `createContainer`. Creates
   * nothing.
   *
   * @throws TidemarkError INVALID_ARGUMENT: `root` is not a folder; ACCESS_REFUSED.
   */
  static async open(root: string, options: DirectorySinkOptions = {}): Promise<DirectorySink> {
    const sink = new DirectorySink(root, options);
    const found = await absentAs(undefined, stat(sink.#tree.root)).catch((error: unknown) => {
      throw translated(error, sink.#tree.root, "STORE_REFUSED", sink.#tree.root);
    });
    if (found?.isDirectory() === false) {
      throw new TidemarkError("INVALID_ARGUMENT", `${sink.#tree.root} is not a folder`, {
        remedy: "name a folder for the vault",
      });
    }
    return sink;
  }

  createContainer(options?: CallOptions): Promise<boolean> {
    return this.#call("the vault's folder", options, () => this.#tree.createContainer());
  }

  getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    return this.#call(name, options, async () => {
      checkName(name);
      const handle = await this.#openObject(name);
      if (handle === undefined) throw await this.#tree.absent(name, "object");
      try {
        const found = await handle.stat({ bigint: true });
        if (found.size > sizeBytesMax) throw tooLarge(name, Number(found.size), sizeBytesMax);
        const bytes = new Uint8Array(Number(found.size));
        if ((await readFully(handle, bytes, 0)) < bytes.length) throw changedByOthers(name);
        return { bytes, etag: etagOf(found) };
      } finally {
        await handle.close();
      }
    });
  }

  putObject(name: string, bytes: Uint8Array, condition: PutCondition, options?: CallOptions): Promise<Written> {
    return this.#call(name, options, async () => {
      checkName(name);
      checkObjectBytes(name, bytes);
      if ("leaseId" in condition) checkLeaseId(condition.leaseId);
      return await this.#tree.withTemp(async (temp) => {
        const etag = await this.#tree.writeTemp(temp, bytes, options);
        await this.#tree.makeFolderOf(name);
        await this.#tree.locked(options, async () => {
          const found = await this.#tree.find(name);
          if ("ifAbsent" in condition) {
            if (found !== undefined) throw objectExists(name);
          } else {
            await this.#passPut(name, found, condition.ifMatch, condition.leaseId);
          }
          await rename(temp, this.#tree.path(name));
        });
        await this.#tree.publish(name);
        return { etag };
      });
    });
  }

  statObject(name: string, options?: CallOptions): Promise<ObjectStat> {
    return this.#call(name, options, async () => {
      checkName(name);
      const found = await this.#tree.find(name);
      if (found === undefined) throw await this.#tree.absent(name, "object");
      if (found.kind === "object") return { etag: etagOf(found.stats), sizeBytes: Number(found.stats.size) };
      const { etag, sizeBytes } = await this.#pageFiles.use(name, (file) => file.stat(lockOptions(options)));
      return { etag, sizeBytes };
    });
  }

  deleteObject(name: string, options?: CallOptions): Promise<void> {
    return this.#call(name, options, async () => {
      checkName(name);
      await this.#tree.checkContainer();
      const removed = await this.#tree.locked(options, async () => {
        const found = await this.#tree.find(name);
        if (found === undefined) return false;
        if (found.kind === "object") {
          const lease = await this.#tree.readLease(name);
          passDelete(name, lease, this.#clock());
          // The lease is removed first: a crash between the two must not leave a lease for a later
          // object of this name.
          if (lease !== undefined) await unlink(this.#tree.path(name) + leaseSuffix);
          await unlink(this.#tree.path(name));
        } else {
          await unlink(this.#tree.path(name) + pagesSuffix);
        }
        return true;
      });
      await this.#pageFiles.forget(name);
      if (removed) await this.#tree.publish(name);
    });
  }

  async *list(prefix: string, options?: CallOptions): AsyncGenerator<ListedObject, void> {
    await this.#call(prefix, options, async () => {
      checkPrefix(prefix);
      await this.#tree.checkContainer();
    });
    const folders = [prefix.slice(0, prefix.lastIndexOf("/") + 1)];
    for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
      const path = join(this.#tree.root, folder);
      const entries = await this.#call(folder, options, () => absentAs([], readdir(path, { withFileTypes: true })));
      for (const entry of entries) {
        const kind = entry.name.endsWith(pagesSuffix) ? "pages" : "object";
        const part = kind === "pages" ? entry.name.slice(0, -pagesSuffix.length) : entry.name;
        if (!isNamePart(part)) continue;
        const name = folder + part;
        if (entry.isDirectory()) {
          if (kind === "object" && `${name}/`.startsWith(prefix)) folders.push(`${name}/`);
        } else if (entry.isSymbolicLink() && `${name}/`.startsWith(prefix) && (await leadsToFolder(join(path, part)))) {
          // What a folder would hold cannot be listed.
          throw notPlain(join(path, part), "a link");
        } else if (name.startsWith(prefix)) {
          const found = await this.#call(name, options, () => this.#statListed(name, kind, options));
          if (found !== undefined) yield { name, ...found };
        }
      }
    }
  }

  acquireLease(name: string, leaseId: string, durationSeconds: number, options?: CallOptions): Promise<void> {
    return this.#call(name, options, () => {
      checkLeaseId(leaseId);
      checkLeaseSeconds(durationSeconds);
      return this.#changeLease(name, options, (lease) =>
        acquireLease(name, lease, leaseId, durationSeconds, this.#clock()),
      );
    });
  }

  renewLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    return this.#call(name, options, () => {
      checkLeaseId(leaseId);
      return this.#changeLease(name, options, (lease) => renewLease(name, lease, leaseId, this.#clock()));
    });
  }

  changeLease(name: string, fromId: string, toId: string, options?: CallOptions): Promise<void> {
    return this.#call(name, options, () => {
      checkLeaseId(fromId);
      checkLeaseId(toId);
      return this.#changeLease(name, options, (lease) => changeLease(name, lease, fromId, toId, this.#clock()));
    });
  }

  releaseLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    return this.#call(name, options, async () => {
      checkName(name);
      checkLeaseId(leaseId);
      await this.#tree.checkContainer();
      await this.#tree.locked(options, async () => {
        const lease = await this.#tree.readLease(name);
        if (lease !== undefined && releaseLease(lease, leaseId) === undefined)
          await unlink(this.#tree.path(name) + leaseSuffix);
      });
    });
  }

  createPages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<Written> {
    return this.#call(name, options, async () => {
      checkName(name);
      checkPagesSize(name, sizeBytes);
      checkSequenceNumber(sequenceNumber);
      return await this.#tree.withTemp(async (temp) => {
        const etag = await PageFile.create(temp, sizeBytes, sequenceNumber);
        await this.#tree.makeFolderOf(name);
        await this.#tree.locked(options, async () => {
          if ((await this.#tree.find(name)) !== undefined) throw objectExists(name);
          await rename(temp, this.#tree.path(name) + pagesSuffix);
        });
        await this.#tree.publish(name);
        return { etag };
      });
    });
  }

  writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options?: CallOptions,
  ): Promise<Written> {
    // After an input/output error during the write it is unknown which pages arrived.
    return this.#pagesCall(name, options, "OUTCOME_UNKNOWN", async (lock) => {
      checkPageWrite(name, offset, bytes);
      return await this.#reserve.keptBy(bytes.length, () =>
        this.#pageFiles.use(name, (file) => file.write(offset, bytes, fence, lock)),
      );
    });
  }

  async readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    await this.#pagesCall(name, options, "STORE_REFUSED", (lock) => {
      checkReadOffset(name, offset);
      return this.#pageFiles.use(name, (file) => file.read(offset, into, lock));
    });
  }

  async clearPages(name: string, offset: number, length: number, options?: CallOptions): Promise<void> {
    await this.#pagesCall(name, options, "STORE_REFUSED", (lock) => {
      checkWholePages(name, offset, length);
      return this.#pageFiles.use(name, (file) => file.clear(offset, length, lock));
    });
  }

  async restorePages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<void> {
    checkPagesSize(name, sizeBytes);
    checkSequenceNumber(sequenceNumber);
    for (let attempt = 1; ; attempt += 1) {
      try {
        await this.#pagesCall(name, options, "STORE_REFUSED", (lock) =>
          this.#pageFiles.use(name, (file) => file.restore(sizeBytes, sequenceNumber, lock)),
        );
        return;
      } catch (error) {
        if (!hasCode(error, "OBJECT_NOT_FOUND") || attempt === restoreAttemptsMax) throw error;
      }
      try {
        await this.createPages(name, sizeBytes, sequenceNumber, options);
      } catch (error) {
        // Another process, or an earlier try, has created it: look again.
        if (!hasCode(error, "OBJECT_EXISTS", "OUTCOME_UNKNOWN")) throw error;
      }
    }
  }

  statPages(name: string, options?: CallOptions): Promise<PagesStat> {
    return this.#pagesCall(name, options, "STORE_REFUSED", (lock) =>
      this.#pageFiles.use(name, (file) => file.stat(lock)),
    );
  }

  raiseSequenceNumber(name: string, atLeast: number, options?: CallOptions): Promise<Raised> {
    return this.#pagesCall(name, options, "STORE_REFUSED", (lock) => {
      checkSequenceNumber(atLeast);
      return this.#pageFiles.use(name, (file) => file.raise(atLeast, lock));
    });
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    await this.#pageFiles.close();
  }

  // ---- Calls ----

  async #call<T>(
    name: string,
    options: CallOptions | undefined,
    action: () => Promise<T>,
    fallback: "STORE_REFUSED" | "OUTCOME_UNKNOWN" = "STORE_REFUSED",
  ): Promise<T> {
    assert(!this.#disposed, `${this.description} is used after its disposal`);
    throwIfAborted(options?.signal);
    try {
      return await action();
    } catch (error) {
      if (systemCode(error) === "ENOENT" && !(await this.#tree.hasContainer())) throw vaultNotFound(this.description);
      throw translated(error, name, fallback, this.#tree.root);
    }
  }

  /**
   * A call on a page object. A file that cannot be opened becomes OBJECT_NOT_FOUND, VAULT_NOT_FOUND
   * or DAMAGED.
   */
  #pagesCall<T>(
    name: string,
    options: CallOptions | undefined,
    fallback: "STORE_REFUSED" | "OUTCOME_UNKNOWN",
    action: (lock: LockOptions) => Promise<T>,
  ): Promise<T> {
    return this.#call(
      name,
      options,
      async () => {
        checkName(name);
        try {
          return await action(lockOptions(options));
        } catch (error) {
          if (isAbsence(error)) throw await this.#tree.absent(name, "page object");
          throw error;
        }
      },
      fallback,
    );
  }

  /** The file of an object; undefined when there is none, or a folder. */
  async #openObject(name: string): Promise<FileHandle | undefined> {
    const path = this.#tree.path(name);
    try {
      await this.#tree.checkFolderOf(path);
      return await openPlain(path, constants.O_RDONLY);
    } catch (error) {
      if (isAbsence(error) || systemCode(error) === "EISDIR") return undefined;
      throw error;
    }
  }

  async #statListed(
    name: string,
    kind: "object" | "pages",
    options: CallOptions | undefined,
  ): Promise<ObjectStat | undefined> {
    const path = this.#tree.path(name);
    const found = await absentAs(undefined, lstat(kind === "pages" ? path + pagesSuffix : path, { bigint: true }));
    if (found === undefined) return undefined;
    // A link or a FIFO is listed like a damaged object. Opening it throws the error.
    if (kind === "object" || !found.isFile()) return { etag: etagOf(found), sizeBytes: Number(found.size) };
    try {
      return await this.#pageFiles.use(name, (file) => file.stat(lockOptions(options)));
    } catch (error) {
      if (isAbsence(error)) return undefined;
      // A damaged object must not hide the others. Opening it throws the error.
      if (hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED"))
        return { etag: etagOf(found), sizeBytes: Math.max(0, Number(found.size) - pageFileDataAt) };
      throw error;
    }
  }

  // ---- Leases, under the lock ----

  /** Checks that a put may replace the object that was found, and removes an expired lease. */
  async #passPut(name: string, found: Found | undefined, ifMatch: string, leaseId: string | undefined): Promise<void> {
    if (found === undefined) throw conditionFailed(name, "it does not exist");
    if (found.kind !== "object") throw wrongKind(name, "object");
    const before = await this.#tree.readLease(name);
    const after = passWrite(name, before, leaseId, this.#clock());
    const etag = etagOf(found.stats);
    if (etag !== ifMatch) throw conditionFailed(name, `its ETag is ${etag}, not ${ifMatch}`);
    if (before !== undefined && after === undefined) await unlink(this.#tree.path(name) + leaseSuffix);
  }

  #changeLease(
    name: string,
    options: CallOptions | undefined,
    change: (lease: Lease | undefined) => Lease,
  ): Promise<void> {
    checkName(name);
    return this.#tree.withTemp((temp) =>
      this.#tree.locked(options, async () => {
        const found = await this.#tree.find(name);
        if (found?.kind !== "object") throw await this.#tree.absent(name, "object");
        const lease = change(await this.#tree.readLease(name));
        await writeFile(temp, JSON.stringify(lease), { flag: "wx", flush: true, mode: ownFileMode });
        await rename(temp, this.#tree.path(name) + leaseSuffix);
      }),
    );
  }
}

async function leadsToFolder(link: string): Promise<boolean> {
  const found = await absentAs(undefined, stat(link)).catch((error: unknown) => {
    // A circle of links leads nowhere.
    if (systemCode(error) === "ELOOP") return undefined;
    throw error;
  });
  return found?.isDirectory() === true;
}
