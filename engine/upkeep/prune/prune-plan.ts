/**
 * Prune plan: which points of a disk a retention policy drops. It reads the head, pages and pins,
 * and changes nothing.
 */
import type { TidemarkError } from "../../errors.ts";
import type { HeadDocument } from "../../store/format/documents.ts";
import { readPoints } from "../../store/points/history.ts";
import { isExpired, isOf, type StoredPin } from "../../store/points/pins.ts";
import type { Decision } from "../retention/decide.ts";
import { decide } from "../retention/decide.ts";
import { type GroupRetention, type GroupRetentionOptions, type PlannedPoint, slimming } from "./group-retention.ts";

export interface PlanOptions extends GroupRetentionOptions {
  /** The member disks of groups: one for all disks that are pruned together. */
  readonly groupRetention: GroupRetention;
}

/** What is decided about one disk. */
export interface PrunePlan {
  readonly disk: string;
  /** Oldest first, as far as they can be read. */
  readonly points: readonly PlannedPoint[];
  /** One for each of `points`. */
  readonly decisions: readonly Decision[];
  /** Points to drop, oldest first. */
  readonly toDrop: readonly PlannedPoint[];
  /** All points can be read. */
  readonly isWhole: boolean;
  /** Pins that have expired, or whose point is gone. */
  readonly idlePins: readonly StoredPin[];
}

/**
 * Plans the prune of a disk as its `head` is. Points of a page that cannot be read stay, and a
 * notice says so. Errors: those of the store.
 */
export async function planPrune(options: PlanOptions, head: HeadDocument): Promise<PrunePlan> {
  const { groupRetention, policy, nowMs } = options;
  const { disk } = head;
  const { points, isWhole } = await readAll(options, head);
  // Pins change nothing for other points, so they need not be asked for where nothing goes.
  const unpinned = decide(await groupRetention.candidates(points), policy, nowMs);
  if (unpinned.every(({ keep }) => keep))
    return { disk, points, decisions: unpinned, toDrop: [], isWhole, idlePins: [] };
  const { used, idle } = pinsByUse(await groupRetention.pinsOf(disk), points, isWhole, nowMs);
  const pinned = new Set(used.map(({ sequence }) => sequence));
  const alone = decide(await groupRetention.candidates(points, ({ sequence }) => pinned.has(sequence)), policy, nowMs);
  const decisions: Decision[] = [];
  for (const [index, decision] of alone.entries()) {
    const point = points[index];
    const reason = decision.keep || point === undefined ? undefined : await keptByMember(groupRetention, disk, point);
    decisions.push(reason === undefined ? decision : { ...decision, keep: true, reasons: [reason] });
  }
  return {
    disk,
    points,
    decisions,
    toDrop: points.filter((_, index) => decisions[index]?.keep === false),
    isWhole,
    idlePins: idle,
  };
}

/**
 * Why a point stays that its own disk would let go: another disk has pinned, or would keep, its
 * part of the group's point.
 */
async function keptByMember(
  groupRetention: GroupRetention,
  disk: string,
  { group }: PlannedPoint,
): Promise<string | undefined> {
  if (group === null) return undefined;
  for (const member of group.disks) {
    if (member === disk) continue;
    if ((await groupRetention.groupsPinnedOn(member)).has(group.id)) return `pinned on disk ${member}`;
    if ((await groupRetention.groupsKeptOn(member)).has(group.id)) return `its group's point is kept on disk ${member}`;
  }
  return undefined;
}

function pinsByUse(
  pins: readonly StoredPin[],
  points: readonly PlannedPoint[],
  isWhole: boolean,
  nowMs: number,
): { readonly used: readonly StoredPin[]; readonly idle: readonly StoredPin[] } {
  const bySequence = new Map(points.map((point) => [point.sequence, point]));
  const newest = points.at(-1);
  const used: StoredPin[] = [];
  const idle: StoredPin[] = [];
  for (const pin of pins) {
    const point = bySequence.get(pin.sequence);
    if (point !== undefined) (isOf(pin, point) && !isExpired(pin, nowMs, newest?.timeMs ?? 0) ? used : idle).push(pin);
    // The point of the pin is gone, unless it is younger than the head, or listed in a page that
    // cannot be read.
    else if (isWhole && pin.sequence < (newest?.sequence ?? 0)) idle.push(pin);
  }
  return { used, idle };
}

async function readAll(
  { store, cache, groupRetention, onNotice, signal }: PlanOptions,
  head: HeadDocument,
): Promise<{ readonly points: readonly PlannedPoint[]; readonly isWhole: boolean }> {
  const newestFirst: PlannedPoint[] = [];
  const slim = slimming();
  let isWhole = true;
  const onDamage = (error: TidemarkError): void => {
    isWhole = false;
    onNotice({ code: "HISTORY_DAMAGED", message: `${error.message}; the points that it lists stay` });
  };
  for await (const point of readPoints(store, head, { cache, onDamage, signal })) newestFirst.push(slim(point));
  const points = newestFirst.reverse();
  groupRetention.note(head.disk, points);
  return { points, isWhole };
}
