/**
 * Registered vault: what an agent does for a vault that its machine has registered with. It opens the
 * store with the credentials of the registration, protects the disks that the registration allows,
 * and tells the vault with heartbeats that it runs.
 *
 * The registration lies in the state folder. It is read again while the agent runs, so that
 * `tidemark agent register --renew` gives it new credentials.
 *
 * When the agent has been removed from the vault, it writes nothing to the vault any more. Its disks
 * are served and tracked on, because a write to a live disk fails only when the disk below fails.
 *
 * Invariant: requests of this vault use the credentials that lay in the state folder at most a second
 * before.
 */
import { resolve } from "node:path";
import {
  type Finding,
  hasCode,
  interrupted,
  type RegistrationKey,
  type Sink,
  systemCode,
  TidemarkError,
  throwIfAborted,
  type Vault,
} from "../../engine/index.ts";
import {
  agentsPrefix,
  findRegistration,
  isAllowedDisk,
  machineOf,
  readRegistrationKey,
} from "../../engine/internal.ts";
import { parseVaultSpec } from "../../sink/index.ts";
import { type Environment, neededStateFolder } from "../settings.ts";
import type { VaultConfig } from "./config.ts";
import { worst } from "./disk-runner.ts";
import { GatedSink } from "./gated-sink.ts";
import { PeriodicTask } from "./periodic-task.ts";
import type { Clock, DiskHealth } from "./ports.ts";

/** Between two readings of the registration, and so of the credentials. */
const rereadMs = 1_000;
/** Between two looks whether the agent is still registered. A heartbeat is written once a minute. */
const beatEveryMs = 20_000;
/** A store that does not answer holds up the start of the disks no longer. */
const firstBeatMsMax = 5_000;

/** The address without credentials, and with an absolute path: what registrations are found by. */
export function placeOf(address: string, folder = "."): string {
  const spec = parseVaultSpec(address);
  if (spec.kind === "azure") return spec.containerUrl;
  if (spec.kind === "memory") return address;
  return `${spec.kind === "directory" ? "dir" : "azurite"}:${resolve(folder, spec.dir)}`;
}

interface BeginOptions {
  readonly disksOf: () => readonly DiskHealth[];
  readonly clock: Clock;
  readonly signal: AbortSignal;
}

export class Registered {
  readonly #stateFolder: string;
  readonly #place: string;
  #bytes: Uint8Array;
  #key: RegistrationKey;
  #readAtMs: number = performance.now();
  #removal = new AbortController();
  #beating: PeriodicTask | undefined;

  private constructor(stateFolder: string, place: string, bytes: Uint8Array, key: RegistrationKey) {
    this.#stateFolder = stateFolder;
    this.#place = place;
    this.#bytes = bytes;
    this.#key = key;
  }

  /**
   * The registration of this machine for the vault at `address`; undefined: it has none. Errors:
   * KEY_ALTERED, FORMAT_UNSUPPORTED, DAMAGED.
   */
  static async find(stateFolder: string, address: string): Promise<Registered | undefined> {
    const place = placeOf(address);
    const bytes = await findRegistration(stateFolder, place);
    if (bytes === undefined) return undefined;
    return new Registered(stateFolder, place, bytes, await readRegistrationKey(bytes, nameOf(stateFolder, place)));
  }

