/**
 * Reference model of a store, in memory. It refuses every call that Azure refuses, so code that
 * passes its tests here works there.
 *
 * `MemoryStore` is the server: what is stored. `MemorySink` is a client; two sinks on one store are
 * two machines on one account. A store can be restored to an earlier snapshot: that is what a
 * killed Azurite does.
 *
 * Page objects are maps of 64 KiB pages. A write replaces the pages it touches and changes none, so
 * a snapshot is a copy of maps.
 *
 * Memory: the pages that were written, not the size of page objects.
 */

import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
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
import { throwIfAborted } from "../engine/index.ts";
import { acquireLease, changeLease, type Lease, passDelete, passWrite, releaseLease, renewLease } from "./lease.ts";
import { clear, overwrite, pieces } from "./memory-pages.ts";
import {
  checkInside,
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
  endsBefore,
  nameBlocked,
  objectExists,
  objectNotFound,
  tooLarge,
  vaultNotFound,
  wrongKind,
} from "./rules.ts";

interface PlainObject {
  readonly kind: "object";
  readonly etag: string;
  readonly bytes: Uint8Array;
  readonly lease: Lease | undefined;
}

interface PageObject {
  readonly kind: "pages";
  readonly etag: string;
  readonly sizeBytes: number;
  readonly sequenceNumber: number;
  /** End of the last page ever written. */
  readonly writtenBytes: number;
  /** By index. Belongs to this version alone; the pages in it are shared between versions. */
  readonly pages: Map<number, Uint8Array>;
}

type Stored = PlainObject | PageObject;

/** The content of a store at one instant. Opaque. */
export class MemorySnapshot {
  /** Undefined: the container did not exist. @internal */
  readonly objects: ReadonlyMap<string, Stored> | undefined;

  constructor(objects: ReadonlyMap<string, Stored> | undefined) {
    this.objects = objects;
  }
}

/**
 * What is stored. Several sinks may share one store.
 *
 * @example
 * ```ts
 * const store = new MemoryStore();
 * const snapshot = store.snapshot();
 * // … write through a MemorySink, then lose it, as a killed server would:
 * store.restore(snapshot);
 * ```
 */
export class MemoryStore {
  /** Tells it from every other store, also of an earlier process. @internal */
  readonly id: string = randomBytes(4).toString("hex");
  /** Undefined until a sink creates the container. Only `MemorySink` touches it. @internal */
  objects: Map<string, Stored> | undefined;
  /** Every path before a slash of a name so far. */
  readonly folders: Set<string> = new Set<string>();
  /** Only grows, also over `restore`, so that no ETag is used twice. */
  #etags = 0;

  /** A new ETag. */
  nextEtag(): string {
    this.#etags++;
    return `"0x${this.#etags.toString(16).toUpperCase().padStart(16, "0")}"`;
  }

  /** The content now, with leases and the absence of the container. */
  snapshot(): MemorySnapshot {
    return new MemorySnapshot(copied(this.objects));
  }

  /** Restores an earlier content. Clients are not told, as after the kill of an Azurite. */
  restore(snapshot: MemorySnapshot): void {
    this.objects = copied(snapshot.objects);
  }
}

/** Options of a `MemorySink`. */
export interface MemorySinkOptions {
  /** The store. Default: a new one, without a container. */
  readonly store?: MemoryStore | undefined;
  /** Milliseconds since 1970: leases expire by it. Default: the system's clock. */
  readonly clock?: (() => number) | undefined;
  /** Default: `memory:` and the id of the store. */
  readonly description?: string | undefined;
  /** `capabilities.attachablePages`. Default: false. */
  readonly attachablePages?: boolean | undefined;
  /** `capabilities.settlingMs`, in milliseconds. Default: 0. */
  readonly settlingMs?: number | undefined;
}

/**
 * A client of a `MemoryStore`.
 *
 * @example
 * ```ts
 * const sink = new MemorySink();
 * const vault = await Vault.create(sink);
 * ```
 */
export class MemorySink implements Sink {
  readonly description: string;
  readonly capabilities: Sink["capabilities"];
  readonly store: MemoryStore;
  readonly clockAheadMs = 0;
  readonly #clock: () => number;
  #disposed = false;

  constructor(options: MemorySinkOptions = {}) {
    this.store = options.store ?? new MemoryStore();
    this.#clock = options.clock ?? Date.now;
    this.description = options.description ?? `memory:${this.store.id}`;
    const { attachablePages = false, settlingMs = 0 } = options;
    this.capabilities = { attachablePages, settlingMs };
  }

