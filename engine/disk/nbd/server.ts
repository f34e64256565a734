/**
 * NBD server: how operating systems, hypervisors and tools reach a disk of Tidemark.
 *
 *     listen ─► accept ─► negotiate (bounded time) ─► Transmission ─► closed
 *
 * The server listens on a Unix socket or on TCP. A client that breaks the protocol loses its
 * connection; other clients are not affected. A client that does not come through its handshake makes
 * room for the next one; one that agreed on an export keeps its place. Exports can be added and
 * removed while the server runs.
 *
 * Access: a client that reaches the socket can read and write the disks. A Unix socket is open to
 * its owner only (mode 0600). A TCP port is open to every host that reaches it, unless TLS requires
 * client certificates.
 */
import { lstat, unlink } from "node:fs/promises";
import { connect, createServer, type Server, type Socket } from "node:net";
import { systemCode, TidemarkError } from "../../errors.ts";
import { DirectSocket } from "./direct-socket.ts";
import { ExportTable, type NbdExport, type ServedExport } from "./exports.ts";
import { negotiate, type Secure } from "./handshake.ts";
import { listenPrivately } from "./private-socket.ts";
import type { NbdEndpoint } from "./protocol.ts";
import { ReplyBudget } from "./reply-budget.ts";
import { type NbdTls, securing } from "./tls.ts";
import { Transmission } from "./transmission.ts";

export type { NbdExport, NbdTls };

export interface NbdServerOptions {
  /** Port 0 takes any free port. A socket file that a dead server left behind is replaced. */
  readonly listen: NbdEndpoint;
  /** Serve over TLS only, and only clients with a certificate. */
  readonly tls?: NbdTls | undefined;
  /** Time for the whole handshake. Default: 10,000 ms. */
  readonly handshakeMsMax?: number | undefined;
  /** Clients that are served at one time. Default: 64. */
  readonly connectionsMax?: number | undefined;
  /**
   * Bytes of replies that clients have not taken; further reads wait. Each connection has 1 MiB
   * besides. Default: 256 MiB.
   */
  readonly replyBytesMax?: number | undefined;
  /**
   * How long a client may take no reply, or send nothing of a payload, before its connection is
   * ended. Default: 60,000 ms.
   */
  readonly stalledMsMax?: number | undefined;
}

/**
 * Handshakes at one time, of all peers and of one: the oldest gives way. All clients of a Unix
 * socket are one peer.
 */
const handshakesMax = 128;
const handshakesOfPeerMax = 32;

/** How long requests under way have when an export is removed, or a server disposed. */
const graceMsDefault = 10_000;

interface Connection {
  /** The address that the client came from. */
  readonly peer: string;
  /**
   * The socket that the client came through; what carries the transmission may lie on top of it.
   */
  readonly socket: Socket;
  /** Set from the handshake's end on. */
  served: ServedExport | undefined;
  transmission: Transmission | undefined;
  /**
   * Settles when the connection is closed and nothing of it is under way at the device any more.
   * Never rejects.
   */
  done: Promise<void>;
}

export class NbdServer implements AsyncDisposable {
  /** What the operator should know about how the server is reached: sentences. */
  readonly warnings: readonly string[];
  /** Where clients find it; with the actual port. */
  readonly address: NbdEndpoint;
  readonly #server: Server;
  readonly #table: ExportTable = new ExportTable();
  readonly #secure: Secure | undefined;
  readonly #handshakeMsMax: number;
  readonly #connectionsMax: number;
  readonly #stalledMsMax: number;
  readonly #budget: ReplyBudget;
  /** In the handshake or after it; the oldest first. */
  readonly #connections: Set<Connection> = new Set();
  #closing: Promise<void> | undefined;

  /**
   * Starts listening, with no export yet. Errors: INVALID_ARGUMENT (the address is taken or is
   * none, the certificates do not fit), ACCESS_REFUSED.
   */
  static async listen(options: NbdServerOptions): Promise<NbdServer> {
    const { listen, tls } = options;
    const secure = tls === undefined ? undefined : securing(tls);
    // A client may end its side when it has sent its last request and still wants the answers.
    const server = createServer({ allowHalfOpen: true, noDelay: true, keepAlive: true });
    if (listen.kind === "unix") await listenOnPath(server, listen.path);
    else await listenOnPort(server, listen.host, listen.port);
    return new NbdServer(server, options, secure);
  }

