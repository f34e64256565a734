/**
 * Tracking file: a durable write-intent log of a protected disk, in the manner of DRBD's activity
 * log. It stores which regions of 4 MiB may differ from the last recovery points. A region is
 * marked durably before the first write to it goes to the disk. After a crash the marked regions
 * hold every change since any of the file's bases; after a clean shutdown the exact granules are
 * known.
 *
 *     write to an unmarked region ─► set bit ─► write page ─► fdatasync ─► the write may go to the disk
 *     point committed ─► drop older bases from the header ─► fdatasync ─► clear bits ─► write pages ─► fdatasync
 *
 * The cost is one sync for each region, not for each write.
 *
 * Rules that the order of writes rests on:
 *   1. `isDurable` says yes only while every generation of the page that a crash could bring back
 *      has the bit. So a bit stops being durable the moment a page without it is composed, and
 *      becomes durable when a page with it has been synced.
 *   2. Bits are cleared only after a header has been synced that names none of the bases that
 *      needed them. Bases and bits are added in any order: a younger base needs less.
 *   3. A slot is written only while the other slot holds the newest synced generation. So there is
 *      one batch of writes at a time. Callers that arrive meanwhile gather for the next batch, and
 *      a hundred writers to new regions share two syncs.
 *   4. The first batch after a clean start removes the clean record; until then nothing is durable.
 *   5. Recently written regions keep their bits although no base needs them, up to `hotRegionsMax`,
 *      so that a steady load causes no syncs.
 *
 * If the file cannot be written, the disk goes on without it: every region counts as durable, the
 * file is made void so that the next start does not believe it, and `lost` tells why. If voiding
 * fails too, the points committed from then on are not among its bases, with the same effect.
 */
import assert from "node:assert/strict";
import { TidemarkError } from "../../errors.ts";
import { fileError } from "../source/positional-file.ts";
import { type QuiescenceSignature, quiescenceSignature } from "../source/quiescence.ts";
import { BaseList } from "./base-list.ts";
import { type DirtyBitmap, regionBytes } from "./dirty-bitmap.ts";
import { writeExactArea } from "./exact-area.ts";
import { type ColdRegions, RegionMarks } from "./region-marks.ts";
import {
  assertPoint,
  type CleanRecord,
  checkIdentity,
  encodeHeader,
  encodePage,
  headerOffset,
  headerSlotBytes,
  pageOffset,
  type TrackingIdentity,
} from "./tracking-format.ts";
import { type KnownTracking, type Recovered, recoverTracking } from "./tracking-recovery.ts";
import { makeVoid, openTrackingStorage, type TrackingStorage } from "./tracking-storage.ts";

export interface TrackingOptions {
  /** Regions that keep their bit although no base needs it. Default 256, which is 1 GiB. */
  readonly hotRegionsMax?: number | undefined;
  /** What the file is kept in. Default: the file at `path`, locked. */
  readonly storage?: ((path: string) => Promise<TrackingStorage>) | undefined;
  /** Quiescence signature of the image. Default: see `quiescenceSignature`. */
  readonly quiescenceSignature?: (() => Promise<QuiescenceSignature | undefined>) | undefined;
}

const hotRegionsMaxDefault = 256;

/** Callers of one batch wait on one promise. */
interface Batch {
  readonly done: Promise<void>;
  readonly resolve: () => void;
}

/** Regions to be cleared once the header that forgets their bases is synced. */
interface Settling {
  readonly cold: ColdRegions;
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
  readonly #bases = new BaseList();
  #headerSlot = 1;
  #headerGeneration = 0;
  /** Counts changes of what the header says, and the last of them that is synced. */
  #headerSerial = 1;
  #headerSynced = 0;

