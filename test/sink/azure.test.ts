import { randomBytes, randomUUID } from "node:crypto";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { inspect } from "node:util";
import {
  ContainerSASPermissions,
  generateBlobSASQueryParameters,
  StorageSharedKeyCredential,
} from "@azure/storage-blob";
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from "vitest";
import { FaultProxy, type FaultProxyOptions } from "../../cli/stress/fault-proxy.ts";
import { TidemarkError } from "../../engine/errors.ts";
import { AzureSink } from "../../sink/azure.ts";
import type { AzureSinkOptions } from "../../sink/azure-options.ts";
import { Azurite } from "../../sink/azurite.ts";
import { developmentAccount, developmentKey } from "../../sink/azurite-state.ts";
import type { AzureAccess } from "../../sink/credential.ts";
import { openSink, sasFor } from "../../sink/open.ts";
import { bypassesProxy } from "../../sink/proxy.ts";
import { deepTest } from "../deep-test.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";
import { describeSink } from "./conformance.ts";
import { namesIn } from "./expectations.ts";

const leaseId = "00000000-0000-4000-8000-000000000001";

const fourMiB = 4 * 1024 * 1024;

let folder: string;
let azurite: Azurite;
let key: AzureAccess;

beforeAll(async () => {
  folder = createFolder("azure");
  azurite = await Azurite.start(folder);
  key = { kind: "key", account: developmentAccount, key: azurite.key };
});

afterAll(async () => {
  await azurite.stop();
  await removeFolder(folder);
});

function containerUrl(): string {
  return `${azurite.endpoint}/c${randomUUID()}`;
}

/** Keeps `METHOD path` of every request in `requests`, in order of arrival. */
function noting(requests: string[]): FaultProxyOptions {
  return { onRequest: ({ method, url }) => requests.push(`${method ?? ""} ${url ?? ""}`) };
}

async function failure(work: Promise<unknown>): Promise<TidemarkError> {
  const error: unknown = await work.then(
    () => undefined,
    (thrown: unknown) => thrown,
  );
  if (error instanceof TidemarkError) return error;
  throw new Error(`expected a TidemarkError, got ${inspect(error)}`);
}

describeSink("AzureSink on Azurite", async () => {
  const url = containerUrl();
  const [a, b, absent] = [AzureSink.open(url, key), AzureSink.open(url, key), AzureSink.open(containerUrl(), key)];
  await a.createContainer();
  return {
    a,
    b,
    absent,
    cleanup: async () => {
      for (const sink of [a, b, absent]) await sink[Symbol.asyncDispose]();
    },
  };
});

test("a SAS that the account key makes opens its container for everything that a writer does", async () => {
  const url = containerUrl();
  await using owner = AzureSink.open(url, key);
  await owner.createContainer();
  const credentials = { accountKey: azurite.key };
  const made = await sasFor(url, Date.now() + 3_600_000, { credentials });
  await using writer = await openSink(`${url}?${made?.sas ?? ""}`);
  const { etag } = await writer.putObject("x", Buffer.of(1), { ifAbsent: true });
  await writer.putObject("x", Buffer.of(2), { ifMatch: etag });
  await writer.acquireLease("x", leaseId, 60);
  await writer.releaseLease("x", leaseId);
  const pages = await writer.createPages("p", 1024, 1);
  await writer.writePages("p", 0, Buffer.alloc(512, 7), { etag: pages.etag, sequenceNumber: 1 });
  await writer.clearPages("p", 0, 512);
  await writer.raiseSequenceNumber("p", 2);
  expect(await namesIn(writer, "")).toEqual(["p", "x"]);
  for (const name of ["p", "x"]) await writer.deleteObject(name);
  await using elsewhere = await openSink(`${containerUrl()}?${made?.sas ?? ""}`);
  expect((await failure(elsewhere.statObject("x"))).code).toBe("ACCESS_REFUSED");
  const past = await sasFor(url, Date.now() - 3_600_000, { credentials });
  await using late = await openSink(`${url}?${past?.sas ?? ""}`);
  expect((await failure(late.statObject("x"))).remedy).toContain("the SAS expired at");
  // What the operator gives is passed on as it is; other stores take none.
  expect(await sasFor(`${url}?sig=abc`, 0)).toEqual({ sas: "sig=abc", untilMs: undefined });
  expect(await sasFor("dir:x", 0)).toBeUndefined();
});

