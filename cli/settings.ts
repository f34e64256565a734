/**
 * Flags and environment variables that several commands share: where the vault is, threads,
 * credentials, proxies, output.
 *
 * The engine and the sinks read no environment; here it becomes arguments. `environmentVariables`
 * is the list that help, the man page and docs/cli.md are made from.
 */
import { readFile, stat } from "node:fs/promises";
import { userInfo } from "node:os";
import { isAbsolute, join } from "node:path";
import { type Command, InvalidArgumentError, Option } from "commander";
import { type Secrets, systemCode, TidemarkError, type VaultOptions } from "../engine/index.ts";
import type { OpenSinkOptions, ProxyOptions } from "../sink/index.ts";
import { parseBytes, parseDuration, parseRate } from "./quantities.ts";
import { required } from "./reference/definitions.ts";

export type Environment = Readonly<Record<string, string | undefined>>;

/** The variables that have a value. */
export function definedIn(environment: Environment): Readonly<Record<string, string>> {
  return Object.fromEntries(
    Object.entries(environment).filter((entry): entry is [string, string] => entry[1] !== undefined),
  );
}

export interface OutputFlags {
  readonly json: boolean;
  readonly debug: boolean;
  readonly quiet: boolean;
  readonly verbose: boolean;
  /** Times in UTC on a terminal too. */
  readonly utc: boolean;
}

/** Flags of every command that opens a vault. */
export interface VaultFlags {
  readonly vault?: string | undefined;
  readonly state?: string | undefined;
  /** Path of a private key. */
  readonly key?: string | undefined;
  readonly workers?: number | undefined;
  readonly lanes?: number | undefined;
}

/**
 * A variable that a flag has is named with that flag; these have none, or stand for a flag of all
 * commands.
 */
export const environmentVariables: readonly (readonly [names: string, meaning: string])[] = [
  [
    "TIDEMARK_JSON, TIDEMARK_QUIET, TIDEMARK_VERBOSE, TIDEMARK_UTC, TIDEMARK_DEBUG",
    "1 stands for the flag of that name.",
  ],
  ["TIDEMARK_PROGRESS_FPS", "Lines of progress a second, 0.01 to 60. Without it, progress goes to a terminal only."],
  [
    "AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY",
    "Open a storage account. Without them and a SAS, the identity of the machine or of `az login` does.",
  ],
  [
    "TIDEMARK_PASSPHRASE_FILE",
    "File with the passphrase of an encrypted vault, or of the private key that `--key` names.",
  ],
  ["HTTPS_PROXY, HTTP_PROXY, NO_PROXY", "Proxy for a container's URL; small letters go first."],
  ["XDG_STATE_HOME, XDG_RUNTIME_DIR", "Folders of local caches and of the agent's control socket."],
  ["NO_COLOR", "No colours when it is set to anything."],
];

/** For `--help`. */
export const environmentHelp = `Environment:
  TIDEMARK_VAULT and other variables that flags name stand for these flags, and
  TIDEMARK_JSON=1, _QUIET, _VERBOSE, _UTC, _DEBUG for those above. A flag goes
  first. A SAS is safer in TIDEMARK_VAULT than in a command, which other users
  can see. AZURE_STORAGE_CONNECTION_STRING or AZURE_STORAGE_KEY open a storage
  account; without them and a SAS, the identity of the machine or of \`az login\`
  does. HTTPS_PROXY, HTTP_PROXY and NO_PROXY are used for URLs.
  TIDEMARK_PROGRESS_FPS=1 prints a line of progress a second into a pipe.
  NO_COLOR=1: no colours.
`;

/**
 * Flags of every command, found without parsing, so that they are known even when parsing fails.
 */
