/** Progress counts the data of a point, not its holes. */
import { expect, test } from "vitest";
import { granuleBytes } from "../../../../engine/limits.ts";
import type { RunReference } from "../../../../engine/store/format/documents.ts";
import { leafEntriesMax } from "../../../../engine/store/format/leaf.ts";
import { DataShare } from "../../../../engine/store/map/data-share.ts";
import { PointMap, windowGranules } from "../../../../engine/store/map/point-map.ts";
import { MapObjects } from "../../../../engine/store/map/run-writer.ts";
import { disk, openMemory, vaultId } from "../../../engine-model.ts";
import { namesIn } from "../../../sink/expectations.ts";
import { chunkGranules, type ModelEntry, writeRun } from "./granule-model.ts";

/** Granules of 1 TiB. */
const granules: number = 2 ** 28;
const rig = await openMemory();
const objects = new MapObjects({ store: rig.store, vaultId, disk, epoch: 1 });

const chunksFrom = (start: number, count: number): ModelEntry[] =>
  Array.from({ length: count }, (_, index) => ({
    start: start + index * chunkGranules,
    length: chunkGranules,
    chunk: index % 500,
  }));

const mapOf = async (...newestFirst: readonly (readonly ModelEntry[])[]): Promise<[PointMap, number]> => {
  const runs: RunReference[] = [];
  for (const entries of newestFirst)
    runs.push(...[await writeRun(objects, entries)].filter((run) => run !== undefined));
  return [new PointMap(rig.store, vaultId, disk, { volumeBytes: granules * granuleBytes, runs }), runs.length];
};

test("data at both ends of a terabyte and zeros between them are two chunks, not a terabyte", async () => {
  const end = granules - chunkGranules;
  const share = await DataShare.of(
    ...(await mapOf([...chunksFrom(0, 1), { start: 500, length: 5_000_000 }, ...chunksFrom(end, 1)])),
  );
  const half = chunkGranules * granuleBytes;
  expect(share.totalBytes).toBe(2 * half);
  const positions = [0, windowGranules, granules / 2, granules - windowGranules, granules];
  expect(positions.map((at) => share.bytesBelow(at))).toEqual([0, half, half, half, 2 * half]);
});

test("of a run of full leaves only the root is read, and a window never counts more than it holds", async () => {
  const base = chunksFrom(0, leafEntriesMax + 100);
  const [map, runs] = await mapOf(chunksFrom(0, 1000), base);
  const before = rig.sink.calls.length;
  const share = await DataShare.of(map, runs);
  expect(share.totalBytes).toBe(base.length * chunkGranules * granuleBytes);
  expect(rig.sink.calls).toHaveLength(before + 2); // the leaf of the small run, the root of the large one
});

test("a small disk is counted exactly, also where newer runs hide older ones", async () => {
  const runs = [[{ start: 8, length: 4 }], chunksFrom(0, 1), chunksFrom(0, 3)].map(
    async (run) => await writeRun(objects, run),
  );
  const stack = (await Promise.all(runs)).filter((run) => run !== undefined);
  const share = await DataShare.of(
    new PointMap(rig.store, vaultId, disk, { volumeBytes: 8 * chunkGranules * granuleBytes, runs: stack }),
    stack.length,
  );
  expect(share.totalBytes).toBe((3 * chunkGranules - 4) * granuleBytes);
});

test("a map that cannot be read counts as full", async () => {
  const [map, runs] = await mapOf(chunksFrom(0, 1));
  for (const name of await namesIn(rig.sink, "disks/")) await rig.store.delete(name);
  expect((await DataShare.of(map, runs)).totalBytes).toBe(granules * granuleBytes);
});
