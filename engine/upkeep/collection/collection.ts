/**
 * Gives back what no committed point needs, while writers and readers go on:
 *
 *     look ─► condemn ─► acknowledged by every writer ─► look again ─► give back
 *
 *   - *Look*: everything that committed points lead to is needed. Anything that cannot be read ends the collection before it deletes.
 *   - *Condemn*: for each segment a record says which of its pages nobody needs, and then `reclaim/collection` is given a new id. From then on whoever
 *     loads a catalog leaves their chunks out.
 *   - *Acknowledged*: a writer looks for a new id before each cycle, every few seconds of a long one and while none is due, forgets what is condemned, and
 *     writes the id into its head. A point that it goes on to commit refers to nothing that was condemned: what the cycle had referred to before is shipped
 *     again. A writer that does not live any more is locked out by taking its seat: if it wakes, its first write fails. So what follows does not depend on
 *     any clock.
 *   - *Look again*: what points refer to that have been committed meanwhile by writers who did not know yet is kept.
 *   - *Give back*: what goes is recorded; when the store cannot forget that any more, pages are cleared where they lie, dead segments and objects deleted.
 *
 * It can end anywhere. What is condemned costs no more than deduplication; the next collection starts anew and finds it all. What a living writer has made
 * since its newest point is left alone, as it may be of the next one: names are numbered, so it is what has a higher number than anything that points need.
 *
 * What it costs: each look reads what maps say of their points; a segment of which next to nothing can be given back costs two requests, any other one its
 * frames' tables.
 */
