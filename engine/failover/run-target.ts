/** Targets of a run by their kinds: what the run makes itself, and replicas that it takes. */
import { TidemarkError } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import type { RunDocument, RunMember } from "../store/format/run.ts";
import { ReplicaOfRun, replicaTargets } from "./replica-run.ts";
import { refuseDeviceInUse } from "./device-use.ts";
import { findReplica, type ReplicaVault } from "./replica-store.ts";
import { replicaNameAt, replicaTargetName } from "./replica-target.ts";
import { namesReplicas } from "./run-checks.ts";
import { type OwnedTarget, ownedTargetOf, parseTarget, type Targets } from "./target.ts";

/** What `--to` names. Errors: those of `replicaTargets` and `parseTarget`. */
export async function targetsOf(
  context: VaultContext,
  place: ReplicaVault,
  to: string,
  disks: readonly string[],
): Promise<Targets> {
  if (!namesReplicas(to)) return await parseTarget(to, disks, context.sink);
  return { members: await replicaTargets(place, to, disks), serving: null };
}

/** What a run does with any target. */
type RunTarget = Pick<OwnedTarget, "remove" | "handOver" | "leftovers">;

/** The target of a member of a run, in the hand of the run. Errors: UNSUPPORTED. */
export function runTargetOf(
  context: VaultContext,
  run: Pick<RunDocument, "run" | "kind">,
  member: Pick<RunMember, "disk" | "target">,
  options: OperationOptions = {},
): RunTarget {
  const { replica } = member.target;
  return replica === undefined
    ? ownedTargetOf(context, run, member)
    : new ReplicaOfRun(context, run.run, { replica }, options);
}

/**
 * Refuses a target that something is at, before a run begins. A replica is a target by its own name
 * only: the process that follows it would write over what the run writes. Errors: TARGET_EXISTS.
 */
export async function refuseTakenTarget(
  context: VaultContext,
  place: ReplicaVault,
  kind: RunDocument["kind"],
  member: Pick<RunMember, "disk" | "target">,
): Promise<void> {
  if (member.target.replica !== undefined) return; // the choice of the target has looked
  const found = await findReplica(place, replicaNameAt(member.target));
  if (found !== undefined) {
    const { replica, disk, target } = found.document;
    const fact = `${replicaTargetName({ target })} is replica ${replica} of disk ${JSON.stringify(disk)}`;
    throw new TidemarkError("TARGET_EXISTS", fact, {
      remedy: `name another target or \`--to replica:${replica}\`, or run \`tidemark replica remove ${replica} --keep-target\``,
      detail: { replica },
    });
  }
  await ownedTargetOf(context, { run: "", kind }, member).refuseTaken();
}
  if (member.target.kind === "device") {
    await refuseDeviceInUse(place, member.target.path);
    return;
  }
