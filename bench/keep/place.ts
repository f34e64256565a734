/**
 * Place of a benchmark about kept points: a vault under a prefix of its own in the store, emptied
 * afterwards, and the proof that the newest point still equals what was replicated.
 */
import { randomUUID } from "node:crypto";
import { rm } from "node:fs/promises";
import { join } from "node:path";
import { type Sink, TidemarkError, Vault, type VaultParameters } from "../../engine/index.ts";
import { closing } from "../../engine/internal.ts";
import { contentHash, makeSparse } from "../image.ts";
import type { BenchConfig } from "../options.ts";
import { RecordingSink } from "./recording-sink.ts";

export class KeepPlace {
  /** Ends with a slash. */
  readonly prefix: string = `bench-${randomUUID()}/`;
  readonly sink: RecordingSink;
  readonly #config: BenchConfig;
  readonly #store: Sink;

  private constructor(config: BenchConfig, store: Sink) {
    this.#config = config;
    this.#store = store;
    this.sink = this.connect();
  }

  /** Lends a place in which nothing is, and empties it again. */
  static async use<Result>(
    config: BenchConfig,
    store: Sink,
    work: (place: KeepPlace) => Promise<Result>,
  ): Promise<Result> {
    const place = new KeepPlace(config, store);
    return await closing(place.sink, async () => await work(place));
  }

  /** The place once more, with a record of its own. */
  connect(): RecordingSink {
    return new RecordingSink(this.#store, this.prefix);
  }

  /**
   * Opens the vault, or creates it, for `work`. There is no state folder: nothing local speeds
   * anything up.
   */
  async inVault<Result>(
    work: (vault: Vault) => Promise<Result>,
    sink: Sink = this.sink,
    parameters: VaultParameters = {},
  ): Promise<Result> {
    const { workers, lanes, signal } = this.#config;
    const vault = await Vault.openOrCreate(sink, { ...parameters, workers, lanes, signal });
    try {
      return await work(vault);
    } finally {
      await vault.close();
    }
  }

  /** A new file of `sizeBytes` that is one hole. */
  async makeImage(name: string, sizeBytes: number): Promise<string> {
    const path = join(this.#config.temporaryFolder, name);
    await makeSparse(path, sizeBytes);
    return path;
  }

  /** Brings the newest point of `disk` back, has `work` done with the file, and removes it. */
  async broughtBack<Result>(disk: string, work: (path: string) => Promise<Result>): Promise<Result> {
    const { temporaryFolder, signal } = this.#config;
    const path = join(temporaryFolder, `${disk}-back.img`);
    try {
      await this.inVault(
        async (vault) => await vault.materialize({ disk, point: "latest", to: path, format: "raw", signal }),
      );
      return await work(path);
    } finally {
      await rm(path, { force: true });
    }
  }

  /**
   * Restores the newest point of `disk` and compares it with the image, which is no longer written.
   * Errors: DAMAGED.
   */
  async prove(disk: string, image: string): Promise<Record<"image" | "point", string>> {
    const { signal, begin } = this.#config;
    begin("compare the newest point with the disk");
    const wanted = await contentHash(image, signal);
    const hash = await this.broughtBack(disk, async (path) => await contentHash(path, signal));
    return { image: wanted, point: sameHash(hash, wanted, "the newest point") };
  }
}

/** `hash`, which must be `wanted`: a figure for a wrong result is none. Errors: DAMAGED. */
export function sameHash(hash: string, wanted: string, what: string): string {
  if (hash === wanted) return hash;
  throw new TidemarkError("DAMAGED", `${what} is not what was replicated`, {
    remedy: "this is a fault in Tidemark: report it",
    detail: { wanted, hash },
  });
}
