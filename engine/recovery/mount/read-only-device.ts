/**
 * Read-only block device: the half of a device that refuses writes, for what shows a committed
 * point.
 */
import type { BlockDevice, DeviceExtent } from "../../device.ts";
import { TidemarkError } from "../../errors.ts";

export abstract class ReadOnlyDevice implements BlockDevice {
  readonly readOnly = true;
  abstract readonly description: string;
  abstract readonly sizeBytes: number;

  abstract tryRead(offset: number, into: Uint8Array): boolean;
  abstract read(offset: number, into: Uint8Array): Promise<void>;
  abstract extents(offset: number, length: number, countMax: number): DeviceExtent[];
  abstract close(): Promise<void>;

  tryWrite(): boolean {
    return false;
  }

  write(): Promise<void> {
    return Promise.reject(this.#refused());
  }

  zero(): Promise<void> {
    return Promise.reject(this.#refused());
  }

  trim(): Promise<void> {
    return Promise.reject(this.#refused());
  }

  async flush(): Promise<void> {
    // Nothing is ever written.
  }

  #refused(): TidemarkError {
    return new TidemarkError(
      "ACCESS_REFUSED",
      `${this.description} cannot be written: what is committed never changes`,
      { remedy: "mount it with `--writable`: changes then go to an overlay" },
    );
  }
}
