/**
 * Yardsticks: the plainest program that does the same transfer through the same sink, without
 * change tracking, deduplication, compression or proof. Each is measured in the same run, on the
 * same store and the same bytes.
 *
 * Memory: lanes × 4 MiB.
 */
import { open } from "node:fs/promises";
import type { FileVolume, Sink } from "../engine/index.ts";
import { pageAlignmentBytes, throwIfAborted } from "../engine/index.ts";
import { allocatedRuns, allZero, randomWords, rangeBytes } from "./image.ts";

/** Transfers in flight. */
export const yardstickLanes = 4;

/** Only allocated ranges are read: longer ranges would flatter Tidemark. */
const readUnitBytes = 4096;

/**
 * Uploads an image as it is to one page object: every 4 MiB range that holds something, four at a
 * time. Returns the bytes sent.
 */
export async function uploadPlainly(
  volume: FileVolume,
  sink: Sink,
  name: string,
  signal: AbortSignal | undefined,
): Promise<number> {
  const sizeBytes = await volume.sizeBytes();
  await sink.createPages(name, roundUp(sizeBytes), 0, { signal });
  let sentBytes = 0;
  await inLanes(allocatedRuns(volume, rangeBytes, rangeBytes), signal, async ({ offset, length }, buffer) => {
    const bytes = buffer.subarray(0, roundUp(length)).fill(0, length);
    await volume.read(offset, bytes.subarray(0, length));
    if (allZero(bytes)) return;
    await sink.writePages(name, offset, bytes, { sequenceNumber: 0 }, { signal });
    sentBytes += bytes.length;
  });
  return sentBytes;
}

/**
 * Reads what an image holds once, from front to back, with one read of up to 4 MiB after the other.
 * Returns the bytes read.
 */
export async function readOnce(volume: FileVolume, signal: AbortSignal | undefined): Promise<number> {
  const buffer = Buffer.alloc(rangeBytes);
  let bytesRead = 0;
  for await (const { offset, length } of allocatedRuns(volume, readUnitBytes, rangeBytes)) {
    throwIfAborted(signal);
    await volume.read(offset, buffer.subarray(0, length));
    bytesRead += length;
  }
  return bytesRead;
}

/**
 * Writes what an image holds to a new file, from front to back, and syncs it: `dd conv=sparse,fsync`.
 * Returns the bytes written.
 */
export async function writeDurably(volume: FileVolume, path: string, signal: AbortSignal | undefined): Promise<number> {
  const buffer = Buffer.alloc(rangeBytes);
  let writtenBytes = 0;
  const file = await open(path, "wx");
  try {
    await file.truncate(await volume.sizeBytes());
    for await (const { offset, length } of allocatedRuns(volume, readUnitBytes, rangeBytes)) {
      throwIfAborted(signal);
      await volume.read(offset, buffer.subarray(0, length));
      await file.write(buffer, 0, length, offset);
      writtenBytes += length;
    }
    await file.sync();
  } finally {
    await file.close();
  }
  return writtenBytes;
}

/** A page object, and how far it was written. */
export interface StoredPages {
  readonly name: string;
  readonly writtenBytes: number;
}

/** The segments that a vault has in this sink. */
export async function storedSegments(sink: Sink, signal: AbortSignal | undefined): Promise<StoredPages[]> {
  const segments: StoredPages[] = [];
  for await (const { name } of sink.list("segments/", { signal })) {
    segments.push({ name, writtenBytes: (await sink.statPages(name, { signal })).writtenBytes });
  }
  return segments;
}

/**
 * The Get ceiling: reads everything that is stored back, 4 MiB × 4 in flight, and drops it. Returns
 * the bytes read.
 */
export async function getCeiling(
  sink: Sink,
  segments: readonly StoredPages[],
  signal: AbortSignal | undefined,
): Promise<number> {
  let bytesRead = 0;
  await inLanes(rangesOf(segments), signal, async ({ name, offset, length }, buffer) => {
    await sink.readPages(name, offset, buffer.subarray(0, length), { signal });
    bytesRead += length;
  });
  return bytesRead;
}

/**
 * A plain copy: everything that is stored is read and written to an object of the same name, 4 MiB × 4 in
 * flight. Returns the bytes written.
 */
export async function copyPlainly(
  from: Sink,
  to: Sink,
  segments: readonly StoredPages[],
  signal: AbortSignal | undefined,
): Promise<number> {
  for (const { name, writtenBytes } of segments) await to.createPages(name, roundUp(writtenBytes), 0, { signal });
  let sentBytes = 0;
  await inLanes(rangesOf(segments), signal, async ({ name, offset, length }, buffer) => {
    const bytes = buffer.subarray(0, roundUp(length)).fill(0, length);
    await from.readPages(name, offset, bytes.subarray(0, length), { signal });
    await to.writePages(name, offset, bytes, { sequenceNumber: 0 }, { signal });
    sentBytes += length;
  });
  return sentBytes;
}

/**
 * The Put ceiling: writes `totalBytes` to one page object, 4 MiB × 4 in flight, of bytes that do not
 * compress. Returns the bytes sent.
 */
export async function putCeiling(
  sink: Sink,
  totalBytes: number,
  seed: number,
  signal: AbortSignal | undefined,
): Promise<number> {
  const name = "ceiling";
  const writtenBytes = roundUp(totalBytes);
  await sink.createPages(name, writtenBytes, 0, { signal });
  const next = randomWords(seed);
  const content = new Uint8Array(Uint32Array.from({ length: rangeBytes / 4 }, () => next()).buffer);
  await inLanes(rangesOf([{ name, writtenBytes }]), signal, async ({ offset, length }) => {
    await sink.writePages(name, offset, content.subarray(0, length), { sequenceNumber: 0 }, { signal });
  });
  return writtenBytes;
}

async function* rangesOf(
  segments: readonly StoredPages[],
): AsyncGenerator<{ name: string; offset: number; length: number }, void> {
  for (const { name, writtenBytes } of segments) {
    for (let offset = 0; offset < writtenBytes; offset += rangeBytes) {
      yield await Promise.resolve({ name, offset, length: Math.min(rangeBytes, writtenBytes - offset) });
    }
  }
}

/**
 * Works through `items`, one per lane at a time, each lane with a buffer of 4 MiB. After a failure
 * the other lanes finish what they have.
 */
async function inLanes<Item>(
  items: AsyncGenerator<Item, void>,
  signal: AbortSignal | undefined,
  work: (item: Item, buffer: Buffer) => Promise<void>,
): Promise<void> {
  const lanes = Array.from({ length: yardstickLanes }, async () => {
    const buffer = Buffer.alloc(rangeBytes);
    // Leaving the loop by a throw also ends the generator for the other lanes.
    for await (const item of items) {
      throwIfAborted(signal);
      await work(item, buffer);
    }
  });
  await Promise.allSettled(lanes);
  await Promise.all(lanes);
}

function roundUp(bytes: number): number {
  return Math.ceil(bytes / pageAlignmentBytes) * pageAlignmentBytes;
}
