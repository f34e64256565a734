/**
 * Advisory locks between processes: flock(2).
 *
 * A lock file that merely exists outlives the process that created it, and the process id inside
 * may belong to a later process. flock belongs to the open file description, so the kernel drops it
 * when the process ends, for whatever reason. Node opens files close-on-exec, so a spawned child
 * does not inherit the lock. `release` unlocks before it closes, because a child that is being
 * forked shares the description for a moment.
 *
 * Invariant: a lock that is held is reachable. Node closes the descriptor of a file handle that is
 * garbage, and the kernel would drop the lock in the middle of what it protects.
 *
 * Waiting polls with LOCK_NB: a blocked call would occupy one of libuv's few threads and could not
 * be aborted. Two locks in one process exclude each other like locks in two processes, because each
 * has its own description.
 */
import { constants as openFlags } from "node:fs";
import { type FileHandle, readFile, stat } from "node:fs/promises";
import { constants } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { interrupted, systemCode, TidemarkError, throwIfAborted } from "../engine/index.ts";
import { libc, openPlain, unlessAbsent } from "../engine/internal.ts";

/** How often the lock file may be replaced between our opening and locking it. */
const attemptsMax = 100;

/** Shared locks admit each other; an exclusive lock admits no other. */
export type LockMode = "shared" | "exclusive";

/** How to wait for a lock. */
export interface LockOptions {
  readonly signal?: AbortSignal | undefined;
  /** How long to wait for the lock before STORE_UNREACHABLE. Default: until `signal` aborts. */
  readonly waitMsMax?: number | undefined;
}

/**
 * A lock on a path, from `acquire` to `release` or the death of the process. The file is created
 * when absent and never removed.
 *
 * @example
 * ```ts
 * await using lock = await FileLock.acquire("/run/agent.lock", "exclusive", { waitMsMax: 5000 });
 * ```
 */
export class FileLock implements AsyncDisposable {
  /** All that are held. A holder that only waits for its end keeps no reference of its own. */
  static readonly #held = new Set<FileLock>();

  readonly path: string;
  readonly mode: LockMode;
  readonly #handle: FileHandle;
  #released: Promise<void> | undefined;

  private constructor(path: string, mode: LockMode, handle: FileHandle) {
    this.path = path;
    this.mode = mode;
    this.#handle = handle;
    FileLock.#held.add(this);
  }

  /**
   * Waits until the lock is free and takes it.
   *
   * @throws TidemarkError INTERRUPTED; STORE_UNREACHABLE: `waitMsMax` passed; UNSUPPORTED: no flock
   * here. Errors of opening the file pass through untranslated.
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

  /**
   * Takes the lock if no other holder excludes it; undefined otherwise. Throws as `acquire` does.
   */
  static async tryAcquire(path: string, mode: LockMode): Promise<FileLock | undefined> {
    for (let attempt = 0; attempt < attemptsMax; attempt += 1) {
      const handle = await openPlain(path, openFlags.O_WRONLY | openFlags.O_APPEND | openFlags.O_CREAT);
      let kept = false;
      try {
        if (!tryLock(handle.fd, mode)) return undefined;
        // Between open and flock the file may have been removed or replaced. A lock on a file
        // without a name excludes no other process.
        if (!(await bearsName(handle, path))) continue;
        kept = true;
        return new FileLock(path, mode, handle);
      } finally {
        if (!kept) await handle.close();
      }
    }
    throw unsupported(`${path} is another file each time it is opened`);
  }

  /** Releases the lock. Idempotent; every call waits until the lock is released. */
  release(): Promise<void> {
    this.#released ??= this.#release();
    return this.#released;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.release();
  }

  async #release(): Promise<void> {
    try {
      unlock(this.#handle.fd);
    } finally {
      await this.#handle.close();
      FileLock.#held.delete(this);
    }
  }
}

/**
 * Runs `task` while the open file `handle` is locked exclusively. The caller must not run two calls
 * on one handle at a time: the open file description already holds the lock, so flock admits the
 * second call.
 */
export async function withDescriptorLocked<T>(
  handle: FileHandle,
  path: string,
  options: LockOptions,
  task: () => Promise<T>,
): Promise<T> {
  const deadlineMs = performance.now() + (options.waitMsMax ?? Number.POSITIVE_INFINITY);
  for (const pauseMs of pausesMs()) {
    throwIfAborted(options.signal);
    if (tryLock(handle.fd, "exclusive")) break;
    await pause(path, pauseMs, deadlineMs, options.signal);
  }
  try {
    return await task();
  } finally {
    unlock(handle.fd);
  }
}

/**
 * Mutual exclusion inside the process, first come first served. It saves the tasks of one process
 * from polling the file lock.
 */
