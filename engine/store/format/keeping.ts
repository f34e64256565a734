/**
 * Documents of keeping and pruning: a reader's hold, a user's pin, and the list of condemned
 * points; and a user's label, which keeps nothing. `points/prune-fence.ts` says in which order they
 * are written and read.
 */
import type { Owner } from "./documents.ts";
import { anyText, checkOwner, hex32 } from "./documents.ts";
import { damaged } from "./fields.ts";
import { decode, encode, encodeList } from "./signed-text.ts";

/**
 * A reader hold. It is in force while its object is leased; its content is for people who look into
 * the vault.
 */
export interface HoldDocument extends Owner {
  readonly sequence: number;
  /** Id of the point. */
  readonly point: string;
  /** What the point is read for, such as `mount`. */
  readonly purpose: string;
  readonly pid: number;
  readonly host: string;
}

/** A pin. */
export interface PinDocument extends Owner {
  readonly sequence: number;
  /** Id of the point. */
  readonly point: string;
  readonly name: string | null;
  readonly createdMs: number;
  /** When the pin ends; null: never. */
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
  const { fields } = decode("pin", bytes, object);
  const document: PinDocument = {
    vault: fields.text("vault", hex32),
    disk: fields.text("disk", anyText),
    sequence: fields.sequence("sequence"),
    point: fields.text("point", hex32),
    name: fields.textOrNull("name", anyText),
    createdMs: fields.time("createdMs"),
    untilMs: fields.timeOrNull("untilMs"),
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
    sequence: fields.sequence("sequence"),
    point: fields.text("point", hex32),
    text: fields.text("text", labelText),
    createdMs: fields.time("createdMs"),
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
    epoch: fields.epoch("epoch"),
    ranges: fields.list("ranges", condemnedRangesMax, (range) => ({
      first: range.sequence("first"),
      last: range.sequence("last"),
    })),
  };
  checkOwner(document, object, expected);
  let before = 0;
  for (const { first, last } of document.ranges) {
    if (first <= before || last < first) throw damaged(object, "its ranges are not in order");
    before = last;
  }
  return document;
}
