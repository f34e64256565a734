/**
 * Store: the sink's calls, counted, with the protocols that make a write of unknown outcome safe to
 * repeat.
 *
 * A write-once object has a name that only one writer uses, because the name holds the writer's
 * epoch or is random. So repeating the put is safe: if the name is taken, the bytes there must be
 * those of the writer. An object that several processes write is replaced by ETag. Heads and
 * segments have protocols of their own, in `WriterLease` and `Lane`.
 *
 * Invariant: after `putOnce`, `replace` or `createPages` has resolved, the object is what was
 * written, and no earlier try can change it.
 */
import { publish } from "../diagnostics.ts";
import { type ErrorContext, hasCode, TidemarkError, unlessAbsent } from "../errors.ts";
import type {
  CallOptions,
  ListedObject,
  ObjectStat,
  PageFence,
  PagesStat,
  PutCondition,
  Sink,
  StoredObject,
} from "../sink.ts";
import { clockAheadMsMax } from "../timing.ts";
import { sameBytes } from "./format/checksum.ts";
import type { HeadDocument } from "./format/documents.ts";
import { gone } from "./format/fields.ts";
import { keysOf } from "./keys/sealed-sink.ts";
import type { VaultKeys } from "./keys/vault-keys.ts";

/** How often an unknown outcome is resolved and the write repeated before the store is given up. */
export const unknownOutcomesMax = 8;

/**
 * Told each head that is read. Returns an epoch that is known to have been in use, or 0: the epoch
 * of the next writer is above it, also when the store went back behind it.
 */
export type HeadWatch = (head: HeadDocument) => Promise<number>;

/** The calls of one operation or session on a vault's store. The sink stays its owner's. */
export class Store {
  readonly sink: Sink;
  readonly onHead: HeadWatch;
  /** The keys of an encrypted vault. */
  readonly keys: VaultKeys | undefined;
  #requests = 0;
  #putBytes = 0;

  /** `onHead`: see `head-watch.ts`. Absent, heads are not compared with what was seen before. */
  constructor(sink: Sink, onHead: HeadWatch = async () => await Promise.resolve(0)) {
    this.sink = sink;
    this.onHead = onHead;
    this.keys = keysOf(sink);
  }

  get description(): string {
    return this.sink.description;
  }

  /**
   * The time by which points are old, in ms since 1970: that of this machine, or that of the store
   * where this machine's clock is far ahead. The lower of both drops no point too early.
   */
  get nowMs(): number {
    const { clockAheadMs } = this.sink;
    return Date.now() - (clockAheadMs > clockAheadMsMax ? clockAheadMs : 0);
  }

  /** Calls that were made so far. */
  get requests(): number {
    return this.#requests;
  }

  /** Bytes of objects that were written so far, without pages. */
  get putBytes(): number {
    return this.#putBytes;
  }

  /**
   * Reads a whole object. Errors: OBJECT_NOT_FOUND; DAMAGED when it has more than `sizeBytesMax`
   * bytes.
   */
  async get(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    this.#requests += 1;
    return await this.sink.getObject(name, sizeBytesMax, options);
  }

  /** As `get`; undefined when there is no such object. */
  async find(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject | undefined> {
    return await unlessAbsent(this.get(name, sizeBytesMax, options));
  }

  /**
   * One put under a condition. Returns the ETag. Errors: as `Sink.putObject`, OUTCOME_UNKNOWN among
   * them.
   */
  async put(name: string, bytes: Uint8Array, condition: PutCondition, options?: CallOptions): Promise<string> {
    this.#requests += 1;
    const { etag } = await this.sink.putObject(name, bytes, condition, options);
    this.#putBytes += bytes.byteLength;
    return etag;
  }

  /**
   * Writes an object whose name no other writer uses, and repeats a put of unknown outcome. Returns
   * its ETag. Errors: OBJECT_EXISTS when other bytes stand there; STORE_UNREACHABLE.
   */
  async putOnce(name: string, bytes: Uint8Array, options?: CallOptions): Promise<string> {
    return await this.#repeated(
      `writing ${name}`,
      async () => await this.put(name, bytes, { ifAbsent: true }, options),
      async () => await this.#etagOfBytes(name, bytes, options),
    );
  }

