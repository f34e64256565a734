/**
 * Disk images for benchmarks: walk the allocated data, copy with holes, overwrite at random,
 * compare. All of it asks the file system for holes, so an image of 8 GiB with 2 GiB of data costs
 * 2 GiB.
 */
import { createHash } from "node:crypto";
import { type FileHandle, open } from "node:fs/promises";
import type { Extent } from "../engine/index.ts";
import { FileVolume, throwIfAborted } from "../engine/index.ts";
import { granuleBytes } from "../engine/internal.ts";

/** The unit of the yardsticks: as much as one page write carries. */
export const rangeBytes: number = 4 * 1024 * 1024;
/** Ranges that are read while one is used. */
const rangesAhead = 4;

/** Facts of an image in the report. */
export interface ImageFacts {
  readonly path: string;
  readonly sizeBytes: number;
  /** Bytes outside holes, counted in whole granules. */
  readonly allocatedBytes: number;
}

export async function imageFacts(volume: FileVolume): Promise<ImageFacts> {
  let allocatedBytes = 0;
  for await (const { length } of allocatedRuns(volume, granuleBytes, rangeBytes)) allocatedBytes += length;
  return { path: volume.description, sizeBytes: await volume.sizeBytes(), allocatedBytes };
}

/** The facts of an image that no program has open. */
export async function imageFactsOf(path: string): Promise<ImageFacts> {
  const volume = await FileVolume.open(path);
  try {
    return await imageFacts(volume);
  } finally {
    await volume.close();
  }
}

/**
 * The parts of a volume that may hold data, as runs of whole units of `unitBytes` (the last may be
 * cut short by the volume's end), ascending, disjoint, none longer than `runBytesMax`, none across
 * a multiple of it.
 */
export async function* allocatedRuns(
  volume: FileVolume,
  unitBytes: number,
  runBytesMax: number,
): AsyncGenerator<Extent, void> {
  const sizeBytes = await volume.sizeBytes();
  let start = 0;
  let end = 0;
  for await (const extent of volume.allocated(sizeBytes)) {
    const from = Math.max(end, extent.offset - (extent.offset % unitBytes));
    const to = Math.min(sizeBytes, Math.ceil((extent.offset + extent.length) / unitBytes) * unitBytes);
    if (from > end) {
      yield* cut(start, end, runBytesMax);
      start = from;
    }
    end = Math.max(end, to);
  }
  yield* cut(start, end, runBytesMax);
}

function* cut(start: number, end: number, runBytesMax: number): Generator<Extent, void> {
  for (let offset = start; offset < end; ) {
    const length = Math.min(end - offset, runBytesMax - (offset % runBytesMax));
    yield { offset, length };
    offset += length;
  }
}

/** True when `bytes` are all zero. */
export function allZero(bytes: Buffer): boolean {
  return bytes.compare(zeros, 0, bytes.length) === 0;
}

const zeros = Buffer.alloc(rangeBytes);

/**
 * SHA-256 over size, and offset and bytes of every 64 KiB block that is not zero: equal for all
 * images with equal content, wherever their holes are. Reading everything also leaves the image in
 * the system's cache, where every step that is measured finds it.
 */
export async function contentHash(path: string, signal: AbortSignal | undefined): Promise<string> {
  const blockBytes = 65_536;
  const volume = await FileVolume.open(path);
  try {
    const hash = createHash("sha256").update(`${await volume.sizeBytes()}\n`);
    for await (const { offset, bytes } of readAhead(volume, allocatedRuns(volume, blockBytes, rangeBytes))) {
      throwIfAborted(signal);
      for (let at = 0; at < bytes.length; at += blockBytes) {
        const block = bytes.subarray(at, Math.min(at + blockBytes, bytes.length));
        if (!allZero(block)) hash.update(`${offset + at}\n`).update(block);
      }
    }
    return hash.digest("hex");
  } finally {
    await volume.close();
  }
}

interface Reading {
  readonly offset: number;
  readonly bytes: Buffer;
  readonly done: Promise<void>;
}

/**
 * Reads extents in their order, the next few while one is being used: a scattered image is many
 * small reads.
 */
async function* readAhead(volume: FileVolume, extents: AsyncIterable<Extent>): AsyncGenerator<Reading, void> {
  const readings: Reading[] = [];
  try {
    for await (const { offset, length } of extents) {
      const bytes = Buffer.alloc(length);
      const done = volume.read(offset, bytes);
      done.catch(() => undefined); // awaited in its turn
      readings.push({ offset, bytes, done });
      if (readings.length > rangesAhead) yield* oldest(readings);
    }
    while (readings.length > 0) yield* oldest(readings);
  } finally {
    await Promise.allSettled(readings.map(({ done }) => done)); // the volume is about to be closed
  }
}

async function* oldest(readings: Reading[]): AsyncGenerator<Reading, void> {
  const [reading] = readings;
  if (reading === undefined) return;
  await reading.done;
  readings.shift();
  yield reading;
}

/** A new file of `sizeBytes` that is one hole. */
export async function makeSparse(path: string, sizeBytes: number): Promise<void> {
  const file = await open(path, "wx");
  try {
    await file.truncate(sizeBytes);
  } finally {
    await file.close();
  }
}

/**
 * Copies an image to a new file, leaving its holes holes; what `fs.copyFile` does with them depends
 * on the file system.
 */
export async function copySparsely(from: string, to: string, signal: AbortSignal | undefined): Promise<void> {
  const volume = await FileVolume.open(from);
  try {
    const target = await open(to, "wx");
    try {
      await target.truncate(await volume.sizeBytes());
      const buffer = Buffer.alloc(rangeBytes);
      for await (const { offset, length } of allocatedRuns(volume, granuleBytes, rangeBytes)) {
        throwIfAborted(signal);
        const bytes = buffer.subarray(0, length);
        await volume.read(offset, bytes);
        if (!allZero(bytes)) await writeAll(target, bytes, offset);
      }
      await target.sync();
    } finally {
      await target.close();
    }
  } finally {
    await volume.close();
  }
}

/**
 * Overwrites `count` granules at random places, and makes that durable. Of each granule every other
 * KiB is incompressible, and the rest repeats the number of the write. Returns how many distinct
 * granules it hit.
 */
export async function scatterWrites(
  path: string,
  count: number,
  seed: number,
  signal: AbortSignal | undefined,
): Promise<number> {
  const file = await open(path, "r+");
  try {
    const granules = Math.floor((await file.stat()).size / granuleBytes);
    const next = randomWords(seed);
    const bytes = Buffer.alloc(granuleBytes);
    const touched = new Set<number>();
    for (let write = 0; write < count; write += 1) {
      if (write % 1024 === 0) throwIfAborted(signal);
      const granule = next() % granules;
      for (let at = 0; at < granuleBytes; at += 4)
        bytes.writeUInt32LE(Math.floor(at / 1024) % 2 === 1 ? next() : write, at);
      await writeAll(file, bytes, granule * granuleBytes);
      touched.add(granule);
    }
    await file.sync();
    return touched.size;
  } finally {
    await file.close();
  }
}

async function writeAll(file: FileHandle, bytes: Uint8Array, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length; )
    done += (await file.write(bytes, done, bytes.length - done, offset + done)).bytesWritten;
}

/**
 * Random 32-bit words from a seed that is not 0: xorshift (Marsaglia, 2003), of the same bytes on
 * every machine.
 */
export function randomWords(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (state ^ (state << 13)) >>> 0;
    state = (state ^ (state >>> 17)) >>> 0;
    state = (state ^ (state << 5)) >>> 0;
    return state;
  };
}
