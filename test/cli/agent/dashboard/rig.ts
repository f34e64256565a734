/** An agent with a dashboard, whose engine does what the test says. */
import { onTestFinished } from "vitest";
import { Agent } from "../../../../cli/agent/agent.ts";
import type { AgentPoint, Clock } from "../../../../cli/agent/ports.ts";
import { ConfigFolder } from "../configuration.ts";
import { KeptLog, pointOf, ScriptedEngine, settled } from "../scripted.ts";

/** The first point of every disk; there is one each five seconds. */
const firstPointMs = Date.now() - 10_000_000;

/** Points as an agent lists them: each twelfth application-consistent, and one of every other kind. */
export function listedPoints(disk: string, count: number): AgentPoint[] {
  return Array.from({ length: count }, (_, index) => ({
    ...pointOf(disk, index + 1, {
      time: new Date(firstPointMs + index * 5_000).toISOString(),
      consistency: index % 120 === 0 ? "app" : "crash",
      changedBytes: 4096 * index,
    }),
    label: null,
    pinned: index === 100,
    held: false,
    proved: index < 50 ? new Date(firstPointMs).toISOString() : null,
    damaged: index === 7,
    dropped: index < 5,
  }));
}

export class DashboardRig {
  readonly folder: ConfigFolder = new ConfigFolder();
  readonly engine: ScriptedEngine = new ScriptedEngine();
  readonly log: KeptLog = new KeptLog();
  url = "";

  /** `dashboard` is its section in the configuration. Disks: `disk-1` and so on, in groups of `groupOf`. */
  async start(options: {
    readonly dashboard: string;
    readonly disks?: number;
    readonly groupOf?: number;
    readonly clock: Clock;
  }): Promise<Agent> {
    const { dashboard, disks = 1, groupOf = 0, clock } = options;
    const lines = Array.from({ length: disks }, (_, index) => {
      const name = `disk-${index + 1}`;
      const group = groupOf === 0 ? "" : `, group: db-${Math.floor(index / groupOf)}`;
      this.folder.image(`${name}.img`);
      return `  - {name: ${name}, image: ${name}.img, vault: main, policy: gold, listen: "unix:a.sock"${group}}`;
    });
    const text = [
      'vaults: {main: {address: "dir:vault"}}',
      "policies: {gold: {}}",
      "disks:",
      ...lines,
      "control: {socket: agent.sock}",
      `dashboard: ${dashboard}`,
    ].join("\n");
    const { engine, log } = this;
    const agent = await Agent.start(await this.folder.config(text), { environment: {}, engine, clock, log });
    onTestFinished(async () => {
      await agent.stop({ drain: false });
      await agent[Symbol.asyncDispose]();
    });
    await settled();
    const line = this.log.lines.find(({ message }) => message.startsWith("dashboard on "));
    this.url = line?.message.slice("dashboard on ".length) ?? "";
    return agent;
  }
}
