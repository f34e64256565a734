/**
 * Boot records: which disk of a machine holds its operating system, and which generation the machine is.
 *
 * An EFI system partition makes it generation 2 (UEFI); an active partition, boot code in the master
 * boot record or a BIOS boot partition make it generation 1. A file system without a partition table,
 * and a table without any of these, boot nothing.
 *
 * Layouts: UEFI Specification, chapter 5 (GUID partition table) and 5.2 (master boot record).
 */

import { type Refusal, refusal } from "./refusal.ts";
import type { Generation } from "./sizes.ts";

/** What the beginning of a disk boots by. */
export type BootRecord = "none" | "bios" | "uefi";

const sectorBytes = 512;
/** Master boot record, header and 128 entries of a GUID partition table. */
export const bootRecordBytes: number = 34 * sectorBytes;

/** Types of partitions of a GUID partition table, as they lie on the disk. */
const efiSystem = "28732ac11ff8d211ba4b00a0c93ec93b";
const biosBoot = "4861682149646f6e744e656564454649";

const mbr = { table: 446, entryBytes: 16, entries: 4, type: 4, signature: 510 } as const;
const mbrEfiSystem = 0xef;
const mbrProtective = 0xee;
const gpt = { entries: 80, entryBytes: 84, table: 72 } as const;

/** Judges the first `bootRecordBytes` of a disk, or as many as it has. */
export function bootRecordOf(head: Buffer): BootRecord {
  if (head.length < sectorBytes || head.readUInt16LE(mbr.signature) !== 0xaa55) return "none";
  const partitions = Array.from({ length: mbr.entries }, (_, index) => {
    const at = mbr.table + index * mbr.entryBytes;
    return { status: head[at] ?? 0, type: head[at + mbr.type] ?? 0 };
  });
  // A boot sector of a file system ends with the same signature, and has other bytes there.
  if (partitions.some(({ status }) => status !== 0 && status !== 0x80)) return "none";
  if (partitions.some(({ type }) => type === mbrProtective)) return gptRecordOf(head);
  if (partitions.some(({ type }) => type === mbrEfiSystem)) return "uefi";
  if (partitions.every(({ type }) => type === 0)) return "none";
  const hasCode = head.subarray(0, 440).some((byte) => byte !== 0);
  return hasCode || partitions.some(({ status }) => status === 0x80) ? "bios" : "none";
}

function gptRecordOf(head: Buffer): BootRecord {
  const header = head.subarray(sectorBytes, 2 * sectorBytes);
  if (header.length < sectorBytes || header.toString("latin1", 0, 8) !== "EFI PART") return "none";
  const at = Number(header.readBigUInt64LE(gpt.table)) * sectorBytes;
  const entryBytes = header.readUInt32LE(gpt.entryBytes);
  if (entryBytes < 128) return "none";
  const types = new Set<string>();
  const entries = Math.min(header.readUInt32LE(gpt.entries), 128);
  for (let index = 0; index < entries; index += 1)
    types.add(head.toString("hex", at + index * entryBytes, at + index * entryBytes + 16));
  return types.has(efiSystem) ? "uefi" : types.has(biosBoot) ? "bios" : "none";
}

/** A disk of a machine. */
interface BootDisk {
  readonly disk: string;
  readonly boot: BootRecord;
}

/** The disk that the plan names, else the only one that boots, else the first. */
export function chooseOsDisk<Disk extends BootDisk>(
  disks: readonly Disk[],
  osDisk: string | undefined,
): Disk | Refusal {
  const named = disks.find(({ disk }) => disk === osDisk);
  const booting = disks.filter(({ boot }) => boot !== "none");
  const found = osDisk === undefined ? (booting.length === 1 ? booting[0] : disks[0]) : named;
  return found ?? refusal(`the machine has no disk ${osDisk ?? ""}`, "write the name of one of its `disks`");
}

/** What the plan says, else 2 where the disk boots by UEFI. */
export function generationOf({ boot }: BootDisk, written: Generation | undefined): Generation {
  return written ?? (boot === "uefi" ? 2 : 1);
}
