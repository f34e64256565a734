/**
 * Stamped writes: an oracle for crash consistency. Every sector of a write carries its own place, the
 * number of the write and a checksum. The log knows when each write was sent and when it was
 * acknowledged, and judges from that what a disk holds after a crash, and what a point holds.
 *
 * No two writes that are under way overlap, so the order of the writes of each sector is known.
 *
 * Invariant: a point is sound only if one instant exists such that it holds every write acknowledged
 * before it, none sent after it, and no part of an acknowledged write. The disks of a group are
 * judged by one instant: their logs share a clock.
 *
 * Memory: 8 bytes for each sector of each write, and about 100 bytes for each write.
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

/** Counts sendings and acknowledgements; shared by the logs of disks that are judged together. */
export class StampClock {
  #tick = 0;

  next(): number {
    this.#tick += 1;
    return this.#tick;
  }
}

/** What was found in a point. */
export interface PointJudgement {
  readonly faults: readonly string[];
  /** When the newest write that it holds was sent; 0 for none. */
  readonly newestSentTick: number;
  /** When the first write that it lacks was acknowledged; Infinity for none. */
  readonly firstLackedTick: number;
}

/** Whether points of one group hold the writes before one instant, across their disks. */
export function isOneInstant(judgements: readonly PointJudgement[]): boolean {
  const newest = Math.max(...judgements.map(({ newestSentTick }) => newestSentTick));
  return judgements.every(({ firstLackedTick }) => firstLackedTick > newest);
}

export class StampLog {
  readonly sizeBytes: number;
  readonly #random: () => number;
  readonly #now: () => number;
  readonly #clock: StampClock;
  readonly #writes: StampedWrite[] = [];
  readonly #inFlight = new Set<StampedWrite>();
  /** Numbers of the writes of each sector, oldest first. */
  readonly #history: number[][];
  #acknowledged = 0;

  /** `random` gives numbers in [0, 1), `now` the wall clock. */
  constructor(
    sizeBytes: number,
    random: () => number,
    { now = Date.now, clock = new StampClock() }: { readonly now?: () => number; readonly clock?: StampClock } = {},
  ) {
    this.sizeBytes = sizeBytes;
    this.#random = random;
    this.#now = now;
    this.#clock = clock;
    this.#history = Array.from({ length: sizeBytes / sectorBytes }, () => []);
  }

  get acknowledged(): number {
    return this.#acknowledged;
  }

  /** A new write, to be sent now. */
  send(): { readonly write: StampedWrite; readonly bytes: Buffer } {
    const { firstSector, sectors } = this.#freePlace();
    const number = this.#writes.length + 1;
    const write = {
      number,
      firstSector,
      sectors,
      sentTick: this.#clock.next(),
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
    write.ackedTick = this.#clock.next();
    this.#acknowledged += 1;
    write.ackedMs = this.#now();
    this.#inFlight.delete(write);
  }

  /** The server has died: what was under way is on the disk, or is not, or is there in parts. */
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
      const lost = this.#firstAcknowledged(history, at + 1);
      if (lost !== undefined) findings.add(`sector ${sector} has lost write ${lost.number}, which was acknowledged`);
    }
    return findings.list;
  }

  /**
   * What is wrong with a point whose cut was made at `cutMs` on the wall clock: it must hold
   * exactly the writes acknowledged before one instant.
   */
  judgePoint(bytes: Buffer, cutMs: number): PointJudgement {
    const findings = new Findings();
    const found = [...this.#sectors(bytes, findings)];
    const versions = new Int32Array(this.#history.length);
    let newest: StampedWrite | undefined;
    for (const { sector, version } of found) {
      versions[sector] = version;
      if (version !== 0 && (newest === undefined || version > newest.number)) newest = this.#write(version);
    }
    let firstLackedTick = Infinity;
    for (const { sector, history, at, version } of found) {
      const lacked = this.#firstAcknowledged(history, at + 1);
      if (lacked !== undefined) {
        const { number: missing, ackedTick, ackedMs } = lacked;
        firstLackedTick = Math.min(firstLackedTick, ackedTick);
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
    return { faults: findings.list, newestSentTick: newest?.sentTick ?? 0, firstLackedTick };
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
      const at = version === 0 ? -1 : placeOf(history, version ?? -1);
      if (version === undefined || (version !== 0 && at === -1))
        findings.add(`sector ${sector} holds what no client wrote`);
      else yield { sector, history, at, version };
    }
  }

  /** The first acknowledged write of a sector's history from index `from` on. */
  #firstAcknowledged(history: readonly number[], from: number): StampedWrite | undefined {
    for (let index = from; index < history.length; index += 1) {
      const write = this.#write(history[index] ?? 0);
      if (write.ackedTick !== Infinity) return write;
    }
    return undefined;
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

/** Index of `number` in a list that rises; -1 when it is not there. */
function placeOf(rising: readonly number[], number: number): number {
  let [low, high] = [0, rising.length - 1];
  while (low <= high) {
    const middle = (low + high) >>> 1;
    const found = rising[middle] ?? 0;
    if (found === number) return middle;
    if (found < number) low = middle + 1;
    else high = middle - 1;
  }
  return -1;
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
