/**
 * Profile file: an append-only log of JSON lines.
 *
 * Each line is written whole and synced, so a profiler that is killed loses the sample that it was
 * about to take, and nothing that it has written. A torn last line is dropped: by a reader, and by
 * the next profiler before it appends.
 *
 * Invariant: one profiler at a time appends to a file (flock), and it never changes a whole line.
 */
import { constants, createReadStream } from "node:fs";
import { type FileHandle, rm } from "node:fs/promises";
import { createInterface } from "node:readline";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import { libc, lockExclusiveAtOnce, openPlain, shellWord } from "../../engine/internal.ts";
import { decodeLine, encodeLine, type ProfileLine } from "./profile-lines.ts";

/** How the first line begins; a file that begins so and ends there was torn while it was made. */
const beginning = '{"type":"start","version":1,';
/** A sketch of 1,024 blocks has 8 KiB; a longer piece without a line end is no profile. */
const lineBytesMax = 64 * 1024;

export class ProfileWriter implements AsyncDisposable {
  readonly #path: string;
  readonly #file: FileHandle;

  private constructor(path: string, file: FileHandle) {
    this.#path = path;
    this.#file = file;
  }

  /**
   * Opens a profile to go on with, or begins one.
   *
   * @throws INVALID_ARGUMENT: the file holds something else. WRITER_ACTIVE: another profiler has it.
   * ACCESS_REFUSED, NO_SPACE, TARGET_FAILED.
   */
  static async open(path: string): Promise<ProfileWriter> {
    const file = await openPlain(path, constants.O_RDWR | constants.O_CREAT).catch((error: unknown) => {
      throw unusable(path, error, "written");
    });
    try {
      const locked = libc()?.flock(file.fd, lockExclusiveAtOnce);
      if (locked !== undefined && "errno" in locked) {
        throw new TidemarkError("WRITER_ACTIVE", `another process appends to the profile ${path}`, {
          remedy: `end the process that \`fuser ${shellWord(path)}\` shows, or name another file with --out`,
          detail: { path },
        });
      }
      const lines = readProfile(path);
      await lines.next();
      await lines.return();
      await dropTornLine(path, file);
      return new ProfileWriter(path, file);
    } catch (error) {
      await file.close();
      throw error;
    }
  }

  /** Appends a line, durably. Errors: NO_SPACE, ACCESS_REFUSED, TARGET_FAILED. */
  async append(line: ProfileLine): Promise<void> {
    try {
      const { size } = await this.#file.stat();
      await this.#file.write(`${encodeLine(line)}\n`, size);
      await this.#file.datasync();
    } catch (error) {
      throw unusable(this.#path, error, "written");
    }
  }

  /** A profile into which nothing came goes away, as when its disk was not there. */
  async [Symbol.asyncDispose](): Promise<void> {
    const { size } = await this.#file.stat();
    if (size === 0) await rm(this.#path, { force: true });
    await this.#file.close();
  }
}

/**
 * Lines of a profile in their order, without a torn last one.
 *
 * @throws INVALID_ARGUMENT: a line is none of a profile. SOURCE_NOT_FOUND, ACCESS_REFUSED,
 * SOURCE_UNREADABLE.
 */
export async function* readProfile(path: string): AsyncGenerator<ProfileLine, void, undefined> {
  const stream = createReadStream(path, "utf8");
  const lines = createInterface({ input: stream, crlfDelay: Number.POSITIVE_INFINITY });
  let number = 0;
  let faultAt: number | undefined;
  try {
    for await (const text of lines) {
      number += 1;
      if (faultAt !== undefined || text.length > lineBytesMax) throw noProfile(path, faultAt ?? number);
      const line = decodeLine(text);
      // What cannot be read is a torn line only where no line follows, and only if the file is a
      // profile at all.
      if (line !== undefined) yield line;
      else if (number === 1 && !text.startsWith(beginning)) throw noProfile(path, number);
      else faultAt = number;
    }
  } catch (error) {
    throw unusable(path, error, "read");
  } finally {
    lines.close();
    stream.destroy();
  }
}

async function dropTornLine(path: string, file: FileHandle): Promise<void> {
  const { size } = await file.stat();
  const tail = Buffer.alloc(Math.min(size, lineBytesMax));
  await file.read(tail, 0, tail.length, size - tail.length);
  const end = tail.lastIndexOf("\n") + 1;
  if (end === 0 && size > tail.length) throw noProfile(path, 1);
  if (end < tail.length) await file.truncate(size - tail.length + end);
}

function noProfile(path: string, line: number): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `line ${line} of ${path} is no line of a capacity profile`, {
    remedy: "name a file that `tidemark capacity profile --out FILE` has written",
    detail: { path, line },
  });
}

/** What a fault of the file system means to a profile that is read, or written. */
function unusable(path: string, error: unknown, use: "read" | "written"): unknown {
  const errno = systemCode(error);
  if (error instanceof TidemarkError || errno === undefined) return error;
  const context = { detail: { path, errno }, cause: error };
  switch (errno) {
    case "ENOENT":
    case "ENOTDIR":
      return use === "read"
        ? new TidemarkError("SOURCE_NOT_FOUND", `there is no file ${path}`, { remedy: "check the path", ...context })
        : new TidemarkError("TARGET_FAILED", `the profile ${path} cannot be made: its folder is not there`, {
            remedy: "make the folder, or name another file with `--out`",
            ...context,
          });
    case "EACCES":
    case "EPERM":
    case "EROFS":
      return new TidemarkError("ACCESS_REFUSED", `the profile ${path} is not open to this user`, {
        remedy: `name a file that this user may ${use === "read" ? "read" : "read and write"}`,
        ...context,
      });
    case "ENOSPC":
    case "EDQUOT":
      return new TidemarkError("NO_SPACE", `there is no room for the profile ${path}`, {
        remedy: "make room and run the command again; it goes on with the same file",
        ...context,
      });
    default:
      return use === "read"
        ? new TidemarkError("SOURCE_UNREADABLE", `the profile ${path} cannot be read (${errno})`, {
            remedy: "name a file that `tidemark capacity profile --out FILE` has written",
            ...context,
          })
        : new TidemarkError("TARGET_FAILED", `the profile ${path} cannot be written (${errno})`, {
            remedy: "name a file on another disk",
            ...context,
          });
  }
}
