/**
 * Stands between a client and an HTTP store and does to chosen requests what networks and servers
 * do: it loses acknowledgements, resets connections, answers 503, or says nothing at all.
 * Everything else it passes on. Every fault is planned, and one that never fired is a failed test.
 */
import http from "node:http";
import type { AddressInfo } from "node:net";

export type FaultKind =
  /** The connection is reset while the request's body arrives; the store sees nothing. */
  | "reset-request"
  /** The store executes the request, and the connection is reset before the answer. */
  | "lose-answer"
  /** The answer's body breaks off in the middle. */
  | "truncate-answer"
  /** Nothing is ever answered, and the store sees nothing. */
  | "freeze"
  | { readonly status: number; readonly retryAfterSeconds?: number };

interface Plan {
  readonly method: string;
  readonly kind: FaultKind;
  /** Requests that still pass before the fault strikes. */
  passing: number;
  left: number;
}

export class FaultProxy implements AsyncDisposable {
  /** `METHOD path` of every request, in order of arrival. */
  readonly requests: string[] = [];
  readonly #server: http.Server;
  readonly #agent = new http.Agent({ keepAlive: true });
  readonly #target: URL;
  readonly #plans: Plan[] = [];

  private constructor(target: URL) {
    this.#target = target;
    this.#server = http.createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
      this.#serve(request, response);
    });
  }

  /** Listens on a free port in front of `target`. */
  static async open(target: string): Promise<FaultProxy> {
    const proxy = new FaultProxy(new URL(target));
    await new Promise<void>((resolve) => proxy.#server.listen(0, "127.0.0.1", resolve));
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** `url` of the target, as seen through this proxy. */
  through(url: string): string {
    const through = new URL(url);
    through.port = String(this.port);
    return through.href;
  }

  /**
   * Does `kind` to `times` requests of `method`, after so many of them have passed; several plans
   * count each for itself.
   */
  plan(method: string, kind: FaultKind, times = 1, passing = 0): void {
    this.#plans.push({ method, kind, passing, left: times });
  }

  assertAllFired(): void {
    const unfired = this.#plans.filter((plan) => plan.left > 0);
    if (unfired.length > 0) throw new Error(`planned faults that never fired: ${JSON.stringify(unfired)}`);
  }

  /** Closes the connections that wait for their next request, as a server does that restarts. */
  dropIdleConnections(): void {
    this.#server.closeIdleConnections();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#agent.destroy();
    this.#server.closeAllConnections();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #serve(request: http.IncomingMessage, response: http.ServerResponse): void {
    this.requests.push(`${request.method ?? ""} ${request.url ?? ""}`);
    const plans = this.#plans.filter((candidate) => candidate.left > 0 && candidate.method === request.method);
    const plan = plans.find(({ passing }) => passing === 0);
    for (const waiting of plans) if (waiting.passing > 0) waiting.passing -= 1;
    if (plan !== undefined) plan.left -= 1;
    const kind = plan?.kind;
    if (kind === "freeze") return;
    if (kind === "reset-request") {
      const reset = (): void => {
        request.socket.resetAndDestroy();
      };
      // Where there is no body, its end is as early as it gets.
      request.once("data", reset).once("end", reset);
      return;
    }
    if (typeof kind === "object") {
      request.resume();
      const retryAfter = kind.retryAfterSeconds === undefined ? {} : { "retry-after": String(kind.retryAfterSeconds) };
      response.writeHead(kind.status, { "x-ms-error-code": "ServerBusy", ...retryAfter }).end();
      return;
    }
    this.#forward(request, response, kind);
  }

  /** Passes the request on; absolute request targets, as a proxy gets them, too. */
  #forward(
    request: http.IncomingMessage,
    response: http.ServerResponse,
    kind: "lose-answer" | "truncate-answer" | undefined,
  ): void {
    const asked = new URL(request.url ?? "/", this.#target);
    const upstream = http.request(
      {
        agent: this.#agent,
        host: this.#target.hostname,
        port: this.#target.port,
        method: request.method,
        path: asked.pathname + asked.search,
        headers: request.headers,
      },
      (answer) => {
        if (kind === "lose-answer") {
          answer.resume();
          request.socket.resetAndDestroy();
          return;
        }
        response.writeHead(answer.statusCode ?? 500, answer.headers);
        if (kind === undefined) answer.pipe(response);
        else {
          answer.once("data", (piece: Buffer) => {
            response.write(piece.subarray(0, piece.length / 2), () => request.socket.resetAndDestroy());
            answer.destroy();
          });
        }
      },
    );
    upstream.on("error", () => request.socket.destroy());
    request.pipe(upstream);
  }
}
