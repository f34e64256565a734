import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type BenchKind, type BenchOptions, type BenchReport, runBench } from "../../bench/index.ts";
import { findLimit } from "../../bench/live/limit.ts";
import { runProgram, startServer } from "../../bench/live/programs.ts";
import type { BenchConfig } from "../../bench/options.ts";
import type { Mark } from "../../bench/targets.ts";
import { DirectorySink } from "../../sink/index.ts";
import { deepTest } from "../deep-test.ts";
import { children, missing } from "./programs-here.ts";
import { expectWhole as expectWholeReport } from "./whole-report.ts";

const mib = 1024 * 1024;

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "live-bench-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

function options(kind: BenchKind, given: Partial<BenchOptions> = {}): BenchOptions {
  const vault = join(folder, "vault");
  return {
    kind,
    workers: 1,
    seconds: 1,
    scatterWrites: 200,
    diskBytes: 64 * mib,
    cycleMs: 1_000,
    cuts: 5,
    bytesPerSecond: 2_000_000,
    storeAddress: { address: `dir:${vault}` },
    openVaultSink: async () => await DirectorySink.open(vault),
    temporaryFolder: join(folder, "work"),
    ...given,
  };
}

async function expectWhole(report: BenchReport): Promise<void> {
  await expectWholeReport(report, folder);
  expectTraced(report);
}

/** Every live case tells what happened over time, and how latencies are distributed. */
function expectTraced({ series, latencies }: BenchReport): void {
  const names = series.map(({ name }) => name);
  const watched = ["lag of the newest point", "backlog", "sent to the store", "requests to the store"];
  const ofThreads = ["resident memory", "main thread", "capture threads", "other threads"];
  expect(names).toEqual(expect.arrayContaining(existsSync("/proc/self/stat") ? [...watched, ...ofThreads] : watched));
  for (const { name, points } of series) {
    expect(
      points.filter(([atMs, value]) => !(atMs >= 0 && value >= 0)),
      name,
    ).toEqual([]);
    expect(
      points.map(([atMs]) => atMs),
      name,
    ).toEqual(points.map(([atMs]) => atMs).toSorted((a, b) => a - b));
  }
  expect(latencies.map(({ name }) => name)).toContain("requests to the store");
  expect(latencies.length).toBeGreaterThan(1);
  for (const { name, count, percentiles } of latencies) {
    expect(count, name).toBeGreaterThan(0);
    expect(
      percentiles.map(([percent]) => percent),
      name,
    ).toEqual([50, 75, 90, 95, 99, 99.9, 99.99, 100]);
    const times = percentiles.map(([, us]) => us);
    expect(times, name).toEqual(times.toSorted((a, b) => a - b));
    expect(times[0], name).toBeGreaterThan(0);
  }
}

describe("each live case proves its point and tells what it measured", () => {
  deepTest("front, beside qemu-nbd", { timeout: 120_000 }, async (context) => {
    const reason = missing("fio", "qemu-nbd");
    if (reason !== undefined) context.skip(`nothing to measure with: ${reason}`);
    const report = await runBench(options("front", { seconds: 0.2, findLimit: true }));
    await expectWhole(report);
    expect(report.steps).toHaveLength(30);
    expect(report.steps.filter(({ role }) => role === "yardstick")).toHaveLength(6);
    expect(report.marks).toHaveLength(37);
    expect(report.counts["cuts"]).toBe(5);
    expect(report.counts["writesMeanwhile"]).toBeGreaterThan(0);
    expect(report.counts).toHaveProperty("highestBytesPerSecondThatHold");
  });

  test("burst, twice, and the largest that is committed in time: here one of the whole disk", async (context) => {
    const reason = missing("fio");
    if (reason !== undefined) context.skip(`nothing to measure with: ${reason}`);
    const report = await runBench(options("burst", { runs: 2, diskBytes: 16 * mib, findLimit: true }));
    await expectWhole(report);
    expect(report.counts["writes"]).toBe(200);
    expect(report.counts["changedBytes"]).toBe(200 * 4_096);
    expect(report.counts["highestWritesThatHold"]).toBe(4_096);
  });

  test("churn, with a point in every cycle", async (context) => {
    const reason = missing("fio");
    if (reason !== undefined) context.skip(`nothing to measure with: ${reason}`);
    const report = await runBench(options("churn", { seconds: 3 }));
    await expectWhole(report);
    expect(report.counts["pointsDue"]).toBeGreaterThanOrEqual(2);
    expect(report.counts["pointsCommitted"]).toBeGreaterThan(0);
    expect(report.marks.map(({ name }) => name)).toContain("points missed");
  });

  deepTest.for(["churn", "soak"] as const)(
    "%s, and the highest rate that holds",
    { timeout: 60_000 },
    async (kind, context) => {
      const reason = missing("fio");
      if (reason !== undefined) context.skip(`nothing to measure with: ${reason}`);
      const report = await runBench(options(kind, { findLimit: true }));
      expect(report.counts).toHaveProperty("highestBytesPerSecondThatHold");
    },
  );

  test("restart, which compares what was hot and nothing else", async (context) => {
    const reason = missing("fio");
    if (reason !== undefined) context.skip(`nothing to measure with: ${reason}`);
    const report = await runBench(options("restart", { diskBytes: 64 * 1024 * mib, hotBytes: 16 * mib }));
    await expectWhole(report);
    expect(report.counts["comparedBytes"]).toBeGreaterThan(0);
    expect(report.counts["comparedBytes"]).toBeLessThanOrEqual(16 * mib);
  });
});

