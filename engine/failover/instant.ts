/**
 * Instant target of a failover: a disk that runs at once from a point of the vault, however large it
 * is, and becomes a local image while it runs.
 *
 *     clients ─► ProtectedDisk ─► HydratingImage ─► image, and below it the vault
 *                    │ marks from the first write on            └ everything is copied in the background
 *                    └ `protect`: points under the disk's own name
 *
 * The marks are relative to the point that the disk began as. When points are to be made on top of a
 * newer one, the differences of the two points are marked as well: then the marks are relative to
 * both, and the newer one is expected to be the vault's newest. So nothing is ever scanned.
 *
 * The tracking file is lost or was not believed: every granule that is not read from the vault may
 * have been written, and no other can have been.
 *
 * What copying changes in the image is no write of the disk. So the clean record of the tracking
 * file, which a changed image makes void, is taken back before copying begins, and made when it has
 * ended.
 */
import { join } from "node:path";
import type { BlockDevice } from "../device.ts";
import { watchedStore } from "../disk/source/head-watch.ts";
import { imageFolder } from "../disk/source/unfinished-image.ts";
import { DirtyBitmap, regionBytes } from "../disk/tracking/dirty-bitmap.ts";
import { TrackingFile } from "../disk/tracking/tracking-file.ts";
import type { Recovered } from "../disk/tracking/tracking-recovery.ts";
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import type { Notice } from "../notice.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import { HydratingImage } from "../recovery/mount/hydrating-image.ts";
import { type ProtectedImage, protectedImage } from "../replication/protection/protected-image.ts";
import { Protection } from "../replication/protection/protection.ts";
import type { ProtectOptions } from "../replication/protection/protection-status.ts";
import { checkSize } from "../replication/replicate.ts";
import { readHead } from "../store/points/head.ts";
import { PointDiff } from "../store/points/point-diff.ts";
import type { Bandwidth } from "../throttle.ts";
import type { Extent } from "../volume.ts";

/** How `Vault.instant` works. */
export interface InstantOptions {
  /** The disk, in the vault. */
  readonly disk: string;
  /**
   * The point that a new image begins as: sequence number, id, `latest`, or an ISO time (the newest
   * point not younger). An image that exists goes on as its own. Default: `latest`.
   */
  readonly point?: string | undefined;
  /**
   * Path of the image file. It is created, or continued; its state is in the folder
   * `PATH.tidemark`.
   */
  readonly image: string;
  /** Limits the copying in the background. Default: no limit. */
  readonly bandwidth?: Bandwidth | undefined;
  /** How long a read waits for a store that is away, in ms. Default: 30 s. */
  readonly readWaitMs?: number | undefined;
  /** Memory for what is fetched, in bytes, at least 16 of the vault's blocks. Default: 128 MiB. */
  readonly cacheBytes?: number | undefined;
  /** Told while it is open, too: POINT_DAMAGED, HOLD_REFUSED, HOLD_LOST, PIN_LEFT. */
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  /** Ends the opening, not what has been opened. */
  readonly signal?: AbortSignal | undefined;
}

/** How `Instant.protect` works: as `ProtectOptions`, for the disk and image that are open. */
export type InstantProtectOptions = Omit<
  ProtectOptions,
  "disk" | "image" | "stateFolder" | "preservedBytesMax" | "spillBytesMax"
> & {
  /** Ends the look at the vault before the first point. */
  readonly signal?: AbortSignal | undefined;
};

/** What an instant target is at now. */
export interface InstantStatus {
  readonly disk: string;
  /** Id and sequence number of the point that it began as. */
  readonly point: string;
  readonly sequence: number;
  /** Path of the image. */
  readonly image: string;
  /**
   * `hydrating`: the vault is needed. `hydrated`: the image holds everything. `stopped`: it is
   * being closed.
   */
  readonly state: "hydrating" | "hydrated" | "stopped";
  readonly sizeBytes: number;
  /** Bytes of the disk that the image holds, zeros included. */
  readonly hydratedBytes: number;
  /** Bytes read from the vault since it was opened. */
  readonly bytesFetched: number;
  /** Bytes delivered to readers, and written by clients, zeros and trims included. */
  readonly bytesRead: number;
  readonly bytesWritten: number;
  /** Bytes that have changed since the newest point. */
  readonly dirtyBytes: number;
  /** What keeps data from being copied or read; null: nothing. */
  readonly trouble: { readonly code: string; readonly message: string; readonly remedy: string | null } | null;
  readonly elapsedMs: number;
}

