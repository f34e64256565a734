/**
 * Proves points: every chunk that a point needs is fetched, decompressed and compared with its digest; with a source, the point's
 * bytes are compared with it too. A chunk that several points share is fetched once. Damage does not end the work: it is collected,
 * with the extents of the points that it concerns.
 */

import { readPoints } from "../control/history.ts";
import { diskNames, selectPoint } from "../control/points.ts";
import { paced } from "../control/progress.ts";
import { readHead } from "../control/seat.ts";
import type { VaultContext } from "../control/session.ts";
import { readManifest } from "../control/session.ts";
import type { Damage, VerifyOptions, VerifySummary } from "../control/summaries.ts";
import { hasCode, TidemarkError, throwIfAborted } from "../errors.ts";
import { fromHex } from "../format/checksum.ts";
import type { HeadDocument, PointRecord } from "../format/documents.ts";
import { storedLength } from "../format/frame.ts";
import { granuleBytes } from "../limits.ts";
import { PointMap } from "../map/point-map.ts";
import type { Crew } from "../pipeline/crew.ts";
import { Store } from "../store.ts";
import type { Extent, Volume } from "../volume.ts";
import type { PointConsumer, ProvedBatch } from "./point-reader.ts";
import { PointReader, pieceIsProved, pieceOutGranule } from "./point-reader.ts";
import { ProvedPlaces } from "./proved-places.ts";

/** Damage listed in full; beyond it, a vault is beyond listing. */
const damagesMax = 10_000;

/** Errors: DISK_NOT_FOUND, POINT_NOT_FOUND, SOURCE_…, INTERRUPTED and those of the store. Damage is no error: it is in the summary. */
export async function verify(context: VaultContext, options: VerifyOptions): Promise<VerifySummary> {
  return await new Verification(context, options, context.crew()).run();
}

class Verification {
  readonly #context: VaultContext;
  readonly #options: VerifyOptions;
  readonly #store: Store;
  readonly #reader: PointReader;
  readonly #places = new ProvedPlaces();
  readonly #damaged: Damage[] = [];
  #checkedPoints = 0;
  #checkedBytes = 0;

  constructor(context: VaultContext, options: VerifyOptions, crew: Crew) {
    this.#context = context;
    this.#options = options;
    this.#store = new Store(context.sink);
    this.#reader = new PointReader({ store: this.#store, crew, signal: options.signal });
  }

  async run(): Promise<VerifySummary> {
    const startedAt = performance.now();
    const { disk, source } = this.#options;
    if (source !== undefined && disk === undefined) {
      throw new TidemarkError("INVALID_ARGUMENT", "a source can be compared with one disk only", { remedy: "name the disk" });
    }
    const disks = disk === undefined ? await diskNames(this.#store, this.#options.signal) : [disk.normalize("NFC")];
    for (const name of disks) await this.#verifyDisk(name);
    return {
      checkedPoints: this.#checkedPoints,
      checkedChunks: this.#reader.chunksProved,
      checkedBytes: this.#checkedBytes,
      damaged: this.#damaged,
      elapsedMs: Math.round(performance.now() - startedAt),
    };
  }

  async #verifyDisk(disk: string): Promise<void> {
    const { signal, source } = this.#options;
    // Newest first: that is the one a user would need first, and the first to be reported.
    for await (const point of this.#choosePoints(disk)) {
      throwIfAborted(signal);
      await this.#verifyPoint(disk, point, source);
    }
  }

