/** Points with right checksums and wrong content: what is wrong is found, by every reader. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { digestBytes } from "../../../../engine/limits.ts";
import type { HeadDocument } from "../../../../engine/store/format/documents.ts";
import { type EntryColumns, zeroSegment } from "../../../../engine/store/format/leaf.ts";
import { epochMax } from "../../../../engine/store/format/names.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { closeModelVaults, contentOf, ModelDisk, modelBlockBytes, openModelVault } from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { type ForgedDisk, forgeHead, forgeLeaf, forgeManifest } from "./forged-points.ts";

const blocks = 6;

let folder: string;
let vault: Vault;
let disk: ModelDisk;
let forged: ForgedDisk;
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "forged-"));
  const store = new MemoryStore();
  vault = await openModelVault(new MemorySink({ store }));
  disk = new ModelDisk(contentOf(blocks * modelBlockBytes, 1));
  await vault.replicate({ disk: "d", volume: disk });
  forged = { store, vault: vault.id, disk: "d" };
});
afterEach(async () => {
  await closeModelVaults();
  rmSync(folder, { recursive: true });
});

async function materialize(point = "latest"): Promise<Buffer> {
  const to = join(folder, `point-${point}.img`);
  await vault.materialize({ disk: "d", point, to });
  return readFileSync(to);
}

/** Entry `to` names the place of entry `from`, and keeps its own digest. */
function moved(leaf: EntryColumns, from: number, to: number): void {
  leaf.offsets[to] = leaf.offsets[from] ?? 0;
  leaf.storedWords[to] = leaf.storedWords[from] ?? 0;
  leaf.segments[to] = leaf.segments[from] ?? 0;
  leaf.chunkLengths[to] = leaf.chunkLengths[from] ?? 0;
}

describe("an entry that names the place of another chunk", () => {
  test("is damage of its own extent, beside the entry that the place belongs to", async () => {
    await forgeLeaf(forged, 1, (leaf) => moved(leaf, 0, 3));
    const { damaged } = await vault.verify();
    expect(damaged).toMatchObject([
      { disk: "d", sequence: 1, code: "DAMAGED", extent: { offset: 3 * modelBlockBytes, length: modelBlockBytes } },
    ]);
    await expectCode(materialize(), "DAMAGED");
  });

  test("is damage of a later point, though the place was proved for an earlier one", async () => {
    contentOf(modelBlockBytes, 2).copy(disk.bytes, 2 * modelBlockBytes);
    await vault.replicate({ disk: "d", volume: disk });
    let first: EntryColumns | undefined;
    await forgeLeaf(forged, 1, (leaf) => {
      first = leaf;
    });
    await forgeLeaf(forged, 2, (leaf) => {
      assert(first !== undefined);
      leaf.names.splice(0, 1, first.names[first.segments[0] ?? 0] ?? "");
      leaf.offsets[0] = first.offsets[0] ?? 0;
      leaf.storedWords[0] = first.storedWords[0] ?? 0;
    });
    const extent = { offset: 2 * modelBlockBytes, length: modelBlockBytes };
    expect((await vault.verify()).damaged).toMatchObject([{ sequence: 2, extent }]);
    expect((await vault.scrub()).damaged).toMatchObject([{ sequence: 2, extent }]);
    await expectCode(materialize("2"), "DAMAGED");
    expect((await materialize("1")).equals(contentOf(blocks * modelBlockBytes, 1))).toBe(true);
  });

  test("is damage when only the digest of a shared place differs", async () => {
    disk.bytes.copy(disk.bytes, 4 * modelBlockBytes, 0, modelBlockBytes);
    await vault.replicate({ disk: "d", volume: disk });
    await forgeLeaf(forged, 2, (leaf) => {
      const at = leaf.digests.length - digestBytes;
      leaf.digests[at] = (leaf.digests[at] ?? 0) ^ 1;
    });
    expect((await vault.verify()).damaged).toMatchObject([
      { sequence: 2, extent: { offset: 4 * modelBlockBytes, length: modelBlockBytes } },
    ]);
    await expectCode(materialize("2"), "DAMAGED");
  });

  test("is not healed over the chunk that lies there", async () => {
    await forgeLeaf(forged, 1, (leaf) => moved(leaf, 0, 2));
    const summary = await vault.verify({ disk: "d", source: disk, heal: true });
    expect(summary.damaged).toMatchObject([{ extent: { offset: 2 * modelBlockBytes }, healed: false }]);
    const { damaged } = await vault.verify();
    expect(damaged.map(({ extent }) => extent?.offset)).toEqual([2 * modelBlockBytes]);
  });
});

