/**
 * The size that the map is made for: a full disk of 1 TiB in 16,777,216 blocks, and cycles of
 * scattered 4 KiB writes on top of it. Arithmetic: 16.8 million entries of 36 bytes are 604 MB of
 * leaves, which this test keeps in memory; a cycle of 20,000 entries adds 0.7 MB. A quick run has
 * a sixteenth of the disk, and half of the cycles.
 */
import { beforeAll, describe, expect, test } from "vitest";
import { frameBytesMax, granuleBytes } from "../../../../engine/limits.ts";
import { toHex } from "../../../../engine/store/format/checksum.ts";
import type {
  HeadDocument,
  ManifestDocument,
  PointRecord,
  RunReference,
} from "../../../../engine/store/format/documents.ts";
import { decodeManifest, encodeHead, encodeManifest } from "../../../../engine/store/format/documents.ts";
import { frameHeaderBytes } from "../../../../engine/store/format/frame.ts";
import { leafEntriesMax } from "../../../../engine/store/format/leaf.ts";
import { segmentName } from "../../../../engine/store/format/names.ts";
import { mapDifferences } from "../../../../engine/store/map/map-diff.ts";
import { mergeStack } from "../../../../engine/store/map/merge.ts";
import { PointMap, windowGranules } from "../../../../engine/store/map/point-map.ts";
import { MapObjects, RunWriter } from "../../../../engine/store/map/run-writer.ts";
import { Store } from "../../../../engine/store/store.ts";
import { collectGarbage } from "../../../collect-garbage.ts";
import { byDepth } from "../../../depth.ts";
import { disk, numbersFrom, openMemory, vaultId } from "../../../engine-model.ts";

const volumeBytes: number = byDepth(2 ** 36, 2 ** 40);
const size: string = byDepth("64 GiB", "1 TiB");
const blockGranules = 16;
const blocks: number = volumeBytes / (blockGranules * granuleBytes);
const granules: number = volumeBytes / granuleBytes;
const cycles: number = byDepth(16, 32);
const changesPerCycle = 20_000;
/** What a frame's table spends on a chunk, and a frame on its header and padding. */
const frameTableEntryBytes = 26;
const frameOverheadBytes: number = frameHeaderBytes + 512;
const mebibyte = 2 ** 20;

/**
 * What the cycles wrote besides their data, and the manifest that names the most runs: opening a
 * point never costs more.
 */
interface Built {
  readonly store: Store;
  readonly deepest: { readonly cycle: number; readonly bytes: Uint8Array; readonly id: string };
  readonly base: RunReference;
  readonly metadataBytes: number;
  readonly runsMax: number;
  /** The map after each cycle; at index 0 the full disk. */
  readonly stacks: readonly (readonly RunReference[])[];
}

let built: Built;
beforeAll(async () => {
  built = await build();
}, 120_000);

async function build(): Promise<Built> {
  const { store } = await openMemory();
  const base = await writeFullDisk(store);
  const before = store.putBytes;
  const next = numbersFrom(42);
  let runs: RunReference[] = [base];
  let documentBytes = 0;
  let runsMax = 0;
  let manifest = encodeManifest(manifestOf(0, null, runs));
  let deepest = { ...manifest, cycle: 0 };
  const points: PointRecord[] = [];
  const stacks: RunReference[][] = [runs];
  for (let cycle = 1; cycle <= cycles; cycle += 1) {
    const objects = new MapObjects({ store, vaultId, disk, epoch: cycle + 1 });
    runs = await mergeStack(objects, [await writeScattered(objects, next), ...runs], volumeBytes);
    stacks.push(runs);
    manifest = encodeManifest(manifestOf(cycle, manifest.id, runs));
    if (runs.length >= runsMax) deepest = { ...manifest, cycle };
    runsMax = Math.max(runsMax, runs.length);
    points.push(recordOf(cycle, manifest.id));
    const head: HeadDocument = {
      vault: toHex(vaultId),
      disk,
      epoch: cycle + 1,
      writer: null,
      collection: null,
      pages: [],
      points,
    };
    // The head is written when the lease is taken and when the point is committed.
    documentBytes += manifest.bytes.byteLength + 2 * encodeHead(head).byteLength;
  }
  return { store, deepest, base, metadataBytes: store.putBytes - before + documentBytes, runsMax, stacks };
}