describe("the search for the highest load that holds", () => {
  test.each([
    ["doubles it, and ends within a tenth", 100, Infinity, 333, 325],
    ["halves a first load that does not hold", 100, Infinity, 42, 41],
    ["ends at the largest load that is told from a smaller one", 100, 350, 1_000, 350],
    ["gives no more than that of a larger first load", 100, 50, 1_000, 50],
    ["gives 0 where next to nothing holds", 100, Infinity, 0, 0],
    ["ends where no whole number is between", 2, Infinity, 2, 2],
  ])("%s", async (_, value, most, wanted, found) => {
    const marks = (load: number): Mark[] => [
      { name: "load", value: load, unit: "", relation: "at most", wanted, yardstick: "fixed" },
    ];
    const config = { live: { findLimit: true } } as BenchConfig;
    const first = { value, most, marks: marks(value) };
    expect(await findLimit(config, "highest", first, (load) => Promise.resolve(marks(load)))).toEqual({
      highest: found,
    });
  });
});

test("a live case that is interrupted leaves no process and nothing in the temporary folder", async (context) => {
  const reason = missing("fio");
  if (reason !== undefined) context.skip(`nothing to measure with: ${reason}`);
  const abort = new AbortController();
  const onProgress = ({ step }: { readonly step: string }): void => {
    // Asked between two steps, it would end there: the load has to be under way.
    if (step === "write the hot regions") setImmediate(() => abort.abort());
  };
  const running = runBench(options("restart", { signal: abort.signal, onProgress }));
  await expect(running).rejects.toMatchObject({ code: "INTERRUPTED" });
  expect(await readdir(join(folder, "work"))).toEqual([]);
  expect(children()).toEqual([]);
});

test("a program that is not installed is UNSUPPORTED, and says what to install", async () => {
  const wanted = { code: "UNSUPPORTED", remedy: expect.stringContaining("apt-get install") as string };
  await expect(runProgram("no-such-program", [], folder, undefined)).rejects.toMatchObject(wanted);
  await expect(startServer("no-such-program", [], join(folder, "socket"), folder, undefined)).rejects.toMatchObject(
    wanted,
  );
});

test("a server that ends instead of serving is told with what it said", async () => {
  const words = ["-e", "console.error('no disk'); process.exit(1)"];
  const starting = startServer(process.execPath, words, join(folder, "socket"), folder, undefined);
  await expect(starting).rejects.toMatchObject({
    code: "INTERNAL",
    message: expect.stringContaining("no disk") as string,
  });
});

test("a live case without a store that its process can open is refused", async () => {
  for (const storeAddress of [undefined, { address: "memory:" }]) {
    await expect(runBench(options("burst", { storeAddress }))).rejects.toMatchObject({ code: "INVALID_ARGUMENT" });
  }
});
