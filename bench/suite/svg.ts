/**
 * Plots as SVG: bars with intervals and samples, lines over time, percentile curves, flame graphs.
 *
 * A module of our own: the libraries that draw SVG without a browser need a DOM and a few dozen
 * packages. Colours are classes, which the page defines for light and dark. A plot is drawn 360 units
 * wide, the width of a phone, so that its text is readable there; on a large screen plots stand
 * side by side.
 */
import type { Latency, Series, Stage } from "../trace.ts";

const width = 360;
const margin = { left: 54, right: 10, top: 8, bottom: 22 } as const;
const lineHeight = 13;
/** How many series the page has colours for. */
export const coloursMax = 6;

/** A bar: a value with the bounds of its interval, and each sample as a dot. */
export interface Bar {
  readonly label: string;
  /** What is printed at its end. */
  readonly text: string;
  readonly value: number;
  readonly low: number;
  readonly high: number;
  readonly samples: readonly number[];
  readonly isYardstick: boolean;
}

/** Horizontal bars on one scale that begins with 0. */
export function bars(title: string, all: readonly Bar[]): string {
  const most = Math.max(...all.flatMap(({ high, value, samples }) => [high, value, ...samples]), Number.MIN_VALUE);
  const x = (value: number): number => (value / most) * (width - 2);
  const [rowHeight, barHeight] = [32, 12];
  const rows = all.map(({ label, text, value, low, high, samples, isYardstick }, index) => {
    const top = index * rowHeight;
    const middle = top + 16 + barHeight / 2;
    return [
      words(0, top + 11, label),
      words(width, top + 11, text, "end"),
      `<rect class="${isYardstick ? "yardstick" : "s0"}" x="0" y="${top + 16}" width="${n(x(value))}" height="${barHeight}" rx="2"/>`,
      ...samples.map((sample) => `<circle class="dot" cx="${n(x(sample))}" cy="${n(middle)}" r="1.6"/>`),
      low < high ? `<path class="axis" d="M${n(x(low))} ${n(middle)}H${n(x(high))}"/>` : "",
    ].join("");
  });
  return svg(title, all.length * rowHeight, rows.join(""));
}

/**
 * Lines over time on one scale. A pause in a series is a gap in its line. `base`: ticks are round in
 * units that are powers of it.
 */
export function lines(
  title: string,
  series: readonly Series[],
  format: (value: number) => string,
  base: 1_000 | 1_024,
): string {
  const points = series.flatMap((each) => each.points);
  const [first, last] = [Math.min(...points.map(([at]) => at)), Math.max(...points.map(([at]) => at))];
  const most = Math.max(...points.map(([, value]) => value), 1e-3);
  const unit = base ** Math.max(0, Math.floor(Math.log(most) / Math.log(base)));
  const yTicks = niceTicks(most / unit, 4).map((tick) => tick * unit);
  const seconds = (last - first) / 1_000;
  const xTicks = niceTicks(seconds, 5).filter((tick) => tick <= seconds);
  const [height, frame] = frameOf(series.length, 130);
  const x = (at: number): number => frame.left + ((at - first) / Math.max(1, last - first)) * frame.width;
  const y = (value: number): number => frame.bottom - (value / (yTicks.at(-1) ?? 1)) * frame.height;
  const paths = series.map(({ points: own }, index) => {
    const steps = own
      .slice(1)
      .map(([at], place) => at - (own[place]?.[0] ?? at))
      .toSorted((a, b) => a - b);
    const gap = Math.max(1_000, 4 * (steps[Math.floor(steps.length / 2)] ?? 0));
    const path = own.map(([at, value], place) => {
      const before = own[place - 1]?.[0];
      return `${before === undefined || at - before > gap ? "M" : "L"}${n(x(at))} ${n(y(value))}`;
    });
    return `<path class="line s${index % coloursMax}" d="${path.join("")}"/>`;
  });
  return svg(
    title,
    height,
    yTicks.map((tick) => across(frame, y(tick), format(tick))).join("") +
      xTicks
        .map((tick) => words(x(first + tick * 1_000), frame.bottom + 14, `${figureOf(tick)} s`, "middle"))
        .join("") +
      paths.join("") +
      legend(
        series.map(({ name }) => name),
        height,
      ),
  );
}

/** Latency by percentile, as HDR histograms are drawn: each step to the right is a tenth of the requests. */
export function percentileCurves(title: string, latencies: readonly Latency[]): string {
  const [height, frame] = frameOf(latencies.length, 130);
  const nines = [0, 50, 90, 99, 99.9, 99.99];
  const place = (percent: number): number => -Math.log10(1 - Math.min(percent, 99.997) / 100);
  const x = (percent: number): number => frame.left + (place(percent) / place(99.997)) * frame.width;
  const times = latencies.flatMap(({ percentiles }) => percentiles.map(([, us]) => us));
  const [low, high] = [Math.floor(Math.log10(Math.min(...times))), Math.ceil(Math.log10(Math.max(...times)))];
  const y = (us: number): number => frame.bottom - ((Math.log10(us) - low) / Math.max(1, high - low)) * frame.height;
  const decades = Array.from({ length: Math.max(1, high - low) + 1 }, (_, index) => 10 ** (low + index));
  const curves = latencies.map(({ percentiles }, index) => {
    const path = percentiles.map(([percent, us], at) => `${at === 0 ? "M" : "L"}${n(x(percent))} ${n(y(us))}`);
    return `<path class="line s${index % coloursMax}" d="${path.join("")}"/>`;
  });
  return svg(
    title,
    height,
    decades.map((us) => across(frame, y(us), microseconds(us))).join("") +
      nines
        .slice(1)
        .map((percent) => words(x(percent), frame.bottom + 14, `${percent} %`, "middle"))
        .join("") +
      curves.join("") +
      legend(
        latencies.map(({ name }) => name),
        height,
      ),
  );
}

