/** The judge of disks and points is judged itself: it finds what must not be, and nothing else. */
import { expect, test } from "vitest";
import { type StampedWrite, StampLog, sectorBytes } from "../../../cli/stress/stamps.ts";

const sectors = 1024;
/** Everything is written at one moment, so that order alone decides unless a test is about time. */
const writtenMs = 1_000_000;

/**
 * Writes one after the other, each acknowledged before the next is sent, and what the disk holds
 * after each.
 */
function written(count: number): {
  readonly log: StampLog;
  readonly writes: readonly StampedWrite[];
  readonly disks: readonly Buffer[];
} {
  let drawn = 0;
  const random = (): number => {
    drawn = (drawn * 0x5851f42d + 0.5772156649) % 1;
    return drawn;
  };
  const log = new StampLog(sectors * sectorBytes, random, { now: () => writtenMs });
  const writes: StampedWrite[] = [];
  const disks = [Buffer.alloc(sectors * sectorBytes)];
  for (let index = 0; index < count; index += 1) {
    const { write, bytes } = log.send();
    log.acknowledge(write);
    const disk = Buffer.from(disks.at(-1) ?? []);
    bytes.copy(disk, write.firstSector * sectorBytes);
    writes.push(write);
    disks.push(disk);
  }
  return { log, writes, disks };
}

/** `write` as it is in `from`, laid over `disk`. */
function laidOver(
  disk: Buffer | undefined,
  write: StampedWrite | undefined,
  from: Buffer | undefined,
  part = 1,
): Buffer {
  if (disk === undefined || write === undefined || from === undefined) throw new Error("there is no such write");
  const mixed = Buffer.from(disk);
  const start = write.firstSector * sectorBytes;
  from.copy(mixed, start, start, start + Math.ceil(write.sectors * part) * sectorBytes);
  return mixed;
}

test("a disk that holds every write, and each state on the way to it as a point, are sound", () => {
  const { log, disks } = written(20);
  expect(log.faultsOfDisk(disks.at(-1) ?? Buffer.alloc(0))).toEqual([]);
  for (const disk of disks) expect(log.judgePoint(disk, writtenMs).faults).toEqual([]);
});

test("a lost write, a torn sector and bytes that no client wrote are found on a disk", () => {
  const { log, disks } = written(20);
  expect(log.faultsOfDisk(disks[19] ?? Buffer.alloc(0))).not.toEqual([]);
  const torn = Buffer.from(disks[20] ?? []);
  torn.fill(1, 100, 103);
  expect(log.faultsOfDisk(torn)).toEqual(["sector 0 holds what no client wrote"]);
});

test("a point that lacks a write older than one that it holds is no prefix", () => {
  const { log, writes, disks } = written(20);
  const without = laidOver(disks[18], writes[19], disks[20]);
  expect(log.judgePoint(without, writtenMs).faults.join()).toContain(
    "lacks write 19, acknowledged before write 20 was sent",
  );
});

test("a point that holds a part of a write is torn", () => {
  const { log, writes, disks } = written(20);
  const wide = writes.findLast((write) => write.sectors > 1);
  const number = wide?.number ?? 0;
  expect(log.judgePoint(laidOver(disks[number - 1], wide, disks[number], 0.5), writtenMs).faults).toContain(
    `write ${number} is there in parts`,
  );
});

test("a point is held against the time of its cut", () => {
  const { log, disks } = written(20);
  expect(log.judgePoint(disks[10] ?? Buffer.alloc(0), writtenMs + 1).faults.join()).toContain("before the cut");
  expect(log.judgePoint(disks[10] ?? Buffer.alloc(0), writtenMs - 1).faults.join()).toContain("after the cut");
});

test("an acknowledged write that is missing behind one of unknown outcome is found", () => {
  const log = new StampLog(64 * sectorBytes, () => 0.999, { now: () => writtenMs }); // every write is the whole disk
  const first = log.send();
  log.acknowledge(first.write);
  log.send();
  log.giveUp();
  log.acknowledge(log.send().write);
  expect(log.judgePoint(first.bytes, writtenMs + 1).faults).toContain(
    "sector 0 lacks write 3, acknowledged 1 ms before the cut",
  );
});
