/** What holds for the report of every case that works in a store. */
import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { expect } from "vitest";
import { type BenchReport, formatBench } from "../../bench/index.ts";
import { DirectorySink } from "../../sink/index.ts";
import { children } from "./programs-here.ts";

/** `folder`: in which the case worked. */
export async function expectWhole(report: BenchReport, folder: string): Promise<void> {
  expect(report.peakRssBytes).toBeGreaterThan(2 ** 20);
  expect(report.hashes["point"]).toMatch(/^[0-9a-f]{64}$/);
  expect(report.hashes["point"]).toBe(report.hashes["image"]);
  expect(report.steps.length).toBeGreaterThan(0);
  const numbers = [
    ...report.steps.flatMap(({ amount, medianMs, perSecond }) => [amount, medianMs, perSecond]),
    ...report.marks.flatMap(({ value, wanted }) => [value, wanted ?? NaN]),
    ...Object.values(report.counts),
  ];
  expect(numbers.filter((number) => !Number.isFinite(number) || number < 0)).toEqual([]);
  const lines = formatBench(report).split("\n");
  expect(lines.filter((line) => line.length > 80 || line.includes("…"))).toEqual([]);
  await expectNothingLeft(folder);
}

/** No process, nothing in the temporary folder, nothing in the store. */
export async function expectNothingLeft(folder: string): Promise<void> {
  expect(await readdir(join(folder, "work"))).toEqual([]);
  expect(children()).toEqual([]);
  const sink = await DirectorySink.open(join(folder, "vault"));
  for await (const { name } of sink.list("")) expect.fail(`${name} was left in the store`);
}
