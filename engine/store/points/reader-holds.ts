/**
 * Reader holds: leases that keep a point from being pruned while it is read, for as long as it is
 * read and no longer.
 *
 * A hold is an object `disks/<disk>/holds/<sequence>-<random>` under a lease that its reader
 * renews. It counts while that lease lasts, by the store's clock. A pruner tries to take the lease:
 * if it gets it, the reader has died or has slept for too long, and the pruner removes the hold. A
 * reader that finds its hold gone takes another one. If the point is still listed then, it never
 * was in danger; if it is not, `signal` aborts.
 *
 * Invariant: a point with a living reader is not dropped. `prune-fence.ts` shows why no hold is
 * missed.
 *
 * Cost: two puts and a read of the head to begin, one lease renewal each 15 s.
 */
import { randomBytes, randomUUID } from "node:crypto";
import { type ErrorCode, hasCode, TidemarkError } from "../../errors.ts";
import { leaseTiming } from "../../timing.ts";
import { toHex } from "../format/checksum.ts";
import type { PointRecord } from "../format/documents.ts";
import { encodeHold } from "../format/keeping.ts";
import { sidecarName, sidecarPrefix, sidecarSequence } from "../format/names.ts";
import { HeldLease, type LeasePlace, releaseSoon } from "../held-lease.ts";
import type { NoticedDisk } from "../place.ts";
import type { Store } from "../store.ts";
import { identifyProcess, type ProcessIdentity } from "./process-identity.ts";
import { isUndecided, proveListed } from "./prune-fence.ts";

/**
 * How often a hold is taken anew because a pruner took it for a dead reader's before it was leased.
 */
const takesMax = 5;

export interface HoldOptions extends NoticedDisk {
  readonly point: PointRecord;
  /** What the point is read for, in a word: `mount`. For people who look into the vault. */
  readonly purpose: string;
}

/** While it is held, the point is not dropped. */
export interface PointHold extends AsyncDisposable {
  /**
   * Aborts, with POINT_NOT_FOUND as its reason, when the hold was lost and the point is not there
   * any more.
   */
  readonly signal: AbortSignal;
  /** Ends the hold. Idempotent; waits. A hold that cannot be removed ends by itself. */
  release(): Promise<void>;
}

/**
 * Holds a point until `release`, or until the store has not heard of this process for a minute. In
 * a store that refuses writes, or has no room for them, nothing is held, and a notice HOLD_REFUSED
 * says so.
 *
 * @throws POINT_NOT_FOUND when the point has been, or is being, dropped; DAMAGED,
 * FORMAT_UNSUPPORTED when that cannot be told.
 */
export async function holdPoint(options: HoldOptions): Promise<PointHold> {
  return await heldUnless(options, "ACCESS_REFUSED", "NO_SPACE");
}

/**
 * As `holdPoint`, for reading a point of a damaged vault: where it cannot be told whether the point
 * is being dropped, nothing is held.
 */
export async function holdToRead(options: HoldOptions): Promise<PointHold> {
  return await heldUnless(options, "ACCESS_REFUSED", "NO_SPACE", "DAMAGED", "FORMAT_UNSUPPORTED");
}

/** Holds several points of a disk to read them. Errors: as `holdToRead`; then none is held. */
export async function holdAllToRead(
  options: Omit<HoldOptions, "point">,
  points: readonly PointRecord[],
): Promise<PointHold> {
  const taken = await Promise.allSettled(points.map(async (point) => await holdToRead({ ...options, point })));
  const holds = taken.flatMap((one) => (one.status === "fulfilled" ? [one.value] : []));
  const release = async (): Promise<void> => {
    await Promise.all(holds.map(async (hold) => await hold.release()));
  };
  for (const one of taken) {
    if (one.status === "fulfilled") continue;
    await release();
    throw one.reason;
  }
  return { signal: AbortSignal.any(holds.map(({ signal }) => signal)), release, [Symbol.asyncDispose]: release };
}

async function heldUnless(options: HoldOptions, ...codes: readonly ErrorCode[]): Promise<PointHold> {
  try {
    const identity = await identifyProcess();
    return new LeasedHold(options, identity, await takeHold(options, identity, options.signal));
  } catch (error) {
    if (!hasCode(error, ...codes)) throw error;
    const { point, onNotice } = options;
    const message = `point ${String(point.sequence)} is not held, so a prune can drop it while it is read: ${error.message}`;
    onNotice({ code: "HOLD_REFUSED", message });
    return new NoHold();
  }
}

