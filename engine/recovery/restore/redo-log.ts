/**
 * Redo log of an image: what has to be written to it to bring it to a point.
 *
 * The log is filled while the image stays as it is, and applied when all of it is durable:
 *
 *     <base>.tidemark-staged   records, marker of point A, records, marker of point B …
 *         │ renamed: the apply has begun
 *     <base>.tidemark-redo     applied from its beginning, as often as it takes, then removed
 *
 * A marker says: the image with everything above is this point, whole. It is written after a sync, so
 * all records above a marker are durable. What stands behind the last marker is forgotten when the
 * log is opened. The first record says what the image was when the log was begun; a log whose image
 * has changed since is thrown away.
 *
 * A record is a header of 32 bytes and its payload. The header holds: magic and kind (8 bytes), offset
 * (8), length (8), CRC-32 of payload (4) and of the header before it (4), all little-endian.
 *
 * Invariant: the image is not written before its log has the name that says so.
 */
import { constants } from "node:fs";
import { lstat, rename, rm } from "node:fs/promises";
import { dirname } from "node:path";
import { crc32 } from "node:zlib";
import { forEachAtOnce } from "../../concurrency.ts";
import { fileError, PositionalFile } from "../../disk/source/positional-file.ts";
import { syncFolder } from "../../disk/source/sync-folder.ts";
import { systemCode, TidemarkError } from "../../errors.ts";
import type { RestoreTarget } from "./target.ts";

const stagedSuffix = ".tidemark-staged";
const redoSuffix = ".tidemark-redo";

const headerBytes = 32;
const magic = Buffer.from("TMRL");
const version = 1;
/** Longest payload of a record: what applying it holds in memory, times `appliedAtOnce`. */
export const recordBytesMax: number = 1024 * 1024;
const appliedAtOnce = 8;
/** After so many bytes the disk is put to work, while more is staged. */
const syncedEveryBytes: number = 64 * 1024 * 1024;
/** Headers are read through a window of this size. */
const windowBytes: number = 64 * 1024;

const kinds = ["base", "data", "zeros", "mark"] as const;
type RecordKind = (typeof kinds)[number];

interface LogRecord {
  readonly kind: RecordKind;
  readonly offset: number;
  readonly length: number;
  /** Where the payload begins in the log, and its checksum. */
  readonly at: number;
  readonly sum: number;
}

/** What a log brings its image to. */
export interface StagedPoint {
  /** Id of the point. */
  readonly point: string;
  readonly volumeBytes: number;
}

/** The files that a log may have. */
export function redoLogNames(base: string): readonly [staged: string, redo: string] {
  return [`${base}${stagedSuffix}`, `${base}${redoSuffix}`];
}

/** Whether an apply has begun and has to be ended. Errors: TARGET_FAILED. */
export async function isApplyUnderWay(base: string): Promise<boolean> {
  const [, redo] = redoLogNames(base);
  try {
    await lstat(redo);
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw failed(redo, error);
  }
}

/** Removes a log, applied or not. Durable when it returns. Errors: TARGET_FAILED. */
export async function removeRedoLog(base: string): Promise<void> {
  for (const name of redoLogNames(base)) {
    try {
      await rm(name, { force: true });
    } catch (error) {
      throw failed(name, error);
    }
  }
  await synced(base);
}

export class RedoLog implements AsyncDisposable {
  readonly #base: string;
  readonly #file: PositionalFile;
  /** What the image was when the log was begun. */
  readonly signature: string;
  /** Behind each marker, where its records end. */
  readonly #ends: number[];
  #staged: StagedPoint | undefined;
  #end: number;
  #bytes = 0;
  #syncedAtBytes = 0;

  private constructor(
    base: string,
    file: PositionalFile,
    found: { readonly signature: string; readonly ends: number[]; readonly staged: StagedPoint | undefined },
    end: number,
  ) {
    this.#base = base;
    this.#file = file;
    this.signature = found.signature;
    this.#ends = found.ends;
    this.#staged = found.staged;
    this.#end = end;
  }

  /**
   * Begins a log for an image with this signature, in place of one that is there. Errors:
   * TARGET_FAILED, NO_SPACE, ACCESS_REFUSED.
   */
  static async begin(base: string, signature: string): Promise<RedoLog> {
    const [staged] = redoLogNames(base);
    await removeRedoLog(base);
    return await translated(staged, async () => {
      const file = await PositionalFile.openPlain(staged, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL);
      const log = new RedoLog(base, file, { signature, ends: [], staged: undefined }, 0);
      await log.#append("base", 0, Buffer.from(signature));
      log.#ends.push(log.#end);
      await file.datasync();
      await syncFolder(dirname(base));
      return log;
    });
  }

