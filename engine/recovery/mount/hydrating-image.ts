/**
 * Instant restore into an image: a writable disk that begins as a point of the vault and becomes a
 * local file by itself.
 *
 *     clients ─► OverlaidDisk ─► image (raw, sparse) and record
 *                    │ below ─► PatientPoint ─► vault          Hydration copies what is below into the image
 *
 * Beside the image `PATH` stands the folder `PATH.tidemark`, with the record of what the image
 * holds (see `overlay-file.ts`). When the image holds everything, the vault is not needed any more;
 * the image is then the disk, and can be used by itself while it is not open.
 *
 * The point is pinned before the record exists, and held while it is read, so that it outlives a
 * process that was killed. Both end when the image holds everything.
 */
import type { FileIdentity } from "../../disk/source/file-identity.ts";
import { LiveFile } from "../../disk/source/live-file.ts";
import { type QuiescenceSignature, quiescenceSignature } from "../../disk/source/quiescence.ts";
import { imageFolder } from "../../disk/source/unfinished-image.ts";
import { hasCode, TidemarkError } from "../../errors.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { Store } from "../../store/store.ts";
import type { Bandwidth } from "../../throttle.ts";
import { hydrationTiming } from "../../timing.ts";
import type { Extent, Volume } from "../../volume.ts";
import { cacheBlocksMin } from "./block-cache.ts";
import { openHeldPoint } from "./held-point.ts";
import { Hydration } from "./hydration.ts";
import { absoluteImage, beginImage, checkOrigin, exists, type ImageOptions, recordPath, unpin } from "./image-files.ts";
import { OverlaidDisk } from "./overlaid-disk.ts";
import { OverlayFile } from "./overlay-file.ts";
import { type RecordIdentity, readRecordHeader } from "./overlay-header.ts";
import { PatientPoint } from "./patient-point.ts";

/** Memory for blocks on their way, unless the caller says otherwise. */
const cacheBytesDefault: number = 128 * 1024 * 1024;

export interface HydratingImageOptions extends ImageOptions {
  /** Limits the background copy. */
  readonly bandwidth?: Bandwidth | undefined;
  /** How long a read waits for a store that is away, in ms. */
  readonly readWaitMs?: number | undefined;
  readonly cacheBytes?: number | undefined;
}

/** How far the copy is. */
export interface HydrationStatus {
  /** `complete`: the image holds everything, and needs the vault no more. */
  readonly state: "running" | "complete" | "stopped";
  /** Bytes of the disk that the image holds, zeros included. */
  readonly hydratedBytes: number;
  readonly sizeBytes: number;
  /** Bytes read from the vault by this process. */
  readonly bytesFetched: number;
  /** What keeps something from being copied, or the vault from being read; null: nothing. */
  readonly trouble: TidemarkError | null;
}

interface HydratingParts {
  readonly live: LiveFile;
  readonly overlay: OverlayFile;
  readonly below: PatientPoint;
}

export class HydratingImage extends OverlaidDisk {
  /** The point that it began as. */
  readonly origin: RecordIdentity;
  readonly #live: LiveFile;
  readonly #below: PatientPoint;
  readonly #hydration: Hydration;
  readonly #unpin: () => Promise<void>;
  #isStarted = false;
  #unpinning: Promise<void> | undefined;

