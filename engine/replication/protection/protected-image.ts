/**
 * Opening an image for protection: the file, its tracking file, the protected disk on both, and how
 * much the tracking file knows of what has changed.
 */
import path from "node:path";
import type { BlockDevice } from "../../device.ts";
import type { FileIdentity } from "../../disk/source/file-identity.ts";
import { LiveFile } from "../../disk/source/live-file.ts";
import { LocalState } from "../../disk/source/local-state.ts";
import { fileError } from "../../disk/source/positional-file.ts";
import { signatureText } from "../../disk/source/quiescence.ts";
import { refuseUnfinished } from "../../disk/source/unfinished-image.ts";
import { DirtyBitmap } from "../../disk/tracking/dirty-bitmap.ts";
import { ProtectedDisk } from "../../disk/tracking/protected-disk.ts";
import type { ProtectedDiskOptions } from "../../disk/tracking/protected-disk-options.ts";
import { TrackingFile } from "../../disk/tracking/tracking-file.ts";
import type { Recovered } from "../../disk/tracking/tracking-recovery.ts";
import { TidemarkError } from "../../errors.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import type { Volume } from "../../volume.ts";
import { checkSize } from "../replicate.ts";
import type { MachineState } from "./protection-state.ts";
import type { ProtectOptions } from "./protection-status.ts";

/** What can be protected: an image file, a block device, or an image that is still being filled. */
export interface ProtectedSource extends BlockDevice {
  /** As `LiveFile.volume`. */
  volume(access: "whole" | "scattered"): Volume;
  /** Looks how large it is now. Errors: SOURCE_SHRUNK, SOURCE_UNREADABLE. */
  refreshSize(): Promise<number>;
  identity(): FileIdentity;
}

export interface ProtectedImage {
  /** Closed with `disk`. */
  readonly source: ProtectedSource;
  readonly disk: ProtectedDisk;
  /**
   * `changed`: the marks name the granules that have changed. `compare`: they name regions. `scan`:
   * it is not known what has changed.
   */
  readonly known: "changed" | "compare" | "scan";
  /** The reason of `scan`. */
  readonly whyUnknown: string | undefined;
}

export interface TrackedSource {
  readonly source: ProtectedSource;
  readonly tracking: TrackingFile;
  readonly recovered: Recovered;
  /** Where old content lies that does not fit in memory. */
  readonly folder: string;
}

/**
 * Errors: SOURCE_NOT_FOUND, SOURCE_UNREADABLE, WRITER_ACTIVE, ACCESS_REFUSED, UNSUPPORTED,
 * NO_SPACE, DEVICE_FAILED.
 */
export async function openProtectedImage(context: VaultContext, options: ProtectOptions): Promise<ProtectedImage> {
  const { disk, stateFolder, image } = options;
  const { vault } = context.document;
  const state = new LocalState({ folder: stateFolder, vault, disk, onNotice: () => undefined });
  const live = await LiveFile.open(image);
  try {
    await refuseUnfinished(live.identity().path);
    checkSize(image, disk, live.sizeBytes, undefined);
    const folder = await makeFolder(state, stateFolder);
    await state.rememberSource(live.identity());
    const identity = { vault, disk, sizeBytes: live.sizeBytes, image: live.identity() };
    const { file: tracking, recovered } = await TrackingFile.open(path.join(folder, "tracking"), identity);
    return protectedImage(context, { source: live, tracking, recovered, folder }, options);
  } catch (error) {
    await live.close();
    throw error;
  }
}

async function makeFolder(state: LocalState, stateFolder: string): Promise<string> {
  try {
    return (await state.makeDiskFolder()) ?? stateFolder;
  } catch (error) {
    const remedy = "name a folder on a local disk that this user may write: `--state DIR`";
    const what = `cannot make the state folder ${stateFolder}`;
    const { code, message, detail } = fileError(error, { code: "DEVICE_FAILED", what, remedy });
    throw new TidemarkError(code, message, { remedy, detail: { ...detail, path: stateFolder }, cause: error });
  }
}

/** The protected disk on a source whose tracking file is open. */
export function protectedImage(
  context: VaultContext,
  { source, tracking, recovered, folder }: TrackedSource,
  options: Pick<ProtectOptions, "policy" | "preservedBytesMax" | "spillBytesMax">,
): ProtectedImage {
  return {
    source,
    disk: ProtectedDisk.open({
      backing: source,
      tracking,
      ...marksOf(recovered, source.sizeBytes),
      spillFolder: folder,
      settleMs: context.sink.capabilities.settlingMs,
      barrierMsMax: options.policy?.barrierMsMax,
      preservedBytesMax: options.preservedBytesMax,
      spillBytesMax: options.spillBytesMax,
    }),
    known: recovered.kind === "clean" ? "changed" : recovered.kind === "unclean" ? "compare" : "scan",
    whyUnknown: recovered.kind === "unknown" ? recovered.reason : undefined,
  };
}

/** The points since which the marks are complete, and the older ones the store may go back to. */
function marksOf(
  recovered: Recovered,
  sizeBytes: number,
): Pick<ProtectedDiskOptions, "dirty" | "base" | "earlierBases" | "unsettled"> {
  switch (recovered.kind) {
    case "unknown":
      return { dirty: new DirtyBitmap(sizeBytes), base: undefined };
    case "unclean":
      return { dirty: recovered.dirty, base: recovered.bases.at(-1), earlierBases: recovered.bases.slice(0, -1) };
    case "clean":
      // The exact marks are those since the newest base. Changes between it and an older base are
      // known by regions only.
      return {
        dirty: recovered.dirty,
        base: recovered.bases.at(-1),
        earlierBases: recovered.expected,
        unsettled: { bases: recovered.bases.slice(0, -1), changes: recovered.regions },
      };
  }
}

/** An image that no process writes, and the point that it equals while it has the signature. */
export interface RestingImage {
  /** Absolute path of the image or device. */
  readonly path: string;
  /** Id of the point. */
  readonly point: string;
  /** Quiescence signature. */
  readonly signature: string;
}

/** Which point the image of a protection that has ended is; undefined: that is not known. */
export function restOf(
  state: MachineState,
  disk: ProtectedDisk,
  source: Pick<ProtectedSource, "identity">,
): RestingImage | undefined {
  const { rest } = disk;
  const { latest } = state;
  if (rest === undefined || latest === null || disk.base !== latest.point || !isCovered(state, disk)) return undefined;
  return { path: source.identity().path, point: latest.point, signature: signatureText(rest) };
}

/** Whether the newest point holds every write to the disk. */
export function isCovered(state: MachineState, disk: ProtectedDisk): boolean {
  const { known, isExact, tried, latest } = state;
  const isKnown = known === "changed" && isExact && tried === undefined;
  return isKnown && disk.dirtyBytes === 0 && latest?.volumeBytes === disk.sizeBytes;
}
