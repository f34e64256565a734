/**
 * A suite: how often a case is repeated, what becomes of one that cannot be measured, and the report.
 * A scripted case stands for the measurement; one deep test runs real ones.
 */
import { once } from "node:events";
import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { type BenchReport, runSuiteTo, type SuiteCase, type WrittenSuiteOptions } from "../../bench/index.ts";
import { disturbances, MachineWatch } from "../../bench/suite/machine-watch.ts";
import { paces } from "../../bench/suite/plan.ts";
import type { SuiteReport } from "../../bench/suite/suite-report.ts";
import { flame } from "../../bench/suite/svg.ts";
import { TidemarkError } from "../../engine/index.ts";
import { DirectorySink } from "../../sink/index.ts";
import { MemorySink } from "../../sink/testing.ts";
import { deepTest } from "../deep-test.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { children } from "./programs-here.ts";

let folder: string;
beforeEach(() => {
  const created = createFolder("suite");
  folder = created;
  mkdirSync(join(folder, "out"));
  onTestFinished(async () => await removeFolder(created));
});

/** A case that takes as long as each of `timesMs` says, and moves 1 MiB in that time. */
function report(kind: BenchReport["case"], timeMs: number, more: Partial<BenchReport> = {}): BenchReport {
  const step = { amount: 2 ** 20, medianMs: timeMs, fastestMs: timeMs, slowestMs: timeMs, runs: 1 };
  const perSecond = 2 ** 20 / (timeMs / 1_000);
  return {
    type: "bench",
    case: kind,
    machine: {
      ...{ tidemark: "0", date: "2026-01-01", cpu: "a processor", cores: 2, memoryBytes: 2 ** 33, loadAverage: 0 },
      ...{ system: "linux", architecture: "x64", node: "v20", v8: "11" },
    },
    image: null,
    store: null,
    seed: 1,
    runs: 1,
    steps: [
      { name: "the step <1>", role: "tidemark", unit: "bytes", perSecond, ...step },
      { name: "the yardstick", role: "yardstick", unit: "bytes", perSecond, ...step },
    ],
    marks: [mark("fast enough", timeMs, 100), mark("not judged", timeMs, null)],
    counts: { storedBytes: 4_096, things: 3 },
    hashes: {},
    peakRssBytes: 2 ** 27,
    series: [
      {
        name: "lag of the newest point",
        unit: "ms",
        points: [
          [0, 1],
          [500, 9_000],
          [1_000, 20],
        ],
      },
      {
        name: "backlog",
        unit: "bytes",
        points: [
          [0, 0],
          [500, 2 ** 21],
          [9_000, 0],
        ],
      },
    ],
    latencies: [
      {
        name: "read 1m: idle",
        count: 10,
        percentiles: [
          [50, 80],
          [99, 900],
          [100, 2_000_000],
        ],
      },
      {
        name: "read 1m: draining",
        count: 10,
        percentiles: [
          [50, 180],
          [99, 1_900],
          [100, 3_000_000],
        ],
      },
    ],
    stages: [
      { name: "main thread", cpuMs: 10 },
      { name: "LZ4", cpuMs: 30 },
    ],
    ...more,
  };
}

function mark(name: string, value: number, wanted: number | null): BenchReport["marks"][number] {
  const met = wanted === null ? null : value <= wanted;
  return { name, value, unit: "ms", relation: "at most", wanted, yardstick: "fixed", met };
}

const quiet = { othersShare: 0.02, stealShare: 0, speed: 0.97 };

type Measure = NonNullable<WrittenSuiteOptions["measure"]>;

/** Runs a suite of `only`, whose cases take what `timesOf` gives, one after the other. */
async function run(
  only: WrittenSuiteOptions["only"],
  answer: (kind: BenchReport["case"], run: number) => BenchReport,
  given: Partial<WrittenSuiteOptions> = {},
) {
  const asked: string[] = [];
  const measure: Measure = async ({ kind, image }, onStep) => {
    onStep("a step");
    asked.push(kind);
    if (kind === "initial") expect(existsSync(image ?? "")).toBe(true);
    return await Promise.resolve(answer(kind, asked.filter((each) => each === kind).length));
  };
  const pace = { ...paces.quick, imageBytes: 16 * 2 ** 20, quietBeforeMs: 0, quietBetweenMs: 0 };
  const outcome = await runSuiteTo({
    mode: "quick",
    folder: join(folder, "out"),
    only,
    storeAddress: { address: "dir:unused" },
    openVaultSink: async () => await Promise.resolve(new MemorySink()),
    temporaryFolder: folder,
    measure,
    pace,
    watch: { start: () => () => quiet, quiet: async () => await Promise.resolve(quiet) },
    ...given,
  });
  return { ...outcome, asked };
}

