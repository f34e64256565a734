/**
 * The demo's disk: real files found on this machine, one after the other, or a copy of an image that
 * the user names; and the changes that are made to it between points. What is picked and changed
 * depends on the machine's files and a fixed seed only.
 */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { type FileHandle, lstat, open, readdir, readFile } from "node:fs/promises";
import { join, resolve } from "node:path";
import { type Extent, FileVolume, interrupted, systemCode, TidemarkError, throwIfAborted } from "../engine/index.ts";

const kibibyte = 1024;
const mebibyte = 1024 * kibibyte;
const granuleBytes = 4 * kibibyte;

/**
 * Room for files: enough for rates that mean something, little enough for a minute on a slow
 * machine.
 */
const filesBytesMax = 192 * mebibyte;
const filesMax = 9_000;
/** Many tiny files take long to copy and fill blocks with little else than padding. */
const fileBytesMin = 2 * kibibyte;
const fileBytesMax = 16 * mebibyte;
/** The disk is half as large again as its files, as disks are. */
const spareShare = 1.5;

/** Below this there is nothing to change in a way that could be seen. */
const demoBytesMin = mebibyte;

const changes = { writesMax: 2_000, deletedBytesMax: 8 * mebibyte, copiedBytesMax: 16 * mebibyte } as const;
/**
 * Ranges are deleted and copied in whole blocks of any vault, as file systems with large extents
 * do.
 */
const rangeAlignmentBytes = mebibyte;
const copyBufferBytes = mebibyte;

export interface DemoDisk {
  readonly path: string;
  readonly volumeBytes: number;
  /** What is on it, in words. */
  readonly content: string;
}

interface FoundFile {
  readonly path: string;
  readonly sizeBytes: number;
}

/** Makes a disk of real files in `folder`. Errors: INTERRUPTED, those of the file system. */
export async function makeDisk(folder: string, signal: AbortSignal): Promise<DemoDisk> {
  const path = join(folder, "disk.img");
  const files = await findFiles(signal);
  const filesBytes = files.reduce((sum, file) => sum + file.sizeBytes, 0);
  const content = `${files.length.toLocaleString("en-US")} files found here, ${Math.round(filesBytes / mebibyte)} MiB`;
  const volumeBytes = Math.ceil((filesBytes * spareShare) / (64 * mebibyte)) * 64 * mebibyte;
  const image = await open(path, "wx");
  try {
    let at = 0;
    for (const file of files) {
      throwIfAborted(signal);
      const bytes = (await unlessUnreadable(readFile(file.path))) ?? Buffer.alloc(0);
      await writeAll(image, bytes, at);
      at += Math.ceil(bytes.length / granuleBytes) * granuleBytes;
    }
    await image.truncate(volumeBytes);
  } finally {
    await image.close();
  }
  return { path, volumeBytes, content };
}

/**
 * Copies an image, holes included, so that the source stays unchanged. Errors: SOURCE_…,
 * INVALID_ARGUMENT (too small), INTERRUPTED.
 */
export async function copyDisk(image: string, folder: string, signal: AbortSignal): Promise<DemoDisk> {
  const path = join(folder, "disk.img");
  const source = await FileVolume.open(image);
  try {
    const volumeBytes = await source.sizeBytes();
    if (volumeBytes < demoBytesMin) {
      throw new TidemarkError(
        "INVALID_ARGUMENT",
        `the image ${image} has ${volumeBytes} bytes, which is too little to change and compare`,
        {
          remedy: "name an image of at least 1 MiB, or leave --image out",
        },
      );
    }
    const copy = await open(path, "wx");
    try {
      await copy.truncate(volumeBytes);
      const buffer = Buffer.alloc(copyBufferBytes);
      const zeros = Buffer.alloc(copyBufferBytes);
      for await (const { offset, length } of source.allocated(volumeBytes)) {
        for (let at = offset; at < offset + length; at += buffer.length) {
          throwIfAborted(signal);
          const piece = buffer.subarray(0, Math.min(buffer.length, offset + length - at));
          await source.read(at, piece);
          if (!piece.equals(zeros.subarray(0, piece.length))) await writeAll(copy, piece, at);
        }
      }
    } finally {
      await copy.close();
    }
    return { path, volumeBytes, content: `a copy of ${image}` };
  } finally {
    await source.close();
  }
}

