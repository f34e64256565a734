/**
 * A disk that can be written: what a front end serves and what a protected disk wraps. Ranges lie inside the disk, which the caller
 * has checked; offsets and lengths are bytes of any alignment. Calls overlap; what overlapping writes leave is undefined, as on any
 * disk.
 *
 * `tryRead` and `tryWrite` do what the page cache can answer at once, without a promise and a turn of the event loop, which is most
 * of what small requests cost. They return false, having done nothing, when that might block; the caller then takes the long way.
 */
import type { Extent } from "./volume.ts";

/** What a range of a device holds, as far as it can be told without reading. */
export interface DeviceExtent extends Extent {
  /** A hole reads as zeros and takes no space; data may hold anything. */
  readonly kind: "data" | "hole";
}

export interface BlockDevice {
  /** For messages: a path or a name. */
  readonly description: string;
  /** Size now, in bytes. It never shrinks while the device is open. */
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Errors: SOURCE_UNREADABLE. */
  tryRead(offset: number, into: Uint8Array): boolean;
  read(offset: number, into: Uint8Array): Promise<void>;
  /** Errors: NO_SPACE, ACCESS_REFUSED, DEVICE_FAILED. A write that failed may have been done in part. */
  tryWrite(offset: number, bytes: Uint8Array): boolean;
  /** `bytes` belong to the device until it settles. */
  write(offset: number, bytes: Uint8Array): Promise<void>;
  /** Makes the range read as zeros; with `mayTrim` space may be given back. Errors: as of `tryWrite`. */
  zero(offset: number, length: number, mayTrim: boolean): Promise<void>;
  /** The content is not needed any more: a hint. What the range reads as afterwards is zeros or what it was. Errors: as of `tryWrite`. */
  trim(offset: number, length: number): Promise<void>;
  /** When it resolves, every write that had been done when it was called survives a power failure. Errors: as of `tryWrite`. */
  flush(): Promise<void>;
  /**
   * What [offset, offset + length) holds, as far as that can be told at once: sorted, disjoint, without gaps, at most `countMax` extents from
   * `offset` on. None: it has to be looked up, and until then counts as data.
   */
  extents(offset: number, length: number, countMax: number): DeviceExtent[];
  /** As `extents`, but looks wherever it has to, so that it tells all of the range that `countMax` allows. Absent: `extents` does. Errors: as of `read`. */
  lookUp?(offset: number, length: number, countMax: number): Promise<DeviceExtent[]>;
  /** Waits for what is under way. Idempotent. */
  close(): Promise<void>;
}
