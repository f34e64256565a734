/**
 * Catalog: which segments the vault has and, through the dedup index, which chunks they hold.
 *
 * It is rebuilt from the frames' tables and cached in the local state folder. A segment's part of
 * the cache is believed only while the segment's ETag is the cached one.
 *
 * Invariant: a point refers to a segment only if the store still has what the catalog read. So
 * before a commit `prove` asks the store for every segment that the cycle wrote or referred to,
 * which detects a store that went back in time.
 *
 * Several disks of a process may share a catalog. Chunks that one disk is still sending are known
 * to all, but only its own lanes refer to them; other disks do so when they are durable.
 */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { open, rename, rm } from "node:fs/promises";
import path from "node:path";
import { crc32 } from "node:zlib";
import { forEachAtOnce } from "../concurrency.ts";
import { openPlain } from "../disk/source/plain-file.ts";
import { hasCode, isUnreadable, systemCode, TidemarkError } from "../errors.ts";
import { segmentBytes } from "../limits.ts";
import type { Notice } from "../notice.ts";
import { fromHex, toHex } from "../store/format/checksum.ts";
import { anyText, type VaultDocument } from "../store/format/documents.ts";
import { Fields } from "../store/format/fields.ts";
import { storedLength } from "../store/format/frame.ts";
import { encodeDiskName, isSegmentName, parseSegmentName, segmentsPrefix } from "../store/format/names.ts";
import { DeadPages } from "../store/segments/dead-pages.ts";
import { walkFrames } from "../store/segments/frame-walk.ts";
import type { PageSet } from "../store/segments/page-set.ts";
import { Quarantine } from "../store/segments/quarantine.ts";
import type { Store } from "../store/store.ts";
import { regressed } from "../store/store.ts";
import { DedupIndex, indexEntryBytes } from "./dedup-index.ts";

/** What the catalog knows of a segment. */
interface Segment {
  readonly name: string;
  etag: string;
  /** Everything below is durable and has been indexed, or was written by us. */
  endBytes: number;
}

export interface CatalogOptions {
  readonly store: Store;
  readonly vaultId: Uint8Array;
  /** Ceiling of the dedup index in bytes. */
  readonly indexBytesMax: number;
  /** Folder of the cache; absent, nothing is cached. */
  readonly folder?: string | undefined;
  /**
   * Told of a segment of which a part could not be read; its chunks are then stored again when they
   * recur.
   */
  readonly onDamage: (error: TidemarkError) => void;
  readonly signal?: AbortSignal | undefined;
}

const segmentsReadAtOnce = 8;
/** So many segments are asked for one by one; for more, a listing is cheaper. */
const statsAtOnceMax = 8;
const cacheName = "dedup-index";
const cacheVersion = 2;
/** Segments that a cache may name: a pebibyte. */
const cacheSegmentsMax = 1024 * 1024;
/** Records of dead pages that are acted upon at once: 64 MiB at most. */
const recordsAtOnce = 256;
/** Entries read or written at a time: 1 MiB or so. */
const cacheBatchEntries = 36_864;

export class Catalog {
  readonly index: DedupIndex;
  readonly #segments: Segment[] = [];
  readonly #ids = new Map<string, number>();
  readonly #dead: DeadPages;
  readonly #quarantine: Quarantine;
  /** Segments with newly learned dead pages that the index does not know yet. */
  readonly #learned = new Set<string>();
  #adopting: Promise<unknown> = Promise.resolve();
  /** The collection that was the newest when the quarantine was last looked at. */
  #adopted: string | null = null;
  #dirty = false;
  #isDistrusted = false;

  private constructor({ indexBytesMax, vaultId }: CatalogOptions) {
    this.index = new DedupIndex(indexBytesMax);
    this.#dead = new DeadPages(vaultId);
    this.#quarantine = new Quarantine(vaultId);
  }

