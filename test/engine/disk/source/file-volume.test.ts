import { execFileSync, spawnSync } from "node:child_process";
import { constants, mkdtempSync, rmSync } from "node:fs";
import { appendFile, chmod, link, mkdir, open, rename, symlink, truncate, utimes, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { sameObject } from "../../../../engine/disk/source/file-identity.ts";
import { FileVolume, restMs } from "../../../../engine/disk/source/file-volume.ts";
import type { Extent } from "../../../../engine/volume.ts";
import { fileIdentity } from "../../../file-identity.ts";
import { attachLoop } from "../../../loop-device.ts";

let folder: string;
let image: string;
const volumes: FileVolume[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "volume-"));
  image = join(folder, "disk.img");
});
afterEach(async () => {
  for (const volume of volumes.splice(0)) await volume.close();
  rmSync(folder, { recursive: true });
});

async function openVolume(path: string): Promise<FileVolume> {
  const volume = await FileVolume.open(path);
  volumes.push(volume);
  return volume;
}

async function allocated(volume: FileVolume, sizeBytes: number): Promise<Extent[]> {
  const extents: Extent[] = [];
  for await (const extent of volume.allocated(sizeBytes)) extents.push(extent);
  return extents;
}

function pattern(length: number): Buffer {
  return Buffer.alloc(
    length,
    Uint8Array.from({ length: 251 }, (_, index) => (index * 31 + 7) % 251),
  );
}

describe("a file as a volume", () => {
  test("is closed at the end of its scope by `await using`", async () => {
    await writeFile(image, pattern(4096));
    let outlived: FileVolume | undefined;
    {
      await using volume = await FileVolume.open(image);
      outlived = volume;
      await volume.read(0, new Uint8Array(4096));
    }
    await expect(outlived.sizeBytes()).rejects.toThrow();
  });

  test.each([0, 1, 511, 4097, 1024 * 1024 + 1])(
    "of %i bytes reads back what it holds, into shared memory",
    async (sizeBytes) => {
      const bytes = pattern(sizeBytes);
      await writeFile(image, bytes);
      const volume = await openVolume(image);
      expect(await volume.sizeBytes()).toBe(sizeBytes);
      const into = new Uint8Array(new SharedArrayBuffer(sizeBytes));
      await volume.read(0, into);
      expect(Buffer.compare(into, bytes)).toBe(0);
      if (sizeBytes > 600) {
        const middle = new Uint8Array(500);
        await volume.read(100, middle);
        expect(Buffer.compare(middle, bytes.subarray(100, 600))).toBe(0);
      }
      expect(await allocated(volume, sizeBytes)).toEqual(sizeBytes === 0 ? [] : [{ offset: 0, length: sizeBytes }]);
    },
  );

  test("that grows tells its new size, and one that shrinks is told from one that cannot be read", async () => {
    await writeFile(image, pattern(10_000));
    const volume = await openVolume(image);
    await appendFile(image, pattern(5000));
    expect(await volume.sizeBytes()).toBe(15_000);
    await truncate(image, 6000);
    await expect(volume.read(4096, new Uint8Array(4096))).rejects.toMatchObject({
      code: "SOURCE_SHRUNK",
      detail: { offset: 6000 },
    });
  });

  test("that is absent, a folder or a device of characters is refused by name", async () => {
    await expect(FileVolume.open(join(folder, "none"))).rejects.toMatchObject({ code: "SOURCE_NOT_FOUND" });
    await expect(FileVolume.open(folder)).rejects.toMatchObject({ code: "SOURCE_UNREADABLE" });
    await expect(FileVolume.open("/dev/null")).rejects.toMatchObject({ code: "SOURCE_UNREADABLE" });
  });

  test.skipIf(process.getuid?.() === 0)("without the right to read it is ACCESS_REFUSED", async () => {
    await writeFile(image, "x");
    await chmod(image, 0);
    await expect(FileVolume.open(image)).rejects.toMatchObject({ code: "ACCESS_REFUSED" });
  });

  test("left alone during the scan is crash-consistent", async () => {
    await writeFile(image, pattern(10_000));
    const volume = await openVolume(image);
    await volume.beginScan();
    await volume.read(0, new Uint8Array(10_000));
    expect(await volume.endScan()).toBe("crash");
  });

  test("written right before and right after the scan began is fuzzy, although the clock of the file system has not ticked", async () => {
    for (let round = 0; round < 5; round += 1) {
      await writeFile(image, pattern(10_000));
      const volume = await openVolume(image);
      const writer = await open(image, "r+");
      await writer.write(Buffer.from([round]), 0, 1, 0);
      await volume.beginScan();
      await writer.write(Buffer.from([round + 1]), 0, 1, 0);
      expect(await volume.endScan()).toBe("fuzzy");
      await writer.close();
    }
  });

  test("whose modification time is set back after a write is fuzzy", async () => {
    await writeFile(image, pattern(10_000));
    const past = new Date(2020, 1, 1);
    await utimes(image, past, past);
    const volume = await openVolume(image);
    await volume.beginScan();
    await writeFile(image, pattern(10_000));
    await utimes(image, past, past);
    expect(await volume.endScan()).toBe("fuzzy");
  });

  test("that another file was renamed over is fuzzy", async () => {
    await writeFile(image, pattern(10_000));
    const volume = await openVolume(image);
    await volume.beginScan();
    await writeFile(join(folder, "other"), pattern(10_000));
    await rename(join(folder, "other"), image);
    expect(await volume.endScan()).toBe("fuzzy");
  });

  test("that keeps changing while we wait for it to rest is fuzzy", async () => {
    await writeFile(image, pattern(10_000));
    const volume = await openVolume(image);
    const writer = await open(image, "r+");
    const progress = { begun: false };
    const beginning = volume.beginScan().then(() => {
      progress.begun = true;
    });
    for (let round = 0; !progress.begun; round += 1) await writer.write(Buffer.from([round % 256]), 0, 1, 0);
    await beginning;
    await writer.close();
    expect(await volume.endScan()).toBe("fuzzy");
  });

  test("is watched before the scan only when it changed of late, and longer when its clock counts in seconds", () => {
    const second = 1_000_000_000n;
    const nowMs = 1_700_000_000_000;
    expect(restMs({ ctimeNs: 1_600_000_000n * second + 5n }, nowMs)).toBe(0);
    expect(restMs({ ctimeNs: 1_699_999_999n * second + 5n }, nowMs)).toBe(50);
    expect(restMs({ ctimeNs: 1_700_000_500n * second + 5n }, nowMs)).toBe(50);
    expect(restMs({ ctimeNs: 1_699_999_999n * second }, nowMs)).toBe(2100);
  });
});

