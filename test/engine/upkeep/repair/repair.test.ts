/**
 * Repair: lists of points come back as they were; what cannot be rebuilt is named; a vault that
 * needs no repair is not touched.
 */

import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { Catalog } from "../../../../engine/pipeline/catalog.ts";
import { fromHex } from "../../../../engine/store/format/checksum.ts";
import { encodeHead, encodeManifest, type ManifestDocument } from "../../../../engine/store/format/documents.ts";
import { manifestName } from "../../../../engine/store/format/names.ts";
import { readHead } from "../../../../engine/store/points/head.ts";
import type { RepairSummary } from "../../../../engine/upkeep/repair/repair.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { callsOf, runsOf, sampleOf } from "../../../depth.ts";
import {
  checkNewest,
  closeModelVaults,
  committedPoints,
  contentOf,
  Expected,
  ModelDisk,
  modelSink,
  modelStore,
  openModelVault,
  redirected,
  replicateNoted,
} from "../../../model-disk.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";
import { manifestSample } from "../../store/format/samples.ts";
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

/** All objects with their content. */
function contents(): Map<string, string> {
  const all = new Map<string, string>();
  for (const [name, stored] of store.objects ?? [])
    all.set(name, stored.kind === "object" ? Buffer.from(stored.bytes).toString("latin1") : stored.etag);
  return all;
}

describe("a vault that needs no repair", () => {
  test("is not changed", async () => {
    await takePoints(20);
    await vault.replicate({ disk: "e", volume: new ModelDisk(contentOf(30_000, 50)) });
    const before = contents();
    expect(await repair()).toMatchObject({ disks: 2, points: 21, repaired: [], lost: [] });
    expect(contents()).toEqual(before);
  });

  test("is not changed while it is written either", async () => {
    await takePoints(2);
    await line.current.acquireLease(head, "00000000-0000-4000-8000-000000000000", 60);
    expect(await repair()).toMatchObject({ repaired: [], lost: [] });
  });
});

describe("a head", () => {
  test.each(["removed", "flipped", "truncated"] as const)(
    "that is %s is rebuilt with all of its points",
    async (how) => {
      await takePoints(5);
      const before = await committedPoints(line.current, "d");
      tamperObject(store, head, how, store);
      expect(await repair()).toMatchObject({
        points: 5,
        repaired: [{ disk: "d", object: head, kind: "head" }],
        lost: [],
      });
      const after = await committedPoints(line.current, "d");
      expect(after).toEqual(before.map((point) => ({ ...point, lagMs: null })));
      await expected.check(line.current);
      expect((await repair()).repaired).toEqual([]);
    },
  );

  test("that is rebuilt has an epoch above every name, and cycles go on", async () => {
    await takePoints(3);
    tamperObject(store, head, "removed", store);
    await repair();
    const { head: rebuilt } = await readHead(await modelStore(line.current), vault.id, "d");
    expect(rebuilt.epoch).toBeGreaterThan(3);
    await takePoints(2);
    expect(await expected.check(line.current)).toBe(5);
    await checkNewest(line.current, "d", disk.bytes);
  });

  test("is only told of when that is all that is asked for", async () => {
    await takePoints(3);
    tamperObject(store, head, "removed", store);
    const before = contents();
    expect(await vault.repair({ dryRun: true })).toMatchObject({ dryRun: true, repaired: [{ object: head }] });
    expect(contents()).toEqual(before);
  });

  test("that is damaged while a process writes the disk is not touched", async () => {
    await takePoints(3);
    tamperObject(store, head, "flipped", store);
    await line.current.acquireLease(head, "00000000-0000-4000-8000-000000000000", 60);
    const before = store.objects?.get(head)?.etag;
    await expectCode(repair(), "WRITER_ACTIVE");
    expect(store.objects?.get(head)?.etag).toBe(before);
  });

  test("does not get points that were given back already, and says so", async () => {
    await takePoints(3);
    disk.bytes.set(contentOf(100_000, 77));
    await replicateNoted(vault, line.current, expected, disk);
    // As after a collection that was interrupted: the first points' data is gone, their manifests
    // are not.
    for (const epoch of [1, 2, 3])
      store.objects?.delete(storedName(store, `segments/d/0000000${String(epoch)}-0-00000000`));
    tamperObject(store, head, "removed", store);
    const { lost, points } = await repair();
    expect(points).toBe(1);
    expect(lost.map(({ points: [sequence] }) => sequence)).toEqual([1, 2, 3]);
    for (const { message } of lost) expect(message).toContain("does not exist any more");
    await checkNewest(line.current, "d", disk.bytes);
  });

  test("gets the point that the later ones were made from, where two have its number", async () => {
    await takePoints(2);
    contentOf(4096, 500).copy(disk.bytes, 40_960);
    line.current = new FaultySink(line.current, [
      { on: "putObject", prefix: head, when: 3, fault: { kind: "crash", effect: "before" } },
    ]);
    await vault.replicate({ disk: "d", volume: disk }).catch((error: unknown) => {
      if (!(error instanceof CrashError)) throw error;
    });
    line.current = new MemorySink({ store, clock: () => Date.now() + 3_600_000 });
    await takePoints(2);
    const before = await committedPoints(line.current, "d");
    expect((await namesIn(line.current, "disks/d/points/")).length).toBe(5);
    tamperObject(store, head, "removed", store);
    expect((await repair()).lost.map(({ message }) => message)).toEqual([
      expect.stringContaining("another point has its number"),
    ]);
    expect((await committedPoints(line.current, "d")).map(({ id }) => id)).toEqual(before.map(({ id }) => id));
  });

  test("of which no point is left is named", async () => {
    await takePoints(1);
    tamperObject(store, head, "removed", store);
    for (const name of await namesIn(line.current, "disks/d/points/")) store.objects?.delete(name);
    const { lost, repaired } = await repair();
    expect(repaired).toEqual([]);
    expect(lost).toMatchObject([{ disk: "d", object: head }]);
  });
});

