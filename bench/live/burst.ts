/**
 * Benchmark: a burst of scattered writes, then a point: time from the cut to the commit. Peers have
 * to read the disk to find out what was written.
 */
import type { Sink } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { peerMarks } from "../cycles.ts";
import { type ImageFacts, imageFactsOf } from "../image.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { StepLog } from "../steps.ts";
import { runFio } from "./fio.ts";
import { onDemandMs } from "./orders.ts";
import { LivePlace } from "./place.ts";

const burstStep = "cut to commit, after the burst";

/** `scatterWrites` random writes of 4 KiB through NBD, and a point on demand after them. */
export async function benchBurst(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { scatterWrites } = config;
  return await LivePlace.use(config, store, async (place) => {
    const sizeBytes = (await imageFactsOf(place.image)).sizeBytes;
    const measured = await place.protecting(onDemandMs, async (process) => {
      let counts: Record<string, number> = {};
      config.begin("first points");
      await process.point();
      for (let run = 0; run < config.runs; run += 1) {
        config.begin("write at random", run);
        const figures = await runFio(config, {
          uri: process.uri,
          pattern: "randwrite",
          requestBytes: granuleBytes,
          spanBytes: sizeBytes,
          extent: { bytes: scatterWrites * granuleBytes },
          freshData: true,
          seed: config.seed + run,
          traced: "clients",
        });
        log.add(
          "random writes of 4 KiB over NBD",
          { role: "tidemark", unit: "operations" },
          figures.requests,
          figures.elapsedMs,
        );
        const point = await log.time(
          burstStep,
          { role: "tidemark", unit: "bytes" },
          run,
          async () => await process.point(),
          ({ changedBytes }) => changedBytes,
        );
        const { changedBytes, storedBytes } = point;
        counts = {
          writes: figures.requests,
          writtenBytes: figures.bytes,
          changedBytes,
          storedBytes,
          cutToHeadMs: point.lagMs ?? NaN,
        };
      }
      const { peakRssBytes } = await process.stop();
      return { counts, peakRssBytes };
    });
    const hashes = await place.prove();
    const image: ImageFacts = {
      ...(await imageFactsOf(place.image)),
      path: config.image === "" ? "a new disk" : config.image,
    };
    return {
      image,
      steps: log.steps(),
      marks: peerMarks(config, "scattered-backup", log.medianMs(burstStep)),
      hashes,
      ...measured,
    };
  });
}
