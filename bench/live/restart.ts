/**
 * Benchmark: restart after a crash. The protecting process is killed under load and started again;
 * the time until a committed point is measured. Comparing a disk of 1 TiB would take hours; the hot
 * regions of the tracking file are compared in seconds.
 */
import { setTimeout as delay } from "node:timers/promises";
import type { Sink } from "../../engine/index.ts";
import { TidemarkError } from "../../engine/index.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { ours, StepLog } from "../steps.ts";
import { type FioJob, runFio, runFioUntil } from "./fio.ts";
import { LivePlace } from "./place.ts";

const requestBytes = 65_536;
/**
 * Enough to keep all hot regions hot, and not so much that the load, and not the restart, is what
 * is measured.
 */
const loadBytesPerSecond = 50_000_000;
const restartStep = "restart to committed point";

/**
 * `hotBytes` at the front of the disk are written, then overwritten at random; in the midst of that
 * the process is killed.
 */
export async function benchRestart(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { live } = config;
  return await LivePlace.use(config, store, async (place) => {
    const job = (uri: string): Omit<FioJob, "pattern" | "requestBytes" | "extent"> => ({
      uri,
      spanBytes: live.hotBytes,
      freshData: true,
      seed: config.seed,
    });
    await place.protecting(live.cycleMs, async (process) => {
      config.begin("first points");
      await process.point();
      config.begin("write the hot regions");
      await runFio(config, {
        ...job(process.uri),
        pattern: "write",
        traced: "clients, the hot regions",
        requestBytes: 1_048_576,
        extent: { bytes: live.hotBytes },
      });
      await process.point();
      config.begin("kill -9 under random writes");
      const stop = new AbortController();
      const load = runFioUntil(
        config,
        {
          ...job(process.uri),
          pattern: "randwrite",
          requestBytes,
          // Of the same seed fio would write the same bytes again.
          seed: config.seed + 1,
          // Longer than it is let go on.
          extent: { seconds: live.seconds + 60 },
          bytesPerSecondMax: loadBytesPerSecond,
        },
        stop.signal,
      );
      await sleepUnless(load, live.seconds * 1_000);
      await process.kill();
      stop.abort();
      await load;
    });
    config.begin(restartStep);
    const startedAt = performance.now();
    const measured = await place.protecting(live.cycleMs, async (process, { backlogBytes }) => {
      const servedMs = performance.now() - startedAt;
      const point = await process.point();
      const restartMs = performance.now() - startedAt;
      log.add("restart to served disk", ours, backlogBytes, servedMs);
      log.add(restartStep, ours, backlogBytes, restartMs);
      const { points, peakRssBytes } = await process.stop();
      const { changedBytes, newBytes, storedBytes } = point;
      return {
        peakRssBytes,
        restartMs,
        counts: { comparedBytes: backlogBytes, changedBytes, newBytes, storedBytes, points: points.length },
      };
    });
    const hashes = await place.prove();
    return {
      image: await place.facts(),
      steps: log.steps(),
      marks: [config.mark(restartStep, measured.restartMs)],
      counts: measured.counts,
      hashes,
      peakRssBytes: measured.peakRssBytes,
    };
  });
}

/**
 * Waits while the load goes on. Errors: DEVICE_FAILED when it ends by itself, and those of the
 * load.
 */
async function sleepUnless(load: Promise<void>, ms: number): Promise<void> {
  const over = new AbortController();
  const ended = load.then(() => {
    throw new TidemarkError("DEVICE_FAILED", "fio ended before anything was killed", {
      remedy: "see whether the server has failed",
    });
  });
  try {
    await Promise.race([delay(ms, undefined, { signal: over.signal }), ended]);
  } finally {
    over.abort();
    ended.catch(() => undefined); // the kill ends it, as it should
  }
}
