/**
 * How calls to Azure Storage are repeated, timed and cut off. The SDK sends each request once; this file decides whether it goes again.
 *
 *   write        sent again only while it is certain that nothing was executed; otherwise OUTCOME_UNKNOWN
 *   idempotent   sent again after every transient failure
 *
 * Between tries it waits for a random part of an exponentially growing time (full jitter), or what the server asks for in
 * Retry-After if that is longer, until the outage tolerance is used up. As long as the store has never answered, the tolerance is short:
 * a wrong URL should fail at once, a network that goes away for a moment should not.
 */
import { randomInt } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { interrupted, type TidemarkError, throwIfAborted } from "../engine/index.ts";
import { type CallSubject, judge, outcomeUnknown, type StoreFacts, unreachable, type Verdict } from "./azure-errors.ts";

/** Limits of one sink's calls; all have defaults. */
export interface RetryOptions {
  /** How long a store that has answered before may be away. */
  readonly outageToleranceMs?: number | undefined;
  /** How long a store that has never answered is waited for; never longer than `outageToleranceMs`. */
  readonly firstContactToleranceMs?: number | undefined;
  /** Deadline of a request: this, and for each MiB that it moves `deadlinePerMiBMs`, at most `deadlineMsMax`. */
  readonly deadlineBaseMs?: number | undefined;
  readonly deadlinePerMiBMs?: number | undefined;
  /** Source of jitter in [0, 1). */
  readonly random?: (() => number) | undefined;
  /** Asked when the server answers that something is wrong with it: whoever runs it may know better, and that then ends the call. */
  readonly explain?: (() => Promise<TidemarkError | undefined>) | undefined;
}

export const outageToleranceMsDefault = 30_000;
const firstContactToleranceMsDefault = 5_000;
/** 10 s for small requests, 30 s for 4 MiB. */
const deadlineBaseMsDefault = 10_000;
const deadlinePerMiBMsDefault = 5_000;
const deadlineMsMax = 120_000;
const backoffFirstMs = 100;
const backoffMsMax = 5_000;
const mebibyte = 1024 * 1024;

/** One call to make: what it is, how it may be repeated and what sends it. */
export interface Call<T> extends CallSubject {
  readonly kind: "write" | "idempotent";
  /** Bytes that the request moves, for its deadline. */
  readonly bytes?: number | undefined;
  readonly signal: AbortSignal | undefined;
  /** Sends the request once. `signal` ends it at its deadline or when the caller wants so. */
  readonly send: (signal: AbortSignal) => Promise<T>;
}

/** Repeats, times and cuts off the calls of one sink, and counts its lost connections. */
export class Caller {
  readonly #store: StoreFacts;
  readonly #outageToleranceMs: number;
  readonly #firstContactToleranceMs: number;
  readonly #deadlineBaseMs: number;
  readonly #deadlinePerMiBMs: number;
  readonly #random: () => number;
  readonly #closing = new AbortController();
  readonly #running = new Set<Promise<unknown>>();
  /** Per caller's signal, the requests that it ends: one listener a signal, however many requests share it. */
  readonly #followers = new Map<AbortSignal, { readonly controllers: Set<AbortController>; readonly onAbort: () => void }>();
  readonly #explain: RetryOptions["explain"];
  #answered = false;
  #interruptions = 0;

  constructor(store: StoreFacts, options: RetryOptions) {
    this.#store = store;
    this.#outageToleranceMs = options.outageToleranceMs ?? outageToleranceMsDefault;
    this.#firstContactToleranceMs = Math.min(options.firstContactToleranceMs ?? firstContactToleranceMsDefault, this.#outageToleranceMs);
    this.#deadlineBaseMs = options.deadlineBaseMs ?? deadlineBaseMsDefault;
    this.#deadlinePerMiBMs = options.deadlinePerMiBMs ?? deadlinePerMiBMsDefault;
    this.#random = options.random ?? fraction;
    this.#explain = options.explain;
  }

  get interruptions(): number {
    return this.#interruptions;
  }

  /** To be told of a connection that was lost while no request used it. */
  connectionLost(): void {
    this.#interruptions += 1;
  }

  /** Makes the call. Throws TidemarkErrors only. */
  async run<T>(call: Call<T>): Promise<T> {
    const work = this.#repeat(call);
    this.#running.add(work);
    try {
      return await work;
    } finally {
      this.#running.delete(work);
    }
  }

