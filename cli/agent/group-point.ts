/**
 * Group point on demand: a barrier over participants, found from the points that they commit.
 *
 * Each disk's own loop takes part in the group's barriers. A disk that was already on its way to a
 * barrier answers a request one barrier later than the others. So it is not enough to ask every
 * disk: the answer is a barrier that was held on request and of which every disk has committed its
 * point.
 */
import { type PointSummary, TidemarkError } from "../../engine/index.ts";

/** A disk of the group that can be asked. */
export interface GroupDisk {
  readonly name: string;
  /** True when its answer shows that the barrier was of the wanted kind. */
  readonly isDecisive: boolean;
  readonly point: () => Promise<PointSummary>;
}

/**
 * A disk that is late is asked again. A group without a common barrier after these rounds has a
 * disk that cannot take part.
 */
const roundsMax = 3;

/**
 * Gives the points of one barrier, in the order of `disks`. `committed` calls its listener for
 * every point that a disk commits meanwhile, and gives the function that ends this. Errors: those
 * of a disk's point, CUT_TIMED_OUT when the disks have no common barrier.
 */
export async function groupPoint(
  group: string,
  disks: readonly GroupDisk[],
  committed: (listener: (point: PointSummary) => void) => () => void,
): Promise<readonly PointSummary[]> {
  const shares = new Map<string, Map<string, PointSummary>>();
  const note = (point: PointSummary): void => {
    if (point.group === null) return;
    const barrier = shares.get(point.group.id) ?? new Map<string, PointSummary>();
    shares.set(point.group.id, barrier.set(point.disk, point));
  };
  const end = committed(note);
  try {
    const wanted: string[] = [];
    let asked = disks;
    for (let round = 0; round < roundsMax; round += 1) {
      for (const { point, isDecisive } of await askAll(asked)) {
        note(point);
        if (isDecisive && point.group !== null) wanted.push(point.group.id);
      }
      const complete = wanted.map((id) => sharesOf(disks, shares.get(id))).find((points) => points !== undefined);
      if (complete !== undefined) return complete;
      const newest = shares.get(wanted.at(-1) ?? "");
      asked = newest === undefined ? disks : disks.filter(({ name }) => !newest.has(name));
    }
  } finally {
    end();
  }
  throw new TidemarkError("CUT_TIMED_OUT", `the disks of the group ${group} took part in no common barrier`, {
    remedy: "find the disk that is paused, resyncing or waiting with `tidemark agent status`, then try again",
    detail: { group },
  });
}

async function askAll(
  disks: readonly GroupDisk[],
): Promise<readonly { readonly point: PointSummary; readonly isDecisive: boolean }[]> {
  const outcomes = await Promise.allSettled(
    disks.map(async ({ point, isDecisive }) => ({ point: await point(), isDecisive })),
  );
  const failure = outcomes.find((outcome) => outcome.status === "rejected");
  if (failure !== undefined) throw failure.reason;
  return outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : []));
}

/** The points of all disks, if all are there. */
function sharesOf(
  disks: readonly GroupDisk[],
  barrier: ReadonlyMap<string, PointSummary> | undefined,
): readonly PointSummary[] | undefined {
  const points = disks.flatMap(({ name }) => barrier?.get(name) ?? []);
  return points.length === disks.length ? points : undefined;
}
