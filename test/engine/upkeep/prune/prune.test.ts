/**
 * Prunes: exactly what the policy does not keep goes, at little cost, and what cannot be read, or
 * is the newest, or is kept by a reader or a pin, stays.
 */

import { beforeEach, describe, expect, test } from "vitest";
import type { GroupRecord, PageReference, PointList } from "../../../../engine/store/format/documents.ts";
import { encodeHead, encodePage, referTo } from "../../../../engine/store/format/documents.ts";
import { decodeCondemned } from "../../../../engine/store/format/keeping.ts";
import { condemnedName, headName, pageName } from "../../../../engine/store/format/names.ts";
import { readHead } from "../../../../engine/store/points/head.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import { Store } from "../../../../engine/store/store.ts";
import type { PointDecision } from "../../../../engine/upkeep/prune/prune.ts";
import { decide } from "../../../../engine/upkeep/retention/decide.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { FaultySink } from "../../../../sink/faults.ts";
import { byDepth } from "../../../depth.ts";
import { cycleMs, recordOf, recordsOf, recordsVault, writeHistory } from "../../../point-records.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { tamperObject } from "../scrub/tamper.ts";
import { PruneRig } from "./prune-rig.ts";

let rig: PruneRig;
beforeEach(async () => {
  liveSessions().clear();
  rig = await PruneRig.open();
});

const numbers = (from: number, end: number): number[] => Array.from({ length: end - from }, (_, index) => from + index);

