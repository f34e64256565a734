/** A disk of 1 TiB that holds 100 MB costs 100 MB, there and back. */
import { createHash } from "node:crypto";
import { closeSync, ftruncateSync, openSync, readSync, statSync, writeSync } from "node:fs";
import { expect, it } from "vitest";
import { Client } from "./client.ts";

const diskBytes = 1024 ** 4;
const extents = 100;
const extentBytes = 1_000_000;
const elapsedMsMax = 30_000;

it("1 TiB that holds 100 MB is replicated and materialized by reading and writing about 100 MB", {
  timeout: 120_000,
}, async () => {
  const client = new Client("dir:vault");
  writeSparse(client.path("disk.img"));
  const { code, last } = await client.replicate("disk.img");
  console.log(`1 TiB that holds 100 MB: replicated in ${Number(last["elapsedMs"])} ms`);
  expect(last).toMatchObject({ type: "summary", volumeBytes: diskBytes });
  expect(code).toBe(0);
  expect(Number(last["elapsedMs"])).toBeLessThanOrEqual(elapsedMsMax);
  expect(Number(last["scannedBytes"])).toBeLessThanOrEqual(110_000_000);

  const back = await client.run("materialize", "--disk", "d", "--point", "latest", "--to", "back.img");
  expect(back).toMatchObject({ code: 0 });
  expect(back.elapsedMs).toBeLessThanOrEqual(elapsedMsMax);
  const { size, blocks } = statSync(client.path("back.img"));
  expect(size).toBe(diskBytes);
  expect(blocks * 512).toBeLessThan(120_000_000);
  expect(wrongExtents(client.path("back.img"))).toEqual([]);
});

/** Where extent `index` begins: on no boundary of anything, the last one at the very end. */
function offsetOf(index: number): number {
  return Math.floor(((diskBytes - extentBytes) / (extents - 1)) * index);
}

function contentOf(index: number): Buffer {
  const half = extentBytes / 2;
  return Buffer.concat([
    createHash("shake256", { outputLength: half }).update(`extent ${index}`).digest(),
    Buffer.alloc(half, `extent ${index}, `),
  ]);
}

function writeSparse(path: string): void {
  const file = openSync(path, "w");
  try {
    ftruncateSync(file, diskBytes);
    for (let index = 0; index < extents; index += 1) writeSync(file, contentOf(index), 0, extentBytes, offsetOf(index));
  } finally {
    closeSync(file);
  }
}

/**
 * The extents that do not read as they were written, or that have anything but zeros around them.
 */
function wrongExtents(path: string): readonly number[] {
  const around = 100_000;
  const file = openSync(path, "r");
  try {
    return Array.from({ length: extents }, (_, index) => index).filter((index) => {
      const from = Math.max(0, offsetOf(index) - around);
      const to = Math.min(diskBytes, offsetOf(index) + extentBytes + around);
      const expected = Buffer.alloc(to - from);
      contentOf(index).copy(expected, offsetOf(index) - from);
      const found = Buffer.alloc(to - from);
      readSync(file, found, 0, found.length, from);
      return !found.equals(expected);
    });
  } finally {
    closeSync(file);
  }
}
