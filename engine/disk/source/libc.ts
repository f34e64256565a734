/**
 * System calls that Node lacks, through koffi.
 *
 * - `lseek`: holes of a file, size of a device
 * - `flock`: a lock that the kernel drops when its holder dies
 * - on Linux: `preadv2` (reads what is cached and never waits), `fallocate` (gives space back),
 *   `posix_fadvise` (stops read-ahead, empties the cache)
 *
 * Where koffi cannot be loaded or the platform lacks a call, `libc()` is undefined and each caller
 * has a slower or plainer way.
 */
import { closeSync, openSync } from "node:fs";
import { createRequire } from "node:module";
import type * as Koffi from "koffi";

/** What a system call returned, or the errno with which it failed. */
export type CallResult = { readonly value: number } | { readonly errno: number };

export interface Libc {
  /**
   * Moves the position of `fd`. Harmless to us: every read and write here names its own position.
   */
  lseek(fd: number, offset: number, whence: number): CallResult;
  flock(fd: number, operation: number): CallResult;
  /**
   * Reads what the page cache holds of the range and never waits for a disk: the count may be
   * short, and nothing cached is `wouldBlock`. `into` must not be empty. Absent where the C library
   * has no preadv2.
   */
  readonly readCached?: ((fd: number, offset: number, into: Uint8Array) => CallResult) | undefined;
  /**
   * Changes how the range is allocated, on a thread of the pool, because it may take seconds.
   * Absent where the C library has no fallocate.
   */
  readonly fallocate?: ((fd: number, mode: number, offset: number, length: number) => Promise<CallResult>) | undefined;
  /**
   * Tells the kernel how the whole of this open file is used: `readRandomly` or `dropCache`. Absent
   * where the C library has no posix_fadvise.
   */
  readonly advise?: ((fd: number, advice: number) => CallResult) | undefined;
  readonly seekData: number;
  readonly seekHole: number;
  /** Numbers of the errors that callers tell apart. */
  readonly errno: { readonly noMoreData: number; readonly wouldBlock: number };
}

export const seekEnd = 2;
/** LOCK_EX | LOCK_NB: take the lock or fail at once. */
export const lockExclusiveAtOnce = 6;
/**
 * Modes of `fallocate` (linux/falloc.h), each with FALLOC_FL_KEEP_SIZE: make a hole; make zeros
 * that stay allocated.
 */
export const punchHole = 0x03;
export const zeroRange = 0x11;
/**
 * Advice of linux/fadvise.h: read nothing ahead (POSIX_FADV_RANDOM); forget what is cached and not
 * dirty (POSIX_FADV_DONTNEED). The numbers hold on all little-endian machines.
 */
export const readRandomly = 1;
export const dropCache = 4;
/**
 * Linux's numbers of the errors with which a file system says that it does not know a call or a
 * mode of it.
 */
export const unsupportedErrnos: readonly number[] = [22 /* EINVAL */, 38 /* ENOSYS */, 95 /* EOPNOTSUPP */];

/** Where `off_t` is 32 bits wide a plain `lseek` could not name an offset above 2 GiB. */
const wideArchitectures: readonly string[] = ["x64", "arm64", "ppc64", "s390x", "riscv64", "loong64", "mips64el"];

let bound: { readonly libc: Libc | undefined } | undefined;

/** The calls, bound on first use; undefined where they cannot be had. Errors: EMFILE, ENFILE. */
export function libc(): Libc | undefined {
  bound ??= { libc: bind() };
  return bound.libc;
}

function bind(): Libc | undefined {
  const linux = process.platform === "linux";
  if ((!linux && process.platform !== "darwin") || !wideArchitectures.includes(process.arch)) return undefined;
  try {
    const koffi = createRequire(import.meta.url)("koffi") as typeof Koffi;
    const self = koffi.load(null);
    const lseek = self.func("int64_t lseek(int fd, int64_t offset, int whence)") as (
      fd: number,
      offset: number,
      whence: number,
    ) => number | bigint;
    const flock = self.func("int flock(int fd, int operation)") as (fd: number, operation: number) => number;
    const result = (value: number): CallResult => (value < 0 ? { errno: koffi.errno() } : { value });
    return {
      lseek: (fd, offset, whence) => result(Number(lseek(fd, offset, whence))),
      flock: (fd, operation) => result(flock(fd, operation)),
      ...(linux
        ? {
            readCached: bindReadCached(koffi, self),
            fallocate: bindFallocate(koffi, self),
            advise: bindAdvise(self),
          }
        : {}),
      seekData: linux ? 3 : 4,
      seekHole: linux ? 4 : 3,
      errno: { noMoreData: 6, wouldBlock: linux ? 11 : 35 },
    };
  } catch {
    // Throws where no file can be opened at all: then the machine may offer the calls.
    closeSync(openSync(process.execPath, "r"));
    // A native addon may fail to load in any number of other ways; each means the same to us: this
    // machine does not offer the calls.
    return undefined;
  }
}

/** RWF_NOWAIT of linux/fs.h. */
const noWait = 8;

function bindReadCached(koffi: typeof Koffi, self: Koffi.LibraryHandle): Libc["readCached"] {
  const name = "int64_t preadv2(int fd, void *iov, int count, int64_t offset, int flags)";
  const preadv2 = funcIfThere(self, name) as
    | ((fd: number, iov: Uint8Array, count: number, offset: number, flags: number) => number | bigint)
    | undefined;
  if (preadv2 === undefined) return undefined;
  // One `struct iovec` for all calls: they are synchronous, so no two overlap.
  const iovec = new BigUint64Array(2);
  const iovecBytes = new Uint8Array(iovec.buffer);
  return (fd, offset, into) => {
    iovec[0] = koffi.address(into);
    iovec[1] = BigInt(into.byteLength);
    const count = Number(preadv2(fd, iovecBytes, 1, offset, noWait));
    return count < 0 ? { errno: koffi.errno() } : { value: count };
  };
}

function bindFallocate(koffi: typeof Koffi, self: Koffi.LibraryHandle): Libc["fallocate"] {
  const call = funcIfThere(self, "int fallocate(int fd, int mode, int64_t offset, int64_t length)");
  if (call === undefined) return undefined;
  const fallocate = call as Koffi.KoffiFunc<(fd: number, mode: number, offset: number, length: number) => number>;
  return (fd, mode, offset, length) =>
    new Promise((resolve, reject) => {
      fallocate.async(fd, mode, offset, length, (error: unknown, value: number) => {
        // koffi carries the errno of the pool's thread over to this callback, in which it has to be
        // asked for.
        if (error !== null && error !== undefined)
          reject(error instanceof Error ? error : new Error("fallocate could not be called"));
        else resolve(value < 0 ? { errno: koffi.errno() } : { value });
      });
    });
}

function bindAdvise(self: Koffi.LibraryHandle): Libc["advise"] {
  const call = funcIfThere(self, "int posix_fadvise(int fd, int64_t offset, int64_t length, int advice)");
  if (call === undefined) return undefined;
  const advise = call as (fd: number, offset: number, length: number, advice: number) => number;
  // Unlike its neighbours it returns the errno.
  return (fd, advice) => {
    const errno = advise(fd, 0, 0, advice);
    return errno === 0 ? { value: 0 } : { errno };
  };
}

/**
 * A C library may lack a call (musl before 1.2.5 has no preadv2), which must not cost the others.
 */
function funcIfThere(
  self: Koffi.LibraryHandle,
  declaration: string,
): ReturnType<Koffi.LibraryHandle["func"]> | undefined {
  try {
    return self.func(declaration);
  } catch {
    return undefined;
  }
}
