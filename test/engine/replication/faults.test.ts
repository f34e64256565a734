/**
 * Stores that answer late, wrongly or not at all. A cycle either makes its point or ends with an
 * error that says why; what it left behind never harms a point, and the next cycle succeeds.
 */

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type ErrorCode, TidemarkError } from "../../../engine/errors.ts";
import type { Sink } from "../../../engine/sink.ts";
import type { Vault } from "../../../engine/vault.ts";
import { type Fault, FaultySink, type PlannedFault } from "../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { byDepth, sampleOf } from "../../depth.ts";
import {
  checkNewest,
  closeModelVaults,
  committedPoints,
  Expected,
  type ModelDisk,
  openModelVault,
  redirected,
  replicateNoted,
  sampleDisk,
  scribble,
} from "../../model-disk.ts";
import { expectCode } from "../../sink/expectations.ts";

const isWrite = /^(putObject|createPages|writePages) /;
const isRead = /^(getObject|readPages) /;

let store: MemoryStore;
let plain: MemorySink;
let line: { current: Sink };
let vault: Vault;
let disk: ModelDisk;
let expected: Expected;
let start: MemorySnapshot;
let content: Buffer;
/** The calls of the cycle from `start`, when nothing goes wrong. */
let calls: readonly string[];
beforeEach(async () => {
  store = new MemoryStore();
  plain = new MemorySink({ store });
  line = { current: plain };
  disk = sampleDisk(150_000, 1);
  expected = new Expected("d");
  vault = await openModelVault(redirected(line));
  await replicateNoted(vault, plain, expected, disk);
  scribble(disk, 1);
  content = Buffer.from(disk.bytes);
  start = store.snapshot();
  const whole = new FaultySink(plain, []);
  expect(await attempt(whole)).toBe("success");
  ({ calls } = whole);
});
afterEach(closeModelVaults);

/** The second cycle, from the beginning, through `sink`. Returns how it ended. */
async function attempt(sink: Sink): Promise<string> {
  store.restore(start);
  disk.bytes = Buffer.from(content);
  await expected.note(plain, content);
  line.current = sink;
  try {
    await vault.replicate({ disk: "d", volume: disk });
    return "success";
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    return error.code;
  } finally {
    line.current = plain;
  }
}

/** Everything committed is right, and one more cycle, on a sound store, makes its point. */
async function checkAndContinue(): Promise<void> {
  await expected.check(plain);
  scribble(disk, 9);
  await replicateNoted(vault, plain, expected, disk);
  await expected.check(plain);
  await checkNewest(plain, "d", disk.bytes);
}

/** One attempt for each call that `matches`, with `fault` at that call; gives how each ended. */
async function sweep(
  matches: RegExp,
  fault: Fault,
  after: (sink: FaultySink) => Promise<void> = () => Promise.resolve(),
): Promise<Map<string, string>> {
  const outcomes = new Map<string, string>();
  const matching = [...calls.entries()].filter(([, call]) => matches.test(call));
  for (const [index, call] of sampleOf(matching)) {
    const sink = new FaultySink(plain, [{ on: "any", when: index + 1, fault }], index + 1);
    const key = `${String(index + 1)} ${call}`;
    outcomes.set(key, await attempt(sink));
    sink.assertAllFired();
    await after(sink);
    try {
      await checkAndContinue();
    } catch (error) {
      throw new Error(`after ${fault.kind} at call ${key}, which ended with ${String(outcomes.get(key))}`, {
        cause: error,
      });
    }
  }
  expect(outcomes.size).toBeGreaterThan(0);
  return outcomes;
}

function endings(outcomes: ReadonlyMap<string, string>): string[] {
  return [...new Set(outcomes.values())].sort();
}

