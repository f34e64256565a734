/** What a store or a proxy that refuses leads to: the error names the cause and shows no secret, and no foreign text. */
import { createServer, type RequestListener } from "node:http";
import { type AddressInfo, createServer as createSocketServer } from "node:net";
import { inspect } from "node:util";
import { afterEach, describe, expect, test } from "vitest";
import { AzureSink } from "../../sink/azure.ts";
import type { AzureSinkOptions } from "../../sink/azure-options.ts";
import { developmentAccount, developmentKey } from "../../sink/azurite-state.ts";
import type { AzureAccess } from "../../sink/credential.ts";
import { openSink } from "../../sink/open.ts";
import { expectCode, namesIn } from "./expectations.ts";

const closing: (() => void)[] = [];
afterEach(() => {
  for (const close of closing.splice(0)) close();
});

/** A server that answers every request as told; gives its port, or undefined where the host has no such address. */
async function serve(answer: RequestListener, host = "127.0.0.1"): Promise<number | undefined> {
  const server = createServer(answer);
  closing.push(() => {
    server.closeAllConnections();
    server.close();
  });
  return await new Promise((resolve) => {
    server.on("error", () => {
      resolve(undefined);
    });
    server.listen(0, host, () => {
      resolve((server.address() as AddressInfo).port);
    });
  });
}

/** As a storage service refuses a request. */
function refusing(code: string, status = 403): RequestListener {
  return (_, response) => {
    response.writeHead(status, { "x-ms-error-code": code, "x-ms-request-id": "id-1", date: new Date().toUTCString() });
    response.end();
  };
}

const key: AzureAccess = { kind: "key", account: developmentAccount, key: developmentKey };
const quick: AzureSinkOptions = { outageToleranceMs: 1, random: () => 0.1 };

function sinkAt(port: number | undefined, access: AzureAccess, options: AzureSinkOptions = {}): AzureSink {
  return AzureSink.open(`http://127.0.0.1:${String(port)}/account/vault`, access, { ...quick, ...options });
}

test("the clock of the store is read from its answers", async () => {
  let aheadMs = 0;
  const dated: RequestListener = (_, response) => {
    const date = new Date(Date.now() - aheadMs).toUTCString();
    response.writeHead(200, { etag: '"1"', "x-ms-blob-type": "BlockBlob", "content-length": "0", date });
    response.end();
  };
  const sink = sinkAt(await serve(dated), key);
  expect(sink.clockAheadMs).toBe(0);
  for (const hours of [0, 2, -2]) {
    aheadMs = hours * 3_600_000;
    await sink.statObject("x");
    expect(Math.abs(sink.clockAheadMs - aheadMs)).toBeLessThan(60_000);
  }
  await sink[Symbol.asyncDispose]();
});

