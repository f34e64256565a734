/**
 * The command line from its words to an exit code: parse, run one command, report what went wrong.
 *
 * Commands get a context, never `process`: the output, the environment and the signal that ^C
 * aborts. A command returns when it did what was asked, and throws when it could not. `exitCode` is
 * for the outcome that is neither: damage that was found.
 *
 * A new command is one function from the context to a commander `Command`, named in `commandsOf`,
 * with its summary in json.ts.
 */
import { Command, CommanderError, Option } from "commander";
import { systemCode, TidemarkError, tidemarkVersion } from "../engine/index.ts";
import { agentCommand } from "./commands/agent.ts";
import { agentsCommand } from "./commands/agents.ts";
import { benchCommand } from "./commands/bench.ts";
import { capacityCommand } from "./commands/capacity.ts";
import { checkCommand } from "./commands/check.ts";
import { collectCommand } from "./commands/collect.ts";
import type { CommandContext } from "./commands/context.ts";
import { copyCommand } from "./commands/copy.ts";
import { demoCommand } from "./commands/demo.ts";
import { failbackCommand, migrateCommand } from "./commands/failback.ts";
import { failoverCommand, reprotectCommand } from "./commands/failover.ts";
import { jobsCommand } from "./commands/jobs.ts";
import { disksCommand, pointsCommand } from "./commands/listings.ts";
import { materializeCommand } from "./commands/materialize.ts";
import { mountCommand } from "./commands/mount.ts";
import { planCommand } from "./commands/plan.ts";
import { protectCommand } from "./commands/protect.ts";
import { pruneCommand } from "./commands/prune.ts";
import { completionCommand, manCommand, otherNameCommands, versionCommand } from "./commands/reference.ts";
import { replicaCommand } from "./commands/replica.ts";
import { replicateCommand } from "./commands/replicate.ts";
import { retentionCommand } from "./commands/retention.ts";
import { stressCommand } from "./commands/stress.ts";
import { vaultCommand } from "./commands/vault.ts";
import { verifyCommand } from "./commands/verify.ts";
import { watchCommand } from "./commands/watch.ts";
import { debugChannels, printDebugEvents } from "./debug.ts";
import { errorReport, errorStacks, exitCodeOf, exitCodes, wrongUse } from "./errors.ts";
import { Interruption } from "./interruption.ts";
import { openOutput } from "./output.ts";
import { isHidden, nameOf, optionText, termOfCommand, usageOf } from "./reference/definitions.ts";
import { checkEnvironment, type Environment, environmentHelp, outputFlags } from "./settings.ts";
import { printable } from "./text.ts";

/**
 * Runs the command that `words` (without program and script) ask for and gives the exit code.
 * Throws nothing.
 */
export async function runCommandLine(words: readonly string[], environment: Environment): Promise<number> {
  // Needed before the words are parsed: an error in the words is printed in the form that they ask
  // for.
  const flags = outputFlags(words, environment);
  const output = openOutput(flags, environment);
  const debugging = flags.debug ? printDebugEvents(debugChannels) : undefined;
  const interruption = Interruption.listen((error) => output.error(error));
  const context: CommandContext = {
    output,
    environment,
    signal: interruption.signal,
    answerSignals: (answers) => interruption.handOver(answers),
    allowRest: (ms) => interruption.allowRest(ms),
    exitCode: exitCodes.done,
    utc: flags.utc,
  };
  const code = await exitCodeFrom(context, words);
  interruption[Symbol.dispose]();
  debugging?.[Symbol.dispose]();
  const isPrinted = await output.close();
  return code === exitCodes.done && !isPrinted ? exitCodes.failed : code;
}

async function exitCodeFrom(context: CommandContext, words: readonly string[]): Promise<number> {
  try {
    checkEnvironment(context.environment);
    await createProgram(context).parseAsync(words, { from: "user" });
    return context.exitCode;
  } catch (error) {
    // Help and version have been printed.
    if (error instanceof CommanderError) return exitCodes.done;
    const told = ofThisProcess(error);
    context.output.error(told);
    return exitCodeOf(told);
  }
}

/**
 * Names what this process lacks, wherever it was found: a folder to be in, open files, or a module. Node
 * looks for modules with calls whose failures it takes for absence, also that of too many open files.
 */
function ofThisProcess(error: unknown): unknown {
  if (!(error instanceof Error)) return error;
  if ("syscall" in error && error.syscall === "uv_cwd") {
    return new TidemarkError("INVALID_ARGUMENT", "the current folder does not exist any more", {
      remedy: "change to a folder that exists, and run the command again",
      cause: error,
    });
  }
  const code = systemCode(error);
  if (code === "ERR_MODULE_NOT_FOUND") {
    return new TidemarkError("UNSUPPORTED", `a part of the program cannot be loaded: ${error.message}`, {
      remedy: "raise the limit of open files with `ulimit -n 1024`, or install tidemark and its packages again",
      cause: error,
    });
  }
  if (error instanceof TidemarkError || (code !== "EMFILE" && code !== "ENFILE")) return error;
  const whose = code === "EMFILE" ? "this process" : "this machine";
  return new TidemarkError("UNSUPPORTED", `${whose} may not open as many files as the command needs (${code})`, {
    remedy: "raise the limit of open files with `ulimit -n 1024`, then run the command again",
    cause: error,
  });
}