export function outputFlags(words: readonly string[], environment: Environment): OutputFlags {
  const end = words.indexOf("--");
  const flags = end === -1 ? words : words.slice(0, end);
  const isGiven = (name: string, short?: string): boolean =>
    flags.includes(`--${name}`) ||
    (short !== undefined && flags.includes(short)) ||
    isOn(environment[`TIDEMARK_${name.toUpperCase()}`]);
  return {
    json: isGiven("json"),
    debug: isGiven("debug"),
    quiet: isGiven("quiet", "-q"),
    verbose: isGiven("verbose", "-v"),
    utc: isGiven("utc"),
  };
}

const progressFpsMin = 0.01;
const progressFpsMax = 60;

/** Lines of progress a second; undefined when the variable is not set, or holds no such number. */
export function progressFps(environment: Environment): number | undefined {
  const text = said(environment["TIDEMARK_PROGRESS_FPS"]);
  const fps = text === undefined ? Number.NaN : Number(text);
  return fps >= progressFpsMin && fps <= progressFpsMax ? fps : undefined;
}

/** Refuses a variable that holds what it cannot hold. Errors: INVALID_ARGUMENT. */
export function checkEnvironment(environment: Environment): void {
  const text = said(environment["TIDEMARK_PROGRESS_FPS"]);
  if (text === undefined || progressFps(environment) !== undefined) return;
  throw new TidemarkError(
    "INVALID_ARGUMENT",
    `TIDEMARK_PROGRESS_FPS is ${JSON.stringify(text)}, which is not a number of lines a second`,
    {
      remedy: `set it to a number from ${progressFpsMin} to ${progressFpsMax}, such as TIDEMARK_PROGRESS_FPS=1, or unset it`,
    },
  );
}

/** Adds `--vault`, `--state` and `--key`. */
export function withVaultOptions(command: Command): Command {
  return command
    .addOption(required(new Option("--vault <vault>", "where the vault is").env("TIDEMARK_VAULT")))
    .addOption(new Option("--state <dir>", "local caches (default: ~/.local/state/tidemark)").env("TIDEMARK_STATE"))
    .addOption(new Option("--key <file>", "private key that opens an encrypted vault").env("TIDEMARK_KEY_FILE"));
}

/** Adds `--workers`, for commands that hash or compress. */
export function withWorkersOption(command: Command): Command {
  const workers = new Option("--workers <count>", "threads, 1 to 64 (default: one a core, up to 8)");
  return command.addOption(workers.env("TIDEMARK_WORKERS").argParser(wholeNumber));
}

/** Adds `--lanes`, for commands that write to the vault. */
export function withLanesOption(command: Command): Command {
  const lanes = new Option("--lanes <count>", "frames in flight, 2 to 32 (default: 5)");
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
  return {
    stateFolder: said(flags.state) ?? stateFolderDefault(environment),
    workers: flags.workers,
    lanes: flags.lanes,
    signal,
  };
}

/** The folder of local state. Errors: INVALID_ARGUMENT when there is none. */
export function neededStateFolder(state: string | undefined, environment: Environment): string {
  const folder = said(state) ?? stateFolderDefault(environment);
  if (folder !== undefined) return folder;
  throw new TidemarkError("INVALID_ARGUMENT", "there is no state folder, because this user has no home folder", {
    remedy: "name one with `--state DIR`, or with `stateFolder` in the configuration",
  });
}

/** More than a private key, a passphrase or a registration key has. */
const secretBytesMax = 1_048_576;

/**
 * What opens an encrypted vault, read from the files that `--key`, TIDEMARK_KEY_FILE and
 * TIDEMARK_PASSPHRASE_FILE name; undefined when none is named. Errors: INVALID_ARGUMENT.
 */
export async function vaultSecrets(flags: VaultFlags, environment: Environment): Promise<Secrets | undefined> {
  const keyFile = said(flags.key) ?? said(environment["TIDEMARK_KEY_FILE"]);
  const passphraseFile = said(environment["TIDEMARK_PASSPHRASE_FILE"]);
  if (keyFile === undefined && passphraseFile === undefined) return undefined;
  return {
    privateKey: keyFile === undefined ? undefined : await readSecret(keyFile, "the file of the key"),
    passphrase: passphraseFile === undefined ? undefined : await readPassphrase(passphraseFile),
  };
}

