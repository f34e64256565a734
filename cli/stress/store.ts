/**
 * Store under test: where the vault of a run lies, and what can be done to it. An Azurite of the run
 * can be killed, put back to an earlier copy of its folder, and run out of space. Between a store
 * that is spoken to over HTTP and its clients stands a fault proxy.
 *
 *     agent, readers, upkeep ─► FaultProxy ─► Azurite of the run, or the server that the user named
 *     proof ────────────────────────────────►
 */
import { cp, readdir, rm } from "node:fs/promises";
import { join, resolve } from "node:path";
import process from "node:process";
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, type Secrets, type Sink, TidemarkError, Vault } from "../../engine/index.ts";
import { makeFolder } from "../../engine/internal.ts";
import { Azurite, openSink, parseVaultSpec } from "../../sink/index.ts";
import { type Environment, sinkOptions, vaultSecrets } from "../settings.ts";
import { FaultProxy, type FaultProxyOptions } from "./fault-proxy.ts";
import type { FaultKind } from "./schedule.ts";

/** The container of the vault in an Azurite of the run. */
const container = "tidemark";

const overHttp: readonly FaultKind[] = ["lost-ack", "503", "slow", "reset", "freeze", "flip"];

export interface StoreOptions extends FaultProxyOptions {
  /** The vault's address as the user named it; undefined: an Azurite in the folder of the run. */
  readonly vault: string | undefined;
  /** Folder of what the run stores, which may become full. */
  readonly spaceFolder: string;
  readonly environment: Environment;
  readonly signal: AbortSignal;
}

/** Why a run on this vault cannot have a fault, by kind. Asks the system, and changes nothing. */
export async function impossibleFaults(vault: string | undefined): Promise<ReadonlyMap<FaultKind, string>> {
  const reasons = new Map<FaultKind, string>();
  const { kind } = parseVaultSpec(vault ?? "azurite:store");
  if (kind === "memory") {
    throw new TidemarkError("INVALID_ARGUMENT", "a memory: vault is seen by one process, and a run has several", {
      remedy: "leave --vault out, or name azurite:DIR, dir:DIR or an http URL",
    });
  }
  const isSecret = kind === "azure" && new URL(vault ?? "").protocol !== "http:";
  if (kind === "directory" || isSecret) {
    const why = isSecret ? "what goes to it over TLS cannot be changed on its way" : "no requests go to a folder";
    for (const fault of overHttp) reasons.set(fault, why);
  }
  if (kind !== "azurite") {
    reasons.set("kill-store", "only an Azurite of the run can be killed");
    reasons.set("regress", "only an Azurite of the run can be put back");
  }
  if (vault !== undefined) reasons.set("disk-full", "a file system that is not of the run is not filled");
  else if (process.geteuid?.() !== 0 || process.platform !== "linux")
    reasons.set("disk-full", "only root may mount a small file system on Linux");
  return reasons;
}

export class StressStore implements AsyncDisposable {
  /** The vault's address for agent and readers. */
  readonly address: string;
  /** Credentials for `address`, and where the keys of an encrypted vault lie, as variables. */
  readonly environment: Environment;
  /** Given, the vault of the run is encrypted for them. */
  readonly keys: Secrets | undefined;
  readonly proxy: FaultProxy | undefined;
  readonly #options: StoreOptions;
  #azurite: Azurite | undefined;

  private constructor(
    options: StoreOptions,
    parts: {
      readonly address: string;
      readonly environment: Environment;
      readonly keys: Secrets | undefined;
      readonly proxy?: FaultProxy | undefined;
      readonly azurite?: Azurite | undefined;
    },
  ) {
    this.#options = options;
    this.address = parts.address;
    this.environment = parts.environment;
    this.keys = parts.keys;
    this.proxy = parts.proxy;
    this.#azurite = parts.azurite;
  }

  /**
   * Opens the store. Errors: VAULT_EXISTS when there is a vault already, INVALID_ARGUMENT, and those
   * of the store.
   */
  static async open(options: StoreOptions): Promise<StressStore> {
    const { vault, spaceFolder, signal } = options;
    const keys = await vaultSecrets({}, options.environment);
    const keyFiles = absoluteKeyFiles(options.environment);
    const environment = { ...options.environment, ...keyFiles };
    const spec = parseVaultSpec(vault ?? `azurite:${spaceFolder}/store`);
    let store: StressStore;
    if (spec.kind === "azurite") {
      const azurite = await Azurite.start(spec.dir, { signal });
      const proxy = await FaultProxy.open(azurite.endpoint, options);
      store = new StressStore(options, {
        address: `${proxy.through(azurite.endpoint)}/${container}`,
        environment: { ...keyFiles, AZURE_STORAGE_KEY: azurite.key },
        keys,
        proxy,
        azurite,
      });
    } else if (spec.kind === "azure" && vault?.startsWith("http:") === true) {
      const proxy = await FaultProxy.open(spec.containerUrl, options);
      store = new StressStore(options, { address: proxy.through(vault), environment, keys, proxy });
    } else {
      // The agent works in another folder.
      const address = spec.kind === "directory" ? `dir:${resolve(spec.dir)}` : (vault ?? "");
      store = new StressStore(options, { address, environment, keys });
    }
    try {
      await store.#refuseVault();
      return store;
    } catch (error) {
      await store[Symbol.asyncDispose]();
      throw error;
    }
  }

