/**
 * One rule of the protected disk a test: marks, the barrier, old content, what becomes of a cut,
 * the base, and the end.
 */
import { afterEach, describe, expect, it, vi } from "vitest";
import type { Cut } from "../../../../engine/disk/tracking/cut.ts";
import { DirtyBitmap, regionBytes } from "../../../../engine/disk/tracking/dirty-bitmap.ts";
import { ProtectedDisk } from "../../../../engine/disk/tracking/protected-disk.ts";
import type { ProtectedDiskOptions } from "../../../../engine/disk/tracking/protected-disk-options.ts";
import { TidemarkError } from "../../../../engine/errors.ts";
import { granuleBytes } from "../../../../engine/limits.ts";
import { ModelDevice, ModelTracking, quiet } from "./model-device.ts";

const exact = { exact: true };

afterEach(() => {
  vi.useRealTimers();
});

describe("a write", () => {
  it("reaches the backing and marks the granules it touches", async () => {
    const { disk, device } = open();
    await disk.write(granuleBytes - 1, Buffer.from([1, 2]));
    await disk.zero(3 * granuleBytes, 1, false);
    await disk.trim(5 * granuleBytes, granuleBytes);
    expect(device.bytes.subarray(granuleBytes - 1, granuleBytes + 1)).toEqual(Buffer.from([1, 2]));
    expect(marks(await disk.cut(exact))).toEqual([0, 1, 3, 5]);
    expect(disk.writtenBytes).toBe(2 + 1 + granuleBytes);
  });

  it("that the backing declines at once leaves no mark", () => {
    const { disk } = open();
    expect(disk.tryWrite(0, granule(1))).toBe(false);
    expect(disk.dirtyBytes).toBe(0);
  });

  it("that is done at once is marked", async () => {
    const { disk, device } = open();
    device.hasShortWay = true;
    expect(disk.tryWrite(granuleBytes, granule(1))).toBe(true);
    expect(marks(await disk.cut(exact))).toEqual([1]);
  });

  it("that fails leaves its granules marked, and its client gets the error", async () => {
    const { disk, device } = open();
    const failure = new TidemarkError("NO_SPACE", "full");
    device.failure = () => failure;
    await expect(disk.write(0, granule(1))).rejects.toBe(failure);
    device.hasShortWay = true;
    expect(() => disk.tryWrite(2 * granuleBytes, granule(1))).toThrow(failure);
    expect(marks(await disk.cut(exact))).toEqual([0, 2]);
  });

  it("waits until its regions may durably be dirty", async () => {
    const { disk, device, tracking } = open({ sizeBytes: 2 * regionBytes });
    tracking.durable.clear();
    const durable = promise();
    tracking.beforeDurable = () => durable.settled;
    device.hasShortWay = true;
    expect(disk.tryWrite(regionBytes, granule(1))).toBe(false);
    const writing = disk.write(regionBytes - 1, Buffer.from([1, 1]));
    await quiet();
    expect([disk.dirtyBytes, device.bytes[regionBytes]]).toEqual([0, 0]);
    durable.settle();
    await writing;
    expect([...tracking.durable]).toEqual([0, 1]);
    expect(disk.tryWrite(regionBytes, granule(2))).toBe(true);
  });

  it("asks again whether its region is durable when it has waited at the gate", async () => {
    const { disk, device, tracking } = open();
    await disk.write(0, granule(1));
    const prepared = await disk.prepare();
    const writing = disk.write(0, granule(2));
    tracking.durable.clear();
    const durable = promise();
    tracking.beforeDurable = () => durable.settled;
    prepared.release();
    await quiet();
    expect(device.bytes[0]).toBe(1);
    durable.settle();
    await writing;
    expect(device.bytes[0]).toBe(2);
  });
});

