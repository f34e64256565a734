/**
 * Which ranges of segments are fetched next. So many are under way as there are slabs. Those that somebody waits for go first and may take every
 * slab; of the others one slab stays free, so that whoever comes is not made to wait for what nobody may ever want.
 */

/** A range that is to be fetched. */
export interface QueuedRange {
  /** Somebody waits for what lies in it: set by who makes it, and by `raise`. */
  isAwaited: boolean;
}

export class RangeQueue {
  readonly #rangesMax: number;
  #underWay = 0;
  /** What begins them, by range: those that somebody waits for, and the others, each in the order in which they came to be that. */
  readonly #awaited = new Map<QueuedRange, () => void>();
  readonly #others = new Map<QueuedRange, () => void>();

  constructor(rangesMax: number) {
    this.#rangesMax = rangesMax;
  }

  /** Calls `fetch` when it is the range's turn, and settles as it does. */
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

  /** Somebody waits for the range now. */
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
