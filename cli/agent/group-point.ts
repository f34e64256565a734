/**
 * A point of a whole group on demand. Each disk's own loop comes to the group's meeting, and one that was just on its way there may answer
 * its request one meeting later than the others. So it is not enough to ask every disk: what counts is a meeting that was held on our
 * request and of which every disk has committed its share.
 */
import { type PointSummary, TidemarkError } from "../../engine/index.ts";

/** A disk of the group that can be asked. */
export interface GroupDisk {
  readonly name: string;
  /** True when its answer tells that the meeting was of the kind that is wanted. */
  readonly isDecisive: boolean;
  readonly point: () => Promise<PointSummary>;
}

/** Those who come too late are asked again; a group that has not come together by then has a member that cannot. */
const roundsMax = 3;

/**
 * Gives the points of one meeting, in the order of `disks`. `committed` tells of every point that any disk commits meanwhile; it gives the function
 * that ends this. Errors: those of a disk's point, CUT_TIMED_OUT when the disks do not come together.
 */
export async function groupPoint(
  group: string,
  disks: readonly GroupDisk[],
  committed: (listener: (point: PointSummary) => void) => () => void,
): Promise<readonly PointSummary[]> {
  const shares = new Map<string, Map<string, PointSummary>>();
  const note = (point: PointSummary): void => {
    if (point.group === null) return;
    const meeting = shares.get(point.group.id) ?? new Map<string, PointSummary>();
    shares.set(point.group.id, meeting.set(point.disk, point));
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
  throw new TidemarkError("CUT_TIMED_OUT", `the disks of the group ${group} did not come together`, {
    remedy: "look with `tidemark agent status` which of them is paused, compared or waiting; each has taken points of its own",
    detail: { group },
  });
}

async function askAll(disks: readonly GroupDisk[]): Promise<readonly { readonly point: PointSummary; readonly isDecisive: boolean }[]> {
  const outcomes = await Promise.allSettled(disks.map(async ({ point, isDecisive }) => ({ point: await point(), isDecisive })));
  const failure = outcomes.find((outcome) => outcome.status === "rejected");
  if (failure !== undefined) throw failure.reason;
  return outcomes.flatMap((outcome) => (outcome.status === "fulfilled" ? [outcome.value] : []));
}

/** The points of all disks, if all are there. */
function sharesOf(
  disks: readonly GroupDisk[],
  meeting: ReadonlyMap<string, PointSummary> | undefined,
): readonly PointSummary[] | undefined {
  const points = disks.flatMap(({ name }) => meeting?.get(name) ?? []);
  return points.length === disks.length ? points : undefined;
}
