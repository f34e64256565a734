/**
 * Copy-on-write overlay: a writable disk on top of one that is read-only. Changed granules go to
 * an overlay, all others are read below. The disk below is never written.
 *
 * A granule that is written in part is first filled with what it held. Changes that touch the same
 * granules run one after the other, in the order in which they came, so no two writers fill one
 * granule with different content; all others overlap. Zeros and trims change the record, and free
 * the space of what was there.
 *
 * Hydration copies granules from below into the overlay (`adopt`). It copies only what is still below
 * and not being changed, and later changes wait for it, so it never overwrites what a client wrote.
 */
import type { BlockDevice, DeviceExtent } from "../../device.ts";
import { GroupedCalls } from "../../disk/source/grouped-calls.ts";
import { TidemarkError } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import type { Extent } from "../../volume.ts";
import { type GranuleState, type GranuleStates, granuleState } from "./granule-states.ts";
import type { OverlayFile } from "./overlay-file.ts";

/** Granules [first, end). */
interface GranuleRange {
  readonly first: number;
  readonly end: number;
}

/** Granules that are being changed. */
interface Change extends GranuleRange {
  readonly done: Promise<void>;
}

/** Bytes [at, end) that are in one state. */
interface StateRun {
  readonly state: GranuleState;
  readonly at: number;
  readonly end: number;
}

export class OverlaidDisk implements BlockDevice {
  readonly description: string;
  readonly readOnly = false;
  readonly sizeBytes: number;
  readonly #below: BlockDevice;
  readonly #overlay: OverlayFile;
  readonly #states: GranuleStates;
  readonly #saves: GroupedCalls;
  readonly #changes = new Set<Change>();
  #bytesRead = 0;
  #bytesWritten = 0;
  #requests = 0;
  #closing: Promise<void> | undefined;

  /** The disk owns both from now on, and closes them. */
  constructor(below: BlockDevice, overlay: OverlayFile, description = `${below.description}, with an overlay`) {
    this.description = description;
    this.sizeBytes = below.sizeBytes;
    this.#below = below;
    this.#overlay = overlay;
    this.#states = overlay.states;
    this.#saves = new GroupedCalls(() => overlay.save());
  }

