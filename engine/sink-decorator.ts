/**
 * Sink decorator: a sink that passes every call on to another one. A subclass overrides what it
 * changes: it limits, counts, renames or refuses.
 *
 * The class lists every member of the port. So a member that is added to `Sink` does not compile
 * until it has its place here, and the subclasses get it without a change.
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
} from "./sink.ts";

/**
 * Contract, errors and ownership of buffers of each member are those of `Sink`.
 */
export class SinkDecorator implements Sink {
  protected readonly inner: Sink;

  /** `inner` is closed with the decorator. */
  constructor(inner: Sink) {
    this.inner = inner;
  }

  get description(): string {
    return this.inner.description;
  }

  get capabilities(): Sink["capabilities"] {
    return this.inner.capabilities;
  }

  get clockAheadMs(): number {
    return this.inner.clockAheadMs;
  }

  createContainer(options?: CallOptions): Promise<boolean> {
    return this.inner.createContainer(options);
  }

  getObject(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    return this.inner.getObject(name, sizeBytesMax, options);
  }

  putObject(
    name: string,
    bytes: Uint8Array,
    condition: PutCondition,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
    return this.inner.putObject(name, bytes, condition, options);
  }

  statObject(name: string, options?: CallOptions): Promise<ObjectStat> {
    return this.inner.statObject(name, options);
  }

  deleteObject(name: string, options?: CallOptions): Promise<void> {
    return this.inner.deleteObject(name, options);
  }

  list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject> {
    return this.inner.list(prefix, options);
  }

  acquireLease(name: string, leaseId: string, durationSeconds: number, options?: CallOptions): Promise<void> {
    return this.inner.acquireLease(name, leaseId, durationSeconds, options);
  }

  renewLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    return this.inner.renewLease(name, leaseId, options);
  }

  changeLease(name: string, fromId: string, toId: string, options?: CallOptions): Promise<void> {
    return this.inner.changeLease(name, fromId, toId, options);
  }

  releaseLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    return this.inner.releaseLease(name, leaseId, options);
  }

  createPages(
    name: string,
    sizeBytes: number,
    sequenceNumber: number,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
    return this.inner.createPages(name, sizeBytes, sequenceNumber, options);
  }

  writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options?: CallOptions,
  ): Promise<{ readonly etag: string }> {
    return this.inner.writePages(name, offset, bytes, fence, options);
  }

  readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    return this.inner.readPages(name, offset, into, options);
  }

  clearPages(name: string, offset: number, length: number, options?: CallOptions): Promise<void> {
    return this.inner.clearPages(name, offset, length, options);
  }

  restorePages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<void> {
    return this.inner.restorePages(name, sizeBytes, sequenceNumber, options);
  }

  statPages(name: string, options?: CallOptions): Promise<PagesStat> {
    return this.inner.statPages(name, options);
  }

  raiseSequenceNumber(
    name: string,
    atLeast: number,
    options?: CallOptions,
  ): Promise<{ readonly etag: string; readonly sequenceNumber: number }> {
    return this.inner.raiseSequenceNumber(name, atLeast, options);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.inner[Symbol.asyncDispose]();
  }
}
