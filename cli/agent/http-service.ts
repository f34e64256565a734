/**
 * HTTP service of the agent: routes that answer with JSON, text or a stream, and errors in the form
 * of the command line.
 *
 * A service is a list of routes and what it asks of a request before it answers: the control socket
 * asks for nothing, because only its user can open it; an address that browsers reach checks more.
 *
 * Invariant: every request gets one answer. A request that fails changes no other one, and a body has
 * at most 16 KiB.
 */
import type { IncomingMessage, RequestListener, ServerResponse } from "node:http";
import { isIP } from "node:net";
import { type ErrorCode, TidemarkError } from "../../engine/index.ts";
import { errorReport, wrongInput } from "../errors.ts";

/**
 * What is in a request: its fields, the rest of its path, and a signal that aborts when the client
 * goes away.
 */
export interface Call {
  readonly fields: Readonly<Record<string, unknown>>;
  readonly rest: string;
  readonly signal: AbortSignal;
  readonly request: IncomingMessage;
}

/** A JSON value with status 200 unless it names another, content of another kind, or a stream that goes on. */
export type Reply =
  | { readonly json: object; readonly status?: number }
  | { readonly content: string | Buffer; readonly contentType: string }
  | { readonly stream: (response: ServerResponse) => void; readonly contentType: string };

type Answer<Target> = (target: Target, call: Call) => Promise<Reply>;

/** Answers by method and path, such as `GET /v1/status`. A path that ends in `/` takes one more word, the name. */
export type Routes<Target> = Readonly<Record<string, Answer<Target>>>;

/** What a server answers. */
export interface Service<Target> {
  readonly routes: Routes<Target>;
  /** Headers of every answer. */
  readonly headers?: Readonly<Record<string, string>>;
  /** Throws for a request that is not answered. */
  readonly admit?: (request: IncomingMessage) => void;
  /** Told of each answer; `pattern` is the path of its route. */
  readonly onAnswer?: (target: Target, pattern: string, status: number) => void;
}

/** The largest request is a limit or a name. */
const bodyBytesMax = 16 * 1024;

/** Answers requests as `service` says, once `target` has resolved. */
export function serviceListener<Target>(service: Service<Target>, target: Promise<Target>): RequestListener {
  return (request, response) => {
    void target.then(async (ready) => await serve(service, ready, request, response));
  };
}

/**
 * Throws ACCESS_REFUSED for a request that was sent to another name than an IP address, `localhost` or
 * `host`. A page of a browser whose own name resolves to this machine (DNS rebinding) sends that name.
 */
export function checkHost(host: string, sent: string | undefined, setting: string): void {
  if (sent === undefined) return;
  const name = sent.replace(/:\d{1,5}$/, "").toLowerCase();
  const isAddress = isIP(name.replace(/^\[|\]$/g, "")) !== 0;
  if (isAddress || name === "localhost" || name === host.toLowerCase()) return;
  throw new TidemarkError("ACCESS_REFUSED", `${setting} does not answer to the name ${name}`, {
    remedy: `ask for an IP address of this machine, or give ${setting} that name`,
  });
}

/** Never rejects: every failure becomes the response. */
async function serve<Target>(
  { routes, headers = {}, admit, onAnswer }: Service<Target>,
  target: Target,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  const gone = new AbortController();
  response.on("close", () =>
    gone.abort(new TidemarkError("INTERRUPTED", "the client disconnected", { remedy: "send the request again" })),
  );
  // A reset connection also emits `close`.
  response.on("error", () => gone.abort());
  let pattern = "unknown";
  try {
    for (const [name, value] of Object.entries(headers)) response.setHeader(name, value);
    admit?.(request);
    const { answer, path, rest } = find(routes, request);
    pattern = path;
    const fields = request.method === "GET" ? {} : await readFields(request);
    const reply = await answer(target, { fields, rest, signal: gone.signal, request });
    if ("json" in reply) send(response, reply.status ?? 200, "application/json", `${JSON.stringify(reply.json)}\n`);
    else if ("content" in reply) send(response, 200, reply.contentType, reply.content);
    else {
      response.writeHead(200, { "Content-Type": reply.contentType, "Cache-Control": "no-store" });
      reply.stream(response);
    }
  } catch (error) {
    const status = error instanceof HttpError ? error.status : statusOf(error);
    if (error instanceof HttpError && error.allow !== undefined) response.setHeader("Allow", error.allow);
    // The unread rest of a refused body would be parsed as the next request.
    if (!request.complete) response.setHeader("Connection", "close");
    send(response, status, "application/json", `${JSON.stringify({ type: "error", ...errorReport(error) })}\n`);
  }
  onAnswer?.(target, pattern, response.statusCode);
}

