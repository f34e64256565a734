/** A point as bytes and streams: what they hold, how far ahead they fetch, and how they end. */
import { once } from "node:events";
import { buffer } from "node:stream/consumers";
import { setImmediate as nextTurn } from "node:timers/promises";
import fc from "fast-check";
import { afterAll, describe, expect, test } from "vitest";
import type { Notice } from "../../../../engine/notice.ts";
import type { PointHandle, StreamOptions } from "../../../../engine/recovery/mount/point-handle.ts";
import { FaultySink } from "../../../../sink/faults.ts";
import { contentOf, ModelDisk, openModelVault } from "../../../model-disk.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { closeVaults, type Filled, filledVault, smallCacheBytes, vaultOf } from "./mount-rig.ts";

afterAll(closeVaults);

async function openPoint(
  filled: Filled,
  options: { readonly point?: string; readonly cacheBytes?: number } = {},
): Promise<PointHandle> {
  filled.line.current = filled.sink;
  return await filled.vault.openPoint({ disk: "d", point: "latest", cacheBytes: smallCacheBytes, ...options });
}

async function bytesOf(point: PointHandle, options?: StreamOptions): Promise<Buffer> {
  const pieces: Uint8Array[] = [];
  for await (const piece of point.stream(options)) pieces.push(piece);
  return Buffer.concat(pieces);
}

describe("an open point", () => {
  test("reads as the disk was, whatever ranges and pieces are asked for", async () => {
    const filled = await filledVault();
    await using point = await openPoint(filled, { point: "2" });
    const content = filled.contents[1] ?? Buffer.alloc(0);
    expect(point.sizeBytes).toBe(content.length);
    expect(point.point.sequence).toBe(2);
    expect((await bytesOf(point)).equals(content)).toBe(true);
    await fc.assert(
      fc.asyncProperty(
        fc.nat(content.length),
        fc.nat(content.length),
        fc.integer({ min: 500, max: 200_000 }),
        async (a, b, pieceBytes) => {
          const [offset, end] = a < b ? [a, b] : [b, a];
          const wanted = content.subarray(offset, end);
          expect((await bytesOf(point, { offset, length: end - offset, pieceBytes })).equals(wanted)).toBe(true);
          const into = Buffer.alloc(end - offset);
          await point.read(offset, into);
          expect(into.equals(wanted)).toBe(true);
        },
      ),
      { numRuns: 30 },
    );
  });

  test("is a Node stream, too", async () => {
    const filled = await filledVault();
    await using point = await openPoint(filled);
    expect(
      (await buffer(point.readable({ pieceBytes: 10_000 }))).equals(filled.contents.at(-1) ?? Buffer.alloc(0)),
    ).toBe(true);
  });

  test("is closed with its vault", async () => {
    const filled = await filledVault();
    const vault = await openModelVault(filled.sink);
    const point = await vault.openPoint({ disk: "d", point: "1" });
    await vault.close();
    expect(point.isClosed).toBe(true);
    expect(await namesIn(filled.sink, "disks/d/holds/")).toEqual([]);
    await expectCode(vault.openPoint({ disk: "d", point: "1" }), "INVALID_ARGUMENT");
  });

  test("is held until it is closed", async () => {
    const filled = await filledVault();
    const point = await openPoint(filled, { point: "1" });
    expect(await namesIn(filled.sink, "disks/d/holds/")).toHaveLength(1);
    await point.close();
    await point.close();
    expect(point.isClosed).toBe(true);
    expect(await namesIn(filled.sink, "disks/d/holds/")).toEqual([]);
    await expectCode(point.read(0, new Uint8Array(1)), "DEVICE_FAILED");
    await expectCode(bytesOf(point), "DEVICE_FAILED");
  });

  test("refuses ranges outside the disk, and pieces of no length", async () => {
    const filled = await filledVault();
    await using point = await openPoint(filled);
    const { sizeBytes } = point;
    await expectCode(point.read(sizeBytes, new Uint8Array(1)), "INVALID_ARGUMENT");
    for (const options of [
      { offset: -1 },
      { offset: sizeBytes + 1 },
      { offset: 1, length: sizeBytes },
      { pieceBytes: 0 },
    ]) {
      expect(() => point.stream(options)).toThrow(expect.objectContaining({ code: "INVALID_ARGUMENT" }));
    }
    expect(await bytesOf(point, { offset: sizeBytes })).toHaveLength(0);
  });
});

