/**
 * Benchmark: a disk that runs at once from a point. The newest point of a sparse disk of 1 TiB is
 * taken to an instant target by a test failover, in a process of its own, anew for each run:
 *
 *   - time until the first 4 KiB arrive, and until the first write is flushed, beside qemu-nbd on a
 *     local qcow2 file of that content;
 *   - all data copied while no client is at work, beside the Get ceiling;
 *   - random reads and writes beside the same on the copied disk: on an eighth of the data while the
 *     rest is copied, and on all of it from the first moment on. The second cannot be faster than the
 *     store before nearly everything is there, in any order of the copy: it is a mean over the
 *     whole load, and the load is longer than the copying.
 *
 * The limit is the highest rate that a guest on an eighth gets, and beside which the copy keeps half of its
 * idle speed.
 *
 * What needs fio or QEMU is left out where they are not installed. The copied image is compared with
 * the disk. The first write is one of what is there.
 */
import { join } from "node:path";
import { FileVolume, NbdVolume, type Sink, TidemarkError } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { imageFacts } from "../image.ts";
import { type FioFigures, type FioJob, runFio } from "../live/fio.ts";
import { findLimit, highestRate, megabytes } from "../live/limit.ts";
import { isInstalled, runProgram, startServer } from "../live/programs.ts";
import { nbdUri } from "../live/protecting-process.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { ours, StepLog, yardstick } from "../steps.ts";
import type { Mark } from "../targets.ts";
import { getCeiling, type StoredPages, storedSegments, yardstickLanes } from "../yardsticks.ts";
import { writeFirst } from "./first-flush.ts";
import { type FrontDisk, frontHash, frontHashOf, makeFrontDisk, readFirst } from "./front-disk.ts";
import { MountingProcess } from "./mounting-process.ts";
import { KeepPlace, sameHash } from "./place.ts";

const disk = "bench";
const readPercent = 70;

const [firstStep, flushStep, peerStep] = [
  "run to first 4 KiB over NBD",
  "run to first flush of a write",
  "qemu-nbd on a qcow2, to first 4 KiB",
] as const;
const [copyStep, ceilingStep] = ["copy all data, idle", `Get ceiling, 4 MiB × ${yardstickLanes}`] as const;
const [partStep, guestStep, copiedStep] = [
  "randrw 4k on 1/8, while copying",
  "randrw 4k on all, from the start",
  "randrw 4k on all, copied",
] as const;
/** Of the data, and of the length of a load: the copying has not ended by then. */
const [partOfData, partOfTime] = [8, 3] as const;

export async function benchInstant(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { signal, temporaryFolder } = config;
  return await KeepPlace.use(config, store, async (place) => {
    const made = await makeFrontDisk(config, place);
    const volume = await FileVolume.open(made.image);
    try {
      await log.time(
        "first replication, fresh vault",
        ours,
        0,
        async () => await place.inVault(async (vault) => await vault.replicate({ disk, volume, signal })),
        ({ scannedBytes }) => scannedBytes,
      );
      const bench = new InstantRuns(config, place, log, {
        ...made,
        wanted: await frontHashOf(made.image, made.spanBytes, signal),
        segments: await storedSegments(place.sink, signal),
        hasFio: await isInstalled("fio", temporaryFolder),
        qcow2: await qcow2Of(config, made.image),
      });
      for (let run = 0; run < config.runs; run += 1) await bench.run(run);
      const limit = await bench.limit();
      return {
        image: { ...(await imageFacts(volume)), path: "a new disk" },
        steps: log.steps(),
        marks: marksOf(config, log),
        counts: { ...bench.counts, ...limit },
        hashes: { image: bench.of.wanted, point: bench.hash },
        peakRssBytes: bench.peakRssBytes,
      };
    } finally {
      await volume.close();
    }
  });
}

interface InstantDisk extends FrontDisk {
  /** Hash of the front of the disk. */
  readonly wanted: string;
  readonly segments: readonly StoredPages[];
  readonly hasFio: boolean;
  /** Path of the same content for QEMU; undefined where it is not installed. */
  readonly qcow2: string | undefined;
}

