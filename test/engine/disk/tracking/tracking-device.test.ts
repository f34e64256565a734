/**
 * What a tracking file says of a block device after a clean stop: the device has no times, but its
 * kernel counts.
 */

import { mkdtemp, open, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, it } from "vitest";
import type { FileIdentity } from "../../../../engine/disk/source/file-identity.ts";
import { LiveFile } from "../../../../engine/disk/source/live-file.ts";
import type { QuiescenceSignature } from "../../../../engine/disk/source/quiescence.ts";
import { DirtyBitmap, regionBytes } from "../../../../engine/disk/tracking/dirty-bitmap.ts";
import { ProtectedDisk } from "../../../../engine/disk/tracking/protected-disk.ts";
import { TrackingFile, type TrackingOptions } from "../../../../engine/disk/tracking/tracking-file.ts";
import type { Recovered } from "../../../../engine/disk/tracking/tracking-recovery.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import { fileIdentity } from "../../../file-identity.ts";
import { attachLoop } from "../../../loop-device.ts";

const sizeBytes: number = 4 * regionBytes;
const base = "1".repeat(32);

let folder = "";
let image = "";

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "tidemark-device-"));
  image = join(folder, "disk.img");
  for (const path of [image, join(folder, "other.img")]) {
    await writeFile(path, "");
    await truncate(path, sizeBytes);
  }
});

afterEach(async () => {
  await rm(folder, { recursive: true });
});

describe("a device that was stopped cleanly", () => {
  it("is known exactly while no process writes to it, and compared once one did", async (context) => {
    const loop = attachLoop(image);
    if ("reason" in loop) return context.skip(`no device to test with: ${loop.reason}`);
    try {
      const first = await protect(loop.path);
      await first.disk.write(regionBytes + 100, Buffer.alloc(granuleBytes, 1));
      const cut = await first.disk.cut({ exact: false });
      await first.disk.expectPoint(base);
      cut.committed(base);
      await first.disk.write(granuleBytes, Buffer.alloc(granuleBytes, 2));
      await first.disk.closeClean();

      const { disk: second, recovered } = await protect(loop.path);
      expect(recovered).toMatchObject({ kind: "clean", bases: [base] });
      expect(second.dirtyBytes).toBe(granuleBytes);
      await second.closeClean();

      const handle = await open(loop.path, "r+");
      await handle.write(Buffer.alloc(512, 3), 0, 512, 3 * regionBytes);
      await handle.close();
      const third = await protect(loop.path);
      expect(reasonOf(third.recovered)).toMatch(/^the device was changed while/);
      await third.disk.close();
    } finally {
      loop.detach();
    }
  });

  const mark: QuiescenceSignature = { sizeBytes, signature: "boot 1 written 8" };
  it.each<[string, QuiescenceSignature | undefined, QuiescenceSignature | undefined, RegExp]>([
    ["the machine was restarted", mark, { sizeBytes, signature: "boot 2 written 8" }, /or the machine restarted/],
    ["nothing could tell how it was left", undefined, mark, /^it is unknown/],
    ["nothing can tell how it lies now", mark, undefined, /^it is unknown/],
    ["nothing ever tells how it lies", undefined, undefined, /^it is unknown/],
  ])("is compared when %s", async (_fact, left, found, reason) => {
    const { file } = await track({ quiescenceSignature: () => Promise.resolve(left) });
    await file.rebase([base], []);
    await file.closeClean(base, new DirtyBitmap(sizeBytes));
    const { file: again, recovered } = await track({ quiescenceSignature: () => Promise.resolve(found) });
    await again.close();
    expect(reasonOf(recovered)).toMatch(reason);
  });
});

describe("a device that a crash left", () => {
  it("is known by its marks while it is the same, and compared when its name is another device's", async (context) => {
    const [one, other] = [attachLoop(image), attachLoop(join(folder, "other.img"))];
    try {
      if ("reason" in one) return context.skip(`no device to test with: ${one.reason}`);
      if ("reason" in other) return context.skip(`no second device to test with: ${other.reason}`);
      const { disk, identity } = await protect(one.path);
      const cut = await disk.cut({ exact: false });
      await disk.expectPoint(base);
      cut.committed(base);
      await disk.close();
      const again = await protect(one.path);
      expect(again.recovered).toMatchObject({ bases: [base] });
      await again.disk.close();
      const { path, rdev } = identity;
      const renamed = await protect(other.path, { path, rdev });
      expect(reasonOf(renamed.recovered)).toContain("of another image");
      await renamed.disk.close();
    } finally {
      for (const device of [one, other]) if ("detach" in device) device.detach();
    }
  });
});

/** Why nothing is known; the kind of what is known otherwise. */
function reasonOf(recovered: Recovered): string {
  return recovered.kind === "unknown" ? recovered.reason : recovered.kind;
}

async function track(
  options: TrackingOptions,
): Promise<{ readonly file: TrackingFile; readonly recovered: Recovered }> {
  const identity = { ...(await fileIdentity(image)), kind: "device" as const };
  return await TrackingFile.open(
    join(folder, "tracking"),
    { vault: "0".repeat(32), disk: "disk", sizeBytes, image: identity },
    options,
  );
}

/** Protects a device; `names` are those that it has now. */
async function protect(
  device: string,
  names: Partial<FileIdentity> = {},
): Promise<{ readonly disk: ProtectedDisk; readonly recovered: Recovered; readonly identity: FileIdentity }> {
  const backing = await LiveFile.open(device);
  const identity = { ...backing.identity(), ...names };
  const { file: tracking, recovered } = await TrackingFile.open(join(folder, "tracking"), {
    vault: "0".repeat(32),
    disk: "disk",
    sizeBytes: backing.sizeBytes,
    image: identity,
  });
  const known = recovered.kind === "unknown" ? undefined : recovered;
  const dirty = known?.dirty ?? new DirtyBitmap(sizeBytes);
  const disk = ProtectedDisk.open({
    backing,
    tracking,
    dirty,
    base: known?.bases.at(-1),
    spillFolder: undefined,
    settleMs: 0,
    barrierMsMax: 60_000,
  });
  return { disk, recovered, identity };
}
