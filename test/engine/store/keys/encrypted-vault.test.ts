/** Encrypted vaults, as a client of the engine sees them. */
import { afterEach, expect, it } from "vitest";
import { hasCode } from "../../../../engine/errors.ts";
import { Vault } from "../../../../engine/vault.ts";
import { MemorySink } from "../../../../sink/memory.ts";
import { encryptedFor, testKeyPair } from "../../../encrypted.ts";
import { closeModelVaults, ModelDisk, openModelVault, sampleDisk, scribble } from "../../../model-disk.ts";

afterEach(closeModelVaults);

const pair = testKeyPair();
const encrypted = encryptedFor(pair);

it("gives back what was replicated", async () => {
  const sink = new MemorySink();
  const disk = sampleDisk(1_000_000, 1);
  const vault = await openModelVault(sink, encrypted);
  await vault.replicate({ disk: "a", volume: disk });
  scribble(disk, 2);
  await vault.replicate({ disk: "a", volume: disk });
  const again = await openModelVault(sink, { keys: encrypted.keys });
  const point = await again.openPoint({ disk: "a", point: "latest" });
  const into = Buffer.alloc(disk.bytes.length);
  await point.read(0, into);
  expect(into.equals(disk.bytes)).toBe(true);
  expect((await again.verify()).damaged).toEqual([]);
});
