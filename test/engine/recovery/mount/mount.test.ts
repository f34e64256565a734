/**
 * A point that is mounted: it reads as what it is, from wherever one begins, and costs no more than
 * what is asked for.
 */

import { setImmediate as nextTurn } from "node:timers/promises";
import fc from "fast-check";
import { afterAll, describe, expect, onTestFinished, test, vi } from "vitest";
import { hasCode, TidemarkError } from "../../../../engine/errors.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import { PointMap } from "../../../../engine/store/map/point-map.ts";
import { Vault } from "../../../../engine/vault.ts";
import type { Extent, Volume } from "../../../../engine/volume.ts";
import { FaultySink, Gate } from "../../../../sink/faults.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { runsOf } from "../../../depth.ts";
import { modelEncryption } from "../../../encrypted.ts";
import { namesOf, numbersFrom } from "../../../engine-model.ts";
import { contentOf, ModelDisk, modelBlockBytes, openModelVault } from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { flipPage, shortenPages, storedName, tamperObject } from "../../upkeep/scrub/tamper.ts";
import {
  allExtents,
  closeVaults,
  extentsOf,
  filledVault,
  mounted,
  readAll,
  readRange,
  smallCacheBytes,
  vaultOf,
} from "./mount-rig.ts";

const mib = 1024 * 1024;
const gib = 1024 * mib;
afterAll(closeVaults);

const segment = "segments/d/00000001-0-00000000";

test("every point of a disk reads as what it is", async () => {
  const filled = await filledVault();
  const { contents } = filled;
  for (const [index, content] of contents.entries()) {
    const { device } = await mounted(filled, { point: String(index + 1) });
    expect(device.sizeBytes).toBe(content.length);
    expect((await readAll(device)).equals(content)).toBe(true);
  }
});

test.each([0, 1, 4097])("a disk of %i bytes can be mounted", async (sizeBytes) => {
  const filled = await filledVault({ sizeBytes, points: 1 });
  const { contents } = filled;
  const { device } = await mounted(filled);
  expect((await readAll(device)).equals(contents[0] ?? Buffer.alloc(0))).toBe(true);
});

test("reads of any place and length, many at a time, give what the point holds, whatever the cache has room for", async () => {
  const filled = await filledVault({ sizeBytes: 1_500_000 });
  const { contents } = filled;
  const { device, mount } = await mounted(filled, { cacheBytes: smallCacheBytes });
  const content = contents.at(-1) ?? Buffer.alloc(0);
  const range = fc.tuple(fc.nat(content.length - 1), fc.oneof(fc.nat(9000), fc.nat(400_000)));
  await fc.assert(
    fc.asyncProperty(fc.array(range, { minLength: 1, maxLength: 12 }), async (ranges) => {
      await Promise.all(
        ranges.map(async ([offset, length]) => {
          const end = Math.min(content.length, offset + length);
          expect((await readRange(device, offset, end - offset)).equals(content.subarray(offset, end))).toBe(true);
        }),
      );
      expect(mount.summary().cachedBytes).toBeLessThanOrEqual(smallCacheBytes);
    }),
    { numRuns: runsOf(60) },
  );
});

test("the first read fetches what it needs and little more, however large the disk", async () => {
  const filled = await vaultOf("dense", new ModelDisk(contentOf(3 * mib, 1)));
  const { device, mount } = await mounted(filled);
  expect(mount.summary().bytesFetched).toBe(0);
  await readRange(device, 2 * mib, granuleBytes);
  expect(mount.summary()).toMatchObject({ bytesRead: granuleBytes, cacheHits: 0, cacheMisses: 1 });
  expect(mount.summary().bytesFetched).toBeLessThanOrEqual(modelBlockBytes + 8);
});

