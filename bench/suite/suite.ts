/**
 * Suite: all cases one after the other, each repeated until its medians are stable, on a machine that
 * is looked at meanwhile.
 *
 *     quiet? → warm-up → for each case: cool, quiet? → measure → stable? else again → …
 *
 * Each repetition is a process of its own. The store stays open from the first case to the last.
 * A case that has nothing to measure with is left out; a case that fails does not end the others.
 * After each case the report so far is handed over, so that no later end takes hours of figures away.
 *
 * Invariant: a figure that was measured on a busy machine is reported with the reason.
 */
import { execFile } from "node:child_process";
import { realpath, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { promisify } from "node:util";
import type { Sink } from "../../engine/index.ts";
import { hasCode, TidemarkError, throwIfAborted } from "../../engine/index.ts";
import { makeSparse } from "../image.ts";
import { fillFront } from "../keep/front-disk.ts";
import type { BenchKind } from "../kinds.ts";
import type { StoreAddress } from "../live/orders.ts";
import { machineFacts } from "../machine.ts";
import type { BenchReport } from "../report.ts";
import { type CaseOptions, measureInProcess } from "./case-process.ts";
import { disturbances, MachineWatch, type Quietness } from "./machine-watch.ts";
import { type Pace, paces, planOf, type SuiteMode } from "./plan.ts";
import { uncertaintyOf } from "./statistics.ts";
import { casesAsOne, changesOf, type SuiteCase, type SuiteReport } from "./suite-report.ts";

type Watch = Pick<MachineWatch, "start" | "quiet">;

/** What is being measured now. */
export interface SuiteProgress {
  /** Null before the first. */
  readonly case: BenchKind | null;
  /** From 1 to `of`; 0 before the first. */
  readonly number: number;
  readonly of: number;
  /** From 1. */
  readonly run: number;
  readonly step: string;
  /** The most time that is left, in ms; 0: the suite is late, because a case took longer than its part. */
  readonly leftMsMax: number;
}

export interface SuiteOptions {
  readonly mode: SuiteMode;
  /** The disk for the cases that take one. Default: one is made. */
  readonly image?: string | undefined;
  /** As of `BenchOptions`. */
  readonly targetsFile?: string | undefined;
  readonly workers?: number | undefined;
  readonly lanes?: number | undefined;
  readonly seed?: number | undefined;
  readonly baseline?: SuiteReport | undefined;
  /** Only these cases. Default: all. */
  readonly only?: readonly BenchKind[] | undefined;
  /** The store of all cases, and how it is held open. */
  readonly storeAddress: StoreAddress;
  readonly openVaultSink: () => Promise<Sink>;
  readonly temporaryFolder: string;
  readonly onProgress?: ((progress: SuiteProgress) => void) | undefined;
  /** A case is done. */
  readonly onCase?: ((done: SuiteCase) => void) | undefined;
  /** The report so far, after each case; waited for. */
  readonly onReport?: ((report: SuiteReport) => Promise<void>) | undefined;
  readonly signal?: AbortSignal | undefined;
  /** Time for all cases. Default: 3 min in a quick suite, 90 in a full one. */
  readonly suiteMs?: number | undefined;
  /** How a case is measured. Default: in a process of its own. */
  readonly measure?: typeof measureInProcess;
  readonly pace?: Pace;
  readonly watch?: Watch;
}

const noFigures = {
  repetitions: 0,
  stable: false,
  quietness: null,
  disturbances: [],
  steps: [],
  marks: [],
  series: [],
  latencies: [],
  stages: [],
  counts: {},
  image: null,
  peakRssBytes: 0,
};

/**
 * Runs the suite. Errors: UNSUPPORTED when a full suite finds the machine busy; INTERRUPTED; DAMAGED
 * when what a case brought back is not what was replicated; those of the store.
 */
export async function runSuite(options: SuiteOptions): Promise<SuiteReport> {
  const { mode, temporaryFolder, seed = 7, signal, baseline, only } = options;
  const base = options.pace ?? paces[mode];
  const pace = { ...base, suiteMs: options.suiteMs ?? base.suiteMs };
  if (options.storeAddress.address.startsWith("memory:"))
    throw new TidemarkError("INVALID_ARGUMENT", "a suite needs a store that several processes can open", {
      remedy: "leave --vault out, or name azurite:DIR, dir:DIR or a URL",
    });
  const machine = machineFacts(new Date());
  const startedAt = performance.now();
  const watch = options.watch ?? new MachineWatch();
  const made = join(temporaryFolder, "suite.img");
  const image = options.image ?? made;
  const { targetsFile, workers, lanes, storeAddress } = options;
  const given = { targetsFile, workers, lanes, seed };
  const planned = planOf(mode, image, given).filter(({ kind }) => only === undefined || only.includes(kind));
  const leftMs = (): number => Math.max(0, startedAt + pace.suiteMs - performance.now());
  const tell = (kind: BenchKind | null, number: number, run: number, step: string): void =>
    options.onProgress?.({ case: kind, number, of: planned.length, run, step, leftMsMax: Math.round(leftMs()) });
  tell(null, 0, 1, "wait for a quiet machine");
  refuseBusy(mode, await watch.quiet(pace.quietBeforeMs, signal));
  const store = await options.openVaultSink();
  try {
    tell(null, 0, 1, "warm up");
    if (options.image === undefined) await makeImage(made, pace.imageBytes, seed, signal);
    const measure = options.measure ?? measureInProcess;
    const measureCase = async (
      kind: BenchKind,
      caseOptions: Partial<CaseOptions>,
      onStep: (step: string) => void,
    ): Promise<BenchReport> => {
      throwIfAborted(signal);
      const limit = AbortSignal.timeout(pace.runMsMax);
      const either = signal === undefined ? limit : AbortSignal.any([signal, limit]);
      try {
        return await measure({ ...caseOptions, kind, storeAddress, temporaryFolder }, onStep, either);
      } catch (error) {
        if (!limit.aborted || signal?.aborted === true) throw error;
        const minutes = (pace.runMsMax / 60_000).toFixed(0);
        throw new TidemarkError("INTERNAL", `it was ended after ${minutes} min`, {
          remedy: `run \`tidemark bench ${kind}\` and see which step it does not leave`,
          cause: error,
        });
      }
    };
    // Pages of the image, the store's code: what the first case would have to load.
    await measureCase("initial", { ...given, image, isSmall: true }, () => undefined);
    const commit = await commitOf(import.meta.dirname);
    const cases: SuiteCase[] = [];
    const reportNow = (): SuiteReport => ({
      type: "suite",
      mode,
      machine,
      commit,
      store: store.description,
      seed,
      elapsedMs: Math.round(performance.now() - startedAt),
      planned: planned.length,
      cases: [...cases],
      changes: baseline === undefined ? [] : changesOf(baseline, cases),
      baseline: baseline === undefined ? null : { machine: baseline.machine, commit: baseline.commit },
    });
    let report = reportNow();
    for (const [index, { kind, options: caseOptions }] of planned.entries()) {
      const budgetMs = leftMs() / (planned.length - index);
      const done = await repeated(kind, pace, budgetMs, watch, signal, async (run) => {
        tell(kind, index + 1, run, "start");
        return await measureCase(kind, caseOptions, (step) => tell(kind, index + 1, run, step));
      });
      cases.push(done);
      options.onCase?.(done);
      report = reportNow();
      await options.onReport?.(report);
    }
    return report;
  } finally {
    await rm(made, { force: true });
    await store[Symbol.asyncDispose]();
  }
}

/** Measures a case until its medians are stable, or as often as the pace allows. */
async function repeated(
  kind: BenchKind,
  pace: Pace,
  budgetMs: number,
  watch: Watch,
  signal: AbortSignal | undefined,
  measure: (run: number) => Promise<BenchReport>,
): Promise<SuiteCase> {
  await delay(pace.coolingMs, undefined, { signal });
  await watch.quiet(pace.quietBetweenMs, signal);
  const reports: BenchReport[] = [];
  const seen: Quietness[] = [];
  let lastMs = 0;
  const startedAt = performance.now();
  const elapsed = (): number => performance.now() - startedAt;
  try {
    do {
      const from = performance.now();
      const end = watch.start();
      reports.push(await measure(reports.length + 1));
      seen.push(end());
      lastMs = performance.now() - from;
    } while (reports.length < pace.runsMax && elapsed() + lastMs <= budgetMs && !isStable(reports, pace));
  } catch (error) {
    if (hasCode(error, "INTERRUPTED") || hasCode(error, "DAMAGED") || !(error instanceof TidemarkError)) throw error;
    const missing = `${error.message}: ${error.remedy ?? ""}`;
    const elapsedMs = Math.round(elapsed());
    return { ...noFigures, case: kind, missing, failed: !hasCode(error, "UNSUPPORTED"), elapsedMs };
  }
  const quietness = seen.reduce(worse);
  return {
    case: kind,
    missing: null,
    failed: false,
    stable: isStable(reports, pace),
    elapsedMs: Math.round(elapsed()),
    quietness,
    disturbances: disturbances(quietness),
    ...casesAsOne(reports),
  };
}

/** Whether the rate of each step of Tidemark's is known closely enough. */
function isStable(reports: readonly BenchReport[], { runsMin, tolerance }: Pace): boolean {
  if (reports.length < runsMin) return false;
  return casesAsOne(reports)
    .steps.filter(({ role }) => role !== "yardstick")
    .every(({ perSecond }) => uncertaintyOf(perSecond) <= tolerance);
}

function worse(one: Quietness, other: Quietness): Quietness {
  const most = (a: number | null, b: number | null): number | null => (a === null ? b : Math.max(a, b ?? 0));
  return {
    othersShare: most(one.othersShare, other.othersShare),
    stealShare: most(one.stealShare, other.stealShare),
    speed: Math.min(one.speed, other.speed),
  };
}

/** A quick suite marks its figures instead: each case says how the machine was. */
function refuseBusy(mode: SuiteMode, quietness: Quietness): void {
  const [reason] = disturbances(quietness);
  if (mode === "quick" || reason === undefined) return;
  throw new TidemarkError("UNSUPPORTED", `the machine is busy: ${reason}`, {
    remedy: "end other work and run it again; `tidemark bench suite --quick` measures all the same and says so",
  });
}

/** A sparse disk: every other 4 MiB holds data, of which half is incompressible. */
async function makeImage(
  path: string,
  sizeBytes: number,
  seed: number,
  signal: AbortSignal | undefined,
): Promise<void> {
  await makeSparse(path, sizeBytes);
  await fillFront(path, sizeBytes, seed, signal, 8 * 2 ** 20);
}

/** The commit that `folder` is checked out of; null where it belongs to no source tree of Tidemark. */
async function commitOf(folder: string): Promise<string | null> {
  const git = async (...words: string[]): Promise<string> =>
    (await promisify(execFile)("git", ["-C", folder, ...words])).stdout.trim();
  try {
    const root = await git("rev-parse", "--show-toplevel");
    // A package that is installed in another project lies in its node_modules.
    const isOurs = (await realpath(dirname(folder))).startsWith(await realpath(root));
    if (!isOurs || folder.includes("node_modules")) return null;
    const isChanged = (await git("status", "--porcelain", "-uno")) !== "";
    return `${await git("rev-parse", "--short=12", "HEAD")}${isChanged ? " and changes" : ""}`;
  } catch {
    return null;
  }
}
