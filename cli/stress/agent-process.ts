/**
 * The agent under test: `tidemark agent` as a process of its own, with a configuration of the run.
 * Half of the disks are a group, if there are at least four; the others are cut alone.
 */
import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { open, readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import process from "node:process";
import { fileURLToPath } from "node:url";
import { hasCode, type PointSummary, TidemarkError } from "../../engine/index.ts";
import { askAgent } from "../agent/control-client.ts";
import type { AgentStatus } from "../agent/supervisor.ts";
import type { Environment } from "../settings.ts";

/** Last points have 60 s, and a store that is away is waited for. */
const stopMsMax = 120_000;
/** Lines of the agent's log that an error repeats. */
const logLinesMax = 5;

export interface AgentPlan {
  readonly folder: string;
  readonly stateFolder: string;
  readonly disks: readonly string[];
  readonly vault: string;
  readonly environment: Environment;
}

/** Reads the agent's ids from this process, and kills the last of them when this process is gone, however it ended. */
const guardScript = 'while read -r line; do pid=$line; done; kill -9 "$pid"';

export class AgentProcess implements AsyncDisposable {
  readonly #plan: AgentPlan;
  #child: ChildProcess | undefined;
  readonly #guard: ChildProcess;
  readonly #killAtExit = (): void => {
    this.#child?.kill("SIGKILL");
  };

  private constructor(plan: AgentPlan) {
    this.#plan = plan;
    process.on("exit", this.#killAtExit);
    this.#guard = spawn("/bin/sh", ["-c", guardScript], { detached: true, stdio: ["pipe", "ignore", "ignore"] });
    this.#guard.stdin?.on("error", () => undefined); // a guard that has been killed
    this.#guard.on("error", () => undefined);
  }

  /** Starts the agent of the plan; returns before it serves its disks. */
  static async start(plan: AgentPlan): Promise<AgentProcess> {
    const agent = new AgentProcess(plan);
    await writeFile(join(plan.folder, "agent.yaml"), JSON.stringify(configurationOf(plan)), { mode: 0o600 });
    await agent.restart();
    return agent;
  }

  get pid(): number | undefined {
    return this.#child?.pid;
  }

  /** Path of the socket on which the disks are served. */
  get socketPath(): string {
    return nbdSocketIn(this.#plan.folder);
  }

  async restart(): Promise<void> {
    const { folder, environment } = this.#plan;
    const log = await open(join(folder, "agent.log"), "a", 0o600);
    try {
      const { PATH } = process.env;
      const words = [fileURLToPath(import.meta.resolve("#program")), "agent", "--config", "agent.yaml"];
      this.#child = spawn(process.execPath, words, {
        cwd: folder,
        env: { ...environment, PATH, HOME: folder, TMPDIR: folder },
        stdio: ["ignore", log.fd, log.fd],
      });
      this.#guard.stdin?.write(`${String(this.pid)}\n`);
    } finally {
      await log.close();
    }
  }

  /** kill -9. Resolves when the process is gone. */
  async kill(): Promise<void> {
    const child = this.#child;
    if (child === undefined || hasEnded(child)) return;
    const ended = once(child, "exit");
    child.kill("SIGKILL");
    await ended;
  }

  /** Takes last points and ends the agent. Errors: INTERNAL when it ends with an error, or not at all. */
  async stop(): Promise<void> {
    const child = this.#child;
    if (child === undefined) return;
    if (!hasEnded(child)) {
      const ended = once(child, "exit", { signal: AbortSignal.timeout(stopMsMax) });
      child.kill("SIGTERM");
      await ended;
    }
    if (child.exitCode === 0) return;
    const how = child.signalCode ?? `code ${String(child.exitCode)}`;
    throw new TidemarkError("INTERNAL", `the agent ended with ${how}: ${await this.#lastWords()}`, {
      remedy: "read the whole log in the folder of the run: add `--keep DIR`",
    });
  }

  /** Whether it has ended by itself. */
  hasDied(): boolean {
    return this.#child !== undefined && hasEnded(this.#child);
  }

  /** Undefined while it cannot be reached. */
  async status(signal: AbortSignal): Promise<AgentStatus | undefined> {
    return (await this.#ask("GET", "/v1/status", signal)) as AgentStatus | undefined;
  }

  /** Takes a point of a disk; undefined when the agent cannot be reached. Errors: those of the point. */
  async point(disk: string, signal: AbortSignal): Promise<PointSummary | undefined> {
    const answer = await this.#ask("POST", "/v1/point", signal, { disk });
    return (answer as { readonly points: readonly PointSummary[] } | undefined)?.points[0];
  }

  /** Resident memory and open handles, where the system tells them. */
  async footprint(): Promise<{ readonly rssBytes: number; readonly handles: number } | undefined> {
    try {
      const status = await readFile(`/proc/${String(this.pid)}/status`, "utf8");
      const rssBytes = Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1] ?? NaN) * 1024;
      return { rssBytes, handles: (await readdir(`/proc/${String(this.pid)}/fd`)).length };
    } catch {
      return undefined; // no /proc here, or the process has just ended
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.kill();
    this.#guard.kill("SIGKILL");
    process.off("exit", this.#killAtExit);
  }

  async #ask(method: "GET" | "POST", path: string, signal: AbortSignal, fields?: object): Promise<unknown> {
    try {
      return await askAgent(join(this.#plan.folder, "agent.sock"), { method, path, fields, signal });
    } catch (error) {
      if (hasCode(error, "AGENT_UNREACHABLE")) return undefined;
      throw error;
    }
  }

  async #lastWords(): Promise<string> {
    const log = await readFile(join(this.#plan.folder, "agent.log"), "utf8");
    return log.trim().split("\n").slice(-logLinesMax).join(" / ");
  }
}

export function nbdSocketIn(folder: string): string {
  return join(folder, "nbd.sock");
}

export function imageIn(folder: string, disk: string): string {
  return join(folder, `${disk}.img`);
}

/** The disks that are cut together. */
export function groupOf(disks: readonly string[]): readonly string[] {
  return disks.length < 4 ? [] : disks.slice(0, disks.length / 2);
}

function configurationOf({ folder, stateFolder, disks, vault }: AgentPlan): object {
  const often = {
    crashConsistentFrequency: "2s",
    recoveryPointThreshold: "off",
    recoveryPointRetention: "keep:last=20",
  };
  const grouped = groupOf(disks);
  return {
    vaults: { main: { address: vault, stateFolder, collect: "off" } },
    policies: { often },
    disks: disks.map((name) => ({
      name,
      image: imageIn(folder, name),
      vault: "main",
      policy: "often",
      listen: `unix:${nbdSocketIn(folder)}`,
      ...(grouped.includes(name) ? { group: "together" } : {}),
    })),
    control: { socket: "agent.sock" },
    logging: { format: "pretty" },
  };
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null;
}
