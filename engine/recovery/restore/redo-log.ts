/**
 * Redo log of an image: what has to be written to it to bring it to a point.
 *
 * The log is filled while the image stays as it is, and applied when all of it is durable:
 *
 *     <base>.tidemark-data     bytes of the image, in the order in which they came
 *     <base>.tidemark-staged   records of them, marker of point A, records, marker of point B …
 *         │ renamed: the apply has begun
 *     <base>.tidemark-redo     applied from its beginning, as often as it takes, then removed
 *
 * A marker says: the image with everything above is this point, whole. It is written after a sync of
 * the data, so all that stands above a marker is durable. What stands behind the last marker is
 * forgotten when the log is opened; once the apply has begun nothing stands there. The first record
 * says what the image was when the log was begun; a log whose image has changed since is thrown away.
 *
 * A record has 40 bytes: magic and kind (8), offset (8), length (8), where its bytes begin in the
 * data (8), their CRC-32 (4), and that of the record before it (4), all little-endian. The text of a
 * beginning or a marker follows its record. Records are kept apart from the data so that a log of a
 * terabyte is opened by reading some MiB, and bytes of a page of memory go to one page of the file.
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
import { TidemarkError, unlessAbsent } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import type { RestoreTarget } from "./target.ts";

const stagedSuffix = ".tidemark-staged";
const redoSuffix = ".tidemark-redo";
const dataSuffix = ".tidemark-data";

const headerBytes = 40;
const magic = Buffer.from("TMRL");
const version = 2;
/** Most bytes of a record: what applying it holds in memory, times `appliedAtOnce`. */
export const recordBytesMax: number = 1024 * 1024;
const appliedAtOnce = 8;
/** After so many bytes the disk is put to work, while more is staged. */
const syncedEveryBytes: number = 64 * 1024 * 1024;
/** Records are read through a window of this size, and written in portions of it. */
const windowBytes: number = 64 * 1024;

const kinds = ["base", "data", "zeros", "mark"] as const;
type RecordKind = (typeof kinds)[number];

interface LogRecord {
  readonly kind: RecordKind;
  readonly offset: number;
  readonly length: number;
  /** Where its bytes begin in the data, or its text in the log, and the checksum of either. */
  readonly at: number;
  readonly sum: number;
  /** Where it ends in the log. */
  readonly end: number;
}

/** What a log brings its image to. */
export interface StagedPoint {
  /** Id of the point. */
  readonly point: string;
  readonly volumeBytes: number;
}

/** The files that a log may have. */
export function redoLogNames(base: string): readonly [staged: string, redo: string, data: string] {
  return [`${base}${stagedSuffix}`, `${base}${redoSuffix}`, `${base}${dataSuffix}`];
}

