/**
 * Plain blocks of a mounted point, kept in memory up to a limit. Which blocks go when room is needed is decided by a clock: the oldest
 * goes unless it was read since it came or was last passed by. That costs a hit no more than a look-up, and a reader that goes once through the
 * disk does not drive out what is read again and again. A block that came before its reader is spared once for him, and to be read by him does
 * not count: else what has been read would drive out what is about to be.
 *
 *     lend ─► filled by a fetch ─► keep ─► read … ─► evicted ─► lent again
 *               └─ the fetch failed ─► giveBack ──────────────────┘
 *
 * Buffers are of one size and are used again, so memory is bounded by arithmetic rather than by the collector: all buffers that
 * exist, lent or not, plus `entryBytes` for what is known of a block, are at most `capacityBytes`. Blocks of zeros have no buffer; where they need
 * room, buffers that nobody uses are given up. What is looked up is valid until the caller waits for something.
 */
import assert from "node:assert/strict";

/** What an entry of a Map costs with its object, roughly. */
const entryBytes = 256;

/** The least that a cache works with: one block for each fetch in flight, and some to keep. */
export const cacheBlocksMin = 16;

interface Entry {
  /** Undefined: zeros. */
  readonly bytes: Buffer | undefined;
  /** `expected`: its reader is still to come. `used`: read since it came, or since the hand passed by. */
  state: "expected" | "used" | "idle";
}

export class BlockCache {
  readonly blockBytes: number;
  readonly capacityBytes: number;
  readonly #zeros: Buffer;
  /** In the order in which the clock passes by. */
  readonly #entries = new Map<number, Entry>();
  #hand: IterableIterator<[number, Entry]>;
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

  /** Memory in use: buffers, whoever has them, and entries. */
  get heldBytes(): number {
    return this.#buffers * this.blockBytes + this.#entries.size * entryBytes;
  }

  /** The bytes of a block, to be copied at once and not to be changed; undefined when they are not here. */
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

  /** A buffer of one block with anything in it. It is the caller's until it is kept or given back. */
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

  /** Keeps what a block holds, a lent buffer or zeros, for a reader who has had it or is expected. */
  keep(block: number, bytes: Buffer | undefined, reader: "served" | "expected"): void {
    assert(!this.#entries.has(block), "a block is fetched once");
    if (bytes !== undefined) this.#lent -= 1;
    while (this.#entries.size > 0 && this.heldBytes + entryBytes > this.capacityBytes) {
      if (this.#free.pop() === undefined) this.#evict();
      else this.#buffers -= 1;
    }
    this.#entries.set(block, { bytes, state: reader === "expected" ? "expected" : "idle" });
  }

  /** Moves the hand until a block has gone. Behind the last block it begins anew: the iterator goes on with what was put behind meanwhile. */
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
