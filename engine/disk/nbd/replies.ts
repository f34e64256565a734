/**
 * NBD server replies: simple or structured, as the client negotiated.
 *
 * Structured replies are required for reads with holes and for block status. A request whose reply
 * holds no data is answered with a simple reply in both cases, which the protocol allows.
 */
import type { Socket } from "node:net";
import type { BlockDevice, DeviceExtent } from "../../device.ts";
import { hasCode } from "../../errors.ts";
import type { Extent } from "../../volume.ts";
import { allocationContextId } from "./handshake.ts";
import {
  allocationFlag,
  chunkFlagDone,
  chunkHeaderBytes,
  chunkType,
  command,
  simpleReplyBytes,
  transmissionMagic,
  wireError,
} from "./protocol.ts";
import { ReplyBatch } from "./reply-batch.ts";
import type { Cookie, Request } from "./request.ts";

const offsetBytes = 8;
const holeChunkBytes: number = chunkHeaderBytes + 12;
const dataChunkHeadBytes: number = chunkHeaderBytes + offsetBytes;
const descriptorBytes = 8;

/**
 * Data that was read in its own time is copied behind the other replies up to this length, and sent
 * by itself above it.
 */
const copiedBytesMax: number = 16 * 1024;

/** What a person is told in a structured error. It names nothing of the server's own. */
const explanations: ReadonlyMap<number, Buffer> = new Map(
  [
    [wireError.perm, "the export cannot be written"] as const,
    [wireError.io, "the device failed"] as const,
    [wireError.inval, "the request is not valid for this export"] as const,
    [wireError.noSpc, "there is no space left, or the export ends before the request does"] as const,
  ].map(([error, text]) => [error, Buffer.from(text)]),
);

/** How an error of the device is called on the wire. */
export function wireErrorOf(error: unknown): number {
  if (hasCode(error, "NO_SPACE")) return wireError.noSpc;
  return hasCode(error, "ACCESS_REFUSED") ? wireError.perm : wireError.io;
}

export class Replies {
  readonly #batch: ReplyBatch;
  readonly #isStructured: boolean;
  readonly #readHeadBytes: number;

  /** `onWritten` is called when the client has taken something. */
  constructor(socket: Socket, isStructured: boolean, onWritten: () => void) {
    this.#batch = new ReplyBatch(socket, onWritten);
    this.#isStructured = isStructured;
    this.#readHeadBytes = isStructured ? dataChunkHeadBytes : simpleReplyBytes;
  }

  /** Bytes that the client has not taken yet. */
  get waitingBytes(): number {
    return this.#batch.waitingBytes;
  }

  flush(): void {
    this.#batch.flush();
  }

  /** Sends what there is and says that nothing follows. */
  end(): void {
    this.#batch.end();
  }