describe("the barrier", () => {
  it("waits for writes under way, holds new ones in their order, and lets reads and flushes pass", async () => {
    const { disk, device } = open();
    device.isPrompt = false;
    const before = disk.write(0, granule(1));
    const preparing = disk.prepare();
    await quiet();
    const after = [disk.write(0, granule(2)), disk.write(0, granule(3))];
    await quiet();
    expect(device.pending).toHaveLength(1);
    device.isPrompt = true;
    await disk.flush();
    await disk.read(granuleBytes, Buffer.alloc(10));
    device.hasShortWay = true;
    expect(disk.tryWrite(0, granule(9))).toBe(false);
    device.settle();
    await before;
    const prepared = await preparing;
    await quiet();
    expect([prepared.held, device.bytes[0]]).toEqual([true, 1]);
    const cut = prepared.cut(exact);
    await Promise.all(after);
    expect(device.bytes[0]).toBe(3);
    expect(await content(cut)).toEqual(granule(1));
  });

  it("that takes too long is given up, says how many writes were under way, and loses nothing", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const { disk, device } = open({ barrierMsMax: 50 });
    device.isPrompt = false;
    const slow = [disk.write(0, granule(1)), disk.write(granuleBytes, granule(1))];
    const cutting = expect(disk.cut(exact)).rejects.toMatchObject({
      code: "CUT_TIMED_OUT",
      detail: { inFlight: 2, barrierMsMax: 50 },
    });
    await quiet();
    const held = disk.write(2 * granuleBytes, granule(1));
    vi.advanceTimersByTime(50);
    await cutting;
    await quiet();
    expect(device.writesPending).toBe(3);
    device.settle();
    await Promise.all([...slow, held]);
    expect(marks(await disk.cut(exact))).toEqual([0, 1, 2]);
  });

  it("opens by itself when no cut is made, and no cut can be made of it any more", async () => {
    vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout"] });
    const { disk } = open({ barrierMsMax: 50 });
    const prepared = await disk.prepare();
    const writing = disk.write(0, granule(1));
    vi.advanceTimersByTime(50);
    await writing;
    expect(prepared.held).toBe(false);
    expect(() => prepared.cut(exact)).toThrow(expect.objectContaining({ code: "CUT_TIMED_OUT" }) as Error);
    expect(marks(await disk.cut(exact))).toEqual([0]);
  });

  it("is measured", async () => {
    let nowMs = 1000;
    const { disk } = open({ steadyNow: () => nowMs, now: () => 77 });
    for (const heldMs of [20, 5]) {
      const prepared = await disk.prepare();
      nowMs += heldMs;
      const cut = prepared.cut(exact);
      expect([cut.barrierMs, cut.timeMs]).toEqual([heldMs, 77]);
      cut.abandon();
    }
    expect(disk.barrier).toEqual({ lastMs: 5, maxMs: 20 });
  });

  it("comes only when the cut before it has ended", async () => {
    const { disk, device } = open();
    const first = await disk.cut(exact);
    const second = disk.prepare();
    await quiet();
    device.hasShortWay = true;
    await disk.write(0, granule(1));
    first.abandon();
    const prepared = await second;
    const ready = disk.ready();
    prepared.release();
    await ready;
    expect(marks(await disk.cut(exact))).toEqual([0]);
  });
});

