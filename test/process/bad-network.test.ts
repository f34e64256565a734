/**
 * A replication over a network that does what networks do: it ends right, and the point holds the
 * disk.
 */
import { setTimeout as delay } from "node:timers/promises";
import { afterAll, beforeAll, expect, test } from "vitest";
import { FaultProxy, type HttpFault } from "../../cli/stress/fault-proxy.ts";
import { sameFiles, writeImage } from "../cli/images.ts";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { AzuriteProcess } from "./azurite-process.ts";
import { Client, told } from "./client.ts";
import { SlowLine } from "./slow-line.ts";

const mebibyte = 1024 * 1024;
const imageMebibytes = 24;
const testMsMax = 120_000;
/** Longer than a small request is waited for, shorter than a store that is away. */
const frozenMs = 12_000;

/** Requests of a kind that are hit, and how many pass before. */
type Hits = readonly {
  readonly method: string;
  readonly kind: HttpFault;
  readonly times: number;
  readonly passing: number;
}[];

/** One server for all tests of this file, each with a container of its own. */
let azurite: AzuriteProcess;
let folder: string;
let containers = 0;

beforeAll(async () => {
  folder = createFolder("network");
  azurite = await AzuriteProcess.start(folder);
});

afterAll(async () => {
  await azurite.kill();
  await removeFolder(folder);
});

/** A vault of its own, spoken to through `port`. */
function vaultThrough(port?: number): string {
  containers += 1;
  return `${azurite.vault(port)}-${containers}`;
}

const nowAndThen = (kind: HttpFault): Hits =>
  [2, 5, 7, 8, 12, 14].map((passing) => ({ method: "PUT", kind, times: 1, passing }));
const busy = { status: 503, retryAfterSeconds: 1 };

const networks: readonly { readonly what: string; readonly hits: Hits }[] = [
  { what: "acknowledgements that are lost now and then", hits: nowAndThen("lose-answer") },
  { what: "connections that are reset in mid-body now and then", hits: nowAndThen("reset-request") },
  {
    what: "bursts of 503 with Retry-After",
    hits: [
      { method: "PUT", kind: busy, times: 4, passing: 3 },
      { method: "PUT", kind: busy, times: 4, passing: 12 },
      { method: "GET", kind: busy, times: 2, passing: 1 },
    ],
  },
];

test.each(byDepth(networks.slice(0, 1), networks))(
  "are survived by a replication: $what",
  { timeout: testMsMax },
  async ({ hits }) => {
    const client = new Client("");
    const vault = vaultThrough();
    await using proxy = await FaultProxy.open(vault);
    client.vault = proxy.through(vault);
    writeImage(client.path("disk.img"), imageMebibytes);
    for (const { method, kind, times, passing } of hits) proxy.plan(method, kind, times, passing);
    const point = await client.replicate("disk.img");
    expect(point, JSON.stringify(point.last)).toMatchObject({ code: 0, last: { sequence: 1 } });
    proxy.assertAllFired();
    await holdsTheDisk(client);
  },
);

deepTest("answers that break off cost a materialization nothing but time", { timeout: testMsMax }, async () => {
  const client = new Client("");
  const vault = vaultThrough();
  await using proxy = await FaultProxy.open(vault);
  client.vault = proxy.through(vault);
  writeImage(client.path("disk.img"), imageMebibytes);
  expect(await client.replicate("disk.img")).toMatchObject({ code: 0 });
  for (const passing of [3, 5, 6]) proxy.plan("GET", "truncate-answer", 1, passing);
  await holdsTheDisk(client);
  proxy.assertAllFired();
});

deepTest(
  "a server that freezes for longer than a request waits, and then goes on, gets the point all the same",
  {
    timeout: testMsMax,
  },
  async () => {
    const client = new Client("");
    const line = await SlowLine.open(azurite.port, 16 * mebibyte);
    client.vault = vaultThrough(line.port);
    writeImage(client.path("disk.img"), imageMebibytes);
    const running = client.start("replicate", "disk.img", "--disk", "d");
    await line.passed(6 * mebibyte);
    line.freeze();
    await delay(frozenMs);
    line.thaw();
    const point = await told(running);
    expect(point, JSON.stringify(point.last)).toMatchObject({ code: 0, last: { sequence: 1 } });
    await holdsTheDisk(client);
  },
);

async function holdsTheDisk(client: Client): Promise<void> {
  expect(await client.sequences()).toEqual([1]);
  expect(await client.run("materialize", "--disk", "d", "--point", "1", "--to", "back.img")).toMatchObject({ code: 0 });
  expect(sameFiles(client.path("disk.img"), client.path("back.img"))).toBe(true);
}
