import fc from "fast-check";
import { describe, expect, test } from "vitest";
import { granuleBytes } from "../../../../engine/limits.ts";
import type { RunReference } from "../../../../engine/store/format/documents.ts";
import { leafEntriesMax } from "../../../../engine/store/format/leaf.ts";
import { segmentName } from "../../../../engine/store/format/names.ts";
import { PointMap, windowGranules } from "../../../../engine/store/map/point-map.ts";
import { MapObjects, RunWriter } from "../../../../engine/store/map/run-writer.ts";
import type { Store } from "../../../../engine/store/store.ts";
import { runsOf } from "../../../depth.ts";
import { digestOf, disk, foreignVaultId, openMemory, vaultId } from "../../../engine-model.ts";
import { expectCode } from "../../../sink/expectations.ts";
import type { GranuleModel, ModelEntry } from "./granule-model.ts";
import { apply, granules, runOfEntries, spell, spellMap, writeRun } from "./granule-model.ts";

const segment = segmentName(disk, 1, 0, 0);

async function stackOf(
  store: Store,
  oldestFirst: readonly (readonly ModelEntry[])[],
): Promise<{ runs: RunReference[]; model: GranuleModel }> {
  const objects = new MapObjects({ store, vaultId, disk, epoch: 1 });
  const model: GranuleModel = new Map();
  const runs: RunReference[] = [];
  for (const entries of oldestFirst) {
    const run = await writeRun(objects, entries);
    if (run !== undefined) runs.unshift(run);
    apply(model, entries);
  }
  return { runs, model };
}

function open(store: Store, runs: readonly RunReference[], volumeBytes = granules * granuleBytes): PointMap {
  return new PointMap(store, vaultId, disk, { volumeBytes, runs });
}

describe("a point's map", () => {
  test("says of every granule what the newest run says that speaks of it, whatever windows are asked for", async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(runOfEntries, { maxLength: 6 }),
        fc.nat(granules),
        fc.nat(granules),
        async (stack, a, b) => {
          const { store } = await openMemory();
          const { runs, model } = await stackOf(store, stack);
          const map = open(store, runs);
          expect(await spellMap(map, 97)).toEqual(new Map([...model].sort(([x], [y]) => x - y)));
          const [from, end] = a < b ? [a, b] : [b, a];
          const inWindow = [...model].filter(([granule]) => granule >= from && granule < end).sort(([x], [y]) => x - y);
          expect(spell(await map.window(from, end), from, end)).toEqual(new Map(inWindow));
        },
      ),
      { numRuns: runsOf(80) },
    );
  });

  test("finds the next granule that any run speaks of", async () => {
    await fc.assert(
      fc.asyncProperty(fc.array(runOfEntries, { maxLength: 4 }), async (stack) => {
        const { store } = await openMemory();
        const { runs, model } = await stackOf(store, stack);
        const map = open(store, runs);
        let next = Infinity;
        for (let granule = granules; granule >= 0; granule -= 1) {
          if (model.has(granule)) next = granule;
          expect(await map.nextMapped(granule)).toBe(next);
        }
      }),
      { numRuns: runsOf(25) },
    );
  });

  test("is empty where there are no runs", async () => {
    const { store } = await openMemory();
    const map = open(store, []);
    expect((await map.window(0, granules)).count).toBe(0);
    expect(await map.nextMapped(0)).toBe(Infinity);
    expect(store.requests).toBe(0);
  });

  test("of several leaves is the same across their borders, and reads only the leaves asked for", async () => {
    const { store } = await openMemory();
    const objects = new MapObjects({ store, vaultId, disk, epoch: 1 });
    const count = leafEntriesMax * 2 + 10;
    const writer = new RunWriter(objects);
    for (let entry = 0; entry < count; entry += 1)
      writer.append(entry * 2, 1, segment, entry * 512, 4096, 0, 1, digestOf(entry % 50), 0);
    const run = await writer.finish();
    expect(run).toMatchObject({ kind: "root", leaves: 3, entries: count });
    const runs = run === undefined ? [] : [run];
    const map = open(store, runs, count * 2 * granuleBytes);
    const before = store.requests;
    const border = leafEntriesMax * 2;
    const pieces = await map.window(border - 100, border + 100);
    // The root and two leaves.
    expect(store.requests - before).toBe(3);
    expect(pieces.count).toBe(100);
    for (let index = 0; index < 100; index += 1) {
      const entry = (border - 100) / 2 + index;
      expect(pieces.starts[index]).toBe(entry * 2);
      expect(pieces.leaves[index]?.offsets[pieces.entries[index] ?? 0]).toBe(entry * 512);
    }
    expect(await map.nextMapped(border - 1)).toBe(border);
    expect(await map.nextMapped(count * 2)).toBe(Infinity);
    await map.window(border - 100, border + 100);
    expect(store.requests - before).toBe(3);
  });

  test("reaches to the last granule of the largest volume", async () => {
    const { store } = await openMemory();
    const last = 2 ** 32;
    const entries = [
      { start: last - 16, length: 10 },
      { start: last - 6, length: 6, chunk: 7, from: 3 },
    ];
    const { runs } = await stackOf(store, [entries]);
    const map = open(store, runs, last * granuleBytes);
    expect(await map.nextMapped(0)).toBe(last - 16);
    const said = spell(await map.window(last - windowGranules, last), last - windowGranules, last);
    expect(said.get(last - 1)).toBe("7:8");
    expect(said.size).toBe(16);
    expect(await map.nextMapped(last)).toBe(Infinity);
  });

  test("is refused when a leaf or root is not the one that its point refers to", async () => {
    const { sink, store } = await openMemory();
    const { runs } = await stackOf(store, [[{ start: 0, length: 4, chunk: 1 }], [{ start: 0, length: 4, chunk: 2 }]]);
    const [newer, older] = runs;
    if (newer === undefined || older === undefined) throw new Error("two runs were written");
    await expectCode(open(store, [{ ...newer, ordinal: older.ordinal }]).window(0, 10), "DAMAGED");
    await expectCode(open(store, [{ ...newer, entries: 2 }]).window(0, 10), "DAMAGED");
    await expectCode(open(store, [{ ...newer, bytes: newer.bytes - 1 }]).window(0, 10), "DAMAGED");
    await expectCode(open(store, [{ ...newer, kind: "root" }]).window(0, 10), "DAMAGED");
    await expectCode(open(store, [{ ...newer, ordinal: 99 }]).nextMapped(0), "DAMAGED");
    await expectCode(new PointMap(store, foreignVaultId, disk, { volumeBytes: 4096, runs }).window(0, 1), "DAMAGED");
    expect(sink.calls.length).toBeGreaterThan(0);
  });
});

