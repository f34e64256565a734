/**
 * Documents of garbage collection. `reclaim/collection` names the newest collection, so that
 * writers notice it. `reclaim/dead/…` says which pages of one segment are freed or condemned:
 * readers of the segment's frames leave out the chunks that lie there.
 */

import { segmentBytes } from "../../limits.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { damaged, hex32 } from "./fields.ts";
import { isSegmentName, segmentsPrefix } from "./names.ts";
import { decodeOfVault, encode } from "./signed-text.ts";

export const reclaimPrefix = "reclaim/";
export const collectionName = "reclaim/collection";
/** The object whose lease is the collector lease. */
export const collectorName = "reclaim/collector";
/** When the vault was last collected; it paces agents that collect by themselves. */
export const collectedName = "reclaim/collected";
export const deadPrefix = "reclaim/dead/";

/** Pages of a segment. */
export const segmentPages: number = segmentBytes / pageAlignmentBytes;

/** Half-open run of pages of 512 bytes, [from, end). */
export interface PageRun {
  readonly from: number;
  readonly end: number;
}

export interface CollectionDocument {
  readonly vault: string;
  /** 32 hexadecimal digits, random: a writer that has acted on it writes it into its head. */
  readonly collection: string;
  readonly startedMs: number;
}

export interface CollectedDocument {
  readonly vault: string;
  /** When a collection ended, by the collector's clock. */
  readonly collectedMs: number;
}

export interface DeadDocument {
  readonly vault: string;
  /** The collection that wrote this. */
  readonly collection: string;
  /** Name of the segment. */
  readonly segment: string;
  /** True from before the first page is freed until all of them have been. */
  readonly clearing: boolean;
  /**
   * Pages without a needed chunk that stay: those that make frames readable, and those that are not
   * worth a request.
   */
  readonly kept: number;
  /**
   * Pages that have been, or are being, freed. Ascending and disjoint, with pages between the runs.
   */
  readonly dead: readonly PageRun[];
  /**
   * Condemned pages: no writer may refer to them any more, and a committed point may still need
   * them. In the same order.
   */
  readonly condemned: readonly PageRun[];
}

/** Name of the record of a segment's dead pages. */
export function deadName(segment: string): string {
  return `${deadPrefix}${segment.slice(segmentsPrefix.length)}`;
}

/** The segment of a record of dead pages. */
export function segmentOfDead(name: string): string {
  return `${segmentsPrefix}${name.slice(deadPrefix.length)}`;
}

export function encodeCollection(document: CollectionDocument): Uint8Array {
  return encode("collection", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeCollection(bytes: Uint8Array, object: string, vault: string): CollectionDocument {
  const { fields } = decodeOfVault("collection", bytes, object, vault);
  return { vault, collection: fields.text("collection", hex32), startedMs: fields.time("startedMs") };
}

export function encodeCollected(document: CollectedDocument): Uint8Array {
  return encode("collected", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeCollected(bytes: Uint8Array, object: string, vault: string): CollectedDocument {
  const { fields } = decodeOfVault("collected", bytes, object, vault);
  return { vault, collectedMs: fields.time("collectedMs") };
}

/** Runs are written as gaps and lengths in alternation, which are short numbers. */
export function encodeDead(document: DeadDocument): Uint8Array {
  return encode("dead", {
    ...document,
    dead: gapsOf(document.dead).join(" "),
    condemned: gapsOf(document.condemned).join(" "),
  }).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeDead(bytes: Uint8Array, object: string, vault: string): DeadDocument {
  const { fields } = decodeOfVault("dead", bytes, object, vault);
  const document: DeadDocument = {
    vault,
    collection: fields.text("collection", hex32),
    segment: fields.text("segment", { test: isSegmentName }),
    clearing: fields.boolean("clearing"),
    kept: fields.integer("kept", 0, segmentPages),
    dead: runsOf(fields.text("dead", numbers), object),
    condemned: runsOf(fields.text("condemned", numbers), object),
  };
  if (deadName(document.segment) !== object) throw damaged(object, `it is of segment ${document.segment}`);
  return document;
}

const numbers = /^[0-9 ]*$/;

function gapsOf(runs: readonly PageRun[]): number[] {
  const gaps: number[] = [];
  let at = 0;
  for (const { from, end } of runs) {
    gaps.push(from - at, end - from);
    at = end;
  }
  return gaps;
}

function runsOf(text: string, object: string): PageRun[] {
  const gaps = text === "" ? [] : text.split(" ").map(Number);
  if (gaps.length % 2 !== 0) throw damaged(object, "a run of pages has no end");
  const runs: PageRun[] = [];
  let at = 0;
  for (let index = 0; index < gaps.length; index += 2) {
    const from = at + (gaps[index] ?? 0);
    const end = from + (gaps[index + 1] ?? 0);
    if (end <= from || end > segmentPages || (index > 0 && from === at))
      throw damaged(object, "its runs of pages do not ascend");
    runs.push({ from, end });
    at = end;
  }
  return runs;
}
