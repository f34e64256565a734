/**
 * Completion scripts for bash, zsh and fish, made from the command definitions.
 *
 * Each script holds the whole table: at which command which words may follow. It runs no tidemark,
 * so that a key press costs nothing. Values of an option complete to its choices, or to file names
 * where the value is one.
 */
import { allCommands, type CommandReference, type OptionReference } from "./definitions.ts";

export const shells = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof shells)[number];

/** Names of values that are paths. */
const pathValues: ReadonlySet<string> = new Set(["path", "file", "dir", "target"]);

/** The script that `shell` reads. */
export function completionScript(shell: Shell, program: CommandReference): string {
  switch (shell) {
    case "bash":
      return bashScript(program);
    case "zsh":
      return `#compdef tidemark\nautoload -U +X bashcompinit && bashcompinit\n${bashScript(program)}`;
    case "fish":
      return fishScript(program);
  }
}

function bashScript(program: CommandReference): string {
  const commands = allCommands(program);
  const steps = commands
    .slice(1)
    .flatMap((command) =>
      namesOf(command).map((name) => `"${pathOf(command, 1)}:${name}") at="${pathOf(command)}" ;;`),
    );
  const words = commands.map((command) => {
    const options = [...command.options, ...(command === program ? [] : program.options)];
    const choices = [...command.commands.flatMap(namesOf), ...options.map(({ long }) => long), "--help"];
    return `"${pathOf(command)}") words="${choices.join(" ")}" files=${command.arguments.length > 0 ? 1 : 0} ;;`;
  });
  const values = commands.flatMap((command) =>
    command.options.filter(({ value }) => value !== undefined).map((option) => valueCase(command, option)),
  );
  return `# Completion of tidemark: source it, or put it where the shell looks for completions.
_tidemark() {
  local cur="\${COMP_WORDS[COMP_CWORD]}" prev="\${COMP_WORDS[COMP_CWORD-1]}" at="" words="" files=0 i
  for ((i = 1; i < COMP_CWORD; i++)); do
    case "$at:\${COMP_WORDS[i]}" in
      ${steps.join("\n      ")}
    esac
  done
  COMPREPLY=()
  case "$at:$prev" in
    ${values.join("\n    ")}
  esac
  case "$at" in
    ${words.join("\n    ")}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$cur"))
  if [[ $files = 1 && $cur != -* ]]; then COMPREPLY+=($(compgen -f -- "$cur")); fi
}
complete -o filenames -F _tidemark tidemark
`;
}

function valueCase(command: CommandReference, { long, value = "", choices }: OptionReference): string {
  const reply = choices.length > 0 ? `compgen -W "${choices.join(" ")}"` : pathValues.has(value) ? "compgen -f" : "";
  return `"${pathOf(command)}:${long}") ${reply === "" ? "" : `COMPREPLY=($(${reply} -- "$cur")); `}return ;;`;
}

function fishScript(program: CommandReference): string {
  const lines = allCommands(program).flatMap((command) => {
    const path = pathOf(command);
    const condition = command === program ? "" : ` -n '__tidemark_at "${path}"'`;
    const children = command.commands.flatMap((child) =>
      namesOf(child).map(
        (name) => `complete -c tidemark -f -n '__tidemark_at "${path}"' -a ${name} -d ${quoted(child.description)}`,
      ),
    );
    return [...children, ...command.options.map((option) => `complete -c tidemark${condition}${fishOption(option)}`)];
  });
  const commands = allCommands(program).slice(1);
  const steps = commands.flatMap((command) =>
    namesOf(command).map((name) => `case '${pathOf(command, 1)}:${name}'\n                set at '${pathOf(command)}'`),
  );
  return `# Completion of tidemark: put it into ~/.config/fish/completions/tidemark.fish
function __tidemark_at
    set -l at ''
    for word in (commandline -opc)[2..]
        switch "$at:$word"
            ${steps.join("\n            ")}
        end
    end
    test "$at" = "$argv[1]"
end
${lines.join("\n")}
`;
}

function fishOption({ long, short, value, choices, description }: OptionReference): string {
  const names = ` -l ${long.replace(/^--/, "")}${short === undefined ? "" : ` -s ${short.replace(/^-/, "")}`}`;
  const taken =
    value === undefined
      ? ""
      : choices.length > 0
        ? ` -x -a '${choices.join(" ")}'`
        : pathValues.has(value)
          ? " -r -F"
          : " -x";
  return `${names}${taken} -d ${quoted(description)}`;
}

/** `points list` of `tidemark points list`; with `dropped` words less. */
function pathOf({ name }: CommandReference, dropped = 0): string {
  const words = name.split(" ").slice(1);
  return words.slice(0, words.length - dropped).join(" ");
}

/** What a user may type for a command. */
function namesOf(command: CommandReference): readonly string[] {
  return [command.name.slice(command.name.lastIndexOf(" ") + 1), ...command.aliases];
}

/** As fish reads it back. */
function quoted(text: string): string {
  return `'${text.replaceAll("\\", "\\\\").replaceAll("'", "\\'")}'`;
}
