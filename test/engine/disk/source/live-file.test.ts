import {
  closeSync,
  ftruncateSync,
  mkdtempSync,
  openSync,
  readFileSync,
  readSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { libc } from "../../../../engine/disk/source/libc.ts";
import { LiveFile, type LiveFileOptions, type LiveFileSystem } from "../../../../engine/disk/source/live-file.ts";
import type { Extent } from "../../../../engine/volume.ts";
import { attachLoop } from "../../../loop-device.ts";
import { mountSmallDisk } from "../../../small-disk.ts";

const granule = 4096;
const mib = 1024 * 1024;

let folder: string;
let image: string;
const opened: LiveFile[] = [];
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "live-file-"));
  image = join(folder, "disk.img");
});
afterEach(async () => {
  for (const live of opened.splice(0)) await live.close();
  rmSync(folder, { recursive: true });
});

/**
 * Where no test says otherwise, no call takes time: a machine that stumbles would have one take the
 * long way.
 */
async function openLive(path: string, options: LiveFileOptions = {}): Promise<LiveFile> {
  const live = await LiveFile.open(path, { ...options, system: { now: () => 0, ...options.system } });
  opened.push(live);
  return live;
}

function sparse(path: string, sizeBytes: number): void {
  const fd = openSync(path, "w");
  ftruncateSync(fd, sizeBytes);
  closeSync(fd);
}

function filled(length: number, value: number): Buffer {
  return Buffer.alloc(length, value);
}

/** Writes at once, or the long way when that is refused, as every caller does. */
async function put(live: LiveFile, offset: number, bytes: Uint8Array): Promise<void> {
  if (!live.tryWrite(offset, bytes)) await live.write(offset, bytes);
}

async function get(live: LiveFile, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.from(new SharedArrayBuffer(length));
  if (!live.tryRead(offset, into)) await live.read(offset, into);
  return into;
}

function failed(code: string): Error {
  return Object.assign(new Error(code), { code });
}

/** A promise that is settled from outside. */
function deferred(): { promise: Promise<void>; resolve: () => void; reject: (error: Error) => void } {
  let resolve = (): void => undefined;
  let reject: (error: Error) => void = () => undefined;
  const promise = new Promise<void>((yes, no) => {
    resolve = yes;
    reject = no;
  });
  return { promise, resolve, reject };
}

/** The same rules hold where the content has a disk below it and where it has none. */
const places = [
  { kind: "a temporary folder", at: () => image },
  { kind: "tmpfs", at: () => join("/dev/shm", `${folder.slice(folder.lastIndexOf("/") + 1)}.img`) },
];

