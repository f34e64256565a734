/**
 * Mount: a recovery point as a disk that can be read at once, and written when an overlay takes
 * the changes. While it is mounted the point is held against prune and garbage collection.
 *
 *     held point (`held-point.ts`) ─► [OverlaidDisk] ─► a front end such as NBD
 */
import { tmpdir } from "node:os";
import type { BlockDevice } from "../../device.ts";
import { TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { type PointSummary, pointSummary } from "../../store/points/points.ts";
import type { PointHold } from "../../store/points/reader-holds.ts";
import { cacheBlocksMin } from "./block-cache.ts";
import { openHeldPoint } from "./held-point.ts";
import type { MountedPoint } from "./mounted-point.ts";
import { OverlaidDisk } from "./overlaid-disk.ts";
import { OverlayFile } from "./overlay-file.ts";

/** Memory for blocks unless the caller says otherwise. */
const cacheBytesDefault: number = 256 * 1024 * 1024;

interface MountParts {
  readonly summary: PointSummary;
  readonly point: MountedPoint;
  readonly overlaid: OverlaidDisk | undefined;
  readonly overlay: string | null;
  readonly hold: PointHold;
}

/**
 * A mounted point. Serve `device` with an `NbdServer`, or read it directly.
 *
 * @example
 * ```ts
 * await using mount = await vault.mount({ disk: "web", point: "latest", writable: true });
 * const sector = new Uint8Array(512);
 * await mount.device.read(0, sector);
 * ```
 */
export class Mount implements AsyncDisposable {
  /** The point that is mounted. */
  readonly point: PointSummary;
  /** The disk. `Mount.close` closes it, not the front end that serves it. */
  readonly device: BlockDevice;
  readonly #parts: MountParts;
  readonly #startedAt: number = performance.now();
  #closing: Promise<void> | undefined;

  private constructor(parts: MountParts) {
    this.#parts = parts;
    this.point = parts.summary;
    this.device = parts.overlaid ?? parts.point;
  }

  /**
   * Mounts a point.
   *
   * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND` (also while it is being pruned),
   * `INVALID_ARGUMENT`, `DAMAGED`, the errors of `OverlayFile.open`, and the errors of the store.
   *
   * @internal
   */
  static async open(context: VaultContext, options: MountOptions, purpose = "mount"): Promise<Mount> {
    const { document } = context;
    const onNotice = options.onNotice ?? (() => undefined);
    const cacheBytes = checkedCache(options, document.blockBytes);
    const disk = options.disk.normalize("NFC");
    const held = await openHeldPoint(context, {
      disk,
      point: options.point,
      cacheBytes,
      purpose,
      onNotice,
      signal: options.signal,
    });
    const { record, point, hold } = held;
    try {
      const overlay = await openOverlay(options, {
        vault: document.vault,
        disk,
        point: record.id,
        sizeBytes: record.volumeBytes,
      });
      const overlaid = overlay === undefined ? undefined : new OverlaidDisk(point, overlay);
      return new Mount({
        summary: pointSummary(disk, record),
        point,
        overlaid,
        overlay: options.overlay ?? null,
        hold,
      });
    } catch (error) {
      await held.close();
      throw error;
    }
  }

  /** True from the call of `close` on. */
  get isClosed(): boolean {
    return this.#closing !== undefined;
  }

  /** What has been read and written so far. */
  summary(): MountSummary {
    const { summary, point, overlaid, overlay } = this.#parts;
    const written = overlaid?.counts;
    return {
      disk: summary.disk,
      point: summary.point,
      sequence: summary.sequence,
      volumeBytes: summary.volumeBytes,
      writable: overlaid !== undefined,
      overlay,
      ...point.counts,
      bytesRead: written?.bytesRead ?? point.counts.bytesRead,
      bytesWritten: written?.bytesWritten ?? 0,
      cachedBytes: point.cachedBytes,
      elapsedMs: Math.round(performance.now() - this.#startedAt),
    };
  }

  /**
   * Saves the overlay if it is kept, and releases the hold. Idempotent. Errors: those of
   * `BlockDevice.flush`.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<void> {
    try {
      await this.device.close();
    } finally {
      await this.#parts.hold.release();
    }
  }
}

function checkedCache({ cacheBytes = cacheBytesDefault, overlay, writable }: MountOptions, blockBytes: number): number {
  const faults: string[] = [];
  const cacheBytesMin = cacheBlocksMin * blockBytes;
  if (!Number.isSafeInteger(cacheBytes) || cacheBytes < cacheBytesMin) {
    faults.push(`a cache of ${cacheBytes} bytes is too small: this vault needs ${cacheBytesMin}`);
  }
  if (overlay !== undefined && writable !== true) faults.push("an overlay belongs to a mount that is writable");
  if (faults.length > 0)
    throw new TidemarkError("INVALID_ARGUMENT", faults.join("; "), { remedy: "correct these options" });
  return cacheBytes;
}

async function openOverlay(
  { writable, overlay, temporaryFolder }: MountOptions,
  identity: Parameters<typeof OverlayFile.open>[1],
): Promise<OverlayFile | undefined> {
  if (writable !== true) return undefined;
  if (overlay !== undefined) return await OverlayFile.open(overlay, identity);
  return await OverlayFile.temporary(temporaryFolder ?? tmpdir(), identity.sizeBytes);
}

/** How `Vault.mount` works. */
export interface MountOptions {
  readonly disk: string;
  /** Sequence number, id, `latest`, or an ISO time (the newest point not younger). */
  readonly point: string;
  /** Accept writes, into an overlay. The vault is never changed. Default: false. */
  readonly writable?: boolean | undefined;
  /**
   * File that keeps what is written; it is created, or continued. Absent: what is written is gone
   * with the mount.
   */
  readonly overlay?: string | undefined;
  /** Memory for blocks, at least 16 of the vault's. Default: 256 MiB. */
  readonly cacheBytes?: number | undefined;
  /** Folder of an overlay without a name. Default: the system's folder for temporary files. */
  readonly temporaryFolder?: string | undefined;
  /**
   * Called while it is open, too: POINT_DAMAGED once for each range that cannot be read back,
   * HOLD_REFUSED, HOLD_LOST.
   */
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  /** Ends the opening, not what has been opened. */
  readonly signal?: AbortSignal | undefined;
}

/** What has been read and written of a mounted point so far. */
export interface MountSummary {
  readonly disk: string;
  readonly point: string;
  readonly sequence: number;
  readonly volumeBytes: number;
  readonly writable: boolean;
  /** The overlay that is kept; null when there is none, or none that is kept. */
  readonly overlay: string | null;
  /** Bytes delivered to readers. */
  readonly bytesRead: number;
  /** Bytes written by clients, zeros and trims included. */
  readonly bytesWritten: number;
  /** Bytes read from the store's segments, those read ahead included. */
  readonly bytesFetched: number;
  /** Blocks of the point that readers found in memory, and blocks that they waited for. */
  readonly cacheHits: number;
  readonly cacheMisses: number;
  /** Memory that blocks take now. */
  readonly cachedBytes: number;
  readonly elapsedMs: number;
}
