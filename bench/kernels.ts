/**
 * Benchmark: the loops that touch every byte, alone on one thread with data in cache. They bound
 * what the pipeline can reach, and characterize the machine.
 *
 * One iteration processes a corpus of 4 MiB, in blocks or granules as in operation. The corpus is
 * made from a seed, and the hash of the kernels' results is printed, so that two machines or two
 * versions can be seen to have done the same work.
 */
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { setImmediate as nextTurn } from "node:timers/promises";
import type { Bench } from "tinybench";
import { TidemarkError } from "../engine/index.ts";
import {
  blockBytesDefault,
  type ChunkPlace,
  DedupIndex,
  granuleBytes,
  type MeasuredKernels,
  openKernels,
} from "../engine/internal.ts";
import { randomWords } from "./image.ts";
import { peakRssBytes } from "./machine.ts";
import type { BenchConfig } from "./options.ts";
import type { CaseOutcome } from "./report.ts";
import { type Step, stepOf } from "./steps.ts";

const corpusBytes: number = 4 * 1024 * 1024;
const iterationsMin = 4;

/** A kernel under measurement. `run` does one iteration; `result` is what the last one gave. */
interface Kernel {
  readonly name: string;
  readonly unit: Step["unit"];
  readonly amount: number;
  /** Called once, before the clock starts. */
  prepare(): void;
  run(): void;
  result(): Uint8Array;
}

export async function benchKernels(config: BenchConfig): Promise<CaseOutcome> {
  const index = new IndexKernels(config.indexEntries, config.seed);
  const kernels = [...(await byteKernels(config.seed)), index.insert, index.lookup];
  const steps: Step[] = [];
  const hashes: Record<string, string> = {};
  for (const kernel of kernels) {
    // Kernels never wait, so without this turn of the event loop no interruption would be heard of.
    await nextTurn();
    config.begin(kernel.name);
    steps.push(await measure(kernel, config));
    hashes[kernel.name] = createHash("sha256").update(kernel.result()).digest("hex").slice(0, 32);
  }
  const marks = [config.mark("dedup index, bytes per entry", index.bytesPerEntry)];
  const counts = { indexEntries: config.indexEntries, indexBytesPerEntry: index.bytesPerEntry };
  return { image: null, steps, marks, counts, hashes, peakRssBytes: peakRssBytes() };
}

/** tinybench is an optional peer: only this benchmark needs it. */
async function loadBench(): Promise<typeof Bench> {
  try {
    return (await import("tinybench")).Bench;
  } catch (cause) {
    throw new TidemarkError(
      "UNSUPPORTED",
      "`tidemark bench kernels` needs the package tinybench, which is not installed",
      {
        remedy: "run `npm install tinybench` where tidemark is installed",
        cause,
      },
    );
  }
}

async function measure(kernel: Kernel, config: BenchConfig): Promise<Step> {
  const BenchClass = await loadBench();
  const bench = new BenchClass({
    time: config.kernelMs,
    iterations: iterationsMin,
    warmupTime: config.kernelMs / 4,
    warmupIterations: 1,
    throws: true,
  });
  kernel.prepare();
  bench.add(kernel.name, () => {
    kernel.run();
  });
  const [task] = await bench.run();
  if (task?.result.state !== "completed")
    throw new TidemarkError("INTERNAL", `the kernel ${kernel.name} was not measured`);
  const { latency } = task.result;
  const times = { medianMs: latency.p50, fastestMs: latency.min, slowestMs: latency.max, runs: latency.samplesCount };
  return stepOf(kernel.name, { role: "kernel", unit: kernel.unit }, kernel.amount, times);
}

/** What is left of a kernel once it is known that it works through the corpus. */
interface Loop {
  /** Puts what the loop works on where it looks for it. */
  readonly prepare?: () => void;
  readonly run: () => void;
  readonly result: () => Uint8Array;
}

async function byteKernels(seed: number): Promise<Kernel[]> {
  const kernels = openKernels(corpusBytes);
  const { isZero } = kernels;
  const sha256 = await kernels.createDigest("sha256", Buffer.alloc(32, 7));
  const [random, text, zeros] = [randomCorpus(seed), textCorpus(seed), Buffer.alloc(corpusBytes)];
  const block = `${blockBytesDefault / 1024} KiB`;
  const loops: readonly (readonly [name: string, loop: Loop])[] = [
    ["zero test, zeros, 4 KiB", counting(zeros, granuleBytes, (bytes) => isZero(bytes, zeros))],
    ["fingerprint, zeros, 4 KiB", fingerprinting(kernels, zeros)],
    ["fingerprint, XXH3-128, 4 KiB", fingerprinting(kernels, random)],
    [`digest, BLAKE3, ${block}`, digestingInPlace(kernels, random)],
    [`digest, SHA-256, ${block}`, digesting(random, sha256)],
    ...lz4Kernels(kernels, text, random, block),
  ];
  return loops.map(([name, loop]) => ({ name, unit: "bytes", amount: corpusBytes, prepare: () => undefined, ...loop }));
}

