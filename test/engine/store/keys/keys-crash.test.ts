/**
 * A change of keys that dies, or hears no answer, at any call of the store: the vault opens with what
 * opened it before or with what was to open it, reads everything, and the next session leaves
 * `vault.json` and its copy equal.
 */
import { afterEach, expect, test } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import { Vault } from "../../../../engine/vault.ts";
import { CrashError, type Fault, FaultySink } from "../../../../sink/faults.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { sampleOf } from "../../../depth.ts";
import { encryptedFor, testKeyPair } from "../../../encrypted.ts";
import { closeModelVaults, contentOf, ModelDisk, openModelVault } from "../../../model-disk.ts";

const encrypted = encryptedFor(testKeyPair());
const added = testKeyPair();
const changes = {
  rotate: async (vault: Vault) => await vault.keys.rotate(),
  add: async (vault: Vault) => await vault.keys.add({ certificates: [{ pem: added.publicKey, name: "added" }] }),
  remove: async (vault: Vault) => await vault.keys.remove("second"),
};
const faults: readonly Fault[] = [
  { kind: "crash", effect: "before" },
  { kind: "crash", effect: "after" },
  { kind: "unacknowledged" },
];

afterEach(async () => {
  await closeModelVaults();
});

test.for(Object.entries(changes))(
  "%s at any call leaves a vault that opens, and a copy that is put right",
  async ([, change]) => {
    const store = new MemoryStore();
    const connect = (): MemorySink => new MemorySink({ store });
    const vault = await openModelVault(connect(), encrypted);
    await vault.keys.add({ certificates: [{ pem: testKeyPair().publicKey, name: "second" }] });
    const disk = new ModelDisk(contentOf(50_000, 1));
    await vault.replicate({ disk: "d", volume: disk });
    const before = store.snapshot();

    const changed = async (sink: FaultySink): Promise<void> => {
      await using opened = await Vault.open(sink, { workers: 1, keys: encrypted.keys });
      await change(opened);
    };
    const counted = new FaultySink(connect(), []);
    await changed(counted);
    const all = counted.calls.map((_, index) => index + 1);
    expect(all.length).toBeGreaterThan(4);
    for (const when of sampleOf(all, 4))
      for (const fault of faults) {
        if (fault.kind === "unacknowledged" && !(counted.calls[when - 1] ?? "").startsWith("put")) continue;
        store.restore(before);
        await changed(new FaultySink(connect(), [{ on: "any", when, fault }])).catch((error: unknown) => {
          if (!(error instanceof CrashError || error instanceof TidemarkError)) throw error;
        });
        const again = await openModelVault(connect(), { keys: encrypted.keys });
        await again.replicate({ disk: "d", volume: disk });
        const [first, copy] = ["vault.json", "copy/vault.json"].map((name) => store.objects?.get(name));
        expect(first?.kind === "object" && copy?.kind === "object" && Buffer.from(copy.bytes).equals(first.bytes)).toBe(
          true,
        );
        expect((await again.verify()).damaged).toEqual([]);
      }
  },
);
