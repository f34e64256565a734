/**
 * Holds: who reads a point keeps it from being dropped meanwhile, also when it is read for days, and no longer than it is read.
 *
 * A hold is an object `disks/<disk>/holds/<sequence>-<random>` under a lease, renewed several times within its term. It counts while
 * somebody has its lease, by the store's clock. A pruner asks for the lease: if it gets it, the reader is dead or has slept for too long, and
 * the hold is removed. A reader that finds its hold gone takes another; when the point is still listed then, it never was in danger, else
 * `signal` aborts.
 */
import { randomBytes, randomUUID } from "node:crypto";
import { type ErrorCode, hasCode, TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import { toHex } from "../format/checksum.ts";
import type { PointRecord } from "../format/documents.ts";
import { encodeHold } from "../format/keeping.ts";
import { keeperName, keepersPrefix, keptSequence } from "../format/names.ts";
import type { Store } from "../store.ts";
import { identifyProcess, type ProcessIdentity } from "./process-identity.ts";
import { isUndecided, proveListed } from "./prune-fence.ts";

/** Lease and its care, together because they depend on each other: several renewals fit into a lease. */
const timing = {
  leaseSeconds: 60,
  renewEveryMs: 15_000,
  /** How long a pruner keeps the lease of a hold that it removes. */
  removeSeconds: 15,
  /** How long giving a hold up may take: it ends by itself, and whoever leaves is in a hurry. */
  giveUpMs: 1_500,
} as const;

/** How often a hold is taken anew because a pruner took it for a dead reader's before it was leased. */
const takesMax = 5;

export interface HoldOptions {
  readonly store: Store;
  readonly vault: string;
  readonly disk: string;
  readonly point: PointRecord;
  /** What for, in a word: `mount`. For people who look into the vault. */
  readonly purpose: string;
  readonly onNotice: (notice: Notice) => void;
  readonly signal?: AbortSignal | undefined;
}

/** While it is held, the point is not dropped. */
export interface PointHold extends AsyncDisposable {
  /** Aborts, with POINT_NOT_FOUND as its reason, when the hold was lost and the point is not there any more. */
  readonly signal: AbortSignal;
  /** Gives the hold up. Idempotent; waits. One that cannot be given up ends by itself. */
  release(): Promise<void>;
}

/**
 * Holds a point until `release`, or until this process has not been heard of by the store for a minute. In a store that refuses writes, or
 * has no room for any, nothing is held, and a notice HOLD_REFUSED says so. Errors: POINT_NOT_FOUND when the point has been, or is being, dropped; DAMAGED,
 * FORMAT_UNSUPPORTED when it cannot be told.
 */
export async function holdPoint(options: HoldOptions): Promise<PointHold> {
  return await heldUnless(options, "ACCESS_REFUSED", "NO_SPACE");
}

/** As `holdPoint`, for whoever wants the point's data above all: where it cannot be told whether the point is being dropped, nothing is held either. */
export async function holdToRead(options: HoldOptions): Promise<PointHold> {
  return await heldUnless(options, "ACCESS_REFUSED", "NO_SPACE", "DAMAGED", "FORMAT_UNSUPPORTED");
}

async function heldUnless(options: HoldOptions, ...codes: readonly ErrorCode[]): Promise<PointHold> {
  try {
    const identity = await identifyProcess();
    return new LeasedHold(options, identity, await takeHold(options, identity, options.signal));
  } catch (error) {
    if (!hasCode(error, ...codes)) throw error;
    const { point, onNotice } = options;
    const message = `point ${String(point.sequence)} is not held, so a prune may drop it while it is read: ${error.message}`;
    onNotice({ code: "HOLD_REFUSED", message });
    return new NoHold();
  }
}

/** The holds of a disk: sequence number of the point → names. */
export async function listHolds(store: Store, disk: string, signal?: AbortSignal): Promise<ReadonlyMap<number, readonly string[]>> {
  const holds = new Map<number, string[]>();
  for await (const { name } of store.list(keepersPrefix("holds", disk), { signal })) {
    const sequence = keptSequence(name);
    if (sequence !== undefined) holds.set(sequence, [...(holds.get(sequence) ?? []), name]);
  }
  return holds;
}

/**
 * Removes the hold `name` if nobody has its lease. True: its reader lives, so it counts. What cannot be told for certain is an error.
 */
export async function isHoldAlive(store: Store, name: string, signal?: AbortSignal): Promise<boolean> {
  const leaseId = randomUUID();
  try {
    await store.lease().acquireLease(name, leaseId, timing.removeSeconds, { signal });
    await store.lease().releaseLease(name, leaseId, { signal });
    // A reader that comes to its lease in this very moment keeps its hold: what is leased cannot be deleted.
    await store.lease().deleteObject(name, { signal });
    return false;
  } catch (error) {
    if (hasCode(error, "LEASE_HELD")) return true;
    if (hasCode(error, "OBJECT_NOT_FOUND")) return false;
    throw error;
  }
}

interface Lease {
  readonly name: string;
  readonly id: string;
}

async function takeHold(options: HoldOptions, { pid, host }: ProcessIdentity, signal: AbortSignal | undefined): Promise<Lease> {
  const { store, vault, disk, point, purpose } = options;
  for (let attempt = 1; ; attempt += 1) {
    const lease = { name: keeperName("holds", disk, point.sequence, toHex(randomBytes(16))), id: randomUUID() };
    const document = { vault, disk, sequence: point.sequence, point: point.id, purpose, pid, host };
    await store.putOnce(lease.name, encodeHold(document), { signal });
    try {
      await store.lease().acquireLease(lease.name, lease.id, timing.leaseSeconds, { signal });
      await proveListed({ ...options, signal });
      return lease;
    } catch (error) {
      await giveUp(store, lease);
      if (!hasCode(error, "LEASE_HELD", "OBJECT_NOT_FOUND") || attempt >= takesMax) throw error;
    }
  }
}

/** Removes a hold. It ends by itself when that fails: nobody renews it, and the next prune clears it away. */
async function giveUp(store: Store, { name, id }: Lease): Promise<void> {
  const signal = AbortSignal.timeout(timing.giveUpMs);
  try {
    await store.lease().releaseLease(name, id, { signal });
    await store.lease().deleteObject(name, { signal });
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
  }
}

class LeasedHold implements PointHold {
  readonly #options: HoldOptions;
  readonly #identity: ProcessIdentity;
  readonly #lost = new AbortController();
  readonly #ending = new AbortController();
  readonly #timer: NodeJS.Timeout;
  #lease: Lease;
  #renewing: Promise<void> | undefined;
  #released: Promise<void> | undefined;

  constructor(options: HoldOptions, identity: ProcessIdentity, lease: Lease) {
    this.#options = options;
    this.#identity = identity;
    this.#lease = lease;
    this.#timer = setInterval(() => {
      this.#renewing ??= this.#renew().finally(() => {
        this.#renewing = undefined;
      });
      this.#renewing.catch(() => undefined); // a fault of ours reaches whoever releases the hold
    }, timing.renewEveryMs).unref();
  }

  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  /** What fails for now is tried again by the next tick. */
  async #renew(): Promise<void> {
    const { store } = this.#options;
    const { signal } = this.#ending;
    try {
      await store.lease().renewLease(this.#lease.name, this.#lease.id, { signal });
      return;
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      if (!hasCode(error, "LEASE_LOST", "OBJECT_NOT_FOUND")) return;
    }
    try {
      const former = this.#lease;
      this.#lease = await takeHold(this.#options, this.#identity, signal);
      await giveUp(store, former);
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
      if (!hasCode(error, "POINT_NOT_FOUND", "DISK_NOT_FOUND") || isUndecided(error)) return;
      clearInterval(this.#timer);
      this.#lost.abort(error);
    }
  }

  async release(): Promise<void> {
    this.#released ??= this.#release();
    await this.#released;
  }

  async #release(): Promise<void> {
    clearInterval(this.#timer);
    this.#ending.abort();
    try {
      await this.#renewing;
    } finally {
      await giveUp(this.#options.store, this.#lease);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }
}

/** What one has where nothing can be held. */
class NoHold implements PointHold {
  readonly signal: AbortSignal = new AbortController().signal;

  async release(): Promise<void> {
    await Promise.resolve();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }
}
