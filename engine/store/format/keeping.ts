/**
 * Documents of keeping and pruning: a reader's hold, a user's pin, and the list of condemned
 * points; and a user's label, which keeps nothing. `points/prune-fence.ts` says in which order they
 * are written and read.
 */
import { anyText, damaged, hex32 } from "./fields.ts";
import { decodeOfDisk, encode, encodeList, type Owner } from "./signed-text.ts";

/** A document about one point. */
interface PointOwner extends Owner {
  readonly sequence: number;
  /** Id of the point. */
  readonly point: string;
}

/**
 * A reader hold. It is in force while its object is leased; its content is for people who look into
 * the vault.
 */
export interface HoldDocument extends PointOwner {
  /** What the point is read for, such as `mount`. */
  readonly purpose: string;
  readonly pid: number;
  readonly host: string;
}

/** A pin. */
export interface PinDocument extends PointOwner {
  readonly name: string | null;
  readonly createdMs: number;
  /** When the pin ends; null: never. */
  readonly untilMs: number | null;
}

/** A user's text on a point. It keeps nothing. */
export interface LabelDocument extends PointOwner {
  /** One line, 1 to `labelCharactersMax` characters. */
  readonly text: string;
  readonly createdMs: number;
}

export const labelCharactersMax = 200;
/** What a label may say. */
export const labelText: RegExp = /^[^\p{Cc}]{1,200}$/u;

/**
 * Condemned points: a prune is about to drop them. The list is void once the head has a higher
 * epoch.
 */
export interface CondemnedDocument extends Owner {
  /** Epoch of the writer that prunes. */
  readonly epoch: number;
  /** Ascending, at most `condemnedRangesMax`. */
  readonly ranges: readonly SequenceRange[];
}

/** Sequence numbers, both ends included. */
export interface SequenceRange {
  readonly first: number;
  readonly last: number;
}

/** A list of this many ranges takes at most 12 MiB and fits into a document. */
export const condemnedRangesMax: number = 200_000;

/** The content of a hold is for people only: its name and its lease count, so no code decodes it. */
export function encodeHold(document: HoldDocument): Uint8Array {
  return encode("hold", document).bytes;
}

export function encodePin(document: PinDocument): Uint8Array {
  return encode("pin", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodePin(bytes: Uint8Array, object: string, expected: Owner): PinDocument {
  const { fields } = decodeOfDisk("pin", bytes, object, expected);
  return {
    vault: expected.vault,
    disk: expected.disk,
    sequence: fields.sequence("sequence"),
    point: fields.text("point", hex32),
    name: fields.textOrNull("name", anyText),
    createdMs: fields.time("createdMs"),
    untilMs: fields.timeOrNull("untilMs"),
  };
}

export function encodeLabel(document: LabelDocument): Uint8Array {
  return encode("label", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeLabel(bytes: Uint8Array, object: string, expected: Owner): LabelDocument {
  const { fields } = decodeOfDisk("label", bytes, object, expected);
  return {
    vault: expected.vault,
    disk: expected.disk,
    sequence: fields.sequence("sequence"),
    point: fields.text("point", hex32),
    text: fields.text("text", labelText),
    createdMs: fields.time("createdMs"),
  };
}

export function encodeCondemned(document: CondemnedDocument): Uint8Array {
  return encodeList("condemned", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeCondemned(bytes: Uint8Array, object: string, expected: Owner): CondemnedDocument {
  const { fields } = decodeOfDisk("condemned", bytes, object, expected);
  const document: CondemnedDocument = {
    vault: expected.vault,
    disk: expected.disk,
    epoch: fields.epoch("epoch"),
    ranges: fields.list("ranges", condemnedRangesMax, (range) => ({
      first: range.sequence("first"),
      last: range.sequence("last"),
    })),
  };
  checkRanges(document.ranges, object);
  return document;
}

/** Checks that ranges ascend. */
export function checkRanges(ranges: readonly SequenceRange[], object: string): void {
  let before = 0;
  for (const { first, last } of ranges) {
    if (first <= before || last < first) throw damaged(object, "its ranges are not in order");
    before = last;
  }
}
