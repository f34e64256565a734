/**
 * Preview of a plan's run: which points its machines get and where they go, and every reason why the
 * run cannot begin, before anything has changed.
 *
 * `common`: of each machine a common point of its disks; of all machines the newest such points that
 * are not younger than the newest moment at which every machine has one. All other choices are as for
 * a run of each machine; disks that have common points get one of these.
 *
 * Invariant: a fault names its place in the plan, and one preview finds all of them.
 */
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode, TidemarkError } from "../../errors.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { shellWord } from "../../shell-word.ts";
import type { Plan, PlanMachine } from "../../store/format/plan-run.ts";
import type { RunKind, RunMember } from "../../store/format/run.ts";
import { refuseOtherRun } from "../../store/points/failover-claim.ts";
import { GroupMembers } from "../../store/points/group-members.ts";
import { readPoints } from "../../store/points/history.ts";
import { type ChosenPoint, choosePoints } from "../point-choice.ts";
import { checkStart } from "../run-checks.ts";
import { refuseTakenTarget, targetsOf } from "../run-target.ts";
import { targetName } from "../target.ts";

import type { PlanPlace } from "./plan-store.ts";
import { targetOfMachine } from "./plan-target.ts";

const machinesAtOnce = 8;

/** Why a plan's run cannot begin. */
export interface PlanFault {
  /** Leads to the place in the plan. */
  readonly path: readonly (string | number)[];
  readonly error: TidemarkError;
}

/** What a machine of a run would get. */
export interface PreviewedMachine {
  readonly name: string;
  readonly group: string | null;
  readonly chosen: readonly ChosenPoint[];
  readonly targets: readonly RunMember["target"][];
}

/** A run before it begins. */
export interface Previewed {
  /** In the order of the plan; those that have no fault. */
  readonly machines: readonly PreviewedMachine[];
  readonly faults: readonly PlanFault[];
}

/** A machine, its place in the plan, and the moment of its newest point. */
interface Found extends PreviewedMachine {
  readonly machine: PlanMachine;
  readonly index: number;
  readonly momentMs: number;
}

/** Errors: those of the store. All others are faults. */
export async function previewPlan(
  context: VaultContext,
  place: PlanPlace,
  plan: Plan,
  {
    kind,
    selector,
    target,
  }: { readonly kind: Exclude<RunKind, "failback">; readonly selector: string; readonly target: string },
): Promise<Previewed> {
  const faults: PlanFault[] = [];
  const found: Found[] = [];
  const isCommon = selector === "common" && kind !== "planned";
  /** Whether `work` found no fault. */
  const judged = async (path: PlanFault["path"], work: () => Promise<void>): Promise<boolean> => {
    try {
      await work();
      return true;
    } catch (error) {
      const isFault = error instanceof TidemarkError;
      if (!isFault || error.code === "INTERRUPTED" || error.code === "STORE_UNREACHABLE") throw error;
      // A folder that is missing is one fault, not one of each machine.
      if (!faults.some((other) => other.error.message === error.message)) faults.push({ path, error });
      return false;
    }
  };
  const eachMachine = async (work: (machine: PlanMachine, index: number) => Promise<void>): Promise<void> =>
    await forEachAtOnce(
      plan.machines.entries(),
      machinesAtOnce,
      async ([index, machine]) => await work(machine, index),
      place.signal,
    );
  await eachMachine(async (machine, index) => {
    const path = ["machines", index];
    let isSound = true;
    for (const [at, disk] of machine.disks.entries()) {
      const isUsable = await judged([...path, "disks", at], async () => {
        await refuseWithoutPoint(place, disk);
        if (kind !== "test") await refuseOtherRun({ ...place, disk }, "");
      });
      isSound &&= isUsable;
    }
    if (!isSound) return;
    await judged([...path, "disks"], async () => {
      const { group, chosen } = await pointsOf(place, machine.disks, kind === "planned" ? "latest" : selector);
      const targets: RunMember["target"][] = [];
      await judged([kind === "test" && plan.testTarget !== null ? "testTarget" : "target"], async () => {
        const source = machine.source ?? { kind: "agent" as const, path: "" };
        const to = targetOfMachine(target, machine.name);
        checkStart({ kind, to, source }, machine.disks);
        targets.push(...(await targetsOf(context, place, to, machine.disks)).members);
        for (const [at, disk] of machine.disks.entries()) {
          const own = targets[at];
          if (own !== undefined) await refuseTakenTarget(context, place, kind, { disk, target: own });
        }
      });
      const momentMs = isCommon ? await momentOf(place, chosen) : 0;
      found.push({ machine, index, name: machine.name, group, chosen, targets, momentMs });
    });
  });
  const momentMs = Math.min(...found.map((each) => each.momentMs));
  const machines: (PreviewedMachine & { readonly index: number })[] = [];
  for (const { machine, index, name, group, chosen, targets, momentMs: ownMs } of found) {
    if (!isCommon || ownMs === momentMs) machines.push({ index, name, group, chosen, targets });
    else
      await judged(["machines", index, "disks"], async () => {
        const time = new Date(momentMs).toISOString();
        machines.push({
          index,
          name,
          group,
          targets,
          chosen: await choosePoints(place, machine.disks, time, group !== null),
        });
      });
  }
  machines.sort((a, b) => a.index - b.index);
  return { machines, faults: faults.toSorted((a, b) => comparePaths(a.path, b.path)) };
}