  async *#choosePoints(disk: string): AsyncGenerator<PointRecord> {
    const { signal, source } = this.#options;
    const selector = this.#options.point ?? (source === undefined ? undefined : "latest");
    const head = await this.#readHead(disk);
    if (head === undefined) return;
    if (selector !== undefined) {
      yield await selectPoint(this.#store, head, selector, signal);
      return;
    }
    const onDamage = (error: TidemarkError): void => {
      if (!isDamage(error)) throw error;
      this.#noteObject(disk, error);
    };
    yield* readPoints(this.#store, head, { onDamage, signal });
  }

  /** Undefined, and noted, when it is damaged and one of many. */
  async #readHead(disk: string): Promise<HeadDocument | undefined> {
    try {
      return (await readHead(this.#store, this.#context.document.vault, disk, this.#options.signal)).head;
    } catch (error) {
      if (!isDamage(error) || this.#options.disk !== undefined) throw error;
      this.#noteObject(disk, error);
      return undefined;
    }
  }

  /** Notes that an object which lists points cannot be read: how many points that concerns, and which, is not known. */
  #noteObject(disk: string, error: DamageError): void {
    const code = hasCode(error.cause, "OBJECT_NOT_FOUND") ? "OBJECT_NOT_FOUND" : error.code;
    this.#note({ disk, sequence: null, point: null, extent: null, object: objectOf(error), code, message: error.message });
  }

  async #verifyPoint(disk: string, point: PointRecord, source: Volume | undefined): Promise<void> {
    const { signal } = this.#options;
    const { document } = this.#context;
    this.#checkedPoints += 1;
    try {
      const manifest = await readManifest(this.#store, document.vault, disk, point, signal);
      const map = new PointMap(this.#store, fromHex(document.vault), disk, manifest);
      const sourceBytes = source === undefined ? 0 : await source.sizeBytes();
      if (source !== undefined && sourceBytes !== point.volumeBytes) {
        const message = `${source.description} has ${String(sourceBytes)} bytes, the point has ${String(point.volumeBytes)}`;
        this.#note({
          disk,
          sequence: point.sequence,
          point: point.id,
          extent: null,
          object: source.description,
          code: "SOURCE_DIFFERS",
          message,
        });
      }
      const report = paced(this.#options.onProgress);
      const consumer: PointConsumer = {
        data: async (batch) => {
          this.#checkBatch(disk, point, batch);
          if (source !== undefined) await this.#compareBatch(disk, point, batch, source, sourceBytes);
        },
        zeros: async (from, end) => {
          if (source !== undefined) await this.#compareZeros(disk, point, from, end, source, sourceBytes);
        },
        done: (granule) => {
          const doneBytes = Math.min(granule * granuleBytes, point.volumeBytes);
          const progress = { doneBytes, totalBytes: point.volumeBytes, transferredBytes: this.#reader.bytesRead };
          report({ phase: "verify", ...progress }, doneBytes === point.volumeBytes ? "last" : undefined);
          return Promise.resolve();
        },
        // With a source every byte is needed; without, a chunk that has been judged for another point is not fetched again.
        ...(source === undefined
          ? {
              skip: (segment: string, offset: number): boolean =>
                this.#places.has(segment, offset) && !this.#places.isDamaged(segment, offset),
            }
          : {}),
      };
      await this.#reader.read(map, 0, consumer);
    } catch (error) {
      if (!isDamage(error)) throw error;
      const { sequence, id } = point;
      this.#note({ disk, sequence, point: id, extent: null, object: objectOf(error), code: error.code, message: error.message });
    }
  }

  /** Notes each piece whose chunk is damaged, and which chunks have been judged. */
  #checkBatch(disk: string, point: PointRecord, batch: ProvedBatch): void {
    for (let at = batch.from; at < batch.end; at += 1) {
      const piece = batch.order[at] ?? 0;
      const leaf = batch.pieces.leaves[piece];
      const entry = batch.pieces.entries[piece] ?? 0;
      const offset = leaf?.offsets[entry] ?? 0;
      const proved = pieceIsProved(batch, at);
      this.#places.add(batch.segment, offset, proved ? "proved" : "damaged");
      const lengthBytes = (batch.pieces.lengths[piece] ?? 0) * granuleBytes;
      if (proved) {
        this.#checkedBytes += lengthBytes;
        continue;
      }
      const extent = { offset: (batch.pieces.starts[piece] ?? 0) * granuleBytes, length: lengthBytes };
      const stored = storedLength(leaf?.storedWords[entry] ?? 0);
      const why = batch.failure?.message ?? `its ${String(stored)} bytes from ${String(offset)} on do not give the chunk that they must`;
      this.#note({
        disk,
        sequence: point.sequence,
        point: point.id,
        extent,
        object: batch.segment,
        code: hasCode(batch.failure, "OBJECT_NOT_FOUND") ? "OBJECT_NOT_FOUND" : "DAMAGED",
        message: `bytes ${String(extent.offset)} to ${String(extent.offset + extent.length)} cannot be read back: ${batch.segment}: ${why}`,
      });
    }
  }

