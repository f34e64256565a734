/**
 * The loops that touch every byte, bare: one thread, data in cache, nothing around them. They bound what the pipeline can reach, and tell
 * on which machine a figure is worth what.
 *
 * One iteration works through a corpus of 4 MiB, in blocks of 64 KiB or granules of 4 KiB as in operation. The corpus is made from a seed;
 * what the kernels give for it is hashed and printed, so that two machines, or two versions, can be seen to have done the same work.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { Bench } from "tinybench";
import { type ChunkPlace, DedupIndex, loadKernels, TidemarkError, throwIfAborted } from "../engine/index.ts";
import { granuleBytes, randomWords } from "./image.ts";
import { peakRssBytes } from "./machine.ts";
import type { BenchConfig } from "./options.ts";
import type { CaseOutcome, Mark } from "./report.ts";
import { type Step, stepOf } from "./steps.ts";

const corpusBytes: number = 4 * 1024 * 1024;
const blockBytes = 65_536;
const iterationsMin = 4;

/** A kernel under measurement. `run` does one iteration; `result` is what the last one gave. */
interface Kernel {
  readonly name: string;
  readonly unit: Step["unit"];
  readonly amount: number;
  run(): void;
  result(): Uint8Array;
}

export async function benchKernels(config: BenchConfig): Promise<CaseOutcome> {
  const index = new IndexKernels(config.indexEntries, config.seed);
  const kernels = [...(await byteKernels(config.seed)), index.insert, index.lookup];
  const steps: Step[] = [];
  const hashes: Record<string, string> = {};
  for (const kernel of kernels) {
    config.begin(kernel.name);
    steps.push(await measure(kernel, config));
    hashes[kernel.name] = createHash("sha256").update(kernel.result()).digest("hex").slice(0, 32);
  }
  const marks: Mark[] = [{ name: "dedup index, bytes per entry", value: index.bytesPerEntry, unit: "", relation: "at most", wanted: 40 }];
  const counts = { indexEntries: config.indexEntries, indexBytesPerEntry: index.bytesPerEntry };
  return { image: null, steps, marks, counts, hashes, peakRssBytes: peakRssBytes() };
}

async function measure(kernel: Kernel, config: BenchConfig): Promise<Step> {
  const bench = new Bench({
    time: config.kernelMs,
    iterations: iterationsMin,
    warmupTime: config.kernelMs / 4,
    warmupIterations: 1,
    throws: true,
    ...(config.signal === undefined ? {} : { signal: config.signal }),
  });
  bench.add(kernel.name, () => {
    kernel.run();
  });
  const [task] = await bench.run();
  throwIfAborted(config.signal);
  if (task?.result.state !== "completed") throw new TidemarkError("INTERNAL", `the kernel ${kernel.name} was not measured`);
  const { latency } = task.result;
  const times = { medianMs: latency.p50, fastestMs: latency.min, slowestMs: latency.max, runs: latency.samplesCount };
  return stepOf(kernel.name, { role: "kernel", unit: kernel.unit }, kernel.amount, times);
}

async function byteKernels(seed: number): Promise<Kernel[]> {
  const { createDigest, createFingerprint, isZero, looksIncompressible, Lz4 } = await loadKernels();
  const key = createHash("sha256").update(`bench ${seed}`).digest();
  const fingerprint = await createFingerprint([seed, 0]);
  const [blake3, sha256, lz4] = [await createDigest("blake3", key), await createDigest("sha256", key), new Lz4()];
  const random = randomCorpus(seed);
  const text = textCorpus(seed);
  const zeros = Buffer.alloc(corpusBytes);
  const packed = Buffer.alloc(corpusBytes);
  const packedLengths = new Uint32Array(corpusBytes / blockBytes);
  const compressText = (): void => {
    eachBlock(text, blockBytes, (block, at, index) => {
      packedLengths[index] = lz4.compress(block, packed, at);
    });
  };
  compressText();
  const textPacked = Buffer.from(packed);
  const textLengths = packedLengths.slice();
  const plain = Buffer.alloc(corpusBytes);
  return [
    countingKernel("zero test of zeros, 4 KiB", zeros, granuleBytes, (block) => isZero(block, zeros)),
    digestKernel("fingerprint XXH3-128, 4 KiB", random, granuleBytes, fingerprint),
    digestKernel("digest BLAKE3, 64 KiB", random, blockBytes, blake3),
    digestKernel("digest SHA-256, 64 KiB", random, blockBytes, sha256),
    countingKernel("test for incompressible, 64 KiB", random, blockBytes, looksIncompressible),
    { name: "LZ4 compress text, 64 KiB", unit: "bytes", amount: corpusBytes, run: compressText, result: () => packed },
    countingKernel("LZ4 compress random, 64 KiB", random, blockBytes, (block) => lz4.compress(block, plain, 0) > 0),
    {
      name: "LZ4 decompress text, 64 KiB",
      unit: "bytes",
      amount: corpusBytes,
      run: () => {
        eachBlock(textPacked, blockBytes, (block, at, index) => {
          lz4.decompress(block.subarray(0, textLengths[index]), blockBytes, plain, at);
        });
      },
      result: () => {
        assert(plain.equals(text), "what is decompressed is what was compressed");
        return plain;
      },
    },
  ];
}

