/**
 * Cut: the instant of a recovery point, and what has to be captured for it. The disk goes on being
 * written while the cut is open; an exact cut keeps the old content of granules that are
 * overwritten before they are captured.
 */
import type { Extent, Volume } from "../../volume.ts";

export interface Cut {
  /** Wall clock at the cut, in ms since 1970. */
  readonly timeMs: number;
  /** Size of the disk at the cut. */
  readonly sizeBytes: number;
  /**
   * True: what is captured is exactly the writes acknowledged before the cut. False: the disk may
   * move while it is captured.
   */
  readonly exact: boolean;
  /** How long new writes were held, in ms. */
  readonly barrierMs: number;
  readonly dirtyBytes: number;
  /**
   * Aborts, with CUT_ABANDONED as its reason, when old content that is needed cannot be kept.
   */
  readonly signal: AbortSignal;
  /**
   * What may have changed since the base point: sorted, disjoint, bounded by granules and by
   * `sizeBytes`.
   */
  extents(): Iterable<Extent>;
  /**
   * Fills `into` with what the disk held at the cut, from `offset`, a multiple of a granule. The
   * range lies within `extents()`. Once it has been read, its old content is not kept any more: an
   * exact cut of which a range is read again is abandoned. Errors: SOURCE_UNREADABLE, CUT_ABANDONED.
   */
  read(offset: number, into: Uint8Array): Promise<void>;
  /**
   * The second half of `read`, for callers that have read the range from the disk itself since the
   * cut: puts in what has been overwritten meanwhile. True when that changed `into`.
   */
  amend(offset: number, into: Uint8Array): boolean | Promise<boolean>;
  /** The point that was made of it is committed as `point`, which is the base from now on. */
  committed(point: string): void;
  /**
   * No point came of it: what was to be captured counts as changed again. Idempotent, and nothing
   * after `committed`.
   */
  abandon(): void;
}

/** What a cut names, as a volume; `description` and `descriptor` are those of the disk below. */
export function cutVolume(cut: Cut, { description, descriptor }: Volume): Volume {
  return {
    description,
    descriptor,
    sizeBytes: () => Promise.resolve(cut.sizeBytes),
    read: async (offset, into) => {
      await cut.read(offset, into);
    },
    amend: (offset, into) => cut.amend(offset, into),
    allocated: async function* allocated() {
      yield* await Promise.resolve(cut.extents());
    },
  };
}

/**
 * A disk whose gate is closed. It opens by itself after `barrierMsMax`; then this can no longer
 * make a cut.
 */
export interface PreparedCut {
  /**
   * False once the gate is open again. Of several disks all must be held when the first is cut, in
   * one turn of the event loop.
   */
  readonly held: boolean;
  /**
   * Makes the cut and opens the gate. An exact cut keeps what is overwritten before it is captured.
   * Errors: CUT_TIMED_OUT.
   */
  cut(options: { readonly exact: boolean }): Cut;
  /** Opens the gate without a cut. Idempotent, and nothing after `cut`. */
  release(): void;
}
