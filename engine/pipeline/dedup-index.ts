/**
 * Deduplication index: digest → place in the store. Open addressing on typed arrays, 28 bytes an
 * entry (digest 16, segment 4, offset 4, stored word 4).
 *
 * The index is cut into 64 shards by the digest's first bits. A shard that is 7/8 full grows by a
 * quarter, so its load stays above 0.7. An entry costs at most 28 / 0.7 = 40 bytes, also while the
 * index grows, because only one shard is copied at a time. Slots are chosen by scaling the hash to
 * the capacity, which needs no power of two.
 *
 * At the configured ceiling a shard stops growing: a new entry replaces an old one, whose data
 * would then be stored twice.
 */
import assert from "node:assert/strict";
import { digestBytes } from "../limits.ts";

export const indexEntryBytes: number = digestBytes + 12;
const shardCount = 64;
const shardCapacityMin = 64;
const loadMax = 7 / 8;
const growth = 5 / 4;

/** Where a chunk's payload lies. `segment` is a number that the catalog gave. */
export interface ChunkPlace {
  segment: number;
  offset: number;
  storedWord: number;
}

interface Shard {
  capacity: number;
  count: number;
  digests: Uint32Array;
  /** segment + 1, offset, storedWord; a zero segment marks a free slot. */
  places: Uint32Array;
}

function newShard(capacity: number): Shard {
  return { capacity, count: 0, digests: new Uint32Array(capacity * 4), places: new Uint32Array(capacity * 3) };
}

export class DedupIndex {
  readonly #shards: Shard[] = Array.from({ length: shardCount }, () => newShard(shardCapacityMin));
  readonly #shardCapacityMax: number;
  #forgotten = 0;

  /** `bytesMax`: the ceiling. */
  constructor(bytesMax: number) {
    this.#shardCapacityMax = Math.max(shardCapacityMin, Math.floor(bytesMax / shardCount / indexEntryBytes));
  }

  get count(): number {
    return this.#shards.reduce((sum, shard) => sum + shard.count, 0);
  }

  /** Entries that were dropped because the ceiling was reached. */
  get forgotten(): number {
    return this.#forgotten;
  }

  /** Bytes of all arrays. */
  get bytes(): number {
    return this.#shards.reduce((sum, shard) => sum + shard.capacity * indexEntryBytes, 0);
  }

  /** Looks up the digest in words [at, at+4). Fills `found` and returns true when it is known. */
  find(words: Uint32Array, at: number, found: ChunkPlace): boolean {
    const shard = this.#shardOf(words, at);
    const slot = probe(shard, words, at);
    const place = slot * 3;
    const segment = shard.places[place] ?? 0;
    if (segment === 0) return false;
    found.segment = segment - 1;
    found.offset = shard.places[place + 1] ?? 0;
    found.storedWord = shard.places[place + 2] ?? 0;
    return true;
  }