describe.each(places)("a live file in $kind", ({ kind, at }) => {
  let path: string;
  beforeEach((context) => {
    path = at();
    try {
      sparse(path, 8 * mib + 1000);
    } catch (error) {
      context.skip(`no file can be made in ${kind}: ${String(error)}`);
    }
  });
  afterEach(() => {
    rmSync(path, { force: true });
  });

  test("reads back what was written, of any size and alignment, and keeps it in the file", async () => {
    const live = await openLive(path);
    const model = Buffer.alloc(8 * mib + 1000);
    const writes: readonly (readonly [offset: number, length: number])[] = [
      [0, granule],
      [granule, 1],
      [10_001, 5000],
      [mib, 128 * 1024],
      [2 * mib + 7, 3 * mib],
      [8 * mib, 1000],
    ];
    for (const [index, [offset, length]] of writes.entries()) {
      await put(live, offset, filled(length, index + 1));
      model.fill(index + 1, offset, offset + length);
      expect(Buffer.compare(await get(live, offset, length), model.subarray(offset, offset + length))).toBe(0);
    }
    await live.flush();
    expect(Buffer.compare(readFileSync(path), model)).toBe(0);
  });

  test("answers small requests at once when they are cached", async () => {
    const live = await openLive(path);
    expect(live.tryWrite(0, filled(granule, 3))).toBe(true);
    const into = Buffer.alloc(granule);
    expect(live.tryRead(0, into)).toBe(true);
    expect(Buffer.compare(into, filled(granule, 3))).toBe(0);
    expect(live.tryRead(0, Buffer.alloc(0))).toBe(true);
  });

  test("leaves large requests, parts of pages and the time after its close to the long way, having done nothing", async () => {
    const live = await openLive(path);
    expect(live.tryWrite(0, filled(mib, 9))).toBe(false);
    expect(live.tryWrite(100, filled(granule, 9))).toBe(false);
    expect(live.tryWrite(0, filled(100, 9))).toBe(false);
    expect(live.tryRead(0, Buffer.alloc(mib))).toBe(false);
    await live.close();
    expect(live.tryWrite(0, filled(granule, 9))).toBe(false);
    expect(live.tryRead(0, Buffer.alloc(granule))).toBe(false);
    expect(readFileSync(path).every((byte) => byte === 0)).toBe(true);
  });

  test.each([true, false])(
    "zeroes ranges of any alignment, and only them (space may be given back: %s)",
    async (mayTrim) => {
      const live = await openLive(path);
      const model = filled(8 * mib + 1000, 7);
      await live.write(0, model);
      const ranges: readonly (readonly [offset: number, length: number])[] = [
        [5, 10],
        [granule - 1, 2],
        [3 * granule, 2 * granule],
        [mib - 3, 2 * mib + 9],
        [8 * mib - 1, 1001],
      ];
      for (const [offset, length] of ranges) {
        await live.zero(offset, length, mayTrim);
        model.fill(0, offset, offset + length);
      }
      expect(Buffer.compare(await get(live, 0, model.length), model)).toBe(0);
      expect(statSync(path).size).toBe(model.length);
    },
  );

  test("gives space back when it is trimmed, tells the hole, and keeps the space of zeros that must stay allocated", async (context) => {
    if (libc()?.fallocate === undefined) context.skip("this platform has no fallocate");
    const live = await openLive(path);
    await live.write(0, filled(8 * mib, 7));
    await live.flush();
    await live.zero(mib, mib, false);
    expect(statSync(path).blocks * 512).toBeGreaterThanOrEqual(8 * mib);
    await live.zero(2 * mib, mib, true);
    await live.trim(4 * mib, 2 * mib);
    expect(statSync(path).blocks * 512).toBeLessThanOrEqual(5 * mib + 64 * 1024);
    expect(live.extents(2 * mib, mib, 9)).toEqual([{ offset: 2 * mib, length: mib, kind: "hole" }]);
    expect(live.extents(3 * mib, 4 * mib, 9)).toEqual([
      { offset: 3 * mib, length: mib, kind: "data" },
      { offset: 4 * mib, length: 2 * mib, kind: "hole" },
      { offset: 6 * mib, length: mib, kind: "data" },
    ]);
    expect(Buffer.compare(await get(live, 4 * mib, mib), Buffer.alloc(mib))).toBe(0);
  });

  test("tells what a range holds without gaps, clipped to it, and at most as many extents as asked for", async () => {
    const live = await openLive(path);
    for (let index = 1; index < 8; index += 2) await live.write(index * 64 * 1024, filled(64 * 1024, 1));
    const all = live.extents(0, 8 * mib, 1000);
    expect(all.slice(0, 3)).toEqual([
      { offset: 0, length: 64 * 1024, kind: "hole" },
      { offset: 64 * 1024, length: 64 * 1024, kind: "data" },
      { offset: 128 * 1024, length: 64 * 1024, kind: "hole" },
    ]);
    expect(all.reduce((sum, extent) => sum + extent.length, 0)).toBe(8 * mib);
    for (const countMax of [1, 2, 3, 4]) expect(live.extents(0, 8 * mib, countMax)).toEqual(all.slice(0, countMax));
    expect(live.extents(70_000, 1000, 9)).toEqual([{ offset: 70_000, length: 1000, kind: "data" }]);
    expect(live.extents(0, 1000, 9)).toEqual([{ offset: 0, length: 1000, kind: "hole" }]);
    expect(live.extents(0, 0, 9)).toEqual([]);
  });

  test("takes a close while calls are under way, and finishes them first", async () => {
    const live = await openLive(path);
    const bytes = filled(4 * mib, 5);
    const calls = [
      live.write(0, bytes),
      live.zero(4 * mib, 4 * mib, true),
      live.flush(),
      live.read(0, Buffer.alloc(mib)),
    ];
    const closing = live.close();
    for (const outcome of await Promise.allSettled(calls)) expect(outcome.status).toBe("fulfilled");
    await closing;
    await expect(live.read(0, Buffer.alloc(1))).rejects.toMatchObject({ code: "INTERNAL" });
    await expect(live.write(0, Buffer.alloc(1))).rejects.toMatchObject({ code: "INTERNAL" });
    await expect(live.trim(0, granule)).rejects.toMatchObject({ code: "INTERNAL" });
    await expect(live.flush()).rejects.toMatchObject({ code: "INTERNAL" });
    expect(
      readFileSync(path)
        .subarray(0, 4 * mib)
        .equals(bytes),
    ).toBe(true);
    await live.close();
  });

  test("serves many callers at once, each with its own bytes", async () => {
    const live = await openLive(path);
    const slots = Array.from({ length: 100 }, (_, index) => index);
    const length = 3 * granule;
    await Promise.all(
      slots.map(async (slot) => {
        await put(live, slot * length, filled(length, slot + 1));
        if (slot % 10 === 0) await live.flush();
        if (slot % 7 === 0) await live.zero(slot * length, granule, true);
      }),
    );
    for (const slot of slots) {
      const wanted = filled(length, slot + 1);
      if (slot % 7 === 0) wanted.fill(0, 0, granule);
      expect((await get(live, slot * length, length)).equals(wanted)).toBe(true);
    }
  });
});

