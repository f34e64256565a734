/**
 * The memory of a protected disk that survives: which regions of 4 MiB may differ from its last recovery points, known durably before the
 * first write to a region goes to the disk, in the manner of DRBD's activity log. After a crash the marked regions hold every change
 * since any of the file's bases; after a clean shutdown the exact granules are known.
 *
 *     write to a region not marked ─► bit set ─► page written ─► fdatasync ─► the write may go to the disk     (once a region, not once a write)
 *     point committed ─► older bases dropped from the header ─► fdatasync ─► bits cleared ─► pages written ─► fdatasync
 *
 * Rules that the order of writes rests on:
 *   1. `isDurable` says yes only while every generation of the page that a crash could bring back has the bit. So a bit stops being
 *      durable the moment a page without it is composed, and becomes durable only when a page with it has been synced.
 *   2. Bits are cleared only when a header has been synced that names none of the bases that needed them. Bases and bits are added in any order: a
 *      younger base needs less.
 *   3. A slot is written only while the other slot holds the newest synced generation. So there is one batch of writes at a time; who comes
 *      meanwhile gathers for the next, and a hundred writers to new regions share two syncs.
 *   4. The first batch after a clean start takes the clean record away; until it is synced nothing is durable.
 *   5. Regions recently written to keep their bits although no base needs them, up to `hotRegionsMax`, so that a steady load causes no syncs.
 *
 * When the file cannot be written the disk goes on unprotected by it: everything counts as durable, the file is made void so that the next start does
 * not believe it, and `lost` tells. Should even that fail, the points committed from then on are not among its bases, with the same effect.
 */
import assert from "node:assert/strict";
import { TidemarkError } from "../../errors.ts";
import { fileError } from "../source/positional-file.ts";
import { type QuiescenceSignature, quiescenceSignature } from "../source/quiescence.ts";
import { type DirtyBitmap, regionBytes } from "./dirty-bitmap.ts";
import { writeExactArea } from "./exact-area.ts";
import { bitsSet, byteAt, clearBit, hasBit, setBit } from "./region-bits.ts";
import {
  assertPoint,
  basesMax,
  type CleanRecord,
  checkIdentity,
  encodeHeader,
  encodePage,
  headerOffset,
  headerSlotBytes,
  pageBitmapBytes,
  pageOffset,
  pageRegions,
  pagesOf,
  regionsOf,
  type TrackingIdentity,
} from "./tracking-format.ts";
import { type KnownTracking, type Recovered, recoverTracking } from "./tracking-recovery.ts";
import { openTrackingStorage, type TrackingStorage } from "./tracking-storage.ts";

export type { TrackingIdentity } from "./tracking-format.ts";
export type { Recovered } from "./tracking-recovery.ts";

export interface TrackingOptions {
  /** Regions that keep their bit although nobody needs it. Default 256, which is 1 GiB. */
  readonly hotRegionsMax?: number | undefined;
  /** What the file is kept in. Default: the file at `path`, locked. */
  readonly storage?: ((path: string) => Promise<TrackingStorage>) | undefined;
  /** How the image lies. Default: its own mark, see `restMark`. */
  readonly quiescenceSignature?: (() => Promise<QuiescenceSignature | undefined>) | undefined;
}

const hotRegionsMaxDefault = 256;

/** Callers of one batch wait on one promise. */
interface Batch {
  readonly done: Promise<void>;
  readonly resolve: () => void;
}

/** Regions that nobody needs any more, to be cleared once the header that says so is synced, unless they are touched first. */
interface Settling {
  readonly regions: Uint32Array;
  readonly tick: number;
  readonly headerSerial: number;
}

export class TrackingFile implements AsyncDisposable {
  readonly path: string;
  readonly #identity: TrackingIdentity;
  readonly #storage: TrackingStorage;
  readonly #quiescenceSignature: () => Promise<QuiescenceSignature | undefined>;
  readonly #hotRegionsMax: number;