  /** Bytes delivered to readers, and bytes written by clients, zeros and trims included. */
  get counts(): { readonly bytesRead: number; readonly bytesWritten: number } {
    return { bytesRead: this.#bytesRead, bytesWritten: this.#bytesWritten };
  }

  /** Requests of clients so far: reads, writes, zeros, trims and flushes. */
  get requests(): number {
    return this.#requests;
  }

  /** Bytes that are not read below any more. */
  get presentBytes(): number {
    return Math.min(this.sizeBytes, this.#states.present * granuleBytes);
  }

  tryRead(offset: number, into: Uint8Array): boolean {
    if (this.#closing !== undefined) return false;
    this.#requests += 1;
    const end = offset + into.byteLength;
    for (let at = offset; at < end; ) {
      const run = this.#run(at, end);
      const part = into.subarray(at - offset, run.end - offset);
      if (run.state === granuleState.zeros) part.fill(0);
      else if (!(run.state === granuleState.data ? this.#overlay : this.#below).tryRead(at, part)) return false;
      at = run.end;
    }
    this.#bytesRead += into.byteLength;
    return true;
  }

  /** Errors: those of the disk below, SOURCE_UNREADABLE. */
  async read(offset: number, into: Uint8Array): Promise<void> {
    this.#throwIfClosed();
    this.#requests += 1;
    await this.#read(offset, into);
    this.#bytesRead += into.byteLength;
  }

  tryWrite(offset: number, bytes: Uint8Array): boolean {
    const { first, end } = granulesOf(offset, bytes.byteLength);
    if (this.#closing !== undefined || offset % granuleBytes !== 0 || this.#conflicts({ first, end }).length > 0)
      return false;
    if (!this.#overlay.tryWrite(offset, bytes)) return false;
    this.#states.set(first, end, granuleState.data);
    this.#requests += 1;
    this.#bytesWritten += bytes.byteLength;
    return true;
  }

  /**
   * Errors: NO_SPACE, ACCESS_REFUSED, DEVICE_FAILED, and for a granule that is written in part
   * those of `read`.
   */
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#change(offset, bytes.byteLength, async () => await this.#write(offset, bytes));
  }

  async zero(offset: number, length: number): Promise<void> {
    await this.#change(offset, length, async () => {
      const inner = this.#wholeGranules(offset, length);
      if (inner === undefined) {
        await this.#write(offset, new Uint8Array(length));
        return;
      }
      const innerEnd = Math.min(inner.end * granuleBytes, offset + length);
      await this.#write(offset, new Uint8Array(inner.first * granuleBytes - offset));
      await this.#clear(inner.first, inner.end);
      await this.#write(innerEnd, new Uint8Array(offset + length - innerEnd));
    });
  }

  /** Whole granules become zeros; the rest stays what it was. */
  async trim(offset: number, length: number): Promise<void> {
    await this.#change(offset, length, async () => {
      const inner = this.#wholeGranules(offset, length);
      if (inner !== undefined) await this.#clear(inner.first, inner.end);
    });
  }

  async flush(): Promise<void> {
    this.#throwIfClosed();
    this.#requests += 1;
    await this.#saves.run();
  }

  // ---- Hydration ----

  /** The first byte of a granule in [offset, end) that is read below; undefined: none. */
  firstBelow(offset: number, end: number = this.sizeBytes): number | undefined {
    const first = this.#states.nextBelow(Math.ceil(offset / granuleBytes), Math.ceil(end / granuleBytes));
    return first === undefined ? undefined : first * granuleBytes;
  }

  /** The first run of granules in [offset, end) that are read below; undefined: none. */
  nextBelow(offset: number, end: number = this.sizeBytes): Extent | undefined {
    const from = this.firstBelow(offset, end);
    if (from === undefined) return undefined;
    const runEnd = this.#states.runEnd(from / granuleBytes, Math.ceil(end / granuleBytes)) * granuleBytes;
    return { offset: from, length: Math.min(end, runEnd) - from };
  }

  /**
   * Copies `bytes`, which the disk below holds from `offset` on, to the overlay, as far as they are
   * still read below. Granules that are being changed are left to that change: it is not waited for,
   * because it may itself wait for what the caller holds. The range is whole granules, but for the
   * disk's end. Returns whether nothing was left. Errors: as of `write`.
   */
  async adopt(offset: number, bytes: Uint8Array): Promise<boolean> {
    const { first, end } = granulesOf(offset, bytes.byteLength);
    const busy = [...this.#conflicts({ first, end })].sort((a, b) => a.first - b.first);
    const parts: Promise<void>[] = [];
    for (let at = first, next = 0; at < end; next += 1) {
      const change = busy[next];
      const from = at * granuleBytes;
      const stop = Math.min(offset + bytes.byteLength, (change?.first ?? end) * granuleBytes);
      if (stop > from) parts.push(this.#adopt(from, bytes.subarray(from - offset, stop - offset)));
      at = Math.max(at, change?.end ?? end);
    }
    await allOf(parts);
    return busy.length === 0;
  }

  /** Makes zeros of what is still read below in a range of which the disk below holds zeros. */
  async adoptZeros(offset: number, length: number): Promise<void> {
    await this.#inTurn(offset, length, async () => {
      for (const { state, at, end } of this.#runs(offset, offset + length))
        if (state === granuleState.below) await this.#clear(at / granuleBytes, Math.ceil(end / granuleBytes));
    });
  }

  /** As `flush`, for the hydration. */
  async save(): Promise<void> {
    this.#throwIfClosed();
    await this.#saves.run();
  }

  extents(offset: number, length: number, countMax: number): DeviceExtent[] {
    this.#throwIfClosed();
    const found: DeviceExtent[] = [];
    for (const { state, at, end } of this.#runs(offset, offset + length)) {
      if (found.length >= countMax) break;
      if (state !== granuleState.below) found.push({ offset: at, length: end - at, kind: kindOf(state) });
      else if (!addAll(found, this.#below.extents(at, end - at, countMax - found.length), end)) break;
    }
    return found;
  }

  async lookUp(offset: number, length: number, countMax: number): Promise<DeviceExtent[]> {
    this.#throwIfClosed();
    const below = this.#below;
    const found: DeviceExtent[] = [];
    for (const { state, at, end } of this.#runs(offset, offset + length)) {
      const left = countMax - found.length;
      if (left <= 0) break;
      if (state !== granuleState.below) found.push({ offset: at, length: end - at, kind: kindOf(state) });
      else {
        const extents =
          below.lookUp === undefined ? below.extents(at, end - at, left) : await below.lookUp(at, end - at, left);
        if (!addAll(found, extents, end)) break;
      }
    }
    return found;
  }

  /**
   * Waits for changes under way, saves the overlay if it is kept, and closes both. Idempotent.
   * Errors: those of `flush`.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await Promise.all([...this.#changes].map(({ done }) => done));
    const outcomes = [
      ...(await Promise.allSettled([this.#saves.run()])),
      ...(await Promise.allSettled([this.#overlay.close(), this.#below.close()])),
    ];
    for (const outcome of outcomes) if (outcome.status === "rejected") throw outcome.reason;
  }

  /**
   * The runs of granules in one state in bytes [offset, end), each as it is when the iteration
   * reaches it.
   */
  *#runs(offset: number, end: number): Generator<StateRun> {
    for (let at = offset; at < end; ) {
      const run = this.#run(at, end);
      yield run;
      at = run.end;
    }
  }

  /** From byte `at` to where the state of the granules changes. */
  #run(at: number, end: number): StateRun {
    const granule = Math.floor(at / granuleBytes);
    const runEnd = this.#states.runEnd(granule, Math.ceil(end / granuleBytes));
    return { state: this.#states.get(granule), at, end: Math.min(end, runEnd * granuleBytes) };
  }

  async #read(offset: number, into: Uint8Array): Promise<void> {
    const end = offset + into.byteLength;
    const parts: Promise<void>[] = [];
    for (let at = offset; at < end; ) {
      const run = this.#run(at, end);
      const part = into.subarray(at - offset, run.end - offset);
      if (run.state === granuleState.zeros) part.fill(0);
      else parts.push((run.state === granuleState.data ? this.#overlay : this.#below).read(at, part));
      at = run.end;
    }
    await allOf(parts);
  }

  /** Adopts a range that no change touches. */
  async #adopt(offset: number, bytes: Uint8Array): Promise<void> {
    await this.#inTurn(offset, bytes.byteLength, async () => {
      for (const { state, at, end } of this.#runs(offset, offset + bytes.byteLength)) {
        if (state !== granuleState.below) continue;
        await this.#overlay.write(at, bytes.subarray(at - offset, end - offset));
        this.#states.set(at / granuleBytes, Math.ceil(end / granuleBytes), granuleState.data);
      }
    });
  }

  /** Runs a change of a client in its turn. */
  async #change(offset: number, length: number, apply: () => Promise<void>): Promise<void> {
    this.#requests += 1;
    await this.#inTurn(offset, length, apply);
    this.#bytesWritten += length;
  }

  /** Runs a change once no earlier one touches its granules. */
  async #inTurn(offset: number, length: number, apply: () => Promise<void>): Promise<void> {
    this.#throwIfClosed();
    const { first, end } = granulesOf(offset, length);
    const earlier = this.#conflicts({ first, end });
    let leave = (): void => undefined;
    const done = new Promise<void>((resolve) => {
      leave = resolve;
    });
    const change: Change = { first, end, done };
    this.#changes.add(change);
    try {
      for (const { done: over } of earlier) await over;
      await apply();
    } finally {
      this.#changes.delete(change);
      leave();
    }
  }

