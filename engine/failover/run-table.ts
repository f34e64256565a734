/**
 * State machine of a failover run: a pure table, state × operation → next state, or the reason why
 * not. States and operations bear the names that Azure Site Recovery gives them.
 *
 *     test       Initiated ─ make targets ─► Completing ─ check ─► Completed ─ cleanup: remove ─► look again ─► None
 *     failover   Initiated ─ choose and claim ─► Completing ─ make targets ─► Completed ─┬─ commit ─► CommitFailoverCompleted
 *                                       ▲ change the point ┘                 └─ cancel: remove targets ─► free the disks ─► Protected
 *     failback   ResynchronizationInitiated ─ stage what the old image lacks ─► PlannedFailoverInitiated, as a failover
 *     committed  CommitFailoverCompleted ─┬─ reprotect: the disk is replicated from its new place ─► Protected
 *                                         └─ complete the migration: disable its protection ─► MarkedForDeletion
 *
 * A *running* state stands for one effect, which is work that may be done again from its beginning.
 * When the effect has succeeded or failed, the run passes to the next state. A process that dies
 * leaves a running state behind: Resume does its effect again, and cancel or cleanup gives it up.
 * In a settled state the run waits for an operation.
 *
 * Invariant: from every state that has not ended a chain of operations leads to one that has, and no
 * operation makes a test change what replication uses.
 */
import type { RunKind, RunOperation, RunState } from "../store/format/run.ts";
import { runOperations } from "../store/format/run.ts";

/** What a running state does. `failover/effects.ts` carries it out. */
export type RunEffect =
  | "synchronize"
  | "prepare"
  | "makeTargets"
  | "checkTargets"
  | "commit"
  | "reprotect"
  | "disable"
  | "removeTargets"
  | "lookAgain"
  | "freeDisks";

/** Why an operation is not allowed has the same answer in all states of one stage. */
type Stage = "testing" | "beginning" | "pending" | "ending" | "committed" | "ended";

interface StateRow {
  readonly stage: Stage;
  /** Of a running state. */
  readonly runs?: { readonly effect: RunEffect; readonly done: RunState; readonly failed: RunState };
  readonly allows: Partial<Readonly<Record<RunOperation, RunState>>>;
}

const cleanup = { TestFailoverCleanup: "TestFailoverCleanupInitiated" } as const;
const cancel = { CancelFailover: "CancelFailoverInProgressOnRecovery" } as const;
const choose = {
  ...cancel,
  ChangePit: "ChangeRecoveryPointInitiated",
  Commit: "CommitFailoverInProgressOnPrimary",
  CompleteMigration: "DisablingProtection",
} as const;

/** A running state: its effect, and where that leads. It can be resumed, and as `allows` says. */
function running(
  stage: Stage,
  effect: RunEffect,
  self: RunState,
  [done, failed]: readonly [done: RunState, failed: RunState],
  allows: StateRow["allows"] = {},
): StateRow {
  return { stage, runs: { effect, done, failed }, allows: { ...allows, Resume: self } };
}

/** A state in which the effect of the running state `of` has failed. */
function failed(stage: Stage, of: RunState, allows: StateRow["allows"]): StateRow {
  return { stage, allows: { ...allows, Resume: of } };
}

