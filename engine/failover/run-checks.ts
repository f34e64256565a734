/** Checks of what an operator asks of a run, and the errors of what is not possible. */
import os from "node:os";
import { TidemarkError } from "../errors.ts";
import { groupDisksMax } from "../store/format/documents.ts";
import type { RunDocument, RunMember, RunOperation } from "../store/format/run.ts";
import { noteText } from "../store/format/run.ts";
import { isSamePlace } from "../store/points/failover-claim.ts";

/** Whether `--to` names replicas: `replica`, or `replica:NAME` for one of several. */
export function namesReplicas(to: string): boolean {
  return to === "replica" || to.startsWith("replica:");
}

/** What a user types for an operation on a run, without the run. */
export const commandsOfOperations: Readonly<Record<RunOperation, string>> = {
  TestFailover: "tidemark failover test",
  PlannedFailover: "tidemark failover planned",
  UnplannedFailover: "tidemark failover unplanned",
  Failback: "tidemark failback",
  TestFailoverCleanup: "tidemark failover cleanup",
  ChangePit: "tidemark failover change-point --point POINT",
  Commit: "tidemark failover commit",
  CancelFailover: "tidemark failover cancel",
  ReverseReplicate: "tidemark reprotect",
  CompleteMigration: "tidemark migrate complete",
  Resume: "tidemark jobs resume",
};

interface StartChecks {
  readonly kind: RunDocument["kind"];
  readonly to: string;
  readonly source?: RunDocument["source"] | undefined;
  readonly ttlMs?: number | undefined;
  readonly ending?: RunDocument["ending"] | undefined;
}

/** Errors: INVALID_ARGUMENT. */
export function checkStart(options: StartChecks, disks: readonly string[]): void {
  const wrong = (message: string, remedy: string): TidemarkError =>
    new TidemarkError("INVALID_ARGUMENT", message, { remedy });
  if (disks.length === 0 || disks.length > groupDisksMax)
    throw wrong(`a run has 1 to ${groupDisksMax} disks, not ${disks.length}`, "name disks or a group");
  if (options.kind === "test" && namesReplicas(options.to)) {
    throw wrong(
      "a test does not write to a replica, because the replica follows its disk meanwhile",
      "name another target, such as instant:unix:PATH; `tidemark replica verify` compares the replica with its point",
    );
  }
  if (options.kind === "planned" && (options.source ?? null) === null)
    throw wrong("a planned failover needs the source of the disk", "name its agent or its image");
  checkSource(options.source ?? null, disks);
  if (options.ttlMs !== undefined && !(Number.isSafeInteger(options.ttlMs) && options.ttlMs > 0))
    throw wrong("the time to live is no time", "give a duration such as 14d");
  const { afterMs = 1 } = options.ending ?? {};
  if (!(Number.isSafeInteger(afterMs) && afterMs > 0))
    throw wrong("the time of the commit or rollback is no time", "give a duration such as 60m");
}

/** Errors: INVALID_ARGUMENT. */
export function checkSource(source: RunDocument["source"], disks: readonly string[]): void {
  if (source?.kind !== "image" || disks.length === 1) return;
  throw new TidemarkError("INVALID_ARGUMENT", "one image is the source of one disk", {
    remedy: "let an agent protect the disks of a group",
  });
}

/** Refuses to take a disk back to where `run` has taken it. Errors: TARGET_IS_SOURCE. */
export async function refusePresent(
  { run, members }: RunDocument,
  targets: readonly RunMember["target"][],
): Promise<void> {
  for (const [index, { disk, target }] of members.entries()) {
    if (!(await isSamePlace(target.path, targets[index]?.path ?? ""))) continue;
    throw new TidemarkError("TARGET_IS_SOURCE", `run ${run} has taken disk ${JSON.stringify(disk)} to ${target.path}`, {
      remedy: "name the image from which the run took the disk",
      detail: { run, path: target.path },
    });
  }
}

/** Refuses to replicate targets that hold more than the disk. Errors: UNSUPPORTED. */
export function refuseVhds({ run, members }: RunDocument): void {
  const found = members.find(({ target }) => target.kind === "vhd" || target.kind === "blob");
  if (found === undefined) return;
  const { disk, target } = found;
  throw new TidemarkError("UNSUPPORTED", `${target.kind}:${target.path} holds a VHD, which is not replicated`, {
    remedy:
      `end the failover with \`tidemark migrate complete ${run}\`, and replicate the disk under a new name from the ` +
      "machine that has it attached",
    detail: { disk },
  });
}

/** The error of work that ended early, with the run that can go on from there. */
export function stopped(run: string, { code, message, remedy, detail }: TidemarkError): TidemarkError {
  const show = `\`tidemark failover show ${run}\` says what else can be done`;
  // A target that another one has got stays that one's.
  const next = code === "TARGET_EXISTS" ? show : `the command to go on is \`tidemark jobs resume ${run}\`, and ${show}`;
  return new TidemarkError(code, `run ${run}: ${message}`, {
    // What was interrupted is not begun again: that would be a second run.
    remedy: remedy === undefined || code === "INTERRUPTED" ? next : `${remedy}; ${next}`,
    detail: { ...detail, run },
  });
}

/** The error for an agent's last point that the vault of the run does not hold. */
export function lastPointAbsent(disk: string): TidemarkError {
  const fact = `the vault does not hold the last point that the agent has made of disk ${JSON.stringify(disk)}`;
  return new TidemarkError(
    "SOURCE_UNREADABLE",
    `${fact}: it uses another vault, or the store has forgotten the point`,
    {
      remedy: "name the vault that `tidemark agent status` shows for the disk",
      detail: { disk },
    },
  );
}

/** The error for a run of which no job is under way. */
export function noJob({ run, jobs }: RunDocument): TidemarkError {
  const last = jobs.at(-1);
  const fact = last === undefined ? "it has none" : `its last one ended: ${last.operation}, ${last.state}`;
  return new TidemarkError("INVALID_ARGUMENT", `no job of run ${run} is under way; ${fact}`, {
    remedy: `to give the run up, use \`tidemark failover cancel ${run}\` or \`tidemark failover cleanup ${run}\``,
    detail: { run },
  });
}

/** Errors: INVALID_ARGUMENT. */
export function checkNote(note: string): void {
  if (noteText.test(note)) return;
  throw new TidemarkError("INVALID_ARGUMENT", "a note is one line of 1 to 1000 characters", {
    remedy: "shorten it, and leave control characters out",
  });
}

/** The error for an operation that the state of a run does not allow. */
export function refused({ run, state }: RunDocument, operation: RunOperation, reason: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `${operation} of run ${run} is not allowed in ${state}: ${reason}`, {
    remedy: `\`tidemark failover show ${run}\` says what is allowed`,
    detail: { run, state, operation },
  });
}

/** Local targets are seen on their host only: elsewhere they would look as if they were gone. */
export function refuseElsewhere({ run, host, members }: RunDocument): void {
  const isHere = host === os.hostname().slice(0, 100);
  if (isHere || members.every(({ target }) => target.kind === "blob")) return;
  throw new TidemarkError("INVALID_ARGUMENT", `the targets of run ${run} are on the host ${host}`, {
    remedy: `run the command on ${host}`,
    detail: { run, host },
  });
}

/** The error for a run that serves nothing in its state. */
export function notServed({ run, state }: RunDocument): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `run ${run} serves no disk in ${state}`, {
    remedy: `\`tidemark failover show ${run}\` says what is allowed`,
    detail: { run, state },
  });
}
