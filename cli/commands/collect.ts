/** `tidemark collect`: gives back the space that no point needs any more. */
import { Command, InvalidArgumentError } from "commander";
import type { CollectSummary } from "../../engine/index.ts";
import { exitCodes } from "../errors.ts";
import { formatBytes, formatDuration, formatNumberOf, parseDuration } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { printable } from "../text.ts";
import { type CommandContext, withVault } from "./context.ts";

interface CollectFlags extends VaultFlags {
  readonly dryRun?: boolean;
  readonly wait?: number;
}

export function collectCommand(context: CommandContext): Command {
  const command = new Command("collect")
    .description("give back the space that no point needs any more")
    .option("--dry-run", "say what would be given back, and change nothing")
    .option("--wait <time>", "for writers that do not acknowledge (default: 60s)", waitTime);
  return withVaultOptions(command)
    .addHelpText(
      "after",
      `
Writers and readers go on meanwhile. What is found to be needed by nobody is
first condemned; when every writer has acknowledged that, pages are cleared, and
segments and other objects deleted. A writer that does not acknowledge in time
ends it with exit code 11, and nothing is given back. Interrupted anywhere, the
next collection does what is left.

Examples:
  $ tidemark collect --vault azurite:/srv/azurite --dry-run
  $ tidemark collect --vault azurite:/srv/azurite`,
    )
    .action(async (flags: CollectFlags) => await collect(context, flags));
}

async function collect(context: CommandContext, flags: CollectFlags): Promise<void> {
  const { output, signal } = context;
  const summary = await withVault(
    context,
    flags,
    async (vault) =>
      await vault.collect({ dryRun: flags.dryRun, waitMsMax: flags.wait, signal, onNotice: (notice) => output.notice(notice) }),
  );
  output.summary("collect", summary, printable(describe(summary, flags.dryRun === true)));
  if (summary.waitingFor.length > 0) context.exitCode = exitCodes.writerActive;
}

function describe(summary: CollectSummary, isDryRun: boolean): string {
  const { storedBytesBefore, storedBytesAfter, liveBytes, condemnedChunks, deletedSegments, deletedObjects, elapsedMs, waitingFor } =
    summary;
  const took = `looked at in ${formatDuration(elapsedMs)}`;
  if (waitingFor.length > 0) {
    return `nothing given back yet: ${waitingFor.join(", ")} had not acknowledged in time; the next collection goes on`;
  }
  const freed = formatBytes(storedBytesBefore - storedBytesAfter);
  const what = `${formatNumberOf(condemnedChunks, "chunk")}, ${formatNumberOf(deletedSegments, "segment")}, ${formatNumberOf(deletedObjects, "object")}`;
  const sizes = `${formatBytes(storedBytesBefore)} → ${formatBytes(storedBytesAfter)} stored, ${formatBytes(liveBytes)} needed`;
  return `${freed} ${isDryRun ? "would be" : "were"} given back (${what}): ${sizes}; ${took}`;
}

function waitTime(text: string): number {
  const waitMs = text === "0" ? 0 : parseDuration(text);
  if (waitMs === undefined) throw new InvalidArgumentError("It is not a duration such as 60s.");
  return waitMs;
}