  /**
   * Lists the vault's segments, takes from the cache what still holds, and reads the frame tables
   * of the rest.
   */
  static async load(options: CatalogOptions): Promise<Catalog> {
    const catalog = new Catalog(options);
    const cache = options.folder === undefined ? undefined : await readCache(options.folder, options.vaultId);
    for (const { name, record } of cache?.segments ?? []) if (record !== null) catalog.#dead.assume(name, record);
    for (const segment of await catalog.#dead.refresh(options.store, options)) catalog.#learned.add(segment);
    catalog.#adopted = catalog.#dead.collection;
    await catalog.#quarantine.refresh(options.store, options);
    const listed = new Map<string, { readonly etag: string; readonly sizeBytes: number }>();
    for await (const object of options.store.list(segmentsPrefix, options)) {
      if (parseSegmentName(object.name) !== undefined) listed.set(object.name, object);
    }
    if (cache !== undefined) catalog.#takeCache(cache, listed);
    await catalog.#forgetDead(options.store, options.signal);
    const unread = [...listed].filter(([name]) => !catalog.#ids.has(name));
    const readOne = async ([name, { etag, sizeBytes }]: (typeof unread)[number]): Promise<void> => {
      await catalog.#readSegment(options, name, etag, sizeBytes);
    };
    await forEachAtOnce(unread, segmentsReadAtOnce, readOne, options.signal);
    return catalog;
  }

  get segmentCount(): number {
    return this.#segments.length;
  }

  /**
   * True when it tells of a segment of the disk that a writer of this epoch or of a later one made.
   * To a writer that has just been given the epoch that means: the store has forgotten that other
   * writer, and perhaps its segments, whose names will be given again.
   */
  knowsWriterSince(disk: string, epoch: number): boolean {
    const encodedDisk = encodeDiskName(disk);
    return this.#segments.some(({ name }) => {
      const parsed = parseSegmentName(name);
      return parsed?.encodedDisk === encodedDisk && parsed.epoch >= epoch;
    });
  }

