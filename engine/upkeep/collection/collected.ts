/**
 * Record of the last garbage collection: when it ended. It only paces agents that collect on their
 * own, so a record that cannot be read counts as none.
 */
import { hasCode } from "../../errors.ts";
import type { CallOptions } from "../../sink.ts";
import { type CollectedDocument, collectedName, decodeCollected, encodeCollected } from "../../store/format/reclaim.ts";
import { readShared } from "../../store/shared-document.ts";
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
  const decode = (bytes: Uint8Array): CollectedDocument => decodeCollected(bytes, collectedName, vault);
  return (await readShared(store, { name: collectedName, decode }, options)).document?.collectedMs;
}
