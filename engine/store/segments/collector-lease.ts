/**
 * Collector lease: mutual exclusion of garbage collections, by a lease on the object
 * `reclaim/collector`.
 *
 * Of two collections at once one yields. When a collector dies, its lease ends by the store's
 * clock. A collector that slept for longer than its lease lasts learns of that from its next
 * renewal; what it writes until then is refused by ETag, because a successor writes the same
 * records.
 */
import { randomUUID } from "node:crypto";
import { hasCode, TidemarkError } from "../../errors.ts";
import { leaseTiming } from "../../timing.ts";
import { collectorName } from "../format/reclaim.ts";
import { HeldLease } from "../held-lease.ts";
import type { Store } from "../store.ts";

/**
 * Takes the collector lease. Its `signal` aborts, with COLLECTION_ACTIVE as its reason, when
 * another collector may have the lease.
 *
 * @throws COLLECTION_ACTIVE.
 */
export async function takeCollectorLease(store: Store, signal: AbortSignal | undefined): Promise<HeldLease> {
  const place = { name: collectorName, leaseId: randomUUID() };
  for (;;) {
    try {
      return await HeldLease.take(store, place, async (cause) => await Promise.resolve(active(cause)), signal);
    } catch (error) {
      if (hasCode(error, "LEASE_HELD")) throw active(error);
      if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
    }
    // The first collection of this vault. The object is empty, so it does not matter which process
    // creates it.
    await store.putOnce(collectorName, new Uint8Array(0), { signal }).catch((error: unknown) => {
      if (!hasCode(error, "OBJECT_EXISTS")) throw error;
    });
  }
}

function active(cause: unknown): TidemarkError {
  return new TidemarkError("COLLECTION_ACTIVE", "another collection works on this vault", {
    remedy: `let it finish; if it was killed, its lease ends after ${String(leaseTiming.seconds)} s`,
    cause,
  });
}
