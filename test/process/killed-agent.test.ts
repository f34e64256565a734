/**
 * kill -9 of an agent whose disk is being written. Whatever it had acknowledged is on the disk,
 * whatever point it had said is committed is in the vault, and every point holds exactly the writes
 * acknowledged before its cut.
 */
import { randomInt } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect } from "vitest";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { randomOf, StampedDisk, sample } from "./stamped-disk.ts";

const kills = 12;
const diskMebibytes = 64;
/**
 * Every other life ends so long after its disk is served, when points are taken; the others so long
 * after the program began.
 */
const servedMsMax = 900;
const startingMs = { min: 300, max: 1_500 } as const;
const pointsCheckedMax = 12;
/** Taken at the end, beside those that come about between the kills. */
const pointsMin = 4;

// Each of them is a deep test, and a suite without tests is an error.
describe.runIf(byDepth(false, true))("an agent under writes", () => {
  deepTest(
    `an agent killed ${kills} times under writes loses no acknowledged write, and every point is a prefix of them`,
    {
      timeout: 300_000,
    },
    async () => {
      const seed = String(randomInt(2 ** 31));
      const random = randomOf(`moments ${seed}`);
      const disk = new StampedDisk("dir:vault", diskMebibytes, seed);
      const moments: string[] = [];
      const about = (): string => `seed ${seed}, killed after ${moments.join(", ")} ms`;
      for (let kill = 0; kill < kills; kill += 1) {
        disk.start();
        const isServed = kill % 2 === 0;
        if (isServed) await disk.reachable();
        const momentMs = isServed
          ? random() * servedMsMax
          : startingMs.min + random() * (startingMs.max - startingMs.min);
        moments.push(`${Math.round(momentMs)}${isServed ? " after it served" : ""}`);
        await delay(momentMs);
        await disk.kill();
        expect(disk.faultsOfDisk(), about()).toEqual([]);
      }
      disk.start();
      await disk.reachable();
      // However few points a slow machine made between the kills.
      for (let taken = 0; taken < pointsMin; taken += 1) await disk.point();
      await disk.drain();
      expect(disk.faultsOfDisk(), about()).toEqual([]);
      expect(disk.refused, about()).toBe(0);

      const listed = await disk.listed();
      expect(await disk.client.verified()).toHaveLength(listed.length);
      expect(new Set(listed.map(({ point }) => point))).toEqual(
        new Set([...listed, ...disk.committed].map(({ point }) => point)),
      );
      const exact = listed.filter(({ consistency }) => consistency === "crash");
      console.log(
        `${about()}: ${disk.log.acknowledged} writes, ${exact.length} of ${listed.length} points are crash-consistent`,
      );
      expect(exact.length, about()).toBeGreaterThanOrEqual(pointsMin);
      expect(await disk.faultsOf(sample(exact, pointsCheckedMax)), about()).toEqual([]);
      expect(
        await disk.client.run("verify", "--disk", "d", "--point", "latest", "--source", "disk.img"),
        about(),
      ).toMatchObject({ code: 0 });
    },
  );
});
