/**
 * The model against what it models: the same writes are profiled by scans and replicated into a
 * vault, and what the plan says is held against what the vault was sent and what it holds.
 */

import { closeSync, ftruncateSync, openSync, writeSync } from "node:fs";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { readLoad } from "../../../cli/capacity/load.ts";
import { planCapacity } from "../../../cli/capacity/plan.ts";
import { ProfileWriter } from "../../../cli/capacity/profile-file.ts";
import { scanProbe } from "../../../cli/capacity/profiler.ts";
import { Shipping } from "../../../cli/capacity/shipping.ts";
import { ChangeTracker, FileVolume, parsePolicy, Vault } from "../../../engine/index.ts";
import { MemorySink } from "../../../sink/memory.ts";
import { byDepth } from "../../depth.ts";
import { modelEncryption } from "../../encrypted.ts";
import { numbersFrom, randomBytes } from "../../engine-model.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";

const granule = 4096;
const slotMs = 30_000;
const never: AbortSignal = new AbortController().signal;

/** What is written in a slot: where, and how much of each granule is random. */
interface Writes {
  readonly name: string;
  readonly granulesASlot: number;
  /** Higher: more of the writes go to fewer granules. */
  readonly skew: number;
  readonly randomBytes: number;
}

const loads: readonly Writes[] = [
  { name: "scattered over the disk", granulesASlot: byDepth(150, 750), skew: 1, randomBytes: 1_500 },
  { name: "mostly to a few places", granulesASlot: byDepth(300, 1_500), skew: 6, randomBytes: 3_000 },
];

test.each(loads)(
  "what a plan says of writes $name is within 15 % of what a real run ships and stores",
  async ({ granulesASlot, skew, randomBytes: noise }) => {
    const granules = byDepth(2_048, 16_384);
    const slots = byDepth(10, 24);
    const cycleSlots = 2;
    const kept = 4;
    const folder = createFolder("capacity");
    onTestFinished(async () => await removeFolder(folder));
    const image = join(folder, "disk.img");
    const next = numbersFrom(7);
    const write = (fd: number, at: number): void => {
      const bytes = Buffer.alloc(granule, `granule ${at} `);
      bytes.set(randomBytes(noise, next()));
      writeSync(fd, bytes, 0, granule, at * granule);
    };
    const fd = openSync(image, "w+");
    onTestFinished(() => closeSync(fd));
    ftruncateSync(fd, granules * granule);
    for (let at = 0; at < granules; at += 2) write(fd, at);

    const newVault = async (name: string): Promise<Vault> => {
      const vault = await Vault.create(new MemorySink(), {
        stateFolder: join(folder, name),
        workers: 1,
        ...modelEncryption,
      });
      onTestFinished(async () => await vault.close());
      return vault;
    };
    const vault = await newVault("state");
    const volume = await FileVolume.open(image);
    onTestFinished(async () => await volume.close());
    const tracker = new ChangeTracker(granules * granule);
    const replicate = async (): Promise<number> => {
      const point = await vault.replicate({ disk: "d", volume, changes: tracker });
      return point.storedBytes + point.metadataBytes;
    };

    const profilePath = join(folder, "disk.profile");
    const writer = await ProfileWriter.open(profilePath);
    let nowMs = Date.UTC(2026, 0, 1);
    const probe = await scanProbe(image, never, { everyMs: slotMs, now: () => nowMs });
    const sample = async (): Promise<void> => {
      for (const line of await probe.lines(never)) await writer.append(line);
      nowMs += slotMs;
    };
    await sample();
    await replicate();
    const shipped: number[] = [];
    for (let slot = 1; slot <= slots; slot += 1) {
      for (let count = 0; count < granulesASlot; count += 1) {
        const at = Math.floor((next() / 2 ** 32) ** skew * granules);
        tracker.markDirty([{ offset: at * granule, length: granule }]);
        write(fd, at);
      }
      await sample();
      if (slot % cycleSlots === 0) shipped.push(await replicate());
    }
    await probe[Symbol.asyncDispose]();
    await writer[Symbol.asyncDispose]();
    const policy = parsePolicy(`keep:last=${kept}`);
    await vault.prune({ disk: "d", policy });
    await vault.collect({});
    const { storedBytes, metadataBytes } = await vault.stats();
    // The plan is for a replication that begins when the profile ends.
    const first = await (await newVault("later")).replicate({ disk: "d", volume });

    const load = await readLoad([profilePath]);
    expect(load.slots).toBe(slots);
    const rpoMs = 2 * cycleSlots * slotMs;
    const question = { rposMs: [rpoMs], bandwidths: [], retentions: [policy], growth: 0 };
    const plan = await planCapacity(load, question, never);
    const real = shipped.reduce((sum, bytes) => sum + bytes, 0) / shipped.length;
    const said = (new Shipping(load, 0).meanBytesPerSecond(cycleSlots) * cycleSlots * slotMs) / 1_000;
    const seconds = (cycleSlots * slotMs) / 1_000;
    expect(within(said, real)).toBeLessThan(0.15);
    expect(within(plan.objectives[0]?.needed.always ?? 0, Math.max(...shipped) / seconds)).toBeLessThan(0.15);
    expect(within(plan.disks[0]?.firstStoredBytes ?? 0, first.storedBytes)).toBeLessThan(0.15);
    expect(within(plan.storage[0]?.storedBytes ?? 0, storedBytes + metadataBytes)).toBeLessThan(0.15);
  },
  byDepth(60_000, 300_000),
);

function within(said: number, real: number): number {
  return Math.abs(said / real - 1);
}