test("a range of several MiB is cleared by one request, amid what many requests have written", async () => {
  const url = containerUrl();
  const requests: string[] = [];
  await using proxy = await FaultProxy.open(azurite.endpoint, noting(requests));
  await using sink = AzureSink.open(proxy.through(url), key);
  await sink.createContainer();
  const sizeBytes = 16 * 1024 * 1024;
  const model = randomBytes(sizeBytes);
  await sink.createPages("pages", sizeBytes * 2, 1);
  // Ranges that Azurite never merges: the clear goes through the middle of two and takes all
  // between them.
  for (let offset = 0; offset < sizeBytes; offset += 1_000_448) {
    await sink.writePages("pages", offset, model.subarray(offset, Math.min(offset + 1_000_448, sizeBytes)), {
      sequenceNumber: 1,
    });
  }
  const before = await sink.statPages("pages");
  requests.length = 0;
  await sink.clearPages("pages", 3 * 1024 * 1024 + 512, 9 * 1024 * 1024);
  expect(requests).toHaveLength(1);
  model.fill(0, 3 * 1024 * 1024 + 512, 12 * 1024 * 1024 + 512);
  const found = new Uint8Array(sizeBytes);
  await sink.readPages("pages", 0, found);
  expect(Buffer.compare(found, model)).toBe(0);
  const across = new Uint8Array(fourMiB);
  await sink.readPages("pages", 10 * 1024 * 1024 + 7, across);
  expect(Buffer.compare(across, model.subarray(10 * 1024 * 1024 + 7, 14 * 1024 * 1024 + 7))).toBe(0);
  const after = await sink.statPages("pages");
  expect(after).toEqual({ ...before, etag: after.etag });
  expect(after.writtenBytes).toBe(sizeBytes);
});

test("a client that has not seen a page blob before looks its size up and refuses to clear beyond it, which Azurite would not", async () => {
  const url = containerUrl();
  await using owner = AzureSink.open(url, key);
  await owner.createContainer();
  await owner.createPages("pages", 4096, 1);
  await owner.putObject("object", randomBytes(512), { ifAbsent: true });
  await using stranger = AzureSink.open(url, key);
  expect((await failure(stranger.clearPages("pages", 0, 8192))).code).toBe("INVALID_ARGUMENT");
  expect((await failure(stranger.clearPages("object", 0, 512))).code).toBe("DAMAGED");
});

