/**
 * Garbage collection of a vault: frees what no committed point needs, while writers and readers go
 * on. It is concurrent mark and sweep; the command is `collect`.
 *
 *     mark ─► condemn ─► acknowledged by every writer ─► mark again ─► free
 *
 * - *Mark*: everything that a committed point leads to is needed. An object that cannot be read
 *   ends the collection before it deletes anything.
 * - *Condemn*: for each segment a record lists the pages that no point needs; then
 *   `reclaim/collection` gets a new id. A catalog that is loaded from then on leaves the chunks in
 *   these pages out.
 * - *Acknowledged*: a writer looks for a new id before each cycle, every few seconds of a long
 *   cycle, and while none is due. It forgets what is condemned and writes the id into its head. A
 *   point that it commits afterwards refers to nothing that was condemned: what the cycle had
 *   referred to before is shipped again. A writer that has died is locked out by taking its lease,
 *   and its first write fails if it wakes. No clock is involved.
 * - *Mark again*: what is needed by points that were committed meanwhile, by writers that had not
 *   acknowledged yet, is kept.
 * - *Free*: what goes is recorded. When the store cannot forget that record any more, pages are
 *   cleared where they lie, and dead segments and objects are deleted.
 *
 * A collection can end at any call. What is condemned costs no more than lost deduplication, and
 * the next collection starts anew. What a living writer has made since its newest point is left
 * alone (see `unfinished.ts`). A segment with a frame that cannot be read is kept from that frame
 * on.
 *
 * Invariant: nothing is freed that a committed point, a reader or an unfinished cycle may still
 * use.
 *
 * Cost: each mark reads the maps of all points. A segment of which almost nothing can be freed
 * costs two requests, any other the tables of its frames.
 */
