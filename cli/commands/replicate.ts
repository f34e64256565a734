/**
 * `tidemark replicate`: takes a recovery point of an image file, a block device or an NBD export,
 * by scan or by bitmap.
 */
import { Command } from "commander";
import {
  type ChangeSource,
  type Extent,
  FileVolume,
  hasCode,
  NbdVolume,
  type Progress,
  type ReplicateSummary,
  Vault,
} from "../../engine/index.ts";
import { openImage } from "../../engine/internal.ts";
import { AllocatedRanges } from "../allocated-ranges.ts";
import { wrongInput } from "../errors.ts";
import { formatBytes, formatCount, formatDuration, formatRate, formatRatio } from "../quantities.ts";
import { type VaultFlags, withLanesOption, withVaultOptions, withWorkersOption } from "../settings.ts";
import { fields, printable } from "../text.ts";
import { pointSelector } from "../times.ts";
import { refuseInsideVault } from "../vault-folder.ts";
import { told, toldWhile } from "../waiting.ts";
import { type CommandContext, nbdAddress, operation, refuseEmpty, withVault } from "./context.ts";

interface ReplicateFlags extends VaultFlags {
  readonly disk: string;
  readonly label?: string;
  readonly bitmap?: string;
  readonly since?: string;
  readonly allowEmpty?: true;
}

/** A bitmap of the source's server, and the point since which it marks changes. */
interface Marks {
  readonly context: string;
  readonly since: string;
}

export function replicateCommand(context: CommandContext): Command {
  const command = new Command("replicate")
    .description("take a recovery point of a disk; the first one into an absent vault creates it")
    .argument("<source>", "image file, block device or nbd://… address")
    .requiredOption("--disk <name>", "name of the disk in the vault, up to 80 bytes")
    .option("--label <text>", "what `points list` shows beside the new point")
    .option("--allow-empty", "take a point of a source of 0 bytes too")
    .option("--bitmap <name>", "of an NBD export: read only what this QEMU dirty bitmap marks")
    .option("--since <point>", "the point that was taken after the bitmap was added");
  return withLanesOption(withWorkersOption(withVaultOptions(command)))
    .addHelpText(
      "after",
      `
Only what changed since the newest point is sent, and of that only what no disk
of the vault holds yet. A source that changes while it is read gives a point
labelled "fuzzy": stop its writers, or replicate a snapshot of it.

An NBD export is nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH;
with nbds for TLS, and tls-certificates=FOLDER (ca-cert.pem, client-cert.pem,
client-key.pem). A read-only export counts as still.

A bitmap has to mark all changes since the point of --since: add it before that
point is taken and never clear it. If --since is not the disk's newest point,
the whole export is compared.

Examples:
  $ tidemark replicate web.img --disk web --vault azurite:/srv/azurite
  $ qemu-img bitmap --add vm.qcow2 b0; qemu-nbd -r -t -B b0 -k /run/n vm.qcow2 &
  $ tidemark replicate "nbd+unix:///?socket=/run/n" --disk vm

When the virtual machine has run, and qemu-nbd has been started again:
  $ tidemark replicate "nbd+unix:///?socket=/run/n" --disk vm \\
      --bitmap b0 --since 1`,
    )
    .action(async (source: string, flags: ReplicateFlags) => await replicate(context, source, flags));
}

async function replicate(context: CommandContext, source: string, flags: ReplicateFlags): Promise<void> {
  const { output, signal } = context;
  const marks = marksOf(source, flags);
  // Before the vault is opened: a source that is missing creates none.
  const { onNotice } = operation(context);
  const opened = await toldWhile(openSource(source, marks, signal), source, onNotice);
  const volume = told(opened, opened.description, onNotice);
  try {
    if (volume instanceof FileVolume) await refuseInsideVault(flags, source, "source");
    if (flags.allowEmpty !== true) await refuseEmpty(volume);
    const summary = await withVault(
      context,
      flags,
      async (vault) => {
        const { disk, label } = flags;
        const list = volume instanceof NbdVolume && marks !== undefined ? { volume, ...marks } : undefined;
        const changes = list && (await markedChanges(vault, disk, list.volume, list));
        const isListed = changes !== undefined && (await isNewest(vault, disk, changes.since));
        const measure = await readShare(volume, isListed ? list?.volume.changed(list.context) : undefined);
        const onProgress = (progress: Progress): void => output.progress(measure(progress));
        return await vault.replicate({ disk, volume, label, changes, signal, onProgress, onNotice });
      },
      // A point to go on from is not in a vault that is only now created.
      marks === undefined ? async (sink, options) => await Vault.openOrCreate(sink, options) : undefined,
    );
    output.summary("replicate", summary, describe(summary));
  } finally {
    await volume.close();
  }
}

