/** The way back from and to the places that disks have: agents, groups, devices and instant targets. */
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, beforeEach, expect, onTestFinished, test } from "vitest";
import { FileVolume } from "../../../engine/disk/source/file-volume.ts";
import type { SourceSite } from "../../../engine/failover/source.ts";
import { Group } from "../../../engine/replication/protection/groups.ts";
import type { Protection } from "../../../engine/replication/protection/protection.ts";
import { liveSessions } from "../../../engine/store/points/process-identity.ts";
import type { Vault } from "../../../engine/vault.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../sink/memory.ts";
import { attachLoop } from "../../loop-device.ts";
import { closeModelVaults, contentOf, openModelVault, sampleDisk } from "../../model-disk.ts";
import { expectCode } from "../../sink/expectations.ts";
import { createFolder, removeFolder } from "../../temporary-folder.ts";

/** A multiple of the sectors of a device. */
const diskBytes = 589_824;
/** More than the changes of a test, and much less than the disk. */
const differenceBytesMax = 150_000;
const policy = { crashConsistentFrequencyMs: 3_600_000 };

let folder: string;
let state: string;
let vault: Vault;
let empty: MemorySnapshot;
const memory = new MemoryStore();

beforeAll(async () => {
  state = createFolder("failback-places");
  vault = await openModelVault(new MemorySink({ store: memory }), { stateFolder: state });
  empty = memory.snapshot();
});

beforeEach(() => {
  memory.restore(empty);
  liveSessions().clear();
  folder = createFolder("failback-places");
});

afterEach(async () => {
  await removeFolder(folder);
});

afterAll(async () => {
  await closeModelVaults();
  await removeFolder(state);
});

const path = (name: string): string => join(folder, name);
const source = { kind: "agent", path: "/run/agent.sock" } as const;

function write(name: string, fill: number, from: number, end: number): void {
  const bytes = readFileSync(path(name));
  bytes.fill(fill, from, end);
  writeFileSync(path(name), bytes);
}

/** Protects an image, as an agent does. */
async function protect(disk: string, group?: Group): Promise<Protection> {
  writeFileSync(path(`${disk}.img`), sampleDisk(diskBytes, disk.length).bytes);
  return await vault.protect({ disk, image: path(`${disk}.img`), stateFolder: path("state"), policy, group });
}

/** The agent of such disks. */
function agentOf(protections: readonly Protection[]): () => SourceSite {
  return () => ({
    point: async () => await Promise.resolve(),
    stop: async () => {
      const missed = await Promise.all(protections.map(async (protection) => await protection.stop({ drain: true })));
      expect(missed.filter((error) => error !== undefined)).toEqual([]);
      return protections.flatMap(({ disk, rest }) => (rest === undefined ? [] : [{ disk, ...rest }]));
    },
    start: async () => await Promise.resolve(),
  });
}

test("an agent's image that is unwritten since its planned stop gets the differences alone", async () => {
  const protection = await protect("web");
  await protection.point();
  await protection.device.write(8192, contentOf(4096, 7));
  expect(protection.rest).toBeUndefined();
  const openAgent = agentOf([protection]);
  const { run } = await vault.failovers.start({
    kind: "planned",
    disks: ["web"],
    to: `file:${path("new.img")}`,
    source,
    openAgent,
  });
  expect(readFileSync(path("new.img")).equals(readFileSync(path("web.img")))).toBe(true);
  await vault.failovers.commit({ run });
  await vault.failovers.reprotect({ run });
  write("new.img", 0xaa, 40_000, 60_000);
  const back = await vault.failovers.failback({ run, to: [path("web.img")] });
  expect(readFileSync(path("web.img")).equals(readFileSync(path("new.img")))).toBe(true);
  expect(back.bytesRead).toBeLessThan(differenceBytesMax);
  expect(back.bytesWritten).toBeLessThan(differenceBytesMax);
});

test("an image with changes that are in no point is at rest at none", async () => {
  const protection = await protect("web");
  await protection.point();
  await protection.device.write(8192, contentOf(4096, 7));
  await protection.stop({ drain: false });
  expect(protection.rest).toBeUndefined();
});

