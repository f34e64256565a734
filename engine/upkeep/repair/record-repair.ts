/**
 * Rebuilding of the records that garbage collections write. While one of them cannot be read, no
 * writer refers to the segment's chunks, because what has been freed is not known.
 *
 * - *Dead pages* of a segment read as zeros. A run of zero pages belongs to no readable frame, or
 *   to chunks that do not have the digest in their frame's table; a chunk that has its digest
 *   contains zeros itself. Pages that were only condemned are forgotten: the next collection
 *   condemns them again.
 * - *The newest collection* is a random id. A new id makes every writer read all records before it
 *   goes on.
 *
 * Cost: each segment with a damaged record is read in full.
 */
import { randomBytes } from "node:crypto";
import { hasCode, isUnreadable, throwIfAborted } from "../../errors.ts";
import { digestBytes } from "../../limits.ts";
import type { MappedChunk } from "../../pipeline/fetch-plan.ts";
import { createDigest, type DigestKernel } from "../../pipeline/kernels.ts";
import { Lz4 } from "../../pipeline/lz4.ts";
import { pageAlignmentBytes } from "../../sink.ts";
import { fromHex, sameBytes, toHex } from "../../store/format/checksum.ts";
import type { VaultDocument } from "../../store/format/documents.ts";
import { storedLength } from "../../store/format/frame.ts";
import { parseSegmentName } from "../../store/format/names.ts";
import { quarantinePrefix } from "../../store/format/proof.ts";
import { collectionName, deadPrefix, encodeCollection, encodeDead, segmentOfDead } from "../../store/format/reclaim.ts";
import { readCollection, readDead } from "../../store/segments/dead-pages.ts";
import { walkFrames } from "../../store/segments/frame-walk.ts";
import { PageSet } from "../../store/segments/page-set.ts";
import type { Store } from "../../store/store.ts";
import { plainOf } from "../scrub/heal.ts";

export interface RecordRepairOptions {
  readonly store: Store;
  readonly document: VaultDocument;
  /** Writes an object. */
  readonly put: (name: string, bytes: Uint8Array) => Promise<void>;
  readonly signal?: AbortSignal | undefined;
}

/** A record that could not be read. */
export interface DamagedRecord {
  readonly name: string;
  readonly isRebuilt: boolean;
  /** Of a record of dead pages that was rebuilt. */
  readonly dead?: { readonly segment: string; readonly pages: PageSet } | undefined;
  readonly message: string;
}

/** Collections clear no shorter runs. */
const runPagesMin = 4;
const readBytes: number = 1024 * 1024;

/** Errors: those of the store. */
export async function repairRecords(options: RecordRepairOptions): Promise<readonly DamagedRecord[]> {
  const { store, document, put, signal } = options;
  const collection = toHex(randomBytes(16));
  const found: DamagedRecord[] = [];
  for await (const { name } of store.list(deadPrefix, { signal })) {
    throwIfAborted(signal);
    const segment = segmentOfDead(name);
    const fault = await faultOf(async () => await readDead(store, document.vault, name, { signal }));
    if (fault === undefined) continue;
    const dead =
      fault.isUnknown || parseSegmentName(segment) === undefined ? undefined : await deadPages(options, segment);
    if (dead !== undefined)
      await put(
        name,
        encodeDead({
          vault: document.vault,
          collection,
          segment,
          clearing: false,
          kept: 0,
          dead: dead.runs(),
          condemned: [],
        }),
      );
    const fate =
      dead === undefined
        ? "the frames of its segment cannot be read, so it cannot be rebuilt"
        : "rebuilt from the frames of its segment";
    const rebuilt = dead === undefined ? undefined : { segment, pages: dead };
    found.push({ name, isRebuilt: dead !== undefined, dead: rebuilt, message: `${fault.message}; ${fate}` });
  }
  const fault = await faultOf(async () => await readCollection(store, document.vault, { signal }));
  const message =
    fault?.message ??
    ((await isForgotten(store, signal))
      ? `${collectionName} is gone, though collections have left records`
      : undefined);
  const isDue = message !== undefined && fault?.isUnknown !== true;
  // Written last: a writer that sees the new id reads rebuilt records.
  if (isDue || found.some(({ isRebuilt }) => isRebuilt))
    await put(collectionName, encodeCollection({ vault: document.vault, collection, startedMs: Date.now() }));
  if (message !== undefined)
    found.push({
      name: collectionName,
      isRebuilt: isDue,
      message: `${message}${isDue ? "; a new id makes writers read all records" : ""}`,
    });
  return found;
}

