/** What a prune would do with a disk: its points are read and the policy decides. Nothing is changed here. */
import type { TidemarkError } from "../errors.ts";
import type { GroupRecord, HeadDocument, PointRecord } from "../format/documents.ts";
import type { Decision } from "../retention/decide.ts";
import { decide } from "../retention/decide.ts";
import type { RetentionPolicy } from "../retention/policy.ts";
import type { Consistency } from "../volume.ts";
import { type PageCache, readPoints } from "./history.ts";
import { isExpired, isOf, type StoredPin } from "./pins.ts";
import type { Family, FamilyOptions } from "./prune-family.ts";

export interface PlanOptions extends FamilyOptions {
  readonly policy: RetentionPolicy;
  /** What is known of other disks: the same for all that are pruned together. */
  readonly family: Family;
  readonly cache?: PageCache | undefined;
}

/** A point as far as its fate depends on it: about 200 bytes, because all points of a disk are in memory at once. */
export interface PlannedPoint {
  readonly sequence: number;
  readonly id: string;
  readonly timeMs: number;
  readonly consistency: Consistency;
  /** Null also when not every member has a point of it. */
  readonly group: Pick<GroupRecord, "id" | "disks"> | null;
  readonly storedBytes: number;
}

/** What is decided about one disk. */
export interface PrunePlan {
  readonly disk: string;
  /** Oldest first, as far as they can be read. */
  readonly points: readonly PlannedPoint[];
  /** One for each of `points`. */
  readonly decisions: readonly Decision[];
  /** Those that go, oldest first. */
  readonly doomed: readonly PlannedPoint[];
  /** Pins that have expired, or whose point is gone. */
  readonly idlePins: readonly StoredPin[];
}

/**
 * Plans the prune of a disk as its `head` is. Points of a page that cannot be read stay, and a notice says so. Errors: those of the
 * store.
 */
export async function planPrune(options: PlanOptions, head: HeadDocument): Promise<PrunePlan> {
  const { family, nowMs } = options;
  const { disk } = head;
  const { points, isWhole } = await readAll(options, head);
  const consistencies = await completeGroups(family, points);
  const counted = points.map((point) => (point.group === null || consistencies.has(point.group.id) ? point : { ...point, group: null }));
  // Pins change nothing for other points, so they need not be asked for where nothing goes.
  const unpinned = decideWith(options, counted, consistencies, new Set());
  if (unpinned.every(({ keep }) => keep)) return { disk, points: counted, decisions: unpinned, doomed: [], idlePins: [] };
  const pins = new Map<number, readonly StoredPin[]>();
  for (const pin of await family.pinsOf(disk)) pins.set(pin.sequence, [...(pins.get(pin.sequence) ?? []), pin]);
  const groups = await family.pinnedGroups(new Set(counted.flatMap(({ group }) => group?.disks ?? [])));
  const newest = counted.at(-1);
  const newestMs = newest?.timeMs ?? 0;
  const isUsed = (pin: StoredPin, point: PlannedPoint): boolean => isOf(pin, point) && !isExpired(pin, nowMs, newestMs);
  const pinned = new Set<number>();
  const idlePins: StoredPin[] = [];
  for (const point of counted) {
    const own = pins.get(point.sequence) ?? [];
    pins.delete(point.sequence);
    idlePins.push(...own.filter((pin) => !isUsed(pin, point)));
    const byGroup = point.group !== null && groups.has(point.group.id);
    if (byGroup || own.some((pin) => isUsed(pin, point))) pinned.add(point.sequence);
  }
  // The rest is of points that are not listed: not any more, unless they are younger than the head, or stand in a page that cannot be read.
  if (isWhole) idlePins.push(...[...pins.values()].flat().filter(({ sequence }) => sequence < (newest?.sequence ?? 0)));
  const decisions = decideWith(options, counted, consistencies, pinned);
  return { disk, points: counted, decisions, doomed: counted.filter((_, index) => decisions[index]?.keep === false), idlePins };
}

function decideWith(
  { policy, nowMs }: PlanOptions,
  points: readonly PlannedPoint[],
  consistencies: ReadonlyMap<string, Consistency>,
  pinned: ReadonlySet<number>,
): readonly Decision[] {
  const candidates = points.map(({ sequence, timeMs, consistency, group }) => ({
    sequence,
    timeMs,
    consistency,
    group: group?.id ?? null,
    groupConsistency: group === null ? undefined : consistencies.get(group.id),
    pinned: pinned.has(sequence),
  }));
  return decide(candidates, policy, nowMs);
}

async function completeGroups(family: Family, points: readonly PlannedPoint[]): Promise<ReadonlyMap<string, Consistency>> {
  const complete = new Map<string, Consistency>();
  for (const { group } of points) {
    const consistency = group === null ? undefined : await family.consistencyOf(group);
    if (group !== null && consistency !== undefined) complete.set(group.id, consistency);
  }
  return complete;
}

async function readAll(
  { store, cache, family, onNotice, signal }: PlanOptions,
  head: HeadDocument,
): Promise<{ readonly points: readonly PlannedPoint[]; readonly isWhole: boolean }> {
  const newestFirst: PlannedPoint[] = [];
  const lists = new Map<string, readonly string[]>();
  let isWhole = true;
  const onDamage = (error: TidemarkError): void => {
    isWhole = false;
    onNotice({ code: "HISTORY_DAMAGED", message: `${error.message}; the points that it lists stay` });
  };
  for await (const point of readPoints(store, head, { cache, onDamage, signal })) newestFirst.push(slim(point, lists));
  const points = newestFirst.reverse();
  family.note(head.disk, points);
  return { points, isWhole };
}

/** Keeps what is needed; lists of members, which are the same in many points, once. */
function slim({ sequence, id, timeMs, consistency, group, storedBytes }: PointRecord, lists: Map<string, readonly string[]>): PlannedPoint {
  if (group === null) return { sequence, id, timeMs, consistency, group, storedBytes };
  const key = JSON.stringify(group.disks);
  const disks = lists.get(key) ?? group.disks;
  lists.set(key, disks);
  return { sequence, id, timeMs, consistency, group: { id: group.id, disks }, storedBytes };
}
