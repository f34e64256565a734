/**
 * Healing in place: what can be healed is what it was, bit for bit; what cannot is named, is left
 * as it is, and no new point refers to it any more.
 */

import fc from "fast-check";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { Notice } from "../../../../engine/notice.ts";
import { Catalog } from "../../../../engine/pipeline/catalog.ts";
import { fromHex } from "../../../../engine/store/format/checksum.ts";
import { decodeHead, documentBytesMax, encodeHead } from "../../../../engine/store/format/documents.ts";
import { takeCollectorLease } from "../../../../engine/store/segments/collector-lease.ts";
import type { VerifySummary } from "../../../../engine/upkeep/scrub/verify.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { CrashError, FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { callsOf, runsOf } from "../../../depth.ts";
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
  pointBytes,
  redirected,
  replicateNoted,
} from "../../../model-disk.ts";
import {
  changedSegments,
  contentOfSegments,
  damagings,
  expectRestored,
  invert,
  spoil,
  sprinkle,
} from "./damaged-vault.ts";
import { storedName } from "./tamper.ts";

const sizeBytes = 100_000;
let first: string;
/** In the payload of the disk's first block. */
const inPayload = 128 + 10;

let store: MemoryStore;
let line: { current: MemorySink | FaultySink };
let vault: Vault;
let disk: ModelDisk;
let expected: Expected;
let whole: Map<string, Buffer>;
/** The disk as it was at its first point. */
const original = new ModelDisk(contentOf(sizeBytes, 1));
beforeEach(async () => {
  store = new MemoryStore();
  line = { current: new MemorySink({ store }) };
  vault = await openModelVault(redirected(line));
  disk = new ModelDisk(contentOf(sizeBytes, 1));
  expected = new Expected("d");
  for (const seed of [11, 12, 13]) {
    await replicateNoted(vault, line.current, expected, disk);
    contentOf(4096, seed).copy(disk.bytes, (seed - 10) * 16_384);
  }
  whole = contentOfSegments(store);
  first = storedName(store, "segments/d/00000001-0-00000000");
});
afterEach(async () => {
  await closeModelVaults();
});

const heal = async (source?: ModelDisk): Promise<VerifySummary> =>
  await vault.verify({ disk: "d", source, heal: true });

/** Sequence numbers of the points with damage that is left. */
function left({ damaged }: VerifySummary): (number | null)[] {
  return damaged.filter(({ healed }) => !healed).map(({ sequence }) => sequence);
}

