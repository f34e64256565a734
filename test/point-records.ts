/**
 * Disks of any number of points without their data: heads and pages only, which is all that
 * listings and look-ups read.
 */

import { checksum, toHex } from "../engine/store/format/checksum.ts";
import type { GroupRecord, HeadDocument, PointRecord } from "../engine/store/format/documents.ts";
import { encodeHead, headPointsMax } from "../engine/store/format/documents.ts";
import { headName } from "../engine/store/format/names.ts";
import { makeRoom, type Room } from "../engine/store/points/history.ts";
import type { Store } from "../engine/store/store.ts";

export const recordsVault: string = "0".repeat(32);
/** Time of the point with sequence number 0; one follows every 5 s. */
const startMs = 1_790_000_000_000;
export const cycleMs = 5000;

export function timeOf(sequence: number): number {
  return startMs + sequence * cycleMs;
}

export function idOf(disk: string, sequence: number): string {
  return toHex(checksum(Buffer.from(`${disk} ${String(sequence)}`)));
}

/** Sizes have as many digits as those of a large disk with a high churn. */
export function recordOf(sequence: number, group: GroupRecord | null = null, disk = "d"): PointRecord {
  return {
    sequence,
    epoch: 12,
    id: idOf(disk, sequence),
    timeMs: timeOf(sequence),
    lagMs: 1234,
    consistency: "crash",
    group,
    volumeBytes: 1_099_511_627_776,
    changedBytes: 536_870_912,
    newBytes: 402_653_184,
    storedBytes: 268_435_456,
  };
}

/** Points [from, end). */
export function recordsOf(
  from: number,
  end: number,
  group: (sequence: number) => GroupRecord | null = () => null,
  disk = "d",
): PointRecord[] {
  return Array.from({ length: end - from }, (_, index) => recordOf(from + index, group(from + index), disk));
}

/**
 * The head that a writer leaves after having committed `points` one by one; its pages are in the
 * store.
 */
export async function writeHistory(store: Store, points: readonly PointRecord[], disk = "d"): Promise<HeadDocument> {
  let head: HeadDocument = {
    vault: recordsVault,
    disk,
    epoch: 1,
    writer: null,
    collection: null,
    pages: [],
    points: [],
  };
  let ordinal = 0;
  for (let next = 0; next < points.length; ) {
    const end = Math.min(points.length, next + headPointsMax - head.points.length);
    head = { ...head, points: [...head.points, ...points.slice(next, end)] };
    next = end;
    if (next < points.length) {
      const room: Room = await makeRoom({
        store,
        head,
        epoch: 1,
        takeOrdinal: () => ordinal++,
        onDamage: (error) => {
          throw error;
        },
      });
      head = { ...head, pages: room.pages, points: room.points };
    }
  }
  await store.putOnce(headName(disk), encodeHead(head));
  return head;
}
