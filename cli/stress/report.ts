/** Report of a run of `tidemark stress`: what it holds, and how a terminal shows it. */
import { formatBytes, formatCount, formatDuration, formatNumberOf } from "../quantities.ts";
import { table } from "../text.ts";
import type { OperationStats, Percentiles, StressSample } from "./measures.ts";
import type { FaultKind } from "./schedule.ts";
import type { StoreReport } from "./store-check.ts";

export interface FaultCount {
  readonly kind: FaultKind;
  readonly planned: number;
  readonly fired: number;
}

/** From a fault to the first point of every disk whose cut came after it. */
export interface Recovery {
  readonly kind: FaultKind;
  /** Since the beginning of the load. */
  readonly atMs: number;
  /** Null: no such point came. */
  readonly tookMs: number | null;
}

/** Work beside the load: readers and upkeep. */
export interface UpkeepCount {
  readonly operation: string;
  readonly done: number;
  /** Ended by an error that a fault of the store explains. */
  readonly refused: number;
}

export interface StressReport {
  readonly verdict: "sound" | "failed" | "damaged";
  /** What was lost or is wrong; empty unless the verdict is `damaged`. */
  readonly damage: readonly string[];
  /** Why the run does not count as sound, although nothing was lost. */
  readonly failures: readonly string[];
  readonly seed: number;
  /** The command that runs the same again. */
  readonly command: string;
  /** The vault's address, without secrets. */
  readonly vault: string;
  /** Where store, images and the agent's log are kept; null when they are removed. */
  readonly folder: string | null;
  readonly disks: number;
  readonly elapsedMs: number;
  readonly writes: {
    readonly acknowledged: number;
    readonly bytes: number;
    /** Answers other than success. */
    readonly refused: number;
    /** From a write to its answer, as its client saw it. */
    readonly latency: Percentiles;
  };
  readonly points: {
    /** Listed at the end. */
    readonly listed: number;
    /** Of these, points that hold exactly the writes before one instant. */
    readonly exact: number;
    /** Of these, points that are labelled fuzzy, whose bytes alone are proved. */
    readonly fuzzy: number;
    /** Chunks that were read back and proved. */
    readonly checkedChunks: number;
  };
  readonly faults: readonly FaultCount[];
  readonly recovery: Percentiles;
  readonly recoveries: readonly Recovery[];
  readonly lag: Percentiles;
  readonly requests: readonly OperationStats[];
  readonly upkeep: readonly UpkeepCount[];
  /** Bytes of segments in the vault at the end. */
  readonly storedBytes: number;
  /** Processes of the run that were still there at the end. */
  readonly leftRunning: number;
  readonly samples: readonly StressSample[];
}

/** One line for a person who waits. */
export function progressText(sample: StressSample, seconds: number, planned: number, now: string): string {
  const { atMs, writes, writtenBytes, points, lagMs, faults } = sample;
  const parts = [
    `${formatDuration(Math.min(atMs, seconds * 1_000))} of ${formatDuration(seconds * 1_000)}`,
    `${formatCount(writes)} writes, ${formatBytes(writtenBytes)}`,
    formatNumberOf(points, "point"),
    `lag ${lagMs === null ? "-" : formatDuration(lagMs)}`,
    `faults ${faults}/${planned}${now === "" ? "" : `: ${now}`}`,
  ];
  return parts.join("  ");
}

