/**
 * What follows from a run's document: whether its disks have moved, and whether they can be served.
 */
import type { RunDocument, RunMember } from "../store/format/run.ts";
import { effectOf, hasEnded, transition } from "./run-table.ts";

/** Whether the failover is committed: its targets are the disks now. */
export function isMoved({ jobs, state }: RunDocument): boolean {
  const commits = jobs.flatMap(({ tasks }) => tasks.filter(({ name }) => name === "CommitFailoverInProgressOnPrimary"));
  if (state === "MarkedForDeletion") return true;
  return state === "CommitFailoverCompleted" || commits.some((task) => task.state === "Succeeded");
}

/** Whether the disks are replicated from their targets. */
export function isReprotected(document: RunDocument): boolean {
  return document.state === "Protected" && isMoved(document);
}

/**
 * Whether the disks of the run can be served: its targets are made, no work is left on them, and
 * they are not given up.
 */
export function isServable(document: RunDocument): boolean {
  const { serving, state, members } = document;
  if (serving === null || effectOf(state) !== undefined || "next" in transition(state, "Resume")) return false;
  if (hasEnded(state) && !isMoved(document)) return false;
  return members.every(({ held }) => held !== null);
}

/** The same serving, by an agent or by a command. */
export function servedBy(serving: RunDocument["serving"], isAgent: boolean): RunDocument["serving"] {
  if (serving === null || (serving.byAgent === true) === isAgent) return serving;
  const { listen, protects } = serving;
  return { listen, protects, ...(isAgent ? { byAgent: true } : {}) };
}

/** What commands of the run get in their environment. */
export function variablesOf(
  { run, kind, direction }: RunDocument,
  { disk, point }: RunMember,
): Readonly<Record<string, string>> {
  return {
    TIDEMARK_DISK: disk,
    TIDEMARK_POINT: point.id,
    TIDEMARK_RUN: run,
    TIDEMARK_DIRECTION: direction,
    TIDEMARK_TEST: kind === "test" ? "1" : "0",
  };
}
