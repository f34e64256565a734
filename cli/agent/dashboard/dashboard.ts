/**
 * Dashboard of the agent: a page for browsers, the part of the control API that it needs, and a stream
 * of server-sent events.
 *
 *     GET /v1/access          {access: "none" | "look" | "act"}: what the client may do
 *     GET /v1/live            stream: `status` (AgentStatus) once a second, `log` (LogEntry) as it happens
 *     GET /v1/series/NAME     Series of a disk
 *     GET /v1/status, /v1/disks/NAME, /v1/points/NAME, /v1/vaults/NAME, /v1/failover, /v1/jobs
 *     POST /v1/point, /v1/pause, /v1/resume; /v1/failover with the verbs `test` and `cleanup`
 *
 * Who may do what stands in access.ts. A client that does not take its events is cut off, and
 * connects again.
 *
 * Cost: the status is made and encoded once a second for all clients, and not while there are none.
 */
import { once } from "node:events";
import { readFile } from "node:fs/promises";
import { createServer as createHttpServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import { createServer as createTlsServer } from "node:https";
import { systemCode, TidemarkError } from "../../../engine/index.ts";
import { formatListen } from "../../../engine/internal.ts";
import { wrongInput } from "../../errors.ts";
import type { DashboardConfig } from "../config.ts";
import { type ControlTarget, controlRoutes } from "../control-server.ts";
import { type Call, type Routes, serviceListener } from "../http-service.ts";
import { PeriodicTask } from "../periodic-task.ts";
import type { Clock, DiskEvent } from "../ports.ts";
import type { AgentStatus } from "../supervisor.ts";
import { type AccessRules, accessOf, admit, readToken } from "./access.ts";
import { History, sampleEveryMs } from "./history.ts";
import { pageRoutes } from "./page-files.ts";

const liveEveryMs = 1_000;
/** A browser opens six connections, and one of them stays. */
const connectionsMax = 128;
/** What a client may leave unread. */
const waitingBytesMax = 8 * 1024 * 1024;

/** Routes of the control socket that a page may use. */
const shared = new Set([
  "GET /v1/status",
  "GET /v1/disks/",
  "GET /v1/points/",
  "GET /v1/vaults/",
  "GET /v1/failover",
  "GET /v1/jobs",
  "POST /v1/point",
  "POST /v1/pause",
  "POST /v1/resume",
]);

/** Fields of a failover that a page may send: none of them names a command, or a path at the source. */
const failoverFields: Readonly<Record<string, readonly string[]>> = {
  test: ["verb", "vault", "disks", "group", "to", "point", "ttl", "note"],
  cleanup: ["verb", "vault", "run", "note"],
};

const headers: Readonly<Record<string, string>> = {
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; " +
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
  "Cross-Origin-Opener-Policy": "same-origin",
  "Cross-Origin-Resource-Policy": "same-origin",
  "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
  "Referrer-Policy": "no-referrer",
  "X-Content-Type-Options": "nosniff",
  "X-Frame-Options": "DENY",
};

export interface DashboardParts {
  readonly target: ControlTarget;
  readonly clock: Clock;
}

export class Dashboard implements AsyncDisposable {
  /** `http://HOST:PORT/` or `https://…`. */
  readonly url: string;
  readonly #server: Server;
  readonly #history: History;
  readonly #clients: Set<ServerResponse>;
  readonly #tasks: readonly PeriodicTask[];

  private constructor(
    server: Server,
    url: string,
    history: History,
    clients: Set<ServerResponse>,
    parts: DashboardParts,
  ) {
    this.#server = server;
    this.url = url;
    this.#history = history;
    this.#clients = clients;
    const { clock, target } = parts;
    const status = (): AgentStatus => target.supervisor.status();
    this.#tasks = [
      new PeriodicTask({ clock, firstAfterMs: 0, everyMs: sampleEveryMs, work: async () => history.sample(status()) }),
      new PeriodicTask({
        clock,
        firstAfterMs: liveEveryMs,
        everyMs: liveEveryMs,
        work: async () => this.#send("status", status),
      }),
    ];
  }

  /** Resolves when it answers. Errors: INVALID_ARGUMENT for what the configuration names. */
  static async start(config: DashboardConfig, parts: DashboardParts): Promise<Dashboard> {
    const { host, port } = config.listen;
    const tls = config.tls === undefined ? undefined : await readPem(config.tls);
    const token = config.token === undefined ? undefined : await readToken(config.token);
    const rules: AccessRules = { host, token, hasCertificates: tls?.ca !== undefined };
    const history = new History();
    const clients = new Set<ServerResponse>();
    const service = {
      routes: { ...ownRoutes(rules, history, clients), ...sharedRoutes, ...pageRoutes<ControlTarget>() },
      headers,
      admit: (request: IncomingMessage) => admit(rules, request),
    };
    const listener = serviceListener(service, Promise.resolve(parts.target));
    let server: Server;
    try {
      const { ca } = tls ?? {};
      const checks = ca === undefined ? {} : { requestCert: true, rejectUnauthorized: true };
      server =
        tls === undefined
          ? createHttpServer(listener)
          : createTlsServer({ ...tls, ...checks, minVersion: "TLSv1.2" }, listener);
      server.maxConnections = connectionsMax;
      server.listen({ host, port });
      await once(server, "listening");
    } catch (error) {
      throw new TidemarkError(
        "INVALID_ARGUMENT",
        `the dashboard cannot be served on ${formatListen(config.listen)} (${systemCode(error) ?? "unknown"})`,
        {
          remedy: "give dashboard.listen a free address of this machine, and dashboard.tls fitting files",
          cause: error,
        },
      );
    }
    const address = server.address();
    const bound = typeof address === "object" && address !== null ? address.port : port;
    const name = host.includes(":") ? `[${host}]` : host;
    const url = `${tls === undefined ? "http" : "https"}://${name}:${bound}/`;
    return new Dashboard(server, url, history, clients, parts);
  }

  onEvent(event: DiskEvent): void {
    const entry = this.#history.note(event);
    if (entry !== undefined) this.#send("log", () => entry);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all(this.#tasks.map(async (task) => await task.stop()));
    const closed = once(this.#server, "close");
    this.#server.close();
    this.#server.closeAllConnections();
    await closed;
  }

  #send(event: "status" | "log", value: () => object): void {
    if (this.#clients.size === 0) return;
    const text = eventText(event, value());
    for (const client of this.#clients) {
      if (client.writableLength > waitingBytesMax) client.destroy();
      else client.write(text);
    }
  }
}

function ownRoutes(rules: AccessRules, history: History, clients: Set<ServerResponse>): Routes<ControlTarget> {
  return {
    "GET /v1/access": async (_, { request }) => ({ json: { access: accessOf(rules, request) } }),
    "GET /v1/live": async ({ supervisor }) => ({
      contentType: "text/event-stream",
      stream: (response) => {
        clients.add(response);
        response.on("close", () => clients.delete(response));
        response.write(eventText("status", supervisor.status()));
        for (const entry of history.entries) response.write(eventText("log", entry));
      },
    }),
    "GET /v1/series/": async (_, { rest }) => ({ json: history.series(rest) }),
    "POST /v1/failover": async ({ failovers }, call) => ({
      json: await failovers.operate(checkedFields(call), call.signal),
    }),
  };
}

const sharedRoutes: Routes<ControlTarget> = Object.fromEntries(
  Object.entries(controlRoutes).filter(([route]) => shared.has(route)),
);

function checkedFields({ fields }: Call): Call["fields"] {
  const verb = typeof fields["verb"] === "string" ? fields["verb"] : "";
  const allowed = Object.hasOwn(failoverFields, verb) ? failoverFields[verb] : undefined;
  const verbs = Object.keys(failoverFields).join(", ");
  if (allowed === undefined)
    throw wrongInput(
      `the dashboard does not do ${JSON.stringify(verb)}`,
      `send one of ${verbs}, or use \`tidemark failover\``,
    );
  const other = Object.keys(fields).find((name) => !allowed.includes(name));
  if (other === undefined) return fields;
  throw wrongInput(`${other} is not a field of this request`, `its fields are ${allowed.join(", ")}`);
}

/** JSON has no line break outside of texts, and escapes those inside. */
function eventText(event: string, value: object): string {
  return `event: ${event}\ndata: ${JSON.stringify(value)}\n\n`;
}

async function readPem({ key, cert, ca }: NonNullable<DashboardConfig["tls"]>): Promise<Pem> {
  const read = async (path: string): Promise<Buffer> => {
    try {
      return await readFile(path);
    } catch (error) {
      const message = `the file ${path} for dashboard.tls cannot be read (${systemCode(error) ?? "unknown"})`;
      throw new TidemarkError("INVALID_ARGUMENT", message, {
        remedy: "name PEM files that this user may read",
        cause: error,
      });
    }
  };
  return { key: await read(key), cert: await read(cert), ...(ca === undefined ? {} : { ca: await read(ca) }) };
}

interface Pem {
  readonly key: Buffer;
  readonly cert: Buffer;
  readonly ca?: Buffer;
}