/** The runs of one disk, and what is to be told of them besides their times. */
class InstantRuns {
  readonly of: InstantDisk;
  counts: Readonly<Record<string, number>> = {};
  hash = "";
  peakRssBytes = 0;
  readonly #config: BenchConfig;
  readonly #place: KeepPlace;
  readonly #log: StepLog;

  constructor(config: BenchConfig, place: KeepPlace, log: StepLog, of: InstantDisk) {
    this.#config = config;
    this.#place = place;
    this.#log = log;
    this.of = of;
  }

  async run(run: number): Promise<void> {
    const { signal } = this.#config;
    const { segments, hasFio, qcow2 } = this.of;
    const ceiling = async (): Promise<number> => await getCeiling(this.#place.sink, segments, signal);
    if (run % 2 === 1) await this.#yardstick(ceilingStep, run, ceiling);
    await this.#idle(run);
    if (run % 2 === 0) await this.#yardstick(ceilingStep, run, ceiling);
    if (hasFio) await this.#busy(run);
    if (qcow2 !== undefined) await this.#yardstick(peerStep, run, async () => await this.#peer(qcow2, run));
  }

  async limit(): Promise<Readonly<Record<string, number>>> {
    const { mark, live, begin } = this.#config;
    if (!live.findLimit) return {};
    const marksAt = async (rate: number): Promise<Mark[]> =>
      await this.#served(`limit-${rate}`, async (process) => {
        const name = `guest, ${megabytes(rate)}`;
        begin(name);
        const guest = { uri: process.uri, spanBytes: this.of.spanBytes / partOfData, bytesPerSecondMax: rate };
        const { bytes, elapsedMs } = await this.#load(name, guest, live.seconds / partOfTime);
        return [
          mark("guest, of the wanted rate", bytes / (elapsedMs / 1_000) / rate),
          mark("copy beside that guest, of idle", this.#log.medianMs(copyStep) / (await process.hydrate())),
        ];
      });
    const value = live.bytesPerSecond;
    return await findLimit(this.#config, highestRate, { value, marks: await marksAt(value) }, marksAt);
  }

  async #yardstick(
    step: typeof ceilingStep | typeof peerStep,
    run: number,
    work: () => Promise<number>,
  ): Promise<void> {
    await this.#log.time(step, yardstick, run, work, (bytes) => bytes);
  }

