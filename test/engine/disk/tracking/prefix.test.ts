/**
 * The prefix property: what a cut gives, laid over the point before it, is the disk at one instant:
 * every write that was acknowledged before, none that was called after, no sector torn; and of
 * several disks cut together it is the same instant. Writers, captures and device calls are
 * interleaved at random, a sector at a time; fast-check prints the seed of what fails.
 */

import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { crc32 } from "node:zlib";
import fc from "fast-check";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Cut } from "../../../../engine/disk/tracking/cut.ts";
import { DirtyBitmap } from "../../../../engine/disk/tracking/dirty-bitmap.ts";
import { ProtectedDisk } from "../../../../engine/disk/tracking/protected-disk.ts";
import { hasCode } from "../../../../engine/errors.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import type { Extent } from "../../../../engine/volume.ts";
import { runsOf } from "../../../depth.ts";
import { ModelDevice, ModelTracking, quiet, sectorBytes } from "./model-device.ts";

let folder = "";

beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "tidemark-prefix-"));
});

afterAll(async () => {
  await rm(folder, { recursive: true });
});

interface World {
  readonly seed: number;
  readonly disks: number;
  readonly preservedGranules: number;
  readonly spilledGranules: number;
  readonly shortWayPercent: number;
}

const worlds = fc.record<World>({
  seed: fc.integer({ min: 1, max: 2 ** 31 - 1 }),
  disks: fc.integer({ min: 1, max: 3 }),
  preservedGranules: fc.constantFrom(0, 1, 4, 64),
  spilledGranules: fc.constantFrom(0, 2, 64),
  shortWayPercent: fc.constantFrom(0, 30, 90),
});

describe("what a cut gives", () => {
  test("is exactly a prefix of the acknowledged writes, over all disks that are cut together", async () => {
    const seen: Seen = { groups: 0, points: 0, abandoned: 0, kept: 0, spilled: 0, waited: 0 };
    await fc.assert(
      fc.asyncProperty(worlds, async (world) => {
        await new Simulation(world, seen).run();
      }),
      { numRuns: runsOf(60) },
    );
    // Every way through the code has been gone.
    for (const [what, times] of Object.entries(seen)) expect(times, what).toBeGreaterThan(0);
    expect(await readdir(folder)).toEqual([]);
  }, 120_000);
});

/** How often each of the ways that matter has been gone. */
interface Seen {
  groups: number;
  points: number;
  abandoned: number;
  kept: number;
  spilled: number;
  waited: number;
}

interface ClientWrite {
  readonly sequence: number;
  readonly disk: number;
  readonly kind: "write" | "zero" | "trim";
  readonly firstSector: number;
  readonly sectors: number;
  /** Moments in one order for all disks. */
  readonly calledAt: number;
  acknowledgedAt: number;
}

interface Capture {
  readonly disk: number;
  readonly cut: Cut;
  /** The device at the cut. */
  readonly truth: Buffer;
  /** The point before, over which what is captured is laid. */
  readonly image: Buffer;
  /** What is left to read. */
  readonly pieces: Extent[];
  reading: number;
  isAbandoned: boolean;
}

interface Cycle {
  readonly cutAt: number;
  readonly captures: Capture[];
}

const granulesPerDisk = 12;
/** The disk ends inside a granule. */
const diskSectors: number = granulesPerDisk * (granuleBytes / sectorBytes) - 5;
const steps = 300;
/** The spill file is a real one, so some turns pass while nothing but it is waited for. */
const turnsMax = 100_000;
const writesPendingMax = 6;

class Simulation {
  readonly #world: World;
  readonly #seen: Seen;
  readonly #devices: ModelDevice[] = [];
  readonly #disks: ProtectedDisk[] = [];
  /** What the newest point of each disk holds. */
  readonly #points: Buffer[] = [];
  readonly #writes: ClientWrite[] = [];
  readonly #calls = new Set<Promise<void>>();
  readonly #faults: unknown[] = [];
  #clock = 0;
  #random: number;
  #cycle: Cycle | undefined;
  #isPreparing = false;

