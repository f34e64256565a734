/**
 * A disk on top of one that cannot be written: it holds what was written to it, and nothing of it
 * gets below.
 */

import { createHash } from "node:crypto";
import { existsSync, mkdirSync, readdirSync, readFileSync, statSync, truncateSync, writeFileSync } from "node:fs";
import { open } from "node:fs/promises";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import fc from "fast-check";
import { afterAll, describe, expect, onTestFinished, test } from "vitest";
import { LiveFile } from "../../../../engine/disk/source/live-file.ts";
import type { PositionalFile } from "../../../../engine/disk/source/positional-file.ts";
import { encodePage } from "../../../../engine/disk/tracking/tracking-format.ts";
import { hasCode } from "../../../../engine/errors.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import { OverlaidDisk } from "../../../../engine/recovery/mount/overlaid-disk.ts";
import { OverlayFile } from "../../../../engine/recovery/mount/overlay-file.ts";
import type { OverlayIdentity } from "../../../../engine/recovery/mount/overlay-header.ts";
import { runsOf } from "../../../depth.ts";
import { contentOf } from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { mountSmallDisk } from "../../../small-disk.ts";
import { MemoryDisk } from "../../disk/nbd/server-rig.ts";
import { allExtents, closeVaults, filledVault, mounted, readAll, readRange, temporaryFolder } from "./mount-rig.ts";

afterAll(closeVaults);

/** Twenty granules and a part of one. */
const sizeBytes = 20 * granuleBytes + 100;

const identity: OverlayIdentity = { vault: "1".repeat(32), disk: "web", point: "2".repeat(32), sizeBytes };

function belowDisk(bytes: Buffer = contentOf(sizeBytes, 5)): MemoryDisk {
  const below = new MemoryDisk(bytes.byteLength, { readOnly: true });
  below.bytes = Buffer.from(bytes);
  return below;
}

async function temporaryDisk(
  below: MemoryDisk = belowDisk(),
  folder: string = temporaryFolder(),
): Promise<OverlaidDisk> {
  const disk = new OverlaidDisk(below, await OverlayFile.temporary(folder, below.sizeBytes));
  onTestFinished(async () => await disk.close());
  return disk;
}

async function keptDisk(path: string, below: MemoryDisk = belowDisk()): Promise<OverlaidDisk> {
  return new OverlaidDisk(below, await OverlayFile.open(path, identity));
}

/** As a server does: at once if that can be had. */
async function write(disk: OverlaidDisk, offset: number, bytes: Uint8Array): Promise<void> {
  if (!disk.tryWrite(offset, bytes)) await disk.write(offset, bytes);
}

type Change = {
  readonly kind: "write" | "zero" | "trim" | "read";
  readonly offset: number;
  readonly length: number;
  readonly seed: number;
};

/** Ranges that like the boundaries of granules. */
function changeOf(lengthMax: number): fc.Arbitrary<Change> {
  const place = fc.oneof(
    fc.nat(sizeBytes - 1),
    fc.nat(20).map((granule) => granule * granuleBytes),
  );
  const length = fc.oneof(
    fc.nat(lengthMax),
    fc.nat(5).map((granules) => granules * granuleBytes),
    fc.constant(sizeBytes),
  );
  return fc
    .record({
      kind: fc.constantFrom("write", "write", "zero", "trim", "read"),
      offset: place,
      length,
      seed: fc.nat(255),
    })
    .map(({ kind, offset, length: wanted, seed }) => ({
      kind,
      offset,
      length: Math.min(wanted, sizeBytes - offset),
      seed,
    }));
}

/** Makes a change to both disk and model. */
async function apply(disk: OverlaidDisk, model: Buffer, { kind, offset, length, seed }: Change): Promise<void> {
  const end = offset + length;
  switch (kind) {
    case "write": {
      const bytes = contentOf(length, seed + 1);
      bytes.copy(model, offset);
      await write(disk, offset, bytes);
      return;
    }
    case "zero":
      model.fill(0, offset, end);
      await disk.zero(offset, length);
      return;
    case "trim": {
      await disk.trim(offset, length);
      const first = Math.ceil(offset / granuleBytes) * granuleBytes;
      const last = end === sizeBytes ? end : Math.floor(end / granuleBytes) * granuleBytes;
      if (last > first) model.fill(0, first, last);
      return;
    }
    case "read":
      expect((await readRange(disk, offset, length)).equals(model.subarray(offset, end))).toBe(true);
  }
}