  async #peer(qcow2: string, run: number): Promise<number> {
    const { temporaryFolder, signal } = this.#config;
    const socket = join(temporaryFolder, `qcow2-${run}.sock`);
    const server = await startServer(
      "qemu-nbd",
      ["-f", "qcow2", "-r", "-t", "--shared=0", "-k", socket, qcow2],
      socket,
      temporaryFolder,
      signal,
    );
    try {
      return (await readFirst(nbdUri(socket, ""), this.of.spanBytes, signal)).bytes.byteLength;
    } finally {
      await server.kill();
    }
  }

  /** First read and first flush, then all of the rest is copied; then fio works on the copy. */
  async #idle(run: number): Promise<void> {
    const { signal, begin } = this.#config;
    const { spanBytes, wanted, hasFio } = this.of;
    begin(firstStep, run);
    await this.#served(`idle-${run}`, async (process, { socket, servedMs }) => {
      const servedAt = performance.now();
      const { offset, bytes } = await readFirst(process.uri, spanBytes, signal);
      this.#log.add(firstStep, ours, granuleBytes, servedMs + performance.now() - servedAt);
      await writeFirst(socket, disk, offset, bytes);
      this.#log.add(flushStep, ours, granuleBytes, servedMs + performance.now() - servedAt);
      begin(copyStep, run);
      this.#log.add(copyStep, ours, spanBytes, await process.hydrate());
      if (run === 0) {
        begin("compare the copy with the disk");
        const copy = await NbdVolume.open(process.uri, { signal });
        try {
          this.hash = sameHash(await frontHash(copy, spanBytes, signal), wanted, "the instant target");
        } finally {
          await copy.close();
        }
      }
      if (hasFio) await this.#fio(copiedStep, process.uri, run, this.of.spanBytes, this.#config.live.seconds);
    });
  }

  async #busy(run: number): Promise<void> {
    const { spanBytes } = this.of;
    const { seconds } = this.#config.live;
    for (const [name, step, bytes, length] of [
      ["part", partStep, spanBytes / partOfData, seconds / partOfTime],
      ["busy", guestStep, spanBytes, seconds],
    ] as const) {
      await this.#served(`${name}-${run}`, async (process) => {
        await this.#fio(step, process.uri, run, bytes, length);
        // If that is shorter than the load, the end of the load had a copied disk.
        this.counts = { ...this.counts, [`${name}, copyMs`]: Math.round(await process.hydrate()) };
      });
    }
  }

  async #served<Result>(
    name: string,
    work: (process: MountingProcess, of: { readonly socket: string; readonly servedMs: number }) => Promise<Result>,
  ): Promise<Result> {
    const { temporaryFolder, workers, signal, live } = this.#config;
    const socket = join(temporaryFolder, `${name}.sock`);
    const image = join(temporaryFolder, `${name}.img`);
    const plan = { store: live.storeAddress, prefix: this.#place.prefix, disk, workers, socket, image };
    const { process, servedMs } = await MountingProcess.start(plan, signal);
    try {
      const result = await work(process, { socket, servedMs });
      const { summary, peakRssBytes } = await process.stop();
      this.peakRssBytes = Math.max(this.peakRssBytes, peakRssBytes);
      const what = name.replace(/-\d+$/, "");
      this.counts = { ...this.counts, [`${what}, fetchedBytes`]: summary.bytesFetched };
      if ("hydratedBytes" in summary) this.counts = { ...this.counts, [`${what}, copiedBytes`]: summary.hydratedBytes };
      return result;
    } finally {
      await process.end();
    }
  }

  async #fio(
    step: typeof partStep | typeof guestStep | typeof copiedStep,
    uri: string,
    run: number,
    spanBytes: number,
    seconds: number,
  ): Promise<void> {
    this.#config.begin(step, run);
    const { requests, elapsedMs, p99Us } = await this.#load(step, { uri, spanBytes }, seconds, run);
    this.#log.add(
      step,
      { role: step === copiedStep ? "yardstick" : "tidemark", unit: "operations" },
      requests,
      elapsedMs,
    );
    this.counts = { ...this.counts, [`${step}, p99Us`]: Math.round(p99Us) };
  }

  async #load(
    traced: string,
    at: Pick<FioJob, "uri" | "spanBytes" | "bytesPerSecondMax">,
    seconds: number,
    run = 0,
  ): Promise<FioFigures> {
    return await runFio(this.#config, {
      ...at,
      pattern: "randrw",
      readPercent,
      requestBytes: granuleBytes,
      extent: { seconds },
      freshData: false,
      seed: this.#config.seed + run,
      traced,
    });
  }
}

/** The content for QEMU, or undefined where it is not installed. Errors: INTERNAL. */
async function qcow2Of({ temporaryFolder, signal, begin }: BenchConfig, image: string): Promise<string | undefined> {
  for (const name of ["qemu-img", "qemu-nbd"]) if (!(await isInstalled(name, temporaryFolder))) return undefined;
  begin("write the content as qcow2");
  const path = join(temporaryFolder, "instant.qcow2");
  const words = ["convert", "-f", "raw", "-O", "qcow2", image, path];
  const { exitCode, stderr } = await runProgram("qemu-img", words, temporaryFolder, signal);
  if (exitCode === 0) return path;
  throw new TidemarkError("INTERNAL", `qemu-img ended with ${String(exitCode)}: ${stderr.trim().slice(0, 300)}`);
}

function marksOf({ mark }: BenchConfig, log: StepLog): Mark[] {
  const rates = new Map(log.steps().map(({ name, perSecond }) => [name, perSecond]));
  const guests = [partStep, guestStep]
    .filter((step) => rates.has(step))
    .map((step) => mark(step, (rates.get(step) ?? NaN) / (rates.get(copiedStep) ?? NaN)));
  return [
    mark(firstStep, log.medianMs(firstStep)),
    mark(flushStep, log.medianMs(flushStep)),
    mark("copy, of the Get ceiling", log.medianMs(ceilingStep) / log.medianMs(copyStep)),
    ...guests,
  ];
}
