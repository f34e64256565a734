/**
 * Locks between processes that no crash can leave behind: flock(2).
 *
 * A lock file that merely exists outlives the process that made it, and a process id inside it may have been given to somebody else.
 * flock belongs to the open file description, so the kernel drops it when the process ends, whatever ended it. Node opens files
 * close-on-exec, so a spawned child does not inherit the lock; release unlocks before it closes, because a child that is just being
 * forked shares the description for a moment.
 *
 * Waiting polls with LOCK_NB instead of blocking inside the kernel: a blocked call would hold one of libuv's few threads, and could not be
 * aborted. Two locks in one process exclude each other like locks in two processes, since each has a description of its own.
 */
import { type FileHandle, open, stat } from "node:fs/promises";
import { setTimeout as delay } from "node:timers/promises";
import { interrupted, systemCode, TidemarkError, throwIfAborted } from "../engine/index.ts";

export type LockMode = "shared" | "exclusive";

export interface LockOptions {
  readonly signal?: AbortSignal | undefined;
  /** How long to wait for the lock before STORE_UNREACHABLE. Default: without end, until `signal` aborts. */
  readonly waitMsMax?: number | undefined;
}

/** A lock on a path, from `acquire` to `release` or the death of the process. The file is made when absent and never removed. */
export class FileLock implements AsyncDisposable {
  readonly path: string;
  readonly mode: LockMode;
  readonly #handle: FileHandle;
  #released: Promise<void> | undefined;

  private constructor(path: string, mode: LockMode, handle: FileHandle) {
    this.path = path;
    this.mode = mode;
    this.#handle = handle;
  }

  /**
   * Waits until the lock is ours. Errors: INTERRUPTED, STORE_UNREACHABLE (`waitMsMax` passed), UNSUPPORTED (no flock here), and those of
   * opening the file, untranslated.
   */
  static async acquire(path: string, mode: LockMode, options: LockOptions = {}): Promise<FileLock> {
    const deadlineMs = performance.now() + (options.waitMsMax ?? Number.POSITIVE_INFINITY);
    for (const pauseMs of pausesMs()) {
      throwIfAborted(options.signal);
      const lock = await FileLock.tryAcquire(path, mode);
      if (lock !== undefined) return lock;
      await pause(path, pauseMs, deadlineMs, options.signal);
    }
    throw new Error("unreachable: the pauses never end");
  }

  /** Takes the lock if nobody holds it in a way that excludes us; undefined otherwise. */
  static async tryAcquire(path: string, mode: LockMode): Promise<FileLock | undefined> {
    const flock = await loadFlock();
    for (;;) {
      const handle = await open(path, "a", 0o666);
      let kept = false;
      try {
        if (!flock.tryLock(handle.fd, mode)) return undefined;
        // Between open and flock the file may have been removed or replaced; a lock on a file that bears no name excludes nobody.
        if (!(await bearsName(handle, path))) continue;
        kept = true;
        return new FileLock(path, mode, handle);
      } finally {
        if (!kept) await handle.close();
      }
    }
  }

  /** Gives the lock up. Idempotent; every call waits until it is done. */
  release(): Promise<void> {
    this.#released ??= this.#release();
    return this.#released;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.release();
  }

  async #release(): Promise<void> {
    try {
      (await loadFlock()).unlock(this.#handle.fd);
    } finally {
      await this.#handle.close();
    }
  }
}

/**
 * Runs `task` while the open file `handle` is locked exclusively. The caller sees to it that no two of its own calls share one handle at a
 * time: flock would let the second in, as the description already holds the lock.
 */
export async function withDescriptorLocked<T>(handle: FileHandle, path: string, options: LockOptions, task: () => Promise<T>): Promise<T> {
  const flock = await loadFlock();
  const deadlineMs = performance.now() + (options.waitMsMax ?? Number.POSITIVE_INFINITY);
  for (const pauseMs of pausesMs()) {
    throwIfAborted(options.signal);
    if (flock.tryLock(handle.fd, "exclusive")) break;
    await pause(path, pauseMs, deadlineMs, options.signal);
  }
  try {
    return await task();
  } finally {
    flock.unlock(handle.fd);
  }
}

