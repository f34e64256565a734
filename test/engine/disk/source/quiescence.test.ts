import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import { mkdtemp, open, rm, stat, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { basename, join } from "node:path";
import { afterEach, beforeEach, describe, expect, it, type TestContext } from "vitest";
import { LiveFile } from "../../../../engine/disk/source/live-file.ts";
import {
  type QuiescenceSignature,
  quiescenceSignature,
  restSignatureCharactersMax,
} from "../../../../engine/disk/source/quiescence.ts";
import { fileIdentity } from "../../../file-identity.ts";
import { attachLoop } from "../../../loop-device.ts";

const granule = 4096;
const mib = 1024 * 1024;

let folder = "";
let image = "";
/** Undoes what a test has attached. */
let undo: (() => void)[] = [];

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), "rest-mark-"));
  image = join(folder, "disk.img");
  await writeFile(image, "");
  await truncate(image, 8 * mib);
});

afterEach(async () => {
  for (const step of undo.reverse()) step();
  undo = [];
  await rm(folder, { recursive: true });
});

describe("the mark of a file", () => {
  it("is the same until the file is written", async () => {
    const mark = await markOf(image);
    expect(mark).toMatchObject({ sizeBytes: 8 * mib });
    expect(await markOf(image)).toEqual(mark);
    await writeUntilTimesChange(image);
    expect(await markOf(image)).not.toEqual(mark);
  });

  it("is asked of a file that exists", async () => {
    const identity = await fileIdentity(image);
    await expect(quiescenceSignature({ ...identity, path: join(folder, "none") })).rejects.toMatchObject({
      code: "SOURCE_UNREADABLE",
    });
  });
});

describe("the mark of a device", () => {
  it("stays while the device is read, probed, flushed, claimed and closed", async (context) => {
    const device = attached(context);
    await written(device, 0, 1);
    const mark = await known(device);
    expect(mark.sizeBytes).toBe(8 * mib);
    expect(mark.signature.length).toBeLessThan(restSignatureCharactersMax);
    const live = await LiveFile.open(device);
    await live.read(0, new Uint8Array(new SharedArrayBuffer(mib)));
    await live.flush();
    expect(await known(device)).toEqual(mark);
    await live.close();
    const handle = await open(device, "r+");
    await handle.sync();
    await handle.close();
    execFileSync("sync");
    expect(await known(device)).toEqual(mark);
  });

  it("changes when a granule is written, even by a process that has neither flushed it nor closed the device", async (context) => {
    const device = attached(context);
    const mark = await counted(device);
    const handle = await open(device, "r+");
    try {
      await handle.write(new Uint8Array(granule), 0, granule, mib);
      const later = await counted(device);
      expect(later).not.toBe(mark);
      await handle.sync();
      expect(await counted(device)).toBe(later);
    } finally {
      await handle.close();
    }
  });

  it("changes when sectors are discarded", async (context) => {
    const device = attached(context);
    const mark = await counted(device);
    // A hole punched into a device counts as zeros written; this discards.
    execFileSync("blkdiscard", ["--offset", String(mib), "--length", String(mib), device]);
    expect(await counted(device)).not.toBe(mark);
  });

  it("changes when the file below a loop device is written, and when the device is attached anew", async (context) => {
    const device = attached(context);
    const mark = await known(device);
    await writeUntilTimesChange(image);
    const later = await known(device);
    expect(later).not.toEqual(mark);
    for (const step of undo.splice(0)) step();
    const again = attached(context);
    expect(await known(again)).not.toEqual(later);
  });

  it("is none while the kernel does not count what is done to it", async (context) => {
    const device = attached(context);
    const counting = `/sys/block/${basename(device)}/queue/iostats`;
    await writeFile(counting, "0");
    try {
      expect(await markOf(device)).toBeUndefined();
    } finally {
      await writeFile(counting, "1");
    }
    expect(await markOf(device)).toBeDefined();
  });

  it("of a partition changes when it is written, also around it, but not when its neighbour is", async (context) => {
    await writeFile(image, partitionTable([2048, 4096], [6144, 4096]), { flag: "r+" });
    const device = attached(context);
    const [own, neighbour] = partitions(context, device);
    await written(own, 0, 1);
    await written(neighbour, 0, 1);
    const mark = await counted(own);
    await written(neighbour, granule, 2);
    expect(await counted(own)).toBe(mark);
    await written(own, granule, 2);
    const second = await counted(own);
    expect(second).not.toBe(mark);
    await written(device, 2048 * 512, 3);
    expect(await counted(own)).not.toBe(second);
  });
});

async function markOf(path: string): Promise<QuiescenceSignature | undefined> {
  return quiescenceSignature(await fileIdentity(path));
}

async function known(path: string): Promise<QuiescenceSignature> {
  const mark = await markOf(path);
  if (mark === undefined) throw new Error(`${path} has no mark`);
  return mark;
}

/** What the kernel's counters say of a device, without the times of the file below it. */
async function counted(device: string): Promise<string> {
  return (await known(device)).signature.replace(/ on .*/, "");
}

/** The image as a loop device; the test is skipped where there are none. */
function attached(context: TestContext): string {
  const loop = attachLoop(image);
  if ("reason" in loop) return context.skip(`no device to test with: ${loop.reason}`);
  undo.push(() => {
    loop.detach();
  });
  return loop.path;
}

function partitions(context: TestContext, device: string): [string, string] {
  try {
    execFileSync("partx", ["--add", device], { stdio: "pipe" });
  } catch (error) {
    return context.skip(`no partitions to test with: ${String(error)}`);
  }
  undo.push(() => execFileSync("partx", ["--delete", device]));
  const found: [string, string] = [`${device}p1`, `${device}p2`];
  if (!found.every((path) => existsSync(path)))
    return context.skip("no partitions to test with: they have no names in /dev");
  return found;
}

/** A master boot record with two partitions: first sector and sectors of each. */
function partitionTable(...ranges: readonly [start: number, sectors: number][]): Uint8Array {
  const bytes = Buffer.alloc(512);
  for (const [index, [start, sectors]] of ranges.entries()) {
    const entry = 446 + 16 * index;
    bytes[entry + 4] = 0x83;
    bytes.writeUInt32LE(start, entry + 8);
    bytes.writeUInt32LE(sectors, entry + 12);
  }
  bytes.writeUInt16LE(0xaa55, 510);
  return bytes;
}

async function written(path: string, offset: number, value: number): Promise<void> {
  const handle = await open(path, "r+");
  try {
    await handle.write(Buffer.alloc(granule, value), 0, granule, offset);
    await handle.sync();
  } finally {
    await handle.close();
  }
}

/**
 * Repeats a write until the file system's clock has moved on, which it does within a few
 * milliseconds.
 */
async function writeUntilTimesChange(path: string): Promise<void> {
  const { mtimeNs } = await stat(path, { bigint: true });
  do await written(path, 0, 9);
  while ((await stat(path, { bigint: true })).mtimeNs === mtimeNs);
}
