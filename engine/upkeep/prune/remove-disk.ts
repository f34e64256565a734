/**
 * Removal of a disk: a prune of all its points, the newest too.
 *
 *     writer lease ─► condemn every point ─► look for holds and pins ─► swap the head for one without points ─► delete pins, labels, proved ─► leave
 *
 * The order of the first four is that of a prune, so no point goes that a reader holds or a user has
 * pinned, on this disk or on one with which it was cut: the removal is refused then. Manifests, maps
 * and frames stay until a garbage collection, which frees what no other disk's point needs.
 *
 * The head stays without points. It carries the epoch on, so a later disk of this name never uses a
 * name again that the removed one has used, and its first replication finds no point to build on.
 *
 * Invariant: the one swap of the head decides. A removal that ends earlier has changed nothing; one
 * that ends later has removed the disk, and the next one of this name deletes what it left behind.
 */
import { watchedStore } from "../../disk/source/head-watch.ts";
import { hasCode, TidemarkError } from "../../errors.ts";
import type { NoticeOptions } from "../../notice.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { shellWord } from "../../shell-word.ts";
import type { HeadDocument } from "../../store/format/documents.ts";
import { condemnedName, provedName, sidecarPrefix } from "../../store/format/names.ts";
import type { NoticedDisk } from "../../store/place.ts";
import { diskNotFound, readHead } from "../../store/points/head.ts";
import { PageCache, readPoints } from "../../store/points/history.ts";
import { proveObjects, proveVault } from "../../store/points/manifest.ts";
import { isOf, listPins } from "../../store/points/pins.ts";
import { putCondemned } from "../../store/points/prune-fence.ts";
import { WriterLease } from "../../store/points/writer-lease.ts";
import { heldPointsOf, type Keeper } from "./group-holds.ts";
import { GroupRetention, type PlannedPoint, slimming } from "./group-retention.ts";
import { foreseeBytes, repeated } from "./prune.ts";
import type { PlanOptions, PrunePlan } from "./prune-plan.ts";

/** How `Vault.removeDisk` works. */
export interface RemoveDiskOptions extends NoticeOptions {
  readonly disk: string;
  /** Report what would go, and change nothing. */
  readonly dryRun?: boolean | undefined;
}

/** A disk that was removed, or would be in a dry run. */
export interface RemoveDiskSummary {
  readonly disk: string;
  readonly dryRun: boolean;
  /** 0: only leftovers were there. */
  readonly removedPoints: number;
  /** Bytes that the cycles of these points stored. Other disks may share some of them. */
  readonly removedStoredBytes: number;
  /** Of a dry run: bytes that a garbage collection would then free; null: not known, or removed. */
  readonly freedBytes: number | null;
  readonly requests: number;
  readonly elapsedMs: number;
}

/**
 * Removes a disk with all its points.
 *
 * @throws `DISK_NOT_FOUND`; `POINT_HELD` when a pin or a reader keeps a point; `WRITER_ACTIVE`;
 * `DAMAGED` when not all points can be listed; `SEAT_LOST`, `STORE_REGRESSED`, `INTERRUPTED`, and
 * the errors of the store. After an error the disk is whole, or gone.
 */
export async function removeDisk(context: VaultContext, options: RemoveDiskOptions): Promise<RemoveDiskSummary> {
  const startedAt = performance.now();
  const { dryRun = false, onNotice = () => undefined, signal } = options;
  const disk = options.disk.normalize("NFC");
  const store = watchedStore(context, onNotice);
  const { vault } = context.document;
  const place: NoticedDisk = { store, vault, disk, onNotice, signal };
  const { head } = await readHead(store, vault, disk, signal);
  const isLeft = head.points.length === 0 && head.writer === null && (await leftovers(place)).length === 0;
  if (isLeft) throw diskNotFound(disk);
  const removal = dryRun
    ? await foresee(place, head)
    : await repeated(place, `the removal of disk ${JSON.stringify(disk)}`, async () => await remove(place));
  return {
    disk,
    dryRun,
    removedPoints: removal.length,
    removedStoredBytes: removal.reduce((total, { storedBytes }) => total + storedBytes, 0),
    freedBytes: dryRun ? await foreseeBytes(place, [{ disk, toDrop: removal }]) : null,
    requests: store.requests,
    elapsedMs: Math.round(performance.now() - startedAt),
  };
}

async function foresee(place: NoticedDisk, head: HeadDocument): Promise<readonly PlannedPoint[]> {
  const points = await allPoints(place, head);
  await refuseHeld(place, points, { clear: false });
  return points;
}

