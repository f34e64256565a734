/**
 * Set of chunks that have been judged, so that a chunk shared by many points is fetched once.
 *
 * A chunk is all that a map's entry says of it: place, stored word, length and digest. What has been
 * proved at a place proves nothing for an entry that names the same place with another digest.
 *
 * The set is bounded and built on the dedup index. The key is the digest, with the place mixed in:
 * duplicates of one chunk then have entries of their own. The place is the value. So an entry is
 * found only when both are equal, and with them the digest. A chunk that the set forgets is judged
 * again.
 *
 * Memory: at most 128 MiB, and the names of damaged chunks.
 */

import { DedupIndex } from "../../pipeline/dedup-index.ts";
import type { MappedChunk } from "../../pipeline/fetch-plan.ts";
import { toHex } from "../../store/format/checksum.ts";
import { storedLz4Flag } from "../../store/format/frame.ts";

const bytesMax = 128 * 1024 * 1024;

/** Names a chunk by all that a map says of it. */
export function chunkKey({ segment, offset, storedWord, granules, digest }: MappedChunk): string {
  return `${segment} ${String(offset)} ${String(storedWord)} ${String(granules)} ${toHex(digest)}`;
}

export class ProvedPlaces {
  readonly #index = new DedupIndex(bytesMax);
  readonly #segments = new Map<string, number>();
  readonly #key: Uint32Array = new Uint32Array(4);
  readonly #keyBytes: Uint8Array = new Uint8Array(this.#key.buffer);
  readonly #found = { segment: 0, offset: 0, storedWord: 0 };
  readonly #damaged = new Set<string>();

  add(chunk: MappedChunk, verdict: "proved" | "damaged"): void {
    if (verdict === "damaged") this.#damaged.add(chunkKey(chunk));
    else if (this.#damaged.size > 0) this.#damaged.delete(chunkKey(chunk)); // it may have been healed
    const segment = this.#setKey(chunk);
    this.#index.set(this.#key, 0, segment, chunk.offset, sizesOf(chunk));
  }

  /** Whether the chunk has been judged and is whole. */
  isProved(chunk: MappedChunk): boolean {
    const segment = this.#setKey(chunk);
    if (!this.#index.find(this.#key, 0, this.#found)) return false;
    const { segment: ofSegment, offset, storedWord } = this.#found;
    if (ofSegment !== segment || offset !== chunk.offset || storedWord !== sizesOf(chunk)) return false;
    return this.#damaged.size === 0 || !this.#damaged.has(chunkKey(chunk));
  }

  /** Returns the number of the chunk's segment. */
  #setKey({ segment, offset, storedWord, digest }: MappedChunk): number {
    let number = this.#segments.get(segment);
    if (number === undefined) {
      number = this.#segments.size;
      this.#segments.set(segment, number);
    }
    this.#keyBytes.set(digest);
    const spread = Math.imul(offset, 0x9e37_79b1) ^ Math.imul(number + 1, 0x85eb_ca6b) ^ storedWord;
    this.#key[0] = (this.#key[0] ?? 0) ^ (spread >>> 16);
    this.#key[1] = (this.#key[1] ?? 0) ^ spread;
    return number;
  }
}

/** Length, compression and granules in one word: a payload has at most 1 MiB, a chunk 256 granules. */
function sizesOf({ storedWord, granules }: MappedChunk): number {
  return ((storedWord & storedLz4Flag) | ((granules - 1) << 22) | (storedWord & 0x3f_ffff)) >>> 0;
}
