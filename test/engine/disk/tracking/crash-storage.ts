import type { TrackingStorage } from "../../../../engine/disk/tracking/tracking-storage.ts";

const sectorBytes = 512;

/** What happens to the bytes of a file, and between that whatever a test notes of its own. */
export type StorageEvent<Note> =
  | { readonly kind: "write"; readonly id: number; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly kind: "truncate"; readonly id: number; readonly sizeBytes: number }
  | { readonly kind: "synced"; readonly covers: ReadonlySet<number> }
  | { readonly kind: "note"; readonly note: Note };

/** Lets up to `count` turns of the microtask queue pass. */
export async function turns(count: number): Promise<void> {
  for (let turn = 0; turn < count; turn += 1) await Promise.resolve();
}

type Change = Extract<StorageEvent<never>, { kind: "write" | "truncate" }>;

/**
 * A file as storage holds it: what a power failure leaves for sure, and the changes since, of which
 * it may leave any sectors.
 */
export class Medium {
  durable: Uint8Array;
  pending: Change[];

  constructor(durable: Uint8Array = new Uint8Array(), pending: readonly Change[] = []) {
    this.durable = durable;
    this.pending = [...pending];
  }

  apply(event: StorageEvent<unknown>): void {
    if (event.kind === "write" || event.kind === "truncate") this.pending.push(event);
    if (event.kind !== "synced") return;
    const kept: Change[] = [];
    for (const change of this.pending) {
      if (event.covers.has(change.id)) this.durable = changed(this.durable, change, () => true);
      else kept.push(change);
    }
    this.pending = kept;
  }

  /** What reads see: everything written. */
  visible(): Uint8Array {
    return this.pending.reduce((bytes, change) => changed(bytes, change, () => true), this.durable);
  }

  /** Sectors that a power failure may or may not leave. */
  get sectorsInDoubt(): number {
    return this.pending.reduce(
      (sum, change) => sum + (change.kind === "write" ? change.bytes.byteLength / sectorBytes : 1),
      0,
    );
  }

  /**
   * What a power failure leaves when `survives` decides over each sector of each change in turn.
   */
  afterPowerFailure(survives: () => boolean): Uint8Array {
    return this.pending.reduce((bytes, change) => changed(bytes, change, survives), this.durable);
  }

  copy(): Medium {
    return new Medium(this.durable, this.pending);
  }
}

function changed(bytes: Uint8Array, change: Change, survives: () => boolean): Uint8Array {
  if (change.kind === "truncate") return survives() ? resized(bytes, change.sizeBytes) : bytes;
  let result: Uint8Array = Uint8Array.from(bytes);
  for (let at = 0; at < change.bytes.byteLength; at += sectorBytes) {
    if (!survives()) continue;
    const sector = change.bytes.subarray(at, at + sectorBytes);
    if (result.byteLength < change.offset + at + sector.byteLength)
      result = resized(result, change.offset + at + sector.byteLength);
    result.set(sector, change.offset + at);
  }
  return result;
}

function resized(bytes: Uint8Array, sizeBytes: number): Uint8Array {
  const result = new Uint8Array(sizeBytes);
  result.set(bytes.subarray(0, sizeBytes));
  return result;
}

/**
 * A storage in memory that logs what it does. Calls take a random number of turns; `fail` may make
 * them fail.
 */
export class CrashStorage<Note = never> implements TrackingStorage {
  readonly log: StorageEvent<Note>[] = [];
  readonly #random: () => number;
  #visible: Uint8Array;
  /** Changes that are done and not synced: where each begins. */
  readonly #pendingDone = new Map<number, number>();
  #lastId: number;
  callsUnderWay = 0;
  removed = false;
  closed = false;
  /** Returns the code of the error that a call is to fail with. */
  fail: (call: "read" | "write" | "truncate" | "datasync" | "remove") => string | undefined = () => undefined;

