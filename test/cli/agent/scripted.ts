/** An engine that does what the test says, on a clock that the test moves. */

import type { DiskConfig, ListenConfig, PolicyConfig, VaultConfig } from "../../../cli/agent/config.ts";
import type { Log, LogFields } from "../../../cli/agent/log.ts";
import type {
  AgentPoint,
  Clock,
  DiskEvent,
  EngineAdapter,
  FailoverPort,
  PlanPort,
  ProtectionPort,
  ProtectOptions,
  ReplicaFacts,
  ServerPort,
  VaultFacts,
  VaultPort,
} from "../../../cli/agent/ports.ts";
import type { LogLevel } from "../../../cli/agent/schema.ts";
import { formatListen } from "../../../engine/disk/nbd/address.ts";
import type {
  BlockDevice,
  CopyOptions,
  PointSummary,
  ProtectionStatus,
  TidemarkError,
  VaultStats,
} from "../../../engine/index.ts";
import { type RestingImage } from "../../../engine/internal.ts";

/** Time that passes when the test says so. */
export class VirtualClock implements Clock {
  #nowMs = 0;
  #sleepers: { readonly untilMs: number; readonly wake: () => void }[] = [];

  now(): number {
    return this.#nowMs;
  }

  async sleep(delayMs: number, signal: AbortSignal): Promise<void> {
    if (signal.aborted) return;
    let wake: () => void = () => undefined;
    const woken = new Promise<void>((resolve) => {
      wake = resolve;
    });
    const sleeper = { untilMs: this.#nowMs + delayMs, wake };
    this.#sleepers.push(sleeper);
    signal.addEventListener("abort", wake);
    await woken;
    signal.removeEventListener("abort", wake);
    this.#sleepers = this.#sleepers.filter((other) => other !== sleeper);
  }

  /** Delays that are waited for, in ms from now, sorted. */
  get pendingMs(): readonly number[] {
    return this.#sleepers.map(({ untilMs }) => untilMs - this.#nowMs).sort((a, b) => a - b);
  }

  async advance(elapsedMs: number): Promise<void> {
    this.#nowMs += elapsedMs;
    const due = this.#sleepers.filter(({ untilMs }) => untilMs <= this.#nowMs);
    this.#sleepers = this.#sleepers.filter(({ untilMs }) => untilMs > this.#nowMs);
    for (const { wake } of due) wake();
    await settled();
  }
}

/** Everything that can go on without time or input has gone on. */
export async function settled(): Promise<void> {
  for (let turn = 0; turn < 20; turn += 1) await new Promise<void>((resolve) => setImmediate(resolve));
}

export function pointOf(disk: string, sequence: number, more: Partial<PointSummary> = {}): PointSummary {
  return {
    disk,
    sequence,
    point: sequence.toString(16).padStart(32, "0"),
    time: "2026-05-01T12:00:00.000Z",
    consistency: "crash",
    group: null,
    volumeBytes: 4096,
    changedBytes: 0,
    newBytes: 0,
    storedBytes: 0,
    ...more,
  } as PointSummary;
}

export class ScriptedProtection implements ProtectionPort {
  readonly device: BlockDevice = { description: "scripted" } as BlockDevice;
  readonly calls: string[] = [];
  readonly disk: DiskConfig;
  policy: PolicyConfig;
  state: Partial<ProtectionStatus> = {};
  /**
   * Meetings of its group: a point request commits its share of all of them, and answers with the
   * last, which stays.
   */
  readonly meetings: string[] = [];
  /** What the image has become. */
  grownBytes: number | undefined;
  stopFailure: Error | undefined;
  replicaFacts: ReplicaFacts | null = null;
  /** What the image is at rest. */
  resting: RestingImage | undefined;
  /** Why the last point cannot be taken. */
  missed: TidemarkError | undefined;
  /** When set, points and last points wait for it. */
  gate: Promise<void> = Promise.resolve();
  readonly #emit: (event: DiskEvent) => void;
  #sequence = 0;

