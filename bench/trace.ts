/**
 * Trace of a case: what happened over time, how latencies are distributed, and which stage took how
 * much processor time. A case adds to it while it runs; the report draws it.
 *
 * Latencies are kept as HDR histograms (log-linear buckets): Node's own, and those of fio. What is
 * reported is a fixed list of percentiles, from the median to the maximum.
 *
 * Memory: a few hundred points a series.
 */

/** Values over time. */
export interface Series {
  readonly name: string;
  readonly unit: "bytes" | "bytes/s" | "ms" | "/s" | "cores";
  /** Time since the case began in ms, and the value. */
  readonly points: readonly (readonly [atMs: number, value: number])[];
}

/** Distribution of the latencies of one kind of request. */
export interface Latency {
  readonly name: string;
  readonly count: number;
  /** Percentile and its latency in µs, ascending; the last is the maximum. */
  readonly percentiles: readonly (readonly [percent: number, us: number])[];
}

/** Processor time of one stage, with that of the stages in it. */
export interface Stage {
  readonly name: string;
  readonly cpuMs: number;
  /** Name of the stage that it is a part of, which comes before it; absent: it is a whole. */
  readonly within?: string;
}

/** Percentiles that are reported, besides the maximum. */
export const percents = [50, 75, 90, 95, 99, 99.9, 99.99] as const;

/** The reported percentiles. A bucket of a histogram may end beyond the maximum, so that is the bound. */
export function percentilesOf(at: (percent: number) => number, maxUs: number): Latency["percentiles"] {
  return [...percents.map((percent) => [percent, Math.min(maxUs, at(percent))] as const), [100, maxUs]];
}

export class Trace {
  readonly #startedAt = performance.now();
  readonly #series = new Map<string, { unit: Series["unit"]; points: [number, number][] }>();
  readonly #latencies = new Map<string, Latency>();
  readonly #stages: Stage[] = [];

  /** Time since the case began, in ms. */
  now(): number {
    return performance.now() - this.#startedAt;
  }

  /** Adds a value of the series `name`. */
  point(name: string, unit: Series["unit"], value: number, atMs: number = this.now()): void {
    const series = this.#series.get(name) ?? { unit, points: [] };
    this.#series.set(name, series);
    series.points.push([Math.round(atMs), value]);
  }

  /** Takes up the distribution of `name`: of several runs, the last. */
  latency(latency: Latency): void {
    if (latency.count > 0) this.#latencies.set(latency.name, latency);
  }

  /** Replaces the stages: of several runs, the last. */
  stages(stages: readonly Stage[]): void {
    this.#stages.splice(0, Infinity, ...stages);
  }

  toReport(): {
    readonly series: readonly Series[];
    readonly latencies: readonly Latency[];
    readonly stages: readonly Stage[];
  } {
    return {
      series: Array.from(this.#series, ([name, series]) => ({ name, ...series })),
      latencies: [...this.#latencies.values()],
      stages: this.#stages,
    };
  }
}