describe("a live file", () => {
  test("has one writer, and any number of readers", async () => {
    sparse(image, mib);
    const writer = await openLive(image);
    await expect(LiveFile.open(image)).rejects.toMatchObject({ code: "WRITER_ACTIVE", detail: { path: image } });
    const reader = await openLive(image, { readOnly: true });
    await put(writer, 0, filled(granule, 1));
    expect((await get(reader, 0, granule)).equals(filled(granule, 1))).toBe(true);
    await expect(reader.write(0, filled(1, 1))).rejects.toMatchObject({ code: "ACCESS_REFUSED" });
    await expect(reader.trim(0, granule)).rejects.toMatchObject({ code: "ACCESS_REFUSED" });
    expect(reader.tryWrite(0, filled(granule, 1))).toBe(false);
    await writer.close();
    await openLive(image);
  });

  test("that is absent, a folder or a device of characters is refused by name", async () => {
    await expect(LiveFile.open(join(folder, "none"))).rejects.toMatchObject({ code: "SOURCE_NOT_FOUND" });
    await expect(LiveFile.open(folder)).rejects.toMatchObject({ code: "SOURCE_UNREADABLE" });
    await expect(LiveFile.open("/dev/null")).rejects.toMatchObject({ code: "SOURCE_UNREADABLE" });
  });

  test("that cannot be locked is not written", async () => {
    sparse(image, mib);
    await expect(LiveFile.open(image, { system: { libc: undefined } })).rejects.toMatchObject({ code: "UNSUPPORTED" });
  });

  test("grows when it is looked at, and never shrinks", async () => {
    writeFileSync(image, filled(10_000, 1));
    const live = await openLive(image);
    const fd = openSync(image, "r+");
    ftruncateSync(fd, 20_000);
    expect(live.sizeBytes).toBe(10_000);
    await expect(live.write(15_000, filled(10, 1))).rejects.toMatchObject({ code: "INTERNAL" });
    expect(await live.refreshSize()).toBe(20_000);
    await live.write(15_000, filled(10, 1));
    ftruncateSync(fd, 5000);
    closeSync(fd);
    await expect(live.refreshSize()).rejects.toMatchObject({ code: "SOURCE_SHRUNK", detail: { offset: 5000 } });
    await expect(live.read(4096, Buffer.alloc(4096))).rejects.toMatchObject({
      code: "SOURCE_SHRUNK",
      detail: { offset: 5000 },
    });
    expect(live.sizeBytes).toBe(20_000);
  });

  test.each(["whole", "scattered"] as const)("shows its content as a volume, read %s", async (access) => {
    sparse(image, mib);
    const live = await openLive(image);
    await put(live, 64 * 1024, filled(granule, 4));
    const volume = live.volume(access);
    const bytes = Buffer.alloc(2 * granule);
    expect(readSync(volume.descriptor ?? -1, bytes, 0, bytes.length, 63 * 1024)).toBe(bytes.length);
    expect(bytes.equals(Buffer.concat([filled(1024, 0), filled(granule, 4), filled(3 * 1024, 0)]))).toBe(true);
    expect(await volume.sizeBytes()).toBe(mib);
    const into = new Uint8Array(new SharedArrayBuffer(granule));
    await volume.read(64 * 1024, into);
    expect(into.every((byte) => byte === 4)).toBe(true);
    const extents: Extent[] = [];
    for await (const extent of volume.allocated?.(mib) ?? []) extents.push(extent);
    expect(extents).toEqual([{ offset: 64 * 1024, length: granule }]);
    expect(live.identity().kind).toBe("file");
  });

  test("on a full disk answers NO_SPACE, at once and the long way, and still reads and gives space back", async (context) => {
    const disk = mountSmallDisk(join(folder, "small"), mib);
    if ("reason" in disk) return context.skip(`no full disk to test with: ${disk.reason}`);
    try {
      const path = join(disk.path, "disk.img");
      sparse(path, 4 * mib);
      const live = await LiveFile.open(path);
      const bytes = filled(64 * 1024, 1);
      let fault: unknown;
      let offset = 0;
      for (; offset < 4 * mib && fault === undefined; offset += bytes.length) {
        try {
          expect(live.tryWrite(offset, bytes)).toBe(true);
        } catch (error) {
          fault = error;
        }
      }
      expect(fault).toMatchObject({ code: "NO_SPACE", detail: { path } });
      await expect(live.write(offset, bytes)).rejects.toMatchObject({ code: "NO_SPACE" });
      expect((await get(live, 0, bytes.length)).equals(bytes)).toBe(true);
      await live.trim(0, 512 * 1024);
      await put(live, offset, bytes);
      await live.close();
    } finally {
      disk.unmount();
    }
  });

  test("is a block device too, of which it is the only writer", async (context) => {
    writeFileSync(image, filled(4 * mib, 6));
    const loop = attachLoop(image);
    if ("reason" in loop) return context.skip(`no device to test with: ${loop.reason}`);
    try {
      const live = await LiveFile.open(loop.path);
      try {
        expect(live.sizeBytes).toBe(4 * mib);
        expect(live.identity().kind).toBe("device");
        await expect(LiveFile.open(loop.path)).rejects.toMatchObject({ code: "WRITER_ACTIVE" });
        await put(live, granule, filled(granule, 8));
        await live.zero(mib + 100, mib, true);
        await live.zero(3 * mib, 10_000, false);
        await live.trim(2 * mib + 512 * 1024, granule);
        await live.flush();
        const model = filled(4 * mib, 6)
          .fill(8, granule, 2 * granule)
          .fill(0, mib + 100, 2 * mib + 100);
        model.fill(0, 3 * mib, 3 * mib + 10_000);
        const found = await get(live, 0, 2 * mib + 512 * 1024);
        expect(found.equals(model.subarray(0, found.length))).toBe(true);
        expect((await get(live, 3 * mib, mib)).equals(model.subarray(3 * mib))).toBe(true);
        expect(live.extents(0, 4 * mib, 10)).toEqual([{ offset: 0, length: 4 * mib, kind: "data" }]);
      } finally {
        await live.close();
      }
    } finally {
      loop.detach();
    }
  });
});

