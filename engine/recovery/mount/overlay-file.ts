/**
 * Overlay file: keeps what is written to a mounted point. It holds a header with the point's
 * identity, a record of which granules are in it, and the granules at their places on the disk. It
 * is sparse.
 *
 *     0        header, 4 KiB: see `overlay-header.ts`
 *     4 KiB    record: pages of 2 × 4 KiB, slots 0 and 1, as in a tracking file (sectors of 512 bytes, each with page, slot, generation and CRC-32);
 *              15,616 granules a page, two bits each: 0 not here, 1 here, 2 zeros. A pair of slots that was never written is all zeros.
 *              Before a page is written for the first time, both of its slots are made: slot 0 of generation 0, then slot 1 of generation 1.
 *     behind   summary: pages like those of the record, numbered on. One byte a page of the record: 0 the page counts, 1 all of its granules are
 *              here, 2 all are zeros. With 1 or 2 the page does not count.
 *     behind   the granules
 *
 * So a range of any length that becomes zeros, or is hydrated, costs a byte for 61 MiB, and a page of the record is written only when its granules differ.
 *
 * An image is the same in two files: header and record in one, and the granules in the other, a raw
 * sparse image of the disk. Zeros of an image really read as zeros, so that it can be used by itself
 * once no granule is below.
 *
 * Orderings: the header is durable before the file gets its name. A granule is written, or made
 * zeros, before the record in memory says so. `save`: granules synced → new pages: slot 0 made →
 * synced → slot 1 made → synced → pages of the record, each to its older slot → synced → the same for
 * pages of the summary; without a change of the record only the granules are synced. A page that
 * counts again is durable before the summary says that it counts.
 *
 * Invariant: after a crash the record names nothing that is not there. A torn page counts as its
 * older slot, and what was written since the last `save` may be there or not, as on any disk with a
 * write cache. A sector that no crash can leave is damage, and the overlay is refused: zeros are
 * left only by a crash while the slots of a page were made.
 *
 * One process has the files, by flock. A temporary overlay has no name and no record, and ends with
 * its process.
 */

