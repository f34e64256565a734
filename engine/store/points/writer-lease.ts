/**
 * Writer lease: fencing, so that a disk has at most one writer. A writer that lost the lease cannot
 * change anything any more.
 *
 * Three things decide it, each at the store:
 *   - the lease on the disk's head keeps other writers away while the holder lives; it ends by the
 *     store's clock;
 *   - the epoch in the head (the fencing token) is raised by compare-and-swap when the lease is
 *     taken, and decides between two writers that both got the lease;
 *   - the sequence numbers of the former writer's segments are raised to the new epoch before that
 *     swap, so its late page writes fail.
 *
 * A commit writes in this order, so that a store which went back in time refuses it:
 *
 *     frames, manifest  →  mark (swap the head for its equal)  →  prove what was written, by ETag  →  swap the head: committed
 *
 * Invariant: only the holder of the lease swaps the head, and only for one whose pages and
 * manifests are durable and proved.
 *
 * Cost: two puts of the head a point, one lease renewal each 15 s. `take-over.ts` says how the
 * lease is taken.
 */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { publish } from "../../diagnostics.ts";
import { hasCode, isGone, TidemarkError, throwIfAborted } from "../../errors.ts";
import { leaseTiming, takeOverTiming } from "../../timing.ts";
import { toHex } from "../format/checksum.ts";
import type { HeadDocument, PointList, PointRecord, WriterRecord } from "../format/documents.ts";
import { countPoints, decodeHead, encodeHead, headPointsMax } from "../format/documents.ts";
import { manifestName, manifestsPrefix, parseDiskObject } from "../format/names.ts";
import { HeldLease, type LeasePlace } from "../held-lease.ts";
import { unknownOutcomesMax, unreachable } from "../store.ts";
import { headRegressed, nextEpoch, readHead, readOrCreateHead, type StoredHead } from "./head.ts";
import type { PageCache, Room, RoomOptions } from "./history.ts";
import { makeRoom, withoutPoints } from "./history.ts";
import { identifyProcess, liveSessions } from "./process-identity.ts";
import {
  handBack,
  leasePlaceOf,
  takeHeadLease,
  takeOver,
  type WriterLeaseOptions,
  writerActive,
  writerLeaseLost,
} from "./take-over.ts";

/**
 * Asks the store whether it still holds the objects `written` (name → ETag). Throws STORE_REGRESSED
 * when it does not.
 */
type Prove = (written: ReadonlyMap<string, string>) => Promise<void>;

export class WriterLease implements AsyncDisposable {
  readonly #options: WriterLeaseOptions;
  readonly #writer: WriterRecord;
  readonly #lease: HeldLease;
  #head: HeadDocument;
  #etag: string;
  /** The head's points with room for another one, from the mark to the commit. */
  #room: Room | undefined;
  #pagesNamed = 0;

  private constructor(
    options: WriterLeaseOptions,
    writer: WriterRecord,
    place: LeasePlace,
    { head, etag }: StoredHead,
  ) {
    this.#options = options;
    this.#writer = writer;
    this.#head = head;
    this.#etag = etag;
    this.#lease = new HeldLease(options.store, place, async (cause, signal) => await this.#regain(cause, signal));
  }

  /**
   * Takes the disk over, creating it if it is new. Waits a few seconds for a writer that is just
   * leaving.
   *
   * @throws WRITER_ACTIVE, DAMAGED, FORMAT_UNSUPPORTED, INTERRUPTED.
   */
  static async take(options: WriterLeaseOptions): Promise<WriterLease> {
    const { store, vault, disk, signal } = options;
    const identity = await identifyProcess();
    const writer: WriterRecord = { ...identity, session: toHex(randomBytes(16)) };
    const deadline = Date.now() + takeOverTiming.waitMsMax;
    let known: number | undefined;
    for (;;) {
      throwIfAborted(signal);
      const found = await readOrCreateHead(store, vault, disk, signal);
      known ??= Math.max(await store.onHead(found.head), options.epochAbove ?? 0);
      const epoch = nextEpoch(found.head, known);
      const place = leasePlaceOf(vault, disk, identity.machine, epoch);
      if (!(await takeHeadLease(options, found.head, identity.machine, place))) {
        if (Date.now() > deadline) throw writerActive(disk, found.head.writer);
        await delay(takeOverTiming.pollMs, undefined, { signal }).catch(() => undefined);
        continue;
      }
      let taken: StoredHead | undefined;
      try {
        taken = await takeOver(options, found, epoch, writer, place);
      } finally {
        if (taken === undefined) await handBack(options, epoch, writer, place);
      }
      if (taken !== undefined) return new WriterLease(options, writer, place, taken);
      if (Date.now() > deadline) throw writerActive(disk, (await readHead(store, vault, disk, signal)).head.writer);
    }
  }

