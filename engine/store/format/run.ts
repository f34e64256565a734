/**
 * Documents of failovers: a run, which is the state of one failover or test with the jobs that
 * worked on it, and a disk's claim, which says that a run has the disk.
 *
 * `engine/failover/run-table.ts` says which state follows which. States, operations and the fields
 * of jobs bear the names that Azure Site Recovery gives them.
 */
import { groupDisksMax, type PointRecord, readWriter, type WriterRecord } from "./documents.ts";
import { anyText, damaged, type Fields, hex32 } from "./fields.ts";
import { runObjectName, runRequestName } from "./names.ts";
import { decodeOfDisk, decodeOfVault, encode, type Owner } from "./signed-text.ts";

export const runKinds = ["test", "planned", "unplanned", "failback"] as const;
export type RunKind = (typeof runKinds)[number];

/** From the first place of the disks, or back from a place where they were protected. */
export const runDirections = ["PrimaryToRecovery", "RecoveryToPrimary"] as const;
export type RunDirection = (typeof runDirections)[number];

export const runStates = [
  "TestFailoverInitiated",
  "TestFailoverCompleting",
  "TestFailoverCompleted",
  "TestFailoverFailed",
  "TestFailoverCompletionFailed",
  "TestFailoverCleanupInitiated",
  "TestFailoverCleanupCompleting",
  "None",
  "ResynchronizationInitiated",
  "ResynchronizationFailed",
  "PlannedFailoverInitiated",
  "PlannedFailoverCompleting",
  "PlannedFailoverCompleted",
  "PlannedFailoverFailed",
  "PlannedFailoverCompletionFailed",
  "UnplannedFailoverInitiated",
  "UnplannedFailoverCompleting",
  "UnplannedFailoverCompleted",
  "UnplannedFailoverFailed",
  "UnplannedFailoverCompletionFailed",
  "ChangeRecoveryPointInitiated",
  "ChangeRecoveryPointCompleted",
  "ChangeRecoveryPointFailed",
  "CommitFailoverInProgressOnPrimary",
  "CommitFailoverFailedOnPrimary",
  "CommitFailoverCompleted",
  "ReprotectInitiated",
  "ReprotectFailed",
  "CancelFailoverInProgressOnRecovery",
  "CancelFailoverFailedOnRecovery",
  "CancelFailoverInProgressOnPrimary",
  "CancelFailoverFailedOnPrimary",
  "DisablingProtection",
  "DisablingFailed",
  "MarkedForDeletion",
  "Protected",
] as const;
export type RunState = (typeof runStates)[number];

export const runOperations = [
  "TestFailover",
  "PlannedFailover",
  "UnplannedFailover",
  "Failback",
  "TestFailoverCleanup",
  "ChangePit",
  "Commit",
  "CancelFailover",
  "ReverseReplicate",
  "CompleteMigration",
  "Resume",
] as const;
export type RunOperation = (typeof runOperations)[number];

/**
 * `instant`: an image that begins as the point, and is filled while it is served.
 * `image`: a file that is there before the run, and stays after it.
 */
export const targetKinds = ["file", "vhd", "device", "blob", "instant", "image"] as const;
export type TargetKind = (typeof targetKinds)[number];

export const jobStates = ["InProgress", "Succeeded", "Failed", "Suspended", "Cancelled"] as const;
export type JobState = (typeof jobStates)[number];

/** A point of a run: which one, and when it was cut. */
export type RunPoint = Pick<PointRecord, "sequence" | "id" | "timeMs" | "consistency" | "volumeBytes">;