const table: Readonly<Record<RunState, StateRow>> = {
  TestFailoverInitiated: running(
    "testing",
    "makeTargets",
    "TestFailoverInitiated",
    ["TestFailoverCompleting", "TestFailoverFailed"],
    cleanup,
  ),
  TestFailoverCompleting: running(
    "testing",
    "checkTargets",
    "TestFailoverCompleting",
    ["TestFailoverCompleted", "TestFailoverCompletionFailed"],
    cleanup,
  ),
  TestFailoverCompleted: { stage: "testing", allows: cleanup },
  TestFailoverFailed: failed("testing", "TestFailoverInitiated", cleanup),
  TestFailoverCompletionFailed: failed("testing", "TestFailoverCompleting", cleanup),
  TestFailoverCleanupInitiated: running(
    "ending",
    "removeTargets",
    "TestFailoverCleanupInitiated",
    ["TestFailoverCleanupCompleting", "TestFailoverCleanupInitiated"],
    cleanup,
  ),
  TestFailoverCleanupCompleting: running(
    "ending",
    "lookAgain",
    "TestFailoverCleanupCompleting",
    ["None", "TestFailoverCleanupInitiated"],
    cleanup,
  ),
  None: { stage: "ended", allows: {} },
  ResynchronizationInitiated: running(
    "beginning",
    "synchronize",
    "ResynchronizationInitiated",
    ["PlannedFailoverInitiated", "ResynchronizationFailed"],
    cancel,
  ),
  ResynchronizationFailed: failed("beginning", "ResynchronizationInitiated", cancel),
  PlannedFailoverInitiated: running(
    "beginning",
    "prepare",
    "PlannedFailoverInitiated",
    ["PlannedFailoverCompleting", "PlannedFailoverFailed"],
    cancel,
  ),
  PlannedFailoverCompleting: running(
    "beginning",
    "makeTargets",
    "PlannedFailoverCompleting",
    ["PlannedFailoverCompleted", "PlannedFailoverCompletionFailed"],
    cancel,
  ),
  PlannedFailoverCompleted: { stage: "pending", allows: choose },
  PlannedFailoverFailed: failed("beginning", "PlannedFailoverInitiated", cancel),
  PlannedFailoverCompletionFailed: failed("beginning", "PlannedFailoverCompleting", cancel),
  UnplannedFailoverInitiated: running(
    "beginning",
    "prepare",
    "UnplannedFailoverInitiated",
    ["UnplannedFailoverCompleting", "UnplannedFailoverFailed"],
    cancel,
  ),
  UnplannedFailoverCompleting: running(
    "beginning",
    "makeTargets",
    "UnplannedFailoverCompleting",
    ["UnplannedFailoverCompleted", "UnplannedFailoverCompletionFailed"],
    cancel,
  ),
  UnplannedFailoverCompleted: { stage: "pending", allows: choose },
  UnplannedFailoverFailed: failed("beginning", "UnplannedFailoverInitiated", cancel),
  UnplannedFailoverCompletionFailed: failed("beginning", "UnplannedFailoverCompleting", cancel),
  ChangeRecoveryPointInitiated: running(
    "beginning",
    "makeTargets",
    "ChangeRecoveryPointInitiated",
    ["ChangeRecoveryPointCompleted", "ChangeRecoveryPointFailed"],
    { ...cancel, ChangePit: "ChangeRecoveryPointInitiated" },
  ),
  ChangeRecoveryPointCompleted: { stage: "pending", allows: choose },
  ChangeRecoveryPointFailed: failed("beginning", "ChangeRecoveryPointInitiated", {
    ...cancel,
    ChangePit: "ChangeRecoveryPointInitiated",
  }),
  CommitFailoverInProgressOnPrimary: running("ending", "commit", "CommitFailoverInProgressOnPrimary", [
    "CommitFailoverCompleted",
    "CommitFailoverFailedOnPrimary",
  ]),
  CommitFailoverFailedOnPrimary: failed("pending", "CommitFailoverInProgressOnPrimary", choose),
  CommitFailoverCompleted: {
    stage: "committed",
    allows: { ReverseReplicate: "ReprotectInitiated", CompleteMigration: "DisablingProtection" },
  },
  ReprotectInitiated: running("committed", "reprotect", "ReprotectInitiated", ["Protected", "ReprotectFailed"]),
  ReprotectFailed: failed("committed", "ReprotectInitiated", {
    ReverseReplicate: "ReprotectInitiated",
    CompleteMigration: "DisablingProtection",
  }),
  DisablingProtection: running("committed", "disable", "DisablingProtection", ["MarkedForDeletion", "DisablingFailed"]),
  DisablingFailed: failed("committed", "DisablingProtection", { CompleteMigration: "DisablingProtection" }),
  MarkedForDeletion: { stage: "ended", allows: {} },
  CancelFailoverInProgressOnRecovery: running(
    "ending",
    "removeTargets",
    "CancelFailoverInProgressOnRecovery",
    ["CancelFailoverInProgressOnPrimary", "CancelFailoverFailedOnRecovery"],
    cancel,
  ),
  CancelFailoverFailedOnRecovery: failed("ending", "CancelFailoverInProgressOnRecovery", cancel),
  CancelFailoverInProgressOnPrimary: running(
    "ending",
    "freeDisks",
    "CancelFailoverInProgressOnPrimary",
    ["Protected", "CancelFailoverFailedOnPrimary"],
    cancel,
  ),
  CancelFailoverFailedOnPrimary: failed("ending", "CancelFailoverInProgressOnPrimary", cancel),
  Protected: { stage: "ended", allows: {} },
};