/**
 * Overwrites granules here and there and deletes (zeroes) a range. Returns what was done, in words.
 */
export async function overwriteAndDelete(disk: DemoDisk, seed: number): Promise<string> {
  return await changed(disk, async (file, data) => {
    const writes = await overwrite(file, data, disk.volumeBytes, seed, changes.writesMax);
    const length = rangeLength(changes.deletedBytesMax, disk.volumeBytes);
    await writeAll(file, Buffer.alloc(length), rangeStart(data.offsetAt(0.4), length, disk.volumeBytes));
    return `${writes.toLocaleString("en-US")} scattered writes of 4 KiB, ${sizeText(length)} deleted`;
  });
}

/**
 * Copies a range to another place of the disk, for deduplication to find, and overwrites some more.
 */
export async function copyAndOverwrite(disk: DemoDisk, seed: number): Promise<string> {
  return await changed(disk, async (file, data) => {
    const from = data.longest();
    const length = rangeLength(Math.min(changes.copiedBytesMax, from.length / 2), disk.volumeBytes);
    const bytes = Buffer.alloc(length);
    await file.read(bytes, 0, length, rangeStart(from.offset + from.length / 2, length, disk.volumeBytes));
    // The end of a disk is where free space is, as a rule.
    await writeAll(file, bytes, rangeStart(disk.volumeBytes, length, disk.volumeBytes));
    const writes = await overwrite(file, data, disk.volumeBytes, seed, changes.writesMax / 4);
    return `${sizeText(length)} copied elsewhere, ${writes.toLocaleString("en-US")} scattered writes of 4 KiB`;
  });
}

/** SHA-256 of a whole file. */
export async function hashOf(path: string, signal: AbortSignal): Promise<string> {
  const hash = createHash("sha256");
  try {
    for await (const piece of createReadStream(path, { highWaterMark: copyBufferBytes, signal }))
      hash.update(piece as Buffer);
  } catch (error) {
    throw signal.aborted ? interrupted(signal) : error;
  }
  return hash.digest("hex");
}

/**
 * Regular files of this machine, in an order that depends on their names only, until there is
 * enough.
 */
async function findFiles(signal: AbortSignal): Promise<FoundFile[]> {
  const ourPackage = resolve(import.meta.dirname, "..", "..");
  const roots = ["/usr/share", "/usr/lib", ourPackage];
  const files: FoundFile[] = [];
  let bytes = 0;
  for (const [index, root] of roots.entries()) {
    // Each root may fill its share and what those before it left free.
    const share = (index + 1) / roots.length;
    for await (const file of walk(root)) {
      throwIfAborted(signal);
      if (bytes >= filesBytesMax * share || files.length >= filesMax * share) break;
      if (bytes + file.sizeBytes > filesBytesMax) continue;
      files.push(file);
      bytes += file.sizeBytes;
    }
  }
  return files;
}

async function* walk(folder: string): AsyncGenerator<FoundFile> {
  const entries = (await unlessUnreadable(readdir(folder, { withFileTypes: true }))) ?? [];
  for (const entry of entries.sort((a, b) => (a.name < b.name ? -1 : 1))) {
    const path = join(folder, entry.name);
    if (entry.isDirectory() && entry.name !== ".git") yield* walk(path);
    if (!entry.isFile()) continue;
    const sizeBytes = (await unlessUnreadable(lstat(path)))?.size ?? 0;
    if (sizeBytes >= fileBytesMin && sizeBytes <= fileBytesMax) yield { path, sizeBytes };
  }
}

/**
 * The result of reading a file or folder of this machine; undefined when it went away meanwhile or
 * is not for us, and then the demo does without.
 */
