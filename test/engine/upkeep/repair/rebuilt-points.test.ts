/**
 * Which points a rebuilt list has: all that can be read, if only in part; none of which anything
 * has been given back; none that was dropped meanwhile.
 */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Sink } from "../../../../engine/sink.ts";
import { decodeManifest, documentBytesMax, encodeManifest } from "../../../../engine/store/format/documents.ts";
import { manifestName } from "../../../../engine/store/format/names.ts";
import {
  collectionName,
  deadName,
  encodeCollection,
  encodeDead,
  type PageRun,
} from "../../../../engine/store/format/reclaim.ts";
import { readHead } from "../../../../engine/store/points/head.ts";
import type { LostObject, RepairedObject, RepairSummary } from "../../../../engine/upkeep/repair/repair.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { MemoryStore } from "../../../../sink/memory.ts";
import {
  checkNewest,
  closeModelVaults,
  committedPoints,
  contentOf,
  Expected,
  ModelDisk,
  modelSink,
  modelStore,
  watched,
} from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { storedName, tamperObject } from "../scrub/tamper.ts";
import { openRepairRig, type RepairRig } from "./repair-rig.ts";

const head = "disks/d/head";

let store: MemoryStore;
let line: RepairRig["line"];
let vault: Vault;
let disk: ModelDisk;
let expected: Expected;
let takePoints: RepairRig["takePoints"];
beforeEach(async () => {
  ({ store, line, vault, disk, expected, takePoints } = await openRepairRig());
});
afterEach(async () => {
  await closeModelVaults();
});

const repair = async (): Promise<RepairSummary> => await vault.repair();

async function sequences(): Promise<number[]> {
  return (await committedPoints(line.current, "d")).map(({ sequence }) => sequence);
}

/** Of everything but what collections keep for themselves. */
function namesOfDisks(): string[] {
  return [...(store.objects?.keys() ?? [])].filter((name) => !name.startsWith("reclaim/"));
}

function segmentOf(epoch: number): string {
  return storedName(store, `segments/d/0000000${String(epoch)}-0-00000000`);
}

/** As a collection leaves it. */
async function putRecord(segment: string, dead: readonly PageRun[], condemned: readonly PageRun[]): Promise<void> {
  const collection = "c".repeat(32);
  const record = encodeDead({ vault: vault.id, collection, segment, clearing: false, kept: 0, dead, condemned });
  await (await modelSink(line.current)).putObject(deadName(segment), record, { ifAbsent: true });
  if (store.objects?.has(collectionName) !== true)
    await (await modelSink(line.current)).putObject(
      collectionName,
      encodeCollection({ vault: vault.id, collection, startedMs: 1 }),
      {
        ifAbsent: true,
      },
    );
}

describe("a disk that has lost its head", () => {
  test("is not begun anew, and every command says what to do", async () => {
    await takePoints(3);
    tamperObject(store, head, "removed", store);
    const before = namesOfDisks();
    for (const command of [
      async () => await vault.replicate({ disk: "d", volume: disk }),
      async () => await vault.points("d"),
      async () => await vault.disks(),
      async () => await vault.collect(),
      async () => await vault.prune({ disk: "d", policy: parsePolicy("keep:last=1"), dryRun: true }),
    ]) {
      const error = await expectCode(command(), "DAMAGED");
      expect(error.message).toBe(`${head} is gone, but points of the disk are there`);
      expect(error.remedy).toContain("tidemark vault repair");
    }
    expect(namesOfDisks()).toEqual(before);
    expect((await vault.verify()).damaged).toMatchObject([{ disk: "d", object: head }]);
    expect((await vault.scrub()).damaged).toMatchObject([{ disk: "d", object: head }]);
  });

  test("gets none of a collection while another disk's data is all that it has", async () => {
    await takePoints(1);
    await vault.replicate({ disk: "twin", volume: new ModelDisk(Buffer.from(disk.bytes)) });
    tamperObject(store, "disks/twin/head", "removed", store);
    const before = namesOfDisks();
    await expectCode(vault.collect(), "DAMAGED");
    expect(namesOfDisks()).toEqual(before);
  });
});

