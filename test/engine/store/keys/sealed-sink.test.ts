/** Objects of an encrypted vault keep the contract of the store below. */
import { describe, test } from "vitest";
import { SealedSink } from "../../../../engine/store/keys/sealed-sink.ts";
import { generationOf, VaultKeys } from "../../../../engine/store/keys/vault-keys.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { sinkConformance } from "../../../../sink/testing.ts";

let nowMs = 1_000_000;
const vaultId = Buffer.alloc(16, 1);
const keys = new VaultKeys(vaultId, [generationOf(Buffer.alloc(32, 2), vaultId)]);

/** It lists a page object that is no segment: its size is told as if it was sealed. A vault has none. */
const besidesVaults = "names everything under a prefix, also one that ends inside a part, with size and ETag";

describe("SealedSink keeps the contract of", () => {
  const checks = sinkConformance(
    async () => {
      const store = new MemoryStore();
      const clock = (): number => nowMs;
      const open = (of = store): SealedSink => new SealedSink(new MemorySink({ store: of, clock }), keys);
      const a = open();
      await a.createContainer();
      return { a, b: open(), absent: open(new MemoryStore()), cleanup: () => a[Symbol.asyncDispose]() };
    },
    {
      advanceMs: (ms) => {
        nowMs += ms;
      },
    },
  );
  for (const { group, name, run } of checks) if (name !== besidesVaults) test([...group, name].join(" > "), run);
});
