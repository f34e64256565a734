/**
 * Benchmark: a burst of scattered writes, then a point: time from the cut to the commit. Peers have
 * to read the disk to find out what was written.
 */
import type { Sink } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { peerMarks } from "../cycles.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { ours, StepLog } from "../steps.ts";
import { type FioFigures, runFio } from "./fio.ts";
import { findLimit } from "./limit.ts";
import { onDemandMs } from "./orders.ts";
import { LivePlace } from "./place.ts";

const burstStep = "cut to commit, after the burst";

/** `scatterWrites` random writes of 4 KiB through NBD, and a point on demand after them. */
export async function benchBurst(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { scatterWrites } = config;
  return await LivePlace.use(config, store, async (place) => {
    const { sizeBytes } = await place.facts();
    const measured = await place.protecting(onDemandMs, async (process) => {
      let counts: Record<string, number> = {};
      config.begin("first points");
      await process.point();
      let bursts = 0;
      const write = async (writes: number, run?: number): Promise<FioFigures> => {
        config.begin(`${writes} random writes`, run);
        bursts += 1;
        return await runFio(config, {
          uri: process.uri,
          pattern: "randwrite",
          requestBytes: granuleBytes,
          spanBytes: sizeBytes,
          extent: { bytes: writes * granuleBytes },
          freshData: true,
          // Of the same seed fio would write the same bytes to the same places again.
          seed: config.seed + bursts,
          traced: `clients, ${writes} writes`,
        });
      };
      for (let run = 0; run < config.runs; run += 1) {
        const { requests, bytes, elapsedMs } = await write(scatterWrites, run);
        log.add("random writes of 4 KiB over NBD", { role: "tidemark", unit: "operations" }, requests, elapsedMs);
        const point = await log.time(
          burstStep,
          ours,
          run,
          async () => await process.point(),
          ({ changedBytes }) => changedBytes,
        );
        const { changedBytes, storedBytes } = point;
        counts = { writes: requests, writtenBytes: bytes, changedBytes, storedBytes, cutToHeadMs: point.lagMs ?? NaN };
      }
      const marks = [config.mark(burstStep, log.medianMs(burstStep))];
      const limit = await findLimit(
        config,
        "highestWritesThatHold",
        // More of them mostly meet granules that are changed already.
        { value: scatterWrites, marks, most: sizeBytes / granuleBytes },
        async (writes) => {
          await write(writes);
          const startedAt = performance.now();
          await process.point();
          return [config.mark(burstStep, performance.now() - startedAt)];
        },
      );
      const { peakRssBytes } = await process.stop();
      return {
        counts: { ...counts, ...limit },
        marks: [...peerMarks(config, "scattered-backup", log.medianMs(burstStep)), ...marks],
        peakRssBytes,
      };
    });
    const hashes = await place.prove();
    return { image: await place.facts(), steps: log.steps(), hashes, ...measured };
  });
}