describe("an overlaid disk", () => {
  test("holds what an array of bytes would hold, and its extents call nothing a hole that is none", async () => {
    const folder = temporaryFolder();
    await fc.assert(
      fc.asyncProperty(fc.array(changeOf(20_000), { maxLength: 25 }), fc.boolean(), async (changes, isFast) => {
        const below = belowDisk();
        below.answersAtOnce = isFast;
        const disk = new OverlaidDisk(below, await OverlayFile.temporary(folder, sizeBytes));
        const model = Buffer.from(below.bytes);
        for (const change of changes) await apply(disk, model, change);
        expect((await readAll(disk, 7777)).equals(model)).toBe(true);
        for (const { kind, offset, length } of await allExtents(disk, 3)) {
          if (kind === "hole") expect(model.subarray(offset, offset + length).every((byte) => byte === 0)).toBe(true);
        }
        expect(below.bytes.equals(contentOf(sizeBytes, 5))).toBe(true);
        await disk.close();
      }),
      { numRuns: runsOf(80) },
    );
  });

  test("keeps the bytes of all writes to parts of one granule at a time", async () => {
    const disk = await temporaryDisk();
    const parts = Array.from({ length: 16 }, (_, index) => index);
    const model = contentOf(sizeBytes, 5);
    await Promise.all(
      parts.map(async (index) => {
        const bytes = Buffer.alloc(512, index + 1);
        bytes.copy(model, 8192 + index * 512);
        await write(disk, 8192 + index * 512, bytes);
      }),
    );
    expect((await readAll(disk)).equals(model)).toBe(true);
  });

  test("keeps a whole write that meets a part of the same granule being filled", async () => {
    const below = belowDisk();
    below.answersAtOnce = false;
    const open = below.hold();
    const disk = await temporaryDisk(below);
    const part = disk.write(4096 + 10, Buffer.alloc(20, 1));
    const whole = write(disk, 4096, Buffer.alloc(4096, 2));
    open();
    await Promise.all([part, whole]);
    // The later one covers the earlier one; whichever won there, all else is the later one's.
    const rest = await readRange(disk, 4096 + 30, 4096 - 30);
    expect(rest.every((byte) => byte === 2)).toBe(true);
  });

  test("adopts what no change touches without waiting for the changes, which may wait for what is adopted", async () => {
    const below = belowDisk();
    below.answersAtOnce = false;
    const disk = await temporaryDisk(below);
    const model = Buffer.from(below.bytes);
    const adopted = Buffer.from(model.subarray(0, 8 * granuleBytes));
    const open = below.hold();
    // Both ends of it are to be filled with what lies below.
    const bytes = contentOf(2 * granuleBytes, 3);
    bytes.copy(model, 2 * granuleBytes + 10);
    const part = disk.write(2 * granuleBytes + 10, bytes);
    const trim = disk.trim(6 * granuleBytes, granuleBytes);
    model.fill(0, 6 * granuleBytes, 7 * granuleBytes);
    expect(await disk.adopt(0, adopted)).toBe(false);
    expect(await disk.adopt(0, adopted.subarray(0, 2 * granuleBytes))).toBe(true);
    expect(disk.nextBelow(0)).toEqual({ offset: 2 * granuleBytes, length: 3 * granuleBytes });
    open();
    await Promise.all([part, trim]);
    expect(disk.firstBelow(0)).toBe(8 * granuleBytes);
    expect((await readAll(disk)).equals(model)).toBe(true);
  });

  test("tells what was written as data, and what was trimmed as a hole", async () => {
    const disk = await temporaryDisk();
    await write(disk, 4096, Buffer.alloc(8192, 1));
    await disk.trim(16_384, 8192);
    const kinds = disk.extents(0, 32_768, 10).map(({ kind, offset, length }) => [kind, offset, length]);
    expect(kinds).toContainEqual(["data", 4096, 8192]);
    expect(kinds).toContainEqual(["hole", 16_384, 8192]);
  });

  test("gives back the space of what is trimmed", async () => {
    const folder = temporaryFolder();
    const path = join(folder, "overlay");
    const disk = await keptDisk(path);
    await write(disk, 0, contentOf(16 * granuleBytes, 3));
    await disk.flush();
    const blocks = statSync(path).blocks;
    await disk.trim(0, 16 * granuleBytes);
    expect(statSync(path).blocks).toBeLessThanOrEqual(blocks - 16 * 8);
    await disk.close();
  });

  test("counts what is read and written", async () => {
    const disk = await temporaryDisk();
    await write(disk, 0, Buffer.alloc(5000, 1));
    await readRange(disk, 100, 9000);
    expect(disk.counts).toEqual({ bytesRead: 9000, bytesWritten: 5000 });
  });

  test("without a name leaves nothing behind, not even while it is there", async () => {
    const folder = temporaryFolder();
    const disk = await temporaryDisk(belowDisk(), folder);
    await write(disk, 0, Buffer.alloc(5000, 1));
    expect(readdirSync(folder)).toEqual([]);
  });

  test("that has no room fails the write with NO_SPACE and goes on reading", async (context) => {
    const small = mountSmallDisk(join(temporaryFolder(), "small"), 64 * 1024);
    if ("reason" in small) return context.skip(`no disk to fill: ${small.reason}`);
    try {
      const disk = new OverlaidDisk(belowDisk(), await OverlayFile.temporary(small.path, sizeBytes));
      await expectCode(write(disk, 0, contentOf(sizeBytes, 9)), "NO_SPACE");
      expect((await readRange(disk, 0, 4096)).byteLength).toBe(4096);
      await disk.close();
    } finally {
      small.unmount();
    }
  });
});

