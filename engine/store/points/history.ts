/**
 * History: the points of a disk in pages, a two-level log-structured merge. The newest points stand
 * in the head, older ones in pages that are written once.
 *
 *     head:  [ 1 page of 64 full pages ] … [ full page ] … [ page of 256 ] … │ newest points
 *
 * The head is written twice with every point, so it has to stay small. One point is about 230 bytes
 * of JSON, a reference to a page about 220. When 512 points stand in the head, the oldest 256
 * become a page. When more than 64 pages are small, the oldest are merged: 64 pages of 256 points
 * give one of 16,384. When more than 128 pages of points stand in the head, 64 of them are put into
 * a page of pages, which covers 1,048,576 points. With a point every 5 s:
 *
 *     points in the head    512 × 230 B        115 KiB at most, 86 KiB on average
 *     pages of points       128 × 220 B         28 KiB at most
 *     pages of pages          6 × 220 B a year   1.3 KiB a year
 *     written besides       256 × 230 B         58 KiB every 21 min, and 3.6 MiB once in 23 h: every point twice
 *
 * Points that are dropped leave the head, or their page, which is written anew without them; other
 * pages stay. What is left of neighbouring pages becomes one page. A page of 256 points, thinned to
 * one an hour as its points pass the age of two hours, is written 21 times if that is done every
 * minute: 0.6 MiB for 21 minutes of points, where their commits have written 44 MiB of heads.
 *
 * Invariant: a head refers only to pages that are durable and proved. A page that cannot be read
 * stays where it is; it hides its own points and no others.
 */
import assert from "node:assert/strict";
import { forEachAtOnce } from "../../concurrency.ts";
import { isUnreadable, type TidemarkError } from "../../errors.ts";
import type { HeadDocument, PageReference, PointList, PointRecord } from "../format/documents.ts";
import {
  decodePage,
  documentBytesMax,
  encodePage,
  headPointsMax,
  pagePointsMax,
  referTo,
} from "../format/documents.ts";
import { pageName } from "../format/names.ts";
import { getReferred, type Store } from "../store.ts";

/** The policy; its arithmetic stands above. */
const policy = {
  /** Points that leave the head together. */
  movedPoints: 256,
  /** Small pages that are not merged. */
  smallPagesMax: 64,
  /**
   * A merged page has at most `pagePointsMax` points and this size: points of large groups are
   * longer.
   */
  mergedBytesMax: 8 * 1024 * 1024,
  /** Pages of points that the head refers to itself. */
  flatPagesMax: 128,
  /** Pages of points in one page of pages. */
  gatheredPages: 64,
  readsAtOnce: 8,
  /** What a cache of pages holds, about 13 MB of memory. */
  cachedPointsMax: 2 * pagePointsMax,
};

assert(policy.movedPoints < headPointsMax && policy.gatheredPages < policy.flatPagesMax);
assert(policy.movedPoints * policy.smallPagesMax === pagePointsMax, "small pages fill one page exactly");

export interface ReadPointsOptions {
  /**
   * Called for each page that is damaged or gone; its points are left out. Absent: such a page ends
   * the reading as an error.
   */
  readonly onDamage?: ((error: TidemarkError) => void) | undefined;
  /** Leaves out points that are younger. */
  readonly untilMs?: number | undefined;
  /** Called for each page before it is read. */
  readonly onPage?: ((reference: PageReference) => void) | undefined;
  readonly cache?: PageCache | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A cache of pages. A page never changes, so a cached page is always current. */
export class PageCache {
  readonly #pages = new Map<string, PointList>();
  #points = 0;

  get(reference: PageReference): PointList | undefined {
    return this.#pages.get(reference.checksum);
  }

