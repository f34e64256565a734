/**
 * Choice of the restore target. `openTarget` looks at what the target names:
 *
 * | target | mode | way |
 * |---|---|---|
 * | no file yet, or one to replace | `create`, `replace` | `FileTarget`: a partial beside it, renamed when whole |
 * | existing image file | `in-place` | `InPlaceTarget`: only what differs is written |
 * | block device | `in-place` | `InPlaceTarget` |
 * | `blob:NAME` | `create`, `replace` | `BlobTarget`: a page blob in the vault's container, as Azure attaches it |
 * | `blob:NAME` | `in-place` | `InPlaceBlobTarget`: only what differs is written |
 *
 * Invariant: every check that can refuse a target comes before the first change to it.
 */
import type { BigIntStats } from "node:fs";
import { lstat, realpath, stat } from "node:fs/promises";
import { basename, dirname, join, resolve } from "node:path";
import { type FileIdentity, identityFrom, sameObject } from "../../disk/source/file-identity.ts";
import { ownFileMode } from "../../disk/source/plain-file.ts";
import { fileError } from "../../disk/source/positional-file.ts";
import { systemCode, TidemarkError } from "../../errors.ts";
import type { Sink } from "../../sink.ts";
import { openBlobTarget } from "./blob-target.ts";
import { FileTarget } from "./file-target.ts";
import { InPlaceTarget } from "./in-place-target.ts";
import type { MaterializeMode, RestoreTarget, TargetImage } from "./target.ts";
import { targetExists } from "./target.ts";
import { vhdDiskBytes, vhdFileDiskBytesMax, vhdTooLarge } from "./vhd.ts";

export interface OpenTargetOptions extends Pick<TargetImage, "format" | "isKnownToDiffer" | "beforeChange"> {
  /** Path of a file or block device, or `blob:NAME`. */
  readonly to: string;
  readonly mode: MaterializeMode;
  readonly volumeBytes: number;
  readonly vaultId: string;
  /** Id of the recovery point, which names its exact content. */
  readonly point: string;
  /** Time of the point in milliseconds since 1970; a VHD bears it. Default: 0. */
  readonly pointTimeMs?: number | undefined;
  /** The vault's store, for `blob:`. */
  readonly sink: Sink;
  /** What the disk was last replicated from, when that is known. */
  readonly sourceIdentity?: FileIdentity | undefined;
  /** Permissions of the file that the disk was last replicated from. Default: 0600. */
  readonly sourceMode?: number | undefined;
  readonly overwriteSource: boolean;
  /** Monotonic milliseconds for the pace of checkpoints. Default: `performance.now`. */
  readonly clock?: (() => number) | undefined;
  /** Ends calls to the store. */
  readonly signal?: AbortSignal | undefined;
}

/**
 * Opens a target. Errors: TARGET_EXISTS, TARGET_IS_SOURCE, TARGET_TOO_SMALL, TARGET_FAILED,
 * UNSUPPORTED, INVALID_ARGUMENT, ACCESS_REFUSED, NO_SPACE.
 */
export async function openTarget(options: OpenTargetOptions): Promise<RestoreTarget> {
  if (options.to.startsWith("blob:")) return openBlobTarget({ ...options, name: options.to.slice("blob:".length) });
  if (options.to === "")
    throw new TidemarkError("INVALID_ARGUMENT", "the target has no name", {
      remedy: "name a file, a block device or `blob:NAME`",
    });
  if (options.format === "vhd" && vhdDiskBytes(options.volumeBytes) > vhdFileDiskBytesMax) {
    throw vhdTooLarge(options.volumeBytes, vhdFileDiskBytesMax);
  }
  const found = await look(options.to);
  const { pointTimeMs = 0, clock = () => performance.now() } = options;
  const plan: TargetImage = { ...options, path: found.path, pointTimeMs, clock };
  if (found.stats === undefined) {
    if (options.mode === "in-place") throw nothingInPlace(options.to);
    await refuseBelowDev(options.to, found.path);
    return FileTarget.open(plan, { replaces: false, mode: options.sourceMode ?? ownFileMode });
  }
  refuseWrongKind(options, found.path, found.stats);
  refuseSource(options, identityFrom(found.path, found.stats));
  const isDevice = found.stats.isBlockDevice();
  if (options.mode === "in-place") return InPlaceTarget.open(plan);
  if (options.mode === "create" || isDevice) throw targetExists(options.to, isDevice);
  return FileTarget.open(plan, { replaces: true, mode: Number(found.stats.mode) & 0o777 });
}

function nothingInPlace(to: string): TidemarkError {
  return new TidemarkError("TARGET_FAILED", `the target ${to} does not exist, so nothing can be changed in place`, {
    remedy: "check the name, or leave out `--in-place` to make a new file",
    detail: { target: to },
  });
}

/**
 * A mistyped device must not become a file in the memory of the machine. A file system that is
 * mounted below /dev, as /dev/shm is, may hold files.
 */
async function refuseBelowDev(to: string, path: string): Promise<void> {
  if (!path.startsWith("/dev/")) return;
  const [folder, devices] = await Promise.all([stat(dirname(path)), stat("/dev")]);
  if (folder.dev !== devices.dev) return;
  throw new TidemarkError("TARGET_FAILED", `there is no device ${to}`, {
    remedy: "list the devices with `lsblk`, and name one that is there",
    detail: { target: to },
  });
}

/**
 * Resolves links, so that the file itself is renamed or compared. `stats` is undefined when the
 * name is free.
 */
async function look(to: string): Promise<{ readonly path: string; readonly stats: BigIntStats | undefined }> {
  const absolute = resolve(to);
  try {
    await lstat(absolute);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw targetError(error, `cannot look at the target ${to}`);
    return { path: join(await parentFolder(to, absolute), basename(absolute)), stats: undefined };
  }
  try {
    const path = await realpath(absolute);
    return { path, stats: await stat(path, { bigint: true }) };
  } catch (error) {
    throw targetError(error, `cannot follow the target ${to}`);
  }
}

async function parentFolder(to: string, absolute: string): Promise<string> {
  const folder = dirname(absolute);
  try {
    return await realpath(folder);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw targetError(error, `cannot look at the folder of the target ${to}`);
    throw new TidemarkError("TARGET_FAILED", `the folder ${folder} of the target does not exist`, {
      remedy: "make the folder first",
      detail: { target: to },
      cause: error,
    });
  }
}

function refuseWrongKind(options: OpenTargetOptions, path: string, stats: BigIntStats): void {
  if (stats.isFile()) return;
  if (!stats.isBlockDevice()) {
    const kind = stats.isDirectory() ? "a folder" : "neither a file nor a block device";
    throw new TidemarkError("TARGET_FAILED", `the target ${options.to} is ${kind}`, {
      remedy: "name a file or a block device",
      detail: { target: path },
    });
  }
  if (options.format === "vhd") {
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `the target ${options.to} is a block device, which holds a disk and no VHD`,
      {
        remedy: "leave `--format vhd` out",
      },
    );
  }
}

function refuseSource(options: OpenTargetOptions, target: FileIdentity): void {
  if (options.overwriteSource || options.sourceIdentity === undefined || !sameObject(options.sourceIdentity, target))
    return;
  throw new TidemarkError(
    "TARGET_IS_SOURCE",
    `the target ${options.to} is the source that this disk was replicated from`,
    {
      remedy: "name another target; only `tidemark materialize --force` writes over the source",
      detail: { target: target.path },
    },
  );
}

function targetError(cause: unknown, what: string): TidemarkError {
  return fileError(cause, { code: "TARGET_FAILED", what, remedy: "check the path, or name another target" });
}
