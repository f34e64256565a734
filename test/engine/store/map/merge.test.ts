import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { granuleBytes } from "../../../../engine/limits.ts";
import type { RunReference } from "../../../../engine/store/format/documents.ts";
import { leafEntriesMax } from "../../../../engine/store/format/leaf.ts";
import { fanIn, mergeStack, runsToMerge } from "../../../../engine/store/map/merge.ts";
import { PointMap } from "../../../../engine/store/map/point-map.ts";
import { MapObjects, RunWriter } from "../../../../engine/store/map/run-writer.ts";
import { byDepth, runsOf } from "../../../depth.ts";
import { digestOf, disk, namesOf, numbersFrom, openMemory, vaultId } from "../../../engine-model.ts";
import type { GranuleModel } from "./granule-model.ts";
import { apply, runOfEntries, spellMap, withoutZeros, writeRun } from "./granule-model.ts";

const volumeBytes = 400 * granuleBytes;

describe("the policy of merging", () => {
  test("keeps the stack short and rewrites an entry only a few times over 5,000 commits", () => {
    for (const [entries, commits, timesMax] of [
      [100, 5000, 5],
      [20_000, 500, 3],
      [1000, 5000, 5],
    ] as const) {
      let stack: { entries: number }[] = [];
      let rewritten = 0;
      let longest = 0;
      for (let commit = 0; commit < commits; commit += 1) {
        stack.unshift({ entries });
        const count = runsToMerge(stack);
        if (count > 0) {
          // At worst nothing overlaps and every entry stays.
          const merged = stack.slice(0, count).reduce((sum, run) => sum + run.entries, 0);
          rewritten += merged;
          stack = [{ entries: merged }, ...stack.slice(count)];
        }
        longest = Math.max(longest, stack.length);
      }
      expect(longest).toBeLessThanOrEqual(80);
      expect(rewritten / (entries * commits)).toBeLessThanOrEqual(timesMax);
    }
  });

  test("merges nothing below its fan-in, and always from the top without a gap", () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 1, max: 10_000_000 }), { maxLength: 80 }), (sizes) => {
        const count = runsToMerge(sizes.map((entries) => ({ entries })));
        expect(count === 0 || (count >= fanIn && count <= sizes.length)).toBe(true);
      }),
    );
    expect(runsToMerge(Array.from({ length: fanIn - 1 }, () => ({ entries: 1 })))).toBe(0);
    expect(runsToMerge([])).toBe(0);
  });
});

