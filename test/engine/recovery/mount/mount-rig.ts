/**
 * What the tests of mounts share: a vault in memory with a disk of known content, and ways to look
 * at what a device holds.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import type { BlockDevice, DeviceExtent } from "../../../../engine/device.ts";
import type { Notice } from "../../../../engine/notice.ts";
import type { Mount, MountOptions } from "../../../../engine/recovery/mount/mount.ts";
import type { Sink } from "../../../../engine/sink.ts";
import type { Vault } from "../../../../engine/vault.ts";
import { MemorySink, type MemorySnapshot, MemoryStore } from "../../../../sink/memory.ts";
import {
  closeModelVaults,
  type ModelDisk,
  modelBlockBytes,
  openModelVault,
  redirected,
  sampleDisk,
  scribble,
} from "../../../model-disk.ts";

/** The smallest cache of the model's vaults. */
export const smallCacheBytes: number = 16 * modelBlockBytes;

/** A folder that is gone when the test is over. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "mount-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  return folder;
}

/**
 * What is made once for all tests of a file: what a store holds, and a vault whose threads serve
 * one test after the other.
 */
interface Fill {
  readonly snapshot: MemorySnapshot;
  readonly contents: readonly Buffer[];
  readonly line: { current: Sink };
  readonly vault: Vault;
}

const fills = new Map<string, Promise<Fill>>();

export interface Filled {
  readonly store: MemoryStore;
  readonly sink: MemorySink;
  /** What each point of disk `d` holds, the first at index 0. */
  readonly contents: readonly Buffer[];
  readonly line: { current: Sink };
  readonly vault: Vault;
}

/**
 * A vault with disk `d` of `sizeBytes` and so many points, each a little different from the one
 * before.
 */
export async function filledVault({
  sizeBytes = 400_001,
  points = 3,
}: {
  sizeBytes?: number;
  points?: number;
} = {}): Promise<Filled> {
  const disk = sampleDisk(sizeBytes, 1);
  return await vaultOf(`${sizeBytes} ${points}`, disk, points, (point) => scribble(disk, point));
}

/**
 * A vault with so many points of `disk`, which `change` changes behind each but the last. Made once
 * for each `name`.
 */
export async function vaultOf(
  name: string,
  disk: ModelDisk,
  points = 1,
  change: (point: number) => void = () => undefined,
): Promise<Filled> {
  const making = fills.get(name) ?? fill(disk, points, change);
  fills.set(name, making);
  const { snapshot, contents, line, vault } = await making;
  const store = new MemoryStore();
  store.restore(snapshot);
  return { store, sink: new MemorySink({ store }), contents, line, vault };
}

async function fill(disk: ModelDisk, points: number, change: (point: number) => void): Promise<Fill> {
  const store = new MemoryStore();
  const line = { current: new MemorySink({ store }) };
  const vault = await openModelVault(redirected(line));
  const contents: Buffer[] = [];
  for (let point = 1; point <= points; point += 1) {
    await vault.replicate({ disk: "d", volume: disk });
    contents.push(Buffer.from(disk.bytes));
    if (point < points) change(point);
  }
  return { snapshot: store.snapshot(), contents, line, vault };
}

/** For `afterAll`. */
export async function closeVaults(): Promise<void> {
  fills.clear();
  await closeModelVaults();
}

export interface Mounted {
  readonly mount: Mount;
  readonly device: BlockDevice;
  readonly notices: Notice[];
}

/**
 * Mounts a point of disk `d`, the newest unless said otherwise, until the test is over. `sink`
 * stands between the vault and its store.
 */
export async function mounted(
  filled: Filled,
  options: Partial<MountOptions> = {},
  sink: Sink = filled.sink,
): Promise<Mounted> {
  const notices: Notice[] = [];
  filled.line.current = sink;
  const mount = await filled.vault.mount({
    disk: "d",
    point: "latest",
    onNotice: (notice) => notices.push(notice),
    ...options,
  });
  onTestFinished(async () => await mount.close());
  return { mount, device: mount.device, notices };
}

/** A range of a device, by the way that a server takes: at once if it can be had at once. */
export async function readRange(device: BlockDevice, offset: number, length: number): Promise<Buffer> {
  const into = Buffer.alloc(length, 0xee);
  if (!device.tryRead(offset, into)) await device.read(offset, into);
  return into;
}

export async function readAll(device: BlockDevice, pieceBytes = 50_000): Promise<Buffer> {
  const pieces: Buffer[] = [];
  for (let at = 0; at < device.sizeBytes; at += pieceBytes) {
    pieces.push(await readRange(device, at, Math.min(pieceBytes, device.sizeBytes - at)));
  }
  return Buffer.concat(pieces);
}

/**
 * What a device says of a range, by the way that a server takes: at once if it can be told at once.
 */
export async function extentsOf(
  device: BlockDevice,
  offset: number,
  length: number,
  countMax = 1000,
): Promise<DeviceExtent[]> {
  const known = device.extents(offset, length, countMax);
  return known.length > 0 || device.lookUp === undefined ? known : await device.lookUp(offset, length, countMax);
}

/** Everything that a device says of its extents. */
export async function allExtents(device: BlockDevice, countMax = 1000): Promise<DeviceExtent[]> {
  const found: DeviceExtent[] = [];
  for (let at = 0; at < device.sizeBytes; ) {
    const extents = await extentsOf(device, at, device.sizeBytes - at, countMax);
    const last = extents.at(-1);
    if (last === undefined || last.offset + last.length <= at) throw new Error(`nothing is said of byte ${at}`);
    found.push(...extents);
    at = last.offset + last.length;
  }
  return found;
}
