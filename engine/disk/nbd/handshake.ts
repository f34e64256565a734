/**
 * NBD server handshake (fixed newstyle): a greeting, then options with replies, until one option
 * chooses an export.
 *
 * Everything is bounded: the length of an option, the number of options, the replies that the
 * client has not read, and, by the caller, the time. With TLS configured, every option except
 * `startTls` and `abort` is refused before the connection is encrypted.
 */
import type { Socket } from "node:net";
import { TLSSocket } from "node:tls";
import type { ExportTable, ServedExport } from "./exports.ts";
import {
  allocationContext,
  blockBytesMin,
  blockBytesPreferred,
  greetingBytes,
  handshakeFlag,
  handshakeMagic,
  infoType,
  lengthAndText,
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

/**
 * Longer options are skipped and refused. A name of the greatest length with a hundred queries
 * fits.
 */
const optionBytesMax = 64 * 1024;

/** More than any client needs. */
const optionsMax = 256;

/** Identifies `base:allocation` in replies to block status. */
export const allocationContextId = 1;

/**
 * Turns a plain socket into a TLS one, or gives undefined if the client has no valid certificate.
 */
export type Secure = (socket: Socket) => Promise<Socket | undefined>;

/** How a client and the server agreed to go on. */
export interface Agreement {
  /**
   * The socket that carries the transmission: another one than the handshake began with, when it
   * went over to TLS.
   */
  readonly socket: Socket;
  /** What the client has sent behind the handshake already. */
  readonly early: Buffer;
  readonly served: ServedExport;
  readonly structuredReplies: boolean;
  /** The client may ask for block status. */
  readonly allocation: boolean;
}

/**
 * Leads the handshake. Undefined when it ends without an export; the connection then closes as soon
 * as the client has read the last reply.
 */
export async function negotiate(
  socket: Socket,
  table: ExportTable,
  secure: Secure | undefined,
): Promise<Agreement | undefined> {
  return new Handshake(socket, table, secure).run();
}

/** What an option leads to: the next option, the transmission, or the end. */
type Outcome = "next" | "end" | ServedExport;

class Handshake {
  readonly #table: ExportTable;
  #secure: Secure | undefined;
  #wire: Wire;
  #noZeroes = false;
  #structuredReplies = false;
  /** The export for which the client asked for block status. */
  #allocationOf: ServedExport | undefined;

  constructor(socket: Socket, table: ExportTable, secure: Secure | undefined) {
    this.#wire = new Wire(socket);
    this.#table = table;
    this.#secure = secure;
  }

  async run(): Promise<Agreement | undefined> {
    const agreement = await this.#negotiate();
    if (agreement === undefined) this.#wire.socket.destroySoon();
    return agreement;
  }

  async #negotiate(): Promise<Agreement | undefined> {
    const greeting = Buffer.alloc(greetingBytes);
    greeting.writeBigUInt64BE(handshakeMagic.init, 0);
    greeting.writeBigUInt64BE(handshakeMagic.option, 8);
    greeting.writeUInt16BE(handshakeFlag.fixedNewstyle | handshakeFlag.noZeroes, 16);
    await this.#wire.send(greeting);

    const flags = (await this.#wire.take(4))?.readUInt32BE(0);
    if (flags === undefined || flags > (handshakeFlag.fixedNewstyle | handshakeFlag.noZeroes)) return undefined;
    const isFixed = (flags & handshakeFlag.fixedNewstyle) !== 0;
    this.#noZeroes = (flags & handshakeFlag.noZeroes) !== 0;

    for (let options = 0; options < optionsMax; options += 1) {
      const outcome = await this.#next(isFixed);
      if (outcome === "next") continue;
      if (outcome === "end") return undefined;
      return {
        socket: this.#wire.socket,
        early: this.#wire.release(),
        served: outcome,
        structuredReplies: this.#structuredReplies,
        allocation: this.#allocationOf === outcome,
      };
    }
    return undefined;
  }

  async #next(isFixed: boolean): Promise<Outcome> {
    const header = await this.#wire.take(optionHeaderBytes);
    if (header?.readBigUInt64BE(0) !== handshakeMagic.option) return "end";
    const id = header.readUInt32BE(8);
    const length = header.readUInt32BE(12);
    // Without fixed newstyle there is only one option, and no way to say that another one is not
    // understood.
    if (!isFixed && id !== option.exportName) return "end";
    if (length > optionBytesMax) {
      if (id === option.exportName || !(await this.#wire.skip(length))) return "end";
      return this.#refuse(id, optionReply.errTooBig, `an option has at most ${optionBytesMax} bytes`);
    }
    const data = await this.#wire.take(length);
    if (data === undefined) return "end";
    return this.#secure === undefined ? this.#answer(id, data) : this.#answerInsecurely(id, data, this.#secure);
  }

  async #answer(id: number, data: Buffer): Promise<Outcome> {
    switch (id) {
      case option.exportName:
        return this.#exportName(data);
      case option.abort:
        await this.#reply(id, optionReply.ack);
        return "end";
      case option.list:
        return this.#list(data);
      case option.info:
      case option.go:
        return this.#describe(id, data);
      case option.structuredReply:
        if (data.byteLength > 0) return this.#refuse(id, optionReply.errInvalid, "this option carries no data");
        this.#structuredReplies = true;
        return this.#acknowledge(id);
      case option.listMetaContext:
      case option.setMetaContext:
        return this.#metaContexts(id, data);
      case option.startTls:
        return this.#wire.socket instanceof TLSSocket
          ? this.#refuse(id, optionReply.errInvalid, "this connection is encrypted already")
          : this.#refuse(id, optionReply.errPolicy, "this server has no TLS");
      default:
        return this.#refuse(id, optionReply.errUnsup, "this option is not known here");
    }
  }

  /** The few options of a connection that is to be encrypted first. */
  async #answerInsecurely(id: number, data: Buffer, secure: Secure): Promise<Outcome> {
    if (id === option.exportName) return "end";
    if (id === option.abort) return this.#answer(id, data);
    if (id !== option.startTls) return this.#refuse(id, optionReply.errTlsReqd, "this server talks over TLS only");
    if (data.byteLength > 0) return this.#refuse(id, optionReply.errInvalid, "this option carries no data");
    // Input from before the encryption may have been injected on the network and is not taken for
    // the client's.
    if (this.#wire.heldBytes > 0) return "end";
    await this.#reply(id, optionReply.ack);
    this.#wire.release();
    const socket = await secure(this.#wire.socket);
    if (socket === undefined) return "end";
    this.#wire = new Wire(socket);
    this.#secure = undefined;
    return "next";
  }

  async #exportName(data: Buffer): Promise<Outcome> {
    const name = textOf(data);
    const served = name === undefined ? undefined : this.#table.find(name);
    // This option knows no error reply.
    if (served === undefined) return "end";
    const answer = Buffer.alloc(this.#noZeroes ? 10 : 10 + 124);
    answer.writeBigUInt64BE(BigInt(served.device.sizeBytes), 0);
    answer.writeUInt16BE(this.#flagsOf(served), 8);
    await this.#wire.send(answer);
    return served;
  }

  async #list(data: Buffer): Promise<Outcome> {
    if (data.byteLength > 0) return this.#refuse(option.list, optionReply.errInvalid, "this option carries no data");
    for (const { name, description } of this.#table.list()) {
      await this.#reply(option.list, optionReply.server, lengthAndText(name), Buffer.from(description));
    }
    return this.#acknowledge(option.list);
  }

  /** `info` and `go`: what there is to know of an export; `go` begins its transmission. */
  async #describe(id: number, data: Buffer): Promise<Outcome> {
    const fields = new Fields(data);
    const name = fields.text();
    const requests = fields.uint16();
    if (name === undefined || requests === undefined || fields.left !== 2 * requests) {
      return this.#refuse(id, optionReply.errInvalid, "the option's lengths do not fit together");
    }
    const wanted = new Set<number>();
    for (let index = 0; index < requests; index += 1) wanted.add(fields.uint16() ?? 0);

    const served = this.#table.find(name);
    if (served === undefined) return this.#refuse(id, optionReply.errUnknown, "there is no export of this name");
    const size = Buffer.alloc(10);
    size.writeBigUInt64BE(BigInt(served.device.sizeBytes), 0);
    size.writeUInt16BE(this.#flagsOf(served), 8);
    await this.#reply(id, optionReply.info, uint16(infoType.export), size);
    if (wanted.has(infoType.name))
      await this.#reply(id, optionReply.info, uint16(infoType.name), Buffer.from(served.name));
    if (wanted.has(infoType.description) && served.description !== "") {
      await this.#reply(id, optionReply.info, uint16(infoType.description), Buffer.from(served.description));
    }
    const blockSizes = [blockBytesMin, blockBytesPreferred, payloadBytesMax].map(uint32);
    await this.#reply(id, optionReply.info, uint16(infoType.blockSize), ...blockSizes);
    await this.#reply(id, optionReply.ack);
    return id === option.go ? served : "next";
  }

  /**
   * Lists or selects metadata contexts. A selection replaces the one before, also when it fails.
   */
  async #metaContexts(id: number, data: Buffer): Promise<Outcome> {
    const isSelection = id === option.setMetaContext;
    if (isSelection) this.#allocationOf = undefined;
    if (!this.#structuredReplies)
      return this.#refuse(id, optionReply.errInvalid, "structured replies have to be agreed on first");
    const fields = new Fields(data);
    const name = fields.text();
    const count = fields.uint32();
    const queries: string[] = [];
    // Each query takes four bytes at least, so the option's length bounds the loop, not the count.
    let isWhole = name !== undefined;
    while (isWhole && fields.left > 0) {
      const query = fields.text();
      if (query === undefined) isWhole = false;
      else queries.push(query);
    }
    if (name === undefined || !isWhole || queries.length !== count) {
      return this.#refuse(id, optionReply.errInvalid, "the option's lengths do not fit together");
    }
    const served = this.#table.find(name);
    if (served === undefined) return this.#refuse(id, optionReply.errUnknown, "there is no export of this name");
    const isMeant = isSelection
      ? queries.includes(allocationContext)
      : count === 0 || queries.some((query) => query === allocationContext || query === "base:");
    if (isMeant) {
      const contextId = uint32(isSelection ? allocationContextId : 0);
      await this.#reply(id, optionReply.metaContext, contextId, Buffer.from(allocationContext));
      if (isSelection) this.#allocationOf = served;
    }
    return this.#acknowledge(id);
  }

  /** Flush and FUA cover all connections, because there is one device beneath them. */
  #flagsOf({ readOnly }: ServedExport): number {
    const { hasFlags, sendFlush, sendFua, canMultiConn, sendDf, sendTrim, sendWriteZeroes, sendFastZero } =
      transmissionFlag;
    const common = hasFlags | sendFlush | sendFua | canMultiConn | (this.#structuredReplies ? sendDf : 0);
    return common | (readOnly ? transmissionFlag.readOnly : sendTrim | sendWriteZeroes | sendFastZero);
  }

  async #acknowledge(id: number): Promise<"next"> {
    await this.#reply(id, optionReply.ack);
    return "next";
  }

  async #refuse(id: number, type: number, message: string): Promise<"next"> {
    await this.#reply(id, type, Buffer.from(message));
    return "next";
  }

  async #reply(id: number, type: number, ...parts: readonly Buffer[]): Promise<void> {
    const header = Buffer.alloc(optionReplyHeaderBytes);
    header.writeBigUInt64BE(handshakeMagic.optionReply, 0);
    header.writeUInt32BE(id, 8);
    header.writeUInt32BE(type, 12);
    header.writeUInt32BE(
      parts.reduce((sum, { byteLength }) => sum + byteLength, 0),
      16,
    );
    await this.#wire.send(Buffer.concat([header, ...parts]));
  }
}

