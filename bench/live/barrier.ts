/**
 * Benchmark: how long a cut holds writes. Many cuts in a row, of a disk to which 32 writers write
 * without a pause. It runs in this process and into a discarding sink, so that only the barrier is
 * measured.
 */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { type BlockDevice, Vault } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { DiscardingSink } from "../discarding-sink.ts";
import { makeSparse, randomWords } from "../image.ts";
import type { BenchConfig } from "../options.ts";
import type { Mark } from "../targets.ts";
import { onDemandMs, policyOf } from "./orders.ts";

const writers = 32;
const diskBytes = 256 * 1024 * 1024;
/** No cut begins later than this: where other work takes the cores, each of them takes a second. */
const cutsMsMax = 30_000;

export interface BarrierFigures {
  readonly marks: readonly Mark[];
  readonly counts: Readonly<Record<string, number>>;
}

export async function benchBarrier(config: BenchConfig): Promise<BarrierFigures> {
  const { temporaryFolder, workers, lanes, signal, live, begin } = config;
  begin(`${live.cuts} cuts, ${writers} writes in flight`);
  const stateFolder = join(temporaryFolder, "barrier");
  const image = join(temporaryFolder, "barrier.img");
  await mkdir(stateFolder);
  await makeSparse(image, diskBytes);
  const vault = await Vault.openOrCreate(new DiscardingSink(), { stateFolder, workers, lanes, signal });
  try {
    const protection = await vault.protect({ disk: "barrier", image, stateFolder, policy: policyOf(onDemandMs) });
    await protection.point({ signal });
    const load = new Load(protection.device, config.seed);
    const heldMs: number[] = [];
    const untilMs = performance.now() + cutsMsMax;
    try {
      while (heldMs.length < live.cuts && performance.now() < untilMs) {
        await protection.point({ signal });
        heldMs.push(protection.status().barrier.lastMs);
      }
    } finally {
      await load.end();
    }
    return figuresOf(
      config,
      heldMs.toSorted((a, b) => a - b),
      load.writes,
    );
  } finally {
    await vault.close();
  }
}

/** Writers that each write the next granule as soon as the last is written. */
class Load {
  writes = 0;
  #isOver = false;
  readonly #done: Promise<unknown>;

  constructor(device: BlockDevice, seed: number) {
    const next = randomWords(seed);
    const write = async (): Promise<void> => {
      const bytes = Buffer.alloc(granuleBytes);
      while (!this.#isOver) {
        bytes.writeUInt32LE(next());
        await device.write((next() % (device.sizeBytes / granuleBytes)) * granuleBytes, bytes);
        this.writes += 1;
      }
    };
    this.#done = Promise.all(Array.from({ length: writers }, write));
    this.#done.catch(() => undefined); // awaited by `end`
  }

  async end(): Promise<void> {
    this.#isOver = true;
    await this.#done;
  }
}

function figuresOf(config: BenchConfig, sortedMs: readonly number[], writes: number): BarrierFigures {
  const at = (share: number): number => sortedMs[Math.max(0, Math.ceil(sortedMs.length * share) - 1)] ?? NaN;
  const p99 = at(0.99);
  return {
    marks: [config.mark("barrier of a cut, 32 writes in flight, p99", p99)],
    counts: {
      cuts: sortedMs.length,
      writesMeanwhile: writes,
      barrierP50Ms: at(0.5),
      barrierP99Ms: p99,
      longestBarrierMs: at(1),
    },
  };
}
