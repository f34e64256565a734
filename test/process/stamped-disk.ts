/**
 * A disk under `tidemark agent` that a client writes stamps to over NBD while points are asked for
 * one after the other; the agent, its store or both may be killed meanwhile. In the end everything
 * that was acknowledged is held against the disk and against its points.
 */

import { createHash } from "node:crypto";
import { readFileSync, truncateSync, writeFileSync } from "node:fs";
import { setTimeout as delay } from "node:timers/promises";
import { askAgent } from "../../cli/agent/control-client.ts";
import { type StampedWrite, StampLog, sectorBytes } from "../../cli/stress/stamps.ts";
import { command } from "../../engine/disk/nbd/protocol.ts";
import { hasCode } from "../../engine/errors.ts";
import type { PointSummary } from "../../engine/store/points/points.ts";
import { Vault } from "../../engine/vault.ts";
import { openSink } from "../../sink/index.ts";
import type { Running } from "../cli/tidemark.ts";
import { modelEncryption } from "../encrypted.ts";
import { RawClient } from "../engine/disk/nbd/server-rig.ts";
import { Client } from "./client.ts";

const mebibyte = 1024 * 1024;
const writesInFlightMax = 8;
/**
 * So many writes, then a pause: some megabytes a second, so that two cores are left for the others.
 */
const burstWrites = 8;
const pauseMs = 10;

/** Numbers in [0, 1) that depend on nothing but `seed`. */
export function randomOf(seed: string): () => number {
  let drawn = 0;
  return () => {
    drawn += 1;
    return createHash("sha256").update(`${seed} ${drawn}`).digest().readUInt32LE() / 2 ** 32;
  };
}

/** One life of the agent. */
interface Life {
  readonly process: Running;
  /** Settles when it has gone, with the numbers of what it refused. */
  readonly load: Promise<void>;
}

export class StampedDisk {
  readonly client: Client;
  readonly log: StampLog;
  /**
   * Answers other than success that writes have had. There must be none, whatever happens to the
   * store.
   */
  refused = 0;
  /** Points that were asked for and that the agent said are committed. */
  readonly committed: PointSummary[] = [];
  #life: Life | undefined;
  #isWriting = true;

  /** `vault` as a configuration has it. */
  constructor(vault: string, mebibytes: number, seed: string) {
    this.client = new Client(vault);
    this.log = new StampLog(mebibytes * mebibyte, randomOf(seed));
    writeFileSync(this.client.path("disk.img"), "");
    truncateSync(this.client.path("disk.img"), mebibytes * mebibyte);
  }

  /** Starts the agent, a client that writes to its disk, and one that requests points; returns at once. */
  start(): void {
    const { client } = this;
    const configuration = {
      vaults: { main: { address: client.vault, stateFolder: "state" } },
      policies: { often: { crashConsistentFrequency: "1s", recoveryPointThreshold: "off" } },
      disks: [{ name: "d", image: "disk.img", vault: "main", policy: "often", listen: "unix:nbd.sock" }],
      control: { socket: "agent.sock" },
      logging: { format: "pretty" },
    };
    writeFileSync(client.path("agent.yaml"), JSON.stringify(configuration)); // YAML, too
    this.#isWriting = true;
    const process = client.place.start(["agent", "--config", "agent.yaml"]);
    this.#life = { process, load: this.#live(process) };
    this.#life.load.catch(() => undefined); // awaited when the life ends
  }

