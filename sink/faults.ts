/**
 * Faults on order: a wrapper around any sink that makes chosen calls go wrong in the ways in which stores go wrong.
 *
 * A plan is a list of faults. Each names the calls it is for and when it fires: at the n-th such call, or with a probability drawn from the
 * wrapper's seed. Wrappers nest, as the wrapped sink is a sink. `calls` tells what was called, `assertAllFired` that no planned fault was
 * left over: a test whose fault never fired proves nothing.
 */
import assert from "node:assert/strict";
import type { CallOptions, ListedObject, ObjectStat, PageFence, PagesStat, PutCondition, Sink, StoredObject } from "../engine/index.ts";
import { interrupted, TidemarkError } from "../engine/index.ts";

export type SinkMethod = Exclude<keyof Sink, "description" | "capabilities" | typeof Symbol.asyncDispose>;

/** What goes wrong. */
export type Fault =
  /** The call fails and nothing has happened. */
  | { readonly kind: "refused"; readonly error: TidemarkError }
  /** The call takes effect, but its answer is lost: OUTCOME_UNKNOWN. Writes only: everything else is asked again by the adapter itself. */
  | { readonly kind: "unacknowledged" }
  /** OUTCOME_UNKNOWN now; the original, fence and all, arrives at the store when the test calls `releaseLate`. Writes only. */
  | { readonly kind: "late" }
  /** The call waits at the gate before it takes effect. */
  | { readonly kind: "slow"; readonly gate: Gate }
  /** What is read lacks its second half: an object is shorter, pages are zero. */
  | { readonly kind: "truncated" }
  /** One bit of what is read is wrong. */
  | { readonly kind: "flipped" }
  /** The lease that the call relies on is gone when the call arrives. */
  | { readonly kind: "lease-lost" }
  /** The process dies, before or after the call took effect: it and every later call reject with CrashError. */
  | { readonly kind: "crash"; readonly effect: "before" | "after" };

export interface PlannedFault {
  readonly on: SinkMethod | "any";
  /** Only calls on names (or, for `list`, prefixes) that start so. */
  readonly prefix?: string;
  /** Which of those calls, counted from 1, or each with a probability. */
  readonly when: number | { readonly probability: number };
  readonly fault: Fault;
}

/** Stands for the death of the process. No TidemarkError, so nothing in the engine can take it for an answer of the store. */
export class CrashError extends Error {
  override readonly name = "CrashError";
}

/** Where a slow call waits. */
export class Gate {
  /** Resolves when the first call waits. */
  readonly reached: Promise<void>;
  readonly #opened: Promise<void>;
  #reach: () => void = nothing;
  #open: () => void = nothing;