describe("a run being written", () => {
  test("merges neighbouring zeros and nothing else", async () => {
    const { store } = await openMemory();
    const objects = new MapObjects({ store, vaultId, disk, epoch: 1 });
    const run = await writeRun(objects, [
      { start: 0, length: 3 },
      { start: 3, length: 2 },
      { start: 6, length: 1 },
      { start: 7, length: 1, chunk: 1 },
      { start: 8, length: 1, chunk: 1, from: 1 },
      { start: 9, length: 1 },
    ]);
    expect(run?.entries).toBe(5);
  });

  test("refuses entries that go back", async () => {
    const { store } = await openMemory();
    const writer = new RunWriter(new MapObjects({ store, vaultId, disk, epoch: 1 }));
    writer.appendZero(10, 5);
    expect(() => writer.appendZero(14, 1)).toThrow(/ascending/);
  });

  test("without entries is no run and puts nothing", async () => {
    const { store } = await openMemory();
    const objects = new MapObjects({ store, vaultId, disk, epoch: 1 });
    expect(await writeRun(objects, [])).toBeUndefined();
    expect(objects.put.size).toBe(0);
  });

  test("whose leaf cannot be put ends in that error, and settles", async () => {
    const { sink, store } = await openMemory([{ on: "putObject", when: 2, fault: { kind: "crash", effect: "after" } }]);
    const writer = new RunWriter(new MapObjects({ store, vaultId, disk, epoch: 1 }));
    for (let entry = 0; entry <= leafEntriesMax * 2; entry += 1)
      writer.append(entry, 1, segment, 0, 4096, 0, 1, digestOf(1), 0);
    await expect(writer.finish()).rejects.toThrow("the process died");
    await writer.settle();
    sink.assertAllFired();
  });
});
