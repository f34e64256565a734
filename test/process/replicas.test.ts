/** Replicas of real processes and stores: kill -9 in mid-application, and a page blob on Azurite. */
import { execFileSync } from "node:child_process";
import { randomBytes } from "node:crypto";
import { existsSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { openSink } from "../../sink/index.ts";
import { sameFiles } from "../cli/images.ts";
import { byDepth } from "../depth.ts";
import { isInstalled } from "../programs.ts";
import { Client } from "./client.ts";

const mebibyte = 1024 * 1024;
const kills: number = byDepth(1, 10);
const testMsMax = 300_000;

test("kill -9 while a point is applied leaves a replica that is torn, and the next run makes it whole", {
  timeout: testMsMax,
}, async () => {
  const client = new Client("dir:vault");
  const run = ["replica", "run", "--disk", "d", "--to", `file:${client.path("copy.img")}`];
  const copy = client.path("copy.img");
  let torn = 0;
  for (let round = 0; round <= kills; round += 1) {
    writeFileSync(client.path("disk.img"), randomBytes(48 * mebibyte));
    await client.replicate("disk.img");
    if (round > 0) {
      const before = statSync(copy, { bigint: true }).mtimeNs;
      const killed = client.start(...run);
      while (statSync(copy, { bigint: true }).mtimeNs === before && killed.child.exitCode === null) await delay(1);
      killed.child.kill("SIGKILL");
      await killed.ended;
      const { lines } = await client.run("replica", "show");
      const isEqual = sameFiles(copy, client.path("disk.img"));
      expect(lines[0]).toMatchObject({
        state: isEqual ? expect.stringMatching(/torn|current/) : "torn",
        isRunning: false,
      });
      if (!isEqual) torn += 1;
    }
    expect(await client.run(...run, "--once")).toMatchObject({ code: 0, last: { sequence: round + 1 } });
    expect(sameFiles(copy, client.path("disk.img"))).toBe(true);
  }
  expect(torn).toBeGreaterThan(0);
});

test("a page blob on Azurite equals each newest point, and qemu-img opens its download", {
  timeout: testMsMax,
}, async ({ skip }) => {
  const client = new Client("azurite:store");
  const run = ["replica", "run", "--disk", "d", "--to", "blob:replicas/d.vhd", "--once"];
  const content = randomBytes(3 * mebibyte);
  for (const round of [1, 2]) {
    content.fill(round, mebibyte, mebibyte + 8192);
    writeFileSync(client.path("disk.img"), content);
    await client.replicate("disk.img");
    const applied = await client.run(...run);
    expect(applied).toMatchObject({ code: 0, last: { sequence: round } });
    expect(applied.lines).toContainEqual(expect.objectContaining({ type: "applied", isWhole: round === 1 }));
    const { lines } = await client.run("replica", "show");
    expect(lines[0]).toMatchObject({ state: "current", sequence: round, host: null });
    expect(await client.run("replica", "verify", String(lines[0]?.["replica"]))).toMatchObject({
      code: 0,
      last: { equal: true },
    });
  }
  await using sink = await openSink(`azurite:${client.path("store")}`);
  const bytes = new Uint8Array((await sink.statPages("replicas/d.vhd")).sizeBytes);
  await sink.readPages("replicas/d.vhd", 0, bytes);
  expect(Buffer.from(bytes.subarray(0, content.length)).equals(content)).toBe(true);
  writeFileSync(client.path("d.vhd"), bytes);
  if (!isInstalled("qemu-img")) skip("all but the download in qemu-img was tested: qemu-img is not installed here");
  execFileSync("qemu-img", ["convert", "-f", "vpc", "-O", "raw", client.path("d.vhd"), client.path("raw.img")]);
  expect(existsSync(client.path("raw.img"))).toBe(true);
  expect(readFileSync(client.path("raw.img")).subarray(0, content.length).equals(content)).toBe(true);
});
