/**
 * `tidemark agent`: the daemon that protects the disks of a configuration, and the commands that
 * talk to it. Only the daemon loads what reads YAML and writes logs.
 */
import { Command, Option } from "commander";
import { type PointSummary, TidemarkError } from "../../engine/index.ts";
import { closing } from "../../engine/internal.ts";
import { type AgentConfig, configError, formatFault, type TellFault } from "../agent/config.ts";
import { askAgent } from "../agent/control-client.ts";
import { openEngineAdapter, systemClock } from "../agent/engine-adapter.ts";
import { controlSocketDefault } from "../agent/listen.ts";
import { parseLimit } from "../agent/schema.ts";
import { describeAgent } from "../agent/status-table.ts";
import type { MissedPoint, ReloadSummary, StopSummary } from "../agent/summaries.ts";
import { formatNumberOf, formatRate } from "../quantities.ts";
import { printable } from "../text.ts";
import { toldWhile } from "../waiting.ts";
import { addRegisterCommand } from "./agent-register.ts";
import type { CommandContext } from "./context.ts";
import { askStatus, type TargetFlags, watchAgent } from "./watch.ts";

interface AgentFlags {
  readonly config?: string;
  readonly check?: true;
}

interface ClientFlags {
  readonly socket?: string;
}

interface StatusFlags extends TargetFlags {
  readonly watch?: true;
}

interface PointFlags extends TargetFlags {
  readonly appConsistent?: true;
}

interface LimitFlags extends ClientFlags {
  readonly vault: string;
}

export function agentCommand(context: CommandContext): Command {
  const agent = new Command("agent")
    .description("run the agent that protects the disks of a configuration, or talk to it")
    .addOption(new Option("--config <file>", "YAML file with vaults, policies and disks").env("TIDEMARK_CONFIG"))
    .option("--check", "check the configuration and exit; exit 2 with every fault in it")
    .addHelpText(
      "after",
      `
Without a command, the agent runs in the foreground. SIGTERM and ^C take last
points and end it; a second signal ends it at once; SIGHUP reads the
configuration again. The commands talk to the agent through its control socket,
by default $XDG_RUNTIME_DIR/tidemark/agent.sock.

Examples:
  $ tidemark agent --config agent.yaml --check
  $ tidemark agent --config agent.yaml
  $ tidemark agent status
  $ tidemark agent point --disk web --app-consistent --json`,
    )
    .action(async (flags: AgentFlags) => await run(context, flags));
  withSocket(agent.command("status"))
    .description("show state, health, lag and backlog of the agent's disks, and what to do")
    .option("--disk <name>", "only this disk")
    .option("--group <name>", "only the disks of this group")
    .option("--watch", "as `tidemark watch`")
    .addHelpText(
      "after",
      `
Columns that do not fit are left out; --verbose shows more of them.

Examples:
  $ tidemark agent status
  $ tidemark agent status --watch
  $ tidemark agent status --group db --json`,
    )
    .action(
      async (flags: StatusFlags) =>
        await (flags.watch === true ? watchAgent(context, "agent status", flags) : status(context, flags)),
    );
  withTarget(withSocket(agent.command("point")))
    .description("take a point of a disk, or of a group at one barrier; return when it is committed")
    .option("--app-consistent", "run the hooks, for an application-consistent point")
    .addHelpText("after", "\nExample:\n  $ tidemark agent point --disk web --app-consistent --json")
    .action(async (flags: PointFlags) => await point(context, flags));
  withTarget(withSocket(agent.command("pause")))
    .description("take no points until `agent resume`; writes go on and are tracked")
    .addHelpText("after", "\nWithout a name it pauses every disk.\n\nExample:\n  $ tidemark agent pause --disk web")
    .action(async (flags: TargetFlags) => await pauseOrResume(context, "pause", flags));
  withTarget(withSocket(agent.command("resume").alias("start")))
    .description("take points of paused disks again, and protect stopped disks again")
    .addHelpText("after", "\nWithout a name it resumes every disk.\n\nExample:\n  $ tidemark agent resume --disk web")
    .action(async (flags: TargetFlags) => await pauseOrResume(context, "resume", flags));
  withSocket(agent.command("reload"))
    .description("read the configuration again; a configuration with faults changes nothing")
    .addHelpText("after", "\nExample:\n  $ tidemark agent reload")
    .action(async (flags: ClientFlags) => await reload(context, flags));
  withTarget(withSocket(agent.command("stop")))
    .description("take last points, then end the agent or the protection of one disk or group")
    .addHelpText(
      "after",
      `
With a name, the agent and all other disks go on. A stopped disk is not
exported. It stays stopped, through reloads too, until \`tidemark agent resume\`
or the next start of the agent. The command returns when all has stopped.

Examples:
  $ tidemark agent stop
  $ tidemark agent stop --disk web`,
    )
    .action(async (flags: TargetFlags) => await stop(context, flags));
  withSocket(agent.command("limit"))
    .description("limit the upload to a vault, until the next limit or the end of the agent")
    .argument("<rate>", "20MiB/s, `off`, or `config` for the limits of the configuration")
    .requiredOption("--vault <name>", "the vault's name in the configuration")
    .addHelpText(
      "after",
      "\nExamples:\n  $ tidemark agent limit 5MiB/s --vault main\n  $ tidemark agent limit config --vault main",
    )
    .action(async (rate: string, flags: LimitFlags) => await limit(context, rate, flags));
  addRegisterCommand(context, agent);
  return agent;
}

