/**
 * `tidemark failover`: takes disks to another place, tests that, and goes on from there. A verb works
 * on a run until the run waits for the next one.
 */
import { resolve } from "node:path";
import { Command, Option } from "commander";
import { type PlanRunSummary, type RunSummary, type StartFailoverOptions, TidemarkError } from "../../engine/index.ts";
import { formatListen, parseListen } from "../../engine/internal.ts";
import { askAgent } from "../agent/control-client.ts";
import type { AgentRuns } from "../agent/failover-runs.ts";
import { parseEnding, type VerbFields } from "../agent/failover-verbs.ts";
import { controlSocketDefault } from "../agent/listen.ts";
import { placedTarget as placedPlanTarget } from "../plan/placed-target.ts";
import { formatNumberOf, parseDuration } from "../quantities.ts";
import { type VaultFlags, withVaultOptions, withWorkersOption } from "../settings.ts";
import { type Column, fittedTable } from "../text.ts";
import { type CommandContext, withVault } from "./context.ts";
import { startPlan } from "./plan.ts";
import { agentListing, askVaults, operate, selectorOf, textOf, withAgentOption, workOptions } from "./run-verbs.ts";

interface StartFlags extends VaultFlags {
  readonly agent?: string;
  readonly disk?: readonly string[];
  readonly group?: string;
  readonly plan?: string;
  readonly dryRun?: true;
  readonly to?: string;
  readonly point?: string;
  readonly check?: string;
  readonly shutdown?: string;
  readonly source?: string;
  readonly socket?: string;
  readonly ttl?: string;
  readonly note?: string;
  readonly commit?: string;
}

interface RunFlags extends VaultFlags {
  readonly agent?: string;
  readonly point?: string;
  readonly discardPoints?: true;
  readonly listen?: string;
  readonly note?: string;
}

const targets =
  "instant:unix:PATH, instant:tcp:HOST:PORT (with ,image=PATH), file:PATH, vhd:PATH, dir:FOLDER, device:PATH, blob:PREFIX or replica";
const choices =
  "latest (default), latest-processed, latest-app, latest-crash, common, a sequence number, id, time or age";

export function failoverCommand(context: CommandContext): Command {
  const failover = new Command("failover")
    .description("take disks to another place, test that, and bring everything back")
    .addHelpText(
      "after",
      `
A failover is a run, which goes on over several commands. Each command is a job
that can be resumed after a crash with \`tidemark jobs resume\`.

Examples:
  $ tidemark failover test --disk web --to file:/srv/drill.img --vault dir:/v
  $ tidemark failover unplanned --disk web --to dir:/srv --vault dir:/v
  $ tidemark failover test --plan shop.yaml --point common --vault dir:/v
  $ tidemark failover list --vault dir:/v`,
    );
  addTest(context, failover);
  addUnplanned(context, failover);
  addPlanned(context, failover);
  addListings(context, failover);
  addVerbs(context, failover);
  return failover;
}

function addTest(context: CommandContext, failover: Command): void {
  withDisks(failover.command("test"))
    .description("make a point a disk, check it, and leave replication alone")
    .option("--point <point>", choices)
    .option("--check <command>", "run this against each target; exit code 0 means that it is good")
    .option("--ttl <duration>", "after this time the test is overdue, such as 14d", duration)
    .option("--note <text>", "a comment that is kept with the run")
    .addHelpText(
      "after",
      `
The check gets TIDEMARK_DISK, TIDEMARK_POINT, TIDEMARK_RUN, TIDEMARK_IMAGE (of an
instant target TIDEMARK_NBD), TIDEMARK_DIRECTION and TIDEMARK_TEST=1. Its output
and exit code are kept. The test has succeeded when its cleanup has, too.
An instant target is served until ^C; \`tidemark jobs resume\` serves it again.

Examples:
  $ tidemark failover test --disk web --to file:/srv/drill.img \\
      --check 'fsck.ext4 -fn "$TIDEMARK_IMAGE"' --ttl 14d --vault dir:/v
  $ tidemark failover test --group shop --to dir:/srv/drill --point common \\
      --vault dir:/v
  $ tidemark failover test --disk web --vault dir:/v \\
      --to instant:unix:/run/web.sock,image=/srv/drill.img`,
    )
    .action(async (flags: StartFlags) => await start(context, "test", flags));
}

