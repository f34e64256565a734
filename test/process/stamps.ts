/**
 * What was written to a disk, and what may therefore be found on it. Every sector of a write
 * carries its own place, the number of the write and a checksum; the log knows when each write was
 * sent and when it was acknowledged, and judges from that a disk after a crash, and a point.
 *
 * No two writes that are on their way overlap, so of each sector it is known in which order it was
 * written.
 */
import { crc32 } from "node:zlib";

export const sectorBytes = 512;
const sectorsMax = 64;
/** Where half of the writes go: what is captured is then overwritten all the time. */
const hotPart = 1 / 16;
/** Findings that are told one by one; a disk that is wrong is mostly wrong everywhere. */
const findingsMax = 5;

export interface StampedWrite {
  readonly number: number;
  readonly firstSector: number;
  readonly sectors: number;
  /** Place among all sendings and acknowledgements. */
  readonly sentTick: number;
  /** Wall clock, in ms. */
  readonly sentMs: number;
  /** Infinity until it is acknowledged, and for ever when the server died first. */
  ackedTick: number;
  ackedMs: number;
}

export class StampLog {
  readonly sizeBytes: number;
  readonly #random: () => number;
  readonly #now: () => number;
  readonly #writes: StampedWrite[] = [];
  readonly #inFlight = new Set<StampedWrite>();
  /** Numbers of the writes of each sector, oldest first. */
  readonly #history: number[][];
  #tick = 0;

  /** `random` gives numbers in [0, 1), `now` the wall clock. */
  constructor(sizeBytes: number, random: () => number, now: () => number = Date.now) {
    this.sizeBytes = sizeBytes;
    this.#random = random;
    this.#now = now;
    this.#history = Array.from({ length: sizeBytes / sectorBytes }, () => []);
  }

  get acknowledged(): number {
    return this.#writes.filter(({ ackedTick }) => ackedTick !== Infinity).length;
  }

  /** A new write, to be sent now. */
  send(): { readonly write: StampedWrite; readonly bytes: Buffer } {
    const { firstSector, sectors } = this.#freePlace();
    this.#tick += 1;
    const number = this.#writes.length + 1;
    const write = {
      number,
      firstSector,
      sectors,
      sentTick: this.#tick,
      sentMs: this.#now(),
      ackedTick: Infinity,
      ackedMs: Infinity,
    };
    this.#writes.push(write);
    this.#inFlight.add(write);
    const bytes = Buffer.alloc(sectors * sectorBytes);
    for (let sector = 0; sector < sectors; sector += 1) {
      this.#history[firstSector + sector]?.push(number);
      stamp(bytes.subarray(sector * sectorBytes, (sector + 1) * sectorBytes), firstSector + sector, number);
    }
    return { write, bytes };
  }

  acknowledge(write: StampedWrite): void {
    this.#tick += 1;
    write.ackedTick = this.#tick;
    write.ackedMs = this.#now();
    this.#inFlight.delete(write);
  }

  /** The server has died: what was on its way is on the disk, or is not, or in parts. */
  giveUp(): void {
    this.#inFlight.clear();
  }

