/**
 * Retry policy of Azure Storage calls: exponential back-off with full jitter, deadlines,
 * cancellation.
 *
 * The SDK sends each request once; this file decides whether to send it again:
 *
 *   write only while it is certain that the request was not executed; otherwise OUTCOME_UNKNOWN
 *   idempotent after every transient failure
 *
 * Between tries it waits for a random part of an exponentially growing time, or for the server's
 * Retry-After if that is longer, until the outage tolerance is used up. The tolerance is short
 * while the store has never answered: a wrong URL fails early, a short network failure does not.
 */
import { randomInt } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import { interrupted, type TidemarkError, throwIfAborted } from "../engine/index.ts";
import { type CallSubject, judge, outcomeUnknown, type StoreFacts, unreachable, type Verdict } from "./azure-errors.ts";

/** Limits of one sink's calls. All have defaults. */
export interface RetryOptions {
  /** How long calls wait for a store that has answered before, in milliseconds. Default: 30 s. */
  readonly outageToleranceMs?: number | undefined;
  /**
   * How long calls wait for a store that has never answered, in milliseconds; at most
   * `outageToleranceMs`. Default: 5 s.
   */
  readonly firstContactToleranceMs?: number | undefined;
  /**
   * Deadline of a request: this plus `deadlinePerMiBMs` per MiB moved, at most two minutes.
   * Default: 10 s.
   */
  readonly deadlineBaseMs?: number | undefined;
  /** Default: 5 s. */
  readonly deadlinePerMiBMs?: number | undefined;
  /** @internal Source of jitter in [0, 1). */
  readonly random?: (() => number) | undefined;
  /**
   * @internal Called when the server answers with an internal error. An error that it returns ends the call
   * in place of the server's.
   */
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

/** One call: its subject, whether it may be repeated, and the function that sends it. */
export interface Call<T> extends CallSubject {
  readonly kind: "write" | "idempotent";
  /** Bytes that the request moves, for its deadline, as far as that is known when it is sent. */
  readonly bytes?: number | undefined;
  readonly signal: AbortSignal | undefined;
  /**
   * Sends the request once. `signal` aborts it at its deadline or when the caller aborts. `begun` is
   * called when the answer begins, with the bytes that are to come: from then on the deadline is
   * theirs.
   */
  readonly send: (signal: AbortSignal, begun: (bytes: number) => void) => Promise<T>;
}

/** Runs the calls of one sink under the policy and counts lost connections. */
export class Caller {
  readonly #store: StoreFacts;
  readonly #outageToleranceMs: number;
  readonly #firstContactToleranceMs: number;
  readonly #deadlineBaseMs: number;
  readonly #deadlinePerMiBMs: number;
  readonly #random: () => number;
  readonly #closing = new AbortController();
  readonly #running = new Set<Promise<unknown>>();
  /**
   * Per caller's signal, the requests that it aborts: one listener per signal, however many
   * requests share it.
   */
  readonly #followers = new Map<
    AbortSignal,
    { readonly controllers: Set<AbortController>; readonly onAbort: () => void }
  >();
  readonly #explain: RetryOptions["explain"];
  #answered = false;
  #interruptions = 0;
  #clockAheadMs = 0;

  constructor(store: StoreFacts, options: RetryOptions) {
    this.#store = store;
    this.#outageToleranceMs = options.outageToleranceMs ?? outageToleranceMsDefault;
    this.#firstContactToleranceMs = Math.min(
      options.firstContactToleranceMs ?? firstContactToleranceMsDefault,
      this.#outageToleranceMs,
    );
    this.#deadlineBaseMs = options.deadlineBaseMs ?? deadlineBaseMsDefault;
    this.#deadlinePerMiBMs = options.deadlinePerMiBMs ?? deadlinePerMiBMsDefault;
    this.#random = options.random ?? fraction;
    this.#explain = options.explain;
  }

  get interruptions(): number {
    return this.#interruptions;
  }

  /** See `Sink.clockAheadMs`. */
  get clockAheadMs(): number {
    return this.#clockAheadMs;
  }

  /** Notes what the store's clock said, in ms since 1970. */
  answeredAt(serverMs: number): void {
    this.#clockAheadMs = Date.now() - serverMs;
  }

  /** Counts a connection that was lost while idle. */
  connectionLost(): void {
    this.#interruptions += 1;
  }

  /** Runs the call. Throws TidemarkErrors only. */
  async run<T>(call: Call<T>): Promise<T> {
    const work = this.#repeat(call);
    this.#running.add(work);
    try {
      return await work;
    } finally {
      this.#running.delete(work);
    }
  }

  /** Aborts the calls in flight and waits for their end. */
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
      if (verdict.kind === "uncertain" && call.kind === "write")
        throw outcomeUnknown(call, this.#store, verdict.fact, verdict.cause);

      const waitedMs = performance.now() - startedAt;
      const askedMs = verdict.kind === "undone" ? (verdict.retryAfterMs ?? 0) : 0;
      const pauseMs = Math.max(
        askedMs,
        this.#random() * Math.min(backoffMsMax, backoffFirstMs * 2 ** Math.min(tries, 16)),
      );
      const toleranceMs = this.#answered ? this.#outageToleranceMs : this.#firstContactToleranceMs;
      if (waitedMs + pauseMs > toleranceMs)
        throw unreachable(call, this.#store, verdict.fact, Math.round(waitedMs), verdict.cause);
      await this.#pause(pauseMs, call.signal);
    }
  }

  async #explained(): Promise<void> {
    const reason = await this.#explain?.();
    if (reason !== undefined) throw reason;
  }

  /** Sends once. After an abort by the caller it throws INTERRUPTED, whatever the request threw. */
  async #once<T>(call: Call<T>): Promise<{ readonly value: T } | { readonly verdict: Verdict }> {
    const controller = new AbortController();
    const deadline = { ms: 0, passed: false };
    let timer: NodeJS.Timeout | undefined;
    const allow = (bytes: number): void => {
      clearTimeout(timer);
      deadline.ms = Math.min(deadlineMsMax, this.#deadlineBaseMs + (this.#deadlinePerMiBMs * bytes) / mebibyte);
      timer = setTimeout(() => {
        deadline.passed = true;
        controller.abort();
      }, deadline.ms);
    };
    allow(call.bytes ?? 0);
    const release = this.#follow(call.signal ?? this.#closing.signal, controller);
    try {
      const value = await call.send(controller.signal, allow);
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
      const fact = `${this.#store.host} did not answer within ${String(deadline.ms / 1000)} s`;
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
