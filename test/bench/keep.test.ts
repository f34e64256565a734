import { mkdtempSync, rmSync } from "node:fs";
import { readFile, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type BenchKind, type BenchOptions, type BenchReport, runBench } from "../../bench/index.ts";
import { MadeVolume } from "../../bench/keep/made-volume.ts";
import { RecordingSink } from "../../bench/keep/recording-sink.ts";
import { DirectorySink } from "../../sink/index.ts";
import { MemorySink } from "../../sink/testing.ts";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { missing } from "./programs-here.ts";
import { expectNothingLeft, expectWhole as expectWholeReport } from "./whole-report.ts";

const mib = 1024 * 1024;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "keep-bench-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

function options(kind: BenchKind, given: Partial<BenchOptions> = {}): BenchOptions {
  const vault = join(folder, "vault");
  return {
    kind,
    workers: 1,
    seconds: 0.2,
    diskBytes: 64 * mib,
    hotBytes: 16 * mib,
    points: 12,
    storeAddress: { address: `dir:${vault}` },
    openVaultSink: async () => await DirectorySink.open(vault),
    temporaryFolder: join(folder, "work"),
    ...given,
  };
}

async function expectWhole(report: BenchReport): Promise<void> {
  await expectWholeReport(report, folder);
  expect(report.steps.some(({ role }) => role === "yardstick")).toBe(true);
}

describe("each case about points that last proves its point and tells what it measured", () => {
  deepTest("mount, twice, beside qemu-nbd and the Get ceiling", { timeout: 60_000 }, async (context) => {
    const reason = missing("fio", "qemu-nbd");
    if (reason !== undefined) context.skip(`nothing to measure with: ${reason}`);
    const report = await runBench(options("mount", { runs: 2 }));
    await expectWhole(report);
    expect(report.steps.map(({ runs }) => runs)).toEqual([1, 2, 2, 2, 2, 2]);
    expect(report.marks).toHaveLength(3);
    expect(report.image?.sizeBytes).toBe(64 * mib);
    expect(report.counts["fetchedBytes"]).toBeGreaterThan(0);
    expect(report.counts["cacheHits"]).toBeGreaterThan(0);
  });

  deepTest("mount of an image that is given, which stays as it was", { timeout: 60_000 }, async (context) => {
    const reason = missing("fio", "qemu-nbd");
    if (reason !== undefined) context.skip(`nothing to measure with: ${reason}`);
    const image = join(folder, "disk.img");
    const content = Buffer.alloc(4 * mib + 512, "tidemark");
    await writeFile(image, content);
    const report = await runBench(options("mount", { image }));
    await expectWhole(report);
    expect(report.image).toMatchObject({ path: image, sizeBytes: 64 * mib });
    expect(content.equals(await readFile(image))).toBe(true);
  });

  deepTest("failover, beside what it moves", { timeout: 60_000 }, async () => {
    const report = await runBench(options("failover"));
    await expectWhole(report);
    expect(report.steps.map(({ name }) => name)).toEqual([
      "planned, 8 GiB disk",
      "planned, large disk",
      "materialize in full",
      "change-point",
      "materialize the changed extents",
      "failback",
    ]);
    expect(report.marks).toHaveLength(4);
  });

  test("copy, beside both bare transfers", async () => {
    const report = await runBench(options("copy"));
    await expectWhole(report);
    expect(report.counts["fetchedBytes"]).toBeGreaterThan(4 * mib);
    expect(report.marks).toMatchObject([{ name: "of the slower of both ceilings" }]);
  });

  deepTest(
    "instant, beside the Get ceiling, and where they are installed beside qemu-nbd and under fio",
    {
      timeout: 120_000,
    },
    async () => {
      const hasFio = missing("fio") === undefined;
      const report = await runBench(options("instant", { findLimit: hasFio, bytesPerSecond: 20_000_000 }));
      await expectWhole(report);
      expect("highestBytesPerSecondThatHold" in report.counts).toBe(hasFio);
      expect(report.marks).toHaveLength(hasFio ? 5 : 3);
      expect(report.counts["idle, fetchedBytes"]).toBeGreaterThan(0);
      expect(report.counts["idle, copiedBytes"]).toBe(64 * mib);
    },
  );

  test("prune, which leaves one point in so much time", async () => {
    const report = await runBench(options("prune"));
    await expectWhole(report);
    const { points = 0, removedPoints = 0, keptPoints = 0, requests = 0, writtenBytes = 0 } = report.counts;
    expect(points).toBe(12);
    expect(removedPoints + keptPoints).toBe(12);
    expect(removedPoints).toBeGreaterThan(5);
    expect(requests).toBeGreaterThan(0);
    expect(writtenBytes).toBeGreaterThan(0);
  });

  test("open, twice, with what an hour of points writes", async () => {
    const report = await runBench(options("open", { runs: 2 }));
    await expectWhole(report);
    expect(report.counts["points"]).toBe(12);
    expect(report.counts["an hour of points every 5 s, metadataBytes"]).toBeGreaterThan(720 * 200);
    expect(report.steps.map(({ runs }) => runs)).toEqual([1, 2, 2]);
  });

  deepTest("collect, beside a disk that is written", { timeout: 60_000 }, async (context) => {
    const reason = missing("fio");
    if (reason !== undefined) context.skip(`nothing to measure with: ${reason}`);
    const report = await runBench(
      options("collect", { deadBytes: 64 * mib, cycleMs: 1_000, seconds: 2.5, bytesPerSecond: 2_000_000 }),
    );
    await expectWhole(report);
    // Of the second half two MiB stay; of the first half nothing.
    expect(report.counts["given back, storedBytes"]).toBeGreaterThan(60 * mib);
    expect(report.counts["writersThatDidNotAcknowledge"]).toBe(0);
    expect(report.counts["cyclesAlone"]).toBeGreaterThan(0);
    expect(report.counts["cyclesBeside"]).toBeGreaterThan(0);
  });
});

