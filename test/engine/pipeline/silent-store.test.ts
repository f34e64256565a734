/** A store that falls silent holds up its own vault, and no other of the process. */
import { randomFillSync } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, expect, test } from "vitest";
import { FaultySink, Gate } from "../../../sink/faults.ts";
import { MemorySink } from "../../../sink/memory.ts";
import { closeModelVaults, ModelDisk, openModelVault } from "../../model-disk.ts";

// A number that no other test file uses, so that no vault of theirs has slabs.
const workers = 5;
/** More than slabs and lanes hold together. */
const diskBytes = 64 * 2 ** 20;

afterAll(async () => {
  await closeModelVaults();
});

test("the disks of one vault are replicated while the store of another answers nothing", async () => {
  const gate = new Gate();
  const silent = new FaultySink(new MemorySink(), [
    { on: "writePages", when: { probability: 1 }, fault: { kind: "slow", gate } },
  ]);
  const options = { workers, lanes: 2, blockBytes: 65_536 };
  const [stuck, sound] = [await openModelVault(silent, options), await openModelVault(new MemorySink(), options)];
  const small = new ModelDisk(randomFillSync(Buffer.alloc(65_536)));
  // Both vaults are at work from here on.
  await sound.replicate({ disk: "small", volume: small });
  const ended = stuck.replicate({ disk: "large", volume: new ModelDisk(randomFillSync(Buffer.alloc(diskBytes))) });
  await gate.reached;
  await delay(300); // until its cycle has leased what it may
  randomFillSync(small.bytes);
  expect(await sound.replicate({ disk: "small", volume: small })).toMatchObject({ sequence: 2 });
  gate.open();
  await ended;
});
