/**
 * Block device: the port for a disk that can be written. Front ends (NBD) serve one, and a
 * protected disk wraps one.
 *
 * Ranges lie inside the disk; the caller checks that. Offsets and lengths are bytes of any
 * alignment. Calls overlap; what overlapping writes leave is undefined, as on any disk.
 *
 * `tryRead` and `tryWrite` answer from the page cache at once, without a promise and a turn of the
 * event loop, which is most of the cost of a small request. When the call might block they do
 * nothing and return false; the caller then calls `read` or `write`.
 */
import type { Extent } from "./volume.ts";

/** A range of a device, and what can be told of it without reading. */
export interface DeviceExtent extends Extent {
  /** A hole reads as zeros and takes no space; data may hold anything. */
  readonly kind: "data" | "hole";
}

/**
 * A disk that can be read and written. The caller owns every buffer again once the call has
 * returned or its promise has settled.
 */
export interface BlockDevice {
  /** A path or a name, for messages. */
  readonly description: string;
  /** Present size in bytes. It never shrinks while the device is open. */
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Fills `into` from `offset`, or returns false. Errors: SOURCE_UNREADABLE. */
  tryRead(offset: number, into: Uint8Array): boolean;
  /** Fills `into` from `offset`. Errors: SOURCE_UNREADABLE. */
  read(offset: number, into: Uint8Array): Promise<void>;
  /**
   * Writes `bytes` at `offset`, or returns false. A write that failed may have been done in part.
   * Errors: NO_SPACE, ACCESS_REFUSED, DEVICE_FAILED.
   */
  tryWrite(offset: number, bytes: Uint8Array): boolean;
  /**
   * Writes `bytes`, which belong to the device until the promise settles. Errors: as of `tryWrite`.
   */
  write(offset: number, bytes: Uint8Array): Promise<void>;
  /**
   * Makes the range read as zeros. With `mayTrim` the device may free its space. Errors: as of
   * `tryWrite`.
   */
  zero(offset: number, length: number, mayTrim: boolean): Promise<void>;
  /**
   * The content is not needed any more: the range then reads as zeros or as before. Errors: as of
   * `tryWrite`.
   */
  trim(offset: number, length: number): Promise<void>;
  /**
   * Once it has resolved, every write that had ended before the call survives a power failure.
   * Errors: as of `tryWrite`.
   */
  flush(): Promise<void>;
  /**
   * What [offset, offset + length) holds, as far as that is known at once: sorted, without gaps, at
   * most `countMax` extents from `offset` on. Empty: it has to be looked up.
   */
  extents(offset: number, length: number, countMax: number): DeviceExtent[];
  /**
   * As `extents`, but looks up what is not known. Absent: `extents` knows all. Errors: as of
   * `read`.
   */
  lookUp?(offset: number, length: number, countMax: number): Promise<DeviceExtent[]>;
  /** Waits for the calls that are running, then releases the device. Idempotent. */
  close(): Promise<void>;
}
