/**
 * Documents of scrubbing: when each point of a disk was last proved, which chunks of a segment are
 * damaged, and until when the scrub quota has been claimed. All are small and swapped by ETag;
 * every scrubber may write them.
 */
import { segmentBytes } from "../../limits.ts";
import { damaged } from "./fields.ts";
import { checkRanges, type SequenceRange } from "./keeping.ts";
import { isSegmentName, segmentsPrefix } from "./names.ts";
import { decodeOfDisk, decodeOfVault, encode, encodeList, type Owner } from "./signed-text.ts";

/** The scrub log of a disk. */
export interface ProvedDocument extends Owner {
  /**
   * Ascending, at most `provedRangesMax`. Of a point that is in no range it is not known when it
   * was proved.
   */
  readonly ranges: readonly ProvedRange[];
}

/**
 * Points with sequence numbers from `first` to `last` were proved at one time. Numbers of no point
 * say nothing.
 */
export interface ProvedRange extends SequenceRange {
  readonly provedMs: number;
}

/** This many ranges take at most 250 KiB. */
export const provedRangesMax = 4096;

/**
 * Quarantine of a segment: damaged chunks that have not been healed. Writers do not refer to them.
 */
export interface QuarantineDocument {
  readonly vault: string;
  /** Name of the segment. */
  readonly segment: string;
  /** Offsets of payloads in the segment, ascending. */
  readonly offsets: readonly number[];
}

/** A frame of 4 MiB has at most 16,384 chunks. A list of more damage than this is of no use. */
export const quarantinedMax = 100_000;

/** State that all scrubbers of a vault share. Times in ms since 1970. */
export interface ScrubbedDocument {
  readonly vault: string;
  /** When the current pass over the vault began. */
  readonly roundMs: number;
  /** Until when the scrub quota has been claimed. */
  readonly takenMs: number;
}

export const scrubbedName = "reclaim/scrubbed";
export const quarantinePrefix = "reclaim/damaged/";

/** Name of the quarantine document of a segment. */
export function quarantineName(segment: string): string {
  return `${quarantinePrefix}${segment.slice(segmentsPrefix.length)}`;
}

/** The segment of a quarantine document. */
export function segmentOfQuarantine(name: string): string {
  return `${segmentsPrefix}${name.slice(quarantinePrefix.length)}`;
}

export function encodeProved(document: ProvedDocument): Uint8Array {
  return encodeList("proved", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeProved(bytes: Uint8Array, object: string, expected: Owner): ProvedDocument {
  const { fields } = decodeOfDisk("proved", bytes, object, expected);
  const document: ProvedDocument = {
    vault: expected.vault,
    disk: expected.disk,
    ranges: fields.list("ranges", provedRangesMax, (range) => ({
      first: range.sequence("first"),
      last: range.sequence("last"),
      provedMs: range.time("provedMs"),
    })),
  };
  checkRanges(document.ranges, object);
  return document;
}

/** Offsets are written as the gaps between them, which are short numbers. */
export function encodeQuarantine({ vault, segment, offsets }: QuarantineDocument): Uint8Array {
  const gaps = offsets.map((offset, index) => offset - (offsets[index - 1] ?? 0));
  return encode("quarantine", { vault, segment, gaps: gaps.join(" ") }).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeQuarantine(bytes: Uint8Array, object: string, vault: string): QuarantineDocument {
  const { fields } = decodeOfVault("quarantine", bytes, object, vault);
  const gaps = fields.text("gaps", /^(?:[1-9][0-9]{0,9}(?: [1-9][0-9]{0,9})*)?$/);
  const segment = fields.text("segment", { test: isSegmentName });
  const offsets: number[] = [];
  let offset = 0;
  for (const gap of gaps === "" ? [] : gaps.split(" ")) {
    offset += Number(gap);
    if (offset >= segmentBytes || offsets.length === quarantinedMax)
      throw damaged(object, "its offsets are beyond a segment");
    offsets.push(offset);
  }
  if (quarantineName(segment) !== object) throw damaged(object, `it is of segment ${segment}`);
  return { vault, segment, offsets };
}

export function encodeScrubbed(document: ScrubbedDocument): Uint8Array {
  return encode("scrubbed", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeScrubbed(bytes: Uint8Array, object: string, vault: string): ScrubbedDocument {
  const { fields } = decodeOfVault("scrubbed", bytes, object, vault);
  return { vault, roundMs: fields.time("roundMs"), takenMs: fields.time("takenMs") };
}
