/**
 * Command definitions as plain data, read back from commander: the one source of help, man page,
 * completion and docs/cli.md.
 *
 * Idea: a command is defined once, with its options and with `addHelpText("after", …)` for notes
 * and examples. `describeProgram` reads all of that back, so that a command that is added appears
 * everywhere by itself.
 */
import type { Argument, Command, Option } from "commander";

export interface CommandReference {
  /** `tidemark points list` */
  readonly name: string;
  readonly aliases: readonly string[];
  readonly description: string;
  readonly usage: string;
  readonly arguments: readonly ArgumentReference[];
  readonly options: readonly OptionReference[];
  /** Preformatted text between the options and the examples, or "". */
  readonly notes: string;
  /** Preformatted shell commands, or "". */
  readonly examples: string;
  readonly commands: readonly CommandReference[];
}

export interface ArgumentReference {
  /** `<source>` */
  readonly term: string;
  readonly choices: readonly string[];
  readonly description: string;
}

export interface OptionReference {
  /** `--disk <name>`, `-q, --quiet` */
  readonly flags: string;
  /** `--disk` */
  readonly long: string;
  readonly short: string | undefined;
  /** `name` of `--disk <name>`; undefined for a switch. */
  readonly value: string | undefined;
  readonly choices: readonly string[];
  readonly description: string;
  readonly isRequired: boolean;
  /** The variable that stands for the flag. */
  readonly variable: string | undefined;
}

/** Options that must be given, by flag or by variable, although commander does not check them. */
const requiredOptions = new WeakSet<Option>();

/**
 * Marks an option as required in help and documents. The command itself refuses to run without it.
 */
export function required(option: Option): Option {
  requiredOptions.add(option);
  return option;
}

/** True for an option that the command does not run without. */
export function isRequired(option: Option): boolean {
  return requiredOptions.has(option) || (option.mandatory && option.defaultValue === undefined);
}

/** `tidemark points list` */
export function nameOf(command: Command): string {
  return command.parent === null ? command.name() : `${nameOf(command.parent)} ${command.name()}`;
}

/** `tidemark replicate <source> --disk <name> --vault <vault> [options]` */
export function usageOf(command: Command): string {
  const words = [
    ...command.registeredArguments.map(termOf),
    ...command.options.filter((option) => isRequired(option)).map(({ flags }) => flags),
  ];
  const tail = command.commands.some((child) => !isHidden(child)) ? ["[options]", "[command]"] : ["[options]"];
  return [nameOf(command), ...words, ...tail].join(" ");
}

/** `resume|start`, `replicate <source>` */
export function termOfCommand(command: Command): string {
  return [[command.name(), ...command.aliases()].join("|"), ...command.registeredArguments.map(termOf)].join(" ");
}

/** The description of an option with what marks it: `name of the disk (required)`. */
export function optionText(option: Option): string {
  const choices = option.argChoices === undefined ? [] : [`choices: ${option.argChoices.join(", ")}`];
  const marks = [
    ...(isRequired(option) ? ["required"] : []),
    ...choices,
    ...(option.envVar === undefined ? [] : [`env: ${option.envVar}`]),
  ];
  return marks.length === 0 ? option.description : `${option.description} (${marks.join(", ")})`;
}

/** True for a command that help does not list: the name of another program's command. */
export function isHidden(command: Command): boolean {
  return hiddenCommands.has(command);
}

const hiddenCommands = new WeakSet<Command>();

/**
 * Leaves a command out of help and documents. The command must be added with `{ hidden: true }`.
 */
export function hidden(command: Command): Command {
  hiddenCommands.add(command);
  return command;
}

/** The root of the tree that `command` belongs to. */
export function programOf(command: Command): Command {
  return command.parent === null ? command : programOf(command.parent);
}

/** A command and everything below it as data. */
export function describeProgram(command: Command): CommandReference {
  const { notes, examples } = afterText(command);
  return {
    name: nameOf(command),
    aliases: command.aliases(),
    description: command.description(),
    usage: usageOf(command),
    arguments: command.registeredArguments.map((argument) => ({
      term: termOf(argument),
      choices: argument.argChoices ?? [],
      description: argument.description,
    })),
    options: command.options.filter(({ hidden }) => !hidden).map(describeOption),
    notes,
    examples,
    commands: command.commands.filter((child) => !isHidden(child)).map(describeProgram),
  };
}

/** A command and all commands below it, in the order of the definitions. */
export function allCommands(reference: CommandReference): readonly CommandReference[] {
  return [reference, ...reference.commands.flatMap(allCommands)];
}

function describeOption(option: Option): OptionReference {
  return {
    flags: option.flags,
    long: option.long ?? option.flags,
    short: option.short,
    value: /<([^<>]+)>/.exec(option.flags)?.[1] ?? /\[([^[\]]+)\]/.exec(option.flags)?.[1],
    choices: option.argChoices ?? [],
    description: option.description,
    isRequired: isRequired(option),
    variable: option.envVar,
  };
}

function termOf(argument: Argument): string {
  return argument.required ? `<${argument.name()}>` : `[${argument.name()}]`;
}

/** What `addHelpText("after", …)` adds: commander gives it only as a part of the whole help. */
function afterText(command: Command): { readonly notes: string; readonly examples: string } {
  let whole = "";
  const before = command.configureOutput();
  command.configureOutput({ writeOut: (text) => (whole += text) });
  command.outputHelp();
  command.configureOutput(before);
  const after = whole.slice(command.helpInformation().length).trim();
  const at = /^(?:Examples?):$/m.exec(after);
  if (at === null) return { notes: after, examples: "" };
  return {
    notes: after.slice(0, at.index).trimEnd(),
    examples: after
      .slice(at.index + at[0].length)
      .replace(/^\n+/, "")
      .trimEnd(),
  };
}
