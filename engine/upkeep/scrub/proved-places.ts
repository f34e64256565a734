/**
 * Set of chunk places that have been judged, so that a chunk shared by many points is fetched
 * once.
 *
 * It is bounded and built on the dedup index: the key is the place itself. A place that it forgets
 * is judged again.
 *
 * Memory: at most 128 MiB, and the names of damaged places.
 */

import { DedupIndex } from "../../pipeline/dedup-index.ts";
import { checksum } from "../../store/format/checksum.ts";

const bytesMax = 128 * 1024 * 1024;

export class ProvedPlaces {
  readonly #index = new DedupIndex(bytesMax);
  readonly #segments = new Map<string, Uint32Array>();
  readonly #key: Uint32Array = new Uint32Array(4);
  readonly #found = { segment: 0, offset: 0, storedWord: 0 };
  readonly #damaged = new Set<string>();

  add(segment: string, offset: number, verdict: "proved" | "damaged"): void {
    const place = `${segment} ${offset.toString()}`;
    if (verdict === "damaged") this.#damaged.add(place);
    else this.#damaged.delete(place); // it may have been healed
    this.#setKey(segment, offset);
    this.#index.set(this.#key, 0, 0, 0, 0);
  }

  has(segment: string, offset: number): boolean {
    this.#setKey(segment, offset);
    return this.#index.find(this.#key, 0, this.#found);
  }

  isDamaged(segment: string, offset: number): boolean {
    return this.#damaged.has(`${segment} ${offset.toString()}`);
  }

  /** The segment's checksum, with the offset mixed into the words that choose shard and slot. */
  #setKey(segment: string, offset: number): void {
    let words = this.#segments.get(segment);
    if (words === undefined) {
      words = new Uint32Array(checksum(Buffer.from(segment)).slice().buffer);
      this.#segments.set(segment, words);
    }
    const spread = Math.imul(offset, 0x9e37_79b1);
    this.#key[0] = (words[0] ?? 0) ^ (spread >>> 16);
    this.#key[1] = (words[1] ?? 0) ^ spread;
    this.#key[2] = words[2] ?? 0;
    this.#key[3] = offset;
  }
}
