/**
 * An old head in the place of a newer one: noticed by every reader and writer whose state folder
 * has seen a newer point; never where the head is the newest there is.
 */
import path from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { TidemarkError } from "../../../engine/errors.ts";
import { decodeHead, encodeHead } from "../../../engine/store/format/documents.ts";
import { headName } from "../../../engine/store/format/names.ts";
import { parsePolicy } from "../../../engine/upkeep/retention/policy.ts";
import type { Vault } from "../../../engine/vault.ts";
import { MemorySink } from "../../../sink/memory.ts";
import { closeModelVaults, type ModelDisk, modelStore, openModelVault, sampleDisk } from "../../model-disk.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";

let folder = "";
let sink = new MemorySink();
let disk: ModelDisk = sampleDisk(150_000, 1);
let notices: string[] = [];
const onNotice = ({ code }: { readonly code: string }): void => {
  if (code === "STORE_REGRESSED") notices.push(code);
};

beforeEach(() => {
  folder = createFolder("rolled-back");
  sink = new MemorySink();
  disk = sampleDisk(150_000, 1);
  notices = [];
});
afterEach(async () => {
  await closeModelVaults();
  await removeFolder(folder);
});

const state = (name = "state"): string => path.join(folder, name);
const open = async (stateFolder: string | undefined = state()): Promise<Vault> =>
  await openModelVault(sink, { stateFolder });

async function replicate(vault: Vault): Promise<number> {
  disk.bytes[0] = ((disk.bytes[0] ?? 0) + 1) % 256;
  return (await vault.replicate({ disk: "d", volume: disk, onNotice })).sequence;
}

async function readHeadBytes(): Promise<Uint8Array> {
  const { bytes } = await (await modelStore(sink)).get(headName("d"), 1_000_000);
  return bytes;
}

async function putHeadBack(bytes: Uint8Array): Promise<void> {
  const store = await modelStore(sink);
  const { etag } = await store.get(headName("d"), 1_000_000);
  await store.put(headName("d"), bytes, { ifMatch: etag });
}

async function namesOf(): Promise<string[]> {
  const names: string[] = [];
  for await (const { name } of (await modelStore(sink)).list("")) names.push(name);
  return names.filter((name) => !name.startsWith("reclaim/"));
}

/** How many notices `read` gives. */
async function noticesOf(read: () => Promise<unknown>): Promise<number> {
  notices = [];
  await read();
  return notices.length;
}

