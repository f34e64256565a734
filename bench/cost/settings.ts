/**
 * Benchmark: what a first replication costs by its settings: lanes, block size, worker threads. One
 * setting changes, the others have their defaults. In every round each value has its turn, so that
 * none always meets the warmer machine.
 *
 * `scaling` also tells where more cores stop to help. All work of a GiB is that of the workers, W,
 * which is divided among them, and that of the main thread, M, which is not. So time is the larger
 * of M and W ÷ workers, and M is reached with W ÷ M workers (Amdahl: the share of M in all work is
 * what is serial).
 */
import { randomUUID } from "node:crypto";
import type { ReplicateSummary, Sink } from "../../engine/index.ts";
import { FileVolume, Vault } from "../../engine/index.ts";
import { blockBytesDefault } from "../../engine/internal.ts";
import { type CpuTime, cpuClock } from "../cpu.ts";
import { DiscardingSink } from "../discarding-sink.ts";
import { contentHash, imageFacts } from "../image.ts";
import { MadeVolume } from "../keep/made-volume.ts";
import { peakRssBytes } from "../machine.ts";
import { NestedSink } from "../nested-sink.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { median, ours, StepLog } from "../steps.ts";
import type { Mark } from "../targets.ts";

interface Settings {
  readonly workers?: number;
  readonly lanes?: number | undefined;
  readonly blockBytes?: number;
}

/** One value of a setting, and what its replications gave. */
interface Variant {
  readonly name: string;
  readonly settings: Settings;
  readonly cpu: CpuTime[];
  summary: ReplicateSummary | undefined;
}

const warmUpBytes: number = 64 * 2 ** 20;
const lanesDefault = 5;
const laneCounts = [2, 3, lanesDefault, 8] as const;
const blockSizes = [16, 64, 256, 1_024].map((kibibytes) => kibibytes * 1_024);
const workerCounts = [1, 2, 4, 8, 16] as const;

export async function benchLanes(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const variants = laneCounts.map((lanes) => variant(`${lanes} lanes`, { lanes }));
  return await compare(config, variants, store, (log) => [
    config.mark("default of 5 lanes, of the fastest", shareOfFastest(log, variants, `${lanesDefault} lanes`)),
  ]);
}

export async function benchBlocks(config: BenchConfig): Promise<CaseOutcome> {
  const nameOf = (blockBytes: number): string => `blocks of ${blockBytes / 1_024} KiB`;
  const variants = blockSizes.map((blockBytes) => variant(nameOf(blockBytes), { blockBytes }));
  return await compare(config, variants, undefined, (log) => {
    const stored = variants.map(({ summary }) => summary?.storedBytes ?? NaN);
    const ofDefault = stored[blockSizes.indexOf(blockBytesDefault)] ?? NaN;
    return [
      config.mark("default of 64 KiB, of the fastest", shareOfFastest(log, variants, nameOf(blockBytesDefault))),
      config.mark("stored with 64 KiB, of the least", ofDefault / Math.min(...stored)),
    ];
  });
}

export async function benchScaling(config: BenchConfig): Promise<CaseOutcome> {
  const variants = workerCounts.map((workers) =>
    variant(workers === 1 ? "1 worker" : `${workers} workers`, { workers }),
  );
  const counts: Record<string, number> = {};
  const outcome = await compare(config, variants, undefined, () => {
    const gibibytes = (variants[0]?.summary?.scannedBytes ?? NaN) / 2 ** 30;
    const times = variants.flatMap(({ cpu }) => cpu);
    const mainMs = median(times.map(({ threadMs }) => threadMs)) / gibibytes;
    const allMs = median(times.map(({ processMs }) => processMs)) / gibibytes;
    // Without /proc the threads cannot be told apart.
    if (!Number.isFinite(mainMs)) return [];
    for (const { name, cpu } of variants) {
      const share = median(cpu.map(({ threadMs, processMs }) => threadMs / processMs));
      counts[`main thread's share of all work, ${name}`] = share;
    }
    counts["main thread, CPU ms a GiB"] = mainMs;
    counts["all threads, CPU ms a GiB"] = allMs;
    counts["cores at which the main thread is busy"] = 1 + (allMs - mainMs) / mainMs;
    counts["highest rate then, MiB a second"] = 1_024 / (mainMs / 1_000);
    config.trace.stages([
      { name: "main thread", cpuMs: mainMs * gibibytes },
      { name: "workers and file I/O", cpuMs: (allMs - mainMs) * gibibytes },
    ]);
    return [config.mark("main thread's CPU a GiB", mainMs)];
  });
  return { ...outcome, counts: { ...outcome.counts, ...counts } };
}

function variant(name: string, settings: Settings): Variant {
  return { name, settings, cpu: [], summary: undefined };
}

/** The rate of the default as a share of the highest rate of all variants. */
function shareOfFastest(log: StepLog, variants: readonly Variant[], name: string): number {
  return Math.min(...variants.map((each) => log.medianMs(each.name))) / log.medianMs(name);
}

/** Replicates the image with each variant, into `store` or a sink that discards. */
async function compare(
  config: BenchConfig,
  variants: readonly Variant[],
  store: Sink | undefined,
  marksOf: (log: StepLog) => Mark[],
): Promise<CaseOutcome> {
  const log = new StepLog(config);
  config.begin("read the image");
  const image = await contentHash(config.image, config.signal);
  const volume = await FileVolume.open(config.image);
  try {
    for (let run = 0; run < config.runs; run += 1) {
      for (const each of run % 2 === 0 ? variants : variants.toReversed()) {
        config.begin(each.name, run);
        const { summary, elapsedMs } = await firstReplication(config, volume, store, each);
        each.summary = summary;
        log.add(each.name, ours, summary.scannedBytes, elapsedMs);
      }
    }
    const counts = Object.fromEntries(
      variants.map(({ name, summary }) => [`${name}, storedBytes`, summary?.storedBytes ?? NaN]),
    );
    return {
      image: await imageFacts(volume),
      steps: log.steps(),
      marks: marksOf(log),
      counts,
      hashes: { image },
      peakRssBytes: peakRssBytes(),
    };
  } finally {
    await volume.close();
  }
}

/** Threads are started and warm before the clock starts: on a disk that is made when it is read. */
async function firstReplication(
  { workers, lanes, seed, signal }: BenchConfig,
  volume: FileVolume,
  store: Sink | undefined,
  { settings, cpu }: Variant,
): Promise<{ readonly summary: ReplicateSummary; readonly elapsedMs: number }> {
  const sink = store === undefined ? new DiscardingSink() : new NestedSink(store, `bench-${randomUUID()}/`);
  const options = { workers, lanes, signal, ...settings };
  // Vaults of a process share their threads.
  const other = await Vault.create(new DiscardingSink(), options);
  const warmUp = new MadeVolume(warmUpBytes, [{ offset: 0, length: warmUpBytes }], seed);
  await other.replicate({ disk: "warm-up", volume: warmUp, signal });
  const vault = await Vault.create(sink, options);
  try {
    const [clock, startedAt] = [cpuClock(), performance.now()];
    const summary = await vault.replicate({ disk: "bench", volume, signal });
    cpu.push(clock());
    return { summary, elapsedMs: performance.now() - startedAt };
  } finally {
    await vault.close();
    await other.close();
    await sink[Symbol.asyncDispose]();
  }
}
