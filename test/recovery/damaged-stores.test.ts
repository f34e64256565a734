/**
 * Bytes of a real vault, in a folder and in an Azurite, are flipped, zeroed and cut off at random places: a scrub finds all of it, names the very points and
 * extents, and heals what the disk still holds.
 */
import { mkdtempSync, rmSync, truncateSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { readManifest } from "../../engine/control/session.ts";
import type { Damage } from "../../engine/control/summaries.ts";
import type { Vault } from "../../engine/control/vault.ts";
import { fromHex } from "../../engine/format/checksum.ts";
import { storedLength } from "../../engine/format/frame.ts";
import { parseSegmentName } from "../../engine/format/names.ts";
import { granuleBytes } from "../../engine/limits.ts";
import { PointMap, pieceIsZero } from "../../engine/map/point-map.ts";
import type { Sink } from "../../engine/sink.ts";
import { Store } from "../../engine/store.ts";
import { openSink } from "../../sink/index.ts";
import { numbersFrom } from "../engine-model.ts";
import { closeModelVaults, committedPoints, contentOf, Expected, ModelDisk, openModelVault, replicateNoted } from "../model-disk.ts";

const sizeBytes = 400_000;
const pageBytes = 512;

interface Spoiled {
  readonly segment: string;
  readonly from: number;
  readonly end: number;
}

let folder: string;
let sink: Sink;
let vault: Vault;
let disk: ModelDisk;
let expected: Expected;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "damaged-"));
});
afterEach(async () => {
  await closeModelVaults();
  await sink[Symbol.asyncDispose]();
  rmSync(folder, { recursive: true });
});

/** Three points of a disk that still holds all that any of them needs. */
async function open(kind: "dir" | "azurite"): Promise<void> {
  sink = await openSink(`${kind}:${join(folder, "vault")}`);
  vault = await openModelVault(sink);
  disk = new ModelDisk(Buffer.alloc(sizeBytes));
  expected = new Expected("d");
  for (const part of [0, 1, 2]) {
    contentOf(120_000, part + 1).copy(disk.bytes, part * 131_072);
    await replicateNoted(vault, sink, expected, disk);
  }
}

async function segments(): Promise<readonly { readonly name: string; readonly writtenBytes: number }[]> {
  const found: { readonly name: string; readonly writtenBytes: number }[] = [];
  for await (const { name } of sink.list("segments/")) {
    if (parseSegmentName(name) !== undefined) found.push({ name, writtenBytes: (await sink.statPages(name)).writtenBytes });
  }
  return found.sort((a, b) => a.name.localeCompare(b.name));
}

/** Spoils some ranges, as a store that lies does: without anybody's leave. Returns what has another value now. */
async function spoil(seed: number, count: number): Promise<readonly Spoiled[]> {
  const next = numbersFrom(seed);
  const spoiled: Spoiled[] = [];
  const all = await segments();
  for (let index = 0; index < count; index += 1) {
    const { name, writtenBytes } = all[next() % all.length] ?? { name: "", writtenBytes: 1 };
    const from = next() % writtenBytes;
    const end = Math.min(from + 1 + (next() % 2_000), writtenBytes);
    const firstPage = from - (from % pageBytes);
    const pages = new Uint8Array(Math.ceil(end / pageBytes) * pageBytes - firstPage);
    await sink.readPages(name, firstPage, pages);
    const before = pages.slice();
    for (let at = from; at < end; at += 1) pages[at - firstPage] = index % 2 === 0 ? (before[at - firstPage] ?? 0) ^ 0xff : 0;
    const { sequenceNumber } = await sink.statPages(name);
    await sink.writePages(name, firstPage, pages, { sequenceNumber });
    for (let at = from; at < end; at += 1) {
      if (pages[at - firstPage] !== before[at - firstPage]) spoiled.push({ segment: name, from: at, end: at + 1 });
    }
  }
  return spoiled;
}

/** Which granules of which points cannot be right any more: those that are shown of a chunk with a spoiled byte. */
async function concerned(spoiled: readonly Spoiled[]): Promise<ReadonlySet<string>> {
  const granules = new Set<string>();
  const store = new Store(sink);
  for (const point of await committedPoints(sink, "d")) {
    const map = new PointMap(store, fromHex(vault.id), "d", await readManifest(store, vault.id, "d", point, undefined));
    const pieces = await map.window(0, map.granules);
    for (let piece = 0; piece < pieces.count; piece += 1) {
      const leaf = pieces.leaves[piece];
      if (leaf === undefined || pieceIsZero(pieces, piece)) continue;
      const entry = pieces.entries[piece] ?? 0;
      const [from, length] = [leaf.offsets[entry] ?? 0, storedLength(leaf.storedWords[entry] ?? 0)];
      const name = leaf.names[leaf.segments[entry] ?? 0];
      if (!spoiled.some((byte) => byte.segment === name && byte.from >= from && byte.from < from + length)) continue;
      const start = pieces.starts[piece] ?? 0;
      for (let granule = start; granule < start + (pieces.lengths[piece] ?? 0); granule += 1) {
        granules.add(`${String(point.sequence)} ${String(granule)}`);
      }
    }
  }
  return granules;
}

function named(damages: readonly Damage[]): ReadonlySet<string> {
  const granules = new Set<string>();
  for (const { sequence, extent } of damages) {
    if (extent === null) continue;
    for (let at = extent.offset; at < extent.offset + extent.length; at += granuleBytes) {
      granules.add(`${String(sequence)} ${String(at / granuleBytes)}`);
    }
  }
  return granules;
}

describe.each(["dir", "azurite"] as const)("a vault in %s", (kind) => {
  test("that is damaged at random places is healed from its disk, and every damage named", async () => {
    await open(kind);
    for (const seed of [1, 2, 3]) {
      const spoiled = await spoil(seed, 6);
      const wanted = await concerned(spoiled);
      expect(wanted.size, `seed ${String(seed)}`).toBeGreaterThan(0);
      const found = await vault.scrub();
      expect([...named(found.damaged)].sort(), `seed ${String(seed)}`).toEqual([...wanted].sort());
      const healed = await vault.scrub({ sources: new Map([["d", disk]]) });
      expect(named(healed.damaged).size, `seed ${String(seed)}`).toBe(0);
      await expected.check(sink);
    }
    expect((await vault.verify()).damaged).toEqual([]);
  }, 30_000);
});

test("a segment that is cut short in a folder is named with all that it held, and nothing is made up", async () => {
  await open("dir");
  const [first] = await segments();
  truncateSync(join(folder, "vault", `${first?.name ?? ""}@pages`), 20_000);
  await closeModelVaults();
  vault = await openModelVault(sink);
  const { damaged } = await vault.scrub({ sources: new Map([["d", disk]]) });
  expect([...new Set(damaged.map(({ sequence }) => sequence))].sort()).toEqual([1, 2, 3]);
  for (const { object, message } of damaged) {
    expect(object).toBe(first?.name);
    expect(message).toContain("could not be healed");
  }
});
