/**
 * Storage of a tracking file: a few calls on one open, locked file. Tests put a storage behind it
 * that forgets, tears and fails.
 */
import { constants } from "node:fs";
import { rm } from "node:fs/promises";
import { dirname } from "node:path";
import { TidemarkError } from "../../errors.ts";
import { libc, lockExclusiveAtOnce } from "../source/libc.ts";
import { fileError, PositionalFile } from "../source/positional-file.ts";
import { syncFolder } from "../source/sync-folder.ts";

/** Calls on different ranges overlap. They reject with the error of the system. */
export interface TrackingStorage {
  /** Returns the bytes read, fewer than asked for only at the end of the file. */
  read(offset: number, into: Uint8Array): Promise<number>;
  write(offset: number, bytes: Uint8Array): Promise<void>;
  truncate(sizeBytes: number): Promise<void>;
  /**
   * When it resolves, every write that had resolved when it was called survives a power failure.
   */
  datasync(): Promise<void>;
  /**
   * Takes the file's name away, durably. The open file stays usable, and no other process can open
   * it.
   */
  remove(): Promise<void>;
  close(): Promise<void>;
}

/**
 * Opens or makes the file at `path` and locks it until `close` or the end of the process. Errors:
 * WRITER_ACTIVE, UNSUPPORTED (no flock here), NO_SPACE, ACCESS_REFUSED, DEVICE_FAILED.
 */
export async function openTrackingStorage(path: string): Promise<TrackingStorage> {
  let file: PositionalFile | undefined;
  try {
    file = await PositionalFile.openPlain(path, constants.O_RDWR | constants.O_CREAT);
    lock(file);
    // Losing the file's name in a crash would cost a comparison of the whole disk.
    if (Number((await file.stat()).size) === 0) await syncFolder(dirname(path));
    return new FileStorage(file);
  } catch (error) {
    await file?.close();
    throw fileError(error, {
      code: "DEVICE_FAILED",
      what: `cannot open the tracking file ${path}`,
      remedy: "check the state folder",
    });
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

/**
 * Makes a tracking file say nothing, in the first way that works: zeros over its first
 * `headerBytes`, no length, no name. Undefined when no way works, and the file may still be
 * believed.
 */
export async function makeVoid(
  storage: TrackingStorage,
  headerBytes: number,
): Promise<"emptied" | "removed" | undefined> {
  const ways = [
    async () => {
      await storage.write(0, new Uint8Array(headerBytes));
      await storage.datasync();
      return "emptied" as const;
    },
    async () => {
      await storage.truncate(0);
      await storage.datasync();
      return "emptied" as const;
    },
    async () => {
      await storage.remove();
      return "removed" as const;
    },
  ];
  for (const way of ways) {
    // The caller reports the failure that led here. A failure of a way leads to the next way.
    const outcome = await way().catch(() => undefined);
    if (outcome !== undefined) return outcome;
  }
  return undefined;
}
