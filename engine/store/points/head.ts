/**
 * Heads: the object `disks/<disk>/head` of each disk, which lists its committed points and names
 * its writer.
 *
 * The head is the first object of a disk that is written, so where points are and no head is, the
 * head was lost. Then nothing creates a new one, because that would hide all points: `vault repair`
 * rebuilds it.
 *
 * A disk begins with its first point. Until then, and after the disk has been removed, its head
 * lists no point and only carries the epoch: users are told that there is no such disk.
 */
import { hasCode, TidemarkError } from "../../errors.ts";
import { sequenceMax, timeMsMax } from "../../limits.ts";
import type { HeadDocument } from "../format/documents.ts";
import { countPoints, decodeHead, documentBytesMax, encodeHead } from "../format/documents.ts";
import { epochMax, headName, manifestsPrefix } from "../format/names.ts";
import { type Store, storeRegressed } from "../store.ts";

/** A head, and the ETag by which it is swapped. */
export interface StoredHead {
  readonly head: HeadDocument;
  readonly etag: string;
}

/**
 * Reads the head of a disk that has points.
 *
 * @throws DISK_NOT_FOUND, also when its head lists no point; otherwise as `readHead`.
 */
export async function readDisk(store: Store, vault: string, disk: string, signal?: AbortSignal): Promise<HeadDocument> {
  const { head } = await readHead(store, vault, disk, signal);
  if (countPoints(head) === 0) throw diskNotFound(disk);
  return head;
}

/**
 * Reads a disk's head, with or without points, and tells the store's watch of it.
 *
 * @throws DISK_NOT_FOUND; DAMAGED, also when the head is gone and points of the disk are there;
 * FORMAT_UNSUPPORTED.
 */
export async function readHead(store: Store, vault: string, disk: string, signal?: AbortSignal): Promise<StoredHead> {
  const name = headName(disk);
  try {
    const { bytes, etag } = await store.get(name, documentBytesMax, { signal });
    const head = decodeHead(bytes, name, { vault, disk });
    await store.onHead(head);
    return { head, etag };
  } catch (error) {
    if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
    if (await hasPoints(store, disk, signal)) throw headGone(disk, error);
    throw diskNotFound(disk, error);
  }
}

/**
 * Reads a disk's head. Creates the disk, without points and writer, if the vault holds none of this
 * name.
 *
 * @throws DAMAGED, FORMAT_UNSUPPORTED.
 */
export async function readOrCreateHead(
  store: Store,
  vault: string,
  disk: string,
  signal: AbortSignal | undefined,
): Promise<StoredHead> {
  try {
    return await readHead(store, vault, disk, signal);
  } catch (error) {
    if (!hasCode(error, "DISK_NOT_FOUND")) throw error;
  }
  const empty: HeadDocument = { vault, disk, epoch: 0, writer: null, collection: null, pages: [], points: [] };
  try {
    await store.putOnce(headName(disk), encodeHead(empty), { signal });
  } catch (error) {
    if (!hasCode(error, "OBJECT_EXISTS")) throw error; // another process has just created the disk
  }
  return await readHead(store, vault, disk, signal);
}

async function hasPoints(store: Store, disk: string, signal: AbortSignal | undefined): Promise<boolean> {
  for await (const _point of store.list(manifestsPrefix(disk), { signal })) return true;
  return false;
}

export function diskNotFound(disk: string, cause?: unknown): TidemarkError {
  return new TidemarkError("DISK_NOT_FOUND", `the vault holds no disk ${JSON.stringify(disk)}`, {
    remedy: "`tidemark disks list` shows the disks that it holds",
    detail: { disk },
    cause,
  });
}

function headGone(disk: string, cause: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", `${headName(disk)} is gone, but points of the disk are there`, {
    remedy: "run `tidemark vault repair`: it rebuilds the head from the points",
    detail: { object: headName(disk), isGone: true },
    cause,
  });
}

/**
 * The epoch of the writer that follows: above the head's, and above `known`, an epoch that was in use.
 *
 * @throws DAMAGED when nothing can follow: then no writer wrote this head.
 */
export function nextEpoch({ disk, epoch: last, points }: HeadDocument, known: number): number {
  const epoch = Math.max(last, known);
  const newest = points.at(-1);
  if (epoch < epochMax && (newest?.sequence ?? 0) < sequenceMax && (newest?.timeMs ?? 0) < timeMsMax) return epoch + 1;
  throw new TidemarkError("DAMAGED", `${headName(disk)} has the last epoch, sequence number or time that there is`, {
    remedy: "replicate the disk under another name: `tidemark replicate SOURCE --disk NAME`; its points stay readable",
    detail: { object: headName(disk) },
  });
}

/** The error for a head that is older than what the store has acknowledged. */
export function headRegressed(disk: string, cause: unknown): TidemarkError {
  const message = `the store went back in time: the head of disk ${JSON.stringify(disk)} is older than what was acknowledged`;
  return storeRegressed(headName(disk), message, { cause });
}
