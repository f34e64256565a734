/**
 * Control API of the agent: HTTP/1.1 with JSON bodies on a Unix socket that only its user can open.
 *
 *     GET  /v1/status                                        AgentStatus
 *     GET  /v1/disks/NAME                                    DiskStatus
 *     GET  /v1/points/NAME                                   {disk, points: [AgentPoint]}, oldest first, read from the vault
 *     GET  /v1/vaults/NAME                                   VaultStats: what the points take; reads every map of the vault
 *     POST /v1/point   {disk|group, applicationConsistent?}  {points: [PointSummary]}, when they are committed
 *     POST /v1/pause   {disk|group}, or {} for all           {disks: [NAME]}
 *     POST /v1/resume  likewise; also protects again what was stopped
 *     POST /v1/reload                                        ReloadSummary; the configuration is read again
 *     POST /v1/stop    {drain?: true}                        {stopped: true}, after the last points; then the agent ends
 *                      {disk|group, drain?: true}            StopSummary, likewise; the agent goes on
 *     PUT  /v1/limit   {vault, bytesPerSecond}               likewise; a number, "off", or null: as the configuration says
 *     GET  /v1/failover                                      AgentRuns: of all vaults that can be asked; /v1/failover/RUN: one
 *     POST /v1/failover {verb, run|plan|disks, …}            RunDone or PlanRunDone; the verbs and their fields are in failover-verbs.ts
 *     GET  /v1/jobs                                          AgentJobs: likewise
 *     GET  /metrics                                          Prometheus text
 *     GET  /healthz                                          {health}; 200, or 503 when it is Critical
 *
 * An error is the object that the command line prints with `--json`: {type: "error", code, message,
 * remedy, detail?}; its HTTP status follows from the code. When a client disconnects, its point
 * request is given up; the disk's own schedule goes on.
 */
import { createServer, type IncomingMessage, type Server } from "node:http";
import { wrongInput } from "../errors.ts";
import type { FailoverRuns } from "./failover-runs.ts";
import { checkHost, type Routes, serviceListener } from "./http-service.ts";
import type { ReloadSummary } from "./summaries.ts";
import type { Supervisor, Target } from "./supervisor.ts";

/** What the API acts on. */
export interface ControlTarget {
  readonly supervisor: Pick<
    Supervisor,
    "status" | "disk" | "points" | "vaultStats" | "point" | "pause" | "resume" | "stopDisks" | "setLimit"
  >;
  readonly failovers: Pick<FailoverRuns, "list" | "show" | "jobs" | "operate">;
  readonly reload: () => Promise<ReloadSummary>;
  readonly stop: (options: { readonly drain: boolean }) => Promise<void>;
  readonly metrics: {
    readonly contentType: string;
    text(): Promise<string>;
    onRequest(route: string, status: number): void;
  };
}

const monitoringRoutes: Routes<ControlTarget> = {
  "GET /metrics": async ({ metrics }) => ({ content: await metrics.text(), contentType: metrics.contentType }),
  "GET /healthz": async ({ supervisor }) => {
    const { health } = supervisor.status();
    return { json: { health }, status: health === "Critical" ? 503 : 200 };
  },
};

