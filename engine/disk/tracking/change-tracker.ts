/**
 * Change tracker: a changed-block list for embedders that see the writes themselves. `replicate`
 * then reads only what the list names.
 *
 * Changes that are reported while a cycle runs belong to the next cycle. Changes of a cycle that
 * failed stay in the list.
 *
 * The list begins at one point. If the vault's newest point is another (another writer, a store
 * that went back in time, a new process), the list does not apply and the whole disk is compared.
 */
import type { ChangeSource, Extent } from "../../volume.ts";
import { DirtyBitmap } from "./dirty-bitmap.ts";

/**
 * A list of changes for programs that see the writes themselves: `replicate` then reads only these,
 * as long as the list begins at the newest point.
 */
export class ChangeTracker implements ChangeSource {
  #since: string | undefined;
  #changed: DirtyBitmap;
  #shipping: DirtyBitmap | undefined;
  #sizeBytes: number;

  /**
   * `since`: id of the point that the list begins at; absent, the next cycle compares the disk
   * whole.
   */
  constructor(sizeBytes: number, since?: string) {
    this.#sizeBytes = sizeBytes;
    this.#changed = new DirtyBitmap(sizeBytes);
    this.#since = since;
  }

  get since(): string | undefined {
    return this.#since;
  }

  /** Bytes reported and not yet in a point, in whole granules of 4 KiB. */
  get dirtyBytes(): number {
    return (this.#changed.count + (this.#shipping?.count ?? 0)) * 4096;
  }

  /**
   * Reports what has been written, or may have been. Call it before the write is acknowledged.
   */
  markDirty(extents: Iterable<Extent>): void {
    for (const { offset, length } of extents) {
      if (offset + length > this.#sizeBytes) this.#grow(offset + length);
      this.#changed.mark(offset, length);
    }
  }

  begin(): Iterable<Extent> {
    this.abandoned();
    this.#shipping = this.#changed;
    this.#changed = new DirtyBitmap(this.#sizeBytes);
    return this.#shipping.extents();
  }

  committed(point: string): void {
    this.#shipping = undefined;
    this.#since = point;
  }

  abandoned(): void {
    if (this.#shipping !== undefined) this.#changed.or(this.#shipping);
    this.#shipping = undefined;
  }

  #grow(sizeBytes: number): void {
    this.#sizeBytes = sizeBytes;
    this.#changed.grow(sizeBytes);
    this.#shipping?.grow(sizeBytes);
  }
}
