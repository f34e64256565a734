/**
 * A device in memory whose calls are done when the test says so, a sector at a time: reads are torn
 * by writes and writes by reads, as on any real disk. And a tracking file that is a set of regions.
 */
import assert from "node:assert/strict";
import type { BlockDevice, DeviceExtent } from "../../../../engine/device.ts";
import { regionBytes } from "../../../../engine/disk/tracking/dirty-bitmap.ts";
import type { Tracking } from "../../../../engine/disk/tracking/protected-disk-options.ts";
import type { TidemarkError } from "../../../../engine/errors.ts";

export const sectorBytes = 512;

/** A call that is under way. */
export interface PendingCall {
  readonly kind: "read" | "write" | "zero" | "trim";
  readonly offset: number;
  readonly length: number;
  /** Does the next sector. The call is done with the last one. */
  step(): void;
  /** Ends the call where it stands. */
  fail(error: Error): void;
}

export class ModelDevice implements BlockDevice {
  readonly description = "the model device";
  readonly readOnly = false;
  bytes: Buffer;
  /** Calls are done at once. */
  isPrompt = true;
  /** `tryRead` and `tryWrite` do what they are asked. */
  hasShortWay = false;
  /** Thrown by the calls that the test names. */
  failure: ((kind: PendingCall["kind"] | "tryRead" | "tryWrite", offset: number) => Error | undefined) | undefined;
  readonly pending: PendingCall[] = [];
  flushes = 0;
  isClosed = false;

  constructor(bytes: Buffer) {
    this.bytes = bytes;
  }

  get sizeBytes(): number {
    return this.bytes.length;
  }

  /** Calls under way that change something. */
  get writesPending(): number {
    return this.pending.filter(({ kind }) => kind !== "read").length;
  }

  /** Does all calls that are under way, and from now on all others at once. */
  settle(): void {
    this.isPrompt = true;
    for (const call of this.pending.slice()) while (this.pending.includes(call)) call.step();
  }

  tryRead(offset: number, into: Uint8Array): boolean {
    if (!this.hasShortWay) return false;
    this.#throwIfPlanned("tryRead", offset);
    into.set(this.bytes.subarray(offset, offset + into.length));
    return true;
  }

  tryWrite(offset: number, bytes: Uint8Array): boolean {
    if (!this.hasShortWay) return false;
    this.#throwIfPlanned("tryWrite", offset);
    this.bytes.set(bytes, offset);
    return true;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#begin("read", offset, into.length, (from, to) =>
      into.set(this.bytes.subarray(from, to), from - offset),
    );
  }

  write(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#begin("write", offset, bytes.length, (from, to) =>
      this.bytes.set(bytes.subarray(from - offset, to - offset), from),
    );
  }

  zero(offset: number, length: number): Promise<void> {
    return this.#begin("zero", offset, length, (from, to) => this.bytes.fill(0, from, to));
  }

  trim(offset: number, length: number): Promise<void> {
    return this.#begin("trim", offset, length, (from, to) => this.bytes.fill(0, from, to));
  }

  async flush(): Promise<void> {
    this.flushes += 1;
  }

  extents(offset: number, length: number): DeviceExtent[] {
    return [{ kind: "data", offset, length }];
  }

  async close(): Promise<void> {
    this.isClosed = true;
  }

  #throwIfPlanned(kind: PendingCall["kind"] | "tryRead" | "tryWrite", offset: number): void {
    const error = this.failure?.(kind, offset);
    if (error !== undefined) throw error;
  }

  async #begin(
    kind: PendingCall["kind"],
    offset: number,
    length: number,
    apply: (from: number, to: number) => void,
  ): Promise<void> {
    assert(!this.isClosed && offset >= 0 && offset + length <= this.bytes.length, "a call lies inside an open device");
    this.#throwIfPlanned(kind, offset);
    if (this.isPrompt) {
      apply(offset, offset + length);
      return;
    }
    await new Promise<void>((resolve, reject) => {
      let at = offset;
      const remove = (): void => {
        this.pending.splice(this.pending.indexOf(call), 1);
      };
      const call: PendingCall = {
        kind,
        offset,
        length,
        step: () => {
          const to = Math.min(at + sectorBytes, offset + length);
          apply(at, to);
          at = to;
          if (at < offset + length) return;
          remove();
          resolve();
        },
        fail: (error) => {
          remove();
          reject(error);
        },
      };
      this.pending.push(call);
    });
  }
}

/** Regions are durable once `makeDurable` has been let through. */
export class ModelTracking implements Tracking {
  readonly durable: Set<number> = new Set();
  readonly expected: string[] = [];
  bases: readonly string[] = [];
  isNeeded: (region: number) => boolean = () => true;
  closed: "no" | "clean" | "crashed" = "no";
  saved: { readonly base: string | undefined; readonly granules: number } | undefined;
  lost: TidemarkError | undefined;
  sizeBytes = 0;
  /** Awaited by `makeDurable` before it has its effect. */
  beforeDurable: () => Promise<void> = () => Promise.resolve();

  isDurable(offset: number, length: number): boolean {
    return regionsOf(offset, length).every((region) => this.durable.has(region));
  }

  async makeDurable(offset: number, length: number): Promise<void> {
    await this.beforeDurable();
    for (const region of regionsOf(offset, length)) this.durable.add(region);
  }

  async expectPoint(point: string): Promise<void> {
    this.expected.push(point);
  }

  settled(bases: readonly string[], isNeeded: (region: number) => boolean): void {
    this.bases = bases;
    this.isNeeded = isNeeded;
  }

  async grow(sizeBytes: number): Promise<void> {
    this.sizeBytes = sizeBytes;
  }

  async closeClean(base: string | undefined, dirty: { readonly count: number }): Promise<undefined> {
    this.closed = "clean";
    this.saved = { base, granules: dirty.count };
  }

  async close(): Promise<void> {
    this.closed = "crashed";
  }
}

function regionsOf(offset: number, length: number): number[] {
  const regions: number[] = [];
  for (let region = Math.floor(offset / regionBytes); region * regionBytes < offset + length; region += 1)
    regions.push(region);
  return regions;
}

/** Resolves when everything that could go on without the test has done so, file calls excepted. */
export async function quiet(): Promise<void> {
  await new Promise<void>((resolve) => {
    setImmediate(resolve);
  });
}