  private constructor(server: Server, options: NbdServerOptions, secure: Secure | undefined) {
    const { listen, handshakeMsMax = 10_000, connectionsMax = 64 } = options;
    const { replyBytesMax = 256 * 1024 * 1024, stalledMsMax = 60_000 } = options;
    this.#server = server;
    this.#secure = secure;
    this.#connectionsMax = connectionsMax;
    this.#handshakeMsMax = handshakeMsMax;
    this.#stalledMsMax = stalledMsMax;
    this.#budget = new ReplyBudget(replyBytesMax);
    this.address = addressOf(server, listen);
    this.warnings = warningsOf(listen, secure !== undefined);
    server.on("connection", (socket) => this.#accept(socket));
  }

  /** Clients that are connected, in the handshake or after it. */
  get connections(): number {
    return this.#connections.size;
  }

  get #served(): number {
    return [...this.#connections].filter(({ served }) => served !== undefined).length;
  }

  /** Offers one more disk. Errors: INVALID_ARGUMENT (the name is taken or is none). */
  addExport(offered: NbdExport): void {
    this.#table.add(offered);
  }

  /**
   * Offers `name` no more, and ends its connections once their requests are answered, by force
   * after 10 s. Idempotent.
   */
  async removeExport(name: string): Promise<void> {
    const served = this.#table.remove(name);
    if (served === undefined) return;
    await end(
      [...this.#connections].filter((connection) => connection.served === served),
      graceMsDefault,
    );
  }

  /**
   * Stops listening and ends every connection once its requests are answered, by force after
   * `graceMs`. Idempotent.
   */
  close({ graceMs = graceMsDefault }: { readonly graceMs?: number } = {}): Promise<void> {
    this.#closing ??= this.#close(graceMs);
    return this.#closing;
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #close(graceMs: number): Promise<void> {
    const closed = new Promise<void>((resolve) => {
      this.#server.close(() => resolve());
    });
    await end([...this.#connections], graceMs);
    await closed;
  }

  #accept(accepted: Socket): void {
    const peer = accepted.remoteAddress ?? "";
    const handshakes = [...this.#connections].filter(({ served }) => served === undefined);
    const ofPeer = handshakes.filter((other) => other.peer === peer);
    if (ofPeer.length >= handshakesOfPeerMax) this.#drop(ofPeer[0]);
    else if (handshakes.length >= handshakesMax) this.#drop(handshakes[0]);
    // TLS reads the accepted socket itself.
    const socket = this.#secure === undefined ? DirectSocket.over(accepted) : accepted;
    // A connection that breaks has nothing more to be told, and what it costs shows in `close`,
    // which always follows.
    socket.on("error", () => socket.destroy());
    const connection: Connection = {
      peer,
      socket,
      served: undefined,
      transmission: undefined,
      done: Promise.resolve(),
    };
    this.#connections.add(connection);
    connection.done = this.#serve(connection);
  }

  /** Ends a handshake, which counts no longer. */
  #drop(connection: Connection | undefined): void {
    if (connection === undefined) return;
    this.#connections.delete(connection);
    connection.socket.destroy();
  }

  async #serve(connection: Connection): Promise<void> {
    const { socket } = connection;
    const timer = setTimeout(() => socket.destroy(), this.#handshakeMsMax);
    try {
      const agreement = await negotiate(socket, this.#table, this.#secure);
      if (agreement === undefined) {
        // The client may still be reading why.
        await closed(socket);
        return;
      }
      clearTimeout(timer);
      // It may have been removed since the client was told of it.
      if (this.#table.find(agreement.served.name) !== agreement.served || this.#closing !== undefined) return;
      if (this.#served >= this.#connectionsMax) return;
      const transmission = new Transmission(agreement, this.#budget, this.#stalledMsMax);
      connection.served = agreement.served;
      connection.transmission = transmission;
      await transmission.run();
    } finally {
      clearTimeout(timer);
      socket.destroy();
      this.#connections.delete(connection);
    }
  }
}

/**
 * Ends `connections`: in their own time first, by force after `graceMs`. What a device still does
 * then, its closing waits for.
 */
async function end(connections: readonly Connection[], graceMs: number): Promise<void> {
  for (const { socket, transmission } of connections) {
    if (transmission === undefined) socket.destroy();
    else transmission.stop();
  }
  let timer: NodeJS.Timeout | undefined;
  const forced = new Promise<void>((resolve) => {
    timer = setTimeout(() => {
      for (const { socket } of connections) socket.destroy();
      resolve();
    }, graceMs);
  });
  await Promise.race([Promise.all(connections.map(({ done }) => done)), forced]);
  clearTimeout(timer);
}

function closed(socket: Socket): Promise<void> {
  return new Promise((resolve) => {
    if (socket.closed) resolve();
    else socket.once("close", () => resolve());
  });
}

/**
 * Listens on a socket file, mode 0600. An existing socket is replaced if no server answers at it;
 * anything but a socket is left alone.
 */
async function listenOnPath(server: Server, path: string): Promise<void> {
  const listen = (): void => listenPrivately(server, path);
  try {
    await startListening(server, listen);
    return;
  } catch (error) {
    if (systemCode(error) !== "EADDRINUSE") throw listenError(path, error);
  }
  if (!(await isDeadSocket(path))) {
    throw new TidemarkError(
      "INVALID_ARGUMENT",
      `cannot listen on ${path}: a server answers there already, or it is no socket`,
      {
        remedy: "stop that server, or choose another path",
      },
    );
  }
  try {
    await unlink(path);
    await startListening(server, listen);
  } catch (error) {
    throw listenError(path, error);
  }
}

async function listenOnPort(server: Server, host: string, port: number): Promise<void> {
  try {
    await startListening(server, () => server.listen(port, host));
  } catch (error) {
    throw listenError(`${host}:${port}`, error);
  }
}

function startListening(server: Server, listen: () => void): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = (outcome: () => void): void => {
      server.off("listening", onListening).off("error", onError);
      outcome();
    };
    const onListening = (): void => settle(resolve);
    const onError = (error: Error): void => settle(() => reject(error));
    server.on("listening", onListening).on("error", onError);
    listen();
  });
}

/** Whether `path` is a socket that refuses connections, which is so when its server is gone. */
async function isDeadSocket(path: string): Promise<boolean> {
  if (!(await lstat(path)).isSocket()) return false;
  return new Promise((resolve, reject) => {
    const probe = connect({ path });
    probe.once("connect", () => {
      probe.destroy();
      resolve(false);
    });
    probe.once("error", (error) => {
      if (systemCode(error) === "ECONNREFUSED") resolve(true);
      else reject(listenError(path, error));
    });
  });
}

function listenError(where: string, cause: unknown): TidemarkError {
  if (cause instanceof TidemarkError) return cause;
  const errno = systemCode(cause);
  const isRefused = errno === "EACCES" || errno === "EPERM";
  const fact =
    errno === "EADDRINUSE" ? "another server listens there" : cause instanceof Error ? cause.message : String(cause);
  return new TidemarkError(isRefused ? "ACCESS_REFUSED" : "INVALID_ARGUMENT", `cannot listen on ${where}: ${fact}`, {
    remedy: isRefused ? "choose a place where you may listen" : "choose another address, or stop what uses it",
    detail: { errno },
    cause,
  });
}

function addressOf(server: Server, listen: NbdEndpoint): NbdEndpoint {
  if (listen.kind === "unix") return listen;
  const bound = server.address();
  return { ...listen, port: bound === null || typeof bound === "string" ? listen.port : bound.port };
}

function warningsOf(listen: NbdEndpoint, isSecure: boolean): readonly string[] {
  if (listen.kind === "unix" || isSecure || /^(localhost|127\.\d+\.\d+\.\d+|::1)$/.test(listen.host)) return [];
  return [
    `every client that reaches ${listen.host}:${listen.port} can read and write the disks served there: set up TLS, or listen on 127.0.0.1 or a Unix socket`,
  ];
}
