/** What is said of a replica, and how its commands are asked. */
import type { OperationOptions } from "../progress.ts";
import type { PointRecord } from "../store/format/documents.ts";
import type { ReplicaDocument } from "../store/format/replica.ts";
import type { VerifySummary } from "../upkeep/scrub/verify.ts";
import { replicaTargetName } from "./replica-target.ts";

/** How `Replicas.run` works. */
export interface ReplicaOptions extends OperationOptions {
  readonly disk: string;
  /** `file:PATH`, a fixed VHD if it ends with `.vhd`; `device:PATH`; or `blob:NAME`, in the vault. */
  readonly to: string;
  /** Ends when the target holds the newest point. Default: goes on with each new point. */
  readonly once?: boolean | undefined;
  /** Told of each application that has ended. */
  readonly onApplied?: ((application: Application) => void) | undefined;
  /** @internal Told which point the target holds. */
  readonly onHolds?: ((held: HeldPoint) => void) | undefined;
  /** @internal Told before each wait for the next point; `wake` ends the wait. */
  readonly onIdle?: ((wake: () => void) => void) | undefined;
  /** @internal Between two looks for a new point, in ms. Default: 2,000. */
  readonly pollMs?: number | undefined;
}

/** The point that a target holds, whole and durable. */
export interface HeldPoint {
  readonly sequence: number;
  /** Id of the point. */
  readonly point: string;
  /** When the point was cut, ISO 8601 in UTC. */
  readonly time: string;
}

/** How `Replicas.remove` works. */
export interface RemoveReplicaOptions extends Pick<OperationOptions, "onNotice" | "signal"> {
  readonly replica: string;
  /** Leaves the target as it is. A device stays always. Default: false. */
  readonly keepTarget?: boolean | undefined;
}

/** One point that was applied to a target. */
export interface Application {
  readonly replica: string;
  readonly disk: string;
  readonly target: string;
  /** Id of the point. */
  readonly point: string;
  readonly sequence: number;
  /** When the point was cut, ISO 8601 in UTC. */
  readonly time: string;
  /** All of the target was compared or written; else only what differs between two points. */
  readonly isWhole: boolean;
  readonly bytesWritten: number;
  /** Bytes read from the store. */
  readonly bytesRead: number;
  /** From the cut of the point to the end of the application. */
  readonly lagMs: number;
  readonly elapsedMs: number;
}

/**
 * `current`: the target holds the newest point. `behind`: an older one. `torn`: an application is
 * under way or was interrupted. `changed`: another program may have written it. `missing`: it does
 * not exist, or cannot be looked at. `empty`: no point has been applied. `failed-over`: it is the target of a failover.
 */
export type ReplicaState = "current" | "behind" | "torn" | "changed" | "missing" | "empty" | "failed-over";

/** A replica. */
export interface ReplicaSummary {
  /** Name of the replica: 16 hexadecimal digits. */
  readonly replica: string;
  readonly disk: string;
  readonly target: string;
  /** The host that has the target; null: it is in the vault's container. */
  readonly host: string | null;
  readonly state: ReplicaState;
  /** The failover run whose target it is; null: none. */
  readonly run: string | null;
  /** Whether this machine can look at the target; else the state is what the vault says. */
  readonly isSeen: boolean;
  /** Whether a process works on the replica. */
  readonly isRunning: boolean;
  /** Id of the point that the target holds; null unless the state is `current` or `behind`. */
  readonly point: string | null;
  readonly sequence: number | null;
  readonly time: string | null;
  readonly ageMs: number | null;
  /** Points that were made since, dropped ones included. */
  readonly behindPoints: number | null;
}

/** The outcome of `Replicas.run`. */
export interface ReplicaDone {
  readonly replica: string;
  readonly disk: string;
  readonly target: string;
  /** Id of the point that the target holds; null: an application was interrupted. */
  readonly point: string | null;
  readonly sequence: number | null;
  readonly applications: number;
  readonly bytesWritten: number;
  readonly bytesRead: number;
  readonly elapsedMs: number;
}

/** The outcome of `Replicas.verify`. `damaged`: what differs, and what cannot be read in the vault. */
export interface ReplicaVerification extends VerifySummary {
  readonly replica: string;
  readonly disk: string;
  readonly target: string;
  readonly point: string;
  readonly equal: boolean;
}

/** The outcome of `Replicas.remove`. */
export interface ReplicaRemoved {
  readonly replica: string;
  readonly disk: string;
  readonly target: string;
  readonly keptTarget: boolean;
}

/** What was found beside the document. */
interface Found {
  readonly newest: PointRecord | undefined;
  readonly isSeen: boolean;
  readonly isRunning: boolean;
  /** As `ReplicaTarget.signature`. */
  readonly signature: string | null | undefined;
  readonly nowMs: number;
  readonly run: string | undefined;
}

export function summaryOf(document: ReplicaDocument, found: Found): ReplicaSummary {
  const { replica, disk, host, point } = document;
  const { newest, isSeen, isRunning, nowMs } = found;
  const state = stateOf(document, found);
  const held = state === "current" || state === "behind" ? point : null;
  return {
    replica,
    disk,
    target: replicaTargetName(document),
    host,
    state,
    run: found.run ?? null,
    isSeen,
    isRunning,
    point: held?.id ?? null,
    sequence: held?.sequence ?? null,
    time: held === null ? null : new Date(held.timeMs).toISOString(),
    ageMs: held === null ? null : Math.max(0, nowMs - held.timeMs),
    behindPoints: held === null ? null : Math.max(0, (newest?.sequence ?? 0) - held.sequence),
  };
}

function stateOf({ point, next, signature: known }: ReplicaDocument, found: Found): ReplicaState {
  const { newest, isSeen, signature, run } = found;
  if (run !== undefined) return "failed-over";
  if (next !== null) return "torn";
  if (point === null) return "empty";
  if (isSeen && signature === undefined) return "missing";
  if (isSeen && (known === null || signature !== known)) return "changed";
  return newest?.id === point.id ? "current" : "behind";
}

export function doneOf(
  { replica, disk, target, point, next }: ReplicaDocument,
  totals: { readonly applications: number; readonly bytesWritten: number; readonly bytesRead: number },
  startedAt: number,
): ReplicaDone {
  const held = next === null ? point : null;
  return {
    replica,
    disk,
    target: replicaTargetName({ target }),
    point: held?.id ?? null,
    sequence: held?.sequence ?? null,
    ...totals,
    elapsedMs: Math.round(performance.now() - startedAt),
  };
}
