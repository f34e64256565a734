/** Timed steps: each has a name, an amount of work and one time a run; the median is reported. */
import type { BenchConfig } from "./options.ts";

/** Whether Tidemark did it, or it is what Tidemark is held against. */
export type StepRole = "tidemark" | "yardstick" | "kernel";

export interface StepTraits {
  readonly role: StepRole;
  /** What `amount` counts. */
  readonly unit: "bytes" | "operations";
}

/** Bytes that Tidemark moves, and those that a yardstick does. */
export const ours: StepTraits = { role: "tidemark", unit: "bytes" };
export const yardstick: StepTraits = { role: "yardstick", unit: "bytes" };

/** One step as it is reported. */
export interface Step extends StepTraits {
  readonly name: string;
  /** Work done in one run. */
  readonly amount: number;
  readonly medianMs: number;
  readonly fastestMs: number;
  readonly slowestMs: number;
  readonly runs: number;
  /** Bytes or operations per second, from the median. */
  readonly perSecond: number;
}

interface Samples {
  readonly traits: StepTraits;
  readonly amounts: number[];
  readonly timesMs: number[];
}

/** The steps of one benchmark, in the order in which they were first taken. */
export class StepLog {
  readonly #config: Pick<BenchConfig, "begin">;
  readonly #samples = new Map<string, Samples>();

  constructor(config: Pick<BenchConfig, "begin">) {
    this.#config = config;
  }

  /** Runs and clocks `work`. `amountOf` tells from its result how much was done. */
  async time<Result>(
    name: string,
    traits: StepTraits,
    run: number,
    work: () => Promise<Result>,
    amountOf: (result: Result) => number,
  ): Promise<Result> {
    this.#config.begin(name, run);
    const startedAt = performance.now();
    const result = await work();
    this.add(name, traits, amountOf(result), performance.now() - startedAt);
    return result;
  }

  /** Takes up a time that was measured elsewhere. */
  add(name: string, traits: StepTraits, amount: number, elapsedMs: number): void {
    let samples = this.#samples.get(name);
    if (samples === undefined) {
      samples = { traits, amounts: [], timesMs: [] };
      this.#samples.set(name, samples);
    }
    samples.amounts.push(amount);
    samples.timesMs.push(elapsedMs);
  }

  /** The step's median time. */
  medianMs(name: string): number {
    return median(this.#samples.get(name)?.timesMs ?? []);
  }

  steps(): Step[] {
    return Array.from(this.#samples, ([name, { traits, amounts, timesMs }]) =>
      stepOf(name, traits, median(amounts), {
        medianMs: median(timesMs),
        fastestMs: Math.min(...timesMs),
        slowestMs: Math.max(...timesMs),
        runs: timesMs.length,
      }),
    );
  }
}

/** A step from times that were summed up elsewhere. */
export function stepOf(
  name: string,
  traits: StepTraits,
  amount: number,
  times: Pick<Step, "medianMs" | "fastestMs" | "slowestMs" | "runs">,
): Step {
  return { name, role: traits.role, unit: traits.unit, amount, ...times, perSecond: amount / (times.medianMs / 1000) };
}

/** The middle value, or the mean of the two in the middle. NaN of nothing. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length / 2;
  return ((sorted[Math.ceil(middle) - 1] ?? NaN) + (sorted[Math.floor(middle)] ?? NaN)) / 2;
}
