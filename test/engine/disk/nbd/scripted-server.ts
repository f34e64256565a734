/**
 * An NBD server that does what a test tells it, good or bad: one script per connection, with words
 * for the usual steps.
 */
import { mkdtempSync, rmSync } from "node:fs";
import net, { type Server, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";

export interface Request {
  readonly type: number;
  readonly cookie: bigint;
  readonly offset: number;
  readonly length: number;
}

/** What a server says of its export in a handshake without surprises. */
export interface Terms {
  readonly sizeBytes: number;
  readonly flags?: number;
  readonly structured?: boolean;
  /** Contexts that are granted, in this order with ids from 1. */
  readonly contexts?: readonly string[];
  readonly blockSizes?: readonly [least: number, preferred: number, most: number];
}

export class Peer {
  readonly socket: Socket;
  #unread: Buffer = Buffer.alloc(0);
  #wake: (() => void) | undefined;
  #ended = false;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (bytes) => {
      this.#unread = Buffer.concat([this.#unread, bytes]);
      this.#wake?.();
    });
    socket.on("error", () => undefined);
    socket.on("close", () => {
      this.#ended = true;
      this.#wake?.();
    });
  }

  /** The next `count` bytes. Rejects when the client has gone. */
  async take(count: number): Promise<Buffer> {
    while (this.#unread.byteLength < count) {
      if (this.#ended) throw new ClientGone();
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const bytes = this.#unread.subarray(0, count);
    this.#unread = this.#unread.subarray(count);
    return bytes;
  }

  send(...parts: readonly (Uint8Array | string)[]): void {
    this.socket.write(Buffer.concat(parts.map((part) => (typeof part === "string" ? Buffer.from(part) : part))));
  }

  async greet(flags = 3): Promise<void> {
    this.send("NBDMAGICIHAVEOPT", be16(flags));
    await this.take(4);
  }

  async option(): Promise<{ readonly option: number; readonly data: Buffer }> {
    const header = await this.take(16);
    return { option: header.readUInt32BE(8), data: await this.take(header.readUInt32BE(12)) };
  }

  reply(option: number, type: number, ...data: readonly (Uint8Array | string)[]): void {
    const body = Buffer.concat(data.map((part) => Buffer.from(part)));
    this.send(be64(0x0003e889045565a9n), be32(option), be32(type), be32(body.byteLength), body);
  }

  /** Answers options as a good server does, up to and with GO. */
  async handshake(terms: Terms): Promise<void> {
    await this.greet();
    for (;;) {
      const { option } = await this.option();
      if (option === 8) this.reply(option, terms.structured === false ? 0x80000001 : 1);
      else if (option === 10) {
        for (const [index, name] of (terms.contexts ?? []).entries()) this.reply(option, 4, be32(index + 1), name);
        this.reply(option, 1);
      } else if (option === 7) {
        this.reply(option, 3, be16(0), be64(BigInt(terms.sizeBytes)), be16(terms.flags ?? 1));
        if (terms.blockSizes !== undefined) this.reply(option, 3, be16(3), ...terms.blockSizes.map(be32));
        this.reply(option, 1);
        return;
      } else this.reply(option, 0x80000001);
    }
  }

  async request(): Promise<Request> {
    const bytes = await this.take(28);
    return {
      type: bytes.readUInt16BE(6),
      cookie: bytes.readBigUInt64BE(8),
      offset: Number(bytes.readBigUInt64BE(16)),
      length: bytes.readUInt32BE(24),
    };
  }

  /** One part of a structured reply. */
  chunk(
    request: Pick<Request, "cookie">,
    type: number,
    options: { readonly done: boolean },
    ...payload: readonly Uint8Array[]
  ): void {
    const body = Buffer.concat(payload);
    this.send(
      be32(0x668e33ef),
      be16(options.done ? 1 : 0),
      be16(type),
      be64(request.cookie),
      be32(body.byteLength),
      body,
    );
  }

  data(request: Request, offset: number, bytes: Uint8Array, options: { readonly done: boolean }): void {
    this.chunk(request, 1, options, be64(BigInt(offset)), bytes);
  }

  hole(request: Request, offset: number, length: number, options: { readonly done: boolean }): void {
    this.chunk(request, 2, options, be64(BigInt(offset)), be32(length));
  }

  status(
    request: Request,
    context: number,
    extents: readonly (readonly [length: number, flags: number])[],
    options: { readonly done: boolean },
  ): void {
    this.chunk(
      request,
      5,
      options,
      be32(context),
      ...extents.flatMap(([length, flags]) => [be32(length), be32(flags)]),
    );
  }

  simple(request: Request, error: number, bytes: Uint8Array = Buffer.alloc(0)): void {
    this.send(be32(0x67446698), be32(error), be64(request.cookie), bytes);
  }

  hangUp(): void {
    this.socket.destroy();
  }
}

/** The client closed the connection, which ends a script as well as any. */
export class ClientGone extends Error {}

export class ScriptedServer implements AsyncDisposable {
  readonly path: string;
  readonly #folder: string;
  readonly #server: Server;
  readonly #scripts: Promise<void>[] = [];
  readonly #sockets = new Set<Socket>();

  private constructor(folder: string, script: (peer: Peer) => Promise<void> | void) {
    this.#folder = folder;
    this.path = join(folder, "socket");
    this.#server = net.createServer((socket) => {
      this.#sockets.add(socket);
      const running = (async () => script(new Peer(socket)))().catch((error: unknown) => {
        if (!(error instanceof ClientGone)) throw error;
      });
      running.catch(() => undefined);
      this.#scripts.push(running);
    });
  }

  static async listen(script: (peer: Peer) => Promise<void> | void): Promise<ScriptedServer> {
    const server = new ScriptedServer(mkdtempSync(join(tmpdir(), "nbd-")), script);
    await new Promise<void>((resolve) => {
      server.#server.listen(server.path, resolve);
    });
    return server;
  }

  /** Ends all connections. Rejects with what a script threw, assertions included. */
  async [Symbol.asyncDispose](): Promise<void> {
    for (const socket of this.#sockets) socket.destroy();
    await new Promise<void>((resolve) => {
      this.#server.close(() => {
        resolve();
      });
    });
    rmSync(this.#folder, { recursive: true });
    await Promise.all(this.#scripts);
  }
}

export function be16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}

export function be32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

export function be64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return bytes;
}
