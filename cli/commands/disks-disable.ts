/** `tidemark disks disable` and `enable`: ends the protection of a disk, or lets it be protected again. */
import { type Command, Option } from "commander";
import type { DisableSummary } from "../../engine/index.ts";
import { formatBytes, formatDuration, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { fields, printable } from "../text.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

interface DisableFlags extends VaultFlags {
  readonly disk: string;
  readonly keepPoints?: true;
  readonly purge?: true;
  readonly force?: true;
}

export function addDisableCommands(context: CommandContext, disks: Command): void {
  const disable = disks
    .command("disable")
    .requiredOption("--disk <name>", "name of the disk in the vault")
    .addOption(new Option("--keep-points", "the vault keeps the disk's points (default)").conflicts("purge"))
    .option("--purge", "remove the disk from the vault, and free its space by a collection")
    .option("--force", "also while a writer is active or a failover is open");
  withVaultOptions(disable)
    .description("end the protection of a disk, and list what is left behind")
    .addHelpText(
      "after",
      `
No writer makes points of the disk any more, at any place. Its source and the
targets of its failovers are not touched; they are listed. \`tidemark disks enable\`
lets the disk be protected again.

Examples:
  $ tidemark disks disable --disk web --vault dir:/v
  $ tidemark disks disable --disk web --purge --vault dir:/v`,
    )
    .action(async (flags: DisableFlags) => await disableDisk(context, flags));
  withVaultOptions(disks.command("enable").requiredOption("--disk <name>", "name of the disk in the vault"))
    .description("let a disk be protected again whose protection was disabled")
    .addHelpText("after", "\nExample:\n  $ tidemark disks enable --disk web --vault dir:/v")
    .action(async (flags: VaultFlags & { readonly disk: string }) => {
      const { output, signal } = context;
      const { disk } = flags;
      await withVault(context, flags, async ({ failovers }) => await failovers.enable({ disk, signal }));
      output.summary("disks enable", { disk }, `disk ${printable(disk)} can be protected again`);
    });
}

async function disableDisk(context: CommandContext, flags: DisableFlags): Promise<void> {
  const { disk, force = false } = flags;
  const points = flags.purge === true ? "purge" : "keep";
  const options = { disk, points, force, ...operation(context) } as const;
  const summary = await withVault(context, flags, async ({ failovers }) => await failovers.disable(options));
  context.output.summary("disks disable", summary, describe(summary));
}

function describe({ disk, reason, purged, removedPoints, freedBytes, leftBehind, elapsedMs }: DisableSummary): string {
  const freed = freedBytes === null ? "" : `, ${formatBytes(freedBytes)} freed`;
  const points = purged ? `${formatNumberOf(removedPoints, "point")} removed${freed}` : "points kept";
  const rows = Object.entries(leftBehind).flatMap(([place, texts]: [string, readonly string[]]) =>
    texts.map((text, index) => [index === 0 ? `left, ${place}` : "", printable(text)] as const),
  );
  const done = `disk ${printable(disk)}: protection disabled (${reason}), ${points} (${formatDuration(elapsedMs)})`;
  return rows.length === 0 ? done : `${done}\n${fields(rows)}`;
}