  /**
   * Forgets the chunks that collections have condemned, or that have been found to be damaged,
   * since. Returns the newest collection that was known to the store when this was called, or a
   * newer one. A writer that refers only to what it finds here from now on refers to nothing that
   * this collection condemned. Errors: DAMAGED and those of the store.
   */
  async adopt(store: Store, signal: AbortSignal | undefined): Promise<string | null> {
    const adopted = this.#adopting.then(async () => {
      for (const segment of await this.#dead.refresh(store, { signal })) this.#learned.add(segment);
      await this.#forgetDead(store, signal);
      const { collection } = this.#dead;
      if (collection !== this.#adopted) {
        this.#forgetDamaged(await this.#quarantine.refresh(store, { signal }));
        await this.#forgetDeleted(store, signal);
      }
      this.#adopted = collection;
      return collection;
    });
    this.#adopting = adopted.catch(() => undefined); // one caller's failure is not the next one's
    return await adopted;
  }

  /**
   * Acts upon what has been learned of segments that the index knows. What an error leaves is acted
   * upon the next time.
   */
  async #forgetDead(store: Store, signal: AbortSignal | undefined): Promise<void> {
    for (const name of this.#learned) if (!this.#ids.has(name)) this.#learned.delete(name);
    const names = [...this.#learned];
    for (let from = 0; from < names.length; from += recordsAtOnce) {
      const batch = names.slice(from, from + recordsAtOnce);
      const dead: (PageSet | undefined)[] = [];
      const readOne = async (name: string): Promise<void> => {
        dead[this.idOf(name)] = await this.#dead.of(store, name, { signal });
      };
      await forEachAtOnce(batch, segmentsReadAtOnce, readOne, signal);
      this.index.dropWhere(
        (segment, offset, storedWord) => dead[segment]?.touches(offset, storedLength(storedWord)) === true,
      );
      for (const name of batch) this.#learned.delete(name);
      this.#dirty = true;
    }
  }

  /**
   * A segment is deleted together with its record. A writer that wrote nothing meanwhile, and was
   * not waited for, has not seen that.
   */
  async #forgetDeleted(store: Store, signal: AbortSignal | undefined): Promise<void> {
    const known = this.#segments.length; // what we make from now on need not be listed
    const there = await listSegments(store, signal);
    const isDeleted = this.#segments.slice(0, known).map(({ name }) => !there.has(name));
    if (!isDeleted.includes(true)) return;
    this.index.dropWhere((segment) => isDeleted[segment] === true);
    this.#dirty = true;
  }

  #forgetDamaged(segments: ReadonlySet<string>): void {
    if (segments.size === 0) return;
    this.index.dropWhere((segment, offset) => this.#quarantine.has(this.#at(segment).name, offset));
    this.#dirty = true;
  }

  /**
   * What of a segment nothing may refer to, as it is condemned, or has been found to be damaged.
   * Errors: those of the store.
   */
  async forbiddenIn(
    store: Store,
    segment: string,
    signal: AbortSignal | undefined,
  ): Promise<(offset: number, storedWord: number) => boolean> {
    const dead = await this.#dead.of(store, segment, { signal });
    return (offset, storedWord) =>
      dead?.touches(offset, storedLength(storedWord)) === true || this.#quarantine.has(segment, offset);
  }

  /**
   * The store does not hold what this catalog tells of: no session that shares it may commit any
   * more.
   */
  distrust(): void {
    this.#isDistrusted = true;
  }

  nameOf(id: number): string {
    return this.#at(id).name;
  }

  /** The number of a segment that something of this catalog refers to. */
  idOf(name: string): number {
    const id = this.#ids.get(name);
    assert(id !== undefined, "the catalog knows what it was asked to refer to");
    return id;
  }

  /** Takes up a segment that we have just created. Returns its number. */
  add(name: string, etag: string): number {
    assert(!this.#ids.has(name), "a segment is created once");
    const id = this.#segments.push({ name, etag, endBytes: 0 }) - 1;
    this.#ids.set(name, id);
    this.#dirty = true;
    return id;
  }

  /** Notes that our segment now ends at `endBytes` with `etag`. */
  written(id: number, etag: string, endBytes: number): void {
    const segment = this.#at(id);
    segment.etag = etag;
    segment.endBytes = endBytes;
    this.#dirty = true;
  }

  /** Whether what lies at `offset` of the segment is durable. */
  isDurable(id: number, offset: number): boolean {
    return offset < this.#at(id).endBytes;
  }

  /** Asks the store whether these segments are still there, whole. Errors: STORE_REGRESSED. */
  async prove(store: Store, segments: ReadonlySet<number>, signal: AbortSignal | undefined): Promise<void> {
    const wanted = Array.from(segments, (id) => this.#at(id));
    const there =
      wanted.length > statsAtOnceMax ? await listSegments(store, signal) : await statSegments(store, wanted, signal);
    for (const segment of wanted) {
      const etag = there.get(segment.name);
      if (etag === segment.etag) continue;
      // Another writer may have appended to its segment since: that is no harm. What we indexed
      // must still be there.
      const endBytes = etag === undefined ? 0 : (await store.statPages(segment.name, { signal })).writtenBytes;
      if (endBytes < segment.endBytes) throw regressed(segment.name, segment.endBytes, endBytes);
    }
    // Asked last: another disk's writer may find it out meanwhile, and then gives the names of lost
    // segments to new ones.
    if (this.#isDistrusted) {
      throw new TidemarkError(
        "STORE_REGRESSED",
        "the store went back in time, as the writer of another disk has found",
        {
          remedy: "run the command again; the next cycle ships what the store forgot",
        },
      );
    }
  }

  #at(id: number): Segment {
    const segment = this.#segments[id];
    assert(segment !== undefined, "the catalog gave this number");
    return segment;
  }

  /** Takes up what a segment's frames hold, as far as they can be read. */
  async #readSegment(options: CatalogOptions, name: string, etag: string, sizeBytes: number): Promise<void> {
    const { store, vaultId } = options;
    const id = this.#segments.push({ name, etag, endBytes: 0 }) - 1;
    this.#ids.set(name, id);
    this.#dirty = true;
    try {
      const dead = await this.#dead.of(store, name, options);
      for await (const { offset, header, table } of walkFrames(store, vaultId, { name, sizeBytes, dead }, options)) {
        const digestWords = new Uint32Array(table.digests.buffer, table.digests.byteOffset, table.count * 4);
        for (let chunk = 0; chunk < table.count; chunk += 1) {
          const at = offset + (table.offsets[chunk] ?? 0);
          const storedWord = table.storedWords[chunk] ?? 0;
          if (dead?.touches(at, storedLength(storedWord)) === true || this.#quarantine.has(name, at)) continue;
          this.index.set(digestWords, chunk * 4, id, at, storedWord);
        }
        this.#at(id).endBytes = offset + header.frameBytes;
      }
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) return; // a collection has deleted it since it was listed
      if (!isUnreadable(error)) throw error;
      options.onDamage(error);
    }
  }

  /**
   * Writes the cache: temp file and rename. Errors are the caller's to report; the cache is only a
   * cache.
   */
  async save(folder: string, vaultId: Uint8Array): Promise<void> {
    if (!this.#dirty) return;
    const file = path.join(folder, cacheName);
    const temporary = `${file}.${randomUUID()}`;
    const handle = await open(temporary, "wx", 0o600);
    try {
      const header = JSON.stringify({
        version: cacheVersion,
        vault: Buffer.from(vaultId).toString("hex"),
        count: this.index.count,
        segments: this.#segments.map(({ name, etag, endBytes }) => {
          // What is not known to be gone from the index yet is learned anew.
          const record = this.#learned.has(name) ? null : (this.#dead.recordOf(name) ?? null);
          return { name, etag, endBytes, record };
        }),
      });
      let sum = crc32(header);
      await handle.writeFile(`${header}\n`);
      const batch = Buffer.alloc(cacheBatchEntries * indexEntryBytes);
      const batches: Buffer[] = [];
      let filled = 0;
      this.index.forEach((words, at, segment, offset, storedWord) => {
        for (let word = 0; word < 4; word += 1) batch.writeUInt32LE(words[at + word] ?? 0, filled + word * 4);
        batch.writeUInt32LE(segment, filled + 16);
        batch.writeUInt32LE(offset, filled + 20);
        batch.writeUInt32LE(storedWord, filled + 24);
        filled += indexEntryBytes;
        if (filled === batch.length) {
          batches.push(Buffer.from(batch));
          filled = 0;
        }
      });
      batches.push(batch.subarray(0, filled));
      for (const part of batches) {
        sum = crc32(part, sum);
        await handle.writeFile(part);
      }
      const trailer = Buffer.alloc(4);
      trailer.writeUInt32LE(sum);
      await handle.writeFile(trailer);
      await handle.close();
      await rename(temporary, file);
      this.#dirty = false;
    } catch (error) {
      await handle.close();
      await rm(temporary, { force: true });
      throw error;
    }
  }

  /** Takes over what the cache holds of segments that have not changed since. */
  #takeCache(cache: Cache, listed: ReadonlyMap<string, { readonly etag: string }>): void {
    // Numbers in the file → numbers here; a segment that changed is left out and read from the
    // store.
    const ids = cache.segments.map(({ name, etag, endBytes }) => {
      if (listed.get(name)?.etag !== etag) return -1;
      const id = this.#segments.push({ name, etag, endBytes }) - 1;
      this.#ids.set(name, id);
      return id;
    });
    this.#dirty = ids.includes(-1);
    const words = new Uint32Array(
      cache.entries.buffer.slice(cache.entries.byteOffset, cache.entries.byteOffset + cache.entries.byteLength),
    );
    for (let at = 0; at < words.length; at += indexEntryBytes / 4) {
      const id = ids[words[at + 4] ?? 0] ?? -1;
      if (id >= 0) this.index.set(words, at, id, words[at + 5] ?? 0, words[at + 6] ?? 0);
    }
    this.#forgetDamaged(new Set(this.#ids.keys()));
  }
}

