/**
 * The map as a child would keep it: for each granule of a small disk what it shows. A point's map
 * is right when it says the same of every granule.
 */
import fc from "fast-check";
import { toHex } from "../../../../engine/store/format/checksum.ts";
import type { RunReference } from "../../../../engine/store/format/documents.ts";
import { storedLz4Flag } from "../../../../engine/store/format/frame.ts";
import type { Pieces, PointMap } from "../../../../engine/store/map/point-map.ts";
import { pieceIsZero } from "../../../../engine/store/map/point-map.ts";
import type { MapObjects } from "../../../../engine/store/map/run-writer.ts";
import { RunWriter } from "../../../../engine/store/map/run-writer.ts";
import { digestOf } from "../../../engine-model.ts";

/** `chunk`: a number, undefined for ZERO. `from`: first granule of the chunk that shows. */
export interface ModelEntry {
  readonly start: number;
  readonly length: number;
  readonly chunk?: number;
  readonly from?: number;
}

/** Granule → "chunk:granule in chunk" or "zero"; what is absent was never written. */
export type GranuleModel = Map<number, string>;

/** Longest chunk of the model; its entries are windows into chunks of this length. */
export const chunkGranules = 16;

/** Granules of the model's disk. */
export const granules = 400;

/** Sorted, disjoint entries: ZERO or windows into chunks. */
export const runOfEntries: fc.Arbitrary<ModelEntry[]> = fc
  .array(
    fc.record({
      gap: fc.oneof(fc.constant(0), fc.nat(60)),
      length: fc.integer({ min: 1, max: chunkGranules }),
      from: fc.nat(chunkGranules - 1),
      chunk: fc.option(fc.nat(500), { nil: undefined, freq: 4 }),
    }),
    { minLength: 1, maxLength: 25 },
  )
  .map((steps) => {
    const entries: ModelEntry[] = [];
    let at = 0;
    for (const { gap, length, from, chunk } of steps) {
      const start = at + gap;
      const shown = chunk === undefined ? length : Math.min(length, chunkGranules - from);
      if (start + shown > granules) break;
      entries.push(chunk === undefined ? { start, length: shown } : { start, length: shown, chunk, from });
      at = start + shown;
    }
    return entries;
  })
  .filter((entries) => entries.length > 0);

export function apply(model: GranuleModel, entries: readonly ModelEntry[]): void {
  for (const { start, length, chunk, from = 0 } of entries) {
    for (let at = 0; at < length; at += 1)
      model.set(start + at, chunk === undefined ? "zero" : `${String(chunk)}:${String(from + at)}`);
  }
}

/** Where chunk number `chunk` lies in the store of the model. */
export function placeOf(chunk: number): {
  readonly segment: string;
  readonly offset: number;
  readonly storedWord: number;
} {
  return {
    segment: `segments/disk/0000000${String(chunk % 3)}-0-00000000`,
    offset: chunk * 512,
    storedWord: storedLz4Flag + 300 + chunk,
  };
}

/** Writes entries, which are sorted and disjoint, as one run. */
export async function writeRun(objects: MapObjects, entries: readonly ModelEntry[]): Promise<RunReference | undefined> {
  const writer = new RunWriter(objects);
  for (const { start, length, chunk, from = 0 } of entries) {
    if (chunk === undefined) {
      writer.appendZero(start, length);
      continue;
    }
    const { segment, offset, storedWord } = placeOf(chunk);
    writer.append(start, length, segment, offset, storedWord, from, chunkGranules, digestOf(chunk), 0);
  }
  return await writer.finish();
}

/**
 * What pieces say of granules, in the model's words. Fails on pieces that are out of order, empty,
 * or that point anywhere but to their chunk.
 */
export function spell(pieces: Pieces, from: number, end: number): GranuleModel {
  const spelled: GranuleModel = new Map();
  let at = from;
  for (let index = 0; index < pieces.count; index += 1) {
    const start = pieces.starts[index] ?? 0;
    const length = pieces.lengths[index] ?? 0;
    if (start < at || length === 0 || start + length > end) throw new Error(`piece ${String(index)} is out of order`);
    at = start + length;
    for (let granule = 0; granule < length; granule += 1)
      spelled.set(start + granule, spellPiece(pieces, index, granule));
  }
  return spelled;
}

function spellPiece(pieces: Pieces, index: number, granule: number): string {
  if (pieceIsZero(pieces, index)) return "zero";
  const leaf = pieces.leaves[index];
  const entry = pieces.entries[index] ?? 0;
  if (leaf === undefined) throw new Error("the piece has no leaf");
  const chunk = (leaf.offsets[entry] ?? 0) / 512;
  const { segment, storedWord } = placeOf(chunk);
  const digest = toHex(leaf.digests.subarray(entry * 16, entry * 16 + 16));
  const right =
    leaf.names[leaf.segments[entry] ?? 0] === segment &&
    leaf.storedWords[entry] === storedWord &&
    digest === toHex(digestOf(chunk));
  if (!right) throw new Error(`piece ${String(index)} does not lead to chunk ${String(chunk)}`);
  return `${String(chunk)}:${String((pieces.chunkOffsets[index] ?? 0) + granule)}`;
}

/** The whole map, granule by granule. */
export async function spellMap(map: PointMap, windowGranules: number): Promise<GranuleModel> {
  const whole: GranuleModel = new Map();
  for (let from = 0; from < map.granules; from += windowGranules) {
    const end = Math.min(from + windowGranules, map.granules);
    for (const [granule, says] of spell(await map.window(from, end), from, end)) whole.set(granule, says);
  }
  return whole;
}

/** A model without the granules that are zero, however they became so. */
export function withoutZeros(model: GranuleModel): GranuleModel {
  return new Map([...model].filter(([, says]) => says !== "zero").sort(([a], [b]) => a - b));
}