describe("a network that fails", () => {
  let url: string;
  let proxy: FaultProxy;
  let requests: string[];
  let direct: AzureSink;
  let sink: AzureSink;
  const open = (options: AzureSinkOptions = {}): AzureSink =>
    AzureSink.open(proxy.through(url), key, { random: () => 0.01, ...options });

  beforeEach(async () => {
    url = containerUrl();
    requests = [];
    proxy = await FaultProxy.open(azurite.endpoint, noting(requests));
    direct = AzureSink.open(url, key);
    await direct.createContainer();
    await direct.createPages("pages", fourMiB, 1);
    sink = open();
  });

  afterEach(async () => {
    await sink[Symbol.asyncDispose]();
    await direct[Symbol.asyncDispose]();
    proxy.assertAllFired();
    await proxy[Symbol.asyncDispose]();
  });

  test("a connection reset in the middle of a page write leaves the outcome unknown, and the write is sent once", async () => {
    await sink.statPages("pages");
    proxy.plan("PUT", "reset-request");
    const error = await failure(sink.writePages("pages", 0, randomBytes(fourMiB), { sequenceNumber: 1 }));
    expect(error.code).toBe("OUTCOME_UNKNOWN");
    expect(requests.filter((request) => request.startsWith("PUT"))).toHaveLength(1);
    expect(sink.interruptions).toBe(1);
  });

  test("a page write whose acknowledgement is lost is reported as unknown although the data is there", async () => {
    const bytes = randomBytes(fourMiB);
    proxy.plan("PUT", "lose-answer");
    expect((await failure(sink.writePages("pages", 0, bytes, { sequenceNumber: 1 }))).code).toBe("OUTCOME_UNKNOWN");
    const found = new Uint8Array(fourMiB);
    await direct.readPages("pages", 0, found);
    expect(Buffer.compare(found, bytes)).toBe(0);
  });

  test("an object whose acknowledgement is lost is reported as unknown, not as existing", async () => {
    proxy.plan("PUT", "lose-answer");
    expect((await failure(sink.putObject("head", randomBytes(10), { ifAbsent: true }))).code).toBe("OUTCOME_UNKNOWN");
    expect((await direct.statObject("head")).sizeBytes).toBe(10);
  });

  test("a deletion whose acknowledgement is lost is reported as unknown", async () => {
    proxy.plan("DELETE", "lose-answer");
    expect((await failure(sink.deleteObject("pages"))).code).toBe("OUTCOME_UNKNOWN");
  });

  test("a server error leaves the outcome of a write unknown", async () => {
    proxy.plan("PUT", { status: 500 });
    expect((await failure(sink.putObject("head", randomBytes(10), { ifAbsent: true }))).code).toBe("OUTCOME_UNKNOWN");
    expect(sink.interruptions).toBe(0);
  });

  test("a burst of 503 is ridden out, no sooner than Retry-After allows", async () => {
    proxy.plan("PUT", { status: 503, retryAfterSeconds: 0.2 }, 3);
    const startedAt = performance.now();
    await sink.putObject("head", randomBytes(10), { ifAbsent: true });
    expect(performance.now() - startedAt).toBeGreaterThanOrEqual(590);
    expect(requests).toHaveLength(4);
  });

  test("throttling that asks for more time than an outage may take is STORE_UNREACHABLE", async () => {
    proxy.plan("PUT", { status: 429, retryAfterSeconds: 3600 });
    expect((await failure(sink.putObject("head", randomBytes(10), { ifAbsent: true }))).code).toBe("STORE_UNREACHABLE");
  });

  test("a read is repeated when its answer breaks off", async () => {
    const bytes = randomBytes(fourMiB);
    await direct.writePages("pages", 0, bytes, { sequenceNumber: 1 });
    proxy.plan("GET", "truncate-answer", 2);
    const found = new Uint8Array(fourMiB);
    await sink.readPages("pages", 0, found);
    expect(Buffer.compare(found, bytes)).toBe(0);
    expect(sink.interruptions).toBe(2);
  });

  test("a lease and a raised sequence number survive lost acknowledgements", async () => {
    await direct.putObject("head", randomBytes(1), { ifAbsent: true });
    const [id, next] = [randomUUID(), randomUUID()];
    proxy.plan("PUT", "lose-answer");
    await sink.acquireLease("head", id, 15);
    proxy.plan("PUT", "lose-answer");
    await sink.changeLease("head", id, next);
    proxy.plan("PUT", "lose-answer");
    expect((await sink.raiseSequenceNumber("pages", 7)).sequenceNumber).toBe(7);
    expect((await failure(direct.acquireLease("head", id, 15))).code).toBe("LEASE_HELD");
  });

  test("pages are cleared although the network fails and acknowledgements are lost, and repeating it is safe", async () => {
    await direct.writePages("pages", 0, randomBytes(4096), { sequenceNumber: 1 });
    proxy.plan("PUT", "lose-answer");
    proxy.plan("PUT", { status: 500 });
    await sink.clearPages("pages", 512, 1024);
    expect(requests.filter((request) => request.startsWith("PUT"))).toHaveLength(3);
    const found = new Uint8Array(4096);
    await direct.readPages("pages", 0, found);
    expect(found.subarray(512, 1536).every((byte) => byte === 0)).toBe(true);
    expect(found.subarray(0, 512).some((byte) => byte !== 0) && found.subarray(1536).some((byte) => byte !== 0)).toBe(
      true,
    );
  });

  test("a server that never answers ends in the request's deadline", async () => {
    await using impatient = open({ deadlineBaseMs: 1_000, deadlinePerMiBMs: 0, outageToleranceMs: 1 });
    await impatient.statPages("pages");
    proxy.plan("PUT", "freeze");
    expect((await failure(impatient.writePages("pages", 0, randomBytes(512), { sequenceNumber: 1 }))).code).toBe(
      "OUTCOME_UNKNOWN",
    );
    proxy.plan("HEAD", "freeze");
    expect((await failure(impatient.statObject("pages"))).code).toBe("STORE_UNREACHABLE");
    expect(impatient.interruptions).toBe(2);
  });

  test("an object of any size is begun to be answered within the deadline of a small request", async () => {
    await using impatient = open({ deadlineBaseMs: 1_000, deadlinePerMiBMs: 600_000, outageToleranceMs: 1 });
    await impatient.putObject("large", randomBytes(4096), { ifAbsent: true });
    expect((await impatient.getObject("large", 16 * 1024 * 1024)).bytes).toHaveLength(4096);
    proxy.plan("GET", "freeze");
    expect((await failure(impatient.getObject("large", 16 * 1024 * 1024))).code).toBe("STORE_UNREACHABLE");
  });

  test("a small object that is damaged on its way is sent again, and the store has what was meant", async () => {
    const bytes = randomBytes(1000);
    proxy.plan("PUT", "flip-request", 2);
    await sink.putObject("small", bytes, { ifAbsent: true });
    expect(Buffer.compare((await direct.getObject("small", 1000)).bytes, bytes)).toBe(0);
    expect(requests.filter((request) => request.startsWith("PUT"))).toHaveLength(3);
  });

  test("an object that is damaged on the way to its reader is read again", async () => {
    const bytes = randomBytes(1000);
    await direct.putObject("small", bytes, { ifAbsent: true });
    proxy.plan("GET", "flip-answer");
    expect(Buffer.compare((await sink.getObject("small", 1000)).bytes, bytes)).toBe(0);
  });

  test("an object that is damaged at rest is handed out after a second look, for its decoder to judge", async () => {
    const bytes = randomBytes(1000);
    await direct.putObject("small", bytes, { ifAbsent: true });
    proxy.plan("GET", "flip-answer", 2);
    expect(Buffer.compare((await sink.getObject("small", 1000)).bytes, bytes)).not.toBe(0);
  });

  test("the caller's signal ends a call that waits for an answer", async () => {
    const controller = new AbortController();
    proxy.plan("PUT", "freeze");
    const call = failure(sink.putObject("head", randomBytes(10), { ifAbsent: true }, { signal: controller.signal }));
    await vi.waitUntil(() => requests.length > 0);
    controller.abort();
    expect((await call).code).toBe("INTERRUPTED");
  });

  test("one signal for fifty calls draws no warning about listeners", async () => {
    const warnings: Error[] = [];
    const onWarning = (warning: Error): void => void warnings.push(warning);
    process.on("warning", onWarning);
    const { signal } = new AbortController();
    await Promise.all(Array.from({ length: 50 }, () => sink.statObject("pages", { signal })));
    await new Promise(setImmediate);
    process.off("warning", onWarning);
    expect(warnings).toEqual([]);
  });

  test("a connection that the store closes while it lies idle counts as an interruption", async () => {
    await sink.statObject("pages");
    expect(sink.interruptions).toBe(0);
    proxy.dropIdleConnections();
    await vi.waitUntil(() => sink.interruptions === 1);
    await sink.statObject("pages");
  });

  test("disposing ends what is under way and is idempotent", async () => {
    proxy.plan("GET", "freeze");
    const call = failure(sink.getObject("head", 10));
    await vi.waitUntil(() => requests.length > 0);
    await Promise.all([sink[Symbol.asyncDispose](), sink[Symbol.asyncDispose]()]);
    expect((await call).code).toBe("INTERRUPTED");
  });

  test("requests go through a configured proxy, which alone resolves the host's name", async () => {
    const hidden = `http://store.invalid/${developmentAccount}${new URL(url).pathname.slice(developmentAccount.length + 1)}`;
    await using proxied = AzureSink.open(hidden, key, {
      proxy: { url: `http://user:secret@127.0.0.1:${String(proxy.port)}` },
    });
    expect((await proxied.statPages("pages")).sizeBytes).toBe(fourMiB);
    expect(requests.every((request) => request.includes("http://store.invalid"))).toBe(true);
  });
});