  constructor() {
    this.reached = new Promise((resolve) => {
      this.#reach = resolve;
    });
    this.#opened = new Promise((resolve) => {
      this.#open = resolve;
    });
  }

  /** Lets through what waits and what comes. */
  open(): void {
    this.#open();
  }

  /** Waits until the gate is open. Errors: INTERRUPTED. */
  async pass(signal: AbortSignal | undefined): Promise<void> {
    this.#reach();
    if (signal === undefined) return this.#opened;
    let stop: () => void = nothing;
    const aborted = new Promise<never>((_, reject) => {
      stop = () => {
        reject(interrupted(signal));
      };
    });
    if (signal.aborted) stop();
    signal.addEventListener("abort", stop, { once: true });
    try {
      await Promise.race([this.#opened, aborted]);
    } finally {
      signal.removeEventListener("abort", stop);
    }
  }
}

/** A call as it stands before the store: what to do, and what the faults need to know of it. */
interface Call<T> {
  readonly method: SinkMethod;
  readonly name: string;
  readonly signal: AbortSignal | undefined;
  readonly run: () => Promise<T>;
  /** Writes only: the call with a copy of its bytes, to be run after the caller has taken its own back. */
  readonly freeze?: () => () => Promise<unknown>;
  readonly leaseId?: string | undefined;
  /** Reads only: spoils what has been read. */
  readonly spoil?: (result: T, how: "truncated" | "flipped") => T;
}

interface Plan {
  readonly planned: PlannedFault;
  seen: number;
  fired: number;
}

export class FaultySink implements Sink {
  readonly inner: Sink;
  /** Every call so far, as "method name". */
  readonly calls: readonly string[];
  readonly #calls: string[] = [];
  readonly #plans: readonly Plan[];
  readonly #random: () => number;
  readonly #late: (() => Promise<unknown>)[] = [];
  #interruptions = 0;
  #crashedAt: string | undefined;

  constructor(inner: Sink, faults: readonly PlannedFault[], seed = 1) {
    this.inner = inner;
    this.calls = this.#calls;
    this.#plans = faults.map((planned) => ({ planned, seen: 0, fired: 0 }));
    this.#random = randomFrom(seed);
  }

  get description(): string {
    return this.inner.description;
  }

  get capabilities(): Sink["capabilities"] {
    return this.inner.capabilities;
  }

  get interruptions(): number {
    return this.#interruptions;
  }

  /** Lets every held-back original arrive at the store, in the order of their sending; tells what the store made of each. */
  async releaseLate(): Promise<PromiseSettledResult<unknown>[]> {
    const results: PromiseSettledResult<unknown>[] = [];
    for (const original of this.#late.splice(0)) results.push(...(await Promise.allSettled([original()])));
    return results;
  }

  /** Throws when a planned fault never fired. */
  assertAllFired(): void {
    const idle = this.#plans
      .filter(({ fired }) => fired === 0)
      .map(({ planned }) => `${planned.fault.kind} on ${planned.on} ${planned.prefix ?? ""}`.trim());
    assert(idle.length === 0, `planned faults that never fired: ${idle.join(", ")}; calls: ${this.#calls.join(", ")}`);
  }

  createContainer(options?: CallOptions): Promise<boolean> {
    return this.#call({ method: "createContainer", name: "", signal: options?.signal, run: () => this.inner.createContainer(options) });
  }

  getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    return this.#call({
      method: "getObject",
      name,
      signal: options?.signal,
      run: () => this.inner.getObject(name, sizeBytesMax, options),
      spoil: ({ bytes, etag }, how) => {
        if (how === "truncated") return { bytes: bytes.slice(0, Math.floor(bytes.length / 2)), etag };
        this.#flipBit(bytes);
        return { bytes, etag };
      },
    });
  }

  putObject(name: string, bytes: Uint8Array, condition: PutCondition, options?: CallOptions): Promise<{ readonly etag: string }> {
    return this.#call({
      method: "putObject",
      name,
      signal: options?.signal,
      leaseId: "leaseId" in condition ? condition.leaseId : undefined,
      run: () => this.inner.putObject(name, bytes, condition, options),
      freeze: () => {
        const copy = bytes.slice();
        return () => this.inner.putObject(name, copy, condition);
      },
    });
  }

  statObject(name: string, options?: CallOptions): Promise<ObjectStat> {
    return this.#call({ method: "statObject", name, signal: options?.signal, run: () => this.inner.statObject(name, options) });
  }

  deleteObject(name: string, options?: CallOptions): Promise<void> {
    return this.#call({ method: "deleteObject", name, signal: options?.signal, run: () => this.inner.deleteObject(name, options) });
  }

  /** One call, however many objects it yields; a crash meanwhile ends it. */
  async *list(prefix: string, options?: CallOptions): AsyncGenerator<ListedObject, void> {
    const found = await this.#call({
      method: "list",
      name: prefix,
      signal: options?.signal,
      run: () => Promise.resolve(this.inner.list(prefix, options)),
    });
    for await (const object of found) {
      this.#checkAlive();
      yield object;
    }
  }

  acquireLease(name: string, leaseId: string, durationSeconds: number, options?: CallOptions): Promise<void> {
    const run = (): Promise<void> => this.inner.acquireLease(name, leaseId, durationSeconds, options);
    return this.#call({ method: "acquireLease", name, signal: options?.signal, leaseId, run });
  }

  renewLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    return this.#call({
      method: "renewLease",
      name,
      signal: options?.signal,
      leaseId,
      run: () => this.inner.renewLease(name, leaseId, options),
    });
  }

  changeLease(name: string, fromId: string, toId: string, options?: CallOptions): Promise<void> {
    const run = (): Promise<void> => this.inner.changeLease(name, fromId, toId, options);
    return this.#call({ method: "changeLease", name, signal: options?.signal, leaseId: fromId, run });
  }

  releaseLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    return this.#call({
      method: "releaseLease",
      name,
      signal: options?.signal,
      leaseId,
      run: () => this.inner.releaseLease(name, leaseId, options),
    });
  }

  createPages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<{ readonly etag: string }> {
    return this.#call({
      method: "createPages",
      name,
      signal: options?.signal,
      run: () => this.inner.createPages(name, sizeBytes, sequenceNumber, options),
      freeze: () => () => this.inner.createPages(name, sizeBytes, sequenceNumber),
    });
  }

  writePages(name: string, offset: number, bytes: Uint8Array, fence: PageFence, options?: CallOptions): Promise<{ readonly etag: string }> {
    return this.#call({
      method: "writePages",
      name,
      signal: options?.signal,
      run: () => this.inner.writePages(name, offset, bytes, fence, options),
      freeze: () => {
        const copy = bytes.slice();
        return () => this.inner.writePages(name, offset, copy, fence);
      },
    });
  }

  readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    return this.#call({
      method: "readPages",
      name,
      signal: options?.signal,
      run: () => this.inner.readPages(name, offset, into, options),
      spoil: (_, how) => {
        if (how === "truncated") into.fill(0, Math.floor(into.length / 2));
        else this.#flipBit(into);
      },
    });
  }

  clearPages(name: string, offset: number, length: number, options?: CallOptions): Promise<void> {
    const run = (): Promise<void> => this.inner.clearPages(name, offset, length, options);
    return this.#call({ method: "clearPages", name, signal: options?.signal, run });
  }

  restorePages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<void> {
    const run = (): Promise<void> => this.inner.restorePages(name, sizeBytes, sequenceNumber, options);
    return this.#call({ method: "restorePages", name, signal: options?.signal, run });
  }

  statPages(name: string, options?: CallOptions): Promise<PagesStat> {
    return this.#call({ method: "statPages", name, signal: options?.signal, run: () => this.inner.statPages(name, options) });
  }

  raiseSequenceNumber(
    name: string,
    atLeast: number,
    options?: CallOptions,
  ): Promise<{ readonly etag: string; readonly sequenceNumber: number }> {
    const run = (): ReturnType<Sink["raiseSequenceNumber"]> => this.inner.raiseSequenceNumber(name, atLeast, options);
    return this.#call({ method: "raiseSequenceNumber", name, signal: options?.signal, run });
  }

  /** Disposes of the wrapped sink. What is still held back never arrives. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#late.length = 0;
    await this.inner[Symbol.asyncDispose]();
  }

  // ---- The one mechanism ----

  async #call<T>(call: Call<T>): Promise<T> {
    this.#checkAlive();
    this.#calls.push(`${call.method} ${call.name}`.trim());
    // The first fault that fires lies outermost.
    const faults = this.#plans.filter((plan) => this.#fires(plan, call)).map(({ planned }) => planned.fault);
    const run = faults.reduceRight<() => Promise<T>>((inner, fault) => () => this.#suffer(fault, call, inner), call.run);
    try {
      return await run();
    } finally {
      // Whatever was under way when the process died: nobody hears the answer.
      this.#checkAlive();
    }
  }

  #fires(plan: Plan, call: Pick<Call<unknown>, "method" | "name">): boolean {
    const { on, prefix, when } = plan.planned;
    if ((on !== "any" && on !== call.method) || !call.name.startsWith(prefix ?? "")) return false;
    plan.seen++;
    const fires = typeof when === "number" ? plan.seen === when : this.#random() < when.probability;
    if (fires) plan.fired++;
    return fires;
  }

  async #suffer<T>(fault: Fault, call: Call<T>, run: () => Promise<T>): Promise<T> {
    switch (fault.kind) {
      case "refused":
        if (fault.error.code === "STORE_UNREACHABLE" || fault.error.code === "OUTCOME_UNKNOWN") this.#interruptions++;
        throw fault.error;
      case "unacknowledged":
        assert(call.freeze !== undefined, `${call.method} is no write: its adapter asks again when an answer is lost`);
        await run();
        throw this.#lostAnswer(call);
      case "late":
        assert(call.freeze !== undefined, `${call.method} is no write: its adapter asks again when an answer is lost`);
        this.#late.push(call.freeze());
        throw this.#lostAnswer(call);
      case "slow":
        await fault.gate.pass(call.signal);
        this.#checkAlive();
        return await run();
      case "truncated":
      case "flipped":
        assert(call.spoil !== undefined, `${call.method} reads no bytes`);
        return call.spoil(await run(), fault.kind);
      case "lease-lost":
        assert(call.leaseId !== undefined, `this ${call.method} relies on no lease`);
        await this.inner.releaseLease(call.name, call.leaseId);
        return await run();
      case "crash":
        // Dead at once for all other calls; this one may still reach the store, which nobody will hear of.
        this.#crashedAt ??= `call ${String(this.#calls.length)} (${this.#calls.at(-1) ?? ""}), ${fault.effect} its effect`;
        if (fault.effect === "after") await Promise.allSettled([run()]);
        throw this.#crash();
    }
  }

  #lostAnswer(call: Pick<Call<unknown>, "method" | "name">): TidemarkError {
    this.#interruptions++;
    return new TidemarkError("OUTCOME_UNKNOWN", `the answer to ${call.method} ${call.name} was lost`, { detail: { object: call.name } });
  }

  #checkAlive(): void {
    if (this.#crashedAt !== undefined) throw this.#crash();
  }

  #crash(): CrashError {
    return new CrashError(`the process died at ${this.#crashedAt ?? "its start"}`);
  }

  #flipBit(bytes: Uint8Array): void {
    const at = Math.floor(this.#random() * bytes.length);
    bytes[at] = (bytes[at] ?? 0) ^ (1 << Math.floor(this.#random() * 8));
  }
}

/** Numbers in [0, 1) that follow from the seed alone (mulberry32, by Tommy Ettinger, public domain). */
function randomFrom(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}

function nothing(): void {
  return;
}
