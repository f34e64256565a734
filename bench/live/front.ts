/**
 * Benchmark: the front end of a protected disk. fio's patterns run against our server while
 * replication rests and while a cycle of the schedule drains to the store, beside qemu-nbd on a disk
 * with the same content; and the time for which a cut holds writes. Then the same without qemu-nbd
 * ("no store") into one that takes 1 Gbit/s and costs no processor time. The limit is the highest rate of
 * changes, of which a cycle drains an interval's worth, beside which the first pattern keeps its marks.
 *
 * Both servers and fio are processes of their own on files in the page cache, so the way to the
 * disk is measured and not the disk. The two servers take turns, pattern by pattern.
 */
import { randomFillSync } from "node:crypto";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { type Sink, throwIfAborted } from "../../engine/index.ts";
import { copySparsely, rangeBytes } from "../image.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { median, StepLog, type StepTraits } from "../steps.ts";
import type { Mark } from "../targets.ts";
import { benchBarrier } from "./barrier.ts";
import { type FioFigures, type FioPattern, runFio } from "./fio.ts";
import { findLimit, highestRate, megabytes } from "./limit.ts";
import { LivePlace } from "./place.ts";
import { startServer } from "./programs.ts";
import { nbdUri, type ProtectingProcess } from "./protecting-process.ts";

interface Pattern {
  readonly pattern: FioPattern;
  readonly requestBytes: number;
  readonly name: string;
}

const patterns: readonly Pattern[] = [
  { pattern: "randwrite", requestBytes: 4_096, name: "randwrite 4k" },
  { pattern: "randwrite", requestBytes: 65_536, name: "randwrite 64k" },
  { pattern: "write", requestBytes: 1_048_576, name: "write 1m" },
  { pattern: "randread", requestBytes: 4_096, name: "randread 4k" },
  { pattern: "read", requestBytes: 1_048_576, name: "read 1m" },
  { pattern: "randrw", requestBytes: 4_096, name: "randrw 4k" },
];

/**
 * The pace of a drain fills this part of the interval (`paceTiming.windowShare`): with it, a cycle
 * drains for about as long as fio runs.
 */
const drainedShare = 0.7;

/** One way to serve the disk, in one pattern: what each run gave. */
interface Served {
  readonly perSecond: number[];
  readonly p99Us: number[];
}

const ways = ["qemu-nbd", "idle", "draining"] as const;
const ownWays = ["idle", "draining"] as const;
type Way = (typeof ways)[number];

interface Result {
  readonly pattern: Pattern;
  readonly served: Record<Way, Served>;
}

export async function benchFront(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { temporaryFolder: folder, live, signal } = config;
  return await LivePlace.use(config, store, async (place) => {
    config.begin("write the disk");
    if (config.image === "") await fill(place.image, live.diskBytes, signal);
    const twin = join(folder, "twin.img");
    await copySparsely(place.image, twin, signal);
    const { sizeBytes } = await place.facts();
    const cycleMs = Math.max(1_000, Math.round((live.seconds * 1_000) / drainedShare));
    const measured = await place.protecting(cycleMs, async (process) => {
      const peer = await QemuNbd.start(twin, folder, signal);
      try {
        return await measure(
          config,
          log,
          { process, cycleMs, files: [place.image, twin], sizeBytes, store: "" },
          peer.uri,
        );
      } finally {
        await peer.end();
      }
    });
    const hashes = await place.prove();
    const store = ", no store";
    const discarded = await place.protecting(
      cycleMs,
      async (process) => await measure(config, log, { process, cycleMs, files: [place.image], sizeBytes, store }),
      { isDiscarded: true },
    );
    const barrier = await benchBarrier(config);
    return {
      image: await place.facts(),
      steps: log.steps(),
      marks: [
        ...measured.results.flatMap((result) => [...peerMarksOf(config, result), ...drainMarksOf(config, result, "")]),
        ...discarded.results.flatMap((result) => drainMarksOf(config, result, store)),
        ...barrier.marks,
      ],
      counts: {
        ...countsOf(measured, ways, ""),
        ...measured.limit,
        ...countsOf(discarded, ownWays, store),
        ...barrier.counts,
      },
      hashes,
      peakRssBytes: measured.peakRssBytes,
    };
  });
}