function send(response: ServerResponse, status: number, contentType: string, body: string | Buffer): void {
  response.writeHead(status, {
    "Content-Type": contentType,
    "Content-Length": Buffer.byteLength(body),
    "Cache-Control": "no-store",
  });
  response.end(body);
}

interface FoundRoute<Target> {
  readonly answer: Answer<Target>;
  readonly path: string;
  /** The name behind the path. */
  readonly rest: string;
}

function find<Target>(routes: Routes<Target>, request: IncomingMessage): FoundRoute<Target> {
  const asked = (request.url ?? "").replace(/\?.*$/s, "");
  const all = Object.entries(routes).map(([key, answer]) => {
    const [method = "", path = ""] = key.split(" ");
    return { method, path, answer };
  });
  const matching = all.filter(({ path }) =>
    path.length > 1 && path.endsWith("/") ? asked.startsWith(path) : asked === path,
  );
  const route = matching.find(({ method }) => method === request.method);
  if (route !== undefined) return { ...route, rest: decoded(asked.slice(route.path.length)) };
  const known = all.map(({ method, path }) => `${method} ${path}${path.endsWith("/") ? "NAME" : ""}`).join(", ");
  if (matching.length === 0) throw new HttpError(404, `there is nothing at ${asked}`, `ask for one of ${known}`);
  const allow = matching.map(({ method }) => method).join(", ");
  throw new HttpError(405, `${asked} does not answer ${request.method ?? "that"}`, `use ${allow}`, allow);
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch (error) {
    if (error instanceof URIError)
      throw wrongInput("the name in the path is not encoded as a URL", "encode it as UTF-8 and percent signs");
    throw error;
  }
}

async function readFields(request: IncomingMessage): Promise<Readonly<Record<string, unknown>>> {
  const parts: Buffer[] = [];
  let bytes = 0;
  for await (const part of request as AsyncIterable<Buffer>) {
    bytes += part.length;
    if (bytes > bodyBytesMax)
      throw new HttpError(
        413,
        `the request is larger than ${bodyBytesMax} bytes`,
        "send only the fields that are documented",
      );
    parts.push(part);
  }
  const text = Buffer.concat(parts).toString("utf8");
  if (text.trim() === "") return {};
  const value = parsed(text);
  if (typeof value !== "object" || value === null || Array.isArray(value))
    throw wrongInput("the request is not a JSON object", "send {…}");
  return Object.fromEntries(Object.entries(value));
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) throw wrongInput("the request is not JSON", "send a JSON object");
    throw error;
  }
}

/** What HTTP itself has a status for. */
class HttpError extends TidemarkError {
  readonly status: number;
  readonly allow: string | undefined;

  constructor(status: number, message: string, remedy: string, allow?: string) {
    super("INVALID_ARGUMENT", message, { remedy });
    this.status = status;
    this.allow = allow;
  }
}

/**
 * 4xx: the request is wrong, or conflicts with the state of what it names (409). 5xx: the agent cannot
 * do what it asks for; 500 where nothing else is said.
 */
const statuses: Partial<Readonly<Record<ErrorCode, number>>> = {
  INVALID_ARGUMENT: 400,
  UNSUPPORTED: 400,
  ACCESS_REFUSED: 403,
  KEY_ALTERED: 403,
  KEY_EXPIRED: 403,
  KEY_FOREIGN: 403,
  KEY_USED: 403,
  AGENT_REMOVED: 403,
  VAULT_NOT_FOUND: 404,
  DISK_NOT_FOUND: 404,
  POINT_NOT_FOUND: 404,
  SOURCE_NOT_FOUND: 404,
  VAULT_EXISTS: 409,
  POINT_HELD: 409,
  WRITER_ACTIVE: 409,
  SEAT_LOST: 409,
  COLLECTION_ACTIVE: 409,
  OBJECT_EXISTS: 409,
  CONDITION_FAILED: 409,
  LEASE_HELD: 409,
  LEASE_LOST: 409,
  SOURCE_SHRUNK: 409,
  TARGET_EXISTS: 409,
  TARGET_TOO_SMALL: 409,
  TARGET_IS_SOURCE: 409,
  INTERRUPTED: 503,
  STORE_UNREACHABLE: 503,
  CUT_TIMED_OUT: 503,
  AGENT_UNREACHABLE: 503,
  NO_SPACE: 507,
};

function statusOf(error: unknown): number {
  return error instanceof TidemarkError ? (statuses[error.code] ?? 500) : 500;
}
