/** The collector's seat: a lease on `reclaim/collector`, so that of two collections at once one yields. It ends by the store's clock when its holder dies. */
import { randomUUID } from "node:crypto";
import { hasCode, TidemarkError } from "../../errors.ts";
import { collectorName } from "../format/reclaim.ts";
import type { Store } from "../store.ts";

const timing = { leaseSeconds: 60, renewEveryMs: 15_000, giveUpMs: 1_500 } as const;

export class CollectorLease implements AsyncDisposable {
  readonly #store: Store;
  readonly #leaseId: string;
  readonly #lost = new AbortController();
  readonly #timer: NodeJS.Timeout;

  private constructor(store: Store, leaseId: string) {
    this.#store = store;
    this.#leaseId = leaseId;
    this.#timer = setInterval(() => {
      // A failed renewal is either final, which aborts `signal`, or repeated by the next tick.
      this.#renew().catch(() => undefined);
    }, timing.renewEveryMs).unref();
  }

  /** Errors: COLLECTION_ACTIVE. */
  static async take(store: Store, signal: AbortSignal | undefined): Promise<CollectorLease> {
    const leaseId = randomUUID();
    for (;;) {
      try {
        await store.lease().acquireLease(collectorName, leaseId, timing.leaseSeconds, { signal });
        return new CollectorLease(store, leaseId);
      } catch (error) {
        if (hasCode(error, "LEASE_HELD")) throw active(error);
        if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
      }
      // Nobody has ever collected here. Empty, and the same whoever makes it.
      await store.putOnce(collectorName, new Uint8Array(0), { signal }).catch((error: unknown) => {
        if (!hasCode(error, "OBJECT_EXISTS")) throw error; // else a twin was faster
      });
    }
  }

  /** Aborts, with COLLECTION_ACTIVE as its reason, when somebody else may have the seat. */
  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  async #renew(): Promise<void> {
    try {
      await this.#store.lease().renewLease(collectorName, this.#leaseId);
    } catch (error) {
      if (hasCode(error, "LEASE_LOST", "OBJECT_NOT_FOUND")) this.#lost.abort(active(error));
      throw error;
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    try {
      await this.#store.lease().releaseLease(collectorName, this.#leaseId, { signal: AbortSignal.timeout(timing.giveUpMs) });
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error; // it ends by itself
    }
  }
}

function active(cause: unknown): TidemarkError {
  return new TidemarkError("COLLECTION_ACTIVE", "another collection works on this vault", { remedy: "let it finish", cause });
}
