/**
 * Stamping writer: an NBD client of its own that writes stamps to one protected disk, at a given
 * rate, until it is told to stop. It knows nothing of the engine, so that it sees what any client
 * sees. When the agent dies, it connects again as soon as the disk is served.
 *
 * Invariant: a write counts as acknowledged only when its reply has arrived.
 */
import { connect, type Socket } from "node:net";
import { setTimeout as delay } from "node:timers/promises";
import type { Histogram } from "./measures.ts";
import { type StampedWrite, type StampLog, sectorBytes } from "./stamps.ts";

/** Fields of the NBD protocol: doc/proto.md of the NetworkBlockDevice project. */
const wire = {
  greetingBytes: 18,
  clientFlags: 3,
  optionMagic: 0x49484156454f5054n,
  exportName: 1,
  exportBytes: 10,
  requestMagic: 0x25609513,
  replyMagic: 0x67446698,
  replyBytes: 16,
  write: 1,
} as const;

const writesInFlightMax = 8;
const reconnectMs = 100;

export class StampingWriter {
  readonly log: StampLog;
  /** Answers other than success. There must be none, also while the store fails. */
  refused = 0;
  writtenBytes = 0;
  readonly #socketPath: string;
  readonly #disk: string;
  readonly #pending = new Map<number, StampedWrite>();
  #isStopping = false;
  readonly #bytesPerSecond: number;

  readonly #latency: Histogram;

  /** `latency` gets the time from each write to its answer. */
  constructor(
    log: StampLog,
    latency: Histogram,
    where: { readonly socketPath: string; readonly disk: string },
    bytesPerSecond: number,
  ) {
    this.log = log;
    this.#latency = latency;
    this.#socketPath = where.socketPath;
    this.#disk = where.disk;
    this.#bytesPerSecond = bytesPerSecond;
  }

  /** Ends `run` once all that was sent is acknowledged, or the connection is lost. */
  stop(): void {
    this.#isStopping = true;
  }

  /** Writes until `stop`, over as many connections as it takes. */
  async run(signal: AbortSignal): Promise<void> {
    while (!this.#isStopping && !signal.aborted) {
      await this.#write(signal);
      // Stopped, or the agent has died: what was under way is on the disk, or is not.
      this.log.giveUp();
      this.#pending.clear();
      await delay(reconnectMs);
    }
  }

  /** Writes `count` stamps at once and waits for them. */
  async burst(count: number, signal: AbortSignal): Promise<void> {
    this.#isStopping = false;
    const target = this.log.acknowledged + count;
    await this.#write(signal, () => this.log.acknowledged + this.#pending.size >= target);
  }

  /** Whether the disk is served. */
  async isServed(): Promise<boolean> {
    const socket = await this.#connected();
    socket?.destroy();
    return socket !== undefined;
  }

  /** One connection, until it is lost, or stopped and all is acknowledged. */
  async #write(signal: AbortSignal, isEnough: () => boolean = () => false): Promise<void> {
    const socket = await this.#connected();
    if (socket === undefined) return;
    const over = new Promise<void>((resolve) => socket.once("close", () => resolve()));
    let wake = (): void => undefined;
    this.#receive(socket, () => wake());
    const startedAtMs = performance.now();
    let sentBytes = 0;
    const isDone = (): boolean => this.#isStopping || isEnough() || signal.aborted || socket.destroyed;
    while (!isDone()) {
      const aheadMs = (sentBytes / this.#bytesPerSecond) * 1_000 - (performance.now() - startedAtMs);
      if (aheadMs > 1) await delay(Math.min(aheadMs, 100));
      else if (this.#pending.size >= writesInFlightMax)
        await Promise.race([over, new Promise<void>((resolve) => (wake = resolve))]);
      else sentBytes += this.#send(socket);
    }
    while (this.#pending.size > 0 && !socket.destroyed && !signal.aborted)
      await Promise.race([over, new Promise<void>((resolve) => (wake = resolve))]);
    socket.destroy();
    await over;
  }

  /** Sends the next write; gives its bytes. */
  #send(socket: Socket): number {
    const { write, bytes } = this.log.send();
    this.#pending.set(write.number, write);
    const header = Buffer.alloc(28);
    header.writeUInt32BE(wire.requestMagic, 0);
    header.writeUInt16BE(wire.write, 6);
    header.writeBigUInt64BE(BigInt(write.number), 8);
    header.writeBigUInt64BE(BigInt(write.firstSector * sectorBytes), 16);
    header.writeUInt32BE(bytes.length, 24);
    socket.write(header);
    socket.write(bytes);
    return bytes.length;
  }

  #receive(socket: Socket, onReply: () => void): void {
    let held: Buffer = Buffer.alloc(0);
    socket.on("data", (bytes: Buffer) => {
      held = Buffer.concat([held, bytes]);
      for (; held.length >= wire.replyBytes; held = held.subarray(wire.replyBytes)) {
        const isReply = held.readUInt32BE(0) === wire.replyMagic;
        if (isReply) this.#acknowledge(Number(held.readBigUInt64BE(8)), held.readUInt32BE(4));
        else this.refused += 1;
      }
      onReply();
    });
  }

  #acknowledge(number: number, error: number): void {
    const write = this.#pending.get(number);
    this.#pending.delete(number);
    if (write === undefined || error !== 0) {
      this.refused += 1;
      return;
    }
    this.log.acknowledge(write);
    this.writtenBytes += write.sectors * sectorBytes;
    this.#latency.add(write.ackedMs - write.sentMs);
  }

  /** A connection in transmission; undefined while the disk is not served. */
  async #connected(): Promise<Socket | undefined> {
    const socket = connect({ path: this.#socketPath });
    socket.on("error", () => socket.destroy());
    const name = Buffer.from(this.#disk);
    const option = Buffer.alloc(20);
    option.writeUInt32BE(wire.clientFlags, 0);
    option.writeBigUInt64BE(wire.optionMagic, 4);
    option.writeUInt32BE(wire.exportName, 12);
    option.writeUInt32BE(name.length, 16);
    if ((await taken(socket, wire.greetingBytes)) === undefined) return undefined;
    socket.write(Buffer.concat([option, name]));
    return (await taken(socket, wire.exportBytes)) === undefined ? undefined : socket;
  }
}

/** The next `count` bytes, which is all that the server says before it is asked; undefined when it closes. */
async function taken(socket: Socket, count: number): Promise<Buffer | undefined> {
  let held: Buffer = Buffer.alloc(0);
  return await new Promise((resolve) => {
    const onData = (bytes: Buffer): void => {
      held = Buffer.concat([held, bytes]);
      if (held.length >= count) end(held);
    };
    const onClose = (): void => end(undefined);
    const end = (answer: Buffer | undefined): void => {
      socket.off("data", onData).off("close", onClose);
      resolve(answer);
    };
    socket.on("data", onData).once("close", onClose);
  });
}