  /** The head as this writer last read or swapped it. */
  get head(): HeadDocument {
    return this.#head;
  }

  /** The newest committed point. */
  get newest(): PointRecord | undefined {
    return this.#head.points.at(-1);
  }

  /** The fencing number of this writer. */
  get epoch(): number {
    return this.#head.epoch;
  }

  /** From the next mark or commit on the head says that this writer has acted on `collection`. */
  acknowledge(collection: string | null): void {
    this.#head = { ...this.#head, collection };
  }

  /** Writes at once what has been acknowledged. Errors: SEAT_LOST, STORE_REGRESSED. */
  async publish(): Promise<void> {
    await this.#markHead();
  }

  /** Aborts, with SEAT_LOST as its reason, once the lease is certainly lost. */
  get signal(): AbortSignal {
    return this.#lease.signal;
  }

  /**
   * Makes sure that the lease is still held, asking the store if its last answer is old. Errors:
   * SEAT_LOST, STORE_REGRESSED.
   */
  async assertHeld(): Promise<void> {
    await this.#lease.assertHeld();
  }

  /**
   * The commit: swaps the head for one that lists `point` too. To be called after `mark`, and after
   * the proof of the pages that it wrote.
   *
   * @param leave - with the same swap, the head says that the disk has no writer any more.
   * @param prove - called again before every repetition, because a connection that broke may have
   * ended at a store that went back in time.
   * @throws SEAT_LOST, STORE_REGRESSED, STORE_UNREACHABLE.
   */
  async commit(point: PointRecord, leave: boolean, prove: () => Promise<void>): Promise<void> {
    const { pages, points } = this.#room ?? this.#head;
    assert(points.length < headPointsMax, "a mark made room in the head");
    const next: HeadDocument = {
      ...this.#head,
      writer: leave ? null : this.#writer,
      pages,
      points: [...points, point],
    };
    const about = { disk: this.#options.disk, epoch: this.epoch, sequence: point.sequence, point: point.id };
    const startedMs = performance.now();
    let attempts = 0;
    const resolved = (failure?: unknown): void => {
      const outcome = failure === undefined ? "committed" : "failed";
      const code = failure instanceof TidemarkError ? failure.code : undefined;
      publish("commit.resolved", { ...about, outcome, code, attempts, elapsedMs: performance.now() - startedMs });
    };
    try {
      await this.#swap(
        next,
        (there) => there.points.some(({ id }) => id === point.id),
        prove,
        (attempt) => {
          attempts = attempt;
          publish("commit.tried", { ...about, attempt });
        },
      );
    } catch (error) {
      resolved(error);
      throw error;
    }
    resolved();
  }

