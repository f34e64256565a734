/** `tidemark copy`: copies recovery points to another vault. */
import { Command, Option } from "commander";
import { type CopiedPoint, type CopiedPoints, type CopySummary, parsePolicy, Vault } from "../../engine/index.ts";
import { exitCodes } from "../errors.ts";
import { formatBytes, formatDuration, formatNumberOf } from "../quantities.ts";
import { required } from "../reference/definitions.ts";
import { type VaultFlags, withLanesOption, withWorkersOption } from "../settings.ts";
import { fields, printable } from "../text.ts";
import { type CommandContext, operation, withVault } from "./context.ts";

interface CopyFlags extends VaultFlags {
  readonly from: string;
  readonly to: string;
  readonly disk?: readonly string[];
  readonly points: CopiedPoints;
  readonly toKey?: string;
  readonly toPassphraseFile?: string;
}

export function copyCommand(context: CommandContext): Command {
  const command = new Command("copy")
    .description("copy recovery points to another vault, with their times; what it holds already is not sent")
    .addOption(required(new Option("--from <vault>", "the vault to copy").env("TIDEMARK_VAULT")))
    .requiredOption("--to <vault>", "the vault to copy to; one that is absent is created")
    .option("--disk <name...>", "only these disks (default: every disk)")
    .option(
      "--points <points>",
      "`all`, `latest`, or a policy such as days:7: the points that it keeps",
      pointsOf,
      "all",
    )
    .addOption(new Option("--key <file>", "private key that opens the vault to copy").env("TIDEMARK_KEY_FILE"))
    .option("--to-key <file>", "private key that opens the vault to copy to")
    .option("--to-passphrase-file <file>", "passphrase that opens the vault to copy to")
    .addOption(new Option("--state <dir>", "local caches (default: ~/.local/state/tidemark)").env("TIDEMARK_STATE"));
  return withLanesOption(withWorkersOption(command))
    .addHelpText(
      "after",
      `
Points are proved as they are read, and keep their times, labels and groups.
Points that are later than the newest one of the disk there are added: repeat a
copy that was interrupted. The point that was copied last stays pinned in the
first vault: the next copy reads only what differs from it. A point that cannot
be read back is passed over: exit code 3.

A machine that is enrolled to write to the other vault needs no key for it.

Examples:
  $ tidemark copy --from dir:/srv/vault --to azurite:/mnt/second
  $ tidemark copy --from dir:/mnt/seed --disk web --points latest \\
      --to "https://ACCOUNT.blob.core.windows.net/vault?SAS"`,
    )
    .action(async (flags: CopyFlags) => await copy(context, flags));
}

/** Errors: INVALID_ARGUMENT. */
function pointsOf(text: string): CopiedPoints {
  return text === "all" || text === "latest" ? text : parsePolicy(text);
}

/** The keys in the environment are those of the vault to copy. */
function keysOfTarget(context: CommandContext, { toPassphraseFile }: CopyFlags): CommandContext {
  const environment = { ...context.environment, TIDEMARK_KEY_FILE: undefined };
  return { ...context, environment: { ...environment, TIDEMARK_PASSPHRASE_FILE: toPassphraseFile } };
}

async function copy(context: CommandContext, flags: CopyFlags): Promise<void> {
  const { output } = context;
  const { disk: disks, points } = flags;
  const summary = await withVault(context, { ...flags, vault: flags.from }, async (from) => {
    // Before the other vault is opened: a disk that is missing creates none.
    for (const disk of disks ?? []) await from.points(disk);
    return await withVault(
      keysOfTarget(context, flags),
      { ...flags, vault: flags.to, key: flags.toKey },
      async (to) =>
        await from.copyTo(to, {
          disks,
          points,
          onPoint: (copied) => output.item("copied", copied, copiedText(copied, output.time(copied.time))),
          ...operation(context),
        }),
      async (sink, options) => await Vault.openOrCreate(sink, { ...from.parameters, ...options }),
    );
  });
  output.summary("copy", summary, describe(summary, output.time.bind(output)));
  if (summary.disks.some(({ damaged }) => damaged > 0)) context.exitCode = exitCodes.damageFound;
}

function copiedText({ disk, sequence, copiedSequence, newBytes }: CopiedPoint, time: string): string {
  return `${printable(disk)} point ${sequence} of ${time} → point ${copiedSequence}, ${formatBytes(newBytes)} new`;
}

function describe(summary: CopySummary, time: (iso: string) => string): string {
  return fields([
    ["copied", `${formatNumberOf(summary.points, "point")} of ${formatNumberOf(summary.disks.length, "disk")}`],
    ["read", formatBytes(summary.fetchedBytes)],
    ["stored", `${formatBytes(summary.newBytes)} new, as ${formatBytes(summary.storedBytes)}`],
    ["elapsed", formatDuration(summary.elapsedMs)],
    ...summary.disks.map(
      ({ disk, copied, lagMs, tooOld, damaged }) =>
        [
          printable(disk),
          [
            copied === null ? "nothing copied" : `up to ${time(copied)}`,
            ...(lagMs === null || lagMs === 0 ? [] : [`${formatDuration(lagMs)} behind`]),
            ...(tooOld === 0 ? [] : [`${formatNumberOf(tooOld, "older point")} not there`]),
            ...(damaged === 0 ? [] : [`${formatNumberOf(damaged, "damaged point")} passed over`]),
          ].join(", "),
        ] as const,
    ),
  ]);
}
