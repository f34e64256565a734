/** `tidemark collect`: garbage collection. Frees the space that no point needs any more. */
import { Command } from "commander";
import type { CollectSummary } from "../../engine/index.ts";
import { exitCodes } from "../errors.ts";
import { formatBytes, formatDuration, formatNumberOf } from "../quantities.ts";
import { duration, type VaultFlags, withVaultOptions } from "../settings.ts";
import { printable } from "../text.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

interface CollectFlags extends VaultFlags {
  readonly dryRun?: boolean;
  readonly wait?: number;
}

export function collectCommand(context: CommandContext): Command {
  const command = new Command("collect")
    .description("free the space that no point needs any more (garbage collection)")
    .option("--dry-run", "show what would be freed, and change nothing")
    .option("--wait <time>", "how long to wait for writers that do not acknowledge (default: 60s)", waitTime);
  return withVaultOptions(command)
    .addHelpText(
      "after",
      `
Writers and readers go on meanwhile. What no point needs is freed when every
writer has acknowledged that; if one does not in time, nothing is freed and the
exit code is 11. After an interruption, the next collection continues.

Example:
  $ tidemark collect --vault azurite:/srv/azurite --dry-run`,
    )
    .action(async (flags: CollectFlags) => await collect(context, flags));
}

async function collect(context: CommandContext, flags: CollectFlags): Promise<void> {
  const { output } = context;
  const options = { dryRun: flags.dryRun, waitMsMax: flags.wait, ...operation(context) };
  const summary = await withVault(context, flags, async (vault) => await vault.collect(options));
  const text = printable(describe(summary, flags.dryRun === true));
  if (summary.waitingFor.length > 0) context.exitCode = exitCodes.writerActive;
  if (flags.dryRun === true || summary.waitingFor.length > 0) output.answer("collect", summary, text);
  else output.summary("collect", summary, text);
}

function describe(summary: CollectSummary, isDryRun: boolean): string {
  const {
    storedBytesBefore,
    storedBytesAfter,
    liveBytes,
    condemnedChunks,
    deletedSegments,
    deletedObjects,
    elapsedMs,
    waitingFor,
  } = summary;
  const took = `examined in ${formatDuration(elapsedMs)}`;
  if (waitingFor.length > 0) {
    return `nothing freed: the writers of ${waitingFor.join(", ")} did not acknowledge in time; run \`tidemark collect\` again to continue`;
  }
  const freed = formatBytes(storedBytesBefore - storedBytesAfter);
  const what = `${formatNumberOf(condemnedChunks, "chunk")}, ${formatNumberOf(deletedSegments, "segment")}, ${formatNumberOf(deletedObjects, "object")}`;
  const sizes = `${formatBytes(storedBytesBefore)} → ${formatBytes(storedBytesAfter)} stored, ${formatBytes(liveBytes)} needed`;
  return `${freed} ${isDryRun ? "would be" : "were"} freed (${what}): ${sizes}; ${took}`;
}

function waitTime(text: string): number {
  return /^0(ms|s|m|h)?$/.test(text) ? 0 : duration(text);
}
