/**
 * Ports of the agent: the part of the engine that the agent uses. Vaults protect disks, servers
 * export them.
 *
 * engine-adapter.ts implements the ports with the engine; tests implement them with scripts.
 */

import type {
  BlockDevice,
  CopyOptions,
  Failovers,
  HealthLevel,
  ListedPoint,
  Plans,
  PointSummary,
  ProtectionStatus,
  RetentionPolicy,
  TidemarkError,
  VaultStats,
} from "../../engine/index.ts";
import { type RestingImage } from "../../engine/internal.ts";
import type { DiskConfig, ListenConfig, PolicyConfig, VaultConfig } from "./config.ts";

/** Something that happened to a disk, for the log and for metrics. */
export interface DiskEvent {
  readonly kind: "state" | "point" | "prune" | "collect" | "copy" | "notice" | "failure";
  readonly disk: string;
  readonly message: string;
  /** A stable code, where the event has one. */
  readonly code?: string | undefined;
  /** The point that was committed. */
  readonly point?: PointSummary | undefined;
}

/** What the agent knows of a disk's replica. */
export interface ReplicaFacts {
  /** As `tidemark replica run --to` names it. */
  readonly target: string;
  /**
   * `starting`: it has not been looked at yet. `current`: it holds the newest point. `behind`: an
   * older one. `failed`: the last try to apply a point failed. `failed-over`: a failover has it.
   */
  readonly state: "starting" | "current" | "behind" | "failed" | "failed-over";
  /** The point that it holds; null: not known yet. */
  readonly sequence: number | null;
  readonly time: string | null;
}

/** What the agent knows of the copy of a disk's points in another of its vaults. */
export interface CopyFacts {
  /** Name of that vault. */
  readonly vault: string;
  /**
   * `starting`: nothing is known yet. `copying`: a copy is under way. `waiting`: until the next one is
   * due. `failed`: the last one could not be done, and is tried again.
   */
  readonly state: "starting" | "copying" | "waiting" | "failed";
  /** The newest point that this agent has copied: its sequence number there, and its time; null: none yet. */
  readonly sequence: number | null;
  readonly time: string | null;
  /** The time whose changes may be missing in that vault; null: not known yet. */
  readonly lagMs: number | null;
}

/** A disk under protection. */
export interface ProtectionPort {
  readonly device: BlockDevice;
  status(): ProtectionStatus;
  /** Resolves when a point whose cut was made after the call is committed. */
  point(options: { readonly applicationConsistent: boolean; readonly signal: AbortSignal }): Promise<PointSummary>;
  pause(): void;
  resume(): void;
  setPolicy(policy: PolicyConfig): void;
  /** The replica that follows the disk; null: none. */
  replica(): ReplicaFacts | null;
  /** Takes up what the image has grown by. */
  grow(): Promise<void>;
  /**
   * With `drain`, a last point and the exact bitmap are saved first; `signal` cuts that short. Gives
   * why the last point could not be taken. Idempotent.
   */
  stop(options: { readonly drain: boolean; readonly signal: AbortSignal }): Promise<TidemarkError | undefined>;
  /** Which point the image is, as `stop` has left it; undefined: that is not known. */
  rest(): RestingImage | undefined;
}

export interface ProtectOptions {
  readonly disk: DiskConfig;
  readonly policy: PolicyConfig;
  readonly onEvent: (event: DiskEvent) => void;
}

/** What the agent knows of a vault, as its scrubs and collections found it. Null: not known yet. */
export interface VaultFacts {
  /** Bytes that segments take at the store, measured when the agent starts and once an hour. */
  readonly storedBytes: number | null;
  /** Time since this agent's last scrub pass. */
  readonly scrubAgeMs: number | null;
  /** Time since the last collection by any process. */
  readonly collectionAgeMs: number | null;
}

/** A point of a disk, as the vault lists it and the agent knows it. */
export interface AgentPoint extends ListedPoint {
  /** Whether a scrub of this agent found damage in it that could not be healed. */
  readonly damaged: boolean;
  /** Whether the next prune drops it by the disk's policy. */
  readonly dropped: boolean;
}

/** What runs of disks and of plans have in common. */
type RunVerb =
  | "start"
  | "failback"
  | "changePoint"
  | "commit"
  | "cancel"
  | "cleanup"
  | "reprotect"
  | "completeMigration"
  | "resume"
  | "cancelJob"
  | "list"
  | "show"
  | "jobs";

/** Runs of the vault, as the engine works on them. */
export type FailoverPort = Pick<Failovers, RunVerb | "serve" | "carryOutDue">;

/** Runs of recovery plans in the vault, likewise. */
export type PlanPort = Pick<Plans, RunVerb | "preview" | "has">;

/** An open vault; its disks share it. */
export interface VaultPort {
  readonly failovers: FailoverPort;
  readonly plans: PlanPort;
  /**
   * Disks that name the same group are cut together. The signal ends waiting, not the protection.
   */
  protect(options: ProtectOptions, signal: AbortSignal): Promise<ProtectionPort>;
  /**
   * Bytes a second instead of what the configuration says (Infinity: no limit), or undefined for
   * the configuration's limits again.
   */
  setLimit(bytesPerSecond: number | undefined): void;
  /**
   * The table and limits of a changed configuration, and how it is scrubbed and collected, from now
   * on.
   */
  setBandwidth(config: Pick<VaultConfig, "bandwidth" | "limit" | "timeZone" | "scrub" | "collect">): void;
  facts(): VaultFacts;
  /** The disk's points, oldest first; none of a disk that is not in the vault yet. */
  points(disk: string, retention: RetentionPolicy, signal: AbortSignal): Promise<readonly AgentPoint[]>;
  stats(signal: AbortSignal): Promise<VaultStats>;
  /** Copies points to another vault; disks without a point are passed over. Errors: as `Vault.copyTo`. */
  copyTo(to: VaultPort, options: CopyOptions & { readonly disks: readonly string[] }): Promise<void>;
  /** Gives the number of points that were removed. Errors: those of the store. */
  prune(disk: string, policy: RetentionPolicy, signal: AbortSignal): Promise<number>;
  close(): Promise<void>;
}

/** What listens on one address, for all disks that are exported there. */
export interface ServerPort {
  readonly connections: number;
  /** Warnings about the address: sentences. */
  readonly warnings: readonly string[];
  addExport(options: { readonly name: string; readonly device: BlockDevice; readonly readOnly: boolean }): void;
  /** Resolves when no client uses the export any more; clients that stay are cut off. */
  removeExport(name: string): Promise<void>;
  close(): Promise<void>;
}

/** How a disk of the agent is. */
export interface DiskHealth {
  readonly disk: string;
  readonly health: HealthLevel;
}

export interface EngineAdapter {
  /**
   * `disksOf` gives the agent's disks of the vault, for its heartbeats. A vault that is created gets the
   * parameters of `like`.
   */
  openVault(
    config: VaultConfig,
    signal: AbortSignal,
    disksOf: () => readonly DiskHealth[],
    like?: VaultPort,
  ): Promise<VaultPort>;
  listen(config: ListenConfig, signal: AbortSignal): Promise<ServerPort>;
}

/** Time, as an argument. */
export interface Clock {
  /** Milliseconds on a clock that cannot be set. */
  now(): number;
  /** Resolves after `delayMs`, or as soon as `signal` aborts. */
  sleep(delayMs: number, signal: AbortSignal): Promise<void>;
}
