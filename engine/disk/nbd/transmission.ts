/**
 * NBD transmission: the requests of one connection in, the replies out.
 *
 *     socket ─► take a request ─► perform it ─┬─ at once ─────────────────► reply batch ─► socket
 *                                             └─ under way (a promise) ───┘
 *
 * Requests are read where the socket put them. What the device can do at once (`tryRead`,
 * `tryWrite`) is done at once, without a promise. The rest goes on while the next requests are
 * read, and is answered when it is done, in any order. The replies of one turn leave together.
 *
 * Memory is bounded: while too many requests are under way, or hold too many bytes, or the client
 * leaves too many replies unread, the server does not read the socket. Reads that cannot be answered
 * at once share one budget with all connections. A client that takes none of its replies, or ends in
 * the middle of a payload, loses its connection after a time. A turn takes a few ms at
 * most, so that one client does not starve the others. A client that breaks the protocol loses its
 * connection only.
 */
import type { Socket } from "node:net";
import type { BlockDevice, DeviceExtent } from "../../device.ts";
import type { Extent } from "../../volume.ts";
import { DirectSocket, type Intake } from "./direct-socket.ts";
import type { Agreement } from "./handshake.ts";
import { command, commandFlag, payloadBytesMax, requestBytes } from "./protocol.ts";
import { Replies, wireErrorOf } from "./replies.ts";
import { type ReplyBudget, ReplyShare } from "./reply-budget.ts";
import { type Cookie, decodeRequest, emptyRequest, hasFlag, type Request, refusalOf } from "./request.ts";

/**
 * What one connection may have under way; the request that goes beyond the bytes is still begun.
 */
const requestsInFlightMax = 256;
const bytesInFlightMax: number = payloadBytesMax;

/** How much the client may leave unread before its next request is begun. */
const unreadBytesMax: number = 1024 * 1024;

/** Larger transfers leave the loop to others while they are copied. */
const atOnceBytesMax: number = 1024 * 1024;

/** From this length on a payload is read where it is wanted; shorter rests are copied there. */
const placedBytesMin: number = 64 * 1024;

/** Buffers for payloads that are kept to be used again. */
const spareBytesMax: number = 8 * 1024 * 1024;

/**
 * A turn ends after so many bytes were moved at once. A look at the device's map counts as a
 * transfer of `mapLookBytes`.
 */
const turnBytesMax: number = 4 * 1024 * 1024;
const mapLookBytes: number = 64 * 1024;

/** From this length on a read asks for holes first: sending zeros costs more than the question. */
const sparseReadBytesMin: number = 64 * 1024;
const sparseReadExtentsMax = 16;
const blockStatusExtentsMax = 256;

/** How long a client that was told the end may take to read it. */
const lingerMs = 10_000;

const noBytes: Buffer = Buffer.alloc(0);

export class Transmission implements Intake {
  readonly #agreement: Agreement;
  readonly #device: BlockDevice;
  readonly #socket: Socket;
  readonly #replies: Replies;
  readonly #share: ReplyShare;

  /**
   * What came from the socket, valid while it is dealt with and while the socket is paused; what
   * lies before `#at` has been dealt with.
   */
  #input: Buffer = noBytes;
  #at = 0;
  #isPaused = false;

  /** The request that is being taken. */
  readonly #request: Request = emptyRequest();
  /** Its bytes, when they came in two parts. */
  readonly #header: Buffer = Buffer.alloc(requestBytes);
  #headerFilled = 0;
  /** What is still to come of its payload, why it is refused, or else where the payload goes. */
  #payloadLeft = 0;
  #refusal = 0;
  #payload: Buffer = noBytes;
  readonly #spares: Buffer[] = [];
  #spareBytes = 0;

  #requestsInFlight = 0;
  #bytesInFlight = 0;
  /** Bytes moved at once in this turn. */
  #turnBytes = 0;
  #nextTurn: NodeJS.Immediate | undefined;

  /** No further request is taken. */
  #isOver = false;
  #isEnded = false;
  #isClosed = false;
  #linger: NodeJS.Timeout | undefined;
  #done: () => void = () => undefined;