  /** Ends what is under way and waits until it has ended. */
  async close(): Promise<void> {
    this.#closing.abort();
    for (const { controllers } of this.#followers.values()) for (const controller of controllers) controller.abort();
    await Promise.allSettled(this.#running);
  }

  async #repeat<T>(call: Call<T>): Promise<T> {
    const startedAt = performance.now();
    for (let tries = 1; ; tries += 1) {
      throwIfAborted(call.signal);
      throwIfAborted(this.#closing.signal);
      const outcome = await this.#once(call);
      if ("value" in outcome) return outcome.value;
      const { verdict } = outcome;
      if (verdict.kind === "refused") throw verdict.error;
      if (verdict.lostConnection) this.#interruptions += 1;
      else if (verdict.kind === "uncertain") await this.#explained();
      if (verdict.kind === "uncertain" && call.kind === "write") throw outcomeUnknown(call, this.#store, verdict.fact, verdict.cause);

      const waitedMs = performance.now() - startedAt;
      const askedMs = verdict.kind === "undone" ? (verdict.retryAfterMs ?? 0) : 0;
      const pauseMs = Math.max(askedMs, this.#random() * Math.min(backoffMsMax, backoffFirstMs * 2 ** Math.min(tries, 16)));
      const toleranceMs = this.#answered ? this.#outageToleranceMs : this.#firstContactToleranceMs;
      if (waitedMs + pauseMs > toleranceMs) throw unreachable(call, this.#store, verdict.fact, Math.round(waitedMs), verdict.cause);
      await this.#pause(pauseMs, call.signal);
    }
  }

  async #explained(): Promise<void> {
    const reason = await this.#explain?.();
    if (reason !== undefined) throw reason;
  }

  /** Sends once. An abort by the caller throws INTERRUPTED, whatever the request made of it. */
  async #once<T>(call: Call<T>): Promise<{ readonly value: T } | { readonly verdict: Verdict }> {
    const controller = new AbortController();
    const deadlineMs = Math.min(deadlineMsMax, this.#deadlineBaseMs + (this.#deadlinePerMiBMs * (call.bytes ?? 0)) / mebibyte);
    const deadline = { passed: false };
    const timer = setTimeout(() => {
      deadline.passed = true;
      controller.abort();
    }, deadlineMs);
    const release = this.#follow(call.signal ?? this.#closing.signal, controller);
    try {
      const value = await call.send(controller.signal);
      this.#answered = true;
      return { value };
    } catch (thrown) {
      if (!deadline.passed) {
        throwIfAborted(call.signal);
        throwIfAborted(this.#closing.signal);
        const verdict = judge(thrown, call, this.#store);
        if (verdict.kind === "refused" || !verdict.lostConnection) this.#answered = true;
        return { verdict };
      }
      const fact = `${this.#store.host} did not answer within ${String(deadlineMs / 1000)} s`;
      return { verdict: { kind: "uncertain", fact, lostConnection: true, cause: new Error(fact) } };
    } finally {
      clearTimeout(timer);
      release();
    }
  }

  async #pause(pauseMs: number, signal: AbortSignal | undefined): Promise<void> {
    const controller = new AbortController();
    const release = this.#follow(signal ?? this.#closing.signal, controller);
    try {
      await sleep(pauseMs, undefined, { signal: controller.signal });
    } catch {
      // Only an abort ends a pause early.
      throw interrupted(signal?.aborted === true ? signal : this.#closing.signal);
    } finally {
      release();
    }
  }

  /** Makes `controller` abort with `signal` until the returned function is called. */
  #follow(signal: AbortSignal, controller: AbortController): () => void {
    let group = this.#followers.get(signal);
    if (group === undefined) {
      const controllers = new Set<AbortController>();
      const onAbort = (): void => {
        for (const follower of controllers) follower.abort();
      };
      signal.addEventListener("abort", onAbort, { once: true });
      group = { controllers, onAbort };
      this.#followers.set(signal, group);
    }
    const { controllers, onAbort } = group;
    controllers.add(controller);
    if (signal.aborted) controller.abort();
    return () => {
      controllers.delete(controller);
      if (controllers.size > 0) return;
      signal.removeEventListener("abort", onAbort);
      this.#followers.delete(signal);
    };
  }
}

/** A number in [0, 1), to scatter retries. */
function fraction(): number {
  return randomInt(0x1_0000_0000) / 0x1_0000_0000;
}
