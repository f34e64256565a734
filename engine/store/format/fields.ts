/**
 * Strict reading of parsed JSON and of binary headers. Every decoder states what it expects;
 * anything else ends in one typed error that names the object and the field. Sizes are checked
 * before memory is allocated by them.
 */
import { TidemarkError } from "../../errors.ts";
import { sequenceMax, timeMsMax } from "../../limits.ts";
import { epochMax } from "./names.ts";

const damageRemedy =
  "run `tidemark verify` to see which points are damaged; all other points stay readable. " +
  "`tidemark vault repair` rebuilds what lists points; it rebuilds no data";

/** The error for an object whose bytes are not what they must be. */
export function damaged(object: string, fact: string, cause?: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", `${object} is damaged: ${fact}`, {
    remedy: damageRemedy,
    detail: { object },
    cause,
  });
}

/**
 * The error for an object that a durable object refers to and that the store does not hold.
 * `isGone` recognizes it.
 */
export function gone(object: string, cause: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", `${object} is damaged: the store does not hold it any more`, {
    remedy: damageRemedy,
    detail: { object, isGone: true },
    cause,
  });
}

/** The error for an object in a format version that this build does not read. */
export function unsupportedFormat(object: string, version: number, known: number): TidemarkError {
  const newer = version > known;
  return new TidemarkError(
    "FORMAT_UNSUPPORTED",
    `${object} has format version ${String(version)}; this build reads version ${String(known)}`,
    {
      remedy: newer
        ? "use the newer version of Tidemark that wrote it"
        : "use the older version of Tidemark that wrote it",
      detail: { object, version, known },
    },
  );
}

/** An identity: of a vault, a point, a group. */
export const hex32: RegExp = /^[0-9a-f]{32}$/;
/** A key. */
export const hex64: RegExp = /^[0-9a-f]{64}$/;
/** A short text of one line, or none. */
export const anyText: RegExp = /^[^\p{Cc}]{0,200}$/u;
/** A short text of one line. */
export const nameText: RegExp = /^[^\p{Cc}]{1,200}$/u;

/** What a text must be. A regular expression is one. */
type Pattern = Pick<RegExp, "test">;

/**
 * Reads the fields of one JSON object. Unknown fields are ignored: a newer minor version may add
 * some.
 */
export class Fields {
  readonly #object: string;
  readonly #path: string;
  readonly #record: Readonly<Record<string, unknown>>;

  constructor(value: unknown, object: string, path = "") {
    if (typeof value !== "object" || value === null || Array.isArray(value))
      throw damaged(object, `${path || "its content"} is not a JSON object`);
    this.#object = object;
    this.#path = path;
    this.#record = value as Readonly<Record<string, unknown>>;
  }

  #fail(name: string, expected: string): TidemarkError {
    return damaged(this.#object, `field ${this.#path}${name} is not ${expected}`);
  }

  text(name: string, pattern: Pattern): string {
    const value = this.#record[name];
    if (typeof value !== "string" || !pattern.test(value)) throw this.#fail(name, "the text it must be");
    return value;
  }

  textOrNull(name: string, pattern: Pattern): string | null {
    return this.#record[name] === null ? null : this.text(name, pattern);
  }

  integer(name: string, min = 0, max: number = Number.MAX_SAFE_INTEGER): number {
    const value = this.#record[name];
    if (typeof value !== "number" || !Number.isSafeInteger(value) || value < min || value > max) {
      throw this.#fail(name, `a whole number from ${String(min)} to ${String(max)}`);
    }
    return value;
  }

  integerOrNull(name: string, min = 0, max: number = Number.MAX_SAFE_INTEGER): number | null {
    return this.#record[name] === null ? null : this.integer(name, min, max);
  }

  /** For fields that are left out where they say nothing. */
  has(name: string): boolean {
    return this.#record[name] !== undefined;
  }

  /** Ms since 1970. */
  time(name: string): number {
    return this.integer(name, 0, timeMsMax);
  }

  timeOrNull(name: string): number | null {
    return this.#record[name] === null ? null : this.time(name);
  }

  /** Sequence number of a point. */
  sequence(name: string): number {
    return this.integer(name, 1, sequenceMax);
  }

  epoch(name: string): number {
    return this.integer(name, 0, epochMax);
  }

  boolean(name: string): boolean {
    const value = this.#record[name];
    if (typeof value !== "boolean") throw this.#fail(name, "true or false");
    return value;
  }

  oneOf<const Value extends string>(name: string, values: readonly Value[]): Value {
    const value = this.#record[name];
    const found = values.find((candidate) => candidate === value);
    if (found === undefined) throw this.#fail(name, `one of ${values.join(", ")}`);
    return found;
  }

  list<Item>(name: string, lengthMax: number, read: (fields: Fields) => Item): Item[] {
    const value = this.#record[name];
    if (!Array.isArray(value) || value.length > lengthMax)
      throw this.#fail(name, `a list of at most ${String(lengthMax)} items`);
    return value.map((item: unknown, index) =>
      read(new Fields(item, this.#object, `${this.#path}${name}[${String(index)}].`)),
    );
  }

  /** A list of texts. */
  texts(name: string, lengthMax: number, pattern: Pattern): string[] {
    const value = this.#record[name];
    if (!Array.isArray(value) || value.length > lengthMax)
      throw this.#fail(name, `a list of at most ${String(lengthMax)} texts`);
    return value.map((item: unknown) => {
      if (typeof item !== "string" || !pattern.test(item)) throw this.#fail(name, "a list of the texts it must be");
      return item;
    });
  }

  nested<Item>(name: string, read: (fields: Fields) => Item): Item {
    return read(new Fields(this.#record[name], this.#object, `${this.#path}${name}.`));
  }

  nestedOrNull<Item>(name: string, read: (fields: Fields) => Item): Item | null {
    return this.#record[name] === null ? null : this.nested(name, read);
  }
}
