/**
 * The agent's configuration as the agent reads it: vaults, policies and disks by name, all paths
 * absolute, all durations in milliseconds. `config-file.ts` makes it from a YAML file, or lists
 * every fault of that file.
 */
import { type NbdEndpoint, TidemarkError } from "../../engine/index.ts";
import { shellWord } from "../../engine/internal.ts";
import type { CopyConfig } from "./copy-checks.ts";
import type {
  DashboardEntry,
  DiskEntry,
  LoggingEntry,
  NotifyEntry,
  PolicyEntry,
  TlsFiles,
  VaultEntry,
} from "./schema.ts";

export type VaultConfig = VaultEntry & { readonly name: string };
export type PolicyConfig = PolicyEntry & { readonly name: string };

/** Paths are absolute. */
export interface DiskConfig extends Omit<DiskEntry, "listen" | "tls" | "policy" | "group" | "hooks"> {
  readonly policy: string;
  readonly listen: ListenConfig;
  readonly hooks?: HooksConfig | undefined;
  /** The group whose disks are cut at one barrier with this one. */
  readonly group: string | undefined;
}

/**
 * Shell commands, and the folder that they run in: the configuration's, so that a relative path in
 * a command means what it does elsewhere there.
 */
export interface HooksConfig {
  readonly pre: string;
  readonly post: string;
  readonly cwd: string;
}

export interface ListenConfig {
  readonly address: NbdEndpoint;
  readonly tls: TlsFiles | undefined;
}

export interface AgentConfig {
  readonly path: string;
  readonly vaults: ReadonlyMap<string, VaultConfig>;
  readonly policies: ReadonlyMap<string, PolicyConfig>;
  readonly disks: ReadonlyMap<string, DiskConfig>;
  readonly copies: readonly CopyConfig[];
  readonly control: { readonly socket: string };
  readonly logging: LoggingEntry;
  readonly metrics: { readonly listen: TcpAddress } | undefined;
  readonly dashboard: DashboardConfig | undefined;
  readonly notify: readonly NotifyConfig[];
}

export type TcpAddress = Extract<NbdEndpoint, { readonly kind: "tcp" }>;

/** Paths are absolute. */
export interface DashboardConfig extends Omit<DashboardEntry, "listen"> {
  readonly listen: TcpAddress;
}

/** Where findings of level `on` and above are sent. */
export type NotifyConfig = Pick<NotifyEntry, "on"> &
  (
    | { readonly kind: "webhook"; readonly url: string }
    | { readonly kind: "command"; readonly command: string; readonly cwd: string }
  );

export interface ConfigFault {
  readonly file: string;
  /** Both from 1. */
  readonly line: number;
  readonly column: number;
  readonly message: string;
  readonly remedy: string;
}

export type LoadedConfig =
  | { readonly config: AgentConfig; readonly faults: readonly [] }
  | { readonly faults: readonly ConfigFault[] };

/** `agent.yaml:12:5: the disk's policy "gold" is not defined · did you mean "golden"?` */
export function formatFault({ file, line, column, message, remedy }: ConfigFault): string {
  return `${file}:${line}:${column}: ${message} · ${remedy}`;
}

export type TellFault = (fault: ConfigFault) => void;

/** `faultsError` of a configuration. */
export function configError(path: string, faults: readonly ConfigFault[], tell?: TellFault): TidemarkError {
  return faultsError({ path, what: path, check: "agent --check --config" }, faults, tell);
}

/**
 * The error that stands for all of `faults`. It repeats the first of them unless `tell` has got each. `check`:
 * the command that shows them, without the path.
 */
export function faultsError(
  { path, what, check }: { readonly path: string; readonly what: string; readonly check: string },
  faults: readonly ConfigFault[],
  tell?: TellFault,
): TidemarkError {
  for (const fault of faults) tell?.(fault);
  const [first] = tell === undefined ? faults : [];
  const count = faults.length === 1 ? "a fault" : `${faults.length} faults`;
  return new TidemarkError(
    "INVALID_ARGUMENT",
    `${what} has ${count}${first === undefined ? "" : `: ${formatFault(first)}`}`,
    {
      remedy: `correct the file; \`tidemark ${check} ${shellWord(path)}\` shows every fault with its line`,
      detail: { path, faults: faults.length },
    },
  );
}