describe("a flush", () => {
  test("shares no sync that began before it was called, and shares the next with all callers that waited", async () => {
    sparse(image, mib);
    const syncs: ReturnType<typeof deferred>[] = [];
    const datasync = (): Promise<void> => {
      const sync = deferred();
      syncs.push(sync);
      return sync.promise;
    };
    const live = await openLive(image, { system: { datasync } });
    const done: string[] = [];
    const flush = (name: string): Promise<void> => live.flush().then(() => void done.push(name));
    const first = flush("first");
    const others = [flush("second"), flush("third")];
    expect(syncs).toHaveLength(1);
    syncs[0]?.resolve();
    await first;
    await Promise.resolve();
    expect([done, syncs.length]).toEqual([["first"], 2]);
    const fourth = flush("fourth");
    syncs[1]?.resolve();
    await Promise.all(others);
    await Promise.resolve();
    expect([done, syncs.length]).toEqual([["first", "second", "third"], 3]);
    syncs[2]?.resolve();
    await fourth;
    const fifth = flush("fifth");
    expect(syncs).toHaveLength(4);
    syncs[3]?.resolve();
    await fifth;
  });

  test("that failed makes every later one fail, although the device answers again", async () => {
    sparse(image, mib);
    let calls = 0;
    const datasync = (): Promise<void> => {
      calls += 1;
      return calls === 2 ? Promise.reject(failed("EIO")) : Promise.resolve();
    };
    const live = await openLive(image, { system: { datasync } });
    await live.flush();
    const outcomes = await Promise.allSettled([live.flush(), live.flush()]);
    for (const outcome of outcomes)
      expect(outcome).toMatchObject({
        status: "rejected",
        reason: { code: "DEVICE_FAILED", detail: { errno: "EIO" } },
      });
    await expect(live.flush()).rejects.toMatchObject({
      code: "DEVICE_FAILED",
      remedy: expect.stringContaining("point") as string,
    });
    expect(calls).toBe(2);
  });
});