/** A disk of 8 MiB of data. */
async function largeVault(): Promise<Filled> {
  return await vaultOf("large", new ModelDisk(contentOf(8 * 1024 * 1024, 3)));
}

describe("a stream", () => {
  test("fetches ahead of a slow consumer, and no more than the cache holds", async () => {
    const filled = await largeVault();
    const cacheBytes = 1024 * 1024;
    await using point = await openPoint(filled, { cacheBytes });
    let [fetchedBytes, takenBytes, leadBytesMax] = [0, 0, 0];
    const readPages = filled.sink.readPages.bind(filled.sink);
    filled.sink.readPages = async (name, offset, into, options) => {
      fetchedBytes += into.length;
      leadBytesMax = Math.max(leadBytesMax, fetchedBytes - takenBytes);
      await readPages(name, offset, into, options);
    };
    for await (const piece of point.stream({ pieceBytes: 64 * 1024 })) {
      takenBytes += piece.length;
      for (let turn = 0; turn < 50; turn += 1) await nextTurn();
    }
    expect(takenBytes).toBe(point.sizeBytes);
    expect(leadBytesMax).toBeGreaterThan(64 * 1024);
    expect(leadBytesMax).toBeLessThan(cacheBytes);
  });

  test("asks for no hole", async () => {
    const disk = new ModelDisk(Buffer.alloc(8 * 1024 * 1024));
    contentOf(4096, 1).copy(disk.bytes, 5_000_000);
    const filled = await vaultOf("holes", disk);
    await using point = await openPoint(filled);
    const sink = new FaultySink(filled.sink, []);
    filled.line.current = sink;
    expect((await bytesOf(point)).equals(disk.bytes)).toBe(true);
    expect(sink.calls.filter((call) => call.startsWith("readPages"))).toHaveLength(1);
  });

  test("that its consumer leaves ends there, and the point can be read on", async () => {
    const filled = await largeVault();
    await using point = await openPoint(filled);
    for await (const piece of point.stream({ pieceBytes: 4096 })) {
      expect(piece).toHaveLength(4096);
      break;
    }
    const stream = point.readable();
    await once(stream, "data");
    stream.destroy();
    await once(stream, "close");
    expect(
      (await bytesOf(point, { length: 9000 })).equals((filled.contents[0] ?? Buffer.alloc(0)).subarray(0, 9000)),
    ).toBe(true);
  });

  test("ends with INTERRUPTED when it is aborted", async () => {
    const filled = await largeVault();
    await using point = await openPoint(filled);
    const abort = new AbortController();
    const pieces = point.stream({ signal: abort.signal, pieceBytes: 4096 });
    await pieces.next();
    abort.abort();
    await expectCode(pieces.next(), "INTERRUPTED");
  });

  test("hands out nothing that is not what the point held", async () => {
    const filled = await largeVault();
    const notices: Notice[] = [];
    filled.line.current = filled.sink;
    const [segment = ""] = await namesIn(filled.sink, "segments/");
    const { sequenceNumber } = await filled.sink.statPages(segment);
    const spoiled = new Uint8Array(512).fill(0xee);
    await filled.sink.writePages(segment, 1024 * 1024, spoiled, { sequenceNumber });
    await using point = await filled.vault.openPoint({
      disk: "d",
      point: "latest",
      onNotice: (notice) => notices.push(notice),
    });
    const pieces: Uint8Array[] = [];
    const reading = (async () => {
      for await (const piece of point.stream({ pieceBytes: 16 * 1024 })) pieces.push(piece);
    })();
    await expectCode(reading, "DAMAGED");
    const taken = Buffer.concat(pieces);
    expect(taken.length).toBeGreaterThan(0);
    expect(taken.equals((filled.contents[0] ?? Buffer.alloc(0)).subarray(0, taken.length))).toBe(true);
    expect(notices.map(({ code }) => code)).toContain("POINT_DAMAGED");
  });
});
