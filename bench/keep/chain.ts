/**
 * A disk with many points, each slightly different from the one before. The protection loop makes
 * them, as in an agent; only the next point is requested at once instead of after five seconds. So
 * heads, pages, manifests and maps are those of a real chain.
 */
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { type BlockDevice, Vault } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { randomWords } from "../image.ts";
import { onDemandMs, policyOf } from "../live/orders.ts";
import type { BenchConfig } from "../options.ts";
import { ours, type StepLog } from "../steps.ts";
import type { KeepPlace } from "./place.ts";

export const chainDisk = "chain";

/** Granules that are written before each point. */
const writesAPoint = 8;
/** How often it is told how far the chain has come. */
const tellings = 10;

/** What came of it. */
export interface Chain {
  readonly image: string;
  /** A granule that was written before the last point, and what it holds. */
  readonly offset: number;
  readonly bytes: Uint8Array;
  /**
   * Written to the store for a point besides its data, on the average: manifest, map, head and
   * pages.
   */
  readonly metadataBytesAPoint: number;
}

/** Makes a chain of `config.live.points` points of a sparse disk. */
export async function makeChain(config: BenchConfig, place: KeepPlace, log: StepLog): Promise<Chain> {
  const { temporaryFolder, workers, lanes, signal, live } = config;
  const image = await place.makeImage("chain.img", live.diskBytes);
  const stateFolder = join(temporaryFolder, "state");
  await mkdir(stateFolder);
  const vault = await Vault.openOrCreate(place.sink, { stateFolder, workers, lanes, signal });
  try {
    const protection = await vault.protect({
      disk: chainDisk,
      image,
      stateFolder,
      policy: policyOf(onDemandMs),
    });
    const writer = new Writer(protection.device, live.hotBytes, config.seed);
    const { sequence: first } = await protection.point({ signal });
    const before = place.sink.putBytes;
    let newest = first;
    const make = async (): Promise<void> => {
      while (newest < live.points) {
        if (newest % Math.ceil(live.points / tellings) === 0) config.begin(`${newest.toLocaleString("en-US")} points`);
        await writer.write();
        newest = (await protection.point({ signal })).sequence;
      }
    };
    await log.time("points, one after the other", ours, 0, make, () => writer.writtenBytes);
    const metadataBytesAPoint = (place.sink.putBytes - before) / (newest - first);
    await protection.stop({ drain: false });
    return { image, ...writer.last, metadataBytesAPoint };
  } finally {
    await vault.close();
  }
}

/** Writes granules that no point has held, at random places at the front of a disk. */
class Writer {
  /** The last granule that was written. */
  last: { readonly offset: number; readonly bytes: Uint8Array } = { offset: 0, bytes: Buffer.alloc(granuleBytes) };
  writtenBytes = 0;
  readonly #device: BlockDevice;
  readonly #granules: number;
  readonly #next: () => number;

  constructor(device: BlockDevice, spanBytes: number, seed: number) {
    this.#device = device;
    this.#granules = Math.floor(spanBytes / granuleBytes);
    this.#next = randomWords(seed);
  }

  async write(): Promise<void> {
    for (let written = 0; written < writesAPoint; written += 1) {
      const offset = (this.#next() % this.#granules) * granuleBytes;
      const bytes = Buffer.alloc(granuleBytes);
      for (let at = 0; at < granuleBytes; at += 4) bytes.writeUInt32LE(this.#next(), at);
      await this.#device.write(offset, bytes);
      this.last = { offset, bytes };
      this.writtenBytes += bytes.length;
    }
  }
}