/** Text for stderr about an error that nothing caught: a fault in Tidemark. */
export function reportUncaught(error: unknown, words: readonly string[], environment: Environment): string {
  const { message, remedy } = errorReport(ofThisProcess(error));
  const stacks = outputFlags(words, environment).debug ? `${errorStacks(error)}\n` : "";
  return `error: ${printable(message)}\n  ${printable(remedy)}\n${stacks}`;
}

/** The commands in the order in which help lists them. */
function commandsOf(context: CommandContext): readonly Command[] {
  const definitions = [
    demoCommand,
    vaultCommand,
    replicateCommand,
    protectCommand,
    agentCommand,
    agentsCommand,
    watchCommand,
    disksCommand,
    pointsCommand,
    materializeCommand,
    mountCommand,
    copyCommand,
    replicaCommand,
    failoverCommand,
    reprotectCommand,
    failbackCommand,
    migrateCommand,
    planCommand,
    jobsCommand,
    verifyCommand,
    pruneCommand,
    collectCommand,
    retentionCommand,
    checkCommand,
    capacityCommand,
    benchCommand,
    stressCommand,
    versionCommand,
    completionCommand,
    manCommand,
  ];
  return definitions.map((definition) => definition(context));
}

/** The definitions of all commands. Nothing runs before the result is given words to parse. */
export function createProgram(context: CommandContext): Command {
  const { output, environment } = context;
  const program = new Command("tidemark")
    .description("replicate disks into a vault as recovery points, and bring any point back bit for bit")
    .version(tidemarkVersion, "-V, --version", "print the version")
    .option("--json", "print one JSON object a line")
    .addOption(new Option("-q, --quiet", "print answers and errors only").conflicts("verbose"))
    .option("-v, --verbose", "print codes, facts and wide tables too")
    .option("--utc", "show times in UTC on a terminal too")
    .option("--debug", "print stack traces and events of the engine")
    .addHelpText(
      "after",
      `
Vaults:
  azurite:DIR                an Azurite that Tidemark starts, its data in DIR
  dir:DIR                    a plain folder
  https://…/CONTAINER[?SAS]  a container of Azure Storage (http for an Azurite)
  memory:                    gone when the program ends; for tests

Times:
  2026-05-01T12:00:00Z       ISO 8601 with a zone: Z, or an offset like +02:00
  2 hours ago                a number and a unit (seconds, minutes, hours, days,
                             weeks), several in a row: "1 day 6 hours ago"
  A terminal shows local time with its offset; pipes, --utc and --json show UTC.

${environmentHelp}
Exit codes:
  0 done · 1 failed · 2 wrong use · 3 damage found · 130 interrupted
  10 no such vault, disk or point · 11 another writer · 12 access refused

Examples:
  $ tidemark demo
  $ export TIDEMARK_VAULT=azurite:/srv/vault
  $ tidemark replicate web.img --disk web
  $ tidemark points list --disk web
  $ tidemark materialize --disk web --point latest --to back.img`,
    );
  for (const command of commandsOf(context)) program.addCommand(command);
  for (const command of otherNameCommands()) program.addCommand(command, { hidden: true });
  for (const command of withSubcommands(program)) {
    // A variable that is set to nothing counts as not set.
    for (const option of command.options)
      if (option.envVar !== undefined && environment[option.envVar] === "") delete option.envVar;
    command
      // `stress store --vault V`: the command above has an option of that name, and is given its value first.
      .hook("preSubcommand", (above, below) => {
        for (const option of command === program ? [] : above.options) {
          const name = option.attributeName();
          if (above.getOptionValueSource(name) === "cli" && below.options.some((own) => own.attributeName() === name))
            below.setOptionValueWithSource(name, above.getOptionValue(name), "cli");
        }
      })
      .exitOverride((error) => {
        if (error.exitCode === 0) throw error;
        if (error.code !== "commander.help" || command !== program) throw wrongUse(error, nameOf(command));
        // `tidemark` alone asks what it can do.
        program.outputHelp();
        throw new CommanderError(exitCodes.done, error.code, error.message);
      })
      .helpCommand(false)
      .configureHelp({
        helpWidth: output.columns,
        showGlobalOptions: command !== program,
        visibleGlobalOptions: () => program.options.filter(({ long }) => long !== "--version"),
        commandUsage: (described) => wrapped(usageOf(described), output.columns - "Usage: ".length),
        subcommandTerm: termOfCommand,
        optionDescription: optionText,
      })
      // An error of commander arrives as an exception and is printed like every other error.
      .configureOutput({
        writeOut: (text) => output.help(text),
        writeErr: () => undefined,
        outputError: () => undefined,
      })
      .helpOption(isHidden(command) ? false : "-h, --help", "print this help");
  }
  return program;
}

/**
 * `text` broken at spaces into lines of at most `width` columns, aligned behind `Usage: `. Options
 * stay with their values.
 */
function wrapped(text: string, width: number): string {
  const lines: string[] = [];
  for (const word of text.split(/ (?=--|<|\[)(?<!--\S+ )/)) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines.join(`\n${" ".repeat("Usage: ".length)}`);
}

function withSubcommands(command: Command): readonly Command[] {
  return [command, ...command.commands.flatMap(withSubcommands)];
}
