/**
 * Pins: a user keeps a point, whatever the retention policy says, for good or until a time.
 *
 * A pin is an object `disks/<disk>/pins/<sequence>-<random>` that is put and deleted and never
 * changed. It needs no lease: the order of `prune-fence.ts` makes sure that no prune misses it. A
 * point may have several pins, each with a name of its own, so that two users who need it do not
 * take it from each other. The next prune clears away pins that have expired and pins whose point
 * is gone.
 *
 * Invariant: a prune drops no point that has a pin in force. A pin that cannot be read is in force.
 */
import { randomBytes } from "node:crypto";
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode, isUnreadable, TidemarkError } from "../../errors.ts";
import type { Notice, NoticeOptions } from "../../notice.ts";
import { toHex } from "../format/checksum.ts";
import type { HeadDocument, PointRecord } from "../format/documents.ts";
import { documentBytesMax } from "../format/documents.ts";
import type { PinDocument } from "../format/keeping.ts";
import { decodePin, encodePin } from "../format/keeping.ts";
import { sidecarName, sidecarPrefix, sidecarSequence } from "../format/names.ts";
import type { NoticedDisk } from "../place.ts";
import type { Store } from "../store.ts";
import type { PointPlace } from "./prune-fence.ts";
import { proveListed } from "./prune-fence.ts";

/** Most pins of a disk: every prune reads each of them. */
const pinsMax = 1_024;
const pinNameCharactersMax = 200;
const readsAtOnce = 8;

/** A pin as it stands in the store. */
export interface StoredPin {
  /** Name of the object. */
  readonly object: string;
  readonly sequence: number;
  /** Undefined when it cannot be read; the pin is in force then. */
  readonly document: PinDocument | undefined;
}

export interface PinRequest extends PointPlace {
  /** Name of the pin; null: none. */
  readonly name: string | null;
  /** End of the pin, ms since 1970; null: none. */
  readonly untilMs: number | null;
  readonly nowMs: number;
}

/**
 * Pins a point. Replaces a pin of the same name that the point has. Errors: INVALID_ARGUMENT,
 * POINT_NOT_FOUND.
 */
export async function putPin(request: PinRequest): Promise<PinDocument> {
  const { store, vault, disk, point, name, signal } = request;
  checkRequest(request);
  const pins = await listPins(store, vault, disk, request.onNotice, signal);
  if (pins.length >= pinsMax) {
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `disk ${JSON.stringify(disk)} has ${String(pins.length)} pins; that is the most that a disk can have`,
      {
        remedy: "remove pins with `tidemark points unpin`; `tidemark points list` shows them",
      },
    );
  }
  const { document } = await addPin(request);
  for (const former of pins)
    if (isOf(former, point) && former.document?.name === name) await deletePin(store, former, signal);
  return document;
}

/** Pins a point once more, without a look at its other pins. Errors: POINT_NOT_FOUND. */
export async function addPin(request: PinRequest): Promise<StoredPin & { readonly document: PinDocument }> {
  const { store, vault, disk, point, name, untilMs, nowMs, signal } = request;
  const { sequence, id } = point;
  const document: PinDocument = { vault, disk, sequence, point: id, name, createdMs: nowMs, untilMs };
  const object = sidecarName("pins", disk, sequence, toHex(randomBytes(16)));
  await store.putOnce(object, encodePin(document), { signal });
  try {
    await proveListed(request);
  } catch (error) {
    await store.delete(object);
    throw error;
  }
  return { object, sequence, document };
}

/** Removes a point's pins: all of them, or those of one name. Returns how many were removed. */
export async function removePins(
  options: NoticedDisk & {
    readonly point: Pick<PointRecord, "sequence" | "id">;
    /** Absent: all. */
    readonly name?: string | undefined;
  },
): Promise<number> {
  const { store, vault, disk, point, name, onNotice, signal } = options;
  const pins = (await listPins(store, vault, disk, onNotice, signal)).filter((pin) => isOf(pin, point));
  const named = name === undefined ? pins : pins.filter(({ document }) => document?.name === name);
  for (const pin of named) await deletePin(store, pin, signal);
  return named.length;
}

/**
 * All pins of a disk, in no order. One that cannot be read is in the list, and a notice PIN_DAMAGED
 * names it. Errors: those of the store.
 */
export async function listPins(
  store: Store,
  vault: string,
  disk: string,
  onNotice: (notice: Notice) => void,
  signal: AbortSignal | undefined,
): Promise<StoredPin[]> {
  const names: { readonly object: string; readonly sequence: number }[] = [];
  for await (const { name } of store.list(sidecarPrefix("pins", disk), { signal })) {
    const sequence = sidecarSequence(name);
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
      onNotice({ code: "PIN_DAMAGED", message: `${error.message}; its point stays pinned` });
      pins.push({ object, sequence, document: undefined });
    }
  });
  return pins;
}

/** The pins of a disk that have not expired. Errors: as `listPins`. */
export async function countedPins(
  store: Store,
  head: HeadDocument,
  onNotice: (notice: Notice) => void,
  signal: AbortSignal | undefined,
): Promise<StoredPin[]> {
  const newestMs = head.points.at(-1)?.timeMs ?? 0;
  const pins = await listPins(store, head.vault, head.disk, onNotice, signal);
  return pins.filter((pin) => !isExpired(pin, store.nowMs, newestMs));
}

/**
 * Whether a pin is of this point: after a store went back in time another point may have the same
 * sequence number.
 */
export function isOf({ sequence, document }: StoredPin, point: Pick<PointRecord, "sequence" | "id">): boolean {
  return sequence === point.sequence && (document === undefined || document.point === point.id);
}

/**
 * Whether a pin has ended by this machine's clock and by the time of the newest point: a clock that
 * was set forward unpins nothing.
 */
export function isExpired({ document }: StoredPin, nowMs: number, newestMs: number): boolean {
  const untilMs = document?.untilMs ?? null;
  return untilMs !== null && untilMs < nowMs && untilMs < newestMs;
}

/** Errors: those of the store. */
export async function deletePin(store: Store, { object }: StoredPin, signal: AbortSignal | undefined): Promise<void> {
  await store.delete(object, { signal });
}

function checkRequest({ name, untilMs, nowMs }: PinRequest): void {
  if (name !== null && (name.length === 0 || name.length > pinNameCharactersMax || /\p{Cc}/u.test(name))) {
    throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(name)} is no valid name of a pin`, {
      remedy: `use 1 to ${String(pinNameCharactersMax)} characters without control characters, or leave the name out`,
    });
  }
  if (untilMs !== null && !(Number.isSafeInteger(untilMs) && untilMs > nowMs)) {
    throw new TidemarkError("INVALID_ARGUMENT", "the end of the pin is no time in the future", {
      remedy: "give a later time, such as 2030-05-01T12:00:00Z, or leave it out",
    });
  }
}

/** A pin of a point. */
export interface PinSummary {
  /** Null: the pin has no name. */
  readonly name: string | null;
  /** When the pin ends, ISO 8601 in UTC; null: never. */
  readonly until: string | null;
}

/** Which point `Vault.pin` and `Vault.unpin` concern. */
export interface PinOptions extends NoticeOptions {
  readonly disk: string;
  /** Sequence number, id, `latest`, or an ISO time (the newest point not younger). */
  readonly point: string;
  /** Name of the pin, 1 to 200 characters without control characters. */
  readonly name?: string | undefined;
}
