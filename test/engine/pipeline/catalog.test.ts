import { mkdtemp, readdir, readFile, rm, truncate, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { crc32 } from "node:zlib";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { TidemarkError } from "../../../engine/errors.ts";
import { segmentBytes } from "../../../engine/limits.ts";
import { Catalog } from "../../../engine/pipeline/catalog.ts";
import { checksum } from "../../../engine/store/format/checksum.ts";
import { segmentName } from "../../../engine/store/format/names.ts";
import type { Store } from "../../../engine/store/store.ts";
import { digestOf, foreignVaultId, openMemory, randomBytes, vaultId } from "../../engine-model.ts";
import { expectCode } from "../../sink/expectations.ts";
import type { SampleChunk } from "../store/format/samples.ts";
import { sealFrame } from "../store/format/samples.ts";

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "catalog-"));
});
afterEach(async () => {
  await rm(folder, { recursive: true });
});

const indexBytesMax = 1024 * 1024;

interface Loaded {
  readonly catalog: Catalog;
  readonly damage: readonly TidemarkError[];
  /** Calls that the load made, without the listing. */
  readonly reads: number;
}

async function load(
  store: Store,
  options: { readonly folder?: string; readonly vaultId?: Uint8Array } = {},
): Promise<Loaded> {
  const damage: TidemarkError[] = [];
  const before = store.requests;
  const catalog = await Catalog.load({
    store,
    vaultId,
    indexBytesMax,
    onDamage: (error) => damage.push(error),
    ...options,
  });
  return { catalog, damage, reads: store.requests - before - 1 };
}

/** Digest → where it lies, as text. */
function contentOf(catalog: Catalog): Map<string, string> {
  const content = new Map<string, string>();
  catalog.index.forEach((words, at, segment, offset, storedWord) => {
    content.set(words.slice(at, at + 4).join(), `${catalog.nameOf(segment)} ${String(offset)} ${String(storedWord)}`);
  });
  return content;
}

function chunks(from: number, count: number): SampleChunk[] {
  return Array.from({ length: count }, (_, index) => ({
    payload: randomBytes(100 + index, from + index),
    storedWord: 100 + index,
    digest: digestOf(from + index),
    granule: index,
    granules: 1,
  }));
}

/** Writes frames to a segment, which is made if it does not exist. Returns the end of each. */
async function writeFrames(
  store: Store,
  name: string,
  frames: readonly (readonly SampleChunk[])[],
  vault = vaultId,
): Promise<number[]> {
  await store.createPages(name, segmentBytes, 1);
  const ends: number[] = [];
  let offset = 0;
  for (const content of frames) {
    const frame = sealFrame({ vaultId: vault, segmentId: checksum(Buffer.from(name)), offset }, content);
    await store.writePages(name, offset, frame, { sequenceNumber: 1 });
    offset += frame.length;
    ends.push(offset);
  }
  return ends;
}

/**
 * Each load asks for the newest collection, and lists what collections have recorded and what is in
 * quarantine.
 */
const collectionReads = 3;
const first = segmentName("a", 1, 0, 0);
const second = segmentName("ä", 2, 1, 0);

/** A store with five frames in two segments, and 51 chunks in them. */
async function filled(): Promise<{ readonly store: Store; readonly ends: readonly number[] }> {
  const { store } = await openMemory();
  const ends = await writeFrames(store, first, [chunks(0, 20), chunks(20, 1), chunks(21, 10)]);
  await writeFrames(store, second, [chunks(31, 15), chunks(46, 5)]);
  return { store, ends };
}

async function flip(store: Store, name: string, at: number): Promise<void> {
  const page = new Uint8Array(512);
  await store.readPages(name, at - (at % 512), page);
  page[at % 512] = (page[at % 512] ?? 0) ^ 0x10;
  await store.writePages(name, at - (at % 512), page, { sequenceNumber: 1 });
}