async function listSegments(store: Store, signal: AbortSignal | undefined): Promise<Map<string, string>> {
  const there = new Map<string, string>();
  for await (const object of store.list(segmentsPrefix, { signal })) there.set(object.name, object.etag);
  return there;
}

async function statSegments(
  store: Store,
  segments: readonly Segment[],
  signal: AbortSignal | undefined,
): Promise<Map<string, string>> {
  const there = new Map<string, string>();
  const stat = async ({ name }: Segment): Promise<void> => {
    const etag = await store.etagOf(name, { signal });
    if (etag !== undefined) there.set(name, etag);
  };
  await Promise.all(segments.map(stat));
  return there;
}

interface Cache {
  /**
   * `record`: ETag of the record of dead pages whose chunks are not among the entries; null when
   * there was none.
   */
  readonly segments: readonly {
    readonly name: string;
    readonly etag: string;
    readonly endBytes: number;
    readonly record: string | null;
  }[];
  readonly entries: Uint8Array;
}

/** Anything odd about the file means that there is no cache. */
async function readCache(folder: string, vaultId: Uint8Array): Promise<Cache | undefined> {
  try {
    const handle = await openPlain(path.join(folder, cacheName), constants.O_RDONLY);
    try {
      return parseCache(await handle.readFile(), vaultId);
    } finally {
      await handle.close();
    }
  } catch (error) {
    if (!(error instanceof TidemarkError) && systemCode(error) === undefined) throw error;
    return undefined;
  }
}

