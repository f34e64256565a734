import { mkdtempSync, rmSync } from "node:fs";
import { open, readdir, readFile, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, expect, test } from "vitest";
import {
  FingerprintReader,
  FingerprintWriter,
  fingerprintPath,
  pageBytes,
  pageGranules,
  removeOthers,
} from "../../../../engine/disk/source/fingerprints.ts";
import { mountSmallDisk } from "../../../small-disk.ts";

const binding = { vaultId: "a".repeat(32), disk: "wéb/1", point: "0123456789abcdef0123456789abcdef" };
const seed = [0xffffffff, 7] as const;
const granule = 4096;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "fingerprints-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

function print(value: number, count = 1): Uint8Array {
  return new Uint8Array(16 * count).fill(value);
}

async function write(
  puts: readonly (readonly [number, Uint8Array])[],
  volumeBytes: number,
  point = binding.point,
): Promise<string> {
  const writer = await FingerprintWriter.create(folder, { ...binding, seed });
  for (const [first, bytes] of puts) {
    writer.put(first, bytes);
    await writer.drain();
  }
  return writer.finish({ point, volumeBytes });
}

async function openReader(path: string): Promise<FingerprintReader> {
  const opened = await FingerprintReader.open(path, binding);
  if ("reason" in opened) throw new Error(opened.reason);
  return opened.reader;
}

async function reasonFor(path: string, other: Partial<typeof binding> = {}): Promise<string> {
  const opened = await FingerprintReader.open(path, { ...binding, ...other });
  if ("reader" in opened) {
    await opened.reader.close();
    return "";
  }
  return opened.reason;
}

test("what was put is read back, with zeros where nothing was", async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.nat(6000), fc.integer({ min: 1, max: 300 }), fc.integer({ min: 0, max: 3 })), {
        maxLength: 8,
      }),
      fc.nat(5000),
      async (steps, tail) => {
        const puts: [number, Uint8Array][] = [];
        let at = 0;
        for (const [gap, count, value] of steps) {
          at += gap;
          puts.push([at, print(value, count)]);
          at += count;
        }
        const granules = at + tail;
        const model = new Uint8Array(Math.ceil(granules / pageGranules) * pageBytes);
        for (const [first, bytes] of puts) model.set(bytes, first * 16);
        const reader = await openReader(await write(puts, granules * granule));
        try {
          expect(reader.granules).toBe(granules);
          expect(reader.seed).toEqual(seed);
          const nonzero = [...reader.nonzeroPages()];
          for (let page = 0; page < reader.pages; page += 1) {
            const wanted = model.subarray(page * pageBytes, (page + 1) * pageBytes);
            expect(Buffer.compare(await reader.page(page), wanted)).toBe(0);
            expect(nonzero.includes(page)).toBe(wanted.some((byte) => byte !== 0));
          }
        } finally {
          await reader.close();
        }
      },
    ),
    { numRuns: 30 },
  );
});

test("a volume of 1 TiB that holds little costs little", async () => {
  const path = await write(
    [
      [5, print(1)],
      [200_000_000, print(2)],
    ],
    2 ** 40,
  );
  const { blocks } = await stat(path);
  expect(blocks * 512).toBeLessThan(1024 * 1024);
  const reader = await openReader(path);
  expect([...reader.nonzeroPages()]).toEqual([0, Math.floor(200_000_000 / pageGranules)]);
  await reader.close();
});

test("an empty volume has fingerprints too", async () => {
  const reader = await openReader(await write([], 0));
  expect([reader.granules, reader.pages, reader.volumeBytes]).toEqual([0, 0, 0]);
  await reader.close();
});

test("a file about another vault, disk or point, or none at all, is not used", async () => {
  const path = await write([[0, print(1)]], granule);
  expect(await reasonFor(path)).toBe("");
  for (const other of [{ vaultId: "b" }, { disk: "web" }, { point: "f" }])
    expect(await reasonFor(path, other)).toMatch(/another vault, disk or point/);
  expect(await reasonFor(join(folder, "none"))).toBe("there is none");
  expect(await reasonFor(folder)).not.toBe("");
});