  /** Resolves once the disk is served. */
  async reachable(): Promise<void> {
    if (!(await exported(this.#alive().process))) throw new Error("the agent was killed before it served its disk");
  }

  /** Kills the agent. What was on its way may be on the disk or not. */
  async kill(): Promise<void> {
    const { process, load } = this.#alive();
    process.child.kill("SIGKILL");
    await process.ended;
    await load;
    this.log.giveUp();
    this.#life = undefined;
  }

  /** Ends the load, takes a last point, and ends the agent. */
  async drain(): Promise<void> {
    const { process, load } = this.#alive();
    this.#isWriting = false;
    await load;
    process.child.kill("SIGTERM");
    const { code, stdout, stderr } = await process.ended;
    if (code !== 0) throw new Error(`the agent ended with ${String(code)}: ${stderr}${stdout}`);
    this.#life = undefined;
  }

  /** Asks for a point and waits until it is committed. */
  async point(): Promise<PointSummary> {
    const answer = await askAgent(this.client.path("agent.sock"), {
      method: "POST",
      path: "/v1/point",
      fields: { disk: "d" },
      signal: new AbortController().signal,
    });
    const [point] = (answer as { readonly points: readonly PointSummary[] }).points;
    if (point === undefined) throw new Error("no point was answered");
    this.committed.push(point);
    return point;
  }

  /** What is wrong with the disk, now that the agent is dead. */
  faultsOfDisk(): readonly string[] {
    return this.log.faultsOfDisk(readFileSync(this.client.path("disk.img")));
  }

  /** The points that the vault lists. */
  async listed(): Promise<readonly PointSummary[]> {
    return await this.#inVault(async (vault) => await vault.points("d"));
  }

  /** Brings these points back and tells what is wrong with them. */
  async faultsOf(points: readonly PointSummary[]): Promise<readonly string[]> {
    const path = this.client.path("back.img");
    return await this.#inVault(async (vault) => {
      const faults: string[] = [];
      for (const { sequence, time } of points) {
        await vault.materialize({ disk: "d", point: String(sequence), to: path, mode: "replace" });
        const found = this.log.judgePoint(readFileSync(path), Date.parse(time)).faults;
        faults.push(...found.map((fault) => `point ${sequence}: ${fault}`));
      }
      return faults;
    });
  }

  #alive(): Life {
    if (this.#life === undefined) throw new Error("no agent is running");
    return this.#life;
  }

  async #inVault<Result>(work: (vault: Vault) => Promise<Result>): Promise<Result> {
    const address = this.client.vault.replace(/^dir:(?!\/)/, `dir:${this.client.place.folder}/`);
    const sink = await openSink(address);
    try {
      const vault = await Vault.open(sink, modelEncryption);
      try {
        return await work(vault);
      } finally {
        await vault.close();
      }
    } finally {
      await sink[Symbol.asyncDispose]();
    }
  }

  async #live(process: Running): Promise<void> {
    if (!(await exported(process))) return;
    await Promise.all([this.#write(), this.#askForPoints()]);
  }

  /** Writes until it is told to end, or the agent dies. */
  async #write(): Promise<void> {
    const address = { kind: "unix", path: this.client.path("nbd.sock") } as const;
    const pending = new Map<bigint, StampedWrite>();
    try {
      const peer = await RawClient.transmitting(address, { name: "d" });
      for (let sent = 0; this.#isWriting || pending.size > 0; ) {
        while (this.#isWriting && pending.size < writesInFlightMax) {
          const { write, bytes } = this.log.send();
          pending.set(BigInt(write.number), write);
          peer.request({
            type: command.write,
            cookie: BigInt(write.number),
            offset: write.firstSector * sectorBytes,
            payload: bytes,
          });
          sent += 1;
          if (sent % burstWrites === 0) await delay(pauseMs);
        }
        const { cookie, error } = await peer.takeReply();
        const write = pending.get(cookie);
        if (write === undefined) throw new Error(`an answer to write ${cookie}, which nobody waits for`);
        pending.delete(cookie);
        if (error === 0) this.log.acknowledge(write);
        else this.refused += 1;
      }
      peer.socket.destroy();
    } catch (error) {
      if (!isDeath(error)) throw error;
    }
  }

  async #askForPoints(): Promise<void> {
    try {
      while (this.#isWriting) {
        await this.point();
      }
    } catch (error) {
      if (!hasCode(error, "AGENT_UNREACHABLE")) throw error;
    }
  }
}

/** Waits until the disk can be reached; false when the agent dies before. */
async function exported(process: Running): Promise<boolean> {
  try {
    await process.says("d: exported as d");
    return true;
  } catch (error) {
    if (process.child.signalCode === "SIGKILL") return false;
    throw error;
  }
}

/** What a client sees of a server that was killed. */
function isDeath(error: unknown): boolean {
  if (!(error instanceof Error)) return false;
  return (
    error.message.startsWith("the server closed the connection") ||
    ["ECONNREFUSED", "ENOENT", "ECONNRESET"].includes(codeOf(error))
  );
}

function codeOf(error: Error): string {
  const code: unknown = Reflect.get(error, "code");
  return typeof code === "string" ? code : "";
}

/**
 * Not all of them, but the first, the last, and some in between: reading each back takes a quarter
 * of a second.
 */
export function sample<Item>(items: readonly Item[], most: number): readonly Item[] {
  if (items.length <= most) return items;
  return Array.from(
    { length: most },
    (_, index) => items[Math.round((index * (items.length - 1)) / (most - 1))] as Item,
  );
}
