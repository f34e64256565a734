/**
 * Control API of the agent: HTTP/1.1 with JSON bodies on a Unix socket that only its user can open.
 *
 *     GET  /v1/status                                        AgentStatus
 *     GET  /v1/disks/NAME                                    DiskStatus
 *     POST /v1/point   {disk|group, applicationConsistent?}  {points: [PointSummary]}, when they are committed
 *     POST /v1/pause   {disk|group}, or {} for all           {disks: [NAME]}
 *     POST /v1/resume  likewise; also protects again what was stopped
 *     POST /v1/reload                                        ReloadSummary; the configuration is read again
 *     POST /v1/stop    {drain?: true}                        {stopped: true}, after the last points; then the agent ends
 *                      {disk|group, drain?: true}            StopSummary, likewise; the agent goes on
 *     PUT  /v1/limit   {vault, bytesPerSecond}               likewise; a number, "off", or null: as the configuration says
 *     GET  /v1/failover                                      {runs: [RunSummary]} of all vaults; /v1/failover/RUN: one
 *     POST /v1/failover {verb, run, …}                       RunDone; the verbs and their fields are in failover-runs.ts
 *     GET  /v1/jobs                                          {jobs: [JobSummary]}
 *     GET  /metrics                                          Prometheus text
 *     GET  /healthz                                          {health}; 200, or 503 when it is Critical
 *
 * An error is the object that the command line prints with `--json`: {type: "error", code, message,
 * remedy, detail?}; its HTTP status follows from the code. When a client disconnects, its point
 * request is given up; the disk's own schedule goes on.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { isIP } from "node:net";
import { type ErrorCode, TidemarkError } from "../../engine/index.ts";
import { errorReport } from "../errors.ts";
import type { FailoverRuns } from "./failover-runs.ts";
import type { ReloadSummary } from "./summaries.ts";
import type { Supervisor, Target } from "./supervisor.ts";

/** What the API acts on. */
export interface ControlTarget {
  readonly supervisor: Pick<Supervisor, "status" | "disk" | "point" | "pause" | "resume" | "stopDisks" | "setLimit">;
  readonly failovers: Pick<FailoverRuns, "list" | "show" | "jobs" | "operate">;
  readonly reload: () => Promise<ReloadSummary>;
  readonly stop: (options: { readonly drain: boolean }) => Promise<void>;
  readonly metrics: {
    readonly contentType: string;
    text(): Promise<string>;
    onRequest(route: string, status: number): void;
  };
}

/**
 * What is in a request: its fields, the rest of its path, and a signal that aborts when the client
 * goes away.
 */
interface Call {
  readonly fields: Readonly<Record<string, unknown>>;
  readonly rest: string;
  readonly signal: AbortSignal;
}

/** A JSON value, with status 200 unless it names another, or a text of another kind. */
type Reply =
  | { readonly json: object; readonly status?: number }
  | { readonly text: string; readonly contentType: string };

interface Route {
  readonly method: "GET" | "POST" | "PUT";
  /** A path that ends in `/` takes one more word, the name. */
  readonly path: string;
  readonly answer: (target: ControlTarget, call: Call) => Promise<Reply>;
}

/** The largest request is a limit or a name. */
const bodyBytesMax = 16 * 1024;

const monitoringRoutes: readonly Route[] = [
  {
    method: "GET",
    path: "/metrics",
    answer: async ({ metrics }) => ({ text: await metrics.text(), contentType: metrics.contentType }),
  },
  {
    method: "GET",
    path: "/healthz",
    answer: async ({ supervisor }) => {
      const { health } = supervisor.status();
      return { json: { health }, status: health === "Critical" ? 503 : 200 };
    },
  },
];

