/**
 * A writer that writes its stripe of a disk over and over, one write after another, and can tell
 * what it was after any of them.
 */
import assert from "node:assert/strict";
import { setImmediate } from "node:timers/promises";
import type { BlockDevice } from "../../../../engine/device.ts";

const sectorBytes = 512;
const sectorsPerGranule = 8;

interface Write {
  readonly sector: number;
  readonly sectors: number;
  readonly calledAt: number;
  acknowledgedAt: number;
}

export class Writer {
  readonly #device: BlockDevice;
  readonly #firstSector: number;
  readonly #sectors: number;
  readonly #clock: { tick: number };
  readonly #log: Write[] = [];
  #random: number;
  #isEnding = false;

  /** Its stripe is that of `granules` granules from `firstGranule` on. Writers share a clock. */
  constructor(device: BlockDevice, firstGranule: number, granules: number, seed: number, clock: { tick: number }) {
    this.#device = device;
    this.#firstSector = firstGranule * sectorsPerGranule;
    this.#sectors = granules * sectorsPerGranule;
    this.#random = seed + 1;
    this.#clock = clock;
  }

  /** Writes until `end`. */
  async run(): Promise<void> {
    while (!this.#isEnding) {
      // Half of the writes are whole granules, which go the short way.
      const isWhole = this.#below(2) === 0;
      const unit = isWhole ? sectorsPerGranule : 1;
      const sector = this.#below(this.#sectors / unit) * unit;
      const sectors = Math.min((1 + this.#below(4)) * unit, this.#sectors - sector);
      const write: Write = { sector, sectors, calledAt: this.#tick(), acknowledgedAt: Infinity };
      this.#log.push(write);
      const bytes = Buffer.alloc(sectors * sectorBytes, this.#log.length % 251);
      for (let at = 0; at < sectors; at += 1) bytes.writeUInt32LE(this.#log.length, at * sectorBytes);
      const offset = (this.#firstSector + sector) * sectorBytes;
      if (!this.#device.tryWrite(offset, bytes)) await this.#device.write(offset, bytes);
      write.acknowledgedAt = this.#tick();
      await setImmediate();
    }
  }

  end(): void {
    this.#isEnding = true;
  }

  /**
   * How many of its writes `disk` holds. Fails unless it is the first so many, and nothing else.
   */
  countIn(disk: Uint8Array): number {
    const at = this.#firstSector * sectorBytes;
    const stripe = Buffer.from(disk.subarray(at, at + this.#sectors * sectorBytes));
    let count = 0;
    for (let sector = 0; sector < this.#sectors; sector += 1)
      count = Math.max(count, stripe.readUInt32LE(sector * sectorBytes));
    const expected = Buffer.alloc(stripe.length);
    for (const [index, { sector, sectors }] of this.#log.slice(0, count).entries()) {
      expected.fill((index + 1) % 251, sector * sectorBytes, (sector + sectors) * sectorBytes);
      for (let each = sector; each < sector + sectors; each += 1) expected.writeUInt32LE(index + 1, each * sectorBytes);
    }
    assert(stripe.equals(expected), `the stripe is that of the first ${String(count)} writes`);
    return count;
  }

  /** When its write `number`, counted from 1, was begun; 0 for none. */
  calledAt(number: number): number {
    return this.#log[number - 1]?.calledAt ?? 0;
  }

  /** When its write `number` was acknowledged. */
  acknowledgedAt(number: number): number {
    return this.#log[number - 1]?.acknowledgedAt ?? Infinity;
  }

  #tick(): number {
    this.#clock.tick += 1;
    return this.#clock.tick;
  }

  /** A number from 0 to `end` − 1. */
  #below(end: number): number {
    this.#random = (Math.imul(this.#random, 1_664_525) + 1_013_904_223) >>> 0;
    return Math.floor((this.#random / 2 ** 32) * end);
  }
}
