import { beforeEach, describe, expect, test } from "vitest";
import { TidemarkError } from "../../engine/errors.ts";
import { CrashError, FaultySink, Gate, type PlannedFault } from "../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../sink/memory.ts";
import { describeSink } from "./conformance.ts";
import { expectCode, namesIn } from "./expectations.ts";

// A wrapper without a plan changes nothing.
describeSink("FaultySink without faults", async () => {
  const store = new MemoryStore();
  const sinks = [new MemorySink({ store }), new MemorySink({ store }), new MemorySink()].map(
    (sink) => new FaultySink(sink, []),
  );
  const [a, b, absent] = sinks;
  if (a === undefined || b === undefined || absent === undefined) throw new Error("three sinks were made");
  await a.createContainer();
  return { a, b, absent, cleanup: () => a[Symbol.asyncDispose]() };
});

describe("FaultySink", () => {
  const id = "00000000-0000-4000-8000-000000000001";
  const body = (length = 512): Uint8Array => new Uint8Array(length).fill(1);
  let inner: MemorySink;
  let etag: string;

  beforeEach(async () => {
    inner = new MemorySink();
    await inner.createContainer();
    etag = (await inner.putObject("head", body(8), { ifAbsent: true })).etag;
    await inner.createPages("p", 4096, 1);
  });

  async function writtenBytes(): Promise<number> {
    return (await inner.statPages("p")).writtenBytes;
  }

  test("a refused call fails before its effect, at the n-th call of its kind and name only", async () => {
    const error = new TidemarkError("STORE_UNREACHABLE", "no answer");
    const sink = new FaultySink(inner, [{ on: "writePages", prefix: "p", when: 2, fault: { kind: "refused", error } }]);
    await sink.writePages("p", 0, body(), { sequenceNumber: 1 });
    await sink.statPages("p");
    await expect(sink.writePages("p", 512, body(), { sequenceNumber: 1 })).rejects.toBe(error);
    expect(await writtenBytes()).toBe(512);
    await sink.writePages("p", 512, body(), { sequenceNumber: 1 });
    expect(sink.calls).toEqual(["writePages p", "statPages p", "writePages p", "writePages p"]);
    sink.assertAllFired();
  });

  test("an unacknowledged write has taken effect", async () => {
    const sink = new FaultySink(inner, [{ on: "writePages", when: 1, fault: { kind: "unacknowledged" } }]);
    await expectCode(sink.writePages("p", 0, body(), { sequenceNumber: 1 }), "OUTCOME_UNKNOWN");
    expect(await writtenBytes()).toBe(512);
  });

  test("an unacknowledged write that the store refused is refused", async () => {
    const sink = new FaultySink(inner, [{ on: "putObject", when: 1, fault: { kind: "unacknowledged" } }]);
    await expectCode(sink.putObject("head", body(), { ifAbsent: true }), "OBJECT_EXISTS");
  });

  test("a late write takes effect when it is released, with the bytes it had when it was sent", async () => {
    const sink = new FaultySink(inner, [{ on: "putObject", when: 1, fault: { kind: "late" } }]);
    const bytes = body(3);
    await expectCode(sink.putObject("new", bytes, { ifAbsent: true }), "OUTCOME_UNKNOWN");
    bytes.fill(9);
    expect(await namesIn(inner, "new")).toEqual([]);
    expect(await sink.releaseLate()).toMatchObject([{ status: "fulfilled" }]);
    expect((await inner.getObject("new", 3)).bytes).toEqual(body(3));
    expect(await sink.releaseLate()).toEqual([]);
  });

  test("a late write fails at the fence that was raised meanwhile", async () => {
    const sink = new FaultySink(inner, [{ on: "writePages", when: 1, fault: { kind: "late" } }]);
    await expectCode(sink.writePages("p", 0, body(), { sequenceNumber: 1 }), "OUTCOME_UNKNOWN");
    await sink.raiseSequenceNumber("p", 2);
    expect(await sink.releaseLate()).toMatchObject([{ status: "rejected", reason: { code: "CONDITION_FAILED" } }]);
    expect(await writtenBytes()).toBe(0);
  });

  test("a slow call has no effect until its gate opens", async () => {
    const gate = new Gate();
    const sink = new FaultySink(inner, [{ on: "writePages", when: 1, fault: { kind: "slow", gate } }]);
    const slow = sink.writePages("p", 0, body(), { sequenceNumber: 1 });
    await gate.reached;
    expect(await writtenBytes()).toBe(0);
    gate.open();
    await slow;
    expect(await writtenBytes()).toBe(512);
  });

  test("a slow call ends when its signal is aborted, and never takes effect", async () => {
    const gate = new Gate();
    const sink = new FaultySink(inner, [{ on: "writePages", when: 1, fault: { kind: "slow", gate } }]);
    const controller = new AbortController();
    const slow = sink.writePages("p", 0, body(), { sequenceNumber: 1 }, { signal: controller.signal });
    await gate.reached;
    controller.abort();
    await expectCode(slow, "INTERRUPTED");
    gate.open();
    expect(await writtenBytes()).toBe(0);
  });

  test("a truncated read lacks its second half", async () => {
    const sink = new FaultySink(inner, [
      { on: "getObject", when: 1, fault: { kind: "truncated" } },
      { on: "readPages", when: 1, fault: { kind: "truncated" } },
    ]);
    await inner.writePages("p", 0, body(), { sequenceNumber: 1 });
    expect((await sink.getObject("head", 8)).bytes).toEqual(body(4));
    const into = new Uint8Array(512);
    await sink.readPages("p", 0, into);
    expect(into).toEqual(new Uint8Array(512).fill(1, 0, 256));
    expect((await sink.getObject("head", 8)).bytes).toEqual(body(8));
    sink.assertAllFired();
  });

  test("a flipped read differs in one bit, which follows from the seed, and the store is unharmed", async () => {
    const plan: PlannedFault[] = [{ on: "getObject", when: 1, fault: { kind: "flipped" } }];
    const read = async (seed: number): Promise<Uint8Array> =>
      (await new FaultySink(inner, plan, seed).getObject("head", 8)).bytes;
    const first = await read(3);
    const differing = first.reduce((bits, byte) => bits + (byte ^ 1).toString(2).replaceAll("0", "").length, 0);
    expect(differing).toBe(1);
    expect(await read(3)).toEqual(first);
    expect((await inner.getObject("head", 8)).bytes).toEqual(body(8));
  });

  test("a lost lease is lost at the store", async () => {
    const sink = new FaultySink(inner, [
      { on: "renewLease", when: 2, fault: { kind: "lease-lost" } },
      { on: "putObject", when: 1, fault: { kind: "lease-lost" } },
    ]);
    await sink.acquireLease("head", id, 60);
    await sink.renewLease("head", id);
    await expectCode(sink.renewLease("head", id), "LEASE_LOST");
    await sink.acquireLease("head", id, 60);
    await expectCode(sink.putObject("head", body(), { ifMatch: etag, leaseId: id }), "LEASE_LOST");
    sink.assertAllFired();
  });

  test.each([
    ["before", 0],
    ["after", 512],
  ] as const)("a crash %s its effect ends everything from that call on", async (effect, expected) => {
    const sink = new FaultySink(inner, [{ on: "any", when: 3, fault: { kind: "crash", effect } }]);
    await sink.statObject("head");
    await sink.statPages("p");
    const error: unknown = await sink
      .writePages("p", 0, body(), { sequenceNumber: 1 })
      .catch((reason: unknown) => reason);
    expect(error).toBeInstanceOf(CrashError);
    expect(error).not.toBeInstanceOf(TidemarkError);
    expect(String(error)).toContain(`call 3 (writePages p), ${effect} its effect`);
    expect(await writtenBytes()).toBe(expected);
    await expect(sink.writePages("p", 512, body(), { sequenceNumber: 1 })).rejects.toThrow(CrashError);
    await expect(namesIn(sink, "")).rejects.toThrow(CrashError);
    expect(sink.calls).toHaveLength(3);
    expect(await writtenBytes()).toBe(expected);
  });

  test("a crash after a call that the store refused is a crash", async () => {
    const sink = new FaultySink(inner, [{ on: "putObject", when: 1, fault: { kind: "crash", effect: "after" } }]);
    await expect(sink.putObject("head", body(), { ifAbsent: true })).rejects.toThrow(CrashError);
    await expect(sink.statObject("head")).rejects.toThrow(CrashError);
  });

  test("a call that was under way when the process died is not answered", async () => {
    const gate = new Gate();
    const sink = new FaultySink(inner, [
      { on: "writePages", when: 1, fault: { kind: "slow", gate } },
      { on: "statPages", when: 1, fault: { kind: "crash", effect: "before" } },
    ]);
    const slow = sink.writePages("p", 0, body(), { sequenceNumber: 1 });
    await gate.reached;
    await expect(sink.statPages("p")).rejects.toThrow(CrashError);
    gate.open();
    await expect(slow).rejects.toThrow(CrashError);
    expect(await writtenBytes()).toBe(0);
  });

  test("clearing pages is a call like any other: refused, slow, or the last of a process, but never of unknown outcome", async () => {
    const error = new TidemarkError("STORE_UNREACHABLE", "no answer");
    const gate = new Gate();
    const sink = new FaultySink(inner, [
      { on: "clearPages", when: 1, fault: { kind: "refused", error } },
      { on: "clearPages", when: 2, fault: { kind: "slow", gate } },
      { on: "clearPages", when: 3, fault: { kind: "late" } },
      { on: "clearPages", prefix: "p", when: 4, fault: { kind: "crash", effect: "after" } },
    ]);
    const first = async (): Promise<number> => {
      const into = new Uint8Array(1);
      await inner.readPages("p", 0, into);
      return into[0] ?? NaN;
    };
    await inner.writePages("p", 0, body(), { sequenceNumber: 1 });
    await expect(sink.clearPages("p", 0, 512)).rejects.toBe(error);
    const slow = sink.clearPages("p", 0, 512);
    await gate.reached;
    expect(await first()).toBe(1);
    gate.open();
    await slow;
    expect(await first()).toBe(0);
    await expect(sink.clearPages("p", 0, 512)).rejects.toThrow("clearPages is no write");
    await inner.writePages("p", 0, body(), { sequenceNumber: 1 });
    await expect(sink.clearPages("p", 0, 512)).rejects.toThrow(CrashError);
    expect(await first()).toBe(0);
    expect(sink.calls).toEqual(Array.from({ length: 4 }, () => "clearPages p"));
    sink.assertAllFired();
  });

  test("a probability draws from the seed: the same seed, the same faults", async () => {
    const error = new TidemarkError("STORE_UNREACHABLE", "no answer");
    const plan: PlannedFault[] = [{ on: "statObject", when: { probability: 0.3 }, fault: { kind: "refused", error } }];
    const outcomes = async (seed: number): Promise<string> => {
      const sink = new FaultySink(inner, plan, seed);
      const results = await Promise.allSettled(Array.from({ length: 200 }, () => sink.statObject("head")));
      return results.map(({ status }) => (status === "fulfilled" ? "." : "x")).join("");
    };
    const first = await outcomes(42);
    expect(await outcomes(42)).toBe(first);
    expect(await outcomes(43)).not.toBe(first);
    const refused = first.replaceAll(".", "").length;
    expect(refused).toBeGreaterThan(35);
    expect(refused).toBeLessThan(85);
  });

  test("a planned fault that never fired is told by name", () => {
    const sink = new FaultySink(inner, [{ on: "writePages", prefix: "segments/", when: 7, fault: { kind: "late" } }]);
    expect(() => {
      sink.assertAllFired();
    }).toThrow("late on writePages segments/");
  });

  test("wrappers nest", async () => {
    const error = new TidemarkError("STORE_UNREACHABLE", "no answer");
    const nested = new FaultySink(inner, [{ on: "statObject", when: 1, fault: { kind: "refused", error } }]);
    const sink = new FaultySink(nested, [{ on: "writePages", when: 1, fault: { kind: "unacknowledged" } }]);
    await expectCode(sink.statObject("head"), "STORE_UNREACHABLE");
    await expectCode(sink.writePages("p", 0, body(), { sequenceNumber: 1 }), "OUTCOME_UNKNOWN");
    nested.assertAllFired();
    sink.assertAllFired();
  });

  test("a fault that does not fit its call is a mistake of the test and says so", async () => {
    const sink = new FaultySink(inner, [{ on: "any", when: 1, fault: { kind: "late" } }]);
    await expect(sink.statObject("head")).rejects.toThrow("statObject is no write");
  });
});
