/**
 * Status of the agent for people: a line about the agent, a table of its disks, and each finding
 * with its remedy.
 *
 * Invariant: the table has at most as many columns as the output; the columns that say least are
 * left out first.
 */
import type { HealthLevel, ProtectionStatus } from "../../engine/index.ts";
import type { Output } from "../output.ts";
import { formatBytes, formatCount, formatDuration, formatNumberOf, formatRate } from "../quantities.ts";
import { type Column, fittedTable, printable } from "../text.ts";
import type { DiskStatus } from "./disk-runner.ts";
import type { AgentStatus } from "./supervisor.ts";

/** What colours and widths the table has. */
export type Canvas = Pick<Output, "columns" | "paint">;

const healthColours = { Normal: "green", Warning: "yellow", Critical: "red" } as const satisfies Record<
  HealthLevel,
  string
>;

/** The agent in a line, its disks in a table, and under it each finding with its remedy. */
export function describeAgent(status: AgentStatus, canvas: Canvas): string {
  const { disks } = status;
  const table = disks.length === 0 ? [] : [describeDisks(disks, canvas)];
  return [...describeHead(status, canvas), "", ...table].join("\n").trimEnd();
}

/** A line about the agent, one for each limit that was set, and one for each failover. */
export function describeHead(status: AgentStatus, canvas: Canvas): readonly string[] {
  const { disks } = status;
  const limited = status.vaults.filter(({ limitBytesPerSecond }) => limitBytesPerSecond !== null);
  const number = formatNumberOf(disks.length, "disk");
  const health = canvas.paint(healthColours[status.health], status.health);
  const head = `agent ${status.state} for ${formatDuration(status.uptimeMs)}, ${number}, health ${health}`;
  const limits = limited.map(({ vault, limitBytesPerSecond: limit }) => {
    const what = typeof limit === "number" ? formatRate(limit, 1_000) : "no limit";
    return `vault ${printable(vault)}: ${what}, until the agent ends or \`tidemark agent limit config\``;
  });
  const runs = status.vaults.flatMap(({ failovers }) =>
    failovers.map(({ run, kind, state, direction, activeLocation, disks: names, serving }) => {
      const where = `${printable(names.join(", "))} written at ${activeLocation}`;
      const served = (serving ?? []).map(({ uri }) => `; served at ${printable(uri)}`).join("");
      return `${kind} ${run}: ${state}, ${direction}; ${where}${served}`;
    }),
  );
  return [head, ...limits, ...runs];
}

/** Columns of a table of disks. */
export function diskColumns(disks: readonly DiskStatus[], canvas: Canvas): readonly Column<DiskStatus>[] {
  const replicas: readonly Column<DiskStatus>[] = disks.every(({ replica }) => replica === null)
    ? []
    : [{ heading: "REPLICA", align: "l", dropped: 3, cell: replicaText }];
  const copies: readonly Column<DiskStatus>[] = disks.every((disk) => disk.copies.length === 0)
    ? []
    : [{ heading: "COPIED", align: "r", dropped: 3, cell: copiesText }];
  return [
    { heading: "DISK", align: "l", cell: ({ disk }) => disk },
    { heading: "STATE", align: "l", cell: ({ state }) => state },
    {
      heading: "HEALTH",
      align: "l",
      cell: ({ health }) => health,
      paint: (padded, { health }) => canvas.paint(healthColours[health], padded),
    },
    { heading: "CAPTURED", align: "r", dropped: 2, cell: ({ lag }) => formatAge(lag.capturedMs) },
    { heading: "SHIPPED", align: "r", dropped: 3, cell: ({ lag }) => formatAge(lag.shippedMs) },
    { heading: "COMMITTED", align: "r", cell: ({ lag }) => formatAge(lag.committedMs) },
    { heading: "CHURN", align: "r", dropped: 6, cell: (status) => formatRate(status.churnBytesPerSecond, 1_000) },
    { heading: "UPLOAD", align: "r", dropped: 5, cell: (status) => formatRate(status.uploadBytesPerSecond, 1_000) },
    { heading: "BACKLOG", align: "r", cell: ({ backlogBytes }) => formatBytes(backlogBytes) },
    { heading: "POINTS", align: "r", dropped: 4, cell: ({ points }) => (points === null ? "-" : formatCount(points)) },
    { heading: "PRUNED", align: "r", dropped: 1, cell: ({ lastPrune }) => formatAge(lastPrune?.ageMs ?? null) },
    ...replicas,
    ...copies,
  ];
}

function describeDisks(disks: readonly DiskStatus[], canvas: Canvas): string {
  const findings = disks.flatMap((disk) => findingLines(disk, canvas));
  const table = fittedTable(diskColumns(disks, canvas), disks, canvas.columns);
  return [table, ...(findings.length === 0 ? [] : ["", ...findings])].join("\n");
}

/** Two lines for each finding of a disk. */
export function findingLines({ disk, findings }: DiskStatus, canvas: Canvas): readonly string[] {
  return findings.flatMap(({ level, code, cause, remedy }) => {
    const label = canvas.paint(healthColours[level], level);
    return [`${printable(disk)}: ${label}: ${printable(cause)} (${code})`, `  ${printable(remedy)}`];
  });
}

function replicaText({ replica, latest }: DiskStatus): string {
  if (replica === null) return "-";
  const { state, sequence } = replica;
  if (state !== "behind" || sequence === null || latest === null) return state;
  return `${state} by ${formatNumberOf(latest.sequence - sequence, "point")}`;
}

/** How far each other vault is behind; of a copy that cannot be done, that. */
function copiesText({ copies }: DiskStatus): string {
  const texts = copies.map(({ state, lagMs }) => (state === "failed" ? state : formatAge(lagMs)));
  return texts.length === 0 ? "-" : texts.join(" ");
}

/**
 * `protecting committed 4.1 s ago written 12 MiB/s sent 3.0 MiB/s backlog 40 MiB 12 points`
 */
export function statusLine(status: ProtectionStatus): string {
  const { lag, findings, points } = status;
  const [finding] = findings;
  return [
    status.state.padEnd(10),
    lag.committedMs === null ? "no point yet" : `committed ${formatAge(lag.committedMs)} ago`,
    `written ${formatRate(status.churnBytesPerSecond, 1_000)}`,
    `sent ${formatRate(status.uploadBytesPerSecond, 1_000)}`,
    `backlog ${formatBytes(status.backlogBytes)}`,
    ...(points === null ? [] : [formatNumberOf(points, "point")]),
    ...(finding === undefined ? [] : [`${finding.level}: ${printable(finding.cause)}`]),
  ].join("  ");
}

function formatAge(ageMs: number | null): string {
  return ageMs === null ? "-" : formatDuration(ageMs);
}
