/**
 * Mark phase of a garbage collection: every object that a committed point leads to, and every page
 * of a segment with a chunk that a committed point shows.
 *
 * Not every chunk that a leaf names is shown: a newer run may hide it. A `MapWalk` tells which
 * ones are.
 *
 * Memory: a bit for each 512 bytes of segments, 1/4096 of what is stored, and the names of
 * objects.
 */

import { isGone, isUnreadable, TidemarkError, throwIfAborted } from "../../errors.ts";
import { shellWord } from "../../shell-word.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { fromHex } from "../../store/format/checksum.ts";
import type { HeadDocument, ManifestDocument, PageReference, PointRecord } from "../../store/format/documents.ts";
import { damaged } from "../../store/format/fields.ts";
import { storedLength } from "../../store/format/frame.ts";
import type { EntryColumns } from "../../store/format/leaf.ts";
import { zeroSegment } from "../../store/format/leaf.ts";
import { manifestName, pageName, segmentDiskPrefix } from "../../store/format/names.ts";
import { MapWalk } from "../../store/map/map-walk.ts";
import type { Pieces } from "../../store/map/point-map.ts";
import { PointMap, pieceIsZero, windowGranules } from "../../store/map/point-map.ts";
import type { VaultPlace } from "../../store/place.ts";
import { readHead } from "../../store/points/head.ts";
import { readPoints } from "../../store/points/history.ts";
import { readManifest } from "../../store/points/manifest.ts";
import { diskNames } from "../../store/points/points.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import type { Store } from "../../store/store.ts";

export interface LiveSetOptions extends VaultPlace {
  /** Points that count as dropped. */
  readonly isDropped?: ((disk: string, sequence: number) => boolean) | undefined;
  /** Told of each point before its map is read. */
  readonly onPoint?: ((disk: string, point: PointRecord) => void) | undefined;
  /**
   * Is given each map entry that a point of `disk` shows, instead of the page sets, which then stay
   * empty. A chunk may come several times.
   */
  readonly onEntry?: ((disk: string, leaf: EntryColumns, entry: number) => void) | undefined;
}

/** How often a vault is walked without the collector's lease. */
const walksMax = 3;

/**
 * Runs a walk of the vault without the collector's lease: again when it found something gone. A
 * point that is pruned and collected meanwhile looks like one that has lost its objects. Errors:
 * those of `walk`.
 */
export async function walkBesideCollections<Result>(walk: () => Promise<Result>): Promise<Result> {
  for (let walks = 1; ; walks += 1) {
    try {
      return await walk();
    } catch (error) {
      if (!isGone(error) || walks >= walksMax) throw error;
    }
  }
}

/**
 * Bytes that a collection would free if these points were dropped. It reads all maps of the vault
 * twice. Errors: as `LiveSet.of`.
 */
export async function bytesFreed(
  options: LiveSetOptions & { readonly isDropped: (disk: string, sequence: number) => boolean },
): Promise<number> {
  const { store, vault, signal } = options;
  return await walkBesideCollections(async () => {
    // One after the other, so that only one is in memory.
    const { pageCount: now } = await LiveSet.of({ store, vault, signal });
    const { pageCount: then } = await LiveSet.of(options);
    // A point that is committed between them needs pages only in the second one.
    return Math.max(0, now - then) * pageAlignmentBytes;
  });
}

interface PlacedPoint {
  readonly disk: string;
  readonly sequence: number;
}

/** What a damaged point needs could be anywhere: nothing is freed until it is whole or gone. */
function stopsCollection({ disk, sequence }: PlacedPoint, error: TidemarkError): TidemarkError {
  const name = JSON.stringify(disk);
  return new TidemarkError(
    error.code,
    `point ${String(sequence)} of disk ${name} cannot be read, so it is not known what it needs: ${error.message}`,
    {
      remedy:
        `run \`tidemark verify --disk ${shellWord(disk)} --heal --source IMAGE\` with a copy that still has the content, ` +
        `or drop the point with \`tidemark prune --disk ${shellWord(disk)} --policy POLICY\``,
      detail: { ...error.detail, disk, sequence },
      cause: error,
    },
  );
}

export class LiveSet {
  /** Manifests, pages of points, leaves and roots. */
  readonly objects: Set<string> = new Set();
  /** Pages that hold chunks, by the name of the segment. */
  readonly pages: Map<string, PageSet> = new Map();
  /** Segments of which points of the disk that they were made for need something. */
  readonly ownSegments: Set<string> = new Set();
  /** Head of each disk, as it was when its points were read. */
  readonly heads: Map<string, HeadDocument> = new Map();
  /** For each segment a point that needs something of it. */
  readonly #neededBy = new Map<string, PlacedPoint>();
  #point: PlacedPoint | undefined;
  /** Prefix of the segments that were made for the disk that is being read. */
  #ownPrefix = "";
  #take: (leaf: EntryColumns, entry: number) => void = (leaf, entry) => this.#addEntry(leaf, entry);

