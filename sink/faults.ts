/**
 * Fault injection: a wrapper around any sink that makes chosen calls fail in the ways in which
 * stores fail.
 *
 * A plan is a list of faults. Each names the calls it applies to and when it fires: at the n-th
 * such call, or with a probability drawn from the wrapper's seed. Wrappers nest. `calls` lists the
 * calls so far. `assertAllFired` throws when a planned fault has not fired, because such a test
 * proves nothing.
 */
import assert from "node:assert/strict";
import type {
  CallOptions,
  ListedObject,
  ObjectStat,
  PageFence,
  PagesStat,
  PutCondition,
  Sink,
  StoredObject,
} from "../engine/index.ts";
import { interrupted, TidemarkError } from "../engine/index.ts";

/** A method of `Sink` that a fault can apply to. */
export type SinkMethod = Exclude<
  keyof Sink,
  "description" | "capabilities" | "clockAheadMs" | typeof Symbol.asyncDispose
>;

/** How a call fails. */
export type Fault =
  /** The call fails without an effect. */
  | { readonly kind: "refused"; readonly error: TidemarkError }
  /**
   * The call takes effect and its answer is lost: OUTCOME_UNKNOWN. Writes only: adapters repeat all
   * other calls themselves.
   */
  | { readonly kind: "unacknowledged" }
  /**
   * OUTCOME_UNKNOWN now; the request, with its fence, reaches the store when the test calls
   * `releaseLate`. Writes only.
   */
  | { readonly kind: "late" }
  /** The call waits at the gate before it takes effect. */
  | { readonly kind: "slow"; readonly gate: Gate }
  /** The second half of what is read is missing: an object is shorter, pages are zeros. */
  | { readonly kind: "truncated" }
  /** One bit of what is read is wrong. */
  | { readonly kind: "flipped" }
  /** The lease that the call needs is released before the call arrives. */
  | { readonly kind: "lease-lost" }
  /**
   * The process dies before or after the call takes effect: it and every later call reject with
   * CrashError.
   */
  | { readonly kind: "crash"; readonly effect: "before" | "after" };

/** A fault, the calls it applies to, and when it fires. */
export interface PlannedFault {
  readonly on: SinkMethod | "any";
  /** Only calls on names (for `list`, prefixes) that start with this. */
  readonly prefix?: string;
  /** The number of the call among those, from 1; or a probability for each. */
  readonly when: number | { readonly probability: number };
  readonly fault: Fault;
}

/** Stands for the death of the process; no TidemarkError, so that it is no answer of the store. */
export class CrashError extends Error {
  override readonly name = "CrashError";
}

/** A barrier at which `slow` calls wait until a test opens it. */
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

  /** Lets waiting and later calls pass. */
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

/** A call before it is sent: how to run it, and what the faults need. */
interface Call<T> {
  readonly method: SinkMethod;
  readonly name: string;
  readonly signal: AbortSignal | undefined;
  readonly run: () => Promise<T>;
  /**
   * Writes only: the call with a copy of its bytes, which may run after the caller's promise has
   * settled.
   */
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

/**
 * A sink whose chosen calls fail. Disposing of it disposes of the wrapped sink.
 *
 * @example
 * ```ts
 * const sink = new FaultySink(new MemorySink(), [{ on: "putObject", when: 2, fault: { kind: "unacknowledged" } }]);
 * // … run the code under test, then:
 * sink.assertAllFired();
 * ```
 */
export class FaultySink implements Sink {
  readonly inner: Sink;
  /** Every call so far, as "method name". */
  readonly calls: readonly string[];
  readonly #calls: string[] = [];
  readonly #plans: readonly Plan[];
  readonly #random: () => number;
  readonly #late: (() => Promise<unknown>)[] = [];
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

  get clockAheadMs(): number {
    return this.inner.clockAheadMs;
  }

  /**
   * Sends the requests that `late` faults held back, in the order of their calls. Returns what the
   * store answered to each.
   */
  async releaseLate(): Promise<PromiseSettledResult<unknown>[]> {
    const results: PromiseSettledResult<unknown>[] = [];
    for (const original of this.#late.splice(0)) results.push(...(await Promise.allSettled([original()])));
    return results;
  }

  /** Throws an AssertionError when a planned fault has not fired. */
  assertAllFired(): void {
    const idle = this.#plans
      .filter(({ fired }) => fired === 0)
      .map(({ planned }) => `${planned.fault.kind} on ${planned.on} ${planned.prefix ?? ""}`.trim());
    assert(idle.length === 0, `planned faults that never fired: ${idle.join(", ")}; calls: ${this.#calls.join(", ")}`);
  }

  createContainer(options?: CallOptions): Promise<boolean> {
    return this.#call({
      method: "createContainer",
      name: "",
      signal: options?.signal,
      run: () => this.inner.createContainer(options),
    });
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

