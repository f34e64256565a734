/**
 * For agents that have a changed-block list of their own: it gathers what they report, and gives `replicate` only that to read. What
 * is reported while a cycle runs belongs to the next one; what a failed cycle was to ship stays changed.
 *
 * It knows which point its list begins at. If the vault's newest point is another (somebody else wrote, the store went back in
 * time, this is a new process), it does not apply, and the disk is compared whole.
 */
import type { ChangeSource, Extent } from "../../volume.ts";
import { DirtyBitmap } from "./dirty-bitmap.ts";

export class ChangeTracker implements ChangeSource {
  #since: string | undefined;
  #changed: DirtyBitmap;
  #shipping: DirtyBitmap | undefined;
  #sizeBytes: number;

  /** `since`: id of the point that the list begins at; absent, the next cycle compares the disk whole. */
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

  /** Reports what has been written, or may have been. To be called before the write is acknowledged to whoever made it. */
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
