/**
 * Accepted sockets with caller-owned input buffers.
 *
 * Node allocates a buffer of up to 64 KiB for every piece of input. At 1 GB/s that allocation, its
 * garbage collection and the copy to the payload's place are most of the work. Node offers `onread`
 * (input into a buffer of the caller's) for connections that it makes, and not for those that it
 * accepts. This file moves the handle of an accepted socket to a socket that has `onread`.
 *
 * The handle is undocumented. Where the move is not possible the accepted socket is used as it is.
 * Until a reader takes over, input arrives as a stream, as from any socket.
 */
import { Socket } from "node:net";

/** Takes the input of a connection. Nothing is read while the socket is paused. */
export interface Intake {
  /** Where the next bytes go, if there is a place for them; else they are received. */
  place(): Buffer | undefined;
  /** `count` bytes have been put where they belong. */
  placed(count: number): void;
  /**
   * Input that arrived before a reader gave a buffer. Its bytes stay unchanged until the next call,
   * which does not come while the socket is paused.
   */
  receive(input: Buffer): void;
}

/** A handshake is small. */
const streamBufferBytes: number = 16 * 1024;
/**
 * Requests of up to 128 KiB mostly come whole; the system's own buffer of a Unix socket holds about
 * as much.
 */
const intakeBufferBytes: number = 256 * 1024;

export class DirectSocket extends Socket {
  readonly #reader: Reader;

  /**
   * `accepted` as a socket that is read into buffers of our choice, or `accepted` itself where the
   * runtime does not let us.
   */
  static over(accepted: Socket): Socket {
    // Not part of what Node documents: hence looked at before it is used.
    const handle: unknown = Reflect.get(accepted, "_handle");
    if (typeof handle !== "object" || handle === null || !("useUserBuffer" in handle)) return accepted;
    const direct = new DirectSocket(handle, new Reader());
    Reflect.set(accepted, "_handle", null);
    accepted.destroy();
    return direct;
  }

  private constructor(handle: object, reader: Reader) {
    const onread = {
      buffer: () => reader.next(),
      callback: (count: number, buffer: Uint8Array) => {
        reader.read(count, buffer, this);
        return true;
      },
    };
    const options = { handle, onread, allowHalfOpen: true, readable: true, writable: true };
    super(options);
    this.#reader = reader;
  }

  /** From now on `intake` is given what comes. */
  readInto(intake: Intake): void {
    this.#reader.intake = intake;
  }
}

class Reader {
  intake: Intake | undefined;
  #buffer: Buffer = Buffer.allocUnsafeSlow(streamBufferBytes);
  #place: Buffer | undefined;

  /** Where to read to next. */
  next(): Uint8Array {
    if (this.intake !== undefined && this.#buffer.byteLength < intakeBufferBytes)
      this.#buffer = Buffer.allocUnsafeSlow(intakeBufferBytes);
    this.#place = this.intake?.place();
    return this.#place ?? this.#buffer;
  }

  read(count: number, buffer: Uint8Array, socket: Socket): void {
    if (this.intake === undefined) socket.push(Buffer.from(buffer.subarray(0, count)));
    else if (buffer === this.#place) this.intake.placed(count);
    else this.intake.receive(Buffer.from(buffer.buffer, buffer.byteOffset, count));
  }
}
