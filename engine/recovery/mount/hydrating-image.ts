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
 *
 * Orderings: pin → image → record. A crash in between leaves an image of holes, which the next call
 * takes over.
 */
import { createHash } from "node:crypto";
import { realpath, rm, stat } from "node:fs/promises";
import { hostname } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import type { BlockDevice, DeviceExtent } from "../../device.ts";
import type { FileIdentity } from "../../disk/source/file-identity.ts";
import { watchedStore } from "../../disk/source/head-watch.ts";
import { LiveFile } from "../../disk/source/live-file.ts";
import { makeFolder } from "../../disk/source/plain-file.ts";
import { fileError } from "../../disk/source/positional-file.ts";
import { type QuiescenceSignature, quiescenceSignature } from "../../disk/source/quiescence.ts";
import { imageFolder, pinnedPath } from "../../disk/source/unfinished-image.ts";
import { hasCode, systemCode, TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { readHead } from "../../store/points/head.ts";
import { putPin, removePins } from "../../store/points/pins.ts";
import { selectPoint } from "../../store/points/points.ts";
import { Store } from "../../store/store.ts";
import type { Bandwidth } from "../../throttle.ts";
import { hydrationTiming } from "../../timing.ts";
import type { Extent, Volume } from "../../volume.ts";
import { cacheBlocksMin } from "./block-cache.ts";
import { openHeldPoint } from "./held-point.ts";
import { Hydration } from "./hydration.ts";
import { OverlaidDisk } from "./overlaid-disk.ts";
import { createFile, OverlayFile, recordBytes } from "./overlay-file.ts";
import { encodeHeader, type RecordIdentity, readRecordHeader } from "./overlay-header.ts";
import { PatientPoint } from "./patient-point.ts";

/** Memory for blocks on their way, unless the caller says otherwise. */
const cacheBytesDefault: number = 128 * 1024 * 1024;

export interface HydratingImageOptions {
  /** The disk whose point it begins as. */
  readonly disk: string;
  /** As `MountOptions.point`, for an image that does not exist. */
  readonly point: string;
  /** Path of the image file. */
  readonly image: string;
  /** Limits the background copy. */
  readonly bandwidth?: Bandwidth | undefined;
  /** How long a read waits for a store that is away, in ms. */
  readonly readWaitMs?: number | undefined;
  readonly cacheBytes?: number | undefined;
  readonly onNotice: (notice: Notice) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface DiscardOptions extends Pick<HydratingImageOptions, "disk" | "image" | "signal"> {
  readonly onNotice?: ((notice: Notice) => void) | undefined;
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

function recordPath(image: string): string {
  return join(imageFolder(image), "record");
}

export class HydratingImage implements BlockDevice {
  readonly description: string;
  readonly readOnly = false;
  readonly sizeBytes: number;
  /** The point that it began as. */
  readonly origin: RecordIdentity;
  readonly #live: LiveFile;
  readonly #disk: OverlaidDisk;
  readonly #below: PatientPoint;
  readonly #hydration: Hydration;
  readonly #unpin: () => Promise<void>;
  #isStarted = false;
  #unpinning: Promise<void> | undefined;

  private constructor(
    context: VaultContext,
    options: HydratingImageOptions,
    origin: RecordIdentity,
    { live, overlay }: { readonly live: LiveFile; readonly overlay: OverlayFile },
  ) {
    const { blockBytes } = context.document;
    this.description = live.description;
    this.sizeBytes = origin.sizeBytes;
    this.origin = origin;
    this.#live = live;
    this.#below = new PatientPoint({
      description: `point ${origin.sequence} of disk ${JSON.stringify(origin.disk)}`,
      sizeBytes: origin.sizeBytes,
      waitMs: options.readWaitMs ?? hydrationTiming.readWaitMs,
      open: async () =>
        await openHeldPoint(context, {
          disk: origin.disk,
          point: origin.point,
          cacheBytes: Math.max(options.cacheBytes ?? cacheBytesDefault, cacheBlocksMin * blockBytes),
          purpose: "hydrate",
          keeper: this.#hydration,
          onNotice: options.onNotice,
        }),
    });
    this.#unpin = async () => await unpin(new Store(context.sink), origin, options);
    this.#disk = new OverlaidDisk(this.#below, overlay);
    this.#hydration = new Hydration({
      disk: this.#disk,
      below: this.#below,
      blockBytes,
      bandwidth: options.bandwidth,
      onComplete: async () => {
        await this.#below.retire();
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
    const options = { ...given, disk: given.disk.normalize("NFC"), image: await absolute(given.image) };
    if (!(await exists(recordPath(options.image)))) await begin(context, options);
    const live = await openLive(options.image);
    let record: LiveFile | undefined;
    try {
      record = await LiveFile.open(recordPath(options.image));
      const origin = await readRecordHeader(record);
      checkOrigin(context, options, origin);
      const overlay = await OverlayFile.ofImage(record, live, origin.sizeBytes);
      return new HydratingImage(context, options, origin, { live, overlay });
    } catch (error) {
      await record?.close();
      await live.close();
      throw error;
    }
  }

  /**
   * Deletes an image that is not open, with everything that belongs to it, and ends the pin of its
   * point. What is gone already is no error. Errors: WRITER_ACTIVE (it is open), and those of the
   * store while the point is pinned for it.
   */
  static async discard(context: VaultContext, given: DiscardOptions): Promise<void> {
    const { onNotice = () => undefined, signal } = given;
    const image = await absolute(given.image);
    if (!(await exists(recordPath(image)))) return;
    const record = await LiveFile.open(recordPath(image));
    try {
      const origin = await readRecordHeader(record);
      checkOrigin(context, { ...given, disk: given.disk.normalize("NFC"), image, point: "latest" }, origin);
      await removePin(new Store(context.sink), origin, image, onNotice, signal);
      await rm(image, { force: true });
      await rm(imageFolder(image), { recursive: true, force: true });
    } finally {
      await record.close();
    }
  }

  get status(): HydrationStatus {
    return {
      state: this.#hydration.state,
      hydratedBytes: this.#disk.presentBytes,
      sizeBytes: this.sizeBytes,
      bytesFetched: this.#below.bytesFetched,
      trouble: this.#hydration.trouble ?? this.#below.unreachable ?? null,
    };
  }

  /** Bytes delivered to readers, and bytes written by clients, zeros and trims included. */
  get counts(): OverlaidDisk["counts"] {
    return this.#disk.counts;
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
      const below = this.#disk.nextBelow(at);
      const end = below?.offset ?? this.sizeBytes;
      if (end > at) found.push({ offset: at, length: end - at });
      at = below === undefined ? this.sizeBytes : below.offset + below.length;
    }
    return found;
  }

  tryRead(offset: number, into: Uint8Array): boolean {
    return this.#disk.tryRead(offset, into);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#disk.read(offset, into);
  }

  tryWrite(offset: number, bytes: Uint8Array): boolean {
    return this.#disk.tryWrite(offset, bytes);
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#disk.write(offset, bytes);
  }

  async zero(offset: number, length: number): Promise<void> {
    await this.#disk.zero(offset, length);
  }

  async trim(offset: number, length: number): Promise<void> {
    await this.#disk.trim(offset, length);
  }

  async flush(): Promise<void> {
    await this.#disk.flush();
  }

  extents(offset: number, length: number, countMax: number): DeviceExtent[] {
    return this.#disk.extents(offset, length, countMax);
  }

  async lookUp(offset: number, length: number, countMax: number): Promise<DeviceExtent[]> {
    return await this.#disk.lookUp(offset, length, countMax);
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
      read: async (offset, into) => await this.#disk.read(offset, into),
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

  /** Ends the copy, saves what is known, and closes the image. Idempotent. Errors: those of `flush`. */
  async close(): Promise<void> {
    // Reads that wait for a store that is away are ended first: changes under way wait for them.
    const stopped = this.#hydration.stop();
    await this.#below.close();
    await stopped;
    await this.#unpinning;
    await this.#disk.close();
  }
}

/** Makes an image of holes and its record. */
async function begin(context: VaultContext, options: HydratingImageOptions): Promise<void> {
  const { disk, image, onNotice, signal } = options;
  const { vault } = context.document;
  const store = watchedStore(context, onNotice);
  const { head } = await readHead(store, vault, disk, signal);
  const record = await selectPoint(store, head, options.point, signal);
  const { id, sequence, volumeBytes: sizeBytes } = record;
  await checkFree(image, sizeBytes);
  await makeRecordFolder(imageFolder(image));
  await createFile(pinnedPath(image), Buffer.alloc(0), 0);
  try {
    await putPin({
      store,
      vault,
      disk,
      point: record,
      name: pinName(image),
      untilMs: null,
      nowMs: Date.now(),
      onNotice,
      signal,
    });
  } catch (error) {
    if (!hasCode(error, "ACCESS_REFUSED", "NO_SPACE")) throw error;
    const message = `point ${sequence} is not pinned, so a prune can drop it before all of it is in ${image}: ${error.message}`;
    onNotice({ code: "HOLD_REFUSED", message });
  }
  await createFile(image, Buffer.alloc(0), sizeBytes);
  const header = encodeHeader("record", { vault, disk, point: id, sizeBytes, sequence } as RecordIdentity);
  await createFile(recordPath(image), header, recordBytes(sizeBytes));
}

/** A file that is there already is taken if it has the size of the disk and holds nothing. */
async function checkFree(image: string, sizeBytes: number): Promise<void> {
  if (!(await exists(image))) return;
  const live = await LiveFile.open(image);
  try {
    const [first] = live.extents(0, live.sizeBytes, 1);
    const isEmpty = first === undefined || (first.kind === "hole" && first.length === sizeBytes);
    if (live.sizeBytes === sizeBytes && isEmpty) return;
  } finally {
    await live.close();
  }
  throw new TidemarkError("TARGET_EXISTS", `${image} exists and is no image that was begun as a point`, {
    remedy: "name another path for the image, or move the file away",
    detail: { path: image },
  });
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

/** An image goes on as the point that it began as, whatever `latest` names by now. */
function checkOrigin(
  { document }: VaultContext,
  { disk, point, image }: Pick<HydratingImageOptions, "disk" | "point" | "image">,
  origin: RecordIdentity,
): void {
  const isPointNamed = /^(\d+|[0-9a-f]{32})$/.test(point);
  const isSamePoint = !isPointNamed || point === String(origin.sequence) || point === origin.point;
  if (origin.vault === document.vault && origin.disk === disk && isSamePoint) return;
  const theirs = `point ${origin.sequence} of disk ${JSON.stringify(origin.disk)} in the vault ${origin.vault}`;
  throw new TidemarkError("INVALID_ARGUMENT", `${image} began as ${theirs}`, {
    remedy: "open that disk and point with it, or name another path for the image",
    detail: { path: image, disk: origin.disk, sequence: origin.sequence, point: origin.point },
  });
}

/** Names the image and its machine, in as many characters as a pin's name may have. */
function pinName(image: string): string {
  const name = `image ${hostname()}:${image}`;
  if (name.length <= 150) return name;
  return `image ${hostname().slice(0, 50)}:…${image.slice(-60)} ${createHash("sha256").update(name).digest("hex").slice(0, 16)}`;
}

async function removePin(
  store: Store,
  origin: RecordIdentity,
  image: string,
  onNotice: (notice: Notice) => void,
  signal?: AbortSignal,
): Promise<void> {
  const { vault, disk, sequence, point: id } = origin;
  await removePins({ store, vault, disk, point: { sequence, id }, name: pinName(image), onNotice, signal });
}

/** Ends the pin if there may be one. A pin that cannot be removed costs space only, and is tried again. */
async function unpin(
  store: Store,
  origin: RecordIdentity,
  { image, onNotice }: Pick<HydratingImageOptions, "image" | "onNotice">,
): Promise<void> {
  if (!(await exists(pinnedPath(image)))) return;
  try {
    await removePin(store, origin, image, onNotice);
    await rm(pinnedPath(image), { force: true });
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    const message = `point ${origin.sequence} stays pinned as ${JSON.stringify(pinName(image))} although ${image} does not need it any more: ${error.message}`;
    onNotice({ code: "PIN_LEFT", message });
  }
}

/** Absolute and without symbolic links, so that an image has one name. */
async function absolute(path: string): Promise<string> {
  const full = resolve(path);
  try {
    return await realpath(full);
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw cannotMake(full, error);
  }
  try {
    return join(await realpath(dirname(full)), basename(full));
  } catch (error) {
    throw cannotMake(full, error);
  }
}

async function exists(path: string): Promise<boolean> {
  try {
    await stat(path);
    return true;
  } catch (error) {
    if (systemCode(error) === "ENOENT" || systemCode(error) === "ENOTDIR") return false;
    throw cannotMake(path, error);
  }
}

async function makeRecordFolder(path: string): Promise<void> {
  try {
    await makeFolder(path);
  } catch (error) {
    throw cannotMake(path, error);
  }
}

function cannotMake(path: string, error: unknown): TidemarkError {
  return fileError(error, {
    code: "TARGET_FAILED",
    what: `cannot use ${path}`,
    remedy: "name a path in a folder that exists, on a local file system",
    detail: { path },
  });
}
