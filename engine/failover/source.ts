/**
 * Source of a failover: the agent that protects its disks, or an image that goes to rest.
 *
 * If an image has one quiescence signature before and after the point was taken, then it is this
 * point for as long as it has that signature. An agent that stops its disks tells the same of their
 * images. A failback to the image begins there.
 */
import { quiescenceSignature, signatureText } from "../disk/source/quiescence.ts";
import { TidemarkError } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import { openImage } from "../recovery/restore/vhd.ts";
import type { RestingImage } from "../replication/protection/protected-image.ts";
import { replicate } from "../replication/replicate.ts";
import type { RunMember } from "../store/format/run.ts";

/** The disks of a run, and the group whose disks they are. */
export interface SourceDisks {
  readonly disks: readonly string[];
  readonly group: string | null;
}

/** A disk at rest: its image is the point for as long as it has the signature. */
export interface RestingSource extends RestingImage {
  readonly disk: string;
}

/** The agent that protects the disks of a run. */
export interface SourceSite {
  /** Takes a last point of each disk, of a group at one barrier, while they go on. */
  point(source: SourceDisks, signal: AbortSignal | undefined): Promise<void>;
  /**
   * Brings the disks to rest, with a last point of each. Gives what proves later that their images
   * are unwritten.
   */
  stop(source: SourceDisks, signal: AbortSignal | undefined): Promise<readonly RestingSource[]>;
  /** Protects the disks again. */
  start(source: SourceDisks, signal: AbortSignal | undefined): Promise<void>;
}

/**
 * Takes a point of an image that no program writes. Gives what proves later that it is unwritten;
 * null: nothing does. Errors: SOURCE_UNREADABLE when it was written meanwhile, those of `replicate`.
 */
export async function takeLastPoint(
  context: VaultContext,
  options: OperationOptions & { readonly disk: string; readonly path: string },
): Promise<RunMember["origin"]> {
  const { path } = options;
  const volume = await openImage(path);
  try {
    const image = volume.identity();
    const before = await quiescenceSignature(image);
    const { consistency, point } = await replicate(context, { ...options, volume }, "shared");
    if (consistency !== "fuzzy") {
      const after = await quiescenceSignature(image);
      if (before === undefined || after === undefined) return null;
      const signature = signatureText(before);
      return signature === signatureText(after) ? { path: image.path, point, signature } : null;
    }
  } finally {
    await volume.close();
  }
  throw new TidemarkError("SOURCE_UNREADABLE", `${path} was written while its last point was taken`, {
    remedy: "stop the programs that write it",
    detail: { path },
  });
}