describe("an overlay that is kept", () => {
  test("holds after each reopening what it held, closed in order or not", async () => {
    const folder = temporaryFolder();
    let run = 0;
    const session = fc.record({ changes: fc.array(changeOf(20_000), { maxLength: 8 }), isClosed: fc.boolean() });
    await fc.assert(
      fc.asyncProperty(fc.array(session, { minLength: 1, maxLength: 4 }), async (sessions) => {
        run += 1;
        const path = join(folder, `overlay-${run}`);
        const model = contentOf(sizeBytes, 5);
        for (const { changes, isClosed } of sessions) {
          const overlay = await OverlayFile.open(path, identity);
          const disk = new OverlaidDisk(belowDisk(), overlay);
          for (const change of changes) await apply(disk, model, change);
          // A process that dies after a flush has not closed the disk.
          if (isClosed) await disk.close();
          else {
            await disk.flush();
            await overlay.close();
          }
        }
        const disk = await keptDisk(path);
        expect((await readAll(disk)).equals(model)).toBe(true);
        await disk.close();
      }),
      { numRuns: runsOf(25) },
    );
  });

  test("forgets what was not flushed, at the most", async () => {
    const path = join(temporaryFolder(), "overlay");
    const overlay = await OverlayFile.open(path, identity);
    const disk = new OverlaidDisk(belowDisk(), overlay);
    await write(disk, 0, Buffer.alloc(4096, 1));
    await disk.flush();
    await write(disk, 8192, Buffer.alloc(4096, 2));
    await overlay.close();
    const again = await keptDisk(path);
    expect((await readRange(again, 0, 4096)).every((byte) => byte === 1)).toBe(true);
    expect((await readRange(again, 8192, 4096)).equals(contentOf(sizeBytes, 5).subarray(8192, 12_288))).toBe(true);
    await again.close();
  });

  test("speaks of nothing that has not been synced before, and a sync that failed fails every flush from then on", async () => {
    const path = join(temporaryFolder(), "overlay");
    let isBroken = false;
    const datasync = async (file: PositionalFile): Promise<void> => {
      if (isBroken) throw Object.assign(new Error("EIO: i/o error"), { code: "EIO" });
      await file.datasync();
    };
    await (await OverlayFile.open(path, identity)).close();
    const file = await LiveFile.open(path, { system: { datasync } });
    const disk = new OverlaidDisk(belowDisk(), await OverlayFile.over(file, identity));
    await write(disk, 0, Buffer.alloc(4096, 1));
    isBroken = true;
    await expectCode(disk.flush(), "DEVICE_FAILED");
    // The record comes behind the sync that failed.
    expect(
      readFileSync(path)
        .subarray(4096, 12_288)
        .every((byte) => byte === 0),
    ).toBe(true);
    isBroken = false;
    await expectCode(disk.flush(), "DEVICE_FAILED");
    expect((await readRange(disk, 0, 4096)).every((byte) => byte === 1)).toBe(true);
    await expectCode(disk.close(), "DEVICE_FAILED");
    const again = await keptDisk(path);
    expect((await readAll(again)).equals(contentOf(sizeBytes, 5))).toBe(true);
    await again.close();
  });

  test.each([
    ["another vault", { vault: "3".repeat(32) }],
    ["another disk", { disk: "other" }],
    ["another point", { point: "4".repeat(32) }],
    ["another size", { sizeBytes: sizeBytes + 1 }],
  ])("of %s is refused and left as it is", async (_what, other) => {
    const path = join(temporaryFolder(), "overlay");
    await (await keptDisk(path)).close();
    const before = hashOf(path);
    const error = await expectCode(OverlayFile.open(path, { ...identity, ...other }), "INVALID_ARGUMENT");
    expect(error.message).toContain('disk "web"');
    expect(hashOf(path)).toBe(before);
  });

  test.each([
    ["a file of another program", "precious"],
    ["an empty file", ""],
  ])("is not made of %s", async (_what, content) => {
    const path = join(temporaryFolder(), "overlay");
    writeFileSync(path, content);
    await expectCode(OverlayFile.open(path, identity), "INVALID_ARGUMENT");
    expect(readFileSync(path, "utf8")).toBe(content);
  });

  test("serves one mount at a time", async () => {
    const path = join(temporaryFolder(), "overlay");
    const disk = await keptDisk(path);
    await expectCode(OverlayFile.open(path, identity), "WRITER_ACTIVE");
    await disk.close();
    await (await keptDisk(path)).close();
  });

  test("in a folder that is not there is refused by name", async () => {
    const path = join(temporaryFolder(), "no", "overlay");
    const error = await expectCode(OverlayFile.open(path, identity), "TARGET_FAILED");
    expect(error.message).toContain(path);
    expect(existsSync(path)).toBe(false);
  });

  test("at a path that is a folder is refused", async () => {
    const path = join(temporaryFolder(), "overlay");
    mkdirSync(path);
    await expectCode(OverlayFile.open(path, identity), "SOURCE_UNREADABLE");
  });
});

