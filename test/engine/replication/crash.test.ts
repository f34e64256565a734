/**
 * A process dies at each call of a cycle, before and after the call's effect. What it leaves is
 * opened by another process of the same machine, which takes the writer lease at once, and by another
 * machine, which has to wait for the lease.
 */

import { cpSync, mkdtempSync, renameSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { Sink } from "../../../engine/sink.ts";
import type { ProcessIdentity } from "../../../engine/store/points/process-identity.ts";
import { liveSessions } from "../../../engine/store/points/process-identity.ts";
import type { Vault } from "../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../sink/faults.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { callsOf } from "../../depth.ts";
import {
  closeModelVaults,
  Expected,
  type ModelDisk,
  modelStore,
  openModelVault,
  redirected,
  replicateNoted,
  sampleDisk,
  scribble,
} from "../../model-disk.ts";
import { expectCode } from "../../sink/expectations.ts";

const pretended = vi.hoisted((): { identity: Partial<ProcessIdentity> } => ({ identity: {} }));
vi.mock(import("../../../engine/store/points/process-identity.ts"), async (importOriginal) => {
  const original = await importOriginal();
  return {
    ...original,
    identifyProcess: async () => ({ ...(await original.identifyProcess()), ...pretended.identity }),
  };
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
afterEach(async () => {
  await closeModelVaults();
  pretended.identity = {};
  rmSync(folder, { recursive: true });
});

const connect = (): MemorySink => new MemorySink({ store, clock: () => nowMs });

/**
 * The next process of this machine: nothing waits, everything that was acknowledged is there, and
 * it makes its point.
 */
async function recoverOnThisMachine(start: Start): Promise<void> {
  liveSessions().clear();
  expect(await expected.check(connect())).toBeGreaterThanOrEqual(start.points);
  const content = Buffer.from(disk.bytes);
  scribble(disk, 77);
  await replicateNoted(await start.open(connect()), connect(), expected, disk);
  await expected.check(connect());
  disk.bytes = content;
}

async function recoverOnAnotherMachine(start: Start): Promise<void> {
  pretended.identity = { machine: "another" };
  try {
    const vault = await start.open(connect());
    if (await isSeatTaken(connect())) await expectCode(vault.replicate({ disk: "d", volume: disk }), "WRITER_ACTIVE");
    nowMs += leaseMs + 1;
    await replicateNoted(vault, connect(), expected, disk);
    await expected.check(connect());
  } finally {
    pretended.identity = {};
  }
}

async function isSeatTaken(sink: MemorySink): Promise<boolean> {
  if (!(await exists(sink, "disks/d/head"))) return false;
  const { bytes } = await (await modelStore(sink)).get("disks/d/head", 1_000_000);
  return !/"writer": null/.test(Buffer.from(bytes).toString());
}

async function exists(sink: MemorySink, object: string): Promise<boolean> {
  for await (const { name } of sink.list(object)) if (name === object) return true;
  return false;
}

interface Start {
  readonly snapshot: MemorySnapshot;
  readonly points: number;
  /** Puts the local state as it is when the cycle begins. */
  readonly resetState: () => void;
  readonly open: (sink: Sink) => Promise<Vault>;
}

/** Runs the cycle once for each of its calls, and dies there. Returns how many calls it has. */
async function sweep(start: Start): Promise<number> {
  const content = Buffer.from(disk.bytes);
  const begin = async (sink: FaultySink): Promise<void> => {
    store.restore(start.snapshot);
    start.resetState();
    disk.bytes = Buffer.from(content);
    await expected.note(connect(), disk.bytes);
    const vault = await start.open(sink);
    await vault.replicate({ disk: "d", volume: disk });
  };
  const whole = new FaultySink(connect(), []);
  await begin(whole);
  const { length } = whole.calls;
  for (const call of callsOf(1, length)) {
    for (const effect of ["before", "after"] as const) {
      const sink = new FaultySink(connect(), [{ on: "any", when: call, fault: { kind: "crash", effect } }]);
      await expect(begin(sink), `call ${String(call)}, ${effect}`).rejects.toThrow(CrashError);
      sink.assertAllFired();
      const after = store.snapshot();
      try {
        await recoverOnThisMachine(start);
        // What is there before a call is there after the one before it, so the other machine need
        // not see both.
        if (effect === "before") continue;
        store.restore(after);
        start.resetState();
        await recoverOnAnotherMachine(start);
      } catch (error) {
        throw new Error(`after a crash at call ${String(call)} (${String(sink.calls.at(-1))}), ${effect} its effect`, {
          cause: error,
        });
      }
    }
  }
  return length;
}

describe("a crash at any call", () => {
  test("of the cycle that makes the vault, the disk and the first point loses nothing and blocks no process", async () => {
    const open = async (sink: Sink): Promise<Vault> => {
      await closeModelVaults();
      return await openModelVault(sink);
    };
    const calls = await sweep({ snapshot: store.snapshot(), points: 0, resetState: () => undefined, open });
    console.log(`died at each of ${String(calls)} calls of a first cycle, before and after its effect`);
    expect(calls).toBeGreaterThanOrEqual(15);
  }, 120_000);

  test.each([
    ["that compares with local fingerprints", true],
    ["that compares with the vault because the state is lost", false],
  ] as const)(
    "of a later cycle %s leaves every point as it was",
    async (_how, withState) => {
      const state = join(folder, "state");
      const before = join(folder, "before");
      const line = { current: connect() as Sink };
      const vault = await openModelVault(redirected(line), { stateFolder: state });
      for (const seed of [1, 2]) {
        await replicateNoted(vault, connect(), expected, disk);
        scribble(disk, seed);
      }
      if (withState) renameSync(state, before);
      const resetState = (): void => {
        rmSync(state, { recursive: true, force: true });
        if (withState) cpSync(before, state, { recursive: true });
      };
      const open = (sink: Sink): Promise<Vault> => {
        line.current = sink;
        return Promise.resolve(vault);
      };
      const calls = await sweep({ snapshot: store.snapshot(), points: 2, resetState, open });
      console.log(`died at each of ${String(calls)} calls of a later cycle, before and after its effect`);
      expect(calls).toBeGreaterThanOrEqual(14);
    },
    120_000,
  );
});
