/**
 * What a point is made of and how it is named: sizes, growth, names of disks, selectors, and
 * sources that move or fail.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { open, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { FileVolume } from "../../../engine/disk/source/file-volume.ts";
import { TidemarkError } from "../../../engine/errors.ts";
import type { Notice } from "../../../engine/notice.ts";
import type { Vault } from "../../../engine/vault.ts";
import type { Extent, Volume } from "../../../engine/volume.ts";
import { FaultySink, Gate } from "../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../sink/memory.ts";
import { callsOf } from "../../depth.ts";
import {
  checkNewest,
  closeModelVaults,
  committedPoints,
  contentOf,
  Expected,
  ModelDisk,
  openModelVault,
  pointBytes,
  replicateNoted,
  sampleDisk,
} from "../../model-disk.ts";
import { expectCode } from "../../sink/expectations.ts";

let folder: string;
let sink: MemorySink;
let vault: Vault;
let expected: Expected;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "points-"));
  sink = new MemorySink({ store: new MemoryStore() });
  vault = await openModelVault(sink, { stateFolder: join(folder, "state") });
  expected = new Expected("d");
});
afterEach(async () => {
  await closeModelVaults();
  rmSync(folder, { recursive: true });
});

describe("the size of a disk", () => {
  test.each([0, 1, 511, 512, 4096, 4097, 16_384, 16_385, 100_001])("may be %i bytes", async (sizeBytes) => {
    const disk = new ModelDisk(contentOf(sizeBytes, 3));
    const summary = await replicateNoted(vault, sink, expected, disk);
    expect(summary).toMatchObject({ volumeBytes: sizeBytes, sequence: 1, consistency: "crash" });
    await checkNewest(sink, "d", disk.bytes);
    const again = await replicateNoted(vault, sink, expected, disk);
    expect(again).toMatchObject({ sequence: 2, changedBytes: 0, newBytes: 0, storedBytes: 0 });
    expect(await expected.check(sink)).toBe(2);
  });

  test.each([true, false])("may grow from any size to any other, also when local state is kept: %s", async (kept) => {
    const grower = kept ? vault : await openModelVault(sink);
    const disk = new ModelDisk(Buffer.alloc(0));
    for (const sizeBytes of [0, 1, 513, 4096, 5000, 40_000, 40_000, 65_537, 300_000]) {
      const grown = contentOf(sizeBytes, 5);
      disk.bytes.copy(grown);
      disk.bytes = grown;
      await replicateNoted(grower, sink, expected, disk);
    }
    expect(await expected.check(sink)).toBe(9);
    expect((await vault.points("d")).map(({ volumeBytes }) => volumeBytes)).toEqual([
      0, 1, 513, 4096, 5000, 40_000, 40_000, 65_537, 300_000,
    ]);
  });

  test("may not shrink, and the refusal says what to do", async () => {
    const disk = sampleDisk(50_000, 1);
    await replicateNoted(vault, sink, expected, disk);
    disk.bytes = disk.bytes.subarray(0, 49_999);
    const error = await expectCode(vault.replicate({ disk: "d", volume: disk }), "SOURCE_SHRUNK");
    expect(error.message).toContain("49999");
    expect(error.message).toContain("50000");
    expect(error.remedy).toContain("new name");
    expect(await expected.check(sink)).toBe(1);
  });
});

describe("the name of a disk", () => {
  const odd = ["..", "~", "a/b", "A", "a", "disk 1", "Ünïcode", "日本", "🐳", "head", "-x", "%2e", "c:\\d"];

  test("may hold odd characters, and no two disks get in each other's way", async () => {
    for (const [index, name] of odd.entries()) {
      await vault.replicate({ disk: name, volume: new ModelDisk(contentOf(5000, index)) });
    }
    expect((await vault.disks()).map(({ disk }) => disk)).toEqual([...odd].sort());
    for (const [index, name] of odd.entries()) await checkNewest(sink, name, contentOf(5000, index));
  });

  test("is the same in both of its Unicode spellings", async () => {
    await vault.replicate({ disk: "e\u0301", volume: sampleDisk(5000, 1) });
    expect((await vault.points("\u00e9")).map(({ disk }) => disk)).toEqual(["\u00e9"]);
  });

  test.each(["", "a\nb", "x".repeat(81), "\ud800"])("%j is refused before anything is touched", async (name) => {
    const counted = new FaultySink(sink, []);
    const other = await openModelVault(counted);
    const before = counted.calls.length;
    await expectCode(other.replicate({ disk: name, volume: sampleDisk(5000, 1) }), "INVALID_ARGUMENT");
    expect(counted.calls).toHaveLength(before);
  });
});

test("two disks with the same content store it once", async () => {
  const first = await vault.replicate({ disk: "one", volume: sampleDisk(100_000, 1) });
  const second = await vault.replicate({ disk: "two", volume: sampleDisk(100_000, 1) });
  expect(first.newBytes).toBeGreaterThan(0);
  expect(second).toMatchObject({ newBytes: 0, storedBytes: 0, dedupedBytes: first.newBytes + first.dedupedBytes });
  await checkNewest(sink, "two", sampleDisk(100_000, 1).bytes);
});

describe("a point", () => {
  test("is found by sequence number, id, `latest` and time", async () => {
    const disk = sampleDisk(20_000, 1);
    for (let sequence = 1; sequence <= 3; sequence += 1) {
      disk.bytes[0] = sequence;
      await replicateNoted(vault, sink, expected, disk);
    }
    const points = await vault.points("d");
    const found = async (selector: string): Promise<number> => (await vault.point("d", selector)).sequence;
    for (const point of points) {
      expect(await found(String(point.sequence))).toBe(point.sequence);
      expect(await found(point.point.toUpperCase())).toBe(point.sequence);
      expect(await found(point.time)).toBe(point.sequence);
    }
    expect(await found("latest")).toBe(3);
    expect(await found("2999-01-01")).toBe(3);
    for (const absent of ["4", "0", "f".repeat(32), "1999-01-01T00:00:00Z"]) {
      const error = await expectCode(vault.point("d", absent), "POINT_NOT_FOUND");
      expect(error.message).toContain("newest is 3");
    }
    for (const wrong of ["", "newest", "-1", "1.5", "2026-13-45", "f".repeat(31)]) {
      await expectCode(vault.point("d", wrong), "INVALID_ARGUMENT");
    }
    await expectCode(vault.point("e", "latest"), "DISK_NOT_FOUND");
    expect(points.map(({ time }) => time)).toEqual([...points.map(({ time }) => time)].sort());
    expect((await vault.point("d", "2")).parent).toBe(points[0]?.point);
  });

  test("is fuzzy when its source says so or cannot say, and a notice tells", async () => {
    const disk = sampleDisk(20_000, 1);
    const notices: Notice[] = [];
    disk.consistency = "fuzzy";
    const summary = await vault.replicate({ disk: "d", volume: disk, onNotice: (notice) => notices.push(notice) });
    expect(summary.consistency).toBe("fuzzy");
    expect(notices.map(({ code }) => code)).toEqual(["SOURCE_CHANGED"]);
    const silent: Volume = {
      description: "silent",
      sizeBytes: () => disk.sizeBytes(),
      read: (offset, into) => disk.read(offset, into),
    };
    expect((await vault.replicate({ disk: "e", volume: silent })).consistency).toBe("fuzzy");
    expect((await vault.points("d")).map(({ consistency }) => consistency)).toEqual(["fuzzy"]);
  });

  test("of a file that is written to while it is scanned is fuzzy; of one at rest it is not", async () => {
    const image = join(folder, "disk.img");
    await writeFile(image, contentOf(100_000, 1));
    const gate = new Gate();
    const paused = new FaultySink(sink, [{ on: "createPages", when: 1, fault: { kind: "slow", gate } }]);
    const file = await FileVolume.open(image);
    try {
      const running = (await openModelVault(paused)).replicate({ disk: "d", volume: file });
      await Promise.race([gate.reached, running]);
      const handle = await open(image, "r+");
      await handle.write("changed", 99_000);
      await handle.close();
      gate.open();
      expect((await running).consistency).toBe("fuzzy");
      expect((await vault.replicate({ disk: "d", volume: file })).consistency).toBe("crash");
    } finally {
      await file.close();
    }
  });
});

describe("a source that fails", () => {
  const broken = (at: number): TidemarkError => new TidemarkError("SOURCE_UNREADABLE", `a bad sector at ${String(at)}`);

  test("in the middle of a scan ends the cycle with its error; nothing is committed, and the next cycle goes on", async () => {
    const disk = sampleDisk(300_000, 1);
    await replicateNoted(vault, sink, expected, disk);
    contentOf(300_000, 2).copy(disk.bytes);
    disk.beforeRead = (offset, length) =>
      offset + length > 150_000 ? Promise.reject(broken(offset)) : Promise.resolve();
    await expectCode(vault.replicate({ disk: "d", volume: disk }), "SOURCE_UNREADABLE");
    expect(await expected.check(sink)).toBe(1);
    disk.beforeRead = () => Promise.resolve();
    await replicateNoted(vault, sink, expected, disk);
    expect(await expected.check(sink)).toBe(2);
  });

  test.each(["beginScan", "sizeBytes", "allocated", "endScan"] as const)(
    "in %s commits nothing either",
    async (where) => {
      const disk = sampleDisk(50_000, 1);
      const failing: Volume = {
        description: "failing",
        read: (offset, into) => disk.read(offset, into),
        sizeBytes: () => disk.sizeBytes(),
        [where]: () => (where === "allocated" ? failingExtents() : Promise.reject(broken(0))),
      };
      await expectCode(vault.replicate({ disk: "d", volume: failing }), "SOURCE_UNREADABLE");
      expect(await committedPoints(sink, "d")).toEqual([]);
      await vault.replicate({ disk: "d", volume: disk });
    },
  );

  async function* failingExtents(): AsyncGenerator<Extent> {
    yield await Promise.resolve({ offset: 0, length: 100 });
    throw broken(100);
  }
});

describe("an aborted cycle", () => {
  test("ends with INTERRUPTED at any call, and calls nothing any more but to give up its lease", async () => {
    const disk = sampleDisk(150_000, 1);
    const whole = new FaultySink(new MemorySink(), []);
    const opened = await openModelVault(whole);
    const first = whole.calls.length; // the vault is opened without the signal
    await opened.replicate({ disk: "d", volume: disk });
    const last = whole.calls.findLastIndex((call) => call.startsWith("releaseLease")); // right before it comes the commit
    for (const call of callsOf(first + 1, last - 1, 8)) {
      const controller = new AbortController();
      const gate = new Gate();
      const counted = new FaultySink(new MemorySink(), [{ on: "any", when: call, fault: { kind: "slow", gate } }]);
      const running = (await openModelVault(counted)).replicate({ disk: "d", volume: disk, signal: controller.signal });
      const outcome = running.then(
        () => "success",
        (error: unknown) => (error instanceof TidemarkError ? error.code : String(error)),
      );
      await gate.reached;
      controller.abort();
      gate.open();
      expect(await outcome, `call ${String(call)}`).toBe("INTERRUPTED");
      const after = counted.calls.slice(call);
      const writes = after.filter((name) => /^(put|create|write|delete|raise)/.test(name));
      expect(writes, `call ${String(call)} ${String(whole.calls[call - 1])}`).toEqual([]);
      const settled = counted.calls.length;
      await new Promise((resolve) => setImmediate(resolve));
      expect(counted.calls).toHaveLength(settled);
      expect((await committedPoints(counted, "d")).length).toBe(0);
    }
  });

  test("before it begins calls nothing", async () => {
    const counted = new FaultySink(sink, []);
    const other = await openModelVault(counted);
    const before = counted.calls.length;
    await expectCode(
      other.replicate({ disk: "d", volume: sampleDisk(5000, 1), signal: AbortSignal.abort() }),
      "INTERRUPTED",
    );
    expect(counted.calls).toHaveLength(before);
  });

  test("leaves no timer and no thread behind once the vault is closed", async () => {
    const controller = new AbortController();
    const disk = sampleDisk(300_000, 1);
    disk.beforeRead = () => {
      controller.abort();
      return Promise.resolve();
    };
    const count = (kind: string): number => process.getActiveResourcesInfo().filter((active) => active === kind).length;
    await closeModelVaults();
    const before = { ports: count("MessagePort"), timers: count("Timeout") };
    const fresh = await openModelVault(sink);
    await expectCode(fresh.replicate({ disk: "d", volume: disk, signal: controller.signal }), "INTERRUPTED");
    expect(disk.reads).toBeGreaterThan(0);
    await closeModelVaults();
    expect(count("MessagePort")).toBeLessThanOrEqual(before.ports);
    expect(count("Timeout")).toBeLessThanOrEqual(before.timers);
  });
});

test("a point that was made before stays as it was, whatever is made after it", async () => {
  const disk = sampleDisk(100_000, 1);
  await replicateNoted(vault, sink, expected, disk);
  const [first] = await committedPoints(sink, "d");
  const before = first === undefined ? undefined : await pointBytes(sink, "d", first);
  disk.bytes.fill(0);
  await replicateNoted(vault, sink, expected, disk);
  expect(first === undefined ? undefined : await pointBytes(sink, "d", first)).toEqual(before);
  expect(await expected.check(sink)).toBe(2);
});