  readonly #marks: RegionMarks;
  /** Slot and generation written last of each page that exists on disk. */
  #pageSlots: { slot: number; generation: number }[] = [];
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
    this.#marks = new RegionMarks(identity.sizeBytes);
  }

  /**
   * Opens, or makes, the tracking file of a disk and tells what it knows. When that is `unknown`
   * the file has been started afresh, without a base. A file that cannot be written is no error:
   * see `lost`. Errors: WRITER_ACTIVE (another process holds it), UNSUPPORTED (no locks),
   * INVALID_ARGUMENT, NO_SPACE, ACCESS_REFUSED, DEVICE_FAILED (it cannot be opened),
   * SOURCE_UNREADABLE (the image cannot be looked at).
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
   * Why changes are no longer kept for the next start, or undefined while they are. Its detail
   * `void` says whether the file could be made void. Writes to the disk go on; the next start
   * compares the disk with the vault.
   */
  get lost(): TidemarkError | undefined {
    return this.#lost;
  }

  /**
   * May a write to this range go to the disk? The caller asks for every write. If the answer is
   * yes, it marks the range where its `isNeeded` looks, before it awaits anything. Costs a few
   * array accesses.
   */
  isDurable(offset: number, length: number): boolean {
    if (length === 0 || this.#state === "lost") return true;
    const [first, last] = regionsTouched(offset, length);
    return this.#marks.touch(first, last) && this.#state === "live";
  }

  /**
   * Resolves when the range's regions have been made durable; the caller then asks `isDurable`
   * again. Never rejects for what the storage does.
   */
  async makeDurable(offset: number, length: number): Promise<void> {
    if (this.isDurable(offset, length)) return;
    this.#assertOpen();
    const [first, last] = regionsTouched(offset, length);
    let mustWrite = this.#state !== "live";
    for (let region = first; region <= last; region += 1) mustWrite = this.#marks.want(region) || mustWrite;
    // What is wanted, not durable and on no page to be written is being written now.
    await (mustWrite ? this.#nextBatch() : this.#flying?.done);
  }

  /**
   * Resolves when it is durable that `point`, whose cut has been made, may become a base. Called
   * before the head is swapped: whichever head a crash leaves, its newest point is then known here.
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
   * Bases older than the first of `bases` are forgotten, and with them the marks of regions that no
   * base needs, except the hot ones. `isNeeded` is called before this returns: did anything in the
   * region change since the cut of the first of `bases`? What was written to the other regions must
   * have been flushed by the disk since, or a power failure could take it back unseen. Returns at
   * once; the file follows.
   */
  settled(bases: readonly string[], isNeeded: (region: number) => boolean): void {
    this.#assertOpen();
    if (this.#state === "lost") return;
    if (this.#bases.settle(bases)) this.#headerSerial += 1;
    const cold = this.#marks.cold(this.#hotRegionsMax, isNeeded);
    this.#settling = { cold, headerSerial: this.#headerSerial };
    this.#kick();
  }

  /**
   * Starts afresh from `bases`, oldest first, when `regions` hold every change since any of them,
   * as far as it is not marked already. Resolves when that is durable. After the file was lost it
   * is tried anew.
   */
  async rebase(bases: readonly string[], regions: Iterable<number>): Promise<void> {
    for (const point of bases) assertPoint(point);
    this.#assertOpen();
    if (this.#state === "lost" && !this.#isRemoved) this.#restart();
    for (const region of regions) this.#marks.want(region);
    // The marks are durable before a base relies on them.
    await this.#nextBatch();
    this.#bases.reset(bases);
    this.#headerSerial += 1;
    await this.#nextBatch();
  }

  /**
   * The disk has grown: what is new counts as changed since every base. Called before anything is
   * written there.
   */
  async grow(sizeBytes: number): Promise<void> {
    assert(sizeBytes >= this.#sizeBytes, "a disk does not shrink");
    this.#assertOpen();
    // The exact bitmap of a clean shutdown lies where pages may come to lie.
    if (this.#state === "clean") await this.#nextBatch();
    this.#marks.grow(this.#sizeBytes, sizeBytes);
    await this.#nextBatch();
    // Only now that its pages exist does the header speak of the larger disk.
    this.#sizeBytes = sizeBytes;
    this.#headerSerial += 1;
    await this.#nextBatch();
  }

  /**
   * Saves `dirty`, exactly what changed since `base`, and closes; without a base it closes only. The
   * disk has been flushed and is not written to any more. Gives the image's signature. Errors: NO_SPACE,
   * ACCESS_REFUSED, DEVICE_FAILED, SOURCE_UNREADABLE: the next start then falls back to the regions.
   */
  async closeClean(base: string | undefined, dirty: DirtyBitmap): Promise<QuiescenceSignature | undefined> {
    this.#assertOpen();
    if (base !== undefined) assertPoint(base);
    let rest: QuiescenceSignature | undefined;
    this.#closing = this.#finish(async () => {
      if (base !== undefined && this.#state !== "lost") rest = await this.#writeClean(base, dirty);
    });
    await this.#closing;
    return rest;
  }

  /** Closes without saving, as a crash would, but waits for what is under way. Idempotent. */
  async close(): Promise<void> {
    if (this.#closing !== undefined) {
      // What `closeClean` failed with is told to its caller.
      await Promise.allSettled([this.#closing]);
      return;
    }
    this.#closing = this.#finish();
    await this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #finish(last?: () => Promise<void>): Promise<void> {
    try {
      await this.#writing;
      await last?.();
      if (this.#state === "lost") await this.#makeVoid();
    } finally {
      await this.#storage.close();
    }
  }

  #adopt({ header, headerPair, bits, pages, recovered }: KnownTracking): void {
    this.#state = recovered.kind === "clean" ? "clean" : "live";
    // A clean record whose bitmap could not be used still has to go before the first write.
    if (header.clean !== null) this.#state = "clean";
    this.#sizeBytes = header.sizeBytes;
    this.#bases.reset(header.bases, header.clean === null ? header.bases.length : header.clean.base + 1);
    this.#headerSlot = headerPair.slot;
    this.#headerGeneration = headerPair.generation;
    this.#headerSynced = this.#headerSerial;
    this.#marks.adopt(bits);
    this.#pageSlots = pages.map(({ slot, generation }) => ({ slot, generation }));
  }

  #addBase(point: string): void {
    this.#bases.add(point);
    this.#headerSerial += 1;
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
        this.#marks.takePages();
        this.#settling = undefined;
        this.#headerSynced = this.#headerSerial;
      }
    }
    this.#writing = undefined;
  }

  /** Settles what can be settled, then tells whether anything is to be written. */
  #hasWork(): boolean {
    this.#clearCold();
    return this.#gathering !== undefined || this.#marks.hasPages || this.#headerSerial > this.#headerSynced;
  }

  async #writeBatch(): Promise<void> {
    const writes: Promise<void>[] = [];
    const headerSerial = this.#headerSerial;
    if (headerSerial > this.#headerSynced || this.#state === "clean") writes.push(this.#writeHeader(null));
    const pages = this.#marks.takePages().map((page) => ({ page, bits: this.#marks.compose(page) }));
    for (const { page, bits } of pages) writes.push(...this.#writePage(page, bits));
    await settleAll(writes);
    await this.#storage.datasync();
    this.#state = "live";
    this.#headerSynced = headerSerial;
    for (const { page, bits } of pages) this.#marks.synced(page, bits);
  }

  /**
   * Makes the file anew. Until the last sync it has no header, so a crash leaves nothing that could
   * be believed.
   */
  async #writeAll(): Promise<void> {
    const headerSerial = this.#headerSerial;
    await this.#storage.write(0, new Uint8Array(2 * headerSlotBytes));
    await this.#storage.datasync();
    this.#pageSlots = [];
    this.#marks.takePages();
    for (let page = 0; page < this.#marks.pages; page += 1) {
      const bits = this.#marks.compose(page);
      await settleAll(this.#writePage(page, bits));
      this.#marks.synced(page, bits);
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
    const header = { ...this.#identity, sizeBytes: this.#sizeBytes, bases: this.#bases.points, clean };
    return this.#storage.write(
      headerOffset(this.#headerSlot),
      encodeHeader(this.#headerSlot, this.#headerGeneration, header),
    );
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
      writes.push(
        this.#storage.write(pageOffset(page, place.slot), encodePage(page, place.slot, place.generation, bits)),
      );
    }
    return writes;
  }

  /**
   * Takes the marks off the regions that were found cold, once the header that forgot their bases
   * is synced. A page is composed right after.
   */
  #clearCold(): void {
    const settling = this.#settling;
    if (settling === undefined || this.#headerSynced < settling.headerSerial) return;
    this.#settling = undefined;
    this.#marks.clear(settling.cold);
  }

  async #writeClean(base: string, dirty: DirtyBitmap): Promise<QuiescenceSignature | undefined> {
    if (!this.#bases.points.includes(base)) this.#addBase(base);
    for (const region of dirty.regions()) this.#marks.want(region);
    await this.#nextBatch();
    if (this.#lost !== undefined) return undefined;
    try {
      const areaAt = pageOffset(this.#pageSlots.length, 0);
      const { areaBytes, areaCrc } = await writeExactArea(this.#storage, areaAt, dirty);
      await this.#storage.truncate(areaAt + areaBytes);
      await this.#storage.datasync();
      const rest = await this.#quiescenceSignature();
      const place = { base: this.#bases.points.indexOf(base), areaAt, areaBytes, areaCrc };
      await this.#writeHeader({ ...place, rest: rest ?? null });
      await this.#storage.datasync();
      return rest;
    } catch (error) {
      const remedy = "nothing is lost: the next start looks at more of the disk than it would have to";
      throw fileError(error, { code: "DEVICE_FAILED", what: `cannot save what has changed in ${this.path}`, remedy });
    }
  }

  async #lose(cause: unknown): Promise<void> {
    const remedy = "see to the state folder's file system, then start protecting the disk again";
    const failure = fileError(cause, {
      code: "DEVICE_FAILED",
      what: `cannot write the tracking file ${this.path}`,
      remedy,
    });
    await this.#makeVoid();
    this.#lost = new TidemarkError(
      failure.code,
      `${failure.message}; changes to ${this.#identity.disk} are not kept for the next start`,
      {
        remedy: failure.remedy ?? remedy,
        detail: { ...failure.detail, void: this.#isVoid },
        cause,
      },
    );
    this.#state = "lost";
  }

  async #makeVoid(): Promise<void> {
    if (this.#isVoid) return;
    const way = await makeVoid(this.#storage, 2 * headerSlotBytes);
    this.#isVoid = way !== undefined;
    this.#isRemoved = way === "removed";
  }

  #restart(): void {
    this.#state = "fresh";
    this.#lost = undefined;
    this.#isVoid = false;
    this.#marks.adopt(undefined);
    this.#bases.reset([]);
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

/** Waits for all writes, then throws the first failure. */
async function settleAll(writes: readonly Promise<void>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(writes)) {
    if (outcome.status === "rejected") throw outcome.reason;
  }
}

/** The first and the last region of a range that is not empty. */
function regionsTouched(offset: number, length: number): readonly [first: number, last: number] {
  return [Math.floor(offset / regionBytes), Math.floor((offset + length - 1) / regionBytes)];
}
