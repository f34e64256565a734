/**
 * Benchmark: reading a mounted point. A sparse disk of 1 TiB with data at its front is replicated,
 * and its newest point is mounted by a process of its own, anew for each run:
 *
 *   - time until the first 4 KiB arrive through the NBD server;
 *   - all data read once in order, beside the Get ceiling: fetching the stored bytes and dropping
 *     them;
 *   - cached data read at random, beside qemu-nbd on a file with the same content.
 *
 * The bytes that the mount returns are compared with the restored point.
 *
 * The ceiling fetches stored bytes, while a reader receives decompressed bytes. So the share of the
 * ceiling depends on how well the data compresses; LZ4 halves the data used here.
 */
import { join } from "node:path";
import { FileVolume, NbdVolume, type Sink } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { imageFacts } from "../image.ts";
import { type FioFigures, type FioPattern, runFio } from "../live/fio.ts";
import { startServer } from "../live/programs.ts";
import { nbdUri } from "../live/protecting-process.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { ours, StepLog, yardstick } from "../steps.ts";
import type { Mark } from "../targets.ts";
import { getCeiling, type StoredPages, storedSegments, yardstickLanes } from "../yardsticks.ts";
import { type FrontDisk, frontHash, frontHashOf, makeFrontDisk, readFirst } from "./front-disk.ts";
import type { MountEnd } from "./mounting-entry.ts";
import { MountingProcess } from "./mounting-process.ts";
import { KeepPlace, sameHash } from "./place.ts";

const disk = "bench";
/** What is read at random: well below the cache of a mount. */
const cachedBytesMax: number = 128 * 1024 * 1024;

const [firstStep, sequentialStep, ceilingStep] = [
  "mount to first 4 KiB over NBD",
  "read 1m, all data once, cold",
  `Get ceiling, 4 MiB × ${yardstickLanes}`,
] as const;
const [cachedStep, peerStep] = ["randread 4k, in the cache", "randread 4k, qemu-nbd on a file"] as const;

export async function benchMount(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  return await KeepPlace.use(config, store, async (place) => {
    const made = await makeFrontDisk(config, place);
    const volume = await FileVolume.open(made.image);
    try {
      const { signal } = config;
      await log.time(
        "first replication, fresh vault",
        ours,
        0,
        async () => await place.inVault(async (vault) => await vault.replicate({ disk, volume, signal })),
        ({ scannedBytes }) => scannedBytes,
      );
      const segments = await storedSegments(place.sink, signal);
      config.begin("bring the point back");
      return await place.broughtBack(disk, async (path) => {
        const wanted = await frontHashOf(path, made.spanBytes, signal);
        const image = await frontHashOf(made.image, made.spanBytes, signal);
        const bench = new MountRuns(config, place, log, { ...made, path, wanted, segments });
        for (let run = 0; run < config.runs; run += 1) await bench.run(run);
        return {
          image: { ...(await imageFacts(volume)), path: config.image === "" ? "a new disk" : config.image },
          steps: log.steps(),
          marks: marksOf(config, log),
          counts: { storedBytes: segments.reduce((sum, { writtenBytes }) => sum + writtenBytes, 0), ...bench.counts },
          hashes: {
            image: sameHash(wanted, image, "the newest point"),
            point: bench.hash,
            "the point brought back": wanted,
          },
          peakRssBytes: bench.peakRssBytes,
        };
      });
    } finally {
      await volume.close();
    }
  });
}