describe("an exact cut", () => {
  it("gives what the disk held, whatever is written before it is read", async () => {
    for (const hasShortWay of [true, false]) {
      const { disk, device } = open();
      device.hasShortWay = hasShortWay;
      await disk.write(0, Buffer.concat([granule(1), granule(2), granule(3), granule(4)]));
      const cut = await disk.cut(exact);
      await disk.write(granuleBytes - 1, Buffer.from([9, 9]));
      await disk.zero(2 * granuleBytes, 1, true);
      await disk.trim(3 * granuleBytes, granuleBytes);
      expect(disk.preservedBytes).toBe(4 * granuleBytes);
      expect(await content(cut)).toEqual(Buffer.concat([granule(1), granule(2), granule(3), granule(4)]));
      expect(disk.preservedBytes).toBe(0);
      // What has been captured is not kept any more.
      await disk.write(0, granule(5));
      expect(disk.preservedBytes).toBe(0);
      cut.committed("p1");
      expect(marks(await disk.cut(exact))).toEqual([0, 1, 2, 3]);
    }
  });

  it("keeps nothing of granules that it does not want", async () => {
    const { disk } = open();
    await disk.write(granuleBytes, granule(1));
    await disk.cut(exact);
    await disk.write(0, granule(2));
    await disk.write(2 * granuleBytes, granule(2));
    expect(disk.preservedBytes).toBe(0);
  });

  it("lets the second write to a granule wait for the copy that the first one makes", async () => {
    const { disk, device } = open();
    await disk.write(0, granule(1));
    const cut = await disk.cut(exact);
    device.isPrompt = false;
    const writes = [disk.write(0, granule(2)), disk.write(10, Buffer.from([3]))];
    await quiet();
    expect(device.pending.map(({ kind }) => kind)).toEqual(["read"]);
    device.hasShortWay = true;
    expect(disk.tryWrite(0, granule(4))).toBe(false);
    device.hasShortWay = false;
    device.settle();
    await Promise.all(writes);
    expect(await content(cut)).toEqual(granule(1));
  });

  it("keeps the part of the disk's last granule that there is", async () => {
    for (const hasShortWay of [true, false]) {
      const { disk, device } = open({ sizeBytes: granuleBytes + 700 });
      device.hasShortWay = hasShortWay;
      await disk.write(granuleBytes, Buffer.alloc(700, 1));
      const cut = await disk.cut(exact);
      expect(cut.dirtyBytes).toBe(700);
      await disk.write(granuleBytes + 1, Buffer.alloc(699, 2));
      expect(await content(cut)).toEqual(Buffer.alloc(700, 1));
    }
  });

  it("is abandoned when there is no room for old content, and the write goes on", async () => {
    const { disk, device } = open({ preservedBytesMax: granuleBytes });
    await disk.write(0, Buffer.concat([granule(1), granule(2), granule(3)]));
    const cut = await disk.cut(exact);
    await disk.write(0, granule(7));
    expect(cut.signal.aborted).toBe(false);
    await cut.read(granuleBytes, Buffer.alloc(granuleBytes));
    await disk.write(2 * granuleBytes, granule(7));
    expect(cut.signal.reason).toMatchObject({ code: "CUT_ABANDONED", detail: { preservedBytes: granuleBytes } });
    expect(device.bytes.subarray(2 * granuleBytes, 3 * granuleBytes)).toEqual(granule(7));
    await expect(cut.read(0, Buffer.alloc(granuleBytes))).rejects.toMatchObject({ code: "CUT_ABANDONED" });
    // A walk of the extents learns of it, rather than that there are no more.
    expect(() => [...cut.extents()]).toThrow(expect.objectContaining({ code: "CUT_ABANDONED" }) as Error);
    cut.abandon();
    expect(disk.preservedBytes).toBe(0);
    expect(marks(await disk.cut(exact))).toEqual([0, 1, 2]);
  });

  it("is abandoned when old content cannot be read or spilled, and the write goes on", async () => {
    for (const hasShortWay of [true, false]) {
      const { disk, device } = open();
      await disk.write(0, granule(1));
      const cut = await disk.cut(exact);
      device.hasShortWay = hasShortWay;
      const broken = new TidemarkError("SOURCE_UNREADABLE", "broken");
      device.failure = (kind) => (kind === "read" || kind === "tryRead" ? broken : undefined);
      if (hasShortWay) expect(disk.tryWrite(0, granule(2))).toBe(true);
      else await disk.write(0, granule(2));
      expect(cut.signal.reason).toMatchObject({ code: "CUT_ABANDONED", cause: broken });
      expect(device.bytes[0]).toBe(2);
    }
    const { disk, device } = open({ preservedBytesMax: 0, spillFolder: "/nonexistent/tidemark" });
    await disk.write(0, granule(1));
    const cut = await disk.cut(exact);
    await disk.write(0, granule(2));
    expect(cut.signal.reason).toMatchObject({ code: "CUT_ABANDONED", cause: { code: "TARGET_FAILED" } });
    expect(device.bytes[0]).toBe(2);
  });

  it("stays when old content cannot be kept that has been captured meanwhile", async () => {
    const { disk, device, cut, writing, keeping } = await overwritten();
    device.isPrompt = true;
    expect(await content(cut)).toEqual(granule(1));
    keeping?.fail(new TidemarkError("SOURCE_UNREADABLE", "broken"));
    await writing;
    expect([cut.signal.aborted, device.bytes[0]]).toEqual([false, 2]);
    cut.committed("p1");
    expect(marks(await disk.cut(exact))).toEqual([0]);
  });

  it("is abandoned when what was captured is read again, because it may have been overwritten since", async () => {
    const { disk } = open();
    await disk.write(0, granule(1));
    const cut = await disk.cut(exact);
    expect(await content(cut)).toEqual(granule(1));
    await disk.write(0, granule(2));
    await expect(cut.read(0, Buffer.alloc(granuleBytes))).rejects.toMatchObject({ code: "CUT_ABANDONED" });
    expect(cut.signal.reason).toMatchObject({ code: "CUT_ABANDONED" });
    expect(marks(await disk.cut(exact))).toEqual([0]);
  });

  it("that is abandoned while a write keeps old content holds up neither the write nor the next cut", async () => {
    const { disk, device, cut, writing, keeping } = await overwritten();
    cut.abandon();
    device.isPrompt = true;
    while (keeping !== undefined && device.pending.includes(keeping)) keeping.step();
    await writing;
    expect(device.bytes[0]).toBe(2);
    const next = await disk.cut(exact);
    expect(await content(next)).toEqual(granule(2));
  });

  it("passes a read's failure on and can be read again", async () => {
    const { disk, device } = open();
    await disk.write(0, granule(1));
    const cut = await disk.cut(exact);
    const broken = new TidemarkError("SOURCE_UNREADABLE", "broken");
    device.failure = () => broken;
    await expect(cut.read(0, Buffer.alloc(granuleBytes))).rejects.toBe(broken);
    device.failure = undefined;
    await disk.write(0, granule(2));
    expect(await content(cut)).toEqual(granule(1));
  });

  it("cannot be committed before all of it has been read", async () => {
    const { disk } = open();
    await disk.write(0, Buffer.concat([granule(1), granule(2)]));
    const cut = await disk.cut(exact);
    await cut.read(0, Buffer.alloc(granuleBytes));
    expect(() => cut.committed("p1")).toThrow("captured");
  });
});

