/**
 * A group: disks of one machine whose points are cut at one barrier. Each member's own loop comes
 * here when a point is due; once all are there, every disk holds its new writes, all are cut in one
 * turn of the event loop, and every member ships its share. Of two writes to any of the disks, one
 * after the other, no point then holds the second without the first.
 *
 * A member that does not come in time (it is being compared, its store is away, it is still
 * shipping) holds up the group's point, not the others': they are sent off to take points of their
 * own, and `missing` names the ones that were waited for.
 */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import type { Cut, PreparedCut } from "../../disk/tracking/cut.ts";
import type { ProtectedDisk } from "../../disk/tracking/protected-disk.ts";
import { toHex } from "../../store/format/checksum.ts";
import type { ApplicationRecord, GroupRecord } from "../../store/format/documents.ts";
import type { Finding } from "./health.ts";
import type { Hook } from "./hooks.ts";
import { withFreeze } from "./hooks.ts";
import type { Instant } from "./schedule.ts";

/** What a member brings to the meeting. */
export interface GroupMember {
  readonly disk: string;
  readonly protectedDisk: ProtectedDisk;
  readonly hook: Hook | undefined;
  readonly freezeTimeoutMs: number;
}

/** What it takes away: its cut, and what the point is to say of itself. */
export interface MadeCut {
  readonly cut: Cut;
  /**
   * When it was made, on the steady clock: an application that was brought to rest has been woken
   * since.
   */
  readonly cutAtMs: number;
  readonly group: GroupRecord | null;
  readonly application: ApplicationRecord | null;
}

/**
 * Whether the member wants its application to rest, and whether it wants a point even if nothing
 * has changed.
 */
interface Wish {
  readonly wantsApp: boolean;
  readonly isAsked: boolean;
}

interface Arrival {
  readonly member: GroupMember;
  readonly wish: Wish;
  readonly resolve: (made: MadeCut | undefined) => void;
  readonly reject: (error: unknown) => void;
}

/** How a member is called. */
export interface MemberBell {
  /** Somebody has asked for a point: come, whatever you wait for. */
  readonly call: () => void;
  /** Others have come: come too, if you have nothing else to do. */
  readonly invite: () => void;
}

/** How long those who are there wait for the others. */
const waitMsMax = 1_000;

export class Group {
  readonly name: string;
  readonly #members = new Set<string>();
  readonly #bells = new Map<string, MemberBell>();
  #startedAt: Instant | undefined;
  #arrivals: Arrival[] = [];
  #timer: NodeJS.Timeout | undefined;
  #missing: readonly string[] = [];

  constructor(name: string) {
    this.name = name;
  }

  get members(): readonly string[] {
    return [...this.#members].sort();
  }

  /** Members that did not come to the last meeting. */
  get missing(): readonly string[] {
    return this.#missing;
  }

  /** What is wrong when members are missing. */
  get finding(): Finding | undefined {
    if (this.#missing.length === 0) return undefined;
    return {
      level: "Warning",
      code: "GROUP_INCOMPLETE",
      cause: `group ${this.name} takes no common points: ${this.#missing.join(", ")} did not come to the last cut`,
      remedy: "see what is wrong with the disks that are named; the others take points of their own meanwhile",
    };
  }

  /**
   * Adds a member. Returns the instant from which all members count their ticks, so that they fall
   * on the same moments. @internal
   */
  add(disk: string, bell: MemberBell, now: Instant): Instant {
    this.#members.add(disk);
    this.#bells.set(disk, bell);
    this.#startedAt ??= now;
    return this.#startedAt;
  }

  /** Whoever leaves is not waited for any more; a meeting that has begun is brought to its end. */
  remove(disk: string): void {
    this.#members.delete(disk);
    this.#bells.delete(disk);
    this.#missing = this.#missing.filter((missing) => missing !== disk);
    for (const arrival of this.#arrivals) if (arrival.member.disk === disk) this.#sendOff(arrival);
    this.#meetIfComplete();
  }

  /** Calls every member to a meeting now. */
  call(): void {
    for (const { call } of this.#bells.values()) call();
  }

  /**
   * Comes to the meeting. Undefined: the group did not come together, so the member takes a point
   * of its own. `signal` ends the waiting; once the meeting has begun its cut is awaited, because
   * applications rest for it and a cut that nobody takes would stay open.
   *
   * @internal
   */
  async join(member: GroupMember, wish: Wish, signal: AbortSignal): Promise<MadeCut | undefined> {
    return await new Promise<MadeCut | undefined>((resolve, reject) => {
      const leave = (): void => {
        if (this.#arrivals.includes(arrival)) this.#sendOff(arrival);
      };
      const arrival: Arrival = {
        member,
        wish,
        resolve: (made) => {
          signal.removeEventListener("abort", leave);
          resolve(made);
        },
        reject: (error) => {
          signal.removeEventListener("abort", leave);
          reject(error instanceof Error ? error : new Error(String(error)));
        },
      };
      if (signal.aborted) {
        resolve(undefined);
        return;
      }
      signal.addEventListener("abort", leave, { once: true });
      this.#arrivals.push(arrival);
      if (this.#arrivals.length === 1) this.#inviteOthers(member.disk);
      this.#timer ??= setTimeout(() => {
        this.#disperse();
      }, waitMsMax);
      this.#meetIfComplete();
    });
  }

  /**
   * Whoever idles between two ticks can come at once: so a slow member finds the others when it is
   * ready.
   */
  #inviteOthers(disk: string): void {
    for (const [other, { invite }] of this.#bells) if (other !== disk) invite();
  }

  #sendOff(arrival: Arrival): void {
    this.#arrivals = this.#arrivals.filter((other) => other !== arrival);
    if (this.#arrivals.length === 0) this.#take(); // nobody waits any more
    arrival.resolve(undefined);
  }

  #disperse(): void {
    const arrivals = this.#take();
    const there = new Set(arrivals.map((arrival) => arrival.member.disk));
    this.#missing = this.members.filter((disk) => !there.has(disk));
    for (const arrival of arrivals) arrival.resolve(undefined);
  }

  #take(): Arrival[] {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const arrivals = this.#arrivals;
    this.#arrivals = [];
    return arrivals;
  }

  #meetIfComplete(): void {
    const there = new Set(this.#arrivals.map((arrival) => arrival.member.disk));
    if (there.size === 0 || !this.members.every((disk) => there.has(disk))) return;
    const arrivals = this.#take();
    this.#missing = [];
    this.#meet(arrivals).catch((error: unknown) => {
      for (const arrival of arrivals) arrival.reject(error);
    });
  }

