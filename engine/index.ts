/**
 * Tidemark's engine: what an embedder imports. A store comes from `tidemark/sink`, or is anything that implements `Sink`.
 */

export { processStat } from "./control/process-identity.ts";
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
export type { VaultOptions, VaultParameters } from "./control/vault.ts";
export { Vault } from "./control/vault.ts";
export type { ErrorCode, ErrorContext, ErrorDetail } from "./errors.ts";
export { hasCode, interrupted, systemCode, TidemarkError, throwIfAborted } from "./errors.ts";
export type { DigestName } from "./format/documents.ts";
export { digestNames } from "./format/documents.ts";
// For measurement: what a benchmark needs to call bare. No part of the API that is promised to embedders.
export { blockBytesDefault, granuleBytes } from "./limits.ts";
export { workersDefault } from "./pipeline/crew.ts";
export type { ChunkPlace } from "./pipeline/dedup-index.ts";
export { DedupIndex } from "./pipeline/dedup-index.ts";
export { type MeasuredKernels, openKernels } from "./pipeline/measurement.ts";
export type { CallOptions, ListedObject, ObjectStat, PageFence, PagesStat, PutCondition, Sink, StoredObject } from "./sink.ts";
export { leaseSecondsMax, leaseSecondsMin, pageAlignmentBytes, pageWriteBytesMax } from "./sink.ts";
export { FileVolume } from "./source/file-volume.ts";
export { tidemarkVersion } from "./version.ts";
export type { Consistency, Extent, Volume } from "./volume.ts";
