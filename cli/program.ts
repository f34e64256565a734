/**
 * The command line from its words to an exit code: parse, run one command, tell what went wrong.
 *
 * Commands get a context, never `process`: the output, the environment and the signal that ^C aborts. They return normally when they did
 * what was asked; `exitCode` is for the one outcome that is neither success nor error, damage that was found.
 */
import { Command, CommanderError } from "commander";
import { tidemarkVersion } from "../engine/index.ts";
import { agentCommand } from "./commands/agent.ts";
import { benchCommand } from "./commands/bench.ts";
import { collectCommand } from "./commands/collect.ts";
import type { CommandContext } from "./commands/context.ts";
import { demoCommand } from "./commands/demo.ts";
import { disksCommand, pointsCommand } from "./commands/listings.ts";
import { materializeCommand } from "./commands/materialize.ts";
import { mountCommand } from "./commands/mount.ts";
import { protectCommand } from "./commands/protect.ts";
import { pruneCommand } from "./commands/prune.ts";
import { replicateCommand } from "./commands/replicate.ts";
import { retentionCommand } from "./commands/retention.ts";
import { vaultCommand } from "./commands/vault.ts";
import { verifyCommand } from "./commands/verify.ts";
import { exitCodeOf, exitCodes, wrongUse } from "./errors.ts";
import { Interruption } from "./interruption.ts";
import { openOutput } from "./output.ts";
import { type Environment, environmentHelp, outputFlags } from "./settings.ts";

/** Runs the command that `words` (without program and script) ask for and gives the exit code. Throws nothing. */
export async function runCommandLine(words: readonly string[], environment: Environment): Promise<number> {
  // Needed before the words are parsed: how to print an error in them.
  const output = openOutput(outputFlags(words, environment), environment);
  const interruption = Interruption.listen((error) => output.error(error));
  const context: CommandContext = {
    output,
    environment,
    signal: interruption.signal,
    answerSignals: (answers) => interruption.handOver(answers),
    exitCode: exitCodes.done,
  };
  try {
    await createProgram(context).parseAsync(words, { from: "user" });
    return context.exitCode;
  } catch (error) {
    // Help and version have been printed.
    if (error instanceof CommanderError) return exitCodes.done;
    output.error(error);
    return exitCodeOf(error);
  } finally {
    interruption[Symbol.dispose]();
    await output.close();
  }
}

function createProgram(context: CommandContext): Command {
  const { output, environment } = context;
  const program = new Command("tidemark")
    .description("Replicates disks into a vault as recovery points, incrementally and deduplicated, and brings any point back bit for bit.")
    .version(tidemarkVersion, "-V, --version", "print the version")
    .option("--json", "print one JSON object a line (env: TIDEMARK_JSON=1)")
    .option("--debug", "print stack traces with errors (env: TIDEMARK_DEBUG=1)")
    .addHelpText(
      "after",
      `
Vaults:
  azurite:DIR                an Azurite of our own, its data in DIR
  dir:DIR                    a plain folder
  https://…/CONTAINER[?SAS]  a container of Azure Storage (http for an Azurite)
  memory:                    gone when the program ends; for tests

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
  const commands = [
    demoCommand,
    vaultCommand,
    replicateCommand,
    protectCommand,
    agentCommand,
    disksCommand,
    pointsCommand,
    materializeCommand,
    mountCommand,
    verifyCommand,
    pruneCommand,
    collectCommand,
    retentionCommand,
    benchCommand,
  ];
  for (const command of commands) program.addCommand(command(context));
  for (const command of withSubcommands(program)) {
    // A variable that is set to nothing counts as not set.
    for (const option of command.options) if (option.envVar !== undefined && environment[option.envVar] === "") delete option.envVar;
    command
      .exitOverride((error) => {
        throw error.exitCode === 0 ? error : wrongUse(error, nameOf(command));
      })
      .helpCommand(false)
      .configureHelp({
        helpWidth: output.columns,
        showGlobalOptions: command !== program,
        visibleGlobalOptions: () => program.options.filter(({ long }) => long !== "--version"),
      })
      // What commander would print about an error comes to us as an exception, and is printed like every other.
      .configureOutput({ writeOut: (text) => output.help(text), writeErr: () => undefined, outputError: () => undefined })
      .helpOption("-h, --help", "print this help");
  }
  return program;
}

/** `tidemark points list` */
function nameOf(command: Command): string {
  return command.parent === null ? command.name() : `${nameOf(command.parent)} ${command.name()}`;
}

function withSubcommands(command: Command): readonly Command[] {
  return [command, ...command.commands.flatMap(withSubcommands)];
}
