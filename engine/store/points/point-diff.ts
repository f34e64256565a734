/**
 * Difference of two recovery points of a disk, as byte extents, for replicas and incremental
 * exports.
 *
 * Maps are compared, and no data is read: see `map-diff.ts` for what is exact about it and what it
 * costs. Both points are held while a loop goes over the extents, so that neither is pruned.
 */
import { granuleBytes } from "../../limits.ts";
import type { Notice } from "../../notice.ts";
import type { Extent } from "../../volume.ts";
import { fromHex } from "../format/checksum.ts";
import type { PointRecord } from "../format/documents.ts";
import { mapDifferences } from "../map/map-diff.ts";
import type { NoticedDisk } from "../place.ts";
import type { Store } from "../store.ts";
import { readDisk } from "./head.ts";
import { readManifest } from "./manifest.ts";
import { type PointSummary, pointSummary, selectPoint } from "./points.ts";
import { holdAllToRead } from "./reader-holds.ts";

export interface DiffOptions {
  readonly disk: string;
  /**
   * The point that is known: sequence number, id, `latest`, or an ISO time (the newest point not
   * younger).
   */
  readonly from: string;
  /** The point that is wanted, named likewise. It may be older than `from`. */
  readonly to: string;
  /** Told HOLD_REFUSED when the store takes no holds. */
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * The extents in which `to` differs from `from`. The bytes of `from`, overwritten with these ranges
 * of `to`, are `to`.
 *
 * Extents are in bytes, ascending, disjoint, and aligned to granules of 4 KiB but for the end of the
 * disk. A shorter `from` counts as zeros behind its end. Chunks are compared by digest: a granule
 * whose bytes are equal is in an extent only when it was stored anew with a neighbour.
 *
 * @example
 * ```ts
 * const diff = await vault.diff({ disk: "web", from: "41", to: "42" });
 * for await (const { offset, length } of diff) console.log(offset, length);
 * ```
 */
export class PointDiff implements AsyncIterable<Extent> {
  readonly from: PointSummary;
  readonly to: PointSummary;
  readonly #sides: Sides;

  private constructor(sides: Sides) {
    this.#sides = sides;
    this.from = pointSummary(sides.disk, sides.from);
    this.to = pointSummary(sides.disk, sides.to);
  }

  /**
   * Finds both points. Their maps are read when the extents are.
   *
   * @throws TidemarkError DISK_NOT_FOUND, POINT_NOT_FOUND, INVALID_ARGUMENT, DAMAGED and the errors
   * of the store.
   *
   * @internal
   */
  static async open(store: Store, vault: string, options: DiffOptions): Promise<PointDiff> {
    const { onNotice = () => undefined, signal } = options;
    const head = await readDisk(store, vault, options.disk.normalize("NFC"), signal);
    const from = await selectPoint(store, head, options.from, signal);
    const to = await selectPoint(store, head, options.to, signal);
    return new PointDiff({ store, vault, disk: head.disk, from, to, onNotice, signal });
  }

  /**
   * Reads the maps and yields the extents. Both points are held meanwhile.
   *
   * @throws TidemarkError POINT_NOT_FOUND when a point has been pruned, DAMAGED,
   * FORMAT_UNSUPPORTED, INTERRUPTED and the errors of the store.
   */
  async *[Symbol.asyncIterator](): AsyncGenerator<Extent, void, undefined> {
    const { store, vault, disk, from, to, onNotice, signal } = this.#sides;
    const holding = { store, vault, disk, purpose: "diff", onNotice, signal };
    await using hold = await holdAllToRead(holding, [from, to]);
    const ended = signal === undefined ? hold.signal : AbortSignal.any([signal, hold.signal]);
    const differences = mapDifferences({
      store,
      vaultId: fromHex(vault),
      disk,
      from: await readManifest(store, vault, disk, from, ended),
      to: await readManifest(store, vault, disk, to, ended),
      signal: ended,
    });
    for await (const range of differences) {
      const offset = range.from * granuleBytes;
      yield { offset, length: Math.min(range.end * granuleBytes, to.volumeBytes) - offset };
    }
  }
}

interface Sides extends NoticedDisk {
  readonly from: PointRecord;
  readonly to: PointRecord;
}