/** Marks are made in portions of so many extents. */
const markedAtOnce = 4096;

/**
 * A disk that began as a point, on an image that is being filled. Made by `vault.instant`; end it
 * with `close` or `await using`. What was flushed is there when it is opened again, also after a
 * crash.
 *
 * @example
 * ```ts
 * await using instant = await vault.instant({ disk: "web", point: "latest", image: "/srv/web.img" });
 * await using server = await NbdServer.listen({ listen: { kind: "unix", path: "/run/web.sock" } });
 * server.addExport({ name: "web", device: instant.device });
 * await instant.hydrated(); // from now on /srv/web.img needs the vault no more
 * ```
 */
export class Instant implements AsyncDisposable {
  /** The disk's name in the vault. */
  readonly disk: string;
  readonly #context: VaultContext;
  readonly #image: HydratingImage;
  readonly #protected: ProtectedImage;
  readonly #onProtect: (protection: Protection) => unknown;
  readonly #startedAt: number = performance.now();
  #protection: Promise<Protection> | undefined;
  #closing: Promise<void> | undefined;

  private constructor(
    context: VaultContext,
    image: HydratingImage,
    opened: ProtectedImage,
    onProtect: (protection: Protection) => unknown,
  ) {
    this.#context = context;
    this.#image = image;
    this.#protected = opened;
    this.#onProtect = onProtect;
    this.disk = image.origin.disk;
    image.start();
  }

  /**
   * Opens an instant target. Used through `Vault.instant`.
   *
   * @internal
   */
  static async open(
    context: VaultContext,
    options: InstantOptions,
    onProtect: (protection: Protection) => unknown,
  ): Promise<Instant> {
    const { point = "latest", onNotice = () => undefined, signal } = options;
    checkWait(options.readWaitMs);
    const image = await HydratingImage.open(context, { ...options, point, onNotice, signal });
    try {
      throwIfAborted(signal);
      checkSize(image.description, image.origin.disk, image.sizeBytes, undefined);
      image.prepare();
      return new Instant(context, image, await tracked(context, image), onProtect);
    } catch (error) {
      await image.close();
      throw error;
    }
  }

  /** The disk. All reads and writes must go through it. */
  get device(): BlockDevice {
    return this.#protected.disk;
  }

  /** Id of the point that it began as. */
  get point(): string {
    return this.#image.origin.point;
  }

  /** True from the call of `close` on. */
  get isClosed(): boolean {
    return this.#closing !== undefined;
  }

