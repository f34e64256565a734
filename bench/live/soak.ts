/**
 * Benchmark: an hour of writes to a protected disk, to see that memory and open handles stay flat.
 * Only the second half counts, when caches and indexes have their final size; the dedup index has a
 * low ceiling for that.
 *
 * Room needed: 20 MB/s × 3,600 s = 72 GB are written, of which LZ4 leaves about a tenth, so about
 * 10 GB for the store.
 */
import { readdir, readFile } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { type Sink, systemCode, TidemarkError } from "../../engine/index.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { median, ours, StepLog } from "../steps.ts";
import type { Mark } from "../targets.ts";
import { type FioFigures, runFio } from "./fio.ts";
import { findLimit, highestRate, megabytes } from "./limit.ts";
import { LivePlace } from "./place.ts";
import type { ProtectingProcess } from "./protecting-process.ts";

const requestBytes = 16_384;
/** Of each write, so that an hour of them fits on a disk. */
const compressiblePercent = 90;
const sampleEveryMsMax = 10_000;
/** A short soak is looked at as often as it takes to see a slope. */
const samplesMin = 40;
const tellEveryMs = 60_000;
/** Full within the first minutes, after which it forgets instead of growing. */
const indexBytesMax: number = 16 * 1024 * 1024;
const hourMs = 3_600_000;

/** What the process had at one moment. */
interface Sample {
  /** Since the load began. */
  readonly atMs: number;
  readonly rssBytes: number;
  readonly handles: number;
  readonly lagMs: number;
}

/** What became of a load. */
interface Load {
  readonly bytesPerSecond: number;
  readonly figures: FioFigures;
  readonly samples: readonly Sample[];
}

/**
 * Writes at `live.bytesPerSecond` for `live.seconds`. Errors: UNSUPPORTED where the system does not
 * tell about processes (no /proc) or fio is missing.
 */
export async function benchSoak(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { live } = config;
  return await LivePlace.use(config, store, async (place) => {
    const { sizeBytes } = await place.facts();
    const measured = await place.protecting(
      live.cycleMs,
      async (process) => {
        config.begin("first points");
        await process.point();
        const { bytesPerSecond: value } = live;
        const asked = await load(config, process, sizeBytes, value);
        const { bytes, elapsedMs } = asked.figures;
        log.add("random writes of 16 KiB, protected", ours, bytes, elapsedMs);
        const { points, failures, peakRssBytes } = await process.ask({ kind: "status" });
        const marks = marksOf(config, asked);
        // As long as the soak each: a shorter one shows no slope.
        const limit = await findLimit(config, highestRate, { value, marks }, async (rate) =>
          marksOf(config, await load(config, process, sizeBytes, rate)),
        );
        await process.stop();
        return { samples: asked.samples, marks, limit, points: points.length, failures: failures.length, peakRssBytes };
      },
      { indexBytesMax },
    );
    const hashes = await place.prove();
    const { samples, marks, limit, points, failures, peakRssBytes } = measured;
    const [first, last] = [samples.at(0), samples.at(-1)];
    return {
      image: await place.facts(),
      steps: log.steps(),
      marks,
      counts: {
        ...limit,
        points,
        failures,
        samples: samples.length,
        longestLagMs: Math.max(...samples.map(({ lagMs }) => lagMs)),
        firstHandles: first?.handles ?? NaN,
        lastHandles: last?.handles ?? NaN,
        firstRssBytes: first?.rssBytes ?? NaN,
        lastRssBytes: last?.rssBytes ?? NaN,
      },
      hashes,
      peakRssBytes,
    };
  });
}

/** Writes for as long as it is to last, and looks at the process meanwhile. Then all of it is committed. */
async function load(
  config: BenchConfig,
  process: ProtectingProcess,
  sizeBytes: number,
  bytesPerSecond: number,
): Promise<Load> {
  const { live, seed } = config;
  const over = new AbortController();
  const writing = runFio(config, {
    uri: process.uri,
    pattern: "randwrite",
    requestBytes,
    spanBytes: sizeBytes,
    extent: { seconds: live.seconds },
    bytesPerSecondMax: bytesPerSecond,
    freshData: true,
    compressiblePercent,
    // Of the same seed fio would write the same bytes to the same places again.
    seed: seed + bytesPerSecond,
    traced: `clients, ${megabytes(bytesPerSecond)}`,
  }).finally(() => over.abort());
  const [figures, samples] = await Promise.allSettled([writing, watch(config, process, bytesPerSecond, over.signal)]);
  if (figures.status === "rejected") throw figures.reason;
  if (samples.status === "rejected") throw samples.reason;
  await process.point();
  return { bytesPerSecond, figures: figures.value, samples: samples.value };
}

