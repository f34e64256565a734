/**
 * Life cycle of the agent: its disks, control socket, metrics and log, from the start to the last
 * point. The command `tidemark agent` runs it and passes signals on.
 */
import { once } from "node:events";
import type { Server } from "node:http";
import { systemCode, TidemarkError } from "../../engine/index.ts";
import { formatListen } from "../../engine/internal.ts";
import { errorReport } from "../errors.ts";
import { formatNumberOf } from "../quantities.ts";
import type { Environment } from "../settings.ts";
import { type AgentConfig, configError, formatFault } from "./config.ts";
import { loadConfig } from "./config-file.ts";
import { type ControlTarget, createControlServer, createMonitoringServer } from "./control-server.ts";
import { Dashboard } from "./dashboard/dashboard.ts";
import { FailoverRuns } from "./failover-runs.ts";
import { type ClaimedSocket, claimSocket } from "./listen.ts";
import type { Log } from "./log.ts";
import { Metrics } from "./metrics.ts";
import { Notifier } from "./notify.ts";
import type { Clock, DiskEvent, EngineAdapter } from "./ports.ts";
import type { LogLevel } from "./schema.ts";
import type { MissedPoint, ReloadSummary } from "./summaries.ts";
import { Supervisor } from "./supervisor.ts";

export interface AgentOptions {
  readonly environment: Environment;
  readonly engine: EngineAdapter;
  readonly clock: Clock;
  readonly log: Log;
}

/** Answers that are under way at the end have this long. */
const lastAnswersMsMax = 2_000;

/** Points come every few seconds for weeks, so they are logged at `debug`. */
const eventLevels: Readonly<Record<DiskEvent["kind"], LogLevel>> = {
  state: "info",
  point: "debug",
  prune: "debug",
  collect: "info",
  copy: "debug",
  notice: "warn",
  failure: "warn",
};

export class Agent implements AsyncDisposable {
  /**
   * Resolves once every disk has been stopped, by any request, with the disks whose last point could
   * not be taken.
   */
  readonly ended: Promise<readonly MissedPoint[]>;
  readonly #environment: Environment;
  readonly #log: Log;
  readonly #supervisor: Supervisor;
  readonly #failovers: FailoverRuns;
  readonly #metrics: Metrics;
  readonly #notifier: Notifier;
  readonly #socket: ClaimedSocket;
  readonly #servers: Server[];
  #dashboard: Dashboard | undefined;
  #end: (missed: readonly MissedPoint[]) => void = () => undefined;

