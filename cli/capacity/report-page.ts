/** Capacity plan as a page, with plots as SVG. */
import { tidemarkVersion } from "../../engine/index.ts";
import { escaped, figuresTable, htmlPage, htmlPlot } from "../html-page.ts";
import { formatBytes, formatCount, formatNumberOf } from "../quantities.ts";
import { type CapacityPlan, type PlannedLine } from "./plan.ts";
import {
  caveatsOf,
  costText,
  firstText,
  formatLine,
  formatShare,
  formatSpan,
  limitText,
  limitValue,
  roomText,
} from "./report-text.ts";

const style = `:root{--a:light-dark(#0b63ce,#6cb0ff);--b:light-dark(#b3400a,#ff9d66);--c:light-dark(#1a7f37,#58c878);
--d:light-dark(#8250df,#c39bff)}.mark{stroke-dasharray:5 4}`;

/** The page. `time` shows times that are in ISO 8601. */
export function capacityPage(plan: CapacityPlan, time: (iso: string) => string): string {
  const { series, lines, objectives, windows, storage } = plan;
  const colours = ["var(--a)", "var(--b)", "var(--c)", "var(--d)"];
  const colour = (index: number): string => colours[index % colours.length] ?? "var(--a)";
  const shipped = plotOf({
    title: "Shipped over time",
    x: { label: "hours since the profile began", logarithmic: false },
    y: "Mbit/s",
    curves: [
      {
        name: `in ${formatSpan(series.spanMs)}`,
        colour: colour(0),
        points: series.shippedBytesPerSecond.map((rate, index) => [
          ((index + 0.5) * series.spanMs) / 3.6e6,
          megabits(rate),
        ]),
      },
    ],
    marks: objectives.map(({ rpoMs, needed }, index) => ({
      name: `line for RPO ${formatSpan(rpoMs)}`,
      colour: colour(index + 1),
      value: megabits(needed.always),
    })),
  });
  const changed = plotOf({
    title: "Changed in a span of time, each granule once",
    x: { label: "minutes", logarithmic: true },
    y: "MiB",
    curves: (
      [
        ["mean", "meanBytes"],
        ["95 % below", "highBytes"],
        ["most", "maxBytes"],
      ] as const
    ).map(([name, field], index) => ({
      name,
      colour: colour(index),
      points: windows.map((window) => [window.spanMs / 60_000, window[field] / 1024 ** 2]),
    })),
    marks: [],
  });
  const storedPlot = plotOf({
    title: "Stored by retention",
    x: { label: "days", logarithmic: false },
    y: "GiB",
    curves: storage.map(({ retention, days }, index) => ({
      name: retention,
      colour: colour(index),
      points: days.map(({ day, storedBytes }) => [day, storedBytes / 1024 ** 3]),
    })),
    marks: [],
  });
  const body = `<h1>Capacity plan</h1>
<p>${escaped(introduction(plan, time))}</p>
<h2>Line for an objective</h2>
${figuresTable(
  ["RPO", "A point every", "Always", "95 % of the time", "90 % of the time"],
  objectives.map(({ rpoMs, cycleMs, needed }) => [
    formatSpan(rpoMs),
    formatSpan(cycleMs),
    formatLine(needed.always),
    formatLine(needed.most),
    formatLine(needed.often),
  ]),
)}
${shipped}
<h2>What a line reaches</h2>
${figuresTable(
  [
    "Line",
    "RPO always",
    "95 %",
    "90 %",
    ...objectives.map(({ rpoMs }) => `Met ${formatSpan(rpoMs)}`),
    "First replication",
  ],
  lines.map((line) => [
    formatLine(line.bytesPerSecond),
    formatSpan(line.rpoMs.always),
    formatSpan(line.rpoMs.most),
    formatSpan(line.rpoMs.often),
    ...line.met.map(({ share }) => formatShare(share)),
    firstText(line.first),
  ]),
)}
${batchesOf(lines)}
${limitsOf(plan)}
<h2>What is stored</h2>
${figuresTable(
  ["Retention", "Points", "After 30 days", "Write requests", "Read requests", "Cost of 30 days"],
  storage.map((stored) => [
    stored.retention,
    formatCount(stored.points),
    formatBytes(stored.storedBytes),
    formatCount(stored.writeRequests),
    formatCount(stored.readRequests),
    costText(stored),
  ]),
)}
${storedPlot}
<h2>Disks</h2>
${figuresTable(
  ["Disk", "Source", "Size", "Data", "First replication", "Written", "Changed", "Stored"],
  plan.disks.map((disk) => [
    disk.disk,
    disk.source,
    formatBytes(disk.sizeBytes),
    formatBytes(disk.dataBytes),
    formatBytes(disk.firstStoredBytes),
    disk.writtenBytesPerSecond === null ? "-" : `${formatBytes(disk.writtenBytesPerSecond)}/s`,
    `${formatBytes(disk.changedBytesPerSecond)}/s`,
    `${(disk.storedShare * 100).toFixed(0)} %`,
  ]),
)}
${changed}
<p>${caveatsOf(plan).map(escaped).join(" ")}</p>`;
  return htmlPage("Capacity plan", body, style);
}