describe("a merged stack", () => {
  test("says the same as before, after every one of many commits", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(runOfEntries, { minLength: 16, maxLength: 50 }), async (commits) => {
        const { store } = await openMemory();
        const model: GranuleModel = new Map();
        let runs: RunReference[] = [];
        let merges = 0;
        for (const [epoch, entries] of commits.entries()) {
          const objects = new MapObjects({ store, vaultId, disk, epoch: epoch + 1 });
          const run = await writeRun(objects, entries);
          apply(model, entries);
          const before = run === undefined ? runs : [run, ...runs];
          runs = await mergeStack(objects, before, volumeBytes);
          if (runs.length < before.length) merges += 1;
          const map = new PointMap(store, vaultId, disk, { volumeBytes, runs });
          expect(withoutZeros(await spellMap(map, 128))).toEqual(withoutZeros(model));
        }
        expect(merges).toBeGreaterThan(0);
        expect(runs.length).toBeLessThan(fanIn);
      }),
      { numRuns: runsOf(12) },
    );
  });

  test("drops zeros once nothing older is left for them to hide, and keeps them before", async () => {
    const { store } = await openMemory();
    const objects = new MapObjects({ store, vaultId, disk, epoch: 1 });
    const data = await writeRun(objects, [{ start: 0, length: 10, chunk: 1 }]);
    const zeros = [];
    for (let at = 0; at < fanIn; at += 1) zeros.push(await writeRun(objects, [{ start: at, length: 1 }]));
    const ofZeros = zeros.flatMap((run) => run ?? []);
    // A large run below, which is not merged with the others, is what the zeros hide.
    const large = { ...(data ?? raise()), entries: 10_000_000 };
    const kept = await mergeStack(objects, [...ofZeros, large], volumeBytes);
    expect(kept).toMatchObject([{ entries: 1 }, large]);
    expect(await mergeStack(objects, ofZeros, volumeBytes)).toEqual([]);
    expect(await mergeStack(objects, [...ofZeros, data ?? raise()], volumeBytes)).toEqual([]);
  });

  test("takes over the leaves that no newer run touches as they are", async () => {
    const { sink, store } = await openMemory();
    const leaves = 6;
    const span = leafEntriesMax;
    const older = new MapObjects({ store, vaultId, disk, epoch: 1 });
    const oldest = await evenRun(older, leaves * leafEntriesMax, 0);
    expect(oldest.leaves).toBe(leaves);
    const objects = new MapObjects({ store, vaultId, disk, epoch: 2 });
    const newer: RunReference[] = [];
    // All changes lie in the third leaf's granules.
    for (let at = 0; at < fanIn; at += 1) newer.unshift(await evenRun(objects, 100, 2 * span + at * 50));
    // The policy merges runs of a like size; here the point is what merging does, so the oldest is
    // declared to be small.
    const before = (await namesOf(sink, "disks/")).length;
    const declared = { ...oldest, entries: 100 };
    const runs = await mergeStack(objects, [...newer, declared], leaves * span * granuleBytes);
    // The leaf that was touched, and a root.
    const put = (await namesOf(sink, "disks/")).length - before;
    expect(runs).toHaveLength(1);
    expect(put).toBeLessThanOrEqual(3);
    expect(runs[0]).toMatchObject({ leaves, entries: leaves * leafEntriesMax });
    const map = new PointMap(store, vaultId, disk, { volumeBytes: leaves * span * granuleBytes, runs });
    // Chunks of the oldest run lie at the offset of their granule, those of a newer one at that of
    // their place in it.
    for (const [granule, offset] of [
      [0, 0],
      [2 * span - 1, 2 * span - 1],
      [2 * span + 800, 50],
      [2 * span + 850, 2 * span + 850],
      [3 * span, 3 * span],
    ] as const) {
      const pieces = await map.window(granule, granule + 1);
      expect(pieces.leaves[0]?.offsets[pieces.entries[0] ?? 0]).toBe(offset);
    }
  });

  test("stays in few leaves over hundreds of merges of localized changes", async () => {
    const { store } = await openMemory();
    const next = numbersFrom(11);
    const granules = 4 * leafEntriesMax;
    let runs = [await evenRun(new MapObjects({ store, vaultId, disk, epoch: 1 }), granules, 0)];
    for (let commit = 0; commit < byDepth(60, 160); commit += 1) {
      const objects = new MapObjects({ store, vaultId, disk, epoch: commit + 2 });
      const delta = await evenRun(objects, 300, next() % (granules - 300));
      const stack = [delta, ...runs.map((run) => ({ ...run, entries: Math.min(run.entries, 400) }))];
      const merged = await mergeStack(objects, stack, granules * granuleBytes);
      runs = merged;
    }
    const leaves = runs.reduce((sum, run) => sum + run.leaves, 0);
    // Twice what full leaves would need, and one for each run above.
    expect(leaves).toBeLessThanOrEqual(2 * 4 + 1 + fanIn);
  });

  test("is not made when an object cannot be put, and nothing is left in flight", async () => {
    const { sink, store } = await openMemory([
      { on: "putObject", when: fanIn + 1, fault: { kind: "crash", effect: "before" } },
    ]);
    const objects = new MapObjects({ store, vaultId, disk, epoch: 1 });
    const runs: RunReference[] = [];
    for (let at = 0; at < fanIn; at += 1) runs.unshift(await evenRun(objects, 10, at * 5));
    await expect(mergeStack(objects, runs, volumeBytes)).rejects.toThrow("the process died");
    sink.assertAllFired();
  });
});

/** A run of `count` chunks of one granule each, one after the other from granule `first` on. */
async function evenRun(objects: MapObjects, count: number, first: number): Promise<RunReference> {
  const writer = new RunWriter(objects);
  const digest = digestOf(1);
  for (let at = 0; at < count; at += 1)
    writer.append(first + at, 1, "segments/disk/00000001-0-00000000", at, 4096, 0, 1, digest, 0);
  return (await writer.finish()) ?? raise();
}

function raise(): never {
  throw new Error("the run has entries");
}
