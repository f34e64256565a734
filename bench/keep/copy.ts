/**
 * Benchmark: points of two disks copied to an empty vault in the same store, beside the Get ceiling of
 * what is stored and the Put ceiling of as many bytes. A copy cannot be faster than the slower of both,
 * and where one process serves both vaults, it cannot reach that: a plain copy of the same bytes shows
 * what the store does when it is read and written at once.
 *
 * Each copy is brought back and compared with its disk.
 */
import { FileVolume, type Sink, Vault } from "../../engine/index.ts";
import { imageFactsOf } from "../image.ts";
import { peakRssBytes } from "../machine.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { ours, StepLog, yardstick } from "../steps.ts";
import { copyPlainly, getCeiling, putCeiling, storedSegments, yardstickLanes } from "../yardsticks.ts";
import { fillFront } from "./front-disk.ts";
import { KeepPlace } from "./place.ts";

const disks = ["one", "two"] as const;
const copyStep = "copy two disks to an empty vault";
const [getStep, putStep, plainStep] = [
  `Get ceiling, 4 MiB × ${yardstickLanes}`,
  `Put ceiling, 4 MiB × ${yardstickLanes}`,
  `plain copy, 4 MiB × ${yardstickLanes}`,
] as const;

export async function benchCopy(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { live, runs, seed, signal, temporaryFolder, workers, lanes, begin } = config;
  return await KeepPlace.use(config, store, async (source) => {
    const images: string[] = [];
    for (const [index, disk] of disks.entries()) {
      begin(`write the disk ${disk}`);
      const image = await source.makeImage(`${disk}.img`, live.diskBytes);
      await fillFront(image, live.hotBytes / disks.length, seed + index, signal);
      images.push(image);
    }
    const [first = ""] = images;
    const volumes = await Promise.all(images.map(async (image) => await FileVolume.open(image)));
    const stateFolder = `${temporaryFolder}/state`;
    const from = await Vault.openOrCreate(source.sink, { workers, lanes, stateFolder, signal });
    const counts: Record<string, number> = {};
    const hashes: Record<string, string> = {};
    try {
      for (const [index, disk] of disks.entries()) {
        const volume = volumes[index];
        begin(`replicate the disk ${disk}`);
        if (volume !== undefined) await from.replicate({ disk, volume, signal });
      }
      const segments = await storedSegments(source.sink, signal);
      const storedBytes = segments.reduce((sum, { writtenBytes }) => sum + writtenBytes, 0);
      counts["storedBytes"] = storedBytes;
      for (let run = 0; run < runs; run += 1) {
        await KeepPlace.use(config, store, async (target) => {
          await target.inVault(
            async (to) => {
              const summary = await log.time(
                copyStep,
                ours,
                run,
                async () => await from.copyTo(to, { signal }),
                () => storedBytes,
              );
              counts["fetchedBytes"] = summary.fetchedBytes;
            },
            target.sink,
            from.parameters,
          );
          if (run === 0) Object.assign(hashes, await target.prove(disks[0], first));
        });
        const get = async (): Promise<number> => await getCeiling(source.sink, segments, signal);
        await log.time(getStep, yardstick, run, get, (bytesRead) => bytesRead);
        await KeepPlace.use(config, store, async ({ sink }) => {
          await sink.createContainer({ signal });
          const put = async (): Promise<number> => await putCeiling(sink, storedBytes, seed, signal);
          await log.time(putStep, yardstick, run, put, (sentBytes) => sentBytes);
        });
        await KeepPlace.use(config, store, async ({ sink }) => {
          await sink.createContainer({ signal });
          const plain = async (): Promise<number> => await copyPlainly(source.sink, sink, segments, signal);
          await log.time(plainStep, yardstick, run, plain, (sentBytes) => sentBytes);
        });
      }
      const slowerMs = Math.max(log.medianMs(getStep), log.medianMs(putStep));
      return {
        image: { ...(await imageFactsOf(first)), path: "a new disk" },
        steps: log.steps(),
        marks: [config.mark("of the slower of both ceilings", slowerMs / log.medianMs(copyStep))],
        counts,
        hashes,
        peakRssBytes: peakRssBytes(),
      };
    } finally {
      await from.close();
      for (const volume of volumes) await volume.close();
    }
  });
}
