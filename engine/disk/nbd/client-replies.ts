/**
 * NBD client replies: parses the server's answers during transmission.
 *
 * Each length is checked against the request that it answers before a byte is taken. Bytes are
 * copied once: headers and small payloads into the parser's memory, data into the caller's.
 *
 *     header ─► find the request, check the part ─► payload ─► last part: is the answer whole? ─► settle
 */
import { copyBytes } from "../../copy-bytes.ts";
import { TidemarkError } from "../../errors.ts";
import { accessRefused, brokenProtocol, type ClientAgreement, serverText } from "./client-handshake.ts";
import {
  chunkFlagDone,
  chunkHeaderBytes,
  chunkType,
  command,
  simpleReplyBytes,
  stringBytesMax,
  transmissionMagic,
  wireError,
} from "./protocol.ts";

/** A part of the export to which a metadata context gives one state. */
export interface NbdStatus {
  readonly offset: number;
  readonly length: number;
  readonly flags: number;
}

/** Extents in one answer: nbdkit sends up to a Mi, 8 MiB on the wire. */
const statusExtentsMax: number = 1024 * 1024;
/**
 * Parts, in any order, of which one read's data may have arrived apart from each other. Servers
 * send them in order.
 */
const fragmentsMax = 1024;
/** Error chunks that one request may be answered with. */
const errorChunksMax = 64;

/** Where the data of a read go. */
export interface ReadAnswer {
  readonly kind: "read";
  readonly into: Uint8Array;
  readonly coverage: Coverage;
}

/** What one context says of a range. */
export interface StatusAnswer {
  readonly kind: "status";
  readonly context: number;
  /** Contexts that have answered. */
  readonly seen: Set<number>;
  reply: StatusReply | undefined;
}

export type Answer = ReadAnswer | StatusAnswer;

/** A request without its answer yet. */
export interface Pending {
  readonly type: number;
  readonly offset: number;
  readonly length: number;
  readonly answer: Answer;
  errorChunks: number;
  error: TidemarkError | undefined;
  readonly resolve: () => void;
  readonly reject: (error: TidemarkError) => void;
}

/** The answer to a read of all of `into`. */
export function readOf(into: Uint8Array): ReadAnswer {
  return { kind: "read", into, coverage: new Coverage() };
}

/**
 * One context's answer to a status request, checked when it arrived. Kept as it came: eight bytes
 * an extent.
 */
export class StatusReply {
  readonly #extents: DataView;
  readonly coveredBytes: number;

  constructor(extents: DataView, coveredBytes: number) {
    this.#extents = extents;
    this.coveredBytes = coveredBytes;
  }

  *extents(offset: number): Generator<NbdStatus, void, undefined> {
    for (let at = 0, from = offset; at < this.#extents.byteLength; at += 8) {
      const length = this.#extents.getUint32(at);
      yield { offset: from, length, flags: this.#extents.getUint32(at + 4) };
      from += length;
    }
  }
}

/**
 * Parses the stream of replies; `onSettled` is called for each request in `pending` whose answer is
 * whole.
 */
export class ReplyParser {
  readonly #pending: ReadonlyMap<number, Pending>;
  readonly #agreement: ClientAgreement;
  readonly #address: string;
  readonly #onSettled: (cookie: number) => void;
  readonly #header: Buffer = Buffer.alloc(chunkHeaderBytes);
  readonly #magicTarget: Target;
  readonly #simpleTarget: Target;
  readonly #chunkTarget: Target;
  #target: Target;
  #filled = 0;

