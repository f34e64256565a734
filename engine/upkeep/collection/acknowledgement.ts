/**
 * Acknowledgement of a garbage collection by every writer of the vault: epoch-based reclamation.
 *
 * A writer acknowledges by writing the collection's id into its head, after it has forgotten what is
 * condemned. A writer that has died is fenced out by taking its lease. A writer that lives and does
 * not answer in time ends the collection before anything is freed.
 *
 * Invariant: once every disk is harmless, no writer can commit a point that refers to a condemned
 * chunk. No clock decides this.
 */
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, throwIfAborted } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { VaultPlace } from "../../store/place.ts";
import { readHead } from "../../store/points/head.ts";
import { diskNames } from "../../store/points/points.ts";
import { WriterLease } from "../../store/points/writer-lease.ts";
import { collectionTiming } from "../../timing.ts";

export interface AcknowledgementOptions extends VaultPlace {
  /** Id of the collection. */
  readonly collection: string;
  readonly waitMsMax: number;
  readonly onNotice: (notice: Notice) => void;
}

/**
 * Returns the disks with a living writer that did not acknowledge in time. Errors: INTERRUPTED,
 * DAMAGED and the errors of the store.
 */
export async function awaitWriters(options: AcknowledgementOptions): Promise<string[]> {
  const { store, waitMsMax, signal } = options;
  const startedAt = performance.now();
  // Listed now: a writer may have added a disk meanwhile. A disk that is added from now on learns of
  // the collection.
  for (let waiting: readonly string[] = await diskNames(store, signal); ; ) {
    const left: string[] = [];
    for (const disk of waiting) if (!(await isHarmless(disk, options))) left.push(disk);
    if (left.length === 0 || performance.now() - startedAt >= waitMsMax) return left;
    waiting = left;
    await delay(collectionTiming.headPollMs, undefined, { signal }).catch(() => undefined);
    throwIfAborted(signal);
  }
}

/** Whether no writer of this disk can commit a point any more that refers to a condemned chunk. */
async function isHarmless(disk: string, options: AcknowledgementOptions): Promise<boolean> {
  const { store, vault, collection, onNotice, signal } = options;
  const { head } = await readHead(store, vault, disk, signal);
  // A writer that takes the lease from now on loads or refreshes its catalog afterwards.
  if (head.writer === null || head.collection === collection) return true;
  try {
    const writerLease = await WriterLease.take({ store, vault, disk, onNotice, signal });
    await writerLease.release();
    return true;
  } catch (error) {
    if (hasCode(error, "WRITER_ACTIVE")) return false;
    throw error;
  }
}