import { randomBytes } from "node:crypto";
import { link, open, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { setImmediate } from "node:timers/promises";
import type { BlockDevice } from "../../device.ts";
import { LiveFile } from "../../disk/source/live-file.ts";
import { fileError } from "../../disk/source/positional-file.ts";
import { syncFolder } from "../../disk/source/sync-folder.ts";
import { decodePage, encodePage, pageBitmapBytes, pageSlotBytes } from "../../disk/tracking/tracking-format.ts";
import { hasCode, systemCode, TidemarkError } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import { GranuleStates, granuleState } from "./granule-states.ts";
import {
  encodeHeader,
  type OverlayIdentity,
  type OverlayKind,
  overlayDamaged,
  overlayHeaderBytes,
  readOverlayHeader,
} from "./overlay-header.ts";

const pairBytes: number = 2 * pageSlotBytes;
const sectorBytes = 512;
/** The record is read in portions of so many pages. */
const portionPages = 256;
/** Pages that are saved at a time, 8 MiB of copies. Each portion costs up to four syncs. */
const savedPages = 2048;
/** Pages that are written in one turn of the event loop. */
const pagesATurn = 32;
/** In the summary: the page of the record says how its granules are. */
const pageCounts: typeof granuleState.below = granuleState.below;
const zeroSector: Buffer = Buffer.alloc(sectorBytes);

/** Which slot of a page counts, and the highest generation in its pair. */
interface Slot {
  readonly slot: number;
  readonly generation: number;
}

export class OverlayFile {
  readonly states: GranuleStates = new GranuleStates(pageBitmapBytes);
  readonly #kind: OverlayKind;
  /** Undefined: nothing is kept. */
  readonly #record: BlockDevice | undefined;
  /** Holds the granules from byte `#dataAt` on; the record's file itself, unless it is an image. */
  readonly #data: BlockDevice;
  readonly #dataAt: number;
  readonly #slots = new Map<number, Slot>();
  /** The summary as it was saved last. */
  readonly #summary: Uint8Array;

  private constructor(kind: OverlayKind, record: BlockDevice | undefined, data: BlockDevice, sizeBytes: number) {
    this.#kind = kind;
    this.#record = record;
    this.#data = data;
    this.#dataAt = kind === "overlay" ? dataOffset(sizeBytes) : 0;
    this.#summary = new Uint8Array(recordPages(sizeBytes));
  }

  /**
   * Opens the overlay at `path`, or makes it. Errors: those of `over`, and WRITER_ACTIVE (it is in
   * use), NO_SPACE, ACCESS_REFUSED, TARGET_FAILED, UNSUPPORTED (no locks here).
   */
  static async open(path: string, identity: OverlayIdentity): Promise<OverlayFile> {
    return await OverlayFile.over(await openOrCreate(path, identity), identity);
  }

  /**
   * Takes over the file that holds an overlay; it is closed when that fails. Errors:
   * INVALID_ARGUMENT (what is there is no overlay, or another point's), DAMAGED,
   * FORMAT_UNSUPPORTED, DEVICE_FAILED, SOURCE_UNREADABLE.
   */
  static async over(file: BlockDevice, identity: OverlayIdentity): Promise<OverlayFile> {
    return await load(new OverlayFile("overlay", file, file, identity.sizeBytes), [file], async () => {
      checkIdentity(file.description, await readOverlayHeader(file), identity);
      if (file.sizeBytes !== fileBytes(identity.sizeBytes)) throw lengthIsWrong("overlay", file);
    });
  }

  /**
   * Takes over the record of an image, whose header the caller has read, and the image; both are
   * closed when that fails. Errors: DAMAGED, DEVICE_FAILED, SOURCE_UNREADABLE.
   */
  static async ofImage(record: BlockDevice, image: BlockDevice, sizeBytes: number): Promise<OverlayFile> {
    return await load(new OverlayFile("record", record, image, sizeBytes), [record, image], async () => {
      if (record.sizeBytes !== recordBytes(sizeBytes)) throw lengthIsWrong("record", record);
      if (image.sizeBytes !== sizeBytes) throw lengthIsWrong("record", image);
      await Promise.resolve();
    });
  }

  /**
   * Makes an overlay in `folder` that is gone when it is closed, or when the process ends. Errors:
   * NO_SPACE, ACCESS_REFUSED, TARGET_FAILED, UNSUPPORTED.
   */
  static async temporary(folder: string, sizeBytes: number): Promise<OverlayFile> {
    const path = join(folder, `tidemark-overlay-${randomBytes(8).toString("hex")}`);
    try {
      await create(path, Buffer.alloc(0), fileBytes(sizeBytes));
      return new OverlayFile("overlay", undefined, await LiveFile.open(path), sizeBytes);
    } finally {
      await rm(path, { force: true });
    }
  }

  tryRead(offset: number, into: Uint8Array): boolean {
    return this.#data.tryRead(this.#dataAt + offset, into);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#data.read(this.#dataAt + offset, into);
  }

  tryWrite(offset: number, bytes: Uint8Array): boolean {
    return this.#data.tryWrite(this.#dataAt + offset, bytes);
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#data.write(this.#dataAt + offset, bytes);
  }

  /**
   * Makes granules [first, end) zeros and frees their space where the file system can. `endBytes`:
   * where they end on the disk.
   */
  async clear(first: number, end: number, endBytes: number): Promise<void> {
    const offset = first * granuleBytes;
    if (this.#kind === "record") await this.#makeZeros(offset, endBytes - offset);
    else if (this.states.has(granuleState.data, first, end))
      await this.#data.trim(this.#dataAt + offset, (end - first) * granuleBytes);
    this.states.set(first, end, granuleState.zeros);
  }

  /**
   * Makes durable what had been written, and was in the record, when it was called. Calls must not
   * overlap. Errors: NO_SPACE, ACCESS_REFUSED, DEVICE_FAILED (when a sync fails, for good).
   */
  async save(): Promise<void> {
    if (this.#record === undefined) return;
    const changed = this.states.changedPages();
    const whole = changed.filter((page) => this.states.wholeState(page) !== undefined);
    const mixed = changed.filter((page) => this.states.wholeState(page) === undefined);
    for (let from = 0; from === 0 || from < mixed.length; from += savedPages)
      await this.#savePages(this.#record, [...(from === 0 ? whole : []), ...mixed.slice(from, from + savedPages)]);
  }

  /** Does not save. Idempotent. */
  async close(): Promise<void> {
    await this.#data.close();
    await this.#record?.close();
  }

  /**
   * Makes a range of an image zeros. It may hold anything where the record says below or zeros: a
   * write before a crash that the record had not learned of. What is zeros is left alone.
   */
  async #makeZeros(offset: number, length: number): Promise<void> {
    const end = offset + length;
    for (let at = offset; at < end; ) {
      const [found] = this.#data.extents(at, end - at, 1);
      const size = found?.length ?? end - at;
      if (found?.kind !== "hole" && !(await this.#isZeros(at, size))) await this.#data.zero(at, size, true);
      at += size;
    }
  }

  /** Whether a short range reads as zeros: the disk's last granule, when it is not whole. */
  async #isZeros(offset: number, length: number): Promise<boolean> {
    if (length >= granuleBytes) return false;
    const bytes = Buffer.alloc(length);
    await this.#data.read(offset, bytes);
    return bytes.every((byte) => byte === 0);
  }

  async #savePages(record: BlockDevice, pages: readonly number[]): Promise<void> {
    // Copied before the sync: later changes of the record are not covered by it.
    const mixed = new Map<number, Uint8Array>();
    const summary = Uint8Array.from(this.#summary);
    for (const page of pages) {
      const state = this.states.wholeState(page);
      summary[page] = state ?? pageCounts;
      const bytes = this.states.take(page);
      if (state === undefined) mixed.set(page, bytes);
    }
    try {
      await this.#data.flush();
      await this.#writePages(record, mixed);
      await this.#writePages(record, this.#changedSummary(summary));
    } catch (error) {
      for (const page of pages) this.states.putBack(page);
      throw error;
    }
    this.#summary.set(summary);
  }

  /** The pages of the summary that are not as they were saved last, by their numbers. */
  #changedSummary(summary: Uint8Array): Map<number, Uint8Array> {
    const changed = new Map<number, Uint8Array>();
    for (let from = 0; from < summary.byteLength; from += pageBitmapBytes) {
      const bytes = summary.subarray(from, from + pageBitmapBytes);
      if (Buffer.compare(bytes, this.#summary.subarray(from, from + pageBitmapBytes)) !== 0)
        changed.set(summary.byteLength + from / pageBitmapBytes, bytes);
    }
    return changed;
  }

  /** Writes each page to the slot of its pair that does not count, durably. */
  async #writePages(record: BlockDevice, pages: ReadonlyMap<number, Uint8Array>): Promise<void> {
    if (pages.size === 0) return;
    await this.#makeSlots(
      record,
      [...pages.keys()].filter((page) => !this.#slots.has(page)),
    );
    const written = [...pages].map(([page, bytes]) => {
      const { slot, generation } = this.#slots.get(page) ?? { slot: 1, generation: 1 };
      return { page, bytes, slot: 1 - slot, generation: generation + 1 };
    });
    for (const { page, bytes, slot, generation } of written)
      await writePage(record, page, slot, encodePage(page, slot, generation, bytes));
    await record.flush();
    for (const { page, slot, generation } of written) this.#slots.set(page, { slot, generation });
  }

  async #makeSlots(record: BlockDevice, pages: readonly number[]): Promise<void> {
    for (const slot of pages.length === 0 ? [] : [0, 1]) {
      for (const page of pages) await writePage(record, page, slot, emptySlot(page, slot));
      await record.flush();
    }
  }

  /**
   * Reads the record, and makes zeros of an image what was written there and is not in the record.
   * Errors: DAMAGED, NO_SPACE, DEVICE_FAILED, SOURCE_UNREADABLE.
   */
  async load(): Promise<void> {
    await this.#loadRecord();
    if (this.#kind === "overlay") return;
    const end = Math.ceil(this.#data.sizeBytes / granuleBytes);
    for (let at = 0; at < end; ) {
      const stop = this.states.runEnd(at, end);
      const offset = at * granuleBytes;
      if (this.states.get(at) === granuleState.zeros)
        await this.#makeZeros(offset, Math.min(stop * granuleBytes, this.#data.sizeBytes) - offset);
      at = stop;
    }
  }

  async #loadRecord(): Promise<void> {
    const record = this.#record;
    if (record === undefined) return;
    const pages = this.#summary.byteLength;
    await this.#loadPages(record, pages, pages + summaryPages(pages));
    const end = pageOffset(pages, 0);
    let next = 0;
    for (let at = overlayHeaderBytes; at < end; ) {
      const [extent] = record.extents(at, end - at, 1);
      if (extent === undefined) return;
      const stop = extent.offset + extent.length;
      const last = Math.ceil((stop - overlayHeaderBytes) / pairBytes);
      if (extent.kind === "data") {
        next = Math.max(next, Math.floor((at - overlayHeaderBytes) / pairBytes));
        for (; next < last; next = Math.min(last, next + portionPages))
          await this.#loadPages(record, next, Math.min(last, next + portionPages));
      }
      at = stop;
    }
  }

  /** Loads pages of the record, or all of the summary. */
  async #loadPages(record: BlockDevice, first: number, end: number): Promise<void> {
    const bytes = Buffer.alloc((end - first) * pairBytes);
    await record.read(pageOffset(first, 0), bytes);
    for (let page = first; page < end; page += 1) {
      const pair = bytes.subarray((page - first) * pairBytes, (page - first + 1) * pairBytes);
      if (isUnmade(pair, page)) continue;
      const { payload, slot, generation } = this.#decodePair(pair, page, record.description);
      this.#slots.set(page, { slot, generation });
      if (page >= this.#summary.byteLength) this.#loadSummary(page, payload, record.description);
      else if (this.#summary[page] !== pageCounts) continue;
      else if (GranuleStates.canLoad(payload)) this.states.load(page, payload);
      else throw this.#stateIsUnknown(page, record.description);
    }
  }

  #loadSummary(number: number, payload: Uint8Array, path: string): void {
    const first = (number - this.#summary.byteLength) * pageBitmapBytes;
    for (let page = first; page < Math.min(first + pageBitmapBytes, this.#summary.byteLength); page += 1) {
      const state = payload[page - first];
      if (state === pageCounts) continue;
      if (state !== granuleState.data && state !== granuleState.zeros) throw this.#stateIsUnknown(number, path);
      this.#summary[page] = state;
      this.states.loadWhole(page, state);
    }
  }

  #stateIsUnknown(page: number, path: string): TidemarkError {
    return overlayDamaged(this.#kind, path, `page ${page} holds a state that does not exist`);
  }

  #decodePair(pair: Buffer, page: number, path: string): ReturnType<typeof decodePage> {
    try {
      return decodePage(pair, page, path);
    } catch (error) {
      if (!hasCode(error, "DAMAGED")) throw error;
      throw overlayDamaged(this.#kind, path, error.message, error);
    }
  }
}

/** A slot as it is made: it says of no granule that it is here. */
function emptySlot(page: number, slot: number): Buffer {
  return Buffer.from(encodePage(page, slot, slot, new Uint8Array(0)));
}

/**
 * True of a pair that was never written, or of which a crash left only some sectors of its slots as
 * they were being made. Slot 1 is not begun before slot 0 is durable.
 */
function isUnmade(pair: Buffer, page: number): boolean {
  const made = Buffer.concat([emptySlot(page, 0), emptySlot(page, 1)]);
  const zeros = [false, false];
  const begun = [false, false];
  for (let at = 0; at < pairBytes; at += sectorBytes) {
    const sector = pair.subarray(at, at + sectorBytes);
    const slot = Math.floor(at / pageSlotBytes);
    if (sector.equals(zeroSector)) zeros[slot] = true;
    else if (sector.equals(made.subarray(at, at + sectorBytes))) begun[slot] = true;
    else return false;
  }
  return begun[1] === true ? zeros[0] === false && zeros[1] === true : zeros[1] === true;
}

/** Checks and reads what holds an overlay; `files` are closed when that fails. */
async function load(
  overlay: OverlayFile,
  files: readonly BlockDevice[],
  check: () => Promise<void>,
): Promise<OverlayFile> {
  try {
    // What a killed process left in the page cache can be read, but a power failure would undo it.
    for (const file of files) await file.flush();
    await check();
    await overlay.load();
    return overlay;
  } catch (error) {
    for (const file of files) await file.close();
    throw error;
  }
}

/** At once where that can be had: through the thread pool, thousands of pages take seconds. */
async function writePage(record: BlockDevice, page: number, slot: number, bytes: Uint8Array): Promise<void> {
  const offset = pageOffset(page, slot);
  if (!record.tryWrite(offset, bytes)) await record.write(offset, bytes);
  // Clients have their turn in between.
  if (page % pagesATurn === pagesATurn - 1) await setImmediate();
}

function pageOffset(page: number, slot: number): number {
  return overlayHeaderBytes + page * pairBytes + slot * pageSlotBytes;
}

/** Pages of the record of a disk, without the summary. */
function recordPages(sizeBytes: number): number {
  const granulesPerPage = pageBitmapBytes * 4;
  return Math.ceil(Math.ceil(sizeBytes / granuleBytes) / granulesPerPage);
}

function summaryPages(pages: number): number {
  return Math.ceil(pages / pageBitmapBytes);
}

function dataOffset(sizeBytes: number): number {
  const pages = recordPages(sizeBytes);
  return pageOffset(pages + summaryPages(pages), 0);
}

async function openOrCreate(path: string, identity: OverlayIdentity): Promise<LiveFile> {
  try {
    return await LiveFile.open(path);
  } catch (error) {
    if (!hasCode(error, "SOURCE_NOT_FOUND")) throw error;
  }
  await createFile(path, encodeHeader("overlay", identity), fileBytes(identity.sizeBytes));
  return await LiveFile.open(path);
}

/**
 * Makes a sparse file that begins with `header`, durably. It has a name of its own until it is
 * complete. A file of the name that is there already, or comes meanwhile, stays. Errors: NO_SPACE,
 * ACCESS_REFUSED, TARGET_FAILED.
 */
export async function createFile(path: string, header: Uint8Array, sizeBytes: number): Promise<void> {
  const partial = `${path}.partial-${randomBytes(4).toString("hex")}`;
  try {
    await create(partial, header, sizeBytes);
    await link(partial, path);
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw createFailed(path, error);
  } finally {
    await rm(partial, { force: true });
  }
  await syncFolder(dirname(path));
}

/** Length of the file that holds the record of an image. */
export function recordBytes(sizeBytes: number): number {
  return dataOffset(sizeBytes);
}

async function create(path: string, header: Uint8Array, sizeBytes: number): Promise<void> {
  try {
    const file = await open(path, "wx", 0o600);
    try {
      await file.write(header, 0, header.byteLength, 0);
      await file.truncate(sizeBytes);
      await file.sync();
    } finally {
      await file.close();
    }
  } catch (error) {
    throw createFailed(path, error);
  }
}

function fileBytes(sizeBytes: number): number {
  return dataOffset(sizeBytes) + Math.ceil(sizeBytes / granuleBytes) * granuleBytes;
}

function createFailed(path: string, error: unknown): TidemarkError {
  return fileError(error, {
    code: "TARGET_FAILED",
    what: `cannot make ${path}`,
    remedy: "name a path in a folder on a local file system that has room for what will be written",
    detail: { path },
  });
}

function checkIdentity(path: string, found: OverlayIdentity, wanted: OverlayIdentity): void {
  const isOurs = found.vault === wanted.vault && found.disk === wanted.disk && found.point === wanted.point;
  if (isOurs && found.sizeBytes === wanted.sizeBytes) return;
  const theirs = `point ${found.point} of disk ${JSON.stringify(found.disk)}`;
  throw new TidemarkError("INVALID_ARGUMENT", `${path} is the overlay of ${theirs} in the vault ${found.vault}`, {
    remedy: "mount that point with it, or name another path for the overlay",
    detail: { path, point: found.point },
  });
}

function lengthIsWrong(kind: OverlayKind, { description }: BlockDevice): TidemarkError {
  return overlayDamaged(kind, description, "its length is not what its header says");
}
