/**
 * Benchmark: how much of the machine the pipeline uses. A whole first cycle goes into a discarding
 * sink. The yardstick is reading and the sum of its kernels over the same blocks, divided by the
 * worker threads: a pipeline that only reads, hashes and compresses.
 */
import { readSync } from "node:fs";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import type { ReplicateSummary } from "../engine/index.ts";
import { FileVolume, throwIfAborted, Vault } from "../engine/index.ts";
import { type ChunkPlace, DedupIndex, granuleBytes, openKernels } from "../engine/internal.ts";
import { type CpuTime, cpuClock } from "./cpu.ts";
import { DiscardingSink } from "./discarding-sink.ts";
import { allocatedRuns, contentHash, imageFacts } from "./image.ts";
import { Lz4Comparison, lz4Marks } from "./lz4-comparison.ts";
import { peakRssBytes } from "./machine.ts";
import type { BenchConfig } from "./options.ts";
import type { CaseOutcome } from "./report.ts";
import { ours, StepLog, yardstick } from "./steps.ts";
import type { Stage } from "./trace.ts";

/** As much as is read, and worked through kernel by kernel, at a time. */
const windowBytes: number = 4 * 1024 * 1024;
const cycleStep = "cycle into a sink that discards";
const boundStep = "bound: reading and kernels / workers";
const kernelNames = ["reading", "fingerprint", "digest", "LZ4"] as const;

/** Of a cycle: what its threads took, and what the bare kernels are of that. The rest is packing and waiting. */
function stagesOf({ processMs, threadMs }: CpuTime, bare: BareKernels, kernelsMs: number): Stage[] {
  const mainMs = Number.isFinite(threadMs) ? threadMs : 0;
  // The kernels are measured apart, on a machine that is not always as fast.
  const workersMs = Math.max(kernelsMs, processMs - mainMs);
  const [whole, workers] = ["the cycle", "worker threads"];
  return [
    { name: whole, cpuMs: mainMs + workersMs },
    { name: "main thread", cpuMs: mainMs, within: whole },
    { name: workers, cpuMs: workersMs, within: whole },
    ...kernelNames.map((name) => ({ name, cpuMs: bare[name].elapsedMs, within: workers })),
  ];
}

export async function benchPipeline(config: BenchConfig): Promise<CaseOutcome> {
  const log = new StepLog(config);
  config.begin("read the image");
  const hash = await contentHash(config.image, config.signal);
  const volume = await FileVolume.open(config.image);
  try {
    const image = await imageFacts(volume);
    const counts: Record<string, number> = { workers: config.workers };
    let peakBytes = 0;
    for (let run = 0; run < config.runs; run += 1) {
      const clock = cpuClock();
      const { blockBytes, ...counted } = await cycle(config, volume, log, run);
      const cpu = clock();
      Object.assign(counts, { blockBytes, ...counted });
      if (run === 0) peakBytes = peakRssBytes();
      config.begin("bare kernels", run);
      const others = await Lz4Comparison.open(join(config.temporaryFolder, "compressible.bin"), image.allocatedBytes);
      const bare = await runKernels(volume, blockBytes, others, config.signal);
      config.begin("LZ4 of others", run);
      for (const { name, bytes, elapsedMs } of await others.finish(config.signal))
        log.add(name, yardstick, bytes, elapsedMs);
      Object.assign(counts, others.counts);
      for (const name of kernelNames)
        log.add(name, { role: "kernel", unit: "bytes" }, bare[name].bytes, bare[name].elapsedMs);
      const sumMs = kernelNames.reduce((sum, name) => sum + bare[name].elapsedMs, 0);
      config.trace.stages(stagesOf(cpu, bare, sumMs));
      log.add(boundStep, yardstick, bare.fingerprint.bytes, sumMs / config.workers);
    }
    const reached = log.medianMs(boundStep) / log.medianMs(cycleStep);
    return {
      image,
      steps: log.steps(),
      marks: [config.mark("of the bound that the bare kernels set", reached), ...lz4Marks(config.mark, log, counts)],
      counts,
      hashes: { image: hash },
      peakRssBytes: peakBytes,
    };
  } finally {
    await volume.close();
  }
}

/** One cycle in a fresh vault with default parameters. */
async function cycle(
  config: BenchConfig,
  volume: FileVolume,
  log: StepLog,
  run: number,
): Promise<Record<string, number> & { blockBytes: number }> {
  const stateFolder = join(config.temporaryFolder, `state-${run}`);
  const sink = new DiscardingSink();
  const replicate = async (): Promise<{ summary: ReplicateSummary; blockBytes: number }> => {
    const vault = await Vault.create(sink, {
      stateFolder,
      workers: config.workers,
      lanes: config.lanes,
      signal: config.signal,
    });
    try {
      const summary = await vault.replicate({ disk: "bench", volume, signal: config.signal });
      return { summary, blockBytes: (await vault.summary()).blockBytes };
    } finally {
      await vault.close();
    }
  };
  const { summary, blockBytes } = await log.time(cycleStep, ours, run, replicate, (done) => done.summary.scannedBytes);
  await sink[Symbol.asyncDispose]();
  await rm(stateFolder, { recursive: true, force: true });
  const { scannedBytes, changedBytes, dedupedBytes, newBytes, storedBytes } = summary;
  return {
    blockBytes,
    scannedBytes,
    changedBytes,
    dedupedBytes,
    newBytes,
    storedBytes,
    discardedBytes: sink.discardedBytes,
  };
}

/** What one kernel did, and in which time. */
interface Work {
  bytes: number;
  elapsedMs: number;
}

type BareKernels = Readonly<Record<(typeof kernelNames)[number], Work>>;

