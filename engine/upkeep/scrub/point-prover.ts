/**
 * Proof of a point: every chunk that it needs is fetched, decompressed and compared with its
 * digest, while the point is held against pruning.
 *
 * With a source, the point's bytes are also compared with it. A chunk that points share is fetched
 * once. Damage does not end the work: it is collected with the extents of the points that it
 * concerns, and healed if there is a healer.
 *
 * A scrub proves all points of a disk from the oldest to the newest and looks in each only at what
 * is new in it (`proveNew`). It takes a hold only when damage has been found: a point that exists
 * then had not been pruned before. `trace` finds the younger points that show the damaged chunk.
 */

import { hasCode, TidemarkError } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import type { Notice } from "../../notice.ts";
import { pieceChunk } from "../../pipeline/fetch-plan.ts";
import type { PointConsumer, ProvedBatch } from "../../pipeline/point-reader.ts";
import { PointReader, pieceIsProved } from "../../pipeline/point-reader.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { type OperationOptions, paced } from "../../progress.ts";
import { fromHex } from "../../store/format/checksum.ts";
import type { PointRecord } from "../../store/format/documents.ts";
import { storedLength } from "../../store/format/frame.ts";
import { DataShare } from "../../store/map/data-share.ts";
import type { MapWalk } from "../../store/map/map-walk.ts";
import { type Pieces, PointMap, pieceIsZero, windowGranules } from "../../store/map/point-map.ts";
import { readManifest } from "../../store/points/manifest.ts";
import type { PointHold } from "../../store/points/reader-holds.ts";
import { holdPoint } from "../../store/points/reader-holds.ts";
import type { Store } from "../../store/store.ts";
import type { Extent, Volume } from "../../volume.ts";
import type { DamageCause, DamageFinding } from "./damage.ts";
import { isDamage, listFinding } from "./damage.ts";
import type { DamagedChunk, Healer } from "./heal.ts";
import { chunkKey, ProvedPlaces } from "./proved-places.ts";
import { SourceComparison } from "./source-comparison.ts";

/** Most findings that are listed in full. */
export const damagesMax = 10_000;

export interface PointProverOptions extends Pick<OperationOptions, "onProgress" | "onNotice" | "signal"> {
  readonly context: VaultContext;
  readonly store: Store;
  /** One word, stored in the hold for users who look into the vault. */
  readonly purpose: string;
  /** Places of chunks that have been judged already. */
  readonly places?: ProvedPlaces | undefined;
  /** Heals damage while the point is held; without it, damage is only reported. */
  readonly healer?: Healer | undefined;
  /** Called before each range is fetched. */
  readonly pace?: ((bytes: number) => Promise<void>) | undefined;
}

export interface Proof {
  /** Healed findings are among them. */
  readonly found: readonly DamageFinding[];
  /** Aborted when the point was dropped while it was proved: then the findings say nothing. */
  readonly lost: AbortSignal | undefined;
}

/** What is new in a point that was proved. */
export interface NewProof {
  readonly found: readonly DamageFinding[];
  /** Undefined: all of it has been looked at. Else what `pace` ended the reading with. */
  readonly ended: ReadingEnds | undefined;
}

/** What of a point is new against the older points. */
export interface NewPart {
  /** Knows what the older points had. */
  readonly walk: MapWalk;
  /** The granule to begin at; Infinity: it is known to be whole. */
  readonly from: number;
  /** Called with the granule up to which everything is whole. */
  readonly onWhole: (granule: number) => void;
}

/** Thrown by `pace` to end a reading in the middle: what was found until then counts. */
export class ReadingEnds extends Error {}

export class PointProver {
  readonly #options: PointProverOptions;
  readonly #reader: PointReader;
  readonly #places: ProvedPlaces;
  /** Codes of notices that have been given: each is given once. */
  readonly #told = new Set<Notice["code"]>();
  #checkedBytes = 0;