describe("identity", () => {
  test("is the same through a symbolic and a hard link, another for another file", async () => {
    await writeFile(image, "x");
    await symlink(image, join(folder, "soft"));
    await link(image, join(folder, "hard"));
    await mkdir(join(folder, "sub"));
    await writeFile(join(folder, "sub", "disk.img"), "x");
    const identity = (await openVolume(image)).identity();
    expect(JSON.parse(JSON.stringify(identity))).toEqual(identity);
    expect(sameObject(identity, await fileIdentity(join(folder, "soft")))).toBe(true);
    expect(sameObject(identity, await fileIdentity(join(folder, "hard")))).toBe(true);
    expect(sameObject(identity, await fileIdentity(join(folder, "sub", "disk.img")))).toBe(false);
  });
});

test("a block device tells its size, reads back, and is crash-consistent until a process writes it or holds it", async ({
  skip,
}) => {
  await writeFile(image, pattern(1024 * 1024));
  const loop = attachLoop(image);
  if ("reason" in loop) {
    skip(loop.reason);
    return;
  }
  try {
    const volume = await FileVolume.open(loop.path);
    try {
      expect(await volume.sizeBytes()).toBe(1024 * 1024);
      const into = new Uint8Array(4096);
      await volume.read(8192, into);
      expect(Buffer.compare(into, pattern(1024 * 1024).subarray(8192, 12288))).toBe(0);
      await volume.beginScan();
      expect(await volume.endScan()).toBe("crash");

      await volume.beginScan();
      const writer = await open(loop.path, "r+");
      await writer.write(Buffer.alloc(512, 9), 0, 512, 4096);
      expect(await volume.endScan()).toBe("fuzzy");
      await writer.close();

      const holder = await open(loop.path, constants.O_RDONLY | constants.O_EXCL);
      await volume.beginScan();
      expect(await volume.endScan()).toBe("fuzzy");
      await holder.close();
      expect(sameObject(volume.identity(), await fileIdentity(loop.path))).toBe(true);
      expect(sameObject(volume.identity(), await fileIdentity(image))).toBe(false);
    } finally {
      await volume.close();
    }
  } finally {
    loop.detach();
  }
});

test("a scan of a mounted device reads what the file system has written, not what the device's cache held before", async ({
  skip,
}) => {
  await writeFile(image, "");
  await truncate(image, 16 * 1024 * 1024);
  const loop = attachLoop(image);
  if ("reason" in loop) return skip(loop.reason);
  onTestFinished(() => loop.detach());
  // Not below the folder that is removed while this is mounted.
  const mounted = mkdtempSync(join(tmpdir(), "volume-mounted-"));
  onTestFinished(() => rmSync(mounted, { recursive: true }));
  const made = spawnSync("sh", ["-c", `mkfs.ext4 -q ${loop.path} && mount ${loop.path} ${mounted}`]);
  if (made.status !== 0) return skip(`no file system can be mounted here: ${made.stderr.toString()}`);
  onTestFinished(() => void execFileSync("umount", [mounted]));
  const written = pattern(4096);
  await writeFile(join(mounted, "file"), written, { flush: true });
  const volume = await openVolume(loop.path);
  const contents = async (): Promise<Buffer> => {
    const into = Buffer.alloc(await volume.sizeBytes());
    await volume.beginScan();
    await volume.read(0, into);
    return into;
  };
  const at = (await contents()).indexOf(written);
  expect(at).toBeGreaterThan(0);
  const file = await open(join(mounted, "file"), "r+");
  await file.write(Buffer.alloc(4096, 9), 0, 4096, 0);
  await file.datasync();
  await file.close();
  expect((await contents()).subarray(at, at + 4096).equals(Buffer.alloc(4096, 9))).toBe(true);
});
