/**
 * Group points: which points of several disks belong together.
 *
 * The members of a group commit one after the other, each for itself. Their points are one group
 * point only when every member has its own. So a reader asks the other disks: it reads each of
 * their heads once, and walks their points from the newest back, no further than the question
 * needs. A pin or a reader hold of one member's point keeps the points of all members.
 *
 * Cost: one read a member disk for its head, then one for each page of points that is reached; a
 * few hundred bytes a point passed.
 */
import { isDiskUnreadable } from "../../errors.ts";
import type { GroupRecord, HeadDocument, PointRecord } from "../format/documents.ts";
import type { VaultPlace } from "../place.ts";
import { readDisk } from "./head.ts";
import { findPoint, PageCache, readPoints } from "./history.ts";
import { countedPins } from "./pins.ts";
import { listHolds } from "./reader-holds.ts";

/**
 * Points of one barrier bear times within milliseconds. A point is dated after the one before it,
 * so the times are further apart where a clock was set back. A member's point is found if its time
 * differs by no more than this.
 */
const timesApartMaxMs = 60 * 60 * 1000;

/**
 * Answers for one listing, and reads nothing twice. It is quickest when it is asked from the newest
 * point to the oldest.
 */
export class GroupMembers {
  readonly #options: VaultPlace;
  readonly #heads = new Map<string, Promise<HeadDocument>>();
  readonly #walks = new Map<string, Promise<Walk | undefined>>();
  readonly #keeping = new Map<string, Promise<Keeping>>();

  constructor(options: VaultPlace) {
    this.#options = options;
  }

  /** The head of a disk. Errors: DISK_NOT_FOUND, DAMAGED. */
  async head(disk: string): Promise<HeadDocument> {
    const { store, vault, signal } = this.#options;
    const known = this.#heads.get(disk);
    if (known !== undefined) return await known;
    const reading = readDisk(store, vault, disk, signal);
    this.#heads.set(disk, reading);
    return await reading;
  }

  /**
   * The group of `point`, a point of `disk`, or null when it has none or not every member has a
   * point of it that can be read.
   */
  async groupOf(disk: string, point: PointRecord): Promise<GroupRecord | null> {
    const { group, timeMs } = point;
    if (group === null) return null;
    for (const member of group.disks) {
      if (member !== disk && (await this.#timeOf(member, group.id, timeMs)) === undefined) return null;
    }
    return group;
  }

  /**
   * When the group point was cut of which `point` of `disk` is a part: the earliest time that a
   * member's part bears. Undefined when `groupOf` gives null.
   */
  async cutMsOf(disk: string, point: PointRecord): Promise<number | undefined> {
    let earliestMs = point.timeMs;
    if (point.group === null) return undefined;
    for (const member of point.group.disks) {
      if (member === disk) continue;
      const timeMs = await this.#timeOf(member, point.group.id, point.timeMs);
      if (timeMs === undefined) return undefined;
      earliestMs = Math.min(earliestMs, timeMs);
    }
    return earliestMs;
  }

  /**
   * Whether a pin or a hold on another member disk keeps its part of the group point, and with it
   * the part of `disk`.
   */
  async keptElsewhere(
    disk: string,
    { id, disks }: GroupRecord,
  ): Promise<{ readonly pinned: boolean; readonly held: boolean }> {
    let [pinned, held] = [false, false];
    for (const member of disks) {
      if (member === disk) continue;
      const keeping = this.#keeping.get(member) ?? this.#readKeeping(member);
      this.#keeping.set(member, keeping);
      const { pinnedGroups, heldGroups } = await keeping;
      pinned ||= pinnedGroups.has(id);
      held ||= heldGroups.has(id);
    }
    return { pinned, held };
  }

  async #readKeeping(disk: string): Promise<Keeping> {
    const { store, signal } = this.#options;
    const pinnedGroups = new Set<string>();
    const heldGroups = new Set<string>();
    try {
      const head = await this.head(disk);
      const cache = new PageCache();
      const note = async (sequence: number, groups: Set<string>): Promise<void> => {
        const group = (await findPoint(store, head, { sequence }, signal, cache))?.group;
        if (group != null) groups.add(group.id);
      };
      for (const pin of await countedPins(store, head, () => undefined, signal)) await note(pin.sequence, pinnedGroups);
      for (const sequence of (await listHolds(store, disk, signal)).keys()) await note(sequence, heldGroups);
    } catch (error) {
      if (!isDiskUnreadable(error)) throw error;
    }
    return { pinnedGroups, heldGroups };
  }

  /** The time of a disk's part of a group point near `timeMs`; undefined: it has none. */
  async #timeOf(disk: string, group: string, timeMs: number): Promise<number | undefined> {
    let walk = await this.#walks.get(disk);
    if (walk === undefined || timeMs > walk.startedAtMs) {
      const starting = this.#startWalk(disk, timeMs);
      this.#walks.set(disk, starting);
      walk = await starting;
    }
    return await walk?.timeOf(group, timeMs - timesApartMaxMs);
  }

  /**
   * Undefined when there is no such disk, or when its head cannot be read: then none of its points
   * can be read.
   */
  async #startWalk(disk: string, timeMs: number): Promise<Walk | undefined> {
    const { store, signal } = this.#options;
    try {
      const head = await this.head(disk);
      // Points of a damaged page cannot be read back, so they complete no group.
      const onDamage = (): void => undefined;
      return new Walk(readPoints(store, head, { untilMs: timeMs + timesApartMaxMs, onDamage, signal }), timeMs);
    } catch (error) {
      if (isDiskUnreadable(error)) return undefined;
      throw error;
    }
  }
}

/** Ids of the groups whose part on one disk is pinned or held, as far as that can be read. */
interface Keeping {
  readonly pinnedGroups: ReadonlySet<string>;
  readonly heldGroups: ReadonlySet<string>;
}

/** Walks from a time back through a disk's points and remembers the groups that it has passed. */
class Walk {
  /** This walk can answer for points up to this time. */
  readonly startedAtMs: number;
  readonly #points: AsyncGenerator<PointRecord>;
  readonly #times = new Map<string, number>();
  #reachedMs: number = Number.POSITIVE_INFINITY;

  constructor(points: AsyncGenerator<PointRecord>, startedAtMs: number) {
    this.#points = points;
    this.startedAtMs = startedAtMs;
  }

  /** The time of the point of `group`, if there is one that is not older than `sinceMs`. */
  async timeOf(group: string, sinceMs: number): Promise<number | undefined> {
    while (!this.#times.has(group) && this.#reachedMs >= sinceMs) {
      const next = await this.#points.next();
      if (next.done === true) this.#reachedMs = Number.NEGATIVE_INFINITY;
      else {
        this.#reachedMs = next.value.timeMs;
        if (next.value.group !== null) this.#times.set(next.value.group.id, next.value.timeMs);
      }
    }
    return this.#times.get(group);
  }
}
