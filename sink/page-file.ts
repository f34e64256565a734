/**
 * File format of a page object in a directory sink: a header, then the pages, sparse.
 *
 *     0    magic "TIDEPAGE"        8 bytes
 *     8    version (1)             u32       all numbers little-endian
 *     12   CRC-32 of the header    u32, taken with this field zero
 *     16   size of the object      u64
 *     24   sequence number         u64
 *     32   tag: the ETag           16 random bytes, new with every write
 *     48   end of what was written u64: of the last page ever written, cleared or not
 *     56   zeros to byte 512
 *     4096 the pages; the file is exactly 4096 + size bytes long
 *
 * The header is 512 bytes, one sector, so a power failure leaves the old or the new one. The pages
 * start at 4096 to keep them aligned to the file system's blocks.
 *
 * A write locks the file, checks the fence against the header, writes the pages, writes the header,
 * and flushes both with one fdatasync before it returns. A crash in between leaves a part of the
 * pages, or a header that counts pages that were not written. Both concern only a write that was
 * not acknowledged, so its outcome is unknown to its caller; frames carry checksums for that case.
 *
 * A truncated file is readable up to its end. Writes refuse it until `restore` has given it its
 * length. A file whose header cannot be read is restored with a new header, whose end of what was
 * written is the last byte that is not zero.
 *
 * Clearing writes the header first, then punches holes in place of the pages, then flushes once. A
 * killed process may leave a new ETag without a change, which is harmless, but never a change
 * without a new ETag.
 */
import { randomBytes } from "node:crypto";
import { constants } from "node:fs";
import { type FileHandle, open } from "node:fs/promises";
import { crc32 } from "node:zlib";
import type { PageFence, PagesStat } from "../engine/index.ts";
import { hasCode, pageAlignmentBytes, systemCode, TidemarkError } from "../engine/index.ts";
import { notPlain, openPlain, ownFileMode } from "../engine/internal.ts";
import { type LockOptions, Turnstile, withDescriptorLocked } from "./file-lock.ts";
import { clearFully, readFully, writeFully } from "./file-system.ts";
import { checkInside, conditionFailed, endsBefore } from "./rules.ts";

const magic = "TIDEPAGE";
const version = 1;
const headerBytes = 512;
const scanBytes = 1024 * 1024;

/** Where the pages begin in the file. */
export const pageFileDataAt = 4096;

interface Header {
  readonly sizeBytes: number;
  readonly sequenceNumber: number;
  /**
   * 32 hexadecimal digits. Random, so it repeats for no write, no name and no file that took this
   * one's place.
   */
  readonly etag: string;
  readonly writtenBytes: number;
}

/**
 * An open page object. Errors of the file system pass through untranslated; `name` serves messages
 * only.
 */
export class PageFile {
  readonly #name: string;
  readonly #path: string;
  readonly #handle: FileHandle;
  readonly #writable: boolean;
  /**
   * The file lock belongs to the open file description, so calls of this process queue here first.
   */
  readonly #turnstile = new Turnstile();
  /** Known once a header has been read; the size of a page object never changes. */
  #sizeBytes: number | undefined;

  private constructor(name: string, path: string, handle: FileHandle, writable: boolean) {
    this.#name = name;
    this.#path = path;
    this.#handle = handle;
    this.#writable = writable;
  }

  /** Opens for reading and writing, or for reading only when this user may not write. */
  static async open(name: string, path: string): Promise<PageFile> {
    try {
      return new PageFile(name, path, await openPlain(path, constants.O_RDWR), true);
    } catch (error) {
      const code = systemCode(error);
      if (code !== "EACCES" && code !== "EPERM" && code !== "EROFS") throw error;
      return new PageFile(name, path, await openPlain(path, constants.O_RDONLY), false);
    }
  }

  /**
   * Writes a new page object of zeros to `path`, which must not exist, durably; its name is the
   * caller's to make durable. Gives its ETag.
   */
  static async create(path: string, sizeBytes: number, sequenceNumber: number): Promise<string> {
    const header = { sizeBytes, sequenceNumber, etag: newEtag(), writtenBytes: 0 };
    const handle = await open(path, "wx", ownFileMode);
    try {
      await handle.truncate(pageFileDataAt + sizeBytes);
      await writeFully(handle, encode(header), 0);
      await handle.sync();
    } finally {
      await handle.close();
    }
    return header.etag;
  }

