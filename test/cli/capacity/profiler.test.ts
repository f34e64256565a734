import { execFileSync, spawnSync } from "node:child_process";
import {
  closeSync,
  fdatasyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  readFileSync,
  truncateSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import type { AgentStatus } from "../../../cli/agent/supervisor.ts";
import { agentProbe } from "../../../cli/capacity/agent-probe.ts";
import { DiskScanner } from "../../../cli/capacity/disk-scanner.ts";
import type { ProfileLine } from "../../../cli/capacity/profile-lines.ts";
import { diskstatsProbe, type Probe, profile, scanProbe } from "../../../cli/capacity/profiler.ts";
import { bitsOf } from "../../../cli/capacity/sketch.ts";
import { type Notice, TidemarkError } from "../../../engine/index.ts";
import { randomBytes } from "../../engine-model.ts";
import { attachLoop } from "../../loop-device.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";

const granule = 4096;
const never: AbortSignal = new AbortController().signal;

/** An image of so many granules, zeros at first, and what writes to it. */
function newImage(granules: number): {
  readonly path: string;
  readonly write: (at: number, bytes: Uint8Array) => void;
  readonly grow: (granules: number) => void;
} {
  const folder = createFolder("scan");
  onTestFinished(async () => await removeFolder(folder));
  const path = join(folder, "disk.img");
  const fd = openSync(path, "w+");
  onTestFinished(() => closeSync(fd));
  ftruncateSync(fd, granules * granule);
  return {
    path,
    write: (at, bytes) => writeSync(fd, bytes, 0, bytes.length, at * granule),
    grow: (more) => ftruncateSync(fd, more * granule),
  };
}

async function openScanner(path: string, budgetMs?: number): Promise<DiskScanner> {
  const scanner = await DiskScanner.open(path, never, budgetMs);
  onTestFinished(async () => await scanner[Symbol.asyncDispose]());
  return scanner;
}

test("a scan finds exactly the granules that changed, and what of them would be stored", async () => {
  const image = newImage(100);
  const known = randomBytes(granule, 1);
  image.write(3, known);
  image.write(40, Buffer.alloc(granule, "text "));
  const scanner = await openScanner(image.path);
  expect(scanner.baseline).toMatchObject({ sizeBytes: 100 * granule, share: 1, dataBytes: 2 * granule });
  image.write(3, Buffer.alloc(granule));
  image.write(17, Buffer.alloc(granule, "other text "));
  image.write(18, known);
  image.write(99, Uint8Array.of(1));
  image.write(40, Buffer.alloc(granule, "text "));
  const { changed, content, dataBytes } = await scanner.scan(never);
  expect([...changed.blocks.entries()].map(([index, block]) => [block, changed.masks[index]])).toEqual([
    [0, 1 << 3],
    [1, (1 << 1) | (1 << 2)],
    [6, 1 << 3],
  ]);
  expect(content).toMatchObject({ plainBytes: 4 * granule, zeroBytes: granule, knownBytes: 0, chunks: 2 });
  expect(content.packedBytes).toBeGreaterThan(granule);
  expect(content.packedBytes).toBeLessThan(1.2 * granule);
  expect(dataBytes).toBe(4 * granule);
  image.write(70, known);
  expect((await scanner.scan(never)).content).toMatchObject({
    plainBytes: granule,
    knownBytes: granule,
    packedBytes: 0,
  });
});

test("a disk that was not written is not read, and one that has grown is read to its new end", async () => {
  const image = newImage(64);
  image.write(1, randomBytes(granule, 1));
  // Long ago, so that the times of the file tell of a later write.
  utimesSync(image.path, 1, 1);
  const scanner = await openScanner(image.path);
  expect(await scanner.scan(never)).toMatchObject({ readBytes: 0 });
  image.grow(200);
  image.write(199, randomBytes(granule, 2));
  const { changed, readBytes } = await scanner.scan(never);
  expect([[...changed.blocks], [...changed.masks]]).toEqual([[12], [1 << 7]]);
  expect(readBytes).toBeGreaterThan(0);
  expect((await scanner.scan(never)).changed.blocks).toHaveLength(0);
});

test("without time to read it all, a part of the disk stands for the whole", async () => {
  const granules = 16 * 4096;
  const image = newImage(granules);
  for (let block = 0; block < 4096; block += 1) image.write(block * 16, Uint8Array.of(1));
  const scanner = await openScanner(image.path, 0);
  const { share, dataBytes } = scanner.baseline;
  expect(share).toBe(1 / 1024);
  expect(dataBytes / (4096 * granule)).toBeGreaterThan(0.1);
  for (let block = 0; block < 4096; block += 1) image.write(block * 16 + 3, Uint8Array.of(1, 2));
  const { changed, readBytes } = await scanner.scan(never);
  expect(changed.share).toBe(share);
  expect(readBytes).toBe(changed.blocks.length * 16 * granule);
  expect([...changed.masks].every((mask) => bitsOf(mask) === 1)).toBe(true);
});

test("what a mounted file system writes to a device is seen, and counted as the kernel counts it", async ({ skip }) => {
  const folder = createFolder("scan");
  onTestFinished(async () => await removeFolder(folder));
  const image = join(folder, "disk.img");
  writeFileSync(image, "");
  truncateSync(image, 16 * 1024 * 1024);
  const loop = attachLoop(image);
  if ("reason" in loop) return skip(loop.reason);
  onTestFinished(() => loop.detach());
  const mounted = join(folder, "mounted");
  mkdirSync(mounted);
  const made = spawnSync("sh", ["-c", `mkfs.ext4 -q ${loop.path} && mount ${loop.path} ${mounted}`]);
  if (made.status !== 0) return skip(`no file system can be mounted here: ${made.stderr.toString()}`);
  onTestFinished(() => void execFileSync("umount", [mounted]));
  const file = join(mounted, "file");
  // Content that the cache of the device knows, and that the file system then overwrites below it.
  writeFileSync(file, randomBytes(64 * granule, 1), { flush: true });
  readFileSync(loop.path);
  const probe = await scanProbe(loop.path, never, { everyMs: 30_000 });
  onTestFinished(async () => await probe[Symbol.asyncDispose]());
  await probe.lines(never);
  const fd = openSync(file, "r+");
  writeSync(fd, randomBytes(64 * granule, 2));
  fdatasyncSync(fd);
  closeSync(fd);
  const [sample] = await probe.lines(never);
  if (sample?.type !== "sample") throw new Error("there is no sample");
  expect(sample.writtenBytes).toBeGreaterThanOrEqual(64 * granule);
  const granules = [...(sample.changed?.masks ?? [])].reduce((sum, mask) => sum + bitsOf(mask), 0);
  expect(granules).toBeGreaterThanOrEqual(64);
  expect(granules).toBeLessThan(100);
});

/** A clock that moves when a probe or a wait takes time. */
class TestClock {
  nowMs = 0;
  readonly now = (): number => this.nowMs;
  readonly wall = (): number => Date.UTC(2026, 0, 1) + this.nowMs;
  readonly sleep = (delayMs: number, signal: AbortSignal): Promise<void> => {
    if (!signal.aborted) this.nowMs += delayMs;
    return Promise.resolve();
  };
}

async function run(probe: Probe, clock: TestClock, forMs: number, stop: AbortSignal = never): Promise<ProfileLine[]> {
  const lines: ProfileLine[] = [];
  const append = (line: ProfileLine): Promise<void> => {
    lines.push(line);
    return Promise.resolve();
  };
  await profile({ probe, append, everyMs: 30_000, forMs, clock, stop });
  return lines;
}

test("samples come at their times, the last at the end; a slow one leaves out what it missed", async () => {
  const image = newImage(16);
  const clock = new TestClock();
  const inner = await scanProbe(image.path, never, { everyMs: 30_000, now: clock.wall });
  onTestFinished(async () => await inner[Symbol.asyncDispose]());
  let calls = 0;
  const probe: Probe = {
    ...inner,
    lines: async (signal) => {
      const lines = await inner.lines(signal);
      calls += 1;
      if (calls === 2) clock.nowMs += 45_000;
      return lines;
    },
  };
  const lines = await run(probe, clock, 130_000);
  expect(lines.map((line) => [line.type, Date.parse(line.time) - Date.UTC(2026, 0, 1)])).toEqual([
    ["start", 0],
    ["sample", 30_000],
    ["sample", 90_000],
    ["sample", 120_000],
    ["sample", 130_000],
  ]);
  expect(lines.flatMap((line) => (line.type === "sample" ? [line.spanMs] : []))).toEqual([
    30_000, 60_000, 30_000, 10_000,
  ]);
});

test("a stop ends the waiting and takes a last sample", async () => {
  const image = newImage(16);
  const clock = new TestClock();
  const probe = await scanProbe(image.path, never, { everyMs: 30_000, now: clock.wall });
  onTestFinished(async () => await probe[Symbol.asyncDispose]());
  const stop = new AbortController();
  const lines: string[] = [];
  const append = ({ type }: ProfileLine): Promise<void> => {
    lines.push(type);
    if (lines.length === 2) stop.abort();
    return Promise.resolve();
  };
  await profile({ probe, append, everyMs: 30_000, forMs: 1e9, clock, stop: stop.signal });
  expect(lines).toEqual(["start", "sample"]);
});

test("an agent's points and writes are summed, over a new start of the agent, and its absence leaves a gap", async () => {
  const clock = new TestClock();
  const notices: Notice[] = [];
  let points = 7;
  const isAway = (): boolean => clock.nowMs > 60_000 && clock.nowMs < 130_000;
  const ask = (): Promise<AgentStatus> => {
    if (isAway()) return Promise.reject(new TidemarkError("AGENT_UNREACHABLE", "no agent is running there"));
    // A point every five seconds; counted anew after the new start.
    if (clock.nowMs % 5_000 === 0 && clock.nowMs > 0) points += 1;
    if (clock.nowMs >= 130_000) points = Math.floor((clock.nowMs - 130_000) / 5_000);
    const latest = { changedBytes: 1_000, newBytes: 800, storedBytes: 400 };
    const disk = { disk: "web", sizeBytes: 1 << 30, churnBytesPerSecond: 500, pointsCommitted: points, latest };
    return Promise.resolve({ disks: [disk] } as unknown as AgentStatus);
  };
  const onNotice = (notice: Notice): void => void notices.push(notice);
  const probe = agentProbe({ socket: "s", everyMs: 30_000, onNotice, now: clock.wall, ask });
  const lines = await run(probe, clock, 210_000);
  expect(lines.map((line) => [line.type, (Date.parse(line.time) - Date.UTC(2026, 0, 1)) / 1_000])).toEqual([
    ["start", 0],
    ["sample", 30],
    ["sample", 60],
    ["sample", 150],
    ["sample", 180],
    ["sample", 210],
  ]);
  expect(lines.at(-1)).toMatchObject({
    disk: "web",
    spanMs: 30_000,
    writtenBytes: 15_000,
    points: { count: 6, changedBytes: 6_000, newBytes: 4_800, storedBytes: 2_400 },
  });
  expect(notices.map(({ code }) => code)).toEqual(["NO_ANSWER"]);
});

test("an agent that is not there when it begins is an error", async () => {
  const ask = (): Promise<AgentStatus> => Promise.reject(new TidemarkError("AGENT_UNREACHABLE", "no agent"));
  const probe = agentProbe({ socket: "s", everyMs: 30_000, onNotice: () => undefined, ask });
  await expect(probe.lines(never)).rejects.toMatchObject({ code: "AGENT_UNREACHABLE" });
});

test("a device that Linux does not know is named", async () => {
  for (const name of ["nosuchdevice", "../../../etc", ""])
    await expect(diskstatsProbe(name, { everyMs: 30_000 })).rejects.toMatchObject({ code: "SOURCE_NOT_FOUND" });
});
