/**
 * The usual report of a test run, followed by the day of a deep run's samples and by one last line
 * that any runner can read: `N passed, N failed`, and `, N skipped` where there are some. Everything that
 * makes the run fail counts as a failure, also a file that cannot be loaded and an error outside
 * every test.
 */
import { DefaultReporter, type Reporter, type TestModule } from "vitest/node";
import { day } from "./depth.ts";

/** What vitest hands to `onTestRunEnd`. */
type TestRunEnd = Parameters<NonNullable<Reporter["onTestRunEnd"]>>;

/** Vitest's default reporter with the counts as its last line. */
export class CountsReporter extends DefaultReporter {
  override onTestRunEnd(...[modules, unhandledErrors, reason]: TestRunEnd): void {
    super.onTestRunEnd(modules, unhandledErrors, reason);
    if (day > 0) process.stdout.write(`TIDEMARK_TEST_DAY=${day}\n`);
    process.stdout.write(`${countsLine(modules, unhandledErrors.length)}\n`);
  }
}

/** The line that says how a run went. */
export function countsLine(modules: readonly TestModule[], unhandledErrorCount: number): string {
  let passed = 0;
  let failed = unhandledErrorCount;
  let skipped = 0;
  for (const module of modules) {
    failed += module.errors().length;
    for (const suite of module.children.allSuites()) failed += suite.errors().length;
    for (const test of module.children.allTests()) {
      const { state } = test.result();
      if (state === "passed") passed += 1;
      else if (state === "skipped") skipped += 1;
      else failed += 1;
    }
  }
  return `${passed} passed, ${failed} failed${skipped > 0 ? `, ${skipped} skipped` : ""}`;
}
