/** Cases about what costs depend on, small: they prove what they measured and keep working. */
import { existsSync } from "node:fs";
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { makeSparse } from "../../bench/image.ts";
import { type BenchKind, type BenchOptions, type BenchReport, formatBench, runBench } from "../../bench/index.ts";
import { fillFront } from "../../bench/keep/front-disk.ts";
import { DirectorySink } from "../../sink/index.ts";
import { deepTest } from "../deep-test.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { missing } from "./programs-here.ts";

const mib = 2 ** 20;

let folder: string;
beforeEach(() => {
  const created = createFolder("cost-bench");
  folder = created;
  onTestFinished(async () => await removeFolder(created));
});

async function run(kind: BenchKind, given: Partial<BenchOptions> = {}): Promise<BenchReport> {
  const [image, vault] = [join(folder, "disk.img"), join(folder, "vault")];
  await makeSparse(image, 16 * mib);
  await fillFront(image, 16 * mib, 3, undefined, 8 * mib);
  const report = await runBench({
    kind,
    image,
    workers: 1,
    scatterWrites: 100,
    storeAddress: { address: `dir:${vault}` },
    openVaultSink: async () => await DirectorySink.open(vault),
    temporaryFolder: join(folder, "work"),
    ...given,
  });
  const numbers = [
    ...report.steps.flatMap(({ amount, medianMs, perSecond }) => [amount, medianMs, perSecond]),
    ...report.marks.map(({ value }) => value),
    ...Object.values(report.counts),
  ];
  expect(numbers.filter((number) => !Number.isFinite(number) || number < 0)).toEqual([]);
  expect(report.marks.length).toBeGreaterThan(0);
  const lines = formatBench(report).split("\n");
  expect(lines.filter((line) => line.length > 80 || line.includes("…"))).toEqual([]);
  expect(await readdir(join(folder, "work"))).toEqual([]);
  if (existsSync(vault))
    for await (const { name } of (await DirectorySink.open(vault)).list("")) expect.fail(`${name} was left`);
  return report;
}

const stepNames = ({ steps }: BenchReport): string[] => steps.map(({ name }) => name);

describe("what a cost depends on", () => {
  deepTest("start: a command and an import, each in new processes", async () => {
    const { steps } = await run("start");
    expect(steps.map(({ name, role, runs }) => [name, role, runs])).toEqual([
      ["Node alone", "yardstick", 5],
      ["import the library", "tidemark", 5],
      ["points list", "tidemark", 5],
    ]);
  });

  test("size: the same changes on each disk, three points of each", async () => {
    const { steps, marks } = await run("size", { scatterWrites: 30 });
    expect(steps.map(({ name, amount, runs }) => [name, amount, runs])).toEqual(
      ["8 GiB", "1 TiB", "8 TiB"].map((name) => [`point of a disk of ${name}`, 30 * 4_096, 3]),
    );
    expect(marks.map(({ name }) => name)).toEqual(["1 TiB ÷ 8 GiB", "8 TiB ÷ 8 GiB"]);
  });

  test("blocks: each size stores all of the image", async () => {
    const report = await run("blocks");
    expect(stepNames(report)).toEqual([16, 64, 256, 1_024].map((size) => `blocks of ${size} KiB`));
    for (const { amount } of report.steps) expect(amount).toBe(8 * mib);
    for (const stored of Object.values(report.counts)) expect(stored).toBeGreaterThan(4 * mib);
  });

  deepTest("lanes: each number into the store, which is empty afterwards", async () => {
    const report = await run("lanes");
    expect(stepNames(report)).toEqual(["2 lanes", "3 lanes", "5 lanes", "8 lanes"]);
    expect(report.hashes["image"]).toMatch(/^[0-9a-f]{64}$/);
  });

  deepTest("disks: as many bytes on one, ten and a hundred", async () => {
    const { steps } = await run("disks", { scatterWrites: 400 });
    expect(steps.map(({ name, amount }) => [name, amount])).toEqual([
      ["points of 1 disk", 400 * 4_096],
      ["points of 10 disks", 400 * 4_096],
      ["points of 100 disks", 400 * 4_096],
    ]);
  });

  deepTest("scaling: the main thread's share, and where it is all", async () => {
    const report = await run("scaling");
    expect(stepNames(report)).toEqual(["1 worker", ...[2, 4, 8, 16].map((workers) => `${workers} workers`)]);
    if (!existsSync("/proc/thread-self/schedstat")) return;
    const main = report.counts["main thread, CPU ms a GiB"] ?? NaN;
    const all = report.counts["all threads, CPU ms a GiB"] ?? NaN;
    expect(all).toBeGreaterThan(main);
    expect(report.counts["cores at which the main thread is busy"]).toBeCloseTo(all / main);
    expect(report.marks).toMatchObject([{ name: "main thread's CPU a GiB", value: main }]);
  });
});

deepTest(
  "peers: each that is installed restores the image as it was, beside Tidemark",
  {
    timeout: 120_000,
  },
  async (context) => {
    const reason = missing("qemu-img", "restic", "rclone");
    if (reason !== undefined) context.skip(`nothing to compare with: ${reason}`);
    const report = await run("peers");
    for (const name of ["tidemark: restore", "upload: first backup", "qemu-img: restore"])
      expect(stepNames(report)).toContain(name);
    expect(report.marks.map(({ name }) => name)).toEqual([
      "first backup, of restic",
      "scattered writes, of restic",
      "restore, of restic",
    ]);
  },
);