async function run(context: CommandContext, { config: path, check }: AgentFlags): Promise<void> {
  if (path === undefined) {
    throw new TidemarkError("INVALID_ARGUMENT", "no configuration is named", {
      remedy:
        "run `tidemark agent --config FILE`, or `tidemark agent --help` for the commands that talk to a running agent",
    });
  }
  const config = await checkedConfig(context, path);
  const counts = { vaults: config.vaults.size, policies: config.policies.size, disks: config.disks.size };
  if (check === true) {
    const text = `${printable(path)} has no fault: ${formatNumberOf(counts.disks, "disk")}, ${formatNumberOf(counts.vaults, "vault")}`;
    context.output.summary("agent", { config: config.path, ...counts }, text);
    return;
  }
  const { environment } = context;
  const [{ Agent }, { openLog }] = await Promise.all([import("../agent/agent.ts"), import("../agent/log.ts")]);
  const log = openLog(config.logging, environment, { utc: context.utc });
  try {
    const engine = openEngineAdapter(environment, ({ code, message }) => log.write("warn", message, { code }));
    const options = { environment, engine, clock: systemClock, log };
    const agent = await Agent.start(config, options);
    // Rejects only after all disks have stopped; earlier failures are in the log.
    const failed = new Promise<never>((_, reject) => {
      context.answerSignals({
        stop: () => void agent.stop({ drain: true }).catch(reject),
        reload: () => void agent.refresh(),
      });
    });
    const missed = await closing(agent, async () => await Promise.race([agent.ended, failed]));
    log.write("info", "stopped");
    refuseMissed(missed);
    context.output.summary("agent", { config: config.path, ...counts }, "");
  } finally {
    log.close();
  }
}

/** Errors: that of the first of `missed`. */
function refuseMissed(missed: readonly MissedPoint[]): void {
  const [first] = missed;
  if (first === undefined) return;
  const disks = missed.map(({ disk }) => disk).join(", ");
  const { code, message } = first.error;
  throw new TidemarkError(code, `left without a last point: ${disks} (${message})`, {
    remedy: "start the agent again: the writes that no point holds are marked, and shipped first",
    detail: { disks },
    cause: first.error,
  });
}

async function checkedConfig({ output, environment }: CommandContext, path: string): Promise<AgentConfig> {
  const { loadConfig } = await import("../agent/config-file.ts");
  const loaded = await loadConfig(path, environment);
  if ("config" in loaded) return loaded.config;
  const tell: TellFault = (fault) => output.item("fault", fault, printable(formatFault(fault)));
  throw configError(path, loaded.faults, tell);
}

async function status(context: CommandContext, flags: TargetFlags): Promise<void> {
  const { output, signal } = context;
  const answer = await askStatus(context, flags, signal);
  for (const disk of answer.disks) output.item("disk", disk);
  output.answer("agent status", { ...answer, disks: answer.disks.length }, describeAgent(answer, output));
}

