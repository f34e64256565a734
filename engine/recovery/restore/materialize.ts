/**
 * Materialize (restore): writes a point out as a disk image. Every chunk is proved before its
 * bytes are written; zeros are passed to the target as ranges, and stay holes where it can leave
 * them.
 */

import { watchedStore } from "../../disk/source/head-watch.ts";
import { LocalState } from "../../disk/source/local-state.ts";
import { throwIfAborted } from "../../errors.ts";
import { fingerprintBytes, granuleBytes } from "../../limits.ts";
import type { PointConsumer, ProvedBatch } from "../../pipeline/point-reader.ts";
import { chunkDamaged, PointReader, pieceIsProved, pieceOutGranule } from "../../pipeline/point-reader.ts";
import type { VaultContext } from "../../pipeline/vault-context.ts";
import { type OperationOptions, paced } from "../../progress.ts";
import { fromHex } from "../../store/format/checksum.ts";
import type { ManifestDocument, PointRecord } from "../../store/format/documents.ts";
import { DataShare } from "../../store/map/data-share.ts";
import { mapDifferences } from "../../store/map/map-diff.ts";
import { LeafCache, PointMap } from "../../store/map/point-map.ts";
import { readDisk } from "../../store/points/head.ts";
import { readManifest } from "../../store/points/manifest.ts";
import { selectPoint } from "../../store/points/points.ts";
import { holdAllToRead } from "../../store/points/reader-holds.ts";
import type { ImageFormat, MaterializeMode, RestoreTarget } from "./target.ts";
import { openTarget } from "./targets.ts";

const printWords = fingerprintBytes / 4;

/**
 * Writes a point out as an image.
 *
 * @throws `DISK_NOT_FOUND`, `POINT_NOT_FOUND`, the `TARGET_…` codes, `DAMAGED` with the extent in
 * `detail`, `NO_SPACE`, `INTERRUPTED`, and the errors of the store.
 */
export async function materialize(
  context: VaultContext,
  options: MaterializeOptions & {
    /**
     * Id of the point whose content the target has, byte for byte. Then only the ranges are written
     * in which the points differ.
     */
    readonly since?: string | undefined;
    /** Opens the target in place of `to`, which then is only its name. */
    readonly into?: ((point: PointRecord) => Promise<RestoreTarget>) | undefined;
  },
): Promise<MaterializeSummary> {
  const startedAt = performance.now();
  const { document, sink } = context;
  const disk = options.disk.normalize("NFC");
  const onNotice = options.onNotice ?? (() => undefined);
  const store = watchedStore(context, onNotice);
  store.keys?.assertReads();
  const head = await readDisk(store, document.vault, disk, options.signal);
  const format = options.format ?? (options.to.startsWith("blob:") ? "vhd" : "raw");
  const point = await selectPoint(store, head, options.point, options.signal);
  const { since } = options;
  const base = since === undefined ? undefined : await selectPoint(store, head, since, options.signal);
  const reading = { store, vault: document.vault, disk, purpose: "materialize", onNotice, signal: options.signal };
  await using hold = await holdAllToRead(reading, base === undefined ? [point] : [point, base]);
  const signal = options.signal === undefined ? hold.signal : AbortSignal.any([options.signal, hold.signal]);
  const state = new LocalState({ folder: context.stateFolder, vault: document.vault, disk, onNotice });
  const manifestOf = async (one: PointRecord): Promise<ManifestDocument> =>
    await readManifest(store, document.vault, disk, one, signal);
  const [manifest, from] = await Promise.all([manifestOf(point), base && manifestOf(base)]);
  const source = await state.source();
  const opened = await options.into?.(point);
  const target =
    opened ??
    (await openTarget({
      to: options.to,
      format,
      mode: options.mode ?? "create",
      volumeBytes: point.volumeBytes,
      vaultId: document.vault,
      point: point.id,
      pointTimeMs: point.timeMs,
      sink,
      sourceIdentity: source,
      sourceMode: source?.mode,
      overwriteSource: options.overwriteSource === true,
      signal,
    }));
  if (target.resumeAt > 0) {
    onNotice({
      code: "RESUMED",
      message: `${target.description}: resumes after ${String(target.resumeAt)} bytes that an interrupted run had written`,
    });
  }
  const reader = new PointReader({ store, workerPool: context.workerPool(), signal });
  const report = paced(options.onProgress);
  const vaultId = fromHex(document.vault);
  const cache = new LeafCache();
  const map = new PointMap(store, vaultId, disk, manifest, cache);
  let share: DataShare | undefined;
  const writer = new ImageWriter(target, disk, point, (granule, position) => {
    if (share === undefined) return;
    const { totalBytes } = share;
    const doneBytes = share.bytesBelow(granule);
    report({ phase: "materialize", doneBytes, totalBytes, transferredBytes: reader.bytesRead }, position);
  });
  try {
    if (options.onProgress !== undefined) share = await DataShare.of(map, manifest.runs.length, signal);
    if (from === undefined) await reader.read(map, Math.floor(target.resumeAt / granuleBytes), writer);
    else {
      const differences = mapDifferences({ store, vaultId, disk, from, to: manifest, cache, signal });
      await reader.readRanges(map, differences, writer);
    }
    throwIfAborted(signal);
    await writer.settle();
    await target.finish();
    return {
      disk,
      point: point.id,
      sequence: point.sequence,
      target: options.to,
      format,
      volumeBytes: point.volumeBytes,
      bytesWritten: target.bytesWritten,
      bytesRead: reader.bytesRead,
      elapsedMs: Math.round(performance.now() - startedAt),
    };
  } catch (error) {
    await Promise.allSettled([writer.settle()]);
    await target.abandon();
    throw error;
  }
}