/** One chunk a block, in segments of 1 GiB. */
async function writeFullDisk(store: Store): Promise<RunReference> {
  const writer = new RunWriter(new MapObjects({ store, vaultId, disk, epoch: 1 }));
  const digest = new Uint8Array(16);
  const digestWords = new Uint32Array(digest.buffer);
  const blocksPerSegment = 16_384;
  for (let first = 0; first < blocks; first += blocksPerSegment) {
    const segment = segmentName(disk, 1, 0, first / blocksPerSegment);
    for (let block = first; block < first + blocksPerSegment; block += 1) {
      digestWords[0] = block;
      writer.append(
        block * blockGranules,
        blockGranules,
        segment,
        (block - first) * 65_536,
        65_536,
        0,
        blockGranules,
        digest,
        0,
      );
    }
  }
  const run = await writer.finish();
  if (run === undefined) throw new Error("the disk is full");
  return run;
}

/** Single granules all over the disk. */
async function writeScattered(objects: MapObjects, next: () => number): Promise<RunReference> {
  const writer = new RunWriter(objects);
  const digest = new Uint8Array(16);
  const digestWords = new Uint32Array(digest.buffer);
  const spacing = Math.floor(granules / changesPerCycle);
  const segment = segmentName(disk, objects.epoch, 0, 0);
  for (let change = 0; change < changesPerCycle; change += 1) {
    for (let word = 0; word < 4; word += 1) digestWords[word] = next();
    writer.append(change * spacing + (next() % spacing), 1, segment, change * 4096, 4096, 0, 1, digest, 0);
  }
  const run = await writer.finish();
  if (run === undefined) throw new Error("the cycle changed something");
  return run;
}

function manifestOf(sequence: number, parent: string | null, runs: readonly RunReference[]): ManifestDocument {
  const changedBytes = changesPerCycle * granuleBytes;
  return {
    vault: toHex(vaultId),
    disk,
    sequence: sequence + 1,
    epoch: sequence + 1,
    parent,
    timeMs: 1_790_000_000_000 + sequence,
    consistency: "crash",
    application: null,
    group: null,
    volumeBytes,
    statistics: {
      scannedBytes: volumeBytes,
      changedBytes,
      zeroBytes: 0,
      dedupedBytes: 0,
      newBytes: changedBytes,
      storedBytes: changedBytes,
    },
    runs,
    writtenBy: "tidemark 0.1.0",
  };
}

function recordOf(sequence: number, id: string): PointRecord {
  const changedBytes = changesPerCycle * granuleBytes;
  const timeMs = 1_790_000_000_000 + sequence;
  return {
    sequence,
    epoch: sequence + 1,
    id,
    timeMs,
    lagMs: null,
    consistency: "crash",
    group: null,
    volumeBytes,
    changedBytes,
    newBytes: changedBytes,
    storedBytes: changedBytes,
  };
}

