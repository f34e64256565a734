/**
 * Tidemark's engine: what an embedder imports. A store comes from `tidemark/sink`, or is anything that implements `Sink`.
 */
export type { CallOptions, ListedObject, ObjectStat, PageFence, PagesStat, PutCondition, Sink, StoredObject } from "./sink.ts";
export { leaseSecondsMax, leaseSecondsMin, pageAlignmentBytes, pageWriteBytesMax } from "./sink.ts";
export type { ErrorCode, ErrorContext, ErrorDetail } from "./errors.ts";
export { hasCode, interrupted, systemCode, throwIfAborted, TidemarkError } from "./errors.ts";
export type { Consistency, Extent, Volume } from "./volume.ts";
export { FileVolume } from "./source/file-volume.ts";
export type { DigestName } from "./format/documents.ts";
export { digestNames } from "./format/documents.ts";
export type { VaultOptions, VaultParameters } from "./control/vault.ts";
export { Vault } from "./control/vault.ts";
export type {
  Damage,
  DiskSummary,
  ImageFormat,
  MaterializeMode,
  MaterializeOptions,
  MaterializeSummary,
  Notice,
  OperationOptions,
  PointDetail,
  PointSummary,
  Progress,
  ReplicateOptions,
  ReplicateSummary,
  VaultSummary,
  VerifyOptions,
  VerifySummary,
} from "./control/summaries.ts";
export { tidemarkVersion } from "./version.ts";