  private constructor(
    config: AgentConfig,
    { environment, engine, clock, log }: AgentOptions,
    socket: ClaimedSocket,
    server: Server,
  ) {
    this.#environment = environment;
    this.#log = log;
    this.#socket = socket;
    this.#servers = [server];
    this.ended = new Promise((resolve) => {
      this.#end = resolve;
    });
    this.#metrics = new Metrics(() => this.#supervisor.status());
    this.#supervisor = new Supervisor(config, { engine, clock, onEvent: (event) => this.#onEvent(event) });
    this.#failovers = new FailoverRuns({
      supervisor: this.#supervisor,
      clock,
      environment,
      onEvent: (event) => this.#onEvent(event),
    });
    this.#notifier = new Notifier(config.notify, {
      status: () => this.#supervisor.status(),
      clock,
      log: (level, message) => log.write(level, message),
    });
  }

  /**
   * Resolves when the control socket answers; the disks come up behind it. The socket is claimed
   * before anything else is touched, so that a second agent on the same configuration does no harm.
   * Errors: WRITER_ACTIVE when an agent is there, INVALID_ARGUMENT, ACCESS_REFUSED.
   */
  static async start(config: AgentConfig, options: AgentOptions): Promise<Agent> {
    let ready: (target: ControlTarget) => void = () => undefined;
    const target = new Promise<ControlTarget>((resolve) => {
      ready = resolve;
    });
    const server = createControlServer(target);
    const socket = await claimSocket(server, config.control.socket);
    const agent = new Agent(config, options, socket, server);
    ready(agent.#target());
    try {
      await agent.#listenForMetrics(config, target);
      await agent.#openDashboard(config, options.clock);
    } catch (error) {
      await agent.stop({ drain: false });
      await agent[Symbol.asyncDispose]();
      throw error;
    }
    options.log.write(
      "info",
      `${formatNumberOf(config.disks.size, "disk")} of ${config.path}, controlled through ${socket.path}`,
    );
    return agent;
  }

  /**
   * Reads the configuration again and goes over to it. When it has faults, all are logged and
   * nothing changes. Errors: INVALID_ARGUMENT.
   */
  async reload(): Promise<ReloadSummary> {
    const { path } = this.#supervisor.config;
    const loaded = await loadConfig(path, this.#environment);
    if (!("config" in loaded)) {
      for (const fault of loaded.faults) this.#log.write("error", formatFault(fault));
      throw configError(path, loaded.faults);
    }
    const summary = await this.#supervisor.reload(loaded.config);
    this.#log.setLevel(loaded.config.logging.level);
    this.#notifier.set(loaded.config.notify);
    const parts = Object.entries(summary).filter(([, names]: [string, readonly string[]]) => names.length > 0);
    const text = parts.map(([what, names]: [string, readonly string[]]) => `${what} ${names.join(", ")}`).join("; ");
    this.#log.write("info", `configuration read again: ${text === "" ? "nothing has changed" : text}`);
    return summary;
  }

  /**
   * What SIGHUP asks for: the log's file is opened again, and the configuration read. Throws
   * nothing; what fails is logged.
   */
  async refresh(): Promise<void> {
    this.#log.reopen();
    try {
      await this.reload();
    } catch (error) {
      const { code, message, remedy } = errorReport(error);
      this.#log.write("error", `the old configuration goes on: ${message}; ${remedy}`, { code });
    }
  }

  /**
   * Stops the disks, with a last point each when `drain` says so. The control socket answers until
   * the agent is disposed of. Idempotent.
   */
  async stop({ drain }: { readonly drain: boolean }): Promise<void> {
    this.#log.write(
      "info",
      drain ? "stopping: last points are taken; a second signal ends the agent without them" : "stopping",
    );
    await Promise.all([this.#failovers.stop(), this.#notifier.stop()]);
    const missed = await this.#supervisor.served.stop({ drain });
    this.#end([...missed, ...(await this.#supervisor.stop({ drain }))]);
  }

  /** Closes the control socket. The disks have been stopped before. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.#dashboard?.[Symbol.asyncDispose]();
    await this.#socket[Symbol.asyncDispose]();
    await Promise.all(this.#servers.map(closeServer));
  }

  #target(): ControlTarget {
    return {
      supervisor: this.#supervisor,
      failovers: this.#failovers,
      reload: async () => await this.reload(),
      stop: async (options) => await this.stop(options),
      metrics: this.#metrics,
    };
  }

  async #listenForMetrics({ metrics }: AgentConfig, target: Promise<ControlTarget>): Promise<void> {
    if (metrics === undefined) return;
    const { host, port } = metrics.listen;
    const server = createMonitoringServer(target, host);
    try {
      server.listen({ host, port });
      await once(server, "listening");
    } catch (error) {
      throw new TidemarkError(
        "INVALID_ARGUMENT",
        `metrics cannot be served on ${formatListen(metrics.listen)} (${systemCode(error) ?? "unknown"})`,
        {
          remedy: "give metrics.listen an address of this machine that is free",
          cause: error,
        },
      );
    }
    this.#servers.push(server);
    this.#log.write("info", `metrics on ${formatListen(metrics.listen)}`);
  }

  async #openDashboard({ dashboard }: AgentConfig, clock: Clock): Promise<void> {
    if (dashboard === undefined) return;
    this.#dashboard = await Dashboard.start(dashboard, { target: this.#target(), clock });
    this.#log.write("info", `dashboard on ${this.#dashboard.url}`);
  }

  #onEvent(event: DiskEvent): void {
    this.#dashboard?.onEvent(event);
    this.#metrics.onEvent(event);
    const { kind, disk, message, code } = event;
    this.#log.write(eventLevels[kind], message, { disk, kind, code });
  }
}

async function closeServer(server: Server): Promise<void> {
  const closed = once(server, "close");
  server.close();
  const timer = setTimeout(() => server.closeAllConnections(), lastAnswersMsMax);
  await closed;
  clearTimeout(timer);
}
