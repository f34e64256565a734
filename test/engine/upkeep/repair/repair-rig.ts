/** A vault in memory with one disk, whose points are to be lost and repaired. */

import type { Sink } from "../../../../engine/sink.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { contentOf, Expected, ModelDisk, openModelVault, redirected, replicateNoted } from "../../../model-disk.ts";

export interface RepairRig {
  readonly store: MemoryStore;
  readonly line: { current: Sink };
  readonly vault: Vault;
  readonly disk: ModelDisk;
  readonly expected: Expected;
  /**
   * Takes points that each have a granule of their own, and some of them zeros; from the 16th on
   * runs have been merged.
   */
  readonly takePoints: (count: number) => Promise<void>;
}

export async function openRepairRig(): Promise<RepairRig> {
  const store = new MemoryStore();
  const line: RepairRig["line"] = { current: new MemorySink({ store }) };
  const vault = await openModelVault(redirected(line));
  const disk = new ModelDisk(contentOf(100_000, 1));
  const expected = new Expected("d");
  const takePoints = async (count: number): Promise<void> => {
    for (let point = 0; point < count; point += 1) {
      if (point > 0) contentOf(4096, 100 + point).copy(disk.bytes, ((point * 5) % 24) * 4096);
      if (point % 5 === 4) disk.bytes.fill(0, 8192, 16_384);
      await replicateNoted(vault, line.current, expected, disk);
    }
  };
  return { store, line, vault, disk, expected, takePoints };
}
