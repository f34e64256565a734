/**
 * Benchmark: what a point costs by the size of the disk and by the number of disks. The same bytes
 * change each time, so the costs are to be equal. Points go to a sink that discards: only Tidemark's
 * own work is measured.
 */
import { randomFillSync } from "node:crypto";
import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { type PointSummary, type Protection, TidemarkError, Vault } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { DiscardingSink } from "../discarding-sink.ts";
import { makeSparse, randomWords, rangeBytes } from "../image.ts";
import { onDemandMs, policyOf } from "../live/orders.ts";
import { peakRssBytes } from "../machine.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { StepLog } from "../steps.ts";

const gibibyte = 2 ** 30;
const sizes: readonly (readonly [name: string, bytes: number])[] = [
  ["8 GiB", 8 * gibibyte],
  ["1 TiB", 1_024 * gibibyte],
  ["8 TiB", 8 * 1_024 * gibibyte],
];
/** Points a run: the first of them warms what the others find warm. */
const roundsARun = 3;

const diskCounts = [1, 10, 100] as const;
const manyDiskBytes = 10 * gibibyte;

/** `scatterWrites` granules change at the same random places of the first 8 GiB of each disk. */
export async function benchSize(config: BenchConfig): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const stepOf = (name: string): string => `point of a disk of ${name}`;
  const counts: Record<string, number> = {};
  await inVault(config, async (protect) => {
    const disks: { name: string; protection: Protection }[] = [];
    for (const [name, bytes] of sizes) disks.push({ name, protection: await protect(name, bytes) });
    for (let round = 0; round < config.runs * roundsARun; round += 1) {
      for (const { name, protection } of round % 2 === 0 ? disks : disks.toReversed()) {
        const written = await scatter(config, protection, round);
        const role = name === sizes[0]?.[0] ? "yardstick" : "tidemark";
        const take = async (): Promise<PointSummary> => await protection.point({ signal: config.signal });
        const point = await log.time(stepOf(name), { role, unit: "bytes" }, 0, take, changedBytes);
        expectBytes(point.changedBytes, written);
      }
    }
  });
  const [first = NaN, ...others] = sizes.map(([name]) => log.medianMs(stepOf(name)));
  return outcomeOf(
    log,
    [
      config.mark("1 TiB ÷ 8 GiB", (others[0] ?? NaN) / first),
      config.mark("8 TiB ÷ 8 GiB", (others[1] ?? NaN) / first),
    ],
    counts,
  );
}

/** As many bytes change on one disk as on ten and on a hundred together, and all have a point at once. */
export async function benchDisks(config: BenchConfig): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const stepOf = (disks: number): string => (disks === 1 ? "points of 1 disk" : `points of ${disks} disks`);
  const bytesInAll = config.scatterWrites * granuleBytes;
  await inVault(config, async (protect) => {
    const disks: Protection[] = [];
    for (const count of diskCounts) {
      while (disks.length < count) disks.push(await protect(`disk ${disks.length}`, manyDiskBytes));
      for (let round = 0; round < config.runs * roundsARun; round += 1) {
        const bytesADisk = Math.ceil(bytesInAll / count / granuleBytes) * granuleBytes;
        config.begin(`write to ${count} disks`);
        for (const { device } of disks) await overwrite(device, bytesADisk);
        const take = async (): Promise<PointSummary[]> =>
          await Promise.all(disks.map(async (disk) => await disk.point()));
        const role = count === 1 ? "yardstick" : "tidemark";
        const sum = (points: readonly PointSummary[]): number =>
          points.reduce((total, point) => total + point.changedBytes, 0);
        const points = await log.time(stepOf(count), { role, unit: "bytes" }, 0, take, sum);
        expectBytes(sum(points), bytesADisk * count);
      }
    }
  });
  const last = diskCounts[diskCounts.length - 1] ?? 1;
  const peakBytes = peakRssBytes();
  return outcomeOf(
    log,
    [
      config.mark("100 disks ÷ 1 disk", log.medianMs(stepOf(last)) / log.medianMs(stepOf(1))),
      config.mark("peak resident memory with 100 disks", peakBytes),
    ],
    { disks: last, "all disks, changedBytes": bytesInAll },
  );
}

type Protect = (disk: string, sizeBytes: number) => Promise<Protection>;

/** Lends a vault whose store discards, and a way to protect new sparse disks in it, each with a first point. */
async function inVault(config: BenchConfig, work: (protect: Protect) => Promise<void>): Promise<void> {
  const { temporaryFolder, workers, lanes, signal } = config;
  const stateFolder = join(temporaryFolder, "state");
  await mkdir(stateFolder);
  const vault = await Vault.create(new DiscardingSink(), { stateFolder, workers, lanes, signal });
  try {
    await work(async (disk, sizeBytes) => {
      config.begin(`protect ${disk}`);
      const image = join(temporaryFolder, `${disk}.img`);
      await makeSparse(image, sizeBytes);
      const protection = await vault.protect({ disk, image, stateFolder, policy: policyOf(onDemandMs) });
      await protection.point({ signal });
      return protection;
    });
  } finally {
    await vault.close();
  }
}

/** Overwrites random granules of the first 8 GiB. Returns the bytes that differ then. */
async function scatter({ scatterWrites, seed }: BenchConfig, { device }: Protection, round: number): Promise<number> {
  const next = randomWords(seed + round);
  const bytes = Buffer.alloc(granuleBytes);
  const granules = new Set<number>();
  while (granules.size < scatterWrites) granules.add(next() % ((8 * gibibyte) / granuleBytes));
  for (const granule of granules) await device.write(granule * granuleBytes, randomFillSync(bytes));
  return granules.size * granuleBytes;
}

async function overwrite(device: Protection["device"], bytes: number): Promise<void> {
  const range = Buffer.alloc(Math.min(rangeBytes, bytes));
  for (let offset = 0; offset < bytes; offset += range.length)
    await device.write(offset, randomFillSync(range.subarray(0, Math.min(range.length, bytes - offset))));
}

function changedBytes(point: PointSummary): number {
  return point.changedBytes;
}

/** A figure for a wrong result is none. Errors: DAMAGED. */
function expectBytes(found: number, written: number): void {
  if (found === written) return;
  throw new TidemarkError("DAMAGED", `${written} bytes were written, and the points hold ${found}`, {
    remedy: "this is a fault in Tidemark: report it",
  });
}

function outcomeOf(log: StepLog, marks: CaseOutcome["marks"], counts: CaseOutcome["counts"]): CaseOutcome {
  return { image: null, steps: log.steps(), marks, counts, hashes: {}, peakRssBytes: peakRssBytes() };
}
