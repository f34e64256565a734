/**
 * Benchmark: what a failover moves. Three parts, on sparse disks of which only the front holds data:
 *
 *   - `planned` from a live disk with a replica: a disk of 8 GiB and one of 1 TiB, each written a
 *     little since its last point;
 *   - `change-point` between two points that differ a little, beside a full materialize;
 *   - `failback` of a disk that was protected at the other place while half of its data changed, beside
 *     materializing a disk that holds the changed extents and nothing else.
 *
 * Each target is compared with the disk that it stands for.
 */

import { randomFillSync } from "node:crypto";
import { open, rm } from "node:fs/promises";
import { join } from "node:path";
import { type BlockDevice, FileVolume, type Protection, type Sink, Vault } from "../../engine/index.ts";
import { type SourceSite } from "../../engine/internal.ts";
import { imageFacts, rangeBytes } from "../image.ts";
import { onDemandMs, policyOf } from "../live/orders.ts";
import { peakRssBytes } from "../machine.ts";
import type { BenchConfig } from "../options.ts";
import type { CaseOutcome } from "../report.ts";
import { ours, StepLog, yardstick } from "../steps.ts";
import type { Mark } from "../targets.ts";
import { fillFront, frontHashOf } from "./front-disk.ts";
import { KeepPlace, sameHash } from "./place.ts";

const smallDiskBytes: number = 8 * 1024 * 1024 * 1024;
/** Written since the last point, and between two points. */
const littleBytes: number = 100 * 1024 * 1024;

const [smallStep, largeStep] = ["planned, 8 GiB disk", "planned, large disk"] as const;
const [fullStep, changeStep] = ["materialize in full", "change-point"] as const;
const [bareStep, backStep] = ["materialize the changed extents", "failback"] as const;

export async function benchFailover(config: BenchConfig, store: Sink): Promise<CaseOutcome> {
  const log = new StepLog(config);
  const { workers, lanes, signal, temporaryFolder, live } = config;
  return await KeepPlace.use(config, store, async (place) => {
    const stateFolder = join(temporaryFolder, "state");
    const vault = await Vault.openOrCreate(place.sink, { workers, lanes, stateFolder, signal });
    try {
      const parts = new FailoverParts(config, place, vault, log);
      await parts.planned(smallStep, "small", Math.min(smallDiskBytes, live.diskBytes));
      await parts.planned(largeStep, "large", live.diskBytes);
      const image = await parts.moves();
      const volume = await FileVolume.open(image);
      try {
        return {
          image: { ...(await imageFacts(volume)), path: "a new disk" },
          steps: log.steps(),
          marks: marksOf(config, log),
          counts: {},
          hashes: parts.hashes,
          peakRssBytes: peakRssBytes(),
        };
      } finally {
        await volume.close();
      }
    } finally {
      await vault.close();
    }
  });
}

class FailoverParts {
  hashes: Readonly<Record<string, string>> = {};
  readonly #config: BenchConfig;
  readonly #place: KeepPlace;
  readonly #vault: Vault;
  readonly #log: StepLog;
  /** Bytes that change a little, and bytes of the disk's front that hold data. */
  readonly #littleBytes: number;
  readonly #frontBytes: number;

  constructor(config: BenchConfig, place: KeepPlace, vault: Vault, log: StepLog) {
    this.#config = config;
    this.#place = place;
    this.#vault = vault;
    this.#log = log;
    this.#frontBytes = config.live.hotBytes;
    this.#littleBytes = Math.min(littleBytes, config.live.hotBytes / 4);
  }

