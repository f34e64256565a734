/**
 * Page of a run, with plots as SVG.
 *
 * A plot is a polyline on a grid of fixed size; the browser scales it.
 */
import { escaped, figuresTable, htmlPage, htmlPlot } from "../html-page.ts";
import { formatBytes, formatCount, formatDuration } from "../quantities.ts";
import { latencyText, type StressReport } from "./report.ts";

const plot = { width: 640, height: 120, left: 70, bottom: 18 } as const;

const style = `.fault{stroke:light-dark(#b3261e,#f88);stroke-dasharray:2 3}`;

/** The report as a page. */
export function stressPage(report: StressReport): string {
  const { verdict, samples, writes, points, requests, damage, failures } = report;
  const series = (key: "lagMs" | "agentRssBytes"): Series =>
    samples.flatMap((sample) => {
      const value = sample[key];
      return value === null ? [] : [{ atMs: sample.atMs, value }];
    });
  const faults = report.recoveries.map(({ kind, atMs }) => ({ kind, atMs }));
  const rates = samples.slice(1).map((sample, index) => {
    const before = samples[index] ?? sample;
    const seconds = Math.max(1, sample.atMs - before.atMs) / 1_000;
    return { atMs: sample.atMs, value: (sample.writtenBytes - before.writtenBytes) / seconds };
  });
  const body = [
    `<h1 class="${verdict}">tidemark stress: ${verdict}</h1>`,
    `<p>${formatCount(writes.acknowledged)} writes acknowledged (${formatBytes(writes.bytes)}), ${writes.refused} refused; ` +
      `${points.listed} points listed, ${points.exact} exact, ${points.fuzzy} fuzzy; ${formatDuration(report.elapsedMs)}.</p>`,
    `<p>Vault: ${escaped(report.vault)}. Again: <code>${escaped(report.command)}</code></p>`,
    list([...damage, ...failures]),
    "<p>In the plots a dashed line is a fault; its kind is shown where the pointer rests on it.</p>",
    "<h2>Age of the newest point of the disk that is furthest behind</h2>",
    plotOf(series("lagMs"), faults, formatDuration),
    "<h2>Written a second</h2>",
    plotOf(rates, faults, (value) => `${formatBytes(value)}/s`),
    "<h2>Memory of the agent</h2>",
    plotOf(series("agentRssBytes"), faults, formatBytes),
    "<h2>Faults</h2>",
    figuresTable(
      ["fault", "planned", "fired", "recovered after"],
      report.faults.map(({ kind, planned, fired }) => [kind, planned, fired, recoveriesOf(report, kind)]),
    ),
    "<h2>Requests to the store</h2>",
    figuresTable(
      ["operation", "count", "failed", "p50", "p99", "max", "sent", "received"],
      requests.map((one) => [
        one.operation,
        formatCount(one.count),
        one.failed,
        ...[one.p50Ms, one.p99Ms, one.maxMs].map(latencyText),
        formatBytes(one.sentBytes),
        formatBytes(one.receivedBytes),
      ]),
    ),
    "<h2>Beside the load</h2>",
    figuresTable(
      ["operation", "done", "refused"],
      report.upkeep.map(({ operation, done, refused }) => [operation, done, refused]),
    ),
  ];
  return htmlPage(`tidemark stress: ${verdict}`, body.join("\n"), style);
}

type Series = readonly { readonly atMs: number; readonly value: number }[];

/** A line over time, with a dashed line at each fault. */
function plotOf(
  series: Series,
  faults: readonly { readonly kind: string; readonly atMs: number }[],
  format: (value: number) => string,
): string {
  if (series.length < 2) return "<p>no samples</p>";
  const endMs = Math.max(...series.map(({ atMs }) => atMs), ...faults.map(({ atMs }) => atMs));
  const top = Math.max(...series.map(({ value }) => value), 1);
  const x = (atMs: number): string => (plot.left + (atMs / endMs) * (plot.width - plot.left)).toFixed(1);
  const y = (value: number): string => ((1 - value / top) * (plot.height - plot.bottom - 6) + 6).toFixed(1);
  const grid = [0, 0.5, 1].map((share) => {
    const at = y(top * share);
    return `<line class="grid" x1="${plot.left}" x2="${plot.width}" y1="${at}" y2="${at}"/><text x="0" y="${at}" dy="4">${format(top * share)}</text>`;
  });
  const marks = faults.map(
    ({ kind, atMs }) =>
      `<line class="fault" x1="${x(atMs)}" x2="${x(atMs)}" y1="0" y2="${plot.height - plot.bottom}"><title>${kind} at ${formatDuration(atMs)}</title></line>`,
  );
  const line = `<polyline class="line" points="${series.map(({ atMs, value }) => `${x(atMs)},${y(value)}`).join(" ")}"/>`;
  const textY = plot.height - 2;
  const times =
    `<text x="${plot.left}" y="${textY}">0 s</text>` +
    `<text x="${plot.width}" y="${textY}" text-anchor="end">${formatDuration(endMs)}</text>`;
  const label = `over ${formatDuration(endMs)}, at most ${format(top)}`;
  return htmlPlot(plot.width, plot.height, label, [...grid, ...marks, line, times].join(""));
}

function recoveriesOf({ recoveries }: StressReport, kind: string): string {
  const times = recoveries.filter((one) => one.kind === kind);
  return times.map(({ tookMs }) => (tookMs === null ? "never" : formatDuration(tookMs))).join(", ");
}

function list(items: readonly string[]): string {
  return items.length === 0 ? "" : `<ul>${items.map((item) => `<li>${escaped(item)}</li>`).join("")}</ul>`;
}
