/**
 * A point goes out through the whole of `materialize`: what comes back is the disk, and what cannot
 * be had leaves nothing behind.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FileVolume } from "../../../../engine/disk/source/file-volume.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import type { Progress } from "../../../../engine/progress.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { FaultySink, Gate } from "../../../../sink/faults.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { closeModelVaults, contentOf, ModelDisk, openModelVault, sampleDisk, scribble } from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";

let folder: string;
let image: string;
let sink: MemorySink;
let vault: Vault;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "materialize-"));
  image = join(folder, "disk.img");
  sink = new MemorySink();
  vault = await openModelVault(sink, { stateFolder: join(folder, "state") });
});
afterEach(async () => {
  await closeModelVaults();
  rmSync(folder, { recursive: true });
});

/** Three points of one disk; gives what each holds. */
async function threePoints(): Promise<Buffer[]> {
  const disk = sampleDisk(150_001, 1);
  const contents: Buffer[] = [];
  for (const seed of [1, 2, 3]) {
    await vault.replicate({ disk: "d", volume: disk });
    contents.push(Buffer.from(disk.bytes));
    scribble(disk, seed);
  }
  return contents;
}

test("every point comes back bit for bit, newest or oldest first", async () => {
  const contents = await threePoints();
  for (const point of [3, 1, 2]) {
    const to = join(folder, `${String(point)}.img`);
    const summary = await vault.materialize({ disk: "d", point: String(point), to });
    expect(readFileSync(to).equals(contents[point - 1] ?? Buffer.alloc(0))).toBe(true);
    expect(summary).toMatchObject({ sequence: point, volumeBytes: 150_001, format: "raw", target: to });
    expect(summary.bytesRead).toBeGreaterThan(0);
    expect(summary.bytesWritten).toBeLessThan(150_001);
  }
});

test.each([0, 1, 512, 4097])("a disk of %i bytes comes back as long as it was", async (sizeBytes) => {
  await vault.replicate({ disk: "d", volume: new ModelDisk(contentOf(sizeBytes, 7)) });
  await vault.materialize({ disk: "d", point: "latest", to: image });
  expect(readFileSync(image).equals(contentOf(sizeBytes, 7))).toBe(true);
});

test("what is damaged on its way, and not at rest, is read again and comes back whole", async () => {
  const contents = await threePoints();
  const faulty = new FaultySink(sink, [{ on: "readPages", prefix: "segments/", when: 1, fault: { kind: "flipped" } }]);
  const reader = await openModelVault(faulty);
  await reader.materialize({ disk: "d", point: "3", to: image });
  faulty.assertAllFired();
  expect(readFileSync(image).equals(contents[2] ?? Buffer.alloc(0))).toBe(true);
});

test("onto an older image only what differs is written", async () => {
  const contents = await threePoints();
  await vault.materialize({ disk: "d", point: "1", to: image });
  const summary = await vault.materialize({ disk: "d", point: "3", to: image, mode: "in-place" });
  expect(readFileSync(image).equals(contents[2] ?? Buffer.alloc(0))).toBe(true);
  expect(summary.bytesWritten).toBeLessThan(60_000);
  const again = await vault.materialize({ disk: "d", point: "3", to: image, mode: "in-place" });
  expect(again.bytesWritten).toBe(0);
});

test("a VHD holds the disk and a footer", async () => {
  const contents = await threePoints();
  await vault.materialize({ disk: "d", point: "2", to: image, format: "vhd" });
  const bytes = readFileSync(image);
  expect(bytes.subarray(0, 150_001).equals(contents[1] ?? Buffer.alloc(0))).toBe(true);
  expect(bytes.subarray(-512).toString("latin1", 0, 8)).toBe("conectix");
});

test("progress only rises, counts data and no holes, and ends at all of it", async () => {
  const newest = (await threePoints()).at(-1) ?? Buffer.alloc(0);
  const reports: Progress[] = [];
  await vault.materialize({ disk: "d", point: "latest", to: image, onProgress: (progress) => reports.push(progress) });
  let dataBytes = 0;
  for (let at = 0; at < newest.length; at += granuleBytes)
    if (newest.subarray(at, at + granuleBytes).some((byte) => byte !== 0)) dataBytes += granuleBytes;
  expect(dataBytes).toBeLessThan(newest.length);
  const { doneBytes, totalBytes } = reports.at(-1) ?? {};
  expect(doneBytes).toBe(totalBytes);
  // A block that was shipped whole holds zeros, too.
  expect(totalBytes).toBeGreaterThanOrEqual(dataBytes);
  expect(totalBytes).toBeLessThan(newest.length);
  expect(reports.map(({ doneBytes }) => doneBytes)).toEqual(
    reports.map(({ doneBytes }) => doneBytes).sort((a, b) => a - b),
  );
});

describe("a target is refused", () => {
  test("when it exists", async () => {
    await threePoints();
    await writeFile(image, "precious");
    await expectCode(vault.materialize({ disk: "d", point: "1", to: image }), "TARGET_EXISTS");
    expect(await readFile(image, "utf8")).toBe("precious");
  });

  test("when it is the source that the disk was replicated from, unless that is wanted", async () => {
    await writeFile(image, contentOf(50_000, 1));
    const file = await FileVolume.open(image);
    await vault.replicate({ disk: "d", volume: file });
    await file.close();
    await writeFile(image, contentOf(50_000, 2));
    await expectCode(vault.materialize({ disk: "d", point: "1", to: image, mode: "in-place" }), "TARGET_IS_SOURCE");
    expect(readFileSync(image).equals(contentOf(50_000, 2))).toBe(true);
    await vault.materialize({ disk: "d", point: "1", to: image, mode: "in-place", overwriteSource: true });
    expect(readFileSync(image).equals(contentOf(50_000, 1))).toBe(true);
  });
});

describe("nothing bears the target's name", () => {
  test("when the disk or the point does not exist", async () => {
    await threePoints();
    await expectCode(vault.materialize({ disk: "e", point: "1", to: image }), "DISK_NOT_FOUND");
    await expectCode(vault.materialize({ disk: "d", point: "4", to: image }), "POINT_NOT_FOUND");
    expect(readdirSync(folder)).toEqual(["state"]);
  });

  test("when the work is interrupted", async () => {
    await threePoints();
    const gate = new Gate();
    const slow = new FaultySink(sink, [{ on: "readPages", when: 1, fault: { kind: "slow", gate } }]);
    const controller = new AbortController();
    const running = (await openModelVault(slow)).materialize({
      disk: "d",
      point: "3",
      to: image,
      signal: controller.signal,
    });
    const outcome = expectCode(running, "INTERRUPTED");
    await gate.reached;
    controller.abort();
    await outcome;
    expect(existsSync(image)).toBe(false);
  });
});
