/**
 * Listings of disks and points, and selection of the point that a user names.
 *
 * A listing reads the head, the pages of points that it needs, the pins, the holds and the scrub
 * log of a disk. One point in full also reads the point's manifest.
 */
import assert from "node:assert/strict";
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode, isUnreadable, TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { Consistency } from "../../volume.ts";
import type {
  ApplicationRecord,
  GroupRecord,
  HeadDocument,
  ManifestDocument,
  PointRecord,
} from "../format/documents.ts";
import { countPoints } from "../format/documents.ts";
import { decodeDiskName, disksPrefix, parseDiskObject } from "../format/names.ts";
import type { Store } from "../store.ts";
import { GroupMembers } from "./group-members.ts";
import { readDisk } from "./head.ts";
import type { PointKey } from "./history.ts";
import { findPoint, readPoints } from "./history.ts";
import { listLabels, readLabel } from "./labels.ts";
import { readManifest } from "./manifest.ts";
import { countedPins, isOf, listPins, type PinOptions, type PinSummary, type StoredPin } from "./pins.ts";
import { readProved } from "./proved.ts";
import type { PointPlace } from "./prune-fence.ts";
import { listHolds } from "./reader-holds.ts";

const headsReadAtOnce = 8;

/**
 * `group`: the group point that the point is a part of. The group of its own record may be
 * incomplete; see `GroupMembers`.
 */
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

/**
 * Names that are in use as a disk's, sorted: those that have a head, with or without points, and
 * those that have manifests and lost their head.
 */
export async function diskNames(store: Store, signal?: AbortSignal): Promise<string[]> {
  const { disks, headless } = await findDisks(store, signal);
  return [...disks, ...headless].sort();
}

/**
 * Names of the disks, sorted, and of those that have manifests but no head: it is lost, or was
 * created during the listing.
 */
