/**
 * Benchmark: garbage collection beside a protected disk that is written steadily. The cycles of the
 * disk, from cut to commit, are timed alone and then while this process collects a vault with many
 * gigabytes of dead data.
 *
 * Three fifths of the dead data lie in a part of a disk of which nothing stays, so that whole
 * segments can be deleted. Of the rest one MiB in sixteen stays, so that pages are cleared around
 * live data.
 *
 * Room needed: the dead bytes once on the disk of the store, what the load writes, and twice the
 * live disk.
 */
import { mkdir, statfs } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as delay } from "node:timers/promises";
import {
  type CollectSummary,
  type Extent,
  interrupted,
  pageAlignmentBytes,
  parsePolicy,
  type Sink,
  TidemarkError,
  throwIfAborted,
} from "../../engine/index.ts";
import { allZero, contentHash, imageFactsOf, rangeBytes } from "../image.ts";
import { runFioUntil } from "../live/fio.ts";
import type { Condition, SeenPoint } from "../live/orders.ts";
import { ProtectingProcess } from "../live/protecting-process.ts";
import { peakRssBytes } from "../machine.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { ours, StepLog } from "../steps.ts";
import { storedSegments } from "../yardsticks.ts";
import { MadeVolume } from "./made-volume.ts";
import { KeepPlace, sameHash } from "./place.ts";

const [deadDisk, liveDisk] = ["dead", "live"] as const;

const deadBytesDefault = 10_000_000_000;
/**
 * Of the room on the disk, at most this much is taken for the dead bytes unless the caller says how
 * many.
 */
const roomShareMax = 0.4;
const mebibyte: number = 1024 * 1024;
/** Of so many bytes `survivorBytes` stay, in the part of which something stays. */
const survivorEveryBytes: number = 16 * mebibyte;
const survivorBytes: number = mebibyte;

/** The part of the disk of which nothing stays. */
const goneShare = 0.6;

const requestBytes = 16_384;
const compressiblePercent = 50;
/** Time to release the writer lease on an interruption. */
const endMsMax = 5_000;
/** The load ends when it is told to. */
const loadSecondsMax = 86_400;

const [aloneStep, besideStep, collectStep] = [
  "cycle, cut to commit, alone",
  "cycle, cut to commit, collecting",
  "collect, beside the live disk",
] as const;

export async function benchCollect(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  return await KeepPlace.use(config, store, async (place) => {
    const deadBytes = config.live.deadBytes ?? (await roomFor(config));
    const keptHash = await makeDead(config, place, log, deadBytes);
    const image = await place.makeImage("live.img", config.live.diskBytes);
    const { summary, alone, beside, condition } = await measure(config, place, log, image);
    const collectorPeakRssBytes = peakRssBytes();
    config.begin("look at what is left");
    const left = await place.inVault(async (vault) => await vault.collect({ dryRun: true, signal: config.signal }));
    const occupied = await occupiedBytes(place.sink, config.signal);
    const hashes = await place.prove(liveDisk, image);
    await place.broughtBack(deadDisk, async (path) =>
      sameHash(await contentHash(path, config.signal), keptHash, "what was to stay"),
    );
    const longest = (points: readonly SeenPoint[]): number => Math.max(...points.map(cycleMsOf));
    return {
      image: { ...(await imageFactsOf(image)), path: "a new disk, written meanwhile" },
      steps: log.steps(),
      marks: [
        config.mark("cycle while collecting, of one alone", log.medianMs(besideStep) / log.medianMs(aloneStep)),
        config.mark("stored per live byte afterwards", occupied / left.liveBytes),
      ],
      counts: {
        deadBytes: summary.storedBytesBefore - summary.liveBytes,
        ...(config.live.deadBytes === undefined && deadBytes < deadBytesDefault
          ? { "no room for all of deadBytes": deadBytesDefault }
          : {}),
        "at first, storedBytes": summary.storedBytesBefore,
        "given back, storedBytes": summary.storedBytesBefore - summary.storedBytesAfter,
        "at the end, storedBytes": left.storedBytesBefore,
        "at the end, liveBytes": left.liveBytes,
        "at the end, pages that hold anything, bytes": occupied,
        condemnedChunks: summary.condemnedChunks,
        deletedSegments: summary.deletedSegments,
        deletedObjects: summary.deletedObjects,
        writersThatDidNotAcknowledge: summary.waitingFor.length,
        cyclesAlone: alone.length,
        cyclesBeside: beside.length,
        longestCycleAloneMs: longest(alone),
        longestCycleBesideMs: longest(beside),
        failures: condition.failures.length,
        collectorPeakRssBytes,
      },
      hashes: { ...hashes, "what was to stay": keptHash },
      peakRssBytes: condition.peakRssBytes,
    };
  });
}