test("a disk of a tebibyte is mounted and read as fast as a small one, and its holes cost nothing", async () => {
  const tebibyte = 2 ** 40;
  const places = [0, 333 * gib, tebibyte - mib];
  const disk = new SparseDisk(tebibyte, places);
  const vault = await openModelVault(new MemorySink());
  await vault.replicate({ disk: "d", volume: disk });
  const mount = await vault.mount({ disk: "d", point: "latest", writable: true });
  for (const place of places)
    expect((await readRange(mount.device, place + 5000, 4096)).every((byte) => byte === 7)).toBe(true);
  expect((await readRange(mount.device, 500 * gib, 32 * mib)).equals(Buffer.alloc(32 * mib))).toBe(true);
  expect(mount.summary().bytesFetched).toBeLessThan(mib);
  const windows = vi.spyOn(PointMap.prototype, "window");
  onTestFinished(() => windows.mockRestore());
  expect((await mount.device.lookUp?.(0, tebibyte, 10))?.map(({ kind, offset }) => [kind, offset])).toEqual([
    ["data", 0],
    ["hole", mib],
    ["data", 333 * gib],
    ["hole", 333 * gib + mib],
    ["data", tebibyte - mib],
  ]);
  // The rest of the disk costs one question, not one for each part of it.
  expect(windows.mock.calls.length).toBeLessThan(10);
  await mount.device.trim(gib, 100 * gib);
  await mount.device.write(50 * gib, Buffer.alloc(4096, 1));
  expect((await extentsOf(mount.device, 0, 200 * gib)).map(({ kind, offset }) => [kind, offset])).toEqual([
    ["data", 0],
    ["hole", mib],
    ["hole", gib],
    ["data", 50 * gib],
    ["hole", 50 * gib + 4096],
    ["hole", 101 * gib],
  ]);
  await mount.close();
});

test("what was read once is answered at once, without the store", async () => {
  const filled = await filledVault();
  const faulty = new FaultySink(filled.sink, []);
  const { device, mount } = await mounted(filled, {}, faulty);
  const first = await readRange(device, 5000, 70_000);
  const calls = faulty.calls.length;
  const again = Buffer.alloc(70_000);
  expect(device.tryRead(5000, again)).toBe(true);
  expect(again.equals(first)).toBe(true);
  expect(faulty.calls).toHaveLength(calls);
  expect(mount.summary().cacheHits).toBe(5);
});

test("many readers of one block cause one fetch", async () => {
  const filled = await filledVault();
  const { contents } = filled;
  const faulty = new FaultySink(filled.sink, []);
  const { device } = await mounted(filled, {}, faulty);
  const reads = await Promise.all(
    Array.from({ length: 20 }, async (_, index) => await readRange(device, 100 * index, 50)),
  );
  expect(faulty.calls.filter((call) => call.startsWith("readPages"))).toHaveLength(1);
  for (const [index, bytes] of reads.entries())
    expect(bytes.equals(contents[2]?.subarray(100 * index, 100 * index + 50) ?? bytes)).toBe(true);
});

test("no object of the map is fetched twice, however many places are read at a time", async () => {
  const filled = await filledVault();
  const faulty = new FaultySink(filled.sink, []);
  const { device } = await mounted(filled, {}, faulty);
  await Promise.all(
    Array.from({ length: 24 }, async (_, index) => await readRange(device, index * modelBlockBytes, 4096)),
  );
  const fetched = faulty.calls.filter((call) => call.startsWith("getObject disks/d/map/"));
  expect(fetched.length).toBeGreaterThan(1);
  expect(fetched).toHaveLength(new Set(fetched).size);
});

test("neighbours that are wanted at one time are fetched together", async () => {
  const filled = await filledVault({ points: 1 });
  const faulty = new FaultySink(filled.sink, []);
  const { device } = await mounted(filled, {}, faulty);
  await readRange(device, 0, 8 * modelBlockBytes);
  expect(faulty.calls.filter((call) => call.startsWith("readPages"))).toHaveLength(1);
});

/** A disk of holes with a mebibyte of sevens at each of `places`. */
class SparseDisk implements Volume {
  readonly description = "a sparse disk";
  readonly #sizeBytes: number;
  readonly #places: readonly number[];

  constructor(sizeBytes: number, places: readonly number[]) {
    this.#sizeBytes = sizeBytes;
    this.#places = places;
  }

