/**
 * Overlay bitmap: where each granule of an overlaid disk is: below, in the overlay, or zeros. Two
 * bits a granule, in pages that exist only where a granule is not below.
 *
 * Memory: a disk of 1 TiB that was written everywhere has 64 MiB of pages.
 */

/** What a granule's two bits say. */
export const granuleState = { below: 0, data: 1, zeros: 2 } as const;
export type GranuleState = (typeof granuleState)[keyof typeof granuleState];

const granulesPerByte = 4;
/** A byte of four granules in one state. */
const uniform: Readonly<Record<GranuleState, number>> = { 0: 0x00, 1: 0x55, 2: 0xaa };

export class GranuleStates {
  /** Granules of a page. */
  readonly pageGranules: number;
  readonly #pageBytes: number;
  readonly #pages = new Map<number, Uint8Array>();
  readonly #changed = new Set<number>();

  constructor(pageBytes: number) {
    this.#pageBytes = pageBytes;
    this.pageGranules = pageBytes * granulesPerByte;
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
  set(from: number, end: number, state: Exclude<GranuleState, typeof granuleState.below>): void {
    for (let at = from; at < end; ) {
      const number = Math.floor(at / this.pageGranules);
      const first = number * this.pageGranules;
      const stop = Math.min(end, first + this.pageGranules);
      if (this.get(at) !== state || this.runEnd(at, stop) < stop) {
        setIn(this.#page(number), at - first, stop - first, state);
        this.#changed.add(number);
      }
      at = stop;
    }
  }

  /** The numbers of pages that have changed since they were taken last. */
  changedPages(): number[] {
    return [...this.#changed];
  }

  /** A copy of a page, which counts as unchanged from now on. */
  take(page: number): Uint8Array {
    this.#changed.delete(page);
    return Uint8Array.from(this.#page(page));
  }

  /** The page that was taken has not been saved. */
  putBack(page: number): void {
    this.#changed.add(page);
  }

  /** Takes a saved page over. */
  load(page: number, bytes: Uint8Array): void {
    this.#page(page).set(bytes);
  }

  #page(number: number): Uint8Array {
    let page = this.#pages.get(number);
    if (page === undefined) {
      page = new Uint8Array(this.#pageBytes);
      this.#pages.set(number, page);
    }
    return page;
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
