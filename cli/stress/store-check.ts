/**
 * Check of a store: does it keep the contract of `Sink`, on which every guarantee of Tidemark rests?
 *
 * The conformance suite runs against it, each check in a container of its own. Of a check that fails
 * the calls are told that it made, with their outcomes: they are the shortest reproduction. Then a
 * mix of load looks for what only shows under load: lost updates, torn or foreign pages.
 */
import { randomBytes } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import { inspect } from "node:util";
import { hasCode, type Sink, TidemarkError, throwIfAborted } from "../../engine/index.ts";
import { Azurite, openSink, parseVaultSpec } from "../../sink/index.ts";
import { MemorySink, MemoryStore, type OpenedSinks, sinkConformance } from "../../sink/testing.ts";
import { type Environment, sinkOptions } from "../settings.ts";
import { Histogram, type Percentiles } from "./measures.ts";

/** Calls that are told of a check that failed. */
const callsToldMax = 20;
const clients = 4;
const pageBytes: number = 256 * 1024;
const pagesPerObject = 32;
/** Of each client, however slow the machine is. */
const turnsMin = 16;

/** One guarantee, and whether the store keeps it. */
export interface CheckedGuarantee {
  readonly group: string;
  readonly name: string;
  readonly holds: boolean;
  /** Why not; null when it holds. */
  readonly message: string | null;
  /** What the check did, up to what failed; empty when it holds. */
  readonly calls: readonly string[];
}

export interface LoadStats extends Percentiles {
  readonly operation: string;
}

export interface StoreReport {
  /** Every guarantee holds, and the load found nothing. */
  readonly sound: boolean;
  readonly vault: string;
  readonly guarantees: readonly CheckedGuarantee[];
  readonly load: readonly LoadStats[];
  /** What the load found that must not be. */
  readonly faults: readonly string[];
  readonly elapsedMs: number;
}

export interface StoreCheckOptions {
  /** Opens sinks on new, empty containers. */
  readonly open: () => Promise<OpenedSinks>;
  readonly vault: string;
  /** Length of the load. */
  readonly seconds: number;
  readonly onStep: (text: string) => void;
  readonly signal: AbortSignal;
}

/**
 * Runs the suite, then the load. What does not hold is no error. Errors: INTERRUPTED, and those of opening:
 * a store on which no container can be opened is gone, and says nothing about its guarantees.
 */
export async function checkStore(options: StoreCheckOptions): Promise<StoreReport> {
  const startedAtMs = performance.now();
  const guarantees: CheckedGuarantee[] = [];
  let calls: string[] = [];
  let lost: unknown;
  const open = async (): Promise<OpenedSinks> => {
    const opened = await options.open().catch((error: unknown) => {
      lost = error;
      throw error;
    });
    const { a, b, absent, cleanup } = opened;
    return { a: noting(a, "a", calls), b: noting(b, "b", calls), absent: noting(absent, "absent", calls), cleanup };
  };
  const checks = sinkConformance(open);
  for (const [index, { group, name, run }] of checks.entries()) {
    throwIfAborted(options.signal);
    options.onStep(`checking guarantees: ${index + 1} of ${checks.length}`);
    calls.length = 0;
    const failure = await run().then(
      () => undefined,
      (error: unknown) => error,
    );
    if (lost instanceof Error) throw lost;
    const message = failure === undefined ? null : failure instanceof Error ? failure.message : "it threw no error";
    const told = failure === undefined ? [] : calls.slice(-callsToldMax);
    guarantees.push({ group: group.slice(1).join(", "), name, holds: failure === undefined, message, calls: told });
  }
  calls = [];
  options.onStep("load");
  const { load, faults } = await loadMix(options);
  return {
    sound: faults.length === 0 && guarantees.every(({ holds }) => holds),
    vault: options.vault,
    guarantees,
    load,
    faults,
    elapsedMs: Math.round(performance.now() - startedAtMs),
  };
}

/** Clients that write and read pages, and add to one counter by compare-and-swap. */
async function loadMix({ open, seconds, signal }: StoreCheckOptions): Promise<Pick<StoreReport, "load" | "faults">> {
  const latencies = new Map<string, Histogram>();
  const faults: string[] = [];
  const timed = async <Result>(operation: string, call: () => Promise<Result>): Promise<Result> => {
    const startedAtMs = performance.now();
    const result = await call();
    const histogram = latencies.get(operation) ?? new Histogram();
    latencies.set(operation, histogram);
    histogram.add(performance.now() - startedAtMs);
    return result;
  };
  const opened = await open();
  const untilMs = performance.now() + seconds * 1_000;
  let added = 0;
  const client = async (sink: Sink, number: number): Promise<void> => {
    const name = `load/${number}`;
    const pages: Buffer[] = [];
    await timed("createPages", async () => await sink.createPages(name, pageBytes * pagesPerObject, 1));
    for (let turn = 0; (turn < turnsMin || performance.now() < untilMs) && !signal.aborted; turn += 1) {
      const at = turn % pagesPerObject;
      const bytes = randomBytes(pageBytes);
      await timed("writePages", async () => await sink.writePages(name, at * pageBytes, bytes, { sequenceNumber: 1 }));
      pages[at] = bytes;
      const back = Buffer.alloc(pageBytes);
      const other = (turn * 7) % pages.length;
      await timed("readPages", async () => await sink.readPages(name, other * pageBytes, back));
      if (!back.equals(pages[other] ?? back)) faults.push(`${name}: page ${other} is not what was written last`);
      const { bytes: before, etag } = await timed("getObject", async () => await sink.getObject("load/counter", 20));
      const next = Buffer.from(String(numberIn(before) + 1));
      try {
        await timed("putObject", async () => await sink.putObject("load/counter", next, { ifMatch: etag }));
        added += 1;
      } catch (error) {
        if (!hasCode(error, "CONDITION_FAILED")) throw error;
        await delay(1);
      }
    }
  };
  try {
    const { a, b } = opened;
    await a.putObject("load/counter", Buffer.from("0"), { ifAbsent: true });
    const ended = await Promise.allSettled(
      Array.from({ length: clients }, async (_, number) => await client(number % 2 === 0 ? a : b, number)),
    );
    for (const outcome of ended) if (outcome.status === "rejected") faults.push(String(outcome.reason));
    const counted = numberIn((await a.getObject("load/counter", 20)).bytes);
    if (counted !== added) faults.push(`${added} compare-and-swaps succeeded, and ${counted} were counted`);
  } finally {
    await opened.cleanup();
  }
  const load = [...latencies].map(([operation, latency]) => ({ operation, ...latency.percentiles() }));
  return { load, faults: [...new Set(faults)] };
}

