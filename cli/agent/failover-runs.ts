/**
 * Failovers in the agent: the agent looks at the runs of its vaults once a minute, carries out the
 * commits and rollbacks that are due, serves the runs that are its own, and works on runs for the
 * clients of its control socket.
 *
 * A vault is opened for each look if none of its disks is running: a planned failover may have stopped
 * all of them. A request works on its run until the run waits; if its client disconnects, the job is
 * suspended.
 */
import type { JobSummary, RunSummary } from "../../engine/index.ts";
import { TidemarkError } from "../../engine/index.ts";
import { agentSource } from "../agent-source.ts";
import { errorReport } from "../errors.ts";
import { parseDuration } from "../quantities.ts";
import type { Environment } from "../settings.ts";
import { PeriodicTask } from "./periodic-task.ts";
import type { Clock, DiskEvent, FailoverPort } from "./ports.ts";
import type { Supervisor } from "./supervisor.ts";

export interface FailoverRunsParts {
  readonly supervisor: Pick<Supervisor, "config" | "useVault" | "runs" | "served">;
  readonly clock: Clock;
  readonly environment: Environment;
  readonly onEvent: (event: DiskEvent) => void;
}

const lookEveryMs = 60_000;
const firstAfterMs = 5_000;

type Options = Parameters<FailoverPort["carryOutDue"]>[0];
type Fields = Readonly<Record<string, unknown>>;

/** A verb of the API: its fields besides `verb`, `vault` and `run`, and what it does. */
interface Verb {
  readonly fields: readonly string[];
  readonly work: (runs: FailoverPort, run: string, read: FieldReader, options: Options) => Promise<RunSummary>;
}

const startFields = ["disks", "group", "to", "point", "check", "shutdown", "ttl", "note", "commit", "socket"] as const;

const verbs: Readonly<Record<string, Verb>> = {
  test: { fields: startFields, work: async (runs, _, read, options) => await runs.start(read.start("test", options)) },
  planned: {
    fields: startFields,
    work: async (runs, _, read, options) => await runs.start(read.start("planned", options)),
  },
  unplanned: {
    fields: startFields,
    work: async (runs, _, read, options) => await runs.start(read.start("unplanned", options)),
  },
  "change-point": {
    fields: ["point"],
    work: async (runs, run, read, options) =>
      await runs.changePoint({ ...options, run, point: read.text("point") ?? "latest" }),
  },
  commit: {
    fields: ["discardPoints"],
    work: async (runs, run, read, options) =>
      await runs.commit({ ...options, run, discardPoints: read.flag("discardPoints") }),
  },
  cancel: { fields: [], work: async (runs, run, _, options) => await runs.cancel({ ...options, run }) },
  cleanup: {
    fields: ["note"],
    work: async (runs, run, read, options) => await runs.cleanup({ ...options, run, note: read.text("note") }),
  },
  reprotect: {
    fields: ["listen"],
    work: async (runs, run, read, options) => await runs.reprotect({ ...options, run, listen: read.text("listen") }),
  },
  failback: {
    fields: ["to", "socket", "shutdown", "note", "commit"],
    work: async (runs, run, read, options) =>
      await runs.failback({
        ...options,
        run,
        to: read.texts("to") ?? [],
        source: read.source(),
        shutdown: read.text("shutdown"),
        note: read.text("note"),
        ending: read.ending(),
      }),
  },
  "complete-migration": {
    fields: [],
    work: async (runs, run, _, options) => await runs.completeMigration({ ...options, run }),
  },
  resume: { fields: [], work: async (runs, run, _, options) => await runs.resume({ ...options, run }) },
  "cancel-job": { fields: [], work: async (runs, run, _, options) => await runs.cancelJob({ ...options, run }) },
};

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
        const ended = await this.#unserved(signal, async (options) => await failovers.carryOutDue(options));
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

  /** The runs of all vaults, newest first in each. */
  async list(signal: AbortSignal): Promise<readonly (RunSummary & { readonly vault: string })[]> {
    return await this.#ofAll(signal, async (runs) => await runs.list(signal));
  }

  /** The jobs of all vaults, newest first in each. */
  async jobs(signal: AbortSignal): Promise<readonly (JobSummary & { readonly vault: string })[]> {
    return await this.#ofAll(signal, async (runs) => await runs.jobs(signal));
  }

  /** Errors: INVALID_ARGUMENT when no vault of the agent has the run. */
  async show(run: string, signal: AbortSignal): Promise<RunSummary & { readonly vault: string }> {
    const { supervisor } = this.#parts;
    const vaults = [...supervisor.config.vaults.keys()];
    const absent = new TidemarkError(
      "INVALID_ARGUMENT",
      `no vault of the agent holds a failover run ${JSON.stringify(run)}`,
      { remedy: "`tidemark failover list` shows the runs of a vault" },
    );
    // The vault that has the run answers for all, also while another one is away.
    const asked = vaults.map(async (vault) => {
      const runs = await supervisor.useVault(vault, signal, async ({ failovers }) => await failovers.list(signal));
      const found = runs.find((candidate) => candidate.run === run);
      if (found === undefined) throw absent;
      return { ...found, vault };
    });
    const [answer] = await Promise.allSettled([Promise.any(asked)]);
    if (answer.status === "fulfilled") return answer.value;
    const { errors } = answer.reason as AggregateError;
    throw (errors as Error[]).find((error) => error !== absent) ?? absent;
  }

  /** Carries out a verb, and gives what has become of the run. Errors: INVALID_ARGUMENT, those of the verb. */
  async operate(fields: Fields, signal: AbortSignal): Promise<RunSummary> {
    const read = new FieldReader(fields);
    const name = read.text("verb") ?? "";
    const verb = Object.hasOwn(verbs, name) ? verbs[name] : undefined;
    if (verb === undefined)
      throw wrong(`${JSON.stringify(name)} is no verb`, `give one of ${Object.keys(verbs).join(", ")}`);
    read.refuseOthers(["verb", "vault", "run", ...verb.fields]);
    const run = read.text("run") ?? "";
    const vault = read.text("vault") ?? (run === "" ? this.#onlyVault() : (await this.show(run, signal)).vault);
    try {
      return await this.#parts.supervisor.useVault(
        vault,
        signal,
        async ({ failovers }) =>
          await this.#unserved(signal, async (options) => await verb.work(failovers, run, read, options)),
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

  async #ofAll<Item>(
    signal: AbortSignal,
    ask: (runs: FailoverPort) => Promise<readonly Item[]>,
  ): Promise<(Item & { readonly vault: string })[]> {
    const { supervisor } = this.#parts;
    const found: (Item & { readonly vault: string })[] = [];
    for (const vault of supervisor.config.vaults.keys()) {
      const items = await supervisor.useVault(vault, signal, async ({ failovers }) => await ask(failovers));
      found.push(...items.map((item) => ({ ...item, vault })));
    }
    return found;
  }

  #onlyVault(): string {
    const [vault, other] = this.#parts.supervisor.config.vaults.keys();
    if (vault !== undefined && other === undefined) return vault;
    throw wrong("no vault is named, and the agent has several", "name one of them in vault");
  }

  /** Runs that `work` has to change are not served until it is over. */
  async #unserved<Result>(signal: AbortSignal, work: (options: Options) => Promise<Result>): Promise<Result> {
    const { served } = this.#parts.supervisor;
    const released: string[] = [];
    const release = async (run: string): Promise<void> => {
      released.push(run);
      await served.release(run);
    };
    try {
      return await work({ ...this.#options(signal), server: { release } });
    } finally {
      for (const run of released) served.resume(run);
    }
  }

  #options(signal: AbortSignal): Options {
    const { environment, onEvent } = this.#parts;
    const defined = Object.entries(environment).filter((entry): entry is [string, string] => entry[1] !== undefined);
    return {
      signal,
      environment: Object.fromEntries(defined),
      openAgent: agentSource,
      onNotice: ({ code, message }) => onEvent({ kind: "notice", disk: "", code, message }),
    };
  }
}

