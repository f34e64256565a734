/**
 * A store in a folder of a local or shared disk.
 *
 *     ROOT/vault.json, ROOT/disks/…/head     objects, under their own names
 *     ROOT/segments/…/1-0-0@pages            page objects (see `PageFile`)
 *     ROOT/disks/…/head@lease                the lease on the object beside it
 *     ROOT/@tidemark/lock                    the lock that every change of names takes; this folder marks ROOT as a store
 *     ROOT/@tidemark/clock                   the last time that was given to an object
 *     ROOT/@tidemark/temp-…                  files that are being written; what a crash leaves is removed after a day
 *
 * `@` is no character of a name, so nothing of ours can be taken for an object.
 *
 * An object is written to a temporary file, flushed, and renamed to its name under the lock, where the condition is checked; then its folder
 * is flushed. Readers need no lock: they see the old file or the new one.
 *
 * ETags. An object's ETag is its file's modification time and size. The time is not left to the kernel, whose clock ticks every few
 * milliseconds: each version gets one microsecond of its own, greater than the one before in the whole store and not less than the wall clock. The
 * last one given is kept in `@tidemark/clock`, so not even a clock that is set back gives one twice. Only a power failure that takes
 * the newest entry of that file, together with a clock that is set back to exactly that microsecond and an object of the same size, could. A page
 * object's ETag is a random tag in its header. Copying the folder with its times (`cp -a`) keeps every ETag.
 *
 * Leases expire by the wall clock. Hosts that share the folder need clocks that agree to within a few seconds, and a file system
 * whose flock reaches across hosts (NFS 4 and SMB do, as Linux mounts them).
 */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import type { BigIntStats } from "node:fs";
import { constants, mkdir, open, readdir, rename, stat, unlink, writeFile } from "node:fs/promises";
import { dirname, join, resolve } from "node:path";
import type { CallOptions, ListedObject, ObjectStat, PageFence, PagesStat, PutCondition, Sink, StoredObject } from "../engine/index.ts";
import { hasCode, syncFolder, systemCode, TidemarkError, throwIfAborted } from "../engine/index.ts";
import { FileLock, type LockOptions, Turnstile } from "./file-lock.ts";
import { absentAs, changedByOthers, isAbsence, outcomeUnknown, readFully, syncFolderIfAllowed, translated } from "./file-system.ts";
import { acquireLease, changeLease, type Lease, parseLease, passDelete, passWrite, releaseLease, renewLease } from "./lease.ts";
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
  nameBlocked,
  objectExists,
  objectNotFound,
  tooLarge,
  vaultNotFound,
  wrongKind,
} from "./rules.ts";

const ownFolder = "@tidemark";
const pagesSuffix = "@pages";
const leaseSuffix = "@lease";

/** A mount point of its own is an ordinary place for a vault, and holds this from the start. */
const harmlessInEmptyFolder: readonly string[] = ["lost+found"];

/** Page files kept open: every lane's segment while writing, and the segments that a restore reads in turn. */
const pageFilesOpenMax = 32;

/** The lock is held for a few file calls. Whoever holds it longer has been stopped. */
const lockWaitMsMax = 30_000;

/** A temporary file is written in seconds; one of this age has lost its writer. */
const tempAgeMsMax: number = 24 * 60 * 60 * 1000;

export interface DirectorySinkOptions {
  /** Milliseconds since 1970, by which leases expire and versions are dated. Default: the system's clock. */
  readonly clock?: (() => number) | undefined;
}

export class DirectorySink implements Sink {
  readonly description: string;
  readonly capabilities: Sink["capabilities"] = { attachablePages: false, settlingMs: 0 };
  readonly interruptions = 0;
  readonly #root: string;
  readonly #clock: () => number;
  readonly #turnstile = new Turnstile();
  readonly #pageFiles: PageFilePool;
  /** Folders that exist and whose names are durable. */
  readonly #folders = new Set<string>();
  #sweeping: Promise<void> | undefined;
  #disposed = false;

  private constructor(root: string, options: DirectorySinkOptions) {
    this.#root = resolve(root);
    this.#clock = options.clock ?? Date.now;
    this.description = `dir:${this.#root}`;
    this.#pageFiles = new PageFilePool(pageFilesOpenMax, (name) => PageFile.open(name, this.#path(name) + pagesSuffix));
  }

