/**
 * A document in the vault that one process at a time works on: optimistic concurrency control under a
 * lease.
 *
 * The process takes a lease on the object and swaps it by ETag. The lease id follows from the
 * document's name, the machine and the document's epoch, so a successor on the same machine takes over
 * from a dead process at once. On another machine it waits until the lease has ended.
 *
 * Invariant: a swap that another process has overtaken fails and changes nothing.
 */
import { randomBytes } from "node:crypto";
import { type ErrorDetail, hasCode, TidemarkError } from "../errors.ts";
import { sameBytes, toHex } from "../store/format/checksum.ts";
import type { WriterRecord } from "../store/format/documents.ts";
import { documentBytesMax } from "../store/format/documents.ts";
import { HeldLease, type LeasePlace, leaseIdOf } from "../store/held-lease.ts";
import { identifyProcess, isAlive, liveSessions } from "../store/points/process-identity.ts";
import { type Store, unknownOutcomesMax, unreachable } from "../store/store.ts";
import { leaseTiming } from "../timing.ts";

/** How often a document is read again because another process has just left it. */
const takesMax = 4;

/** What such a document says of the process that works on it. */
interface Worked {
  /** Rises each time that a process begins to work on it. */
  readonly epoch: number;
  readonly worker: WriterRecord | null;
}

/** Where the document is, and how it is read, written and spoken of. */
export interface DocumentPlace<Document extends Worked> {
  readonly store: Store;
  /** Name of the object. */
  readonly name: string;
  /** Parts of the lease id, before machine and epoch. */
  readonly lease: readonly string[];
  readonly signal?: AbortSignal | undefined;
  /** Errors: why there is no such document; DAMAGED. */
  readonly read: () => Promise<{ readonly document: Document; readonly etag: string }>;
  readonly encode: (document: Document) => Uint8Array;
  /** What it is, for messages: `replica 0123…`. */
  readonly title: string;
  /** For errors. */
  readonly detail: ErrorDetail;
  /** The command that shows it. */
  readonly showCommand: string;
}

/** Whether the process that a document names works on it, as far as this machine can tell. */
export async function isWorker(worker: WriterRecord | null): Promise<boolean> {
  if (worker === null) return false;
  const { machine } = await identifyProcess();
  return worker.machine !== machine || (await isAlive(worker));
}

/** A document that this process alone works on. */
export class HeldDocument<Document extends Worked> implements AsyncDisposable {
  readonly #place: DocumentPlace<Document>;
  readonly #lease: HeldLease;
  readonly #worker: WriterRecord;
  #document: Document;
  #etag: string;
  #swapping: Promise<void> = Promise.resolve();

  private constructor(
    place: DocumentPlace<Document>,
    lease: HeldLease,
    worker: WriterRecord,
    { document, etag }: { readonly document: Document; readonly etag: string },
  ) {
    this.#place = place;
    this.#lease = lease;
    this.#worker = worker;
    this.#document = document;
    this.#etag = etag;
  }

  /** Errors: WRITER_ACTIVE when another process works on the document; those of `place.read`. */
  static async take<Document extends Worked>(place: DocumentPlace<Document>): Promise<HeldDocument<Document>> {
    const identity = await identifyProcess();
    const worker: WriterRecord = { ...identity, session: toHex(randomBytes(16)) };
    for (let attempt = 1; ; attempt += 1) {
      const there = await place.read();
      const lease = await takeLease(place, there.document, identity.machine);
      // A process that was at work when the document was read may have left since.
      const again = await place.read();
      if (again.etag !== there.etag && attempt < takesMax) {
        await leave(place, lease, again.document);
        continue;
      }
      liveSessions().add(worker.session);
      const held = new HeldDocument(place, lease, worker, there);
      try {
        await held.swap({ ...there.document, epoch: there.document.epoch + 1, worker });
        return held;
      } catch (error) {
        liveSessions().delete(worker.session);
        await leave(place, lease, (await place.read()).document);
        throw error;
      }
    }
  }

  get document(): Document {
    return this.#document;
  }

  /** Aborts when the lease is lost for good. */
  get signal(): AbortSignal {
    return this.#lease.signal;
  }

