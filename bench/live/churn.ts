/**
 * Benchmark: a disk that is written without a pause at a given rate. It reports whether every cycle
 * gave its point, the lag at the end and the memory used.
 */
import type { Sink } from "../../engine/index.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { ours, StepLog } from "../steps.ts";
import type { Mark } from "../targets.ts";
import { runFio } from "./fio.ts";
import { findLimit, highestRate, megabytes, searchSecondsMax } from "./limit.ts";
import type { SeenPoint } from "./orders.ts";
import { LivePlace } from "./place.ts";
import type { ProtectingProcess } from "./protecting-process.ts";

const requestBytes = 16_384;

/** What became of a load. */
interface Churn {
  readonly bytesPerSecond: number;
  readonly bytes: number;
  readonly elapsedMs: number;
  /** Written and in no committed point when the load ended, and the time until it was. */
  readonly leftBytes: number;
  readonly leftMs: number;
  readonly pointsDue: number;
  readonly pointsCommitted: number;
  readonly longestGapMs: number;
  readonly lagMs: number;
  readonly barrierMsMax: number;
  readonly failures: number;
  readonly peakRssBytes: number;
}

export async function benchChurn(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { live } = config;
  return await LivePlace.use(config, store, async (place) => {
    const { sizeBytes } = await place.facts();
    const measured = await place.protecting(live.cycleMs, async (process) => {
      config.begin("first points");
      await process.point();
      const load = async (bytesPerSecond: number, seconds: number): Promise<Churn> => {
        config.begin(`random writes, ${megabytes(bytesPerSecond)} for ${seconds} s`);
        return await churn(config, process, { sizeBytes, bytesPerSecond, seconds });
      };
      const asked = await load(live.bytesPerSecond, live.seconds);
      log.add("random writes of 16 KiB, protected", ours, asked.bytes, asked.elapsedMs);
      log.add("until all of it is committed", ours, asked.leftBytes, asked.leftMs);
      const marks = marksOf(config, live.bytesPerSecond, asked);
      const limit = await findLimit(config, highestRate, { value: live.bytesPerSecond, marks }, async (rate) =>
        marksOf(config, rate, await load(rate, Math.min(searchSecondsMax, live.seconds))),
      );
      await process.stop();
      return { asked, marks, limit };
    });
    const hashes = await place.prove();
    const { asked, marks, limit } = measured;
    return {
      image: await place.facts(),
      steps: log.steps(),
      marks,
      counts: {
        wantedMegabytesPerSecond: live.bytesPerSecond / 1e6,
        sustainedMegabytesPerSecond: asked.bytesPerSecond / 1e6,
        ...limit,
        pointsDue: asked.pointsDue,
        pointsCommitted: asked.pointsCommitted,
        longestGapMs: asked.longestGapMs,
        lagAtEndMs: asked.lagMs,
        longestBarrierMs: asked.barrierMsMax,
        failures: asked.failures,
      },
      hashes,
      peakRssBytes: asked.peakRssBytes,
    };
  });
}

/** One load, and all of it committed: the next begins with nothing left of this one. */
async function churn(
  config: BenchConfig,
  process: ProtectingProcess,
  load: {
    readonly sizeBytes: number;
    readonly bytesPerSecond: number;
    readonly seconds: number;
  },
): Promise<Churn> {
  const before = await process.ask({ kind: "status" });
  const startedAtMs = Date.now();
  const figures = await runFio(config, {
    uri: process.uri,
    pattern: "randwrite",
    requestBytes,
    spanBytes: load.sizeBytes,
    extent: { seconds: load.seconds },
    bytesPerSecondMax: load.bytesPerSecond,
    freshData: true,
    // Of the same seed fio would write the same bytes to the same places again.
    seed: config.seed + load.bytesPerSecond,
    traced: `clients, ${megabytes(load.bytesPerSecond)}`,
  });
  const endedAtMs = Date.now();
  const after = await process.ask({ kind: "status" });
  const leftFrom = performance.now();
  await process.point();
  const leftMs = performance.now() - leftFrom;
  const settled = await process.ask({ kind: "status" });
  // A point that was cut under the load and committed later was not missed: how late it was is told
  // by the lag.
  const points = settled.points.filter(({ cutAtMs }) => cutAtMs >= startedAtMs && cutAtMs <= endedAtMs);
  return {
    bytesPerSecond: figures.bytes / (figures.elapsedMs / 1_000),
    bytes: figures.bytes,
    elapsedMs: figures.elapsedMs,
    leftBytes: after.backlogBytes,
    leftMs,
    pointsDue: Math.floor(figures.elapsedMs / config.live.cycleMs),
    pointsCommitted: points.length,
    longestGapMs: longestGapMs(points, startedAtMs, endedAtMs),
    lagMs: after.committedLagMs ?? endedAtMs - startedAtMs,
    barrierMsMax: settled.barrierMsMax,
    failures: settled.failures.length - before.failures.length,
    peakRssBytes: settled.peakRssBytes,
  };
}

/** Between the cuts of points that follow one another, and from the load's ends to them. */
function longestGapMs(points: readonly SeenPoint[], startedAtMs: number, endedAtMs: number): number {
  const times = [startedAtMs, ...points.map(({ cutAtMs }) => cutAtMs), endedAtMs];
  return Math.max(...times.slice(1).map((time, index) => time - (times[index] ?? time)));
}

function marksOf({ mark }: BenchConfig, wantedBytesPerSecond: number, load: Churn): Mark[] {
  return [
    mark("points missed", Math.max(0, load.pointsDue - load.pointsCommitted)),
    mark("lag of the newest point at the end", load.lagMs),
    mark("of the wanted rate", load.bytesPerSecond / wantedBytesPerSecond),
    mark("peak memory of the protecting process", load.peakRssBytes),
  ];
}
