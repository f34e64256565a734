/**
 * Validation of a document that people write: fields that read a value, and sections of fields.
 *
 * A `Field` is a function: it returns what the value means, or adds what is wrong to a list and
 * returns `fault`. A section reads all its fields, so one reading names every fault, each with the
 * path to its place and a remedy.
 *
 * Invariant: a field that returns `fault` has added at least one fault.
 */

/** Leads from the value that is checked to a place in it. */
export type Path = readonly (string | number)[];

/**
 * `path` leads from the entry to the field; when `key` is set, the fault is the field's name
 * itself.
 */
export interface EntryFault {
  readonly path: Path;
  readonly key?: string;
  readonly what: string;
  readonly remedy: string;
}

/** Returned by a parser or a field for a value that it cannot read. */
export const fault: unique symbol = Symbol("fault");

/** Reads `value`, which stands at `path`; undefined is a value that is absent. */
export type Field<Value> = (value: unknown, path: Path, faults: EntryFault[]) => Value | typeof fault;

/** What a section of such fields becomes. */
type Section<Fields extends Readonly<Record<string, Field<unknown>>>> = {
  readonly [Name in keyof Fields]: Exclude<ReturnType<Fields[Name]>, typeof fault>;
};

/** A text that is not empty. */
export const text: Field<string> = (value, path, faults) => {
  if (typeof value !== "string") return report(faults, path, value, "is not text", "put it in quotes");
  return value === "" ? report(faults, path, value, "is empty", "correct it") : value;
};

export const flag: Field<boolean> = (value, path, faults) =>
  typeof value === "boolean" ? value : report(faults, path, value, "is not true or false", "correct it");

export function oneOf<const Value extends string>(values: readonly Value[]): Field<Value> {
  return (value, path, faults) =>
    values.find((other) => other === value) ??
    report(faults, path, value, `is not one of ${values.join(", ")}`, "correct it");
}

/** A text, number or truth value that `parse` understands as a text. */
export function written<Value>(
  parse: (text: string) => Value | typeof fault,
  what: string,
  remedy: string,
): Field<Value> {
  return (value, path, faults) => {
    if (!isWritten(value)) return report(faults, path, value, what, "correct it");
    const parsed = parse(String(value));
    return parsed === fault ? report(faults, path, value, what, remedy) : parsed;
  };
}

export function isWritten(value: unknown): value is string | number | boolean {
  return typeof value === "string" || typeof value === "number" || typeof value === "boolean";
}

export function list<Value>(of: Field<Value>): Field<readonly Value[]> {
  return (value, path, faults) => {
    if (!Array.isArray(value)) return report(faults, path, value, "is not a list", "correct it");
    const items: Value[] = [];
    for (const [index, item] of (value as unknown[]).entries()) {
      const read = of(item, [...path, index], faults);
      if (read !== fault) items.push(read);
    }
    return items.length === value.length ? items : fault;
  };
}

/** Undefined when the value is absent. */
export function optional<Value>(field: Field<Value>): Field<Value | undefined> {
  return (value, path, faults) => (value === undefined ? undefined : field(value, path, faults));
}

/** Reads `written` when the value is absent. */
export function withDefault<Value>(field: Field<Value>, written: unknown): Field<Value> {
  return (value, path, faults) => field(value === undefined ? written : value, path, faults);
}

export function section<Fields extends Readonly<Record<string, Field<unknown>>>>(
  fields: Fields,
): Field<Section<Fields>> {
  return (value, path, faults) => {
    if (typeof value !== "object" || value === null || Array.isArray(value))
      return report(faults, path, value, "is not a section with fields", "correct it");
    const before = faults.length;
    for (const key of Object.keys(value).filter((name) => !Object.hasOwn(fields, name))) {
      faults.push({
        path,
        key,
        what: `${key} is no field here`,
        remedy: meant(key, Object.keys(fields), `its fields are ${Object.keys(fields).join(", ")}`),
      });
    }
    const entries = Object.entries(fields).map(([name, field]) => [
      name,
      field(Reflect.get(value, name), [...path, name], faults),
    ]);
    return faults.length === before ? (Object.fromEntries(entries) as Section<Fields>) : fault;
  };
}

/** Adds a fault about the value at `path`. `sentence` says what is wrong with it. */
export function report(
  faults: EntryFault[],
  path: Path,
  value: unknown,
  sentence: string,
  remedy: string,
): typeof fault {
  const name = path.at(-1);
  if (value === undefined && name !== undefined)
    faults.push({ path, what: `${String(name)} is missing`, remedy: "add it" });
  else faults.push({ path, what: `${name === undefined ? "it" : String(name)} ${sentence}`, remedy });
  return fault;
}

/** No field, vault, policy or disk has a longer name. */
const namedBytesMax = 200;

/** Asks for the one of `names` that is near enough to be what was meant. */
export function meant(name: string, names: readonly string[], otherwise: string): string {
  // The distance costs the product of the lengths.
  if (name.length > namedBytesMax) return otherwise;
  const ranked = names.map((other) => ({ other, distance: editDistance(name.toLowerCase(), other.toLowerCase()) }));
  ranked.sort((a, b) => a.distance - b.distance);
  const [best] = ranked;
  const isNear = best !== undefined && best.distance <= Math.max(1, Math.floor(name.length / 3));
  return isNear ? `did you mean ${best.other}?` : otherwise;
}

/**
 * How many letters have to be inserted, removed or replaced to make one word of the other
 * (Levenshtein).
 */
function editDistance(a: string, b: string): number {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i += 1) {
    const next = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const replaced = (row[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1);
      next.push(Math.min(replaced, (row[j] ?? 0) + 1, (next[j - 1] ?? 0) + 1));
    }
    row = next;
  }
  return row[b.length] ?? 0;
}