describe("a case is repeated", () => {
  test("three times when its figures agree, after a warm-up of the store and the image", async () => {
    const { asked, report: suite } = await run(["open"], (kind) => report(kind, 50));
    expect(asked).toEqual(["initial", "open", "open", "open"]);
    expect(suite.cases).toMatchObject([{ case: "open", repetitions: 3, stable: true, missing: null }]);
  });

  test("up to five times when they do not, and is then called not stable", async () => {
    const { report: suite } = await run(["open"], (kind, number) => report(kind, 50 + 40 * (number % 3)));
    expect(suite.cases).toMatchObject([{ repetitions: 5, stable: false }]);
    const [step] = suite.cases[0]?.steps ?? [];
    expect(step?.samples).toHaveLength(5);
    expect(step?.perSecond.low).toBeLessThan(step?.perSecond.median ?? 0);
  });

  test("not again when the time of the suite is used up; how much is left is told meanwhile", async () => {
    const told: (readonly [number, number | null])[] = [];
    const onProgress: WrittenSuiteOptions["onProgress"] = ({ number, of, leftMsMax }) =>
      told.push([number, of === 2 ? leftMsMax : null]);
    const pace = { ...paces.quick, imageBytes: 16 * 2 ** 20, quietBeforeMs: 0, quietBetweenMs: 0 };
    const { asked } = await run(["prune", "open"], (kind) => report(kind, 50), { pace, suiteMs: 0, onProgress });
    expect(asked).toEqual(["initial", "prune", "open"]);
    expect(told.map(([number]) => number)).toEqual([0, 0, 1, 1, 2, 2]);
    expect(new Set(told.map(([, left]) => left))).toEqual(new Set([0]));
  });
});

describe("a case that gives no figures", () => {
  const failing = (code: "UNSUPPORTED" | "STORE_REFUSED" | "DAMAGED") => (kind: BenchReport["case"]) => {
    if (kind === "churn") throw new TidemarkError(code, "fio cannot be started", { remedy: "install it" });
    return report(kind, 50);
  };

  test("is left out with the reason when a program is missing, and that is no failure", async () => {
    const { report: suite, failed } = await run(["churn", "open"], failing("UNSUPPORTED"));
    expect(suite.cases[0]).toMatchObject({ missing: "fio cannot be started: install it", failed: false, marks: [] });
    expect(suite.cases[1]).toMatchObject({ case: "open", missing: null });
    expect(failed).toBe(false);
  });

  test("fails the suite, whose other cases are measured all the same", async () => {
    const { report: suite, failed } = await run(["churn", "open"], failing("STORE_REFUSED"));
    expect(suite.cases.map((each) => each.failed)).toEqual([true, false]);
    expect(failed).toBe(true);
  });

  test("fails the suite when it does not end, and is ended", async () => {
    const pace = { ...paces.quick, imageBytes: 16 * 2 ** 20, quietBeforeMs: 0, quietBetweenMs: 0, runMsMax: 20 };
    const measure: Measure = async ({ kind }, _, signal) => {
      if (kind !== "churn" || signal === undefined) return report(kind, 50);
      await once(signal, "abort");
      throw new TidemarkError("INTERRUPTED", "interrupted");
    };
    const { report: suite } = await run(["churn", "open"], () => expect.fail("not this one"), { pace, measure });
    expect(suite.cases[0]).toMatchObject({ failed: true, missing: expect.stringContaining("bench churn") as string });
    expect(suite.cases[1]).toMatchObject({ case: "open", failed: false });
  });

  test("ends the suite when what it brought back was wrong", async () => {
    await expect(run(["churn", "open"], failing("DAMAGED"))).rejects.toMatchObject({ code: "DAMAGED" });
  });
});

