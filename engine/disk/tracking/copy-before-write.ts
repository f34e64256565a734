/**
 * Copy-before-write area: the old content of granules that are overwritten while a cut is captured.
 * It lies in memory first, then in a spill file.
 *
 *     memory   pages of 1 MiB, made on demand, of `oldContentBytesMax` for all disks of the process
 *     spill    a file in a folder of the caller's choice, unlinked as soon as it is open, so it vanishes
 *              with the process
 *     table    about 50 bytes a granule kept: 50 MiB when 4 GiB are spilled
 *
 * Both are bounded. A writer reserves the room before it keeps something, so keeping never fails
 * half-way for want of room. A place is free again as soon as its granule has been taken out.
 */
import assert from "node:assert/strict";
import { randomUUID } from "node:crypto";
import { constants } from "node:fs";
import { unlink } from "node:fs/promises";
import { totalmem } from "node:os";
import path from "node:path";
import { TidemarkError } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import { fileError, PositionalFile } from "../source/positional-file.ts";

const pageGranules = 256;
const pageBytes: number = pageGranules * granuleBytes;
/** Pages that stay when cuts end: what disks of moderate churn need again at once. */
const idlePagesMax = 32;

/** Memory for the old content of all disks of a process. */
export const oldContentBytesMax: number = Math.min(128 * 1024 * 1024, Math.floor(totalmem() / 16));

/** Pages that the disks of a process lend from and give back. */
class Pages {
  readonly #idle: Uint8Array[] = [];
  #lent = 0;

  take(): Uint8Array | undefined {
    if (this.#lent >= Math.floor(oldContentBytesMax / pageBytes)) return undefined;
    this.#lent += 1;
    return this.#idle.pop() ?? new Uint8Array(pageBytes);
  }

  give(pages: readonly Uint8Array[]): void {
    this.#lent -= pages.length;
    this.#idle.push(...pages.slice(0, idlePagesMax - this.#idle.length));
  }
}

const shared = new Pages();

/** Neighbouring granules of one page. */
export interface PooledRun {
  readonly slot: number;
  readonly count: number;
}

/**
 * The memory of one disk for old content. It outlives the cuts, which use it one after the other.
 */
export class GranulePool {
  readonly granulesMax: number;
  readonly #pages: Uint8Array[] = [];
  /** A run that is given back lies here in ascending order. */
  readonly #free: number[] = [];
  #next = 0;

  constructor(bytesMax: number) {
    this.granulesMax = Math.floor(bytesMax / granuleBytes);
  }

  /** Up to `most` free neighbours, or undefined when none is free. */
  take(most: number): PooledRun | undefined {
    let slot = this.#free.pop();
    if (slot === undefined) return this.#takeNew(most);
    let count = 1;
    while (count < most && slot % pageGranules > 0 && this.#free.at(-1) === slot - 1) {
      this.#free.pop();
      slot -= 1;
      count += 1;
    }
    return { slot, count };
  }

  #takeNew(most: number): PooledRun | undefined {
    const slot = this.#next;
    if (slot === this.granulesMax) return undefined;
    if (slot === this.#pages.length * pageGranules) {
      const page = shared.take();
      if (page === undefined) return undefined;
      this.#pages.push(page);
    }
    const count = Math.min(most, this.#pages.length * pageGranules - slot, this.granulesMax - slot);
    this.#next += count;
    return { slot, count };
  }

  give({ slot, count }: PooledRun): void {
    for (let given = slot; given < slot + count; given += 1) this.#free.push(given);
  }

  /** The memory of a run that has been taken. */
  view({ slot, count }: PooledRun): Uint8Array {
    const page = this.#pages[Math.floor(slot / pageGranules)];
    assert(page !== undefined, "a granule of the pool is looked at after it was taken");
    const at = (slot % pageGranules) * granuleBytes;
    return page.subarray(at, at + count * granuleBytes);
  }