const firstStates: Readonly<Record<RunKind, RunState>> = {
  test: "TestFailoverInitiated",
  planned: "PlannedFailoverInitiated",
  unplanned: "UnplannedFailoverInitiated",
  failback: "ResynchronizationInitiated",
};

const startingOperations: Readonly<Record<RunKind, RunOperation>> = {
  test: "TestFailover",
  planned: "PlannedFailover",
  unplanned: "UnplannedFailover",
  failback: "Failback",
};

const nothingLeft = "no step of the run is left to do";
const alreadyBegun = "the run has begun; a new run is started with `tidemark failover`";
const notReprotected = "only the disks of a failover that was committed and reprotected go back";

/** Why the states of a stage do not allow an operation: one sentence for each, and one for the others. */
const reasons: Readonly<Record<Stage, Partial<Readonly<Record<RunOperation | "others", string>>>>> = {
  testing: {
    ChangePit: "a test keeps its point; clean it up and test the other point",
    Commit: "a test is not committed: replication has never stopped",
    CancelFailover: "a test is ended by its cleanup",
    ReverseReplicate: "a test does not move its disks",
    CompleteMigration: "a test does not move its disks",
  },
  beginning: {
    TestFailoverCleanup: "only a test is cleaned up; a failover is cancelled",
    ReverseReplicate: "the failover is not committed",
    others: "the targets are not complete yet",
  },
  pending: {
    TestFailoverCleanup: "only a test is cleaned up; a failover is cancelled",
    ReverseReplicate: "the failover is not committed",
  },
  ending: {
    TestFailoverCleanup: "the run is not a test, and is being ended",
    CancelFailover: "the run is being ended in another way",
    others: "the run is being ended",
  },
  committed: {
    TestFailoverCleanup: "only a test is cleaned up",
    ChangePit: "the failover is committed, which ended the choice of the point",
    Commit: "the failover is committed already",
    CancelFailover: "the failover is committed, so there is no way back to the state before",
    ReverseReplicate: "the disks are being protected, or their protection is being disabled",
    CompleteMigration: "the disks are being protected at their new place",
  },
  ended: { others: "the run has ended" },
};

/** The state in which a run of this kind begins, and the operation that begins it. */
export function beginningOf(kind: RunKind): { readonly state: RunState; readonly operation: RunOperation } {
  return { state: firstStates[kind], operation: startingOperations[kind] };
}

/** The state that `operation` leads to, or the reason why it is not allowed. */
export function transition(
  state: RunState,
  operation: RunOperation,
): { readonly next: RunState } | { readonly reason: string } {
  const { stage, allows } = table[state];
  const next = allows[operation];
  if (next !== undefined) return { next };
  if (operation === "Failback") return { reason: notReprotected };
  if (Object.values(startingOperations).includes(operation)) return { reason: alreadyBegun };
  return { reason: reasons[stage][operation] ?? reasons[stage].others ?? nothingLeft };
}

/** What a running state does and where it leads; undefined: the state waits for an operation. */
export function effectOf(state: RunState): StateRow["runs"] {
  return table[state].runs;
}

/** The operations that a state allows, in the order of `runOperations`. */
export function allowedOperations(state: RunState): RunOperation[] {
  return runOperations.filter((operation) => table[state].allows[operation] !== undefined);
}

/** The operations that a state does not allow, each with the reason. */
export function refusedOperations(state: RunState): { readonly operation: RunOperation; readonly reason: string }[] {
  return runOperations.flatMap((operation) => {
    const outcome = transition(state, operation);
    return "reason" in outcome ? [{ operation, reason: outcome.reason }] : [];
  });
}

/** True while a failover waits for a commit or a cancel. */
export function isPending(state: RunState): boolean {
  return table[state].stage === "pending";
}

/** True when the run has ended: nothing of it is left but its record. */
export function hasEnded(state: RunState): boolean {
  return table[state].stage === "ended";
}
