/**
 * Block cache of a mounted point: plain blocks in memory, evicted by the CLOCK algorithm.
 *
 * The oldest block is evicted unless it was read since it came or since the hand last passed it. A
 * hit costs no more than a look-up, and one sequential pass over the disk does not evict blocks
 * that are read again and again. A block that was fetched ahead is spared once for its reader, and
 * that first read does not count as a use; otherwise blocks that have been read would evict blocks
 * that are about to be.
 *
 *     lend ─► filled by a fetch ─► keep ─► read … ─► evicted ─► lent again
 *               └─ the fetch failed ─► giveBack ──────────────────┘
 *
 * Invariant: all buffers that exist, lent or not, plus `entryBytes` for each entry, take at most
 * `capacityBytes`. Buffers have one size and are reused. Blocks of zeros have no buffer; where
 * their entries need memory, unused buffers are released. What `find` returns is valid until the
 * caller awaits something.
 */
import assert from "node:assert/strict";

/** What an entry of a Map costs with its object, roughly. */
const entryBytes = 256;

/** The least that a cache works with: one block for each fetch in flight, and some to keep. */
export const cacheBlocksMin = 16;

interface CacheEntry {
  /** Undefined: zeros. */
  readonly bytes: Buffer | undefined;
  /**
   * `expected`: its reader is still to come. `used`: read since it came, or since the hand passed
   * by.
   */
  state: "expected" | "used" | "idle";
}

export class BlockCache {
  readonly blockBytes: number;
  readonly capacityBytes: number;
  readonly #zeros: Buffer;
  /** In the order in which the clock passes by. */
  readonly #entries = new Map<number, CacheEntry>();
  #hand: IterableIterator<[number, CacheEntry]>;
  readonly #free: Buffer[] = [];
  /** Buffers that exist, and those of them that are lent. */
  #buffers = 0;
  #lent = 0;

  constructor(blockBytes: number, capacityBytes: number) {
    assert(capacityBytes >= blockBytes * cacheBlocksMin, "a cache holds a few blocks at least");
    this.blockBytes = blockBytes;
    this.capacityBytes = capacityBytes;
    this.#zeros = Buffer.alloc(blockBytes);
    this.#hand = this.#entries.entries();
  }

  /** Memory in use: buffers, lent ones included, and entries. */
  get heldBytes(): number {
    return this.#buffers * this.blockBytes + this.#entries.size * entryBytes;
  }

  /**
   * The bytes of a block, to be copied at once and not to be changed; undefined when they are not
   * here.
   */
  find(block: number): Buffer | undefined {
    const entry = this.#entries.get(block);
    if (entry === undefined) return undefined;
    entry.state = entry.state === "expected" ? "idle" : "used";
    return entry.bytes ?? this.#zeros;
  }

  /** As `find`, without counting as a use. */
  has(block: number): boolean {
    return this.#entries.has(block);
  }

  /**
   * A buffer of one block with undefined content. The caller owns it until it calls `keep` or
   * `giveBack`.
   */
  lend(): Buffer {
    this.#lent += 1;
    assert(this.#lent * (this.blockBytes + entryBytes) <= this.capacityBytes, "no more is lent than there may be");
    for (;;) {
      const buffer = this.#free.pop();
      if (buffer !== undefined) return buffer;
      if (this.heldBytes + this.blockBytes <= this.capacityBytes) break;
      this.#evict();
    }
    this.#buffers += 1;
    return Buffer.allocUnsafeSlow(this.blockBytes);
  }

  /** Takes a lent buffer back, with nothing in it that is worth keeping. */
  giveBack(buffer: Buffer): void {
    this.#lent -= 1;
    this.#free.push(buffer);
  }

  /**
   * Keeps the content of a block, a lent buffer or zeros. `reader`: whether its reader has had it
   * or is still expected.
   */
  keep(block: number, bytes: Buffer | undefined, reader: "served" | "expected"): void {
    assert(!this.#entries.has(block), "a block is fetched once");
    if (bytes !== undefined) this.#lent -= 1;
    while (this.#entries.size > 0 && this.heldBytes + entryBytes > this.capacityBytes) {
      if (this.#free.pop() === undefined) this.#evict();
      else this.#buffers -= 1;
    }
    this.#entries.set(block, { bytes, state: reader === "expected" ? "expected" : "idle" });
  }

  /**
   * Moves the hand until a block has gone. Behind the last block it begins anew: the iterator goes
   * on with what was put behind meanwhile.
   */
  #evict(): void {
    for (;;) {
      const next = this.#hand.next();
      if (next.done === true) {
        assert(this.#entries.size > 0, "there is something to evict while buffers are not all lent");
        this.#hand = this.#entries.entries();
        continue;
      }
      const [block, entry] = next.value;
      this.#entries.delete(block);
      if (entry.state !== "idle") {
        entry.state = "idle";
        this.#entries.set(block, entry);
        continue;
      }
      if (entry.bytes !== undefined) this.#free.push(entry.bytes);
      return;
    }
  }
}
