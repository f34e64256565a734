/**
 * Which ranges of segments are fetched next. So many are under way as there are slabs. Those that somebody waits for go first and may take every
 * slab; of the others one slab stays free, so that whoever comes is not made to wait for what nobody may ever want.
 */

/** A range that waits for its turn. */
export interface QueuedRange {
  /** Somebody waits for what lies in it. May change while it is queued: see `advance`. */
  isAwaited: boolean;
}

interface Entry {
  readonly range: QueuedRange;
  readonly begin: () => void;
}

export class RangeQueue {
  readonly #rangesMax: number;
  #underWay = 0;
  /** In the order in which they came. */
  readonly #entries: Entry[] = [];

  constructor(rangesMax: number) {
    this.#rangesMax = rangesMax;
  }

  /** Calls `fetch` when it is the range's turn, and settles as it does. */
  async run(range: QueuedRange, fetch: () => Promise<void>): Promise<void> {
    await new Promise<void>((begin) => {
      this.#entries.push({ range, begin });
      this.advance();
    });
    try {
      await fetch();
    } finally {
      this.#underWay -= 1;
      this.advance();
    }
  }

  /** Begins what may begin: to be called when a range that is queued has come to be awaited. */
  advance(): void {
    while (this.#underWay < this.#rangesMax && this.#entries.length > 0) {
      const awaited = this.#entries.findIndex(({ range }) => range.isAwaited);
      if (awaited < 0 && this.#underWay >= this.#rangesMax - 1) return;
      const [entry] = this.#entries.splice(Math.max(0, awaited), 1);
      this.#underWay += 1;
      entry?.begin();
    }
  }
}
