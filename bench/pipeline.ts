/**
 * How much of the machine the pipeline turns into work. A whole first cycle goes into a sink that discards, and is held against the sum of its bare
 * kernels over the same blocks, divided by the worker threads: what a pipeline would need that did nothing but hash and compress.
 */
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { DedupIndex, FileVolume, loadKernels, throwIfAborted, Vault } from "../engine/index.ts";
import { DiscardingSink } from "./discarding-sink.ts";
import { allocatedRuns, contentHash, granuleBytes, imageFacts } from "./image.ts";
import { peakRssBytes } from "./machine.ts";
import type { BenchConfig } from "./options.ts";
import type { CaseOutcome } from "./report.ts";
import { StepLog } from "./steps.ts";

/** The blocks of a vault that is created without wishes. */
const blockBytes = 65_536;
const blockGranules: number = blockBytes / granuleBytes;
const runBytes: number = 2 * 1024 * 1024;
const cycleStep = "cycle into a sink that discards";
const kernelSteps = { zero: "zero test", fingerprint: "fingerprint", digest: "digest", lz4: "LZ4" } as const;

export async function benchPipeline(config: BenchConfig): Promise<CaseOutcome> {
  const log = new StepLog(config);
  config.begin("read the image");
  const hash = await contentHash(config.image, config.signal);
  const volume = await FileVolume.open(config.image);
  try {
    const counts: Record<string, number> = { workers: config.workers };
    const boundsMs: number[] = [];
    let peakBytes = 0;
    for (let run = 0; run < config.runs; run += 1) {
      Object.assign(counts, await cycle(config, volume, log, run));
      if (run === 0) peakBytes = peakRssBytes();
      config.begin("bare kernels", run);
      const bare = await runKernels(volume, config.signal);
      for (const kernel of ["zero", "fingerprint", "digest", "lz4"] as const) {
        log.add(kernelSteps[kernel], { role: "kernel", unit: "bytes" }, bare[kernel].bytes, bare[kernel].elapsedMs);
      }
      boundsMs.push((bare.zero.elapsedMs + bare.fingerprint.elapsedMs + bare.digest.elapsedMs + bare.lz4.elapsedMs) / config.workers);
      log.add("bound: sum of kernels / workers", { role: "yardstick", unit: "bytes" }, bare.zero.bytes, boundsMs.at(-1) ?? 0);
    }
    const reached = log.medianMs("bound: sum of kernels / workers") / log.medianMs(cycleStep);
    return {
      image: await imageFacts(volume),
      steps: log.steps(),
      marks: [{ name: "of the bound that the bare kernels set", value: reached, unit: "×", relation: "at least", wanted: 0.85 }],
      counts,
      hashes: { image: hash },
      peakRssBytes: peakBytes,
    };
  } finally {
    await volume.close();
  }
}

async function cycle(config: BenchConfig, volume: FileVolume, log: StepLog, run: number): Promise<Record<string, number>> {
  const stateFolder = join(config.temporaryFolder, `state-${run}`);
  const sink = new DiscardingSink();
  const summary = await log.time(
    cycleStep,
    { role: "tidemark", unit: "bytes" },
    run,
    async () => {
      const vault = await Vault.create(sink, {
        stateFolder,
        blockBytes,
        workers: config.workers,
        lanes: config.lanes,
        signal: config.signal,
      });
      try {
        return await vault.replicate({ disk: "bench", volume, signal: config.signal });
      } finally {
        await vault.close();
      }
    },
    ({ scannedBytes }) => scannedBytes,
  );
  await sink[Symbol.asyncDispose]();
  await rm(stateFolder, { recursive: true, force: true });
  const { scannedBytes, changedBytes, dedupedBytes, newBytes, storedBytes } = summary;
  return { scannedBytes, changedBytes, dedupedBytes, newBytes, storedBytes, discardedBytes: sink.discardedBytes };
}

/** What one kernel did, and in which time. */
interface Work {
  bytes: number;
  elapsedMs: number;
}

type BareKernels = Readonly<Record<keyof typeof kernelSteps, Work>>;

/**
 * The work of a first cycle without the cycle, on one thread: every granule tested for zeros and, unless it is, given a fingerprint; every block cut into
 * chunks by the rule of the scan and digested; every chunk that is new compressed, if it looks as if it could be. Reading is not counted.
 */
