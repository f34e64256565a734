/**
 * Damage in every kind of stored object: it is found, named and confined; nothing that it does not
 * touch suffers.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import type { ErrorCode } from "../../../../engine/errors.ts";
import type { Notice } from "../../../../engine/notice.ts";
import type { Damage } from "../../../../engine/upkeep/scrub/damage.ts";
import type { Vault } from "../../../../engine/vault.ts";
import type { Volume } from "../../../../engine/volume.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../../sink/memory.ts";
import {
  checkNewest,
  closeModelVaults,
  contentOf,
  Expected,
  ModelDisk,
  openModelVault,
  replicateNoted,
} from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { flipPage, shortenPages, storedName, type Tampering, tamperObject } from "./tamper.ts";

const sizeBytes = 100_000;
let segment: string;

let folder: string;
const [store, others] = [new MemoryStore(), new MemoryStore()];
let filled: MemorySnapshot;
let vault: Vault;
let disk: ModelDisk;
let expected: Expected;
/** What disk d holds since its third point. */
let lastContent: Buffer;
beforeAll(async () => {
  for (const each of [others, store]) await fill(each);
  filled = store.snapshot();
  await closeModelVaults();
});
beforeEach(async () => {
  folder = mkdtempSync(join(tmpdir(), "verify-"));
  store.restore(filled);
  segment = storedName(store, "segments/d/00000001-0-00000000");
  vault = await openModelVault(sink());
  disk = new ModelDisk(Buffer.from(lastContent));
});
afterEach(async () => {
  await closeModelVaults();
  rmSync(folder, { recursive: true });
});

/** Disk d with three points, each with a granule of its own, and disk e with one. */
async function fill(into: MemoryStore): Promise<void> {
  const sink = new MemorySink({ store: into });
  const made = await openModelVault(sink);
  const written = new ModelDisk(contentOf(sizeBytes, 1));
  expected = new Expected("d");
  for (const seed of [11, 12, 13]) {
    await replicateNoted(made, sink, expected, written);
    contentOf(4096, seed).copy(written.bytes, (seed - 10) * 16_384);
  }
  lastContent = written.bytes;
  await made.replicate({ disk: "e", volume: new ModelDisk(contentOf(30_000, 50)) });
}

const sink = (): MemorySink => new MemorySink({ store });

async function materialize(point: string): Promise<Buffer> {
  const to = join(folder, `point-${point}.img`);
  await vault.materialize({ disk: "d", point, to });
  return readFileSync(to);
}

/** Disk and sequence number of each damage, sorted. */
function places(damaged: readonly Damage[]): string[] {
  return damaged.map(({ disk: name, sequence }) => `${name} ${String(sequence)}`).sort();
}

const codes: Record<Tampering, ErrorCode> = {
  flipped: "DAMAGED",
  truncated: "DAMAGED",
  foreign: "DAMAGED",
  removed: "OBJECT_NOT_FOUND",
  future: "FORMAT_UNSUPPORTED",
};
const tamperings = Object.keys(codes) as Tampering[];

test("a sound vault has no damage, and every chunk is proved once", async () => {
  const summary = await vault.verify();
  expect(summary).toMatchObject({ checkedPoints: 4, damaged: [] });
  expect(summary.checkedChunks).toBeGreaterThan(8);
  expect((await vault.verify({ disk: "d", point: "2" })).checkedPoints).toBe(1);
  for (const point of ["1", "2", "3"]) await materialize(point);
  await expected.check(sink());
});

describe("a manifest", () => {
  test.each(tamperings)("that is %s concerns its own point only", async (how) => {
    tamperObject(store, "disks/d/points/00000002-00000002", how, others);
    const { damaged, checkedPoints } = await vault.verify();
    expect(checkedPoints).toBe(4);
    expect(damaged).toHaveLength(1);
    expect(damaged[0]).toMatchObject({
      disk: "d",
      sequence: 2,
      extent: null,
      object: "disks/d/points/00000002-00000002",
      code: codes[how],
    });
    await expectCode(materialize("2"), how === "future" ? "FORMAT_UNSUPPORTED" : "DAMAGED");
    expect(readdirSync(folder)).toEqual([]);
    await materialize("1");
    await materialize("3");
  });

  test.each(["removed", "flipped", "truncated", "foreign"] as const)(
    "that is %s though the head names it is not built on",
    async (how) => {
      tamperObject(store, "disks/d/points/00000003-00000003", how, others);
      const notices: Notice[] = [];
      const summary = await vault.replicate({ disk: "d", volume: disk, onNotice: (notice) => notices.push(notice) });
      expect(notices.map(({ code }) => code)).toContain("PARENT_DAMAGED");
      // What the vault holds is found by its digest again; only what was written since the third
      // point is new.
      expect(summary.sequence).toBe(4);
      expect(summary.newBytes).toBeLessThanOrEqual(16_384);
      await expectCode(materialize("3"), "DAMAGED");
      expect((await materialize("4")).equals(disk.bytes)).toBe(true);
    },
  );

  test("of a future version is not passed over", async () => {
    tamperObject(store, "disks/d/points/00000003-00000003", "future", others);
    await expectCode(vault.replicate({ disk: "d", volume: disk }), "FORMAT_UNSUPPORTED");
  });
});