/** The cache's parts, or undefined when it is torn, of another vault or of another version. */
function parseCache(bytes: Buffer, vaultId: Uint8Array): Cache | undefined {
  const lineEnd = bytes.indexOf(0x0a);
  if (lineEnd < 0 || bytes.length < lineEnd + 5) return undefined;
  const entries = bytes.subarray(lineEnd + 1, bytes.length - 4);
  const sum = crc32(entries, crc32(bytes.subarray(0, lineEnd)));
  if (entries.length % indexEntryBytes !== 0 || sum !== bytes.readUInt32LE(bytes.length - 4)) return undefined;
  const segments = parseHeader(bytes.toString("utf8", 0, lineEnd), vaultId, entries.length / indexEntryBytes);
  return segments === undefined ? undefined : { segments, entries };
}

/** The header's segments; undefined when it is not the one of these entries. */
function parseHeader(text: string, vaultId: Uint8Array, count: number): Cache["segments"] | undefined {
  try {
    const fields = new Fields(JSON.parse(text), cacheName);
    if (fields.integer("version") !== cacheVersion || fields.text("vault", anyText) !== toHex(vaultId))
      return undefined;
    if (fields.integer("count") !== count) return undefined;
    return fields.list("segments", cacheSegmentsMax, (segment) => ({
      name: segment.text("name", { test: isSegmentName }),
      etag: segment.text("etag", anyText),
      endBytes: segment.integer("endBytes", 0, segmentBytes),
      record: segment.textOrNull("record", anyText),
    }));
  } catch (error) {
    if (error instanceof SyntaxError || error instanceof TidemarkError) return undefined;
    throw error;
  }
}

/** The vault's catalog, as the cache in `folder` and the store tell it. */
export async function loadCatalog(
  context: { readonly document: VaultDocument; readonly indexBytesMax: number },
  store: Store,
  options: {
    readonly folder: string | undefined;
    readonly onNotice: (notice: Notice) => void;
    readonly signal?: AbortSignal | undefined;
  },
): Promise<Catalog> {
  return await Catalog.load({
    store,
    vaultId: fromHex(context.document.vault),
    indexBytesMax: context.indexBytesMax,
    folder: options.folder,
    signal: options.signal,
    onDamage: (error) =>
      options.onNotice({
        code: "SEGMENT_DAMAGED",
        message: `${error.message}; new points do not refer to its chunks`,
      }),
  });
}
