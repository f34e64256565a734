/** `tidemark vault stats`: space accounting of a vault, for each disk and in all. */
import type { Command } from "commander";
import type { SpaceCounts, VaultStats } from "../../engine/index.ts";
import { formatBytes, formatCount, formatRatio } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { table } from "../text.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

export function addStatsCommand(context: CommandContext, vault: Command): void {
  withVaultOptions(vault.command("stats"))
    .description("show what the points of a vault take, for each disk and in all")
    .addHelpText(
      "after",
      `
LOGICAL is what the points would take as full images, UNIQUE what is left of that
without holes and duplicates, STORED the same compressed. A chunk that disks share
counts for each, but once in all.

Example:
  $ tidemark vault stats --vault azurite:/srv/azurite`,
    )
    .action(async (flags: VaultFlags) => await showStats(context, flags));
}

async function showStats(context: CommandContext, flags: VaultFlags): Promise<void> {
  const stats = await withVault(context, flags, async (vault) => await vault.stats(operation(context)));
  context.output.summary("vault stats", stats, statsTable(stats));
}

function statsTable(stats: VaultStats): string {
  const row = (name: string, counts: SpaceCounts): readonly string[] => [
    name,
    formatCount(counts.points),
    formatBytes(counts.logicalBytes),
    formatBytes(counts.uniqueBytes),
    formatBytes(counts.storedBytes),
    formatRatio(counts.logicalBytes, counts.storedBytes),
    formatBytes(counts.metadataBytes),
  ];
  return table(
    ["DISK", "POINTS", "LOGICAL", "UNIQUE", "STORED", "RATIO", "METADATA"],
    [...stats.disks.map((disk) => row(disk.disk, disk)), row("(in all)", stats)],
    "lrrrrrr",
  );
}