  /** `clean`: the file on disk claims a clean shutdown. `fresh`: nothing of it is valid yet. */
  #state: "fresh" | "clean" | "live" | "lost" = "fresh";
  #lost: TidemarkError | undefined;
  #isVoid = false;
  #isRemoved = false;
  #closing: Promise<void> | undefined;

  /** Size that the header bears; the arrays may already be of a grown disk. */
  #sizeBytes: number;
  #bases: string[] = [];
  /** How many of the first bases are settled; the rest are expected. */
  #settledBases = 0;
  #headerSlot = 1;
  #headerGeneration = 0;
  /** Counts changes of what the header says, and the last of them that is synced. */
  #headerSerial = 1;
  #headerSynced = 0;

  /** Bits that the pages are to bear, and those of them that are durable; a bit a region, page by page. */
  #wanted: Uint8Array;
  #durable: Uint8Array;
  /** When each region was last touched, as a count of touches. */
  #touched: Float64Array;
  #tick = 0;
  /** Slot and generation written last of each page that exists on disk. */
  #pageSlots: { slot: number; generation: number }[] = [];
  readonly #pagesToWrite = new Set<number>();
  #settling: Settling | undefined;

  #gathering: Batch | undefined;
  #flying: Batch | undefined;
  #writing: Promise<void> | undefined;

  private constructor(path: string, identity: TrackingIdentity, storage: TrackingStorage, options: TrackingOptions) {
    this.path = path;
    this.#identity = identity;
    this.#storage = storage;
    this.#quiescenceSignature = options.quiescenceSignature ?? (() => quiescenceSignature(identity.image));
    this.#hotRegionsMax = options.hotRegionsMax ?? hotRegionsMaxDefault;
    this.#sizeBytes = identity.sizeBytes;
    this.#wanted = new Uint8Array(pagesOf(identity.sizeBytes) * pageBitmapBytes);
    this.#durable = new Uint8Array(this.#wanted.length);
    this.#touched = new Float64Array(regionsOf(identity.sizeBytes));
  }

