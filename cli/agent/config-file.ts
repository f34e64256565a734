/**
 * Configuration file of the agent, checked: from YAML (JSON is a subset) to what the agent runs on,
 * or to every fault at once, each with its line and a remedy.
 *
 * Each entry is checked by itself against `schema.ts`; this file judges what one entry says about
 * another. A SAS or a password that stands in the file itself is refused, unless only the file's
 * owner can read it.
 */
import { access, constants, realpath, stat } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import { formatListen, parseListen, socketPathFault } from "../../engine/internal.ts";
import { parseVaultSpec } from "../../sink/index.ts";
import { formatDuration } from "../quantities.ts";
import type { Environment } from "../settings.ts";
import { refuseInsideVault } from "../vault-folder.ts";
import type { AgentConfig, DiskConfig, ListenConfig, LoadedConfig, PolicyConfig, VaultConfig } from "./config.ts";
import { ConfigDocument, type Path } from "./config-document.ts";
import { checkCopies, judgeCopies } from "./copy-checks.ts";
import { meant } from "./fields.ts";
import { controlSocketDefault } from "./listen.ts";
import { type Judge, resolveDashboard, resolveMetrics, resolveNotify } from "./monitoring-checks.ts";
import { readOwnFile } from "./own-file.ts";
import { judgeRegistration } from "./registered.ts";
import { judgeReplicas, resolveReplica } from "./replica-checks.ts";
import { retentionMs } from "./retention.ts";
import {
  type Checked,
  checkControl,
  checkDashboard,
  checkDisk,
  checkLogging,
  checkMetrics,
  checkNotify,
  checkPolicy,
  checkVault,
  type DiskEntry,
  type LoggingEntry,
} from "./schema.ts";

/** Reads and checks the file. Errors: INVALID_ARGUMENT when it cannot be read at all. */
export async function loadConfig(path: string, environment: Environment): Promise<LoadedConfig> {
  const { text, isPrivate } = await readOwnFile(path, "configuration", "hooks");
  return await new Checker(path, text, isPrivate, environment).check();
}

/** One reading of one file: collects faults, and what is sound. */
class Checker {
  readonly #file: string;
  readonly #folder: string;
  readonly #isPrivate: boolean;
  readonly #environment: Environment;
  readonly #document: ConfigDocument;
  readonly #names = { vaults: new Set<string>(), policies: new Set<string>() };
  readonly #fault = (at: Path, what: string, remedy: string): void => this.#document.fault(at, what, remedy);

  constructor(file: string, text: string, isPrivate: boolean, environment: Environment) {
    this.#file = file;
    this.#folder = dirname(resolve(file));
    this.#isPrivate = isPrivate;
    this.#environment = environment;
    this.#document = new ConfigDocument(file, text);
  }

