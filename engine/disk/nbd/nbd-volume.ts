/**
 * NBD export as a volume: a disk of another machine, or anything that qemu-nbd and nbdkit can open.
 *
 * `base:allocation` tells holes. A QEMU dirty bitmap tells what changed, so that a cycle reads
 * nothing else.
 *
 * An export is named by URI, as NBD tools do (doc/uri.md of the NetworkBlockDevice project):
 *
 *     nbd://host[:port]/export      nbd+unix:///export?socket=PATH      the same with nbds for TLS
 *     ?tls-certificates=FOLDER      holds ca-cert.pem, and client-cert.pem, client-key.pem if wanted
 *     ?tls-hostname=NAME            the name in the server's certificate, if it is not the host's
 */
import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { systemCode, TidemarkError } from "../../errors.ts";
import type { Consistency, Extent, Volume } from "../../volume.ts";
import { fileError } from "../source/positional-file.ts";
import { NbdClient } from "./client.ts";
import type { NbdConnectOptions, NbdTls } from "./client-handshake.ts";
import { allocationContext, allocationFlag, type NbdEndpoint } from "./protocol.ts";

/** How `NbdVolume.open` works. */
export interface NbdVolumeOptions {
  /** Contexts for `changed`, such as `qemu:dirty-bitmap:NAME`. */
  readonly bitmaps?: readonly string[] | undefined;
  /** How long the server may be silent while we wait for it, in ms. Default: 60 s. */
  readonly silenceMsMax?: number | undefined;
  /** Ends the opening with INTERRUPTED. */
  readonly signal?: AbortSignal | undefined;
}

/** What an NBD URI says. `certificates`: the folder from which TLS takes its files. */
export interface NbdUri {
  readonly endpoint: NbdEndpoint;
  readonly exportName: string;
  readonly tls: { readonly certificates: string | undefined; readonly serverName: string | undefined } | undefined;
}

const portDefault = 10_809;
/** Of a descriptor of `qemu:dirty-bitmap:NAME` (docs/interop/nbd.txt of QEMU). */
const dirtyFlag = 1;

export class NbdVolume implements Volume, AsyncDisposable {
  readonly description: string;
  readonly #client: NbdClient;

  private constructor(client: NbdClient) {
    this.description = client.description;
    this.#client = client;
  }

  /**
   * Connects to the export that `uri` names. Errors: INVALID_ARGUMENT (the URI, the certificates),
   * and those of `NbdClient.connect`.
   */
  static async open(uri: string, options: NbdVolumeOptions = {}): Promise<NbdVolume> {
    const { endpoint, exportName, tls } = parseNbdUri(uri);
    const connect: NbdConnectOptions = {
      ...endpoint,
      exportName,
      contexts: [...new Set([allocationContext, ...(options.bitmaps ?? [])])],
      ...(tls === undefined ? {} : { tls: await certificatesOf(tls) }),
      silenceMsMax: options.silenceMsMax,
      signal: options.signal,
    };
    return new NbdVolume(await NbdClient.connect(connect));
  }

  /** Size as of the opening: the protocol does not tell when an export grows. */
  async sizeBytes(): Promise<number> {
    return this.#client.sizeBytes;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#client.read(offset, into);
  }