export const controlRoutes: Routes<ControlTarget> = {
  "GET /v1/status": async ({ supervisor }) => ({ json: supervisor.status() }),
  "GET /v1/disks/": async ({ supervisor }, { rest }) => ({ json: supervisor.disk(rest) }),
  "GET /v1/points/": async ({ supervisor }, { rest, signal }) => ({
    json: { disk: rest.normalize("NFC"), points: await supervisor.points(rest, signal) },
  }),
  "GET /v1/vaults/": async ({ supervisor }, { rest, signal }) => ({ json: await supervisor.vaultStats(rest, signal) }),
  "POST /v1/point": async ({ supervisor }, { fields, signal }) => {
    const { applicationConsistent, ...names } = only(fields, "disk", "group", "applicationConsistent");
    const target = targetOf(names);
    if (target.disk === undefined && target.group === undefined)
      throw wrongInput("neither disk nor group is named", "name one of them");
    const options = { applicationConsistent: flag(applicationConsistent, "applicationConsistent", false), signal };
    return { json: { points: await supervisor.point(target, options) } };
  },
  "POST /v1/pause": async ({ supervisor }, { fields }) => ({
    json: { disks: supervisor.pause(targetOf(only(fields, "disk", "group"))) },
  }),
  "POST /v1/resume": async ({ supervisor }, { fields }) => ({
    json: { disks: await supervisor.resume(targetOf(only(fields, "disk", "group"))) },
  }),
  "POST /v1/reload": async ({ reload }, { fields }) => {
    only(fields);
    return { json: await reload() };
  },
  "POST /v1/stop": async ({ stop, supervisor }, { fields }) => {
    const { drain, ...names } = only(fields, "disk", "group", "drain");
    const target = targetOf(names);
    const options = { drain: flag(drain, "drain", true) };
    if (target.disk !== undefined || target.group !== undefined)
      return { json: await supervisor.stopDisks(target, options) };
    await stop(options);
    return { json: { stopped: true } };
  },
  "PUT /v1/limit": async ({ supervisor }, { fields }) => {
    const { vault, bytesPerSecond } = only(fields, "vault", "bytesPerSecond");
    if (typeof vault !== "string") throw wrongInput("vault is missing", "name the vault as the configuration does");
    supervisor.setLimit(vault, limitOf(bytesPerSecond));
    return { json: { vault, bytesPerSecond } };
  },
  "GET /v1/failover": async ({ failovers }, { signal }) => ({ json: await failovers.list(signal) }),
  "GET /v1/failover/": async ({ failovers }, { rest, signal }) => ({ json: await failovers.show(rest, signal) }),
  "POST /v1/failover": async ({ failovers }, { fields, signal }) => ({ json: await failovers.operate(fields, signal) }),
  "GET /v1/jobs": async ({ failovers }, { signal }) => ({ json: await failovers.jobs(signal) }),
  ...monitoringRoutes,
};

/**
 * The server of the API, not listening yet. It may listen before `target` resolves: requests wait
 * for that.
 */
export function createControlServer(target: Promise<ControlTarget>): Server {
  return createServer(serviceListener({ routes: controlRoutes, onAnswer: counted }, target));
}

/** Each is open for 5 s after its last request. */
const monitoringConnectionsMax = 64;

/** Metrics and health only, for an address that other machines reach. */
export function createMonitoringServer(target: Promise<ControlTarget>, host: string): Server {
  const admit = ({ headers }: IncomingMessage): void => checkHost(host, headers.host, "metrics.listen");
  const server = createServer(serviceListener({ routes: monitoringRoutes, admit, onAnswer: counted }, target));
  server.maxConnections = monitoringConnectionsMax;
  return server;
}

function counted({ metrics }: ControlTarget, pattern: string, status: number): void {
  metrics.onRequest(pattern, status);
}

/** `fields`, when all of them are in `names`: a misspelt field is refused, not ignored. */
function only(
  fields: Readonly<Record<string, unknown>>,
  ...names: readonly string[]
): Readonly<Record<string, unknown>> {
  const unknown = Object.keys(fields).find((name) => !names.includes(name));
  if (unknown === undefined) return fields;
  throw wrongInput(
    `${unknown} is not a field of this request`,
    names.length === 0 ? "send none" : `its fields are ${names.join(", ")}`,
  );
}

function targetOf({ disk, group }: Readonly<Record<string, unknown>>): Target {
  const name = (value: unknown, what: string): string | undefined => {
    if (value === undefined) return undefined;
    if (typeof value !== "string") throw wrongInput(`${what} is no name`, "give it as text");
    return value.normalize("NFC");
  };
  const target = { disk: name(disk, "disk"), group: name(group, "group") };
  if (target.disk !== undefined && target.group !== undefined)
    throw wrongInput("both disk and group are named", "name one of them");
  return target;
}

function limitOf(value: unknown): number | undefined {
  if (value === null) return undefined;
  if (value === "off") return Number.POSITIVE_INFINITY;
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 1024) return value;
  throw wrongInput(
    "bytesPerSecond is not a limit",
    'give a whole number from 1024, "off", or null for the limits of the configuration',
  );
}

function flag(value: unknown, name: string, byDefault: boolean): boolean {
  if (value === undefined) return byDefault;
  if (typeof value !== "boolean") throw wrongInput(`${name} is neither true nor false`, "give one of them");
  return value;
}
