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
 * Each operation reads heads through a store that compares them, so no reader of heads can be
 * missed. A collection refuses an older head: it would free what the missing points need.
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
import type { Sink } from "../../sink.ts";
import type { HeadDocument, PointRecord } from "../../store/format/documents.ts";
import { hex32 } from "../../store/format/documents.ts";
import { encodeDiskName, headName } from "../../store/format/names.ts";
import { decode, encode } from "../../store/format/signed-text.ts";
import { Store, storeRegressed } from "../../store/store.ts";
import { aheadToldMs } from "../../timing.ts";
import { makeFolders, readPlain, replacePlain } from "./plain-file.ts";

const fileName = "newest-seen";
const fileBytesMax = 4096;

type Seen = Pick<PointRecord, "sequence" | "epoch" | "id" | "timeMs">;

/** Where a vault is, and where its newest points are remembered. */
export interface WatchedPlace {
  readonly sink: Sink;
  /** Absent, nothing is remembered. */
  readonly stateFolder: string | undefined;
  readonly document: { readonly vault: string };
}

/**
 * A store for one operation that compares each head that is read, or swapped, with the newest point
 * that this machine has seen of the disk. A newer point is remembered. An older head is a notice
 * STORE_REGRESSED, or, where it is `refused`, the error of that name: what frees space must not take
 * it for the list of what is needed. A newest point that is dated far ahead of the clock is a notice
 * POINTS_DATED_AHEAD. Each is told once for each disk. A state folder that cannot be read or written
 * remembers nothing, and is no error.
 */
export function watchedStore(
  { sink, stateFolder, document: { vault } }: WatchedPlace,
  onNotice: (notice: Notice) => void = () => undefined,
  older: "told" | "refused" = "told",
): Store {
  const told = new Set<string>();
  const tellOnce = (disk: string, notice: Notice): void => {
    const key = `${notice.code} ${disk}`;
    if (told.has(key)) return;
    told.add(key);
    onNotice(notice);
  };
  const store = new Store(sink, async (head) => {
    const { disk } = head;
    const newest = head.points.at(-1);
    const ahead = aheadNotice(disk, newest, store.nowMs);
    if (ahead !== undefined) tellOnce(disk, ahead);
    if (stateFolder === undefined) return 0;
    const file = fileOf(stateFolder, vault, disk);
    const seen = await newestSeen({ stateFolder, document: { vault } }, disk);
    if (seen !== undefined && isOlder(head, seen)) {
      const fact = olderFact(disk, newest, seen);
      if (older === "refused") throw olderRefused(disk, fact);
      publish("store.regressed", { object: headName(disk), message: fact });
      const message = `${fact}; \`tidemark vault repair\` lists missing points again that are still there, and the next point of the disk ships what is not`;
      tellOnce(disk, { code: "STORE_REGRESSED", message });
    } else if (newest !== undefined && newest.id !== seen?.id) {
      const { sequence, epoch, id, timeMs } = newest;
      await unlessUnusable(async () => {
        await makeFolders(stateFolder, vault, encodeDiskName(disk));
        await replacePlain(file, encode("seen", { vault, disk, sequence, epoch, id, timeMs }).bytes);
      });
    }
    return seen?.epoch ?? 0;
  });
  return store;
}

/** The newest point that this machine has seen of a disk, as far as it remembers. */
export async function newestSeen(
  { stateFolder, document: { vault } }: Omit<WatchedPlace, "sink">,
  disk: string,
): Promise<Seen | undefined> {
  if (stateFolder === undefined) return undefined;
  const file = fileOf(stateFolder, vault, disk);
  return await unlessUnusable(async () => decodeSeen(await readPlain(file, fileBytesMax), file, vault, disk));
}

function fileOf(stateFolder: string, vault: string, disk: string): string {
  return path.join(stateFolder, vault, encodeDiskName(disk), fileName);
}

/** A clock was ahead when the newest point was made, or this one is behind. */
function aheadNotice(disk: string, newest: Seen | undefined, nowMs: number): Notice | undefined {
  if (newest === undefined || newest.timeMs - nowMs <= aheadToldMs) return undefined;
  const message =
    `the newest point of disk ${JSON.stringify(disk)} is dated ${new Date(newest.timeMs).toISOString()}, which is later than now: ` +
    "check the clock of this machine, and of the one that made the point; later points are dated right after it, and retention goes by the clock";
  return { code: "POINTS_DATED_AHEAD", message };
}

function isOlder({ epoch, points }: HeadDocument, seen: Seen): boolean {
  const newest = points.at(-1);
  if (newest === undefined) return epoch <= seen.epoch;
  if (newest.epoch !== seen.epoch) return newest.epoch < seen.epoch;
  if (newest.sequence !== seen.sequence) return newest.sequence < seen.sequence;
  return newest.id !== seen.id; // two points of one name: the store went back between them
}

function olderFact(disk: string, newest: Seen | undefined, seen: Seen): string {
  const named = ({ sequence, timeMs }: Seen): string => `${String(sequence)} of ${new Date(timeMs).toISOString()}`;
  const lists = newest === undefined ? "lists no point" : `ends with point ${named(newest)}`;
  return (
    `the store went back in time: the list of points of disk ${JSON.stringify(disk)} ${lists}, ` +
    `but this machine has seen point ${named(seen)}`
  );
}

function olderRefused(disk: string, fact: string): TidemarkError {
  return storeRegressed(headName(disk), `${fact}; nothing is freed, because points that are not listed may need it`, {
    remedy:
      "run `tidemark vault repair`, which lists again the missing points that are still there; if it finds none, run " +
      "`tidemark replicate SOURCE --disk NAME` to go on without them, or `tidemark disks remove --disk NAME`; then `tidemark collect` again",
  });
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
