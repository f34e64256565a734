/** `tidemark disks rename`: gives a disk another name. */
import type { Command } from "commander";
import { formatDuration, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { printable } from "../text.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

interface RenameFlags extends VaultFlags {
  readonly disk: string;
  readonly to: string;
}

export function addRenameCommand(context: CommandContext, disks: Command): void {
  const rename = disks
    .command("rename")
    .requiredOption("--disk <name>", "name of the disk in the vault")
    .requiredOption("--to <name>", "its new name, which no other disk has");
  withVaultOptions(rename)
    .description("give a disk another name")
    .addHelpText(
      "after",
      `
Points keep their times, labels and pins, and get new ids. No content moves.
A point that was cut together with other disks is not part of that group any
more. Stop the process that writes the disk first, and give it the new name
afterwards: its next cycle compares the disk whole. A rename that was
interrupted goes on when it is repeated; until then nothing writes the disk.

Example:
  $ tidemark disks rename --disk web --to shop --vault dir:/v`,
    )
    .action(async (flags: RenameFlags) => {
      const { disk, to } = flags;
      const options = { disk, to, ...operation(context) };
      const summary = await withVault(context, flags, async (vault) => await vault.renameDisk(options));
      const { points, elapsedMs } = summary;
      const done = `disk ${printable(disk)} is ${printable(to)} now, with ${formatNumberOf(points, "point")}`;
      context.output.summary("disks rename", summary, `${done} (${formatDuration(elapsedMs)})`);
    });
}
