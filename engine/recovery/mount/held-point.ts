/**
 * A point that is held against prune and garbage collection while it is read at random.
 *
 *     head ─► reader hold ─► manifest ─► MountedPoint
 */

import { watchedStore } from "../../disk/source/head-watch.ts";
import type { Notice } from "../../notice.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { fromHex } from "../../store/format/checksum.ts";
import type { PointRecord } from "../../store/format/documents.ts";
import { PointMap } from "../../store/map/point-map.ts";
import { readDisk } from "../../store/points/head.ts";
import { readManifest } from "../../store/points/manifest.ts";
import { selectPoint } from "../../store/points/points.ts";
import { holdToRead, type PointHold } from "../../store/points/reader-holds.ts";
import type { BlockKeeper } from "./block-keeper.ts";
import { MountedPoint } from "./mounted-point.ts";

export interface HeldPointOptions {
  readonly disk: string;
  /** As `MountOptions.point`. */
  readonly point: string;
  /** Memory for blocks, at least 16 of the vault's. */
  readonly cacheBytes: number;
  /** What it is read for, in a word. */
  readonly purpose: string;
  readonly keeper?: BlockKeeper | undefined;
  /** Told POINT_DAMAGED, HOLD_REFUSED and HOLD_LOST, the first and the last also later. */
  readonly onNotice: (notice: Notice) => void;
  readonly signal?: AbortSignal | undefined;
}

export interface HeldPoint {
  readonly record: PointRecord;
  readonly point: MountedPoint;
  readonly hold: PointHold;
  /** Ends reads under way, then the hold. Idempotent. */
  close(): Promise<void>;
}

/**
 * Opens a point and holds it.
 *
 * @throws DISK_NOT_FOUND, POINT_NOT_FOUND (also while it is being pruned), INVALID_ARGUMENT, DAMAGED,
 * ACCESS_REFUSED for a machine that only writes, and the errors of the store.
 */
export async function openHeldPoint(context: VaultContext, options: HeldPointOptions): Promise<HeldPoint> {
  const { document } = context;
  const { disk, cacheBytes, purpose, keeper, onNotice, signal } = options;
  // Worker threads start while the head is read.
  const workerPool = context.workerPool();
  const store = watchedStore(context, onNotice);
  store.keys?.assertReads();
  const head = await readDisk(store, document.vault, disk, signal);
  const record = await selectPoint(store, head, options.point, signal);
  const hold = await holdToRead({ store, vault: document.vault, disk, point: record, purpose, onNotice, signal });
  try {
    const manifest = await readManifest(store, document.vault, disk, record, signal);
    const point = new MountedPoint({
      store,
      workerPool,
      map: new PointMap(store, fromHex(document.vault), disk, manifest),
      runs: manifest.runs.length,
      blockBytes: document.blockBytes,
      cacheBytes,
      disk,
      sequence: record.sequence,
      keeper,
      onDamage: (_, error) =>
        onNotice({ code: "POINT_DAMAGED", message: `${error.message}; reads of that range fail` }),
    });
    tellLoss(hold, record.sequence, onNotice);
    const close = async (): Promise<void> => {
      try {
        await point.close();
      } finally {
        await hold.release();
      }
    };
    return { record, point, hold, close };
  } catch (error) {
    await hold.release();
    throw error;
  }
}

function tellLoss({ signal }: PointHold, sequence: number, onNotice: (notice: Notice) => void): void {
  const tell = (): void => {
    const reason: unknown = signal.reason;
    const why = reason instanceof Error ? reason.message : "the reason is not known";
    const message = `point ${sequence} is not held any more, and a collection may free what has not been read yet: ${why}`;
    onNotice({ code: "HOLD_LOST", message });
  };
  if (signal.aborted) tell();
  else signal.addEventListener("abort", tell, { once: true });
}
