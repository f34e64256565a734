/**
 * A lease that is kept by renewal: taken on an object, renewed while its holder lives, released at
 * the end.
 *
 * A timer renews the lease several times in a term. A renewal that fails for now is repeated by the
 * next tick. When the store says that the lease is not held any more, `regain` decides: it takes
 * the lease again, or names the error with which it is lost for good; then `signal` aborts. If the
 * holder dies, nothing renews the lease and it ends by the store's clock.
 *
 * Between two renewals the holder cannot know whether it still has the lease. So before a step that
 * no fence guards it calls `assertHeld`, which asks the store unless the last renewal is younger
 * than half a term. That age is measured on two clocks: the steady clock stands still while a
 * machine sleeps, the wall clock can be set back.
 *
 * Invariant: after `stop` or `release` has resolved, no request of this lease is under way.
 */
import { type Instant, now } from "../clocks.ts";
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import { leaseTiming } from "../timing.ts";
import { checksum, toHex } from "./format/checksum.ts";
import type { Store } from "./store.ts";

/** A leased object, and the id (a UUID) under which it is leased. */
export interface LeasePlace {
  readonly name: string;
  readonly leaseId: string;
}

/**
 * Called when the store does not know the lease any more; `cause` is LEASE_LOST or
 * OBJECT_NOT_FOUND. Returns undefined when the lease is held again, or the error with which it is
 * lost for good. It throws when neither is known: the next renewal asks again.
 */
export type Regain = (cause: TidemarkError, signal: AbortSignal) => Promise<TidemarkError | undefined>;

export class HeldLease implements AsyncDisposable {
  /** A `regain` that leases another object puts it here. */
  place: LeasePlace;
  readonly #store: Store;
  readonly #regain: Regain;
  readonly #lost = new AbortController();
  readonly #ending = new AbortController();
  readonly #timer: NodeJS.Timeout;
  #renewedAt: Instant = now();
  #renewing: Promise<void> | undefined;
  #released: Promise<boolean> | undefined;

  /** Keeps a lease that has just been taken. */
  constructor(store: Store, place: LeasePlace, regain: Regain) {
    this.#store = store;
    this.place = place;
    this.#regain = regain;
    this.#timer = setInterval(() => {
      // A failed renewal is either final, which aborts `signal`, or repeated by the next tick.
      this.#renew().catch(() => undefined);
    }, leaseTiming.renewEveryMs).unref();
  }

  /**
   * Takes the lease on an object, for the term of all leases, and keeps it.
   *
   * @throws LEASE_HELD when another id has the lease; OBJECT_NOT_FOUND.
   */
  static async take(
    store: Store,
    place: LeasePlace,
    regain: Regain,
    signal: AbortSignal | undefined,
  ): Promise<HeldLease> {
    await HeldLease.acquire(store, place, signal);
    return new HeldLease(store, place, regain);
  }

  /**
   * Takes the lease, or extends it when `place.leaseId` has it. Errors: LEASE_HELD,
   * OBJECT_NOT_FOUND.
   */
  static async acquire(store: Store, { name, leaseId }: LeasePlace, signal: AbortSignal | undefined): Promise<void> {
    await store.acquireLease(name, leaseId, leaseTiming.seconds, { signal });
  }

  /**
   * Aborts once the lease is lost for good. Its reason is the error that `regain` returned or
   * `lose` was given.
   */
  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  /**
   * Makes sure that the lease is held, asking the store when the last renewal is older than half a
   * term.
   *
   * @throws the reason of `signal`; what `regain` and the store throw.
   */
  async assertHeld(): Promise<void> {
    throwIfAborted(this.#lost.signal);
    const { wallMs, steadyMs } = now();
    const ageMs = Math.max(wallMs - this.#renewedAt.wallMs, steadyMs - this.#renewedAt.steadyMs);
    if (ageMs > leaseTiming.trustMs) await this.#renew();
  }

  /**
   * Takes the lease again after the store has refused something for want of it.
   *
   * @throws as `assertHeld`.
   */
  async regain(cause: TidemarkError): Promise<void> {
    const startedAt = now();
    const reason = await this.#regain(cause, this.#ending.signal);
    if (reason !== undefined) throw this.lose(reason);
    this.#renewedAt = startedAt;
  }

  /**
   * Declares the lease lost for good: `signal` aborts, and nothing renews the lease any more.
   * Returns `reason`.
   */
  lose(reason: TidemarkError): TidemarkError {
    clearInterval(this.#timer);
    this.#lost.abort(reason);
    return reason;
  }

  /** Two callers share one renewal. */
  async #renew(): Promise<void> {
    this.#renewing ??= this.#renewOnce().finally(() => {
      this.#renewing = undefined;
    });
    await this.#renewing;
  }

  async #renewOnce(): Promise<void> {
    const startedAt = now();
    try {
      await this.#store.renewLease(this.place.name, this.place.leaseId, { signal: this.#ending.signal });
    } catch (error) {
      if (!hasCode(error, "LEASE_LOST", "OBJECT_NOT_FOUND")) throw error;
      await this.regain(error);
      return;
    }
    this.#renewedAt = startedAt;
  }

  /** Ends the renewals. Idempotent; waits. The lease is left to its end. */
  async stop(): Promise<void> {
    clearInterval(this.#timer);
    this.#ending.abort();
    await Promise.allSettled([this.#renewing]);
  }

  /**
   * Ends the renewals and releases the lease. Idempotent; waits. False: the store did not confirm,
   * and the lease ends by itself.
   */
  async release(): Promise<boolean> {
    this.#released ??= this.#release();
    return await this.#released;
  }

  async #release(): Promise<boolean> {
    await this.stop();
    // Also when the lease is lost: the id is ours alone, and may have been taken once more before
    // the loss was known.
    return await releaseSoon(this.#store, this.place);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }
}

/**
 * Releases a lease within `leaseTiming.releaseMsMax`. False: the store did not confirm, and the
 * lease ends by itself.
 */
export async function releaseSoon(store: Store, { name, leaseId }: LeasePlace): Promise<boolean> {
  try {
    await store.releaseLease(name, leaseId, { signal: AbortSignal.timeout(leaseTiming.releaseMsMax) });
    return true;
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    return false;
  }
}

/**
 * A lease id that follows from `parts`, written as a UUID. A process that knows them can take
 * over the lease of a dead holder.
 */
export function leaseIdOf(...parts: readonly (string | number)[]): string {
  const hex = toHex(checksum(Buffer.from(JSON.stringify(parts))));
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}
