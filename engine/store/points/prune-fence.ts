/**
 * Who comes first wins: the order in which those who keep a point and those who drop it write and read. No clock of ours is part of it.
 *
 *     keeper:   put hold or pin  ─►  read `condemned`  ─►  read head           listed and not condemned: kept
 *     pruner:   put `condemned`  ─►  list holds and pins  ─►  swap head        without those that nobody keeps
 *
 * The store answers every read with the newest write. So either the keeper's reading of the list comes after the pruner's writing of it,
 * and the keeper sees it; or the keeper's object was there before the pruner listed, and the pruner sees that. A keeper that finds its
 * point condemned waits for the head to tell. The list of a pruner that died is void as soon as the head has a higher epoch, because the
 * swap it was written for can never happen any more; so a keeper that waits in vain takes the dead pruner's seat and leaves it.
 *
 * A group's point is several disks', each of which is pruned under a seat of its own. So a pruner lists the holds and pins of all members, and a keeper
 * reads the lists of all: the same argument then holds for each pair of them. A keeper waits for what another disk's list says, too, but it
 * has its point whatever comes of that: what such a prune drops had been doomed before, and the point is none of a group any more.
 */
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, isUnreadable, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { PutCondition } from "../../sink.ts";
import type { HeadDocument, PointRecord } from "../format/documents.ts";
import { documentBytesMax } from "../format/documents.ts";
import type { CondemnedDocument, SequenceRange } from "../format/keeping.ts";
import { decodeCondemned, encodeCondemned } from "../format/keeping.ts";
import { condemnedName, headName } from "../format/names.ts";
import type { Store } from "../store.ts";
import { unknownOutcomesMax, unreachable } from "../store.ts";
import { findPoint, PageCache, readPoints } from "./history.ts";
import { readHead, WriterLease } from "./writer-lease.ts";

const timing = {
  /** How long a keeper waits for a prune that has condemned its point, before it looks whether the pruner still lives. */
  waitMs: 5_000,
  pollMs: 100,
} as const;

/** Pages in which points were looked for, for whoever keeps one point of a disk after the other. */
const pagesOf = new WeakMap<Store, PageCache>();

