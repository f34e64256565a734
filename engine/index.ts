/**
 * Tidemark's engine: what an embedder imports. A store comes from `tidemark/sink`, or is anything
 * that implements `Sink`.
 */

export type { BlockDevice, DeviceExtent } from "./device.ts";
export type { DiagnosticEvent, DiagnosticEvents, DiagnosticName } from "./diagnostics.ts";
export { diagnosticNames, subscribeDiagnostics } from "./diagnostics.ts";
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
export type { DisableOptions, DisableSummary } from "./failover/disable.ts";
export type {
  FailbackOptions,
  FailoverOptions,
  OperateOptions,
  StartFailoverOptions,
} from "./failover/failover-options.ts";
export { Failovers } from "./failover/failovers.ts";
export type { InstantOptions, InstantProtectOptions, InstantStatus } from "./failover/instant.ts";
export { Instant } from "./failover/instant.ts";
export type {
  FailbackPlanOptions,
  PlanPreview,
  PlanPreviewMachine,
  StartPlanOptions,
} from "./failover/plans/plan-options.ts";
export type { PlanFault } from "./failover/plans/plan-points.ts";
export type {
  PlanJobSummary,
  PlanRunDisk,
  PlanRunDone,
  PlanRunMachineSummary,
  PlanRunSummary,
  PlanStepSummary,
} from "./failover/plans/plan-summary.ts";
export { Plans } from "./failover/plans/plans.ts";
export type { RenameDiskOptions, RenameDiskSummary } from "./failover/rename.ts";
export type {
  Application,
  HeldPoint,
  RemoveReplicaOptions,
  ReplicaDone,
  ReplicaOptions,
  ReplicaRemoved,
  ReplicaState,
  ReplicaSummary,
  ReplicaVerification,
} from "./failover/replica-summary.ts";
export { Replicas } from "./failover/replicas.ts";
export type {
  JobSummary,
  RunDisk,
  RunDone,
  RunJobSummary,
  RunSummary,
  RunTaskSummary,
} from "./failover/run-summary.ts";
export type { ServedDisk, ServedDiskStatus, ServeOptions } from "./failover/served-run.ts";
export { ServedRun } from "./failover/served-run.ts";
export type { Notice, NoticeOptions } from "./notice.ts";
export type { OperationOptions, Progress } from "./progress.ts";
export type { MountOptions, MountSummary } from "./recovery/mount/mount.ts";
export { Mount } from "./recovery/mount/mount.ts";
export type { OpenPointOptions, StreamOptions } from "./recovery/mount/point-handle.ts";
export { PointHandle } from "./recovery/mount/point-handle.ts";
export type { MaterializeOptions, MaterializeSummary } from "./recovery/restore/materialize.ts";
export type { ImageFormat, MaterializeMode } from "./recovery/restore/target.ts";
export type { CopySummary } from "./replication/copy-points.ts";
export type { CopiedDisk, CopiedPoint, CopiedPoints, CopyOptions } from "./replication/disk-copy.ts";
export { Group } from "./replication/protection/groups.ts";
export type { Finding, HealthLevel } from "./replication/protection/health.ts";
export type { CommandHookOptions, FunctionHookOptions, Hook } from "./replication/protection/hooks.ts";
export { commandHook, functionHook } from "./replication/protection/hooks.ts";
export { Protection } from "./replication/protection/protection.ts";
export type { ProtectionEvent, ProtectionState } from "./replication/protection/protection-state.ts";
export type {
  LastPrune,
  ProtectionPolicy,
  ProtectionStatus,
  ProtectOptions,
  StopOptions,
} from "./replication/protection/protection-status.ts";
export type { ReplicateOptions, ReplicateSummary } from "./replication/replicate.ts";
export type {
  CallOptions,
  ListedObject,
  ObjectStat,
  PageFence,
  PagesStat,
  PutCondition,
  Raised,
  Sink,
  StoredObject,
  Written,
} from "./sink.ts";
export { leaseSecondsMax, leaseSecondsMin, pageAlignmentBytes, pageWriteBytesMax } from "./sink.ts";
export type { ApplicationRecord, DigestName, GroupRecord, HookStep } from "./store/format/documents.ts";
export { digestNames } from "./store/format/documents.ts";
export type {
  Plan,
  PlanAction,
  PlanGroup,
  PlanMachine,
  PlanPhase,
  PlanStepState,
} from "./store/format/plan-run.ts";
export type { Heartbeat, RegistrationKey } from "./store/format/registration.ts";
export type { Secrets } from "./store/keys/recipients.ts";
export type { LabelOptions } from "./store/points/labels.ts";
export type { PinOptions, PinSummary } from "./store/points/pins.ts";
export type { DiffOptions } from "./store/points/point-diff.ts";
export { PointDiff } from "./store/points/point-diff.ts";
export type {
  DiskSummary,
  ListedPoint,
  ListingOptions,
  PointDetail,
  PointSummary,
  PointsOptions,
} from "./store/points/points.ts";
export type { BandwidthClocks, BandwidthTable, BandwidthWindow, Weekday } from "./throttle.ts";
export { Bandwidth, bandwidthLimitMin, limited } from "./throttle.ts";
export type { CollectOptions, CollectSummary } from "./upkeep/collection/collection.ts";
export type { DiskStats, SpaceCounts, VaultStats } from "./upkeep/collection/vault-stats.ts";
export type { EnrollSummary, KeysSummary, NewRecipients, RecipientSummary } from "./upkeep/keys/keyring.ts";
export { Keyring } from "./upkeep/keys/keyring.ts";
export type { PointDecision, PruneCounts, PruneOptions, PruneSummary } from "./upkeep/prune/prune.ts";
export type { RemoveDiskOptions, RemoveDiskSummary } from "./upkeep/prune/remove-disk.ts";
export type { IssueKeyOptions, RegisteredAgent, RegisterOptions } from "./upkeep/registration/agents.ts";
export { Agents } from "./upkeep/registration/agents.ts";
export type { LostObject, RepairedObject, RepairOptions, RepairSummary } from "./upkeep/repair/repair.ts";
export type { BandsPolicy, KeepPolicy, Period, RetentionBand, RetentionPolicy } from "./upkeep/retention/policy.ts";
export { parsePolicy } from "./upkeep/retention/policy.ts";
export type { Damage } from "./upkeep/scrub/damage.ts";
export type { ScrubOptions, ScrubSummary } from "./upkeep/scrub/scrub.ts";
export type { VerifyOptions, VerifySummary } from "./upkeep/scrub/verify.ts";
export { Vault } from "./vault.ts";
export type { VaultOptions, VaultParameters, VaultSummary } from "./vault-options.ts";
export { tidemarkVersion } from "./version.ts";
export type { ChangeSource, Consistency, Extent, Volume } from "./volume.ts";