  /** Everything is free again. */
  reset(): void {
    this.#free.length = 0;
    this.#next = 0;
    shared.give(this.#pages.splice(0));
  }
}

export interface SpillOptions {
  /** Undefined: nothing is spilled. */
  readonly folder: string | undefined;
  readonly bytesMax: number;
}

/** Spilled granules that lie together, in the file and in what is to be filled. */
interface SpilledRun {
  readonly slot: number;
  count: number;
  readonly at: number;
}

/** What is kept for one cut. It uses the pool alone until it is closed. */
export class CopyBeforeWriteArea {
  readonly #pool: GranulePool;
  readonly #folder: string | undefined;
  readonly #granulesMax: number;
  /** Granule → its place: a number of the pool, or −1 − a number in the spill file. */
  readonly #places = new Map<number, number>();
  readonly #spillFree: number[] = [];
  #spillNext = 0;
  #spill: Promise<PositionalFile> | undefined;
  /** Places that are taken: of granules kept, being written to the file, or being read back. */
  #used = 0;
  #reserved = 0;
  #closing: Promise<void> | undefined;

  constructor(pool: GranulePool, spill: SpillOptions) {
    this.#pool = pool;
    this.#folder = spill.folder;
    this.#granulesMax = pool.granulesMax + (spill.folder === undefined ? 0 : Math.floor(spill.bytesMax / granuleBytes));
  }

  /** Bytes kept, in memory and spilled. */
  get bytes(): number {
    return this.#used * granuleBytes;
  }

  /** Part of all room, in memory and in the file, that is taken: 0 to 1. */
  get usedShare(): number {
    return this.#used / Math.max(1, this.#granulesMax);
  }

  has(granule: number): boolean {
    return this.#places.has(granule);
  }

