/**
 * `tidemark vault init`, `show`, `stats` and `repair`: identity, parameters and space of a vault,
 * and rebuilding of its lost metadata.
 */
import { Command, Option } from "commander";
import {
  type DigestName,
  digestNames,
  type LostObject,
  type RepairedObject,
  type RepairSummary,
  type Sink,
  TidemarkError,
  Vault,
  type VaultOptions,
  type VaultSummary,
} from "../../engine/index.ts";
import { exitCodes } from "../errors.ts";
import type { Output } from "../output.ts";
import { formatBytes, formatCount, formatDuration, formatNumberOf } from "../quantities.ts";
import { byteSize, type VaultFlags, withVaultOptions } from "../settings.ts";
import { fields, printable } from "../text.ts";
import { type CommandContext, openForRepair, operation, withVault } from "./context.ts";
import { addKeyCommand } from "./vault-key.ts";
import { addKeysCommand, recipientsFrom } from "./vault-keys.ts";
import { addStatsCommand } from "./vault-stats.ts";

interface InitFlags extends VaultFlags {
  readonly blockSize?: number;
  readonly digest?: DigestName;
  readonly encrypt?: boolean;
  readonly certificate?: readonly string[];
  readonly passphraseFile?: string;
}

interface RepairFlags extends VaultFlags {
  readonly dryRun?: boolean;
}

export function vaultCommand(context: CommandContext): Command {
  const vault = new Command("vault")
    .description("create, show, measure or repair a vault")
    .addHelpText("after", "\nExample:\n  $ tidemark vault show --vault azurite:/srv/azurite");
  withVaultOptions(vault.command("init"))
    .description("create a vault; block size and digest are fixed for its life")
    .option("--block-size <size>", "16KiB to 1MiB, a power of two (default: 64KiB)", byteSize)
    .addOption(new Option("--digest <name>", "how chunks are identified (default: blake3)").choices(digestNames))
    .option("--encrypt", "encrypt it, for the certificates and the passphrase that follow")
    .option("--certificate <file...>", "certificates in PEM: RSA, P-256 or P-384; their private keys open the vault")
    .option("--passphrase-file <file>", "file with a passphrase that opens the vault")
    .addHelpText(
      "after",
      `
An encrypted vault is read with the private key of one of its certificates, or
with its passphrase: \`--key\`, TIDEMARK_KEY_FILE, TIDEMARK_PASSPHRASE_FILE. If
all of them are lost, what the vault holds is lost for good. With one of these
and without \`--encrypt\`, the vault is encrypted for that key or passphrase.

Examples:
  $ tidemark vault init --vault dir:/srv/vault
  $ tidemark vault init --vault dir:/srv/vault --encrypt --certificate ops.pem
  $ tidemark vault init --vault azurite:/srv/azurite --block-size 128KiB`,
    )
    .action(async (flags: InitFlags) => await init(context, flags));
  withVaultOptions(vault.command("show"))
    .description("show a vault's identity and parameters")
    .addHelpText(
      "after",
      `
Example:
  $ tidemark vault show --vault azurite:/srv/azurite`,
    )
    .action(async (flags: VaultFlags) => await show(context, flags));
  withVaultOptions(vault.command("repair"))
    .description("rebuild lost metadata of a vault; exit 3 when something cannot be rebuilt")
    .option("--dry-run", "list what would be rebuilt, and change nothing")
    .addHelpText(
      "after",
      `
\`vault.json\` is restored from its copy, a disk's list of points from the
manifests of its points, and records of collections from the segments. Nothing
is guessed or deleted. What is lost is named with the points that need it. A
disk that needs repair must have no writer. Heal damaged chunks with
\`tidemark verify --heal\`.

Example:
  $ tidemark vault repair --vault azurite:/srv/azurite --dry-run`,
    )
    .action(async (flags: RepairFlags) => await repair(context, flags));
  addStatsCommand(context, vault);
  addKeysCommand(context, vault);
  addKeyCommand(context, vault);
  return vault;
}