/**
 * The corpus is put into the kernels' own memory once, before the clock starts: in operation it is
 * read there.
 */
function fingerprinting({ data, prints, fingerprint }: MeasuredKernels, corpus: Buffer): Loop {
  return {
    prepare: () => {
      data.set(corpus);
    },
    run: () => {
      fingerprint(0, corpusBytes / granuleBytes);
    },
    result: () => prints,
  };
}

function digestingInPlace({ data, digest }: MeasuredKernels, corpus: Buffer): Loop {
  const blockGranules = blockBytesDefault / granuleBytes;
  const digests = new Uint8Array((corpusBytes / blockBytesDefault) * 16);
  return {
    prepare: () => {
      data.set(corpus);
    },
    run: () => {
      for (let at = 0; at < corpusBytes / granuleBytes; at += blockGranules)
        digest(at, at + blockGranules, digests, (at / blockGranules) * 16);
    },
    result: () => digests,
  };
}

function digesting(corpus: Buffer, digest: (bytes: Uint8Array, into: Uint8Array, at: number) => void): Loop {
  const digests = new Uint8Array((corpusBytes / blockBytesDefault) * 16);
  return {
    run: () => {
      eachUnit(corpus, blockBytesDefault, (bytes, at) => digest(bytes, digests, (at / blockBytesDefault) * 16));
    },
    result: () => digests,
  };
}

function lz4Kernels(
  { data, compress, decompress }: MeasuredKernels,
  text: Buffer,
  random: Buffer,
  block: string,
): readonly (readonly [name: string, loop: Loop])[] {
  const lengths = new Uint32Array(corpusBytes / blockBytesDefault);
  const pack = (): void => {
    for (let index = 0; index < lengths.length; index += 1)
      lengths[index] = compress(index * blockBytesDefault, blockBytesDefault);
  };
  const unpack = (): void => {
    for (const [index, length] of lengths.entries())
      assert(decompress(index * blockBytesDefault, length, blockBytesDefault), "what was compressed is decompressed");
  };
  const checkPlain = (): Uint8Array => {
    assert(data.equals(text), "what is decompressed is what was compressed");
    return data;
  };
  const place = (corpus: Buffer) => (): void => {
    data.set(corpus);
  };
  const result = (): Uint8Array => new Uint8Array(lengths.buffer);
  const packText = (): void => {
    data.set(text);
    pack();
  };
  return [
    [`LZ4 compress, text, ${block}`, { prepare: place(text), run: pack, result }],
    [`LZ4 compress, random, ${block}`, { prepare: place(random), run: pack, result }],
    [`LZ4 decompress, text, ${block}`, { prepare: packText, run: unpack, result: checkPlain }],
  ];
}

/** A loop that asks a question of every unit; its result is how often the answer was yes. */
function counting(corpus: Buffer, unitBytes: number, test: (unit: Buffer) => boolean): Loop {
  const count = new Uint32Array(1);
  const run = (): void => {
    let yes = 0;
    eachUnit(corpus, unitBytes, (unit) => {
      if (test(unit)) yes += 1;
    });
    count[0] = yes;
  };
  return { run, result: () => new Uint8Array(count.buffer) };
}

function eachUnit(corpus: Buffer, unitBytes: number, visit: (unit: Buffer, at: number) => void): void {
  for (let at = 0; at < corpus.length; at += unitBytes) visit(corpus.subarray(at, at + unitBytes), at);
}

/**
 * The dedup index with random digests: filling an empty one, and finding each entry of a full one.
 */
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
      for (let entry = 0; entry < entries; entry += 1)
        if (this.#index.find(words, entry * 4, place) && place.offset === entry) found += 1;
      counts[0] = found;
    };
    this.#index = fill();
    this.insert = {
      name: "dedup index, insert",
      unit: "operations",
      amount: entries,
      prepare: () => undefined,
      run: () => {
        this.#index = fill();
      },
      result: () => new Uint8Array(new Uint32Array([this.#index.count]).buffer),
    };
    this.lookup = {
      name: "dedup index, look up",
      unit: "operations",
      amount: entries,
      prepare: () => undefined,
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

/**
 * Words of a made-up language, a few of them frequent: LZ4 makes about half of it, as of source
 * code.
 */
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