describe(`the map of a disk of ${size}`, () => {
  test(`has ${blocks} entries in full leaves of 36 bytes an entry`, () => {
    const { base } = built;
    expect(base).toMatchObject({ kind: "root", entries: blocks, leaves: blocks / leafEntriesMax });
    expect(base.totalBytes / blocks).toBeLessThan(36.1);
  });

  test("is opened and read at its beginning, middle and end within 2 s and 1 GiB", async () => {
    collectGarbage();
    const before = process.memoryUsage();
    const startedAt = performance.now();
    const store = new Store(built.store.sink);
    const { id } = built.deepest;
    const manifest = decodeManifest(built.deepest.bytes, "manifest", { vault: toHex(vaultId), disk, id });
    const map = new PointMap(store, vaultId, disk, manifest);
    const pieces: number[] = [];
    for (const from of [0, granules / 2, granules - windowGranules])
      pieces.push((await map.window(from, from + windowGranules)).count);
    const elapsedMs = performance.now() - startedAt;
    const after = process.memoryUsage();
    // What was freed before may be used again without the process growing, so what is held is
    // counted too.
    const rssMiB = (after.rss - before.rss) / mebibyte;
    const heldMiB = (after.heapUsed + after.external - before.heapUsed - before.external) / mebibyte;
    console.log(
      `${size} map: three windows in ${elapsedMs.toFixed(0)} ms, ${store.requests.toFixed(0)} objects read, RSS ${rssMiB.toFixed(0)} MiB more, ` +
        `${heldMiB.toFixed(0)} MiB held, ${manifest.runs.length.toFixed(0)} runs`,
    );
    // 4096 blocks, some of them cut by single granules that were written later.
    for (const count of pieces) {
      expect(count).toBeGreaterThanOrEqual(windowGranules / blockGranules);
      expect(count).toBeLessThan(2 * (windowGranules / blockGranules));
    }
    // A root for each run that needs one, and a leaf or two of each run for each window.
    expect(store.requests).toBeLessThanOrEqual(manifest.runs.length * 7);
    expect(Math.max(rssMiB, heldMiB)).toBeLessThan(1024);
    expect(elapsedMs).toBeLessThan(3 * 2000);
  });

  test("shows the newest write of a granule and around it the block that was there", async () => {
    const next = numbersFrom(42);
    const spacing = Math.floor(granules / changesPerCycle);
    // The first change of that point's cycle: each change draws five numbers.
    for (let draw = 0; draw < (built.deepest.cycle - 1) * changesPerCycle * 5; draw += 1) next();
    const digest = Uint32Array.from({ length: 4 }, next);
    const granule = next() % spacing;
    const { id } = built.deepest;
    const manifest = decodeManifest(built.deepest.bytes, "manifest", { vault: toHex(vaultId), disk, id });
    const map = new PointMap(new Store(built.store.sink), vaultId, disk, manifest);
    const pieces = await map.window(granule, granule + 1);
    const entry = pieces.entries[0] ?? 0;
    const leaf = pieces.leaves[0];
    expect(pieces.count).toBe(1);
    expect(new Uint32Array(leaf?.digests.slice(entry * 16, entry * 16 + 16).buffer ?? new ArrayBuffer(0))).toEqual(
      digest,
    );
  });

  test.each([
    ["two points of a full disk", (stacks: Built["stacks"]) => [stacks.at(-3) ?? [], stacks.at(-2) ?? []]],
    // Without the full disk below them the same cycles are a sparse one.
    [
      "two points of a sparse disk",
      (stacks: Built["stacks"]) => [stacks.at(-3)?.slice(0, -1) ?? [], stacks.at(-2)?.slice(0, -1) ?? []],
    ],
  ] as const)("tells in a few seconds in which 20,000 granules %s differ", async (what, pick) => {
    const [from = [], to = []] = pick(built.stacks);
    const startedAt = performance.now();
    const store = new Store(built.store.sink);
    let [extents, differing] = [0, 0];
    for await (const range of mapDifferences({
      store,
      vaultId,
      disk,
      from: { volumeBytes, runs: from },
      to: { volumeBytes, runs: to },
    })) {
      extents += 1;
      differing += range.end - range.from;
    }
    const elapsedMs = performance.now() - startedAt;
    console.log(
      `${size} map: ${what} compared in ${elapsedMs.toFixed(0)} ms, ${store.requests.toFixed(0)} objects read`,
    );
    expect(differing).toBe(changesPerCycle);
    // Some of them are neighbours.
    expect(extents).toBeGreaterThan(changesPerCycle * 0.99);
    expect(elapsedMs).toBeLessThan(3 * 10_000);
  });

  test("costs a cycle of 20,000 scattered granules less than 5 % of what it changed", () => {
    const changedBytes = cycles * changesPerCycle * granuleBytes;
    const frames = Math.ceil((changesPerCycle * granuleBytes) / frameBytesMax) + 1;
    const frameBytes = cycles * (changesPerCycle * frameTableEntryBytes + frames * frameOverheadBytes);
    const share = (built.metadataBytes + frameBytes) / changedBytes;
    console.log(
      `${size} map: metadata of ${cycles.toFixed(0)} cycles is ${(share * 100).toFixed(2)} % of the changed bytes ` +
        `(map and documents ${(built.metadataBytes / mebibyte).toFixed(1)} MiB, frame tables ${(frameBytes / mebibyte).toFixed(1)} MiB), ` +
        `at most ${built.runsMax.toFixed(0)} runs`,
    );
    expect(share).toBeLessThan(0.05);
    expect(built.runsMax).toBeLessThanOrEqual(80);
  });
});
