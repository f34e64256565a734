/**
 * Exact-length reads from a socket, for the NBD handshakes. While more input is buffered than was
 * asked for, the socket is paused.
 */
import type { Socket } from "node:net";

/** How much is held; also the most that can be taken at once. */
const heldBytesMax: number = 64 * 1024;

export class Wire {
  readonly socket: Socket;
  #held: Buffer[] = [];
  #heldBytes = 0;
  #isOver = false;
  #wake: () => void = () => undefined;
  readonly #onData = (chunk: Buffer): void => {
    this.#held.push(chunk);
    this.#heldBytes += chunk.byteLength;
    if (this.#heldBytes >= heldBytesMax) this.socket.pause();
    this.#wake();
  };
  readonly #onOver = (): void => {
    this.#isOver = true;
    this.#wake();
  };

  constructor(socket: Socket) {
    this.socket = socket;
    this.#isOver = socket.destroyed;
    // An error is followed by `close`, to which the socket's owner listens.
    socket.on("data", this.#onData).on("end", this.#onOver).on("close", this.#onOver);
    socket.resume();
  }

  /** Bytes that have arrived and have not been taken. */
  get heldBytes(): number {
    return this.#heldBytes;
  }

  /**
   * The next `count` bytes, at most 64 KiB, or undefined when the peer has gone before they came.
   */
  async take(count: number): Promise<Buffer | undefined> {
    while (this.#heldBytes < count) {
      if (this.#isOver) return undefined;
      await this.#something();
    }
    const all = this.#held.length === 1 && this.#held[0] !== undefined ? this.#held[0] : Buffer.concat(this.#held);
    this.#held = count < all.byteLength ? [all.subarray(count)] : [];
    this.#heldBytes -= count;
    if (this.#heldBytes < heldBytesMax) this.socket.resume();
    return all.subarray(0, count);
  }

  /** Takes `count` bytes, any number, and forgets them. False when the peer has gone. */
  async skip(count: number): Promise<boolean> {
    for (let left = count; left > 0; left -= Math.min(left, heldBytesMax)) {
      if ((await this.take(Math.min(left, heldBytesMax))) === undefined) return false;
    }
    return true;
  }

  /** Sends `bytes` and waits while the peer does not read. */
  async send(bytes: Uint8Array): Promise<void> {
    if (this.socket.destroyed || this.socket.write(bytes)) return;
    await new Promise<void>((resolve) => {
      const settle = (): void => {
        this.socket.off("drain", settle).off("close", settle);
        resolve();
      };
      this.socket.on("drain", settle).on("close", settle);
    });
  }

  /**
   * Hands the socket over, paused, with the bytes that have arrived and have not been taken.
   */
  release(): Buffer {
    this.socket.pause();
    this.socket.off("data", this.#onData).off("end", this.#onOver).off("close", this.#onOver);
    return Buffer.concat(this.#held);
  }

  #something(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve;
    });
  }
}