  constructor(options: PointProverOptions) {
    this.#options = options;
    this.#places = options.places ?? new ProvedPlaces();
    this.#reader = new PointReader({
      store: options.store,
      workerPool: options.context.workerPool(),
      pace: options.pace,
      signal: options.signal,
    });
  }

  /** Plain bytes that were proved. */
  get checkedBytes(): number {
    return this.#checkedBytes;
  }

  get checkedChunks(): number {
    return this.#reader.chunksProved;
  }

  /**
   * Errors: POINT_NOT_FOUND when it has been pruned, INTERRUPTED, those of the store and the
   * source.
   */
  async prove(disk: string, point: PointRecord, source?: Volume): Promise<Proof> {
    const notes = new PointNotes(disk, point);
    const hold = await this.#hold(disk, point, notes);
    try {
      await this.#prove(disk, point, source, notes);
      if (hold?.signal.aborted !== true) await this.#heal(notes);
    } finally {
      await hold?.release();
    }
    return { found: notes.found, lost: hold?.signal.aborted === true ? hold.signal : undefined };
  }

  /**
   * Errors: POINT_NOT_FOUND when something was wrong and it has been pruned, INTERRUPTED and those
   * of the store.
   */
  async proveNew(disk: string, point: PointRecord, part: NewPart): Promise<NewProof> {
    const notes = new PointNotes(disk, point);
    let ended: ReadingEnds | undefined;
    try {
      await this.#readNew(disk, point, part, notes);
    } catch (error) {
      if (error instanceof ReadingEnds) ended = error;
      else notes.add(pointFinding(disk, point, error));
    }
    if (notes.isEmpty) return { found: [], ended };
    const hold = await this.#hold(disk, point, notes);
    try {
      await this.#heal(notes);
    } finally {
      await hold?.release();
    }
    if (hold?.signal.aborted === true) throw dropped(disk, point);
    return { found: notes.found, ended };
  }

  async #readNew(disk: string, point: PointRecord, { walk, from, onWhole }: NewPart, notes: PointNotes): Promise<void> {
    const { store, context, signal } = this.#options;
    const { vault } = context.document;
    const manifest = await readManifest(store, vault, disk, point, signal);
    const all = new PointMap(store, fromHex(vault), disk, manifest);
    const fresh = await walk.newRuns(all, manifest.runs, signal);
    const map = new PointMap(store, fromHex(vault), disk, { ...manifest, runs: manifest.runs.slice(0, fresh.depth) });
    if (fresh.depth > 0 && from < all.granules && store.keys?.canRead === false) {
      await this.#checkPlaces(map, from, notes);
      if (notes.isEmpty) onWhole(all.granules);
    } else if (fresh.depth > 0 && from < all.granules) {
      await this.#reader.read(map, from, {
        data: (batch) => {
          this.#checkBatch(batch, notes);
          return Promise.resolve();
        },
        done: (granule) => {
          if (notes.isEmpty) onWhole(granule);
          return Promise.resolve();
        },
        skip: (chunk) => this.#places.isProved(chunk),
      });
    }
    walk.pass(fresh);
  }

  /**
   * What a process without the key of payloads can prove: that the map is whole, and that each segment
   * that it names is there and long enough.
   */
  async #checkPlaces(map: PointMap, from: number, notes: PointNotes): Promise<void> {
    const { store, signal } = this.#options;
    const ends = new Map<string, number | TidemarkError>();
    for (let start = from; start < map.granules; start += windowGranules) {
      const pieces = await map.window(start, Math.min(start + windowGranules, map.granules), signal);
      for (let piece = 0; piece < pieces.count; piece += 1) {
        if (pieceIsZero(pieces, piece)) continue;
        const { segment, offset, storedWord } = pieceChunk(pieces, piece);
        const end = ends.get(segment) ?? (await writtenEnd(store, segment, signal));
        ends.set(segment, end);
        if (typeof end !== "number") notes.noteChunk(pieces, piece, end, "");
        else if (offset + storedLength(storedWord) > end)
          notes.noteChunk(pieces, piece, undefined, "lie behind the end of the segment");
      }
    }
  }

  /**
   * Heals what could not be healed before, while a point that needs it is held. Errors:
   * POINT_NOT_FOUND and those of the store.
   */
  async healAgain(disk: string, point: PointRecord, chunks: readonly DamagedChunk[]): Promise<readonly DamagedChunk[]> {
    const { healer } = this.#options;
    const hold = await this.#hold(disk, point, new PointNotes(disk, point));
    try {
      const outcomes = (await healer?.heal(chunks)) ?? [];
      const whole = chunks.filter((_chunk, index) => index in outcomes && outcomes[index] === undefined);
      for (const chunk of whole) this.#places.add(chunk, "proved");
      return whole;
    } finally {
      await hold?.release();
    }
  }

  /**
   * Which of these findings another point of the disk shows, and where; the first of them only, if
   * `first`. Errors: as `PointMap.window`.
   */
  async trace(
    disk: string,
    point: PointRecord,
    findings: readonly DamageFinding[],
    first: boolean,
  ): Promise<readonly DamageFinding[]> {
    const { store, context, signal } = this.#options;
    const manifest = await readManifest(store, context.document.vault, disk, point, signal);
    const map = new PointMap(store, fromHex(context.document.vault), disk, manifest);
    const found: DamageFinding[] = [];
    for (const finding of findings) {
      const { chunk, extent: shown } = finding;
      if (chunk === undefined || shown === null) continue;
      const from = shown.offset / granuleBytes;
      const end = Math.min(from + shown.length / granuleBytes, map.granules);
      if (end <= from) continue;
      const pieces = await map.window(from, end, signal);
      for (let piece = 0; piece < pieces.count; piece += 1) {
        if (pieceIsZero(pieces, piece) || chunkKey(pieceChunk(pieces, piece)) !== chunkKey(chunk)) continue;
        const extent = {
          offset: (pieces.starts[piece] ?? 0) * granuleBytes,
          length: (pieces.lengths[piece] ?? 0) * granuleBytes,
        };
        found.push({ ...finding, sequence: point.sequence, point: point.id, extent });
        if (first) return found;
      }
    }
    return found;
  }

  /**
   * Undefined, and noted, when the condemned list is damaged: the point is proved without a hold.
   */
  async #hold(disk: string, point: PointRecord, notes: PointNotes): Promise<PointHold | undefined> {
    const { store, context, purpose, signal } = this.#options;
    const onNotice = (notice: Notice): void => {
      if (!this.#told.has(notice.code)) this.#options.onNotice?.(notice);
      this.#told.add(notice.code);
    };
    try {
      // Only this disk's part is proved, so of a group's point no other disk is asked: there may be
      // dozens, for thousands of points.
      const part = { ...point, group: null };
      return await holdPoint({ store, vault: context.document.vault, disk, point: part, purpose, onNotice, signal });
    } catch (error) {
      if (!isDamage(error)) throw error;
      notes.add(listFinding(disk, error));
      return undefined;
    }
  }

  async #prove(disk: string, point: PointRecord, source: Volume | undefined, notes: PointNotes): Promise<void> {
    const { store, context, signal } = this.#options;
    const { vault } = context.document;
    try {
      const manifest = await readManifest(store, vault, disk, point, signal);
      const map = new PointMap(store, fromHex(vault), disk, manifest);
      await using comparison = source === undefined ? undefined : await compareWith(source, point, notes);
      const { onProgress } = this.#options;
      const share = onProgress === undefined ? undefined : await DataShare.of(map, manifest.runs.length, signal);
      const report = paced(onProgress);
      const consumer: PointConsumer = {
        data: async (batch) => {
          this.#checkBatch(batch, notes);
          await comparison?.chunks(batch);
        },
        zeros: async (from, end) => {
          await comparison?.zeros(from, end);
        },
        done: (granule) => {
          if (share === undefined) return Promise.resolve();
          const progress = { totalBytes: share.totalBytes, transferredBytes: this.#reader.bytesRead };
          const position = granule >= map.granules ? "last" : undefined;
          report({ phase: "verify", doneBytes: share.bytesBelow(granule), ...progress }, position);
          return Promise.resolve();
        },
        // With a source every byte is needed; without, a chunk that has been judged for another
        // point is not fetched again.
        ...(source === undefined ? { skip: (chunk): boolean => this.#places.isProved(chunk) } : {}),
      };
      await this.#reader.read(map, 0, consumer);
    } catch (error) {
      notes.add(pointFinding(disk, point, error));
    }
  }

  /** Notes each piece whose chunk is damaged, and which chunks have been judged. */
  #checkBatch(batch: ProvedBatch, notes: PointNotes): void {
    for (let at = batch.from; at < batch.end; at += 1) {
      const piece = batch.order[at] ?? 0;
      const mapped = pieceChunk(batch.pieces, piece);
      const proved = pieceIsProved(batch, at);
      this.#places.add(mapped, proved ? "proved" : "damaged");
      if (proved) this.#checkedBytes += (batch.pieces.lengths[piece] ?? 0) * granuleBytes;
      else notes.noteChunk(batch.pieces, piece, batch.failure, "do not give the chunk that they must");
    }
  }

  async #heal(notes: PointNotes): Promise<void> {
    const { healer } = this.#options;
    const { chunks } = notes;
    if (healer === undefined || chunks.length === 0) return;
    const outcomes = await healer.heal(chunks);
    for (const [index, chunk] of chunks.entries()) {
      const outcome = outcomes[index];
      if (outcome === undefined) this.#places.add(chunk, "proved");
      notes.settle(chunk, outcome);
    }
  }
}

