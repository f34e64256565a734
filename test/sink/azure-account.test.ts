/** What a storage account tells of itself, by a server that answers as one does. */
import { readFileSync } from "node:fs";
import { createServer, type RequestListener, type Server } from "node:http";
import https from "node:https";
import type { AddressInfo } from "node:net";
import { expect, onTestFinished, test } from "vitest";
import { AzureSink } from "../../sink/azure.ts";
import { tlsOf } from "../../sink/azure-account.ts";
import { developmentAccount, developmentKey } from "../../sink/azurite-state.ts";

async function portOf(server: Server | https.Server): Promise<number> {
  onTestFinished(() => {
    server.closeAllConnections();
    server.close();
  });
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return (server.address() as AddressInfo).port;
}

async function factsOf(answer: RequestListener): Promise<Awaited<ReturnType<AzureSink["accountFacts"]>>> {
  const port = await portOf(createServer(answer));
  const key = { kind: "key", account: developmentAccount, key: developmentKey } as const;
  await using sink = AzureSink.open(`http://127.0.0.1:${port}/account/vault`, key, { outageToleranceMs: 1 });
  return await sink.accountFacts();
}

const settings = (isKept: boolean): string => `<?xml version="1.0"?><StorageServiceProperties><DeleteRetentionPolicy>
<Enabled>${String(isKept)}</Enabled>${isKept ? "<Days>7</Days>" : ""}</DeleteRetentionPolicy></StorageServiceProperties>`;

function account(sku: string, isKept: boolean, container: Readonly<Record<string, string>>): RequestListener {
  return ({ url = "" }, response) => {
    const query = new URL(url, "http://x").searchParams;
    const what = `${query.get("restype") ?? ""}/${query.get("comp") ?? ""}`;
    const common = { "x-ms-request-id": "1", date: new Date().toUTCString() };
    if (what === "account/properties")
      response.writeHead(200, {
        ...common,
        "x-ms-sku-name": sku,
        "x-ms-account-kind": "StorageV2",
        "x-ms-is-hns-enabled": "false",
      });
    else if (what === "container/") response.writeHead(200, { ...common, etag: '"1"', ...container });
    else response.writeHead(200, { ...common, "content-type": "application/xml" });
    response.end(what === "service/properties" ? settings(isKept) : undefined);
  };
}

test("an account tells its kind, its redundancy, and what it keeps", async () => {
  const plain = { "x-ms-has-immutability-policy": "false", "x-ms-has-legal-hold": "false" };
  expect(await factsOf(account("Standard_GRS", false, plain))).toEqual({
    tls: null,
    kind: "StorageV2",
    sku: "Standard_GRS",
    isHierarchical: false,
    isImmutable: false,
    isPublic: false,
    softDeleteDays: 0,
  });
  const held = { ...plain, "x-ms-has-legal-hold": "true", "x-ms-blob-public-access": "container" };
  expect(await factsOf(account("Premium_LRS", true, held))).toMatchObject({
    sku: "Premium_LRS",
    isImmutable: true,
    isPublic: true,
    softDeleteDays: 7,
  });
});

test("what an identity may not ask is not known", async () => {
  const refusing: RequestListener = (_request, response) => {
    response.writeHead(403, { "x-ms-error-code": "AuthorizationPermissionMismatch", "x-ms-request-id": "1" });
    response.end();
  };
  const facts = await factsOf(refusing);
  expect(new Set(Object.values(facts))).toEqual(new Set([null]));
});

test("the protocol and the certificate of an open connection are told", async () => {
  const golden = (name: string): Buffer => readFileSync(new URL(`../golden/${name}`, import.meta.url));
  const cert = golden("recipient-rsa-certificate.pem");
  const server = https.createServer({ key: golden("recipient-rsa-key.pem"), cert }, (_request, response) =>
    response.end(),
  );
  const port = await portOf(server);
  const agent = new https.Agent({ keepAlive: true, ca: cert, checkServerIdentity: () => undefined });
  onTestFinished(() => agent.destroy());
  expect(tlsOf(agent)).toBeNull();
  await new Promise<void>((resolve, reject) => {
    const request = https.get({ host: "127.0.0.1", port, agent }, (response) => {
      response.resume();
      response.once("end", () => setImmediate(resolve));
    });
    request.once("error", reject);
  });
  expect(tlsOf(agent)).toMatchObject({ protocol: "TLSv1.3", validToMs: expect.any(Number) as number });
});
