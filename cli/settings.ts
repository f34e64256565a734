/**
 * What flags and environment say, in one place: options that several commands share, their mirrors among the variables, credentials and
 * proxies. The rooms below read no environment; here it becomes arguments.
 */
import { homedir } from "node:os";
import { isAbsolute, join } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { TidemarkError, type VaultOptions } from "../engine/index.ts";
import type { OpenSinkOptions, ProxyOptions } from "../sink/index.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

export interface OutputFlags {
  readonly json: boolean;
  readonly debug: boolean;
}

/** Flags of every command that opens a vault. */
export interface VaultFlags {
  readonly vault?: string | undefined;
  readonly state?: string | undefined;
  readonly workers?: number | undefined;
  readonly lanes?: number | undefined;
}

/** For `--help`. */
export const environmentHelp = `Environment:
  TIDEMARK_VAULT, TIDEMARK_STATE, TIDEMARK_WORKERS, TIDEMARK_LANES,
  TIDEMARK_JSON=1 and TIDEMARK_DEBUG=1 stand for the flags; a flag goes first. A
  SAS is safer in TIDEMARK_VAULT than in a command, which other users can see.
  AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_KEY open a storage account;
  without them and a SAS, the identity of the machine or of \`az login\` does.
  HTTPS_PROXY, HTTP_PROXY and NO_PROXY are heeded. NO_COLOR: no colours.
`;

/** Whether to print JSON and stacks, found without parsing, so that it is known even when parsing fails. */
export function outputFlags(words: readonly string[], environment: Environment): OutputFlags {
  const end = words.indexOf("--");
  const flags = end === -1 ? words : words.slice(0, end);
  return {
    json: flags.includes("--json") || isOn(environment["TIDEMARK_JSON"]),
    debug: flags.includes("--debug") || isOn(environment["TIDEMARK_DEBUG"]),
  };
}

/** Adds `--vault` and `--state`. */
export function withVaultOptions(command: Command): Command {
  return command
    .addOption(new Option("--vault <vault>", "where the vault is").env("TIDEMARK_VAULT"))
    .addOption(new Option("--state <dir>", "local caches (default: ~/.local/state/tidemark)").env("TIDEMARK_STATE"));
}

/** Adds `--workers`, for commands that hash or compress. */
export function withWorkersOption(command: Command): Command {
  const workers = new Option("--workers <count>", "threads, 1 to 64 (default: one a core, up to 8)");
  return command.addOption(workers.env("TIDEMARK_WORKERS").argParser(wholeNumber));
}

/** Adds `--lanes`, for commands that write to the vault. */
export function withLanesOption(command: Command): Command {
  const lanes = new Option("--lanes <count>", "frames in the works, 2 to 32 (default: 5)");
  return command.addOption(lanes.env("TIDEMARK_LANES").argParser(wholeNumber));
}

/** The vault's address. Errors: INVALID_ARGUMENT when neither flag nor environment names it. */
export function vaultAddress(flags: VaultFlags): string {
  const vault = said(flags.vault);
  if (vault !== undefined) return vault;
  throw new TidemarkError("INVALID_ARGUMENT", "no vault is named", {
    remedy: "add `--vault azurite:DIR`, `dir:DIR` or a container's URL, or set TIDEMARK_VAULT",
  });
}

export function vaultOptions(flags: VaultFlags, environment: Environment, signal: AbortSignal): VaultOptions {
  return { stateFolder: said(flags.state) ?? stateFolderDefault(environment), workers: flags.workers, lanes: flags.lanes, signal };
}

/** Credentials and proxy for the vault at `address`. */
export function sinkOptions(address: string, environment: Environment, signal: AbortSignal): OpenSinkOptions {
  const proxy = proxyFor(address, environment);
  return {
    credentials: {
      connectionString: said(environment["AZURE_STORAGE_CONNECTION_STRING"]),
      accountKey: said(environment["AZURE_STORAGE_KEY"]),
    },
    signal,
    ...(proxy === undefined ? {} : { proxy }),
  };
}

/** A whole number from a flag. Its bounds are checked by what uses it. */
export function wholeNumber(text: string): number {
  if (!/^\d{1,9}$/.test(text)) throw new InvalidArgumentError("It is not a whole number.");
  return Number(text);
}

/** A variable that is set to nothing counts as not set. */
function said(value: string | undefined): string | undefined {
  return value === "" ? undefined : value;
}

function isOn(value: string | undefined): boolean {
  return /^(1|true|yes|on)$/i.test(value ?? "");
}

/** For commands without `--state`, too. XDG Base Directory Specification: a relative path in its variable is invalid and ignored. */
function stateFolderDefault(environment: Environment): string {
  const own = said(environment["TIDEMARK_STATE"]);
  if (own !== undefined) return own;
  const folder = said(environment["XDG_STATE_HOME"]);
  return join(folder !== undefined && isAbsolute(folder) ? folder : join(homedir(), ".local", "state"), "tidemark");
}

/** The proxy that the environment names for this scheme, as curl and others read it: small letters go first, a bare host covers its subdomains. */
function proxyFor(address: string, environment: Environment): ProxyOptions | undefined {
  const scheme = /^(https?):/i.exec(address)?.[1]?.toLowerCase();
  if (scheme === undefined) return undefined;
  const either = (name: string): string | undefined => said(environment[name]) ?? said(environment[name.toUpperCase()]);
  const url = either(`${scheme}_proxy`);
  if (url === undefined) return undefined;
  const hosts = (either("no_proxy") ?? "").split(/[\s,]+/).filter((host) => host !== "");
  const bypass = hosts.flatMap((host) => (/^[.*]|^[\d.]+$|:/.test(host) ? [host] : [host, `.${host}`]));
  return { url: url.includes("://") ? url : `http://${url}`, bypass };
}