async function unlessUnreadable<Result>(reading: Promise<Result>): Promise<Result | undefined> {
  try {
    return await reading;
  } catch (error) {
    if (!["ENOENT", "ENOTDIR", "EACCES", "EPERM", "ELOOP"].includes(systemCode(error) ?? "")) throw error;
    return undefined;
  }
}

/** Where the disk holds data: changes there are changes of something. */
class DataMap {
  readonly #extents: readonly Extent[];
  readonly #dataBytes: number;

  constructor(extents: readonly Extent[]) {
    this.#extents = extents;
    this.#dataBytes = extents.reduce((sum, { length }) => sum + length, 0);
  }

  /**
   * The longest stretch of data: its second half is file content rather than the tables of the file
   * system.
   */
  longest(): Extent {
    return this.#extents.reduce((longest, extent) => (extent.length > longest.length ? extent : longest), {
      offset: 0,
      length: 0,
    });
  }

  /** The offset at which `share` (0 to 1) of the disk's data lies before. */
  offsetAt(share: number): number {
    let rest = this.#dataBytes * share;
    for (const { offset, length } of this.#extents) {
      if (rest < length) return offset + Math.floor(rest);
      rest -= length;
    }
    return 0;
  }
}

async function changed(disk: DemoDisk, change: (file: FileHandle, data: DataMap) => Promise<string>): Promise<string> {
  const extents: Extent[] = [];
  const volume = await FileVolume.open(disk.path);
  try {
    for await (const extent of volume.allocated(disk.volumeBytes)) extents.push(extent);
  } finally {
    await volume.close();
  }
  const file = await open(disk.path, "r+");
  try {
    return await change(file, new DataMap(extents));
  } finally {
    await file.close();
  }
}

async function overwrite(
  file: FileHandle,
  data: DataMap,
  volumeBytes: number,
  seed: number,
  writesMax: number,
): Promise<number> {
  const random = xorshift(seed);
  const granules = Math.floor(volumeBytes / granuleBytes);
  const writes = Math.ceil(Math.min(writesMax, granules / 20));
  for (let write = 0; write < writes; write += 1) {
    const granule = Math.min(Math.floor(data.offsetAt(random() / 2 ** 32) / granuleBytes), granules - 1);
    await writeAll(file, record(seed, write, random), granule * granuleBytes);
  }
  return writes;
}

/** A granule such as a database would write: half of it incompressible, half of it anything but. */
function record(seed: number, ordinal: number, random: () => number): Buffer {
  const bytes = Buffer.alloc(granuleBytes, `write ${ordinal} of run ${seed}: the tide comes in\n`);
  for (let at = 0; at < granuleBytes / 2; at += 4) bytes.writeUInt32LE(random(), at);
  return bytes;
}

/** Marsaglia's xorshift32: numbers below 2^32, the same for the same seed. */
function xorshift(seed: number): () => number {
  let state = seed;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    state >>>= 0;
    return state;
  };
}

/** At most an eighth of the disk, in whole blocks where there is room for them. */
function rangeLength(bytesMax: number, volumeBytes: number): number {
  const length = Math.min(bytesMax, volumeBytes / 8);
  const alignment = length >= rangeAlignmentBytes ? rangeAlignmentBytes : granuleBytes;
  return Math.floor(length / alignment) * alignment;
}

/** The nearest start of a block at or before `offset` from which `length` bytes fit. */
function rangeStart(offset: number, length: number, volumeBytes: number): number {
  const alignment = length >= rangeAlignmentBytes ? rangeAlignmentBytes : granuleBytes;
  return Math.floor(Math.min(offset, volumeBytes - length) / alignment) * alignment;
}

function sizeText(bytes: number): string {
  return bytes < mebibyte ? `${bytes / kibibyte} KiB` : `${bytes / mebibyte} MiB`;
}

async function writeAll(file: FileHandle, bytes: Buffer, offset: number): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const { bytesWritten } = await file.write(bytes, done, bytes.length - done, offset + done);
    done += bytesWritten;
  }
}
