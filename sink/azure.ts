/**
 * The store in Azure Storage, and in Azurite: one blob container, objects as block blobs, page objects as page blobs.
 *
 * The SDK does the protocol and the signing, nothing else: it sends every request once. Repeating, deadlines and outcomes are in
 * azure-retry.ts, the meaning of errors in azure-errors.ts, sockets and proxies in azure-connection.ts, credentials in azure-access.ts.
 *
 * Azure's rules hold for every request before it leaves, because Azurite does not enforce them: it takes page writes of more than 4 MiB, and
 * writes and clears beyond the blob's end. To know the end, a sink remembers the sizes of the page blobs it has seen; a page object never changes its size, but
 * for one that is restored.
 *
 * Page writes carry no checksum: chunks are verified against their digests when they are read, and Azurite ignores it. Small objects
 * carry an MD5, which both servers verify.
 */
import { createHash } from "node:crypto";
import type { Agent } from "node:http";
import {
  type BlobDownloadResponseParsed,
  ContainerClient,
  newPipeline,
  type PageBlobClient,
  type RequestPolicyFactory,
  type StoragePipelineOptions,
} from "@azure/storage-blob";
import type { CallOptions, ListedObject, ObjectStat, PageFence, PagesStat, PutCondition, Sink, StoredObject } from "../engine/index.ts";
import { hasCode, TidemarkError } from "../engine/index.ts";
import { type AzureAccess, credentialOf, sasExpiry, secretsOf } from "./azure-access.ts";
import { openAgent, type ProxyOptions, socketsMaxDefault } from "./azure-connection.ts";
import { changedCodes, type ErrorMeanings, existsCodes, fenceCodes, leaseCodes, type StoreFacts } from "./azure-errors.ts";
import { Caller, type RetryOptions } from "./azure-retry.ts";
import {
  checkInside,
  checkLeaseId,
  checkLeaseSeconds,
  checkName,
  checkObjectBytes,
  checkPagesSize,
  checkPageWrite,
  checkPrefix,
  checkReadOffset,
  checkSequenceNumber,
  checkWholePages,
  endsBefore,
  tooLarge,
  wrongKind,
} from "./rules.ts";

export interface AzureSinkOptions extends RetryOptions {
  readonly proxy?: ProxyOptions | undefined;
  /** Most connections at a time. */
  readonly socketsMax?: number | undefined;
  /** How the store is called in messages, when its URL says little. */
  readonly description?: string | undefined;
  /** Disposed after the sink: the server that was started for it. */
  readonly server?: AsyncDisposable | undefined;
}

/** The newest service version that Azurite 3.35 knows; the SDK's own is newer, and Azurite refuses it. */
const serviceVersion = "2025-11-05";

/** Objects up to this size are sent with their MD5: 2 ms of one core per MiB. */
const checksummedBytesMax = 256 * 1024;

/** Page blobs whose client and size are remembered. */
const rememberedPagesMax = 256;

/** An Azurite saves what it knows every five seconds, which takes up to a second or so; what came after the last time it forgets when it is killed. */
const azuriteSettlingMs = 15_000;

/** Blobs and ranges asked for per request; Azure's own limits are 5000 and 10,000. */
const blobsPerPage = 1000;
const rangesPerPage = 10_000;

interface PageBlob {
  readonly client: PageBlobClient;
  sizeBytes: number | undefined;
}

export class AzureSink implements Sink {
  readonly description: string;
  readonly capabilities: Sink["capabilities"];
  readonly #container: ContainerClient;
  readonly #isSas: boolean;
  readonly #agent: Agent;
  readonly #calls: Caller;
  readonly #server: AsyncDisposable | undefined;
  readonly #pages = new Map<string, PageBlob>();

  private constructor(
    description: string,
    container: ContainerClient,
    isSas: boolean,
    agent: Agent,
    calls: Caller,
    server: AsyncDisposable | undefined,
  ) {
    this.description = description;
    this.#container = container;
    this.#isSas = isSas;
    this.#agent = agent;
    this.#calls = calls;
    this.#server = server;
    const isAzure = /\.blob\.(?:core\.|storage\.)[a-z.]+$/.test(new URL(container.url).hostname);
    this.capabilities = { attachablePages: true, settlingMs: isAzure ? 0 : azuriteSettlingMs };
  }

