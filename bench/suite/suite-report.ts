/**
 * Report of a suite: one object, which `report.json` holds and the page is made from; and its
 * comparison with an older one.
 */
import { readFile } from "node:fs/promises";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import type { BenchKind } from "../kinds.ts";
import type { MachineFacts } from "../machine.ts";
import type { BenchReport } from "../report.ts";
import { median, type Step } from "../steps.ts";
import { isMet, type Mark } from "../targets.ts";
import type { Quietness } from "./machine-watch.ts";
import type { SuiteMode } from "./plan.ts";
import { type Change, changeOf, type Estimate, estimateOf, significantP } from "./statistics.ts";

/** A step over all repetitions of its case. */
export interface SuiteStep extends Pick<Step, "name" | "role" | "unit" | "amount"> {
  readonly medianMs: number;
  /** Bytes or operations a second of each repetition, and their median. */
  readonly samples: readonly number[];
  readonly perSecond: Estimate;
}

/** A mark over all repetitions; its `value` is their median. */
export interface SuiteMark extends Mark {
  readonly met: boolean | null;
  readonly low: number;
  readonly high: number;
}

/** One case of a suite. Series, latencies, stages and counts are those of the last repetition. */
export interface SuiteCase
  extends Pick<BenchReport, "series" | "latencies" | "stages" | "counts" | "image" | "peakRssBytes"> {
  readonly case: BenchKind;
  /** Why it has no figures: what is not installed, or what failed; null: it has. */
  readonly missing: string | null;
  /** True: it failed, and is not only left out. */
  readonly failed: boolean;
  readonly repetitions: number;
  /** Every median is known as closely as the suite asks for. */
  readonly stable: boolean;
  readonly elapsedMs: number;
  /** The most disturbed repetition. */
  readonly quietness: Quietness | null;
  /** Why the figures cannot be trusted; empty when they can. */
  readonly disturbances: readonly string[];
  readonly steps: readonly SuiteStep[];
  readonly marks: readonly SuiteMark[];
}

export interface SuiteReport {
  readonly type: "suite";
  readonly mode: SuiteMode;
  readonly machine: MachineFacts;
  /** Commit of the source that ran; null for an installed package. */
  readonly commit: string | null;
  readonly store: string;
  readonly seed: number;
  readonly elapsedMs: number;
  /** How many cases were to be run: more than `cases` has where the suite was ended early. */
  readonly planned: number;
  readonly cases: readonly SuiteCase[];
  /** Empty without a baseline. */
  readonly changes: readonly StepChange[];
  readonly baseline: Pick<SuiteReport, "machine" | "commit"> | null;
}

/** A step beside the same step of the baseline. */
export interface StepChange extends Change {
  readonly case: BenchKind;
  readonly step: string;
  /** `unclear`: the difference may be chance, or there are too few repetitions. */
  readonly verdict: "faster" | "slower" | "unclear";
}

/** The repetitions of a case as one. `reports` is not empty. */
export function casesAsOne(
  reports: readonly BenchReport[],
): Pick<
  SuiteCase,
  "steps" | "marks" | "series" | "latencies" | "stages" | "counts" | "image" | "peakRssBytes" | "repetitions"
> {
  const last = reports.at(-1);
  if (last === undefined) throw new TidemarkError("INTERNAL", "a case without a repetition was reported");
  const { series, latencies, stages, counts, image } = last;
  const steps = last.steps.map(({ name, role, unit, amount }): SuiteStep => {
    const taken = reports.flatMap((report) => report.steps.filter((step) => step.name === name));
    const samples = taken.map(({ perSecond }) => perSecond);
    const medianMs = median(taken.map((step) => step.medianMs));
    return { name, role, unit, amount, medianMs, samples, perSecond: estimateOf(samples) };
  });
  const marks = last.marks.map((mark, index): SuiteMark => {
    const { median: value, low, high } = estimateOf(reports.map((report) => report.marks[index]?.value ?? NaN));
    return { ...mark, value, low, high, met: isMet({ ...mark, value }) };
  });
  const peakRssBytes = Math.max(...reports.map((report) => report.peakRssBytes));
  return { steps, marks, series, latencies, stages, counts, image, peakRssBytes, repetitions: reports.length };
}

