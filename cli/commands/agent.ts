/** `tidemark agent`: protects the disks of a configuration, and the commands that talk to a running one. */
import { Command, Option } from "commander";
import { type PointSummary, TidemarkError } from "../../engine/index.ts";
import { Agent } from "../agent/agent.ts";
import { type AgentConfig, configError, formatFault } from "../agent/config.ts";
import { loadConfig } from "../agent/config-file.ts";
import { askAgent } from "../agent/control-client.ts";
import { openEngineAdapter, systemClock } from "../agent/engine-adapter.ts";
import { controlSocketDefault } from "../agent/listen.ts";
import { openLog } from "../agent/log.ts";
import { parseRate } from "../agent/schema.ts";
import { describeAgent } from "../agent/status-table.ts";
import type { AgentStatus, ReloadSummary, StopSummary } from "../agent/supervisor.ts";
import { formatNumberOf, formatRate } from "../quantities.ts";
import { printable } from "../text.ts";
import { type CommandContext, closing } from "./context.ts";

interface AgentFlags {
  readonly config?: string;
  readonly check?: true;
}

interface ClientFlags {
  readonly socket?: string;
}

interface TargetFlags extends ClientFlags {
  readonly disk?: string;
  readonly group?: string;
}

interface PointFlags extends TargetFlags {
  readonly appConsistent?: true;
}

interface LimitFlags extends ClientFlags {
  readonly vault: string;
}

export function agentCommand(context: CommandContext): Command {
  const agent = new Command("agent")
    .description("protect the disks of a configuration for weeks, or talk to the agent that does")
    .addOption(new Option("--config <file>", "YAML file with vaults, policies and disks").env("TIDEMARK_CONFIG"))
    .option("--check", "only check the configuration: exit 2 with every fault in it")
    .addHelpText(
      "after",
      `
Without a command, it runs the agent in the foreground: SIGTERM and ^C take last
points and end it, a second one ends it at once, SIGHUP reads the configuration
again. The commands talk to it through its control socket, by default
$XDG_RUNTIME_DIR/tidemark/agent.sock; TIDEMARK_SOCKET stands for --socket.

Examples:
  $ tidemark agent --config agent.yaml --check
  $ tidemark agent --config agent.yaml
  $ tidemark agent status
  $ tidemark agent point --disk web --app-consistent --json`,
    )
    .action(async (flags: AgentFlags) => await run(context, flags));
  withSocket(agent.command("status"))
    .description("how the agent's disks stand: state, health, lag, churn, backlog, and what to do")
    .option("--disk <name>", "only this disk")
    .option("--group <name>", "only the disks of this group")
    .addHelpText("after", "\nExample:\n  $ tidemark agent status")
    .action(async (flags: TargetFlags) => await status(context, flags));
  withTarget(withSocket(agent.command("point")))
    .description("take a point now, of a group at one barrier; returns when it is committed")
    .option("--app-consistent", "with the disk's hooks")
    .addHelpText("after", "\nExample:\n  $ tidemark agent point --disk web --app-consistent --json")
    .action(async (flags: PointFlags) => await point(context, flags));
  withTarget(withSocket(agent.command("pause")))
    .description("take no points until resumed; writes go on and are tracked")
    .addHelpText("after", "\nWithout a name it concerns every disk.\n\nExample:\n  $ tidemark agent pause --disk web")
    .action(async (flags: TargetFlags) => await pauseOrResume(context, "pause", flags));
  withTarget(withSocket(agent.command("resume").alias("start")))
    .description("take points again of what was paused, protect again what was stopped")
    .addHelpText("after", "\nWithout a name it concerns every disk.\n\nExample:\n  $ tidemark agent resume --disk web")
    .action(async (flags: TargetFlags) => await pauseOrResume(context, "resume", flags));
  withSocket(agent.command("reload"))
    .description("read the configuration again; one with faults is refused whole")
    .addHelpText("after", "\nExample:\n  $ tidemark agent reload")
    .action(async (flags: ClientFlags) => await reload(context, flags));
  withTarget(withSocket(agent.command("stop")))
    .description("take last points and end the agent, or end the protection of the disks that are named; returns when it is done")
    .addHelpText(
      "after",
      `
With a name the agent and all other disks go on. A stopped disk is not exported;
it stays stopped, through reloads too, until \`tidemark agent resume\` or the next
start of the agent.

Examples:
  $ tidemark agent stop
  $ tidemark agent stop --disk web`,
    )
    .action(async (flags: TargetFlags) => await stop(context, flags));
  withSocket(agent.command("limit"))
    .description("limit what is sent to a vault, until it is set again or the agent ends")
    .argument("<rate>", "20MiB/s, `off`, or `config` for the configuration's limits")
    .requiredOption("--vault <name>", "the vault's name in the configuration")
    .addHelpText("after", "\nExamples:\n  $ tidemark agent limit 5MiB/s --vault main\n  $ tidemark agent limit config --vault main")
    .action(async (rate: string, flags: LimitFlags) => await limit(context, rate, flags));
  return agent;
}