/**
 * What --bitmap and --since say. A bitmap without its point cannot be trusted. Errors:
 * INVALID_ARGUMENT.
 */
function marksOf(source: string, { bitmap, since }: ReplicateFlags): Marks | undefined {
  if (bitmap === undefined && since === undefined) return undefined;
  if (!nbdAddress.test(source)) {
    throw wrongInput(
      "--bitmap and --since are for NBD exports",
      "name the source as nbd+unix:///EXPORT?socket=PATH, or leave them out",
    );
  }
  if (bitmap === undefined)
    throw wrongInput("--since is given without --bitmap", "add `--bitmap NAME`, or leave it out");
  if (since === undefined) {
    throw wrongInput(
      "--bitmap is given without --since",
      "add `--since POINT`, the point that was taken after the bitmap was begun (`tidemark points list`), or leave it out",
    );
  }
  return { context: `qemu:dirty-bitmap:${bitmap}`, since };
}

/**
 * Progress in bytes that will be read, rather than in positions on the disk: a hole takes no time,
 * so it counts nothing, and neither does what a bitmap does not mark.
 */
async function readShare(
  volume: FileVolume | NbdVolume,
  changed: AsyncIterable<Extent> | undefined,
): Promise<(progress: Progress) => Progress> {
  const ranges = await AllocatedRanges.of({
    sizeBytes: async () => await volume.sizeBytes(),
    allocated: (sizeBytes) => changed ?? volume.allocated(sizeBytes),
  });
  return (progress) => {
    if (progress.phase !== "scan" && progress.phase !== "commit") return progress;
    return { ...progress, doneBytes: ranges.bytesBelow(progress.doneBytes), totalBytes: ranges.totalBytes };
  };
}

async function openSource(
  source: string,
  marks: Marks | undefined,
  signal: AbortSignal,
): Promise<FileVolume | NbdVolume> {
  if (!nbdAddress.test(source)) return await openImage(source);
  if (marks === undefined) return await NbdVolume.open(source, { signal });
  const volume = await NbdVolume.open(source, { bitmaps: [marks.context], signal });
  try {
    // Asks for the bitmap now, so that a bitmap that the server lacks is reported before the vault
    // is opened.
    const changed = volume.changed(marks.context);
    await changed.next();
    await changed.return();
    return volume;
  } catch (error) {
    await volume.close();
    throw error;
  }
}

/** The bitmap as a list of changes. The server owns it, so a commit does not change it. */
async function markedChanges(
  vault: Vault,
  disk: string,
  volume: NbdVolume,
  { context, since }: Marks,
): Promise<ChangeSource> {
  // An id needs no looking up: when the vault does not know it any more, it is not the newest
  // point's either.
  const isId = /^[0-9a-f]{32}$/.test(since);
  return {
    since: isId ? since : (await vault.point(disk, pointSelector(since))).point,
    begin: () => volume.changed(context),
    committed: () => undefined,
    abandoned: () => undefined,
  };
}

/** Whether a list of changes that begins at this point is used: any other point's is not. */
async function isNewest(vault: Vault, disk: string, point: string | undefined): Promise<boolean> {
  try {
    return (await vault.points(disk, { limit: 1 })).at(-1)?.point === point;
  } catch (error) {
    if (hasCode(error, "DISK_NOT_FOUND", "DAMAGED")) return false; // replicate reports what is wrong
    throw error;
  }
}

function describe(summary: ReplicateSummary): string {
  const { volumeBytes, scannedBytes, changedBytes, zeroBytes, dedupedBytes, newBytes, storedBytes, elapsedMs } =
    summary;
  const zeros = zeroBytes === 0 ? "" : `, of which ${formatBytes(zeroBytes)} became zero`;
  const stored =
    newBytes === 0 ? "" : `, stored as ${formatBytes(storedBytes)} (${formatRatio(newBytes, storedBytes)})`;
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
