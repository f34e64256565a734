/**
 * Race between dropping a point (a prune) and keeping it (a reader's hold, a pin).
 *
 *     keeper:  put hold or pin  →  read condemned list  →  read head: listed and not condemned → kept
 *     pruner:  put condemned list  →  list holds and pins  →  swap head without the unkept points
 *
 * Both write before they read (Dekker's pattern), and the store is strongly consistent, so at least
 * one of them sees the other. No clock is involved.
 *
 * A keeper that finds its point condemned waits for the pruner's head swap. If the pruner died, the
 * keeper takes over the writer lease: the higher epoch voids the old list.
 *
 * Group points: the pruner lists the holds of all member disks, the keeper reads the condemned
 * lists of all member disks, so the argument holds for each pair. A keeper waits for what a
 * member's list says, too. Its own disk's point is kept also if that one is dropped.
 */
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, isUnreadable, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { PutCondition } from "../../sink.ts";
import { pruneFenceTiming } from "../../timing.ts";
import type { HeadDocument, PointRecord } from "../format/documents.ts";
import { documentBytesMax } from "../format/documents.ts";
import type { CondemnedDocument, SequenceRange } from "../format/keeping.ts";
import { decodeCondemned, encodeCondemned } from "../format/keeping.ts";
import { condemnedName, headName } from "../format/names.ts";
import type { NoticedDisk } from "../place.ts";
import type { Store } from "../store.ts";
import { unknownOutcomesMax, unreachable } from "../store.ts";
import { readHead } from "./head.ts";
import { findPoint, PageCache, readPoints } from "./history.ts";
import { writerLeaseLost } from "./take-over.ts";
import { WriterLease } from "./writer-lease.ts";

/**
 * Pages of points that were read lately, for a process that keeps one point of a disk after the
 * other.
 */
const pagesOf = new WeakMap<Store, PageCache>();

export interface PointPlace extends NoticedDisk {
  readonly point: PointRecord;
}

/**
 * Makes sure that no prune of any disk, running or to come, misses the hold or pin that has just
 * been put.
 *
 * @throws POINT_NOT_FOUND when the point has been dropped or is being dropped; DAMAGED,
 * FORMAT_UNSUPPORTED.
 */
export async function proveListed(place: PointPlace): Promise<void> {
  const { store, disk, point, signal } = place;
  const cache = pagesOf.get(store) ?? new PageCache();
  pagesOf.set(store, cache);
  await decided(place, disk, async () => {
    const { condemned, head } = await readBoth(place, disk);
    if ((await findPoint(store, head, { sequence: point.sequence }, signal, cache))?.id !== point.id)
      throw dropped(disk, point);
    return !isCondemned(condemned, head, point.sequence);
  });
  for (const member of point.group?.disks ?? []) {
    if (member !== disk) await decided(place, member, async () => await isGroupSafe(place, member, cache));
  }
}

/** Whether no prune of `member` has condemned its part of the group's point. */
async function isGroupSafe(place: PointPlace, member: string, cache: PageCache): Promise<boolean> {
  const { store, vault, point, signal } = place;
  // The list is empty as a rule. If it is not, the member's points have to be read.
  const { condemned: first } = await readCondemned(store, vault, member, signal);
  if (first === undefined || first.ranges.length === 0) return true;
  try {
    const { condemned, head } = await readBoth(place, member);
    const oldest = condemned?.ranges[0]?.first ?? Number.POSITIVE_INFINITY;
    // A point in a page that cannot be read is never condemned.
    for await (const { sequence, group } of readPoints(store, head, { cache, onDamage: () => undefined, signal })) {
      if (sequence < oldest) break;
      if (group?.id === point.group?.id) return !isCondemned(condemned, head, sequence);
    }
    return true;
  } catch (error) {
    // A prune of a disk whose head cannot be read drops nothing.
    if (hasCode(error, "DISK_NOT_FOUND") || (isUnreadable(error) && error.detail["object"] === headName(member)))
      return true;
    throw error;
  }
}

/**
 * Asks until `isSettled`. When a prune of `disk` does not end in time, takes the writer lease over
 * if the pruner is dead. Errors: POINT_NOT_FOUND.
 */
async function decided(
  { store, vault, disk: own, point, onNotice, signal }: PointPlace,
  disk: string,
  isSettled: () => Promise<boolean>,
): Promise<void> {
  let waitedSinceMs: number | undefined;
  for (;;) {
    throwIfAborted(signal);
    if (await isSettled()) return;
    waitedSinceMs ??= performance.now();
    if (performance.now() - waitedSinceMs < pruneFenceTiming.waitMsMax) {
      await delay(pruneFenceTiming.pollMs, undefined, { signal }).catch(() => undefined);
      continue;
    }
    try {
      const writerLease = await WriterLease.take({ store, vault, disk, onNotice, signal });
      await writerLease.release();
    } catch (error) {
      if (hasCode(error, "WRITER_ACTIVE")) throw beingDropped(own, point, disk, error);
      throw error;
    }
  }
}

/** The list is read first: then the head shows every swap that had made the list void. */
async function readBoth(
  { store, vault, signal }: PointPlace,
  disk: string,
): Promise<{ readonly condemned: CondemnedDocument | undefined; readonly head: HeadDocument }> {
  const { condemned } = await readCondemned(store, vault, disk, signal);
  const { head } = await readHead(store, vault, disk, signal);
  return { condemned, head };
}