async function watch(
  config: BenchConfig,
  process: ProtectingProcess,
  bytesPerSecond: number,
  over: AbortSignal,
): Promise<readonly Sample[]> {
  const { seconds } = config.live;
  const everyMs = Math.min(sampleEveryMsMax, (seconds * 1_000) / samplesMin);
  const startedAt = performance.now();
  const samples: Sample[] = [];
  let tellAtMs = 0;
  while (!over.aborted) {
    const sample = await look(process, performance.now() - startedAt);
    samples.push(sample);
    if (sample.atMs >= tellAtMs) {
      config.begin(describe(sample, seconds, bytesPerSecond));
      tellAtMs += tellEveryMs;
    }
    await pause(Math.max(0, samples.length * everyMs - (performance.now() - startedAt)), over);
  }
  return samples;
}

async function look(process: ProtectingProcess, atMs: number): Promise<Sample> {
  const { committedLagMs } = await process.ask({ kind: "status" });
  const { rssBytes, handles } = await footprint(process.pid);
  return { atMs, rssBytes, handles, lagMs: committedLagMs ?? atMs };
}

/** Resident memory and open handles of a process, as proc(5) tells them. Errors: UNSUPPORTED. */
async function footprint(pid: number): Promise<{ readonly rssBytes: number; readonly handles: number }> {
  try {
    const status = await readFile(`/proc/${pid}/status`, "utf8");
    const kibibytes = Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? NaN);
    return { rssBytes: kibibytes * 1024, handles: (await readdir(`/proc/${pid}/fd`)).length };
  } catch (error) {
    if (systemCode(error) === undefined) throw error;
    throw new TidemarkError(
      "UNSUPPORTED",
      `the system does not tell what process ${pid} has open (${systemCode(error) ?? "unknown"})`,
      {
        remedy: "run the soak on Linux",
        cause: error,
      },
    );
  }
}

function marksOf({ mark }: BenchConfig, { bytesPerSecond, figures, samples }: Load): Mark[] {
  const half = samples.slice(Math.floor(samples.length / 2));
  const middle = Math.floor(half.length / 2);
  const [third, fourth] = [half.slice(0, middle), half.slice(middle)].map((part) =>
    median(part.map(({ handles }) => handles)),
  );
  const growth = slope(half.map(({ atMs, rssBytes }) => ({ x: atMs / hourMs, y: rssBytes })));
  return [
    mark("of the wanted rate", figures.bytes / (figures.elapsedMs / 1_000) / bytesPerSecond),
    mark("memory gained an hour, second half", growth),
    // Medians: connections to the store come and go.
    mark("handles gained, last two quarters", (fourth ?? NaN) - (third ?? NaN)),
  ];
}

/** Slope of the straight line that lies closest to the points, by least squares. */
function slope(points: readonly { readonly x: number; readonly y: number }[]): number {
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [meanX, meanY] = [mean(points.map(({ x }) => x)), mean(points.map(({ y }) => y))];
  const sum = (term: (dx: number, dy: number) => number): number =>
    points.reduce((total, { x, y }) => total + term(x - meanX, y - meanY), 0);
  return sum((dx, dy) => dx * dy) / sum((dx) => dx * dx);
}

function describe({ atMs, rssBytes, handles, lagMs }: Sample, seconds: number, bytesPerSecond: number): string {
  const minutes = `${megabytes(bytesPerSecond)}, minute ${Math.round(atMs / 60_000)} of ${Math.ceil(seconds / 60)}`;
  return `${minutes}: ${(rssBytes / 2 ** 20).toFixed(0)} MiB resident, ${handles} handles, lag ${(lagMs / 1_000).toFixed(1)} s`;
}

/** Resolves after `ms`, or as soon as it is over. */
async function pause(ms: number, over: AbortSignal): Promise<void> {
  try {
    await delay(ms, undefined, { signal: over });
  } catch (error) {
    if (!over.aborted) throw error;
  }
}
