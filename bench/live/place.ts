/**
 * Place of a benchmark of live disks: a disk image, a vault under a prefix of its own in the store,
 * and the processes that protect the disk. At the end the newest point is restored and compared
 * with the image, because a figure for a wrong result is worthless.
 */
import { randomUUID } from "node:crypto";
import { mkdir, rm } from "node:fs/promises";
import { join } from "node:path";
import { type Sink, TidemarkError, Vault } from "../../engine/index.ts";
import { closing } from "../../engine/internal.ts";
import { contentHash, copySparsely, type ImageFacts, imageFactsOf, makeSparse } from "../image.ts";
import { NestedSink } from "../nested-sink.ts";
import type { BenchConfig } from "../options.ts";
import type { Condition } from "./orders.ts";
import { ProtectingProcess } from "./protecting-process.ts";
import { ProcessWatch } from "./watch.ts";

const disk = "bench";
/** The process is looked at this often. */
const [watchEveryMsMin, watchEveryMsMax, watchedPoints] = [250, 10_000, 240] as const;

export class LivePlace {
  readonly image: string;
  readonly #config: BenchConfig;
  readonly #sink: NestedSink;
  readonly #prefix: string;
  readonly #stateFolder: string;
  #started = 0;

  private constructor(config: BenchConfig, store: Sink) {
    const { temporaryFolder } = config;
    this.#config = config;
    this.#prefix = `bench-${randomUUID()}/`;
    this.#sink = new NestedSink(store, this.#prefix);
    this.image = join(temporaryFolder, "live.img");
    this.#stateFolder = join(temporaryFolder, "state");
  }

  /**
   * Lends a place with the copy of the given image as its disk, or a new empty one, and empties it
   * again.
   */
  static async use<Result>(
    config: BenchConfig,
    store: Sink,
    work: (place: LivePlace) => Promise<Result>,
  ): Promise<Result> {
    const place = new LivePlace(config, store);
    await mkdir(place.#stateFolder);
    await place.#makeImage();
    return await closing(place.#sink, async () => await work(place));
  }

  /** Of the disk, under the name of what it was made from. */
  async facts(): Promise<ImageFacts> {
    const { image } = this.#config;
    return { ...(await imageFactsOf(this.image)), path: image === "" ? "a new disk" : image };
  }

  /**
   * Runs `work` while a process protects the disk. The process is gone afterwards, also after a
   * failure. `isDiscarded`: into a store of its own that forgets everything. Errors: those of both.
   */
  async protecting<Result>(
    cycleMs: number,
    work: (process: ProtectingProcess, condition: Condition) => Promise<Result>,
    { indexBytesMax, isDiscarded = false }: { readonly indexBytesMax?: number; readonly isDiscarded?: boolean } = {},
  ): Promise<Result> {
    const { live, workers, lanes, temporaryFolder, signal } = this.#config;
    this.#started += 1;
    const { process, condition } = await ProtectingProcess.start(
      {
        store: isDiscarded ? "discarding" : live.storeAddress,
        prefix: this.#prefix,
        disk,
        image: this.image,
        stateFolder: isDiscarded ? join(temporaryFolder, "discarded-state") : this.#stateFolder,
        socket: join(temporaryFolder, `${this.#started}.sock`),
        cycleMs,
        workers,
        lanes,
        indexBytesMax,
      },
      signal,
    );
    const everyMs = Math.min(watchEveryMsMax, Math.max(watchEveryMsMin, (live.seconds * 1_000) / watchedPoints));
    const watch = new ProcessWatch(process, this.#config.trace, everyMs);
    try {
      return await work(process, condition);
    } finally {
      await process.kill();
      await watch.end();
    }
  }

  /**
   * Restores the newest point and compares it with the disk, which is no longer written. Errors:
   * DAMAGED.
   */
  async prove(): Promise<Record<"image" | "point", string>> {
    const { temporaryFolder, workers, lanes, signal, begin } = this.#config;
    begin("compare the newest point with the disk");
    const target = join(temporaryFolder, "proved.img");
    const vault = await Vault.open(this.#sink, { workers, lanes, signal });
    try {
      await vault.materialize({ disk, point: "latest", to: target, format: "raw", signal });
    } finally {
      await vault.close();
    }
    const hashes = { image: await contentHash(this.image, signal), point: await contentHash(target, signal) };
    await rm(target);
    if (hashes.point === hashes.image) return hashes;
    throw new TidemarkError("DAMAGED", "the newest point is not what was written to the disk", {
      remedy: "this is a fault in Tidemark: report it",
      detail: hashes,
    });
  }

  async #makeImage(): Promise<void> {
    const { image, live, signal, begin } = this.#config;
    if (image !== "") {
      begin("copy the image");
      await copySparsely(image, this.image, signal);
      return;
    }
    await makeSparse(this.image, live.diskBytes);
  }
}