import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { forEachAtOnce } from "../../concurrency.ts";
import { publish } from "../../diagnostics.ts";
import { hasCode, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { NoticeOptions } from "../../notice.ts";
import { shellWord } from "../../shell-word.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { fromHex, toHex } from "../../store/format/checksum.ts";
import { disksPrefix, parseSegmentName, segmentDiskPrefix, segmentsPrefix } from "../../store/format/names.ts";
import type { DeadDocument, PageRun } from "../../store/format/reclaim.ts";
import {
  collectionName,
  deadName,
  deadPrefix,
  encodeCollection,
  encodeDead,
  segmentOfDead,
} from "../../store/format/reclaim.ts";
import { takeCollectorLease } from "../../store/segments/collector-lease.ts";
import { readDead } from "../../store/segments/dead-pages.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import { type Store, storeRegressed } from "../../store/store.ts";
import { collectionTiming } from "../../timing.ts";
import { awaitWriters } from "./acknowledgement.ts";
import { noteCollected } from "./collected.ts";
import { LiveSet } from "./live-set.ts";
import { storedPages } from "./segment-bytes.ts";
import { isWorthPlanning, planSegment } from "./segment-plan.ts";
import { Unfinished } from "./unfinished.ts";

/** How `Vault.collect` works. */
export interface CollectOptions extends NoticeOptions {
  /** Report what a collection would free, and change nothing. */
  readonly dryRun?: boolean | undefined;
  /** How long to wait for writers to acknowledge, in ms. Default: 60 s. */
  readonly waitMsMax?: number | undefined;
}

/** What a garbage collection found and freed. */
export interface CollectSummary {
  /** Bytes of pages in which chunks lie that committed points need. */
  readonly liveBytes: number;
  /** Bytes of all segments' pages, before and after. */
  readonly storedBytesBefore: number;
  readonly storedBytesAfter: number;
  /** Chunks that no committed point needs. */
  readonly condemnedChunks: number;
  /** Segments that were deleted as a whole. */
  readonly deletedSegments: number;
  /** Manifests, pages of points, and leaves and roots of maps that were deleted. */
  readonly deletedObjects: number;
  /** Disks whose writers did not acknowledge in time: nothing was freed. */
  readonly waitingFor: readonly string[];
  readonly elapsedMs: number;
}

interface ListedSegment {
  readonly name: string;
  readonly sizeBytes: number;
}

/** A segment of which something was condemned. */
interface CondemnedSegment extends ListedSegment {
  /** No point needs anything of it. */
  readonly isDead: boolean;
  /** How far it has been written. */
  readonly writtenBytes: number;
  readonly storedPages: number;
}

/** What is freed of a segment, as its record says. */
interface FreeingPlan {
  readonly name: string;
  /** Of the record. */
  readonly etag: string;
  /** All of it goes. */
  readonly isDead: boolean;
  /** Pages to clear. */
  readonly runs: readonly PageRun[];
  readonly dead: readonly PageRun[];
  readonly kept: number;
  /** How many pages are freed. */
  readonly pages: number;
}

/** Requests under way at once. */
const atOnce = 8;

/**
 * Runs one garbage collection.
 *
 * @throws `COLLECTION_ACTIVE` while another one runs; `DAMAGED` and `FORMAT_UNSUPPORTED` when
 * something of a committed point cannot be read, and then nothing has been deleted;
 * `STORE_REGRESSED` and `INTERRUPTED`; and the errors of the store.
 */
export async function collect(store: Store, vault: string, options: CollectOptions = {}): Promise<CollectSummary> {
  if (options.dryRun === true) return await new Collection(store, vault, options, options.signal).run();
  await using collectorLease = await takeCollectorLease(store, options.signal);
  const signal =
    options.signal === undefined ? collectorLease.signal : AbortSignal.any([collectorLease.signal, options.signal]);
  const summary = await new Collection(store, vault, options, signal).run();
  if (summary.waitingFor.length === 0) await noteCollected(store, vault, signal);
  return summary;
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
      return ended({
        storedBytesAfter: summary.storedBytesBefore,
        deletedSegments: 0,
        deletedObjects: 0,
        waitingFor: [],
      });
    }
    const announced = await this.#announce(await this.#store.etagOf(collectionName, { signal: this.#signal })).catch(
      (error: unknown) => {
        throw hasCode(error, "CONDITION_FAILED") ? overtaken(collectionName, error) : error;
      },
    );
    publish("collection.marked", {
      vault: this.#vault,
      collection: this.#id,
      condemnedChunks: this.#condemnedChunks,
      condemnedBytes: this.#condemnedPages * pageAlignmentBytes,
      condemnedObjects: unneeded.length,
    });
    const waitingFor = await awaitWriters({
      store: this.#store,
      vault: this.#vault,
      collection: this.#id,
      waitMsMax: this.#options.waitMsMax ?? collectionTiming.waitMsMax,
      onNotice: this.#options.onNotice ?? (() => undefined),
      signal: this.#signal,
    });
    if (waitingFor.length > 0) {
      return ended({ storedBytesAfter: summary.storedBytesBefore, deletedSegments: 0, deletedObjects: 0, waitingFor });
    }
    const stillLive = await this.#look();
    const decisions = await this.#decide(condemned, stillLive);
    const dead = unneeded.filter((name) => !stillLive.objects.has(name));
    await this.#settle(decisions, announced);
    await this.#each(decisions, async (decision) => await this.#free(decision));
    await this.#each(dead, async (name) => await this.#store.delete(name, { signal: this.#signal }));
    const freedBytes = sum(decisions, ({ pages }) => pages) * pageAlignmentBytes;
    const summaryAfter = ended({
      storedBytesAfter: summary.storedBytesBefore - freedBytes,
      deletedSegments: decisions.filter(({ isDead }) => isDead).length,
      deletedObjects: dead.length,
      waitingFor,
    });
    const { deletedSegments, deletedObjects, elapsedMs } = summaryAfter;
    publish("collection.freed", {
      vault: this.#vault,
      collection: this.#id,
      freedBytes,
      deletedSegments,
      deletedObjects,
      elapsedMs,
    });
    return summaryAfter;
  }

  /** A method of its own: the first live set is gone from memory when the second one is built. */
  async #lookAndCondemn(): Promise<{
    readonly liveBytes: number;
    readonly condemned: readonly CondemnedSegment[];
    readonly unneeded: readonly string[];
  }> {
    // Listed first: what is written while points are read is not freed by this collection.
    const segments = await this.#listSegments();
    const objects = await this.#listObjects();
    const live = await this.#look();
    const unfinished = new Unfinished(live);
    const unneeded = objects.filter((name) => !(unfinished.has(name) || live.objects.has(name)));
    const condemned = await this.#condemn(segments, live, unfinished);
    for (const [disk, { points, pages }] of live.heads) {
      const isUnfinished = ({ name }: ListedSegment): boolean =>
        name.startsWith(segmentDiskPrefix(disk)) && unfinished.has(name);
      if (points.length + pages.length === 0 && segments.some(isUnfinished)) this.#noticeUnfinished(disk);
    }
    return { liveBytes: live.pageCount * pageAlignmentBytes, condemned, unneeded };
  }

  async #look(): Promise<LiveSet> {
    return await LiveSet.of({ store: this.#store, vault: this.#vault, signal: this.#signal });
  }

  async #listSegments(): Promise<ListedSegment[]> {
    const segments: ListedSegment[] = [];
    for await (const { name, sizeBytes } of this.#store.list(segmentsPrefix, { signal: this.#signal })) {
      if (parseSegmentName(name) !== undefined) segments.push({ name, sizeBytes });
    }
    return segments;
  }

  /** Names of everything that a head can lead to. */
  async #listObjects(): Promise<string[]> {
    const names = await this.#store.names(disksPrefix, { signal: this.#signal });
    return names.filter((name) => /^disks\/[^/]+\/(?:points|history|map)\//.test(name));
  }

  /**
   * Records for each segment the pages that no point needs. Returns the segments that have such
   * pages.
   */
  async #condemn(
    segments: readonly ListedSegment[],
    live: LiveSet,
    unfinished: Unfinished,
  ): Promise<CondemnedSegment[]> {
    const known = new Set(segments.map(({ name }) => name));
    for (const name of live.pages.keys()) {
      // A segment that was made and committed since they were listed exists, and is not freed by
      // this collection.
      if (known.has(name) || (await this.#store.etagOf(name, { signal: this.#signal })) !== undefined) continue;
      throw live.segmentGone(name);
    }
    const condemned: CondemnedSegment[] = [];
    await this.#each(segments, async (segment) => {
      const { name } = segment;
      const [{ writtenBytes }, recorded] = await Promise.all([
        this.#store.statPages(name, { signal: this.#signal }),
        readDead(this.#store, this.#vault, deadName(name), { signal: this.#signal }),
      ]);
      const { dead: gone = [], condemned: condemnedBefore = [], clearing = false, kept = 0 } = recorded?.document ?? {};
      const pages = { live: live.pages.get(name) ?? new PageSet(), dead: PageSet.ofRuns(gone) };
      const stored = storedPages(writtenBytes, gone);
      const isDecided = condemnedBefore.length === 0 && !clearing;
      if (unfinished.has(name) || (isDecided && !isWorthPlanning(name, { stored, kept }, pages))) {
        this.#storedPages += stored;
        return;
      }
      const plan = await planSegment(this.#store, fromHex(this.#vault), { ...segment, writtenBytes }, pages, {
        signal: this.#signal,
      });
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

  #noticeUnfinished(disk: string): void {
    const fact = `disk ${JSON.stringify(disk)} has no point, and what its writer has stored is kept`;
    const named = `--disk ${shellWord(disk)}`;
    this.#options.onNotice?.({
      code: "DISK_UNFINISHED",
      message:
        `${fact}. If no first replication is under way, run \`tidemark replicate SOURCE ${named}\` again, ` +
        `or \`tidemark disks remove ${named}\` and then \`tidemark collect\``,
    });
  }

  #noticeDamagedFrame(segment: string, { message }: TidemarkError): void {
    const fate = `a collection keeps what lies behind it until no point needs anything of ${segment}, and then deletes the segment`;
    this.#options.onNotice?.({
      code: "SEGMENT_DAMAGED",
      message: `${message}. No point needs that to be read; ${fate}`,
    });
  }

  /** Records of segments that are gone. */
  async #removeOrphans(segments: ReadonlySet<string>): Promise<void> {
    const records = await this.#store.names(deadPrefix, { signal: this.#signal });
    const orphans = records.filter((name) => !segments.has(segmentOfDead(name)));
    await this.#each(orphans, async (name) => {
      // Asked again: if this process slept, the list is old and a successor may have written this
      // record.
      const isGone = (await this.#store.etagOf(segmentOfDead(name), { signal: this.#signal })) === undefined;
      if (isGone) await this.#store.delete(name, { signal: this.#signal });
    });
  }

  /**
   * Makes every writer read the records before it goes on. Returns the ETag of the announcement.
   * Errors: CONDITION_FAILED.
   */
  async #announce(expected: string | undefined): Promise<string> {
    const bytes = encodeCollection({ vault: this.#vault, collection: this.#id, startedMs: Date.now() });
    return await this.#store.replace(collectionName, bytes, expected, { signal: this.#signal });
  }

  /** Records for each segment what is freed of it. */
  async #decide(condemned: readonly CondemnedSegment[], live: LiveSet): Promise<FreeingPlan[]> {
    const decisions: FreeingPlan[] = [];
    await this.#each(condemned, async (segment) => {
      const { name, isDead, storedPages } = segment;
      const recorded = await readDead(this.#store, this.#vault, deadName(name), { signal: this.#signal });
      // Another collection has written the record, without knowing that writers acknowledged this
      // one: it decides now.
      if (recorded?.document.collection !== this.#id) throw overtaken(name);
      const { etag, document } = recorded;
      const needed = live.pages.get(name);
      if (isDead && needed === undefined) {
        decisions.push({ name, etag, isDead, runs: [], dead: document.dead, kept: 0, pages: storedPages });
        return;
      }
      // Planned anew: a frame of which a chunk is needed after all keeps its header and its table.
      const pages = { live: needed ?? new PageSet(), dead: PageSet.ofRuns(document.dead) };
      const plan = await planSegment(this.#store, fromHex(this.#vault), segment, pages, { signal: this.#signal });
      const mayGo = PageSet.ofRuns(document.condemned);
      const going = plan.condemned.flatMap((run) => within(run, mayGo));
      const dead = PageSet.ofRuns([...document.dead, ...going]).runs();
      const kept = plan.storedPages - pagesIn(going) - pages.live.count();
      const written = await this.#record(name, etag, { dead, condemned: [], clearing: true, kept });
      // What an interrupted collection had begun to clear may still be there.
      decisions.push({
        name,
        etag: written,
        isDead: false,
        runs: document.clearing ? dead : going,
        dead,
        kept,
        pages: pagesIn(going),
      });
    });
    return decisions;
  }

  /**
   * Waits until the store cannot forget the records any more, nor anything older: a store that went
   * back behind them would list points again that need what is freed. The announcement tells that
   * the store did not go back behind the first mark before. Errors: STORE_REGRESSED.
   */
  async #settle(decisions: readonly FreeingPlan[], announced: string): Promise<void> {
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

  async #free({ name, etag, isDead, runs, dead, kept }: FreeingPlan): Promise<void> {
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

  /**
   * Returns the record's ETag. Errors: COLLECTION_ACTIVE when another collection has written it
   * since `expected`.
   */
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
  return storeRegressed(collectionName, "the store has forgotten the records of this collection", {
    remedy: "run `tidemark collect` again; nothing has been freed",
    cause,
  });
}

function overtaken(object: string, cause?: unknown): TidemarkError {
  return new TidemarkError("COLLECTION_ACTIVE", "another collection has taken over while this one slept", {
    remedy: "wait until it ends, then run `tidemark collect` again",
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
