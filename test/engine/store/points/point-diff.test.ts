/**
 * The difference of two points: what it says of the bytes, and that points stay while it is read.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterEach, beforeEach, describe, expect, onTestFinished, test } from "vitest";
import { granuleBytes } from "../../../../engine/limits.ts";
import type { PointDiff } from "../../../../engine/store/points/point-diff.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import type { Vault } from "../../../../engine/vault.ts";
import type { Extent } from "../../../../engine/volume.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import {
  closeModelVaults,
  contentOf,
  ModelDisk,
  modelBlockBytes,
  openModelVault,
  sampleDisk,
  scribble,
} from "../../../model-disk.ts";
import { expectCode, namesIn } from "../../../sink/expectations.ts";

let sink: MemorySink;
let vault: Vault;
beforeEach(async () => {
  sink = new MemorySink();
  vault = await openModelVault(sink);
});
afterEach(async () => {
  await closeModelVaults();
});

async function extentsOf(diff: PointDiff): Promise<Extent[]> {
  const extents: Extent[] = [];
  for await (const extent of diff) extents.push(extent);
  return extents;
}

/** Points of a disk that changes and grows; what each of them holds. */
async function churn(): Promise<readonly Buffer[]> {
  const disk = sampleDisk(400_001, 1);
  const contents: Buffer[] = [];
  for (let point = 1; point <= 6; point += 1) {
    await vault.replicate({ disk: "d", volume: disk });
    contents.push(Buffer.from(disk.bytes));
    if (point === 3) disk.bytes = Buffer.concat([disk.bytes, contentOf(100_000, 9), Buffer.alloc(90_000)]);
    scribble(disk, point);
  }
  return contents;
}

describe("the difference of two points", () => {
  test("applied to one of them makes the other, whichever they are", async () => {
    const contents = await churn();
    for (const [a, before] of contents.entries()) {
      for (const [b, after] of contents.entries()) {
        const diff = await vault.diff({ disk: "d", from: String(a + 1), to: String(b + 1) });
        expect([diff.from.sequence, diff.to.sequence]).toEqual([a + 1, b + 1]);
        const replica = Buffer.alloc(after.length);
        before.copy(replica);
        let end = -1;
        for (const { offset, length } of await extentsOf(diff)) {
          expect(offset).toBeGreaterThan(end);
          expect(offset % granuleBytes).toBe(0);
          end = offset + length;
          expect(end).toBeLessThanOrEqual(after.length);
          after.copy(replica, offset, offset, end);
        }
        expect(replica.equals(after)).toBe(true);
        if (a === b) expect(end).toBe(-1);
      }
    }
  });

  test("is the granule that was written where the writer had fingerprints, and its block where it had none", async () => {
    const stateFolder = mkdtempSync(path.join(tmpdir(), "diff-"));
    onTestFinished(() => rmSync(stateFolder, { recursive: true }));
    const remembering = await openModelVault(sink, { stateFolder });
    const disk = new ModelDisk(contentOf(256 * 1024, 1));
    await remembering.replicate({ disk: "d", volume: disk });
    for (const [writer, granule] of [
      [remembering, 7],
      [vault, 30],
    ] as const) {
      contentOf(granuleBytes, granule).copy(disk.bytes, granule * granuleBytes);
      await writer.replicate({ disk: "d", volume: disk });
    }
    const granuleOnly = await vault.diff({ disk: "d", from: "1", to: "2" });
    expect(await extentsOf(granuleOnly)).toEqual([{ offset: 7 * granuleBytes, length: granuleBytes }]);
    const block = await vault.diff({ disk: "d", from: "2", to: "3" });
    expect(await extentsOf(block)).toEqual([{ offset: 28 * granuleBytes, length: modelBlockBytes }]);
  });

  test("holds both points until its loop is left, and each loop anew", async () => {
    await churn();
    const diff = await vault.diff({ disk: "d", from: "1", to: "2" });
    expect(await namesIn(sink, "disks/d/holds/")).toEqual([]);
    for (let loop = 0; loop < 2; loop += 1) {
      const extents = diff[Symbol.asyncIterator]();
      expect((await extents.next()).done).toBe(false);
      const held = await namesIn(sink, "disks/d/holds/");
      expect(held.map((name) => name.split("/").at(-1)?.slice(0, 8))).toEqual(["00000001", "00000002"]);
      await extents.return();
      expect(await namesIn(sink, "disks/d/holds/")).toEqual([]);
    }
  });

  test("of a point that has been pruned ends with POINT_NOT_FOUND", async () => {
    await churn();
    const diff = await vault.diff({ disk: "d", from: "1", to: "2" });
    await vault.prune({ disk: "d", policy: parsePolicy("keep:last=1") });
    await expectCode(extentsOf(diff), "POINT_NOT_FOUND");
    await expectCode(vault.diff({ disk: "d", from: "1", to: "latest" }), "POINT_NOT_FOUND");
    await expectCode(vault.diff({ disk: "nobody", from: "1", to: "2" }), "DISK_NOT_FOUND");
  });

  test("ends with INTERRUPTED when it is aborted", async () => {
    await churn();
    const abort = new AbortController();
    const diff = await vault.diff({ disk: "d", from: "1", to: "6", signal: abort.signal });
    abort.abort();
    await expectCode(extentsOf(diff), "INTERRUPTED");
  });
});
