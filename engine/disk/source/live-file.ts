/**
 * Live file: the image file or block device below a protected disk, read and written at once.
 *
 * Most requests are small and answered by the page cache. Those are done synchronously, in the
 * caller's turn of the event loop. A request that might wait for the disk goes to the thread pool.
 *
 * - Reads use RWF_NOWAIT, which returns what is cached and refuses the rest. Where the file system
 *   does not know the flag, every read goes to the thread pool, except on tmpfs, which has no disk.
 * - Writes go to the page cache with a plain write. Such a write waits if the kernel throttles
 *   dirty pages, if it must read the rest of a page first, or if a longer call holds the file's
 *   lock. So only whole pages are written synchronously, none while such a call is under way, and
 *   after one slow write the following ones go to the thread pool for a moment.
 *
 * Durability: nothing is durable before `flush`. A flush that failed is final: the kernel forgets
 * the pages that it could not write, so a later fdatasync would succeed although the data is lost.
 *
 * One writer: an image file is locked with flock(2). A device is claimed with O_EXCL, which fails
 * while the device is mounted and keeps others from mounting it.
 */
import fs, { type BigIntStats } from "node:fs";
import { getSystemErrorName } from "node:util";
import type { BlockDevice, DeviceExtent } from "../../device.ts";
import { systemCode, TidemarkError } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import type { Extent, Volume } from "../../volume.ts";
import type { FileIdentity } from "./file-identity.ts";
import { deviceBytes } from "./file-volume.ts";
import { GroupedSync } from "./grouped-sync.ts";
import { allocatedExtents } from "./holes.ts";
import { type Libc, libc, punchHole, unsupportedErrnos, zeroRange } from "./libc.ts";
import { type OpenImage, openImage } from "./open-image.ts";
import { fileError, type PositionalFile } from "./positional-file.ts";

/**
 * Larger requests take the long way: copying 128 KiB takes some 10 µs, about what a turn through
 * the pool costs.
 */
const atOnceBytesMax: number = 128 * 1024;
/** A call into the page cache that took longer than this met something other than memory. */
const slowMs = 10;
/**
 * After that its kind takes the long way for so many times as long. So a kernel that throttles, in
 * pauses of up to 200 ms, holds the loop up for a ninth of the time, and a busy machine that took
 * the processor away for a moment costs little.
 */
const longWayTimes = 8;
/**
 * Reads up to this size count as random. A sequential reader asks for more at a time: kernels read
 * ahead by 128 KiB.
 */
const scatteredBytesMax: number = 64 * 1024;
/** One fallocate covers at most this, which bounds how long it holds the file's lock. */
const fallocateBytesMax: number = 1024 * 1024 * 1024;
/** Zeros are written in pieces of this. */
const zeroPiece: Uint8Array = new Uint8Array(1024 * 1024);

/**
 * What a live file asks of the system besides a `PositionalFile`; tests put faults in its place.
 */
export interface LiveFileSystem {
  readonly libc: Libc | undefined;
  /** As `fs.writeSync`: returns how much was written, throws Node's own error. */
  writeAtOnce(fd: number, bytes: Uint8Array, from: number, length: number, position: number): number;
  datasync(file: PositionalFile): Promise<void>;
  /** Milliseconds on a clock that cannot be set. */
  now(): number;
}

export interface LiveFileOptions {
  /** Default: false. A read-only file is not locked. */
  readonly readOnly?: boolean | undefined;
  readonly system?: Partial<LiveFileSystem> | undefined;
}

export class LiveFile implements BlockDevice, AsyncDisposable {
  readonly description: string;
  readonly readOnly: boolean;
  readonly #file: PositionalFile;
  /**
   * The same file for reads here and there, without read-ahead; where that cannot be had, `#file`
   * itself.
   */
  readonly #scattered: PositionalFile;
  readonly #kind: "file" | "device";
  readonly #identity: FileIdentity;
  readonly #system: LiveFileSystem;
  readonly #syncs: GroupedSync;
  /** How a read is answered at once, if at all. */
  #readsAtOnce: "cached" | "plain" | "never";
  #sizeBytes = 0;
  #writeLongUntilMs = 0;
  #readLongUntilMs = 0;
  /** Until then the file system is not asked where data lies. */
  #mapUnaskedUntilMs = 0;
  /**
   * Calls under way that may hold the file's lock for long: large writes, changes of allocation.
   */
  #lockHolders = 0;
  /**
   * Calls under way that take several steps; a close waits for them before it closes to single
   * steps.
   */
  readonly #operations = new Set<Promise<void>>();
  readonly #unsupportedModes = new Set<number>();
  #closing: Promise<void> | undefined;

