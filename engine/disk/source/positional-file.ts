/**
 * Positional file: one open file, read and written at offsets by many callers at once.
 *
 * A descriptor must not be closed while a call uses it, because the system may give its number to
 * another file. So `close` waits for the calls under way and refuses later ones. It uses the
 * callback forms on a bare descriptor, one promise for a whole range, which spares the objects that
 * `FileHandle` makes per call.
 */
import fs from "node:fs";
import { type ErrorCode, type ErrorDetail, systemCode, TidemarkError } from "../../errors.ts";
import { checkPlain, ownFileMode, refusingLinks } from "./plain-file.ts";

export class PositionalFile {
  readonly fd: number;
  readonly path: string;
  #underWay = 0;
  #closing: Promise<void> | undefined;
  #idle: (() => void) | undefined;

  private constructor(fd: number, path: string) {
    this.fd = fd;
    this.path = path;
  }

  /**
   * Opens `path` with the flags of open(2). Rejects with Node's own error: only the caller knows
   * what the path means.
   */
  static async open(path: string, flags: number, mode = 0o666): Promise<PositionalFile> {
    const fd = await new Promise<number>((resolve, reject) => {
      fs.open(path, flags, mode, (error, opened) => {
        if (error === null) resolve(opened);
        else reject(error);
      });
    });
    return new PositionalFile(fd, path);
  }

  /**
   * As `open`, for a file in a folder that other users may write: no link, a regular file only.
   * Rejects with DAMAGED, or with Node's own error.
   */
  static async openPlain(path: string, flags: number, mode: number = ownFileMode): Promise<PositionalFile> {
    const file = await refusingLinks(path, (plain) => PositionalFile.open(path, flags | plain, mode));
    try {
      checkPlain(path, await file.stat());
      return file;
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /**
   * Fills `into` from `offset` as far as the file goes; returns the bytes read, fewer than asked
   * for only at the end of the file.
   */
  read(offset: number, into: Uint8Array): Promise<number> {
    return this.#run<number>((settle, fail) => {
      let done = 0;
      const next = (): void => {
        fs.read(this.fd, into, done, into.byteLength - done, offset + done, (error, count) => {
          if (error !== null) {
            fail(error);
            return;
          }
          done += count;
          if (count === 0 || done === into.byteLength) settle(done);
          else next();
        });
      };
      if (into.byteLength === 0) settle(0);
      else next();
    });
  }

  /** Writes all of `bytes` at `offset`. */
  write(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#call((settle) => {
      let done = 0;
      const next = (): void => {
        fs.write(this.fd, bytes, done, bytes.byteLength - done, offset + done, (error, count) => {
          done += count;
          if (error !== null || done === bytes.byteLength) settle(error);
          else next();
        });
      };
      if (bytes.byteLength === 0) settle(null);
      else next();
    });
  }

  /** Makes the content durable, with as much metadata as is needed to read it back. */
  datasync(): Promise<void> {
    return this.#call((done) => fs.fdatasync(this.fd, done));
  }

  /** Makes content and metadata durable. */
  sync(): Promise<void> {
    return this.#call((done) => fs.fsync(this.fd, done));
  }

  truncate(sizeBytes: number): Promise<void> {
    return this.#call((done) => fs.ftruncate(this.fd, sizeBytes, done));
  }

  chmod(mode: number): Promise<void> {
    return this.#call((done) => fs.fchmod(this.fd, mode, done));
  }

  stat(): Promise<fs.BigIntStats> {
    return this.#run((settle, fail) => {
      fs.fstat(this.fd, { bigint: true }, (error, stats) => {
        if (error === null) settle(stats);
        else fail(error);
      });
    });
  }

  /** Waits for the calls under way, then closes. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    if (this.#underWay > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    await new Promise<void>((resolve, reject) => {
      fs.close(this.fd, (error) => {
        if (error === null) resolve();
        else reject(error);
      });
    });
  }

  #call(start: (done: (error: Error | null) => void) => void): Promise<void> {
    return this.#run<undefined>((settle, fail) => {
      start((error) => {
        if (error === null) settle(undefined);
        else fail(error);
      });
    });
  }

  #run<Result>(start: (settle: (result: Result) => void, fail: (error: Error) => void) => void): Promise<Result> {
    if (this.#closing !== undefined)
      return Promise.reject(new TidemarkError("INTERNAL", `${this.path} is used after it was closed`));
    this.#underWay += 1;
    return new Promise<Result>((resolve, reject) => {
      start(
        (result) => {
          this.#ended();
          resolve(result);
        },
        (error) => {
          this.#ended();
          reject(error);
        },
      );
    });
  }

  #ended(): void {
    this.#underWay -= 1;
    if (this.#underWay === 0) this.#idle?.();
  }
}

/**
 * How a failed file call is told to the user: the fact, and what to do when the cause is none of
 * those that we know by name.
 */
export interface FileFailure {
  readonly code: ErrorCode;
  /** Starts the message: names the object and what was tried, as in `cannot read /dev/sdb`. */
  readonly what: string;
  readonly remedy: string;
  readonly detail?: ErrorDetail;
}

/**
 * Translates a system error once: a full disk is NO_SPACE, missing rights are ACCESS_REFUSED,
 * anything else is `failure.code`.
 */
export function fileError(cause: unknown, failure: FileFailure): TidemarkError {
  if (cause instanceof TidemarkError) return cause;
  const errno = systemCode(cause);
  const detail = { ...failure.detail, errno };
  if (errno === "ENOSPC" || errno === "EDQUOT") {
    return new TidemarkError("NO_SPACE", `${failure.what}: there is no space left`, {
      remedy: "free space there, then run the command again",
      detail,
      cause,
    });
  }
  if (errno === "EACCES" || errno === "EPERM" || errno === "EROFS") {
    const [fact, remedy] =
      errno === "EROFS"
        ? ["the file system is read-only", "mount it with write access, or name another place: `findmnt` shows mounts"]
        : ["access is refused", "check its permissions, or run as a user who has them"];
    return new TidemarkError("ACCESS_REFUSED", `${failure.what}: ${fact}`, {
      remedy,
      detail,
      cause,
    });
  }
  return new TidemarkError(failure.code, `${failure.what}: ${reason(cause, errno)}`, {
    remedy: failure.remedy,
    detail,
    cause,
  });
}

function reason(cause: unknown, errno: string | undefined): string {
  if (errno === "EIO") return "the device reports an input/output error (EIO)";
  if (errno === "EFBIG") return "the file system does not allow files this large (EFBIG)";
  return cause instanceof Error ? cause.message : String(cause);
}
