/** `tidemark failback` and `tidemark migrate`: the two ends of a failover, back or for good. */
import { resolve } from "node:path";
import { Command } from "commander";
import type { VaultFlags } from "../settings.ts";
import type { CommandContext } from "./context.ts";
import { sourceFields, withEnding, withRun, withSocket } from "./failover.ts";
import { operate } from "./run-verbs.ts";

interface FailbackFlags extends VaultFlags {
  readonly agent?: string;
  readonly to: readonly string[];
  readonly source?: string;
  readonly socket?: string;
  readonly shutdown?: string;
  readonly note?: string;
  readonly commit?: string;
}

export function failbackCommand(context: CommandContext): Command {
  const command = withRun(new Command("failback"))
    .description("take the disks of a reprotected failover back to their old images, by differences")
    .requiredOption(
      "--to <images...>",
      "the old image or device of each disk, in the order of the run or plan; written over",
    )
    .option("--source <image>", "where the disk is written today (default: where the run took it)")
    .option("--shutdown <command>", "stop what writes the disks with this before the last point; it must succeed")
    .option("--note <text>", "a comment that is kept with the run");
  return withEnding(withSocket(command))
    .addHelpText(
      "after",
      `
Stages what the old image lacks while the disk goes on, then stops the disk with a
last point, through its agent with --socket, and applies. Before the apply a cancel
leaves the image untouched; after a kill \`tidemark jobs resume\` ends the apply.
Then commit and reprotect.

Example:
  $ tidemark failback 5f03c2aa --to /srv/web.img --vault dir:/v`,
    )
    .action(async (run: string, flags: FailbackFlags) => {
      const { shutdown, note, commit } = flags;
      const to = flags.to.map((image) => resolve(image));
      await operate(context, "failback", flags, { run, to, ...sourceFields(flags), shutdown, note, commit });
    });
}

export function migrateCommand(context: CommandContext): Command {
  const migrate = new Command("migrate")
    .description("end a failover as a migration: nothing goes back")
    .addHelpText("after", "\nExample:\n  $ tidemark migrate complete 5f03c2aa --vault dir:/v");
  withRun(migrate.command("complete"))
    .description("commit a failover, and disable the protection of its disks")
    .addHelpText(
      "after",
      `
The targets are yours, no writer makes points of the disks any more, and the vault
keeps the points. \`tidemark disks disable --purge\` removes them.

Example:
  $ tidemark migrate complete 5f03c2aa --vault dir:/v`,
    )
    .action(async (run: string, flags: VaultFlags) => await operate(context, "migrate complete", flags, { run }));
  return migrate;
}