  /**
   * Drops points: swaps the head for one without them, in the order of a commit. Returns how many
   * points have gone: those in a page that cannot be read stay. After an error it is not known
   * whether they have gone, and the lease is to be released.
   *
   * @throws SEAT_LOST, STORE_REGRESSED, STORE_UNREACHABLE.
   */
  async drop(
    sequences: readonly number[],
    options: {
      readonly leave: boolean;
      readonly prove: Prove;
      readonly cache?: PageCache | undefined;
      readonly signal?: AbortSignal | undefined;
    },
  ): Promise<number> {
    const { leave, prove, cache, signal } = options;
    const before = this.#head;
    this.#room = undefined;
    const { pages, points, written } = await withoutPoints({ ...this.#roomOptions(signal), cache }, sequences);
    const next: HeadDocument = { ...before, writer: leave ? null : this.#writer, pages, points };
    await this.#relist(next, written, prove, signal);
    return countPoints(before) - countPoints(next);
  }

  /**
   * Drops every point, the newest too: swaps the head for one that lists none. Errors: as of
   * `drop`.
   */
  async dropAll(options: {
    readonly leave: boolean;
    readonly prove: Prove;
    readonly signal?: AbortSignal | undefined;
  }): Promise<void> {
    this.#room = undefined;
    const next: HeadDocument = { ...this.#head, writer: options.leave ? null : this.#writer, pages: [], points: [] };
    await this.#relist(next, new Map(), options.prove, options.signal);
  }

  /**
   * Swaps the head for one that lists its points anew, after pages of points have been lost, and
   * leaves the disk without a writer. `list` ends with the newest point. Errors: as of `drop`.
   */
  async relist(list: Room, prove: Prove): Promise<void> {
    assert(list.points.at(-1)?.id === this.newest?.id, "the newest point stays");
    this.#room = undefined;
    await this.#relist(
      { ...this.#head, writer: null, pages: list.pages, points: list.points },
      list.written,
      prove,
      undefined,
    );
  }

  async #relist(
    next: HeadDocument,
    written: ReadonlyMap<string, string>,
    prove: Prove,
    signal: AbortSignal | undefined,
  ): Promise<void> {
    await this.#markHead();
    await prove(written);
    throwIfAborted(signal);
    await this.#swap(
      next,
      (there) => there.epoch === next.epoch && namesOf(there) === namesOf(next),
      async () => {
        await prove(written);
      },
    );
  }

  /**
   * Swaps the head for `next`. After an answer was lost, `isDone` tells from the head that is there
   * whether it has been swapped.
   */
  async #swap(
    next: HeadDocument,
    isDone: (there: HeadDocument) => boolean,
    prove: () => Promise<void>,
    onAttempt?: (attempt: number) => void,
  ): Promise<void> {
    const { name, leaseId } = this.#lease.place;
    const bytes = encodeHead(next);
    decodeHead(bytes, name, this.#head); // a head that no reader can decode would hide every point
    let failure: unknown;
    for (let attempt = 1; attempt <= unknownOutcomesMax; attempt += 1) {
      throwIfAborted(this.signal);
      onAttempt?.(attempt);
      try {
        // The caller's signal does not interrupt a swap: it is short, and its outcome would not be
        // known.
        this.#etag = await this.#options.store.put(name, bytes, { ifMatch: this.#etag, leaseId });
        this.#head = next;
        this.#room = undefined;
        return;
      } catch (error) {
        failure = error;
        if (!isUndecidedPut(error)) throw error;
        if (await this.#isSwapped(next, isDone, error)) return;
        if (error.code === "LEASE_LOST") await this.#lease.regain(error);
        await prove();
      }
    }
    throw unreachable(`the commit to ${name}`, failure);
  }

  /**
   * Swaps the head for its equal, so that its ETag is younger than everything written before: only
   * a store that still has all that can accept the commit. If the head is full, pages are written
   * first to make room in it. Returns the names of these pages with their ETags: the commit refers
   * to them, so they have to be proved as well. Errors: SEAT_LOST, STORE_REGRESSED.
   */
  async mark(signal?: AbortSignal): Promise<ReadonlyMap<string, string>> {
    this.#room = await makeRoom(this.#roomOptions(signal));
    await this.#markHead();
    return this.#room.written;
  }

  async #markHead(): Promise<void> {
    const { store, disk } = this.#options;
    const { name, leaseId } = this.#lease.place;
    let failure: unknown;
    for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
      throwIfAborted(this.signal);
      try {
        this.#etag = await store.put(name, encodeHead(this.#head), { ifMatch: this.#etag, leaseId });
        return;
      } catch (error) {
        failure = error;
        if (!isUndecidedPut(error)) throw error;
        const { head, etag } = await this.#readOwnHead(error);
        if (head.epoch > this.epoch) throw this.#lose(error);
        // A store that went back may show this writer's own head from before its last commits.
        const isOurs = head.writer?.session === this.#writer.session && head.points.at(-1)?.id === this.newest?.id;
        if (!isOurs) throw headRegressed(disk, error);
        // An earlier try may have got through, or still will: a clear answer to a later one makes
        // it void.
        this.#etag = etag;
        if (error.code === "LEASE_LOST") await this.#lease.regain(error);
      }
    }
    throw unreachable(`marking ${name}`, failure);
  }

  #roomOptions(signal: AbortSignal | undefined): RoomOptions {
    const { store, onNotice } = this.#options;
    return {
      store,
      head: this.#head,
      epoch: this.epoch,
      takeOrdinal: () => {
        this.#pagesNamed += 1;
        return this.#pagesNamed - 1;
      },
      onDamage: (error) =>
        onNotice({
          code: "HISTORY_DAMAGED",
          message: `${error.message}; the points that it lists cannot be read, all others can`,
        }),
      signal: signal ?? this.#options.signal,
    };
  }

