/**
 * Group points: a barrier over the disks of one machine, so that their points are cut together.
 *
 * Each member's loop arrives at the barrier when a point is due. When all members have arrived,
 * every disk holds its new writes, all disks are cut in one turn of the event loop, and every
 * member ships its own cut.
 *
 * A member may fail to arrive in time, because it is being compared, its store is unreachable or it
 * is still shipping. The barrier is then broken up, the members that arrived take points of their
 * own, and `missing` names the others.
 *
 * Invariant: of two writes to any of the disks, one after the other, no group point holds the
 * second without the first.
 */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import type { Instant } from "../../clocks.ts";
import type { Cut, PreparedCut } from "../../disk/tracking/cut.ts";
import type { ProtectedDisk } from "../../disk/tracking/protected-disk.ts";
import { toHex } from "../../store/format/checksum.ts";
import type { ApplicationRecord, GroupRecord } from "../../store/format/documents.ts";
import type { Finding } from "./health.ts";
import type { Hook } from "./hooks.ts";
import { withFreeze } from "./hooks.ts";

/** A member as it arrives at the barrier. */
export interface GroupMember {
  readonly disk: string;
  readonly protectedDisk: ProtectedDisk;
  readonly hook: Hook | undefined;
  readonly freezeTimeoutMs: number;
}

/** A member's cut, and what the point's record will say about it. */
export interface MadeCut {
  readonly cut: Cut;
  /**
   * When it was made, in ms on the steady clock. A frozen application has been thawed since.
   */
  readonly cutAtMs: number;
  readonly group: GroupRecord | null;
  readonly application: ApplicationRecord | null;
}

/** What a member asks of the group's point. */
interface CutRequest {
  /** The application is to be at rest. */
  readonly wantsApp: boolean;
  /** The point is to be made even if nothing has changed. */
  readonly isAsked: boolean;
}

interface Arrival {
  readonly member: GroupMember;
  readonly request: CutRequest;
  readonly resolve: (made: MadeCut | undefined) => void;
  readonly reject: (error: unknown) => void;
}

/** How the barrier reaches a member's loop. */
export interface Participant {
  /** A client has requested a point: the member begins a cycle and arrives as soon as it can. */
  readonly request: () => void;
  /** Another member has arrived: an idle member arrives too. */
  readonly join: () => void;
}

/** How long members that have arrived wait for the others. */
const waitMsMax = 1_000;

/**
 * A group of disks on one machine whose points are cut together. Pass one `Group` to the `protect`
 * call of each member.
 *
 * @example
 * ```ts
 * const group = new Group("database");
 * await using data = await vault.protect({ disk: "data", image: dataImage, stateFolder, group });
 * await using log = await vault.protect({ disk: "log", image: logImage, stateFolder, group });
 * const point = await data.point(); // both disks are cut together
 * ```
 */
export class Group {
  /** The name that each point of the group records. */
  readonly name: string;
  readonly #members = new Set<string>();
  readonly #participants = new Map<string, Participant>();
  #startedAt: Instant | undefined;
  #arrivals: Arrival[] = [];
  #timer: NodeJS.Timeout | undefined;
  #missing: readonly string[] = [];

  constructor(name: string) {
    this.name = name;
  }

