/**
 * Pins: a user wants a point to stay, whatever the policy says, for good or until a time.
 *
 * A pin is an object `disks/<disk>/pins/<sequence>-<random>` that is put and deleted, never changed; anyone may do so at any time, because it is
 * the order of `condemned.ts` that keeps it from being missed. A point may have several pins, each with a name of its own, so that two who need it
 * do not take it from each other. Pins that have expired, or whose point is gone, are cleared away by the next prune.
 */
import { randomBytes } from "node:crypto";
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode, isUnreadable, TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import { toHex } from "../format/checksum.ts";
import type { HeadDocument, PointRecord } from "../format/documents.ts";
import { documentBytesMax } from "../format/documents.ts";
import type { PinDocument } from "../format/keeping.ts";
import { decodePin, encodePin } from "../format/keeping.ts";
import { keeperName, keepersPrefix, keptSequence } from "../format/names.ts";
import type { Store } from "../store.ts";
import type { PointPlace } from "./prune-fence.ts";
import { proveListed } from "./prune-fence.ts";

/** Most pins of a disk: each is read by every prune. */
const pinsMax = 1_024;
const pinNameCharactersMax = 200;
const readsAtOnce = 8;

/** A pin as it stands in the store. */
export interface StoredPin {
  /** Of the object. */
  readonly object: string;
  readonly sequence: number;
  /** Undefined when it cannot be read: then it counts, because nobody knows that it does not. */
  readonly document: PinDocument | undefined;
}

export interface PinRequest extends PointPlace {
  /** What it is called; null: it has no name. */
  readonly name: string | null;
  /** Until when, in ms since 1970; null: for good. */
  readonly untilMs: number | null;
  readonly nowMs: number;
}

/** Pins a point. A pin of the same name that the point has is replaced. Errors: INVALID_ARGUMENT, POINT_NOT_FOUND. */
export async function putPin(request: PinRequest): Promise<PinDocument> {
  const { store, vault, disk, point, name, untilMs, nowMs, signal } = request;
  checkRequest(request);
  const pins = await listPins(store, vault, disk, request.onNotice, signal);
  if (pins.length >= pinsMax) {
    throw new TidemarkError("INVALID_ARGUMENT", `disk ${JSON.stringify(disk)} has ${String(pins.length)} pins, and may have no more`, {
      remedy: "remove pins that nobody needs: `tidemark points list` shows them, `tidemark points unpin` removes them",
    });
  }
  const document: PinDocument = { vault, disk, sequence: point.sequence, point: point.id, name, createdMs: nowMs, untilMs };
  const object = keeperName("pins", disk, point.sequence, toHex(randomBytes(16)));
  await store.putOnce(object, encodePin(document), { signal });
  try {
    await proveListed(request);
  } catch (error) {
    await store.lease().deleteObject(object);
    throw error;
  }
  for (const former of pins) if (isOf(former, point) && former.document?.name === name) await deletePin(store, former, signal);
  return document;
}

/** Removes a point's pins: all of them, or those of a name. Returns how many there were. */
export async function removePins(options: {
  readonly store: Store;
  readonly vault: string;
  readonly disk: string;
  readonly point: PointRecord;
  /** Absent: all. */
  readonly name?: string | undefined;
  readonly onNotice: (notice: Notice) => void;
  readonly signal?: AbortSignal | undefined;
}): Promise<number> {
  const { store, vault, disk, point, name, onNotice, signal } = options;
  const pins = (await listPins(store, vault, disk, onNotice, signal)).filter((pin) => isOf(pin, point));
  const named = name === undefined ? pins : pins.filter(({ document }) => document?.name === name);
  for (const pin of named) await deletePin(store, pin, signal);
  return named.length;
}

/** All pins of a disk. One that cannot be read is told of, and is in the list all the same. */
export async function listPins(
  store: Store,
  vault: string,
  disk: string,
  onNotice: (notice: Notice) => void,
  signal: AbortSignal | undefined,
): Promise<StoredPin[]> {
  const names: { readonly object: string; readonly sequence: number }[] = [];
  for await (const { name } of store.list(keepersPrefix("pins", disk), { signal })) {
    const sequence = keptSequence(name);
    if (sequence !== undefined) names.push({ object: name, sequence });
  }
  const pins: StoredPin[] = [];
  await forEachAtOnce(names, readsAtOnce, async ({ object, sequence }) => {
    try {
      const { bytes } = await store.get(object, documentBytesMax, { signal });
      pins.push({ object, sequence, document: decodePin(bytes, object, { vault, disk }) });
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) return; // removed since it was listed
      if (!isUnreadable(error)) throw error;
      onNotice({ code: "PIN_DAMAGED", message: `${error.message}; the point that it names stays pinned` });
      pins.push({ object, sequence, document: undefined });
    }
  });
  return pins;
}

/** The pins of a disk that count by now, as its newest point and our clock tell. Errors: as `listPins`. */
export async function countedPins(
  store: Store,
  head: HeadDocument,
  onNotice: (notice: Notice) => void,
  signal: AbortSignal | undefined,
): Promise<StoredPin[]> {
  const newestMs = head.points.at(-1)?.timeMs ?? 0;
  const pins = await listPins(store, head.vault, head.disk, onNotice, signal);
  return pins.filter((pin) => !isExpired(pin, Date.now(), newestMs));
}

/** Whether a pin is meant for this very point: a store that went back in time may have given its number to another. */
export function isOf({ sequence, document }: StoredPin, point: Pick<PointRecord, "sequence" | "id">): boolean {
  return sequence === point.sequence && (document === undefined || document.point === point.id);
}

/** Its time is over by our clock and by that of the newest point, so that a clock that was set forward unpins nothing. */
export function isExpired({ document }: StoredPin, nowMs: number, newestMs: number): boolean {
  const untilMs = document?.untilMs ?? null;
  return untilMs !== null && untilMs < nowMs && untilMs < newestMs;
}

/** Errors: those of the store. */
export async function deletePin(store: Store, { object }: StoredPin, signal: AbortSignal | undefined): Promise<void> {
  await store.lease().deleteObject(object, { signal });
}

function checkRequest({ name, untilMs, nowMs }: PinRequest): void {
  if (name !== null && (name.length === 0 || name.length > pinNameCharactersMax || /\p{Cc}/u.test(name))) {
    throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(name)} cannot be the name of a pin`, {
      remedy: `use 1 to ${String(pinNameCharactersMax)} characters without control characters, or leave the name out`,
    });
  }
  if (untilMs !== null && !(Number.isSafeInteger(untilMs) && untilMs > nowMs)) {
    throw new TidemarkError("INVALID_ARGUMENT", "a pin cannot end before it begins", {
      remedy: "give a time in the future, such as 2030-05-01T12:00:00Z, or none",
    });
  }
}

/** A user's wish that a point stays. */
export interface PinSummary {
  readonly name: string | null;
  /** ISO 8601 in UTC; null: for good. */
  readonly until: string | null;
}

export interface PinOptions {
  readonly disk: string;
  /** Sequence number, id, `latest`, or an ISO time (the newest point not younger). */
  readonly point: string;
  /** What the pin is called. A point may have several, of different names. */
  readonly name?: string | undefined;
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}