describe("a system that misbehaves", () => {
  let nowMs = 0;
  let system: Partial<LiveFileSystem>;
  const writes: (() => number)[] = [];
  beforeEach(() => {
    sparse(image, mib);
    nowMs = 1000;
    writes.length = 0;
    system = {
      now: () => nowMs,
      writeAtOnce: (_fd, _bytes, _from, length) => (writes.shift() ?? (() => length))(),
    };
  });

  test("writes in pieces and is interrupted: the rest is written", async () => {
    const pieces: (readonly [from: number, position: number])[] = [];
    system = {
      ...system,
      writeAtOnce: (_fd, _bytes, from, length, position) => {
        pieces.push([from, position]);
        if (pieces.length === 2) throw failed("EINTR");
        return Math.min(length, 1000);
      },
    };
    const live = await openLive(image, { system });
    expect(live.tryWrite(8192, filled(granule, 1))).toBe(true);
    expect(pieces).toEqual([
      [0, 8192],
      [1000, 9192],
      [1000, 9192],
      [2000, 10_192],
      [3000, 11_192],
      [4000, 12_192],
    ]);
  });

  test.each([
    ["EIO", "DEVICE_FAILED"],
    ["ENOSPC", "NO_SPACE"],
    ["EDQUOT", "NO_SPACE"],
    ["EPERM", "ACCESS_REFUSED"],
  ])("fails a write with %s: that is %s", async (errno, code) => {
    writes.push(() => {
      throw failed(errno);
    });
    const live = await openLive(image, { system });
    expect(() => live.tryWrite(0, filled(granule, 1))).toThrow(expect.objectContaining({ code }));
  });

  test("writes nothing and gives no reason: that is a failure, not an endless loop", async () => {
    writes.push(() => 0);
    const live = await openLive(image, { system });
    expect(() => live.tryWrite(0, filled(granule, 1))).toThrow(expect.objectContaining({ code: "DEVICE_FAILED" }));
  });

  test("throttles a write: the next ones go the long way for a moment", async () => {
    writes.push(() => {
      nowMs += 12;
      return granule;
    });
    const live = await openLive(image, { system });
    expect(live.tryWrite(0, filled(granule, 1))).toBe(true);
    expect(live.tryWrite(0, filled(granule, 1))).toBe(false);
    nowMs += 95;
    expect(live.tryWrite(0, filled(granule, 1))).toBe(false);
    nowMs += 1;
    expect(live.tryWrite(0, filled(granule, 1))).toBe(true);
  });

  test("takes long to tell where data lies: everything counts as data for a while", async () => {
    let stepMs = 12;
    const slow = { ...system, now: () => (nowMs += stepMs) };
    const live = await openLive(image, { system: slow });
    const known = live.extents(0, mib, 8);
    expect(known[0]?.kind).toBe("hole");
    stepMs = 0;
    expect(live.extents(0, mib, 8)).toEqual([{ offset: 0, length: mib, kind: "data" }]);
    nowMs += 96;
    expect(live.extents(0, mib, 8)).toEqual(known);
  });

  test("changes its allocation for long: writes do not wait for the file's lock in the event loop meanwhile", async (context) => {
    const calls = libc();
    if (calls === undefined) return context.skip("this platform offers no system calls");
    const held = deferred();
    const live = await openLive(image, {
      system: { libc: { ...calls, fallocate: () => held.promise.then(() => ({ value: 0 })) } },
    });
    const trimming = live.trim(0, mib);
    expect(live.tryWrite(0, filled(granule, 1))).toBe(false);
    held.resolve();
    await trimming;
    expect(live.tryWrite(0, filled(granule, 1))).toBe(true);
  });

  test("knows no fallocate: zeros are written, a trim does nothing, and it is not asked again", async (context) => {
    const calls = libc();
    if (calls === undefined) return context.skip("this platform offers no system calls");
    let asked = 0;
    const fallocate = (): Promise<{ errno: number }> => {
      asked += 1;
      return Promise.resolve({ errno: 95 });
    };
    const live = await openLive(image, { system: { libc: { ...calls, fallocate } } });
    await live.write(0, filled(mib, 3));
    await live.trim(0, mib);
    expect((await get(live, 0, mib)).equals(filled(mib, 3))).toBe(true);
    await live.zero(10, mib - 20, true);
    expect(asked).toBe(1);
    const wanted = filled(mib, 3).fill(0, 10, mib - 10);
    expect((await get(live, 0, mib)).equals(wanted)).toBe(true);
  });

  test("interrupts a fallocate and then has no space: it is asked again, and NO_SPACE is told", async (context) => {
    const calls = libc();
    if (calls === undefined) return context.skip("this platform offers no system calls");
    const errnos = [4, 28];
    const fallocate = (): Promise<{ errno: number }> => Promise.resolve({ errno: errnos.shift() ?? 0 });
    const live = await openLive(image, { system: { libc: { ...calls, fallocate } } });
    await expect(live.zero(0, mib, false)).rejects.toMatchObject({ code: "NO_SPACE" });
    expect(errnos).toEqual([]);
  });

  test("has nothing cached: a read at once does nothing, and one that is not known is not tried again", async (context) => {
    const calls = libc();
    if (calls === undefined) return context.skip("this platform offers no system calls");
    const answers = [{ errno: calls.errno.wouldBlock }, { value: 100 }, { errno: 95 }];
    let asked = 0;
    const readCached = (): { errno: number } | { value: number } => {
      asked += 1;
      return answers.shift() ?? { value: granule };
    };
    const live = await openLive(image, { readOnly: true, system: { libc: { ...calls, readCached } } });
    for (let round = 0; round < 4; round += 1) expect(live.tryRead(0, Buffer.alloc(granule))).toBe(false);
    expect(asked).toBe(3);
  });
});