/** The report in a terminal of 80 columns. */
export function reportText(report: StressReport): string {
  const { verdict, writes, points, recovery, lag, upkeep, requests, storedBytes } = report;
  const words = { sound: "SOUND: nothing was lost", failed: "FAILED", damaged: "DAMAGED" }[verdict];
  const facts = [
    [
      "writes",
      `${formatCount(writes.acknowledged)} acknowledged (${formatBytes(writes.bytes)}), ${writes.refused} refused`,
    ],
    ["", percentilesText(writes.latency)],
    [
      "points",
      `${points.listed} listed: ${points.exact} exact, ${points.fuzzy} fuzzy; ${formatCount(points.checkedChunks)} chunks proved`,
    ],
    ["recovery", percentilesText(recovery)],
    ["lag", percentilesText(lag)],
    ["stored", formatBytes(storedBytes)],
    [
      "beside it",
      upkeep
        .map(({ operation, done, refused }) => `${operation} ${done}${refused === 0 ? "" : `+${refused} refused`}`)
        .join(", "),
    ],
    ["left running", `${report.leftRunning} processes`],
  ].map(([name = "", fact = ""]) => `${name.padEnd(13)}${fact}`);
  const faults = report.faults.map(({ kind, planned, fired }) => {
    const times = report.recoveries.filter((one) => one.kind === kind).map(({ tookMs }) => tookMs ?? Infinity);
    const longest =
      times.length === 0 ? "-" : Math.max(...times) === Infinity ? "never" : formatDuration(Math.max(...times));
    return [kind, String(planned), String(fired), longest];
  });
  const calls = requests.map(({ operation, count, failed, p50Ms, p99Ms, maxMs }) => {
    return [operation, formatCount(count), formatCount(failed), ...[p50Ms, p99Ms, maxMs].map(latencyText)];
  });
  return [
    ...facts,
    ...(faults.length === 0 ? [] : ["", table(["FAULT", "PLANNED", "FIRED", "LONGEST RECOVERY"], faults, "lrrr")]),
    ...(calls.length === 0 ? [] : ["", table(["REQUEST", "COUNT", "FAILED", "P50", "P99", "MAX"], calls, "lrrrrr")]),
    "",
    ...[...report.damage, ...report.failures].map((line) => `  ${line}`),
    `${words} (seed ${report.seed}, ${formatDuration(report.elapsedMs)})`,
    `  again: ${report.command}`,
    ...(report.folder === null ? [] : [`  kept in ${report.folder}`]),
  ].join("\n");
}

/** The report of a store in a terminal of 80 columns. */
export function storeText({ sound, guarantees, load, faults, elapsedMs, vault }: StoreReport): string {
  const groups = [...new Set(guarantees.map(({ group }) => group))];
  const rows = groups.map((group) => {
    const checks = guarantees.filter((guarantee) => guarantee.group === group);
    const held = checks.filter(({ holds }) => holds).length;
    return [
      group === "" ? "the rest" : group,
      `${held} of ${checks.length}`,
      held === checks.length ? "holds" : "BROKEN",
    ];
  });
  const broken = guarantees.filter(({ holds }) => !holds);
  const reproductions = broken.flatMap(({ group, name, message, calls }) => [
    "",
    `BROKEN ${group}: ${name}`,
    `  ${message?.split("\n")[0] ?? ""}`,
    ...calls.map((call) => `    ${call}`),
  ]);
  const calls = load.map(({ operation, count, p50Ms, p99Ms, maxMs }) => {
    return [operation, formatCount(count), ...[p50Ms, p99Ms, maxMs].map(latencyText)];
  });
  return [
    table(["GUARANTEE", "CHECKS", ""], rows, "lrl"),
    "",
    table(["UNDER LOAD", "COUNT", "P50", "P99", "MAX"], calls, "lrrrr"),
    ...reproductions,
    ...faults.map((fault) => `BROKEN under load: ${fault}`),
    "",
    `${sound ? "SOUND" : "BROKEN"}: ${guarantees.length - broken.length} of ${guarantees.length} guarantees hold on ${vault} (${formatDuration(elapsedMs)})`,
  ].join("\n");
}

function percentilesText({ count, p50Ms, p99Ms, maxMs }: Percentiles): string {
  if (count === 0) return "-";
  return `p50 ${latencyText(p50Ms)}, p99 ${latencyText(p99Ms)}, max ${latencyText(maxMs)}`;
}

/** `4.1 ms`, `49 ms`, `11.0 s` */
export function latencyText(ms: number): string {
  return ms < 1_000 ? `${ms.toFixed(ms < 9.95 ? 1 : 0)} ms` : formatDuration(ms);
}
