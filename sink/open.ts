/**
 * Vault addresses: parses what a user writes and opens the sink that it names. The four forms:
 *
 *     azurite:DIR                  an Azurite on DIR, started with the sink and ended with it
 *     dir:DIR                      a plain folder
 *     http(s)://…/CONTAINER[?SAS]  Azure Storage, or an Azurite that runs already, such as
 *                                  http://127.0.0.1:10000/devstoreaccount1/CONTAINER
 *     memory:[NAME]                for tests; sinks of one name share a store within this process
 *
 * Nothing here reads the environment: credentials and proxy are options. An address may hold a SAS,
 * so no error repeats its query. The Azure packages are optional and loaded when an address needs
 * them.
 */

import type { Sink, Written } from "../engine/index.ts";
import { TidemarkError, throwIfAborted } from "../engine/index.ts";
import { SinkDecorator } from "../engine/internal.ts";
import type { AzureSinkOptions } from "./azure-options.ts";
import { Azurite } from "./azurite.ts";
import { developmentAccount, developmentKey } from "./azurite-state.ts";
import type { AzureAccess, AzureCredential } from "./credential.ts";
import { DirectorySink } from "./directory.ts";
import { explainedBySpace, SpaceReserve } from "./file-system.ts";
import { MemorySink, MemoryStore } from "./memory.ts";
import { checkInstalled } from "./optional-package.ts";
import { bypassesProxy, isLoopback, type ProxyOptions, parseProxyUrl } from "./proxy.ts";
import { sasFacts } from "./sas.ts";

/** A parsed vault address. */
export type VaultSpec =
  | { readonly kind: "azurite"; readonly dir: string }
  | { readonly kind: "directory"; readonly dir: string }
  | { readonly kind: "memory"; readonly name: string }
  | {
      readonly kind: "azure";
      /** The container, without SAS. */
      readonly containerUrl: string;
      /** Undefined when the host name does not contain it. */
      readonly account: string | undefined;
      readonly sas: string | undefined;
    };

/**
 * Credentials for a storage account. Precedence: a SAS in the vault's URL, `sas`, the account key,
 * the connection string, the credential.
 */
export interface AzureCredentials {
  /** Gives the SAS to use from now on, without its `?`. It is asked before each request. */
  readonly sas?: (() => Promise<string>) | undefined;
  /** The account key, base64, from the portal's Access keys. */
  readonly accountKey?: string | undefined;
  /**
   * The portal's `AccountName=…;AccountKey=…;…`, or one with SharedAccessSignature. Its endpoints
   * are ignored.
   */
  readonly connectionString?: string | undefined;
  /**
   * An Azure identity. Default: that of `az login`, the machine or the workload
   * (DefaultAzureCredential of `@azure/identity`).
   */
  readonly credential?: AzureCredential | undefined;
}

/** Options of `openSink`. */
export interface OpenSinkOptions extends Omit<AzureSinkOptions, "description" | "server" | "explain"> {
  readonly credentials?: AzureCredentials | undefined;
  readonly signal?: AbortSignal | undefined;
}

const specRemedy = "name it as azurite:DIR, dir:DIR, https://ACCOUNT.blob.core.windows.net/CONTAINER[?SAS] or memory:";

/** The container of an `azurite:` vault. */
const azuriteContainer = "tidemark";

/** Three to 63 letters, digits and single hyphens (Naming Containers). */
const containerPattern = /^[a-z0-9](?:-?[a-z0-9]){2,62}$/;

const memoryStores = new Map<string, MemoryStore>();

/**
 * Opens the sink that the address `spec` names. The server of `azurite:DIR` runs until the sink is
 * disposed of. For the others no request is sent.
 *
 * @throws TidemarkError INVALID_ARGUMENT; ACCESS_REFUSED: a secret would be sent over plain http;
 * UNSUPPORTED: an optional package is not installed;
 * INTERRUPTED; and those of `Azurite.start`.
 *
 * @example
 * ```ts
 * await using sink = await openSink("dir:/srv/vault");
 * const vault = await Vault.openOrCreate(sink);
 * ```
 */
