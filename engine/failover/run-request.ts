/**
 * Cooperative cancellation of what another process works on: the job of a run, or a replica.
 *
 * The object of a run or replica is leased by its worker, so the request is an object beside it. The worker looks for
 * it before each step and once a second. A request names the worker's epoch: one that comes too late
 * does not stop the next worker.
 */
import { setTimeout as delay } from "node:timers/promises";
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import { documentBytesMax } from "../store/format/documents.ts";
import { runRequestName } from "../store/format/names.ts";
import { decodeRunRequest, encodeRunRequest, type RunDocument } from "../store/format/run.ts";
import { identifyProcess } from "../store/points/process-identity.ts";
import type { Store } from "../store/store.ts";
import { runRequestTiming } from "../timing.ts";

interface RequestPlace {
  readonly store: Store;
  readonly vault: string;
  readonly signal?: AbortSignal | undefined;
}

/** What is worked on. `run`: the name of the run, or of the replica. */
type Worked = Pick<RunDocument, "run" | "epoch">;

/** Asks the process that works on it to stop. Errors: those of the store. */
export async function requestStop(place: RequestPlace, { run, epoch }: Worked): Promise<void> {
  const { store, vault, signal } = place;
  const name = runRequestName(run);
  const there = await store.find(name, documentBytesMax, { signal });
  if (there !== undefined && decodeRunRequest(there.bytes, name, vault).epoch === epoch) return;
  const { host } = await identifyProcess();
  const document = { vault, run, epoch, requestedMs: Date.now(), host };
  await store.replace(name, encodeRunRequest(document), there?.etag, { signal });
}

/**
 * Stops a job wherever its process is. `underWay` gives what is worked on, or undefined; `end` ends
 * the job of a dead process. Gives false when no job was under way. Errors: WRITER_ACTIVE when the
 * process does not answer.
 */
export async function stopJob(
  place: RequestPlace,
  underWay: () => Promise<Worked | undefined>,
  end: () => Promise<void>,
): Promise<boolean> {
  const { signal } = place;
  const deadline = performance.now() + runRequestTiming.waitMsMax;
  let asked: Worked | undefined;
  for (;;) {
    const worked = await underWay();
    if (worked === undefined) break;
    asked = worked;
    try {
      await end();
    } catch (error) {
      if (!hasCode(error, "WRITER_ACTIVE") || performance.now() > deadline) throw error;
      await requestStop(place, worked);
      await delay(runRequestTiming.pollMs / 4, undefined, { signal }).catch(() => undefined);
      throwIfAborted(signal);
    }
  }
  // The worker removes the request that it obeys, but not one that comes after that.
  if (asked !== undefined) await place.store.delete(runRequestName(asked.run));
  return asked !== undefined;
}

/** What a worker looks at while it works. */
export class StopRequests implements AsyncDisposable {
  readonly #place: RequestPlace;
  readonly #run: string;
  readonly #epoch: number;
  readonly #stop = new AbortController();
  readonly #timer: NodeJS.Timeout;
  #looking: Promise<void> | undefined;

  constructor(place: RequestPlace, { run, epoch }: Worked) {
    this.#place = place;
    this.#run = run;
    this.#epoch = epoch;
    this.#timer = setInterval(() => {
      // A store that is away keeps the request; the next look finds it.
      this.#look().catch(() => undefined);
    }, runRequestTiming.pollMs).unref();
  }

  /** Aborts when the job is to stop. */
  get signal(): AbortSignal {
    return this.#stop.signal;
  }

  /** Throws INTERRUPTED when the job is to stop; the errors of the store. */
  async check(): Promise<void> {
    await this.#look();
    throwIfAborted(this.signal);
  }

  async #look(): Promise<void> {
    this.#looking ??= this.#lookOnce().finally(() => {
      this.#looking = undefined;
    });
    await this.#looking;
  }

  async #lookOnce(): Promise<void> {
    const { store, vault, signal } = this.#place;
    const name = runRequestName(this.#run);
    const there = await store.find(name, documentBytesMax, { signal });
    if (there === undefined) return;
    const { epoch, host } = decodeRunRequest(there.bytes, name, vault);
    if (epoch === this.#epoch) this.#stop.abort(cancelled(this.#run, host));
  }

  /** Ends the looks, and removes a request that was obeyed. */
  async [Symbol.asyncDispose](): Promise<void> {
    clearInterval(this.#timer);
    await this.#looking?.catch(() => undefined);
    if (this.signal.aborted) await this.#place.store.delete(runRequestName(this.#run), {});
  }
}

function cancelled(run: string, host: string): TidemarkError {
  return new TidemarkError("INTERRUPTED", `the work on ${run} was stopped from ${host}`, {
    remedy: "`tidemark failover list` shows the runs, and what can be done",
  });
}