  #conflicts({ first, end }: GranuleRange): readonly Change[] {
    if (this.#changes.size === 0) return [];
    return [...this.#changes].filter((change) => change.first < end && first < change.end);
  }

  /** Writes; the caller has made sure that no other change touches these granules. */
  async #write(offset: number, bytes: Uint8Array): Promise<void> {
    if (bytes.byteLength === 0) return;
    const { first, end } = granulesOf(offset, bytes.byteLength);
    const writeEnd = offset + bytes.byteLength;
    const head = await this.#filled(first, offset, writeEnd, bytes);
    const tail = end - 1 > first ? await this.#filled(end - 1, offset, writeEnd, bytes) : undefined;
    const from = head === undefined ? offset : (first + 1) * granuleBytes;
    const to = tail === undefined ? writeEnd : (end - 1) * granuleBytes;
    if (head !== undefined) await this.#overlay.write(first * granuleBytes, head);
    if (to > from) await this.#overlay.write(from, bytes.subarray(from - offset, to - offset));
    if (tail !== undefined) await this.#overlay.write((end - 1) * granuleBytes, tail);
    this.#states.set(first, end, granuleState.data);
  }

  /**
   * The whole of `granule` as it will be when `bytes` have been written to [offset, writeEnd).
   * Undefined when the bytes can be written as they are: they cover the granule, or it is in the
   * overlay already.
   */
  async #filled(granule: number, offset: number, writeEnd: number, bytes: Uint8Array): Promise<Uint8Array | undefined> {
    const start = granule * granuleBytes;
    const end = Math.min(start + granuleBytes, this.sizeBytes);
    if ((offset <= start && writeEnd >= end) || this.#states.get(granule) === granuleState.data) return undefined;
    const filled = Buffer.alloc(end - start);
    await this.#read(start, filled);
    const from = Math.max(start, offset);
    filled.set(bytes.subarray(from - offset, Math.min(end, writeEnd) - offset), from - start);
    return filled;
  }