describe("an older head in the place of a newer one", () => {
  const olderFact = expect.stringContaining("is older than the points of the disk") as string;

  /** The head as it is now, to be put back later. */
  async function headToPutBack(): Promise<() => Promise<void>> {
    const { bytes } = await line.current.getObject(head, 1_000_000);
    return async () => {
      const { etag } = await line.current.statObject(head);
      await line.current.putObject(head, bytes, { ifMatch: etag });
    };
  }

  test.each([1, 4])("that misses %i points is replaced by one that lists them", async (missing) => {
    await takePoints(2);
    const putBack = await headToPutBack();
    await takePoints(missing);
    const before = await committedPoints(line.current, "d");
    await putBack();
    const contentBefore = contents();
    expect(await vault.repair({ dryRun: true })).toMatchObject({ points: 2 + missing, repaired: [{ object: head }] });
    expect(contents()).toEqual(contentBefore);
    const { repaired, lost, points } = await repair();
    expect(repaired).toMatchObject([{ disk: "d", object: head, kind: "head", message: olderFact }]);
    expect({ lost, points }).toEqual({ lost: [], points: 2 + missing });
    expect((await committedPoints(line.current, "d")).map(({ id }) => id)).toEqual(before.map(({ id }) => id));
    await expected.check(line.current);
    expect((await repair()).repaired).toEqual([]);
    await takePoints(1);
    await checkNewest(line.current, "d", disk.bytes);
  });

  test("is told by what one writer made after its first point there, and a manifest that was never committed tells nothing", async () => {
    await takePoints(2);
    await putManifest(3, 2);
    const before = contents();
    expect(await repair()).toMatchObject({ points: 2, repaired: [] });
    expect(contents()).toEqual(before);
    await putManifest(4, 2);
    expect(await repair()).toMatchObject({ points: 4, repaired: [{ kind: "head", message: olderFact }], lost: [] });
  });

  test("is told by the last point of a writer, where this machine has seen it listed", async () => {
    const folder = createFolder("seen-here");
    onTestFinished(async () => await removeFolder(folder));
    await takePoints(1);
    const putBack = await headToPutBack();
    const id = await putManifest(2, 1);
    const { head: before, etag } = await readHead(await modelStore(line.current), vault.id, "d");
    const [first] = before.points;
    assert(first !== undefined, "there is a point");
    const second = { ...first, sequence: 2, id, timeMs: first.timeMs + 2 };
    await (await modelSink(line.current)).putObject(head, encodeHead({ ...before, points: [first, second] }), {
      ifMatch: etag,
    });
    const seer = await openModelVault(redirected(line), { stateFolder: folder });
    expect(await seer.points("d")).toHaveLength(2);
    await putBack();
    expect(await repair()).toMatchObject({ points: 1, repaired: [] });
    expect(await seer.repair()).toMatchObject({ points: 2, repaired: [{ kind: "head", message: olderFact }] });
  });

  test("is left to the process that writes the disk", async () => {
    await takePoints(1);
    const putBack = await headToPutBack();
    await takePoints(1);
    await putBack();
    await line.current.acquireLease(head, "00000000-0000-4000-8000-000000000000", 60);
    await expectCode(repair(), "WRITER_ACTIVE");
    expect(await committedPoints(line.current, "d")).toHaveLength(1);
  });

  test("of a disk that was removed and begun anew is not mixed with it, but named", async () => {
    await takePoints(2);
    const putBack = await headToPutBack();
    await vault.removeDisk({ disk: "d" });
    await vault.replicate({ disk: "d", volume: disk });
    await putBack();
    const { repaired, lost } = await repair();
    expect(repaired).toEqual([]);
    expect(lost.filter(({ object }) => object === head)).toMatchObject([
      { message: expect.stringContaining("begun anew") as string },
    ]);
  });

  /** The manifest of a point like the newest listed one, but without data; gives its id. */
  async function putManifest(sequence: number, epoch: number): Promise<string> {
    const name = manifestName("d", sequence, epoch);
    const timeMs = Date.now() + sequence;
    const { bytes, id } = encodeManifest({
      ...{ ...manifestSample, vault: vault.id, disk: "d", runs: [] },
      ...{ sequence, epoch, timeMs },
    });
    await (await modelSink(line.current)).putObject(name, bytes, { ifAbsent: true });
    return id;
  }
});

