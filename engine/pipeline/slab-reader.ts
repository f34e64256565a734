/** Blocking reads of a worker thread from a volume's descriptor into a slab. */
import { readSync } from "node:fs";
import { systemCode } from "../errors.ts";
import type { SlabViews } from "./slabs.ts";
import type { ScanSource } from "./worker-tasks.ts";

/**
 * How much is read at a time: it stays in a core's second-level cache until it has been
 * fingerprinted.
 */
const pieceBytes = 256 * 1024;

/**
 * Reads a slab piece by piece, a little ahead of the scan: what has just been read is
 * still in the core's cache.
 */
export class SlabReader {
  readonly #slab: SlabViews;
  readonly #source: ScanSource;
  #read = 0;
  #done = 0;

  constructor(slab: SlabViews, source: ScanSource) {
    this.#slab = slab;
    this.#source = source;
  }

  /** Makes sure that `data` is filled up to `end`. False: a read failed or ended early. */
  readUntil(end: number): boolean {
    const { descriptor, reads } = this.#source;
    for (;;) {
      const read = reads[this.#read];
      if (read === undefined || read.at + this.#done >= end) return true;
      const length = Math.min(read.length - this.#done, pieceBytes);
      try {
        const count = readSync(descriptor, this.#slab.data, read.at + this.#done, length, read.offset + this.#done);
        if (count === 0) return false;
        this.#done += count;
      } catch (error) {
        if (systemCode(error) === undefined) throw error;
        return false;
      }
      if (this.#done < read.length) continue;
      this.#read += 1;
      this.#done = 0;
    }
  }
}