/** All marks, each with its case. */
export function marksOfSuite({ cases }: Pick<SuiteReport, "cases">): (SuiteMark & { readonly case: BenchKind })[] {
  return cases.flatMap(({ case: kind, marks }) => marks.map((mark) => ({ ...mark, case: kind })));
}

/** True when the suite is to end with an error: a mark was missed, or a case failed. */
export function hasFailed(report: Pick<SuiteReport, "cases">): boolean {
  return report.cases.some(({ failed }) => failed) || marksOfSuite(report).some(({ met }) => met === false);
}

/** Every step that both have. */
export function changesOf(baseline: Pick<SuiteReport, "cases">, cases: readonly SuiteCase[]): StepChange[] {
  return cases.flatMap((now) => {
    const then = baseline.cases.find(({ case: kind }) => kind === now.case);
    return now.steps.flatMap((step): StepChange[] => {
      const old = then?.steps.find(({ name, role }) => name === step.name && role === step.role);
      if (old === undefined || old.perSecond.median === 0 || step.perSecond.median === 0) return [];
      const change = changeOf(old.samples, step.samples);
      const isClear = change.p < significantP && (change.ratio.low > 1 || change.ratio.high < 1);
      const verdict = !isClear ? "unclear" : change.ratio.median > 1 ? "faster" : "slower";
      return [{ case: now.case, step: step.name, ...change, verdict }];
    });
  });
}

/**
 * Reads an older report. Errors: INVALID_ARGUMENT when the file is none, lacks what is compared, or is
 * of the other mode: sizes differ.
 */
export async function readBaseline(path: string, mode: SuiteMode): Promise<SuiteReport> {
  const refused = (message: string, remedy: string, cause?: unknown): TidemarkError =>
    new TidemarkError("INVALID_ARGUMENT", message, { remedy, cause });
  let report: Unproved<SuiteReport>;
  try {
    report = JSON.parse(await readFile(path, "utf8")) as Unproved<SuiteReport>;
  } catch (error) {
    const code = systemCode(error);
    if (code !== undefined)
      throw refused(`the baseline ${path} cannot be read (${code})`, "name a file that can", error);
    if (!(error instanceof SyntaxError)) throw error;
    report = null;
  }
  if (!isSuite(report))
    throw refused(`${path} is not the report of a suite`, "name the report.json that `tidemark bench suite` wrote");
  if (report.mode !== mode)
    throw refused(
      `${path} is of a ${report.mode} suite, and this is a ${mode} one`,
      `add \`--${report.mode}\`, or name another report`,
    );
  return report;
}

/** What a file says: nothing of it need be there. */
type Unproved<Value> = { readonly [Name in keyof Value]?: unknown } | null;

/** Whether a report has what a comparison reads. */
function isSuite(report: Unproved<SuiteReport>): report is SuiteReport {
  const machine = report?.machine as Unproved<MachineFacts> | undefined;
  return (
    report?.type === "suite" &&
    (report.mode === "quick" || report.mode === "full") &&
    typeof machine?.date === "string" &&
    Array.isArray(report.cases) &&
    report.cases.every((each: Unproved<SuiteCase>) => Array.isArray(each?.steps) && each.steps.every(isStep))
  );
}

function isStep(step: Unproved<SuiteStep>): boolean {
  const perSecond = step?.perSecond as Unproved<Estimate> | undefined;
  return (
    typeof step?.name === "string" &&
    Array.isArray(step.samples) &&
    step.samples.length > 0 &&
    step.samples.every(Number.isFinite) &&
    Number.isFinite(perSecond?.median)
  );
}