export async function openSink(spec: string, options: OpenSinkOptions = {}): Promise<Sink> {
  throwIfAborted(options.signal);
  const parsed = parseVaultSpec(spec);
  switch (parsed.kind) {
    case "azurite":
      return openAzurite(parsed.dir, options);
    case "directory":
      return DirectorySink.open(parsed.dir);
    case "memory":
      return new MemorySink({ store: memoryStore(parsed.name) });
    case "azure":
      return await openAzure(parsed, options);
  }
}

/**
 * Parses a vault's address.
 *
 * @throws TidemarkError INVALID_ARGUMENT, with the allowed forms.
 */
export function parseVaultSpec(spec: string): VaultSpec {
  const scheme = /^([a-z]+):/i.exec(spec)?.[1]?.toLowerCase();
  switch (scheme) {
    case "azurite":
    case "dir": {
      const dir = spec.slice(scheme.length + 1);
      if (dir === "" || dir.includes("\0")) throw invalid(`${JSON.stringify(spec)} names no folder`);
      return { kind: scheme === "dir" ? "directory" : "azurite", dir };
    }
    case "memory":
      return { kind: "memory", name: spec.slice(scheme.length + 1) };
    case "http":
    case "https":
      return parseContainerUrl(spec);
    default:
      throw invalid(`${JSON.stringify(withoutQuery(spec))} is not a vault's address`);
  }
}