describe("pages of points", () => {
  const count = 1200;

  /** As many points as fill pages, none of which has data; and no head. */
  async function putManifests(): Promise<void> {
    await takePoints(1);
    let parent = (await committedPoints(line.current, "d"))[0]?.id ?? null;
    for (let sequence = 2; sequence <= count; sequence += 1) {
      const manifest: ManifestDocument = {
        ...manifestSample,
        vault: vault.id,
        disk: "d",
        sequence,
        epoch: 1,
        parent,
        timeMs: Date.now() + sequence,
        runs: [],
      };
      const { bytes, id } = encodeManifest(manifest);
      await (await modelSink(line.current)).putObject(manifestName("d", sequence, 1), bytes, { ifAbsent: true });
      parent = id;
    }
    tamperObject(store, head, "removed", store);
  }

  test("are made when a head is rebuilt, and rebuilt by themselves when they are lost", async () => {
    await putManifests();
    expect(await repair()).toMatchObject({ points: count, lost: [] });
    const before = await committedPoints(line.current, "d");
    expect(before.map(({ sequence }) => sequence)).toEqual(Array.from({ length: count }, (_, index) => index + 1));
    const [page] = await namesIn(line.current, "disks/d/history/");
    assert(page !== undefined, "there is a page");
    tamperObject(store, page, "flipped", store);
    expect(await repair()).toMatchObject({ points: count, repaired: [{ kind: "pages" }], lost: [] });
    expect(await committedPoints(line.current, "d")).toEqual(before);
  });

  test("are not rebuilt under the hands of a writer", async () => {
    await putManifests();
    await repair();
    for (const page of await namesIn(line.current, "disks/d/history/")) tamperObject(store, page, "removed", store);
    await line.current.acquireLease(head, "00000000-0000-4000-8000-000000000000", 60);
    const there = await readHead(await modelStore(line.current), vault.id, "d");
    const writer = { session: "0".repeat(32), machine: "another", pid: 1, startTicks: 1, host: "elsewhere" };
    const lease = "00000000-0000-4000-8000-000000000000";
    await (await modelSink(line.current)).putObject(head, encodeHead({ ...there.head, writer }), {
      ifMatch: there.etag,
      leaseId: lease,
    });
    await expectCode(repair(), "WRITER_ACTIVE");
  });
});

