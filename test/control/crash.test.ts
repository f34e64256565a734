/**
 * A process dies at each call of a cycle, before and after the call's effect. What it leaves is opened by another process of the same
 * machine, which takes the seat at once, and by another machine, which has to wait for the lease.
 */
import { cpSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { ProcessIdentity } from "../../engine/control/process-identity.ts";
import { liveSessions } from "../../engine/control/process-identity.ts";
import { CrashError, FaultySink } from "../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../sink/memory.ts";
import { expectCode } from "../sink/expectations.ts";
import { committedPoints, Expected, ModelDisk, openModelVault, replicateNoted, sampleDisk, scribble } from "../model-disk.ts";

const pretended = vi.hoisted((): { identity: Partial<ProcessIdentity> } => ({ identity: {} }));
vi.mock(import("../../engine/control/process-identity.ts"), async (importOriginal) => {
  const original = await importOriginal();
  return { ...original, identifyProcess: async () => ({ ...(await original.identifyProcess()), ...pretended.identity }) };
});

const diskBytes = 150_000;
const leaseMs = 60_000;

let folder: string;
let store: MemoryStore;
let nowMs: number;
let disk: ModelDisk;
let expected: Expected;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "crash-"));
  store = new MemoryStore();
  nowMs = 1_000_000;
  disk = sampleDisk(diskBytes, 1);
  expected = new Expected("d");
});
afterEach(() => {
  pretended.identity = {};
  rmSync(folder, { recursive: true });
});

const connect = (): MemorySink => new MemorySink({ store, clock: () => nowMs });

/** One replication by a process that ends before it returns, of a crash or in good order. */
async function replicateIn(sink: MemorySink | FaultySink, stateFolder?: string): Promise<void> {
  const vault = await openModelVault(sink, { stateFolder });
  await vault.replicate({ disk: "d", volume: disk });
}

/** The next process of this machine: nothing waits, everything that was acknowledged is there, and it makes its point. */
async function recoverOnThisMachine(acknowledged: number, stateFolder: string | undefined): Promise<void> {
  liveSessions().clear();
  expect(await expected.check(connect())).toBeGreaterThanOrEqual(acknowledged);
  const content = Buffer.from(disk.bytes);
  scribble(disk, 77);
  const sink = connect();
  await replicateNoted(await openModelVault(sink, { stateFolder }), sink, expected, disk);
  await expected.check(sink);
  disk.bytes = content;
}

async function recoverOnAnotherMachine(): Promise<void> {
  pretended.identity = { machine: "another" };
  try {
    const sink = connect();
    const vault = await openModelVault(sink);
    if (await isSeatTaken(sink)) await expectCode(vault.replicate({ disk: "d", volume: disk }), "WRITER_ACTIVE");
    nowMs += leaseMs + 1;
    await replicateNoted(vault, sink, expected, disk);
    await expected.check(sink);
  } finally {
    pretended.identity = {};
  }
}

async function isSeatTaken(sink: MemorySink): Promise<boolean> {
  if (!(await exists(sink, "disks/d/head"))) return false;
  const { bytes } = await sink.getObject("disks/d/head", 1_000_000);
  return !/"writer": null/.test(Buffer.from(bytes).toString());
}

async function exists(sink: MemorySink, object: string): Promise<boolean> {
  for await (const { name } of sink.list(object)) if (name === object) return true;
  return false;
}

interface Start {
  readonly snapshot: MemorySnapshot;
  readonly points: number;
  /** State folder as it is when the cycle begins; undefined: there is none. */
  readonly state: string | undefined;
}

/** Runs the cycle once for each of its calls, and dies there. Returns how many calls it has. */
async function sweep(start: Start): Promise<number> {
  const content = Buffer.from(disk.bytes);
  const begin = (): string | undefined => {
    store.restore(start.snapshot);
    disk.bytes = Buffer.from(content);
    if (start.state === undefined) return undefined;
    const state = join(folder, "state");
    rmSync(state, { recursive: true, force: true });
    cpSync(start.state, state, { recursive: true });
    return state;
  };
  const whole = new FaultySink(connect(), []);
  const wholeState = begin();
  await expected.note(connect(), disk.bytes);
  await replicateIn(whole, wholeState);
  const { length } = whole.calls;
  for (let call = 1; call <= length; call += 1) {
    for (const effect of ["before", "after"] as const) {
      const state = begin();
      await expected.note(connect(), disk.bytes);
      const sink = new FaultySink(connect(), [{ on: "any", when: call, fault: { kind: "crash", effect } }]);
      await expect(replicateIn(sink, state), `call ${String(call)}, ${effect}`).rejects.toThrow(CrashError);
      sink.assertAllFired();
      const after = store.snapshot();
      try {
        await recoverOnThisMachine(start.points, state);
        // What is there before a call is there after the one before it, so the other machine need not see both.
        if (effect === "before") continue;
        store.restore(after);
        await recoverOnAnotherMachine();
      } catch (error) {
        throw new Error(`after a crash at call ${String(call)} (${String(sink.calls.at(-1))}), ${effect} its effect`, { cause: error });
      }
    }
  }
  return length;
}

describe("a crash at any call", () => {
  test("of the cycle that makes the vault, the disk and the first point loses nothing and blocks nobody", async () => {
    const calls = await sweep({ snapshot: store.snapshot(), points: 0, state: undefined });
    console.log(`died at each of ${String(calls)} calls of a first cycle, before and after its effect`);
    expect(calls).toBeGreaterThanOrEqual(15);
  }, 120_000);

  test.each([
    ["that compares with local fingerprints", true],
    ["that compares with the vault because the state is lost", false],
  ] as const)("of a later cycle %s leaves every point as it was", async (_how, withState) => {
    const state = join(folder, "before");
    const sink = connect();
    for (const seed of [1, 2]) {
      await replicateNoted(await openModelVault(sink, { stateFolder: state }), sink, expected, disk);
      scribble(disk, seed);
    }
    const start: Start = { snapshot: store.snapshot(), points: 2, state: withState ? state : undefined };
    expect(await committedPoints(sink, "d")).toHaveLength(2);
    const calls = await sweep(start);
    console.log(`died at each of ${String(calls)} calls of a later cycle, before and after its effect`);
    expect(calls).toBeGreaterThanOrEqual(15);
  }, 120_000);
});