function parseContainerUrl(spec: string): VaultSpec {
  const shown = withoutQuery(spec);
  if (!URL.canParse(spec)) throw invalid(`${shown} is not a URL`);
  const url = new URL(spec);
  if (url.username !== "" || url.password !== "")
    throw invalid("a vault's URL must not contain a user name or a password");
  const parts = url.pathname.split("/").filter((part) => part !== "");
  const isAddress = isLoopback(url.hostname) || /^(\d+\.){3}\d+$|^\[/.test(url.hostname);
  const account = isAddress || parts.length === 2 ? parts.shift() : accountOfHost(url.hostname);
  const [container, ...rest] = parts;
  if (container === undefined || rest.length > 0) {
    throw invalid(
      `${shown} must name one container${isAddress ? ", as in http://127.0.0.1:10000/devstoreaccount1/CONTAINER" : ""}`,
    );
  }
  if (!containerPattern.test(container))
    throw invalid(`${JSON.stringify(container)} is not a container name: 3 to 63 of a-z, 0-9 and single hyphens`);
  const sas = url.search.slice(1);
  if (sas !== "" && !url.searchParams.has("sig")) throw invalid(`the query of ${shown} is not a SAS`);
  return {
    kind: "azure",
    containerUrl: `${url.origin}${url.pathname.replace(/\/$/, "")}`,
    account,
    sas: sas === "" ? undefined : sas,
  };
}

function accountOfHost(host: string): string | undefined {
  return /^([a-z0-9]{3,24})(?:-secondary)?\.(?:z\d+\.)?blob\./.exec(host)?.[1];
}

/**
 * The SDK takes a quarter of a second to load; with `azurite:` it loads while the server starts.
 */
async function loadAzure(): Promise<typeof import("./azure.ts")> {
  return await import("./azure.ts");
}

async function openAzure(
  spec: Extract<VaultSpec, { readonly kind: "azure" }>,
  options: OpenSinkOptions,
): Promise<Sink> {
  checkInstalled("a vault in Azure Storage", ["@azure/storage-blob"]);
  const access = await accessTo(spec, options);
  refusePlainHttp(spec.containerUrl, access);
  const { AzureSink } = await loadAzure();
  return AzureSink.open(spec.containerUrl, access, options);
}

async function openAzurite(dir: string, options: OpenSinkOptions): Promise<Sink> {
  checkInstalled(`azurite:${dir}`, ["azurite", "@azure/storage-blob"]);
  const loading = loadAzure();
  loading.catch(() => undefined); // awaited below
  const server = await Azurite.start(dir, { signal: options.signal });
  try {
    const { AzureSink } = await loading;
    const access: AzureAccess = { kind: "key", account: developmentAccount, key: server.key };
    // Azurite answers 500 when its disk is full, as for every unexpected failure.
    const own = { description: `azurite:${dir}`, server, explain: async () => await explainedBySpace(dir) };
    const sink = AzureSink.open(`${server.endpoint}/${azuriteContainer}`, access, { ...options, ...own });
    return new ReservingSink(sink, new SpaceReserve(server.dir, async () => await server.savedBytes()));
  } catch (error) {
    await server.stop();
    throw error;
  }
}

/** A store on this machine of which page writes leave a reserve of space, as those of `dir:` do. */
class ReservingSink extends SinkDecorator {
  readonly #reserve: SpaceReserve;

  constructor(inner: Sink, reserve: SpaceReserve) {
    super(inner);
    this.#reserve = reserve;
  }

  override async writePages(...call: Parameters<Sink["writePages"]>): Promise<Written> {
    return await this.#reserve.keptBy(call[2].length, async () => await super.writePages(...call));
  }
}

async function accessTo(
  spec: Extract<VaultSpec, { readonly kind: "azure" }>,
  options: OpenSinkOptions,
): Promise<AzureAccess> {
  const { sas, accountKey, connectionString, credential } = options.credentials ?? {};
  if (spec.sas !== undefined) return { kind: "sas", sas: spec.sas };
  if (sas !== undefined) return { kind: "sas", sas: await sas(), renewed: sas };
  if (accountKey !== undefined) return keyAccess(spec, accountKey);
  if (connectionString !== undefined) return connectionAccess(spec, connectionString);
  if (credential !== undefined) return { kind: "token", credential };
  const url = new URL(spec.containerUrl);
  if (spec.account === developmentAccount && isLoopback(url.hostname))
    return { kind: "key", account: developmentAccount, key: developmentKey };
  if (url.protocol !== "https:")
    throw invalid(
      `${spec.containerUrl} needs an account key, a connection string or a SAS: a token is not sent over plain http`,
    );
  checkInstalled("signing in to Azure without a key or a SAS", ["@azure/identity"]);
  const { DefaultAzureCredential } = await import("@azure/identity");
  return { kind: "token", credential: new DefaultAzureCredential(signInProxy(options.proxy)) };
}

/**
 * A SAS with which another machine opens the container at `spec`, until `untilMs`. Undefined: the
 * store takes no credentials.
 *
 * @throws TidemarkError INVALID_ARGUMENT where there is neither.
 */
export async function sasFor(
  spec: string,
  untilMs: number,
  options: OpenSinkOptions = {},
): Promise<{ readonly sas: string; readonly untilMs: number | undefined } | undefined> {
  const parsed = parseVaultSpec(spec);
  if (parsed.kind !== "azure") return undefined;
  const { accountKey, connectionString } = options.credentials ?? {};
  const isDevelopment = parsed.account === developmentAccount && isLoopback(new URL(parsed.containerUrl).hostname);
  const isKnown = [parsed.sas, accountKey, connectionString].some((secret) => secret !== undefined) || isDevelopment;
  if (!isKnown)
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `there is no account key of which to make a SAS for ${parsed.containerUrl}`,
      {
        remedy: "set AZURE_STORAGE_KEY or AZURE_STORAGE_CONNECTION_STRING, or give an address with a SAS",
      },
    );
  const access = await accessTo(parsed, options);
  if (access.kind === "key") {
    checkInstalled("a SAS", ["@azure/storage-blob"]);
    const { containerSas } = await import("./azure-access.ts");
    return { sas: containerSas(access, parsed.containerUrl, untilMs), untilMs };
  }
  const facts = sasFacts(access);
  return { sas: access.kind === "sas" ? access.sas : "", untilMs: facts?.expiresAtMs };
}