  /** Planned failovers of a live disk to its replica, each cancelled again. */
  async planned(step: typeof smallStep | typeof largeStep, disk: string, diskBytes: number): Promise<void> {
    const { runs, signal, temporaryFolder: folder } = this.#config;
    // A disk that is larger than its little change, so that the change is one.
    const frontBytes = Math.min(4 * this.#littleBytes, this.#frontBytes);
    const image = await this.#makeDisk(disk, diskBytes, frontBytes);
    const { site, protection } = await this.#protectedSite(disk, image);
    await protection().point();
    const replica = join(folder, `${disk}-replica.img`);
    for (let run = 0; run < runs; run += 1) {
      await this.#vault.replicas.run({ disk, to: `file:${replica}`, once: true, signal });
      await writeLive(protection().device, this.#littleBytes);
      const source = { kind: "agent", path: disk } as const;
      const { run: name } = await this.#log.time(
        step,
        ours,
        run,
        async () =>
          await this.#vault.failovers.start({
            kind: "planned",
            disks: [disk],
            to: "replica",
            source,
            openAgent: () => site,
            signal,
          }),
        () => this.#littleBytes,
      );
      await this.#compare(image, replica, frontBytes, step);
      await this.#vault.failovers.cancel({ run: name, openAgent: () => site, signal });
    }
    await protection().stop({ drain: false });
    await rm(image);
    await rm(replica);
  }

  /** The other parts, on one disk. Gives its image. */
  async moves(): Promise<string> {
    const { runs, signal, live, temporaryFolder: folder } = this.#config;
    const image = await this.#makeDisk("moved", live.diskBytes, this.#frontBytes);
    await this.#replicate("moved", image);
    await this.#fill(image, this.#littleBytes * 2, 1, 2 * rangeBytes);
    await this.#replicate("moved", image);
    const { run } = await this.#vault.failovers.start({
      kind: "unplanned",
      disks: ["moved"],
      to: `file:${join(folder, "chosen.img")}`,
      signal,
    });
    for (let at = 0; at < runs; at += 1) {
      const full = join(folder, "full.img");
      await this.#log.time(
        fullStep,
        yardstick,
        at,
        async () => await this.#vault.materialize({ disk: "moved", point: "latest", to: full, format: "raw", signal }),
        () => this.#frontBytes,
      );
      await rm(full);
      // The first one goes back to the older point.
      await this.#log.time(
        changeStep,
        ours,
        at,
        async () => await this.#vault.failovers.changePoint({ run, point: at % 2 === 0 ? "1" : "2", signal }),
        () => this.#littleBytes,
      );
    }
    if (runs % 2 === 1) await this.#vault.failovers.changePoint({ run, point: "2", signal });
    await this.#compare(image, join(folder, "chosen.img"), this.#frontBytes, changeStep);
    await this.#vault.failovers.cancel({ run, signal });
    await this.#failBack(image);
    return image;
  }

  /** Rounds: away to a new image that is protected there, changed there, and back by what has changed. */
  async #failBack(image: string): Promise<void> {
    const { runs, signal, live, temporaryFolder: folder } = this.#config;
    const changedBytes = this.#frontBytes / 2;
    for (let at = 0; at < runs; at += 1) {
      const there = join(folder, `there-${at}.img`);
      const { run } = await this.#vault.failovers.start({
        kind: "planned",
        disks: ["moved"],
        to: `file:${there}`,
        source: { kind: "image", path: image },
        signal,
      });
      await this.#vault.failovers.commit({ run, signal });
      await this.#vault.failovers.reprotect({ run, signal });
      const bare = await this.#place.makeImage("changes.img", live.diskBytes);
      await this.#fill(bare, this.#frontBytes, 2 + at, 2 * rangeBytes);
      const { site, protection } = await this.#protectedSite("moved", there);
      await writeFrom(bare, protection().device, this.#frontBytes, 2 * rangeBytes);
      await protection().point();
      await this.#replicate("changes", bare);
      await rm(bare);
      const back = join(folder, "back.img");
      await this.#log.time(
        bareStep,
        yardstick,
        at,
        async () =>
          await this.#vault.materialize({ disk: "changes", point: "latest", to: back, format: "raw", signal }),
        () => changedBytes,
      );
      await rm(back);
      const source = { kind: "agent", path: "moved" } as const;
      const { run: way } = await this.#log.time(
        backStep,
        ours,
        at,
        async () => await this.#vault.failovers.failback({ run, to: [image], source, openAgent: () => site, signal }),
        () => changedBytes,
      );
      await this.#compare(there, image, this.#frontBytes, backStep);
      await this.#vault.failovers.commit({ run: way, signal });
      await this.#vault.failovers.reprotect({ run: way, signal });
      await rm(there);
    }
  }

  /** A protected disk in this process, and how a run stops and starts it, as an agent does. */
  async #protectedSite(
    disk: string,
    image: string,
  ): Promise<{ readonly site: SourceSite; readonly protection: () => Protection }> {
    const stateFolder = join(this.#config.temporaryFolder, "state");
    const protect = async (): Promise<Protection> =>
      await this.#vault.protect({ disk, image, stateFolder, policy: policyOf(onDemandMs) });
    let protection = await protect();
    const site: SourceSite = {
      point: async () => {
        await protection.point();
      },
      stop: async () => {
        await protection.stop({ drain: true });
        return [];
      },
      start: async () => {
        protection = await protect();
      },
    };
    return { site, protection: () => protection };
  }

  async #makeDisk(disk: string, diskBytes: number, frontBytes: number): Promise<string> {
    this.#config.begin(`write the disk ${disk}`);
    const image = await this.#place.makeImage(`${disk}.img`, diskBytes);
    await this.#fill(image, frontBytes, 0, rangeBytes);
    return image;
  }

  async #fill(path: string, frontBytes: number, round: number, stride: number): Promise<void> {
    const { seed, signal } = this.#config;
    await fillFront(path, Math.min(frontBytes, this.#frontBytes), seed + round, signal, stride);
  }

  async #replicate(disk: string, image: string): Promise<void> {
    const { signal, begin } = this.#config;
    begin(`replicate the disk ${disk}`);
    const volume = await FileVolume.open(image);
    try {
      await this.#vault.replicate({ disk, volume, signal });
    } finally {
      await volume.close();
    }
  }

  async #compare(image: string, target: string, frontBytes: number, what: string): Promise<void> {
    const { signal, begin } = this.#config;
    begin(`compare the target of ${what}`);
    const wanted = await frontHashOf(image, frontBytes, signal);
    this.hashes = { image: wanted, point: sameHash(await frontHashOf(target, frontBytes, signal), wanted, what) };
  }
}

