import { afterEach, expect, test } from "vitest";
import { ChangeTracker } from "../../../engine/disk/tracking/change-tracker.ts";
import { granuleBytes } from "../../../engine/limits.ts";
import type { Notice } from "../../../engine/notice.ts";
import { MemorySink } from "../../../sink/memory.ts";
import { checkNewest, closeModelVaults, contentOf, ModelDisk, openModelVault } from "../../model-disk.ts";

afterEach(closeModelVaults);

const sizeBytes = 300 * granuleBytes + 700;

async function protectedBefore(): Promise<{
  readonly sink: MemorySink;
  readonly vault: Awaited<ReturnType<typeof openModelVault>>;
  readonly disk: ModelDisk;
  readonly tracker: ChangeTracker;
  readonly notices: Notice[];
}> {
  const sink = new MemorySink();
  const vault = await openModelVault(sink);
  const disk = new ModelDisk(contentOf(sizeBytes, 1));
  const tracker = new ChangeTracker(sizeBytes);
  await vault.replicate({ disk: "d", volume: disk, changes: tracker });
  return { sink, vault, disk, tracker, notices: [] };
}

test("a list of changes is all that is read, and the point holds the whole disk", async () => {
  const { sink, vault, disk, tracker } = await protectedBefore();
  disk.bytes.set(contentOf(5000, 2), 10 * granuleBytes + 100);
  tracker.markDirty([{ offset: 10 * granuleBytes + 100, length: 5000 }]);
  const summary = await vault.replicate({ disk: "d", volume: disk, changes: tracker });
  expect(summary).toMatchObject({ scannedBytes: 2 * granuleBytes, changedBytes: 2 * granuleBytes, sequence: 2 });
  expect([tracker.since, tracker.dirtyBytes]).toEqual([summary.point, 0]);
  await checkNewest(sink, "d", disk.bytes);
  expect(await vault.replicate({ disk: "d", volume: disk, changes: tracker })).toMatchObject({
    scannedBytes: 0,
    sequence: 3,
  });
  await checkNewest(sink, "d", disk.bytes);
});

test("what is reported while a cycle runs belongs to the next", async () => {
  const { sink, vault, disk, tracker } = await protectedBefore();
  disk.bytes.fill(7, 0, granuleBytes);
  tracker.markDirty([{ offset: 0, length: 1 }]);
  disk.beforeRead = () => {
    tracker.markDirty([{ offset: 50 * granuleBytes, length: granuleBytes }]);
    return Promise.resolve();
  };
  await vault.replicate({ disk: "d", volume: disk, changes: tracker });
  expect(tracker.dirtyBytes).toBe(granuleBytes);
  disk.beforeRead = () => Promise.resolve();
  disk.bytes.fill(9, 50 * granuleBytes, 51 * granuleBytes);
  await vault.replicate({ disk: "d", volume: disk, changes: tracker });
  await checkNewest(sink, "d", disk.bytes);
});

test("what a failed cycle was to ship stays changed", async () => {
  const { sink, vault, disk, tracker } = await protectedBefore();
  disk.bytes.fill(7, 0, granuleBytes);
  tracker.markDirty([{ offset: 0, length: 1 }]);
  disk.beforeRead = () => Promise.reject(new Error("the disk is away"));
  await expect(vault.replicate({ disk: "d", volume: disk, changes: tracker })).rejects.toThrow("the disk is away");
  expect(tracker.dirtyBytes).toBe(granuleBytes);
  disk.beforeRead = () => Promise.resolve();
  expect(await vault.replicate({ disk: "d", volume: disk, changes: tracker })).toMatchObject({
    scannedBytes: granuleBytes,
  });
  await checkNewest(sink, "d", disk.bytes);
});

test("a list that does not begin at the newest point is not used: the disk is compared whole, and that is said", async () => {
  const { sink, vault, disk, tracker, notices } = await protectedBefore();
  disk.bytes.fill(7, 100 * granuleBytes, 101 * granuleBytes);
  await vault.replicate({ disk: "d", volume: disk });
  disk.bytes.fill(8, 200 * granuleBytes, 201 * granuleBytes);
  tracker.markDirty([{ offset: 200 * granuleBytes, length: granuleBytes }]);
  const summary = await vault.replicate({
    disk: "d",
    volume: disk,
    changes: tracker,
    onNotice: (notice) => notices.push(notice),
  });
  expect(summary.scannedBytes).toBeGreaterThan(granuleBytes);
  expect(notices.map(({ code }) => code)).toContain("STATE_LOST");
  await checkNewest(sink, "d", disk.bytes);
});

test("what the disk has grown by is read although no list of changes names it", async () => {
  const { sink, vault, disk, tracker } = await protectedBefore();
  disk.bytes = Buffer.concat([disk.bytes, contentOf(9000, 5)]);
  const summary = await vault.replicate({ disk: "d", volume: disk, changes: tracker });
  expect(summary.scannedBytes).toBe(sizeBytes + 9000 - 300 * granuleBytes);
  await checkNewest(sink, "d", disk.bytes);
});