  /** Adds or replaces the digest's place. */
  set(words: Uint32Array, at: number, segment: number, offset: number, storedWord: number): void {
    const shard = this.#shardOf(words, at);
    let slot = probe(shard, words, at);
    if (shard.places[slot * 3] === 0) {
      if (shard.count + 1 > shard.capacity * loadMax) {
        if (shard.capacity < this.#shardCapacityMax) {
          growShard(shard, Math.min(this.#shardCapacityMax, Math.floor(shard.capacity * growth)));
          slot = probe(shard, words, at);
          shard.count += 1;
        } else {
          // Writing over the entry in the home slot keeps every other chain whole; a free home slot
          // must stay free, so that chains go on to end.
          this.#forgotten += 1;
          slot = homeSlot(shard, words, at);
          if (shard.places[slot * 3] === 0) return;
        }
      } else {
        shard.count += 1;
      }
    }
    write(shard, slot, words, at, segment + 1, offset, storedWord);
  }

  /**
   * Every entry, as (digest words, index of the digest in them, place). The arrays are the index's
   * own.
   */
  forEach(visit: (words: Uint32Array, at: number, segment: number, offset: number, storedWord: number) => void): void {
    for (const shard of this.#shards) {
      for (let slot = 0; slot < shard.capacity; slot += 1) {
        const segment = shard.places[slot * 3] ?? 0;
        if (segment !== 0)
          visit(shard.digests, slot * 4, segment - 1, shard.places[slot * 3 + 1] ?? 0, shard.places[slot * 3 + 2] ?? 0);
      }
    }
  }

  /** Drops every entry that `isDropped` is true of. */
  dropWhere(isDropped: (segment: number, offset: number, storedWord: number) => boolean): void {
    for (const shard of this.#shards) {
      const { digests, places, capacity, count } = shard;
      const dropped = new Set<number>();
      for (let slot = 0; slot < capacity; slot += 1) {
        const segment = places[slot * 3] ?? 0;
        if (segment !== 0 && isDropped(segment - 1, places[slot * 3 + 1] ?? 0, places[slot * 3 + 2] ?? 0))
          dropped.add(slot);
      }
      if (dropped.size === 0) continue;
      // A slot that became free would end the chains that lead across it: the others are entered
      // anew.
      const fresh = newShard(capacity);
      Object.assign(shard, fresh, { count: count - dropped.size });
      for (let slot = 0; slot < capacity; slot += 1) {
        const segment = places[slot * 3] ?? 0;
        if (segment === 0 || dropped.has(slot)) continue;
        write(
          shard,
          probe(shard, digests, slot * 4),
          digests,
          slot * 4,
          segment,
          places[slot * 3 + 1] ?? 0,
          places[slot * 3 + 2] ?? 0,
        );
      }
    }
  }

  #shardOf(words: Uint32Array, at: number): Shard {
    const shard = this.#shards[(words[at] ?? 0) % shardCount];
    assert(shard !== undefined);
    return shard;
  }
}

function homeSlot(shard: Shard, words: Uint32Array, at: number): number {
  return Math.floor(((words[at + 1] ?? 0) / 4294967296) * shard.capacity);
}

/**
 * The slot that holds the digest, or the free slot where its chain ends. A shard is never full, so
 * a chain ends.
 */
function probe(shard: Shard, words: Uint32Array, at: number): number {
  const { digests, places, capacity } = shard;
  const w0 = words[at];
  const w1 = words[at + 1];
  const w2 = words[at + 2];
  const w3 = words[at + 3];
  let slot = homeSlot(shard, words, at);
  while (places[slot * 3] !== 0) {
    const d = slot * 4;
    if (digests[d + 1] === w1 && digests[d] === w0 && digests[d + 2] === w2 && digests[d + 3] === w3) return slot;
    slot += 1;
    if (slot === capacity) slot = 0;
  }
  return slot;
}

function write(
  shard: Shard,
  slot: number,
  words: Uint32Array,
  at: number,
  segment: number,
  offset: number,
  storedWord: number,
): void {
  const d = slot * 4;
  shard.digests[d] = words[at] ?? 0;
  shard.digests[d + 1] = words[at + 1] ?? 0;
  shard.digests[d + 2] = words[at + 2] ?? 0;
  shard.digests[d + 3] = words[at + 3] ?? 0;
  const p = slot * 3;
  shard.places[p] = segment;
  shard.places[p + 1] = offset;
  shard.places[p + 2] = storedWord;
}

function growShard(shard: Shard, capacity: number): void {
  const old = { ...shard };
  const fresh = newShard(capacity);
  shard.capacity = capacity;
  shard.digests = fresh.digests;
  shard.places = fresh.places;
  for (let slot = 0; slot < old.capacity; slot += 1) {
    const segment = old.places[slot * 3] ?? 0;
    if (segment === 0) continue;
    const target = probe(shard, old.digests, slot * 4);
    write(shard, target, old.digests, slot * 4, segment, old.places[slot * 3 + 1] ?? 0, old.places[slot * 3 + 2] ?? 0);
  }
}