/** Lets one task in at a time, in the order of their coming. It spares tasks of one process the polling of the lock behind it. */
export class Turnstile {
  #last: Promise<unknown> = Promise.resolve();

  pass<T>(task: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(task);
    // The next one waits for our end, not for our success; our own caller sees the failure.
    this.#last = mine.then(ignore, ignore);
    return mine;
  }
}

function ignore(): void {
  return;
}

/** Locks are held for well under a millisecond as a rule, so the first pauses are short; a long wait costs forty calls a second. */
function* pausesMs(): Generator<number, void> {
  for (let ms = 1; ; ms = Math.min(ms * 2, 25)) yield ms;
}

async function pause(path: string, ms: number, deadlineMs: number, signal: AbortSignal | undefined): Promise<void> {
  if (performance.now() >= deadlineMs) {
    throw new TidemarkError("STORE_UNREACHABLE", `the lock ${path} is held by another process that does not give it up`, {
      remedy: "look for a stopped tidemark process that uses the same folder, and end it",
    });
  }
  try {
    await delay(ms, undefined, { signal });
  } catch (error) {
    if (signal?.aborted === true) throw interrupted(signal);
    throw error;
  }
}

async function bearsName(handle: FileHandle, path: string): Promise<boolean> {
  const ours = await handle.stat({ bigint: true });
  try {
    const named = await stat(path, { bigint: true });
    return named.ino === ours.ino && named.dev === ours.dev;
  } catch (error) {
    if (systemCode(error) === "ENOENT") return false;
    throw error;
  }
}

interface Flock {
  tryLock(fd: number, mode: LockMode): boolean;
  unlock(fd: number): void;
}

/** From <sys/file.h>; the same on Linux and the BSDs, macOS included. */
const lockShared = 1;
const lockExclusive = 2;
const lockNonBlocking = 4;
const lockUnlock = 8;

let loading: Promise<Flock> | undefined;

/** The C library's flock. Loaded at first use, so that a machine without it can use everything that needs no lock. */
function loadFlock(): Promise<Flock> {
  loading ??= bindFlock();
  return loading;
}

async function bindFlock(): Promise<Flock> {
  if (process.platform === "win32") throw unsupported("Windows has no flock", undefined);
  let koffi: typeof import("koffi").default;
  let call: (fd: number, operation: number) => number;
  try {
    koffi = (await import("koffi")).default;
    // null looks the symbol up in the process itself, which is linked to whatever C library this system has.
    call = koffi.load(null).func("int flock(int fd, int operation)") as typeof call;
  } catch (error) {
    throw unsupported("flock cannot be called", error);
  }
  const { EWOULDBLOCK, EAGAIN, EINTR, ENOLCK, ENOTSUP, EOPNOTSUPP } = koffi.os.errno;

  function operate(fd: number, operation: number): boolean {
    for (;;) {
      if (call(fd, operation) === 0) return true;
      const errno = koffi.errno();
      if (errno === EINTR) continue;
      if (errno === EWOULDBLOCK || errno === EAGAIN) return false;
      if (errno === ENOLCK || errno === ENOTSUP || errno === EOPNOTSUPP)
        throw unsupported(`this file system has no locks (errno ${String(errno)})`, undefined);
      throw new TidemarkError("INTERNAL", `flock failed with errno ${String(errno)}`, { detail: { errno } });
    }
  }

  return {
    tryLock: (fd, mode) => operate(fd, (mode === "shared" ? lockShared : lockExclusive) | lockNonBlocking),
    unlock: (fd) => {
      operate(fd, lockUnlock);
    },
  };
}

function unsupported(fact: string, cause: unknown): TidemarkError {
  return new TidemarkError("UNSUPPORTED", `files cannot be locked here: ${fact}`, {
    remedy: "use a vault in Azure Storage, or run on Linux or macOS with the vault on a local disk",
    cause,
  });
}