import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { forEachAtOnce } from "../../concurrency.ts";
import { publish } from "../../diagnostics.ts";
import { hasCode, isUnreadable, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { CallOptions } from "../../sink.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { fromHex, toHex } from "../../store/format/checksum.ts";
import { documentBytesMax } from "../../store/format/documents.ts";
import { damaged } from "../../store/format/fields.ts";
import { disksPrefix, parseSegmentName, segmentsPrefix } from "../../store/format/names.ts";
import type { DeadDocument, PageRun } from "../../store/format/reclaim.ts";
import {
  collectedName,
  collectionName,
  deadName,
  deadPrefix,
  decodeCollected,
  encodeCollected,
  encodeCollection,
  encodeDead,
  segmentOfDead,
} from "../../store/format/reclaim.ts";
import { readHead } from "../../store/points/head.ts";
import { diskNames } from "../../store/points/points.ts";
import { WriterLease } from "../../store/points/writer-lease.ts";
import { takeCollectorLease } from "../../store/segments/collector-lease.ts";
import { readDead } from "../../store/segments/dead-pages.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import { type Store, storeRegressed } from "../../store/store.ts";
import { collectionTiming } from "../../timing.ts";
import { LiveSet } from "./live-set.ts";
import { isWorthPlanning, planSegment } from "./segment-plan.ts";
import { Unfinished } from "./unfinished.ts";

export interface CollectOptions {
  /** Say what a collection would give back, and change nothing. */
  readonly dryRun?: boolean | undefined;
  /** How long to wait for writers to acknowledge, in ms. Default: 60 s. */
  readonly waitMsMax?: number | undefined;
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface CollectSummary {
  /** Bytes of pages in which chunks lie that committed points need. */
  readonly liveBytes: number;
  /** Bytes of all segments' pages, before and after. */
  readonly storedBytesBefore: number;
  readonly storedBytesAfter: number;
  /** Chunks that were found to be needed by nobody. */
  readonly condemnedChunks: number;
  readonly deletedSegments: number;
  /** Manifests, pages of points and parts of maps. */
  readonly deletedObjects: number;
  /** Disks whose writers had not acknowledged in time: nothing has been given back, and the next collection goes on. */
  readonly waitingFor: readonly string[];
  readonly elapsedMs: number;
}

interface Segment {
  readonly name: string;
  readonly sizeBytes: number;
}

/** A segment of which something was condemned. */
interface Condemned extends Segment {
  readonly isDead: boolean;
  readonly writtenBytes: number;
  readonly storedPages: number;
}

/** What is given back of a segment, as its record says. */
interface Decision {
  readonly name: string;
  /** Of the record. */
  readonly etag: string;
  /** All of it goes. */
  readonly isDead: boolean;
  /** Pages to clear. */
  readonly runs: readonly PageRun[];
  readonly dead: readonly PageRun[];
  readonly kept: number;
  /** How many pages are given back. */
  readonly pages: number;
}

/** Requests under way at once. */
const atOnce = 8;

/** Errors: COLLECTION_ACTIVE, DAMAGED (nothing has been deleted then), INTERRUPTED and those of the store. */
export async function collect(store: Store, vault: string, options: CollectOptions = {}): Promise<CollectSummary> {
  if (options.dryRun === true) return await new Collection(store, vault, options, options.signal).run();
  await using collectorLease = await takeCollectorLease(store, options.signal);
  const signal = options.signal === undefined ? collectorLease.signal : AbortSignal.any([collectorLease.signal, options.signal]);
  const summary = await new Collection(store, vault, options, signal).run();
  if (summary.waitingFor.length === 0) {
    const bytes = encodeCollected({ vault, collectedMs: Date.now() });
    await store.replace(collectedName, bytes, await store.etagOf(collectedName, { signal }), { signal }).catch((error: unknown) => {
      if (!hasCode(error, "CONDITION_FAILED")) throw error; // else another one has come to its end while this one slept
    });
  }
  return summary;
}

/**
 * When the last collection came to its end, in ms since 1970; undefined when there has been none or nobody knows. It paces those who collect by themselves,
 * and nothing else depends on it. Errors: those of the store.
 */
export async function lastCollectedMs(store: Store, vault: string, options: CallOptions): Promise<number | undefined> {
  const there = await store.find(collectedName, documentBytesMax, options);
  if (there === undefined) return undefined;
  try {
    return decodeCollected(there.bytes, collectedName, vault).collectedMs;
  } catch (error) {
    if (isUnreadable(error)) return undefined;
    throw error;
  }
}

class Collection {
  readonly #store: Store;
  readonly #vault: string;
  readonly #options: CollectOptions;
  readonly #signal: AbortSignal | undefined;
  readonly #id = toHex(randomBytes(16));
  #storedPages = 0;
  #condemnedChunks = 0;
  #condemnedPages = 0;

  constructor(store: Store, vault: string, options: CollectOptions, signal: AbortSignal | undefined) {
    this.#store = store;
    this.#vault = vault;
    this.#options = options;
    this.#signal = signal;
  }

  async run(): Promise<CollectSummary> {
    const startedAt = performance.now();
    const { liveBytes, condemned, unneeded } = await this.#lookAndCondemn();
    const summary = {
      liveBytes,
      storedBytesBefore: this.#storedPages * pageAlignmentBytes,
      condemnedChunks: this.#condemnedChunks,
    };
    const ended = (
      given: Pick<CollectSummary, "storedBytesAfter" | "deletedSegments" | "deletedObjects" | "waitingFor">,
    ): CollectSummary => ({
      ...summary,
      ...given,
      elapsedMs: Math.round(performance.now() - startedAt),
    });
    if (this.#options.dryRun === true) {
      return ended({
        storedBytesAfter: (this.#storedPages - this.#condemnedPages) * pageAlignmentBytes,
        deletedSegments: condemned.filter(({ isDead }) => isDead).length,
        deletedObjects: unneeded.length,
        waitingFor: [],
      });
    }
    if (condemned.length === 0 && unneeded.length === 0) {
      return ended({ storedBytesAfter: summary.storedBytesBefore, deletedSegments: 0, deletedObjects: 0, waitingFor: [] });
    }
    const announced = await this.#announce(await this.#store.etagOf(collectionName, { signal: this.#signal })).catch((error: unknown) => {
      throw hasCode(error, "CONDITION_FAILED") ? overtaken(collectionName, error) : error;
    });
    publish("collection.marked", {
      vault: this.#vault,
      collection: this.#id,
      condemnedChunks: this.#condemnedChunks,
      condemnedBytes: this.#condemnedPages * pageAlignmentBytes,
      condemnedObjects: unneeded.length,
    });
    const waitingFor = await this.#awaitWriters();
    if (waitingFor.length > 0) {
      return ended({ storedBytesAfter: summary.storedBytesBefore, deletedSegments: 0, deletedObjects: 0, waitingFor });
    }
    const stillLive = await this.#look();
    const decisions = await this.#decide(condemned, stillLive);
    const dead = unneeded.filter((name) => !stillLive.objects.has(name));
    await this.#settle(decisions, announced);
    await this.#each(decisions, async (decision) => await this.#giveBack(decision));
    await this.#each(dead, async (name) => await this.#store.delete(name, { signal: this.#signal }));
    const freedBytes = sum(decisions, ({ pages }) => pages) * pageAlignmentBytes;
    const summaryAfter = ended({
      storedBytesAfter: summary.storedBytesBefore - freedBytes,
      deletedSegments: decisions.filter(({ isDead }) => isDead).length,
      deletedObjects: dead.length,
      waitingFor,
    });
    const { deletedSegments, deletedObjects, elapsedMs } = summaryAfter;
    publish("collection.freed", { vault: this.#vault, collection: this.#id, freedBytes, deletedSegments, deletedObjects, elapsedMs });
    return summaryAfter;
  }

  /** A method of its own: what the first look has learned is gone from memory when the second one begins. */
  async #lookAndCondemn(): Promise<{
    readonly liveBytes: number;
    readonly condemned: readonly Condemned[];
    readonly unneeded: readonly string[];
  }> {
    // Listed first: what is written while we look is none of ours.
    const segments = await this.#listSegments();
    const objects = await this.#listObjects();
    const live = await this.#look();
    const unfinished = new Unfinished(live);
    const unneeded = objects.filter((name) => !(unfinished.has(name) || live.objects.has(name)));
    const condemned = await this.#condemn(segments, live, unfinished);
    return { liveBytes: live.pageCount * pageAlignmentBytes, condemned, unneeded };
  }

  async #look(): Promise<LiveSet> {
    return await LiveSet.of({ store: this.#store, vault: this.#vault, signal: this.#signal });
  }

  async #listSegments(): Promise<Segment[]> {
    const segments: Segment[] = [];
    for await (const { name, sizeBytes } of this.#store.list(segmentsPrefix, { signal: this.#signal })) {
      if (parseSegmentName(name) !== undefined) segments.push({ name, sizeBytes });
    }
    return segments;
  }

  /** Names of everything that a head can lead to. */
  async #listObjects(): Promise<string[]> {
    const objects: string[] = [];
    for await (const { name } of this.#store.list(disksPrefix, { signal: this.#signal })) {
      if (/^disks\/[^/]+\/(?:points|history|map)\//.test(name)) objects.push(name);
    }
    return objects;
  }

  /** Records of each segment what nobody needs of it. Returns the segments that have such pages. */
  async #condemn(segments: readonly Segment[], live: LiveSet, unfinished: Unfinished): Promise<Condemned[]> {
    const known = new Set(segments.map(({ name }) => name));
    for (const name of live.pages.keys()) {
      // One that has been made and committed since they were listed is there, and none of ours.
      if (known.has(name) || (await this.#store.etagOf(name, { signal: this.#signal })) !== undefined) continue;
      throw damaged(name, "the store does not hold it any more");
    }
    const condemned: Condemned[] = [];
    await this.#each(segments, async (segment) => {
      const { name } = segment;
      const [{ writtenBytes }, recorded] = await Promise.all([
        this.#store.statPages(name, { signal: this.#signal }),
        readDead(this.#store, this.#vault, deadName(name), { signal: this.#signal }),
      ]);
      const { dead: gone = [], condemned: condemnedBefore = [], clearing = false, kept = 0 } = recorded?.document ?? {};
      const pages = { live: live.pages.get(name) ?? new PageSet(), dead: PageSet.ofRuns(gone) };
      const stored = writtenBytes / pageAlignmentBytes - pages.dead.count();
      const isDecided = condemnedBefore.length === 0 && !clearing;
      if (unfinished.has(name) || (isDecided && !isWorthPlanning(name, { stored, kept }, pages))) {
        this.#storedPages += stored;
        return;
      }
      const plan = await planSegment(this.#store, fromHex(this.#vault), { ...segment, writtenBytes }, pages, { signal: this.#signal });
      if (plan.fault !== undefined) this.#noticeDamagedFrame(name, plan.fault);
      this.#storedPages += plan.storedPages;
      this.#condemnedChunks += plan.condemnedChunks;
      this.#condemnedPages += pagesIn(plan.condemned);
      if (plan.condemned.length === 0 && !plan.isDead && isDecided) return;
      condemned.push({ ...segment, isDead: plan.isDead, writtenBytes, storedPages: plan.storedPages });
      if (this.#options.dryRun === true) return;
      await this.#record(name, recorded?.etag, { dead: gone, condemned: plan.condemned, clearing, kept });
    });
    if (this.#options.dryRun !== true) await this.#removeOrphans(known);
    return condemned;
  }

  #noticeDamagedFrame(segment: string, { message }: TidemarkError): void {
    const fate = `a collection keeps what lies behind it until no point needs anything of ${segment}, and then deletes the segment`;
    this.#options.onNotice?.({ code: "SEGMENT_DAMAGED", message: `${message}. No point needs that to be read; ${fate}` });
  }

  /** Records of segments that are gone. */
  async #removeOrphans(segments: ReadonlySet<string>): Promise<void> {
    const orphans: string[] = [];
    for await (const { name } of this.#store.list(deadPrefix, { signal: this.#signal })) {
      if (!segments.has(segmentOfDead(name))) orphans.push(name);
    }
    await this.#each(orphans, async (name) => {
      // Asked again, as the list is old when we have slept: a successor may have written this record. A segment that is gone does not come again.
      const isGone = (await this.#store.etagOf(segmentOfDead(name), { signal: this.#signal })) === undefined;
      if (isGone) await this.#store.delete(name, { signal: this.#signal });
    });
  }

  /** Has every writer look at the records before it goes on. Returns the ETag of what says so. Errors: CONDITION_FAILED. */
  async #announce(expected: string | undefined): Promise<string> {
    const bytes = encodeCollection({ vault: this.#vault, collection: this.#id, startedMs: Date.now() });
    return await this.#store.replace(collectionName, bytes, expected, { signal: this.#signal });
  }

  /** Returns the disks whose writers live and have not acknowledged in time. */
  async #awaitWriters(): Promise<string[]> {
    const waitMsMax = this.#options.waitMsMax ?? collectionTiming.waitMsMax;
    const startedAt = performance.now();
    // Listed now: a writer may have come with a new disk while we looked. One that comes from now on learns of the collection.
    for (let waiting: readonly string[] = await diskNames(this.#store, this.#signal); ; ) {
      const left: string[] = [];
      for (const disk of waiting) if (!(await this.#isHarmless(disk))) left.push(disk);
      if (left.length === 0 || performance.now() - startedAt >= waitMsMax) return left;
      waiting = left;
      await delay(collectionTiming.headPollMs, undefined, { signal: this.#signal }).catch(() => undefined);
      throwIfAborted(this.#signal);
    }
  }

  /** Whether nobody who writes this disk can commit any more what refers to anything condemned. */
  async #isHarmless(disk: string): Promise<boolean> {
    const { head } = await readHead(this.#store, this.#vault, disk, this.#signal);
    // Whoever takes the seat from now on loads a catalog, or refreshes the one that it has, afterwards.
    if (head.writer === null || head.collection === this.#id) return true;
    const onNotice = this.#options.onNotice ?? (() => undefined);
    try {
      const writerLease = await WriterLease.take({ store: this.#store, vault: this.#vault, disk, onNotice, signal: this.#signal });
      await writerLease.release();
      return true;
    } catch (error) {
      if (hasCode(error, "WRITER_ACTIVE")) return false;
      throw error;
    }
  }

  /** Records for each segment what is given back of it. */
  async #decide(condemned: readonly Condemned[], live: LiveSet): Promise<Decision[]> {
    const decisions: Decision[] = [];
    await this.#each(condemned, async (segment) => {
      const { name, isDead, storedPages } = segment;
      const recorded = await readDead(this.#store, this.#vault, deadName(name), { signal: this.#signal });
      // Another collection, which does not know that its writers have acknowledged this one: it has the say now.
      if (recorded?.document.collection !== this.#id) throw overtaken(name);
      const { etag, document } = recorded;
      const needed = live.pages.get(name);
      if (isDead && needed === undefined) {
        decisions.push({ name, etag, isDead, runs: [], dead: document.dead, kept: 0, pages: storedPages });
        return;
      }
      // Asked anew, because a frame of which something is needed after all keeps its header and its table.
      const pages = { live: needed ?? new PageSet(), dead: PageSet.ofRuns(document.dead) };
      const plan = await planSegment(this.#store, fromHex(this.#vault), segment, pages, { signal: this.#signal });
      const mayGo = PageSet.ofRuns(document.condemned);
      const going = plan.condemned.flatMap((run) => within(run, mayGo));
      const dead = PageSet.ofRuns([...document.dead, ...going]).runs();
      const kept = plan.storedPages - pagesIn(going) - pages.live.count();
      const written = await this.#record(name, etag, { dead, condemned: [], clearing: true, kept });
      // What an interrupted collection had begun to clear may still be there.
      decisions.push({ name, etag: written, isDead: false, runs: document.clearing ? dead : going, dead, kept, pages: pagesIn(going) });
    });
    return decisions;
  }

  /**
   * Waits until the store cannot forget the records any more, nor anything that is older: a store that went back behind them would list points again that
   * need what is given back. That it had not gone back before, behind what the first look saw, is told by what was `announced` then. Errors: STORE_REGRESSED.
   */
  async #settle(decisions: readonly Decision[], announced: string): Promise<void> {
    const { settlingMs } = this.#store.sink.capabilities;
    if (settlingMs === 0) return;
    const mark = await this.#announce(announced).catch((error: unknown) => {
      throw hasCode(error, "CONDITION_FAILED") ? forgotten(error) : error;
    });
    await delay(settlingMs, undefined, { signal: this.#signal }).catch(() => undefined);
    throwIfAborted(this.#signal);
    const there = new Map<string, string>();
    for await (const { name, etag } of this.#store.list(deadPrefix, { signal: this.#signal })) there.set(name, etag);
    const isThere = decisions.every(({ name, etag }) => there.get(deadName(name)) === etag);
    if (isThere && (await this.#store.etagOf(collectionName, { signal: this.#signal })) === mark) return;
    throw forgotten();
  }

  async #giveBack({ name, etag, isDead, runs, dead, kept }: Decision): Promise<void> {
    const options = { signal: this.#signal };
    if (isDead) {
      await this.#store.delete(name, options);
      await this.#store.delete(deadName(name), options);
      return;
    }
    for (const { from, end } of runs) {
      await this.#store.clearPages(name, from * pageAlignmentBytes, (end - from) * pageAlignmentBytes, options);
    }
    await this.#record(name, etag, { dead, condemned: [], clearing: false, kept });
  }

  /** Returns the record's ETag. Errors: COLLECTION_ACTIVE when another collection has written it since `expected`. */
  async #record(
    segment: string,
    expected: string | undefined,
    state: Pick<DeadDocument, "dead" | "condemned" | "clearing" | "kept">,
  ): Promise<string> {
    const bytes = encodeDead({ vault: this.#vault, collection: this.#id, segment, ...state });
    try {
      return await this.#store.replace(deadName(segment), bytes, expected, { signal: this.#signal });
    } catch (error) {
      throw hasCode(error, "CONDITION_FAILED") ? overtaken(segment, error) : error;
    }
  }

  async #each<Item>(items: readonly Item[], work: (item: Item) => Promise<void>): Promise<void> {
    await forEachAtOnce(items, atOnce, work, this.#signal);
  }
}

function forgotten(cause?: unknown): TidemarkError {
  return storeRegressed(collectionName, "the store has forgotten what this collection had written down", {
    remedy: "run the command again: nothing has been given back",
    cause,
  });
}

function overtaken(object: string, cause?: unknown): TidemarkError {
  return new TidemarkError("COLLECTION_ACTIVE", "another collection has taken over while this one slept", {
    remedy: "let it finish",
    detail: { object },
    cause,
  });
}

/** The parts of `run` that are in `set`. */
function within(run: PageRun, set: PageSet): PageRun[] {
  const parts: PageRun[] = [];
  for (let page = run.from; page < run.end; ) {
    const end = Math.min(set.endOfRun(page), run.end);
    if (end > page) parts.push({ from: page, end });
    page = Math.max(end, page + 1);
  }
  return parts;
}

function pagesIn(runs: readonly PageRun[]): number {
  return sum(runs, ({ from, end }) => end - from);
}

function sum<Item>(items: Iterable<Item>, count: (item: Item) => number): number {
  let total = 0;
  for (const item of items) total += count(item);
  return total;
}
