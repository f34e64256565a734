/**
 * Files and pin of an image that begins as a point: made in one order, removed in the reverse one.
 *
 *     begin    pin → image → record            discard  pin → image → the rest of the folder → record
 *
 * A crash in a begin leaves an image of holes, which the next begin takes over, and perhaps a pin.
 * A crash in a discard leaves the record, by which the next discard knows the rest.
 *
 * Invariant: no file is removed that no record claims, and no image is without the pin of its point
 * as long as it needs it.
 */
import { createHash } from "node:crypto";
import { lstat, readdir, realpath, rm, rmdir, stat } from "node:fs/promises";
import { hostname } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { watchedStore } from "../../disk/source/head-watch.ts";
import { LiveFile } from "../../disk/source/live-file.ts";
import { makeFolder } from "../../disk/source/plain-file.ts";
import { fileError } from "../../disk/source/positional-file.ts";
import { imageFolder, pinnedPath } from "../../disk/source/unfinished-image.ts";
import { hasCode, systemCode, TidemarkError, unlessAbsent } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { NoticedDisk } from "../../store/place.ts";
import { readHead } from "../../store/points/head.ts";
import { deletePin, listPins, putPin } from "../../store/points/pins.ts";
import { selectPoint } from "../../store/points/points.ts";
import { Store } from "../../store/store.ts";
import { createFile, recordBytes } from "./overlay-file.ts";
import { encodeHeader, type RecordIdentity, readRecordHeader } from "./overlay-header.ts";

/** An image that is made, or found. */
export interface ImageOptions {
  /** The disk whose point it begins as. */
  readonly disk: string;
  /** As `MountOptions.point`, for an image that does not exist. */
  readonly point: string;
  /** Path of the image file. */
  readonly image: string;
  readonly onNotice: (notice: Notice) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface DiscardOptions extends Pick<ImageOptions, "disk" | "image" | "signal"> {
  readonly onNotice?: ((notice: Notice) => void) | undefined;
}

/** Where the record of an image is. */
export function recordPath(image: string): string {
  return join(imageFolder(image), "record");
}

/** Makes an image of holes and its record. */
export async function beginImage(context: VaultContext, options: ImageOptions): Promise<void> {
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

/** Whether there is an image that was begun as a point, and whether some process has it open. */
export async function lookAtImage(given: string): Promise<"absent" | "closed" | "open"> {
  const image = await absoluteImage(given);
  if (!(await exists(recordPath(image)))) return "absent";
  try {
    await (await LiveFile.open(recordPath(image))).close();
    return "closed";
  } catch (error) {
    if (hasCode(error, "WRITER_ACTIVE")) return "open";
    throw error;
  }
}

/**
 * What a killed creation of an image has left beside it: files that never got the image's name. They
 * are found by their names alone.
 */
export async function partialsOf(image: string): Promise<string[]> {
  const start = `${basename(image)}.partial-`;
  const names = (await unlessAbsent(readdir(dirname(image)))) ?? [];
  return names.filter((name) => name.startsWith(start)).map((name) => join(dirname(image), name));
}

/**
 * Deletes an image that is not open, with everything that belongs to it, and ends the pin of its
 * point. What is gone already is no error. Where a crash has left no record, the file is not known
 * to be an image, and stays. Errors: WRITER_ACTIVE (it is open), TARGET_FAILED, and those of the
 * store while the point is pinned for it.
 */
export async function discardImage(context: VaultContext, given: DiscardOptions): Promise<void> {
  const { onNotice = () => undefined, signal } = given;
  const image = await absoluteImage(given.image);
  const disk = given.disk.normalize("NFC");
  const place = { store: new Store(context.sink), vault: context.document.vault, disk, image, onNotice, signal };
  if (!(await exists(recordPath(image)))) {
    await discardUnrecorded(place);
    return;
  }
  const record = await LiveFile.open(recordPath(image));
  try {
    checkOrigin(context, { disk, image, point: "latest" }, await readRecordHeader(record));
    await removeOwnPins(place);
    await remove(image);
    await removeFolder(image);
  } finally {
    await record.close();
  }
}

/** An image goes on as the point that it began as, also when `latest` names a newer one. */
export function checkOrigin(
  { document }: VaultContext,
  { disk, point, image }: Pick<ImageOptions, "disk" | "point" | "image">,
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

interface PinPlace extends NoticedDisk {
  readonly image: string;
}

/** Removes the pins for an image, on whichever point an earlier begin may have left one. */
async function removeOwnPins({ store, vault, disk, image, onNotice, signal }: PinPlace): Promise<void> {
  const name = pinName(image);
  for (const pin of await listPins(store, vault, disk, onNotice, signal))
    if (pin.document?.name === name) await deletePin(store, pin, signal);
}

/** What a begin that was cut off before the record has left: a folder, and perhaps a pin. */
async function discardUnrecorded(place: PinPlace): Promise<void> {
  const { image } = place;
  let names: readonly string[];
  try {
    names = await readdir(imageFolder(image));
  } catch (error) {
    if (systemCode(error) !== "ENOENT" && systemCode(error) !== "ENOTDIR") throw cannotMake(imageFolder(image), error);
    // The store may have gone back to a pin of an image that has been discarded.
    if (!(await exists(image))) await removeOwnPins(place);
    return;
  }
  if (!names.every((name) => /^(pinned|record)(\.partial-[0-9a-f]{8})?$/.test(name))) return;
  if (names.includes(basename(pinnedPath(image)))) await removeOwnPins(place);
  await removeFolder(image);
}

/** The record goes last: while it is there, the rest is known to be of the image. */
async function removeFolder(image: string): Promise<void> {
  const folder = imageFolder(image);
  for (const name of await readdir(folder)) if (name !== basename(recordPath(image))) await remove(join(folder, name));
  await remove(recordPath(image));
  await remove(folder);
}

async function remove(path: string): Promise<void> {
  try {
    const isFolder = (await lstat(path)).isDirectory();
    await (isFolder ? rmdir(path) : rm(path, { force: true }));
  } catch (error) {
    if (systemCode(error) !== "ENOENT") throw cannotMake(path, error);
  }
}

/** Ends the pin if there may be one. A pin that cannot be removed costs space only, and is tried again. */
export async function unpin(
  store: Store,
  origin: RecordIdentity,
  { image, onNotice }: Pick<ImageOptions, "image" | "onNotice">,
): Promise<void> {
  if (!(await exists(pinnedPath(image)))) return;
  const { vault, disk } = origin;
  try {
    await removeOwnPins({ store, vault, disk, image, onNotice });
    await rm(pinnedPath(image), { force: true });
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    const message = `point ${origin.sequence} stays pinned as ${JSON.stringify(pinName(image))} although ${image} does not need it any more: ${error.message}`;
    onNotice({ code: "PIN_LEFT", message });
  }
}

/** Absolute and without symbolic links, so that an image has one name. */
export async function absoluteImage(path: string): Promise<string> {
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

export async function exists(path: string): Promise<boolean> {
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
