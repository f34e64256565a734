/**
 * NBD client handshake: connect, greeting, TLS, structured replies, metadata contexts, export.
 *
 * The client speaks the fixed newstyle handshake with GO only; servers have offered it since 2016.
 * The server is not trusted: every length and every count that it sends is checked and bounded.
 */
import net from "node:net";
import tls from "node:tls";
import { interrupted, systemCode, TidemarkError, throwIfAborted } from "../../errors.ts";
import {
  greetingBytes,
  handshakeFlag,
  handshakeMagic,
  infoType,
  lengthAndText,
  type NbdEndpoint,
  option,
  optionHeaderBytes,
  optionReply,
  optionReplyHeaderBytes,
  payloadBytesMax,
  stringBytesMax,
  transmissionFlag,
  uint16,
  uint32,
} from "./protocol.ts";
import { Wire } from "./wire.ts";

/** What TLS needs, in PEM. Given: nothing but TLS is accepted. */
export interface NbdTls {
  /** Authorities that may have signed the server's certificate. Absent: those of the system. */
  readonly ca?: string | Buffer | undefined;
  /** The client's own certificate and key, where the server wants them. */
  readonly cert?: string | Buffer | undefined;
  readonly key?: string | Buffer | undefined;
  /**
   * The name that the server's certificate must bear. Default: the host, or `localhost` on a Unix
   * socket.
   */
  readonly serverName?: string | undefined;
}

export type NbdConnectOptions = NbdEndpoint & {
  /** Name of the export; empty for the server's default. */
  readonly exportName: string;
  /**
   * Metadata contexts to ask for, such as `base:allocation`. Those that the server does not have
   * are left out.
   */
  readonly contexts?: readonly string[] | undefined;
  readonly tls?: NbdTls | undefined;
  /**
   * How long the server may be silent while we wait for it, connecting included, in ms. Default: 60
   * s.
   */
  readonly silenceMsMax?: number | undefined;
  /** Ends the connecting with INTERRUPTED. */
  readonly signal?: AbortSignal | undefined;
};

/** What client and server have agreed upon. */
export interface ClientAgreement {
  /** Paused, with nothing unread. */
  readonly socket: net.Socket;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  /** Offsets and lengths of requests are multiples of this, a power of two up to 64 KiB. */
  readonly alignmentBytes: number;
  /** One request asks for at most this much data. */
  readonly requestBytesMax: number;
  readonly structured: boolean;
  /** Name to id, of the contexts that the server has granted. */
  readonly contexts: ReadonlyMap<string, number>;
}

export const silenceMsDefault = 60_000;
/**
 * Option replies carry strings of 4 KiB at most and a few numbers; descriptions may be longer in
 * theory.
 */
const replyBytesMax: number = 64 * 1024;
/**
 * More replies than this to one option are a flood: we ask for a handful of contexts and one
 * export.
 */
const repliesMax = 256;
const alignmentBytesMax: number = 64 * 1024;
/** Servers must serve requests this large, unless the whole export is smaller. */
const requestBytesLeast = 4096;

/** How a server is named in messages and descriptions: an NBD URI without anything secret. */
export function nbdAddress(options: NbdConnectOptions): string {
  const scheme = options.tls === undefined ? "nbd" : "nbds";
  const name = encodeURIComponent(options.exportName);
  if (options.kind === "unix") return `${scheme}+unix:///${name}?socket=${options.path}`;
  return `${scheme}://${net.isIPv6(options.host) ? `[${options.host}]` : options.host}:${options.port}/${name}`;
}

/**
 * Connects and negotiates. Errors: SOURCE_NOT_FOUND (no server listens there; the export is
 * unknown), ACCESS_REFUSED (TLS is needed, missing or fails; the server's policy),
 * FORMAT_UNSUPPORTED (no NBD server, or one too old), SOURCE_UNREADABLE (it went away, was silent
 * or broke the protocol), INTERRUPTED.
 */
