/**
 * A network between a client and a server on one machine: it lets so many bytes a second pass
 * towards the server, and can stand still for a while without closing anything. It knows no HTTP;
 * faults of single requests are the fault proxy's.
 */
import { EventEmitter, once } from "node:events";
import { type AddressInfo, createConnection, createServer, type Server, type Socket } from "node:net";
import { Transform } from "node:stream";
import { pipeline } from "node:stream/promises";
import { setTimeout as delay } from "node:timers/promises";
import { onTestFinished } from "vitest";

export class SlowLine {
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();
  readonly #bytesPerSecond: number;
  readonly #events = new EventEmitter().setMaxListeners(0);
  /** Bytes that have passed towards the server. */
  passedBytes = 0;
  #freeAtMs = 0;
  #isFrozen = false;

  private constructor(targetPort: number, bytesPerSecond: number) {
    this.#bytesPerSecond = bytesPerSecond;
    this.#server = createServer((client) => {
      this.#connect(client, targetPort);
    });
  }

  /** Opens a line to `targetPort`. It is closed when the test ends. */
  static async open(targetPort: number, bytesPerSecond: number): Promise<SlowLine> {
    const line = new SlowLine(targetPort, bytesPerSecond);
    await new Promise<void>((resolve) => line.#server.listen(0, "127.0.0.1", resolve));
    onTestFinished(async () => {
      for (const socket of line.#sockets) socket.destroy();
      line.thaw();
      await new Promise((resolve) => line.#server.close(resolve));
    });
    return line;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** Resolves once so many bytes have passed towards the server. */
  async passed(bytes: number): Promise<void> {
    while (this.passedBytes < bytes) await once(this.#events, "passed");
  }

  /** Lets nothing pass, in either direction, until `thaw`. */
  freeze(): void {
    this.#isFrozen = true;
  }

  thaw(): void {
    this.#isFrozen = false;
    this.#events.emit("thaw");
  }

  #connect(client: Socket, targetPort: number): void {
    const server = createConnection(targetPort, "127.0.0.1");
    for (const socket of [client, server]) {
      this.#sockets.add(socket);
      socket.once("close", () => this.#sockets.delete(socket));
    }
    const close = (): void => {
      // What one end loses, the other loses too: a reset stays a reset.
      client.resetAndDestroy();
      server.resetAndDestroy();
    };
    pipeline(client, this.#passage(this.#bytesPerSecond), server).catch(close);
    pipeline(server, this.#passage(Number.POSITIVE_INFINITY), client).catch(close);
  }

  #passage(bytesPerSecond: number): Transform {
    const pass = async (piece: Buffer): Promise<Buffer> => {
      if (Number.isFinite(bytesPerSecond)) {
        const nowMs = performance.now();
        this.#freeAtMs = Math.max(nowMs, this.#freeAtMs) + (piece.length / bytesPerSecond) * 1000;
        if (this.#freeAtMs > nowMs) await delay(this.#freeAtMs - nowMs);
        this.passedBytes += piece.length;
        this.#events.emit("passed");
      }
      while (this.#isFrozen) await once(this.#events, "thaw");
      return piece;
    };
    return new Transform({
      transform: (piece: Buffer, _encoding, done) => {
        void pass(piece).then((passed) => done(null, passed));
      },
    });
  }
}