describe("a damaged chunk", () => {
  test.each([
    ["one byte", inPayload, 1],
    ["the end of one and the beginning of the next", 16_300, 400],
    ["many", 2_000, 60_000],
  ])("is healed from the disk that still holds it: %s", async (_what, offset, length) => {
    invert(store, first, offset, length);
    const summary = await heal(original);
    expect(summary.damaged.length).toBeGreaterThan(0);
    expect(left(summary)).toEqual([]);
    expect((await vault.verify()).damaged).toEqual([]);
    await expected.check(line.current);
  });

  test("is written as it was, and nothing else changes", async () => {
    invert(store, first, inPayload, 3);
    await heal(disk);
    await expectRestored(vault, store, whole);
  });

  test("that reads as zeros is healed like any other", async () => {
    spoil(store, first, 128, Buffer.alloc(30_000));
    expect(left(await heal(original))).toEqual([]);
    await expected.check(line.current);
  });

  test("is told of with the points and extents that need it, and why it was not healed", async () => {
    invert(store, first, inPayload);
    const { damaged } = await heal(new ModelDisk(contentOf(sizeBytes, 99)));
    expect(damaged.map(({ sequence }) => sequence)).toEqual([3, 2, 1]);
    for (const damage of damaged) {
      expect(damage).toMatchObject({ healed: false, object: first, extent: { offset: 0, length: 16_384 } });
      expect(damage.message).toContain("it could not be healed: neither a source nor another chunk");
    }
  });

  test("that no source holds is left as it is, byte for byte", async () => {
    invert(store, first, inPayload);
    const before = contentOfSegments(store);
    await heal(new ModelDisk(contentOf(sizeBytes, 99)));
    expect(changedSegments(store, before)).toEqual([]);
  });

  test("that is left is made known to writers after a collection, and the healing says that it waits for that", async () => {
    invert(store, first, inPayload);
    const collector = await takeCollectorLease(await modelStore(line.current), undefined);
    const notices: string[] = [];
    const ended: Promise<void>[] = [];
    const onNotice = ({ code, message }: Notice): void => {
      notices.push(`${code}: ${message}`);
      ended.push(collector[Symbol.asyncDispose]());
    };
    const source = new ModelDisk(contentOf(sizeBytes, 99));
    expect(left(await vault.verify({ disk: "d", source, heal: true, onNotice }))).toEqual([3, 2, 1]);
    await Promise.all(ended);
    expect(notices).toEqual([expect.stringMatching(/^COLLECTION_ACTIVE: .*waiting/)]);
  });

  test("is not touched when it was only misread", async () => {
    // The reader reads a range that is not whole again: only the third reading is right.
    const faulty = new FaultySink(
      line.current,
      [1, 2].map((when) => ({ on: "readPages", prefix: first, when, fault: { kind: "flipped" } }) as const),
    );
    line.current = faulty;
    const summary = await heal(disk);
    faulty.assertAllFired();
    expect(summary.damaged.length).toBeGreaterThan(0);
    expect(left(summary)).toEqual([]);
    expect(faulty.calls.filter((call) => call.startsWith("writePages"))).toEqual([]);
  });

  test("is left alone while what lies beside it does not read the same twice", async () => {
    invert(store, first, inPayload);
    const before = contentOfSegments(store);
    // Reads of the segment: the range of all chunks, twice, the chunk by itself, and then its
    // pages, twice.
    const faulty = new FaultySink(
      line.current,
      [4, 6, 8].map((when) => ({ on: "readPages", prefix: first, when, fault: { kind: "truncated" } }) as const),
    );
    line.current = faulty;
    await heal(disk);
    line.current = new MemorySink({ store });
    if (changedSegments(store, before).length > 0) await expectRestored(vault, store, whole);
  });

  test("of a segment that is gone is healed in one that is made anew", async () => {
    store.objects?.delete(first);
    const summary = await heal(original);
    expect(summary.damaged.length).toBeGreaterThan(0);
    expect(left(summary)).toEqual([]);
    await expected.check(line.current);
    // No write of its epoch that is still on its way can arrive in it.
    const { sizeBytes: segmentBytes, sequenceNumber } = await line.current.statPages(first);
    expect([segmentBytes, sequenceNumber]).toEqual([2 ** 30, 2 * 65_536]);
    expect(await vault.collect()).toMatchObject({ waitingFor: [] });
    await expected.check(line.current);
  });

  test("of a segment that was cut short is healed where it lay", async () => {
    await sprinkle(line.current, [{ segment: 0, at: 0.4, length: 0, how: "cut" }]);
    expect(left(await heal(original))).toEqual([]);
    await expected.check(line.current);
    expect((await vault.collect()).waitingFor).toEqual([]);
    expect((await heal()).damaged).toEqual([]);
  });

  test("of a segment that is gone, and that cannot be healed, leaves nothing behind", async () => {
    store.objects?.delete(first);
    const { damaged } = await heal(new ModelDisk(contentOf(sizeBytes, 99)));
    expect(damaged.every(({ healed, code }) => !healed && code === "OBJECT_NOT_FOUND")).toBe(true);
    expect(store.objects?.has(first)).toBe(false);
  });

  test("of a segment that is gone is not healed where a writer may make one of its name", async () => {
    store.objects?.delete(first);
    const { bytes, etag } = await (await modelSink(line.current)).getObject("disks/d/head", documentBytesMax);
    const head = decodeHead(bytes, "disks/d/head", { vault: vault.id, disk: "d" });
    await (await modelSink(line.current)).putObject("disks/d/head", encodeHead({ ...head, epoch: 0 }), {
      ifMatch: etag,
    });
    const { damaged } = await heal(original);
    expect(damaged[0]?.message).toContain("a writer may still make a segment of its name");
    expect(store.objects?.has(first)).toBe(false);
  });

  test("is not healed under the hands of a writer that may still append", async () => {
    invert(store, first, inPayload);
    const { bytes, etag } = await (await modelSink(line.current)).getObject("disks/d/head", documentBytesMax);
    const head = decodeHead(bytes, "disks/d/head", { vault: vault.id, disk: "d" });
    const writer = { session: "0".repeat(32), machine: "another", pid: 1, startTicks: 1, host: "elsewhere" };
    await (await modelSink(line.current)).putObject("disks/d/head", encodeHead({ ...head, epoch: 1, writer }), {
      ifMatch: etag,
    });
    const lease = "00000000-0000-4000-8000-000000000000";
    await line.current.acquireLease("disks/d/head", lease, 60);
    const { damaged } = await heal(disk);
    expect(damaged[0]?.message).toContain("its writer may still append to the segment");
    await line.current.releaseLease("disks/d/head", lease);
    expect(left(await heal(disk))).toEqual([]);
    await expected.check(line.current);
  });
});