  constructor(world: World, seen: Seen) {
    this.#world = world;
    this.#seen = seen;
    this.#random = world.seed;
    for (let disk = 0; disk < world.disks; disk += 1) {
      const device = new ModelDevice(Buffer.alloc(diskSectors * sectorBytes));
      device.isPrompt = false;
      this.#devices.push(device);
      this.#points.push(Buffer.from(device.bytes));
      this.#disks.push(
        ProtectedDisk.open({
          backing: device,
          tracking: new ModelTracking(),
          dirty: new DirtyBitmap(device.sizeBytes),
          base: "0",
          spillFolder: world.spilledGranules === 0 ? undefined : folder,
          preservedBytesMax: world.preservedGranules * granuleBytes,
          spillBytesMax: world.spilledGranules * granuleBytes,
          barrierMsMax: 3_600_000,
          settleMs: 0,
        }),
      );
    }
  }

  async run(): Promise<void> {
    for (let step = 0; step < steps; step += 1) {
      for (const device of this.#devices) device.hasShortWay = this.#below(100) < this.#world.shortWayPercent;
      this.#act();
      if (this.#below(3) > 0) await quiet();
      this.#observe();
    }
    for (const device of this.#devices) device.settle();
    for (let turn = 0; this.#calls.size > 0 || this.#cycle !== undefined || this.#isPreparing; turn += 1) {
      expect(turn, "turns until all is done").toBeLessThan(turnsMax);
      this.#capture();
      await quiet();
    }
    await Promise.all(this.#disks.map((disk) => disk.close()));
    expect(this.#faults).toEqual([]);
    for (const device of this.#devices) expect(device.isClosed).toBe(true);
  }

  /** A number from 0 to `end` − 1. */
  #below(end: number): number {
    this.#random = (Math.imul(this.#random, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((this.#random / 2 ** 32) * end);
  }

  #tick(): number {
    this.#clock += 1;
    return this.#clock;
  }

  #act(): void {
    const choice = this.#below(100);
    if (choice < 25) this.#write();
    else if (choice < 70) this.#stepDevice();
    else if (choice < 76) this.#cut();
    else if (choice < 99) this.#capture();
    else this.#cycle?.captures[0]?.cut.abandon();
  }

  #observe(): void {
    for (const disk of this.#disks) {
      if (disk.preservedBytes > 0) this.#seen.kept += 1;
      if (disk.preservedBytes > this.#world.preservedGranules * granuleBytes) this.#seen.spilled += 1;
    }
  }

  #write(): void {
    if (this.#calls.size >= writesPendingMax) return;
    const disk = this.#below(this.#disks.length);
    const firstSector = this.#below(diskSectors);
    const sectors = Math.min(1 + this.#below(this.#below(4) === 0 ? 30 : 4), diskSectors - firstSector);
    const kind = (["write", "write", "write", "zero", "trim"] as const)[this.#below(5)] ?? "write";
    const sequence = this.#writes.length + 1;
    const write: ClientWrite = {
      sequence,
      disk,
      kind,
      firstSector,
      sectors,
      calledAt: this.#tick(),
      acknowledgedAt: Infinity,
    };
    this.#writes.push(write);
    const target = this.#disks[disk];
    if (target === undefined) throw new Error("no such disk");
    const offset = firstSector * sectorBytes;
    const length = sectors * sectorBytes;
    if (kind === "write") {
      const bytes = stamps(write);
      if (target.tryWrite(offset, bytes)) write.acknowledgedAt = this.#tick();
      else this.#follow(target.write(offset, bytes), write);
    } else {
      this.#follow(kind === "zero" ? target.zero(offset, length, true) : target.trim(offset, length), write);
    }
  }

  #follow(call: Promise<void>, write: ClientWrite): void {
    const followed = call
      .then(
        () => {
          write.acknowledgedAt = this.#tick();
        },
        (error: unknown) => {
          // No write fails because of us.
          this.#faults.push(error);
        },
      )
      .finally(() => {
        this.#calls.delete(followed);
      });
    this.#calls.add(followed);
  }

  #stepDevice(): void {
    const pending = this.#devices[this.#below(this.#devices.length)]?.pending ?? [];
    const call = pending[this.#below(pending.length)];
    // Several sectors at a time now and then, so that calls also come to an end.
    for (let left = 1 + this.#below(12); left > 0 && call !== undefined && pending.includes(call); left -= 1)
      call.step();
  }

  #cut(): void {
    if (this.#cycle !== undefined || this.#isPreparing) return;
    this.#isPreparing = true;
    if (this.#devices.some(({ writesPending }) => writesPending > 0)) this.#seen.waited += 1;
    const prepared = Promise.all(this.#disks.map(async (disk) => await disk.prepare()));
    prepared
      .then((all) => {
        expect(all.every(({ held }) => held)).toBe(true);
        for (const device of this.#devices) expect(device.writesPending, "writes under way at a cut").toBe(0);
        const cutAt = this.#tick();
        const captures = all.map((one, disk): Capture => {
          const cut = one.cut({ exact: true });
          const truth = Buffer.from(this.#devices[disk]?.bytes ?? []);
          const image = Buffer.from(this.#points[disk] ?? []);
          return { disk, cut, truth, image, pieces: this.#piecesOf(cut), reading: 0, isAbandoned: false };
        });
        this.#cycle = { cutAt, captures };
      })
      .catch((error: unknown) => {
        this.#faults.push(error);
      })
      .finally(() => {
        this.#isPreparing = false;
      });
  }

  /** The cut's extents in pieces, shuffled: lanes read in any order. */
  #piecesOf(cut: Cut): Extent[] {
    const pieces: Extent[] = [];
    for (const { offset, length } of cut.extents()) {
      for (let at = offset; at < offset + length; ) {
        const piece = Math.min((1 + this.#below(4)) * granuleBytes, offset + length - at);
        pieces.splice(this.#below(pieces.length + 1), 0, { offset: at, length: piece });
        at += piece;
      }
    }
    return pieces;
  }

  #capture(): void {
    const cycle = this.#cycle;
    if (cycle === undefined) return;
    const capture = cycle.captures[this.#below(cycle.captures.length)];
    const piece = capture?.pieces.pop();
    if (capture !== undefined && piece !== undefined) {
      const into = capture.image.subarray(piece.offset, piece.offset + piece.length);
      capture.reading += 1;
      capture.cut
        .read(piece.offset, into)
        .catch((error: unknown) => {
          if (!hasCode(error, "CUT_ABANDONED")) this.#faults.push(error);
          capture.isAbandoned = true;
        })
        .finally(() => {
          capture.reading -= 1;
        });
      return;
    }
    const isDone = cycle.captures.every(({ cut, pieces, reading, isAbandoned }) => {
      return reading === 0 && (isAbandoned || cut.signal.aborted || pieces.length === 0);
    });
    if (!isDone) return;
    this.#cycle = undefined;
    this.#end(cycle);
  }

  #end({ cutAt, captures }: Cycle): void {
    const committed = captures.filter(({ cut, isAbandoned }) => !isAbandoned && !cut.signal.aborted);
    this.#seen.abandoned += captures.length - committed.length;
    for (const { disk, cut, truth, image } of committed) {
      try {
        cut.committed(String(cutAt));
      } catch (error) {
        // It was abandoned by the client after its last read; the next cut brings it all again.
        expect(String(error)).toContain("only an open cut");
        continue;
      }
      if (!image.equals(truth)) this.#faults.push(`disk ${disk} at ${cutAt}: the point is not the disk at the cut`);
      this.#points[disk] = image;
      this.#seen.points += 1;
    }
    if (committed.length === captures.length && captures.length > 1) this.#seen.groups += 1;
    for (const { cut } of captures) cut.abandon();
    this.#checkOrder(committed, cutAt);
  }

  /**
   * No write is missing that was acknowledged before the cut, or before a write was called that the
   * images hold.
   */
  #checkOrder(captures: readonly Capture[], cutAt: number): void {
    const held = captures.map(({ image }) => stampsOf(image));
    let newestCalledAt = 0;
    for (const sequence of held.flat())
      newestCalledAt = Math.max(newestCalledAt, this.#writes[sequence - 1]?.calledAt ?? 0);
    if (newestCalledAt > cutAt) this.#faults.push(`a write called at ${newestCalledAt} is in the cut of ${cutAt}`);
    for (const [index, { disk }] of captures.entries()) {
      for (const write of this.#writes) {
        if (write.disk !== disk || write.kind !== "write") continue;
        if (write.acknowledgedAt > Math.max(cutAt, newestCalledAt)) continue;
        for (let sector = write.firstSector; sector < write.firstSector + write.sectors; sector += 1) {
          const sequence = held[index]?.[sector] ?? 0;
          const isOlder =
            sequence === 0
              ? !this.#mayBeZero(write, sector)
              : (this.#writes[sequence - 1]?.acknowledgedAt ?? 0) < write.calledAt;
          if (isOlder)
            this.#faults.push(
              `disk ${disk}, sector ${sector}: write ${write.sequence} is missing from the cut of ${cutAt}`,
            );
        }
      }
    }
  }

  /** True when zeros may have come over the write. */
  #mayBeZero(write: ClientWrite, sector: number): boolean {
    return this.#writes.some(({ disk, kind, firstSector, sectors, acknowledgedAt }) => {
      const covers = firstSector <= sector && sector < firstSector + sectors;
      return disk === write.disk && kind !== "write" && covers && acknowledgedAt > write.calledAt;
    });
  }
}

/** Each sector tells where it belongs, which write it is of, and whether it is whole. */
function stamps({ disk, sequence, firstSector, sectors }: ClientWrite): Buffer {
  const bytes = Buffer.alloc(sectors * sectorBytes, sequence % 251);
  for (let sector = 0; sector < sectors; sector += 1) {
    const at = sector * sectorBytes;
    bytes.writeUInt32LE(firstSector + sector, at);
    bytes.writeUInt32LE(sequence, at + 4);
    bytes.writeUInt32LE(disk, at + 8);
    bytes.writeUInt32LE(crc32(bytes.subarray(at, at + sectorBytes - 4)), at + sectorBytes - 4);
  }
  return bytes;
}

/** The write that each sector is of, 0 for zeros. Throws at a torn or misplaced sector. */
function stampsOf(image: Buffer): number[] {
  return Array.from({ length: image.length / sectorBytes }, (_, sector) => {
    const bytes = image.subarray(sector * sectorBytes, (sector + 1) * sectorBytes);
    if (bytes.every((byte) => byte === 0)) return 0;
    expect(bytes.readUInt32LE(sectorBytes - 4), `sector ${sector} is whole`).toBe(
      crc32(bytes.subarray(0, sectorBytes - 4)),
    );
    expect(bytes.readUInt32LE(0), "the sector is where it belongs").toBe(sector);
    return bytes.readUInt32LE(4);
  });
}