  private constructor(image: OpenImage, system: LiveFileSystem) {
    const { file, inMemory } = image;
    this.description = file.path;
    this.readOnly = image.readOnly;
    this.#file = file;
    this.#scattered = image.scattered;
    this.#kind = image.kind;
    this.#identity = image.identity;
    this.#system = system;
    if (system.libc?.readCached !== undefined && !inMemory) this.#readsAtOnce = "cached";
    else this.#readsAtOnce = inMemory ? "plain" : "never";
    this.#syncs = new GroupedSync(() => system.datasync(file), file.path);
  }

  /**
   * Opens an image file or block device that exists. Errors: SOURCE_NOT_FOUND, SOURCE_UNREADABLE (a
   * folder, a pipe, …), ACCESS_REFUSED, WRITER_ACTIVE (another process, or another part of this
   * one, has it open for writing or, a device, mounted), UNSUPPORTED (no file locks on this
   * platform).
   */
  static async open(path: string, options: LiveFileOptions = {}): Promise<LiveFile> {
    const system: LiveFileSystem = { ...ownSystem(), ...options.system };
    const image = await openImage(path, options.readOnly ?? false, system.libc);
    const live = new LiveFile(image, system);
    try {
      await live.refreshSize();
    } catch (error) {
      await live.close();
      throw error;
    }
    return live;
  }

