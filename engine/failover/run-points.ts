/** Points that a run needs: pinned while a target is made from them, and compared with what a target has. */
import type { PointRecord } from "../store/format/documents.ts";
import type { DiskPlace, NoticedDisk } from "../store/place.ts";
import { readHead } from "../store/points/head.ts";
import { findPoint } from "../store/points/history.ts";
import { deletePin, listPins, putPin } from "../store/points/pins.ts";
import { selectPoint } from "../store/points/points.ts";

/** Keeps the point until its target is made, also while no process works on the run. */
export async function pinPoint(place: NoticedDisk, run: string, id: string): Promise<void> {
  const { store, vault, disk, signal } = place;
  const { head } = await readHead(store, vault, disk, signal);
  const point = await selectPoint(store, head, id, signal);
  await putPin({ ...place, point, name: pinName(run), untilMs: null, nowMs: Date.now() });
}

/** Removes all pins of the run, also those that an interrupted try left on other points. */
export async function unpinPoints({ store, vault, disk, signal, onNotice }: NoticedDisk, run: string): Promise<void> {
  for (const pin of await listPins(store, vault, disk, onNotice, signal))
    if (pin.document?.name === pinName(run)) await deletePin(store, pin, signal);
}

function pinName(run: string): string {
  return `failover ${run}`;
}

/** The point with this id; undefined: a prune has dropped it, or the store has forgotten it. */
export async function pointWithId(
  { store, vault, disk, signal }: DiskPlace,
  id: string,
): Promise<PointRecord | undefined> {
  const { head } = await readHead(store, vault, disk, signal);
  return await findPoint(store, head, { id }, signal);
}

/** The point that a target has, if it can be compared with one of this size. */
export async function comparablePoint(place: DiskPlace, id: string, volumeBytes: number): Promise<string | undefined> {
  return (await pointWithId(place, id))?.volumeBytes === volumeBytes ? id : undefined;
}
