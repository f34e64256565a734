/**
 * Overlay file: keeps what is written to a mounted point. It holds a header with the point's
 * identity, a record of which granules are in it, and the granules at their places on the disk. It
 * is sparse.
 *
 *     0        header, 4 KiB: magic "TMOVRLAY" · 8 version u32 · 12 length of the text u32 · 16 CRC-32 of the text u32 · 20 JSON: vault, disk, point, sizeBytes
 *     4 KiB    record: pages of 2 × 4 KiB, slots 0 and 1, as in a tracking file (sectors of 512 bytes, each with page, slot, generation and CRC-32);
 *              15,616 granules a page, two bits each: 0 not here, 1 here, 2 zeros. A pair of slots that was never written is all zeros.
 *              Before a page is written for the first time, both of its slots are made: slot 0 of generation 0, then slot 1 of generation 1.
 *     behind   the granules
 *
 * Orderings: the header is durable before the file gets its name. `save`: granules synced → new
 * pages: slot 0 made → synced → slot 1 made → synced → pages of the record, each to its older slot →
 * synced; without a change of the record only the granules are synced.
 *
 * Invariant: after a crash the record names nothing that is not there. A torn page counts as its
 * older slot, and what was written since the last `save` may be there or not, as on any disk with a
 * write cache. A sector that no crash can leave is damage, and the overlay is refused: zeros are
 * left only by a crash while the slots of a page were made.
 *
 * One process has the file, by flock. A temporary overlay has no name and no record, and ends with
 * its process.
 */
import { randomBytes } from "node:crypto";
import { link, open, rm } from "node:fs/promises";
import { dirname, join } from "node:path";
import { crc32 } from "node:zlib";
import type { BlockDevice } from "../../device.ts";
import { LiveFile } from "../../disk/source/live-file.ts";
import { fileError } from "../../disk/source/positional-file.ts";
import { syncFolder } from "../../disk/source/sync-folder.ts";
import { decodePage, encodePage, pageBitmapBytes, pageSlotBytes } from "../../disk/tracking/tracking-format.ts";
import { hasCode, systemCode, TidemarkError } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import { Fields, unsupportedFormat } from "../../store/format/fields.ts";
import { GranuleStates } from "./granule-states.ts";

/** Which disk an overlay lies on. */
export interface OverlayIdentity {
  readonly vault: string;
  readonly disk: string;
  /** Id of the point. */
  readonly point: string;
  readonly sizeBytes: number;
}

const headerBytes = 4096;
const magic = Buffer.from("TMOVRLAY");
const version = 1;
const textAt = 20;
const pairBytes: number = 2 * pageSlotBytes;
const sectorBytes = 512;
/** The record is read, and written between two syncs, in portions of so many pages. */
const portionPages = 256;
const anyText = /^[^]{1,512}$/;

/** Which slot of a page counts, and the highest generation in its pair. */
interface Slot {
  readonly slot: number;
  readonly generation: number;
}

export class OverlayFile {
  readonly states: GranuleStates = new GranuleStates(pageBitmapBytes);
  readonly #file: BlockDevice;
  readonly #isKept: boolean;
  readonly #dataAt: number;
  readonly #slots = new Map<number, Slot>();

