/**
 * Page blobs: sparse objects of a fixed size, written at offsets under a fence.
 *
 * Azurite accepts page writes and clears beyond the blob's end, so the bounds are checked here,
 * before a request leaves. To know the end, the sizes of the page blobs used last are remembered; a
 * page object keeps its size, except one that is restored.
 *
 * Page writes carry no checksum: readers verify chunks against their digests, and Azurite ignores
 * it.
 *
 * Memory: `rememberedMax` clients and sizes.
 */
import type { BlobGetPropertiesResponse, ContainerClient, PageBlobClient } from "@azure/storage-blob";
import {
  type CallOptions,
  hasCode,
  type PageFence,
  type PagesStat,
  type Raised,
  type Written,
} from "../engine/index.ts";
import { unlessAbsent } from "../engine/internal.ts";
import { existsCodes, fenceCodes } from "./azure-errors.ts";
import type { Caller } from "./azure-retry.ts";
import { bodyOf, discard, fill, httpEtag, plainEtag } from "./azure-wire.ts";
import {
  checkInside,
  checkName,
  checkPagesSize,
  checkPageWrite,
  checkReadOffset,
  checkSequenceNumber,
  checkWholePages,
  endsBefore,
  wrongKind,
} from "./rules.ts";

/** Page blobs whose client and size are remembered. */
const rememberedMax = 256;

/** Page ranges per request; Azure's limit. */
const rangesPerPage = 10_000;

interface PageBlob {
  readonly client: PageBlobClient;
  sizeBytes: number | undefined;
}

/** The page blobs of one container. Its methods are those of `Sink` without the word "pages". */
export class AzurePages {
  readonly #container: ContainerClient;
  readonly #calls: Caller;
  /** Least recently used first. */
  readonly #remembered = new Map<string, PageBlob>();

  constructor(container: ContainerClient, calls: Caller) {
    this.#container = container;
    this.#calls = calls;
  }

  async create(name: string, sizeBytes: number, sequenceNumber: number, options: CallOptions = {}): Promise<Written> {
    checkName(name);
    checkPagesSize(name, sizeBytes);
    checkSequenceNumber(sequenceNumber);
    return await this.#create("write", name, sizeBytes, sequenceNumber, options);
  }

