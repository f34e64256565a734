/**
 * Runs in the vault: optimistic concurrency control under a lease.
 *
 * A run is the object `failover/runs/<run>`. A process that works on it takes a lease on the object
 * and swaps it by ETag, so of two operators one works and the other gets an error. The lease id
 * follows from vault, run, machine and the run's epoch, so that a successor on the same machine takes
 * over from a dead process at once. On another machine it waits until the lease has ended.
 *
 * Invariant: a swap that another process has overtaken fails and changes nothing.
 */
import { randomBytes } from "node:crypto";
import { forEachAtOnce } from "../concurrency.ts";
import { hasCode, TidemarkError } from "../errors.ts";
import { sameBytes, toHex } from "../store/format/checksum.ts";
import type { WriterRecord } from "../store/format/documents.ts";
import { documentBytesMax } from "../store/format/documents.ts";
import { runObjectName, runsPrefix } from "../store/format/names.ts";
import { decodeRun, encodeRun, type RunDocument, runName8 } from "../store/format/run.ts";
import { HeldLease, type LeasePlace, leaseIdOf } from "../store/held-lease.ts";
import { identifyProcess, isAlive, liveSessions } from "../store/points/process-identity.ts";
import { type Store, unknownOutcomesMax, unreachable } from "../store/store.ts";
import { leaseTiming } from "../timing.ts";

const readsAtOnce = 8;
/** A random name is drawn again when it is taken; four billion are there. */
const namesMax = 4;
/** How often a run is read again because another process has just left it. */
const takesMax = 4;

interface RunPlace {
  readonly store: Store;
  readonly vault: string;
  readonly signal?: AbortSignal | undefined;
}

/** Reads a run. Errors: INVALID_ARGUMENT when there is none, DAMAGED, FORMAT_UNSUPPORTED. */
export async function readRun(place: RunPlace, run: string): Promise<{ document: RunDocument; etag: string }> {
  const { store, vault, signal } = place;
  const name = runObjectName(run);
  const there = runName8.test(run) ? await store.find(name, documentBytesMax, { signal }) : undefined;
  if (there === undefined) {
    throw new TidemarkError("INVALID_ARGUMENT", `the vault holds no failover run ${JSON.stringify(run)}`, {
      remedy: "`tidemark failover list` shows the runs",
    });
  }
  return { document: decodeRun(there.bytes, name, vault), etag: there.etag };
}

/** All runs, newest first. Errors: DAMAGED, FORMAT_UNSUPPORTED, those of the store. */
export async function listRuns(place: RunPlace): Promise<RunDocument[]> {
  const { store, vault, signal } = place;
  const names: string[] = [];
  for await (const { name } of store.list(runsPrefix, { signal })) names.push(name);
  const runs: RunDocument[] = [];
  await forEachAtOnce(names, readsAtOnce, async (name) => {
    const there = await store.find(name, documentBytesMax, { signal });
    if (there !== undefined) runs.push(decodeRun(there.bytes, name, vault));
  });
  return runs.sort((a, b) => b.createdMs - a.createdMs || (a.run < b.run ? -1 : 1));
}

/**
 * Puts a new run under a name that is free. Returns it with that name. Errors: those of the store.
 */
export async function createRun(place: RunPlace, make: (run: string) => RunDocument): Promise<RunDocument> {
  for (let attempt = 1; ; attempt += 1) {
    const document = make(toHex(randomBytes(4)));
    try {
      await place.store.putOnce(runObjectName(document.run), encodeRun(document), { signal: place.signal });
      return document;
    } catch (error) {
      if (!hasCode(error, "OBJECT_EXISTS") || attempt === namesMax) throw error;
    }
  }
}

/** Whether the process that a run names works on it, as far as this machine can tell. */
export async function isWorkedOn({ worker }: RunDocument): Promise<boolean> {
  if (worker === null) return false;
  const { machine } = await identifyProcess();
  return worker.machine !== machine || (await isAlive(worker));
}

/** A run that this process alone works on: it holds the lease of the run. */
export class HeldRun implements AsyncDisposable {
  readonly #place: RunPlace;
  readonly #lease: HeldLease;
  readonly #worker: WriterRecord;
  #document: RunDocument;
  #etag: string;

  private constructor(place: RunPlace, lease: HeldLease, worker: WriterRecord, document: RunDocument, etag: string) {
    this.#place = place;
    this.#lease = lease;
    this.#worker = worker;
    this.#document = document;
    this.#etag = etag;
  }

