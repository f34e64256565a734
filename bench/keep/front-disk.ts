/**
 * Large sparse disk with data at its front, as points are read from: made, looked at through NBD,
 * and hashed.
 */
import { createHash } from "node:crypto";
import { open, truncate } from "node:fs/promises";
import { join } from "node:path";
import { FileVolume, NbdVolume, throwIfAborted, type Volume } from "../../engine/index.ts";
import { granuleBytes } from "../../engine/internal.ts";
import { copySparsely, imageFactsOf, randomWords, rangeBytes } from "../image.ts";
import type { BenchConfig } from "../options.ts";
import type { KeepPlace } from "./place.ts";

/** Reads in flight where a disk is hashed. */
const readsAhead = 4;

/** The disk. */
export interface FrontDisk {
  readonly image: string;
  /** The part at its front that holds the data. */
  readonly spanBytes: number;
}

/**
 * A disk of `live.diskBytes` that holds the given image at its front, or `live.hotBytes` of data.
 */
export async function makeFrontDisk(config: BenchConfig, place: KeepPlace): Promise<FrontDisk> {
  const { image, live, seed, signal, temporaryFolder, begin } = config;
  begin("write the disk");
  if (image !== "") {
    const path = join(temporaryFolder, "mount.img");
    await copySparsely(image, path, signal);
    const { sizeBytes } = await imageFactsOf(path);
    await truncate(path, Math.max(live.diskBytes, sizeBytes));
    return { image: path, spanBytes: sizeBytes };
  }
  const path = await place.makeImage("mount.img", live.diskBytes);
  await fillFront(path, live.hotBytes, seed, signal);
  return { image: path, spanBytes: live.hotBytes };
}

/**
 * Fills the front of a file, or of each `strideBytes` of it one range. Every other KiB is
 * incompressible, and the rest repeats the number of its range.
 */
export async function fillFront(
  path: string,
  spanBytes: number,
  seed: number,
  signal: AbortSignal | undefined,
  strideBytes: number = rangeBytes,
): Promise<void> {
  const file = await open(path, "r+");
  try {
    const next = randomWords(seed);
    const words = new Uint32Array(rangeBytes / 4);
    for (let offset = 0; offset < spanBytes; offset += strideBytes) {
      throwIfAborted(signal);
      for (let word = 0; word < words.length; word += 1)
        words[word] = Math.floor(word / 256) % 2 === 1 ? next() : offset / rangeBytes;
      await file.write(words, 0, Math.min(rangeBytes, spanBytes - offset), offset);
    }
  } finally {
    await file.close();
  }
}

/** Reads a granule from the middle of the data, as a client that has just connected. Gives its place and content. */
export async function readFirst(
  uri: string,
  spanBytes: number,
  signal: AbortSignal | undefined,
): Promise<{ readonly offset: number; readonly bytes: Buffer }> {
  const volume = await NbdVolume.open(uri, { signal });
  try {
    const offset = Math.floor(Math.floor(spanBytes / granuleBytes) / 2) * granuleBytes;
    const bytes = Buffer.alloc(granuleBytes);
    await volume.read(offset, bytes);
    return { offset, bytes };
  } finally {
    await volume.close();
  }
}

/** `frontHash` of a file. */
export async function frontHashOf(path: string, spanBytes: number, signal: AbortSignal | undefined): Promise<string> {
  const volume = await FileVolume.open(path);
  try {
    return await frontHash(volume, spanBytes, signal);
  } finally {
    await volume.close();
  }
}

/** SHA-256 of the first `spanBytes` of a volume, holes read like anything else. */
export async function frontHash(
  volume: Pick<Volume, "read">,
  spanBytes: number,
  signal: AbortSignal | undefined,
): Promise<string> {
  const hash = createHash("sha256");
  const pieceBytes = 1024 * 1024;
  for (let offset = 0; offset < spanBytes; offset += readsAhead * pieceBytes) {
    throwIfAborted(signal);
    const pieces = Array.from({ length: readsAhead }, (_, index) => offset + index * pieceBytes).filter(
      (at) => at < spanBytes,
    );
    const reads = pieces.map(async (at) => {
      const bytes = Buffer.alloc(Math.min(pieceBytes, spanBytes - at));
      await volume.read(at, bytes);
      return bytes;
    });
    for (const bytes of await Promise.all(reads)) hash.update(bytes);
  }
  return hash.digest("hex");
}