describe("a leaf of the map", () => {
  test.each(tamperings)("that is %s concerns the points that are built on it", async (how) => {
    tamperObject(store, "disks/d/map/00000002-00000000", how, others);
    const { damaged } = await vault.verify();
    expect(places(damaged)).toEqual(["d 2", "d 3"]);
    for (const damage of damaged)
      expect(damage).toMatchObject({ object: "disks/d/map/00000002-00000000", code: codes[how] });
    await expectCode(materialize("3"), how === "future" ? "FORMAT_UNSUPPORTED" : "DAMAGED");
    expect(existsSync(join(folder, "point-3.img"))).toBe(false);
    await materialize("1");
  });
});

describe("a head", () => {
  test.each(["flipped", "truncated", "foreign", "future"] as const)(
    "that is %s concerns its disk only",
    async (how) => {
      tamperObject(store, "disks/d/head", how, others);
      const { damaged, checkedPoints } = await vault.verify();
      expect(checkedPoints).toBe(1);
      expect(damaged).toHaveLength(1);
      expect(damaged[0]).toMatchObject({
        disk: "d",
        sequence: null,
        point: null,
        object: "disks/d/head",
        code: codes[how],
      });
      const code = codes[how];
      await expectCode(materialize("latest"), code);
      await expectCode(vault.replicate({ disk: "d", volume: disk }), code);
      await expectCode(vault.verify({ disk: "d" }), code);
    },
  );

  test("that is removed is damage as well", async () => {
    tamperObject(store, "disks/d/head", "removed", others);
    expect((await vault.verify()).damaged).toMatchObject([
      { disk: "d", sequence: null, object: "disks/d/head", code: "OBJECT_NOT_FOUND" },
    ]);
    await expectCode(materialize("latest"), "DAMAGED");
  });
});

describe("the vault's identity", () => {
  test.each([
    ["flipped", "DAMAGED"],
    ["truncated", "DAMAGED"],
    ["future", "FORMAT_UNSUPPORTED"],
  ] as const)("that is %s is not opened, let alone created anew", async (how, code) => {
    tamperObject(store, "vault.json", how, others);
    await expectCode(openModelVault(sink()), code);
  });

  test("that is another vault's makes every disk a stranger", async () => {
    tamperObject(store, "vault.json", "foreign", others);
    const stranger = await openModelVault(sink());
    expect(places((await stranger.verify()).damaged)).toEqual([" null", "d null", "e null"]);
    await expectCode(stranger.replicate({ disk: "d", volume: disk }), "DAMAGED");
  });
});

describe("a segment", () => {
  test("with a flipped payload byte concerns exactly the extents that need it", async () => {
    // Behind the header the payload of the first block begins.
    flipPage(store, segment, 128 + 10);
    const { damaged } = await vault.verify();
    expect(places(damaged)).toEqual(["d 1", "d 2", "d 3"]);
    for (const damage of damaged)
      expect(damage).toMatchObject({ object: segment, code: "DAMAGED", extent: { offset: 0, length: 16_384 } });
    const error = await expectCode(materialize("1"), "DAMAGED");
    expect(error.message).toContain("bytes 0 to 16384");
    expect(error.detail).toMatchObject({ disk: "d", offset: 0, length: 16_384, object: segment });
    expect(existsSync(join(folder, "point-1.img"))).toBe(false);
  });

  test.each([
    ["removed", (): void => void store.objects?.delete(segment), "OBJECT_NOT_FOUND"],
    [
      "cut short",
      (): void => {
        shortenPages(store, segment, 512);
      },
      "DAMAGED",
    ],
  ] as const)(
    "that is %s concerns all of its chunks, and the rest of the vault is checked to the end",
    async (_how, damage, code) => {
      damage();
      const { damaged, checkedPoints } = await vault.verify();
      expect(checkedPoints).toBe(4);
      expect([...new Set(places(damaged))]).toEqual(["d 1", "d 2", "d 3"]);
      for (const { code: found, extent } of damaged) {
        expect(found).toBe(code);
        expect(extent).not.toBeNull();
      }
      // The first point needs nothing else: its damages cover it.
      const first = damaged.filter(({ sequence }) => sequence === 1);
      expect(first.reduce((sum, { extent }) => sum + (extent?.length ?? 0), 0)).toBe(
        Math.ceil(sizeBytes / 4096) * 4096,
      );
      await expectCode(materialize("1"), "DAMAGED");
    },
  );

  test.each(["header", "table"] as const)(
    "with a damaged %s still gives its chunks back, but none to new points",
    async (part) => {
      flipPage(store, segment, part === "header" ? 20 : await tableOffset());
      expect((await vault.verify()).damaged).toEqual([]);
      const notices: Notice[] = [];
      const copy = new ModelDisk(contentOf(sizeBytes, 1));
      const summary = await vault.replicate({ disk: "f", volume: copy, onNotice: (notice) => notices.push(notice) });
      expect(notices.map(({ code }) => code)).toContain("SEGMENT_DAMAGED");
      expect(summary.newBytes).toBeGreaterThan(90_000);
      await checkNewest(sink(), "f", copy.bytes);
      await replicateNoted(vault, sink(), expected, disk);
      await checkNewest(sink(), "d", disk.bytes);
      expect((await vault.verify()).damaged).toEqual([]);
    },
  );

  async function tableOffset(): Promise<number> {
    const bytes = new Uint8Array(128);
    await sink().readPages(segment, 0, bytes);
    return new DataView(bytes.buffer).getUint32(12, true);
  }
});

