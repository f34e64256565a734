/** `tidemark jobs`: what was done on failover runs, step by step, and what can go on. */
import { Command } from "commander";
import { type JobSummary, TidemarkError } from "../../engine/index.ts";
import { type AgentJobs, jobsOf } from "../agent/failover-runs.ts";
import { formatBytes, formatDuration, formatNumberOf } from "../quantities.ts";
import { type VaultFlags, wholeNumber, withVaultOptions, withWorkersOption } from "../settings.ts";
import { fields, linesOf, table } from "../text.ts";
import { requireTime, timeForms } from "../times.ts";
import { type CommandContext, withVault } from "./context.ts";
import { agentListing, askVaults, operate, withAgentOption } from "./run-verbs.ts";

export function jobsCommand(context: CommandContext): Command {
  const jobs = new Command("jobs")
    .description("list, show and resume the jobs of failovers")
    .addHelpText("after", "\nExample:\n  $ tidemark jobs list --vault dir:/v");
  withAgentOption(withVaultOptions(jobs.command("list")))
    .description("list the jobs of all failover runs, newest first")
    .addHelpText(
      "after",
      `
${agentListing}

Examples:
  $ tidemark jobs list --vault dir:/v
  $ tidemark jobs list --agent /run/tidemark/agent.sock`,
    )
    .action(async (flags: JobFlags) => await list(context, flags));
  withAgentOption(withVaultOptions(jobs.command("show").argument("<job>", "name of the job, such as 5f03c2aa-1")))
    .description("show a job with its tasks")
    .addHelpText("after", "\nExample:\n  $ tidemark jobs show 5f03c2aa-1 --vault dir:/v")
    .action(async (job: string, flags: JobFlags) => await show(context, job, flags));
  withAgentOption(
    withWorkersOption(
      withVaultOptions(jobs.command("resume").argument("<run>", "name of the run or of one of its jobs")),
    ),
  )
    .description("go on with a run that waits for a person, was interrupted, or failed")
    .option("--step <number>", "this step of a plan's run has been done by hand", wholeNumber)
    .addHelpText(
      "after",
      `
Of a plan's run, a step that failed is done again. With --step, work of a person, or
a command that failed, counts as done, and the run goes on behind it.

Examples:
  $ tidemark jobs resume 5f03c2aa --vault dir:/v
  $ tidemark jobs resume 0badcafe --step 4 --vault dir:/v`,
    )
    .action(async (name: string, { step, ...flags }: JobFlags & { readonly step?: number }) => {
      await operate(context, "jobs resume", flags, { run: runOf(name), step });
    });
  withAgentOption(withVaultOptions(jobs.command("cancel").argument("<run>", "name of the run or of one of its jobs")))
    .description("stop the job of a run that is under way, wherever its process is")
    .addHelpText(
      "after",
      `
The process stops within about a second. The run stays in the state whose work was
stopped: resume it, or give it up with \`tidemark failover cancel\` or \`cleanup\`.

Example:
  $ tidemark jobs cancel 5f03c2aa --vault dir:/v`,
    )
    .action(async (name: string, flags: JobFlags) => {
      await operate(context, "jobs cancel", flags, { run: runOf(name) });
    });
  withAgentOption(
    withVaultOptions(jobs.command("export").option("--since <time>", `only jobs that began since: ${timeForms}`)),
  )
    .description("print the jobs as CSV, oldest first, one line for each task")
    .addHelpText(
      "after",
      `
With --json each job is one object, as in \`tidemark jobs list\`.

Example:
  $ tidemark jobs export --since '30 days ago' --vault dir:/v > jobs.csv`,
    )
    .action(async (flags: JobFlags & { readonly since?: string }) => await exportJobs(context, flags));
  return jobs;
}

interface JobFlags extends VaultFlags {
  readonly agent?: string;
}

/** The run of a job. */
function runOf(name: string): string {
  return name.replace(/-\d+$/, "");
}

/** The jobs of all runs, of disks and of plans, newest first. */
async function allJobs(context: CommandContext, flags: JobFlags): Promise<readonly JobSummary[]> {
  const { signal } = context;
  if (flags.agent !== undefined) return (await askVaults<AgentJobs>(context, flags.agent, "/v1/jobs")).jobs;
  return await withVault(context, flags, async (vault) => await jobsOf(vault, signal));
}