describe("an entry that no writer makes", () => {
  const entries: readonly (readonly [string, (leaf: EntryColumns) => void])[] = [
    ["payloads of 2 GiB", (leaf) => leaf.storedWords.fill(0xffff_ffff)],
    ["payloads of nothing", (leaf) => leaf.storedWords.fill(0x8000_0000)],
    ["plain payloads shorter than their chunks", (leaf) => leaf.storedWords.fill(4096)],
    ["payloads behind the end of a segment", (leaf) => leaf.offsets.fill(2 ** 32 - 8)],
    ["a segment that is none", (leaf) => void leaf.names.fill("segments/../../vault.json")],
    ["a segment of an epoch beyond all", (leaf) => void leaf.names.fill("segments/d/9007199254740993-0-00000000")],
    ["more segments than entries", (leaf) => void leaf.names.push(...Array.from({ length: 100 }, () => "x"))],
    ["granules of two blocks", (leaf) => widen(leaf)],
  ];
  test.each(entries)("with %s is damage of the point", async (_what, change) => {
    await forgeLeaf(forged, 1, change);
    expect((await vault.verify()).damaged).toMatchObject([{ disk: "d", sequence: 1, code: "DAMAGED" }]);
    await expectCode(materialize(), "DAMAGED");
    const mount = await vault.mount({ disk: "d", point: "latest" });
    try {
      await expectCode(mount.device.read(0, new Uint8Array(blocks * modelBlockBytes)), "DAMAGED");
    } finally {
      await mount.close();
    }
  });
});

/** The first entry reaches into the second block, and the others are zeros behind it. */
function widen(leaf: EntryColumns): void {
  leaf.chunkLengths[0] = 7;
  leaf.lengths[0] = 8;
  leaf.storedWords[0] = 8 * 4096;
  leaf.starts[1] = 8;
  leaf.lengths[1] = 4;
  leaf.segments.fill(zeroSegment, 1);
}

describe("a head that no writer makes", () => {
  const [year10000, beyondDates] = [Date.UTC(10_000, 0), 8.64e15 + 1];
  const heads: readonly (readonly [string, (head: HeadDocument) => object])[] = [
    ["a time that no date can hold", (head) => ofPoints(head, { timeMs: beyondDates })],
    ["a time without an ISO form", (head) => ofPoints(head, { timeMs: year10000 })],
    ["an epoch of 2^53 - 1", (head) => ({ ...head, epoch: Number.MAX_SAFE_INTEGER })],
    ["a sequence number of 2^53 - 1", (head) => ofPoints(head, { sequence: Number.MAX_SAFE_INTEGER })],
    ["a group without a name", (head) => ofPoints(head, { group: { id: "0".repeat(32), name: "", disks: ["d"] } })],
    ["a group of a disk that is none", (head) => ofPoints(head, { group: groupOf("x".repeat(81)) })],
    ["a group of a disk without a name", (head) => ofPoints(head, { group: groupOf("") })],
  ];
  test.each(heads)("with %s is damage of its disk, and other disks go on", async (_what, change) => {
    await vault.replicate({ disk: "e", volume: new ModelDisk(contentOf(30_000, 50)) });
    await forgeHead(forged, change);
    expect((await vault.verify()).damaged).toMatchObject([{ disk: "d", object: "disks/d/head", code: "DAMAGED" }]);
    await expectCode(vault.points("d"), "DAMAGED");
    await expectCode(vault.replicate({ disk: "d", volume: disk }), "DAMAGED");
    expect((await vault.replicate({ disk: "e", volume: new ModelDisk(contentOf(30_000, 51)) })).sequence).toBe(2);
  });

  test("is followed by no writer when nothing can follow it, and its point stays readable", async () => {
    await forgeHead(forged, (head) => ({ ...head, epoch: epochMax }));
    const refusal = await expectCode(vault.replicate({ disk: "d", volume: disk }), "DAMAGED");
    expect(refusal.detail).toMatchObject({ object: "disks/d/head" });
    expect((await materialize()).equals(disk.bytes)).toBe(true);
  });
});

describe("a manifest that no writer makes", () => {
  test("is damage when the head says another size of its point", async () => {
    await forgeHead(forged, (head) => ofPoints(head, { volumeBytes: modelBlockBytes }));
    expect((await vault.verify()).damaged).toMatchObject([{ sequence: 1, code: "DAMAGED" }]);
    await expectCode(materialize(), "DAMAGED");
  });

  test("is refused when its runs need more memory over one window than any writer's", async () => {
    await forgeManifest(forged, 1, (manifest) => {
      const [run] = manifest.runs;
      assert(run !== undefined);
      return { ...manifest, runs: Array.from({ length: 30 }, () => ({ ...run, bytes: 16 * 1024 * 1024 })) };
    });
    expect((await vault.verify()).damaged).toMatchObject([{ sequence: 1, code: "DAMAGED" }]);
    await expectCode(materialize(), "DAMAGED");
  });
});

function groupOf(other: string): object {
  return { id: "0".repeat(32), name: "g", disks: ["d", other] };
}

/** The head with other fields in each of its points. */
function ofPoints(head: HeadDocument, fields: object): object {
  return { ...head, points: head.points.map((point) => ({ ...point, ...fields })) };
}
