/**
 * Verbs on failover runs, of disks and of recovery plans: from the fields of a request to what the
 * engine does. Commands and the control socket both come here, so what one can do, the other can.
 */
import type {
  FailoverOptions,
  PlanPreview,
  PlanRunDone,
  PlanRunSummary,
  RunDone,
  RunSummary,
  StartFailoverOptions,
} from "../../engine/index.ts";
import { wrongInput } from "../errors.ts";
import { loadFile, refuseFaults } from "../plan/plan-loading.ts";
import { parseDuration } from "../quantities.ts";
import type { VaultFlags } from "../settings.ts";
import { refuseInsideVault } from "../vault-folder.ts";
import type { TellFault } from "./config.ts";
import type { FailoverPort, PlanPort } from "./ports.ts";

/** The runs of a vault. */
export interface RunPorts {
  readonly failovers: FailoverPort;
  readonly plans: PlanPort;
}

/** What a run of a recovery plan would do. */
export interface PlanPreviewSummary extends Omit<PlanPreview, "faults"> {
  /** Name of the plan. */
  readonly plan: string;
  readonly kind: StartFailoverOptions["kind"];
}

export type VerbDone = RunDone | PlanRunDone | RunSummary | PlanRunSummary | PlanPreviewSummary;

export type VerbFields = Readonly<Record<string, unknown>>;

/** How verbs work. */
export interface VerbOptions extends FailoverOptions {
  /** No target may be in the folder of this vault. */
  readonly flags: VaultFlags;
  /** Gets each fault of a plan. */
  readonly tellFault?: TellFault | undefined;
}

/** A verb: its fields besides `verb` and `run`, and what it does. */
interface Verb {
  readonly fields: readonly string[];
  readonly work: (
    runs: FailoverPort | PlanPort,
    options: VerbOptions & { readonly run: string; readonly note: string | undefined },
    read: FieldReader,
  ) => Promise<VerbDone>;
}

const kinds = ["test", "planned", "unplanned"] as const;
const planFields = ["plan", "to", "point", "ttl", "note", "source", "socket", "dryRun"];
const diskFields = ["disks", "group", "to", "point", "check", "shutdown", "ttl", "note", "commit", "source", "socket"];

const verbs: Readonly<Record<string, Verb>> = {
  "change-point": {
    fields: ["point"],
    work: async (runs, options, read) => await runs.changePoint({ ...options, point: read.text("point") ?? "latest" }),
  },
  commit: {
    fields: ["discardPoints"],
    work: async (runs, options, read) => await runs.commit({ ...options, discardPoints: read.flag("discardPoints") }),
  },
  cancel: { fields: [], work: async (runs, options) => await runs.cancel(options) },
  cleanup: { fields: ["note"], work: async (runs, options) => await runs.cleanup(options) },
  reprotect: {
    fields: ["listen"],
    work: async (runs, options, read) => await runs.reprotect({ ...options, listen: read.text("listen") }),
  },
  failback: {
    fields: ["to", "source", "socket", "shutdown", "note", "commit"],
    work: async (runs, options, read) => {
      const { shutdown, ending } = { shutdown: read.text("shutdown"), ending: read.ending() };
      if ("preview" in runs && (shutdown !== undefined || ending !== null))
        throw wrongInput(
          `run ${options.run} is of a plan, which has commands of its own`,
          "leave shutdown and commit out",
        );
      const to = read.texts("to") ?? [];
      for (const image of to) await refuseInsideVault(options.flags, image, "target");
      return await runs.failback({ ...options, to, source: read.source(), shutdown, ending });
    },
  },
  "complete-migration": { fields: [], work: async (runs, options) => await runs.completeMigration(options) },
  resume: {
    fields: ["step"],
    work: async (runs, options, read) => {
      const step = read.count("step");
      if ("preview" in runs) return await runs.resume({ ...options, step });
      if (step === undefined) return await runs.resume(options);
      throw wrongInput(`run ${options.run} is not of a plan, and has no steps`, "leave the step out");
    },
  },
  "cancel-job": { fields: [], work: async (runs, options) => await runs.cancelJob(options) },
};

/** Carries a verb out, and gives what has become of the run. Errors: INVALID_ARGUMENT, those of the verb. */
export async function carryOutVerb(vault: RunPorts, fields: VerbFields, options: VerbOptions): Promise<VerbDone> {
  const read = new FieldReader(fields);
  const name = read.text("verb") ?? "";
  const kind = kinds.find((each) => each === name);
  if (kind !== undefined) return await start(vault, kind, read, options);
  const verb = Object.hasOwn(verbs, name) ? verbs[name] : undefined;
  if (verb === undefined)
    throw wrongInput(
      `${JSON.stringify(name)} is no verb`,
      `give one of ${[...kinds, ...Object.keys(verbs)].join(", ")}`,
    );
  read.refuseOthers(["run", ...verb.fields]);
  const run = read.text("run") ?? "";
  const runs = (await vault.plans.has(run, options.signal)) ? vault.plans : vault.failovers;
  return await verb.work(runs, { ...options, run, note: read.text("note") }, read);
}