/** Passes a point's content to a target: neighbouring data in one write, zeros as ranges. */
class ImageWriter implements PointConsumer {
  readonly #target: RestoreTarget;
  readonly #disk: string;
  readonly #point: PointRecord;
  readonly #report: (granule: number, position?: "last") => void;
  #checkpoint: Promise<void> | undefined;
  #checkpointFailure: Error | undefined;

  constructor(
    target: RestoreTarget,
    disk: string,
    point: PointRecord,
    report: (granule: number, position?: "last") => void,
  ) {
    this.#target = target;
    this.#disk = disk;
    this.#point = point;
    this.#report = report;
  }

  async data(batch: ProvedBatch): Promise<void> {
    const writes: Promise<void>[] = [];
    // Granules [from, end) of the volume, which lie from `out` on in the slab, all zero or all not.
    let from = 0;
    let end = 0;
    let out = 0;
    let isZero = false;
    const flush = (): void => {
      if (end > from) writes.push(isZero ? this.zeros(from, end) : this.#write(from, end, batch.slab.out, out));
    };
    for (let at = batch.from; at < batch.end; at += 1) {
      const piece = batch.order[at] ?? 0;
      const start = batch.pieces.starts[piece] ?? 0;
      const length = batch.pieces.lengths[piece] ?? 0;
      if (!pieceIsProved(batch, at)) {
        const offset = start * granuleBytes;
        await Promise.allSettled(writes);
        throw chunkDamaged(
          this.#disk,
          String(this.#point.sequence),
          offset,
          length * granuleBytes,
          batch.segment,
          batch.failure,
        );
      }
      const pieceOut = pieceOutGranule(batch, at);
      for (let granule = 0; granule < length; granule += 1) {
        const zero = granuleIsZero(batch, pieceOut + granule);
        if (start + granule === end && zero === isZero && pieceOut + granule === out + end - from) {
          end += 1;
          continue;
        }
        flush();
        from = start + granule;
        end = from + 1;
        out = pieceOut + granule;
        isZero = zero;
      }
    }
    flush();
    await settleAll(writes);
  }

  async #write(from: number, end: number, bytes: Uint8Array, outGranule: number): Promise<void> {
    const offset = from * granuleBytes;
    const length = Math.min(end * granuleBytes, this.#point.volumeBytes) - offset;
    await this.#target.write(offset, bytes.subarray(outGranule * granuleBytes, outGranule * granuleBytes + length));
  }

  async zeros(from: number, end: number): Promise<void> {
    const offset = from * granuleBytes;
    await this.#target.zero(offset, Math.min(end * granuleBytes, this.#point.volumeBytes) - offset);
  }

  /** Starts a checkpoint unless one is under way: the disk writes while more is fetched. */
  async done(granule: number): Promise<void> {
    const doneBytes = Math.min(granule * granuleBytes, this.#point.volumeBytes);
    if (this.#checkpointFailure !== undefined) throw this.#checkpointFailure;
    this.#checkpoint ??= this.#target
      .checkpoint(doneBytes)
      .catch((error: unknown) => {
        this.#checkpointFailure = error instanceof Error ? error : new Error(String(error));
      })
      .finally(() => {
        this.#checkpoint = undefined;
      });
    this.#report(granule, doneBytes === this.#point.volumeBytes ? "last" : undefined);
  }

  /** Waits for a checkpoint that is under way. Errors: what it ended with. */
  async settle(): Promise<void> {
    await this.#checkpoint;
    if (this.#checkpointFailure !== undefined) throw this.#checkpointFailure;
  }
}

function granuleIsZero(batch: ProvedBatch, outGranule: number): boolean {
  const words = batch.slab.newPrintWords;
  const at = outGranule * printWords;
  return words[at] === 0 && words[at + 1] === 0 && words[at + 2] === 0 && words[at + 3] === 0;
}

/** Waits for all, then throws the first failure: no write uses the slab when it is released. */
async function settleAll(work: readonly Promise<void>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(work)) if (outcome.status === "rejected") throw outcome.reason;
}

/** How `Vault.materialize` works. */
export interface MaterializeOptions extends OperationOptions {
  readonly disk: string;
  /** Sequence number, id, `latest`, or an ISO time (the newest point not younger). */
  readonly point: string;
  /** Path of a file or block device, or `blob:NAME` for a page blob in the vault's container. */
  readonly to: string;
  /** Default: `vhd` for `blob:`, else `raw`. */
  readonly format?: ImageFormat | undefined;
  /** Default: `create`. A block device needs `in-place`, and `in-place` needs an existing target. */
  readonly mode?: MaterializeMode | undefined;
  /** Allows to write over the source of this disk. Default: false, TARGET_IS_SOURCE. */
  readonly overwriteSource?: boolean | undefined;
}

/** What was written. */
export interface MaterializeSummary {
  readonly disk: string;
  /** Id of the point. */
  readonly point: string;
  readonly sequence: number;
  readonly target: string;
  readonly format: ImageFormat;
  readonly volumeBytes: number;
  /** Bytes written to the target; zeros left as holes and unchanged ranges do not count. */
  readonly bytesWritten: number;
  /** Bytes read from the store. */
  readonly bytesRead: number;
  readonly elapsedMs: number;
}