export class Turnstile {
  #last: Promise<unknown> = Promise.resolve();

  /** Runs `task` after all tasks that came before. */
  pass<T>(task: () => Promise<T>): Promise<T> {
    const mine = this.#last.then(task);
    // The next task waits for the end of this one, not for its success; the caller of this one sees
    // the failure.
    this.#last = mine.then(ignore, ignore);
    return mine;
  }
}

function ignore(): void {
  return;
}

/**
 * Most locks are held for less than a millisecond, so the first pauses are short. A long wait costs
 * forty calls a second.
 */
function* pausesMs(): Generator<number, void> {
  for (let ms = 1; ; ms = Math.min(ms * 2, 25)) yield ms;
}

async function pause(path: string, ms: number, deadlineMs: number, signal: AbortSignal | undefined): Promise<void> {
  if (performance.now() >= deadlineMs) {
    const holder = await holderOf(path);
    const who = holder === undefined ? "another process" : `process ${String(holder.pid)} of user ${holder.user}`;
    throw new TidemarkError("STORE_UNREACHABLE", `${who} holds the lock ${path} and does not release it`, {
      remedy:
        holder === undefined
          ? `find the process that holds it, and end it: lslocks | grep ${path}`
          : `find out what it does, and end it: ps -fp ${String(holder.pid)}`,
      detail: { path, ...holder },
    });
  }
  try {
    await delay(ms, undefined, { signal });
  } catch (error) {
    if (signal?.aborted === true) throw interrupted(signal);
    throw error;
  }
}

/** The process that holds a flock on the file, as Linux's /proc/locks tells; undefined: unknown. */
async function holderOf(path: string): Promise<{ readonly pid: number; readonly user: string } | undefined> {
  try {
    const { dev, ino } = await stat(path);
    // The kernel's numbering of devices, as makedev(3) packs it.
    const high = Math.floor(dev / 256) % 4096;
    const low = (dev % 256) + Math.floor(dev / 2 ** 20) * 256;
    const hex = (part: number): string => part.toString(16).padStart(2, "0");
    const place = `${hex(high)}:${hex(low)}:${String(ino)}`;
    for (const line of (await readFile("/proc/locks", "latin1")).split("\n")) {
      // `1: FLOCK  ADVISORY  WRITE 4711 08:01:131 0 EOF`; lines with an arrow are waiters.
      const [, kind, , , pid, at] = line.split(/ +/);
      if (kind !== "FLOCK" || at !== place) continue;
      return { pid: Number(pid), user: String((await stat(`/proc/${String(pid)}`)).uid) };
    }
  } catch (error) {
    // The holder is named for the message only: no /proc, or a holder that has just ended.
    if (systemCode(error) === undefined) throw error;
  }
  return undefined;
}

async function bearsName(handle: FileHandle, path: string): Promise<boolean> {
  const ours = await handle.stat({ bigint: true });
  const named = await unlessAbsent(stat(path, { bigint: true }));
  return named?.ino === ours.ino && named.dev === ours.dev;
}

/** From <sys/file.h>; the same on Linux and the BSDs, macOS included. */
const lockShared = 1;
const lockExclusive = 2;
const lockNonBlocking = 4;
const lockUnlock = 8;

/** False when another holder excludes the lock. Throws UNSUPPORTED where there is no flock. */
function tryLock(fd: number, mode: LockMode): boolean {
  return flock(fd, (mode === "shared" ? lockShared : lockExclusive) | lockNonBlocking);
}

function unlock(fd: number): void {
  flock(fd, lockUnlock);
}

function flock(fd: number, operation: number): boolean {
  const calls = libc();
  if (calls === undefined) throw unsupported("this machine offers no flock");
  const { EWOULDBLOCK, EAGAIN, EINTR, ENOLCK, ENOTSUP, EOPNOTSUPP } = constants.errno;
  for (;;) {
    const result = calls.flock(fd, operation);
    if (!("errno" in result)) return true;
    const { errno } = result;
    if (errno === EINTR) continue;
    if (errno === EWOULDBLOCK || errno === EAGAIN) return false;
    if (errno === ENOLCK || errno === ENOTSUP || errno === EOPNOTSUPP)
      throw unsupported(`this file system has no locks (errno ${String(errno)})`);
    throw new TidemarkError("INTERNAL", `flock failed with errno ${String(errno)}`, { detail: { errno } });
  }
}

function unsupported(fact: string): TidemarkError {
  return new TidemarkError("UNSUPPORTED", `files cannot be locked: ${fact}`, {
    remedy: "use a vault in Azure Storage, or run on Linux or macOS (64-bit) with the vault on a local disk",
  });
}
