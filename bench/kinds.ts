/** Names of the cases, apart from the cases, so that the command line can list them without loading any. */

/** Disks that are written while they are protected, by a process of its own. */
export type LiveKind = "front" | "burst" | "churn" | "restart" | "soak";

/**
 * Points that are to last: mounted, run from an instant target, taken to another place or vault, pruned, opened
 * at the end of a long chain, collected beside.
 */
export type KeepKind = "mount" | "instant" | "failover" | "copy" | "prune" | "open" | "collect";

/**
 * What a start costs, and what costs depend on: the size of the disk, the number of disks, lanes, block size, workers; and what
 * other programs need for the same.
 */
type CostKind = "start" | "size" | "disks" | "lanes" | "blocks" | "scaling" | "peers";

/**
 * `kernels`: the inner loops, bare. `pipeline`: a whole cycle into a sink that discards. The
 * others: whole cycles against a store.
 */
export type BenchKind = "kernels" | "pipeline" | "initial" | "scattered" | "restore" | LiveKind | KeepKind | CostKind;

export const liveKinds: readonly LiveKind[] = ["front", "burst", "churn", "restart", "soak"];
export const keepKinds: readonly KeepKind[] = ["mount", "instant", "failover", "copy", "prune", "open", "collect"];
const costKinds: readonly CostKind[] = ["start", "size", "disks", "lanes", "blocks", "scaling", "peers"];
export const benchKinds: readonly BenchKind[] = [
  "initial",
  "scattered",
  "restore",
  ...liveKinds,
  ...keepKinds,
  ...costKinds,
  "pipeline",
  "kernels",
];
