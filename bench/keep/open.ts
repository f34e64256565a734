/**
 * Benchmark: opening the newest of thousands of points, from the head to the first byte, and the
 * metadata that points every five seconds write. The yardstick fetches the same objects alone.
 */
import { type Sink, TidemarkError } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { imageFactsOf } from "../image.ts";
import { peakRssBytes } from "../machine.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { ours, StepLog, yardstick } from "../steps.ts";
import { type Chain, chainDisk, makeChain } from "./chain.ts";
import { KeepPlace } from "./place.ts";

const pointsAnHour: number = 3_600 / 5;
const openStep = "vault to first read of the newest";

export async function benchOpen(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  return await KeepPlace.use(config, store, async (place) => {
    const chain = await makeChain(config, place, log);
    let counts: Record<string, number> = {};
    let peakBytes = 0;
    for (let run = 0; run < config.runs; run += 1) {
      const recorded = place.connect();
      await openOnce(config, place, log, chain, recorded, run);
      if (run === 0) peakBytes = peakRssBytes();
      counts = { openReadBytes: recorded.readBytes };
      await log.time(
        "the same objects, bare",
        yardstick,
        run,
        async () => await recorded.repeat(place.sink, `bare-${run}/`, config.signal),
        (bytes) => bytes,
      );
    }
    const { points, runs } = await place.inVault(async (vault) => ({
      points: (await vault.points(chainDisk)).length,
      runs: (await vault.point(chainDisk, "latest")).runs.length,
    }));
    const { metadataBytesAPoint, image } = chain;
    return {
      image: { ...(await imageFactsOf(image)), path: "a new disk" },
      steps: log.steps(),
      marks: [config.mark("newest point of the chain opened", log.medianMs(openStep))],
      counts: {
        points,
        runsOfTheMap: runs,
        ...counts,
        metadataBytesAPoint: Math.round(metadataBytesAPoint),
        "an hour of points every 5 s, metadataBytes": Math.round(metadataBytesAPoint * pointsAnHour),
      },
      hashes: await place.prove(chainDisk, image),
      peakRssBytes: peakBytes,
    };
  });
}

/**
 * Opens vault and point as a process would that does nothing else, and reads what was written last.
 */
async function openOnce(
  config: BenchConfig,
  place: KeepPlace,
  log: StepLog,
  chain: Chain,
  recorded: ReturnType<KeepPlace["connect"]>,
  run: number,
): Promise<void> {
  const { signal } = config;
  config.begin(openStep, run);
  const bytes = Buffer.alloc(granuleBytes);
  const startedAt = performance.now();
  await place.inVault(async (vault) => {
    await using mount = await vault.mount({ disk: chainDisk, point: "latest", signal });
    await mount.device.read(chain.offset, bytes);
    log.add(openStep, ours, bytes.length, performance.now() - startedAt);
  }, recorded);
  if (bytes.equals(chain.bytes)) return;
  throw new TidemarkError("DAMAGED", `the newest point does not hold what was written at ${chain.offset} of its disk`, {
    remedy: "this is a fault in Tidemark: report it",
  });
}