  sizeBytes(): Promise<number> {
    return Promise.resolve(this.#sizeBytes);
  }

  read(_offset: number, into: Uint8Array): Promise<void> {
    into.fill(7);
    return Promise.resolve();
  }

  async *allocated(): AsyncGenerator<Extent> {
    for (const offset of this.#places) yield await Promise.resolve({ offset, length: mib });
  }
}

/** A disk of data that nothing makes smaller, and of which no two places are alike. */
class NoisyDisk implements Volume {
  readonly description = "a disk of noise";
  readonly #sizeBytes: number;

  constructor(sizeBytes: number) {
    this.#sizeBytes = sizeBytes;
  }

  sizeBytes(): Promise<number> {
    return Promise.resolve(this.#sizeBytes);
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    const words = new Uint32Array(into.buffer, into.byteOffset, into.byteLength / 4);
    for (let word = 0; word < words.length; word += 1) {
      const mixed = Math.imul(offset / 4 + word + 1, 0x9e3779b1);
      words[word] = Math.imul(mixed ^ (mixed >>> 15), 0x85ebca77) ^ (mixed >>> 13);
    }
    return Promise.resolve();
  }

  async *allocated(): AsyncGenerator<Extent> {
    yield await Promise.resolve({ offset: 0, length: this.#sizeBytes });
  }
}

describe("a reader that goes on", () => {
  async function readsInARow(
    offsets: readonly number[],
    lengthBytes: number,
  ): Promise<{ fetched: number; calls: number; read: number }> {
    const filled = await vaultOf("long", new ModelDisk(contentOf(8 * mib, 1)));
    const faulty = new FaultySink(filled.sink, []);
    const { device, mount } = await mounted(filled, {}, faulty);
    for (const offset of offsets) await readRange(device, offset, lengthBytes);
    await mount.close();
    const { bytesFetched, bytesRead } = mount.summary();
    return {
      fetched: bytesFetched,
      read: bytesRead,
      calls: faulty.calls.filter((call) => call.startsWith("readPages")).length,
    };
  }

  test("from front to back is fetched for in ranges that are larger than its reads", async () => {
    const { calls, read } = await readsInARow(
      Array.from({ length: 512 }, (_, index) => index * 16_384),
      16_384,
    );
    expect(read).toBe(8 * mib);
    expect(calls).toBeLessThan(60);
  });

  test("is fetched for in long ranges where a writer spread the disk over segments, and nothing twice, however small the cache", async () => {
    const sizeBytes = 64 * mib;
    const sink = new MemorySink();
    // The first frames wait for one another: one lane would do otherwise.
    const lanes = new Set<string>();
    const gate = new Gate();
    const write = sink.writePages.bind(sink);
    sink.writePages = async (name, ...rest) => {
      if (lanes.add(name).size === 3) gate.open();
      await gate.pass(undefined);
      return await write(name, ...rest);
    };
    const vault = await Vault.create(sink, { workers: 1, lanes: 4, ...modelEncryption });
    onTestFinished(async () => await vault.close());
    const volume = new NoisyDisk(sizeBytes);
    await vault.replicate({ disk: "d", volume });
    expect((await namesOf(sink, "segments/")).length).toBeGreaterThanOrEqual(3);
    for (const [cacheBytes, readBytes, meanBytesMin] of [
      [256 * mib, sizeBytes, 2.6 * mib],
      [6 * mib, 16 * mib, 0],
    ] as const) {
      const faulty = new FaultySink(sink, []);
      const reading = await Vault.open(faulty, { workers: 1, ...modelEncryption });
      const mount = await reading.mount({ disk: "d", point: "latest", cacheBytes });
      const [wanted, found] = [Buffer.alloc(mib), Buffer.alloc(mib)];
      for (let at = 0; at < readBytes; at += mib) {
        if (!mount.device.tryRead(at, found)) await mount.device.read(at, found);
        await volume.read(at, wanted);
        expect(found.equals(wanted)).toBe(true);
      }
      const { bytesFetched } = mount.summary();
      const ranges = faulty.calls.filter((call) => call.startsWith("readPages")).length;
      expect(bytesFetched / ranges).toBeGreaterThan(meanBytesMin);
      // Besides what is read that little of a cache holds what comes next.
      expect(bytesFetched).toBeLessThan(Math.min(sizeBytes, readBytes + cacheBytes / 2) * 1.01);
      await reading.close();
    }
  });

  test("here and there is fetched nothing for in advance", async () => {
    const offsets = Array.from({ length: 100 }, (_, index) => ((index * 37) % 512) * 16_384);
    const { calls, fetched, read } = await readsInARow(offsets, 4096);
    expect(calls).toBeLessThanOrEqual(100);
    expect(fetched).toBeLessThan(read * 5);
  });
});

describe("extents", () => {
  test("tell data, holes and zeros as the map has them", async () => {
    const disk = new ModelDisk(Buffer.alloc(20 * modelBlockBytes + 100));
    disk.bytes.fill(1, 2 * modelBlockBytes, 6 * modelBlockBytes);
    disk.bytes.fill(1, 20 * modelBlockBytes);
    const filled = await vaultOf("sparse", disk, 2, () => disk.bytes.fill(0, 3 * modelBlockBytes, 4 * modelBlockBytes));
    const { device } = await mounted(filled);
    await device.lookUp?.(0, device.sizeBytes, 1);
    const wanted = [
      ["hole", 0, 2],
      ["data", 2, 1],
      ["hole", 3, 1],
      ["data", 4, 2],
      ["hole", 6, 14],
    ] as const;
    const blocks = wanted.map(([kind, from, count]) => ({
      kind,
      offset: from * modelBlockBytes,
      length: count * modelBlockBytes,
    }));
    const tail = { kind: "data", offset: 20 * modelBlockBytes, length: 100 };
    expect(device.extents(0, device.sizeBytes, 100)).toEqual([...blocks, tail]);
    expect(device.extents(0, device.sizeBytes, 2)).toEqual(blocks.slice(0, 2));
    expect(device.extents(2 * modelBlockBytes + 5, 10, 100)).toEqual([
      { kind: "data", offset: 2 * modelBlockBytes + 5, length: 10 },
    ]);
  });

  test("are nowhere guessed: what is not known yet is looked up, and known from then on", async () => {
    const filled = await filledVault();
    const gate = new Gate();
    const slow = new FaultySink(filled.sink, [
      { on: "getObject", prefix: "disks/d/map/", when: 1, fault: { kind: "slow", gate } },
    ]);
    const { device } = await mounted(filled, {}, slow);
    expect(device.extents(0, device.sizeBytes, 100)).toEqual([]);
    const looking = device.lookUp?.(0, device.sizeBytes, 100);
    gate.open();
    const found = (await looking) ?? [];
    expect(device.extents(0, device.sizeBytes, 100)).toEqual(found);
    expect(found.some(({ kind }) => kind === "hole")).toBe(true);
    const content = filled.contents[2] ?? Buffer.alloc(0);
    for (const { kind, offset, length } of found) {
      const isZero = content.subarray(offset, offset + length).every((byte) => byte === 0);
      if (kind === "hole") expect(isZero).toBe(true);
    }
    slow.assertAllFired();
  });

  test("are told exactly however many there are, and however much of the disk is asked for", async () => {
    const sizeBytes = 5 * gib;
    const places = Array.from({ length: 60 }, (_, index) => index * 85 * mib + mib);
    const vault = await openModelVault(new MemorySink());
    await vault.replicate({ disk: "d", volume: new SparseDisk(sizeBytes, places) });
    const { device } = await vault.mount({ disk: "d", point: "latest", writable: true });
    await device.write(4 * gib + 4096, Buffer.alloc(4096, 1));
    const data = (await allExtents(device, 7)).filter(({ kind }) => kind === "data");
    const written = { offset: 4 * gib + 4096, length: 4096, kind: "data" } as const;
    const wanted = [...places.map((offset) => ({ offset, length: mib, kind: "data" }) as const), written];
    expect(data).toEqual(wanted.sort((a, b) => a.offset - b.offset));
    // Neither are they looked up any more once it is over.
    const again = await vault.mount({ disk: "d", point: "latest" });
    const late = expectCode(again.device.lookUp?.(0, sizeBytes, 1000) ?? Promise.resolve(), "INTERRUPTED");
    await again.close();
    await late;
    await expectCode(again.device.lookUp?.(0, 4096, 1) ?? Promise.resolve(), "DEVICE_FAILED");
  });

  test("that cannot be looked up are an error, and are looked up again by the next reader", async () => {
    const filled = await filledVault();
    const away = new TidemarkError("STORE_UNREACHABLE", "the store is away");
    const faulty = new FaultySink(filled.sink, [
      { on: "getObject", prefix: "disks/d/map/", when: { probability: 1 }, fault: { kind: "refused", error: away } },
    ]);
    const { device } = await mounted(filled, {}, faulty);
    await expectCode(device.lookUp?.(0, 4096, 1) ?? Promise.resolve(), "STORE_UNREACHABLE");
    filled.line.current = filled.sink;
    expect(await device.lookUp?.(0, 4096, 1)).toHaveLength(1);
  });
});

describe("damage", () => {
  test("of a chunk fails reads of its granules, is told once, and costs other reads nothing", async () => {
    const filled = await filledVault({ points: 1 });
    const { store, contents } = filled;
    // Behind the frame's header: the first chunk, which is the disk's first block.
    flipPage(store, segment, 200);
    const { device, notices } = await mounted(filled);
    const error = await expectCode(readRange(device, 0, 4096), "DAMAGED");
    expect(error.detail).toMatchObject({ disk: "d", point: "1", offset: 0, object: storedName(store, segment) });
    await expectCode(readRange(device, 4000, 20_000), "DAMAGED");
    const rest = await readRange(device, modelBlockBytes, 10 * modelBlockBytes);
    expect(rest.equals(contents[0]?.subarray(modelBlockBytes, 11 * modelBlockBytes) ?? rest)).toBe(true);
    expect(notices.map(({ code }) => code)).toEqual(["POINT_DAMAGED"]);
    expect(notices[0]?.message).toContain("point 1 of disk");
    expect(notices[0]?.message).toContain(`bytes 0 to ${modelBlockBytes}`);
  });

  test("that is healed is not remembered", async () => {
    const filled = await filledVault({ points: 1 });
    const { store, contents } = filled;
    flipPage(store, segment, 200);
    const { device } = await mounted(filled);
    await expectCode(readRange(device, 0, 4096), "DAMAGED");
    flipPage(store, segment, 200);
    expect((await readRange(device, 0, 4096)).equals(contents[0]?.subarray(0, 4096) ?? Buffer.alloc(0))).toBe(true);
  });

  test("of a segment's end fails what lay there, and the rest is read", async () => {
    const filled = await filledVault({ points: 1 });
    const { store, contents } = filled;
    shortenPages(store, segment, 65_536);
    const { device } = await mounted(filled);
    expect((await readRange(device, 0, 4096)).equals(contents[0]?.subarray(0, 4096) ?? Buffer.alloc(0))).toBe(true);
    await expectCode(readRange(device, 396_000, 4000), "DAMAGED");
  });

  test("of the map fails reads and is named", async () => {
    const filled = await filledVault({ points: 1 });
    const { store } = filled;
    const [leaf = ""] = await namesOf(filled.sink, "disks/d/map/");
    tamperObject(store, leaf, "removed", store);
    const { device, notices } = await mounted(filled);
    const error = await expectCode(readRange(device, 0, 50_000), "DAMAGED");
    expect(error.detail["object"]).toBe(leaf);
    expect(notices.length).toBeGreaterThan(0);
  });

  test("of the manifest ends the mounting, and leaves no hold", async () => {
    const filled = await filledVault({ points: 1 });
    const { store } = filled;
    tamperObject(store, "disks/d/points/00000001-00000001", "removed", store);
    await expectCode(mounted(filled), "DAMAGED");
    expect(await namesOf(filled.sink, "disks/d/holds/")).toEqual([]);
  });
});

test("a store that cannot be reached fails the read, and the next one tries again", async () => {
  const filled = await filledVault();
  const { contents } = filled;
  const away = new TidemarkError("STORE_UNREACHABLE", "the store is away");
  const faulty = new FaultySink(filled.sink, [{ on: "readPages", when: 1, fault: { kind: "refused", error: away } }]);
  const { device, notices } = await mounted(filled, {}, faulty);
  await expectCode(readRange(device, 0, 4096), "STORE_UNREACHABLE");
  expect((await readRange(device, 0, 4096)).equals(contents[2]?.subarray(0, 4096) ?? Buffer.alloc(0))).toBe(true);
  expect(notices).toEqual([]);
  faulty.assertAllFired();
});

test("with a store that fails every third call, reads fail or are right, those that are repeated succeed, and memory stays bounded", async () => {
  const filled = await filledVault({ sizeBytes: 1_500_000 });
  const content = filled.contents.at(-1) ?? Buffer.alloc(0);
  const fault = { kind: "refused", error: new TidemarkError("STORE_UNREACHABLE", "the store is away") } as const;
  const faulty = new FaultySink(filled.sink, [
    { on: "readPages", when: { probability: 0.3 }, fault },
    { on: "getObject", prefix: "disks/d/map/", when: { probability: 0.3 }, fault },
  ]);
  const { device, mount } = await mounted(filled, { cacheBytes: smallCacheBytes }, faulty);
  const next = numbersFrom(5);
  const failures: unknown[] = [];
  for (let round = 0; round < 30; round += 1) {
    await Promise.all(
      Array.from({ length: 6 }, async () => {
        const offset = next() % content.length;
        const length = Math.min(content.length - offset, next() % (round % 2 === 0 ? 5000 : 300_000));
        for (let isDone = false; !isDone; ) {
          const [outcome] = await Promise.allSettled([readRange(device, offset, length)]);
          isDone = outcome.status === "fulfilled";
          if (outcome.status === "fulfilled")
            expect(outcome.value.equals(content.subarray(offset, offset + length))).toBe(true);
          else failures.push(outcome.reason);
        }
      }),
    );
    expect(mount.summary().cachedBytes).toBeLessThanOrEqual(smallCacheBytes);
  }
  expect(failures.length).toBeGreaterThan(5);
  for (const failure of failures) expect(hasCode(failure, "STORE_UNREACHABLE"), String(failure)).toBe(true);
});

test.each([16, 90, 600])(
  "that read on at the same time get what is there, with a store that fails now and then and a cache of %i blocks",
  async (blocks) => {
    const filled = await vaultOf("long", new ModelDisk(contentOf(8 * mib, 1)));
    const [content = Buffer.alloc(0)] = filled.contents;
    const fault = { kind: "refused", error: new TidemarkError("STORE_UNREACHABLE", "the store is away") } as const;
    const faulty = new FaultySink(filled.sink, [{ on: "readPages", when: { probability: 0.2 }, fault }]);
    const cacheBytes = blocks * modelBlockBytes;
    const { device, mount } = await mounted(filled, { cacheBytes }, faulty);
    const reader = async (from: number, lengthBytes: number): Promise<void> => {
      for (let at = from; at + lengthBytes <= from + 2 * mib; ) {
        const [outcome] = await Promise.allSettled([readRange(device, at, lengthBytes)]);
        expect(mount.summary().cachedBytes).toBeLessThanOrEqual(cacheBytes);
        if (outcome.status === "rejected") {
          expect(hasCode(outcome.reason, "STORE_UNREACHABLE"), String(outcome.reason)).toBe(true);
          continue;
        }
        expect(outcome.value.equals(content.subarray(at, at + lengthBytes))).toBe(true);
        at += lengthBytes;
      }
    };
    await Promise.all([
      reader(0, 16_384),
      reader(2 * mib, 50_000),
      reader(4 * mib, 131_072),
      reader(6 * mib, 7000),
      reader(3 * mib, 30_000),
    ]);
    faulty.assertAllFired();
  },
);

describe("while it is mounted", () => {
  test("the point is held, and no longer", async () => {
    const filled = await filledVault();
    const { mount } = await mounted(filled, { point: "2" });
    const holds = await namesOf(filled.sink, "disks/d/holds/");
    expect(holds).toEqual([expect.stringMatching(/^disks\/d\/holds\/00000002-[0-9a-f]{32}$/)]);
    await mount.close();
    expect(await namesOf(filled.sink, "disks/d/holds/")).toEqual([]);
  });

  test("a hold that is refused is told, and the point is mounted all the same", async () => {
    const filled = await filledVault();
    const error = new TidemarkError("ACCESS_REFUSED", "read only");
    const readOnly = new FaultySink(filled.sink, [
      { on: "putObject", when: { probability: 1 }, fault: { kind: "refused", error } },
    ]);
    const { device, notices } = await mounted(filled, {}, readOnly);
    expect(notices.map(({ code }) => code)).toEqual(["HOLD_REFUSED"]);
    await readRange(device, 0, 4096);
  });

  test("a hold that is lost is told once, and the mount goes on", async () => {
    vi.useFakeTimers({ toFake: ["setInterval", "clearInterval"] });
    onTestFinished(() => {
      vi.useRealTimers();
    });
    const filled = await filledVault();
    const { device, notices } = await mounted(filled, { point: "2" });
    const [hold = ""] = await namesOf(filled.sink, "disks/d/holds/");
    const listing = await namesOf(filled.sink, "disks/d/points/");
    for (const name of [hold, "disks/d/head", ...listing]) filled.store.objects?.delete(name);
    for (let turn = 0; notices.length === 0 && turn < 10_000; turn += 1) {
      vi.advanceTimersByTime(15_000);
      await nextTurn();
    }
    vi.advanceTimersByTime(60_000);
    expect(notices.map(({ code }) => code)).toEqual(["HOLD_LOST"]);
    expect(notices[0]?.message).toContain("point 2");
    expect((await readRange(device, 0, 4096)).equals(filled.contents[1]?.subarray(0, 4096) ?? Buffer.alloc(0))).toBe(
      true,
    );
  });

  test("it cannot be written", async () => {
    const filled = await filledVault();
    const { device } = await mounted(filled);
    expect(device.readOnly).toBe(true);
    expect(device.tryWrite(0, Buffer.alloc(4096))).toBe(false);
    for (const change of [device.write(0, Buffer.alloc(4096)), device.zero(0, 4096, true), device.trim(0, 4096)]) {
      await expectCode(change, "ACCESS_REFUSED");
    }
  });

  test("closing ends what is under way, and a vault closes what it has mounted", async () => {
    const filled = await filledVault();
    const gate = new Gate();
    const slow = new FaultySink(filled.sink, [{ on: "readPages", when: 1, fault: { kind: "slow", gate } }]);
    const vault = await openModelVault(slow);
    const mount = await vault.mount({ disk: "d", point: "latest" });
    const read = expectCode(readRange(mount.device, 0, 4096), "INTERRUPTED");
    await gate.reached;
    await vault.close();
    await read;
    expect(mount.isClosed).toBe(true);
    await expectCode(readRange(mount.device, 0, 4096), "DEVICE_FAILED");
    expect(await namesOf(filled.sink, "disks/d/holds/")).toEqual([]);
  });
});

test("what does not fit together is refused, with every fault", async () => {
  const filled = await filledVault();
  const error = await expectCode(mounted(filled, { cacheBytes: 1000, overlay: "/nowhere" }), "INVALID_ARGUMENT");
  expect(error.message).toContain("cache of 1000 bytes");
  expect(error.message).toContain("overlay");
  await expectCode(mounted(filled, { point: "17" }), "POINT_NOT_FOUND");
  await expectCode(mounted(filled, { disk: "other" }), "DISK_NOT_FOUND");
});
