/**
 * NBD client for one export: reads and block status, many requests in flight, answered in any
 * order.
 *
 *     request ─► pending[cookie] ─► server ─► header ─► checked against pending ─► payload ─► caller's memory
 *
 * The server is not trusted. Each length is checked against its request before a byte is taken, and
 * data goes straight into the caller's memory. So the server makes the client hold at most what the
 * client asked for: 1 MiB a read in flight, and one list of extents a status request.
 *
 * An answer that breaks the protocol ends the connection and every pending request. An error that
 * the server reports within the protocol ends its own request only.
 */
import type { Socket } from "node:net";
import { TidemarkError } from "../../errors.ts";
import {
  agree,
  brokenProtocol,
  type ClientAgreement,
  connectionLost,
  type NbdConnectOptions,
  nbdAddress,
  silence,
  silenceMsDefault,
} from "./client-handshake.ts";
import {
  type Answer,
  type NbdStatus,
  type Pending,
  ReplyParser,
  readOf,
  type StatusAnswer,
  type StatusReply,
} from "./client-replies.ts";
import { command, requestBytes, transmissionMagic } from "./protocol.ts";

const requestsInFlightMax = 16;
/** A larger read is split, so that several parts are on their way at once. */
const readBytesMax: number = 1024 * 1024;
/**
 * How much of the export one status request asks about. qemu-nbd and nbdkit answer with a beginning
 * of it when that has many extents.
 */
const statusBytesMax: number = 1024 * 1024 * 1024;
/** Status requests on their way ahead of what the caller has taken. */
const statusAheadMax = 4;
/** How long a close may take to tell the server. */
const goodbyeMsMax = 2000;

export class NbdClient implements AsyncDisposable {
  /** The export's address as an NBD URI, for messages. */
  readonly description: string;
  readonly sizeBytes: number;
  readonly readOnly: boolean;
  readonly #agreement: ClientAgreement;
  readonly #socket: Socket;
  readonly #parser: ReplyParser;
  readonly #pending = new Map<number, Pending>();
  #cookie = 0;
  #free = requestsInFlightMax;
  readonly #waiting: (() => void)[] = [];
  #fault: TidemarkError | undefined;
  /** Calls of `read` under way, each with several requests. */
  #reads = 0;
  #idle: (() => void) | undefined;
  #closing: Promise<void> | undefined;

