/**
 * Protected disk: change tracking and exact snapshots (cuts) of a disk that is being written. Every
 * write, zero and trim passes through here and leaves a mark:
 *
 *     durable? ─► gate ─► mark ─► old content kept for the open cut ─► backing ─► acknowledged
 *        │          │
 *        │          └ closed while a cut is being prepared
 *        └ the tracking file says, durably, that the write's regions may be dirty
 *
 * A cut closes the gate, waits for the writes that have passed it, exchanges the bitmap and opens
 * the gate. Writes that had passed are in the cut; writes that waited are not. So a cut holds a
 * prefix of the acknowledged writes. So do the cuts of several disks, if all are prepared before
 * the first is made. The gate is never closed for longer than `barrierMsMax`.
 *
 * Two bitmaps change places at every cut. The one that was cut stays with the cut, and then with
 * the unsettled points until it has been turned into runs. A third bitmap tells what an exact cut
 * has captured.
 *
 * Invariant: a mark is cleared only when its point is committed and the store can no longer lose
 * that point.
 */
import assert from "node:assert/strict";
import type { BlockDevice, DeviceExtent } from "../../device.ts";
import { publish } from "../../diagnostics.ts";
import { TidemarkError } from "../../errors.ts";
import { protectionTiming } from "../../timing.ts";
import type { Extent } from "../../volume.ts";
import type { QuiescenceSignature } from "../source/quiescence.ts";
import { Bases } from "./bases.ts";
import { CopyBeforeWriteArea, GranulePool, oldContentBytesMax } from "./copy-before-write.ts";
import type { Cut, PreparedCut } from "./cut.ts";
import { DirtyBitmap, regionGranules } from "./dirty-bitmap.ts";
import { type Barrier, Gate } from "./gate.ts";
import { markedBytes, OpenCut } from "./open-cut.ts";
import type { ProtectedDiskOptions, Tracking } from "./protected-disk-options.ts";

const spillBytesMaxDefault: number = 4 * 1024 * 1024 * 1024;

export class ProtectedDisk implements BlockDevice {
  readonly description: string;
  readonly readOnly: boolean;
  readonly #backing: BlockDevice;
  readonly #tracking: Tracking | undefined;
  readonly #barrierMsMax: number;
  readonly #spill: { readonly folder: string | undefined; readonly bytesMax: number };
  readonly #now: () => number;
  readonly #steadyNow: () => number;
  readonly #gate: Gate;
  readonly #pool: GranulePool;
  readonly #bases: Bases;
  readonly #captured: DirtyBitmap;

  #sizeBytes: number;
  #current: DirtyBitmap;
  /** Takes the place of `#current` at the next cut; undefined while a cut or the history has it. */
  #spare: DirtyBitmap | undefined;
  #open: OpenCut | undefined;
  /** The open cut, if it is exact: writes ask it before they are issued. */
  #keeper: OpenCut | undefined;
  /** Resolves when the caller that prepares or holds a cut, and all before us, have let go. */
  #turn: Promise<void> = Promise.resolve();
  /** Calls that are not done, those that wait at the gate included. */
  #underWay = 0;
  #idle: (() => void) | undefined;
  #writtenBytes = 0;
  #requests = 0;
  #rest: QuiescenceSignature | undefined;
  #closing: Promise<void> | undefined;