describe("the report", () => {
  test("holds what a second reading gives again, and is one page that loads and runs nothing", async () => {
    const {
      report: suite,
      json,
      page,
      reached,
      missed,
      notJudged,
      failed,
    } = await run(["open", "prune"], (kind) => report(kind, kind === "open" ? 50 : 150));
    expect([reached, missed, notJudged, failed]).toEqual([1, 1, 2, true]);
    expect(JSON.parse(readFileSync(json, "utf8"))).toEqual(suite);
    const html = readFileSync(page, "utf8");
    expect(html).toContain("1 mark reached, 1 missed, 2 not judged");
    expect(html).toContain("prefers-color-scheme:dark");
    expect(html).toContain("the step &lt;1&gt;");
    expect(html).not.toContain("<1>");
    expect(html).not.toMatch(/<script|<link|<img|\bsrc=|@import|url\(|https?:|NaN|undefined|Infinity/);
    // Of each case: rates, stages, lag, backlog, latencies.
    expect(html.match(/<svg /g)).toHaveLength(2 * 5);
    expect(tagsOf(html)).toEqual([]);
    // Tables that scroll are reached with the keyboard, and each column has a name.
    expect(html).not.toMatch(/class="wide"(?! tabindex="0")|<th><\/th>/);
  });

  test("says how each step changed since a baseline, where that is certain", async () => {
    const pace = { ...paces.quick, runsMin: 5, imageBytes: 16 * 2 ** 20, quietBeforeMs: 0, quietBetweenMs: 0 };
    const jittered = (timeMs: number) => (kind: BenchReport["case"], number: number) => report(kind, timeMs + number);
    const { report: baseline, json } = await run(["open"], jittered(100), { pace });
    const faster = await run(["open"], jittered(50), { pace, baselineFile: json });
    expect(baseline.changes).toEqual([]);
    expect(faster.report.changes).toHaveLength(2);
    expect(faster.report.changes[0]).toMatchObject({ case: "open", step: "the step <1>", verdict: "faster" });
    expect(faster.report.changes[0]?.ratio.median).toBeCloseTo(103 / 53);
    const same = await run(["open"], jittered(50), { pace, baselineFile: faster.json });
    expect(same.report.changes[0]).toMatchObject({ verdict: "unclear", p: 1 });
    expect(readFileSync(same.page, "utf8")).toContain("Since the baseline");
  });

  test("of the cases that were done is there when the suite is interrupted", async () => {
    const interrupted = run(["prune", "open"], (kind) => {
      if (kind === "prune") throw new TidemarkError("INTERRUPTED", "interrupted");
      return report(kind, 50);
    });
    await expect(interrupted).rejects.toMatchObject({ message: "interrupted" });
    const late = run(["prune", "open"], (kind) => {
      if (kind === "open") throw new TidemarkError("INTERRUPTED", "interrupted");
      return report(kind, 50);
    });
    await expect(late).rejects.toMatchObject({
      code: "INTERRUPTED",
      message: `the suite was interrupted; ${join(folder, "out", "report.html")} has 1 of 2 cases`,
    });
    const soFar = JSON.parse(readFileSync(join(folder, "out", "report.json"), "utf8")) as SuiteReport;
    expect([soFar.planned, soFar.cases.map((each) => each.case)]).toEqual([2, ["prune"]]);
    expect(readFileSync(join(folder, "out", "report.html"), "utf8")).toContain("1 of 2 cases were not run");
  });

  const machine = '"machine":{"date":"2026-01-01"}';
  test.each([
    ["{}", /is not the report of a suite/],
    ["nothing", /is not the report of a suite/],
    ['{"type":"suite","mode":"quick","cases":[{}]}', /is not the report of a suite/],
    [`{"type":"suite","mode":"quick",${machine},"cases":[{}]}`, /is not the report of a suite/],
    [`{"type":"suite","mode":"quick",${machine},"cases":[null]}`, /is not the report of a suite/],
    [
      `{"type":"suite","mode":"quick",${machine},"cases":[{"case":"open","steps":[{"name":"a","samples":[]}]}]}`,
      /is not the report of a suite/,
    ],
    [`{"type":"suite","mode":"full",${machine},"cases":[]}`, /is of a full suite, and this is a quick one/],
  ])("the baseline %s is refused before anything is measured", async (text, message) => {
    const baselineFile = join(folder, "old.json");
    writeFileSync(baselineFile, text);
    const running = run(["open"], () => expect.fail("it was measured"), { baselineFile });
    await expect(running).rejects.toMatchObject({
      code: "INVALID_ARGUMENT",
      message: expect.stringMatching(message) as string,
    });
  });
});

test("a flame graph has each stage below the one that it is a part of", () => {
  const drawing = flame("time", [
    { name: "the cycle", cpuMs: 100 },
    { name: "main thread", cpuMs: 25, within: "the cycle" },
    { name: "worker threads", cpuMs: 75, within: "the cycle" },
    { name: "digest", cpuMs: 15, within: "worker threads" },
    { name: "LZ4", cpuMs: 45, within: "worker threads" },
  ]);
  const places = [...drawing.matchAll(/<rect class="\w+" x="([\d.]+)" y="(\d+)" width="([\d.]+)" height="21"/g)];
  expect(places.map(([, x, y, width]) => [Number(x), Number(y), Number(width)])).toEqual([
    [0, 0, 360],
    [0, 22, 90],
    [90, 22, 270],
    [90, 44, 54],
    [144, 44, 162],
  ]);
  expect(drawing).toContain("LZ4, 45 %");
  const colours = [...drawing.matchAll(/<rect class="(\w+)"/g)].map(([, colour]) => colour);
  expect(colours.slice(0, 5)).toEqual(["yardstick", "s0", "yardstick", "s1", "s2"]);
  expect(colours.slice(5)).toEqual(colours.slice(0, 5));
});

/** Elements of the page that are not closed, or closed by another. */
function tagsOf(html: string): string[] {
  const open: string[] = [];
  const faults: string[] = [];
  const empty = ["meta", "rect", "circle", "path", "!doctype"];
  for (const [, end, name = ""] of html.replace(/<style>[^]*?<\/style>/, "").matchAll(/<(\/?)([!\w]+)[^>]*>/g)) {
    if (empty.includes(name)) continue;
    if (end === "") open.push(name);
    else if (open.pop() !== name) faults.push(name);
  }
  return [...faults, ...open];
}

describe("the machine", () => {
  test("that others use, that is stolen from, or that is throttled is told from a quiet one", () => {
    expect(disturbances(quiet)).toEqual([]);
    expect(disturbances({ othersShare: null, stealShare: null, speed: 1 })).toEqual([]);
    expect(disturbances({ ...quiet, othersShare: 0.5 })).toEqual(["other processes took 50 % of the processors"]);
    expect(disturbances({ ...quiet, stealShare: 0.1 })).toEqual(["the hypervisor took 10 % of the processors"]);
    expect(disturbances({ ...quiet, speed: 0.5 })).toEqual(["a core ran at 50 % of its speed"]);
  });

  test("is watched by the system's counts, less what this process and those below it took", () => {
    // proc(5): of a process, 13 fields from the state on, then utime, stime, cutime, cstime.
    const stat = (id: number, parent: number, ticks: string): void => {
      mkdirSync(join(folder, "proc", `${id}`), { recursive: true });
      writeFileSync(join(folder, "proc", `${id}`, "stat"), `${id} (a (b) c) S ${parent}${" 0".repeat(9)} ${ticks} 0`);
    };
    const machine = (busy: number, idle: number, steal: number): void =>
      writeFileSync(join(folder, "proc", "stat"), `cpu  ${busy} 0 0 ${idle} 0 0 0 ${steal} 0 0\ncpu0 1\n`);
    stat(10, 1, "100 0 50 0");
    stat(11, 10, "5 5 0 0");
    stat(12, 1, "1000 0 0 0");
    machine(10_000, 10_000, 0);
    const end = new MachineWatch(join(folder, "proc"), 10).start();
    // Ours: 60 of the process, 40 of a child. Another process: 300. A child that ended had 20.
    stat(10, 1, "160 0 70 0");
    stat(11, 10, "25 25 0 0");
    stat(12, 1, "1300 0 0 0");
    machine(10_420, 10_530, 50);
    const { othersShare, stealShare, speed } = end();
    expect([othersShare, stealShare]).toEqual([300 / 1_000, 50 / 1_000]);
    expect(speed).toBeGreaterThan(0);
    expect(new MachineWatch(join(folder, "none"), 10).start()()).toMatchObject({ othersShare: null, stealShare: null });
  });

  test("that is busy is refused by a full suite; a quick one says so beside each case", async () => {
    const busy = { othersShare: 0.5, stealShare: 0, speed: 1 };
    const watch = { start: () => () => busy, quiet: async () => await Promise.resolve(busy) };
    const full = run(["open"], () => expect.fail("it was measured"), { mode: "full", watch });
    await expect(full).rejects.toMatchObject({
      code: "UNSUPPORTED",
      remedy: expect.stringContaining("--quick") as string,
    });
    const { report: suite, page } = await run(["open"], (kind) => report(kind, 50), { watch });
    expect(suite.cases[0]?.disturbances).toEqual(["other processes took 50 % of the processors"]);
    expect(readFileSync(page, "utf8")).toContain("Busy machine");
  });
});

deepTest("a real case is measured in a process that is gone afterwards", async () => {
  const vault = join(folder, "vault");
  const done: SuiteCase[] = [];
  const { report: suite } = await runSuiteTo({
    mode: "quick",
    folder: join(folder, "out"),
    only: ["open"],
    workers: 1,
    storeAddress: { address: `dir:${vault}` },
    openVaultSink: async () => await DirectorySink.open(vault),
    temporaryFolder: folder,
    suiteMs: 1,
    onCase: (each) => done.push(each),
  });
  expect(done).toEqual(suite.cases);
  expect(suite.cases.map(({ missing, marks }) => [missing, marks.length])).toEqual([[null, 1]]);
  expect(children()).toEqual([]);
});