  /** `stalledMsMax`: as in the server's options. */
  constructor(agreement: Agreement, budget: ReplyBudget, stalledMsMax: number) {
    this.#agreement = agreement;
    this.#device = agreement.served.device;
    this.#socket = agreement.socket;
    this.#share = new ReplyShare(budget);
    this.#replies = new Replies(agreement.socket, agreement.structuredReplies, () => {
      this.#share.taken(this.#replies.waitingBytes);
      if (this.#isPaused) this.#scheduleTurn();
    });
    // The socket's own timer counts a write that makes progress as activity.
    this.#socket.setTimeout(stalledMsMax, () => {
      if (this.#replies.waitingBytes > 0 || this.#payloadLeft > 0) this.#socket.destroy();
    });
  }

  /**
   * Serves the client. Resolves when the connection is closed and nothing of it is under way at the
   * device any more. Called once.
   */
  run(): Promise<void> {
    if (this.#socket.destroyed) return Promise.resolve();
    return new Promise((resolve) => {
      this.#done = resolve;
      if (this.#socket instanceof DirectSocket) this.#socket.readInto(this);
      this.#socket.on("data", (chunk: Buffer) => this.receive(chunk));
      // A client that sends no more may still read what it is owed.
      this.#socket.once("end", () => this.stop());
      this.#socket.once("close", () => {
        this.#isOver = true;
        this.#isClosed = true;
        this.#share.close();
        clearTimeout(this.#linger);
        this.#endWhenIdle();
      });
      if (this.#agreement.early.byteLength > 0) this.receive(this.#agreement.early);
      if (this.#socket.readableEnded) this.stop();
      else if (!this.#isPaused) this.#socket.resume();
    });
  }

  /** Takes no further request, answers those under way, then closes the connection. Idempotent. */
  stop(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    // What still comes is read and dropped: closing with bytes unread would reset the connection,
    // and lose the replies with it.
    this.#input = noBytes;
    this.#payload = noBytes;
    this.#socket.resume();
    this.#endWhenIdle();
  }

  #endWhenIdle(): void {
    if (!this.#isOver || this.#requestsInFlight > 0) return;
    if (this.#isClosed) {
      this.#done();
      return;
    }
    if (this.#isEnded) return;
    this.#isEnded = true;
    this.#replies.end();
    this.#linger = setTimeout(() => this.#socket.destroy(), lingerMs);
  }

  // ---- Input ----

  place(): Buffer | undefined {
    if (this.#payloadLeft < placedBytesMin || this.#refusal !== 0 || this.#isOver) return undefined;
    const { length } = this.#request;
    return this.#payload.subarray(length - this.#payloadLeft, length);
  }

  placed(count: number): void {
    if (this.#isOver) return;
    this.#payloadLeft -= count;
    if (this.#payloadLeft > 0) return;
    this.#turnBytes = 0;
    this.#payloadIsWhole();
    this.#takeTurn();
  }

  receive(input: Buffer): void {
    if (this.#isOver) return;
    this.#input = this.#at < this.#input.byteLength ? Buffer.concat([this.#input.subarray(this.#at), input]) : input;
    this.#at = 0;
    if (!this.#isPaused) this.#takeTurn();
  }

  /** Takes requests until there is no more input, or no more room. */
  #takeTurn(): void {
    this.#turnBytes = 0;
    while (this.#at < this.#input.byteLength) {
      if (this.#payloadLeft > 0) this.#takePayload();
      else if (this.#isFull()) break;
      else this.#takeRequest();
    }
    this.#replies.flush();
    if (this.#isOver) return;
    const isHeldUp = this.#at < this.#input.byteLength;
    if (!isHeldUp) {
      this.#input = noBytes;
      this.#at = 0;
    }
    if (isHeldUp !== this.#isPaused) {
      this.#isPaused = isHeldUp;
      if (isHeldUp) this.#socket.pause();
      else this.#socket.resume();
    }
    // Everything else that there was too much of tells us when it gets less.
    if (isHeldUp && this.#turnBytes >= turnBytesMax) this.#scheduleTurn();
  }

  #isFull(): boolean {
    return (
      this.#turnBytes >= turnBytesMax ||
      this.#requestsInFlight >= requestsInFlightMax ||
      this.#bytesInFlight >= bytesInFlightMax ||
      this.#replies.waitingBytes > unreadBytesMax
    );
  }

  /** All that settles in one turn of the event loop is answered with one write. */
  #scheduleTurn(): void {
    this.#nextTurn ??= setImmediate(() => {
      this.#nextTurn = undefined;
      this.#takeTurn();
    });
  }

  #takeRequest(): void {
    const left = this.#input.byteLength - this.#at;
    let isRequest: boolean;
    if (this.#headerFilled === 0 && left >= requestBytes) {
      isRequest = decodeRequest(this.#request, this.#input, this.#at);
      this.#at += requestBytes;
    } else {
      const count = Math.min(requestBytes - this.#headerFilled, left);
      this.#input.copy(this.#header, this.#headerFilled, this.#at, this.#at + count);
      this.#headerFilled += count;
      this.#at += count;
      if (this.#headerFilled < requestBytes) return;
      this.#headerFilled = 0;
      isRequest = decodeRequest(this.#request, this.#header, 0);
    }
    const request = this.#request;
    if (!isRequest) {
      // The start of the next request is unknown.
      this.#isOver = true;
      this.#input = noBytes;
      this.#socket.destroy();
    } else if (request.type === command.disconnect) {
      this.stop();
    } else if (request.type === command.write) {
      this.#takeWrite();
    } else {
      const refusal = refusalOf(request, this.#agreement);
      if (refusal === 0) this.#perform();
      else this.#replies.failure(request, request.type, refusal);
    }
  }

  #takeWrite(): void {
    const { length } = this.#request;
    this.#refusal = refusalOf(this.#request, this.#agreement);
    if (this.#refusal === 0 && this.#input.byteLength - this.#at >= length) {
      this.#at += length;
      this.#write(this.#input.subarray(this.#at - length, this.#at), noBytes);
      return;
    }
    this.#payloadLeft = length;
    if (this.#refusal !== 0) {
      if (length === 0) this.#replies.simple(this.#request, this.#refusal);
      return;
    }
    this.#payload = this.#buffer(length);
  }

  /** Takes what has arrived of a payload; the payload of a refused write is dropped. */
  #takePayload(): void {
    const { length } = this.#request;
    const count = Math.min(this.#payloadLeft, this.#input.byteLength - this.#at);
    if (this.#refusal === 0) this.#input.copy(this.#payload, length - this.#payloadLeft, this.#at, this.#at + count);
    this.#at += count;
    this.#payloadLeft -= count;
    if (this.#payloadLeft > 0) return;
    if (this.#refusal !== 0) {
      this.#replies.simple(this.#request, this.#refusal);
      return;
    }
    this.#payloadIsWhole();
  }

  #payloadIsWhole(): void {
    const payload = this.#payload;
    this.#payload = noBytes;
    this.#write(payload.subarray(0, this.#request.length), payload);
  }

  /**
   * A buffer for a payload of `length`, in its full size from the start: pages that nothing was
   * written to cost nothing.
   */
  #buffer(length: number): Buffer {
    const index = this.#spares.findIndex(({ byteLength }) => byteLength >= length);
    const [spare] = index < 0 ? [] : this.#spares.splice(index, 1);
    this.#spareBytes -= spare?.byteLength ?? 0;
    return spare ?? Buffer.allocUnsafeSlow(length);
  }

  #reuse(buffer: Buffer): void {
    if (buffer.byteLength === 0 || this.#spareBytes + buffer.byteLength > spareBytesMax) return;
    this.#spares.push(buffer);
    this.#spareBytes += buffer.byteLength;
  }

  // ---- Commands ----

  /**
   * Writes `payload`. `owned` is the buffer to be used again afterwards; it is empty when the
   * payload lies in what the socket gave.
   */
  #write(payload: Buffer, owned: Buffer): void {
    const request = this.#request;
    const { offset, length } = request;
    const isDurable = hasFlag(request.flags, commandFlag.fua);
    let isDone: boolean;
    try {
      isDone = length <= atOnceBytesMax && this.#device.tryWrite(offset, payload);
    } catch (error) {
      this.#replies.simple(request, wireErrorOf(error));
      return;
    }
    if (isDone) {
      this.#turnBytes += length;
      this.#reuse(owned);
      if (isDurable) this.#answerLater(0, this.#agreement.served.flush());
      else this.#replies.simple(request, 0);
      return;
    }
    // What the socket gave is overwritten by what comes next.
    const kept = owned.byteLength > 0 ? owned : this.#buffer(length);
    if (kept !== owned) payload.copy(kept);
    const write = async (): Promise<void> => {
      await this.#device.write(offset, kept.subarray(0, length));
      this.#reuse(kept);
      if (isDurable) await this.#agreement.served.flush();
    };
    this.#answerLater(length, write());
  }

  #perform(): void {
    const { type, flags, offset, length } = this.#request;
    const { served } = this.#agreement;
    switch (type) {
      case command.read:
        this.#read();
        return;
      case command.flush:
        this.#answerLater(0, served.flush());
        return;
      case command.blockStatus:
        this.#blockStatus();
        return;
      case command.trim:
      case command.writeZeroes: {
        const mayTrim = !hasFlag(flags, commandFlag.noHole);
        const change = async (): Promise<void> => {
          if (length > 0)
            await (type === command.trim
              ? this.#device.trim(offset, length)
              : this.#device.zero(offset, length, mayTrim));
          if (hasFlag(flags, commandFlag.fua)) await served.flush();
        };
        this.#answerLater(0, change());
        return;
      }
      default:
        throw new Error(`request type ${type} was accepted, but nothing performs it`);
    }
  }

  #read(): void {
    const request = this.#request;
    const { offset, length } = request;
    if (length === 0) {
      this.#replies.nothingRead(request);
      return;
    }
    try {
      if (length <= atOnceBytesMax && this.#tryRead()) {
        this.#turnBytes += length;
        return;
      }
    } catch (error) {
      this.#replies.failure(request, command.read, wireErrorOf(error));
      return;
    }
    this.#answerLater(length, this.#readLater(copyOf(request), { offset, length }));
  }

  async #readLater(cookie: Cookie, asked: Extent): Promise<void> {
    const source = await this.#share.begin(asked.length);
    try {
      if (!this.#isClosed) await this.#replies.read(cookie, this.#device, asked);
    } finally {
      this.#share.made(asked.length, source, this.#replies.waitingBytes);
    }
  }

  #tryRead(): boolean {
    const request = this.#request;
    const { flags, offset, length } = request;
    if (this.#agreement.structuredReplies && length >= sparseReadBytesMin && !hasFlag(flags, commandFlag.df)) {
      const extents = covering(this.#device.extents(offset, length, sparseReadExtentsMax), offset, length);
      if (extents.some(({ kind }) => kind === "hole"))
        return this.#replies.trySparseRead(request, this.#device, extents);
    }
    return this.#replies.tryRead(request, this.#device);
  }

  #blockStatus(): void {
    const request = this.#request;
    const { flags, offset, length } = request;
    const countMax = hasFlag(flags, commandFlag.reqOne) ? 1 : blockStatusExtentsMax;
    this.#turnBytes += mapLookBytes;
    try {
      const extents = this.#device.extents(offset, length, countMax);
      const looking = extents.length > 0 ? undefined : this.#device.lookUp?.(offset, length, countMax);
      if (looking === undefined) this.#answerStatus(request, extents, { offset, length });
      else this.#answerLater(0, this.#lookedUp(copyOf(request), looking, { offset, length }));
    } catch (error) {
      this.#replies.failure(request, command.blockStatus, wireErrorOf(error));
    }
  }

  async #lookedUp(cookie: Cookie, looking: Promise<DeviceExtent[]>, asked: Extent): Promise<void> {
    this.#answerStatus(cookie, await looking, asked);
  }

  #answerStatus(cookie: Cookie, extents: readonly DeviceExtent[], asked: Extent): void {
    // A device that says nothing has data: that is always true enough.
    this.#replies.blockStatus(cookie, extents.length > 0 ? joined(extents) : [{ ...asked, kind: "data" }]);
  }

  /**
   * Answers the request that is being taken once `work`, which holds `bytes`, has settled. The work
   * of a question answers its success itself.
   */
  #answerLater(bytes: number, work: Promise<void>): void {
    this.#requestsInFlight += 1;
    this.#bytesInFlight += bytes;
    const { type } = this.#request;
    const cookie = copyOf(this.#request);
    void this.#settle(bytes, type, cookie, work);
  }

  async #settle(bytes: number, type: number, cookie: Cookie, work: Promise<void>): Promise<void> {
    try {
      await work;
      if (type !== command.read && type !== command.blockStatus) this.#replies.simple(cookie, 0);
    } catch (error) {
      this.#replies.failure(cookie, type, wireErrorOf(error));
    }
    this.#requestsInFlight -= 1;
    this.#bytesInFlight -= bytes;
    this.#endWhenIdle();
    if (!this.#isClosed) this.#scheduleTurn();
  }
}

function copyOf({ cookieHigh, cookieLow }: Cookie): Cookie {
  return { cookieHigh, cookieLow };
}

/** `extents` with neighbours of one kind joined. */
function joined(extents: readonly DeviceExtent[]): readonly DeviceExtent[] {
  const result: DeviceExtent[] = [];
  for (const extent of extents) {
    const last = result.at(-1);
    if (last?.kind === extent.kind) result[result.length - 1] = { ...last, length: last.length + extent.length };
    else result.push(extent);
  }
  return result;
}

/** `extents`, which may end early, joined and with data behind them up to the end of the range. */
function covering(extents: readonly DeviceExtent[], offset: number, length: number): readonly DeviceExtent[] {
  const last = extents.at(-1);
  const end = last === undefined ? offset : last.offset + last.length;
  const rest: DeviceExtent[] =
    end < offset + length ? [{ offset: end, length: offset + length - end, kind: "data" }] : [];
  return joined([...extents, ...rest]);
}