/** Whether there are records, and no id that makes writers read them. */
async function isForgotten(store: Store, signal: AbortSignal | undefined): Promise<boolean> {
  if ((await store.etagOf(collectionName, { signal })) !== undefined) return false;
  for (const prefix of [deadPrefix, quarantinePrefix])
    for await (const { name } of store.list(prefix, { signal })) return name !== "";
  return false;
}

/** Why it cannot be read; `isUnknown`: a later version has written it. */
async function faultOf(
  read: () => Promise<unknown>,
): Promise<{ readonly message: string; readonly isUnknown: boolean } | undefined> {
  try {
    await read();
    return undefined;
  } catch (error) {
    if (!isUnreadable(error)) throw error;
    return { message: error.message, isUnknown: error.code === "FORMAT_UNSUPPORTED" };
  }
}

/**
 * Pages of a segment that have been freed; none of a segment that is gone; undefined when its
 * frames cannot be read.
 */
async function deadPages(
  { store, document, signal }: RecordRepairOptions,
  segment: string,
): Promise<PageSet | undefined> {
  try {
    const { writtenBytes } = await store.statPages(segment, { signal });
    const zeros = await zeroPages(store, segment, writtenBytes, signal);
    const digest = await createDigest(document.digest, fromHex(document.digestKey));
    const lz4 = new Lz4();
    const sound = new PageSet();
    const place = { name: segment, sizeBytes: writtenBytes, dead: zeros };
    for await (const { offset, table } of walkFrames(store, fromHex(document.vault), place, { signal })) {
      for (let chunk = 0; chunk < table.count; chunk += 1) {
        const at = offset + (table.offsets[chunk] ?? 0);
        const storedWord = table.storedWords[chunk] ?? 0;
        if (!zeros.touches(at, storedLength(storedWord))) continue;
        const payload = new Uint8Array(storedLength(storedWord));
        await store.readPages(segment, at, payload, { signal });
        const stored = {
          segment,
          offset: at,
          storedWord,
          granules: table.granules[chunk] ?? 0,
          digest: table.digests.subarray(chunk * digestBytes, (chunk + 1) * digestBytes),
        };
        if (hasItsDigest(store, payload, stored, digest, lz4)) sound.addBytes(at, payload.length);
      }
    }
    return without(zeros, sound);
  } catch (error) {
    if (hasCode(error, "OBJECT_NOT_FOUND")) return new PageSet();
    if (isUnreadable(error)) return undefined;
    throw error;
  }
}

async function zeroPages(
  store: Store,
  segment: string,
  writtenBytes: number,
  signal: AbortSignal | undefined,
): Promise<PageSet> {
  const zeros = new PageSet();
  const none = Buffer.alloc(pageAlignmentBytes);
  let from = 0;
  const noteRun = (end: number): void => {
    if (end - from >= runPagesMin) zeros.add(from, end);
    from = end + 1;
  };
  for (let offset = 0; offset < writtenBytes; offset += readBytes) {
    throwIfAborted(signal);
    const bytes = Buffer.alloc(Math.min(readBytes, writtenBytes - offset));
    await store.readPages(segment, offset, bytes, { signal });
    for (let at = 0; at < bytes.length; at += pageAlignmentBytes) {
      const isZero = bytes.compare(none, 0, none.length, at, at + pageAlignmentBytes) === 0;
      if (!isZero) noteRun((offset + at) / pageAlignmentBytes);
    }
  }
  noteRun(Math.ceil(writtenBytes / pageAlignmentBytes));
  return zeros;
}

function hasItsDigest(store: Store, payload: Uint8Array, stored: MappedChunk, digest: DigestKernel, lz4: Lz4): boolean {
  const plain = plainOf(store, payload, stored, lz4);
  if (plain === undefined) return false;
  const computed = new Uint8Array(digestBytes);
  digest(plain, computed, 0);
  return sameBytes(computed, stored.digest);
}

function without(pages: PageSet, others: PageSet): PageSet {
  const left = new PageSet();
  for (const { from, end } of pages.runs())
    for (let page = from; page < end; page += 1) if (!others.has(page)) left.add(page, page + 1);
  return left;
}
