/** `tidemark vault key`: a registration key, with which one source machine registers. */
import { resolve } from "node:path";
import { type Command, Option } from "commander";
import { sasFor } from "../../sink/index.ts";
import { placeOf } from "../agent/registered.ts";
import { writeNew } from "../new-file.ts";
import { sinkOptions, type VaultFlags, vaultAddress, wholeNumber, withVaultOptions } from "../settings.ts";
import { fields, printable } from "../text.ts";
import { type CommandContext, withVault } from "./context.ts";

interface KeyFlags extends VaultFlags {
  readonly name: string;
  readonly disks: readonly string[];
  readonly days?: number;
  readonly out: string;
}

/** A SAS that is made for a machine is valid so long: until it is renewed. */
const sasMs = 365 * 86_400_000;

export function addKeyCommand(context: CommandContext, vault: Command): void {
  withVaultOptions(vault.command("key"))
    .description("make a registration key, with which one source machine registers")
    .requiredOption("--name <name>", "friendly name of the machine's agent")
    .requiredOption("--disks <patterns...>", "names of disks that it may protect, such as 'web-*'")
    .addOption(
      new Option("--days <count>", "how long a machine can register with it, 1 to 90 days (default: 5)").argParser(
        wholeNumber,
      ),
    )
    .requiredOption("--out <file>", "the file to write, for this user only")
    .addHelpText(
      "after",
      `
The key holds a SAS for the vault's container that is valid for a year, made
with AZURE_STORAGE_KEY, or the SAS of the address. Of an encrypted vault it
also holds what it takes to write. Give it to the machine over a safe way, run
\`tidemark agent register --key FILE\` there, and delete it.

Example:
  $ tidemark vault key --name web01 --disks 'web-*' --out web01.key --vault dir:/v`,
    )
    .action(async (flags: KeyFlags) => await issue(context, flags));
}

async function issue(context: CommandContext, flags: KeyFlags): Promise<void> {
  const { environment, output, signal } = context;
  const address = vaultAddress(flags);
  const access = await sasFor(address, Date.now() + sasMs, sinkOptions(address, environment, signal));
  const { key, bytes } = await withVault(
    context,
    flags,
    async ({ agents }) =>
      await agents.issueKey({
        agent: flags.name,
        allowedDisks: flags.disks,
        days: flags.days,
        address: placeOf(address),
        sas: access?.sas,
        credentialsUntilMs: access?.untilMs,
        signal,
      }),
  );
  const out = resolve(flags.out);
  await writeNew(out, bytes, 0o600);
  const notAfter = new Date(key.notAfterMs).toISOString();
  const credentialsUntil = key.credentialsUntilMs === null ? null : new Date(key.credentialsUntilMs).toISOString();
  const text = fields([
    ["key", printable(out)],
    ["agent", printable(key.agent)],
    ["disks", printable(key.allowedDisks.join(", "))],
    ["vault", `${key.vault} at ${printable(key.address)}`],
    ["register until", output.time(notAfter)],
    ...(credentialsUntil === null ? [] : [["credentials until", output.time(credentialsUntil)] as const]),
  ]);
  const { vault, agent, allowedDisks } = key;
  const about = { vault, key: key.key, agent, address: key.address, allowedDisks, notAfter, credentialsUntil };
  output.summary(
    "vault key",
    { ...about, enrollsWriter: key.writerKey !== null, out },
    `${text}\non the machine: \`tidemark agent register --key FILE\``,
  );
}