/** Times of points, and how far the oldest is from the newest, in milliseconds. */
export function spreadOf(points: readonly { readonly timeMs: number }[]): number {
  const times = points.map(({ timeMs }) => timeMs);
  return times.length === 0 ? 0 : Math.max(...times) - Math.min(...times);
}

/**
 * The points of a machine's disks. Disks that have common points get one of these, for every choice.
 * Errors: as `choosePoints`.
 */
export async function pointsOf(
  place: PlanPlace,
  disks: readonly string[],
  selector: string,
): Promise<{ readonly group: string | null; readonly chosen: readonly ChosenPoint[] }> {
  if (disks.length === 1 && selector !== "common")
    return { group: null, chosen: await choosePoints(place, disks, selector, false) };
  try {
    const chosen = await choosePoints(place, disks, selector, true);
    return { group: chosen[0]?.point.group?.name ?? null, chosen };
  } catch (error) {
    if (!hasCode(error, "POINT_NOT_FOUND") || (disks.length > 1 && selector === "common")) throw error;
    const each = selector === "common" ? "latest" : selector;
    return { group: null, chosen: await choosePoints(place, disks, each, false) };
  }
}

/** When the points were cut, as choices by time count it. */
async function momentOf({ store, vault, signal }: PlanPlace, chosen: readonly ChosenPoint[]): Promise<number> {
  const [first] = chosen;
  if (first === undefined) return Number.POSITIVE_INFINITY;
  const members = new GroupMembers({ store, vault, signal });
  return (await members.cutMsOf(first.disk, first.point)) ?? first.point.timeMs;
}

/** Errors: DISK_NOT_FOUND; POINT_NOT_FOUND when the first replication is not complete. */
async function refuseWithoutPoint(place: PlanPlace, disk: string): Promise<void> {
  const { store, signal } = place;
  const newest = await readPoints(store, await new GroupMembers(place).head(disk), { signal }).next();
  if (newest.done !== true) return;
  throw new TidemarkError("POINT_NOT_FOUND", `the first replication of disk ${JSON.stringify(disk)} is not complete`, {
    remedy: `wait until \`tidemark points list --disk ${shellWord(disk)}\` shows a point`,
    detail: { disk },
  });
}

/** The order of the plan. */
function comparePaths(a: PlanFault["path"], b: PlanFault["path"]): number {
  for (const [at, step] of a.entries()) {
    const other = b[at];
    if (other === undefined) return 1;
    if (step === other) continue;
    if (typeof step === "number" && typeof other === "number") return step - other;
    return String(step) < String(other) ? -1 : 1;
  }
  return -1;
}

/** The target as users name it. */
export function namesOfTargets({ targets }: PreviewedMachine): string[] {
  return targets.map((target) => targetName(target));
}