async function point(context: CommandContext, flags: PointFlags): Promise<void> {
  const fields = { ...targetOf(flags), applicationConsistent: flags.appConsistent === true };
  const { points } = (await ask(context, flags, "POST", "/v1/point", fields)) as {
    readonly points: readonly PointSummary[];
  };
  const wanted = points.some(({ consistency }) => consistency === "app") || flags.appConsistent !== true;
  const text = [
    ...points.map(
      ({ disk, sequence, consistency }) => `point ${sequence} of disk ${printable(disk)} is committed (${consistency})`,
    ),
    ...(wanted ? [] : ["the application was not frozen: see why with `tidemark points show`"]),
  ];
  const [only, ...others] = points;
  if (only !== undefined && others.length === 0) {
    context.output.summary("agent point", only, text.join("\n"));
    return;
  }
  for (const made of points) context.output.item("point", made);
  context.output.summary("agent point", { group: flags.group ?? null, points: points.length }, text.join("\n"));
}

async function pauseOrResume(context: CommandContext, verb: "pause" | "resume", flags: TargetFlags): Promise<void> {
  const { disks } = (await ask(context, flags, "POST", `/v1/${verb}`, targetOf(flags))) as {
    readonly disks: readonly string[];
  };
  context.output.summary(`agent ${verb}`, { disks }, `${verb}d: ${printable(disks.join(", "))}`);
}

async function reload(context: CommandContext, flags: ClientFlags): Promise<void> {
  const summary = (await ask(context, flags, "POST", "/v1/reload")) as ReloadSummary;
  const lines: readonly (readonly [what: string, names: readonly string[]])[] = [
    ["added", summary.added],
    ["removed", summary.removed],
    ["restarted", summary.restarted],
    ["changed", summary.changed],
    ["grown", summary.grown],
    ["new limits", summary.limits],
    ["only at the next start", summary.atNextStart],
  ];
  const text = lines
    .filter(([, names]) => names.length > 0)
    .map(([what, names]) => `${what}: ${printable(names.join(", "))}`);
  context.output.summary("agent reload", summary, text.length === 0 ? "nothing has changed" : text.join("\n"));
}

async function stop(context: CommandContext, flags: TargetFlags): Promise<void> {
  const fields = { ...targetOf(flags), drain: true };
  const answer = await ask(context, flags, "POST", "/v1/stop", fields);
  if (flags.disk !== undefined || flags.group !== undefined) {
    const stopped = answer as StopSummary;
    const { disks, notDrained } = stopped;
    const text = [
      `stopped: ${printable(disks.join(", "))}`,
      ...(notDrained.length === 0
        ? []
        : [`not all in the vault yet, shipped when resumed: ${printable(notDrained.join(", "))}`]),
    ];
    context.output.summary("agent stop", stopped, text.join("\n"));
    return;
  }
  context.output.summary("agent stop", { stopped: true }, "the agent has stopped");
}

async function limit(context: CommandContext, text: string, flags: LimitFlags): Promise<void> {
  const bytesPerSecond = limitOf(text);
  const fields = { vault: flags.vault, bytesPerSecond };
  await ask(context, flags, "PUT", "/v1/limit", fields);
  const what =
    { off: "no limit", config: "as the configuration says" }[text] ?? formatRate(Number(bytesPerSecond), 1_000);
  context.output.summary("agent limit", fields, `vault ${printable(flags.vault)}: ${what}`);
}

/** As the control API takes it. */
function limitOf(text: string): number | "off" | null {
  if (text === "config") return null;
  if (text === "off") return text;
  const bytesPerSecond = parseLimit(text);
  if (typeof bytesPerSecond === "number") return bytesPerSecond;
  throw new TidemarkError("INVALID_ARGUMENT", `${text} is not a rate`, {
    remedy: "write it as 20MiB/s, at least 1KiB/s, or `off`, or `config`",
  });
}

async function ask(
  context: CommandContext,
  flags: ClientFlags,
  method: "GET" | "POST" | "PUT",
  path: string,
  fields?: object,
): Promise<unknown> {
  const { environment, output, signal } = context;
  const socket = flags.socket ?? controlSocketDefault(environment);
  const answer = askAgent(socket, { method, path, fields, signal });
  return await toldWhile(answer, `the agent at ${socket}`, output.notice.bind(output));
}

function targetOf({ disk, group }: TargetFlags): object {
  return { ...(disk === undefined ? {} : { disk }), ...(group === undefined ? {} : { group }) };
}

function withSocket(command: Command): Command {
  return command.addOption(new Option("--socket <path>", "the agent's control socket").env("TIDEMARK_SOCKET"));
}

function withTarget(command: Command): Command {
  return command.option("--disk <name>", "this disk").option("--group <name>", "the disks of this group");
}