describe("an inexact cut", () => {
  it("keeps nothing, and tells that the disk has been written since", async () => {
    const { disk } = open();
    await disk.write(0, granule(1));
    const cut = await disk.cut({ exact: false });
    expect([cut.exact, disk.isWrittenSinceCut]).toEqual([false, false]);
    await disk.write(0, granule(2));
    expect([disk.preservedBytes, disk.isWrittenSinceCut]).toEqual([0, true]);
    expect(await content(cut)).toEqual(granule(2));
    cut.committed("p1");
    expect(disk.base).toBe("p1");
  });
});

describe("marks", () => {
  it("are gone once committed, and come back when a cut is abandoned", async () => {
    const { disk } = open();
    await disk.write(0, granule(1));
    const first = await disk.cut(exact);
    await disk.write(granuleBytes, granule(1));
    expect(disk.dirtyBytes).toBe(2 * granuleBytes);
    first.abandon();
    first.abandon();
    const second = await disk.cut(exact);
    expect(marks(second)).toEqual([0, 1]);
    await commit(second, "p1");
    second.abandon();
    expect([disk.base, disk.dirtyBytes]).toEqual(["p1", 0]);
    expect(marks(await disk.cut(exact))).toEqual([]);
  });

  it("are made durable when another caller reports them", async () => {
    const { disk, tracking } = open({ sizeBytes: 2 * regionBytes });
    tracking.durable.clear();
    await disk.markDirty([{ offset: regionBytes, length: 1 }]);
    expect([...tracking.durable]).toEqual([1]);
    expect(marks(await disk.cut(exact))).toEqual([regionBytes / granuleBytes]);
  });

  it("cover what a disk has grown by, while an open cut keeps its size", async () => {
    const { disk, device, tracking } = open({ sizeBytes: granuleBytes + 512 });
    await disk.write(granuleBytes, Buffer.alloc(512, 1));
    const cut = await disk.cut(exact);
    device.bytes = Buffer.concat([device.bytes, Buffer.alloc(2 * granuleBytes)]);
    expect(disk.sizeBytes).toBe(granuleBytes + 512);
    await disk.grow();
    expect([disk.sizeBytes, tracking.sizeBytes]).toEqual([3 * granuleBytes + 512, 3 * granuleBytes + 512]);
    await disk.write(granuleBytes, granule(2));
    expect([cut.sizeBytes, await content(cut)]).toEqual([granuleBytes + 512, Buffer.alloc(512, 1)]);
    cut.committed("p1");
    for (const point of ["p2", "p3"]) {
      const next = await disk.cut(exact);
      if (point === "p2") expect(marks(next)).toEqual([1, 2, 3]);
      await commit(next, point);
      await disk.write(3 * granuleBytes, Buffer.alloc(512, 3));
    }
  });
});

