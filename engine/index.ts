/**
 * Tidemark's engine: what an embedder imports. A store comes from `tidemark/sink`, or is anything that implements `Sink`.
 */

export type { BandwidthTable, BandwidthWindow, Weekday } from "./control/bandwidth.ts";
export { Bandwidth, bandwidthLimitMin, limited, weekdays } from "./control/bandwidth.ts";
export { Group } from "./control/groups.ts";
export type { CommandHookOptions, FunctionHookOptions, Hook } from "./control/hooks.ts";
export { commandHook, functionHook } from "./control/hooks.ts";
export { processStat } from "./control/process-identity.ts";
export { Protection } from "./control/protection.ts";
export type {
  Finding,
  HealthLevel,
  LastPrune,
  ProtectionEvent,
  ProtectionPolicy,
  ProtectionState,
  ProtectionStatus,
  ProtectOptions,
} from "./control/protection-status.ts";
export type { PointDecision, PruneCounts, PruneOptions, PruneSummary } from "./control/prune.ts";
export type { LostObject, RepairedObject, RepairOptions, RepairSummary } from "./control/repair.ts";
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
} from "./control/summaries.ts";
export type { VaultOptions, VaultParameters } from "./control/vault.ts";
export { Vault } from "./control/vault.ts";
export type { BlockDevice, DeviceExtent } from "./device.ts";
export type { ErrorCode, ErrorContext, ErrorDetail } from "./errors.ts";
export { hasCode, interrupted, systemCode, TidemarkError, throwIfAborted } from "./errors.ts";
export type { ApplicationRecord, DigestName, GroupRecord, HookStep } from "./format/documents.ts";
export { digestNames } from "./format/documents.ts";
// For measurement: what a benchmark needs to call bare. No part of the API that is promised to embedders.
export { blockBytesDefault, granuleBytes } from "./limits.ts";
export { Mount } from "./mount/mount.ts";
export type { NbdExport } from "./nbd/exports.ts";
export { NbdVolume } from "./nbd/nbd-volume.ts";
export type { NbdEndpoint } from "./nbd/protocol.ts";
export type { NbdServerOptions } from "./nbd/server.ts";
export { NbdServer } from "./nbd/server.ts";
export { workersDefault } from "./pipeline/crew.ts";
export type { ChunkPlace } from "./pipeline/dedup-index.ts";
export { DedupIndex } from "./pipeline/dedup-index.ts";
export { type MeasuredKernels, openKernels } from "./pipeline/measurement.ts";
export type { CollectOptions, CollectSummary } from "./reclaim/collection.ts";
export type { ScrubOptions, ScrubSummary } from "./recovery/scrub.ts";
export type { Decision, RetentionPoint } from "./retention/decide.ts";
export { decide } from "./retention/decide.ts";
export type { BandsPolicy, KeepPolicy, Period, RetentionBand, RetentionPolicy } from "./retention/policy.ts";
export { describePolicy, parsePolicy } from "./retention/policy.ts";
export type { SimulatedTimeline, SimulationOptions } from "./retention/simulate.ts";
export { simulateRetention } from "./retention/simulate.ts";
export type { CallOptions, ListedObject, ObjectStat, PageFence, PagesStat, PutCondition, Sink, StoredObject } from "./sink.ts";
export { leaseSecondsMax, leaseSecondsMin, pageAlignmentBytes, pageWriteBytesMax } from "./sink.ts";
export { FileVolume } from "./source/file-volume.ts";
// For stores that lie in files: the system calls that Node lacks. No part of the API that is promised to embedders.
export type { Libc } from "./source/libc.ts";
export { libc, punchHole, unsupportedErrnos } from "./source/libc.ts";
export { syncFolder } from "./source/sync-folder.ts";
export { ChangeTracker } from "./tracking/change-tracker.ts";
export { tidemarkVersion } from "./version.ts";
export type { Consistency, Extent, Volume } from "./volume.ts";