  /**
   * What is wrong with the disk itself, when nothing writes to it: an acknowledged write that is
   * missing, or what no client wrote.
   */
  faultsOfDisk(bytes: Buffer): readonly string[] {
    const findings = new Findings();
    for (const { sector, history, at } of this.#sectors(bytes, findings)) {
      const lost = history.slice(at + 1).find((number) => this.#write(number).ackedTick !== Infinity);
      if (lost !== undefined) findings.add(`sector ${sector} has lost write ${lost}, which was acknowledged`);
    }
    return findings.list;
  }

  /**
   * What is wrong with a point whose cut was made at `cutMs` on the wall clock: it must hold
   * exactly the writes acknowledged before one instant.
   */
  faultsOfPoint(bytes: Buffer, cutMs: number): readonly string[] {
    const findings = new Findings();
    const found = [...this.#sectors(bytes, findings)];
    const versions = new Int32Array(this.#history.length);
    let newest: StampedWrite | undefined;
    for (const { sector, version } of found) {
      versions[sector] = version;
      if (version !== 0 && (newest === undefined || version > newest.number)) newest = this.#write(version);
    }
    for (const { sector, history, at, version } of found) {
      const missing = history[at + 1];
      if (missing !== undefined) {
        const { ackedTick, ackedMs } = this.#write(missing);
        if (newest !== undefined && ackedTick < newest.sentTick) {
          findings.add(
            `sector ${sector} lacks write ${missing}, acknowledged before write ${newest.number} was sent, which is there`,
          );
        }
        if (ackedMs < cutMs)
          findings.add(`sector ${sector} lacks write ${missing}, acknowledged ${cutMs - ackedMs} ms before the cut`);
      }
      if (version === 0) continue;
      const write = this.#write(version);
      if (write.sentMs > cutMs)
        findings.add(`sector ${sector} holds write ${version}, sent ${write.sentMs - cutMs} ms after the cut`);
      if (write.ackedTick !== Infinity && isTorn(write, versions)) findings.add(`write ${version} is there in parts`);
    }
    return findings.list;
  }

  *#sectors(
    bytes: Buffer,
    findings: Findings,
  ): Generator<{
    readonly sector: number;
    readonly history: readonly number[];
    readonly at: number;
    readonly version: number;
  }> {
    if (bytes.length !== this.sizeBytes) findings.add(`it has ${bytes.length} bytes instead of ${this.sizeBytes}`);
    for (const [sector, history] of this.#history.entries()) {
      const version = stampIn(bytes.subarray(sector * sectorBytes, (sector + 1) * sectorBytes), sector);
      const at = version === 0 ? -1 : history.lastIndexOf(version ?? -1);
      if (version === undefined || (version !== 0 && at === -1))
        findings.add(`sector ${sector} holds what nobody wrote`);
      else yield { sector, history, at, version };
    }
  }

  #write(number: number): StampedWrite {
    const write = this.#writes[number - 1];
    if (write === undefined) throw new Error(`there is no write ${number}`);
    return write;
  }

  #freePlace(): { readonly firstSector: number; readonly sectors: number } {
    for (;;) {
      const sectors = 1 + Math.floor(this.#random() * sectorsMax);
      const part = this.#random() < 0.5 ? hotPart : 1;
      const firstSector = Math.floor(this.#random() * part * (this.#history.length - sectors + 1));
      const isTaken = [...this.#inFlight].some(
        (other) => firstSector < other.firstSector + other.sectors && other.firstSector < firstSector + sectors,
      );
      if (!isTaken) return { firstSector, sectors };
    }
  }
}

class Findings {
  readonly list: string[] = [];

  add(finding: string): void {
    if (this.list.length < findingsMax && !this.list.includes(finding)) this.list.push(finding);
  }
}

/** Whether a part of the write is older than the write. */
function isTorn(write: StampedWrite, versions: Int32Array): boolean {
  const { firstSector, sectors, number } = write;
  return versions.subarray(firstSector, firstSector + sectors).some((version) => version < number);
}

/** Place, number, a filling that differs from write to write, checksum. */
function stamp(bytes: Buffer, sector: number, number: number): void {
  bytes.fill(`${sector} ${number} `);
  bytes.writeUInt32LE(sector, 0);
  bytes.writeUInt32LE(number, 4);
  bytes.writeUInt32LE(crc32(bytes.subarray(0, sectorBytes - 4)), sectorBytes - 4);
}

const unwritten = Buffer.alloc(sectorBytes);

/**
 * The number of the write that `bytes` are of, 0 when there was none, undefined when it is no
 * sector of ours.
 */
function stampIn(bytes: Buffer, sector: number): number | undefined {
  if (bytes.equals(unwritten)) return 0;
  if (bytes.length !== sectorBytes || bytes.readUInt32LE(0) !== sector) return undefined;
  const isWhole = bytes.readUInt32LE(sectorBytes - 4) === crc32(bytes.subarray(0, sectorBytes - 4));
  return isWhole ? bytes.readUInt32LE(4) : undefined;
}
