/**
 * Exact area of a tracking file: the granule bitmap that a clean shutdown stores behind the pages.
 *
 * For each region that holds a mark it stores the index and 1,024 bits, 132 bytes. However the
 * marks are scattered, a disk of 1 TiB needs at most 33 MiB. The CRC-32 is in the header's clean
 * record, which is written when all of this is durable.
 */
import { crc32 } from "node:zlib";
import { DirtyBitmap } from "./dirty-bitmap.ts";
import { exactRecordBytes, regionsOf, type TrackingHeader } from "./tracking-format.ts";
import type { TrackingStorage } from "./tracking-storage.ts";

/** Records that are read and written at once: 528 KiB. */
const recordsAtOnce = 4096;

/** Writes the marks of `dirty` from `areaAt` on. Rejects with the error of the storage. */
export async function writeExactArea(
  storage: TrackingStorage,
  areaAt: number,
  dirty: DirtyBitmap,
): Promise<{ readonly areaBytes: number; readonly areaCrc: number }> {
  const records = Buffer.alloc(recordsAtOnce * exactRecordBytes);
  let filled = 0;
  let areaBytes = 0;
  let areaCrc = 0;
  const flush = async (): Promise<void> => {
    const bytes = records.subarray(0, filled);
    areaCrc = crc32(bytes, areaCrc);
    await storage.write(areaAt + areaBytes, bytes);
    areaBytes += filled;
    filled = 0;
  };
  for (const region of dirty.regions()) {
    records.writeUInt32LE(region, filled);
    dirty.readRegion(region, records.subarray(filled + 4, filled + exactRecordBytes));
    filled += exactRecordBytes;
    if (filled === records.length) await flush();
  }
  if (filled > 0) await flush();
  return { areaBytes, areaCrc };
}

/**
 * The exact bitmap, for a disk that now has `sizeNow` bytes; undefined when there is none or it is
 * not what was written. The region bits then tell enough, since they are a superset of it and the
 * image is at rest.
 */
export async function readExactArea(
  storage: TrackingStorage,
  { clean, sizeBytes }: TrackingHeader,
  sizeNow: number,
): Promise<DirtyBitmap | undefined> {
  if (clean === null || clean.areaBytes % exactRecordBytes !== 0) return undefined;
  const exact = new DirtyBitmap(sizeNow);
  let crc = 0;
  for (let done = 0; done < clean.areaBytes; ) {
    const bytes = Buffer.alloc(Math.min(recordsAtOnce * exactRecordBytes, clean.areaBytes - done));
    if ((await storage.read(clean.areaAt + done, bytes)) < bytes.length) return undefined;
    crc = crc32(bytes, crc);
    for (let at = 0; at < bytes.length; at += exactRecordBytes) {
      const region = bytes.readUInt32LE(at);
      if (region >= regionsOf(sizeBytes)) return undefined;
      exact.markRegion(region, bytes.subarray(at + 4, at + exactRecordBytes));
    }
    done += bytes.length;
  }
  return crc === clean.areaCrc ? exact : undefined;
}