  /**
   * Writes under the fence, durably. Undefined, and nothing done, when the file has been deleted. A
   * disk that fills up meanwhile may have taken a part of the bytes; they are not in
   * `writtenBytes`. Errors: CONDITION_FAILED, INVALID_ARGUMENT, DAMAGED, ACCESS_REFUSED.
   */
  write(
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options: LockOptions,
  ): Promise<{ readonly etag: string } | undefined> {
    return this.#exclusively(options, async (header) => {
      checkInside(this.#name, offset, bytes.length, header.sizeBytes);
      if (header.sequenceNumber !== fence.sequenceNumber) {
        throw conditionFailed(
          this.#name,
          `its sequence number is ${String(header.sequenceNumber)}, not ${String(fence.sequenceNumber)}`,
        );
      }
      if (fence.etag !== undefined && header.etag !== fence.etag) {
        throw conditionFailed(this.#name, `its ETag is ${header.etag}, not ${fence.etag}`);
      }
      await this.#checkWritable();
      const etag = newEtag();
      const writtenBytes = Math.max(header.writtenBytes, offset + bytes.length);
      await writeFully(this.#handle, bytes, pageFileDataAt + offset);
      await writeFully(this.#handle, encode({ ...header, etag, writtenBytes }), 0);
      await this.#handle.datasync();
      return { etag };
    });
  }

  /**
   * Clears, durably. Undefined, and nothing done, when the file has been deleted. Errors:
   * INVALID_ARGUMENT, DAMAGED, ACCESS_REFUSED, INTERRUPTED.
   */
  clear(offset: number, length: number, options: LockOptions): Promise<true | undefined> {
    return this.#exclusively<true>(options, async (header) => {
      checkInside(this.#name, offset, length, header.sizeBytes);
      await this.#checkWritable();
      await writeFully(this.#handle, encode({ ...header, etag: newEtag() }), 0);
      await clearFully(this.#handle, pageFileDataAt + offset, length, { signal: options.signal });
      await this.#handle.datasync();
      return true;
    });
  }

  /**
   * Gives the file a header and a length with which it can be used, durably, if it has not; see
   * `Sink.restorePages`. Undefined when the file has been deleted. Errors: FORMAT_UNSUPPORTED,
   * ACCESS_REFUSED.
   */
  restore(sizeBytes: number, sequenceNumber: number, options: LockOptions): Promise<true | undefined> {
    return this.#locked<true>(options, async () => {
      const found = await this.#headerAlone().catch((error: unknown) => {
        if (hasCode(error, "DAMAGED")) return undefined;
        throw error;
      });
      const { size } = await this.#handle.stat();
      const wantedBytes = Math.max(found?.sizeBytes ?? 0, sizeBytes);
      const isWhole = found !== undefined && found.sizeBytes >= sizeBytes && found.sequenceNumber >= sequenceNumber;
      if (isWhole && size === pageFileDataAt + found.sizeBytes) return true;
      await this.#checkWritable();
      const header = {
        sizeBytes: wantedBytes,
        sequenceNumber: Math.max(found?.sequenceNumber ?? 0, sequenceNumber),
        etag: newEtag(),
        writtenBytes: found?.writtenBytes ?? (await this.#dataEnd(Math.min(size - pageFileDataAt, wantedBytes))),
      };
      await this.#handle.truncate(pageFileDataAt + wantedBytes);
      await writeFully(this.#handle, encode(header), 0);
      await this.#handle.sync();
      this.#sizeBytes = wantedBytes;
      return true;
    });
  }

  /** The end of the last page with a byte that is not zero, below `endBytes`. */
  async #dataEnd(endBytes: number): Promise<number> {
    const bytes = Buffer.alloc(scanBytes);
    for (let end = Math.max(0, endBytes); end > 0; ) {
      const from = Math.floor((end - 1) / scanBytes) * scanBytes;
      const part = bytes.subarray(0, end - from);
      await readFully(this.#handle, part, pageFileDataAt + from);
      for (let at = part.length - 1; at >= 0; at -= 1) {
        if (part[at] !== 0) return Math.ceil((from + at + 1) / pageAlignmentBytes) * pageAlignmentBytes;
      }
      end = from;
    }
    return 0;
  }

  /**
   * Raises the sequence number, durably. Undefined when the file has been deleted. Errors: DAMAGED,
   * ACCESS_REFUSED.
   */
  raise(
    atLeast: number,
    options: LockOptions,
  ): Promise<{ readonly etag: string; readonly sequenceNumber: number } | undefined> {
    return this.#exclusively(options, async (header) => {
      await this.#checkWritable();
      if (header.sequenceNumber < atLeast) {
        const etag = newEtag();
        await writeFully(this.#handle, encode({ ...header, etag, sequenceNumber: atLeast }), 0);
        await this.#handle.datasync();
        return { etag, sequenceNumber: atLeast };
      }
      // The process that raised it may have died before its flush, and this call promises
      // durability.
      await this.#handle.datasync();
      return { etag: header.etag, sequenceNumber: header.sequenceNumber };
    });
  }

