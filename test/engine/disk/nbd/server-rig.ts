/**
 * What the tests of the server stand on: a disk in memory that can be slow, broken or full on
 * demand and that knows what a power failure would leave of it, and a client that says exactly the
 * bytes it is told to say.
 */
import { mkdtempSync, rmSync } from "node:fs";
import { connect, type Socket } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { onTestFinished } from "vitest";
import type { BlockDevice, DeviceExtent } from "../../../../engine/device.ts";
import type { NbdEndpoint } from "../../../../engine/disk/nbd/protocol.ts";
import {
  chunkType,
  handshakeMagic,
  option,
  optionReply,
  transmissionMagic,
} from "../../../../engine/disk/nbd/protocol.ts";
import { NbdServer, type NbdServerOptions } from "../../../../engine/disk/nbd/server.ts";

const granuleBytes = 4096;

export class MemoryDisk implements BlockDevice {
  readonly description = "memory";
  readonly readOnly: boolean;
  bytes: Buffer;
  /** What would be there after a power failure. */
  durable: Buffer;
  /** False: every request takes the long way. */
  answersAtOnce = true;
  /** What every access fails with. */
  failure: Error | undefined;
  flushes = 0;
  trims: { offset: number; length: number }[] = [];
  zeroes: { offset: number; length: number; mayTrim: boolean }[] = [];
  /** Calls that took the long way and have not settled. */
  underWay = 0;
  underWayMax = 0;
  #gate: Promise<void> = Promise.resolve();

  constructor(sizeBytes: number = 1024 * 1024, { readOnly = false }: { readOnly?: boolean } = {}) {
    this.bytes = Buffer.alloc(sizeBytes);
    this.durable = Buffer.alloc(sizeBytes);
    this.readOnly = readOnly;
  }

  get sizeBytes(): number {
    return this.bytes.byteLength;
  }

  /** Holds every call that takes the long way until the returned function is called. */
  hold(): () => void {
    let open = (): void => undefined;
    this.#gate = new Promise((resolve) => {
      open = resolve;
    });
    return () => open();
  }

  tryRead(offset: number, into: Uint8Array): boolean {
    if (this.failure !== undefined) throw this.failure;
    if (this.answersAtOnce) this.#copyOut(offset, into);
    return this.answersAtOnce;
  }

  read(offset: number, into: Uint8Array): Promise<void> {
    return this.#slowly(() => this.#copyOut(offset, into));
  }

  tryWrite(offset: number, bytes: Uint8Array): boolean {
    if (this.failure !== undefined) throw this.failure;
    if (this.answersAtOnce) this.bytes.set(bytes, offset);
    return this.answersAtOnce;
  }

  write(offset: number, bytes: Uint8Array): Promise<void> {
    return this.#slowly(() => this.bytes.set(bytes, offset));
  }

  zero(offset: number, length: number, mayTrim: boolean): Promise<void> {
    return this.#slowly(() => {
      this.bytes.fill(0, offset, offset + length);
      this.zeroes.push({ offset, length, mayTrim });
    });
  }

  trim(offset: number, length: number): Promise<void> {
    return this.#slowly(() => {
      this.bytes.fill(0, offset, offset + length);
      this.trims.push({ offset, length });
    });
  }

  flush(): Promise<void> {
    const covered = Buffer.from(this.bytes);
    this.flushes += 1;
    return this.#slowly(() => {
      this.durable = covered;
    });
  }

  extents(offset: number, length: number, countMax: number): DeviceExtent[] {
    if (this.failure !== undefined) throw this.failure;
    const found: DeviceExtent[] = [];
    for (let at = offset; at < offset + length; ) {
      const end = Math.min(offset + length, at - (at % granuleBytes) + granuleBytes);
      const kind = this.bytes.subarray(at, end).every((byte) => byte === 0) ? "hole" : "data";
      const last = found.at(-1);
      if (last?.kind === kind) found[found.length - 1] = { ...last, length: last.length + end - at };
      else if (found.length === countMax) break;
      else found.push({ offset: at, length: end - at, kind });
      at = end;
    }
    return found;
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  #copyOut(offset: number, into: Uint8Array): void {
    into.set(this.bytes.subarray(offset, offset + into.byteLength));
  }

  async #slowly(work: () => unknown): Promise<void> {
    this.underWay += 1;
    this.underWayMax = Math.max(this.underWay, this.underWayMax);
    try {
      await this.#gate;
      if (this.failure !== undefined) throw this.failure;
      work();
    } finally {
      this.underWay -= 1;
    }
  }
}