  /**
   * Opens the log that is there; undefined: there is none with a whole beginning. What stands behind
   * its last marker is cut off. Errors: TARGET_FAILED, ACCESS_REFUSED.
   */
  static async open(base: string): Promise<RedoLog | undefined> {
    const [staged, redo] = redoLogNames(base);
    const name = (await isApplyUnderWay(base)) ? redo : staged;
    return await translated(name, async () => {
      const file = await openedUnlessAbsent(name);
      if (file === undefined) return undefined;
      const ends: number[] = [];
      let signature: string | undefined;
      let point: StagedPoint | undefined;
      for await (const record of recordsOf(file, 0, Number.MAX_SAFE_INTEGER)) {
        if (record.kind !== "base" && record.kind !== "mark") continue;
        const payload = await payloadOf(file, record);
        if (payload === undefined || (record.kind === "base") !== (ends.length === 0)) break;
        const text = Buffer.from(payload).toString("utf8");
        if (record.kind === "base") signature = text;
        else point = { point: text, volumeBytes: record.offset };
        ends.push(record.at + record.length);
      }
      const end = ends.at(-1);
      if (signature === undefined || end === undefined) {
        await file.close();
        return undefined;
      }
      if (name === staged) await file.truncate(end);
      return new RedoLog(base, file, { signature, ends, staged: point }, end);
    });
  }

  /** The point that the log brings the image to; undefined: none yet. */
  get staged(): StagedPoint | undefined {
    return this.#staged;
  }

  /** Bytes of data that were staged since the log was opened. */
  get bytesWritten(): number {
    return this.#bytes;
  }

