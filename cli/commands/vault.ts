/** `tidemark vault init` and `tidemark vault show`: a vault's identity and what is fixed for its life. */
import { Command, InvalidArgumentError, Option } from "commander";
import { type DigestName, digestNames, type Sink, Vault, type VaultOptions, type VaultSummary } from "../../engine/index.ts";
import { formatBytes, formatCount, parseBytes } from "../quantities.ts";
import { type VaultFlags, withVaultOptions } from "../settings.ts";
import { fields } from "../text.ts";
import { type CommandContext, withVault } from "./context.ts";

interface InitFlags extends VaultFlags {
  readonly blockSize?: number;
  readonly digest?: DigestName;
}

export function vaultCommand(context: CommandContext): Command {
  const vault = new Command("vault")
    .description("create a vault, or show what one is")
    .addHelpText("after", "\nExample:\n  $ tidemark vault show --vault azurite:/srv/azurite");
  withVaultOptions(vault.command("init"))
    .description("create a vault; block size and digest are fixed for its life")
    .option("--block-size <size>", "16KiB to 1MiB, a power of two (default: 64KiB)", blockSize)
    .addOption(new Option("--digest <name>", "how chunks are identified (default: blake3)").choices(digestNames))
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark vault init --vault dir:/srv/vault
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
  return vault;
}

async function init(context: CommandContext, { blockSize: blockBytes, ...flags }: InitFlags): Promise<void> {
  const create = async (sink: Sink, options: VaultOptions): Promise<Vault> => await Vault.create(sink, options);
  const summary = await withVault(context, { ...flags, blockBytes }, async (vault) => await vault.summary(), create);
  context.output.summary("vault init", summary, `vault created\n${describe(summary)}`);
}

async function show(context: CommandContext, flags: VaultFlags): Promise<void> {
  const summary = await withVault(context, flags, async (vault) => await vault.summary());
  context.output.summary("vault show", summary, describe(summary));
}

function describe(summary: VaultSummary): string {
  return fields([
    ["vault", summary.vault],
    ["at", summary.description],
    ["created", summary.created],
    ["disks", formatCount(summary.disks)],
    ["block", `${formatBytes(summary.blockBytes)}, in granules of ${formatBytes(summary.granuleBytes)}`],
    ["digest", summary.digest],
    ["codec", summary.codec],
    ["encryption", summary.encryption],
    ["format", `version ${summary.formatVersion}`],
  ]);
}

function blockSize(text: string): number {
  const bytes = parseBytes(text);
  if (bytes === undefined) throw new InvalidArgumentError("It is not a size such as 64KiB.");
  return bytes;
}