describe("a SAS", () => {
  const in2999 = "se=2999-01-01T00%3A00%3A00Z&sig=s3cret";
  const calls: readonly (readonly [right: string, letters: string, call: (sink: AzureSink) => Promise<unknown>])[] = [
    ["read", "r", (sink) => sink.getObject("x", 1)],
    ["read", "r", (sink) => sink.statPages("x")],
    ["create", "c or w", (sink) => sink.putObject("x", new Uint8Array(1), { ifAbsent: true })],
    ["create", "c or w", (sink) => sink.createPages("x", 512, 1)],
    ["write", "w", (sink) => sink.putObject("x", new Uint8Array(1), { ifMatch: "1" })],
    ["write", "w", (sink) => sink.acquireLease("x", "00000000-0000-4000-8000-000000000001", 60)],
    ["delete", "d", (sink) => sink.deleteObject("x")],
    ["list", "l", (sink) => namesIn(sink, "")],
  ];

  test.each(calls)("without the right to %s is told that %s is missing", async (right, letters, call) => {
    const port = await serve(refusing("AuthorizationPermissionMismatch"));
    const others = Array.from("racwdl")
      .filter((letter) => !letters.includes(letter))
      .join("");
    await using sink = sinkAt(port, { kind: "sas", sas: `sp=${others}&sr=c&${in2999}` });
    const { remedy } = await expectCode(call(sink), "ACCESS_REFUSED");
    expect(remedy).toContain(`right to ${right}: ${letters} is not in its sp=`);
    await using whole = sinkAt(port, { kind: "sas", sas: `sp=racwdl&sr=c&${in2999}` });
    expect((await expectCode(call(whole), "ACCESS_REFUSED")).remedy).not.toMatch(/lacks|identity|role/);
  });

  test("for one container is told that it cannot create it", async () => {
    const port = await serve(refusing("AuthorizationFailure"));
    await using sink = sinkAt(port, { kind: "sas", sas: `sp=racwdl&sr=c&${in2999}` });
    expect((await expectCode(sink.createContainer(), "ACCESS_REFUSED")).remedy).toContain("cannot create it");
  });

  test("that is renewed signs the requests from then on, and stays out of messages", async () => {
    let sas = `sp=racwdl&sr=c&${in2999}`;
    const asked: string[] = [];
    const port = await serve((request, response) => {
      asked.push(new URL(request.url ?? "/", "http://a").searchParams.getAll("sig").join());
      refusing("AuthenticationFailed")(request, response);
    });
    const address = `http://127.0.0.1:${String(port)}/account/vault`;
    await using sink = await openSink(address, { credentials: { sas: () => Promise.resolve(sas) } });
    await expectCode(sink.statObject("x"), "ACCESS_REFUSED");
    await expectCode(namesIn(sink, "p"), "ACCESS_REFUSED");
    sas = "sp=racwdl&sr=c&se=2001-01-01T00%3A00%3A00Z&sig=n3w";
    const error = await expectCode(sink.putObject("x", new Uint8Array(1), { ifAbsent: true }), "ACCESS_REFUSED");
    expect(error.remedy).toContain("the SAS expired at 2001-01-01");
    expect(inspect(error)).not.toContain("n3w");
    expect(asked).toEqual(["s3cret", "s3cret", "n3w"]);
  });

  test("that is not valid yet is told when it will be", async () => {
    const port = await serve(refusing("AuthenticationFailed"));
    await using sink = sinkAt(port, { kind: "sas", sas: `sp=racwdl&sr=c&st=2998-01-01T00%3A00%3A00Z&${in2999}` });
    expect((await expectCode(sink.statObject("x"), "ACCESS_REFUSED")).remedy).toContain("2998-01-01");
  });
});

describe("over plain http", () => {
  test.each([
    ["a SAS", "http://store.example/account/vault?sp=rl&sig=s3cret", {}],
    ["an account key", "http://store.example/account/vault", { accountKey: "c2VjcmV0" }],
    ["an account key to an address", "http://10.0.0.1:10000/account/vault", { accountKey: "c2VjcmV0" }],
  ])("%s is not sent to another machine", async (_, address, credentials) => {
    const error = await expectCode(openSink(address, { credentials }), "ACCESS_REFUSED");
    expect(error.remedy).toContain("https://");
    expect(inspect(error)).not.toMatch(/s3cret|c2VjcmV0/);
  });

  test("the published key of Azurites is sent, and anything to this machine", async () => {
    for (const address of [
      `http://azurite:10000/${developmentAccount}/vault`,
      "http://localhost:1/account/vault",
      "http://[::1]:1/account/vault",
    ]) {
      const sink = await openSink(address, { credentials: { accountKey: developmentKey } });
      await sink[Symbol.asyncDispose]();
    }
  });
});

describe("a blob that does not take a change", () => {
  test.each([
    ["SnapshotsPresent", 409, "STORE_REFUSED", "az storage blob delete --delete-snapshots only"],
    ["BlobImmutableDueToPolicy", 409, "ACCESS_REFUSED", "container without"],
    ["BlobImmutableDueToLegalHold", 409, "ACCESS_REFUSED", "container without"],
    ["BlobArchived", 409, "STORE_REFUSED", "az storage blob set-tier --tier Hot"],
    ["InvalidBlobType", 409, "DAMAGED", "tidemark verify"],
    ["LeaseIdMissing", 412, "LEASE_HELD", "az storage blob lease break"],
  ] as const)("says what %s is and what to do", async (code, status, becomes, remedy) => {
    await using sink = sinkAt(await serve(refusing(code, status)), key);
    const error = await expectCode(sink.raiseSequenceNumber("pages", 2), becomes);
    expect(error.message).toContain("pages");
    expect(error.remedy).toContain(remedy);
  });

  test("and exists is told from one that may not be written", async () => {
    await using sink = sinkAt(await serve(refusing("UnauthorizedBlobOverwrite")), key);
    await expectCode(sink.putObject("x", new Uint8Array(1), { ifAbsent: true }), "OBJECT_EXISTS");
    await expectCode(sink.putObject("x", new Uint8Array(1), { ifMatch: "1" }), "ACCESS_REFUSED");
  });
});