  createContainer(options?: CallOptions): Promise<boolean> {
    return this.#call(options, () => {
      if (this.store.objects !== undefined) return false;
      this.store.objects = new Map();
      return true;
    });
  }

  getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    return this.#call(options, () => {
      const found = this.#plain(name);
      if (found.bytes.length > sizeBytesMax) throw tooLarge(name, found.bytes.length, sizeBytesMax);
      return { bytes: found.bytes.slice(), etag: found.etag };
    });
  }

  putObject(name: string, bytes: Uint8Array, condition: PutCondition, options?: CallOptions): Promise<Written> {
    return this.#call(options, () => {
      checkName(name);
      checkObjectBytes(name, bytes);
      const found = this.#objects().get(name);
      if ("ifAbsent" in condition) {
        if (found !== undefined) throw objectExists(name);
        return this.#store(name, {
          kind: "object",
          etag: this.store.nextEtag(),
          bytes: copyOf(bytes),
          lease: undefined,
        });
      }
      if (condition.leaseId !== undefined) checkLeaseId(condition.leaseId);
      if (found === undefined) throw conditionFailed(name, "it does not exist");
      if (found.kind !== "object") throw wrongKind(name, "object");
      const lease = passWrite(name, found.lease, condition.leaseId, this.#clock());
      if (found.etag !== condition.ifMatch)
        throw conditionFailed(name, `its ETag is ${found.etag}, not ${condition.ifMatch}`);
      return this.#store(name, { kind: "object", etag: this.store.nextEtag(), bytes: copyOf(bytes), lease });
    });
  }

  statObject(name: string, options?: CallOptions): Promise<ObjectStat> {
    return this.#call(options, () => {
      const found = this.#find(name);
      return { etag: found.etag, sizeBytes: sizeOf(found) };
    });
  }

  deleteObject(name: string, options?: CallOptions): Promise<void> {
    return this.#call(options, () => {
      checkName(name);
      const found = this.#objects().get(name);
      if (found?.kind === "object") passDelete(name, found.lease, this.#clock());
      this.#objects().delete(name);
    });
  }

  async *list(prefix: string, options?: CallOptions): AsyncGenerator<ListedObject, void> {
    const found = await this.#call(options, () => {
      checkPrefix(prefix);
      return [...this.#objects()].filter(([name]) => name.startsWith(prefix));
    });
    for (const [name, stored] of found) {
      throwIfAborted(options?.signal);
      yield { name, etag: stored.etag, sizeBytes: sizeOf(stored) };
    }
  }

  acquireLease(name: string, leaseId: string, durationSeconds: number, options?: CallOptions): Promise<void> {
    return this.#call(options, () => {
      checkLeaseId(leaseId);
      checkLeaseSeconds(durationSeconds);
      const found = this.#plain(name);
      this.#objects().set(name, {
        ...found,
        lease: acquireLease(name, found.lease, leaseId, durationSeconds, this.#clock()),
      });
    });
  }

  renewLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    return this.#call(options, () => {
      checkLeaseId(leaseId);
      const found = this.#plain(name);
      this.#objects().set(name, { ...found, lease: renewLease(name, found.lease, leaseId, this.#clock()) });
    });
  }

  changeLease(name: string, fromId: string, toId: string, options?: CallOptions): Promise<void> {
    return this.#call(options, () => {
      checkLeaseId(fromId);
      checkLeaseId(toId);
      const found = this.#plain(name);
      this.#objects().set(name, { ...found, lease: changeLease(name, found.lease, fromId, toId, this.#clock()) });
    });
  }

  releaseLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    return this.#call(options, () => {
      checkName(name);
      checkLeaseId(leaseId);
      const found = this.#objects().get(name);
      if (found?.kind === "object") this.#objects().set(name, { ...found, lease: releaseLease(found.lease, leaseId) });
    });
  }

  createPages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<Written> {
    return this.#call(options, () => {
      checkName(name);
      checkPagesSize(name, sizeBytes);
      checkSequenceNumber(sequenceNumber);
      if (this.#objects().has(name)) throw objectExists(name);
      const etag = this.store.nextEtag();
      return this.#store(name, { kind: "pages", etag, sizeBytes, sequenceNumber, writtenBytes: 0, pages: new Map() });
    });
  }

  writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options?: CallOptions,
  ): Promise<Written> {
    return this.#call(options, () => {
      checkPageWrite(name, offset, bytes);
      const found = this.#pages(name);
      checkInside(name, offset, bytes.length, found.sizeBytes);
      if (found.sequenceNumber !== fence.sequenceNumber) {
        throw conditionFailed(
          name,
          `its sequence number is ${String(found.sequenceNumber)}, not ${String(fence.sequenceNumber)}`,
        );
      }
      if (fence.etag !== undefined && found.etag !== fence.etag)
        throw conditionFailed(name, `its ETag is ${found.etag}, not ${fence.etag}`);
      overwrite(found.pages, offset, bytes);
      const writtenBytes = Math.max(found.writtenBytes, offset + bytes.length);
      return this.#store(name, { ...found, etag: this.store.nextEtag(), writtenBytes });
    });
  }

  readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    return this.#call(options, () => {
      checkReadOffset(name, offset);
      const found = this.#pages(name);
      if (offset + into.length > found.sizeBytes) throw endsBefore(name, offset + into.length, found.sizeBytes);
      for (const piece of pieces(offset, into.length)) {
        const target = into.subarray(piece.at, piece.at + piece.length);
        const page = found.pages.get(piece.page);
        if (page === undefined) target.fill(0);
        else target.set(page.subarray(piece.inPage, piece.inPage + piece.length));
      }
    });
  }

  clearPages(name: string, offset: number, length: number, options?: CallOptions): Promise<void> {
    return this.#call(options, () => {
      checkWholePages(name, offset, length);
      const found = this.#pages(name);
      checkInside(name, offset, length, found.sizeBytes);
      clear(found.pages, offset, length);
      this.#store(name, { ...found, etag: this.store.nextEtag() });
    });
  }

  restorePages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<void> {
    return this.#call(options, () => {
      checkName(name);
      checkPagesSize(name, sizeBytes);
      checkSequenceNumber(sequenceNumber);
      const found = this.#objects().get(name);
      if (found === undefined) {
        this.#store(name, {
          kind: "pages",
          etag: this.store.nextEtag(),
          sizeBytes,
          sequenceNumber,
          writtenBytes: 0,
          pages: new Map(),
        });
        return;
      }
      if (found.kind !== "pages") throw wrongKind(name, "page object");
      if (found.sizeBytes >= sizeBytes && found.sequenceNumber >= sequenceNumber) return;
      this.#store(name, {
        ...found,
        etag: this.store.nextEtag(),
        sizeBytes: Math.max(found.sizeBytes, sizeBytes),
        sequenceNumber: Math.max(found.sequenceNumber, sequenceNumber),
      });
    });
  }

  statPages(name: string, options?: CallOptions): Promise<PagesStat> {
    return this.#call(options, () => {
      const { etag, sizeBytes, sequenceNumber, writtenBytes } = this.#pages(name);
      return { etag, sizeBytes, sequenceNumber, writtenBytes };
    });
  }

  raiseSequenceNumber(name: string, atLeast: number, options?: CallOptions): Promise<Raised> {
    return this.#call(options, () => {
      checkSequenceNumber(atLeast);
      const found = this.#pages(name);
      if (found.sequenceNumber >= atLeast) return { etag: found.etag, sequenceNumber: found.sequenceNumber };
      return {
        ...this.#store(name, { ...found, etag: this.store.nextEtag(), sequenceNumber: atLeast }),
        sequenceNumber: atLeast,
      };
    });
  }

  [Symbol.asyncDispose](): Promise<void> {
    this.#disposed = true;
    return Promise.resolve();
  }

  /**
   * One call: `action` runs atomically, one turn of the event loop after the call and one before
   * its answer.
   */
  async #call<T>(options: CallOptions | undefined, action: () => T): Promise<T> {
    assert(!this.#disposed, `${this.description} is used after its disposal`);
    throwIfAborted(options?.signal);
    await nextTurn();
    throwIfAborted(options?.signal);
    const result = action();
    await nextTurn();
    return result;
  }

  #objects(): Map<string, Stored> {
    if (this.store.objects === undefined) throw vaultNotFound(this.description);
    return this.store.objects;
  }

  #find(name: string): Stored {
    checkName(name);
    const found = this.#objects().get(name);
    if (found === undefined) throw objectNotFound(name);
    return found;
  }

  #plain(name: string): PlainObject {
    const found = this.#find(name);
    if (found.kind !== "object") throw wrongKind(name, "object");
    return found;
  }

  #pages(name: string): PageObject {
    const found = this.#find(name);
    if (found.kind !== "pages") throw wrongKind(name, "page object");
    return found;
  }

  #store(name: string, stored: Stored): { readonly etag: string } {
    const objects = this.#objects();
    if (!objects.has(name)) this.#makeFolders(name, objects);
    objects.set(name, stored);
    return { etag: stored.etag };
  }

  /** A file system cannot hold `a` and `a/b`, so every store refuses the second. */
  #makeFolders(name: string, objects: ReadonlyMap<string, Stored>): void {
    if (this.store.folders.has(name)) throw nameBlocked(name);
    const folders: string[] = [];
    for (let slash = name.indexOf("/"); slash !== -1; slash = name.indexOf("/", slash + 1))
      folders.push(name.slice(0, slash));
    if (folders.some((folder) => objects.has(folder))) throw nameBlocked(name);
    for (const folder of folders) this.store.folders.add(folder);
  }
}

function sizeOf(stored: Stored): number {
  return stored.kind === "object" ? stored.bytes.length : stored.sizeBytes;
}

function copied(objects: ReadonlyMap<string, Stored> | undefined): Map<string, Stored> | undefined {
  if (objects === undefined) return undefined;
  return new Map(
    Array.from(objects, ([name, stored]) => [
      name,
      stored.kind === "object" ? stored : { ...stored, pages: new Map(stored.pages) },
    ]),
  );
}

/** A copy in memory of its own, whatever kind of buffer `bytes` is a view of. */
function copyOf(bytes: Uint8Array): Uint8Array {
  const copy = new Uint8Array(bytes.length);
  copy.set(bytes);
  return copy;
}
