/** Capacity plan as tables for people, in the columns of the output. */
import { formatBytes, formatCount, formatDuration, formatNumberOf } from "../quantities.ts";
import { type Column, fittedTable } from "../text.ts";
import type { PlanLimit } from "./limits.ts";
import type { CapacityPlan, PlannedDisk, PlannedLine, PlannedStorage } from "./plan.ts";

/** `850 kbit/s`, `100 Mbit/s`, `1.2 Gbit/s`: lines are sold in decimal bits. */
export function formatLine(bytesPerSecond: number): string {
  const bits = bytesPerSecond * 8;
  const [unit, value] =
    bits >= 1e9 ? ["Gbit/s", bits / 1e9] : bits >= 1e6 ? ["Mbit/s", bits / 1e6] : ["kbit/s", bits / 1e3];
  return `${value.toFixed(value < 9.95 ? 1 : 0).replace(/\.0$/, "")} ${unit}`;
}

/** `97.3 %`; never 100 % for less than all. */
export function formatShare(share: number): string {
  const percent = Math.floor(share * 1_000) / 10;
  return `${share >= 1 ? "100" : percent.toFixed(1)} %`;
}

/** Whole seconds below a minute. */
export function formatSpan(ms: number): string {
  return ms < 59_500 ? `${Math.ceil(ms / 1_000)} s` : formatDuration(ms).replace(/ 00 (s|min)$/, "");
}

const limitNames: Readonly<Record<PlanLimit["limit"], string>> = {
  line: "line",
  "page-blob-bytes": "5 page blobs, bytes",
  "page-blob-requests": "5 page blobs, requests",
  "account-bytes": "storage account, bytes",
  "account-requests": "storage account, requests",
  core: "one core",
  "nbd-writes": "NBD server, writes",
};

/** Name of a limit for people. */
export function limitText({ limit, capacity }: PlanLimit): string {
  return limit === "line" ? `line ${formatLine(capacity)}` : limitNames[limit];
}

/** `12 MiB/s`, `40 requests/s` */
export function limitValue({ unit }: PlanLimit, value: number): string {
  return unit === "bytes/s" ? `${formatBytes(Math.round(value))}/s` : `${formatCount(Math.ceil(value))} ${unit}`;
}

/** What the profile knows exactly, and what it takes from above or estimates. One sentence each. */
export function caveatsOf({ disks, gapMs, slotMs }: CapacityPlan): readonly string[] {
  const has = (source: PlannedDisk["source"]): boolean => disks.some((disk) => disk.source === source);
  const least = Math.min(...disks.map(({ share }) => share ?? 1));
  const busiest = Math.max(...disks.map(({ readTimeShare }) => readTimeShare ?? 0));
  return [
    ...(has("diskstats")
      ? ["Of diskstats only the amount of writes is known: every figure is an upper bound, without compression."]
      : []),
    ...(has("agent")
      ? ["Of an agent, what its own cycles ship is exact; longer cycles ship at most what is shown."]
      : []),
    ...(least < 1 ? [`Changes are estimated from ${formatShare(least)} of the disk's blocks.`] : []),
    ...(busiest > 0.01 ? [`The profiler read the disk for ${formatShare(busiest)} of the time.`] : []),
    ...(gapMs > 0 ? [`Nothing was seen for ${formatSpan(gapMs)}, which is left out.`] : []),
    `An RPO below ${formatSpan(2 * slotMs)} cannot be told from samples of ${formatSpan(slotMs)}.`,
  ];
}

/** The whole report. */
export function describePlan(plan: CapacityPlan, columns: number, time: (iso: string) => string): string {
  const growth = plan.growth === 0 ? "" : `, with ${(plan.growth * 100).toFixed(0)} % growth`;
  const parts = [
    `${formatNumberOf(plan.disks.length, "disk")}, ${formatSpan(plan.coveredMs)} seen until ${time(plan.to)}${growth}`,
    disksTable(plan, columns),
    windowsTable(plan, columns),
    objectivesTable(plan, columns),
    linesTable(plan, columns),
    limitsTable(plan, columns),
    storageTable(plan, columns),
    caveatsOf(plan).join("\n"),
  ];
  return parts.filter((part) => part !== "").join("\n\n");
}

function windowsTable({ windows }: CapacityPlan, columns: number): string {
  return tableOf(
    [
      ["CHANGED IN", "l", ({ spanMs }) => formatSpan(spanMs)],
      ["MEAN", "r", ({ meanBytes }) => formatBytes(meanBytes)],
      ["95 % BELOW", "r", ({ highBytes }) => formatBytes(highBytes)],
      ["MOST", "r", ({ maxBytes }) => formatBytes(maxBytes)],
      ["TIMES SEEN", "r", ({ windows: count }) => formatCount(count)],
    ],
    windows,
    columns,
  );
}

