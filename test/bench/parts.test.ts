/** Parts of benchmarks that can be looked at without measuring anything. */
import { expect, test } from "vitest";
import { type BenchReport, formatBench } from "../../bench/index.ts";
import { NestedSink } from "../../bench/nested-sink.ts";
import type { Step } from "../../bench/steps.ts";
import { MemorySink } from "../../sink/memory.ts";
import { namesOf } from "../engine-model.ts";
import { expectCode } from "../sink/expectations.ts";

test("what a killed process holds by a lease keeps nothing else of a place from being removed, and is told", async () => {
  const store = new MemorySink();
  await store.createContainer();
  const place = new NestedSink(store, "bench-1/");
  await store.putObject("mine", Buffer.from("mine"), { ifAbsent: true });
  for (const name of ["a", "head", "z"]) await place.putObject(name, Buffer.from(name), { ifAbsent: true });
  const lease = "8d1d22a5-6f0a-4b53-9d5a-000000000001";
  await place.acquireLease("head", lease, 15);
  await expectCode(place[Symbol.asyncDispose](), "LEASE_HELD");
  expect(await namesOf(store, "")).toEqual(["bench-1/head", "mine"]);
  await place.releaseLease("head", lease);
  await place[Symbol.asyncDispose]();
  expect(await namesOf(store, "")).toEqual(["mine"]);
});

test.each([
  ["bytes", 4096 / 0.46, "8.7 KiB/s"],
  ["bytes", 300 * 2 ** 20, "300.0 MiB/s"],
  ["bytes", 5000 * 2 ** 20, "5000.0 MiB/s"],
  ["operations", 0.4, "0.4 /s"],
  ["operations", 12_340, "12.3 k/s"],
] as const)("a rate in %s of %d is printed as %s", (unit, perSecond, text) => {
  const step: Step = {
    name: "a step",
    role: "tidemark",
    unit,
    amount: 4096,
    runs: 1,
    medianMs: 460,
    fastestMs: 460,
    slowestMs: 460,
    perSecond,
  };
  expect(formatBench({ ...report, steps: [step] })).toContain(` ${text} `);
});

const report: BenchReport = {
  type: "bench",
  case: "mount",
  machine: {
    tidemark: "0",
    date: "2026-01-01",
    cpu: "a processor",
    cores: 2,
    memoryBytes: 2 ** 33,
    loadAverage: 0,
    system: "linux",
    architecture: "x64",
    node: "v20",
    v8: "11",
  },
  image: null,
  store: null,
  seed: 1,
  runs: 1,
  steps: [],
  marks: [],
  counts: {},
  hashes: {},
  peakRssBytes: 0,
  series: [],
  latencies: [],
  stages: [],
};