export interface PointPlace {
  readonly store: Store;
  readonly vault: string;
  readonly disk: string;
  readonly point: PointRecord;
  readonly onNotice: (notice: Notice) => void;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Makes sure that no prune of any disk, running or to come, misses the hold or pin that has been put before: to be called after it. Errors:
 * POINT_NOT_FOUND when the point has been dropped or is being dropped; DAMAGED, FORMAT_UNSUPPORTED.
 */
export async function proveListed(place: PointPlace): Promise<void> {
  const { store, disk, point, signal } = place;
  const cache = pagesOf.get(store) ?? new PageCache();
  pagesOf.set(store, cache);
  await decided(place, disk, async () => {
    const { condemned, head } = await readBoth(place, disk);
    if ((await findPoint(store, head, { sequence: point.sequence }, signal, cache))?.id !== point.id) throw dropped(disk, point);
    return !isCondemned(condemned, head, point.sequence);
  });
  for (const member of point.group?.disks ?? []) {
    if (member !== disk) await decided(place, member, async () => await isGroupSafe(place, member, cache));
  }
}

/** Whether no prune of `member` has condemned its part of the group's point. */
async function isGroupSafe(place: PointPlace, member: string, cache: PageCache): Promise<boolean> {
  const { store, vault, point, signal } = place;
  // As a rule nothing is; else the member's points have to be looked through.
  const { condemned: first } = await readCondemned(store, vault, member, signal);
  if (first === undefined || first.ranges.length === 0) return true;
  try {
    const { condemned, head } = await readBoth(place, member);
    const oldest = condemned?.ranges[0]?.first ?? Number.POSITIVE_INFINITY;
    // What a damaged page lists is in no list of condemned points.
    for await (const { sequence, group } of readPoints(store, head, { cache, onDamage: () => undefined, signal })) {
      if (sequence < oldest) break;
      if (group?.id === point.group?.id) return !isCondemned(condemned, head, sequence);
    }
    return true;
  } catch (error) {
    // Where no point can be read there is none to be dropped.
    if (hasCode(error, "DISK_NOT_FOUND") || (isUnreadable(error) && error.detail["object"] === headName(member))) return true;
    throw error;
  }
}

/** Asks until `isSettled`; when a prune of `disk` is waited for in vain, its seat is taken, if it is dead. Errors: POINT_NOT_FOUND. */
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
    if (performance.now() - waitedSinceMs < timing.waitMs) {
      await delay(timing.pollMs, undefined, { signal }).catch(() => undefined);
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

/** The list first: a head that is read after it is younger than all that the list was void for. */
async function readBoth(
  { store, vault, signal }: PointPlace,
  disk: string,
): Promise<{ readonly condemned: CondemnedDocument | undefined; readonly head: HeadDocument }> {
  const { condemned } = await readCondemned(store, vault, disk, signal);
  const { head } = await readHead(store, vault, disk, signal);
  return { condemned, head };
}

/** Whether the list counts, and names the point. */
function isCondemned(condemned: CondemnedDocument | undefined, head: HeadDocument, sequence: number): boolean {
  if (condemned === undefined || condemned.epoch < head.epoch) return false;
  return condemned.ranges.some(({ first, last }) => first <= sequence && sequence <= last);
}

/** Whether `error` says that a prune was under way whose outcome was not known, rather than that the point has gone. */
export function isUndecided(error: TidemarkError): boolean {
  return error.detail["pruning"] !== undefined;
}

/** The list and its ETag, both undefined when there has never been one. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
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
 * Writes the list, for the holder of the seat. A list of a higher epoch is never replaced, so a pruner that slept and lost its seat cannot hide what its
 * successor has condemned. Returns the ETag, by which the list is proved before the head is swapped. Errors: SEAT_LOST.
 */
export async function putCondemned(store: Store, document: CondemnedDocument, signal: AbortSignal | undefined): Promise<string> {
  const { vault, disk, epoch } = document;
  const name = condemnedName(disk);
  const bytes = encodeCondemned(document);
  decodeCondemned(bytes, name, document); // a list that nobody can read would keep everybody from every point
  let failure: unknown;
  for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
    const { condemned, etag } = await readReplaceable(store, vault, disk, signal);
    if (condemned !== undefined && condemned.epoch > epoch) throw writerLeaseLost(disk);
    const condition: PutCondition = etag === undefined ? { ifAbsent: true } : { ifMatch: etag };
    try {
      return await store.put(name, bytes, condition, { signal });
    } catch (error) {
      // What is still under way finds another ETag, once a later put has been answered.
      if (!hasCode(error, "OUTCOME_UNKNOWN", "CONDITION_FAILED", "OBJECT_EXISTS")) throw error;
      failure = error;
    }
  }
  throw unreachable(`writing ${name}`, failure);
}

/**
 * Empties the list after the head has been swapped, unless somebody else has written one since. While it stands, and its seat is held, nobody can keep a
 * point that it names, not even one that was left in the head. Errors: those of the store.
 */
export async function clearCondemned(store: Store, document: CondemnedDocument, etag: string): Promise<void> {
  try {
    await store.put(condemnedName(document.disk), encodeCondemned({ ...document, ranges: [] }), { ifMatch: etag });
  } catch (error) {
    if (!hasCode(error, "CONDITION_FAILED")) throw error;
  }
}

/** As `readCondemned`, but a list that is damaged is one that may be replaced: it is in nobody's way. */
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

/** Rising sequence numbers as ranges. */
export function rangesOf(sequences: readonly number[]): SequenceRange[] {
  const ranges: { first: number; last: number }[] = [];
  for (const sequence of sequences) {
    const range = ranges.at(-1);
    if (range?.last === sequence - 1) range.last = sequence;
    else ranges.push({ first: sequence, last: sequence });
  }
  return ranges;
}

function writerLeaseLost(disk: string): TidemarkError {
  return new TidemarkError("SEAT_LOST", `another writer has taken over disk ${JSON.stringify(disk)}, and prunes it`, {
    remedy: "let the other writer work, or stop it and run the command again",
    detail: { disk },
  });
}

function dropped(disk: string, point: PointRecord): TidemarkError {
  return new TidemarkError("POINT_NOT_FOUND", `point ${String(point.sequence)} of disk ${JSON.stringify(disk)} has been pruned`, {
    remedy: "`tidemark points list` shows the points that are left",
    detail: { disk, sequence: point.sequence, point: point.id },
  });
}

/** `pruned`: the disk whose prune takes so long. */
function beingDropped(disk: string, point: PointRecord, pruned: string, cause: unknown): TidemarkError {
  const what = `point ${String(point.sequence)} of disk ${JSON.stringify(disk)}`;
  const fact =
    pruned === disk
      ? `${what} is being pruned`
      : `${what} belongs to a group's point that is being pruned on disk ${JSON.stringify(pruned)}`;
  return new TidemarkError("POINT_NOT_FOUND", fact, {
    remedy: "run the command again in a minute: if the prune was interrupted, the point is there to stay; else choose another",
    detail: { disk, sequence: point.sequence, point: point.id, pruning: pruned },
    cause,
  });
}
