/**
 * Overlay bitmap: where each granule of an overlaid disk is: below, in the overlay, or zeros. Two
 * bits a granule, in pages that exist only where a granule is not below. All pages of one state
 * share one array, which is copied before it is changed in part.
 *
 * Memory: at most 64 MiB of pages for a disk of 1 TiB; next to nothing where it is all data or all
 * zeros.
 */

/** What a granule's two bits say. */
export const granuleState = { below: 0, data: 1, zeros: 2 } as const;
export type GranuleState = (typeof granuleState)[keyof typeof granuleState];
/** What a granule can become: nothing goes back below. */
export type OwnState = Exclude<GranuleState, typeof granuleState.below>;

const ownStates: readonly OwnState[] = [granuleState.data, granuleState.zeros];
const granulesPerByte = 4;
/** A byte of four granules in one state. */
const uniform: Readonly<Record<GranuleState, number>> = { 0: 0x00, 1: 0x55, 2: 0xaa };

export class GranuleStates {
  /** Granules of a page. */
  readonly pageGranules: number;
  readonly #pageBytes: number;
  readonly #pages = new Map<number, Uint8Array>();
  readonly #changed = new Set<number>();
  /** The pages that are shared: of one state, from the first granule to the last. */
  readonly #whole: Readonly<Record<OwnState, Uint8Array>>;
  #present = 0;

  constructor(pageBytes: number) {
    this.#pageBytes = pageBytes;
    this.pageGranules = pageBytes * granulesPerByte;
    this.#whole = {
      [granuleState.data]: new Uint8Array(pageBytes).fill(uniform[granuleState.data]),
      [granuleState.zeros]: new Uint8Array(pageBytes).fill(uniform[granuleState.zeros]),
    };
  }

  /** Granules that are not below. */
  get present(): number {
    return this.#present;
  }

  /** Whether a page holds states only: two bits can say one thing more. */
  static canLoad(page: Uint8Array): boolean {
    return page.every((byte) => (byte & (byte >>> 1) & uniform[granuleState.data]) === 0);
  }

  get(granule: number): GranuleState {
    const page = this.#pages.get(Math.floor(granule / this.pageGranules));
    return page === undefined ? granuleState.below : stateIn(page, granule % this.pageGranules);
  }

  /** End of the run of granules from `granule` on that are in its state; `end` at the latest. */
  runEnd(granule: number, end: number): number {
    const state = this.get(granule);
    let at = granule + 1;
    while (at < end) {
      const page = this.#pages.get(Math.floor(at / this.pageGranules));
      const first = at - (at % this.pageGranules);
      const stop = Math.min(end, first + this.pageGranules);
      if (page === undefined) {
        if (state !== granuleState.below) return at;
        at = stop;
        continue;
      }
      if (state !== granuleState.below && page === this.#whole[state]) at = stop;
      while (at < stop) {
        const inPage = at - first;
        if (inPage % granulesPerByte === 0 && page[inPage / granulesPerByte] === uniform[state]) at += granulesPerByte;
        else if (stateIn(page, inPage) === state) at += 1;
        else return at;
      }
    }
    return end;
  }

  /** True when a granule of [from, end) is in `state`. */
  has(state: GranuleState, from: number, end: number): boolean {
    for (let at = from; at < end; at = this.runEnd(at, end)) if (this.get(at) === state) return true;
    return false;
  }

  /** Puts granules [from, end) in `state`, and notes the pages that this changes. */
  set(from: number, end: number, state: OwnState): void {
    for (let at = from; at < end; ) {
      const number = Math.floor(at / this.pageGranules);
      const first = number * this.pageGranules;
      const stop = Math.min(end, first + this.pageGranules);
      if (this.get(at) !== state || this.runEnd(at, stop) < stop) {
        this.#present += this.#countBelow(at, stop);
        if (stop - at === this.pageGranules) this.#pages.set(number, this.#whole[state]);
        else setIn(this.#page(number), at - first, stop - first, state);
        this.#changed.add(number);
      }
      at = stop;
    }
  }

  /** The first granule of [from, end) that is below; undefined: none. */
  nextBelow(from: number, end: number): number | undefined {
    for (let at = from; at < end; at = this.runEnd(at, end)) if (this.get(at) === granuleState.below) return at;
    return undefined;
  }

  /** The numbers of pages that have changed since they were taken last. */
  changedPages(): number[] {
    return [...this.#changed];
  }

  /** The state of all granules of a page, when it is one and is not `below`; undefined for other pages. */
  wholeState(page: number): OwnState | undefined {
    const bytes = this.#pages.get(page);
    if (bytes === undefined) return undefined;
    return ownStates.find((state) => this.#whole[state] === bytes);
  }

  /** Takes over a page of which all granules are in one state; there is none of its number yet. */
  loadWhole(page: number, state: OwnState): void {
    this.#pages.set(page, this.#whole[state]);
    this.#present += this.pageGranules;
  }

  /** A page as it is now and stays in the caller's hand. It counts as unchanged from now on. */
  take(page: number): Uint8Array {
    this.#changed.delete(page);
    const bytes = this.#pages.get(page) ?? new Uint8Array(this.#pageBytes);
    return this.wholeState(page) === undefined ? Uint8Array.from(bytes) : bytes;
  }

  /** The page that was taken has not been saved. */
  putBack(page: number): void {
    this.#changed.add(page);
  }

  /** Takes a saved page over; there is none of its number yet. */
  load(page: number, bytes: Uint8Array): void {
    this.#pages.set(page, Uint8Array.from(bytes));
    const first = page * this.pageGranules;
    this.#present += this.pageGranules - this.#countBelow(first, first + this.pageGranules);
  }

  /** The page `number`, to be changed. */
  #page(number: number): Uint8Array {
    let page = this.#pages.get(number);
    if (page === undefined || Object.values(this.#whole).includes(page)) {
      page = page === undefined ? new Uint8Array(this.#pageBytes) : Uint8Array.from(page);
      this.#pages.set(number, page);
    }
    return page;
  }

  #countBelow(from: number, end: number): number {
    let count = 0;
    for (let at = from; at < end; ) {
      const stop = this.runEnd(at, end);
      if (this.get(at) === granuleState.below) count += stop - at;
      at = stop;
    }
    return count;
  }
}

function stateIn(page: Uint8Array, granule: number): GranuleState {
  const bits = ((page[Math.floor(granule / granulesPerByte)] ?? 0) >>> ((granule % granulesPerByte) * 2)) & 3;
  return bits === granuleState.data || bits === granuleState.zeros ? bits : granuleState.below;
}

function setIn(page: Uint8Array, from: number, end: number, state: GranuleState): void {
  let at = from;
  while (at < end) {
    const index = Math.floor(at / granulesPerByte);
    if (at % granulesPerByte === 0 && end - at >= granulesPerByte) {
      const bytes = Math.floor((end - at) / granulesPerByte);
      page.fill(uniform[state], index, index + bytes);
      at += bytes * granulesPerByte;
    } else {
      const shift = (at % granulesPerByte) * 2;
      page[index] = ((page[index] ?? 0) & ~(3 << shift)) | (state << shift);
      at += 1;
    }
  }
}
