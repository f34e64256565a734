/** Points that a run needs: pinned while a target is made from them, and compared with what a target has. */
import { hasCode } from "../errors.ts";
import type { Notice } from "../notice.ts";
import { readHead } from "../store/points/head.ts";
import { deletePin, listPins, putPin } from "../store/points/pins.ts";
import { selectPoint } from "../store/points/points.ts";
import type { Store } from "../store/store.ts";

interface PointPlace {
  readonly store: Store;
  readonly vault: string;
  readonly disk: string;
  readonly signal: AbortSignal;
  readonly onNotice: (notice: Notice) => void;
}

/** Keeps the point until its target is made, also while no process works on the run. */
export async function pinPoint(place: PointPlace, run: string, id: string): Promise<void> {
  const { store, vault, disk, signal } = place;
  const { head } = await readHead(store, vault, disk, signal);
  const point = await selectPoint(store, head, id, signal);
  await putPin({ ...place, point, name: pinName(run), untilMs: null, nowMs: Date.now() });
}

/** Removes all pins of the run, also those that an interrupted try left on other points. */
export async function unpinPoints({ store, vault, disk, signal, onNotice }: PointPlace, run: string): Promise<void> {
  for (const pin of await listPins(store, vault, disk, onNotice, signal))
    if (pin.document?.name === pinName(run)) await deletePin(store, pin, signal);
}

function pinName(run: string): string {
  return `failover ${run}`;
}

/** The point that a target has, if it can be compared with one of this size. */
export async function comparablePoint(
  { store, vault, disk, signal }: PointPlace,
  id: string,
  volumeBytes: number,
): Promise<string | undefined> {
  try {
    const { head } = await readHead(store, vault, disk, signal);
    const point = await selectPoint(store, head, id, signal);
    return point.volumeBytes === volumeBytes ? id : undefined;
  } catch (error) {
    if (hasCode(error, "POINT_NOT_FOUND")) return undefined;
    throw error;
  }
}
