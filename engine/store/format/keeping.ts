/**
 * The documents that decide between those who read a point and those who drop it: a reader's hold, a user's pin, and the list of points that are
 * about to be dropped; and a user's label, which decides nothing. In which order they are written and read stands in `prune-fence.ts`.
 */
import type { Owner } from "./documents.ts";
import { anyText, checkOwner, hex32 } from "./documents.ts";
import { damaged } from "./fields.ts";
import { decode, encode, encodeList } from "./signed-text.ts";

/** Says who reads a point. It counts while its object is leased; what stands in it is for people. */
export interface HoldDocument extends Owner {
  readonly sequence: number;
  /** Id of the point. */
  readonly point: string;
  /** Such as `mount`. */
  readonly purpose: string;
  readonly pid: number;
  readonly host: string;
}

/** Says that a user wants a point to stay. */
export interface PinDocument extends Owner {
  readonly sequence: number;
  /** Id of the point. */
  readonly point: string;
  readonly name: string | null;
  readonly createdMs: number;
  /** When the point is a point like all others again; null: never. */
  readonly untilMs: number | null;
}

/** A user's text on a point. It keeps nothing. */
export interface LabelDocument extends Owner {
  readonly sequence: number;
  /** Id of the point. */
  readonly point: string;
  /** One line, 1 to `labelCharactersMax` characters. */
  readonly text: string;
  readonly createdMs: number;
}

export const labelCharactersMax = 200;
/** What a label may say. */
export const labelText: RegExp = /^[^\p{Cc}]{1,200}$/u;

/** Points that a holder of the seat is about to drop. It is void once the head has a higher epoch. */
export interface CondemnedDocument extends Owner {
  /** Of the seat. */
  readonly epoch: number;
  /** In rising order, at most `condemnedRangesMax`. */
  readonly ranges: readonly SequenceRange[];
}

/** Sequence numbers, both ends included. */
export interface SequenceRange {
  readonly first: number;
  readonly last: number;
}

/** A list of so many ranges has 12 MiB at most, and fits into a document. */
export const condemnedRangesMax: number = 200_000;

export function encodeHold(document: HoldDocument): Uint8Array {
  return encode("hold", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeHold(bytes: Uint8Array, object: string, expected: Owner): HoldDocument {
  const { fields } = decode("hold", bytes, object);
  const document: HoldDocument = {
    vault: fields.text("vault", hex32),
    disk: fields.text("disk", anyText),
    sequence: fields.integer("sequence", 1),
    point: fields.text("point", hex32),
    purpose: fields.text("purpose", anyText),
    pid: fields.integer("pid"),
    host: fields.text("host", anyText),
  };
  checkOwner(document, object, expected);
  return document;
}

export function encodePin(document: PinDocument): Uint8Array {
  return encode("pin", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodePin(bytes: Uint8Array, object: string, expected: Owner): PinDocument {
  const { fields } = decode("pin", bytes, object);
  const document: PinDocument = {
    vault: fields.text("vault", hex32),
    disk: fields.text("disk", anyText),
    sequence: fields.integer("sequence", 1),
    point: fields.text("point", hex32),
    name: fields.textOrNull("name", anyText),
    createdMs: fields.integer("createdMs"),
    untilMs: fields.integerOrNull("untilMs"),
  };
  checkOwner(document, object, expected);
  return document;
}

export function encodeLabel(document: LabelDocument): Uint8Array {
  return encode("label", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeLabel(bytes: Uint8Array, object: string, expected: Owner): LabelDocument {
  const { fields } = decode("label", bytes, object);
  const document: LabelDocument = {
    vault: fields.text("vault", hex32),
    disk: fields.text("disk", anyText),
    sequence: fields.integer("sequence", 1),
    point: fields.text("point", hex32),
    text: fields.text("text", labelText),
    createdMs: fields.integer("createdMs"),
  };
  checkOwner(document, object, expected);
  return document;
}

export function encodeCondemned(document: CondemnedDocument): Uint8Array {
  return encodeList("condemned", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeCondemned(bytes: Uint8Array, object: string, expected: Owner): CondemnedDocument {
  const { fields } = decode("condemned", bytes, object);
  const document: CondemnedDocument = {
    vault: fields.text("vault", hex32),
    disk: fields.text("disk", anyText),
    epoch: fields.integer("epoch"),
    ranges: fields.list("ranges", condemnedRangesMax, (range) => ({ first: range.integer("first", 1), last: range.integer("last", 1) })),
  };
  checkOwner(document, object, expected);
  let before = 0;
  for (const { first, last } of document.ranges) {
    if (first <= before || last < first) throw damaged(object, "its ranges are not in order");
    before = last;
  }
  return document;
}
