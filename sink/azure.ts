/**
 * Sink on Azure Blob Storage and on Azurite: one container, objects as block blobs, page objects as
 * page blobs.
 *
 * The SDK speaks the protocol and signs requests; it sends every request once. Retries, deadlines
 * and outcomes are in azure-retry.ts, the meaning of errors in azure-errors.ts, page blobs in
 * azure-pages.ts, sockets and proxies in azure-connection.ts, credentials in azure-access.ts.
 *
 * Invariant: a request that Azure would refuse is refused here before it leaves, because Azurite
 * does not enforce Azure's limits.
 *
 * Objects up to 256 KiB carry an MD5, which both servers verify: 2 ms of one core per MiB.
 */
import { createHash } from "node:crypto";
import type { Agent } from "node:http";
import {
  ContainerClient,
  newPipeline,
  type PageBlobClient,
  type Pipeline,
  type StoragePipelineOptions,
} from "@azure/storage-blob";
import type {
  CallOptions,
  ListedObject,
  ObjectStat,
  PageFence,
  PagesStat,
  PutCondition,
  Raised,
  Sink,
  StoredObject,
  Written,
} from "../engine/index.ts";
import { hasCode, TidemarkError } from "../engine/index.ts";
import { credentialOf, secretsOf } from "./azure-access.ts";
import { type AccountFacts, accountFacts } from "./azure-account.ts";
import { openAgent, socketsMaxDefault } from "./azure-connection.ts";
import { changedCodes, type ErrorMeanings, existsCodes, leaseCodes, type StoreFacts } from "./azure-errors.ts";
import type { AzureSinkOptions } from "./azure-options.ts";
import { AzurePages, blobProperties } from "./azure-pages.ts";
import { Caller } from "./azure-retry.ts";
import { asBuffer, discard, fill, httpEtag, pinnedVersion, plainEtag, signedBy, watchedDates } from "./azure-wire.ts";
import type { AzureAccess } from "./credential.ts";
import { bypassesProxy, describeProxy, type ProxyOptions } from "./proxy.ts";
import {
  checkLeaseId,
  checkLeaseSeconds,
  checkName,
  checkObjectBytes,
  checkPrefix,
  tooLarge,
  wrongKind,
} from "./rules.ts";
import { sasFacts } from "./sas.ts";

/** Objects up to this size are sent with their MD5. */
const checksummedBytesMax = 256 * 1024;

/**
 * Azurite saves its metadata every 5 s, and a save of a large database takes a second or so. A
 * killed Azurite forgets every write since the last save. Three intervals leave room for a slow
 * machine.
 */
const azuriteSettlingMs = 15_000;

/** Blobs per list request; Azure's limit is 5000. */
const blobsPerPage = 1000;

/** An object, and the MD5 that the store had of it when it was written. */
interface ReadObject extends StoredObject {
  readonly md5: Uint8Array | undefined;
}

function isAsSent({ bytes, md5 }: ReadObject): boolean {
  return md5 === undefined || createHash("md5").update(bytes).digest().equals(md5);
}

/**
 * A container of Azure Storage or Azurite as a `Sink`. `openSink` makes one from a vault's address.
 */
export class AzureSink implements Sink {
  readonly description: string;
  readonly capabilities: Sink["capabilities"];
  readonly #container: ContainerClient;
  readonly #pipeline: Pipeline;
  readonly #isSas: boolean;
  readonly #agent: Agent;
  readonly #calls: Caller;
  readonly #server: AsyncDisposable | undefined;
  readonly #pages: AzurePages;

  private constructor(
    description: string,
    container: ContainerClient,
    pipeline: Pipeline,
    isSas: boolean,
    agent: Agent,
    calls: Caller,
    server: AsyncDisposable | undefined,
  ) {
    this.description = description;
    this.#container = container;
    this.#pipeline = pipeline;
    this.#isSas = isSas;
    this.#agent = agent;
    this.#calls = calls;
    this.#server = server;
    this.#pages = new AzurePages(container, calls);
    const { hostname } = new URL(container.url);
    const isAzure = hostname.includes(".blob.core.") || hostname.includes(".blob.storage.");
    this.capabilities = { attachablePages: true, settlingMs: isAzure ? 0 : azuriteSettlingMs };
  }

