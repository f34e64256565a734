/**
 * Bytes of a real vault, in a folder and in an Azurite, are flipped, zeroed and cut off at random
 * places: a scrub finds all of it, names the very points and extents, and heals what the disk still
 * holds.
 */

import { open as openFile, truncate } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { granuleBytes } from "../../../../engine/limits.ts";
import type { Sink } from "../../../../engine/sink.ts";
import { fromHex } from "../../../../engine/store/format/checksum.ts";
import { storedLength } from "../../../../engine/store/format/frame.ts";
import { PointMap, pieceIsZero } from "../../../../engine/store/map/point-map.ts";
import { readManifest } from "../../../../engine/store/points/manifest.ts";
import type { Damage } from "../../../../engine/upkeep/scrub/damage.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { openSink } from "../../../../sink/index.ts";
import { byDepth } from "../../../depth.ts";
import { numbersFrom } from "../../../engine-model.ts";
import {
  closeModelVaults,
  committedPoints,
  contentOf,
  Expected,
  ModelDisk,
  modelStore,
  openModelVault,
  replicateNoted,
} from "../../../model-disk.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";
import { type Damaging, type SpoiledRange, sprinkle, writtenSegments } from "./damaged-vault.ts";

const sizeBytes = 400_000;

let folder: string;
let sink: Sink;
let vault: Vault;
let disk: ModelDisk;
let expected: Expected;
beforeEach(() => {
  folder = createFolder("damaged");
});
afterEach(async () => {
  await closeModelVaults();
  await sink[Symbol.asyncDispose]();
  await removeFolder(folder);
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

/**
 * Damage that follows from the seed alone: bytes here and there, and a segment that is cut short
 * and another one that is gone.
 */
function damagesOf(seed: number): readonly Damaging[] {
  const next = numbersFrom(seed);
  const hows = ["inverted", "zeroed", "inverted", "cut", "removed", "zeroed"] as const;
  return hows.map((how) => ({ segment: next(), at: (next() % 1000) / 1000, length: 1 + (next() % 2_000), how }));
}

/** In a folder a file really ends. */
function cutOf(kind: "dir" | "azurite"): ((name: string, length: number) => Promise<void>) | undefined {
  if (kind === "azurite") return undefined;
  return async (name, length) => {
    await truncate(join(folder, "vault", `${name}@pages`), 4096 + length);
  };
}

/**
 * Which granules of which points cannot be right any more: those that are shown of a chunk with a
 * spoiled byte.
 */
async function concerned(spoiled: readonly SpoiledRange[]): Promise<ReadonlySet<string>> {
  const granules = new Set<string>();
  const store = await modelStore(sink);
  for (const point of await committedPoints(sink, "d")) {
    const map = new PointMap(store, fromHex(vault.id), "d", await readManifest(store, vault.id, "d", point, undefined));
    const pieces = await map.window(0, map.granules);
    for (let piece = 0; piece < pieces.count; piece += 1) {
      const leaf = pieces.leaves[piece];
      if (leaf === undefined || pieceIsZero(pieces, piece)) continue;
      const entry = pieces.entries[piece] ?? 0;
      const [from, length] = [leaf.offsets[entry] ?? 0, storedLength(leaf.storedWords[entry] ?? 0)];
      const name = leaf.names[leaf.segments[entry] ?? 0];
      if (!spoiled.some((range) => range.segment === name && range.from < from + length && range.end > from)) continue;
      const start = pieces.starts[piece] ?? 0;
      for (let granule = start; granule < start + (pieces.lengths[piece] ?? 0); granule += 1) {
        granules.add(`${String(point.sequence)} ${String(granule)}`);
      }
    }
  }
  return granules;
}

async function pagesOf({
  name,
  writtenBytes,
}: {
  readonly name: string;
  readonly writtenBytes: number;
}): Promise<Buffer> {
  const bytes = Buffer.alloc(writtenBytes);
  await sink.readPages(name, 0, bytes);
  return bytes;
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

describe.each(byDepth<readonly ("dir" | "azurite")[]>(["dir"], ["dir", "azurite"]))("a vault in %s", (kind) => {
  test("that is damaged at random places is healed from its disk, and every damage named", async () => {
    await open(kind);
    for (const seed of byDepth([1], [1, 2, 3])) {
      const spoiled = await sprinkle(sink, damagesOf(seed), cutOf(kind));
      const wanted = await concerned(spoiled);
      expect(wanted.size, `seed ${String(seed)}`).toBeGreaterThan(0);
      const found = await vault.scrub();
      expect([...named(found.damaged)].sort(), `seed ${String(seed)}`).toEqual([...wanted].sort());
      const healed = await vault.scrub({ sources: new Map([["d", disk]]) });
      expect(named(healed.damaged).size, `seed ${String(seed)}`).toBe(0);
      await expected.check(sink);
    }
    expect((await vault.verify()).damaged).toEqual([]);
    expect(await vault.collect()).toMatchObject({ waitingFor: [] });
    await expected.check(sink);
  });
});

test("a file whose header is gone is restored, and its pages are what they were", async () => {
  await open("dir");
  const [first = { name: "", writtenBytes: 0 }] = await writtenSegments(sink);
  await closeModelVaults();
  const file = join(folder, "vault", `${first.name}@pages`);
  const before = await pagesOf(first);
  const handle = await openFile(file, "r+");
  await handle.write(Buffer.alloc(512), 0, 512, 0);
  await handle.close();
  vault = await openModelVault(sink);
  expect((await vault.scrub()).damaged).toEqual([]);
  await expected.check(sink);
  expect((await pagesOf(first)).equals(before)).toBe(true);
});