describe("a comparison with a source", () => {
  test("finds nothing when the disk is still what it was", async () => {
    await replicateNoted(vault, sink(), expected, disk);
    expect((await vault.verify({ disk: "d", source: disk })).damaged).toEqual([]);
  });

  test("tells where the source differs, in data and in zeros", async () => {
    const holed = new ModelDisk(Buffer.alloc(sizeBytes));
    contentOf(16_384, 1).copy(holed.bytes);
    await vault.replicate({ disk: "h", volume: holed });
    holed.bytes[100] = (holed.bytes[100] ?? 0) ^ 1;
    holed.bytes[70_000] = 1;
    const { damaged } = await vault.verify({ disk: "h", source: holed });
    expect(damaged.map(({ code }) => code)).toEqual(["SOURCE_DIFFERS", "SOURCE_DIFFERS"]);
    const covers = (at: number): boolean =>
      damaged.some(({ extent }) => extent !== null && extent.offset <= at && at < extent.offset + extent.length);
    expect([covers(100), covers(70_000), covers(50_000)]).toEqual([true, true, false]);
  });

  test("reads neighbours at once, and tells which of them differ, up to the end of a shorter disk", async () => {
    const blockBytes = 16_384; // of the vault here
    const full = new ModelDisk(contentOf(5 * blockBytes, 3));
    await vault.replicate({ disk: "n", volume: full });
    full.bytes[0] = (full.bytes[0] ?? 0) ^ 1;
    for (const at of [2 * blockBytes, 5 * blockBytes - 1]) full.bytes[at] = (full.bytes[at] ?? 0) ^ 1;
    let reads = 0;
    const shorter: Volume = {
      description: "shorter",
      sizeBytes: () => Promise.resolve(4 * blockBytes + 512),
      read: async (offset, into) => {
        reads += 1;
        await full.read(offset, into);
      },
    };
    const { damaged } = await vault.verify({ disk: "n", source: shorter });
    expect(damaged.map(({ extent }) => extent)).toEqual([
      null,
      { offset: 0, length: blockBytes },
      { offset: 2 * blockBytes, length: blockBytes },
    ]);
    expect(reads).toBeLessThan(5);
  });

  test("asks the source once for each of its extents, however many zeros lie between", async () => {
    const scattered = new ModelDisk(Buffer.alloc(512 * 8_192));
    for (let at = 0; at < scattered.bytes.length; at += 8_192) scattered.bytes[at] = 1 + (at % 251);
    await vault.replicate({ disk: "s", volume: scattered });
    let asked = 0;
    const counting: Volume = {
      description: "scattered",
      sizeBytes: () => scattered.sizeBytes(),
      read: (offset, into) => scattered.read(offset, into),
      async *allocated(size) {
        for (let offset = 0; offset < size; offset += 8_192) {
          asked += 1;
          yield await Promise.resolve({ offset, length: 4_096 });
        }
      },
    };
    expect((await vault.verify({ disk: "s", source: counting })).damaged).toEqual([]);
    expect(asked).toBe(512);
  });

  test("tells that the size is another one", async () => {
    const longer = new ModelDisk(Buffer.concat([disk.bytes, Buffer.alloc(10)]));
    const { damaged } = await vault.verify({ disk: "d", point: "3", source: longer });
    expect(damaged.some(({ extent, message }) => extent === null && message.includes("100010"))).toBe(true);
  });
});