function addUnplanned(context: CommandContext, failover: Command): void {
  withEnding(withSocket(withDisks(failover.command("unplanned"))))
    .description("take disks to another place when their source is lost")
    .option("--point <point>", choices)
    .option("--shutdown <command>", "stop the source with this; a failure is noted, and the failover goes on")
    .addHelpText(
      "after",
      `
With --socket, \`latest\` asks the agent for a last point first; if that fails, the
newest point of the vault is used. While the run has a disk, no new writer makes
points of it. Choose another point, commit, or cancel.

An instant target is a disk at once: it is served until ^C, and copied meanwhile.

Examples:
  $ tidemark failover unplanned --disk web --to dir:/srv --vault dir:/v
  $ tidemark failover unplanned --disk web --vault dir:/v \\
      --to instant:tcp:127.0.0.1:10809,image=/srv/web.img`,
    )
    .action(async (flags: StartFlags) => await start(context, "unplanned", flags));
}

function addPlanned(context: CommandContext, failover: Command): void {
  withEnding(withSocket(withDisks(failover.command("planned"))))
    .description("take disks to another place without losing a write")
    .option("--source <image>", "the disk's image, when no agent protects it; nothing may write it any more")
    .option("--shutdown <command>", "stop what writes the source with this first; it must succeed")
    .addHelpText(
      "after",
      `
The agent stops its disks with a last point each, or a last point of the image is
taken; else the failover is not done. To a replica, only the last difference
moves; of several replicas, name one: replica:NAME.

Examples:
  $ tidemark failover planned --disk web --to replica --vault dir:/v
  $ tidemark failover planned --disk web --to file:/srv/web.img \\
      --source /old/web.img --vault dir:/v`,
    )
    .action(async (flags: StartFlags) => await start(context, "planned", flags));
}

function addListings(context: CommandContext, failover: Command): void {
  withAgentOption(withVaultOptions(failover.command("list")))
    .description("list the runs, newest first, with what is left of them")
    .addHelpText(
      "after",
      `
${agentListing}

Examples:
  $ tidemark failover list --vault dir:/v
  $ tidemark failover list --agent /run/tidemark/agent.sock`,
    )
    .action(async (flags: RunFlags) => await list(context, flags));
  withAgentOption(withVaultOptions(failover.command("show").argument("<run>", "name of the run")))
    .description("show a run: its state, what is allowed and why the rest is not, what may be deleted")
    .addHelpText("after", "\nExample:\n  $ tidemark failover show 5f03c2aa --vault dir:/v")
    .action(async (run: string, flags: RunFlags) => await show(context, run, flags));
}

function addVerbs(context: CommandContext, failover: Command): void {
  withRun(failover.command("change-point"))
    .description("take the targets of a failover to another point, before it is committed")
    .requiredOption("--point <point>", choices)
    .addHelpText(
      "after",
      `
What was written to a target since is lost. An instant target begins anew, and is
served until ^C.

Example:
  $ tidemark failover change-point 5f03c2aa --point 41 --vault dir:/v`,
    )
    .action(async (run: string, flags: RunFlags) => {
      await operate(context, "failover change-point", flags, { run, point: selectorOf(flags.point ?? "latest") });
    });
  withRun(failover.command("commit"))
    .description("end the choice of the point: the targets are yours")
    .option("--discard-points", "drop all points of the disks but the newest")
    .addHelpText("after", "\nExample:\n  $ tidemark failover commit 5f03c2aa --vault dir:/v")
    .action(async (run: string, { discardPoints, ...flags }: RunFlags) => {
      await operate(context, "failover commit", flags, { run, discardPoints });
    });
  withRun(failover.command("cancel"))
    .description("bring back the state before a failover that is not committed")
    .addHelpText("after", "\nExample:\n  $ tidemark failover cancel 5f03c2aa --vault dir:/v")
    .action(async (run: string, flags: RunFlags) => await operate(context, "failover cancel", flags, { run }));
  withRun(failover.command("cleanup"))
    .description("remove what a test made, and end it when nothing of it is left")
    .option("--note <text>", "a comment that is kept with the run")
    .addHelpText("after", "\nExample:\n  $ tidemark failover cleanup 5f03c2aa --note passed --vault dir:/v")
    .action(async (run: string, { note, ...flags }: RunFlags) => {
      await operate(context, "failover cleanup", flags, { run, note });
    });
}

