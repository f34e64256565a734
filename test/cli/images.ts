/**
 * Disk images for tests of the command line: real bytes, the same for the same seed, in a second
 * and less.
 */
import { createHash } from "node:crypto";
import { closeSync, openSync, readFileSync, truncateSync, writeSync } from "node:fs";

const mebibyte = 1024 * 1024;

/** An image of `mebibytes` MiB, half of each of them incompressible, none like another. */
export function writeImage(path: string, mebibytes: number, seed = 1): void {
  const file = openSync(path, "w");
  try {
    const noise = noiseOf(`noise ${seed}`, mebibyte / 2 + mebibytes);
    for (let index = 0; index < mebibytes; index += 1) {
      // Shifted by a byte each time: no block of it is like one before.
      writeSync(file, noise, index, mebibyte / 2, index * mebibyte);
      writeSync(
        file,
        Buffer.alloc(mebibyte / 2, `${seed}:${index} still waters, `),
        0,
        mebibyte / 2,
        index * mebibyte + mebibyte / 2,
      );
    }
  } finally {
    closeSync(file);
  }
}

/** Changes an image at `offset`, without changing its size. */
export function changeImage(path: string, offset: number, bytes: Uint8Array): void {
  const file = openSync(path, "r+");
  try {
    writeSync(file, bytes, 0, bytes.byteLength, offset);
  } finally {
    closeSync(file);
  }
}

/** Gives an image another size; what is new is a hole. */
export function resizeImage(path: string, sizeBytes: number): void {
  truncateSync(path, sizeBytes);
}

export function sameFiles(one: string, other: string): boolean {
  return readFileSync(one).equals(readFileSync(other));
}

function noiseOf(seed: string, length: number): Buffer {
  return createHash("shake256", { outputLength: length }).update(seed).digest();
}