describe("the base", () => {
  it("goes back with a store that has forgotten points, and what they held counts as changed", async () => {
    const { disk } = open();
    for (const [index, point] of ["p1", "p2", "p3"].entries()) {
      await disk.write(index * granuleBytes, granule(index));
      await commit(await disk.cut(exact), point);
    }
    expect(disk.rebase("p3")).toBe("current");
    expect(disk.rebase("another")).toBe("unknown");
    expect(disk.rebase(undefined)).toBe("unknown");
    expect([disk.base, disk.dirtyBytes]).toEqual(["p3", 0]);
    expect(disk.rebase("p1")).toBe("earlier");
    expect([disk.base, disk.dirtyBytes]).toEqual(["p1", 2 * granuleBytes]);
    expect(disk.rebase("p2")).toBe("unknown");
    expect(marks(await disk.cut(exact))).toEqual([1, 2]);
  });

  it("becomes a point whose commit had no answer, if the store holds it", async () => {
    const { disk, tracking } = open();
    await disk.write(0, granule(1));
    const cut = await disk.cut(exact);
    await disk.expectPoint("p1");
    cut.abandon();
    expect(tracking.expected).toEqual(["p1"]);
    expect(disk.rebase("p1")).toBe("current");
    await disk.write(granuleBytes, granule(1));
    await commit(await disk.cut(exact), "p2");
    // The store may still lose it, too.
    expect(disk.rebase("p0")).toBe("earlier");
    expect(marks(await disk.cut(exact))).toEqual([0, 1]);
  });

  it("is any of those that are known after a crash", async () => {
    const { disk } = open({ base: "p3", earlierBases: ["p1", "p2"] });
    await disk.write(0, granule(1));
    expect(disk.rebase("p2")).toBe("current");
    await commit(await disk.cut(exact), "p4");
    expect(disk.rebase("p3")).toBe("unknown");
    expect(disk.rebase("p1")).toBe("earlier");
    expect(marks(await disk.cut(exact))).toEqual([0]);
  });

  it("cannot be gone back behind once it has settled", async () => {
    let nowMs = 0;
    const { disk } = open({ steadyNow: () => nowMs, settleMs: 1000 });
    await commit(await disk.cut(exact), "p1");
    nowMs = 15_000;
    await commit(await disk.cut(exact), "p2");
    expect(disk.rebase("p0")).toBe("unknown");
    expect(disk.rebase("p1")).toBe("earlier");
  });

  it("lets the tracking file forget only what has been flushed and is marked nowhere", async () => {
    let nowMs = 0;
    const { disk, device, tracking } = open({ sizeBytes: 5 * regionBytes, steadyNow: () => nowMs, settleMs: 1000 });
    await disk.write(0, granule(1));
    await commit(await disk.cut(exact), "p1");
    await quiet();
    expect([device.flushes, tracking.bases]).toEqual([1, ["p0", "p1"]]);
    await disk.write(regionBytes, granule(1));
    nowMs = 15_000;
    await commit(await disk.cut(exact), "p2");
    await quiet();
    expect([device.flushes, tracking.bases]).toEqual([2, ["p1", "p2"]]);
    await disk.write(2 * regionBytes, granule(1));
    const open2 = await disk.cut(exact);
    await disk.write(3 * regionBytes, granule(1));
    expect([0, 1, 2, 3, 4].filter((region) => tracking.isNeeded(region))).toEqual([1, 2, 3]);
    open2.abandon();
  });

  it("settles nothing while the disk cannot be flushed", async () => {
    const { disk, device, tracking } = open();
    vi.spyOn(device, "flush").mockRejectedValue(new TidemarkError("DEVICE_FAILED", "lost"));
    await commit(await disk.cut(exact), "p1");
    await quiet();
    expect([disk.base, tracking.bases]).toEqual(["p1", []]);
  });
});

