/** `tidemark materialize`: writes a recovery point out as an image. */
import { Command, Option } from "commander";
import type { ImageFormat, MaterializeMode, MaterializeSummary } from "../../engine/index.ts";
import { formatBytes, formatDuration, formatRate } from "../quantities.ts";
import { type VaultFlags, withVaultOptions, withWorkersOption } from "../settings.ts";
import { fields, printable } from "../text.ts";
import { type CommandContext, refuseInsideVault, withVault } from "./context.ts";

interface MaterializeFlags extends VaultFlags {
  readonly disk: string;
  readonly point: string;
  readonly to: string;
  readonly format?: ImageFormat;
  readonly inPlace?: true;
  readonly force?: true;
}

export function materializeCommand(context: CommandContext): Command {
  const command = new Command("materialize")
    .description("write a recovery point out as an image, every chunk verified")
    .requiredOption("--disk <name>", "name of the disk in the vault")
    .requiredOption("--point <point>", "sequence number, id, `latest`, or an ISO time")
    .requiredOption("--to <target>", "file, block device, or blob:NAME for a page blob in the vault's container")
    .addOption(new Option("--format <format>", "raw, or a fixed VHD (default: raw; vhd for blob:)").choices(["raw", "vhd"]))
    .option("--in-place", "change an existing image where it differs; needed for a block device")
    .option("--force", "replace a target that exists, and allow it to be the disk's own source");
  return withWorkersOption(withVaultOptions(command))
    .addHelpText(
      "after",
      `
A file comes into being beside the target and gets its name when it is whole. A
run that was interrupted or killed goes on where it stopped when it is repeated.

  neither flag        the target must not exist
  --force             a file that exists is replaced once the new image is whole
  --in-place          an image or block device is written where it differs;
                      until that is done it is half one, half the other
  --in-place --force  the same, and it may be the source that the disk is
                      replicated from

Examples:
  $ tidemark materialize --disk web --point latest --to back.img --vault dir:/v
  $ tidemark materialize --disk web --point 3 --to web.vhd --format vhd \\
      --vault dir:/v
  $ tidemark materialize --disk web --point 2026-05-01T12:00:00Z --to web.img \\
      --in-place --force --vault dir:/v
  $ tidemark materialize --disk web --point latest --to blob:web.vhd \\
      --vault azurite:/v`,
    )
    .action(async (flags: MaterializeFlags) => await materialize(context, flags));
}

async function materialize(context: CommandContext, flags: MaterializeFlags): Promise<void> {
  const { output, signal } = context;
  if (!flags.to.startsWith("blob:")) await refuseInsideVault(flags, flags.to, "target");
  const summary = await withVault(
    context,
    flags,
    async (vault) =>
      await vault.materialize({
        disk: flags.disk,
        point: flags.point,
        to: flags.to,
        format: flags.format,
        mode: modeOf(flags),
        overwriteSource: flags.force === true,
        signal,
        onProgress: (progress) => output.progress(progress),
        onNotice: (notice) => output.notice(notice),
      }),
  );
  output.summary("materialize", summary, describe(summary));
}

function modeOf({ inPlace, force }: MaterializeFlags): MaterializeMode {
  if (inPlace === true) return "in-place";
  return force === true ? "replace" : "create";
}

function describe(summary: MaterializeSummary): string {
  const { volumeBytes, bytesWritten, bytesRead, elapsedMs } = summary;
  return [
    `point ${summary.sequence} of disk ${printable(summary.disk)} is back`,
    fields([
      ["target", `${summary.target} (${summary.format})`],
      ["volume", formatBytes(volumeBytes)],
      ["written", `${formatBytes(bytesWritten)} in ${formatDuration(elapsedMs)} (${formatRate(bytesWritten, elapsedMs)})`],
      ["read", `${formatBytes(bytesRead)} from the vault`],
    ]),
  ].join("\n");
}
