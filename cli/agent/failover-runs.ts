/**
 * Failovers in the agent: the agent looks at the runs of its vaults once a minute, carries out the
 * commits and rollbacks that are due, serves the runs that are its own, and works on runs for the
 * clients of its control socket.
 *
 * A vault is opened for each look if none of its disks is running: a planned failover may have stopped
 * all of them. A request works on its run until the run waits; if its client disconnects, the job is
 * suspended.
 */
import {
  type FailoverOptions,
  type JobSummary,
  type PlanRunSummary,
  type RunSummary,
  TidemarkError,
} from "../../engine/index.ts";
import { agentSource } from "../agent-source.ts";
import { type ErrorReport, errorReport, wrongInput } from "../errors.ts";
import { definedIn, type Environment } from "../settings.ts";
import { carryOutVerb, type RunPorts, type VerbDone, type VerbFields } from "./failover-verbs.ts";
import { PeriodicTask } from "./periodic-task.ts";
import type { Clock, DiskEvent, VaultPort } from "./ports.ts";
import type { Supervisor } from "./supervisor.ts";

export interface FailoverRunsParts {
  readonly supervisor: Pick<Supervisor, "config" | "useVault" | "runs" | "served">;
  readonly clock: Clock;
  readonly environment: Environment;
  readonly onEvent: (event: DiskEvent) => void;
}

const lookEveryMs = 60_000;
const firstAfterMs = 5_000;

type OfVault<Item> = Item & { readonly vault: string };

/** Of several vaults: what is found in those that answer. */
export interface OfVaults {
  /** The vaults that could not be asked, and why. */
  readonly failures: readonly OfVault<ErrorReport>[];
}

/** The runs of disks, and those of plans, newest first in each vault. */
export interface AgentRuns extends OfVaults {
  readonly runs: readonly OfVault<RunSummary>[];
  readonly plans: readonly OfVault<PlanRunSummary>[];
}

/** Jobs, newest first in each vault. */
export interface AgentJobs extends OfVaults {
  readonly jobs: readonly OfVault<JobSummary>[];
}

export class FailoverRuns {
  readonly #parts: FailoverRunsParts;
  readonly #task: PeriodicTask;

  constructor(parts: FailoverRunsParts) {
    this.#parts = parts;
    const work = async (signal: AbortSignal): Promise<void> => await this.look(signal);
    this.#task = new PeriodicTask({ clock: parts.clock, firstAfterMs, everyMs: lookEveryMs, work });
  }

