/**
 * Records of an encrypted vault beside those of points: runs of failovers and plans, claims, replicas,
 * pins and what collections keep. A process without the key changes, cuts or exchanges them; what reads
 * them names them.
 */
import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { TidemarkError } from "../../../../engine/errors.ts";
import type { Notice } from "../../../../engine/notice.ts";
import { parsePolicy } from "../../../../engine/upkeep/retention/policy.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { MemorySink, MemoryStore } from "../../../../sink/memory.ts";
import { encryptedFor, testKeyPair } from "../../../encrypted.ts";
import { closeModelVaults, contentOf, ModelDisk, openModelVault, sampleDisk, scribble } from "../../../model-disk.ts";
import { createFolder, removeFolder } from "../../../temporary-folder.ts";
import { shopPlan } from "../../failover/plans/plan-rig.ts";

const encrypted = encryptedFor(testKeyPair());

let folder: string;
let memory: MemoryStore;
let foreign: MemoryStore;
let made: ReturnType<MemoryStore["snapshot"]>;
let vault: Vault;

/** Two of each kind of record. */
async function fill(store: MemoryStore, name: string): Promise<Vault> {
  const filled = await openModelVault(new MemorySink({ store }), {
    ...encrypted,
    stateFolder: join(folder, `state-${name}`),
  });
  const disk = sampleDisk(60_000, 1);
  const target = (of: string): string => `file:${join(folder, `${name}-${of}.img`)}`;
  for (let point = 0; point < 3; point += 1) {
    for (const one of ["a", "b"]) await filled.replicate({ disk: one, volume: disk });
    scribble(disk, point);
  }
  for (const one of ["a", "b"]) {
    await filled.prune({ disk: one, policy: parsePolicy("keep:last=1") });
    await filled.replicas.run({ disk: one, to: target(one), once: true });
    await filled.failovers.start({ kind: "unplanned", disks: [one], to: target(`${one}-2`) });
  }
  await filled.collect();
  await filled.replicate({ disk: "web", volume: new ModelDisk(contentOf(20_000, 7)) });
  const shop = shopPlan(folder, { target: `dir:${join(folder, name)}`, cleanup: [] });
  const plan = { ...shop, machines: shop.machines.slice(1, 2), groups: [{ machines: ["web"], before: [], after: [] }] };
  await filled.plans.start({ plan, kind: "test", point: "latest-processed" });
  return filled;
}

beforeAll(async () => {
  folder = createFolder("record-attacks");
  for (const name of ["mine", "foreign"]) mkdirSync(join(folder, name));
  [memory, foreign] = [new MemoryStore(), new MemoryStore()];
  await fill(foreign, "foreign");
  vault = await fill(memory, "mine");
  made = memory.snapshot();
});

afterAll(async () => {
  await closeModelVaults();
  await removeFolder(folder);
});

const bytesOf = (store: MemoryStore, name: string): Uint8Array => {
  const found = store.objects?.get(name);
  assert(found?.kind === "object", `${name} is an object`);
  return found.bytes;
};

/** All that an operation tells: its error, notices and damage. */
async function told(run: (onNotice: (notice: Notice) => void) => Promise<unknown>): Promise<string> {
  const messages: string[] = [];
  try {
    messages.push(JSON.stringify(await run(({ message }) => messages.push(message))));
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    messages.push(error.code, error.message);
  }
  return messages.join("\n");
}

describe("a record", () => {
  const readers: readonly (readonly [
    prefix: string,
    read: (name: string, onNotice: (notice: Notice) => void) => Promise<unknown>,
  ])[] = [
    ["failover/runs/", async (name) => await vault.failovers.show(name.split("/")[2] ?? "")],
    ["failover/plans/", async (name) => await vault.plans.show(name.split("/")[2] ?? "")],
    ["failover/replicas/", async (name) => await vault.replicas.show(name.split("/")[2] ?? "")],
    ["disks/a/failover", async () => await vault.replicate({ disk: "a", volume: sampleDisk(60_000, 1) })],
    ["disks/a/pins/", async (_name, onNotice) => await vault.points("a", { onNotice })],
    ["disks/a/condemned", async () => await vault.verify({ disk: "a" })],
    ["reclaim/collection", async () => await vault.repair({ dryRun: true })],
    ["reclaim/dead/", async () => await vault.collect()],
  ];

  it.each(readers)(
    "of %s that is changed, cut, exchanged or of another vault is named by what reads it",
    async (prefix, read) => {
      memory.restore(made);
      const names = [...(memory.objects?.keys() ?? [])].filter((name) => name.startsWith(prefix));
      const [name] = names;
      assert(name !== undefined, `there is a ${prefix}`);
      const bytes = bytesOf(memory, name);
      const kind = prefix.replace("disks/a", "disks/b");
      const likes = [...(memory.objects?.keys() ?? [])].filter((other) => other !== name && other.startsWith(kind));
      const others = [...(foreign.objects?.keys() ?? [])].filter((other) => other.startsWith(prefix));
      const changes = [
        bytes.map((byte, at) => (at === bytes.length - 20 ? byte ^ 1 : byte)),
        bytes.subarray(0, bytes.length - 1),
        ...likes.slice(0, 1).map((other) => bytesOf(memory, other)),
        ...others.slice(0, 1).map((other) => bytesOf(foreign, other)),
      ];
      expect(changes.length).toBeGreaterThan(2);
      for (const changed of changes) {
        memory.restore(made);
        const found = memory.objects?.get(name);
        assert(found?.kind === "object");
        memory.objects?.set(name, { ...found, etag: memory.nextEtag(), bytes: changed });
        expect(await told(async (onNotice) => await read(name, onNotice))).toContain(name);
      }
    },
  );
});