  /** Whether the store has forgotten our last swap of the head. */
  async isForgotten(): Promise<boolean> {
    const { store, vault, disk } = this.#options;
    try {
      const { head, etag } = await readHead(store, vault, disk);
      return etag !== this.#etag && head.epoch <= this.epoch;
    } catch (error) {
      if (await this.#isHeadForgotten(error)) return true;
      throw error;
    }
  }

  /** The head, which must be there. Errors: STORE_REGRESSED. */
  async #readOwnHead(cause: TidemarkError, signal?: AbortSignal): Promise<StoredHead> {
    const { store, vault, disk } = this.#options;
    try {
      return await readHead(store, vault, disk, signal);
    } catch (error) {
      if (await this.#isHeadForgotten(error)) throw headRegressed(disk, cause);
      throw error;
    }
  }

  /**
   * Whether the store went back behind the head. Then it has also forgotten the newest point that
   * the head named, and the manifests that this writer has put since belong to points that were
   * never committed: they are deleted, so that the disk can begin anew. If the newest point is
   * there, the head alone is lost, which a repair puts right.
   */
  async #isHeadForgotten(error: unknown): Promise<boolean> {
    if (hasCode(error, "DISK_NOT_FOUND")) return true;
    if (!isGone(error)) return false;
    const { store, disk } = this.#options;
    const { newest } = this;
    if (newest !== undefined && (await store.etagOf(manifestName(disk, newest.sequence, newest.epoch))) !== undefined)
      return false;
    for await (const { name } of store.list(manifestsPrefix(disk))) {
      const parsed = parseDiskObject(name);
      if (parsed?.epoch === this.epoch && parsed.number > (newest?.sequence ?? 0)) await store.delete(name);
    }
    return true;
  }

  /**
   * After a swap without a clear answer: has it happened? Errors: SEAT_LOST, STORE_REGRESSED when
   * it never can.
   */
  async #isSwapped(
    next: HeadDocument,
    isDone: (there: HeadDocument) => boolean,
    cause: TidemarkError,
  ): Promise<boolean> {
    const there = await this.#readOwnHead(cause);
    if (isDone(there.head)) {
      this.#head = there.head;
      this.#etag = there.etag;
      this.#room = undefined;
      return true;
    }
    if (there.head.epoch > next.epoch) throw this.#lose(cause);
    if (there.etag !== this.#etag) throw headRegressed(this.#options.disk, cause);
    return false;
  }

  /**
   * A lease can end without another writer: an Azurite that restarts forgets finite leases. Then it
   * is taken again. The head tells whether another writer has taken and left the disk meanwhile, or
   * whether the store does not know of this writer any more.
   */
  async #regain(cause: TidemarkError, signal: AbortSignal): Promise<TidemarkError | undefined> {
    const { store, disk } = this.#options;
    try {
      await HeldLease.acquire(store, this.#lease.place, signal);
    } catch (error) {
      if (hasCode(error, "LEASE_HELD")) return this.#fenced(cause);
      if (hasCode(error, "OBJECT_NOT_FOUND")) throw headRegressed(disk, cause);
      throw error;
    }
    const { head } = await this.#readOwnHead(cause, signal);
    if (head.epoch > this.epoch) return this.#fenced(cause);
    if (head.epoch < this.epoch) throw headRegressed(disk, cause);
    return undefined;
  }

  #lose(cause: TidemarkError): TidemarkError {
    return this.#lease.lose(this.#fenced(cause));
  }

  #fenced(cause: TidemarkError): TidemarkError {
    const { disk } = this.#options;
    publish("writer.fenced", { disk, epoch: this.epoch, message: cause.message });
    return writerLeaseLost(disk, "", cause);
  }

  /**
   * Says in the head that the disk has no writer any more, and releases the lease. To be called when no
   * write of this writer is in flight or in doubt: the next one fences nothing then. Waits.
   */
  async leave(): Promise<void> {
    const { name, leaseId } = this.#lease.place;
    try {
      if (this.#head.writer === null || this.signal.aborted) return;
      const bytes = encodeHead({ ...this.#head, writer: null });
      const signal = AbortSignal.timeout(leaseTiming.releaseMsMax);
      await this.#options.store.put(name, bytes, { ifMatch: this.#etag, leaseId }, { signal });
    } catch (error) {
      // The next writer finds that this one has ended, and fences it.
      if (!(error instanceof TidemarkError)) throw error;
    } finally {
      await this.release();
    }
  }

  /** Releases the lease. Idempotent; waits. A lease that cannot be released ends by itself. */
  async release(): Promise<void> {
    try {
      await this.#lease.release();
    } finally {
      liveSessions().delete(this.#writer.session);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }
}

/**
 * Whether a conditional put has ended without deciding anything that the head does not tell better.
 */
function isUndecidedPut(error: unknown): error is TidemarkError {
  return hasCode(error, "LEASE_LOST", "OUTCOME_UNKNOWN", "CONDITION_FAILED");
}

/** What tells two lists of points apart. */
function namesOf({ pages, points }: PointList): string {
  return [...pages.map(({ checksum: page }) => page), ...points.map(({ id }) => id)].join();
}
