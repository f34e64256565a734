/**
 * The engine's view of a store: the sink's calls, counted, with the protocols that make a write of unknown outcome safe to repeat.
 *
 * A write-once object has a name that only its writer uses (it holds the writer's epoch), so repeating the put is safe: if the name
 * is taken, what stands there must be our own bytes. Heads and segments have protocols of their own, in `Seat` and `Lane`.
 */
import { hasCode, TidemarkError } from "../errors.ts";
import type { CallOptions, ListedObject, ObjectStat, PageFence, PagesStat, PutCondition, Sink, StoredObject } from "../sink.ts";
import { sameBytes } from "./format/checksum.ts";
import { gone } from "./format/fields.ts";

/** How often an unknown outcome is resolved and the write repeated before the store is given up. */
export const unknownOutcomesMax = 8;

export class Store {
  readonly sink: Sink;
  #requests = 0;
  #putBytes = 0;

  constructor(sink: Sink) {
    this.sink = sink;
  }

  get description(): string {
    return this.sink.description;
  }

  /** Calls made so far. */
  get requests(): number {
    return this.#requests;
  }

  /** Bytes of objects written so far; pages do not count. */
  get putBytes(): number {
    return this.#putBytes;
  }

  async get(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject> {
    this.#requests += 1;
    return await this.sink.getObject(name, sizeBytesMax, options);
  }

  /** As `get`; undefined when there is no such object. */
  async find(name: string, sizeBytesMax: number, options?: CallOptions): Promise<StoredObject | undefined> {
    try {
      return await this.get(name, sizeBytesMax, options);
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) return undefined;
      throw error;
    }
  }

  /** One put under a condition. Errors: as `Sink.putObject`, OUTCOME_UNKNOWN among them. */
  async put(name: string, bytes: Uint8Array, condition: PutCondition, options?: CallOptions): Promise<string> {
    this.#requests += 1;
    const { etag } = await this.sink.putObject(name, bytes, condition, options);
    this.#putBytes += bytes.byteLength;
    return etag;
  }

  /**
   * Writes an object whose name nobody else uses, whatever happens to the connection. Errors: OBJECT_EXISTS when other bytes stand
   * there.
   */
  async putOnce(name: string, bytes: Uint8Array, options?: CallOptions): Promise<string> {
    let failure: unknown;
    for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
      try {
        return await this.put(name, bytes, { ifAbsent: true }, options);
      } catch (error) {
        failure = error;
        if (hasCode(error, "OUTCOME_UNKNOWN")) continue;
        if (!hasCode(error, "OBJECT_EXISTS") || attempt === 0) throw error;
        if ((await this.stat(name, options)).sizeBytes !== bytes.byteLength) throw error;
        const there = await this.get(name, bytes.byteLength, options);
        if (!sameBytes(there.bytes, bytes)) throw error;
        return there.etag;
      }
    }
    throw unreachable(`writing ${name}`, failure);
  }

  /**
   * Writes an object that others write, too, if it is still the one with ETag `expected` (undefined: if there is none), whatever happens to the connection.
   * Returns its ETag. Errors: CONDITION_FAILED when it is another one.
   */
  async replace(name: string, bytes: Uint8Array, expected: string | undefined, options?: CallOptions): Promise<string> {
    let failure: unknown;
    for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
      try {
        return await this.put(name, bytes, expected === undefined ? { ifAbsent: true } : { ifMatch: expected }, options);
      } catch (error) {
        failure = error;
        if (hasCode(error, "OUTCOME_UNKNOWN")) continue;
        if (!hasCode(error, "OBJECT_EXISTS", "CONDITION_FAILED")) throw error;
        // An earlier try may have been the one that got through.
        const there = attempt === 0 ? undefined : await this.#findOfSize(name, bytes.byteLength, options);
        if (there !== undefined && sameBytes(there.bytes, bytes)) return there.etag;
        throw new TidemarkError("CONDITION_FAILED", `${name} has been written by somebody else meanwhile`, { cause: error });
      }
    }
    throw unreachable(`writing ${name}`, failure);
  }

  async #findOfSize(name: string, sizeBytes: number, options: CallOptions | undefined): Promise<StoredObject | undefined> {
    try {
      if ((await this.stat(name, options)).sizeBytes !== sizeBytes) return undefined;
      return await this.get(name, sizeBytes, options);
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) return undefined;
      throw error;
    }
  }

  /** Deletes an object or page object; one that is absent is no error. */
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
    try {
      return (await this.stat(name, options)).etag;
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) return undefined;
      throw error;
    }
  }

  async *list(prefix: string, options?: CallOptions): AsyncIterable<ListedObject> {
    this.#requests += 1;
    yield* this.sink.list(prefix, options);
  }

  /** Creates a page object whose name nobody else uses. Returns its ETag. */
  async createPages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<string> {
    let failure: unknown;
    for (let attempt = 0; attempt < unknownOutcomesMax; attempt += 1) {
      try {
        this.#requests += 1;
        return (await this.sink.createPages(name, sizeBytes, sequenceNumber, options)).etag;
      } catch (error) {
        failure = error;
        if (hasCode(error, "OUTCOME_UNKNOWN")) continue;
        if (!hasCode(error, "OBJECT_EXISTS") || attempt === 0) throw error;
        const there = await this.statPages(name, options);
        if (there.writtenBytes !== 0 || there.sequenceNumber !== sequenceNumber) throw error;
        return there.etag;
      }
    }
    throw unreachable(`creating ${name}`, failure);
  }

  async writePages(name: string, offset: number, bytes: Uint8Array, fence: PageFence, options?: CallOptions): Promise<string> {
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

  /** The sink, for lease calls; they count too. */
  lease(): Sink {
    this.#requests += 1;
    return this.sink;
  }
}

/**
 * Reads an object that a durable object refers to, so that its absence is damage.
 *
 * @throws DAMAGED when the store does not hold it; otherwise as `Store.get`.
 */
export async function getReferred(store: Store, name: string, sizeBytesMax: number, options?: CallOptions): Promise<Uint8Array> {
  try {
    return (await store.get(name, sizeBytesMax, options)).bytes;
  } catch (error) {
    throw hasCode(error, "OBJECT_NOT_FOUND") ? gone(name, error) : error;
  }
}

/** The error after every attempt to resolve an unknown outcome has ended in another one. */
export function unreachable(doing: string, cause: unknown): TidemarkError {
  return new TidemarkError("STORE_UNREACHABLE", `${doing} ended without an answer ${String(unknownOutcomesMax)} times`, {
    remedy: "check the network and the store, then run the command again; what was shipped is reused",
    cause,
  });
}

/** The error for a store that no longer has what it acknowledged. */
export function regressed(object: string, expectedBytes: number, foundBytes: number): TidemarkError {
  return new TidemarkError("STORE_REGRESSED", `the store went back in time: ${object} lost data that had been acknowledged`, {
    remedy: "run the command again; the next cycle ships what the store forgot",
    detail: { object, expectedBytes, foundBytes },
  });
}
