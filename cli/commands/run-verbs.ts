/**
 * Verbs on failover runs, of disks and of recovery plans: carries one out, prints what has become of
 * the run, and goes on to serve its disks where it has instant targets.
 */
import type { Command } from "commander";
import type { OperateOptions, ServedRun } from "../../engine/index.ts";
import { formatFault, type TellFault } from "../agent/config.ts";
import { askAgent } from "../agent/control-client.ts";
import type { OfVaults } from "../agent/failover-runs.ts";
import { carryOutVerb, type VerbDone, type VerbFields } from "../agent/failover-verbs.ts";
import { agentSource } from "../agent-source.ts";
import { describePlanRun, describePreview } from "../plan/plan-text.ts";
import { formatBytes, formatDuration } from "../quantities.ts";
import { describeRun } from "../run-text.ts";
import { definedIn, type VaultFlags } from "../settings.ts";
import { printable } from "../text.ts";
import { pointSelector } from "../times.ts";
import { type CommandContext, withVault } from "./context.ts";
import { closeRuns, openRun, serveRuns } from "./serve-run.ts";

/** Commands that go on to serve the disks of the run, where it has instant targets. */
const servingCommands: readonly string[] = [
  "failover test",
  "failover planned",
  "failover unplanned",
  "failover change-point",
  "jobs resume",
];

type VerbName =
  | "failover test"
  | "failover planned"
  | "failover unplanned"
  | "failover change-point"
  | "failover commit"
  | "failover cancel"
  | "failover cleanup"
  | "failback"
  | "jobs cancel"
  | "jobs resume"
  | "migrate complete"
  | "reprotect";

interface VerbFlags extends VaultFlags {
  /** Control socket of the agent that is to work on the run. */
  readonly agent?: string;
}

/** The verbs of the control API: see `failover-verbs.ts`. */
const agentVerbs: Readonly<Record<VerbName, string>> = {
  "failover test": "test",
  "failover planned": "planned",
  "failover unplanned": "unplanned",
  "failover change-point": "change-point",
  "failover commit": "commit",
  "failover cancel": "cancel",
  "failover cleanup": "cleanup",
  failback: "failback",
  "jobs cancel": "cancel-job",
  "jobs resume": "resume",
  "migrate complete": "complete-migration",
  reprotect: "reprotect",
};

/** What a list of runs or jobs says of `--agent`. */
export const agentListing = "With --agent it lists those of all vaults of the agent.";

/** What an agent finds in its vaults. Tells of each vault that could not be asked. */
export async function askVaults<Found extends OfVaults>(
  { output, signal }: CommandContext,
  agent: string,
  path: string,
): Promise<Found> {
  const answer = (await askAgent(agent, { method: "GET", path, signal })) as Found;
  for (const { vault, message, remedy } of answer.failures)
    output.notice({ code: "VAULT_SKIPPED", message: `the vault ${vault} is left out: ${message}; ${remedy}` });
  return answer;
}

export function withAgentOption(command: Command): Command {
  return command.option("--agent <socket>", "let the agent behind this control socket do it, instead of --vault");
}

/** Carries out a verb with these fields, here or in an agent. Errors: those of the verb. */
export type Ask = (fields: VerbFields) => Promise<VerbDone>;

/**
 * Carries out a verb of the control API, here or by the agent behind a control socket, and prints what
 * has become of the run. `fields`: what the verb has. `steps` may ask several times, or not at all.
 */
export async function operate(
  context: CommandContext,
  command: VerbName,
  flags: VerbFlags,
  fields: VerbFields,
  steps: (ask: Ask, fields: VerbFields) => Promise<VerbDone> = async (ask, given) => await ask(given),
): Promise<void> {
  const { signal } = context;
  const { agent } = flags;
  const verb = { ...fields, verb: agentVerbs[command] };
  if (agent !== undefined) {
    const ask: Ask = async (given) =>
      (await askAgent(agent, { method: "POST", path: "/v1/failover", fields: given, signal })) as VerbDone;
    printDone(context, command, await steps(ask, verb));
    return;
  }
  const done = await withVault(context, flags, async (vault) => {
    const isServing = servingCommands.includes(command) || (command === "reprotect" && fields["listen"] !== undefined);
    const served: ServedRun[] = [];
    // The machines of a plan are served as soon as they are there: commands that follow look for them.
    const serve = async (run: string, cacheBytes: number): Promise<void> =>
      void served.push(await openRun(context, vault, run, cacheBytes));
    const options = { ...workOptions(context), ...(isServing ? { serve } : {}) };
    const ask: Ask = async (given) =>
      await carryOutVerb(vault, given, { ...options, flags, tellFault: tellFaults(context) });
    try {
      const worked = await steps(ask, verb);
      const isAlone = isServing && "disks" in worked && worked.disks.some(({ nbd }) => nbd !== null);
      if (!("run" in worked) || (!isAlone && served.length === 0)) return worked;
      // Scripts go on from here, while the command serves.
      printDone(context, command, worked);
      if (isAlone) served.push(await openRun(context, vault, worked.run));
      await serveRuns(context, worked.run, served);
      return undefined;
    } finally {
      await closeRuns(served);
    }
  });
  if (done !== undefined) printDone(context, command, done);
}

/** Prints each fault of a plan. */
export function tellFaults({ output }: CommandContext): TellFault {
  return (fault) => output.item("fault", fault, printable(formatFault(fault)));
}

function printDone({ output }: CommandContext, command: VerbName, done: VerbDone): void {
  output.summary(command, done, textOf(done, output));
}

/** A run, or what a run would do, as text. */
export function textOf(done: VerbDone, output: CommandContext["output"]): string {
  if (!("run" in done)) return describePreview(done, output);
  const text = "machines" in done ? describePlanRun(done, output) : describeRun(done, output);
  return "elapsedMs" in done ? `${text}\n${movedText(done)}` : text;
}

function movedText({ bytesWritten, bytesRead, elapsedMs }: Extract<VerbDone, { bytesRead: number }>): string {
  return printable(
    `written ${formatBytes(bytesWritten)}, read ${formatBytes(bytesRead)} (${formatDuration(elapsedMs)})`,
  );
}

/** What the work on a run needs of the command. */
export function workOptions({ output, environment, signal }: CommandContext): Omit<OperateOptions, "run" | "note"> {
  return {
    environment: definedIn(environment),
    openAgent: agentSource,
    signal,
    onProgress: output.progress.bind(output),
    onNotice: output.notice.bind(output),
  };
}

/** The choices by name stay as they are; the rest is a point as everywhere. */
export function selectorOf(text: string): string {
  return /^(latest(-processed|-app|-crash)?|common)$/.test(text) ? text : pointSelector(text);
}