/** Flame graph: each stage lies below the one that it is a part of, as wide as its share of the time. */
export function flame(title: string, stages: readonly Stage[]): string {
  const sum = stages.reduce((total, { cpuMs, within }) => (within === undefined ? total + cpuMs : total), 0);
  const rowHeight = 22;
  /** Where each stage lies, and where the next one in it begins. */
  const places = new Map<string | undefined, { readonly row: number; next: number }>([
    [undefined, { row: -1, next: 0 }],
  ]);
  // What has parts is grey, so that there are colours enough for the parts.
  const isDivided = (stage: Stage): boolean => stages.some(({ within }) => within === stage.name);
  const leaves = stages.filter((stage) => !isDivided(stage));
  const colours = stages.map((stage) => (isDivided(stage) ? "yardstick" : colourOf(leaves.indexOf(stage))));
  const parts = stages.map(({ name, cpuMs, within }, index) => {
    const above = places.get(within) ?? { row: -1, next: 0 };
    const [x, y, share] = [above.next, (above.row + 1) * rowHeight, (cpuMs / sum) * width];
    above.next += share;
    places.set(name, { row: above.row + 1, next: x });
    return `<rect class="${colours[index] ?? ""}" x="${n(x)}" y="${y}" width="${n(share)}" height="${rowHeight - 1}"/>`;
  });
  const depth = Math.max(...Array.from(places.values(), ({ row }) => row + 1));
  const height = depth * rowHeight + 8 + stages.length * lineHeight;
  const names = stages.map(({ name, cpuMs }) => `${name}, ${((100 * cpuMs) / sum).toFixed(0)} %`);
  return svg(title, height, parts.join("") + legend(names, height, colours));
}

/** Text in HTML and SVG. */
export function escaped(text: string): string {
  const signs: Readonly<Record<string, string>> = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" };
  return text.replace(/[&<>"]/g, (sign) => signs[sign] ?? sign);
}

/** `35 µs`, `1.2 ms`, `3 s`. */
export function microseconds(us: number): string {
  if (us === 0) return "0";
  if (us < 1_000) return `${figureOf(us)} µs`;
  return us < 1e6 ? `${figureOf(us / 1e3)} ms` : `${figureOf(us / 1e6)} s`;
}

interface Frame {
  readonly left: number;
  readonly bottom: number;
  readonly width: number;
  readonly height: number;
}

/** Height of a plot with its legend, and the frame of its axes. */
function frameOf(names: number, plotHeight: number): readonly [height: number, frame: Frame] {
  const height = margin.top + plotHeight + margin.bottom + names * lineHeight + 4;
  const size = { width: width - margin.left - margin.right, height: plotHeight };
  return [height, { left: margin.left, bottom: margin.top + plotHeight, ...size }];
}

function across({ left, width: wide }: Frame, y: number, text: string): string {
  return `<path class="grid" d="M${left} ${n(y)}h${wide}"/>${words(left - 5, y + 4, text, "end")}`;
}

function colourOf(index: number): string {
  return `s${index % coloursMax}`;
}

/** Names with their colours, at the foot of a plot. */
function legend(
  names: readonly string[],
  height: number,
  colours: readonly string[] = names.map((_, at) => colourOf(at)),
): string {
  return names
    .map((name, index) => {
      const y = height - (names.length - index) * lineHeight + 8;
      return `<rect class="${colours[index] ?? ""}" x="0" y="${y - 8}" width="9" height="9" rx="2"/>${words(14, y, name)}`;
    })
    .join("");
}

function words(x: number, y: number, text: string, anchor: "start" | "middle" | "end" = "start"): string {
  return `<text x="${n(x)}" y="${n(y)}"${anchor === "start" ? "" : ` text-anchor="${anchor}"`}>${escaped(text)}</text>`;
}

function svg(title: string, height: number, body: string): string {
  return `<svg viewBox="0 0 ${width} ${n(height)}" role="img" aria-label="${escaped(title)}">${body}</svg>`;
}

/** Round values from 0 up to the first that is not below `to`. */
function niceTicks(to: number, count: number): number[] {
  const rough = Math.max(to / count, Number.MIN_VALUE);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10) * power;
  const ticks = [0];
  while ((ticks.at(-1) ?? to) < to - step * 1e-6 && ticks.length < 20) ticks.push(ticks.length * step);
  return ticks;
}

function figureOf(value: number): string {
  return Number(value.toPrecision(3)).toLocaleString("en-US");
}

function n(value: number): string {
  return String(Math.round(value * 10) / 10);
}
