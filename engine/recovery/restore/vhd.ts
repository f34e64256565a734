/**
 * Footer of a fixed VHD: 512 bytes behind the raw disk, all numbers big-endian. Source: "Virtual
 * Hard Disk Image Format Specification", version 1.0 (Microsoft, 2006), sections "Hard Disk Footer
 * Format" and, for the geometry, "Appendix: CHS Calculation". Azure attaches page blobs of this
 * form when the disk is a whole number of MiB.
 *
 * The geometry can seldom express the exact size, and readers differ in which of the two they
 * believe. QEMU (block/vpc.c) goes by the creator application: for `win ` (Hyper-V), which we
 * write, it takes the size; for names that it does not know, the geometry, which would cut the
 * disk's end off.
 */

import { createHash } from "node:crypto";
import { FileVolume } from "../../disk/source/file-volume.ts";
import { TidemarkError } from "../../errors.ts";
import { shellWord } from "../../shell-word.ts";
import type { TargetImage } from "./target.ts";

export const vhdFooterBytes = 512;
/** Azure wants the disk to be a multiple of this. */
export const vhdAlignmentBytes: number = 1024 * 1024;
/** The largest disk that the format's readers, QEMU and Hyper-V among them, take from a file. */
export const vhdFileDiskBytesMax: number = 2040 * 1024 ** 3;
/** The largest page blob that Azure holds, footer included: 8 TiB. */
export const vhdBlobBytesMax: number = 8 * 1024 ** 4;

const cookie = "conectix";
const creator = "win ";
const fixedDisk = 2;
/** VHD counts seconds from 2000-01-01T00:00:00Z. */
const epochMs: number = Date.UTC(2000, 0, 1);

export interface VhdGeometry {
  readonly cylinders: number;
  readonly heads: number;
  readonly sectorsPerTrack: number;
}

export interface FixedVhd {
  /** Size of the disk, footer not included. */
  readonly diskBytes: number;
  /** 16 bytes that tell this image from others. */
  readonly uuid: Uint8Array;
  /** Time of creation in milliseconds since 1970, kept in whole seconds. */
  readonly createdMs: number;
}

/** Size of the VHD's disk that holds a volume: rounded up to a MiB, and never empty. */
export function vhdDiskBytes(volumeBytes: number): number {
  return Math.max(1, Math.ceil(volumeBytes / vhdAlignmentBytes)) * vhdAlignmentBytes;
}

/** The 512 bytes that follow the disk. Errors: UNSUPPORTED above 8 TiB, footer included. */
export function fixedVhdFooter(vhd: FixedVhd): Buffer {
  const { diskBytes } = vhd;
  if (diskBytes % 512 !== 0 || vhd.uuid.byteLength !== 16)
    throw new TidemarkError("INTERNAL", "a VHD has whole sectors and a UUID of 16 bytes");
  if (diskBytes + vhdFooterBytes > vhdBlobBytesMax) throw vhdTooLarge(diskBytes, vhdBlobBytesMax - vhdFooterBytes);
  const footer = Buffer.alloc(vhdFooterBytes);
  footer.write(cookie, 0, "latin1");
  footer.writeUInt32BE(2, 8); // Features: the bit that is always set.
  footer.writeUInt32BE(0x00010000, 12); // Format version 1.0.
  footer.fill(0xff, 16, 24); // No data offset: a fixed disk has no dynamic header.
  footer.writeUInt32BE(Math.min(0xffffffff, Math.max(0, Math.floor((vhd.createdMs - epochMs) / 1000))), 24);
  footer.write(creator, 28, "latin1");
  footer.writeUInt32BE(0x000a0000, 32); // Creator version 10.0.
  footer.write("Wi2k", 36, "latin1"); // Creator host: the specification knows Windows and Macintosh.
  footer.writeBigUInt64BE(BigInt(diskBytes), 40); // Size at creation.
  footer.writeBigUInt64BE(BigInt(diskBytes), 48); // Size now.
  const geometry = vhdGeometry(diskBytes);
  footer.writeUInt16BE(geometry.cylinders, 56);
  footer.writeUInt8(geometry.heads, 58);
  footer.writeUInt8(geometry.sectorsPerTrack, 59);
  footer.writeUInt32BE(fixedDisk, 60);
  footer.set(vhd.uuid, 68);
  footer.writeUInt32BE(footerChecksum(footer), 64);
  return footer;
}

/** What a footer says, or undefined when these 512 bytes are not the footer of a fixed VHD. */
export function parseFixedVhdFooter(bytes: Uint8Array): FixedVhd | undefined {
  if (bytes.byteLength !== vhdFooterBytes) return undefined;
  const footer = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (footer.toString("latin1", 0, 8) !== cookie || footer.readUInt32BE(64) !== footerChecksum(footer))
    return undefined;
  if (footer.readUInt32BE(60) !== fixedDisk) return undefined;
  const diskBytes = Number(footer.readBigUInt64BE(48));
  if (!Number.isSafeInteger(diskBytes)) return undefined;
  return {
    diskBytes,
    uuid: Uint8Array.from(footer.subarray(68, 84)),
    createdMs: epochMs + footer.readUInt32BE(24) * 1000,
  };
}

