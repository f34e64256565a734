/**
 * What a writer knows of dead pages: the newest collection that it has acted on, and which segments have a record of pages that hold nothing any more, or may
 * soon hold nothing. A record is read when it is asked for. It may have changed since the last look, and is right all the same: what a collection
 * condemns stays in it, unless a committed point turns out to need it.
 *
 * Memory: about 150 bytes for each segment that has a record, and 8 MiB.
 */
import { hasCode } from "../../errors.ts";
import type { CallOptions } from "../../sink.ts";
import { toHex } from "../format/checksum.ts";
import { documentBytesMax } from "../format/documents.ts";
import {
  collectionName,
  type DeadDocument,
  deadName,
  deadPrefix,
  decodeCollection,
  decodeDead,
  segmentOfDead,
  segmentPages,
} from "../format/reclaim.ts";
import type { Store } from "../store.ts";
import { PageSet } from "./page-set.ts";

/** Segments whose pages are kept in memory: 256 KiB each at most. */
const keptMax = 32;

/** All pages of a segment. */
const everything: PageSet = PageSet.ofRuns([{ from: 0, end: segmentPages }]);

export class DeadPages {
  readonly #vault: string;
  /** ETag of each segment's record; undefined when there is none any more. */
  readonly #records = new Map<string, string | undefined>();
  /** The segments that were asked for last. */
  readonly #kept = new Map<string, PageSet>();
  /** Undefined before anything has been read. */
  #collection: string | null | undefined;

  constructor(vaultId: Uint8Array) {
    this.#vault = toHex(vaultId);
  }

  /** The newest collection of whose records everything is known here; null while there has been none, or nobody can read which. */
  get collection(): string | null {
    return this.#collection ?? null;
  }

  /** Before the first `refresh`: the caller has acted upon this record of a segment, and is not told of it again unless it has changed. */
  assume(segment: string, record: string): void {
    this.#records.set(segment, record);
  }

  /** The ETag of a segment's record, if there is one. */
  recordOf(segment: string): string | undefined {
    return this.#records.get(segment);
  }

  /**
   * Learns which records are new since the last time, by one request while there was no new collection. Returns their segments. To be called by one caller
   * at a time. The first time all records are looked at, also when there is no id: pages have been cleared all the same. Errors: FORMAT_UNSUPPORTED and
   * those of the store; then nothing has been learned.
   */
  async refresh(store: Store, options: CallOptions): Promise<ReadonlySet<string>> {
    // Asked first: the records that are found then hold at least all of this collection.
    const collection = await readCollection(store, this.#vault, options).catch((error: unknown) => {
      // There is nothing then that anybody could acknowledge, and the next collection puts its own in the place.
      if (hasCode(error, "DAMAGED")) return null;
      throw error;
    });
    if (collection === this.#collection) return new Set();
    const listed = new Map<string, string>();
    for await (const { name, etag } of store.list(deadPrefix, options)) listed.set(segmentOfDead(name), etag);
    const learned = new Set<string>();
    for (const [segment, etag] of listed) if (this.#records.get(segment) !== etag) learned.add(segment);
    for (const [segment, etag] of this.#records) if (etag !== undefined && !listed.has(segment)) learned.add(segment);
    for (const segment of learned) {
      this.#records.set(segment, listed.get(segment));
      this.#kept.delete(segment);
    }
    this.#collection = collection;
    return learned;
  }

  /**
   * Pages of a segment that hold nothing, or may soon hold nothing; undefined when there are none. All pages of one whose record is gone, as it is deleted with
   * its record, and of one whose record is damaged: that costs a writer deduplication, where an error would stop it. Errors: FORMAT_UNSUPPORTED and
   * those of the store.
   */
  async of(store: Store, segment: string, options: CallOptions): Promise<PageSet | undefined> {
    if (!this.#records.has(segment)) return undefined;
    if (this.#records.get(segment) === undefined) return everything;
    const kept = this.#kept.get(segment);
    if (kept !== undefined) return kept;
    const { pages, etag } = await this.#read(store, segment, options);
    // An answer that was long under way may be older than what has been learned meanwhile.
    if (etag !== this.#records.get(segment)) return pages;
    this.#kept.set(segment, pages);
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= keptMax) break;
      this.#kept.delete(oldest);
    }
    return pages;
  }

  async #read(
    store: Store,
    segment: string,
    options: CallOptions,
  ): Promise<{ readonly pages: PageSet; readonly etag: string | undefined }> {
    try {
      const found = await readDead(store, this.#vault, deadName(segment), options);
      if (found === undefined) return { pages: everything, etag: undefined };
      return { pages: PageSet.ofRuns([...found.document.dead, ...found.document.condemned]), etag: found.etag };
    } catch (error) {
      if (hasCode(error, "DAMAGED")) return { pages: everything, etag: undefined };
      throw error;
    }
  }
}

/** The id of the newest collection; null when there has been none. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export async function readCollection(store: Store, vault: string, options: CallOptions): Promise<string | null> {
  const there = await store.find(collectionName, documentBytesMax, options);
  return there === undefined ? null : decodeCollection(there.bytes, collectionName, vault).collection;
}

/** What is recorded of a segment's dead pages; undefined when nothing is. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export async function readDead(
  store: Store,
  vault: string,
  name: string,
  options: CallOptions,
): Promise<{ readonly document: DeadDocument; readonly etag: string } | undefined> {
  const there = await store.find(name, documentBytesMax, options);
  return there === undefined ? undefined : { document: decodeDead(there.bytes, name, vault), etag: there.etag };
}