  async #clear(first: number, end: number): Promise<void> {
    await this.#overlay.clear(first, end, Math.min(end * granuleBytes, this.sizeBytes));
  }

  /** The granules that a range covers whole, the disk's last one as far as there is one. */
  #wholeGranules(offset: number, length: number): GranuleRange | undefined {
    const rangeEnd = offset + length;
    const first = Math.ceil(offset / granuleBytes);
    const end = rangeEnd === this.sizeBytes ? Math.ceil(rangeEnd / granuleBytes) : Math.floor(rangeEnd / granuleBytes);
    return end > first ? { first, end } : undefined;
  }

  #throwIfClosed(): void {
    if (this.#closing === undefined) return;
    throw new TidemarkError("DEVICE_FAILED", `${this.description} is not mounted any more`, {
      remedy: "mount the point again with `tidemark mount`",
    });
  }
}

/** Waits for all, also when one has failed: the caller may reuse its buffer then. */
async function allOf(parts: readonly Promise<void>[]): Promise<void> {
  for (const outcome of await Promise.allSettled(parts)) if (outcome.status === "rejected") throw outcome.reason;
}

function granulesOf(offset: number, length: number): GranuleRange {
  return { first: Math.floor(offset / granuleBytes), end: Math.ceil((offset + length) / granuleBytes) };
}

function kindOf(state: Exclude<GranuleState, typeof granuleState.below>): DeviceExtent["kind"] {
  return state === granuleState.data ? "data" : "hole";
}

/**
 * Puts what the disk below says behind `found`. False when it says less than up to `end`, so that
 * nothing can follow.
 */
function addAll(found: DeviceExtent[], below: readonly DeviceExtent[], end: number): boolean {
  found.push(...below);
  const last = below.at(-1);
  return last !== undefined && last.offset + last.length === end;
}
