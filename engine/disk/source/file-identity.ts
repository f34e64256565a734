/**
 * File identity: which file or device a path names, in a form that can be stored and compared
 * later.
 *
 * It answers whether a restore target is the source that a disk was replicated from. In doubt the
 * answer is yes, because the question guards the source against being overwritten.
 */
import type { BigIntStats } from "node:fs";

/** Plain data; numbers are decimal text because inode numbers may exceed what a double holds. */
export interface FileIdentity {
  readonly kind: "file" | "device";
  readonly dev: string;
  readonly ino: string;
  /** Device number of a block device, `0` for a file. */
  readonly rdev: string;
  /** Absolute, without symbolic links. */
  readonly path: string;
  /**
   * Serial number of a live block device, or what else the kernel tells it from others by. Absent
   * where it tells nothing, and for a source that is only read.
   */
  readonly serial?: string | undefined;
}

/** The identity of the file or device at `path`, which is absolute and holds no links. */
export function identityFrom(path: string, stats: BigIntStats): FileIdentity {
  const device = stats.isBlockDevice();
  return {
    kind: device ? "device" : "file",
    dev: stats.dev.toString(),
    ino: stats.ino.toString(),
    rdev: device ? stats.rdev.toString() : "0",
    path,
  };
}

/**
 * True when both may be the same object: one path, one inode (hard links, bind mounts), or one
 * device number. Device numbers change across reboots, paths across mounts; either is enough.
 */
export function sameObject(a: FileIdentity, b: FileIdentity): boolean {
  if (a.path === b.path) return true;
  if (a.kind === "device" || b.kind === "device") return a.kind === b.kind && a.rdev === b.rdev;
  return a.dev === b.dev && a.ino === b.ino;
}
