/**
 * Direct I/O: writes past the page cache (O_DIRECT), for a new image that no other process reads or
 * writes. Nothing is copied into the cache, and what other programs have there stays.
 *
 * The whole units of a write go past the cache, its ends go through it, so no page of memory is
 * written both ways. Where the file system or the device refuses, everything goes through the cache.
 */
import { constants } from "node:fs";
import { systemCode } from "../../errors.ts";
import { granuleBytes } from "../../limits.ts";
import { PositionalFile } from "./positional-file.ts";

/** No machine has larger pages. */
const unitBytes = 65_536;

export class DirectWrites {
  readonly #file: PositionalFile;
  #direct: PositionalFile | undefined;

  private constructor(file: PositionalFile, direct: PositionalFile | undefined) {
    this.#file = file;
    this.#direct = direct;
  }

  /** Writes to `file`, which stays the caller's. */
  static async to(file: PositionalFile): Promise<DirectWrites> {
    const opening = PositionalFile.open(`/proc/self/fd/${file.fd}`, constants.O_WRONLY | constants.O_DIRECT);
    return new DirectWrites(file, await opening.catch(() => undefined));
  }

  /** As `PositionalFile.write`. Memory that does not begin on a page is written through the cache. */
  async write(offset: number, bytes: Uint8Array): Promise<void> {
    const from = Math.ceil(offset / unitBytes) * unitBytes - offset;
    const to = Math.floor((offset + bytes.byteLength) / unitBytes) * unitBytes - offset;
    const direct = this.#direct;
    const isDirect = direct !== undefined && from < to && (bytes.byteOffset + from) % granuleBytes === 0;
    if (!isDirect || !(await this.#wrote(direct, offset + from, bytes.subarray(from, to)))) {
      await this.#file.write(offset, bytes);
      return;
    }
    await this.#file.write(offset, bytes.subarray(0, from));
    await this.#file.write(offset + to, bytes.subarray(to));
  }

  /** False when the file system or the device refuses. */
  async #wrote(direct: PositionalFile, offset: number, bytes: Uint8Array): Promise<boolean> {
    try {
      await direct.write(offset, bytes);
      return true;
    } catch (error) {
      if (systemCode(error) !== "EINVAL") throw error;
      this.#direct = undefined;
      await direct.close();
      return false;
    }
  }

  /** Waits for the calls under way. Idempotent. */
  async close(): Promise<void> {
    await this.#direct?.close();
  }
}