/** The footer of an image that is a fixed VHD and nothing more; undefined: it is none. */
export async function readFixedVhdFooter(
  sizeBytes: number,
  read: (offset: number, into: Uint8Array) => Promise<unknown>,
): Promise<FixedVhd | undefined> {
  if (sizeBytes < vhdFooterBytes) return undefined;
  const bytes = new Uint8Array(vhdFooterBytes);
  await read(sizeBytes - vhdFooterBytes, bytes);
  const footer = parseFixedVhdFooter(bytes);
  return footer?.diskBytes === sizeBytes - vhdFooterBytes ? footer : undefined;
}

/**
 * Opens an image file or block device; of a fixed VHD, the disk that it holds. Errors: as
 * `FileVolume.open`; UNSUPPORTED for a VHD whose disk does not lie in it as it is.
 */
export async function openImage(path: string): Promise<FileVolume> {
  const volume = await FileVolume.open(path);
  try {
    const sizeBytes = await volume.sizeBytes();
    const footer = await readFixedVhdFooter(sizeBytes, async (offset, into) => await volume.read(offset, into));
    if (footer !== undefined) volume.endAt(footer.diskBytes);
    else if (await isOtherVhd(volume, sizeBytes)) {
      throw new TidemarkError("UNSUPPORTED", `${path} is a dynamic or differencing VHD`, {
        remedy: `convert it first: \`qemu-img convert -O raw ${shellWord(path)} IMAGE\``,
        detail: { path },
      });
    }
    return volume;
  } catch (error) {
    await volume.close();
    throw error;
  }
}

/** Such a VHD begins with a copy of its footer. */
async function isOtherVhd(volume: FileVolume, sizeBytes: number): Promise<boolean> {
  if (sizeBytes < 2 * vhdFooterBytes) return false;
  const [head, tail] = [Buffer.alloc(vhdFooterBytes), Buffer.alloc(vhdFooterBytes)];
  await volume.read(0, head);
  await volume.read(sizeBytes - vhdFooterBytes, tail);
  return head.equals(tail) && head.toString("latin1", 0, cookie.length) === cookie;
}

/**
 * Cylinders, heads and sectors per track by the specification's appendix; disks above 127 GiB all
 * get the largest geometry.
 */
export function vhdGeometry(diskBytes: number): VhdGeometry {
  const sectors = Math.min(Math.floor(diskBytes / 512), 65535 * 16 * 255);
  let sectorsPerTrack = 17;
  let tracks = Math.floor(sectors / 17);
  let heads = Math.max(4, Math.ceil(tracks / 1024));
  if (sectors >= 65535 * 16 * 63) {
    sectorsPerTrack = 255;
    heads = 16;
    tracks = Math.floor(sectors / 255);
  } else {
    if (tracks >= heads * 1024 || heads > 16) {
      sectorsPerTrack = 31;
      heads = 16;
      tracks = Math.floor(sectors / 31);
    }
    if (tracks >= heads * 1024) {
      sectorsPerTrack = 63;
      heads = 16;
      tracks = Math.floor(sectors / 63);
    }
  }
  return { cylinders: Math.floor(tracks / heads), heads, sectorsPerTrack };
}

/** The error for a disk that no VHD of this kind can hold. */
export function vhdTooLarge(diskBytes: number, diskBytesMax: number): TidemarkError {
  return new TidemarkError(
    "UNSUPPORTED",
    `a disk of ${String(diskBytes)} bytes is too large for a fixed VHD, which ends at ${String(diskBytesMax)}`,
    {
      remedy: "materialize it to a raw file or a block device with `--format raw`",
      detail: { diskBytes, diskBytesMax },
    },
  );
}

/** One's complement of the sum of all bytes but the checksum's own. */
function footerChecksum(footer: Uint8Array): number {
  let sum = 0;
  for (const [at, byte] of footer.entries()) if (at < 64 || at >= 68) sum += byte;
  return ~sum >>> 0;
}

/**
 * The footer of a point's image. Its UUID follows from vault and point, so a resumed or repeated
 * run writes the same bytes.
 */
export function planFooter(plan: Pick<TargetImage, "vaultId" | "point" | "volumeBytes" | "pointTimeMs">): Buffer {
  const uuid = createHash("sha256").update(`${plan.vaultId}\n${plan.point}`).digest().subarray(0, 16);
  return fixedVhdFooter({ diskBytes: vhdDiskBytes(plan.volumeBytes), uuid, createdMs: plan.pointTimeMs });
}
