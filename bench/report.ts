/**
 * Benchmark report: one object, printed as JSON for programs and as a table of 80 columns for
 * people. Ratios are shown with the goals, whether these were reached or not.
 */
import type { ImageFacts } from "./image.ts";
import type { BenchKind } from "./kinds.ts";
import type { MachineFacts } from "./machine.ts";
import { figure, size, time } from "./quantities.ts";
import type { Step } from "./steps.ts";
import type { Mark } from "./targets.ts";
import type { Latency, Series, Stage } from "./trace.ts";

/** What one case gives. */
export interface CaseOutcome {
  /** Null for cases that make their own data. */
  readonly image: ImageFacts | null;
  readonly steps: readonly Step[];
  readonly marks: readonly Mark[];
  /** Plain numbers, unit last in their names. Of several runs, the last one's. */
  readonly counts: Readonly<Record<string, number>>;
  /** SHA-256 of what was worked on and of what came out, in hexadecimal. */
  readonly hashes: Readonly<Record<string, string>>;
  /**
   * The most memory that Tidemark's process had resident: that which protects the disk, where it is
   * one of its own, else this one, until Tidemark's part of the first run was over, before any
   * yardstick took some.
   */
  readonly peakRssBytes: number;
}

export interface BenchReport extends Omit<CaseOutcome, "marks"> {
  /** What happened over time; empty where nothing was watched. */
  readonly series: readonly Series[];
  /** Distributions of latencies. */
  readonly latencies: readonly Latency[];
  /** Where processor time went. */
  readonly stages: readonly Stage[];
  readonly type: "bench";
  readonly case: BenchKind;
  readonly machine: MachineFacts;
  /** Description of the store; null where none was used. */
  readonly store: string | null;
  readonly seed: number;
  readonly runs: number;
  readonly marks: readonly (Mark & { readonly met: boolean | null })[];
}

const tableColumns = 80;

/** The report for people: lines of at most 80 columns, ending with a newline. */
export function formatBench(report: BenchReport): string {
  const { machine, image } = report;
  const lines = [
    `tidemark ${machine.tidemark} bench ${report.case}, ${machine.date}`,
    `${machine.cpu}, ${machine.cores} cores, ${size(machine.memoryBytes)}, load ${machine.loadAverage}`,
    `${machine.system} ${machine.architecture}, node ${machine.node}`,
    ...(image === null
      ? []
      : [`${image.path}: ${size(image.sizeBytes)}, of which ${size(image.allocatedBytes)} allocated`]),
    ...(report.store === null ? [] : [report.store]),
    "",
    row("step", "amount", "median", "rate", "runs"),
    ...report.steps.map((step) =>
      row(`${roleSigns[step.role]} ${step.name}`, amount(step), time(step.medianMs), rate(step), `${step.runs}`),
    ),
    ...(report.steps.some(({ role }) => role === "yardstick")
      ? ["", "> Tidemark   | yardstick, measured in the same run"]
      : []),
    ...formatMarks(report),
    ...formatLatencies(report),
    "",
    ...Object.entries(report.counts).map(([name, value]) =>
      pair(name, /^bytes|Bytes$/.test(name) ? `${size(value)}  ${value}` : figure(value)),
    ),
    pair("peakRssBytes", `${size(report.peakRssBytes)}  ${report.peakRssBytes}`),
    ...Object.entries(report.hashes).map(([name, hash]) => pair(`SHA-256 of ${name}`, hash.slice(0, 32))),
  ];
  return `${lines.map((line) => clip(line, tableColumns)).join("\n")}\n`;
}

const roleSigns: Readonly<Record<Step["role"], string>> = { tidemark: ">", yardstick: "|", kernel: " " };

function row(step: string, done: string, median: string, perSecond: string, runs: string): string {
  return `${clip(step, 37).padEnd(37)}${done.padStart(11)}${median.padStart(11)}${perSecond.padStart(14)}${runs.padStart(7)}`;
}

function formatMarks({ marks }: BenchReport): string[] {
  if (marks.length === 0) return [];
  return [
    "",
    `${"mark".padEnd(42)}${"reached".padStart(14)}${"wanted".padStart(14)}`,
    ...marks.map((mark) => {
      const figures = `${quantity(mark.value, mark.unit).padStart(14)}${wanted(mark).padStart(14)}`;
      return `${clip(mark.name, 42).padEnd(42)}${figures}  ${verdict(mark.met)}`;
    }),
  ];
}

function formatLatencies({ latencies }: BenchReport): string[] {
  if (latencies.length === 0) return [];
  const shown = [50, 99, 99.9, 100];
  return [
    "",
    `${"latency".padEnd(36)}${["p50", "p99", "p99.9", "max"].map((word) => word.padStart(11)).join("")}`,
    ...latencies.map(({ name, percentiles }) => {
      const times = shown.map((wanted) => percentiles.find(([percent]) => percent === wanted)?.[1] ?? NaN);
      return `${clip(name, 36).padEnd(36)}${times.map((us) => time(us / 1_000).padStart(11)).join("")}`;
    }),
  ];
}

/** A value with its unit, as a mark has them. */
export function quantity(value: number, unit: Mark["unit"]): string {
  if (unit === "bytes") return size(value);
  return unit === "ms" ? time(value) : `${figure(value)} ${unit}`.trim();
}

/** `≥ 1.1 ×`; `-` where the mark is not judged. */
export function wanted({ wanted: value, relation, unit }: Mark): string {
  return value === null ? "-" : `${relation === "at least" ? "≥" : "≤"} ${quantity(value, unit)}`;
}

function verdict(met: boolean | null): string {
  if (met === null) return "-";
  return met ? "yes" : "NO";
}

function pair(name: string, value: string): string {
  return `${clip(name, 46).padEnd(46)}  ${value}`;
}

function clip(text: string, columns: number): string {
  return text.length <= columns ? text : `${text.slice(0, columns - 1)}…`;
}

function amount({ unit, amount: done }: Step): string {
  return unit === "bytes" ? size(done) : figure(done);
}

/**
 * Kernels are told in GB/s, as memory is; transfers in MiB/s, and what would be next to nothing of
 * that in smaller units.
 */
export function rate({ unit, role, perSecond }: Pick<Step, "unit" | "role" | "perSecond">): string {
  if (unit === "operations") {
    if (perSecond < 1e3) return `${perSecond.toFixed(1)} /s`;
    return perSecond < 1e6 ? `${(perSecond / 1e3).toFixed(1)} k/s` : `${(perSecond / 1e6).toFixed(2)} M/s`;
  }
  if (role === "kernel") return `${(perSecond / 1e9).toFixed(2)} GB/s`;
  return perSecond < 2 ** 20 ? `${size(perSecond)}/s` : `${(perSecond / 2 ** 20).toFixed(1)} MiB/s`;
}