/** Reads the fields of a request. Every method throws INVALID_ARGUMENT. */
class FieldReader {
  readonly #fields: Fields;

  constructor(fields: Fields) {
    this.#fields = fields;
  }

  refuseOthers(names: readonly string[]): void {
    const unknown = Object.keys(this.#fields).find((name) => !names.includes(name));
    if (unknown !== undefined)
      throw wrong(`${unknown} is not a field of this verb`, `its fields are ${names.join(", ")}`);
  }

  text(name: string): string | undefined {
    const value = this.#fields[name];
    if (value === undefined || typeof value === "string") return value;
    throw wrong(`${name} is no text`, "give it as text");
  }

  texts(name: string): readonly string[] | undefined {
    const value = this.#fields[name];
    if (value === undefined) return undefined;
    if (Array.isArray(value) && value.every((item) => typeof item === "string")) return value;
    throw wrong(`${name} is no list of texts`, 'give it as ["…"]');
  }

  flag(name: string): boolean {
    const value = this.#fields[name] ?? false;
    if (typeof value === "boolean") return value;
    throw wrong(`${name} is neither true nor false`, "give one of them");
  }

  source(): { readonly kind: "agent"; readonly path: string } | null {
    const path = this.text("socket");
    return path === undefined ? null : { kind: "agent", path };
  }

  ending(): Parameters<FailoverPort["start"]>[0]["ending"] {
    return parseEnding(this.text("commit") ?? "manual");
  }

  start(kind: "test" | "planned" | "unplanned", options: Options): Parameters<FailoverPort["start"]>[0] {
    const ttl = this.text("ttl");
    const ttlMs = ttl === undefined ? undefined : parseDuration(ttl);
    if (ttl !== undefined && ttlMs === undefined) throw wrong("ttl is not a duration", "write it as 14d");
    return {
      ...options,
      kind,
      disks: this.texts("disks"),
      group: this.text("group"),
      to: this.text("to") ?? "",
      point: this.text("point"),
      check: this.text("check"),
      shutdown: this.text("shutdown"),
      source: this.source(),
      ttlMs,
      note: this.text("note"),
      ending: this.ending(),
    };
  }
}

/** `manual`, `after:60m` or `rollback-after:60m`. Errors: INVALID_ARGUMENT. */
export function parseEnding(text: string): Parameters<FailoverPort["start"]>[0]["ending"] {
  if (text === "manual") return null;
  const [, rollback, time = ""] = /^(rollback-)?after:(.+)$/.exec(text) ?? [];
  const afterMs = parseDuration(time);
  if (afterMs !== undefined) return { action: rollback === undefined ? "commit" : "rollback", afterMs };
  throw wrong(
    `${JSON.stringify(text)} does not say how a failover ends`,
    "write manual, after:60m or rollback-after:60m",
  );
}

function wrong(message: string, remedy: string): TidemarkError {
  return new TidemarkError("INVALID_ARGUMENT", message, { remedy });
}
