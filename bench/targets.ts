/**
 * Marks and their targets: `targets.yaml` is the one place that says what each case has to reach. A
 * file of the user's replaces single targets.
 *
 * Invariant: a case cannot report a mark that the file does not name.
 */
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { systemCode, TidemarkError } from "../engine/index.ts";
import { type BenchKind, benchKinds } from "./kinds.ts";

/** One figure that was promised, and what became of it. */
export interface Mark {
  /** What is compared with what. */
  readonly name: string;
  readonly value: number;
  /** `×` for ratios, else the unit of `value` and `wanted`. */
  readonly unit: MarkUnit;
  readonly relation: "at least" | "at most";
  /** Null where the mark is not judged: the case ran with smaller sizes than the target is for. */
  readonly wanted: number | null;
  /** What the value is measured against; `fixed`: a figure that holds on every machine. */
  readonly yardstick: string;
}

export type MarkUnit = "×" | "bytes" | "ms" | "";

/** A target as `targets.yaml` gives it. */
export interface Target extends Pick<Mark, "unit" | "relation" | "yardstick"> {
  readonly wanted: number;
  /** The value for small sizes; null: not judged with these. */
  readonly quick: number | null;
}

/** Targets by case and by name of the mark. */
export type Targets = Readonly<Record<BenchKind, Readonly<Record<string, Target>>>>;

/** Makes the mark `name` of a case. `label` is shown instead of the name. */
export type MarkOf = (name: string, value: number, label?: string) => Mark;

/** True when the mark was reached; null when it is not judged. */
export function isMet({ value, relation, wanted }: Mark): boolean | null {
  if (wanted === null) return null;
  return relation === "at least" ? value >= wanted : value <= wanted;
}

/** The marks of one case. `isQuick`: with small sizes. */
export function marksOf(targets: Targets, kind: BenchKind, isQuick: boolean): MarkOf {
  return (name, value, label = name) => {
    const target = targets[kind][name];
    if (target === undefined) throw new TidemarkError("INTERNAL", `targets.yaml has no mark ${name} of ${kind}`);
    const { unit, relation, yardstick, wanted, quick } = target;
    return { name: label, value, unit, relation, wanted: isQuick ? quick : wanted, yardstick };
  };
}

/**
 * The targets, with those of `file` in place of the built-in ones. Errors: INVALID_ARGUMENT where
 * `file` cannot be read, or names a case, a mark or a value that does not exist.
 */
export async function readTargets(file?: string): Promise<Targets> {
  const builtIn = await readFileAt(fileURLToPath(import.meta.resolve("#targets")));
  const given = file === undefined ? {} : await readFileAt(file);
  for (const [kind, marks] of Object.entries(given)) {
    for (const name of Object.keys(marks)) {
      if (builtIn[kind]?.[name] !== undefined) continue;
      const known = Object.keys(builtIn[kind] ?? {});
      throw new TidemarkError("INVALID_ARGUMENT", `${file ?? ""}: the case ${kind} has no mark "${name}"`, {
        remedy: known.length === 0 ? `name one of ${benchKinds.join(", ")}` : `name one of "${known.join('", "')}"`,
      });
    }
  }
  return Object.fromEntries(
    benchKinds.map((kind) => [kind, { ...builtIn[kind], ...given[kind] }]),
  ) as unknown as Targets;
}

type Read = Readonly<Record<string, Readonly<Record<string, Target>>>>;

async function readFileAt(path: string): Promise<Read> {
  // Loaded on demand: few commands need it.
  const { parse, YAMLParseError } = await import("yaml");
  let cases: unknown;
  try {
    cases = parse(await readFile(path, "utf8")) ?? {};
  } catch (error) {
    if (!(error instanceof YAMLParseError) && systemCode(error) === undefined) throw error;
    const why =
      error instanceof YAMLParseError
        ? `${error.code} at line ${error.linePos?.[0].line ?? 0}`
        : (systemCode(error) ?? "unknown");
    throw new TidemarkError("INVALID_ARGUMENT", `the targets cannot be read from ${path} (${why})`, {
      remedy: "check the path and the YAML",
      cause: error,
    });
  }
  const entries = (value: unknown, place: string): [string, unknown][] => {
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return Object.entries(value);
    throw new TidemarkError("INVALID_ARGUMENT", `${place} is no list of names with their values`, {
      remedy: "write it in the form of bench/targets.yaml",
    });
  };
  return Object.fromEntries(
    entries(cases, path).map(([kind, marks]) => [
      kind,
      Object.fromEntries(
        entries(marks, `${path}: ${kind}`).map(([name, said]) => [
          name,
          targetOf(said as Said, `${path}: ${kind}, "${name}"`),
        ]),
      ),
    ]),
  );
}

/** A target as it is written. */
type Said = Readonly<Record<"at least" | "at most" | "quick" | "yardstick", unknown>> | null;

function targetOf(said: Said, place: string): Target {
  const relation = said?.["at least"] === undefined ? "at most" : "at least";
  const value = quantityOf(said?.[relation]);
  const quick = said?.quick === undefined ? undefined : quantityOf(said.quick);
  const isDouble = said?.["at least"] !== undefined && said["at most"] !== undefined;
  if (value === undefined || isDouble || (said?.quick !== undefined && quick?.unit !== value.unit)) {
    throw new TidemarkError("INVALID_ARGUMENT", `${place} has ${isDouble ? "two values" : "no value"}`, {
      remedy: 'write "at least: 1.2 ×" or "at most: 20 ms" there; times, sizes and plain numbers also',
    });
  }
  return {
    relation,
    unit: value.unit,
    wanted: value.number,
    quick: quick?.number ?? null,
    yardstick: typeof said?.yardstick === "string" ? said.yardstick : "of your own",
  };
}

const units: Readonly<Record<string, readonly [unit: MarkUnit, factor: number]>> = {
  "": ["", 1],
  "×": ["×", 1],
  ms: ["ms", 1],
  s: ["ms", 1_000],
  B: ["bytes", 1],
  MiB: ["bytes", 2 ** 20],
  GiB: ["bytes", 2 ** 30],
};

function quantityOf(said: unknown): { readonly number: number; readonly unit: MarkUnit } | undefined {
  const [, number, word = ""] = /^(\d+(?:\.\d+)?) ?(×|ms|s|B|MiB|GiB)?$/.exec(String(said)) ?? [];
  const [unit, factor] = units[word] ?? ["", 1];
  return number === undefined ? undefined : { number: Number(number) * factor, unit };
}