/** Whether an apply has begun and has to be ended. Errors: TARGET_FAILED. */
export async function isApplyUnderWay(base: string): Promise<boolean> {
  const [, redo] = redoLogNames(base);
  return await translated(redo, async () => (await unlessAbsent(lstat(redo))) !== undefined);
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

/** The files of a log that are open. */
interface LogFiles {
  readonly records: PositionalFile;
  readonly data: PositionalFile;
}

/** What a log was found to hold, up to its last marker. */
interface LogContent {
  readonly signature: string;
  /** Behind each marker, where its records end. */
  readonly ends: number[];
  readonly staged: StagedPoint | undefined;
  /** Where its data ends. */
  readonly dataEnd: number;
}

export class RedoLog implements AsyncDisposable {
  readonly #base: string;
  readonly #files: LogFiles;
  /** What the image was when the log was begun. */
  readonly signature: string;
  readonly #ends: number[];
  /** Records from here on were staged by this object: their bytes were proved then. */
  readonly #ownFrom: number;
  #staged: StagedPoint | undefined;
  /** Records that are not written yet, and where they will begin. */
  #pending: Uint8Array[] = [];
  #pendingBytes = 0;
  #pendingAt: number;
  #dataEnd: number;
  #bytes = 0;
  #syncedAtBytes = 0;

  private constructor(base: string, files: LogFiles, content: LogContent) {
    this.#base = base;
    this.#files = files;
    this.signature = content.signature;
    this.#ends = content.ends;
    this.#staged = content.staged;
    this.#ownFrom = content.ends.at(-1) ?? 0;
    this.#pendingAt = this.#ownFrom;
    this.#dataEnd = content.dataEnd;
  }

  /**
   * Begins a log for an image with this signature, in place of one that is there. Errors:
   * TARGET_FAILED, NO_SPACE, ACCESS_REFUSED.
   */
  static async begin(base: string, signature: string): Promise<RedoLog> {
    const [staged, , data] = redoLogNames(base);
    await removeRedoLog(base);
    return await translated(staged, async () => {
      const files = await openFiles(staged, data, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL);
      const log = new RedoLog(base, files, { signature, ends: [], staged: undefined, dataEnd: 0 });
      await log.#mark("base", 0, signature);
      await syncFolder(dirname(base));
      return log;
    });
  }

  /**
   * Opens the log that is there; undefined: there is none with a whole beginning, or its apply has
   * begun and it is not whole. What stands behind the last marker is cut off before that. Errors:
   * TARGET_FAILED, ACCESS_REFUSED.
   */
  static async open(base: string): Promise<RedoLog | undefined> {
    const [staged, redo, data] = redoLogNames(base);
    const name = (await isApplyUnderWay(base)) ? redo : staged;
    return await translated(name, async () => {
      const files = await unlessAbsent(openFiles(name, data, constants.O_RDWR));
      if (files === undefined) return undefined;
      const content = await contentOf(files.records);
      const end = content?.ends.at(-1) ?? 0;
      if (content === undefined || (name === redo && Number((await files.records.stat()).size) !== end)) {
        await closeFiles(files);
        return undefined;
      }
      if (name === staged) await files.records.truncate(end);
      return new RedoLog(base, files, content);
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
    const at = this.#dataEnd;
    this.#dataEnd += Math.ceil(bytes.byteLength / granuleBytes) * granuleBytes;
    await translated(this.#files.data.path, async () => {
      const written = this.#files.data.write(at, bytes);
      for (let from = 0; from < bytes.byteLength; from += recordBytesMax) {
        const part = bytes.subarray(from, from + recordBytesMax);
        const length = part.byteLength;
        this.#append({ kind: "data", offset: offset + from, length, at: at + from, sum: crc32(part) });
      }
      await Promise.all([written, this.#writePending(windowBytes)]);
    });
    this.#bytes += bytes.byteLength;
  }

  /** Stages zeros. */
  async zero(offset: number, length: number): Promise<void> {
    this.#append({ kind: "zeros", offset, length, at: 0, sum: 0 });
    await translated(this.#files.records.path, async () => await this.#writePending(windowBytes));
  }

  /** Puts the disk to work when enough has been staged, so that `mark` waits for little. */
  async syncSome(): Promise<void> {
    if (this.#bytes - this.#syncedAtBytes < syncedEveryBytes) return;
    this.#syncedAtBytes = this.#bytes;
    await translated(this.#files.data.path, async () => await this.#files.data.datasync());
  }

  /** All of `staged` is in the log now. Durable when it returns. */
  async mark(staged: StagedPoint): Promise<void> {
    await translated(this.#base, async () => {
      await this.#files.data.datasync();
      await this.#mark("mark", staged.volumeBytes, staged.point);
    });
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
    const { records, data } = this.#files;
    const spare: Uint8Array[] = [];
    for (const [index, end] of this.#ends.entries()) {
      const from = index === 0 ? 0 : (this.#ends[index - 1] ?? 0);
      const work = async (record: LogRecord): Promise<void> => {
        if (record.kind === "zeros") await target.zero(record.offset, record.length);
        if (record.kind !== "data") return;
        const buffer = spare.pop() ?? new Uint8Array(recordBytesMax);
        const payload = await payloadOf(data, record, record.end <= this.#ownFrom, buffer);
        if (payload === undefined) throw damagedLog(data.path, record.offset);
        await target.write(record.offset, payload);
        spare.push(buffer);
        await target.checkpoint(record.offset);
      };
      await forEachAtOnce(recordsOf(records, from, end), appliedAtOnce, work, signal);
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await closeFiles(this.#files);
  }

  #append(record: Omit<LogRecord, "end">, text: Uint8Array = new Uint8Array(0)): void {
    this.#pending.push(encodeRecord(record), text);
    this.#pendingBytes += headerBytes + text.byteLength;
  }

  /** Writes what is pending if it is so much. */
  async #writePending(bytesMin: number): Promise<void> {
    if (this.#pendingBytes < bytesMin) return;
    const [bytes, at] = [Buffer.concat(this.#pending), this.#pendingAt];
    this.#pending = [];
    this.#pendingBytes = 0;
    this.#pendingAt += bytes.byteLength;
    await this.#files.records.write(at, bytes);
  }

  async #mark(kind: "base" | "mark", offset: number, text: string): Promise<void> {
    const bytes = Buffer.from(text);
    this.#append({ kind, offset, length: bytes.byteLength, at: 0, sum: crc32(bytes) }, bytes);
    await this.#writePending(0);
    await this.#files.records.datasync();
    this.#ends.push(this.#pendingAt);
  }
}

async function openFiles(records: string, data: string, flags: number): Promise<LogFiles> {
  const file = await PositionalFile.openPlain(records, flags);
  try {
    return { records: file, data: await PositionalFile.openPlain(data, flags) };
  } catch (error) {
    await file.close();
    throw error;
  }
}

async function closeFiles({ records, data }: LogFiles): Promise<void> {
  await Promise.all([records.close(), data.close()]);
}

/** Undefined: the log has no whole beginning. */
async function contentOf(records: PositionalFile): Promise<LogContent | undefined> {
  let content: LogContent | undefined;
  let dataEnd = 0;
  for await (const record of recordsOf(records, 0, Number.MAX_SAFE_INTEGER)) {
    const { kind, offset, length, at, end } = record;
    if (kind === "data") dataEnd = at + Math.ceil(length / granuleBytes) * granuleBytes;
    if (kind === "data" || kind === "zeros") continue;
    const payload = await payloadOf(records, record, true);
    if (payload === undefined || (kind === "base") !== (content === undefined)) break;
    const text = Buffer.from(payload).toString("utf8");
    content =
      content === undefined
        ? { signature: text, ends: [end], staged: undefined, dataEnd }
        : { ...content, ends: [...content.ends, end], staged: { point: text, volumeBytes: offset }, dataEnd };
  }
  return content;
}

function encodeRecord({ kind, offset, length, at, sum }: Omit<LogRecord, "end">): Uint8Array {
  const header = Buffer.alloc(headerBytes);
  magic.copy(header);
  header.writeUInt16LE(version, 4);
  header.writeUInt16LE(kinds.indexOf(kind), 6);
  header.writeBigUInt64LE(BigInt(offset), 8);
  header.writeBigUInt64LE(BigInt(length), 16);
  header.writeBigUInt64LE(BigInt(at), 24);
  header.writeUInt32LE(sum, 32);
  header.writeUInt32LE(crc32(header.subarray(0, 36)), 36);
  return header;
}

/** The record that begins at `start`; undefined: there is no whole one. */
function decodeRecord(header: Buffer, start: number): LogRecord | undefined {
  if (header.length < headerBytes || !header.subarray(0, 4).equals(magic)) return undefined;
  if (header.readUInt16LE(4) !== version || header.readUInt32LE(36) !== crc32(header.subarray(0, 36))) return undefined;
  const kind = kinds[header.readUInt16LE(6)];
  const [offset, length] = [Number(header.readBigUInt64LE(8)), Number(header.readBigUInt64LE(16))];
  const dataAt = Number(header.readBigUInt64LE(24));
  if (kind === undefined || !Number.isSafeInteger(offset + length) || !Number.isSafeInteger(dataAt)) return undefined;
  if (kind !== "zeros" && length > recordBytesMax) return undefined;
  const hasText = kind === "base" || kind === "mark";
  const at = hasText ? start + headerBytes : dataAt;
  return { kind, offset, length, at, sum: header.readUInt32LE(32), end: start + headerBytes + (hasText ? length : 0) };
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
    const record = decodeRecord(window.subarray(at - windowAt, Math.min(windowEnd, at + headerBytes) - windowAt), at);
    if (record === undefined) return;
    yield record;
    at = record.end;
  }
}

/** Undefined: it is not what was written. Without `isSummed` its length alone is looked at. */
async function payloadOf(
  file: PositionalFile,
  { at, length, sum }: LogRecord,
  isSummed: boolean,
  into: Uint8Array = new Uint8Array(length),
): Promise<Uint8Array | undefined> {
  const bytes = into.subarray(0, length);
  const count = await file.read(at, bytes);
  return count === length && (!isSummed || crc32(bytes) === sum) ? bytes : undefined;
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
    remedy: "run the command again: the image is compared with the vault then",
    detail: { path: name, offset },
  });
}

function failed(name: string, cause: unknown): TidemarkError {
  return fileError(cause, {
    code: "TARGET_FAILED",
    what: `cannot use ${name}`,
    remedy: "check the disk that holds it",
    detail: { target: name },
  });
}
