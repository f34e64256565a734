/** What a collection leaves alone because a writer may be about to commit it. */
import { expect, test } from "vitest";
import { manifestName, mapName, pageName, segmentName } from "../../../../engine/store/format/names.ts";
import { LiveSet } from "../../../../engine/upkeep/collection/live-set.ts";
import { Unfinished } from "../../../../engine/upkeep/collection/unfinished.ts";
import { expectCode } from "../../../sink/expectations.ts";

const writer = { session: "0".repeat(32), machine: "m", pid: 1, startTicks: 1, host: "h" };

/** A vault with one disk, whose writer has epoch 7 or has left. */
function looked(isWritten: boolean): LiveSet {
  const live = new LiveSet();
  const head = { vault: "0".repeat(32), disk: "a", epoch: 7, collection: null, pages: [], points: [] };
  live.heads.set("a", { ...head, writer: isWritten ? writer : null });
  for (const name of [mapName("a", 6, 90), mapName("a", 7, 4), pageName("a", 7, 0), manifestName("a", 12, 7)])
    live.objects.add(name);
  for (const name of [segmentName("a", 6, 0, 3), segmentName("a", 7, 0, 1)]) live.ownSegments.add(name);
  return live;
}

test("it is what a living writer has numbered higher than all that points need", () => {
  const unfinished = new Unfinished(looked(true));
  for (const name of [mapName("a", 7, 5), pageName("a", 7, 1), manifestName("a", 13, 7)])
    expect(unfinished.has(name), name).toBe(true);
  for (const name of [mapName("a", 7, 3), manifestName("a", 11, 7)]) expect(unfinished.has(name), name).toBe(false);
  // It appends to the last segment that points need, or has begun a new one; of other lanes nothing
  // is needed yet.
  for (const name of [segmentName("a", 7, 0, 1), segmentName("a", 7, 0, 2), segmentName("a", 7, 1, 0)])
    expect(unfinished.has(name), name).toBe(true);
  expect(unfinished.has(segmentName("a", 7, 0, 0))).toBe(false);
});

test("it is so also when another disk already needs a part of what the writer has made", () => {
  const live = looked(true);
  // Of its third segment, which is durable and known to all, while its own point is not there yet.
  live.add(segmentName("a", 7, 0, 5), 0, 512);
  const unfinished = new Unfinished(live);
  for (const ordinal of [1, 2, 3, 4, 5, 6])
    expect(unfinished.has(segmentName("a", 7, 0, ordinal)), String(ordinal)).toBe(true);
});

test("nothing of a former writer is, whatever its number", () => {
  const unfinished = new Unfinished(looked(true));
  for (const name of [mapName("a", 6, 91), pageName("a", 6, 9), manifestName("a", 13, 6), segmentName("a", 6, 0, 4)]) {
    expect(unfinished.has(name), name).toBe(false);
  }
});

test("once the writer has left, only what the next one makes is", () => {
  const unfinished = new Unfinished(looked(false));
  for (const name of [mapName("a", 7, 5), manifestName("a", 13, 7), segmentName("a", 7, 0, 2)])
    expect(unfinished.has(name), name).toBe(false);
  for (const name of [mapName("a", 8, 0), manifestName("a", 13, 8), segmentName("a", 8, 0, 0)])
    expect(unfinished.has(name), name).toBe(true);
});

test("of a disk without a head it is unknown what is needed", async () => {
  const unfinished = new Unfinished(looked(true));
  await expectCode(
    Promise.resolve().then(() => unfinished.has(mapName("b", 1, 0))),
    "DAMAGED",
  );
});