async function exportJobs(context: CommandContext, flags: JobFlags & { readonly since?: string }): Promise<void> {
  const { output } = context;
  const sinceMs = flags.since === undefined ? 0 : requireTime("--since", flags.since, Date.now());
  const all = await allJobs(context, flags);
  const jobs = all.filter(({ startTime }) => Date.parse(startTime) >= sinceMs).toReversed();
  for (const job of jobs) output.item("job", job);
  output.answer("jobs export", { jobs: jobs.length }, [columns.join(","), ...jobs.flatMap(csvOf)].join("\n"));
}

/** The names that Azure Site Recovery gives the fields of a job. */
const columns = [
  "run",
  "job",
  "scenarioName",
  "state",
  "startTime",
  "endTime",
  "targetObjectName",
  "task",
  "taskState",
  "taskStartTime",
  "taskEndTime",
  "exitCode",
  "errorCode",
  "errorMessage",
  "recommendedAction",
] as const;

function csvOf(job: JobSummary): string[] {
  const own = [job.run, job.job, job.operation, job.state, job.startTime, job.endTime, job.disks.join(" ")];
  const rows = job.tasks.map(({ name, state, startTime, endTime, exitCode, error }) => [
    ...own,
    name,
    state,
    startTime,
    endTime,
    exitCode,
    error?.code,
    error?.message,
    error?.remedy,
  ]);
  return (rows.length === 0 ? [own] : rows).map((row) => columns.map((_, index) => csvCell(row[index])).join(","));
}

/** RFC 4180. A cell that a table program would take for a formula gets an apostrophe. */
function csvCell(value: string | number | null | undefined): string {
  const text = value == null ? "" : String(value);
  const safe = /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

async function list(context: CommandContext, flags: JobFlags): Promise<void> {
  const { output } = context;
  const jobs = await allJobs(context, flags);
  for (const job of jobs) output.item("job", job);
  const rows = jobs.map(({ job, operation, state, startTime, endTime, tasks }) => [
    job,
    operation,
    state,
    output.time(startTime),
    endTime === null ? "-" : output.time(endTime),
    String(tasks.length),
  ]);
  const text = [
    ...(rows.length === 0 ? [] : [table(["JOB", "OPERATION", "STATE", "BEGUN", "ENDED", "TASKS"], rows, "lllllr")]),
    formatNumberOf(jobs.length, "job"),
  ].join("\n");
  output.answer("jobs list", { jobs: jobs.length }, text);
}

async function show(context: CommandContext, name: string, flags: JobFlags): Promise<void> {
  const { output } = context;
  const jobs = await allJobs(context, flags);
  const job = jobs.find((candidate) => candidate.job === name);
  if (job === undefined) {
    throw new TidemarkError("INVALID_ARGUMENT", `the vault holds no job ${JSON.stringify(name)}`, {
      remedy: "`tidemark jobs list` shows the jobs",
    });
  }
  output.answer("jobs show", job, describe(job, output));
}

function describe(
  { job, operation, state, tasks }: JobSummary,
  output: Pick<CommandContext["output"], "time">,
): string {
  const lines = tasks.flatMap((task): (readonly [string, string])[] => [
    [task.name, factsOf(task, output)],
    ...linesOf(task.output ?? "").map((line) => ["", line] as const),
    ...(task.error === null ? [] : [`${task.error.code}: ${task.error.message}`, task.error.remedy ?? ""])
      .filter((line) => line !== "")
      .map((line) => ["", line] as const),
  ]);
  return [`job ${job}: ${operation}, ${state}`, fields(lines)].join("\n");
}

function factsOf(task: JobSummary["tasks"][number], output: Pick<CommandContext["output"], "time">): string {
  const { state, startTime, endTime, exitCode, progress } = task;
  const facts = [state, `begun ${output.time(startTime)}`];
  if (endTime !== null) facts.push(`took ${formatDuration(Date.parse(endTime) - Date.parse(startTime))}`);
  else if (progress !== null) facts.push(`${formatBytes(progress.doneBytes)} of ${formatBytes(progress.totalBytes)}`);
  if (exitCode !== null) facts.push(`exit code ${exitCode}`);
  return facts.join(", ");
}