/** Whether the list is in force and names the point. */
function isCondemned(condemned: CondemnedDocument | undefined, head: HeadDocument, sequence: number): boolean {
  if (condemned === undefined || condemned.epoch < head.epoch) return false;
  return condemned.ranges.some(({ first, last }) => first <= sequence && sequence <= last);
}

/**
 * Whether `error` says that a prune of unknown outcome was under way, rather than that the point
 * has gone.
 */
export function isUndecided(error: TidemarkError): boolean {
  return error.detail["pruning"] !== undefined;
}

/**
 * The list and its ETag, both undefined when there has never been one. Errors: DAMAGED,
 * FORMAT_UNSUPPORTED.
 */
export async function readCondemned(
  store: Store,
  vault: string,
  disk: string,
  signal: AbortSignal | undefined,
): Promise<{ readonly condemned: CondemnedDocument | undefined; readonly etag: string | undefined }> {
  const name = condemnedName(disk);
  const there = await store.find(name, documentBytesMax, { signal });
  return { condemned: there && decodeCondemned(there.bytes, name, { vault, disk }), etag: there?.etag };
}

/**
 * Writes the condemned list, for the holder of the writer lease. A list of a higher epoch is never
 * replaced, so a pruner that slept and lost its lease cannot hide what its successor has condemned.
 * Returns the ETag, by which the list is proved before the head is swapped.
 *
 * @throws SEAT_LOST, STORE_UNREACHABLE.
 */
export async function putCondemned(
  store: Store,
  document: CondemnedDocument,
  signal: AbortSignal | undefined,
): Promise<string> {
  const { vault, disk, epoch } = document;
  const name = condemnedName(disk);
  const bytes = encodeCondemned(document);
  decodeCondemned(bytes, name, document); // a list that no keeper can decode would keep every point from being held
  let failure: unknown;
  for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
    const { condemned, etag } = await readReplaceable(store, vault, disk, signal);
    if (condemned !== undefined && condemned.epoch > epoch) throw writerLeaseLost(disk, " and prunes it");
    const condition: PutCondition = etag === undefined ? { ifAbsent: true } : { ifMatch: etag };
    try {
      return await store.put(name, bytes, condition, { signal });
    } catch (error) {
      // A put that is still under way finds another ETag, once a later put has been answered.
      if (!hasCode(error, "OUTCOME_UNKNOWN", "CONDITION_FAILED", "OBJECT_EXISTS")) throw error;
      failure = error;
    }
  }
  throw unreachable(`writing ${name}`, failure);
}

/**
 * Empties the list after the head has been swapped, unless another pruner has replaced it. While
 * the list is in force no point that it names can be kept, even if the head still lists it. Errors:
 * those of the store.
 */
export async function clearCondemned(store: Store, document: CondemnedDocument, etag: string): Promise<void> {
  try {
    await store.put(condemnedName(document.disk), encodeCondemned({ ...document, ranges: [] }), { ifMatch: etag });
  } catch (error) {
    if (!hasCode(error, "CONDITION_FAILED")) throw error;
  }
}

/** As `readCondemned`, but a damaged list counts as none, so that the pruner replaces it. */
async function readReplaceable(
  store: Store,
  vault: string,
  disk: string,
  signal: AbortSignal | undefined,
): Promise<{ readonly condemned: CondemnedDocument | undefined; readonly etag: string | undefined }> {
  try {
    return await readCondemned(store, vault, disk, signal);
  } catch (error) {
    if (!hasCode(error, "DAMAGED")) throw error;
    return { condemned: undefined, etag: (await store.stat(condemnedName(disk), { signal })).etag };
  }
}

/** Ascending sequence numbers as ranges of neighbours. */
export function rangesOf(sequences: readonly number[]): SequenceRange[] {
  const ranges: { first: number; last: number }[] = [];
  for (const sequence of sequences) {
    const range = ranges.at(-1);
    if (range?.last === sequence - 1) range.last = sequence;
    else ranges.push({ first: sequence, last: sequence });
  }
  return ranges;
}

function dropped(disk: string, point: PointRecord): TidemarkError {
  return new TidemarkError(
    "POINT_NOT_FOUND",
    `point ${String(point.sequence)} of disk ${JSON.stringify(disk)} has been pruned`,
    {
      remedy: "`tidemark points list` shows the points that are left",
      detail: { disk, sequence: point.sequence, point: point.id },
    },
  );
}

/** `pruned`: the disk whose prune has not ended. */
function beingDropped(disk: string, point: PointRecord, pruned: string, cause: unknown): TidemarkError {
  const what = `point ${String(point.sequence)} of disk ${JSON.stringify(disk)}`;
  const fact =
    pruned === disk
      ? `${what} is being pruned`
      : `${what} belongs to a group point that is being pruned on disk ${JSON.stringify(pruned)}`;
  return new TidemarkError("POINT_NOT_FOUND", fact, {
    remedy: "run the command again in a minute; if the point is gone then, choose another one",
    detail: { disk, sequence: point.sequence, point: point.id, pruning: pruned },
    cause,
  });
}
