/**
 * Manual page in the man(7) macros of roff, made from the command definitions.
 * `tidemark man | man -l -` shows it.
 *
 * Text is escaped at one place: a backslash, a dash and a dot or apostrophe at the beginning of a
 * line mean something to roff.
 */
import { tidemarkVersion } from "../../engine/index.ts";
import { exitCodeMeanings } from "../errors.ts";
import { environmentVariables } from "../settings.ts";
import { allCommands, type CommandReference, type OptionReference } from "./definitions.ts";

/** The page of the whole program. */
export function manPage(program: CommandReference): string {
  const [, ...commands] = allCommands(program);
  return [
    `.TH TIDEMARK 1 "" "tidemark ${escaped(tidemarkVersion)}" "User Commands"`,
    ".SH NAME",
    `tidemark \\- ${escaped(program.description)}`,
    ".SH SYNOPSIS",
    ...commands.filter((command) => command.commands.length === 0).flatMap(({ usage }) => [escaped(usage), ".br"]),
    ".SH GLOBAL OPTIONS",
    ...program.options.flatMap(optionLines),
    ".SH NOTES",
    ...preformatted(program.notes),
    ".SH COMMANDS",
    ...commands.flatMap(commandLines),
    ".SH ENVIRONMENT",
    ...environmentVariables.flatMap(([names, meaning]) => tagged(names, meaning)),
    ".SH EXIT STATUS",
    ...exitCodeMeanings.flatMap(([code, meaning]) => tagged(String(code), meaning)),
    ".SH EXAMPLES",
    ...preformatted(program.examples),
    "",
  ].join("\n");
}

function commandLines(command: CommandReference): readonly string[] {
  return [
    `.SS ${escaped(command.name)}`,
    escaped(command.description),
    ".PP",
    `.B ${escaped(command.usage)}`,
    ...command.arguments.flatMap(({ term, description }) => tagged(term, description)),
    ...command.options.flatMap(optionLines),
    ...(command.notes === "" ? [] : preformatted(command.notes)),
    ...(command.examples === "" ? [] : [".PP", "Examples:", ...preformatted(command.examples)]),
  ];
}

function optionLines({ flags, description, isRequired, choices, variable }: OptionReference): readonly string[] {
  const marks = [
    ...(isRequired ? ["Required."] : []),
    ...(choices.length === 0 ? [] : [`One of ${choices.join(", ")}.`]),
    ...(variable === undefined ? [] : [`Variable: ${variable}.`]),
  ];
  return tagged(flags, [`${description}.`, ...marks].join(" "));
}

function tagged(term: string, text: string): readonly string[] {
  return [".TP", `.B ${escaped(term)}`, escaped(text)];
}

function preformatted(text: string): readonly string[] {
  return [".PP", ".nf", ...text.split("\n").map(escaped), ".fi"];
}

function escaped(text: string): string {
  return text
    .replaceAll("\\", "\\e")
    .replaceAll("-", "\\-")
    .replaceAll("…", "...")
    .replace(/^([.'])/, "\\&$1");
}