  constructor({ disk, policy, onEvent }: ProtectOptions) {
    this.disk = disk;
    this.policy = policy;
    this.#emit = onEvent;
  }

  status(): ProtectionStatus {
    return {
      disk: this.disk.name,
      group: this.disk.group ?? null,
      state: "protecting",
      health: "Normal",
      findings: [],
      sizeBytes: 4096,
      lag: { capturedMs: 100, shippedMs: 200, committedMs: 300 },
      churnBytesPerSecond: 2048,
      uploadBytesPerSecond: 1024,
      backlogBytes: 512,
      points: this.#sequence,
      pointsCommitted: this.#sequence,
      latest: this.#sequence === 0 ? null : pointOf(this.disk.name, this.#sequence),
      barrier: { lastMs: 4, maxMs: 9 },
      preservedBytes: 0,
      lastPrune: null,
      ...this.state,
    };
  }

  async point({
    applicationConsistent,
    signal,
  }: {
    readonly applicationConsistent: boolean;
    readonly signal: AbortSignal;
  }): Promise<PointSummary> {
    this.calls.push(applicationConsistent ? "app point" : "point");
    const gone = new Promise<never>((_resolve, reject) => {
      signal.addEventListener("abort", () => {
        this.calls.push("point given up");
        reject(new Error("given up"));
      });
    });
    await Promise.race([this.gate, gone]);
    for (const id of this.meetings.splice(0, this.meetings.length - 1))
      this.#commit({ group: { id, name: this.disk.group ?? "" } });
    const [meeting = null] = this.meetings;
    const group = meeting === null ? null : { id: meeting, name: this.disk.group ?? "" };
    return this.#commit({ group, consistency: applicationConsistent ? "app" : "crash" });
  }

  #commit(more: Partial<PointSummary>): PointSummary {
    this.#sequence += 1;
    const point = pointOf(this.disk.name, this.#sequence, more);
    this.#emit({ kind: "point", disk: this.disk.name, message: `point ${this.#sequence}`, point });
    return point;
  }

  pause(): void {
    this.calls.push("pause");
  }

  resume(): void {
    this.calls.push("resume");
  }

  setPolicy(policy: PolicyConfig): void {
    this.policy = policy;
  }

  async grow(): Promise<void> {
    this.state = { ...this.state, sizeBytes: this.grownBytes ?? this.status().sizeBytes };
  }

  async stop({
    drain,
    signal,
  }: {
    readonly drain: boolean;
    readonly signal: AbortSignal;
  }): Promise<TidemarkError | undefined> {
    this.calls.push(drain ? "drain" : "stop");
    if (drain) {
      const cut = new Promise<void>((resolve) => signal.addEventListener("abort", () => resolve()));
      await Promise.race([this.gate, cut]);
      if (signal.aborted) this.calls.push("cut short");
      if (this.stopFailure !== undefined) throw this.stopFailure;
      return this.missed;
    }
    return undefined;
  }

  replica(): ReplicaFacts | null {
    return this.replicaFacts;
  }

  rest(): RestingImage | undefined {
    return this.resting;
  }

  emit(event: Omit<DiskEvent, "disk">): void {
    this.#emit({ disk: this.disk.name, ...event });
  }
}

export class ScriptedEngine implements EngineAdapter {
  /** What happened to vaults and servers, in order. */
  readonly calls: string[] = [];
  /** The newest protection of each disk. */
  readonly protections: Map<string, ScriptedProtection> = new Map();
  readonly exports: Map<string, Set<string>> = new Map();
  /** Errors for the next calls, by `open NAME`, `protect DISK`, `listen ADDRESS`. */
  readonly failures: Map<string, Error[]> = new Map();
  readonly limits: Map<string, number | undefined> = new Map();
  /** Runs of every vault; none may be changed here. */
  failovers: FailoverPort = noFailovers;
  readonly plans: PlanPort = noPlans;
  /** The points of a disk, in every vault. */
  points: (disk: string) => readonly AgentPoint[] = () => [];
  /** What the points of every vault take. */
  stats: VaultStats = {
    vault: "0".repeat(32),
    points: 0,
    logicalBytes: 0,
    uniqueBytes: 0,
    storedBytes: 0,
    metadataBytes: 0,
    disks: [],
  };
  /** What copies do. */
  copy: (options: CopyOptions) => Promise<void> = async () => await Promise.resolve();
  /** What every vault tells of itself. */
  facts: VaultFacts = { storedBytes: null, scrubAgeMs: null, collectionAgeMs: null };

