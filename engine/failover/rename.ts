/**
 * Renaming a disk: its points are copied to the new name within the vault, which moves no content,
 * and the disk of the former name is removed.
 *
 *     claim: no writer gets a session  →  copy of the points  →  labels and pins move  →  removal  →  end of the claim
 *
 * The claim carries the new name, so a rename that was interrupted goes on when it is repeated.
 *
 * Invariant: the former disk stays until each of its points is listed under the new name.
 */
import { watchedStore } from "../disk/source/head-watch.ts";
import { hasCode, TidemarkError } from "../errors.ts";
import type { VaultContext } from "../pipeline/vault-context.ts";
import type { OperationOptions } from "../progress.ts";
import { DiskCopy, findDisk, type Side } from "../replication/disk-copy.ts";
import { countPoints } from "../store/format/documents.ts";
import { claimName } from "../store/format/names.ts";
import { enableByClaim, readClaim, renameByClaim } from "../store/points/failover-claim.ts";
import { readDisk } from "../store/points/head.ts";
import { readPoints } from "../store/points/history.ts";
import { listLabels, putLabel } from "../store/points/labels.ts";
import { deletePin, isOf, listPins, putPin, type StoredPin } from "../store/points/pins.ts";
import { removeDisk } from "../upkeep/prune/remove-disk.ts";
import { activeWriter } from "./disable.ts";

/** How a disk is renamed. */
export interface RenameDiskOptions extends OperationOptions {
  readonly disk: string;
  /** The new name, which no disk of the vault has. */
  readonly to: string;
}

/** A disk that was renamed. */
export interface RenameDiskSummary {
  readonly disk: string;
  readonly to: string;
  readonly points: number;
  readonly elapsedMs: number;
}

/**
 * Renames a disk. Its points keep their times, labels and pins; their ids and numbers are new.
 *
 * @throws `DISK_NOT_FOUND`; `INVALID_ARGUMENT` when the new name has points, or the disk was failed
 * over; `WRITER_ACTIVE` when a process writes the disk; `POINT_HELD` when a reader has a point;
 * `DAMAGED`, and those of `copyTo` and `removeDisk`. After an error the former disk is whole; the
 * next call goes on.
 */
export async function renameDisk(context: VaultContext, options: RenameDiskOptions): Promise<RenameDiskSummary> {
  const startedAt = performance.now();
  const { signal, onNotice = () => undefined } = options;
  const [disk, to] = [options.disk.normalize("NFC"), options.to.normalize("NFC")];
  const vault = context.document.vault;
  const store = watchedStore(context, onNotice);
  const [source, target]: readonly [Side, Side] = [
    { context, store, vault, disk },
    { context, store, vault, disk: to },
  ];
  const place = { store, vault, disk, signal };
  const isRemoved =
    (await findDisk(source, signal)) === undefined && (await readClaim(place))?.disabled?.renamedTo === to;
  if (!isRemoved) {
    await readDisk(store, vault, disk, signal);
    const hasPoints = (await findDisk(target, signal)) !== undefined;
    const isContinued = await renameByClaim(place, to);
    try {
      if (hasPoints && !isContinued) throw nameTaken(to);
      const writer = await activeWriter(context, { signal, onNotice }, disk);
      if (writer !== undefined) throw writer;
    } catch (error) {
      if (!isContinued) await enableByClaim(place);
      throw error;
    }
    const copied = await new DiskCopy(source, target, new Set([disk]), options).run();
    if (copied.damaged + copied.tooOld > 0) throw notWhole(disk, to);
    await moveMarks(source, target, options);
  }
  await removeDisk(context, { disk, signal, onNotice }).catch((error: unknown) => {
    // An earlier try has removed it, and died before the claim went.
    if (!isRemoved || !hasCode(error, "DISK_NOT_FOUND")) throw error;
  });
  const points = countPoints(await readDisk(store, vault, to, signal));
  await store.delete(claimName(disk), { signal });
  return { disk, to, points, elapsedMs: Math.round(performance.now() - startedAt) };
}

/** Gives the pins of a disk, and labels that are missing there, to the points of the same times of the other one. */
async function moveMarks(
  { store, vault, disk }: Side,
  { disk: to }: Side,
  { signal, onNotice = () => undefined }: OperationOptions,
): Promise<void> {
  const pins = await listPins(store, vault, disk, onNotice, signal);
  const labels = await listLabels(store, vault, disk, onNotice, signal);
  const labelsThere = await listLabels(store, vault, to, onNotice, signal);
  const marks = new Map<number, { readonly pins: readonly StoredPin[]; readonly label: string | undefined }>();
  for await (const point of readPoints(store, await readDisk(store, vault, disk, signal), { signal })) {
    const pinned = pins.filter((pin) => isOf(pin, point));
    const label = labels.get(point.id);
    if (pinned.length > 0 || label !== undefined) marks.set(point.timeMs, { pins: pinned, label });
  }
  const nowMs = store.nowMs;
  const place = { store, vault, disk: to, nowMs, onNotice, signal };
  for await (const point of readPoints(store, await readDisk(store, vault, to, signal), { signal })) {
    const { label, pins: pinned = [] } = marks.get(point.timeMs) ?? {};
    if (label !== undefined && !labelsThere.has(point.id)) await putLabel({ ...place, point, text: label });
    for (const { document } of pinned) {
      const { name = null, untilMs = null } = document ?? {};
      if ((untilMs ?? Infinity) > nowMs) await putPin({ ...place, point, name, untilMs });
    }
  }
  for (const pin of pins) await deletePin(store, pin, signal);
}

function nameTaken(to: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `disk ${JSON.stringify(to)} has points of its own`, {
    remedy: "choose a name that no disk has; `tidemark disks list` shows them",
    detail: { disk: to },
  });
}

function notWhole(disk: string, to: string): TidemarkError {
  const fact = `some points of disk ${JSON.stringify(disk)} are not among those of ${JSON.stringify(to)}`;
  return new TidemarkError("DAMAGED", `${fact}, so it stays`, {
    remedy: `run \`tidemark vault repair\`, or drop them with \`tidemark prune\`, then rename it again`,
    detail: { disk },
  });
}
