/**
 * The agent's configuration file, from YAML (JSON is a subset) to what the agent runs on, or to every fault in it at once, each with its
 * line and what to do.
 *
 * `${ENV:NAME}` in any text stands for a variable of the environment, which is where secrets belong: a SAS or a password that is
 * written out is refused, unless nobody but its owner can read the file.
 */
import { constants } from "node:fs";
import { access, open, realpath, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { type Document, isAlias, isCollection, isMap, isNode, isScalar, LineCounter, type Node, parseDocument, visit } from "yaml";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import { parseVaultSpec } from "../../sink/index.ts";
import { refuseInsideVault } from "../commands/context.ts";
import { formatDuration } from "../quantities.ts";
import type { Environment } from "../settings.ts";
import { controlSocketDefault, formatListen, type ListenAddress, parseListen, socketPathFault } from "./listen.ts";
import { retentionMs } from "./retention.ts";
import {
  type Checked,
  checkControl,
  checkDisk,
  checkLogging,
  checkMetrics,
  checkPolicy,
  checkVault,
  type DiskEntry,
  type LoggingEntry,
  nearest,
  type PolicyEntry,
  type TlsFiles,
  type VaultEntry,
} from "./schema.ts";

export type VaultConfig = VaultEntry & { readonly name: string };
export type PolicyConfig = PolicyEntry & { readonly name: string };

/** Paths are absolute. */
export interface DiskConfig extends Omit<DiskEntry, "listen" | "tls" | "policy" | "group" | "hooks"> {
  readonly policy: string;
  readonly listen: ListenConfig;
  readonly hooks?: HooksConfig | undefined;
  /** The disks that are cut at one barrier with this one. */
  readonly group: string | undefined;
}

/** Shell commands, and the folder that they run in: the configuration's, so that a relative path in a command means what it does elsewhere there. */
export interface HooksConfig {
  readonly pre: string;
  readonly post: string;
  readonly cwd: string;
}

export interface ListenConfig {
  readonly address: ListenAddress;
  readonly tls: TlsFiles | undefined;
}

export interface AgentConfig {
  readonly path: string;
  readonly vaults: ReadonlyMap<string, VaultConfig>;
  readonly policies: ReadonlyMap<string, PolicyConfig>;
  readonly disks: ReadonlyMap<string, DiskConfig>;
  readonly control: { readonly socket: string };
  readonly logging: LoggingEntry;
  readonly metrics: { readonly listen: Extract<ListenAddress, { readonly kind: "tcp" }> } | undefined;
}

export interface ConfigFault {
  readonly file: string;
  /** Both from 1. */
  readonly line: number;
  readonly column: number;
  readonly message: string;
  readonly remedy: string;
}

export type LoadedConfig = { readonly config: AgentConfig; readonly faults: readonly [] } | { readonly faults: readonly ConfigFault[] };

/** A configuration of a thousand disks has about a hundred KiB. */
const configBytesMax = 4 * 1024 * 1024;

/** Reads and checks the file. Errors: INVALID_ARGUMENT when it cannot be read at all. */
export async function loadConfig(path: string, environment: Environment): Promise<LoadedConfig> {
  const { text, isPrivate } = await readConfig(path);
  return await new Checker(path, text, isPrivate, environment).check();
}

/** `agent.yaml:12:5: the disk's policy "gold" is not defined · did you mean "golden"?` */
export function formatFault({ file, line, column, message, remedy }: ConfigFault): string {
  return `${file}:${line}:${column}: ${message} · ${remedy}`;
}

/** The error that stands for all of `faults`. */
export function configError(path: string, faults: readonly ConfigFault[]): TidemarkError {
  const [first] = faults;
  const count = faults.length === 1 ? "a fault" : `${faults.length} faults`;
  return new TidemarkError("INVALID_ARGUMENT", `${path} has ${count}${first === undefined ? "" : `: ${formatFault(first)}`}`, {
    remedy: `correct the file; \`tidemark agent --check --config ${path}\` shows every fault with its line`,
    detail: { path, faults: faults.length },
  });
}

async function readConfig(path: string): Promise<{ readonly text: string; readonly isPrivate: boolean }> {
  let handle: Awaited<ReturnType<typeof open>> | undefined;
  try {
    handle = await open(path, constants.O_RDONLY);
    const status = await handle.stat();
    if (status.size > configBytesMax)
      throw new TidemarkError("INVALID_ARGUMENT", `${path} is too large for a configuration`, { remedy: "name a YAML file" });
    // The octal digits of group and others; a string, because modes are numbers only by tradition.
    return { text: await handle.readFile("utf8"), isPrivate: status.mode.toString(8).endsWith("00") };
  } catch (error) {
    if (error instanceof TidemarkError) throw error;
    throw new TidemarkError("INVALID_ARGUMENT", `the configuration ${path} cannot be read (${systemCode(error) ?? "unknown"})`, {
      remedy: "name a YAML file that this user may read",
      cause: error,
    });
  } finally {
    await handle?.close();
  }
}

type Path = readonly (string | number)[];

/** One reading of one file: collects faults, and what is sound. */
class Checker {
  readonly #file: string;
  readonly #folder: string;
  readonly #isPrivate: boolean;
  readonly #environment: Environment;
  readonly #lines = new LineCounter();
  readonly #document: Document;
  readonly #faults: (ConfigFault & { readonly offset: number })[] = [];
  /** Paths of texts that the file holds itself, without the environment. */
  readonly #literal = new WeakSet<Node>();
  /** Fields, as JSON of their paths, whose faults have been told. */
  readonly #unsound = new Set<string>();
  readonly #names = { vaults: new Set<string>(), policies: new Set<string>() };

  constructor(file: string, text: string, isPrivate: boolean, environment: Environment) {
    this.#file = file;
    this.#folder = dirname(resolve(file));
    this.#isPrivate = isPrivate;
    this.#environment = environment;
    this.#document = parseDocument(text, { lineCounter: this.#lines, prettyErrors: false });
  }

  async check(): Promise<LoadedConfig> {
    for (const error of this.#document.errors) this.#faultAt(error.pos[0], error.message.split("\n")[0] ?? "", "correct the YAML");
    // A half-read document would be full of faults that are none.
    if (this.#document.errors.length > 0) return this.#result(undefined);
    this.#substitute();
    const root: unknown = this.#toPlain();
    if (typeof root !== "object" || root === null || Array.isArray(root)) {
      this.#fault([], "the file holds no sections", "begin with `vaults:`, `policies:` and `disks:`");
      return this.#result(undefined);
    }
    const sections = new Map<string, unknown>(Object.entries(root));
    this.#refuseUnknownSections(sections);
    const vaults = this.#entries("vaults", sections.get("vaults"), checkVault);
    const policies = this.#entries("policies", sections.get("policies"), checkPolicy);
    const disks = this.#diskEntries(sections.get("disks"));
    const control = this.#section("control", sections.get("control"), checkControl);
    const logging = this.#section("logging", sections.get("logging"), checkLogging);
    const metrics = sections.has("metrics") ? this.#section("metrics", sections.get("metrics"), checkMetrics) : undefined;
    const resolvedVaults = this.#resolveVaults(vaults);
    for (const policy of policies.values()) this.#judgePolicy(policy);
    const resolvedDisks = await this.#resolveDisks(disks, resolvedVaults, policies);
    const config = {
      path: resolve(this.#file),
      vaults: resolvedVaults,
      policies,
      disks: resolvedDisks,
      control: { socket: this.#resolveSocket(control?.socket) },
      logging: this.#resolveLogging(logging),
      metrics: this.#resolveMetrics(metrics?.listen),
    };
    return this.#result(config);
  }

  #result(config: AgentConfig | undefined): LoadedConfig {
    if (config !== undefined && this.#faults.length === 0) return { config, faults: [] };
    const sorted = [...this.#faults].sort((a, b) => a.offset - b.offset);
    return { faults: sorted.map(({ file, line, column, message, remedy }) => ({ file, line, column, message, remedy })) };
  }

  /** Puts variables of the environment in the place of their references, and remembers what was written out. */
  #substitute(): void {
    visit(this.#document, {
      Scalar: (_key, node) => {
        if (typeof node.value !== "string") return;
        const written = node.value;
        if (!written.includes("${ENV:")) this.#literal.add(node);
        node.value = written.replace(/\$\{ENV:([^}]*)\}/g, (_match, name: string) => {
          const value = this.#environment[name];
          if (value !== undefined && value !== "") return value;
          this.#faultAt(node.range?.[0] ?? 0, `the variable ${name} is not set`, "set it where the agent is started, or correct its name");
          return "unset";
        });
      },
    });
  }

  #toPlain(): unknown {
    try {
      return this.#document.toJS({ maxAliasCount: 1_000 });
    } catch (error) {
      if (!(error instanceof ReferenceError)) throw error;
      this.#fault([], error.message, "write it out instead of repeating aliases");
      return {};
    }
  }

  #refuseUnknownSections(sections: ReadonlyMap<string, unknown>): void {
    const known = ["vaults", "policies", "disks", "control", "logging", "metrics"];
    for (const name of sections.keys()) {
      const meant = nearest(name, known);
      if (!known.includes(name))
        this.#faultAtKey(
          [],
          name,
          `${name} is no section`,
          meant === undefined ? `the sections are ${known.join(", ")}` : `did you mean ${meant}?`,
        );
    }
    for (const name of ["vaults", "policies", "disks"]) {
      if (!sections.has(name)) this.#fault([], `the section ${name} is missing`, "add it");
    }
  }

  /** The entries of a section that are sound, by name. */
  #entries<Entry>(
    section: "vaults" | "policies",
    value: unknown,
    check: (value: unknown) => Checked<Entry>,
  ): Map<string, Entry & { readonly name: string }> {
    const sound = new Map<string, Entry & { readonly name: string }>();
    if (value === undefined) return sound;
    if (typeof value !== "object" || value === null || Array.isArray(value)) {
      this.#fault([section], `${section} is not a section with names`, `write \`NAME:\` and its fields below ${section}`);
      return sound;
    }
    for (const [name, fields] of Object.entries(value)) {
      this.#names[section].add(name);
      const entry = this.#checked([section, name], check(fields));
      if (entry !== undefined) sound.set(name, { ...entry, name });
    }
    return sound;
  }

  #diskEntries(value: unknown): readonly { readonly at: Path; readonly entry: DiskEntry }[] {
    if (value === undefined) return [];
    if (!Array.isArray(value)) {
      this.#fault(["disks"], "disks is not a list", "write each disk as `- name: …` with its fields below");
      return [];
    }
    return value.flatMap((fields: unknown, index) => {
      const at = ["disks", index];
      const entry = this.#checked(at, checkDisk(fields));
      return entry === undefined ? [] : [{ at, entry }];
    });
  }

  #section<Entry>(name: string, value: unknown, check: (value: unknown) => Checked<Entry>): Entry | undefined {
    return this.#checked([name], check(value));
  }

  #checked<Entry>(at: Path, { entry, faults }: Checked<Entry>): Entry | undefined {
    for (const { path, key, what, remedy } of faults) {
      if (key === undefined) this.#fault([...at, ...path], what, remedy);
      else this.#faultAtKey([...at, ...path], key, what, remedy);
    }
    // Only now: what stands in for a faulty field must not be found faulty again.
    for (const { path, key } of faults) this.#unsound.add(JSON.stringify([...at, path[0] ?? key]));
    return entry;
  }

  #isSound(at: Path): boolean {
    return !at.some((_, index) => this.#unsound.has(JSON.stringify(at.slice(0, index + 1))));
  }

  #resolveVaults(entries: ReadonlyMap<string, VaultConfig>): Map<string, VaultConfig> {
    const resolved = new Map<string, VaultConfig>();
    const places = new Map<string, string>();
    for (const [name, vault] of entries) {
      const at = ["vaults", name];
      const address = this.#resolveAddress([...at, "address"], vault.address);
      if (/[?&]sig=/i.test(vault.address)) this.#refuseSecret([...at, "address"], "the address holds a SAS");
      if (vault.proxy !== undefined) this.#judgeProxy([...at, "proxy", "url"], vault.proxy.url);
      if (address === undefined) continue;
      const place = address.replace(/\?.*$/s, "");
      // Each `memory:` without a name is a vault of its own.
      const other = place === "memory:" ? undefined : places.get(place);
      if (other !== undefined)
        this.#fault([...at, "address"], `the vault ${other} has the same address`, "use one vault for all of its disks");
      places.set(place, name);
      const stateFolder = vault.stateFolder === undefined ? undefined : this.#path(vault.stateFolder);
      resolved.set(name, { ...vault, address, stateFolder });
    }
    return resolved;
  }

  #resolveAddress(at: Path, address: string): string | undefined {
    try {
      const spec = parseVaultSpec(address);
      if (spec.kind === "directory") return `dir:${this.#path(spec.dir)}`;
      return spec.kind === "azurite" ? `azurite:${this.#path(spec.dir)}` : address;
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      this.#fault(at, error.message, error.remedy ?? "correct it");
      return undefined;
    }
  }

  #judgeProxy(at: Path, text: string): void {
    const url = URL.canParse(text) ? new URL(text) : undefined;
    if (url === undefined || !/^https?:$/.test(url.protocol)) this.#fault(at, "the proxy's url is none", "write http://HOST:PORT");
    else if (url.password !== "") this.#refuseSecret(at, "the proxy's url holds a password");
  }

  #refuseSecret(at: Path, what: string): void {
    if (this.#isPrivate || !this.#literal.has(this.#nodeAt(at))) return;
    this.#fault(at, `${what}, and others can read this file`, "write ${ENV:NAME} and set that variable, or chmod 600 the file");
  }

  #judgePolicy(policy: PolicyConfig): void {
    const at = ["policies", policy.name];
    const {
      crashConsistentFrequency: crash,
      appConsistentFrequency: app,
      recoveryPointThreshold: threshold,
      recoveryPointRetention,
    } = policy;
    const retention = retentionMs(recoveryPointRetention) ?? 0;
    const both = (one: string, other: string): boolean => this.#isSound([...at, one]) && this.#isSound([...at, other]);
    if (app !== undefined && app < crash && both("appConsistentFrequency", "crashConsistentFrequency")) {
      const what = `appConsistentFrequency is shorter than crashConsistentFrequency (${formatDuration(crash)})`;
      this.#fault([...at, "appConsistentFrequency"], what, "make it longer");
    }
    if (app !== undefined && retention > 0 && app >= retention && both("appConsistentFrequency", "recoveryPointRetention")) {
      const what = `appConsistentFrequency is not shorter than recoveryPointRetention (${formatDuration(retention)})`;
      this.#fault([...at, "appConsistentFrequency"], what, "make it shorter, or keep points longer");
    }
    if (threshold !== undefined && threshold < crash && both("recoveryPointThreshold", "crashConsistentFrequency")) {
      const what = `recoveryPointThreshold is shorter than crashConsistentFrequency (${formatDuration(crash)}), so it is always exceeded`;
      this.#fault([...at, "recoveryPointThreshold"], what, "make it longer");
    }
  }

  async #resolveDisks(
    entries: readonly { readonly at: Path; readonly entry: DiskEntry }[],
    vaults: ReadonlyMap<string, VaultConfig>,
    policies: ReadonlyMap<string, PolicyConfig>,
  ): Promise<Map<string, DiskConfig>> {
    const disks = new Map<string, DiskConfig>();
    const images = new Map<string, string>();
    const listeners = new Map<string, DiskConfig>();
    for (const { at, entry } of entries) {
      const vault = vaults.get(entry.vault);
      const policy = policies.get(entry.policy);
      this.#judgeName([...at, "vault"], "vault", entry.vault, this.#names.vaults);
      this.#judgeName([...at, "policy"], "policy", entry.policy, this.#names.policies);
      if (disks.has(entry.name)) this.#fault([...at, "name"], `there is another disk ${entry.name}`, "give each disk a name of its own");
      const listen = this.#resolveListen(at, entry);
      const image = this.#path(entry.image);
      await this.#judgeImage([...at, "image"], image, entry, vault, images);
      for (const name of ["key", "cert", "ca"] as const) {
        if (entry.tls !== undefined) await this.#judgeReadable([...at, "tls", name], this.#path(entry.tls[name]), constants.R_OK);
      }
      if (listen === undefined || disks.has(entry.name) || !this.#isSound([...at, "name"])) continue;
      const group = entry.group ?? (policy?.multiVmConsistency === true ? policy.name : undefined);
      const hooks = entry.hooks === undefined ? undefined : { ...entry.hooks, cwd: this.#folder };
      const disk: DiskConfig = { ...entry, image, listen, group, hooks };
      this.#judgeListener(at, disk, listeners);
      this.#judgeGroup(at, disk, disks);
      disks.set(disk.name, disk);
    }
    for (const { at, entry } of entries) this.#judgeHooks(at, entry, policies.get(entry.policy), disks);
    return disks;
  }

  /** In a group it is enough that one application rests; all disks are cut meanwhile. */
  #judgeHooks(at: Path, entry: DiskEntry, policy: PolicyConfig | undefined, disks: ReadonlyMap<string, DiskConfig>): void {
    if (policy?.appConsistentFrequency === undefined || entry.hooks !== undefined) return;
    const group = disks.get(entry.name)?.group;
    if (group !== undefined && [...disks.values()].some((other) => other.group === group && other.hooks !== undefined)) return;
    this.#fault(
      [...at, "hooks"],
      `the policy ${policy.name} wants application-consistent points, and the disk has no hooks that bring its application to rest`,
      "add hooks with pre and post, or use a policy with appConsistentFrequency: off",
    );
  }

  #judgeName(at: Path, what: string, name: string, known: ReadonlySet<string>): void {
    if (known.has(name)) return;
    const meant = nearest(name, [...known]);
    this.#fault(
      at,
      `the ${what} ${name} is not defined`,
      meant === undefined ? `define it under ${what === "vault" ? "vaults" : "policies"}` : `did you mean ${meant}?`,
    );
  }

  #resolveListen(at: Path, entry: DiskEntry): ListenConfig | undefined {
    const address = parseListen(entry.listen, this.#folder);
    if (typeof address === "string") {
      this.#fault([...at, "listen"], `listen ${address}`, "write unix:PATH or tcp:HOST:PORT");
      return undefined;
    }
    const { tls } = entry;
    if (tls === undefined) return { address, tls };
    return { address, tls: { key: this.#path(tls.key), cert: this.#path(tls.cert), ca: this.#path(tls.ca) } };
  }

  /** One server listens on one address, so all of its exports speak the same TLS. */
  #judgeListener(at: Path, disk: DiskConfig, listeners: Map<string, DiskConfig>): void {
    const key = formatListen(disk.listen.address);
    const other = listeners.get(key);
    if (other === undefined) listeners.set(key, disk);
    else if (JSON.stringify(other.listen.tls) !== JSON.stringify(disk.listen.tls)) {
      this.#fault(
        [...at, "listen"],
        `the disk ${other.name} listens on ${key} with other tls files`,
        "use the same tls for both, or another address",
      );
    }
  }

  #judgeGroup(at: Path, disk: DiskConfig, disks: ReadonlyMap<string, DiskConfig>): void {
    const other = [...disks.values()].find(({ group }) => group !== undefined && group === disk.group);
    if (other === undefined) return;
    const field = disk.group === this.#document.getIn([...at, "group"]) ? "group" : "policy";
    for (const what of ["vault", "policy"] as const) {
      if (other[what] === disk[what]) continue;
      this.#fault(
        [...at, field],
        `the group ${disk.group ?? ""} has disks with different ${what === "vault" ? "vaults" : "policies"} (${other.name}, ${disk.name})`,
        `give all disks of a group one ${what}`,
      );
    }
  }

  async #judgeImage(at: Path, image: string, entry: DiskEntry, vault: VaultConfig | undefined, images: Map<string, string>): Promise<void> {
    // Also what is only exported for reading is opened for writing, which is what locks it.
    if (!(await this.#judgeReadable(at, image, constants.R_OK + constants.W_OK))) return;
    const status = await stat(image);
    if (!status.isFile() && !status.isBlockDevice()) {
      this.#fault(at, `${image} is neither a file nor a block device`, "name a disk's image or a block device");
      return;
    }
    const identity = status.isBlockDevice() ? `device ${status.rdev}` : await realpath(image);
    if (!this.#isSound(at)) return;
    const other = images.get(identity);
    if (other !== undefined) this.#fault(at, `the disk ${other} has the same image`, "protect each image as one disk");
    images.set(identity, entry.name);
    if (vault === undefined) return;
    try {
      await refuseInsideVault({ vault: vault.address }, image, "image");
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      this.#fault(at, error.message, error.remedy ?? "keep vault and image apart");
    }
  }

  async #judgeReadable(at: Path, path: string, mode: number): Promise<boolean> {
    try {
      await access(path, mode);
      return true;
    } catch (error) {
      const code = systemCode(error);
      if (code === "ENOENT" || code === "ENOTDIR") this.#fault(at, `${path} does not exist`, "correct the path");
      else
        this.#fault(
          at,
          `${path} cannot be ${mode === constants.R_OK ? "read" : "read and written"} (${code ?? "unknown"})`,
          "give this user the right to it",
        );
      return false;
    }
  }

  #resolveSocket(socket: string | undefined): string {
    const path = socket === undefined ? controlSocketDefault(this.#environment) : this.#path(socket);
    const wrong = socketPathFault(path);
    if (wrong !== undefined) this.#fault(["control", "socket"], `the control socket ${wrong}`, "name a shorter path");
    return path;
  }

  #resolveLogging(logging: LoggingEntry | undefined): LoggingEntry {
    const { file, ...rest } = logging ?? { level: "info", format: "auto" };
    return { ...rest, file: file === undefined ? undefined : this.#path(file) };
  }

  #resolveMetrics(listen: string | undefined): AgentConfig["metrics"] {
    if (listen === undefined) return undefined;
    const address = parseListen(listen, this.#folder);
    if (typeof address !== "string" && address.kind === "tcp") return { listen: address };
    this.#fault(
      ["metrics", "listen"],
      "metrics are served on a TCP address",
      "write tcp:127.0.0.1:9180; the control socket serves them too",
    );
    return undefined;
  }

  #path(path: string): string {
    return resolve(this.#folder, path);
  }

  #fault(at: Path, message: string, remedy: string): void {
    if (!this.#isSound(at)) return;
    this.#faultAt(this.#nodeAt(at).range?.[0] ?? 0, message, remedy);
  }

  /** At the name of a field rather than at its value. */
  #faultAtKey(at: Path, key: string, message: string, remedy: string): void {
    const map = this.#nodeAt(at);
    const pair = isMap(map) ? map.items.find((item) => isScalar(item.key) && String(item.key.value) === key) : undefined;
    const offset = isScalar(pair?.key) ? pair.key.range?.[0] : map.range?.[0];
    this.#faultAt(offset ?? 0, message, remedy);
  }

  #faultAt(offset: number, message: string, remedy: string): void {
    const { line, col } = this.#lines.linePos(offset);
    this.#faults.push({ file: this.#file, line: Math.max(line, 1), column: Math.max(col, 1), message, remedy, offset });
  }

  /** The node at `at`, or the deepest on the way to it that exists. */
  #nodeAt(at: Path): Node {
    let node: Node | null = this.#document.contents;
    for (const step of at) {
      const within = isAlias(node) ? node.resolve(this.#document) : node;
      const next: unknown = isCollection(within) ? within.getIn([step], true) : undefined;
      if (!isNode(next)) break;
      node = next;
    }
    const found = isAlias(node) ? node.resolve(this.#document) : node;
    return found ?? this.#document.createNode(null);
  }
}