/** Empty where nothing is needed of any limit. */
function limitsOf({ limits }: CapacityPlan): string {
  const needed = limits.filter(({ headroom }) => headroom !== null);
  if (needed.length === 0) return "";
  const rows = needed.map((limit) => [
    limitText(limit),
    limitValue(limit, limit.capacity),
    limitValue(limit, limit.peak),
    roomText(limit),
  ]);
  return `<h2>What binds first</h2>\n${figuresTable(["Limit", "Allows", "Needed at most", "Room"], rows)}`;
}

function introduction({ disks, coveredMs, from, to, growth }: CapacityPlan, time: (iso: string) => string): string {
  const more = growth === 0 ? "" : `, with ${(growth * 100).toFixed(0)} % growth`;
  const seen = `${formatSpan(coveredMs)} seen from ${time(from)} to ${time(to)}`;
  return `${formatNumberOf(disks.length, "disk")}, ${seen}${more}. Tidemark ${tidemarkVersion}.`;
}

function batchesOf(lines: readonly PlannedLine[]): string {
  const several = lines.filter(({ first }) => first !== null && (first.batches.length > 1 || !first.inGoal));
  if (several.length === 0) return "";
  return figuresTable(
    ["Line", "Batch", "Disks", "Takes"],
    several.flatMap(({ bytesPerSecond, first }) =>
      (first?.batches ?? []).map(({ disks, ms }, index) => [
        formatLine(bytesPerSecond),
        String(index + 1),
        disks.join(", "),
        formatSpan(ms),
      ]),
    ),
  );
}

interface Plot {
  readonly title: string;
  readonly x: { readonly label: string; readonly logarithmic: boolean };
  /** What the values count. */
  readonly y: string;
  readonly curves: readonly {
    readonly name: string;
    readonly colour: string;
    readonly points: readonly (readonly [x: number, y: number])[];
  }[];
  /** Horizontal lines. */
  readonly marks: readonly { readonly name: string; readonly colour: string; readonly value: number }[];
}

const [width, height, left, right, top, bottom] = [900, 280, 56, 16, 24, 40];

function plotOf({ title, x, y, curves, marks }: Plot): string {
  const xs = curves.flatMap(({ points }) => points.map(([at]) => at));
  const ys = [...curves.flatMap(({ points }) => points.map(([, value]) => value)), ...marks.map(({ value }) => value)];
  if (xs.length === 0) return "";
  const place = x.logarithmic ? Math.log : (value: number): number => value;
  const [first, last] = [place(Math.min(...xs)), place(Math.max(...xs))];
  const yStep = stepOf(Math.max(...ys, Number.MIN_VALUE));
  const yMax = Math.max(Math.ceil(Math.max(...ys) / yStep), 1) * yStep;
  const toX = (value: number): number =>
    round(left + ((place(value) - first) / Math.max(last - first, Number.EPSILON)) * (width - left - right));
  const toY = (value: number): number => round(top + (1 - value / yMax) * (height - top - bottom));
  const ruleAt = (value: number, names: string): string =>
    `<line ${names} x1="${left}" x2="${width - right}" y1="${toY(value)}" y2="${toY(value)}"/>`;
  const textAt = (x: number, y: number, anchor: string, content: string): string =>
    `<text x="${x}" y="${y}" text-anchor="${anchor}">${content}</text>`;
  const rules = Array.from({ length: Math.round(yMax / yStep) + 1 }, (_, index) => index * yStep).map(
    (value) => ruleAt(value, 'class="grid"') + textAt(left - 8, toY(value) + 4, "end", compact(value)),
  );
  const xStep = stepOf(last - first);
  const ticks = x.logarithmic
    ? [...new Set(xs)]
    : Array.from(
        { length: Math.floor((last - Math.ceil(first / xStep) * xStep) / xStep) + 1 },
        (_, index) => (Math.ceil(first / xStep) + index) * xStep,
      );
  const labels = ticks.map((value) => textAt(toX(value), height - 20, "middle", compact(value)));
  const legend = [...curves, ...marks].map(({ name, colour }, index) => {
    const gap = index === 0 ? "" : 'dx="16"';
    return `<tspan ${gap} style="fill:${colour}">${index < curves.length ? "━" : "╌"} ${escaped(name)}</tspan>`;
  });
  const lines = curves.map(({ colour, points }) => {
    const places = points.map(([at, value]) => `${toX(at)},${toY(value)}`).join(" ");
    return `<polyline class="line" style="stroke:${colour}" points="${places}"/>`;
  });
  const parts = [
    ...rules,
    ...labels,
    textAt(left, 14, "start", y),
    textAt(width - right, height - 4, "end", x.label),
    textAt(width - right, 14, "end", legend.join("")),
    ...lines,
    ...marks.map(({ colour, value }) => ruleAt(value, `class="line mark" style="stroke:${colour}"`)),
  ];
  return htmlPlot(width, height, title, parts.join(""));
}

/** 1, 2 or 5 times a power of ten, so that about four to eight steps make `range`. */
function stepOf(range: number): number {
  if (!(range > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(range / 4));
  const lead = range / 4 / power;
  return (lead >= 5 ? 5 : lead >= 2 ? 2 : 1) * power;
}

function megabits(bytesPerSecond: number): number {
  return (bytesPerSecond * 8) / 1e6;
}

function compact(value: number): string {
  return Number(value.toPrecision(3)).toLocaleString("en-US", { maximumFractionDigits: 3 });
}

function round(value: number): number {
  return Math.round(value * 10) / 10;
}
