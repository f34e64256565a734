/** Lists disks and points, and finds the point that a user means. */
import { TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { Consistency } from "../../volume.ts";
import type { ApplicationRecord, GroupRecord, HeadDocument, ManifestDocument, PointRecord } from "../format/documents.ts";
import { countPoints } from "../format/documents.ts";
import { decodeDiskName, disksPrefix, parseDiskObject } from "../format/names.ts";
import type { Store } from "../store.ts";
import type { GroupMembers } from "./group-members.ts";
import type { PointKey } from "./history.ts";
import { findPoint, readPoints } from "./history.ts";
import { listLabels } from "./labels.ts";
import { countedPins, isOf, type PinSummary, type StoredPin } from "./pins.ts";
import { readProved } from "./proved.ts";
import { listHolds } from "./reader-holds.ts";

/** `group`: what the point counts as a part of. Its own record names a group that may not be complete; see `GroupMembers`. */
export function pointSummary(disk: string, point: PointRecord, group: GroupRecord | null = point.group): PointSummary {
  return {
    disk,
    sequence: point.sequence,
    point: point.id,
    time: new Date(point.timeMs).toISOString(),
    consistency: point.consistency,
    group: group === null ? null : { id: group.id, name: group.name },
    lagMs: point.lagMs,
    volumeBytes: point.volumeBytes,
    changedBytes: point.changedBytes,
    newBytes: point.newBytes,
    storedBytes: point.storedBytes,
  };
}

/** Names of the vault's disks, sorted: those that have a head, and those that have lost it, of which points are there. */
export async function diskNames(store: Store, signal?: AbortSignal): Promise<string[]> {
  const { disks, headless } = await listDisks(store, signal);
  return [...disks, ...headless].sort();
}

/** Names of the disks, sorted, and of those that have manifests of points but no head: it is lost, or has been made while this looked. */
export async function listDisks(store: Store, signal?: AbortSignal): Promise<{ readonly disks: string[]; readonly headless: string[] }> {
  const [heads, manifests] = [new Set<string>(), new Set<string>()];
  for await (const { name } of store.list(disksPrefix, { signal })) {
    const { encodedDisk = "", kind } = parseDiskObject(name) ?? {};
    if (kind === "head") heads.add(encodedDisk);
    else if (kind === "points") manifests.add(encodedDisk);
  }
  const named = (encoded: Iterable<string>): string[] =>
    Array.from(encoded)
      .flatMap((disk) => decodeDiskName(disk) ?? [])
      .sort();
  return { disks: named(heads), headless: named([...manifests].filter((disk) => !heads.has(disk))) };
}

/** Errors: DISK_NOT_FOUND, DAMAGED. */
export async function diskSummary(members: GroupMembers, disk: string): Promise<DiskSummary> {
  const head = await members.head(disk);
  const latest = head.points.at(-1);
  const points = countPoints(head);
  return latest === undefined
    ? { disk, points }
    : { disk, points, latest: pointSummary(disk, latest, await members.groupOf(disk, latest)) };
}

/** The newest points of a disk, oldest first. Errors: DISK_NOT_FOUND, INVALID_ARGUMENT, DAMAGED (see `PointsOptions.onNotice`). */
export async function listPoints(store: Store, members: GroupMembers, disk: string, options: PointsOptions): Promise<ListedPoint[]> {
  const { limit, onNotice, signal } = options;
  if (limit !== undefined && (!Number.isInteger(limit) || limit < 1)) {
    throw new TidemarkError("INVALID_ARGUMENT", `a list cannot have ${String(limit)} points`, { remedy: "give a limit of 1 or more" });
  }
  const head = await members.head(disk);
  const onDamage =
    onNotice === undefined
      ? undefined
      : (error: TidemarkError): void => {
          onNotice({ code: "HISTORY_DAMAGED", message: `${error.message}; the points that it lists are left out` });
        };
  const pins = await countedPins(store, head, onNotice ?? (() => undefined), signal);
  const holds = await listHolds(store, disk, signal);
  const times = await readProved(store, head.vault, disk, signal);
  const labels = await listLabels(store, head.vault, disk, onNotice ?? (() => undefined), signal);
  const newestFirst: ListedPoint[] = [];
  for await (const point of readPoints(store, head, { onDamage, signal })) {
    const summary = pointSummary(disk, point, await members.groupOf(disk, point));
    const elsewhere = point.group === null ? undefined : await members.keptElsewhere(disk, point.group);
    const pinned = elsewhere?.pinned === true || pins.some((pin) => isOf(pin, point));
    const held = elsewhere?.held === true || holds.has(point.sequence);
    newestFirst.push({ ...summary, label: labels.get(point.id) ?? null, pinned, held, proved: isoOrNull(times.of(point)) });
    if (newestFirst.length === limit) break;
  }
  return newestFirst.reverse();
}

export async function pointDetail(
  members: GroupMembers,
  disk: string,
  point: PointRecord,
  manifest: ManifestDocument,
  pins: readonly StoredPin[],
  provedMs: number | null,
  label: string | null,
): Promise<PointDetail> {
  const { group } = point;
  return {
    ...pointSummary(disk, point),
    label,
    group,
    groupIncomplete: group !== null && (await members.groupOf(disk, point)) === null,
    application: manifest.application,
    pins: pins.filter((pin) => isOf(pin, point)).map(pinSummary),
    proved: isoOrNull(provedMs),
    parent: manifest.parent,
    zeroBytes: manifest.statistics.zeroBytes,
    dedupedBytes: manifest.statistics.dedupedBytes,
    runs: manifest.runs.map(({ entries, leaves, totalBytes }) => ({ entries, leaves, bytes: totalBytes })),
    writtenBy: manifest.writtenBy,
  };
}

/** A pin that cannot be read has no name and no end. */
function pinSummary({ document }: StoredPin): PinSummary {
  return { name: document?.name ?? null, until: isoOrNull(document?.untilMs ?? null) };
}

function isoOrNull(timeMs: number | null): string | null {
  return timeMs === null ? null : new Date(timeMs).toISOString();
}

/**
 * The point that `selector` names: a sequence number, an id, `latest`, or an ISO 8601 time, which names the newest point not
 * younger. Errors: POINT_NOT_FOUND, INVALID_ARGUMENT, DAMAGED when the page that may hold it cannot be read.
 */
export async function selectPoint(store: Store, head: HeadDocument, selector: string, signal?: AbortSignal): Promise<PointRecord> {
  const key = keyOf(selector.trim());
  const found = key === "latest" ? head.points.at(-1) : await findPoint(store, head, key, signal);
  if (found !== undefined) return found;
  const points = countPoints(head);
  const known = points === 0 ? "it has none yet" : `it has ${String(points)}, the newest is ${String(head.points.at(-1)?.sequence)}`;
  throw new TidemarkError("POINT_NOT_FOUND", `disk ${JSON.stringify(head.disk)} has no point ${JSON.stringify(selector)}: ${known}`, {
    remedy: "`tidemark points list` shows its points",
    detail: { disk: head.disk, selector },
  });
}

function keyOf(selector: string): PointKey | "latest" {
  if (selector === "latest") return selector;
  if (/^\d{1,15}$/.test(selector)) return { sequence: Number(selector) };
  if (/^[0-9a-f]{32}$/i.test(selector)) return { id: selector.toLowerCase() };
  const isoTime = /^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$/;
  const timeMs = isoTime.test(selector) ? Date.parse(selector) : Number.NaN;
  if (Number.isNaN(timeMs)) {
    throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(selector)} does not name a point`, {
      remedy: "give a sequence number, a point's id, `latest`, or a time such as 2026-05-01T12:00:00Z",
    });
  }
  return { timeMs };
}

export interface DiskSummary {
  readonly disk: string;
  readonly points: number;
  /** Newest point, absent while the disk has none. */
  readonly latest?: PointSummary;
}

/** What lists points. */
export interface PointsOptions {
  /** Only the newest so many. Default: all. */
  readonly limit?: number | undefined;
  /** Told of pages of points that cannot be read, whose points are then left out. Absent, one ends the listing with DAMAGED. */
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

export interface PointSummary {
  readonly disk: string;
  readonly sequence: number;
  readonly point: string;
  /** Time of the cut, ISO 8601 in UTC. */
  readonly time: string;
  readonly consistency: Consistency;
  /** The multi-disk point that this one is a part of; null also while a disk of the group has no point with this id. */
  readonly group: { readonly id: string; readonly name: string } | null;
  /** From the cut to the commit; null where it was not measured. */
  readonly lagMs: number | null;
  readonly volumeBytes: number;
  readonly changedBytes: number;
  readonly newBytes: number;
  readonly storedBytes: number;
}

/** A point of a list, and what keeps it from being pruned: what keeps one disk's part of a group's point keeps all of them. */
export interface ListedPoint extends PointSummary {
  /** A user's text; null: it has none. */
  readonly label: string | null;
  /** By a pin that has not expired. */
  readonly pinned: boolean;
  /** Somebody reads it, or did so until lately: a hold is cleared away by the first prune that finds its reader dead. */
  readonly held: boolean;
  /** When all of it was last read back and proved, ISO 8601 in UTC; null: never, as far as is known. */
  readonly proved: string | null;
}

export interface PointDetail extends PointSummary {
  /** A user's text; null: it has none. */
  readonly label: string | null;
  /** What keeps it from being pruned. */
  readonly pins: readonly PinSummary[];
  /** When all of it was last read back and proved, ISO 8601 in UTC; null: never, as far as is known. */
  readonly proved: string | null;
  /** Null for a point that was not cut together with others. */
  readonly group: GroupRecord | null;
  /** True when a disk of `group` has no point that bears its id: then this is a point of its own. */
  readonly groupIncomplete: boolean;
  /** How the application was brought to rest; null when none was asked to. */
  readonly application: ApplicationRecord | null;
  /** Id of the point it was made from, null for the first. */
  readonly parent: string | null;
  readonly zeroBytes: number;
  readonly dedupedBytes: number;
  /** Sorted tables whose overlay is the point's map, newest first. */
  readonly runs: readonly { readonly entries: number; readonly leaves: number; readonly bytes: number }[];
  /** The version of Tidemark that wrote it. */
  readonly writtenBy: string;
}
