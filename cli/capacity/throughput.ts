/**
 * Throughput of a store: page writes and page reads of 4 MiB in as many lanes as a writer has, and
 * small objects one after the other, as a commit writes them.
 *
 * What it makes has names that begin with `capacity-RUN-`, where RUN is a UUID. The object `lease` of
 * a run is made first and removed last, and is leased while the run goes on. So a run that finds
 * names whose lease is free knows that their run is dead, and removes them: at its beginning, and
 * again at its end, when the lease of a run that was killed a moment before has run out. The names
 * have no folder, because a store that is a folder keeps empty ones.
 *
 * Invariant: a run that ends, by an error or ^C too, has removed what it made; the next run removes
 * what a killed run has left.
 */
import { randomBytes, randomUUID } from "node:crypto";
import { type CallOptions, hasCode, pageWriteBytesMax, type Sink } from "../../engine/index.ts";

const prefix = "capacity-";
/** The prefix, a UUID and a hyphen. */
const runPrefixLength: number = prefix.length + 37;
const pagesBytes: number = 64 * 1024 * 1024;
const smallBytes = 2_048;
const leaseSeconds = 15;
const renewEveryMs = 5_000;
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
  const [measured] = await Promise.allSettled([measure(sink, run, options)]);
  const [removed] = await Promise.allSettled([run.remove()]);
  if (measured.status === "rejected") throw measured.reason;
  if (removed.status === "rejected") throw removed.reason;
  return { ...measured.value, removedLeftovers: before + (await removeLeftovers(sink, { signal })) };
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

/** Objects of a run, with the lease that tells that the run goes on. */
class RunObjects {
  readonly prefix: string = `${prefix}${randomUUID()}-`;
  readonly #sink: Sink;
  readonly #id: string = randomUUID();
  #timer: NodeJS.Timeout | undefined;
  #renewing: Promise<void> = Promise.resolve();

  constructor(sink: Sink) {
    this.#sink = sink;
  }

  async begin(options: CallOptions): Promise<void> {
    const name = leaseOf(this.prefix);
    await this.#sink.putObject(name, new Uint8Array(1), { ifAbsent: true }, options);
    await this.#sink.acquireLease(name, this.#id, leaseSeconds, options);
    this.#timer = setInterval(() => {
      // A lost lease lets another run remove the objects. The next transfer then fails and says so.
      this.#renewing = this.#sink.renewLease(name, this.#id).catch(() => clearInterval(this.#timer));
    }, renewEveryMs);
  }

  /** Takes no signal: what was made is removed after ^C, too. */
  async remove(): Promise<void> {
    clearInterval(this.#timer);
    await this.#renewing;
    await removeObjects(this.#sink, this.prefix, this.#id);
  }
}

function leaseOf(run: string): string {
  return `${run}lease`;
}

/** Removes what killed runs have left. Returns the number of objects. */
async function removeLeftovers(sink: Sink, options: CallOptions): Promise<number> {
  const runs = new Set<string>();
  for await (const { name } of sink.list(prefix, options)) runs.add(name.slice(0, runPrefixLength));
  let removed = 0;
  for (const run of runs) {
    const id = randomUUID();
    try {
      await sink.acquireLease(leaseOf(run), id, leaseSeconds, options);
    } catch (error) {
      if (hasCode(error, "LEASE_HELD")) continue;
      // The lease goes last: without it the run has just ended, or nearly.
      if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
    }
    removed += await removeObjects(sink, run, id, options);
  }
  return removed;
}

/** Removes what a run has made, the lease that `id` holds last. Returns the number of objects. */
async function removeObjects(sink: Sink, run: string, id: string, options: CallOptions = {}): Promise<number> {
  const lease = leaseOf(run);
  const names: string[] = [];
  for await (const { name } of sink.list(run, options)) names.push(name);
  const others = names.filter((name) => name !== lease);
  await Promise.all(others.map(async (name) => await sink.deleteObject(name, options)));
  if (others.length < names.length) {
    await sink.releaseLease(lease, id, options);
    await sink.deleteObject(lease, options);
  }
  return names.length;
}
