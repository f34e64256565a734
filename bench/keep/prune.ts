/**
 * Benchmark: pruning. A disk of many points is thinned to one in twenty, spread over its whole
 * time, in one go, so that every page of points loses most of its entries. The yardstick reads and
 * writes the same objects alone.
 */
import { type RetentionPolicy, type Sink, TidemarkError } from "../../engine/index.ts";
import { imageFactsOf } from "../image.ts";
import { peakRssBytes } from "../machine.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { StepLog } from "../steps.ts";
import { chainDisk, makeChain } from "./chain.ts";
import { KeepPlace } from "./place.ts";

/** Of so many points, one stays. */
const thinning = 20;
const pruneStep = "prune, vault opened for it";

export async function benchPrune(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { signal } = config;
  return await KeepPlace.use(config, store, async (place) => {
    const { image } = await makeChain(config, place, log);
    const times = await place.inVault(async (vault) =>
      (await vault.points(chainDisk, { signal })).map(({ time }) => Date.parse(time)),
    );
    const policy = thinOut(times);
    const recorded = place.connect();
    const summary = await log.time(
      pruneStep,
      { role: "tidemark", unit: "operations" },
      0,
      async () =>
        await place.inVault(async (vault) => await vault.prune({ disk: chainDisk, policy, signal }), recorded),
      ({ removedPoints }) => removedPoints,
    );
    const peakBytes = peakRssBytes();
    const { removedPoints, keptPoints, heldPoints, requests } = summary;
    await log.time(
      "the same objects, bare",
      { role: "yardstick", unit: "operations" },
      0,
      async () => await recorded.repeat(place.sink, "bare/", signal),
      () => removedPoints,
    );
    const left = await place.inVault(async (vault) => (await vault.points(chainDisk, { signal })).length);
    if (left !== keptPoints || left + removedPoints !== times.length) {
      throw new TidemarkError(
        "DAMAGED",
        `${left} points are listed, where ${times.length} were and ${removedPoints} of them were pruned`,
        {
          remedy: "this is a fault in Tidemark: report it",
        },
      );
    }
    return {
      image: { ...(await imageFactsOf(image)), path: "a new disk" },
      steps: log.steps(),
      marks: [
        config.mark("prune of the chain", log.medianMs(pruneStep)),
        config.mark("of them removed", removedPoints / times.length),
      ],
      counts: {
        points: times.length,
        removedPoints,
        keptPoints,
        heldPoints,
        requests,
        readBytes: recorded.readBytes,
        writtenBytes: recorded.putBytes,
      },
      hashes: await place.prove(chainDisk, image),
      peakRssBytes: peakBytes,
    };
  });
}

/** One point in so much time, for all of it. */
function thinOut(timesMs: readonly number[]): RetentionPolicy {
  const spanMs = (timesMs.at(-1) ?? 0) - (timesMs[0] ?? 0) + 1;
  const everyMs = Math.max(1, Math.ceil((spanMs / timesMs.length) * thinning));
  return { kind: "bands", bands: [{ ageMsMax: spanMs + everyMs, everyMs }] };
}