  constructor(medium: Medium, random: () => number) {
    this.#random = random;
    this.#visible = Uint8Array.from(medium.visible());
    for (const change of medium.pending) this.#pendingDone.set(change.id, change.kind === "write" ? change.offset : 0);
    this.#lastId = Math.max(0, ...medium.pending.map(({ id }) => id));
  }

  note(note: Note): void {
    this.log.push({ kind: "note", note });
  }

  /** Resolves when no call has been under way for a while. */
  async quiet(): Promise<void> {
    for (let still = 0; still < 20; still += 1) {
      if (this.callsUnderWay > 0) still = 0;
      await turns(3);
    }
  }

  read(offset: number, into: Uint8Array): Promise<number> {
    return this.#call("read", () => {
      const found = this.#visible.subarray(offset, offset + into.byteLength);
      into.set(found);
      return found.byteLength;
    });
  }

  async write(offset: number, bytes: Uint8Array): Promise<void> {
    const id = (this.#lastId += 1);
    const event = { kind: "write", id, ...this.#wholeSectors(offset, bytes) } as const;
    const code = this.fail("write");
    // A write that fails may have been done in part.
    if (code === undefined || this.#random() < 0.5) this.#change(event);
    await this.#call("write", () => this.#pendingDone.set(id, offset), code);
  }

  /** A write that is done when this returns. */
  writeAtOnce(offset: number, bytes: Uint8Array): void {
    const id = (this.#lastId += 1);
    this.#change({ kind: "write", id, ...this.#wholeSectors(offset, bytes) });
    this.#pendingDone.set(id, offset);
  }

  async truncate(sizeBytes: number): Promise<void> {
    const id = (this.#lastId += 1);
    const code = this.fail("truncate");
    if (code === undefined) this.#change({ kind: "truncate", id, sizeBytes });
    await this.#call("truncate", () => this.#pendingDone.set(id, 0), code);
  }

  /** Of a storage that holds several files, syncs the one that lies at [from, end). */
  async datasync([from, end]: readonly [number, number] = [0, Infinity]): Promise<void> {
    const ours = [...this.#pendingDone].filter(([, offset]) => from <= offset && offset < end);
    const covers = new Set(ours.map(([id]) => id));
    for (const id of covers) this.#pendingDone.delete(id);
    await this.#call("datasync", () => this.log.push({ kind: "synced", covers }), this.fail("datasync"));
  }

  async remove(): Promise<void> {
    await this.#call("remove", () => (this.removed = true), this.fail("remove"));
  }

  async close(): Promise<void> {
    this.closed = true;
    return Promise.resolve();
  }

  /**
   * What goes to the disk for a write: sectors that it covers in part go with the rest of them, as
   * the page cache has it.
   */
  #wholeSectors(offset: number, bytes: Uint8Array): { readonly offset: number; readonly bytes: Uint8Array } {
    const from = offset - (offset % sectorBytes);
    const end = Math.ceil((offset + bytes.byteLength) / sectorBytes) * sectorBytes;
    const fileEnd = Math.max(this.#visible.byteLength, offset + bytes.byteLength);
    const whole = new Uint8Array(Math.min(end, fileEnd) - from);
    whole.set(this.#visible.subarray(from, from + whole.byteLength));
    whole.set(bytes, offset - from);
    return { offset: from, bytes: whole };
  }

  #change(event: Change): void {
    this.log.push(event);
    this.#visible = changed(this.#visible, event, () => true);
  }

  async #call<Result>(
    call: "read" | "write" | "truncate" | "datasync" | "remove",
    done: () => Result,
    code?: string,
  ): Promise<Result> {
    if (this.closed) throw new Error(`${call} after close`);
    this.callsUnderWay += 1;
    await turns(Math.floor(this.#random() * 6));
    this.callsUnderWay -= 1;
    const failure = call === "read" ? this.fail(call) : code;
    if (failure !== undefined) throw Object.assign(new Error(`${failure}: planned`), { code: failure });
    return done();
  }
}
