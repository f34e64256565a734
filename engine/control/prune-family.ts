/**
 * The disks that were cut together with one that is pruned. A point of a group is one point of all its members: whether it is complete, and how consistent,
 * is told by the members' own points, and a pin or a hold on any of them counts for all.
 *
 * What has been read stays as it was read: so all disks that are pruned together are judged by the same groups, also when the first of them has lost
 * its part of one.
 */
import { hasCode } from "../errors.ts";
import type { GroupRecord, PointRecord } from "../format/documents.ts";
import type { Store } from "../store.ts";
import type { Consistency } from "../volume.ts";
import { readPoints } from "./history.ts";
import { isExpired, isOf, listPins, type StoredPin } from "./pins.ts";
import { readHead } from "./seat.ts";
import type { Notice } from "./summaries.ts";

export interface FamilyOptions {
  readonly store: Store;
  readonly vault: string;
  /** By this clock, and by that of the newest point, pins expire. */
  readonly nowMs: number;
  readonly onNotice: (notice: Notice) => void;
  readonly signal?: AbortSignal | undefined;
}

/** What a group needs to know of a point. */
export type MemberPoint = Pick<PointRecord, "sequence" | "id" | "timeMs" | "consistency"> & {
  readonly group: Pick<GroupRecord, "id" | "disks"> | null;
};

/** A disk's points that were cut together with others, by group and by sequence number. */
interface Member {
  readonly byGroup: Map<string, MemberPoint>;
  readonly bySequence: Map<number, MemberPoint>;
  newestMs: number;
}

export class Family {
  readonly #options: FamilyOptions;
  readonly #members = new Map<string, Promise<Member | undefined>>();
  readonly #complete = new Map<string, Consistency | undefined>();
  readonly #pins = new Map<string, Promise<readonly StoredPin[]>>();

  constructor(options: FamilyOptions) {
    this.#options = options;
  }

  /** The points of a disk, oldest first, when somebody has read them: they are not read again. */
  note(disk: string, points: readonly MemberPoint[]): void {
    if (!this.#members.has(disk)) this.#members.set(disk, Promise.resolve(memberOf(points)));
  }

  /** How consistent a group's point is; undefined when not every member has a point of it that can be read. */
  async consistencyOf(group: Pick<GroupRecord, "id" | "disks">): Promise<Consistency | undefined> {
    if (this.#complete.has(group.id)) return this.#complete.get(group.id);
    const found = new Set<Consistency | undefined>();
    for (const disk of group.disks) found.add((await this.#member(disk))?.byGroup.get(group.id)?.consistency);
    const consistency = found.has(undefined) ? undefined : (["fuzzy", "app", "crash"] as const).find((worst) => found.has(worst));
    this.#complete.set(group.id, consistency);
    return consistency;
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

  /** Ids of the groups of which a member has pinned its point. */
  async pinnedGroups(disks: Iterable<string>): Promise<ReadonlySet<string>> {
    const { nowMs } = this.#options;
    const pinned = new Set<string>();
    for (const disk of disks) {
      const member = await this.#member(disk);
      if (member === undefined) continue;
      for (const pin of await this.pinsOf(disk)) {
        const point = member.bySequence.get(pin.sequence);
        if (point?.group != null && isOf(pin, point) && !isExpired(pin, nowMs, member.newestMs)) pinned.add(point.group.id);
      }
    }
    return pinned;
  }

  /** The id of the group to which a disk's point belongs. */
  async groupAt(disk: string, sequence: number): Promise<string | undefined> {
    return (await this.#member(disk))?.bySequence.get(sequence)?.group?.id;
  }

  /** Undefined when there is no such disk, or its head cannot be read: then no point of it can. */
  async #member(disk: string): Promise<Member | undefined> {
    const known = this.#members.get(disk);
    if (known !== undefined) return await known;
    const reading = this.#read(disk);
    this.#members.set(disk, reading);
    return await reading;
  }

  async #read(disk: string): Promise<Member | undefined> {
    const { store, vault, signal } = this.#options;
    try {
      const { head } = await readHead(store, vault, disk, signal);
      const newestFirst: MemberPoint[] = [];
      // What a damaged page lists cannot be read back by way of this disk, so it completes no group.
      const onDamage = (): void => undefined;
      for await (const point of readPoints(store, head, { onDamage, signal })) newestFirst.push(point);
      return memberOf(newestFirst.reverse());
    } catch (error) {
      if (hasCode(error, "DISK_NOT_FOUND", "DAMAGED", "FORMAT_UNSUPPORTED")) return undefined;
      throw error;
    }
  }
}

function memberOf(points: readonly MemberPoint[]): Member {
  const member: Member = { byGroup: new Map(), bySequence: new Map(), newestMs: points.at(-1)?.timeMs ?? 0 };
  for (const point of points) {
    if (point.group === null) continue;
    member.byGroup.set(point.group.id, point);
    member.bySequence.set(point.sequence, point);
  }
  return member;
}