/** The holds of a disk: sequence number of the point → names. */
export async function listHolds(
  store: Store,
  disk: string,
  signal?: AbortSignal,
): Promise<ReadonlyMap<number, readonly string[]>> {
  const holds = new Map<number, string[]>();
  for await (const { name } of store.list(sidecarPrefix("holds", disk), { signal })) {
    const sequence = sidecarSequence(name);
    if (sequence !== undefined) holds.set(sequence, [...(holds.get(sequence) ?? []), name]);
  }
  return holds;
}

/**
 * Whether the reader of the hold `name` lives, so that the hold counts. Removes the hold of a dead
 * reader. Errors: those of the store.
 */
export async function isHoldAlive(store: Store, name: string, signal?: AbortSignal): Promise<boolean> {
  const leaseId = randomUUID();
  try {
    await store.acquireLease(name, leaseId, leaseTiming.probeSeconds, { signal });
    await store.releaseLease(name, leaseId, { signal });
    // A reader that takes its lease at this moment keeps its hold: what is leased cannot be
    // deleted.
    await store.delete(name, { signal });
    return false;
  } catch (error) {
    if (hasCode(error, "LEASE_HELD")) return true;
    if (hasCode(error, "OBJECT_NOT_FOUND")) return false;
    throw error;
  }
}

async function takeHold(
  options: HoldOptions,
  { pid, host }: ProcessIdentity,
  signal: AbortSignal | undefined,
): Promise<LeasePlace> {
  const { store, vault, disk, point, purpose } = options;
  for (let attempt = 1; ; attempt += 1) {
    const place = { name: sidecarName("holds", disk, point.sequence, toHex(randomBytes(16))), leaseId: randomUUID() };
    const document = { vault, disk, sequence: point.sequence, point: point.id, purpose, pid, host };
    await store.putOnce(place.name, encodeHold(document), { signal });
    try {
      await HeldLease.acquire(store, place, signal);
      await proveListed({ ...options, signal });
      return place;
    } catch (error) {
      await removeHold(store, place);
      if (!hasCode(error, "LEASE_HELD", "OBJECT_NOT_FOUND") || attempt >= takesMax) throw error;
    }
  }
}

/**
 * Removes a hold of this process. If that fails the hold ends by itself: nothing renews it, and the
 * next prune clears it away.
 */
async function removeHold(store: Store, place: LeasePlace): Promise<void> {
  if (!(await releaseSoon(store, place))) return;
  try {
    await store.delete(place.name, { signal: AbortSignal.timeout(leaseTiming.releaseMsMax) });
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
  }
}

class LeasedHold implements PointHold {
  readonly #options: HoldOptions;
  readonly #identity: ProcessIdentity;
  readonly #lease: HeldLease;
  #released: Promise<void> | undefined;

  constructor(options: HoldOptions, identity: ProcessIdentity, place: LeasePlace) {
    this.#options = options;
    this.#identity = identity;
    this.#lease = new HeldLease(options.store, place, async (_cause, signal) => await this.#takeAgain(signal));
  }

  get signal(): AbortSignal {
    return this.#lease.signal;
  }

  /** Undefined: the point is held by another hold now. Else why it is not there any more. */
  async #takeAgain(signal: AbortSignal): Promise<TidemarkError | undefined> {
    try {
      const former = this.#lease.place;
      this.#lease.place = await takeHold(this.#options, this.#identity, signal);
      await removeHold(this.#options.store, former);
      return undefined;
    } catch (error) {
      if (hasCode(error, "POINT_NOT_FOUND", "DISK_NOT_FOUND") && !isUndecided(error)) return error;
      throw error;
    }
  }

  async release(): Promise<void> {
    this.#released ??= this.#release();
    await this.#released;
  }

  async #release(): Promise<void> {
    await this.#lease.stop();
    await removeHold(this.#options.store, this.#lease.place);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }
}

/** In a store where nothing can be held. */
class NoHold implements PointHold {
  readonly signal: AbortSignal = new AbortController().signal;

  async release(): Promise<void> {
    await Promise.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }
}