/**
 * The fields of an option's data, one after another; undefined where the data ends too early or is
 * no text.
 */
class Fields {
  readonly #data: Buffer;
  #at = 0;

  constructor(data: Buffer) {
    this.#data = data;
  }

  get left(): number {
    return this.#data.byteLength - this.#at;
  }

  uint16(): number | undefined {
    return this.#take(2)?.readUInt16BE(0);
  }

  uint32(): number | undefined {
    return this.#take(4)?.readUInt32BE(0);
  }

  /** A text behind its length. */
  text(): string | undefined {
    const length = this.uint32();
    const bytes = length === undefined ? undefined : this.#take(length);
    return bytes === undefined ? undefined : textOf(bytes);
  }

  #take(count: number): Buffer | undefined {
    if (count > this.left) return undefined;
    this.#at += count;
    return this.#data.subarray(this.#at - count, this.#at);
  }
}

const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/**
 * The text of a string on the wire, undefined when it is none: too long, not UTF-8, or with a NUL.
 */
function textOf(bytes: Buffer): string | undefined {
  if (bytes.byteLength > stringBytesMax || bytes.includes(0)) return undefined;
  try {
    return utf8.decode(bytes);
  } catch (error) {
    if (error instanceof TypeError) return undefined;
    throw error;
  }
}