  protection(disk: string): ScriptedProtection {
    const protection = this.protections.get(disk);
    if (protection === undefined) throw new Error(`${disk} was never protected`);
    return protection;
  }

  fail(call: string, ...errors: readonly Error[]): void {
    this.failures.set(call, [...(this.failures.get(call) ?? []), ...errors]);
  }

  async openVault(config: VaultConfig): Promise<VaultPort> {
    this.#call(`open ${config.name}`);
    return {
      protect: async (options) => {
        this.#call(`protect ${options.disk.name}`);
        const protection = new ScriptedProtection(options);
        this.protections.set(options.disk.name, protection);
        return protection;
      },
      setLimit: (limit) => this.limits.set(config.name, limit),
      setBandwidth: ({ limit }) => this.calls.push(`bandwidth ${config.name} ${String(limit)}`),
      facts: () => this.facts,
      points: async (disk) => this.points(disk),
      stats: async () => this.stats,
      failovers: this.failovers,
      plans: this.plans,
      copyTo: async (_to, options) => {
        this.#call(`copy ${config.name}`);
        await this.copy(options);
      },
      prune: async (disk) => {
        this.#call(`prune ${config.name} ${disk}`);
        return 2;
      },
      close: async () => {
        this.calls.push(`close ${config.name}`);
      },
    };
  }

  async listen({ address }: ListenConfig): Promise<ServerPort> {
    const key = formatListen(address);
    this.#call(`listen ${key}`);
    const names = new Set<string>();
    this.exports.set(key, names);
    return {
      connections: 0,
      warnings: [],
      addExport: ({ name }) => names.add(name),
      removeExport: async (name) => {
        names.delete(name);
      },
      close: async () => {
        this.exports.delete(key);
        this.calls.push(`unlisten ${key}`);
      },
    };
  }

  #call(call: string): void {
    this.calls.push(call);
    const failure = this.failures.get(call)?.shift();
    if (failure !== undefined) throw failure;
  }
}

/** A log that is kept. */
export class KeptLog implements Log {
  readonly lines: { readonly level: LogLevel; readonly message: string; readonly fields: LogFields }[] = [];

  write(level: LogLevel, message: string, fields: LogFields = {}): void {
    this.lines.push({ level, message, fields });
  }

  setLevel(): void {
    this.write("debug", "level set");
  }

  reopen(): void {
    this.write("debug", "reopened");
  }

  close(): void {
    this.write("debug", "closed");
  }
}

const none = async (): Promise<never> => await Promise.reject(new Error("scripted vaults have no failovers"));

/** A vault without runs. */
export const noFailovers: FailoverPort = {
  start: none,
  failback: none,
  changePoint: none,
  commit: none,
  cancel: none,
  cleanup: none,
  reprotect: none,
  completeMigration: none,
  resume: none,
  serve: none,
  cancelJob: none,
  show: none,
  carryOutDue: async () => await Promise.resolve([]),
  list: async () => await Promise.resolve([]),
  jobs: async () => await Promise.resolve([]),
};

/** A vault without runs of plans. */
export const noPlans: PlanPort = {
  ...{ failback: none, changePoint: none, commit: none, cancel: none, cleanup: none, reprotect: none },
  ...{ start: none, preview: none, completeMigration: none, resume: none, cancelJob: none, show: none },
  has: async () => await Promise.resolve(false),
  list: async () => await Promise.resolve([]),
  jobs: async () => await Promise.resolve([]),
};