describe("a store that is not there", () => {
  test("a refused connection is given up early when the store has never answered", async () => {
    const listener = createServer();
    await new Promise<void>((resolve) => listener.listen(0, "127.0.0.1", resolve));
    const { port } = listener.address() as { port: number };
    await new Promise((resolve) => listener.close(resolve));
    await using sink = AzureSink.open(`http://127.0.0.1:${String(port)}/${developmentAccount}/vault`, key, {
      firstContactToleranceMs: 1_000,
      random: () => 0.1,
    });
    const error = await failure(sink.putObject("head", randomBytes(1), { ifAbsent: true }));
    expect(error.code).toBe("STORE_UNREACHABLE");
    expect(error.message).toContain(`127.0.0.1:${String(port)}`);
    expect(sink.interruptions).toBeGreaterThan(1);
  });

  test("a host name that does not resolve is named", async () => {
    await using sink = AzureSink.open("https://nobody.invalid/vault", key, { firstContactToleranceMs: 1 });
    const error = await failure(sink.statObject("head"));
    expect(error.code).toBe("STORE_UNREACHABLE");
    expect(error.message).toContain("nobody.invalid");
  });

  test("an absent container is VAULT_NOT_FOUND for reads and writes", async () => {
    await using sink = AzureSink.open(containerUrl(), key);
    expect((await failure(sink.statObject("head"))).code).toBe("VAULT_NOT_FOUND");
    expect((await failure(sink.putObject("head", randomBytes(1), { ifAbsent: true }))).code).toBe("VAULT_NOT_FOUND");
    expect((await failure(sink.deleteObject("head"))).code).toBe("VAULT_NOT_FOUND");
  });
});