export function reprotectCommand(context: CommandContext): Command {
  return withRun(new Command("reprotect"))
    .description("replicate the disks of a committed failover from their new place")
    .option("--listen <address>", "unix:PATH or tcp:HOST:PORT: serve the disks there and take points, until ^C")
    .addHelpText(
      "after",
      `
Takes one point of each disk, by differences, under its name and in its chain. From
then on \`tidemark replicate\`, \`protect\` and the agent make its points from the
new place, and the former source is refused. With --listen the disks are served
and their points taken here; ^C takes a last one.

Examples:
  $ tidemark reprotect 5f03c2aa --vault dir:/v
  $ tidemark reprotect 5f03c2aa --listen unix:/run/web.sock --vault dir:/v`,
    )
    .action(async (run: string, flags: RunFlags) => {
      const listen = flags.listen === undefined ? undefined : placedAddress(flags.listen);
      await operate(context, "reprotect", flags, { run, listen });
    });
}

async function start(context: CommandContext, kind: StartFailoverOptions["kind"], flags: StartFlags): Promise<void> {
  const { disk: disks, group, plan, dryRun, to, check, shutdown, ttl, note, commit, agent } = flags;
  if ([disks, group, plan].filter((given) => given !== undefined).length !== 1) {
    throw new TidemarkError("INVALID_ARGUMENT", "a failover needs disks, a group or a plan, and only one of them", {
      remedy: "add `--disk NAME`, several times for several disks, `--group NAME` or `--plan FILE`",
    });
  }
  // A planned failover asks the agent at its usual socket by default.
  const usual = kind === "planned" && flags.source === undefined;
  const socket = flags.socket ?? (usual ? (agent ?? controlSocketDefault(context.environment)) : undefined);
  const point = selectorOf(flags.point ?? "latest");
  const common = { point, ttl, note, ...sourceFields({ source: flags.source, socket }) };
  if (plan !== undefined) {
    refuseOptions("a plan has commands of its own", { check, shutdown, source: flags.source, commit });
    await startPlan(context, kind, flags, { ...common, plan: resolve(plan), to: placedPlanTarget(to, ".") });
    return;
  }
  refuseOptions("only a plan can be looked at before its run", { "dry-run": dryRun });
  if (to === undefined)
    throw new TidemarkError("INVALID_ARGUMENT", "no target is named", { remedy: `add \`--to TARGET\`: ${targets}` });
  const target = agent === undefined ? to : placedTarget(to);
  const fields = { ...common, disks, group, to: target, check, shutdown, commit };
  await operate(context, `failover ${kind}`, flags, fields);
}

/** Errors: INVALID_ARGUMENT when one of these options is given. */
function refuseOptions(reason: string, options: Readonly<Record<string, unknown>>): void {
  const [given] = Object.entries(options).find(([, value]) => value != null) ?? [];
  if (given === undefined) return;
  throw new TidemarkError("INVALID_ARGUMENT", `--${given} is not possible here: ${reason}`, {
    remedy: `leave \`--${given}\` out`,
  });
}

/** Where the disks are written, in the words of the control API. */
export function sourceFields({
  source,
  socket,
}: {
  readonly source?: string | undefined;
  readonly socket?: string | undefined;
}): VerbFields {
  return source === undefined ? { socket: socket && resolve(socket) } : { source: resolve(source) };
}

/** The last columns give way on a narrow terminal; `failover show` has everything. */
const listed: readonly Column<RunSummary | PlanRunSummary>[] = [
  { heading: "RUN", align: "l", cell: ({ run }) => run },
  { heading: "HEALTH", align: "l", cell: ({ health }) => health },
  { heading: "STATE", align: "l", cell: ({ state }) => state },
  { heading: "DISKS", align: "l", cell: (run) => disksIn(run) },
  { heading: "KIND", align: "l", dropped: 2, cell: ({ kind }) => kind },
  { heading: "POINT", align: "l", dropped: 3, cell: ({ point }) => point },
  { heading: "TARGET", align: "l", dropped: 4, cell: ({ target }) => target },
  { heading: "LEFT", align: "r", dropped: 1, cell: ({ leftovers }) => String(leftovers.length) },
];