  /** Size as of the last `refreshSize`. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  tryRead(offset: number, into: Uint8Array): boolean {
    const length = into.byteLength;
    if (length > atOnceBytesMax || this.#readsAtOnce === "never" || this.#closing !== undefined) return false;
    if (length === 0) return true;
    if (this.#readsAtOnce === "plain") return this.#tryPlainRead(offset, into);
    const result = this.#system.libc?.readCached?.(this.#reader(length).fd, offset, into);
    if (result !== undefined && "value" in result) return result.value === length;
    if (result === undefined || unsupportedErrnos.includes(result.errno)) this.#readsAtOnce = "never";
    // Not cached, or broken: the long way waits, or meets the failure and names it.
    return false;
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    let count: number;
    try {
      count = await uninterrupted(() => this.#reader(into.byteLength).read(offset, into));
    } catch (error) {
      throw fileError(error, {
        code: "SOURCE_UNREADABLE",
        what: `cannot read ${this.description} at byte ${offset}`,
        remedy: "check the device and its cables, or copy what is readable with ddrescue",
        detail: { path: this.description, offset, lengthBytes: into.byteLength },
      });
    }
    if (count !== into.byteLength) throw this.#shrunk(offset + count);
  }

  tryWrite(offset: number, bytes: Uint8Array): boolean {
    const length = bytes.byteLength;
    // A page that is written in part has to be read first, unless it is cached.
    if (length > atOnceBytesMax || offset % granuleBytes !== 0 || length % granuleBytes !== 0) return false;
    if (this.readOnly || this.#lockHolders > 0 || this.#closing !== undefined) return false;
    const system = this.#system;
    const startedMs = system.now();
    if (startedMs < this.#writeLongUntilMs) return false;
    this.#checkInside(offset, length);
    let done = 0;
    while (done < length) {
      try {
        const count = system.writeAtOnce(this.#file.fd, bytes, done, length - done, offset + done);
        if (count === 0) throw new Error("the system wrote nothing and gave no reason");
        done += count;
      } catch (error) {
        if (systemCode(error) !== "EINTR") throw this.#writeFailure(error, offset, length);
      }
    }
    this.#writeLongUntilMs = this.#longWayUntil(startedMs);
    return true;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    this.#checkWritable(offset, bytes.byteLength);
    const holdsLock = bytes.byteLength > atOnceBytesMax;
    if (holdsLock) this.#lockHolders += 1;
    try {
      await uninterrupted(() => this.#file.write(offset, bytes));
    } catch (error) {
      throw this.#writeFailure(error, offset, bytes.byteLength);
    } finally {
      if (holdsLock) this.#lockHolders -= 1;
    }
  }

  async zero(offset: number, length: number, mayTrim: boolean): Promise<void> {
    this.#checkWritable(offset, length);
    await this.#operation(this.#zero(offset, length, mayTrim));
  }

  async trim(offset: number, length: number): Promise<void> {
    this.#checkWritable(offset, length);
    // What cannot be trimmed stays what it was, as the hint allows.
    await this.#operation(this.#allocate(punchHole, wholeGranules(offset, length)));
  }

  async flush(): Promise<void> {
    if (this.#closing !== undefined) throw this.#closed();
    if (!this.readOnly) await this.#syncs.sync();
  }

  /**
   * As `BlockDevice.extents`. An unknown range counts as data; zeros that were allocated and
   * never written may be told as a hole. One question to the file system per extent, about a
   * microsecond; but tmpfs looks at every page, so one that took long is not repeated for a while.
   */
  extents(offset: number, length: number, countMax: number): DeviceExtent[] {
    if (this.#closing !== undefined) throw this.#closed();
    this.#checkInside(offset, length);
    const end = offset + length;
    if (length === 0 || countMax < 1) return [];
    const startedMs = this.#system.now();
    const isAsked = this.#kind === "file" && startedMs >= this.#mapUnaskedUntilMs;
    const allocated = isAsked ? allocatedExtents(this.#file.fd, end, offset) : undefined;
    if (allocated === undefined) return [{ offset, length, kind: "data" }];
    try {
      return this.#covering(allocated, offset, end, countMax);
    } finally {
      this.#mapUnaskedUntilMs = this.#longWayUntil(startedMs);
    }
  }

  /** What this file or device is, to compare with another. */
  identity(): FileIdentity {
    return this.#identity;
  }

  /**
   * Looks how large it is now, and returns that. Errors: SOURCE_SHRUNK, which leaves the size as it
   * was known; SOURCE_UNREADABLE.
   */
  async refreshSize(): Promise<number> {
    const sizeBytes = this.#kind === "device" ? await deviceBytes(this.#file) : Number((await this.#stat()).size);
    if (sizeBytes < this.#sizeBytes) throw this.#shrunk(sizeBytes);
    this.#sizeBytes = sizeBytes;
    return sizeBytes;
  }

  /**
   * A read-only view, valid until the file is closed, for reading all of it or here and there: then
   * nothing is read ahead, which would be most of the work, and in a sparse file fill the cache
   * with zeros. It tells nothing of stillness, so a scan of it alone is fuzzy. Closing the view
   * does not close the file.
   */
  volume(access: "whole" | "scattered"): Volume {
    return {
      description: this.description,
      descriptor: (access === "scattered" ? this.#scattered : this.#file).fd,
      sizeBytes: () => Promise.resolve(this.#sizeBytes),
      read: (offset, into) => this.read(offset, into),
      allocated: (sizeBytes) =>
        dataExtents(this.#kind === "file" ? allocatedExtents(this.#file.fd, sizeBytes) : undefined, sizeBytes),
    };
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #covering(allocated: Iterable<Extent>, offset: number, end: number, countMax: number): DeviceExtent[] {
    const found: DeviceExtent[] = [];
    let at = offset;
    for (const data of allocated) {
      const last = found.at(-1);
      if (data.offset > at) found.push({ offset: at, length: data.offset - at, kind: "hole" });
      else if (last !== undefined) {
        // File systems may tell one run of data in several answers.
        found[found.length - 1] = { ...last, length: last.length + data.length };
        at = data.offset + data.length;
        continue;
      }
      if (found.length === countMax) return found;
      found.push({ ...data, kind: "data" });
      at = data.offset + data.length;
      if (found.length === countMax) return found;
    }
    if (at < end) found.push({ offset: at, length: end - at, kind: "hole" });
    return found;
  }

  async #close(): Promise<void> {
    await Promise.allSettled(this.#operations);
    if (this.#scattered !== this.#file) await this.#scattered.close();
    await this.#file.close();
  }

  async #operation(work: Promise<unknown>): Promise<void> {
    const operation = work.then(() => undefined);
    this.#operations.add(operation);
    try {
      await operation;
    } finally {
      this.#operations.delete(operation);
    }
  }

  #reader(length: number): PositionalFile {
    return length > scatteredBytesMax ? this.#file : this.#scattered;
  }

  /**
   * On a file system in memory only swapping can make a read wait; that is measured, like writes.
   */
  #tryPlainRead(offset: number, into: Uint8Array): boolean {
    const startedMs = this.#system.now();
    if (startedMs < this.#readLongUntilMs) return false;
    try {
      return fs.readSync(this.#file.fd, into, 0, into.byteLength, offset) === into.byteLength;
    } catch (error) {
      // The long way meets the same failure and names it.
      if (systemCode(error) === undefined) throw error;
      return false;
    } finally {
      this.#readLongUntilMs = this.#longWayUntil(startedMs);
    }
  }

  /**
   * Until when calls take the long way after one that was made at once and began at `startedMs`.
   */
  #longWayUntil(startedMs: number): number {
    const endedMs = this.#system.now();
    return endedMs - startedMs > slowMs ? endedMs + longWayTimes * (endedMs - startedMs) : 0;
  }

  async #zero(offset: number, length: number, mayTrim: boolean): Promise<void> {
    const inner = wholeGranules(offset, length);
    // Edges are written, because a block device refuses ranges that are no whole sectors.
    await this.#writeZeros(offset, inner.offset - offset);
    const rest = await this.#allocate(mayTrim ? punchHole : zeroRange, inner);
    await this.#writeZeros(rest.offset, rest.length);
    const end = inner.offset + inner.length;
    await this.#writeZeros(end, offset + length - end);
  }

  /**
   * Applies `mode` to `range` as far as the system knows how; returns what is left to do some other
   * way.
   */
  async #allocate(mode: number, range: Extent): Promise<Extent> {
    let { offset, length } = range;
    while (length > 0) {
      if (this.#unsupportedModes.has(mode)) break;
      const part = Math.min(length, fallocateBytesMax);
      const errno = await this.#fallocate(mode, offset, part);
      if (errno === undefined) {
        offset += part;
        length -= part;
      } else if (unsupportedErrnos.includes(errno)) {
        this.#unsupportedModes.add(mode);
      } else if (errno !== interruptedErrno) {
        const name = getSystemErrorName(-errno);
        throw this.#writeFailure(Object.assign(new Error(`${name}: fallocate`), { code: name }), offset, part);
      }
    }
    return { offset, length };
  }

  async #fallocate(mode: number, offset: number, length: number): Promise<number | undefined> {
    const call = this.#system.libc?.fallocate;
    if (call === undefined) return unsupportedErrnos[0];
    this.#lockHolders += 1;
    try {
      const result = await call(this.#file.fd, mode, offset, length);
      return "errno" in result ? result.errno : undefined;
    } finally {
      this.#lockHolders -= 1;
    }
  }

  async #writeZeros(offset: number, length: number): Promise<void> {
    for (let done = 0; done < length; done += zeroPiece.byteLength) {
      await this.write(offset + done, zeroPiece.subarray(0, Math.min(zeroPiece.byteLength, length - done)));
    }
  }

  async #stat(): Promise<BigIntStats> {
    try {
      return await this.#file.stat();
    } catch (error) {
      throw fileError(error, {
        code: "SOURCE_UNREADABLE",
        what: `cannot look at ${this.description}`,
        remedy: "check the device that holds it",
      });
    }
  }

  #checkWritable(offset: number, length: number): void {
    if (this.#closing !== undefined) throw this.#closed();
    if (this.readOnly) {
      throw new TidemarkError("ACCESS_REFUSED", `${this.description} is open for reading only`, {
        remedy: "open it for writing",
        detail: { path: this.description },
      });
    }
    this.#checkInside(offset, length);
  }

  /** A write past the end would make the file grow, unseen. */
  #checkInside(offset: number, length: number): void {
    if (offset >= 0 && length >= 0 && offset + length <= this.#sizeBytes) return;
    throw new TidemarkError("INTERNAL", `bytes ${offset} to ${offset + length} do not lie inside ${this.description}`);
  }

  #closed(): TidemarkError {
    return new TidemarkError("INTERNAL", `${this.description} is used after it was closed`);
  }

  #shrunk(endBytes: number): TidemarkError {
    return new TidemarkError(
      "SOURCE_SHRUNK",
      `${this.description} ends at byte ${endBytes}, before its ${this.#sizeBytes} bytes`,
      {
        remedy: "bring it back to its size; protect a disk that stays smaller under a new disk name",
        detail: { path: this.description, offset: endBytes, sizeBytes: this.#sizeBytes },
      },
    );
  }

  #writeFailure(cause: unknown, offset: number, lengthBytes: number): TidemarkError {
    return fileError(cause, {
      code: "DEVICE_FAILED",
      what: `cannot write ${this.description} at byte ${offset}`,
      remedy: "check the device and its cables; what it acknowledged before can be brought back from the newest point",
      detail: { path: this.description, offset, lengthBytes },
    });
  }
}

function ownSystem(): LiveFileSystem {
  return {
    libc: libc(),
    writeAtOnce: (fd, bytes, from, length, position) => fs.writeSync(fd, bytes, from, length, position),
    datasync: (file) => file.datasync(),
    now: () => performance.now(),
  };
}

const interruptedErrno = 4;

/**
 * A signal may interrupt a call on a network or FUSE file system; it did nothing for good, so it is
 * made again.
 */
async function uninterrupted<Result>(call: () => Promise<Result>): Promise<Result> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (systemCode(error) !== "EINTR") throw error;
    }
  }
}

/** The whole granules inside a range; empty, at its start, when there are none. */
function wholeGranules(offset: number, length: number): Extent {
  const start = Math.ceil(offset / granuleBytes) * granuleBytes;
  const end = Math.floor((offset + length) / granuleBytes) * granuleBytes;
  return end > start ? { offset: start, length: end - start } : { offset, length: 0 };
}

async function* dataExtents(
  extents: Iterable<Extent> | undefined,
  sizeBytes: number,
): AsyncGenerator<Extent, void, undefined> {
  if (extents !== undefined) yield* extents;
  else if (sizeBytes > 0) yield { offset: 0, length: sizeBytes };
}
