/**
 * Group retention: decides for points that were cut together on several disks.
 *
 * A point of a group is one point of all its members. Whether it is complete, how consistent it
 * is, and whether a policy keeps it, follows from the members' own points. A point that any member
 * keeps stays on all members, so the order in which they are pruned makes no difference, and the
 * members of a group may change.
 *
 * What has been read is not read again: all disks that are pruned together are judged by the same
 * groups, also when the first of them has already lost its part.
 *
 * Memory: about 200 bytes for each point of the disks involved.
 */
import { isDiskUnreadable } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { GroupRecord, PointRecord } from "../../store/format/documents.ts";
import type { VaultPlace } from "../../store/place.ts";
import { readHead } from "../../store/points/head.ts";
import { findPoint, type PageCache, readPoints } from "../../store/points/history.ts";
import { isExpired, isOf, listPins, type StoredPin } from "../../store/points/pins.ts";
import type { Consistency } from "../../volume.ts";
import { kept, type RetentionPoint } from "../retention/decide.ts";
import type { RetentionPolicy } from "../retention/policy.ts";

export interface GroupRetentionOptions extends VaultPlace {
  /** One policy for all members: what it keeps on any of them stays on all. */
  readonly policy: RetentionPolicy;
  /** By this clock, and by that of the newest point, pins expire. */
  readonly nowMs: number;
  /**
   * Members are read by every prune of each of them; what has been read of their pages is not read
   * again.
   */
  readonly cache?: PageCache | undefined;
  readonly onNotice: (notice: Notice) => void;
}

/**
 * A point as far as its fate depends on it: about 200 bytes, because all points of a disk, and of
 * those cut with it, are in memory at once.
 */
export interface PlannedPoint
  extends Pick<PointRecord, "sequence" | "id" | "timeMs" | "clockMs" | "consistency" | "storedBytes"> {
  /** As the point says; not every member need have one. */
  readonly group: Pick<GroupRecord, "id" | "disks"> | null;
}

/** A disk's points, oldest first, and those that were cut together with others by group. */
interface Member {
  readonly points: readonly PlannedPoint[];
  readonly byGroup: ReadonlyMap<string, PlannedPoint>;
  readonly bySequence: ReadonlyMap<number, PlannedPoint>;
}

export class GroupRetention {
  readonly #options: GroupRetentionOptions;
  readonly #members = new Map<string, Promise<Member | undefined>>();
  readonly #complete = new Map<string, Consistency | undefined>();
  readonly #pins = new Map<string, Promise<readonly StoredPin[]>>();
  readonly #kept = new Map<string, Promise<ReadonlySet<string>>>();

  constructor(options: GroupRetentionOptions) {
    this.#options = options;
  }

