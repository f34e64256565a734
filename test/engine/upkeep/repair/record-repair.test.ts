/**
 * What collections have written down comes back from the segments as it was, and while it is lost
 * no process writes the vault.
 */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { documentBytesMax } from "../../../../engine/store/format/documents.ts";
import { collectionName, type DeadDocument, deadPrefix, decodeDead } from "../../../../engine/store/format/reclaim.ts";
import { closeModelVaults, contentOf, modelSink } from "../../../model-disk.ts";
import { expectCode } from "../../../sink/expectations.ts";
import { ChurnedVault } from "../collection/churned-vault.ts";
import { type Tampering, tamperObject } from "../scrub/tamper.ts";

let churned: ChurnedVault;
beforeEach(async () => {
  churned = new ChurnedVault();
  // Blocks that are half zeros and cannot be compressed are stored with their zeros.
  churned.disk("a").bytes.fill(0, 8192, 12_288);
  for (let point = 0; point < 8; point += 1) {
    if (point > 0) churned.change("a", (point * 7) % 30, 6);
    await churned.replicate("a");
  }
  await churned.drop("a", [1, 2, 4, 5, 6]);
  await churned.collect();
});
afterEach(async () => {
  await closeModelVaults();
});

async function record(name: string): Promise<DeadDocument> {
  return decodeDead(
    (await (await modelSink(churned.plain)).getObject(name, documentBytesMax)).bytes,
    name,
    (await churned.vault()).id,
  );
}

function tamper(name: string, how: Tampering): void {
  tamperObject(churned.store, name, how, churned.store);
}

describe("a record of dead pages", () => {
  test("that is damaged ends collections and no writer, and is rebuilt with the same pages", async () => {
    const names = await churned.names(deadPrefix);
    expect(names.length).toBeGreaterThan(1);
    for (const name of names) {
      const before = await record(name);
      tamper(name, "flipped");
      await expectCode(churned.collect(), "DAMAGED");
      await churned.replicate("a");
      const vault = await churned.vault();
      expect((await vault.repair({ dryRun: true })).repaired).toMatchObject([
        { disk: null, object: name, kind: "record" },
      ]);
      expect(await vault.repair()).toMatchObject({ repaired: [{ object: name }], lost: [] });
      expect(await record(name)).toMatchObject({
        segment: before.segment,
        dead: before.dead,
        condemned: [],
        clearing: false,
      });
      expect((await vault.repair()).repaired).toEqual([]);
    }
    // Content whose chunks were given back is stored anew.
    churned.disk("a").bytes.set(contentOf(churned.disk("a").bytes.length, 1));
    await churned.replicate("a");
    await churned.collect();
    expect(await churned.check()).toBe(4 + names.length);
  });

  test("is used for the points of a head that is rebuilt in the same repair", async () => {
    const points = (await churned.points("a")).map(({ id }) => id);
    for (const name of await churned.names(deadPrefix)) tamper(name, "truncated");
    tamper("disks/a/head", "removed");
    const vault = await churned.vault();
    const tried = await vault.repair({ dryRun: true });
    const done = await vault.repair();
    expect(tried.points).toBe(points.length);
    expect([done.points, done.lost]).toEqual([points.length, tried.lost]);
    expect((await churned.points("a")).map(({ id }) => id)).toEqual(points);
    expect(await churned.check()).toBe(points.length);
  });

  test("of a later version is left to it, and named", async () => {
    const [name] = await churned.names(deadPrefix);
    assert(name !== undefined, "there is a record");
    tamper(name, "future");
    expect((await (await churned.vault()).repair()).lost).toMatchObject([{ disk: null, object: name }]);
  });
});

test.each(["removed", "flipped"] as const)(
  "a collection's id that is %s is replaced, so that no writer refers to what was given back",
  async (how) => {
    tamper(collectionName, how);
    const vault = await churned.vault();
    expect((await vault.repair({ dryRun: true })).repaired).toMatchObject([{ object: collectionName, kind: "record" }]);
    expect((await vault.repair()).repaired).toMatchObject([{ object: collectionName }]);
    expect((await vault.repair()).repaired).toEqual([]);
    churned.disk("a").bytes.set(contentOf(churned.disk("a").bytes.length, 1));
    await churned.replicate("a");
    expect(await churned.check()).toBe(4);
  },
);