const controlRoutes: readonly Route[] = [
  { method: "GET", path: "/v1/status", answer: async ({ supervisor }) => ({ json: supervisor.status() }) },
  { method: "GET", path: "/v1/disks/", answer: async ({ supervisor }, { rest }) => ({ json: supervisor.disk(rest) }) },
  {
    method: "POST",
    path: "/v1/point",
    answer: async ({ supervisor }, { fields, signal }) => {
      const { applicationConsistent, ...names } = only(fields, "disk", "group", "applicationConsistent");
      const target = targetOf(names);
      if (target.disk === undefined && target.group === undefined)
        throw wrong("neither disk nor group is named", "name one of them");
      const options = { applicationConsistent: flag(applicationConsistent, "applicationConsistent", false), signal };
      return { json: { points: await supervisor.point(target, options) } };
    },
  },
  {
    method: "POST",
    path: "/v1/pause",
    answer: async ({ supervisor }, { fields }) => ({
      json: { disks: supervisor.pause(targetOf(only(fields, "disk", "group"))) },
    }),
  },
  {
    method: "POST",
    path: "/v1/resume",
    answer: async ({ supervisor }, { fields }) => ({
      json: { disks: await supervisor.resume(targetOf(only(fields, "disk", "group"))) },
    }),
  },
  {
    method: "POST",
    path: "/v1/reload",
    answer: async ({ reload }, { fields }) => {
      only(fields);
      return { json: await reload() };
    },
  },
  {
    method: "POST",
    path: "/v1/stop",
    answer: async ({ stop, supervisor }, { fields }) => {
      const { drain, ...names } = only(fields, "disk", "group", "drain");
      const target = targetOf(names);
      const options = { drain: flag(drain, "drain", true) };
      if (target.disk !== undefined || target.group !== undefined)
        return { json: await supervisor.stopDisks(target, options) };
      await stop(options);
      return { json: { stopped: true } };
    },
  },
  {
    method: "PUT",
    path: "/v1/limit",
    answer: async ({ supervisor }, { fields }) => {
      const { vault, bytesPerSecond } = only(fields, "vault", "bytesPerSecond");
      if (typeof vault !== "string") throw wrong("vault is missing", "name the vault as the configuration does");
      supervisor.setLimit(vault, limitOf(bytesPerSecond));
      return { json: { vault, bytesPerSecond } };
    },
  },
  {
    method: "GET",
    path: "/v1/failover",
    answer: async ({ failovers }, { signal }) => ({ json: { runs: await failovers.list(signal) } }),
  },
  {
    method: "GET",
    path: "/v1/failover/",
    answer: async ({ failovers }, { rest, signal }) => ({ json: await failovers.show(rest, signal) }),
  },
  {
    method: "POST",
    path: "/v1/failover",
    answer: async ({ failovers }, { fields, signal }) => ({ json: await failovers.operate(fields, signal) }),
  },
  {
    method: "GET",
    path: "/v1/jobs",
    answer: async ({ failovers }, { signal }) => ({ json: { jobs: await failovers.jobs(signal) } }),
  },
  ...monitoringRoutes,
];

/**
 * The server of the API, not listening yet. It may listen before `target` resolves: requests wait
 * for that.
 */
export function createControlServer(target: Promise<ControlTarget>): Server {
  return serverOf(controlRoutes, target);
}

/** Each is open for 5 s after its last request. */
const monitoringConnectionsMax = 64;

/**
 * Metrics and health only, for an address that other machines reach. Requests are answered that name
 * an IP address, `localhost` or `host` in their Host header. A page of a browser whose own name
 * resolves to this machine (DNS rebinding) sends that name, and is refused.
 */
export function createMonitoringServer(target: Promise<ControlTarget>, host: string): Server {
  const server = serverOf(monitoringRoutes, target, host);
  server.maxConnections = monitoringConnectionsMax;
  return server;
}

function serverOf(routes: readonly Route[], target: Promise<ControlTarget>, host?: string): Server {
  return createServer((request, response) => {
    void target.then(async (ready) => await serve({ routes, host }, ready, request, response));
  });
}

/** What a server answers, and the only name that it answers to, if it has one. */
interface Service {
  readonly routes: readonly Route[];
  readonly host: string | undefined;
}

/** Throws ACCESS_REFUSED for a request that was sent to another name. */
function checkHost(host: string | undefined, sent: string | undefined): void {
  if (host === undefined || sent === undefined) return;
  const name = sent.replace(/:\d{1,5}$/, "").toLowerCase();
  const isAddress = isIP(name.replace(/^\[|\]$/g, "")) !== 0;
  if (isAddress || name === "localhost" || name === host.toLowerCase()) return;
  throw new TidemarkError("ACCESS_REFUSED", `metrics are not served under the name ${name}`, {
    remedy: "ask for an IP address of this machine, or give metrics.listen that name",
  });
}