/** A folder that is gone when the test is over. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "nbd-"));
  onTestFinished(() => rmSync(folder, { recursive: true }));
  return folder;
}

/**
 * A server on a Unix socket that is closed when the test is over. It offers `disk` under the name
 * "disk".
 */
export async function serve(disk: BlockDevice, options: Partial<NbdServerOptions> = {}): Promise<NbdServer> {
  const server = await NbdServer.listen({ listen: { kind: "unix", path: join(temporaryFolder(), "s") }, ...options });
  onTestFinished(() => server.close({ graceMs: 0 }));
  server.addExport({ name: "disk", device: disk, description: "a disk for tests" });
  return server;
}

/** One option reply. */
export interface OptionReply {
  readonly option: number;
  readonly type: number;
  readonly data: Buffer;
}

/** One simple reply or one structured chunk. */
export interface Reply {
  readonly cookie: bigint;
  /** -1 for a simple reply. */
  readonly type: number;
  readonly isLast: boolean;
  /** Error of a simple reply or an error chunk, else 0. */
  readonly error: number;
  /** Payload of a chunk; a simple reply's data has to be taken separately. */
  readonly data: Buffer;
}

export interface RequestFields {
  readonly type: number;
  readonly flags?: number;
  readonly cookie?: bigint;
  readonly offset?: bigint | number;
  readonly length?: number;
  readonly payload?: Uint8Array;
}

export class RawClient {
  readonly socket: Socket;
  /** Settles when the server has closed the connection or broken it. */
  readonly closed: Promise<void>;
  #received: Buffer = Buffer.alloc(0);
  #isClosed = false;
  #wake: () => void = () => undefined;

