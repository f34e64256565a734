/** Lists disks and points, and finds the point that a user means. */
import { TidemarkError } from "../errors.ts";
import type { HeadDocument, PointRecord } from "../format/documents.ts";
import { decodeDiskName, disksPrefix } from "../format/names.ts";
import type { Store } from "../store.ts";
import { readHead } from "./seat.ts";
import type { DiskSummary, PointSummary } from "./summaries.ts";

export function pointSummary(disk: string, point: PointRecord): PointSummary {
  return {
    disk,
    sequence: point.sequence,
    point: point.id,
    time: new Date(point.timeMs).toISOString(),
    consistency: point.consistency,
    volumeBytes: point.volumeBytes,
    changedBytes: point.changedBytes,
    newBytes: point.newBytes,
    storedBytes: point.storedBytes,
  };
}

/** Names of the vault's disks, sorted. */
export async function diskNames(store: Store, signal?: AbortSignal): Promise<string[]> {
  const disks: string[] = [];
  for await (const { name } of store.list(disksPrefix, { signal })) {
    const match = /^disks\/([^/]+)\/head$/.exec(name);
    const disk = match?.[1] === undefined ? undefined : decodeDiskName(match[1]);
    if (disk !== undefined) disks.push(disk);
  }
  return disks.sort();
}

export async function diskSummary(store: Store, vault: string, disk: string): Promise<DiskSummary> {
  const { head } = await readHead(store, vault, disk);
  const latest = head.points.at(-1);
  return { disk, points: head.points.length, ...(latest === undefined ? {} : { latest: pointSummary(disk, latest) }) };
}

/**
 * The point that `selector` names: a sequence number, an id, `latest`, or an ISO 8601 time, which names the newest point not
 * younger. Errors: POINT_NOT_FOUND, INVALID_ARGUMENT.
 */
export function selectPoint(head: HeadDocument, selector: string): PointRecord {
  const { points } = head;
  const found = findPoint(points, selector.trim());
  if (found !== undefined) return found;
  const known =
    points.length === 0 ? "it has none yet" : `it has ${String(points.length)}, the newest is ${String(points.at(-1)?.sequence)}`;
  throw new TidemarkError("POINT_NOT_FOUND", `disk ${JSON.stringify(head.disk)} has no point ${JSON.stringify(selector)}: ${known}`, {
    remedy: "`tidemark points list` shows its points",
    detail: { disk: head.disk, selector },
  });
}

function findPoint(points: readonly PointRecord[], selector: string): PointRecord | undefined {
  if (selector === "latest") return points.at(-1);
  if (/^\d{1,15}$/.test(selector)) return points.find((point) => point.sequence === Number(selector));
  if (/^[0-9a-f]{32}$/i.test(selector)) return points.find((point) => point.id === selector.toLowerCase());
  const isoTime = /^\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}(\.\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?$/;
  const timeMs = isoTime.test(selector) ? Date.parse(selector) : Number.NaN;
  if (Number.isNaN(timeMs)) {
    throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(selector)} does not name a point`, {
      remedy: "give a sequence number, a point's id, `latest`, or a time such as 2026-05-01T12:00:00Z",
    });
  }
  return points.findLast((point) => point.timeMs <= timeMs);
}
