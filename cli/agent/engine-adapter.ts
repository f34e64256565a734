/**
 * Adapter from the agent's ports to the engine: vaults with their stores and bandwidth limits,
 * protections, NBD servers.
 */

import { readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import {
  Bandwidth,
  type BandwidthTable,
  type CopyOptions,
  commandHook,
  type Finding,
  Group,
  hasCode,
  limited,
  NbdServer,
  type Notice,
  type PointDecision,
  type Protection,
  type ProtectionPolicy,
  type RetentionPolicy,
  type Sink,
  systemCode,
  TidemarkError,
  Vault,
  type VaultStats,
} from "../../engine/index.ts";
import { weekdays } from "../../engine/internal.ts";
import { openSink } from "../../sink/index.ts";
import { refuseEmptyImage } from "../commands/context.ts";
import { withoutSecrets } from "../errors.ts";
import { type Environment, neededStateFolder, sinkOptions, vaultSecrets } from "../settings.ts";
import { told } from "../waiting.ts";
import { Collecting } from "./collecting.ts";
import type { DiskConfig, ListenConfig, PolicyConfig, VaultConfig } from "./config.ts";
import { diskEvent } from "./disk-event.ts";
import { worst } from "./disk-runner.ts";
import type {
  AgentPoint,
  Clock,
  DiskEvent,
  DiskHealth,
  EngineAdapter,
  FailoverPort,
  PlanPort,
  ProtectionPort,
  ProtectOptions,
  ServerPort,
  VaultFacts,
  VaultPort,
} from "./ports.ts";
import { Registered } from "./registered.ts";
import { ReplicaKeeping } from "./replica-keeping.ts";
import { replicaOf } from "./replica-policy.ts";
import type { ScrubEntry, StartTime, TlsFiles } from "./schema.ts";
import { Scrubbing } from "./scrubbing.ts";

/** The machine's time. */
export const systemClock: Clock = {
  now: () => performance.now(),
  sleep: async (delayMs, signal) => {
    try {
      await delay(delayMs, undefined, { signal });
    } catch (error) {
      if (!signal.aborted) throw error;
    }
  },
};

/**
 * `environment` gives credentials, proxies and the default state folder. `onNotice` is told what a
 * store lets the vaults wait for.
 */
export function openEngineAdapter(
  environment: Environment,
  onNotice: (notice: Notice) => void = () => undefined,
): EngineAdapter {
  return {
    openVault: async (config, signal, disksOf, like) =>
      await EngineVault.open(config, environment, onNotice, disksOf, signal, like),
    listen: openServer,
  };
}

class EngineVault implements VaultPort {
  readonly #store: Sink;
  readonly #vault: Vault;
  readonly #bandwidth: Bandwidth;
  readonly #stateFolder: string;
  readonly #groups = new Map<string, Group>();
  readonly #listeners = new Map<string, (event: DiskEvent) => void>();
  readonly #registered: Registered | undefined;
  readonly #scrubbing: Scrubbing;
  readonly #collecting: Collecting;

  private constructor(parts: {
    readonly registered: Registered | undefined;
    readonly store: Sink;
    readonly vault: Vault;
    readonly bandwidth: Bandwidth;
    readonly stateFolder: string;
    readonly scrub: ScrubEntry | undefined;
    readonly collectEveryMs: number | undefined;
  }) {
    this.#registered = parts.registered;
    this.#store = parts.store;
    this.#vault = parts.vault;
    this.#bandwidth = parts.bandwidth;
    this.#stateFolder = parts.stateFolder;
    this.#scrubbing = new Scrubbing(parts.scrub, {
      scrub: async (options) => await this.#vault.scrub(options),
      clock: systemClock,
      onEvent: (event) => this.#tell(event),
    });
    this.#collecting = new Collecting(parts.collectEveryMs, {
      collect: async (options) => await this.#vault.collect(options),
      lastCollectedMs: async (signal) => await this.#vault.lastCollectedMs(signal),
      segmentBytes: async (signal) => await this.#vault.segmentBytes(signal),
      clock: systemClock,
      wallMs: () => Date.now(),
      onEvent: (event) => this.#tell(event),
    });
  }

  /** Creates the vault where there is none, as `tidemark replicate` does. */
  static async open(
    config: VaultConfig,
    environment: Environment,
    onNotice: (notice: Notice) => void,
    disksOf: () => readonly DiskHealth[],
    signal: AbortSignal,
    like: VaultPort | undefined,
  ): Promise<EngineVault> {
    const { address, proxy } = config;
    const bandwidth = new Bandwidth(tableOf(config));
    const stateFolder = neededStateFolder(config.stateFolder, environment);
    const registered = await Registered.find(stateFolder, address);
    const keys = await vaultSecrets({}, environment);
    const fromEnvironment = sinkOptions(address, environment, signal);
    const opened = await openSink(address, {
      ...fromEnvironment,
      credentials: { ...fromEnvironment.credentials, sas: registered?.sas },
      ...(proxy === undefined ? {} : { proxy }),
    });
    const store = told(opened, withoutSecrets(opened.description), onNotice);
    try {
      const options = { stateFolder, keys, onNotice, signal };
      const sink = limited(registered?.gated(store) ?? store, bandwidth);
      // What a registered machine does not find was not for it to make.
      const parameters = like instanceof EngineVault ? like.#vault.parameters : {};
      const vault = await (registered === undefined
        ? Vault.openOrCreate(sink, { ...parameters, ...options })
        : Vault.open(sink, options));
      await registered?.begin(vault, { disksOf, clock: systemClock, signal });
      return new EngineVault({
        registered,
        store,
        vault,
        bandwidth,
        stateFolder,
        scrub: config.scrub,
        collectEveryMs: config.collect,
      });
    } catch (error) {
      await store[Symbol.asyncDispose]();
      throw error;
    }
  }

  async protect({ disk, policy, onEvent }: ProtectOptions): Promise<ProtectionPort> {
    const { name, image, hooks } = disk;
    this.#registered?.refuseDisk(name);
    // Such as a loop device whose file has been detached; its tracking file must stay as it is.
    await refuseEmptyImage(image);
    const keeping = new ReplicaKeeping(undefined, {
      disk: name,
      run: async (options) => await this.#vault.replicas.run(options),
      clock: systemClock,
      onEvent,
    });
    const protection = await this.#vault.protect({
      disk: name,
      image,
      stateFolder: this.#stateFolder,
      policy: policyOf(policy),
      hook: hooks === undefined ? undefined : commandHook({ ...hooks, disk: name }),
      group: this.#group(disk),
      onEvent: (event) => {
        onEvent(diskEvent(event));
        if (event.kind !== "point") return;
        keeping.committed(event.point.sequence);
        this.#collecting.noteStored(event.point.storedBytes);
      },
    });
    this.#listeners.set(name, onEvent);
    let { recoveryPointThreshold } = policy;
    const keep = ({ replica, recoveryPointThreshold: threshold }: PolicyConfig): void => {
      recoveryPointThreshold = threshold;
      keeping.set(replica && replicaOf(replica, name));
    };
    keep(policy);
    const port = portOf(protection, () => [
      ...(this.#registered?.findings() ?? []),
      ...this.#scrubbing.findings(name),
      ...keeping.findings(recoveryPointThreshold),
    ]);
    return {
      ...port,
      setPolicy: (next) => {
        port.setPolicy(next);
        keep(next);
      },
      replica: () => keeping.facts(),
      // A refused cycle is repeated: a point that waits for it would wait until the agent is registered again.
      point: async ({ signal, ...options }) =>
        await port.point({ ...options, signal: this.#registered?.whileRegistered(signal) ?? signal }),
      stop: async (options) => {
        this.#listeners.delete(name);
        await keeping.stop();
        return await port.stop(options);
      },
    };
  }

  /** Events of a disk that this agent does not protect are reported with its first disk. */
  #tell(event: DiskEvent): void {
    const [first] = this.#listeners;
    const [disk, listener] = this.#listeners.has(event.disk)
      ? [event.disk, this.#listeners.get(event.disk)]
      : (first ?? []);
    if (disk !== undefined) listener?.({ ...event, disk });
  }

  get failovers(): FailoverPort {
    return this.#vault.failovers;
  }

  get plans(): PlanPort {
    return this.#vault.plans;
  }

  setLimit(bytesPerSecond: number | undefined): void {
    this.#bandwidth.setLimit(bytesPerSecond);
  }

  setBandwidth(config: Pick<VaultConfig, "bandwidth" | "limit" | "timeZone" | "scrub" | "collect">): void {
    this.#bandwidth.setTable(tableOf(config));
    this.#scrubbing.set(config.scrub);
    this.#collecting.set(config.collect);
  }

  facts(): VaultFacts {
    const { storedBytes, ageMs: collectionAgeMs } = this.#collecting;
    return { storedBytes, scrubAgeMs: this.#scrubbing.ageMs, collectionAgeMs };
  }

  async points(disk: string, policy: RetentionPolicy, signal: AbortSignal): Promise<readonly AgentPoint[]> {
    const dropped = new Set<number>();
    const onDecision = ({ sequence, keep }: PointDecision): void => {
      if (!keep) dropped.add(sequence);
    };
    // What cannot be read is a finding of the scrub.
    const onNotice = (): void => undefined;
    try {
      const points = await this.#vault.points(disk, { onNotice, signal });
      if (policy.kind !== "everything")
        await this.#vault.prune({
          disk,
          policy,
          dryRun: true,
          withoutFreedBytes: true,
          onDecision,
          onNotice,
          signal,
        });
      const damaged = this.#scrubbing.damagedPoints(disk);
      return points.map((point) => ({
        ...point,
        damaged: damaged.has(point.sequence),
        dropped: dropped.has(point.sequence),
      }));
    } catch (error) {
      if (hasCode(error, "DISK_NOT_FOUND")) return [];
      throw error;
    }
  }

  async stats(signal: AbortSignal): Promise<VaultStats> {
    return await this.#vault.stats({ signal });
  }

  async copyTo(to: VaultPort, options: CopyOptions & { readonly disks: readonly string[] }): Promise<void> {
    if (!(to instanceof EngineVault)) throw new TidemarkError("INTERNAL", "the vault is none of this engine");
    const there = new Set((await this.#vault.disks(options)).map(({ disk }) => disk));
    const disks = options.disks.filter((disk) => there.has(disk));
    await this.#vault.copyTo(to.#vault, { ...options, disks });
  }

  async prune(disk: string, policy: RetentionPolicy, signal: AbortSignal): Promise<number> {
    return (await this.#vault.prune({ disk, policy, signal })).removedPoints;
  }

  async close(): Promise<void> {
    try {
      await Promise.all([this.#scrubbing.stop(), this.#collecting.stop(), this.#registered?.stop()]);
      await this.#vault.close();
    } finally {
      await this.#store[Symbol.asyncDispose]();
    }
  }

  #group({ group: name }: DiskConfig): Group | undefined {
    if (name === undefined) return undefined;
    const group = this.#groups.get(name) ?? new Group(name);
    this.#groups.set(name, group);
    return group;
  }
}

/** `found`: findings about what the vault and the replica hold of the disk. */
function portOf(protection: Protection, found: () => readonly Finding[]): Omit<ProtectionPort, "replica"> {
  return {
    device: protection.device,
    status: () => {
      const status = protection.status();
      const findings = [...found(), ...status.findings];
      return { ...status, health: worst([status.health, ...findings.map(({ level }) => level)]), findings };
    },
    point: async (options) => await protection.point(options),
    pause: () => protection.pause(),
    resume: () => protection.resume(),
    setPolicy: (policy) => protection.setPolicy(policyOf(policy)),
    grow: async () => await protection.grow(),
    stop: async (options) => await protection.stop(options),
    rest: () => protection.rest,
  };
}

async function openServer({ address, tls }: ListenConfig): Promise<ServerPort> {
  const server = await NbdServer.listen({ listen: address, tls: tls === undefined ? undefined : await readTls(tls) });
  return {
    warnings: server.warnings,
    get connections() {
      return server.connections;
    },
    addExport: (offered) => server.addExport(offered),
    removeExport: async (name) => await server.removeExport(name),
    close: async () => await server.close(),
  };
}

async function readTls(files: TlsFiles): Promise<{ readonly key: Buffer; readonly cert: Buffer; readonly ca: Buffer }> {
  const [key, cert, ca] = await Promise.all([files.key, files.cert, files.ca].map(readTlsFile));
  if (key === undefined || cert === undefined || ca === undefined)
    throw new TidemarkError("INTERNAL", "a file was not read");
  return { key, cert, ca };
}

async function readTlsFile(path: string): Promise<Buffer> {
  try {
    return await readFile(path);
  } catch (error) {
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `the file ${path} for tls cannot be read (${systemCode(error) ?? "unknown"})`,
      {
        remedy: "name PEM files that this user may read",
        cause: error,
      },
    );
  }
}

function policyOf(policy: PolicyConfig): ProtectionPolicy {
  return {
    crashConsistentFrequencyMs: policy.crashConsistentFrequency,
    appConsistentFrequencyMs: policy.appConsistentFrequency,
    recoveryPointThresholdMs: policy.recoveryPointThreshold,
    freezeTimeoutMs: policy.freezeTimeout,
    barrierMsMax: policy.barrierTimeout,
    startTimeMs: startTimeMs(policy.startTime, new Date()),
    retention: policy.recoveryPointRetention,
  };
}

/** A time of the day is its next occurrence on this machine's clock, as in Azure Site Recovery. */
export function startTimeMs(startTime: StartTime, now: Date): number | undefined {
  switch (startTime.kind) {
    case "immediately":
      return undefined;
    case "instant":
      return startTime.timeMs;
    case "daily": {
      const next = new Date(now);
      next.setHours(Math.floor(startTime.minutes / 60), startTime.minutes % 60, 0, 0);
      if (next <= now) next.setDate(next.getDate() + 1);
      return next.getTime();
    }
  }
}

function tableOf({
  bandwidth,
  limit,
  timeZone,
}: Pick<VaultConfig, "bandwidth" | "limit" | "timeZone">): BandwidthTable {
  return {
    timeZone: timeZone ?? new Intl.DateTimeFormat().resolvedOptions().timeZone,
    bytesPerSecond: limit,
    windows: bandwidth.map((window) => ({
      from: timeOfDay(window.from),
      to: timeOfDay(window.to),
      // Ours count from Sunday, as Date does.
      days: window.days.flatMap((day) => weekdays[(day + 6) % 7] ?? []),
      bytesPerSecond: window.limit,
    })),
  };
}

function timeOfDay(minutes: number): string {
  return `${String(Math.floor(minutes / 60)).padStart(2, "0")}:${String(minutes % 60).padStart(2, "0")}`;
}
