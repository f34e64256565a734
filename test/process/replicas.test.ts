/** Replicas of real processes and stores: kill -9 in mid-application, and a page blob on Azurite. */

import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect } from "vitest";
import type { Application } from "../../engine/failover/replica-summary.ts";
import { parseFixedVhdFooter } from "../../engine/recovery/restore/vhd.ts";
import { Vault } from "../../engine/vault.ts";
import { openSink } from "../../sink/index.ts";
import { sameFiles } from "../cli/images.ts";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { modelEncryption } from "../encrypted.ts";
import { sampleDisk, scribble } from "../model-disk.ts";
import { isInstalled } from "../programs.ts";
import { Client } from "./client.ts";

const mebibyte = 1024 * 1024;
const kills = 3;
const testMsMax = 300_000;

// Each of them is a deep test, and a suite without tests is an error.
describe.runIf(byDepth(false, true))("a replica", () => {
  deepTest(
    "kill -9 while a point is applied leaves a replica that is torn, and the next run makes it whole",
    {
      timeout: testMsMax,
    },
    async () => {
      const client = new Client("dir:vault");
      const run = ["replica", "run", "--disk", "d", "--to", `file:${client.path("copy.img")}`];
      const copy = client.path("copy.img");
      let torn = 0;
      for (let round = 0; round <= kills; round += 1) {
        writeFileSync(client.path("disk.img"), randomBytes(24 * mebibyte));
        await client.replicate("disk.img");
        if (round > 0) {
          const before = statSync(copy, { bigint: true }).mtimeNs;
          const killed = client.start(...run);
          while (statSync(copy, { bigint: true }).mtimeNs === before && killed.child.exitCode === null) await delay(1);
          killed.child.kill("SIGKILL");
          await killed.ended;
          const { lines } = await client.run("replica", "show");
          const isEqual = sameFiles(copy, client.path("disk.img"));
          expect(lines[0]).toMatchObject({ isRunning: false });
          if (!isEqual) {
            expect(lines[0]).toMatchObject({ state: "torn", point: null });
            torn += 1;
          }
        }
        expect(await client.run(...run, "--once")).toMatchObject({ code: 0, last: { sequence: round + 1 } });
        expect(sameFiles(copy, client.path("disk.img"))).toBe(true);
      }
      expect(torn).toBeGreaterThan(0);
    },
  );

  deepTest(
    "a page blob on Azurite equals each newest point, and qemu-img opens its download",
    {
      timeout: testMsMax,
    },
    async ({ skip }) => {
      const { place } = new Client("azurite:store");
      await using sink = await openSink(`azurite:${place.path("store")}`);
      await using vault = await Vault.openOrCreate(sink, { workers: 1, ...modelEncryption });
      const disk = sampleDisk(3 * mebibyte + 4096, 1);
      for (const round of [1, 2]) {
        scribble(disk, round);
        await vault.replicate({ disk: "d", volume: disk });
        const ways: boolean[] = [];
        const onApplied = ({ isWhole }: Application): unknown => ways.push(isWhole);
        await vault.replicas.run({ disk: "d", to: "blob:replicas/d.vhd", once: true, onApplied });
        expect(ways).toEqual([round === 1]);
        const [shown] = await vault.replicas.list();
        expect(shown).toMatchObject({ state: "current", sequence: round, host: null });
        expect(await vault.replicas.verify({ replica: shown?.replica ?? "" })).toMatchObject({
          equal: true,
          damaged: [],
        });
      }
      const bytes = new Uint8Array((await sink.statPages("replicas/d.vhd")).sizeBytes);
      await sink.readPages("replicas/d.vhd", 0, bytes);
      expect(disk.bytes.equals(bytes.subarray(0, disk.bytes.length))).toBe(true);
      expect(parseFixedVhdFooter(bytes.subarray(-512))?.diskBytes).toBe(4 * mebibyte);
      if (!isInstalled("qemu-img")) skip("all but the download in qemu-img was tested: qemu-img is not installed here");
      writeFileSync(place.path("d.vhd"), bytes);
      execFileSync("qemu-img", ["convert", "-f", "vpc", "-O", "raw", place.path("d.vhd"), place.path("raw.img")]);
      expect(disk.bytes.equals(readFileSync(place.path("raw.img")).subarray(0, disk.bytes.length))).toBe(true);
    },
  );
});
