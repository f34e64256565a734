/**
 * `tidemark version`, `completion` and `man`; and the names that other programs have for our
 * commands.
 */
import process from "node:process";
import { Argument, Command } from "commander";
import { TidemarkError, tidemarkVersion } from "../../engine/index.ts";
import { completionScript, type Shell, shells } from "../reference/completion.ts";
import { describeProgram, hidden, programOf } from "../reference/definitions.ts";
import { manPage } from "../reference/man.ts";
import type { CommandContext } from "./context.ts";

export function versionCommand({ output }: CommandContext): Command {
  return new Command("version")
    .description("print the versions of Tidemark and Node.js, and the platform")
    .addHelpText("after", "\nExamples:\n  $ tidemark version\n  $ tidemark version --json")
    .action(() => {
      const facts = {
        version: tidemarkVersion,
        node: process.versions.node,
        platform: `${process.platform}-${process.arch}`,
      };
      output.answer("version", facts, `tidemark ${facts.version} (Node.js ${facts.node}, ${facts.platform})`);
    });
}

export function completionCommand({ output }: CommandContext): Command {
  const command = new Command("completion");
  return command
    .description("print a script that completes commands and flags in a shell")
    .addArgument(new Argument("<shell>", "the shell that reads it").choices(shells))
    .addHelpText(
      "after",
      `
Examples:
  $ source <(tidemark completion bash)
  $ tidemark completion zsh > ~/.zfunc/_tidemark
  $ tidemark completion fish > ~/.config/fish/completions/tidemark.fish`,
    )
    .action((shell: Shell) => output.help(completionScript(shell, describeProgram(programOf(command)))));
}

export function manCommand({ output }: CommandContext): Command {
  const command = new Command("man");
  return command
    .description("print the manual page, as roff")
    .addHelpText(
      "after",
      `
Examples:
  $ tidemark man | man -l -
  $ tidemark man > /usr/local/share/man/man1/tidemark.1`,
    )
    .action(() => output.help(manPage(describeProgram(programOf(command)))));
}

/** Names of other programs, our name, and the command to type. */
const otherNames: readonly (readonly [name: string, here: string, remedy: string])[] = [
  ["backup", "replicate", "run `tidemark replicate IMAGE --disk NAME --vault VAULT`"],
  [
    "restore",
    "materialize",
    "run `tidemark materialize --disk NAME --point latest --to FILE --vault VAULT`, or serve the point at once with `tidemark mount`",
  ],
  ["snapshots", "points list", "run `tidemark points list --disk NAME --vault VAULT`"],
  [
    "list",
    "disks list",
    "run `tidemark disks list --vault VAULT`, or `tidemark points list --disk NAME --vault VAULT`",
  ],
  [
    "status",
    "agent status",
    "run `tidemark agent status`, or `tidemark disks list --vault VAULT` for what a vault holds",
  ],
];

/** Commands that only say what they are called here. */
export function otherNameCommands(): readonly Command[] {
  return otherNames.map(([name, here, remedy]) =>
    hidden(new Command(name))
      .argument("[words...]")
      .allowUnknownOption()
      .helpOption(false)
      .action(() => {
        throw new TidemarkError("INVALID_ARGUMENT", `\`tidemark ${name}\` is called \`tidemark ${here}\``, { remedy });
      }),
  );
}
