/** Space accounting against a model that reads every point's map and keeps every chunk in a set. */
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { hasCode } from "../../../../engine/errors.ts";
import { fromHex } from "../../../../engine/store/format/checksum.ts";
import { storedLength } from "../../../../engine/store/format/frame.ts";
import { headName } from "../../../../engine/store/format/names.ts";
import { PointMap, pieceIsZero } from "../../../../engine/store/map/point-map.ts";
import { readManifest } from "../../../../engine/store/points/manifest.ts";
import type { SpaceCounts } from "../../../../engine/upkeep/collection/vault-stats.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import { closeModelVaults, modelStore, watched } from "../../../model-disk.ts";
import { ChurnedVault } from "./churned-vault.ts";

let churned: ChurnedVault;
beforeEach(() => {
  churned = new ChurnedVault();
});
afterEach(async () => {
  await closeModelVaults();
});

/** What the points of these disks must take, without metadata. */
async function modelOf(...disks: readonly string[]): Promise<Omit<SpaceCounts, "metadataBytes">> {
  const { id } = await churned.vault();
  const store = await modelStore(churned.plain);
  const chunks = new Map<string, { readonly plain: number; readonly stored: number }>();
  const model = { points: 0, logicalBytes: 0, uniqueBytes: 0, storedBytes: 0 };
  for (const disk of disks) {
    for (const point of await churned.points(disk)) {
      model.points += 1;
      model.logicalBytes += point.volumeBytes;
      const map = new PointMap(store, fromHex(id), disk, await readManifest(store, id, disk, point, undefined));
      const pieces = await map.window(0, map.granules);
      for (let piece = 0; piece < pieces.count; piece += 1) {
        const leaf = pieces.leaves[piece];
        const entry = pieces.entries[piece] ?? 0;
        if (leaf === undefined || pieceIsZero(pieces, piece)) continue;
        const place = `${String(leaf.names[leaf.segments[entry] ?? 0])} ${String(leaf.offsets[entry])}`;
        chunks.set(place, {
          plain: ((leaf.chunkLengths[entry] ?? 0) + 1) * 4096,
          stored: storedLength(leaf.storedWords[entry] ?? 0),
        });
      }
    }
  }
  for (const { plain, stored } of chunks.values()) {
    model.uniqueBytes += plain;
    model.storedBytes += stored;
  }
  return model;
}

async function churn(): Promise<void> {
  for (let point = 0; point < 8; point += 1) {
    // Disks that begin alike share chunks.
    for (const disk of ["a", "b"]) {
      if (point > 0) churned.change(disk, (point * 7) % 30, 6, disk === "b" && point > 4 ? 7 : undefined);
      if (point === 5) churned.disk(disk).bytes.fill(0, 0, 5 * 4096);
      await churned.replicate(disk);
    }
  }
}

describe("the stats of a vault", () => {
  test("count each chunk once for a disk and once in all, as a model does", async () => {
    await churn();
    const stats = await (await churned.vault()).stats();
    expect(stats.disks.map(({ disk }) => disk)).toEqual(["a", "b"]);
    expect(stats.disks[0]).toMatchObject(await modelOf("a"));
    expect(stats.disks[1]).toMatchObject(await modelOf("b"));
    expect(stats).toMatchObject(await modelOf("a", "b"));
    const [a, b] = stats.disks;
    expect(stats.uniqueBytes).toBeLessThan((a?.uniqueBytes ?? 0) + (b?.uniqueBytes ?? 0));
    expect(stats.storedBytes).toBeLessThan(stats.uniqueBytes);
  });

  test("count no chunk of points that were dropped, before and after a collection", async () => {
    await churn();
    await churned.drop("a", [1, 2, 3, 6]);
    const stats = await (await churned.vault()).stats();
    expect(stats).toMatchObject(await modelOf("a", "b"));
    await churned.collect();
    const { metadataBytes, ...after } = await (await churned.vault()).stats();
    expect(after).toMatchObject(await modelOf("a", "b"));
    expect(metadataBytes).not.toBe(stats.metadataBytes);
  });

  test("count every object that is no segment as metadata, for its disk and in all", async () => {
    await churn();
    const { metadataBytes, disks } = await (await churned.vault()).stats();
    const sizes = { all: 0, a: 0 };
    for await (const { name, sizeBytes } of (await modelStore(churned.plain)).list("")) {
      if (!name.startsWith("segments/")) sizes.all += sizeBytes;
      if (name.startsWith("disks/a/")) sizes.a += sizeBytes;
    }
    expect(metadataBytes).toBe(sizes.all);
    expect(disks[0]?.metadataBytes).toBe(sizes.a);
  });

  test("of an empty vault are zeros but for what the vault itself takes", async () => {
    const stats = await (await churned.vault()).stats();
    expect(stats).toMatchObject({ points: 0, logicalBytes: 0, uniqueBytes: 0, storedBytes: 0, disks: [] });
    expect(stats.metadataBytes).toBeGreaterThan(0);
  });

  describe("look again when a point is pruned and collected meanwhile", () => {
    /** A vault from which a point goes at the first look at a manifest; tells whether it has gone. */
    const churnedMeanwhile = async (): Promise<() => boolean> => {
      await churn();
      let isPruned = false;
      churned.through(
        watched(churned.plain, (method, name) => {
          if (isPruned || method !== "getObject" || !name.startsWith("disks/a/points/")) return;
          isPruned = true;
          churned.store.restore(pruned);
        }),
      );
      const start = churned.store.snapshot();
      await churned.drop("a", [1]);
      await churned.collect();
      const pruned = churned.store.snapshot();
      churned.store.restore(start);
      isPruned = false;
      return () => isPruned;
    };

    test("to count", async () => {
      const isPruned = await churnedMeanwhile();
      expect(await (await churned.vault()).stats()).toMatchObject(await modelOf("a", "b"));
      expect(isPruned()).toBe(true);
    });

    test("to say what a prune would free", async () => {
      const isPruned = await churnedMeanwhile();
      const vault = await churned.vault();
      const foreseen = async (): Promise<number | null> =>
        (await vault.prune({ policy: parsePolicy("days:0"), dryRun: true })).freedBytes;
      const freedBytes = await foreseen();
      expect(isPruned()).toBe(true);
      expect(freedBytes).not.toBeNull();
      expect(freedBytes).toBe(await foreseen());
    });
  });

  test("end with DAMAGED when a head cannot be read", async () => {
    await churn();
    const { etag } = await churned.plain.statObject(headName("a"));
    await churned.plain.putObject(headName("a"), new Uint8Array(7), { ifMatch: etag });
    const outcome = await (await churned.vault()).stats().catch((error: unknown) => error);
    expect(hasCode(outcome, "DAMAGED")).toBe(true);
  });
});
