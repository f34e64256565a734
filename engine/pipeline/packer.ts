/**
 * Packer: stores a chunk once. It looks the chunk's digest up in the dedup index of the vault, and
 * packs the payload into the session's lanes where the vault does not hold it.
 *
 * A session ships a point's content by this port, and does not know where it comes from: a volume
 * that is captured (`capture.ts`), or a point of another vault (`transfer.ts`).
 *
 * Invariant: every segment that an entry of the run refers to is in `references`.
 */
import { digestBytes, granuleBytes } from "../limits.ts";
import type { RunWriter } from "../store/map/run-writer.ts";
import type { Extent } from "../volume.ts";
import type { Catalog } from "./catalog.ts";
import type { ChunkPlace } from "./dedup-index.ts";
import type { Lanes } from "./lanes.ts";
import type { ChunkTable } from "./slabs.ts";

/** What a session lends to the content of a point. */
export interface RunParts {
  readonly catalog: Catalog;
  readonly lanes: Lanes;
  /** Receives the entries, in ascending order. */
  readonly run: RunWriter;
  /** Receives the segments that the entries refer to. */
  readonly references: Set<number>;
  readonly onProgress: (doneBytes: number) => void;
  /** Called each time a batch of chunks has been packed; the next one waits for it. */
  readonly betweenBatches?: (() => Promise<void>) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** What a point is to hold. */
export interface PointContent {
  readonly volumeBytes: number;
  /** Ships what differs from the parent. All is packed when it settles, if not sent yet. */
  readonly fill: (parts: RunParts) => Promise<RunStatistics>;
  /** Ships these extents again, ascending and disjoint, also those that the parent holds as they are. */
  readonly refill: (parts: RunParts, extents: AsyncIterable<Extent>) => Promise<RunStatistics>;
}

export interface RunStatistics {
  scannedBytes: number;
  changedBytes: number;
  zeroBytes: number;
  dedupedBytes: number;
  newBytes: number;
}

/** A chunk's digest, in a table of chunks. */
type Digests = Pick<ChunkTable, "digests" | "digestWords">;

export class Packer {
  readonly statistics: RunStatistics;
  /** Where the chunk lies that was found or packed last. */
  readonly place: ChunkPlace = { segment: 0, offset: 0, storedWord: 0 };
  readonly #parts: Pick<RunParts, "catalog" | "lanes" | "references">;

  /** `statistics`: of another packer of the run, whose counts these are, too. */
  constructor(parts: Pick<RunParts, "catalog" | "lanes" | "references">, statistics?: RunStatistics) {
    this.#parts = parts;
    const zeros = { scannedBytes: 0, changedBytes: 0, zeroBytes: 0, dedupedBytes: 0, newBytes: 0 };
    this.statistics = statistics ?? zeros;
  }

  nameOf(segment: number): string {
    return this.#parts.catalog.nameOf(segment);
  }

  /** Looks a chunk up by its digest. True: it may be referred to, at `place`. */
  find(digestWords: Uint32Array, chunk: number): boolean {
    const { catalog, lanes } = this.#parts;
    const { place } = this;
    if (!catalog.index.find(digestWords, chunk * 4, place)) return false;
    return catalog.isDurable(place.segment, place.offset) || lanes.owns(place.segment);
  }

  /** As `find`, and an entry is to refer to the chunk. */
  refer({ digestWords }: Digests, chunk: number, granules: number): boolean {
    if (!this.find(digestWords, chunk)) return false;
    this.#parts.references.add(this.place.segment);
    this.statistics.dedupedBytes += granules * granuleBytes;
    return true;
  }

  /**
   * Packs a chunk of which `refer` knows nothing and for which the lanes have room. The stored word
   * is that of the payload before it is sealed; `granule` is the first granule of the volume that
   * the chunk came from.
   */
  pack(
    payload: Uint8Array,
    packed: number,
    { digests, digestWords }: Digests,
    chunk: number,
    granule: number,
    granules: number,
  ): void {
    const { catalog, lanes, references } = this.#parts;
    const { place, statistics } = this;
    const storedWord = packed + lanes.sealBytes;
    place.segment = lanes.pack(payload, storedWord, digests, chunk * digestBytes, granule, granules);
    place.offset = lanes.placedAt;
    place.storedWord = storedWord;
    references.add(place.segment);
    catalog.index.set(digestWords, chunk * 4, place.segment, place.offset, storedWord);
    statistics.newBytes += granules * granuleBytes;
  }
}