interface Measured {
  readonly results: readonly Result[];
  /** For which share of the loads a cycle drained. */
  readonly drained: number;
  readonly limit: Readonly<Record<string, number>>;
  readonly peakRssBytes: number;
}

/** Runs every pattern at the disk that `process` serves, and at the peer, if there is one. */
async function measure(
  config: BenchConfig,
  log: StepLog,
  place: {
    readonly process: ProtectingProcess;
    readonly cycleMs: number;
    readonly files: readonly string[];
    readonly sizeBytes: number;
    /** Added to the names of steps. */
    readonly store: string;
  },
  peerUri?: string,
): Promise<Measured> {
  const { process, cycleMs, files, sizeBytes, store } = place;
  config.begin(`first points${store}`);
  await process.point();
  await process.ask({ kind: "pause" });
  const drained: number[] = [];
  const results: Result[] = [];
  const taken = peerUri === undefined ? ownWays : ways;
  /** One load; `bytesPerSecond` of a drain. */
  const load = async (
    { pattern, way, bytesPerSecond }: { pattern: Pattern; way: Way; bytesPerSecond: number },
    name: string,
    run: number,
  ): Promise<FioFigures> => {
    const loadAt = async (uri: string): Promise<FioFigures> =>
      await loadOnce(config, pattern, name, uri, sizeBytes, run);
    await settle(files);
    if (way === "draining") return await whileDraining(process, (bytesPerSecond * cycleMs) / 1_000, loadAt, drained);
    return await loadAt(way === "idle" ? process.uri : (peerUri ?? ""));
  };
  const { bytesPerSecond } = config.live;
  let loads = 0;
  for (const pattern of patterns) {
    const served: Record<Way, Served> = { "qemu-nbd": nothing(), idle: nothing(), draining: nothing() };
    results.push({ pattern, served });
    for (let run = 0; run < config.runs; run += 1) {
      // In turns, so that none always meets the younger page cache.
      for (const way of run % 2 === 0 ? taken : taken.toReversed()) {
        const name = `${pattern.name}: ${way}${store}`;
        loads += 1;
        config.begin(`load ${loads} of ${patterns.length * taken.length * config.runs}, ${name}`, run);
        const figures = await load({ pattern, way, bytesPerSecond }, name, run);
        log.add(name, traitsOf(pattern, way), amountOf(pattern, figures), figures.elapsedMs);
        served[way].perSecond.push(requestsPerSecond(figures));
        served[way].p99Us.push(figures.p99Us);
      }
    }
  }
  const [first] = results;
  const limit =
    first === undefined || peerUri === undefined
      ? {}
      : await findLimit(
          config,
          highestRate,
          { value: bytesPerSecond, marks: drainMarksOf(config, first, store), most: (sizeBytes * 1_000) / cycleMs },
          async (rate) => {
            const name = `${first.pattern.name}: draining ${megabytes(rate)}`;
            config.begin(name);
            const found = await load({ pattern: first.pattern, way: "draining", bytesPerSecond: rate }, name, 0);
            const draining = { perSecond: [requestsPerSecond(found)], p99Us: [found.p99Us] };
            return drainMarksOf(config, { ...first, served: { ...first.served, draining } }, store);
          },
        );
  await process.ask({ kind: "resume" });
  await process.point();
  const { peakRssBytes } = await process.stop();
  return { results, drained: median(drained), limit, peakRssBytes };
}

/**
 * qemu-nbd on a raw file. It shares our page cache: what it is told to write is written when it
 * says so, as with ours.
 */
class QemuNbd {
  readonly uri: string;
  readonly end: () => Promise<void>;

  private constructor(uri: string, end: () => Promise<void>) {
    this.uri = uri;
    this.end = end;
  }

  static async start(file: string, folder: string, signal: AbortSignal | undefined): Promise<QemuNbd> {
    const socket = join(folder, "qemu.sock");
    const words = ["-f", "raw", "-t", "--cache=writeback", "--shared=0", "-k", socket, file];
    const server = await startServer("qemu-nbd", words, socket, folder, signal);
    return new QemuNbd(nbdUri(socket, ""), async () => await server.kill());
  }
}