/** One disk of a run. */
export interface RunMember {
  readonly disk: string;
  readonly point: RunPoint;
  /** `replica`: the target was this replica of the disk, and is it again after a cancel. */
  readonly target: { readonly kind: TargetKind; readonly path: string; readonly replica?: string | undefined };
  /**
   * What the target holds: null while it is being made, or may be a mixture of two points; then it
   * is compared whole before it is used.
   */
  readonly held: { readonly point: string; readonly signature: string | null } | null;
  /**
   * Set before a failback first writes the old image, until the image is the point. A cancel has to
   * make such an image whole, with or without its redo log.
   */
  readonly isMixture?: boolean | undefined;
  /**
   * The image from which a planned failover took the disk: it held this point when it had this
   * quiescence signature. A failback to it begins there. Null: not known.
   */
  readonly origin: { readonly path: string; readonly point: string; readonly signature: string } | null;
}

/** What becomes of a failover that is not committed in time. */
export const endingActions = ["commit", "rollback"] as const;
export type EndingAction = (typeof endingActions)[number];

/** Why the protection of a disk was disabled. */
export const disableReasons = ["NotSpecified", "MigrationComplete"] as const;
export type DisableReason = (typeof disableReasons)[number];

/** What ended a task. */
export interface RunError {
  readonly code: string;
  readonly message: string;
  readonly remedy: string | null;
}

/** One step of a job: the work that one state of the run stands for. */
export interface RunTask {
  readonly name: RunState;
  readonly state: JobState;
  readonly startMs: number;
  readonly endMs: number | null;
  /** What the commands of the step printed, and how they ended; null: it ran none. */
  readonly output: string | null;
  readonly exitCode: number | null;
  readonly error: RunError | null;
  /** How far the work on the present disk has come; absent: not known. */
  readonly progress?: TaskProgress | undefined;
}

export interface TaskProgress {
  readonly doneBytes: number;
  readonly totalBytes: number;
}

export interface RunJob {
  readonly operation: RunOperation;
  readonly state: JobState;
  readonly startMs: number;
  readonly endMs: number | null;
  readonly tasks: readonly RunTask[];
}

export interface RunDocument {
  readonly vault: string;
  /** Name of the run: 8 hexadecimal digits. */
  readonly run: string;
  /** Rises each time that a process begins to work on the run. */
  readonly epoch: number;
  /** The process that works on the run, or did when it died; null: it has left in good order. */
  readonly worker: WriterRecord | null;
  readonly kind: RunKind;
  readonly direction: RunDirection;
  readonly state: RunState;
  /** The host on which local targets are. */
  readonly host: string;
  /** The run of a recovery plan of which this is one machine. Its points are chosen there. */
  readonly plan?: string | undefined;
  readonly group: string | null;
  /** What the user asked for, in the words of the command. */
  readonly selector: string;
  readonly target: string;
  /**
   * Where the targets are served while a command is in the foreground; null: nowhere. `protects`:
   * the command takes the points of disks that are replicated from there, and no other needs to.
   * `byAgent`: an agent serves them in the background, and again at each of its starts.
   */
  readonly serving: {
    readonly listen: string;
    readonly protects: boolean;
    readonly byAgent?: boolean | undefined;
  } | null;
  readonly check: string | null;
  readonly shutdown: string | null;
  /** Where the disks are written today: an agent's socket or an image. */
  readonly source: { readonly kind: "agent" | "image"; readonly path: string } | null;
  readonly discardPoints: boolean;
  /** Counted from the end of the last job; null: an operator decides. */
  readonly ending: { readonly action: EndingAction; readonly afterMs: number } | null;
  readonly createdMs: number;
  readonly ttlMs: number | null;
  readonly notes: readonly { readonly timeMs: number; readonly text: string }[];
  readonly members: readonly RunMember[];
  readonly jobs: readonly RunJob[];
}

/** Where a disk is written: the only place whose writers get a session. */
export interface ClaimedPlace {
  readonly run: string;
  readonly host: string;
  /** Absolute path of the image or device. */
  readonly path: string;
}

/** A disk that a run has taken to another place, or is taking there. */
export interface ClaimDocument extends Owner {
  /** Null: no run has had the disk. */
  readonly run: string | null;
  /** Since the disk is protected at its new place; null: no writer gets a session. */
  readonly place: ClaimedPlace | null;
  /** The place from which the run takes the disk, which a cancel brings back; null: its first one. */
  readonly former: ClaimedPlace | null;
  /** Since the disk is not protected any more: no writer gets a session, wherever it is. */
  readonly disabled: Disabled | null;
}

