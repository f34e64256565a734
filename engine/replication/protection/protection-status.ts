/**
 * Options and status of a protected disk: plain data, for people and programs. The agent prints
 * these objects as JSON, so their names are a contract.
 */
import type { PointSummary } from "../../store/points/points.ts";
import { protectionTiming } from "../../timing.ts";
import type { RetentionPolicy } from "../../upkeep/retention/policy.ts";
import type { Group } from "./groups.ts";
import type { Finding, HealthLevel } from "./health.ts";
import type { Hook } from "./hooks.ts";
import type { ProtectionEvent, ProtectionState } from "./protection-state.ts";
import type { SchedulePlan } from "./schedule.ts";

/** Status of a protected disk. */
export interface ProtectionStatus {
  /** Name of the disk in the vault. */
  readonly disk: string;
  /** Name of the group with which the disk is cut; null: none. */
  readonly group: string | null;
  /** What the protection is doing. */
  readonly state: ProtectionState;
  /** The worst of the findings. */
  readonly health: HealthLevel;
  /** What is wrong or needs attention, each with a remedy. */
  readonly findings: readonly Finding[];
  /** Size of the disk. */
  readonly sizeBytes: number;
  /**
   * Replication lag: ages in ms of the newest cut that is captured from the disk, shipped to the
   * store, and committed. Null before the first.
   */
  readonly lag: {
    readonly capturedMs: number | null;
    readonly shippedMs: number | null;
    readonly committedMs: number | null;
  };
  /** Bytes written to the disk a second, over the last minute. */
  readonly churnBytesPerSecond: number;
  /** Bytes sent to the store a second, over the last minute. */
  readonly uploadBytesPerSecond: number;
  /** Bytes changed on the disk and not yet in a committed point. */
  readonly backlogBytes: number;
  /** Points that the vault lists, as this process has seen last; null: not yet. */
  readonly points: number | null;
  /** Points committed by this process. */
  readonly pointsCommitted: number;
  /** Newest committed point; null before the first. */
  readonly latest: PointSummary | null;
  /** How long cuts held new writes, in ms: the last, and the longest of the last 100. */
  readonly barrier: { readonly lastMs: number; readonly maxMs: number };
  /** Old content kept for the open cut, in bytes: in memory and spilled. */
  readonly preservedBytes: number;
  /** Null: this process has not pruned the disk, or its policy keeps all. */
  readonly lastPrune: LastPrune | null;
}

/** Outcome of the newest prune that the disk's protection made. */
export interface LastPrune {
  /** How long ago, in ms, on a monotonic clock. */
  readonly ageMs: number;
  /** Points that it dropped. */
  readonly removedPoints: number;
  /** Points that are left. */
  readonly keptPoints: number;
  /** Of these, points that only a reader or a new pin keeps. */
  readonly heldPoints: number;
}

/** When points of a protected disk are made, and which of them stay. */
export interface ProtectionPolicy {
  /** Time from one crash-consistent point to the next, in ms. Default: 5 s. */
  readonly crashConsistentFrequencyMs?: number | undefined;
  /** Time from one application-consistent point to the next, in ms. Default: only on demand. */
  readonly appConsistentFrequencyMs?: number | undefined;
  /** Health turns to Warning when the newest point is older, in ms. Default: none. */
  readonly recoveryPointThresholdMs?: number | undefined;
  /** Longest time for which the application is frozen, in ms. Default: 60 s. */
  readonly freezeTimeoutMs?: number | undefined;
  /** Longest time for which a cut holds new writes, in ms. Default: 300 ms. */
  readonly barrierMsMax?: number | undefined;
  /** When the first replication may begin, in ms since 1970. Default: at once. */
  readonly startTimeMs?: number | undefined;
  /** Which points stay. Default: all. */
  readonly retention?: RetentionPolicy | undefined;
}

/** Options of `Vault.protect`. */
export interface ProtectOptions {
  /** The disk's name in the vault; a new name makes a new disk. */
  readonly disk: string;
  /** Path of the image file or block device. It is locked while it is protected. */
  readonly image: string;
  /** Where the tracking file lies, and old content that does not fit in memory. */
  readonly stateFolder: string;
  /** Default: a crash-consistent point each 5 s, and all points stay. */
  readonly policy?: ProtectionPolicy | undefined;
  /** Freezes and thaws the application. Absent: there are no application-consistent points. */
  readonly hook?: Hook | undefined;
  /** Disks that are cut together with this one. Absent: the disk is cut alone. */
  readonly group?: Group | undefined;
  /**
   * Bytes of old content that an open cut keeps in memory. All disks of the process share 128 MiB
   * or 1/16 of memory. Default: all of it.
   */
  readonly preservedBytesMax?: number | undefined;
  /** The same in a file of the state folder; beyond that the cut is abandoned. Default: 4 GiB. */
  readonly spillBytesMax?: number | undefined;
  /** Gets each event of the protection. */
  readonly onEvent?: ((event: ProtectionEvent) => void) | undefined;
}

/** How `Protection.stop` ends. */
export interface StopOptions {
  /** Take a last point first. */
  readonly drain: boolean;
  /** Ends the waiting for it. */
  readonly signal?: AbortSignal | undefined;
}

/** Members of a group share the name, so the ticks of all have the same jitter. */
export function schedulePlanOf({
  disk,
  group,
  policy = {},
}: Pick<ProtectOptions, "disk" | "group" | "policy">): SchedulePlan {
  const {
    crashConsistentFrequencyMs = protectionTiming.cycleMsDefault,
    appConsistentFrequencyMs,
    startTimeMs,
  } = policy;
  return { crashConsistentFrequencyMs, appConsistentFrequencyMs, startTimeMs, disk: group?.name ?? disk };
}
