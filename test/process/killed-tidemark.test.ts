/**
 * kill -9 of tidemark at any moment of a replication into an Azurite of its own, which it leaves
 * behind and the next run finds.
 */
import { createHash, randomInt } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { expect, it, onTestFinished } from "vitest";
import { Azurite } from "../../sink/azurite.ts";
import { changeImage, sameFiles, writeImage } from "../cli/images.ts";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { serverGone, serversOn } from "./azurite-process.ts";
import { Client, notices } from "./client.ts";

const mebibyte = 1024 * 1024;
const imageMebibytes: number = byDepth(16, 96);
const changedMebibytes: number = imageMebibytes / 4;
/** A neighbour uses the server in every second round. */
const kills = 6;
/** The first kill comes within this time; the later ones within the time of the last whole run. */
const firstSpanMs = 2_000;
const testMsMax = 600_000;
const serversSampledEveryMs = 200;

/** The lease of a dead writer on another machine is waited for longer. */
const runMsMax = 30_000;

deepTest(
  `kill -9 at ${kills} random moments costs no committed point, no waiting and no second server`,
  {
    timeout: testMsMax,
  },
  async () => {
    const client = new Client("azurite:store");
    const store = client.path("store");
    const watch = new ServerWatch(store);
    writeImage(client.path("disk.img"), imageMebibytes);
    const seed = randomInt(2 ** 31);
    const moments: number[] = [];
    let takenOver = 0;
    let spanMs = firstSpanMs;
    for (let round = 0; round < kills; round += 1) {
      if (round > 0) change(client.path("disk.img"), `${seed} ${round}`);
      const momentMs = Math.round(drawn(`${seed} ${round}`) * spanMs);
      moments.push(momentMs);
      // Left alone, the server of a killed tidemark ends, and an Azurite that starts anew has
      // forgotten the lease. In every second run another process uses it too: then it stays, and with
      // it the dead writer's lease.
      await using neighbour = round % 2 === 1 ? await Azurite.start(store) : undefined;
      const killed = client.start("replicate", "disk.img", "--disk", "d");
      await delay(momentMs);
      killed.child.kill("SIGKILL");
      const again = await client.replicate("disk.img");
      const about = `seed ${seed}, round ${round}, killed after ${momentMs} ms: ${JSON.stringify(again.lines)}`;
      expect(again.code, about).toBe(0);
      expect(again.elapsedMs, about).toBeLessThan(runMsMax);
      spanMs = again.elapsedMs;
      if (notices(again).includes("SEAT_TAKEN_OVER")) takenOver += 1;
      const checked = await client.run("verify", "--disk", "d", "--point", "latest", "--source", "disk.img");
      expect(checked, about).toMatchObject({ code: 0, last: { damaged: [] } });
      if (neighbour !== undefined) expect(serversOn(store), about).toEqual([neighbour.pid]);
    }
    console.log(`seed ${seed}: killed after ${moments.join(", ")} ms; ${takenOver} leases taken over`);

    const sequences = await client.verified();
    expect(sequences.length).toBeGreaterThanOrEqual(kills);
    expect(sequences).toEqual(sequences.map((_, index) => index + 1));
    expect(await client.run("materialize", "--disk", "d", "--point", "latest", "--to", "back.img")).toMatchObject({
      code: 0,
    });
    expect(sameFiles(client.path("disk.img"), client.path("back.img"))).toBe(true);
    await serverGone(store);
    expect(watch.mostAtOnce).toBe(1);
  },
);

it("the lease of a killed writer on a server that lives on is handed over to the next run", async () => {
  const client = new Client("azurite:store");
  await using server = await Azurite.start(client.path("store"));
  writeImage(client.path("disk.img"), imageMebibytes);
  const killed = client.start("replicate", "disk.img", "--disk", "d");
  await killed.says('"type":"progress"');
  killed.child.kill("SIGKILL");
  await killed.ended;
  const again = await client.replicate("disk.img");
  expect(again, JSON.stringify(again.last)).toMatchObject({ code: 0, last: { sequence: 1 } });
  expect(notices(again)).toContain("SEAT_TAKEN_OVER");
  expect(serversOn(client.path("store"))).toEqual([server.pid]);
});

/** Looks again and again how many servers work on a folder. */
class ServerWatch {
  mostAtOnce = 0;

  constructor(folder: string) {
    const timer = setInterval(() => {
      this.mostAtOnce = Math.max(this.mostAtOnce, serversOn(folder).length);
    }, serversSampledEveryMs);
    onTestFinished(() => clearInterval(timer));
  }
}

/** A number in [0, 1) that depends on nothing but `key`. */
function drawn(key: string): number {
  return createHash("sha256").update(key).digest().readUInt32LE() / 2 ** 32;
}

/** New bytes at a place that `key` decides; half of them zeros. */
function change(path: string, key: string): void {
  const noise = createHash("shake256", { outputLength: (changedMebibytes / 2) * mebibyte })
    .update(key)
    .digest();
  const at = Math.floor(drawn(`place ${key}`) * (imageMebibytes - changedMebibytes) * 256) * 4096;
  changeImage(path, at, Buffer.concat([noise, Buffer.alloc(noise.length)]));
}