  /** Errors: WRITER_ACTIVE when another process works on the run; as `readRun`. */
  static async take(place: RunPlace, run: string): Promise<HeldRun> {
    const identity = await identifyProcess();
    const worker: WriterRecord = { ...identity, session: toHex(randomBytes(16)) };
    for (let attempt = 1; ; attempt += 1) {
      const { document, etag } = await readRun(place, run);
      const lease = await leaseRun(place, document, identity.machine);
      // A process that was at work when the run was read may have left since.
      const again = await readRun(place, run);
      if (again.etag !== etag && attempt < takesMax) {
        await leave(lease, again.document, identity.machine);
        continue;
      }
      liveSessions().add(worker.session);
      const held = new HeldRun(place, lease, worker, document, etag);
      try {
        await held.swap({ ...document, epoch: document.epoch + 1, worker });
        return held;
      } catch (error) {
        liveSessions().delete(worker.session);
        await leave(lease, (await readRun(place, run)).document, identity.machine);
        throw error;
      }
    }
  }

  get document(): RunDocument {
    return this.#document;
  }

  /** Aborts when the lease is lost for good. */
  get signal(): AbortSignal {
    return this.#lease.signal;
  }

  /**
   * Swaps the run for `next`, also after the caller's signal has aborted. Errors: SEAT_LOST,
   * STORE_UNREACHABLE.
   */
  async swap(next: RunDocument): Promise<void> {
    const { store } = this.#place;
    const { signal } = this.#lease;
    const name = runObjectName(next.run);
    const bytes = encodeRun(next);
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
        if (there?.etag !== this.#etag) throw lost(next.run, error);
        if (hasCode(error, "LEASE_LOST")) await this.#lease.regain(error);
        else if (!hasCode(error, "OUTCOME_UNKNOWN")) throw lost(next.run, error);
      }
    }
    throw unreachable(`writing ${name}`, failure);
  }

  /** Gives the run back: `worker` becomes null. Idempotent. A lease that stays ends by itself. */
  async release(): Promise<void> {
    if (!liveSessions().has(this.#worker.session)) return;
    try {
      if (!this.signal.aborted) await this.swap({ ...this.#document, worker: null });
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

/**
 * Gives up a lease that was taken in vain. Another process of this machine that took the run at the
 * same moment has the same lease id: then the lease is that process's, and stays. Errors:
 * WRITER_ACTIVE then.
 */
async function leave(lease: HeldLease, { run, worker }: RunDocument, machine: string): Promise<void> {
  if (worker === null || (worker.machine === machine && !(await isAlive(worker)))) {
    await lease.release();
    return;
  }
  await lease.stop();
  throw workedOn(run, worker, undefined);
}

/** Takes the lease on a run, also that of a dead process of this machine. Errors: WRITER_ACTIVE. */
async function leaseRun(place: RunPlace, document: RunDocument, machine: string): Promise<HeldLease> {
  const { store, vault, signal } = place;
  const { run, worker, epoch } = document;
  const leased = placeOf(vault, run, machine, epoch + 1);
  try {
    await HeldLease.acquire(store, leased, signal);
  } catch (error) {
    if (!hasCode(error, "LEASE_HELD")) throw error;
    if (worker !== null && (worker.machine !== machine || (await isAlive(worker)))) throw workedOn(run, worker, error);
    try {
      await store.changeLease(leased.name, placeOf(vault, run, machine, epoch).leaseId, leased.leaseId, { signal });
    } catch (changeError) {
      throw hasCode(changeError, "LEASE_LOST") ? workedOn(run, worker, changeError) : changeError;
    }
  }
  return new HeldLease(store, leased, async (cause, ending) => {
    try {
      await HeldLease.acquire(store, leased, ending);
      return undefined;
    } catch (error) {
      if (hasCode(error, "LEASE_HELD", "OBJECT_NOT_FOUND")) return lost(run, cause);
      throw error;
    }
  });
}

function placeOf(vault: string, run: string, machine: string, epoch: number): LeasePlace {
  return { name: runObjectName(run), leaseId: leaseIdOf("run", vault, run, machine, epoch) };
}

function workedOn(run: string, worker: WriterRecord | null, cause: unknown): TidemarkError {
  const process = worker === null ? "another process" : `process ${String(worker.pid)} on ${worker.host}`;
  return new TidemarkError("WRITER_ACTIVE", `${process} works on failover run ${run}`, {
    remedy: `wait until it is done; if it died on another machine, its lease ends after ${String(leaseTiming.seconds)} s`,
    detail: { run },
    cause,
  });
}

function lost(run: string, cause: unknown): TidemarkError {
  return new TidemarkError("SEAT_LOST", `another process has taken over failover run ${run}`, {
    remedy: `let it work; \`tidemark failover show ${run}\` shows how far it is`,
    detail: { run },
    cause,
  });
}