  /**
   * Opens, or makes, the tracking file of a disk and tells what it knows. When that is `unknown` the file has been started afresh, without a
   * base. A file that cannot be written is no error: see `lost`. Errors: WRITER_ACTIVE (another process holds it), UNSUPPORTED (no locks),
   * INVALID_ARGUMENT, NO_SPACE, ACCESS_REFUSED, DEVICE_FAILED (it cannot be opened), SOURCE_UNREADABLE (the image cannot be looked at).
   */
  static async open(
    path: string,
    identity: TrackingIdentity,
    options: TrackingOptions = {},
  ): Promise<{ readonly file: TrackingFile; readonly recovered: Recovered }> {
    checkIdentity(identity);
    const storage = await (options.storage ?? openTrackingStorage)(path);
    try {
      const file = new TrackingFile(path, identity, storage, options);
      const known = await recoverTracking(path, storage, identity, file.#quiescenceSignature);
      if ("reason" in known) {
        await file.#nextBatch();
        return { file, recovered: { kind: "unknown", reason: known.reason } };
      }
      file.#adopt(known);
      if (known.header.sizeBytes < identity.sizeBytes) await file.grow(identity.sizeBytes);
      return { file, recovered: known.recovered };
    } catch (error) {
      await storage.close();
      throw error;
    }
  }

  /**
   * Why changes are no longer kept for the next start, or undefined while they are. Its detail `void` says whether the file could be
   * made void. Writes to the disk go on; the next start compares the disk with the vault.
   */
  get lost(): TidemarkError | undefined {
    return this.#lost;
  }

  /**
   * May a write to this range go to the disk? The caller asks for every write, and when the answer is yes it marks the range in whatever its
   * `isNeeded` looks at before it awaits anything. Costs a few array accesses.
   */
  isDurable(offset: number, length: number): boolean {
    if (length === 0 || this.#state === "lost") return true;
    this.#tick += 1;
    let durable = this.#state === "live";
    const last = Math.floor((offset + length - 1) / regionBytes);
    for (let region = Math.floor(offset / regionBytes); region <= last; region += 1) {
      this.#touched[region] = this.#tick;
      if (!hasBit(this.#durable, region)) durable = false;
    }
    return durable;
  }

  /** Resolves when the range's regions have been made durable; the caller then asks `isDurable` again. Never rejects for what the storage does. */
  async makeDurable(offset: number, length: number): Promise<void> {
    if (this.isDurable(offset, length)) return;
    this.#assertOpen();
    const last = Math.floor((offset + length - 1) / regionBytes);
    let mustWrite = this.#state !== "live";
    for (let region = Math.floor(offset / regionBytes); region <= last; region += 1) mustWrite = this.#want(region) || mustWrite;
    // What is wanted, not durable and on no page to be written is being written now.
    await (mustWrite ? this.#nextBatch() : this.#flying?.done);
  }

  /**
   * Resolves when it is durable that `point`, whose cut has been made, may become a base. Called before the head is swapped: whichever head a crash
   * leaves, its newest point is then known here.
   */
  async expectPoint(point: string): Promise<void> {
    assertPoint(point);
    this.#assertOpen();
    if (this.#state === "lost") {
      await this.#makeVoid();
      return;
    }
    this.#addBase(point);
    await this.#nextBatch();
  }

  /**
   * Bases older than the first of `bases` are forgotten, and with them the marks of regions that nobody needs, except the hot ones.
   * `isNeeded` is called before this returns: did anything in the region change since the cut of the first of `bases`? What was
   * written to the other regions must have been flushed by the disk since, or a power failure could take it back unseen. Returns at
   * once; the file follows.
   */
  settled(bases: readonly string[], isNeeded: (region: number) => boolean): void {
    this.#assertOpen();
    if (this.#state === "lost") return;
    // Points expected since the last of `bases` may yet turn out to be committed.
    const known = this.#bases.findLastIndex((point) => bases.includes(point));
    const expected = known < 0 ? [] : this.#bases.slice(known + 1);
    const kept = [...bases, ...expected].slice(-basesMax);
    if (kept.join() !== this.#bases.join()) this.#headerSerial += 1;
    this.#bases = kept;
    this.#settledBases = Math.max(0, kept.length - expected.length);
    const regions = this.#coldRegions(isNeeded);
    this.#settling = { regions, tick: this.#tick, headerSerial: this.#headerSerial };
    this.#kick();
  }

  /**
   * Starts afresh from `bases`, oldest first, when `regions` hold every change since any of them, as far as it is not marked already. Resolves when that is
   * durable. After the file was lost it is tried anew.
   */
  async rebase(bases: readonly string[], regions: Iterable<number>): Promise<void> {
    for (const point of bases) assertPoint(point);
    this.#assertOpen();
    if (this.#state === "lost" && !this.#isRemoved) this.#restart();
    for (const region of regions) this.#want(region);
    // The marks are durable before a base relies on them.
    await this.#nextBatch();
    this.#bases = bases.slice(-basesMax);
    this.#settledBases = this.#bases.length;
    this.#headerSerial += 1;
    await this.#nextBatch();
  }

  /** The disk has grown: what is new counts as changed since every base. Called before anything is written there. */
  async grow(sizeBytes: number): Promise<void> {
    assert(sizeBytes >= this.#sizeBytes, "a disk does not shrink");
    this.#assertOpen();
    // The exact bitmap of a clean shutdown lies where pages may come to lie.
    if (this.#state === "clean") await this.#nextBatch();
    const firstNew = Math.floor(this.#sizeBytes / regionBytes);
    this.#wanted = lengthened(this.#wanted, pagesOf(sizeBytes) * pageBitmapBytes);
    this.#durable = lengthened(this.#durable, this.#wanted.length);
    const touched = new Float64Array(regionsOf(sizeBytes));
    touched.set(this.#touched);
    this.#touched = touched;
    for (let region = firstNew; region < touched.length; region += 1) this.#want(region);
    await this.#nextBatch();
    // Only now that its pages exist does the header speak of the larger disk.
    this.#sizeBytes = sizeBytes;
    this.#headerSerial += 1;
    await this.#nextBatch();
  }

  /**
   * Saves `dirty`, exactly what changed since `base`, and closes. The disk has been flushed and is not written to any more. Without a base it
   * closes only. Errors: NO_SPACE, ACCESS_REFUSED, DEVICE_FAILED, SOURCE_UNREADABLE: it is closed then too, and the next start falls
   * back to the regions.
   */
  async closeClean(base: string | undefined, dirty: DirtyBitmap): Promise<void> {
    this.#assertOpen();
    if (base !== undefined) assertPoint(base);
    this.#closing = this.#finish(async () => {
      if (base !== undefined && this.#state !== "lost") await this.#writeClean(base, dirty);
    });
    await this.#closing;
  }

  /** Closes without saving, as a crash would, but waits for what is under way. Idempotent. */
  async close(): Promise<void> {
    if (this.#closing !== undefined) {
      // What `closeClean` failed with is told to its caller.
      await Promise.allSettled([this.#closing]);
      return;
    }
    this.#closing = this.#finish(async () => {
      if (this.#state === "lost") await this.#makeVoid();
    });
    await this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #finish(last: () => Promise<void>): Promise<void> {
    try {
      await this.#writing;
      await last();
    } finally {
      await this.#storage.close();
    }
  }

  #adopt({ header, headerPair, bits, pages, recovered }: KnownTracking): void {
    this.#state = recovered.kind === "clean" ? "clean" : "live";
    // A clean record whose bitmap could not be used still has to go before the first write.
    if (header.clean !== null) this.#state = "clean";
    this.#sizeBytes = header.sizeBytes;
    this.#bases = [...header.bases];
    this.#settledBases = header.clean === null ? header.bases.length : header.clean.base + 1;
    this.#headerSlot = headerPair.slot;
    this.#headerGeneration = headerPair.generation;
    this.#headerSynced = this.#headerSerial;
    this.#wanted.set(bits);
    this.#durable.set(bits);
    this.#pageSlots = pages.map(({ slot, generation }) => ({ slot, generation }));
  }

  #addBase(point: string): void {
    const known = this.#bases.indexOf(point);
    if (known >= 0) this.#bases.splice(known, 1);
    if (known >= 0 && known < this.#settledBases) this.#settledBases -= 1;
    // Dropping a base is always sound. The oldest expected one was given up long ago, so it goes before a settled one.
    if (this.#bases.length === basesMax) {
      const expected = this.#settledBases < basesMax;
      this.#bases.splice(expected ? this.#settledBases : 0, 1);
      if (!expected) this.#settledBases -= 1;
    }
    this.#bases.push(point);
    this.#headerSerial += 1;
  }

  /** Has the region's bit be written; false when it is durable or being written. What is wanted now is not cleared by a settling before. */
  #want(region: number): boolean {
    this.#tick += 1;
    this.#touched[region] = this.#tick;
    const page = Math.floor(region / pageRegions);
    if (hasBit(this.#wanted, region)) return this.#pagesToWrite.has(page) && !hasBit(this.#durable, region);
    setBit(this.#wanted, region);
    this.#pagesToWrite.add(page);
    return true;
  }

  /** Marked regions that are durable, not needed, and not among the `hotRegionsMax` that were touched last. */
  #coldRegions(isNeeded: (region: number) => boolean): Uint32Array {
    const marked = bitsSet(this.#wanted);
    if (marked.length <= this.#hotRegionsMax) return new Uint32Array();
    const touches = Float64Array.from(marked, (region) => this.#touched[region] ?? 0).sort();
    // Regions of one touch are equally hot; to stay within the bound, all that were touched with the first cold one are cold.
    const coldest = touches[touches.length - this.#hotRegionsMax - 1] ?? 0;
    return Uint32Array.from(
      marked.filter((region) => (this.#touched[region] ?? 0) <= coldest && hasBit(this.#durable, region) && !isNeeded(region)),
    );
  }

  #nextBatch(): Promise<void> {
    this.#gathering ??= newBatch();
    const { done } = this.#gathering;
    this.#kick();
    return done;
  }

  #kick(): void {
    this.#writing ??= this.#write();
  }

  /** The one loop that writes the file, batch after batch, until nothing is left to write. */
  async #write(): Promise<void> {
    // Requests that arrived together are answered together.
    await Promise.resolve();
    while (this.#hasWork()) {
      this.#flying = this.#gathering;
      this.#gathering = undefined;
      try {
        if (this.#state !== "lost") await (this.#state === "fresh" ? this.#writeAll() : this.#writeBatch());
      } catch (error) {
        await this.#lose(error);
      }
      this.#flying?.resolve();
      this.#flying = undefined;
      if (this.#state === "lost") {
        this.#pagesToWrite.clear();
        this.#settling = undefined;
        this.#headerSynced = this.#headerSerial;
      }
    }
    this.#writing = undefined;
  }

  /** Settles what can be settled, then tells whether anything is to be written. */
  #hasWork(): boolean {
    this.#clearCold();
    return this.#gathering !== undefined || this.#pagesToWrite.size > 0 || this.#headerSerial > this.#headerSynced;
  }

  async #writeBatch(): Promise<void> {
    const writes: Promise<void>[] = [];
    const headerSerial = this.#headerSerial;
    if (headerSerial > this.#headerSynced || this.#state === "clean") writes.push(this.#writeHeader(null));
    const pages = [...this.#pagesToWrite].map((page) => ({ page, bits: this.#compose(page) }));
    this.#pagesToWrite.clear();
    for (const { page, bits } of pages) writes.push(...this.#writePage(page, bits));
    await settleAll(writes);
    await this.#storage.datasync();
    this.#state = "live";
    this.#headerSynced = headerSerial;
    for (const { page, bits } of pages) this.#synced(page, bits);
  }

  /** Makes the file anew. Until the last sync it has no header, so a crash leaves nothing that could be believed. */
  async #writeAll(): Promise<void> {
    const headerSerial = this.#headerSerial;
    await this.#storage.write(0, new Uint8Array(2 * headerSlotBytes));
    await this.#storage.datasync();
    this.#pageSlots = [];
    this.#pagesToWrite.clear();
    for (let page = 0; page < this.#wanted.length / pageBitmapBytes; page += 1) {
      const bits = this.#compose(page);
      await settleAll(this.#writePage(page, bits));
      this.#synced(page, bits);
    }
    await this.#storage.datasync();
    await this.#writeHeader(null);
    await this.#writeHeader(null);
    await this.#storage.datasync();
    this.#state = "live";
    this.#isVoid = false;
    this.#headerSynced = headerSerial;
  }

  #writeHeader(clean: CleanRecord | null): Promise<void> {
    this.#headerSlot = 1 - this.#headerSlot;
    this.#headerGeneration += 1;
    const header = { ...this.#identity, sizeBytes: this.#sizeBytes, bases: this.#bases, clean };
    return this.#storage.write(headerOffset(this.#headerSlot), encodeHeader(this.#headerSlot, this.#headerGeneration, header));
  }

  /** A page's bits as they are to be written. Those it no longer has stop being durable here, before the write begins. */
  #compose(page: number): Uint8Array {
    const start = page * pageBitmapBytes;
    const bits = this.#wanted.slice(start, start + pageBitmapBytes);
    for (let index = 0; index < bits.length; index += 1)
      this.#durable[start + index] = byteAt(this.#durable, start + index) & byteAt(bits, index);
    return bits;
  }

  /** Writes the page's older slot, or both when the page is new. */
  #writePage(page: number, bits: Uint8Array): Promise<void>[] {
    const known = this.#pageSlots[page];
    const place = known ?? { slot: 0, generation: 0 };
    this.#pageSlots[page] = place;
    const writes: Promise<void>[] = [];
    for (let count = known === undefined ? 2 : 1; count > 0; count -= 1) {
      place.slot = 1 - place.slot;
      place.generation += 1;
      writes.push(this.#storage.write(pageOffset(page, place.slot), encodePage(page, place.slot, place.generation, bits)));
    }
    return writes;
  }

  #synced(page: number, bits: Uint8Array): void {
    const start = page * pageBitmapBytes;
    for (let index = 0; index < bits.length; index += 1)
      this.#durable[start + index] = byteAt(this.#durable, start + index) | byteAt(bits, index);
  }

  /** Takes the marks off the regions that were found cold, once the header that forgot their bases is synced. A page is composed right after. */
  #clearCold(): void {
    const settling = this.#settling;
    if (settling === undefined || this.#headerSynced < settling.headerSerial) return;
    this.#settling = undefined;
    for (const region of settling.regions) {
      if ((this.#touched[region] ?? 0) > settling.tick) continue;
      clearBit(this.#wanted, region);
      this.#pagesToWrite.add(Math.floor(region / pageRegions));
    }
  }

  async #writeClean(base: string, dirty: DirtyBitmap): Promise<void> {
    if (!this.#bases.includes(base)) this.#addBase(base);
    for (const region of dirty.regions()) this.#want(region);
    await this.#nextBatch();
    if (this.#lost !== undefined) return;
    try {
      const areaAt = pageOffset(this.#pageSlots.length, 0);
      const { areaBytes, areaCrc } = await writeExactArea(this.#storage, areaAt, dirty);
      await this.#storage.truncate(areaAt + areaBytes);
      await this.#storage.datasync();
      const rest = (await this.#quiescenceSignature()) ?? null;
      await this.#writeHeader({ base: this.#bases.indexOf(base), areaAt, areaBytes, areaCrc, rest });
      await this.#storage.datasync();
    } catch (error) {
      const remedy = "nothing is lost: the next start looks at more of the disk than it would have to";
      throw fileError(error, { code: "DEVICE_FAILED", what: `cannot save what has changed in ${this.path}`, remedy });
    }
  }

  async #lose(cause: unknown): Promise<void> {
    const remedy = "see to the state folder's file system, then start protecting the disk again";
    const failure = fileError(cause, { code: "DEVICE_FAILED", what: `cannot write the tracking file ${this.path}`, remedy });
    await this.#makeVoid();
    this.#lost = new TidemarkError(failure.code, `${failure.message}; changes to ${this.#identity.disk} are not kept for the next start`, {
      remedy: failure.remedy ?? remedy,
      detail: { ...failure.detail, void: this.#isVoid },
      cause,
    });
    this.#state = "lost";
  }

  /** Makes the file say nothing, in the first way that works. */
  async #makeVoid(): Promise<void> {
    const ways = [
      () => this.#storage.write(0, new Uint8Array(2 * headerSlotBytes)),
      () => this.#storage.truncate(0),
      async () => {
        await this.#storage.remove();
        this.#isRemoved = true;
      },
    ];
    for (const way of ways) {
      if (this.#isVoid) return;
      this.#isVoid = await way()
        .then(() => (this.#isRemoved ? undefined : this.#storage.datasync()))
        .then(
          () => true,
          // The failure that led here is told; of these only that the file may still be believed, as `void` in its detail.
          () => false,
        );
    }
  }

  #restart(): void {
    this.#state = "fresh";
    this.#lost = undefined;
    this.#isVoid = false;
    this.#wanted.fill(0);
    this.#durable.fill(0);
    this.#bases = [];
    this.#settledBases = 0;
    this.#headerSerial += 1;
  }

  #assertOpen(): void {
    if (this.#closing !== undefined) throw new TidemarkError("INTERNAL", `${this.path} is used after it was closed`);
  }
}

function newBatch(): Batch {
  let resolve = (): void => undefined;
  const done = new Promise<void>((settle) => {
    resolve = settle;
  });
  return { done, resolve };
}

/** Waits for all before it throws what the first of them failed with, so that nothing is under way afterwards. */
async function settleAll(writes: readonly Promise<void>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(writes)) {
    if (outcome.status === "rejected") throw outcome.reason;
  }
}

function lengthened(bytes: Uint8Array, length: number): Uint8Array {
  const longer = new Uint8Array(length);
  longer.set(bytes);
  return longer;
}
