/**
 * Throughput of a store: page writes and page reads of 4 MiB in as many lanes as a writer has, and
 * small objects one after the other, as a commit writes them.
 *
 * What killed runs have left is removed at the beginning, and again at the end, when the lease of a
 * run that was killed a moment before has run out.
 */
import { randomBytes } from "node:crypto";
import { pageWriteBytesMax, type Sink } from "../../engine/index.ts";
import { closing } from "../../engine/internal.ts";
import { RunObjects, removeLeftovers } from "./run-objects.ts";

const pagesBytes: number = 64 * 1024 * 1024;
const smallBytes = 2_048;
/** Parts of the time: page writes, then page reads; small objects have the rest. */
const putShare = 0.6;
const getShare = 0.3;

export interface Latency {
  readonly p50Ms: number;
  readonly p95Ms: number;
  readonly p99Ms: number;
  readonly maxMs: number;
}

export interface Transfers {
  readonly requests: number;
  readonly bytes: number;
  readonly bytesPerSecond: number;
  readonly latency: Latency;
}

export interface Throughput {
  readonly lanes: number;
  /** Page writes of 4 MiB in all lanes. */
  readonly put: Transfers;
  /** Page reads of 4 MiB in all lanes. */
  readonly get: Transfers;
  /** Objects of 2 KiB, one after the other. */
  readonly small: Transfers;
  /** Objects of killed runs that were removed. */
  readonly removedLeftovers: number;
}

export interface ThroughputOptions {
  readonly lanes: number;
  readonly forMs: number;
  readonly signal: AbortSignal;
  readonly onStep: (step: "put" | "get" | "small") => void;
}

/** Measures. Errors: those of the sink; INTERRUPTED. */
export async function measureThroughput(sink: Sink, options: ThroughputOptions): Promise<Throughput> {
  const { signal } = options;
  const before = await removeLeftovers(sink, { signal });
  const run = new RunObjects(sink);
  const objects = { [Symbol.asyncDispose]: async (): Promise<void> => await run.remove() };
  const measured = await closing(objects, async () => await measure(sink, run, options));
  return { ...measured, removedLeftovers: before + (await removeLeftovers(sink, { signal })) };
}

async function measure(
  sink: Sink,
  run: RunObjects,
  { lanes, forMs, signal, onStep }: ThroughputOptions,
): Promise<Omit<Throughput, "removedLeftovers">> {
  await run.begin({ signal });
  const bytes = randomBytes(pageWriteBytesMax);
  const names = Array.from({ length: lanes }, (_, lane) => `${run.prefix}pages-${lane}`);
  await Promise.all(names.map(async (name) => await sink.createPages(name, pagesBytes, 1, { signal })));
  const offsetOf = (turn: number): number => (turn * pageWriteBytesMax) % pagesBytes;
  onStep("put");
  const written: number[] = names.map(() => 0);
  const put = await transfer(lanes, forMs * putShare, bytes.length, signal, async (lane, turn) => {
    await sink.writePages(names[lane] ?? "", offsetOf(turn), bytes, { sequenceNumber: 1 }, { signal });
    written[lane] = turn + 1;
  });
  onStep("get");
  const intos = names.map(() => Buffer.alloc(pageWriteBytesMax));
  const get = await transfer(lanes, forMs * getShare, bytes.length, signal, async (lane, turn) => {
    const offset = offsetOf(turn % Math.max(1, written[lane] ?? 1));
    await sink.readPages(names[lane] ?? "", offset, intos[lane] ?? bytes, { signal });
  });
  onStep("small");
  let etag: string | undefined;
  const small = await transfer(1, forMs * (1 - putShare - getShare), smallBytes, signal, async () => {
    const condition = etag === undefined ? ({ ifAbsent: true } as const) : { ifMatch: etag };
    etag = (await sink.putObject(`${run.prefix}small`, bytes.subarray(0, smallBytes), condition, { signal })).etag;
  });
  return { lanes, put, get, small };
}

/** Makes transfers in each lane until the time is over, at least one. */
async function transfer(
  lanes: number,
  forMs: number,
  bytesEach: number,
  signal: AbortSignal,
  once: (lane: number, turn: number) => Promise<void>,
): Promise<Transfers> {
  const latencies: number[] = [];
  const begun = performance.now();
  const work = Array.from({ length: lanes }, async (_, lane) => {
    for (let turn = 0; turn === 0 || performance.now() - begun < forMs; turn += 1) {
      signal.throwIfAborted();
      const from = performance.now();
      await once(lane, turn);
      latencies.push(performance.now() - from);
    }
  });
  // All have ended before anything is removed.
  const failed = (await Promise.allSettled(work)).find((each) => each.status === "rejected");
  if (failed !== undefined) throw failed.reason;
  const elapsedMs = performance.now() - begun;
  const bytes = latencies.length * bytesEach;
  return {
    requests: latencies.length,
    bytes,
    bytesPerSecond: Math.round(bytes / (elapsedMs / 1_000)),
    latency: latencyOf(latencies),
  };
}

function latencyOf(latencies: readonly number[]): Latency {
  const sorted = [...latencies].sort((a, b) => a - b);
  const at = (share: number): number =>
    Math.round((sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] ?? 0) * 10) / 10;
  return { p50Ms: at(0.5), p95Ms: at(0.95), p99Ms: at(0.99), maxMs: at(1) };
}
