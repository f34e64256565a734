/** Disks of a new run: which way they go, and whether another run has them. */
import { TidemarkError } from "../errors.ts";
import type { RunDirection, RunDocument, RunMember, RunPoint } from "../store/format/run.ts";
import { readClaim } from "../store/points/failover-claim.ts";
import type { Store } from "../store/store.ts";
import { isMoved } from "./run-facts.ts";
import { listRuns, readRun } from "./run-store.ts";
import { hasEnded } from "./run-table.ts";

interface VaultPlace {
  readonly store: Store;
  readonly vault: string;
  readonly signal: AbortSignal | undefined;
}

/** A second failback of a disk would prepare in vain: only one of them can stop the disk. */
export async function refuseOtherFailback(place: VaultPlace, disks: readonly string[]): Promise<void> {
  for (const { run, kind, state, members } of await listRuns(place)) {
    const isOpen = kind === "failback" && !hasEnded(state) && members.some(({ disk }) => disks.includes(disk));
    if (!isOpen) continue;
    throw new TidemarkError("WRITER_ACTIVE", `run ${run} is taking disks of the run back already`, {
      remedy: `\`tidemark failover show ${run}\` says what can be done; \`tidemark failover cancel ${run}\` ends it`,
      detail: { run },
    });
  }
}

/** Disks of which a run has taken one to another place go the other way now. */
export async function directionOf(place: VaultPlace, disks: readonly string[]): Promise<RunDirection> {
  for (const disk of disks) {
    const settled = (await readClaim({ ...place, disk }))?.place;
    if (settled == null) continue;
    const { document } = await readRun(place, settled.run);
    return document.direction === "PrimaryToRecovery" ? "RecoveryToPrimary" : "PrimaryToRecovery";
  }
  return "PrimaryToRecovery";
}

/**
 * Whether the disks of a committed run are where it took them; if not, the run that has them by now,
 * if one has.
 */
export async function whereabouts(
  place: Omit<VaultPlace, "signal">,
  document: RunDocument,
): Promise<{ readonly isThere: boolean; readonly successor: string | null }> {
  if (!isMoved(document)) return { isThere: false, successor: null };
  const owners = await Promise.all(
    document.members.map(async ({ disk }) => (await readClaim({ ...place, disk }))?.run),
  );
  return {
    isThere: owners.every((owner) => owner === document.run),
    successor: owners.find((owner) => owner != null && owner !== document.run) ?? null,
  };
}

/** A disk and the point that a run takes it to. */
export interface DiskAtPoint {
  readonly disk: string;
  readonly point: RunPoint;
}

/** The disks of a new run, each with its point and its target. */
export function membersOf(chosen: readonly DiskAtPoint[], targets: readonly RunMember["target"][]): RunMember[] {
  return chosen.flatMap(({ disk, point }, index): RunMember[] => {
    const target = targets[index];
    const { sequence, id, timeMs, consistency, volumeBytes } = point;
    if (target === undefined) return [];
    return [{ disk, point: { sequence, id, timeMs, consistency, volumeBytes }, target, held: null, origin: null }];
  });
}