describe("a leaf or root", () => {
  test("that is lost is named with the points that need it, and nothing is written", async () => {
    await takePoints(20);
    const sound = store.snapshot();
    for (const name of sampleOf(await namesIn(line.current, "disks/d/map/"))) {
      store.restore(sound);
      tamperObject(store, name, "removed", store);
      const { damaged } = await vault.verify({ disk: "d" });
      const before = contents();
      const { repaired, lost } = await repair();
      expect(repaired).toEqual([]);
      // A part that no point needs is missed by no point.
      expect(lost.flatMap(({ points }) => points)).toEqual(
        damaged.flatMap(({ sequence }) => sequence ?? []).sort((a, b) => a - b),
      );
      for (const { object, message } of lost) {
        expect(object).toBe(name);
        expect(message).toContain("tidemark replicate");
      }
      expect(contents()).toEqual(before);
    }
  });

  test("that is lost is not built on by the next point", async () => {
    await takePoints(3);
    const [name] = await namesIn(line.current, "disks/d/map/");
    assert(name !== undefined, "there is a leaf");
    tamperObject(store, name, "flipped", store);
    expect((await repair()).lost).toMatchObject([{ disk: "d", object: name, points: [1, 2, 3] }]);
    await vault.replicate({ disk: "d", volume: disk });
    await checkNewest(line.current, "d", disk.bytes);
    expect((await repair()).lost).toMatchObject([{ points: [1, 2, 3] }]);
  });

  test("of a run that has many leaves is named with the part of the disk that it maps", async () => {
    const granules = 34_000;
    const large = new ModelDisk(Buffer.alloc(granules * 8192));
    // Every other granule has content, and no two are side by side: an entry each, and more than a
    // leaf holds.
    for (let granule = 0; granule < granules; granule += 1) large.bytes.writeUInt32LE(granule + 1, granule * 8192);
    await vault.replicate({ disk: "d", volume: large });
    const names = await namesIn(line.current, "disks/d/map/");
    expect(names.length).toBe(3);
    const sound = store.snapshot();
    const extents: (number | null)[] = [];
    for (const name of names) {
      store.restore(sound);
      tamperObject(store, name, "removed", store);
      const { lost } = await repair();
      expect(lost).toMatchObject([{ object: name, points: [1] }]);
      extents.push(lost[0]?.extent?.offset ?? null);
    }
    // Two leaves, and the root that lists them.
    expect(extents).toEqual([0, expect.any(Number), null]);
  }, 30_000);
});

test("a manifest that is lost is named, and its point stays listed until a prune drops it", async () => {
  await takePoints(3);
  tamperObject(store, "disks/d/points/00000002-00000002", "flipped", store);
  const { lost, repaired } = await repair();
  expect(repaired).toEqual([]);
  expect(lost).toMatchObject([{ disk: "d", object: "disks/d/points/00000002-00000002", points: [2] }]);
  expect(lost[0]?.message).toContain("run `tidemark prune` to drop the point");
  expect(await committedPoints(line.current, "d")).toHaveLength(3);
  expect(await vault.prune({ disk: "d", policy: parsePolicy("keep:last=1") })).toMatchObject({ removedPoints: 2 });
  expect((await repair()).lost).toEqual([]);
});