describe("a rebuilt head", () => {
  test("has points of which something was condemned and nothing given back", async () => {
    await takePoints(3);
    await putRecord(segmentOf(1), [], [{ from: 0, end: 100 }]);
    tamperObject(store, head, "removed", store);
    expect(await repair()).toMatchObject({ points: 3, lost: [] });
    await expected.check(line.current);
  });

  test("has no point of which anything was given back", async () => {
    await takePoints(3);
    await putRecord(segmentOf(2), [{ from: 0, end: 4 }], []);
    tamperObject(store, head, "removed", store);
    const { lost } = await repair();
    expect(lost.map(({ points }) => points)).toEqual([[2], [3]]);
    for (const { message } of lost)
      expect(message).toContain(`what it needs of ${segmentOf(2)} has been freed by a collection`);
    expect(await sequences()).toEqual([1]);
  });

  test("has points whose records of collections cannot be read", async () => {
    await takePoints(3);
    await putRecord(segmentOf(1), [{ from: 0, end: 4 }], []);
    for (const name of [collectionName, deadName(segmentOf(1))]) tamperObject(store, name, "flipped", store);
    tamperObject(store, head, "removed", store);
    await vault.repair({ onLost: () => undefined }).catch(() => undefined);
    expect(await sequences()).toEqual([1, 2, 3]);
  });

  test("has the points that a damaged leaf leaves readable in part, and names them", async () => {
    await takePoints(6);
    await vault.replicate({ disk: "e", volume: new ModelDisk(Buffer.from(disk.bytes)) });
    // Chunks of point 1 that are not of the fourth epoch's leaf alone: nothing tells that leaf any
    // more.
    for (const name of ["disks/d/map/00000004-00000000", segmentOf(4)]) cutInHalf(name);
    tamperObject(store, head, "removed", store);
    const { lost } = await repair();
    expect(await sequences()).toEqual([1, 2, 3, 4, 5, 6]);
    expect(lost).toMatchObject([{ object: "disks/d/map/00000004-00000000", points: [4, 5, 6] }]);
  });

  test("has the newest points where a segment is gone that all of them need", async () => {
    await takePoints(3);
    const gone = segmentOf(1);
    store.objects?.delete(gone);
    tamperObject(store, head, "removed", store);
    const { lost, points } = await repair();
    expect(points).toBe(3);
    expect(lost.map((object) => object.points)).toEqual([[1], [2], [3]]);
    for (const { message } of lost) expect(message).toContain(`cannot be read in full: ${gone} does not exist`);
  });

  test("has every later point where the clock stood wrong in a cycle that was never committed", async () => {
    await takePoints(4);
    const store3 = await modelStore(line.current);
    const name = manifestName("d", 2, 2);
    const record = (await committedPoints(line.current, "d"))[1];
    assert(record !== undefined, "there is a second point");
    const second = decodeManifest((await store3.get(name, documentBytesMax)).bytes, name, {
      vault: vault.id,
      disk: "d",
      id: record.id,
    });
    // Points 2 and 3 have been pruned and collected; what is left of number 2 is of a cycle on a
    // machine whose clock was a year ahead.
    store.objects?.delete(name);
    store.objects?.delete(manifestName("d", 3, 3));
    const { bytes } = encodeManifest({ ...second, epoch: 7, timeMs: second.timeMs + 31_536_000_000 });
    await (await modelSink(line.current)).putObject(manifestName("d", 2, 7), bytes, { ifAbsent: true });
    tamperObject(store, head, "removed", store);
    const { lost } = await repair();
    expect(await sequences()).toEqual([1, 4]);
    expect(lost).toMatchObject([
      { points: [2], message: expect.stringContaining("not older than the point after it") as string },
    ]);
    await checkNewest(line.current, "d", disk.bytes);
  });

  test("takes no notice of names that no writer gives", async () => {
    await takePoints(2);
    const { bytes } = await (await modelSink(line.current)).getObject(manifestName("d", 2, 2), documentBytesMax);
    for (const name of [
      "disks/d/points/000000002-00000002",
      "disks/d/map/9999999999999999-00000000",
      "disks/d/points/00000001-9999999999999999",
    ])
      await (await modelSink(line.current)).putObject(name, bytes, { ifAbsent: true });
    await line.current.createPages("segments/d/9999999999999999-0-00000000", 4096, 0);
    tamperObject(store, head, "removed", store);
    expect(await repair()).toMatchObject({ points: 2, lost: [] });
    expect((await readHead(await modelStore(line.current), vault.id, "d")).head.epoch).toBeLessThan(100_000);
    await takePoints(1);
    expect(await expected.check(line.current)).toBe(3);
  });
});

/** Of an object and of a page object alike. */
function cutInHalf(name: string): void {
  const found = store.objects?.get(name);
  assert(found !== undefined, `${name} is there`);
  if (found.kind === "object") tamperObject(store, name, "truncated", store);
  else store.objects?.set(name, { ...found, etag: store.nextEtag(), pages: new Map() });
}