describe("an overlay whose record", () => {
  const headerBytes = 4096;
  const slotBytes = 4096;

  /** An overlay that was flushed twice: slot 0 holds the first record, slot 1 the second. */
  async function flushedTwice(): Promise<string> {
    const path = join(temporaryFolder(), "overlay");
    const disk = await keptDisk(path);
    await write(disk, 0, Buffer.alloc(4096, 1));
    await disk.flush();
    await write(disk, 8192, Buffer.alloc(4096, 2));
    await disk.flush();
    await disk.close();
    return path;
  }

  async function overwrite(path: string, offset: number, bytes: Uint8Array): Promise<void> {
    const file = await open(path, "r+");
    await file.write(bytes, 0, bytes.byteLength, offset);
    await file.close();
  }

  test("was cut short while it was written counts as what it was before", async () => {
    const path = await flushedTwice();
    const older = readFileSync(path).subarray(headerBytes, headerBytes + 512);
    // The third write goes to slot 0 and is cut short: its first sectors are those of a later
    // generation.
    const disk = await keptDisk(path);
    await write(disk, 16_384, Buffer.alloc(4096, 3));
    await disk.flush();
    await disk.close();
    await overwrite(path, headerBytes, older);
    const again = await keptDisk(path);
    expect((await readRange(again, 0, 4096)).every((byte) => byte === 1)).toBe(true);
    expect((await readRange(again, 8192, 4096)).every((byte) => byte === 2)).toBe(true);
    expect((await readRange(again, 16_384, 4096)).equals(contentOf(sizeBytes, 5).subarray(16_384, 20_480))).toBe(true);
    // And it can be written again.
    await write(again, 16_384, Buffer.alloc(4096, 4));
    await again.close();
    const last = await keptDisk(path);
    expect((await readRange(last, 16_384, 4096)).every((byte) => byte === 4)).toBe(true);
    await last.close();
  });

  test.each([
    ["first", 0, [512, 1024]],
    ["second", 1, [slotBytes, slotBytes + 2048]],
  ])("was cut short when its %s slot was made counts as empty", async (_which, made, lost) => {
    const path = join(temporaryFolder(), "overlay");
    await (await keptDisk(path)).close();
    for (let slot = 0; slot <= made; slot += 1)
      await overwrite(path, headerBytes + slot * slotBytes, encodePage(0, slot, slot, new Uint8Array(0)));
    for (const at of lost) await overwrite(path, headerBytes + at, Buffer.alloc(512));
    const again = await keptDisk(path);
    expect((await readAll(again)).equals(contentOf(sizeBytes, 5))).toBe(true);
    await again.close();
  });

  test.each([
    ["older", headerBytes + 100],
    ["newer", headerBytes + slotBytes + 100],
  ])("has rotted in its %s slot is refused", async (_which, offset) => {
    const path = await flushedTwice();
    await overwrite(path, offset, Buffer.from("rot"));
    const error = await expectCode(OverlayFile.open(path, identity), "DAMAGED");
    expect(error.message).toContain(path);
    expect(error.remedy).toContain("another overlay");
  });

  test.each([
    ["header is not what was written", async (path: string) => await overwrite(path, 30, Buffer.from("rot"))],
    ["length is not", async (path: string) => truncateSync(path, 3 * 4096)],
    ["header is cut short", async (path: string) => truncateSync(path, 100)],
  ])("'s %s is refused", async (_what, spoil) => {
    const path = await flushedTwice();
    await spoil(path);
    await expectCode(OverlayFile.open(path, identity), "DAMAGED");
  });

  test("says of a granule what no overlay writes is refused", async () => {
    const path = await flushedTwice();
    await overwrite(path, headerBytes, encodePage(0, 0, 3, Uint8Array.of(0b1101)));
    const error = await expectCode(OverlayFile.open(path, identity), "DAMAGED");
    expect(error.message).toContain("page 0");
  });

  test("is of a later version is refused by that", async () => {
    const path = await flushedTwice();
    await overwrite(path, 8, Buffer.from([9]));
    await expectCode(OverlayFile.open(path, identity), "FORMAT_UNSUPPORTED");
  });
});