describe("access", () => {
  const sasFor = (url: string, permissions: string, expiresOn: Date): AzureAccess => {
    const containerName = url.slice(url.lastIndexOf("/") + 1);
    const startsOn = new Date(expiresOn.getTime() - 3_600_000);
    const query = generateBlobSASQueryParameters(
      {
        containerName,
        permissions: ContainerSASPermissions.parse(permissions),
        startsOn,
        expiresOn,
        version: "2025-07-05",
      },
      new StorageSharedKeyCredential(developmentAccount, azurite.key),
    );
    return { kind: "sas", sas: query.toString() };
  };

  function expectSecret(error: TidemarkError, ...secrets: string[]): void {
    const shown = [
      error.message,
      error.stack,
      JSON.stringify(error),
      inspect(error, { depth: 20, showHidden: true, getters: true }),
      inspect(error.cause, { depth: 20, showHidden: true }),
    ].join("\n");
    for (const secret of secrets) expect(shown).not.toContain(secret);
  }

  test("a wrong key is ACCESS_REFUSED, and no error shows it", async () => {
    const wrong = randomBytes(64).toString("base64");
    await using sink = AzureSink.open(containerUrl(), { kind: "key", account: developmentAccount, key: wrong });
    const error = await failure(sink.statObject("head"));
    expect(error.code).toBe("ACCESS_REFUSED");
    expect(error.remedy).toContain("key");
    expectSecret(error, wrong, "SharedKey");
  });

  test("an expired SAS is ACCESS_REFUSED with the time of its expiry, and no error shows its signature", async () => {
    const url = containerUrl();
    const access = sasFor(url, "rwdl", new Date(Date.now() - 60_000));
    const signature = new URLSearchParams(access.kind === "sas" ? access.sas : "").get("sig") ?? "";
    expect(signature).not.toBe("");
    await using sink = AzureSink.open(url, access);
    for (const work of [sink.getObject("head", 10), sink.putObject("head", randomBytes(1), { ifAbsent: true })]) {
      const error = await failure(work);
      expect(error.code).toBe("ACCESS_REFUSED");
      expect(error.remedy).toContain("expired at 2");
      expectSecret(error, signature, encodeURIComponent(signature));
    }
    expect(sink.description).toBe(url);
  });

  test("a SAS without write permission may read, and is told what it lacks when it writes", async () => {
    const url = containerUrl();
    await using owner = AzureSink.open(url, key);
    await owner.createContainer();
    await owner.putObject("head", randomBytes(3), { ifAbsent: true });
    await using reader = AzureSink.open(url, sasFor(url, "rl", new Date(Date.now() + 600_000)));
    expect((await reader.getObject("head", 10)).bytes).toHaveLength(3);
    const error = await failure(reader.putObject("other", randomBytes(3), { ifAbsent: true }));
    expect(error.code).toBe("ACCESS_REFUSED");
    expect(error.remedy).toContain("c or w is not in its sp=");
  });

  test("a SAS that may not create the container finds that it exists", async () => {
    const url = containerUrl();
    await using owner = AzureSink.open(url, key);
    await owner.createContainer();
    await using user = AzureSink.open(url, sasFor(url, "rwdl", new Date(Date.now() + 600_000)));
    expect(await user.createContainer()).toBe(false);
  });

  test("an identity is not sent over plain http", () => {
    const credentialOfNobody = { getToken: () => Promise.resolve(null) };
    expect(() => AzureSink.open(containerUrl(), { kind: "token", credential: credentialOfNobody })).toThrow(
      /plain http/,
    );
  });

  test("an identity that cannot be found is ACCESS_REFUSED", async () => {
    const unavailable = Object.assign(new Error("no identity"), { name: "CredentialUnavailableError" });
    await using sink = AzureSink.open("https://127.0.0.1:1/vault", {
      kind: "token",
      credential: { getToken: () => Promise.reject(unavailable) },
    });
    expect((await failure(sink.statObject("head"))).code).toBe("ACCESS_REFUSED");
  });
});