/** Removes the disk under its writer lease. Returns the points that it had. */
async function remove(place: NoticedDisk): Promise<readonly PlannedPoint[]> {
  const { store, vault, disk, onNotice, signal } = place;
  const writerLease = await WriterLease.take({ store, vault, disk, onNotice, signal }).catch((error: unknown) => {
    throw hasCode(error, "WRITER_ACTIVE") ? stillWritten(error) : error;
  });
  try {
    const points = await allPoints(place, writerLease.head);
    const [first, last] = [points[0], points.at(-1)];
    if (first !== undefined && last !== undefined) {
      // One range for all of them: it fits into the list, whatever their numbers are.
      const ranges = [{ first: first.sequence, last: last.sequence }];
      const document = { vault, disk, epoch: writerLease.epoch, ranges };
      const etag = await putCondemned(store, document, signal);
      await refuseHeld(place, points, { clear: true }).catch(async (error: unknown) => {
        await putCondemned(store, { ...document, ranges: [] }, signal);
        throw error;
      });
      const prove = async (): Promise<void> => {
        await proveObjects(store, new Map([[condemnedName(disk), etag]]), signal);
        await proveVault(store, vault, signal);
      };
      await writerLease.dropAll({ leave: false, prove, signal });
      // The list stays. It names no point that a head lists, and the next writer's epoch voids it.
    }
    // Only now: until the swap the points may stay, and with them what belongs to them.
    for (const name of await leftovers(place)) await store.delete(name, { signal });
    await writerLease.dropAll({ leave: true, prove: async () => await proveVault(store, vault, signal), signal });
    return points;
  } finally {
    await writerLease.release();
  }
}

/** Oldest first. Errors: DAMAGED when a page of points cannot be read. */
async function allPoints({ store, signal }: NoticedDisk, head: HeadDocument): Promise<readonly PlannedPoint[]> {
  const newestFirst: PlannedPoint[] = [];
  const slim = slimming();
  for await (const point of readPoints(store, head, { signal })) newestFirst.push(slim(point));
  return newestFirst.reverse();
}

/** What belongs to points of the disk: names of pins and labels, and the scrub log. */
async function leftovers({ store, disk, signal }: NoticedDisk): Promise<string[]> {
  const names: string[] = [];
  for (const prefix of [sidecarPrefix("pins", disk), sidecarPrefix("labels", disk), provedName(disk)])
    names.push(...(await store.names(prefix, { signal })));
  return names;
}

/** Errors: POINT_HELD when a pin or reader keeps one of the points, on any member of its group. */
async function refuseHeld(
  place: NoticedDisk,
  points: readonly PlannedPoint[],
  { clear }: { readonly clear: boolean },
): Promise<void> {
  const { store, vault, disk, onNotice, signal } = place;
  const asked = {
    ...place,
    policy: { kind: "everything" } as const,
    nowMs: store.nowMs,
    cache: new PageCache(),
  };
  const options: PlanOptions = { ...asked, groupRetention: new GroupRetention(asked) };
  options.groupRetention.note(disk, points);
  const bySequence = new Map(points.map((point) => [point.sequence, point]));
  const pins = await listPins(store, vault, disk, onNotice, signal);
  const idlePins = pins.filter((pin) => {
    const point = bySequence.get(pin.sequence);
    return point === undefined || !isOf(pin, point);
  });
  const plan: PrunePlan = { disk, points, decisions: [], toDrop: points, isWhole: true, idlePins };
  const [kept, ...more] = await heldPointsOf(options, plan, points, { clear });
  if (kept !== undefined) throw pointHeld(disk, kept[1], more.length);
}

function pointHeld(disk: string, { kind, disk: holder, sequence }: Keeper, more: number): TidemarkError {
  const fact = kind === "pin" ? "is pinned" : "is being read";
  const others = more === 0 ? "" : `; ${String(more)} more are pinned or being read`;
  const group = holder === disk ? "" : `, and disk ${JSON.stringify(disk)} has a part of that point`;
  return new TidemarkError(
    "POINT_HELD",
    `point ${String(sequence)} of disk ${JSON.stringify(holder)} ${fact}${group}${others}`,
    {
      remedy:
        kind === "pin"
          ? `run \`tidemark points unpin --disk ${shellWord(holder)} --point ${String(sequence)}\``
          : "end what reads it, such as `tidemark mount`; a process that was killed reads for 60 s more",
      detail: { disk: holder, sequence },
    },
  );
}

function stillWritten(cause: TidemarkError): TidemarkError {
  return new TidemarkError("WRITER_ACTIVE", cause.message, {
    remedy: "stop the agent, `tidemark protect` or `tidemark replicate` that writes the disk, then remove it",
    detail: cause.detail,
    cause,
  });
}
