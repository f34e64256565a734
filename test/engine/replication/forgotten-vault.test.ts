/**
 * The store forgets the whole vault under an open one, and may meanwhile have been given another.
 */

import { expect, test } from "vitest";
import { Vault } from "../../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../../sink/memory.ts";
import { modelEncryption } from "../../encrypted.ts";
import { closeModelVaults, openModelVault, sampleDisk } from "../../model-disk.ts";

test("a vault in whose place there is another one is not written to, and no disk of it is made", async () => {
  const store = new MemoryStore();
  const sink = new MemorySink({ store });
  const empty = store.snapshot();
  const disk = sampleDisk(150_000, 1);
  const vault = await openModelVault(sink);
  await vault.replicate({ disk: "d", volume: disk });
  store.restore(empty);
  const other = await Vault.create(sink, modelEncryption);
  await expect(vault.replicate({ disk: "d", volume: disk })).rejects.toMatchObject({ code: "STORE_REGRESSED" });
  expect(await other.disks()).toEqual([]);
  await other.close();
  await closeModelVaults();
});

test("a container that is gone is a store that went back in time", async () => {
  const store = new MemoryStore();
  const sink = new MemorySink({ store });
  const empty = store.snapshot();
  const disk = sampleDisk(150_000, 1);
  const vault = await openModelVault(sink);
  store.restore(empty);
  await expect(vault.replicate({ disk: "d", volume: disk })).rejects.toMatchObject({ code: "STORE_REGRESSED" });
  await closeModelVaults();
});
