/**
 * Benchmark: the front end of a protected disk. fio's patterns run against our server while
 * replication rests and while a cycle drains to the store, beside qemu-nbd on a disk with the same
 * content; and the time for which a cut holds writes.
 *
 * Both servers and fio are processes of their own on files in the page cache, so the way to the
 * disk is measured and not the disk. The two servers take turns, pattern by pattern.
 */
import { randomFillSync } from "node:crypto";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { type Sink, throwIfAborted } from "../../engine/index.ts";
import { copySparsely, imageFactsOf, rangeBytes } from "../image.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { median, StepLog, type StepTraits } from "../steps.ts";
import type { Mark } from "../targets.ts";
import { benchBarrier } from "./barrier.ts";
import { type FioFigures, type FioPattern, runFio } from "./fio.ts";
import { onDemandMs } from "./orders.ts";
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
 * A cycle has to be under way for as long as fio runs: more than any store here takes in that time,
 * as far as the disk is large enough.
 */
const drainBytesPerSecond = 400 * 1024 * 1024;

/** One way to serve the disk, in one pattern: what each run gave. */
interface Served {
  readonly perSecond: number[];
  readonly p99Us: number[];
}

const ways = ["qemu-nbd", "idle", "draining"] as const;
type Way = (typeof ways)[number];

export async function benchFront(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { temporaryFolder: folder, signal } = config;
  return await LivePlace.use(config, store, async (place) => {
    config.begin("write the disk");
    if (config.image === "") await fill(place.image, config.live.diskBytes, signal);
    const twin = join(folder, "twin.img");
    await copySparsely(place.image, twin, signal);
    const { sizeBytes } = await imageFactsOf(place.image);
    const results: { pattern: Pattern; served: Record<Way, Served> }[] = [];
    const measured = await place.protecting(onDemandMs, async (process) => {
      config.begin("first points");
      await process.point();
      await process.order({ kind: "pause" });
      const peer = await QemuNbd.start(twin, folder, signal);
      const drained: number[] = [];
      try {
        for (const pattern of patterns) {
          const served: Record<Way, Served> = { "qemu-nbd": nothing(), idle: nothing(), draining: nothing() };
          results.push({ pattern, served });
          for (let run = 0; run < config.runs; run += 1) {
            // In turns, so that neither always meets the younger page cache.
            for (const way of run % 2 === 0 ? ways : ways.toReversed()) {
              await settle([place.image, twin]);
              const name = `${pattern.name}: ${way}`;
              const load = async (uri: string): Promise<FioFigures> =>
                await loadOnce(config, pattern, name, uri, sizeBytes, run);
              config.begin(name, run);
              const figures =
                way === "qemu-nbd"
                  ? await load(peer.uri)
                  : way === "idle"
                    ? await load(process.uri)
                    : await whileDraining(process, config, load, drained);
              log.add(name, traitsOf(pattern, way), amountOf(pattern, figures), figures.elapsedMs);
              served[way].perSecond.push(figures.requests / (figures.elapsedMs / 1_000));
              served[way].p99Us.push(figures.p99Us);
            }
          }
        }
      } finally {
        await peer.end();
      }
      await process.order({ kind: "resume" });
      await process.point();
      const { peakRssBytes } = await process.stop();
      return { peakRssBytes, drainedShare: median(drained) };
    });
    const hashes = await place.prove();
    const barrier = await benchBarrier(config);
    return {
      image: { ...(await imageFactsOf(place.image)), path: config.image === "" ? "a new disk" : config.image },
      steps: log.steps(),
      marks: [...results.flatMap(({ pattern, served }) => marksOf(config, pattern, served)), ...barrier.marks],
      counts: {
        ...(Object.assign({}, ...results.map(({ pattern, served }) => countsOf(pattern, served))) as Record<
          string,
          number
        >),
        "share of the load in which a cycle drained": measured.drainedShare,
        ...barrier.counts,
      },
      hashes,
      peakRssBytes: measured.peakRssBytes,
    };
  });
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
 * Loads the disk while a cycle that has much to ship is under way, and notes for which share of the
 * load it was.
 */
async function whileDraining(
  process: ProtectingProcess,
  config: BenchConfig,
  load: (uri: string) => Promise<FioFigures>,
  drained: number[],
): Promise<FioFigures> {
  await process.order({ kind: "drain", bytes: Math.round(config.live.seconds * drainBytesPerSecond) });
  const startedAt = performance.now();
  const figures = await load(process.uri);
  const elapsedMs = performance.now() - startedAt;
  const { drainedMs } = await process.order({ kind: "rest" });
  drained.push(Math.min(1, drainedMs / elapsedMs));
  // What was written under the last point is shipped too, so that the next pattern begins with a
  // disk at rest.
  await process.point();
  await process.order({ kind: "pause" });
  return figures;
}

function marksOf({ mark }: BenchConfig, { name }: Pattern, served: Record<Way, Served>): Mark[] {
  const rate = (way: Way): number => median(served[way].perSecond);
  const p99 = (way: Way): number => median(served[way].p99Us);
  return [
    mark(`${name}, of qemu-nbd`, rate("idle") / rate("qemu-nbd")),
    mark("p99 of qemu-nbd's", p99("idle") / p99("qemu-nbd"), `${name}, p99 of qemu-nbd's`),
    mark("draining, of idle", rate("draining") / rate("idle"), `${name}, draining, of idle`),
  ];
}

function countsOf({ name }: Pattern, served: Record<Way, Served>): Record<string, number> {
  return Object.fromEntries(ways.map((way) => [`${name}, ${way}, p99Us`, Math.round(median(served[way].p99Us))]));
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