  /**
   * Opens the container at `containerUrl`, a URL without SAS. Sends no request: the first call
   * shows whether the store is there.
   *
   * @throws TidemarkError INVALID_ARGUMENT: a token over plain http, or a proxy URL that cannot be
   * parsed.
   */
  static open(containerUrl: string, access: AzureAccess, options: AzureSinkOptions = {}): AzureSink {
    const url = new URL(containerUrl);
    if (access.kind === "token" && url.protocol !== "https:") {
      throw new TidemarkError("INVALID_ARGUMENT", `a token cannot be sent to ${url.host} over plain http`, {
        remedy: "use an https URL, or give an account key or a SAS",
      });
    }
    const description = options.description ?? `${url.origin}${url.pathname}`;
    // An answer to a request with the former SAS may come after the renewal.
    let [current, former] = [access, access];
    const sas = async (): Promise<string> => {
      if (current.kind !== "sas") return "";
      const next = (await current.renewed?.()) ?? current.sas;
      if (next !== current.sas) [current, former] = [{ ...current, sas: next }, current];
      return next;
    };
    const store: StoreFacts = {
      description,
      host: url.host,
      access: access.kind,
      get secrets() {
        return [current, former].flatMap((used) => secretsOf(used, options.proxy));
      },
      get sas() {
        return sasFacts(current);
      },
      proxy: proxyOf(url, options.proxy),
    };
    const calls = new Caller(store, options);
    const agent = openAgent(url, options.proxy, options.socketsMax ?? socketsMaxDefault, () => calls.connectionLost());
    // The SDK hands `agent` to its HTTP client, although the type of its options does not name it.
    const pipelineOptions: StoragePipelineOptions & { readonly agent: Agent } = {
      retryOptions: { maxTries: 1 },
      agent,
      // The SDK parses the proxy variables of the environment unless it is given a proxy, although
      // the agent goes first.
      proxyOptions: { host: "http://unused.invalid", port: 1 },
    };
    const pipeline = newPipeline(credentialOf(access), pipelineOptions);
    pipeline.factories.push(
      pinnedVersion,
      watchedDates((serverMs) => calls.answeredAt(serverMs)),
    );
    if (access.kind === "sas") pipeline.factories.push(signedBy(sas));
    const container = new ContainerClient(url.href, pipeline);
    return new AzureSink(description, container, pipeline, access.kind === "sas", agent, calls, options.server);
  }

  get clockAheadMs(): number {
    return this.#calls.clockAheadMs;
  }

  get interruptions(): number {
    return this.#calls.interruptions;
  }

