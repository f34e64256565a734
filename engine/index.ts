/**
 * Tidemark's engine: what an embedder imports. A store comes from `tidemark/sink`, or is anything that implements `Sink`.
 */

export type { BlockDevice, DeviceExtent } from "./device.ts";
export type { NbdExport } from "./disk/nbd/exports.ts";
export type { NbdVolumeOptions } from "./disk/nbd/nbd-volume.ts";
export { NbdVolume } from "./disk/nbd/nbd-volume.ts";
export type { NbdEndpoint } from "./disk/nbd/protocol.ts";
export type { NbdServerOptions } from "./disk/nbd/server.ts";
export { NbdServer } from "./disk/nbd/server.ts";
export type { NbdTls } from "./disk/nbd/tls.ts";
export type { FileIdentity } from "./disk/source/file-identity.ts";
export { FileVolume } from "./disk/source/file-volume.ts";
export { ChangeTracker } from "./disk/tracking/change-tracker.ts";
export type { ErrorCode, ErrorContext, ErrorDetail } from "./errors.ts";
export { hasCode, interrupted, systemCode, TidemarkError, throwIfAborted } from "./errors.ts";
export { Mount } from "./recovery/mount/mount.ts";
export { Group } from "./replication/protection/groups.ts";
export type { CommandHookOptions, FunctionHookOptions, Hook } from "./replication/protection/hooks.ts";
export { commandHook, functionHook } from "./replication/protection/hooks.ts";
export type { Meter } from "./replication/protection/meters.ts";
export { Protection } from "./replication/protection/protection.ts";
export type {
  Finding,
  HealthLevel,
  LastPrune,
  ProtectionEvent,
  ProtectionPolicy,
  ProtectionState,
  ProtectionStatus,
  ProtectOptions,
} from "./replication/protection/protection-status.ts";
export type { CallOptions, ListedObject, ObjectStat, PageFence, PagesStat, PutCondition, Sink, StoredObject } from "./sink.ts";
export { leaseSecondsMax, leaseSecondsMin, pageAlignmentBytes, pageWriteBytesMax } from "./sink.ts";
export type { ApplicationRecord, DigestName, GroupRecord, HookStep } from "./store/format/documents.ts";
export { digestNames } from "./store/format/documents.ts";
export type {
  ChangeSource,
  Damage,
  DiskSummary,
  ImageFormat,
  ListedPoint,
  MaterializeMode,
  MaterializeOptions,
  MaterializeSummary,
  MountOptions,
  MountSummary,
  Notice,
  OperationOptions,
  PinOptions,
  PinSummary,
  PointDetail,
  PointSummary,
  PointsOptions,
  Progress,
  ReplicateOptions,
  ReplicateSummary,
  VaultSummary,
  VerifyOptions,
  VerifySummary,
} from "./summaries.ts";
export type { BandwidthClocks, BandwidthTable, BandwidthWindow, Weekday } from "./throttle.ts";
export { Bandwidth, bandwidthLimitMin, limited, weekdays } from "./throttle.ts";
export type { CollectOptions, CollectSummary } from "./upkeep/collection/collection.ts";
export type { PointDecision, PruneCounts, PruneOptions, PruneSummary } from "./upkeep/prune/prune.ts";
export type { LostObject, RepairedObject, RepairOptions, RepairSummary } from "./upkeep/repair/repair.ts";
export type { Decision, RetentionPoint } from "./upkeep/retention/decide.ts";
export { decide } from "./upkeep/retention/decide.ts";
export type { BandsPolicy, KeepPolicy, Period, RetentionBand, RetentionPolicy } from "./upkeep/retention/policy.ts";
export { describePolicy, parsePolicy } from "./upkeep/retention/policy.ts";
export type { SimulatedTimeline, SimulationOptions } from "./upkeep/retention/simulate.ts";
export { simulateRetention } from "./upkeep/retention/simulate.ts";
export type { ScrubOptions, ScrubSummary } from "./upkeep/scrub/scrub.ts";
export type { VaultOptions, VaultParameters } from "./vault.ts";
export { Vault } from "./vault.ts";
export { tidemarkVersion } from "./version.ts";
export type { Consistency, Extent, Volume } from "./volume.ts";
