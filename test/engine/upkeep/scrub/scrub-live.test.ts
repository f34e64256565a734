/**
 * A vault whose disk is protected heals from the disk itself, also what the disk's writer has still
 * open.
 */
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, expect, test } from "vitest";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { closeModelVaults, contentOf, openModelVault } from "../../../model-disk.ts";
import { contentOfSegments, expectRestored, invert } from "./damaged-vault.ts";

let folder: string;
beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), "scrub-"));
});
afterEach(async () => {
  await closeModelVaults();
  rmSync(folder, { recursive: true });
});

test("what a protected disk still holds is healed, and its points go on", async () => {
  const store = new MemoryStore();
  const vault = await openModelVault(new MemorySink({ store }));
  const image = join(folder, "web.img");
  writeFileSync(image, contentOf(200_704, 1));
  const policy = { crashConsistentFrequencyMs: 1000 };
  const protection = await vault.protect({ disk: "web", image, stateFolder: folder, policy });
  await protection.point();
  await protection.device.write(8192, contentOf(4096, 7));
  await protection.point();
  const [segment] = [...contentOfSegments(store).keys()];
  const whole = contentOfSegments(store);
  invert(store, segment ?? "", 100_000, 2000);
  const { damaged, healed } = await vault.scrub();
  expect(damaged).toEqual([]);
  expect(healed.length).toBeGreaterThan(0);
  await expectRestored(vault, store, whole);
  await protection.device.write(40_960, contentOf(4096, 8));
  await protection.point();
  expect((await vault.verify({ disk: "web" })).damaged).toEqual([]);
  expect(protection.status().findings).toEqual([]);
  await protection.stop({ drain: false });
});

test("a segment that is lost under its writer's hands is made anew once the writer has released its lease, and points go on", async () => {
  const store = new MemoryStore();
  const vault = await openModelVault(new MemorySink({ store }));
  const image = join(folder, "web.img");
  writeFileSync(image, contentOf(200_704, 1));
  const protection = await vault.protect({
    disk: "web",
    image,
    stateFolder: folder,
    policy: { crashConsistentFrequencyMs: 1000 },
  });
  await protection.point();
  const [segment = ""] = [...contentOfSegments(store).keys()];
  store.objects?.delete(segment);
  expect((await vault.scrub()).damaged).toEqual([]);
  expect(store.objects?.has(segment)).toBe(true);
  expect((await vault.scrub()).damaged).toEqual([]);
  await protection.device.write(40_960, contentOf(4096, 8));
  await protection.point();
  expect((await vault.verify({ disk: "web" })).damaged).toEqual([]);
  await protection.stop({ drain: false });
  await vault.collect();
  expect((await vault.verify({ disk: "web" })).damaged).toEqual([]);
});
