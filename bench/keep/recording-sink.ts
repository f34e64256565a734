/**
 * Recording sink: notes the objects and ranges that pass through it, so that a yardstick can repeat
 * the same transfers alone.
 */
import type { CallOptions, PutCondition, Sink, StoredObject } from "../../engine/index.ts";
import { throwIfAborted } from "../../engine/index.ts";
import { NestedSink } from "../nested-sink.ts";

/** `get` and `put`: a whole object. `read`: a range of pages. What failed is none. */
type Transfer =
  | { readonly kind: "get" | "put"; readonly name: string; readonly sizeBytes: number }
  | { readonly kind: "read"; readonly name: string; readonly offset: number; readonly sizeBytes: number };

export class RecordingSink extends NestedSink {
  readonly #transfers: Transfer[] = [];

  /** Bytes of objects written so far; pages do not count. */
  get putBytes(): number {
    return sizeOf(this.#transfers.filter(({ kind }) => kind === "put"));
  }

  /** Bytes of objects and pages read so far. */
  get readBytes(): number {
    return sizeOf(this.#transfers.filter(({ kind }) => kind !== "put"));
  }

  override async getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    const object = await super.getObject(name, sizeBytesMax, options);
    this.#transfers.push({ kind: "get", name, sizeBytes: object.bytes.byteLength });
    return object;
  }

  override async putObject(
    name: string,
    bytes: Uint8Array,
    condition: PutCondition,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
    const written = await super.putObject(name, bytes, condition, options);
    this.#transfers.push({ kind: "put", name, sizeBytes: bytes.byteLength });
    return written;
  }

  override async readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    await super.readPages(name, offset, into, options);
    this.#transfers.push({ kind: "read", name, offset, sizeBytes: into.byteLength });
  }

  /**
   * Makes all transfers again, one after the other. What was written goes to names of its own below
   * `prefix`, which is used once. Nothing that was read may have been deleted meanwhile. Returns
   * the bytes transferred.
   */
  async repeat(sink: Sink, prefix: string, signal: AbortSignal | undefined): Promise<number> {
    for (const [index, transfer] of this.#transfers.entries()) {
      throwIfAborted(signal);
      const { name, sizeBytes } = transfer;
      switch (transfer.kind) {
        case "get":
          await sink.getObject(name, sizeBytesMax, { signal });
          break;
        case "put":
          await sink.putObject(`${prefix}${index}`, Buffer.alloc(sizeBytes), { ifAbsent: true }, { signal });
          break;
        case "read":
          await sink.readPages(name, transfer.offset, Buffer.alloc(sizeBytes), { signal });
          break;
      }
    }
    return sizeOf(this.#transfers);
  }
}

/** An object may have grown since: the head does. */
const sizeBytesMax = 16 * 1024 * 1024;

function sizeOf(transfers: readonly Transfer[]): number {
  return transfers.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0);
}
