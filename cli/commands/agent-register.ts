/** `tidemark agent register`: registers this machine with a vault, by a registration key. */
import { hostname } from "node:os";
import { resolve } from "node:path";
import { type Command, Option } from "commander";
import { type RegisteredAgent, type RegistrationKey, Vault } from "../../engine/index.ts";
import {
  closing,
  keepRegistration,
  machineOf,
  readRegistrationKey,
  refuseForeignVault,
} from "../../engine/internal.ts";
import { openSink } from "../../sink/index.ts";
import { neededStateFolder, readSecret, sinkOptions } from "../settings.ts";
import { printable } from "../text.ts";
import { told } from "../waiting.ts";
import type { CommandContext } from "./context.ts";

interface RegisterFlags {
  readonly key: string;
  readonly config?: string;
  readonly state?: string;
  readonly renew?: true;
}

export function addRegisterCommand(context: CommandContext, agent: Command): void {
  agent
    .command("register")
    .description("register this machine with a vault, by a key of `tidemark vault key`")
    .requiredOption("--key <file>", "the registration key")
    .addOption(new Option("--config <file>", "configuration to which the vault is added").env("TIDEMARK_CONFIG"))
    .addOption(new Option("--state <dir>", "local state (default: ~/.local/state/tidemark)").env("TIDEMARK_STATE"))
    .option("--renew", "give this machine, which is registered, the credentials of a new key")
    .addHelpText(
      "after",
      `
The credentials are kept in the state folder, for this user only. The agent
uses them for the vault of that address, also while it runs, and protects only
disks that the key allows. Without --config the vault's part of a configuration
is printed.

Examples:
  $ tidemark agent register --key web01.key --config agent.yaml
  $ tidemark agent register --renew --key new.key`,
    )
    .action(async (_flags: RegisterFlags, command: Command) => {
      await register(context, command.optsWithGlobals<RegisterFlags>());
    });
}

async function register(context: CommandContext, flags: RegisterFlags): Promise<void> {
  const { environment, output } = context;
  const { addVault } = await import("../agent/vaults-part.ts");
  const stateFolder = resolve(neededStateFolder(flags.state, environment));
  const bytes = Buffer.from(await readSecret(flags.key));
  const key = await readRegistrationKey(bytes, flags.key);
  const registered = await enroll(context, key, stateFolder, flags.renew === true);
  const credentials = await keepRegistration(stateFolder, key, bytes);
  const part = await addVault(flags.config, { vault: key.vault, address: key.address, stateFolder });
  const text = [
    `this machine is registered as ${key.agent} with vault ${key.vault}`,
    `it may protect ${key.allowedDisks.join(", ")}; its credentials are in ${credentials}`,
    ...(part.config === null ? ["add to the agent's configuration:", "", part.text.trimEnd()] : [part.text]),
  ].join("\n");
  const { config, name: vaultName } = part;
  const about = { vault: key.vault, address: key.address, credentials, config, vaultName };
  output.summary("agent register", { ...registered, ...about }, text.split("\n").map(printable).join("\n"));
}

/** Asks the vault that the key names, with the credentials in the key. */
async function enroll(
  { environment, output, signal }: CommandContext,
  key: RegistrationKey,
  stateFolder: string,
  isRenewal: boolean,
): Promise<RegisteredAgent> {
  const { address, sas, writerKey } = key;
  const fromEnvironment = sinkOptions(address, environment, signal);
  const credentials = sas === null ? fromEnvironment.credentials : { sas: async () => await Promise.resolve(sas) };
  const opened = await openSink(address, { ...fromEnvironment, credentials });
  const sink = told(opened, opened.description, output.notice.bind(output));
  return await closing(sink, async () => {
    await refuseForeignVault(key, sink, { signal });
    const vault = await Vault.open(sink, {
      stateFolder,
      writerKey: writerKey === null ? undefined : Buffer.from(writerKey, "base64"),
      signal,
    });
    return await closing(vault, async () => {
      const machine = await machineOf(stateFolder);
      return await vault.agents.register(key, { machine, host: hostname(), isRenewal, signal });
    });
  });
}