  /**
   * Reads the whole vault. Errors: DAMAGED and FORMAT_UNSUPPORTED when anything cannot be read, and
   * those of the store.
   */
  static async of(options: LiveSetOptions): Promise<LiveSet> {
    const live = new LiveSet();
    for (const disk of await diskNames(options.store, options.signal)) await live.#addDisk(options, disk);
    return live;
  }

  /** The error for a segment that points need and that the store does not hold. */
  segmentGone(segment: string): TidemarkError {
    const error = damaged(segment, "the store does not hold it any more");
    const point = this.#neededBy.get(segment);
    return point === undefined ? error : stopsCollection(point, error);
  }

  /** Pages that are needed. */
  get pageCount(): number {
    let count = 0;
    for (const pages of this.pages.values()) count += pages.count();
    return count;
  }

  /** Bytes of all page sets. */
  get bytes(): number {
    let bytes = 0;
    for (const pages of this.pages.values()) bytes += pages.bytes;
    return bytes;
  }

  /** Notes that a chunk of `storedWord` lies at `offset` of the segment. */
  add(segment: string, offset: number, storedWord: number): void {
    let pages = this.pages.get(segment);
    if (pages === undefined) {
      pages = new PageSet();
      this.pages.set(segment, pages);
      if (this.#point !== undefined) this.#neededBy.set(segment, this.#point);
    }
    pages.addBytes(offset, storedLength(storedWord));
  }

  async #addDisk(options: LiveSetOptions, disk: string): Promise<void> {
    const { store, vault, signal } = options;
    const { head } = await readHead(store, vault, disk, signal);
    this.heads.set(disk, head);
    this.#ownPrefix = segmentDiskPrefix(disk);
    const { onEntry } = options;
    if (onEntry !== undefined) this.#take = (leaf, entry) => onEntry(disk, leaf, entry);
    const newestFirst: PointRecord[] = [];
    const onPage = ({ epoch, ordinal }: PageReference): void => {
      this.objects.add(pageName(disk, epoch, ordinal));
    };
    for await (const point of readPoints(store, head, { signal, onPage })) {
      if (options.isDropped?.(disk, point.sequence) !== true) newestFirst.push(point);
    }
    const walk = new MapWalk(disk, this.objects);
    for (const point of newestFirst.reverse()) {
      throwIfAborted(signal);
      await this.#addPoint(options, walk, disk, point);
    }
  }

  async #addPoint(
    { store, vault, onPoint, signal }: LiveSetOptions,
    walk: MapWalk,
    disk: string,
    point: PointRecord,
  ): Promise<void> {
    onPoint?.(disk, point);
    this.#point = { disk, sequence: point.sequence };
    this.objects.add(manifestName(disk, point.sequence, point.epoch));
    try {
      await this.#addMap(store, vault, walk, disk, point, signal);
    } catch (error) {
      if (!isUnreadable(error)) throw error;
      throw stopsCollection(this.#point, error);
    }
  }

  async #addMap(
    store: Store,
    vault: string,
    walk: MapWalk,
    disk: string,
    point: PointRecord,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const manifest = await readManifest(store, vault, disk, point, signal);
    const map = new PointMap(store, fromHex(vault), disk, manifest);
    const fresh = await walk.newRuns(map, manifest.runs, signal);
    walk.pass(fresh);
    const { depth } = fresh;
    if (depth === 1) await this.#addTopmost(map, signal);
    else if (depth > 1)
      await this.#addShown(store, fromHex(vault), disk, { ...manifest, runs: manifest.runs.slice(0, depth) }, signal);
  }

  /** Nothing lies on top of it, so all of it is shown. */
  async #addTopmost(map: PointMap, signal: AbortSignal | undefined): Promise<void> {
    for await (const leaf of map.entriesOf(0, signal)) {
      for (let entry = 0; entry < leaf.count; entry += 1) this.#take(leaf, entry);
    }
  }

  async #addShown(
    store: Store,
    vaultId: Uint8Array,
    disk: string,
    manifest: ManifestDocument,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    const map = new PointMap(store, vaultId, disk, manifest);
    for (let from = await map.nextMapped(0, signal); from < map.granules; from = await map.nextMapped(from, signal)) {
      throwIfAborted(signal);
      const end = Math.min(from + windowGranules, map.granules);
      this.#addPieces(await map.window(from, end, signal));
      from = end;
    }
  }

  #addPieces(pieces: Pieces): void {
    for (let piece = 0; piece < pieces.count; piece += 1) {
      const leaf = pieces.leaves[piece];
      if (leaf !== undefined && !pieceIsZero(pieces, piece)) this.#take(leaf, pieces.entries[piece] ?? 0);
    }
  }

  #addEntry(leaf: EntryColumns, entry: number): void {
    const segment = leaf.segments[entry] ?? zeroSegment;
    if (segment === zeroSegment) return;
    const name = leaf.names[segment];
    if (name === undefined) return;
    if (name.startsWith(this.#ownPrefix)) this.ownSegments.add(name);
    this.add(name, leaf.offsets[entry] ?? 0, leaf.storedWords[entry] ?? 0);
  }
}