  /** Process of the Azurite of the run. */
  get pid(): number | undefined {
    return this.#azurite?.pid;
  }

  /** A sink on the vault as agent and readers see it, or past the proxy. The caller closes it. */
  async sink(way: "proxied" | "direct", signal?: AbortSignal): Promise<Sink> {
    const address = way === "proxied" ? this.address : this.#directAddress();
    return await openSink(address, sinkOptions(address, this.environment, signal ?? new AbortController().signal));
  }

  /** kill -9, and a new server after `downMs`. */
  async kill(downMs: number): Promise<void> {
    await this.#whileDead(async () => await delay(downMs));
  }

  /**
   * Keeps a copy of the store as it would be after a kill at this moment, and puts the store back to
   * it after `afterMs`. `onLost`: called when it is going to forget what it has acknowledged since.
   */
  async regress(afterMs: number, onLost: () => void): Promise<void> {
    const azurite = this.#running();
    const copy = join(this.#options.spaceFolder, "earlier");
    process.kill(azurite.pid, "SIGSTOP");
    try {
      await copyStore(azurite.dir, copy);
    } finally {
      process.kill(azurite.pid, "SIGCONT");
    }
    await delay(afterMs);
    onLost();
    await this.#whileDead(async () => await copyStore(copy, azurite.dir));
    await rm(copy, { recursive: true });
  }

  /** Removes what the run has put into a container that the user named. */
  async empty(): Promise<void> {
    if (this.#azurite !== undefined) return;
    await using sink = await this.sink("direct");
    const names: string[] = [];
    for await (const { name } of sink.list("")) names.push(name);
    for (const name of names) await sink.deleteObject(name);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.proxy?.[Symbol.asyncDispose]();
    await this.#azurite?.stop();
  }

  #directAddress(): string {
    const { vault = "" } = this.#options;
    if (this.#azurite === undefined) return this.proxy === undefined ? this.address : vault;
    return `${this.#azurite.endpoint}/${container}`;
  }

  /** Kills the server, calls `meanwhile`, and starts another one behind the proxy. */
  async #whileDead(meanwhile: () => Promise<void>): Promise<void> {
    const dead = this.#running();
    process.kill(dead.pid, "SIGKILL");
    await dead.stop();
    await meanwhile();
    this.#azurite = await Azurite.start(dead.dir, { signal: this.#options.signal });
    this.proxy?.retarget(this.#azurite.endpoint);
  }

  #running(): Azurite {
    if (this.#azurite === undefined) throw new TidemarkError("INTERNAL", "the store is no Azurite of the run");
    return this.#azurite;
  }

  /** The run makes a vault of its own. Errors: VAULT_EXISTS. */
  async #refuseVault(): Promise<void> {
    await using sink = await this.sink("direct", this.#options.signal);
    try {
      await (await Vault.open(sink, { keys: this.keys, signal: this.#options.signal })).close();
    } catch (error) {
      if (hasCode(error, "VAULT_NOT_FOUND")) return;
      throw error;
    }
    throw new TidemarkError("VAULT_EXISTS", "there is a vault already, and a run harms the vault that it works on", {
      remedy: "name an address with --vault where there is none, or leave --vault out",
    });
  }
}

/** The agent works in another folder. */
function absoluteKeyFiles(environment: Environment): Environment {
  const names = ["TIDEMARK_KEY_FILE", "TIDEMARK_PASSPHRASE_FILE"] as const;
  return Object.fromEntries(names.map((name) => [name, environment[name] && resolve(environment[name])]));
}

/** Azurite's own files; those of Tidemark stay, because they are locked while a server is used. */
async function copyStore(from: string, to: string): Promise<void> {
  await makeFolder(to);
  const names = await readdir(from);
  for (const name of await readdir(to)) if (name.startsWith("__")) await rm(join(to, name), { recursive: true });
  for (const name of names) if (name.startsWith("__")) await cp(join(from, name), join(to, name), { recursive: true });
}