describe("a chunk in quarantine", () => {
  beforeEach(async () => {
    invert(store, first, inPayload);
    expect(left(await heal())).toEqual([3, 2, 1]);
  });

  test("is shipped anew by the writer that meets its content, and healed from there", async () => {
    const copy = new ModelDisk(contentOf(16_384, 1));
    expect((await vault.replicate({ disk: "e", volume: copy })).newBytes).toBe(16_384);
    await checkNewest(line.current, "e", copy.bytes);
    expect(left(await heal())).toEqual([]);
    expect((await vault.verify()).damaged).toEqual([]);
    await expected.check(line.current);
  });

  test("is forgotten by a catalog that was loaded before", async () => {
    const load = async (): Promise<Catalog> => {
      const options = { vaultId: fromHex(vault.id), indexBytesMax: 2 ** 20, onDamage: () => undefined };
      return await Catalog.load({ ...options, store: await modelStore(line.current) });
    };
    const known = (await load()).index.count;
    await heal(original);
    const catalog = await load();
    expect(catalog.index.count).toBe(known + 1);
    invert(store, first, inPayload);
    await heal();
    await catalog.adopt(await modelStore(line.current), undefined);
    expect(catalog.index.count).toBe(known);
  });

  test("can be referred to again once it has been healed", async () => {
    expect(left(await heal(disk))).toEqual([]);
    expect((await vault.replicate({ disk: "e", volume: new ModelDisk(contentOf(16_384, 1)) })).newBytes).toBe(0);
  });

  test("keeps no collection from its work", async () => {
    await vault.replicate({ disk: "d", volume: disk });
    expect(await vault.collect()).toMatchObject({ waitingFor: [] });
    expect(left(await heal(disk))).toEqual([]);
  });
});

test("a healing that is interrupted at any call harms nothing, and the next one ends it", async () => {
  const sound = store.snapshot();
  invert(store, first, inPayload);
  invert(store, first, 40_000, 3_000);
  const spoiled = store.snapshot();
  store.restore(sound);
  store.objects?.delete(first);
  const gone = store.snapshot();
  const counted = new FaultySink(new MemorySink({ store }), []);
  line.current = counted;
  await heal(original);
  const calls = counted.calls.length;
  expect(calls).toBeGreaterThan(20);
  await expected.check(line.current);
  let nowMs = Date.now();
  for (const call of callsOf(1, calls)) {
    const isGone = call % 2 === 0;
    store.restore(isGone ? gone : spoiled);
    nowMs += 3_600_000; // whoever died holds no lease any more
    line.current = new FaultySink(new MemorySink({ store, clock: () => nowMs }), [
      { on: "any", when: call, fault: { kind: "crash", effect: call % 4 < 2 ? "before" : "after" } },
    ]);
    await heal(original).catch((error: unknown) => {
      if (!(error instanceof CrashError)) throw error;
    });
    nowMs += 3_600_000;
    line.current = new MemorySink({ store, clock: () => nowMs });
    expect(left(await heal(original))).toEqual([]);
    // A segment that is made anew has no frames: points need none.
    if (isGone) await expected.check(line.current);
    else await expectRestored(vault, store, whole);
  }
});

test("random damage is found, named and healed as far as the disk still holds what was there", async () => {
  const sound = store.snapshot();
  await fc.assert(
    fc.asyncProperty(damagings(6), fc.boolean(), async (damages, hasSource) => {
      store.restore(sound);
      await sprinkle(line.current, damages);
      const found = await vault.verify({ disk: "d" });
      const summary = await heal(hasSource ? disk : undefined);
      // Segments as wholes are looked at by a healing only.
      const ofPoints = summary.damaged.filter(({ sequence }) => sequence !== null);
      expect(ofPoints.length).toBeLessThanOrEqual(found.damaged.length);
      const unhealed = ofPoints.filter(({ healed }) => !healed);
      for (const point of await committedPoints(line.current, "d")) {
        const isWhole = await pointBytes(line.current, "d", point).then(
          () => true,
          () => false,
        );
        expect(unhealed.some(({ sequence }) => sequence === point.sequence)).toBe(!isWhole);
      }
      if (unhealed.length === 0) await expected.check(line.current);
      const again = (await heal(hasSource ? disk : undefined)).damaged.filter(({ sequence }) => sequence === null);
      expect(again).toEqual([]);
    }),
    { numRuns: runsOf(12) },
  );
});
