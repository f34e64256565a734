/**
 * What a writer, or whoever else reads segments, knows of dead pages: the newest collection that it has acted on, and for each segment the pages that
 * hold nothing any more, or may soon hold nothing.
 */
import { hasCode } from "../errors.ts";
import { toHex } from "../format/checksum.ts";
import { documentBytesMax } from "../format/documents.ts";
import {
  collectionName,
  type DeadDocument,
  deadPrefix,
  decodeCollection,
  decodeDead,
  segmentOfDead,
  segmentPages,
} from "../format/reclaim.ts";
import type { CallOptions, ListedObject } from "../sink.ts";
import type { Store } from "../store.ts";
import { PageSet } from "./page-set.ts";

const readsAtOnce = 8;

interface Known {
  /** Of the record; undefined when there is none any more. */
  readonly etag: string | undefined;
  readonly pages: PageSet;
}

/** All pages of a segment. */
const everything: PageSet = PageSet.ofRuns([{ from: 0, end: segmentPages }]);

export class DeadPages {
  readonly #vault: string;
  readonly #damage: "refused" | "forbidden";
  readonly #bySegment = new Map<string, Known>();
  /** Undefined before anything has been read. */
  #collection: string | null | undefined;

  /**
   * `damage`: a record that cannot be read is an error; or, for writers, who have to go on and lose deduplication only, all of its segment counts as dead.
   */
  constructor(vaultId: Uint8Array, damage: "refused" | "forbidden" = "refused") {
    this.#vault = toHex(vaultId);
    this.#damage = damage;
  }

  /** The newest collection of which everything is known here; null while there has been none, or nobody can read which. */
  get collection(): string | null {
    return this.#collection ?? null;
  }

  of(segment: string): PageSet | undefined {
    return this.#bySegment.get(segment)?.pages;
  }

  /**
   * Learns what is new since the last time, by one request while there was no new collection. Returns the segments of which something has been learned. To be
   * called by one caller at a time. The first time every record is read, also when there is no id: pages have been cleared all the same. All of a segment
   * whose record is gone counts as dead. Errors: DAMAGED, FORMAT_UNSUPPORTED and those of the store; then nothing has been learned.
   */
  async refresh(store: Store, options: CallOptions): Promise<ReadonlySet<string>> {
    const learned = new Map<string, Known>();
    // Asked first: what is read then holds at least all of this collection.
    const collection = await readCollection(store, this.#vault, options).catch((error: unknown) => {
      // There is nothing then that anybody could acknowledge, and the next collection puts its own in the place.
      if (hasCode(error, "DAMAGED")) return null;
      throw error;
    });
    if (collection === this.#collection) return new Set();
    const changed: ListedObject[] = [];
    const gone = new Set(this.#bySegment.keys());
    for await (const record of store.list(deadPrefix, options)) {
      const segment = segmentOfDead(record.name);
      gone.delete(segment);
      if (this.#bySegment.get(segment)?.etag !== record.etag) changed.push(record);
    }
    const next = changed.values();
    const read = async (): Promise<void> => {
      for (const { name, etag } of next) learned.set(segmentOfDead(name), await this.#read(store, name, etag, options));
    };
    await Promise.all(Array.from({ length: readsAtOnce }, read));
    for (const segment of gone) {
      if (this.#bySegment.get(segment)?.etag !== undefined) learned.set(segment, { etag: undefined, pages: everything });
    }
    for (const [segment, known] of learned) this.#bySegment.set(segment, known);
    this.#collection = collection;
    return new Set(learned.keys());
  }

  async #read(store: Store, name: string, listedEtag: string, options: CallOptions): Promise<Known> {
    try {
      const found = await readDead(store, this.#vault, name, options);
      if (found === undefined) return { etag: undefined, pages: everything }; // its segment is gone as a whole
      return { etag: found.etag, pages: PageSet.ofRuns([...found.document.dead, ...found.document.condemned]) };
    } catch (error) {
      if (this.#damage === "refused" || !hasCode(error, "DAMAGED")) throw error;
      return { etag: listedEtag, pages: everything };
    }
  }
}

/** The id of the newest collection; null when there has been none. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export async function readCollection(store: Store, vault: string, options: CallOptions): Promise<string | null> {
  try {
    const { bytes } = await store.get(collectionName, documentBytesMax, options);
    return decodeCollection(bytes, collectionName, vault).collection;
  } catch (error) {
    if (hasCode(error, "OBJECT_NOT_FOUND")) return null;
    throw error;
  }
}

/** What is recorded of a segment's dead pages; undefined when nothing is. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export async function readDead(
  store: Store,
  vault: string,
  name: string,
  options: CallOptions,
): Promise<{ readonly document: DeadDocument; readonly etag: string } | undefined> {
  try {
    const { bytes, etag } = await store.get(name, documentBytesMax, options);
    return { document: decodeDead(bytes, name, vault), etag };
  } catch (error) {
    if (hasCode(error, "OBJECT_NOT_FOUND")) return undefined;
    throw error;
  }
}