  /** Stages data. Overlaps freely with other calls, for disjoint ranges. */
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    const parts: Promise<void>[] = [];
    for (let from = 0; from < bytes.byteLength; from += recordBytesMax)
      parts.push(this.#append("data", offset + from, bytes.subarray(from, from + recordBytesMax)));
    await translated(this.#file.path, async () => await Promise.all(parts));
    this.#bytes += bytes.byteLength;
  }

  /** Stages zeros. */
  async zero(offset: number, length: number): Promise<void> {
    await translated(this.#file.path, async () => await this.#append("zeros", offset, new Uint8Array(0), length));
  }

  /** Puts the disk to work when enough has been staged, so that `mark` waits for little. */
  async syncSome(): Promise<void> {
    if (this.#bytes - this.#syncedAtBytes < syncedEveryBytes) return;
    this.#syncedAtBytes = this.#bytes;
    await translated(this.#file.path, async () => await this.#file.datasync());
  }

  /** All of `staged` is in the log now. Durable when it returns. */
  async mark(staged: StagedPoint): Promise<void> {
    await translated(this.#file.path, async () => {
      await this.#file.datasync();
      await this.#append("mark", staged.volumeBytes, Buffer.from(staged.point));
      await this.#file.datasync();
    });
    this.#ends.push(this.#end);
    this.#staged = staged;
  }

  /** From now on the image may be written: the log gets the name that says so. */
  async commit(): Promise<void> {
    const [staged, redo] = redoLogNames(this.#base);
    if (await isApplyUnderWay(this.#base)) return;
    await translated(redo, async () => {
      await rename(staged, redo);
      await syncFolder(dirname(this.#base));
    });
  }

  /**
   * Writes everything to `target`, in the order of the markers. May be done again from its beginning.
   * Errors: DAMAGED when the log is, and those of the target.
   */
  async apply(target: RestoreTarget, signal: AbortSignal | undefined): Promise<void> {
    const file = this.#file;
    const spare: Uint8Array[] = [];
    for (const [index, end] of this.#ends.entries()) {
      const from = index === 0 ? 0 : (this.#ends[index - 1] ?? 0);
      const work = async (record: LogRecord): Promise<void> => {
        if (record.kind === "zeros") await target.zero(record.offset, record.length);
        if (record.kind !== "data") return;
        const buffer = spare.pop() ?? new Uint8Array(recordBytesMax);
        const payload = await payloadOf(file, record, buffer);
        if (payload === undefined) throw damagedLog(file.path, record.offset);
        await target.write(record.offset, payload);
        spare.push(buffer);
        await target.checkpoint(record.offset);
      };
      await forEachAtOnce(recordsOf(file, from, end), appliedAtOnce, work, signal);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.#file.close();
  }

  /** Takes its place in the log at once, so that calls overlap. */
  async #append(kind: RecordKind, offset: number, payload: Uint8Array, length = payload.byteLength): Promise<void> {
    const at = this.#end;
    this.#end += headerBytes + payload.byteLength;
    await Promise.all([
      this.#file.write(at, encodeHeader(kind, offset, length, crc32(payload))),
      this.#file.write(at + headerBytes, payload),
    ]);
  }
}

function encodeHeader(kind: RecordKind, offset: number, length: number, sum: number): Uint8Array {
  const header = Buffer.alloc(headerBytes);
  magic.copy(header);
  header.writeUInt16LE(version, 4);
  header.writeUInt16LE(kinds.indexOf(kind), 6);
  header.writeBigUInt64LE(BigInt(offset), 8);
  header.writeBigUInt64LE(BigInt(length), 16);
  header.writeUInt32LE(sum, 24);
  header.writeUInt32LE(crc32(header.subarray(0, 28)), 28);
  return header;
}

/** The record whose header begins at `at`; undefined: there is no whole one. */
function decodeHeader(header: Buffer, at: number): LogRecord | undefined {
  if (header.length < headerBytes || !header.subarray(0, 4).equals(magic)) return undefined;
  if (header.readUInt16LE(4) !== version || header.readUInt32LE(28) !== crc32(header.subarray(0, 28))) return undefined;
  const kind = kinds[header.readUInt16LE(6)];
  const [offset, length] = [Number(header.readBigUInt64LE(8)), Number(header.readBigUInt64LE(16))];
  if (kind === undefined || !Number.isSafeInteger(offset + length)) return undefined;
  if (kind !== "zeros" && length > recordBytesMax) return undefined;
  return { kind, offset, length, at: at + headerBytes, sum: header.readUInt32LE(24) };
}

/** The records that begin in [from, end), up to the first that is not whole. */
async function* recordsOf(file: PositionalFile, from: number, end: number): AsyncGenerator<LogRecord, void> {
  const window = Buffer.alloc(windowBytes);
  let windowAt = 0;
  let windowEnd = 0;
  for (let at = from; at < end; ) {
    if (at < windowAt || at + headerBytes > windowEnd) {
      windowAt = at;
      windowEnd = at + (await file.read(at, window));
    }
    const record = decodeHeader(window.subarray(at - windowAt, Math.min(windowEnd, at + headerBytes) - windowAt), at);
    if (record === undefined) return;
    yield record;
    at = record.at + (record.kind === "zeros" ? 0 : record.length);
  }
}

/** Undefined: it is not what was written. */
async function payloadOf(
  file: PositionalFile,
  { at, length, sum }: LogRecord,
  into: Uint8Array = new Uint8Array(length),
): Promise<Uint8Array | undefined> {
  const bytes = into.subarray(0, length);
  const count = await file.read(at, bytes);
  return count === length && crc32(bytes) === sum ? bytes : undefined;
}

async function openedUnlessAbsent(name: string): Promise<PositionalFile | undefined> {
  try {
    return await PositionalFile.openPlain(name, constants.O_RDWR);
  } catch (error) {
    if (systemCode(error) === "ENOENT") return undefined;
    throw error;
  }
}

async function synced(base: string): Promise<void> {
  await translated(base, async () => await syncFolder(dirname(base)));
}

async function translated<Result>(name: string, work: () => Promise<Result>): Promise<Result> {
  try {
    return await work();
  } catch (error) {
    throw failed(name, error);
  }
}

function damagedLog(name: string, offset: number): TidemarkError {
  return new TidemarkError("DAMAGED", `the redo log ${name} is damaged where it holds byte ${offset} of the image`, {
    remedy: "remove the log, then run `tidemark jobs resume` with the run: the image is compared with the vault",
    detail: { path: name, offset },
  });
}

function failed(name: string, cause: unknown): TidemarkError {
  return fileError(cause, {
    code: "TARGET_FAILED",
    what: `cannot use ${name}`,
    remedy: "check the disk that holds it, then run `tidemark jobs resume` with the run",
    detail: { target: name },
  });
}
