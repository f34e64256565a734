/**
 * The store goes back in time at any call of a cycle, to any earlier moment, and tells nobody. A cycle may then begin again by itself or give
 * up with STORE_REGRESSED; it never commits a point that cannot be read, and the next one heals what was lost.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { cp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { hasCode } from "../../engine/errors.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../sink/memory.ts";
import { checkNewest, Expected, openModelVault, replicateNoted, sampleDisk, scribble, watched } from "../model-disk.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "regress-"));
});
afterEach(() => {
  rmSync(folder, { recursive: true });
});

describe("a store that goes back in time", () => {
  test("at any call of a cycle never has a point that cannot be read, and the next cycle heals it", async () => {
    const store = new MemoryStore();
    const plain = new MemorySink({ store });
    const disk = sampleDisk(150_000, 1);
    const expected = new Expected("d");
    const state = join(folder, "state");
    const stateBefore = join(folder, "before");
    const history: MemorySnapshot[] = [];
    for (const seed of [1, 2]) {
      history.push(store.snapshot());
      await replicateNoted(await openModelVault(plain, { stateFolder: stateBefore }), plain, expected, disk);
      scribble(disk, seed);
    }
    const beforePoint = history[1];
    const start = store.snapshot();
    const content = Buffer.from(disk.bytes);
    await expected.note(plain, content);

    /** The cycle, in which the store goes back at call `at` to what `chooseMoment` picks of the snapshots taken before each call. */
    async function regressed(at: number, chooseMoment: (moments: readonly MemorySnapshot[]) => MemorySnapshot | undefined): Promise<string> {
      store.restore(start);
      disk.bytes = Buffer.from(content);
      await rm(state, { recursive: true, force: true });
      await cp(stateBefore, state, { recursive: true });
      const moments: MemorySnapshot[] = [];
      let calls = 0;
      let where = "";
      const sink = watched(plain, (method, name) => {
        calls += 1;
        if (calls < at) moments.push(store.snapshot());
        if (calls !== at) return;
        where = `call ${String(at)} (${method} ${name})`;
        const moment = chooseMoment(moments);
        if (moment !== undefined) store.restore(moment);
        // A store that lost the parent makes the next point in its place.
      });
      const outcome = await openModelVault(sink, { stateFolder: state })
        .then(async (vault) => await vault.replicate({ disk: "d", volume: disk }))
        .then(
          () => "success",
          (error: unknown) => (hasCode(error, "STORE_REGRESSED") ? error.code : error),
        );
      if (calls < at) return "over";
      try {
        if (outcome !== "success" && outcome !== "STORE_REGRESSED") throw outcome;
        await expected.check(plain);
        scribble(disk, 77);
        await replicateNoted(await openModelVault(plain, { stateFolder: state }), plain, expected, disk);
        await expected.check(plain);
        await checkNewest(plain, "d", disk.bytes);
      } catch (error) {
        throw new Error(`after the store went back at ${where}`, { cause: error });
      }
      return outcome;
    }

    const ways: readonly (readonly [string, (moments: readonly MemorySnapshot[]) => MemorySnapshot | undefined])[] = [
      ["by one call", (moments) => moments.at(-1)],
      ["half the cycle", (moments) => moments[Math.floor(moments.length / 2)]],
      ["to the seat's taking", (moments) => moments[4]],
      ["to the cycle's beginning", () => start],
      ["to before the parent point", () => beforePoint],
    ];
    // What the parent's number may hold when the parent itself was lost.
    store.restore(beforePoint ?? start);
    await expected.note(plain, content);
    const outcomes = new Map<string, number>();
    const failures: unknown[] = [];
    for (const [way, chooseMoment] of ways) {
      for (let at = 1; ; at += 1) {
        try {
          const outcome = await regressed(at, chooseMoment);
          if (outcome === "over") break;
          outcomes.set(outcome, (outcomes.get(outcome) ?? 0) + 1);
        } catch (error) {
          failures.push(new Error(way, { cause: error }));
        }
      }
    }
    for (const failure of failures) console.log(failure);
    console.log(`outcomes: ${JSON.stringify([...outcomes])}`);
    expect(failures).toEqual([]);
  }, 120_000);
});