/** As many dead bytes as there is room for, where the store is on a disk of ours. */
async function roomFor({ temporaryFolder, live }: BenchConfig): Promise<number> {
  if (!/^(?:azurite|dir):/.test(live.storeAddress.address)) return deadBytesDefault;
  const { bavail, bsize } = await statfs(temporaryFolder);
  return Math.max(survivorEveryBytes, Math.min(deadBytesDefault, Math.floor(bavail * bsize * roomShareMax)));
}

/**
 * Fills the vault with what no point needs when this is done, but for some survivors. Returns the
 * hash of the disk that they are.
 */
async function makeDead(config: BenchConfig, place: KeepPlace, log: StepLog, deadBytes: number): Promise<string> {
  const { seed, signal } = config;
  const wholes = Math.max(1, Math.floor(deadBytes / survivorEveryBytes));
  const sizeBytes = wholes * survivorEveryBytes;
  const replicate = async (extents: readonly Extent[]): Promise<number> => {
    const volume = new MadeVolume(sizeBytes, extents, seed);
    const { storedBytes } = await place.inVault(
      async (vault) => await vault.replicate({ disk: deadDisk, volume, signal }),
    );
    return storedBytes;
  };
  const everything = async (): Promise<number> => await replicate([{ offset: 0, length: sizeBytes }]);
  await log.time("store what will be dead", ours, 0, everything, (storedBytes) => storedBytes);
  config.begin("drop the point that needs it");
  const survivors = Array.from({ length: wholes }, (_, index) => ({
    offset: index * survivorEveryBytes,
    length: survivorBytes,
  }));
  await replicate(survivors.slice(Math.floor(wholes * goneShare)));
  await place.inVault(
    async (vault) => await vault.prune({ disk: deadDisk, policy: parsePolicy("keep:last=1"), signal }),
  );
  return await place.broughtBack(deadDisk, async (path) => await contentHash(path, signal));
}

interface Measured {
  readonly summary: CollectSummary;
  readonly alone: readonly SeenPoint[];
  readonly beside: readonly SeenPoint[];
  readonly condition: Condition;
}

/**
 * Has a disk written and protected by a process of its own, first for `live.seconds`, then for as
 * long as a collection takes.
 */
async function measure(config: BenchConfig, place: KeepPlace, log: StepLog, image: string): Promise<Measured> {
  const { temporaryFolder, workers, lanes, live, signal } = config;
  const stateFolder = join(temporaryFolder, "state");
  await mkdir(stateFolder);
  config.begin("first points");
  const { process } = await ProtectingProcess.start(
    {
      store: live.storeAddress,
      prefix: place.prefix,
      disk: liveDisk,
      image,
      stateFolder,
      socket: join(temporaryFolder, "live.sock"),
      cycleMs: live.cycleMs,
      workers,
      lanes,
      indexBytesMax: undefined,
    },
    // On an interruption the load must release its writer lease, because a leased object cannot be
    // removed.
    undefined,
  );
  try {
    await unlessInterrupted(process.point(), signal);
    const load = new SteadyLoad(config, process.uri);
    try {
      config.begin(`${live.bytesPerSecond / 1e6} MB/s of random writes for ${live.seconds} s`);
      const alone = await load.during(process, async (until) => {
        await delay(live.seconds * 1_000, undefined, { signal: until }).catch(() => undefined);
        throwIfAborted(until);
      });
      const beside = await load.during(
        process,
        async (until) =>
          await log.time(
            collectStep,
            ours,
            0,
            async () => await place.inVault(async (vault) => await vault.collect({ signal: until })),
            ({ storedBytesBefore, storedBytesAfter }) => storedBytesBefore - storedBytesAfter,
          ),
      );
      addCycles(config, log, aloneStep, alone.points);
      addCycles(config, log, besideStep, beside.points);
      await load.end();
      await unlessInterrupted(process.point(), signal);
      return { summary: beside.result, alone: alone.points, beside: beside.points, condition: await process.stop() };
    } finally {
      await load.end();
    }
  } finally {
    await end(process);
  }
}

/** In good order if that does not take long. */
async function end(process: ProtectingProcess): Promise<void> {
  const over = new AbortController();
  const late = delay(endMsMax, undefined, { signal: over.signal }).catch(() => undefined);
  await Promise.race([process.stop().catch(() => undefined), late]);
  over.abort();
  await process.kill();
}

