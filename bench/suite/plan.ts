/** Plan of a suite: which cases, with which sizes, and how often. */
import { type BenchKind, benchKinds, cases } from "../kinds.ts";
import type { CaseOptions } from "./case-process.ts";

export type SuiteMode = "quick" | "full";

/** How often and how long cases are measured. */
export interface Pace {
  /** Repetitions: at least, and at most. */
  readonly runsMin: number;
  readonly runsMax: number;
  /**
   * Time for all cases, of which each may use an equal part of what is left. No repetition but a
   * case's first begins that would end later. What a case leaves over is for those after it.
   */
  readonly suiteMs: number;
  /** A repetition that takes longer is ended, and its case has failed. */
  readonly runMsMax: number;
  /** Half of a confidence interval, of its median: below that a median is stable. */
  readonly tolerance: number;
  /** How long the suite waits for a quiet machine: before all, and before each case. */
  readonly quietBeforeMs: number;
  readonly quietBetweenMs: number;
  /** Rest before each case, in which the processors cool and dirty pages reach the disk. */
  readonly coolingMs: number;
  /** Size of the disk that is made where no image is given; half of it holds data. */
  readonly imageBytes: number;
}

export const paces: Readonly<Record<SuiteMode, Pace>> = {
  quick: {
    runsMin: 3,
    runsMax: 5,
    suiteMs: 3 * 60_000,
    runMsMax: 3 * 60_000,
    tolerance: 0.1,
    quietBeforeMs: 10_000,
    quietBetweenMs: 1_000,
    coolingMs: 0,
    imageBytes: 192 * 2 ** 20,
  },
  full: {
    runsMin: 3,
    runsMax: 15,
    suiteMs: 90 * 60_000,
    runMsMax: 15 * 60_000,
    tolerance: 0.05,
    quietBeforeMs: 60_000,
    quietBetweenMs: 30_000,
    coolingMs: 5_000,
    imageBytes: 4 * 2 ** 30,
  },
};

/** One case of the plan. */
export interface PlannedCase {
  readonly kind: BenchKind;
  readonly options: Partial<CaseOptions>;
}

const mib = 2 ** 20;
/** The sizes of a quick suite: each case takes a few seconds. */
const small: Readonly<Partial<Record<BenchKind, Partial<CaseOptions>>>> = {
  kernels: { kernelMs: 60, indexEntries: 131_072 },
  scattered: { scatterWrites: 2_000 },
  front: { seconds: 0.25, diskBytes: 64 * mib, cuts: 40 },
  burst: { scatterWrites: 2_000, diskBytes: 512 * mib },
  churn: { seconds: 5, cycleMs: 1_000, bytesPerSecond: 20_000_000, diskBytes: 1024 * mib },
  restart: { seconds: 1, cycleMs: 1_000, hotBytes: 64 * mib },
  mount: { seconds: 0.5, hotBytes: 64 * mib },
  instant: { seconds: 1, hotBytes: 64 * mib },
  failover: { hotBytes: 64 * mib },
  copy: { hotBytes: 64 * mib },
  prune: { points: 60, hotBytes: 64 * mib },
  open: { points: 60, hotBytes: 64 * mib },
  size: { scatterWrites: 2_000 },
  disks: { scatterWrites: 5_000 },
  peers: { scatterWrites: 2_000 },
  collect: { deadBytes: 128 * mib, cycleMs: 1_000, seconds: 2.5, diskBytes: 256 * mib },
};

/** The cases but the soak, which takes an hour and is run apart; those that need an image with `image`. */
export function planOf(mode: SuiteMode, image: string, given: Partial<CaseOptions>): PlannedCase[] {
  const planned = benchKinds.filter((kind) => kind !== "soak");
  return planned.map((kind) => ({
    kind,
    options: {
      ...(mode === "quick" ? { ...small[kind], isSmall: true } : {}),
      ...(cases[kind].image === "required" ? { image } : {}),
      ...given,
    },
  }));
}