async function start(
  { failovers, plans }: RunPorts,
  kind: (typeof kinds)[number],
  read: FieldReader,
  { flags, tellFault, ...given }: VerbOptions,
): Promise<VerbDone> {
  const path = read.text("plan");
  read.refuseOthers(path === undefined ? diskFields : planFields);
  const [source, point, to] = [read.source(), read.text("point"), read.text("to")];
  const options = { ...given, kind, point, ttlMs: read.duration("ttl"), note: read.text("note") };
  if (path === undefined) {
    await refuseTarget(flags, to ?? "");
    return await failovers.start({
      ...options,
      disks: read.texts("disks"),
      group: read.text("group"),
      to: to ?? "",
      check: read.text("check"),
      shutdown: read.text("shutdown"),
      source,
      ending: read.ending(),
    });
  }
  const loaded = await loadFile(path, tellFault);
  // A machine that names no source is written where the request says.
  const machines = loaded.plan.machines.map((machine) => ({ ...machine, source: machine.source ?? source }));
  const asked = { ...options, plan: { ...loaded.plan, machines }, to };
  const { target, testTarget } = loaded.plan;
  await refusePlanTarget(flags, to ?? (kind === "test" ? testTarget : null) ?? target);
  if (!read.flag("dryRun")) return await plans.start(asked);
  const { faults, ...preview } = await plans.preview(asked);
  refuseFaults(path, loaded, faults, tellFault);
  return { plan: loaded.plan.name, kind, ...preview };
}

/** Errors: INVALID_ARGUMENT when the target is in the folder of the vault. */
async function refuseTarget(flags: VaultFlags, target: string): Promise<void> {
  const [, scheme, place = ""] = /^(instant|file|vhd|dir):(.*)$/s.exec(target) ?? [];
  const local = scheme === "instant" ? (/,image=(.*)$/s.exec(place)?.[1] ?? ".") : place;
  if (scheme !== undefined) await refuseInsideVault(flags, local, "target");
}

/** As `refuseTarget`. A plan names folders. */
export async function refusePlanTarget(flags: VaultFlags, target: string | null): Promise<void> {
  await refuseTarget(flags, (target ?? "").replace(/^instant:unix:/, "dir:"));
}

/** Reads the fields of a request. Every method throws INVALID_ARGUMENT. */
class FieldReader {
  readonly #fields: VerbFields;

  constructor(fields: VerbFields) {
    this.#fields = fields;
  }

  refuseOthers(names: readonly string[]): void {
    const given = Object.entries(this.#fields).filter(([, value]) => value !== undefined);
    const [unknown] = given.find(([name]) => name !== "verb" && !names.includes(name)) ?? [];
    if (unknown !== undefined)
      throw wrongInput(`${unknown} is not a field of this verb`, `its fields are ${names.join(", ")}`);
  }

  text(name: string): string | undefined {
    const value = this.#fields[name];
    if (value === undefined || typeof value === "string") return value;
    throw wrongInput(`${name} is no text`, "give it as text");
  }

  texts(name: string): readonly string[] | undefined {
    const value = this.#fields[name];
    if (value === undefined) return undefined;
    if (Array.isArray(value) && value.every((item) => typeof item === "string")) return value;
    throw wrongInput(`${name} is no list of texts`, 'give it as ["…"]');
  }

  flag(name: string): boolean {
    const value = this.#fields[name] ?? false;
    if (typeof value === "boolean") return value;
    throw wrongInput(`${name} is neither true nor false`, "give one of them");
  }

  count(name: string): number | undefined {
    const value = this.#fields[name];
    if (value === undefined || (typeof value === "number" && Number.isSafeInteger(value))) return value;
    throw wrongInput(`${name} is no whole number`, "give it as a number");
  }

  duration(name: string): number | undefined {
    const value = this.text(name);
    const ms = value === undefined ? undefined : parseDuration(value);
    if (value === undefined || ms !== undefined) return ms;
    throw wrongInput(`${name} is not a duration`, "write it as 14d");
  }

  source(): NonNullable<StartFailoverOptions["source"]> | null {
    const [image, socket] = [this.text("source"), this.text("socket")];
    if (image !== undefined) return { kind: "image", path: image };
    return socket === undefined ? null : { kind: "agent", path: socket };
  }

  ending(): NonNullable<StartFailoverOptions["ending"]> | null {
    return parseEnding(this.text("commit") ?? "manual");
  }
}

/** `manual`, `after:60m` or `rollback-after:60m`. Errors: INVALID_ARGUMENT. */
export function parseEnding(text: string): NonNullable<StartFailoverOptions["ending"]> | null {
  if (text === "manual") return null;
  const [, rollback, time = ""] = /^(rollback-)?after:(.+)$/.exec(text) ?? [];
  const afterMs = parseDuration(time);
  if (afterMs !== undefined) return { action: rollback === undefined ? "commit" : "rollback", afterMs };
  throw wrongInput(
    `${JSON.stringify(text)} does not say how a failover ends`,
    "write manual, after:60m or rollback-after:60m",
  );
}