function objectivesTable({ objectives }: CapacityPlan, columns: number): string {
  return tableOf(
    [
      ["RPO", "l", ({ rpoMs }) => formatSpan(rpoMs)],
      ["A POINT EVERY", "r", ({ cycleMs }) => formatSpan(cycleMs)],
      ["LINE FOR ALWAYS", "r", ({ needed }) => formatLine(needed.always)],
      ["95 % OF TIME", "r", ({ needed }) => formatLine(needed.most)],
      ["90 % OF TIME", "r", ({ needed }) => formatLine(needed.often)],
    ],
    objectives,
    columns,
  );
}

function limitsTable({ limits }: CapacityPlan, columns: number): string {
  const needed = limits.filter(({ headroom }) => headroom !== null);
  const [first] = needed;
  if (first === undefined) return "";
  const rows = tableOf(
    [
      ["LIMIT", "l", limitText],
      ["ALLOWS", "r", (limit) => limitValue(limit, limit.capacity)],
      ["NEEDED AT MOST", "r", (limit) => limitValue(limit, limit.peak)],
      ["ROOM", "r", roomText],
    ],
    needed,
    columns,
  );
  return `${rows}\n${limitText(first)} binds first${(first.headroom ?? 0) < 1 ? ", and is too little" : ""}`;
}

/** `0.16 ×`, `1.6 ×`, `25 ×`, `over 99 ×` */
export function roomText({ headroom }: PlanLimit): string {
  if (headroom === null) return "-";
  return headroom > 99 ? "over 99 ×" : `${headroom.toFixed(headroom < 1 ? 2 : headroom < 9.95 ? 1 : 0)} ×`;
}

function storageTable({ storage }: CapacityPlan, columns: number): string {
  return tableOf(
    [
      ["RETENTION", "l", ({ retention }) => retention],
      ["POINTS", "r", ({ points }) => formatCount(points)],
      ["STORED AFTER 30 DAYS", "r", ({ storedBytes }) => formatBytes(storedBytes)],
      ["REQUESTS", "r", ({ writeRequests, readRequests }) => formatCount(writeRequests + readRequests)],
      ["COST", "r", costText],
    ],
    storage,
    columns,
  );
}

/** `12.40 USD`, or `-` without prices. */
export function costText({ cost }: PlannedStorage): string {
  return cost === null ? "-" : `${cost.total.toFixed(2)} ${cost.currency}`;
}

function disksTable({ disks }: CapacityPlan, columns: number): string {
  return fittedTable<PlannedDisk>(
    [
      { heading: "DISK", align: "l", cell: ({ disk }) => disk },
      { heading: "SOURCE", align: "l", cell: ({ source }) => source, dropped: 2 },
      { heading: "SIZE", align: "r", cell: ({ sizeBytes }) => formatBytes(sizeBytes) },
      { heading: "DATA", align: "r", cell: ({ dataBytes }) => formatBytes(dataBytes), dropped: 3 },
      { heading: "FIRST", align: "r", cell: ({ firstStoredBytes }) => formatBytes(firstStoredBytes) },
      {
        heading: "WRITTEN",
        align: "r",
        cell: ({ writtenBytesPerSecond: rate }) => (rate === null ? "-" : `${formatBytes(rate)}/s`),
      },
      {
        heading: "A WRITE",
        align: "r",
        cell: ({ writeBytes }) => (writeBytes === null ? "-" : formatBytes(writeBytes)),
        dropped: 1,
      },
      { heading: "CHANGED", align: "r", cell: ({ changedBytesPerSecond: rate }) => `${formatBytes(rate)}/s` },
      { heading: "STORED", align: "r", cell: ({ storedShare }) => `${(storedShare * 100).toFixed(0)} %` },
    ],
    disks,
    columns,
  );
}

function linesTable({ lines, objectives }: CapacityPlan, columns: number): string {
  return tableOf<PlannedLine>(
    [
      ["LINE", "l", ({ bytesPerSecond }) => formatLine(bytesPerSecond)],
      ["RPO ALWAYS", "r", ({ rpoMs }) => formatSpan(rpoMs.always)],
      ["95 %", "r", ({ rpoMs }) => formatSpan(rpoMs.most)],
      ["90 %", "r", ({ rpoMs }) => formatSpan(rpoMs.often)],
      ...objectives.map(
        ({ rpoMs }, index) =>
          [`MET ${formatSpan(rpoMs)}`, "r", ({ met }: PlannedLine) => formatShare(met[index]?.share ?? 0)] as const,
      ),
      ["FIRST COPY", "r", ({ first }) => firstText(first)],
    ],
    lines,
    columns,
  );
}

/** `3 h 20 min`, `80 h 00 min in 2 batches`; `never` where the line cannot keep up. */
export function firstText(first: PlannedLine["first"]): string {
  if (first === null) return "never";
  return `${formatSpan(first.ms)}${first.batches.length > 1 ? `, ${first.batches.length} batches` : ""}`;
}

function tableOf<Row>(
  columns: readonly (readonly [heading: string, align: "l" | "r", cell: (row: Row) => string])[],
  rows: readonly Row[],
  width: number,
): string {
  if (rows.length === 0) return "";
  const made = columns.map(([heading, align, cell]): Column<Row> => ({ heading, align, cell }));
  return fittedTable(made, rows, width);
}