  /**
   * Sets room aside for `granules` granules that `keep` will be given. False: there is not that
   * much.
   */
  reserve(granules: number): boolean {
    if (this.#used + this.#reserved + granules > this.#granulesMax) return false;
    this.#reserved += granules;
    return true;
  }

  /** Gives back room that was reserved and will not be used. */
  unreserve(granules: number): void {
    if (this.#closing !== undefined) return;
    this.#reserved -= granules;
    assert(this.#reserved >= 0, "room is given back once");
  }

  /**
   * Keeps `count` granules from `first` on in memory if `fill` can say at once what they held, run by
   * run. False: there is no memory left, or it cannot; what has been kept by then is kept.
   */
  tryKeep(first: number, count: number, fill: (granule: number, into: Uint8Array) => boolean): boolean {
    if (this.#used + this.#reserved + count > this.#granulesMax) return false;
    for (let done = 0; done < count; ) {
      const run = this.#pool.take(count - done);
      if (run === undefined) return false;
      let filled = false;
      try {
        filled = fill(first + done, this.#pool.view(run));
      } finally {
        if (!filled) this.#pool.give(run);
      }
      if (!filled) return false;
      this.#place(first + done, run);
      done += run.count;
    }
    return true;
  }

  #place(first: number, { slot, count }: PooledRun): void {
    for (let index = 0; index < count; index += 1) this.#places.set(first + index, slot + index);
    this.#used += count;
  }

  /**
   * Keeps whole granules from `first` on, for which room has been reserved; `bytes` may be used
   * again when it settles. Errors: NO_SPACE, ACCESS_REFUSED, TARGET_FAILED when the spill file
   * cannot be written; then those that did not fit in memory are not kept.
   */
  async keep(first: number, bytes: Uint8Array): Promise<void> {
    const count = bytes.byteLength / granuleBytes;
    assert(Number.isInteger(count) && count > 0, "whole granules are kept");
    this.unreserve(count);
    let done = 0;
    while (done < count) {
      const run = this.#pool.take(count - done);
      if (run === undefined) break;
      this.#pool.view(run).set(bytes.subarray(done * granuleBytes, (done + run.count) * granuleBytes));
      this.#place(first + done, run);
      done += run.count;
    }
    if (done < count) await this.#keepInFile(first + done, bytes.subarray(done * granuleBytes));
  }

  /**
   * Takes out what is kept of the granules that `into` covers, from granule `first` on, and copies
   * it there; the rest of `into` is left alone. True when anything was; a promise while the spill
   * file is being read. Errors: TARGET_FAILED.
   */
  take(first: number, into: Uint8Array): boolean | Promise<true> {
    if (this.#places.size === 0) return false;
    let isKept = false;
    const runs: SpilledRun[] = [];
    for (let at = 0, granule = first; at < into.byteLength; at += granuleBytes, granule += 1) {
      const place = this.#places.get(granule);
      if (place === undefined) continue;
      this.#places.delete(granule);
      isKept = true;
      if (place >= 0) {
        const part = into.subarray(at, at + granuleBytes);
        const kept = { slot: place, count: 1 };
        part.set(this.#pool.view(kept).subarray(0, part.byteLength));
        this.#pool.give(kept);
        this.#used -= 1;
        continue;
      }
      const slot = -1 - place;
      const last = runs.at(-1);
      if (last !== undefined && last.slot + last.count === slot && last.at + last.count * granuleBytes === at)
        last.count += 1;
      else runs.push({ slot, count: 1, at });
    }
    return runs.length === 0 ? isKept : this.#readBack(runs, into);
  }

  /** Forgets a granule that is not needed any more. One that is not kept is no error. */
  drop(granule: number): void {
    const place = this.#places.get(granule);
    if (place === undefined) return;
    this.#places.delete(granule);
    if (place >= 0) {
      this.#pool.give({ slot: place, count: 1 });
      this.#used -= 1;
    } else {
      this.#freeSpilled(-1 - place, 1);
    }
  }

  /**
   * Forgets everything, gives the pool back, and resolves when the spill file is gone. Idempotent.
   */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#places.clear();
    this.#used = 0;
    this.#reserved = 0;
    this.#pool.reset();
    if (this.#spill === undefined) return;
    // A file that could not be opened has nothing to close, and one that fails to close has been
    // forgotten already.
    const [opened] = await Promise.allSettled([this.#spill]);
    if (opened.status === "fulfilled") await Promise.allSettled([opened.value.close()]);
  }

  async #keepInFile(first: number, bytes: Uint8Array): Promise<void> {
    const count = bytes.byteLength / granuleBytes;
    const slots: number[] = [];
    while (slots.length < count) slots.push(this.#spillFree.pop() ?? this.#nextSpillSlot());
    slots.sort((a, b) => a - b);
    this.#used += count;
    try {
      this.#spill ??= this.#openSpill();
      const file = await this.#spill;
      for (let from = 0; from < count; ) {
        const slot = slots[from] ?? 0;
        let run = 1;
        while (slots[from + run] === slot + run) run += 1;
        await file.write(slot * granuleBytes, bytes.subarray(from * granuleBytes, (from + run) * granuleBytes));
        from += run;
      }
    } catch (error) {
      if (this.#closing !== undefined) return;
      for (const slot of slots) this.#freeSpilled(slot, 1);
      throw fileError(error, {
        code: "TARGET_FAILED",
        what: `cannot keep old content in ${this.#folder ?? ""}`,
        remedy: "free space there or name another folder for spilled content",
      });
    }
    if (this.#closing !== undefined) return;
    for (const [index, slot] of slots.entries()) this.#places.set(first + index, -1 - slot);
  }

  #nextSpillSlot(): number {
    const slot = this.#spillNext;
    this.#spillNext += 1;
    return slot;
  }

  async #openSpill(): Promise<PositionalFile> {
    assert(this.#folder !== undefined, "without a folder nothing is reserved beyond the memory");
    const name = path.join(this.#folder, `preserved-${randomUUID()}`);
    const file = await PositionalFile.openPlain(name, constants.O_RDWR | constants.O_CREAT | constants.O_EXCL);
    try {
      await unlink(name);
    } catch (error) {
      await Promise.allSettled([file.close()]);
      throw error;
    }
    return file;
  }

  async #readBack(runs: readonly SpilledRun[], into: Uint8Array): Promise<true> {
    const outcomes = await Promise.allSettled(
      runs.map(async ({ slot, count, at }) => {
        const part = into.subarray(at, at + count * granuleBytes);
        const file = await this.#spill;
        const read = await file?.read(slot * granuleBytes, part);
        if (read === part.byteLength) return;
        throw new TidemarkError(
          "TARGET_FAILED",
          `old content kept in ${this.#folder ?? ""} cannot be read back: the file is too short`,
          {
            remedy: "check the file system of that folder",
          },
        );
      }),
    );
    if (this.#closing === undefined) for (const { slot, count } of runs) this.#freeSpilled(slot, count);
    for (const outcome of outcomes) {
      if (outcome.status === "fulfilled") continue;
      throw fileError(outcome.reason, {
        code: "TARGET_FAILED",
        what: `cannot read back old content kept in ${this.#folder ?? ""}`,
        remedy: "check the file system of that folder",
      });
    }
    return true;
  }

  #freeSpilled(slot: number, count: number): void {
    for (let freed = 0; freed < count; freed += 1) this.#spillFree.push(slot + freed);
    this.#used -= count;
  }
}