/** The first line of a file is a passphrase: editors end it with a line feed. Errors: INVALID_ARGUMENT. */
export async function readPassphrase(file: string): Promise<string> {
  return (await readSecret(file, "the file of the passphrase")).replace(/\r?\n[^]*$/, "");
}

/**
 * Text of a small file, in UTF-8, with or without a byte order mark. Errors: INVALID_ARGUMENT, without
 * any of its content, and with `named` for the file. The path of a secret is not told, because the
 * secret itself may have been given in its place.
 */
export async function readSecret(file: string, named: string = file): Promise<string> {
  try {
    const { size } = await stat(file);
    if (size > secretBytesMax) throw new RangeError(`it has ${String(size)} bytes`);
    return new TextDecoder("utf-8", { fatal: true }).decode(await readFile(file));
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    const fact = systemCode(error) ?? error.message;
    throw new TidemarkError("INVALID_ARGUMENT", `${named} cannot be read as text: ${fact}`, {
      remedy: "give the path of a readable file that is text in UTF-8",
    });
  }
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

/**
 * For commands without `--state`, too. XDG Base Directory Specification: a relative path in its
 * variable is invalid and ignored.
 */
function stateFolderDefault(environment: Environment): string | undefined {
  const own = said(environment["TIDEMARK_STATE"]);
  if (own !== undefined) return own;
  const folder = said(environment["XDG_STATE_HOME"]);
  if (folder !== undefined && isAbsolute(folder)) return join(folder, "tidemark");
  const home = homeFolder(environment);
  return home === undefined ? undefined : join(home, ".local", "state", "tidemark");
}

/** Undefined for a user without a home: a container's, or a service's. */
function homeFolder(environment: Environment): string | undefined {
  const home = said(environment["HOME"]);
  if (home !== undefined) return isAbsolute(home) ? home : undefined;
  try {
    return userInfo().homedir;
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    return undefined; // the user has no entry in the list of users
  }
}

/**
 * The proxy that the environment names for this scheme, as curl and others read it: small letters
 * go first, a bare host covers its subdomains.
 */
function proxyFor(address: string, environment: Environment): ProxyOptions | undefined {
  const scheme = /^(https?):/i.exec(address)?.[1]?.toLowerCase();
  if (scheme === undefined) return undefined;
  const nameOf = (name: string): string | undefined =>
    [name, name.toUpperCase()].find((variable) => said(environment[variable]) !== undefined);
  const setBy = nameOf(`${scheme}_proxy`);
  if (setBy === undefined) return undefined;
  const url = environment[setBy] ?? "";
  const hosts = (environment[nameOf("no_proxy") ?? ""] ?? "").split(/[\s,]+/).filter((host) => host !== "");
  const bypass = hosts.flatMap((host) => (/^[.*]|^[\d.]+$|:/.test(host) ? [host] : [host, `.${host}`]));
  return { url: url.includes("://") ? url : `http://${url}`, bypass, setBy };
}

/** A flag's size in bytes. Throws commander's InvalidArgumentError. */
export function byteSize(text: string): number {
  const bytes = parseBytes(text);
  if (bytes === undefined) throw new InvalidArgumentError("It is not a size such as 64KiB or 10GB.");
  return bytes;
}

/** A flag's rate in bytes a second. Throws commander's InvalidArgumentError. */
export function byteRate(text: string): number {
  const bytesPerSecond = parseRate(text);
  if (bytesPerSecond === undefined) throw new InvalidArgumentError("It is not a rate such as 100MB/s.");
  return bytesPerSecond;
}

/** A flag's duration in ms. Throws commander's InvalidArgumentError. */
export function duration(text: string): number {
  const ms = parseDuration(text);
  if (ms === undefined || ms === 0) throw new InvalidArgumentError("It is not a duration such as 5s, 15m or 24h.");
  return ms;
}