  async write(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options: CallOptions = {},
  ): Promise<Written> {
    checkName(name);
    checkPageWrite(name, offset, bytes);
    checkSequenceNumber(fence.sequenceNumber);
    const client = await this.#pageInside(name, offset, bytes.length, options);
    const conditions = {
      ifSequenceNumberEqualTo: fence.sequenceNumber,
      ...(fence.etag === undefined ? {} : { ifMatch: httpEtag(fence.etag) }),
    };
    const response = await this.#calls.run({
      kind: "write",
      action: `write ${String(bytes.length)} bytes at ${String(offset)} of ${name}`,
      right: "write",
      name,
      bytes: bytes.length,
      codes: fenceCodes,
      signal: options.signal,
      send: (abortSignal) => client.uploadPages(bodyOf(bytes), offset, bytes.length, { abortSignal, conditions }),
    });
    return { etag: plainEtag(response.etag) };
  }

  async read(name: string, offset: number, into: Uint8Array, options: CallOptions = {}): Promise<void> {
    checkName(name);
    checkReadOffset(name, offset);
    if (into.length === 0) return;
    const { client } = this.#page(name);
    await this.#calls.run({
      kind: "idempotent",
      action: `read ${String(into.length)} bytes at ${String(offset)} of ${name}`,
      right: "read",
      name,
      bytes: into.length,
      codes: { InvalidRange: "DAMAGED" },
      signal: options.signal,
      send: async (abortSignal) => {
        const response = await client.download(offset, into.length, { abortSignal, maxRetryRequests: 0 });
        const sizeBytes = Number(/^bytes \d+-\d+\/(\d+)$/.exec(response.contentRange ?? "")?.[1] ?? Number.NaN);
        if (response.blobType !== "PageBlob" || sizeBytes < offset + into.length) {
          discard(response);
          throw response.blobType === "PageBlob"
            ? endsBefore(name, offset + into.length, sizeBytes)
            : wrongKind(name, "page object");
        }
        await fill(into, response, name);
      },
    });
  }

  async clear(name: string, offset: number, length: number, options: CallOptions = {}): Promise<void> {
    checkName(name);
    checkWholePages(name, offset, length);
    const client = await this.#pageInside(name, offset, length, options);
    await this.#calls.run({
      kind: "idempotent",
      action: `clear ${String(length)} bytes at ${String(offset)} of ${name}`,
      right: "write",
      name,
      signal: options.signal,
      send: (abortSignal) => client.clearPages(offset, length, { abortSignal }),
    });
  }

  async restore(name: string, sizeBytes: number, sequenceNumber: number, options: CallOptions = {}): Promise<void> {
    checkName(name);
    checkPagesSize(name, sizeBytes);
    checkSequenceNumber(sequenceNumber);
    const found = await unlessAbsent(this.#pageProperties(name, options));
    if (found === undefined) {
      await this.#create("idempotent", name, sizeBytes, sequenceNumber, options).catch((error: unknown) => {
        if (!hasCode(error, "OBJECT_EXISTS")) throw error; // another client, or an earlier try of this call, has created it
      });
      return;
    }
    const page = this.#page(name);
    page.sizeBytes = found.contentLength ?? 0;
    if (page.sizeBytes < sizeBytes) {
      // Idempotent: no client gives a page object another length, so a late or repeated request
      // changes nothing more.
      await this.#calls.run({
        kind: "idempotent",
        action: `restore the length of ${name}`,
        right: "write",
        name,
        signal: options.signal,
        send: (abortSignal) => page.client.resize(sizeBytes, { abortSignal }),
      });
      page.sizeBytes = sizeBytes;
    }
    if ((found.blobSequenceNumber ?? 0) < sequenceNumber) await this.raise(name, sequenceNumber, options);
  }

  async stat(name: string, options: CallOptions = {}): Promise<PagesStat> {
    checkName(name);
    // Properties before ranges: the ranges may then be newer than the ETag, and a write fenced by
    // that ETag is refused. The other order could pair old ranges with a new ETag.
    const properties = await this.#pageProperties(name, options);
    const sizeBytes = properties.contentLength ?? 0;
    const page = this.#page(name);
    page.sizeBytes = sizeBytes;
    const writtenBytes = await this.#writtenBytes(name, page.client, options);
    return {
      etag: plainEtag(properties.etag),
      sizeBytes,
      sequenceNumber: properties.blobSequenceNumber ?? 0,
      writtenBytes: Math.min(writtenBytes, sizeBytes),
    };
  }

  async raise(name: string, atLeast: number, options: CallOptions = {}): Promise<Raised> {
    checkName(name);
    checkSequenceNumber(atLeast);
    const { client } = this.#page(name);
    const response = await this.#calls.run({
      kind: "idempotent",
      action: `raise the sequence number of ${name}`,
      right: "write",
      name,
      signal: options.signal,
      send: (abortSignal) => client.updateSequenceNumber("max", atLeast, { abortSignal }),
    });
    return { etag: plainEtag(response.etag), sequenceNumber: response.blobSequenceNumber ?? atLeast };
  }

  /** Forgets a page blob that is being deleted. */
  forget(name: string): void {
    this.#remembered.delete(name);
  }

  async #pageProperties(name: string, options: CallOptions) {
    const properties = await blobProperties(this.#container, this.#calls, name, options);
    if (properties.blobType !== "PageBlob") throw wrongKind(name, "page object");
    return properties;
  }

  /**
   * Creates the blob. A repeated request finds the blob that the first one created: OBJECT_EXISTS.
   */
  async #create(
    kind: "write" | "idempotent",
    name: string,
    sizeBytes: number,
    sequenceNumber: number,
    options: CallOptions,
  ) {
    const page = this.#page(name);
    const conditions = { ifNoneMatch: "*" };
    const response = await this.#calls.run({
      kind,
      action: `create ${name}`,
      right: "create",
      name,
      codes: { ...existsCodes, LeaseIdMissing: "OBJECT_EXISTS" },
      signal: options.signal,
      send: (abortSignal) =>
        page.client.create(sizeBytes, { abortSignal, blobSequenceNumber: sequenceNumber, conditions }),
    });
    page.sizeBytes = sizeBytes;
    return { etag: plainEtag(response.etag) };
  }

  /**
   * The largest end of all page ranges. Cleared pages lie between ranges. Azurite answers with all
   * ranges at once and does not merge adjacent ones.
   */
  #writtenBytes(name: string, client: PageBlobClient, options: CallOptions): Promise<number> {
    return this.#calls.run({
      kind: "idempotent",
      action: `list the pages of ${name}`,
      right: "read",
      name,
      signal: options.signal,
      send: async (abortSignal) => {
        let end = 0;
        for await (const page of client
          .listPageRanges(0, undefined, { abortSignal })
          .byPage({ maxPageSize: rangesPerPage })) {
          for (const range of page.pageRange ?? []) {
            // Ranges are closed: `end` is the last byte.
            end = Math.max(end, range.end + 1);
          }
        }
        return end;
      },
    });
  }

  /**
   * The client of a page blob, after a check that the range lies inside the blob. Looks up the
   * blob's size when it is not remembered.
   */
  async #pageInside(name: string, offset: number, length: number, options: CallOptions): Promise<PageBlobClient> {
    const page = this.#page(name);
    page.sizeBytes ??= (await this.#pageProperties(name, options)).contentLength ?? 0;
    checkInside(name, offset, length, page.sizeBytes);
    return page.client;
  }

  /** The page blob's client and, once known, its size. Evicts the least recently used. */
  #page(name: string): PageBlob {
    const page = this.#remembered.get(name) ?? {
      client: this.#container.getPageBlobClient(name),
      sizeBytes: undefined,
    };
    this.#remembered.delete(name);
    this.#remembered.set(name, page);
    if (this.#remembered.size > rememberedMax) {
      for (const oldest of this.#remembered.keys()) {
        this.#remembered.delete(oldest);
        break;
      }
    }
    return page;
  }
}

/** The properties of a blob of either kind. */
export function blobProperties(
  container: ContainerClient,
  calls: Caller,
  name: string,
  options: CallOptions,
): Promise<BlobGetPropertiesResponse> {
  const client = container.getBlobClient(name);
  return calls.run({
    kind: "idempotent",
    action: `look up ${name}`,
    right: "read",
    name,
    signal: options.signal,
    send: (abortSignal) => client.getProperties({ abortSignal }),
  });
}
