/** Options of a protected disk, and what it needs of a tracking file. */
import type { BlockDevice } from "../../device.ts";
import type { DirtyBitmap } from "./dirty-bitmap.ts";
import type { TrackingFile } from "./tracking-file.ts";

/** What is asked of a tracking file here. */
export type Tracking = Pick<
  TrackingFile,
  "lost" | "isDurable" | "makeDurable" | "expectPoint" | "settled" | "grow" | "closeClean" | "close"
>;

export interface ProtectedDiskOptions {
  /** Closed with the protected disk. Nothing else may write to it. */
  readonly backing: BlockDevice;
  /** Undefined: marks do not survive the process. Closed with the protected disk. */
  readonly tracking: Tracking | undefined;
  /**
   * What has changed since `base`, and since each of `earlierBases`; the protected disk's from now
   * on.
   */
  readonly dirty: DirtyBitmap;
  /** The point that the marks are relative to; undefined: none yet. */
  readonly base: string | undefined;
  /**
   * Other points that may be the newest in the store as well: after a crash it is unknown which was
   * committed.
   */
  readonly earlierBases?: readonly string[] | undefined;
  /**
   * Points before `base` to which the store may still go back, oldest first, and all that changed
   * between the first of them and `base`.
   */
  readonly unsettled?: { readonly bases: readonly string[]; readonly changes: DirtyBitmap } | undefined;
  /**
   * Folder for old content that does not fit in memory; undefined: none, and cuts are abandoned
   * sooner.
   */
  readonly spillFolder: string | undefined;
  /** Longest time that a cut holds new writes. Default: 300. */
  readonly barrierMsMax?: number | undefined;
  /** Old content kept in memory, and in the spill file. Defaults: all that the process has, and 4 GiB. */
  readonly preservedBytesMax?: number | undefined;
  readonly spillBytesMax?: number | undefined;
  /**
   * How long the store may still forget a point that it has acknowledged, in ms:
   * `Sink.capabilities.settlingMs`.
   */
  readonly settleMs: number;
  /** Wall clock in ms since 1970. */
  readonly now?: (() => number) | undefined;
  /** A clock that cannot be set, in ms. */
  readonly steadyNow?: (() => number) | undefined;
}