  putObject(
    name: string,
    bytes: Uint8Array,
    condition: PutCondition,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
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
    return this.#call({
      method: "statObject",
      name,
      signal: options?.signal,
      run: () => this.inner.statObject(name, options),
    });
  }

  deleteObject(name: string, options?: CallOptions): Promise<void> {
    return this.#call({
      method: "deleteObject",
      name,
      signal: options?.signal,
      run: () => this.inner.deleteObject(name, options),
    });
  }

  /** Counts as one call, however many objects it yields. A crash in between ends it. */
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

  createPages(
    name: string,
    sizeBytes: number,
    sequenceNumber: number,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
    return this.#call({
      method: "createPages",
      name,
      signal: options?.signal,
      run: () => this.inner.createPages(name, sizeBytes, sequenceNumber, options),
      freeze: () => () => this.inner.createPages(name, sizeBytes, sequenceNumber),
    });
  }

  writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
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
    return this.#call({
      method: "statPages",
      name,
      signal: options?.signal,
      run: () => this.inner.statPages(name, options),
    });
  }

  raiseSequenceNumber(
    name: string,
    atLeast: number,
    options?: CallOptions,
  ): Promise<{ readonly etag: string; readonly sequenceNumber: number }> {
    const run = (): ReturnType<Sink["raiseSequenceNumber"]> => this.inner.raiseSequenceNumber(name, atLeast, options);
    return this.#call({ method: "raiseSequenceNumber", name, signal: options?.signal, run });
  }

  /** Disposes of the wrapped sink. Requests still held back are dropped. */
  async [Symbol.asyncDispose](): Promise<void> {
    this.#late.length = 0;
    await this.inner[Symbol.asyncDispose]();
  }

  // ---- The one mechanism ----

  async #call<T>(call: Call<T>): Promise<T> {
    this.#checkAlive();
    this.#calls.push(`${call.method} ${call.name}`.trim());
    // The first fault that fires is the outermost.
    const faults = this.#plans.filter((plan) => this.#fires(plan, call)).map(({ planned }) => planned.fault);
    const run = faults.reduceRight<() => Promise<T>>(
      (inner, fault) => () => this.#suffer(fault, call, inner),
      call.run,
    );
    try {
      return await run();
    } finally {
      // Calls in flight when the process died have no answer.
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
        throw fault.error;
      case "unacknowledged":
        assert(call.freeze !== undefined, `${call.method} is no write: adapters repeat it when an answer is lost`);
        await run();
        throw lostAnswer(call);
      case "late":
        assert(call.freeze !== undefined, `${call.method} is no write: adapters repeat it when an answer is lost`);
        this.#late.push(call.freeze());
        throw lostAnswer(call);
      case "slow":
        await fault.gate.pass(call.signal);
        this.#checkAlive();
        return await run();
      case "truncated":
      case "flipped":
        assert(call.spoil !== undefined, `${call.method} reads no bytes`);
        return call.spoil(await run(), fault.kind);
      case "lease-lost":
        assert(call.leaseId !== undefined, `this ${call.method} needs no lease`);
        await this.inner.releaseLease(call.name, call.leaseId);
        return await run();
      case "crash":
        // All other calls fail from now on; this one may still reach the store.
        this.#crashedAt ??= `call ${String(this.#calls.length)} (${this.#calls.at(-1) ?? ""}), ${fault.effect} its effect`;
        if (fault.effect === "after") await Promise.allSettled([run()]);
        throw this.#crash();
    }
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

/** Pseudorandom numbers in [0, 1) (mulberry32, by Tommy Ettinger, public domain). */
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

function lostAnswer(call: Pick<Call<unknown>, "method" | "name">): TidemarkError {
  return new TidemarkError("OUTCOME_UNKNOWN", `the answer to ${call.method} ${call.name} was lost`, {
    detail: { object: call.name },
  });
}