  /** A reply without data: `error` as on the wire, 0 for success. */
  simple(cookie: Cookie, error: number): void {
    this.#batch.reserve(simpleReplyBytes);
    simpleHead(this.#batch.buffer, this.#batch.at, cookie, error);
    this.#batch.commit(simpleReplyBytes);
  }

  /** Answers a failed request of any kind. */
  failure(cookie: Cookie, type: number, error: number): void {
    if (!this.#isStructured || (type !== command.read && type !== command.blockStatus)) {
      this.simple(cookie, error);
      return;
    }
    const text = explanations.get(error);
    const payloadBytes = 6 + (text?.byteLength ?? 0);
    const at = this.#chunk(cookie, chunkType.error, chunkFlagDone, payloadBytes);
    this.#batch.buffer.writeUInt32BE(error, at);
    this.#batch.buffer.writeUInt16BE(text?.byteLength ?? 0, at + 4);
    text?.copy(this.#batch.buffer, at + 6);
    this.#batch.commit(chunkHeaderBytes + payloadBytes);
  }

  /** Answers a read of no bytes. */
  nothingRead(cookie: Cookie): void {
    if (!this.#isStructured) {
      this.simple(cookie, 0);
      return;
    }
    this.#chunk(cookie, chunkType.none, chunkFlagDone, 0);
    this.#batch.commit(chunkHeaderBytes);
  }

  /**
   * Answers a read with what `device` can give at once. False, having answered nothing, when it
   * cannot.
   */
  tryRead(request: Request, device: BlockDevice): boolean {
    const { offset, length } = request;
    const headBytes = this.#readHeadBytes;
    this.#batch.reserve(headBytes + length);
    const { buffer, at } = this.#batch;
    if (!device.tryRead(offset, buffer.subarray(at + headBytes, at + headBytes + length))) return false;
    this.#readHead(buffer, at, request, offset, length);
    this.#batch.commit(headBytes + length);
    return true;
  }

  /** Reads at leisure, then answers. */
  async read(cookie: Cookie, device: BlockDevice, { offset, length }: Extent): Promise<void> {
    const headBytes = this.#readHeadBytes;
    const reply = Buffer.allocUnsafeSlow(headBytes + length);
    await device.read(offset, reply.subarray(headBytes));
    this.#readHead(reply, 0, cookie, offset, length);
    if (reply.byteLength > copiedBytesMax) {
      this.#batch.append(reply);
      return;
    }
    this.#batch.reserve(reply.byteLength);
    reply.copy(this.#batch.buffer, this.#batch.at);
    this.#batch.commit(reply.byteLength);
  }

  /**
   * Answers a read in structured chunks, data and holes, with what `device` can give at once.
   * `extents` cover the request. False, having answered nothing, when it cannot.
   */
  trySparseRead(cookie: Cookie, device: BlockDevice, extents: readonly DeviceExtent[]): boolean {
    const replyBytes = extents.reduce(
      (sum, { kind, length }) => sum + (kind === "hole" ? holeChunkBytes : dataChunkHeadBytes + length),
      0,
    );
    this.#batch.reserve(replyBytes);
    const { buffer } = this.#batch;
    let { at } = this.#batch;
    for (const [index, { kind, offset, length }] of extents.entries()) {
      const flags = index === extents.length - 1 ? chunkFlagDone : 0;
      if (kind === "hole") {
        chunkHead(buffer, at, cookie, chunkType.offsetHole, flags, offsetBytes + 4);
        writeUint64(buffer, at + chunkHeaderBytes, offset);
        buffer.writeUInt32BE(length, at + chunkHeaderBytes + offsetBytes);
        at += holeChunkBytes;
      } else {
        chunkHead(buffer, at, cookie, chunkType.offsetData, flags, offsetBytes + length);
        writeUint64(buffer, at + chunkHeaderBytes, offset);
        at += dataChunkHeadBytes;
        if (!device.tryRead(offset, buffer.subarray(at, at + length))) return false;
        at += length;
      }
    }
    this.#batch.commit(replyBytes);
    return true;
  }

  /** Answers a question for block status; `extents` begin at its offset and hold none twice. */
  blockStatus(cookie: Cookie, extents: readonly DeviceExtent[]): void {
    const payloadBytes = 4 + extents.length * descriptorBytes;
    let at = this.#chunk(cookie, chunkType.blockStatus, chunkFlagDone, payloadBytes);
    const { buffer } = this.#batch;
    buffer.writeUInt32BE(allocationContextId, at);
    at += 4;
    for (const { kind, length } of extents) {
      buffer.writeUInt32BE(length, at);
      buffer.writeUInt32BE(kind === "hole" ? allocationFlag.hole | allocationFlag.zero : 0, at + 4);
      at += descriptorBytes;
    }
    this.#batch.commit(chunkHeaderBytes + payloadBytes);
  }

  /**
   * Lays down the head of a chunk that is not committed yet, and returns where its payload begins.
   */
  #chunk(cookie: Cookie, type: number, flags: number, payloadBytes: number): number {
    this.#batch.reserve(chunkHeaderBytes + payloadBytes);
    chunkHead(this.#batch.buffer, this.#batch.at, cookie, type, flags, payloadBytes);
    return this.#batch.at + chunkHeaderBytes;
  }

  #readHead(buffer: Buffer, at: number, cookie: Cookie, offset: number, length: number): void {
    if (!this.#isStructured) {
      simpleHead(buffer, at, cookie, 0);
      return;
    }
    chunkHead(buffer, at, cookie, chunkType.offsetData, chunkFlagDone, offsetBytes + length);
    writeUint64(buffer, at + chunkHeaderBytes, offset);
  }
}

function simpleHead(buffer: Buffer, at: number, cookie: Cookie, error: number): void {
  buffer.writeUInt32BE(transmissionMagic.simpleReply, at);
  buffer.writeUInt32BE(error, at + 4);
  buffer.writeUInt32BE(cookie.cookieHigh, at + 8);
  buffer.writeUInt32BE(cookie.cookieLow, at + 12);
}

function chunkHead(
  buffer: Buffer,
  at: number,
  cookie: Cookie,
  type: number,
  flags: number,
  payloadBytes: number,
): void {
  buffer.writeUInt32BE(transmissionMagic.structuredReply, at);
  buffer.writeUInt16BE(flags, at + 4);
  buffer.writeUInt16BE(type, at + 6);
  buffer.writeUInt32BE(cookie.cookieHigh, at + 8);
  buffer.writeUInt32BE(cookie.cookieLow, at + 12);
  buffer.writeUInt32BE(payloadBytes, at + 16);
}

function writeUint64(buffer: Buffer, at: number, value: number): void {
  buffer.writeUInt32BE(Math.floor(value / 2 ** 32), at);
  buffer.writeUInt32BE(value % 2 ** 32, at + 4);
}
