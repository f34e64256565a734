import { join } from "node:path";
import { describe, expect, test } from "vitest";
import { TidemarkError } from "../../engine/errors.ts";
import { processStartTime, readHostState } from "../../sink/azurite-state.ts";
import { type OpenSinkOptions, openSink, parseVaultSpec } from "../../sink/open.ts";
import { createFolder, removeFolder } from "../temporary-folder.ts";

async function failure(spec: string, options?: OpenSinkOptions): Promise<TidemarkError> {
  try {
    await (await openSink(spec, options))[Symbol.asyncDispose]();
  } catch (error) {
    if (error instanceof TidemarkError) return error;
    throw error;
  }
  throw new Error(`${spec} was opened`);
}

describe("a vault's address", () => {
  test.each([
    ["azurite:./data", { kind: "azurite", dir: "./data" }],
    ["dir:/srv/vault", { kind: "directory", dir: "/srv/vault" }],
    ["memory:", { kind: "memory", name: "" }],
    ["memory:a", { kind: "memory", name: "a" }],
    [
      "https://acct.blob.core.windows.net/vault/",
      { kind: "azure", containerUrl: "https://acct.blob.core.windows.net/vault", account: "acct", sas: undefined },
    ],
    [
      "https://acct.blob.core.windows.net/vault?sv=1&sig=a%2Bb",
      {
        kind: "azure",
        containerUrl: "https://acct.blob.core.windows.net/vault",
        account: "acct",
        sas: "sv=1&sig=a%2Bb",
      },
    ],
    [
      "https://acct.z12.blob.storage.azure.net/vault",
      { kind: "azure", containerUrl: "https://acct.z12.blob.storage.azure.net/vault", account: "acct", sas: undefined },
    ],
    [
      "https://blobs.example.org/vault",
      { kind: "azure", containerUrl: "https://blobs.example.org/vault", account: undefined, sas: undefined },
    ],
    [
      "http://127.0.0.1:10000/devstoreaccount1/vault",
      {
        kind: "azure",
        containerUrl: "http://127.0.0.1:10000/devstoreaccount1/vault",
        account: "devstoreaccount1",
        sas: undefined,
      },
    ],
    [
      "http://azurite:10000/acc/vault",
      { kind: "azure", containerUrl: "http://azurite:10000/acc/vault", account: "acc", sas: undefined },
    ],
  ])("%s is understood", (spec, expected) => {
    expect(parseVaultSpec(spec)).toEqual(expected);
  });

  test.each([
    "",
    "vault",
    "/srv/vault",
    "s3://bucket/vault",
    "azurite:",
    "dir:",
    "https://",
    "https://acct.blob.core.windows.net",
    "https://acct.blob.core.windows.net/a/b/c",
    "https://acct.blob.core.windows.net/No",
    "https://acct.blob.core.windows.net/a--b",
    "https://user:password@acct.blob.core.windows.net/vault",
    "https://acct.blob.core.windows.net/vault?restype=container",
    "http://127.0.0.1:10000/vault",
  ])("%j is refused with the forms that are allowed", async (spec) => {
    const error = await failure(spec);
    expect(error.code).toBe("INVALID_ARGUMENT");
    for (const form of ["azurite:", "dir:", "https:", "memory:"]) expect(error.remedy).toContain(form);
  });

  test("that is refused does not show its signature or password", async () => {
    for (const spec of [
      "https://acct.blob.core.windows.net/?sv=1&sig=s3cret",
      "https://u:s3cret@a.example/vault",
      "ftp://a/b?sig=s3cret",
    ]) {
      expect((await failure(spec)).message).not.toContain("s3cret");
    }
  });
});

describe("credentials", () => {
  const vault = "https://acct.blob.core.windows.net/vault";

  test("of another account than the vault's are refused", async () => {
    const error = await failure(vault, { credentials: { connectionString: "AccountName=other;AccountKey=c2VjcmV0" } });
    expect(error.code).toBe("INVALID_ARGUMENT");
    expect(error.message).not.toContain("c2VjcmV0");
  });

  test("without a key or SAS in the connection string are refused", async () => {
    expect(
      (await failure(vault, { credentials: { connectionString: "BlobEndpoint=https://acct.blob.core.windows.net" } }))
        .code,
    ).toBe("INVALID_ARGUMENT");
  });

  test("that are no base64 are refused without being shown", async () => {
    const error = await failure(vault, { credentials: { accountKey: "not a key" } });
    expect(error.code).toBe("INVALID_ARGUMENT");
    expect(error.message).not.toContain("not a key");
  });

  test("are needed where an identity would be sent over plain http", async () => {
    expect((await failure("http://acct.blob.core.windows.net/vault")).code).toBe("INVALID_ARGUMENT");
  });

  test("of a proxy never show", async () => {
    const error = await failure(vault, {
      credentials: { accountKey: "c2VjcmV0" },
      proxy: { url: "socks5://u:s3cret@proxy:1" },
    });
    expect(error.code).toBe("INVALID_ARGUMENT");
    expect(error.message).not.toContain("s3cret");
  });

  test("by default are the machine's identity, which is looked for only when a call needs it", async () => {
    await using sink = await openSink(vault);
    expect(sink.description).toBe(vault);
  });
});

test("memory stores of one name are one store, those without a name are not", async () => {
  await using first = await openSink("memory:shared");
  await using second = await openSink("memory:shared");
  await using alone = await openSink("memory:");
  expect(await first.createContainer()).toBe(true);
  expect(await second.createContainer()).toBe(false);
  expect(await alone.createContainer()).toBe(true);
});

test("a directory and an Azurite are opened by their folders, and the Azurite ends with its sink", async () => {
  const folder = createFolder("open");
  try {
    await using directory = await openSink(`dir:${join(folder, "plain")}`);
    expect(await directory.createContainer()).toBe(true);

    const dir = join(folder, "azurite");
    const sink = await openSink(`azurite:${dir}`);
    expect(sink.description).toBe(`azurite:${dir}`);
    expect(await sink.createContainer()).toBe(true);
    const host = await readHostState(join(dir, "tidemark-server.json"));
    await sink[Symbol.asyncDispose]();
    await sink[Symbol.asyncDispose]();
    expect(await processStartTime(host?.pid ?? 0)).toBeUndefined();
  } finally {
    await removeFolder(folder);
  }
});

test("an aborted signal opens nothing", async () => {
  expect((await failure("memory:", { signal: AbortSignal.abort() })).code).toBe("INTERRUPTED");
});
