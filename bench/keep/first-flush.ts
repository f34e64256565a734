/**
 * The first write of a guest: a client that connects to an export, writes once and waits for its
 * flush. The engine's own client reads only.
 */
import { once } from "node:events";
import { connect, type Socket } from "node:net";
import { TidemarkError } from "../../engine/index.ts";

const [writeCommand, flushCommand] = [1, 3] as const;
const requestMagic = 0x25609513;

/**
 * Writes `bytes` at `offset` of the export `name` behind a Unix socket; resolves when they are
 * flushed. Errors: DEVICE_FAILED.
 */
export async function writeFirst(path: string, name: string, offset: number, bytes: Buffer): Promise<void> {
  const socket = connect(path);
  try {
    await once(socket, "connect");
    const peer = new Peer(socket);
    await peer.take(18); // magic numbers and flags
    const option = Buffer.alloc(20);
    option.writeUInt32BE(3, 0); // fixed newstyle, no zeros
    option.write("IHAVEOPT", 4, "latin1");
    option.writeUInt32BE(1, 12); // NBD_OPT_EXPORT_NAME
    option.writeUInt32BE(Buffer.byteLength(name), 16);
    socket.write(Buffer.concat([option, Buffer.from(name)]));
    await peer.take(10); // size and flags
    await peer.ask(writeCommand, offset, bytes);
    await peer.ask(flushCommand, 0, Buffer.alloc(0));
  } finally {
    socket.destroy();
  }
}

class Peer {
  readonly #socket: Socket;
  #received: Buffer = Buffer.alloc(0);

  constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      socket.emit("taken");
    });
    socket.on("close", () => socket.emit("taken"));
  }

  async take(count: number): Promise<Buffer> {
    while (this.#received.byteLength < count) {
      if (this.#socket.destroyed) throw broken("the server closed the connection");
      await once(this.#socket, "taken");
    }
    const taken = this.#received.subarray(0, count);
    this.#received = this.#received.subarray(count);
    return taken;
  }

  async ask(command: number, offset: number, payload: Buffer): Promise<void> {
    const header = Buffer.alloc(28);
    header.writeUInt32BE(requestMagic, 0);
    header.writeUInt16BE(command, 6);
    header.writeBigUInt64BE(BigInt(offset), 16);
    header.writeUInt32BE(payload.byteLength, 24);
    this.#socket.write(Buffer.concat([header, payload]));
    const error = (await this.take(16)).readUInt32BE(4);
    if (error !== 0) throw broken(`the server answered with error ${error}`);
  }
}

function broken(fact: string): TidemarkError {
  return new TidemarkError("DEVICE_FAILED", `the first write failed: ${fact}`, {
    remedy: "see whether the server has failed",
  });
}
