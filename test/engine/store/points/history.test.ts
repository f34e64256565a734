/**
 * The points of a disk in head and pages: none is lost, none comes twice, and the head stays small
 * however many there are.
 */

import { beforeEach, describe, expect, test, vi } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { Notice } from "../../../../engine/notice.ts";
import type { HeadDocument, PageReference, PointRecord } from "../../../../engine/store/format/documents.ts";
import { countPoints, encodeHead } from "../../../../engine/store/format/documents.ts";
import { headName, pageName } from "../../../../engine/store/format/names.ts";
import { readHead } from "../../../../engine/store/points/head.ts";
import { findPoint, makeRoom, readPoints } from "../../../../engine/store/points/history.ts";
import type { ProcessIdentity } from "../../../../engine/store/points/process-identity.ts";
import { liveSessions } from "../../../../engine/store/points/process-identity.ts";
import { WriterLease } from "../../../../engine/store/points/writer-lease.ts";
import { Store } from "../../../../engine/store/store.ts";
import { CrashError, FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { deepTest } from "../../../deep-test.ts";
import { byDepth } from "../../../depth.ts";
import { cycleMs, idOf, recordOf, recordsOf, recordsVault, timeOf, writeHistory } from "../../../point-records.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";
import { type Tampering, tamperObject } from "../../upkeep/scrub/tamper.ts";

const pretended = vi.hoisted((): { identity: Partial<ProcessIdentity> } => ({ identity: {} }));
vi.mock(import("../../../../engine/store/points/process-identity.ts"), async (importOriginal) => {
  const original = await importOriginal();
  return {
    ...original,
    identifyProcess: async () => ({ ...(await original.identifyProcess()), ...pretended.identity }),
  };
});

let memory: MemoryStore;
let nowMs: number;
let store: Store;
beforeEach(async () => {
  liveSessions().clear();
  pretended.identity = {};
  memory = new MemoryStore();
  nowMs = 1_000_000;
  await connect().createContainer();
  store = new Store(connect());
});

const connect = (): MemorySink => new MemorySink({ store: memory, clock: () => nowMs });
const proved = async (): Promise<void> => await Promise.resolve();

async function takeSeat(
  sink: MemorySink | FaultySink = connect(),
  onNotice: (notice: Notice) => void = () => undefined,
): Promise<WriterLease> {
  return await WriterLease.take({ store: new Store(sink), vault: recordsVault, disk: "d", onNotice });
}

/** Sequence numbers as they are read, newest first. */
async function sequences(head: HeadDocument, onDamage?: (error: TidemarkError) => void): Promise<number[]> {
  const found: number[] = [];
  for await (const { sequence } of readPoints(store, head, { onDamage })) found.push(sequence);
  return found;
}

const countdown = (from: number, to = 1): number[] => Array.from({ length: from - to + 1 }, (_, index) => from - index);
const storedHead = async (): Promise<HeadDocument> => (await readHead(store, recordsVault, "d")).head;
const nameOf = ({ epoch, ordinal }: PageReference): string => pageName("d", epoch, ordinal);

function pageAt(head: HeadDocument, index: number): PageReference {
  const page = head.pages.at(index);
  if (page === undefined) throw new Error(`the head has ${String(head.pages.length)} pages`);
  return page;
}

describe("a writer lease", () => {
  test("keeps 512 points in the head; the next commit moves the oldest 256 into a page", async () => {
    await writeHistory(store, recordsOf(1, 512));
    await using writerLease = await takeSeat();
    expect(await writerLease.mark()).toEqual(new Map());
    await writerLease.commit(recordOf(512), false, proved);
    expect(writerLease.head.points).toHaveLength(512);
    expect(await namesIn(connect(), "disks/d/history/")).toEqual([]);

    const written = await writerLease.mark();
    expect([...written.keys()]).toEqual(["disks/d/history/00000002-00000000"]);
    for (const [name, etag] of written) expect((await store.stat(name)).etag).toBe(etag);
    // The mark itself names no page: what it relies on is proved after it.
    expect((await storedHead()).pages).toEqual([]);
    await writerLease.commit(recordOf(513), false, proved);
    expect(writerLease.newest).toEqual(recordOf(513));
    const head = await storedHead();
    expect(head.points.map(({ sequence }) => sequence)).toEqual(countdown(513, 257).reverse());
    expect(head.pages).toMatchObject([
      {
        level: 0,
        epoch: 2,
        ordinal: 0,
        count: 256,
        firstSequence: 1,
        lastSequence: 256,
        firstTimeMs: timeOf(1),
        lastTimeMs: timeOf(256),
      },
    ]);
    expect(await sequences(head)).toEqual(countdown(513));
  });

  test("gives each page of its epoch a name of its own", async () => {
    await writeHistory(store, recordsOf(1, 513));
    await using writerLease = await takeSeat();
    for (let sequence = 513; sequence <= 513 + 256; sequence += 1) {
      await writerLease.mark();
      await writerLease.commit(recordOf(sequence), false, proved);
    }
    expect((await storedHead()).pages.map(nameOf)).toEqual([
      "disks/d/history/00000002-00000000",
      "disks/d/history/00000002-00000001",
    ]);
    expect(await sequences(await storedHead())).toEqual(countdown(769));
  });

  test("does not commit a head that no reader can decode", async () => {
    await writeHistory(store, recordsOf(1, 10));
    await using writerLease = await takeSeat();
    const before = await storedHead();
    await writerLease.mark();
    for (const wrong of [recordOf(9), { ...recordOf(10), timeMs: timeOf(9) }, { ...recordOf(10), lagMs: -1 }]) {
      await expectCode(writerLease.commit(wrong, false, proved), "DAMAGED");
    }
    expect(await storedHead()).toEqual(before);
    await writerLease.commit(recordOf(10), true, proved);
    expect(await sequences(await storedHead())).toEqual(countdown(10));
  });

  test("whose writer dies between page and head leaves all points where they were, and its successor goes on", async () => {
    for (const effect of ["before", "after"] as const) {
      memory = new MemoryStore();
      await connect().createContainer();
      store = new Store(connect());
      await writeHistory(store, recordsOf(1, 513));
      // The head is put when the lease is taken, as the mark, and as the commit.
      for (const [prefix, when] of [
        ["disks/d/history/", 1],
        ["disks/d/head", 2],
        ["disks/d/head", 3],
      ] as const) {
        const sink = new FaultySink(connect(), [{ on: "putObject", prefix, when, fault: { kind: "crash", effect } }]);
        const writerLease = await takeSeat(sink);
        const newest = (writerLease.newest?.sequence ?? 0) + 1;
        await expect(
          writerLease.mark().then(async () => await writerLease.commit(recordOf(newest), false, proved)),
        ).rejects.toThrow(CrashError);
        sink.assertAllFired();
        nowMs += 61_000;
        liveSessions().clear();
        const head = await storedHead();
        expect(await sequences(head)).toEqual(countdown(head.points.at(-1)?.sequence ?? 0));
      }
      const writerLease = await takeSeat();
      await writerLease.mark();
      const newest = (writerLease.newest?.sequence ?? 0) + 1;
      await writerLease.commit(recordOf(newest), true, proved);
      await writerLease.release();
      expect(await sequences(await storedHead())).toEqual(countdown(newest));
      expect(newest).toBe(effect === "before" ? 513 : 514);
    }
  });

  test("that was lost after its page was written leaves nothing in the way of the next writer", async () => {
    await writeHistory(store, recordsOf(1, 513));
    const stale = await takeSeat();
    const stalePages = await stale.mark();
    pretended.identity = { machine: "another" };
    nowMs += 61_000;
    await using writerLease = await takeSeat();
    const pages = await writerLease.mark();
    await writerLease.commit(recordOf(513), false, proved);
    await expectCode(stale.commit({ ...recordOf(513), id: idOf("other", 513) }, false, proved), "SEAT_LOST");
    expect([...stalePages.keys()]).toEqual(["disks/d/history/00000002-00000000"]);
    expect([...pages.keys()]).toEqual(["disks/d/history/00000003-00000000"]);
    expect((await storedHead()).pages.map(nameOf)).toEqual([...pages.keys()]);
    expect(await sequences(await storedHead())).toEqual(countdown(513));
    expect((await storedHead()).points.at(-1)?.id).toBe(idOf("d", 513));
    await stale.release();
  });

  test("finds that a commit of unknown outcome has happened, also when it moved points", async () => {
    await writeHistory(store, recordsOf(1, 513));
    const sink = new FaultySink(connect(), [
      { on: "putObject", prefix: "disks/d/history/", when: 1, fault: { kind: "unacknowledged" } },
      { on: "putObject", prefix: "disks/d/head", when: 3, fault: { kind: "unacknowledged" } },
    ]);
    await using writerLease = await takeSeat(sink);
    await writerLease.mark();
    await writerLease.commit(recordOf(513), false, proved);
    await writerLease.mark();
    await writerLease.commit(recordOf(514), false, proved);
    sink.assertAllFired();
    expect(await sequences(await storedHead())).toEqual(countdown(514));
  });

  test("tells of a page that it could not merge", async () => {
    const head = await writeHistory(store, recordsOf(1, 512 + 64 * 256 + 1));
    expect(head.pages).toHaveLength(64);
    tamperObject(memory, nameOf(pageAt(head, 3)), "flipped", memory);
    const notices: Notice[] = [];
    await using writerLease = await takeSeat(connect(), (notice) => notices.push(notice));
    await writerLease.mark();
    await writerLease.commit(recordOf(512 + 64 * 256 + 1), false, proved);
    expect(notices.map(({ code }) => code)).toEqual(["HISTORY_DAMAGED"]);
    expect(notices[0]?.message).toContain(nameOf(pageAt(head, 3)));
  });
});

describe("pages", () => {
  test("of 256 points are merged into one of 16,384 when there are more than 64 of them", async () => {
    const before = await writeHistory(store, recordsOf(1, 512 + 64 * 256 + 1));
    expect(before.pages.map(({ count }) => count)).toEqual(Array.from({ length: 64 }, () => 256));
    const head = await writeHistory(
      store,
      recordsOf(1, 512 + 65 * 256 + 1, () => null, "e"),
      "e",
    );
    expect(head.pages.map(({ count }) => count)).toEqual([16_384, 256]);
    expect(await sequences(head)).toEqual(countdown(512 + 65 * 256));
  });

  test("that cannot be read stay where they are, and the others are merged around them", async () => {
    const before = await writeHistory(store, recordsOf(1, 512 + 64 * 256 + 1));
    const lost = [pageAt(before, 2), pageAt(before, 40)];
    tamperObject(memory, nameOf(pageAt(before, 2)), "removed", memory);
    tamperObject(memory, nameOf(pageAt(before, 40)), "future", memory);
    const told: TidemarkError[] = [];
    let ordinal = 1000;
    const room = await makeRoom({
      store,
      head: before,
      epoch: 1,
      takeOrdinal: () => ordinal++,
      onDamage: (error) => told.push(error),
    });
    expect(told.map(({ code }) => code)).toEqual(["DAMAGED", "FORMAT_UNSUPPORTED"]);
    expect(told.map(({ detail }) => detail["object"])).toEqual(lost.map(nameOf));
    expect(room.pages.slice(0, 3)).toEqual([expect.objectContaining({ count: 512 }), lost[0], pageAt(before, 3)]);
    const head = { ...before, pages: room.pages, points: room.points };
    expect(countPoints(head)).toBe(countPoints(before));
    const gone = (sequence: number): boolean =>
      lost.some((page) => page.firstSequence <= sequence && sequence <= page.lastSequence);
    const all = countdown(512 + 64 * 256);
    expect(await sequences(head, () => undefined)).toEqual(all.filter((sequence) => !gone(sequence)));
  });

  deepTest("of points that are long are merged no further than a document can hold", async () => {
    const disks = Array.from({ length: 64 }, (_, index) => `${String(index)}-`.padEnd(80, "x"));
    const group = { id: "a".repeat(32), name: "g".repeat(200), disks };
    const head = await writeHistory(
      store,
      recordsOf(1, 512 + 66 * 256 + 1, () => group),
    );
    expect(head.pages.length).toBeLessThan(66);
    for (const { bytes } of head.pages) expect(bytes).toBeLessThanOrEqual(9 * 1024 * 1024);
    expect(await sequences(head)).toEqual(countdown(512 + 66 * 256));
  });

  test("are put into a page of pages when there are more than 128, unread", async () => {
    // Two real pages among pages that do not exist: whatever read one of those would fail.
    const real = await writeHistory(store, recordsOf(1, 512 + 65 * 256 + 1));
    const full = pageAt(real, 0);
    const claims = (index: number): PageReference => {
      const shift = index * full.count;
      return {
        ...full,
        ordinal: 5000 + index,
        firstSequence: full.firstSequence + shift,
        lastSequence: full.lastSequence + shift,
        firstTimeMs: full.firstTimeMs + shift * cycleMs,
        lastTimeMs: full.lastTimeMs + shift * cycleMs,
      };
    };
    const pages = Array.from({ length: 128 }, (_, index) => (index === 0 ? full : claims(index)));
    const newest = 128 * full.count;
    const head: HeadDocument = { ...real, pages, points: recordsOf(newest + 1, newest + 513) };
    let ordinal = 9000;
    const damages: TidemarkError[] = [];
    const options = {
      store,
      epoch: 1,
      takeOrdinal: () => ordinal++,
      onDamage: (error: TidemarkError) => damages.push(error),
    };
    const room = await makeRoom({ ...options, head });
    expect(damages).toEqual([]);
    expect(room.pages).toHaveLength(1 + 64 + 1);
    expect(room.pages[0]).toMatchObject({ level: 1, count: 64 * 16_384, firstSequence: 1, lastSequence: 64 * 16_384 });
    const after: HeadDocument = { ...head, pages: room.pages, points: room.points };
    expect(countPoints(after)).toBe(countPoints(head));
    const requests = store.requests;
    expect(await findPoint(store, after, { sequence: 77 })).toEqual(recordOf(77));
    expect(store.requests - requests).toBe(2);
    expect(await findPoint(store, after, { timeMs: timeOf(78) + 1 })).toEqual(recordOf(78));
    const read = await sequences(after, (error) => damages.push(error));
    expect(damages).toHaveLength(127);
    expect(read).toEqual([...countdown(newest + 512, newest + 1), ...countdown(16_384)]);
  });
});

describe("many points", () => {
  let head: HeadDocument;
  const count: number = byDepth(20_000, 200_000);
  test("leave the head below 200 KiB, and reading it takes one request", async () => {
    head = await writeHistory(store, recordsOf(1, count + 1));
    const bytes = encodeHead(head).byteLength;
    expect(bytes).toBeLessThan(200 * 1024);
    const sink = new FaultySink(connect(), []);
    const opened = (await readHead(new Store(sink), recordsVault, "d")).head;
    expect(sink.calls).toEqual(["getObject disks/d/head"]);
    expect(countPoints(opened)).toBe(count);
    // Any one of them costs one page more.
    for (const sequence of [1, 256, 257, 16_384, 16_385, count / 2, count - 600]) {
      for (const key of [{ sequence }, { timeMs: timeOf(sequence) }, { timeMs: timeOf(sequence) + cycleMs - 1 }]) {
        const counted = new Store(connect());
        expect(await findPoint(counted, opened, key)).toEqual(recordOf(sequence));
        expect(counted.requests).toBe(1);
      }
    }
    const newest = new Store(connect());
    expect(await findPoint(newest, opened, { sequence: count })).toEqual(recordOf(count));
    expect(newest.requests).toBe(0);
    let expectedSequence = count;
    for await (const { sequence } of readPoints(store, opened)) {
      if (sequence !== expectedSequence) expect(sequence).toBe(expectedSequence);
      expectedSequence -= 1;
    }
    expect(expectedSequence).toBe(0);
    // Written once as a small page and once merged.
    const names = await namesIn(connect(), "disks/d/history/");
    const stored = await Promise.all(names.map(async (name) => (await store.stat(name)).sizeBytes));
    const pointBytes = encodeHead({ ...head, pages: [] }).byteLength / head.points.length;
    expect(stored.reduce((sum, size) => sum + size, 0)).toBeLessThan(2.05 * count * pointBytes);
  });
});

describe("a look-up", () => {
  let head: HeadDocument;
  /** Every second sequence number is missing, as after pruning. */
  const points = (): PointRecord[] => recordsOf(1, 3001).filter(({ sequence }) => sequence % 2 === 1);
  beforeEach(async () => {
    head = await writeHistory(store, points());
    expect(head.pages.length).toBeGreaterThan(3);
  });

  test("by sequence number, id and time finds every point, in pages and in the head", async () => {
    for (const point of points().filter((_, index) => index % 37 === 0 || index % 256 < 2)) {
      expect(await findPoint(store, head, { sequence: point.sequence })).toEqual(point);
      expect(await findPoint(store, head, { timeMs: point.timeMs })).toEqual(point);
    }
    for (const point of points().filter((_, index) => index % 301 === 0)) {
      expect(await findPoint(store, head, { id: point.id })).toEqual(point);
    }
  });

  test("by a time between two points finds the older one, also where a page ends", async () => {
    for (const { lastSequence, lastTimeMs } of head.pages) {
      expect(await findPoint(store, head, { timeMs: lastTimeMs + 2 * cycleMs - 1 })).toEqual(recordOf(lastSequence));
      expect(await findPoint(store, head, { timeMs: lastTimeMs + 2 * cycleMs })).toEqual(recordOf(lastSequence + 2));
      expect(await findPoint(store, head, { timeMs: lastTimeMs - 1 })).toEqual(recordOf(lastSequence - 2));
    }
    expect(await findPoint(store, head, { timeMs: timeOf(1) - 1 })).toBeUndefined();
    expect(await findPoint(store, head, { timeMs: Number.MAX_SAFE_INTEGER })).toEqual(recordOf(2999));
  });

  test("of what was never there finds nothing", async () => {
    for (const sequence of [0, 2, 512, 514, 3000, 3001])
      expect(await findPoint(store, head, { sequence })).toBeUndefined();
    expect(await findPoint(store, head, { id: "f".repeat(32) })).toBeUndefined();
  });

  const tamperings: readonly Tampering[] = ["flipped", "truncated", "removed", "future"];
  test.each(tamperings)("in a page that was %s fails by its name; all other points are found and read", async (how) => {
    const damaged = pageAt(head, 1);
    const name = nameOf(damaged);
    tamperObject(memory, name, how, memory);
    const code = how === "future" ? "FORMAT_UNSUPPORTED" : "DAMAGED";
    for (const key of [
      { sequence: damaged.firstSequence },
      { timeMs: damaged.lastTimeMs },
      { id: idOf("d", damaged.firstSequence) },
    ]) {
      const error = await expectCode(findPoint(store, head, key), code);
      expect(error.detail["object"]).toBe(name);
    }
    // It may be in the page that cannot be read: so it is not known that there is no such point.
    await expectCode(findPoint(store, head, { id: "f".repeat(32) }), code);
    const isLost = (sequence: number): boolean => damaged.firstSequence <= sequence && sequence <= damaged.lastSequence;
    const kept = points().filter(({ sequence }) => !isLost(sequence));
    for (const point of [kept[0], kept[256], kept.at(-1)]) {
      expect(await findPoint(store, head, { id: point?.id ?? "" })).toEqual(point);
      expect(await findPoint(store, head, { sequence: point?.sequence ?? 0 })).toEqual(point);
    }
    const told: TidemarkError[] = [];
    expect(await sequences(head, (error) => told.push(error))).toEqual(kept.map(({ sequence }) => sequence).reverse());
    expect(told.map((error) => [error.code, error.detail["object"]])).toEqual([[code, name]]);
    await expectCode(sequences(head), code);
  });

  test("fails with what the store says when that is not damage", async () => {
    const refused = new TidemarkError("STORE_UNREACHABLE", "no answer");
    const sink = new FaultySink(connect(), [{ on: "getObject", when: 1, fault: { kind: "refused", error: refused } }]);
    await expectCode(findPoint(new Store(sink), head, { sequence: 1 }), "STORE_UNREACHABLE");
    sink.assertAllFired();
  });

  test("refuses a page that is another's, be it whole", async () => {
    const [first, second] = [pageAt(head, 0), pageAt(head, 1)];
    const objects = memory.objects;
    const found = objects?.get(nameOf(second));
    if (found === undefined) throw new Error("the page is there");
    objects?.set(nameOf(first), found);
    await expectCode(findPoint(store, head, { sequence: 1 }), "DAMAGED");
  });

  test("of a head that was replaced meanwhile still finds its pages", async () => {
    const { etag } = await store.stat(headName("d"));
    await store.put(headName("d"), encodeHead({ ...head, points: [recordOf(3001)], pages: [] }), { ifMatch: etag });
    expect(await findPoint(store, head, { sequence: 1 })).toEqual(recordOf(1));
  });
});