/** Never rejects: every failure becomes the response. */
async function serve(
  { routes, host }: Service,
  target: ControlTarget,
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
    checkHost(host, request.headers.host);
    const { route, rest } = find(routes, request);
    pattern = route.path;
    const fields = route.method === "GET" ? {} : await readFields(request);
    const reply = await route.answer(target, { fields, rest, signal: gone.signal });
    if ("json" in reply) send(response, reply.status ?? 200, "application/json", `${JSON.stringify(reply.json)}\n`);
    else send(response, 200, reply.contentType, reply.text);
  } catch (error) {
    const status = error instanceof HttpError ? error.status : statusOf(error);
    if (error instanceof HttpError && error.allow !== undefined) response.setHeader("Allow", error.allow);
    // The unread rest of a refused body would be parsed as the next request.
    if (!request.complete) response.setHeader("Connection", "close");
    send(response, status, "application/json", `${JSON.stringify({ type: "error", ...errorReport(error) })}\n`);
  }
  target.metrics.onRequest(pattern, response.statusCode);
}

function send(response: ServerResponse, status: number, contentType: string, body: string): void {
  response.writeHead(status, {
    "Content-Type": contentType,
    "Content-Length": Buffer.byteLength(body),
    "Cache-Control": "no-store",
  });
  response.end(body);
}

function find(routes: readonly Route[], request: IncomingMessage): { readonly route: Route; readonly rest: string } {
  const path = (request.url ?? "").replace(/\?.*$/s, "");
  const matching = routes.filter((route) =>
    route.path.endsWith("/") ? path.startsWith(route.path) : path === route.path,
  );
  const route = matching.find(({ method }) => method === request.method);
  if (route !== undefined) return { route, rest: decoded(path.slice(route.path.length)) };
  const known = routes
    .map(({ method, path: pattern }) => `${method} ${pattern}${pattern.endsWith("/") ? "NAME" : ""}`)
    .join(", ");
  if (matching.length === 0) throw new HttpError(404, `there is nothing at ${path}`, `ask for one of ${known}`);
  const allow = matching.map(({ method }) => method).join(", ");
  throw new HttpError(405, `${path} does not answer ${request.method ?? "that"}`, `use ${allow}`, allow);
}

function decoded(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch (error) {
    if (error instanceof URIError)
      throw wrong("the name in the path is not encoded as a URL", "encode it as UTF-8 and percent signs");
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
    throw wrong("the request is not a JSON object", "send {…}");
  return Object.fromEntries(Object.entries(value));
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) throw wrong("the request is not JSON", "send a JSON object");
    throw error;
  }
}

/** `fields`, when all of them are in `names`: a misspelt field is refused, not ignored. */
function only(
  fields: Readonly<Record<string, unknown>>,
  ...names: readonly string[]
): Readonly<Record<string, unknown>> {
  const unknown = Object.keys(fields).find((name) => !names.includes(name));
  if (unknown === undefined) return fields;
  throw wrong(
    `${unknown} is not a field of this request`,
    names.length === 0 ? "send none" : `its fields are ${names.join(", ")}`,
  );
}

function targetOf({ disk, group }: Readonly<Record<string, unknown>>): Target {
  const name = (value: unknown, what: string): string | undefined => {
    if (value === undefined || value === null) return undefined;
    if (typeof value !== "string") throw wrong(`${what} is no name`, "give it as text");
    return value.normalize("NFC");
  };
  const target = { disk: name(disk, "disk"), group: name(group, "group") };
  if (target.disk !== undefined && target.group !== undefined)
    throw wrong("both disk and group are named", "name one of them");
  return target;
}

function limitOf(value: unknown): number | undefined {
  if (value === null) return undefined;
  if (value === "off") return Number.POSITIVE_INFINITY;
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 1024) return value;
  throw wrong(
    "bytesPerSecond is not a limit",
    'give a whole number from 1024, "off", or null for the limits of the configuration',
  );
}

function flag(value: unknown, name: string, byDefault: boolean): boolean {
  if (value === undefined) return byDefault;
  if (typeof value !== "boolean") throw wrong(`${name} is neither true nor false`, "give one of them");
  return value;
}

function wrong(message: string, remedy: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", message, { remedy });
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

const statuses: Partial<Readonly<Record<ErrorCode, number>>> = {
  INVALID_ARGUMENT: 400,
  ACCESS_REFUSED: 403,
  VAULT_NOT_FOUND: 404,
  DISK_NOT_FOUND: 404,
  POINT_NOT_FOUND: 404,
  WRITER_ACTIVE: 409,
  SEAT_LOST: 409,
  INTERRUPTED: 503,
  STORE_UNREACHABLE: 503,
};

function statusOf(error: unknown): number {
  return error instanceof TidemarkError ? (statuses[error.code] ?? 500) : 500;
}
