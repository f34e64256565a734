/** The protected disk on what it really stands on: an image file and a tracking file. */
import { mkdtemp, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import { LiveFile } from "../../../../engine/disk/source/live-file.ts";
import { DirtyBitmap, regionBytes } from "../../../../engine/disk/tracking/dirty-bitmap.ts";
import { ProtectedDisk } from "../../../../engine/disk/tracking/protected-disk.ts";
import { TrackingFile } from "../../../../engine/disk/tracking/tracking-file.ts";
import type { Recovered } from "../../../../engine/disk/tracking/tracking-recovery.ts";
import { granuleBytes } from "../../../../engine/limits.ts";

const sizeBytes: number = 4 * regionBytes + 3 * 512;
const [first, second] = ["1".repeat(32), "2".repeat(32)];

let folder = "";

beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "tidemark-protected-"));
  await writeFile(path.join(folder, "image"), "");
  await truncate(path.join(folder, "image"), sizeBytes);
});

afterEach(async () => {
  await rm(folder, { recursive: true });
});

describe("a protected image", () => {
  it("gives exact cuts while it is overwritten, and knows after a clean end exactly what no point holds", async () => {
    const { disk } = await open();
    await put(disk, 0, Buffer.alloc(600 * 1024, 1));
    await put(disk, sizeBytes - 700, Buffer.alloc(700, 1));
    const cut = await disk.cut({ exact: true });
    const image = Buffer.alloc(sizeBytes);
    await disk.zero(granuleBytes, 300 * 1024, true);
    for (const { offset, length } of cut.extents()) {
      await put(disk, offset + length - 100, Buffer.alloc(100, 2));
      await cut.read(offset, image.subarray(offset, offset + length));
    }
    const truth = Buffer.alloc(sizeBytes);
    truth.fill(1, 0, 600 * 1024);
    truth.fill(1, sizeBytes - 700);
    expect(image.equals(truth)).toBe(true);
    await disk.expectPoint(first);
    cut.committed(first);
    const { dirtyBytes } = disk;
    await disk.closeClean();
    const { disk: again, recovered } = await open();
    expect([recovered.kind, again.base, again.dirtyBytes]).toEqual(["clean", first, dirtyBytes]);
    await again.closeClean();
  });

  it("knows after a crash which regions may have changed, whichever point the store holds", async () => {
    const { disk } = await open();
    await put(disk, 0, Buffer.alloc(1, 1));
    const cut = await disk.cut({ exact: false });
    await disk.expectPoint(first);
    cut.committed(first);
    await put(disk, 2 * regionBytes, Buffer.alloc(1, 1));
    const next = await disk.cut({ exact: false });
    await disk.expectPoint(second);
    next.abandon();
    await disk.close();
    const { disk: again, recovered } = await open();
    expect(recovered.kind).toBe("unclean");
    expect(again.base).toBe(second);
    expect(again.rebase(first)).toBe("current");
    const marked = new DirtyBitmap(sizeBytes);
    for (const { offset, length } of (await again.cut({ exact: false })).extents()) marked.mark(offset, length);
    expect(marked.isMarked((2 * regionBytes) / granuleBytes)).toBe(true);
    expect(marked.isMarked((3 * regionBytes) / granuleBytes)).toBe(false);
    await again.close();
  });
});

async function open(): Promise<{ readonly disk: ProtectedDisk; readonly recovered: Recovered }> {
  const backing = await LiveFile.open(path.join(folder, "image"));
  const identity = { vault: "v".repeat(32), disk: "d", sizeBytes: backing.sizeBytes, image: backing.identity() };
  const { file, recovered } = await TrackingFile.open(path.join(folder, "tracking"), identity);
  const known = recovered.kind === "unknown" ? undefined : recovered;
  const disk = ProtectedDisk.open({
    backing,
    tracking: file,
    dirty: known?.dirty ?? new DirtyBitmap(backing.sizeBytes),
    base: known?.bases.at(-1),
    earlierBases: known?.bases.slice(0, -1),
    spillFolder: folder,
    settleMs: 0,
    // So little memory that old content goes to the spill file, too.
    preservedBytesMax: 8 * granuleBytes,
    barrierMsMax: 60_000,
  });
  return { disk, recovered };
}

/** Writes as a front end does: at once if that is possible. */
async function put(disk: ProtectedDisk, offset: number, bytes: Uint8Array): Promise<void> {
  if (!disk.tryWrite(offset, bytes)) await disk.write(offset, bytes);
}