  private constructor(file: BlockDevice, sizeBytes: number, isKept: boolean) {
    this.#file = file;
    this.#isKept = isKept;
    this.#dataAt = dataOffset(sizeBytes);
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
    try {
      // What a killed process left in the page cache can be read, but a power failure would undo
      // it.
      await file.flush();
      await checkHeader(file, identity);
      const overlay = new OverlayFile(file, identity.sizeBytes, true);
      await overlay.#load(identity.sizeBytes);
      return overlay;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /**
   * Makes an overlay in `folder` that is gone when it is closed, or when the process ends. Errors:
   * NO_SPACE, ACCESS_REFUSED, TARGET_FAILED, UNSUPPORTED.
   */
  static async temporary(folder: string, sizeBytes: number): Promise<OverlayFile> {
    const path = join(folder, `tidemark-overlay-${randomBytes(8).toString("hex")}`);
    try {
      await create(path, Buffer.alloc(0), sizeBytes);
      return new OverlayFile(await LiveFile.open(path), sizeBytes, false);
    } finally {
      await rm(path, { force: true });
    }
  }

  tryRead(offset: number, into: Uint8Array): boolean {
    return this.#file.tryRead(this.#dataAt + offset, into);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#file.read(this.#dataAt + offset, into);
  }

  tryWrite(offset: number, bytes: Uint8Array): boolean {
    return this.#file.tryWrite(this.#dataAt + offset, bytes);
  }

  /** `bytes` may end behind the disk, with its last granule. */
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#file.write(this.#dataAt + offset, bytes);
  }

  /**
   * Frees the space of whole granules where the file system can. What they read as is undefined.
   */
  async discard(offset: number, length: number): Promise<void> {
    await this.#file.trim(this.#dataAt + offset, length);
  }

  /**
   * Makes durable what had been written, and was in the record, when it was called. Calls must not
   * overlap. Errors: NO_SPACE, ACCESS_REFUSED, DEVICE_FAILED (when a sync fails, for good).
   */
  async save(): Promise<void> {
    if (!this.#isKept) return;
    const changed = this.states.changedPages();
    if (changed.length === 0) await this.#file.flush();
    for (let from = 0; from < changed.length; from += portionPages)
      await this.#savePages(changed.slice(from, from + portionPages));
  }

  /** Does not save. Idempotent. */
  async close(): Promise<void> {
    await this.#file.close();
  }

  async #savePages(pages: readonly number[]): Promise<void> {
    // Copied before the sync: later changes of the record are not covered by it.
    const taken = pages.map((page) => ({
      page,
      bytes: this.states.take(page),
      ...(this.#slots.get(page) ?? { slot: 1, generation: 1 }),
    }));
    try {
      await this.#file.flush();
      await this.#makeSlots(pages.filter((page) => !this.#slots.has(page)));
      for (const { page, bytes, slot, generation } of taken) {
        await this.#file.write(pageOffset(page, 1 - slot), encodePage(page, 1 - slot, generation + 1, bytes));
      }
      await this.#file.flush();
    } catch (error) {
      for (const { page } of taken) this.states.putBack(page);
      throw error;
    }
    for (const { page, slot, generation } of taken)
      this.#slots.set(page, { slot: 1 - slot, generation: generation + 1 });
  }

  async #makeSlots(pages: readonly number[]): Promise<void> {
    for (const slot of pages.length === 0 ? [] : [0, 1]) {
      for (const page of pages) await this.#file.write(pageOffset(page, slot), emptySlot(page, slot));
      await this.#file.flush();
    }
  }

  async #load(sizeBytes: number): Promise<void> {
    const end = dataOffset(sizeBytes);
    let next = 0;
    for (let at = headerBytes; at < end; ) {
      const [extent] = this.#file.extents(at, end - at, 1);
      if (extent === undefined) return;
      const stop = extent.offset + extent.length;
      const last = Math.ceil((stop - headerBytes) / pairBytes);
      if (extent.kind === "data") {
        next = Math.max(next, Math.floor((at - headerBytes) / pairBytes));
        for (; next < last; next = Math.min(last, next + portionPages))
          await this.#loadPages(next, Math.min(last, next + portionPages));
      }
      at = stop;
    }
  }

