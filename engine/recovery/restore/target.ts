/**
 * Restore target: the interface that receives the bytes of one image, and the facts that each kind
 * of target needs.
 */
import { libc, lockExclusiveAtOnce } from "../../disk/source/libc.ts";
import { PositionalFile } from "../../disk/source/positional-file.ts";
import { TidemarkError } from "../../errors.ts";

/**
 * `raw`: the bytes of the disk. `vhd`: a fixed VHD, the disk padded to a MiB and a footer of 512
 * bytes.
 */
export type ImageFormat = "raw" | "vhd";

/**
 * How a point is written out. `create`: the target must not exist. `replace`: an existing file is
 * replaced once the image is whole. `in-place`: an existing target is changed where it differs.
 */
export type MaterializeMode = "create" | "replace" | "in-place";

/**
 * Receives the bytes of one image. Calls of `write` and `zero` overlap freely, for disjoint ranges
 * inside the volume; offsets are multiples of 512. Every range of [resumeAt, volumeBytes) is given
 * to exactly one of them. Ends with `finish` or `abandon`; disposing without either abandons.
 * Errors common to all calls: TARGET_FAILED, NO_SPACE, ACCESS_REFUSED, and for blobs those of the
 * `Sink`.
 */
export interface RestoreTarget extends AsyncDisposable {
  readonly description: string;
  /**
   * [0, resumeAt) was already written for this very point by a run that was interrupted: a value
   * that run gave to `checkpoint`.
   */
  readonly resumeAt: number;
  /**
   * Bytes written so far by this run; zeros that were left as holes and unchanged ranges do not
   * count.
   */
  readonly bytesWritten: number;
  /**
   * Writes `bytes`, a view of shared memory perhaps, which must not change until the promise has
   * settled.
   */
  write(offset: number, bytes: Uint8Array): Promise<void>;
  /** Makes the range read as zeros. */
  zero(offset: number, length: number): Promise<void>;
  /**
   * Everything below `doneBytes` has been written: makes it durable and notes it for a later run,
   * at most twice a second; cheap otherwise.
   */
  checkpoint(doneBytes: number): Promise<void>;
  /** Makes the image whole and durable under the target's name. */
  finish(): Promise<void>;
  /**
   * After a failure or an interruption: closes, keeps what a later run can resume, leaves no half
   * image under the target's name. Idempotent.
   */
  abandon(): Promise<void>;
}

/** The image that a file or device target is to hold: checked facts. */
export interface TargetImage {
  /** Absolute path, links resolved. */
  readonly path: string;
  /** Undefined: what is changed in place keeps its form. */
  readonly format: ImageFormat | undefined;
  readonly volumeBytes: number;
  readonly vaultId: string;
  readonly point: string;
  readonly pointTimeMs: number;
  readonly clock: () => number;
  /** What is written in place differs from what is there, and need not be compared. Default: false. */
  readonly isKnownToDiffer?: boolean | undefined;
  /** Called when nothing refuses an image that is changed in place, before the first change to it. */
  readonly beforeChange?: (() => Promise<void>) | undefined;
}

/** The error for a file or blob that exists already. */
export function targetExists(to: string, isDevice: boolean): TidemarkError {
  return new TidemarkError(
    "TARGET_EXISTS",
    isDevice ? `the target ${to} is a block device, whose content would be lost` : `the target ${to} exists`,
    {
      remedy: isDevice
        ? "write over it with `--in-place`"
        : "update it with `--in-place`, replace it with `--force`, or name another target",
      detail: { target: to },
    },
  );
}

/**
 * Takes the lock that keeps two processes off one file. Errors: TARGET_FAILED when another process
 * has it.
 */
export function lockTarget(file: PositionalFile, path: string): void {
  const calls = libc();
  const result = calls?.flock(file.fd, lockExclusiveAtOnce);
  if (calls === undefined || result === undefined || "value" in result) return;
  // File systems without locks (some network ones) return an error; then the file is not locked.
  if (result.errno !== calls.errno.wouldBlock) return;
  throw new TidemarkError("TARGET_FAILED", `another process is writing the target ${path}`, {
    remedy: "wait until that process ends, or name another target",
    detail: { target: path },
  });
}
