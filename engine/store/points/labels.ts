/**
 * Labels: free text that a user puts on a recovery point, such as "before the upgrade".
 *
 * A label is an object `disks/<disk>/labels/<sequence>-<point id>`, so a point has one at most. It
 * is put, replaced and deleted at any time and needs no writer lease. Unlike a pin it does not keep
 * the point: the prune that drops the point deletes the label, and labels that an interrupted prune
 * left behind.
 *
 * The name holds the point's id, so a label never passes to another point that is given the same
 * number by a store that went back in time.
 *
 * Cost: listing the points of a disk reads each of its labels, at most `labelsMax`.
 */
import { forEachAtOnce } from "../../concurrency.ts";
import { hasCode, TidemarkError } from "../../errors.ts";
import type { Notice, NoticeOptions } from "../../notice.ts";
import type { PointRecord } from "../format/documents.ts";
import { documentBytesMax } from "../format/documents.ts";
import { decodeLabel, encodeLabel, labelCharactersMax, labelText } from "../format/keeping.ts";
import { sidecarName, sidecarPrefix, sidecarSequence } from "../format/names.ts";
import type { DiskPlace } from "../place.ts";
import type { Store } from "../store.ts";
import { unknownOutcomesMax, unreachable } from "../store.ts";

/** Most labels of a disk: each is read when its points are listed. */
const labelsMax = 4_096;
const readsAtOnce = 8;

/** What identifies a point among those of its disk. */
type PointIdentity = Pick<PointRecord, "sequence" | "id">;

export interface LabelOptions extends NoticeOptions {
  readonly disk: string;
  /** Sequence number, id, `latest`, or an ISO time (the newest point not younger). */
  readonly point: string;
  /** At most 200 characters in one line. Empty: the point has no label any more. */
  readonly text: string;
}

/** Throws INVALID_ARGUMENT when `text` cannot be a label. The empty text is none, and passes. */
export function checkLabel(text: string): void {
  if (text === "" || labelText.test(text)) return;
  throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(text)} cannot be the label of a point`, {
    remedy: `use at most ${String(labelCharactersMax)} characters without control characters`,
  });
}

/**
 * Labels a point that has just been committed, or is about to be. A label that cannot be written is a
 * notice, because the point stays.
 */
export async function labelNewPoint(
  store: Store,
  vault: string,
  { disk, sequence, point: id }: { readonly disk: string; readonly sequence: number; readonly point: string },
  options: NoticeOptions & { readonly label?: string | undefined },
): Promise<void> {
  const { label: text, onNotice, signal } = options;
  if (text === undefined || text === "") return;
  try {
    await putLabel({ store, vault, disk, point: { sequence, id }, text, nowMs: Date.now(), signal });
  } catch (error) {
    if (!(error instanceof TidemarkError)) throw error;
    const message = `the label of point ${String(sequence)} could not be written: ${error.message}`;
    onNotice?.({ code: "LABEL_NOT_SAVED", message });
  }
}

/**
 * Puts a label on a point in place of the one that it has, or removes it when `text` is empty.
 * Errors: INVALID_ARGUMENT, those of the store.
 */
export async function putLabel(
  options: DiskPlace & { readonly point: PointIdentity; readonly text: string; readonly nowMs: number },
): Promise<void> {
  const { store, vault, disk, point, text, nowMs, signal } = options;
  checkLabel(text);
  const name = labelName(disk, point);
  if (text === "") {
    await store.delete(name, { signal });
    return;
  }
  await refuseTooMany(store, disk, name, signal);
  const bytes = encodeLabel({ vault, disk, sequence: point.sequence, point: point.id, text, createdMs: nowMs });
  let failure: unknown;
  for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
    try {
      await store.replace(name, bytes, await store.etagOf(name, { signal }), { signal });
      return;
    } catch (error) {
      // Another client has put a label meanwhile: the later one stays.
      if (!hasCode(error, "CONDITION_FAILED")) throw error;
      failure = error;
    }
  }
  throw unreachable(`writing ${name}`, failure);
}

/**
 * The labels of a disk by point id. One that cannot be read is told of with LABEL_DAMAGED and left
 * out. Errors: those of the store.
 */
export async function listLabels(
  store: Store,
  vault: string,
  disk: string,
  onNotice: (notice: Notice) => void,
  signal: AbortSignal | undefined,
): Promise<ReadonlyMap<string, string>> {
  const labels = new Map<string, string>();
  await forEachAtOnce(await labelNames(store, disk, signal), readsAtOnce, async (name) => {
    const there = await store.find(name, documentBytesMax, { signal });
    if (there === undefined) return; // removed since it was listed
    try {
      const { point, text } = decodeLabel(there.bytes, name, { vault, disk });
      labels.set(point, text);
    } catch (error) {
      if (!hasCode(error, "DAMAGED", "FORMAT_UNSUPPORTED")) throw error;
      onNotice({
        code: "LABEL_DAMAGED",
        message: `${error.message}; put the label anew with \`tidemark points label\``,
      });
    }
  });
  return labels;
}

/** The label of one point, or null. Errors: DAMAGED, FORMAT_UNSUPPORTED, those of the store. */
export async function readLabel(
  store: Store,
  vault: string,
  disk: string,
  point: PointIdentity,
): Promise<string | null> {
  const name = labelName(disk, point);
  const there = await store.find(name, documentBytesMax);
  return there === undefined ? null : decodeLabel(there.bytes, name, { vault, disk }).text;
}

/**
 * Deletes labels whose point is gone. `points`: all that the disk had before they were dropped,
 * oldest first, as far as they can be read (`isWhole` when all can); `isDropped` tells those that
 * have gone since. Errors: those of the store.
 */
export async function removeIdleLabels(options: {
  readonly store: Store;
  readonly disk: string;
  readonly points: readonly PointIdentity[];
  readonly isWhole: boolean;
  readonly isDropped: (sequence: number) => boolean;
  readonly signal?: AbortSignal | undefined;
}): Promise<void> {
  const { store, disk, points, isWhole, isDropped, signal } = options;
  const names = await labelNames(store, disk, signal);
  if (names.length === 0) return;
  const bySequence = new Map(points.map((point) => [point.sequence, point]));
  const newest = points.at(-1)?.sequence ?? 0;
  for (const name of names) {
    const sequence = sidecarSequence(name) ?? 0;
    const point = bySequence.get(sequence);
    // A point that is not listed is gone, unless it is younger than the head, or stands in a page
    // that cannot be read.
    const isGone =
      point === undefined
        ? isWhole && sequence < newest
        : isDropped(sequence) || (sequence < newest && name !== labelName(disk, point));
    if (isGone) await store.delete(name, { signal });
  }
}

function labelName(disk: string, { sequence, id }: PointIdentity): string {
  return sidecarName("labels", disk, sequence, id);
}

async function labelNames(store: Store, disk: string, signal: AbortSignal | undefined): Promise<string[]> {
  const names = await store.names(sidecarPrefix("labels", disk), { signal });
  return names.filter((name) => sidecarSequence(name) !== undefined);
}

async function refuseTooMany(store: Store, disk: string, name: string, signal: AbortSignal | undefined): Promise<void> {
  const names = await labelNames(store, disk, signal);
  if (names.length < labelsMax || names.includes(name)) return;
  throw new TidemarkError(
    "INVALID_ARGUMENT",
    `disk ${JSON.stringify(disk)} has ${String(names.length)} labels, and may have no more`,
    {
      remedy: 'remove labels: `tidemark points label --disk DISK --point POINT --text ""`',
      detail: { disk },
    },
  );
}
