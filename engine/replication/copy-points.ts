/**
 * Vault-to-vault replication: copies recovery points, with their times, to another vault. This file
 * chooses the disks; `disk-copy.ts` copies one.
 */
import { forEachAtOnce } from "../concurrency.ts";
import { watchedStore } from "../disk/source/head-watch.ts";
import { LocalState } from "../disk/source/local-state.ts";
import { TidemarkError } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import { fromHex } from "../store/format/checksum.ts";
import { readDisk } from "../store/points/head.ts";
import { diskNames } from "../store/points/points.ts";
import { type CopiedDisk, type CopiedPoint, type CopyOptions, DiskCopy, findDisk, type Side } from "./disk-copy.ts";

/** What a copy did. */
export interface CopySummary {
  readonly disks: readonly CopiedDisk[];
  readonly points: number;
  readonly fetchedBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
  readonly elapsedMs: number;
}

type VaultSide = Omit<Side, "disk">;

const disksAtOnce = 2;

/**
 * Copies points of `from` to `to`. Disks are independent: one that fails leaves the others, and the
 * first failure is thrown when all have ended.
 *
 * @throws INVALID_ARGUMENT, DISK_NOT_FOUND, before anything is copied; DAMAGED when a point cannot be
 * read back; WRITER_ACTIVE when the disk is replicated to the target by another process; those of
 * `replicate` and of both stores.
 */
export async function copyPoints(from: VaultContext, to: VaultContext, options: CopyOptions): Promise<CopySummary> {
  const startedAt = performance.now();
  const [source, target] = [from, to].map(
    (context): VaultSide => ({
      context,
      store: watchedStore(context, options.onNotice),
      vault: context.document.vault,
    }),
  ) as [VaultSide, VaultSide];
  if (source.vault === target.vault) {
    throw new TidemarkError("INVALID_ARGUMENT", `both vaults are ${source.vault}: a vault and its copies are one`, {
      remedy: "name two vaults; make the second with `tidemark vault init`",
    });
  }
  const disks = await disksOf(source, options);
  const copied: CopiedPoint[] = [];
  const done: CopiedDisk[] = [];
  const failures: unknown[] = [];
  await forEachAtOnce(disks, disksAtOnce, async (disk) => {
    const copy = new DiskCopy({ ...source, disk }, { ...target, disk }, new Set(disks), {
      ...options,
      onPoint: (point) => {
        copied.push(point);
        options.onPoint?.(point);
      },
    });
    try {
      const ended = await copy.run();
      done.push(ended);
      options.onEnded?.(disk, ended);
    } catch (error) {
      if (!(error instanceof TidemarkError) || error.code === "INTERRUPTED") throw error;
      failures.push(error);
      options.onEnded?.(disk, error);
    }
  });
  const [first] = copied;
  if (first !== undefined) await saveCatalog(target, first.disk, options);
  if (failures.length > 0) throw failures[0];
  const sum = (key: "fetchedBytes" | "newBytes" | "storedBytes"): number =>
    copied.reduce((total, point) => total + point[key], 0);
  return {
    disks: done.toSorted((a, b) => (a.disk < b.disk ? -1 : 1)),
    points: copied.length,
    fetchedBytes: sum("fetchedBytes"),
    newBytes: sum("newBytes"),
    storedBytes: sum("storedBytes"),
    elapsedMs: Math.round(performance.now() - startedAt),
  };
}

/** The next copy, in another process, reads only what is new of the target's index. */
async function saveCatalog(
  { context, store, vault }: VaultSide,
  disk: string,
  { onNotice = () => undefined }: CopyOptions,
): Promise<void> {
  const catalog = await context.sharedCatalog(store, onNotice);
  const state = new LocalState({ folder: context.stateFolder, vault, disk, onNotice });
  await state.saveCache(async (folder) => await catalog.save(folder, fromHex(vault)));
}

/** Errors: DISK_NOT_FOUND. */
async function disksOf({ store, vault }: VaultSide, { disks, signal }: CopyOptions): Promise<readonly string[]> {
  if (disks !== undefined) {
    const named = [...new Set(disks.map((disk) => disk.normalize("NFC")))];
    for (const disk of named) await readDisk(store, vault, disk, signal);
    return named;
  }
  const names: string[] = [];
  for (const disk of await diskNames(store, signal))
    if ((await findDisk({ store, vault, disk }, signal)) !== undefined) names.push(disk);
  return names;
}