/**
 * On the way over plain http every machine can read a SAS, and repeat a request that is signed with
 * a key.
 * The published key of Azurites is no secret.
 */
function refusePlainHttp(containerUrl: string, access: AzureAccess): void {
  const { protocol, host, hostname } = new URL(containerUrl);
  if (protocol === "https:" || isLoopback(hostname)) return;
  if (access.kind === "key" && access.key === developmentKey) return;
  const secret = access.kind === "sas" ? "a SAS" : "a request signed with the account key";
  throw new TidemarkError("ACCESS_REFUSED", `${secret} is not sent to ${host} over plain http`, {
    remedy: `use https://${host}; for a server without TLS, forward a port of this machine to it (ssh -L) and name 127.0.0.1`,
    detail: { host },
  });
}

function keyAccess(spec: Extract<VaultSpec, { readonly kind: "azure" }>, key: string): AzureAccess {
  if (spec.account === undefined)
    throw invalid(
      `${spec.containerUrl} does not contain the account name that the key needs: use the account's address under blob.core.windows.net`,
    );
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(key))
    throw new TidemarkError("INVALID_ARGUMENT", "the account key is not base64", {
      remedy: "copy the whole string from the portal's Access keys",
    });
  return { kind: "key", account: spec.account, key };
}

function connectionAccess(spec: Extract<VaultSpec, { readonly kind: "azure" }>, connectionString: string): AzureAccess {
  const fields = new Map<string, string>();
  for (const field of connectionString.split(";")) {
    const at = field.indexOf("=");
    if (at > 0) fields.set(field.slice(0, at).trim().toLowerCase(), field.slice(at + 1).trim());
  }
  const development = fields.get("usedevelopmentstorage")?.toLowerCase() === "true";
  const account = development ? developmentAccount : fields.get("accountname");
  const key = development ? developmentKey : fields.get("accountkey");
  const sas = fields.get("sharedaccesssignature");
  if (account !== undefined && spec.account !== undefined && account !== spec.account) {
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `the connection string is for the account ${account}, the vault is in ${spec.account}`,
      {
        remedy: "give the connection string of the vault's account",
      },
    );
  }
  if (key !== undefined) return keyAccess({ ...spec, account: account ?? spec.account }, key);
  if (sas !== undefined) return { kind: "sas", sas: sas.replace(/^\?/, "") };
  throw new TidemarkError(
    "INVALID_ARGUMENT",
    "the connection string holds neither AccountKey nor SharedAccessSignature",
    {
      remedy: "copy the whole string from the portal's Access keys",
    },
  );
}

/** Sign-in requests use the same proxy, unless the bypass list names their host. */
function signInProxy(proxy: ProxyOptions | undefined): {
  readonly proxyOptions?: { host: string; port: number; username?: string; password?: string };
} {
  if (proxy === undefined || bypassesProxy(new URL("https://login.microsoftonline.com"), proxy.bypass ?? [])) return {};
  const url = parseProxyUrl(proxy);
  const port = url.port === "" ? (url.protocol === "https:" ? 443 : 80) : Number(url.port);
  const user =
    url.username === ""
      ? {}
      : { username: decodeURIComponent(url.username), password: decodeURIComponent(url.password) };
  return { proxyOptions: { host: `${url.protocol}//${url.hostname}`, port, ...user } };
}

/** The store of that name, created at its first use. Without a name, a new store. */
function memoryStore(name: string): MemoryStore {
  if (name === "") return new MemoryStore();
  let store = memoryStores.get(name);
  if (store === undefined) {
    store = new MemoryStore();
    memoryStores.set(name, store);
  }
  return store;
}

function withoutQuery(spec: string): string {
  return spec.split("?", 1)[0] ?? "";
}

function invalid(message: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", message, { remedy: specRemedy });
}
