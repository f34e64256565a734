/**
 * Priority queue of segment ranges to fetch. As many are under way as there are slabs.
 *
 * Ranges that a read waits for go first and may take every slab. Ranges that are fetched ahead
 * leave one slab free, so that a new read does not wait for a range that may never be needed.
 */

/** A range that is to be fetched. */
export interface QueuedRange {
  /** A read waits for it: set by the caller that creates it, and by `raise`. */
  isAwaited: boolean;
}

export class RangeQueue {
  readonly #rangesMax: number;
  #underWay = 0;
  /**
   * The start functions of ranges that a read waits for, and of the others, each in the order of
   * arrival.
   */
  readonly #awaited = new Map<QueuedRange, () => void>();
  readonly #others = new Map<QueuedRange, () => void>();

  constructor(rangesMax: number) {
    this.#rangesMax = rangesMax;
  }

  /** Calls `fetch` when it is the range's turn, and settles as `fetch` does. */
  async run(range: QueuedRange, fetch: () => Promise<void>): Promise<void> {
    await new Promise<void>((begin) => {
      (range.isAwaited ? this.#awaited : this.#others).set(range, begin);
      this.#advance();
    });
    try {
      await fetch();
    } finally {
      this.#underWay -= 1;
      this.#advance();
    }
  }

  /** Notes that a read waits for the range now. */
  raise(range: QueuedRange): void {
    range.isAwaited = true;
    const begin = this.#others.get(range);
    if (begin === undefined) return;
    this.#others.delete(range);
    this.#awaited.set(range, begin);
    this.#advance();
  }

  #advance(): void {
    while (this.#underWay < this.#rangesMax) {
      const queue = this.#awaited.size > 0 ? this.#awaited : this.#others;
      const [next] = queue;
      if (next === undefined || (queue === this.#others && this.#underWay === this.#rangesMax - 1)) return;
      const [range, begin] = next;
      queue.delete(range);
      this.#underWay += 1;
      begin();
    }
  }
}