  private constructor(options: ProtectedDiskOptions) {
    const { backing, dirty } = options;
    assert(dirty.sizeBytes === backing.sizeBytes, "the marks are those of a disk of this size");
    this.description = backing.description;
    this.readOnly = backing.readOnly;
    this.#backing = backing;
    this.#tracking = options.tracking;
    this.#barrierMsMax = options.barrierMsMax ?? protectionTiming.barrierMsMaxDefault;
    this.#spill = { folder: options.spillFolder, bytesMax: options.spillBytesMax ?? spillBytesMaxDefault };
    this.#now = options.now ?? Date.now;
    this.#steadyNow = options.steadyNow ?? (() => performance.now());
    this.#gate = new Gate(this.#steadyNow);
    this.#pool = new GranulePool(options.preservedBytesMax ?? oldContentBytesMax);
    this.#sizeBytes = backing.sizeBytes;
    this.#current = dirty;
    this.#spare = new DirtyBitmap(backing.sizeBytes);
    this.#captured = new DirtyBitmap(backing.sizeBytes);
    this.#bases = new Bases({
      ...options,
      now: this.#steadyNow,
      settle: (bases) => this.#settle(bases),
    });
  }

  static open(options: ProtectedDiskOptions): ProtectedDisk {
    return new ProtectedDisk(options);
  }

  /** The size that is protected: what the backing has grown by counts from `grow` on. */
  get sizeBytes(): number {
    return this.#sizeBytes;
  }

  /** The newest point as far as is known here: what the marks are relative to. */
  get base(): string | undefined {
    return this.#bases.newest;
  }

  /** Changed and in no committed point: marks since the last cut, and of the cut that is open. */
  get dirtyBytes(): number {
    return Math.min(this.#sizeBytes, markedBytes(this.#current) + (this.#open?.dirtyBytes ?? 0));
  }

  /**
   * True when something may have been written since the last cut: what was read of the disk since
   * then need not be what it was at the cut.
   */
  get isWrittenSinceCut(): boolean {
    return this.#current.count > 0;
  }

  /** Why marks do not survive the process any more, if they do not. */
  get trackingLost(): TidemarkError | undefined {
    return this.#tracking?.lost;
  }

  /** Bytes of all writes, zeros and trims so far. */
  get writtenBytes(): number {
    return this.#writtenBytes;
  }

  /** Calls of clients so far. */
  get requests(): number {
    return this.#requests;
  }

  /** Old content kept for the open cut, in memory and spilled. */
  get preservedBytes(): number {
    return this.#open?.preserved?.bytes ?? 0;
  }

  /** Part of the room for old content that is taken, 0 to 1. */
  get preservedShare(): number {
    return this.#open?.preserved?.usedShare ?? 0;
  }

  /** How long writes were held: the last time, and the longest of the last hundred. */
  get barrier(): { readonly lastMs: number; readonly maxMs: number } {
    return this.#gate.barriers;
  }

  // ---- The device ----

  tryRead(offset: number, into: Uint8Array): boolean {
    this.#requests += 1;
    return this.#closing === undefined && this.#backing.tryRead(offset, into);
  }

  async read(offset: number, into: Uint8Array): Promise<void> {
    await this.#call(() => this.#backing.read(offset, into));
  }

  tryWrite(offset: number, bytes: Uint8Array): boolean {
    const length = bytes.byteLength;
    this.#requests += 1;
    if (this.#gate.closed !== undefined || this.#closing !== undefined) return false;
    if (this.#tracking !== undefined && !this.#tracking.isDurable(offset, length)) return false;
    if (this.#keeper !== undefined && !this.#keeper.tryPreserve(offset, length)) return false;
    let isWritten = true;
    try {
      isWritten = this.#backing.tryWrite(offset, bytes);
    } finally {
      // One that failed may have been done in part. Nothing can come between the write and its
      // mark.
      if (isWritten) this.#mark(offset, length);
    }
    return isWritten;
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#change(offset, bytes.byteLength, () => this.#backing.write(offset, bytes));
  }

  async zero(offset: number, length: number, mayTrim: boolean): Promise<void> {
    await this.#change(offset, length, () => this.#backing.zero(offset, length, mayTrim));
  }

  async trim(offset: number, length: number): Promise<void> {
    await this.#change(offset, length, () => this.#backing.trim(offset, length));
  }

  async flush(): Promise<void> {
    await this.#call(() => this.#backing.flush());
  }

  extents(offset: number, length: number, countMax: number): DeviceExtent[] {
    return this.#backing.extents(offset, length, countMax);
  }

  async lookUp(offset: number, length: number, countMax: number): Promise<DeviceExtent[]> {
    this.#throwIfClosed();
    const found = await this.#backing.lookUp?.(offset, length, countMax);
    return found ?? this.#backing.extents(offset, length, countMax);
  }

  // ---- Cuts ----

  /** Resolves when no cut is open or being prepared: the next one to prepare need not wait. */
  async ready(): Promise<void> {
    await this.#turn;
    await this.#bases.compacted;
  }

  /**
   * Waits until no other cut is open, then closes the gate and waits for the writes that have
   * passed it. Errors: CUT_TIMED_OUT when they take longer than `barrierMsMax`, and writes go on as
   * before; DEVICE_FAILED when the disk is closed.
   */
  async prepare(): Promise<PreparedCut> {
    const leave = await this.#takeTurn();
    try {
      await this.#bases.compacted;
      this.#throwIfClosed();
      const barrier = await this.#gate.close(this.#barrierMsMax, () => {
        // Once there is a cut, its end is the end of the turn.
        if (this.#open === undefined) leave();
      });
      return this.#prepared(barrier, leave);
    } catch (error) {
      leave();
      throw error;
    }
  }

  /** Prepares a cut and makes it. Errors: those of `prepare`. */
  async cut(options: { readonly exact: boolean }): Promise<Cut> {
    return (await this.prepare()).cut(options);
  }

  /**
   * Tells the tracking file, before a commit is tried, that `point` may become the newest. Resolves
   * when that is durable.
   */
  async expectPoint(point: string): Promise<void> {
    this.#bases.expect(point);
    await this.#tracking?.expectPoint(point);
  }

  /**
   * Takes `point` for the newest that the store holds. `current`: it is the base, or has become it,
   * because it was unknown whether it had been committed. `earlier`: the store has lost later
   * points; what they held counts as changed again. `unknown`: it is not known here, and nothing is
   * done. No cut may be open.
   */
  rebase(point: string | undefined): "current" | "earlier" | "unknown" {
    assert(this.#open === undefined, "the base changes only while no cut is open");
    return this.#bases.goTo(point, this.#current);
  }

  /**
   * Marks `extents` as changed by another observer. They are marked at once, and durably when it
   * resolves.
   */
  async markDirty(extents: Iterable<Extent>): Promise<void> {
    const marked = [...extents];
    for (const { offset, length } of marked) this.#current.mark(offset, length);
    for (const { offset, length } of marked) await this.#tracking?.makeDurable(offset, length);
  }

  /** The backing has grown: what is new counts as changed, and can be written when it resolves. */
  async grow(): Promise<void> {
    const { sizeBytes } = this.#backing;
    if (sizeBytes === this.#sizeBytes) return;
    await this.#tracking?.grow(sizeBytes);
    const before = this.#sizeBytes;
    // Another call may have been faster.
    if (sizeBytes <= before) return;
    this.#current.grow(sizeBytes);
    this.#sizeBytes = sizeBytes;
    await this.markDirty([{ offset: before, length: sizeBytes - before }]);
  }

  // ---- The end ----

  /**
   * Lets what is under way be done, saves which granules are marked, and closes tracking and
   * backing. Idempotent.
   */
  closeClean(): Promise<void> {
    this.#closing ??= this.#close(async () => {
      await this.#backing.flush().catch(async (error: unknown) => {
        await this.#tracking?.close();
        throw error;
      });
      this.#rest = await this.#tracking?.closeClean(this.#bases.newest, this.#current);
    });
    return this.#closing;
  }

  /** Quiescence signature of the image, as `closeClean` left it; undefined: it is not known. */
  get rest(): QuiescenceSignature | undefined {
    return this.#rest;
  }

  /**
   * Lets what is under way be done and closes tracking, as a crash would leave it, and backing.
   * Idempotent.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close(async () => await this.#tracking?.close());
    return this.#closing;
  }

  async #close(last: () => Promise<void>): Promise<void> {
    // Calls that wait at the gate are under way: a cut that is being prepared makes room for them.
    this.#gate.openNow();
    if (this.#underWay > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    this.#open?.abandon();
    await this.ready();
    await this.#bases.settled();
    try {
      await last();
    } finally {
      await this.#backing.close();
    }
  }

  // ---- How a write goes ----

  async #change(offset: number, length: number, apply: () => Promise<void>): Promise<void> {
    await this.#call(async () => {
      for (let isFree = false; !isFree; ) {
        if (this.#tracking?.isDurable(offset, length) === false) await this.#tracking.makeDurable(offset, length);
        else if (this.#gate.closed !== undefined) await this.#gate.closed;
        else isFree = true;
      }
      // From the last question to here nothing else has run: what the answers were they still are.
      this.#mark(offset, length);
      this.#gate.pass();
      try {
        if (this.#keeper?.tryPreserve(offset, length) === false) await this.#keeper.preserve(offset, length);
        await apply();
      } finally {
        this.#gate.done();
      }
    });
  }

  #mark(offset: number, length: number): void {
    this.#current.mark(offset, length);
    this.#writtenBytes += length;
  }

  /** Runs a call that `close` waits for. */
  async #call(run: () => Promise<void>): Promise<void> {
    this.#throwIfClosed();
    this.#requests += 1;
    this.#underWay += 1;
    try {
      await run();
    } finally {
      this.#underWay -= 1;
      if (this.#underWay === 0) this.#idle?.();
    }
  }

  #throwIfClosed(): void {
    if (this.#closing === undefined) return;
    throw new TidemarkError("DEVICE_FAILED", `${this.description} has been closed`, { remedy: "open the disk again" });
  }

  // ---- How a cut goes ----

  /** Waits for its turn; what it returns ends it, once. */
  async #takeTurn(): Promise<() => void> {
    const before = this.#turn;
    let leave = (): void => undefined;
    this.#turn = new Promise<void>((resolve) => {
      leave = resolve;
    });
    await before;
    return leave;
  }

  #prepared(barrier: Barrier, leave: () => void): PreparedCut {
    if (!barrier.held) throw this.#notHeld(barrier);
    let isMade = false;
    return {
      get held(): boolean {
        return barrier.held;
      },
      cut: ({ exact }) => {
        assert(!isMade, "a prepared cut is made once");
        if (!barrier.held) throw this.#notHeld(barrier);
        isMade = true;
        const cut = this.#exchange(exact, barrier.heldMs, leave);
        barrier.open();
        return cut;
      },
      release: () => barrier.open(),
    };
  }

  #notHeld({ inFlight }: Barrier): TidemarkError {
    return new TidemarkError(
      "CUT_TIMED_OUT",
      `no cut of ${this.description}: new writes were let through before it was made, after ${this.#barrierMsMax} ms at the latest`,
      {
        remedy: "the next cycle tries again; if this goes on, look for a slow disk",
        detail: { inFlight, barrierMsMax: this.#barrierMsMax },
      },
    );
  }

  /** The instant of the cut. */
  #exchange(exact: boolean, barrierMs: number, leave: () => void): Cut {
    const frozen = this.#current;
    const sizeBytes = this.#sizeBytes;
    assert(
      this.#spare !== undefined && this.#open === undefined && this.#gate.inFlight === 0,
      "one cut at a time, behind its barrier",
    );
    const cut = new OpenCut({
      backing: this.#backing,
      frozen,
      captured: this.#captured.grow(sizeBytes),
      preserved: exact ? new CopyBeforeWriteArea(this.#pool, this.#spill) : undefined,
      timeMs: this.#now(),
      sizeBytes,
      barrierMs,
      onEnd: (ended, point) => this.#end(ended, point, leave),
    });
    this.#current = this.#spare.grow(sizeBytes);
    this.#spare = undefined;
    this.#open = cut;
    this.#keeper = exact ? cut : undefined;
    publish("cut.made", {
      device: this.description,
      timeMs: cut.timeMs,
      sizeBytes,
      dirtyBytes: cut.dirtyBytes,
      barrierMs,
      exact,
    });
    return cut;
  }

  #end(cut: OpenCut, point: string | undefined, leave: () => void): void {
    this.#open = undefined;
    this.#keeper = undefined;
    this.#captured.clearAll();
    const free = (bitmap: DirtyBitmap): void => {
      this.#spare = bitmap;
    };
    if (point !== undefined) {
      this.#bases.follow(point, cut.frozen, free);
    } else {
      this.#current.or(cut.frozen);
      cut.frozen.clearAll();
      free(cut.frozen);
    }
    // The next cut's old content comes when this one's is gone, so that they are never kept both.
    const closed = cut.preserved?.close() ?? Promise.resolve();
    closed.then(leave, leave);
  }

  /**
   * Has the tracking file forget what has not changed since the cut of the first of `bases`. What
   * was written before it has to be flushed first: else a power failure could take back from the
   * disk what the vault holds, and no mark would tell. Nothing is settled meanwhile, so what is
   * needed is judged by the same points.
   */
  async #settle(bases: readonly string[]): Promise<void> {
    if (this.#tracking === undefined) return;
    const [flushed] = await Promise.allSettled([this.#backing.flush()]);
    // A flush that fails is told to every client that flushes. Until one succeeds nothing is
    // forgotten here.
    if (flushed.status === "fulfilled") this.#tracking.settled(bases, (region) => this.#isNeeded(region));
  }

  /**
   * True while a granule of the region is marked anywhere: asked whenever the tracking file would
   * forget it.
   */
  #isNeeded(region: number): boolean {
    const first = region * regionGranules;
    return (
      this.#current.anyMarked(first, regionGranules) ||
      this.#open?.frozen.anyMarked(first, regionGranules) === true ||
      this.#bases.anyMarked(first, regionGranules)
    );
  }
}