test("a group goes back together, each disk to its image, and is protected there as before", async () => {
  const group = new Group("shop");
  const protections = [await protect("d", group), await protect("ee", group)];
  await Promise.all(protections.map(async (protection) => await protection.point()));
  mkdirSync(path("there"));
  const move = { kind: "planned", group: "shop", to: `dir:${path("there")}`, source } as const;
  const { run } = await vault.failovers.start({ ...move, openAgent: agentOf(protections) });
  await vault.failovers.commit({ run });
  await vault.failovers.reprotect({ run });
  for (const [index, disk] of ["d", "ee"].entries()) write(`there/${disk}.img`, 0xa0 + index, 40_000, 60_000);
  // Every disk has an image of its own to go back to, and is not there already.
  await expectCode(vault.failovers.failback({ run, to: [path("d.img")] }), "INVALID_ARGUMENT");
  await expectCode(vault.failovers.failback({ run, to: [path("d.img"), path("d.img")] }), "INVALID_ARGUMENT");
  const there = [path("d.img"), path("there/ee.img")];
  await expectCode(vault.failovers.failback({ run, to: there }), "TARGET_IS_SOURCE");
  const back = await vault.failovers.failback({ run, to: [path("d.img"), path("ee.img")] });
  expect(back).toMatchObject({
    state: "PlannedFailoverCompleted",
    group: "shop",
    disks: [
      { disk: "d", complete: true },
      { disk: "ee", complete: true },
    ],
  });
  expect(back.bytesRead).toBeLessThan(differenceBytesMax);
  for (const disk of ["d", "ee"])
    expect(readFileSync(path(`${disk}.img`)).equals(readFileSync(path(`there/${disk}.img`)))).toBe(true);
  await vault.failovers.commit({ run: back.run });
  const over = await vault.failovers.reprotect({ run: back.run });
  expect(over).toMatchObject({ state: "Protected", activeLocation: "Primary", group: "shop" });
});

test("an instant target goes back with what was written to it", async () => {
  const protection = await protect("web");
  await protection.point();
  const { run } = await vault.failovers.start({
    kind: "planned",
    disks: ["web"],
    to: `instant:unix:${path("web.sock")},image=${path("new.img")}`,
    source,
    openAgent: agentOf([protection]),
  });
  const written = async (seed: number): Promise<void> => {
    await using instant = await vault.instant({ disk: "web", image: path("new.img") });
    await instant.device.write(seed * 65_536, contentOf(4096, seed));
    await instant.device.flush();
  };
  await written(1);
  await vault.failovers.commit({ run });
  await vault.failovers.reprotect({ run });
  // No point holds this yet: the planned stop takes one.
  await written(2);
  const back = await vault.failovers.failback({ run, to: [path("web.img")] });
  expect(back).toMatchObject({ state: "PlannedFailoverCompleted", disks: [{ complete: true }] });
  expect(back.bytesRead).toBeLessThan(differenceBytesMax);
  const expected = Buffer.from(sampleDisk(diskBytes, 3).bytes);
  for (const seed of [1, 2]) contentOf(4096, seed).copy(expected, seed * 65_536);
  expect(readFileSync(path("web.img")).equals(expected)).toBe(true);
  await vault.failovers.commit({ run: back.run });
  expect(await vault.failovers.reprotect({ run: back.run })).toMatchObject({ activeLocation: "Primary" });
});

test("a block device gets what differs, and is then the disk and no replica", async ({ skip }) => {
  writeFileSync(path("backing"), sampleDisk(diskBytes, 1).bytes);
  const loop = attachLoop(path("backing"));
  if ("reason" in loop) return skip(loop.reason);
  onTestFinished(() => loop.detach());
  const device = await FileVolume.open(loop.path);
  await vault.replicate({ disk: "web", volume: device });
  await device.close();
  const { run } = await vault.failovers.start({
    kind: "planned",
    disks: ["web"],
    to: `file:${path("new.img")}`,
    source: { kind: "image", path: loop.path },
  });
  await vault.failovers.commit({ run });
  await vault.failovers.reprotect({ run });
  write("new.img", 0xaa, 40_000, 60_000);
  const back = await vault.failovers.failback({ run, to: [loop.path] });
  expect(back).toMatchObject({ disks: [{ target: `device:${loop.path}`, complete: true }] });
  expect(back.bytesWritten).toBeLessThan(differenceBytesMax);
  expect((await contentOfDevice(loop.path)).equals(readFileSync(path("new.img")))).toBe(true);
  // The run writes the device: it is not given away to a replica, neither now nor later.
  const replica = { disk: "web", to: `device:${loop.path}`, once: true } as const;
  await expectCode(vault.replicas.run(replica), "TARGET_IS_SOURCE");
  await vault.failovers.commit({ run: back.run });
  await expectCode(vault.replicas.run(replica), "TARGET_IS_SOURCE");
  expect(await vault.replicas.list()).toEqual([]);
});

