/**
 * What the sinks, the benchmarks and the command line need of the engine beyond its API. Not
 * promised: it may change in any release.
 */

// Closes a resource after its use, also when the use has failed.
export { closing } from "./closing.ts";
// Fast copies from and to memory that threads share.
export { copyBytes } from "./copy-bytes.ts";
// Addresses of NBD servers as users write them.
export { exportUri, formatListen, parseListen, socketPathFault } from "./disk/nbd/address.ts";
export { listenPrivately } from "./disk/nbd/private-socket.ts";
// Where Linux counts what is written to a device.
export { sysfsFolder } from "./disk/source/file-volume.ts";
// The system calls that Node lacks, for stores that lie in files.
export type { CallResult, Libc } from "./disk/source/libc.ts";
export { libc, lockExclusiveAtOnce, punchHole, unsupportedErrnos } from "./disk/source/libc.ts";
// Files in folders that other users may write.
export {
  checkPlain,
  isOurs,
  makeFolder,
  notPlain,
  openPlain,
  ownFileMode,
  ownFolderMode,
  readOwn,
  readPlain,
  replacePlain,
} from "./disk/source/plain-file.ts";
export { syncFolder } from "./disk/source/sync-folder.ts";
// Files and objects that need not exist.
export { unlessAbsent } from "./errors.ts";
// What a failover asks of the agent.
export type { RunServer } from "./failover/failover-options.ts";
export { planTarget } from "./failover/plans/plan-target.ts";
export type { RestingSource, SourceDisks, SourceSite } from "./failover/source.ts";
// What a benchmark calls bare.
export { blockBytesDefault, fingerprintBytes, granuleBytes } from "./limits.ts";
export type { ChunkPlace } from "./pipeline/dedup-index.ts";
export { DedupIndex } from "./pipeline/dedup-index.ts";
export { type MeasuredKernels, openKernels } from "./pipeline/measurement.ts";
export { workersDefault } from "./pipeline/worker-pool.ts";
export { openImage } from "./recovery/restore/vhd.ts";
export type { RestingImage } from "./replication/protection/protected-image.ts";
// A name or path in a command that a remedy tells to type.
export { shellWord } from "./shell-word.ts";
// A sink around another.
export { type Answer, SinkDecorator, type SinkRequest } from "./sink-decorator.ts";
export { agentsPrefix, encodeDiskName } from "./store/format/names.ts";
// Bounds of recovery plans.
export { actionBounds, planActionsMax, planMachinesMax, planName, planTextMax } from "./store/format/plan-run.ts";
export { processStat } from "./store/points/process-identity.ts";
// Days of a bandwidth table.
export { weekdays } from "./throttle.ts";
// What a registering machine asks, and keeps.
export { refuseForeignVault } from "./upkeep/registration/agents.ts";
export { isAllowedDisk, readRegistrationKey } from "./upkeep/registration/registration-key.ts";
export { findRegistration, keepRegistration, machineOf } from "./upkeep/registration/registration-state.ts";
// Retention, shown and tried out.
export { describePolicy } from "./upkeep/retention/policy.ts";
export type { SimulatedTimeline } from "./upkeep/retention/simulate.ts";
export { simulateRetention } from "./upkeep/retention/simulate.ts";
