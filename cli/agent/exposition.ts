/**
 * Prometheus text exposition, format 0.0.4: counters, gauges, histograms and their text.
 *
 * A registry holds metrics in the order in which they were made. A metric holds one value for each
 * set of labels. Labels are kept in their text form, in the order that the caller gives, so a
 * caller always gives the labels of a metric in one order.
 *
 * Invariant: a value of a label that holds a quote, a backslash or a line break is escaped, so that
 * no name of a disk can end a line or add a label.
 *
 * Cost: one map entry for each set of labels; a reading builds one string.
 *
 * Source: https://prometheus.io/docs/instrumenting/exposition_formats/
 */

export type Labels = Readonly<Record<string, string>>;

/** Media type of `Registry.text()`. */
export const expositionContentType = "text/plain; version=0.0.4; charset=utf-8";

export class Registry {
  readonly #metrics: { readonly head: string; readonly lines: () => readonly string[] }[] = [];

  gauge(name: string, help: string): Gauge {
    const gauge = new Gauge(name);
    this.#add(name, help, "gauge", () => gauge.lines());
    return gauge;
  }

  counter(name: string, help: string): Counter {
    const counter = new Counter(name);
    this.#add(name, help, "counter", () => counter.lines());
    return counter;
  }

  /** `bounds` are the upper bounds of the buckets, ascending; the bucket `+Inf` is added. */
  histogram(name: string, help: string, bounds: readonly number[]): Histogram {
    const histogram = new Histogram(name, bounds);
    this.#add(name, help, "histogram", () => histogram.lines());
    return histogram;
  }

  /** All metrics, each with its help and its type. */
  text(): string {
    return this.#metrics.map(({ head, lines }) => `${[head, ...lines()].join("\n")}\n`).join("\n");
  }

  #add(name: string, help: string, type: string, lines: () => readonly string[]): void {
    const escaped = help.replace(/\\/g, "\\\\").replace(/\n/g, "\\n");
    this.#metrics.push({ head: `# HELP ${name} ${escaped}\n# TYPE ${name} ${type}`, lines });
  }
}

/** A value that goes up and down. */
export class Gauge {
  readonly #name: string;
  readonly #values = new Map<string, number>();

  constructor(name: string) {
    this.#name = name;
  }

  set(labels: Labels, value: number): void {
    this.#values.set(labelText(labels), value);
  }

  /** Forgets every series. */
  reset(): void {
    this.#values.clear();
  }

  lines(): readonly string[] {
    return seriesLines(this.#name, this.#values);
  }
}

/** A sum that only grows while the process lives. */
export class Counter {
  readonly #name: string;
  readonly #values = new Map<string, number>();

  constructor(name: string) {
    this.#name = name;
  }

  /** Adds `amount`, which is not negative. */
  add(labels: Labels, amount = 1): void {
    const key = labelText(labels);
    this.#values.set(key, (this.#values.get(key) ?? 0) + amount);
  }

  lines(): readonly string[] {
    return seriesLines(this.#name, this.#values);
  }
}

/** How often a value fell into each of several ranges, how often in all, and the sum. */
export class Histogram {
  readonly #name: string;
  readonly #bounds: readonly number[];
  readonly #series = new Map<string, { readonly labels: Labels; readonly counts: number[]; sum: number }>();

  constructor(name: string, bounds: readonly number[]) {
    this.#name = name;
    this.#bounds = [...bounds, Number.POSITIVE_INFINITY];
  }

  observe(labels: Labels, value: number): void {
    const key = labelText(labels);
    const series = this.#series.get(key) ?? { labels, counts: this.#bounds.map(() => 0), sum: 0 };
    this.#series.set(key, series);
    series.sum += value;
    // Buckets are cumulative: each counts every value up to its bound.
    for (const [index, bound] of this.#bounds.entries())
      if (value <= bound) series.counts[index] = (series.counts[index] ?? 0) + 1;
  }

  lines(): readonly string[] {
    return [...this.#series].flatMap(([key, { labels, counts, sum }]) => [
      ...this.#bounds.map(
        (bound, index) =>
          `${this.#name}_bucket${labelText({ ...labels, le: numberText(bound) })} ${counts[index] ?? 0}`,
      ),
      `${this.#name}_sum${key} ${numberText(sum)}`,
      `${this.#name}_count${key} ${counts.at(-1) ?? 0}`,
    ]);
  }
}

function seriesLines(name: string, values: ReadonlyMap<string, number>): readonly string[] {
  return [...values].map(([labels, value]) => `${name}${labels} ${numberText(value)}`);
}

function labelText(labels: Labels): string {
  const pairs = Object.entries(labels).map(([name, value]) => `${name}="${escapedLabel(value)}"`);
  return pairs.length === 0 ? "" : `{${pairs.join(",")}}`;
}

function escapedLabel(value: string): string {
  return value.replace(/\\/g, "\\\\").replace(/"/g, '\\"').replace(/\n/g, "\\n");
}

function numberText(value: number): string {
  if (value === Number.POSITIVE_INFINITY) return "+Inf";
  return value === Number.NEGATIVE_INFINITY ? "-Inf" : String(value);
}
