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
 */
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import type { PointRecord } from "../format/documents.ts";
import { documentBytesMax } from "../format/documents.ts";
import type { CondemnedDocument, SequenceRange } from "../format/keeping.ts";
import { decodeCondemned, encodeCondemned } from "../format/keeping.ts";
import { condemnedName } from "../format/names.ts";
import type { PutCondition } from "../sink.ts";
import type { Store } from "../store.ts";
import { unknownOutcomesMax, unreachable } from "../store.ts";
import { findPoint, PageCache } from "./history.ts";
import { readHead, Seat } from "./seat.ts";
import type { Notice } from "./summaries.ts";

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
 * Makes sure that no prune, running or to come, misses the hold or pin that has been put before: to be called after it. Errors:
 * POINT_NOT_FOUND when the point has been dropped or is being dropped.
 */
export async function proveListed(place: PointPlace): Promise<void> {
  const { store, vault, disk, point, onNotice, signal } = place;
  const cache = pagesOf.get(store) ?? new PageCache();
  pagesOf.set(store, cache);
  let waitedSinceMs: number | undefined;
  for (;;) {
    throwIfAborted(signal);
    const { condemned } = await readCondemned(store, vault, disk, signal);
    const { head } = await readHead(store, vault, disk, signal);
    if ((await findPoint(store, head, { sequence: point.sequence }, signal, cache))?.id !== point.id) throw dropped(disk, point);
    if (condemned === undefined || condemned.epoch < head.epoch || !isAmong(condemned.ranges, point.sequence)) return;
    waitedSinceMs ??= performance.now();
    if (performance.now() - waitedSinceMs < timing.waitMs) {
      await delay(timing.pollMs, undefined, { signal }).catch(() => undefined);
      continue;
    }
    try {
      const seat = await Seat.take({ store, vault, disk, onNotice, signal });
      await seat.release();
    } catch (error) {
      if (hasCode(error, "WRITER_ACTIVE")) throw beingDropped(disk, point, error);
      throw error;
    }
  }
}

/** The list and its ETag, both undefined when there has never been one. Errors: DAMAGED, FORMAT_UNSUPPORTED. */
export async function readCondemned(
  store: Store,
  vault: string,
  disk: string,
  signal: AbortSignal | undefined,
): Promise<{ readonly condemned: CondemnedDocument | undefined; readonly etag: string | undefined }> {
  const name = condemnedName(disk);
  try {
    const { bytes, etag } = await store.get(name, documentBytesMax, { signal });
    return { condemned: decodeCondemned(bytes, name, { vault, disk }), etag };
  } catch (error) {
    if (hasCode(error, "OBJECT_NOT_FOUND")) return { condemned: undefined, etag: undefined };
    throw error;
  }
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
    if (condemned !== undefined && condemned.epoch > epoch) throw seatLost(disk);
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

function isAmong(ranges: readonly SequenceRange[], sequence: number): boolean {
  return ranges.some(({ first, last }) => first <= sequence && sequence <= last);
}

function seatLost(disk: string): TidemarkError {
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

function beingDropped(disk: string, point: PointRecord, cause: unknown): TidemarkError {
  return new TidemarkError("POINT_NOT_FOUND", `point ${String(point.sequence)} of disk ${JSON.stringify(disk)} is being pruned`, {
    remedy: "run the command again in a minute: if the prune was interrupted, the point is there to stay; else choose another",
    detail: { disk, sequence: point.sequence, point: point.id },
    cause,
  });
}