  async createContainer(options: CallOptions = {}): Promise<boolean> {
    try {
      await this.#calls.run({
        kind: "idempotent",
        action: "create the container",
        right: "create-container",
        name: undefined,
        codes: { ContainerAlreadyExists: "VAULT_EXISTS" },
        signal: options.signal,
        send: (abortSignal) => this.#container.create({ abortSignal }),
      });
      return true;
    } catch (error) {
      if (hasCode(error, "VAULT_EXISTS")) return false;
      // A SAS for one container may not create that container. A list shows whether it exists.
      if (this.#isSas && hasCode(error, "ACCESS_REFUSED") && (await this.#canList(options))) return false;
      throw error;
    }
  }

  /** What the account and the container tell of themselves. Not part of `Sink`. */
  async accountFacts({ signal }: CallOptions = {}): Promise<AccountFacts> {
    const [container, pipeline, calls, agent] = [this.#container, this.#pipeline, this.#calls, this.#agent];
    return await accountFacts({ container, pipeline, calls, agent, signal });
  }

  /** Deletes the container with all that it holds. An absent one is no error. Not part of `Sink`. */
  async deleteContainer(options: CallOptions = {}): Promise<void> {
    await this.#calls.run({
      kind: "idempotent",
      action: "delete the container",
      right: "delete",
      name: undefined,
      signal: options.signal,
      send: async (abortSignal) => await this.#container.deleteIfExists({ abortSignal }),
    });
  }

  async getObject(name: string, sizeBytesMax: number, options: CallOptions = {}): Promise<StoredObject> {
    checkName(name);
    const read = await this.#readObject(name, sizeBytesMax, options);
    // An object that was damaged on its way is whole when it is read again; at rest it is not.
    return isAsSent(read) ? read : await this.#readObject(name, sizeBytesMax, options);
  }

  async #readObject(name: string, sizeBytesMax: number, options: CallOptions): Promise<ReadObject> {
    const client = this.#container.getBlobClient(name);
    return this.#calls.run({
      kind: "idempotent",
      action: `read ${name}`,
      right: "read",
      name,
      signal: options.signal,
      send: async (abortSignal, begun) => {
        const response = await client.download(0, undefined, { abortSignal, maxRetryRequests: 0 });
        const sizeBytes = response.contentLength ?? 0;
        begun(Math.min(sizeBytes, sizeBytesMax));
        if (response.blobType === "PageBlob" || sizeBytes > sizeBytesMax) {
          discard(response);
          throw response.blobType === "PageBlob" ? wrongKind(name, "object") : tooLarge(name, sizeBytes, sizeBytesMax);
        }
        const bytes = new Uint8Array(sizeBytes);
        await fill(bytes, response, name);
        return { bytes, etag: plainEtag(response.etag), md5: response.contentMD5 };
      },
    });
  }

  async putObject(
    name: string,
    bytes: Uint8Array,
    condition: PutCondition,
    options: CallOptions = {},
  ): Promise<Written> {
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
      body.length > 0 && body.length <= checksummedBytesMax
        ? { transactionalContentMD5: createHash("md5").update(body).digest() }
        : {};
    const response = await this.#calls.run({
      kind: "write",
      action: `write ${name}`,
      right: absent ? "create" : "write",
      name,
      bytes: body.length,
      isChecksummed: "transactionalContentMD5" in checksum,
      // A lease exists only on an existing object.
      codes: absent ? { ...existsCodes, LeaseIdMissing: "OBJECT_EXISTS" } : { ...changedCodes, ...leaseCodes },
      signal: options.signal,
      send: (abortSignal) => client.upload(body, body.length, { abortSignal, conditions, ...checksum }),
    });
    return { etag: plainEtag(response.etag) };
  }

  async statObject(name: string, options: CallOptions = {}): Promise<ObjectStat> {
    checkName(name);
    const properties = await blobProperties(this.#container, this.#calls, name, options);
    return { etag: plainEtag(properties.etag), sizeBytes: properties.contentLength ?? 0 };
  }

  async deleteObject(name: string, options: CallOptions = {}): Promise<void> {
    checkName(name);
    this.#pages.forget(name);
    const client = this.#container.getBlobClient(name);
    try {
      await this.#calls.run({
        kind: "write",
        action: `delete ${name}`,
        right: "delete",
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
      "acquire",
      name,
      leaseId,
      { LeaseAlreadyPresent: "LEASE_HELD", LeaseIsBreakingAndCannotBeAcquired: "LEASE_HELD" },
      options,
      (lease, abortSignal) => lease.acquireLease(durationSeconds, { abortSignal }),
    );
  }

  async renewLease(name: string, leaseId: string, options: CallOptions = {}): Promise<void> {
    await this.#lease("renew", name, leaseId, leaseCodes, options, (lease, abortSignal) =>
      lease.renewLease({ abortSignal }),
    );
  }

  async changeLease(name: string, fromId: string, toId: string, options: CallOptions = {}): Promise<void> {
    checkLeaseId(toId);
    await this.#lease("change", name, fromId, leaseCodes, options, (lease, abortSignal) =>
      lease.changeLease(toId, { abortSignal }),
    );
    // A change keeps the remaining time; the renewal starts the full duration again.
    await this.renewLease(name, toId, options);
  }

  async releaseLease(name: string, leaseId: string, options: CallOptions = {}): Promise<void> {
    try {
      await this.#lease("release", name, leaseId, leaseCodes, options, (lease, abortSignal) =>
        lease.releaseLease({ abortSignal }),
      );
    } catch (error) {
      if (!hasCode(error, "LEASE_LOST", "OBJECT_NOT_FOUND")) throw error;
    }
  }

  createPages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<Written> {
    return this.#pages.create(name, sizeBytes, sequenceNumber, options);
  }

  writePages(
    name: string,
    offset: number,
    bytes: Uint8Array,
    fence: PageFence,
    options?: CallOptions,
  ): Promise<Written> {
    return this.#pages.write(name, offset, bytes, fence, options);
  }

  readPages(name: string, offset: number, into: Uint8Array, options?: CallOptions): Promise<void> {
    return this.#pages.read(name, offset, into, options);
  }

  clearPages(name: string, offset: number, length: number, options?: CallOptions): Promise<void> {
    return this.#pages.clear(name, offset, length, options);
  }

  restorePages(name: string, sizeBytes: number, sequenceNumber: number, options?: CallOptions): Promise<void> {
    return this.#pages.restore(name, sizeBytes, sequenceNumber, options);
  }

  statPages(name: string, options?: CallOptions): Promise<PagesStat> {
    return this.#pages.stat(name, options);
  }

  raiseSequenceNumber(name: string, atLeast: number, options?: CallOptions): Promise<Raised> {
    return this.#pages.raise(name, atLeast, options);
  }

  /**
   * Aborts calls in flight, waits for them, closes the connections, then disposes of the server.
   * Idempotent.
   */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#calls.close();
    this.#agent.destroy();
    await this.#server?.[Symbol.asyncDispose]();
  }

  #listPage(prefix: string, continuationToken: string | undefined, maxPageSize: number, options: CallOptions) {
    return this.#calls.run({
      kind: "idempotent",
      action: `list ${prefix === "" ? "the objects" : `${prefix}*`}`,
      right: "list",
      name: undefined,
      signal: options.signal,
      send: async (abortSignal) => {
        const pages = this.#container
          .listBlobsFlat({ abortSignal, ...(prefix === "" ? {} : { prefix }) })
          .byPage({ maxPageSize, ...(continuationToken === undefined ? {} : { continuationToken }) });
        const next = await pages.next();
        if (next.done === true)
          throw new TidemarkError("STORE_REFUSED", `${this.description} answered a list request without a page`);
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
      right: "write",
      name,
      codes,
      signal: options.signal,
      send: (abortSignal) => send(blob.getBlobLeaseClient(leaseId), abortSignal),
    });
  }
}

/** The proxy that requests to `url` go through, as messages name it. */
function proxyOf(url: URL, proxy: ProxyOptions | undefined): string | undefined {
  return proxy === undefined || bypassesProxy(url, proxy.bypass ?? []) ? undefined : describeProxy(proxy);
}