  /**
   * Swaps the document for `next`, or for what it makes of the document, also after the caller's signal
   * has aborted. Swaps are done one after the other. Errors: SEAT_LOST, STORE_UNREACHABLE.
   */
  async swap(next: Document | ((present: Document) => Document)): Promise<void> {
    const turn = this.#swapping.then(
      async () => await this.#swap(typeof next === "function" ? next(this.#document) : next),
    );
    this.#swapping = turn.catch(() => undefined);
    await turn;
  }

  async #swap(next: Document): Promise<void> {
    const { store, name, encode } = this.#place;
    const { signal } = this.#lease;
    const bytes = encode(next);
    let failure: unknown;
    for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
      try {
        const condition = { ifMatch: this.#etag, leaseId: this.#lease.place.leaseId };
        this.#etag = await store.put(name, bytes, condition, { signal });
        this.#document = next;
        return;
      } catch (error) {
        failure = error;
        if (!hasCode(error, "OUTCOME_UNKNOWN", "CONDITION_FAILED", "LEASE_LOST")) throw error;
        const there = await store.find(name, documentBytesMax, { signal });
        if (there !== undefined && sameBytes(there.bytes, bytes)) {
          this.#etag = there.etag;
          this.#document = next;
          return;
        }
        if (there?.etag !== this.#etag) throw lost(this.#place, error);
        if (hasCode(error, "LEASE_LOST")) await this.#lease.regain(error);
        else if (!hasCode(error, "OUTCOME_UNKNOWN")) throw lost(this.#place, error);
      }
    }
    throw unreachable(`writing ${name}`, failure);
  }

  /** Deletes the document. Nothing else may be done with it after that. */
  async remove(): Promise<void> {
    const { store, name } = this.#place;
    await this.release();
    await store.delete(name);
  }

  /**
   * Gives the document back: `worker` becomes null, unless the last swap has done that. Idempotent. A
   * lease that stays ends by itself.
   */
  async release(): Promise<void> {
    if (!liveSessions().has(this.#worker.session)) return;
    try {
      if (!this.signal.aborted && this.#document.worker !== null) await this.swap({ ...this.#document, worker: null });
    } catch (error) {
      // The successor finds that this session has ended.
      if (!(error instanceof TidemarkError)) throw error;
    } finally {
      liveSessions().delete(this.#worker.session);
      await this.#lease.release();
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.release();
  }
}

/** Takes the lease, also that of a dead process of this machine. Errors: WRITER_ACTIVE. */
async function takeLease<Document extends Worked>(
  place: DocumentPlace<Document>,
  { worker, epoch }: Document,
  machine: string,
): Promise<HeldLease> {
  const { store, name, signal } = place;
  const leased: LeasePlace = { name, leaseId: leaseIdOf(...place.lease, machine, epoch + 1) };
  try {
    await HeldLease.acquire(store, leased, signal);
  } catch (error) {
    if (!hasCode(error, "LEASE_HELD")) throw error;
    if (await isWorker(worker)) throw workedOn(place, worker, error);
    try {
      await store.changeLease(name, leaseIdOf(...place.lease, machine, epoch), leased.leaseId, { signal });
    } catch (changeError) {
      throw hasCode(changeError, "LEASE_LOST") ? workedOn(place, worker, changeError) : changeError;
    }
  }
  return new HeldLease(store, leased, async (cause, ending) => {
    try {
      await HeldLease.acquire(store, leased, ending);
      return undefined;
    } catch (error) {
      if (hasCode(error, "LEASE_HELD", "OBJECT_NOT_FOUND")) return lost(place, cause);
      throw error;
    }
  });
}

/**
 * Gives up a lease that was taken in vain. Another process of this machine that took the document at
 * the same moment has the same lease id: then the lease is that process's, and stays. Errors:
 * WRITER_ACTIVE then.
 */
async function leave<Document extends Worked>(
  place: DocumentPlace<Document>,
  lease: HeldLease,
  { worker }: Document,
): Promise<void> {
  if (!(await isWorker(worker))) {
    await lease.release();
    return;
  }
  await lease.stop();
  throw workedOn(place, worker, undefined);
}

type Named = Pick<DocumentPlace<never>, "title" | "detail" | "showCommand">;

function workedOn({ title, detail }: Named, worker: WriterRecord | null, cause: unknown): TidemarkError {
  const process = worker === null ? "another process" : `process ${String(worker.pid)} on ${worker.host}`;
  return new TidemarkError("WRITER_ACTIVE", `${process} works on ${title}`, {
    remedy: `wait until it is done; if it died on another machine, its lease ends after ${String(leaseTiming.seconds)} s`,
    detail,
    cause,
  });
}

function lost({ title, detail, showCommand }: Named, cause: unknown): TidemarkError {
  const fact = `what the vault says of ${title} was changed by another process, or the store went back in time`;
  return new TidemarkError("SEAT_LOST", fact, {
    remedy: `\`${showCommand}\` shows how far it is, and whether a process works on it`,
    detail,
    cause,
  });
}
