/** What the vaults of one process share: threads and slabs. */
import { once } from "node:events";
import process from "node:process";
import type { Worker } from "node:worker_threads";
import { expect, onTestFinished, test } from "vitest";
import { digestBytes, granuleBytes } from "../../../engine/limits.ts";
import { createDigest } from "../../../engine/pipeline/kernels.ts";
import { WorkerPool } from "../../../engine/pipeline/worker-pool.ts";
import type { DigestName, VaultDocument } from "../../../engine/store/format/documents.ts";
import { randomBytes } from "../../engine-model.ts";

// A number that no other test file uses, so that no thread of theirs is shared.
const workers = 3;
const content = randomBytes(granuleBytes, 1);

/** The threads that are begun from now on, and how many of them have ended. */
function countThreads(): { readonly begun: Worker[]; ended: number } {
  const count = { begun: [] as Worker[], ended: 0 };
  const note = (thread: Worker): void => {
    count.begun.push(thread);
    thread.once("exit", () => (count.ended += 1));
  };
  process.on("worker", note);
  onTestFinished(() => void process.off("worker", note));
  return count;
}

function vaultWith(digest: DigestName, keyByte: number): VaultDocument {
  const digestKey = Buffer.alloc(32, keyByte).toString("hex");
  return { blockBytes: 65_536, digest, digestKey } as unknown as VaultDocument;
}

/** The digest that a thread computes of `content`. */
async function scanned(pool: WorkerPool): Promise<Buffer> {
  const slab = await pool.slabs.acquire();
  slab.data.set(content);
  slab.present.fill(1, 0, 1);
  slab.oldPrints.fill(0);
  const spans = [{ at: 0, granules: 1 }];
  const { chunkCount } = await pool.scan({ slab: slab.number, spans, expectedCount: 0, seed: [1, 2], scope: "whole" });
  expect(chunkCount).toBe(1);
  const digest = Buffer.from(slab.chunks.digests.slice(0, digestBytes));
  pool.slabs.release(slab);
  return digest;
}

test("vaults share threads and slabs, and each has its own digest and key", async () => {
  const threads = countThreads();
  const vaults = [
    { digest: "blake3", key: 1 },
    { digest: "sha256", key: 2 },
    { digest: "blake3", key: 3 },
    { digest: "xxh3-trusted", key: 4 },
  ] as const;
  const pools = vaults.map(({ digest, key }) => WorkerPool.forVault(vaultWith(digest, key), workers));
  const found = await Promise.all(
    Array.from({ length: 40 }, async (_, index) => await scanned(pools[index % pools.length] as WorkerPool)),
  );
  for (const [index, digest] of found.entries()) {
    const { digest: name, key } = vaults[index % vaults.length] as (typeof vaults)[number];
    const wanted = Buffer.alloc(digestBytes);
    (await createDigest(name, Buffer.alloc(32, key)))(content, wanted, 0);
    expect(digest).toEqual(wanted);
  }
  expect(threads.begun).toHaveLength(workers);
  expect(new Set(pools.map(({ slabs }) => slabs.shared)).size).toBe(1);
  const [last, ...others] = pools;
  for (const pool of others) await pool.close();
  expect(threads.ended).toBe(0);
  const ends = threads.begun.map(async (thread) => {
    await once(thread, "exit");
  });
  await last?.close();
  // A vault that is opened before they end finds them running.
  const next = WorkerPool.forVault(vaultWith("blake3", 5), workers);
  await scanned(next);
  expect(threads.begun).toHaveLength(workers);
  await next.close();
  await Promise.all(ends);
});

test("a pool that is closed waits for its tasks, leaves no thread of its own behind, and is not used any more", async () => {
  const threads = countThreads();
  const geometry = { slabCount: 2, slabBytes: 65_536 };
  const digestKey = new Uint8Array(32);
  const pool = WorkerPool.open({
    geometry,
    fetchGeometry: geometry,
    workers,
    blockBytes: 65_536,
    digest: "blake3",
    digestKey,
  });
  const running = scanned(pool);
  await pool.slabs.acquire();
  await Promise.all([pool.close(), pool.close()]);
  expect(await running).toHaveLength(digestBytes);
  expect([threads.begun.length, threads.ended]).toEqual([workers, workers]);
  await expect(pool.compress({ slab: 0, chunkCount: 0 })).rejects.toThrow(/after it was closed/);
});