describe("a prune", () => {
  test.each(["keep:last=10", "bands:1h=all,1d=1h", "days:1", "keep:last=3,hourly=5", "days:0"])(
    "by %s leaves what the policy keeps of the points of a morning, and the newest",
    async (text) => {
      const points = recordsOf(1, 4001);
      const policy = parsePolicy(text);
      await writeHistory(rig.store, points);
      const wanted = decide(
        points.map((point) => ({ ...point, group: null, pinned: false })),
        policy,
        2_000_000_000_000,
      );
      const kept = wanted.flatMap(({ sequence, keep }) => (keep ? [sequence] : []));
      const summary = await rig.prune({ policy });
      expect(await rig.sequences()).toEqual(kept);
      expect(kept.at(-1)).toBe(4000);
      expect(summary).toMatchObject({
        dryRun: false,
        removedPoints: 4000 - kept.length,
        keptPoints: kept.length,
        heldPoints: 0,
        skippedDisks: 0,
        removedStoredBytes: (4000 - kept.length) * recordOf(1).storedBytes,
        disks: [{ disk: "d", keptPoints: kept.length }],
      });
      // Deciding again removes nothing, and asks for next to nothing.
      const again = await rig.prune({ policy });
      expect(again).toMatchObject({ removedPoints: 0, keptPoints: kept.length });
      expect((await readHead(rig.store, recordsVault, "d")).head.writer).toBeNull();
    },
  );

  test("that keeps everything changes nothing, and neither does a dry run", async () => {
    await writeHistory(rig.store, recordsOf(1, 1500));
    const before = rig.memory.snapshot().objects;
    expect(await rig.prune({ policy: parsePolicy("none") })).toMatchObject({ removedPoints: 0, keptPoints: 1499 });
    const decisions: PointDecision[] = [];
    const dry = await rig.prune({
      policy: parsePolicy("keep:last=5"),
      dryRun: true,
      onDecision: (decision) => decisions.push(decision),
    });
    expect(dry).toMatchObject({ dryRun: true, removedPoints: 1494, keptPoints: 5 });
    expect(decisions.map(({ sequence }) => sequence)).toEqual(numbers(1, 1500));
    expect(decisions.filter(({ keep }) => keep).map(({ sequence }) => sequence)).toEqual(numbers(1495, 1500));
    for (const { reasons } of decisions) expect(reasons.length).toBeGreaterThan(0);
    const after = rig.memory.snapshot().objects;
    expect([...(after ?? [])].map(([name, { etag }]) => [name, etag])).toEqual(
      [...(before ?? [])].map(([name, { etag }]) => [name, etag]),
    );
  });

  test("is explained without a look at anything but lists of points", async () => {
    await writeHistory(rig.store, recordsOf(1, 50));
    const sink = new FaultySink(rig.connect(), []);
    const dry = { policy: parsePolicy("keep:last=5"), dryRun: true };
    expect(await rig.prune({ ...dry, withoutFreedBytes: true }, sink)).toMatchObject({
      freedBytes: null,
      removedPoints: 44,
    });
    expect(sink.calls.filter((call) => /\/(points|map)\//.test(call))).toEqual([]);
    const looked = new FaultySink(rig.connect(), []);
    await rig.prune(dry, looked);
    expect(looked.calls.filter((call) => /\/(points|map)\//.test(call))).not.toEqual([]);
    expect(await rig.prune({ policy: parsePolicy("keep:last=50"), dryRun: true })).toMatchObject({
      freedBytes: 0,
      removedPoints: 0,
    });
  });

  test("rewrites only pages that lose a point, and names the condemned only while they go", async () => {
    await writeHistory(rig.store, recordsOf(1, 1200));
    const before = (await readHead(rig.store, recordsVault, "d")).head;
    expect(before.pages).toHaveLength(3);
    // Only the oldest page holds points that are older than 75 min.
    const policy = parsePolicy(`bands:${String((1100 * cycleMs) / 1000)}s=all`);
    await rig.prune({ policy });
    const { head } = await readHead(rig.store, recordsVault, "d");
    expect(head.pages).toHaveLength(3);
    expect(head.pages.slice(1)).toEqual(before.pages.slice(1));
    expect(head.pages[0]).toMatchObject({ firstSequence: 99, lastSequence: 256, count: 158, epoch: 2 });
    const { bytes } = await rig.store.get(condemnedName("d"), 1_000_000);
    expect(decodeCondemned(bytes, "condemned", { vault: recordsVault, disk: "d" })).toMatchObject({
      epoch: 2,
      ranges: [],
    });
  });

  test("makes one page of what is left of many, and none of nothing", async () => {
    await writeHistory(rig.store, recordsOf(1, 5_000));
    await rig.prune({ policy: parsePolicy("bands:10m=all,1d=1h") });
    const { head } = await readHead(rig.store, recordsVault, "d");
    expect(head.pages).toMatchObject([{ level: 0, count: 7 }]);
    await rig.prune({ policy: parsePolicy("keep:last=5") });
    expect((await readHead(rig.store, recordsVault, "d")).head).toMatchObject({
      pages: [],
      points: numbers(4995, 5000).map((n) => recordOf(n)),
    });
  });

  test("drops points of pages in a page of pages, which is left out when nothing is left of it", async () => {
    const gathered = 80;
    const points = numbers(1, 111);
    await writeGathered(rig.store, gathered);
    expect(await rig.sequences()).toEqual(points);
    const toDrop = points.slice(0, 70);
    const writerLease = await rig.takeSeat();
    expect(await writerLease.drop(toDrop, { leave: false, prove: async () => await Promise.resolve() })).toBe(70);
    expect(await rig.sequences()).toEqual(points.slice(70));
    const { head } = await readHead(rig.store, recordsVault, "d");
    expect(head.pages[0]).toMatchObject({ level: 1, firstSequence: 71, count: gathered - 70 });
    expect(
      await writerLease.drop(points.slice(70, gathered), { leave: false, prove: async () => await Promise.resolve() }),
    ).toBe(gathered - 70);
    expect((await readHead(rig.store, recordsVault, "d")).head.pages.every(({ level }) => level === 0)).toBe(true);
    expect(await rig.sequences()).toEqual(points.slice(gathered));
    await writerLease.release();
  });

  test("leaves what it cannot read, says so, and drops the rest", async () => {
    await writeHistory(rig.store, recordsOf(1, 1200));
    const { head } = await readHead(rig.store, recordsVault, "d");
    const page = head.pages[1];
    if (page === undefined) throw new Error("there are pages");
    tamperObject(rig.memory, pageName("d", page.epoch, page.ordinal), "flipped", rig.memory);
    await rig.prune({ policy: parsePolicy("keep:last=10") });
    expect(rig.codes).toContain("HISTORY_DAMAGED");
    const after = (await readHead(rig.store, recordsVault, "d")).head;
    expect(after.pages).toEqual([page]);
    expect(after.points.map(({ sequence }) => sequence)).toEqual(numbers(1190, 1200));
  });

  test("of a disk that is being written is refused, and left out where all disks are meant", async () => {
    await writeHistory(rig.store, recordsOf(1, 20));
    await writeHistory(rig.store, recordsOf(1, 20, undefined, "e"), "e");
    await using writerLease = await rig.takeSeat("d");
    const policy = parsePolicy("keep:last=2");
    const refused = await expectCode(rig.prune({ policy, disk: "d" }), "WRITER_ACTIVE");
    expect(refused.remedy).toContain("agent");
    const summary = await rig.prune({ policy });
    expect(summary).toMatchObject({ skippedDisks: 1, removedPoints: 17, disks: [{ disk: "e" }] });
    expect(rig.codes).toContain("DISK_SKIPPED");
    expect(await rig.sequences("d")).toHaveLength(19);
    expect(await rig.sequences("e")).toEqual([18, 19]);
    expect(writerLease.signal.aborted).toBe(false);
    await expectCode(rig.prune({ policy, disk: "nobody" }), "DISK_NOT_FOUND");
  });

  test("decides anew what has gone meanwhile when it has the writer lease", async () => {
    await writeHistory(rig.store, recordsOf(1, 50));
    // Another prune, with another policy, comes between the plan and the writer lease.
    const sink = new FaultySink(rig.connect(), []);
    const racing = rig.prune({ policy: parsePolicy("keep:last=40") }, sink);
    const other = rig.prune({ policy: parsePolicy("keep:last=20") });
    const outcomes = await Promise.allSettled([racing, other]);
    expect(outcomes.some(({ status }) => status === "fulfilled")).toBe(true);
    expect((await rig.sequences()).at(-1)).toBe(49);
    expect([20, 40]).toContain((await rig.sequences()).length);
  });
});

describe("points of a group", () => {
  const group = (sequence: number): GroupRecord => ({
    id: sequence.toString(16).padStart(32, "0"),
    name: "shop",
    disks: ["d", "e"],
  });
  const policy = parsePolicy("keep:last=3");

  test("go on all disks or on none, whatever the order in which the disks come", async () => {
    // `e` lacks the group's points 5 and 9: there `d` stands alone.
    await writeHistory(rig.store, recordsOf(1, 31, group, "d"), "d");
    await writeHistory(
      rig.store,
      recordsOf(1, 31, group, "e").filter(({ sequence }) => sequence !== 5 && sequence !== 9),
      "e",
    );
    await rig.prune({ policy: parsePolicy("bands:1m=all,1h=30s") });
    const [d, e] = [await rig.sequences("d"), await rig.sequences("e")];
    expect(d.filter((sequence) => sequence !== 5 && sequence !== 9)).toEqual(e);
    expect(e.length).toBeLessThan(28);
  });

  test("stay on all disks while one of them is pinned or read on any", async () => {
    for (const disk of ["d", "e"]) await writeHistory(rig.store, recordsOf(1, 21, group, disk), disk);
    const hold = await rig.hold(7, { disk: "e", point: recordOf(7, group(7), "e") });
    const summary = await rig.prune({ policy });
    expect(await rig.sequences("d")).toEqual([7, 18, 19, 20]);
    expect(await rig.sequences("e")).toEqual([7, 18, 19, 20]);
    expect(summary).toMatchObject({ heldPoints: 2, keptPoints: 8 });
    await hold.release();
    await rig.prune({ policy });
    expect(await rig.sequences("d")).toEqual([18, 19, 20]);
    expect(await rig.sequences("e")).toEqual([18, 19, 20]);
  });

  test("are read once each, however many disks there are", async () => {
    const disks = ["a", "b", "c", "f"];
    const groupOf = (sequence: number): GroupRecord => ({ ...group(sequence), disks });
    for (const disk of disks) await writeHistory(rig.store, recordsOf(1, 1200, groupOf, disk), disk);
    const sink = new FaultySink(rig.connect(), []);
    await rig.prune({ policy, dryRun: true, withoutFreedBytes: true }, sink);
    const heads = sink.calls.filter((call) => call.startsWith("getObject") && call.endsWith("/head"));
    expect(heads.length).toBeLessThanOrEqual(2 * disks.length);
  });
});

describe("the cost of a prune", () => {
  test("a minute of a chain of a day is two dozen requests and less than 200 KiB, not the chain", async () => {
    const policy = parsePolicy("days:1");
    const points = recordsOf(1, 17_280);
    await writeHistory(rig.store, points);
    const first = await rig.prune({ policy });
    expect(first.keptPoints).toBeLessThan(1600);
    // An hour of points goes on; each minute is pruned.
    let [requests, putBytes] = [0, 0];
    const minutes = byDepth(1, 15);
    for (let minute = 0; minute < minutes; minute += 1) {
      await rig.commit(12);
      const sink = new FaultySink(rig.connect(), []);
      const store = new Store(sink);
      const before = await storedBytes(store);
      const summary = await rig.prune({ policy }, sink);
      expect(summary.removedPoints).toBeGreaterThan(0);
      requests += sink.calls.length;
      putBytes += (await storedBytes(store)) - before;
    }
    console.log(
      `a minute's prune: ${String(requests / minutes)} requests, ${String(Math.round(putBytes / minutes / 1024))} KiB of new pages`,
    );
    expect(requests / minutes).toBeLessThan(30);
    expect(putBytes / minutes).toBeLessThan(200 * 1024);
  }, 30_000);
});

/**
 * A head of 110 points: 80 in a page of pages, 20 in pages, 10 in the head. A writer would gather
 * them only after two million points.
 */
async function writeGathered(store: Store, gathered: number): Promise<void> {
  let ordinal = 0;
  const write = async (content: PointList): Promise<PageReference> => {
    const page = { vault: recordsVault, disk: "d", epoch: 1, ordinal, ...content };
    ordinal += 1;
    const encoded = encodePage(page);
    await store.putOnce(pageName("d", 1, page.ordinal), encoded.bytes);
    const reference = referTo(page, encoded);
    if (reference === undefined) throw new Error("the page holds points");
    return reference;
  };
  const flat: PageReference[] = [];
  for (let from = 1; from < 101; from += 10) flat.push(await write({ pages: [], points: recordsOf(from, from + 10) }));
  const first = await write({ pages: flat.slice(0, gathered / 10), points: [] });
  const pages = [first, ...flat.slice(gathered / 10)];
  const head = {
    vault: recordsVault,
    disk: "d",
    epoch: 1,
    writer: null,
    collection: null,
    pages,
    points: recordsOf(101, 111),
  };
  await store.putOnce(headName("d"), encodeHead(head));
}

/** Bytes of everything in the store. */
async function storedBytes(store: Store): Promise<number> {
  let bytes = 0;
  for await (const { sizeBytes } of store.list("disks/")) bytes += sizeBytes;
  return bytes;
}
