/**
 * Verbs on failover runs, of disks and of recovery plans: carries one out, prints what has become of
 * the run, and goes on to serve its disks where it has instant targets.
 */
import type { Command } from "commander";
import type {
  Failovers,
  OperateOptions,
  PlanRunDone,
  Plans,
  RunDone,
  ServedRun,
  StartFailoverOptions,
  Vault,
} from "../../engine/index.ts";
import { askAgent } from "../agent/control-client.ts";
import { agentSource } from "../agent-source.ts";
import { describePlanRun } from "../plan/plan-text.ts";
import { formatBytes, formatDuration } from "../quantities.ts";
import { describeRun } from "../run-text.ts";
import type { VaultFlags } from "../settings.ts";
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
  readonly listen?: string;
  readonly note?: string;
}

/** The verbs of the control API: see `failover-runs.ts`. */
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

const endingWords = { commit: "after", rollback: "rollback-after" } as const;

/** How a failover ends, in the words of the control API. */
export function endingText(ending: StartFailoverOptions["ending"]): string | undefined {
  return ending == null ? undefined : `${endingWords[ending.action]}:${ending.afterMs}ms`;
}

/** What a list of runs or jobs says of `--agent`. */
export const agentListing =
  "With --agent it lists those of all vaults of the agent; runs of plans are not known there.";

export function withAgentOption(command: Command): Command {
  return command.option("--agent <socket>", "let the agent behind this control socket do it, instead of --vault");
}

/**
 * Carries out a verb on a run and prints what has become of the run. `fields`: what the verb has besides
 * the run, in the words of the control API.
 */
export async function operate(
  context: CommandContext,
  command: VerbName,
  run: string,
  flags: VerbFlags,
  verb: (runs: Failovers | Plans, options: OperateOptions) => Promise<RunDone | PlanRunDone>,
  fields: object = {},
): Promise<void> {
  const { note, agent } = flags;
  if (agent !== undefined) {
    await askAgentTo(context, command, agent, { run, note, ...fields });
    return;
  }
  await work(
    context,
    command,
    flags,
    async (vault, more) => await verb(await runsOf(vault, run, context.signal), { run, note, ...more }),
  );
}

/** As `operate`, by the agent behind a control socket. Errors: AGENT_UNREACHABLE, and what the agent reports. */
export async function askAgentTo(
  { output, signal }: CommandContext,
  command: VerbName,
  agent: string,
  fields: object,
): Promise<void> {
  const request = { method: "POST", path: "/v1/failover", fields: { verb: agentVerbs[command], ...fields } } as const;
  const done = (await askAgent(agent, { ...request, signal })) as RunDone;
  output.summary(command, done, `${describeRun(done, output)}\n${movedText(done)}`);
}

/** What works on this run: the runs of plans, or those of disks. */
export async function runsOf(
  { plans, failovers }: Vault,
  run: string,
  signal: AbortSignal,
): Promise<Failovers | Plans> {
  return (await plans.has(run, signal)) ? plans : failovers;
}

/** Begins a run or works on one, and prints what has become of it. */
export async function work(
  context: CommandContext,
  command: VerbName | `failover ${StartFailoverOptions["kind"]}`,
  flags: VerbFlags,
  verb: (vault: Vault, options: Omit<OperateOptions, "run" | "note">) => Promise<RunDone | PlanRunDone>,
): Promise<void> {
  const { output } = context;
  const print = (done: RunDone | PlanRunDone): void => {
    const text = "machines" in done ? describePlanRun(done, output) : describeRun(done, output);
    output.summary(command, done, `${text}\n${movedText(done)}`);
  };
  const done = await withVault(context, flags, async (vault) => {
    const isServing = servingCommands.includes(command) || (command === "reprotect" && flags.listen !== undefined);
    const served: ServedRun[] = [];
    // The machines of a plan are served as soon as they are there: commands that follow look for them.
    const serve = async (run: string, cacheBytes: number): Promise<void> =>
      void served.push(await openRun(context, vault, run, cacheBytes));
    try {
      const worked = await verb(vault, { ...workOptions(context), ...(isServing ? { serve } : {}) });
      const isAlone = isServing && !("machines" in worked) && worked.disks.some(({ nbd }) => nbd !== null);
      if (!isAlone && served.length === 0) return worked;
      // Scripts go on from here, while the command serves.
      print(worked);
      if (isAlone) served.push(await openRun(context, vault, worked.run));
      await serveRuns(context, worked.run, served);
      return undefined;
    } finally {
      await closeRuns(served);
    }
  });
  if (done !== undefined) print(done);
}

function movedText({ bytesWritten, bytesRead, elapsedMs }: RunDone | PlanRunDone): string {
  return printable(
    `written ${formatBytes(bytesWritten)}, read ${formatBytes(bytesRead)} (${formatDuration(elapsedMs)})`,
  );
}

/** What the work on a run needs of the command. */
export function workOptions({ output, environment, signal }: CommandContext): Omit<OperateOptions, "run" | "note"> {
  const defined = Object.entries(environment).filter((entry): entry is [string, string] => entry[1] !== undefined);
  return {
    environment: Object.fromEntries(defined),
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
