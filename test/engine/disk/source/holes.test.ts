import { closeSync, ftruncateSync, mkdtempSync, openSync, rmSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { allocatedExtents } from "../../../../engine/disk/source/holes.ts";

const gib = 1024 ** 3;

describe.skipIf(process.platform !== "linux")("allocated extents", () => {
  let folder: string;
  let fd: number;
  beforeEach(() => {
    folder = mkdtempSync(join(tmpdir(), "holes-"));
    fd = openSync(join(folder, "image"), "w+");
  });
  afterEach(() => {
    closeSync(fd);
    rmSync(folder, { recursive: true });
  });

  const extents = (sizeBytes: number, fromBytes?: number): { offset: number; length: number }[] => {
    const found = allocatedExtents(fd, sizeBytes, fromBytes);
    if (found === undefined) throw new Error("this file system does not tell holes");
    return [...found];
  };

  test("a terabyte of holes is one answer, and data beyond 4 GiB is found where it is", () => {
    ftruncateSync(fd, 1024 * gib);
    expect(extents(1024 * gib)).toEqual([]);
    const data = Buffer.alloc(8192, 7);
    writeSync(fd, data, 0, data.length, 5 * gib);
    writeSync(fd, data, 0, data.length, 1000 * gib);
    expect(extents(1024 * gib)).toEqual([
      { offset: 5 * gib, length: 8192 },
      { offset: 1000 * gib, length: 8192 },
    ]);
  });

  test("extents are clipped to the range that was asked for", () => {
    const data = Buffer.alloc(16384, 7);
    writeSync(fd, data, 0, data.length, 0);
    ftruncateSync(fd, 65536);
    expect(extents(10_000, 5000)).toEqual([{ offset: 5000, length: 5000 }]);
    expect(extents(65536, 4096)).toEqual([{ offset: 4096, length: 12288 }]);
    expect(extents(65536, 65536)).toEqual([]);
  });

  test("an empty file has none", () => {
    expect(extents(0)).toEqual([]);
  });

  test("a file of a hundred thousand extents is walked in a moment", () => {
    const data = Buffer.alloc(4096, 1);
    const count = 100_000;
    ftruncateSync(fd, 1024 * gib);
    for (let index = 0; index < count; index += 1) writeSync(fd, data, 0, data.length, index * 65536);
    const started = performance.now();
    let found = 0;
    for (const extent of allocatedExtents(fd, 1024 * gib) ?? []) found += extent.length;
    expect(found).toBe(count * 4096);
    expect(performance.now() - started).toBeLessThan(5000);
  });

  test("where the file system tells no holes, the answer is undefined", () => {
    const pipe = openSync("/dev/null", "r");
    try {
      const found = allocatedExtents(pipe, 100);
      // Character devices refuse or answer with nonsense; an answer must then still not leave data
      // out.
      expect(found === undefined || [...found].length <= 1).toBe(true);
    } finally {
      closeSync(pipe);
    }
  });
});