async function repair(context: CommandContext, flags: RepairFlags): Promise<void> {
  const { output } = context;
  const { dryRun } = flags;
  const done = dryRun === true ? "would be rebuilt" : "rebuilt";
  const summary = await withVault(
    context,
    flags,
    async (vault) =>
      await vault.repair({
        dryRun,
        ...operation(context),
        onRepaired: (object) =>
          output.item("repaired", object, printable(`${done}: ${ownerOf(object)}: ${object.message}`)),
        onLost: (object) =>
          output.item("lost", object, printable(`lost: ${ownerOf(object)}: ${object.message}${pointsOf(object)}`)),
      }),
    openForRepair,
  );
  output.summary("vault repair", summary, describeRepair(summary));
  if (summary.lost.length > 0) context.exitCode = exitCodes.damageFound;
}

function ownerOf({ disk }: RepairedObject | LostObject): string {
  return disk === null ? "the vault" : `disk ${disk}`;
}

/** The points that need the lost object. */
function pointsOf({ points, extent }: LostObject): string {
  if (extent === null && points.length <= 1) return "";
  const where = extent === null ? "" : ` at bytes ${extent.offset} to ${extent.offset + extent.length}`;
  const shown = points.slice(0, 20).join(", ");
  return `; needed by ${points.length === 1 ? "point" : "points"} ${shown}${points.length > 20 ? ", …" : ""}${where}`;
}

function describeRepair({ dryRun, disks, points, repaired, lost, elapsedMs }: RepairSummary): string {
  const scope = `${formatNumberOf(disks, "disk")}, ${formatNumberOf(points, "point")} examined in ${formatDuration(elapsedMs)}`;
  if (repaired.length === 0 && lost.length === 0) return `nothing to repair: ${scope}`;
  const count = repaired.length === 0 ? "nothing" : formatNumberOf(repaired.length, "object");
  const fate = lost.length === 0 ? "nothing is lost" : `${formatCount(lost.length)} cannot be rebuilt`;
  return `${count} ${dryRun ? "would be rebuilt" : "rebuilt"}, ${fate}: ${scope}\n\`tidemark verify\` proves every chunk of the listed points`;
}

async function init(context: CommandContext, flags: InitFlags): Promise<void> {
  const { blockSize: blockBytes } = flags;
  const { onNotice } = operation(context);
  const isNamed = flags.certificate !== undefined || flags.passphraseFile !== undefined;
  if (isNamed && flags.encrypt !== true)
    throw new TidemarkError("INVALID_ARGUMENT", "a certificate or passphrase is given, and no encryption", {
      remedy: "add `--encrypt`",
    });
  const encryption = flags.encrypt === true ? await recipientsFrom(flags) : undefined;
  const create = async (sink: Sink, options: VaultOptions): Promise<Vault> =>
    await Vault.create(sink, { ...options, encryption, onNotice });
  const summary = await withVault(context, { ...flags, blockBytes }, async (vault) => await vault.summary(), create);
  context.output.summary("vault init", summary, `vault created\n${describe(summary, context.output)}`);
}

async function show(context: CommandContext, flags: VaultFlags): Promise<void> {
  const { output } = context;
  const summary = await withVault(context, flags, async (vault) => await vault.summary(operation(context)));
  output.answer("vault show", summary, describe(summary, output));
}

function describe(summary: VaultSummary, output: Pick<Output, "time">): string {
  return fields([
    ["vault", summary.vault],
    ["at", summary.description],
    ["created", output.time(summary.created)],
    ["disks", formatCount(summary.disks)],
    ["block", `${formatBytes(summary.blockBytes)}, in granules of ${formatBytes(summary.granuleBytes)}`],
    ["digest", summary.digest],
    ["codec", summary.codec],
    ["encryption", summary.encryption],
    ["format", `version ${summary.formatVersion}`],
  ]);
}