/** The runs of one disk, and what is to be told of them besides their times. */
class MountRuns {
  counts: Readonly<Record<string, number>> = {};
  hash = "";
  peakRssBytes = 0;
  readonly #config: BenchConfig;
  readonly #place: KeepPlace;
  readonly #log: StepLog;
  readonly #of: FrontDisk & {
    readonly path: string;
    readonly wanted: string;
    readonly segments: readonly StoredPages[];
  };

  /** `of.path`: the point brought back; `of.wanted`: the hash of its front. */
  constructor(
    config: BenchConfig,
    place: KeepPlace,
    log: StepLog,
    of: FrontDisk & { readonly path: string; readonly wanted: string; readonly segments: readonly StoredPages[] },
  ) {
    this.#config = config;
    this.#place = place;
    this.#log = log;
    this.#of = of;
  }

  /** Mount and ceiling take turns in going first, so that neither always meets the warmer store. */
  async run(run: number): Promise<void> {
    const { signal } = this.#config;
    const { segments } = this.#of;
    const ceiling = async (): Promise<void> => {
      const read = async (): Promise<number> => await getCeiling(this.#place.sink, segments, signal);
      await this.#log.time(ceilingStep, yardstick, run, read, (bytesRead) => bytesRead);
    };
    if (run % 2 === 1) await ceiling();
    const { summary, peakRssBytes } = await this.#mounted(run);
    if (run === 0) this.peakRssBytes = peakRssBytes;
    const { bytesRead, bytesFetched } = summary;
    this.counts = { ...this.counts, readBytes: bytesRead, fetchedBytes: bytesFetched };
    if ("cacheHits" in summary)
      this.counts = { ...this.counts, cacheHits: summary.cacheHits, cacheMisses: summary.cacheMisses };
    if (run % 2 === 0) await ceiling();
    await this.#besidePeer(run);
  }

  async #mounted(run: number): Promise<MountEnd> {
    const { temporaryFolder, workers, signal, live, begin } = this.#config;
    begin(firstStep, run);
    const plan = { store: live.storeAddress, prefix: this.#place.prefix, disk, workers };
    const startedAt = performance.now();
    const { process, servedMs } = await MountingProcess.start(
      { ...plan, socket: join(temporaryFolder, `mount-${run}.sock`) },
      signal,
    );
    try {
      const servedAt = performance.now();
      await readFirst(process.uri, this.#of.spanBytes, signal);
      // How long Node takes to start is told apart: it is the same for every program.
      const firstMs = servedMs + performance.now() - servedAt;
      this.#log.add(firstStep, ours, granuleBytes, firstMs);
      this.counts = { ...this.counts, processStartMs: Math.round(servedAt - startedAt - servedMs) };
      await this.#fio(sequentialStep, process.uri, run, {
        pattern: "read",
        requestBytes: 1_048_576,
        bytes: this.#of.spanBytes,
      });
      if (run === 0) {
        begin("compare with the point brought back");
        const mounted = await NbdVolume.open(process.uri, { signal });
        try {
          this.hash = sameHash(
            await frontHash(mounted, this.#of.spanBytes, signal),
            this.#of.wanted,
            "what the mount gave",
          );
        } finally {
          await mounted.close();
        }
      }
      await this.#random(cachedStep, process.uri, run);
      return await process.stop();
    } finally {
      await process.end();
    }
  }

  async #besidePeer(run: number): Promise<void> {
    const { temporaryFolder, signal } = this.#config;
    const socket = join(temporaryFolder, `qemu-${run}.sock`);
    const words = ["-f", "raw", "-r", "-t", "--cache=writeback", "--shared=0", "-k", socket, this.#of.path];
    const server = await startServer("qemu-nbd", words, socket, temporaryFolder, signal);
    try {
      await this.#random(peerStep, nbdUri(socket, ""), run);
    } finally {
      await server.kill();
    }
  }

  /** Reads at random what has just been read in order. */
  async #random(step: typeof cachedStep | typeof peerStep, uri: string, run: number): Promise<void> {
    const bytes = Math.min(cachedBytesMax, this.#of.spanBytes);
    await this.#fio(undefined, uri, run, { pattern: "read", requestBytes: 1_048_576, bytes });
    await this.#fio(step, uri, run, {
      pattern: "randread",
      requestBytes: granuleBytes,
      bytes,
      seconds: this.#config.live.seconds,
    });
  }

  async #fio(
    step: typeof sequentialStep | typeof cachedStep | typeof peerStep | undefined,
    uri: string,
    run: number,
    load: {
      readonly pattern: FioPattern;
      readonly requestBytes: number;
      readonly bytes: number;
      readonly seconds?: number;
    },
  ): Promise<void> {
    const { seed, begin } = this.#config;
    const { pattern, requestBytes, bytes, seconds } = load;
    if (step !== undefined) begin(step, run);
    const figures: FioFigures = await runFio(this.#config, {
      uri,
      pattern,
      requestBytes,
      spanBytes: bytes,
      extent: seconds === undefined ? { bytes } : { seconds },
      freshData: false,
      seed: seed + run,
      traced: step,
    });
    if (step === undefined) return;
    const unit = seconds === undefined ? "bytes" : "operations";
    const role = step === peerStep ? "yardstick" : "tidemark";
    this.#log.add(step, { role, unit }, seconds === undefined ? figures.bytes : figures.requests, figures.elapsedMs);
    if (seconds !== undefined) this.counts = { ...this.counts, [`${step}, p99Us`]: Math.round(figures.p99Us) };
  }
}

function marksOf({ mark }: BenchConfig, log: StepLog): Mark[] {
  const rates = new Map(log.steps().map(({ name, perSecond }) => [name, perSecond]));
  return [
    mark(firstStep, log.medianMs(firstStep)),
    mark("read 1m, of the Get ceiling", log.medianMs(ceilingStep) / log.medianMs(sequentialStep)),
    mark("randread 4k in the cache, of qemu-nbd", (rates.get(cachedStep) ?? NaN) / (rates.get(peerStep) ?? NaN)),
  ];
}