/** Writes to a live disk what `image` holds at every `stride`, as a client does. */
async function writeFrom(image: string, device: BlockDevice, bytes: number, stride: number): Promise<void> {
  const file = await open(image);
  try {
    const range = Buffer.alloc(rangeBytes);
    for (let offset = 0; offset < bytes; offset += stride) {
      const { bytesRead } = await file.read(range, 0, Math.min(range.length, bytes - offset), offset);
      await device.write(offset, range.subarray(0, bytesRead));
    }
    await device.flush();
  } finally {
    await file.close();
  }
}

/** Overwrites the front of a live disk with what no vault has seen, as a client does. */
async function writeLive(device: BlockDevice, bytes: number): Promise<void> {
  const range = Buffer.alloc(rangeBytes);
  for (let offset = 0; offset < bytes; offset += range.length) {
    const length = Math.min(range.length, bytes - offset);
    await device.write(offset, randomFillSync(range.subarray(0, length)));
  }
  await device.flush();
}

function marksOf({ mark }: BenchConfig, log: StepLog): Mark[] {
  const [small, large] = [log.medianMs(smallStep), log.medianMs(largeStep)];
  return [
    mark("planned, the slower of both disks", Math.max(small, large)),
    mark("planned, large disk ÷ 8 GiB disk", large / small),
    mark("change-point ÷ materialize in full", log.medianMs(changeStep) / log.medianMs(fullStep)),
    mark("failback ÷ the changed extents", log.medianMs(backStep) / log.medianMs(bareStep)),
  ];
}