function digestKernel(
  name: string,
  corpus: Buffer,
  unitBytes: number,
  digest: (bytes: Uint8Array, into: Uint8Array, at: number) => void,
): Kernel {
  const digests = new Uint8Array((corpus.length / unitBytes) * 16);
  const run = (): void => {
    eachBlock(corpus, unitBytes, (block, _at, index) => digest(block, digests, index * 16));
  };
  return { name, unit: "bytes", amount: corpus.length, run, result: () => digests };
}

/** A kernel that answers yes or no; its result is how often it said yes. */
function countingKernel(name: string, corpus: Buffer, unitBytes: number, test: (block: Buffer) => boolean): Kernel {
  const count = new Uint32Array(1);
  const run = (): void => {
    let yes = 0;
    eachBlock(corpus, unitBytes, (block) => {
      if (test(block)) yes += 1;
    });
    count[0] = yes;
  };
  return { name, unit: "bytes", amount: corpus.length, run, result: () => new Uint8Array(count.buffer) };
}

function eachBlock(corpus: Buffer, unitBytes: number, visit: (block: Buffer, at: number, index: number) => void): void {
  for (let at = 0, index = 0; at < corpus.length; at += unitBytes, index += 1) visit(corpus.subarray(at, at + unitBytes), at, index);
}

/** The dedup index with random digests: filling an empty one, and finding each entry of a full one. */
class IndexKernels {
  readonly insert: Kernel;
  readonly lookup: Kernel;
  #index: DedupIndex;

  constructor(entries: number, seed: number) {
    const words = new Uint32Array(entries * 4);
    const next = randomWords(seed);
    for (let at = 0; at < words.length; at += 1) words[at] = next();
    const counts = new Uint32Array(1);
    const fill = (): DedupIndex => {
      const index = new DedupIndex(entries * 64);
      for (let entry = 0; entry < entries; entry += 1) index.set(words, entry * 4, 0, entry, 0);
      return index;
    };
    const find = (): void => {
      const place: ChunkPlace = { segment: 0, offset: 0, storedWord: 0 };
      let found = 0;
      for (let entry = 0; entry < entries; entry += 1) if (this.#index.find(words, entry * 4, place) && place.offset === entry) found += 1;
      counts[0] = found;
    };
    this.#index = fill();
    this.insert = {
      name: "dedup index, insert",
      unit: "operations",
      amount: entries,
      run: () => {
        this.#index = fill();
      },
      result: () => new Uint8Array(new Uint32Array([this.#index.count]).buffer),
    };
    this.lookup = {
      name: "dedup index, look up",
      unit: "operations",
      amount: entries,
      run: find,
      result: () => {
        assert(counts[0] === entries, "every entry is found where it was put");
        return new Uint8Array(counts.buffer);
      },
    };
  }

  get bytesPerEntry(): number {
    return this.#index.bytes / this.#index.count;
  }
}

function randomCorpus(seed: number): Buffer {
  const next = randomWords(seed);
  const corpus = Buffer.alloc(corpusBytes);
  for (let at = 0; at < corpusBytes; at += 4) corpus.writeUInt32LE(next(), at);
  return corpus;
}

/** Words of a made-up language, a few of them frequent: LZ4 makes about half of it, as of source code. */
function textCorpus(seed: number): Buffer {
  const next = randomWords(seed);
  const vocabulary = Array.from({ length: 4_096 }, () =>
    String.fromCharCode(...Array.from({ length: 2 + (next() % 9) }, () => 97 + (next() % 26))),
  );
  const parts: string[] = [];
  for (let length = 0; length < corpusBytes; ) {
    const rank = Math.min(next() % vocabulary.length, next() % vocabulary.length, next() % vocabulary.length);
    const word = `${vocabulary[rank] ?? ""} `;
    parts.push(word);
    length += word.length;
  }
  return Buffer.from(parts.join("").slice(0, corpusBytes), "latin1");
}