export async function agree(options: NbdConnectOptions): Promise<ClientAgreement> {
  throwIfAborted(options.signal);
  const handshake = new Handshake(options);
  try {
    return await handshake.run();
  } catch (error) {
    handshake.abandon();
    throw error;
  } finally {
    handshake.unwatch();
  }
}

class Handshake {
  readonly #options: NbdConnectOptions;
  readonly #address: string;
  readonly #silenceMsMax: number;
  #socket: net.Socket;
  #wire: Wire;
  /** What ended the connection, when it was not the server's plain goodbye. */
  #fault: Error | undefined;
  readonly #onAbort = (): void => {
    if (this.#options.signal !== undefined) this.#fail(interrupted(this.#options.signal));
  };

  constructor(options: NbdConnectOptions) {
    this.#options = options;
    this.#address = nbdAddress(options);
    this.#silenceMsMax = options.silenceMsMax ?? silenceMsDefault;
    this.#socket =
      options.kind === "unix"
        ? net.connect({ path: options.path })
        : net.connect({ host: options.host, port: options.port, noDelay: true });
    this.#wire = new Wire(this.#socket);
    this.#watch();
    options.signal?.addEventListener("abort", this.#onAbort);
  }

  async run(): Promise<ClientAgreement> {
    await this.#established("connect");
    await this.#greet();
    if (this.#options.tls !== undefined) await this.#startTls(this.#options.tls);
    const structured = await this.#askStructured();
    const contexts = structured ? await this.#askContexts() : new Map<string, number>();
    const terms = await this.#go();
    if (this.#wire.release().byteLength > 0)
      throw brokenProtocol(this.#address, "it sends an answer without a request");
    if (this.#socket.destroyed) throw this.#gone();
    return { socket: this.#socket, structured, contexts, ...terms };
  }

  abandon(): void {
    this.#socket.destroy();
  }

  /**
   * From here on the socket and its listeners belong to the caller. A late error of an abandoned
   * socket is ignored.
   */
  unwatch(): void {
    this.#options.signal?.removeEventListener("abort", this.#onAbort);
    this.#socket.off("timeout", this.#onSilence);
    this.#socket.setTimeout(0);
  }

  readonly #onError = (error: Error): void => {
    this.#fault ??= error;
  };

  readonly #onSilence = (): void => this.#fail(silence(this.#address, this.#silenceMsMax));

  #watch(): void {
    this.#socket.on("error", this.#onError);
    this.#socket.on("timeout", this.#onSilence);
    this.#socket.setTimeout(this.#silenceMsMax);
  }

  #fail(fault: Error): void {
    this.#fault ??= fault;
    this.#socket.destroy();
  }

  /** Waits until the socket is `event`, or has failed. */
  async #established(event: "connect" | "secureConnect"): Promise<void> {
    const socket = this.#socket;
    await new Promise<void>((resolve) => {
      socket.once(event, resolve);
      socket.once("close", () => resolve());
    });
    if (socket.destroyed) throw this.#gone();
  }

  async #greet(): Promise<void> {
    const greeting = await this.#take(greetingBytes);
    const known =
      greeting.readBigUInt64BE(0) === handshakeMagic.init && greeting.readBigUInt64BE(8) === handshakeMagic.option;
    const flags = greeting.readUInt16BE(16);
    if (!known || (flags & handshakeFlag.fixedNewstyle) === 0) {
      throw new TidemarkError(
        "FORMAT_UNSUPPORTED",
        `what answers at ${this.#address} is no NBD server of the fixed newstyle`,
        {
          remedy: "check the address, or serve the disk with a current qemu-nbd or nbdkit",
          detail: { address: this.#address },
        },
      );
    }
    const answer = Buffer.alloc(4);
    answer.writeUInt32BE(handshakeFlag.fixedNewstyle | (flags & handshakeFlag.noZeroes));
    await this.#wire.send(answer);
  }

  async #startTls(wanted: NbdTls): Promise<void> {
    await this.#ask(option.startTls, Buffer.alloc(0));
    const reply = await this.#reply(option.startTls);
    if (reply.type === optionReply.errUnsup || reply.type === optionReply.errPolicy) {
      throw accessRefused(
        this.#address,
        "the server offers no TLS",
        "start the server with TLS, or use an address with nbd:// instead of nbds://",
      );
    }
    if (reply.type !== optionReply.ack) throw this.#refusal(reply);
    // Clear text after the agreement on TLS may have been injected on the network.
    if (this.#wire.release().byteLength > 0)
      throw brokenProtocol(this.#address, "it sends data in clear after TLS was agreed");
    const host = this.#options.kind === "tcp" ? this.#options.host : "localhost";
    const name = wanted.serverName ?? host;
    const plain = this.#socket;
    plain.off("timeout", this.#onSilence);
    plain.setTimeout(0);
    this.#socket = tls.connect({
      socket: plain,
      host: name,
      // A server name indication holds names only.
      ...(net.isIP(name) === 0 ? { servername: name } : {}),
      ...(wanted.ca === undefined ? {} : { ca: wanted.ca }),
      ...(wanted.cert === undefined ? {} : { cert: wanted.cert }),
      ...(wanted.key === undefined ? {} : { key: wanted.key }),
    });
    this.#wire = new Wire(this.#socket);
    this.#watch();
    await this.#established("secureConnect");
  }

  async #askStructured(): Promise<boolean> {
    await this.#ask(option.structuredReply, Buffer.alloc(0));
    const reply = await this.#reply(option.structuredReply);
    if (reply.type === optionReply.ack) return true;
    if (reply.type === optionReply.errUnsup) return false;
    throw this.#refusal(reply);
  }

  async #askContexts(): Promise<Map<string, number>> {
    const wanted = this.#options.contexts ?? [];
    const granted = new Map<string, number>();
    if (wanted.length === 0) return granted;
    await this.#ask(
      option.setMetaContext,
      Buffer.concat([text(this.#options.exportName), uint32(wanted.length), ...wanted.map(text)]),
    );
    const ids = new Set<number>();
    for (let count = 0; count < repliesMax; count += 1) {
      const { type, data } = await this.#reply(option.setMetaContext);
      if (type === optionReply.ack) return granted;
      if (type === optionReply.errUnsup) return new Map();
      if (type !== optionReply.metaContext) throw this.#refusal({ type, data });
      if (data.byteLength < 5) throw brokenProtocol(this.#address, "it grants a metadata context without a name");
      const id = data.readUInt32BE(0);
      const name = data.toString("utf8", 4);
      if (!wanted.includes(name) || granted.has(name) || ids.has(id)) {
        throw brokenProtocol(this.#address, "it grants a metadata context that was not asked for, or one twice");
      }
      granted.set(name, id);
      ids.add(id);
    }
    throw brokenProtocol(this.#address, "it does not stop to answer");
  }

  async #go(): Promise<Pick<ClientAgreement, "sizeBytes" | "readOnly" | "alignmentBytes" | "requestBytesMax">> {
    await this.#ask(option.go, Buffer.concat([text(this.#options.exportName), uint16(1), uint16(infoType.blockSize)]));
    let disk: { readonly sizeBytes: number; readonly readOnly: boolean } | undefined;
    let blocks = { alignmentBytes: 1, requestBytesMax: payloadBytesMax };
    for (let count = 0; count < repliesMax; count += 1) {
      const { type, data } = await this.#reply(option.go);
      if (type === optionReply.ack) {
        if (disk === undefined) throw brokenProtocol(this.#address, "it does not tell the size of the export");
        if (blocks.requestBytesMax < Math.min(requestBytesLeast, disk.sizeBytes)) {
          throw brokenProtocol(this.#address, `it serves at most ${blocks.requestBytesMax} bytes a request`);
        }
        return { ...disk, ...blocks };
      }
      if (type !== optionReply.info || data.byteLength < 2) throw this.#refusal({ type, data });
      const kind = data.readUInt16BE(0);
      if (kind === infoType.export) disk = this.#exportOf(data);
      else if (kind === infoType.blockSize) blocks = this.#blocksOf(data);
    }
    throw brokenProtocol(this.#address, "it does not stop to answer");
  }

  #exportOf(data: Buffer): { readonly sizeBytes: number; readonly readOnly: boolean } {
    if (data.byteLength !== 12) throw brokenProtocol(this.#address, "it describes the export in a wrong length");
    const size = data.readBigUInt64BE(2);
    if (size > BigInt(Number.MAX_SAFE_INTEGER))
      throw brokenProtocol(this.#address, `it claims a size of ${size} bytes`);
    return { sizeBytes: Number(size), readOnly: (data.readUInt16BE(10) & transmissionFlag.readOnly) !== 0 };
  }

  #blocksOf(data: Buffer): Pick<ClientAgreement, "alignmentBytes" | "requestBytesMax"> {
    if (data.byteLength !== 14) throw brokenProtocol(this.#address, "it describes its block sizes in a wrong length");
    const alignmentBytes = data.readUInt32BE(2);
    const largest = data.readUInt32BE(10);
    if (
      alignmentBytes === 0 ||
      alignmentBytes > alignmentBytesMax ||
      !Number.isInteger(Math.log2(alignmentBytes)) ||
      largest < alignmentBytes
    ) {
      throw brokenProtocol(this.#address, `it claims block sizes of ${alignmentBytes} to ${largest} bytes`);
    }
    return {
      alignmentBytes,
      requestBytesMax: Math.floor(Math.min(largest, payloadBytesMax) / alignmentBytes) * alignmentBytes,
    };
  }

  async #ask(number: number, data: Buffer): Promise<void> {
    const header = Buffer.alloc(optionHeaderBytes);
    header.writeBigUInt64BE(handshakeMagic.option, 0);
    header.writeUInt32BE(number, 8);
    header.writeUInt32BE(data.byteLength, 12);
    await this.#wire.send(Buffer.concat([header, data]));
  }

  async #reply(asked: number): Promise<OptionReply> {
    const header = await this.#take(optionReplyHeaderBytes);
    if (header.readBigUInt64BE(0) !== handshakeMagic.optionReply || header.readUInt32BE(8) !== asked) {
      throw brokenProtocol(this.#address, "its answer does not fit the question");
    }
    const length = header.readUInt32BE(16);
    if (length > replyBytesMax) throw brokenProtocol(this.#address, `it announces an answer of ${length} bytes`);
    return { type: header.readUInt32BE(12), data: await this.#take(length) };
  }

  async #take(count: number): Promise<Buffer> {
    const bytes = await this.#wire.take(count);
    if (bytes === undefined) throw this.#gone();
    return bytes;
  }

  #gone(): TidemarkError {
    return connectionLost(this.#address, this.#fault);
  }

  /** The error for an answer that says no, or that makes no sense. */
  #refusal({ type, data }: OptionReply): TidemarkError {
    const said = serverText(data);
    const name = this.#options.exportName;
    switch (type) {
      case optionReply.errUnknown:
        return new TidemarkError(
          "SOURCE_NOT_FOUND",
          `the NBD server at ${this.#address} offers no export "${name}"${said}`,
          {
            remedy: "name an export that `nbdinfo --list` shows for this server",
            detail: { address: this.#address, export: name },
          },
        );
      case optionReply.errTlsReqd:
        return accessRefused(
          this.#address,
          `the server insists on TLS${said}`,
          "use an address with nbds:// and certificates that it accepts",
        );
      case optionReply.errPolicy:
        return accessRefused(
          this.#address,
          `the server's policy forbids it${said}`,
          "allow this client in the server's configuration",
        );
      case optionReply.errUnsup:
        return new TidemarkError(
          "FORMAT_UNSUPPORTED",
          `the NBD server at ${this.#address} does not know the option GO${said}`,
          {
            remedy: "serve the disk with a current qemu-nbd or nbdkit",
            detail: { address: this.#address },
          },
        );
      case optionReply.errShutdown:
        return connectionLost(this.#address, new Error(`it is shutting down${said}`));
      default:
        return brokenProtocol(this.#address, `it answers with ${type}${said}`);
    }
  }
}

interface OptionReply {
  readonly type: number;
  readonly data: Buffer;
}

/** The error for a connection that ended: by `fault`, or by the server alone. */
export function connectionLost(address: string, fault: Error | undefined): TidemarkError {
  if (fault instanceof TidemarkError) return fault;
  const errno = systemCode(fault);
  const detail = { address, errno };
  if (errno === "ENOENT" || errno === "ECONNREFUSED" || errno === "ENOTFOUND" || errno === "ENOTSOCK") {
    return new TidemarkError("SOURCE_NOT_FOUND", `no NBD server listens at ${address} (${errno})`, {
      remedy: "start the server, or check the address",
      detail,
      cause: fault,
    });
  }
  if (errno === "EACCES" || errno === "EPERM")
    return accessRefused(address, `access is refused (${errno})`, "check the permissions of its socket", fault);
  if (
    errno !== undefined &&
    /^(ERR_TLS|ERR_SSL|CERT_|DEPTH_ZERO|SELF_SIGNED|UNABLE_TO|HOSTNAME_MISMATCH|INVALID_CA|ERR_OSSL)/.test(errno)
  ) {
    return accessRefused(
      address,
      `TLS failed (${errno})`,
      "check the certificates of both sides and the name that the server's bears",
      fault,
    );
  }
  const fact = fault === undefined ? "closed the connection" : `is not there any more: ${fault.message}`;
  return new TidemarkError("SOURCE_UNREADABLE", `the NBD server at ${address} ${fact}`, {
    remedy: "see what ended the server, start it again, then repeat",
    detail,
    cause: fault,
  });
}

/** The error for a server that says what it must not say; the connection is of no use after it. */
export function brokenProtocol(address: string, fact: string): TidemarkError {
  return new TidemarkError("SOURCE_UNREADABLE", `the NBD server at ${address} breaks the protocol: ${fact}`, {
    remedy: "serve the disk with a current qemu-nbd or nbdkit, and check that nothing on the way alters the data",
    detail: { address },
  });
}

/** The error for a server that does not answer. */
export function silence(address: string, silenceMs: number): TidemarkError {
  return new TidemarkError("SOURCE_UNREADABLE", `the NBD server at ${address} has not answered for ${silenceMs} ms`, {
    remedy: "check the server and the network, then repeat",
    detail: { address, silenceMs },
  });
}

export function accessRefused(address: string, fact: string, remedy: string, cause?: unknown): TidemarkError {
  return new TidemarkError("ACCESS_REFUSED", `cannot use the NBD server at ${address}: ${fact}`, {
    remedy,
    detail: { address },
    cause,
  });
}

/** What a server says in words, as the end of a message: cleaned, shortened, or nothing. */
export function serverText(bytes: Uint8Array): string {
  const words = Buffer.from(bytes.subarray(0, 300)).toString("utf8").replaceAll(/\p{C}/gu, " ").trim();
  return words === "" ? "" : ` (${words})`;
}

/**
 * A string with its length before it. Errors: INVALID_ARGUMENT when the protocol does not allow it
 * so long.
 */
function text(value: string): Buffer {
  const length = Buffer.byteLength(value);
  if (length > stringBytesMax) {
    throw new TidemarkError("INVALID_ARGUMENT", `a name of ${length} bytes is longer than NBD allows`, {
      remedy: `shorten the name of the export or bitmap to ${stringBytesMax} bytes`,
    });
  }
  return lengthAndText(value);
}