describe("the bytes of an overlay", () => {
  /** Header and record of the disk of these tests, and what lies before the granules: the summary too. */
  const recordEnd = 3 * 4096;
  const fixedBytes = 5 * 4096;

  async function written(): Promise<string> {
    const path = join(temporaryFolder(), "overlay");
    const disk = await keptDisk(path);
    await write(disk, 4096, Buffer.alloc(8192, 1));
    await disk.trim(5 * 4096, 4096);
    await disk.close();
    return path;
  }

  test("are those of version 2", async () => {
    const bytes = readFileSync(await written());
    expect(bytes.toString("latin1", 0, 8)).toBe("TMOVRLAY");
    expect(bytes.readUInt32LE(8)).toBe(2);
    const text = bytes.toString("utf8", 20, 20 + bytes.readUInt32LE(12));
    expect(JSON.parse(text)).toEqual(identity);
    expect(bytes.readUInt32LE(16)).toBe(crc32(text));
    // Granules 1 and 2 are here, granule 5 is zeros: two bits each, from the lowest on.
    expect([...bytes.subarray(4096, 4099)]).toEqual([0b00_01_01_00, 0b10_00, 0]);
    expect(bytes.subarray(4096 + 488, 4096 + 492).toString("latin1")).toBe("TMTK");
    expect(bytes.subarray(fixedBytes + 4096, fixedBytes + 3 * 4096).every((byte) => byte === 1)).toBe(true);
    expect(bytes.length).toBe(fixedBytes + 21 * 4096);
  });

  test("are a few pages of a disk of 1 TiB that became zeros, and give back what was written on top of that", async () => {
    const large = { ...identity, sizeBytes: 2 ** 40 };
    const [path, empty] = [join(temporaryFolder(), "overlay"), join(temporaryFolder(), "empty")];
    writeFileSync(empty, "");
    truncateSync(empty, 2 ** 40);
    const opened = async (): Promise<OverlaidDisk> =>
      new OverlaidDisk(await LiveFile.open(empty, { readOnly: true }), await OverlayFile.open(path, large));
    const disk = await opened();
    await disk.trim(0, 2 ** 40);
    await disk.flush();
    expect(statSync(path).blocks * 512).toBeLessThan(30 * 4096);
    await write(disk, 2 ** 39, Buffer.alloc(4096, 1));
    await disk.flush();
    await disk.trim(2 ** 38, 2 ** 30);
    await disk.close();
    const again = await opened();
    expect(again.presentBytes).toBe(2 ** 40);
    expect((await readRange(again, 2 ** 39, 4096)).every((byte) => byte === 1)).toBe(true);
    expect((await readRange(again, 2 ** 39 - 4096, 4096)).every((byte) => byte === 0)).toBe(true);
    // A page that counted for a while and becomes zeros again.
    await again.trim(2 ** 39, 2 ** 30);
    await again.close();
    const last = await opened();
    expect((await readRange(last, 2 ** 39, 4096)).every((byte) => byte === 0)).toBe(true);
    await last.close();
  });

  test("whichever of them has changed, are refused by a code, or give what had been written", async () => {
    const path = await written();
    const sound = readFileSync(path);
    await fc.assert(
      fc.asyncProperty(fc.nat(fixedBytes - 1), fc.integer({ min: 1, max: 255 }), async (at, change) => {
        await overwritten(path, at, (sound[at] ?? 0) ^ change);
        const [opened] = await Promise.allSettled([OverlayFile.open(path, identity)]);
        await overwritten(path, at, sound[at] ?? 0);
        if (opened.status === "rejected") {
          expect(
            hasCode(opened.reason, "DAMAGED", "INVALID_ARGUMENT", "FORMAT_UNSUPPORTED"),
            String(opened.reason),
          ).toBe(true);
          return;
        }
        // The bytes behind the header's text mean nothing.
        const disk = new OverlaidDisk(belowDisk(), opened.value);
        expect((await readRange(disk, 4096, 8192)).every((byte) => byte === 1)).toBe(true);
        await disk.close();
      }),
      { numRuns: runsOf(150) },
    );
  });

  test("are refused when a sector of the record was lost, whichever of its writes was the last", async () => {
    const path = join(temporaryFolder(), "overlay");
    for (const granule of [1, 2, 3]) {
      const disk = await keptDisk(path);
      await write(disk, granule * 4096, Buffer.alloc(4096, granule));
      await disk.close();
      const sound = readFileSync(path);
      for (let at = 4096; at < recordEnd; at += 512) {
        const torn = Buffer.from(sound).fill(0, at, at + 512);
        writeFileSync(path, torn);
        await expectCode(OverlayFile.open(path, identity), "DAMAGED");
      }
      writeFileSync(path, Buffer.from(sound).fill(0, 4096, 8192));
      await expectCode(OverlayFile.open(path, identity), "DAMAGED");
      writeFileSync(path, sound);
    }
  });

  async function overwritten(path: string, at: number, byte: number): Promise<void> {
    const file = await open(path, "r+");
    await file.write(Buffer.from([byte]), 0, 1, at);
    await file.close();
  }
});

