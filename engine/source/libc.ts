/**
 * The two system calls that Node lacks and that we cannot do without: `lseek`, to ask a file system for holes and a device for its
 * size, and `flock`, the only lock that dies with its holder. They are reached through koffi, which ships its binary; where it
 * cannot be loaded, or the platform has other calls, `libc()` is undefined and every caller has a slower or plainer way.
 */
import { createRequire } from "node:module";
import type * as Koffi from "koffi";

/** What a system call returned, or the errno with which it failed. */
export type CallResult = { readonly value: number } | { readonly errno: number };

export interface Libc {
  /** Moves the position of `fd`. Harmless to us: every read and write here names its own position. */
  lseek(fd: number, offset: number, whence: number): CallResult;
  flock(fd: number, operation: number): CallResult;
  readonly seekData: number;
  readonly seekHole: number;
  /** Numbers of the errors that callers tell apart. */
  readonly errno: { readonly noMoreData: number; readonly wouldBlock: number };
}

export const seekEnd = 2;
/** LOCK_EX | LOCK_NB: take the lock or fail at once. */
export const lockExclusiveAtOnce = 6;

/** Where `off_t` is 32 bits wide a plain `lseek` could not name an offset above 2 GiB. */
const wideArchitectures: readonly string[] = ["x64", "arm64", "ppc64", "s390x", "riscv64", "loong64", "mips64el"];

let bound: { readonly libc: Libc | undefined } | undefined;

/** The calls, bound on first use; undefined where they cannot be had. */
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
      seekData: linux ? 3 : 4,
      seekHole: linux ? 4 : 3,
      errno: { noMoreData: 6, wouldBlock: linux ? 11 : 35 },
    };
  } catch {
    // A native addon may fail to load in any number of ways; each means the same to us: this machine does not offer the calls.
    return undefined;
  }
}