  private constructor(agreement: ClientAgreement, address: string, silenceMsMax: number) {
    this.description = address;
    this.sizeBytes = agreement.sizeBytes;
    this.readOnly = agreement.readOnly;
    this.#agreement = agreement;
    this.#socket = agreement.socket;
    this.#parser = new ReplyParser(this.#pending, agreement, address, (cookie) => this.#settled(cookie));
    const socket = this.#socket;
    socket.on("data", (bytes: Buffer) => this.#received(bytes));
    socket.on("error", (error) => this.#fail(connectionLost(address, error)));
    socket.on("close", () => this.#fail(connectionLost(address, undefined)));
    socket.on("timeout", () => {
      if (this.#pending.size > 0) this.#fail(silence(address, silenceMsMax));
    });
    socket.setTimeout(silenceMsMax);
    // It was handed over paused; and it may have ended on the way, unheard.
    socket.resume();
    if (socket.destroyed) this.#fail(connectionLost(address, undefined));
  }

  /** Connects to an export. Errors: those of `agree`. */
  static async connect(options: NbdConnectOptions): Promise<NbdClient> {
    return new NbdClient(await agree(options), nbdAddress(options), options.silenceMsMax ?? silenceMsDefault);
  }

  /** True when the server tells this context, which had to be asked for when we connected. */
  hasContext(name: string): boolean {
    return this.#agreement.contexts.has(name);
  }

  /**
   * Fills `into` from `offset`. When it settles, nothing writes to `into` any more. Errors:
   * SOURCE_UNREADABLE (the server cannot read it, or is gone), ACCESS_REFUSED.
   */
  async read(offset: number, into: Uint8Array): Promise<void> {
    const end = offset + into.byteLength;
    if (this.#closing !== undefined || offset < 0 || end > this.sizeBytes) {
      throw new TidemarkError(
        "INTERNAL",
        `bytes ${offset} to ${end} do not lie inside ${this.description}, or it was closed`,
      );
    }
    this.#reads += 1;
    try {
      await this.#readParts(offset, into);
    } finally {
      this.#reads -= 1;
      this.#rested();
    }
  }

  /**
   * What `context` says of [offset, offset + length): sorted, without gaps, neighbours of equal
   * flags joined. Errors: SOURCE_NOT_FOUND when the server has not granted the context, and those
   * of `read`.
   */
  async *status(context: string, offset: number, length: number): AsyncGenerator<NbdStatus, void, undefined> {
    const id = this.#agreement.contexts.get(context);
    if (id === undefined) {
      throw new TidemarkError(
        "SOURCE_NOT_FOUND",
        `the NBD export ${this.description} has no metadata context "${context}"`,
        {
          remedy: "export the bitmap (`qemu-nbd --bitmap=NAME`, or `bitmaps` of block-export-add), or leave it out",
          detail: { address: this.description, context },
        },
      );
    }
    const end = offset + length;
    const ahead: { readonly from: number; readonly to: number; readonly reply: Promise<StatusReply> }[] = [];
    let next = this.#alignedBelow(offset);
    let open: NbdStatus | undefined;
    for (;;) {
      for (; next < end && ahead.length < statusAheadMax; next += statusBytesMax) {
        const to = Math.min(next + statusBytesMax, this.#alignedAbove(end));
        const reply = this.#statusOf(id, next, to - next);
        // It is awaited below; if the caller stops before that, its failure is ignored.
        reply.catch(() => undefined);
        ahead.push({ from: next, to, reply });
      }
      const asked = ahead.shift();
      if (asked === undefined) break;
      let told = Math.max(asked.from, offset);
      let reply = await asked.reply;
      for (let at = asked.from; ; reply = await this.#statusOf(id, at, asked.to - at)) {
        for (const extent of reply.extents(at)) {
          const to = Math.min(extent.offset + extent.length, asked.to, end);
          if (told >= to) continue;
          if (open?.flags === extent.flags) open = { ...open, length: to - open.offset };
          else {
            if (open !== undefined) yield open;
            open = { offset: told, length: to - told, flags: extent.flags };
          }
          told = to;
        }
        // A server may tell the beginning only; the next question starts at a multiple of its
        // blocks again.
        const reached = at + reply.coveredBytes;
        if (reached >= asked.to) break;
        if (this.#alignedBelow(reached) === at)
          throw this.#fail(brokenProtocol(this.description, "it tells the state of less than a block"));
        at = this.#alignedBelow(reached);
      }
    }
    if (open !== undefined) yield open;
  }

  /** Waits for what is under way, tells the server, and closes the connection. Idempotent. */
  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(): Promise<void> {
    if (this.#reads > 0 || this.#pending.size > 0) {
      await new Promise<void>((resolve) => {
        this.#idle = resolve;
      });
    }
    const socket = this.#socket;
    if (this.#fault !== undefined) return;
    this.#fault = new TidemarkError("INTERNAL", `${this.description} is used after it was closed`);
    await new Promise<void>((resolve) => {
      const late = setTimeout(() => socket.destroy(), goodbyeMsMax);
      socket.once("close", () => {
        clearTimeout(late);
        resolve();
      });
      // Once it is handed to the system there is nothing left to say or to hear: the server does
      // not answer it.
      socket.end(requestOf(command.disconnect, 0, 0, 0), () => socket.destroy());
    });
  }

  async #readParts(offset: number, into: Uint8Array): Promise<void> {
    const end = offset + into.byteLength;
    if (into.byteLength === 0) return;
    const step = Math.min(readBytesMax, this.#agreement.requestBytesMax);
    const parts: Promise<void>[] = [];
    const failure: { error?: Error } = {};
    for (let at = this.#alignedBelow(offset); at < end && failure.error === undefined; at += step) {
      await this.#slot();
      const part = this.#readPart(at, Math.min(at + step, this.#alignedAbove(end)), offset, into);
      parts.push(
        part.catch((error: unknown) => {
          failure.error ??= error instanceof Error ? error : new Error(String(error));
        }),
      );
    }
    // All have to be done with `into` before the first failure is told.
    await Promise.all(parts);
    if (failure.error !== undefined) throw failure.error;
  }

  /** Reads [from, to), which is aligned, and puts what lies inside the caller's range there. */
  async #readPart(from: number, to: number, offset: number, into: Uint8Array): Promise<void> {
    const end = offset + into.byteLength;
    if (from >= offset && to <= end) {
      await this.#request(command.read, from, to - from, readOf(into.subarray(from - offset, to - offset)));
      return;
    }
    const around = new Uint8Array(to - from);
    await this.#request(command.read, from, to - from, readOf(around));
    const start = Math.max(from, offset);
    into.set(around.subarray(start - from, Math.min(to, end) - from), start - offset);
  }

  async #statusOf(context: number, offset: number, length: number): Promise<StatusReply> {
    const answer: StatusAnswer = { kind: "status", context, seen: new Set(), reply: undefined };
    await this.#slot();
    await this.#request(command.blockStatus, offset, length, answer);
    if (answer.reply === undefined)
      throw this.#fail(brokenProtocol(this.description, "it leaves a block status without an answer"));
    return answer.reply;
  }

  #alignedBelow(offset: number): number {
    return offset - (offset % this.#agreement.alignmentBytes);
  }

  /**
   * A size that is no multiple of the alignment ends in a part that can only be asked for as it is.
   */
  #alignedAbove(offset: number): number {
    const { alignmentBytes } = this.#agreement;
    return Math.min(Math.ceil(offset / alignmentBytes) * alignmentBytes, this.sizeBytes);
  }

  /**
   * Waits until a request may be sent. The request that follows gives the slot back when it is
   * settled.
   */
  async #slot(): Promise<void> {
    if (this.#free > 0) {
      this.#free -= 1;
      return;
    }
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
  }

  #release(): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free += 1;
    else next();
  }

  #request(type: number, offset: number, length: number, answer: Answer): Promise<void> {
    if (this.#fault !== undefined) {
      this.#release();
      return Promise.reject(this.#fault);
    }
    return new Promise<void>((resolve, reject) => {
      this.#cookie += 1;
      const cookie = this.#cookie;
      this.#pending.set(cookie, { type, offset, length, answer, errorChunks: 0, error: undefined, resolve, reject });
      this.#socket.write(requestOf(type, cookie, offset, length));
    });
  }

  /** The request is answered in full: tells its caller. */
  #settled(cookie: number): void {
    const pending = this.#pending.get(cookie);
    if (pending === undefined) return;
    this.#pending.delete(cookie);
    this.#release();
    if (pending.error === undefined) pending.resolve();
    else pending.reject(pending.error);
    this.#rested();
  }

  #rested(): void {
    if (this.#reads === 0 && this.#pending.size === 0) this.#idle?.();
  }

  #received(bytes: Buffer): void {
    if (this.#fault !== undefined) return;
    const fault = this.#parser.consume(bytes);
    if (fault !== undefined) this.#fail(fault);
  }

  /**
   * Ends the connection; everything pending and everything to come fails with the first fault,
   * which is returned.
   */
  #fail(fault: TidemarkError): TidemarkError {
    if (this.#fault !== undefined) return this.#fault;
    this.#fault = fault;
    this.#socket.destroy();
    for (const [cookie, pending] of [...this.#pending]) {
      pending.error ??= fault;
      this.#settled(cookie);
    }
    return fault;
  }
}

function requestOf(type: number, cookie: number, offset: number, length: number): Buffer {
  const bytes = Buffer.alloc(requestBytes);
  bytes.writeUInt32BE(transmissionMagic.request, 0);
  bytes.writeUInt16BE(type, 6);
  bytes.writeBigUInt64BE(BigInt(cookie), 8);
  bytes.writeBigUInt64BE(BigInt(offset), 16);
  bytes.writeUInt32BE(length, 24);
  return bytes;
}