  /** Names of the members, sorted. */
  get members(): readonly string[] {
    return [...this.#members].sort();
  }

  /** Members that did not arrive at the last barrier. */
  get missing(): readonly string[] {
    return this.#missing;
  }

  /** The health finding GROUP_INCOMPLETE; undefined when no member is missing. */
  get finding(): Finding | undefined {
    if (this.#missing.length === 0) return undefined;
    return {
      level: "Warning",
      code: "GROUP_INCOMPLETE",
      cause: `group ${this.name} takes no common points: ${this.#missing.join(", ")} did not arrive at the last cut`,
      remedy: "see the findings of the disks that are named; the others take points of their own meanwhile",
    };
  }

  /**
   * Adds a member. Returns the instant from which all members count their ticks, so that the ticks
   * coincide.
   *
   * @internal
   */
  add(disk: string, participant: Participant, now: Instant): Instant {
    this.#members.add(disk);
    this.#participants.set(disk, participant);
    this.#startedAt ??= now;
    return this.#startedAt;
  }

  /** Removes a member. The barrier no longer waits for it; a cut that has begun is completed. */
  remove(disk: string): void {
    this.#members.delete(disk);
    this.#participants.delete(disk);
    this.#missing = this.#missing.filter((missing) => missing !== disk);
    for (const arrival of this.#arrivals) if (arrival.member.disk === disk) this.#release(arrival);
    this.#cutIfComplete();
  }

  /** Makes every member begin a cycle now, and so arrive at the barrier. */
  request(): void {
    for (const { request } of this.#participants.values()) request();
  }

  /**
   * Arrives at the barrier. Undefined: the barrier was broken up, so the member takes a point of
   * its own. `signal` ends the waiting. Once the cut has begun it is awaited, because applications
   * are frozen for it, and a cut that no member takes would stay open.
   *
   * @internal
   */
  async join(member: GroupMember, request: CutRequest, signal: AbortSignal): Promise<MadeCut | undefined> {
    return await new Promise<MadeCut | undefined>((resolve, reject) => {
      const leave = (): void => {
        if (this.#arrivals.includes(arrival)) this.#release(arrival);
      };
      const arrival: Arrival = {
        member,
        request,
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
      if (this.#arrivals.length === 1) this.#joinOthers(member.disk);
      this.#timer ??= setTimeout(() => this.#breakUp(), waitMsMax);
      this.#cutIfComplete();
    });
  }

  /**
   * Members that are idle between two ticks arrive at once, so a slow member meets the others when
   * it is ready.
   */
  #joinOthers(disk: string): void {
    for (const [other, { join }] of this.#participants) if (other !== disk) join();
  }

  #release(arrival: Arrival): void {
    this.#arrivals = this.#arrivals.filter((other) => other !== arrival);
    if (this.#arrivals.length === 0) this.#take(); // no member waits any more
    arrival.resolve(undefined);
  }

  #breakUp(): void {
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

  #cutIfComplete(): void {
    const there = new Set(this.#arrivals.map((arrival) => arrival.member.disk));
    if (there.size === 0 || !this.members.every((disk) => there.has(disk))) return;
    const arrivals = this.#take();
    this.#missing = [];
    this.#cut(arrivals).catch((error: unknown) => {
      for (const arrival of arrivals) arrival.reject(error);
    });
  }

  async #cut(arrivals: readonly Arrival[]): Promise<void> {
    const wantsApp = arrivals.some(({ request }) => request.wantsApp);
    const outcome = wantsApp
      ? await frozenCuts(arrivals.map(({ member }) => member))
      : { ...(await cutTogether(arrivals.map(({ member }) => member))), applications: [] };
    const disks = this.members;
    // A group in which nothing has changed needs no point.
    const isWanted =
      wantsApp || arrivals.some(({ request }) => request.isAsked) || outcome.cuts.some((cut) => cut.dirtyBytes > 0);
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
 * Prepares every disk, and cuts all of them when all are prepared. Errors: CUT_TIMED_OUT if any
 * disk holds its writes for too long; then no disk is cut.
 */
export async function cutTogether(members: readonly Pick<GroupMember, "protectedDisk">[]): Promise<CommonCut> {
  // No disk holds its writes while another still completes its previous cut.
  await Promise.all(members.map(async ({ protectedDisk }) => await protectedDisk.ready()));
  const outcomes = await Promise.allSettled(members.map(async ({ protectedDisk }) => await protectedDisk.prepare()));
  const prepared: PreparedCut[] = outcomes.flatMap((outcome) =>
    outcome.status === "fulfilled" ? [outcome.value] : [],
  );
  const failure = outcomes.find((outcome) => outcome.status === "rejected");
  // A gate that has been closed for too long opens by itself; that disk has taken writes since.
  const early = prepared.find((one) => !one.held);
  if (failure === undefined && early === undefined) {
    return { cuts: prepared.map((one) => one.cut({ exact: true })), cutAtMs: performance.now() };
  }
  for (const one of prepared) if (one !== early) one.release();
  if (failure !== undefined) throw failure.reason;
  assert(early !== undefined, "either a disk could not be prepared, or its gate has opened");
  return { cuts: [early.cut({ exact: true })], cutAtMs: performance.now() }; // throws CUT_TIMED_OUT
}

/**
 * Cuts all disks while the applications of all members are frozen. Freezes are nested: each begins
 * before the cut and ends after it. If one fails, the cut is crash-consistent for all members, and
 * every point says why. Errors: CUT_TIMED_OUT; INTERRUPTED when `signal` aborts before the cut.
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
