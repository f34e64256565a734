/**
 * Targets of replicas: a file, a device or a page blob that belongs to a replica, and what stands for
 * its content.
 *
 * The document in the vault owns the target's name: it is put only while nothing has that name, so what
 * stands there later is the replica's. A device is the exception: naming it gives its content away.
 */
import { lstat } from "node:fs/promises";
import { hostname } from "node:os";
import { FileVolume } from "../disk/source/file-volume.ts";
import { fileError } from "../disk/source/positional-file.ts";
import { hasCode, systemCode, TidemarkError } from "../errors.ts";
import { refuseBlobName } from "../recovery/restore/blob-target.ts";
import type { MaterializeMode } from "../recovery/restore/target.ts";
import { readFixedVhdFooter, vhdDiskBytes } from "../recovery/restore/vhd.ts";
import type { Sink } from "../sink.ts";
import { checksum, toHex } from "../store/format/checksum.ts";
import type { ReplicaDocument } from "../store/format/replica.ts";
import type { Volume } from "../volume.ts";
import { type MemberTarget, materializeName, OwnedTarget, parseTarget } from "./target.ts";

/** Where a replica is. */
export type ReplicaPlace = Pick<ReplicaDocument, "replica" | "target" | "host">;

/**
 * The place that `text` names, a local path absolute. Errors: INVALID_ARGUMENT, UNSUPPORTED,
 * TARGET_FAILED when the folder does not exist.
 */
export async function parseReplicaTarget(text: string, disk: string, sink: Sink): Promise<ReplicaPlace> {
  const [, kind = "", rest = ""] = /^(file|device|blob):(.+)$/s.exec(text) ?? [];
  if (kind === "blob") {
    if (!sink.capabilities.attachablePages) {
      throw new TidemarkError("UNSUPPORTED", `${sink.description} does not hold page blobs that can be attached`, {
        remedy: "name file:PATH or device:PATH, or use a vault in Azure Storage",
      });
    }
    refuseBlobName(rest);
    return placeOf({ kind, path: rest }, null);
  }
  if (kind !== "file" && kind !== "device") {
    throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(text)} is not a target of a replica`, {
      remedy: "name file:PATH (a fixed VHD if it ends with .vhd), device:PATH or blob:NAME",
    });
  }
  const [found] = (await parseTarget(text, [disk], sink)).members;
  return placeOf({ kind: found?.kind === "vhd" ? "vhd" : kind, path: found?.path ?? rest }, localHost());
}

function placeOf(target: ReplicaPlace["target"], host: string | null): ReplicaPlace {
  return { replica: nameOf(target.path, host), target, host };
}

/** The name follows from the target, so two replicas never have one target. */
function nameOf(path: string, host: string | null): string {
  return toHex(checksum(Buffer.from(JSON.stringify([host, path])))).slice(0, 16);
}

/** The name that a replica at a target of a run would have. */
export function replicaNameAt({ kind, path }: MemberTarget): string {
  return nameOf(path, kind === "blob" ? null : localHost());
}

/** The host that has this machine's local targets, as documents spell it. */
function localHost(): string {
  return hostname().slice(0, 100);
}

/** Whether this machine can look at the target. */
export function isReachable({ host }: Pick<ReplicaPlace, "host">): boolean {
  return host === null || host === localHost();
}

/** The target as `--to` names it. */
export function replicaTargetName({ target: { kind, path } }: Pick<ReplicaPlace, "target">): string {
  return `${kind === "vhd" ? "file" : kind}:${path}`;
}

/** A target that is read; disposing closes it. */
type OpenImage = Volume & AsyncDisposable;

/** The hand of a replica on its target. */
export class ReplicaTarget {
  readonly #place: ReplicaPlace;
  readonly #sink: Sink;
  readonly #owned: OwnedTarget;

  constructor(place: ReplicaPlace, sink: Sink) {
    this.#place = place;
    this.#sink = sink;
    this.#owned = new OwnedTarget(place.target, place.replica, sink, undefined);
  }

  /** Errors: TARGET_EXISTS when something has the target's name, or a failover run has it. */
  async refuseTaken(): Promise<void> {
    await this.#owned.refuseTaken();
  }

  /**
   * What stands for the present content: if it is the same later, no program has written the target.
   * Null: there is content, and nothing stands for it. Undefined: there is no target.
   */
  async signature(): Promise<string | null | undefined> {
    const { kind, path } = this.#place.target;
    if (kind === "blob") {
      try {
        return (await this.#sink.statPages(path)).etag;
      } catch (error) {
        if (hasCode(error, "OBJECT_NOT_FOUND")) return undefined;
        throw error;
      }
    }
    try {
      await lstat(path);
    } catch (error) {
      if (systemCode(error) === "ENOENT") return undefined;
      throw unreadable(path, error);
    }
    return await this.#owned.signature();
  }

  /** How a target that exists is brought to a point of this size. */
  async modeFor(volumeBytes: number): Promise<MaterializeMode> {
    const { kind } = this.#place.target;
    if (kind === "file" || kind === "device") return "in-place";
    await using image = await this.#open();
    const footer = await readFixedVhdFooter(
      await image.sizeBytes(),
      async (offset, into) => await image.read(offset, into),
    );
    // An image that is not whole has no footer, and a page blob does not change its size.
    const isUsable = kind === "blob" ? footer?.diskBytes === vhdDiskBytes(volumeBytes) : footer !== undefined;
    return isUsable ? "in-place" : "replace";
  }

  /** What `materialize` calls the target. */
  get materializeName(): string {
    return materializeName(this.#place.target);
  }

  /**
   * The first `volumeBytes` of the target, as a volume; it is smaller where the target ends earlier.
   * Errors: SOURCE_NOT_FOUND, SOURCE_UNREADABLE.
   */
  async open(volumeBytes: number): Promise<OpenImage> {
    const image = await this.#open();
    return {
      ...image,
      async sizeBytes() {
        return Math.min(volumeBytes, await image.sizeBytes());
      },
    };
  }

  async #open(): Promise<OpenImage> {
    const { kind, path } = this.#place.target;
    const description = replicaTargetName(this.#place);
    const sink = this.#sink;
    if (kind === "blob") {
      return {
        description,
        sizeBytes: async () => (await sink.statPages(path)).sizeBytes,
        read: async (offset, into) => await sink.readPages(path, offset, into),
        [Symbol.asyncDispose]: async () => await Promise.resolve(),
      };
    }
    const file = await FileVolume.open(path);
    return {
      description,
      sizeBytes: async () => await file.sizeBytes(),
      read: async (offset, into) => await file.read(offset, into),
      allocated: (sizeBytes) => file.allocated(sizeBytes),
      [Symbol.asyncDispose]: async () => await file.close(),
    };
  }

  /** Removes a file or page blob, and what interrupted applications left beside it. */
  async remove(): Promise<void> {
    if (this.#place.target.kind !== "device") await this.#owned.removeContent();
  }
}

function unreadable(path: string, cause: unknown): TidemarkError {
  return fileError(cause, {
    code: "TARGET_FAILED",
    what: `cannot read the target ${path}`,
    remedy: "check the disk that holds it, then run the command again",
    detail: { target: path },
  });
}