  /** All that does not read as zeros, as far as the server tells. */
  async *allocated(sizeBytes: number): AsyncGenerator<Extent, void, undefined> {
    const length = Math.min(sizeBytes, this.#client.sizeBytes);
    if (!this.#client.hasContext(allocationContext)) {
      if (length > 0) yield { offset: 0, length };
      return;
    }
    yield* this.#extents(allocationContext, length, (flags) => (flags & allocationFlag.zero) === 0);
  }

  /**
   * What the bitmap marks as changed, holes too. Errors: SOURCE_NOT_FOUND when the export does not
   * have this bitmap, SOURCE_UNREADABLE.
   */
  changed(bitmapContext: string): AsyncGenerator<Extent, void, undefined> {
    return this.#extents(bitmapContext, this.#client.sizeBytes, (flags) => (flags & dirtyFlag) !== 0);
  }

  /** A read-only export counts as still. */
  async endScan(): Promise<Consistency> {
    return this.#client.readOnly ? "crash" : "fuzzy";
  }

  close(): Promise<void> {
    return this.#client.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async *#extents(
    context: string,
    length: number,
    wanted: (flags: number) => boolean,
  ): AsyncGenerator<Extent, void, undefined> {
    let open: Extent | undefined;
    for await (const status of this.#client.status(context, 0, length)) {
      if (wanted(status.flags)) {
        // Neighbours may differ in flags that do not matter here.
        if (open?.offset !== undefined && open.offset + open.length === status.offset) {
          open = { offset: open.offset, length: open.length + status.length };
          continue;
        }
        if (open !== undefined) yield open;
        open = { offset: status.offset, length: status.length };
      }
    }
    if (open !== undefined) yield open;
  }
}

/**
 * Takes an NBD URI apart. Errors: INVALID_ARGUMENT, without repeating the URI, which may hold a
 * secret.
 */
export function parseNbdUri(uri: string): NbdUri {
  if (!URL.canParse(uri)) throw invalidUri("it is no URI");
  const url = new URL(uri);
  const scheme = /^(nbds?)(\+unix)?:$/.exec(url.protocol);
  if (scheme === null) throw invalidUri(`its scheme is ${url.protocol}`);
  if (url.username !== "" || url.password !== "")
    throw invalidUri("it names a user, which needs TLS with pre-shared keys");
  // The form's `+` for a blank does not hold for URIs of this kind.
  const query = new URLSearchParams(url.search.replaceAll("+", "%2B"));
  const socket = query.get("socket");
  const tls =
    scheme[1] === "nbds"
      ? { certificates: query.get("tls-certificates") ?? undefined, serverName: query.get("tls-hostname") ?? undefined }
      : undefined;
  const exportName = decoded(url.pathname.replace(/^\//, ""));
  if (scheme[2] === "+unix") {
    if (socket === null || socket === "") throw invalidUri("it names no socket");
    if (url.host !== "") throw invalidUri("it names both a host and a socket; three slashes precede the export's name");
    return { endpoint: { kind: "unix", path: socket }, exportName, tls };
  }
  if (url.hostname === "") throw invalidUri("it names no host");
  if (socket !== null) throw invalidUri("it names both a host and a socket");
  const host = decoded(url.hostname.replace(/^\[(.*)\]$/, "$1"));
  return { endpoint: { kind: "tcp", host, port: url.port === "" ? portDefault : Number(url.port) }, exportName, tls };
}

function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch (error) {
    throw invalidUri("it holds a broken %-sequence", error);
  }
}

function invalidUri(fact: string, cause?: unknown): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", `the NBD address cannot be used: ${fact}`, {
    remedy: "write nbd://HOST[:PORT]/EXPORT or nbd+unix:///EXPORT?socket=PATH, with nbds for TLS",
    cause,
  });
}

async function certificatesOf(tls: NonNullable<NbdUri["tls"]>): Promise<NbdTls> {
  const { certificates, serverName } = tls;
  if (certificates === undefined) return { serverName };
  const [ca, cert, key] = await Promise.all([
    certificateFile(join(certificates, "ca-cert.pem"), "needed"),
    certificateFile(join(certificates, "client-cert.pem"), "optional"),
    certificateFile(join(certificates, "client-key.pem"), "optional"),
  ]);
  return { ca, cert, key, serverName };
}

/** The file's content; undefined when there is none and it is optional. */
async function certificateFile(path: string, need: "needed" | "optional"): Promise<Buffer | undefined> {
  try {
    return await readFile(path);
  } catch (error) {
    if (need === "optional" && systemCode(error) === "ENOENT") return undefined;
    throw fileError(error, {
      code: "INVALID_ARGUMENT",
      what: `cannot read ${path}`,
      remedy:
        "let tls-certificates name a folder with ca-cert.pem, or leave it out to trust the authorities of the system",
    });
  }
}
