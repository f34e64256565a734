/** Targets of a run by their kinds: what the run makes itself, and replicas that it takes. */
import { hasCode, TidemarkError } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import { shellWord } from "../shell-word.ts";
import type { ReplicaDocument } from "../store/format/replica.ts";
import type { RunDocument, RunMember } from "../store/format/run.ts";
import { ownDevice, refuseDeviceInUse } from "./device-use.ts";
import { ReplicaOfRun, replicaTargets } from "./replica-run.ts";
import { findReplica, type ReplicaVault } from "./replica-store.ts";
import { replicaNameAt, replicaTargetName } from "./replica-target.ts";
import { namesReplicas } from "./run-checks.ts";
import { isMoved } from "./run-facts.ts";
import { findRun } from "./run-store.ts";
import { hasEnded } from "./run-table.ts";
import { type OwnedTarget, ownedTargetOf, parseTarget, type Targets, targetName } from "./target.ts";

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
 * Makes a member's target the run's. Returns whether something of the run is there already. Errors:
 * TARGET_EXISTS when another run or a replica was faster; WRITER_ACTIVE, see `ReplicaOfRun.own`.
 */
export async function ownTarget(
  context: VaultContext,
  place: ReplicaVault,
  document: Pick<RunDocument, "run" | "kind">,
  member: Pick<RunMember, "disk" | "target">,
): Promise<boolean> {
  const { target } = member;
  if (target.replica !== undefined) {
    await new ReplicaOfRun(context, document.run, { replica: target.replica }, place).own();
    return true;
  }
  if (target.kind === "device") await ownDevice(place, target.path, document.run);
  const owned = ownedTargetOf(context, document, member);
  const isThere = await owned.own();
  try {
    await refuseReplicaAt(place, target);
  } catch (error) {
    if (hasCode(error, "TARGET_EXISTS")) await owned.handOver(); // the mark alone
    throw error;
  }
  return isThere;
}

/** What of a run is left at its targets, as users name it. A target that cannot be looked at may be left. */
export async function leftoversOf(context: VaultContext, document: RunDocument): Promise<string[]> {
  const left: string[] = [];
  for (const member of document.members) {
    const { target, held } = member;
    try {
      left.push(...(await runTargetOf(context, document, member).leftovers(held !== null)));
    } catch (error) {
      if (!(error instanceof TidemarkError) || target.kind === "blob") throw error;
      left.push(`${targetName(target)}: ${error.message}`);
    }
  }
  return left;
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
  if (member.target.kind === "device") {
    await refuseDeviceInUse(place, member.target.path);
    return;
  }
  await refuseReplicaAt(place, member.target);
  const owned = ownedTargetOf(context, { run: "", kind }, member);
  const owner = await owned.markedBy();
  if (owner !== undefined) throw await markedTarget(place, member.target, owned, owner);
  await owned.refuseTaken();
}

/** The replica that has the path of a target, unless it is the target itself. */
export async function replicaAt(place: ReplicaVault, at: RunMember["target"]): Promise<ReplicaDocument | undefined> {
  return at.replica === undefined ? (await findReplica(place, replicaNameAt(at)))?.document : undefined;
}

async function refuseReplicaAt(place: ReplicaVault, at: RunMember["target"]): Promise<void> {
  const found = await replicaAt(place, at);
  if (found === undefined) return;
  const { replica, disk, target } = found;
  const fact = `${replicaTargetName({ target })} is replica ${replica} of disk ${JSON.stringify(disk)}`;
  throw new TidemarkError("TARGET_EXISTS", fact, {
    remedy: `name another target or \`--to replica:${replica}\`, or run \`tidemark replica remove ${replica} --keep-target\``,
    detail: { replica },
  });
}

/** The error for a target that has the mark of a run. A store that was killed may have forgotten the run. */
async function markedTarget(
  place: ReplicaVault,
  target: RunMember["target"],
  owned: OwnedTarget,
  run: string,
): Promise<TidemarkError> {
  const name = targetName(target);
  const detail = { target: name, run };
  const { document } = (await findRun(place, run)) ?? {};
  if (document !== undefined && (!hasEnded(document.state) || isMoved(document))) {
    return new TidemarkError("TARGET_EXISTS", `${name} is the target of run ${run}`, {
      remedy: `name another target, or end that run: \`tidemark failover show ${run}\` says how`,
      detail,
    });
  }
  const made = await owned.remains();
  const removal =
    target.kind === "blob" ? `delete ${made.join(" and ")}` : `\`rm -r ${made.map(shellWord).join(" ")}\``;
  const why =
    document === undefined
      ? "which this vault does not hold: the store has forgotten it, or another vault has it"
      : "which has ended without seeing it";
  const fact = `${name} is the target of run ${run}, ${why}`;
  return new TidemarkError("TARGET_EXISTS", fact, {
    remedy: `name another target; or, if no other vault has the run and nothing needs what it made, ${removal}`,
    detail,
  });
}
