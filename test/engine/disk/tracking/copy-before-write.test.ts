/**
 * Old content comes back as it was given, from memory or from the spill file, within its limits and
 * without leaving anything behind.
 */
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it, type TestContext } from "vitest";
import { CopyBeforeWriteArea, GranulePool } from "../../../../engine/disk/tracking/copy-before-write.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import { mountSmallDisk } from "../../../small-disk.ts";

let folder = "";

beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "tidemark-preserved-"));
});

afterEach(async () => {
  await rm(folder, { recursive: true });
});

describe("old content", () => {
  it("comes back granule by granule, from memory and from the file, and only once", async () => {
    const store = preserved({ memory: 3, spill: 10 });
    expect(store.reserve(8)).toBe(true);
    await store.keep(5, granules(5, 8));
    expect(store.bytes).toBe(8 * granuleBytes);
    expect(store.usedShare).toBe(8 / 13);
    const into = Buffer.alloc(10 * granuleBytes, 0xee);
    expect(await store.take(4, into)).toBe(true);
    expect(into.subarray(granuleBytes, 9 * granuleBytes)).toEqual(granules(5, 8));
    // What is not kept is left alone.
    expect(into.subarray(0, granuleBytes)).toEqual(Buffer.alloc(granuleBytes, 0xee));
    expect(into.subarray(9 * granuleBytes)).toEqual(Buffer.alloc(granuleBytes, 0xee));
    expect(store.bytes).toBe(0);
    expect(store.take(4, into)).toBe(false);
    await store.close();
  });

  it("takes the places of what was taken out, in memory and in the file", async () => {
    const store = preserved({ memory: 2, spill: 3 });
    for (let round = 0; round < 20; round += 1) {
      expect(store.reserve(5)).toBe(true);
      await store.keep(round, granules(round, 5));
      expect(store.reserve(1)).toBe(false);
      const into = Buffer.alloc(5 * granuleBytes);
      // Front and back apart, so that free places are scattered.
      await store.take(round + 3, into.subarray(3 * granuleBytes));
      await store.take(round, into.subarray(0, 3 * granuleBytes));
      expect(into).toEqual(granules(round, 5));
    }
    await store.close();
  });

  it("keeps a place while its content is being read back", async () => {
    const store = preserved({ memory: 0, spill: 1 });
    expect(store.reserve(1)).toBe(true);
    await store.keep(1, granules(1, 1));
    const into = Buffer.alloc(granuleBytes);
    const reading = store.take(1, into);
    expect(store.reserve(1)).toBe(false);
    await reading;
    expect(into).toEqual(granules(1, 1));
    expect(store.reserve(1)).toBe(true);
    await store.close();
  });

  it("fills only what is asked for of a disk's last granule", async () => {
    const store = preserved({ memory: 1, spill: 1 });
    expect(store.reserve(2)).toBe(true);
    await store.keep(7, granules(7, 2));
    const into = Buffer.alloc(granuleBytes + 1000);
    await store.take(7, into);
    expect(into).toEqual(granules(7, 2).subarray(0, granuleBytes + 1000));
    await store.close();
  });

  it("is kept at once only in memory, and not when it cannot be told at once", async () => {
    const store = preserved({ memory: 1, spill: 8 });
    expect(store.tryKeep(1, 1, () => false)).toBe(false);
    expect(store.has(1)).toBe(false);
    expect(() => store.tryKeep(1, 1, raise)).toThrow("unreadable");
    expect(store.tryKeep(1, 1, (_, into) => into.fill(1).length > 0)).toBe(true);
    expect(store.tryKeep(2, 1, (_, into) => into.fill(2).length > 0)).toBe(false);
    store.drop(1);
    expect(store.tryKeep(2, 1, (_, into) => into.fill(2).length > 0)).toBe(true);
    await store.close();
  });

  it("is kept at once with one call a run of neighbours, also in places that were free again", async () => {
    const store = preserved({ memory: 600, spill: 0 });
    const calls: number[][] = [];
    const fill = (granule: number, into: Uint8Array): boolean => {
      calls.push([granule, into.byteLength / granuleBytes]);
      into.set(granules(granule, into.byteLength / granuleBytes));
      return true;
    };
    expect(store.tryKeep(40, 32, fill)).toBe(true);
    for (let granule = 40; granule < 72; granule += 1) store.drop(granule);
    expect(store.tryKeep(90, 32, fill)).toBe(true);
    expect(calls).toEqual([
      [40, 32],
      [90, 32],
    ]);
    // The second page of memory begins after granule 256.
    expect(store.tryKeep(1_000, 250, fill)).toBe(true);
    expect(calls.slice(2)).toEqual([
      [1_000, 224],
      [1_224, 26],
    ]);
    const into = Buffer.alloc(250 * granuleBytes);
    expect(store.take(1_000, into)).toBe(true);
    expect(into.equals(granules(1_000, 250))).toBe(true);
    expect(store.take(90, into.subarray(0, 32 * granuleBytes))).toBe(true);
    expect(into.subarray(0, 32 * granuleBytes).equals(granules(90, 32))).toBe(true);
    expect(store.bytes).toBe(0);
    await store.close();
  });

  it("has no room that has been set aside for another", async () => {
    const store = preserved({ memory: 2, spill: 0 });
    expect(store.reserve(2)).toBe(true);
    expect(store.tryKeep(1, 1, () => true)).toBe(false);
    expect(store.reserve(1)).toBe(false);
    store.unreserve(1);
    expect(store.tryKeep(1, 1, () => true)).toBe(true);
    await store.close();
  });

  it("leaves no file in the folder, open or closed", async () => {
    const store = preserved({ memory: 0, spill: 4 });
    expect(store.reserve(4)).toBe(true);
    await store.keep(0, granules(0, 4));
    expect(await readdir(folder)).toEqual([]);
    await store.close();
    await store.close();
    expect(await readdir(folder)).toEqual([]);
  });

  it("is told when the spill file cannot be made, and its room is free again", async () => {
    const store = new CopyBeforeWriteArea(new GranulePool(0), {
      folder: path.join(folder, "absent"),
      bytesMax: granuleBytes,
    });
    expect(store.reserve(1)).toBe(true);
    await expect(store.keep(0, granules(0, 1))).rejects.toMatchObject({ code: "TARGET_FAILED" });
    expect(store.bytes).toBe(0);
    await store.close();
  });

  it("is told when the file system is full", async (context: TestContext) => {
    const small = mountSmallDisk(path.join(folder, "small"), 64 * 1024);
    if ("reason" in small) {
      context.skip(`no disk can be full here: ${small.reason}`);
      return;
    }
    try {
      const store = new CopyBeforeWriteArea(new GranulePool(0), { folder: small.path, bytesMax: 100 * granuleBytes });
      expect(store.reserve(60)).toBe(true);
      await expect(store.keep(0, granules(0, 60))).rejects.toMatchObject({ code: "NO_SPACE" });
      await store.close();
    } finally {
      small.unmount();
    }
  });

  it("shares its memory with the next cut, which finds all of it free", async () => {
    const pool = new GranulePool(2 * granuleBytes);
    for (let cut = 0; cut < 3; cut += 1) {
      const store = new CopyBeforeWriteArea(pool, { folder: undefined, bytesMax: 0 });
      expect(store.reserve(2)).toBe(true);
      await store.keep(cut, granules(cut, 2));
      await store.close();
    }
    expect([pool.take(1), pool.take(3), pool.take(1)]).toEqual([
      { slot: 0, count: 1 },
      { slot: 1, count: 1 },
      undefined,
    ]);
  });
});

function preserved(limits: { readonly memory: number; readonly spill: number }): CopyBeforeWriteArea {
  const folderOrNone = limits.spill === 0 ? undefined : folder;
  return new CopyBeforeWriteArea(new GranulePool(limits.memory * granuleBytes), {
    folder: folderOrNone,
    bytesMax: limits.spill * granuleBytes,
  });
}

/** Granules that tell which they are. */
function granules(first: number, count: number): Buffer {
  const bytes = Buffer.alloc(count * granuleBytes);
  for (let at = 0; at < count; at += 1) bytes.fill(first + at + 1, at * granuleBytes, (at + 1) * granuleBytes);
  return bytes;
}

function raise(): never {
  throw new Error("unreadable");
}
