/** Names of the cases, apart from the cases, so that the command line can list them without loading any. */

/** Disks that are written while they are protected, by a process of its own. */
export type LiveKind = "front" | "burst" | "churn" | "restart" | "soak";

/**
 * Points that are to last: mounted, run from an instant target, taken to another place, pruned, opened
 * at the end of a long chain, collected beside.
 */
export type KeepKind = "mount" | "instant" | "failover" | "prune" | "open" | "collect";

/**
 * `kernels`: the inner loops, bare. `pipeline`: a whole cycle into a sink that discards. The
 * others: whole cycles against a store.
 */
export type BenchKind = "kernels" | "pipeline" | "initial" | "scattered" | "restore" | LiveKind | KeepKind;

export const liveKinds: readonly LiveKind[] = ["front", "burst", "churn", "restart", "soak"];
export const keepKinds: readonly KeepKind[] = ["mount", "instant", "failover", "prune", "open", "collect"];
export const benchKinds: readonly BenchKind[] = [
  "initial",
  "scattered",
  "restore",
  ...liveKinds,
  ...keepKinds,
  "pipeline",
  "kernels",
];
