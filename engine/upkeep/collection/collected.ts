/**
 * Record of the last garbage collection: when it ended. It only paces agents that collect on their
 * own, so a record that cannot be read counts as none.
 */
import { hasCode, isUnreadable } from "../../errors.ts";
import type { CallOptions } from "../../sink.ts";
import { documentBytesMax } from "../../store/format/documents.ts";
import { collectedName, decodeCollected, encodeCollected } from "../../store/format/reclaim.ts";
import type { Store } from "../../store/store.ts";

/** Records that a collection has ended now. Errors: those of the store. */
export async function noteCollected(store: Store, vault: string, signal: AbortSignal): Promise<void> {
  const bytes = encodeCollected({ vault, collectedMs: Date.now() });
  try {
    await store.replace(collectedName, bytes, await store.etagOf(collectedName, { signal }), { signal });
  } catch (error) {
    // On CONDITION_FAILED another collection has ended while this one slept.
    if (!hasCode(error, "CONDITION_FAILED")) throw error;
  }
}

/**
 * When the last collection ended, in ms since 1970; undefined when there was none, or its record
 * cannot be read. It only paces agents that collect on their own.
 *
 * @throws the errors of the store.
 */
export async function lastCollectedMs(store: Store, vault: string, options: CallOptions): Promise<number | undefined> {
  const there = await store.find(collectedName, documentBytesMax, options);
  if (there === undefined) return undefined;
  try {
    return decodeCollected(there.bytes, collectedName, vault).collectedMs;
  } catch (error) {
    if (isUnreadable(error)) return undefined;
    throw error;
  }
}