  /**
   * Opens the container at `containerUrl` (without SAS). Sends nothing yet: the first call shows whether the store is there.
   * Errors: INVALID_ARGUMENT.
   */
  static open(containerUrl: string, access: AzureAccess, options: AzureSinkOptions = {}): AzureSink {
    const url = new URL(containerUrl);
    if (access.kind === "token" && url.protocol !== "https:") {
      throw new TidemarkError("INVALID_ARGUMENT", `${url.host} would be sent a token over plain http`, {
        remedy: "use https, an account key or a SAS",
      });
    }
    const description = options.description ?? `${url.origin}${url.pathname}`;
    const store: StoreFacts = {
      description,
      host: url.host,
      access: access.kind,
      secrets: secretsOf(access, options.proxy),
      sasExpiresAtMs: sasExpiry(access),
    };
    const calls = new Caller(store, options);
    const agent = openAgent(url, options.proxy, options.socketsMax ?? socketsMaxDefault, () => {
      calls.connectionLost();
    });
    // `agent` reaches the SDK's HTTP client although its type does not name it.
    const pipelineOptions: StoragePipelineOptions & { readonly agent: Agent } = { retryOptions: { maxTries: 1 }, agent };
    const pipeline = newPipeline(credentialOf(access), pipelineOptions);
    pipeline.factories.push(pinnedVersion);
    const container = new ContainerClient(access.kind === "sas" ? `${url.href}?${access.sas}` : url.href, pipeline);
    return new AzureSink(description, container, access.kind === "sas", agent, calls, options.server);
  }

  get interruptions(): number {
    return this.#calls.interruptions;
  }

