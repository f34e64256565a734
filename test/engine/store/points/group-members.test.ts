/** A point counts as one of a group only when every member has a point of that group. */

import { beforeEach, describe, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { Notice } from "../../../../engine/notice.ts";
import { checksum, toHex } from "../../../../engine/store/format/checksum.ts";
import type { GroupRecord, PointRecord } from "../../../../engine/store/format/documents.ts";
import { pageName } from "../../../../engine/store/format/names.ts";
import { GroupMembers } from "../../../../engine/store/points/group-members.ts";
import {
  diskSummary,
  listPoints,
  type PointSummary,
  type PointsOptions,
  pointDetail,
} from "../../../../engine/store/points/points.ts";
import { Store } from "../../../../engine/store/store.ts";
import { FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { byDepth } from "../../../depth.ts";
import { recordOf, recordsOf, recordsVault, writeHistory } from "../../../point-records.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { tamperObject } from "../../upkeep/scrub/tamper.ts";
import { manifestSample } from "../format/samples.ts";

const disks = ["a", "b", "c"];
const groupAt = (sequence: number, members = disks): GroupRecord => ({
  id: toHex(checksum(Buffer.from(`group ${String(sequence)}`))),
  name: "shop",
  disks: members,
});

let memory: MemoryStore;
let sink: FaultySink;
let store: Store;
beforeEach(async () => {
  memory = new MemoryStore();
  sink = new FaultySink(new MemorySink({ store: memory }), []);
  await sink.createContainer();
  store = new Store(sink);
});

/**
 * Points 1 to `count` of `disk`, all of them of the group of their sequence number but for those
 * that `isLeftOut` names.
 */
async function write(
  disk: string,
  count: number,
  isLeftOut: (sequence: number) => boolean = () => false,
): Promise<void> {
  const points = recordsOf(1, count + 1, groupAt, disk).filter(({ sequence }) => !isLeftOut(sequence));
  await writeHistory(store, points, disk);
}

const members = (): GroupMembers => new GroupMembers({ store, vault: recordsVault });
const list = async (disk: string, options: PointsOptions = {}): Promise<PointSummary[]> =>
  await listPoints(store, members(), disk, options);
const grouped = (points: readonly PointSummary[]): number[] =>
  points.filter(({ group }) => group !== null).map(({ sequence }) => sequence);
const reads = (): readonly string[] => sink.calls.filter((call) => call.startsWith("getObject"));

describe("a point of a group", () => {
  test("is listed as one when every member has its own, and as a point of its disk when one has not", async () => {
    await write("a", 10);
    await write("b", 10, (sequence) => sequence === 4);
    await write("c", 9, (sequence) => sequence === 7);
    const points = await list("a");
    expect(points.map(({ sequence }) => sequence)).toEqual([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]);
    expect(grouped(points)).toEqual([1, 2, 3, 5, 6, 8, 9]);
    expect(points[0]?.group).toEqual({ id: groupAt(1).id, name: "shop" });
    expect(points[0]?.lagMs).toBe(1234);
    expect(grouped(await list("b"))).toEqual([1, 2, 3, 5, 6, 8, 9]);
    expect(grouped(await list("c"))).toEqual([1, 2, 3, 5, 6, 8, 9]);
    expect(await diskSummary(members(), "a")).toMatchObject({ points: 10, latest: { sequence: 10, group: null } });
    expect(await diskSummary(members(), "c")).toMatchObject({
      points: 8,
      latest: { sequence: 9, group: { name: "shop" } },
    });
  });

  test("says in full which disks it needs, whether or not they are all there", async () => {
    await write("a", 2);
    await write("b", 2, (sequence) => sequence === 2);
    await write("c", 2);
    const detail = async (point: PointRecord): Promise<object> =>
      await pointDetail(members(), "a", point, manifestSample, [], null, null);
    const { application } = manifestSample;
    expect(await detail(recordOf(1, groupAt(1), "a"))).toMatchObject({
      group: groupAt(1),
      groupIncomplete: false,
      application,
    });
    expect(await detail(recordOf(2, groupAt(2), "a"))).toMatchObject({ group: groupAt(2), groupIncomplete: true });
    expect(await detail(recordOf(2, null, "a"))).toMatchObject({ group: null, groupIncomplete: false });
  });

  test("is none while a member has never been written, and when a member's head is damaged", async () => {
    await write("a", 3);
    await write("b", 3);
    expect(grouped(await list("a"))).toEqual([]);
    await write("c", 3);
    expect(grouped(await list("a"))).toEqual([1, 2, 3]);
    tamperObject(memory, "disks/c/head", "flipped", memory);
    expect(grouped(await list("a"))).toEqual([]);
    await expectCode(list("c"), "DAMAGED");
  });

  test("is found although the members' clocks were apart for a while", async () => {
    const shifted = (disk: string, byMs: number): PointRecord[] =>
      recordsOf(1, 700, groupAt, disk).map((point) => ({ ...point, timeMs: point.timeMs + byMs }));
    await writeHistory(store, shifted("a", 0), "a");
    await writeHistory(store, shifted("b", 1_500_000), "b");
    await writeHistory(store, shifted("c", -1_500_000), "c");
    for (const disk of disks) expect(grouped(await list(disk))).toHaveLength(699);
  });
});

describe("a listing", () => {
  test("reads each head once and each page once, however many points there are", async () => {
    for (const disk of disks) await write(disk, 2000);
    const before = reads().length;
    const points = await list("a");
    expect(grouped(points)).toHaveLength(2000);
    const read = reads().slice(before);
    expect(new Set(read).size).toBe(read.length);
    expect(read.filter((call) => call.endsWith("/head"))).toHaveLength(3);
  });

  test("of the newest points reads no page that they do not stand in", async () => {
    const points = byDepth(3_000, 20_000);
    for (const disk of disks) await write(disk, points);
    const before = reads().length;
    expect((await list("a", { limit: 100 })).map(({ sequence }) => sequence)).toEqual(
      Array.from({ length: 100 }, (_, index) => points - 99 + index),
    );
    expect(reads().slice(before)).toEqual([
      "getObject disks/a/head",
      "getObject disks/a/proved",
      "getObject disks/b/head",
      "getObject disks/c/head",
    ]);
    expect(await list("a", { limit: 50_000 })).toHaveLength(points);
    for (const limit of [0, -1, 0.5]) await expectCode(list("a", { limit }), "INVALID_ARGUMENT");
  }, 60_000);

  test("tells of a page that cannot be read and goes on, or ends with its error when there is no listener", async () => {
    for (const disk of disks) await write(disk, 1500);
    const name = pageName("a", 1, 1);
    tamperObject(memory, name, "removed", memory);
    const notices: Notice[] = [];
    const points = await list("a", { onNotice: (notice) => notices.push(notice) });
    expect(points).toHaveLength(1500 - 256);
    expect(grouped(points)).toHaveLength(1500 - 256);
    expect(notices.map(({ code }) => code)).toEqual(["HISTORY_DAMAGED"]);
    expect(notices[0]?.message).toContain(name);
    await expectCode(list("a"), "DAMAGED");
    expect(await list("a", { limit: 512 })).toHaveLength(512);
    // The others keep their points, but those that this disk cannot show are group points no more.
    expect(grouped(await list("b"))).toHaveLength(1500 - 256);
  });

  test("fails with what the store says of a member when that is not damage", async () => {
    for (const disk of disks) await write(disk, 3);
    const refused = new TidemarkError("STORE_UNREACHABLE", "no answer");
    const failing = new FaultySink(sink, [
      { on: "getObject", prefix: "disks/b/", when: 1, fault: { kind: "refused", error: refused } },
    ]);
    const other = new GroupMembers({ store: new Store(failing), vault: recordsVault });
    await expectCode(listPoints(new Store(failing), other, "a", {}), "STORE_UNREACHABLE");
    failing.assertAllFired();
  });
});