  add(reference: PageReference, page: PointList): void {
    if (this.#pages.has(reference.checksum)) return;
    this.#pages.set(reference.checksum, page);
    this.#points += lengthOf(page);
    for (const [checksum, oldest] of this.#pages) {
      if (this.#points <= policy.cachedPointsMax || this.#pages.size === 1) break;
      this.#pages.delete(checksum);
      this.#points -= lengthOf(oldest);
    }
  }
}

function lengthOf(page: PointList): number {
  return page.points.length + page.pages.length;
}

/**
 * The points of a disk, newest first; a page is read when its turn comes. Errors: DAMAGED,
 * FORMAT_UNSUPPORTED with the page's name.
 */
export async function* readPoints(
  store: Store,
  head: HeadDocument,
  options: ReadPointsOptions = {},
): AsyncGenerator<PointRecord> {
  yield* newestFirst({ store, head, cache: options.cache, signal: options.signal }, head, options);
}

async function* newestFirst(
  source: PageSource,
  list: PointList,
  options: ReadPointsOptions,
): AsyncGenerator<PointRecord> {
  const untilMs = options.untilMs ?? Number.POSITIVE_INFINITY;
  for (const point of list.points.toReversed()) if (point.timeMs <= untilMs) yield point;
  for (const reference of list.pages.toReversed()) {
    if (reference.firstTimeMs > untilMs) continue;
    options.onPage?.(reference);
    const page = await readPage(source, reference);
    if (!isDamage(page)) yield* newestFirst(source, page, options);
    else if (options.onDamage === undefined) throw page;
    else options.onDamage(page);
  }
}

/** What a point is looked up by. A time stands for the newest point that is not younger. */
export type PointKey = { readonly sequence: number } | { readonly id: string } | { readonly timeMs: number };

/**
 * Finds a point. A sequence number or a time leads to one page; an id does not, so pages are read
 * until it is found. Errors: DAMAGED, FORMAT_UNSUPPORTED when the page in which the point is, or
 * may be, cannot be read.
 */
export async function findPoint(
  store: Store,
  head: HeadDocument,
  key: PointKey,
  signal?: AbortSignal,
  cache?: PageCache,
): Promise<PointRecord | undefined> {
  if ("id" in key) return await findId(store, head, key.id, signal);
  let isIt: (point: PointRecord) => boolean;
  let mayHold: (page: PageReference) => boolean;
  if ("sequence" in key) {
    isIt = ({ sequence }) => sequence === key.sequence;
    mayHold = ({ firstSequence, lastSequence }) => firstSequence <= key.sequence && key.sequence <= lastSequence;
  } else {
    isIt = ({ timeMs }) => timeMs <= key.timeMs;
    mayHold = ({ firstTimeMs }) => firstTimeMs <= key.timeMs;
  }
  // Points and references ascend, so the last one that fits is the one. References are few: a
  // linear search is enough.
  let list: PointList = head;
  for (;;) {
    const found = list.points.findLast(isIt);
    if (found !== undefined) return found;
    const reference = list.pages.findLast(mayHold);
    if (reference === undefined) return undefined;
    const page = await readPage({ store, head, cache, signal }, reference);
    if (isDamage(page)) throw page;
    list = page;
  }
}

async function findId(
  store: Store,
  head: HeadDocument,
  id: string,
  signal: AbortSignal | undefined,
): Promise<PointRecord | undefined> {
  const unread: TidemarkError[] = [];
  for await (const point of readPoints(store, head, { onDamage: (error) => unread.push(error), signal })) {
    if (point.id === id) return point;
  }
  if (unread[0] !== undefined) throw unread[0];
  return undefined;
}

export interface RoomOptions extends PageSource {
  readonly epoch: number;
  /** Returns an ordinal that no page of this epoch has had. */
  readonly takeOrdinal: () => number;
  /** Called for a page that stays as it is because it is damaged or gone. */
  readonly onDamage: (error: TidemarkError) => void;
}

/** The same points with room for one more in the head. */
export interface Room extends PointList {
  /**
   * Name → ETag of the pages that were written. They are durable, and have to be proved before a
   * head refers to them.
   */
  readonly written: ReadonlyMap<string, string>;
}

/**
 * Moves the head's oldest points into a page if it is full, and keeps the pages few. Errors: those
 * of the store.
 */
export async function makeRoom(options: RoomOptions): Promise<Room> {
  const { head } = options;
  if (head.points.length < headPointsMax) return { pages: head.pages, points: head.points, written: new Map() };
  const pages = new Pages(options);
  await pages.move(head.points.slice(0, policy.movedPoints));
  await pages.mergeSmall();
  await pages.gather();
  return { pages: pages.references, points: head.points.slice(policy.movedPoints), written: pages.written };
}

/**
 * The points of a head without those of the given sequence numbers. Points of a page that cannot be
 * read stay. The newest point cannot be dropped. Errors: those of the store.
 */
export async function withoutPoints(options: RoomOptions, dropped: readonly number[]): Promise<Room> {
  const { head } = options;
  const sequences = new Set(dropped);
  const newest = head.points.at(-1);
  assert(newest === undefined || !sequences.has(newest.sequence), "the newest point stays");
  const pages = new Pages(options);
  await pages.drop({ sequences, rising: [...sequences].sort((a, b) => a - b) });
  await pages.mergeSmall();
  return {
    pages: pages.references,
    points: head.points.filter(({ sequence }) => !sequences.has(sequence)),
    written: pages.written,
  };
}

/**
 * Lays out all points of a disk anew, given oldest first: the newest stand in the head, the others
 * in pages. Errors: those of the store.
 */
export async function layOutPoints(
  options: Omit<RoomOptions, "onDamage">,
  points: readonly PointRecord[],
): Promise<Room> {
  const pages = new Pages({ ...options, head: { ...options.head, pages: [], points: [] }, onDamage: () => undefined });
  const newest = points.slice(-policy.movedPoints);
  await pages.moveAll(points.slice(0, -policy.movedPoints));
  return { pages: pages.references, points: newest, written: pages.written };
}

/** Sequence numbers, as a set and ascending. */
interface Dropped {
  readonly sequences: ReadonlySet<number>;
  readonly rising: readonly number[];
}

function concerns({ rising }: Dropped, { firstSequence, lastSequence }: PageReference): boolean {
  let [from, end] = [0, rising.length];
  while (from < end) {
    const middle = Math.floor((from + end) / 2);
    if ((rising[middle] ?? 0) < firstSequence) from = middle + 1;
    else end = middle;
  }
  return (rising[from] ?? Number.POSITIVE_INFINITY) <= lastSequence;
}

/** The references of a head while they are being rearranged. */
class Pages {
  readonly written = new Map<string, string>();
  references: readonly PageReference[];
  readonly #options: RoomOptions;

  constructor(options: RoomOptions) {
    this.#options = options;
    this.references = options.head.pages;
  }

  async move(points: readonly PointRecord[]): Promise<void> {
    this.references = [...this.references, await this.#write({ pages: [], points })];
  }

  /** Moves any number of points into pages of the largest size. */
  async moveAll(points: readonly PointRecord[]): Promise<void> {
    let page: PointRecord[] = [];
    let bytes = 0;
    for (const point of points) {
      const length = Buffer.byteLength(JSON.stringify(point));
      if (page.length === pagePointsMax || bytes + length > policy.mergedBytesMax) {
        await this.move(page);
        await this.gather();
        page = [];
        bytes = 0;
      }
      page.push(point);
      bytes += length;
    }
    if (page.length > 0) await this.move(page);
  }

  async drop(dropped: Dropped): Promise<void> {
    this.references = await this.#without(this.references, dropped);
  }

  /** What is left of `references` when points are dropped from the pages that they name. */
  async #without(references: readonly PageReference[], dropped: Dropped): Promise<readonly PageReference[]> {
    if (!references.some((reference) => concerns(dropped, reference))) return references;
    const left: PageReference[] = [];
    // What is left of neighbouring pages, until it fills a page or a page follows that stays as it
    // is.
    let points: PointRecord[] = [];
    let bytes = 0;
    const flush = async (): Promise<void> => {
      if (points.length > 0) left.push(await this.#write({ pages: [], points }));
      points = [];
      bytes = 0;
    };
    for await (const { reference, page } of this.#readInTurn(references, dropped)) {
      const isLighter = page?.points.some(({ sequence }) => dropped.sequences.has(sequence)) === true;
      if (page === undefined || (reference.level === 0 && !isLighter)) {
        await flush();
        left.push(reference);
      } else if (reference.level === 1) {
        await flush();
        const pages = await this.#without(page.pages, dropped);
        if (pages.length > 0) left.push(pages === page.pages ? reference : await this.#write({ pages, points: [] }));
      } else {
        for (const point of page.points) {
          if (dropped.sequences.has(point.sequence)) continue;
          const length = Buffer.byteLength(JSON.stringify(point));
          if (points.length === pagePointsMax || bytes + length > policy.mergedBytesMax) await flush();
          points.push(point);
          bytes += length;
        }
      }
    }
    await flush();
    return left;
  }

  /**
   * References in their order, with the pages that may lose points; a few are read ahead. `page` is
   * undefined for one that stays or cannot be read.
   */
  async *#readInTurn(
    references: readonly PageReference[],
    dropped: Dropped,
  ): AsyncGenerator<{ readonly reference: PageReference; readonly page: PointList | undefined }> {
    const reading = new Map<PageReference, Promise<PointList | DamagedPage>>();
    const concerned = references.filter((reference) => concerns(dropped, reference)).values();
    const readOne = (): void => {
      const next = concerned.next();
      if (next.done === true) return;
      const page = readPage(this.#options, next.value);
      page.catch(() => undefined); // thrown when its turn comes
      reading.set(next.value, page);
    };
    for (let ahead = 0; ahead < policy.readsAtOnce; ahead += 1) readOne();
    for (const reference of references) {
      const page = await reading.get(reference);
      if (reading.delete(reference)) readOne();
      if (page !== undefined && isDamage(page)) this.#options.onDamage(page);
      yield { reference, page: page === undefined || isDamage(page) ? undefined : page };
    }
  }

  /** Merges the oldest small pages that are neighbours. */
  async mergeSmall(): Promise<void> {
    if (this.references.filter(isSmall).length <= policy.smallPagesMax) return;
    const unreadable = new Set<PageReference>();
    for (;;) {
      const run = firstRun(this.references, unreadable);
      const [first] = run;
      if (first === undefined) return;
      const pages = await this.#readAll(run);
      const points = pages.flatMap((page) => (isDamage(page) ? [] : page.points));
      for (const [index, page] of pages.entries()) {
        const reference = run[index];
        if (reference === undefined || !isDamage(page)) continue;
        unreadable.add(reference);
        this.#options.onDamage(page);
      }
      if (run.some((reference) => unreadable.has(reference))) continue;
      this.references = this.references.toSpliced(
        this.references.indexOf(first),
        run.length,
        await this.#write({ pages: [], points }),
      );
      return;
    }
  }

  /** Puts the oldest pages of points into a page of pages. */
  async gather(): Promise<void> {
    const flat = this.references.filter(({ level }) => level === 0);
    const [first] = flat;
    if (first === undefined || flat.length <= policy.flatPagesMax) return;
    // Only the oldest are ever gathered, so the pages of pages all stand before the pages of
    // points.
    const pages = flat.slice(0, policy.gatheredPages);
    this.references = this.references.toSpliced(
      this.references.indexOf(first),
      pages.length,
      await this.#write({ pages, points: [] }),
    );
  }

  async #write(content: PointList): Promise<PageReference> {
    const { store, head, epoch, takeOrdinal, signal } = this.#options;
    const page = { vault: head.vault, disk: head.disk, epoch, ordinal: takeOrdinal(), ...content };
    const encoded = encodePage(page);
    const reference = referTo(page, encoded);
    assert(reference !== undefined, "a page holds something");
    const name = pageName(head.disk, epoch, page.ordinal);
    decodePage(encoded.bytes, name, { ...head, reference });
    this.written.set(name, await store.putOnce(name, encoded.bytes, { signal }));
    this.#options.cache?.add(reference, page);
    return reference;
  }

  /** The pages in the order of their references. */
  async #readAll(references: readonly PageReference[]): Promise<readonly (PointList | DamagedPage)[]> {
    const pages: (PointList | DamagedPage)[] = [];
    await forEachAtOnce(references.entries(), policy.readsAtOnce, async ([index, reference]) => {
      pages[index] = await readPage(this.#options, reference);
    });
    return pages;
  }
}

function isSmall({ level, count, bytes }: PageReference): boolean {
  return level === 0 && count * 2 <= pagePointsMax && bytes * 2 <= policy.mergedBytesMax;
}

/**
 * The oldest small pages, at least two, that are neighbours and fit into one; empty when there are
 * none.
 */
function firstRun(
  references: readonly PageReference[],
  unreadable: ReadonlySet<PageReference>,
): readonly PageReference[] {
  let run: PageReference[] = [];
  let count = 0;
  let bytes = 0;
  for (const reference of references) {
    const fits = count + reference.count <= pagePointsMax && bytes + reference.bytes <= policy.mergedBytesMax;
    const mayJoin = isSmall(reference) && !unreadable.has(reference);
    if (!mayJoin || !fits) {
      if (run.length > 1) return run;
      run = [];
      count = 0;
      bytes = 0;
    }
    if (!mayJoin) continue;
    run.push(reference);
    count += reference.count;
    bytes += reference.bytes;
  }
  return run.length > 1 ? run : [];
}

interface PageSource {
  readonly store: Store;
  readonly head: HeadDocument;
  readonly cache?: PageCache | undefined;
  readonly signal?: AbortSignal | undefined;
}

type DamagedPage = TidemarkError;

/**
 * Returns why a page cannot be read, because one such page must not hide the others. Throws the
 * errors of the store.
 */
async function readPage(
  { store, head, cache, signal }: PageSource,
  reference: PageReference,
): Promise<PointList | DamagedPage> {
  const known = cache?.get(reference);
  if (known !== undefined) return known;
  const name = pageName(head.disk, reference.epoch, reference.ordinal);
  try {
    const bytes = await getReferred(store, name, documentBytesMax, { signal });
    const page = decodePage(bytes, name, { vault: head.vault, disk: head.disk, reference });
    cache?.add(reference, page);
    return page;
  } catch (error) {
    if (isUnreadable(error)) return error;
    throw error;
  }
}

function isDamage(page: PointList | DamagedPage): page is DamagedPage {
  return page instanceof Error;
}
