/**
 * A point whose blocks are kept elsewhere than in the cache: what a waiting read brings along, and
 * what the keeper is handed.
 */
import { expect, onTestFinished, test } from "vitest";
import type { VaultContext } from "../../../../engine/pipeline/vault-context.ts";
import { WorkerPool } from "../../../../engine/pipeline/worker-pool.ts";
import type { BlockKeeper } from "../../../../engine/recovery/mount/block-keeper.ts";
import { type HeldPoint, openHeldPoint } from "../../../../engine/recovery/mount/held-point.ts";
import { SealedSink } from "../../../../engine/store/keys/sealed-sink.ts";
import { contentOf, ModelDisk, modelBlockBytes, unlockModel } from "../../../model-disk.ts";
import { Line } from "../../failover/instant-rig.ts";
import { type Filled, filledVault, readRange, smallCacheBytes, vaultOf } from "./mount-rig.ts";

const sizeBytes = 40 * modelBlockBytes + 100;
const cacheBytes = 16 * smallCacheBytes;

/** Keeps blocks in an array of bytes. */
class Kept implements BlockKeeper {
  readonly bytes: Buffer;
  readonly has: Uint8Array;
  wantsNeighbours = true;
  /** False: it refuses what it is handed. */
  takes = true;
  /** How many bytes it was handed at a time. */
  readonly lengths: number[] = [];
  /** What `keep` waits for. */
  gate: Promise<void> = Promise.resolve();

  constructor(bytes: number) {
    this.bytes = Buffer.alloc(bytes, 0xee);
    this.has = new Uint8Array(Math.ceil(bytes / modelBlockBytes));
  }

  isNeeded(offset: number): boolean {
    return this.has[offset / modelBlockBytes] === 0;
  }

  async keep(offset: number, bytes: Uint8Array): Promise<boolean> {
    expect(offset % modelBlockBytes).toBe(0);
    this.lengths.push(bytes.byteLength);
    await this.gate;
    if (!this.takes) return false;
    this.bytes.set(bytes, offset);
    this.has.fill(1, offset / modelBlockBytes, Math.ceil((offset + bytes.byteLength) / modelBlockBytes));
    return true;
  }
}

async function held(filled: Filled, keeper: BlockKeeper): Promise<{ readonly held: HeldPoint; readonly line: Line }> {
  const { store, document } = await unlockModel(filled.sink);
  const line = new Line(filled.sink);
  const workerPool = WorkerPool.forVault(document, 1);
  const unused = (): never => {
    throw new Error("a mounted point needs no catalog");
  };
  const context: VaultContext = {
    sink: store.keys === undefined ? line : new SealedSink(line, store.keys),
    document,
    stateFolder: undefined,
    workers: 1,
    lanes: 2,
    indexBytesMax: 1024 * 1024,
    workerPool: () => workerPool,
    sharedCatalog: unused,
    dropCatalog: unused,
    renewals: new Set(),
    epochs: new Map(),
  };
  const held = await openHeldPoint(context, {
    disk: "d",
    point: "latest",
    cacheBytes,
    purpose: "test",
    keeper,
    onNotice: () => undefined,
  });
  onTestFinished(async () => {
    await held.close();
    await workerPool.close();
  });
  return { held, line };
}

test("a read that waits brings its neighbours along in one request, and only itself where no more is wanted", async () => {
  const filled = await vaultOf("dense kept", new ModelDisk(contentOf(sizeBytes, 1)));
  for (const wantsNeighbours of [true, false]) {
    const kept = new Kept(sizeBytes);
    kept.wantsNeighbours = wantsNeighbours;
    const { held: opened, line } = await held(filled, kept);
    await readRange(opened.point, 20 * modelBlockBytes + 512, 512);
    await opened.point.settled();
    expect(line.ranges).toBe(1);
    expect(kept.has.reduce((sum, has) => sum + has, 0)).toBeGreaterThanOrEqual(wantsNeighbours ? 8 : 1);
    if (!wantsNeighbours) expect(kept.lengths).toEqual([modelBlockBytes]);
    else expect(Math.max(...kept.lengths)).toBeGreaterThan(modelBlockBytes);
  }
});

test.each([
  ["takes", true],
  ["refuses", false],
])("reads get a point's bytes, also those that come while a keeper %s them", async (_what, takes) => {
  const filled = await filledVault();
  const content = filled.contents.at(-1) ?? Buffer.alloc(0);
  const kept = new Kept(content.byteLength);
  kept.takes = takes;
  let open = (): void => undefined;
  kept.gate = new Promise((resolve) => {
    open = resolve;
  });
  const { held: opened } = await held(filled, kept);
  const places = [0, 100_000, 200_000, 100_100];
  const found = await Promise.all(places.map(async (place) => await readRange(opened.point, place, 3000)));
  // The keeper is still busy with those blocks.
  found.push(await readRange(opened.point, 100_200, 3000));
  open();
  await opened.point.settled();
  for (const [index, place] of [...places, 100_200].entries())
    expect(found[index]?.equals(content.subarray(place, place + 3000)), `${place}`).toBe(true);
  for (const [block, has] of kept.has.entries()) {
    const [from, end] = [block * modelBlockBytes, (block + 1) * modelBlockBytes];
    if (has === 1) expect(kept.bytes.subarray(from, end).equals(content.subarray(from, end))).toBe(true);
  }
  expect(kept.lengths.length > 0 && kept.has.some((has) => has === 1)).toBe(takes);
});