  async createContainer(options: CallOptions = {}): Promise<boolean> {
    try {
      await this.#calls.run({
        kind: "idempotent",
        action: "create the container",
        name: undefined,
        codes: { ContainerAlreadyExists: "VAULT_EXISTS" },
        signal: options.signal,
        send: (abortSignal) => this.#container.create({ abortSignal }),
      });
      return true;
    } catch (error) {
      if (hasCode(error, "VAULT_EXISTS")) return false;
      // A SAS of the container may do everything in it but not create it; whether it exists, a list tells.
      if (this.#isSas && hasCode(error, "ACCESS_REFUSED") && (await this.#canList(options))) return false;
      throw error;
    }
  }

  async getObject(name: string, sizeBytesMax: number, options: CallOptions = {}): Promise<StoredObject> {
    checkName(name);
    const client = this.#container.getBlobClient(name);
    return this.#calls.run({
      kind: "idempotent",
      action: `read ${name}`,
      name,
      bytes: sizeBytesMax,
      signal: options.signal,
      send: async (abortSignal) => {
        const response = await client.download(0, undefined, { abortSignal, maxRetryRequests: 0 });
        const sizeBytes = response.contentLength ?? 0;
        if (response.blobType === "PageBlob" || sizeBytes > sizeBytesMax) {
          discard(response);
          throw response.blobType === "PageBlob" ? wrongKind(name, "object") : tooLarge(name, sizeBytes, sizeBytesMax);
        }
        const bytes = new Uint8Array(sizeBytes);
        await fill(bytes, response, name);
        return { bytes, etag: plainEtag(response.etag) };
      },
    });
  }

  async putObject(name: string, bytes: Uint8Array, condition: PutCondition, options: CallOptions = {}): Promise<{ readonly etag: string }> {
    checkName(name);
    checkObjectBytes(name, bytes);
    const client = this.#container.getBlockBlobClient(name);
    const body = asBuffer(bytes);
    const absent = "ifAbsent" in condition;
    const leaseId = absent ? undefined : condition.leaseId;
    const conditions = absent
      ? { ifNoneMatch: "*" }
      : { ifMatch: httpEtag(condition.ifMatch), ...(leaseId === undefined ? {} : { leaseId }) };
    const checksum =
      body.length > 0 && body.length <= checksummedBytesMax ? { transactionalContentMD5: createHash("md5").update(body).digest() } : {};
    const response = await this.#calls.run({
      kind: "write",
      action: `write ${name}`,
      name,
      bytes: body.length,
      // Only what exists can be leased.
      codes: absent ? { ...existsCodes, LeaseIdMissing: "OBJECT_EXISTS" } : { ...changedCodes, ...leaseCodes },
      signal: options.signal,
      send: (abortSignal) => client.upload(body, body.length, { abortSignal, conditions, ...checksum }),
    });
    return { etag: plainEtag(response.etag) };
  }

  async statObject(name: string, options: CallOptions = {}): Promise<ObjectStat> {
    checkName(name);
    const properties = await this.#properties(name, options);
    return { etag: plainEtag(properties.etag), sizeBytes: properties.contentLength ?? 0 };
  }

  async deleteObject(name: string, options: CallOptions = {}): Promise<void> {
    checkName(name);
    this.#pages.delete(name);
    const client = this.#container.getBlobClient(name);
    try {
      await this.#calls.run({
        kind: "write",
        action: `delete ${name}`,
        name,
        codes: { LeaseIdMissing: "LEASE_HELD" },
        signal: options.signal,
        send: (abortSignal) => client.delete({ abortSignal }),
      });
    } catch (error) {
      if (!hasCode(error, "OBJECT_NOT_FOUND")) throw error;
    }
  }

  async *list(prefix: string, options: CallOptions = {}): AsyncGenerator<ListedObject, void> {
    checkPrefix(prefix);
    let continuationToken: string | undefined;
    do {
      const page = await this.#listPage(prefix, continuationToken, blobsPerPage, options);
      for (const blob of page.segment.blobItems) {
        yield { name: blob.name, etag: plainEtag(blob.properties.etag), sizeBytes: blob.properties.contentLength ?? 0 };
      }
      continuationToken = page.continuationToken;
    } while (continuationToken !== undefined && continuationToken !== "");
  }

  async acquireLease(name: string, leaseId: string, durationSeconds: number, options: CallOptions = {}): Promise<void> {
    checkLeaseSeconds(durationSeconds);
    await this.#lease(
      "take",
      name,
      leaseId,
      { LeaseAlreadyPresent: "LEASE_HELD", LeaseIsBreakingAndCannotBeAcquired: "LEASE_HELD" },
      options,
      (lease, abortSignal) => lease.acquireLease(durationSeconds, { abortSignal }),
    );
  }

  async renewLease(name: string, leaseId: string, options: CallOptions = {}): Promise<void> {
    await this.#lease("renew", name, leaseId, leaseCodes, options, (lease, abortSignal) => lease.renewLease({ abortSignal }));
  }

  async changeLease(name: string, fromId: string, toId: string, options: CallOptions = {}): Promise<void> {
    checkLeaseId(toId);
    await this.#lease("hand over", name, fromId, leaseCodes, options, (lease, abortSignal) => lease.changeLease(toId, { abortSignal }));
    // A change keeps the time that was left.
    await this.renewLease(name, toId, options);
  }

  async releaseLease(name: string, leaseId: string, options: CallOptions = {}): Promise<void> {
    try {
      await this.#lease("give up", name, leaseId, leaseCodes, options, (lease, abortSignal) => lease.releaseLease({ abortSignal }));
    } catch (error) {
      if (!hasCode(error, "LEASE_LOST", "OBJECT_NOT_FOUND")) throw error;
    }
  }

  async createPages(
    name: string,
    sizeBytes: number,
    sequenceNumber: number,
    options: CallOptions = {},
  ): Promise<{ readonly etag: string }> {
    checkName(name);
    checkPagesSize(name, sizeBytes);
    checkSequenceNumber(sequenceNumber);
    return await this.#create("write", name, sizeBytes, sequenceNumber, options);
  }

  async writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options: CallOptions = {},
  ): Promise<{ readonly etag: string }> {
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
      name,
      bytes: bytes.length,
      codes: fenceCodes,
      signal: options.signal,
      send: (abortSignal) => client.uploadPages(asBuffer(bytes), offset, bytes.length, { abortSignal, conditions }),
    });
    return { etag: plainEtag(response.etag) };
  }

  async readPages(name: string, offset: number, into: Uint8Array, options: CallOptions = {}): Promise<void> {
    checkName(name);
    checkReadOffset(name, offset);
    if (into.length === 0) return;
    const { client } = this.#page(name);
    await this.#calls.run({
      kind: "idempotent",
      action: `read ${String(into.length)} bytes at ${String(offset)} of ${name}`,
      name,
      bytes: into.length,
      codes: { InvalidRange: "DAMAGED" },
      signal: options.signal,
      send: async (abortSignal) => {
        const response = await client.download(offset, into.length, { abortSignal, maxRetryRequests: 0 });
        const sizeBytes = Number(/\/(\d+)$/.exec(response.contentRange ?? "")?.[1] ?? Number.NaN);
        if (response.blobType !== "PageBlob" || sizeBytes < offset + into.length) {
          discard(response);
          throw response.blobType === "PageBlob" ? endsBefore(name, offset + into.length, sizeBytes) : wrongKind(name, "page object");
        }
        await fill(into, response, name);
      },
    });
  }

  async clearPages(name: string, offset: number, length: number, options: CallOptions = {}): Promise<void> {
    checkName(name);
    checkWholePages(name, offset, length);
    const client = await this.#pageInside(name, offset, length, options);
    await this.#calls.run({
      kind: "idempotent",
      action: `clear ${String(length)} bytes at ${String(offset)} of ${name}`,
      name,
      signal: options.signal,
      send: (abortSignal) => client.clearPages(offset, length, { abortSignal }),
    });
  }

  async restorePages(name: string, sizeBytes: number, sequenceNumber: number, options: CallOptions = {}): Promise<void> {
    checkName(name);
    checkPagesSize(name, sizeBytes);
    checkSequenceNumber(sequenceNumber);
    const found = await this.#pagesFound(name, options);
    if (found === undefined) {
      await this.#create("idempotent", name, sizeBytes, sequenceNumber, options).catch((error: unknown) => {
        if (!hasCode(error, "OBJECT_EXISTS")) throw error; // somebody else has made it meanwhile, or we have
      });
      return;
    }
    const page = this.#page(name);
    page.sizeBytes = found.contentLength ?? 0;
    if (page.sizeBytes < sizeBytes) {
      // Sent late or twice it changes nothing more: nobody gives a page object another length.
      await this.#calls.run({
        kind: "idempotent",
        action: `give ${name} its length back`,
        name,
        signal: options.signal,
        send: (abortSignal) => page.client.resize(sizeBytes, { abortSignal }),
      });
      page.sizeBytes = sizeBytes;
    }
    if ((found.blobSequenceNumber ?? 0) < sequenceNumber) await this.raiseSequenceNumber(name, sequenceNumber, options);
  }

  async statPages(name: string, options: CallOptions = {}): Promise<PagesStat> {
    checkName(name);
    // Properties first: ranges may then be newer than the ETag, and a write fenced by that ETag is refused; never the other way.
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

  async raiseSequenceNumber(
    name: string,
    atLeast: number,
    options: CallOptions = {},
  ): Promise<{ readonly etag: string; readonly sequenceNumber: number }> {
    checkName(name);
    checkSequenceNumber(atLeast);
    const { client } = this.#page(name);
    const response = await this.#calls.run({
      kind: "idempotent",
      action: `raise the sequence number of ${name}`,
      name,
      signal: options.signal,
      send: (abortSignal) => client.updateSequenceNumber("max", atLeast, { abortSignal }),
    });
    return { etag: plainEtag(response.etag), sequenceNumber: response.blobSequenceNumber ?? atLeast };
  }

  /** Ends what is under way and closes the connections. Idempotent. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#calls.close();
    this.#agent.destroy();
    await this.#server?.[Symbol.asyncDispose]();
  }

  #properties(name: string, options: CallOptions) {
    const client = this.#container.getBlobClient(name);
    return this.#calls.run({
      kind: "idempotent",
      action: `look up ${name}`,
      name,
      signal: options.signal,
      send: (abortSignal) => client.getProperties({ abortSignal }),
    });
  }

  async #pageProperties(name: string, options: CallOptions) {
    const properties = await this.#properties(name, options);
    if (properties.blobType !== "PageBlob") throw wrongKind(name, "page object");
    return properties;
  }

  /** Undefined when there is none. */
  async #pagesFound(name: string, options: CallOptions) {
    try {
      return await this.#pageProperties(name, options);
    } catch (error) {
      if (hasCode(error, "OBJECT_NOT_FOUND")) return undefined;
      throw error;
    }
  }

  /** Sent twice, it finds what it made. */
  async #create(kind: "write" | "idempotent", name: string, sizeBytes: number, sequenceNumber: number, options: CallOptions) {
    const page = this.#page(name);
    const conditions = { ifNoneMatch: "*" };
    const response = await this.#calls.run({
      kind,
      action: `create ${name}`,
      name,
      codes: { ...existsCodes, LeaseIdMissing: "OBJECT_EXISTS" },
      signal: options.signal,
      send: (abortSignal) => page.client.create(sizeBytes, { abortSignal, blobSequenceNumber: sequenceNumber, conditions }),
    });
    page.sizeBytes = sizeBytes;
    return { etag: plainEtag(response.etag) };
  }

  #listPage(prefix: string, continuationToken: string | undefined, maxPageSize: number, options: CallOptions) {
    return this.#calls.run({
      kind: "idempotent",
      action: `list ${prefix === "" ? "the objects" : `${prefix}*`}`,
      name: undefined,
      signal: options.signal,
      send: async (abortSignal) => {
        const pages = this.#container
          .listBlobsFlat({ abortSignal, ...(prefix === "" ? {} : { prefix }) })
          .byPage({ maxPageSize, ...(continuationToken === undefined ? {} : { continuationToken }) });
        const next = await pages.next();
        if (next.done === true) throw new TidemarkError("STORE_REFUSED", `${this.description} answered a list without a page`);
        return next.value;
      },
    });
  }

  async #canList(options: CallOptions): Promise<boolean> {
    try {
      await this.#listPage("", undefined, 1, options);
      return true;
    } catch (error) {
      if (hasCode(error, "ACCESS_REFUSED", "VAULT_NOT_FOUND")) return false;
      throw error;
    }
  }

  /** The largest end of all ranges: what was cleared lies between them. Azurite gives them all at once and does not merge adjacent ones. */
  #writtenBytes(name: string, client: PageBlobClient, options: CallOptions): Promise<number> {
    return this.#calls.run({
      kind: "idempotent",
      action: `list the pages of ${name}`,
      name,
      signal: options.signal,
      send: async (abortSignal) => {
        let end = 0;
        for await (const page of client.listPageRanges(0, undefined, { abortSignal }).byPage({ maxPageSize: rangesPerPage })) {
          for (const range of page.pageRange ?? []) {
            // The last byte of a range belongs to it.
            end = Math.max(end, range.end + 1);
          }
        }
        return end;
      },
    });
  }

  #lease(
    verb: string,
    name: string,
    leaseId: string,
    codes: ErrorMeanings,
    options: CallOptions,
    send: (lease: ReturnType<PageBlobClient["getBlobLeaseClient"]>, abortSignal: AbortSignal) => Promise<unknown>,
  ): Promise<unknown> {
    checkName(name);
    checkLeaseId(leaseId);
    const blob = this.#container.getBlobClient(name);
    return this.#calls.run({
      kind: "idempotent",
      action: `${verb} the lease of ${name}`,
      name,
      codes,
      signal: options.signal,
      send: (abortSignal) => send(blob.getBlobLeaseClient(leaseId), abortSignal),
    });
  }

  /** The client of a page blob in which the range lies. Errors: INVALID_ARGUMENT, and those of looking up its size when that is unknown. */
  async #pageInside(name: string, offset: number, length: number, options: CallOptions): Promise<PageBlobClient> {
    const page = this.#page(name);
    page.sizeBytes ??= (await this.#pageProperties(name, options)).contentLength ?? 0;
    checkInside(name, offset, length, page.sizeBytes);
    return page.client;
  }

  /** The page blob's client and, once known, size; the least recently used are forgotten. */
  #page(name: string): PageBlob {
    const page = this.#pages.get(name) ?? { client: this.#container.getPageBlobClient(name), sizeBytes: undefined };
    this.#pages.delete(name);
    this.#pages.set(name, page);
    if (this.#pages.size > rememberedPagesMax) {
      for (const oldest of this.#pages.keys()) {
        this.#pages.delete(oldest);
        break;
      }
    }
    return page;
  }
}

