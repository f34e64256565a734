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
import type { CallOptions, ListedObject, Sink, StoredObject } from "../engine/index.ts";
import { interrupted, TidemarkError } from "../engine/index.ts";
import { type Answer, SinkDecorator, type SinkRequest } from "../engine/internal.ts";

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
      stop = () => reject(interrupted(signal));
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

/** A call before it is sent. */
interface Call<Result> {
  readonly method: SinkMethod;
  readonly name: string;
  readonly parameters: readonly unknown[];
  readonly run: (parameters: readonly unknown[]) => Promise<Result>;
}

const writes: readonly SinkMethod[] = ["putObject", "createPages", "writePages"];

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
export class FaultySink extends SinkDecorator {
  /** Every call so far, as "method name". */
  readonly calls: readonly string[];
  readonly #calls: string[] = [];
  readonly #plans: readonly Plan[];
  readonly #random: () => number;
  readonly #late: (() => Promise<unknown>)[] = [];
  #crashedAt: string | undefined;

  constructor(inner: Sink, faults: readonly PlannedFault[], seed = 1) {
    super(inner);
    this.calls = this.#calls;
    this.#plans = faults.map((planned) => ({ planned, seen: 0, fired: 0 }));
    this.#random = randomFrom(seed);
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

  /** Counts as one call, however many objects it yields. A crash in between ends it. */
  override async *list(...parameters: [prefix: string, options?: CallOptions]): AsyncGenerator<ListedObject, void> {
    const run = async (): Promise<AsyncIterable<ListedObject>> => await Promise.resolve(super.list(...parameters));
    const found = await this.#call({ method: "list", name: parameters[0], parameters, run });
    for await (const object of found) {
      this.#checkAlive();
      yield object;
    }
  }

  /** Disposes of the wrapped sink. Requests still held back are dropped. */
  override async [Symbol.asyncDispose](): Promise<void> {
    this.#late.length = 0;
    await super[Symbol.asyncDispose]();
  }

  /** @internal */
  protected override async send<Method extends SinkRequest>(
    method: Method,
    parameters: readonly [...Parameters<Sink[Method]>],
  ): Promise<Answer<Method>> {
    const [name] = parameters;
    const run = async (given: readonly unknown[]): Promise<Answer<Method>> =>
      await super.send(method, given as typeof parameters);
    return await this.#call({ method, name: typeof name === "string" ? name : "", parameters, run });
  }

  async #call<T>(call: Call<T>): Promise<T> {
    this.#checkAlive();
    this.#calls.push(`${call.method} ${call.name}`.trim());
    // The first fault that fires is the outermost.
    const faults = this.#plans.filter((plan) => this.#fires(plan, call)).map(({ planned }) => planned.fault);
    const run = faults.reduceRight<() => Promise<T>>(
      (inner, fault) => () => this.#suffer(fault, call, inner),
      () => call.run(call.parameters),
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
      case "late":
        assert(writes.includes(call.method), `${call.method} is no write: adapters repeat it when an answer is lost`);
        if (fault.kind === "late") this.#late.push(this.#frozen(call));
        else await run();
        throw lostAnswer(call);
      case "slow":
        await fault.gate.pass(call.parameters.find(isOptions)?.signal);
        this.#checkAlive();
        return await run();
      case "truncated":
      case "flipped":
        return this.#spoiled(call, await run(), fault.kind);
      case "lease-lost": {
        const leaseId = leaseIdOf(call);
        assert(leaseId !== undefined, `this ${call.method} needs no lease`);
        await this.inner.releaseLease(call.name, leaseId);
        return await run();
      }
      case "crash":
        // All other calls fail from now on; this one may still reach the store.
        this.#crashedAt ??= `call ${String(this.#calls.length)} (${this.#calls.at(-1) ?? ""}), ${fault.effect} its effect`;
        if (fault.effect === "after") await Promise.allSettled([run()]);
        throw this.#crash();
    }
  }

  /** A write with a copy of its bytes: it may run after the caller's promise has settled. */
  #frozen({ parameters, run }: Call<unknown>): () => Promise<unknown> {
    const copy = parameters
      .filter((part) => !isOptions(part))
      .map((part) => (part instanceof Uint8Array ? Uint8Array.from(part) : part));
    return async () => await run(copy);
  }

  /** What has been read, with a fault. */
  #spoiled<Result>({ method, parameters }: Call<Result>, read: Result, how: "truncated" | "flipped"): Result {
    assert(method === "getObject" || method === "readPages", `${method} reads no bytes`);
    const bytes = method === "getObject" ? (read as StoredObject).bytes : (parameters[2] as Uint8Array);
    const half = Math.floor(bytes.length / 2);
    if (how === "flipped") this.#flipBit(bytes);
    else if (method === "readPages") bytes.fill(0, half);
    else return { ...read, bytes: bytes.slice(0, half) };
    return read;
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

/** The lease that a call needs: of a lease call its second parameter, of a put a part of the condition. */
function leaseIdOf({ method, parameters: [, second, condition] }: Call<unknown>): string | undefined {
  if (method === "putObject") return (condition as { readonly leaseId?: string }).leaseId;
  return method.endsWith("Lease") ? String(second) : undefined;
}

function isOptions(part: unknown): part is CallOptions {
  return typeof part === "object" && part !== null && "signal" in part;
}

function nothing(): void {
  return;
}

function lostAnswer(call: Pick<Call<unknown>, "method" | "name">): TidemarkError {
  return new TidemarkError("OUTCOME_UNKNOWN", `the answer to ${call.method} ${call.name} was lost`, {
    detail: { object: call.name },
  });
}