  /** What it is at now. Never throws, and makes no request to the store. */
  status(): InstantStatus {
    const { state, trouble, hydratedBytes, bytesFetched, sizeBytes } = this.#image.status;
    const { disk, point, sequence } = this.#image.origin;
    return {
      disk,
      point,
      sequence,
      image: this.#image.description,
      state: state === "running" ? "hydrating" : state === "complete" ? "hydrated" : "stopped",
      sizeBytes,
      hydratedBytes,
      bytesFetched,
      ...this.#image.counts,
      dirtyBytes: this.#protected.disk.dirtyBytes,
      trouble:
        trouble === null ? null : { code: trouble.code, message: trouble.message, remedy: trouble.remedy ?? null },
      elapsedMs: Math.round(performance.now() - this.#startedAt),
    };
  }

  /** Resolves when the image holds everything, durably, or when it is closed before that. */
  async hydrated(): Promise<void> {
    await this.#image.ended();
  }

  /**
   * Begins to take points of the disk, on top of the vault's newest one. Once; the protection ends
   * with `close`.
   *
   * @throws TidemarkError INVALID_ARGUMENT the second time; and the errors of the store, which do not
   * end what has been opened: call it again.
   */
  async protect(options: InstantProtectOptions = {}): Promise<Protection> {
    if (this.#protection !== undefined || this.#closing !== undefined) {
      throw new TidemarkError("INVALID_ARGUMENT", `${this.#image.description} is protected already, or closed`, {
        remedy: "use the protection that there is",
      });
    }
    this.#protection = this.#protect(options);
    try {
      return await this.#protection;
    } catch (error) {
      this.#protection = undefined;
      throw error;
    }
  }

  /**
   * Ends the protection and closes the image. The front end must have stopped serving the device.
   * Idempotent.
   *
   * @throws TidemarkError when that cannot be saved.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  async #close(): Promise<void> {
    this.#image.leaveVault();
    const [protection] = await Promise.allSettled([this.#protection]);
    if (protection.status === "fulfilled" && protection.value !== undefined)
      await protection.value.stop({ drain: false });
    else await this.#protected.disk.closeClean();
  }

  async #protect({ signal, ...options }: InstantProtectOptions): Promise<Protection> {
    await this.#takeNewest(signal);
    const image = this.#image.description;
    const protection = await Protection.start(
      this.#context,
      { ...options, disk: this.disk, image, stateFolder: imageFolder(image) },
      this.#protected,
    );
    this.#onProtect(protection);
    return protection;
  }

  /** Makes the marks relative to the vault's newest point, too, if no point has been made of this disk. */
  async #takeNewest(signal: AbortSignal | undefined): Promise<void> {
    const { vault, disk, point } = this.#image.origin;
    const { disk: device } = this.#protected;
    if (device.base !== point) return;
    const store = watchedStore(this.#context);
    const { head } = await readHead(store, vault, disk, signal);
    const newest = head.points.at(-1);
    if (newest === undefined || newest.id === point) return;
    try {
      const diff = await PointDiff.open(store, vault, { disk, from: point, to: newest.id, signal });
      const marked: Extent[] = [];
      for await (const { offset, length } of diff) {
        const end = Math.min(offset + length, device.sizeBytes);
        if (end > offset) marked.push({ offset, length: end - offset });
        if (marked.length === markedAtOnce) await device.markDirty(marked.splice(0));
      }
      await device.markDirty(marked);
    } catch (error) {
      // Where the point is gone, the first cycle compares the disk with the vault.
      if (!hasCode(error, "POINT_NOT_FOUND")) throw error;
      return;
    }
    await device.expectPoint(newest.id);
  }
}

/** Opens the tracking file of an image, and the protected disk on both. */
async function tracked(context: VaultContext, image: HydratingImage): Promise<ProtectedImage> {
  const { vault, disk, point } = image.origin;
  const folder = imageFolder(image.description);
  const identity = { vault, disk, sizeBytes: image.sizeBytes, image: image.identity() };
  const { file: tracking, recovered } = await TrackingFile.open(join(folder, "tracking"), identity, {
    quiescenceSignature: async () => await image.quiescenceSignature(),
  });
  try {
    if (recovered.kind !== "unknown") {
      if (recovered.kind === "clean" && image.status.state !== "complete")
        await tracking.rebase([...recovered.bases, ...recovered.expected], []);
      return protectedImage(context, { source: image, tracking, recovered, folder }, {});
    }
    const dirty = new DirtyBitmap(image.sizeBytes);
    for (const { offset, length } of image.present()) dirty.mark(offset, length);
    await tracking.rebase([point], regionsOf(dirty));
    const known: Recovered =
      dirty.count === 0
        ? { kind: "clean", bases: [point], expected: [], dirty, regions: new DirtyBitmap(image.sizeBytes) }
        : { kind: "unclean", bases: [point], dirty };
    return protectedImage(context, { source: image, tracking, recovered: known, folder }, {});
  } catch (error) {
    await tracking.close();
    throw error;
  }
}

function* regionsOf(dirty: DirtyBitmap): Generator<number> {
  let next = 0;
  for (const { offset, length } of dirty.extents()) {
    const last = Math.floor((offset + length - 1) / regionBytes);
    for (next = Math.max(next, Math.floor(offset / regionBytes)); next <= last; next += 1) yield next;
  }
}

function checkWait(readWaitMs: number | undefined): void {
  if (readWaitMs === undefined || (Number.isSafeInteger(readWaitMs) && readWaitMs >= 1)) return;
  throw new TidemarkError("INVALID_ARGUMENT", `${readWaitMs} ms is no time to wait for the store`, {
    remedy: "give readWaitMs as a whole number of ms from 1 on",
  });
}
