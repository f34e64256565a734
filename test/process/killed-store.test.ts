/**
 * kill -9 of the Azurite under an agent whose disk is being written, alone and together with the
 * agent. It comes back as it was up to five seconds earlier. Writes are never refused, points come
 * back, and every point that is listed holds exactly the writes acknowledged before its cut.
 */
import { randomInt } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect } from "vitest";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { AzuriteProcess, hasSavedVault } from "./azurite-process.ts";
import { randomOf, StampedDisk, sample } from "./stamped-disk.ts";

/** Small, because each point of it is read back from an Azurite, which is not fast. */
const diskMebibytes = 16;
const storeKills = 5;
const doubleKills = 2;
/** How long points are taken before a kill, and how long the store stays away. */
const upMs = { min: 500, max: 2_000 } as const;
const downMs = { min: 0, max: 1_000 } as const;
const pointsCheckedMax = 6;
const testMsMax = 600_000;

// Each of them is a deep test, and a suite without tests is an error.
describe.runIf(byDepth(false, true))("kill -9 of an Azurite under an agent", () => {
  deepTest(
    `an Azurite killed ${storeKills} times under an agent refuses no write, and points come back`,
    {
      timeout: testMsMax,
    },
    async () => {
      const { disk, azurite, between, about } = await begin();
      for (let kill = 0; kill < storeKills; kill += 1) {
        await delay(between(upMs));
        await azurite.kill();
        const before = disk.log.acknowledged;
        await delay(between(downMs));
        await azurite.restart();
        // Asked for after the store came back, so it is a new one.
        await disk.point();
        expect(disk.log.acknowledged, about()).toBeGreaterThan(before);
      }
      await endsWhole(disk, about);
    },
  );

  deepTest(
    `an agent and its Azurite killed together ${doubleKills} times come back to one story`,
    {
      timeout: testMsMax,
    },
    async () => {
      const { disk, azurite, between, about } = await begin();
      for (let kill = 0; kill < doubleKills; kill += 1) {
        await delay(between(upMs));
        await Promise.all([azurite.kill(), disk.kill()]);
        expect(disk.faultsOfDisk(), about()).toEqual([]);
        disk.start();
        // The agent is back before its store is: it serves the disk all the same.
        await disk.reachable();
        await azurite.restart();
        await disk.point();
      }
      await endsWhole(disk, about);
    },
  );
});

interface Scene {
  readonly disk: StampedDisk;
  readonly azurite: AzuriteProcess;
  /** Draws a time and notes it. */
  readonly between: (range: { readonly min: number; readonly max: number }) => number;
  /** What it takes to run this again. */
  readonly about: () => string;
}

/** A disk whose first point is committed in an Azurite that has saved its vault. */
async function begin(): Promise<Scene> {
  const seed = String(randomInt(2 ** 31));
  const random = randomOf(`moments ${seed}`);
  const moments: number[] = [];
  const disk = new StampedDisk("", diskMebibytes, seed);
  const store = disk.client.path("store");
  const azurite = await AzuriteProcess.forTest(store);
  disk.client.vault = azurite.vault();
  disk.start();
  await disk.reachable();
  await disk.point();
  // A vault that the store forgot as a whole is tested in killed-azurite.test.ts.
  while (!hasSavedVault(store)) await delay(200);
  return {
    disk,
    azurite,
    between: ({ min, max }) => {
      const drawn = Math.round(min + random() * (max - min));
      moments.push(drawn);
      return drawn;
    },
    about: () => `seed ${seed}, waited ${moments.join(", ")} ms`,
  };
}

async function endsWhole(disk: StampedDisk, about: () => string): Promise<void> {
  await disk.drain();
  expect(disk.refused, about()).toBe(0);
  expect(disk.faultsOfDisk(), about()).toEqual([]);
  const listed = await disk.listed();
  const exact = listed.filter(({ consistency }) => consistency === "crash");
  const forgotten = disk.committed.filter((point) => !listed.some((other) => other.point === point.point)).length;
  console.log(
    `${about()}: ${disk.log.acknowledged} writes, ${exact.length} of ${listed.length} points are crash-consistent, ` +
      `${forgotten} acknowledged ones were forgotten by the store`,
  );
  expect(await disk.client.verified(), about()).toHaveLength(listed.length);
  expect(exact.length, about()).toBeGreaterThanOrEqual(2);
  expect(await disk.faultsOf(sample(exact, pointsCheckedMax)), about()).toEqual([]);
  expect(
    await disk.client.run("verify", "--disk", "d", "--point", "latest", "--source", "disk.img"),
    about(),
  ).toMatchObject({ code: 0 });
}
