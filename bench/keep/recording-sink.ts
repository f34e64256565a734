/**
 * Recording sink: notes the objects and ranges that pass through it, so that a yardstick can repeat
 * the same transfers alone.
 */
import type { Sink, StoredObject, Written } from "../../engine/index.ts";
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

  override async getObject(...call: Parameters<Sink["getObject"]>): Promise<StoredObject> {
    const object = await super.getObject(...call);
    this.#transfers.push({ kind: "get", name: call[0], sizeBytes: object.bytes.byteLength });
    return object;
  }

  override async putObject(...call: Parameters<Sink["putObject"]>): Promise<Written> {
    const written = await super.putObject(...call);
    this.#transfers.push({ kind: "put", name: call[0], sizeBytes: call[1].byteLength });
    return written;
  }

  override async readPages(...call: Parameters<Sink["readPages"]>): Promise<void> {
    await super.readPages(...call);
    const [name, offset, into] = call;
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