describe("a point that is mounted writable", () => {
  test("takes writes, keeps them in its overlay, and leaves the vault as it was", async () => {
    const filled = await filledVault();
    const overlay = join(temporaryFolder(), "overlay");
    const before = await namesAndTags(filled.sink);
    const model = Buffer.from(filled.contents[1] ?? "");
    for (const seed of [1, 2]) {
      const { mount, device } = await mounted(filled, { point: "2", writable: true, overlay });
      expect(mount.summary()).toMatchObject({ writable: true, overlay });
      expect((await readAll(device)).equals(model)).toBe(true);
      const bytes = contentOf(30_000, seed + 70);
      bytes.copy(model, seed * 100_001);
      await device.write(seed * 100_001, bytes);
      expect((await readAll(device)).equals(model)).toBe(true);
      expect(mount.summary()).toMatchObject({ bytesWritten: 30_000, bytesRead: 2 * model.length });
      await mount.close();
    }
    expect(await namesAndTags(filled.sink)).toEqual(before);
    await expectCode(mounted(filled, { point: "3", writable: true, overlay }), "INVALID_ARGUMENT");
    expect((await filled.sink.list("disks/d/holds/")[Symbol.asyncIterator]().next()).done).toBe(true);
  });

  test("forgets what was written when no overlay is named", async () => {
    const filled = await filledVault();
    const temporary = temporaryFolder();
    const first = await mounted(filled, { writable: true, temporaryFolder: temporary });
    await first.device.write(0, Buffer.alloc(5000, 1));
    expect((await readRange(first.device, 0, 5000)).every((byte) => byte === 1)).toBe(true);
    await first.mount.close();
    const second = await mounted(filled, { writable: true, temporaryFolder: temporary });
    expect((await readAll(second.device)).equals(filled.contents[2] ?? Buffer.alloc(0))).toBe(true);
    expect(readdirSync(temporary)).toEqual([]);
  });
});

function hashOf(path: string): string {
  return createHash("sha256").update(readFileSync(path)).digest("hex");
}

/** Everything in a store that a reader's hold is not. */
async function namesAndTags(sink: Awaited<ReturnType<typeof filledVault>>["sink"]): Promise<string[]> {
  const found: string[] = [];
  for await (const { name, etag } of sink.list("")) if (!name.includes("/holds/")) found.push(`${name} ${etag}`);
  return found.sort();
}