describe("a cycle", () => {
  test("succeeds when the acknowledgement of any write is lost", async () => {
    expect(endings(await sweep(isWrite, { kind: "unacknowledged" }))).toEqual(["success"]);
  });

  test("succeeds when any write gets lost, and the original that arrives after all changes nothing", async () => {
    const late = async (sink: FaultySink): Promise<void> => {
      const points = await committedPoints(plain, "d");
      const results = await sink.releaseLate();
      expect(results).toMatchObject([{ status: "rejected" }]);
      expect(await committedPoints(plain, "d")).toEqual(points);
    };
    expect(endings(await sweep(isWrite, { kind: "late" }, late))).toEqual(["success"]);
  });

  test("succeeds when the lease vanishes before any swap of the head", async () => {
    const outcomes = await sweep(/^putObject disks\/d\/head/, { kind: "lease-lost" });
    expect(endings(outcomes)).toEqual(["success"]);
    expect(outcomes.size).toBe(3);
  });

  test("ends with STORE_UNREACHABLE when the store falls silent, unless all is done", async () => {
    const outcomes = await sweep(/./, {
      kind: "refused",
      error: new TidemarkError("STORE_UNREACHABLE", "503 for longer than is tolerated"),
    });
    const last = [...outcomes.keys()].at(-1);
    expect(last).toMatch(/releaseLease/);
    for (const [call, outcome] of outcomes) expect(outcome, call).toBe(call === last ? "success" : "STORE_UNREACHABLE");
  });

  test.each(["truncated", "flipped"] as const)(
    "reads that come back %s end it with what they are, or do not matter",
    async (kind) => {
      const outcomes = await sweep(isRead, { kind });
      for (const outcome of endings(outcomes)) expect(["success", "DAMAGED", "FORMAT_UNSUPPORTED"]).toContain(outcome);
    },
  );

  test("that meets many faults makes its point or ends with an error that says why, for every seed", async () => {
    const seeds = Array.from({ length: byDepth(4, 25) }, (_, index) => index + 1);
    const refused = (code: ErrorCode): Fault => ({
      kind: "refused",
      error: new TidemarkError(code, `a planned ${code}`),
    });
    const often = (on: PlannedFault["on"], fault: Fault): PlannedFault => ({ on, when: { probability: 0.2 }, fault });
    const ended = new Map<string, number>();
    for (const seed of seeds) {
      const plan = [
        often("putObject", { kind: "unacknowledged" }),
        often("writePages", { kind: "late" }),
        often("createPages", { kind: "unacknowledged" }),
        often("statObject", refused("STORE_UNREACHABLE")),
        { ...often("readPages", { kind: "flipped" }), when: { probability: 0.1 } },
      ];
      const sink = new FaultySink(plain, plan, seed);
      const outcome = await attempt(sink);
      await sink.releaseLate();
      try {
        expect(["success", "STORE_UNREACHABLE", "DAMAGED"]).toContain(outcome);
        await checkAndContinue();
      } catch (error) {
        throw new Error(`seed ${String(seed)}`, { cause: error });
      }
      ended.set(outcome, (ended.get(outcome) ?? 0) + 1);
    }
    console.log(`seeds 1 to ${String(seeds.length)} ended: ${JSON.stringify([...ended])}`);
    expect(ended.size).toBeGreaterThan(1);
  });
});

describe("a first cycle", () => {
  test.each(["unacknowledged", "late"] as const)(
    "succeeds when the write of the vault's identity or of a head is %s",
    async (kind) => {
      for (const prefix of ["vault.json", "disks/d/head"]) {
        const sink = new FaultySink(new MemorySink(), [{ on: "putObject", prefix, when: 1, fault: { kind } }]);
        const fresh = await openModelVault(sink);
        await replicateNoted(fresh, sink, expected, disk);
        await sink.releaseLate();
        sink.assertAllFired();
        expect(await expected.check(sink)).toBe(1);
      }
    },
  );

  test("into a store that refuses us changes nothing and says so", async () => {
    const error = new TidemarkError("ACCESS_REFUSED", "the key is wrong");
    const sink = new FaultySink(new MemorySink(), [
      { on: "any", when: { probability: 1 }, fault: { kind: "refused", error } },
    ]);
    await expectCode(openModelVault(sink), "ACCESS_REFUSED");
  });
});