  /** Undefined when the file has been deleted. Errors: DAMAGED. */
  stat(options: LockOptions): Promise<PagesStat | undefined> {
    return this.#exclusively(options, ({ etag, sizeBytes, sequenceNumber, writtenBytes }) =>
      Promise.resolve({ etag, sizeBytes, sequenceNumber, writtenBytes }),
    );
  }

  /**
   * Fills `into`. Undefined when the file has been deleted. Takes no lock, so that reads run side
   * by side: one that overlaps a write in time may see a part of it. Errors: DAMAGED.
   */
  async read(offset: number, into: Uint8Array, options: LockOptions): Promise<true | undefined> {
    // The first read checks the header and learns the size. It takes the lock, so that it reads no
    // half-written header.
    const sizeBytes =
      this.#sizeBytes ?? (await this.#locked(options, async () => (await this.#headerAlone()).sizeBytes));
    if (sizeBytes === undefined || !(await this.#isLinked())) return undefined;
    if (offset + into.length > sizeBytes) throw endsBefore(this.#name, offset + into.length, sizeBytes);
    const readBytes = await readFully(this.#handle, into, pageFileDataAt + offset);
    if (readBytes < into.length) throw this.#damaged(`it is truncated at byte ${String(offset + readBytes)}`);
    return true;
  }

  close(): Promise<void> {
    return this.#handle.close();
  }

  #exclusively<T>(options: LockOptions, task: (header: Header) => Promise<T>): Promise<T | undefined> {
    return this.#locked(options, async () => await task(await this.#header()));
  }

  #locked<T>(options: LockOptions, task: () => Promise<T>): Promise<T | undefined> {
    return this.#turnstile.pass(() =>
      withDescriptorLocked(this.#handle, this.#path, options, async () =>
        (await this.#isLinked()) ? await task() : undefined,
      ),
    );
  }

  /** False once the file has been deleted. Its name may belong to another file now. */
  async #isLinked(): Promise<boolean> {
    return (await this.#handle.stat()).nlink > 0;
  }

  async #checkWritable(): Promise<void> {
    if (this.#writable) {
      // Written in place, the file would change under its other name too.
      if ((await this.#handle.stat()).nlink > 1) throw notPlain(this.#path, "a hard link to another file");
      return;
    }
    throw new TidemarkError("ACCESS_REFUSED", `this user may only read ${this.#name}`, {
      remedy: `allow this user to write it: chmod u+w ${this.#path}`,
      detail: { object: this.#name },
    });
  }

  /** The header of a file that is whole. */
  async #header(): Promise<Header> {
    const header = await this.#headerAlone();
    const { size } = await this.#handle.stat();
    if (size !== pageFileDataAt + header.sizeBytes) {
      throw this.#damaged(`its file has ${String(size)} bytes instead of ${String(pageFileDataAt + header.sizeBytes)}`);
    }
    return header;
  }

  /** The header, however long the file is. */
  async #headerAlone(): Promise<Header> {
    const bytes = Buffer.alloc(headerBytes);
    const readBytes = await readFully(this.#handle, bytes, 0);
    if (readBytes < headerBytes) throw this.#damaged(`it has only ${String(readBytes)} bytes`);
    if (bytes.toString("latin1", 0, 8) !== magic) throw this.#damaged("it does not begin with a page object's magic");
    const checksum = bytes.readUInt32LE(12);
    bytes.writeUInt32LE(0, 12);
    if (crc32(bytes) !== checksum) throw this.#damaged("the checksum of its header does not match");
    if (bytes.readUInt32LE(8) !== version) throw this.#unsupported(bytes.readUInt32LE(8));
    const header = decode(bytes);
    this.#sizeBytes = header.sizeBytes;
    return header;
  }

  #damaged(fact: string): TidemarkError {
    return new TidemarkError("DAMAGED", `${this.#name} is damaged: ${fact}`, {
      remedy: "run `tidemark verify` to list the points concerned",
      detail: { object: this.#name },
    });
  }

  #unsupported(found: number): TidemarkError {
    return new TidemarkError(
      "FORMAT_UNSUPPORTED",
      `${this.#name} has page file version ${String(found)}; this Tidemark knows ${String(version)}`,
      {
        remedy: "use the version of Tidemark that wrote it, or a newer one",
        detail: { object: this.#name, version: found },
      },
    );
  }
}

function newEtag(): string {
  return randomBytes(16).toString("hex");
}

function encode(header: Header): Buffer {
  const bytes = Buffer.alloc(headerBytes);
  bytes.write(magic, 0, "latin1");
  bytes.writeUInt32LE(version, 8);
  bytes.writeBigUInt64LE(BigInt(header.sizeBytes), 16);
  bytes.writeBigUInt64LE(BigInt(header.sequenceNumber), 24);
  bytes.write(header.etag, 32, "hex");
  bytes.writeBigUInt64LE(BigInt(header.writtenBytes), 48);
  bytes.writeUInt32LE(crc32(bytes), 12);
  return bytes;
}

/** Decodes a header whose checksum has been verified. */
function decode(bytes: Buffer): Header {
  return {
    sizeBytes: Number(bytes.readBigUInt64LE(16)),
    sequenceNumber: Number(bytes.readBigUInt64LE(24)),
    etag: bytes.toString("hex", 32, 48),
    writtenBytes: Number(bytes.readBigUInt64LE(48)),
  };
}