  async check(): Promise<LoadedConfig> {
    // A half-read document would be full of faults that are none.
    if (!this.#document.isParsed) return this.#result(undefined);
    this.#document.substitute(this.#environment);
    const root: unknown = this.#document.toPlain();
    if (typeof root !== "object" || root === null || Array.isArray(root)) {
      this.#fault([], "the file holds no sections", "begin with `vaults:`, `policies:` and `disks:`");
      return this.#result(undefined);
    }
    const sections = new Map<string, unknown>(Object.entries(root));
    this.#refuseUnknownSections(sections);
    const vaults = this.#entries("vaults", sections.get("vaults"), checkVault);
    const policies = new Map<string, PolicyConfig>();
    for (const [name, policy] of this.#entries("policies", sections.get("policies"), checkPolicy))
      policies.set(
        name,
        resolveReplica(policy, (path) => this.#path(path)),
      );
    const disks = this.#diskEntries(sections.get("disks"));
    const control = this.#checked(["control"], checkControl(sections.get("control")));
    const logging = this.#checked(["logging"], checkLogging(sections.get("logging")));
    const resolvedVaults = this.#resolveVaults(vaults);
    for (const policy of policies.values()) this.#judgePolicy(policy);
    const resolvedDisks = await this.#resolveDisks(disks, resolvedVaults, policies);
    for (const vault of resolvedVaults.values()) {
      const ofVault = disks.filter(({ entry }) => entry.vault === vault.name);
      await judgeRegistration(vault, this.#environment, {
        vault: (what, remedy) => this.#fault(["vaults", vault.name], what, remedy),
        disks: ofVault.map(({ at, entry: { name } }) => ({
          name,
          report: (what, remedy) => this.#fault([...at, "name"], what, remedy),
        })),
      });
    }
    for (const policy of policies.values()) {
      const ofPolicy = [...resolvedDisks.values()].filter((disk) => disk.policy === policy.name);
      await judgeReplicas(policy, ofPolicy, resolvedVaults, (what, remedy) =>
        this.#fault(["policies", policy.name, "replica"], what, remedy),
      );
    }
    const copies = this.#checked(["copies"], checkCopies(sections.get("copies"))) ?? [];
    judgeCopies(copies, this.#names.vaults, resolvedDisks, this.#fault);
    const config = {
      path: resolve(this.#file),
      vaults: resolvedVaults,
      policies,
      disks: resolvedDisks,
      copies,
      control: { socket: this.#resolveSocket(control?.socket) },
      logging: this.#resolveLogging(logging),
      ...(await this.#monitoring(sections)),
    };
    return this.#result(config);
  }

  #result(config: AgentConfig | undefined): LoadedConfig {
    const { faults } = this.#document;
    return config !== undefined && faults.length === 0 ? { config, faults: [] } : { faults };
  }

  #refuseUnknownSections(sections: ReadonlyMap<string, unknown>): void {
    const known = ["vaults", "policies", "disks", "copies", "control", "logging", "metrics", "dashboard", "notify"];
    for (const name of sections.keys())
      if (!known.includes(name)) {
        const remedy = meant(name, known, `the sections are ${known.join(", ")}`);
        this.#document.faultAtKey([], name, `${name} is no section`, remedy);
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
      this.#fault(
        [section],
        `${section} is not a section with names`,
        `write \`NAME:\` and its fields below ${section}`,
      );
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

  #checked<Entry>(at: Path, { entry, faults }: Checked<Entry>): Entry | undefined {
    for (const { path, key, what, remedy } of faults) {
      if (key === undefined) this.#fault([...at, ...path], what, remedy);
      else this.#document.faultAtKey([...at, ...path], key, what, remedy);
    }
    // Marked last: all faults of one entry are told, and the value that stands in for a faulty
    // field causes no other.
    for (const { path, key } of faults) {
      const field = path[0] ?? key;
      if (field !== undefined) this.#document.markUnsound([...at, field]);
    }
    return entry;
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
        this.#fault(
          [...at, "address"],
          `the vault ${other} has the same address`,
          "use one vault for all of its disks",
        );
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
    if (url === undefined || !/^https?:$/.test(url.protocol))
      this.#fault(at, "the proxy's url is none", "write http://HOST:PORT");
    else if (url.password !== "") this.#refuseSecret(at, "the proxy's url holds a password");
  }

  #refuseSecret(at: Path, what: string): void {
    if (this.#isPrivate || !this.#document.isLiteral(at)) return;
    this.#fault(
      at,
      `${what}, and others can read this file`,
      "write ${ENV:NAME} and set that variable, or chmod 600 the file",
    );
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
    const both = (one: string, other: string): boolean =>
      this.#document.isSound([...at, one]) && this.#document.isSound([...at, other]);
    if (app !== undefined && app < crash && both("appConsistentFrequency", "crashConsistentFrequency")) {
      const what = `appConsistentFrequency is shorter than crashConsistentFrequency (${formatDuration(crash)})`;
      this.#fault([...at, "appConsistentFrequency"], what, "make it longer");
    }
    if (
      app !== undefined &&
      retention > 0 &&
      app >= retention &&
      both("appConsistentFrequency", "recoveryPointRetention")
    ) {
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
      if (disks.has(entry.name))
        this.#fault([...at, "name"], `there is another disk ${entry.name}`, "give each disk a name of its own");
      const listen = this.#resolveListen(at, entry);
      const image = this.#path(entry.image);
      await this.#judgeImage([...at, "image"], image, entry, vault, images);
      for (const name of ["key", "cert", "ca"] as const) {
        if (entry.tls !== undefined)
          await this.#judgeReadable([...at, "tls", name], this.#path(entry.tls[name]), constants.R_OK);
      }
      if (listen === undefined || disks.has(entry.name) || !this.#document.isSound([...at, "name"])) continue;
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
  #judgeHooks(
    at: Path,
    entry: DiskEntry,
    policy: PolicyConfig | undefined,
    disks: ReadonlyMap<string, DiskConfig>,
  ): void {
    if (policy?.appConsistentFrequency === undefined || entry.hooks !== undefined) return;
    const group = disks.get(entry.name)?.group;
    if (group !== undefined && [...disks.values()].some((other) => other.group === group && other.hooks !== undefined))
      return;
    this.#fault(
      [...at, "hooks"],
      `the policy ${policy.name} wants application-consistent points, and the disk has no hooks that bring its application to rest`,
      "add hooks with pre and post, or use a policy with appConsistentFrequency: off",
    );
  }

  #judgeName(at: Path, what: string, name: string, known: ReadonlySet<string>): void {
    if (known.has(name)) return;
    const remedy = meant(name, [...known], `define it under ${what === "vault" ? "vaults" : "policies"}`);
    this.#fault(at, `the ${what} ${name} is not defined`, remedy);
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
    const field = disk.group === this.#document.valueAt([...at, "group"]) ? "group" : "policy";
    for (const what of ["vault", "policy"] as const) {
      if (other[what] === disk[what]) continue;
      this.#fault(
        [...at, field],
        `the group ${disk.group ?? ""} has disks with different ${what === "vault" ? "vaults" : "policies"} (${other.name}, ${disk.name})`,
        `give all disks of a group one ${what}`,
      );
    }
  }

  async #judgeImage(
    at: Path,
    image: string,
    entry: DiskEntry,
    vault: VaultConfig | undefined,
    images: Map<string, string>,
  ): Promise<void> {
    // Also what is only exported for reading is opened for writing, which is what locks it.
    if (!(await this.#judgeReadable(at, image, constants.R_OK + constants.W_OK))) return;
    const status = await stat(image);
    if (!status.isFile() && !status.isBlockDevice()) {
      this.#fault(at, `${image} is neither a file nor a block device`, "name a disk's image or a block device");
      return;
    }
    const identity = status.isBlockDevice() ? `device ${status.rdev}` : await realpath(image);
    if (!this.#document.isSound(at)) return;
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

  async #monitoring(
    sections: ReadonlyMap<string, unknown>,
  ): Promise<Pick<AgentConfig, "metrics" | "dashboard" | "notify">> {
    const checked = <Entry>(name: string, check: (value: unknown) => Checked<Entry>): Entry | undefined =>
      sections.has(name) ? this.#checked([name], check(sections.get(name))) : undefined;
    const judge: Judge = {
      folder: this.#folder,
      report: this.#fault,
      refuseSecret: (at, what) => this.#refuseSecret(at, what),
    };
    return {
      metrics: resolveMetrics(checked("metrics", checkMetrics), judge),
      dashboard: await resolveDashboard(checked("dashboard", checkDashboard), judge),
      notify: resolveNotify(checked("notify", checkNotify) ?? [], judge),
    };
  }

  #path(path: string): string {
    return resolve(this.#folder, path);
  }
}
