/**
 * The writer's seat of a disk: at most one writer holds it, and a writer that lost it cannot change anything any more.
 *
 * Three things make it, each decided at the store:
 *   - the lease on the disk's head keeps writers on other machines away while the holder lives, and ends by the store's clock when it does
 *   not;
 *   - the epoch in the head, raised by compare-and-swap on taking the seat, decides between two who both got hold of the lease;
 *   - the sequence numbers of the former writer's segments are raised to the new epoch first, so its late page writes fail.
 *
 * The lease id is derived from vault, disk, machine and epoch. So a successor on the same machine can hand the lease of a dead
 * process over to itself at once, also when the process died between taking the lease and writing its name into the head; and a
 * writer that merely slept cannot renew, because its epoch, and with it its id, is gone.
 */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, TidemarkError, throwIfAborted } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import { checksum, toHex } from "../format/checksum.ts";
import type { HeadDocument, PointList, PointRecord, WriterRecord } from "../format/documents.ts";
import { countPoints, decodeHead, documentBytesMax, encodeHead, headPointsMax } from "../format/documents.ts";
import { firstSequenceNumber, headName, manifestName, manifestsPrefix, parseDiskObject, segmentEpochPrefix } from "../format/names.ts";
import type { Store } from "../store.ts";
import { unknownOutcomesMax, unreachable } from "../store.ts";
import type { PageCache, Room, RoomOptions } from "./history.ts";
import { makeRoom, withoutPoints } from "./history.ts";
import { identifyProcess, isAlive, liveSessions } from "./process-identity.ts";

/** Lease and its care, together because they depend on each other: several renewals fit into a lease. */
const timing = {
  leaseSeconds: 60,
  renewEveryMs: 15_000,
  /** A seat that has not been renewed for this long is renewed before anything that no fence guards. */
  trustMs: 25_000,
  /** How long to wait for somebody who is just taking or leaving the seat. */
  handoverMs: 3_000,
  handoverPollMs: 100,
} as const;

/** How long giving up a lease may take: it ends by itself, and whoever leaves is in a hurry. */
const giveUpMs = 1_500;

export interface WriterLeaseOptions {
  readonly store: Store;
  readonly vault: string;
  readonly disk: string;
  readonly onNotice: (notice: Notice) => void;
  readonly signal?: AbortSignal | undefined;
}

/** Reads a disk's head. Errors: DISK_NOT_FOUND; DAMAGED, also when the head is gone and points of the disk are there. */
export async function readHead(
  store: Store,
  vault: string,
  disk: string,
  signal?: AbortSignal,
): Promise<{ readonly head: HeadDocument; readonly etag: string }> {
  const name = headName(disk);
  try {
    const { bytes, etag } = await store.get(name, documentBytesMax, { signal });
    return { head: decodeHead(bytes, name, { vault, disk }), etag };
  } catch (error) {
    if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
    if (await hasPoints(store, disk, signal)) throw headGone(disk, error);
    throw new TidemarkError("DISK_NOT_FOUND", `the vault holds no disk ${JSON.stringify(disk)}`, {
      remedy: "`tidemark disks list` shows the disks that it holds",
      cause: error,
    });
  }
}

/** A disk's head is the first thing that is written of it. So where there are points and no head it was lost, and a new one would hide them all. */
async function hasPoints(store: Store, disk: string, signal: AbortSignal | undefined): Promise<boolean> {
  for await (const _point of store.list(manifestsPrefix(disk), { signal })) return true;
  return false;
}

export class WriterLease implements AsyncDisposable {
  readonly #options: WriterLeaseOptions;
  readonly #writer: WriterRecord;
  readonly #leaseId: string;
  readonly #lost = new AbortController();
  readonly #timer: NodeJS.Timeout;
  #head: HeadDocument;
  #etag: string;
  /** The head's points with room for another one, from the mark to the commit. */
  #room: Room | undefined;
  #pagesNamed = 0;
  #renewedAtMs: { readonly wall: number; readonly steady: number };
  #released: Promise<void> | undefined;

