/**
 * kill -9 of the Azurite under a replication. It comes back as it was up to five seconds earlier,
 * and may have forgotten segments, the disk or the whole container. What is committed in its eyes
 * can be read, always.
 */
import { setTimeout as delay } from "node:timers/promises";
import { describe, expect } from "vitest";
import { sameFiles, writeImage } from "../cli/images.ts";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { AzuriteProcess, hasSavedVault, serverGone, serversOn } from "./azurite-process.ts";
import { Client, notices, type Told, told } from "./client.ts";
import { SlowLine } from "./slow-line.ts";

const mebibyte = 1024 * 1024;
/** Longer than a store that has gone is waited for. */
const testMsMax = 300_000;

/** How a replication may end under which the store went back, with the exit code. */
const endings: Readonly<Record<string, number>> = { committed: 0, STORE_REGRESSED: 1, STORE_UNREACHABLE: 1 };
/** The same where the store had not saved the vault when it was killed. */
const endingsUnsaved: Readonly<Record<string, number>> = { ...endings, VAULT_NOT_FOUND: 10 };

// Each of them is a deep test, and a suite without tests is an error.
describe.runIf(byDepth(false, true))("kill -9 of an Azurite that comes back on its port within a second", () => {
  // It saves every five seconds. A kill before the first save makes it forget the container.
  deepTest.each([
    { momentMs: 500, imageMebibytes: 12 },
    { momentMs: 2_000, imageMebibytes: 16 },
    { momentMs: 6_000, imageMebibytes: 24 },
  ])(
    "$momentMs ms after the start of a first replication never leaves a point that cannot be read",
    { timeout: testMsMax },
    async ({ momentMs, imageMebibytes }) => {
      const { client, azurite } = await slowStore(1.5 * mebibyte);
      writeImage(client.path("disk.img"), imageMebibytes);
      const running = client.start("replicate", "disk.img", "--disk", "d");
      await delay(momentMs);
      await azurite.kill();
      const allowed = hasSavedVault(client.path("store")) ? endings : endingsUnsaved;
      await azurite.restart();
      await healed(client, azurite, await told(running), allowed);
    },
  );

  deepTest(
    "in the middle of a later replication loses none of the points that it still lists",
    {
      timeout: testMsMax,
    },
    async () => {
      const { client, azurite, line } = await slowStore(6 * mebibyte);
      writeImage(client.path("disk.img"), 8);
      expect(await client.replicate("disk.img")).toMatchObject({ code: 0 });
      writeImage(client.path("disk.img"), 16, 2);
      const passedBytes = line.passedBytes;
      const running = client.start("replicate", "disk.img", "--disk", "d");
      await line.passed(passedBytes + 4 * mebibyte);
      await azurite.kill();
      await azurite.restart();
      await healed(client, azurite, await told(running), endings);
    },
  );
});

/** An Azurite of another process behind a line that makes a replication last some seconds. */
async function slowStore(bytesPerSecond: number): Promise<{
  readonly client: Client;
  readonly azurite: AzuriteProcess;
  readonly line: SlowLine;
}> {
  const client = new Client("");
  const azurite = await AzuriteProcess.forTest(client.path("store"));
  const line = await SlowLine.open(azurite.port, bytesPerSecond);
  client.vault = azurite.vault(line.port);
  return { client, azurite, line };
}

/**
 * Checks how a replication ended under which the store went back, and that the next one heals
 * whatever was lost.
 */
async function healed(
  client: Client,
  azurite: AzuriteProcess,
  first: Told,
  allowed: Readonly<Record<string, number>>,
): Promise<void> {
  const code = first.code === 0 ? "committed" : String(first.last["code"]);
  console.log(
    `the replication whose Azurite was killed ended with ${code}, after notices ${JSON.stringify(notices(first))}`,
  );
  expect(allowed, JSON.stringify(first.last)).toHaveProperty(code, first.code);
  client.vault = azurite.vault(); // the rest need not be slow
  const before = await client.verified();
  if (code === "committed") expect(before).toContain(first.last["sequence"]);
  expect(await client.replicate("disk.img")).toMatchObject({ code: 0, last: { sequence: before.length + 1 } });
  const sequences = await client.verified();
  expect(sequences).toEqual([...before, before.length + 1]);
  for (const sequence of code === "committed" ? sequences.slice(-2) : sequences.slice(-1)) {
    const target = `back-${sequence}.img`;
    expect(await client.run("materialize", "--disk", "d", "--point", String(sequence), "--to", target)).toMatchObject({
      code: 0,
    });
    expect(sameFiles(client.path("disk.img"), client.path(target))).toBe(true);
  }
}

deepTest(
  "kill -9 of an Azurite of our own in mid-replication: the next run starts another one and goes on",
  {
    timeout: testMsMax,
  },
  async () => {
    const client = new Client("azurite:store");
    const store = client.path("store");
    writeImage(client.path("disk.img"), 8);
    expect(await client.replicate("disk.img")).toMatchObject({ code: 0 });
    writeImage(client.path("disk.img"), 300, 2);
    const first = client.start("replicate", "disk.img", "--disk", "d");
    await first.says('"type":"progress"');
    const servers = serversOn(store);
    expect(servers).toHaveLength(1);
    for (const pid of servers) process.kill(pid, "SIGKILL");
    const second = await client.replicate("disk.img");
    expect(second, JSON.stringify(second.last)).toMatchObject({ code: 0, last: { sequence: 2 } });
    const { code, last } = await told(first);
    console.log(`its server killed, the first replication ended with ${String(last["code"])}`);
    expect(code, JSON.stringify(last)).toBe(1);
    expect(["STORE_UNREACHABLE", "STORE_REGRESSED"]).toContain(last["code"]);
    expect(await client.verified()).toEqual([1, 2]);
    expect(await client.run("verify", "--disk", "d", "--point", "latest", "--source", "disk.img")).toMatchObject({
      code: 0,
    });
    await serverGone(store);
  },
);