async function loadOnce(
  config: BenchConfig,
  pattern: Pattern,
  name: string,
  uri: string,
  spanBytes: number,
  run: number,
): Promise<FioFigures> {
  return await runFio(config, {
    uri,
    pattern: pattern.pattern,
    requestBytes: pattern.requestBytes,
    spanBytes,
    extent: { seconds: config.live.seconds },
    freshData: false,
    seed: config.seed + run,
    traced: name,
  });
}

/**
 * Loads the disk while a cycle of the schedule ships `bytes`, and notes for which share of the load it
 * did. They are what the case `churn` writes in a cycle.
 */
async function whileDraining(
  process: ProtectingProcess,
  bytes: number,
  load: (uri: string) => Promise<FioFigures>,
  drained: number[],
): Promise<FioFigures> {
  await process.ask({ kind: "drain", bytes: Math.round(bytes) });
  const startedAt = performance.now();
  const figures = await load(process.uri);
  const elapsedMs = performance.now() - startedAt;
  // What was written under it is shipped too, so that the next pattern begins with a disk at rest.
  const { drainedMs } = await process.ask({ kind: "rest" });
  drained.push(Math.min(1, drainedMs / elapsedMs));
  return figures;
}

function peerMarksOf({ mark }: BenchConfig, { pattern: { name }, served }: Result): Mark[] {
  return [
    mark(`${name}, of qemu-nbd`, rateOf(served, "idle") / rateOf(served, "qemu-nbd")),
    mark("p99 of qemu-nbd's", p99Of(served, "idle") / p99Of(served, "qemu-nbd"), `${name}, p99 of qemu-nbd's`),
  ];
}

function drainMarksOf({ mark }: BenchConfig, { pattern: { name }, served }: Result, store: string): Mark[] {
  const rate = rateOf(served, "draining") / rateOf(served, "idle");
  const p99 = p99Of(served, "draining") / p99Of(served, "idle");
  return [
    mark(`draining${store}, of idle`, rate, `${name}, draining${store}, of idle`),
    mark(`draining${store}, p99`, p99, `${name}, draining${store}, p99`),
  ];
}

function requestsPerSecond({ requests, elapsedMs }: FioFigures): number {
  return requests / (elapsedMs / 1_000);
}

function rateOf(served: Record<Way, Served>, way: Way): number {
  return median(served[way].perSecond);
}

function p99Of(served: Record<Way, Served>, way: Way): number {
  return median(served[way].p99Us);
}

function countsOf({ results, drained }: Measured, taken: readonly Way[], store: string): Record<string, number> {
  const counts = { [`share of load that a cycle drained${store}`]: drained };
  for (const { pattern, served } of results)
    for (const way of taken) counts[`${pattern.name}, ${way}${store}, p99Us`] = Math.round(p99Of(served, way));
  return counts;
}

function traitsOf({ requestBytes }: Pattern, way: Way): StepTraits {
  return { role: way === "qemu-nbd" ? "yardstick" : "tidemark", unit: requestBytes > 4_096 ? "bytes" : "operations" };
}

function amountOf({ requestBytes }: Pattern, { requests, bytes }: FioFigures): number {
  return requestBytes > 4_096 ? bytes : requests;
}

function nothing(): Served {
  return { perSecond: [], p99Us: [] };
}

/** Fills a file with what cannot be compressed, and leaves it in the page cache. */
async function fill(path: string, sizeBytes: number, signal: AbortSignal | undefined): Promise<void> {
  const file = await open(path, "r+");
  try {
    const range = Buffer.alloc(rangeBytes);
    for (let offset = 0; offset < sizeBytes; offset += range.length) {
      throwIfAborted(signal);
      await file.write(randomFillSync(range), 0, Math.min(range.length, sizeBytes - offset), offset);
    }
  } finally {
    await file.close();
  }
}

/** The disk below is idle before each measurement. */
async function settle(paths: readonly string[]): Promise<void> {
  for (const path of paths) {
    const file = await open(path, "r+");
    try {
      await file.datasync();
    } finally {
      await file.close();
    }
  }
}
