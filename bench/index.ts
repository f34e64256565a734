/**
 * Benchmarks: what Tidemark costs on this machine, each figure with a yardstick measured in the
 * same run. The command line runs them on real disks; the tests run them on a small disk, so that
 * they keep working.
 *
 *     kernels                       the inner loops alone               the bound of this machine
 *     pipeline                      a cycle into a discarding sink      the share of that bound that is used
 *     initial, scattered, restore   whole cycles against a store        what a user waits for
 *     front, burst, churn, restart  a disk that is being written        what its clients wait for and may lose
 *     size, disks, lanes, blocks, scaling, peers   by what costs change        sizes, settings, other programs
 *     mount, instant, failover, copy, prune, open, collect   points that are kept   what readers, guests and upkeep wait for
 */
import type { BenchOptions } from "./options.ts";
import type { BenchReport } from "./report.ts";
import type { SuiteOutcome, WrittenSuiteOptions } from "./suite/written-suite.ts";

export type { BenchKind } from "./kinds.ts";
export { benchKinds, cases, isStoreless } from "./kinds.ts";
export type { StoreAddress } from "./live/orders.ts";
export type { BenchOptions } from "./options.ts";
export type { BenchReport } from "./report.ts";
export { formatBench } from "./report.ts";
export type { SuiteCase } from "./suite/suite-report.ts";
export type { SuiteOutcome, WrittenSuiteOptions } from "./suite/written-suite.ts";

/** After ^C a case has ended by then, in ms: its process, the programs that it started, and the store. */
export const caseEndMsMax = 15_000;

/**
 * Runs one case and reports it. Errors: INVALID_ARGUMENT, INTERRUPTED, DAMAGED (what was brought
 * back is not what was replicated), and those of the vault, of the image and of the store;
 * UNSUPPORTED where a program is not installed that a case is measured with.
 */
export async function runBench(options: BenchOptions): Promise<BenchReport> {
  // The command line names the cases in every command, and runs one in few.
  const { runCase } = await import("./run.ts");
  return await runCase(options);
}

/**
 * Runs all cases and writes their report. Errors: INVALID_ARGUMENT for a baseline that is none, and
 * those of `runSuite`.
 */
export async function runSuiteTo(options: WrittenSuiteOptions): Promise<SuiteOutcome> {
  const { writeSuite } = await import("./suite/written-suite.ts");
  return await writeSuite(options);
}
