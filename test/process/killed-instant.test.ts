/**
 * kill -9 of a process that serves an instant target, and of the Azurite below one: what was
 * flushed stays, nothing is fetched twice, and what is not there yet is never read as zeros.
 */

import { randomBytes } from "node:crypto";
import { appendFileSync, existsSync, readFileSync, truncateSync, writeFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { expect, test } from "vitest";
import { StampLog, sectorBytes } from "../../cli/stress/stamps.ts";
import { command } from "../../engine/disk/nbd/protocol.ts";
import { Vault } from "../../engine/vault.ts";
import { openSink } from "../../sink/index.ts";
import { changeImage, sameFiles, writeImage } from "../cli/images.ts";
import { type Line, parseLines, type Running } from "../cli/tidemark.ts";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { modelEncryption } from "../encrypted.ts";
import { RawClient } from "../engine/disk/nbd/server-rig.ts";
import { AzuriteProcess } from "./azurite-process.ts";
import { Client } from "./client.ts";
import { SlowLine } from "./slow-line.ts";
import { randomOf } from "./stamped-disk.ts";

const mebibyte = 1024 * 1024;
const testMsMax = 600_000;
/** Of what a killed process has fetched, so much may not have been durable, and is fetched again. */
const lostBytesMax: number = 8 * mebibyte;
/** So much lies behind the stamps, and does not compress: it takes longer to copy than a kill to come. */
const noiseMebibytes = 192;
const kills = 8;

/** A disk whose content is stamped, its point in the vault, and an instant target of it. */
class InstantDisk {
  readonly client = new Client("dir:vault");
  readonly log: StampLog;

  /** `noise` MiB come behind the stamps. */
  constructor(mebibytes: number, noise: number, writes: number, seed: string) {
    this.log = new StampLog(mebibytes * mebibyte, randomOf(seed));
    writeFileSync(this.client.path("disk.img"), "");
    truncateSync(this.client.path("disk.img"), mebibytes * mebibyte);
    for (let made = 0; made < noise; made += 16)
      appendFileSync(this.client.path("disk.img"), randomBytes(16 * mebibyte));
    for (let made = 0; made < writes; made += 1) {
      const { write, bytes } = this.log.send();
      changeImage(this.client.path("disk.img"), write.firstSector * sectorBytes, bytes);
      this.log.acknowledge(write);
    }
  }

  /** What is wrong with an image of the disk. */
  faultsOf(image: string): readonly string[] {
    const stamped = this.log.sizeBytes;
    const [bytes, source] = [readFileSync(image), readFileSync(this.client.path("disk.img"))];
    const isSame = bytes.subarray(stamped).equals(source.subarray(stamped));
    return [...this.log.faultsOfDisk(bytes.subarray(0, stamped)), ...(isSame ? [] : ["the noise is another one"])];
  }

  get socket(): string {
    return this.client.path("nbd.sock");
  }

  get image(): string {
    return this.client.path("t.img");
  }

  /** Starts a command that serves the disk, and waits until it does. */
  async serve(...words: readonly string[]): Promise<Running> {
    const running = this.client.start(...words);
    await running.says('"ready"');
    return running;
  }

  async unplanned(): Promise<{ readonly running: Running; readonly run: string }> {
    const to = `instant:unix:${this.socket},image=${this.image}`;
    const running = await this.serve("failover", "unplanned", "--disk", "d", "--to", to);
    const { lines } = await this.client.run("failover", "list");
    return { running, run: String(lines[0]?.["run"]) };
  }

  /** Writes, and acknowledges to the log what a flush has covered, until `isOver` or the server dies. */
  async load(isOver: () => boolean = () => false): Promise<number> {
    let flushes = 0;
    try {
      const peer = await RawClient.transmitting({ kind: "unix", path: this.socket }, { name: "d" });
      while (!isOver()) {
        const sent = Array.from({ length: 4 }, () => this.log.send());
        for (const { write, bytes } of sent) {
          const offset = write.firstSector * sectorBytes;
          peer.request({ type: command.write, cookie: BigInt(write.number), offset, payload: bytes });
        }
        for (let taken = 0; taken < sent.length; taken += 1)
          if ((await peer.takeReply()).error !== 0) throw new Error("a write was refused");
        if ((await peer.call({ type: command.flush, cookie: 0n, offset: 0, length: 0 })).error !== 0)
          throw new Error("a flush was refused");
        for (const { write } of sent) this.log.acknowledge(write);
        flushes += 1;
        await delay(20);
      }
      peer.socket.destroy();
    } catch (error) {
      if (!(error instanceof Error) || !error.message.startsWith("the server closed the connection")) throw error;
    }
    this.log.giveUp();
    return flushes;
  }
}

/** What the process had fetched of the vault when it told so last. */
function fetched(stdout: string): number {
  const told = parseLines(stdout.slice(0, stdout.lastIndexOf("\n") + 1)).filter(({ type }) => type === "progress");
  const disks = told.flatMap((line: Line) => (line["disks"] ?? []) as { instant: { bytesFetched: number } }[]);
  return disks.at(-1)?.instant.bytesFetched ?? 0;
}

/** What an instant target fetches that nothing interrupts. */
async function fetchedAtOnce(disk: InstantDisk): Promise<number> {
  await using sink = await openSink(`dir:${disk.client.path("vault")}`);
  await using vault = await Vault.open(sink, { workers: 1, ...modelEncryption });
  await using instant = await vault.instant({ disk: "d", image: disk.client.path("whole.img") });
  await instant.hydrated();
  return instant.status().bytesFetched;
}

async function hydrated(image: string): Promise<void> {
  while (existsSync(`${image}.tidemark/pinned`)) await delay(20);
}

async function stopped(running: Running): Promise<string> {
  running.child.kill("SIGINT");
  const { code, stdout, stderr } = await running.ended;
  expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
  return stdout;
}

deepTest(
  `an instant target killed ${kills} times while it is written has all that was flushed, and fetches nothing twice`,
  {
    timeout: testMsMax,
  },
  async () => {
    const disk = new InstantDisk(16, noiseMebibytes, 500, "instant");
    expect(await disk.client.replicate("disk.img")).toMatchObject({ code: 0 });
    const wholeBytes = await fetchedAtOnce(disk);
    const { running: first, run } = await disk.unplanned();
    let running = first;
    let [sumBytes, flushes] = [0, 0];
    for (let kill = 1; kill <= kills; kill += 1) {
      const load = disk.load();
      await delay(200 + 50 * kill);
      // Another process commits the run while it is served.
      if (kill === 1) expect(await disk.client.run("failover", "commit", run)).toMatchObject({ code: 0 });
      running.child.kill("SIGKILL");
      const { stdout } = await running.ended;
      flushes += await load;
      sumBytes += fetched(stdout);
      running = await disk.serve("jobs", "resume", run);
    }
    expect(flushes).toBeGreaterThan(0);
    await hydrated(disk.image);
    const stdout = await stopped(running);
    // The summary comes first, then what is served.
    const types = parseLines(stdout).map(({ type }) => type);
    expect(types.indexOf("summary")).toBeLessThan(types.indexOf("ready"));
    expect(disk.faultsOf(disk.image)).toEqual([]);
    expect(sumBytes + fetched(stdout)).toBeLessThanOrEqual(wholeBytes + kills * lostBytesMax);
    console.log(`fetched ${sumBytes} + ${fetched(stdout)} of ${wholeBytes} bytes, ${disk.log.acknowledged} writes`);
  },
);

test("a disk that is protected at its new place goes on after kill -9, and its last point holds all that was written", {
  timeout: testMsMax,
}, async () => {
  const disk = new InstantDisk(8, 0, 50, "protected instant");
  expect(await disk.client.replicate("disk.img")).toMatchObject({ code: 0 });
  const { running, run } = await disk.unplanned();
  await stopped(running);
  expect(await disk.client.run("failover", "commit", run)).toMatchObject({ code: 0 });
  const killed = await disk.serve("reprotect", run, "--listen", `unix:${disk.socket}`);
  const load = disk.load();
  await delay(byDepth(300, 3_000));
  killed.child.kill("SIGKILL");
  await killed.ended;
  await load;
  const again = await disk.serve("jobs", "resume", run);
  const endMs = performance.now() + 200;
  await disk.load(() => performance.now() > endMs);
  await stopped(again);
  expect(await disk.client.run("materialize", "--disk", "d", "--point", "latest", "--to", "back.img")).toMatchObject({
    code: 0,
  });
  expect(disk.faultsOf(disk.client.path("back.img"))).toEqual([]);
});

deepTest(
  "an Azurite killed under an instant target leaves what is copied, lets the rest wait, and is never read as zeros",
  {
    timeout: testMsMax,
  },
  async () => {
    const client = new Client("");
    const azurite = await AzuriteProcess.forTest(client.path("store"));
    client.vault = azurite.vault();
    writeImage(client.path("disk.img"), 32);
    expect(await client.replicate("disk.img")).toMatchObject({ code: 0 });
    // What it has not saved when it is killed is gone.
    await azurite.stop();
    await azurite.restart();
    // So slow that the far end of the disk is not copied when the store is killed.
    const line = await SlowLine.open(azurite.port, 4 * mebibyte);
    client.vault = azurite.vault(line.port);
    const to = `instant:unix:${client.path("nbd.sock")},image=${client.path("t.img")}`;
    const running = client.start("failover", "test", "--disk", "d", "--to", to);
    await running.says('"ready"');
    const peers = await Promise.all(
      [1, 2].map(
        async () => await RawClient.transmitting({ kind: "unix", path: client.path("nbd.sock") }, { name: "d" }),
      ),
    );
    const [near, far] = peers;
    if (near === undefined || far === undefined) throw new Error("there is no client");
    const source = readFileSync(client.path("disk.img"));
    const length = 65_536;
    const read = async (peer: RawClient, offset: number): Promise<number> => {
      const { error } = await peer.call({ type: command.read, cookie: 1n, offset, length });
      if (error === 0)
        expect(Buffer.compare(await peer.take(length), source.subarray(offset, offset + length))).toBe(0);
      return error;
    };
    expect(await read(near, 0)).toBe(0);
    line.freeze();
    await azurite.kill();
    line.thaw();
    expect(await read(near, 0)).toBe(0);
    const last = source.byteLength - length;
    const waiting = read(far, last);
    expect(await Promise.race([waiting, delay(500, "waits")])).toBe("waits");
    // After its limit: EIO.
    expect(await waiting).toBe(5);
    const again = read(far, last);
    await azurite.restart();
    for (let error = await again; error !== 0; error = await read(far, last)) await delay(100);
    await hydrated(client.path("t.img"));
    await stopped(running);
    expect(sameFiles(client.path("t.img"), client.path("disk.img"))).toBe(true);
  },
);
