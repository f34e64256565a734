/**
 * `tidemark disks remove`: removes a disk with all its points, or tells what would go.
 */
import type { Command } from "commander";
import type { RemoveDiskSummary } from "../../engine/index.ts";
import { formatBytes, formatDuration, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { printable } from "../text.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

interface RemoveFlags extends VaultFlags {
  readonly disk: string;
  readonly dryRun?: true;
}

export function addRemoveCommand(context: CommandContext, disks: Command): void {
  const remove = disks.command("remove").requiredOption("--disk <name>", "name of the disk in the vault");
  withVaultOptions(remove.option("--dry-run", "count the points that would go; change nothing"))
    .description("remove a disk with all its recovery points")
    .addHelpText(
      "after",
      `
A disk with a point that is pinned or being read stays, and so does one that a
process writes. Removing a disk frees no space: run \`tidemark collect\` afterwards.

Example:
  $ tidemark disks remove --disk web --dry-run --vault dir:/v`,
    )
    .action(async (flags: RemoveFlags) => await removeDisk(context, flags));
}

async function removeDisk(context: CommandContext, flags: RemoveFlags): Promise<void> {
  const { output } = context;
  const dryRun = flags.dryRun === true;
  const options = { disk: flags.disk, dryRun, ...operation(context) };
  const summary = await withVault(context, flags, async (vault) => await vault.removeDisk(options));
  if (dryRun) output.answer("disks remove", summary, describe(summary));
  else output.summary("disks remove", summary, describe(summary));
}

function describe({
  disk,
  dryRun,
  removedPoints,
  removedStoredBytes,
  freedBytes,
  elapsedMs,
}: RemoveDiskSummary): string {
  const what = `disk ${printable(disk)} ${dryRun ? "would go" : "removed"} with ${formatNumberOf(removedPoints, "point")}`;
  const stored =
    freedBytes === null
      ? `they stored ${formatBytes(removedStoredBytes)}; \`tidemark collect\` frees what no other point shares`
      : `\`tidemark collect\` would then free ${formatBytes(freedBytes)}`;
  return `${what} (${formatDuration(elapsedMs)})${removedPoints === 0 ? "" : `\n${stored}`}`;
}