  static async connect(address: NbdEndpoint): Promise<RawClient> {
    const socket =
      address.kind === "unix" ? connect({ path: address.path }) : connect({ host: address.host, port: address.port });
    await new Promise<void>((resolve, reject) => {
      socket.once("connect", () => resolve()).once("error", reject);
    });
    const client = new RawClient(socket);
    onTestFinished(() => {
      socket.destroy();
    });
    return client;
  }

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#wake();
    });
    // A broken connection is an outcome that tests wait for, as `closed`.
    socket.on("error", () => socket.destroy());
    this.closed = new Promise((resolve) => {
      socket.once("close", () => {
        this.#isClosed = true;
        this.#wake();
        resolve();
      });
    });
  }

  /** Greeting and flags; the connection is then ready for options. */
  static async ready(address: NbdEndpoint, flags = 3): Promise<RawClient> {
    const client = await RawClient.connect(address);
    await client.take(18);
    client.send(uint32(flags));
    return client;
  }

  /** A connection in transmission, after `go`. */
  static async transmitting(
    address: NbdEndpoint,
    {
      structured = false,
      allocation = false,
      name = "disk",
    }: { structured?: boolean; allocation?: boolean; name?: string } = {},
  ): Promise<RawClient> {
    const client = await RawClient.ready(address);
    if (structured) await client.ask(option.structuredReply);
    if (allocation) await client.ask(option.setMetaContext, metaQuery(name, "base:allocation"));
    const replies = await client.ask(option.go, infoQuery(name));
    if (replies.at(-1)?.type !== optionReply.ack) throw new Error(`go was refused with ${replies.at(-1)?.type}`);
    return client;
  }

  send(...parts: readonly Uint8Array[]): void {
    this.socket.write(Buffer.concat(parts));
  }

  /** The next `count` bytes. */
  async take(count: number): Promise<Buffer> {
    while (this.#received.byteLength < count) {
      if (this.#isClosed)
        throw new Error(`the server closed the connection after ${this.#received.byteLength} of ${count} bytes`);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
    const bytes = this.#received.subarray(0, count);
    this.#received = this.#received.subarray(count);
    return bytes;
  }

  /** Bytes that came and were not taken. */
  get untaken(): number {
    return this.#received.byteLength;
  }

  sendOption(id: number, data: Uint8Array = new Uint8Array()): void {
    this.send(uint64(handshakeMagic.option), uint32(id), uint32(data.byteLength), data);
  }

  async takeOptionReply(): Promise<OptionReply> {
    const header = await this.take(20);
    if (header.readBigUInt64BE(0) !== handshakeMagic.optionReply)
      throw new Error("an option reply with a wrong magic number");
    return {
      option: header.readUInt32BE(8),
      type: header.readUInt32BE(12),
      data: await this.take(header.readUInt32BE(16)),
    };
  }

  /** Sends an option and takes its replies, up to the final one. */
  async ask(id: number, data?: Uint8Array): Promise<OptionReply[]> {
    this.sendOption(id, data);
    const replies: OptionReply[] = [];
    for (;;) {
      const reply = await this.takeOptionReply();
      replies.push(reply);
      if (reply.type === optionReply.ack || reply.type >= 0x80000000) return replies;
    }
  }

  request(fields: RequestFields): void {
    this.send(requestBytesOf(fields));
  }

  async takeReply(): Promise<Reply> {
    const magic = (await this.take(4)).readUInt32BE(0);
    if (magic === transmissionMagic.simpleReply) {
      const rest = await this.take(12);
      return {
        cookie: rest.readBigUInt64BE(4),
        type: -1,
        isLast: true,
        error: rest.readUInt32BE(0),
        data: Buffer.alloc(0),
      };
    }
    if (magic !== transmissionMagic.structuredReply)
      throw new Error(`a reply with the magic number ${magic.toString(16)}`);
    const rest = await this.take(16);
    const type = rest.readUInt16BE(2);
    const data = await this.take(rest.readUInt32BE(12));
    const error = type === chunkType.error ? data.readUInt32BE(0) : 0;
    return { cookie: rest.readBigUInt64BE(4), type, isLast: rest.readUInt16BE(0) === 1, error, data };
  }

  /** Sends a request and takes one reply. */
  async call(fields: RequestFields): Promise<Reply> {
    this.request(fields);
    return this.takeReply();
  }
}

export function requestBytesOf({
  type,
  flags = 0,
  cookie = 7n,
  offset = 0,
  payload,
  length = payload?.byteLength ?? 0,
}: RequestFields): Buffer {
  const header = Buffer.alloc(28);
  header.writeUInt32BE(transmissionMagic.request, 0);
  header.writeUInt16BE(flags, 4);
  header.writeUInt16BE(type, 6);
  header.writeBigUInt64BE(cookie, 8);
  header.writeBigUInt64BE(BigInt(offset), 16);
  header.writeUInt32BE(length, 24);
  return payload === undefined ? header : Buffer.concat([header, payload]);
}

export function optionBytesOf(id: number, data: Uint8Array = new Uint8Array()): Buffer {
  return Buffer.concat([uint64(handshakeMagic.option), uint32(id), uint32(data.byteLength), data]);
}

/** Data of `info` and `go`. */
export function infoQuery(name: string, ...wanted: readonly number[]): Buffer {
  const requests = wanted.map((type) => uint32(type).subarray(2));
  return Buffer.concat([text(name), uint32(wanted.length).subarray(2), ...requests]);
}

/** Data of the options about metadata contexts. */
export function metaQuery(name: string, ...queries: readonly string[]): Buffer {
  return Buffer.concat([text(name), uint32(queries.length), ...queries.map(text)]);
}

export function uint32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value);
  return bytes;
}

function uint64(value: bigint): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(value);
  return bytes;
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value);
  return Buffer.concat([uint32(bytes.byteLength), bytes]);
}
