import { expect, test } from "vitest";
import { measureThroughput, type ThroughputOptions } from "../../../cli/capacity/throughput.ts";
import { TidemarkError } from "../../../engine/index.ts";
import { FaultySink } from "../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../sink/memory.ts";
import { namesOf } from "../../engine-model.ts";

const options: ThroughputOptions = {
  lanes: 2,
  forMs: 40,
  signal: new AbortController().signal,
  onStep: () => undefined,
};

async function newStore(): Promise<MemoryStore> {
  const store = new MemoryStore();
  await new MemorySink({ store }).createContainer();
  return store;
}

test("it measures each kind of request and leaves nothing behind", async () => {
  const sink = new MemorySink({ store: await newStore() });
  const steps: string[] = [];
  const measured = await measureThroughput(sink, { ...options, onStep: (step) => steps.push(step) });
  expect(steps).toEqual(["put", "get", "small"]);
  for (const kind of [measured.put, measured.get, measured.small]) {
    expect(kind.requests).toBeGreaterThan(0);
    expect(kind.bytesPerSecond).toBeGreaterThan(0);
    const { p50Ms, p95Ms, p99Ms, maxMs } = kind.latency;
    expect([p50Ms, p95Ms, p99Ms, maxMs]).toEqual([p50Ms, p95Ms, p99Ms, maxMs].sort((a, b) => a - b));
  }
  expect(measured.put.bytes).toBe(measured.put.requests * 4 * 1024 * 1024);
  expect(await namesOf(sink)).toEqual([]);
});

test("it leaves nothing behind after ^C and after a store that fails, at any step", async () => {
  const store = await newStore();
  for (const step of ["put", "get", "small"] as const) {
    const stop = new AbortController();
    const onStep = (at: string): void => {
      if (at === step) stop.abort(new Error("stopped"));
    };
    const sink = new MemorySink({ store });
    await expect(measureThroughput(sink, { ...options, signal: stop.signal, onStep })).rejects.toThrow();
    expect(await namesOf(sink)).toEqual([]);
  }
  const error = new TidemarkError("STORE_UNREACHABLE", "the store does not answer");
  for (const on of ["acquireLease", "createPages", "writePages", "readPages", "putObject"] as const) {
    const sink = new FaultySink(new MemorySink({ store }), [{ on, when: 1, fault: { kind: "refused", error } }]);
    await expect(measureThroughput(sink, options)).rejects.toBe(error);
    expect(await namesOf(new MemorySink({ store }))).toEqual([]);
  }
});

test("what a killed run has left is removed when its lease has run out, and a run that goes on is left alone", async () => {
  const store = await newStore();
  let nowMs = Date.now();
  const sink = new MemorySink({ store, clock: () => nowMs });
  const lease = "capacity-11111111-1111-4111-8111-111111111111-lease";
  await sink.putObject(lease, new Uint8Array(1), { ifAbsent: true });
  await sink.acquireLease(lease, "22222222-2222-4222-8222-222222222222", 15);
  await sink.createPages(lease.replace("lease", "pages-0"), 1 << 20, 1);
  const orphan = "capacity-33333333-3333-4333-8333-333333333333-pages-0";
  await sink.createPages(orphan, 1 << 20, 1);
  await sink.putObject("disks/d/head", new Uint8Array(1), { ifAbsent: true });
  expect(await measureThroughput(sink, { ...options, forMs: 0 })).toMatchObject({ removedLeftovers: 1 });
  expect(await namesOf(sink)).toEqual([lease, lease.replace("lease", "pages-0"), "disks/d/head"]);
  nowMs += 16_000;
  expect(await measureThroughput(sink, { ...options, forMs: 0 })).toMatchObject({ removedLeftovers: 2 });
  expect(await namesOf(sink)).toEqual(["disks/d/head"]);
});
