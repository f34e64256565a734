/**
 * Fingerprint file: a local cache of what a disk held at one recovery point. It stores a keyed
 * 16-byte fingerprint for each granule, all zeros for a granule of zeros. A scan compares with it
 * to find changed granules without asking the vault.
 *
 * It is a cache and is never trusted. It is bound to vault, disk, point and volume size. Header,
 * table and pages each carry a CRC-32. On any doubt `open` gives a reason instead of a reader, or
 * `page` throws DAMAGED, and the caller computes the fingerprints from the vault. So nothing here
 * is synced: a file that a power failure tore is detected and costs one slower cycle. The file is
 * written under a temporary name and renamed when it is whole.
 *
 *     0            header, 4096 bytes, little-endian
 *                    0 magic "TMFINGER" · 8 version u32 · 12 CRC of the table u32 · 16 volume bytes u64
 *                    24 seed 2 × u32 · 32 vault id, disk, point: each u16 length and UTF-8
 *                    4092 CRC of [0, 4092) u32
 *     4096         pages of 64 KiB, 4096 granules each; a page of zeros is never written, it stays a hole
 *     behind them  table: per page u32, 0 for a page of zeros, else its CRC (1 if the CRC is 0)
 *
 * Size: 4 GiB of fingerprints and 256 KiB of table for a dense 1 TiB disk. A sparse disk has only
 * the pages that hold something.
 */
import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { readdir, rename, rm } from "node:fs/promises";
import { join } from "node:path";
import { crc32 } from "node:zlib";
import { systemCode, TidemarkError } from "../../errors.ts";
import { fingerprintBytes, granuleBytes, volumeBytesMax } from "../../limits.ts";
import { fileError, PositionalFile } from "./positional-file.ts";

export const pageGranules = 4096;
export const pageBytes: number = pageGranules * fingerprintBytes;

const magic = "TMFINGER";
const version = 1;
const headerBytes = 4096;
const headerCrcAt = headerBytes - 4;
const namesAt = 32;
const filePrefix = "fingerprints-";
const partialPrefix = "fingerprints.partial-";
/** Pages being written at once, after which `drain` waits: 1 MiB. */
const pagesInFlightMax = 16;

const zeroPage: Uint8Array = new Uint8Array(pageBytes);

/** A 64-bit seed as two unsigned 32-bit halves. */
export type FingerprintSeed = readonly [number, number];

/**
 * What a file of fingerprints is about. Each text is at most 1000 bytes of UTF-8; `point` becomes
 * part of a file name.
 */
export interface FingerprintBinding {
  readonly vaultId: string;
  readonly disk: string;
  readonly point: string;
}

/** Where the fingerprints of `point` lie in a disk's state folder. */
export function fingerprintPath(folder: string, point: string): string {
  if (!/^[0-9A-Za-z][0-9A-Za-z._-]{0,127}$/.test(point))
    throw new TidemarkError("INTERNAL", `${JSON.stringify(point)} cannot name a file of fingerprints`);
  return join(folder, filePrefix + point);
}

/**
 * Removes the fingerprints of every other point, and what killed runs left half written. Called
 * after the commit; the disk has one writer.
 */
export async function removeOthers(folder: string, keepPoint: string): Promise<void> {
  const kept = filePrefix + keepPoint;
  try {
    for (const name of await readdir(folder)) {
      if (name !== kept && (name.startsWith(filePrefix) || name.startsWith(partialPrefix)))
        await rm(join(folder, name), { force: true });
    }
  } catch (error) {
    throw stateError(error, `cannot tidy the state folder ${folder}`);
  }
}

/** Reads the fingerprints of one point, page by page, each verified. */
export class FingerprintReader {
  readonly seed: FingerprintSeed;
  readonly volumeBytes: number;
  /** Granules of the volume, the last perhaps partial. */
  readonly granules: number;
  /** Pages that cover them. */
  readonly pages: number;
  readonly #file: PositionalFile;
  readonly #table: Uint32Array;
  /** The two pages asked for last: a scan goes forward, and a block may straddle two of them. */
  readonly #kept = new Map<number, Promise<Uint8Array>>();

  private constructor(file: PositionalFile, header: Header, table: Uint32Array) {
    this.#file = file;
    this.#table = table;
    this.seed = header.seed;
    this.volumeBytes = header.volumeBytes;
    this.granules = granulesOf(header.volumeBytes);
    this.pages = table.length;
  }