describe("the catalog", () => {
  test("finds every chunk of every frame, with one small read a frame and one more a segment", async () => {
    const { store } = await filled();
    await store.createPages(segmentName("c", 1, 0, 0), segmentBytes, 1);
    const { catalog, damage, reads } = await load(store);
    expect(damage).toEqual([]);
    expect(catalog.segmentCount).toBe(3);
    expect(catalog.index.count).toBe(51);
    expect(reads).toBe(collectionReads + 3 + 1 + (2 + 1) + 1);
    for (const value of [0, 19, 20, 30, 31, 50]) {
      const words = new Uint32Array(new Uint8Array(digestOf(value)).buffer);
      const place = { segment: 0, offset: 0, storedWord: 0 };
      expect(catalog.index.find(words, 0, place)).toBe(true);
      const payload = new Uint8Array(place.storedWord);
      await store.readPages(catalog.nameOf(place.segment), place.offset, payload);
      expect(payload).toEqual(randomBytes(place.storedWord, value));
    }
  });

  test("reads a segment that is full to its last page", async () => {
    const { store } = await openMemory();
    const name = segmentName("small", 1, 0, 0);
    const frame = sealFrame({ vaultId, segmentId: checksum(Buffer.from(name)), offset: 0 }, chunks(0, 3));
    await store.createPages(name, frame.length, 1);
    await store.writePages(name, 0, frame, { sequenceNumber: 1 });
    const { catalog, damage } = await load(store);
    expect([catalog.index.count, damage]).toEqual([3, []]);
  });

  test("from the cache equals the one from the frames, and reads none of them", async () => {
    const { store } = await filled();
    const fromFrames = await load(store, { folder });
    await fromFrames.catalog.save(folder, vaultId);
    const fromCache = await load(store, { folder });
    expect(fromCache.reads).toBe(collectionReads);
    expect(contentOf(fromCache.catalog)).toEqual(contentOf(fromFrames.catalog));
    expect(fromCache.catalog.segmentCount).toBe(2);
  });

  test("is saved once, and again only after a change", async () => {
    const { store } = await filled();
    const { catalog } = await load(store, { folder });
    await catalog.save(folder, vaultId);
    expect(await readdir(folder)).toEqual(["dedup-index"]);
    await rm(path.join(folder, "dedup-index"));
    await catalog.save(folder, vaultId);
    expect(await readdir(folder)).toEqual([]);
    catalog.add(segmentName("b", 1, 0, 0), "etag");
    await catalog.save(folder, vaultId);
    expect(await readdir(folder)).toEqual(["dedup-index"]);
  });

  test("ignores a cache of which any byte is wrong, that is cut short, or is another vault's", async () => {
    const { store } = await filled();
    const { catalog } = await load(store, { folder });
    await catalog.save(folder, vaultId);
    const file = path.join(folder, "dedup-index");
    const whole = await readFile(file);
    const expected = contentOf(catalog);
    const isIgnored = async (options: { readonly vaultId?: Uint8Array } = {}): Promise<void> => {
      const loaded = await load(store, { folder, ...options });
      expect(loaded.reads).toBeGreaterThan(0);
      if (options.vaultId === undefined) expect(contentOf(loaded.catalog)).toEqual(expected);
    };
    for (let at = 0; at < whole.length; at += 7) {
      const other = Buffer.from(whole);
      other[at] = (other[at] ?? 0) ^ (1 << (at % 8));
      await writeFile(file, other);
      await isIgnored();
    }
    for (const length of [0, 1, whole.indexOf(0x0a), whole.indexOf(0x0a) + 1, whole.length - 28, whole.length - 1]) {
      await writeFile(file, whole);
      await truncate(file, length);
      await isIgnored();
    }
    await writeFile(file, Buffer.concat([whole, Buffer.alloc(28)]));
    await isIgnored();
    await writeFile(file, whole);
    await isIgnored({ vaultId: foreignVaultId });
  });

  test("ignores a cache with a right checksum and a wrong shape", async () => {
    const file = path.join(folder, "dedup-index");
    const { store } = await filled();
    const { catalog } = await load(store, { folder });
    await catalog.save(folder, vaultId);
    const bytes = await readFile(file);
    const lineEnd = bytes.indexOf(0x0a);
    const header = JSON.parse(bytes.toString("utf8", 0, lineEnd)) as { readonly segments: readonly object[] };
    const shapes = [
      null,
      [],
      7,
      { ...header, segments: undefined },
      { ...header, segments: {} },
      { ...header, segments: [null] },
      { ...header, segments: [{ ...header.segments[0], name: "vault.json" }] },
      { ...header, segments: [{ ...header.segments[0], endBytes: -1 }] },
      { ...header, count: "1" },
    ];
    for (const text of ["no JSON", ...shapes.map((shape) => JSON.stringify(shape))]) {
      const line = Buffer.from(text);
      const sum = Buffer.alloc(4);
      const entries = bytes.subarray(lineEnd + 1, -4);
      sum.writeUInt32LE(crc32(entries, crc32(line)));
      await writeFile(file, Buffer.concat([line, Buffer.from("\n"), entries, sum]));
      const loaded = await load(store, { folder });
      expect(loaded.reads).toBeGreaterThan(collectionReads);
      expect(contentOf(loaded.catalog)).toEqual(contentOf(catalog));
    }
  });

  test("reads anew a segment whose ETag has changed, and only that", async () => {
    const { store, ends } = await filled();
    const { catalog } = await load(store, { folder });
    await catalog.save(folder, vaultId);
    const end = ends.at(-1) ?? 0;
    const added = sealFrame({ vaultId, segmentId: checksum(Buffer.from(first)), offset: end }, chunks(100, 4));
    await store.writePages(first, end, added, { sequenceNumber: 1 });
    const again = await load(store, { folder });
    expect(again.reads).toBe(collectionReads + 4 + 1);
    expect(again.catalog.index.count).toBe(55);
    expect(contentOf(again.catalog)).toEqual(contentOf((await load(store)).catalog));
  });

  test("forgets what the cache says of a segment that is gone", async () => {
    const { store } = await filled();
    const { catalog } = await load(store, { folder });
    await catalog.save(folder, vaultId);
    await store.sink.deleteObject(first);
    const again = await load(store, { folder });
    expect([again.catalog.index.count, again.catalog.segmentCount, again.reads]).toEqual([20, 1, collectionReads]);
  });

  test.each(["header", "table"])("keeps the frames before one whose %s is damaged, and tells of it", async (part) => {
    const { store, ends } = await filled();
    const [start = 0, end = 0] = ends;
    // The table of the second frame, of one chunk, begins behind header and 100 bytes of payload.
    await flip(store, first, part === "header" ? start + 30 : start + 128 + 104 + 3);
    const { catalog, damage } = await load(store);
    expect(damage).toMatchObject([{ code: "DAMAGED", message: expect.stringContaining(first) as string }]);
    expect(catalog.index.count).toBe(20 + 20);
    expect(end).toBeGreaterThan(start);
  });

  test("does not index a payload's damage away: payloads are proved by their digests when they are read", async () => {
    const { store } = await filled();
    await flip(store, first, 200);
    const { catalog, damage } = await load(store);
    expect([catalog.index.count, damage]).toEqual([51, []]);
  });

  test("takes no frame of another vault, nor one that was copied from another place", async () => {
    const { store } = await openMemory();
    await writeFrames(store, first, [chunks(0, 5)], foreignVaultId);
    await store.createPages(second, segmentBytes, 1);
    const misplaced = sealFrame({ vaultId, segmentId: checksum(Buffer.from(first)), offset: 0 }, chunks(0, 5));
    await store.writePages(second, 0, misplaced, { sequenceNumber: 1 });
    const { catalog, damage } = await load(store);
    expect(catalog.index.count).toBe(0);
    expect(damage.map(({ message }) => message).sort()).toMatchObject(
      [/another vault/, /another place/].map((fact) => expect.stringMatching(fact) as string),
    );
  });

  test("passes over objects that are no segments", async () => {
    const { store } = await filled();
    await store.putOnce("segments/readme", Buffer.from("hello"));
    expect((await load(store)).catalog.segmentCount).toBe(2);
  });

  test("does not take a store that cannot be reached for an empty one", async () => {
    const { sink, store } = await openMemory([
      { on: "readPages", when: 2, fault: { kind: "crash", effect: "before" } },
    ]);
    await writeFrames(store, first, [chunks(0, 3), chunks(3, 3)]);
    await expect(load(store)).rejects.toThrow("the process died");
    sink.assertAllFired();
  });
});

