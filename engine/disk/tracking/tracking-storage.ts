/**
 * What a tracking file is kept in: a few calls on one open, locked file. It is a seam: tests put a storage behind it that forgets, tears
 * and fails.
 */
import { constants } from "node:fs";
import { rm } from "node:fs/promises";
import { dirname } from "node:path";
import { TidemarkError } from "../../errors.ts";
import { libc, lockExclusiveAtOnce } from "../source/libc.ts";
import { fileError, PositionalFile } from "../source/positional-file.ts";
import { syncFolder } from "../source/sync-folder.ts";

/** Calls on different ranges overlap. They reject with whatever the system says. */
export interface TrackingStorage {
  /** Returns the bytes read, fewer than asked for only at the end of the file. */
  read(offset: number, into: Uint8Array): Promise<number>;
  write(offset: number, bytes: Uint8Array): Promise<void>;
  truncate(sizeBytes: number): Promise<void>;
  /** When it resolves, every write that had resolved when it was called survives a power failure. */
  datasync(): Promise<void>;
  /** Takes the file's name away, durably. What is open stays usable and is seen by nobody else any more. */
  remove(): Promise<void>;
  close(): Promise<void>;
}

/**
 * Opens or makes the file at `path` and locks it until `close` or the end of the process. Errors: WRITER_ACTIVE, UNSUPPORTED (no flock
 * here), NO_SPACE, ACCESS_REFUSED, DEVICE_FAILED.
 */
export async function openTrackingStorage(path: string): Promise<TrackingStorage> {
  let file: PositionalFile | undefined;
  try {
    file = await PositionalFile.open(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    lock(file);
    // A file whose name is lost in a crash would cost a comparison of the whole disk.
    if (Number((await file.stat()).size) === 0) await syncFolder(dirname(path));
    return new FileStorage(file);
  } catch (error) {
    await file?.close();
    throw fileError(error, { code: "DEVICE_FAILED", what: `cannot open the tracking file ${path}`, remedy: "check the state folder" });
  }
}

class FileStorage implements TrackingStorage {
  readonly #file: PositionalFile;

  constructor(file: PositionalFile) {
    this.#file = file;
  }

  read(offset: number, into: Uint8Array): Promise<number> {
    return this.#file.read(offset, into);
  }

  write(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#file.write(offset, bytes);
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#file.truncate(sizeBytes);
  }

  datasync(): Promise<void> {
    return this.#file.datasync();
  }

  async remove(): Promise<void> {
    await rm(this.#file.path, { force: true });
    await syncFolder(dirname(this.#file.path));
  }

  close(): Promise<void> {
    return this.#file.close();
  }
}

function lock(file: PositionalFile): void {
  const calls = libc();
  const result = calls?.flock(file.fd, lockExclusiveAtOnce);
  if (result !== undefined && "value" in result) return;
  if (calls !== undefined && result?.errno === calls.errno.wouldBlock) {
    throw new TidemarkError("WRITER_ACTIVE", `${file.path} is in use: another process protects this disk`, {
      remedy: "stop the other process, or use another state folder",
    });
  }
  throw new TidemarkError("UNSUPPORTED", `${file.path} cannot be locked: there is no flock here`, {
    remedy: "keep the state folder on a local file system of Linux or macOS",
    detail: { errno: result?.errno },
  });
}
