/** How disks stand, for people: a table with what is wrong below it, and one line for a terminal. */
import type { ProtectionStatus } from "../../engine/index.ts";
import { formatBytes, formatCount, formatDuration, formatNumberOf, formatRate } from "../quantities.ts";
import { printable, table } from "../text.ts";
import type { AgentStatus } from "./supervisor.ts";

/** The agent in a line, its disks in a table, and under it each finding with its remedy. */
export function describeAgent(status: AgentStatus): string {
  const { disks } = status;
  const limited = status.vaults.filter(({ limitBytesPerSecond }) => limitBytesPerSecond !== null);
  const head = `agent ${status.state} for ${formatDuration(status.uptimeMs)}, ${formatNumberOf(disks.length, "disk")}, health ${status.health}`;
  const limits = limited.map(({ vault, limitBytesPerSecond: limit }) => {
    const what = typeof limit === "number" ? formatRate(limit, 1_000) : "no limit";
    return `vault ${printable(vault)}: ${what}, until the agent ends or \`tidemark agent limit config\``;
  });
  return [head, ...limits, "", ...(disks.length === 0 ? [] : [describeDisks(disks)])].join("\n").trimEnd();
}

/** The table and the findings. */
export function describeDisks(disks: readonly ProtectionStatus[]): string {
  const heading = ["DISK", "STATE", "HEALTH", "CAPTURED", "SHIPPED", "COMMITTED", "CHURN", "UPLOAD", "BACKLOG", "POINTS", "PRUNED"];
  const rows = disks.map((status) => [
    status.disk,
    status.state,
    status.health,
    formatAge(status.lag.capturedMs),
    formatAge(status.lag.shippedMs),
    formatAge(status.lag.committedMs),
    formatRate(status.churnBytesPerSecond, 1_000),
    formatRate(status.uploadBytesPerSecond, 1_000),
    formatBytes(status.backlogBytes),
    formatCount(status.pointsCommitted),
    formatAge(status.lastPrune?.ageMs ?? null),
  ]);
  const findings = disks.flatMap(({ disk, findings: found }) =>
    found.map(({ level, code, cause, remedy }) => `${printable(disk)}: ${level}: ${printable(cause)} (${code})\n  ${printable(remedy)}`),
  );
  return [table(heading, rows, "lllrrrrrrrr"), ...(findings.length === 0 ? [] : ["", ...findings])].join("\n");
}

/** `protecting  committed 4.1 s ago  written 12 MiB/s  sent 3.0 MiB/s  backlog 40 MiB  12 points` */
export function statusLine(status: ProtectionStatus): string {
  const { lag, findings } = status;
  const [finding] = findings;
  return [
    status.state.padEnd(10),
    lag.committedMs === null ? "no point yet" : `committed ${formatAge(lag.committedMs)} ago`,
    `written ${formatRate(status.churnBytesPerSecond, 1_000)}`,
    `sent ${formatRate(status.uploadBytesPerSecond, 1_000)}`,
    `backlog ${formatBytes(status.backlogBytes)}`,
    formatNumberOf(status.pointsCommitted, "point"),
    ...(finding === undefined ? [] : [`${finding.level}: ${printable(finding.cause)}`]),
  ].join("  ");
}

function formatAge(ageMs: number | null): string {
  return ageMs === null ? "-" : formatDuration(ageMs);
}