const interrupted = [
  ["mount", "read 1m, all data once, cold"],
  ["collect", "collect, beside the live disk"],
] as const;

test.for(interrupted.slice(0, byDepth(1, 2)))(
  "%s that is interrupted leaves no process, and nothing in store and temporary folder",
  async ([kind, interruptedStep], context) => {
    const reason = missing("fio", "qemu-nbd");
    if (reason !== undefined) context.skip(`nothing to measure with: ${reason}`);
    const abort = new AbortController();
    const onProgress = ({ step }: { readonly step: string }): void => {
      // Asked between two steps, it would end there: the processes have to be at work.
      if (step === interruptedStep) setImmediate(() => abort.abort());
    };
    const given = { deadBytes: 16 * mib, cycleMs: 1_000, seconds: 1.5, bytesPerSecond: 2_000_000 };
    const running = runBench(options(kind, { ...given, signal: abort.signal, onProgress }));
    await expect(running).rejects.toMatchObject({ code: "INTERRUPTED" });
    await expectNothingLeft(folder);
  },
);

test("a case whose processes cannot open the store is refused", async () => {
  for (const kind of ["mount", "collect"] as const) {
    await expect(runBench(options(kind, { storeAddress: { address: "memory:" } }))).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
    });
  }
});

test("a volume that is made when it is read holds the same in whatever pieces it is read, and zeros outside its extents", async () => {
  const extents = [
    { offset: 4_096, length: 8_192 },
    { offset: 2 * mib, length: mib },
  ];
  const volume = new MadeVolume(4 * mib, extents, 7);
  const whole = Buffer.alloc(4 * mib, 1);
  await volume.read(0, whole);
  const piece = Buffer.alloc(65_536);
  for (let offset = 0; offset < whole.length; offset += piece.length) {
    await volume.read(offset, piece);
    expect(piece.equals(whole.subarray(offset, offset + piece.length)), `at ${offset}`).toBe(true);
  }
  const granules = Array.from({ length: 1_024 }, (_, index) =>
    whole.subarray(index * 4_096, (index + 1) * 4_096).toString("base64"),
  );
  expect(new Set(granules).size).toBe(2 + 256 + 1);
  expect(granules[0]).toBe(Buffer.alloc(4_096).toString("base64"));
});

test("transfers are made again as they were, and what was written goes elsewhere", async () => {
  const store = new MemorySink();
  await store.createContainer();
  const recorded = new RecordingSink(store, "a/");
  await recorded.putObject("x", Buffer.from("12345"), { ifAbsent: true });
  await recorded.getObject("x", 100);
  await expect(recorded.getObject("y", 100)).rejects.toMatchObject({ code: "OBJECT_NOT_FOUND" });
  expect([recorded.putBytes, recorded.readBytes]).toEqual([5, 5]);
  expect(await recorded.repeat(new RecordingSink(store, "a/"), "bare/", undefined)).toBe(10);
  expect(Buffer.from((await store.getObject("a/x", 100)).bytes).toString()).toBe("12345");
  expect((await store.statObject("a/bare/0")).sizeBytes).toBe(5);
});