describe("the proof before a commit", () => {
  test("passes while everything referred to is there, whichever writer has appended since", async () => {
    const { store, ends } = await filled();
    const { catalog } = await load(store);
    const referred = new Set([0, 1]);
    await catalog.prove(store, referred, undefined);
    await store.writePages(first, ends.at(-1) ?? 0, new Uint8Array(512).fill(1), { sequenceNumber: 1 });
    await catalog.prove(store, referred, undefined);
  });

  test("finds a segment that is gone or shorter than it was, but minds none that is not referred to", async () => {
    const { memory, store } = await openMemory();
    await writeFrames(store, first, [chunks(0, 5)]);
    const earlier = memory.snapshot();
    const [end = 0] = await writeFrames(store, second, [chunks(5, 5)]);
    const { catalog } = await load(store);
    const ids = [0, 1].sort((a, b) => catalog.nameOf(a).localeCompare(catalog.nameOf(b)));
    const idOf = (name: string): number => ids.find((id) => catalog.nameOf(id) === name) ?? -1;
    const referred = new Set([idOf(first)]);
    memory.restore(earlier);
    await catalog.prove(store, referred, undefined);
    referred.add(idOf(second));
    const error = await expectCode(catalog.prove(store, referred, undefined), "STORE_REGRESSED");
    expect(error.detail).toEqual({ object: second, expectedBytes: end, foundBytes: 0 });
    await store.createPages(second, segmentBytes, 1);
    await expectCode(catalog.prove(store, referred, undefined), "STORE_REGRESSED");
  });

  test("asks for many segments in one listing, and finds the one that is gone", async () => {
    const { memory, store } = await openMemory();
    const names = Array.from({ length: 12 }, (_, index) => segmentName("disk", 1, 0, index));
    for (const name of names.slice(0, -1)) await writeFrames(store, name, [chunks(0, 1)]);
    const earlier = memory.snapshot();
    await writeFrames(store, names.at(-1) ?? "", [chunks(1, 1)]);
    const { catalog } = await load(store);
    const all = new Set(names.map((_, index) => index));
    await catalog.prove(store, all, undefined);
    memory.restore(earlier);
    const error = await expectCode(catalog.prove(store, all, undefined), "STORE_REGRESSED");
    expect(error.detail).toMatchObject({ object: names.at(-1) });
  });

  test("a chunk counts from when it is durable", async () => {
    const { catalog } = await load((await filled()).store);
    const id = catalog.add(segmentName("disk", 9, 0, 0), "etag");
    expect(catalog.isDurable(id, 128)).toBe(false);
    catalog.written(id, "etag", 4096);
    expect([catalog.isDurable(id, 128), catalog.isDurable(id, 4096)]).toEqual([true, false]);
  });
});
