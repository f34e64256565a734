/**
 * Chunks that are damaged and could not be healed yet. The points that need them are damaged; that nobody refers to them any more, so that content which comes
 * again is stored anew, is what the quarantine is for.
 *
 * It is a list of its own, by chunk, and not part of what collections condemn: those give back pages, and the page of a damaged chunk holds its neighbours
 * too, or a frame's header. A collection neither reads nor writes it. Writers learn of it as they learn of a collection: a new id in `reclaim/collection` has
 * them look before their next cycle, and whoever loads a catalog looks in any case.
 */
import { randomBytes } from "node:crypto";
import { hasCode, isUnreadable } from "../../errors.ts";
import type { CallOptions } from "../../sink.ts";
import { toHex } from "../format/checksum.ts";
import { documentBytesMax } from "../format/documents.ts";
import {
  decodeQuarantine,
  encodeQuarantine,
  quarantinedMax,
  quarantineName,
  quarantinePrefix,
  segmentOfQuarantine,
} from "../format/proof.ts";
import { collectionName, encodeCollection } from "../format/reclaim.ts";
import type { Store } from "../store.ts";
import { unknownOutcomesMax } from "../store.ts";
import { CollectorLease } from "./collector-lease.ts";

/** What a catalog knows of it. */
export class Quarantine {
  readonly #vault: string;
  readonly #bySegment = new Map<string, { readonly etag: string; readonly offsets: ReadonlySet<number> }>();

  constructor(vaultId: Uint8Array) {
    this.#vault = toHex(vaultId);
  }

  has(segment: string, offset: number): boolean {
    return this.#bySegment.get(segment)?.offsets.has(offset) === true;
  }

  /** Returns the segments of which something is new. A list that cannot be read is passed over. Errors: those of the store. */
  async refresh(store: Store, options: CallOptions): Promise<ReadonlySet<string>> {
    const learned = new Set<string>();
    for await (const { name, etag } of store.list(quarantinePrefix, options)) {
      const segment = segmentOfQuarantine(name);
      if (this.#bySegment.get(segment)?.etag === etag) continue;
      const found = await readQuarantine(store, this.#vault, segment, options);
      this.#bySegment.set(segment, { etag, offsets: new Set(found.offsets) });
      learned.add(segment);
    }
    return learned;
  }
}

/** Puts chunks into quarantine, and has writers look. Errors: those of the store. */
export async function quarantine(
  store: Store,
  vault: string,
  chunks: readonly { readonly segment: string; readonly offset: number }[],
  options: CallOptions,
): Promise<void> {
  let isNew = false;
  for (const [segment, offsets] of bySegment(chunks)) {
    isNew = (await change(store, vault, segment, (before) => [...before, ...offsets], options)) || isNew;
  }
  if (isNew) await announce(store, vault, options);
}

/** Lets chunks out that have been healed. Errors: those of the store. */
export async function release(
  store: Store,
  vault: string,
  chunks: readonly { readonly segment: string; readonly offset: number }[],
  options: CallOptions,
): Promise<void> {
  for (const [segment, offsets] of bySegment(chunks)) {
    const healed = new Set(offsets);
    await change(store, vault, segment, (before) => before.filter((offset) => !healed.has(offset)), options);
  }
}

/** Removes the lists of segments that the store does not hold any more. Errors: those of the store. */
export async function sweepQuarantine(store: Store, options: CallOptions): Promise<void> {
  const orphans: string[] = [];
  for await (const { name } of store.list(quarantinePrefix, options)) {
    try {
      if ((await store.etagOf(segmentOfQuarantine(name), options)) === undefined) orphans.push(name);
    } catch (error) {
      if (!isUnreadable(error)) throw error; // it is there, in whatever state
    }
  }
  for (const name of orphans) await store.delete(name, options);
}

/** Returns whether that changed anything. */
async function change(
  store: Store,
  vault: string,
  segment: string,
  changed: (before: readonly number[]) => readonly number[],
  options: CallOptions,
): Promise<boolean> {
  const name = quarantineName(segment);
  for (let attempt = 1; ; attempt += 1) {
    const { offsets: before, etag } = await readQuarantine(store, vault, segment, options);
    const offsets = [...new Set(changed(before))].sort((a, b) => a - b).slice(0, quarantinedMax);
    if (offsets.length === before.length) return false;
    try {
      await store.replace(name, encodeQuarantine({ vault, segment, offsets }), etag, options);
      return true;
    } catch (error) {
      if (!hasCode(error, "CONDITION_FAILED") || attempt >= unknownOutcomesMax) throw error;
    }
  }
}

/** One that is damaged itself counts as empty: what it told is found again by whoever proves the points. */
async function readQuarantine(
  store: Store,
  vault: string,
  segment: string,
  options: CallOptions,
): Promise<{ readonly offsets: readonly number[]; readonly etag: string | undefined }> {
  const name = quarantineName(segment);
  const there = await store.find(name, documentBytesMax, options);
  if (there === undefined) return { offsets: [], etag: undefined };
  try {
    return { offsets: decodeQuarantine(there.bytes, name, vault).offsets, etag: there.etag };
  } catch (error) {
    if (!isUnreadable(error)) throw error;
    return { offsets: [], etag: there.etag };
  }
}

/** While a collection is under way it has the say: its writers look because of it, or because of the next one. But there has to be one. */
async function announce(store: Store, vault: string, options: CallOptions): Promise<void> {
  const bytes = encodeCollection({ vault, collection: toHex(randomBytes(16)), startedMs: Date.now() });
  try {
    await using writerLease = await CollectorLease.take(store, options.signal);
    const signal = options.signal === undefined ? writerLease.signal : AbortSignal.any([writerLease.signal, options.signal]);
    await store.replace(collectionName, bytes, await store.etagOf(collectionName, { signal }), { signal });
  } catch (error) {
    if (!hasCode(error, "COLLECTION_ACTIVE", "CONDITION_FAILED")) throw error;
    if ((await store.etagOf(collectionName, options)) !== undefined) return;
    await store.putOnce(collectionName, bytes, options).catch((late: unknown) => {
      if (!hasCode(late, "OBJECT_EXISTS")) throw late; // somebody else has just announced one
    });
  }
}

function bySegment(chunks: readonly { readonly segment: string; readonly offset: number }[]): Map<string, number[]> {
  const grouped = new Map<string, number[]>();
  for (const { segment, offset } of chunks) grouped.set(segment, [...(grouped.get(segment) ?? []), offset]);
  return grouped;
}