deepTest("an Azurite that checks the API version is served in a version it knows", async () => {
  // vitest's import unwraps the default export of these CommonJS modules once more than Node's
  // does.
  const require = createRequire(import.meta.url);
  const { default: BlobConfiguration } =
    require("azurite/dist/src/blob/BlobConfiguration.js") as typeof import("azurite/dist/src/blob/BlobConfiguration.js").default;
  const { default: BlobServer } =
    require("azurite/dist/src/blob/BlobServer.js") as typeof import("azurite/dist/src/blob/BlobServer.js").default;
  const extents = [{ locationId: "Default", locationPath: folder, maxConcurrency: 1 }];
  const configuration = new BlobConfiguration(
    "127.0.0.1",
    0,
    5,
    "",
    "",
    extents,
    false,
    undefined,
    false,
    undefined,
    false,
    false,
    "",
    "",
    "",
    undefined,
    true,
    true,
  );
  const server = new BlobServer(configuration);
  await server.start();
  try {
    const { port } = server.httpServer.address() as { port: number };
    await using sink = AzureSink.open(`http://127.0.0.1:${String(port)}/${developmentAccount}/vault`, {
      kind: "key",
      account: developmentAccount,
      key: developmentKey,
    });
    expect(await sink.createContainer()).toBe(true);
  } finally {
    await server.close();
  }
});

describe("the proxy's bypass list", () => {
  const cases: readonly (readonly [url: string, bypass: readonly string[], bypassed: boolean])[] = [
    ["https://a.blob.core.windows.net/c", [], false],
    ["https://a.blob.core.windows.net/c", ["a.blob.core.windows.net"], true],
    ["https://a.blob.core.windows.net/c", ["blob.core.windows.net"], false],
    ["https://a.blob.core.windows.net/c", [".blob.core.windows.net"], true],
    ["https://a.blob.core.windows.net/c", ["*.Windows.net"], true],
    ["https://awindows.net/c", [".windows.net"], false],
    ["https://a.example/c", ["a.example:443"], true],
    ["https://a.example:8443/c", ["a.example:443"], false],
    ["https://a.example/c", ["*"], true],
    ["https://a.example/c", [""], false],
    ["http://127.0.0.1:10000/devstoreaccount1/c", [], true],
    ["http://localhost:10000/devstoreaccount1/c", [], true],
    ["http://[::1]:10000/devstoreaccount1/c", [], true],
  ];
  test.each(cases)("%s with %j is bypassed: %j", (url, bypass, bypassed) => {
    expect(bypassesProxy(new URL(url), bypass)).toBe(bypassed);
  });
});