  async #meet(arrivals: readonly Arrival[]): Promise<void> {
    const wantsApp = arrivals.some(({ wish }) => wish.wantsApp);
    const outcome = wantsApp
      ? await frozenCuts(arrivals.map(({ member }) => member))
      : { ...(await cutTogether(arrivals.map(({ member }) => member))), applications: [] };
    const disks = this.members;
    // A group in which nothing has changed needs no point.
    const isWanted =
      wantsApp || arrivals.some(({ wish }) => wish.isAsked) || outcome.cuts.some((cut) => cut.dirtyBytes > 0);
    const group: GroupRecord | null =
      isWanted && disks.length > 1 ? { id: toHex(randomBytes(16)), name: this.name, disks } : null;
    for (const [index, arrival] of arrivals.entries()) {
      const cut = outcome.cuts[index];
      if (cut === undefined) arrival.resolve(undefined);
      else arrival.resolve({ cut, cutAtMs: outcome.cutAtMs, group, application: outcome.applications[index] ?? null });
    }
  }
}

/** Cuts that were made in one turn of the event loop, and when that was. */
interface CommonCut {
  readonly cuts: readonly Cut[];
  readonly cutAtMs: number;
}

/**
 * Prepares every disk, and cuts all of them when all are prepared. Errors: CUT_TIMED_OUT of any;
 * then none has been cut.
 */
export async function cutTogether(members: readonly Pick<GroupMember, "protectedDisk">[]): Promise<CommonCut> {
  // No disk holds its writes while another is still putting its last cut away.
  await Promise.all(members.map(async ({ protectedDisk }) => await protectedDisk.ready()));
  const outcomes = await Promise.allSettled(members.map(async ({ protectedDisk }) => await protectedDisk.prepare()));
  const prepared: PreparedCut[] = outcomes.flatMap((outcome) =>
    outcome.status === "fulfilled" ? [outcome.value] : [],
  );
  const failure = outcomes.find((outcome) => outcome.status === "rejected");
  // A gate opens by itself when it has been closed for too long: then its disk has gone on alone.
  const early = prepared.find((one) => !one.held);
  if (failure === undefined && early === undefined) {
    return { cuts: prepared.map((one) => one.cut({ exact: true })), cutAtMs: performance.now() };
  }
  for (const one of prepared) if (one !== early) one.release();
  if (failure !== undefined) throw failure.reason;
  assert(early !== undefined, "either a disk could not be prepared, or one has gone on alone");
  return { cuts: [early.cut({ exact: true })], cutAtMs: performance.now() }; // throws CUT_TIMED_OUT
}

/**
 * Cuts all disks while the applications of all rest. Freezes are nested: each member's begins
 * before the cut and ends after it. Where one fails, the cut is crash-consistent for all, and every
 * point says why. Errors: CUT_TIMED_OUT; INTERRUPTED when `signal` aborts before the cut.
 */
export async function frozenCuts(
  members: readonly GroupMember[],
  signal?: AbortSignal,
): Promise<CommonCut & { readonly applications: readonly (ApplicationRecord | null)[] }> {
  const applications: (ApplicationRecord | null)[] = members.map(() => null);
  let common: CommonCut = { cuts: [], cutAtMs: 0 };
  const freezeFrom = async (index: number): Promise<void> => {
    const member = members[index];
    if (member === undefined) {
      common = await cutTogether(members);
      return;
    }
    if (member.hook === undefined) {
      await freezeFrom(index + 1);
      return;
    }
    const { steps, frozen, reason } = await withFreeze(
      member.hook,
      { timeoutMs: member.freezeTimeoutMs, signal },
      async () => {
        await freezeFrom(index + 1);
      },
    );
    applications[index] = { outcome: frozen ? "frozen" : "failed", reason: reason ?? null, steps };
  };
  try {
    await freezeFrom(0);
  } catch (error) {
    for (const cut of common.cuts) cut.abandon();
    throw error;
  }
  const failed = applications.find((application) => application?.outcome === "failed");
  if (failed !== undefined && failed !== null) {
    for (const [index, application] of applications.entries()) {
      if (application?.outcome === "frozen")
        applications[index] = { ...application, outcome: "failed", reason: "another disk's freeze failed" };
    }
  }
  return { ...common, applications };
}