  constructor(
    pending: ReadonlyMap<number, Pending>,
    agreement: ClientAgreement,
    address: string,
    onSettled: (cookie: number) => void,
  ) {
    this.#pending = pending;
    this.#agreement = agreement;
    this.#address = address;
    this.#onSettled = onSettled;
    this.#magicTarget = {
      into: this.#header.subarray(0, 4),
      then: () => this.#magicArrived(),
    };
    this.#simpleTarget = {
      into: this.#header.subarray(4, simpleReplyBytes),
      then: () => this.#simpleArrived(),
    };
    this.#chunkTarget = {
      into: this.#header.subarray(4),
      then: () => this.#chunkArrived(),
    };
    this.#target = this.#magicTarget;
  }

  /** Takes all of `bytes`. Returns the fault that makes the connection useless, if there is one. */
  consume(bytes: Buffer): TidemarkError | undefined {
    try {
      for (let at = 0; at < bytes.byteLength; ) {
        const { into, then } = this.#target;
        const count = Math.min(bytes.byteLength - at, into.byteLength - this.#filled);
        copyBytes(bytes.subarray(at, at + count), into, this.#filled);
        at += count;
        this.#filled += count;
        if (this.#filled === into.byteLength) then();
      }
      return undefined;
    } catch (error) {
      if (error instanceof TidemarkError) return error;
      throw error;
    }
  }

  #expect(target: Target): void {
    this.#target = target;
    this.#filled = 0;
  }

  #magicArrived(): void {
    const magic = this.#header.readUInt32BE(0);
    if (magic === transmissionMagic.simpleReply) this.#expect(this.#simpleTarget);
    else if (magic === transmissionMagic.structuredReply && this.#agreement.structured) this.#expect(this.#chunkTarget);
    else throw this.#broken("a reply begins with no known number");
  }

  #simpleArrived(): void {
    const error = this.#header.readUInt32BE(4);
    const [cookie, pending] = this.#pendingOf();
    if (error !== 0) {
      pending.error ??= this.#reported(pending, error, "");
      this.#finish(cookie);
      return;
    }
    const { answer } = pending;
    if (answer.kind !== "read" || this.#agreement.structured)
      throw this.#broken("it answers a request in the wrong form");
    this.#expectData(answer, 0, pending.length, () => this.#finish(cookie));
  }

  #chunkArrived(): void {
    const flags = this.#header.readUInt16BE(4);
    const type = this.#header.readUInt16BE(6);
    const length = this.#header.readUInt32BE(16);
    const [cookie, pending] = this.#pendingOf();
    const done = (flags & chunkFlagDone) !== 0;
    const next = (): void => {
      if (done) this.#finish(cookie);
      else this.#expect(this.#magicTarget);
    };
    const { answer } = pending;
    if (type === chunkType.none && length === 0 && done) next();
    else if (type === chunkType.offsetData && answer.kind === "read" && length > 8) {
      this.#expectSmall(8, (head) => {
        const from = this.#within(pending, head, length - 8);
        this.#expectData(answer, from, length - 8, next);
      });
    } else if (type === chunkType.offsetHole && answer.kind === "read" && length === 12) {
      this.#expectSmall(length, (hole) => {
        const holeBytes = hole.readUInt32BE(8);
        const from = this.#within(pending, hole, holeBytes);
        this.#cover(answer, from, holeBytes);
        answer.into.fill(0, from, from + holeBytes);
        next();
      });
    } else if (type === chunkType.blockStatus && answer.kind === "status" && length >= 12 && length % 8 === 4) {
      if (length > 4 + 8 * statusExtentsMax) throw this.#broken(`it sends ${(length - 4) / 8} extents at once`);
      this.#expectSmall(length, (payload) => {
        this.#statusArrived(pending, answer, payload);
        next();
      });
    } else if (type >= chunkType.error && length >= 6 && length <= 6 + stringBytesMax + 8) {
      this.#expectSmall(length, (payload) => {
        this.#errorArrived(pending, payload);
        next();
      });
    } else throw this.#broken(`a part of a reply has type ${type} and ${length} bytes`);
  }

  #statusArrived(pending: Pending, answer: StatusAnswer, payload: Buffer): void {
    const context = payload.readUInt32BE(0);
    if (answer.seen.has(context) || ![...this.#agreement.contexts.values()].includes(context)) {
      throw this.#broken("it tells of a metadata context that was not asked for, or twice of one");
    }
    answer.seen.add(context);
    if (context !== answer.context) return;
    let covered = 0;
    for (let at = 4; at < payload.byteLength; at += 8) {
      const length = payload.readUInt32BE(at);
      // Only the last extent may reach beyond what was asked for.
      if (length === 0 || covered >= pending.length)
        throw this.#broken("its extents are empty or lie outside what was asked for");
      covered += length;
    }
    const extents = new DataView(payload.buffer, payload.byteOffset + 4, payload.byteLength - 4);
    answer.reply = new StatusReply(extents, covered);
  }

  #errorArrived(pending: Pending, payload: Buffer): void {
    const error = payload.readUInt32BE(0);
    const textBytes = payload.readUInt16BE(4);
    pending.errorChunks += 1;
    if (error === 0 || textBytes > payload.byteLength - 6 || pending.errorChunks > errorChunksMax) {
      throw this.#broken("it reports an error in the wrong form");
    }
    pending.error ??= this.#reported(pending, error, serverText(payload.subarray(6, 6 + textBytes)));
  }

  /** The request that the header answers. */
  #pendingOf(): readonly [cookie: number, pending: Pending] {
    const cookie = Number(this.#header.readBigUInt64BE(8));
    const pending = this.#pending.get(cookie);
    if (pending === undefined) throw this.#broken("it sends an answer without a request");
    return [cookie, pending];
  }

  /** Offset in the answer of a part; `head` starts with the part's offset on the disk. */
  #within(pending: Pending, head: Buffer, length: number): number {
    const offset = Number(head.readBigUInt64BE(0));
    if (length === 0 || offset < pending.offset || offset + length > pending.offset + pending.length) {
      throw this.#broken("it sends data that lie outside what was asked for");
    }
    return offset - pending.offset;
  }

  #cover(answer: ReadAnswer, from: number, length: number): void {
    if (!answer.coverage.add(from, from + length)) throw this.#broken("it sends data twice, or in too many pieces");
  }

  #expectData(answer: ReadAnswer, from: number, length: number, then: () => void): void {
    this.#cover(answer, from, length);
    this.#expect({ into: answer.into.subarray(from, from + length), then });
  }

  #expectSmall(length: number, then: (payload: Buffer) => void): void {
    const payload = Buffer.alloc(length);
    this.#expect({
      into: payload,
      then: () => then(payload),
    });
  }

  #finish(cookie: number): void {
    const pending = this.#pending.get(cookie);
    if (
      pending?.answer.kind === "read" &&
      pending.error === undefined &&
      !pending.answer.coverage.isWhole(pending.length)
    ) {
      throw this.#broken("it leaves a part of a read without an answer");
    }
    this.#expect(this.#magicTarget);
    this.#onSettled(cookie);
  }

  /** What the server itself reports of one request; the connection goes on. */
  #reported(pending: Pending, error: number, said: string): TidemarkError {
    const what = pending.type === command.read ? "cannot read" : "cannot tell the state of";
    const fact = `it ${what} ${pending.length} bytes at byte ${pending.offset}${said}`;
    if (error === wireError.perm) return accessRefused(this.#address, fact, "allow this client to read the export");
    const name = Object.entries(wireError)
      .find(([, value]) => value === error)?.[0]
      ?.toUpperCase();
    return new TidemarkError("SOURCE_UNREADABLE", `the NBD server at ${this.#address} reports an error: ${fact}`, {
      remedy: "check the device behind the server, and what the server has logged",
      detail: { address: this.#address, offset: pending.offset, lengthBytes: pending.length, error: name ?? error },
    });
  }

  #broken(fact: string): TidemarkError {
    return brokenProtocol(this.#address, fact);
  }
}

/**
 * Which parts of a read have arrived. Sorted, disjoint, neighbours joined: one part, as long as the
 * server sends in order.
 */
class Coverage {
  readonly #parts: { from: number; to: number }[] = [];

  /** False when the part was there already, in whole or in part, or when there are too many. */
  add(from: number, to: number): boolean {
    const parts = this.#parts;
    let index = parts.length;
    while (index > 0 && (parts[index - 1]?.from ?? 0) >= from) index -= 1;
    const before = parts[index - 1];
    const after = parts[index];
    if ((before !== undefined && before.to > from) || (after !== undefined && after.from < to)) return false;
    if (before?.to === from) {
      before.to = to;
      if (after?.from === to) {
        before.to = after.to;
        parts.splice(index, 1);
      }
    } else if (after?.from === to) after.from = from;
    else parts.splice(index, 0, { from, to });
    return parts.length <= fragmentsMax;
  }

  isWhole(length: number): boolean {
    const [first] = this.#parts;
    return this.#parts.length === 1 && first?.from === 0 && first.to === length;
  }
}

/** What a parser's bytes go to next, and what is done when they are there. */
interface Target {
  readonly into: Uint8Array;
  readonly then: () => void;
}