export interface Disabled {
  readonly reason: DisableReason;
  readonly timeMs: number;
  /** Only while the disk is renamed: its new name. */
  readonly renamedTo?: string | undefined;
}

/** Asks the process that works on a run, or on a replica, to stop. */
export interface RunRequestDocument {
  readonly vault: string;
  /** Name of the run, or of the replica. */
  readonly run: string;
  /** The worker's epoch: a later worker does not obey it. */
  readonly epoch: number;
  readonly requestedMs: number;
  readonly host: string;
}

export const runName8: RegExp = /^[0-9a-f]{8}$/;
export const replicaName16: RegExp = /^[0-9a-f]{16}$/;
const requestName = /^([0-9a-f]{8}){1,2}$/;
/** A note, in one line. */
export const noteText: RegExp = /^[^\p{Cc}]{1,1000}$/u;
/** Jobs that a run remembers; older ones go. */
export const runJobsMax = 64;
const tasksMax = 256;
const notesMax = 256;
/** Paths, commands and messages: bounded, and free of NUL. */
export const longText: RegExp = /^[^\0]{0,8192}$/u;
export const outputText: RegExp = /^[^\0]{0,65536}$/u;

export function encodeRun(document: RunDocument): Uint8Array {
  return encode("run", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeRun(bytes: Uint8Array, object: string, vault: string): RunDocument {
  const { fields } = decodeOfVault("run", bytes, object, vault);
  const document: RunDocument = {
    vault,
    run: fields.text("run", runName8),
    epoch: fields.integer("epoch"),
    worker: fields.nestedOrNull("worker", readWriter),
    kind: fields.oneOf("kind", runKinds),
    direction: fields.oneOf("direction", runDirections),
    state: fields.oneOf("state", runStates),
    host: fields.text("host", anyText),
    ...(fields.has("plan") ? { plan: fields.text("plan", runName8) } : {}),
    group: fields.textOrNull("group", anyText),
    selector: fields.text("selector", anyText),
    target: fields.text("target", longText),
    // Runs of the first builds have no such field, and no targets that are served.
    serving: fields.has("serving")
      ? fields.nestedOrNull("serving", (serving) => ({
          listen: serving.text("listen", longText),
          protects: serving.boolean("protects"),
          ...(serving.has("byAgent") ? { byAgent: serving.boolean("byAgent") } : {}),
        }))
      : null,
    check: fields.textOrNull("check", longText),
    shutdown: fields.textOrNull("shutdown", longText),
    source: fields.nestedOrNull("source", readSource),
    discardPoints: fields.boolean("discardPoints"),
    ending: fields.has("ending")
      ? fields.nestedOrNull("ending", (ending) => ({
          action: ending.oneOf("action", endingActions),
          afterMs: ending.integer("afterMs", 1),
        }))
      : null,
    createdMs: fields.integer("createdMs"),
    ttlMs: fields.integerOrNull("ttlMs"),
    notes: fields.list("notes", notesMax, readNote),
    members: fields.list("members", groupDisksMax, readMember),
    jobs: fields.list("jobs", runJobsMax, readJob),
  };
  if (object !== runObjectName(document.run)) throw damaged(object, "it is the document of another run");
  if (document.members.length === 0) throw damaged(object, "it has no disk");
  return document;
}

function readMember(fields: Fields): RunMember {
  return {
    disk: fields.text("disk", anyText),
    point: fields.nested("point", readRunPoint),
    target: fields.nested("target", (target) => ({
      kind: target.oneOf("kind", targetKinds),
      path: target.text("path", longText),
      ...(target.has("replica") ? { replica: target.text("replica", replicaName16) } : {}),
    })),
    held: fields.nestedOrNull("held", (held) => ({
      point: held.text("point", hex32),
      signature: held.textOrNull("signature", longText),
    })),
    ...(fields.has("isMixture") ? { isMixture: fields.boolean("isMixture") } : {}),
    origin: fields.has("origin")
      ? fields.nestedOrNull("origin", (origin) => ({
          path: origin.text("path", longText),
          point: origin.text("point", hex32),
          signature: origin.text("signature", longText),
        }))
      : null,
  };
}

export function readSource(fields: Fields): NonNullable<RunDocument["source"]> {
  return { kind: fields.oneOf("kind", ["agent", "image"]), path: fields.text("path", longText) };
}

export function readNote(fields: Fields): RunDocument["notes"][number] {
  return { timeMs: fields.integer("timeMs"), text: fields.text("text", noteText) };
}

export function readRunPoint(fields: Fields): RunPoint {
  return {
    sequence: fields.integer("sequence", 1),
    id: fields.text("id", hex32),
    timeMs: fields.integer("timeMs"),
    consistency: fields.oneOf("consistency", ["crash", "app", "fuzzy"]),
    volumeBytes: fields.integer("volumeBytes"),
  };
}

export function readRunError(fields: Fields): RunError {
  return {
    code: fields.text("code", anyText),
    message: fields.text("message", longText),
    remedy: fields.textOrNull("remedy", longText),
  };
}

function readJob(fields: Fields): RunJob {
  return {
    operation: fields.oneOf("operation", runOperations),
    state: fields.oneOf("state", jobStates),
    startMs: fields.integer("startMs"),
    endMs: fields.integerOrNull("endMs"),
    tasks: fields.list("tasks", tasksMax, (task) => ({
      name: task.oneOf("name", runStates),
      state: task.oneOf("state", jobStates),
      startMs: task.integer("startMs"),
      endMs: task.integerOrNull("endMs"),
      output: task.textOrNull("output", outputText),
      exitCode: task.integerOrNull("exitCode"),
      error: task.nestedOrNull("error", readRunError),
      ...(task.has("progress") ? { progress: task.nested("progress", readProgress) } : {}),
    })),
  };
}

function readProgress(fields: Fields): TaskProgress {
  return { doneBytes: fields.integer("doneBytes"), totalBytes: fields.integer("totalBytes") };
}

export function encodeClaim(document: ClaimDocument): Uint8Array {
  return encode("claim", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeClaim(bytes: Uint8Array, object: string, expected: Owner): ClaimDocument {
  const { fields } = decodeOfDisk("claim", bytes, object, expected);
  return {
    vault: expected.vault,
    disk: expected.disk,
    run: fields.textOrNull("run", runName8),
    place: fields.nestedOrNull("place", readPlace),
    former: fields.nestedOrNull("former", readPlace),
    disabled: fields.has("disabled")
      ? fields.nestedOrNull("disabled", (disabled) => ({
          reason: disabled.oneOf("reason", disableReasons),
          timeMs: disabled.integer("timeMs"),
          ...(disabled.has("renamedTo") ? { renamedTo: disabled.text("renamedTo", anyText) } : {}),
        }))
      : null,
  };
}

function readPlace(fields: Fields): ClaimedPlace {
  return {
    run: fields.text("run", runName8),
    host: fields.text("host", anyText),
    path: fields.text("path", longText),
  };
}

export function encodeRunRequest(document: RunRequestDocument): Uint8Array {
  return encode("request", document).bytes;
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export function decodeRunRequest(bytes: Uint8Array, object: string, vault: string): RunRequestDocument {
  const { fields } = decodeOfVault("request", bytes, object, vault);
  const document: RunRequestDocument = {
    vault,
    run: fields.text("run", requestName),
    epoch: fields.integer("epoch"),
    requestedMs: fields.integer("requestedMs"),
    host: fields.text("host", anyText),
  };
  if (object !== runRequestName(document.run)) throw damaged(object, "it asks for something else");
  return document;
}
