/**
 * Rollback detection: the state folder remembers the newest point that this machine has seen of
 * each disk, so that an older head in its place is noticed (a store that went back in time, a
 * folder put back from a backup, a head that was exchanged).
 *
 * Points of a disk are ordered by the epoch of their writer, then by sequence number. The newest
 * point of a disk never falls in this order: a commit adds a higher one, a prune keeps it, and
 * after a removal the next disk of the name begins with a higher epoch than the removed one had.
 * A removal itself takes a higher epoch, so a head without points is older only when its epoch is
 * not above that of the point seen.
 *
 * The remembered point is never lowered. A writer takes an epoch above it, so its next point is
 * newer than all that this machine has seen, and the disk goes on from there.
 *
 * Invariant: a head that some writer of the disk swapped in after the remembered one is not told as
 * older. The file is a cache: without it, or without a state folder, nothing is noticed.
 */
import path from "node:path";
import { publish } from "../../diagnostics.ts";
import { systemCode, TidemarkError } from "../../errors.ts";
import type { Notice } from "../../notice.ts";
import type { HeadDocument, PointRecord } from "../../store/format/documents.ts";
import { hex32 } from "../../store/format/documents.ts";
import { encodeDiskName, headName } from "../../store/format/names.ts";
import { decode, encode } from "../../store/format/signed-text.ts";
import { aheadToldMs } from "../../timing.ts";
import { makeFolders, readPlain, replacePlain } from "./plain-file.ts";

const fileName = "newest-seen";
const fileBytesMax = 4096;

type Seen = Pick<PointRecord, "sequence" | "epoch" | "id" | "timeMs">;

/** Where a vault's newest points are remembered. */
export interface SeenPlace {
  /** Absent, nothing is remembered. */
  readonly stateFolder: string | undefined;
  readonly document: { readonly vault: string };
}

/**
 * A newest point that is dated far ahead of the clock is a notice POINTS_DATED_AHEAD.
 *
 * Compares a head that was read, or swapped, with the newest point that this machine has seen of the
 * disk. An older head is a notice STORE_REGRESSED; a newer one is remembered. Returns the highest
 * epoch of a point that was seen, 0 when none is known. Never fails: a state folder that cannot be
 * read or written remembers nothing.
 */
export async function noteHead(
  { stateFolder, document: { vault } }: SeenPlace,
  head: HeadDocument,
  onNotice: (notice: Notice) => void = () => undefined,
): Promise<number> {
  const newest = head.points.at(-1);
  noteAhead(head.disk, newest, onNotice);
  if (stateFolder === undefined) return 0;
  const file = path.join(stateFolder, vault, encodeDiskName(head.disk), fileName);
  const seen = await unlessUnusable(async () =>
    decodeSeen(await readPlain(file, fileBytesMax), file, vault, head.disk),
  );
  if (seen !== undefined && isOlder(head, seen)) {
    const message = olderMessage(head.disk, newest, seen);
    publish("store.regressed", { object: headName(head.disk), message });
    onNotice({ code: "STORE_REGRESSED", message });
  } else if (newest !== undefined && newest.id !== seen?.id) {
    const { sequence, epoch, id, timeMs } = newest;
    await unlessUnusable(async () => {
      await makeFolders(stateFolder, vault, encodeDiskName(head.disk));
      await replacePlain(file, encode("seen", { vault, disk: head.disk, sequence, epoch, id, timeMs }).bytes);
    });
  }
  return seen?.epoch ?? 0;
}

/** A clock was ahead when the newest point was made, or this one is behind. */
function noteAhead(disk: string, newest: Seen | undefined, onNotice: (notice: Notice) => void): void {
  if (newest === undefined || newest.timeMs - Date.now() <= aheadToldMs) return;
  const message =
    `the newest point of disk ${JSON.stringify(disk)} is dated ${new Date(newest.timeMs).toISOString()}, which is later than now: ` +
    "check the clock of this machine, and of the one that made the point; later points are dated right after it, and retention goes by the clock";
  onNotice({ code: "POINTS_DATED_AHEAD", message });
}

/** `noteHead` for every head that an operation reads. */
export function headWatch(
  place: SeenPlace,
  onNotice: (notice: Notice) => void = () => undefined,
): (head: HeadDocument) => Promise<number> {
  return async (head) => await noteHead(place, head, onNotice);
}

function isOlder({ epoch, points }: HeadDocument, seen: Seen): boolean {
  const newest = points.at(-1);
  if (newest === undefined) return epoch <= seen.epoch;
  if (newest.epoch !== seen.epoch) return newest.epoch < seen.epoch;
  if (newest.sequence !== seen.sequence) return newest.sequence < seen.sequence;
  return newest.id !== seen.id; // two points of one name: the store went back between them
}

function olderMessage(disk: string, newest: Seen | undefined, seen: Seen): string {
  const named = ({ sequence, timeMs }: Seen): string => `${String(sequence)} of ${new Date(timeMs).toISOString()}`;
  const lists = newest === undefined ? "lists no point" : `ends with point ${named(newest)}`;
  return (
    `the store went back in time: the list of points of disk ${JSON.stringify(disk)} ${lists}, ` +
    `but this machine has seen point ${named(seen)}; the next point of the disk ships again what is missing`
  );
}

/** Errors: DAMAGED, FORMAT_UNSUPPORTED. */
function decodeSeen(bytes: Uint8Array, file: string, vault: string, disk: string): Seen | undefined {
  const { fields } = decode("seen", bytes, file);
  const isThisDisk = fields.text("vault", hex32) === vault && fields.text("disk", { test: () => true }) === disk;
  const seen = {
    sequence: fields.sequence("sequence"),
    epoch: fields.epoch("epoch"),
    id: fields.text("id", hex32),
    timeMs: fields.time("timeMs"),
  };
  return isThisDisk ? seen : undefined;
}

async function unlessUnusable<Result>(work: () => Promise<Result>): Promise<Result | undefined> {
  try {
    return await work();
  } catch (error) {
    if (!(error instanceof TidemarkError) && systemCode(error) === undefined) throw error;
    return undefined;
  }
}