test("a device that is too small for the disk is refused before the disk is stopped", async ({ skip }) => {
  writeFileSync(path("backing"), Buffer.alloc(diskBytes / 2));
  const loop = attachLoop(path("backing"));
  if ("reason" in loop) return skip(loop.reason);
  onTestFinished(() => loop.detach());
  const protection = await protect("web");
  await protection.point();
  await protection.stop({ drain: true });
  const to = `file:${path("new.img")}`;
  const { run } = await vault.failovers.start({ kind: "unplanned", disks: ["web"], to });
  await vault.failovers.commit({ run });
  await vault.failovers.reprotect({ run });
  await expectCode(vault.failovers.failback({ run, to: [loop.path] }), "TARGET_TOO_SMALL");
  const [back] = await vault.failovers.list();
  expect(back?.state).toBe("ResynchronizationFailed");
  expect(await vault.failovers.cancel({ run: back?.run ?? "" })).toMatchObject({ state: "Protected", leftovers: [] });
});

test("a device keeps the name that it was given, and is one place under all its names", async ({ skip }) => {
  writeFileSync(path("web.img"), sampleDisk(diskBytes, 1).bytes);
  writeFileSync(path("backing"), Buffer.alloc(diskBytes));
  const loop = attachLoop(path("backing"));
  if ("reason" in loop) return skip(loop.reason);
  onTestFinished(() => loop.detach());
  symlinkSync(loop.path, path("link"));
  const image = await FileVolume.open(path("web.img"));
  await vault.replicate({ disk: "large", volume: sampleDisk(2 * diskBytes, 5) });
  const tooSmall = vault.failovers.start({ kind: "test", disks: ["large"], to: `device:${loop.path}` });
  await expectCode(tooSmall, "TARGET_TOO_SMALL");
  // The run has not written the device: its content may not be deleted.
  const [failed] = await vault.failovers.list();
  expect(await vault.failovers.cleanup({ run: failed?.run ?? "" })).toMatchObject({ state: "None", mayBeDeleted: [] });
  for (const disk of ["web", "other"]) await vault.replicate({ disk, volume: image });
  await image.close();
  const { run } = await vault.failovers.start({
    kind: "planned",
    disks: ["web"],
    to: `device:${path("link")}`,
    source: { kind: "image", path: path("web.img") },
  });
  const onIt = { disks: ["other"], to: `device:${loop.path}` } as const;
  const refused = async (): Promise<void> => {
    await expectCode(vault.failovers.start({ kind: "test", ...onIt }), "TARGET_EXISTS");
    await expectCode(vault.replicas.run({ disk: "other", to: onIt.to, once: true }), "TARGET_EXISTS");
  };
  await refused();
  await vault.failovers.commit({ run });
  await refused();
  await vault.failovers.reprotect({ run });
  await refused();
  for (const name of ["link", loop.path]) {
    const volume = await FileVolume.open(name === "link" ? path(name) : name);
    await vault.replicate({ disk: "web", volume });
    await volume.close();
    await expectCode(vault.failovers.failback({ run, to: [volume.description] }), "TARGET_IS_SOURCE");
  }
  const back = await vault.failovers.failback({ run, to: [path("web.img")] });
  await vault.failovers.commit({ run: back.run });
  await vault.failovers.reprotect({ run: back.run });
  expect(await vault.failovers.start({ kind: "test", ...onIt })).toMatchObject({ state: "TestFailoverCompleted" });
});

async function contentOfDevice(name: string): Promise<Buffer> {
  const volume = await FileVolume.open(name);
  const bytes = Buffer.alloc(diskBytes);
  await volume.read(0, bytes);
  await volume.close();
  return bytes;
}
