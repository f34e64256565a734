/**
 * The difference of two maps against the child's map: every granule that shows something else, and
 * no other.
 */
import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { granuleBytes } from "../../../../engine/limits.ts";
import type { RunReference } from "../../../../engine/store/format/documents.ts";
import { mapDifferences } from "../../../../engine/store/map/map-diff.ts";
import { mergeStack } from "../../../../engine/store/map/merge.ts";
import { type GranuleRange, windowGranules } from "../../../../engine/store/map/point-map.ts";
import { MapObjects } from "../../../../engine/store/map/run-writer.ts";
import { Store } from "../../../../engine/store/store.ts";
import { disk, openMemory, vaultId } from "../../../engine-model.ts";
import { apply, type GranuleModel, granules, type ModelEntry, runOfEntries, writeRun } from "./granule-model.ts";

const volumeBytes: number = granules * granuleBytes;

interface Version {
  readonly runs: readonly RunReference[];
  readonly volumeBytes: number;
  readonly model: GranuleModel;
}

async function differences(store: Store, from: Version, to: Version): Promise<GranuleRange[]> {
  const ranges: GranuleRange[] = [];
  for await (const range of mapDifferences({ store, vaultId, disk, from, to })) ranges.push(range);
  return ranges;
}

function modelDifferences(from: Version, to: Version): GranuleRange[] {
  const says = ({ model, volumeBytes: bytes }: Version, granule: number): string =>
    granule * granuleBytes < bytes ? (model.get(granule) ?? "zero") : "zero";
  const ranges: { from: number; end: number }[] = [];
  for (let granule = 0; granule * granuleBytes < to.volumeBytes; granule += 1) {
    if (says(from, granule) === says(to, granule)) continue;
    const last = ranges.at(-1);
    if (last?.end === granule) last.end = granule + 1;
    else ranges.push({ from: granule, end: granule + 1 });
  }
  return ranges;
}

/**
 * Versions of a disk, each with one run more than the one before, merged as a writer does; the disk
 * has its size from `sizes`.
 */
async function versionsOf(
  store: Store,
  oldestFirst: readonly (readonly ModelEntry[])[],
  sizes: readonly number[],
): Promise<Version[]> {
  const objects = new MapObjects({ store, vaultId, disk, epoch: 1 });
  const model: GranuleModel = new Map();
  let runs: RunReference[] = [];
  const versions: Version[] = [{ runs, volumeBytes: granules * granuleBytes, model: new Map() }];
  for (const [index, entries] of oldestFirst.entries()) {
    const run = await writeRun(objects, entries);
    if (run !== undefined) runs = await mergeStack(objects, [run, ...runs], volumeBytes);
    apply(model, entries);
    versions.push({ runs, volumeBytes: (sizes[index] ?? granules) * granuleBytes, model: new Map(model) });
  }
  return versions;
}

describe("the difference of two maps", () => {
  test("is every granule that shows another chunk, between any two points, through merges and changes of size", async () => {
    const size = fc.oneof({ weight: 4, arbitrary: fc.constant(granules) }, fc.integer({ min: 1, max: granules }));
    await fc.assert(
      fc.asyncProperty(
        fc.array(runOfEntries, { minLength: 1, maxLength: 24 }),
        fc.array(size, { maxLength: 24 }),
        fc.array(fc.tuple(fc.nat(24), fc.nat(24)), { minLength: 4, maxLength: 4 }),
        async (stack, sizes, pairs) => {
          const { store } = await openMemory();
          const versions = await versionsOf(store, stack, sizes);
          for (const [a, b] of pairs) {
            const [from, to] = [versions[a % versions.length], versions[b % versions.length]];
            if (from === undefined || to === undefined) continue;
            expect(await differences(store, from, to)).toEqual(modelDifferences(from, to));
          }
        },
      ),
      { numRuns: 60 },
    );
  });

  test("of a map and itself is nothing, and no leaf is read for it", async () => {
    const { store } = await openMemory();
    const [, version] = await versionsOf(store, [[{ start: 3, length: 4, chunk: 1, from: 0 }]], []);
    if (version === undefined) throw new Error("there is a version");
    const before = store.requests;
    expect(await differences(store, version, version)).toEqual([]);
    expect(store.requests).toBe(before);
  });

  test("takes zeros that were written for zeros that never were", async () => {
    const { store } = await openMemory();
    const versions = await versionsOf(store, [[{ start: 0, length: 8 }]], []);
    const [empty, zeroed] = versions;
    if (empty === undefined || zeroed === undefined) throw new Error("there are two versions");
    expect(await differences(store, empty, zeroed)).toEqual([]);
  });

  test("joins what differs on both sides of a window's border", async () => {
    const { store } = await openMemory();
    const objects = new MapObjects({ store, vaultId, disk, epoch: 1 });
    const run = await writeRun(objects, [{ start: windowGranules - 8, length: 16, chunk: 1, from: 0 }]);
    const bytes = 2 * windowGranules * granuleBytes;
    const empty = { runs: [], volumeBytes: bytes, model: new Map() };
    const version = { runs: run === undefined ? [] : [run], volumeBytes: bytes, model: new Map() };
    expect(await differences(store, empty, version)).toEqual([{ from: windowGranules - 8, end: windowGranules + 8 }]);
  });

  test("reads of an old run only what lies around the new one", async () => {
    const { store } = await openMemory();
    const objects = new MapObjects({ store, vaultId, disk, epoch: 1 });
    // Three leaves of the old run, in windows far apart.
    const old = await writeRun(
      objects,
      Array.from(
        { length: 80_000 },
        (_, entry): ModelEntry => ({ start: entry * 32, length: 16, chunk: entry % 400, from: 0 }),
      ),
    );
    const fresh = await writeRun(objects, [{ start: 160, length: 4, chunk: 401, from: 0 }]);
    if (old === undefined || fresh === undefined) throw new Error("there are runs");
    expect(old.leaves).toBe(3);
    const bytes = 80_000 * 32 * granuleBytes;
    const counting = new Store(store.sink);
    const base = { runs: [old], volumeBytes: bytes, model: new Map() };
    expect(await differences(counting, base, { ...base, runs: [fresh, old] })).toEqual([{ from: 160, end: 164 }]);
    // The new leaf; the root of the old run for each map, and its first leaf for both.
    expect(counting.requests).toBe(4);
  });
});