  /** Nothing is made, and nothing has to be there, before `createContainer`. Errors: INVALID_ARGUMENT (`root` is no folder), ACCESS_REFUSED. */
  static async open(root: string, options: DirectorySinkOptions = {}): Promise<DirectorySink> {
    const sink = new DirectorySink(root, options);
    const found = await absentAs(undefined, stat(sink.#root)).catch((error: unknown) => {
      throw translated(error, sink.#root, "STORE_REFUSED");
    });
    if (found?.isDirectory() === false) {
      throw new TidemarkError("INVALID_ARGUMENT", `${sink.#root} is not a folder`, { remedy: "name a folder for the vault" });
    }
    return sink;
  }

  createContainer(options?: CallOptions): Promise<boolean> {
    return this.#call("the vault's folder", options, async () => {
      await mkdir(this.#root, { recursive: true });
      const entries = (await readdir(this.#root)).filter((entry) => !harmlessInEmptyFolder.includes(entry));
      if (entries.length > 0 && !(await this.#hasContainer())) {
        throw new TidemarkError("INVALID_ARGUMENT", `${this.#root} holds other files`, {
          remedy: "name an empty or a new folder for the vault",
        });
      }
      try {
        await mkdir(join(this.#root, ownFolder));
      } catch (error) {
        if (systemCode(error) === "EEXIST") return false;
        throw error;
      }
      this.#folders.clear();
      for (let folder = this.#root; ; folder = dirname(folder)) {
        // Every folder above may have been made just now. What lies above those that we may not open was there before.
        if (!(await syncFolderIfAllowed(folder)) || folder === dirname(folder)) return true;
      }
    });
  }

  getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    return this.#call(name, options, async () => {
      checkName(name);
      const handle = await absentAs(undefined, open(this.#path(name), constants.O_RDONLY));
      if (handle === undefined) throw await this.#absent(name, "object");
      try {
        const found = await handle.stat({ bigint: true });
        if (!found.isFile()) throw await this.#absent(name, "object");
        if (found.size > sizeBytesMax) throw tooLarge(name, Number(found.size), sizeBytesMax);
        const bytes = new Uint8Array(Number(found.size));
        if ((await readFully(handle, bytes, 0)) < bytes.length) throw changedByOthers(name);
        return { bytes, etag: etagOf(found) };
      } finally {
        await handle.close();
      }
    });
  }

  putObject(name: string, bytes: Uint8Array, condition: PutCondition, options?: CallOptions): Promise<{ readonly etag: string }> {
    return this.#call(name, options, async () => {
      checkName(name);
      checkObjectBytes(name, bytes);
      if ("leaseId" in condition) checkLeaseId(condition.leaseId);
      return await this.#withTemp(async (temp) => {
        const etag = await this.#writeTemp(temp, bytes, options);
        await this.#makeFolder(dirname(this.#path(name)), name);
        await this.#locked(options, async () => {
          const found = await this.#find(name);
          if ("ifAbsent" in condition) {
            if (found !== undefined) throw objectExists(name);
          } else {
            await this.#passPut(name, found, condition.ifMatch, condition.leaseId);
          }
          await rename(temp, this.#path(name));
        });
        await this.#publish(name);
        return { etag };
      });
    });
  }

  statObject(name: string, options?: CallOptions): Promise<ObjectStat> {
    return this.#call(name, options, async () => {
      checkName(name);
      const found = await this.#find(name);
      if (found === undefined) throw await this.#absent(name, "object");
      if (found.kind === "object") return { etag: etagOf(found.stats), sizeBytes: Number(found.stats.size) };
      const { etag, sizeBytes } = await this.#pageFiles.use(name, (file) => file.stat(lockOptions(options)));
      return { etag, sizeBytes };
    });
  }

  deleteObject(name: string, options?: CallOptions): Promise<void> {
    return this.#call(name, options, async () => {
      checkName(name);
      await this.#checkContainer();
      const removed = await this.#locked(options, async () => {
        const found = await this.#find(name);
        if (found === undefined) return false;
        if (found.kind === "object") {
          const lease = await this.#readLease(name);
          passDelete(name, lease, this.#clock());
          // The lease goes first: a crash between the two must not leave one for an object that comes later.
          if (lease !== undefined) await unlink(this.#path(name) + leaseSuffix);
          await unlink(this.#path(name));
        } else {
          await unlink(this.#path(name) + pagesSuffix);
        }
        return true;
      });
      await this.#pageFiles.forget(name);
      if (removed) await this.#publish(name);
    });
  }

  async *list(prefix: string, options?: CallOptions): AsyncGenerator<ListedObject, void> {
    await this.#call(prefix, options, async () => {
      checkPrefix(prefix);
      await this.#checkContainer();
    });
    const folders = [prefix.slice(0, prefix.lastIndexOf("/") + 1)];
    for (let folder = folders.pop(); folder !== undefined; folder = folders.pop()) {
      const path = join(this.#root, folder);
      const entries = await this.#call(folder, options, () => absentAs([], readdir(path, { withFileTypes: true })));
      for (const entry of entries) {
        const kind = entry.name.endsWith(pagesSuffix) ? "pages" : "object";
        const part = kind === "pages" ? entry.name.slice(0, -pagesSuffix.length) : entry.name;
        if (!isNamePart(part)) continue;
        const name = folder + part;
        if (entry.isDirectory() && kind === "object") {
          if (`${name}/`.startsWith(prefix)) folders.push(`${name}/`);
        } else if (entry.isFile() && name.startsWith(prefix)) {
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
      return this.#changeLease(name, options, (lease) => acquireLease(name, lease, leaseId, durationSeconds, this.#clock()));
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
      await this.#checkContainer();
      await this.#locked(options, async () => {
        const lease = await this.#readLease(name);
        if (lease !== undefined && releaseLease(lease, leaseId) === undefined) await unlink(this.#path(name) + leaseSuffix);
      });
    });
  }

  createPages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<{ readonly etag: string }> {
    return this.#call(name, options, async () => {
      checkName(name);
      checkPagesSize(name, sizeBytes);
      checkSequenceNumber(sequenceNumber);
      return await this.#withTemp(async (temp) => {
        const etag = await PageFile.create(temp, sizeBytes, sequenceNumber);
        await this.#makeFolder(dirname(this.#path(name)), name);
        await this.#locked(options, async () => {
          if ((await this.#find(name)) !== undefined) throw objectExists(name);
          await rename(temp, this.#path(name) + pagesSuffix);
        });
        await this.#publish(name);
        return { etag };
      });
    });
  }

  writePages(name: string, offset: number, bytes: Uint8Array, fence: PageFence, options?: CallOptions): Promise<{ readonly etag: string }> {
    // Once the pages are being written, an input/output error leaves nobody knowing what arrived.
    return this.#pagesCall(name, options, "OUTCOME_UNKNOWN", (lock) => {
      checkPageWrite(name, offset, bytes);
      return this.#pageFiles.use(name, (file) => file.write(offset, bytes, fence, lock));
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
    for (;;) {
      try {
        await this.#pagesCall(name, options, "STORE_REFUSED", (lock) =>
          this.#pageFiles.use(name, (file) => file.restore(sizeBytes, sequenceNumber, lock)),
        );
        return;
      } catch (error) {
        if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
      }
      try {
        await this.createPages(name, sizeBytes, sequenceNumber, options);
      } catch (error) {
        // Somebody else has made it meanwhile, or we have: it is looked at again.
        if (!hasCode(error, "OBJECT_EXISTS", "OUTCOME_UNKNOWN")) throw error;
      }
    }
  }

  statPages(name: string, options?: CallOptions): Promise<PagesStat> {
    return this.#pagesCall(name, options, "STORE_REFUSED", (lock) => this.#pageFiles.use(name, (file) => file.stat(lock)));
  }

  raiseSequenceNumber(
    name: string,
    atLeast: number,
    options?: CallOptions,
  ): Promise<{ readonly etag: string; readonly sequenceNumber: number }> {
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
    assert(!this.#disposed, `${this.description} was used after it had been disposed of`);
    throwIfAborted(options?.signal);
    try {
      return await action();
    } catch (error) {
      // Our own folder is missing when the store is.
      if (systemCode(error) === "ENOENT" && !(await this.#hasContainer())) throw vaultNotFound(this.description);
      throw translated(error, name, fallback);
    }
  }

  /** A call on a page object: whatever it does first, the file is opened by its name. */
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
          if (isAbsence(error)) throw await this.#absent(name, "page object");
          throw error;
        }
      },
      fallback,
    );
  }

  /** One change of names at a time, over all processes. */
  #locked<T>(options: CallOptions | undefined, task: () => Promise<T>): Promise<T> {
    return this.#turnstile.pass(async () => {
      const lock = await FileLock.acquire(join(this.#root, ownFolder, "lock"), "exclusive", lockOptions(options));
      try {
        return await task();
      } finally {
        await lock.release();
      }
    });
  }

  // ---- The container ----

  async #hasContainer(): Promise<boolean> {
    const found = await absentAs(undefined, stat(join(this.#root, ownFolder)));
    return found?.isDirectory() === true;
  }

  async #checkContainer(): Promise<void> {
    if (!(await this.#hasContainer())) throw vaultNotFound(this.description);
  }

  /** Why a name could not be opened as what was wanted: the container is absent, the object is, or it is of the other kind. */
  async #absent(name: string, wanted: "object" | "page object"): Promise<TidemarkError> {
    if (!(await this.#hasContainer())) return vaultNotFound(this.description);
    const other = await absentAs(undefined, stat(this.#path(name) + (wanted === "object" ? pagesSuffix : "")));
    return other?.isFile() === true ? wrongKind(name, wanted) : objectNotFound(name);
  }

  // ---- Names ----

  #path(name: string): string {
    return join(this.#root, name);
  }

  async #find(name: string): Promise<Found | undefined> {
    const path = this.#path(name);
    const stats = await absentAs(undefined, stat(path, { bigint: true }));
    if (stats?.isFile() === true) return { kind: "object", stats };
    if (stats !== undefined) throw nameBlocked(name);
    const pages = await absentAs(undefined, stat(path + pagesSuffix, { bigint: true }));
    return pages === undefined ? undefined : { kind: "pages", stats: pages };
  }

  async #statListed(name: string, kind: "object" | "pages", options: CallOptions | undefined): Promise<ObjectStat | undefined> {
    const path = this.#path(name);
    const found = await absentAs(undefined, stat(kind === "pages" ? path + pagesSuffix : path, { bigint: true }));
    if (found === undefined) return undefined;
    if (kind === "object") return { etag: etagOf(found), sizeBytes: Number(found.size) };
    try {
      return await this.#pageFiles.use(name, (file) => file.stat(lockOptions(options)));
    } catch (error) {
      if (isAbsence(error)) return undefined;
      // One damaged object must not hide all others. Whoever opens it is told.
      if (hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED"))
        return { etag: etagOf(found), sizeBytes: Math.max(0, Number(found.size) - pageFileDataAt) };
      throw error;
    }
  }

  /** Makes the folder and those above it, durably. `name` is the object on whose account. */
  async #makeFolder(folder: string, name: string): Promise<void> {
    if (folder === this.#root || this.#folders.has(folder)) return;
    await this.#makeFolder(dirname(folder), name);
    if ((await absentAs(undefined, stat(folder + pagesSuffix))) !== undefined) throw nameBlocked(name);
    try {
      await mkdir(folder);
    } catch (error) {
      if (systemCode(error) !== "EEXIST") throw error;
      if (!(await stat(folder)).isDirectory()) throw nameBlocked(name, error);
    }
    // Also when it was there: who made it may have died before the flush.
    await syncFolder(dirname(folder));
    this.#folders.add(folder);
  }

  /** Makes a change of a name that has just been done durable. */
  async #publish(name: string): Promise<void> {
    try {
      await syncFolder(dirname(this.#path(name)));
    } catch (error) {
      throw outcomeUnknown(name, error);
    }
  }

  // ---- Temporary files and times ----

  async #withTemp<T>(task: (temp: string) => Promise<T>): Promise<T> {
    this.#sweeping ??= this.#sweep();
    await this.#sweeping;
    const temp = join(this.#root, ownFolder, `temp-${randomUUID()}`);
    try {
      return await task(temp);
    } finally {
      // Once it has been renamed there is nothing left to remove.
      await absentAs(undefined, unlink(temp));
    }
  }

  /** Removes what writers that died have left. */
  async #sweep(): Promise<void> {
    const folder = join(this.#root, ownFolder);
    const temps = (await absentAs([], readdir(folder))).filter((entry) => entry.startsWith("temp-"));
    for (const temp of temps) {
      const found = await absentAs(undefined, stat(join(folder, temp)));
      if (found !== undefined && Date.now() - found.mtimeMs > tempAgeMsMax) await absentAs(undefined, unlink(join(folder, temp)));
    }
  }

  /** Writes `bytes` durably to `temp` under a time that no other version bears; gives the ETag that follows from it. */
  async #writeTemp(temp: string, bytes: Uint8Array, options: CallOptions | undefined): Promise<string> {
    const handle = await open(temp, "wx", 0o666);
    try {
      await handle.writeFile(bytes);
      const timeUs = await this.#locked(options, () => this.#nextTimeUs());
      // Half a microsecond more: whether seconds are rounded or cut on their way to the file, they end in this microsecond and no other.
      const seconds = (timeUs + 0.5) / 1e6;
      await handle.utimes(seconds, seconds);
      await handle.sync();
      const found = await handle.stat({ bigint: true });
      if (Number(found.mtimeNs / 1000n) !== timeUs) {
        throw new TidemarkError("UNSUPPORTED", `the file system of ${this.#root} does not keep times to the microsecond`, {
          remedy: "use a folder on ext4, XFS, Btrfs, ZFS or APFS",
        });
      }
      return etagOf(found);
    } finally {
      await handle.close();
    }
  }

  /** The next time to give to an object, in microseconds since 1970. Needs no flush: see ETags above. */
  async #nextTimeUs(): Promise<number> {
    const handle = await open(join(this.#root, ownFolder, "clock"), constants.O_RDWR | constants.O_CREAT, 0o666);
    try {
      // An empty or torn file is one that a power failure took; then the wall clock alone has to do.
      const last = Number.parseInt(await handle.readFile("latin1"), 10);
      const timeUs = Math.max(Math.floor(this.#clock() * 1000), Number.isSafeInteger(last) ? last + 1 : 0);
      await handle.write(timeUs.toString().padStart(16, "0"), 0, "latin1");
      return timeUs;
    } finally {
      await handle.close();
    }
  }

  // ---- Leases, always under the lock ----

  /** Checks that a put may replace what was found, and ends a lease that has expired. */
  async #passPut(name: string, found: Found | undefined, ifMatch: string, leaseId: string | undefined): Promise<void> {
    if (found === undefined) throw conditionFailed(name, "it does not exist");
    if (found.kind !== "object") throw wrongKind(name, "object");
    const before = await this.#readLease(name);
    const after = passWrite(name, before, leaseId, this.#clock());
    const etag = etagOf(found.stats);
    if (etag !== ifMatch) throw conditionFailed(name, `its ETag is ${etag}, not ${ifMatch}`);
    if (before !== undefined && after === undefined) await unlink(this.#path(name) + leaseSuffix);
  }

  #changeLease(name: string, options: CallOptions | undefined, change: (lease: Lease | undefined) => Lease): Promise<void> {
    checkName(name);
    return this.#withTemp((temp) =>
      this.#locked(options, async () => {
        const found = await this.#find(name);
        if (found?.kind !== "object") throw await this.#absent(name, "object");
        const lease = change(await this.#readLease(name));
        await writeFile(temp, JSON.stringify(lease), { flag: "wx", flush: true });
        await rename(temp, this.#path(name) + leaseSuffix);
      }),
    );
  }

  async #readLease(name: string): Promise<Lease | undefined> {
    const handle = await absentAs(undefined, open(this.#path(name) + leaseSuffix, constants.O_RDONLY));
    if (handle === undefined) return undefined;
    try {
      return parseLease(name, await handle.readFile("utf8"));
    } finally {
      await handle.close();
    }
  }
}

interface Found {
  readonly kind: "object" | "pages";
  readonly stats: BigIntStats;
}

function lockOptions(options: CallOptions | undefined): LockOptions {
  return { signal: options?.signal, waitMsMax: lockWaitMsMax };
}

function etagOf(found: BigIntStats): string {
  return `${found.mtimeNs.toString(16)}-${found.size.toString(16)}`;
}
