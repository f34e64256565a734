/**
 * Batching of NBD replies: the replies of one event-loop turn leave with one write.
 *
 *     reserve ─► fill `buffer` from `at` on ─► commit … ─► flush       an uncommitted reservation is dropped
 *
 * The device puts read data straight into the buffer, so it is copied once, into the kernel.
 *
 * If the socket takes the buffer at once, the next turn uses it again. Otherwise the buffer belongs
 * to the socket until it is written; meanwhile replies gather in another until a write is
 * worthwhile.
 */
import type { Socket } from "node:net";

/**
 * Room for the replies of one turn: thirty 4 KiB reads. Larger replies get buffers of their own.
 */
const batchBytes: number = 128 * 1024;

/**
 * Buffers are kept for reuse up to this sum; making a large one anew costs more than filling it.
 */
const spareBytesMax: number = 4 * 1024 * 1024;

export class ReplyBatch {
  /** Where replies are laid now; another one after each `reserve`. */
  buffer: Buffer = Buffer.alloc(0);
  /** Where the next reply begins. */
  at = 0;
  readonly #socket: Socket;
  readonly #onWritten: () => void;
  #spare: Buffer[] = [];
  #spareBytes = 0;
  /** Buffers that the socket may still be reading. */
  #lent: Buffer[] = [];

  /** `onWritten` is called when the client has taken something. */
  constructor(socket: Socket, onWritten: () => void) {
    this.#socket = socket;
    this.#onWritten = () => {
      this.flush();
      onWritten();
    };
  }

  /** Bytes that the client has not taken yet. */
  get waitingBytes(): number {
    return this.#socket.writableLength + this.at;
  }

  /** Makes room for `bytes` at `at`. */
  reserve(bytes: number): void {
    if (this.at + bytes <= this.buffer.byteLength) return;
    this.#write();
    if (bytes <= this.buffer.byteLength) return;
    this.#keep(this.buffer);
    this.buffer = this.#take(Math.max(bytes, batchBytes));
  }

  /** The next `bytes` are a reply, or a part of one. */
  commit(bytes: number): void {
    this.at += bytes;
  }

  /** Sends `reply`, which belongs to the batch from now on, behind all others. */
  append(reply: Buffer): void {
    this.#write();
    if (this.#socket.writable) this.#socket.write(reply, this.#onWritten);
  }

  /**
   * Hands what has been laid down to the socket, unless it is little and the socket has not got rid
   * of the last yet.
   */
  flush(): void {
    const waits = this.#socket.writableLength > 0;
    if (!waits) this.#reclaim();
    if (!waits || this.at >= batchBytes / 2) this.#write();
  }

  /** Hands everything over: nothing is going to follow. */
  end(): void {
    this.#write();
    this.#socket.end();
  }

  #write(): void {
    if (this.at === 0) return;
    const full = this.buffer;
    const bytes = this.at;
    this.at = 0;
    if (!this.#socket.writable) return;
    this.#socket.write(full.subarray(0, bytes), this.#onWritten);
    // Nothing waits: the kernel has copied it all.
    if (this.#socket.writableLength === 0 && full.byteLength <= spareBytesMax) return;
    this.#lent.push(full);
    this.buffer = this.#take(batchBytes);
  }

  #reclaim(): void {
    if (this.#lent.length === 0) return;
    for (const buffer of this.#lent) this.#keep(buffer);
    this.#lent = [];
  }

  #keep(buffer: Buffer): void {
    if (buffer.byteLength === 0 || this.#spareBytes + buffer.byteLength > spareBytesMax) return;
    this.#spare.push(buffer);
    this.#spareBytes += buffer.byteLength;
  }

  #take(bytes: number): Buffer {
    const index = this.#spare.findIndex(({ byteLength }) => byteLength >= bytes);
    const [spare] = index < 0 ? [] : this.#spare.splice(index, 1);
    if (spare === undefined) return Buffer.allocUnsafeSlow(bytes);
    this.#spareBytes -= spare.byteLength;
    return spare;
  }
}
