/** `tidemark replicate`: takes a recovery point of an image file or block device. */
import { Command } from "commander";
import { FileVolume, type ReplicateSummary, Vault } from "../../engine/index.ts";
import { formatBytes, formatCount, formatDuration, formatRate, formatRatio } from "../quantities.ts";
import { type VaultFlags, withLanesOption, withVaultOptions, withWorkersOption } from "../settings.ts";
import { fields, printable } from "../text.ts";
import { type CommandContext, refuseInsideVault, withVault } from "./context.ts";

interface ReplicateFlags extends VaultFlags {
  readonly disk: string;
}

export function replicateCommand(context: CommandContext): Command {
  const command = new Command("replicate")
    .description("take a recovery point of a disk; the first one into an absent vault creates it")
    .argument("<source>", "image file or block device")
    .requiredOption("--disk <name>", "name of the disk in the vault, up to 80 bytes");
  return withLanesOption(withWorkersOption(withVaultOptions(command)))
    .addHelpText(
      "after",
      `
Only what changed since the newest point is sent, and of that only what no disk
of the vault holds yet. A source that changes while it is read gives a point
labelled "fuzzy": stop its writers, or replicate a snapshot of it.

Examples:
  $ tidemark replicate web.img --disk web --vault azurite:/srv/azurite
  $ tidemark replicate /dev/vg0/web-snapshot --disk web --vault dir:/mnt/vault
  $ TIDEMARK_VAULT="https://ACCOUNT.blob.core.windows.net/vault?SAS" \\
      tidemark replicate web.img --disk web --json`,
    )
    .action(async (source: string, flags: ReplicateFlags) => await replicate(context, source, flags));
}

async function replicate(context: CommandContext, source: string, flags: ReplicateFlags): Promise<void> {
  const { output, signal } = context;
  // Before the vault is opened: a source that is missing creates none.
  const volume = await FileVolume.open(source);
  try {
    await refuseInsideVault(flags, source, "source");
    const summary = await withVault(
      context,
      flags,
      async (vault) =>
        await vault.replicate({
          disk: flags.disk,
          volume,
          signal,
          onProgress: (progress) => output.progress(progress),
          onNotice: (notice) => output.notice(notice),
        }),
      async (sink, options) => await Vault.openOrCreate(sink, options),
    );
    output.summary("replicate", summary, describe(summary));
  } finally {
    await volume.close();
  }
}

function describe(summary: ReplicateSummary): string {
  const { volumeBytes, scannedBytes, changedBytes, zeroBytes, dedupedBytes, newBytes, storedBytes, elapsedMs } = summary;
  const zeros = zeroBytes === 0 ? "" : `, of which ${formatBytes(zeroBytes)} became zero`;
  const stored = newBytes === 0 ? "" : `, stored as ${formatBytes(storedBytes)} (${formatRatio(newBytes, storedBytes)})`;
  return [
    `point ${summary.sequence} of disk ${printable(summary.disk)} is committed (${summary.consistency})`,
    fields([
      ["point", summary.point],
      ["volume", formatBytes(volumeBytes)],
      ["read", `${formatBytes(scannedBytes)} in ${formatDuration(elapsedMs)} (${formatRate(scannedBytes, elapsedMs)})`],
      ["changed", formatBytes(changedBytes) + zeros],
      ["known", `${formatBytes(dedupedBytes)}, already in the vault`],
      ["new", formatBytes(newBytes) + stored],
      ["metadata", `${formatBytes(summary.metadataBytes)}; ${formatCount(summary.requests)} requests in all`],
    ]),
  ].join("\n");
}