function numberIn(bytes: Uint8Array): number {
  return Number(Buffer.from(bytes).toString());
}

/** A sink that notes each call with its outcome. */
function noting(inner: Sink, who: string, calls: string[]): Sink {
  return new Proxy(inner, {
    get(target, property) {
      const value: unknown = Reflect.get(target, property, target);
      if (typeof value !== "function" || typeof property !== "string") {
        return typeof value === "function" ? (value.bind(target) as unknown) : value;
      }
      return (...given: unknown[]): unknown => {
        const index = calls.push(`${who}.${property}(${given.map(shown).join(", ")})`) - 1;
        const note = (outcome: string): void => {
          calls[index] = `${calls[index] ?? ""} → ${outcome}`;
        };
        const result: unknown = Reflect.apply(value, target, given);
        if (result instanceof Promise)
          result.then(
            (answer) => note(shown(answer)),
            (error: unknown) => note(error instanceof TidemarkError ? error.code : "an error"),
          );
        return result;
      };
    },
  });
}

/** An argument or an answer in a few words. */
function shown(value: unknown): string {
  if (value instanceof Uint8Array) return `${value.byteLength} bytes`;
  if (value instanceof AbortSignal) return value.aborted ? "aborted" : "signal";
  if (value === undefined) return "done";
  if (typeof value === "string") return JSON.stringify(value);
  if (typeof value !== "object" || value === null) return inspect(value);
  const fields = Object.entries(value).map(([name, field]) => `${name}: ${shown(field)}`);
  return `{ ${fields.join(", ")} }`;
}

/** What makes containers for the checks, and is closed after them. */
export interface Scratch extends AsyncDisposable {
  readonly open: () => Promise<OpenedSinks>;
}

/** Containers beside the one that `vault` names; each is removed after its check. Errors: those of the store. */
export async function openScratch(vault: string, environment: Environment, signal: AbortSignal): Promise<Scratch> {
  const spec = parseVaultSpec(vault);
  const run = randomBytes(4).toString("hex");
  let made = 0;
  const azurite = spec.kind === "azurite" ? await Azurite.start(spec.dir, { signal }) : undefined;
  const credentials = azurite === undefined ? environment : { AZURE_STORAGE_KEY: azurite.key };
  const addressOf = (): string => {
    made += 1;
    const name = `check-${run}-${made}`;
    if (spec.kind === "memory") return "memory:";
    if (spec.kind === "directory") return `dir:${join(spec.dir, name)}`;
    if (spec.kind === "azure") {
      const query = spec.sas === undefined ? "" : `?${spec.sas}`;
      return `${new URL(name, spec.containerUrl).href}${query}`;
    }
    return `${azurite?.endpoint ?? ""}/${name}`;
  };
  const sinkAt = async (address: string): Promise<Sink> =>
    await openSink(address, sinkOptions(address, credentials, new AbortController().signal));
  const open = async (): Promise<OpenedSinks> => {
    const [address, elsewhere] = [addressOf(), addressOf()];
    const memory = new MemoryStore();
    const [a, b, absent] =
      spec.kind === "memory"
        ? [new MemorySink({ store: memory }), new MemorySink({ store: memory }), new MemorySink()]
        : [await sinkAt(address), await sinkAt(address), await sinkAt(elsewhere)];
    await a.createContainer();
    const cleanup = async (): Promise<void> => {
      for (const sink of [a, b, absent]) await sink[Symbol.asyncDispose]();
      for (const made of [address, elsewhere]) await removeContainer(made, sinkAt);
    };
    return { a, b, absent, cleanup };
  };
  return { open, [Symbol.asyncDispose]: async () => await azurite?.stop() };
}

async function removeContainer(address: string, sinkAt: (address: string) => Promise<Sink>): Promise<void> {
  const spec = parseVaultSpec(address);
  if (spec.kind === "directory") await rm(spec.dir, { recursive: true, force: true });
  if (spec.kind !== "azure") return;
  await using sink = await sinkAt(address);
  if (canDeleteContainer(sink)) await sink.deleteContainer();
}

function canDeleteContainer(sink: Sink): sink is Sink & { deleteContainer(): Promise<void> } {
  return "deleteContainer" in sink;
}
