/**
 * Nested sink: a store within a store, under a prefix of its own. Each run has a fresh vault in the
 * container it is given, touches nothing that was there before, and can remove what it wrote.
 */
import type {
  CallOptions,
  ListedObject,
  ObjectStat,
  PageFence,
  PagesStat,
  PutCondition,
  Sink,
  StoredObject,
} from "../engine/index.ts";
import { hasCode, type TidemarkError } from "../engine/index.ts";

export class NestedSink implements Sink {
  readonly description: string;
  readonly #outer: Sink;
  readonly #prefix: string;

  /** `prefix` ends with a slash. The outer sink stays its owner's. */
  constructor(outer: Sink, prefix: string) {
    this.description = `${outer.description} (${prefix})`;
    this.#outer = outer;
    this.#prefix = prefix;
  }

  get capabilities(): Sink["capabilities"] {
    return this.#outer.capabilities;
  }

  get clockAheadMs(): number {
    return this.#outer.clockAheadMs;
  }

  /**
   * Deletes what can be deleted under the prefix, and only then says what is still leased: by a
   * process that was killed, until its lease ends. Errors: LEASE_HELD.
   */
  async removeAll(): Promise<void> {
    const names: string[] = [];
    for await (const { name } of this.list("")) names.push(name);
    let leased: TidemarkError | undefined;
    for (const name of names) {
      try {
        await this.deleteObject(name);
      } catch (error) {
        if (!hasCode(error, "LEASE_HELD")) throw error;
        leased = error;
      }
    }
    if (leased !== undefined) throw leased;
  }

  createContainer(options?: CallOptions): Promise<boolean> {
    return this.#outer.createContainer(options);
  }

  getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    return this.#outer.getObject(this.#prefix + name, sizeBytesMax, options);
  }

  putObject(
    name: string,
    bytes: Uint8Array,
    condition: PutCondition,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
    return this.#outer.putObject(this.#prefix + name, bytes, condition, options);
  }

  statObject(name: string, options?: CallOptions): Promise<ObjectStat> {
    return this.#outer.statObject(this.#prefix + name, options);
  }

  deleteObject(name: string, options?: CallOptions): Promise<void> {
    return this.#outer.deleteObject(this.#prefix + name, options);
  }

  async *list(prefix: string, options?: CallOptions): AsyncGenerator<ListedObject, void> {
    for await (const object of this.#outer.list(this.#prefix + prefix, options)) {
      yield { ...object, name: object.name.slice(this.#prefix.length) };
    }
  }

  acquireLease(name: string, leaseId: string, durationSeconds: number, options?: CallOptions): Promise<void> {
    return this.#outer.acquireLease(this.#prefix + name, leaseId, durationSeconds, options);
  }

  renewLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    return this.#outer.renewLease(this.#prefix + name, leaseId, options);
  }

  changeLease(name: string, fromId: string, toId: string, options?: CallOptions): Promise<void> {
    return this.#outer.changeLease(this.#prefix + name, fromId, toId, options);
  }

  releaseLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    return this.#outer.releaseLease(this.#prefix + name, leaseId, options);
  }

  createPages(
    name: string,
    sizeBytes: number,
    sequenceNumber: number,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
    return this.#outer.createPages(this.#prefix + name, sizeBytes, sequenceNumber, options);
  }

  writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
    return this.#outer.writePages(this.#prefix + name, offset, bytes, fence, options);
  }

  readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    return this.#outer.readPages(this.#prefix + name, offset, into, options);
  }

  clearPages(name: string, offset: number, length: number, options?: CallOptions): Promise<void> {
    return this.#outer.clearPages(this.#prefix + name, offset, length, options);
  }

  restorePages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<void> {
    return this.#outer.restorePages(this.#prefix + name, sizeBytes, sequenceNumber, options);
  }

  statPages(name: string, options?: CallOptions): Promise<PagesStat> {
    return this.#outer.statPages(this.#prefix + name, options);
  }

  raiseSequenceNumber(
    name: string,
    atLeast: number,
    options?: CallOptions,
  ): Promise<{ readonly etag: string; readonly sequenceNumber: number }> {
    return this.#outer.raiseSequenceNumber(this.#prefix + name, atLeast, options);
  }

  /** Does nothing: the outer sink is not ours. */
  [Symbol.asyncDispose](): Promise<void> {
    return Promise.resolve();
  }
}
