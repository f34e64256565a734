/**
 * Two writers of one disk: the second is turned away, and one that was replaced while it slept
 * changes nothing any more.
 */
import { execFileSync } from "node:child_process";
import { ContainerClient, StorageSharedKeyCredential } from "@azure/storage-blob";
import { describe, expect, type TestContext } from "vitest";
import { headName } from "../../engine/store/format/names.ts";
import { developmentAccount, developmentKey } from "../../sink/azurite-state.ts";
import { sameFiles, writeImage } from "../cli/images.ts";
import type { Running } from "../cli/tidemark.ts";
import { deepTest } from "../deep-test.ts";
import { byDepth } from "../depth.ts";
import { AzuriteProcess } from "./azurite-process.ts";
import { Client, told } from "./client.ts";
import { SlowLine } from "./slow-line.ts";

const mebibyte = 1024 * 1024;
const imageMebibytes = 8;
const testMsMax = 180_000;
/** Much shorter than a lease: a refused writer does not wait for it. */
const refusalMsMax = 15_000;

/** What makes a process of this machine one of another: process ids of its own. */
const elsewhere = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"] as const;

/** A replication of `disk.img`, stopped in the middle of its upload. */
async function paused(): Promise<{
  readonly client: Client;
  readonly azurite: AzuriteProcess;
  readonly sleeper: Running;
}> {
  const client = new Client("");
  const azurite = await AzuriteProcess.forTest(client.path("store"));
  const line = await SlowLine.open(azurite.port, 4 * mebibyte);
  client.vault = azurite.vault(line.port);
  writeImage(client.path("disk.img"), imageMebibytes);
  const sleeper = client.start("replicate", "disk.img", "--disk", "d");
  await line.passed(4 * mebibyte);
  sleeper.child.kill("SIGSTOP");
  client.vault = azurite.vault();
  return { client, azurite, sleeper };
}

/** Ends the writer lease, as the storage account's owner may. */
async function breakLease(azurite: AzuriteProcess): Promise<void> {
  const container = new ContainerClient(
    azurite.vault(),
    new StorageSharedKeyCredential(developmentAccount, developmentKey),
  );
  await container.getBlobClient(headName("d")).getBlobLeaseClient().breakLease(0);
}

/** The sleeper wakes, and finds that it is too late. */
async function wakesTooLate(client: Client, sleeper: Running): Promise<void> {
  sleeper.child.kill("SIGCONT");
  const { code, last } = await told(sleeper);
  expect({ code, last }).toMatchObject({ code: 11, last: { type: "error", code: "SEAT_LOST" } });
  expect(await client.verified()).toEqual([1]);
  expect(await client.run("materialize", "--disk", "d", "--point", "1", "--to", "back.img")).toMatchObject({ code: 0 });
  expect(sameFiles(client.path("other.img"), client.path("back.img"))).toBe(true);
}

// Each of them is a deep test, and a suite without tests is an error.
describe.runIf(byDepth(false, true))("two writers of one disk", () => {
  deepTest(
    "a writer that slept while its lease was broken and another wrote ends with 11, and nothing of it is committed",
    {
      timeout: testMsMax,
    },
    async () => {
      const { client, azurite, sleeper } = await paused();
      writeImage(client.path("other.img"), imageMebibytes, 2);
      const refused = await client.replicate("other.img");
      expect(refused).toMatchObject({ code: 11, last: { type: "error", code: "WRITER_ACTIVE" } });
      expect(refused.elapsedMs).toBeLessThan(refusalMsMax);
      await breakLease(azurite);
      expect(await client.replicate("other.img")).toMatchObject({ code: 0, last: { sequence: 1 } });
      await wakesTooLate(client, sleeper);
    },
  );

  deepTest(
    "a writer on another machine is turned away while the lease holds, and takes over when it has ended",
    {
      timeout: testMsMax,
    },
    async (context) => {
      skipUnlessElsewhere(context);
      const { client, azurite, sleeper } = await paused();
      writeImage(client.path("other.img"), imageMebibytes, 2);
      const refused = await told(startElsewhere(client));
      expect(refused).toMatchObject({ code: 11, last: { type: "error", code: "WRITER_ACTIVE" } });
      expect(refused.elapsedMs).toBeLessThan(refusalMsMax);
      await breakLease(azurite);
      expect(await told(startElsewhere(client))).toMatchObject({ code: 0, last: { sequence: 1 } });
      await wakesTooLate(client, sleeper);
    },
  );
});

/** A replication of `other.img` that looks as if another machine did it. */
function startElsewhere(client: Client): Running {
  return client.startUnder(elsewhere, "replicate", "other.img", "--disk", "d");
}

function skipUnlessElsewhere(context: TestContext): void {
  try {
    const [command, ...words] = elsewhere;
    execFileSync(command, [...words, "true"], { stdio: "pipe" });
  } catch (error) {
    context.skip(
      `no process can have process ids of its own here: ${error instanceof Error ? error.message : String(error)}`,
    );
  }
}
