/**
 * Recovery of a tracking file: the exact bitmap after a clean shutdown, the marked regions after a
 * crash, nothing in doubt. In doubt the whole disk is compared with the vault, which is slow and
 * always right.
 *
 * The file is believed if the header (identity, bases) and every page are sound, and the image is
 * the same object and not smaller; after a clean shutdown also if the image's quiescence signature
 * is unchanged.
 *
 * Limit: a write by another program between a crash and this start is not seen, as on every disk
 * that is changed behind its tracker.
 */
import { isUnreadable, systemCode } from "../../errors.ts";
import type { FileIdentity } from "../source/file-identity.ts";
import type { QuiescenceSignature } from "../source/quiescence.ts";
import { DirtyBitmap, regionBytes } from "./dirty-bitmap.ts";
import { readExactArea } from "./exact-area.ts";
import { bitsSet } from "./region-bits.ts";
import {
  decodeHeader,
  decodePage,
  headerSlotBytes,
  type Pair,
  pageBitmapBytes,
  pageOffset,
  pageSlotBytes,
  pagesOf,
  regionsOf,
  type TrackingHeader,
  type TrackingIdentity,
} from "./tracking-format.ts";
import type { TrackingStorage } from "./tracking-storage.ts";

/** What may have changed on the disk, and since when. */
export type Recovered =
  | {
      readonly kind: "clean";
      /** Points, oldest first. `dirty` is exact relative to the last of them. */
      readonly bases: readonly string[];
      /**
       * Points younger than those that may have been committed. `dirty` holds every change since
       * any of them.
       */
      readonly expected: readonly string[];
      readonly dirty: DirtyBitmap;
      /** Whole regions: every change since any of `bases`. */
      readonly regions: DirtyBitmap;
    }
  | {
      readonly kind: "unclean";
      /** Points, oldest first. `dirty`, whole regions, holds every change since any of them. */
      readonly bases: readonly string[];
      readonly dirty: DirtyBitmap;
    }
  | { readonly kind: "unknown"; readonly reason: string };

/** A sound tracking file: what it says and where its next writes go. */
export interface KnownTracking {
  readonly header: TrackingHeader;
  readonly headerPair: Pair;
  /** The region bits, page by page. */
  readonly bits: Uint8Array;
  readonly pages: readonly Pair[];
  readonly recovered: Exclude<Recovered, { kind: "unknown" }>;
}

/**
 * Reads what the file says about the disk of `identity`. Any fault in it becomes a reason.
 * `quiescenceSignature` looks at the image; its errors are passed on.
 */
export async function recoverTracking(
  path: string,
  storage: TrackingStorage,
  identity: TrackingIdentity,
  quiescenceSignature: () => Promise<QuiescenceSignature | undefined>,
): Promise<KnownTracking | { readonly reason: string }> {
  const rest = await quiescenceSignature();
  try {
    // A killed process leaves writes in the page cache that read back and that a power failure
    // would still undo.
    await storage.datasync();
    const decoded = decodeHeader(await readPadded(storage, 0, 2 * headerSlotBytes), path);
    if (decoded === undefined) return { reason: "there is no tracking of this disk" };
    const reason = mismatch(decoded.header, identity, rest);
    if (reason !== undefined) return { reason };
    return await readMarks(path, storage, identity, decoded);
  } catch (error) {
    if (isUnreadable(error)) return { reason: error.message };
    const errno = systemCode(error);
    if (errno === undefined) throw error;
    return { reason: `${path} cannot be read (${errno})` };
  }
}

/** Why a sound header does not tell of this disk as it lies now. */
function mismatch(
  header: TrackingHeader,
  identity: TrackingIdentity,
  rest: QuiescenceSignature | undefined,
): string | undefined {
  if (header.vault !== identity.vault) return "the tracking is of another vault";
  if (header.disk !== identity.disk) return "the tracking is of another disk";
  if (!surelySameImage(header.image, identity.image)) return "the tracking is of another image";
  if (header.sizeBytes > identity.sizeBytes) return "the image has become smaller";
  if (header.bases.length === 0) return "the tracking names no recovery point";
  if (header.clean === null) return undefined;
  return changeAtRest(header.clean.rest, rest, identity.image.kind);
}

/**
 * Why what was left in good order may have been written since; undefined when it surely was not.
 */
function changeAtRest(
  left: QuiescenceSignature | null,
  found: QuiescenceSignature | undefined,
  kind: FileIdentity["kind"],
): string | undefined {
  if (left === null || found === undefined)
    return "it is unknown whether the device was changed while it was not protected";
  if (left.sizeBytes === found.sizeBytes && left.signature === found.signature) return undefined;
  if (kind === "file") return "the image was changed while it was not protected";
  return "the device was changed while it was not protected, or the machine restarted or the device was attached anew, which resets the kernel's counters";
}

/**
 * The opposite of `sameObject`: in doubt no. A file that replaced another under its path has
 * another inode; path and number of a device may be those of another one after a reboot.
 */
function surelySameImage(a: FileIdentity, b: FileIdentity): boolean {
  if (a.kind !== b.kind) return false;
  if (a.kind === "device") return a.path === b.path && a.rdev === b.rdev && a.serial === b.serial;
  return a.ino === b.ino && (a.path === b.path || a.dev === b.dev);
}

async function readMarks(
  path: string,
  storage: TrackingStorage,
  identity: TrackingIdentity,
  { header, pair: headerPair }: { readonly header: TrackingHeader; readonly pair: Pair },
): Promise<KnownTracking> {
  const pageCount = pagesOf(header.sizeBytes);
  const bits = new Uint8Array(pageCount * pageBitmapBytes);
  const pages: Pair[] = [];
  for (let page = 0; page < pageCount; page += 1) {
    const pair = decodePage(await readPadded(storage, pageOffset(page, 0), 2 * pageSlotBytes), page, path);
    bits.set(pair.payload, page * pageBitmapBytes);
    pages.push(pair);
  }
  const regions = new DirtyBitmap(identity.sizeBytes);
  for (const region of bitsSet(bits)) {
    if (region < regionsOf(header.sizeBytes))
      regions.mark(region * regionBytes, Math.min(regionBytes, identity.sizeBytes - region * regionBytes));
  }
  const exact = await readExactArea(storage, header, identity.sizeBytes);
  // What the disk has grown by counts as changed since every base.
  for (const marks of [regions, exact]) marks?.mark(header.sizeBytes, identity.sizeBytes - header.sizeBytes);
  if (exact === undefined || header.clean === null) {
    return { header, headerPair, bits, pages, recovered: { kind: "unclean", bases: header.bases, dirty: regions } };
  }
  const bases = header.bases.slice(0, header.clean.base + 1);
  const expected = header.bases.slice(header.clean.base + 1);
  return { header, headerPair, bits, pages, recovered: { kind: "clean", bases, expected, dirty: exact, regions } };
}

/**
 * Reads a range; what lies behind the file's end reads as zeros, as it does where a file was
 * extended and the write was lost.
 */
async function readPadded(storage: TrackingStorage, offset: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  await storage.read(offset, bytes);
  return bytes;
}