async function runKernels(volume: FileVolume, signal: AbortSignal | undefined): Promise<BareKernels> {
  const { createDigest, createFingerprint, isZero, looksIncompressible, Lz4 } = await loadKernels();
  const digest = await createDigest("blake3", Buffer.alloc(32, 1));
  const fingerprint = await createFingerprint([1, 2]);
  const lz4 = new Lz4();
  const known = new DedupIndex(256 * 1024 * 1024);
  const place = { segment: 0, offset: 0, storedWord: 0 };
  const buffer = Buffer.alloc(runBytes);
  const out = Buffer.alloc(runBytes);
  const zeros = Buffer.alloc(granuleBytes);
  const isData = new Uint8Array(runBytes / granuleBytes);
  const prints = new Uint8Array(isData.length * 16);
  const digests = new Uint8Array(isData.length * 16);
  const digestWords = new Uint32Array(digests.buffer);
  const work: BareKernels = {
    zero: { bytes: 0, elapsedMs: 0 },
    fingerprint: { bytes: 0, elapsedMs: 0 },
    digest: { bytes: 0, elapsedMs: 0 },
    lz4: { bytes: 0, elapsedMs: 0 },
  };
  for await (const { offset, length } of allocatedRuns(volume, blockBytes, runBytes)) {
    throwIfAborted(signal);
    await volume.read(offset, buffer.subarray(0, length));
    const granules = Math.ceil(length / granuleBytes);
    buffer.fill(0, length, granules * granuleBytes);

    const zeroFrom = performance.now();
    let dataGranules = 0;
    for (let granule = 0; granule < granules; granule += 1) {
      const data = !isZero(buffer.subarray(granule * granuleBytes, (granule + 1) * granuleBytes), zeros);
      isData[granule] = data ? 1 : 0;
      if (data) dataGranules += 1;
    }
    const printFrom = performance.now();
    for (let granule = 0; granule < granules; granule += 1) {
      if (isData[granule] === 1) fingerprint(buffer.subarray(granule * granuleBytes, (granule + 1) * granuleBytes), prints, granule * 16);
    }
    const cutFrom = performance.now();
    const chunks = cutChunks(isData, granules);
    const digestFrom = performance.now();
    for (const [index, { start, end }] of chunks.entries()) {
      digest(buffer.subarray(start * granuleBytes, end * granuleBytes), digests, index * 16);
    }
    const lookFrom = performance.now();
    const fresh = chunks.filter((_, index) => {
      if (known.find(digestWords, index * 4, place)) return false;
      known.set(digestWords, index * 4, 0, 0, 0);
      return true;
    });
    const packFrom = performance.now();
    for (const { start, end } of fresh) {
      const plain = buffer.subarray(start * granuleBytes, end * granuleBytes);
      if (!looksIncompressible(plain)) lz4.compress(plain, out, 0);
    }
    const packedAt = performance.now();

    add(work.zero, granules * granuleBytes, printFrom - zeroFrom);
    add(work.fingerprint, dataGranules * granuleBytes, cutFrom - printFrom);
    add(work.digest, bytesOf(chunks), lookFrom - digestFrom);
    add(work.lz4, bytesOf(fresh), packedAt - packFrom);
  }
  return work;
}

interface Chunk {
  readonly start: number;
  readonly end: number;
}

/** The scan's rule for a first point: a block of which more than half holds data is one chunk, any other gives the runs of its data. */
function cutChunks(isData: Uint8Array, granules: number): Chunk[] {
  const chunks: Chunk[] = [];
  for (let from = 0; from < granules; from += blockGranules) {
    const end = Math.min(from + blockGranules, granules);
    const held = isData.subarray(from, end).reduce((sum, data) => sum + data, 0);
    if (held * 2 > end - from) {
      chunks.push({ start: from, end });
      continue;
    }
    for (let start = from; start < end; start += 1) {
      if (isData[start] !== 1) continue;
      let runEnd = start + 1;
      while (runEnd < end && isData[runEnd] === 1) runEnd += 1;
      chunks.push({ start, end: runEnd });
      start = runEnd;
    }
  }
  return chunks;
}

function add(work: Work, bytes: number, elapsedMs: number): void {
  work.bytes += bytes;
  work.elapsedMs += elapsedMs;
}

function bytesOf(chunks: readonly Chunk[]): number {
  return chunks.reduce((sum, { start, end }) => sum + (end - start) * granuleBytes, 0);
}