function disksIn(run: RunSummary | PlanRunSummary): string {
  if ("disks" in run) return run.disks.map(({ disk }) => disk).join(", ");
  return `plan ${run.plan}: ${run.machines.map(({ machine }) => machine).join(", ")}`;
}

async function runsIn(
  context: CommandContext,
  flags: RunFlags,
): Promise<{ readonly runs: readonly RunSummary[]; readonly plans: readonly PlanRunSummary[] }> {
  const { signal } = context;
  if (flags.agent !== undefined) return await askVaults<AgentRuns>(context, flags.agent, "/v1/failover");
  return await withVault(context, flags, async (vault) => {
    await vault.failovers.carryOutDue(workOptions(context));
    return { runs: await vault.failovers.list(signal), plans: await vault.plans.list({ signal }) };
  });
}

async function list(context: CommandContext, flags: RunFlags): Promise<void> {
  const { output } = context;
  const { runs, plans } = await runsIn(context, flags);
  for (const run of plans) output.item("planRun", run);
  for (const run of runs) output.item("run", run);
  const isOpen = ({ health }: { readonly health: string }): boolean => health !== "Normal";
  // The machines of a plan are in the row of its run.
  const alone = runs.filter(({ plan }) => plan === null);
  const shown = [...plans, ...alone].toSorted((a, b) => (a.created < b.created ? 1 : -1));
  const text = [
    ...(shown.length === 0 ? [] : [fittedTable(listed, shown, output.columns)]),
    `${formatNumberOf(shown.length, "run")}, ${shown.filter(isOpen).length} of them open`,
  ].join("\n");
  output.answer("failover list", { runs: runs.length, open: runs.filter(isOpen).length, plans: plans.length }, text);
}

async function show(context: CommandContext, run: string, flags: RunFlags): Promise<void> {
  const { output, signal } = context;
  const show = async (): Promise<RunSummary | PlanRunSummary> =>
    await withVault(context, flags, async ({ failovers, plans }) => {
      await failovers.carryOutDue(workOptions(context));
      return await ((await plans.has(run, signal)) ? plans : failovers).show(run, signal);
    });
  const path = `/v1/failover/${encodeURIComponent(run)}`;
  const asked = flags.agent === undefined ? await show() : await askAgent(flags.agent, { method: "GET", path, signal });
  const summary = asked as RunSummary | PlanRunSummary;
  output.answer("failover show", summary, textOf(summary, output));
}

function duration(text: string): string {
  if (parseDuration(text) !== undefined) return text;
  throw new TidemarkError("INVALID_ARGUMENT", `${JSON.stringify(text)} is not a duration`, {
    remedy: "write it as 14d, 12h or 30m",
  });
}

function withDisks(command: Command): Command {
  return withAgentOption(
    withWorkersOption(
      withVaultOptions(
        command
          .option("--disk <names...>", "disks in the vault")
          .option("--group <name>", "all disks of this group, at one point")
          .option("--plan <file>", "the machines of this recovery plan, in its order")
          .option("--dry-run", "of a plan: show points and targets, and change nothing")
          .option("--to <target>", `${targets}; default: that of the plan`),
      ),
    ),
  );
}

/** What becomes of a failover that waits. */
export function withEnding(command: Command): Command {
  const checked = (text: string): string => {
    parseEnding(text);
    return text;
  };
  return command.option("--commit <when>", "manual (default), after:TIME, or rollback-after:TIME such as 60m", checked);
}

/** A target that means the same in the folder of an agent. */
function placedTarget(to: string): string {
  const [, scheme = "", place = ""] = /^(file|vhd|dir|device|instant):(.+)$/s.exec(to) ?? [];
  if (scheme === "") return to;
  if (scheme !== "instant") return `${scheme}:${resolve(place)}`;
  const [listen = "", image = "."] = place.split(",image=");
  return `instant:${placedAddress(listen)},image=${resolve(image)}`;
}

/** An address that means the same in the folder of an agent. */
function placedAddress(text: string): string {
  const address = parseListen(text, process.cwd());
  return typeof address === "string" ? text : formatListen(address);
}

export function withRun(command: Command): Command {
  return withAgentOption(withWorkersOption(withVaultOptions(command.argument("<run>", "name of the run"))));
}

export function withSocket(command: Command): Command {
  return command.addOption(
    new Option("--socket <path>", "the control socket of the agent that protects the disks").env("TIDEMARK_SOCKET"),
  );
}