/** Findings about one point. */
class PointNotes {
  readonly #place: Pick<DamageFinding, "disk" | "sequence" | "point">;
  readonly #findings: DamageFinding[] = [];
  /** A chunk may be shown in several places: any of them may still hold its content. */
  readonly #chunks = new Map<string, DamagedChunk>();

  constructor(disk: string, { sequence, id }: PointRecord) {
    this.#place = { disk, sequence, point: id };
  }

  get isEmpty(): boolean {
    return this.#findings.length === 0;
  }

  get found(): readonly DamageFinding[] {
    return this.#findings.map((finding) => {
      const { chunk } = finding;
      return chunk === undefined ? finding : { ...finding, chunk: this.#chunks.get(chunkKey(chunk)) };
    });
  }

  get chunks(): readonly DamagedChunk[] {
    return [...this.#chunks.values()];
  }

  /**
   * Notes something of the point. A difference that continues the one that was noted last is one
   * with it.
   */
  note(
    found: Pick<DamageFinding, "extent" | "object" | "code"> & { readonly cause: DamageCause },
    chunk?: DamagedChunk,
  ): void {
    const finding: DamageFinding = { ...this.#place, ...found, chunk, unhealed: undefined, healed: false };
    const last = this.#findings.at(-1);
    const extent = last === undefined ? undefined : joined(last, finding);
    if (extent === undefined) this.add(finding);
    else this.#findings[this.#findings.length - 1] = { ...finding, extent };
  }

  /** Notes that a piece's chunk is damaged: `failure`, or else what its bytes do wrong. */
  noteChunk(pieces: Pieces, piece: number, failure: unknown, fact: string): void {
    const mapped = pieceChunk(pieces, piece);
    const start = pieces.starts[piece] ?? 0;
    const extent = { offset: start * granuleBytes, length: (pieces.lengths[piece] ?? 0) * granuleBytes };
    const bytes = `${String(storedLength(mapped.storedWord))} bytes from ${String(mapped.offset)} on`;
    const what = failure instanceof TidemarkError ? failure.message : `${mapped.segment}: its ${bytes} ${fact}`;
    const code = hasCode(failure, "OBJECT_NOT_FOUND") ? "OBJECT_NOT_FOUND" : "DAMAGED";
    const { disk } = this.#place;
    const places = [{ disk, granule: start - (pieces.chunkOffsets[piece] ?? 0) }];
    const chunk: DamagedChunk = { ...mapped, digest: mapped.digest.slice(), places };
    this.note({ extent, object: mapped.segment, code, cause: { kind: "chunk", what } }, chunk);
  }

  add(finding: DamageFinding): void {
    if (this.#findings.length >= damagesMax) return;
    this.#findings.push(finding);
    const { chunk } = finding;
    if (chunk === undefined) return;
    const key = chunkKey(chunk);
    const places = [...(this.#chunks.get(key)?.places ?? []), ...chunk.places].slice(0, placesMax);
    this.#chunks.set(key, { ...chunk, places });
  }

  /** Notes what has become of a chunk: `unhealed` says why it could not be healed. */
  settle(healed: DamagedChunk, unhealed: string | undefined): void {
    const key = chunkKey(healed);
    for (const [index, finding] of this.#findings.entries()) {
      if (finding.chunk !== undefined && chunkKey(finding.chunk) === key)
        this.#findings[index] = { ...finding, unhealed, healed: unhealed === undefined };
    }
  }
}

/** Where the written pages of a segment end, or why that cannot be said. Errors: what is no damage. */
async function writtenEnd(
  store: Store,
  segment: string,
  signal: AbortSignal | undefined,
): Promise<number | TidemarkError> {
  try {
    return (await store.statPages(segment, { signal })).writtenBytes;
  } catch (error) {
    if (!isDamage(error)) throw error;
    return error;
  }
}

/** Places of one chunk in which its content is looked for. */
const placesMax = 16;

/** Begins a comparison that notes what differs; the sizes are compared at once. */
async function compareWith(source: Volume, point: PointRecord, notes: PointNotes): Promise<SourceComparison> {
  const sourceBytes = await source.sizeBytes();
  const differs = (extent: Extent | null, cause: DamageCause): void =>
    notes.note({ extent, object: source.description, code: "SOURCE_DIFFERS", cause });
  if (sourceBytes !== point.volumeBytes) differs(null, { kind: "size", sourceBytes, pointBytes: point.volumeBytes });
  return new SourceComparison(source, sourceBytes, point.volumeBytes, (extent) =>
    differs(extent, { kind: "difference" }),
  );
}

/** The extent of two differences that touch, or undefined. */
function joined(last: DamageFinding, next: DamageFinding): Extent | undefined {
  if (
    last.cause.kind !== "difference" ||
    next.cause.kind !== "difference" ||
    last.extent === null ||
    next.extent === null
  )
    return undefined;
  const touches = last.extent.offset + last.extent.length === next.extent.offset;
  return touches ? { offset: last.extent.offset, length: last.extent.length + next.extent.length } : undefined;
}

function dropped(disk: string, { sequence }: PointRecord): TidemarkError {
  return new TidemarkError(
    "POINT_NOT_FOUND",
    `point ${String(sequence)} of disk ${JSON.stringify(disk)} was dropped while it was proved`,
  );
}

/**
 * What a part of a point's map that cannot be read means to the point. Errors: what is no damage.
 */
function pointFinding(disk: string, { sequence, id }: PointRecord, error: unknown): DamageFinding {
  if (!isDamage(error)) throw error;
  return { ...listFinding(disk, error), sequence, point: id };
}
