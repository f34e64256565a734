/**
 * Quiescence signature: the state of an image at rest, in a form that can be stored. If the
 * signature is the same later, no program has written the image meanwhile.
 *
 * A file has time stamps. A block device has none, but Linux counts the sectors written and
 * discarded (Documentation/block/stat.rst), from zero at each boot. So the signature of a device is
 * valid for one boot and one attachment: `diskseq` changes when the device is unplugged or attached
 * to another file.
 *
 * Sectors are compared, not requests: every change has sectors, while a flush that writes nothing
 * counts as a request. Not seen: writes to the devices below a mapped device, an array or a virtual
 * machine's disk, and commands that bypass the block layer (SG_IO). For a loop device the time
 * stamps of its file are compared too.
 */
import { constants, readdirSync, readFileSync } from "node:fs";
import { readFile, realpath, stat } from "node:fs/promises";
import { basename, dirname } from "node:path";
import { systemCode, unlessAbsent } from "../../errors.ts";
import type { FileIdentity } from "./file-identity.ts";
import { deviceBytes, sysfsFolder } from "./file-volume.ts";
import { fileError, PositionalFile } from "./positional-file.ts";

export interface QuiescenceSignature {
  readonly sizeBytes: number;
  /**
   * At most `restSignatureCharactersMax` digits, small letters, spaces and hyphens, to be compared
   * as a whole.
   */
  readonly signature: string;
}

export const restSignatureCharactersMax = 400;

/** A quiescence signature as one text. */
export function signatureText({ sizeBytes, signature }: QuiescenceSignature): string {
  return `${sizeBytes} ${signature}`;
}

/**
 * So often the counters of a disk are read, until none of its other partitions was written
 * meanwhile: some 10 µs a partition each time.
 */
const readingsMax = 50;

/**
 * The signature of the image now; undefined if it is unknown. The caller has no write under way.
 * Data that other programs left in a device's page cache is written first, so that it counts.
 * Errors: SOURCE_UNREADABLE, ACCESS_REFUSED, NO_SPACE (below a thin device).
 */
export async function quiescenceSignature(image: FileIdentity): Promise<QuiescenceSignature | undefined> {
  try {
    return image.kind === "device" ? await deviceMark(image.path) : await fileMark(image.path);
  } catch (error) {
    throw fileError(error, {
      code: "SOURCE_UNREADABLE",
      what: `cannot look at ${image.path}`,
      remedy: "check the path",
    });
  }
}

/**
 * Inode and device are not part of it: the caller knows which file it is, and device numbers change
 * across reboots.
 */
async function fileMark(path: string): Promise<QuiescenceSignature> {
  const { size, mtimeNs, ctimeNs } = await stat(path, { bigint: true });
  return { sizeBytes: Number(size), signature: `modified ${String(mtimeNs)} changed ${String(ctimeNs)}` };
}

async function deviceMark(path: string): Promise<QuiescenceSignature | undefined> {
  if (process.platform !== "linux") return undefined;
  const device = await PositionalFile.open(path, constants.O_RDONLY | constants.O_NONBLOCK);
  try {
    await device.datasync();
    const sizeBytes = await deviceBytes(device);
    const signature = await deviceSignature((await device.stat()).rdev);
    return signature === undefined ? undefined : { sizeBytes, signature };
  } finally {
    await device.close();
  }
}

async function deviceSignature(rdev: bigint): Promise<string | undefined> {
  try {
    const folder = await realpath(sysfsFolder(rdev));
    const isPartition = (await textOf(`${folder}/partition`)) !== undefined;
    const disk = isPartition ? dirname(folder) : folder;
    const boot = await textOf("/proc/sys/kernel/random/boot_id");
    const counting = await textOf(`${disk}/queue/iostats`);
    const sectors = sectorsChanged(disk, isPartition ? basename(folder) : undefined);
    if (boot === undefined || counting !== "1" || sectors === undefined) return undefined;
    // Kernels before 5.15 do not number the lives of a device.
    const life = (await textOf(`${disk}/diskseq`)) ?? "-";
    const signature = `boot ${boot} life ${life} written ${sectors.written} discarded ${sectors.discarded}`;
    const backing = await textOf(`${disk}/loop/backing_file`);
    if (backing === undefined) return signature;
    const { ino, size, mtimeNs, ctimeNs } = await stat(backing, { bigint: true });
    return `${signature} on ${[ino, size, mtimeNs, ctimeNs].join(" ")}`;
  } catch (error) {
    // No such counters, or a loop device whose file has lost its name: the answer is unknown, which
    // costs a comparison.
    if (systemCode(error) !== undefined) return undefined;
    throw error;
  }
}

interface Sectors {
  readonly written: number;
  readonly discarded: number;
}

/**
 * What was changed on the disk at `disk` in sysfs, except for what was written through partitions
 * that have no sector in common with `partition`: the disk may be written around its partitions,
 * while the system's own partition beside ours is written all the time. A disk counts what goes
 * through its partitions, too. Undefined when that cannot be told.
 */
function sectorsChanged(disk: string, partition: string | undefined): Sectors | undefined {
  const apart = partition === undefined ? [] : partitionsApart(disk, partition);
  for (let reading = 0; reading < readingsMax; reading += 1) {
    const before = sumOf(apart);
    const whole = countersOf(disk);
    const after = sumOf(apart);
    // Some drivers count nothing at all. A disk that has been identified has been read.
    if (whole.requests === 0) return undefined;
    if (before.written !== after.written || before.discarded !== after.discarded) continue;
    return { written: whole.written - before.written, discarded: whole.discarded - before.discarded };
  }
  return undefined;
}

/**
 * Folders of the other partitions of `disk` that do not overlap with `partition`, as extended ones
 * do.
 */
function partitionsApart(disk: string, partition: string): string[] {
  const range = (folder: string): { start: number; end: number } => {
    const [start, size] = ["start", "size"].map((name) => Number(readFileSync(`${folder}/${name}`, "utf8")));
    return { start: start ?? 0, end: (start ?? 0) + (size ?? 0) };
  };
  const own = range(`${disk}/${partition}`);
  return readdirSync(disk, { withFileTypes: true })
    .filter(
      (entry) =>
        entry.isDirectory() && entry.name !== partition && readdirSync(`${disk}/${entry.name}`).includes("partition"),
    )
    .map(({ name }) => `${disk}/${name}`)
    .filter((folder) => {
      const { start, end } = range(folder);
      return end <= own.start || start >= own.end;
    });
}

function sumOf(folders: readonly string[]): Sectors {
  const counters = folders.map(countersOf);
  return {
    written: counters.reduce((sum, { written }) => sum + written, 0),
    discarded: counters.reduce((sum, { discarded }) => sum + discarded, 0),
  };
}

/**
 * Read at once, not by the thread pool: sysfs lies in memory, and counters of one moment are
 * wanted.
 */
function countersOf(folder: string): Sectors & { readonly requests: number } {
  const fields = readFileSync(`${folder}/stat`, "utf8").trim().split(/\s+/).map(Number);
  // Discards are counted since Linux 4.18.
  const [reads = 0, , , , writes = 0, , written = 0, , , , , , , discarded = 0] = fields;
  return { requests: reads + writes, written, discarded };
}

async function textOf(path: string): Promise<string | undefined> {
  return (await unlessAbsent(readFile(path, "utf8")))?.trim();
}
