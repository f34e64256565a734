/**
 * Replacement of a lost head by one that lists given points.
 *
 * A damaged head is swapped under the lease of its object, which its writer would hold; a head that
 * is gone has no lease, and the new one is put only if there still is none. The new epoch is above
 * every epoch in any name, and the segments of the last writer are locked before the head is put.
 *
 * Invariant: the head comes last and in one write.
 */
import { randomUUID } from "node:crypto";
import { hasCode, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { HeadDocument, PointRecord } from "../../store/format/documents.ts";
import { decodeHead, documentBytesMax, encodeHead } from "../../store/format/documents.ts";
import {
  decodeDiskName,
  firstSequenceNumber,
  headName,
  parseSegmentName,
  segmentsPrefix,
} from "../../store/format/names.ts";
import type { DiskPlace } from "../../store/place.ts";
import { layOutPoints } from "../../store/points/history.ts";
import type { Store } from "../../store/store.ts";
import { leaseTiming } from "../../timing.ts";

/**
 * Writers may have taken the lease, each with a higher epoch, and named nothing: how often, only
 * the lost head said.
 */
const epochsSpared = 65_536;

export interface HeadReplacement extends DiskPlace {
  /** The highest epoch in any name. */
  readonly seenEpoch: number;
  /** ETag of the damaged head; undefined: the head is gone. */
  readonly brokenEtag: string | undefined;
  /** In rising order. */
  readonly points: readonly PointRecord[];
  /** Called with the name and ETag of each page that was written, before the head is. */
  readonly prove: (written: ReadonlyMap<string, string>) => Promise<void>;
}

/**
 * @throws `WRITER_ACTIVE` when another process writes the disk; `INTERRUPTED`, and the errors of
 * the store.
 */
export async function replaceHead(replacement: HeadReplacement): Promise<void> {
  const { store, vault, disk, seenEpoch, brokenEtag, points, prove, signal } = replacement;
  const epoch = seenEpoch + epochsSpared;
  const empty: HeadDocument = { vault, disk, epoch, writer: null, collection: null, pages: [], points: [] };
  const name = headName(disk);
  const leaseId = randomUUID();
  if (brokenEtag !== undefined) await takeLease(replacement, leaseId);
  try {
    const room = await layOutPoints({ store, head: empty, epoch, takeOrdinal: countUp(), signal }, points);
    const head = { ...empty, pages: room.pages, points: room.points };
    const bytes = encodeHead(head);
    decodeHead(bytes, name, head); // a head that cannot be read would hide every point
    await lockSegments(replacement, epoch);
    await prove(room.written);
    throwIfAborted(signal);
    if (brokenEtag !== undefined) await takeLease(replacement, leaseId); // pages may have taken longer than a lease lasts
    if (brokenEtag === undefined) await store.putOnce(name, bytes, { signal });
    else await swap(store, name, bytes, brokenEtag, leaseId);
  } catch (error) {
    if (hasCode(error, "OBJECT_EXISTS", "CONDITION_FAILED", "LEASE_LOST")) throw writerActive(disk, error);
    throw error;
  } finally {
    if (brokenEtag !== undefined) await store.releaseLease(name, leaseId);
  }
}

/** Numbers from 0 on, one a call. */
export function countUp(): () => number {
  let next = 0;
  return () => {
    next += 1;
    return next - 1;
  };
}

/** The writer of a disk holds the lease of its head, even when the head is damaged. */
async function takeLease({ store, disk, signal }: DiskPlace, leaseId: string): Promise<void> {
  try {
    await store.acquireLease(headName(disk), leaseId, leaseTiming.seconds, { signal });
  } catch (error) {
    throw hasCode(error, "LEASE_HELD") ? writerActive(disk, error) : error;
  }
}

async function swap(store: Store, name: string, bytes: Uint8Array, etag: string, leaseId: string): Promise<void> {
  try {
    await store.put(name, bytes, { ifMatch: etag, leaseId });
  } catch (error) {
    if (!hasCode(error, "OUTCOME_UNKNOWN")) throw error;
    // Under the lease the object is the old one or ours. A late first write finds another ETag
    // once a later write was answered.
    const there = await store.get(name, documentBytesMax);
    if (Buffer.compare(there.bytes, bytes) !== 0) await store.put(name, bytes, { ifMatch: there.etag, leaseId });
  }
}

/** Locks the last writer out of the segments that it might still append to. */
async function lockSegments({ store, disk, seenEpoch, signal }: HeadReplacement, epoch: number): Promise<void> {
  for await (const { name } of store.list(segmentsPrefix, { signal })) {
    const parsed = parseSegmentName(name);
    if (parsed?.epoch !== seenEpoch || decodeDiskName(parsed.encodedDisk) !== disk) continue;
    await store.raiseSequenceNumber(name, firstSequenceNumber(epoch), { signal });
  }
}

function writerActive(disk: string, cause: unknown): TidemarkError {
  return new TidemarkError("WRITER_ACTIVE", `another process is writing disk ${JSON.stringify(disk)}`, {
    remedy: "stop its writer, wait for a minute, and run `tidemark vault repair` again",
    detail: { disk },
    cause,
  });
}
