/**
 * Choice of the recovery point that a failover takes its disks to.
 *
 * | choice | point |
 * |---|---|
 * | `latest`, `latest-processed` | the newest committed one |
 * | `latest-app`, `latest-crash` | the newest of that consistency |
 * | `common` | of several disks: the newest point that all of them cut at one barrier |
 * | sequence number, id, time | as everywhere; of a group, a time names the newest common point not younger |
 *
 * `latest` differs from `latest-processed` before the choice: the caller asks the source for a last
 * point first.
 *
 * Invariant: the members of a group get points of one barrier, for every choice.
 */
import { TidemarkError } from "../errors.ts";
import { shellWord } from "../shell-word.ts";
import type { PointRecord } from "../store/format/documents.ts";
import { GroupMembers } from "../store/points/group-members.ts";
import { readPoints } from "../store/points/history.ts";
import { diskNames, pointKey, selectPoint } from "../store/points/points.ts";
import type { Store } from "../store/store.ts";

interface ChoicePlace {
  readonly store: Store;
  readonly vault: string;
  readonly signal?: AbortSignal | undefined;
}

/** A disk and the point that was chosen for it. */
export interface ChosenPoint {
  readonly disk: string;
  readonly point: PointRecord;
}

const consistencies: Readonly<Record<string, readonly string[]>> = {
  latest: ["app", "crash", "fuzzy"],
  "latest-processed": ["app", "crash", "fuzzy"],
  common: ["app", "crash", "fuzzy"],
  "latest-app": ["app"],
  // An application-consistent point is crash-consistent too.
  "latest-crash": ["app", "crash"],
};

/**
 * The disks that are members of a group by the newest point that bears the group's name. Errors:
 * DISK_NOT_FOUND.
 */
export async function disksOfGroup(place: ChoicePlace, group: string): Promise<readonly string[]> {
  const { store, vault, signal } = place;
  const members = new GroupMembers({ store, vault, signal });
  let newest: PointRecord | undefined;
  for (const disk of await diskNames(store, signal)) {
    for await (const point of readPoints(store, await members.head(disk), { signal })) {
      if (point.group?.name !== group) continue;
      if (newest === undefined || point.timeMs > newest.timeMs) newest = point;
      break;
    }
  }
  if (newest?.group != null) return newest.group.disks;
  throw new TidemarkError("DISK_NOT_FOUND", `no disk of the vault has a point of the group ${JSON.stringify(group)}`, {
    remedy: "name the disks with `--disk`, once for each",
    detail: { group },
  });
}

/**
 * Chooses a point for each disk. `isGroup`: only points that all of them have in common count.
 * Errors: DISK_NOT_FOUND, POINT_NOT_FOUND, INVALID_ARGUMENT, DAMAGED.
 */
export async function choosePoints(
  place: ChoicePlace,
  disks: readonly string[],
  selector: string,
  isGroup: boolean,
): Promise<ChosenPoint[]> {
  const { store, vault, signal } = place;
  const members = new GroupMembers({ store, vault, signal });
  const [first = ""] = disks;
  if (isGroup || selector === "common") {
    const point = await commonPoint(place, members, disks, selector);
    const { group } = point;
    const chosen: ChosenPoint[] = [{ disk: first, point }];
    for (const disk of disks.slice(1)) {
      for await (const other of readPoints(store, await members.head(disk), { signal })) {
        if (other.group?.id !== group?.id) continue;
        chosen.push({ disk, point: other });
        break;
      }
    }
    return chosen;
  }
  const chosen: ChosenPoint[] = [];
  for (const disk of disks) {
    const head = await members.head(disk);
    const wanted = consistencies[selector];
    const point =
      wanted === undefined
        ? await selectPoint(store, head, selector, signal)
        : await newestOf(store, members, disk, (candidate) => wanted.includes(candidate.consistency), signal);
    if (point === undefined) throw noPoint(disk, selector);
    chosen.push({ disk, point });
  }
  return chosen;
}

async function newestOf(
  store: Store,
  members: GroupMembers,
  disk: string,
  fits: (point: PointRecord) => boolean | Promise<boolean>,
  signal: AbortSignal | undefined,
): Promise<PointRecord | undefined> {
  for await (const point of readPoints(store, await members.head(disk), { signal }))
    if (await fits(point)) return point;
  return undefined;
}

/** The point of the first disk that is a part of the common point. */
async function commonPoint(
  { store, signal }: ChoicePlace,
  members: GroupMembers,
  disks: readonly string[],
  selector: string,
): Promise<PointRecord> {
  const [first = ""] = disks;
  const fits = await commonFits(members, first, selector, async () => {
    const { id } = await selectPoint(store, await members.head(first), selector, signal);
    return id;
  });
  const point = await newestOf(
    store,
    members,
    first,
    async (candidate) => {
      const { group } = candidate;
      const isCommon = group !== null && disks.every((disk) => group.disks.includes(disk));
      return isCommon && (await members.groupOf(first, candidate)) !== null && (await fits(candidate));
    },
    signal,
  );
  if (point === undefined) {
    throw new TidemarkError(
      "POINT_NOT_FOUND",
      `the disks ${disks.map((disk) => JSON.stringify(disk)).join(", ")} have no common point ${JSON.stringify(selector)}`,
      { remedy: "choose another point, or run a failover of each disk alone", detail: { selector } },
    );
  }
  return point;
}

/**
 * Whether a point of the first disk is what `selector` names. A time names a group point by the
 * earliest time that one of its parts bears, so every time that a listing shows of it names it.
 */
async function commonFits(
  members: GroupMembers,
  first: string,
  selector: string,
  idOf: () => Promise<string>,
): Promise<(point: PointRecord) => boolean | Promise<boolean>> {
  const wanted = consistencies[selector];
  if (wanted !== undefined) return ({ consistency }) => wanted.includes(consistency);
  const key = pointKey(selector);
  if (typeof key === "object" && "timeMs" in key)
    return async (point) => ((await members.cutMsOf(first, point)) ?? Number.POSITIVE_INFINITY) <= key.timeMs;
  // A number or an id names one point alone.
  const id = await idOf();
  return (point) => point.id === id;
}

function noPoint(disk: string, selector: string): TidemarkError {
  return new TidemarkError("POINT_NOT_FOUND", `disk ${JSON.stringify(disk)} has no point ${JSON.stringify(selector)}`, {
    remedy: `\`tidemark points list --disk ${shellWord(disk)}\` shows its points`,
    detail: { disk, selector },
  });
}