  /** Gives the SAS to use from now on; undefined: the store takes none. */
  get sas(): (() => Promise<string>) | undefined {
    if (this.#key.sas === null) return undefined;
    return async () => {
      await this.#reread();
      return this.#key.sas ?? "";
    };
  }

  /** Errors: ACCESS_REFUSED for a disk that the registration does not allow. */
  refuseDisk(disk: string): void {
    const { agent, allowedDisks } = this.#key;
    if (isAllowedDisk(allowedDisks, disk)) return;
    throw new TidemarkError(
      "ACCESS_REFUSED",
      `the registration of ${agent} allows ${allowedDisks.join(", ")}, and not the disk ${disk}`,
      {
        remedy:
          "make a key that allows it with `tidemark vault key`, and run `tidemark agent register --renew --key FILE`",
      },
    );
  }

  /** `signal`, which also aborts with AGENT_REMOVED, at once if the vault does not list the agent any more. */
  whileRegistered(signal: AbortSignal): AbortSignal {
    return AbortSignal.any([signal, this.#removal.signal]);
  }

  /** `store` for reading only, except for the agent's own record, while the agent is removed. */
  gated(store: Sink): Sink {
    return new GatedSink(store, { pass: () => throwIfAborted(this.#removal.signal), exceptedPrefix: agentsPrefix });
  }

  /** Begins with heartbeats, the first of which is awaited. Errors: KEY_FOREIGN. */
  async begin(vault: Vault, { disksOf, clock, signal }: BeginOptions): Promise<void> {
    if (vault.id !== this.#key.vault)
      throw new TidemarkError("KEY_FOREIGN", `this machine is registered with another vault at ${this.#place}`);
    const machine = await machineOf(this.#stateFolder);
    const beat = async (until: AbortSignal): Promise<void> => {
      await this.#reread();
      const disks = disksOf();
      const about = { disks: disks.map(({ disk }) => disk), health: worst(disks.map(({ health }) => health)) };
      try {
        await vault.agents.heartbeat(this.#key.agent, machine, about, { signal: until });
        if (this.#removal.signal.aborted) this.#removal = new AbortController();
      } catch (error) {
        if (!(error instanceof TidemarkError)) throw error;
        if (hasCode(error, "AGENT_REMOVED")) this.#removal.abort(error);
      }
    };
    await beat(AbortSignal.any([signal, AbortSignal.timeout(firstBeatMsMax)]));
    this.#beating = new PeriodicTask({
      clock,
      firstAfterMs: beatEveryMs,
      everyMs: beatEveryMs,
      work: beat,
    });
  }

  /** What is wrong with the registration, for the status of each disk. */
  findings(): readonly Finding[] {
    if (!this.#removal.signal.aborted) return [];
    const { code, message, remedy = "" } = interrupted(this.#removal.signal);
    return [{ level: "Critical", code, cause: message, remedy }];
  }

  /** Idempotent. */
  async stop(): Promise<void> {
    await this.#beating?.stop();
  }

  /** What cannot be read leaves the credentials as they are. */
  async #reread(): Promise<void> {
    const nowMs = performance.now();
    if (nowMs - this.#readAtMs < rereadMs) return;
    this.#readAtMs = nowMs;
    try {
      const bytes = await findRegistration(this.#stateFolder, this.#place);
      if (bytes === undefined || Buffer.compare(bytes, this.#bytes) === 0) return;
      this.#key = await readRegistrationKey(bytes, nameOf(this.#stateFolder, this.#place));
      this.#bytes = bytes;
    } catch (error) {
      if (!(error instanceof TidemarkError) && systemCode(error) === undefined) throw error;
    }
  }
}

/** Reports what the machine's registration for a vault says of the vault and its disks. */
export async function judgeRegistration(
  { address, stateFolder }: VaultConfig,
  environment: Environment,
  report: {
    readonly vault: (what: string, remedy: string) => void;
    readonly disks: readonly { readonly name: string; readonly report: (what: string, remedy: string) => void }[];
  },
): Promise<void> {
  const judged = async (work: () => unknown, tell: (what: string, remedy: string) => void): Promise<void> => {
    try {
      await work();
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      tell(error.message, error.remedy ?? "register the machine again");
    }
  };
  await judged(async () => {
    const registered = await Registered.find(neededStateFolder(stateFolder, environment), address);
    for (const { name, report: tell } of report.disks) await judged(() => registered?.refuseDisk(name), tell);
  }, report.vault);
}

function nameOf(stateFolder: string, place: string): string {
  return `the registration for ${place} in ${stateFolder}`;
}
