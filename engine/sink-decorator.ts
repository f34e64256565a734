/**
 * Sink decorator: a sink that passes every call on to another one. A subclass overrides the calls
 * that it changes, or `send`, by which all of them but `list` go: it limits, counts, renames or
 * refuses.
 *
 * The class lists every member of the port. So a member that is added to `Sink` does not compile
 * until it has its place here, and the subclasses get it without a change.
 */
import type { CallOptions, ListedObject, ObjectStat, PagesStat, Raised, Sink, StoredObject, Written } from "./sink.ts";

/** A method of `Sink` that is one request to the store. */
export type SinkRequest = Exclude<
  keyof Sink,
  "description" | "capabilities" | "clockAheadMs" | "list" | typeof Symbol.asyncDispose
>;

/** What the store answers to a request. */
export type Answer<Method extends SinkRequest> = Awaited<ReturnType<Sink[Method]>>;

/**
 * Contract, errors and ownership of buffers of each member are those of `Sink`.
 */
export class SinkDecorator implements Sink {
  readonly inner: Sink;

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

  protected send<Method extends SinkRequest>(
    method: Method,
    call: readonly [...Parameters<Sink[Method]>],
  ): Promise<Answer<Method>> {
    const request = this.inner[method] as unknown as (...call: readonly unknown[]) => Promise<Answer<Method>>;
    return Reflect.apply(request, this.inner, call);
  }

  createContainer(...call: Parameters<Sink["createContainer"]>): Promise<boolean> {
    return this.send("createContainer", call);
  }

  getObject(...call: Parameters<Sink["getObject"]>): Promise<StoredObject> {
    return this.send("getObject", call);
  }

  putObject(...call: Parameters<Sink["putObject"]>): Promise<Written> {
    return this.send("putObject", call);
  }

  statObject(...call: Parameters<Sink["statObject"]>): Promise<ObjectStat> {
    return this.send("statObject", call);
  }

  deleteObject(...call: Parameters<Sink["deleteObject"]>): Promise<void> {
    return this.send("deleteObject", call);
  }

  list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject> {
    return this.inner.list(prefix, options);
  }

  acquireLease(...call: Parameters<Sink["acquireLease"]>): Promise<void> {
    return this.send("acquireLease", call);
  }

  renewLease(...call: Parameters<Sink["renewLease"]>): Promise<void> {
    return this.send("renewLease", call);
  }

  changeLease(...call: Parameters<Sink["changeLease"]>): Promise<void> {
    return this.send("changeLease", call);
  }

  releaseLease(...call: Parameters<Sink["releaseLease"]>): Promise<void> {
    return this.send("releaseLease", call);
  }

  createPages(...call: Parameters<Sink["createPages"]>): Promise<Written> {
    return this.send("createPages", call);
  }

  writePages(...call: Parameters<Sink["writePages"]>): Promise<Written> {
    return this.send("writePages", call);
  }

  readPages(...call: Parameters<Sink["readPages"]>): Promise<void> {
    return this.send("readPages", call);
  }

  clearPages(...call: Parameters<Sink["clearPages"]>): Promise<void> {
    return this.send("clearPages", call);
  }

  restorePages(...call: Parameters<Sink["restorePages"]>): Promise<void> {
    return this.send("restorePages", call);
  }

  statPages(...call: Parameters<Sink["statPages"]>): Promise<PagesStat> {
    return this.send("statPages", call);
  }

  raiseSequenceNumber(...call: Parameters<Sink["raiseSequenceNumber"]>): Promise<Raised> {
    return this.send("raiseSequenceNumber", call);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.inner[Symbol.asyncDispose]();
  }
}
