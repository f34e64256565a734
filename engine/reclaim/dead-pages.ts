/**
 * What a writer, or whoever else reads segments, knows of dead pages: the newest collection that it has acted on, and for each segment the pages that
 * hold nothing any more, or may soon hold nothing.
 */
import { hasCode } from "../errors.ts";
import { toHex } from "../format/checksum.ts";
import { documentBytesMax } from "../format/documents.ts";
import { collectionName, type DeadDocument, deadPrefix, decodeCollection, decodeDead, segmentOfDead } from "../format/reclaim.ts";
import type { CallOptions } from "../sink.ts";
import type { Store } from "../store.ts";
import { PageSet } from "./page-set.ts";

const readsAtOnce = 8;

interface Known {
  readonly etag: string;
  readonly pages: PageSet;
}

export class DeadPages {
  readonly #vault: string;
  readonly #bySegment = new Map<string, Known>();
  #collection: string | null = null;

  constructor(vaultId: Uint8Array) {
    this.#vault = toHex(vaultId);
  }

  /** The newest collection of which everything is known here; null while there has been none. */
  get collection(): string | null {
    return this.#collection;
  }

  of(segment: string): PageSet | undefined {
    return this.#bySegment.get(segment)?.pages;
  }

  /**
   * Learns what is new since the last time, by one request while there was no new collection. Returns the segments of which something has been learned. To be
   * called by one caller at a time. Errors: DAMAGED, FORMAT_UNSUPPORTED and those of the store; then nothing has been learned.
   */
  async refresh(store: Store, options: CallOptions): Promise<ReadonlySet<string>> {
    const learned = new Map<string, Known>();
    // Asked first: what is read then holds at least all of this collection.
    const collection = await readCollection(store, this.#vault, options);
    if (collection === this.#collection) return new Set();
    const changed: string[] = [];
    for await (const { name, etag } of store.list(deadPrefix, options)) {
      if (this.#bySegment.get(segmentOfDead(name))?.etag !== etag) changed.push(name);
    }
    const next = changed.values();
    const read = async (): Promise<void> => {
      for (const name of next) {
        const found = await readDead(store, this.#vault, name, options);
        if (found === undefined) continue; // its segment is gone as a whole
        const { segment, dead, condemned } = found.document;
        learned.set(segment, { etag: found.etag, pages: PageSet.ofRuns([...dead, ...condemned]) });
      }
    };
    await Promise.all(Array.from({ length: readsAtOnce }, read));
    for (const [segment, known] of learned) this.#bySegment.set(segment, known);
    this.#collection = collection;
    return new Set(learned.keys());
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
