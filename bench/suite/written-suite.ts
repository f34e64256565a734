/**
 * A suite from its options to the files of its report. They are written after each case: a suite
 * that is ended early leaves the report of the cases that were done.
 */
import { writeFile } from "node:fs/promises";
import { join } from "node:path";
import { hasCode, TidemarkError } from "../../engine/index.ts";
import { pageOf } from "./page.ts";
import { runSuite, type SuiteOptions } from "./suite.ts";
import { hasFailed, marksOfSuite, readBaseline, type SuiteReport } from "./suite-report.ts";

/** Options of a suite that is written to a folder. */
export interface WrittenSuiteOptions extends Omit<SuiteOptions, "baseline" | "onReport"> {
  /** Where report.json and report.html go; it exists. */
  readonly folder: string;
  /** Path of an older report.json, to compare with. */
  readonly baselineFile?: string | undefined;
}

/** What a suite came to. */
export interface SuiteOutcome {
  readonly report: SuiteReport;
  /** Paths of the files. */
  readonly json: string;
  readonly page: string;
  /** Marks by what became of them. */
  readonly reached: number;
  readonly missed: number;
  readonly notJudged: number;
  /** A mark was missed, or a case failed. */
  readonly failed: boolean;
}

/** As `runSuiteTo`. */
export async function writeSuite(options: WrittenSuiteOptions): Promise<SuiteOutcome> {
  const { folder, baselineFile, mode } = options;
  const baseline = baselineFile === undefined ? undefined : await readBaseline(baselineFile, mode);
  const [json, page] = [join(folder, "report.json"), join(folder, "report.html")];
  let soFar: SuiteReport | undefined;
  const onReport = async (report: SuiteReport): Promise<void> => {
    await writeFile(json, `${JSON.stringify(report, null, 1)}\n`);
    await writeFile(page, pageOf(report));
    soFar = report;
  };
  let report: SuiteReport;
  try {
    report = await runSuite({ ...options, baseline, onReport });
  } catch (error) {
    if (!hasCode(error, "INTERRUPTED") || soFar === undefined) throw error;
    const done = `${soFar.cases.length} of ${soFar.planned} cases`;
    throw new TidemarkError("INTERRUPTED", `the suite was interrupted; ${page} has ${done}`, {
      remedy: "open it, or run the command again: a suite begins with its first case",
      cause: error,
    });
  }
  const marks = marksOfSuite(report);
  const count = (met: boolean | null): number => marks.filter((mark) => mark.met === met).length;
  return {
    report,
    json,
    page,
    reached: count(true),
    missed: count(false),
    notJudged: count(null),
    failed: hasFailed(report),
  };
}