test("a local index of chunks that tells of what is not there goes", async () => {
  const folder = mkdtempSync(join(tmpdir(), "repair-"));
  try {
    const cached = await openModelVault(redirected(line), { stateFolder: folder });
    await cached.replicate({ disk: "d", volume: disk });
    expect((await cached.repair()).repaired).toEqual([]);
    const options = {
      store: await modelStore(line.current),
      vaultId: fromHex(vault.id),
      indexBytesMax: 2 ** 20,
      onDamage: () => undefined,
    };
    const catalog = await Catalog.load({ ...options, folder: join(folder, vault.id) });
    catalog.index.set(Uint32Array.of(1, 2, 3, 4), 0, 0, 128, 4096);
    catalog.written(0, (await line.current.statObject(catalog.nameOf(0))).etag, 512);
    await catalog.save(join(folder, vault.id), options.vaultId);
    expect((await cached.repair()).repaired).toMatchObject([{ kind: "index" }]);
    expect((await cached.repair()).repaired).toEqual([]);
  } finally {
    rmSync(folder, { recursive: true });
  }
});

test("a repair that is interrupted at any call leaves nothing worse, and the next one ends it", async () => {
  await takePoints(4);
  await vault.replicate({ disk: "e", volume: new ModelDisk(contentOf(30_000, 50)) });
  const before = (await committedPoints(line.current, "d")).map(({ id }) => id);
  await vault.replicate({ disk: "f", volume: disk });
  const older = store.objects?.get("disks/f/head");
  await vault.replicate({ disk: "f", volume: disk });
  tamperObject(store, head, "flipped", store);
  tamperObject(store, "disks/e/head", "removed", store);
  if (older !== undefined) store.objects?.set("disks/f/head", older);
  const damaged = store.snapshot();
  let nowMs = Date.now();
  const counted = new FaultySink(line.current, []);
  line.current = counted;
  await repair();
  const calls = counted.calls.length;
  for (const call of callsOf(1, calls)) {
    for (const effect of ["before", "after"] as const) {
      store.restore(damaged);
      nowMs += 3_600_000; // the dead writer holds no lease any more
      line.current = new FaultySink(new MemorySink({ store, clock: () => nowMs }), [
        { on: "any", when: call, fault: { kind: "crash", effect } },
      ]);
      await repair().catch((error: unknown) => {
        if (!(error instanceof CrashError)) throw error;
      });
      nowMs += 3_600_000;
      line.current = new MemorySink({ store, clock: () => nowMs });
      expect((await repair()).lost).toEqual([]);
      expect((await committedPoints(line.current, "d")).map(({ id }) => id)).toEqual(before);
      expect(await committedPoints(line.current, "e")).toHaveLength(1);
      expect(await committedPoints(line.current, "f")).toHaveLength(2);
    }
  }
  await expected.check(line.current);
});

test("whatever objects of a disk are lost, what a repair lists can be read, and the rest is named", async () => {
  await takePoints(18);
  const sound = store.snapshot();
  const names = await namesIn(line.current, "disks/d/");
  await fc.assert(
    fc.asyncProperty(
      fc.subarray(names, { minLength: 1, maxLength: 4 }),
      fc.constantFrom("removed" as const, "flipped" as const),
      async (gone, how) => {
        store.restore(sound);
        for (const name of gone) tamperObject(store, name, how, store);
        const { lost } = await repair();
        const named = new Set(lost.flatMap(({ points }) => points));
        const { damaged } = await vault.verify();
        for (const { sequence } of damaged) expect(named.has(sequence ?? 0)).toBe(true);
        const listed = new Set((await committedPoints(line.current, "d")).map(({ sequence }) => sequence));
        for (let sequence = 1; sequence <= 18; sequence += 1)
          expect(listed.has(sequence) || named.has(sequence) || isForgotten(gone, how, sequence)).toBe(true);
      },
    ),
    { numRuns: runsOf(25) },
  );
});

/** Where both the head and a manifest are gone, nothing tells of the point any more. */
function isForgotten(gone: readonly string[], how: string, sequence: number): boolean {
  return (
    how === "removed" &&
    gone.includes(head) &&
    gone.some((name) => name.startsWith(`disks/d/points/${String(sequence).padStart(8, "0")}-`))
  );
}
