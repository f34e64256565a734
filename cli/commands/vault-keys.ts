/** `tidemark vault keys list`, `add`, `remove`, `rotate` and `enroll`: keys of an encrypted vault. */
import { basename } from "node:path";
import type { Command } from "commander";
import type { KeysSummary, NewRecipients, Vault } from "../../engine/index.ts";
import { readPassphrase, readSecret, type VaultFlags, withVaultOptions } from "../settings.ts";
import { fields, printable } from "../text.ts";
import { type CommandContext, withVault } from "./context.ts";

/** Flags that name the recipients of a vault. */
export interface RecipientFlags {
  readonly certificate?: readonly string[];
  readonly passphraseFile?: string;
}

/** Reads the files that the flags name. Errors: INVALID_ARGUMENT. */
export async function recipientsFrom({ certificate = [], passphraseFile }: RecipientFlags): Promise<NewRecipients> {
  const certificates: { readonly pem: string; readonly name: string }[] = [];
  for (const file of certificate) certificates.push({ pem: await readSecret(file), name: basename(file) });
  const passphrase = passphraseFile === undefined ? undefined : await readPassphrase(passphraseFile);
  return { certificates, passphrase };
}

export function addKeysCommand(context: CommandContext, vault: Command): void {
  const keys = vault
    .command("keys")
    .description("show and change what opens an encrypted vault")
    .addHelpText("after", "\nExample:\n  $ tidemark vault keys list --vault dir:/v --key ops.key");
  withVaultOptions(keys.command("list"))
    .description("show the keys and passphrases that open the vault")
    .addHelpText("after", "\nExample:\n  $ tidemark vault keys list --vault dir:/v --key ops.key")
    .action(async (flags: VaultFlags) => {
      const summary = await withVault(context, flags, async (opened) => await opened.keys.list(context));
      context.output.answer("vault keys list", summary, describe(summary, context));
    });
  withVaultOptions(keys.command("add"))
    .description("let another certificate or passphrase open the vault")
    .option("--certificate <file...>", "certificates in PEM: RSA, P-256 or P-384")
    .option("--passphrase-file <file>", "file with a passphrase")
    .addHelpText(
      "after",
      "\nExample:\n  $ tidemark vault keys add --certificate deputy.pem --vault dir:/v --key ops.key",
    )
    .action(async (flags: VaultFlags & RecipientFlags) => {
      const recipients = await recipientsFrom(flags);
      await change(context, flags, "vault keys add", async (opened) => await opened.keys.add(recipients, context));
    });
  withVaultOptions(keys.command("remove").argument("<recipient>", "id or name, as `vault keys list` shows it"))
    .description("take a key or passphrase from those that open the vault")
    .addHelpText(
      "after",
      `
What has been removed may have been copied before: run
\`tidemark vault keys rotate\` so that nothing written later opens with it.

Example:
  $ tidemark vault keys remove deputy.pem --vault dir:/v --key ops.key`,
    )
    .action(async (recipient: string, flags: VaultFlags) => {
      const remove = async (opened: Vault): Promise<KeysSummary> => await opened.keys.remove(recipient, context);
      await change(context, flags, "vault keys remove", remove);
    });
  withVaultOptions(keys.command("rotate"))
    .description("begin a new key for what is written from now on; no data is rewritten")
    .addHelpText(
      "after",
      `
Every command and agent that is started from then on uses the new key. Run
\`tidemark vault keys enroll\` again on machines that only write.

Example:
  $ tidemark vault keys rotate --vault dir:/v --key ops.key`,
    )
    .action(async (flags: VaultFlags) => {
      await change(context, flags, "vault keys rotate", async (opened) => await opened.keys.rotate(context));
    });
  withVaultOptions(keys.command("enroll"))
    .description("let this machine write to the vault without a key that reads it")
    .addHelpText(
      "after",
      `
The state folder then holds what it takes to list, replicate, protect, prune
and collect; to restore, mount, verify and heal still takes the private key or the
passphrase.

Example:
  $ tidemark vault keys enroll --state /var/lib/tidemark --vault dir:/v --key ops.key`,
    )
    .action(async (flags: VaultFlags) => {
      const summary = await withVault(context, flags, async (opened) => await opened.keys.enroll());
      const text = `this machine can write to vault ${summary.vault}\nits key is in ${printable(summary.file)}`;
      context.output.summary("vault keys enroll", summary, text);
    });
}

async function change(
  context: CommandContext,
  flags: VaultFlags,
  command: "vault keys add" | "vault keys remove" | "vault keys rotate",
  work: (vault: Vault) => Promise<KeysSummary>,
): Promise<void> {
  const summary = await withVault(context, flags, work);
  context.output.summary(command, summary, describe(summary, context));
}

function describe({ vault, fingerprint, generation, recipients }: KeysSummary, { output }: CommandContext): string {
  return fields([
    ["vault", vault],
    ["fingerprint", fingerprint],
    ["key", `generation ${String(generation)}`],
    ...recipients.map(
      ({ id, kind, name, added }) =>
        [kind, `${printable(name)}, since ${output.time(added)}, id ${id}`] as [string, string],
    ),
  ]);
}
