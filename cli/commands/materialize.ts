/** `tidemark materialize`: restores a recovery point as a file, a block device or a page blob. */
import { Command, Option } from "commander";
import { type ImageFormat, type MaterializeMode, type MaterializeSummary, TidemarkError } from "../../engine/index.ts";
import { formatBytes, formatDuration, formatRate } from "../quantities.ts";
import { type VaultFlags, withVaultOptions, withWorkersOption } from "../settings.ts";
import { fields, printable } from "../text.ts";
import { pointSelector } from "../times.ts";
import { refuseInsideVault } from "../vault-folder.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

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
    .requiredOption("--point <point>", "sequence number, id, `latest`, a time or an age")
    .requiredOption("--to <target>", "file, block device, or blob:NAME for a page blob in the vault's container")
    .addOption(
      new Option("--format <format>", "raw, or a fixed VHD (default: raw; vhd for blob:)").choices(["raw", "vhd"]),
    )
    .option("--in-place", "change an existing image or page blob where it differs; needed for a block device")
    .option("--force", "replace a target that exists, and allow it to be the disk's own source");
  return withWorkersOption(withVaultOptions(command))
    .addHelpText(
      "after",
      `
A file is written beside the target and gets the target's name when it is
complete. Repeat a run that was interrupted or killed: it continues where it
stopped.

  neither flag        the target must not exist
  --force             an existing file is replaced when the new one is complete
  --in-place          an image, block device or page blob is written where it
                      differs; until the end it holds a mix of old and new
  --in-place --force  the target may be the source of the disk, too

Examples:
  $ tidemark materialize --disk web --point latest --to back.img --vault dir:/v
  $ tidemark materialize --disk web --point "2 hours ago" --to web.img \\
      --in-place --force --vault dir:/v
  $ tidemark materialize --disk web --point 3 --to blob:web.vhd \\
      --vault azurite:/v`,
    )
    .action(async (flags: MaterializeFlags) => await materialize(context, flags));
}

async function materialize(context: CommandContext, flags: MaterializeFlags): Promise<void> {
  const point = pointSelector(flags.point);
  if (flags.to === "-") {
    throw new TidemarkError("INVALID_ARGUMENT", "a point is not written to stdout", {
      remedy: "serve it with `tidemark mount` and read it with nbdcopy; a file of that name is `--to ./-`",
    });
  }
  if (!flags.to.startsWith("blob:")) await refuseInsideVault(flags, flags.to, "target");
  const { disk, to, format } = flags;
  const how = { format, mode: modeOf(flags), overwriteSource: flags.force === true };
  const options = { disk, point, to, ...how, ...operation(context) };
  const summary = await withVault(context, flags, async (vault) => await vault.materialize(options));
  context.output.summary("materialize", summary, describe(summary));
}

function modeOf({ inPlace, force }: MaterializeFlags): MaterializeMode {
  if (inPlace === true) return "in-place";
  return force === true ? "replace" : "create";
}

function describe(summary: MaterializeSummary): string {
  const { volumeBytes, bytesWritten, bytesRead, elapsedMs } = summary;
  return [
    `point ${summary.sequence} of disk ${printable(summary.disk)} is written out`,
    fields([
      ["target", `${summary.target} (${summary.format})`],
      ["volume", formatBytes(volumeBytes)],
      [
        "written",
        `${formatBytes(bytesWritten)} in ${formatDuration(elapsedMs)} (${formatRate(bytesWritten, elapsedMs)})`,
      ],
      ["read", `${formatBytes(bytesRead)} from the vault`],
    ]),
  ].join("\n");
}