  async #compareBatch(disk: string, point: PointRecord, batch: ProvedBatch, source: Volume, sourceBytes: number): Promise<void> {
    for (let at = batch.from; at < batch.end; at += 1) {
      if (!pieceIsProved(batch, at)) continue;
      const piece = batch.order[at] ?? 0;
      const offset = (batch.pieces.starts[piece] ?? 0) * granuleBytes;
      const length = Math.min((batch.pieces.lengths[piece] ?? 0) * granuleBytes, point.volumeBytes - offset, sourceBytes - offset);
      if (length <= 0) continue;
      const actual = Buffer.alloc(length);
      await source.read(offset, actual);
      const out = pieceOutGranule(batch, at) * granuleBytes;
      if (actual.compare(batch.slab.out, out, out + length) !== 0) this.#noteDifference(disk, point, source, offset, length);
    }
  }

  async #compareZeros(disk: string, point: PointRecord, from: number, end: number, source: Volume, sourceBytes: number): Promise<void> {
    const limit = Math.min(end * granuleBytes, point.volumeBytes, sourceBytes);
    const buffer = Buffer.alloc(Math.min(1024 * 1024, Math.max(0, limit - from * granuleBytes)));
    const zeros = Buffer.alloc(buffer.length);
    for await (const extent of source.allocated?.(sourceBytes) ?? [{ offset: 0, length: sourceBytes }]) {
      if (extent.offset >= limit) break;
      for (let offset = Math.max(extent.offset, from * granuleBytes); offset < Math.min(extent.offset + extent.length, limit); ) {
        const length = Math.min(buffer.length, extent.offset + extent.length - offset, limit - offset);
        await source.read(offset, buffer.subarray(0, length));
        if (buffer.compare(zeros, 0, length, 0, length) !== 0) this.#noteDifference(disk, point, source, offset, length);
        offset += length;
      }
    }
  }

  #noteDifference(disk: string, point: PointRecord, source: Volume, offset: number, length: number): void {
    this.#note({
      disk,
      sequence: point.sequence,
      point: point.id,
      extent: { offset, length },
      object: source.description,
      code: "SOURCE_DIFFERS",
      message: `bytes ${String(offset)} to ${String(offset + length)} of ${source.description} differ from the point`,
    });
  }

  /** Damage in one place that continues what was noted last is one damage. */
  #note(damage: Damage): void {
    const last = this.#damaged.at(-1);
    const extent = last === undefined ? undefined : joined(last, damage);
    if (last === undefined || extent === undefined) {
      if (this.#damaged.length < damagesMax) this.#damaged.push(damage);
      return;
    }
    const message = `bytes ${String(extent.offset)} to ${String(extent.offset + extent.length)} of ${damage.object} differ from the point`;
    this.#damaged[this.#damaged.length - 1] = { ...last, extent, message };
  }
}

/** The extent of two differences that touch, or undefined. */
function joined(last: Damage, next: Damage): Extent | undefined {
  if (last.extent === null || next.extent === null || last.code !== "SOURCE_DIFFERS" || next.code !== "SOURCE_DIFFERS") return undefined;
  const touches = last.extent.offset + last.extent.length === next.extent.offset && last.point === next.point;
  return touches ? { offset: last.extent.offset, length: last.extent.length + next.extent.length } : undefined;
}

type DamageError = TidemarkError & { readonly code: "DAMAGED" | "OBJECT_NOT_FOUND" | "FORMAT_UNSUPPORTED" };

function isDamage(error: unknown): error is DamageError {
  return hasCode(error, "DAMAGED", "OBJECT_NOT_FOUND", "FORMAT_UNSUPPORTED");
}

function objectOf(error: TidemarkError): string {
  const { object } = error.detail;
  return typeof object === "string" ? object : "unknown";
}
