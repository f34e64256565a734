/**
 * Fault injection on HTTP: a reverse proxy that stands between clients and a store and does to
 * chosen requests what networks and servers do. It loses answers, resets connections, answers 503,
 * flips bits, delays, or says nothing. Everything else it passes on.
 *
 * Invariant: every fault is planned, and the proxy knows which plans have fired. A run in which a
 * planned fault has not fired proves nothing.
 */
import http from "node:http";
import type { AddressInfo } from "node:net";

export type HttpFault =
  /** The connection is reset while the request's body arrives; the store sees nothing. */
  | "reset-request"
  /** The store executes the request, and the connection is reset before the answer. */
  | "lose-answer"
  /** The answer's body breaks off in the middle. */
  | "truncate-answer"
  /** One bit of the request's body is wrong. */
  | "flip-request"
  /** One bit of the answer's body is wrong. */
  | "flip-answer"
  /** Nothing is ever answered, and the store sees nothing. */
  | "freeze"
  | { readonly status: number; readonly retryAfterSeconds?: number };

/** Requests that a plan applies to: those of a method, or those that a function chooses. */
type Matching = string | ((request: http.IncomingMessage) => boolean);

export interface HttpPlan {
  readonly matching: Matching;
  readonly kind: HttpFault;
  /** Requests that still pass before the fault strikes. */
  passing: number;
  /** Requests that are still to be hit. */
  left: number;
}

export interface FaultProxyOptions {
  /** Called with each request before anything is done with it. */
  readonly onRequest?: (request: http.IncomingMessage, response: http.ServerResponse) => void;
}

export class FaultProxy implements AsyncDisposable {
  /** Every request waits for this before it is looked at. Undefined: no wait. */
  hold: (() => Promise<void>) | undefined;
  readonly #server: http.Server;
  readonly #agent = new http.Agent({ keepAlive: true });
  readonly #onRequest: FaultProxyOptions["onRequest"];
  readonly #plans: HttpPlan[] = [];
  #target: URL;

  private constructor(target: URL, { onRequest }: FaultProxyOptions) {
    this.#target = target;
    this.#onRequest = onRequest;
    this.#server = http.createServer({ keepAliveTimeout: 60_000 }, (request, response) => {
      void this.#serve(request, response);
    });
  }

  /** Listens on a free port of the loopback interface, in front of `target`. */
  static async open(target: string, options: FaultProxyOptions = {}): Promise<FaultProxy> {
    const proxy = new FaultProxy(new URL(target), options);
    await new Promise<void>((resolve, reject) => proxy.#server.once("error", reject).listen(0, "127.0.0.1", resolve));
    return proxy;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** `url` of the target, as seen through this proxy. */
  through(url: string): string {
    const through = new URL(url);
    through.hostname = "127.0.0.1";
    through.port = String(this.port);
    return through.href;
  }

  /** From now on requests go to `target`. */
  retarget(target: string): void {
    this.#target = new URL(target);
  }

  /**
   * Does `kind` to `times` requests that match, after `passing` of them have passed. Several plans
   * count each for itself. The plan that is returned tells what is left of it.
   */
  plan(matching: Matching, kind: HttpFault, times = 1, passing = 0): HttpPlan {
    const plan: HttpPlan = { matching, kind, passing, left: times };
    this.#plans.push(plan);
    return plan;
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

  async #serve(request: http.IncomingMessage, response: http.ServerResponse): Promise<void> {
    this.#onRequest?.(request, response);
    await this.hold?.();
    if (response.destroyed) return; // the client has not waited
    const plan = this.#planFor(request);
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
    this.#forward(request, response, plan);
  }

  #planFor(request: http.IncomingMessage): HttpPlan | undefined {
    const plans = this.#plans.filter(({ left, matching }) => {
      return left > 0 && (typeof matching === "string" ? matching === request.method : matching(request));
    });
    const plan = plans.find(({ passing }) => passing === 0);
    for (const waiting of plans) if (waiting.passing > 0) waiting.passing -= 1;
    if (plan !== undefined) plan.left -= 1;
    return plan;
  }

  /** Passes the request on; absolute request targets, as a proxy gets them, too. */
  #forward(request: http.IncomingMessage, response: http.ServerResponse, plan: HttpPlan | undefined): void {
    const asked = new URL(request.url ?? "/", this.#target);
    const upstream = http.request(
      {
        agent: this.#agent,
        host: this.#target.hostname.replace(/^\[|\]$/g, ""),
        port: this.#target.port,
        method: request.method,
        path: asked.pathname + asked.search,
        headers: request.headers,
      },
      (answer) => this.#answer(request, response, answer, plan),
    );
    const end = (): void => {
      request.socket.destroy();
    };
    upstream.on("error", end);
    // A client that gives up ends its request at the store too, as its connection would.
    response.on("close", () => {
      if (!response.writableFinished) upstream.destroy();
    });
    if (plan?.kind === "flip-request") request.once("data", flipBit);
    request.pipe(upstream);
  }

  #answer(
    request: http.IncomingMessage,
    response: http.ServerResponse,
    answer: http.IncomingMessage,
    plan: HttpPlan | undefined,
  ): void {
    if (plan?.kind === "lose-answer") {
      answer.resume();
      request.socket.resetAndDestroy();
      return;
    }
    // A store that dies in the middle of an answer.
    answer.on("error", () => request.socket.destroy());
    response.writeHead(answer.statusCode ?? 500, answer.headers);
    if (plan?.kind === "truncate-answer") {
      answer.once("data", (piece: Buffer) => {
        response.write(piece.subarray(0, piece.length / 2), () => request.socket.resetAndDestroy());
        answer.destroy();
      });
      return;
    }
    if (plan?.kind === "flip-answer") {
      const isContent = answer.statusCode === 200 || answer.statusCode === 206;
      // An answer without content cannot be flipped: the fault waits for the next one.
      if (isContent && answer.headers["content-length"] !== "0") answer.once("data", flipBit);
      else plan.left += 1;
    }
    answer.pipe(response);
  }
}

/** In place: the bytes are the reader's own copy of what came over the socket. */
function flipBit(piece: Buffer): void {
  const at = Math.floor(piece.length / 2);
  piece.writeUInt8(piece.readUInt8(at) ^ 1, at);
}