  /**
   * Opens the file when it is whole and about exactly this; otherwise says in a few words why it
   * cannot be used. Never throws for what the file is.
   */
  static async open(
    path: string,
    binding: FingerprintBinding,
  ): Promise<{ readonly reader: FingerprintReader } | { readonly reason: string }> {
    let file: PositionalFile;
    try {
      file = await PositionalFile.openPlain(path, constants.O_RDONLY);
    } catch (error) {
      if (error instanceof TidemarkError) return { reason: error.message };
      const code = systemCode(error);
      if (code === undefined) throw error;
      return { reason: code === "ENOENT" ? "there is none" : `it cannot be opened (${code})` };
    }
    let opened: { readonly reader: FingerprintReader } | { readonly reason: string } | undefined;
    try {
      opened = await FingerprintReader.#load(file, binding);
      return opened;
    } catch (error) {
      const code = systemCode(error);
      if (code === undefined) throw error;
      return { reason: `it cannot be read (${code})` };
    } finally {
      if (opened === undefined || "reason" in opened) await file.close();
    }
  }

  static async #load(
    file: PositionalFile,
    binding: FingerprintBinding,
  ): Promise<{ readonly reader: FingerprintReader } | { readonly reason: string }> {
    const head = Buffer.alloc(headerBytes);
    if ((await file.read(0, head)) < headerBytes) return { reason: "it is cut short" };
    const header = decodeHeader(head);
    if ("reason" in header) return header;
    if (header.vaultId !== binding.vaultId || header.disk !== binding.disk || header.point !== binding.point) {
      return { reason: "it is about another vault, disk or point" };
    }
    const pages = Math.ceil(granulesOf(header.volumeBytes) / pageGranules);
    const tableAt = headerBytes + pages * pageBytes;
    if (Number((await file.stat()).size) !== tableAt + pages * 4)
      return { reason: "its length is not what its header says" };
    const bytes = Buffer.alloc(pages * 4);
    if ((await file.read(tableAt, bytes)) < bytes.byteLength || crc32(bytes) !== header.tableCrc)
      return { reason: "its table is damaged" };
    const table = new Uint32Array(pages);
    for (let page = 0; page < pages; page += 1) table[page] = bytes.readUInt32LE(page * 4);
    return { reader: new FingerprintReader(file, header, table) };
  }

  /**
   * The 64 KiB of fingerprints of granules [index × 4096, (index + 1) × 4096), zeros behind the
   * volume's end. The bytes are shared with other callers: read only. Errors: DAMAGED.
   */
  page(index: number): Promise<Uint8Array> {
    const crc = this.#table[index];
    if (crc === undefined)
      return Promise.reject(
        new TidemarkError("INTERNAL", `fingerprint page ${String(index)} lies behind the end of ${this.#file.path}`),
      );
    if (crc === 0) return Promise.resolve(zeroPage);
    const kept = this.#kept.get(index);
    if (kept !== undefined) return kept;
    const reading = this.#read(index, crc);
    this.#kept.set(index, reading);
    for (const oldest of this.#kept.keys()) {
      if (this.#kept.size <= 2) break;
      this.#kept.delete(oldest);
    }
    return reading;
  }

  /** Indexes of the pages that hold any fingerprint but zero, ascending. */
  *nonzeroPages(): Generator<number, void, undefined> {
    for (const [index, crc] of this.#table.entries()) if (crc !== 0) yield index;
  }

  close(): Promise<void> {
    this.#kept.clear();
    return this.#file.close();
  }

  async #read(index: number, crc: number): Promise<Uint8Array> {
    const bytes = new Uint8Array(pageBytes);
    let count: number;
    try {
      count = await this.#file.read(headerBytes + index * pageBytes, bytes);
    } catch (error) {
      throw damagedPage(this.#file.path, index, error);
    }
    if (count < pageBytes || pageCrc(bytes) !== crc) throw damagedPage(this.#file.path, index);
    return bytes;
  }
}

/**
 * Writes the fingerprints of a point that is being made. `put` copies into the page that is being
 * filled and never waits; full pages are written behind it, and the caller awaits `drain` now and
 * then to bound them. A failed write surfaces in `drain` and `finish`: NO_SPACE, ACCESS_REFUSED or
 * TARGET_FAILED; the caller then goes on without.
 */
export class FingerprintWriter {
  readonly #folder: string;
  readonly #file: PositionalFile;
  readonly #vaultId: string;
  readonly #disk: string;
  readonly #seed: FingerprintSeed;
  #table: Uint32Array = new Uint32Array(1024);
  /** Page that is being filled, and its bytes; undefined while it holds only zeros. */
  #page = 0;
  #bytes: Uint8Array | undefined;
  #nextGranule = 0;
  readonly #inFlight = new Set<Promise<void>>();
  #failure: TidemarkError | undefined;
  #ended: Promise<unknown> | undefined;

  private constructor(
    folder: string,
    file: PositionalFile,
    about: { readonly vaultId: string; readonly disk: string; readonly seed: FingerprintSeed },
  ) {
    this.#folder = folder;
    this.#file = file;
    this.#vaultId = about.vaultId;
    this.#disk = about.disk;
    this.#seed = about.seed;
  }

  /** Starts a file in `folder`, which exists. Errors: NO_SPACE, ACCESS_REFUSED, TARGET_FAILED. */
  static async create(
    folder: string,
    about: { readonly vaultId: string; readonly disk: string; readonly seed: FingerprintSeed },
  ): Promise<FingerprintWriter> {
    const path = join(folder, partialPrefix + randomUUID());
    try {
      return new FingerprintWriter(
        folder,
        await PositionalFile.openPlain(path, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL),
        about,
      );
    } catch (error) {
      throw stateError(error, `cannot write in the state folder ${folder}`);
    }
  }

  /**
   * Notes the fingerprints of the granules from `firstGranule` on: 16 bytes each, copied at once.
   * Calls come in ascending order; granules that are left out are zero.
   */
  put(firstGranule: number, bytes: Uint8Array): void {
    if (firstGranule < this.#nextGranule || bytes.byteLength % fingerprintBytes !== 0) {
      throw new TidemarkError(
        "INTERNAL",
        `fingerprints of granule ${String(firstGranule)} come after those of granule ${String(this.#nextGranule - 1)}`,
      );
    }
    let granule = firstGranule;
    let from = 0;
    while (from < bytes.byteLength) {
      const page = Math.floor(granule / pageGranules);
      const at = (granule % pageGranules) * fingerprintBytes;
      const part = bytes.subarray(from, Math.min(bytes.byteLength, from + pageBytes - at));
      if (page !== this.#page) {
        this.#seal();
        this.#page = page;
      }
      // A page comes into being with the first thing that is not zero.
      if (this.#bytes !== undefined || !isZero(part)) {
        this.#bytes ??= new Uint8Array(pageBytes);
        this.#bytes.set(part, at);
      }
      from += part.byteLength;
      granule += part.byteLength / fingerprintBytes;
    }
    this.#nextGranule = granule;
  }

  /**
   * Resolves when fewer than 16 pages (1 MiB) are on their way to the file. Errors: that of the
   * first write that failed.
   */
  async drain(): Promise<void> {
    while (this.#inFlight.size >= pagesInFlightMax) await Promise.race(this.#inFlight);
    if (this.#failure !== undefined) throw this.#failure;
  }

  /**
   * Completes the file and gives it its name; returns its path. On failure nothing but the
   * temporary file is left, for `discard`.
   */
  finish(about: { readonly point: string; readonly volumeBytes: number }): Promise<string> {
    if (this.#ended !== undefined)
      return Promise.reject(new TidemarkError("INTERNAL", "the fingerprints are finished already"));
    const finishing = this.#finish(about.point, about.volumeBytes);
    // Kept apart from the caller's promise, so that a later `discard` waits for the outcome without
    // taking over the error.
    this.#ended = finishing.then(
      () => true,
      () => undefined,
    );
    return finishing;
  }

  /**
   * Gives up: closes and removes the temporary file. After a successful `finish`, and the second
   * time, it does nothing.
   */
  async discard(): Promise<void> {
    const before = this.#ended;
    if ((await before) === true) return;
    if (this.#ended === before) this.#ended = this.#discard().then(() => true);
    await this.#ended;
  }

  async #discard(): Promise<void> {
    await Promise.all(this.#inFlight);
    try {
      await this.#file.close();
      await rm(this.#file.path, { force: true });
    } catch (error) {
      throw stateError(error, `cannot remove ${this.#file.path}`);
    }
  }

  /** Begins writing the page that was being filled, and notes its CRC. */
  #seal(): void {
    const bytes = this.#bytes;
    this.#bytes = undefined;
    if (bytes === undefined) return;
    const page = this.#page;
    if (page >= this.#table.length) {
      const wider = new Uint32Array(Math.max(this.#table.length * 2, page + 1));
      wider.set(this.#table);
      this.#table = wider;
    }
    this.#table[page] = pageCrc(bytes);
    if (this.#failure !== undefined) return;
    const writing: Promise<void> = this.#file
      .write(headerBytes + page * pageBytes, bytes)
      .catch((error: unknown) => {
        this.#failure ??= stateError(error, `cannot write ${this.#file.path}`);
      })
      .finally(() => this.#inFlight.delete(writing));
    this.#inFlight.add(writing);
  }

  async #finish(point: string, volumeBytes: number): Promise<string> {
    const path = fingerprintPath(this.#folder, point);
    const granules = granulesOf(volumeBytes);
    if (this.#nextGranule > granules) throw new TidemarkError("INTERNAL", "there are more fingerprints than granules");
    this.#seal();
    await Promise.all(this.#inFlight);
    if (this.#failure !== undefined) throw this.#failure;
    const pages = Math.ceil(granules / pageGranules);
    const table = Buffer.alloc(pages * 4);
    for (let page = 0; page < Math.min(pages, this.#table.length); page += 1)
      table.writeUInt32LE(this.#table[page] ?? 0, page * 4);
    const header = encodeHeader({
      vaultId: this.#vaultId,
      disk: this.#disk,
      point,
      seed: this.#seed,
      volumeBytes,
      tableCrc: crc32(table),
    });
    try {
      await this.#file.write(headerBytes + pages * pageBytes, table);
      await this.#file.write(0, header);
      await this.#file.close();
      await rename(this.#file.path, path);
    } catch (error) {
      throw stateError(error, `cannot write ${path}`);
    }
    return path;
  }
}

interface Header extends FingerprintBinding {
  readonly seed: FingerprintSeed;
  readonly volumeBytes: number;
  readonly tableCrc: number;
}

function encodeHeader(header: Header): Buffer {
  const bytes = Buffer.alloc(headerBytes);
  bytes.write(magic, 0, "latin1");
  bytes.writeUInt32LE(version, 8);
  bytes.writeUInt32LE(header.tableCrc, 12);
  bytes.writeBigUInt64LE(BigInt(header.volumeBytes), 16);
  bytes.writeUInt32LE(header.seed[0], 24);
  bytes.writeUInt32LE(header.seed[1], 28);
  let at = namesAt;
  for (const name of [header.vaultId, header.disk, header.point]) {
    const text = Buffer.from(name, "utf8");
    if (text.byteLength > 1000)
      throw new TidemarkError("INTERNAL", "a name is too long for the header of a file of fingerprints");
    at = bytes.writeUInt16LE(text.byteLength, at);
    at += text.copy(bytes, at);
  }
  bytes.writeUInt32LE(crc32(bytes.subarray(0, headerCrcAt)), headerCrcAt);
  return bytes;
}

function decodeHeader(bytes: Buffer): Header | { readonly reason: string } {
  if (bytes.toString("latin1", 0, 8) !== magic) return { reason: "it is no file of fingerprints" };
  if (crc32(bytes.subarray(0, headerCrcAt)) !== bytes.readUInt32LE(headerCrcAt))
    return { reason: "its header is damaged" };
  if (bytes.readUInt32LE(8) !== version) return { reason: "another version of Tidemark wrote it" };
  const volumeBytes = Number(bytes.readBigUInt64LE(16));
  if (volumeBytes > volumeBytesMax) return { reason: "its header is damaged" };
  const names: string[] = [];
  for (let at = namesAt; names.length < 3; ) {
    const length = bytes.readUInt16LE(at);
    if (length > 1000) return { reason: "its header is damaged" };
    names.push(bytes.toString("utf8", at + 2, at + 2 + length));
    at += 2 + length;
  }
  const [vaultId = "", disk = "", point = ""] = names;
  return {
    vaultId,
    disk,
    point,
    volumeBytes,
    seed: [bytes.readUInt32LE(24), bytes.readUInt32LE(28)],
    tableCrc: bytes.readUInt32LE(12),
  };
}

function granulesOf(volumeBytes: number): number {
  return Math.ceil(volumeBytes / granuleBytes);
}

/** 0 stands for a page of zeros in the table, so a CRC of 0 is noted as 1. */
function pageCrc(bytes: Uint8Array): number {
  const crc = crc32(bytes);
  return crc === 0 ? 1 : crc;
}

function isZero(part: Uint8Array): boolean {
  return Buffer.compare(part, zeroPage.subarray(0, part.byteLength)) === 0;
}

function damagedPage(path: string, index: number, cause?: unknown): TidemarkError {
  return new TidemarkError("DAMAGED", `page ${String(index)} of the local fingerprints ${path} is damaged`, {
    remedy: "delete the file; it is recomputed from the vault",
    detail: { path, page: index },
    cause,
  });
}

function stateError(cause: unknown, what: string): TidemarkError {
  return fileError(cause, { code: "TARGET_FAILED", what, remedy: "choose another state folder with --state" });
}