  private constructor(
    context: VaultContext,
    options: HydratingImageOptions,
    origin: RecordIdentity,
    { live, overlay, below }: HydratingParts,
  ) {
    super(below, overlay, live.description);
    this.origin = origin;
    this.#live = live;
    this.#below = below;
    this.#unpin = async () => await unpin(new Store(context.sink), origin, options);
    this.#hydration = new Hydration({
      disk: this,
      below,
      blockBytes: context.document.blockBytes,
      bandwidth: options.bandwidth,
      onFailure: ({ message }) =>
        options.onNotice({ code: "IMAGE_NOT_FILLED", message: `the copy waits, and goes on by itself: ${message}` }),
      onComplete: async () => {
        await below.retire();
        await this.#unpin();
      },
    });
  }

  /**
   * Opens an image, or begins one. `start` begins to copy. Errors: INVALID_ARGUMENT (the image is of
   * another point), TARGET_EXISTS (a file is there that is no image of a point), WRITER_ACTIVE,
   * DAMAGED, FORMAT_UNSUPPORTED, NO_SPACE, ACCESS_REFUSED, TARGET_FAILED, UNSUPPORTED; and for an
   * image that is begun DISK_NOT_FOUND, POINT_NOT_FOUND and the errors of the store.
   */
  static async open(context: VaultContext, given: HydratingImageOptions): Promise<HydratingImage> {
    const options = { ...given, disk: given.disk.normalize("NFC"), image: await absoluteImage(given.image) };
    if (!(await exists(recordPath(options.image)))) await beginImage(context, options);
    const live = await openLive(options.image);
    let record: LiveFile | undefined;
    try {
      record = await LiveFile.open(recordPath(options.image));
      const origin = await readRecordHeader(record);
      checkOrigin(context, options, origin);
      const overlay = await OverlayFile.ofImage(record, live, origin.sizeBytes);
      const cacheBytesMin = cacheBlocksMin * context.document.blockBytes;
      const below = new PatientPoint({
        description: `point ${origin.sequence} of disk ${JSON.stringify(origin.disk)}`,
        sizeBytes: origin.sizeBytes,
        waitMs: options.readWaitMs ?? hydrationTiming.readWaitMs,
        open: async () =>
          await openHeldPoint(context, {
            disk: origin.disk,
            point: origin.point,
            cacheBytes: Math.max(options.cacheBytes ?? cacheBytesDefault, cacheBytesMin),
            purpose: "hydrate",
            keeper: image.#hydration,
            onNotice: options.onNotice,
          }),
      });
      const image: HydratingImage = new HydratingImage(context, options, origin, { live, overlay, below });
      return image;
    } catch (error) {
      await record?.close();
      await live.close();
      throw error;
    }
  }

  get status(): HydrationStatus {
    return {
      state: this.#hydration.state,
      hydratedBytes: this.presentBytes,
      sizeBytes: this.sizeBytes,
      bytesFetched: this.#below.bytesFetched,
      trouble: this.#hydration.trouble ?? this.#below.unreachable ?? null,
    };
  }

  /** Begins to open the point, if it is needed. `start` follows. */
  prepare(): void {
    if (this.#hydration.state === "running") this.#below.prepare();
  }

  /** Begins, or goes on, to copy in the background. */
  start(): void {
    this.#isStarted = true;
    if (this.#hydration.state === "complete") this.#unpinning ??= this.#unpin();
    this.#hydration.start();
  }

  /** Resolves when the image holds everything, or when it is closed before. */
  async ended(): Promise<void> {
    await this.#hydration.ended();
  }

  /** The extents that are not read from the vault: all that was ever written is in them. */
  present(): Extent[] {
    const found: Extent[] = [];
    for (let at = 0; at < this.sizeBytes; ) {
      const below = this.nextBelow(at);
      const end = below?.offset ?? this.sizeBytes;
      if (end > at) found.push({ offset: at, length: end - at });
      at = below === undefined ? this.sizeBytes : below.offset + below.length;
    }
    return found;
  }

  identity(): FileIdentity {
    return this.#live.identity();
  }

  /** It has the size of its point for good. */
  refreshSize(): Promise<number> {
    return Promise.resolve(this.sizeBytes);
  }

  /**
   * As `LiveFile.volume`: the image itself once it holds everything, and before that the disk as a
   * whole, which fetches what it lacks.
   */
  volume(access: "whole" | "scattered"): Volume {
    if (this.#hydration.state === "complete") return this.#live.volume(access);
    return {
      description: this.description,
      sizeBytes: () => Promise.resolve(this.sizeBytes),
      read: async (offset, into) => await this.read(offset, into),
    };
  }

  /**
   * The signature of the image at rest. After `start` it ends the copy, so that the image stays as it
   * is until it is opened again.
   */
  async quiescenceSignature(): Promise<QuiescenceSignature | undefined> {
    if (this.#isStarted) await this.#hydration.stop();
    return await quiescenceSignature(this.#live.identity());
  }

  /**
   * Ends reads that wait for the vault, at once and from now on. Before a close: others that wait for
   * all requests to end would wait for a store that is away.
   */
  leaveVault(): void {
    this.#below.close().catch(() => undefined); // `close` awaits it too
  }

  /** Ends the copy, saves what is known, and closes the image. Idempotent. Errors: those of `flush`. */
  override async close(): Promise<void> {
    // Reads that wait for a store that is away are ended first: changes under way wait for them.
    const stopped = this.#hydration.stop();
    try {
      await this.#below.close();
      await stopped;
      await this.#unpinning;
    } finally {
      await super.close();
    }
  }
}

/** Errors: DAMAGED when only the record is left. */
async function openLive(image: string): Promise<LiveFile> {
  try {
    return await LiveFile.open(image);
  } catch (error) {
    if (!hasCode(error, "SOURCE_NOT_FOUND")) throw error;
    throw new TidemarkError("DAMAGED", `the image ${image} is gone, and only what belonged to it is left`, {
      remedy: `bring the image back, or delete the folder ${imageFolder(image)} and begin anew`,
      detail: { path: image },
      cause: error,
    });
  }
}