describe("the end", () => {
  it("lets writes that wait be done, refuses later ones, and saves the exact marks", async () => {
    const { disk, device, tracking } = open();
    await disk.write(0, granule(1));
    const prepared = await disk.prepare();
    const waiting = disk.write(granuleBytes, granule(2));
    const nextCut = expect(disk.prepare()).rejects.toMatchObject({ code: "DEVICE_FAILED" });
    const closing = disk.closeClean();
    await expect(disk.write(0, granule(3))).rejects.toMatchObject({ code: "DEVICE_FAILED" });
    device.hasShortWay = true;
    expect(disk.tryWrite(0, granule(3))).toBe(false);
    await Promise.all([waiting, closing, nextCut]);
    expect(prepared.held).toBe(false);
    expect(device.bytes[granuleBytes]).toBe(2);
    expect([tracking.closed, tracking.saved]).toEqual(["clean", { base: "p0", granules: 2 }]);
    expect([device.flushes, device.isClosed]).toEqual([1, true]);
    await disk.close();
    expect(tracking.closed).toBe("clean");
  });

  it("abandons an open cut, whose marks are saved", async () => {
    const { disk, tracking } = open();
    await disk.write(0, granule(1));
    const cut = await disk.cut(exact);
    await disk.closeClean();
    await expect(cut.read(0, Buffer.alloc(granuleBytes))).rejects.toMatchObject({ code: "CUT_ABANDONED" });
    expect(tracking.saved).toEqual({ base: "p0", granules: 1 });
  });

  it("without saving leaves the tracking file as a crash would", async () => {
    const { disk, device, tracking } = open();
    await disk.close();
    expect([tracking.closed, tracking.saved, device.isClosed]).toEqual(["crashed", undefined, true]);
  });
});

interface Opened {
  readonly disk: ProtectedDisk;
  readonly device: ModelDevice;
  readonly tracking: ModelTracking;
}

/** A disk of zeros whose base is `p0`. */
function open(options: Partial<Omit<ProtectedDiskOptions, "backing">> & { readonly sizeBytes?: number } = {}): Opened {
  const { sizeBytes = 8 * granuleBytes, ...given } = options;
  const device = new ModelDevice(Buffer.alloc(sizeBytes));
  const tracking = new ModelTracking();
  // What becomes of writes to other regions has tests of its own.
  for (let region = 0; region < sizeBytes / regionBytes; region += 1) tracking.durable.add(region);
  const dirty = new DirtyBitmap(sizeBytes);
  const disk = ProtectedDisk.open({
    backing: device,
    tracking,
    dirty,
    base: "p0",
    spillFolder: undefined,
    settleMs: 60_000,
    barrierMsMax: 60_000,
    ...given,
  });
  return { disk, device, tracking };
}

/** An exact cut of one granule, and a write to it, which is reading the old content that it has to keep. */
async function overwritten(): Promise<
  Opened & {
    readonly cut: Cut;
    readonly writing: Promise<void>;
    readonly keeping: ModelDevice["pending"][number] | undefined;
  }
> {
  const opened = open();
  const { disk, device } = opened;
  await disk.write(0, granule(1));
  const cut = await disk.cut(exact);
  device.isPrompt = false;
  const writing = disk.write(0, granule(2));
  await quiet();
  return { ...opened, cut, writing, keeping: device.pending[0] };
}

function granule(fill: number): Buffer {
  return Buffer.alloc(granuleBytes, fill);
}

/** The granules that a cut wants. */
function marks(cut: Cut): number[] {
  const granules: number[] = [];
  for (const { offset, length } of cut.extents()) {
    for (let at = offset; at < offset + length; at += granuleBytes) granules.push(at / granuleBytes);
  }
  return granules;
}

/** All that a cut gives, one extent behind the other. */
async function content(cut: Cut): Promise<Buffer> {
  const parts: Buffer[] = [];
  for (const { offset, length } of cut.extents()) {
    const into = Buffer.alloc(length);
    await cut.read(offset, into);
    parts.push(into);
  }
  return Buffer.concat(parts);
}

async function commit(cut: Cut, point: string): Promise<void> {
  await content(cut);
  cut.committed(point);
}

function promise(): { readonly settled: Promise<void>; readonly settle: () => void } {
  let settle = (): void => undefined;
  const settled = new Promise<void>((resolve) => {
    settle = resolve;
  });
  return { settled, settle: () => settle() };
}
