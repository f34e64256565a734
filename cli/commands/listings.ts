/** `tidemark disks list`, `tidemark points list` and `tidemark points show`. */
import { Command } from "commander";
import type { PointDetail } from "../../engine/index.ts";
import { formatBytes, formatCount } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { fields, printable, table } from "../text.ts";
import { type CommandContext, withVault } from "./context.ts";

interface DiskFlags extends VaultFlags {
  readonly disk: string;
}

interface PointFlags extends DiskFlags {
  readonly point: string;
}

export function disksCommand(context: CommandContext): Command {
  const disks = new Command("disks")
    .description("list the disks of a vault")
    .addHelpText("after", "\nExample:\n  $ tidemark disks list --vault azurite:/srv/azurite");
  withVaultOptions(disks.command("list"))
    .description("list the disks of a vault, with their newest points")
    .addHelpText(
      "after",
      `
Example:
  $ tidemark disks list --vault azurite:/srv/azurite`,
    )
    .action(async (flags: VaultFlags) => await listDisks(context, flags));
  return disks;
}

export function pointsCommand(context: CommandContext): Command {
  const points = new Command("points")
    .description("list the recovery points of a disk, or show one")
    .addHelpText("after", "\nExample:\n  $ tidemark points list --disk web --vault azurite:/srv/azurite");
  withVaultOptions(points.command("list").requiredOption("--disk <name>", "name of the disk in the vault"))
    .description("list the recovery points of a disk, oldest first")
    .addHelpText(
      "after",
      `
Example:
  $ tidemark points list --disk web --vault azurite:/srv/azurite`,
    )
    .action(async (flags: DiskFlags) => await listPoints(context, flags));
  const show = points.command("show").requiredOption("--disk <name>", "name of the disk in the vault");
  withVaultOptions(show.option("--point <point>", "sequence number, id, `latest` or an ISO time", "latest"))
    .description("show one recovery point in full")
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark points show --disk web --vault azurite:/srv/azurite
  $ tidemark points show --disk web --point 2026-05-01T12:00:00Z --vault dir:/v`,
    )
    .action(async (flags: PointFlags) => await showPoint(context, flags));
  return points;
}

async function listDisks(context: CommandContext, flags: VaultFlags): Promise<void> {
  const disks = await withVault(context, flags, async (vault) => await vault.disks());
  for (const disk of disks) context.output.item("disk", disk);
  const rows = disks.map(({ disk, points, latest }) => [
    disk,
    formatCount(points),
    latest?.time ?? "-",
    latest?.consistency ?? "-",
    latest === undefined ? "-" : formatBytes(latest.volumeBytes),
  ]);
  const text = table(["DISK", "POINTS", "NEWEST", "CONSISTENCY", "SIZE"], rows, "lrllr");
  context.output.summary("disks list", { disks: disks.length }, disks.length === 0 ? "the vault holds no disk yet" : text);
}

async function listPoints(context: CommandContext, flags: DiskFlags): Promise<void> {
  const points = await withVault(context, flags, async (vault) => await vault.points(flags.disk));
  for (const point of points) context.output.item("point", point);
  const rows = points.map(({ sequence, time, consistency, volumeBytes, changedBytes, storedBytes }) => [
    String(sequence),
    time,
    consistency,
    formatBytes(volumeBytes),
    formatBytes(changedBytes),
    formatBytes(storedBytes),
  ]);
  const text = table(["POINT", "TIME", "CONSISTENCY", "SIZE", "CHANGED", "STORED"], rows, "rllrrr");
  const empty = `disk ${printable(flags.disk)} has no point yet`;
  context.output.summary("points list", { disk: flags.disk.normalize("NFC"), points: points.length }, points.length === 0 ? empty : text);
}

async function showPoint(context: CommandContext, flags: PointFlags): Promise<void> {
  const point = await withVault(context, flags, async (vault) => await vault.point(flags.disk, flags.point));
  context.output.summary("points show", point, describe(point));
}

function describe(point: PointDetail): string {
  const entries = point.runs.reduce((sum, run) => sum + run.entries, 0);
  const mapBytes = point.runs.reduce((sum, run) => sum + run.bytes, 0);
  return [
    `point ${point.sequence} of disk ${printable(point.disk)}`,
    fields([
      ["point", point.point],
      ["parent", point.parent ?? "none"],
      ["time", point.time],
      ["consistency", point.consistency],
      ["volume", formatBytes(point.volumeBytes)],
      ["changed", `${formatBytes(point.changedBytes)}, of which ${formatBytes(point.zeroBytes)} became zero`],
      ["known", `${formatBytes(point.dedupedBytes)}, already in the vault`],
      ["new", `${formatBytes(point.newBytes)}, stored as ${formatBytes(point.storedBytes)}`],
      ["map", `${formatCount(entries)} entries in ${formatCount(point.runs.length)} runs, ${formatBytes(mapBytes)}`],
      ["written by", point.writtenBy],
    ]),
  ].join("\n");
}
