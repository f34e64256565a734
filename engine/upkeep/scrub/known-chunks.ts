/**
 * What the maps of all points of all disks tell of a segment: which chunks lie in it, where, and what they are. That is all there is to know of a stretch whose
 * own headers and tables are lost.
 *
 * Memory: a hundred thousand chunks at a time, the first ones from a place on; who needs those behind them asks again.
 */

import { hasCode, isUnreadableOrGone, throwIfAborted } from "../../errors.ts";
import { digestBytes, segmentBytes } from "../../limits.ts";
import { fromHex } from "../../store/format/checksum.ts";
import type { EntryColumns } from "../../store/format/leaf.ts";
import { zeroSegment } from "../../store/format/leaf.ts";
import { mapName } from "../../store/format/names.ts";
import { PointMap } from "../../store/map/point-map.ts";
import { readHead } from "../../store/points/head.ts";
import { readPoints } from "../../store/points/history.ts";
import { readManifest } from "../../store/points/manifest.ts";
import { listDisks } from "../../store/points/points.ts";
import type { Store } from "../../store/store.ts";
import type { KnownChunk } from "./frame-layout.ts";

const chunksMax = 100_000;
/** Places of one chunk that are kept. */
const placesMax = 16;

export interface KnownStretch {
  /** In rising order. */
  readonly chunks: readonly KnownChunk[];
  /** Chunks from there on are not among them. */
  readonly end: number;
  /** False: a map could not be read, so there may be more. */
  readonly isComplete: boolean;
}

export interface KnownOptions {
  readonly store: Store;
  readonly vault: string;
  readonly segment: string;
  readonly signal?: AbortSignal | undefined;
}

/** The chunks from `from` on that any leaf of a point names. What cannot be read tells nothing. Errors: those of the store. */
export async function knownChunks(options: KnownOptions, from: number): Promise<KnownStretch> {
  const found = new Found(options.segment, from);
  const { disks, headless } = await listDisks(options.store, options.signal);
  // What the points of a disk need whose head is lost, nobody knows.
  let isComplete = headless.length === 0;
  for (const disk of disks) {
    const onDamage = (): void => {
      isComplete = false;
    };
    try {
      await addDisk(options, disk, found, onDamage);
    } catch (error) {
      if (!hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED", "OBJECT_NOT_FOUND", "DISK_NOT_FOUND")) throw error;
      onDamage();
    }
  }
  return { ...found.stretch(), isComplete };
}

async function addDisk(options: KnownOptions, disk: string, found: Found, onDamage: () => void): Promise<void> {
  const { store, vault, signal } = options;
  const { head } = await readHead(store, vault, disk, signal);
  const looked = new Set<string>();
  const isNew = ({ epoch, ordinal }: { readonly epoch: number; readonly ordinal: number }): boolean => {
    const name = mapName(disk, epoch, ordinal);
    return !looked.has(name) && looked.add(name).size > 0;
  };
  for await (const point of readPoints(store, head, { onDamage, signal })) {
    try {
      const manifest = await readManifest(store, vault, disk, point, signal);
      const map = new PointMap(store, fromHex(vault), disk, manifest);
      for (const [index, run] of manifest.runs.entries()) {
        throwIfAborted(signal);
        if (!isNew(run)) continue;
        for await (const leaf of map.entriesOf(index, signal, run.kind === "root" ? isNew : undefined)) found.add(leaf);
      }
    } catch (error) {
      if (!isUnreadableOrGone(error)) throw error;
      onDamage();
    }
  }
}

class Found {
  readonly #segment: string;
  readonly #from: number;
  #end = segmentBytes;
  #chunks = new Map<number, KnownChunk & { readonly places: Set<number> }>();

  constructor(segment: string, from: number) {
    this.#segment = segment;
    this.#from = from;
  }

  add(leaf: EntryColumns): void {
    const number = leaf.names.indexOf(this.#segment);
    if (number === -1) return;
    for (let entry = 0; entry < leaf.count; entry += 1) {
      const offset = leaf.offsets[entry] ?? 0;
      const segment = leaf.segments[entry] ?? zeroSegment;
      if (segment !== number || segment === zeroSegment || offset < this.#from || offset >= this.#end) continue;
      const place = (leaf.starts[entry] ?? 0) - (leaf.chunkOffsets[entry] ?? 0);
      const known = this.#chunks.get(offset);
      if (known !== undefined) {
        if (known.places.size < placesMax) known.places.add(place);
        continue;
      }
      this.#chunks.set(offset, {
        offset,
        storedWord: leaf.storedWords[entry] ?? 0,
        digest: leaf.digests.slice(entry * digestBytes, (entry + 1) * digestBytes),
        granules: (leaf.chunkLengths[entry] ?? 0) + 1,
        places: new Set([place]),
      });
      if (this.#chunks.size >= 2 * chunksMax) this.#dropLast();
    }
  }

  stretch(): Omit<KnownStretch, "isComplete"> {
    return { chunks: [...this.#chunks.values()].sort((a, b) => a.offset - b.offset), end: this.#end };
  }

  #dropLast(): void {
    const { chunks } = this.stretch();
    this.#end = chunks[chunksMax]?.offset ?? this.#end;
    for (const { offset } of chunks.slice(chunksMax)) this.#chunks.delete(offset);
  }
}