  private constructor(options: WriterLeaseOptions, writer: WriterRecord, leaseId: string, head: HeadDocument, etag: string) {
    this.#options = options;
    this.#writer = writer;
    this.#leaseId = leaseId;
    this.#head = head;
    this.#etag = etag;
    this.#renewedAtMs = now();
    this.#timer = setInterval(() => {
      // A failed renewal is either final, which aborts `signal`, or repeated by the next tick.
      this.#renew().catch(() => undefined);
    }, timing.renewEveryMs).unref();
  }

  /** Takes the seat, creating the disk if it is new. Errors: WRITER_ACTIVE. */
  static async take(options: WriterLeaseOptions): Promise<WriterLease> {
    const { store, vault, disk, signal } = options;
    const identity = await identifyProcess();
    const writer: WriterRecord = { ...identity, session: toHex(randomBytes(16)) };
    const deadline = Date.now() + timing.handoverMs;
    for (;;) {
      throwIfAborted(signal);
      const { head, etag } = await readOrCreateHead(options);
      const epoch = head.epoch + 1;
      const leaseId = leaseIdOf(vault, disk, identity.machine, epoch);
      if (!(await takeLease(options, head, identity.machine, leaseId))) {
        if (Date.now() > deadline) throw writerActive(disk, head.writer);
        await delay(timing.handoverPollMs, undefined, { signal }).catch(() => undefined);
        continue;
      }
      const outcome = await takeOver(options, head, etag, epoch, writer, leaseId).catch(async (error: unknown) => {
        await handBack(options, epoch, writer, leaseId);
        throw error;
      });
      if (outcome !== undefined) return new WriterLease(options, writer, leaseId, outcome.head, outcome.etag);
      await handBack(options, epoch, writer, leaseId);
      if (Date.now() > deadline) throw writerActive(disk, (await readHead(store, vault, disk, signal)).head.writer);
    }
  }

  get head(): HeadDocument {
    return this.#head;
  }

  /** The newest committed point. */
  get newest(): PointRecord | undefined {
    return this.#head.points.at(-1);
  }

  get epoch(): number {
    return this.#head.epoch;
  }

  /** From the next mark or commit on the head says that this writer has acted on `collection`. */
  acknowledge(collection: string | null): void {
    this.#head = { ...this.#head, collection };
  }

  /** Has the head say now what is acknowledged. Errors: SEAT_LOST, STORE_REGRESSED. */
  async publish(): Promise<void> {
    await this.#markHead();
  }

  /** Aborts, with SEAT_LOST as its reason, once the seat is certainly lost. */
  get signal(): AbortSignal {
    return this.#lost.signal;
  }

  /** Makes sure that the seat is still ours, asking the store if the last answer is old. Errors: SEAT_LOST. */
  async assertHeld(): Promise<void> {
    throwIfAborted(this.#lost.signal);
    const elapsed = now();
    // Both clocks: the steady one stands still while a machine sleeps, the wall clock can be set back.
    const age = Math.max(elapsed.wall - this.#renewedAtMs.wall, elapsed.steady - this.#renewedAtMs.steady);
    if (age > timing.trustMs || age < 0) await this.#renew();
  }

  /**
   * The commit: swaps the head for one that holds `point` too, after `mark` and the proof of the pages that it wrote. `leave` gives the
   * seat up in the same step. `prove` is called again before every repetition, because a connection that broke may have ended at a
   * store that went back in time. Errors: SEAT_LOST, STORE_REGRESSED.
   */
  async commit(point: PointRecord, leave: boolean, prove: () => Promise<void>): Promise<void> {
    const { pages, points } = this.#room ?? this.#head;
    assert(points.length < headPointsMax, "a mark made room in the head");
    const next: HeadDocument = { ...this.#head, writer: leave ? null : this.#writer, pages, points: [...points, point] };
    await this.#swap(next, (there) => there.points.some(({ id }) => id === point.id), prove);
  }

  /**
   * Drops points: swaps the head for one without them, in the same way as a commit: pages are written, the head is marked, `prove` is asked
   * about the pages, the head is swapped. Returns how many points have gone: those in a page that cannot be read stay. After an error it is
   * not known whether they have, and the seat is to be given up. Errors: SEAT_LOST, STORE_REGRESSED.
   */
  async drop(
    sequences: readonly number[],
    options: {
      readonly leave: boolean;
      readonly prove: (written: ReadonlyMap<string, string>) => Promise<void>;
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
   * Swaps the head for one that lists its points anew, after pages of theirs have been lost; and gives the seat up. `list` has to end with the newest
   * point. In the same way, and with the same errors, as `drop`.
   */
  async relist(list: Room, prove: (written: ReadonlyMap<string, string>) => Promise<void>): Promise<void> {
    assert(list.points.at(-1)?.id === this.newest?.id, "the newest point stays");
    this.#room = undefined;
    await this.#relist({ ...this.#head, writer: null, pages: list.pages, points: list.points }, list.written, prove, undefined);
  }

  async #relist(
    next: HeadDocument,
    written: ReadonlyMap<string, string>,
    prove: (written: ReadonlyMap<string, string>) => Promise<void>,
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

  /** Swaps the head for `next`. `isDone` tells, from the head that is there after an answer was lost, whether that has happened. */
  async #swap(next: HeadDocument, isDone: (there: HeadDocument) => boolean, prove: () => Promise<void>): Promise<void> {
    const { store, disk } = this.#options;
    const name = headName(disk);
    const bytes = encodeHead(next);
    decodeHead(bytes, name, this.#head); // a head that nobody can read would hide every point
    let failure: unknown;
    for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
      throwIfAborted(this.#lost.signal);
      try {
        // The user's signal is not heeded here: a swap is short, and half-known outcomes help nobody.
        this.#etag = await store.put(name, bytes, { ifMatch: this.#etag, leaseId: this.#leaseId });
        this.#head = next;
        this.#room = undefined;
        return;
      } catch (error) {
        failure = error;
        if (!hasCode(error, "LEASE_LOST", "OUTCOME_UNKNOWN", "CONDITION_FAILED")) throw error;
        if (await this.#isSwapped(next, isDone, error)) return;
        if (error.code === "LEASE_LOST") await this.#reacquire(error);
        await prove();
      }
    }
    throw unreachable(`the commit to ${name}`, failure);
  }

  /**
   * Swaps the head for its equal, so that its ETag is younger than everything written before: only a store that still has all that can
   * accept the commit. Before that, room is made in a head that is full: returns the names of the pages that were written for it, with
   * their ETags, which the commit refers to and which are to be proved like everything else. Errors: SEAT_LOST, STORE_REGRESSED.
   */
  async mark(signal?: AbortSignal): Promise<ReadonlyMap<string, string>> {
    this.#room = await makeRoom(this.#roomOptions(signal));
    await this.#markHead();
    return this.#room.written;
  }

  async #markHead(): Promise<void> {
    const { store, disk } = this.#options;
    const name = headName(disk);
    let failure: unknown;
    for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
      throwIfAborted(this.#lost.signal);
      try {
        this.#etag = await store.put(name, encodeHead(this.#head), { ifMatch: this.#etag, leaseId: this.#leaseId });
        return;
      } catch (error) {
        failure = error;
        if (!hasCode(error, "LEASE_LOST", "OUTCOME_UNKNOWN", "CONDITION_FAILED")) throw error;
        const { head, etag } = await this.#readOwnHead(error);
        if (head.epoch > this.#head.epoch) throw this.#lose(error);
        // A seat that has committed points may find its own head of before them.
        const isOurs = head.writer?.session === this.#writer.session && head.points.at(-1)?.id === this.newest?.id;
        if (!isOurs) throw headRegressed(disk, error);
        // An earlier try may have got through, or still will: a clear answer to a later one makes it void.
        this.#etag = etag;
        if (error.code === "LEASE_LOST") await this.#reacquire(error);
      }
    }
    throw unreachable(`marking ${name}`, failure);
  }

  #roomOptions(signal: AbortSignal | undefined): RoomOptions {
    const { store, onNotice } = this.#options;
    return {
      store,
      head: this.#head,
      epoch: this.#head.epoch,
      takeOrdinal: () => {
        this.#pagesNamed += 1;
        return this.#pagesNamed - 1;
      },
      onDamage: (error) => {
        onNotice({ code: "HISTORY_DAMAGED", message: `${error.message}; the points that it lists cannot be read, all others can` });
      },
      signal: signal ?? this.#options.signal,
    };
  }

  /** Whether the store has forgotten our last swap of the head. */
  async isForgotten(): Promise<boolean> {
    const { store, vault, disk } = this.#options;
    try {
      const { head, etag } = await readHead(store, vault, disk);
      return etag !== this.#etag && head.epoch <= this.#head.epoch;
    } catch (error) {
      if (await this.#isHeadForgotten(error)) return true;
      throw error;
    }
  }

  /** The head, which must be there. Errors: STORE_REGRESSED. */
  async #readOwnHead(cause: TidemarkError): Promise<{ readonly head: HeadDocument; readonly etag: string }> {
    const { store, vault, disk } = this.#options;
    try {
      return await readHead(store, vault, disk);
    } catch (error) {
      if (await this.#isHeadForgotten(error)) throw headRegressed(disk, cause);
      throw error;
    }
  }

  /**
   * Whether the store went back behind the head: then it has forgotten the newest point that the head named, too, and the manifests that we have put since
   * are of points that never came to their commit. They go, so that the disk can begin anew. Else the head alone is lost, and that is for a repair.
   */
  async #isHeadForgotten(error: unknown): Promise<boolean> {
    if (hasCode(error, "DISK_NOT_FOUND")) return true;
    const { store, disk } = this.#options;
    if (!hasCode(error, "DAMAGED") || error.detail["isGone"] !== true) return false;
    const { newest } = this;
    if (newest !== undefined && (await store.etagOf(manifestName(disk, newest.sequence, newest.epoch))) !== undefined) return false;
    for await (const { name } of store.list(manifestsPrefix(disk))) {
      const parsed = parseDiskObject(name);
      if (parsed?.epoch === this.epoch && parsed.number > (newest?.sequence ?? 0)) await store.delete(name);
    }
    return true;
  }

  /** After a swap without a clear answer: has it happened? Errors: SEAT_LOST, STORE_REGRESSED when it never can. */
  async #isSwapped(next: HeadDocument, isDone: (there: HeadDocument) => boolean, cause: TidemarkError): Promise<boolean> {
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

  async #renew(): Promise<void> {
    const { store, disk } = this.#options;
    const startedAt = now();
    try {
      await store.lease().renewLease(headName(disk), this.#leaseId);
    } catch (error) {
      if (!hasCode(error, "LEASE_LOST", "OBJECT_NOT_FOUND")) throw error;
      await this.#reacquire(error);
    }
    this.#renewedAtMs = startedAt;
  }

  /**
   * A lease can vanish with nobody having taken it (an Azurite that restarts forgets finite leases): then it is ours again. The head
   * tells whether somebody has taken and left the seat meanwhile, or the store does not know of us any more.
   */
  async #reacquire(cause: TidemarkError): Promise<void> {
    const { store, disk } = this.#options;
    try {
      await store.lease().acquireLease(headName(disk), this.#leaseId, timing.leaseSeconds);
    } catch (error) {
      if (hasCode(error, "LEASE_HELD")) throw this.#lose(cause);
      if (hasCode(error, "OBJECT_NOT_FOUND")) throw headRegressed(disk, cause);
      throw error;
    }
    const { head } = await this.#readOwnHead(cause);
    if (head.epoch > this.#head.epoch) throw this.#lose(cause);
    if (head.epoch < this.#head.epoch) throw headRegressed(disk, cause);
  }

  #lose(cause: unknown): TidemarkError {
    const error = new TidemarkError("SEAT_LOST", `another writer has taken over disk ${JSON.stringify(this.#options.disk)}`, {
      remedy: "let the other writer work, or stop it and run the command again",
      cause,
    });
    this.#lost.abort(error);
    return error;
  }

  /** Gives the lease up. Idempotent; waits. A lease that cannot be given up ends by itself. */
  async release(): Promise<void> {
    this.#released ??= this.#release();
    await this.#released;
  }

  async #release(): Promise<void> {
    clearInterval(this.#timer);
    try {
      // Also when the seat is lost: the id is ours alone, and may have been taken once more before the loss was known.
      const { store, disk } = this.#options;
      await store.lease().releaseLease(headName(disk), this.#leaseId, { signal: AbortSignal.timeout(giveUpMs) });
    } catch (error) {
      if (!(error instanceof TidemarkError)) throw error;
    } finally {
      liveSessions().delete(this.#writer.session);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }
}

async function readOrCreateHead(options: WriterLeaseOptions): Promise<{ readonly head: HeadDocument; readonly etag: string }> {
  const { store, vault, disk, signal } = options;
  try {
    return await readHead(store, vault, disk, signal);
  } catch (error) {
    if (!hasCode(error, "DISK_NOT_FOUND")) throw error;
  }
  try {
    await store.putOnce(headName(disk), encodeHead({ vault, disk, epoch: 0, writer: null, collection: null, pages: [], points: [] }), {
      signal,
    });
  } catch (error) {
    if (!hasCode(error, "OBJECT_EXISTS")) throw error; // else a twin was faster
  }
  return await readHead(store, vault, disk, signal);
}

/**
 * Takes the lease if it is free, or was a dead process's of this machine. False: somebody is just taking or leaving the seat.
 * Errors: WRITER_ACTIVE.
 */
async function takeLease(options: WriterLeaseOptions, head: HeadDocument, machine: string, leaseId: string): Promise<boolean> {
  const { store, vault, disk, onNotice, signal } = options;
  const name = headName(disk);
  try {
    await store.lease().acquireLease(name, leaseId, timing.leaseSeconds, { signal });
    return true;
  } catch (error) {
    if (!hasCode(error, "LEASE_HELD")) throw error;
  }
  const { writer } = head;
  // The last writer has left in good order; if it was of this machine, it need not be waited for, as it may have died on the doorstep.
  if (writer !== null && (writer.machine !== machine || (await isAlive(writer)))) throw writerActive(disk, writer);
  try {
    await store.lease().changeLease(name, leaseIdOf(vault, disk, machine, head.epoch), leaseId, { signal });
  } catch (error) {
    if (hasCode(error, "LEASE_LOST")) return false;
    throw error;
  }
  // Our own seat, after an outage in which it could not be given up, is nobody's death.
  if (writer !== null && writer.pid !== process.pid) {
    onNotice({ code: "SEAT_TAKEN_OVER", message: `the writer that died (process ${String(writer.pid)}) is replaced at once` });
  }
  return true;
}

/**
 * Gives up a lease that did not lead to the seat. While a process of this machine holds the seat with this epoch, the lease is its
 * own: the id is the same.
 */
async function handBack(options: WriterLeaseOptions, epoch: number, writer: WriterRecord, leaseId: string): Promise<void> {
  const { store, vault, disk } = options;
  const signal = AbortSignal.timeout(giveUpMs);
  try {
    const { head } = await readHead(store, vault, disk, signal);
    const isTheirs = head.epoch === epoch && head.writer?.machine === writer.machine && head.writer.session !== writer.session;
    if (!isTheirs) await store.lease().releaseLease(headName(disk), leaseId, { signal });
  } catch (error) {
    // A lease that cannot be given up ends by itself.
    if (!(error instanceof TidemarkError)) throw error;
  }
}

/** With the lease in hand: locks the former writer out and writes our name into the head. Undefined: somebody else was faster. */
async function takeOver(
  options: WriterLeaseOptions,
  head: HeadDocument,
  etag: string,
  epoch: number,
  writer: WriterRecord,
  leaseId: string,
): Promise<{ readonly head: HeadDocument; readonly etag: string } | undefined> {
  const { store, disk, signal } = options;
  // Before the swap: whoever dies between leaves the head as it was, and the next one locks out the same writer again.
  if (head.writer !== null) {
    for await (const segment of store.list(segmentEpochPrefix(disk, head.epoch), { signal })) {
      await store.raiseSequenceNumber(segment.name, firstSequenceNumber(epoch), { signal });
    }
  }
  const next: HeadDocument = { ...head, epoch, writer };
  liveSessions().add(writer.session);
  const taken = await swapHead(options, next, etag, leaseId).catch((error: unknown) => {
    liveSessions().delete(writer.session);
    throw error;
  });
  if (taken === undefined) liveSessions().delete(writer.session);
  return taken;
}

/** Undefined: the head is not the one that was read any more, and not ours either. */
async function swapHead(
  options: WriterLeaseOptions,
  next: HeadDocument,
  etag: string,
  leaseId: string,
): Promise<{ readonly head: HeadDocument; readonly etag: string } | undefined> {
  const { store, vault, disk, signal } = options;
  try {
    return { head: next, etag: await store.put(headName(disk), encodeHead(next), { ifMatch: etag, leaseId }, { signal }) };
  } catch (error) {
    if (!hasCode(error, "CONDITION_FAILED", "LEASE_LOST", "OUTCOME_UNKNOWN")) throw error;
  }
  const there = await readHead(store, vault, disk, signal);
  return there.head.writer?.session === next.writer?.session ? there : undefined;
}

function leaseIdOf(vault: string, disk: string, machine: string, epoch: number): string {
  const hex = toHex(checksum(Buffer.from(JSON.stringify(["lease", vault, disk, machine, epoch]))));
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-");
}

/** What tells two lists of points apart. */
function namesOf({ pages, points }: PointList): string {
  return [...pages.map(({ checksum: page }) => page), ...points.map(({ id }) => id)].join();
}

function now(): { readonly wall: number; readonly steady: number } {
  return { wall: Date.now(), steady: performance.now() };
}

function writerActive(disk: string, writer: WriterRecord | null): TidemarkError {
  const who = writer === null ? "another process" : `process ${String(writer.pid)} on ${writer.host}`;
  return new TidemarkError("WRITER_ACTIVE", `${who} is writing disk ${JSON.stringify(disk)}`, {
    remedy: `wait until it is done; if it died on another machine, its seat is free after ${String(timing.leaseSeconds)} s`,
    detail: { disk, pid: writer?.pid, host: writer?.host },
  });
}

function headGone(disk: string, cause: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", `${headName(disk)} is gone, but points of the disk are there`, {
    remedy: "run `tidemark vault repair`: it rebuilds the head from the points",
    detail: { object: headName(disk), isGone: true },
    cause,
  });
}

function headRegressed(disk: string, cause: unknown): TidemarkError {
  return new TidemarkError(
    "STORE_REGRESSED",
    `the store went back in time: the head of disk ${JSON.stringify(disk)} is older than what was acknowledged`,
    {
      remedy: "run the command again; the next cycle ships what the store forgot",
      cause,
    },
  );
}