test("a flipped bit anywhere is found when the file is opened or its page read", async () => {
  const path = await write([[0, print(1, pageGranules + 10)]], (pageGranules + 10) * granule);
  const good = await readFile(path);
  for (let at = 0; at < good.length; at += 997) {
    const bad = Buffer.from(good);
    bad[at] = (bad[at] ?? 0) ^ 0x10;
    await writeFile(path, bad);
    if ((await reasonFor(path)) !== "") continue;
    const reader = await openReader(path);
    await expect(reader.page(Math.floor((at - 4096) / pageBytes))).rejects.toMatchObject({ code: "DAMAGED" });
    await reader.close();
  }
});

test("a file that is cut short or torn is not used", async () => {
  const path = await write([[0, print(1, 10)]], 10 * granule);
  const { size } = await stat(path);
  for (const length of [size - 1, 4096, 100, 0]) {
    await truncate(path, length);
    expect(await reasonFor(path)).not.toBe("");
  }
  await truncate(path, size);
  expect(await reasonFor(path)).not.toBe("");
});

test("a page that was lost in a power failure reads as damaged, and stays so when asked again", async () => {
  const path = await write([[0, print(1, 10)]], 10 * granule);
  const file = await open(path, "r+");
  await file.write(Buffer.alloc(pageBytes), 0, pageBytes, 4096);
  await file.close();
  const reader = await openReader(path);
  for (let ask = 0; ask < 2; ask += 1) await expect(reader.page(0)).rejects.toMatchObject({ code: "DAMAGED" });
  await reader.close();
});

test("an unfinished file never bears the final name, and discarding it twice leaves nothing", async () => {
  const writer = await FingerprintWriter.create(folder, { ...binding, seed });
  writer.put(0, print(1, pageGranules * 3));
  expect((await readdir(folder)).some((name) => name.startsWith("fingerprints-"))).toBe(false);
  await writer.discard();
  await writer.discard();
  expect(await readdir(folder)).toEqual([]);
});

test("finishing leaves the older points' files until they are removed, and discarding afterwards does nothing", async () => {
  await write([[0, print(1)]], granule, "older");
  const writer = await FingerprintWriter.create(folder, { ...binding, seed });
  const path = await writer.finish({ point: "newer", volumeBytes: granule });
  await writer.discard();
  expect(path).toBe(fingerprintPath(folder, "newer"));
  await writeFile(join(folder, "fingerprints.partial-1-1"), "left by a killed run");
  await writeFile(join(folder, "state.json"), "{}");
  expect((await readdir(folder)).length).toBe(4);
  await removeOthers(folder, "newer");
  expect((await readdir(folder)).sort()).toEqual(["fingerprints-newer", "state.json"]);
});

test("two writers of one process do not touch each other's file", async () => {
  const first = await FingerprintWriter.create(folder, { ...binding, seed });
  const second = await FingerprintWriter.create(folder, { ...binding, seed });
  first.put(0, print(1));
  second.put(0, print(2));
  const path = await second.finish({ point: binding.point, volumeBytes: granule });
  await first.discard();
  const reader = await openReader(path);
  expect((await reader.page(0))[0]).toBe(2);
  await reader.close();
});

test("fingerprints out of order are a mistake of the caller", async () => {
  const writer = await FingerprintWriter.create(folder, { ...binding, seed });
  writer.put(10, print(1, 5));
  expect(() => {
    writer.put(14, print(1));
  }).toThrow(/come after/);
  await writer.discard();
});

test("a state folder that is absent gives a typed error", async () => {
  await expect(FingerprintWriter.create(join(folder, "none"), { ...binding, seed })).rejects.toMatchObject({
    code: "TARGET_FAILED",
  });
});

test("a state folder that is full gives NO_SPACE at the end at the latest, and leaves discard working", async ({
  skip,
}) => {
  const disk = mountSmallDisk(join(folder, "small"), 256 * 1024);
  if ("reason" in disk) {
    skip(disk.reason);
    return;
  }
  try {
    const writer = await FingerprintWriter.create(disk.path, { ...binding, seed });
    writer.put(0, print(1, pageGranules * 8));
    await expect(
      writer.finish({ point: binding.point, volumeBytes: pageGranules * 8 * granule }),
    ).rejects.toMatchObject({
      code: "NO_SPACE",
    });
    await writer.discard();
    expect(await readdir(disk.path)).toEqual([]);
  } finally {
    disk.unmount();
  }
});