  /**
   * Replaces an object that other processes write too, if its ETag is `expected` (undefined: if
   * there is none), and repeats a put of unknown outcome. Returns its ETag. Errors:
   * CONDITION_FAILED when it is another object; STORE_UNREACHABLE.
   */
  async replace(name: string, bytes: Uint8Array, expected: string | undefined, options?: CallOptions): Promise<string> {
    const condition: PutCondition = expected === undefined ? { ifAbsent: true } : { ifMatch: expected };
    try {
      return await this.#repeated(
        `writing ${name}`,
        async () => await this.put(name, bytes, condition, options),
        async () => await this.#etagOfBytes(name, bytes, options),
      );
    } catch (error) {
      if (!hasCode(error, "OBJECT_EXISTS", "CONDITION_FAILED")) throw error;
      throw new TidemarkError("CONDITION_FAILED", `another process has written ${name} meanwhile`, { cause: error });
    }
  }

  /**
   * Repeats a write of unknown outcome. `earlier` is asked after a refusal that follows an earlier
   * try: the ETag if that try has succeeded, else undefined.
   */
  async #repeated(
    doing: string,
    write: () => Promise<string>,
    earlier: () => Promise<string | undefined>,
  ): Promise<string> {
    let failure: unknown;
    for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
      try {
        return await write();
      } catch (error) {
        failure = error;
        if (hasCode(error, "OUTCOME_UNKNOWN")) continue;
        if (!hasCode(error, "OBJECT_EXISTS", "CONDITION_FAILED")) throw error;
        const etag = attempt === 0 ? undefined : await earlier();
        if (etag === undefined) throw error;
        return etag;
      }
    }
    throw unreachable(doing, failure);
  }

  /** The ETag of an object that has exactly these bytes. */
  async #etagOfBytes(name: string, bytes: Uint8Array, options?: CallOptions): Promise<string | undefined> {
    const stat = await unlessAbsent(this.stat(name, options));
    if (stat?.sizeBytes !== bytes.byteLength) return undefined;
    const there = await this.find(name, bytes.byteLength, options);
    return there !== undefined && sameBytes(there.bytes, bytes) ? there.etag : undefined;
  }

  /** Deletes an object or page object. An absent one is no error. Errors: LEASE_HELD. */
  async delete(name: string, options?: CallOptions): Promise<void> {
    this.#requests += 1;
    await this.sink.deleteObject(name, options);
  }

  async stat(name: string, options?: CallOptions): Promise<ObjectStat> {
    this.#requests += 1;
    return await this.sink.statObject(name, options);
  }

  /** The ETag, or undefined when there is no such object. */
  async etagOf(name: string, options?: CallOptions): Promise<string | undefined> {
    return (await unlessAbsent(this.stat(name, options)))?.etag;
  }

  async *list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject> {
    this.#requests += 1;
    yield* this.sink.list(prefix, options);
  }

  /** Names of all objects below `prefix`. */
  async names(prefix: string, options?: CallOptions): Promise<string[]> {
    const names: string[] = [];
    for await (const { name } of this.list(prefix, options)) names.push(name);
    return names;
  }

  /**
   * Creates a page object whose name no other writer uses. Returns its ETag. Errors: OBJECT_EXISTS,
   * STORE_UNREACHABLE.
   */
  async createPages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<string> {
    return await this.#repeated(
      `creating ${name}`,
      async () => {
        this.#requests += 1;
        return (await this.sink.createPages(name, sizeBytes, sequenceNumber, options)).etag;
      },
      async () => {
        const there = await this.statPages(name, options);
        return there.writtenBytes === 0 && there.sequenceNumber === sequenceNumber ? there.etag : undefined;
      },
    );
  }

  async writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options?: CallOptions,
  ): Promise<string> {
    this.#requests += 1;
    return (await this.sink.writePages(name, offset, bytes, fence, options)).etag;
  }

  async readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    this.#requests += 1;
    await this.sink.readPages(name, offset, into, options);
  }

  async clearPages(name: string, offset: number, length: number, options?: CallOptions): Promise<void> {
    this.#requests += 1;
    await this.sink.clearPages(name, offset, length, options);
  }

  async restorePages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<void> {
    this.#requests += 1;
    await this.sink.restorePages(name, sizeBytes, sequenceNumber, options);
  }

  async statPages(name: string, options?: CallOptions): Promise<PagesStat> {
    this.#requests += 1;
    return await this.sink.statPages(name, options);
  }

  async raiseSequenceNumber(name: string, atLeast: number, options?: CallOptions): Promise<void> {
    this.#requests += 1;
    await this.sink.raiseSequenceNumber(name, atLeast, options);
  }

  async acquireLease(name: string, leaseId: string, durationSeconds: number, options?: CallOptions): Promise<void> {
    this.#requests += 1;
    await this.sink.acquireLease(name, leaseId, durationSeconds, options);
  }

  async renewLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    this.#requests += 1;
    await this.sink.renewLease(name, leaseId, options);
  }

  async changeLease(name: string, fromId: string, toId: string, options?: CallOptions): Promise<void> {
    this.#requests += 1;
    await this.sink.changeLease(name, fromId, toId, options);
  }

  async releaseLease(name: string, leaseId: string, options?: CallOptions): Promise<void> {
    this.#requests += 1;
    await this.sink.releaseLease(name, leaseId, options);
  }
}

/**
 * Reads an object that a durable object refers to, so that its absence is damage.
 *
 * @throws DAMAGED when the store does not hold it; otherwise as `Store.get`.
 */
export async function getReferred(
  store: Store,
  name: string,
  sizeBytesMax: number,
  options?: CallOptions,
): Promise<Uint8Array> {
  try {
    return (await store.get(name, sizeBytesMax, options)).bytes;
  } catch (error) {
    throw hasCode(error, "OBJECT_NOT_FOUND") ? gone(name, error) : error;
  }
}

/** The error for a call of which every try has ended with an unknown outcome. */
export function unreachable(doing: string, cause: unknown): TidemarkError {
  return new TidemarkError(
    "STORE_UNREACHABLE",
    `${doing} ended without an answer ${String(unknownOutcomesMax)} times`,
    {
      remedy: "check the network and the store, then run the command again; what was shipped is reused",
      cause,
    },
  );
}

/**
 * The error for a store that does not hold any more what it acknowledged; `object` is where that
 * was found. Publishes `store.regressed`.
 */
export function storeRegressed(object: string, message: string, context: ErrorContext = {}): TidemarkError {
  publish("store.regressed", { object, message });
  return new TidemarkError("STORE_REGRESSED", message, {
    remedy: "run the command again; the next cycle ships what the store forgot",
    ...context,
    detail: { object, ...context.detail },
  });
}

/** As `storeRegressed`, for an object that is gone or ends too early. */
export function regressed(object: string, expectedBytes: number, foundBytes: number): TidemarkError {
  const message = `the store went back in time: ${object} lost data that had been acknowledged`;
  return storeRegressed(object, message, { detail: { expectedBytes, foundBytes } });
}