async function unlessInterrupted<Result>(work: Promise<Result>, signal: AbortSignal | undefined): Promise<Result> {
  throwIfAborted(signal);
  const over = new AbortController();
  const stopped = new Promise<never>((_, reject) => {
    signal?.addEventListener("abort", () => reject(interrupted(signal)), { once: true, signal: over.signal });
  });
  try {
    return await Promise.race([work, stopped]);
  } finally {
    over.abort();
  }
}

/** Random writes at a steady rate, until they are ended. */
class SteadyLoad {
  readonly #stop = new AbortController();
  readonly #done: Promise<void>;
  readonly #signal: AbortSignal | undefined;

  constructor(config: BenchConfig, uri: string) {
    const { live, seed, signal } = config;
    this.#signal = signal;
    this.#done = runFioUntil(
      config,
      {
        uri,
        pattern: "randwrite",
        requestBytes,
        spanBytes: live.diskBytes,
        extent: { seconds: loadSecondsMax },
        bytesPerSecondMax: live.bytesPerSecond,
        freshData: true,
        compressiblePercent,
        seed,
      },
      this.#stop.signal,
    );
    this.#done.catch(() => undefined); // told by `during` and `end`
  }

  /**
   * Does `work` under the load, at whose end it is interrupted. Returns the points too whose cycles
   * were under way meanwhile, oldest first. Errors: those of the work and of the load;
   * INVALID_ARGUMENT when no cycle was under way.
   */
  async during<Result>(
    process: ProtectingProcess,
    work: (until: AbortSignal) => Promise<Result>,
  ): Promise<{ readonly result: Result; readonly points: readonly SeenPoint[] }> {
    const startedAtMs = Date.now();
    const over = new AbortController();
    const working = work(this.#signal === undefined ? over.signal : AbortSignal.any([this.#signal, over.signal]));
    const ended = this.#done.then(() => {
      throw new TidemarkError("DEVICE_FAILED", "fio ended before it was told to", {
        remedy: "see whether the server has failed",
      });
    });
    ended.catch(() => undefined); // as it should, once this is over
    try {
      await Promise.race([working, ended]);
    } finally {
      over.abort();
      await Promise.allSettled([working]); // no work goes on in a place that is being emptied
    }
    const result = await working;
    const endedAtMs = Date.now();
    await unlessInterrupted(process.point(), this.#signal); // what was under way is committed then
    const { points } = await process.ask({ kind: "status" });
    const seen = points.filter(({ cutAtMs, committedAtMs }) => committedAtMs >= startedAtMs && cutAtMs <= endedAtMs);
    if (seen.length > 0) return { result, points: seen };
    throw new TidemarkError("INVALID_ARGUMENT", `no point was made in ${endedAtMs - startedAtMs} ms under the load`, {
      remedy: "let the load last longer than a cycle",
    });
  }

  /** Idempotent. */
  async end(): Promise<void> {
    this.#stop.abort();
    await this.#done;
  }
}

function cycleMsOf({ cutAtMs, committedAtMs }: SeenPoint): number {
  return committedAtMs - cutAtMs;
}

/**
 * The amount of a cycle is what the load wrote since the cut before it, fio keeping to its rate.
 */
function addCycles(
  { live }: BenchConfig,
  log: StepLog,
  step: typeof aloneStep | typeof besideStep,
  points: readonly SeenPoint[],
): void {
  for (const [index, point] of points.entries()) {
    const sinceMs = point.cutAtMs - (points[index - 1]?.cutAtMs ?? point.cutAtMs - live.cycleMs);
    const role = step === aloneStep ? "yardstick" : "tidemark";
    log.add(step, { role, unit: "bytes" }, Math.round((live.bytesPerSecond * sinceMs) / 1_000), cycleMsOf(point));
  }
}

/**
 * Bytes of the pages of all segments that are not zero, read one by one: what a collector believes
 * to have given back is not asked.
 */
async function occupiedBytes(sink: Sink, signal: AbortSignal | undefined): Promise<number> {
  let bytes = 0;
  const buffer = Buffer.alloc(rangeBytes);
  for (const { name, writtenBytes } of await storedSegments(sink, signal)) {
    for (let offset = 0; offset < writtenBytes; offset += rangeBytes) {
      const range = buffer.subarray(0, Math.min(rangeBytes, writtenBytes - offset));
      await sink.readPages(name, offset, range, { signal });
      for (let at = 0; at < range.length; at += pageAlignmentBytes) {
        if (!allZero(range.subarray(at, at + pageAlignmentBytes))) bytes += pageAlignmentBytes;
      }
    }
  }
  return bytes;
}