/**
 * The work of a first cycle without the cycle, on one thread: every granule outside holes
 * fingerprinted, which finds the zeros; every block cut into chunks by the rule of the scan and
 * digested; every chunk that is new compressed. Looking up what is
 * known is not counted.
 */
async function runKernels(
  volume: FileVolume,
  blockBytes: number,
  others: Lz4Comparison,
  signal: AbortSignal | undefined,
): Promise<BareKernels> {
  const kernels = openKernels(windowBytes);
  const { data, prints } = kernels;
  const known = new DedupIndex(256 * 1024 * 1024);
  const place: ChunkPlace = { segment: 0, offset: 0, storedWord: 0 };
  const printWords = new Uint32Array(prints.buffer, prints.byteOffset, prints.length / 4);
  const digests = new Uint8Array((windowBytes / granuleBytes) * 16);
  const digestWords = new Uint32Array(digests.buffer);
  const work: BareKernels = {
    reading: { bytes: 0, elapsedMs: 0 },
    fingerprint: { bytes: 0, elapsedMs: 0 },
    digest: { bytes: 0, elapsedMs: 0 },
    LZ4: { bytes: 0, elapsedMs: 0 },
  };
  const sizeBytes = await volume.sizeBytes();
  for await (const window of readWindows(volume, data)) {
    throwIfAborted(signal);
    prints.fill(0);
    const printFrom = performance.now();
    for (const { start, end } of window.runs) kernels.fingerprint(start, end);
    const cutFrom = performance.now();
    const chunks = cutChunks(printWords, window, sizeBytes, blockBytes);
    const digestFrom = performance.now();
    for (let index = 0; index < chunks.length; index += 1) {
      const chunk = chunks[index];
      if (chunk !== undefined) kernels.digest(chunk.start, chunk.end, digests, index * 16);
    }
    const lookFrom = performance.now();
    const fresh = chunks.filter((_, index) => {
      if (known.find(digestWords, index * 4, place)) return false;
      known.set(digestWords, index * 4, 0, 0, 0);
      return true;
    });
    const packFrom = performance.now();
    const compressible = fresh.filter(({ start, end }) => {
      return kernels.compress(start * granuleBytes, (end - start) * granuleBytes) > 0;
    });
    const packedAt = performance.now();
    for (const { start, end } of compressible) {
      const plain = data.subarray(start * granuleBytes, end * granuleBytes);
      const at = start * granuleBytes;
      await others.compare({
        plain,
        compress: () => kernels.compress(at, plain.length),
        packed: (length) => kernels.packed.subarray(at, at + length),
        decompress: (length) => kernels.decompress(at, length, plain.length),
      });
    }
    add(work.reading, window.readBytes, window.readMs);
    add(work.fingerprint, window.readBytes, cutFrom - printFrom);
    add(work.digest, bytesOf(chunks), lookFrom - digestFrom);
    add(work.LZ4, bytesOf(fresh), packedAt - packFrom);
  }
  return work;
}

/** A run of granules, counted from the beginning of a window. */
interface Run {
  readonly start: number;
  readonly end: number;
}

/**
 * A window of the volume that holds something, read to `data`: zeros where it has holes, and the
 * runs of granules outside them.
 */
interface Window {
  readonly offset: number;
  readonly runs: Run[];
  readBytes: number;
  readMs: number;
}

async function* readWindows(volume: FileVolume, data: Buffer): AsyncGenerator<Window, void> {
  let window: Window = { offset: 0, runs: [], readBytes: 0, readMs: 0 };
  data.fill(0);
  for await (const { offset, length } of allocatedRuns(volume, granuleBytes, windowBytes)) {
    if (offset >= window.offset + windowBytes) {
      if (window.runs.length > 0) yield window;
      window = { offset: offset - (offset % windowBytes), runs: [], readBytes: 0, readMs: 0 };
      data.fill(0);
    }
    const at = offset - window.offset;
    const readFrom = performance.now();
    readSync(volume.descriptor, data, at, length, offset);
    window.readMs += performance.now() - readFrom;
    window.runs.push({ start: at / granuleBytes, end: Math.ceil((at + length) / granuleBytes) });
    window.readBytes += length;
  }
  if (window.runs.length > 0) yield window;
}

/**
 * The scan's rule for a first point: a block of which more than half holds data is one chunk, any
 * other gives the runs of its data. A block that the volume's end cuts short is as long as what is
 * left of it.
 */
function cutChunks(prints: Uint32Array, window: Window, sizeBytes: number, blockBytes: number): Run[] {
  const chunks: Run[] = [];
  const holdsData = (granule: number): boolean =>
    prints.subarray(granule * 4, granule * 4 + 4).some((word) => word !== 0);
  const granulesMax = Math.min(windowBytes / granuleBytes, Math.ceil((sizeBytes - window.offset) / granuleBytes));
  for (let from = 0; from < granulesMax; from += blockBytes / granuleBytes) {
    const end = Math.min(from + blockBytes / granuleBytes, granulesMax);
    const runs: Run[] = [];
    for (let start = from; start < end; start += 1) {
      if (!holdsData(start)) continue;
      let stop = start + 1;
      while (stop < end && holdsData(stop)) stop += 1;
      runs.push({ start, end: stop });
      start = stop;
    }
    const held = runs.reduce((sum, { start, end: stop }) => sum + stop - start, 0);
    if (held * 2 > end - from) chunks.push({ start: from, end });
    else chunks.push(...runs);
  }
  return chunks;
}

function add(work: Work, bytes: number, elapsedMs: number): void {
  work.bytes += bytes;
  work.elapsedMs += elapsedMs;
}

function bytesOf(chunks: readonly Run[]): number {
  return chunks.reduce((sum, { start, end }) => sum + (end - start) * granuleBytes, 0);
}