async function run(context: CommandContext, { config: path, check }: AgentFlags): Promise<void> {
  if (path === undefined) {
    throw new TidemarkError("INVALID_ARGUMENT", "no configuration is named", {
      remedy: "add `--config FILE`, or see `tidemark agent --help` for the commands that talk to a running agent",
    });
  }
  const config = await checkedConfig(context, path);
  const counts = { vaults: config.vaults.size, policies: config.policies.size, disks: config.disks.size };
  if (check === true) {
    const text = `${printable(path)} is sound: ${formatNumberOf(counts.disks, "disk")}, ${formatNumberOf(counts.vaults, "vault")}`;
    context.output.summary("agent", { config: config.path, ...counts }, text);
    return;
  }
  const { environment } = context;
  const log = openLog(config.logging, environment);
  try {
    const options = { environment, engine: openEngineAdapter(environment), clock: systemClock, log };
    const agent = await Agent.start(config, options);
    // Neither rejects before the disks are stopped; what fails meanwhile is in the log.
    const drained = new Promise<void>((resolve, reject) => {
      context.answerSignals({
        stop: () => void agent.stop({ drain: true }).then(resolve, reject),
        reload: () => void agent.refresh(),
      });
    });
    await closing(agent, async () => await Promise.race([agent.ended, drained]));
    log.write("info", "stopped");
    context.output.summary("agent", { config: config.path, ...counts }, "");
  } finally {
    log.close();
  }
}

async function checkedConfig({ output, environment }: CommandContext, path: string): Promise<AgentConfig> {
  const loaded = await loadConfig(path, environment);
  if ("config" in loaded) return loaded.config;
  for (const found of loaded.faults) output.item("fault", found, printable(formatFault(found)));
  throw configError(path, loaded.faults);
}

async function status(context: CommandContext, flags: TargetFlags): Promise<void> {
  const whole = (await ask(context, flags, "GET", "/v1/status")) as AgentStatus;
  const answer = { ...whole, disks: chosen(whole.disks, flags) };
  for (const disk of answer.disks) context.output.item("disk", disk);
  context.output.summary("agent status", { ...answer, disks: answer.disks.length }, describeAgent(answer));
}

/** Those that are named; all when none is. Errors: DISK_NOT_FOUND. */
function chosen(disks: AgentStatus["disks"], { disk, group }: TargetFlags): AgentStatus["disks"] {
  if (disk === undefined && group === undefined) return disks;
  const found = disks.filter(
    (other) =>
      (disk === undefined || other.disk === disk.normalize("NFC")) && (group === undefined || other.group === group.normalize("NFC")),
  );
  if (found.length > 0) return found;
  const named = [...(disk === undefined ? [] : [`disk ${disk}`]), ...(group === undefined ? [] : [`group ${group}`])].join(" in the ");
  throw new TidemarkError("DISK_NOT_FOUND", `the agent has no ${named}`, { remedy: "`tidemark agent status` shows its disks" });
}

async function point(context: CommandContext, flags: PointFlags): Promise<void> {
  const fields = { ...targetOf(flags), applicationConsistent: flags.appConsistent === true };
  const { points } = (await ask(context, flags, "POST", "/v1/point", fields)) as { readonly points: readonly PointSummary[] };
  const wanted = points.some(({ consistency }) => consistency === "app") || flags.appConsistent !== true;
  const text = [
    ...points.map(({ disk, sequence, consistency }) => `point ${sequence} of disk ${printable(disk)} is committed (${consistency})`),
    ...(wanted ? [] : ["the application was not brought to rest; `tidemark points show` tells why"]),
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
  const { disks } = (await ask(context, flags, "POST", `/v1/${verb}`, targetOf(flags))) as { readonly disks: readonly string[] };
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
  const text = lines.filter(([, names]) => names.length > 0).map(([what, names]) => `${what}: ${printable(names.join(", "))}`);
  context.output.summary("agent reload", summary, text.length === 0 ? "nothing has changed" : text.join("\n"));
}

async function stop(context: CommandContext, flags: TargetFlags): Promise<void> {
  const fields = { ...targetOf(flags), drain: true };
  const answer = await ask(context, flags, "POST", "/v1/stop", fields);
  if (flags.disk !== undefined || flags.group !== undefined) {
    const { disks, notDrained } = answer as StopSummary;
    const text = [
      `stopped: ${printable(disks.join(", "))}`,
      ...(notDrained.length === 0 ? [] : [`not all in the vault yet, shipped when resumed: ${printable(notDrained.join(", "))}`]),
    ];
    context.output.summary("agent stop", { disks, notDrained }, text.join("\n"));
    return;
  }
  context.output.summary("agent stop", { stopped: true }, "the agent has stopped");
}

async function limit(context: CommandContext, text: string, flags: LimitFlags): Promise<void> {
  const bytesPerSecond = limitOf(text);
  const fields = { vault: flags.vault, bytesPerSecond };
  await ask(context, flags, "PUT", "/v1/limit", fields);
  const what = { off: "no limit", config: "as the configuration says" }[text] ?? formatRate(Number(bytesPerSecond), 1_000);
  context.output.summary("agent limit", fields, `vault ${printable(flags.vault)}: ${what}`);
}

/** As the control API takes it. */
function limitOf(text: string): number | "off" | null {
  if (text === "config") return null;
  if (text === "off") return text;
  const bytesPerSecond = parseRate(text);
  if (typeof bytesPerSecond === "number") return bytesPerSecond;
  throw new TidemarkError("INVALID_ARGUMENT", `${text} is no rate`, {
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
  const socket = flags.socket ?? controlSocketDefault(context.environment);
  return await askAgent(socket, { method, path, fields, signal: context.signal });
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