describe("a head that is older than a point seen here", () => {
  let old: Uint8Array = new Uint8Array();
  beforeEach(async () => {
    const vault = await open();
    await replicate(vault);
    old = await readHeadBytes();
    for (let more = 0; more < 2; more += 1) await replicate(vault);
    expect(notices).toEqual([]);
  });

  test("is noticed by every reader that has the state folder, each time", async () => {
    await putHeadBack(old);
    const vault = await open();
    const policy = parsePolicy("days:7");
    expect(await noticesOf(async () => await vault.points("d", { onNotice }))).toBe(1);
    expect(await noticesOf(async () => await vault.points("d", { onNotice }))).toBe(1);
    expect(await noticesOf(async () => await vault.verify({ onNotice }))).toBe(1);
    expect(await noticesOf(async () => await vault.verify({ disk: "d", onNotice }))).toBe(1);
    expect(await noticesOf(async () => await vault.prune({ policy, dryRun: true, onNotice }))).toBe(1);
    expect(
      await noticesOf(
        async () => await vault.materialize({ disk: "d", point: "latest", to: state("image"), onNotice }),
      ),
    ).toBe(1);
    const mounting = async (): Promise<void> => {
      await (await vault.mount({ disk: "d", point: "latest", onNotice })).close();
    };
    expect(await noticesOf(mounting)).toBe(1);
    const diffing = async (): Promise<void> => {
      await (await vault.diff({ disk: "d", from: "1", to: "1", onNotice }))[Symbol.asyncIterator]().next();
    };
    for (const look of [
      diffing,
      async () => await vault.point("d", "latest", { onNotice }),
      async () => await vault.label({ disk: "d", point: "1", text: "first", onNotice }),
      async () => await vault.pin({ disk: "d", point: "1", onNotice }),
      async () => await vault.unpin({ disk: "d", point: "1", onNotice }),
      async () => await vault.disks({ onNotice }),
      async () => await vault.summary({ onNotice }),
      async () => await vault.stats({ onNotice }),
      async () => await vault.scrub({ onNotice }),
      async () => await vault.repair({ dryRun: true, onNotice }),
      async () => await vault.collect({ dryRun: true, onNotice }),
      async () => await vault.prune({ policy, onNotice }),
      async () => await vault.removeDisk({ disk: "d", dryRun: true, onNotice }),
    ])
      expect(await noticesOf(look), look.toString()).toBe(1);
    const other = await open(state("other"));
    expect(await noticesOf(async () => await other.points("d", { onNotice }))).toBe(0);
  });

  test("is noticed by a reader that has only listed the newer point", async () => {
    const reader = await open(state("reader"));
    await reader.points("d");
    await putHeadBack(old);
    expect(await noticesOf(async () => await reader.points("d", { onNotice }))).toBe(1);
  });

  test("is noticed by the next writer, which goes on at once with an epoch above all that was seen", async () => {
    await putHeadBack(old);
    const vault = await open();
    expect(await noticesOf(async () => await replicate(vault))).toBe(1);
    const points = await vault.points("d", { onNotice });
    expect(points.map(({ sequence }) => sequence)).toEqual([1, 2]);
    expect(notices).toHaveLength(1);
    const { damaged } = await vault.verify({ disk: "d", source: disk, onNotice });
    expect(damaged).toEqual([]);
  });

  test("keeps a collection from freeing what points need that are not listed, until the disk goes on", async () => {
    const [current, objects] = [await readHeadBytes(), await namesOf()];
    await putHeadBack(old);
    const vault = await open();
    const refused = await vault.collect({ onNotice }).catch((error: unknown) => error);
    expect(refused).toMatchObject({ code: "STORE_REGRESSED", detail: { object: headName("d") } });
    expect(String((refused as TidemarkError).remedy)).toContain("`tidemark replicate SOURCE --disk NAME`");
    expect(await namesOf()).toEqual(expect.arrayContaining(objects));
    await putHeadBack(current); // what the refused collection left is whole
    expect((await vault.verify({ disk: "d", onNotice })).damaged).toEqual([]);
    await putHeadBack(old);
    await replicate(vault);
    expect((await vault.collect({ onNotice })).waitingFor).toEqual([]);
    expect((await vault.verify({ disk: "d", source: disk, onNotice })).damaged).toEqual([]);
  });

  test("keeps the purge of another disk from freeing what points need that are not listed", async () => {
    const [current, objects] = [await readHeadBytes(), await namesOf()];
    await putHeadBack(old);
    const vault = await open();
    await vault.replicate({ disk: "other", volume: sampleDisk(150_000, 2) });
    const purged = vault.failovers.disable({ disk: "other", points: "purge" });
    await expect(purged).rejects.toMatchObject({ code: "STORE_REGRESSED", detail: { object: headName("d") } });
    expect(await namesOf()).toEqual(expect.arrayContaining(objects));
    await putHeadBack(current);
    expect((await vault.verify({ disk: "d", onNotice })).damaged).toEqual([]);
    const done = await vault.failovers.disable({ disk: "other", points: "purge" });
    expect(done.freedBytes).toBeGreaterThan(0);
  });

  test("of a disk that is removed then does not keep a collection from freeing", async () => {
    await putHeadBack(old);
    const vault = await open();
    await vault.removeDisk({ disk: "d", onNotice });
    expect((await vault.collect({ onNotice })).deletedObjects).toBeGreaterThan(0);
  });

  test("without any point is noticed by the next writer", async () => {
    const vault = await open();
    const head = decodeHead(old, "head", { vault: vault.id, disk: "d" });
    await putHeadBack(encodeHead({ ...head, points: [] }));
    expect(await noticesOf(async () => await replicate(vault))).toBe(1);
    expect(await noticesOf(async () => await vault.points("d", { onNotice }))).toBe(0);
  });

  test("and whose disk is removed is not told any more", async () => {
    await putHeadBack(old);
    const vault = await open();
    expect(await noticesOf(async () => await vault.removeDisk({ disk: "d", onNotice }))).toBe(1);
    expect(await noticesOf(async () => await replicate(vault))).toBe(0);
    expect(await noticesOf(async () => await vault.points("d", { onNotice }))).toBe(0);
  });
});

test("a prune, a removal and a disk anew under the name leave no older head", async () => {
  const vault = await open();
  const reader = await open(state("reader"));
  const look = async (): Promise<number> =>
    await noticesOf(async () => {
      await vault.points("d", { onNotice });
      await reader.points("d", { onNotice });
      await vault.verify({ onNotice });
    });
  for (let more = 0; more < 3; more += 1) await replicate(vault);
  expect(await look()).toBe(0);
  await vault.prune({ disk: "d", policy: parsePolicy("days:0"), onNotice });
  expect(await look()).toBe(0);
  await vault.removeDisk({ disk: "d", onNotice });
  expect(await noticesOf(async () => await replicate(vault))).toBe(0);
  expect(await look()).toBe(0);
});
