/**
 * Quarantine: a list of the damaged chunks that could not be healed, so that no new point refers to
 * them.
 *
 * Points that need such a chunk are damaged. While the chunk is in quarantine, writers store the
 * same content anew when it comes again.
 *
 * The list is separate from what collections condemn. Collections free whole pages, and the page of
 * a damaged chunk also holds its neighbours or a frame header; they neither read nor write this
 * list. Writers learn of it as they learn of a collection: a new id in `reclaim/collection` makes
 * them look before their next cycle, and a catalog that is loaded always looks.
 */
import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, isUnreadable, throwIfAborted } from "../../errors.ts";
import type { Notice, NoticeOptions } from "../../notice.ts";
import type { CallOptions } from "../../sink.ts";
import { collectionTiming } from "../../timing.ts";
import { toHex } from "../format/checksum.ts";
import {
  decodeQuarantine,
  encodeQuarantine,
  type QuarantineDocument,
  quarantinedMax,
  quarantineName,
  quarantinePrefix,
  segmentOfQuarantine,
} from "../format/proof.ts";
import { collectionName, encodeCollection } from "../format/reclaim.ts";
import { changeShared, type FoundDocument, readShared, type SharedDocument } from "../shared-document.ts";
import type { Store } from "../store.ts";
import { takeCollectorLease } from "./collector-lease.ts";

const collectionActive: Notice = {
  code: "COLLECTION_ACTIVE",
  message: "waiting for a garbage collection to end; damaged chunks are made known to writers after it",
};

/** The quarantine as a catalog knows it. */
export class Quarantine {
  readonly #vault: string;
  readonly #bySegment = new Map<string, { readonly etag: string; readonly offsets: ReadonlySet<number> }>();

  constructor(vaultId: Uint8Array) {
    this.#vault = toHex(vaultId);
  }

  has(segment: string, offset: number): boolean {
    return this.#bySegment.get(segment)?.offsets.has(offset) === true;
  }

  /**
   * Reads the lists that are new and returns their segments. A list that cannot be read counts as
   * empty. Errors: those of the store.
   */
  async refresh(store: Store, options: CallOptions): Promise<ReadonlySet<string>> {
    const learned = new Set<string>();
    for await (const { name, etag } of store.list(quarantinePrefix, options)) {
      const segment = segmentOfQuarantine(name);
      if (this.#bySegment.get(segment)?.etag === etag) continue;
      const { document } = await readShared(store, quarantineOf(this.#vault, segment), options);
      this.#bySegment.set(segment, { etag, offsets: new Set(document?.offsets) });
      learned.add(segment);
    }
    return learned;
  }
}

/** Puts chunks into quarantine and makes writers look. Errors: those of the store. */
export async function quarantine(
  store: Store,
  vault: string,
  chunks: readonly { readonly segment: string; readonly offset: number }[],
  options: NoticeOptions,
): Promise<void> {
  let isNew = false;
  for (const [segment, offsets] of bySegment(chunks)) {
    isNew = (await changeOffsets(store, vault, segment, (before) => [...before, ...offsets], options)) || isNew;
  }
  if (isNew) await announce(store, vault, options);
}

/** Takes chunks that have been healed out of quarantine. Errors: those of the store. */
export async function release(
  store: Store,
  vault: string,
  chunks: readonly { readonly segment: string; readonly offset: number }[],
  options: CallOptions,
): Promise<void> {
  for (const [segment, offsets] of bySegment(chunks)) {
    const healed = new Set(offsets);
    await changeOffsets(store, vault, segment, (before) => before.filter((offset) => !healed.has(offset)), options);
  }
}

/**
 * Deletes the lists of segments that the store does not hold any more. Errors: those of the store.
 */
export async function sweepQuarantine(store: Store, options: CallOptions): Promise<void> {
  const orphans: string[] = [];
  for await (const { name } of store.list(quarantinePrefix, options)) {
    try {
      if ((await store.etagOf(segmentOfQuarantine(name), options)) === undefined) orphans.push(name);
    } catch (error) {
      if (!isUnreadable(error)) throw error; // the segment is there, damaged or not
    }
  }
  for (const name of orphans) await store.delete(name, options);
}

/** Returns whether the list was changed. */
async function changeOffsets(
  store: Store,
  vault: string,
  segment: string,
  changed: (before: readonly number[]) => readonly number[],
  options: CallOptions,
): Promise<boolean> {
  let isChanged = false;
  const change = ({ document }: FoundDocument<QuarantineDocument>): QuarantineDocument | undefined => {
    const before = document?.offsets ?? [];
    const offsets = [...new Set(changed(before))].sort((a, b) => a - b).slice(0, quarantinedMax);
    isChanged = offsets.length !== before.length;
    return isChanged ? { vault, segment, offsets } : undefined;
  };
  await changeShared(store, quarantineOf(vault, segment), change, options);
  return isChanged;
}

/** A list that is damaged itself counts as empty: the next scrub finds the damaged chunks again. */
function quarantineOf(vault: string, segment: string): SharedDocument<QuarantineDocument> {
  const name = quarantineName(segment);
  return { name, decode: (bytes) => decodeQuarantine(bytes, name, vault), encode: encodeQuarantine };
}

/**
 * Writes a new collection id, after a collection that is running: its writers may have acted on its id
 * before the lists were written, and it waits for no other id.
 */
async function announce(store: Store, vault: string, { onNotice, signal: given }: NoticeOptions): Promise<void> {
  let isTold = false;
  const bytes = encodeCollection({ vault, collection: toHex(randomBytes(16)), startedMs: Date.now() });
  for (;;) {
    try {
      await using collectorLease = await takeCollectorLease(store, given);
      const signal = given === undefined ? collectorLease.signal : AbortSignal.any([collectorLease.signal, given]);
      await store.replace(collectionName, bytes, await store.etagOf(collectionName, { signal }), { signal });
      return;
    } catch (error) {
      if (!hasCode(error, "COLLECTION_ACTIVE", "CONDITION_FAILED")) throw error;
      const isCollecting = error.code === "COLLECTION_ACTIVE";
      if (isCollecting && !isTold) onNotice?.(collectionActive);
      isTold ||= isCollecting;
    }
    await delay(collectionTiming.headPollMs, undefined, { signal: given }).catch(() => undefined);
    throwIfAborted(given);
  }
}

function bySegment(chunks: readonly { readonly segment: string; readonly offset: number }[]): Map<string, number[]> {
  const grouped = new Map<string, number[]>();
  for (const { segment, offset } of chunks) grouped.set(segment, [...(grouped.get(segment) ?? []), offset]);
  return grouped;
}