/** Sets the version before the request is signed. */
const pinnedVersion: RequestPolicyFactory = {
  create: (next) => ({
    sendRequest: (request) => {
      request.headers.set("x-ms-version", serviceVersion);
      return next.sendRequest(request);
    },
  }),
};

/** Streams the body into `into`. A body that ends early throws, and the call is made again. */
async function fill(into: Uint8Array, response: BlobDownloadResponseParsed, name: string): Promise<void> {
  let filled = 0;
  // Without an encoding set, a Node stream yields bytes.
  for await (const piece of (response.readableStreamBody ?? []) as AsyncIterable<Uint8Array>) {
    if (filled + piece.length > into.length) break;
    into.set(piece, filled);
    filled += piece.length;
  }
  if (filled !== into.length) throw new Error(`the answer for ${name} does not have ${String(into.length)} bytes`);
}

/** Drops the body of an answer, and with it the connection. */
function discard(response: BlobDownloadResponseParsed): void {
  const body = response.readableStreamBody;
  if (body === undefined || !("destroy" in body) || typeof body.destroy !== "function") return;
  body.on("error", () => undefined);
  body.destroy();
}

/** The bytes as a Buffer over the same memory, which the SDK sends without a copy. */
function asBuffer(bytes: Uint8Array): Buffer {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/** Headers carry ETags in quotes, lists do not; outside this file they bear none. */
function plainEtag(etag: string | undefined): string {
  return (etag ?? "").replaceAll('"', "");
}

function httpEtag(etag: string): string {
  return `"${plainEtag(etag)}"`;
}
