/**
 * Unfinished images: an image of an instant target (lazy copy) is a whole disk only once it is
 * hydrated. Until then what has not been copied reads as zeros, and a replication would store
 * those zeros as content.
 *
 * Invariant: the file `PATH.tidemark/pinned` is there as long as anything is missing in the image.
 */
import { stat } from "node:fs/promises";
import { join } from "node:path";
import { systemCode, TidemarkError } from "../../errors.ts";

/** Folder of what belongs to an image of an instant target. */
export function imageFolder(image: string): string {
  return `${image}.tidemark`;
}

/** An empty file that is there while the image needs its point. */
export function pinnedPath(image: string): string {
  return join(imageFolder(image), "pinned");
}

/** Errors: INVALID_ARGUMENT when `path` is an image that is not hydrated. */
export async function refuseUnfinished(path: string): Promise<void> {
  try {
    await stat(pinnedPath(path));
  } catch (error) {
    if (["ENOENT", "ENOTDIR", "ENAMETOOLONG"].includes(systemCode(error) ?? "")) return;
    throw error;
  }
  throw new TidemarkError(
    "INVALID_ARGUMENT",
    `${path} is the image of an instant target and may not hold the whole disk yet`,
    {
      remedy: "open it with `vault.instant` and wait until it is hydrated",
      detail: { path },
    },
  );
}