describe("several disks", () => {
  test("are repaired although one of them is being written, and what was done is told before the error", async () => {
    await takePoints(2);
    await vault.replicate({ disk: "a", volume: new ModelDisk(contentOf(30_000, 50)) });
    for (const name of [head, "disks/a/head"]) tamperObject(store, name, "flipped", store);
    await line.current.acquireLease("disks/a/head", "00000000-0000-4000-8000-000000000000", 60);
    const repaired: RepairedObject[] = [];
    const lost: LostObject[] = [];
    const error = await expectCode(
      vault.repair({ onRepaired: (object) => repaired.push(object), onLost: (object) => lost.push(object) }),
      "WRITER_ACTIVE",
    );
    expect(error.detail).toMatchObject({ disk: "a" });
    expect(repaired).toMatchObject([{ disk: "d", object: head }]);
    await expected.check(line.current);
  });

  test("are repaired although the head of one is of a later version, which is left alone", async () => {
    await takePoints(2);
    await vault.replicate({ disk: "a", volume: new ModelDisk(contentOf(30_000, 50)) });
    tamperObject(store, "disks/a/head", "future", store);
    const before = store.objects?.get("disks/a/head")?.etag;
    tamperObject(store, head, "flipped", store);
    const { lost, repaired } = await repair();
    expect(repaired).toMatchObject([{ disk: "d", object: head }]);
    expect(lost).toMatchObject([{ disk: "a", object: "disks/a/head" }]);
    expect(store.objects?.get("disks/a/head")?.etag).toBe(before);
  });
});

describe("what happens while a repair reads", () => {
  /** Runs `meanwhile` once, right before the collector lease is taken. */
  function beforeSeat(meanwhile: () => Promise<void>): void {
    const inner = line.current;
    let isDone = false;
    const interrupting = watched(inner, () => undefined);
    line.current = new Proxy(interrupting, {
      get(target, property) {
        const value: unknown = Reflect.get(target, property, target);
        if (property !== "acquireLease" || isDone) return value;
        return async (...given: Parameters<Sink["acquireLease"]>): Promise<void> => {
          isDone = true;
          line.current = inner;
          await meanwhile();
          await inner.acquireLease(...given);
        };
      },
    });
  }

  /** More points than a head begins with, of which a page that lists the oldest is lost. */
  async function losePage(): Promise<void> {
    await takePoints(2);
    const [first, newest] = await committedPoints(line.current, "d");
    assert(first !== undefined && newest !== undefined, "there are two points");
    let { id } = newest;
    const name = manifestName("d", 2, 2);
    const manifest = decodeManifest(
      (await (await modelSink(line.current)).getObject(name, documentBytesMax)).bytes,
      name,
      {
        vault: vault.id,
        disk: "d",
        id,
      },
    );
    for (let sequence = 3; sequence <= 300; sequence += 1) {
      const next = encodeManifest({ ...manifest, sequence, parent: id, timeMs: newest.timeMs + sequence });
      await (await modelSink(line.current)).putObject(manifestName("d", sequence, 2), next.bytes, { ifAbsent: true });
      ({ id } = next);
    }
    tamperObject(store, head, "removed", store);
    await repair();
    const page = [...(store.objects?.keys() ?? [])].find((object) => object.startsWith("disks/d/history/"));
    assert(page !== undefined, "there is a page");
    tamperObject(store, page, "removed", store);
  }

  test("a point that is committed stays", async () => {
    await losePage();
    beforeSeat(async () => {
      contentOf(4096, 700).copy(disk.bytes, 0);
      await vault.replicate({ disk: "d", volume: disk });
    });
    expect(await repair()).toMatchObject({ points: 301, lost: [] });
    await checkNewest(line.current, "d", disk.bytes);
  });

  test("points that are dropped stay dropped", async () => {
    await losePage();
    let removed = 0;
    beforeSeat(async () => {
      // The points of the lost page are younger than this moment by up to 300 ms, and what is yet to come stays.
      const nowMs = Date.now() + 60_000;
      ({ removedPoints: removed } = await vault.prune({ disk: "d", policy: parsePolicy("keep:last=1"), nowMs }));
    });
    await repair();
    expect(removed).toBeGreaterThan(0);
    expect(await sequences()).toHaveLength(300 - removed);
  });
});

test("a list of condemned points that is damaged keeps everybody from all points, until a repair empties it", async () => {
  await takePoints(2);
  await vault.prune({ disk: "d", policy: parsePolicy("keep:last=1") });
  tamperObject(store, "disks/d/condemned", "flipped", store);
  const pinned = async (): Promise<unknown> => await vault.pin({ disk: "d", point: "latest" });
  await expectCode(pinned(), "DAMAGED");
  const expectedRepair = [{ disk: "d", object: "disks/d/condemned", kind: "condemned" }];
  expect((await vault.repair({ dryRun: true })).repaired).toMatchObject(expectedRepair);
  await expectCode(pinned(), "DAMAGED");
  expect((await vault.repair()).repaired).toMatchObject(expectedRepair);
  await pinned();
  expect((await repair()).repaired).toEqual([]);
});

test("a disk of which nothing but a damaged list is left is given no head", async () => {
  await takePoints(2);
  await vault.prune({ disk: "d", policy: parsePolicy("keep:last=1") });
  for (const name of store.objects?.keys() ?? [])
    if (name.startsWith("disks/d/") && name !== "disks/d/condemned") store.objects?.delete(name);
  tamperObject(store, "disks/d/condemned", "flipped", store);
  expect((await repair()).lost).toMatchObject([{ disk: "d", object: head }]);
  expect(store.objects?.has(head)).toBe(false);
});