  async #loadPages(first: number, end: number): Promise<void> {
    const bytes = Buffer.alloc((end - first) * pairBytes);
    await this.#file.read(pageOffset(first, 0), bytes);
    for (let page = first; page < end; page += 1) {
      const pair = bytes.subarray((page - first) * pairBytes, (page - first + 1) * pairBytes);
      if (isUnmade(pair, page)) continue;
      const { payload, slot, generation } = decodePair(pair, page, this.#file.description);
      if (!GranuleStates.canLoad(payload))
        throw overlayDamaged(this.#file.description, `page ${page} of its record holds a state that does not exist`);
      this.states.load(page, payload);
      this.#slots.set(page, { slot, generation });
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
    if (isZero(sector)) zeros[slot] = true;
    else if (sector.equals(made.subarray(at, at + sectorBytes))) begun[slot] = true;
    else return false;
  }
  return begun[1] === true ? zeros[0] === false && zeros[1] === true : zeros[1] === true;
}

function decodePair(pair: Buffer, page: number, path: string): ReturnType<typeof decodePage> {
  try {
    return decodePage(pair, page, path);
  } catch (error) {
    if (!hasCode(error, "DAMAGED")) throw error;
    throw overlayDamaged(path, error.message, error);
  }
}

function isZero(bytes: Uint8Array): boolean {
  return bytes.every((byte) => byte === 0);
}

function pageOffset(page: number, slot: number): number {
  return headerBytes + page * pairBytes + slot * pageSlotBytes;
}

function dataOffset(sizeBytes: number): number {
  const granulesPerPage = pageBitmapBytes * 4;
  return headerBytes + Math.ceil(Math.ceil(sizeBytes / granuleBytes) / granulesPerPage) * pairBytes;
}

async function openOrCreate(path: string, identity: OverlayIdentity): Promise<LiveFile> {
  try {
    return await LiveFile.open(path);
  } catch (error) {
    if (!hasCode(error, "SOURCE_NOT_FOUND")) throw error;
  }
  // It has a name of its own until it is complete; the first process to link it gets the final
  // name.
  const partial = `${path}.partial-${randomBytes(4).toString("hex")}`;
  try {
    await create(partial, encodeHeader(identity), identity.sizeBytes);
    await link(partial, path);
  } catch (error) {
    if (systemCode(error) !== "EEXIST") throw createFailed(path, error);
  } finally {
    await rm(partial, { force: true });
  }
  await syncFolder(dirname(path));
  return await LiveFile.open(path);
}

/**
 * Makes a file that begins with `header`, as long as an overlay of a disk of `sizeBytes`, durably.
 */
async function create(path: string, header: Uint8Array, sizeBytes: number): Promise<void> {
  try {
    const file = await open(path, "wx", 0o600);
    try {
      await file.write(header, 0, header.byteLength, 0);
      await file.truncate(fileBytes(sizeBytes));
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
    what: `cannot make the overlay ${path}`,
    remedy: "name a path in a folder on a local file system that has room for what will be written",
    detail: { path },
  });
}

function encodeHeader({ vault, disk, point, sizeBytes }: OverlayIdentity): Buffer {
  const text = Buffer.from(JSON.stringify({ vault, disk, point, sizeBytes }));
  const header = Buffer.alloc(headerBytes);
  magic.copy(header);
  header.writeUInt32LE(version, 8);
  header.writeUInt32LE(text.length, 12);
  header.writeUInt32LE(crc32(text), 16);
  text.copy(header, textAt);
  return header;
}

/** Errors: see `OverlayFile.over`. */
async function checkHeader(file: BlockDevice, identity: OverlayIdentity): Promise<void> {
  const path = file.description;
  const header = Buffer.alloc(Math.min(headerBytes, file.sizeBytes));
  await file.read(0, header);
  if (!header.subarray(0, magic.length).equals(magic)) {
    throw new TidemarkError("INVALID_ARGUMENT", `${path} is no overlay of Tidemark`, {
      remedy: "name another path for the overlay: this file is left alone",
      detail: { path },
    });
  }
  if (header.length < headerBytes) throw overlayDamaged(path, "it ends within its header");
  const found = header.readUInt32LE(8);
  if (found !== version) throw unsupportedFormat(path, found, version);
  const textBytes = header.readUInt32LE(12);
  const text = header.subarray(textAt, textAt + textBytes);
  if (text.length !== textBytes || crc32(text) !== header.readUInt32LE(16))
    throw overlayDamaged(path, "its header is not what was written");
  let parsed: unknown;
  try {
    parsed = JSON.parse(text.toString("utf8"));
  } catch (error) {
    throw overlayDamaged(path, "its header is not JSON", error);
  }
  const fields = new Fields(parsed, path);
  const { vault, disk, point, sizeBytes } = identity;
  const isOurs =
    fields.text("vault", anyText) === vault &&
    fields.text("disk", anyText) === disk &&
    fields.text("point", anyText) === point;
  if (!isOurs || fields.integer("sizeBytes") !== sizeBytes) {
    const theirs = `point ${fields.text("point", anyText)} of disk ${JSON.stringify(fields.text("disk", anyText))}`;
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `${path} is the overlay of ${theirs} in the vault ${fields.text("vault", anyText)}`,
      {
        remedy: "mount that point with it, or name another path for the overlay",
        detail: { path, point: fields.text("point", anyText) },
      },
    );
  }
  if (file.sizeBytes !== fileBytes(sizeBytes)) throw overlayDamaged(path, "its length is not what its header says");
}

function overlayDamaged(path: string, fact: string, cause?: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", `the overlay ${path} cannot be used: ${fact}`, {
    remedy: "mount the point with another overlay; the vault is not affected",
    detail: { path },
    cause,
  });
}
