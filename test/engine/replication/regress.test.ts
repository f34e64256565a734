/**
 * The store goes back in time at any call of a cycle, to any earlier moment, without a word. A
 * cycle may then begin again by itself or give up with STORE_REGRESSED; it never commits a point
 * that cannot be read, and the next one heals what was lost.
 */

import { mkdtempSync, rmSync } from "node:fs";
import { cp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { hasCode } from "../../../engine/errors.ts";
import type { Sink } from "../../../engine/sink.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { callsOf } from "../../depth.ts";
import {
  checkNewest,
  closeModelVaults,
  Expected,
  openModelVault,
  redirected,
  replicateNoted,
  sampleDisk,
  scribble,
  watched,
} from "../../model-disk.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "regress-"));
});
afterEach(async () => {
  await closeModelVaults();
  rmSync(folder, { recursive: true });
});

test("a store that forgets a writer, which then makes a segment, costs one cycle: the next writer has a new epoch", async () => {
  const store = new MemoryStore();
  const plain = new MemorySink({ store });
  const disk = sampleDisk(150_000, 1);
  const line = { current: plain as Sink };
  const vault = await openModelVault(redirected(line));
  await vault.replicate({ disk: "d", volume: disk });
  const before = store.snapshot();
  scribble(disk, 1);
  let isBack = false;
  line.current = watched(plain, (method) => {
    if (method !== "createPages" || isBack) return;
    isBack = true;
    store.restore(before);
  });
  const notices: string[] = [];
  await vault.replicate({ disk: "d", volume: disk, onNotice: ({ code }) => notices.push(code) });
  expect(notices.filter((code) => code === "STORE_REGRESSED")).toHaveLength(1);
  await checkNewest(plain, "d", disk.bytes);
});

describe("a store that goes back in time", () => {
  test("at any call of a cycle never has a point that cannot be read, and the next cycle heals it", async () => {
    const store = new MemoryStore();
    const plain = new MemorySink({ store });
    const disk = sampleDisk(150_000, 1);
    const expected = new Expected("d");
    const state = join(folder, "state");
    const stateBefore = join(folder, "before");
    const line = { current: plain as Sink };
    const vault = await openModelVault(redirected(line), { stateFolder: state });
    let beforeParent = store.snapshot();
    for (const seed of [1, 2]) {
      beforeParent = store.snapshot();
      await replicateNoted(vault, plain, expected, disk);
      scribble(disk, seed);
    }
    await cp(state, stateBefore, { recursive: true });
    const start = store.snapshot();
    const content = Buffer.from(disk.bytes);
    await expected.note(plain, content);

    async function begin(): Promise<void> {
      store.restore(start);
      disk.bytes = Buffer.from(content);
      await rm(state, { recursive: true });
      await cp(stateBefore, state, { recursive: true });
    }

    await begin();
    let callsOfCycle = 0;
    line.current = watched(plain, () => {
      callsOfCycle += 1;
    });
    await vault.replicate({ disk: "d", volume: disk });

    /**
     * The cycle, in which the store goes back at call `at` to what `moment` picks of the snapshots
     * taken before each call.
     */
    async function regressed(
      at: number,
      moment: (taken: readonly MemorySnapshot[]) => MemorySnapshot | undefined,
    ): Promise<string> {
      await begin();
      const taken: MemorySnapshot[] = [];
      let calls = 0;
      let where = "";
      line.current = watched(plain, (method, name) => {
        calls += 1;
        if (calls < at) taken.push(store.snapshot());
        if (calls !== at) return;
        where = `call ${String(at)} (${method} ${name})`;
        const then = moment(taken);
        if (then !== undefined) store.restore(then);
      });
      const outcome = await vault.replicate({ disk: "d", volume: disk }).then(
        () => "success",
        (error: unknown) => (hasCode(error, "STORE_REGRESSED") ? error.code : error),
      );
      line.current = plain;
      expect(calls).toBeGreaterThanOrEqual(at);
      try {
        if (outcome !== "success" && outcome !== "STORE_REGRESSED") throw outcome;
        await expected.check(plain);
        scribble(disk, 77);
        await replicateNoted(vault, plain, expected, disk);
        await expected.check(plain);
        await checkNewest(plain, "d", disk.bytes);
        return outcome;
      } catch (error) {
        throw new Error(`after the store went back at ${where}`, { cause: error });
      }
    }

    const ways: Record<string, (taken: readonly MemorySnapshot[]) => MemorySnapshot | undefined> = {
      oneCall: (taken) => taken.at(-1),
      halfTheCycle: (taken) => taken[Math.floor(taken.length / 2)],
      toTheSeatsTaking: (taken) => taken[3],
      toTheBeginning: () => start,
      toBeforeTheParent: () => beforeParent,
    };
    // What the parent's number may hold when the parent itself was lost.
    store.restore(beforeParent);
    await expected.note(plain, content);
    const outcomes = new Map<string, number>();
    const failures: unknown[] = [];
    for (const at of callsOf(1, callsOfCycle)) {
      for (const [way, moment] of Object.entries(ways)) {
        const outcome = await regressed(at, moment).catch((error: unknown) => {
          failures.push(new Error(way, { cause: error }));
          return "failure";
        });
        outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
      }
    }
    console.log(`outcomes: ${JSON.stringify([...outcomes])}`);
    expect(failures).toEqual([]);
  }, 120_000);
});