test("what a store writes in place of an error code is not repeated", async () => {
  const port = await serve(refusing("see <a href=evil>; now run: rm -rf /", 400));
  await using sink = sinkAt(port, key);
  const error = await expectCode(sink.statObject("x"), "STORE_REFUSED");
  expect(`${error.message}${JSON.stringify(error.detail)}`).not.toContain("rm -rf");
});

test("an IPv6 address works", async ({ skip }) => {
  const port = await serve(refusing("BlobNotFound", 404), "::1");
  if (port === undefined) skip("this machine has no IPv6 loopback");
  await using sink = AzureSink.open(`http://[::1]:${String(port)}/account/vault`, key, quick);
  await expectCode(sink.statObject("x"), "OBJECT_NOT_FOUND");
});

describe("a proxy", () => {
  const store = "http://store.example/account/vault";
  const through = (url: string, address = store): AzureSink =>
    AzureSink.open(address, key, { ...quick, proxy: { url, setBy: "HTTP_PROXY" } });

  test.each(["http://store.example/account/vault", "https://store.example/vault"])(
    "that refuses connections is named, not the store: %s",
    async (address) => {
      const listener = createSocketServer().listen(0, "127.0.0.1");
      await new Promise((resolve) => listener.once("listening", resolve));
      const { port } = listener.address() as AddressInfo;
      await new Promise((resolve) => listener.close(resolve));
      await using sink = through(`http://me:s3cret@127.0.0.1:${String(port)}`, address);
      const error = await expectCode(sink.statObject("x"), "STORE_UNREACHABLE");
      expect(error.message).toContain(`the proxy 127.0.0.1:${String(port)} (HTTP_PROXY) refuses`);
      expect(error.remedy).toContain("HTTP_PROXY");
      expect(inspect(error)).not.toContain("s3cret");
    },
  );

  test.each([
    [502, "STORE_UNREACHABLE"],
    [403, "ACCESS_REFUSED"],
    [407, "ACCESS_REFUSED"],
  ] as const)("that answers %i itself is named, not the store", async (status, code) => {
    const port = await serve((_, response) => response.writeHead(status).end("<html>"));
    await using sink = through(`http://127.0.0.1:${String(port)}`);
    const error = await expectCode(sink.statObject("x"), code);
    expect(error.message).toContain(`the proxy 127.0.0.1:${String(port)} (HTTP_PROXY) answered ${String(status)}`);
  });

  test("that passes on what the store answers is not blamed for it", async () => {
    const port = await serve(refusing("BlobNotFound", 404));
    await using sink = through(`http://127.0.0.1:${String(port)}`);
    await expectCode(sink.statObject("x"), "OBJECT_NOT_FOUND");
  });

  test.each(["nonsense with spaces", "http://", "socks5://me:s3cret@host:1", "http://me:%zz@host:1"])(
    "given as %j is refused with the variable that names it",
    async (url) => {
      const opening = openSink(store, {
        credentials: { accountKey: developmentKey },
        proxy: { url, setBy: "HTTP_PROXY" },
      });
      const error = await expectCode(opening, "INVALID_ARGUMENT");
      expect(error.message).toContain("HTTP_PROXY");
      expect(inspect(error)).not.toContain("s3cret");
    },
  );

  test("variable of the environment that is nonsense does not matter to a vault that uses none", async () => {
    const before = process.env["HTTPS_PROXY"];
    process.env["HTTPS_PROXY"] = "10.0.0.1:3128";
    try {
      const port = await serve(refusing("BlobNotFound", 404));
      await using sink = sinkAt(port, key);
      await expectCode(sink.statObject("x"), "OBJECT_NOT_FOUND");
    } finally {
      if (before === undefined) delete process.env["HTTPS_PROXY"];
      else process.env["HTTPS_PROXY"] = before;
    }
  });
});

test("https at a port that serves plain http is told so at once, with what to write instead", async () => {
  const port = await serve((_, response) => response.end());
  await using sink = AzureSink.open(`https://127.0.0.1:${String(port)}/account/vault`, key);
  const error = await expectCode(sink.getObject("x", 1), "STORE_UNREACHABLE");
  expect(error.message).toContain("does not answer with TLS");
  expect(error.remedy).toContain("http:// instead of https://");
});
