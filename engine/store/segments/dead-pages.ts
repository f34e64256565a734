/**
 * Dead pages as a writer knows them: which pages of segments garbage collections have freed or
 * condemned (marked, not yet freed).
 *
 * A writer keeps the id of the newest collection that it has acted on, and the ETag of each
 * segment's record of dead pages. While the id is unchanged a refresh costs one request; otherwise
 * one listing shows which records are new. A record is read when it is asked for. It may have
 * changed since the last look and is right all the same: a condemned page stays in the record
 * unless a committed point needs it.
 *
 * Invariant: after `refresh`, a writer that refers to no page that `of` returns refers to nothing
 * that the collection `collection` condemned.
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

/** Segments whose page sets are cached, at most 256 KiB each. */
const keptMax = 32;

/** The set of all pages of a segment. */
const everything: PageSet = PageSet.ofRuns([{ from: 0, end: segmentPages }]);

export class DeadPages {
  readonly #vault: string;
  /** ETag of each segment's record; undefined when the record has been deleted. */
  readonly #records = new Map<string, string | undefined>();
  /** Page sets of the segments that were asked for last. */
  readonly #kept = new Map<string, PageSet>();
  /** Undefined before the first `refresh`. */
  #collection: string | null | undefined;

  constructor(vaultId: Uint8Array) {
    this.#vault = toHex(vaultId);
  }

  /**
   * Id of the newest collection whose records are all known here; null when there has been none, or
   * its id cannot be read.
   */
  get collection(): string | null {
    return this.#collection ?? null;
  }

  /**
   * To be called before the first `refresh`: the caller has acted on this record (an ETag) of the
   * segment, so only a newer one is new.
   */
  assume(segment: string, record: string): void {
    this.#records.set(segment, record);
  }

  /** The ETag of a segment's record, if there is one. */
  recordOf(segment: string): string | undefined {
    return this.#records.get(segment);
  }

  /**
   * Learns which records are new since the last call, and returns their segments. One call at a
   * time. The first call lists all records, also when there is no collection id: pages may have
   * been freed all the same. After an error nothing has been learned.
   *
   * @throws FORMAT_UNSUPPORTED.
   */
  async refresh(store: Store, options: CallOptions): Promise<ReadonlySet<string>> {
    // Read first: the records that are listed afterwards hold at least everything of this
    // collection.
    const collection = await readCollection(store, this.#vault, options).catch((error: unknown) => {
      // There is no id to acknowledge then. The next collection replaces the document.
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
   * The freed and condemned pages of a segment; undefined when there are none. All pages of a
   * segment whose record is gone, because a segment is deleted together with its record. All pages
   * also when the record is damaged: that costs deduplication, while an error would stop the
   * writer.
   *
   * @throws FORMAT_UNSUPPORTED.
   */
  async of(store: Store, segment: string, options: CallOptions): Promise<PageSet | undefined> {
    if (!this.#records.has(segment)) return undefined;
    if (this.#records.get(segment) === undefined) return everything;
    const kept = this.#kept.get(segment);
    if (kept !== undefined) return kept;
    const { pages, etag } = await this.#read(store, segment, options);
    // A slow answer may be older than what `refresh` has learned meanwhile.
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

/**
 * The id of the newest collection; null when there has been none. Errors: DAMAGED,
 * FORMAT_UNSUPPORTED.
 */
export async function readCollection(store: Store, vault: string, options: CallOptions): Promise<string | null> {
  const there = await store.find(collectionName, documentBytesMax, options);
  return there === undefined ? null : decodeCollection(there.bytes, collectionName, vault).collection;
}

/**
 * Reads the record `name` of a segment's dead pages; undefined when there is none. Errors: DAMAGED,
 * FORMAT_UNSUPPORTED.
 */
export async function readDead(
  store: Store,
  vault: string,
  name: string,
  options: CallOptions,
): Promise<{ readonly document: DeadDocument; readonly etag: string } | undefined> {
  const there = await store.find(name, documentBytesMax, options);
  return there === undefined ? undefined : { document: decodeDead(there.bytes, name, vault), etag: there.etag };
}
