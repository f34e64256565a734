/**
 * Group retention: reader holds and pins that keep points which a plan drops. They may have been
 * made after the plan.
 *
 * A hold or pin on any member disk keeps the group's point on all of them, whether the group is
 * complete or not: a member may have committed its part since the plan was made.
 */

import { isExpired, listPins } from "../../store/points/pins.ts";
import { isHoldAlive, listHolds } from "../../store/points/reader-holds.ts";
import type { Store } from "../../store/store.ts";
import type { PlannedPoint } from "./group-retention.ts";
import type { PlanOptions, PrunePlan } from "./prune-plan.ts";

/** A hold or pin, and the disk and point that it was made for. */
export interface Keeper {
  readonly kind: "hold" | "pin";
  readonly disk: string;
  readonly sequence: number;
}

/** Why a point of `disk` stays. */
export function reasonOf(keeper: Keeper, disk: string): string {
  const on = keeper.disk === disk ? "" : ` on disk ${keeper.disk}`;
  return keeper.kind === "pin" ? `pinned${on}` : `being read${on}, unless its reader has died`;
}

/**
 * Points of `toDrop` that a hold or pin keeps, each with one of those. With `clear`, holds
 * of dead readers are removed, those on other points of the disk too. Without it nothing is
 * changed, and every hold counts: only taking a hold's lease tells whether its reader lives.
 */
export async function heldPointsOf(
  options: PlanOptions,
  plan: PrunePlan,
  toDrop: readonly PlannedPoint[],
  { clear }: { readonly clear: boolean },
): Promise<ReadonlyMap<PlannedPoint, Keeper>> {
  const { store, vault, groupRetention, nowMs, onNotice, signal } = options;
  const kept = new Map<PlannedPoint, Keeper>();
  if (toDrop.length === 0) return kept;
  const newestMs = plan.points.at(-1)?.timeMs ?? 0;
  const bySequence = new Map(toDrop.map((point) => [point.sequence, point]));
  const byGroup = new Map(toDrop.flatMap((point) => (point.group === null ? [] : [[point.group.id, point] as const])));
  const idle = new Set(plan.idlePins.map(({ object }) => object));
  for (const disk of new Set([plan.disk, ...toDrop.flatMap(({ group }) => group?.disks ?? [])])) {
    const isOwn = disk === plan.disk;
    const find = async (sequence: number): Promise<PlannedPoint | undefined> =>
      isOwn ? bySequence.get(sequence) : byGroup.get((await groupRetention.groupAt(disk, sequence)) ?? "");
    for (const [sequence, names] of await listHolds(store, disk, signal)) {
      const point = await find(sequence);
      if (point === undefined && !(isOwn && clear)) continue;
      const isRead = clear ? await anyAlive(store, names, signal) : true;
      if (point !== undefined && isRead) kept.set(point, { kind: "hold", disk, sequence });
    }
    for (const pin of await listPins(store, vault, disk, onNotice, signal)) {
      const point = await find(pin.sequence);
      if (point !== undefined && !idle.has(pin.object) && !isExpired(pin, nowMs, newestMs))
        kept.set(point, { kind: "pin", disk, sequence: pin.sequence });
    }
  }
  return kept;
}

/** All holds are asked, so that all holds of dead readers are removed. */
async function anyAlive(store: Store, names: readonly string[], signal: AbortSignal | undefined): Promise<boolean> {
  let alive = false;
  for (const name of names) if (await isHoldAlive(store, name, signal)) alive = true;
  return alive;
}