  /** Carries out what is due, and notes the runs for the status. Throws nothing: failures are told. */
  async look(signal: AbortSignal): Promise<void> {
    // At the same time: a vault whose store is silent does not hold up the runs of another.
    const vaults = [...this.#parts.supervisor.config.vaults.keys()];
    await Promise.all(vaults.map(async (vault) => await this.#lookAt(vault, signal)));
  }

  async #lookAt(vault: string, signal: AbortSignal): Promise<void> {
    const { supervisor, onEvent } = this.#parts;
    try {
      await supervisor.useVault(vault, signal, async ({ failovers }) => {
        const ended = await this.#unserved(vault, signal, async (options) => await failovers.carryOutDue(options));
        for (const run of ended)
          onEvent({ kind: "state", disk: "", message: `run ${run} has been ended, as it was told to` });
        const runs = await failovers.list(signal);
        supervisor.runs.note(vault, runs);
        await supervisor.served.serve(vault, runs, signal);
      });
    } catch (error) {
      if (signal.aborted) return;
      const { code, message } = errorReport(error);
      // The cycles of the disks report a store that is away.
      if (code === "STORE_UNREACHABLE") return;
      onEvent({ kind: "failure", disk: "", code, message: `the failovers of the vault ${vault}: ${message}` });
    }
  }

  /** The runs of all vaults. Errors: those of the first vault if none can be asked. */
  async list(signal: AbortSignal): Promise<AgentRuns> {
    const { found, failures } = await this.#ofAll(signal, async ({ failovers, plans }) => ({
      runs: await failovers.list(signal),
      plans: await plans.list({ signal }),
    }));
    return {
      runs: found.flatMap(({ vault, items: { runs } }) => runs.map((run) => ({ ...run, vault }))),
      plans: found.flatMap(({ vault, items: { plans } }) => plans.map((run) => ({ ...run, vault }))),
      failures,
    };
  }

  /** The jobs of all vaults. Errors: as `list`. */
  async jobs(signal: AbortSignal): Promise<AgentJobs> {
    const { found, failures } = await this.#ofAll(signal, async (vault) => await jobsOf(vault, signal));
    return { jobs: found.flatMap(({ vault, items }) => items.map((job) => ({ ...job, vault }))), failures };
  }

  /** Errors: INVALID_ARGUMENT when no vault of the agent has the run. */
  async show(run: string, signal: AbortSignal): Promise<OfVault<RunSummary | PlanRunSummary>> {
    const { supervisor } = this.#parts;
    const vaults = [...supervisor.config.vaults.keys()];
    const absent = wrongInput(
      `no vault of the agent holds a failover run ${JSON.stringify(run)}`,
      "`tidemark failover list` shows the runs of a vault",
    );
    // The vault that has the run answers for all, also while another one is away.
    const asked = vaults.map(async (vault) => {
      const found = await supervisor.useVault(vault, signal, async ({ failovers, plans }) => {
        if (await plans.has(run, signal)) return await plans.show(run, signal);
        return (await failovers.list(signal)).find((candidate) => candidate.run === run);
      });
      if (found === undefined) throw absent;
      return { ...found, vault };
    });
    const [answer] = await Promise.allSettled([Promise.any(asked)]);
    if (answer.status === "fulfilled") return answer.value;
    const { errors } = answer.reason as AggregateError;
    throw (errors as Error[]).find((error) => error !== absent) ?? absent;
  }

  /** Carries out a verb, and gives what has become of the run. Errors: INVALID_ARGUMENT, those of the verb. */
  async operate({ vault: named, ...fields }: VerbFields, signal: AbortSignal): Promise<VerbDone> {
    const { run } = fields;
    for (const [name, value] of Object.entries({ vault: named, run }))
      if (value !== undefined && typeof value !== "string") throw wrongInput(`${name} is no text`, "give it as text");
    const { supervisor } = this.#parts;
    const found = async (): Promise<string> =>
      typeof run === "string" ? (await this.show(run, signal)).vault : this.#vaultOf(fields);
    const vault = typeof named === "string" ? named : await found();
    try {
      return await supervisor.useVault(
        vault,
        signal,
        async (port) =>
          await this.#unserved(vault, signal, async (options) => {
            const flags = { vault: supervisor.config.vaults.get(vault)?.address };
            return await carryOutVerb(port, fields, { ...options, flags });
          }),
      );
    } finally {
      // Also a verb that failed may have released a run.
      await this.look(new AbortController().signal);
    }
  }

  /** Waits for the look that is under way. Idempotent. */
  async stop(): Promise<void> {
    await this.#task.stop();
  }

  /** Asks all vaults at the same time. Errors: those of the first one if all fail. */
  async #ofAll<Items>(
    signal: AbortSignal,
    ask: (vault: VaultPort) => Promise<Items>,
  ): Promise<{ readonly found: readonly { readonly vault: string; readonly items: Items }[] } & OfVaults> {
    const { supervisor } = this.#parts;
    const found: { readonly vault: string; readonly items: Items }[] = [];
    const failures: OfVault<ErrorReport>[] = [];
    const vaults = [...supervisor.config.vaults.keys()];
    const answers = await Promise.allSettled(
      vaults.map(async (vault) => await supervisor.useVault(vault, signal, ask)),
    );
    for (const [index, answer] of answers.entries()) {
      const vault = vaults[index] ?? "";
      if (answer.status === "fulfilled") found.push({ vault, items: answer.value });
      else if (answer.reason instanceof TidemarkError && !signal.aborted)
        failures.push({ vault, ...errorReport(answer.reason) });
      else throw answer.reason;
    }
    const [first] = answers;
    if (found.length === 0 && first?.status === "rejected") throw first.reason;
    return { found, failures };
  }

  /** The vault of the disks or the group, where the agent protects these; else its only one. */
  #vaultOf({ disks, group }: VerbFields): string {
    const { config } = this.#parts.supervisor;
    const named: readonly unknown[] = Array.isArray(disks) ? disks : [];
    const own = [...config.disks.values()].filter(
      (disk) => named.includes(disk.name) || (group !== undefined && disk.group === group),
    );
    const vaults = new Set(own.length > 0 ? own.map(({ vault }) => vault) : config.vaults.keys());
    const [vault] = vaults;
    if (vault !== undefined && vaults.size === 1) return vault;
    throw wrongInput(
      "the agent has several vaults, and none is named",
      "name one in vault, or run the command with `--vault ADDRESS` instead of `--agent`",
    );
  }

  /** Runs that `work` has to change are not served until it is over, or wants them to be served. */
  async #unserved<Result>(
    vault: string,
    signal: AbortSignal,
    work: (options: FailoverOptions) => Promise<Result>,
  ): Promise<Result> {
    const { environment, onEvent, supervisor } = this.#parts;
    const { served } = supervisor;
    const released = new Set<string>();
    const release = async (run: string): Promise<void> => {
      if (released.has(run)) return;
      released.add(run);
      await served.release(run);
    };
    const serve = async (run: string, cacheBytes: number): Promise<void> => {
      if (released.delete(run)) served.resume(run);
      await served.open(vault, run, { disk: "", cacheBytes, signal });
    };
    try {
      return await work({
        signal,
        environment: definedIn(environment),
        openAgent: agentSource,
        onNotice: ({ code, message }) => onEvent({ kind: "notice", disk: "", code, message }),
        server: { release },
        serve,
      });
    } finally {
      for (const run of released) served.resume(run);
    }
  }
}

/** The jobs of all runs of a vault, of disks and of plans, newest first. Errors: those of the store. */
export async function jobsOf({ failovers, plans }: RunPorts, signal: AbortSignal): Promise<readonly JobSummary[]> {
  const jobs = [...(await plans.jobs(signal)), ...(await failovers.jobs(signal))];
  return jobs.sort((a, b) => (a.startTime < b.startTime ? 1 : -1));
}