  /** Takes over the points of a disk that the caller has read, oldest first. */
  note(disk: string, points: readonly PlannedPoint[]): void {
    if (!this.#members.has(disk)) this.#members.set(disk, Promise.resolve(memberOf(points)));
  }

  /**
   * What the policy decides about: points of groups that are not complete count as the disk's own.
   * `isPinned`: absent, none is.
   */
  async candidates(
    points: readonly PlannedPoint[],
    isPinned: (point: PlannedPoint) => boolean = () => false,
  ): Promise<readonly RetentionPoint[]> {
    const candidates: RetentionPoint[] = [];
    for (const point of points) {
      const { sequence, timeMs, clockMs, consistency, group } = point;
      const groupConsistency = group === null ? undefined : await this.#consistencyOf(group);
      const whole = groupConsistency === undefined ? null : (group?.id ?? null);
      candidates.push({
        sequence,
        timeMs,
        clockMs,
        consistency,
        group: whole,
        groupConsistency,
        pinned: isPinned(point),
      });
    }
    return candidates;
  }

  /** Ids of the complete groups that the policy keeps on this disk alone. */
  async groupsKeptOn(disk: string): Promise<ReadonlySet<string>> {
    const known = this.#kept.get(disk);
    if (known !== undefined) return await known;
    const deciding = this.#decide(disk);
    this.#kept.set(disk, deciding);
    return await deciding;
  }

  /** The pins of a disk as they are when they are first asked for. */
  async pinsOf(disk: string): Promise<readonly StoredPin[]> {
    const { store, vault, onNotice, signal } = this.#options;
    const known = this.#pins.get(disk);
    if (known !== undefined) return await known;
    const reading = listPins(store, vault, disk, onNotice, signal);
    this.#pins.set(disk, reading);
    return await reading;
  }

  /** Ids of the groups of which a disk has pinned its point. */
  async groupsPinnedOn(disk: string): Promise<ReadonlySet<string>> {
    const { nowMs } = this.#options;
    const pinned = new Set<string>();
    const member = await this.#member(disk);
    if (member === undefined) return pinned;
    const newestMs = member.points.at(-1)?.timeMs ?? 0;
    for (const pin of await this.pinsOf(disk)) {
      const point = member.bySequence.get(pin.sequence);
      if (point?.group != null && isOf(pin, point) && !isExpired(pin, nowMs, newestMs)) pinned.add(point.group.id);
    }
    return pinned;
  }

  /**
   * The id of the group to which a disk's point belongs. One that was committed since the disk was
   * read is looked up.
   */
  async groupAt(disk: string, sequence: number): Promise<string | undefined> {
    const member = await this.#member(disk);
    const known = member?.bySequence.get(sequence);
    if (known !== undefined) return known.group?.id;
    if (member !== undefined && sequence <= (member.points.at(-1)?.sequence ?? 0)) return undefined; // it is gone, or cannot be read
    const { store, vault, signal } = this.#options;
    return await orUnread(
      readHead(store, vault, disk, signal).then(
        async ({ head }) => (await findPoint(store, head, { sequence }, signal))?.group?.id,
      ),
    );
  }

  /**
   * How consistent a group's point is; undefined when not every member has a point of it that can
   * be read.
   */
  async #consistencyOf(group: Pick<GroupRecord, "id" | "disks">): Promise<Consistency | undefined> {
    if (this.#complete.has(group.id)) return this.#complete.get(group.id);
    const found = new Set<Consistency | undefined>();
    for (const disk of group.disks) found.add((await this.#member(disk))?.byGroup.get(group.id)?.consistency);
    const consistency = found.has(undefined)
      ? undefined
      : (["fuzzy", "app", "crash"] as const).find((worst) => found.has(worst));
    this.#complete.set(group.id, consistency);
    return consistency;
  }

  async #decide(disk: string): Promise<ReadonlySet<string>> {
    const { policy, nowMs } = this.#options;
    const member = await this.#member(disk);
    const left = kept(await this.candidates(member?.points ?? []), policy, nowMs);
    return new Set(left.flatMap(({ group }) => group ?? []));
  }

  /** Undefined when there is no such disk, or its head cannot be read: then no point of it can. */
  async #member(disk: string): Promise<Member | undefined> {
    const known = this.#members.get(disk);
    if (known !== undefined) return await known;
    const reading = orUnread(this.#read(disk));
    this.#members.set(disk, reading);
    return await reading;
  }

  async #read(disk: string): Promise<Member> {
    const { store, vault, cache, signal } = this.#options;
    const { head } = await readHead(store, vault, disk, signal);
    const newestFirst: PlannedPoint[] = [];
    const slim = slimming();
    // What a damaged page lists cannot be read back by way of this disk, so it completes no group.
    const onDamage = (): void => undefined;
    for await (const point of readPoints(store, head, { cache, onDamage, signal })) newestFirst.push(slim(point));
    return memberOf(newestFirst.reverse());
  }
}

/** Keeps of points what is needed; lists of members, which are the same in many points, once. */
export function slimming(): (point: PointRecord) => PlannedPoint {
  const lists = new Map<string, readonly string[]>();
  return ({ sequence, id, timeMs, clockMs, consistency, group, storedBytes }) => {
    if (group === null) return { sequence, id, timeMs, clockMs, consistency, group, storedBytes };
    const key = JSON.stringify(group.disks);
    const disks = lists.get(key) ?? group.disks;
    lists.set(key, disks);
    return { sequence, id, timeMs, clockMs, consistency, group: { id: group.id, disks }, storedBytes };
  };
}

function memberOf(points: readonly PlannedPoint[]): Member {
  const byGroup = points.flatMap((point) => (point.group === null ? [] : [[point.group.id, point] as const]));
  return { points, byGroup: new Map(byGroup), bySequence: new Map(points.map((point) => [point.sequence, point])) };
}

/** Undefined when there is no such disk, or what would tell cannot be read. */
async function orUnread<Result>(reading: Promise<Result>): Promise<Result | undefined> {
  try {
    return await reading;
  } catch (error) {
    if (isDiskUnreadable(error)) return undefined;
    throw error;
  }
}
