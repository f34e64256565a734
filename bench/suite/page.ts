/**
 * Page of a suite: the report as one HTML file. It loads nothing and runs nothing, follows the
 * reader's choice of light or dark, and can be printed.
 */
import { figure, size, time } from "../quantities.ts";
import { quantity, rate, wanted } from "../report.ts";
import type { Latency, Series } from "../trace.ts";
import { pageStyle } from "./style.ts";
import {
  hasFailed,
  marksOfSuite,
  type StepChange,
  type SuiteCase,
  type SuiteMark,
  type SuiteReport,
  type SuiteStep,
} from "./suite-report.ts";
import { bars, coloursMax, escaped, flame, lines, microseconds, percentileCurves } from "./svg.ts";

export function pageOf(report: SuiteReport): string {
  const title = `tidemark ${report.machine.tidemark}, bench suite, ${report.machine.date.slice(0, 10)}`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="color-scheme" content="light dark">
<title>${escaped(title)}</title>
<style>${pageStyle}</style>
</head>
<body>
<main>
${head(report)}
${marks(report)}
${changes(report)}
${report.cases.map(caseSection).join("\n")}
</main>
</body>
</html>
`;
}

function head(report: SuiteReport): string {
  const { machine, mode, commit, store, elapsedMs, seed } = report;
  const all = marksOfSuite(report);
  const [met, missed] = [true, false].map((wantedMet) => all.filter((mark) => mark.met === wantedMet).length);
  const missing = report.cases.filter((each) => each.missing !== null);
  const busy = report.cases.filter(({ disturbances }) => disturbances.length > 0);
  const left = report.planned - report.cases.length;
  const facts: readonly (readonly [string, string])[] = [
    ["machine", `${machine.cpu}, ${machine.cores} cores, ${size(machine.memoryBytes)}`],
    ["system", `${machine.system} ${machine.architecture}`],
    ["versions", `tidemark ${machine.tidemark}, Node ${machine.node}, V8 ${machine.v8}`],
    ["commit", commit ?? "installed package"],
    ["store", store],
    ["when", `${machine.date}, ${time(elapsedMs)}, load ${machine.loadAverage} before`],
    ["mode", `${mode}, seed ${seed}`],
  ];
  return `<header>
<h1>Tidemark benchmarks</h1>
<p class="verdict ${hasFailed(report) ? "no" : "yes"}">${met} ${met === 1 ? "mark" : "marks"} reached, ${missed} missed${
    all.length === (met ?? 0) + (missed ?? 0) ? "" : `, ${all.length - (met ?? 0) - (missed ?? 0)} not judged`
  }</p>
${left === 0 ? "" : `<p class="note"><b class="no">Ended early:</b> ${left} of ${report.planned} cases were not run.</p>`}
${
  busy.length === 0
    ? ""
    : `<p class="note">The machine was busy during ${busy.map((each) => caseLink(each.case)).join(", ")}. Repeat these on a quiet machine.</p>`
}
${missing.map((each) => `<p class="note">${caseLink(each.case)} has no figures. ${escaped(each.missing ?? "")}</p>`).join("")}
<dl>${facts.map(([name, value]) => `<dt>${name}</dt><dd>${escaped(value)}</dd>`).join("")}</dl>
</header>`;
}

function caseLink(kind: string): string {
  return `<a href="#${kind}">${kind}</a>`;
}

function marks(report: SuiteReport): string {
  const rows = marksOfSuite(report).map((mark) => [caseLink(mark.case), ...markCells(mark)]);
  return `<section><h2>Marks</h2>${table(["case", ...markColumns], rows)}${
    report.mode === "quick"
      ? "<p class=note>A quick suite has small disks. Marks without a wanted value hold for full sizes only.</p>"
      : ""
  }</section>`;
}

const markColumns = ["verdict", "mark", "reached", "95 % interval", "wanted", "yardstick"] as const;

function markCells(mark: SuiteMark): string[] {
  const { name, value, low, high, unit, yardstick, met } = mark;
  const style = met === null ? "" : met ? "yes" : "no";
  return [
    `<b class="${style}">${met === null ? "not judged" : met ? "✓ reached" : "✗ missed"}</b>`,
    escaped(name),
    quantity(value, unit),
    low === high ? "" : `${quantity(low, unit)} to ${quantity(high, unit)}`,
    wanted(mark),
    escaped(yardstick),
  ];
}

function changes({ changes: all, baseline, machine }: SuiteReport): string {
  if (baseline === null) return "";
  const other = baseline.machine.cpu === machine.cpu ? "" : " It ran on another machine.";
  const percent = (ratio: number): string => `${ratio >= 1 ? "+" : "−"}${(Math.abs(ratio - 1) * 100).toFixed(0)} %`;
  const rows = [...all]
    .sort((a, b) => Number(a.verdict === "unclear") - Number(b.verdict === "unclear"))
    .map((change: StepChange) => {
      const { ratio, p, verdict: said } = change;
      const style = said === "faster" ? "yes" : said === "slower" ? "no" : "";
      return [
        caseLink(change.case),
        escaped(change.step),
        percent(ratio.median),
        `${percent(ratio.low)} to ${percent(ratio.high)}`,
        p.toFixed(3),
        `<b class="${style}">${said}</b>`,
      ];
    });
  const from = `${baseline.machine.date.slice(0, 10)}, ${baseline.commit ?? `tidemark ${baseline.machine.tidemark}`}`;
  return `<section><h2>Since the baseline</h2><p class="note">Rates beside those of ${escaped(from)}.${other}
A difference counts when the permutation test gives p &lt; 0.05, for which both need four repetitions.</p>${table(
    ["case", "step", "rate", "95 % interval", "p", "verdict"],
    rows,
  )}</section>`;
}

function caseSection(each: SuiteCase): string {
  const { case: kind, missing, steps, latencies, series, stages, counts, disturbances, repetitions, stable } = each;
  if (missing !== null)
    return `<section id="${kind}"><h2>${kind}</h2><p class="note">${escaped(missing)}</p></section>`;
  const plots = [
    ...["bytes", "operations"].flatMap((unit) => {
      const shown = steps.filter((step) => step.unit === unit);
      return shown.length === 0
        ? []
        : [plot("Rates; grey: yardsticks; a dot: one repetition", bars(`rates of ${kind}`, shown.map(barOf)))];
    }),
    ...(stages.length === 0 ? [] : [plot("Processor time by stage", flame(`processor time of ${kind}`, stages))]),
    ...seriesGroups(series).map(([name, group]) =>
      plot(
        name,
        lines(
          `${name}, ${kind}`,
          group,
          formats[group[0]?.unit ?? "ms"],
          /^bytes/.test(group[0]?.unit ?? "") ? 1_024 : 1_000,
        ),
      ),
    ),
    ...latencyGroups(latencies).map(([name, group]) => plot(name, percentileCurves(`${name}, ${kind}`, group))),
  ];
  const runs = `${repetitions} ${repetitions === 1 ? "repetition" : "repetitions"}${stable ? ", stable" : ", not yet stable"}`;
  const busy =
    disturbances.length === 0
      ? ""
      : `<p class="note"><b class="no">Busy machine:</b> ${escaped(disturbances.join("; "))}.</p>`;
  return `<section id="${kind}"><h2>${kind} <small>${runs}, ${time(each.elapsedMs)}</small></h2>${busy}
${each.marks.length === 0 ? "" : table(markColumns, each.marks.map(markCells))}
<div class="plots">${plots.join("")}</div>
<details><summary>Figures</summary>${stepTable(steps)}${latencyTable(latencies)}${table(
    ["count", "value"],
    [...Object.entries(counts), ["peakRssBytes", each.peakRssBytes] as const].map(([name, value]) => [
      escaped(name),
      /^bytes|Bytes$/.test(name) ? size(value) : figure(value),
    ]),
  )}</details></section>`;
}

function plot(title: string, drawing: string): string {
  return `<figure><figcaption>${escaped(title)}</figcaption>${drawing}</figure>`;
}

function barOf(step: SuiteStep): Parameters<typeof bars>[1][number] {
  const { name, role, samples, perSecond } = step;
  const { median, low, high } = perSecond;
  const text = `${rate({ ...step, perSecond: median })}, ${time(step.medianMs)}`;
  return { label: name, text, value: median, low, high, samples, isYardstick: role === "yardstick" };
}

function stepTable(steps: readonly SuiteStep[]): string {
  const rows = steps.map((step) => {
    const { name, role, unit, amount, perSecond, samples, medianMs } = step;
    const shown = (value: number): string => rate({ ...step, perSecond: value });
    return [
      escaped(name),
      role,
      unit === "bytes" ? size(amount) : figure(amount),
      time(medianMs),
      shown(perSecond.median),
      samples.length === 1 ? "" : `${shown(perSecond.low)} to ${shown(perSecond.high)}`,
      String(samples.length),
    ];
  });
  return table(["step", "role", "amount", "median", "rate", "95 % interval", "runs"], rows);
}

function latencyTable(latencies: readonly Latency[]): string {
  const [first] = latencies;
  if (first === undefined) return "";
  const percents = first.percentiles.map(([percent]) => (percent === 100 ? "max" : `p${percent}`));
  return table(
    ["latency", "count", ...percents],
    latencies.map(({ name, count, percentiles }) => [
      escaped(name),
      figure(count),
      ...percentiles.map(([, us]) => microseconds(us)),
    ]),
  );
}

const formats: Readonly<Record<Series["unit"], (value: number) => string>> = {
  bytes: size,
  "bytes/s": (value) => `${size(value)}/s`,
  ms: (value) => microseconds(value * 1_000),
  "/s": (value) => figure(Math.round(value)),
  cores: (value) => value.toFixed(1),
};

const unitTitles: Readonly<Record<Series["unit"], string>> = {
  bytes: "Memory and backlog",
  "bytes/s": "Throughput over time",
  ms: "Lag over time",
  "/s": "Requests a second",
  cores: "Processor time by thread, in cores",
};

/** Series of one unit share a plot. */
function seriesGroups(series: readonly Series[]): (readonly [title: string, group: readonly Series[]])[] {
  const drawn = series.filter(({ points }) => points.length > 1);
  const units = [...new Set(drawn.map(({ unit }) => unit))];
  return units.map((unit) => [unitTitles[unit], drawn.filter((each) => each.unit === unit).slice(0, coloursMax)]);
}

/** Latencies whose names begin alike (`randread 4k: idle`) share a plot, the others another. */
function latencyGroups(latencies: readonly Latency[]): (readonly [title: string, group: readonly Latency[]])[] {
  const groups = new Map<string, Latency[]>();
  for (const latency of latencies) {
    const name = latency.name.includes(": ") ? (latency.name.split(": ")[0] ?? "") : "requests";
    groups.set(name, [...(groups.get(name) ?? []), latency]);
  }
  return Array.from(groups, ([name, group]) => [`Latency by percentile, ${name}`, group.slice(0, coloursMax)] as const);
}

function table(columns: readonly string[], rows: readonly (readonly string[])[]): string {
  const line = (tag: string, cells: readonly string[]): string =>
    `<tr>${cells.map((cell) => `<${tag}>${cell}</${tag}>`).join("")}</tr>`;
  return `<div class="wide" tabindex="0"><table><thead>${line("th", columns)}</thead><tbody>${rows
    .map((row) => line("td", row))
    .join("")}</tbody></table></div>`;
}