export async function findDisks(
  store: Store,
  signal?: AbortSignal,
): Promise<{ readonly disks: string[]; readonly headless: string[] }> {
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

/**
 * How many disks the vault has: those with points, and those whose head cannot be read. Errors:
 * those of the store.
 */
export async function countDisks(store: Store, vault: string, signal?: AbortSignal): Promise<number> {
  let count = 0;
  await forEachAtOnce(await diskNames(store, signal), headsReadAtOnce, async (disk) => {
    try {
      await readDisk(store, vault, disk, signal);
    } catch (error) {
      if (hasCode(error, "DISK_NOT_FOUND")) return;
      if (!isUnreadable(error)) throw error;
    }
    count += 1;
  });
  return count;
}

/** All disks with points, sorted by name. Errors: DAMAGED, those of the store. */
export async function listDisks(store: Store, members: GroupMembers): Promise<DiskSummary[]> {
  const disks: DiskSummary[] = [];
  for (const disk of await diskNames(store)) {
    try {
      disks.push(await diskSummary(members, disk));
    } catch (error) {
      if (!hasCode(error, "DISK_NOT_FOUND")) throw error;
    }
  }
  return disks;
}

/** Errors: DISK_NOT_FOUND, DAMAGED. */
export async function diskSummary(members: GroupMembers, disk: string): Promise<DiskSummary> {
  const head = await members.head(disk);
  const latest = head.points.at(-1);
  assert(latest !== undefined, "a disk has points");
  return {
    disk,
    points: countPoints(head),
    latest: pointSummary(disk, latest, await members.groupOf(disk, latest)),
  };
}

/** The point that a user names, as an operation on it takes it. Errors: DISK_NOT_FOUND, POINT_NOT_FOUND. */
export async function placePoint(
  store: Store,
  vault: string,
  { disk, point: selector, onNotice = () => undefined, signal }: PinOptions,
): Promise<{ readonly place: PointPlace; readonly summary: PointSummary }> {
  const head = await readDisk(store, vault, disk.normalize("NFC"), signal);
  const point = await selectPoint(store, head, selector, signal);
  return {
    place: { store, vault, disk: head.disk, point, onNotice, signal },
    summary: pointSummary(head.disk, point),
  };
}

/** A point in full. Errors: DISK_NOT_FOUND, POINT_NOT_FOUND, DAMAGED, those of the store. */
export async function readPointDetail(
  store: Store,
  vault: string,
  disk: string,
  selector: string,
  signal?: AbortSignal,
): Promise<PointDetail> {
  const members = new GroupMembers({ store, vault, signal });
  const head = await members.head(disk.normalize("NFC"));
  const point = await selectPoint(store, head, selector, signal);
  const manifest = await readManifest(store, vault, head.disk, point, signal);
  const pins = await listPins(store, vault, head.disk, () => undefined, signal);
  const times = await readProved(store, vault, head.disk, signal);
  const label = await readLabel(store, vault, head.disk, point);
  return await pointDetail(members, head.disk, point, manifest, pins, times.of(point), label);
}

/**
 * The newest points of a disk, oldest first. Errors: DISK_NOT_FOUND, INVALID_ARGUMENT, DAMAGED (see
 * `PointsOptions.onNotice`).
 */
export async function listPoints(
  store: Store,
  members: GroupMembers,
  disk: string,
  options: PointsOptions,
): Promise<ListedPoint[]> {
  const { limit, onNotice, signal } = options;
  if (limit !== undefined && (!Number.isInteger(limit) || limit < 1)) {
    throw new TidemarkError("INVALID_ARGUMENT", `a list cannot have ${String(limit)} points`, {
      remedy: "give a limit of 1 or more",
    });
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
    newestFirst.push({
      ...summary,
      label: labels.get(point.id) ?? null,
      pinned,
      held,
      proved: isoOrNull(times.of(point)),
    });
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
 * The point that `selector` names: a sequence number, an id, `latest`, or an ISO 8601 time, which
 * names the newest point not younger. Errors: POINT_NOT_FOUND, INVALID_ARGUMENT, DAMAGED when the
 * page that may hold it cannot be read.
 */
export async function selectPoint(
  store: Store,
  head: HeadDocument,
  selector: string,
  signal?: AbortSignal,
): Promise<PointRecord> {
  const key = pointKey(selector);
  const found = key === "latest" ? head.points.at(-1) : await findPoint(store, head, key, signal);
  if (found !== undefined) return found;
  const known = `it has ${String(countPoints(head))}, the newest is ${String(head.points.at(-1)?.sequence)}`;
  throw new TidemarkError(
    "POINT_NOT_FOUND",
    `disk ${JSON.stringify(head.disk)} has no point ${JSON.stringify(selector)}: ${known}`,
    {
      remedy: "`tidemark points list` shows its points",
      detail: { disk: head.disk, selector },
    },
  );
}

/** What a selector names a point by. Errors: INVALID_ARGUMENT. */
export function pointKey(text: string): PointKey | "latest" {
  const selector = text.trim();
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

/** A disk of a listing. */
export interface DiskSummary {
  readonly disk: string;
  /** Number of committed points. */
  readonly points: number;
  /** Newest point. */
  readonly latest: PointSummary;
}

/** How to look at what a vault holds. */
export interface ListingOptions {
  /** Gets a notice for each disk whose list of points is older than this machine has seen it. */
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** How to list points. */
export interface PointsOptions {
  /** Number of points, counted from the newest, at least 1. Default: all. */
  readonly limit?: number | undefined;
  /**
   * Gets a notice for each page of points and each pin that cannot be read. Absent: the listing
   * ends with DAMAGED.
   */
  readonly onNotice?: ((notice: Notice) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** A committed point, as its head lists it. */
export interface PointSummary {
  readonly disk: string;
  /** Rises from point to point of a disk, from 1. */
  readonly sequence: number;
  /** Id: 32 hexadecimal digits. */
  readonly point: string;
  /** Time of the cut, ISO 8601 in UTC. */
  readonly time: string;
  readonly consistency: Consistency;
  /** The group point that this point is a part of; null: none, or a member disk has no point of it. */
  readonly group: { readonly id: string; readonly name: string } | null;
  /** From the cut to the commit, in ms; null when it was not measured. */
  readonly lagMs: number | null;
  /** Size of the disk. */
  readonly volumeBytes: number;
  /** Bytes of the disk that the point changed, in whole granules of 4 KiB. */
  readonly changedBytes: number;
  /** Of these, the bytes that the vault did not hold before. */
  readonly newBytes: number;
  /** Bytes that were written for the new ones, after compression. */
  readonly storedBytes: number;
}

/** A point of a listing. A pin or a hold of one member keeps the whole group point. */
export interface ListedPoint extends PointSummary {
  /** Free text of a user; null when there is none. */
  readonly label: string | null;
  /** Whether a pin that has not expired keeps the point. */
  readonly pinned: boolean;
  /** Whether a reader holds the point; a dead reader does until the next prune. */
  readonly held: boolean;
  /**
   * When the whole point was last read back and proved, ISO 8601 in UTC; null when that is not
   * known.
   */
  readonly proved: string | null;
}

/** A point in full. */
export interface PointDetail extends PointSummary {
  /** Free text of a user; null when there is none. */
  readonly label: string | null;
  /** The pins of the point, expired ones included. */
  readonly pins: readonly PinSummary[];
  /**
   * When the whole point was last read back and proved, ISO 8601 in UTC; null when that is not
   * known.
   */
  readonly proved: string | null;
  /** The group with which the point was cut; null for a point of one disk. */
  readonly group: GroupRecord | null;
  /** True when a member disk of `group` has no point of it. */
  readonly groupIncomplete: boolean;
  /** How the hooks froze and thawed the application; null when there was no hook to call. */
  readonly application: ApplicationRecord | null;
  /** Id of the point that this one builds on; null for the first. */
  readonly parent: string | null;
  /** Of the changed bytes, those that are zeros. */
  readonly zeroBytes: number;
  /** Of the changed bytes, those that the vault held already. */
  readonly dedupedBytes: number;
  /** The sorted runs whose overlay is the point's map, newest first. */
  readonly runs: readonly { readonly entries: number; readonly leaves: number; readonly bytes: number }[];
  /** The version of Tidemark that wrote the point. */
  readonly writtenBy: string;
}
